/* engine/kernels_avx2_quant.c - products of int8 rows with q8 and q4 weights for AVX2; same
 * bits as kernels_quant.c.
 *
 * The sum over a group is exact, so it is computed in whatever way the multiplier likes,
 * which takes an unsigned and a signed byte, adds two products and saturates at 16 bits:
 *   q8, one row    |x| times w with x's sign: 2 * 127 * 127 fits
 *   q8, more rows  |w| times x ^ s, s being all ones where w is negative.  x ^ s is one too
 *                  little there, so the sum begins at the sum of those |w|, which is found
 *                  once for all rows (an xor may run anywhere, a byte sign instruction only
 *                  where multiplications run, and those are what there is least of)
 *   q4             (w + 8) times x, at most 2 * 15 * 127.  16 bits hold the sum of a whole
 *                  group, because they may wrap as long as the end fits: it starts at
 *                  -8 times the sum of x, and the end is at most 8 * 127 * 32
 * Four panels are read at a time, one from each quarter of the range: four streams are read
 * faster than one, and the longer they go on the better.  A few rows use weights straight from
 * memory; for more, each group of a panel is unpacked into the first-level cache, where tiles
 * of 4 rows x 16 weights go over it.
 * Accumulators are named variables, written out by macros (see kernels_avx2.c). */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "base/must.h"
#include "engine/kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    VECTOR = 8,      /* 32-bit lanes */
    STEP = 4,        /* columns that one 32-bit lane holds */
    STEP_BYTES = 64, /* a step of a q8 panel: 4 columns x 16 weights */
    PANELS_AT_ONCE = 4,
    FEW_ROWS = 3, /* so many are done before a panel is unpacked */
    ROWS_IN_CACHE = 64,
    TILE_ROWS = 4,
    SCALE_BYTES = PANEL_ROWS * (int)sizeof(float),
    Q8_GROUP_BYTES = SCALE_BYTES + Q8_GROUP * PANEL_ROWS,
    Q4_GROUP_BYTES = SCALE_BYTES + Q4_GROUP * PANEL_ROWS / 2,
    Q8_STEPS = Q8_GROUP / STEP,
    Q4_STEPS = Q4_GROUP / STEP
};

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

INLINE __m256i load_bits(const void *p)
{
    return _mm256_load_si256(p);
}

/* sum += v, as one instruction on one register: left to itself the compiler reorders integer
 * sums, and then spills or copies every one of them in every step. */
#define ADD_IN_PLACE(instruction, sum, v) __asm__(instruction " %1, %0, %0" : "+x"(sum) : "x"(v))
INLINE void add16(__m256i *sum, __m256i v)
{
    ADD_IN_PLACE("vpaddw", *sum, v);
}

INLINE void add32(__m256i *sum, __m256i v)
{
    ADD_IN_PLACE("vpaddd", *sum, v);
}

/* Four columns of a row in every lane. */
INLINE __m256i load_step(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof(four));
    return _mm256_set1_epi32(four);
}

static const char *panel_at(const struct matrix *w, int panel)
{
    return (const char *)w->panels + (size_t)panel * w->panel_bytes;
}

static size_t groups_of(const struct matrix *w)
{
    return (size_t)(w->padded_cols / w->group);
}

static size_t group_bytes_of(const struct matrix *w)
{
    return w->format == FORMAT_Q8 ? Q8_GROUP_BYTES : Q4_GROUP_BYTES;
}

/* The 16 results of a panel for one row; rows of W past the end are not written. */
static void store_panel(const struct matrix *w, int panel, const float *acc, float *y)
{
    int first = panel * PANEL_ROWS;
    memcpy(y + first, acc, (size_t)min_int(w->rows - first, PANEL_ROWS) * sizeof(float));
}

