/* coordinator/sched_place.c - whose turn it is, and on which attention side; see sched.h.
 *
 * Pages are promised as they are needed, so that memory is not kept for answers that are never
 * written.  What is left on a side is known twice, and both numbers are lower bounds: all pages less
 * those of each sequence (which counts shared ones more than once), and what the side itself said
 * with its newest answer less what was promised since.  The greater one counts. */
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "coordinator/sched_state.h"

enum {
    /* Beside the tokens that are known, room for the next ones: what is admitted shall get
     * somewhere before it has to make place. */
    HEADROOM_PAGES = 2,
    TOP_PRIORITY = 9,
    COST_FOR_PREFIX = 3, /* so much dearer may a side be that has a part of the sequence */
    SHARE_UNIT = 1024,   /* counted for a row of a key with share 1 */
};

/* ---- keys -------------------------------------------------------------------------------- */

/* Where those who have something to do stand; nobody can save up more than that. */
static uint64_t least_served(const struct sched *s)
{
    uint64_t least = 0;
    bool any = false;
    for (struct list *l = s->keys.next; l != &s->keys; l = l->next) {
        const struct sched_key *k = LIST_ITEM(l, struct sched_key, link);
        if (k->n_seqs == 0 || (any && k->served >= least))
            continue;
        least = k->served;
        any = true;
    }
    return least;
}

static struct sched_key *find_key(const struct sched *s, uint64_t id)
{
    for (struct list *l = s->keys.next; l != &s->keys; l = l->next) {
        struct sched_key *k = LIST_ITEM(l, struct sched_key, link);
        if (k->id == id)
            return k;
    }
    return NULL;
}

struct sched_key *sched_key_of(struct sched *s, const struct sched_submit *w)
{
    struct sched_key *k = find_key(s, w->key);
    uint64_t least = least_served(s);
    if (!k) {
        k = mem_alloc(sizeof *k);
        k->id = w->key;
        list_push_back(&s->keys, &k->link);
    }
    if (k->n_seqs == 0 && k->served < least)
        k->served = least;
    k->share = w->share > 0 ? w->share : 1;
    k->n_seqs++;
    return k;
}

void sched_key_leave(struct sched *s, struct sched_key *k)
{
    must(k->n_seqs > 0);
    k->n_seqs--;
    for (struct list *l = s->keys.next; l != &s->keys; l = l->next)
        if (LIST_ITEM(l, struct sched_key, link)->n_seqs > 0)
            return;
    struct list *l;
    while ((l = list_pop_front(&s->keys)))
        mem_free(LIST_ITEM(l, struct sched_key, link));
}

uint32_t sched_key_queued(const struct sched *s, uint64_t id)
{
    const struct sched_key *k = find_key(s, id);
    return k ? k->n_queued : 0;
}

void sched_charge(struct sched_key *k, uint32_t rows)
{
    k->served += (uint64_t)rows * SHARE_UNIT / k->share;
}

/* ---- whose turn ---------------------------------------------------------------------------- */

/* Its class, raised by what it has waited. */
static int class_of(const struct sched *s, const struct sched_seq *q, int64_t now_ns)
{
    int64_t waited_ns = now_ns - q->submitted_ns, class = q->want.priority;
    if (s->config.aging_ns > 0 && waited_ns > 0)
        class += waited_ns / s->config.aging_ns;
    return class < TOP_PRIORITY ? (int)class : TOP_PRIORITY;
}

bool sched_goes_before(const struct sched *s, const struct sched_seq *a, const struct sched_seq *b,
                       int64_t now_ns)
{
    int class_a = class_of(s, a, now_ns), class_b = class_of(s, b, now_ns);
    if (class_a != class_b)
        return class_a > class_b;
    if (a->is_started != b->is_started)
        return a->is_started;
    if (a->key->served != b->key->served)
        return a->key->served < b->key->served;
    return a->order < b->order;
}

