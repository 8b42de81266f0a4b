/* engine/mathf.c - see mathf.h; exp, sigmoid and silu live in mathf_inline.h. */
#include "engine/mathf.h"

#include "engine/mathf_inline.h"

float math_exp(float x)
{
    return mathf_exp1(x);
}

float math_sigmoid(float x)
{
    return mathf_sigmoid1(x);
}

float math_silu(float x)
{
    return mathf_silu1(x);
}

float math_rsqrt(float x)
{
    return 1.0f / sqrtf(x);
}

/* pi/2 in two doubles.  The fma keeps the whole product (30 bits of quarters times 53), so
 * what is left after the subtraction is right to about 2^-53. */
#define HALF_PI_HIGH 0x1.921fb54442d18p+0
#define HALF_PI_LOW 0x1.1a62633145c07p-54
#define TWO_OVER_PI 0x1.45f306dc9c883p-1
#define SINCOS_LARGEST 0x1p30f

/* Taylor's series on |r| <= pi/4; the first terms left out are below 2^-37. */
static double sine_near_zero(double r)
{
    double s = r * r;
    double p = fma(s, -1.0 / 39916800, 1.0 / 362880);
    p = fma(s, p, -1.0 / 5040);
    p = fma(s, p, 1.0 / 120);
    p = fma(s, p, -1.0 / 6);
    return fma(r * s, p, r);
}

static double cosine_near_zero(double r)
{
    double s = r * r;
    double p = fma(s, 1.0 / 479001600, -1.0 / 3628800);
    p = fma(s, p, 1.0 / 40320);
    p = fma(s, p, -1.0 / 720);
    p = fma(s, p, 1.0 / 24);
    p = fma(s, p, -0.5);
    return fma(s, p, 1.0);
}

void math_sincos(float angle, float *sine, float *cosine)
{
    if (!(fabsf(angle) <= SINCOS_LARGEST)) {
        *sine = *cosine = NAN;
        return;
    }
    double turns = (double)angle * TWO_OVER_PI;
    int64_t quarter = (int64_t)(turns + (turns < 0 ? -0.5 : 0.5));
    double r = fma(-(double)quarter, HALF_PI_HIGH, (double)angle);
    r = fma(-(double)quarter, HALF_PI_LOW, r);
    double s = sine_near_zero(r), c = cosine_near_zero(r);
    switch (quarter & 3) {
    case 0:
        *sine = (float)s, *cosine = (float)c;
        break;
    case 1:
        *sine = (float)c, *cosine = (float)-s;
        break;
    case 2:
        *sine = (float)-s, *cosine = (float)-c;
        break;
    default:
        *sine = (float)-c, *cosine = (float)s;
    }
}

#define LN2 0x1.62e42fefa39efp-1
#define SQRT2 0x1.6a09e667f3bcdp+0
#define DOUBLE_MANTISSA 0xfffffffffffffu
#define DOUBLE_ONE 0x3ff0000000000000u

/* x = 2^n m with m near 1;  ln m = 2 artanh((m - 1) / (m + 1)). */
float math_log(double x)
{
    if (!(x > 0.0))
        return x == 0.0 ? -INFINITY : NAN;
    if (x == (double)INFINITY)
        return INFINITY;
    int n = 0;
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        n = -54;
    }
    uint64_t bits;
    memcpy(&bits, &x, sizeof(bits));
    n += (int)(bits >> 52) - 1023;
    bits = (bits & DOUBLE_MANTISSA) | DOUBLE_ONE;
    double m;
    memcpy(&m, &bits, sizeof(m));
    if (m > SQRT2) {
        m *= 0.5;
        n++;
    }
    double z = (m - 1.0) / (m + 1.0), s = z * z;
    double p = fma(s, 1.0 / 17, 1.0 / 15);
    p = fma(s, p, 1.0 / 13);
    p = fma(s, p, 1.0 / 11);
    p = fma(s, p, 1.0 / 9);
    p = fma(s, p, 1.0 / 7);
    p = fma(s, p, 1.0 / 5);
    p = fma(s, p, 1.0 / 3);
    p = fma(s, p, 1.0);
    return (float)fma((double)n, LN2, 2.0 * z * p);
}

float math_magnitude(const float *x, int n)
{
    enum { LANES = 16 };
    /* As bits, magnitudes compare like integers, NaN above all. */
    int32_t lanes[LANES] = {0}, largest = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            int32_t size = (int32_t)(f32_to_bits(x[i + lane]) & 0x7fffffffu);
            lanes[lane] = size > lanes[lane] ? size : lanes[lane];
        }
    for (int lane = 0; i < n; i++, lane++) {
        int32_t size = (int32_t)(f32_to_bits(x[i]) & 0x7fffffffu);
        lanes[lane] = size > lanes[lane] ? size : lanes[lane];
    }
    for (int lane = 0; lane < LANES; lane++)
        largest = lanes[lane] > largest ? lanes[lane] : largest;
    return f32_from_bits((uint32_t)largest);
}
