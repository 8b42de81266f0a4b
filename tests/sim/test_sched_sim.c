/* tests/sim/test_sched_sim.c - random loads, cancellations, failures and losses of sides,
 * against a model of the attention sides that checks every step it gets. */
#include "base/err.h"
#include "base/mem.h"
#include "coordinator/sched.h"
#include "tests/lib/test.h"

enum { MAX_SIDES = 3, MAX_LIVE = 40, MAX_PROMPT = 30, EOS_ID = 1 };
static const int EOS[] = {EOS_ID};

/* A request as its owner sees it. */
struct sim_request {
    uint64_t seq; /* 0: free */
    int32_t prompt[MAX_PROMPT];
    struct sampling sampling;
    uint32_t n_prompt, max_tokens, n_output;
    int32_t last;
    int64_t deadline_ns;
};

/* A sequence as a side sees it. */
struct sim_seq {
    uint64_t seq;
    uint32_t fed;
};

struct sim_side {
    struct sched_side_limits limits;
    bool up, stepping;
    struct sim_seq seqs[64];
    int n_seqs;
    uint64_t step;
    struct wire_step_sample samples[64];
    uint32_t n_samples;
};

struct sim {
    struct sched sched;
    struct rng rng;
    struct sim_request requests[MAX_LIVE];
    struct sim_side sides[MAX_SIDES];
    uint64_t last_seq;
    uint32_t last_side;
    int64_t now;
    int ended, submitted, tokens;
};

static void feed(struct sim *s, const struct sched_event *e);

static struct sim_request *request(struct sim *s, uint64_t seq)
{
    for (int i = 0; i < MAX_LIVE; i++)
        if (s->requests[i].seq == seq)
            return &s->requests[i];
    return NULL;
}

static struct sim_side *side(struct sim *s, uint32_t id)
{
    for (int i = 0; i < MAX_SIDES; i++)
        if (s->sides[i].limits.id == id)
            return &s->sides[i];
    return NULL;
}

static void end(struct sim *s, struct sim_request *r)
{
    r->seq = 0;
    s->ended++;
}

static uint32_t pages_used(const struct sim_side *d)
{
    uint32_t pages = 0;
    for (int i = 0; i < d->n_seqs; i++)
        pages += (d->seqs[i].fed + d->limits.page_tokens - 1) / d->limits.page_tokens;
    return pages;
}

static struct sim_seq *seq_on(struct sim_side *d, const struct wire_step_seq *q)
{
    for (int i = 0; i < d->n_seqs; i++)
        if (d->seqs[i].seq == q->seq)
            return &d->seqs[i];
    CHECK_INT(q->position, 0);
    CHECK(q->sampling != NULL);
    CHECK(d->n_seqs < (int)d->limits.max_seqs);
    d->seqs[d->n_seqs] = (struct sim_seq){.seq = q->seq};
    return &d->seqs[d->n_seqs++];
}

/* The side's view of a step: is it what it may be? */
static void take_step(struct sim *s, struct sim_side *d, const struct wire_step *m)
{
    CHECK(d->up && !d->stepping);
    CHECK(m->n_tokens > 0 && m->n_tokens <= d->limits.max_rows);
    d->stepping = true;
    d->step = m->step;
    d->n_samples = 0;
    uint32_t at = 0;
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        const struct wire_step_seq *q = &m->seqs[i];
        struct sim_request *r = request(s, q->seq);
        CHECK(r != NULL); /* nobody is fed after its end */
        CHECK(r->deadline_ns > s->now);
        struct sim_seq *known = seq_on(d, q);
        CHECK_INT(q->position, known->fed);
        for (uint32_t k = 0; k < q->n_tokens; k++) {
            uint32_t position = q->position + k;
            int32_t want = position < r->n_prompt ? r->prompt[position] : r->last;
            CHECK_INT(m->tokens[at++], want);
        }
        known->fed += q->n_tokens;
        CHECK(known->fed <= r->n_prompt + r->max_tokens - 1);
        CHECK_INT(q->sample, known->fed >= r->n_prompt);
        if (q->sample)
            d->samples[d->n_samples++] =
                (struct wire_step_sample){.seq = q->seq,
                                          .code = rng_below(&s->rng, 200) ? 0 : E_CORRUPT,
                                          .sampled.token = (int32_t)rng_below(&s->rng, 30)};
    }
    CHECK_INT(at, m->n_tokens);
    CHECK(pages_used(d) <= d->limits.pages);
}

static void release(struct sim_side *d, uint64_t seq)
{
    if (!d)
        return;
    for (int i = 0; i < d->n_seqs; i++)
        if (d->seqs[i].seq == seq) {
            d->seqs[i] = d->seqs[--d->n_seqs];
            return;
        }
    CHECK(!"released twice, or never sent");
}

static void perform(struct sim *s, const struct sched_action *a)
{
    struct sim_request *r = request(s, a->seq);
    switch (a->kind) {
    case SCHED_SEND:
        take_step(s, side(s, a->side), a->step);
        break;
    case SCHED_RELEASE:
        release(side(s, a->side), a->seq);
        break;
    case SCHED_STARTED:
        CHECK(r && r->n_output == 0);
        break;
    case SCHED_TOKEN:
        CHECK(r != NULL);
        s->tokens++;
        r->n_output++;
        r->last = a->sampled->token;
        CHECK_INT(a->finish, r->last == EOS_ID              ? SCHED_STOP
                             : r->n_output == r->max_tokens ? SCHED_LENGTH
                                                            : SCHED_GOES_ON);
        if (a->finish != SCHED_GOES_ON)
            end(s, r);
        break;
    case SCHED_FAIL:
        CHECK(r && a->code < 0 && a->text[0]);
        end(s, r);
        break;
    }
}

