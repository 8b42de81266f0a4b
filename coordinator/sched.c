/* coordinator/sched.c - see sched.h.
 *
 * Sequences number in the hundreds, so look-ups by id are walks; a step's results come
 * back in the order of its sequences and need no look-up at all. */
#include "coordinator/sched.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/err.h"
#include "base/mem.h"
#include "base/must.h"
#include "coordinator/sched_state.h"

/* Between tries of a step that may succeed later, doubled each time. */
#define RETRY_FIRST_NS 5000000LL
#define RETRY_MOST_NS 500000000LL
#define SECOND_NS 1000000000LL
enum {
    MAX_REPLAYS = 8, /* of one sequence without a new token in between */
    MOST_RETRY_S = 600,
    DRAFT_PERMILLE = 250, /* what a row of a guess costs, before it was measured */
};

void sched_init(struct sched *s, const struct sched_config *c)
{
    *s = (struct sched){.config = *c};
    list_init(&s->queue);
    list_init(&s->lost);
    list_init(&s->keys);
}

void sched_free_seq(struct sched_seq *q)
{
    lookup_fini(&q->lookup);
    mem_free(q);
}

static void free_list(struct list *head)
{
    struct list *l;
    while ((l = list_pop_front(head)))
        sched_free_seq(LIST_ITEM(l, struct sched_seq, link));
}

static void free_side(struct sched_side *d)
{
    free_list(&d->prefilling);
    free_list(&d->decoding);
    free_list(&d->doomed);
    mem_free(d->in_step);
    mem_free(d->step_seqs);
    mem_free(d->step_tokens);
    sched_prefix_close(d);
    mem_free(d);
}

void sched_fini(struct sched *s)
{
    if (s->queue.next)
        free_list(&s->queue);
    if (s->lost.next)
        free_list(&s->lost);
    for (struct list *l; s->keys.next && (l = list_pop_front(&s->keys));)
        mem_free(LIST_ITEM(l, struct sched_key, link));
    for (int i = 0; i < s->n_sides; i++)
        free_side(s->sides[i]);
    mem_free(s->sides);
    *s = (struct sched){0};
}

void sched_actions_fini(struct sched_actions *a)
{
    mem_free(a->items);
    *a = (struct sched_actions){0};
}

/* ---- actions ----------------------------------------------------------------------- */

struct sched_action *sched_act(struct sched_actions *out, enum sched_action_kind kind, uint64_t seq,
                               uint32_t side)
{
    if (out->n == out->room) {
        out->room = out->room ? 2 * out->room : 16;
        out->items = mem_resize(out->items, (size_t)out->room * sizeof *out->items);
    }
    struct sched_action *a = &out->items[out->n++];
    *a = (struct sched_action){.kind = kind, .seq = seq, .side = side};
    return a;
}

__attribute__((format(printf, 4, 5))) static void fail(struct sched_actions *out, uint64_t seq,
                                                       int code, const char *format, ...)
{
    struct sched_action *a = sched_act(out, SCHED_FAIL, seq, 0);
    a->code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(a->text, sizeof a->text, format, args);
    va_end(args);
}

/* ---- sides and sequences ------------------------------------------------------------ */

static struct sched_side *find_side(const struct sched *s, uint32_t id)
{
    for (int i = 0; i < s->n_sides; i++)
        if (s->sides[i]->limits.id == id)
            return s->sides[i];
    return NULL;
}

bool sched_has_side(const struct sched *s, uint32_t id)
{
    return find_side(s, id) != NULL;
}

uint32_t sched_side_seqs(const struct sched *s, uint32_t id)
{
    const struct sched_side *d = find_side(s, id);
    return d ? d->n_seqs : 0;
}

bool sched_has_heirs(const struct sched *s, uint32_t id)
{
    bool any = false;
    for (int i = 0; i < s->n_sides; i++)
        any |= s->sides[i]->limits.id != id && !s->sides[i]->is_leaving;
    return any;
}

uint64_t sched_capacity_tokens(const struct sched *s)
{
    uint64_t most = 0;
    for (int i = 0; i < s->n_sides; i++) {
        const struct sched_side_limits *l = &s->sides[i]->limits;
        uint64_t tokens = (uint64_t)l->pages * l->page_tokens;
        if (tokens > most)
            most = tokens;
    }
    return most;
}

