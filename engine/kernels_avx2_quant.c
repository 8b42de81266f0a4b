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
 * of 4 (q8) or 6 (q4) rows x 16 weights go over it.
 * Accumulators are named variables, written out by macros (see kernels_avx2.c). */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "base/must.h"
#include "engine/kernels.h"
#include "model/halves.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    VECTOR = 8,      /* 32-bit lanes */
    STEP = 4,        /* columns that one 32-bit lane holds */
    STEP_BYTES = 64, /* a step of a q8 panel: 4 columns x 16 weights */
    PANELS_AT_ONCE = 4,
    FEW_ROWS = 4, /* so many are done before a panel is unpacked */
    ROWS_IN_CACHE = 64,
    Q8_TILE_ROWS = 4,
    Q4_TILE_ROWS = 6,
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
#define EACH_5(DO) EACH_4(DO) DO(4)
#define EACH_6(DO) EACH_5(DO) DO(5)

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

/* Panels that are read together: n (1, 2 or 4) of them, every apart-th from the first. */
struct panels {
    const struct matrix *w;
    int first, apart, n;
};

/* The results [16] of panel i for one row; rows of W past the end are not written. */
static void store_panel(const struct panels *p, int i, const float *acc, float *y)
{
    int first = (p->first + i * p->apart) * PANEL_ROWS;
    memcpy(y + first, acc, (size_t)min_int(p->w->rows - first, PANEL_ROWS) * sizeof(float));
}

/* At most FEW_ROWS rows. */
static void few_rows(const struct panels *p, const struct rows *x, float *y, size_t y_stride)
{
    static row_group *const q8[] = {NULL, q8_row_1, q8_row_2, NULL, q8_row_4};
    static row_group *const q4[] = {NULL, q4_row_1, q4_row_2, NULL, q4_row_4};
    row_group *run = (p->w->format == FORMAT_Q8 ? q8 : q4)[p->n];
    size_t group_bytes = group_bytes_of(p->w), stride = (size_t)p->apart * p->w->panel_bytes;
    _Alignas(32) float acc[FEW_ROWS][PANELS_AT_ONCE * PANEL_ROWS] = {{0}};
    const char *from = panel_at(p->w, p->first);
    for (size_t g = 0, n_groups = groups_of(p->w); g < n_groups; g++, from += group_bytes)
        for (size_t m = 0; m < (size_t)x->n_rows; m++)
            run(from, stride, x->q8 + m * x->q8_stride + g * (size_t)p->w->group,
                x->scales[m * x->scale_stride + g], acc[m]);
    for (int m = 0; m < x->n_rows; m++)
        for (int i = 0; i < p->n; i++)
            store_panel(p, i, acc[m] + PANEL_ROWS * i, y + (size_t)m * y_stride);
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
        EACH_##n(TILE_X) EACH_##n(Q4_START) \
            _Pragma("GCC unroll 4") for (size_t k = 0; k < Q4_STEPS; k++) \
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
Q4_TILE(5)
Q4_TILE(6)

static tile *const q8_tiles[] = {NULL, q8_tile_1, q8_tile_2, q8_tile_3, q8_tile_4};
static tile *const q4_tiles[] = {NULL,      q4_tile_1, q4_tile_2, q4_tile_3,
                                 q4_tile_4, q4_tile_5, q4_tile_6};

/* Rows of the next tile: as many as registers allow, the last two tiles alike. */
static int rows_next(int left, int most)
{
    return left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
}

/* All tiles of an unpacked group, folded into acc [rows][16]. */
static void all_tiles(const struct unpacked *u, struct tile_rows t, bool is_q8, int n_rows,
                      float *acc)
{
    tile *const *tiles = is_q8 ? q8_tiles : q4_tiles;
    int most = is_q8 ? Q8_TILE_ROWS : Q4_TILE_ROWS;
    size_t steps = is_q8 ? Q8_STEPS : Q4_STEPS;
    size_t n_tiles = (size_t)((n_rows + most - 1) / most);
    size_t bytes = is_q8 ? Q8_GROUP_BYTES : Q4_GROUP_BYTES;
    t.ahead_step = (bytes + n_tiles * steps - 1) / (n_tiles * steps);
    for (int m = 0, n; m < n_rows; m += n, acc += n * PANEL_ROWS) {
        n = rows_next(n_rows - m, most);
        tiles[n](u, &t, acc);
        t.x += (size_t)n * t.x_stride;
        t.scales += (size_t)n * t.scale_stride;
        t.q4_start += n;
        t.ahead += steps * t.ahead_step;
    }
}

/* Group g of the panels for at most ROWS_IN_CACHE rows, folded into acc [p->n][rows][16]. */
static void group_rows(const struct panels *p, size_t g, const struct rows *x, float *acc)
{
    struct unpacked u;
    int32_t starts[ROWS_IN_CACHE];
    bool is_q8 = p->w->format == FORMAT_Q8;
    size_t group_bytes = group_bytes_of(p->w);
    struct tile_rows t = {.x = x->q8 + g * (size_t)p->w->group,
                          .x_stride = x->q8_stride,
                          .scales = x->scales + g,
                          .scale_stride = x->scale_stride,
                          .q4_start = starts};
    for (int m = 0; !is_q8 && m < x->n_rows; m++)
        starts[m] = q4_start(t.x + (size_t)m * t.x_stride);
    for (int i = 0; i < p->n; i++, acc += x->n_rows * PANEL_ROWS) {
        const char *from = panel_at(p->w, p->first + i * p->apart) + g * group_bytes;
        /* The panel's next group: its turn comes when the other panels have had theirs.  The
         * last of a matrix is past its end, which a prefetch may. */
        t.ahead = from + group_bytes;
        (is_q8 ? q8_unpack : q4_unpack)(from, &u);
        all_tiles(&u, t, is_q8, x->n_rows, acc);
    }
}

/* At most ROWS_IN_CACHE rows. */
static void many_rows(const struct panels *p, const struct rows *x, float *y, size_t y_stride)
{
    _Alignas(64) float acc[PANELS_AT_ONCE * ROWS_IN_CACHE * PANEL_ROWS];
    memset(acc, 0, (size_t)(p->n * x->n_rows * PANEL_ROWS) * sizeof(float));
    for (size_t g = 0, n_groups = groups_of(p->w); g < n_groups; g++)
        group_rows(p, g, x, acc);
    const float *from = acc;
    for (int i = 0; i < p->n; i++)
        for (int m = 0; m < x->n_rows; m++, from += PANEL_ROWS)
            store_panel(p, i, from, y + (size_t)m * y_stride);
}

static void panel_range(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                        float *y, size_t y_stride)
{
    void (*run)(const struct panels *, const struct rows *, float *, size_t) =
        x->n_rows <= FEW_ROWS ? few_rows : many_rows;
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

static void matmul(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                   float *y, size_t y_stride)
{
    must(x->group == w->group);
    for (int first = 0; first < x->n_rows; first += ROWS_IN_CACHE) {
        struct rows part = rows_part(x, first, min_int(x->n_rows - first, ROWS_IN_CACHE));
        panel_range(w, first_panel, n_panels, &part, y + (size_t)first * y_stride, y_stride);
    }
}

/* ---- activations ---- */

enum { QUANTISED_AT_ONCE = 32 };

/* Eight floats, zeros from the n-th on. */
INLINE __m256 load_some(const float *x, int n)
{
    if (n >= VECTOR)
        return _mm256_loadu_ps(x);
    float part[VECTOR] = {0};
    if (n > 0)
        memcpy(part, x, (size_t)n * sizeof(*x));
    return _mm256_loadu_ps(part);
}

/* The largest magnitude's bits: ordered like the values, with infinity and then NaNs last. */
static uint32_t largest_bits(const float *x, int n)
{
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MAX));
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < n; i += VECTOR) {
        __m256 v = _mm256_and_ps(load_some(x + i, n - i), magnitude);
        most = _mm256_max_epi32(most, _mm256_castps_si256(v));
    }
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    m = _mm_max_epi32(m, _mm_unpackhi_epi64(m, m));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

