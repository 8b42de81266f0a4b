/* tests/unit/test_forward.c - one answer: the same bits of logits for every way to run the
 * same tokens; a step is all or nothing; what is asked for is what comes. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/sample.h"
#include "model/safetensors.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"

enum { N_TOKENS = 150, VOCAB = 400, LAYERS = 3, HIDDEN = 72, TOP_K = 3 };

static void make_tokens(struct rng *r, int32_t *tokens, int n)
{
    for (int i = 0; i < n; i++)
        tokens[i] = (int32_t)rng_below(r, VOCAB);
}

static float *logits_of(const char *dir, const struct tiny_model_options *o, const int32_t *tokens,
                        int chunk_rows)
{
    struct tiny_model m;
    struct kv_seq seq = {0};
    float *logits = mem_array((size_t)N_TOKENS * VOCAB, sizeof(*logits));
    tiny_model_open(&m, dir, o);
    tiny_model_run(&m, &seq, tokens, N_TOKENS, chunk_rows, logits);
    CHECK_INT(seq.length, N_TOKENS);
    kv_truncate(m.kv, &seq, 0);
    tiny_model_close(&m);
    return logits;
}

static const size_t all_bytes = (size_t)N_TOKENS * VOCAB * sizeof(float);

TEST_WITHIN(forward_gives_one_answer_for_chunks_threads_and_kernels, 120)
{
    /* A fixed seed: the hashes below are to be compared between machines. */
    struct rng r = rng_seed(7);
    int32_t tokens[N_TOKENS];
    make_tokens(&r, tokens, N_TOKENS);
    tiny_model_write("model", LAYERS, 1);
    const struct {
        struct tiny_model_options options;
        int chunk_rows;
    } ways[] = {
        {{.n_threads = 2}, 128},
        {{.n_threads = 1}, 1},
        {{.n_threads = 3}, 7},
        {{.n_threads = 2, .max_rows = 64}, 64},
        {{.n_threads = 2, .max_rows = N_TOKENS}, N_TOKENS},
        {{.kernels = "portable", .n_threads = 1}, 128},
        {{.kernels = "portable", .n_threads = 2}, 31},
        {{.n_threads = 2, .has_two_lanes = true}, 128},
        {{.n_threads = 1, .has_two_lanes = true}, 37},
    };
    for (int mode = 0; mode < COMBINE_COUNT; mode++) {
        struct tiny_model_options plain = {.combine = (enum combine_mode)mode};
        float *want = logits_of("model", &plain, tokens, 128);
        test_say("%s: hash of all logits %016llx", combine_name((enum combine_mode)mode),
                 (unsigned long long)sample_logits_hash(want, N_TOKENS * VOCAB));
        for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
            struct tiny_model_options o = ways[i].options;
            o.combine = (enum combine_mode)mode;
            test_note("mode %d, way %zu", mode, i);
            float *got = logits_of("model", &o, tokens, ways[i].chunk_rows);
            CHECK_BYTES(got, want, all_bytes);
            mem_free(got);
        }
        mem_free(want);
    }
}

/* Every format, and mixtures of parts; the ways differ in kernels, threads and chunks. */
TEST_WITHIN(forward_gives_one_answer_in_every_format, 120)
{
    struct rng r = rng_seed(9);
    int32_t tokens[N_TOKENS];
    make_tokens(&r, tokens, N_TOKENS);
    tiny_model_write("model", LAYERS, 11);
    const char *const formats[] = {"f32",        "bf16",
                                   "q8",         "q4",
                                   "q8,kv=int8", "experts=q4,attention=q8,head=bf16,kv=f32",
                                   "head=q4",    "attention=q4,experts=fp8,kv=int8"};
    for (size_t f = 0; f < sizeof(formats) / sizeof(formats[0]); f++) {
        struct tiny_model_options plain = {.format = formats[f]};
        struct tiny_model_options other = {
            .format = formats[f], .kernels = "portable", .n_threads = 2};
        struct tiny_model_options busy = {
            .format = formats[f], .n_threads = 3, .has_two_lanes = true};
        float *want = logits_of("model", &plain, tokens, 128);
        test_say("%s: hash of all logits %016llx", formats[f],
                 (unsigned long long)sample_logits_hash(want, N_TOKENS * VOCAB));
        for (int way = 0; way < 3; way++) {
            test_note("%s, way %d", formats[f], way);
            float *got = logits_of("model", way == 0 ? &other : &busy, tokens, way == 1 ? 1 : 37);
            CHECK_BYTES(got, want, all_bytes);
            mem_free(got);
        }
        mem_free(want);
    }
}