static struct sched_seq *find_in(const struct list *head, uint64_t seq)
{
    for (struct list *l = head->next; l != head; l = l->next) {
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        if (q->want.seq == seq && !q->heir_of)
            return q;
    }
    return NULL;
}

static struct sched_seq *find_seq(const struct sched *s, uint64_t seq)
{
    struct sched_seq *q = find_in(&s->queue, seq);
    if (!q)
        q = find_in(&s->lost, seq);
    for (int i = 0; !q && i < s->n_sides; i++) {
        q = find_in(&s->sides[i]->prefilling, seq);
        if (!q)
            q = find_in(&s->sides[i]->decoding, seq);
    }
    return q;
}

void sched_leave_side(struct sched_seq *q, enum sched_told told, struct sched_actions *out)
{
    struct sched_side *d = q->side;
    d->pages_reserved -= q->pages;
    d->pages_promised -= q->life_pages;
    d->n_seqs--;
    if (told == SCHED_TELL_SIDE && q->is_sent)
        sched_act(out, SCHED_RELEASE, q->want.seq, d->limits.id);
    list_remove(&q->link);
    q->side = NULL;
    q->pages = 0;
    q->fed = q->chunk = q->n_drafted = 0;
    q->n_blocks = 0;
    q->block_number = 0;
    q->is_sent = q->is_decoded = false;
}

/* The sequence is over for its owner; whatever `want` points to may be gone after this. */
static void end(struct sched *s, struct sched_seq *q, struct sched_actions *out)
{
    struct sched_side *d = q->side;
    if (q->heir)
        sched_drop_heir(q->heir, SCHED_TELL_SIDE, out);
    if (d || q->is_lost) {
        s->n_running--;
    } else {
        s->n_queued--;
        q->key->n_queued--;
    }
    sched_key_leave(s, q->key);
    q->key = NULL;
    if (d && q->chunk > 0 && d->step != 0) {
        q->is_doomed = true;
        list_remove(&q->link);
        list_push_back(&d->doomed, &q->link);
        return;
    }
    if (d)
        sched_leave_side(q, SCHED_TELL_SIDE, out);
    list_remove(&q->link);
    sched_free_seq(q);
}

/* It is on no side any more, and is replayed as soon as one has room, or goes on as its heir. */
static void lose(struct sched *s, struct sched_seq *q, enum sched_told told,
                 struct sched_actions *out)
{
    if (q->heir_of) {
        sched_drop_heir(q, told, out);
        return;
    }
    if (q->heir) {
        sched_inherit(q, told, out);
        return;
    }
    sched_leave_side(q, told, out);
    q->is_lost = true;
    list_push_back(&s->lost, &q->link);
}

void sched_lose(struct sched *s, struct sched_seq *q, struct sched_actions *out)
{
    lose(s, q, SCHED_TELL_SIDE, out);
}

static void lose_list(struct sched *s, struct list *head, enum sched_told told,
                      struct sched_actions *out)
{
    for (struct list *l = head->next, *next; l != head; l = next) {
        next = l->next;
        lose(s, LIST_ITEM(l, struct sched_seq, link), told, out);
    }
}

static void drop_doomed(struct sched_side *d, enum sched_told told, struct sched_actions *out)
{
    for (struct list *l = d->doomed.next, *next; l != &d->doomed; l = next) {
        next = l->next;
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        sched_leave_side(q, told, out);
        sched_free_seq(q);
    }
}

/* ---- events: sequences and sides ------------------------------------------------------ */

/* Adds it to the list that the caller has accounted for. */
static void add_seq(struct sched *s, const struct sched_submit *w, int64_t now_ns)
{
    struct sched_seq *q = mem_alloc(sizeof *q);
    q->want = *w;
    q->key = sched_key_of(s, w);
    q->order = ++s->last_order;
    q->submitted_ns = now_ns;
    q->n_output = (uint32_t)w->output->len;
    q->stalled_ns = SCHED_NEVER;
    q->is_lost = w->is_resumed;
    if (q->is_lost) {
        s->n_running++;
    } else {
        s->n_queued++;
        q->key->n_queued++;
    }
    list_push_back(q->is_lost ? &s->lost : &s->queue, &q->link);
}

