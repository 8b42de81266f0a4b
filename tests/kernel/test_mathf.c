/* tests/kernel/test_mathf.c - error bounds of the elementary functions, against libm in
 * double (whose own error does not matter at f32's precision). */
#include "engine/mathf.h"

#include <math.h>

#include "model/halves.h"
#include "tests/lib/test.h"

/* |got - want| in units of the f32 spacing at `want`. */
static double ulps(float got, double want)
{
    int exponent;
    frexp(want, &exponent);
    double spacing = ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
    return fabs((double)got - want) / spacing;
}

/* Walks over every float of both signs in steps of `step` bit patterns. */
static double worst_ulps(float (*f)(float), double (*reference)(double), float low, float high)
{
    const uint32_t step = test_is_slow_build() ? 40009 : 1009;
    double worst = 0;
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += step) {
        float x = f32_from_bits((uint32_t)bits);
        if (!(x >= low && x <= high))
            continue;
        double e = ulps(f(x), reference((double)x));
        if (e > worst)
            worst = e;
    }
    return worst;
}

TEST(exp_is_within_two_ulps_wherever_it_is_finite)
{
    double worst = worst_ulps(math_exp, exp, -110.0f, 88.72283f);
    test_note("exp: %.3f ulp", worst);
    CHECK(worst <= 2.0);
}

TEST(exp_at_its_ends)
{
    CHECK(math_exp(0.0f) == 1.0f);
    CHECK(math_exp(-0.0f) == 1.0f);
    CHECK(math_exp(-104.0f) == 0.0f);
    CHECK(math_exp(-INFINITY) == 0.0f && !signbit(math_exp(-INFINITY)));
    CHECK(math_exp(-103.5f) > 0.0f);
    CHECK(isfinite(math_exp(88.72283f)));
    CHECK(isinf(math_exp(88.73f)));
    CHECK(isinf(math_exp(INFINITY)));
    CHECK(isnan(math_exp(NAN)) && isnan(math_exp(-NAN)));
}

static double sigmoid_reference(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

static double silu_reference(double x)
{
    return x / (1.0 + exp(-x));
}

TEST(sigmoid_and_silu_stay_near_the_truth)
{
    /* exp's 2 ulp, and half a unit each for the sum, the quotient and the product. */
    double sigmoid = worst_ulps(math_sigmoid, sigmoid_reference, -87.0f, INFINITY);
    double silu = worst_ulps(math_silu, silu_reference, -87.0f, 1e30f);
    test_note("sigmoid: %.3f ulp, silu: %.3f ulp", sigmoid, silu);
    CHECK(sigmoid <= 3.0);
    CHECK(silu <= 3.5);
    /* Below, where e^-x overflows, both are 0 and the truth is under 1e-36. */
    CHECK(math_sigmoid(-89.0f) == 0.0f);
    CHECK(math_silu(-89.0f) == 0.0f);
    CHECK(math_sigmoid(0.0f) == 0.5f);
    CHECK(isnan(math_sigmoid(NAN)) && isnan(math_silu(NAN)));
}

TEST(rsqrt_is_two_rounded_operations)
{
    CHECK(math_rsqrt(4.0f) == 0.5f);
    CHECK(math_rsqrt(2.0f) == 1.0f / sqrtf(2.0f));
}

TEST(sincos_holds_over_every_angle_of_a_million_positions)
{
    struct rng r = test_rng();
    double worst = 0;
    for (int i = 0; i < 300000; i++) {
        float angle = (float)ldexp(2 * rng_unit(&r) - 1, (int)rng_below(&r, 45) - 20);
        float s, c;
        math_sincos(angle, &s, &c);
        worst = fmax(worst, fabs((double)s - sin((double)angle)));
        worst = fmax(worst, fabs((double)c - cos((double)angle)));
    }
    test_note("sincos: 2^%.2f", log2(worst));
    CHECK(worst <= 0x1p-22);
}

/* The check values of the model's specification: position times an f32 frequency. */
TEST(sincos_gives_the_check_values_of_the_rotary_table)
{
    float s, c;
    math_sincos(4096.0f * f32_from_bits(0x3f1e165d), &s, &c);
    CHECK_NEAR(c, -0.9148666, 1e-7);
    CHECK_NEAR(s, -0.4037563, 1e-7);
    math_sincos(1048575.0f * f32_from_bits(0x34ade091), &s, &c);
    CHECK_NEAR(c, 0.9428868, 1e-7);
    CHECK_NEAR(s, 0.3331134, 1e-7);
}

TEST(sincos_at_zero_and_outside)
{
    float s, c;
    math_sincos(0.0f, &s, &c);
    CHECK(s == 0.0f && c == 1.0f);
    math_sincos(INFINITY, &s, &c);
    CHECK(isnan(s) && isnan(c));
    math_sincos(NAN, &s, &c);
    CHECK(isnan(s) && isnan(c));
}

TEST(log_is_rounded_once)
{
    struct rng r = test_rng();
    double worst = 0;
    for (int i = 0; i < 300000; i++) {
        double x = ldexp(0.5 + rng_unit(&r), (int)rng_below(&r, 2000) - 1000);
        worst = fmax(worst, ulps(math_log(x), log(x)));
    }
    for (int i = -2000; i <= 2000; i++) { /* around 1, where the result is small */
        double x = 1.0 + i * 1e-6;
        if (i != 0)
            worst = fmax(worst, ulps(math_log(x), log(x)));
    }
    test_note("log: %.4f ulp", worst);
    CHECK(worst <= 0.501); /* half for the rounding to f32, the rest is the double's own */
    CHECK(math_log(1.0) == 0.0f);
    CHECK(isinf(math_log(0.0)) && math_log(0.0) < 0);
    CHECK(isnan(math_log(-1.0)) && isnan(math_log((double)NAN)));
    CHECK(isinf(math_log((double)INFINITY)));
    CHECK_NEAR(math_log(0x1p-1074), -744.4400719, 1e-4);
}
