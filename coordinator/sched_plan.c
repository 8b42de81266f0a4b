/* coordinator/sched_plan.c - what is in an attention side's next step; see sched.h.
 *
 * One budget of rows: first a row for every sequence that decodes, then chunks of prompts, in the
 * order of their turns.  Who begins with what another one is just computing waits for that. */
#include "base/mem.h"
#include "base/must.h"
#include "coordinator/sched_state.h"

enum {
    /* Rows of guesses in a step: each needs logits of its own. */
    MOST_DRAFTS = 32,
    /* An heir that lacks no more takes over with its next step, which is hardly longer for it. */
    CLOSING_ROWS = 16,
    /* In so many steps at most it leaves that to a later one, because others have far to go. */
    MOST_HELD = 8,
};

static void put_token(struct sched_side *d, int32_t token)
{
    if (d->n_step_tokens == d->step_tokens_room) {
        d->step_tokens_room = d->step_tokens_room ? 2 * d->step_tokens_room : 256;
        d->step_tokens = mem_resize(d->step_tokens, d->step_tokens_room * sizeof *d->step_tokens);
    }
    d->step_tokens[d->n_step_tokens++] = token;
}

/* A side that keeps prefixes is given all tokens at the beginning, and computes so many rows behind
 * what it has of them. */
static void add_rows(struct sched_side *d, struct sched_seq *q, uint32_t rows)
{
    struct wire_step *m = &d->message;
    must(m->n_seqs < d->limits.max_seqs && m->n_tokens + rows <= d->limits.max_rows);
    uint32_t left = sched_known(q) - q->fed;
    /* What an heir would sample before it takes over is the other side's to say. */
    bool may_sample = !q->heir_of || q->is_closing;
    uint32_t ahead = q->fed == 0 && d->limits.keeps_prefixes ? left - rows : 0;
    d->in_step[m->n_seqs] = q;
    d->step_seqs[m->n_seqs++] =
        (struct wire_step_seq){.seq = q->want.seq,
                               .position = q->fed,
                               .n_tokens = rows,
                               .n_ahead = ahead,
                               .sample = may_sample && rows + ahead == left,
                               .n_prompt = q->fed == 0 ? q->want.n_prompt : 0,
                               .sampling = q->fed == 0 ? q->want.sampling : NULL};
    for (uint32_t i = 0; i < rows + ahead; i++)
        put_token(d, sched_token_at(q, q->fed + i));
    m->n_tokens += rows;
    q->chunk = rows;
    q->is_sent = true;
    q->is_heirs = q->heir_of != NULL;
    sched_charge(q->key, rows);
}

static bool provide_pages_for(struct sched *s, struct sched_seq *q, int64_t now_ns,
                              struct sched_actions *out)
{
    if (q->heir_of)
        return sched_feed_heir(q, out);
    bool stays = true;
    while (stays && q->pages < sched_pages_of(q->side, sched_known(q)))
        stays = sched_give_page(s, q, now_ns, out);
    return stays;
}

/* Every sequence has pages for all that is known of it, or waits again. */
static void provide_pages(struct sched *s, struct list *head, int64_t now_ns,
                          struct sched_actions *out)
{
    for (struct list *l = head->next; l != head;) {
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        bool stays = provide_pages_for(s, q, now_ns, out);
        /* Others may have left, too: begin again rather than follow a link that is gone. */
        l = stays ? q->link.next : head->next;
    }
}

/* Guesses of what follows, as more rows of the sequence that was added last. */
static void add_drafts(struct sched *s, struct sched_side *d, struct sched_seq *q, uint32_t room,
                       uint32_t n_decoding)
{
    int32_t guesses[MOST_DRAFTS];
    const struct sched_submit *w = &q->want;
    struct lookup_text text = {w->prompt, w->output->ids, w->n_prompt, q->n_output};
    uint64_t in_pages = q->pages * d->limits.page_tokens - q->fed - 1;
    uint32_t to_come = w->max_tokens - q->n_output - 1, most = room;
    most = most < s->config.draft_tokens ? most : s->config.draft_tokens;
    most = most < to_come ? most : to_come;
    most = most < in_pages ? most : (uint32_t)in_pages;
    /* A row makes the step longer for all, and at best gives one of them a token more. */
    uint32_t cost_permille = d->draft_permille * n_decoding;
    uint32_t n = lookup_guess(&q->lookup, &text, most < MOST_DRAFTS ? most : MOST_DRAFTS,
                              cost_permille, guesses);
    struct wire_step_seq *last = &d->step_seqs[d->message.n_seqs - 1];
    for (uint32_t i = 0; i < n; i++)
        put_token(d, guesses[i]);
    last->n_draft = n;
    last->n_tokens += n;
    d->message.n_tokens += n;
    d->n_drafts += n;
    q->chunk += n;
    q->n_drafted = n;
    sched_charge(q->key, n);
}