static void refuse_for_now(struct sched_actions *out, uint64_t seq, int64_t wait_ns,
                           const char *why)
{
    fail(out, seq, E_BUSY, "%s", why);
    int64_t seconds = wait_ns / SECOND_NS + 1;
    out->items[out->n - 1].retry_s = (int)(seconds < MOST_RETRY_S ? seconds : MOST_RETRY_S);
}

/* Are too many waiting already, or for too long? */
static bool is_refused(const struct sched *s, const struct sched_submit *w, int64_t now_ns,
                       struct sched_actions *out)
{
    char why[SCHED_TEXT_BYTES];
    int64_t wait_ns = sched_wait_ns(s, w, now_ns), most_ns = s->config.queue_ns;
    uint32_t of_key = sched_key_queued(s, w->key);
    if (s->n_queued >= s->config.queue_limit) {
        snprintf(why, sizeof why, "%d requests are waiting already", s->n_queued);
        refuse_for_now(out, w->seq, wait_ns, why);
    } else if (w->key != 0 && of_key > 0 &&
               (int64_t)of_key * 4 >= (int64_t)s->config.queue_limit * 3) {
        snprintf(why, sizeof why, "%u requests of this API key are waiting already", of_key);
        refuse_for_now(out, w->seq, wait_ns, why);
    } else if (most_ns > 0 && wait_ns > most_ns) {
        snprintf(why, sizeof why, "it would wait about %lld s: %d requests are waiting already",
                 (long long)(wait_ns / SECOND_NS), s->n_queued);
        refuse_for_now(out, w->seq, wait_ns - most_ns, why);
    } else {
        return false;
    }
    return true;
}

static void submit(struct sched *s, const struct sched_event *e, struct sched_actions *out)
{
    const struct sched_submit *w = &e->submit;
    must(w->n_prompt > 0 && w->max_tokens > w->output->len && !find_seq(s, w->seq));
    if (w->is_resumed)
        add_seq(s, w, e->now_ns);
    else if (s->n_sides == 0)
        fail(out, w->seq, E_UNAVAILABLE, "no attention side is ready");
    else if (!sched_has_home(s, w))
        fail(out, w->seq, E_RANGE,
             "prompt (%u tokens) and answer (up to %u) do not fit the KV cache of %llu tokens",
             w->n_prompt, w->max_tokens, (unsigned long long)sched_capacity_tokens(s));
    else if (!is_refused(s, w, e->now_ns, out))
        add_seq(s, w, e->now_ns);
}

static void side_up(struct sched *s, const struct sched_side_limits *l)
{
    must(!find_side(s, l->id) && l->page_tokens > 0 && l->max_rows > 0 && l->max_seqs > 0);
    struct sched_side *d = mem_alloc(sizeof *d);
    d->limits = *l;
    if (d->limits.max_seqs > WIRE_MAX_SEQS)
        d->limits.max_seqs = WIRE_MAX_SEQS;
    d->pages_free = d->pages_said = l->pages;
    d->draft_permille = DRAFT_PERMILLE;
    d->retry_ns = INT64_MIN;
    list_init(&d->prefilling);
    list_init(&d->decoding);
    list_init(&d->doomed);
    d->in_step = mem_array(d->limits.max_seqs, sizeof(struct sched_seq *));
    d->step_seqs = mem_array(d->limits.max_seqs, sizeof *d->step_seqs);
    sched_prefix_open(d);
    s->sides = mem_resize(s->sides, (size_t)(s->n_sides + 1) * sizeof(struct sched_side *));
    s->sides[s->n_sides++] = d;
    s->had_side = true;
}

static void side_leaves(struct sched *s, uint32_t id)
{
    struct sched_side *d = find_side(s, id);
    if (d)
        d->is_leaving = true;
}

static void side_has_pages(struct sched *s, const struct sched_side_limits *l)
{
    struct sched_side *d = find_side(s, l->id);
    if (!d || l->pages == 0)
        return;
    d->pages_said = l->pages;
    if (d->limits.pages < l->pages)
        d->limits.pages = l->pages;
}

