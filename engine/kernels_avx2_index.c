/* engine/kernels_avx2_index.c - `index_largest` with AVX2 and FMA: the bits of
 * kernels_index.c.  Sixteen keys and up to four queries at a time. */
#include <immintrin.h>
#include <math.h>

#include "engine/kernels.h"

enum { LANES = 16, HALF = 8, TILE = 4, LINE = 64 };

#define INLINE static inline __attribute__((always_inline))

INLINE __m256 even_half(const char *x)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)(const void *)x), 16));
}

INLINE __m256 odd_half(const char *x)
{
    __m256i raw = _mm256_loadu_si256((const __m256i *)(const void *)x);
    return _mm256_castsi256_ps(_mm256_and_si256(raw, _mm256_set1_epi32((int)0xffff0000u)));
}

INLINE void step(__m256 x0, __m256 x1, const float *q, size_t stride, const int n,
                 __m256 acc[TILE][2])
{
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        __m256 y = _mm256_broadcast_ss(q + (size_t)i * stride);
        acc[i][0] = _mm256_fmadd_ps(y, x0, acc[i][0]);
        acc[i][1] = _mm256_fmadd_ps(y, x1, acc[i][1]);
    }
}

/* One group of keys at x; `ahead` is fetched meanwhile. */
INLINE void dot(enum kv_format format, const char *x, int dims, const float *q, size_t stride,
                const int n, const char *ahead, __m256 acc[TILE][2])
{
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    if (format == KV_F32) {
        for (int d = 0; d < dims; d++, x += LINE, ahead += LINE) {
            _mm_prefetch(ahead, _MM_HINT_T0);
            const float *lanes = (const float *)(const void *)x;
            step(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + HALF), q + d, stride, n, acc);
        }
        return;
    }
    for (int d = 0; d < dims; d += 2, x += LINE, ahead += LINE) {
        _mm_prefetch(ahead, _MM_HINT_T0);
        step(even_half(x), even_half(x + LINE / 2), q + d, stride, n, acc);
        step(odd_half(x), odd_half(x + LINE / 2), q + d + 1, stride, n, acc);
    }
}

/* max(a, b) is "a > b ? a : b": b if one is a NaN. */
INLINE float largest_of(__m256 m)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

INLINE void look_tile(const struct index_block *b, enum kv_format format, int first, const int n)
{
    size_t stride = (size_t)b->q_stride;
    size_t group_bytes = (size_t)b->head_dim * LANES * (format == KV_F32 ? 4 : 2);
    const float *q = b->q + (size_t)first * stride;
    const char *k = b->k, *next = b->next && first == 0 ? b->next : b->k;
    __m256 most[TILE];
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        most[i] = _mm256_set1_ps(-INFINITY);
    for (int j = 0; j < b->n_keys; j += LANES, k += group_bytes, next += group_bytes) {
        __m256 acc[TILE][2];
        dot(format, k, b->head_dim, q, stride, n, next, acc);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            most[i] = _mm256_max_ps(acc[i][1], _mm256_max_ps(acc[i][0], most[i]));
    }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        float *to = b->largest + (size_t)(first + i) * b->largest_stride;
        float found = largest_of(most[i]);
        *to = (found > *to ? found : *to) + 0.0f;
    }
}

INLINE void look(const struct index_block *b, enum kv_format format)
{
    int first = 0;
    for (; first + TILE <= b->n_queries; first += TILE)
        look_tile(b, format, first, TILE);
    for (; first < b->n_queries; first++)
        look_tile(b, format, first, 1);
}

static void largest_f32(const struct index_block *b)
{
    look(b, KV_F32);
}

static void largest_bf16(const struct index_block *b)
{
    look(b, KV_BF16);
}

void kernels_avx2_index(struct kernels *k)
{
    k->index_largest[KV_F32] = largest_f32;
    k->index_largest[KV_BF16] = largest_bf16;
}
