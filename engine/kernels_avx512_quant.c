/* engine/kernels_avx512_quant.c - products of int8 rows with q8 and q4 weights by AVX-512 VNNI;
 * same bits as kernels_quant.c.
 *
 * The instruction adds four products of an unsigned and a signed byte to each int32 and does
 * not saturate, so weights are made unsigned - q8 by flipping the sign bit (+128), q4 lies as
 * value + 8 already - and a sum starts at -128 or -8 times the sum of the row's group.
 * Tiles of up to 6 rows x 4 panels go over one group, weights straight from the panels: four
 * streams are read faster than one, and a tile is large enough to hide the unpacking.
 * Accumulators are named variables, written out by macros: a to d are the panels, the number
 * is the row. */
#include <immintrin.h>
#include <string.h>

#include "base/must.h"
#include "engine/kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    STEP_BYTES = 64, /* of a panel: 4 columns (q8) or 8 (q4) of 16 weights */
    PANELS_AT_ONCE = 4,
    ACC_ROW = PANELS_AT_ONCE * PANEL_ROWS,
    ROWS_IN_CACHE = 64,
    LARGEST_TILE = 6,
    Q8_OFFSET = 128,
    Q4_OFFSET = 8
};

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

INLINE __m512i load_bits(const void *p)
{
    return _mm512_load_si512(p);
}

/* Four columns of a row in every lane. */
INLINE __m512i load_step(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof(four));
    return _mm512_set1_epi32(four);
}

/* sum += the four products of w (unsigned) and x in each lane, as one instruction on one
 * register: left to itself the compiler copies and spills sums in every step. */
INLINE void add_products(__m512i *sum, __m512i w, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x));
}

/* One group of four panels, and n rows; acc [n rows][4 panels][16]. */
struct tile {
    const char *w[PANELS_AT_ONCE]; /* a panel that is not there stands for the first one */
    const int8_t *x;               /* [n rows], from this group on */
    size_t x_stride;
    const float *scales; /* [n rows] */
    const int32_t *sums;
    size_t scale_stride;
    const char *ahead[2]; /* what to fetch meanwhile; may point past the matrix */
    size_t ahead_step;
};
typedef void tile_run(const struct tile *t, float *acc);

#define EACH_1(DO) DO(0)
#define EACH_2(DO) EACH_1(DO) DO(1)
#define EACH_3(DO) EACH_2(DO) DO(2)
#define EACH_4(DO) EACH_3(DO) DO(3)
#define EACH_5(DO) EACH_4(DO) DO(4)
#define EACH_6(DO) EACH_5(DO) DO(5)

#define ROW_X(i) const int8_t *x##i = t->x + i * t->x_stride;
#define ROW_START(i, offset) \
    __m512i a##i = _mm512_set1_epi32(-offset * t->sums[i * t->scale_stride]), b##i = a##i, \
            c##i = a##i, d##i = a##i;
