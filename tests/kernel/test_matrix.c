/* tests/kernel/test_matrix.c - packing of every type that a checkpoint stores into every
 * format, rooms, and packed views. */
#include "engine/matrix.h"

#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "engine/quantise.h"
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
    if (matrix_pack(&m, v, want, NULL, &c, &e) < 0)
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
    CHECK_INT(matrix_bytes(&m), 10 * 16 * 280 + 64);
    CHECK((char *)m.scales == (char *)m.panels + 10 * 16 * 280);
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
    CHECK_INT(matrix_pack(&m, v, want, NULL, &c, &e), code);
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
        check_refused(&v, FORMAT_Q8, E_CORRUPT, where);
        check_refused(&fv, FORMAT_Q4, E_CORRUPT, where);
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

/* ---- integer formats ---- */

/* Every row of the matrix is what quantise_weights() says of its groups. */
static void check_integer_pack(enum weight_format f, int rows, int cols, struct rng *r)
{
    float *w = mem_array((size_t)rows * (size_t)cols, sizeof(*w));
    float *got = mem_array((size_t)cols, sizeof(*got));
    random_f32(r, w, rows * cols);
    struct linear_view v = view_of(DTYPE_F32, w, rows, cols);
    struct matrix m = pack(&v, f);
    int group = format_group(f);
    CHECK_INT(m.group, group);
    CHECK_INT(m.padded_cols, (cols + group - 1) / group * group);
    for (int row = 0; row < rows; row++) {
        matrix_row(&m, row, got);
        for (int first = 0; first < cols; first += group) {
            int8_t q[Q8_GROUP];
            int n = cols - first < group ? cols - first : group;
            float scale =
                quantise_weights(kernels_best(), f, w + row * cols + first, n, QUANTISE_BEST, q);
            for (int i = 0; i < n; i++)
                CHECK(got[first + i] == scale * (float)q[i]);
        }
    }
    matrix_fini(&m);
    mem_free(w);
    mem_free(got);
}

TEST(integer_weights_lie_in_groups_whatever_the_size)
{
    const int sizes[][2] = {{16, 128}, {1, 1}, {17, 129}, {40, 63}, {15, 200}, {130, 320}};
    struct rng r = test_rng();
    for (int i = 0; i < 6; i++) {
        check_integer_pack(FORMAT_Q8, sizes[i][0], sizes[i][1], &r);
        check_integer_pack(FORMAT_Q4, sizes[i][0], sizes[i][1], &r);
    }
}

/* Rows and columns that are not there: value 0, and scale 0 for rows. */
TEST(integer_weights_are_padded_with_zeros)
{
    struct rng r = test_rng();
    enum { N_ROWS = 18, N_COLS = 70 };
    static float w[N_ROWS * N_COLS];
    random_f32(&r, w, N_ROWS * N_COLS);
    struct linear_view v = view_of(DTYPE_F32, w, N_ROWS, N_COLS);
    struct matrix m = pack(&v, FORMAT_Q4);
    const struct q4_panel_group *g = m.panels; /* [panel 2][group 2] */
    for (int panel = 0; panel < 2; panel++)
        for (int row = panel ? 2 : 16; row < 16; row++)
            for (int group = 0; group < 2; group++) {
                CHECK(g[2 * panel + group].scales[row] == 0.0f);
                for (int i = 0; i < 32; i++)
                    CHECK_INT(g[2 * panel + group].q[i / 4][row][i % 4], 0x88);
            }
    /* Columns 64..69 of 70: 6 and 7 of the first eight are padding, then all. */
    CHECK_INT(g[1].q[0][0][2] >> 4, 8);
    CHECK_INT(g[1].q[0][0][3] >> 4, 8);
    CHECK_INT(g[1].q[7][15][3], 0x88);
    matrix_fini(&m);
    m = pack(&v, FORMAT_Q8);
    const struct q8_panel_group *g8 = m.panels;
    CHECK(g8[1].scales[2] == 0.0f && g8[1].q[0][2][0] == 0 && g8[0].q[31][0][3] == 0);
    CHECK(g8[0].scales[0] > 0.0f && g8[1].scales[1] > 0.0f);
    matrix_fini(&m);
}

