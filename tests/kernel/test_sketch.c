/* tests/kernel/test_sketch.c - index_bound: the same bits at every level, and never below the
 * score that it bounds, whatever the key. */
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "engine/index_sketch.h"
#include "tests/lib/test.h"

enum { MAX_DIM = 128, MAX_QUERIES = 6, UNITS = 4, KEYS = UNITS * SKETCH_UNIT, STRIDE = UNITS + 1 };

struct scene {
    int dim;
    float keys[KEYS][MAX_DIM], queries[MAX_QUERIES][MAX_DIM];
    _Alignas(64) char sketch[UNITS * (64 + MAX_DIM / SKETCH_DIMS * 64)];
    int8_t integers[MAX_QUERIES][MAX_DIM];
    struct sketch_query sketched[MAX_QUERIES];
};

/* Sizes of many magnitudes; some keys all alike, some of one large value, some denormal. */
static void fill(float *x, int dim, float size, struct rng *r)
{
    uint64_t kind = rng_below(r, 6);
    for (int d = 0; d < dim; d++)
        x[d] = size * (kind == 0 ? 1.0f : (float)rng_normal(r) * (kind == 1 && d > 0 ? 1e-4f : 1));
}

static void make_scene(struct scene *s, int dim, struct rng *r)
{
    static const float sizes[] = {1.0f, 0.0f, 1e-3f, 1e9f, 1e-30f, 1e-42f, 30.0f};
    s->dim = dim;
    for (int j = 0; j < KEYS; j++) {
        fill(s->keys[j], dim, sizes[rng_below(r, 7)], r);
        sketch_key(s->keys[j], dim, s->sketch + (size_t)(j / SKETCH_UNIT) * sketch_unit_bytes(dim),
                   j % SKETCH_UNIT);
    }
    for (int i = 0; i < MAX_QUERIES; i++) {
        fill(s->queries[i], dim, sizes[rng_below(r, 7)], r);
        memset(s->integers[i], 0, sizeof s->integers[i]);
        CHECK(sketch_query(s->queries[i], dim, s->integers[i], &s->sketched[i]));
    }
}

static void bound(const struct scene *s, const struct kernels *level, int first_unit, int n_keys,
                  int n_queries, float *largest)
{
    struct sketch_block b = {.q = s->integers[0],
                             .q_stride = MAX_DIM,
                             .queries = s->sketched,
                             .n_queries = n_queries,
                             .head_dim = s->dim,
                             .unit_bytes = sketch_unit_bytes(s->dim),
                             .n_keys = n_keys,
                             .largest = largest,
                             .largest_stride = STRIDE};
    b.sketch = s->sketch + (size_t)first_unit * b.unit_bytes;
    for (int i = 0; i < n_queries * STRIDE; i++)
        largest[i] = -7.0f;
    level->index_bound(&b);
    /* A unit each, and nothing besides. */
    for (int i = 0; i < n_queries * STRIDE; i++)
        CHECK(i % STRIDE < n_keys / SKETCH_UNIT || largest[i] == -7.0f);
}

static float score(const struct scene *s, int query, int key)
{
    float sum = 0.0f;
    for (int d = 0; d < s->dim; d++)
        sum = fmaf(s->queries[query][d], s->keys[key][d], sum);
    return sum;
}

static const int dims[] = {2, 16, 30, 128};

TEST(index_bound_has_the_same_bits_at_every_level)
{
    static struct scene s;
    struct rng r = test_rng();
    for (int round = 0; round < 40; round++) {
        make_scene(&s, dims[round % 4], &r);
        if (round % 5 == 0) {
            s.keys[17][1] = NAN;
            sketch_key(s.keys[17], s.dim, s.sketch + sketch_unit_bytes(s.dim), 1);
        }
        for (const char *const *name = kernels_names(); *name; name++)
            for (int n = 1; kernels_named(*name) && n <= MAX_QUERIES; n++)
                for (int n_keys = SKETCH_UNIT; n_keys <= KEYS; n_keys += SKETCH_UNIT) {
                    float got[MAX_QUERIES * STRIDE], want[MAX_QUERIES * STRIDE];
                    bound(&s, kernels_named(*name), 0, n_keys, n, got);
                    bound(&s, kernels_named("portable"), 0, n_keys, n, want);
                    CHECK_BYTES(got, want, (size_t)(n * STRIDE) * sizeof *got);
                }
    }
}

TEST(index_bound_is_never_below_a_score)
{
    static struct scene s;
    struct rng r = test_rng();
    for (int round = 0; round < 120; round++) {
        make_scene(&s, dims[round % 4], &r);
        float largest[MAX_QUERIES * STRIDE];
        bound(&s, kernels_best(), 0, KEYS, MAX_QUERIES, largest);
        for (int i = 0; i < MAX_QUERIES; i++)
            for (int j = 0; j < KEYS; j++)
                CHECK(largest[i * STRIDE + j / SKETCH_UNIT] >= score(&s, i, j));
    }
}

/* Of ordinary keys it is near: within a seventh of what lengths alone allow. */
TEST(index_bound_of_ordinary_keys_is_near_the_score)
{
    static struct scene s = {.dim = 128};
    struct rng r = test_rng();
    for (int j = 0; j < KEYS; j++) {
        for (int d = 0; d < s.dim; d++)
            s.keys[j][d] = (float)rng_normal(&r);
        sketch_key(s.keys[j], s.dim,
                   s.sketch + (size_t)(j / SKETCH_UNIT) * sketch_unit_bytes(s.dim),
                   j % SKETCH_UNIT);
    }
    for (int d = 0; d < s.dim; d++)
        s.queries[0][d] = (float)rng_normal(&r);
    CHECK(sketch_query(s.queries[0], s.dim, s.integers[0], &s.sketched[0]));
    for (int unit = 0; unit < UNITS; unit++) {
        float got[STRIDE], most = -INFINITY;
        bound(&s, kernels_best(), unit, SKETCH_UNIT, 1, got);
        for (int j = 0; j < SKETCH_UNIT; j++)
            most = fmaxf(most, score(&s, 0, unit * SKETCH_UNIT + j));
        CHECK(got[0] - most < 128.0f * 2 / 7);
    }
}

TEST(sketches_of_what_is_no_number_bound_nothing)
{
    static struct scene s;
    struct rng r = test_rng();
    static const float odd[] = {NAN, INFINITY, -INFINITY, 1e20f};
    make_scene(&s, 16, &r);
    for (int i = 0; i < 4; i++) {
        float got[MAX_QUERIES * STRIDE];
        s.keys[3][5] = odd[i];
        sketch_key(s.keys[3], s.dim, s.sketch, 3);
        bound(&s, kernels_best(), 0, SKETCH_UNIT, MAX_QUERIES, got);
        for (int q = 0; q < MAX_QUERIES; q++)
            CHECK(got[q * STRIDE] == INFINITY);
        s.queries[0][2] = odd[i];
        CHECK(!sketch_query(s.queries[0], s.dim, s.integers[0], &s.sketched[0]));
    }
}