/* acc = fmaf(wscale * xscale, (float)isum, acc) for the 16 weights of a panel. */
INLINE void fold(const float *scales, __m256 x_scale, __m256i low, __m256i high, float *acc)
{
    __m256 s0 = _mm256_mul_ps(_mm256_load_ps(scales), x_scale);
    __m256 s1 = _mm256_mul_ps(_mm256_load_ps(scales + VECTOR), x_scale);
    __m256 a0 = _mm256_load_ps(acc), a1 = _mm256_load_ps(acc + VECTOR);
    _mm256_store_ps(acc, _mm256_fmadd_ps(s0, _mm256_cvtepi32_ps(low), a0));
    _mm256_store_ps(acc + VECTOR, _mm256_fmadd_ps(s1, _mm256_cvtepi32_ps(high), a1));
}

/* What the 16-bit lanes of a q4 sum start from: -8 times the sum of the columns that the
 * lane will add up, columns 0 and 1 of each step in the low one, 2 and 3 in the high one. */
static int32_t q4_start(const int8_t *x)
{
    const __m256i eight = _mm256_set1_epi8(8);
    __m256i v0 = _mm256_loadu_si256((const void *)x),
            v1 = _mm256_loadu_si256((const void *)(x + 32));
    __m256i sum =
        _mm256_add_epi16(_mm256_maddubs_epi16(eight, v0), _mm256_maddubs_epi16(eight, v1));
    __m128i half = _mm_add_epi16(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    half = _mm_add_epi16(half, _mm_unpackhi_epi64(half, half));
    half = _mm_add_epi16(half, _mm_shuffle_epi32(half, 1));
    return _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), half));
}

#define EACH_1(DO) DO(0)
#define EACH_2(DO) DO(0) DO(1)
#define EACH_3(DO) EACH_2(DO) DO(2)
#define EACH_4(DO) EACH_3(DO) DO(3)

/* ---- a few rows ---- */

/* One group of n panels, folded into acc [n][16]; `from` is where it lies in the first. */
typedef void row_group(const char *from, size_t panel_bytes, const int8_t *x, float x_scale,
                       float *acc);

#define SUM_ZERO(i) __m256i low##i = _mm256_setzero_si256(), high##i = _mm256_setzero_si256();
#define SUM_FOLD(i) \
    fold((const float *)(const void *)(from + i * panel_bytes), scale, low##i, high##i, \
         acc + 16 * i);

#define Q8_ROW_HALF(sum, at) \
    { \
        __m256i v = _mm256_maddubs_epi16(size, _mm256_sign_epi8(load_bits(at), xk)); \
        add32(&sum, _mm256_madd_epi16(v, ones)); \
    }
#define Q8_ROW_STEP(i) \
    Q8_ROW_HALF(low##i, w + i * panel_bytes) Q8_ROW_HALF(high##i, w + i * panel_bytes + 32)
#define Q8_ROW(n) \
    static void q8_row_##n(const char *from, size_t panel_bytes, const int8_t *x, float x_scale, \
                           float *acc) \
    { \
        const __m256i ones = _mm256_set1_epi16(1); \
        const __m256 scale = _mm256_set1_ps(x_scale); \
        const char *w = from + SCALE_BYTES; \
        EACH_##n(SUM_ZERO) for (int k = 0; k < Q8_GROUP; k += STEP, w += STEP_BYTES) \
        { \
            __m256i xk = load_step(x + k), size = _mm256_abs_epi8(xk); \
            EACH_##n(Q8_ROW_STEP) \
        } \
        EACH_##n(SUM_FOLD) \
    }
Q8_ROW(1)
Q8_ROW(2)
Q8_ROW(4)

/* Eight columns lie in one load: a step in the low and one in the high four bits. */
#define Q4_ROW_HALF(sum, at) \
    { \
        __m256i v = load_bits(at); \
        __m256i even = _mm256_and_si256(v, nibble); \
        __m256i odd = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble); \
        add16(&sum, _mm256_maddubs_epi16(even, x0)); \
        add16(&sum, _mm256_maddubs_epi16(odd, x1)); \
    }