TEST(fp8_weights_become_integers_through_exact_values)
{
    struct rng r = test_rng();
    static uint8_t w[N];
    static float scales[6], exact[N], a[COLS], b[COLS];
    random_fp8(&r, w, N);
    random_f32(&r, scales, 6);
    struct linear_view v = view_of(DTYPE_F8_E4M3, w, ROWS, COLS);
    set_scale(&v, scales, 128, 128);
    fp8_dequantize(w, scales, ROWS, COLS, exact);
    struct linear_view plain = view_of(DTYPE_F32, exact, ROWS, COLS);
    for (int f = FORMAT_Q8; f <= FORMAT_Q4; f++) {
        struct matrix from_fp8 = pack(&v, (enum weight_format)f);
        struct matrix from_f32 = pack(&plain, (enum weight_format)f);
        CHECK_INT(from_fp8.panel_bytes, from_f32.panel_bytes);
        CHECK_BYTES(from_fp8.panels, from_f32.panels, matrix_bytes(&from_f32));
        matrix_row(&from_fp8, ROWS - 1, a);
        matrix_row(&from_f32, ROWS - 1, b);
        CHECK_BYTES(a, b, sizeof(a));
        matrix_fini(&from_fp8);
        matrix_fini(&from_f32);
    }
}

/* ---- layouts, rooms and packed views ---- */

TEST(layouts_have_the_bytes_that_the_header_says)
{
    struct matrix m;
    size_t bytes;
    CHECK_INT(matrix_layout(&m, FORMAT_Q8, 1536, 3072, &bytes, NULL), 0);
    CHECK_INT(bytes, 96 * 24 * 2112);
    CHECK_INT(matrix_layout(&m, FORMAT_Q4, 17, 65, &bytes, NULL), 0);
    CHECK_INT(bytes, 2 * 2 * 576);
    CHECK_INT(matrix_layout(&m, FORMAT_FP8, 129, 129, &bytes, NULL), 0);
    CHECK_INT(bytes, 9 * 132 * 16 + 64);
    CHECK_INT(matrix_layout(&m, FORMAT_BF16, 16, 3, &bytes, NULL), 0);
    CHECK_INT(bytes, 16 * 4 * 2);
    CHECK(!m.panels && !m.scales && m.n_panels == 1 && m.padded_cols == 4);
    struct err e = {0};
    CHECK_INT(matrix_layout(&m, FORMAT_F32, 0, 8, &bytes, &e), E_RANGE);
    CHECK_INT(matrix_layout(&m, FORMAT_Q8, 8, INT64_MAX, &bytes, &e), E_RANGE);
    /* 2^31 rows of 2^31 floats still fit 64 bits. */
    CHECK_INT(matrix_layout(&m, FORMAT_F32, INT32_MAX - 128, INT32_MAX - 128, &bytes, &e), 0);
    CHECK(bytes > (size_t)1 << 63);
}

TEST(a_room_is_filled_and_never_freed)
{
    struct rng r = test_rng();
    static float w[N];
    random_f32(&r, w, N);
    struct linear_view v = view_of(DTYPE_F32, w, ROWS, COLS);
    struct compute c = serial();
    for (int f = FORMAT_F32; f < FORMAT_COUNT; f++) {
        size_t bytes;
        struct err e = {0};
        CHECK_INT(matrix_view_bytes(&v, (enum weight_format)f, &bytes, &e), 0);
        char *room = mem_aligned(bytes + MEM_ALIGN);
        memset(room + bytes, 0x5a, MEM_ALIGN);
        struct matrix own = pack(&v, (enum weight_format)f), m;
        CHECK_INT(matrix_pack(&m, &v, (enum weight_format)f, room, &c, &e), 0);
        CHECK(m.panels == room && m.is_borrowed && !own.is_borrowed);
        CHECK_INT(matrix_bytes(&m), bytes);
        CHECK_BYTES(room, own.panels, bytes);
        matrix_fini(&m);
        for (int i = 0; i < MEM_ALIGN; i++)
            CHECK_INT(room[bytes + (size_t)i], 0x5a);
        matrix_fini(&own);
        mem_free(room);
    }
}

