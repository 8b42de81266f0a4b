/* engine/kernels_avx512.c - the inner loops for AVX-512; same bits as kernels.c.
 *
 * Lanes hold rows of W: a panel is one register wide, so every sum is the chain that portable
 * C runs.  Four panels at a time, whatever the number of rows: four streams are read faster
 * than one, and one row has four chains to hide the latency of the FMA.  Tiles of up to 6 rows
 * x 4 panels go over a block of 128 columns while it lies in the first-level cache.
 *   f32, bf16   straight from the panels: a shift or a mask makes floats out of bf16
 *   fp8         one row: to f16 in registers, which the processor widens; more rows: each
 *               block is unpacked once into bf16, which holds every e4m3 exactly
 * Accumulators are named variables, written out by macros: a to d are the panels, the number
 * is the row.  (The instruction for products of bf16 pairs is no chain of FMAs.) */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "base/must.h"
#include "engine/combine.h"
#include "engine/kernels.h"
#include "engine/mathf.h"
#include "engine/mathf_inline512.h"

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
    const char *w[PANELS_AT_ONCE];       /* a panel that is not there stands for the last one */
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

INLINE __m512 bf16_even(const char *at)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(load_bits(at), 16));
}

INLINE __m512 bf16_odd(const char *at)
{
    return _mm512_castsi512_ps(
        _mm512_and_si512(load_bits(at), _mm512_set1_epi32((int)0xffff0000u)));
}

#define BF16_AT(half, p) bf16_##half(from##p + 32 * (size_t)k)
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

/* What makes bf16 of e4m3: both have the sign first, so exponent and mantissa move in place
 * and the exponent gets the difference of the biases.  A subnormal (exponent bits 0) takes
 * what it lacks from a table by its three mantissa bits: m 2^-9 as bf16, less m in place. */
#define BF16_OF(exponent, mantissa) (((127 + (exponent)) << 7) + (mantissa))
#define LACKS(m, bits) (short)((bits) - ((m) << 4))
static const short subnormal_lacks[32] = {0,
                                          LACKS(1, BF16_OF(-9, 0)),
                                          LACKS(2, BF16_OF(-8, 0)),
                                          LACKS(3, BF16_OF(-8, 64)),
                                          LACKS(4, BF16_OF(-7, 0)),
                                          LACKS(5, BF16_OF(-7, 32)),
                                          LACKS(6, BF16_OF(-7, 64)),
                                          LACKS(7, BF16_OF(-7, 96))};

/* A block of columns of a panel from [k/2][16][2] bytes to the same order of bf16. */
static void unpack_fp8(const char *from, int n_cols, char *out)
{
    const __m512i table = _mm512_loadu_si512(subnormal_lacks);
    const __m512i bias = _mm512_set1_epi16((127 - 7) << 7);
    const __m512i kept = _mm512_set1_epi16((short)0x87f0), exponent = _mm512_set1_epi16(0x78);
    for (int k = 0; k < n_cols; k += 2, from += 32, out += 64) {
        __m512i v = _mm512_cvtepi8_epi16(_mm256_load_si256((const void *)from));
        __m512i lacks =
            _mm512_mask_permutexvar_epi16(bias, _mm512_testn_epi16_mask(v, exponent), v, table);
        __m512i in_place = _mm512_and_si512(_mm512_slli_epi16(v, 4), kept);
        _mm512_store_si512(out, _mm512_add_epi16(in_place, lacks));
    }
}

/* E4M3 to f16: the exponent has one bit more there and a bias larger by 8, so with the bits
 * in place the value is 2^-8 of what is meant, subnormals included. */
#define FP8_FACTOR 256.0f /* 2^8 */

/* One row and four panels, a multiple of four columns.  x is FP8_FACTOR times what is meant:
 * the product (w 2^-8) (x 2^8) is the same number before it is rounded. */
#define FP8_PAIR(sum, at, x_even, x_odd) \
    { \
        __m256i v = _mm256_load_si256((const void *)(at)); \
        __m256i odd = _mm256_and_si256(_mm256_srai_epi16(v, 1), in_place); \
        __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 1); \
        even = _mm256_and_si256(even, in_place); \
        sum = _mm512_fmadd_ps(_mm512_cvtph_ps(even), x_even, sum); \
        sum = _mm512_fmadd_ps(_mm512_cvtph_ps(odd), x_odd, sum); \
    }
