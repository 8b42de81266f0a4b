/* tests/kernel/test_kernels.c - every column of the table gives the bits of portable C, and
 * portable C gives the bits of the formulas in kernels.h: float formats and what goes element
 * by element (integer formats: test_quant.c). */
#include "engine/kernels.h"

#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "engine/combine.h"
#include "engine/mathf.h"
#include "engine/matrix.h"
#include "model/fp8.h"
#include "model/halves.h"
#include "tests/lib/test.h"

enum { MAX_ROWS = 70, CANARIES = 24, N_FLOAT_FORMATS = FORMAT_FP8 + 1 };
#define CANARY 0x7ac0ffeeu /* a finite float that no kernel computes */

/* Equal bits; of a NaN only that it is one. */
static bool is_same(float a, float b)
{
    return (isnan(a) && isnan(b)) || f32_to_bits(a) == f32_to_bits(b);
}

static void check_same(const char *what, const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!is_same(got[i], want[i]))
            test_fail(__FILE__, __LINE__, "%s: [%zu] is %a, expected %a", what, i, (double)got[i],
                      (double)want[i]);
}

static float *canaries(size_t n)
{
    float *p = mem_alloc(n * sizeof(*p));
    for (size_t i = 0; i < n; i++)
        p[i] = f32_from_bits(CANARY);
    return p;
}

/* Calls `check` for every level that runs here; says which do not. */
static void each_level(void (*check)(const struct kernels *k))
{
    for (const char *const *name = kernels_names(); *name; name++) {
        const struct kernels *k = kernels_named(*name);
        if (k)
            check(k);
        else
            test_say("%s does not run on this machine", *name);
    }
}

static const struct kernels *portable(void)
{
    return kernels_named("portable");
}

/* ---- matrices ---- */

