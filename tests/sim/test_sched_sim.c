/* tests/sim/test_sched_sim.c - random loads against a model of the attention sides: steps that fail
 * before or after they moved anything, replies that are lost, late or doubled, slow sides, sides
 * that die, come back empty, or come back with what they had.
 *
 * A side keeps the tokens that it was fed and makes the next one of them, n_prompt and the sampling's
 * seed, and of nothing else, as real ones do.  So every request has one right answer, known when
 * it is submitted, and every token is compared with it.  A request may end otherwise only
 * by a rule, which perform() checks.  Keys, classes and budgets are random, too; sides say what
 * they have left, borrow pages and lose them with what lies there, and never run out of pages. */
#include "base/err.h"
#include "base/mem.h"
#include "coordinator/sched.h"
#include "tests/lib/test.h"

enum { MAX_SIDES = 3, MAX_LIVE = 40, MAX_PROMPT = 30, MAX_ANSWER = 20, MAX_KNOWN = 64, EOS_ID = 1 };
enum { POISON = 250 };
#define MS 1000000LL
#define PATIENCE_NS (2000 * MS)
static const int EOS[] = {EOS_ID};

/* A request as its owner sees it. */
struct sim_request {
    uint64_t seq; /* 0: free */
    int32_t prompt[MAX_PROMPT], answer[MAX_ANSWER];
    struct sampling sampling;
    uint32_t n_prompt, max_tokens, n_answer;
    bool is_poisoned; /* the sample after the answer fails */
    bool is_started;
    uint64_t key;
    struct tokens output;
    int64_t deadline_ns, moved_ns; /* when it last got a token, or a side did anything for it */
};

/* A sequence as a side sees it. */
struct sim_seq {
    uint64_t seq, seed;
    uint32_t n_prompt, fed;
    int32_t tokens[MAX_KNOWN];
};

struct sim_side {
    struct sched_side_limits limits;
    bool up, stepping, leaving;
    int speed; /* answers one time in so many tries */
    struct sim_seq seqs[64];
    int n_seqs;
    uint64_t step;
    int code; /* of the step: what the coordinator will hear */
    struct wire_step_sample samples[128];
    uint32_t n_samples;
    uint64_t fed_seqs[64]; /* whom the step concerns */
    int n_fed;
    struct sim_seq kept[8]; /* sequences of which it has the pages still */
    struct wire_step_opened opened[64];
    uint32_t n_opened;
};

struct sim {
    struct sched sched;
    struct rng rng;
    struct sim_request requests[MAX_LIVE];
    struct sim_side sides[MAX_SIDES];
    uint64_t last_seq;
    uint32_t last_side;
    int64_t now;
    bool calm; /* nothing goes wrong any more */
    int ended, submitted, tokens, completed, moved, gave_up, refused, guessed, inherited, resized;
    uint64_t cached;
};

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
        if (s->sides[i].up && s->sides[i].limits.id == id)
            return &s->sides[i];
    return NULL;
}

static void end(struct sim *s, struct sim_request *r)
{
    tokens_fini(&r->output);
    *r = (struct sim_request){0};
    s->ended++;
}

/* ---- the model of a model ------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 29);
}

/* The token that follows these, or -1: the model breaks down here. */
static int32_t next_token(uint64_t seed, uint32_t n_prompt, const int32_t *tokens, uint32_t n)
{
    uint64_t h = mix(seed, n_prompt);
    /* Some say the same again and again, so that guesses come true. */
    bool repeats = seed % 2 == 0 && n > n_prompt;
    for (uint32_t i = repeats ? n - 1 : 0; i < n; i++)
        h = mix(h, (uint64_t)tokens[i] % 4);
    if (h % POISON == 0)
        return -1;
    return (int32_t)((h >> 8) % 30);
}

static void foretell(struct sim_request *r)
{
    int32_t tokens[MAX_KNOWN];
    memcpy(tokens, r->prompt, r->n_prompt * sizeof tokens[0]);
    for (uint32_t n = r->n_prompt; r->n_answer < r->max_tokens; n++) {
        tokens[n] = next_token(r->sampling.seed, r->n_prompt, tokens, n);
        r->is_poisoned = tokens[n] < 0;
        if (r->is_poisoned)
            return;
        r->answer[r->n_answer++] = tokens[n];
        if (tokens[n] == EOS_ID)
            return;
    }
}

