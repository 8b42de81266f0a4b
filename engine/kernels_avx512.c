/* engine/kernels_avx512.c - the inner loops for AVX-512; same bits as kernels.c.
 *
 * Lanes hold rows of W: a panel is one register wide, so every sum is the chain that portable
 * C runs.  Four panels at a time, whatever the number of rows: four streams are read faster
 * than one, and one row has four chains to hide the latency of the FMA.  Tiles of up to 6 rows
 * x 4 panels go over a block of 128 columns while it lies in the first-level cache.
 *   f32, bf16   straight from the panels: a shift or a mask makes floats out of bf16
 *   fp8         to bf16, which holds every e4m3 exactly, by tables of 128 bytes: in registers
 *               for a single tile, else each block once into the first-level cache.  Without
 *               VBMI there is no such instruction, and AVX2's product stays
 * Accumulators are named variables, written out by macros: a to d are the panels, the number
 * is the row.  (The instruction for products of bf16 pairs is no chain of FMAs.) */
#include <immintrin.h>
#include <string.h>

#include "engine/kernels.h"
#include "engine/mathf_inline512.h"
#include "model/fp8.h"
#include "model/halves.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    LANES = 16,
    PANELS_AT_ONCE = 4,
    ACC_ROW = PANELS_AT_ONCE * PANEL_ROWS,
    ROWS_IN_CACHE = 64,
    LARGEST_TILE = 6,
    UNPACKED_PANEL_BYTES = SCALE_BLOCK * PANEL_ROWS * 2
};

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* The first n <= 16 lanes. */
INLINE __mmask16 lanes_mask(int n)
{
    return n >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1);
}

INLINE __m512i load_bits(const void *p)
{
    return _mm512_load_si512(p);
}

/* A block of columns of four panels, and n rows; acc [n rows][4 panels][16]. */
struct tile {
    const char *w[PANELS_AT_ONCE];       /* a panel that is not there stands for the first one */
    const float *scales[PANELS_AT_ONCE]; /* fp8 */
    int n_cols;
    const float *x; /* [n rows], from this column on */
    size_t x_stride;
    const char *next[PANELS_AT_ONCE]; /* the block that follows; may point past the matrix */
    const char *ahead[2];             /* what to fetch meanwhile, */
    size_t ahead_step;                /* so many bytes for each two columns */
};
typedef void tile_run(const struct tile *t, float *acc);

#define EACH_1(DO) DO(0)
#define EACH_2(DO) EACH_1(DO) DO(1)
#define EACH_3(DO) EACH_2(DO) DO(2)
#define EACH_4(DO) EACH_3(DO) DO(3)
#define EACH_5(DO) EACH_4(DO) DO(4)
#define EACH_6(DO) EACH_5(DO) DO(5)

#define ROW_X(i) const float *x##i = t->x + i * t->x_stride;
#define ROW_LOAD(i) \
    __m512 a##i = _mm512_load_ps(acc + ACC_ROW * i), \
           b##i = _mm512_load_ps(acc + ACC_ROW * i + 16), \
           c##i = _mm512_load_ps(acc + ACC_ROW * i + 32), \
           d##i = _mm512_load_ps(acc + ACC_ROW * i + 48);