enum { N_SEQS = 4 };

/* Sequences of many lengths enter, advance by different steps and leave, all in common steps. */
TEST(forward_gives_one_answer_alone_and_in_company)
{
    struct rng r = test_rng();
    int32_t tokens[N_SEQS][N_TOKENS];
    float *alone[N_SEQS];
    struct tiny_model_options o = {.n_threads = 2};
    tiny_model_write("model", LAYERS, 2);
    for (int i = 0; i < N_SEQS; i++) {
        make_tokens(&r, tokens[i], N_TOKENS);
        alone[i] = logits_of("model", &o, tokens[i], 128);
    }
    struct tiny_model m;
    struct kv_seq seqs[N_SEQS] = {{0}};
    tiny_model_open(&m, "model", &o);
    for (int n_done = 0; n_done < N_SEQS;) {
        struct step_seq part[N_SEQS];
        struct step step = {.seqs = part, .has_two_lanes = rng_below(&r, 3) > 0};
        int who[N_SEQS];
        n_done = 0;
        for (int i = 0; i < N_SEQS; i++) {
            int left = N_TOKENS - seqs[i].length;
            n_done += left == 0;
            int n = (int)rng_below(&r, 33);
            n = n > left ? left : n;
            if (n == 0)
                continue;
            CHECK_INT(kv_reserve(m.kv, &seqs[i], seqs[i].length + n), 0);
            who[step.n_seqs] = i;
            part[step.n_seqs++] = (struct step_seq){.kv = &seqs[i],
                                                    .position = seqs[i].length,
                                                    .n_tokens = n,
                                                    .tokens = tokens[i] + seqs[i].length,
                                                    .all_logits = true};
        }
        if (step.n_seqs == 0)
            continue;
        const float *logits;
        int n_logits;
        CHECK_INT(forward_step(m.forward, m.kv, &step, &moe_local_ops, m.moe, &logits, &n_logits),
                  0);
        for (int i = 0; i < step.n_seqs; i++) {
            size_t n = (size_t)part[i].n_tokens * VOCAB;
            CHECK_BYTES(logits, alone[who[i]] + (size_t)part[i].position * VOCAB,
                        n * sizeof(float));
            logits += n;
        }
    }
    for (int i = 0; i < N_SEQS; i++) {
        kv_truncate(m.kv, &seqs[i], 0);
        mem_free(alone[i]);
    }
    tiny_model_close(&m);
}

TEST(forward_gives_the_logits_that_were_asked_for)
{
    struct rng r = test_rng();
    int32_t tokens[N_TOKENS];
    make_tokens(&r, tokens, N_TOKENS);
    tiny_model_write("model", LAYERS, 3);
    struct tiny_model_options o = {0};
    float *want = logits_of("model", &o, tokens, 128);
    struct tiny_model m;
    struct kv_seq seqs[3] = {{0}};
    tiny_model_open(&m, "model", &o);
    struct step_seq parts[3];
    struct step step = {.n_seqs = 3, .seqs = parts};
    for (int i = 0; i < 3; i++) {
        CHECK_INT(kv_reserve(m.kv, &seqs[i], 10 + i), 0);
        parts[i] = (struct step_seq){.kv = &seqs[i], .n_tokens = 10 + i, .tokens = tokens};
    }
    parts[0].no_logits = true;
    parts[2].all_logits = true;
    const float *got;
    int n;
    for (int lanes = 1; lanes <= 2; lanes++) {
        step.has_two_lanes = lanes == 2;
        CHECK_INT(forward_step(m.forward, m.kv, &step, &moe_local_ops, m.moe, &got, &n), 0);
        CHECK_INT(n, 13);
        CHECK_BYTES(got, want + 10 * VOCAB, VOCAB * sizeof(float));
        CHECK_BYTES(got + VOCAB, want, 12 * VOCAB * sizeof(float));
        for (int i = 0; i < 3; i++) {
            CHECK_INT(seqs[i].length, 10 + i);
            if (lanes == 1)
                seqs[i].length = 0;
        }
    }
    parts[0].position = 10;
    parts[0].n_tokens = 1;
    CHECK_INT(kv_reserve(m.kv, &seqs[0], 11), 0);
    step.n_seqs = 1;
    CHECK_INT(forward_step(m.forward, m.kv, &step, &moe_local_ops, m.moe, &got, &n), 0);
    CHECK_INT(n, 0);
    for (int i = 0; i < 3; i++)
        kv_truncate(m.kv, &seqs[i], 0);
    tiny_model_close(&m);
    mem_free(want);
}

