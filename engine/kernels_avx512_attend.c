/* engine/kernels_avx512_attend.c - `attend` with AVX-512 and VNNI: the bits of kernels_attend.c.
 *
 * The plan is that of kernels_avx2_attend.c - tiles of queries that share what is read, one
 * loop for scoring and for adding values - with registers of sixteen lanes, two at a time, and
 * up to eight queries.  int8 products need an unsigned side: keys become key + 128, which
 * -128 times the sum of a query's integers undoes; a probability's 15 bits are two bytes. */
#include <immintrin.h>
#include <math.h>

#include "base/must.h"
#include "engine/kernels.h"
#include "engine/mathf_inline512.h"

enum { LANES = 16, TILE = 8, LINE = 64, P_MAX = 32767, GROUPS = ATTEND_BLOCK / LANES };
/* Steps from a line of keys to the one that is fetched into L1 meanwhile. */
enum { NEAR_STEPS = 8 };
/* The tiles of one call share each group of keys and column of values while it is in L1. */
enum { MAX_TILES = 12 };
#define SMALLEST_T 0x1p-100f

#define INLINE static inline __attribute__((always_inline))

/* One tile: scores, then probabilities of its queries; what their old sums are multiplied
 * with; for int8 the probabilities as integers, in bytes, and their unit. */
struct tile {
    _Alignas(64) float p[TILE][ATTEND_BLOCK];
    _Alignas(64) uint8_t high[TILE][ATTEND_BLOCK], low[TILE][ATTEND_BLOCK];
    float keep[TILE], unit[TILE];
    int first, n; /* queries */
};

/* What one step reads: lanes of the cache at x and, `apart` bytes on, 16 more; of query i the
 * coefficient at c + i * c_stride. */
struct run {
    const char *x;
    size_t apart; /* 0: only 16 lanes */
    size_t x_step;
    size_t near; /* from x to what this loop or the next reads soon: fetched into L1 */
    int count;   /* of dimensions or keys */
    const void *c;
    size_t c_stride; /* bytes */
};

/* Lines of the next block, fetched with every line of this one. */
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

INLINE __m512 broadcast(const struct run *r, int i, int k)
{
    const char *row = (const char *)r->c + (size_t)i * r->c_stride;
    return _mm512_set1_ps(((const float *)(const void *)row)[k]);
}

INLINE void step_floats(const struct run *r, int k, __m512 x0, __m512 x1, const int n,
                        const int wide, __m512 acc[TILE][2])
{
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        __m512 y = broadcast(r, i, k);
        acc[i][0] = _mm512_fmadd_ps(y, x0, acc[i][0]);
        if (wide)
            acc[i][1] = _mm512_fmadd_ps(y, x1, acc[i][1]);
    }
}

INLINE void dot_f32(const struct run *r, const int n, const int wide, __m512 acc[TILE][2],
                    struct ahead *a)
{
    const char *x = r->x;
    struct ahead ahead = *a;
    for (int k = 0; k < r->count; k++, x += r->x_step) {
        const char *y = wide ? x + r->apart : x;
        fetch(&ahead, x + r->near);
        if (wide)
            fetch(&ahead, y + r->near);
        step_floats(r, k, _mm512_loadu_ps(x), _mm512_loadu_ps(y), n, wide, acc);
    }
    *a = ahead;
}

INLINE __m512 even_half(const char *x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(x), 16));
}

INLINE __m512 odd_half(const char *x)
{
    const __m512i mask = _mm512_set1_epi32((int)0xffff0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(x), mask));
}

INLINE void dot_bf16(const struct run *r, const int n, const int wide, __m512 acc[TILE][2],
                     struct ahead *a)
{
    const char *x = r->x;
    struct ahead ahead = *a;
    int k = 0;
    for (; k + 2 <= r->count; k += 2, x += r->x_step) {
        const char *y = wide ? x + r->apart : x;
        fetch(&ahead, x + r->near);
        if (wide)
            fetch(&ahead, y + r->near);
        step_floats(r, k, even_half(x), even_half(y), n, wide, acc);
        step_floats(r, k + 1, odd_half(x), odd_half(y), n, wide, acc);
    }
    /* The last odd half may be another sequence's. */
    if (k < r->count)
        step_floats(r, k, even_half(x), even_half(wide ? x + r->apart : x), n, wide, acc);
    *a = ahead;
}

INLINE __m512i broadcast_bytes(const struct run *r, int i, int k)
{
    const char *row = (const char *)r->c + (size_t)i * r->c_stride + k;
    return _mm512_set1_epi32(*(const int *)(const void *)row);
}