/* ---- a side ------------------------------------------------------------------------------ */

static struct sim_seq *find_on(struct sim_side *d, uint64_t seq)
{
    for (int i = 0; i < d->n_seqs; i++)
        if (d->seqs[i].seq == seq)
            return &d->seqs[i];
    return NULL;
}

/* Is there another side, which is leaving? */
static bool may_be_heir(const struct sim *s, const struct sim_side *d)
{
    bool any = false;
    for (int i = 0; i < MAX_SIDES; i++)
        any |= &s->sides[i] != d && s->sides[i].up && s->sides[i].leaving;
    return any;
}

/* What the coordinator may never send, whatever has happened. */
static void check_step(struct sim *s, struct sim_side *d, const struct wire_step *m)
{
    CHECK(d->up && !d->stepping);
    CHECK(m->n_tokens > 0 && m->n_tokens <= d->limits.max_rows);
    CHECK(s->sched.config.step_rows == 0 || m->n_tokens <= s->sched.config.step_rows);
    CHECK(m->n_seqs <= d->limits.max_seqs);
    uint32_t at = 0, n_ahead = 0;
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        const struct wire_step_seq *q = &m->seqs[i];
        struct sim_request *r = request(s, q->seq);
        CHECK(r != NULL && r->is_started); /* nobody is fed after its end */
        CHECK(r->deadline_ns > s->now);
        CHECK_INT(q->sampling != NULL, q->position == 0);
        if (q->position == 0)
            CHECK_INT(q->n_prompt, r->n_prompt);
        if (q->n_ahead > 0) {
            CHECK_INT(q->position, 0);
            CHECK(d->limits.keeps_prefixes);
            n_ahead += q->n_ahead;
        }
        if (q->n_draft > 0) {
            CHECK(d->limits.takes_drafts && q->position > 0 && q->sample);
            CHECK(q->n_draft == q->n_tokens - 1 && q->n_draft <= s->sched.config.draft_tokens);
            CHECK(r->output.len + q->n_draft < r->max_tokens);
        }
        for (uint32_t k = 0; k < q->n_tokens + q->n_ahead; k++, at++) {
            uint32_t position = q->position + k;
            if (k >= q->n_tokens + q->n_ahead - q->n_draft)
                continue; /* a guess */
            CHECK_INT(m->tokens[at], position < r->n_prompt
                                         ? r->prompt[position]
                                         : r->output.ids[position - r->n_prompt]);
        }
        bool is_all =
            q->position + q->n_tokens + q->n_ahead - q->n_draft == r->n_prompt + r->output.len;
        CHECK(!q->sample || is_all);
        CHECK(q->sample || !is_all || may_be_heir(s, d)); /* an heir's says nothing new */
    }
    CHECK_INT(at, m->n_tokens + n_ahead);
}

/* All or nothing: first whether everything can be done. */
static bool can_take(struct sim_side *d, const struct wire_step *m)
{
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        struct sim_seq *q = find_on(d, m->seqs[i].seq);
        if (m->seqs[i].position != 0 && (!q || q->fed != m->seqs[i].position))
            return false;
    }
    return true;
}

static uint32_t pages_used(const struct sim_side *d)
{
    uint32_t pages = 0;
    for (int i = 0; i < d->n_seqs; i++)
        pages += (d->seqs[i].fed + d->limits.page_tokens - 1) / d->limits.page_tokens;
    return pages;
}

/* What it has of these tokens: whole pages, and sometimes fewer than it could have. */
static uint32_t cached(struct sim *s, const struct sim_side *d, const int32_t *tokens, uint32_t n)
{
    uint32_t most = 0;
    for (int i = 0; i < 8 && d->limits.keeps_prefixes; i++) {
        uint32_t same = 0;
        while (same < d->kept[i].fed && same + 1 < n && d->kept[i].tokens[same] == tokens[same])
            same++;
        most = same > most ? same : most;
    }
    most -= most % d->limits.page_tokens;
    while (most > 0 && rng_below(&s->rng, 4) == 0)
        most -= d->limits.page_tokens;
    return most;
}

