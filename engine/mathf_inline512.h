/* engine/mathf_inline512.h - mathf_inline.h's functions for sixteen floats; the same sequence
 * of operations as there, line by line.  Shows only in files that are compiled for AVX-512. */
#pragma once

#include "engine/mathf_inline.h"

#ifdef __AVX512F__
#include <immintrin.h>

static inline __m512 mathf_exp16(__m512 x)
{
    const __m512 rounder = _mm512_set1_ps(MATHF_ROUNDER), one = _mm512_set1_ps(1.0f);
    __m512 c = _mm512_max_ps(_mm512_set1_ps(MATHF_EXP_LOWEST), x);
    c = _mm512_min_ps(_mm512_set1_ps(MATHF_EXP_HIGHEST), c);
    __m512 t = _mm512_fmadd_ps(c, _mm512_set1_ps(MATHF_LOG2_E), rounder);
    __m512i n = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(rounder));
    __m512 nf = _mm512_sub_ps(t, rounder);
    __m512 r = _mm512_fmadd_ps(nf, _mm512_set1_ps(-MATHF_LN2_HIGH), c);
    r = _mm512_fmadd_ps(nf, _mm512_set1_ps(-MATHF_LN2_LOW), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(MATHF_EXP_C6), r, _mm512_set1_ps(MATHF_EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(MATHF_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(MATHF_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(MATHF_EXP_C2));
    p = _mm512_fmadd_ps(p, r, one);
    p = _mm512_fmadd_ps(p, r, one);
    const __m512i bias = _mm512_set1_epi32(127);
    __m512i half = _mm512_srai_epi32(n, 1);
    __m512i a = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
    __m512i b = _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(n, half), bias), 23);
    __m512 y = _mm512_mul_ps(_mm512_mul_ps(p, _mm512_castsi512_ps(a)), _mm512_castsi512_ps(b));
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

static inline __m512 mathf_sigmoid16(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, mathf_exp16(_mm512_xor_ps(x, sign))));
}

static inline __m512 mathf_silu16(__m512 x)
{
    return _mm512_mul_ps(x, mathf_sigmoid16(x));
}
#endif
