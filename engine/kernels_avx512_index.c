/* engine/kernels_avx512_index.c - `index_largest` with AVX-512: the bits of kernels_index.c.
 * 64 keys and up to four queries at a time, or 16 keys where there are fewer. */
#include <immintrin.h>
#include <math.h>

#include "engine/kernels.h"

enum { LANES = 16, TILE = 4, GROUPS = ATTEND_BLOCK / LANES, LINE = 64 };

#define INLINE static inline __attribute__((always_inline))

INLINE __m512 even_half(const char *x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(x), 16));
}

INLINE __m512 odd_half(const char *x)
{
    const __m512i mask = _mm512_set1_epi32((int)0xffff0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(x), mask));
}

/* A line of each of `wide` groups of keys, which lie group_bytes apart, and of the next block. */
INLINE void step_bf16(const char *x, size_t group_bytes, const char *ahead, const float *q,
                      size_t stride, const int n, const int wide, __m512 acc[TILE][GROUPS])
{
#pragma GCC unroll 4
    for (int g = 0; g < wide; g++) {
        const char *at = x + (size_t)g * group_bytes;
        _mm_prefetch(ahead + (size_t)g * group_bytes, _MM_HINT_T0);
        __m512 even = even_half(at), odd = odd_half(at);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            const float *c = q + (size_t)i * stride;
            acc[i][g] = _mm512_fmadd_ps(_mm512_set1_ps(c[0]), even, acc[i][g]);
            acc[i][g] = _mm512_fmadd_ps(_mm512_set1_ps(c[1]), odd, acc[i][g]);
        }
    }
}

INLINE void step_f32(const char *x, size_t group_bytes, const char *ahead, const float *q,
                     size_t stride, const int n, const int wide, __m512 acc[TILE][GROUPS])
{
#pragma GCC unroll 4
    for (int g = 0; g < wide; g++) {
        __m512 lanes = _mm512_loadu_ps(x + (size_t)g * group_bytes);
        _mm_prefetch(ahead + (size_t)g * group_bytes, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            acc[i][g] = _mm512_fmadd_ps(_mm512_set1_ps(q[(size_t)i * stride]), lanes, acc[i][g]);
    }
}

/* max(a, b) is "a > b ? a : b" here: b if one is a NaN. */
INLINE void look_groups(const struct index_block *b, enum kv_format format, const char *x,
                        const char *ahead, const float *q, const int n, const int wide,
                        __m512 most[TILE])
{
    size_t stride = (size_t)b->q_stride;
    size_t group_bytes = (size_t)b->head_dim * LANES * (format == KV_F32 ? 4 : 2);
    __m512 acc[TILE][GROUPS];
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int g = 0; g < wide; g++)
            acc[i][g] = _mm512_setzero_ps();
    if (format == KV_F32)
        for (int d = 0; d < b->head_dim; d++, x += LINE, ahead += LINE)
            step_f32(x, group_bytes, ahead, q + d, stride, n, wide, acc);
    else
        for (int d = 0; d < b->head_dim; d += 2, x += LINE, ahead += LINE)
            step_bf16(x, group_bytes, ahead, q + d, stride, n, wide, acc);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int g = 0; g < wide; g++)
            most[i] = _mm512_max_ps(acc[i][g], most[i]);
}

INLINE void look_tile(const struct index_block *b, enum kv_format format, int first, const int n)
{
    size_t group_bytes = (size_t)b->head_dim * LANES * (format == KV_F32 ? 4 : 2);
    const float *q = b->q + (size_t)first * (size_t)b->q_stride;
    const char *k = b->k, *next = b->next && first == 0 ? b->next : b->k;
    __m512 most[TILE];
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        most[i] = _mm512_set1_ps(-INFINITY);
    if (b->n_keys == ATTEND_BLOCK)
        look_groups(b, format, k, next, q, n, GROUPS, most);
    else
        for (int j = 0; j < b->n_keys; j += LANES, k += group_bytes, next += group_bytes)
            look_groups(b, format, k, next, q, n, 1, most);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        float *to = b->largest + (size_t)(first + i) * b->largest_stride;
        float found = _mm512_reduce_max_ps(most[i]);
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

void kernels_avx512_index(struct kernels *k)
{
    k->index_largest[KV_F32] = largest_f32;
    k->index_largest[KV_BF16] = largest_bf16;
}
