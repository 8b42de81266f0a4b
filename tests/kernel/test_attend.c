/* tests/kernel/test_attend.c - every level's `attend` against the portable definition, bit
 * for bit and in every cache format; and the definition against a softmax in double. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "engine/kernels.h"
#include "model/halves.h"
#include "tests/lib/test.h"

enum { LANES = 16, MAX_HEADS = 14, MAX_DIM = 144, CANARY = 16 };

struct shape {
    enum kv_format format;
    int n_heads, head_dim, v_stride;
};

/* One set of inputs, and the outputs of one level with canaries on both sides. */
struct fixture {
    struct shape shape;
    float *q, *q_scales, *k_scales, *v_scales;
    int8_t *q8;
    char *k, *v;
    struct attend_state *state;
    float *o;
};

static struct shape shape_of(enum kv_format format, int n_heads, int head_dim)
{
    return (struct shape){format, n_heads, head_dim, (head_dim + LANES - 1) / LANES * LANES};
}

static float *floats(size_t n)
{
    return mem_aligned(n * sizeof(float));
}

static size_t element_bytes(enum kv_format format)
{
    return format == KV_F32 ? 4 : format == KV_BF16 ? 2 : 1;
}

/* Where kernels.h says that an element lies. */
static char *key_at(const struct fixture *f, int j, int d)
{
    int size = (int)element_bytes(f->shape.format), packed = 4 / size;
    int groups = (f->shape.head_dim + packed - 1) / packed;
    int at = ((j / LANES * groups + d / packed) * LANES + j % LANES) * packed + d % packed;
    return f->k + at * size;
}

static char *value_at(const struct fixture *f, int j, int d)
{
    int size = (int)element_bytes(f->shape.format), packed = 4 / size;
    return f->v + ((j / packed * f->shape.v_stride + d) * packed + j % packed) * size;
}

static void put(enum kv_format format, char *at, float x)
{
    uint16_t half = f32_to_bf16(x);
    if (format == KV_F32)
        memcpy(at, &x, sizeof(x));
    else if (format == KV_BF16)
        memcpy(at, &half, sizeof(half));
    else
        *(int8_t *)(void *)at = (int8_t)fmaxf(-127.0f, fminf(127.0f, rintf(x * 40.0f)));
}

static double get(enum kv_format format, const char *at)
{
    float x = 0;
    uint16_t half = 0;
    if (format == KV_INT8)
        return *(const int8_t *)(const void *)at;
    memcpy(format == KV_F32 ? (void *)&x : (void *)&half, at, element_bytes(format));
    return (double)(format == KV_F32 ? x : bf16_to_f32(half));
}

/* New keys and values, and their scales. */
static void fill_block(struct fixture *f, struct rng *r)
{
    for (int j = 0; j < ATTEND_BLOCK; j++) {
        for (int d = 0; d < f->shape.head_dim; d++) {
            put(f->shape.format, key_at(f, j, d), (float)rng_normal(r));
            put(f->shape.format, value_at(f, j, d), (float)rng_normal(r));
        }
        f->k_scales[j] = (float)(0.01 + 0.03 * rng_unit(r));
        f->v_scales[j] = (float)(0.01 + 0.03 * rng_unit(r));
    }
}

static void make_inputs(struct fixture *f, struct shape shape, struct rng *r, double spread)
{
    *f = (struct fixture){.shape = shape};
    size_t n_q = (size_t)shape.n_heads * (size_t)shape.v_stride;
    f->q = floats(n_q);
    f->q8 = mem_aligned(n_q);
    f->q_scales = floats((size_t)shape.n_heads);
    f->k_scales = floats(ATTEND_BLOCK);
    f->v_scales = floats(ATTEND_BLOCK);
    f->k = mem_aligned((size_t)ATTEND_BLOCK * (size_t)(shape.head_dim + 4) * 4);
    f->v = mem_aligned((size_t)ATTEND_BLOCK * (size_t)shape.v_stride * 4);
    for (size_t i = 0; i < n_q; i++)
        f->q[i] = (float)(rng_normal(r) * spread);
    for (int h = 0; h < shape.n_heads; h++) {
        f->q_scales[h] = (float)(spread * 0.03);
        for (int d = 0; d < shape.head_dim; d++)
            f->q8[h * shape.v_stride + d] = (int8_t)((int)rng_below(r, 255) - 127);
    }
    fill_block(f, r);
}