#define FP8_STEP(sum, p) \
    FP8_PAIR(sum, from##p + 16 * (size_t)k, x0, x1) \
    FP8_PAIR(sum, from##p + 16 * (size_t)k + 32, x2, x3)
static void fp8_row(const struct tile *t, const float *x, float *acc)
{
    const __m256i in_place = _mm256_set1_epi16((short)0xbf80);
    PANELS ROW_ZERO(0) for (int k = 0; k < t->n_cols; k += 4)
    {
        __m512 x0 = _mm512_set1_ps(x[k]), x1 = _mm512_set1_ps(x[k + 1]);
        __m512 x2 = _mm512_set1_ps(x[k + 2]), x3 = _mm512_set1_ps(x[k + 3]);
        FP8_STEP(a0, 0)
        FP8_STEP(b0, 1)
        FP8_STEP(c0, 2)
        FP8_STEP(d0, 3)
    }
    ROW_FOLD(0)
}

/* out = x * FP8_FACTOR for a block of n columns; false if that is not exact, because it
 * overflows. */
static bool scale_block(const float *x, int n, float *out)
{
    const __m512 factor = _mm512_set1_ps(FP8_FACTOR), infinity = _mm512_set1_ps(INFINITY);
    __mmask16 is_bad = 0;
    for (int k = 0; k < n; k += LANES) {
        __m512 v = _mm512_maskz_loadu_ps(lanes_mask(n - k), x + k);
        __m512 scaled = _mm512_mul_ps(v, factor);
        _mm512_store_ps(out + k, scaled);
        __mmask16 was = _mm512_cmp_ps_mask(_mm512_abs_ps(v), infinity, _CMP_EQ_OQ);
        __mmask16 is = _mm512_cmp_ps_mask(_mm512_abs_ps(scaled), infinity, _CMP_EQ_OQ);
        is_bad = (__mmask16)(is_bad | (is & ~was));
    }
    return is_bad == 0;
}

/* ---- products ---- */

static tile_run *const f32_tiles[] = {NULL,       f32_tile_1, f32_tile_2, f32_tile_3,
                                      f32_tile_4, f32_tile_5, f32_tile_6};
static tile_run *const bf16_chains[] = {NULL,         bf16_chain_1, bf16_chain_2, bf16_chain_3,
                                        bf16_chain_4, bf16_chain_5, bf16_chain_6};
static tile_run *const bf16_blocks[] = {NULL,         bf16_block_1, bf16_block_2, bf16_block_3,
                                        bf16_block_4, bf16_block_5, bf16_block_6};

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
    _Alignas(64) float scaled[SCALE_BLOCK];
    struct tile t = tile_at(w, f, x, PANEL_ROWS);
    for (int first = 0; first < w->cols; first += SCALE_BLOCK) {
        t.n_cols = min_int(w->cols - first, SCALE_BLOCK);
        if (x->n_rows == 1 && t.n_cols % 4 == 0 && scale_block(t.x, t.n_cols, scaled)) {
            fp8_row(&t, scaled, acc);
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

/* ---- element by element ---- */

static void rms_norm(const float *x, const float *w, int n, float eps, float *out)
{
    _Alignas(64) float lanes[LANES];
    __m512 sums = _mm512_setzero_ps();
    for (int i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_mask(n - i);
        __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
        sums = _mm512_mask3_fmadd_ps(v, v, sums, mask);
    }
    _mm512_store_ps(lanes, sums);
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    const __m512 factor = _mm512_set1_ps(math_rsqrt(sum / (float)n + eps));
    for (int i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_mask(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor);
        v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, w + i));
        _mm512_mask_storeu_ps(out + i, mask, v);
    }
}

static void swiglu(float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_mask(n - i);
        __m512 v = mathf_silu16(_mm512_maskz_loadu_ps(mask, gate + i));
        v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, up + i));
        _mm512_mask_storeu_ps(gate + i, mask, v);
    }
}

static void add(float *x, const float *y, int n)
{
    for (int i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_mask(n - i);
        __m512 a = _mm512_maskz_loadu_ps(mask, x + i), b = _mm512_maskz_loadu_ps(mask, y + i);
        _mm512_mask_storeu_ps(x + i, mask, _mm512_add_ps(a, b));
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

/* ---- combine ---- */

static int fixed_add(const float *y, float weight, int exponent, int n, int32_t *acc)
{
    must(combine_exponent_valid(exponent));
    const __m512 weights = _mm512_set1_ps(weight), scale = _mm512_set1_ps(ldexpf(1.0f, -exponent));
    const __m512 limit = _mm512_set1_ps((float)(1 << COMBINE_LIMIT_LOG2));
    int n_over = 0;
    for (int i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_mask(n - i);
        __m512 v = _mm512_mul_ps(weights, _mm512_maskz_loadu_ps(mask, y + i));
        v = _mm512_mul_ps(v, scale);
        __mmask16 good = _mm512_mask_cmp_ps_mask(mask, _mm512_abs_ps(v), limit, _CMP_LT_OQ);
        __m512i sum = _mm512_maskz_loadu_epi32(good, acc + i);
        sum = _mm512_add_epi32(sum, _mm512_maskz_cvtps_epi32(good, v));
        _mm512_mask_storeu_epi32(acc + i, good, sum);
        n_over += __builtin_popcount(mask & ~(unsigned)good);
    }
    return n_over;
}

static void fixed_fold(const int32_t *acc, int exponent, int n, float *x)
{
    must(combine_exponent_valid(exponent));
    const __m512 step = _mm512_set1_ps(ldexpf(1.0f, exponent));
    for (int i = 0; i < n; i += LANES) {
        __mmask16 mask = lanes_mask(n - i);
        __m512 v = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask, acc + i));
        v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_mul_ps(v, step));
        _mm512_mask_storeu_ps(x + i, mask, v);
    }
}

static void add_int32(int32_t *acc, const void *y, int n)
{
    const char *from = y;
    for (int i = 0; i < n; i += LANES, from += LANES * sizeof(*acc)) {
        __mmask16 mask = lanes_mask(n - i);
        __m512i sum = _mm512_maskz_loadu_epi32(mask, acc + i);
        sum = _mm512_add_epi32(sum, _mm512_maskz_loadu_epi32(mask, from));
        _mm512_mask_storeu_epi32(acc + i, mask, sum);
    }
}

void kernels_avx512_fill(struct kernels *k)
{
    k->matmul[FORMAT_F32] = matmul;
    k->matmul[FORMAT_BF16] = matmul;
    k->matmul[FORMAT_FP8] = matmul;
    k->rms_norm = rms_norm;
    k->swiglu = swiglu;
    k->add = add;
    k->exp = exp_each;
    k->sigmoid = sigmoid_each;
    k->fixed_add = fixed_add;
    k->fixed_fold = fixed_fold;
    k->add_int32 = add_int32;
}
