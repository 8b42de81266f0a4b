/* tests/kernel/test_gemm.c - packing of every type that a checkpoint stores, and products
 * over the pool: the same bits however they are split. */
#include "engine/gemm.h"

#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "model/fp8.h"
#include "model/halves.h"
#include "tests/lib/test.h"

static struct compute serial(void)
{
    return (struct compute){.kernels = kernels_best()};
}

static struct linear_view view_of(enum dtype d, const void *data, int64_t rows, int64_t cols)
{
    struct linear_view v = {.label = "w2", .rows = rows, .cols = cols};
    v.weight = (struct tensor){.dtype = d, .n_dims = 2, .dims = {rows, cols}, .data = data};
    v.weight.size_bytes = (size_t)rows * (size_t)cols * dtype_bytes(d);
    return v;
}

static void set_scale(struct linear_view *v, const float *scales, int block_rows, int block_cols)
{
    int64_t rows = fp8_blocks(v->rows, block_rows), cols = fp8_blocks(v->cols, block_cols);
    v->block_rows = block_rows;
    v->block_cols = block_cols;
    v->scale =
        (struct tensor){.dtype = DTYPE_F32, .n_dims = 2, .dims = {rows, cols}, .data = scales};
    v->scale.size_bytes = (size_t)(rows * cols) * sizeof(float);
}