static struct sched_seq *next_of(const struct sched *s, const struct list *head,
                                 struct sched_seq *best, int64_t now_ns)
{
    for (struct list *l = head->next; l != head; l = l->next) {
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        if (sched_has_home(s, &q->want) && (!best || sched_goes_before(s, q, best, now_ns)))
            best = q;
    }
    return best;
}

/* The last in line among those on the side: lowest class, then youngest. */
static struct sched_seq *last_of(const struct sched *s, const struct list *head,
                                 struct sched_seq *worst, int64_t now_ns)
{
    for (struct list *l = head->next; l != head; l = l->next) {
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        int class = class_of(s, q, now_ns), lowest = worst ? class_of(s, worst, now_ns) : 0;
        if (!worst || class < lowest || (class == lowest && q->order > worst->order))
            worst = q;
    }
    return worst;
}

static struct sched_seq *last_on(const struct sched *s, const struct sched_side *d, int64_t now_ns)
{
    return last_of(s, &d->decoding, last_of(s, &d->prefilling, NULL, now_ns), now_ns);
}

/* ---- pages --------------------------------------------------------------------------------- */

uint64_t sched_pages_of(const struct sched_side *d, uint64_t n_tokens)
{
    return (n_tokens + d->limits.page_tokens - 1) / d->limits.page_tokens;
}

/* Of the whole life of the sequence; its last token is never fed. */
static uint64_t life_pages(const struct sched_side *d, const struct sched_submit *w)
{
    return sched_pages_of(d, (uint64_t)w->n_prompt + w->max_tokens - 1);
}

static bool could_hold(const struct sched_side *d, const struct sched_submit *w)
{
    return life_pages(d, w) <= d->limits.pages;
}

bool sched_has_home(const struct sched *s, const struct sched_submit *w)
{
    for (int i = 0; i < s->n_sides; i++)
        if (could_hold(s->sides[i], w))
            return true;
    return false;
}

/* Promised to the sequences of this list, but not used when the side last answered. */
static uint64_t pages_to_come(const struct sched_side *d, const struct list *head)
{
    uint64_t pages = 0;
    for (struct list *l = head->next; l != head; l = l->next) {
        const struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        uint64_t used = sched_pages_of(d, q->fed);
        pages += q->pages > used ? q->pages - used : 0;
    }
    return pages;
}

uint64_t sched_pages_left(const struct sched_side *d)
{
    uint64_t to_come = pages_to_come(d, &d->prefilling) + pages_to_come(d, &d->decoding) +
                       pages_to_come(d, &d->doomed);
    uint64_t said = d->pages_free > to_come ? d->pages_free - to_come : 0;
    uint64_t counted =
        d->limits.pages > d->pages_reserved ? d->limits.pages - d->pages_reserved : 0;
    return said > counted ? said : counted;
}

/* What must be left on the side for it to be let in. */
static uint64_t pages_to_begin(const struct sched_side *d, const struct sched_seq *q)
{
    uint64_t now = sched_pages_of(d, sched_known(q)), life = life_pages(d, &q->want);
    return now + HEADROOM_PAGES < life ? now + HEADROOM_PAGES : life;
}

static bool has_room(const struct sched_side *d, const struct sched_seq *q)
{
    return could_hold(d, &q->want) && d->n_seqs < d->limits.max_seqs &&
           pages_to_begin(d, q) <= sched_pages_left(d);
}

/* ---- which side ------------------------------------------------------------------------------ */

static bool is_sick(const struct sched_side *d)
{
    return d->n_failures >= SCHED_MOVE_AFTER;
}

static int64_t fastest_step_ns(const struct sched *s)
{
    int64_t fastest = 0;
    for (int i = 0; i < s->n_sides; i++)
        if (s->sides[i]->step_ns > 0 && (fastest == 0 || s->sides[i]->step_ns < fastest))
            fastest = s->sides[i]->step_ns;
    return fastest;
}

/* What a token would cost there: sequences that share the steps, the time of one, and up to twice
 * that as the KV memory fills.  A side whose time is not known yet is taken for a fast one. */