/* ---- what goes out ---- */

struct counted {
    struct moe_local *moe;
    bool has_second_lane;
    int rows[LAYERS];   /* that were scattered for each layer */
    int routed[LAYERS]; /* that whoever measures was told of */
};

static int counting_scatter(void *ud, int lane, const struct moe_rows *rows)
{
    struct counted *c = ud;
    c->rows[rows->layer] += rows->n_rows;
    c->has_second_lane |= lane == 1;
    return moe_local_ops.scatter(c->moe, lane, rows);
}

static int counting_gather(void *ud, int lane, float *x)
{
    struct counted *c = ud;
    return moe_local_ops.gather(c->moe, lane, x);
}

static const struct moe_ops counting_ops = {.scatter = counting_scatter, .gather = counting_gather};

static void count_routed(void *ud, int layer, const struct routing *r)
{
    struct counted *c = ud;
    c->routed[layer] += r ? r->n_rows : 0;
}

/* In the last layer only keys and values of the other rows are needed; measuring changes nothing. */
TEST(forward_sends_to_the_last_experts_only_rows_whose_logits_are_wanted)
{
    struct rng r = test_rng();
    int32_t tokens[20];
    make_tokens(&r, tokens, 20);
    tiny_model_write("model", LAYERS, 12);
    struct tiny_model_options o = {0};
    struct tiny_model m;
    struct kv_seq seqs[2] = {{0}};
    tiny_model_open(&m, "model", &o);
    struct step_seq parts[2];
    struct step step = {.n_seqs = 2, .seqs = parts};
    const float *logits;
    int n;
    for (int k = 0; k < 6; k++) {
        struct counted c = {.moe = m.moe};
        int wanted = 2 - k / 2;
        step.has_two_lanes = k % 2 == 1;
        step.layer_done = wanted == 2 ? NULL : count_routed;
        step.layer_done_ud = &c;
        for (int i = 0; i < 2; i++) {
            CHECK_INT(kv_reserve(m.kv, &seqs[i], seqs[i].length + 5 + i), 0);
            parts[i] = (struct step_seq){.kv = &seqs[i],
                                         .position = seqs[i].length,
                                         .n_tokens = 5 + i,
                                         .tokens = tokens,
                                         .no_logits = i >= wanted};
        }
        CHECK_INT(forward_step(m.forward, m.kv, &step, &counting_ops, &c, &logits, &n), 0);
        CHECK_INT(n, wanted);
        CHECK(c.has_second_lane == step.has_two_lanes);
        CHECK_INT(c.rows[0], 11);
        CHECK_INT(c.rows[LAYERS - 2], 11);
        CHECK_INT(c.rows[LAYERS - 1], wanted);
        for (int layer = 0; layer < LAYERS && step.layer_done; layer++)
            CHECK_INT(c.routed[layer], c.rows[layer]);
    }
    for (int i = 0; i < 2; i++)
        kv_truncate(m.kv, &seqs[i], 0);
    tiny_model_close(&m);
}

/* ---- all or nothing ---- */

struct failing {
    struct moe_local *moe;
    int calls_left; /* the call that finds 0 fails */
    bool gathers;   /* which of the two fails */
};

static int failing_scatter(void *ud, int lane, const struct moe_rows *rows)
{
    struct failing *f = ud;
    if (!f->gathers && f->calls_left-- == 0)
        return E_UNAVAILABLE;
    return moe_local_ops.scatter(f->moe, lane, rows);
}

static int failing_gather(void *ud, int lane, float *x)
{
    struct failing *f = ud;
    /* The round ends either way: what was sent out is taken back in. */
    int rc = moe_local_ops.gather(f->moe, lane, x);
    return f->gathers && f->calls_left-- == 0 ? E_DEADLINE : rc;
}

/* A round that is never taken back stops the next step at moe_local's must(). */
static void failing_abandon(void *ud, int lane)
{
    struct failing *f = ud;
    moe_local_ops.abandon(f->moe, lane);
}

static const struct moe_ops failing_ops = {
    .scatter = failing_scatter, .gather = failing_gather, .abandon = failing_abandon};