static void side_down(struct sched *s, const struct sched_event *e, struct sched_actions *out)
{
    struct sched_side *d = find_side(s, e->side.id);
    if (!d)
        return;
    snprintf(s->why_down, sizeof s->why_down, "%s", e->text ? e->text : err_text(e->code));
    d->step = 0; /* its answer, if it still comes, is nobody's */
    lose_list(s, &d->decoding, SCHED_SIDE_IS_GONE, out);
    lose_list(s, &d->prefilling, SCHED_SIDE_IS_GONE, out);
    drop_doomed(d, SCHED_SIDE_IS_GONE, out);
    int at = 0;
    for (int i = 0; i < s->n_sides; i++)
        if (s->sides[i] != d)
            s->sides[at++] = s->sides[i];
    s->n_sides = at;
    free_side(d);
}

/* ---- a step's answer; the side is outside ------------------------------------------------- */

struct cursor {
    const struct wire_step_reply *reply;
    uint32_t n_samples, n_opened; /* that were read */
};
/* What the answer says of one of the step's sequences. */
struct part {
    uint32_t n_cached; /* of its tokens, that were there when it began */
    uint32_t end;      /* the position that it has come to */
    const struct wire_step_sample *samples;
    uint32_t n_samples; /* 0: it has none yet; more than 1: guesses came true */
};

/* As many samples as guesses came true, and one.  `guesses`: the n_draft tokens. */
static bool read_samples(const struct wire_step_seq *w, const int32_t *guesses, struct cursor *c,
                         struct part *out)
{
    const struct wire_step_reply *r = c->reply;
    out->samples = r->samples + c->n_samples;
    bool goes_on = true;
    for (uint32_t i = 0; goes_on; i++) {
        if (c->n_samples >= r->n_samples || r->samples[c->n_samples].seq != w->seq)
            return false;
        const struct wire_step_sample *s = &r->samples[c->n_samples++];
        out->n_samples++;
        goes_on = i < w->n_draft && s->code == 0 && s->sampled.token == guesses[i];
    }
    if (w->n_draft > 0)
        out->end = w->position + out->n_samples;
    return true;
}

/* false if it cannot be the answer to that.  `tokens`: the sequence's, in the step. */
static bool read_part(const struct wire_step_seq *w, const int32_t *tokens, struct cursor *c,
                      struct part *out)
{
    const struct wire_step_reply *r = c->reply;
    uint32_t known_end = w->position + w->n_tokens + w->n_ahead;
    *out = (struct part){.end = w->position + w->n_tokens};
    if (c->n_opened < r->n_opened && r->opened[c->n_opened].seq == w->seq) {
        out->n_cached = r->opened[c->n_opened++].n_cached;
        if (w->position != 0 || out->n_cached >= known_end)
            return false;
        out->end =
            out->n_cached < known_end - w->n_tokens ? out->n_cached + w->n_tokens : known_end;
    }
    if (!w->sample || out->end < known_end)
        return true;
    return read_samples(w, tokens + 1, c, out);
}

static bool is_answer_to(const struct sched_side *d, const struct wire_step_reply *r)
{
    struct cursor c = {.reply = r};
    struct part part;
    const int32_t *tokens = d->message.tokens;
    for (uint32_t i = 0; i < d->message.n_seqs; i++) {
        if (!read_part(&d->step_seqs[i], tokens, &c, &part))
            return false;
        tokens += d->step_seqs[i].n_tokens + d->step_seqs[i].n_ahead;
    }
    return c.n_samples == r->n_samples && c.n_opened == r->n_opened;
}

/* ---- events: a step that succeeded ------------------------------------------------------ */

static bool is_stop(const struct sched_submit *w, int32_t token)
{
    for (int i = 0; i < w->n_stop_ids; i++)
        if (w->stop_ids[i] == token)
            return true;
    return false;
}

/* How long sequences run, smoothed. */
static void note_life(struct sched *s, const struct sched_seq *q, int64_t now_ns)
{
    int64_t took_ns = now_ns > q->started_ns ? now_ns - q->started_ns : 1;
    s->life_ns = s->life_ns ? s->life_ns - s->life_ns / 8 + took_ns / 8 : took_ns;
}

