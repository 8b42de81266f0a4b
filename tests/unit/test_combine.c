/* tests/unit/test_combine.c - the grid of mode fixed: its exponent, its error bound, its limit. */
#include "engine/combine.h"

#include <float.h>
#include <math.h>

#include "model/halves.h"
#include "tests/lib/test.h"

static int exponent_of(float value, int n)
{
    float x[100];
    for (int i = 0; i < n; i++)
        x[i] = i % 2 ? -value : value;
    return combine_exponent(x, n);
}

TEST(exponent_is_2_to_minus_20_of_the_rms)
{
    for (int n = 1; n <= 100; n += 9) {
        CHECK_INT(exponent_of(1.0f, n), -20);
        CHECK_INT(exponent_of(1.999f, n), -20);
        CHECK_INT(exponent_of(2.0f, n), -19);
        CHECK_INT(exponent_of(0.999f, n), -21);
        CHECK_INT(exponent_of(0.5f, n), -21);
        CHECK_INT(exponent_of(0x1.8p-33f, n), -53);
    }
    const float x[] = {3, 4, 0, 0}; /* RMS 2.5 */
    CHECK_INT(combine_exponent(x, 4), -19);
}

TEST(exponent_at_its_ends)
{
    CHECK_INT(exponent_of(0.0f, 7), COMBINE_MIN_EXPONENT);
    CHECK_INT(exponent_of(0x1p-80f, 7), COMBINE_MIN_EXPONENT);
    CHECK_INT(exponent_of(0x1p-79f, 7), COMBINE_MIN_EXPONENT + 1);
    CHECK_INT(exponent_of(FLT_TRUE_MIN, 7), COMBINE_MIN_EXPONENT);
    CHECK_INT(exponent_of(FLT_MAX, 7), COMBINE_MAX_EXPONENT - 1);
    float x[40] = {1, 2, 3};
    x[33] = NAN;
    CHECK_INT(combine_exponent(x, 40), COMBINE_MAX_EXPONENT);
    x[33] = -INFINITY;
    CHECK_INT(combine_exponent(x, 40), COMBINE_MAX_EXPONENT);
    CHECK(combine_exponent_valid(COMBINE_MIN_EXPONENT));
    CHECK(combine_exponent_valid(COMBINE_MAX_EXPONENT));
    CHECK(!combine_exponent_valid(COMBINE_MIN_EXPONENT - 1));
    CHECK(!combine_exponent_valid(COMBINE_MAX_EXPONENT + 1));
}

static const struct kernels *kernels(void)
{
    return kernels_best();
}

TEST(each_expert_adds_at_most_half_a_grid_step_of_error)
{
    enum { HIDDEN = 333, EXPERTS = 8 };
    struct rng r = test_rng();
    for (int log2 = COMBINE_MIN_LOG2; log2 < 100; log2 += 9) {
        float x[HIDDEN], y[EXPERTS][HIDDEN], weights[EXPERTS], folded[HIDDEN] = {0};
        int32_t acc[HIDDEN] = {0};
        for (int i = 0; i < HIDDEN; i++)
            x[i] = (float)ldexp(rng_normal(&r), log2);
        int exponent = combine_exponent(x, HIDDEN);
        for (int e = 0; e < EXPERTS; e++) {
            weights[e] = (float)rng_unit(&r);
            for (int i = 0; i < HIDDEN; i++)
                y[e][i] = (float)ldexp(rng_normal(&r), log2 + 2);
            CHECK_INT(kernels()->fixed_add(y[e], weights[e], exponent, HIDDEN, acc), 0);
        }
        kernels()->fixed_fold(acc, exponent, HIDDEN, folded);
        for (int i = 0; i < HIDDEN; i++) {
            double exact = 0;
            for (int e = 0; e < EXPERTS; e++)
                exact += (double)(weights[e] * y[e][i]);
            /* Half a step each, and the fold's own rounding of an int32 to 24 bits. */
            double bound = ldexp(0.5 * EXPERTS, exponent) + fabs(exact) * 0x1p-24;
            CHECK(fabs((double)folded[i] - exact) <= bound * (1 + 1e-9));
        }
    }
}

