/* tests/kernel/test_attend.c - every level's `attend` against the portable definition, bit
 * for bit; and the definition against a softmax in double. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "engine/kernels.h"
#include "tests/lib/test.h"

enum { LANES = 16, MAX_HEADS = 14, MAX_DIM = 144, CANARY = 16 };

struct shape {
    int n_heads, head_dim, v_stride;
};

/* One set of inputs, and the outputs of one level with canaries on both sides. */
struct fixture {
    struct shape shape;
    float *q, *k, *v;
    struct attend_state *state;
    float *o;
};

static float *floats(size_t n)
{
    return mem_aligned(n * sizeof(float));
}

static void make_inputs(struct fixture *f, struct shape shape, struct rng *r, double spread)
{
    *f = (struct fixture){.shape = shape};
    size_t n_q = (size_t)shape.n_heads * (size_t)shape.v_stride;
    size_t n_k = (size_t)ATTEND_BLOCK * (size_t)shape.head_dim;
    size_t n_v = (size_t)ATTEND_BLOCK * (size_t)shape.v_stride;
    f->q = floats(n_q);
    f->k = floats(n_k);
    f->v = floats(n_v);
    for (size_t i = 0; i < n_q; i++)
        f->q[i] = (float)(rng_normal(r) * spread);
    for (size_t i = 0; i < n_k; i++)
        f->k[i] = (float)rng_normal(r);
    for (size_t i = 0; i < n_v; i++)
        f->v[i] = (int)(i % (size_t)shape.v_stride) < shape.head_dim ? (float)rng_normal(r) : 0.0f;
}

/* What lies past the last key is garbage of an earlier sequence: it must not matter. */
static void spoil_past(struct fixture *f, int n_keys)
{
    for (int j = n_keys; j < ATTEND_BLOCK; j++) {
        size_t group = (size_t)(j / LANES) * (size_t)f->shape.head_dim * LANES;
        for (int d = 0; d < f->shape.head_dim; d++)
            f->k[group + (size_t)d * LANES + (size_t)(j % LANES)] = NAN;
        for (int d = 0; d < f->shape.v_stride; d++)
            f->v[(size_t)j * (size_t)f->shape.v_stride + (size_t)d] = NAN;
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
    mem_free(f->q);
    mem_free(f->k);
    mem_free(f->v);
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
                             .k = f->k,
                             .v = f->v,
                             .head_dim = f->shape.head_dim,
                             .v_stride = f->shape.v_stride,
                             .n_keys = n_keys,
                             .state = f->state + 1,
                             .o = f->o + CANARY};
    kernels->attend(&b);
}

static void check_equal(const struct fixture *got, const struct fixture *want)
{
    size_t n_states = (size_t)got->shape.n_heads + 2;
    CHECK_BYTES(got->state, want->state, n_states * sizeof(*got->state));
    CHECK_BYTES(got->o, want->o, (o_floats(got->shape) + 2 * CANARY) * sizeof(float));
}

/* Three blocks in a row, the last one cut; other keys in each. */
static void compare_levels(const struct kernels *level, struct shape shape, struct rng *r,
                           double spread)
{
    struct fixture want, got;
    make_inputs(&want, shape, r, spread);
    got = want;
    make_outputs(&want);
    make_outputs(&got);
    int last = 1 + (int)rng_below(r, ATTEND_BLOCK);
    const int n_keys[] = {ATTEND_BLOCK, ATTEND_BLOCK, last};
    for (int block = 0; block < 3; block++) {
        for (size_t i = 0; i < (size_t)ATTEND_BLOCK * (size_t)shape.head_dim; i++)
            want.k[i] = (float)rng_normal(r);
        spoil_past(&want, n_keys[block]);
        fold(kernels_named("portable"), &want, n_keys[block]);
        fold(level, &got, n_keys[block]);
    }
    check_equal(&got, &want);
    free_outputs(&want);
    free_outputs(&got);
    free_inputs(&want);
}

static struct shape random_shape(struct rng *r)
{
    struct shape s = {.n_heads = 1 + (int)rng_below(r, MAX_HEADS),
                      .head_dim = 1 + (int)rng_below(r, MAX_DIM)};
    s.v_stride = (s.head_dim + LANES - 1) / LANES * LANES;
    return s;
}

