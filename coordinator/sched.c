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

struct sched_seq {
    struct list link; /* queue, or the side's prefilling or decoding list */
    struct sched_submit want;
    struct sched_side *side; /* NULL while queued */
    uint64_t pages;
    uint32_t fed;   /* tokens whose KV is on the side */
    uint32_t chunk; /* rows of it in the step in flight; 0: not in it */
    uint32_t n_output;
    int32_t last; /* the newest token, not yet fed */
    bool doomed;  /* ended while in flight: released when the step is over */
};

struct sched_side {
    struct sched_side_limits limits;
    bool up;
    struct list prefilling, decoding, doomed;
    uint64_t pages_reserved;
    uint32_t n_seqs;
    uint64_t step; /* in flight; 0: none */
    struct sched_seq **in_step;
    struct wire_step_seq *step_seqs;
    int32_t *step_tokens;
    struct wire_step message;
};

void sched_init(struct sched *s, int queue_limit)
{
    *s = (struct sched){.queue_limit = queue_limit};
    list_init(&s->queue);
}

static void free_list(struct list *head)
{
    struct list *l;
    while ((l = list_pop_front(head)))
        mem_free(LIST_ITEM(l, struct sched_seq, link));
}

static void free_side(struct sched_side *d)
{
    free_list(&d->prefilling);
    free_list(&d->decoding);
    free_list(&d->doomed);
    mem_free(d->in_step);
    mem_free(d->step_seqs);
    mem_free(d->step_tokens);
    mem_free(d);
}

void sched_fini(struct sched *s)
{
    if (s->queue.next)
        free_list(&s->queue);
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

static struct sched_action *act(struct sched_actions *out, enum sched_action_kind kind,
                                uint64_t seq, uint32_t side)
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
    struct sched_action *a = act(out, SCHED_FAIL, seq, 0);
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
        if (s->sides[i]->up && s->sides[i]->limits.id == id)
            return s->sides[i];
    return NULL;
}

bool sched_has_side(const struct sched *s, uint32_t id)
{
    return find_side(s, id) != NULL;
}

uint64_t sched_capacity_tokens(const struct sched *s)
{
    uint64_t most = 0;
    for (int i = 0; i < s->n_sides; i++) {
        const struct sched_side_limits *l = &s->sides[i]->limits;
        uint64_t tokens = (uint64_t)l->pages * l->page_tokens;
        if (s->sides[i]->up && tokens > most)
            most = tokens;
    }
    return most;
}

/* KV pages for the whole life of the sequence; its last token is never fed. */
static uint64_t pages_for(const struct sched_submit *w, const struct sched_side *d)
{
    uint64_t tokens = (uint64_t)w->n_prompt + w->max_tokens - 1;
    return (tokens + d->limits.page_tokens - 1) / d->limits.page_tokens;
}

static struct sched_seq *find_in(const struct list *head, uint64_t seq)
{
    for (struct list *l = head->next; l != head; l = l->next) {
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        if (q->want.seq == seq)
            return q;
    }
    return NULL;
}

static struct sched_seq *find_seq(const struct sched *s, uint64_t seq)
{
    struct sched_seq *q = find_in(&s->queue, seq);
    for (int i = 0; !q && i < s->n_sides; i++) {
        q = find_in(&s->sides[i]->prefilling, seq);
        if (!q)
            q = find_in(&s->sides[i]->decoding, seq);
    }
    return q;
}

/* Its pages are free again, and the side shall forget it. */
static void let_go(struct sched_seq *q, struct sched_actions *out)
{
    struct sched_side *d = q->side;
    d->pages_reserved -= q->pages;
    d->n_seqs--;
    if (q->fed > 0 || q->chunk > 0)
        act(out, SCHED_RELEASE, q->want.seq, d->limits.id);
    list_remove(&q->link);
    mem_free(q);
}

