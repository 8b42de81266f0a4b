/* engine/gemm.c - see gemm.h.
 *
 * Packing works on strips of 128 rows (8 panels), so that an FP8 block lies in one task.
 * A product is cut into (range of panels) x (block of rows); neighbouring tasks share the
 * panels, which then come from the cache that the threads share. */
#include "engine/gemm.h"

#include <cblas.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "model/fp8.h"
#include "model/halves.h"

enum {
    STRIP_PANELS = SCALE_BLOCK / PANEL_ROWS,
    COLS_MULTIPLE = 4,
    /* Panels are handed out in fours: the kernels read four of them at once. */
    PANELS_AT_ONCE = 4,
    TASKS_PER_THREAD = 4,
    /* Rows whose inputs stay in the second-level cache while panels go by: 64 x 3072
     * floats are 768 KiB. */
    ROWS_PER_TASK = 64,
    MIN_ROWS_PER_TASK = 8,
    /* Below this waking threads costs more than the product (about 10 us). */
    SERIAL_MACS = 1 << 16,
};

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

static int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* ---- packing ---- */

struct packing {
    struct matrix *m;
    const struct linear_view *view;
    _Atomic int64_t bad_element; /* lowest that is not finite; INT64_MAX if none */
    _Atomic int64_t bad_scale;
};

static void note_bad(_Atomic int64_t *lowest, int64_t index)
{
    int64_t seen = atomic_load(lowest);
    while (index < seen && !atomic_compare_exchange_weak(lowest, &seen, index)) {
    }
}

static size_t element_bytes(enum weight_format f)
{
    return f == FORMAT_F32 ? sizeof(float) : f == FORMAT_BF16 ? sizeof(uint16_t) : 1;
}

static char *panel_at(const struct matrix *m, int panel)
{
    return (char *)m->panels + (size_t)panel * m->panel_bytes;
}

/* Where element (row, col) lies in its panel, in elements. */
static size_t place_in_panel(enum weight_format f, int row, int col)
{
    size_t r = (size_t)(row % PANEL_ROWS), k = (size_t)col;
    if (f == FORMAT_F32)
        return k * PANEL_ROWS + r;
    return k / 2 * 2 * PANEL_ROWS + 2 * r + k % 2;
}

/* A block of the matrix: rows [row, row + n_rows) x cols [col, col + n_cols), at most
 * SCALE_BLOCK each. */
struct block {
    int row, col, n_rows, n_cols;
};

static float view_scale(const struct linear_view *v, int row, int col)
{
    if (!v->scale.data)
        return 1.0f;
    int64_t per_row = fp8_blocks(v->cols, v->block_cols);
    float scale;
    tensor_read_f32(&v->scale, row / v->block_rows * per_row + col / v->block_cols, 1, &scale);
    return scale;
}

/* Reads a block as f32 [n_rows][n_cols] into `out`, scales applied. */
static void read_block(struct packing *p, struct block b, float *out)
{
    const struct linear_view *v = p->view;
    for (int r = 0; r < b.n_rows; r++, out += b.n_cols) {
        int64_t first = (int64_t)(b.row + r) * v->cols + b.col;
        tensor_read_f32(&v->weight, first, b.n_cols, out);
        float scale = 1.0f;
        for (int c = 0; c < b.n_cols; c++) {
            if (c == 0 || (b.col + c) % v->block_cols == 0)
                scale = view_scale(v, b.row + r, b.col + c);
            out[c] *= scale;
            if (!isfinite(out[c]))
                note_bad(&p->bad_element, first + c);
        }
    }
}

static void store_f32(const struct matrix *m, struct block b, const float *from)
{
    for (int r = b.row; r < b.row + b.n_rows; r++) {
        float *panel = (void *)panel_at(m, r / PANEL_ROWS);
        for (int c = b.col; c < b.col + b.n_cols; c++)
            panel[place_in_panel(FORMAT_F32, r, c)] = *from++;
    }
}

static void store_bf16(const struct matrix *m, struct block b, const float *from)
{
    for (int r = b.row; r < b.row + b.n_rows; r++) {
        uint16_t *panel = (void *)panel_at(m, r / PANEL_ROWS);
        for (int c = b.col; c < b.col + b.n_cols; c++)
            panel[place_in_panel(FORMAT_BF16, r, c)] = f32_to_bf16(*from++);
    }
}

static void store_bytes(const struct matrix *m, struct block b, const uint8_t *from,
                        int64_t from_stride)
{
    for (int r = b.row; r < b.row + b.n_rows; r++, from += from_stride) {
        uint8_t *to = (uint8_t *)panel_at(m, r / PANEL_ROWS) + 2 * (r % PANEL_ROWS) +
                      (size_t)b.col * PANEL_ROWS;
        int c = 0;
        for (; c + 2 <= b.n_cols; c += 2, to += 2 * PANEL_ROWS)
            memcpy(to, from + c, 2);
        if (c < b.n_cols)
            *to = from[c];
    }
}

