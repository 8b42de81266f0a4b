/* engine/kernels_avx2.c - the inner loops for AVX2 + FMA + F16C; same bits as kernels.c.
 *
 * Lanes hold rows of W, so every sum is the chain that portable C runs.  Two ways through
 * a product:
 *   one row     four panels at a time, weights straight from memory into registers: four
 *               streams are read faster than one, and 8 chains hide the FMA's latency.  Each
 *               stream is a quarter of the range: the longer it goes on, the faster
 *   more rows   one panel at a time; a block of 128 columns is decoded once into the
 *               first-level cache, then tiles of up to 6 rows x 16 weights go over it
 * Accumulators are named variables, written out by macros: an array of them that the
 * compiler does not take apart would live in memory. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "base/must.h"
#include "engine/combine.h"
#include "engine/kernels.h"
#include "engine/mathf.h"
#include "engine/mathf_inline.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    LANES = 16,
    VECTOR = 8,
    ROWS_IN_CACHE = 64,
    PANELS_AT_ONCE = 4,
    FP8_FEW_ROWS = 3, /* so many of them are done before a panel is unpacked */
    TILE_ROWS = 4,
    LARGEST_TILE = 6
};

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

INLINE __m256i load_bits(const void *p)
{
    return _mm256_load_si256(p);
}

static const char *panel_at(const struct matrix *w, int panel)
{
    return (const char *)w->panels + (size_t)panel * w->panel_bytes;
}

/* FP8: the scales of a panel, one per block of columns. */
static const float *block_scales(const struct matrix *w, int panel)
{
    int n_blocks = (w->cols + SCALE_BLOCK - 1) / SCALE_BLOCK;
    return w->scales + (size_t)(panel * PANEL_ROWS / SCALE_BLOCK) * (size_t)n_blocks;
}

/* The 16 results of a panel for one row; rows of W past the end are not written. */
static void store_panel(const struct matrix *w, int panel, const float *acc, float *y)
{
    int first = panel * PANEL_ROWS;
    memcpy(y + first, acc, (size_t)min_int(w->rows - first, PANEL_ROWS) * sizeof(float));
}

/* The last n < 8 floats; the other lanes are zero. */
INLINE __m256 load_part(const float *from, int n)
{
    _Alignas(32) float part[VECTOR] = {0};
    memcpy(part, from, (size_t)n * sizeof(float));
    return _mm256_load_ps(part);
}

INLINE void store_part(float *to, __m256 v, int n)
{
    _Alignas(32) float part[VECTOR];
    _mm256_store_ps(part, v);
    memcpy(to, part, (size_t)n * sizeof(float));
}

/* ---- weights to floats ---- */

INLINE __m256 bf16_even(__m256i v)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}

INLINE __m256 bf16_odd(__m256i v)
{
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000u)));
}

/* E4M3 to f16: the exponent has one bit more there and a bias larger by 8, so with the bits
 * in place the value is 2^-8 of what is meant, subnormals included. */
#define FP8_F16_FACTOR 256.0f /* 2^8 */

INLINE __m256i fp8_even_as_f16(__m256i v)
{
    return _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 1),
                            _mm256_set1_epi16((short)0xbf80));
}

INLINE __m256i fp8_odd_as_f16(__m256i v)
{
    return _mm256_and_si256(_mm256_srai_epi16(v, 1), _mm256_set1_epi16((short)0xbf80));
}

INLINE __m256 f16_low(__m256i v)
{
    return _mm256_cvtph_ps(_mm256_castsi256_si128(v));
}

INLINE __m256 f16_high(__m256i v)
{
    return _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1));
}

/* ---- one row ---- */

#define EACH_1(DO) DO(0)
#define EACH_2(DO) DO(0) DO(1)
#define EACH_3(DO) EACH_2(DO) DO(2)
#define EACH_4(DO) EACH_3(DO) DO(3)
#define EACH_5(DO) EACH_4(DO) DO(4)
#define EACH_6(DO) EACH_5(DO) DO(5)

