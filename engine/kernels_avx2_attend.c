/* engine/kernels_avx2_attend.c - `attend` with AVX2 and FMA: the bits of kernels_attend.c.
 *
 * Up to six queries go through a block together.  Scoring and adding values are one loop:
 * 16 lanes of sums per query (keys of a group, or dimensions), stepping over what is summed
 * (dimensions, or keys).  12 accumulators, two vectors of the cache, one broadcast and one
 * mask fill the 16 registers, so 16-bit elements are decoded where they are used: the even
 * half of a dword by a shift, the odd half by a mask. */
#include <immintrin.h>
#include <math.h>

#include "base/must.h"
#include "engine/kernels.h"
#include "engine/mathf_inline.h"

enum { LANES = 16, HALF = 8, TILE = 6, LINE = 64, NEAR_STEPS = 8, P_MAX = 32767 };
/* The tiles of one call share each group of keys and column of values while it is in L1. */
enum { MAX_TILES = 16 };
/* Wider heads in int8 take the portable way. */
enum { MAX_INT8_DIM = 256 };
#define SMALLEST_T 0x1p-100f

#define INLINE static inline __attribute__((always_inline))

/* One tile: scores, then probabilities of its queries; what their old sums are multiplied
 * with; for int8 the probabilities as integers, and their unit. */
struct tile {
    _Alignas(64) float p[TILE][ATTEND_BLOCK];
    _Alignas(64) uint32_t u[TILE][ATTEND_BLOCK / 2];
    float keep[TILE], unit[TILE];
    int n; /* queries */
};

/* What one step reads: 16 lanes of the cache at x, and of query i the coefficient at
 * c + i * c_stride.  */
struct run {
    const char *x;
    size_t x_step;
    size_t near; /* from x to what this loop or the next reads soon: fetched into L1 */
    int count;   /* of dimensions or keys */
    const void *c;
    size_t c_stride; /* bytes */
};

/* Lines of the next block, fetched one a step. */
struct ahead {
    const char *at;
    size_t step;
};

INLINE void fetch(struct ahead *a, const char *near)
{
    _mm_prefetch(near, _MM_HINT_T0);
    _mm_prefetch(a->at, _MM_HINT_T1);
    a->at += a->step;
}

/* ---- the loop, for each format ---- */

/* Where the coefficients of a step are: rows 0 to 2 from c, 3 to 5 from d, so that every
 * address is a base and a scaled index. */
struct rows6 {
    const char *c, *d;
    size_t stride; /* bytes */
};

INLINE struct rows6 rows_of(const struct run *r)
{
    const char *c = r->c;
    return (struct rows6){c, c + 3 * r->c_stride, r->c_stride};
}

INLINE const char *row_at(const struct rows6 *r, int i, int bytes)
{
    return (i < 3 ? r->c + (size_t)i * r->stride : r->d + (size_t)(i - 3) * r->stride) + bytes;
}

INLINE void next_step(struct rows6 *r, int bytes)
{
    r->c += bytes;
    r->d += bytes;
}

/* acc = y * x + acc, written out: gcc likes to leave the sum in y's register and to move
 * accumulators about, which costs this loop a third of its speed. */
INLINE void fma_into(__m256 *acc, __m256 y, __m256 x)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(*acc) : "x"(y), "x"(x));
}

INLINE void step_floats(__m256 x0, __m256 x1, const struct rows6 *r, int bytes, const int n,
                        __m256 acc[TILE][2])
{
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        __m256 y = _mm256_broadcast_ss((const float *)(const void *)row_at(r, i, bytes));
        fma_into(&acc[i][0], y, x0);
        fma_into(&acc[i][1], y, x1);
    }
}

INLINE void dot_f32(const struct run *r, const int n, __m256 acc[TILE][2], struct ahead *a)
{
    const char *x = r->x;
    struct rows6 c = rows_of(r);
    struct ahead ahead = *a;
    for (int k = 0; k < r->count; k++, x += r->x_step) {
        fetch(&ahead, x + r->near);
        const float *lanes = (const float *)(const void *)x;
        step_floats(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + HALF), &c, 0, n, acc);
        next_step(&c, 4);
    }
    *a = ahead;
}