static struct matrix random_matrix(enum weight_format f, int rows, int cols, struct rng *r)
{
    size_t n = (size_t)rows * (size_t)cols;
    float *w = mem_array(n, sizeof(*w));
    for (size_t i = 0; i < n; i++)
        w[i] = rng_below(r, 16) == 0 ? 0.0f : (float)(0.05 * rng_normal(r));
    struct linear_view view = {.label = "w", .rows = rows, .cols = cols};
    view.weight = (struct tensor){.dtype = DTYPE_F32,
                                  .n_dims = 2,
                                  .dims = {rows, cols},
                                  .data = w,
                                  .size_bytes = n * sizeof(*w)};
    struct matrix m;
    struct err e = {0};
    struct compute c = {.kernels = portable()};
    if (matrix_pack(&m, &view, f, NULL, &c, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    mem_free(w);
    return m;
}

/* Inputs that vectors get wrong first: signed zeros, denormals, and now and then a value
 * so large that it may not be multiplied by anything, an infinity or a NaN. */
static float odd_float(struct rng *r)
{
    switch (rng_below(r, 40)) {
    case 0:
        return -0.0f;
    case 1:
        return (float)ldexp(rng_normal(r), -140);
    case 2:
        return (float)ldexp(rng_normal(r), -60);
    default:
        return (float)rng_normal(r);
    }
}

static const float extremes[] = {255.99998f,      -256.0f,  0x1p120f,  -0x1.8p121f, 0x1p-149f,
                                 0x1.fffffep127f, INFINITY, -INFINITY, NAN};

static struct rows random_rows(int n_rows, int cols, struct rng *r)
{
    struct rows x = {.n_rows = n_rows, .cols = cols};
    x.f32_stride = mem_round_up((size_t)cols, 16) + rng_below(r, 9);
    float *f32 = mem_array((size_t)n_rows * x.f32_stride, sizeof(float));
    for (int m = 0; m < n_rows; m++)
        for (int k = 0; k < cols; k++)
            f32[(size_t)m * x.f32_stride + (size_t)k] = odd_float(r);
    x.f32 = f32;
    return x;
}

static float *row_of(const struct rows *x, int m)
{
    return (float *)(uintptr_t)x->f32 + (size_t)m * x->f32_stride;
}

static void rows_free(struct rows *x)
{
    mem_free(row_of(x, 0));
}

/* The contract's formula, straight from the packed weights' values. */
static float chain_by_definition(const struct matrix *m, const float *weights, float scale_of_block,
                                 const float *x)
{
    float acc = 0.0f;
    if (m->format != FORMAT_FP8) {
        for (int k = 0; k < m->cols; k++)
            acc = fmaf(weights[k], x[k], acc);
        return acc;
    }
    float block = 0.0f;
    for (int k = 0; k < m->cols; k++)
        block = fmaf(weights[k], x[k], block);
    return fmaf(scale_of_block, block, acc);
}

TEST(portable_matmul_is_the_written_chain)
{
    struct rng r = test_rng();
    for (int f = FORMAT_F32; f < N_FLOAT_FORMATS; f++) {
        struct matrix m = random_matrix(f, 37, 101, &r);
        struct rows x = random_rows(9, m.cols, &r);
        float y[9 * 37], weights[101];
        portable()->matmul[f](&m, 0, m.n_panels, &x, y, 37);
        for (int row = 0; row < m.rows; row++) {
            matrix_row(&m, row, weights);
            float scale = 1.0f;
            if (f == FORMAT_FP8) { /* one block: take the scale out again, exactly */
                scale = m.scales[0];
                const uint8_t *panel = (const uint8_t *)m.panels + row / 16 * m.panel_bytes;
                for (int k = 0; k < m.cols; k++)
                    weights[k] = fp8_decode(panel[k / 2 * 32 + row % 16 * 2 + k % 2]);
            }
            for (int i = 0; i < 9; i++)
                CHECK(is_same(y[i * 37 + row],
                              chain_by_definition(&m, weights, scale, row_of(&x, i))));
        }
        rows_free(&x);
        matrix_fini(&m);
    }
}

TEST(portable_fp8_folds_its_blocks_in_ascending_order)
{
    struct rng r = test_rng();
    struct matrix m = random_matrix(FORMAT_FP8, 130, 300, &r);
    struct rows x = random_rows(1, m.cols, &r);
    float y[130], want[130];
    portable()->matmul[FORMAT_FP8](&m, 0, m.n_panels, &x, y, 130);
    for (int row = 0; row < 130; row++) {
        const uint8_t *panel = (const uint8_t *)m.panels + row / 16 * m.panel_bytes;
        want[row] = 0.0f;
        for (int b = 0; b < 3; b++) {
            float block = 0.0f;
            for (int k = 128 * b; k < 300 && k < 128 * (b + 1); k++)
                block = fmaf(fp8_decode(panel[k / 2 * 32 + row % 16 * 2 + k % 2]), x.f32[k], block);
            want[row] = fmaf(m.scales[row / 128 * 3 + b], block, want[row]);
        }
    }
    check_same("fp8", y, want, 130);
    rows_free(&x);
    matrix_fini(&m);
}

/* A range of panels: equal to portable C, and nothing else is touched. */
static void compare_matmul(const struct kernels *k, const struct matrix *m, const struct rows *x,
                           int first_panel, int n_panels)
{
    size_t stride = (size_t)m->rows + 5, n = (size_t)x->n_rows * stride + CANARIES;
    float *got = canaries(n), *want = canaries(n);
    portable()->matmul[m->format](m, first_panel, n_panels, x, want, stride);
    k->matmul[m->format](m, first_panel, n_panels, x, got, stride);
    char what[96];
    snprintf(what, sizeof(what), "%s %s [%d, %d] x %d, panels %d+%d", k->name,
             format_name(m->format), m->rows, m->cols, x->n_rows, first_panel, n_panels);
    check_same(what, got, want, n);
    for (size_t i = 0; i < n; i++) {
        size_t row = i % stride, end = (size_t)(first_panel + n_panels) * PANEL_ROWS;
        if (i >= (size_t)x->n_rows * stride || row < (size_t)first_panel * PANEL_ROWS ||
            row >= end || row >= (size_t)m->rows)
            CHECK_INT(f32_to_bits(got[i]), CANARY);
    }
    mem_free(got);
    mem_free(want);
}

static const int some_rows[] = {1, 15, 16, 17, 33, 64, 70, 130, 161};
static const int some_cols[] = {1, 2, 3, 5, 63, 127, 128, 129, 256, 263, 391};
#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

static void compare_shapes(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = FORMAT_F32; f < N_FLOAT_FORMATS; f++)
        for (int i = 0; i < COUNT(some_rows); i++)
            for (int j = 0; j < COUNT(some_cols); j++) {
                struct matrix m = random_matrix(f, some_rows[i], some_cols[j], &r);
                struct rows x = random_rows(1 + (int)rng_below(&r, MAX_ROWS), m.cols, &r);
                struct rows one = rows_part(&x, 0, 1);
                int first = (int)rng_below(&r, (uint64_t)m.n_panels);
                compare_matmul(k, &m, &x, 0, m.n_panels);
                compare_matmul(k, &m, &one, first, m.n_panels - first);
                rows_free(&x);
                matrix_fini(&m);
            }
}

TEST(matmul_has_the_same_bits_at_every_level_for_any_shape)
{
    each_level(compare_shapes);
}

static void compare_row_counts(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = FORMAT_F32; f < N_FLOAT_FORMATS; f++) {
        struct matrix m = random_matrix(f, 43, 201, &r);
        struct rows x = random_rows(MAX_ROWS, m.cols, &r);
        for (int n_rows = 1; n_rows <= MAX_ROWS; n_rows++) {
            struct rows some = rows_part(&x, 0, n_rows);
            compare_matmul(k, &m, &some, 0, m.n_panels);
        }
        rows_free(&x);
        matrix_fini(&m);
    }
}