#define ACC_ZERO(i) __m256 low##i = _mm256_setzero_ps(), high##i = _mm256_setzero_ps();
#define ACC_STORE(i) \
    _mm256_store_ps(acc + 16 * i, low##i); \
    _mm256_store_ps(acc + 16 * i + 8, high##i);

/* acc [n panels][16] = panels x one row; `from` is the first panel. */
#define F32_STEP(i) \
    { \
        const float *w = (const float *)(const void *)(from + i * panel_bytes) + 16 * (size_t)k; \
        low##i = _mm256_fmadd_ps(_mm256_load_ps(w), x0, low##i); \
        high##i = _mm256_fmadd_ps(_mm256_load_ps(w + 8), x0, high##i); \
    }
#define F32_ROW(n) \
    static void f32_row_##n(const char *from, size_t panel_bytes, int cols, const float *x, \
                            float *acc) \
    { \
        EACH_##n(ACC_ZERO) for (int k = 0; k < cols; k++) \
        { \
            __m256 x0 = _mm256_broadcast_ss(x + k); \
            EACH_##n(F32_STEP) \
        } \
        EACH_##n(ACC_STORE) \
    }
F32_ROW(1)
F32_ROW(2)
F32_ROW(4)

/* Two columns lie in one load; with an odd number the last one has only an even half. */
#define BF16_LOAD(i) \
    const char *w = from + i * panel_bytes + 32 * (size_t)k; \
    __m256i v0 = load_bits(w), v1 = load_bits(w + 32);
#define BF16_EVEN(i) \
    low##i = _mm256_fmadd_ps(bf16_even(v0), x0, low##i); \
    high##i = _mm256_fmadd_ps(bf16_even(v1), x0, high##i);
#define BF16_LAST(i) \
    { \
        BF16_LOAD(i) \
        BF16_EVEN(i) \
    }
#define BF16_PAIR(i) \
    { \
        BF16_LOAD(i) \
        BF16_EVEN(i) \
        low##i = _mm256_fmadd_ps(bf16_odd(v0), x1, low##i); \
        high##i = _mm256_fmadd_ps(bf16_odd(v1), x1, high##i); \
    }
#define BF16_ROW(n) \
    static void bf16_row_##n(const char *from, size_t panel_bytes, int cols, const float *x, \
                             float *acc) \
    { \
        int k = 0; \
        EACH_##n(ACC_ZERO) for (; k + 2 <= cols; k += 2) \
        { \
            __m256 x0 = _mm256_broadcast_ss(x + k), x1 = _mm256_broadcast_ss(x + k + 1); \
            EACH_##n(BF16_PAIR) \
        } \
        if (k < cols) { \
            __m256 x0 = _mm256_broadcast_ss(x + k); \
            EACH_##n(BF16_LAST) \
        } \
        EACH_##n(ACC_STORE) \
    }
BF16_ROW(1)
BF16_ROW(2)
BF16_ROW(4)

/* FP8: one block of at most 128 columns, folded into acc [n panels][16].  x is so many times
 * what is meant as the decoded weights are too small: each product is the same number before
 * it is rounded.  Two ways to decode:
 *   shift   the bits of an E4M3 number, put where f32 has its own, are 2^-120 of what is
 *           meant.  Subnormals are denormal floats then, which cost nothing on AMD's CPUs and
 *           170 cycles each on Intel's.  Of the 16 rows the even ones are in `low` and the odd
 *           ones in `high`
 *   f16     through the conversion from f16, with 2^-8: takes 1.7 times as long */
typedef void fp8_row(const char *from, size_t panel_bytes, int n_cols, const float *x,
                     const float *const *scales, float *acc);

#define SHIFT_COLUMN(i, v, xk) \
    low##i = _mm256_fmadd_ps( \
        _mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(v, 16), mask)), xk, low##i); \
    high##i = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(v, mask)), xk, high##i);
#define SHIFT_EVEN(i) \
    __m256i v = load_bits(from + i * panel_bytes + 16 * (size_t)k); \
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 4); \
    SHIFT_COLUMN(i, even, x0)
