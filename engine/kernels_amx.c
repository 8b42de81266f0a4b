/* engine/kernels_amx.c - products of many int8 rows with q8 and q4 weights by AMX tiles; same
 * bits as kernels_quant.c.  Few rows are left to AVX-512.
 *
 * One tile instruction multiplies 16 rows x 64 columns by 64 columns x 16 weights, so fetching
 * and folding cost more than multiplying: the weights of one group stay in tile registers
 * while all rows pass by, two panels together, and the sums of one block of rows are folded
 * while the tiles of the next are at work.  q8 panels are tiles as they lie, q4 is unpacked
 * into the first-level cache.  All blocks have the same number of rows, at most 16; the last
 * one may overlap the one before, which computes some rows twice and needs no second shape.
 * A tile's shape belongs to the thread: set on entry, given back on return. */
#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/must.h"
#include "engine/kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    TILE_ROWS = 16,
    TILE_BYTES = 64, /* of one row */
    PAIR = 2,        /* panels at once in tile registers */
    PANELS_AT_ONCE = 4,
    ACC_ROW = PAIR * PANEL_ROWS,
    ROWS_IN_CACHE = 64,
    MAX_BLOCKS = ROWS_IN_CACHE / TILE_ROWS,
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

/* Tile registers: 0 and 1 hold sums, 2 and 3 rows, 4 to 7 weights. */
static void configure(int block_rows)
{
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = TILE_BYTES;
        c.rows[i] = (uint8_t)(i < 4 ? block_rows : TILE_ROWS);
    }
    /* The compiler does not know how much memory tile instructions read. */
    __asm__ volatile("" ::"r"(&c) : "memory");
    _tile_loadconfig(&c);
}

/* ---- one group ---- */

/* Up to four panels, one from each quarter of a range: long streams are read faster. */
struct four {
    int first, stride, n;
};

/* What a range of rows needs beside the weights. */
struct work {
    const struct rows *x;
    int n_blocks, block_rows;
    int first_row[MAX_BLOCKS];
    float *acc;     /* [panel / PAIR][block][TILE_ROWS][PAIR][16] */
    int32_t *spill; /* [2][TILE_ROWS][PAIR][16]: sums on their way into acc */
    int turn;
    /* The spilled sums that wait to be folded; NULL: none. */
    float *fold_acc;
    const float *fold_scales[PAIR], *fold_x;
    /* The two panels' next groups are fetched meanwhile: so many lines of each are left, and
     * go so many at a time with every row that is folded. */
    const char *fetch[PAIR];
    int fetch_left, fetch_each;
};

/* acc = fmaf(wscale * xscale, (float)isum, acc) */
INLINE void fold_one(__m512 scale, __m512 x_scale, const int32_t *sums, float *acc)
{
    __m512 s = _mm512_mul_ps(scale, x_scale), sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums));
    _mm512_store_ps(acc, _mm512_fmadd_ps(s, sum, _mm512_load_ps(acc)));
}

INLINE void fetch_some(struct work *k)
{
    for (int i = 0; i < k->fetch_each && k->fetch_left > 0; i++, k->fetch_left--)
        for (int j = 0; j < PAIR; j++) {
            _mm_prefetch(k->fetch[j], _MM_HINT_T0);
            k->fetch[j] += TILE_BYTES;
        }
}

/* Folds what waits. */
INLINE void fold(struct work *k)
{
    if (!k->fold_acc)
        return;
    const __m512 s0 = _mm512_load_ps(k->fold_scales[0]), s1 = _mm512_load_ps(k->fold_scales[1]);
    const int32_t *sums = k->spill + (k->turn ^ 1) * TILE_ROWS * ACC_ROW;
    const float *x_scale = k->fold_x;
    float *acc = k->fold_acc;
    for (int m = 0; m < k->block_rows; m++, sums += ACC_ROW, acc += ACC_ROW) {
        __m512 xs = _mm512_set1_ps(*x_scale);
        fetch_some(k);
        fold_one(s0, xs, sums, acc);
        fold_one(s1, xs, sums + PANEL_ROWS, acc + PANEL_ROWS);
        x_scale += k->x->scale_stride;
    }
}

/* Group g of two panels, whose weights are in tiles 4 and 6 (and 5 and 7: columns 64 to 127),
 * times all blocks of rows. */
INLINE void all_blocks(struct work *k, int g, const float *scales0, const float *scales1,
                       float *acc, bool is_q8)
{
    const struct rows *x = k->x;
    for (int b = 0; b < k->n_blocks; b++, acc += TILE_ROWS * ACC_ROW) {
        size_t row = (size_t)k->first_row[b];
        const int8_t *from = x->q8 + row * x->q8_stride + (size_t)(g * x->group);
        int32_t *spill = k->spill + k->turn * TILE_ROWS * ACC_ROW;
        _tile_loadd(2, from, x->q8_stride);
        _tile_zero(0);
        _tile_zero(1);
        _tile_dpbssd(0, 2, 4);
        _tile_dpbssd(1, 2, 6);
        if (is_q8) {
            _tile_loadd(3, from + TILE_BYTES, x->q8_stride);
            _tile_dpbssd(0, 3, 5);
            _tile_dpbssd(1, 3, 7);
        }
        _tile_stored(0, spill, ACC_ROW * sizeof(*spill));
        _tile_stored(1, spill + PANEL_ROWS, ACC_ROW * sizeof(*spill));
        fold(k);
        k->turn ^= 1;
        k->fold_acc = acc;
        k->fold_scales[0] = scales0;
        k->fold_scales[1] = scales1;
        k->fold_x = x->scales + row * x->scale_stride + g;
    }
}

