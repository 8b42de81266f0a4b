/* coordinator/sched_heir.c - how sequences leave a side that is going, without a pause; see sched.h.
 *
 * While the old side goes on decoding, another one is fed what is known of the sequence, like any
 * prompt: the heir.  When it lacks no more than a step computes beside its other work, that step
 * closes the matter: the old side begins no more of the sequence, and the next token is the heir's or
 * that of the old side's step in flight, whichever comes first - it is the same one.  From then on
 * the heir is the sequence.  If anything goes wrong before, the heir is dropped and the sequence goes
 * on where it is; if its own side is gone first, the heir goes on from where it has come to.
 *
 * An heir is on its side's list of prompts and has pages there, and takes part in nothing else: no
 * queue, no deadline, no end of its own. */
#include "base/mem.h"
#include "coordinator/sched_state.h"

enum { MOST_HEIRS = 4 /* for one token; then the sequence stays until its side has gone */ };

static void found(struct sched_seq *q, struct sched_side *d)
{
    struct sched_seq *h = mem_alloc(sizeof *h);
    h->want = q->want;
    h->key = q->key;
    h->order = q->order;
    h->n_output = q->n_output;
    h->submitted_ns = q->submitted_ns;
    h->started_ns = q->started_ns;
    h->stalled_ns = SCHED_NEVER;
    h->is_started = true;
    h->heir_of = q;
    q->heir = h;
    q->n_heirs++;
    sched_settle_on(h, d);
}

static void bequeath_list(struct sched *s, struct list *head)
{
    for (struct list *l = head->next; l != head; l = l->next) {
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        bool has_one = q->heir || q->heir_of || q->n_heirs >= MOST_HEIRS;
        struct sched_side *d = has_one ? NULL : sched_side_for(s, q);
        if (d)
            found(q, d);
    }
}

void sched_bequeath(struct sched *s)
{
    for (int i = 0; i < s->n_sides; i++)
        if (s->sides[i]->is_leaving) {
            bequeath_list(s, &s->sides[i]->decoding);
            bequeath_list(s, &s->sides[i]->prefilling);
        }
}

/* It is on its side no longer than the step in flight. */
static void retire(struct sched_seq *q, enum sched_told told, struct sched_actions *out)
{
    struct sched_side *d = q->side;
    if (told == SCHED_TELL_SIDE && q->chunk > 0 && d->step != 0) {
        q->is_doomed = true;
        list_remove(&q->link);
        list_push_back(&d->doomed, &q->link);
        return;
    }
    sched_leave_side(q, told, out);
    sched_free_seq(q);
}

void sched_drop_heir(struct sched_seq *heir, enum sched_told told, struct sched_actions *out)
{
    heir->heir_of->heir = NULL;
    heir->heir_of = NULL;
    heir->key = NULL;
    retire(heir, told, out);
}

bool sched_feed_heir(struct sched_seq *heir, struct sched_actions *out)
{
    struct sched_side *d = heir->side;
    uint64_t wanted = sched_pages_of(d, sched_known(heir));
    for (; heir->pages < wanted; heir->pages++, d->pages_reserved++)
        if (sched_pages_left(d) == 0) {
            sched_drop_heir(heir, SCHED_TELL_SIDE, out);
            return false;
        }
    return true;
}

void sched_inherit(struct sched_seq *q, enum sched_told told, struct sched_actions *out)
{
    struct sched_seq *h = q->heir;
    h->heir_of = NULL;
    h->is_closing = false;
    h->n_cached = q->n_cached;
    h->n_replays = q->n_replays;
    h->n_heirs = q->n_heirs;
    h->has_begun = q->has_begun;
    h->is_degraded |= q->is_degraded;
    h->lookup = q->lookup;
    q->lookup = (struct lookup){0};
    q->heir = NULL;
    q->key = NULL;
    sched_act(out, SCHED_INHERITED, h->want.seq, h->side->limits.id);
    retire(q, told, out);
}

bool sched_heir_closed(struct sched_seq *heir, struct sched_actions *out)
{
    /* Of what was known when the step was planned: the other side may have answered meanwhile. */
    bool is_news = heir->fed == sched_known(heir);
    if (heir->heir_of)
        sched_inherit(heir->heir_of, SCHED_TELL_SIDE, out);
    return is_news;
}
