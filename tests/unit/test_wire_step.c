/* tests/unit/test_wire_step.c - Step, its answers and Release: there and back, damaged, and refused
 * where the contracts say so. */
#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "rpc/wire.h"
#include "tests/unit/wire_random.h"

#define SAME(field) CHECK(a->field == b->field)

static const struct wire_step_limits step_limits = {
    .max_rows = 256, .max_seqs = 16, .vocab_size = 1000, .max_positions = 4096};

struct step_case {
    struct wire_step m;
    struct wire_step_seq seqs[16];
    struct sampling sampling[16];
    int32_t tokens[1024];
};

static void fill_sampling(struct rng *r, struct sampling *s)
{
    s->temperature = wire_random_float(r, 0, 100);
    s->top_k = (int)rng_below(r, 1000);
    s->top_p = wire_random_float(r, 0, 1);
    s->min_p = wire_random_float(r, 0, 1);
    s->repetition_penalty = wire_random_float(r, 0, 2);
    s->frequency_penalty = wire_random_float(r, -2, 2);
    s->presence_penalty = wire_random_float(r, -2, 2);
    s->seed = rng_next(r);
    s->logprobs = rng_below(r, 2) == 1;
    s->n_top = (int)rng_below(r, SAMPLING_MAX_TOP + 1);
    s->logits_hash = rng_below(r, 2) == 1;
    s->n_bias = (int)rng_below(r, SAMPLING_MAX_BIAS + 1);
    for (int i = 0; i < s->n_bias; i++) {
        s->bias[i].token = (int32_t)rng_below(r, 1000);
        s->bias[i].bias = wire_random_float(r, -100, 100);
    }
}

static void fill_step(struct rng *r, struct step_case *c)
{
    uint32_t n_payload = 0;
    memset(c, 0, sizeof(*c));
    c->m = (struct wire_step){.step = wire_random_64(r),
                              .session = wire_random_64(r),
                              .n_seqs = 1 + (uint32_t)rng_below(r, 16),
                              .seqs = c->seqs,
                              .tokens = c->tokens};
    for (uint32_t i = 0; i < c->m.n_seqs; i++) {
        struct wire_step_seq *q = &c->seqs[i];
        q->seq = wire_random_64(r) << 5 | i;
        q->n_tokens = 1 + (uint32_t)rng_below(r, 16);
        q->sample = rng_below(r, 2) == 1;
        q->position = rng_below(r, 2) ? 1 + (uint32_t)rng_below(r, 4000) : 0;
        if (q->position == 0) {
            q->n_prompt = q->n_tokens + (uint32_t)rng_below(r, 1000);
            fill_sampling(r, &c->sampling[i]);
            q->sampling = &c->sampling[i];
            q->n_ahead = (uint32_t)rng_below(r, 30);
        } else if (q->sample) {
            q->n_draft = q->n_tokens - 1;
        }
        c->m.n_tokens += q->n_tokens;
        n_payload += q->n_tokens + q->n_ahead;
    }
    for (uint32_t i = 0; i < n_payload; i++)
        c->tokens[i] = (int32_t)rng_below(r, 1000);
}

static void same_sampling(const struct sampling *a, const struct sampling *b)
{
    SAME(temperature);
    SAME(top_k);
    SAME(top_p);
    SAME(min_p);
    SAME(repetition_penalty);
    SAME(frequency_penalty);
    SAME(presence_penalty);
    SAME(seed);
    SAME(logprobs);
    SAME(n_top);
    SAME(logits_hash);
    SAME(n_bias);
    CHECK_BYTES(b->bias, a->bias, (size_t)a->n_bias * sizeof(a->bias[0]));
}

static int check_step(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    struct wire_step *out = NULL;
    int rc = wire_step_decode(message, payloads, n, &step_limits, &out, NULL);
    CHECK((rc == 0) == (out != NULL));
    mem_free(out);
    return rc;
}