static uint64_t cost_on(const struct sched *s, const struct sched_side *d,
                        const struct sched_submit *w)
{
    int64_t step_ns = d->step_ns ? d->step_ns : fastest_step_ns(s);
    uint64_t step_us = (uint64_t)step_ns / 1000 + 1;
    if (step_us > UINT32_MAX)
        step_us = UINT32_MAX;
    uint64_t used = d->pages_promised + life_pages(d, w);
    if (used > d->limits.pages)
        used = d->limits.pages;
    return (uint64_t)(d->n_seqs + 1) * step_us * (1024 + 1024 * used / d->limits.pages);
}

/* Are those that could hold it all sick? */
static bool only_sick(const struct sched *s, const struct sched_submit *w)
{
    for (int i = 0; i < s->n_sides; i++)
        if (!s->sides[i]->is_leaving && !is_sick(s->sides[i]) && could_hold(s->sides[i], w))
            return false;
    return true;
}

/* The side among those that can take it now that has the longest beginning of it, if that is not
 * too dear; or else the cheapest. */
struct sched_side *sched_side_for(const struct sched *s, const struct sched_seq *q)
{
    struct sched_side *cheapest = NULL, *longest = NULL;
    uint32_t most = 0;
    bool sick_too = only_sick(s, &q->want);
    for (int i = 0; i < s->n_sides; i++) {
        struct sched_side *d = s->sides[i];
        if (d->is_leaving || !has_room(d, q) || (is_sick(d) && !sick_too))
            continue;
        if (!cheapest || cost_on(s, d, &q->want) < cost_on(s, cheapest, &q->want))
            cheapest = d;
        uint32_t match = s->n_sides > 1 ? sched_prefix_match(d, q) : 0;
        if (match > most) {
            most = match;
            longest = d;
        }
    }
    bool is_worth_it = longest && cost_on(s, longest, &q->want) / COST_FOR_PREFIX <=
                                      cost_on(s, cheapest, &q->want);
    return is_worth_it ? longest : cheapest;
}

/* ---- making room ------------------------------------------------------------------------------ */

static void preempt(struct sched *s, struct sched_seq *victim, struct sched_actions *out)
{
    s->n_preempted += !victim->heir_of;
    sched_lose(s, victim, out);
}

/* Must `v` make place for `q`?  By what the classes are, and by what waiting has made of them. */
static bool yields_to(const struct sched *s, const struct sched_seq *v, const struct sched_seq *q,
                      int64_t now_ns)
{
    return v->want.priority < q->want.priority && class_of(s, v, now_ns) < class_of(s, q, now_ns);
}

static void count_yielding(const struct sched *s, const struct list *head,
                           const struct sched_seq *q, int64_t now_ns, uint64_t *pages,
                           uint32_t *n_seqs)
{
    for (struct list *l = head->next; l != head; l = l->next) {
        const struct sched_seq *v = LIST_ITEM(l, struct sched_seq, link);
        if (!yields_to(s, v, q, now_ns))
            continue;
        *pages += v->pages;
        ++*n_seqs;
    }
}

static bool could_make_room(const struct sched *s, const struct sched_side *d,
                            const struct sched_seq *q, int64_t now_ns)
{
    uint64_t pages = d->limits.pages > d->pages_reserved ? d->limits.pages - d->pages_reserved : 0;
    uint32_t n_seqs = 0;
    if (d->step != 0 || d->is_leaving || is_sick(d) || !could_hold(d, &q->want))
        return false;
    count_yielding(s, &d->prefilling, q, now_ns, &pages, &n_seqs);
    count_yielding(s, &d->decoding, q, now_ns, &pages, &n_seqs);
    return n_seqs > 0 && pages >= pages_to_begin(d, q);
}

/* Lower classes make place, if that is enough. */
static struct sched_side *make_room(struct sched *s, const struct sched_seq *q, int64_t now_ns,
                                    struct sched_actions *out)
{
    for (int i = 0; i < s->n_sides; i++) {
        struct sched_side *d = s->sides[i];
        if (!could_make_room(s, d, q, now_ns))
            continue;
        while (!has_room(d, q)) {
            struct sched_seq *v = last_on(s, d, now_ns);
            if (!v || !yields_to(s, v, q, now_ns))
                break;
            preempt(s, v, out);
        }
        if (has_room(d, q))
            return d;
    }
    return NULL;
}