TEST(matmul_has_the_same_bits_for_1_to_70_rows)
{
    each_level(compare_row_counts);
}

/* Ranges of every length: four panels go together, one from each quarter. */
static void compare_ranges(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = FORMAT_F32; f < N_FLOAT_FORMATS; f++) {
        struct matrix m = random_matrix(f, 267, 131, &r);
        struct rows x = random_rows(4, m.cols, &r);
        for (int n_panels = 1; n_panels <= m.n_panels; n_panels++) {
            int first = (int)rng_below(&r, (uint64_t)(m.n_panels - n_panels + 1));
            struct rows some = rows_part(&x, 0, 1 + n_panels % 4), one = rows_part(&x, 1, 1);
            compare_matmul(k, &m, &some, first, n_panels);
            compare_matmul(k, &m, &one, m.n_panels - n_panels, n_panels);
        }
        rows_free(&x);
        matrix_fini(&m);
    }
}

TEST(matmul_has_the_same_bits_for_any_range_of_panels)
{
    each_level(compare_ranges);
}

static void compare_extremes(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = FORMAT_F32; f < N_FLOAT_FORMATS; f++) {
        struct matrix m = random_matrix(f, 99, 389, &r);
        for (int round = 0; round < 4 * COUNT(extremes); round++) {
            struct rows x = random_rows(round % 3 == 0 ? 7 : round % 3, m.cols, &r);
            for (int i = 0; i < x.n_rows; i++)
                row_of(&x, i)[rng_below(&r, (uint64_t)m.cols)] = extremes[round % COUNT(extremes)];
            compare_matmul(k, &m, &x, 0, m.n_panels);
            rows_free(&x);
        }
        matrix_fini(&m);
    }
}

TEST(matmul_has_the_same_bits_where_inputs_nearly_overflow_or_do)
{
    each_level(compare_extremes);
}

static void compare_neighbours(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = FORMAT_F32; f < N_FLOAT_FORMATS; f++) {
        struct matrix m = random_matrix(f, 80, 260, &r);
        struct rows x = random_rows(MAX_ROWS, m.cols, &r);
        float together[MAX_ROWS * 80], alone[80];
        k->matmul[f](&m, 0, m.n_panels, &x, together, 80);
        for (int i = 0; i < MAX_ROWS; i++) {
            struct rows one = rows_part(&x, i, 1);
            k->matmul[f](&m, 0, m.n_panels, &one, alone, 80);
            CHECK_BYTES(alone, together + i * 80, sizeof(alone));
        }
        rows_free(&x);
        matrix_fini(&m);
    }
}