static void feed(struct sim *s, const struct sched_event *e)
{
    struct sched_actions out = {0};
    sched_step(&s->sched, e, &out);
    for (int i = 0; i < out.n; i++)
        perform(s, &out.items[i]);
    sched_actions_fini(&out);
}

static void submit(struct sim *s)
{
    struct sim_request *r = request(s, 0);
    if (!r)
        return;
    *r = (struct sim_request){.seq = ++s->last_seq,
                              .n_prompt = 1 + (uint32_t)rng_below(&s->rng, MAX_PROMPT),
                              .max_tokens = 1 + (uint32_t)rng_below(&s->rng, 20),
                              .deadline_ns = s->now + 20 + (int64_t)rng_below(&s->rng, 400)};
    for (uint32_t i = 0; i < r->n_prompt; i++)
        r->prompt[i] = (int32_t)rng_below(&s->rng, 1000);
    s->submitted++;
    struct sched_event e = {.kind = SCHED_SUBMIT,
                            .now_ns = s->now,
                            .submit = {.seq = r->seq,
                                       .prompt = r->prompt,
                                       .n_prompt = r->n_prompt,
                                       .max_tokens = r->max_tokens,
                                       .sampling = &r->sampling,
                                       .stop_ids = EOS,
                                       .n_stop_ids = 1,
                                       .deadline_ns = r->deadline_ns}};
    feed(s, &e);
}

static void side_event(struct sim *s, struct sim_side *d)
{
    if (!d->up) {
        *d = (struct sim_side){.up = true,
                               .limits = {.id = ++s->last_side,
                                          .pages = 1 + (uint32_t)rng_below(&s->rng, 40),
                                          .page_tokens = 1 + (uint32_t)rng_below(&s->rng, 8),
                                          .max_rows = 1 + (uint32_t)rng_below(&s->rng, 20),
                                          .max_seqs = 1 + (uint32_t)rng_below(&s->rng, 12)}};
        feed(s, &(struct sched_event){.kind = SCHED_SIDE_UP, .side = d->limits});
    } else if (rng_below(&s->rng, 4) == 0) {
        d->up = false;
        feed(s,
             &(struct sched_event){
                 .kind = SCHED_SIDE_DOWN, .side = d->limits, .code = E_UNAVAILABLE, .text = "x"});
        CHECK_INT(d->n_seqs, 0);
    }
}

static void answer(struct sim *s, struct sim_side *d)
{
    if (!d->stepping)
        return;
    d->stepping = false;
    struct wire_step_reply reply = {
        .step = d->step, .n_samples = d->n_samples, .samples = d->samples};
    struct sched_event e = {.kind = SCHED_STEP_DONE,
                            .side.id = d->limits.id,
                            .step = d->step,
                            .now_ns = s->now,
                            .reply = &reply};
    if (rng_below(&s->rng, 30) == 0) {
        e.kind = SCHED_STEP_FAILED;
        e.code = E_UNAVAILABLE;
    }
    /* Results of a side that went down meanwhile belong to nobody. */
    feed(s, &e);
}

static void tick(struct sim *s)
{
    feed(s, &(struct sched_event){.kind = SCHED_TICK, .now_ns = s->now});
}

static void cancel(struct sim *s)
{
    struct sim_request *r = &s->requests[rng_below(&s->rng, MAX_LIVE)];
    if (r->seq == 0)
        return;
    uint64_t seq = r->seq;
    end(s, r);
    /* Its owner frees everything at once. */
    memset(r, 0, sizeof *r);
    feed(s, &(struct sched_event){.kind = SCHED_CANCEL, .seq = seq});
}

static void random_event(struct sim *s)
{
    struct sim_side *d = &s->sides[rng_below(&s->rng, MAX_SIDES)];
    switch (rng_below(&s->rng, 20)) {
    case 0:
    case 1:
    case 2:
    case 3:
        submit(s);
        break;
    case 4:
        cancel(s);
        break;
    case 5:
        if (rng_below(&s->rng, 4) == 0)
            side_event(s, d);
        break;
    case 6:
        s->now += (int64_t)rng_below(&s->rng, 10);
        break;
    case 7:
    case 8:
    case 9:
    case 10:
    case 11:
    case 12:
        answer(s, d);
        break;
    default:
        tick(s);
        break;
    }
}

TEST_WITHIN(sched_keeps_its_promises_through_random_histories, 120)
{
    struct sim *s = mem_alloc(sizeof *s);
    struct rng rng = test_rng();
    int histories = test_is_slow_build() ? 60 : 400, tokens = 0;
    for (int h = 0; h < histories; h++) {
        *s = (struct sim){.rng = rng_stream(rng_next(&rng), 0)};
        sched_init(&s->sched, 1 + (int)rng_below(&s->rng, 20));
        side_event(s, &s->sides[0]);
        for (int k = 0; k < 2000; k++)
            random_event(s);
        /* Everyone is served, or failed by its deadline, if sides only go on answering. */
        for (int k = 0; k < 3000 && s->ended < s->submitted; k++) {
            s->now++;
            tick(s);
            for (int i = 0; i < MAX_SIDES; i++)
                answer(s, &s->sides[i]);
        }
        CHECK_INT(s->ended, s->submitted);
        CHECK_INT(s->sched.n_running, 0);
        CHECK_INT(s->sched.n_queued, 0);
        for (int i = 0; i < MAX_SIDES; i++)
            if (s->sides[i].up)
                CHECK_INT(s->sides[i].n_seqs, 0);
        tokens += s->tokens;
        sched_fini(&s->sched);
    }
    /* The histories are not all failures. */
    CHECK(tokens > histories * 100);
    mem_free(s);
}
