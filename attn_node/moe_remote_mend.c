/* attn_node/moe_remote_mend.c - what is late or slow is asked elsewhere, and what nobody can be asked
 * for is waited for.  See moe_remote_state.h. */
#include "attn_node/moe_remote_state.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "rpc/channel.h"

/* How often experts that are nowhere, and late parcels that nobody else has, are looked at. */
#define RETRY_NS (100 * CLOCK_MS)
#define LATE_RETRY_NS (10 * CLOCK_MS)
/* A late answer of a node that is well again does not come any more after eight times the
 * deadline, and at least this. */
#define LOST_NS (500 * CLOCK_MS)
/* A round that waits longer is counted and logged. */
#define WAIT_COUNTS_NS (50 * CLOCK_MS)

/* ---- late and slow ------------------------------------------------------------------- */

static void hedge(struct moe_remote *m, struct moe_trip *t)
{
    t->is_hedged = true;
    if (!pace_may_spend(&m->hedges))
        return;
    pace_spend(&m->hedges, round_hedge(m->lanes[t->lane].round, t->ticket));
}

/* Whoever has answered a probe since, but not the parcel, will not answer it. */
static bool is_lost(const struct moe_trip *t, int64_t now_ns)
{
    int64_t after_ns = 8 * (t->late_ns - t->sent_ns);
    return expert_peer_standing(t->peer) == STANDING_GOOD &&
           now_ns - t->sent_ns >= (after_ns > LOST_NS ? after_ns : LOST_NS);
}

static int64_t be_late(struct moe_remote *m, struct moe_trip *t, int64_t now_ns)
{
    struct round *round = m->lanes[t->lane].round;
    if (t->is_late && is_lost(t, now_ns)) {
        uint64_t call_id = t->call_id;
        t->call_id = 0;
        round_fail(round, t->ticket, E_DEADLINE, "its answer got lost");
        channel_cancel(t->peer->channel, call_id);
        return now_ns;
    }
    if (!t->is_late) {
        t->is_late = true;
        m->counters.lates++;
        t->peer->lates++;
        t->peer->failovers++;
        pace_take_at_least(&t->peer->pace, t->n_routes, now_ns - t->sent_ns);
        expert_peer_suspect(t->peer, "no answer in time");
    }
    if (!round_parcel(round, t->ticket.parcel)->is_asked_twice)
        round_late(round, t->ticket);
    return now_ns + LATE_RETRY_NS;
}

int64_t moe_remote_mind_parcels(struct moe_remote *m, int lane, int64_t now_ns)
{
    struct moe_lane *l = &m->lanes[lane];
    int64_t next_ns = CLOCK_NEVER;
    int n = round_n_parcels(l->round);
    for (int i = 0; i < n; i++) {
        struct moe_trip *t = &l->trips[i];
        const struct round_parcel *p = round_parcel(l->round, i);
        if (p->state != PARCEL_OUT)
            continue;
        if (now_ns >= t->late_ns) {
            next_ns = earlier_ns(next_ns, be_late(m, t, now_ns));
            continue;
        }
        bool may_hedge = m->hedges.percent > 0 && !t->is_hedged && !p->is_asked_twice;
        if (may_hedge && now_ns >= t->hedge_ns)
            hedge(m, t);
        else if (may_hedge)
            next_ns = earlier_ns(next_ns, t->hedge_ns);
        next_ns = earlier_ns(next_ns, t->late_ns);
    }
    return next_ns;
}

/* ---- experts that are nowhere -------------------------------------------------------- */

static bool is_any_fresh(const struct moe_remote *m, int64_t now_ns)
{
    for (int i = 0; i < m->peers.n; i++)
        if (expert_peer_is_fresh(m->peers.items[i], now_ns))
            return true;
    return false;
}

static void count_wait(struct moe_remote *m, struct moe_lane *l)
{
    l->is_wait_counted = true;
    m->counters.waits++;
    log_warn("round.waiting", "step=%" PRIu64 " layer=%d selections=%d epoch=%" PRIu64, m->step,
             round_layer(l->round), round_n_orphans(l->round), moe_remote_epoch(m));
}

int64_t moe_remote_mind_orphans(struct moe_remote *m, int lane, int64_t now_ns)
{
    struct moe_lane *l = &m->lanes[lane];
    const struct ladder *ladder = &m->options.ladder;
    if (round_n_orphans(l->round) == 0) {
        /* Asked again, but not answered: what fails once more has waited since then, and is not asked
         * at once. */
        if (l->waits_taken != round_n_taken(l->round))
            l->waits_since_ns = 0;
        return CLOCK_NEVER;
    }
    if (l->waits_since_ns == 0) {
        l->waits_since_ns = l->next_retry_ns = now_ns;
        l->waits_taken = round_n_taken(l->round);
        l->is_wait_counted = false;
    }
    if (now_ns >= l->next_retry_ns) {
        l->next_retry_ns = now_ns + RETRY_NS;
        if (round_state(l->round) == ROUND_WAITING)
            moe_remote_cancel_calls(m, lane, MOE_ALL_CALLS);
        if (round_retry(l->round) > 0)
            return now_ns;
    }
    int64_t waited_ns = now_ns - l->waits_since_ns;
    bool is_fresh = is_any_fresh(m, now_ns);
    if (waited_ns >= WAIT_COUNTS_NS && !l->is_wait_counted)
        count_wait(m, l);
    if (ladder->is_degraded && !is_fresh) {
        round_leave_out(l->round);
        return now_ns;
    }
    if (now_ns >= m->step_deadline_ns || (waited_ns >= ladder->wait_ns && !is_fresh)) {
        char text[48];
        snprintf(text, sizeof(text), "waited %lld ms", (long long)(waited_ns / CLOCK_MS));
        round_give_up(l->round, text);
        return now_ns;
    }
    int64_t until_ns = earlier_ns(l->next_retry_ns, l->waits_since_ns + ladder->wait_ns);
    return earlier_ns(until_ns, is_fresh ? now_ns + 10 * CLOCK_MS : until_ns);
}

bool moe_remote_is_any_orphan(const struct moe_remote *m)
{
    for (int i = 0; i < m->options.n_lanes; i++)
        if (moe_lane_is_going_on(&m->lanes[i]) && round_n_orphans(m->lanes[i].round) > 0)
            return true;
    return false;
}

void moe_remote_give_up_orphans(struct moe_remote *m)
{
    for (int i = 0; i < m->options.n_lanes; i++)
        if (moe_lane_is_going_on(&m->lanes[i]) && round_n_orphans(m->lanes[i].round) > 0)
            round_give_up(m->lanes[i].round, "this side is stopping");
}
