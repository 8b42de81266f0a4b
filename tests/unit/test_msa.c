/* tests/unit/test_msa.c - which blocks a row sees: the rule, and the whole way from index keys
 * in a cache, against a plain reading of m3.md 5 (its section 6 lists these tests). */
#include "engine/msa.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "tests/lib/test.h"

enum { HEADS = 5, DIM = 16, MAX_TOP_K = 32 };

/* ---- the rule ---- */

/* A NaN never gets here: index_largest leaves it out. */
static void naive_select(const float *scores, int own, int top_k, int32_t *blocks)
{
    int n = 0;
    for (int b = 0; b < own; b++) {
        int better = 0;
        for (int other = 0; other < own; other++)
            better += scores[other] > scores[b] || (scores[other] == scores[b] && other < b);
        if (better < top_k - 1)
            blocks[n++] = b;
    }
    blocks[n++] = own;
    CHECK_INT(n, top_k);
}

static void check_select(const float *scores, int own, int top_k)
{
    int32_t got[MAX_TOP_K], want[MAX_TOP_K];
    msa_select(scores, own, top_k, got);
    naive_select(scores, own, top_k, want);
    CHECK_BYTES(got, want, (size_t)top_k * sizeof *got);
}

TEST(msa_select_takes_the_best_and_of_equals_the_lower)
{
    struct rng r = test_rng();
    for (int round = 0; round < 3000; round++) {
        float scores[200];
        int top_k = 1 + (int)rng_below(&r, 20);
        int own = top_k + (int)rng_below(&r, (uint64_t)(200 - top_k));
        uint64_t different = 1 + rng_below(&r, 12); /* many ties */
        for (int b = 0; b < own; b++)
            scores[b] = rng_below(&r, 9) == 0 ? -INFINITY : (float)rng_below(&r, different);
        check_select(scores, own, top_k);
    }
}

TEST(msa_select_of_equal_scores_is_the_first_blocks_and_the_own)
{
    float scores[40] = {0};
    int32_t blocks[16];
    msa_select(scores, 39, 16, blocks);
    for (int i = 0; i < 15; i++)
        CHECK_INT(blocks[i], i);
    CHECK_INT(blocks[15], 39);
}

TEST(msa_select_of_one_block_too_many_drops_the_worst)
{
    float scores[16];
    int32_t blocks[16];
    for (int b = 0; b < 16; b++)
        scores[b] = b == 6 ? -2.0f : (float)(b % 5);
    msa_select(scores, 16, 16, blocks);
    for (int i = 0; i < 16; i++)
        CHECK_INT(blocks[i], i < 6 ? i : i + 1);
}

/* ---- from index keys to blocks ---- */

struct scene {
    struct model_config model;
    struct msa msa;
    struct kv *kv;
    struct kv_seq seq;
    struct compute compute;
    int n_keys;
    float *keys; /* [n_keys, DIM], values that bf16 holds */
};

static float small_value(struct rng *r)
{
    return (float)((int)rng_below(r, 17) - 8) / 8.0f;
}

static void open_cached(struct scene *s, enum kv_format format, int block_size, int top_k,
                        int n_keys, int max_rows, int n_threads, const char *kernels, struct rng *r)
{
    struct err e = {0};
    *s = (struct scene){.n_keys = n_keys};
    s->model = (struct model_config){.n_layers = 3,
                                     .n_kv_heads = HEADS,
                                     .head_dim = 16,
                                     .max_positions = 1 << 14,
                                     .sparse = {.n_full_layers = 1,
                                                .block_size = block_size,
                                                .top_k = top_k,
                                                .n_heads = HEADS,
                                                .head_dim = DIM}};
    s->compute.kernels = kernels_named(kernels);
    s->compute.pool = pool_new(n_threads, POOL_FREE);
    size_t pages = (size_t)n_keys / KV_PAGE_TOKENS + 1;
    CHECK_INT(kv_open(&s->model, format, pages * kv_page_bytes(&s->model, format), &s->kv, &e), 0);
    struct msa_options o = {
        .max_rows = max_rows, .max_positions = s->model.max_positions, .n_layers = 3};
    CHECK_INT(msa_open(&s->msa, &s->model.sparse, &o, &e), 0);
    CHECK_INT(kv_reserve(s->kv, &s->seq, n_keys), 0);
    s->keys = mem_array((size_t)n_keys * DIM, sizeof *s->keys);
    for (int j = 0; j < n_keys; j++) {
        float *key = s->keys + j * DIM;
        for (int d = 0; d < DIM; d++)
            key[d] = small_value(r);
        kv_index_write(s->kv, &s->seq, 2, j, key);
    }
}

