/* engine/kernels_attend.c - the definition of `attend` (step 6): folds one block of keys.
 *
 * Written for exactness, not for speed; kernels_avx2_attend.c and kernels_avx512_attend.c are
 * its fast twins.  A maximum that is a zero is made positive, so that it does not matter in
 * which order it was looked for. */
#include <math.h>

#include "base/must.h"
#include "engine/kernels.h"
#include "engine/mathf.h"
#include "model/halves.h"

enum { LANES = 16, P_MAX = 32767 };
#define SMALLEST_T 0x1p-100f

/* Dimension d of key j of a block, of K and of V. */
typedef float element_at(const struct attend_block *b, int j, int d);

/* Index of (key, dim) in K, whose dims lie `packed` to a lane. */
static size_t key_index(const struct attend_block *b, int j, int d, int packed)
{
    size_t groups = ((size_t)b->head_dim + (size_t)packed - 1) / (size_t)packed;
    size_t at = ((size_t)(j / LANES) * groups + (size_t)(d / packed)) * LANES + (size_t)(j % LANES);
    return at * (size_t)packed + (size_t)(d % packed);
}

static size_t value_index(const struct attend_block *b, int j, int d, int packed)
{
    size_t at = (size_t)(j / packed) * (size_t)b->v_stride + (size_t)d;
    return at * (size_t)packed + (size_t)(j % packed);
}

static float key_f32(const struct attend_block *b, int j, int d)
{
    return ((const float *)b->k)[key_index(b, j, d, 1)];
}

static float value_f32(const struct attend_block *b, int j, int d)
{
    return ((const float *)b->v)[value_index(b, j, d, 1)];
}

static float key_bf16(const struct attend_block *b, int j, int d)
{
    return bf16_to_f32(((const uint16_t *)b->k)[key_index(b, j, d, 2)]);
}

static float value_bf16(const struct attend_block *b, int j, int d)
{
    return bf16_to_f32(((const uint16_t *)b->v)[value_index(b, j, d, 2)]);
}

/* s_j of one head against all keys of the block. */
static void score_floats(const struct attend_block *b, int head, element_at *key, float *scores)
{
    const float *q = b->q + (size_t)head * (size_t)b->q_stride;
    for (int j = 0; j < b->n_keys; j++) {
        float s = 0.0f;
        for (int d = 0; d < b->head_dim; d++)
            s = fmaf(q[d], key(b, j, d), s);
        scores[j] = s;
    }
}

static void score_int8(const struct attend_block *b, int head, float *scores)
{
    const int8_t *q = b->q8 + (size_t)head * (size_t)b->q8_stride, *k = b->k;
    for (int j = 0; j < b->n_keys; j++) {
        int32_t sum = 0;
        for (int d = 0; d < b->head_dim; d++)
            sum += q[d] * k[key_index(b, j, d, 4)];
        scores[j] = b->q_scales[head] * b->k_scales[j] * (float)sum;
    }
}

/* A NaN is never larger, so it does not become the maximum. */
static float block_max(float before, const float *scores, int n_keys)
{
    float max = before;
    for (int j = 0; j < n_keys; j++)
        if (scores[j] > max)
            max = scores[j];
    return max + 0.0f;
}

/* Scores become probabilities p; sums and o shrink to the new maximum. */
static void soften(const struct attend_block *b, int head, float *p)
{
    struct attend_state *state = &b->state[head];
    float *o = b->o + (size_t)head * (size_t)b->v_stride;
    float max = block_max(state->max, p, b->n_keys);
    float keep = state->max == -INFINITY ? 0.0f : math_exp(state->max - max);
    state->max = max;
    for (int lane = 0; lane < LANES; lane++)
        state->sum[lane] *= keep;
    for (int d = 0; d < b->v_stride; d++)
        o[d] *= keep;
    for (int j = 0; j < b->n_keys; j++) {
        p[j] = math_exp(p[j] - max);
        state->sum[j % LANES] += p[j];
    }
}

static void add_floats(const struct attend_block *b, int head, element_at *value, const float *p)
{
    float *o = b->o + (size_t)head * (size_t)b->v_stride;
    for (int j = 0; j < b->n_keys; j++)
        for (int d = 0; d < b->v_stride; d++)
            o[d] = fmaf(p[j], value(b, j, d), o[d]);
}

/* p becomes integers u; returns T. */
static float quantise_p(const struct attend_block *b, const float *p, int32_t *u)
{
    float largest = 0.0f;
    for (int j = 0; j < b->n_keys; j++) {
        float t = p[j] * b->v_scales[j];
        if (t > largest || t != t)
            largest = t;
        if (largest != largest)
            break;
    }
    /* Also where T is a NaN, which the sums then take from T alone. */
    float up = largest >= SMALLEST_T ? (float)P_MAX / largest : 0.0f;
    for (int j = 0; j < b->n_keys; j++)
        u[j] = up > 0.0f ? (int32_t)rintf(p[j] * b->v_scales[j] * up) : 0;
    return largest;
}

static void add_int8(const struct attend_block *b, int head, const float *p)
{
    float *o = b->o + (size_t)head * (size_t)b->v_stride;
    const int8_t *v = b->v;
    int32_t u[ATTEND_BLOCK];
    float step = quantise_p(b, p, u) * (1.0f / (float)P_MAX);
    for (int d = 0; d < b->v_stride; d++) {
        int32_t sum = 0;
        for (int j = 0; j < b->n_keys; j++)
            sum += u[j] * v[value_index(b, j, d, 4)];
        o[d] = fmaf(step, (float)sum, o[d]);
    }
}

static void fold_floats(const struct attend_block *b, element_at *key, element_at *value)
{
    must(b->n_keys >= 1 && b->n_keys <= ATTEND_BLOCK);
    for (int head = 0; head < b->n_heads; head++) {
        float p[ATTEND_BLOCK];
        score_floats(b, head, key, p);
        soften(b, head, p);
        add_floats(b, head, value, p);
    }
}

static void attend_f32(const struct attend_block *b)
{
    fold_floats(b, key_f32, value_f32);
}

static void attend_bf16(const struct attend_block *b)
{
    fold_floats(b, key_bf16, value_bf16);
}

static void attend_int8(const struct attend_block *b)
{
    must(b->n_keys >= 1 && b->n_keys <= ATTEND_BLOCK);
    for (int head = 0; head < b->n_heads; head++) {
        float p[ATTEND_BLOCK];
        score_int8(b, head, p);
        soften(b, head, p);
        add_int8(b, head, p);
    }
}

void kernels_portable_attend(struct kernels *k)
{
    k->attend[KV_F32] = attend_f32;
    k->attend[KV_BF16] = attend_bf16;
    k->attend[KV_INT8] = attend_int8;
}