/* The sequence is over for its owner; whatever `want` points to may be gone after this. */
static void end(struct sched *s, struct sched_seq *q, struct sched_actions *out)
{
    if (!q->side) {
        s->n_queued--;
        list_remove(&q->link);
        mem_free(q);
        return;
    }
    s->n_running--;
    if (q->chunk > 0 && q->side->step != 0) {
        q->doomed = true;
        list_remove(&q->link);
        list_push_back(&q->side->doomed, &q->link);
        return;
    }
    let_go(q, out);
}

/* ---- events ------------------------------------------------------------------------- */

static void submit(struct sched *s, const struct sched_submit *w, struct sched_actions *out)
{
    must(w->n_prompt > 0 && w->max_tokens > 0 && !find_seq(s, w->seq));
    bool any = false, fits = false;
    for (int i = 0; i < s->n_sides; i++) {
        any |= s->sides[i]->up;
        fits |= s->sides[i]->up && pages_for(w, s->sides[i]) <= s->sides[i]->limits.pages;
    }
    if (!any) {
        fail(out, w->seq, E_UNAVAILABLE, "no attention side is ready");
    } else if (!fits) {
        fail(out, w->seq, E_RANGE,
             "prompt (%u tokens) and answer (up to %u) do not fit the KV cache of %llu tokens",
             w->n_prompt, w->max_tokens, (unsigned long long)sched_capacity_tokens(s));
    } else if (s->n_queued >= s->queue_limit) {
        fail(out, w->seq, E_BUSY, "%d requests are waiting already", s->n_queued);
    } else {
        struct sched_seq *q = mem_alloc(sizeof *q);
        q->want = *w;
        list_push_back(&s->queue, &q->link);
        s->n_queued++;
    }
}

static void side_up(struct sched *s, const struct sched_side_limits *l)
{
    must(!find_side(s, l->id) && l->page_tokens > 0 && l->max_rows > 0 && l->max_seqs > 0);
    struct sched_side *d = mem_alloc(sizeof *d);
    d->limits = *l;
    if (d->limits.max_seqs > WIRE_MAX_SEQS)
        d->limits.max_seqs = WIRE_MAX_SEQS;
    d->up = true;
    list_init(&d->prefilling);
    list_init(&d->decoding);
    list_init(&d->doomed);
    d->in_step = mem_array(d->limits.max_seqs, sizeof *d->in_step);
    d->step_seqs = mem_array(d->limits.max_seqs, sizeof *d->step_seqs);
    d->step_tokens = mem_array(d->limits.max_rows, sizeof *d->step_tokens);
    s->sides = mem_resize(s->sides, (size_t)(s->n_sides + 1) * sizeof(struct sched_side *));
    s->sides[s->n_sides++] = d;
}

static void fail_list(struct sched *s, struct list *head, const struct sched_event *e,
                      struct sched_actions *out)
{
    for (struct list *l = head->next, *next; l != head; l = next) {
        next = l->next;
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        fail(out, q->want.seq, e->code, "%s", e->text ? e->text : err_text(e->code));
        end(s, q, out);
    }
}

static void let_go_doomed(struct sched_side *d, struct sched_actions *out)
{
    for (struct list *l = d->doomed.next, *next; l != &d->doomed; l = next) {
        next = l->next;
        let_go(LIST_ITEM(l, struct sched_seq, link), out);
    }
}

static void side_down(struct sched *s, const struct sched_event *e, struct sched_actions *out)
{
    struct sched_side *d = find_side(s, e->side.id);
    if (!d)
        return;
    d->step = 0; /* its answer, if it still comes, is nobody's */
    fail_list(s, &d->prefilling, e, out);
    fail_list(s, &d->decoding, e, out);
    let_go_doomed(d, out);
    int at = 0, n_up = 0;
    for (int i = 0; i < s->n_sides; i++)
        if (s->sides[i] != d)
            s->sides[at++] = s->sides[i], n_up++;
    s->n_sides = at;
    free_side(d);
    /* Nobody is left to wait for. */
    if (n_up == 0)
        fail_list(s, &s->queue, e, out);
}

