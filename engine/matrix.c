/* engine/matrix.c - see matrix.h.
 *
 * Packing works on strips of 128 rows (8 panels), so that an FP8 block lies in one task.
 * Owner: whoever loads; with a pool its threads take a strip each. */
#include "engine/matrix.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/quantise.h"
#include "model/fp8.h"
#include "model/halves.h"

enum {
    STRIP_PANELS = SCALE_BLOCK / PANEL_ROWS,
    COLS_MULTIPLE = 4,
    /* A matrix that owns its memory takes it in huge pages from this size on. */
    HUGE_BYTES = 2 << 20,
    COPY_BYTES = 1 << 20,
};

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* ---- packing ---- */

struct packing {
    struct matrix *m;
    const struct linear_view *view;
    const struct kernels *kernels;
    _Atomic int64_t bad_element; /* lowest that is not finite; INT64_MAX if none */
    _Atomic int64_t bad_scale;
};

static void note_bad(_Atomic int64_t *lowest, int64_t index)
{
    int64_t seen = atomic_load(lowest);
    while (index < seen && !atomic_compare_exchange_weak(lowest, &seen, index)) {
    }
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

/* A run of one row with one scale, to f32. */
static void read_run(struct packing *p, int row, int col, int n, float *out)
{
    const struct linear_view *v = p->view;
    int64_t first = (int64_t)row * v->cols + col;
    float scale = view_scale(v, row, col);
    if (v->weight.dtype == DTYPE_F8_E4M3) {
        const uint8_t *from = (const uint8_t *)v->weight.data + first;
        for (int i = 0; i < n; i++)
            out[i] = fp8_decode(from[i]) * scale;
        /* FP8 that is a number stays one with a scale that leaves the largest one. */
        if (find_fp8_nan(from, n) == n && isfinite(scale * FP8_MAX))
            return;
    } else {
        tensor_read_f32(&v->weight, first, n, out);
    }
    for (int i = 0; i < n; i++)
        if (!isfinite(out[i])) {
            note_bad(&p->bad_element, first + i);
            return;
        }
}

/* Reads a block as f32 [n_rows][n_cols] into `out`, scales applied. */
static void read_block(struct packing *p, struct block b, float *out)
{
    int unit = p->view->block_cols;
    for (int r = b.row; r < b.row + b.n_rows; r++)
        for (int col = b.col, end = b.col + b.n_cols; col < end;) {
            int n = min_int(end - col, unit - col % unit);
            read_run(p, r, col, n, out);
            out += n;
            col += n;
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

static void store_quantized(const struct packing *p, struct block b, const float *from)
{
    uint8_t bytes[SCALE_BLOCK * SCALE_BLOCK];
    float *scale = scale_of(p->m, b.row, b.col);
    /* MXFP8 has powers of two, which keep its weights' four bits. */
    if (p->view->scale.data && p->view->scale.dtype == DTYPE_F8_E8M0)
        fp8_quantize_powers(from, b.n_rows, b.n_cols, bytes, scale);
    else
        fp8_quantize(from, b.n_rows, b.n_cols, bytes, scale);
    store_bytes(p->m, b, bytes, b.n_cols);
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
           (!v->scale.data || (v->scale.dtype == DTYPE_F32 && v->block_rows == SCALE_BLOCK &&
                               v->block_cols == SCALE_BLOCK));
}

/* ---- integer formats ---- */

static void store_q8(const struct packing *p, struct block b, const float *from)
{
    const struct matrix *m = p->m;
    for (int r = b.row; r < b.row + b.n_rows; r++, from += b.n_cols) {
        struct q8_panel_group *group =
            (struct q8_panel_group *)(void *)panel_at(m, r / PANEL_ROWS) + b.col / Q8_GROUP;
        int8_t q[Q8_GROUP];
        int row = r % PANEL_ROWS;
        group->scales[row] =
            quantise_weights(p->kernels, FORMAT_Q8, from, b.n_cols, QUANTISE_BEST, q);
        for (int k = 0; k < Q8_GROUP; k += 4)
            memcpy(group->q[k / 4][row], q + k, 4);
    }
}

/* Column 8j + i and column 8j + 4 + i share a byte, each as value + 8. */
static void store_nibbles(struct q4_panel_group *group, int row, const int8_t *q)
{
    for (int j = 0; j < Q4_GROUP / 8; j++) {
        uint64_t eight;
        memcpy(&eight, q + 8 * j, sizeof(eight));
        eight = (eight & 0x0f0f0f0f0f0f0f0fu) ^ 0x0808080808080808u; /* + 8 in four bits */
        uint32_t pairs = (uint32_t)eight | (uint32_t)(eight >> 32) << 4;
        memcpy(group->q[j][row], &pairs, sizeof(pairs));
    }
}

static void store_q4(const struct packing *p, struct block b, const float *from)
{
    const struct matrix *m = p->m;
    for (int r = b.row; r < b.row + b.n_rows; r++, from += b.n_cols)
        for (int col = 0; col < b.n_cols; col += Q4_GROUP) {
            struct q4_panel_group *group =
                (struct q4_panel_group *)(void *)panel_at(m, r / PANEL_ROWS) +
                (b.col + col) / Q4_GROUP;
            int8_t q[Q4_GROUP];
            group->scales[r % PANEL_ROWS] =
                quantise_weights(p->kernels, FORMAT_Q4, from + col,
                                 min_int(Q4_GROUP, b.n_cols - col), QUANTISE_BEST, q);
            store_nibbles(group, r % PANEL_ROWS, q);
        }
}

/* Rows and columns past the end are zeros, which q4 writes as 8. */
static void pad_q4(const struct matrix *m)
{
    struct q4_panel_group zero = {{0}, {{{0}}}};
    memset(zero.q, 0x88, sizeof(zero.q));
    if (m->rows % PANEL_ROWS == 0)
        return;
    struct q4_panel_group *last = (void *)panel_at(m, m->n_panels - 1);
    for (int g = 0; g < m->padded_cols / Q4_GROUP; g++)
        last[g] = zero;
}

/* ---- a strip ---- */

static void pack_block(struct packing *p, struct block b)
{
    struct matrix *m = p->m;
    if (m->format == FORMAT_FP8 && is_our_fp8(p->view)) {
        copy_fp8(p, b);
        return;
    }
    float block[SCALE_BLOCK * SCALE_BLOCK];
    read_block(p, b, block);
    if (atomic_load(&p->bad_element) != INT64_MAX)
        return;
    switch (m->format) {
    case FORMAT_F32:
        store_f32(m, b, block);
        break;
    case FORMAT_BF16:
        store_bf16(m, b, block);
        break;
    case FORMAT_FP8:
        store_quantized(p, b, block);
        break;
    case FORMAT_Q8:
        store_q8(p, b, block);
        break;
    case FORMAT_Q4:
        store_q4(p, b, block);
        break;
    default:
        unreachable();
    }
}

static void pack_strip(void *ctx, int strip)
{
    struct packing *p = ctx;
    struct block b = {.row = strip * SCALE_BLOCK};
    b.n_rows = min_int(SCALE_BLOCK, p->m->rows - b.row);
    for (; b.col < p->m->cols; b.col += SCALE_BLOCK) {
        b.n_cols = min_int(SCALE_BLOCK, p->m->cols - b.col);
        pack_block(p, b);
    }
}

/* ---- sizes ---- */

static size_t element_bytes(enum weight_format f)
{
    return f == FORMAT_F32 ? sizeof(float) : f == FORMAT_BF16 ? sizeof(uint16_t) : 1;
}

static size_t scales_bytes(const struct matrix *m)
{
    if (m->format != FORMAT_FP8)
        return 0;
    return (size_t)ceil_div(m->rows, SCALE_BLOCK) * (size_t)ceil_div(m->cols, SCALE_BLOCK) *
           sizeof(float);
}

int matrix_layout(struct matrix *m, enum weight_format format, int64_t rows, int64_t cols,
                  size_t *bytes, struct err *e)
{
    must(format > FORMAT_NATIVE && format < FORMAT_COUNT);
    *m = (struct matrix){.format = format, .group = format_group(format)};
    /* Column and row numbers, padded, are ints everywhere behind this door. */
    if (rows <= 0 || cols <= 0 || rows > INT_MAX - SCALE_BLOCK || cols > INT_MAX - SCALE_BLOCK)
        return err_set(e, E_RANGE, "[%" PRId64 ", %" PRId64 "] is not a size for a matrix", rows,
                       cols);
    m->rows = (int)rows;
    m->cols = (int)cols;
    m->n_panels = ceil_div(m->rows, PANEL_ROWS);
    int unit = m->group ? m->group : COLS_MULTIPLE;
    m->padded_cols = ceil_div(m->cols, unit) * unit;
    size_t units = (size_t)(m->padded_cols / unit);
    size_t unit_bytes = format == FORMAT_Q8   ? sizeof(struct q8_panel_group)
                        : format == FORMAT_Q4 ? sizeof(struct q4_panel_group)
                                              : COLS_MULTIPLE * PANEL_ROWS * element_bytes(format);
    size_t all;
    if (!mem_mul(units, unit_bytes, &m->panel_bytes) ||
        !mem_mul(m->panel_bytes, (size_t)m->n_panels, &all) ||
        !mem_add(all, mem_round_up(scales_bytes(m), MEM_ALIGN), bytes))
        return err_set(e, E_RANGE, "[%" PRId64 ", %" PRId64 "] is too large", rows, cols);
    return 0;
}

size_t matrix_bytes(const struct matrix *m)
{
    return m->panel_bytes * (size_t)m->n_panels + mem_round_up(scales_bytes(m), MEM_ALIGN);
}

enum weight_format matrix_format(const struct linear_view *view, enum weight_format want)
{
    if (want != FORMAT_NATIVE)
        return want;
    if (view->packed)
        return view->packed_format;
    /* No kernels multiply MXFP8 itself; bf16 holds its weights exactly (model/mx.h). */
    if (view->weight.dtype == DTYPE_F8_E4M3)
        return view->scale.dtype == DTYPE_F8_E8M0 ? FORMAT_BF16 : FORMAT_FP8;
    return view->weight.dtype == DTYPE_BF16 ? FORMAT_BF16 : FORMAT_F32;
}

static int view_layout(struct matrix *m, const struct linear_view *v, enum weight_format want,
                       size_t *bytes, struct err *e)
{
    if (matrix_layout(m, matrix_format(v, want), v->rows, v->cols, bytes, e) < 0)
        return err_prefix(e, "%s", v->label);
    return 0;
}

int matrix_view_bytes(const struct linear_view *view, enum weight_format want, size_t *bytes,
                      struct err *e)
{
    struct matrix m;
    int rc = view_layout(&m, view, want, bytes, e);
    if (rc == 0 && view->packed && !view->copies_packed)
        *bytes = 0;
    return rc;
}

/* ---- the door ---- */

static int check_stored(const struct linear_view *v, struct err *e)
{
    enum dtype d = v->weight.dtype;
    if (d != DTYPE_F32 && d != DTYPE_F16 && d != DTYPE_BF16 && d != DTYPE_F8_E4M3)
        return err_set(e, E_UNIMPLEMENTED, "%s: weights of type %s", v->label, dtype_name(d));
    size_t bytes;
    if (!mem_mul((size_t)v->rows, (size_t)v->cols, &bytes) ||
        !mem_mul(bytes, dtype_bytes(d), &bytes) || bytes != v->weight.size_bytes)
        return err_set(e, E_CORRUPT, "%s: %zu bytes for [%" PRId64 ", %" PRId64 "]", v->label,
                       v->weight.size_bytes, v->rows, v->cols);
    if (!v->scale.data)
        return 0;
    bool is_scale = v->scale.dtype == DTYPE_F32 || v->scale.dtype == DTYPE_F8_E8M0;
    if (d != DTYPE_F8_E4M3 || !is_scale || v->block_rows <= 0 || v->block_cols <= 0)
        return err_set(e, E_CORRUPT, "%s: the scale does not fit the weights", v->label);
    int64_t n_scales = fp8_blocks(v->rows, v->block_rows) * fp8_blocks(v->cols, v->block_cols);
    size_t scale_bytes = dtype_bytes(v->scale.dtype);
    if (v->scale.size_bytes / scale_bytes != (size_t)n_scales)
        return err_set(e, E_CORRUPT, "%s: %zu bytes of scales, expected %" PRId64, v->label,
                       v->scale.size_bytes, n_scales * (int64_t)scale_bytes);
    return 0;
}

static int check_packed(const struct linear_view *v, const struct matrix *m, size_t bytes,
                        struct err *e)
{
    if (v->packed_format != m->format)
        return err_set(e, E_PRECONDITION,
                       "%s: is packed as %s, not as %s: ask for format %s, or pack the checkpoint "
                       "again with --format %s",
                       v->label, format_name(v->packed_format), format_name(m->format),
                       format_name(v->packed_format), format_name(m->format));
    if (v->packed_bytes != bytes)
        return err_set(e, E_CORRUPT,
                       "%s: %zu packed bytes, [%" PRId64 ", %" PRId64 "] in %s has %zu", v->label,
                       v->packed_bytes, v->rows, v->cols, format_name(m->format), bytes);
    if ((uintptr_t)v->packed % MEM_ALIGN != 0)
        return err_set(e, E_CORRUPT, "%s: packed weights do not begin at a multiple of %d bytes",
                       v->label, MEM_ALIGN);
    return 0;
}

/* Panels and scales in one run. */
static void place(struct matrix *m, void *run)
{
    m->panels = run;
    if (m->format == FORMAT_FP8)
        m->scales = (void *)((char *)run + m->panel_bytes * (size_t)m->n_panels);
}

static int take_memory(struct matrix *m, const char *label, void *room, size_t bytes, struct err *e)
{
    void *run = room;
    if (!room)
        run = bytes >= HUGE_BYTES ? mem_weights(bytes) : mem_try_aligned(bytes);
    if (!run)
        return err_set(e, E_NOMEM, "%s: %zu bytes for packed weights", label, bytes);
    must((uintptr_t)run % MEM_ALIGN == 0);
    m->is_borrowed = room != NULL;
    place(m, run);
    return 0;
}

static int check_finite(const struct packing *p, struct err *e)
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

static int convert(struct matrix *m, const struct linear_view *view, const struct compute *c,
                   struct err *e)
{
    /* Without a scale the block size means nothing. */
    struct linear_view v = *view;
    if (!v.scale.data)
        v.block_rows = v.block_cols = SCALE_BLOCK;
    struct packing p = {.m = m, .view = &v, .kernels = c->kernels};
    atomic_init(&p.bad_element, INT64_MAX);
    atomic_init(&p.bad_scale, INT64_MAX);
    if (m->format == FORMAT_Q4)
        pad_q4(m);
    pool_run(c->pool, pack_strip, &p, ceil_div(m->n_panels, STRIP_PANELS));
    return check_finite(&p, e);
}

struct copying {
    char *to;
    const char *from;
    size_t bytes;
};

static void copy_part(void *ctx, int part)
{
    const struct copying *copy = ctx;
    size_t at = (size_t)part * COPY_BYTES, left = copy->bytes - at;
    memcpy(copy->to + at, copy->from + at, left < COPY_BYTES ? left : COPY_BYTES);
}

int matrix_pack(struct matrix *m, const struct linear_view *view, enum weight_format want,
                void *room, const struct compute *c, struct err *e)
{
    size_t bytes;
    int rc = view_layout(m, view, want, &bytes, e);
    if (rc == 0)
        rc = view->packed ? check_packed(view, m, bytes, e) : check_stored(view, e);
    if (rc == 0 && view->packed && !view->copies_packed) {
        void *mapped;
        memcpy(&mapped, &view->packed, sizeof(mapped)); /* nobody writes through a matrix */
        m->is_borrowed = true;
        place(m, mapped);
        return 0;
    }
    if (rc == 0)
        rc = take_memory(m, view->label, room, bytes, e);
    if (rc == 0 && view->packed) {
        struct copying copy = {.to = m->panels, .from = view->packed, .bytes = bytes};
        must(bytes / COPY_BYTES < INT_MAX);
        pool_run(c->pool, copy_part, &copy, (int)((bytes + COPY_BYTES - 1) / COPY_BYTES));
    } else if (rc == 0) {
        rc = convert(m, view, c, e);
    }
    if (rc < 0)
        matrix_fini(m);
    return rc;
}

void matrix_fini(struct matrix *m)
{
    size_t bytes = matrix_bytes(m);
    if (!m->is_borrowed && m->panels && bytes >= HUGE_BYTES)
        mem_weights_free(m->panels, bytes);
    else if (!m->is_borrowed)
        mem_free(m->panels);
    *m = (struct matrix){0};
}

static float integer_weight(const struct matrix *m, const void *panel, int row, int col)
{
    int k = col % m->group;
    if (m->format == FORMAT_Q8) {
        const struct q8_panel_group *g = (const struct q8_panel_group *)panel + col / Q8_GROUP;
        return g->scales[row] * (float)g->q[k / 4][row][k % 4];
    }
    const struct q4_panel_group *g = (const struct q4_panel_group *)panel + col / Q4_GROUP;
    int pair = g->q[k / 8][row][k % 4];
    return g->scales[row] * (float)((k % 8 < 4 ? pair & 15 : pair >> 4) - 8);
}

void matrix_row(const struct matrix *m, int r, float *out)
{
    must(r >= 0 && r < m->rows);
    const void *panel = panel_at(m, r / PANEL_ROWS);
    for (int c = 0; c < m->cols; c++) {
        size_t at = place_in_panel(m->format, r, c);
        if (m->group)
            out[c] = integer_weight(m, panel, r % PANEL_ROWS, c);
        else if (m->format == FORMAT_F32)
            out[c] = ((const float *)panel)[at];
        else if (m->format == FORMAT_BF16)
            out[c] = bf16_to_f32(((const uint16_t *)panel)[at]);
        else
            out[c] = fp8_decode(((const uint8_t *)panel)[at]) * *scale_of(m, r, c);
    }
}