static void move(struct sim *s, struct sim_side *d, const struct wire_step *m)
{
    const int32_t *tokens = m->tokens;
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        const struct wire_step_seq *w = &m->seqs[i];
        struct sim_seq *q = find_on(d, w->seq);
        if (!q) {
            CHECK(d->n_seqs < (int)d->limits.max_seqs);
            q = &d->seqs[d->n_seqs++];
        }
        if (w->position == 0)
            *q =
                (struct sim_seq){.seq = w->seq, .seed = w->sampling->seed, .n_prompt = w->n_prompt};
        uint32_t given = w->n_tokens + w->n_ahead;
        uint32_t had = w->position == 0 ? cached(s, d, tokens, given) : 0;
        uint32_t fed = had + w->n_tokens < given ? had + w->n_tokens : given;
        memcpy(q->tokens + q->fed, tokens, fed * sizeof *tokens);
        q->fed += fed;
        tokens += given;
        d->kept[rng_below(&s->rng, 8)] = *q;
        if (had > 0)
            d->opened[d->n_opened++] = (struct wire_step_opened){w->seq, had};
        s->cached += had;
        /* The most that its pages hold counts, whatever becomes of the guesses. */
        CHECK(pages_used(d) <= d->limits.pages);
        if (!w->sample || fed < given)
            continue;
        q->fed -= w->n_draft;
        for (uint32_t k = 0;; k++) {
            int32_t next = next_token(q->seed, q->n_prompt, q->tokens, q->fed);
            d->samples[d->n_samples++] = (struct wire_step_sample){
                .seq = w->seq, .code = next < 0 ? E_CORRUPT : 0, .sampled.token = next};
            if (next < 0 || k == w->n_draft || q->tokens[q->fed] != next)
                break;
            q->fed++;
            s->guessed++;
        }
    }
    CHECK(pages_used(d) <= d->limits.pages);
}

static void take_step(struct sim *s, struct sim_side *d, const struct wire_step *m)
{
    static const int codes[] = {E_UNAVAILABLE, E_DEADLINE, E_BUSY, E_INTERNAL, E_NOT_FOUND};
    check_step(s, d, m);
    d->stepping = true;
    d->step = m->step;
    d->n_samples = d->n_opened = 0;
    d->code = 0;
    d->n_fed = 0;
    for (uint32_t i = 0; i < m->n_seqs; i++)
        d->fed_seqs[d->n_fed++] = m->seqs[i].seq;
    if (!can_take(d, m)) {
        d->code = E_PRECONDITION;
    } else if (!s->calm && rng_below(&s->rng, 12) == 0) {
        /* Fails as a whole, and nothing has moved. */
        d->code = codes[rng_below(&s->rng, 5)];
    } else {
        move(s, d, m);
        /* The reply is lost on its way. */
        if (!s->calm && rng_below(&s->rng, 20) == 0)
            d->code = rng_below(&s->rng, 2) ? E_DEADLINE : E_UNAVAILABLE;
    }
}

/* An unknown one is fine: the step that opened it may have failed. */
static void release(struct sim_side *d, uint64_t seq)
{
    CHECK(d != NULL);
    struct sim_seq *q = find_on(d, seq);
    if (q)
        *q = d->seqs[--d->n_seqs];
}

/* ---- the owner ------------------------------------------------------------------------------ */

/* Does a side exist that could ever hold it? */
static bool has_home(const struct sim *s, const struct sim_request *r)
{
    uint32_t tokens = r->n_prompt + r->max_tokens - 1;
    for (int i = 0; i < MAX_SIDES; i++) {
        const struct sched_side_limits *l = &s->sides[i].limits;
        if (s->sides[i].up && (tokens + l->page_tokens - 1) / l->page_tokens <= l->pages)
            return true;
    }
    return false;
}

static bool any_side(const struct sim *s)
{
    bool any = false;
    for (int i = 0; i < MAX_SIDES; i++)
        any |= s->sides[i].up;
    return any;
}