static void lose_too_long(struct sched *s, struct sched_side *d, struct list *head,
                          struct sched_actions *out)
{
    for (struct list *l = head->next, *next; l != head; l = next) {
        next = l->next;
        struct sched_seq *q = LIST_ITEM(l, struct sched_seq, link);
        if (q->life_pages > d->limits.pages)
            preempt(s, q, out);
    }
}

void sched_shrink(struct sched *s, struct sched_side *d, int64_t now_ns, struct sched_actions *out)
{
    must(d->step == 0 && d->pages_said > 0);
    d->pages_free = 0; /* not known */
    d->limits.pages = d->pages_said;
    lose_too_long(s, d, &d->prefilling, out);
    lose_too_long(s, d, &d->decoding, out);
    while (d->pages_reserved > d->limits.pages)
        preempt(s, last_on(s, d, now_ns), out);
}

bool sched_give_page(struct sched *s, struct sched_seq *q, int64_t now_ns,
                     struct sched_actions *out)
{
    struct sched_side *d = q->side;
    while (sched_pages_left(d) == 0) {
        struct sched_seq *v = last_on(s, d, now_ns);
        must(v && (v != q || d->n_seqs > 1)); /* alone it has room for its whole life */
        preempt(s, v, out);
        if (v == q)
            return false;
    }
    q->pages++;
    d->pages_reserved++;
    return true;
}

/* ---- admission ---------------------------------------------------------------------------------- */

void sched_settle_on(struct sched_seq *q, struct sched_side *d)
{
    q->side = d;
    q->pages = sched_pages_of(d, sched_known(q));
    q->life_pages = life_pages(d, &q->want);
    d->pages_reserved += q->pages;
    d->pages_promised += q->life_pages;
    d->n_seqs++;
    list_push_back(&d->prefilling, &q->link);
}

static void place(struct sched *s, struct sched_seq *q, struct sched_side *d, int64_t now_ns,
                  struct sched_actions *out)
{
    sched_act(out, q->is_started ? SCHED_MOVED : SCHED_STARTED, q->want.seq, d->limits.id);
    if (!q->is_lost) {
        s->n_queued--;
        s->n_running++;
        q->key->n_queued--;
    }
    if (!q->is_started)
        q->started_ns = now_ns;
    q->is_started = true;
    q->is_lost = false;
    list_remove(&q->link);
    sched_settle_on(q, d);
}

void sched_admit(struct sched *s, int64_t now_ns, struct sched_actions *out)
{
    for (;;) {
        struct sched_seq *q = next_of(s, &s->lost, NULL, now_ns);
        q = next_of(s, &s->queue, q, now_ns);
        if (!q)
            return;
        struct sched_side *d = sched_side_for(s, q);
        if (!d)
            d = make_room(s, q, now_ns, out);
        if (!d)
            return; /* nobody overtakes: what is large would never get in */
        place(s, q, d, now_ns, out);
    }
}

/* By Little's law: what runs leaves at a rate of n_running in the time that one takes. */
int64_t sched_wait_ns(const struct sched *s, const struct sched_submit *w, int64_t now_ns)
{
    const struct sched_key *k = find_key(s, w->key);
    struct sched_key as_key = {.served = least_served(s)};
    if (k && (k->n_seqs > 0 || k->served > as_key.served))
        as_key.served = k->served;
    const struct sched_seq last = {
        .want = *w, .key = &as_key, .order = UINT64_MAX, .submitted_ns = now_ns};
    int64_t n_before = 0;
    for (struct list *l = s->queue.next; l != &s->queue; l = l->next)
        n_before += sched_goes_before(s, LIST_ITEM(l, struct sched_seq, link), &last, now_ns);
    if (n_before == 0 || s->n_running == 0)
        return 0;
    return s->life_ns / s->n_running * (n_before + 1);
}