static void open_scene(struct scene *s, int block_size, int top_k, int n_keys, int max_rows,
                       int n_threads, const char *kernels, struct rng *r)
{
    open_cached(s, KV_BF16, block_size, top_k, n_keys, max_rows, n_threads, kernels, r);
}

static void close_scene(struct scene *s)
{
    kv_truncate(s->kv, &s->seq, 0);
    kv_close(&s->kv);
    msa_close(&s->msa);
    pool_free(&s->compute.pool);
    mem_free(s->keys);
}

static const float *query_of(const struct scene *s, int row, int head)
{
    return s->msa.queries + (size_t)row * s->msa.query_stride + head * DIM;
}

static void check_row(const struct scene *s, int row, int position)
{
    int size = s->model.sparse.block_size, top_k = s->model.sparse.top_k, own = position / size;
    float *scores = mem_array((size_t)own, sizeof *scores);
    for (int head = 0; head < HEADS; head++) {
        int32_t want[MAX_TOP_K];
        for (int b = 0; b < own; b++) {
            scores[b] = -INFINITY;
            for (int j = b * size; j < (b + 1) * size; j++) {
                float sum = 0;
                for (int d = 0; d < DIM; d++) /* exact: few bits */
                    sum += query_of(s, row, head)[d] * s->keys[j * DIM + d];
                scores[b] = sum > scores[b] ? sum : scores[b];
            }
        }
        naive_select(scores, own, top_k, want);
        CHECK_BYTES(msa_blocks(&s->msa, row, head), want, (size_t)top_k * sizeof *want);
    }
    mem_free(scores);
}

/* Rows at positions first, first + 1, ..: groups as attention makes them. */
static void choose_rows(struct scene *s, int first, int n_rows, struct rng *r)
{
    struct row_group groups[64];
    int32_t which[64];
    int n = 0;
    for (int row = 0; row < n_rows; n++) {
        int position = first + row, room = GROUP_ROWS - position % GROUP_ROWS;
        groups[n] = (struct row_group){.seq = &s->seq,
                                       .n_here = INT_MAX,
                                       .first_row = row,
                                       .n_rows = room < n_rows - row ? room : n_rows - row,
                                       .position = position};
        which[n] = n;
        row += groups[n].n_rows;
    }
    for (int row = 0; row < n_rows; row++)
        for (int i = 0; i < HEADS * DIM; i++)
            s->msa.queries[(size_t)row * s->msa.query_stride + (size_t)i] = small_value(r);
    msa_choose(&s->msa, &s->compute, s->kv, 2, groups, which, n);
}

TEST(msa_choose_finds_what_a_plain_reading_finds)
{
    static const struct {
        int block_size, top_k, first, n_rows, n_threads;
    } cases[] = {{16, 4, 64, 40, 1},    {16, 4, 1003, 37, 2},   {32, 3, 500, 70, 2},
                 {64, 16, 1024, 5, 2},  {128, 16, 2048, 20, 2}, {128, 2, 3100, 1, 3},
                 {192, 3, 2000, 33, 2}, {16, 1, 700, 9, 1}};
    struct rng r = test_rng();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (const char *const *name = kernels_names(); *name; name++) {
            struct scene s;
            if (!kernels_named(*name))
                continue;
            open_scene(&s, cases[i].block_size, cases[i].top_k, cases[i].first + cases[i].n_rows,
                       80, cases[i].n_threads, *name, &r);
            choose_rows(&s, cases[i].first, cases[i].n_rows, &r);
            for (int row = 0; row < cases[i].n_rows; row++)
                check_row(&s, row, cases[i].first + row);
            close_scene(&s);
        }
}

