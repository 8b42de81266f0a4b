/* coordinator/leader.c - see leader.h.
 *
 * One request is under way at a time.  Whatever fails leads to a look at the keys, so that
 * nothing is ever concluded from a request whose fate is not known. */
#include "coordinator/leader.h"

#include "base/must.h"

/* A lease is kept alive so many times before it would end, and then looked at. */
enum { KEEPS = 4 };
#define POLL_MOST_NS (250LL * 1000 * 1000) /* of a standby, and of one who is suspended */
#define TIMEOUT_MOST_NS (2000LL * 1000 * 1000)

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t poll_ns(const struct leader *l)
{
    return least(l->config.lease_ns / 8, POLL_MOST_NS);
}

void leader_init(struct leader *l, const struct leader_config *c, int64_t now_ns)
{
    must(c->instance != 0 && c->lease_ns > 0);
    *l = (struct leader){.config = *c, .next_ns = now_ns, .heard_ns = now_ns};
}

/* What a lease gives from the moment on at which its request left. */
static void be_sure(struct leader *l, int64_t ttl_ns)
{
    int64_t window_ns = least(ttl_ns, l->config.lease_ns);
    l->sure_ns = l->sent_ns + window_ns - window_ns / 8;
}

static enum leader_turn suspend(struct leader *l, int64_t now_ns)
{
    l->state = LEADER_SUSPENDED;
    l->sight = LEADER_UNSEEN;
    l->next_ns = now_ns;
    return LEADER_SUSPEND;
}

static enum leader_turn step_down(struct leader *l)
{
    l->state = LEADER_OVER;
    l->next_ns = INT64_MAX;
    return LEADER_STEP_DOWN;
}

/* The key is there and is ours, under a lease that certainly holds. */
static enum leader_turn begin(struct leader *l, int64_t now_ns)
{
    bool again = l->state == LEADER_SUSPENDED;
    l->state = LEADER_LEADS;
    l->kept_ns = l->sent_ns;
    l->wants_look = false;
    l->next_ns = now_ns;
    return again ? LEADER_RESUME : LEADER_LEAD;
}

enum leader_turn leader_tick(struct leader *l, int64_t now_ns)
{
    if (l->state == LEADER_LEADS && now_ns >= l->sure_ns)
        return suspend(l, now_ns);
    return LEADER_GO_ON;
}

/* ---- requests ------------------------------------------------------------------------ */

static enum leader_ask choose(const struct leader *l, int64_t now_ns)
{
    if (l->state == LEADER_LEADS)
        return l->wants_look ? LEADER_LOOK : LEADER_KEEP;
    if (l->sight == LEADER_SEES_ITSELF)
        return LEADER_KEEP;
    if (l->sight != LEADER_SEES_NOBODY)
        return LEADER_LOOK;
    return l->lease && now_ns < l->sure_ns ? LEADER_TAKE : LEADER_GRANT;
}

bool leader_ask(struct leader *l, int64_t now_ns, struct leader_request *out)
{
    if (l->is_out || l->state == LEADER_OVER || now_ns < l->next_ns)
        return false;
    l->out =
        (struct leader_request){.ask = choose(l, now_ns),
                                .number = ++l->n_requests,
                                .lease = l->lease,
                                .ttl_ns = l->config.lease_ns,
                                .term = l->state == LEADER_SUSPENDED ? l->term : l->seen_term,
                                .timeout_ns = least(l->config.lease_ns / KEEPS, TIMEOUT_MOST_NS)};
    l->is_out = true;
    l->sent_ns = now_ns;
    *out = l->out;
    return true;
}

int64_t leader_next_ns(const struct leader *l)
{
    int64_t next_ns = l->is_out ? INT64_MAX : l->next_ns;
    return l->state == LEADER_LEADS ? least(next_ns, l->sure_ns) : next_ns;
}

/* ---- answers ------------------------------------------------------------------------- */

/* Whoever led is complete, and so are those that others_have_more does not name. */
static bool lets_others_go_first(struct leader *l, const struct leader_keys *k, int64_t now_ns)
{
    if (l->vacant_ns == 0)
        l->vacant_ns = now_ns;
    return l->state == LEADER_STANDBY && k->others_have_more &&
           now_ns - l->vacant_ns < l->config.lease_ns;
}