/* Keys times queries: acc must begin with -128 times the sum of the query. */
INLINE void dot_keys(const struct run *r, const int n, const int wide, __m512i acc[TILE][2],
                     struct ahead *a)
{
    const __m512i sign = _mm512_set1_epi32((int)0x80808080u);
    const char *x = r->x;
    struct ahead ahead = *a;
    for (int k = 0; k < r->count; k += 4, x += r->x_step) {
        const char *y = wide ? x + r->apart : x;
        fetch(&ahead, x + r->near);
        if (wide)
            fetch(&ahead, y + r->near);
        __m512i x0 = _mm512_xor_si512(_mm512_loadu_si512(x), sign);
        __m512i x1 = _mm512_xor_si512(_mm512_loadu_si512(y), sign);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            __m512i q = broadcast_bytes(r, i, k);
            acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], x0, q);
            if (wide)
                acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], x1, q);
        }
    }
    *a = ahead;
}

/* Values times the high and the low bytes of probabilities; `apart` bytes are between those. */
INLINE void dot_values(const struct run *r, const int n, __m512i acc[TILE][2], struct ahead *a)
{
    const char *x = r->x;
    struct ahead ahead = *a;
    for (int k = 0; k < r->count; k += 4, x += r->x_step) {
        fetch(&ahead, x + r->near);
        __m512i v = _mm512_loadu_si512(x);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], broadcast_bytes(r, i, k), v);
            acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], broadcast_bytes(r, i, k + (int)r->apart), v);
        }
    }
    *a = ahead;
}

/* ---- scores to probabilities ---- */

/* The lanes of a group that hold keys. */
INLINE __mmask16 lanes_of(int n_keys, int group)
{
    int n = n_keys - group * LANES;
    return n >= LANES ? (__mmask16)0xffff : n > 0 ? (__mmask16)((1 << n) - 1) : 0;
}

/* max(a, b) is "a > b ? a : b" here: b if one is a NaN. */
INLINE float largest_score(const float *p, int n_keys)
{
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 m = lowest;
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; g++) {
        __m512 s = _mm512_mask_loadu_ps(lowest, lanes_of(n_keys, g), p + g * LANES);
        m = _mm512_max_ps(s, m);
    }
    return _mm512_reduce_max_ps(m);
}

INLINE void soften_query(struct attend_state *state, float *p, float keep, int n_keys)
{
    const __m512 max = _mm512_set1_ps(state->max);
    __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(state->sum), _mm512_set1_ps(keep));
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; g++) {
        __m512 x = mathf_exp16(_mm512_sub_ps(_mm512_load_ps(p + g * LANES), max));
        x = _mm512_maskz_mov_ps(lanes_of(n_keys, g), x);
        _mm512_store_ps(p + g * LANES, x);
        sum = _mm512_add_ps(sum, x);
    }
    _mm512_storeu_ps(state->sum, sum);
}

/* Scores of a tile become probabilities; the states take them in. */
static void soften(const struct attend_block *b, struct tile *t)
{
    struct attend_state *state = b->state + t->first;
    _Alignas(64) float change[LANES] = {0};
    for (int i = 0; i < t->n; i++) {
        float largest = largest_score(t->p[i], b->n_keys), before = state[i].max;
        state[i].max = (largest > before ? largest : before) + 0.0f;
        change[i] = before == -INFINITY ? -INFINITY : before - state[i].max;
    }
    _mm512_store_ps(change, mathf_exp16(_mm512_load_ps(change)));
    for (int i = 0; i < t->n; i++) {
        t->keep[i] = change[i];
        soften_query(&state[i], t->p[i], change[i], b->n_keys);
    }
}

/* Sums of products become scores. */
static void scale_scores(const struct attend_block *b, struct tile *t)
{
    for (int i = 0; i < t->n; i++) {
        __m512 scale = _mm512_set1_ps(b->q_scales[t->first + i]);
        for (int j = 0; j < b->n_keys; j += LANES) {
            __m512 both = _mm512_mul_ps(scale, _mm512_loadu_ps(b->k_scales + j));
            _mm512_store_ps(&t->p[i][j], _mm512_mul_ps(both, _mm512_load_ps(&t->p[i][j])));
        }
    }
}