static float *scale_of(const struct matrix *m, int row, int col)
{
    return m->scales + (size_t)(row / SCALE_BLOCK) * (size_t)ceil_div(m->cols, SCALE_BLOCK) +
           col / SCALE_BLOCK;
}

static void store_quantized(const struct matrix *m, struct block b, const float *from)
{
    uint8_t bytes[SCALE_BLOCK * SCALE_BLOCK];
    fp8_quantize(from, b.n_rows, b.n_cols, bytes, scale_of(m, b.row, b.col));
    store_bytes(m, b, bytes, b.n_cols);
}

/* The first NaN (0x7f, 0xff) of n bytes, or n.  Eight at a time: of bytes without their
 * sign only 0x7f carries into the top bit when 1 is added. */
static int find_fp8_nan(const uint8_t *bytes, int n)
{
    int c = 0;
    for (; c + 8 <= n; c += 8) {
        uint64_t v;
        memcpy(&v, bytes + c, sizeof(v));
        v = (v & 0x7f7f7f7f7f7f7f7fu) + 0x0101010101010101u;
        if (v & 0x8080808080808080u)
            break;
    }
    while (c < n && (bytes[c] & 0x7f) != 0x7f)
        c++;
    return c;
}

/* FP8 as it is stored: bytes and scale unchanged. */
static void copy_fp8(struct packing *p, struct block b)
{
    const struct linear_view *v = p->view;
    const uint8_t *from = (const uint8_t *)v->weight.data + (int64_t)b.row * v->cols + b.col;
    for (int r = 0; r < b.n_rows; r++) {
        int c = find_fp8_nan(from + r * v->cols, b.n_cols);
        if (c < b.n_cols)
            note_bad(&p->bad_element, (int64_t)(b.row + r) * v->cols + b.col + c);
    }
    float scale = view_scale(v, b.row, b.col);
    if (!isfinite(scale))
        note_bad(&p->bad_scale, scale_of(p->m, b.row, b.col) - p->m->scales);
    *scale_of(p->m, b.row, b.col) = scale;
    store_bytes(p->m, b, from, v->cols);
}

static bool is_our_fp8(const struct linear_view *v)
{
    return v->weight.dtype == DTYPE_F8_E4M3 &&
           (!v->scale.data || (v->block_rows == SCALE_BLOCK && v->block_cols == SCALE_BLOCK));
}

static void pack_strip(void *ctx, int strip)
{
    struct packing *p = ctx;
    struct matrix *m = p->m;
    struct block b = {.row = strip * SCALE_BLOCK};
    b.n_rows = min_int(SCALE_BLOCK, m->rows - b.row);
    for (; b.col < m->cols; b.col += SCALE_BLOCK) {
        b.n_cols = min_int(SCALE_BLOCK, m->cols - b.col);
        if (m->format == FORMAT_FP8 && is_our_fp8(p->view)) {
            copy_fp8(p, b);
            continue;
        }
        float block[SCALE_BLOCK * SCALE_BLOCK];
        read_block(p, b, block);
        if (m->format == FORMAT_F32)
            store_f32(m, b, block);
        else if (m->format == FORMAT_BF16)
            store_bf16(m, b, block);
        else if (atomic_load(&p->bad_element) == INT64_MAX)
            store_quantized(m, b, block);
    }
}

static enum weight_format format_for(enum weight_format want, enum dtype stored)
{
    if (want != FORMAT_NATIVE)
        return want;
    if (stored == DTYPE_F8_E4M3)
        return FORMAT_FP8;
    return stored == DTYPE_BF16 ? FORMAT_BF16 : FORMAT_F32;
}