/* It has begun on its side: what was there already need not be fed. */
static void note_beginning(struct sched *s, struct sched_seq *q, uint32_t n_cached)
{
    uint32_t of_prompt = n_cached < q->want.n_prompt ? n_cached : q->want.n_prompt;
    if (n_cached < sched_prefix_match(q->side, q))
        sched_prefix_correct(q->side, q, n_cached);
    if (!q->has_begun)
        q->n_cached = of_prompt;
    q->has_begun = true;
    s->n_cached_tokens += n_cached;
}

/* One more token; false: it is the last, and the sequence is gone. */
static bool take_sample(struct sched *s, struct sched_seq *q, const struct wire_step_sample *sample,
                        int64_t now_ns, struct sched_actions *out)
{
    if (sample->code < 0) {
        fail(out, q->want.seq, sample->code, "the model's output for this sequence is not usable");
        end(s, q, out);
        return false;
    }
    q->n_output++;
    q->n_replays = q->n_heirs = 0;
    if (q->heir)
        q->heir->n_output = q->n_output;
    struct sched_action *a = sched_act(out, SCHED_TOKEN, q->want.seq, q->side->limits.id);
    a->sampled = &sample->sampled;
    a->is_degraded = q->is_degraded;
    a->n_cached = q->n_cached;
    a->finish = is_stop(&q->want, sample->sampled.token) ? SCHED_STOP
                : q->n_output >= q->want.max_tokens      ? SCHED_LENGTH
                                                         : SCHED_GOES_ON;
    if (a->finish == SCHED_GOES_ON)
        return true;
    note_life(s, q, now_ns);
    end(s, q, out);
    return false;
}

/* One sequence's part of a step that was done. */
static void advance(struct sched *s, struct sched_seq *q, const struct part *part, int64_t now_ns,
                    struct sched_actions *out)
{
    uint32_t n_known = sched_known(q), n_drafted = q->n_drafted;
    if (q->fed == 0)
        note_beginning(s, q, part->n_cached);
    q->fed = part->end;
    sched_prefix_learn(q->side, q, n_known);
    q->chunk = q->n_drafted = 0;
    q->stalled_ns = SCHED_NEVER;
    if (q->heir_of)
        q->heir_of->stalled_ns = SCHED_NEVER;
    if (part->n_samples == 0 || (q->is_heirs && !sched_heir_closed(q, out)))
        return;
    if (n_drafted > 0) {
        lookup_learn(&q->lookup, n_drafted, part->n_samples - 1);
        s->n_drafted += n_drafted;
        s->n_draft_true += part->n_samples - 1;
    }
    if (!q->is_decoded) {
        q->is_decoded = true;
        list_remove(&q->link);
        list_push_back(&q->side->decoding, &q->link);
    }
    for (uint32_t i = 0; i < part->n_samples; i++)
        if (!take_sample(s, q, &part->samples[i], now_ns, out))
            return;
}

/* What a row of a guess costs, in steps. */
static void note_drafts(struct sched_side *d, int64_t took_ns)
{
    int64_t more_ns = took_ns > d->step_ns ? took_ns - d->step_ns : 0;
    int64_t permille = more_ns / d->n_drafts * 1000 / d->step_ns;
    uint32_t now = permille < 10000 ? (uint32_t)permille : 10000;
    d->draft_permille = (d->draft_permille * 7 + now) / 8;
}

static void note_success(struct sched_side *d, int64_t now_ns)
{
    d->n_failures = 0;
    d->done_ns = now_ns;
    int64_t took_ns = now_ns > d->sent_ns ? now_ns - d->sent_ns : 1;
    if (d->message.n_tokens == d->message.n_seqs)
        d->step_ns = d->step_ns ? d->step_ns - d->step_ns / 8 + took_ns / 8 : took_ns;
    else if (d->step_ns > 0 && d->message.n_tokens == d->message.n_seqs + d->n_drafts)
        note_drafts(d, took_ns);
}

/* ---- events: a step that failed ---------------------------------------------------------- */

enum verdict { TRY_AGAIN, REPLAY, REFUSED };