/* Where T is a NaN the integers do not matter. */
static void quantise_p(const struct attend_block *b, struct tile *t)
{
    for (int i = 0; i < t->n; i++) {
        __m512 part[GROUPS], m = _mm512_setzero_ps();
        __mmask16 nan = 0;
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) {
            part[g] =
                _mm512_maskz_mul_ps(lanes_of(b->n_keys, g), _mm512_load_ps(&t->p[i][g * LANES]),
                                    _mm512_loadu_ps(b->v_scales + g * LANES));
            m = _mm512_max_ps(part[g], m);
            nan |= _mm512_cmp_ps_mask(part[g], part[g], _CMP_UNORD_Q);
        }
        float largest = nan ? NAN : _mm512_reduce_max_ps(m);
        float factor = largest >= SMALLEST_T ? (float)P_MAX / largest : 0.0f;
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) {
            __m512i u = _mm512_cvtps_epi32(_mm512_mul_ps(part[g], _mm512_set1_ps(factor)));
            _mm_store_si128((__m128i *)(void *)&t->low[i][g * LANES], _mm512_cvtepi32_epi8(u));
            _mm_store_si128((__m128i *)(void *)&t->high[i][g * LANES],
                            _mm512_cvtepi32_epi8(_mm512_srli_epi32(u, 8)));
        }
        t->unit[i] = largest * (1.0f / (float)P_MAX);
    }
}

/* ---- scoring and adding values ---- */

/* 16 or 32 keys at r->x, to column first_key of the tile. */
INLINE void score_floats(enum kv_format format, const struct run *r, const int n, const int wide,
                         struct tile *t, int first_key, struct ahead *a)
{
    __m512 acc[TILE][2];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        acc[i][0] = acc[i][1] = _mm512_setzero_ps();
    if (format == KV_BF16)
        dot_bf16(r, n, wide, acc, a);
    else
        dot_f32(r, n, wide, acc, a);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        _mm512_store_ps(&t->p[i][first_key], acc[i][0]);
        if (wide)
            _mm512_store_ps(&t->p[i][first_key + LANES], acc[i][1]);
    }
}

/* The sums alone: scale_scores() makes scores of them. */
INLINE void score_ints(const struct run *r, const int n, const int wide, struct tile *t,
                       const int32_t *sums, int first_key, struct ahead *a)
{
    __m512i acc[TILE][2];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        acc[i][0] = acc[i][1] = _mm512_set1_epi32(-128 * sums[i]);
    dot_keys(r, n, wide, acc, a);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        _mm512_store_ps(&t->p[i][first_key], _mm512_cvtepi32_ps(acc[i][0]));
        if (wide)
            _mm512_store_ps(&t->p[i][first_key + LANES], _mm512_cvtepi32_ps(acc[i][1]));
    }
}

/* 16 or 32 dimensions of the tile's o, at `out`. */
INLINE void add_floats(enum kv_format format, const struct run *r, const int n, const int wide,
                       const struct tile *t, float *out, size_t stride, struct ahead *a)
{
    __m512 acc[TILE][2];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        const float *o = out + (size_t)i * stride;
        __m512 keep = _mm512_set1_ps(t->keep[i]);
        acc[i][0] = _mm512_mul_ps(_mm512_load_ps(o), keep);
        acc[i][1] = wide ? _mm512_mul_ps(_mm512_load_ps(o + LANES), keep) : acc[i][0];
    }
    if (format == KV_BF16)
        dot_bf16(r, n, wide, acc, a);
    else
        dot_f32(r, n, wide, acc, a);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        _mm512_store_ps(out + (size_t)i * stride, acc[i][0]);
        if (wide)
            _mm512_store_ps(out + (size_t)i * stride + LANES, acc[i][1]);
    }
}

/* 16 dimensions. */
INLINE void add_ints(const struct run *r, const int n, const struct tile *t, float *out,
                     size_t stride, struct ahead *a)
{
    __m512i acc[TILE][2];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        acc[i][0] = acc[i][1] = _mm512_setzero_si512();
    dot_values(r, n, acc, a);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        float *o = out + (size_t)i * stride;
        __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(acc[i][0], 8), acc[i][1]);
        __m512 old = _mm512_mul_ps(_mm512_load_ps(o), _mm512_set1_ps(t->keep[i]));
        _mm512_store_ps(o,
                        _mm512_fmadd_ps(_mm512_set1_ps(t->unit[i]), _mm512_cvtepi32_ps(sum), old));
    }
}

/* Makes n and the width constants, so that the accumulators live in registers. */
#define CASE(n_, call) \
    case n_: { \
        enum { N = n_ }; \
        call; \
        break; \
    }