INLINE __m256 even_half(const char *x)
{
    __m256i raw = _mm256_loadu_si256((const __m256i *)(const void *)x);
    return _mm256_castsi256_ps(_mm256_slli_epi32(raw, 16));
}

INLINE __m256 odd_half(const char *x)
{
    __m256i raw = _mm256_loadu_si256((const __m256i *)(const void *)x);
    return _mm256_castsi256_ps(_mm256_and_si256(raw, _mm256_set1_epi32((int)0xffff0000u)));
}

INLINE void dot_bf16(const struct run *r, const int n, __m256 acc[TILE][2], struct ahead *a)
{
    const char *x = r->x;
    struct rows6 c = rows_of(r);
    struct ahead ahead = *a;
    for (int k = 0; k < r->count / 2; k++, x += r->x_step) {
        fetch(&ahead, x + r->near);
        step_floats(even_half(x), even_half(x + LINE / 2), &c, 0, n, acc);
        step_floats(odd_half(x), odd_half(x + LINE / 2), &c, 4, n, acc);
        next_step(&c, 8);
    }
    /* The last odd half may be another sequence's. */
    if (r->count % 2)
        step_floats(even_half(x), even_half(x + LINE / 2), &c, 0, n, acc);
    *a = ahead;
}

INLINE void step_ints(__m256i x0, __m256i x1, const struct rows6 *r, int bytes, const int n,
                      __m256i acc[TILE][2])
{
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        __m256i y = _mm256_castps_si256(
            _mm256_broadcast_ss((const float *)(const void *)row_at(r, i, bytes)));
        acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(y, x0));
        acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(y, x1));
    }
}

/* Bytes 0 and 2, or 1 and 3, of each dword as two int16. */
INLINE __m256i even_bytes(const char *x)
{
    __m256i raw = _mm256_loadu_si256((const __m256i *)(const void *)x);
    return _mm256_srai_epi16(_mm256_slli_epi16(raw, 8), 8);
}

INLINE __m256i odd_bytes(const char *x)
{
    return _mm256_srai_epi16(_mm256_loadu_si256((const __m256i *)(const void *)x), 8);
}

/* Coefficients are int16 in pairs (0, 2), (1, 3) for each four steps. */
INLINE void dot_int8(const struct run *r, const int n, __m256i acc[TILE][2], struct ahead *a)
{
    const char *x = r->x;
    struct rows6 c = rows_of(r);
    struct ahead ahead = *a;
    for (int k = 0; k < r->count; k += 4, x += r->x_step) {
        fetch(&ahead, x + r->near);
        step_ints(even_bytes(x), even_bytes(x + LINE / 2), &c, 0, n, acc);
        step_ints(odd_bytes(x), odd_bytes(x + LINE / 2), &c, 4, n, acc);
        next_step(&c, 8);
    }
    *a = ahead;
}

/* ---- scores to probabilities ---- */

/* max(a, b) is "a > b ? a : b" here: b if one is a NaN. */
INLINE float largest_of(__m256 m)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

/* The largest score of one query; lanes past the last key become -inf. */
INLINE float finish_scores(float *p, int n_keys, int n_padded)
{
    for (int j = n_keys; j < n_padded; j++)
        p[j] = -INFINITY;
    __m256 m = _mm256_set1_ps(-INFINITY);
    for (int j = 0; j < n_padded; j += HALF)
        m = _mm256_max_ps(_mm256_load_ps(p + j), m);
    return largest_of(m);
}

