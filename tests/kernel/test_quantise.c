/* tests/kernel/test_quantise.c - the search for scales of q8 and q4: better than plain absmax
 * by what numerics.md says, the same on every level, safe for hostile groups. */
#include "engine/quantise.h"

#include <float.h>
#include <math.h>
#include <time.h>

#include "base/mem.h"
#include "engine/matrix.h"
#include "model/fp8.h"
#include "tests/lib/test.h"

enum { ROWS = 128, COLS = 3072, N = ROWS * COLS };

/* Gaussian weights, and what FP8 keeps of them: what a released checkpoint holds. */
static void make_weights(float *gauss, float *fp8)
{
    static uint8_t bytes[N];
    static float scales[COLS / FP8_BLOCK];
    struct rng r = rng_seed(1);
    for (int i = 0; i < N; i++)
        gauss[i] = (float)rng_normal(&r);
    fp8_quantize(gauss, ROWS, COLS, bytes, scales);
    fp8_dequantize(bytes, scales, ROWS, COLS, fp8);
}

/* Relative RMS error in percent. */
static double error_of(const float *w, enum weight_format f, enum quantise_search search)
{
    double errors = 0.0, squares = 0.0;
    int group = format_group(f);
    for (int i = 0; i < N; i += group) {
        int8_t q[Q8_GROUP];
        float scale = quantise_weights(kernels_best(), f, w + i, group, search, q);
        for (int k = 0; k < group; k++) {
            double d = (double)w[i + k] - (double)scale * q[k];
            errors += d * d;
            squares += (double)w[i + k] * (double)w[i + k];
        }
    }
    return 100.0 * sqrt(errors / squares);
}

TEST(searched_scales_beat_the_largest_magnitude)
{
    static float gauss[N], fp8[N];
    make_weights(gauss, fp8);
    const struct {
        const char *name;
        const float *w;
        enum weight_format format;
        double plain, best; /* expected, in percent */
    } cases[] = {{"q8 of fp8", fp8, FORMAT_Q8, 0.67, 0.53},
                 {"q8 of gauss", gauss, FORMAT_Q8, 0.65, 0.63},
                 {"q4 of fp8", fp8, FORMAT_Q4, 10.9, 9.0},
                 {"q4 of gauss", gauss, FORMAT_Q4, 10.8, 9.05}};
    for (int i = 0; i < 4; i++) {
        double plain = error_of(cases[i].w, cases[i].format, QUANTISE_MAX);
        double best = error_of(cases[i].w, cases[i].format, QUANTISE_BEST);
        test_say("%s: absmax %.3f %%, searched %.3f %%", cases[i].name, plain, best);
        /* 393,216 weights know their error to about 0.3 %. */
        CHECK_NEAR(plain, cases[i].plain, 0.015 * cases[i].plain);
        CHECK(best < 1.005 * cases[i].best && best < 0.98 * plain);
    }
}

static void fill_hostile(struct rng *r, float *x, int n, int kind)
{
    for (int i = 0; i < n; i++) {
        float v = (float)rng_normal(r);
        const float kinds[] = {v,
                               v * 1e-38f,
                               v * 1e-42f,
                               v * 0x1p125f,
                               0.0f,
                               -0.0f,
                               i == 5 ? v : 0.0f,
                               i % 2 ? FLT_MAX : -FLT_MAX,
                               i % 2 ? -1.0f : 1.0f,
                               (float)(i - 60) / 2,
                               i == 3 ? -8.0f : 7.0f};
        x[i] = kinds[kind];
    }
}

enum { HOSTILE_KINDS = 11 };