#define ROW_START_Q8(i) ROW_START(i, Q8_OFFSET)
#define ROW_START_Q4(i) ROW_START(i, Q4_OFFSET)
#define ROW_ADD(i, at) \
    { \
        __m512i xk = load_step(x##i + at); \
        add_products(&a##i, wa, xk); \
        add_products(&b##i, wb, xk); \
        add_products(&c##i, wc, xk); \
        add_products(&d##i, wd, xk); \
    }
#define ROW_FIRST(i) ROW_ADD(i, k)
#define ROW_SECOND(i) ROW_ADD(i, k + 4)

/* acc = fmaf(wscale * xscale, (float)isum, acc) */
INLINE void fold(__m512 scales, __m512 x_scale, __m512i sums, float *acc)
{
    __m512 s = _mm512_mul_ps(scales, x_scale);
    _mm512_store_ps(acc, _mm512_fmadd_ps(s, _mm512_cvtepi32_ps(sums), _mm512_load_ps(acc)));
}
#define ROW_FOLD(i) \
    { \
        __m512 x_scale = _mm512_set1_ps(t->scales[i * t->scale_stride]); \
        fold(sa, x_scale, a##i, acc + ACC_ROW * i); \
        fold(sb, x_scale, b##i, acc + ACC_ROW * i + 16); \
        fold(sc, x_scale, c##i, acc + ACC_ROW * i + 32); \
        fold(sd, x_scale, d##i, acc + ACC_ROW * i + 48); \
    }
#define SCALES_AT(p) _mm512_load_ps((const float *)(const void *)t->w[p])
#define FOLD_ALL(n) \
    __m512 sa = SCALES_AT(0), sb = SCALES_AT(1), sc = SCALES_AT(2), sd = SCALES_AT(3); \
    EACH_##n(ROW_FOLD)

#define PANELS \
    const char *from0 = t->w[0] + STEP_BYTES, *from1 = t->w[1] + STEP_BYTES, \
               *from2 = t->w[2] + STEP_BYTES, *from3 = t->w[3] + STEP_BYTES; \
    const char *ahead0 = t->ahead[0], *ahead1 = t->ahead[1];

#define FETCH \
    _mm_prefetch(ahead0, _MM_HINT_T0); \
    _mm_prefetch(ahead1, _MM_HINT_T0); \
    ahead0 += t->ahead_step, ahead1 += t->ahead_step;

#define Q8_AT(p) _mm512_xor_si512(load_bits(from##p + 16 * (size_t)k), flip)
#define Q8_TILE(n) \
    static void q8_tile_##n(const struct tile *t, float *acc) \
    { \
        const __m512i flip = _mm512_set1_epi8((char)Q8_OFFSET); \
        PANELS EACH_##n(ROW_X) EACH_##n(ROW_START_Q8) for (int k = 0; k < Q8_GROUP; k += 4) \
        { \
            FETCH \
            __m512i wa = Q8_AT(0), wb = Q8_AT(1), wc = Q8_AT(2), wd = Q8_AT(3); \
            EACH_##n(ROW_FIRST) \
        } \
        FOLD_ALL(n) \
    }
Q8_TILE(1)
Q8_TILE(2)
Q8_TILE(3)
Q8_TILE(4)
Q8_TILE(5)
Q8_TILE(6)

#define Q4_LOW(p) _mm512_and_si512(load_bits(from##p + 8 * (size_t)k), nibble)
#define Q4_HIGH(p) \
    _mm512_and_si512(_mm512_srli_epi16(load_bits(from##p + 8 * (size_t)k), 4), nibble)
#define Q4_TILE(n) \
    static void q4_tile_##n(const struct tile *t, float *acc) \
    { \
        const __m512i nibble = _mm512_set1_epi8(15); \
        PANELS EACH_##n(ROW_X) EACH_##n(ROW_START_Q4) for (int k = 0; k < Q4_GROUP; k += 8) \
        { \
            FETCH \
            __m512i wa = Q4_LOW(0), wb = Q4_LOW(1), wc = Q4_LOW(2), wd = Q4_LOW(3); \
            EACH_##n(ROW_FIRST) wa = Q4_HIGH(0), wb = Q4_HIGH(1), wc = Q4_HIGH(2), \
                                wd = Q4_HIGH(3); \
            EACH_##n(ROW_SECOND) \
        } \
        FOLD_ALL(n) \
    }
Q4_TILE(1)
Q4_TILE(2)
Q4_TILE(3)
Q4_TILE(4)
Q4_TILE(5)
Q4_TILE(6)

static tile_run *const q8_tiles[] = {NULL,      q8_tile_1, q8_tile_2, q8_tile_3,
                                     q8_tile_4, q8_tile_5, q8_tile_6};
static tile_run *const q4_tiles[] = {NULL,      q4_tile_1, q4_tile_2, q4_tile_3,
                                     q4_tile_4, q4_tile_5, q4_tile_6};

/* Up to four panels, one from each quarter of a range: long streams are read faster. */
struct four {
    int first, stride, n;
};

/* One group for all rows, in tiles of nearly equal size.  The next group is fetched while the
 * first two tiles run, two panels each; a single tile leaves that to the processor. */
static void all_tiles(tile_run *const *tiles, struct tile t, size_t group_bytes, int n_rows,
                      float *acc)
{
    int n_tiles = (n_rows + LARGEST_TILE - 1) / LARGEST_TILE;
    bool fetches = n_tiles > 1;
    for (int m = 0, done = 0, n; m < n_rows; m += n, done++) {
        n = (n_rows - m + n_tiles - done - 1) / (n_tiles - done);
        t.ahead_step = fetches && done < 2 ? STEP_BYTES : 0;
        for (int i = 0; i < 2; i++)
            t.ahead[i] = t.w[done < 2 ? 2 * done + i : 0] + (fetches ? group_bytes : 0);
        tiles[n](&t, acc + m * ACC_ROW);
        t.x += (size_t)n * t.x_stride;
        t.scales += (size_t)n * t.scale_stride;
        t.sums += (size_t)n * t.scale_stride;
    }
}

/* Four panels for at most ROWS_IN_CACHE rows. */
static void four_panels(const struct matrix *w, const struct four *f, const struct rows *x,
                        float *acc)
{
    bool is_q8 = w->format == FORMAT_Q8;
    size_t group_bytes = is_q8 ? sizeof(struct q8_panel_group) : sizeof(struct q4_panel_group);
    struct tile t = {.x = x->q8,
                     .x_stride = x->q8_stride,
                     .scales = x->scales,
                     .sums = x->sums,
                     .scale_stride = x->scale_stride};
    for (int i = 0; i < PANELS_AT_ONCE; i++) {
        int panel = f->first + (i < f->n ? i * f->stride : 0);
        t.w[i] = (const char *)w->panels + (size_t)panel * w->panel_bytes;
    }
    for (int first = 0; first < w->padded_cols; first += w->group) {
        all_tiles(is_q8 ? q8_tiles : q4_tiles, t, group_bytes, x->n_rows, acc);
        for (int i = 0; i < PANELS_AT_ONCE; i++)
            t.w[i] += group_bytes;
        t.x += w->group;
        t.scales++;
        t.sums++;
    }
}

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

static void matmul(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                   float *y, size_t y_stride)
{
    must(x->group == w->group);
    _Alignas(64) float acc[ROWS_IN_CACHE * ACC_ROW];
    int quarter = (n_panels + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE;
    for (int p = 0; p < quarter; p++) {
        struct four f = {first_panel + p, quarter, (n_panels - p + quarter - 1) / quarter};
        for (int first = 0; first < x->n_rows; first += ROWS_IN_CACHE) {
            struct rows part = rows_part(x, first, min_int(x->n_rows - first, ROWS_IN_CACHE));
            memset(acc, 0, (size_t)part.n_rows * ACC_ROW * sizeof(float));
            four_panels(w, &f, &part, acc);
            store_panels(w, &f, part.n_rows, acc, y + (size_t)first * y_stride, y_stride);
        }
    }
}

void kernels_avx512_quant(struct kernels *k)
{
    k->matmul[FORMAT_Q8] = matmul;
    k->matmul[FORMAT_Q4] = matmul;
}