INLINE void soften_query(struct attend_state *state, float *p, float keep, int n_keys, int n_padded)
{
    const __m256 max = _mm256_set1_ps(state->max), old = _mm256_set1_ps(keep);
    for (int j = 0; j < n_padded; j += HALF)
        _mm256_store_ps(p + j, mathf_exp8(_mm256_sub_ps(_mm256_load_ps(p + j), max)));
    /* Exactly zero also where the maximum is -inf: a lane without a key stays as it was. */
    for (int j = n_keys; j < n_padded; j++)
        p[j] = 0.0f;
    __m256 s0 = _mm256_mul_ps(_mm256_loadu_ps(state->sum), old);
    __m256 s1 = _mm256_mul_ps(_mm256_loadu_ps(state->sum + HALF), old);
    for (int j = 0; j < n_padded; j += LANES) {
        s0 = _mm256_add_ps(s0, _mm256_load_ps(p + j));
        s1 = _mm256_add_ps(s1, _mm256_load_ps(p + j + HALF));
    }
    _mm256_storeu_ps(state->sum, s0);
    _mm256_storeu_ps(state->sum + HALF, s1);
}

/* Scores of a tile become probabilities; the states take them in. */
static void soften(const struct attend_block *b, struct tile *t, struct attend_state *state)
{
    int n_padded = (b->n_keys + LANES - 1) / LANES * LANES;
    _Alignas(32) float change[HALF] = {0};
    for (int i = 0; i < t->n; i++) {
        float largest = finish_scores(t->p[i], b->n_keys, n_padded);
        float before = state[i].max;
        state[i].max = (largest > before ? largest : before) + 0.0f;
        change[i] = before == -INFINITY ? -INFINITY : before - state[i].max;
    }
    _mm256_store_ps(change, mathf_exp8(_mm256_load_ps(change)));
    for (int i = 0; i < t->n; i++) {
        t->keep[i] = change[i];
        soften_query(&state[i], t->p[i], change[i], b->n_keys, n_padded);
    }
}

/* Four groups of (0, 1, 2, 3) int16 become (0, 2), (1, 3). */
INLINE __m256i pair_up(__m256i x)
{
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(order));
}

/* t_j of one query in place of p_j; returns T. */
INLINE float scale_p(const struct attend_block *b, float *p, int n_padded)
{
    __m256 m = _mm256_setzero_ps(), nan = m;
    for (int j = 0; j < n_padded; j += HALF) {
        __m256 t = _mm256_mul_ps(_mm256_load_ps(p + j), _mm256_loadu_ps(b->v_scales + j));
        _mm256_store_ps(p + j, t);
    }
    for (int j = b->n_keys; j < n_padded; j++)
        p[j] = 0.0f; /* the scale of a slot without a key may be anything */
    for (int j = 0; j < n_padded; j += HALF) {
        __m256 t = _mm256_load_ps(p + j);
        m = _mm256_max_ps(t, m);
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(t, t, _CMP_UNORD_Q));
    }
    return _mm256_movemask_ps(nan) ? NAN : largest_of(m);
}

/* Where T is a NaN the integers do not matter. */
static void quantise_p(const struct attend_block *b, struct tile *t)
{
    int n_padded = (b->n_keys + LANES - 1) / LANES * LANES;
    for (int i = 0; i < t->n; i++) {
        float *p = t->p[i];
        float largest = scale_p(b, p, n_padded);
        float factor = largest >= SMALLEST_T ? (float)P_MAX / largest : 0.0f;
        __m256 up = _mm256_set1_ps(factor);
        for (int j = 0; j < n_padded; j += LANES) {
            __m256i u0 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(p + j), up));
            __m256i u1 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(p + j + HALF), up));
            __m256i u = _mm256_permute4x64_epi64(pair_up(_mm256_packs_epi32(u0, u1)), 0xd8);
            _mm256_store_si256((__m256i *)(void *)&t->u[i][j / 2], u);
        }
        t->unit[i] = largest * (1.0f / (float)P_MAX);
    }
}

/* ---- scoring and adding values ---- */

INLINE void clear(__m256 acc[TILE][2], const int n)
{
#pragma GCC unroll 6
    for (int i = 0; i < n; i++)
        acc[i][0] = acc[i][1] = _mm256_setzero_ps();
}

INLINE void clear_ints(__m256i acc[TILE][2], const int n)
{
#pragma GCC unroll 6
    for (int i = 0; i < n; i++)
        acc[i][0] = acc[i][1] = _mm256_setzero_si256();
}

