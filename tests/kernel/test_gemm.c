/* tests/kernel/test_gemm.c - products over the pool: the same bits however they are split, in
 * every format. */
#include "engine/gemm.h"

#include <math.h>

#include "base/mem.h"
#include "engine/matrix.h"
#include "tests/lib/test.h"

static struct compute serial(void)
{
    return (struct compute){.kernels = kernels_best()};
}

static struct linear_view view_of(const float *data, int rows, int cols)
{
    struct linear_view v = {.label = "w2", .rows = rows, .cols = cols};
    v.weight = (struct tensor){.dtype = DTYPE_F32, .n_dims = 2, .dims = {rows, cols}, .data = data};
    v.weight.size_bytes = (size_t)rows * (size_t)cols * sizeof(float);
    return v;
}

static void random_f32(struct rng *r, float *out, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = (float)rng_normal(r);
}

/* ---- products ---- */

struct sizes {
    int rows, cols, n_rows;
};

/* Rows in both forms: f32 readable up to a multiple of 16 columns, and quantised. */
static struct rows make_rows(struct rng *r, int n_rows, int cols, int group, struct rows_room *room)
{
    size_t stride = mem_round_up((size_t)cols, 16) + 16;
    float *x = mem_aligned((size_t)n_rows * stride * sizeof(*x));
    for (int i = 0; i < n_rows; i++)
        random_f32(r, x + (size_t)i * stride, cols);
    struct rows rows = {.n_rows = n_rows, .cols = cols, .f32 = x, .f32_stride = stride};
    struct compute c = serial();
    CHECK(rows_room_open(room, n_rows, cols, group));
    rows_quantise(&c, room, &rows);
    return rows;
}

static void free_rows(const struct rows *x, struct rows_room *room)
{
    float *f32;
    memcpy(&f32, &x->f32, sizeof(f32));
    mem_free(f32);
    rows_room_close(room);
}

static void compare_splits(struct sizes s, enum weight_format f, struct pool *pool, struct rng *r)
{
    float *w = mem_array((size_t)s.rows * (size_t)s.cols, sizeof(*w));
    size_t y_stride = (size_t)s.rows + 3;
    float *y = mem_array((size_t)s.n_rows * y_stride, sizeof(*y));
    float *want = mem_array((size_t)s.n_rows * y_stride, sizeof(*want));
    random_f32(r, w, s.rows * s.cols);
    struct linear_view v = view_of(w, s.rows, s.cols);
    struct compute c = {.kernels = kernels_best(), .pool = pool}, alone = serial();
    struct matrix m;
    struct rows_room room;
    CHECK_INT(matrix_pack(&m, &v, f, NULL, &c, NULL), 0);
    struct rows x = make_rows(r, s.n_rows, s.cols, m.group, &room);
    matmul(&c, &m, &x, y, y_stride);
    for (int i = 0; i < s.n_rows; i++) {
        struct rows row = rows_part(&x, i, 1);
        matmul(&alone, &m, &row, want + (size_t)i * y_stride, y_stride);
    }
    CHECK_BYTES(y, want, (size_t)s.n_rows * y_stride * sizeof(*y));
    matrix_fini(&m);
    free_rows(&x, &room);
    mem_free(w);
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
            compare_splits(sizes[i], FORMAT_F32 + (i + n_threads) % (FORMAT_COUNT - 1), pool, &r);
        pool_free(&pool);
    }
}

TEST(blas_agrees_within_rounding)
{
    enum { OUT = 300, IN = 260, X = 9 };
    struct rng r = test_rng();
    static float w[OUT * IN], y[X * OUT], blas[X * OUT];
    random_f32(&r, w, OUT * IN);
    struct linear_view v = view_of(w, OUT, IN);
    struct compute c = serial();
    for (int f = FORMAT_F32; f < FORMAT_COUNT; f++) {
        struct matrix m;
        struct rows_room room;
        CHECK_INT(matrix_pack(&m, &v, (enum weight_format)f, NULL, &c, NULL), 0);
        struct rows x = make_rows(&r, X, IN, m.group, &room);
        matmul(&c, &m, &x, y, OUT);
        CHECK_INT(matmul_blas(&m, &x, blas, OUT), 0);
        /* Float formats: 260 products of size 1, 2^-24 of their sum's possible size, 260, each.
         * Integer formats: each x is off by at most 4/127/2, evenly spread, that is 0.009 RMS
         * times sqrt(260); six of those. */
        for (int i = 0; i < X * OUT; i++)
            CHECK_NEAR(y[i], blas[i], m.group ? 6 * 0.15 : 1e-3);
        matrix_fini(&m);
        free_rows(&x, &room);
    }
}
