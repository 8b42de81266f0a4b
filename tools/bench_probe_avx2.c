/* tools/bench_probe_avx2.c - see bench_probe.h: AVX2 and FMA. */
#include <immintrin.h>

#include "tools/bench_probe.h"

enum { VECTOR_BYTES = 32, STEPS = 64 };

static inline __m256i load(const uint8_t *from)
{
    return _mm256_load_si256((const __m256i *)(const void *)from);
}

static inline uint32_t fold(__m256i v)
{
    __m128i half = _mm_xor_si128(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return (uint32_t)(_mm_extract_epi32(half, 0) ^ _mm_extract_epi32(half, 1) ^
                      _mm_extract_epi32(half, 2) ^ _mm_extract_epi32(half, 3));
}

/* One operand of every step comes from the L1 cache, as a kernel's panel does. */
static _Alignas(64) const float weights_f32[STEPS][16] = {{0.5f, 0.25f}, {0.125f}};
static _Alignas(64) const int8_t weights_int8[STEPS][64] = {{1, 2, 3}, {4, -5, 6}};

/* 4 rows x 16 weights: 8 sums, the block that the f32, bf16 and fp8 kernels work on. */
static double f32_avx2(long rounds, uint32_t *sink)
{
    volatile float start = 0.5f;
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
    __m256 x0 = _mm256_set1_ps(start), x1 = x0, x2 = x0, x3 = x0;
    for (long round = 0; round < rounds; round++)
        for (int k = 0; k < STEPS; k++) {
            __m256 w0 = _mm256_load_ps(weights_f32[k]), w1 = _mm256_load_ps(weights_f32[k] + 8);
            __asm__ volatile("" : "+x"(x0), "+x"(x1), "+x"(x2), "+x"(x3));
            s0 = _mm256_fmadd_ps(w0, x0, s0);
            s1 = _mm256_fmadd_ps(w1, x0, s1);
            s2 = _mm256_fmadd_ps(w0, x1, s2);
            s3 = _mm256_fmadd_ps(w1, x1, s3);
            s4 = _mm256_fmadd_ps(w0, x2, s4);
            s5 = _mm256_fmadd_ps(w1, x2, s5);
            s6 = _mm256_fmadd_ps(w0, x3, s6);
            s7 = _mm256_fmadd_ps(w1, x3, s7);
        }
    __m256 all = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)),
                               _mm256_add_ps(_mm256_add_ps(s4, s5), _mm256_add_ps(s6, s7)));
    *sink += fold(_mm256_castps_si256(all));
    return 2.0 * 8 * 8 * STEPS * (double)rounds;
}

static inline __m256i maddubs_madd(__m256i sum, __m256i w, __m256i x, __m256i ones)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones));
}

/* 4 rows x 8 weights: what is added is ready after one cycle, so four sums are enough, and
 * eight would not stay in the sixteen registers. */
static double q8_avx2(long rounds, uint32_t *sink)
{
    volatile int start = 0x01020304;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
    __m256i x0 = _mm256_set1_epi32(start), x1 = x0, x2 = x0, x3 = x0;
    for (long round = 0; round < rounds; round++)
        for (int k = 0; k < STEPS; k++) {
            __m256i w = load((const uint8_t *)weights_int8[k]);
            __asm__ volatile("" : "+x"(x0), "+x"(x1), "+x"(x2), "+x"(x3));
            s0 = maddubs_madd(s0, w, x0, ones);
            s1 = maddubs_madd(s1, w, x1, ones);
            s2 = maddubs_madd(s2, w, x2, ones);
            s3 = maddubs_madd(s3, w, x3, ones);
        }
    *sink += fold(_mm256_add_epi32(_mm256_add_epi32(s0, s1), _mm256_add_epi32(s2, s3)));
    return 2.0 * 4 * VECTOR_BYTES * STEPS * (double)rounds;
}

/* Products of four bits: eight may be added in int16, so one pmaddwd serves eight maddubs. */
static double q4_avx2(long rounds, uint32_t *sink)
{
    volatile int start = 0x01020304;
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                       _mm256_setzero_si256()};
    __m256i x0 = _mm256_set1_epi32(start), x1 = x0;
    for (long round = 0; round < rounds; round++)
        for (int group = 0; group < STEPS; group += 8) {
            __m256i h0 = _mm256_setzero_si256(), h1 = h0, h2 = h0, h3 = h0;
            for (int k = group; k < group + 8; k++) {
                const uint8_t *w = (const uint8_t *)weights_int8[k];
                __m256i w0 = _mm256_and_si256(load(w), low), w1 = load(w + VECTOR_BYTES);
                __asm__ volatile("" : "+x"(x0), "+x"(x1));
                h0 = _mm256_add_epi16(h0, _mm256_maddubs_epi16(w0, x0));
                h1 = _mm256_add_epi16(h1, _mm256_maddubs_epi16(w1, x0));
                h2 = _mm256_add_epi16(h2, _mm256_maddubs_epi16(w0, x1));
                h3 = _mm256_add_epi16(h3, _mm256_maddubs_epi16(w1, x1));
            }
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(h0, ones));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(h1, ones));
            sums[2] = _mm256_add_epi32(sums[2], _mm256_madd_epi16(h2, ones));
            sums[3] = _mm256_add_epi32(sums[3], _mm256_madd_epi16(h3, ones));
        }
    *sink += fold(
        _mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), _mm256_add_epi32(sums[2], sums[3])));
    return 2.0 * 4 * VECTOR_BYTES * STEPS * (double)rounds;
}

const struct bench_level bench_level_avx2 = {.name = "avx2",
                                             .f32 = f32_avx2,
                                             .f32_name = "vfmadd ymm",
                                             .q8 = q8_avx2,
                                             .q8_name = "vpmaddubsw+vpmaddwd",
                                             .q4 = q4_avx2,
                                             .q4_name = "8 vpmaddubsw+vpmaddwd"};