static enum verdict verdict_on(int code)
{
    switch (code) {
    case E_INVALID: /* it will never be taken, there or elsewhere */
    case E_UNIMPLEMENTED:
    case E_DENIED:
    case E_UNAUTHENTICATED:
    case E_RANGE:
        return REFUSED;
    case E_PRECONDITION: /* the sequences do not stand where we think */
    case E_INTERNAL:
    case E_CORRUPT:
    case E_UNKNOWN:
        return REPLAY;
    default:
        return TRY_AGAIN;
    }
}

/* Has another side done well since this one began to fail? */
static bool another_does_well(const struct sched *s, const struct sched_side *d)
{
    for (int i = 0; i < s->n_sides; i++) {
        const struct sched_side *o = s->sides[i];
        if (o != d && o->n_failures == 0 && o->done_ns > d->failing_ns)
            return true;
    }
    return false;
}

static void note_failure(struct sched_side *d, const struct sched_event *e)
{
    if (d->n_failures == 0)
        d->failing_ns = e->now_ns;
    int64_t wait_ns = RETRY_FIRST_NS << (d->n_failures < 10 ? d->n_failures : 10);
    d->retry_ns = e->now_ns + (wait_ns < RETRY_MOST_NS ? wait_ns : RETRY_MOST_NS);
    d->n_failures++;
    snprintf(d->why, sizeof d->why, "%s", e->text ? e->text : err_text(e->code));
}

static void fail_seq(struct sched *s, struct sched_seq *q, const struct sched_event *e,
                     struct sched_actions *out)
{
    if (q->heir_of) {
        sched_drop_heir(q, SCHED_TELL_SIDE, out);
        return;
    }
    fail(out, q->want.seq, e->code, "%s", e->text ? e->text : err_text(e->code));
    end(s, q, out);
}

static void step_failed(struct sched *s, struct sched_side *d, const struct sched_event *e,
                        struct sched_actions *out)
{
    enum verdict verdict = verdict_on(e->code);
    d->step = 0;
    d->pages_free = 0; /* not known */
    note_failure(d, e);
    for (uint32_t i = 0; i < d->message.n_seqs; i++) {
        struct sched_seq *q = d->in_step[i];
        if (q->is_doomed)
            continue;
        q->chunk = q->n_drafted = 0;
        q->is_closing = false;
        if (q->stalled_ns == SCHED_NEVER && !q->heir_of)
            q->stalled_ns = e->now_ns;
        if (verdict == REFUSED || (verdict == REPLAY && ++q->n_replays > MAX_REPLAYS))
            fail_seq(s, q, e, out);
        else if (verdict == REPLAY)
            lose(s, q, SCHED_TELL_SIDE, out);
    }
    drop_doomed(d, SCHED_TELL_SIDE, out);
    if (d->n_failures >= SCHED_MOVE_AFTER && another_does_well(s, d)) {
        lose_list(s, &d->decoding, SCHED_TELL_SIDE, out);
        lose_list(s, &d->prefilling, SCHED_TELL_SIDE, out);
    }
}

static void step_done(struct sched *s, const struct sched_event *e, struct sched_actions *out)
{
    struct sched_side *d = find_side(s, e->side.id);
    if (!d || d->step == 0 || d->step != e->step)
        return;
    if (e->kind == SCHED_STEP_FAILED || !is_answer_to(d, e->reply)) {
        struct sched_event failed = *e;
        if (e->kind == SCHED_STEP_DONE) {
            failed.code = E_INTERNAL;
            failed.text = "the attention side's answer does not fit its step";
        }
        step_failed(s, d, &failed, out);
        return;
    }
    d->step = 0;
    note_success(d, e->now_ns);
    d->pages_free = e->reply->kv_pages_free;
    struct cursor c = {.reply = e->reply};
    const int32_t *tokens = d->message.tokens;
    for (uint32_t i = 0; i < d->message.n_seqs; i++) {
        struct part part;
        must(read_part(&d->step_seqs[i], tokens, &c, &part));
        tokens += d->step_seqs[i].n_tokens + d->step_seqs[i].n_ahead;
        d->in_step[i]->is_degraded |= e->reply->degraded;
        if (!d->in_step[i]->is_doomed)
            advance(s, d->in_step[i], &part, e->now_ns, out);
    }
    drop_doomed(d, SCHED_TELL_SIDE, out);
}