INLINE void dot_floats(enum kv_format format, const struct run *r, const int n, __m256 acc[TILE][2],
                       struct ahead *a)
{
    if (format == KV_BF16)
        dot_bf16(r, n, acc, a);
    else
        dot_f32(r, n, acc, a);
}

/* Scores of the 16 keys at r->x, to column first_key of the tile. */
INLINE void score_floats(enum kv_format format, const struct run *r, const int n, struct tile *t,
                         int first_key, struct ahead *a)
{
    __m256 acc[TILE][2];
    clear(acc, n);
    dot_floats(format, r, n, acc, a);
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        _mm256_store_ps(&t->p[i][first_key], acc[i][0]);
        _mm256_store_ps(&t->p[i][first_key + HALF], acc[i][1]);
    }
}

/* The sums alone: scale_scores() makes scores of them. */
INLINE void score_ints(const struct run *r, const int n, struct tile *t, int first_key,
                       struct ahead *a)
{
    __m256i acc[TILE][2];
    clear_ints(acc, n);
    dot_int8(r, n, acc, a);
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        _mm256_store_ps(&t->p[i][first_key], _mm256_cvtepi32_ps(acc[i][0]));
        _mm256_store_ps(&t->p[i][first_key + HALF], _mm256_cvtepi32_ps(acc[i][1]));
    }
}

/* Sixteen dimensions of the tile's o, at `out`. */
INLINE void add_floats(enum kv_format format, const struct run *r, const int n,
                       const struct tile *t, float *out, size_t stride, struct ahead *a)
{
    __m256 acc[TILE][2];
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        __m256 keep = _mm256_set1_ps(t->keep[i]);
        acc[i][0] = _mm256_mul_ps(_mm256_load_ps(out + (size_t)i * stride), keep);
        acc[i][1] = _mm256_mul_ps(_mm256_load_ps(out + (size_t)i * stride + HALF), keep);
    }
    dot_floats(format, r, n, acc, a);
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        _mm256_store_ps(out + (size_t)i * stride, acc[i][0]);
        _mm256_store_ps(out + (size_t)i * stride + HALF, acc[i][1]);
    }
}

INLINE void add_ints(const struct run *r, const int n, const struct tile *t, float *out,
                     size_t stride, struct ahead *a)
{
    __m256i acc[TILE][2];
    clear_ints(acc, n);
    dot_int8(r, n, acc, a);
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        __m256 keep = _mm256_set1_ps(t->keep[i]), unit = _mm256_set1_ps(t->unit[i]);
        float *o = out + (size_t)i * stride;
        __m256 o0 = _mm256_mul_ps(_mm256_load_ps(o), keep);
        __m256 o1 = _mm256_mul_ps(_mm256_load_ps(o + HALF), keep);
        _mm256_store_ps(o, _mm256_fmadd_ps(unit, _mm256_cvtepi32_ps(acc[i][0]), o0));
        _mm256_store_ps(o + HALF, _mm256_fmadd_ps(unit, _mm256_cvtepi32_ps(acc[i][1]), o1));
    }
}

/* n is made a constant, so that the accumulators live in registers. */
#define WITH_CONSTANT(n_, call) \
    switch (n_) { \
    case 1: { \
        enum { N = 1 }; \
        call; \
        break; \
    } \
    case 2: { \
        enum { N = 2 }; \
        call; \
        break; \
    } \
    case 3: { \
        enum { N = 3 }; \
        call; \
        break; \
    } \
    case 4: { \
        enum { N = 4 }; \
        call; \
        break; \
    } \
    case 5: { \
        enum { N = 5 }; \
        call; \
        break; \
    } \
    default: { \
        enum { N = TILE }; \
        call; \
        break; \
    } \
    }

static void score_f32(const struct run *r, struct tile *t, int first_key, struct ahead *a)
{
    WITH_CONSTANT(t->n, score_floats(KV_F32, r, N, t, first_key, a))
}

static void score_bf16(const struct run *r, struct tile *t, int first_key, struct ahead *a)
{
    WITH_CONSTANT(t->n, score_floats(KV_BF16, r, N, t, first_key, a))
}