static int check_view(const struct linear_view *v, struct err *e)
{
    enum dtype d = v->weight.dtype;
    if (d != DTYPE_F32 && d != DTYPE_F16 && d != DTYPE_BF16 && d != DTYPE_F8_E4M3)
        return err_set(e, E_UNIMPLEMENTED, "%s: weights of type %s", v->label, dtype_name(d));
    /* Column and row numbers, padded, are ints everywhere behind this door. */
    if (v->rows <= 0 || v->cols <= 0 || v->rows > INT_MAX - SCALE_BLOCK ||
        v->cols > INT_MAX - SCALE_BLOCK)
        return err_set(e, E_RANGE, "%s: [%" PRId64 ", %" PRId64 "] is not a size for a matrix",
                       v->label, v->rows, v->cols);
    size_t bytes;
    if (!mem_mul((size_t)v->rows, (size_t)v->cols, &bytes) ||
        !mem_mul(bytes, dtype_bytes(d), &bytes) || bytes != v->weight.size_bytes)
        return err_set(e, E_CORRUPT, "%s: %zu bytes for [%" PRId64 ", %" PRId64 "]", v->label,
                       v->weight.size_bytes, v->rows, v->cols);
    if (!v->scale.data)
        return 0;
    if (d != DTYPE_F8_E4M3 || v->scale.dtype != DTYPE_F32 || v->block_rows <= 0 ||
        v->block_cols <= 0)
        return err_set(e, E_CORRUPT, "%s: the scale does not fit the weights", v->label);
    int64_t n_scales = fp8_blocks(v->rows, v->block_rows) * fp8_blocks(v->cols, v->block_cols);
    if (v->scale.size_bytes / sizeof(float) != (size_t)n_scales)
        return err_set(e, E_CORRUPT, "%s: %zu bytes of scales, expected %" PRId64, v->label,
                       v->scale.size_bytes, n_scales * (int64_t)sizeof(float));
    return 0;
}

static int allocate(struct matrix *m, const char *label, struct err *e)
{
    size_t bytes;
    m->padded_cols = ceil_div(m->cols, COLS_MULTIPLE) * COLS_MULTIPLE;
    m->n_panels = ceil_div(m->rows, PANEL_ROWS);
    if (!mem_mul((size_t)m->padded_cols, PANEL_ROWS * element_bytes(m->format), &m->panel_bytes) ||
        !mem_mul(m->panel_bytes, (size_t)m->n_panels, &bytes))
        return err_set(e, E_RANGE, "%s: too large", label);
    m->panels = mem_try_aligned(bytes);
    if (!m->panels)
        return err_set(e, E_NOMEM, "%s: %zu bytes for packed weights", label, bytes);
    if (m->format != FORMAT_FP8)
        return 0;
    bytes = (size_t)ceil_div(m->rows, SCALE_BLOCK) * (size_t)ceil_div(m->cols, SCALE_BLOCK) *
            sizeof(float);
    m->scales = mem_try_aligned(bytes);
    if (!m->scales)
        return err_set(e, E_NOMEM, "%s: %zu bytes for scales", label, bytes);
    return 0;
}

static int check_packed(const struct packing *p, struct err *e)
{
    int64_t element = atomic_load(&p->bad_element), scale = atomic_load(&p->bad_scale);
    if (element != INT64_MAX)
        return err_set(e, E_CORRUPT, "%s: weight [%" PRId64 ", %" PRId64 "] is not a finite number",
                       p->view->label, element / p->view->cols, element % p->view->cols);
    if (scale != INT64_MAX)
        return err_set(e, E_CORRUPT, "%s: scale %" PRId64 " is not a finite number", p->view->label,
                       scale);
    return 0;
}

int matrix_pack(struct matrix *m, const struct linear_view *view, enum weight_format want,
                const struct compute *c, struct err *e)
{
    *m = (struct matrix){0};
    int rc = check_view(view, e);
    if (rc < 0)
        return rc;
    /* Without a scale the block size means nothing. */
    struct linear_view v = *view;
    if (!v.scale.data)
        v.block_rows = v.block_cols = SCALE_BLOCK;
    m->format = format_for(want, v.weight.dtype);
    m->rows = (int)v.rows;
    m->cols = (int)v.cols;
    rc = allocate(m, v.label, e);
    if (rc == 0) {
        struct packing p = {.m = m, .view = &v};
        atomic_init(&p.bad_element, INT64_MAX);
        atomic_init(&p.bad_scale, INT64_MAX);
        pool_run(c->pool, pack_strip, &p, ceil_div(m->n_panels, STRIP_PANELS));
        rc = check_packed(&p, e);
    }
    if (rc < 0)
        matrix_fini(m);
    return rc;
}

void matrix_fini(struct matrix *m)
{
    mem_free(m->panels);
    mem_free(m->scales);
    *m = (struct matrix){0};
}

size_t matrix_bytes(const struct matrix *m)
{
    size_t bytes = m->panel_bytes * (size_t)m->n_panels;
    if (m->format == FORMAT_FP8)
        bytes += (size_t)ceil_div(m->rows, SCALE_BLOCK) * (size_t)ceil_div(m->cols, SCALE_BLOCK) *
                 sizeof(float);
    return bytes;
}