static void check_failure(struct sim *s, const struct sim_request *r, const struct sched_action *a)
{
    CHECK(a->text[0]);
    switch (a->code) {
    case E_DEADLINE:
        CHECK(s->now >= r->deadline_ns);
        break;
    case E_CORRUPT:
        CHECK(r->is_poisoned && r->output.len == r->n_answer);
        break;
    case E_INTERNAL: /* replayed again and again, and never got to its next token */
    case E_PRECONDITION:
        s->gave_up++;
        break;
    case E_UNAVAILABLE:
        CHECK(s->now - r->moved_ns >= PATIENCE_NS || (!r->is_started && !any_side(s)));
        s->gave_up++;
        break;
    case E_BUSY:
        CHECK(a->retry_s >= 1);
        CHECK(s->sched.n_queued * 4 >= s->sched.config.queue_limit * 3 ||
              (s->sched.config.queue_ns > 0 && s->sched.n_queued > 0));
        s->refused++;
        break;
    case E_RANGE:
        CHECK(!r->is_started && !has_home(s, r));
        break;
    default:
        test_fail(__FILE__, __LINE__, "failed with %s: %s", err_name(a->code), a->text);
    }
}

static void take_token(struct sim *s, struct sim_request *r, const struct sched_action *a)
{
    CHECK(r != NULL && r->output.len < r->n_answer);
    CHECK_INT(a->sampled->token, r->answer[r->output.len]);
    tokens_push(&r->output, a->sampled->token);
    r->moved_ns = s->now;
    s->tokens++;
    bool last = r->output.len == r->n_answer && !r->is_poisoned;
    CHECK_INT(a->finish, !last                         ? SCHED_GOES_ON
                         : a->sampled->token == EOS_ID ? SCHED_STOP
                                                       : SCHED_LENGTH);
    if (!last)
        return;
    s->completed++;
    end(s, r);
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
        CHECK(r && !r->is_started);
        r->is_started = true;
        break;
    case SCHED_MOVED:
        CHECK(r && r->is_started && side(s, a->side));
        s->moved++;
        break;
    case SCHED_INHERITED:
        CHECK(r && r->is_started && side(s, a->side));
        s->inherited++;
        break;
    case SCHED_TOKEN:
        take_token(s, r, a);
        break;
    case SCHED_FAIL:
        CHECK(r != NULL);
        check_failure(s, r, a);
        end(s, r);
        break;
    }
}

static void feed(struct sim *s, const struct sched_event *e)
{
    struct sched_actions out = {0};
    struct sched_event timed = *e;
    timed.now_ns = s->now;
    sched_step(&s->sched, &timed, &out);
    for (int i = 0; i < out.n; i++)
        perform(s, &out.items[i]);
    sched_actions_fini(&out);
}

static void tick(struct sim *s)
{
    feed(s, &(struct sched_event){.kind = SCHED_TICK});
}

static void submit(struct sim *s)
{
    struct sim_request *r = request(s, 0);
    if (!r)
        return;
    *r =
        (struct sim_request){.seq = ++s->last_seq,
                             .n_prompt = 1 + (uint32_t)rng_below(&s->rng, MAX_PROMPT),
                             .max_tokens = 1 + (uint32_t)rng_below(&s->rng, MAX_ANSWER),
                             .sampling.seed = rng_next(&s->rng),
                             .key = rng_below(&s->rng, 4),
                             .moved_ns = s->now,
                             .deadline_ns = s->now + (20 + (int64_t)rng_below(&s->rng, 8000)) * MS};
    for (uint32_t i = 0; i < r->n_prompt; i++)
        r->prompt[i] = (int32_t)rng_below(&s->rng, 1000);
    /* Many begin like another one. */
    const struct sim_request *other = &s->requests[rng_below(&s->rng, MAX_LIVE)];
    for (uint32_t i = 0; other->seq && i < r->n_prompt && i < other->n_prompt; i++)
        r->prompt[i] = other->prompt[i];
    foretell(r);
    /* Now and then one comes back from an earlier coordinator with a part of its answer. */
    bool is_resumed = r->n_answer > 1 && rng_below(&s->rng, 8) == 0;
    for (uint32_t i = 0; is_resumed && i < 1 + rng_below(&s->rng, r->n_answer - 1); i++)
        tokens_push(&r->output, r->answer[i]);
    s->submitted++;
    feed(s, &(struct sched_event){.kind = SCHED_SUBMIT,
                                  .submit = {.seq = r->seq,
                                             .prompt = r->prompt,
                                             .output = &r->output,
                                             .is_resumed = is_resumed,
                                             .n_prompt = r->n_prompt,
                                             .max_tokens = r->max_tokens,
                                             .key = r->key,
                                             .share = (uint32_t)r->key,
                                             .priority = (int)rng_below(&s->rng, 10),
                                             .sampling = &r->sampling,
                                             .stop_ids = EOS,
                                             .n_stop_ids = 1,
                                             .deadline_ns = r->deadline_ns}});
}

