/* engine/kernels_avx512_sketch.c - `index_bound` with AVX-512: the bits of kernels_sketch.c.
 * Sixteen keys and up to four queries at a time, halves of bytes in sums of their own so that
 * there are enough chains. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "engine/kernels.h"

enum { TILE = 4, LINE = 64 };

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i four_bytes(const int8_t *q)
{
    int32_t word;
    memcpy(&word, q, sizeof(word));
    return _mm512_set1_epi32(word);
}

/* As kernels_avx512_quant.c's: as an intrinsic gcc copies every sum once more. */
INLINE void add_products(__m512i *sum, __m512i w, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x));
}

INLINE void multiply(const struct sketch_block *b, const char *codes, const char *ahead,
                     const int8_t *q, const int n, __m512i sum[TILE])
{
    const __m512i low = _mm512_set1_epi8(15);
    __m512i high_sum[TILE];
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        sum[i] = high_sum[i] = _mm512_setzero_si512();
    for (int d = 0; d < b->head_dim; d += SKETCH_DIMS, codes += LINE, ahead += LINE) {
        __m512i x = _mm512_load_si512(codes);
        _mm_prefetch(ahead, _MM_HINT_T1);
        __m512i x0 = _mm512_and_si512(x, low);
        __m512i x1 = _mm512_and_si512(_mm512_srli_epi16(x, 4), low);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            const int8_t *c = q + (size_t)i * b->q_stride + d;
            add_products(&sum[i], x0, four_bytes(c));
            add_products(&high_sum[i], x1, four_bytes(c + 4));
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        sum[i] = _mm512_add_epi32(sum[i], high_sum[i]);
}

INLINE void bound_unit(const struct sketch_block *b, const char *unit, const char *ahead, int first,
                       const int n, __m512 bounds[TILE])
{
    const struct sketch_head *head = (const struct sketch_head *)(const void *)unit;
    __m512i sum[TILE];
    multiply(b, unit + sizeof(*head), ahead + sizeof(*head), b->q + (size_t)first * b->q_stride, n,
             sum);
    _mm_prefetch(ahead, _MM_HINT_T1);
    __m512i half = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)(const void *)head));
    __m512 step = _mm512_castsi512_ps(_mm512_slli_epi32(half, 16));
    __m512 error = _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)head->error)));
    __m512 norm = _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)head->norm)));
    __mmask16 unknown = _mm512_cmp_ps_mask(step, step, _CMP_UNORD_Q);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        const struct sketch_query *q = &b->queries[first + i];
        __m512i twice =
            _mm512_sub_epi32(_mm512_slli_epi32(sum[i], 1), _mm512_set1_epi32(q->middle));
        __m512 around = _mm512_fmadd_ps(_mm512_set1_ps(q->error), error,
                                        _mm512_mul_ps(_mm512_set1_ps(q->norm), norm));
        around = _mm512_fmadd_ps(_mm512_set1_ps(q->unit), _mm512_cvtepi32_ps(twice), around);
        __m512 bound = _mm512_fmadd_ps(step, around, _mm512_set1_ps(SKETCH_LEAST));
        bounds[i] = _mm512_mask_mov_ps(bound, unknown, _mm512_set1_ps(INFINITY));
    }
}

INLINE void bound_tile(const struct sketch_block *b, int first, const int n)
{
    const char *unit = b->sketch, *next = b->next && first == 0 ? b->next : b->sketch;
    float *to = b->largest + (size_t)first * b->largest_stride;
    for (int at = 0; at < b->n_keys;
         at += SKETCH_UNIT, unit += b->unit_bytes, next += b->unit_bytes, to++) {
        __m512 bounds[TILE];
        bound_unit(b, unit, next, first, n, bounds);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            to[(size_t)i * b->largest_stride] = _mm512_reduce_max_ps(bounds[i]);
    }
}

static void bound(const struct sketch_block *b)
{
    int first = 0;
    for (; first + TILE <= b->n_queries; first += TILE)
        bound_tile(b, first, TILE);
    for (; first < b->n_queries; first++)
        bound_tile(b, first, 1);
}

void kernels_avx512_sketch(struct kernels *k)
{
    k->index_bound = bound;
}