#define Q4_ROW_STEP(i) \
    Q4_ROW_HALF(low##i, w + i * panel_bytes) Q4_ROW_HALF(high##i, w + i * panel_bytes + 32)
#define Q4_ROW_START(i) __m256i low##i = start, high##i = start;
#define Q4_ROW_WIDEN(i) \
    low##i = _mm256_madd_epi16(low##i, ones); \
    high##i = _mm256_madd_epi16(high##i, ones);
#define Q4_ROW(n) \
    static void q4_row_##n(const char *from, size_t panel_bytes, const int8_t *x, float x_scale, \
                           float *acc) \
    { \
        const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1); \
        const __m256i start = _mm256_set1_epi32(q4_start(x)); \
        const __m256 scale = _mm256_set1_ps(x_scale); \
        const char *w = from + SCALE_BYTES; \
        EACH_##n(Q4_ROW_START) for (int k = 0; k < Q4_GROUP; k += 2 * STEP, w += STEP_BYTES) \
        { \
            __m256i x0 = load_step(x + k), x1 = load_step(x + k + STEP); \
            EACH_##n(Q4_ROW_STEP) \
        } \
        EACH_##n(Q4_ROW_WIDEN) EACH_##n(SUM_FOLD) \
    }
Q4_ROW(1)
Q4_ROW(2)
Q4_ROW(4)

/* n panels (1, 2 or 4), every apart-th from `panel` on, for at most FEW_ROWS rows. */
static void few_rows(const struct matrix *w, int panel, int apart, int n, const struct rows *x,
                     float *y, size_t y_stride)
{
    static row_group *const q8[] = {NULL, q8_row_1, q8_row_2, NULL, q8_row_4};
    static row_group *const q4[] = {NULL, q4_row_1, q4_row_2, NULL, q4_row_4};
    row_group *run = (w->format == FORMAT_Q8 ? q8 : q4)[n];
    size_t group_bytes = group_bytes_of(w), stride = (size_t)apart * w->panel_bytes;
    _Alignas(32) float acc[FEW_ROWS][PANELS_AT_ONCE * PANEL_ROWS] = {{0}};
    const char *from = panel_at(w, panel);
    for (size_t g = 0, n_groups = groups_of(w); g < n_groups; g++, from += group_bytes)
        for (size_t m = 0; m < (size_t)x->n_rows; m++)
            run(from, stride, x->q8 + m * x->q8_stride + g * (size_t)w->group,
                x->scales[m * x->scale_stride + g], acc[m]);
    for (int m = 0; m < x->n_rows; m++)
        for (int i = 0; i < n; i++)
            store_panel(w, panel + i * apart, acc[m] + PANEL_ROWS * i, y + (size_t)m * y_stride);
}

/* ---- more rows ---- */

/* A group of a panel as the tiles read it. */
struct unpacked {
    const float *scales;              /* [16] */
    __m256i q8_start[2];              /* q8: per weight, the sum of |w| over the negative ones */
    __m256i size[Q8_STEPS][2];        /* q8: |w|; q4: w + 8 */
    __m256i is_negative[Q8_STEPS][2]; /* q8 */
};

INLINE __m256i q8_unpack_half(struct unpacked *u, int k, int half, __m256i v, __m256i start)
{
    __m256i size = _mm256_abs_epi8(v), sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), v);
    u->size[k][half] = size;
    u->is_negative[k][half] = sign;
    return _mm256_sub_epi16(start, _mm256_maddubs_epi16(size, sign));
}

static void q8_unpack(const char *from, struct unpacked *u)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i low = _mm256_setzero_si256(), high = low; /* at most 32 * 2 * 127 */
    u->scales = (const float *)(const void *)from;
    from += SCALE_BYTES;
    for (int k = 0; k < Q8_STEPS; k++, from += STEP_BYTES) {
        low = q8_unpack_half(u, k, 0, load_bits(from), low);
        high = q8_unpack_half(u, k, 1, load_bits(from + 32), high);
    }
    u->q8_start[0] = _mm256_madd_epi16(low, ones);
    u->q8_start[1] = _mm256_madd_epi16(high, ones);
}