void matrix_row(const struct matrix *m, int r, float *out)
{
    must(r >= 0 && r < m->rows);
    const void *panel = panel_at(m, r / PANEL_ROWS);
    for (int c = 0; c < m->cols; c++) {
        size_t at = place_in_panel(m->format, r, c);
        if (m->format == FORMAT_F32)
            out[c] = ((const float *)panel)[at];
        else if (m->format == FORMAT_BF16)
            out[c] = bf16_to_f32(((const uint16_t *)panel)[at]);
        else
            out[c] = fp8_decode(((const uint8_t *)panel)[at]) * *scale_of(m, r, c);
    }
}

/* ---- products ---- */

void matmul_range(const struct compute *c, const struct matrix *m, int first_panel, int n_panels,
                  const float *x, size_t x_stride, int n_rows, float *y, size_t y_stride)
{
    matmul_panels *run = m->format == FORMAT_F32    ? c->kernels->matmul_f32
                         : m->format == FORMAT_BF16 ? c->kernels->matmul_bf16
                                                    : c->kernels->matmul_fp8;
    run(m, first_panel, n_panels, x, x_stride, n_rows, y, y_stride);
}

struct product {
    const struct compute *c;
    const struct matrix *m;
    const float *x;
    float *y;
    size_t x_stride, y_stride;
    int n_rows;
    int panels_per_task, rows_per_task, n_row_blocks;
};

static void product_task(void *ctx, int task)
{
    const struct product *p = ctx;
    int panel = task / p->n_row_blocks * p->panels_per_task;
    int row = task % p->n_row_blocks * p->rows_per_task;
    matmul_range(p->c, p->m, panel, min_int(p->panels_per_task, p->m->n_panels - panel),
                 p->x + (size_t)row * p->x_stride, p->x_stride,
                 min_int(p->rows_per_task, p->n_rows - row), p->y + (size_t)row * p->y_stride,
                 p->y_stride);
}

static int split_product(struct product *p, int n_threads)
{
    int wanted = n_threads * TASKS_PER_THREAD, n_panels = p->m->n_panels;
    p->rows_per_task = ROWS_PER_TASK;
    while (p->rows_per_task > MIN_ROWS_PER_TASK &&
           (int64_t)ceil_div(n_panels, PANELS_AT_ONCE) * ceil_div(p->n_rows, p->rows_per_task) <
               n_threads)
        p->rows_per_task /= 2;
    p->n_row_blocks = ceil_div(p->n_rows, p->rows_per_task);
    int ranges = max_int(1, ceil_div(wanted, p->n_row_blocks));
    int panels = ceil_div(n_panels, ranges);
    /* A range that is much larger than the second-level cache would be read from memory
     * again by every block of rows. */
    if (p->n_row_blocks > 1)
        panels = min_int(panels, 2 * PANELS_AT_ONCE);
    p->panels_per_task = ceil_div(panels, PANELS_AT_ONCE) * PANELS_AT_ONCE;
    return ceil_div(n_panels, p->panels_per_task) * p->n_row_blocks;
}

void matmul(const struct compute *c, const struct matrix *m, const float *x, size_t x_stride,
            int n_rows, float *y, size_t y_stride)
{
    int64_t macs = (int64_t)m->rows * m->cols * n_rows;
    int n_threads = pool_threads(c->pool);
    if (n_threads == 1 || macs < SERIAL_MACS) {
        matmul_range(c, m, 0, m->n_panels, x, x_stride, n_rows, y, y_stride);
        return;
    }
    struct product p = {.c = c,
                        .m = m,
                        .x = x,
                        .y = y,
                        .x_stride = x_stride,
                        .y_stride = y_stride,
                        .n_rows = n_rows};
    int n_tasks = split_product(&p, n_threads);
    pool_run(c->pool, product_task, &p, n_tasks);
}

static void blas_single_threaded(void)
{
    openblas_set_num_threads(1);
}

int matmul_blas(const struct matrix *m, const float *x, size_t x_stride, int n_rows, float *y,
                size_t y_stride)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    must_zero(pthread_once(&once, blas_single_threaded));
    must(x_stride <= INT_MAX && y_stride <= INT_MAX);
    size_t bytes;
    if (!mem_mul((size_t)SCALE_BLOCK * sizeof(float), (size_t)m->cols, &bytes))
        return E_NOMEM;
    float *w = mem_try_aligned(bytes);
    if (!w)
        return E_NOMEM;
    for (int first = 0; first < m->rows; first += SCALE_BLOCK) {
        int n = min_int(SCALE_BLOCK, m->rows - first);
        for (int r = 0; r < n; r++)
            matrix_row(m, first + r, w + (size_t)r * (size_t)m->cols);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n_rows, n, m->cols, 1.0f, x,
                    (int)x_stride, w, m->cols, 0.0f, y + first, (int)y_stride);
    }
    mem_free(w);
    return 0;
}
