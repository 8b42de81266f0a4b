/* tools/bench_probe_avx512.c - see bench_probe.h: AVX-512 with VNNI. */
#include <immintrin.h>

#include "tools/bench_probe.h"

enum { VECTOR_BYTES = 64, STEPS = 64 };

/* One operand of every step comes from the L1 cache, as a kernel's panel does. */
static _Alignas(64) const float weights_f32[STEPS][32] = {{0.5f, 0.25f}, {0.125f}};
static _Alignas(64) const int8_t weights_int8[STEPS][256] = {{1, 2, 3}, {4, -5, 6}};

/* 4 rows x 2 panels: 8 sums. */
static double f32_avx512(long rounds, uint32_t *sink)
{
    volatile float start = 0.5f;
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
    __m512 x0 = _mm512_set1_ps(start), x1 = x0, x2 = x0, x3 = x0;
    for (long round = 0; round < rounds; round++)
        for (int k = 0; k < STEPS; k++) {
            __m512 w0 = _mm512_load_ps(weights_f32[k]), w1 = _mm512_load_ps(weights_f32[k] + 16);
            __asm__ volatile("" : "+v"(x0), "+v"(x1), "+v"(x2), "+v"(x3));
            s0 = _mm512_fmadd_ps(w0, x0, s0);
            s1 = _mm512_fmadd_ps(w1, x0, s1);
            s2 = _mm512_fmadd_ps(w0, x1, s2);
            s3 = _mm512_fmadd_ps(w1, x1, s3);
            s4 = _mm512_fmadd_ps(w0, x2, s4);
            s5 = _mm512_fmadd_ps(w1, x2, s5);
            s6 = _mm512_fmadd_ps(w0, x3, s6);
            s7 = _mm512_fmadd_ps(w1, x3, s7);
        }
    __m512 all = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)),
                               _mm512_add_ps(_mm512_add_ps(s4, s5), _mm512_add_ps(s6, s7)));
    *sink += _mm512_reduce_add_ps(all) > 1;
    return 2.0 * 8 * 16 * STEPS * (double)rounds;
}

/* Four rows by one panel. */
struct sums {
    __m512i a, b, c, d;
};

static inline void multiply(struct sums *s, __m512i panel, const __m512i x[4])
{
    s->a = _mm512_dpbusd_epi32(s->a, panel, x[0]);
    s->b = _mm512_dpbusd_epi32(s->b, panel, x[1]);
    s->c = _mm512_dpbusd_epi32(s->c, panel, x[2]);
    s->d = _mm512_dpbusd_epi32(s->d, panel, x[3]);
}

static inline __m512i total(const struct sums *s)
{
    return _mm512_add_epi32(_mm512_add_epi32(s->a, s->b), _mm512_add_epi32(s->c, s->d));
}

/* 4 rows x 4 panels: 16 sums, which must stay in registers (no loops over them). */
static double int8_avx512(long rounds, uint32_t *sink)
{
    volatile int start = 0x01020304;
    const __m512i zero = _mm512_setzero_si512();
    struct sums s0 = {zero, zero, zero, zero}, s1 = s0, s2 = s0, s3 = s0;
    __m512i x0 = _mm512_set1_epi32(start), x1 = x0, x2 = x0, x3 = x0;
    for (long round = 0; round < rounds; round++)
        for (int k = 0; k < STEPS; k++) {
            const int8_t *w = weights_int8[k];
            __asm__ volatile("" : "+v"(x0), "+v"(x1), "+v"(x2), "+v"(x3));
            const __m512i x[4] = {x0, x1, x2, x3};
            multiply(&s0, _mm512_load_si512(w), x);
            multiply(&s1, _mm512_load_si512(w + VECTOR_BYTES), x);
            multiply(&s2, _mm512_load_si512(w + 2 * VECTOR_BYTES), x);
            multiply(&s3, _mm512_load_si512(w + 3 * VECTOR_BYTES), x);
        }
    __m512i all = _mm512_add_epi32(_mm512_add_epi32(total(&s0), total(&s1)),
                                   _mm512_add_epi32(total(&s2), total(&s3)));
    *sink += (uint32_t)_mm512_reduce_add_epi32(all);
    return 2.0 * 16 * VECTOR_BYTES * STEPS * (double)rounds;
}

const struct bench_level bench_level_avx512 = {.name = "avx512",
                                               .f32 = f32_avx512,
                                               .f32_name = "vfmadd zmm",
                                               .q8 = int8_avx512,
                                               .q8_name = "vpdpbusd",
                                               .q4 = int8_avx512,
                                               .q4_name = "vpdpbusd"};