TEST(msa_choose_is_done_head_by_head)
{
    struct rng r = test_rng();
    struct scene s;
    enum { AT = 128 * 20, STRONG = 3 };
    open_scene(&s, 128, 4, AT + 1, 16, 1, "portable", &r);
    float key[DIM] = {0};
    key[5] = 1000.0f;
    memcpy(s.keys + 10 * DIM, key, sizeof key);
    kv_index_write(s.kv, &s.seq, 2, 10, key);
    struct row_group group = {.seq = &s.seq, .n_rows = 1, .position = AT, .n_here = INT_MAX};
    int32_t which = 0;
    for (int head = 0; head < HEADS; head++)
        for (int d = 0; d < DIM; d++)
            s.msa.queries[head * DIM + d] = d == 5 ? (head == STRONG ? 1.0f : -1.0f) : 0.5f;
    msa_choose(&s.msa, &s.compute, s.kv, 2, &group, &which, 1);
    for (int head = 0; head < HEADS; head++)
        CHECK(msa_blocks(&s.msa, 0, head)[0] == 0 || head != STRONG);
    check_row(&s, 0, AT);
    /* At the first position of a block its own key is all that is there of it. */
    CHECK_INT(msa_blocks(&s.msa, 0, 0)[3], 20);
    close_scene(&s);
}

TEST(msa_takes_keys_that_are_no_numbers_for_no_score)
{
    struct rng r = test_rng();
    struct scene s;
    open_scene(&s, 16, 3, 200, 16, 1, "portable", &r);
    float key[DIM];
    for (int d = 0; d < DIM; d++)
        key[d] = NAN;
    for (int j = 0; j < 192; j++)
        if (j / 16 != 4 && j / 16 != 7)
            kv_index_write(s.kv, &s.seq, 2, j, key);
    choose_rows(&s, 192, 1, &r);
    for (int head = 0; head < HEADS; head++) {
        const int32_t want[] = {4, 7, 12};
        CHECK_BYTES(msa_blocks(&s.msa, 0, head), want, sizeof want);
    }
    close_scene(&s);
}

/* ---- with bounds and without ---- */

enum look {
    LOOK_RANDOM,
    LOOK_TOPICS,
    LOOK_EQUAL,
    LOOK_TIES,
    LOOK_TINY,
    LOOK_ODD,
    LOOK_NEEDLES,
    LOOKS
};

/* Keys of one look; queries that look for something in them. */
static void dress(struct scene *s, enum look look, struct rng *r)
{
    float topic[8][DIM];
    for (int i = 0; i < 8 * DIM; i++)
        topic[i / DIM][i % DIM] = (float)rng_normal(r);
    for (int j = 0; j < s->n_keys; j++) {
        float key[DIM];
        int of = (int)rng_below(r, look == LOOK_TOPICS ? 200 : 8);
        /* Every topic has as many needles as blocks are chosen. */
        of = look == LOOK_TIES ? j / 16 % 3 : look == LOOK_NEEDLES ? j / 48 % 8 : of;
        for (int d = 0; d < DIM; d++) {
            float own = (float)rng_normal(r);
            key[d] = look == LOOK_RANDOM ? own : look == LOOK_EQUAL ? 1.0f : topic[of % 8][d];
            key[d] = look == LOOK_TOPICS ? (of < 8 ? 2 * topic[of][d] : 0.3f * own) : key[d];
            key[d] *= look == LOOK_TINY ? 1e-40f : 1.0f;
            /* One key in three blocks, each a little off the others: bounds do not tell which. */
            if (look == LOOK_NEEDLES)
                key[d] = j % 48 == 7 ? topic[of][d] * (1 + 1e-6f * (float)(j % 97)) : 0.1f * own;
        }
        if (look == LOOK_ODD && of == 3)
            key[of] = rng_below(r, 2) ? NAN : INFINITY;
        kv_index_write(s->kv, &s->seq, 2, j, key);
    }
    for (int row = 0; row < s->msa.max_rows; row++)
        for (int i = 0; i < HEADS * DIM; i++)
            s->msa.queries[(size_t)row * s->msa.query_stride + (size_t)i] =
                topic[(row + i / DIM) % 8][i % DIM] * (look == LOOK_TINY ? 1e-3f : 1.0f);
}

