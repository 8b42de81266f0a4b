/* engine/kernels_attend.c - the definition of `attend` (step 6): folds one block of keys.
 *
 * Written for exactness, not for speed; kernels_avx2_attend.c is its fast twin.  The block's
 * maximum is taken in 16 lanes too (key j in lane j mod 16, then lanes 0..15), so that the
 * sign of a zero is the same everywhere. */
#include <math.h>

#include "base/must.h"
#include "engine/kernels.h"
#include "engine/mathf.h"

enum { LANES = 16 };

/* s_j of one head against all keys of the block. */
static void score_keys(const struct attend_block *b, const float *q, float *scores)
{
    for (int j = 0; j < b->n_keys; j++) {
        const float *k = b->k + (size_t)(j / LANES) * (size_t)b->head_dim * LANES + j % LANES;
        float s = 0.0f;
        for (int d = 0; d < b->head_dim; d++)
            s = fmaf(q[d], k[(size_t)d * LANES], s);
        scores[j] = s;
    }
}

/* A NaN is never larger, so it does not become the maximum. */
static float block_max(float before, const float *scores, int n_keys)
{
    float lanes[LANES];
    for (int lane = 0; lane < LANES; lane++)
        lanes[lane] = -INFINITY;
    for (int j = 0; j < n_keys; j++)
        if (scores[j] > lanes[j % LANES])
            lanes[j % LANES] = scores[j];
    float max = before;
    for (int lane = 0; lane < LANES; lane++)
        if (lanes[lane] > max)
            max = lanes[lane];
    return max;
}

static void fold_head(const struct attend_block *b, int head)
{
    float scores[ATTEND_BLOCK];
    struct attend_state *state = &b->state[head];
    float *o = b->o + (size_t)head * (size_t)b->v_stride;
    score_keys(b, b->q + (size_t)head * (size_t)b->q_stride, scores);

    float max = block_max(state->max, scores, b->n_keys);
    float keep = state->max == -INFINITY ? 0.0f : math_exp(state->max - max);
    state->max = max;
    for (int lane = 0; lane < LANES; lane++)
        state->sum[lane] *= keep;
    for (int d = 0; d < b->v_stride; d++)
        o[d] *= keep;
    for (int j = 0; j < b->n_keys; j++) {
        const float *v = b->v + (size_t)j * (size_t)b->v_stride;
        float p = math_exp(scores[j] - max);
        state->sum[j % LANES] += p;
        for (int d = 0; d < b->v_stride; d++)
            o[d] = fmaf(p, v[d], o[d]);
    }
}

static void attend_portable(const struct attend_block *b)
{
    must(b->n_keys >= 1 && b->n_keys <= ATTEND_BLOCK);
    for (int head = 0; head < b->n_heads; head++)
        fold_head(b, head);
}

void kernels_portable_attend(struct kernels *k)
{
    k->attend = attend_portable;
}