/* A matrix of a packed directory, as its view. */
static struct linear_view packed_view(const struct matrix *m, int64_t rows, int64_t cols)
{
    return (struct linear_view){.label = "w2",
                                .rows = rows,
                                .cols = cols,
                                .packed = m->panels,
                                .packed_bytes = matrix_bytes(m),
                                .packed_format = m->format};
}

TEST(packed_views_are_borrowed_or_copied)
{
    struct rng r = test_rng();
    static float w[N], want[COLS], got[COLS];
    random_f32(&r, w, N);
    struct linear_view v = view_of(DTYPE_F32, w, ROWS, COLS);
    struct pool *pool = pool_new(2, POOL_FREE);
    struct compute c = {.kernels = kernels_best(), .pool = pool};
    for (int f = FORMAT_F32; f < FORMAT_COUNT; f++) {
        struct matrix packed = pack(&v, (enum weight_format)f), m;
        struct linear_view p = packed_view(&packed, ROWS, COLS);
        for (int copies = 0; copies <= 1; copies++) {
            size_t bytes;
            p.copies_packed = copies != 0;
            CHECK_INT(matrix_view_bytes(&p, FORMAT_NATIVE, &bytes, NULL), 0);
            CHECK_INT(bytes, copies ? matrix_bytes(&packed) : 0);
            CHECK_INT(
                matrix_pack(&m, &p, copies ? (enum weight_format)f : FORMAT_NATIVE, NULL, &c, NULL),
                0);
            CHECK_INT(m.format, f);
            CHECK_INT(m.is_borrowed, !copies);
            CHECK((m.panels == packed.panels) == !copies);
            for (int row = 0; row < ROWS; row += ROWS - 1) {
                matrix_row(&packed, row, want);
                matrix_row(&m, row, got);
                CHECK_BYTES(got, want, sizeof(want));
            }
            matrix_fini(&m);
        }
        matrix_fini(&packed);
    }
    pool_free(&pool);
}

TEST(packed_views_that_do_not_fit_are_refused)
{
    static float w[N];
    w[0] = 1.0f;
    struct linear_view v = view_of(DTYPE_F32, w, ROWS, COLS);
    struct matrix packed = pack(&v, FORMAT_Q8);
    struct linear_view p = packed_view(&packed, ROWS, COLS);
    check_refused(&p, FORMAT_Q4, E_PRECONDITION, "is packed as q8, not as q4");
    check_refused(&p, FORMAT_Q4, E_PRECONDITION, "--format q4");
    p.packed_bytes -= 64;
    check_refused(&p, FORMAT_NATIVE, E_CORRUPT, "packed bytes");
    p = packed_view(&packed, ROWS + 16, COLS);
    check_refused(&p, FORMAT_Q8, E_CORRUPT, "[166, 277]");
    p = packed_view(&packed, ROWS, COLS);
    p.packed = (const char *)p.packed + 32;
    check_refused(&p, FORMAT_Q8, E_CORRUPT, "multiple of 64");
    p = packed_view(&packed, -1, COLS);
    check_refused(&p, FORMAT_Q8, E_RANGE, "size");
    matrix_fini(&packed);
}

/* From 2 MiB on the memory is a run of its own. */
TEST(large_matrices_live_in_runs)
{
    enum { BIG = 1100 };
    struct rng r = test_rng();
    float *w = mem_array(BIG * BIG, sizeof(*w));
    random_f32(&r, w, BIG * BIG);
    struct linear_view v = view_of(DTYPE_F32, w, BIG, BIG);
    struct matrix m = pack(&v, FORMAT_F32);
    CHECK_INT((uintptr_t)m.panels % (2 << 20), 0);
    float *row = mem_array(BIG, sizeof(*row));
    matrix_row(&m, BIG - 1, row);
    CHECK_BYTES(row, w + (BIG - 1) * BIG, BIG * sizeof(*row));
    matrix_fini(&m);
    mem_free(row);
    mem_free(w);
}