/* What lies past the last key is garbage of an earlier sequence: it must not matter. */
static void spoil_past(struct fixture *f, int n_keys)
{
    for (int j = n_keys; j < ATTEND_BLOCK; j++) {
        for (int d = 0; d < f->shape.head_dim; d++)
            memset(key_at(f, j, d), 0xff, element_bytes(f->shape.format));
        for (int d = 0; d < f->shape.v_stride; d++)
            memset(value_at(f, j, d), 0xff, element_bytes(f->shape.format));
        f->k_scales[j] = f->v_scales[j] = j % 2 ? NAN : INFINITY;
    }
}

static size_t o_floats(struct shape s)
{
    return (size_t)s.n_heads * (size_t)s.v_stride;
}

static void make_outputs(struct fixture *f)
{
    size_t n_states = (size_t)f->shape.n_heads + 2;
    f->state = mem_aligned(n_states * sizeof(*f->state));
    memset(f->state, 0x5a, n_states * sizeof(*f->state));
    for (int h = 0; h < f->shape.n_heads; h++)
        f->state[h + 1] = (struct attend_state){.max = -INFINITY};
    f->o = floats(o_floats(f->shape) + 2 * CANARY);
    memset(f->o, 0x5a, (o_floats(f->shape) + 2 * CANARY) * sizeof(float));
    memset(f->o + CANARY, 0, o_floats(f->shape) * sizeof(float));
}

static void free_inputs(struct fixture *f)
{
    void *const blocks[] = {f->q, f->q8, f->q_scales, f->k_scales, f->v_scales, f->k, f->v};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        mem_free(blocks[i]);
}

static void free_outputs(struct fixture *f)
{
    mem_free(f->state);
    mem_free(f->o);
}

static void fold(const struct kernels *kernels, const struct fixture *f, int n_keys)
{
    struct attend_block b = {.q = f->q,
                             .n_heads = f->shape.n_heads,
                             .q_stride = f->shape.v_stride,
                             .q8 = f->q8,
                             .q_scales = f->q_scales,
                             .q8_stride = f->shape.v_stride,
                             .k = f->k,
                             .v = f->v,
                             .k_scales = f->k_scales,
                             .v_scales = f->v_scales,
                             .head_dim = f->shape.head_dim,
                             .v_stride = f->shape.v_stride,
                             .n_keys = n_keys,
                             .state = f->state + 1,
                             .o = f->o + CANARY,
                             .next = n_keys % 2 ? f->k : NULL,
                             .next_bytes = 4096};
    kernels->attend[f->shape.format](&b);
}

static void check_equal(const struct fixture *got, const struct fixture *want)
{
    size_t n_states = (size_t)got->shape.n_heads + 2;
    CHECK_BYTES(got->state, want->state, n_states * sizeof(*got->state));
    CHECK_BYTES(got->o, want->o, (o_floats(got->shape) + 2 * CANARY) * sizeof(float));
}

/* Three blocks in a row, the last one cut; other keys in each. */
static void compare_cut(const struct kernels *level, struct shape shape, struct rng *r,
                        double spread, int last)
{
    struct fixture want, got;
    make_inputs(&want, shape, r, spread);
    got = want;
    make_outputs(&want);
    make_outputs(&got);
    const int n_keys[] = {ATTEND_BLOCK, ATTEND_BLOCK, last};
    for (int block = 0; block < 3; block++) {
        fill_block(&want, r);
        spoil_past(&want, n_keys[block]);
        fold(kernels_named("portable"), &want, n_keys[block]);
        fold(level, &got, n_keys[block]);
    }
    check_equal(&got, &want);
    free_outputs(&want);
    free_outputs(&got);
    free_inputs(&want);
}

static void compare_levels(const struct kernels *level, struct shape shape, struct rng *r,
                           double spread)
{
    compare_cut(level, shape, r, spread, 1 + (int)rng_below(r, ATTEND_BLOCK));
}

static struct shape random_shape(enum kv_format format, struct rng *r)
{
    return shape_of(format, 1 + (int)rng_below(r, MAX_HEADS), 1 + (int)rng_below(r, MAX_DIM));
}