static void choose_both_ways(struct scene *s, int n_rows)
{
    struct err e = {0};
    struct msa_options o = {.max_rows = s->msa.max_rows,
                            .max_positions = s->model.max_positions,
                            .n_layers = 3,
                            .choice = MSA_SCAN};
    struct msa scan;
    struct row_group group = {
        .seq = &s->seq, .n_rows = n_rows, .position = s->n_keys - 16, .n_here = INT_MAX};
    int32_t which = 0;
    CHECK_INT(msa_open(&scan, &s->model.sparse, &o, &e), 0);
    memcpy(scan.queries, s->msa.queries,
           (size_t)n_rows * s->msa.query_stride * sizeof *scan.queries);
    msa_choose(&s->msa, &s->compute, s->kv, 2, &group, &which, 1);
    msa_choose(&scan, &s->compute, s->kv, 2, &group, &which, 1);
    for (int row = 0; row < n_rows; row++)
        for (int head = 0; head < HEADS; head++)
            CHECK_BYTES(msa_blocks(&s->msa, row, head), msa_blocks(&scan, row, head),
                        (size_t)s->model.sparse.top_k * sizeof(int32_t));
    CHECK_INT(scan.counts.scored, scan.counts.keys);
    CHECK_INT(scan.counts.keys, s->msa.counts.keys);
    msa_close(&scan);
}

TEST(msa_choose_with_bounds_finds_what_a_scan_finds)
{
    static const int sizes[][2] = {{16, 4}, {128, 3}, {64, 5}};
    struct rng r = test_rng();
    for (int look = 0; look < LOOKS; look++)
        for (int i = 0; i < 3; i++)
            for (int n_rows = 1; n_rows <= 16; n_rows += 15) {
                struct scene s;
                /* Index keys of 32 bits and of 16; int8 has the latter. */
                open_cached(&s, (enum kv_format)(i % KV_FORMAT_COUNT), sizes[i][0], sizes[i][1],
                            sizes[i][0] * sizes[i][1] * 20 + 16, 16, 2, kernels_best()->name, &r);
                dress(&s, (enum look)look, &r);
                choose_both_ways(&s, n_rows);
                /* Nothing can be left out of equal ones; a topic's blocks are few, needles fewer. */
                if (look == LOOK_EQUAL)
                    CHECK_INT(s.msa.counts.scored, s.msa.counts.keys);
                if (look == LOOK_TOPICS && i == 0 && n_rows == 1)
                    CHECK(s.msa.counts.scored < s.msa.counts.keys);
                if (look == LOOK_NEEDLES)
                    CHECK(s.msa.counts.scored < s.msa.counts.keys / 2);
                close_scene(&s);
            }
}

TEST(msa_goes_without_bounds_where_they_do_not_pay_and_tries_again)
{
    struct rng r = test_rng();
    struct scene s;
    open_scene(&s, 16, 4, 16 * 80 + 16, 16, 1, kernels_best()->name, &r);
    dress(&s, LOOK_EQUAL, &r);
    int n_without = 0, tried = 0;
    for (int step = 0; step < 60; step++) {
        n_without += s.msa.layers[2].n_without > 0;
        choose_both_ways(&s, 1);
        tried += (int)s.msa.counts.tried;
        s.msa.counts = (struct msa_counts){0};
    }
    CHECK(n_without >= 56);
    /* Every attempt counts, and there was one wave a step. */
    CHECK_INT(tried, 60 - n_without);
    CHECK_INT(s.msa.layers[2].penalty, 64);
    dress(&s, LOOK_TOPICS, &r);
    for (int step = 0; step < 64; step++) {
        choose_both_ways(&s, 1);
        s.msa.counts = (struct msa_counts){0};
    }
    CHECK_INT(s.msa.layers[2].penalty, 0);
    close_scene(&s);
}

TEST(msa_last_is_a_window)
{
    struct rng r = test_rng();
    struct scene s;
    open_scene(&s, 16, 4, 300, 16, 1, "portable", &r);
    s.msa.choice = MSA_LAST;
    struct row_group group = {.seq = &s.seq, .n_rows = 2, .position = 200, .n_here = INT_MAX};
    int32_t which = 0;
    msa_choose(&s.msa, &s.compute, s.kv, 2, &group, &which, 1);
    for (int head = 0; head < HEADS; head++) {
        const int32_t want[] = {9, 10, 11, 12};
        CHECK_BYTES(msa_blocks(&s.msa, 1, head), want, sizeof want);
    }
    close_scene(&s);
}