#define WITH_CONSTANTS(n_, call) \
    switch (n_) { \
        CASE(1, call) \
        CASE(2, call) \
        CASE(3, call) \
        CASE(4, call) \
        CASE(5, call) \
        CASE(6, call) \
        CASE(7, call) \
        CASE(8, call) \
    default: \
        unreachable(); \
    }
#define WITH_WIDTH(r_, call) \
    if ((r_)->apart) { \
        enum { WIDE = 1 }; \
        call \
    } else { \
        enum { WIDE = 0 }; \
        call \
    }

static void score_f32(const struct run *r, struct tile *t, int first_key, struct ahead *a)
{
    WITH_WIDTH(r, WITH_CONSTANTS(t->n, score_floats(KV_F32, r, N, WIDE, t, first_key, a)))
}

static void score_bf16(const struct run *r, struct tile *t, int first_key, struct ahead *a)
{
    WITH_WIDTH(r, WITH_CONSTANTS(t->n, score_floats(KV_BF16, r, N, WIDE, t, first_key, a)))
}

static void score_int8(const struct run *r, struct tile *t, const int32_t *sums, int first_key,
                       struct ahead *a)
{
    WITH_WIDTH(r, WITH_CONSTANTS(t->n, score_ints(r, N, WIDE, t, sums, first_key, a)))
}

static void add_f32(const struct run *r, const struct tile *t, float *out, size_t stride,
                    struct ahead *a)
{
    WITH_WIDTH(r, WITH_CONSTANTS(t->n, add_floats(KV_F32, r, N, WIDE, t, out, stride, a)))
}

static void add_bf16(const struct run *r, const struct tile *t, float *out, size_t stride,
                     struct ahead *a)
{
    WITH_WIDTH(r, WITH_CONSTANTS(t->n, add_floats(KV_BF16, r, N, WIDE, t, out, stride, a)))
}

static void add_int8(const struct run *r, const struct tile *t, float *out, size_t stride,
                     struct ahead *a)
{
    WITH_CONSTANTS(t->n, add_ints(r, N, t, out, stride, a))
}

/* ---- a block ---- */

struct pass {
    int n_tiles;
    struct tile tiles[MAX_TILES];
    int32_t sums[MAX_TILES * TILE]; /* int8: of each query's integers */
};

/* Queries are shared out evenly over as few tiles as there must be. */
static void plan_pass(struct pass *pass, const struct attend_block *b, int first)
{
    int left = b->n_heads - first;
    int n = left < MAX_TILES * TILE ? left : MAX_TILES * TILE;
    pass->n_tiles = (n + TILE - 1) / TILE;
    for (int i = 0; i < pass->n_tiles; i++) {
        struct tile *t = &pass->tiles[i];
        int tiles_left = pass->n_tiles - i;
        t->first = first;
        t->n = (n + tiles_left - 1) / tiles_left;
        first += t->n;
        n -= t->n;
    }
}

static void score_tile(const struct attend_block *b, enum kv_format format, struct run *r,
                       struct pass *pass, int tile, int first_key, struct ahead *a)
{
    struct tile *t = &pass->tiles[tile];
    if (format == KV_INT8) {
        r->c = b->q8 + (size_t)t->first * (size_t)b->q8_stride;
        score_int8(r, t, pass->sums + (t->first - pass->tiles[0].first), first_key, a);
        return;
    }
    r->c = b->q + (size_t)t->first * (size_t)b->q_stride;
    if (format == KV_BF16)
        score_bf16(r, t, first_key, a);
    else
        score_f32(r, t, first_key, a);
}

static void score_pass(const struct attend_block *b, enum kv_format format, struct pass *pass,
                       struct ahead *a)
{
    size_t dims_per_lane = format == KV_INT8 ? 4 : format == KV_BF16 ? 2 : 1;
    size_t group_bytes = ((size_t)b->head_dim + dims_per_lane - 1) / dims_per_lane * LINE;
    struct run r = {.x_step = LINE,
                    .near = NEAR_STEPS * LINE,
                    .count = b->head_dim,
                    .c_stride = format == KV_INT8 ? (size_t)b->q8_stride
                                                  : (size_t)b->q_stride * sizeof(float)};
    for (int j = 0; j < b->n_keys; j += 2 * LANES) {
        r.x = (const char *)b->k + (size_t)(j / LANES) * group_bytes;
        r.apart = j + LANES < b->n_keys ? group_bytes : 0;
        for (int i = 0; i < pass->n_tiles; i++)
            score_tile(b, format, &r, pass, i, j, a);
    }
}