static void fail_everywhere(int n_lanes)
{
    struct rng r = test_rng();
    int n_calls = n_lanes * LAYERS;
    int32_t tokens[N_TOKENS];
    make_tokens(&r, tokens, N_TOKENS);
    tiny_model_write("model", LAYERS, 4);
    struct tiny_model_options o = {0};
    float *want = logits_of("model", &o, tokens, 128);
    struct tiny_model m;
    struct kv_seq seq = {0};
    tiny_model_open(&m, "model", &o);
    CHECK_INT(kv_reserve(m.kv, &seq, N_TOKENS), 0);
    for (int gathers = 0; gathers <= 1; gathers++)
        for (int call = 0; call <= n_calls; call++) {
            struct failing f = {.moe = m.moe, .calls_left = call, .gathers = gathers != 0};
            int before = seq.length;
            /* Other tokens when the step fails: they must leave no trace. */
            struct step_seq part = {.kv = &seq,
                                    .position = before,
                                    .n_tokens = 20,
                                    .tokens = call < n_calls ? tokens + 50 : tokens + before,
                                    .all_logits = true};
            struct step step = {.n_seqs = 1, .seqs = &part, .has_two_lanes = n_lanes == 2};
            const float *got = NULL;
            int n = -1;
            int rc = forward_step(m.forward, m.kv, &step, &failing_ops, &f, &got, &n);
            if (call < n_calls) {
                CHECK_INT(rc, gathers ? E_DEADLINE : E_UNAVAILABLE);
                CHECK_INT(seq.length, before);
                CHECK(!got && n == -1);
                continue;
            }
            CHECK_INT(rc, 0);
            CHECK_INT(seq.length, before + 20);
            CHECK_BYTES(got, want + (size_t)before * VOCAB, 20 * VOCAB * sizeof(float));
        }
    kv_truncate(m.kv, &seq, 0);
    tiny_model_close(&m);
    mem_free(want);
}

TEST(forward_step_is_all_or_nothing)
{
    fail_everywhere(1);
}

TEST(forward_step_of_two_lanes_is_all_or_nothing)
{
    fail_everywhere(2);
}

TEST(forward_refuses_a_token_outside_the_vocabulary)
{
    tiny_model_write("model", 1, 5);
    struct tiny_model_options o = {0};
    struct tiny_model m;
    struct kv_seq seqs[2] = {{0}};
    tiny_model_open(&m, "model", &o);
    const int32_t strange[] = {VOCAB, -1, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++) {
        const int32_t good[2] = {0, VOCAB - 1}, bad[2] = {1, strange[i]};
        struct step_seq parts[2] = {{.kv = &seqs[0], .n_tokens = 2, .tokens = good},
                                    {.kv = &seqs[1], .n_tokens = 2, .tokens = bad}};
        struct step step = {.n_seqs = 2, .seqs = parts};
        const float *got;
        int n;
        CHECK_INT(kv_reserve(m.kv, &seqs[0], 2), 0);
        CHECK_INT(kv_reserve(m.kv, &seqs[1], 2), 0);
        CHECK_INT(forward_step(m.forward, m.kv, &step, &moe_local_ops, m.moe, &got, &n), E_INVALID);
        CHECK_INT(seqs[0].length + seqs[1].length, 0);
    }
    kv_truncate(m.kv, &seqs[0], 0);
    kv_truncate(m.kv, &seqs[1], 0);
    tiny_model_close(&m);
}

TEST(forward_step_allocates_nothing_after_the_first_of_its_size)
{
    struct rng r = test_rng();
    int32_t tokens[40];
    make_tokens(&r, tokens, 40);
    tiny_model_write("model", LAYERS, 6);
    for (int mode = 0; mode < COMBINE_COUNT; mode++) {
        struct tiny_model_options o = {.combine = (enum combine_mode)mode, .n_threads = 2};
        o.format = mode == COMBINE_FIXED ? "q8,kv=int8" : NULL;
        struct tiny_model m;
        struct kv_seq seq = {0};
        tiny_model_open(&m, "model", &o);
        CHECK_INT(kv_reserve(m.kv, &seq, 40), 0);
        for (int i = 0; i < 4; i++) {
            struct step_seq part = {.kv = &seq,
                                    .position = seq.length,
                                    .n_tokens = 10 - i,
                                    .tokens = tokens + seq.length,
                                    .all_logits = true};
            struct step step = {.n_seqs = 1, .seqs = &part};
            const float *got;
            int n;
            if (i > 0)
                mem_guard_begin("step");
            CHECK_INT(forward_step(m.forward, m.kv, &step, &moe_local_ops, m.moe, &got, &n), 0);
            if (i > 0)
                mem_guard_end();
        }
        kv_truncate(m.kv, &seq, 0);
        tiny_model_close(&m);
    }
}