TEST(attend_gives_the_portable_bits_at_every_level)
{
    struct rng r = test_rng();
    int n_levels = 0;
    for (const char *const *name = kernels_names(); *name; name++) {
        const struct kernels *level = kernels_named(*name);
        if (!level)
            continue;
        n_levels++;
        for (int i = 0; i < 60; i++)
            compare_levels(level, random_shape(&r), &r, 0.3);
        compare_levels(level, (struct shape){6, 128, 128}, &r, 0.1);
        compare_levels(level, (struct shape){12, 128, 128}, &r, 0.1);
    }
    CHECK(n_levels >= 1);
    test_note("%d levels run here", n_levels);
}

TEST(attend_gives_the_portable_bits_where_scores_are_extreme)
{
    struct rng r = test_rng();
    for (const char *const *name = kernels_names(); *name; name++) {
        const struct kernels *level = kernels_named(*name);
        if (!level)
            continue;
        /* All weight on one key, and probabilities below the smallest float. */
        for (int i = 0; i < 20; i++)
            compare_levels(level, random_shape(&r), &r, 1e3);
        for (int i = 0; i < 20; i++)
            compare_levels(level, random_shape(&r), &r, 1e30);
        /* Every score a zero of either sign. */
        compare_levels(level, random_shape(&r), &r, 0.0);
    }
}

/* softmax(q k) v in double for one head over one block. */
static void naive(const struct fixture *f, int head, int n_keys, double *o)
{
    double p[ATTEND_BLOCK], max = -HUGE_VAL, sum = 0;
    int dim = f->shape.head_dim, stride = f->shape.v_stride;
    for (int j = 0; j < n_keys; j++) {
        p[j] = 0;
        for (int d = 0; d < dim; d++)
            p[j] += (double)f->q[head * stride + d] *
                    (double)f->k[(j / LANES * dim + d) * LANES + j % LANES];
        max = p[j] > max ? p[j] : max;
    }
    for (int j = 0; j < n_keys; j++)
        sum += p[j] = exp(p[j] - max);
    for (int d = 0; d < dim; d++) {
        o[d] = 0;
        for (int j = 0; j < n_keys; j++)
            o[d] += p[j] / sum * (double)f->v[j * stride + d];
    }
}

TEST(attend_is_a_softmax)
{
    struct rng r = test_rng();
    struct fixture f;
    struct shape shape = {5, 40, 48};
    for (int n_keys = 1; n_keys <= ATTEND_BLOCK; n_keys++) {
        make_inputs(&f, shape, &r, 0.3);
        make_outputs(&f);
        fold(kernels_named("portable"), &f, n_keys);
        for (int h = 0; h < shape.n_heads; h++) {
            double o[MAX_DIM], sum = 0;
            naive(&f, h, n_keys, o);
            for (int lane = 0; lane < LANES; lane++)
                sum += (double)f.state[h + 1].sum[lane];
            /* f32 sums of 64 terms of size 1: a few times 2^-24, amplified by exp's argument. */
            for (int d = 0; d < shape.head_dim; d++)
                CHECK_NEAR((double)f.o[CANARY + h * shape.v_stride + d] / sum, o[d], 2e-5);
        }
        free_outputs(&f);
        free_inputs(&f);
    }
}

/* Scores that are no numbers must not reach the lanes that hold no key. */
TEST(attend_keeps_nan_in_the_lanes_of_its_keys)
{
    struct rng r = test_rng();
    enum { KEYS = 5 };
    for (const char *const *name = kernels_names(); *name; name++) {
        const struct kernels *level = kernels_named(*name);
        if (!level)
            continue;
        struct fixture f;
        make_inputs(&f, (struct shape){3, 20, 32}, &r, 0.3);
        make_outputs(&f);
        for (size_t i = 0; i < o_floats(f.shape); i++)
            f.q[i] = NAN;
        fold(level, &f, KEYS);
        for (int h = 1; h <= f.shape.n_heads; h++) {
            CHECK(f.state[h].max == -INFINITY);
            for (int lane = 0; lane < LANES; lane++)
                CHECK(lane < KEYS ? isnan(f.state[h].sum[lane]) : f.state[h].sum[lane] == 0.0f);
        }
        free_outputs(&f);
        free_inputs(&f);
    }
}