static void q4_unpack(const char *from, struct unpacked *u)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    u->scales = (const float *)(const void *)from;
    from += SCALE_BYTES;
    for (int k = 0; k < Q4_STEPS; k += 2, from += STEP_BYTES) {
        __m256i v0 = load_bits(from), v1 = load_bits(from + 32);
        u->size[k][0] = _mm256_and_si256(v0, nibble);
        u->size[k][1] = _mm256_and_si256(v1, nibble);
        u->size[k + 1][0] = _mm256_and_si256(_mm256_srli_epi16(v0, 4), nibble);
        u->size[k + 1][1] = _mm256_and_si256(_mm256_srli_epi16(v1, 4), nibble);
    }
}

/* One group of n rows. */
struct tile_rows {
    const int8_t *x;
    size_t x_stride;
    const float *scales;
    size_t scale_stride;
    const int32_t *q4_start; /* [n] */
    const char *ahead;       /* what to fetch meanwhile, so many bytes per step */
    size_t ahead_step;
};
typedef void tile(const struct unpacked *u, const struct tile_rows *t, float *acc);

#define TILE_X(i) const int8_t *x##i = t->x + i * t->x_stride;
#define TILE_FOLD(i) \
    fold(u->scales, _mm256_set1_ps(t->scales[i * t->scale_stride]), low##i, high##i, acc + 16 * i);

#define Q8_START(i) __m256i low##i = u->q8_start[0], high##i = u->q8_start[1];
#define Q8_HALF(sum, size, sign) \
    add32(&sum, _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_xor_si256(xk, sign)), ones));