static bool is_stop(const struct sched_submit *w, int32_t token)
{
    for (int i = 0; i < w->n_stop_ids; i++)
        if (w->stop_ids[i] == token)
            return true;
    return false;
}

/* One sequence's part of a step that was done; `sample` is NULL if none was asked for. */
static void advance(struct sched *s, struct sched_seq *q, const struct wire_step_sample *sample,
                    struct sched_actions *out)
{
    q->fed += q->chunk;
    q->chunk = 0;
    if (!sample)
        return;
    if (sample->code < 0) {
        fail(out, q->want.seq, sample->code, "the model's output for this sequence is not usable");
        end(s, q, out);
        return;
    }
    if (q->n_output == 0) {
        list_remove(&q->link);
        list_push_back(&q->side->decoding, &q->link);
    }
    q->last = sample->sampled.token;
    q->n_output++;
    struct sched_action *a = act(out, SCHED_TOKEN, q->want.seq, q->side->limits.id);
    a->sampled = &sample->sampled;
    a->finish = is_stop(&q->want, q->last)          ? SCHED_STOP
                : q->n_output >= q->want.max_tokens ? SCHED_LENGTH
                                                    : SCHED_GOES_ON;
    if (a->finish != SCHED_GOES_ON)
        end(s, q, out);
}

/* Do the samples name the sequences that asked for one, in order?  The side is outside. */
static bool is_answer_to(const struct sched_side *d, const struct wire_step_reply *r)
{
    uint32_t k = 0;
    for (uint32_t i = 0; i < d->message.n_seqs; i++)
        if (d->step_seqs[i].sample) {
            if (k >= r->n_samples || r->samples[k].seq != d->step_seqs[i].seq)
                return false;
            k++;
        }
    return k == r->n_samples;
}

static void step_failed(struct sched *s, struct sched_side *d, const struct sched_event *e,
                        struct sched_actions *out)
{
    d->step = 0;
    for (uint32_t i = 0; i < d->message.n_seqs; i++) {
        struct sched_seq *q = d->in_step[i];
        if (q->doomed)
            continue;
        fail(out, q->want.seq, e->code, "%s", e->text ? e->text : err_text(e->code));
        end(s, q, out);
    }
    let_go_doomed(d, out);
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
    const struct wire_step_sample *next = e->reply->samples;
    for (uint32_t i = 0; i < d->message.n_seqs; i++) {
        const struct wire_step_sample *sample = d->step_seqs[i].sample ? next++ : NULL;
        if (!d->in_step[i]->doomed)
            advance(s, d->in_step[i], sample, out);
    }
    let_go_doomed(d, out);
}

/* ---- the next step ------------------------------------------------------------------ */

static void expire_list(struct sched *s, struct list *head, int64_t now_ns,
                        struct sched_actions *out)
{
    for (struct list *l = head->next, *next; l != head; l = next) {
        next = l->next;
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        if (q->want.deadline_ns > now_ns)
            continue;
        fail(out, q->want.seq, E_DEADLINE, "the request's time is over (after %u tokens)",
             q->n_output);
        end(s, q, out);
    }
}

/* The side with most free pages among those that can take it. */
static struct sched_side *side_for(const struct sched *s, const struct sched_submit *w)
{
    struct sched_side *best = NULL;
    uint64_t best_free = 0;
    for (int i = 0; i < s->n_sides; i++) {
        struct sched_side *d = s->sides[i];
        uint64_t pages_free = d->limits.pages - d->pages_reserved;
        if (d->n_seqs >= d->limits.max_seqs || pages_for(w, d) > pages_free)
            continue;
        if (!best || pages_free > best_free) {
            best = d;
            best_free = pages_free;
        }
    }
    return best;
}

