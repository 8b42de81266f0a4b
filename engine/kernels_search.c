/* engine/kernels_search.c - one group of weights to integers, by the best of several scales;
 * portable C, AVX2 and AVX-512 side by side, because they differ in three short loops only.
 * Runs while weights are loaded or packed, on any thread.
 *
 * All do the same operations on the same values: element i belongs to lane i mod 16, and the
 * 16 lane sums are added in halves (i and i + 8, then i + 4, i + 2, i + 1). */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "engine/kernels.h"

enum { LANES = 16, Q4_LOWEST = -8, Q4_HIGHEST = 7 };

/* Adding it rounds to an integer, ties to even, below 2^22. */
#define ROUNDER 0x1.8p+23f
#define INLINE static inline __attribute__((always_inline))

/* What a level of the table brings.  n is a multiple of LANES. */
typedef float find_largest(const float *x, int n);
typedef float sum_errors(const float *x, int n, float inverse, bool clamps);
typedef void round_weights(const float *x, int n, float inverse, bool clamps, int8_t *q);

INLINE float search(const float *x, enum weight_format format, const struct scale_level *levels,
                    int n_levels, int8_t *q, find_largest *find, sum_errors *sum,
                    round_weights *round)
{
    int n = format_group(format), best = 0;
    bool clamps = format == FORMAT_Q4;
    float largest = find(x, n);
    if (isinf(127.0f / largest)) {
        memset(q, 0, (size_t)n);
        return 0.0f;
    }
    float smallest = INFINITY;
    for (int i = 0; i < n_levels && n_levels > 1; i++) {
        float error = sum(x, n, levels[i].level / largest, clamps) * levels[i].penalty;
        if (error < smallest) {
            smallest = error;
            best = i;
        }
    }
    round(x, n, levels[best].level / largest, clamps, q);
    return largest / levels[best].level;
}

/* ---- portable ---- */

static float largest_portable(const float *x, int n)
{
    float lanes[4] = {0};
    for (int i = 0; i < n; i++)
        lanes[i % 4] = fabsf(x[i]) > lanes[i % 4] ? fabsf(x[i]) : lanes[i % 4];
    for (int i = 1; i < 4; i++)
        lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
    return lanes[0];
}

INLINE float rounded(float t, bool clamps)
{
    float r = t + ROUNDER - ROUNDER;
    if (clamps) {
        r = r > Q4_LOWEST ? r : Q4_LOWEST;
        r = r < Q4_HIGHEST ? r : Q4_HIGHEST;
    }
    return r;
}

static float sum_portable(const float *x, int n, float inverse, bool clamps)
{
    float lanes[LANES] = {0};
    for (int i = 0; i < n; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            float t = x[i + lane] * inverse;
            float d = t - rounded(t, clamps);
            lanes[lane] += d * d;
        }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++)
            lanes[lane] += lanes[lane + half];
    return lanes[0];
}

static void round_portable(const float *x, int n, float inverse, bool clamps, int8_t *q)
{
    for (int i = 0; i < n; i++)
        q[i] = (int8_t)rounded(x[i] * inverse, clamps);
}

static float search_portable(const float *x, enum weight_format format,
                             const struct scale_level *levels, int n_levels, int8_t *q)
{
    return search(x, format, levels, n_levels, q, largest_portable, sum_portable, round_portable);
}

/* ---- AVX2 ---- */

#define AVX2 __attribute__((target("avx2")))
enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };

AVX2 INLINE float add_lanes(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

AVX2 static float largest_avx2(const float *x, int n)
{
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MAX));
    __m256 v = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8)
        v = _mm256_max_ps(v, _mm256_and_ps(_mm256_loadu_ps(x + i), magnitude));
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

AVX2 INLINE __m256 rounded_avx2(__m256 t, bool clamps)
{
    __m256 r = _mm256_round_ps(t, NEAREST);
    if (!clamps)
        return r;
    return _mm256_min_ps(_mm256_max_ps(r, _mm256_set1_ps(Q4_LOWEST)), _mm256_set1_ps(Q4_HIGHEST));
}

