/* engine/kernels_amx.c - products of many int8 rows with q8 and q4 weights by AMX tiles; same
 * bits as kernels_quant.c.  Few rows are left to AVX-512.
 *
 * A tile instruction multiplies 16 rows x 64 columns by 64 columns x 16 weights.  Its results
 * come late and must be spilled and folded into floats after every group, which costs more
 * than multiplying.  So four tiles of sums are on their way together - two blocks of rows x two
 * panels, or one block x four panels - and while they are, the four before them are folded.
 * q8 panels are tiles as they lie, q4 is unpacked into the first-level cache.  All blocks have
 * the same number of rows, at most 16; the last one may overlap the one before, which computes
 * some rows twice and needs no second shape.
 * A tile's shape belongs to the thread: set on entry, given back on return. */
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/must.h"
#include "engine/kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    TILE_ROWS = 16,
    TILE_BYTES = 64, /* of one row */
    TILE_LANES = TILE_ROWS * PANEL_ROWS,
    SUM_TILES = 4,
    PAIR = 2,
    PANELS_AT_ONCE = 4,
    MAX_BLOCKS = 4,
    ROWS_IN_CACHE = MAX_BLOCKS * TILE_ROWS,
    FEWEST_ROWS_Q8 = 12, /* below, AVX-512 is as fast or faster */
    FEWEST_ROWS_Q4 = 4,
    Q4_OFFSET = 8
};

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* ---- tiles ---- */

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == 64, "as the instruction reads it");

/* Tile registers: 0 to 3 hold sums, 4 and 5 rows, 6 and 7 weights. */
static void configure(int block_rows)
{
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = TILE_BYTES;
        c.rows[i] = (uint8_t)(i < 6 ? block_rows : TILE_ROWS);
    }
    /* The compiler does not know how much memory tile instructions read. */
    __asm__ volatile("" ::"r"(&c) : "memory");
    _tile_loadconfig(&c);
}

/* ---- folding ---- */

/* Four tiles of sums; 0 and 1 are of the same rows, and so are 2 and 3. */
struct unit {
    float *acc[SUM_TILES];          /* [rows][16] */
    const float *scales[SUM_TILES]; /* [16] */
    const float *x_scales[PAIR];    /* one per row, scale_stride apart */
};

/* What a range of rows needs beside the weights. */
struct work {
    const struct rows *x;
    int n_blocks, block_rows;
    int first_row[MAX_BLOCKS];
    float *acc;        /* [PANELS_AT_ONCE][MAX_BLOCKS][TILE_ROWS][16] */
    int32_t *spill[2]; /* [SUM_TILES][TILE_ROWS][16], by turns */
    int turn;
    struct unit waits; /* for being folded; its sums are in the other spill */
    bool has_waiting;
    /* Fetched meanwhile: lines of the next group of some panels. */
    const char *fetch[PANELS_AT_ONCE];
    int n_fetch, fetch_left, fetch_each;
};

/* acc = fmaf(wscale * xscale, (float)isum, acc) */
INLINE void fold_row(__m512 scale, __m512 x_scale, const int32_t *sums, float *acc)
{
    __m512 s = _mm512_mul_ps(scale, x_scale), sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums));
    _mm512_store_ps(acc, _mm512_fmadd_ps(s, sum, _mm512_load_ps(acc)));
}

INLINE void fetch_some(struct work *k)
{
    for (int i = 0; i < k->fetch_each && k->fetch_left > 0; i++, k->fetch_left--)
        for (int j = 0; j < k->n_fetch; j++) {
            _mm_prefetch(k->fetch[j], _MM_HINT_T0);
            k->fetch[j] += TILE_BYTES;
        }
}

