/* engine/mathf_inline.h - math_exp() and its relatives, written twice: for one float and
 * for eight.  The two must stay the same sequence of operations, line by line.
 *
 * Private to engine/mathf.c and to kernels_*.c; the vector half shows only in files that
 * are compiled with AVX2 and FMA.  A NaN comes back as it went in. */
#pragma once

#include <math.h>
#include <stdint.h>

#include "model/halves.h"

/* e^x = 2^n e^r, |r| <= ln(2)/2.  ln(2) is cut so that n * MATHF_LN2_HIGH is exact.
 * 1 + r + r^2 (C2 + C3 r + .. + C6 r^4): minimax for the relative error, 2^-28 before
 * rounding (Remez, 6 points). */
#define MATHF_EXP_LOWEST -104.0f /* e^-104 < 2^-150: rounds to 0 */
#define MATHF_EXP_HIGHEST 89.0f  /* e^89 > FLT_MAX */
#define MATHF_LOG2_E 0x1.715476p+0f
#define MATHF_LN2_HIGH 0x1.62e4p-1f
#define MATHF_LN2_LOW 0x1.7f7d1cp-20f
#define MATHF_ROUNDER 0x1.8p+23f /* adding it rounds to an integer, which is then in the low bits */
#define MATHF_EXP_C2 0x1.fffffcp-2f
#define MATHF_EXP_C3 0x1.55549p-3f
#define MATHF_EXP_C4 0x1.5558f4p-5f
#define MATHF_EXP_C5 0x1.123a6cp-7f
#define MATHF_EXP_C6 0x1.6a2352p-10f

/* 2^n is multiplied in two steps, because it may be outside the range where the result
 * is not (n = 128, or a denormal result, which is then rounded once). */
static inline float mathf_exp1(float x)
{
    float c = MATHF_EXP_LOWEST > x ? MATHF_EXP_LOWEST : x;
    c = MATHF_EXP_HIGHEST < c ? MATHF_EXP_HIGHEST : c;
    float t = fmaf(c, MATHF_LOG2_E, MATHF_ROUNDER);
    int32_t n = (int32_t)(f32_to_bits(t) - f32_to_bits(MATHF_ROUNDER));
    float nf = t - MATHF_ROUNDER;
    float r = fmaf(nf, -MATHF_LN2_HIGH, c);
    r = fmaf(nf, -MATHF_LN2_LOW, r);
    float p = fmaf(MATHF_EXP_C6, r, MATHF_EXP_C5);
    p = fmaf(p, r, MATHF_EXP_C4);
    p = fmaf(p, r, MATHF_EXP_C3);
    p = fmaf(p, r, MATHF_EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    int32_t half = n >> 1;
    float a = f32_from_bits((uint32_t)(half + 127) << 23);
    float b = f32_from_bits((uint32_t)(n - half + 127) << 23);
    float y = p * a * b;
    return x != x ? x : y;
}

static inline float mathf_sigmoid1(float x)
{
    return 1.0f / (1.0f + mathf_exp1(-x));
}

static inline float mathf_silu1(float x)
{
    return x * mathf_sigmoid1(x);
}

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

static inline __m256 mathf_exp8(__m256 x)
{
    const __m256 rounder = _mm256_set1_ps(MATHF_ROUNDER), one = _mm256_set1_ps(1.0f);
    __m256 c = _mm256_max_ps(_mm256_set1_ps(MATHF_EXP_LOWEST), x);
    c = _mm256_min_ps(_mm256_set1_ps(MATHF_EXP_HIGHEST), c);
    __m256 t = _mm256_fmadd_ps(c, _mm256_set1_ps(MATHF_LOG2_E), rounder);
    __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(rounder));
    __m256 nf = _mm256_sub_ps(t, rounder);
    __m256 r = _mm256_fmadd_ps(nf, _mm256_set1_ps(-MATHF_LN2_HIGH), c);
    r = _mm256_fmadd_ps(nf, _mm256_set1_ps(-MATHF_LN2_LOW), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(MATHF_EXP_C6), r, _mm256_set1_ps(MATHF_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(MATHF_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(MATHF_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(MATHF_EXP_C2));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i half = _mm256_srai_epi32(n, 1);
    __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
    __m256 y = _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

static inline __m256 mathf_sigmoid8(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    return _mm256_div_ps(one, _mm256_add_ps(one, mathf_exp8(_mm256_xor_ps(x, sign))));
}

static inline __m256 mathf_silu8(__m256 x)
{
    return _mm256_mul_ps(x, mathf_sigmoid8(x));
}
#endif