#define SHIFT_ODD(i) \
    __m256i odd = _mm256_srai_epi16(v, 4); \
    SHIFT_COLUMN(i, odd, x1)
#define SHIFT_ORDER(i) \
    { \
        __m256 a = _mm256_unpacklo_ps(low##i, high##i), b = _mm256_unpackhi_ps(low##i, high##i); \
        low##i = _mm256_permute2f128_ps(a, b, 0x20); \
        high##i = _mm256_permute2f128_ps(a, b, 0x31); \
    }

#define F16_COLUMN(i, v, xk) \
    low##i = _mm256_fmadd_ps(f16_low(v), xk, low##i); \
    high##i = _mm256_fmadd_ps(f16_high(v), xk, high##i);
#define F16_EVEN(i) \
    __m256i v = load_bits(from + i * panel_bytes + 16 * (size_t)k), even = fp8_even_as_f16(v); \
    F16_COLUMN(i, even, x0)
#define F16_ODD(i) \
    __m256i odd = fp8_odd_as_f16(v); \
    F16_COLUMN(i, odd, x1)
#define F16_ORDER(i)

#define FP8_FOLD(way, i) \
    { \
        __m256 s = _mm256_broadcast_ss(scales[i]); \
        way##_ORDER(i) float *to = acc + 16 * i; \
        _mm256_store_ps(to, _mm256_fmadd_ps(s, low##i, _mm256_load_ps(to))); \
        _mm256_store_ps(to + 8, _mm256_fmadd_ps(s, high##i, _mm256_load_ps(to + 8))); \
    }
#define SHIFT_PAIR(i) \
    { \
        SHIFT_EVEN(i) SHIFT_ODD(i) \
    }
#define SHIFT_LAST(i) \
    { \
        SHIFT_EVEN(i) \
    }
#define SHIFT_FOLD(i) FP8_FOLD(SHIFT, i)
#define F16_PAIR(i) \
    { \
        F16_EVEN(i) F16_ODD(i) \
    }
#define F16_LAST(i) \
    { \
        F16_EVEN(i) \
    }
#define F16_FOLD(i) FP8_FOLD(F16, i)
#define FP8_ROW(name, way, n) \
    static void name##_row_##n(const char *from, size_t panel_bytes, int n_cols, const float *x, \
                               const float *const *scales, float *acc) \
    { \
        const __m256i mask = _mm256_set1_epi32((int)0x87f00000u); \
        int k = 0; \
        (void)mask; \
        EACH_##n(ACC_ZERO) for (; k + 2 <= n_cols; k += 2) \
        { \
            __m256 x0 = _mm256_broadcast_ss(x + k), x1 = _mm256_broadcast_ss(x + k + 1); \
            EACH_##n(way##_PAIR) \
        } \
        if (k < n_cols) { \
            __m256 x0 = _mm256_broadcast_ss(x + k); \
            EACH_##n(way##_LAST) \
        } \
        EACH_##n(way##_FOLD) \
    }
FP8_ROW(shift, SHIFT, 1)
FP8_ROW(shift, SHIFT, 2)
FP8_ROW(shift, SHIFT, 4)
FP8_ROW(f16, F16, 1)
FP8_ROW(f16, F16, 2)
FP8_ROW(f16, F16, 4)

struct fp8_way {
    float factor, limit; /* x times the factor is exact where |x| is below the limit */
    fp8_row *rows[PANELS_AT_ONCE + 1];
};
static const struct fp8_way fp8_shift = {
    0x1p120f, 0x1p8f, {NULL, shift_row_1, shift_row_2, NULL, shift_row_4}};
static const struct fp8_way fp8_f16 = {
    FP8_F16_FACTOR, 0x1p120f, {NULL, f16_row_1, f16_row_2, NULL, f16_row_4}};

typedef void row_panels(const char *from, size_t panel_bytes, int cols, const float *x, float *acc);

/* Panels that are read together: n (1, 2 or 4) of them, every apart-th from the first. */
struct panels {
    const struct matrix *w;
    int first, apart, n;
};

/* Calls `run` for all panels of a range, four at a time from its four quarters. */
INLINE void each_panels(const struct matrix *w, int first_panel, int n_panels,
                        void (*run)(const struct panels *, const struct rows *, float *, size_t),
                        const struct rows *x, float *y, size_t y_stride)
{
    int quarter = n_panels / PANELS_AT_ONCE, end = first_panel + n_panels;
    struct panels p = {.w = w, .first = first_panel, .apart = quarter, .n = PANELS_AT_ONCE};
    for (; p.first < first_panel + quarter; p.first++)
        run(&p, x, y, y_stride);
    p.apart = 1;
    for (p.first = first_panel + quarter * PANELS_AT_ONCE; p.first < end; p.first += p.n) {
        p.n = min_int(end - p.first, 2);
        run(&p, x, y, y_stride);
    }
}

static void one_row(const struct panels *p, const struct rows *x, float *y, size_t y_stride)
{
    static row_panels *const f32[] = {NULL, f32_row_1, f32_row_2, NULL, f32_row_4};
    static row_panels *const bf16[] = {NULL, bf16_row_1, bf16_row_2, NULL, bf16_row_4};
    row_panels *run = (p->w->format == FORMAT_F32 ? f32 : bf16)[p->n];
    _Alignas(32) float acc[PANELS_AT_ONCE * PANEL_ROWS];
    (void)y_stride;
    run(panel_at(p->w, p->first), (size_t)p->apart * p->w->panel_bytes, p->w->cols, x->f32, acc);
    for (int i = 0; i < p->n; i++)
        store_panel(p->w, p->first + i * p->apart, acc + PANEL_ROWS * i, y);
}

/* out = x * the factor for a block of n columns, at most SCALE_BLOCK, and zeros up to the
 * next multiple of 8; false if that may not be exact. */
static bool scale_block(const struct fp8_way *way, const float *x, int n, float *out)
{
    const __m256 factor = _mm256_set1_ps(way->factor), sign = _mm256_set1_ps(-0.0f);
    const __m256 limit = _mm256_set1_ps(way->limit);
    __m256 is_bad = _mm256_setzero_ps();
    for (int k = 0; k < n; k += VECTOR) {
        __m256 v = k + VECTOR <= n ? _mm256_loadu_ps(x + k) : load_part(x + k, n - k);
        _mm256_store_ps(out + k, _mm256_mul_ps(v, factor));
        is_bad = _mm256_or_ps(is_bad, _mm256_cmp_ps(_mm256_andnot_ps(sign, v), limit, _CMP_NLT_UQ));
    }
    return _mm256_movemask_ps(is_bad) == 0;
}

/* ---- more rows ---- */

/* A block of columns as floats [n_cols][16]. */
static void unpack_bf16(const char *from, int n_cols, float *out)
{
    for (int k = 0; k < n_cols; k += 2, from += 64, out += 32) {
        __m256i v0 = load_bits(from), v1 = load_bits(from + 32);
        _mm256_store_ps(out, bf16_even(v0));
        _mm256_store_ps(out + 8, bf16_even(v1));
        _mm256_store_ps(out + 16, bf16_odd(v0));
        _mm256_store_ps(out + 24, bf16_odd(v1));
    }
}

static void unpack_fp8(const char *from, int n_cols, float *out)
{
    const __m256 factor = _mm256_set1_ps(FP8_F16_FACTOR);
    for (int k = 0; k < n_cols; k += 2, from += 32, out += 32) {
        __m256i v = load_bits(from), even = fp8_even_as_f16(v), odd = fp8_odd_as_f16(v);
        _mm256_store_ps(out, _mm256_mul_ps(f16_low(even), factor));
        _mm256_store_ps(out + 8, _mm256_mul_ps(f16_high(even), factor));
        _mm256_store_ps(out + 16, _mm256_mul_ps(f16_low(odd), factor));
        _mm256_store_ps(out + 24, _mm256_mul_ps(f16_high(odd), factor));
    }
}

/* n rows x 16 weights over a block of columns.  chain_n goes on where acc [n][16] is;
 * block_n begins at 0 and folds the result into acc. */
struct block {
    const float *w; /* [n_cols][16] */
    int n_cols;
    const float *x; /* [n rows], from this column on */
    size_t x_stride;
    const float *scale;
    /* What to fetch meanwhile, so many bytes per column.  The last block of a matrix points
     * past its end, which a prefetch may. */
    const char *ahead;
    size_t ahead_step;
};
typedef void tile(const struct block *b, float *acc);

#define TILE_X(i) const float *x##i = b->x + i * b->x_stride;
#define TILE_LOAD(i) \
    __m256 low##i = _mm256_load_ps(acc + 16 * i), high##i = _mm256_load_ps(acc + 16 * i + 8);
#define TILE_STEP(i) \
    { \
        __m256 xk = _mm256_broadcast_ss(x##i + k); \
        low##i = _mm256_fmadd_ps(w0, xk, low##i); \
        high##i = _mm256_fmadd_ps(w1, xk, high##i); \
    }
#define TILE_FOLD(i) \
    _mm256_store_ps(acc + 16 * i, _mm256_fmadd_ps(s, low##i, _mm256_load_ps(acc + 16 * i))); \
    _mm256_store_ps(acc + 16 * i + 8, \
                    _mm256_fmadd_ps(s, high##i, _mm256_load_ps(acc + 16 * i + 8)));
#define TILE_LOOP(n) \
    const float *w = b->w; \
    const char *ahead = b->ahead; \
    for (int k = 0, n_cols = b->n_cols; k < n_cols; k++, w += 16, ahead += b->ahead_step) { \
        __m256 w0 = _mm256_load_ps(w), w1 = _mm256_load_ps(w + 8); \
        _mm_prefetch(ahead, _MM_HINT_T0); \
        EACH_##n(TILE_STEP) \
    }
#define TILE(n) \
    static void chain_##n(const struct block *b, float *acc) \
    { \
        EACH_##n(TILE_X) EACH_##n(TILE_LOAD) TILE_LOOP(n) EACH_##n(ACC_STORE) \
    } \
    static void block_##n(const struct block *b, float *acc) \
    { \
        EACH_##n(TILE_X) EACH_##n(ACC_ZERO) TILE_LOOP(n) __m256 s = _mm256_broadcast_ss(b->scale); \
        EACH_##n(TILE_FOLD) \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)

static tile *const chain_tiles[] = {NULL, chain_1, chain_2, chain_3, chain_4, chain_5, chain_6};
static tile *const block_tiles[] = {NULL, block_1, block_2, block_3, block_4, block_5, block_6};

/* Four rows are 8 chains, what two FMAs a cycle of latency 4 ask for; a rest of one or two
 * rows is better spent in a larger last tile. */
static int rows_next(int left)
{
    return left <= LARGEST_TILE ? left : TILE_ROWS;
}

/* Takes b->ahead along; a copy of the block would stall on its fields just written. */
INLINE void all_tiles(tile *const *tiles, struct block *b, int n_rows, float *acc)
{
    const float *x = b->x;
    for (int m = 0, n; m < n_rows; m += n) {
        n = rows_next(n_rows - m);
        tiles[n](b, acc + m * PANEL_ROWS);
        b->x += (size_t)n * b->x_stride;
        b->ahead += (size_t)b->n_cols * b->ahead_step;
    }
    b->x = x;
}

/* One panel for at most ROWS_IN_CACHE rows. */
static void panel_rows(const struct matrix *w, int panel, const struct rows *x, float *acc)
{
    _Alignas(64) float unpacked[SCALE_BLOCK * PANEL_ROWS];
    const char *from = panel_at(w, panel);
    size_t column_bytes = w->panel_bytes / (size_t)w->padded_cols;
    tile *const *tiles = w->format == FORMAT_FP8 ? block_tiles : chain_tiles;
    struct block b = {.x = x->f32, .x_stride = x->f32_stride};
    int n_rows = x->n_rows;
    /* The next block is fetched evenly over the tiles of this one: all at once it would
     * come too late for the first and leave the memory idle during the others. */
    b.ahead_step = column_bytes / (size_t)((n_rows + TILE_ROWS - 1) / TILE_ROWS);
    if (w->format == FORMAT_FP8)
        b.scale = block_scales(w, panel);
    memset(acc, 0, (size_t)n_rows * PANEL_ROWS * sizeof(float));
    for (int first = 0; first < w->cols; first += SCALE_BLOCK) {
        b.n_cols = min_int(w->cols - first, SCALE_BLOCK);
        b.w = unpacked;
        if (w->format == FORMAT_F32)
            b.w = (const float *)(const void *)from;
        else if (w->format == FORMAT_BF16)
            unpack_bf16(from, b.n_cols, unpacked);
        else
            unpack_fp8(from, b.n_cols, unpacked);
        from += column_bytes * SCALE_BLOCK;
        b.ahead = from;
        all_tiles(tiles, &b, n_rows, acc);
        b.x += SCALE_BLOCK;
        if (b.scale)
            b.scale++;
    }
}

static void many_rows(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                      float *y, size_t y_stride)
{
    _Alignas(64) float acc[ROWS_IN_CACHE * PANEL_ROWS];
    for (int first = 0; first < x->n_rows; first += ROWS_IN_CACHE) {
        struct rows part = rows_part(x, first, min_int(x->n_rows - first, ROWS_IN_CACHE));
        for (int p = first_panel; p < first_panel + n_panels; p++) {
            panel_rows(w, p, &part, acc);
            for (int m = 0; m < part.n_rows; m++)
                store_panel(w, p, acc + m * PANEL_ROWS, y + (size_t)(first + m) * y_stride);
        }
    }
}

static void matmul_float(const struct matrix *w, int first_panel, int n_panels,
                         const struct rows *x, float *y, size_t y_stride)
{
    if (x->n_rows == 1)
        each_panels(w, first_panel, n_panels, one_row, x, y, y_stride);
    else
        many_rows(w, first_panel, n_panels, x, y, y_stride);
}

/* One block of columns for one row, folded into acc [p->n][16]. */
static void fp8_block(const struct panels *p, int first_col, const float *x,
                      const float *const *scales, float *acc)
{
    const struct fp8_way *way = __builtin_cpu_is("intel") ? &fp8_f16 : &fp8_shift;
    _Alignas(32) float scaled[SCALE_BLOCK], unpacked[SCALE_BLOCK * PANEL_ROWS];
    int n_cols = min_int(p->w->cols - first_col, SCALE_BLOCK);
    const char *from = panel_at(p->w, p->first) + (size_t)first_col * PANEL_ROWS;
    size_t stride = (size_t)p->apart * p->w->panel_bytes;
    if (scale_block(way, x, n_cols, scaled)) {
        way->rows[p->n](from, stride, n_cols, scaled, scales, acc);
        return;
    }
    struct block b = {.w = unpacked, .n_cols = n_cols, .x = x, .ahead = from};
    for (int i = 0; i < p->n; i++, from += stride, acc += PANEL_ROWS) {
        b.scale = scales[i];
        unpack_fp8(from, n_cols, unpacked);
        block_1(&b, acc);
    }
}

static void fp8_few_rows(const struct panels *p, const struct rows *x, float *y, size_t y_stride)
{
    _Alignas(32) float acc[FP8_FEW_ROWS][PANELS_AT_ONCE * PANEL_ROWS] = {{0}};
    const float *scales[PANELS_AT_ONCE];
    for (int i = 0; i < p->n; i++)
        scales[i] = block_scales(p->w, p->first + i * p->apart);
    for (int first = 0; first < p->w->cols; first += SCALE_BLOCK) {
        for (int m = 0; m < x->n_rows; m++)
            fp8_block(p, first, x->f32 + (size_t)m * x->f32_stride + first, scales, acc[m]);
        for (int i = 0; i < p->n; i++)
            scales[i]++;
    }
    for (int m = 0; m < x->n_rows; m++)
        for (int i = 0; i < p->n; i++)
            store_panel(p->w, p->first + i * p->apart, acc[m] + PANEL_ROWS * i,
                        y + (size_t)m * y_stride);
}

static void matmul_fp8(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                       float *y, size_t y_stride)
{
    if (x->n_rows <= FP8_FEW_ROWS)
        each_panels(w, first_panel, n_panels, fp8_few_rows, x, y, y_stride);
    else
        many_rows(w, first_panel, n_panels, x, y, y_stride);
}

/* ---- element by element ---- */

static void rms_norm(const float *x, const float *w, int n, float eps, float *out)
{
    _Alignas(32) float lanes[LANES];
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + VECTOR);
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
    }
    _mm256_store_ps(lanes, low);
    _mm256_store_ps(lanes + VECTOR, high);
    for (int lane = 0; i + lane < n; lane++)
        lanes[lane] = fmaf(x[i + lane], x[i + lane], lanes[lane]);
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    float r = math_rsqrt(sum / (float)n + eps);
    __m256 factor = _mm256_set1_ps(r);
    for (i = 0; i + VECTOR <= n; i += VECTOR) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
        _mm256_storeu_ps(out + i, _mm256_mul_ps(v, _mm256_loadu_ps(w + i)));
    }
    for (; i < n; i++)
        out[i] = x[i] * r * w[i];
}

static void swiglu(float *gate, const float *up, int n)
{
    int i = 0;
    for (; i + VECTOR <= n; i += VECTOR) {
        __m256 v = mathf_silu8(_mm256_loadu_ps(gate + i));
        _mm256_storeu_ps(gate + i, _mm256_mul_ps(v, _mm256_loadu_ps(up + i)));
    }
    if (i < n) {
        __m256 v = mathf_silu8(load_part(gate + i, n - i));
        store_part(gate + i, _mm256_mul_ps(v, load_part(up + i, n - i)), n - i);
    }
}

static inline __m256 swiglu_oai8(__m256 gate, __m256 up, const struct activation *a)
{
    /* min(x, y) is "x < y ? x : y", max likewise: a NaN in y stays. */
    const __m256 limit = _mm256_set1_ps(a->limit);
    __m256 g = _mm256_min_ps(limit, gate), u = _mm256_min_ps(limit, up);
    u = _mm256_max_ps(_mm256_set1_ps(-a->limit), u);
    __m256 v = _mm256_mul_ps(g, mathf_sigmoid8(_mm256_mul_ps(_mm256_set1_ps(a->alpha), g)));
    return _mm256_mul_ps(v, _mm256_add_ps(u, _mm256_set1_ps(a->beta)));
}

static void swiglu_oai(float *gate, const float *up, int n, const struct activation *a)
{
    int i = 0;
    for (; i + VECTOR <= n; i += VECTOR)
        _mm256_storeu_ps(gate + i,
                         swiglu_oai8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i), a));
    if (i < n)
        store_part(gate + i, swiglu_oai8(load_part(gate + i, n - i), load_part(up + i, n - i), a),
                   n - i);
}

static void add(float *x, const float *y, int n)
{
    int i = 0;
    for (; i + VECTOR <= n; i += VECTOR)
        _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++)
        x[i] = x[i] + y[i];
}

static void exp_each(const float *x, int n, float *out)
{
    int i = 0;
    for (; i + VECTOR <= n; i += VECTOR)
        _mm256_storeu_ps(out + i, mathf_exp8(_mm256_loadu_ps(x + i)));
    if (i < n)
        store_part(out + i, mathf_exp8(load_part(x + i, n - i)), n - i);
}

static void sigmoid_each(const float *x, int n, float *out)
{
    int i = 0;
    for (; i + VECTOR <= n; i += VECTOR)
        _mm256_storeu_ps(out + i, mathf_sigmoid8(_mm256_loadu_ps(x + i)));
    if (i < n)
        store_part(out + i, mathf_sigmoid8(load_part(x + i, n - i)), n - i);
}

/* ---- combine ---- */

/* Adds eight rounded values; the mask of those that are over the limit. */
INLINE unsigned fixed_add8(__m256 y, __m256 weight, __m256 scale, __m256i acc, __m256i *sum)
{
    const __m256 limit = _mm256_set1_ps((float)(1 << COMBINE_LIMIT_LOG2));
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 v = _mm256_mul_ps(_mm256_mul_ps(weight, y), scale);
    __m256 is_good = _mm256_cmp_ps(_mm256_andnot_ps(sign, v), limit, _CMP_LT_OQ);
    __m256i q = _mm256_cvtps_epi32(_mm256_and_ps(v, is_good));
    *sum = _mm256_add_epi32(acc, q);
    return ~(unsigned)_mm256_movemask_ps(is_good) & 0xffu;
}

static int fixed_add(const float *y, float weight, int exponent, int n, int32_t *acc)
{
    must(combine_exponent_valid(exponent));
    const __m256 w = _mm256_set1_ps(weight), scale = _mm256_set1_ps(ldexpf(1.0f, -exponent));
    int n_over = 0, i = 0;
    __m256i sum;
    for (; i + VECTOR <= n; i += VECTOR) {
        __m256i before = _mm256_loadu_si256((const void *)(acc + i));
        n_over += __builtin_popcount(fixed_add8(_mm256_loadu_ps(y + i), w, scale, before, &sum));
        _mm256_storeu_si256((void *)(acc + i), sum);
    }
    if (i < n) {
        int32_t part[VECTOR] = {0};
        memcpy(part, acc + i, (size_t)(n - i) * sizeof(*acc));
        /* The empty lanes have y = 0, which is over no limit unless the weight is not finite. */
        unsigned over = fixed_add8(load_part(y + i, n - i), w, scale,
                                   _mm256_loadu_si256((const void *)part), &sum);
        n_over += __builtin_popcount(over & ((1u << (n - i)) - 1));
        _mm256_storeu_si256((void *)part, sum);
        memcpy(acc + i, part, (size_t)(n - i) * sizeof(*acc));
    }
    return n_over;
}

static void fixed_fold(const int32_t *acc, int exponent, int n, float *x)
{
    must(combine_exponent_valid(exponent));
    const float step = ldexpf(1.0f, exponent);
    const __m256 steps = _mm256_set1_ps(step);
    int i = 0;
    for (; i + VECTOR <= n; i += VECTOR) {
        __m256 v = _mm256_cvtepi32_ps(_mm256_loadu_si256((const void *)(acc + i)));
        v = _mm256_mul_ps(v, steps);
        _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), v));
    }
    for (; i < n; i++)
        x[i] = x[i] + (float)acc[i] * step;
}

static void add_int32(int32_t *acc, const void *y, int n)
{
    const char *from = y;
    int i = 0;
    for (; i + VECTOR <= n; i += VECTOR, from += VECTOR * sizeof(*acc)) {
        __m256i a = _mm256_loadu_si256((const void *)(acc + i));
        a = _mm256_add_epi32(a, _mm256_loadu_si256((const void *)from));
        _mm256_storeu_si256((void *)(acc + i), a);
    }
    for (; i < n; i++, from += sizeof(*acc)) {
        uint32_t v;
        memcpy(&v, from, sizeof(v));
        acc[i] = (int32_t)((uint32_t)acc[i] + v);
    }
}

void kernels_avx2_fill(struct kernels *k)
{
    k->matmul[FORMAT_F32] = matmul_float;
    k->matmul[FORMAT_BF16] = matmul_float;
    k->matmul[FORMAT_FP8] = matmul_fp8;
    k->rms_norm = rms_norm;
    k->swiglu = swiglu;
    k->swiglu_oai = swiglu_oai;
    k->add = add;
    k->exp = exp_each;
    k->sigmoid = sigmoid_each;
    k->fixed_add = fixed_add;
    k->fixed_fold = fixed_fold;
    k->add_int32 = add_int32;
}
