/* tests/kernel/test_mx.c - MXFP8 held as bf16 (exactly) and as fp8 (exactly but for what is tiny
 * beside the rest of its block), at half the memory. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "engine/matrix.h"
#include "model/fp8.h"
#include "model/mx.h"
#include "tests/lib/test.h"

enum { ROWS = 160, COLS = 288, GROUPS = COLS / MX_BLOCK };

struct sample {
    uint8_t bytes[ROWS][COLS], scales[ROWS][GROUPS];
    float values[ROWS][COLS];
};

/* As the OCP's form makes it: a group's scale is the power of two of its largest element. */
static void quantise_group(struct sample *s, int row, int group, const float *x)
{
    float largest = 0;
    int exponent;
    for (int i = 0; i < MX_BLOCK; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    (void)frexpf(largest, &exponent);
    s->scales[row][group] = (uint8_t)(exponent - 1 - 8 + MX_SCALE_BIAS);
    float scale = mx_scale_decode(s->scales[row][group]);
    for (int i = 0; i < MX_BLOCK; i++) {
        uint8_t byte = fp8_encode(x[i] / scale);
        s->bytes[row][group * MX_BLOCK + i] = byte;
        s->values[row][group * MX_BLOCK + i] = fp8_decode(byte) * scale;
    }
}

/* Bell-shaped weights; `spread`: rows of a block differ by as many powers of two. */
static void make_sample(struct sample *s, int spread)
{
    struct rng r = test_rng();
    for (int row = 0; row < ROWS; row++)
        for (int g = 0; g < GROUPS; g++) {
            float x[MX_BLOCK];
            for (int i = 0; i < MX_BLOCK; i++)
                x[i] = ldexpf((float)rng_normal(&r), row % (spread + 1) - 6);
            quantise_group(s, row, g, x);
        }
}

static void pack(struct matrix *m, struct sample *s, enum weight_format format)
{
    struct compute c = {.kernels = kernels_named("portable")};
    struct err e = {0};
    struct linear_view v = {
        .label = "w",
        .rows = ROWS,
        .cols = COLS,
        .block_rows = 1,
        .block_cols = MX_BLOCK,
        .weight = {.dtype = DTYPE_F8_E4M3,
                   .n_dims = 2,
                   .dims = {ROWS, COLS},
                   .data = s->bytes,
                   .size_bytes = sizeof s->bytes},
        .scale = {.dtype = DTYPE_F8_E8M0,
                  .n_dims = 2,
                  .dims = {ROWS, GROUPS},
                  .data = s->scales,
                  .size_bytes = sizeof s->scales},
    };
    if (matrix_pack(m, &v, format, NULL, &c, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

/* Share of the weights that are other than stored, and their error beside all, squared. */
static void compare(struct sample *s, enum weight_format format, double *changed, double *error)
{
    struct matrix m;
    float row[COLS];
    double errors = 0, squares = 0;
    int64_t n = 0;
    pack(&m, s, format);
    for (int r = 0; r < ROWS; r++) {
        matrix_row(&m, r, row);
        for (int c = 0; c < COLS; c++) {
            double difference = (double)row[c] - s->values[r][c];
            n += difference != 0;
            errors += difference * difference;
            squares += (double)s->values[r][c] * s->values[r][c];
        }
    }
    matrix_fini(&m);
    *changed = (double)n / (ROWS * COLS);
    *error = sqrt(errors / squares);
}

TEST(mxfp8_is_exact_in_bf16_and_nearly_in_fp8)
{
    static struct sample s;
    for (int spread = 0; spread <= 4; spread += 2) {
        double changed[3], error[3];
        make_sample(&s, spread);
        compare(&s, FORMAT_BF16, &changed[0], &error[0]);
        compare(&s, FORMAT_FP8, &changed[1], &error[1]);
        compare(&s, FORMAT_Q8, &changed[2], &error[2]);
        test_say("rows within 2^%d: relative error bf16 %.2e, fp8 %.2e (%.2f %% of the weights), "
                 "q8 %.2e",
                 spread, error[0], error[1], 100 * changed[1], error[2]);
        CHECK(changed[0] == 0);
        CHECK(error[1] < 2e-3 && error[1] < error[2]);
        CHECK(changed[1] < 0.2);
    }
}

/* The bound of fp8.h, weight by weight. */
TEST(mxfp8_in_fp8_rounds_only_what_is_tiny_in_its_block)
{
    static struct sample s;
    struct matrix m;
    float row[COLS];
    make_sample(&s, 4);
    pack(&m, &s, FORMAT_FP8);
    int per_row = (COLS + SCALE_BLOCK - 1) / SCALE_BLOCK;
    for (int r = 0; r < ROWS; r++) {
        matrix_row(&m, r, row);
        for (int c = 0; c < COLS; c++) {
            float scale = m.scales[r / SCALE_BLOCK * per_row + c / SCALE_BLOCK];
            int exponent;
            CHECK(frexpf(scale, &exponent) == 0.5f);
            if (fabsf(s.values[r][c]) >= 0x1p-6f * scale)
                CHECK(row[c] == s.values[r][c]);
            else
                CHECK(fabsf(row[c] - s.values[r][c]) <= 0x1p-10f * scale);
        }
    }
    matrix_fini(&m);
}
