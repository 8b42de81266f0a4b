/* engine/kernels_avx2_attend.c - `attend` with AVX2 and FMA: the bits of kernels_attend.c.
 *
 * Up to six queries go through a block together: 12 accumulators, two vectors of keys or
 * values and one broadcast fill the 16 registers.  Lanes hold keys while scoring and
 * dimensions while adding values, so every sum stays one chain. */
#include <immintrin.h>
#include <math.h>

#include "base/must.h"
#include "engine/kernels.h"
#include "engine/mathf_inline.h"

enum { LANES = 16, HALF = 8, TILE = 6 };

#define INLINE static inline __attribute__((always_inline))

/* One tile: probabilities of its queries, and what their old sums are multiplied with. */
struct tile {
    _Alignas(64) float p[TILE][ATTEND_BLOCK];
    float keep[TILE];
};

/* Scores of 16 keys from `first_key` on.  n is a constant after inlining, so that s[][] lives
 * in registers.  The group's values, needed right after, are fetched ahead meanwhile: they are
 * read in columns, which the hardware does not foresee. */
INLINE void score_group(const struct attend_block *b, int first_key, const float *q, const int n,
                        float *out)
{
    const size_t q_stride = (size_t)b->q_stride;
    const float *k = (const float *)b->k + (size_t)first_key * (size_t)b->head_dim;
    const float *ahead = (const float *)b->v + (size_t)first_key * (size_t)b->v_stride;
    __m256 s[TILE][2];
#pragma GCC unroll 6
    for (int i = 0; i < n; i++)
        s[i][0] = s[i][1] = _mm256_setzero_ps();
    for (int d = 0; d < b->head_dim; d++, k += LANES, ahead += LANES) {
        _mm_prefetch((const char *)ahead, _MM_HINT_T0);
        __m256 k0 = _mm256_loadu_ps(k), k1 = _mm256_loadu_ps(k + HALF);
#pragma GCC unroll 6
        for (int i = 0; i < n; i++) {
            __m256 x = _mm256_broadcast_ss(q + (size_t)i * q_stride + d);
            s[i][0] = _mm256_fmadd_ps(x, k0, s[i][0]);
            s[i][1] = _mm256_fmadd_ps(x, k1, s[i][1]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        _mm256_store_ps(out + i * ATTEND_BLOCK, s[i][0]);
        _mm256_store_ps(out + i * ATTEND_BLOCK + HALF, s[i][1]);
    }
}

/* max(a, b) is "a > b ? a : b" here: b if one is a NaN, and of two zeros b. */
static float block_max(float before, const float *scores, int n_padded)
{
    __m256 m0 = _mm256_set1_ps(-INFINITY), m1 = m0;
    for (int j = 0; j < n_padded; j += LANES) {
        m0 = _mm256_max_ps(_mm256_load_ps(scores + j), m0);
        m1 = _mm256_max_ps(_mm256_load_ps(scores + j + HALF), m1);
    }
    _Alignas(32) float lanes[LANES];
    _mm256_store_ps(lanes, m0);
    _mm256_store_ps(lanes + HALF, m1);
    float max = before;
    for (int lane = 0; lane < LANES; lane++)
        if (lanes[lane] > max)
            max = lanes[lane];
    return max;
}

/* Scores become probabilities; the state takes them in.  Returns what was kept of it. */
static float soften(struct attend_state *state, float *p, int n_keys, int n_padded)
{
    for (int j = n_keys; j < n_padded; j++)
        p[j] = -INFINITY;
    float max = block_max(state->max, p, n_padded);
    float keep = state->max == -INFINITY ? 0.0f : mathf_exp1(state->max - max);
    state->max = max;
    for (int j = 0; j < n_padded; j += HALF) {
        __m256 x = _mm256_sub_ps(_mm256_load_ps(p + j), _mm256_set1_ps(max));
        _mm256_store_ps(p + j, mathf_exp8(x));
    }
    /* Exactly zero also where the maximum is -inf: a lane without a key stays as it was. */
    for (int j = n_keys; j < n_padded; j++)
        p[j] = 0.0f;
    __m256 s0 = _mm256_mul_ps(_mm256_loadu_ps(state->sum), _mm256_set1_ps(keep));
    __m256 s1 = _mm256_mul_ps(_mm256_loadu_ps(state->sum + HALF), _mm256_set1_ps(keep));
    for (int j = 0; j < n_padded; j += LANES) {
        s0 = _mm256_add_ps(s0, _mm256_load_ps(p + j));
        s1 = _mm256_add_ps(s1, _mm256_load_ps(p + j + HALF));
    }
    _mm256_storeu_ps(state->sum, s0);
    _mm256_storeu_ps(state->sum + HALF, s1);
    return keep;
}

/* Sixteen dimensions of o for n queries, over all keys of the block. */
INLINE void add_values(const struct attend_block *b, const struct tile *t, const float *v,
                       float *out, const int n)
{
    const size_t stride = (size_t)b->v_stride;
    __m256 o[TILE][2];
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        __m256 keep = _mm256_set1_ps(t->keep[i]);
        o[i][0] = _mm256_mul_ps(_mm256_load_ps(out + (size_t)i * stride), keep);
        o[i][1] = _mm256_mul_ps(_mm256_load_ps(out + (size_t)i * stride + HALF), keep);
    }
    for (int j = 0; j < b->n_keys; j++, v += stride) {
        __m256 v0 = _mm256_loadu_ps(v), v1 = _mm256_loadu_ps(v + HALF);
#pragma GCC unroll 6
        for (int i = 0; i < n; i++) {
            __m256 p = _mm256_broadcast_ss(&t->p[i][j]);
            o[i][0] = _mm256_fmadd_ps(p, v0, o[i][0]);
            o[i][1] = _mm256_fmadd_ps(p, v1, o[i][1]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        _mm256_store_ps(out + (size_t)i * stride, o[i][0]);
        _mm256_store_ps(out + (size_t)i * stride + HALF, o[i][1]);
    }
}

INLINE void fold_tile(const struct attend_block *b, int first, const int n)
{
    struct tile t;
    const float *q = b->q + (size_t)first * (size_t)b->q_stride;
    int n_padded = (b->n_keys + LANES - 1) / LANES * LANES;
    for (int j = 0; j < n_padded; j += LANES)
        score_group(b, j, q, n, &t.p[0][j]);
    for (int i = 0; i < n; i++)
        t.keep[i] = soften(&b->state[first + i], t.p[i], b->n_keys, n_padded);
    float *o = b->o + (size_t)first * (size_t)b->v_stride;
    for (int d = 0; d < b->v_stride; d += LANES)
        add_values(b, &t, (const float *)b->v + d, o + d, n);
}

static void attend_avx2(const struct attend_block *b)
{
    must(b->n_keys >= 1 && b->n_keys <= ATTEND_BLOCK && b->v_stride % LANES == 0);
    for (int first = 0; first < b->n_heads; first += TILE) {
        switch (b->n_heads - first) {
        case 1:
            fold_tile(b, first, 1);
            break;
        case 2:
            fold_tile(b, first, 2);
            break;
        case 3:
            fold_tile(b, first, 3);
            break;
        case 4:
            fold_tile(b, first, 4);
            break;
        case 5:
            fold_tile(b, first, 5);
            break;
        default:
            fold_tile(b, first, TILE);
        }
    }
}

void kernels_avx2_attend(struct kernels *k)
{
    k->attend[KV_F32] = attend_avx2;
}