TEST(contributions_add_in_any_order)
{
    enum { HIDDEN = 65, EXPERTS = 16 };
    struct rng r = test_rng();
    float y[EXPERTS][HIDDEN];
    int32_t up[HIDDEN] = {0}, down[HIDDEN] = {0}, parts[HIDDEN] = {0}, part[HIDDEN];
    for (int e = 0; e < EXPERTS; e++)
        for (int i = 0; i < HIDDEN; i++)
            y[e][i] = (float)(100 * rng_normal(&r));
    for (int e = 0; e < EXPERTS; e++) {
        CHECK_INT(kernels()->fixed_add(y[e], 0.1f, -20, HIDDEN, up), 0);
        CHECK_INT(kernels()->fixed_add(y[EXPERTS - 1 - e], 0.1f, -20, HIDDEN, down), 0);
        memset(part, 0, sizeof(part));
        CHECK_INT(kernels()->fixed_add(y[e], 0.1f, -20, HIDDEN, part), 0);
        kernels()->add_int32(parts, part, HIDDEN);
    }
    CHECK_BYTES(up, down, sizeof(up));
    CHECK_BYTES(up, parts, sizeof(up));
}

/* What one value becomes on the grid; *over says whether it was refused. */
static int32_t on_grid(float y, float weight, int exponent, int *over)
{
    int32_t first = 0, acc[9] = {0};
    float row[9] = {0};
    row[3] = row[8] = y; /* once in a vector, once in what is left over */
    *over = kernels()->fixed_add(row, weight, exponent, 9, acc);
    first = acc[3];
    CHECK_INT(acc[8], first);
    CHECK(*over == 0 || *over == 2);
    return first;
}

TEST(rounding_is_to_nearest_with_ties_to_even)
{
    int over;
    const float values[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 0.50001f, 7.49f, 0x1.000002p23f};
    const int want[] = {0, 2, 2, 0, -2, 1, 7, 8388609};
    for (int i = 0; i < 8; i++) {
        CHECK_INT(on_grid(values[i], 1.0f, 0, &over), want[i]);
        CHECK_INT(over, 0);
    }
    /* The product is rounded to f32 first: 1 + 2^-23 times 0.5 + 2^-24 is just over 0.5. */
    CHECK_INT(on_grid(0x1.000002p0f, 0x1.000002p-1f, 0, &over), 1);
}

TEST(the_limit_is_2_to_27_on_the_grid_at_every_exponent)
{
    int over;
    for (int exponent = COMBINE_MIN_EXPONENT; exponent <= COMBINE_MAX_EXPONENT; exponent++) {
        float most = ldexpf(0x1.fffffep26f, exponent), limit = ldexpf(1.0f, 27 + exponent);
        if (exponent + 27 <= 127) {
            CHECK_INT(on_grid(most, 1.0f, exponent, &over), 134217720);
            CHECK_INT(over, 0);
            on_grid(limit, 1.0f, exponent, &over);
            CHECK_INT(over, 2);
            on_grid(limit, -1.0f, exponent, &over);
            CHECK_INT(over, 2);
        }
        on_grid(FLT_MAX, 1.0f, exponent, &over);
        CHECK_INT(over, exponent + 27 <= 127 ? 2 : 0);
        CHECK_INT(on_grid(FLT_TRUE_MIN, 1.0f, exponent, &over), 0);
        CHECK_INT(over, 0);
        CHECK_INT(on_grid(ldexpf(3.0f, exponent), 1.0f, exponent, &over), 3);
        on_grid(NAN, 1.0f, exponent, &over);
        CHECK_INT(over, 2);
        on_grid(INFINITY, 1.0f, exponent, &over);
        CHECK_INT(over, 2);
        on_grid(FLT_MAX, 2.0f, exponent, &over); /* the product is infinite */
        CHECK_INT(over, 2);
    }
}

TEST(folding_multiplies_exactly)
{
    for (int exponent = COMBINE_MIN_EXPONENT; exponent <= 90; exponent++) {
        const int32_t acc[] = {1, -3, 0x7fffff80, INT32_MIN, 0, 77, 1 << 20, -1, 5};
        float x[9] = {0};
        kernels()->fixed_fold(acc, exponent, 9, x);
        for (int i = 0; i < 9; i++)
            CHECK(x[i] == (float)ldexp(acc[i], exponent));
    }
}

TEST(mode_node_is_one_chain_in_slot_order)
{
    const float a[] = {1.0f, 0x1p-30f, INFINITY}, b[] = {-1.0f, 1.0f, 1.0f};
    const float *y[] = {a, b};
    const float weights[] = {0.5f, 0.25f};
    uint16_t out[3];
    combine_node(y, weights, 2, 3, out);
    CHECK_INT(out[0], f32_to_bf16(0.25f));
    CHECK_INT(out[1], f32_to_bf16(fmaf(0.25f, 1.0f, 0x1p-31f)));
    CHECK_INT(out[2], f32_to_bf16(INFINITY));
    combine_node(y, weights, 0, 3, out);
    CHECK_INT(out[0], 0);
}