#define ROW_ZERO(i) __m512 a##i = _mm512_setzero_ps(), b##i = a##i, c##i = a##i, d##i = a##i;
#define ROW_STORE(i) \
    _mm512_store_ps(acc + ACC_ROW * i, a##i); \
    _mm512_store_ps(acc + ACC_ROW * i + 16, b##i); \
    _mm512_store_ps(acc + ACC_ROW * i + 32, c##i); \
    _mm512_store_ps(acc + ACC_ROW * i + 48, d##i);
#define FOLD(at, scale, sum) \
    _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_set1_ps(scale), sum, _mm512_load_ps(at)));
#define ROW_FOLD(i) \
    FOLD(acc + ACC_ROW * i, *t->scales[0], a##i) \
    FOLD(acc + ACC_ROW * i + 16, *t->scales[1], b##i) \
    FOLD(acc + ACC_ROW * i + 32, *t->scales[2], c##i) \
    FOLD(acc + ACC_ROW * i + 48, *t->scales[3], d##i)
#define ROW_FMA(i, at) \
    { \
        __m512 xk = _mm512_set1_ps(x##i[at]); \
        a##i = _mm512_fmadd_ps(wa, xk, a##i); \
        b##i = _mm512_fmadd_ps(wb, xk, b##i); \
        c##i = _mm512_fmadd_ps(wc, xk, c##i); \
        d##i = _mm512_fmadd_ps(wd, xk, d##i); \
    }
#define ROW_FIRST(i) ROW_FMA(i, k)
#define ROW_SECOND(i) ROW_FMA(i, k + 1)
#define PANELS const char *from0 = t->w[0], *from1 = t->w[1], *from2 = t->w[2], *from3 = t->w[3];

/* ---- f32 ---- */

#define F32_AT(p) _mm512_load_ps((const float *)(const void *)(from##p + 64 * (size_t)k))
#define F32_TILE(n) \
    static void f32_tile_##n(const struct tile *t, float *acc) \
    { \
        PANELS EACH_##n(ROW_X) EACH_##n(ROW_LOAD) for (int k = 0; k < t->n_cols; k++) \
        { \
            __m512 wa = F32_AT(0), wb = F32_AT(1), wc = F32_AT(2), wd = F32_AT(3); \
            EACH_##n(ROW_FIRST) \
        } \
        EACH_##n(ROW_STORE) \
    }
F32_TILE(1)
F32_TILE(2)
F32_TILE(3)
F32_TILE(4)
F32_TILE(5)
F32_TILE(6)

/* ---- bf16: two columns in one load; with an odd number the last one is an even half ---- */

INLINE __m512 even_of(__m512i v)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

INLINE __m512 odd_of(__m512i v)
{
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000u)));
}

#define BF16_AT(half, p) half##_of(load_bits(from##p + 32 * (size_t)k))
#define BF16_LOOP(n) \
    int k = 0; \
    const char *ahead0 = t->ahead[0], *ahead1 = t->ahead[1]; \
    for (; k + 2 <= t->n_cols; k += 2) { \
        _mm_prefetch(ahead0, _MM_HINT_T0); \
        _mm_prefetch(ahead1, _MM_HINT_T0); \
        ahead0 += t->ahead_step, ahead1 += t->ahead_step; \
        __m512 wa = BF16_AT(even, 0), wb = BF16_AT(even, 1), wc = BF16_AT(even, 2), \
               wd = BF16_AT(even, 3); \
        EACH_##n(ROW_FIRST) wa = BF16_AT(odd, 0), wb = BF16_AT(odd, 1), wc = BF16_AT(odd, 2), \
                            wd = BF16_AT(odd, 3); \
        EACH_##n(ROW_SECOND) \
    } \
    if (k < t->n_cols) { \
        __m512 wa = BF16_AT(even, 0), wb = BF16_AT(even, 1), wc = BF16_AT(even, 2), \
               wd = BF16_AT(even, 3); \
        EACH_##n(ROW_FIRST) \
    }
#define BF16_TILE(n) \
    static void bf16_chain_##n(const struct tile *t, float *acc) \
    { \
        PANELS EACH_##n(ROW_X) EACH_##n(ROW_LOAD) BF16_LOOP(n) EACH_##n(ROW_STORE) \
    } \
    static void bf16_block_##n(const struct tile *t, float *acc) \
    { \
        PANELS EACH_##n(ROW_X) EACH_##n(ROW_ZERO) BF16_LOOP(n) EACH_##n(ROW_FOLD) \
    }
BF16_TILE(1)
BF16_TILE(2)
BF16_TILE(3)
BF16_TILE(4)
BF16_TILE(5)
BF16_TILE(6)

/* ---- fp8 ---- */

/* e4m3 without its sign as bf16, high and low byte; filled once. */
static _Alignas(64) uint8_t fp8_high[128], fp8_low[128];

static void fill_fp8_tables(void)
{
    for (int i = 0; i < 128; i++) {
        uint32_t bits = f32_to_bits(fp8_decode((uint8_t)i));
        fp8_high[i] = (uint8_t)(bits >> 24);
        fp8_low[i] = (uint8_t)(bits >> 16);
    }
}

#define VBMI __attribute__((target("avx512vbmi")))

struct fp8_tables {
    __m512i high[2], low[2], order, sign;
};

INLINE struct fp8_tables load_fp8_tables(void)
{
    return (struct fp8_tables){.high = {load_bits(fp8_high), load_bits(fp8_high + 64)},
                               .low = {load_bits(fp8_low), load_bits(fp8_low + 64)},
                               .order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7),
                               .sign = _mm512_set1_epi8((char)0x80)};
}

/* Four columns, [2][16][2] bytes, to bf16 in the same order. */
VBMI INLINE void fp8_to_bf16(const char *at, const struct fp8_tables *t, __m512i out[2])
{
    enum { FIRST_OR_BOTH_OTHERS = 0xf8 };
    __m512i v = _mm512_permutexvar_epi64(t->order, load_bits(at));
    __m512i high = _mm512_permutex2var_epi8(t->high[0], v, t->high[1]);
    __m512i low = _mm512_permutex2var_epi8(t->low[0], v, t->low[1]);
    high = _mm512_ternarylogic_epi32(high, v, t->sign, FIRST_OR_BOTH_OTHERS);
    out[0] = _mm512_unpacklo_epi8(low, high);
    out[1] = _mm512_unpackhi_epi8(low, high);
}

/* A block of columns of a panel; n_cols is rounded up to a multiple of four. */
VBMI static void unpack_fp8(const char *from, int n_cols, char *out)
{
    const struct fp8_tables tables = load_fp8_tables();
    for (int k = 0; k < n_cols; k += 4, from += 64, out += 128) {
        __m512i v[2];
        fp8_to_bf16(from, &tables, v);
        _mm512_store_si512(out, v[0]);
        _mm512_store_si512(out + 64, v[1]);
    }
}

/* One tile of rows: a multiple of four columns straight from the panels. */
#define FP8_X(i) \
    __m512 x##i##0 = _mm512_set1_ps(x##i[k]), x##i##1 = _mm512_set1_ps(x##i[k + 1]), \
           x##i##2 = _mm512_set1_ps(x##i[k + 2]), x##i##3 = _mm512_set1_ps(x##i[k + 3]);
#define FP8_ADD(sum, i) \
    sum##i = _mm512_fmadd_ps(w0, x##i##0, sum##i); \
    sum##i = _mm512_fmadd_ps(w1, x##i##1, sum##i); \
    sum##i = _mm512_fmadd_ps(w2, x##i##2, sum##i); \
    sum##i = _mm512_fmadd_ps(w3, x##i##3, sum##i);
#define FP8_ADD_a(i) FP8_ADD(a, i)
#define FP8_ADD_b(i) FP8_ADD(b, i)
#define FP8_ADD_c(i) FP8_ADD(c, i)
#define FP8_ADD_d(i) FP8_ADD(d, i)
#define FP8_PANEL(n, sum, p) \
    { \
        __m512i v[2]; \
        fp8_to_bf16(from##p + 16 * (size_t)k, &tables, v); \
        __m512 w0 = even_of(v[0]), w1 = odd_of(v[0]), w2 = even_of(v[1]), w3 = odd_of(v[1]); \
        EACH_##n(FP8_ADD_##sum) \
    }
#define FP8_ROWS(n) \
    VBMI static void fp8_rows_##n(const struct tile *t, float *acc) \
    { \
        const struct fp8_tables tables = load_fp8_tables(); \
        PANELS EACH_##n(ROW_X) EACH_##n(ROW_ZERO) for (int k = 0; k < t->n_cols; k += 4){ \
            EACH_##n(FP8_X) FP8_PANEL(n, a, 0) FP8_PANEL(n, b, 1) FP8_PANEL(n, c, 2) \
                FP8_PANEL(n, d, 3)} EACH_##n(ROW_FOLD) \
    }
FP8_ROWS(1)
FP8_ROWS(2)
FP8_ROWS(3)
FP8_ROWS(4)
FP8_ROWS(5)
FP8_ROWS(6)

/* ---- products ---- */

static tile_run *const f32_tiles[] = {NULL,       f32_tile_1, f32_tile_2, f32_tile_3,
                                      f32_tile_4, f32_tile_5, f32_tile_6};
static tile_run *const bf16_chains[] = {NULL,         bf16_chain_1, bf16_chain_2, bf16_chain_3,
                                        bf16_chain_4, bf16_chain_5, bf16_chain_6};
static tile_run *const bf16_blocks[] = {NULL,         bf16_block_1, bf16_block_2, bf16_block_3,
                                        bf16_block_4, bf16_block_5, bf16_block_6};

static tile_run *const fp8_rows[] = {NULL,       fp8_rows_1, fp8_rows_2, fp8_rows_3,
                                     fp8_rows_4, fp8_rows_5, fp8_rows_6};

/* Up to four panels, one from each quarter of a range: long streams are read faster. */
struct four {
    int first, stride, n;
};

/* Rows of W past the end are not written. */
static void store_panels(const struct matrix *w, const struct four *f, int n_rows, const float *acc,
                         float *y, size_t y_stride)
{
    for (int m = 0; m < n_rows; m++)
        for (int i = 0; i < f->n; i++) {
            int first = (f->first + i * f->stride) * PANEL_ROWS;
            memcpy(y + (size_t)m * y_stride + first, acc + m * ACC_ROW + i * PANEL_ROWS,
                   (size_t)min_int(w->rows - first, PANEL_ROWS) * sizeof(float));
        }
}

/* A block of columns for all rows, in tiles of nearly equal size.  The next block is fetched
 * while the first two tiles run, two panels each; a single tile leaves that to the processor. */
static void all_tiles(tile_run *const *tiles, struct tile *t, size_t column_bytes, int n_rows,
                      float *acc)
{
    const float *x = t->x;
    int n_tiles = (n_rows + LARGEST_TILE - 1) / LARGEST_TILE;
    for (int m = 0, done = 0, n; m < n_rows; m += n, done++) {
        bool fetches = n_tiles > 1 && done < 2;
        n = (n_rows - m + n_tiles - done - 1) / (n_tiles - done);
        t->ahead_step = fetches ? 2 * column_bytes : 0;
        for (int i = 0; i < 2; i++)
            t->ahead[i] = fetches ? t->next[2 * done + i] : t->w[0];
        tiles[n](t, acc + m * ACC_ROW);
        t->x += (size_t)n * t->x_stride;
    }
    t->x = x;
}

/* The first block of columns of four panels; column_bytes is of one panel. */
static struct tile tile_at(const struct matrix *w, const struct four *f, const struct rows *x,
                           size_t column_bytes)
{
    struct tile t = {.x = x->f32, .x_stride = x->f32_stride};
    int n_blocks = (w->cols + SCALE_BLOCK - 1) / SCALE_BLOCK;
    for (int i = 0; i < PANELS_AT_ONCE; i++) {
        int p = f->first + (i < f->n ? i * f->stride : 0);
        t.w[i] = (const char *)w->panels + (size_t)p * w->panel_bytes;
        t.next[i] = t.w[i] + column_bytes * SCALE_BLOCK;
        if (w->format == FORMAT_FP8)
            t.scales[i] = w->scales + (size_t)(p * PANEL_ROWS / SCALE_BLOCK) * (size_t)n_blocks;
    }
    return t;
}

static void next_block(struct tile *t, size_t column_bytes, bool has_scales)
{
    for (int i = 0; i < PANELS_AT_ONCE; i++) {
        t->w[i] = t->next[i];
        t->next[i] += column_bytes * SCALE_BLOCK;
        if (has_scales)
            t->scales[i]++;
    }
    t->x += SCALE_BLOCK;
}

static void four_panels_float(const struct matrix *w, const struct four *f, const struct rows *x,
                              float *acc)
{
    size_t column_bytes = w->panel_bytes / (size_t)w->padded_cols;
    tile_run *const *tiles = w->format == FORMAT_F32 ? f32_tiles : bf16_chains;
    struct tile t = tile_at(w, f, x, column_bytes);
    int block = x->n_rows == 1 ? w->cols : SCALE_BLOCK;
    for (int first = 0; first < w->cols; first += block) {
        t.n_cols = min_int(w->cols - first, block);
        all_tiles(tiles, &t, column_bytes, x->n_rows, acc);
        next_block(&t, column_bytes, false);
    }
}

static void four_panels_fp8(const struct matrix *w, const struct four *f, const struct rows *x,
                            float *acc)
{
    _Alignas(64) char unpacked[PANELS_AT_ONCE][UNPACKED_PANEL_BYTES];
    struct tile t = tile_at(w, f, x, PANEL_ROWS);
    for (int first = 0; first < w->cols; first += SCALE_BLOCK) {
        t.n_cols = min_int(w->cols - first, SCALE_BLOCK);
        if (x->n_rows <= LARGEST_TILE && t.n_cols % 4 == 0) {
            fp8_rows[x->n_rows](&t, acc);
        } else {
            struct tile u = t;
            for (int i = 0; i < PANELS_AT_ONCE; i++) {
                u.w[i] = unpacked[i];
                unpack_fp8(t.w[i], t.n_cols, unpacked[i]);
            }
            all_tiles(bf16_blocks, &u, PANEL_ROWS, x->n_rows, acc);
        }
        next_block(&t, PANEL_ROWS, true);
    }
}

static void matmul(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                   float *y, size_t y_stride)
{
    _Alignas(64) float acc[ROWS_IN_CACHE * ACC_ROW];
    int quarter = (n_panels + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE;
    for (int p = 0; p < quarter; p++) {
        struct four f = {first_panel + p, quarter, (n_panels - p + quarter - 1) / quarter};
        for (int first = 0; first < x->n_rows; first += ROWS_IN_CACHE) {
            struct rows part = rows_part(x, first, min_int(x->n_rows - first, ROWS_IN_CACHE));
            memset(acc, 0, (size_t)part.n_rows * ACC_ROW * sizeof(float));
            (w->format == FORMAT_FP8 ? four_panels_fp8 : four_panels_float)(w, &f, &part, acc);
            store_panels(w, &f, part.n_rows, acc, y + (size_t)first * y_stride, y_stride);
        }
    }
}

/* ---- element by element: what AVX2 does as fast is not here ---- */

static void swiglu(float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_mask(n - i);
        __m512 v = mathf_silu16(_mm512_maskz_loadu_ps(mask, gate + i));
        v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, up + i));
        _mm512_mask_storeu_ps(gate + i, mask, v);
    }
}

static void swiglu_oai(float *gate, const float *up, int n, const struct activation *a)
{
    /* min(x, y) is "x < y ? x : y", max likewise: a NaN in y stays. */
    const __m512 limit = _mm512_set1_ps(a->limit), lowest = _mm512_set1_ps(-a->limit);
    const __m512 alpha = _mm512_set1_ps(a->alpha), beta = _mm512_set1_ps(a->beta);
    for (int i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_mask(n - i);
        __m512 g = _mm512_min_ps(limit, _mm512_maskz_loadu_ps(mask, gate + i));
        __m512 u = _mm512_min_ps(limit, _mm512_maskz_loadu_ps(mask, up + i));
        u = _mm512_max_ps(lowest, u);
        __m512 v = _mm512_mul_ps(g, mathf_sigmoid16(_mm512_mul_ps(alpha, g)));
        _mm512_mask_storeu_ps(gate + i, mask, _mm512_mul_ps(v, _mm512_add_ps(u, beta)));
    }
}

static void exp_each(const float *x, int n, float *out)
{
    for (int i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_mask(n - i);
        _mm512_mask_storeu_ps(out + i, mask, mathf_exp16(_mm512_maskz_loadu_ps(mask, x + i)));
    }
}

static void sigmoid_each(const float *x, int n, float *out)
{
    for (int i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_mask(n - i);
        _mm512_mask_storeu_ps(out + i, mask, mathf_sigmoid16(_mm512_maskz_loadu_ps(mask, x + i)));
    }
}

void kernels_avx512_fill(struct kernels *k)
{
    k->matmul[FORMAT_F32] = matmul;
    k->matmul[FORMAT_BF16] = matmul;
    if (__builtin_cpu_supports("avx512vbmi")) {
        fill_fp8_tables();
        k->matmul[FORMAT_FP8] = matmul;
    }
    k->swiglu = swiglu;
    k->swiglu_oai = swiglu_oai;
    k->exp = exp_each;
    k->sigmoid = sigmoid_each;
}