TEST(wire_step_comes_back)
{
    struct rng r = test_rng();
    static struct step_case c;
    for (int i = 0; i < 50; i++) {
        fill_step(&r, &c);
        struct buf message = {0};
        struct blob *payload = NULL;
        wire_step_encode(&c.m, &message, &payload);
        struct frame frame = frame_of(payload);
        struct wire_step *out = NULL;
        struct err e = {0};
        if (wire_step_decode(buf_str(&message), &frame, 1, &step_limits, &out, &e) < 0)
            test_fail(__FILE__, __LINE__, "%s", e.text);
        CHECK(out->step == c.m.step);
        CHECK_INT(out->n_seqs, c.m.n_seqs);
        CHECK_INT(out->n_tokens, c.m.n_tokens);
        CHECK_BYTES(out->tokens, c.tokens, frame.size_bytes);
        for (uint32_t k = 0; k < c.m.n_seqs; k++) {
            const struct wire_step_seq *a = &c.seqs[k], *b = &out->seqs[k];
            SAME(seq);
            SAME(position);
            SAME(n_tokens);
            SAME(sample);
            SAME(n_prompt);
            SAME(n_ahead);
            SAME(n_draft);
            CHECK((a->sampling == NULL) == (b->sampling == NULL));
            if (a->sampling)
                same_sampling(a->sampling, b->sampling);
        }
        mem_free(out);
        if (i == 0)
            wire_damage(buf_str(&message), &frame, 1, check_step, NULL);
        blob_unref(&payload);
        buf_fini(&message);
    }
}

static void check_step_refused(const struct step_case *c, const char *why)
{
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_step_encode(&c->m, &message, &payload);
    struct frame frame = frame_of(payload);
    struct wire_step *out = NULL;
    struct err e = {0};
    CHECK_INT(wire_step_decode(buf_str(&message), &frame, 1, &step_limits, &out, &e), E_INVALID);
    CHECK(!out);
    CHECK_HAS(e.text, why);
    blob_unref(&payload);
    buf_fini(&message);
}

/* One sequence at position 0 with two tokens, nothing special. */
static struct step_case plain_step(void)
{
    return (struct step_case){.m = {.step = 1, .n_seqs = 1, .n_tokens = 2},
                              .seqs = {{.seq = 7, .n_tokens = 2, .sample = true, .n_prompt = 2}}};
}

#define REFUSE_STEP(why, change) \
    do { \
        struct step_case c = plain_step(); \
        c.m.seqs = c.seqs; \
        c.m.tokens = c.tokens; \
        c.seqs[0].sampling = &c.sampling[0]; \
        change; \
        check_step_refused(&c, why); \
    } while (0)

TEST(wire_step_refuses_what_cannot_run)
{
    static const int32_t many_tokens[4098];
    REFUSE_STEP("token -1 of 1000", c.tokens[1] = -1);
    REFUSE_STEP("token 1000 of 1000", c.tokens[0] = 1000);
    REFUSE_STEP("0 tokens", c.seqs[0].n_tokens = 0);
    REFUSE_STEP("the sequences name 1", c.seqs[0].n_tokens = 1);
    REFUSE_STEP("position 0", c.seqs[0].sampling = NULL);
    REFUSE_STEP("position 0", c.seqs[0].position = 1);
    REFUSE_STEP("a prompt of 0", c.seqs[0].n_prompt = 0);
    REFUSE_STEP("a prompt of 4097", c.seqs[0].n_prompt = 4097);
    REFUSE_STEP("4096 positions", (c.seqs[0].position = 4095, c.seqs[0].sampling = NULL));
    REFUSE_STEP("4096 positions", (c.seqs[0].position = UINT32_MAX, c.seqs[0].sampling = NULL));
    REFUSE_STEP("n_draft 1 with 2 tokens", c.seqs[0].n_draft = 1);
    REFUSE_STEP("n_ahead belongs to position 0", {
        c.seqs[0].position = 1;
        c.seqs[0].n_ahead = 1;
        c.seqs[0].sampling = NULL;
    });
    REFUSE_STEP("4098 tokens from position 0",
                (c.seqs[0].n_ahead = 4096, c.m.tokens = many_tokens));
    REFUSE_STEP("twice in one step", {
        c.m.n_seqs = 2;
        c.m.n_tokens = 4;
        c.seqs[1] = c.seqs[0];
    });
    REFUSE_STEP("17 sequences", {
        static struct wire_step_seq many[17];
        c.m.n_seqs = 17;
        c.m.seqs = many;
    });
}