static struct matrix pack(const struct linear_view *v, enum weight_format want)
{
    struct matrix m;
    struct err e = {0};
    struct compute c = serial();
    if (matrix_pack(&m, v, want, &c, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return m;
}

/* Packs, and compares every row with want [rows, cols]; returns the format chosen. */
static enum weight_format check_pack(const struct linear_view *v, enum weight_format want_format,
                                     const float *want)
{
    struct matrix m = pack(v, want_format);
    float *row = mem_array((size_t)m.cols, sizeof(*row));
    CHECK_INT(m.rows, v->rows);
    CHECK_INT(m.cols, v->cols);
    CHECK(m.padded_cols % 4 == 0 && m.padded_cols >= m.cols && m.padded_cols < m.cols + 4);
    for (int r = 0; r < m.rows; r++) {
        matrix_row(&m, r, row);
        CHECK_BYTES(row, want + (size_t)r * (size_t)m.cols, (size_t)m.cols * sizeof(*row));
    }
    enum weight_format f = m.format;
    mem_free(row);
    matrix_fini(&m);
    return f;
}

enum { ROWS = 150, COLS = 277, N = ROWS * COLS };

static void random_f32(struct rng *r, float *out, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = (float)rng_normal(r);
}

TEST(f32_weights_pack_to_every_format)
{
    struct rng r = test_rng();
    static float w[N], want[N], scales[6];
    static uint8_t bytes[N];
    random_f32(&r, w, N);
    struct linear_view v = view_of(DTYPE_F32, w, ROWS, COLS);
    CHECK_INT(check_pack(&v, FORMAT_NATIVE, w), FORMAT_F32);
    for (int i = 0; i < N; i++)
        want[i] = bf16_to_f32(f32_to_bf16(w[i]));
    CHECK_INT(check_pack(&v, FORMAT_BF16, want), FORMAT_BF16);
    fp8_quantize(w, ROWS, COLS, bytes, scales);
    fp8_dequantize(bytes, scales, ROWS, COLS, want);
    CHECK_INT(check_pack(&v, FORMAT_FP8, want), FORMAT_FP8);
}

TEST(half_weights_keep_their_values)
{
    struct rng r = test_rng();
    static float want[N];
    static uint16_t halves[N + 1];
    uint16_t *w = (void *)((char *)halves + 1); /* a mapping gives no alignment */
    for (int i = 0; i < N; i++) {
        uint16_t h = f32_to_bf16((float)rng_normal(&r));
        memcpy((char *)w + 2 * i, &h, sizeof(h));
        want[i] = bf16_to_f32(h);
    }
    struct linear_view v = view_of(DTYPE_BF16, w, ROWS, COLS);
    CHECK_INT(check_pack(&v, FORMAT_NATIVE, want), FORMAT_BF16);
    CHECK_INT(check_pack(&v, FORMAT_F32, want), FORMAT_F32);
    for (int i = 0; i < N; i++) {
        uint16_t h = f32_to_f16((float)rng_normal(&r));
        memcpy((char *)w + 2 * i, &h, sizeof(h));
        want[i] = f16_to_f32(h);
    }
    v = view_of(DTYPE_F16, w, ROWS, COLS);
    CHECK_INT(check_pack(&v, FORMAT_NATIVE, want), FORMAT_F32);
}

static void random_fp8(struct rng *r, uint8_t *out, int n)
{
    for (int i = 0; i < n; i++) {
        out[i] = (uint8_t)rng_next(r);
        if ((out[i] & 0x7f) == 0x7f)
            out[i] = 0x7e;
    }
}

TEST(fp8_weights_keep_bytes_and_scales)
{
    struct rng r = test_rng();
    static uint8_t w[N];
    static float scales[6], want[N];
    random_fp8(&r, w, N);
    random_f32(&r, scales, 6);
    struct linear_view v = view_of(DTYPE_F8_E4M3, w, ROWS, COLS);
    set_scale(&v, scales, 128, 128);
    fp8_dequantize(w, scales, ROWS, COLS, want);
    CHECK_INT(check_pack(&v, FORMAT_NATIVE, want), FORMAT_FP8);
    CHECK_INT(check_pack(&v, FORMAT_F32, want), FORMAT_F32);
    struct matrix m = pack(&v, FORMAT_FP8);
    CHECK_BYTES(m.scales, scales, sizeof(scales));
    CHECK_INT(matrix_bytes(&m), 10 * 16 * 280 + sizeof(scales));
    matrix_fini(&m);
}

TEST(fp8_weights_without_a_scale_mean_themselves)
{
    struct rng r = test_rng();
    static uint8_t w[N];
    static float want[N];
    random_fp8(&r, w, N);
    for (int i = 0; i < N; i++)
        want[i] = fp8_decode(w[i]);
    struct linear_view v = view_of(DTYPE_F8_E4M3, w, ROWS, COLS);
    CHECK_INT(check_pack(&v, FORMAT_NATIVE, want), FORMAT_FP8);
    CHECK_INT(check_pack(&v, FORMAT_F32, want), FORMAT_F32);
}

/* Blocks of another size are unpacked by their own scales and quantised again. */
TEST(fp8_weights_with_other_blocks_are_requantised)
{
    struct rng r = test_rng();
    enum { BLOCK = 50, SCALES = 3 * 6 };
    static uint8_t w[N], bytes[N];
    static float scales[SCALES], exact[N], ours[6], want[N];
    random_fp8(&r, w, N);
    random_f32(&r, scales, SCALES);
    for (int i = 0; i < N; i++)
        exact[i] = fp8_decode(w[i]) * scales[i / COLS / BLOCK * 6 + i % COLS / BLOCK];
    struct linear_view v = view_of(DTYPE_F8_E4M3, w, ROWS, COLS);
    set_scale(&v, scales, BLOCK, BLOCK);
    CHECK_INT(check_pack(&v, FORMAT_F32, exact), FORMAT_F32);
    fp8_quantize(exact, ROWS, COLS, bytes, ours);
    fp8_dequantize(bytes, ours, ROWS, COLS, want);
    CHECK_INT(check_pack(&v, FORMAT_NATIVE, want), FORMAT_FP8);
}

static void check_refused(const struct linear_view *v, enum weight_format want, int code,
                          const char *part)
{
    struct matrix m;
    struct err e = {0};
    struct compute c = serial();
    CHECK_INT(matrix_pack(&m, v, want, &c, &e), code);
    CHECK_INT(e.code, code);
    CHECK_HAS(e.text, "w2");
    CHECK_HAS(e.text, part);
    CHECK(!m.panels && !m.scales);
}

TEST(weights_that_are_no_numbers_are_refused_by_name_and_place)
{
    static uint8_t w[N];
    static float scales[6] = {1, 1, 1, 1, 1, 1}, f[N];
    struct linear_view v = view_of(DTYPE_F8_E4M3, w, ROWS, COLS);
    set_scale(&v, scales, 128, 128);
    const int places[] = {0, N - 1, 141 * COLS + 135, 3 * COLS + 7};
    for (int i = 0; i < 4; i++) {
        char where[64];
        snprintf(where, sizeof(where), "[%d, %d]", places[i] / COLS, places[i] % COLS);
        w[places[i]] = i % 2 ? 0xff : 0x7f;
        f[places[i]] = i % 2 ? NAN : -INFINITY;
        check_refused(&v, FORMAT_NATIVE, E_CORRUPT, where);
        check_refused(&v, FORMAT_BF16, E_CORRUPT, where);
        struct linear_view fv = view_of(DTYPE_F32, f, ROWS, COLS);
        check_refused(&fv, FORMAT_FP8, E_CORRUPT, where);
        check_refused(&fv, FORMAT_NATIVE, E_CORRUPT, where);
        w[places[i]] = 0x38;
        f[places[i]] = 1.0f;
    }
    scales[4] = NAN;
    check_refused(&v, FORMAT_NATIVE, E_CORRUPT, "scale 4");
}

TEST(views_that_do_not_fit_are_refused)
{
    static float w[64];
    struct linear_view v = view_of(DTYPE_F32, w, 8, 8);
    v.weight.size_bytes--;
    check_refused(&v, FORMAT_NATIVE, E_CORRUPT, "[8, 8]");
    v = view_of(DTYPE_F32, w, 0, 8);
    check_refused(&v, FORMAT_NATIVE, E_RANGE, "[0, 8]");
    v = view_of(DTYPE_F32, w, 8, 8);
    v.rows = v.cols = INT64_MAX;
    check_refused(&v, FORMAT_NATIVE, E_RANGE, "size");
    v = view_of(DTYPE_I32, w, 8, 8);
    check_refused(&v, FORMAT_NATIVE, E_UNIMPLEMENTED, "I32");
    v = view_of(DTYPE_F32, w, 8, 8);
    set_scale(&v, w, 128, 128);
    check_refused(&v, FORMAT_NATIVE, E_CORRUPT, "scale");
    v = view_of(DTYPE_F8_E4M3, w, 8, 8);
    set_scale(&v, w, 4, 4);
    v.scale.size_bytes -= sizeof(float);
    check_refused(&v, FORMAT_NATIVE, E_CORRUPT, "scales");
    set_scale(&v, w, 4, 4);
    v.block_cols = 0;
    check_refused(&v, FORMAT_NATIVE, E_CORRUPT, "scale");
}

/* ---- products ---- */

struct sizes {
    int rows, cols, n_rows;
};

static void compare_splits(struct sizes s, enum weight_format f, struct pool *pool, struct rng *r)
{
    float *w = mem_array((size_t)s.rows * (size_t)s.cols, sizeof(*w));
    size_t x_stride = (size_t)s.cols + 7, y_stride = (size_t)s.rows + 3;
    float *x = mem_array((size_t)s.n_rows * x_stride, sizeof(*x));
    float *y = mem_array((size_t)s.n_rows * y_stride, sizeof(*y));
    float *want = mem_array((size_t)s.n_rows * y_stride, sizeof(*want));
    random_f32(r, w, s.rows * s.cols);
    for (int i = 0; i < s.n_rows; i++)
        random_f32(r, x + (size_t)i * x_stride, s.cols);
    struct linear_view v = view_of(DTYPE_F32, w, s.rows, s.cols);
    struct compute c = {.kernels = kernels_best(), .pool = pool}, alone = serial();
    struct matrix m;
    CHECK_INT(matrix_pack(&m, &v, f, &c, NULL), 0);
    matmul(&c, &m, x, x_stride, s.n_rows, y, y_stride);
    for (int i = 0; i < s.n_rows; i++)
        matmul(&alone, &m, x + (size_t)i * x_stride, x_stride, 1, want + (size_t)i * y_stride,
               y_stride);
    CHECK_BYTES(y, want, (size_t)s.n_rows * y_stride * sizeof(*y));
    matrix_fini(&m);
    mem_free(w);
    mem_free(x);
    mem_free(y);
    mem_free(want);
}

TEST(a_product_has_the_same_bits_however_it_is_split)
{
    const struct sizes sizes[] = {{1, 1, 1},     {500, 300, 1},  {3000, 64, 1}, {16, 400, 200},
                                  {40, 130, 70}, {1000, 70, 65}, {130, 90, 300}};
    struct rng r = test_rng();
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        struct pool *pool = pool_new(n_threads, POOL_FREE);
        for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++)
            compare_splits(sizes[i], FORMAT_F32 + i % 3, pool, &r);
        pool_free(&pool);
    }
}

TEST(blas_agrees_within_rounding)
{
    enum { OUT = 300, IN = 260, X = 9 };
    struct rng r = test_rng();
    static float w[OUT * IN], x[X * IN], y[X * OUT], blas[X * OUT];
    random_f32(&r, w, OUT * IN);
    random_f32(&r, x, X * IN);
    struct linear_view v = view_of(DTYPE_F32, w, OUT, IN);
    struct compute c = serial();
    for (int f = FORMAT_F32; f < FORMAT_COUNT; f++) {
        struct matrix m = pack(&v, f);
        matmul(&c, &m, x, IN, X, y, OUT);
        CHECK_INT(matmul_blas(&m, x, IN, X, blas, OUT), 0);
        /* 260 products of size 1: 2^-24 of their sum's possible size, 260, each. */
        for (int i = 0; i < X * OUT; i++)
            CHECK_NEAR(y[i], blas[i], 1e-3);
        matrix_fini(&m);
    }
}
