/* engine/mathf.h - the elementary functions on the token's path, with one definition.
 *
 * libm differs between hosts and versions, so these are our own polynomials: the same bits
 * everywhere, scalar and in every vector twin.  Built with -ffp-contract=off; every fused
 * operation is written out as fmaf().  Error bounds are held by tests/kernel/test_mathf.c. */
#pragma once

/* e^x; relative error at most 2 ulp; 0 below -104, +inf above 88.73; NaN stays NaN. */
float math_exp(float x);
/* 1 / (1 + e^-x). */
float math_sigmoid(float x);
/* x * sigmoid(x). */
float math_silu(float x);
/* 1 / sqrt(x) as two correctly rounded operations: 1.0f / sqrtf(x). */
float math_rsqrt(float x);
/* sin and cos of an f32 angle, right to 2^-22 absolute up to |angle| = 2^24: rotary
 * angles reach a million, so the range reduction is done in double. */
void math_sincos(float angle, float *sine, float *cosine);
/* Natural logarithm for x > 0, in double inside; for log-probabilities. */
float math_log(double x);
/* The largest magnitude of x [n], 0 of none; a NaN if there is one. */
float math_magnitude(const float *x, int n);