/* ---- the probe, and rows that do not fit the grid ---- */

enum { PROBED = 20 };

struct probed {
    int n_calls;
    float last[PROBED * HIDDEN]; /* the stream after the last layer */
};

static void on_probe(void *ud, int layer, const float *x, int n_rows, const struct routing *r)
{
    struct probed *p = ud;
    CHECK_INT(layer, p->n_calls - 1);
    CHECK_INT(n_rows, PROBED);
    CHECK((r == NULL) == (layer < 0));
    if (r) {
        CHECK_INT(r->n_rows, PROBED);
        CHECK_INT(r->top_k, TOP_K);
    }
    p->n_calls++;
    memcpy(p->last, x, sizeof(p->last));
}

static void probe_run(const char *dir, enum combine_mode mode, const int32_t *tokens,
                      struct probed *out)
{
    struct tiny_model_options o = {.combine = mode};
    struct tiny_model m;
    struct kv_seq seq = {0};
    tiny_model_open(&m, dir, &o);
    CHECK_INT(kv_reserve(m.kv, &seq, PROBED), 0);
    *out = (struct probed){0};
    struct step_seq part = {.kv = &seq, .n_tokens = PROBED, .tokens = tokens};
    struct step step = {.n_seqs = 1, .seqs = &part, .probe = on_probe, .probe_ud = out};
    const float *logits;
    int n;
    CHECK_INT(forward_step(m.forward, m.kv, &step, &moe_local_ops, m.moe, &logits, &n), 0);
    CHECK_INT(out->n_calls, m.config->n_layers + 1);
    kv_truncate(m.kv, &seq, 0);
    tiny_model_close(&m);
}

TEST(forward_probe_sees_the_embedding_and_every_layer)
{
    struct rng r = test_rng();
    int32_t tokens[PROBED];
    struct probed p;
    make_tokens(&r, tokens, PROBED);
    tiny_model_write("model", LAYERS, 7);
    probe_run("model", COMBINE_FIXED, tokens, &p);
}

/* Multiplies one tensor of F32 in model.safetensors on disk. */
static void scale_tensor(const char *dir, const char *name, float factor)
{
    char path[256];
    struct safetensors *s;
    struct tensor t, first;
    struct err e = {0};
    const char *first_name;
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    CHECK_INT(safetensors_open(path, &s, &e), 0);
    CHECK(safetensors_find(s, name, &t));
    CHECK_INT(t.dtype, DTYPE_F32);
    safetensors_at(s, 0, &first_name, &first);
    int fd = open(path, O_RDWR);
    uint64_t header_bytes;
    CHECK(fd >= 0 && pread(fd, &header_bytes, 8, 0) == 8);
    off_t at = (off_t)(8 + header_bytes) + ((const char *)t.data - (const char *)first.data);
    for (size_t i = 0; i < t.size_bytes / sizeof(float); i++, at += (off_t)sizeof(float)) {
        float value;
        CHECK(pread(fd, &value, sizeof(value), at) == sizeof(value));
        value *= factor;
        CHECK(pwrite(fd, &value, sizeof(value), at) == sizeof(value));
    }
    close(fd);
    safetensors_close(&s);
}

/* One expert's output is too large for the grid: rows that go there must come out as in mode
 * expert, bit for bit, and the others as if that expert were tame. */
TEST(forward_rows_that_overflow_the_grid_are_added_in_mode_expert)
{
    struct rng r = test_rng();
    int32_t tokens[PROBED];
    struct probed tame, fixed, expert;
    make_tokens(&r, tokens, PROBED);
    tiny_model_write("model", 1, 8);
    probe_run("model", COMBINE_FIXED, tokens, &tame);
    scale_tensor("model", "model.layers.0.block_sparse_moe.experts.5.w2.weight_scale_inv", 1e5f);
    probe_run("model", COMBINE_FIXED, tokens, &fixed);
    probe_run("model", COMBINE_EXPERT, tokens, &expert);
    int n_overflown = 0;
    const size_t row_bytes = HIDDEN * sizeof(float);
    for (int row = 0; row < PROBED; row++) {
        const size_t at = (size_t)row * HIDDEN;
        bool went_there = memcmp(fixed.last + at, tame.last + at, row_bytes) != 0;
        n_overflown += went_there;
        if (went_there)
            CHECK_BYTES(fixed.last + at, expert.last + at, row_bytes);
    }
    CHECK(n_overflown > 0 && n_overflown < PROBED);
    test_note("%d of %d rows", n_overflown, PROBED);
}