static void score_int8(const struct run *r, struct tile *t, int first_key, struct ahead *a)
{
    WITH_CONSTANT(t->n, score_ints(r, N, t, first_key, a))
}

static void add_f32(const struct run *r, const struct tile *t, float *out, size_t stride,
                    struct ahead *a)
{
    WITH_CONSTANT(t->n, add_floats(KV_F32, r, N, t, out, stride, a))
}

static void add_bf16(const struct run *r, const struct tile *t, float *out, size_t stride,
                     struct ahead *a)
{
    WITH_CONSTANT(t->n, add_floats(KV_BF16, r, N, t, out, stride, a))
}

static void add_int8(const struct run *r, const struct tile *t, float *out, size_t stride,
                     struct ahead *a)
{
    WITH_CONSTANT(t->n, add_ints(r, N, t, out, stride, a))
}

/* ---- a block ---- */

struct way {
    size_t element; /* bytes */
    void (*score)(const struct run *r, struct tile *t, int first_key, struct ahead *a);
    void (*add)(const struct run *r, const struct tile *t, float *out, size_t stride,
                struct ahead *a);
};
static const struct way way_f32 = {4, score_f32, add_f32};
static const struct way way_bf16 = {2, score_bf16, add_bf16};
static const struct way way_int8 = {1, score_int8, add_int8};

/* The tiles of one pass, and the queries of an int8 block as dot_int8() reads them. */
struct pass {
    int first, n_tiles; /* query of the first tile */
    struct tile tiles[MAX_TILES];
    _Alignas(64) uint32_t q[MAX_TILES * TILE][MAX_INT8_DIM / 2];
};

/* Queries are shared out evenly over as few tiles as there must be. */
static void plan_pass(struct pass *pass, const struct attend_block *b, int first)
{
    int left = b->n_heads - first;
    int n = left < MAX_TILES * TILE ? left : MAX_TILES * TILE;
    pass->first = first;
    pass->n_tiles = (n + TILE - 1) / TILE;
    for (int i = 0; i < pass->n_tiles; i++) {
        int left_tiles = pass->n_tiles - i;
        pass->tiles[i].n = (n + left_tiles - 1) / left_tiles;
        n -= pass->tiles[i].n;
    }
}

/* With many tiles the work between two blocks is long: all at the end. */
static struct ahead ahead_of(const struct attend_block *b)
{
    if (!b->next)
        return (struct ahead){.at = b->k, .step = 0};
    return (struct ahead){.at = b->next, .step = b->n_heads > TILE ? 0 : LINE};
}

static void fetch_rest(const struct attend_block *b, const struct ahead *a)
{
    if (b->next)
        for (const char *at = a->at; at < (const char *)b->next + b->next_bytes; at += LINE)
            _mm_prefetch(at, _MM_HINT_T1);
}

static void score_pass(const struct attend_block *b, const struct way *way, struct pass *pass,
                       struct ahead *a)
{
    bool is_int8 = way->element == 1;
    size_t per_lane = 4 / way->element;
    size_t group_bytes = ((size_t)b->head_dim + per_lane - 1) / per_lane * LINE;
    struct run r = {.x = b->k,
                    .x_step = LINE,
                    .near = NEAR_STEPS * LINE,
                    .count = b->head_dim,
                    .c_stride = is_int8 ? sizeof(pass->q[0]) : (size_t)b->q_stride * sizeof(float)};
    for (int j = 0; j < b->n_keys; j += LANES, r.x += group_bytes) {
        int query = 0;
        for (int i = 0; i < pass->n_tiles; i++) {
            struct tile *t = &pass->tiles[i];
            if (is_int8)
                r.c = pass->q[query];
            else
                r.c = b->q + (size_t)(pass->first + query) * (size_t)b->q_stride;
            way->score(&r, t, j, a);
            query += t->n;
        }
    }
}