TEST(a_row_of_a_product_does_not_depend_on_its_neighbours)
{
    each_level(compare_neighbours);
}

/* ---- element by element ---- */

enum { LARGEST = 201 };

static void random_floats(struct rng *r, float *out, int n, double size)
{
    for (int i = 0; i < n; i++)
        out[i] = rng_below(r, 30) == 0 ? odd_float(r) : (float)(size * rng_normal(r));
}

static void compare_rms_norm(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int n = 1; n <= LARGEST; n++) {
        float x[LARGEST], w[LARGEST], *got = canaries(LARGEST + 9), *want = canaries(LARGEST + 9);
        random_floats(&r, x, n, 3.0);
        random_floats(&r, w, n, 1.0);
        portable()->rms_norm(x, w, n, 1e-6f, want);
        k->rms_norm(x, w, n, 1e-6f, got);
        check_same(k->name, got, want, LARGEST + 9);
        mem_free(got);
        mem_free(want);
    }
}

TEST(rms_norm_has_the_same_bits_at_every_level)
{
    each_level(compare_rms_norm);
}

/* The check value of the model's specification. */
TEST(rms_norm_gives_the_check_value)
{
    const float x[] = {1, -2, 3, 0.5f}, w[] = {0.5f, 1, -0.25f, 2};
    const double want[] = {0.2649064, -1.0596257, -0.3973597, 0.5298129};
    float out[4];
    kernels_best()->rms_norm(x, w, 4, 1e-6f, out);
    for (int i = 0; i < 4; i++)
        CHECK_NEAR(out[i], want[i], 1e-7); /* the value has seven digits */
}

static void compare_functions(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int n = 1; n <= LARGEST; n++) {
        float x[LARGEST], up[LARGEST], got[LARGEST + 9], want[LARGEST + 9];
        random_floats(&r, x, n, 40.0);
        random_floats(&r, up, n, 1.0);
        x[rng_below(&r, (uint64_t)n)] = extremes[n % COUNT(extremes)];
        for (int i = 0; i < LARGEST + 9; i++)
            got[i] = want[i] = f32_from_bits(CANARY);
        k->exp(x, n, got);
        for (int i = 0; i < n; i++)
            want[i] = math_exp(x[i]);
        check_same("exp", got, want, LARGEST + 9);
        k->sigmoid(x, n, got);
        for (int i = 0; i < n; i++)
            want[i] = math_sigmoid(x[i]);
        check_same("sigmoid", got, want, LARGEST + 9);
        memcpy(got, x, (size_t)n * sizeof(*x));
        k->swiglu(got, up, n);
        for (int i = 0; i < n; i++)
            want[i] = math_silu(x[i]) * up[i];
        check_same("swiglu", got, want, LARGEST + 9);
        memcpy(got, x, (size_t)n * sizeof(*x));
        k->add(got, up, n);
        for (int i = 0; i < n; i++)
            want[i] = x[i] + up[i];
        check_same("add", got, want, LARGEST + 9);
    }
}

TEST(functions_have_the_same_bits_at_every_level)
{
    each_level(compare_functions);
}

static void sweep_exp(const struct kernels *k)
{
    enum { CHUNK = 1 << 12 };
    const uint32_t step = test_is_slow_build() ? 40009 : 2003;
    static float x[CHUNK], got[CHUNK];
    uint64_t bits = 0;
    while (bits <= UINT32_MAX) {
        int n = 0;
        for (; n < CHUNK && bits <= UINT32_MAX; bits += step)
            x[n++] = f32_from_bits((uint32_t)bits);
        k->exp(x, n, got);
        for (int i = 0; i < n; i++)
            CHECK(is_same(got[i], math_exp(x[i])));
        k->sigmoid(x, n, x); /* in place; the inputs are made anew from `bits` */
        uint64_t first = bits - (uint64_t)n * step;
        for (int i = 0; i < n; i++)
            CHECK(
                is_same(x[i], math_sigmoid(f32_from_bits((uint32_t)(first + (uint64_t)i * step)))));
    }
}