TEST(wire_step_refuses_sampling_out_of_range)
{
    REFUSE_STEP("temperature", c.sampling[0].temperature = NAN);
    REFUSE_STEP("temperature", c.sampling[0].temperature = INFINITY);
    REFUSE_STEP("temperature", c.sampling[0].temperature = -0.5f);
    REFUSE_STEP("temperature", c.sampling[0].temperature = 101);
    REFUSE_STEP("top_p", c.sampling[0].top_p = 1.5f);
    REFUSE_STEP("min_p", c.sampling[0].min_p = NAN);
    REFUSE_STEP("repetition_penalty", c.sampling[0].repetition_penalty = -1);
    REFUSE_STEP("presence_penalty", c.sampling[0].presence_penalty = NAN);
    REFUSE_STEP("frequency_penalty", c.sampling[0].frequency_penalty = -INFINITY);
    REFUSE_STEP("n_top 21", c.sampling[0].n_top = 21);
    REFUSE_STEP("bias of token 1000", {
        c.sampling[0].n_bias = 1;
        c.sampling[0].bias[0].token = 1000;
    });
    REFUSE_STEP("bias of token 3", {
        c.sampling[0].n_bias = 1;
        c.sampling[0].bias[0].token = 3;
        c.sampling[0].bias[0].bias = NAN;
    });
}

static int check_step_reply(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    (void)payloads;
    (void)n;
    struct wire_step_reply *out = NULL;
    int rc = wire_step_reply_decode(message, &out, NULL);
    CHECK((rc == 0) == (out != NULL));
    mem_free(out);
    return rc;
}

TEST(wire_step_reply_comes_back)
{
    struct rng r = test_rng();
    static struct wire_step_sample samples[20];
    memset(samples, 0, sizeof(samples));
    for (int i = 0; i < 20; i++) {
        struct sampled *s = &samples[i].sampled;
        samples[i].seq = wire_random_64(&r);
        samples[i].code = i % 5 == 0 ? E_CORRUPT : 0;
        s->token = (int32_t)(wire_random_32(&r) >> 1);
        s->logprob = i == 3 ? -INFINITY : wire_random_float(&r, -20, 0);
        s->logits_hash = rng_next(&r);
        s->n_top = i;
        for (int k = 0; k < i; k++) {
            s->top[k].token = (int32_t)(wire_random_32(&r) >> 1);
            s->top[k].logprob = wire_random_float(&r, -20, 0);
        }
    }
    struct wire_node_health nodes[3] = {
        {.node_id = 7, .incarnation = 99, .standing = WIRE_STANDING_WRONG, .wrongs = 2},
        {.node_id = 8, .failovers = 5, .lates = 4, .usual_us = 1234},
        {.node_id = 9, .standing = WIRE_STANDING_AWAY}};
    struct wire_step_reply in = {.step = 5,
                                 .epoch = 6,
                                 .n_samples = 20,
                                 .samples = samples,
                                 .attention_us = 7,
                                 .experts_us = 8,
                                 .head_us = 9,
                                 .kv_pages_free = 10,
                                 .degraded = true,
                                 .ladder = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
                                 .grammars = {1, 2, 3, 4, 5, 6, 7},
                                 .n_nodes = 3,
                                 .nodes = nodes,
                                 .n_opened = 2,
                                 .opened = (struct wire_step_opened[]){{11, 64}, {12, 128}}};
    struct wire_step_reply *out = NULL;
    struct buf message = {0};
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), 0);
    CHECK_INT(out->step, 5);
    CHECK_INT(out->epoch, 6);
    CHECK_INT(out->attention_us, 7);
    CHECK_INT(out->experts_us, 8);
    CHECK_INT(out->head_us, 9);
    CHECK_INT(out->kv_pages_free, 10);
    CHECK(out->degraded);
    CHECK_BYTES(&out->ladder, &in.ladder, sizeof(in.ladder));
    CHECK_BYTES(&out->grammars, &in.grammars, sizeof(in.grammars));
    CHECK_INT(out->n_opened, 2);
    CHECK_INT(out->opened[1].seq, 12);
    CHECK_INT(out->opened[1].n_cached, 128);
    CHECK_INT(out->n_nodes, 3);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(out->nodes[i].node_id, nodes[i].node_id);
        CHECK_INT(out->nodes[i].incarnation, nodes[i].incarnation);
        CHECK_INT(out->nodes[i].standing, nodes[i].standing);
        CHECK_INT(out->nodes[i].failovers, nodes[i].failovers);
        CHECK_INT(out->nodes[i].lates, nodes[i].lates);
        CHECK_INT(out->nodes[i].wrongs, nodes[i].wrongs);
        CHECK_INT(out->nodes[i].usual_us, nodes[i].usual_us);
    }
    CHECK_INT(out->n_samples, 20);
    for (int i = 0; i < 20; i++) {
        const struct sampled *a = &samples[i].sampled, *b = &out->samples[i].sampled;
        CHECK(out->samples[i].seq == samples[i].seq);
        CHECK_INT(out->samples[i].code, samples[i].code);
        SAME(token);
        SAME(logprob);
        SAME(logits_hash);
        SAME(n_top);
        CHECK_BYTES(b->top, a->top, (size_t)a->n_top * sizeof(a->top[0]));
    }
    mem_free(out);
    wire_damage(buf_str(&message), NULL, 0, check_step_reply, NULL);
    nodes[1].node_id = 0;
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), E_INVALID);
    nodes[1].node_id = 8;
    samples[0].sampled.logprob = NAN;
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), E_INVALID);
    samples[0].sampled.logprob = 0;
    in.code = E_ABORTED; /* but with samples */
    snprintf(in.text, sizeof(in.text), "two nodes differ");
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), E_INVALID);
    in.n_samples = 0;
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), 0);
    CHECK_INT(out->code, E_ABORTED);
    CHECK_STR(out->text, "two nodes differ");
    CHECK_INT(out->n_nodes, 3);
    mem_free(out);
    buf_fini(&message);
}