AVX2 INLINE float sum_of_avx2(const float *x, int n, float inverse, bool clamps)
{
    __m256 low = _mm256_setzero_ps(), high = low, scale = _mm256_set1_ps(inverse);
    for (int i = 0; i < n; i += LANES) {
        __m256 t = _mm256_mul_ps(_mm256_loadu_ps(x + i), scale);
        __m256 d = _mm256_sub_ps(t, rounded_avx2(t, clamps));
        low = _mm256_add_ps(low, _mm256_mul_ps(d, d));
        t = _mm256_mul_ps(_mm256_loadu_ps(x + i + 8), scale);
        d = _mm256_sub_ps(t, rounded_avx2(t, clamps));
        high = _mm256_add_ps(high, _mm256_mul_ps(d, d));
    }
    return add_lanes(_mm256_add_ps(low, high));
}

AVX2 static float sum_avx2(const float *x, int n, float inverse, bool clamps)
{
    return clamps ? sum_of_avx2(x, n, inverse, true) : sum_of_avx2(x, n, inverse, false);
}

AVX2 static void round_avx2(const float *x, int n, float inverse, bool clamps, int8_t *q)
{
    __m256 scale = _mm256_set1_ps(inverse);
    for (int i = 0; i < n; i += 8) {
        __m256 r = rounded_avx2(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale), clamps);
        __m256i wide = _mm256_cvtps_epi32(r);
        __m128i half =
            _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        _mm_storel_epi64((__m128i *)(void *)(q + i), _mm_packs_epi16(half, half));
    }
}

AVX2 static float search_avx2(const float *x, enum weight_format format,
                              const struct scale_level *levels, int n_levels, int8_t *q)
{
    return search(x, format, levels, n_levels, q, largest_avx2, sum_avx2, round_avx2);
}

/* ---- AVX-512 ---- */

#define AVX512 __attribute__((target("avx512f")))

AVX512 static float largest_avx512(const float *x, int n)
{
    __m512 v = _mm512_setzero_ps();
    for (int i = 0; i < n; i += LANES)
        v = _mm512_max_ps(v, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
    return _mm512_reduce_max_ps(v);
}

AVX512 INLINE __m512 rounded_avx512(__m512 t, bool clamps)
{
    __m512 r = _mm512_roundscale_ps(t, NEAREST);
    if (!clamps)
        return r;
    return _mm512_min_ps(_mm512_max_ps(r, _mm512_set1_ps(Q4_LOWEST)), _mm512_set1_ps(Q4_HIGHEST));
}

AVX512 INLINE float sum_of_avx512(const float *x, int n, float inverse, bool clamps)
{
    __m512 sum = _mm512_setzero_ps(), scale = _mm512_set1_ps(inverse);
    for (int i = 0; i < n; i += LANES) {
        __m512 t = _mm512_mul_ps(_mm512_loadu_ps(x + i), scale);
        __m512 d = _mm512_sub_ps(t, rounded_avx512(t, clamps));
        sum = _mm512_add_ps(sum, _mm512_mul_ps(d, d));
    }
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(sum), 1));
    __m256 v = _mm256_add_ps(_mm512_castps512_ps256(sum), high);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

AVX512 static float sum_avx512(const float *x, int n, float inverse, bool clamps)
{
    return clamps ? sum_of_avx512(x, n, inverse, true) : sum_of_avx512(x, n, inverse, false);
}

AVX512 static void round_avx512(const float *x, int n, float inverse, bool clamps, int8_t *q)
{
    __m512 scale = _mm512_set1_ps(inverse);
    for (int i = 0; i < n; i += LANES) {
        __m512 r = rounded_avx512(_mm512_mul_ps(_mm512_loadu_ps(x + i), scale), clamps);
        _mm_storeu_si128((__m128i *)(void *)(q + i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(r)));
    }
}

AVX512 static float search_avx512(const float *x, enum weight_format format,
                                  const struct scale_level *levels, int n_levels, int8_t *q)
{
    return search(x, format, levels, n_levels, q, largest_avx512, sum_avx512, round_avx512);
}

void kernels_portable_search(struct kernels *k)
{
    k->quantise_weights = search_portable;
}

void kernels_avx2_search(struct kernels *k)
{
    k->quantise_weights = search_avx2;
}

void kernels_avx512_search(struct kernels *k)
{
    k->quantise_weights = search_avx512;
}