TEST(exp_and_sigmoid_have_the_same_bits_over_the_whole_range)
{
    each_level(sweep_exp);
}

/* ---- combine ---- */

static void compare_fixed(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int n = 1; n <= LARGEST; n++) {
        float y[LARGEST], x[LARGEST + 9], want_x[LARGEST + 9];
        int32_t got[LARGEST + 9], want[LARGEST + 9];
        int span = COMBINE_MAX_EXPONENT - COMBINE_MIN_EXPONENT + 1;
        int exponent = COMBINE_MIN_EXPONENT + (int)rng_below(&r, (uint64_t)span);
        /* Around the limit: some of the rounds have values over it, some have not. */
        for (int i = 0; i < n; i++) {
            y[i] = (float)ldexp(rng_normal(&r), exponent + 26 - (int)rng_below(&r, 40));
            got[i] = want[i] = (int32_t)(rng_next(&r) >> 34);
        }
        if (n % 7 == 0)
            y[n / 2] = extremes[n % COUNT(extremes)];
        for (int i = n; i < LARGEST + 9; i++)
            got[i] = want[i] = 77;
        for (int i = 0; i < LARGEST + 9; i++)
            x[i] = want_x[i] = f32_from_bits(CANARY);
        /* An infinite weight makes NaNs of the zeros with which a vector is filled up. */
        float weight = n % 11 == 0 ? INFINITY : (float)rng_unit(&r);
        CHECK_INT(k->fixed_add(y, weight, exponent, n, got),
                  portable()->fixed_add(y, weight, exponent, n, want));
        CHECK_BYTES(got, want, sizeof(got));
        random_floats(&r, x, n, ldexp(1.0, exponent / 2));
        memcpy(want_x, x, (size_t)n * sizeof(*x));
        k->fixed_fold(got, exponent, n, x);
        portable()->fixed_fold(got, exponent, n, want_x);
        check_same("fixed_fold", x, want_x, LARGEST + 9);
    }
}

TEST(fixed_point_kernels_have_the_same_bits_at_every_level)
{
    each_level(compare_fixed);
}

static void compare_add_int32(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int n = 1; n <= LARGEST; n++) {
        int32_t acc[LARGEST + 9], want[LARGEST + 9];
        _Alignas(8) char frame[(LARGEST + 1) * 4];
        char *y = frame + n % 4; /* as it lies in a received frame */
        for (int i = 0; i < LARGEST + 9; i++)
            acc[i] = want[i] = (int32_t)(uint32_t)rng_next(&r);
        for (int i = 0; i < n; i++) {
            uint32_t v = (uint32_t)rng_next(&r);
            memcpy(y + 4 * i, &v, sizeof(v));
            want[i] = (int32_t)((uint32_t)want[i] + v);
        }
        k->add_int32(acc, y, n);
        CHECK_BYTES(acc, want, sizeof(acc));
    }
}

TEST(add_int32_takes_misaligned_input_and_wraps)
{
    each_level(compare_add_int32);
}

/* ---- the table ---- */

TEST(kernels_are_found_by_name)
{
    CHECK(kernels_named("portable") != NULL);
    CHECK_STR(kernels_named("portable")->name, "portable");
    CHECK(kernels_named("portable") == kernels_named("portable"));
    CHECK(kernels_named("no such level") == NULL);
    const struct kernels *best = kernels_best();
    CHECK(kernels_named(best->name) == best);
    for (int f = FORMAT_F32; f < FORMAT_COUNT; f++)
        CHECK(best->matmul[f] != NULL);
    for (int f = 0; f < KV_FORMAT_COUNT; f++)
        CHECK(best->attend[f] != NULL);
    CHECK(best->matmul[FORMAT_NATIVE] == NULL);
}