static void add_pass(const struct attend_block *b, const struct way *way, struct pass *pass,
                     struct ahead *a)
{
    bool is_int8 = way->element == 1;
    size_t stride = (size_t)b->v_stride;
    struct run r = {.x_step = stride * sizeof(float),
                    .near = LINE,
                    .count = b->n_keys,
                    .c_stride =
                        is_int8 ? sizeof(pass->tiles[0].u[0]) : sizeof(pass->tiles[0].p[0])};
    for (size_t d = 0; d < stride; d += LANES) {
        float *o = b->o + (size_t)pass->first * stride + d;
        r.x = (const char *)b->v + d * sizeof(float);
        for (int i = 0; i < pass->n_tiles; i++) {
            struct tile *t = &pass->tiles[i];
            r.c = is_int8 ? (const void *)t->u : (const void *)t->p;
            way->add(&r, t, o, stride, a);
            o += (size_t)t->n * stride;
        }
    }
}

static void fold(const struct attend_block *b, const struct way *way)
{
    must(b->n_keys >= 1 && b->n_keys <= ATTEND_BLOCK && b->v_stride % LANES == 0);
    struct pass pass;
    struct ahead a = ahead_of(b);
    for (int first = 0; first < b->n_heads; first += MAX_TILES * TILE) {
        plan_pass(&pass, b, first);
        score_pass(b, way, &pass, &a);
        struct attend_state *state = b->state + first;
        for (int i = 0; i < pass.n_tiles; state += pass.tiles[i++].n)
            soften(b, &pass.tiles[i], state);
        add_pass(b, way, &pass, &a);
    }
    fetch_rest(b, &a);
}

static void attend_f32(const struct attend_block *b)
{
    fold(b, &way_f32);
}

static void attend_bf16(const struct attend_block *b)
{
    fold(b, &way_bf16);
}

/* ---- int8 ---- */

/* Rows are readable and zero up to a multiple of 16. */
static void widen_queries(const struct attend_block *b, struct pass *pass, int n)
{
    for (int i = 0; i < n; i++) {
        const int8_t *q = b->q8 + (size_t)(pass->first + i) * (size_t)b->q8_stride;
        for (int d = 0; d < b->head_dim; d += LANES) {
            __m128i raw = _mm_loadu_si128((const __m128i *)(const void *)(q + d));
            _mm256_store_si256((__m256i *)(void *)&pass->q[i][d / 2],
                               pair_up(_mm256_cvtepi8_epi16(raw)));
        }
    }
}

static void scale_scores(const struct attend_block *b, struct tile *t, const float *q_scales)
{
    for (int i = 0; i < t->n; i++) {
        __m256 scale = _mm256_set1_ps(q_scales[i]);
        for (int j = 0; j < b->n_keys; j += HALF) {
            __m256 both = _mm256_mul_ps(scale, _mm256_loadu_ps(b->k_scales + j));
            _mm256_store_ps(&t->p[i][j], _mm256_mul_ps(both, _mm256_load_ps(&t->p[i][j])));
        }
    }
}

static void attend_int8(const struct attend_block *b)
{
    if (b->head_dim > MAX_INT8_DIM) {
        kernels_named("portable")->attend[KV_INT8](b);
        return;
    }
    must(b->n_keys >= 1 && b->n_keys <= ATTEND_BLOCK && b->v_stride % LANES == 0);
    struct pass pass;
    struct ahead a = ahead_of(b);
    for (int first = 0; first < b->n_heads; first += MAX_TILES * TILE) {
        plan_pass(&pass, b, first);
        int n = b->n_heads - first < MAX_TILES * TILE ? b->n_heads - first : MAX_TILES * TILE;
        widen_queries(b, &pass, n);
        score_pass(b, &way_int8, &pass, &a);
        int query = first;
        for (int i = 0; i < pass.n_tiles; query += pass.tiles[i++].n) {
            scale_scores(b, &pass.tiles[i], b->q_scales + query);
            soften(b, &pass.tiles[i], b->state + query);
            quantise_p(b, &pass.tiles[i]);
        }
        add_pass(b, &way_int8, &pass, &a);
    }
    fetch_rest(b, &a);
}

void kernels_avx2_attend(struct kernels *k)
{
    k->attend[KV_F32] = attend_f32;
    k->attend[KV_BF16] = attend_bf16;
    k->attend[KV_INT8] = attend_int8;
}