static void fold_waiting(struct work *k)
{
    const int32_t *sums = k->spill[k->turn ^ 1];
    const struct unit *u = &k->waits;
    if (!k->has_waiting)
        return;
    for (int i = 0; i < SUM_TILES; i += PAIR, sums += PAIR * TILE_LANES) {
        const __m512 s0 = _mm512_load_ps(u->scales[i]), s1 = _mm512_load_ps(u->scales[i + 1]);
        const float *x_scale = u->x_scales[i / PAIR];
        float *acc0 = u->acc[i], *acc1 = u->acc[i + 1];
        for (int m = 0; m < k->block_rows * PANEL_ROWS; m += PANEL_ROWS) {
            __m512 xs = _mm512_set1_ps(*x_scale);
            x_scale += k->x->scale_stride;
            fetch_some(k);
            fold_row(s0, xs, sums + m, acc0 + m);
            fold_row(s1, xs, sums + TILE_LANES + m, acc1 + m);
        }
    }
}

/* Spills the tiles of u; what waited before is folded while they are computed. */
INLINE void finish(struct work *k, const struct unit *u)
{
    fold_waiting(k);
    int32_t *spill = k->spill[k->turn];
    _tile_stored(0, spill, TILE_BYTES);
    _tile_stored(1, spill + TILE_LANES, TILE_BYTES);
    _tile_stored(2, spill + 2 * TILE_LANES, TILE_BYTES);
    _tile_stored(3, spill + 3 * TILE_LANES, TILE_BYTES);
    k->waits = *u;
    k->has_waiting = true;
    k->turn ^= 1;
}

/* ---- one group ---- */

/* One group of four panels: tiles of weights, one after the other, and scales. */
struct group {
    int index, n_tiles; /* tiles: columns / 64 */
    const int8_t *w[PANELS_AT_ONCE];
    const float *scales[PANELS_AT_ONCE];
};

INLINE const int8_t *rows_at(const struct work *k, const struct group *g, int block)
{
    return k->x->q8 + (size_t)k->first_row[block] * k->x->q8_stride +
           (size_t)(g->index * k->x->group);
}

INLINE const float *x_scales_at(const struct work *k, const struct group *g, int block)
{
    return k->x->scales + (size_t)k->first_row[block] * k->x->scale_stride + g->index;
}

INLINE float *acc_at(const struct work *k, int panel, int block)
{
    return k->acc + (panel * MAX_BLOCKS + block) * TILE_LANES;
}

INLINE void zero_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* Blocks b and b + 1 times panels p and p + 1. */
static void two_by_two(struct work *k, const struct group *g, int b, int p)
{
    const int8_t *x0 = rows_at(k, g, b), *x1 = rows_at(k, g, b + 1);
    const int8_t *w0 = g->w[p], *w1 = g->w[p + 1];
    size_t stride = k->x->q8_stride;
    struct unit u = {
        .acc = {acc_at(k, p, b), acc_at(k, p + 1, b), acc_at(k, p, b + 1), acc_at(k, p + 1, b + 1)},
        .scales = {g->scales[p], g->scales[p + 1], g->scales[p], g->scales[p + 1]},
        .x_scales = {x_scales_at(k, g, b), x_scales_at(k, g, b + 1)}};
    zero_sums();
    for (int i = 0; i < g->n_tiles; i++) {
        _tile_loadd(4, x0 + TILE_BYTES * i, stride);
        _tile_loadd(6, w0 + TILE_ROWS * TILE_BYTES * i, TILE_BYTES);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, w1 + TILE_ROWS * TILE_BYTES * i, TILE_BYTES);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, x1 + TILE_BYTES * i, stride);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    finish(k, &u);
}

/* Block b times all four panels. */
static void one_by_four(struct work *k, const struct group *g, int b)
{
    const int8_t *x = rows_at(k, g, b);
    const float *x_scales = x_scales_at(k, g, b);
    struct unit u = {.acc = {acc_at(k, 0, b), acc_at(k, 1, b), acc_at(k, 2, b), acc_at(k, 3, b)},
                     .scales = {g->scales[0], g->scales[1], g->scales[2], g->scales[3]},
                     .x_scales = {x_scales, x_scales}};
    zero_sums();
    for (int i = 0; i < g->n_tiles; i++) {
        _tile_loadd(4, x + TILE_BYTES * i, k->x->q8_stride);
        _tile_loadd(6, g->w[0] + TILE_ROWS * TILE_BYTES * i, TILE_BYTES);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, g->w[1] + TILE_ROWS * TILE_BYTES * i, TILE_BYTES);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(6, g->w[2] + TILE_ROWS * TILE_BYTES * i, TILE_BYTES);
        _tile_dpbssd(2, 4, 6);
        _tile_loadd(7, g->w[3] + TILE_ROWS * TILE_BYTES * i, TILE_BYTES);
        _tile_dpbssd(3, 4, 7);
    }
    finish(k, &u);
}

