/* tests/kernel/test_index.c - index_largest and swiglu_oai: their definitions, and the same
 * bits at every level. */
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "engine/kernels.h"
#include "model/halves.h"
#include "tests/lib/test.h"

enum { MAX_DIM = 128, MAX_QUERIES = 9, LANES = 16 };

struct keys {
    float value[ATTEND_BLOCK][MAX_DIM];
    _Alignas(64) float f32[ATTEND_BLOCK * MAX_DIM];
    _Alignas(64) uint16_t bf16[ATTEND_BLOCK * MAX_DIM];
};

static void fill_keys(struct keys *k, struct rng *r, int dim)
{
    for (int j = 0; j < ATTEND_BLOCK; j++)
        for (int d = 0; d < dim; d++) {
            uint16_t half = f32_to_bf16((float)(rng_unit(r) - 0.5));
            float value = bf16_to_f32(half);
            int group = j / LANES, lane = j % LANES;
            k->value[j][d] = value;
            k->f32[(group * dim + d) * LANES + lane] = value;
            k->bf16[((group * dim / 2 + d / 2) * LANES + lane) * 2 + d % 2] = half;
        }
}

static void set_key(struct keys *k, int dim, int j, int d, float value)
{
    int group = j / LANES, lane = j % LANES;
    k->value[j][d] = value;
    k->f32[(group * dim + d) * LANES + lane] = value;
    k->bf16[((group * dim / 2 + d / 2) * LANES + lane) * 2 + d % 2] = f32_to_bf16(value);
}

static float naive_largest(const struct keys *k, const float *q, int dim, int n_keys, float before)
{
    float largest = before;
    for (int j = 0; j < n_keys; j++) {
        float s = 0.0f;
        for (int d = 0; d < dim; d++)
            s = fmaf(q[d], k->value[j][d], s);
        if (s > largest)
            largest = s;
    }
    return largest + 0.0f;
}

static void compare_level(const struct kernels *level, const struct keys *k, const float *q,
                          int dim, int n_queries, int n_keys)
{
    static const enum kv_format formats[] = {KV_F32, KV_BF16};
    for (int f = 0; f < 2; f++) {
        float got[MAX_QUERIES * 3];
        for (int i = 0; i < MAX_QUERIES * 3; i++)
            got[i] = i % 2 ? -INFINITY : -0.25f;
        struct index_block b = {.q = q,
                                .n_queries = n_queries,
                                .q_stride = MAX_DIM,
                                .k = f == 0 ? (const void *)k->f32 : k->bf16,
                                .head_dim = dim,
                                .n_keys = n_keys,
                                .largest = got,
                                .largest_stride = 3};
        level->index_largest[formats[f]](&b);
        for (int i = 0; i < n_queries; i++) {
            float before = i * 3 % 2 ? -INFINITY : -0.25f;
            float want = naive_largest(k, q + i * MAX_DIM, dim, n_keys, before);
            CHECK_BYTES(&got[i * 3], &want, sizeof want);
        }
        CHECK(got[1] == -INFINITY); /* what lies between is not touched */
    }
}

TEST(index_largest_has_the_same_bits_at_every_level)
{
    static const int dims[] = {2, 16, 30, 128};
    struct rng r = test_rng();
    static struct keys k;
    int n_levels = 0;
    for (const char *const *name = kernels_names(); *name; name++) {
        const struct kernels *level = kernels_named(*name);
        if (!level)
            continue;
        n_levels++;
        for (int i = 0; i < 4; i++) {
            float q[MAX_QUERIES * MAX_DIM];
            int dim = dims[i];
            fill_keys(&k, &r, dim);
            for (int j = 0; j < MAX_QUERIES * MAX_DIM; j++)
                q[j] = (float)(rng_unit(&r) - 0.5);
            set_key(&k, dim, 5, 1, NAN); /* a NaN is no score */
            set_key(&k, dim, 20, 0, INFINITY);
            for (int n = 1; n <= MAX_QUERIES; n++)
                for (int n_keys = LANES; n_keys <= ATTEND_BLOCK; n_keys += LANES)
                    compare_level(level, &k, q, dim, n, n_keys);
        }
    }
    CHECK(n_levels >= 1);
}

TEST(swiglu_oai_has_its_published_values_and_the_same_bits_at_every_level)
{
    static const struct activation a = {ACTIVATION_SWIGLU_OAI, 1.702f, 7.0f, 1.0f};
    static const struct {
        float gate, up, want;
    } rows[] = {{0, 0, 0},
                {1, 1, 1.69159153f},
                {-1, 0.5f, -0.231306351f},
                {10, 2, 20.9998594f},
                {3, -9, -17.8915721f},
                {7, 7, 55.999625f}};
    const struct kernels *portable = kernels_named("portable");
    struct rng r = test_rng();
    for (const char *const *name = kernels_names(); *name; name++) {
        const struct kernels *level = kernels_named(*name);
        if (!level)
            continue;
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            float gate = rows[i].gate;
            level->swiglu_oai(&gate, &rows[i].up, 1, &a);
            CHECK_NEAR(gate, rows[i].want, fabs((double)rows[i].want) * 1e-6);
        }
        for (int n = 1; n <= 70; n++) {
            float up[70], got[71], want[71];
            for (int i = 0; i < n; i++) {
                up[i] = (float)(rng_unit(&r) - 0.5) * 40;
                got[i] = want[i] = (float)(rng_unit(&r) - 0.5) * 40;
            }
            got[n] = want[n] = 5.0f;
            up[n / 2] = NAN;
            got[n / 3] = want[n / 3] = n % 2 ? INFINITY : -INFINITY;
            level->swiglu_oai(got, up, n, &a);
            portable->swiglu_oai(want, up, n, &a);
            for (int i = 0; i <= n; i++)
                CHECK((isnan(got[i]) && isnan(want[i])) || memcmp(&got[i], &want[i], 4) == 0);
            CHECK(isnan(got[n / 2]));
        }
    }
}