/* Calls body for every level that runs here and every format. */
typedef void level_body(const struct kernels *level, enum kv_format format, struct rng *r);

static int each_level(level_body *body)
{
    struct rng r = test_rng();
    int n_levels = 0;
    for (const char *const *name = kernels_names(); *name; name++) {
        const struct kernels *level = kernels_named(*name);
        if (!level)
            continue;
        n_levels++;
        for (int format = 0; format < KV_FORMAT_COUNT; format++) {
            test_note("%s, format %d", *name, format);
            body(level, (enum kv_format)format, &r);
        }
    }
    return n_levels;
}

static void compare_shapes(const struct kernels *level, enum kv_format format, struct rng *r)
{
    for (int i = 0; i < 30; i++)
        compare_levels(level, random_shape(format, r), r, 0.3);
    compare_levels(level, shape_of(format, 6, 128), r, 0.1);
    /* As prefill has them, with a last tile and a last pass of every kind. */
    const int heads[] = {8, 12, 48, 95, 96, 97, 100, 103};
    for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++)
        compare_levels(level, shape_of(format, heads[i], 16 + (int)rng_below(r, 24)), r, 0.3);
    compare_levels(level, shape_of(format, 96, 128), r, 0.1);
    /* Wider than what the faster levels hold at once. */
    compare_levels(level, shape_of(format, 3, 256), r, 0.1);
    compare_levels(level, shape_of(format, 3, 300), r, 0.1);
}

TEST(attend_gives_the_portable_bits_at_every_level)
{
    int n_levels = each_level(compare_shapes);
    CHECK(n_levels >= 1);
    test_note("%d levels run here", n_levels);
}

static void compare_every_cut(const struct kernels *level, enum kv_format format, struct rng *r)
{
    for (int n_keys = 1; n_keys <= ATTEND_BLOCK; n_keys++)
        compare_cut(level, shape_of(format, 1 + n_keys % 9, n_keys % 2 ? 33 : 20), r, 0.3, n_keys);
}

TEST(attend_gives_the_portable_bits_for_every_number_of_keys)
{
    each_level(compare_every_cut);
}

static void compare_extremes(const struct kernels *level, enum kv_format format, struct rng *r)
{
    /* All weight on one key, and probabilities below the smallest float. */
    for (int i = 0; i < 10; i++)
        compare_levels(level, random_shape(format, r), r, 1e3);
    for (int i = 0; i < 10; i++)
        compare_levels(level, random_shape(format, r), r, 1e30);
    /* Every score a zero of either sign; denormal queries. */
    compare_levels(level, random_shape(format, r), r, 0.0);
    compare_levels(level, random_shape(format, r), r, 1e-42);
}

TEST(attend_gives_the_portable_bits_where_scores_are_extreme)
{
    each_level(compare_extremes);
}

/* Values whose scales are next to nothing, or nothing. */
static void compare_tiny_values(const struct kernels *level, enum kv_format format, struct rng *r)
{
    static const float scales[] = {0.0f, 1e-45f, 1e-38f, 0x1p-101f, 0x1p-100f, 0x1p-99f, 1e30f};
    for (size_t i = 0; i < sizeof(scales) / sizeof(scales[0]); i++) {
        struct fixture want, got;
        make_inputs(&want, shape_of(format, 7, 48), r, 0.3);
        for (int j = 0; j < ATTEND_BLOCK; j++)
            want.v_scales[j] = scales[i];
        got = want;
        make_outputs(&want);
        make_outputs(&got);
        fold(kernels_named("portable"), &want, 50);
        fold(level, &got, 50);
        check_equal(&got, &want);
        free_outputs(&want);
        free_outputs(&got);
        free_inputs(&want);
    }
}

TEST(attend_gives_the_portable_bits_where_values_vanish)
{
    each_level(compare_tiny_values);
}