static void bring_up(struct sim *s, struct sim_side *d)
{
    struct sched_side_limits old = d->limits;
    *d = (struct sim_side){.up = true, .speed = rng_below(&s->rng, 4) ? 1 : 8};
    if (old.id && rng_below(&s->rng, 2))
        d->limits = old; /* the same one is reachable again: it hears of a new session first */
    else
        d->limits = (struct sched_side_limits){.id = ++s->last_side,
                                               .pages = 1 + (uint32_t)rng_below(&s->rng, 40),
                                               .page_tokens = 1 + (uint32_t)rng_below(&s->rng, 8),
                                               .max_rows = 1 + (uint32_t)rng_below(&s->rng, 20),
                                               .max_seqs = 1 + (uint32_t)rng_below(&s->rng, 12),
                                               .keeps_prefixes = rng_below(&s->rng, 3) > 0,
                                               .takes_drafts = rng_below(&s->rng, 3) > 0};
    feed(s, &(struct sched_event){.kind = SCHED_SIDE_UP, .side = d->limits});
}

/* It has borrowed pages, or lost borrowed ones with whatever lay in them. */
static void resize(struct sim *s, struct sim_side *d)
{
    if (!d->up || d->stepping)
        return;
    d->limits.pages = 1 + (uint32_t)rng_below(&s->rng, 40);
    while (pages_used(d) > d->limits.pages)
        d->n_seqs--; /* whoever came last */
    s->resized++;
    feed(s, &(struct sched_event){.kind = SCHED_SIDE_PAGES, .side = d->limits});
}

static void side_event(struct sim *s, struct sim_side *d)
{
    if (!d->up) {
        bring_up(s, d);
    } else if (!d->leaving && rng_below(&s->rng, 4) == 0) {
        d->leaving = true;
        feed(s, &(struct sched_event){.kind = SCHED_SIDE_LEAVING, .side = d->limits});
    } else if (d->leaving || rng_below(&s->rng, 2) == 0) {
        d->up = d->stepping = false;
        feed(s,
             &(struct sched_event){
                 .kind = SCHED_SIDE_DOWN, .side = d->limits, .code = E_UNAVAILABLE, .text = "x"});
        CHECK_INT(sched_side_seqs(&s->sched, d->limits.id), 0);
    }
}

static void answer(struct sim *s, struct sim_side *d)
{
    if (!d->stepping || (!s->calm && rng_below(&s->rng, (uint64_t)d->speed)))
        return;
    d->stepping = false;
    struct wire_step_reply reply = {.step = d->step,
                                    .n_samples = d->n_samples,
                                    .samples = d->samples,
                                    .kv_pages_free = d->limits.pages - pages_used(d),
                                    .n_opened = d->n_opened,
                                    .opened = d->opened};
    struct sched_event e = {.kind = d->code ? SCHED_STEP_FAILED : SCHED_STEP_DONE,
                            .side.id = d->limits.id,
                            .step = d->step,
                            .reply = &reply,
                            .code = d->code};
    /* A step that succeeded is progress, although perhaps not a token. */
    for (int i = 0; i < d->n_fed && !d->code; i++) {
        struct sim_request *r = request(s, d->fed_seqs[i]);
        if (r)
            r->moved_ns = s->now;
    }
    /* One that is cut short fits nothing. */
    if (!s->calm && !d->code && d->n_samples > 0 && rng_below(&s->rng, 100) == 0)
        reply.n_samples--;
    feed(s, &e);
    if (!s->calm && rng_below(&s->rng, 10) == 0)
        feed(s, &e); /* doubled: nobody's */
}

static void cancel(struct sim *s)
{
    struct sim_request *r = &s->requests[rng_below(&s->rng, MAX_LIVE)];
    if (r->seq == 0)
        return;
    uint64_t seq = r->seq;
    /* Its owner frees everything at once. */
    end(s, r);
    feed(s, &(struct sched_event){.kind = SCHED_CANCEL, .seq = seq});
}