static int check_release(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    (void)payloads;
    (void)n;
    struct wire_release *out = NULL;
    int rc = wire_release_decode(message, &out, NULL);
    mem_free(out);
    return rc;
}

TEST(wire_release_comes_back)
{
    struct rng r = test_rng();
    uint64_t seqs[30];
    for (int i = 0; i < 30; i++)
        seqs[i] = wire_random_64(&r);
    struct buf message = {0};
    for (uint32_t n = 0; n <= 30; n += 15) {
        struct wire_release *out = NULL;
        wire_release_encode(&(struct wire_release){n, seqs, 77 + n}, &message);
        CHECK_INT(wire_release_decode(buf_str(&message), &out, NULL), 0);
        CHECK_INT(out->session, 77 + n);
        CHECK_INT(out->n_seqs, n);
        CHECK_BYTES(out->seqs, seqs, n * sizeof(*seqs));
        mem_free(out);
    }
    wire_damage(buf_str(&message), NULL, 0, check_release, NULL);
    buf_fini(&message);
}

TEST(wire_bounds_what_a_small_message_may_cost)
{
    /* Two bytes per empty sequence on the wire, some hundred in memory: 16 MiB of them. */
    struct buf message = {0};
    buf_reserve(&message, 16 << 20);
    for (int i = 0; i < (8 << 20) - 1; i++)
        buf_append(&message, "\x1a\x00", 2);
    struct wire_step *out = NULL;
    struct err e = {0};
    struct frame frame = {"", 0};
    CHECK_INT(wire_step_decode(buf_str(&message), &frame, 1, &step_limits, &out, &e), E_INVALID);
    CHECK(!out);
    buf_append(&message, "\x1a\x00\x1a\x00", 4); /* over 16 MiB */
    CHECK_INT(wire_step_decode(buf_str(&message), &frame, 1, &step_limits, &out, &e), E_INVALID);
    CHECK_HAS(e.text, "bytes");
    buf_fini(&message);
}