/* softmax(q k) v in double for one head over one block. */
static void naive(const struct fixture *f, int head, int n_keys, double *o)
{
    double p[ATTEND_BLOCK], max = -HUGE_VAL, sum = 0;
    int dim = f->shape.head_dim, stride = f->shape.v_stride;
    bool is_int8 = f->shape.format == KV_INT8;
    for (int j = 0; j < n_keys; j++) {
        p[j] = 0;
        for (int d = 0; d < dim; d++)
            p[j] += (is_int8 ? (double)f->q8[head * stride + d] : (double)f->q[head * stride + d]) *
                    get(f->shape.format, key_at(f, j, d));
        if (is_int8)
            p[j] *= (double)f->q_scales[head] * (double)f->k_scales[j];
        max = p[j] > max ? p[j] : max;
    }
    for (int j = 0; j < n_keys; j++)
        sum += p[j] = exp(p[j] - max);
    for (int d = 0; d < dim; d++) {
        o[d] = 0;
        for (int j = 0; j < n_keys; j++)
            o[d] += p[j] / sum * get(f->shape.format, value_at(f, j, d)) *
                    (is_int8 ? (double)f->v_scales[j] : 1.0);
    }
}

static void check_softmax(enum kv_format format, struct rng *r)
{
    struct fixture f;
    for (int n_keys = 1; n_keys <= ATTEND_BLOCK; n_keys++) {
        make_inputs(&f, shape_of(format, 5, 41), r, 0.3);
        make_outputs(&f);
        fold(kernels_named("portable"), &f, n_keys);
        for (int h = 0; h < f.shape.n_heads; h++) {
            double o[MAX_DIM], sum = 0;
            naive(&f, h, n_keys, o);
            for (int lane = 0; lane < LANES; lane++)
                sum += (double)f.state[h + 1].sum[lane];
            /* f32 sums of 64 terms of size 1: a few times 2^-24, amplified by exp's argument.
             * int8: scores up to a few tens, and values up to 5 by p in steps of 2^-15. */
            for (int d = 0; d < f.shape.head_dim; d++)
                CHECK_NEAR((double)f.o[CANARY + h * f.shape.v_stride + d] / sum, o[d],
                           format == KV_INT8 ? 3e-4 : 2e-5);
        }
        free_outputs(&f);
        free_inputs(&f);
    }
}

TEST(attend_is_a_softmax)
{
    struct rng r = test_rng();
    for (int format = 0; format < KV_FORMAT_COUNT; format++)
        check_softmax((enum kv_format)format, &r);
}

/* Scores that are no numbers must not reach the lanes that hold no key. */
static void check_nan(const struct kernels *level, enum kv_format format, struct rng *r)
{
    enum { KEYS = 5 };
    struct fixture f;
    make_inputs(&f, shape_of(format, 3, 20), r, 0.3);
    make_outputs(&f);
    for (size_t i = 0; i < o_floats(f.shape); i++)
        f.q[i] = NAN;
    for (int h = 0; h < f.shape.n_heads; h++)
        f.q_scales[h] = NAN;
    fold(level, &f, KEYS);
    for (int h = 1; h <= f.shape.n_heads; h++) {
        CHECK(f.state[h].max == -INFINITY);
        for (int lane = 0; lane < LANES; lane++)
            CHECK(lane < KEYS ? isnan(f.state[h].sum[lane]) : f.state[h].sum[lane] == 0.0f);
    }
    free_outputs(&f);
    free_inputs(&f);
}

TEST(attend_keeps_nan_in_the_lanes_of_its_keys)
{
    each_level(check_nan);
}

/* A value that is no number shows in every dimension that it belongs to. */
static void check_nan_value(const struct kernels *level, enum kv_format format, struct rng *r)
{
    struct fixture f;
    make_inputs(&f, shape_of(format, 3, 20), r, 0.3);
    make_outputs(&f);
    f.v_scales[9] = NAN;
    if (format != KV_INT8)
        for (int d = 0; d < f.shape.head_dim; d++)
            put(format, value_at(&f, 9, d), NAN);
    fold(level, &f, 11);
    for (int h = 0; h < f.shape.n_heads; h++) {
        for (int d = 0; d < f.shape.head_dim; d++)
            CHECK(isnan(f.o[CANARY + h * f.shape.v_stride + d]));
        CHECK(isfinite(f.state[h + 1].sum[9]));
    }
    free_outputs(&f);
    free_inputs(&f);
}

TEST(attend_shows_a_value_that_is_no_number)
{
    each_level(check_nan_value);
}