static void add_floats_pass(const struct attend_block *b, enum kv_format format,
                            const struct pass *pass, struct ahead *a)
{
    size_t stride = (size_t)b->v_stride;
    struct run r = {
        .x_step = stride * 4, .count = b->n_keys, .c_stride = sizeof(pass->tiles[0].p[0])};
    for (size_t d = 0; d < stride; d += 2 * LANES) {
        r.x = (const char *)b->v + d * 4;
        r.apart = d + LANES < stride ? LINE : 0;
        r.near = 2 * LINE;
        for (int i = 0; i < pass->n_tiles; i++) {
            const struct tile *t = &pass->tiles[i];
            r.c = t->p;
            float *o = b->o + (size_t)t->first * stride + d;
            if (format == KV_BF16)
                add_bf16(&r, t, o, stride, a);
            else
                add_f32(&r, t, o, stride, a);
        }
    }
}

static void add_int8_pass(const struct attend_block *b, const struct pass *pass, struct ahead *a)
{
    size_t stride = (size_t)b->v_stride;
    struct run r = {.apart = sizeof(pass->tiles[0].high),
                    .x_step = stride * 4,
                    .near = LINE,
                    .count = b->n_keys,
                    .c_stride = sizeof(pass->tiles[0].high[0])};
    for (size_t d = 0; d < stride; d += LANES) {
        r.x = (const char *)b->v + d * 4;
        for (int i = 0; i < pass->n_tiles; i++) {
            const struct tile *t = &pass->tiles[i];
            r.c = t->high;
            add_int8(&r, t, b->o + (size_t)t->first * stride + d, stride, a);
        }
    }
}
_Static_assert(offsetof(struct tile, low) - offsetof(struct tile, high) ==
                   sizeof(((struct tile *)0)->high),
               "add_int8_pass() finds low bytes behind high ones");

/* Rows are readable and zero up to a multiple of 16. */
static void sum_queries(const struct attend_block *b, struct pass *pass, int first)
{
    const __m128i ones = _mm_set1_epi8(1);
    for (int tile = 0, i = 0; tile < pass->n_tiles; tile++)
        for (int j = 0; j < pass->tiles[tile].n; j++, i++) {
            const int8_t *q = b->q8 + (size_t)(first + i) * (size_t)b->q8_stride;
            __m128i sum = _mm_setzero_si128();
            for (int d = 0; d < b->head_dim; d += LANES)
                sum = _mm_dpbusd_epi32(sum, ones,
                                       _mm_loadu_si128((const __m128i *)(const void *)(q + d)));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
            pass->sums[i] = _mm_cvtsi128_si32(sum);
        }
}

INLINE void fold(const struct attend_block *b, enum kv_format format)
{
    must(b->n_keys >= 1 && b->n_keys <= ATTEND_BLOCK && b->v_stride % LANES == 0);
    const char *end = b->next ? (const char *)b->next + b->next_bytes : NULL;
    /* With many tiles the work between two blocks is long: all at the end. */
    struct ahead a =
        b->next ? (struct ahead){b->next, b->n_heads > TILE ? 0 : LINE} : (struct ahead){b->k, 0};
    struct pass pass;
    for (int first = 0; first < b->n_heads; first += MAX_TILES * TILE) {
        plan_pass(&pass, b, first);
        if (format == KV_INT8)
            sum_queries(b, &pass, first);
        score_pass(b, format, &pass, &a);
        for (int i = 0; i < pass.n_tiles; i++) {
            if (format == KV_INT8)
                scale_scores(b, &pass.tiles[i]);
            soften(b, &pass.tiles[i]);
            if (format == KV_INT8)
                quantise_p(b, &pass.tiles[i]);
        }
        if (format == KV_INT8)
            add_int8_pass(b, &pass, &a);
        else
            add_floats_pass(b, format, &pass, &a);
    }
    for (; a.at < end; a.at += LINE)
        _mm_prefetch(a.at, _MM_HINT_T1);
}

static void attend_f32(const struct attend_block *b)
{
    fold(b, KV_F32);
}

static void attend_bf16(const struct attend_block *b)
{
    fold(b, KV_BF16);
}

static void attend_int8(const struct attend_block *b)
{
    fold(b, KV_INT8);
}

void kernels_avx512_attend(struct kernels *k)
{
    k->attend[KV_F32] = attend_f32;
    k->attend[KV_BF16] = attend_bf16;
    k->attend[KV_INT8] = attend_int8;
}