static void fold_rest(struct work *k)
{
    fold(k);
    k->fold_acc = NULL;
}

/* Two panels at the same group; acc is that of the two. */
static void q8_group(struct work *k, int g, const char *const w[PAIR], float *acc)
{
    const struct q8_panel_group *p0 = (const void *)w[0], *p1 = (const void *)w[1];
    _tile_loadd(4, p0->q, TILE_BYTES);
    _tile_loadd(5, p0->q[TILE_ROWS], TILE_BYTES);
    _tile_loadd(6, p1->q, TILE_BYTES);
    _tile_loadd(7, p1->q[TILE_ROWS], TILE_BYTES);
    all_blocks(k, g, p0->scales, p1->scales, acc, true);
}

/* 64 columns of a panel as a tile of signed weights. */
INLINE void q4_unpack(const struct q4_panel_group *p, int8_t *out)
{
    const __m512i nibble = _mm512_set1_epi8(15), offset = _mm512_set1_epi8(Q4_OFFSET);
    for (int j = 0; j < Q4_GROUP / 8; j++, out += 2 * TILE_BYTES) {
        __m512i v = _mm512_load_si512(p->q[j]);
        __m512i high = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
        _mm512_store_si512(out, _mm512_sub_epi8(_mm512_and_si512(v, nibble), offset));
        _mm512_store_si512(out + TILE_BYTES, _mm512_sub_epi8(high, offset));
    }
}

static void q4_group(struct work *k, int g, const char *const w[PAIR], float *acc)
{
    _Alignas(64) int8_t unpacked[PAIR][TILE_ROWS * TILE_BYTES];
    const struct q4_panel_group *p0 = (const void *)w[0], *p1 = (const void *)w[1];
    q4_unpack(p0, unpacked[0]);
    q4_unpack(p1, unpacked[1]);
    __asm__ volatile("" ::"r"(unpacked) : "memory");
    _tile_loadd(4, unpacked[0], TILE_BYTES);
    _tile_loadd(6, unpacked[1], TILE_BYTES);
    all_blocks(k, g, p0->scales, p1->scales, acc, false);
}

/* ---- products ---- */

static void four_panels(const struct matrix *w, const struct four *f, struct work *k)
{
    bool is_q8 = w->format == FORMAT_Q8;
    size_t group_bytes = is_q8 ? sizeof(struct q8_panel_group) : sizeof(struct q4_panel_group);
    const char *at[PANELS_AT_ONCE];
    int lines = (int)(group_bytes / TILE_BYTES), n_rows = k->n_blocks * k->block_rows;
    k->fetch_each = (lines + n_rows - 1) / n_rows;
    for (int i = 0; i < PANELS_AT_ONCE; i++) {
        int panel = f->first + (i < f->n ? i * f->stride : 0);
        at[i] = (const char *)w->panels + (size_t)panel * w->panel_bytes;
    }
    for (int g = 0; g < w->padded_cols / w->group; g++)
        for (int i = 0; i < f->n; i += PAIR) {
            float *acc = k->acc + i / PAIR * ROWS_IN_CACHE * ACC_ROW;
            const char *pair[PAIR] = {at[i], at[i + 1]};
            k->fetch[0] = at[i] + group_bytes; /* may point past the matrix */
            k->fetch[1] = at[i + 1] + group_bytes;
            k->fetch_left = lines;
            (is_q8 ? q8_group : q4_group)(k, g, pair, acc);
            at[i] += group_bytes;
            at[i + 1] += group_bytes;
        }
    fold_rest(k);
}

/* Rows of W past the end are not written. */
static void store_panels(const struct matrix *w, const struct four *f, const struct work *k,
                         float *y, size_t y_stride)
{
    for (int i = 0; i < f->n; i++) {
        int first = (f->first + i * f->stride) * PANEL_ROWS;
        size_t bytes = (size_t)min_int(w->rows - first, PANEL_ROWS) * sizeof(float);
        for (int b = 0; b < k->n_blocks; b++) {
            const float *from = k->acc + (i / PAIR * ROWS_IN_CACHE + b * TILE_ROWS) * ACC_ROW +
                                i % PAIR * PANEL_ROWS;
            for (int m = 0; m < k->block_rows; m++)
                memcpy(y + (size_t)(k->first_row[b] + m) * y_stride + first, from + m * ACC_ROW,
                       bytes);
        }
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
    _Alignas(64) float acc[PANELS_AT_ONCE / PAIR * ROWS_IN_CACHE * ACC_ROW];
    _Alignas(64) int32_t spill[2 * TILE_ROWS * ACC_ROW];
    struct work k = {.acc = acc, .spill = spill};
    int quarter = (n_panels + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE;
    cut_rows(&k, x);
    configure(k.block_rows);
    for (int p = 0; p < quarter; p++) {
        struct four f = {first_panel + p, quarter, (n_panels - p + quarter - 1) / quarter};
        for (int i = 0; i < f.n; i += PAIR)
            memset(acc + i / PAIR * ROWS_IN_CACHE * ACC_ROW, 0,
                   (size_t)k.n_blocks * TILE_ROWS * ACC_ROW * sizeof(float));
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