/* Says what unit u of n_units fetches: its share of the four panels' next groups at `from`. */
INLINE void plan_fetch(struct work *k, const char *const from[PANELS_AT_ONCE], size_t bytes,
                       int unit, int n_units)
{
    int first = PANELS_AT_ONCE * unit / n_units;
    k->n_fetch = PANELS_AT_ONCE * (unit + 1) / n_units - first;
    for (int j = 0; j < k->n_fetch; j++)
        k->fetch[j] = from[first + j];
    k->fetch_left = (int)(bytes / TILE_BYTES);
    k->fetch_each = (k->fetch_left + PAIR * k->block_rows - 1) / (PAIR * k->block_rows);
}

/* next, next_bytes: the groups that follow, which may lie past the matrix. */
static void one_group(struct work *k, const struct group *g, const char *const next[PANELS_AT_ONCE],
                      size_t next_bytes)
{
    int b = 0, unit = 0, n_units = k->n_blocks; /* at most four: 2 blocks make 2 units, 1 makes 1 */
    for (; b + 1 < k->n_blocks; b += 2)
        for (int p = 0; p < PANELS_AT_ONCE; p += PAIR) {
            plan_fetch(k, next, next_bytes, unit++, n_units);
            two_by_two(k, g, b, p);
        }
    if (b < k->n_blocks) {
        plan_fetch(k, next, next_bytes, unit, n_units);
        one_by_four(k, g, b);
    }
}

/* ---- products ---- */

/* Up to four panels, one from each quarter of a range: long streams are read faster.  A panel
 * that is not there stands for the first one. */
struct four {
    int first, stride, n;
};

static void q8_groups(const char *const at[PANELS_AT_ONCE], struct group *g)
{
    g->n_tiles = Q8_GROUP / TILE_BYTES;
    for (int i = 0; i < PANELS_AT_ONCE; i++) {
        const struct q8_panel_group *p = (const void *)at[i];
        g->w[i] = p->q[0][0];
        g->scales[i] = p->scales;
    }
}

/* 64 columns of each panel as a tile of signed weights in `room`. */
static void q4_groups(const char *const at[PANELS_AT_ONCE], struct group *g, int8_t *room)
{
    const __m512i nibble = _mm512_set1_epi8(15), offset = _mm512_set1_epi8(Q4_OFFSET);
    g->n_tiles = Q4_GROUP / TILE_BYTES;
    for (int i = 0; i < PANELS_AT_ONCE; i++) {
        const struct q4_panel_group *p = (const void *)at[i];
        g->w[i] = room;
        g->scales[i] = p->scales;
        for (int j = 0; j < Q4_GROUP / 8; j++, room += 2 * TILE_BYTES) {
            __m512i v = _mm512_load_si512(p->q[j]);
            __m512i high = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
            _mm512_store_si512(room, _mm512_sub_epi8(_mm512_and_si512(v, nibble), offset));
            _mm512_store_si512(room + TILE_BYTES, _mm512_sub_epi8(high, offset));
        }
    }
    __asm__ volatile("" ::"r"(room) : "memory"); /* see configure() */
}