/* q of at most 32 columns (all 32 are written); returns their sum added to `sum`. */
INLINE __m256i quantise_32(const float *x, int n, __m256 inverse, __m256i sum, int8_t *q)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i v[4];
    for (int i = 0; i < 4; i++) {
        __m256 part = load_some(x + i * VECTOR, n - i * VECTOR);
        v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(part, inverse));
        sum = _mm256_add_epi32(sum, v[i]);
    }
    __m256i packed =
        _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    _mm256_storeu_si256((void *)q, _mm256_permutevar8x32_epi32(packed, order));
    return sum;
}

static int32_t add_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
}

static void quantise_group(const float *x, int n, int8_t *q, float *scale, int32_t *sum)
{
    float largest = f32_from_bits(largest_bits(x, n)), inverse = 127.0f / largest;
    *scale = isfinite(largest) ? 0.0f : NAN;
    *sum = 0;
    if (!isfinite(largest) || isinf(inverse)) {
        memset(q, 0, (size_t)n);
        return;
    }
    const __m256 factor = _mm256_set1_ps(inverse);
    __m256i sums = _mm256_setzero_si256();
    int i = 0;
    for (; i + QUANTISED_AT_ONCE <= n; i += QUANTISED_AT_ONCE)
        sums = quantise_32(x + i, QUANTISED_AT_ONCE, factor, sums, q + i);
    if (i < n) {
        int8_t last[QUANTISED_AT_ONCE];
        sums = quantise_32(x + i, n - i, factor, sums, last);
        memcpy(q + i, last, (size_t)(n - i));
    }
    *scale = largest * (1.0f / 127.0f);
    *sum = add_lanes(sums);
}

static void quantise(const float *x, int n, int group, int8_t *q, float *scales, int32_t *sums)
{
    for (int first = 0, g = 0; first < n; first += group, g++) {
        int count = min_int(n - first, group);
        quantise_group(x + first, count, q + first, &scales[g], &sums[g]);
        memset(q + first + count, 0, (size_t)(group - count));
    }
}

void kernels_avx2_quant(struct kernels *k)
{
    k->quantise = quantise;
    k->matmul[FORMAT_Q8] = matmul;
    k->matmul[FORMAT_Q4] = matmul;
}