/* A look at the keys, by whoever is not sure to lead. */
static enum leader_turn look(struct leader *l, const struct leader_keys *k, int64_t now_ns)
{
    bool is_other_lead = k->holder != 0 && k->holder != l->config.instance;
    if (l->state == LEADER_SUSPENDED) {
        if (is_other_lead || (k->term != l->term && k->last != l->config.instance))
            return step_down(l);
        l->term = k->term; /* our own, if a TAKE of unknown fate was done */
    }
    l->next_ns = now_ns;
    l->seen_term = k->term;
    if (k->holder != 0)
        l->vacant_ns = 0;
    if (k->holder == 0 && lets_others_go_first(l, k, now_ns)) {
        l->sight = LEADER_SEES_HEIRS;
        l->next_ns = now_ns + poll_ns(l);
    } else if (k->holder == 0) {
        l->sight = LEADER_SEES_NOBODY;
    } else if (k->holder == l->config.instance && k->lease == l->lease) {
        l->sight = LEADER_SEES_ITSELF;
        l->term = k->term;
    } else {
        l->sight = LEADER_SEES_ANOTHER;
        l->next_ns = now_ns + poll_ns(l);
    }
    return LEADER_GO_ON;
}

static enum leader_turn on_look(struct leader *l, const struct leader_keys *k, int64_t now_ns)
{
    if (l->state != LEADER_LEADS)
        return look(l, k, now_ns);
    l->wants_look = false;
    l->next_ns = l->kept_ns + l->config.lease_ns / KEEPS;
    if (k->holder == l->config.instance && k->lease == l->lease)
        return LEADER_GO_ON;
    /* Somebody has deleted it, or even put another in its place. */
    enum leader_turn turn = suspend(l, now_ns);
    return look(l, k, now_ns) == LEADER_STEP_DOWN ? LEADER_STEP_DOWN : turn;
}

static enum leader_turn on_take(struct leader *l, const struct leader_answer *a, int64_t now_ns)
{
    if (a->outcome == LEADER_NO) {
        enum leader_turn turn = look(l, &a->keys, now_ns);
        l->next_ns = turn == LEADER_STEP_DOWN ? INT64_MAX : now_ns + poll_ns(l);
        return turn;
    }
    l->term = a->keys.term;
    l->sight = LEADER_SEES_ITSELF;
    l->next_ns = now_ns;
    return now_ns < l->sure_ns ? begin(l, now_ns) : LEADER_GO_ON;
}

static enum leader_turn on_keep(struct leader *l, const struct leader_answer *a, int64_t now_ns)
{
    if (a->outcome == LEADER_NO || a->lease != l->lease) {
        l->lease = 0;
        l->sure_ns = 0;
        l->sight = LEADER_UNSEEN;
        l->next_ns = now_ns;
        return l->state == LEADER_LEADS ? suspend(l, now_ns) : LEADER_GO_ON;
    }
    be_sure(l, a->ttl_ns);
    l->kept_ns = l->sent_ns;
    l->next_ns = now_ns;
    l->wants_look = true;
    if (l->state == LEADER_LEADS)
        return leader_tick(l, now_ns);
    return l->sight == LEADER_SEES_ITSELF && now_ns < l->sure_ns ? begin(l, now_ns) : LEADER_GO_ON;
}

static enum leader_turn on_granted(struct leader *l, const struct leader_answer *a, int64_t now_ns)
{
    l->lease = a->lease;
    be_sure(l, a->ttl_ns);
    l->next_ns = now_ns;
    return LEADER_GO_ON;
}

enum leader_turn leader_answer(struct leader *l, const struct leader_answer *a, int64_t now_ns)
{
    if (!l->is_out || a->number != l->out.number || l->state == LEADER_OVER)
        return LEADER_GO_ON;
    /* The time that the answer took counts, too. */
    enum leader_turn turn = leader_tick(l, now_ns);
    l->is_out = false;
    if (a->outcome == LEADER_FAILED) {
        l->sight = LEADER_UNSEEN;
        l->vacant_ns = 0;
        l->wants_look = false; /* the lease comes first */
        l->next_ns = now_ns + poll_ns(l);
        return turn;
    }
    l->heard_ns = now_ns;
    /* What was asked while it led says nothing about whether it leads still: look again. */
    if (turn != LEADER_GO_ON)
        return turn;
    switch (l->out.ask) {
    case LEADER_LOOK:
        return on_look(l, &a->keys, now_ns);
    case LEADER_TAKE:
        return on_take(l, a, now_ns);
    case LEADER_KEEP:
        return on_keep(l, a, now_ns);
    case LEADER_GRANT:
        return on_granted(l, a, now_ns);
    }
    return LEADER_GO_ON;
}