static uint32_t count_list(const struct list *head)
{
    uint32_t n = 0;
    for (const struct list *l = head->next; l != head; l = l->next)
        n++;
    return n;
}

/* Once round, beginning where the last step ended; guesses in what they leave. */
static void add_decoding(struct sched *s, struct sched_side *d, uint32_t rows)
{
    uint32_t n_decoding = count_list(&d->decoding);
    uint32_t room = rows > n_decoding && d->limits.takes_drafts ? rows - n_decoding : 0;
    room = room < MOST_DRAFTS ? room : MOST_DRAFTS;

    for (uint32_t n = n_decoding; n > 0 && d->message.n_tokens < rows; n--) {
        struct sched_seq *q = LIST_ITEM(d->decoding.next, struct sched_seq, link);
        list_remove(&q->link);
        list_push_back(&d->decoding, &q->link);
        if (sched_is_closing(q))
            continue;
        add_rows(d, q, 1);
        if (room > d->n_drafts && s->config.draft_tokens > 0)
            add_drafts(s, d, q, room - d->n_drafts, n_decoding);
    }
}

static struct sched_seq *next_prompt(const struct sched *s, const struct sched_side *d,
                                     int64_t now_ns)
{
    struct sched_seq *best = NULL;
    for (struct list *l = d->prefilling.next; l != &d->prefilling; l = l->next) {
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        /* An heir that has all that is known waits for more. */
        if (q->chunk == 0 && q->fed < sched_known(q) && !sched_is_closing(q) &&
            !sched_prefix_is_coming(d, q) && (!best || sched_goes_before(s, q, best, now_ns)))
            best = q;
    }
    return best;
}

/* What a prompt lacks that the side does not have. */
static uint32_t lacks(const struct sched_side *d, const struct sched_seq *q)
{
    return sched_known(q) - (q->fed == 0 ? sched_prefix_match(d, q) : q->fed);
}

/* Heirs often come together, when a side leaves.  A step in which some of them are computed from the
 * beginning is long, so the others stay where they are until it is over: their gap is their last step. */
static bool has_long_heir(const struct sched_side *d)
{
    for (struct list *l = d->prefilling.next; l != &d->prefilling; l = l->next) {
        const struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        if (q->heir_of && lacks(d, q) > CLOSING_ROWS)
            return true;
    }
    return false;
}

static void add_prompts(struct sched *s, struct sched_side *d, uint32_t rows, int64_t now_ns)
{
    struct sched_seq *q;
    bool is_long = has_long_heir(d);
    while (rows > 0 && (q = next_prompt(s, d, now_ns))) {
        uint32_t left = lacks(d, q), chunk = left < rows ? left : rows;
        bool can_close = q->heir_of && left == chunk && left <= CLOSING_ROWS;
        q->is_closing = can_close && (!is_long || q->n_held == MOST_HELD);
        q->n_held += can_close && !q->is_closing;
        add_rows(d, q, chunk);
        rows -= chunk;
    }
}

void sched_plan(struct sched *s, struct sched_side *d, int64_t now_ns, struct sched_actions *out)
{
    d->message = (struct wire_step){.seqs = d->step_seqs};
    d->n_step_tokens = d->n_drafts = 0;
    provide_pages(s, &d->decoding, now_ns, out);
    provide_pages(s, &d->prefilling, now_ns, out);
    uint32_t rows = d->limits.max_rows, kept = 0;
    if (s->config.step_rows > 0 && s->config.step_rows < rows)
        rows = s->config.step_rows;
    /* Prompts get an eighth of the rows even if there are more decoding sequences than rows. */
    if (!list_is_empty(&d->prefilling) && rows > 1)
        kept = rows / 8 > 0 ? rows / 8 : 1;
    add_decoding(s, d, rows - kept);
    uint32_t left = rows - d->message.n_tokens;
    if (d->message.n_seqs > 0 && s->config.prompt_rows > 0 && s->config.prompt_rows < left)
        left = s->config.prompt_rows;
    add_prompts(s, d, left, now_ns);
    if (d->message.n_seqs == 0)
        return;
    d->message.tokens = d->step_tokens;
    d->message.step = d->step = ++s->last_step;
    d->sent_ns = now_ns;
    sched_act(out, SCHED_SEND, 0, d->limits.id)->step = &d->message;
}
