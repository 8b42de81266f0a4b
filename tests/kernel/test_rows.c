/* tests/kernel/test_rows.c - activations as int8: the rule of rows.h, edges and hostile rows,
 * on every level; rooms over the pool. */
#include "engine/rows.h"

#include <float.h>
#include <math.h>

#include "base/mem.h"
#include "engine/gemm.h"
#include "tests/lib/test.h"

enum { N = 300, GUARD = 64 };

/* The rule, in double where a product must not be rounded twice. */
static void check_group(const float *x, int n, const int8_t *q, float scale, int32_t sum)
{
    float largest = 0.0f;
    bool is_finite = true;
    int32_t want_sum = 0;
    for (int i = 0; i < n; i++) {
        is_finite = is_finite && isfinite(x[i]);
        largest = fmaxf(largest, fabsf(x[i]));
        want_sum += q[i];
        CHECK(q[i] >= -127 && q[i] <= 127);
    }
    CHECK_INT(sum, want_sum);
    float inverse = 127.0f / largest;
    if (!is_finite || isinf(inverse)) {
        CHECK(is_finite ? scale == 0.0f : isnan(scale));
        for (int i = 0; i < n; i++)
            CHECK_INT(q[i], 0);
        return;
    }
    CHECK(scale == largest * (1.0f / 127.0f));
    for (int i = 0; i < n; i++) {
        CHECK_INT(q[i], (int)nearbyintf(x[i] * inverse));
        /* Half a step, and the roundings of scale, inverse and product. */
        CHECK_NEAR((double)q[i] * scale, x[i], 0.5001 * (double)scale + FLT_MIN);
    }
}

static void check_row(const struct kernels *k, const float *x, int n, int group)
{
    int n_groups = (n + group - 1) / group, padded = n_groups * group;
    int8_t q[2 * N + GUARD];
    float scales[N + 1];
    int32_t sums[N + 1];
    memset(q, 0x55, sizeof(q));
    scales[n_groups] = 7.0f;
    sums[n_groups] = 7;
    k->quantise(x, n, group, q, scales, sums);
    for (int g = 0; g < n_groups; g++) {
        int first = g * group, count = n - first < group ? n - first : group;
        check_group(x + first, count, q + first, scales[g], sums[g]);
    }
    for (int i = n; i < padded; i++)
        CHECK_INT(q[i], 0);
    for (int i = padded; i < padded + GUARD; i++)
        CHECK_INT(q[i], 0x55);
    CHECK(scales[n_groups] == 7.0f && sums[n_groups] == 7);
}

TEST(rows_become_int8_by_the_rule_on_every_level)
{
    struct rng r = test_rng();
    _Alignas(64) float x[N + 16] = {0};
    const float sizes[] = {1.0f, 1e-37f, 1e-40f, 1e38f, 0.0f};
    const int groups[] = {Q8_GROUP, Q4_GROUP};
    for (const char *const *name = kernels_names(); *name; name++) {
        const struct kernels *k = kernels_named(*name);
        if (!k)
            continue;
        test_note("%s", *name);
        for (int round = 0; round < 200; round++) {
            int n = round < 40 ? 1 + round * 7 : 1 + (int)rng_below(&r, N);
            memset(x, 0, sizeof(x));
            for (int i = 0; i < n; i++)
                x[i] = (float)rng_normal(&r) * sizes[round % 5];
            for (int i = 0; round % 7 == 6 && i < n; i++)
                x[i] = (float)(i % 3 - 1) * FLT_MAX;
            if (round % 11 == 10)
                x[n - 1] = round % 2 ? NAN : -INFINITY;
            check_row(k, x, n, groups[round % 2]);
        }
        /* Ties go to even: with absmax 127 a step is 1. */
        for (int i = 0; i < 128; i++)
            x[i] = (float)(i - 64) + 0.5f;
        x[7] = 127.0f;
        check_row(k, x, 128, Q8_GROUP);
    }
}

TEST(rows_rooms_hold_what_was_quantised)
{
    struct rng r = test_rng();
    enum { ROWS = 13, COLS = 201, STRIDE = 208 };
    static float f32[ROWS * STRIDE];
    for (int i = 0; i < ROWS * STRIDE; i++)
        f32[i] = i % STRIDE < COLS ? (float)rng_normal(&r) : 0.0f;
    struct pool *pool = pool_new(3, POOL_FREE);
    struct compute c = {.kernels = kernels_best(), .pool = pool};
    const int groups[] = {Q8_GROUP, Q4_GROUP};
    for (int i = 0; i < 2; i++) {
        struct rows_room room;
        CHECK(rows_room_open(&room, 20, COLS, groups[i]));
        CHECK_INT((uintptr_t)room.q8 % MEM_ALIGN, 0);
        CHECK_INT(room.q8_stride % 128, 64); /* an odd number of lines */
        CHECK(room.q8_stride >= 256 && room.scale_stride >= (size_t)(256 / groups[i]));
        struct rows x = {.n_rows = ROWS, .cols = COLS, .f32 = f32, .f32_stride = STRIDE};
        rows_quantise(&c, &room, &x);
        CHECK(x.group == groups[i] && x.f32 == f32 && x.n_rows == ROWS && x.cols == COLS);
        for (int row = 0; row < ROWS; row++) {
            struct rows one = rows_part(&x, row, 1);
            for (int g = 0; g * groups[i] < COLS; g++) {
                int first = g * groups[i], n = COLS - first;
                check_group(one.f32 + first, n < groups[i] ? n : groups[i], one.q8 + first,
                            one.scales[g], one.sums[g]);
            }
            for (int col = COLS; col < 256; col++)
                CHECK_INT(one.q8[col], 0);
        }
        struct rows view = rows_room_view(&room, 2);
        CHECK(view.q8 == x.q8 && !view.f32 && view.n_rows == 2 && view.cols == COLS);
        rows_room_close(&room);
        CHECK(!room.q8);
    }
    pool_free(&pool);
}

TEST(rows_rooms_of_no_group_are_empty)
{
    struct rows_room room;
    float f32[16] = {1.0f};
    struct compute c = {.kernels = kernels_best()};
    struct rows x = {.n_rows = 1, .cols = 1, .f32 = f32, .f32_stride = 16};
    CHECK(rows_room_open(&room, 5, 100, 0));
    CHECK(!room.q8 && room.bytes == 0);
    rows_quantise(&c, &room, &x);
    CHECK(x.group == 0 && !x.q8 && x.f32 == f32);
    rows_room_close(&room);
    CHECK(!rows_room_open(&room, INT32_MAX, INT32_MAX - 200, Q8_GROUP));
}