static void random_event(struct sim *s)
{
    struct sim_side *d = &s->sides[rng_below(&s->rng, MAX_SIDES)];
    uint64_t dice = rng_below(&s->rng, 200);
    if (dice < 20)
        submit(s);
    else if (dice < 22)
        cancel(s);
    else if (dice < 25)
        side_event(s, d);
    else if (dice < 26)
        resize(s, d);
    else if (dice < 60)
        s->now += (int64_t)rng_below(&s->rng, 30) * MS;
    else if (dice < 130)
        answer(s, d);
    else
        tick(s);
}

/* Everyone is served, or failed by its rule, if sides only go on answering. */
static void calm_down(struct sim *s)
{
    s->calm = true;
    if (rng_below(&s->rng, 2) && !s->sides[0].up)
        bring_up(s, &s->sides[0]);
    for (int k = 0; k < 20000 && s->ended < s->submitted; k++) {
        s->now += MS;
        tick(s);
        for (int i = 0; i < MAX_SIDES; i++)
            answer(s, &s->sides[i]);
    }
    CHECK_INT(s->ended, s->submitted);
    CHECK_INT(s->sched.n_running, 0);
    CHECK_INT(s->sched.n_queued, 0);
    for (int i = 0; i < MAX_SIDES; i++)
        if (s->sides[i].up)
            CHECK_INT(sched_side_seqs(&s->sched, s->sides[i].limits.id), 0);
}

TEST_WITHIN(sched_keeps_its_promises_through_random_histories, 120)
{
    struct sim *s = mem_alloc(sizeof *s);
    struct rng rng = test_rng();
    int histories = test_is_slow_build() ? 60 : 600, completed = 0, moved = 0, gave_up = 0;
    int inherited = 0, resized = 0;
    uint64_t preempted = 0, refused = 0, cached_tokens = 0, guessed = 0;
    for (int h = 0; h < histories; h++) {
        *s = (struct sim){.rng = rng_stream(rng_next(&rng), 0)};
        struct sched_config c = {.queue_limit = 1 + (int)rng_below(&s->rng, 20),
                                 .patience_ns = PATIENCE_NS,
                                 .queue_ns = (int64_t)rng_below(&s->rng, 3) * 500 * MS,
                                 .aging_ns = (int64_t)rng_below(&s->rng, 3) * 300 * MS,
                                 .step_rows = (uint32_t)rng_below(&s->rng, 10),
                                 .prompt_rows = (uint32_t)rng_below(&s->rng, 5),
                                 .draft_tokens = (uint32_t)rng_below(&s->rng, 6)};
        sched_init(&s->sched, &c);
        side_event(s, &s->sides[0]);
        for (int k = 0; k < 4000; k++)
            random_event(s);
        calm_down(s);
        completed += s->completed;
        moved += s->moved;
        inherited += s->inherited;
        resized += s->resized;
        gave_up += s->gave_up;
        refused += (uint64_t)s->refused;
        preempted += s->sched.n_preempted;
        cached_tokens += s->cached;
        guessed += (uint64_t)s->guessed;
        CHECK(s->sched.n_draft_true <= s->sched.n_drafted);
        CHECK(list_is_empty(&s->sched.keys));
        sched_fini(&s->sched);
    }
    test_note("%d histories: %d answers complete, %d replays, %d handed over, %d gave up, %llu "
              "refused, %llu made "
              "place, %llu cached, %llu guessed",
              histories, completed, moved, inherited, gave_up, (unsigned long long)refused,
              (unsigned long long)preempted, (unsigned long long)cached_tokens,
              (unsigned long long)guessed);
    /* The histories are not all failures, and the hard cases are in them. */
    CHECK(completed > histories * 30);
    CHECK(moved > histories * 5);
    CHECK(inherited > histories);
    CHECK(resized > histories);
    CHECK(gave_up > 0 && refused > 0);
    CHECK(preempted > (uint64_t)histories);
    CHECK(cached_tokens > (uint64_t)histories * 100);
    CHECK(guessed > (uint64_t)histories);
    mem_free(s);
}