TEST(searched_scales_are_the_same_on_every_level)
{
    struct rng r = test_rng();
    const struct kernels *portable = kernels_named("portable");
    for (int round = 0; round < 600; round++)
        for (int f = FORMAT_Q8; f <= FORMAT_Q4; f++) {
            float x[Q8_GROUP];
            int8_t want[Q8_GROUP], got[Q8_GROUP];
            int group = format_group((enum weight_format)f);
            int n = round % 3 ? group : 1 + (int)rng_below(&r, (uint64_t)group);
            fill_hostile(&r, x, n, round % HOSTILE_KINDS);
            float scale =
                quantise_weights(portable, (enum weight_format)f, x, n, QUANTISE_BEST, want);
            CHECK(isfinite(scale));
            for (int i = 0; i < group; i++) {
                CHECK(want[i] >= (f == FORMAT_Q8 ? -127 : -8));
                CHECK(want[i] <= (f == FORMAT_Q8 ? 127 : 7));
                CHECK(i < n || want[i] == 0);
            }
            for (const char *const *name = kernels_names(); *name; name++) {
                const struct kernels *k = kernels_named(*name);
                if (!k)
                    continue;
                float s = quantise_weights(k, (enum weight_format)f, x, n, QUANTISE_BEST, got);
                CHECK_BYTES(&s, &scale, sizeof(s));
                CHECK_BYTES(got, want, (size_t)group);
            }
        }
}

TEST(groups_on_a_grid_are_kept_exactly)
{
    struct rng r = test_rng();
    int8_t q[Q8_GROUP];
    float x[Q8_GROUP];
    /* Both ends of q4's range, either way round: exact with the level 8 of the right sign. */
    for (int sign = -1; sign <= 1; sign += 2) {
        for (int i = 0; i < Q4_GROUP; i++)
            x[i] = 0.5f * (float)(sign * ((int)rng_below(&r, 16) - 8));
        x[9] = -4.0f * (float)sign;
        float scale = quantise_weights(kernels_best(), FORMAT_Q4, x, Q4_GROUP, QUANTISE_BEST, q);
        CHECK(fabsf(scale) == 0.5f);
        for (int i = 0; i < Q4_GROUP; i++)
            CHECK(scale * (float)q[i] == x[i]);
    }
    /* Values of FP8 of one sign of exponent: multiples of the smallest step. */
    for (int i = 0; i < Q8_GROUP; i++)
        x[i] = (float)((int)rng_below(&r, 31) - 15) * 0x1p-9f;
    x[0] = 15 * 0x1p-9f;
    float scale = quantise_weights(kernels_best(), FORMAT_Q8, x, Q8_GROUP, QUANTISE_BEST, q);
    for (int i = 0; i < Q8_GROUP; i++)
        CHECK(scale * (float)q[i] == x[i]);
    for (int i = 0; i < Q8_GROUP; i++)
        x[i] = 0.0f;
    CHECK(quantise_weights(kernels_best(), FORMAT_Q8, x, Q8_GROUP, QUANTISE_BEST, q) == 0.0f);
    CHECK(q[0] == 0 && q[Q8_GROUP - 1] == 0);
}

static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Shown, not judged: machines differ. */
TEST(packing_speed_from_fp8)
{
    static uint8_t bytes[N];
    static float gauss[N], scales[COLS / FP8_BLOCK];
    struct rng r = rng_seed(1);
    for (int i = 0; i < N; i++)
        gauss[i] = (float)rng_normal(&r);
    fp8_quantize(gauss, ROWS, COLS, bytes, scales);
    struct linear_view v = {.label = "w2",
                            .rows = ROWS,
                            .cols = COLS,
                            .block_rows = FP8_BLOCK,
                            .block_cols = FP8_BLOCK};
    v.weight = (struct tensor){.dtype = DTYPE_F8_E4M3, .data = bytes, .size_bytes = N};
    v.scale = (struct tensor){.dtype = DTYPE_F32, .data = scales, .size_bytes = sizeof(scales)};
    void *room = mem_aligned(N * 2);
    for (const char *const *name = kernels_names(); *name; name++)
        for (int f = FORMAT_FP8; f <= FORMAT_Q4; f++) {
            struct compute c = {.kernels = kernels_named(*name)};
            if (!c.kernels || strcmp(*name, "amx") == 0)
                continue;
            double best = INFINITY;
            for (int i = 0; i < 5; i++) {
                struct matrix m;
                double start = thread_seconds();
                CHECK_INT(matrix_pack(&m, &v, (enum weight_format)f, room, &c, NULL), 0);
                best = fmin(best, thread_seconds() - start);
                matrix_fini(&m);
            }
            test_note("%s, fp8 to %s: %.0f M weights/s per thread", *name,
                      format_name((enum weight_format)f), N / best * 1e-6);
        }
    mem_free(room);
}