static void admit(struct sched *s, struct sched_actions *out)
{
    while (!list_is_empty(&s->queue)) {
        struct sched_seq *q = LIST_ITEM(s->queue.next, struct sched_seq, link);
        struct sched_side *d = side_for(s, &q->want);
        if (!d)
            return; /* first come, first served: nobody overtakes */
        q->side = d;
        q->pages = pages_for(&q->want, d);
        d->pages_reserved += q->pages;
        d->n_seqs++;
        s->n_queued--;
        s->n_running++;
        list_remove(&q->link);
        list_push_back(&d->prefilling, &q->link);
        act(out, SCHED_STARTED, q->want.seq, d->limits.id);
    }
}

static void add_rows(struct sched_side *d, struct sched_seq *q, uint32_t rows)
{
    struct wire_step *m = &d->message;
    bool prompt = q->n_output == 0;
    must(m->n_seqs < d->limits.max_seqs && m->n_tokens + rows <= d->limits.max_rows);
    d->in_step[m->n_seqs] = q;
    d->step_seqs[m->n_seqs++] =
        (struct wire_step_seq){.seq = q->want.seq,
                               .position = q->fed,
                               .n_tokens = rows,
                               .sample = !prompt || q->fed + rows == q->want.n_prompt,
                               .n_prompt = q->fed == 0 ? q->want.n_prompt : 0,
                               .sampling = q->fed == 0 ? q->want.sampling : NULL};
    for (uint32_t i = 0; i < rows; i++)
        d->step_tokens[m->n_tokens++] = prompt ? q->want.prompt[q->fed + i] : q->last;
    q->chunk = rows;
}

static void start_step(struct sched *s, struct sched_side *d, struct sched_actions *out)
{
    d->message = (struct wire_step){.seqs = d->step_seqs, .tokens = d->step_tokens};
    /* Prompts get an eighth of the rows even if there are more decoding sequences than rows. */
    uint32_t rows = d->limits.max_rows, kept = 0;
    if (!list_is_empty(&d->prefilling) && rows > 1)
        kept = rows / 8 > 0 ? rows / 8 : 1;
    for (uint32_t n = d->n_seqs; n > 0 && d->message.n_tokens < rows - kept; n--) {
        if (list_is_empty(&d->decoding))
            break;
        struct sched_seq *q = LIST_ITEM(d->decoding.next, struct sched_seq, link);
        if (q->chunk > 0)
            break; /* once round */
        add_rows(d, q, 1);
        list_remove(&q->link);
        list_push_back(&d->decoding, &q->link);
    }
    for (struct list *l = d->prefilling.next; l != &d->prefilling; l = l->next) {
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        uint32_t left = q->want.n_prompt - q->fed, space = rows - d->message.n_tokens;
        if (space == 0)
            break;
        add_rows(d, q, left < space ? left : space);
    }
    if (d->message.n_seqs == 0)
        return;
    d->message.step = d->step = ++s->last_step;
    act(out, SCHED_SEND, 0, d->limits.id)->step = &d->message;
}

static void tick(struct sched *s, int64_t now_ns, struct sched_actions *out)
{
    expire_list(s, &s->queue, now_ns, out);
    for (int i = 0; i < s->n_sides; i++) {
        expire_list(s, &s->sides[i]->prefilling, now_ns, out);
        expire_list(s, &s->sides[i]->decoding, now_ns, out);
    }
    admit(s, out);
    for (int i = 0; i < s->n_sides; i++)
        if (s->sides[i]->step == 0)
            start_step(s, s->sides[i], out);
}

void sched_step(struct sched *s, const struct sched_event *e, struct sched_actions *out)
{
    switch (e->kind) {
    case SCHED_SUBMIT:
        submit(s, &e->submit, out);
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
    case SCHED_STEP_DONE:
    case SCHED_STEP_FAILED:
        step_done(s, e, out);
        break;
    case SCHED_TICK:
        tick(s, e->now_ns, out);
        break;
    }
}