/* ---- time ---------------------------------------------------------------------------- */

static void expire_list(struct sched *s, struct list *head, int64_t now_ns,
                        struct sched_actions *out)
{
    for (struct list *l = head->next, *next; l != head; l = next) {
        next = l->next;
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        if (q->want.deadline_ns > now_ns || q->heir_of)
            continue;
        fail(out, q->want.seq, E_DEADLINE, "the request's time is over (after %u tokens)",
             q->n_output);
        end(s, q, out);
    }
}

static bool has_lost_patience(const struct sched *s, const struct sched_seq *q, int64_t now_ns)
{
    return q->stalled_ns != SCHED_NEVER && now_ns - q->stalled_ns >= s->config.patience_ns;
}

/* Those on no side: only that none could hold them counts, not that all are full. */
static void end_patience_of_homeless(struct sched *s, struct list *head, int64_t now_ns,
                                     struct sched_actions *out)
{
    for (struct list *l = head->next, *next; l != head; l = next) {
        next = l->next;
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        if (!s->had_side || sched_has_home(s, &q->want))
            q->stalled_ns = SCHED_NEVER;
        else if (q->stalled_ns == SCHED_NEVER)
            q->stalled_ns = now_ns;
        if (!has_lost_patience(s, q, now_ns))
            continue;
        fail(out, q->want.seq, E_UNAVAILABLE, "%s",
             s->n_sides > 0   ? "no attention side that is left could hold this request"
             : s->why_down[0] ? s->why_down
                              : "no attention side is left");
        end(s, q, out);
    }
}

static void end_patience(struct sched *s, struct list *head, int64_t now_ns,
                         struct sched_actions *out)
{
    for (struct list *l = head->next, *next; l != head; l = next) {
        next = l->next;
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        if (!has_lost_patience(s, q, now_ns))
            continue;
        fail(out, q->want.seq, E_UNAVAILABLE, "no step has succeeded for too long: %s",
             q->side->why);
        end(s, q, out);
    }
}

static void tick(struct sched *s, int64_t now_ns, struct sched_actions *out)
{
    expire_list(s, &s->queue, now_ns, out);
    expire_list(s, &s->lost, now_ns, out);
    end_patience_of_homeless(s, &s->queue, now_ns, out);
    end_patience_of_homeless(s, &s->lost, now_ns, out);
    for (int i = 0; i < s->n_sides; i++) {
        struct sched_side *d = s->sides[i];
        expire_list(s, &d->prefilling, now_ns, out);
        expire_list(s, &d->decoding, now_ns, out);
        end_patience(s, &d->prefilling, now_ns, out);
        end_patience(s, &d->decoding, now_ns, out);
    }
    for (int i = 0; i < s->n_sides; i++)
        if (s->sides[i]->step == 0 && s->sides[i]->pages_said < s->sides[i]->limits.pages)
            sched_shrink(s, s->sides[i], now_ns, out);
    sched_bequeath(s);
    sched_admit(s, now_ns, out);
    for (int i = 0; i < s->n_sides; i++)
        if (s->sides[i]->step == 0 && now_ns >= s->sides[i]->retry_ns)
            sched_plan(s, s->sides[i], now_ns, out);
}

void sched_step(struct sched *s, const struct sched_event *e, struct sched_actions *out)
{
    switch (e->kind) {
    case SCHED_SUBMIT:
        submit(s, e, out);
        break;
    case SCHED_CANCEL: {
        struct sched_seq *q = find_seq(s, e->seq);
        if (q)
            end(s, q, out);
        break;
    }
    case SCHED_SIDE_UP:
        side_up(s, &e->side);
        break;
    case SCHED_SIDE_DOWN:
        side_down(s, e, out);
        break;
    case SCHED_SIDE_LEAVING:
        side_leaves(s, e->side.id);
        break;
    case SCHED_SIDE_PAGES:
        side_has_pages(s, &e->side);
        break;
    case SCHED_STEP_DONE:
    case SCHED_STEP_FAILED:
        step_done(s, e, out);
        break;
    case SCHED_TICK:
        tick(s, e->now_ns, out);
        break;
    }
}