static void four_panels(const struct matrix *w, const struct four *f, struct work *k)
{
    _Alignas(64) int8_t room[PANELS_AT_ONCE * TILE_ROWS * TILE_BYTES];
    bool is_q8 = w->format == FORMAT_Q8;
    size_t group_bytes = is_q8 ? sizeof(struct q8_panel_group) : sizeof(struct q4_panel_group);
    const char *at[PANELS_AT_ONCE];
    for (int i = 0; i < PANELS_AT_ONCE; i++) {
        int panel = f->first + (i < f->n ? i * f->stride : 0);
        at[i] = (const char *)w->panels + (size_t)panel * w->panel_bytes;
    }
    struct group g;
    for (g.index = 0; g.index < w->padded_cols / w->group; g.index++) {
        if (is_q8)
            q8_groups(at, &g);
        else
            q4_groups(at, &g, room);
        for (int i = 0; i < PANELS_AT_ONCE; i++)
            at[i] += group_bytes;
        one_group(k, &g, at, group_bytes);
    }
    fold_waiting(k);
    k->has_waiting = false;
}

/* Rows of W past the end are not written. */
static void store_panels(const struct matrix *w, const struct four *f, const struct work *k,
                         float *y, size_t y_stride)
{
    for (int i = 0; i < f->n; i++) {
        int first = (f->first + i * f->stride) * PANEL_ROWS;
        size_t bytes = (size_t)min_int(w->rows - first, PANEL_ROWS) * sizeof(float);
        for (int b = 0; b < k->n_blocks; b++)
            for (int m = 0; m < k->block_rows; m++)
                memcpy(y + (size_t)(k->first_row[b] + m) * y_stride + first,
                       acc_at(k, i, b) + m * PANEL_ROWS, bytes);
    }
}

/* Blocks of equal size over at most ROWS_IN_CACHE rows. */
static void cut_rows(struct work *k, const struct rows *x)
{
    k->x = x;
    k->n_blocks = (x->n_rows + TILE_ROWS - 1) / TILE_ROWS;
    k->block_rows = (x->n_rows + k->n_blocks - 1) / k->n_blocks;
    for (int b = 0; b < k->n_blocks; b++)
        k->first_row[b] = min_int(b * k->block_rows, x->n_rows - k->block_rows);
}

static void few_blocks(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                       float *y, size_t y_stride)
{
    _Alignas(64) float acc[PANELS_AT_ONCE * MAX_BLOCKS * TILE_LANES];
    _Alignas(64) int32_t spill[2][SUM_TILES * TILE_LANES];
    struct work k = {.acc = acc, .spill = {spill[0], spill[1]}};
    int quarter = (n_panels + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE;
    cut_rows(&k, x);
    configure(k.block_rows);
    for (int p = 0; p < quarter; p++) {
        struct four f = {first_panel + p, quarter, (n_panels - p + quarter - 1) / quarter};
        for (int i = 0; i < PANELS_AT_ONCE; i++)
            memset(acc_at(&k, i, 0), 0, (size_t)k.n_blocks * TILE_LANES * sizeof(float));
        four_panels(w, &f, &k);
        store_panels(w, &f, &k, y, y_stride);
    }
    _tile_release();
}

static matmul_panels *few_rows[FORMAT_COUNT]; /* of the level below */

static void matmul(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                   float *y, size_t y_stride)
{
    must(x->group == w->group);
    int fewest = w->format == FORMAT_Q8 ? FEWEST_ROWS_Q8 : FEWEST_ROWS_Q4;
    for (int first = 0; first < x->n_rows; first += ROWS_IN_CACHE) {
        struct rows part = rows_part(x, first, min_int(x->n_rows - first, ROWS_IN_CACHE));
        matmul_panels *run = part.n_rows < fewest ? few_rows[w->format] : few_blocks;
        run(w, first_panel, n_panels, &part, y + (size_t)first * y_stride, y_stride);
    }
}

void kernels_amx_fill(struct kernels *k)
{
    few_rows[FORMAT_Q8] = k->matmul[FORMAT_Q8];
    few_rows[FORMAT_Q4] = k->matmul[FORMAT_Q4];
    k->matmul[FORMAT_Q8] = matmul;
    k->matmul[FORMAT_Q4] = matmul;
}

bool kernels_amx_allowed(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