#define Q8_STEP(i) \
    { \
        __m256i xk = load_step(x##i + STEP * k); \
        Q8_HALF(low##i, w0, s0) \
        Q8_HALF(high##i, w1, s1) \
    }
#define Q8_TILE(n) \
    static void q8_tile_##n(const struct unpacked *u, const struct tile_rows *t, float *acc) \
    { \
        const __m256i ones = _mm256_set1_epi16(1); \
        const char *ahead = t->ahead; \
        EACH_##n(TILE_X) EACH_##n(Q8_START) for (size_t k = 0; k < Q8_STEPS; k++) \
        { \
            _mm_prefetch(ahead, _MM_HINT_T0); \
            ahead += t->ahead_step; \
            __m256i w0 = u->size[k][0], w1 = u->size[k][1]; \
            __m256i s0 = u->is_negative[k][0], s1 = u->is_negative[k][1]; \
            EACH_##n(Q8_STEP) \
        } \
        EACH_##n(TILE_FOLD) \
    }
Q8_TILE(1)
Q8_TILE(2)
Q8_TILE(3)
Q8_TILE(4)

#define Q4_START(i) __m256i low##i = _mm256_set1_epi32(t->q4_start[i]), high##i = low##i;
#define Q4_STEP(i) \
    { \
        __m256i xk = load_step(x##i + STEP * k); \
        add16(&low##i, _mm256_maddubs_epi16(w0, xk)); \
        add16(&high##i, _mm256_maddubs_epi16(w1, xk)); \
    }
#define Q4_TILE(n) \
    static void q4_tile_##n(const struct unpacked *u, const struct tile_rows *t, float *acc) \
    { \
        const __m256i ones = _mm256_set1_epi16(1); \
        const char *ahead = t->ahead; \
        EACH_##n(TILE_X) EACH_##n(Q4_START) for (size_t k = 0; k < Q4_STEPS; k++) \
        { \
            _mm_prefetch(ahead, _MM_HINT_T0); \
            ahead += t->ahead_step; \
            __m256i w0 = u->size[k][0], w1 = u->size[k][1]; \
            EACH_##n(Q4_STEP) \
        } \
        EACH_##n(Q4_ROW_WIDEN) EACH_##n(TILE_FOLD) \
    }
Q4_TILE(1)
Q4_TILE(2)
Q4_TILE(3)
Q4_TILE(4)

static tile *const q8_tiles[] = {NULL, q8_tile_1, q8_tile_2, q8_tile_3, q8_tile_4};
static tile *const q4_tiles[] = {NULL, q4_tile_1, q4_tile_2, q4_tile_3, q4_tile_4};

/* Group g of n panels for at most ROWS_IN_CACHE rows, folded into acc [n][rows][16]. */
static void group_rows(const struct matrix *w, int panel, int apart, int n, size_t g,
                       const struct rows *x, float *acc)
{
    struct unpacked u;
    int32_t starts[ROWS_IN_CACHE];
    bool is_q8 = w->format == FORMAT_Q8;
    const int8_t *x0 = x->q8 + g * (size_t)w->group;
    size_t group_bytes = group_bytes_of(w), steps = is_q8 ? Q8_STEPS : Q4_STEPS;
    size_t all_steps = (size_t)((x->n_rows + TILE_ROWS - 1) / TILE_ROWS) * steps;
    for (int m = 0; !is_q8 && m < x->n_rows; m++)
        starts[m] = q4_start(x0 + (size_t)m * x->q8_stride);
    for (int i = 0; i < n; i++) {
        const char *from = panel_at(w, panel + i * apart) + g * group_bytes;
        /* The next group's turn comes when the other panels have had theirs.  It is fetched
         * evenly over all tiles; the last of a matrix is past its end, which a prefetch may. */
        struct tile_rows t = {.x = x0,
                              .x_stride = x->q8_stride,
                              .scales = x->scales + g,
                              .scale_stride = x->scale_stride,
                              .q4_start = starts,
                              .ahead = from + group_bytes,
                              .ahead_step = (group_bytes + all_steps - 1) / all_steps};
        (is_q8 ? q8_unpack : q4_unpack)(from, &u);
        for (int m = 0, n_tile; m < x->n_rows; m += n_tile, acc += n_tile * PANEL_ROWS) {
            n_tile = min_int(x->n_rows - m, TILE_ROWS);
            (is_q8 ? q8_tiles : q4_tiles)[n_tile](&u, &t, acc);
            t.x += (size_t)n_tile * t.x_stride;
            t.scales += (size_t)n_tile * t.scale_stride;
            t.q4_start += n_tile;
            t.ahead += steps * t.ahead_step;
        }
    }
}

/* n panels, every apart-th from `panel` on, for at most ROWS_IN_CACHE rows. */
static void many_rows(const struct matrix *w, int panel, int apart, int n, const struct rows *x,
                      float *y, size_t y_stride)
{
    _Alignas(64) float acc[PANELS_AT_ONCE * ROWS_IN_CACHE * PANEL_ROWS];
    memset(acc, 0, (size_t)(n * x->n_rows * PANEL_ROWS) * sizeof(float));
    for (size_t g = 0, n_groups = groups_of(w); g < n_groups; g++)
        group_rows(w, panel, apart, n, g, x, acc);
    const float *from = acc;
    for (int i = 0; i < n; i++)
        for (int m = 0; m < x->n_rows; m++, from += PANEL_ROWS)
            store_panel(w, panel + i * apart, from, y + (size_t)m * y_stride);
}

static void some_rows(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                      float *y, size_t y_stride)
{
    int quarter = n_panels / PANELS_AT_ONCE, done = quarter * PANELS_AT_ONCE;
    void (*run)(const struct matrix *, int, int, int, const struct rows *, float *, size_t) =
        x->n_rows <= FEW_ROWS ? few_rows : many_rows;
    for (int p = first_panel; p < first_panel + quarter; p++)
        run(w, p, quarter, PANELS_AT_ONCE, x, y, y_stride);
    for (; done<n_panels; done += n_panels - done> 1 ? 2 : 1)
        run(w, first_panel + done, 1, min_int(n_panels - done, 2), x, y, y_stride);
}

static void matmul(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                   float *y, size_t y_stride)
{
    must(x->group == w->group);
    for (int first = 0; first < x->n_rows; first += ROWS_IN_CACHE) {
        struct rows part = rows_part(x, first, min_int(x->n_rows - first, ROWS_IN_CACHE));
        some_rows(w, first_panel, n_panels, &part, y + (size_t)first * y_stride, y_stride);
    }
}

void kernels_avx2_quant(struct kernels *k)
{
    k->matmul[FORMAT_Q8] = matmul;
    k->matmul[FORMAT_Q4] = matmul;
}
