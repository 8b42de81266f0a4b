/* engine/kernels_avx2_sketch.c - `index_bound` with AVX2: the bits of kernels_sketch.c.  Eight
 * keys and up to four queries at a time. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "engine/kernels.h"

/* Four groups of dimensions make 16 products of at most 15 * 127 in a 16-bit sum. */
enum { TILE = 4, LINE = 64, HALF = 8, IN_16_BITS = 4 };

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i four_bytes(const int8_t *q)
{
    int32_t word;
    memcpy(&word, q, sizeof(word));
    return _mm256_set1_epi32(word);
}

INLINE void multiply(const struct sketch_block *b, const char *codes, const char *ahead,
                     const int8_t *q, const int n, __m256i sum[TILE])
{
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    int end = (b->head_dim + SKETCH_DIMS - 1) / SKETCH_DIMS;
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        sum[i] = _mm256_setzero_si256();
    for (int first = 0; first < end; first += IN_16_BITS) {
        __m256i narrow[TILE];
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            narrow[i] = _mm256_setzero_si256();
        for (int g = first; g < end && g < first + IN_16_BITS; g++) {
            const char *at = codes + (size_t)g * LINE;
            __m256i x = _mm256_load_si256((const __m256i *)(const void *)at);
            _mm_prefetch(ahead + (size_t)g * LINE, _MM_HINT_T1);
            __m256i x0 = _mm256_and_si256(x, low);
            __m256i x1 = _mm256_and_si256(_mm256_srli_epi16(x, 4), low);
#pragma GCC unroll 4
            for (int i = 0; i < n; i++) {
                const int8_t *c = q + (size_t)i * b->q_stride + (size_t)g * SKETCH_DIMS;
                __m256i p0 = _mm256_maddubs_epi16(x0, four_bytes(c));
                __m256i p1 = _mm256_maddubs_epi16(x1, four_bytes(c + 4));
                narrow[i] = _mm256_add_epi16(narrow[i], _mm256_add_epi16(p0, p1));
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(narrow[i], ones));
    }
}

INLINE __m256 bytes_to_floats(const uint8_t *x)
{
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)x)));
}

/* Eight keys of a unit, from `key` on. */
INLINE void bound_half(const struct sketch_block *b, const char *unit, const char *ahead, int key,
                       int first, const int n, __m256 most[TILE])
{
    const struct sketch_head *head = (const struct sketch_head *)(const void *)unit;
    size_t at = sizeof(*head) + (size_t)key * sizeof(uint32_t);
    __m256i sum[TILE];
    multiply(b, unit + at, ahead + at, b->q + (size_t)first * b->q_stride, n, sum);
    __m128i half = _mm_load_si128((const __m128i *)(const void *)(head->step + key));
    __m256 step = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    __m256 error = bytes_to_floats(head->error + key), norm = bytes_to_floats(head->norm + key);
    __m256 unknown = _mm256_cmp_ps(step, step, _CMP_UNORD_Q);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        const struct sketch_query *q = &b->queries[first + i];
        __m256i twice =
            _mm256_sub_epi32(_mm256_slli_epi32(sum[i], 1), _mm256_set1_epi32(q->middle));
        __m256 around = _mm256_fmadd_ps(_mm256_set1_ps(q->error), error,
                                        _mm256_mul_ps(_mm256_set1_ps(q->norm), norm));
        around = _mm256_fmadd_ps(_mm256_set1_ps(q->unit), _mm256_cvtepi32_ps(twice), around);
        __m256 bound = _mm256_fmadd_ps(step, around, _mm256_set1_ps(SKETCH_LEAST));
        bound = _mm256_blendv_ps(bound, _mm256_set1_ps(INFINITY), unknown);
        most[i] = _mm256_max_ps(bound, most[i]);
    }
}

INLINE float largest_of(__m256 m)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

INLINE void bound_tile(const struct sketch_block *b, int first, const int n)
{
    const char *unit = b->sketch, *next = b->next && first == 0 ? b->next : b->sketch;
    float *to = b->largest + (size_t)first * b->largest_stride;
    for (int at = 0; at < b->n_keys;
         at += SKETCH_UNIT, unit += b->unit_bytes, next += b->unit_bytes, to++) {
        __m256 most[TILE];
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            most[i] = _mm256_set1_ps(-INFINITY);
        for (int key = 0; key < SKETCH_UNIT; key += HALF)
            bound_half(b, unit, next, key, first, n, most);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            to[(size_t)i * b->largest_stride] = largest_of(most[i]);
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

void kernels_avx2_sketch(struct kernels *k)
{
    k->index_bound = bound;
}
