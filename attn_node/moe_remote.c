/* attn_node/moe_remote.c - see moe_remote.h.
 *
 * scatter() plans the round and sends what can be sent; gather() then turns in a loop: look at
 * the nodes, ask elsewhere for what is late or slow, send what is planned, mind the experts
 * that are nowhere, wait.  No call outlives its round: when a round ends the open ones are
 * cancelled, so a trip's memory can be used again by the next round.
 *
 * With two lanes two rounds are out at a time, each with its own books and trips.  Whoever waits for
 * one minds the other as well, and a round that fails fails the step at once.  While the engine
 * computes nobody takes answers: gather() takes those that have come meanwhile before it looks at
 * deadlines, and what they took is known only to be no more than that.
 *
 * When a round's check finds that two nodes differ, the step has come to nothing: inquiry.h
 * finds out who was wrong, that node is asked nothing more, and the owner begins again. */
#include "attn_node/moe_remote.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "attn_node/expert_peers.h"
#include "attn_node/forward_call.h"
#include "attn_node/inquiry.h"
#include "attn_node/observer.h"
#include "attn_node/round.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "engine/lanes.h"
#include "rpc/channel.h"

_Static_assert((int)ROUND_NO_HOLDER == (int)WIRE_NO_HOLDER, "the table is used as it came");

/* A full channel gives no event when it drains. */
#define UNSENT_POLL_NS (2 * CLOCK_MS)
/* How often experts that are nowhere, and late parcels that nobody else has, are looked at. */
#define RETRY_NS (100 * CLOCK_MS)
#define LATE_RETRY_NS (10 * CLOCK_MS)
#define MIN_HEDGE_NS (1 * CLOCK_MS)
/* A late answer of a node that is well again does not come any more after eight times the
 * deadline, and at least this. */
#define LOST_NS (500 * CLOCK_MS)
/* A round that waits longer is counted and logged. */
#define WAIT_COUNTS_NS (50 * CLOCK_MS)

/* One call of one round. */
struct trip {
    struct moe_remote *moe;
    struct expert_peer *peer;
    int lane, n_routes;
    struct round_ticket ticket;
    uint64_t call_id; /* 0: not open */
    int64_t sent_ns, hedge_ns, late_ns, deadline_ns;
    bool is_late, is_hedged;
    uint32_t n_rows;
    uint64_t sent_bytes;
};

struct lane {
    struct round *round;
    const struct moe_rows *rows; /* of the round in progress */
    struct trip *trips;          /* [round_max_parcels()] */
    int64_t begun_ns;
    int64_t waits_since_ns; /* experts are nowhere; 0: none */
    int64_t next_retry_ns;
    bool is_wait_counted;
    bool is_under_way;  /* between scatter and the end of gather */
    bool is_beside;     /* the other lane's was, too, for a part of that */
    bool has_old_nodes; /* a table came after the round was through, and before it was folded */
    int64_t scatter_ns; /* spent in scatter() */
    uint32_t n_good;    /* nodes of good standing when orphans were looked at last */
};

struct moe_remote {
    struct moe_remote_options options;
    struct pace_limits pace_limits;
    struct pace_budget hedges;
    struct wire_table *table;
    struct expert_peers peers; /* as the table numbers them */
    uint32_t n_told_broken;
    struct lane lanes[FORWARD_LANES]; /* options.n_lanes of them */
    bool is_deaf;                     /* what is taken now may have come long ago */

    uint64_t step, trace_id;
    int64_t step_deadline_ns, experts_ns, late_replies;
    int n_left_out;
    struct err error;
    struct wire_ladder_counters counters;

    bool is_disputed;
    struct forward_calls calls;
    struct wire_forward_reply reply; /* big; decoded into one at a time */
};

struct moe_remote *moe_remote_new(const struct moe_remote_options *o)
{
    struct moe_remote *m = mem_alloc(sizeof(*m));
    m->options = *o;
    const struct ladder *ladder = &o->ladder;
    m->pace_limits = (struct pace_limits){
        .min_ns = ladder->deadline_min_ns ? ladder->deadline_min_ns : 20 * CLOCK_MS,
        .max_ns = ladder->deadline_max_ns ? ladder->deadline_max_ns : 500 * CLOCK_MS,
        .min_hedge_ns = MIN_HEDGE_NS,
    };
    m->hedges.percent = (int)ladder->hedge_percent;
    m->peers.auth = o->auth;
    struct round_limits limits = {.kernels = o->kernels,
                                  .max_rows = o->max_rows,
                                  .top_k = o->top_k,
                                  .hidden = o->hidden,
                                  .n_experts = o->n_experts};
    must(o->n_lanes >= 1 && o->n_lanes <= FORWARD_LANES);
    for (int i = 0; i < o->n_lanes; i++) {
        if (i > 0)
            limits.max_rows = lanes_most_rows(o->max_rows);
        m->lanes[i].round = round_new(&limits);
        m->lanes[i].trips = mem_array((size_t)round_max_parcels(&limits), sizeof(struct trip));
    }
    m->calls = (struct forward_calls){
        .fingerprint = o->fingerprint, .hidden = o->hidden, .group = o->group};
    forward_calls_init(&m->calls, o->max_rows, o->top_k);
    return m;
}

void moe_remote_free(struct moe_remote **moe)
{
    struct moe_remote *m = *moe;
    if (!m)
        return;
    *moe = NULL;
    expert_peers_free(&m->peers);
    for (int i = 0; i < m->options.n_lanes; i++) {
        round_free(&m->lanes[i].round);
        mem_free(m->lanes[i].trips);
    }
    forward_calls_fini(&m->calls);
    mem_free(m->table);
    mem_free(m);
}

/* ---- the table ----------------------------------------------------------------------- */

struct wire_table *moe_remote_copy_table(const struct wire_table *t)
{
    size_t n_holders = (size_t)t->n_layers * t->n_experts * t->n_replicas;
    size_t nodes_bytes = t->n_nodes * sizeof(*t->nodes);
    char *at = mem_alloc(sizeof(*t) + nodes_bytes + n_holders * sizeof(*t->holders));
    struct wire_table *copy = (void *)at;
    struct wire_table_node *nodes = (void *)(at + sizeof(*t));
    uint16_t *holders = (void *)(at + sizeof(*t) + nodes_bytes);
    if (t->n_nodes > 0)
        memcpy(nodes, t->nodes, nodes_bytes);
    if (n_holders > 0)
        memcpy(holders, t->holders, n_holders * sizeof(*holders));
    *copy = *t;
    copy->nodes = nodes;
    copy->holders = holders;
    return copy;
}

static int check_table(const struct moe_remote *m, const struct wire_table *t, struct err *e)
{
    if (t->n_layers != (uint32_t)m->options.n_layers ||
        t->n_experts != (uint32_t)m->options.n_experts)
        return err_set(e, E_INVALID, "table of %u layers of %u experts, the model has %d of %d",
                       t->n_layers, t->n_experts, m->options.n_layers, m->options.n_experts);
    for (uint32_t i = 0; i < t->n_nodes; i++)
        if (t->nodes[i].max_rows == 0)
            return err_set(e, E_INVALID, "node %s takes no rows", t->nodes[i].name);
    return wire_table_check(t, e);
}

/* The numbers of the nodes, as the round knows them; one too many, so that it is never empty. */
static struct round_node *list_nodes(const struct moe_remote *m, const struct wire_table *t)
{
    struct round_node *nodes = mem_array(t->n_nodes + 1, sizeof(*nodes));
    uint64_t *speeds = mem_array(t->n_nodes + 1, sizeof(*speeds));
    int *costs = mem_array(t->n_nodes + 1, sizeof(*costs));
    for (uint32_t i = 0; i < t->n_nodes; i++)
        speeds[i] = t->nodes[i].read_bytes_s;
    choice_costs(speeds, (int)t->n_nodes, costs);
    uint32_t most = (uint32_t)m->options.max_rows;
    for (uint32_t i = 0; i < t->n_nodes; i++)
        nodes[i] = (struct round_node){
            .name = t->nodes[i].name,
            .max_rows = (int)(t->nodes[i].max_rows < most ? t->nodes[i].max_rows : most),
            .standing = expert_peer_standing(m->peers.items[i]),
            .cost = costs[i]};
    mem_free(costs);
    mem_free(speeds);
    return nodes;
}

/* Nobody waits for its answer any more, mostly because others were quicker. */
static void give_up_trip(struct moe_remote *m, const struct trip *t, const struct round_parcel *p)
{
    int64_t now_ns = clock_now_ns();
    pace_take_at_least(&t->peer->pace, t->n_routes, now_ns - t->sent_ns);
    if (!p->is_asked_twice || t->is_late || !expert_peer_outrun(t->peer, t->late_ns, now_ns))
        return;
    m->counters.lates++;
    t->peer->lates++;
    t->peer->failovers++;
}

/* Ends the calls of a round whose answers nobody waits for: all that are open, or those of
 * parcels that were dropped. */
enum which_calls { ALL_CALLS, DROPPED_CALLS };
static void cancel_calls(struct moe_remote *m, int lane, enum which_calls which)
{
    struct lane *l = &m->lanes[lane];
    for (int i = 0; i < round_n_parcels(l->round); i++) {
        struct trip *t = &l->trips[i];
        if (t->call_id == 0)
            continue;
        if (which == DROPPED_CALLS && round_parcel(l->round, i)->state != PARCEL_DROPPED)
            continue;
        uint64_t call_id = t->call_id;
        t->call_id = 0;
        give_up_trip(m, t, round_parcel(l->round, i));
        channel_cancel(t->peer->channel, call_id);
    }
}

static bool is_going_on(const struct lane *l)
{
    return l->is_under_way &&
           (round_state(l->round) == ROUND_RUNNING || round_state(l->round) == ROUND_WAITING);
}

static void change_round(struct moe_remote *m, int lane, const struct wire_table *t,
                         const struct round_node *nodes, const int32_t *moved)
{
    struct lane *l = &m->lanes[lane];
    if (!l->is_under_way) {
        round_install(l->round, nodes, (int)t->n_nodes);
        return;
    }
    if (!is_going_on(l)) {
        l->has_old_nodes = true;
        return;
    }
    if (round_state(l->round) == ROUND_WAITING)
        cancel_calls(m, lane, ALL_CALLS);
    round_change(l->round, &(struct round_change){
                               .nodes = nodes,
                               .n_nodes = (int)t->n_nodes,
                               .moved = moved,
                               .holders = wire_table_holders(t, (uint32_t)round_layer(l->round), 0),
                               .n_replicas = (int)t->n_replicas});
}

int moe_remote_install(struct moe_remote *m, struct wire_table **table, struct err *e)
{
    struct wire_table *t = *table;
    *table = NULL;
    int rc = check_table(m, t, e);
    if (rc < 0) {
        log_error("moe.table_refused", "epoch=%" PRIu64 " why=%s", t->epoch,
                  log_quote(e ? e->text : err_text(rc)).text);
        mem_free(t);
        return rc;
    }
    struct expert_peers gone;
    int32_t *moved = mem_array((size_t)m->peers.n + 1, sizeof(*moved));
    expert_peers_install(&m->peers, t, moved, &gone);
    struct round_node *nodes = list_nodes(m, t);
    for (int i = 0; i < m->options.n_lanes; i++)
        change_round(m, i, t, nodes, moved);
    mem_free(nodes);
    mem_free(moved);
    expert_peers_free(&gone);
    mem_free(m->table);
    m->table = t;
    log_info("moe.table", "epoch=%" PRIu64 " nodes=%u", t->epoch, t->n_nodes);
    return 0;
}

uint64_t moe_remote_epoch(const struct moe_remote *m)
{
    return m->table ? m->table->epoch : 0;
}

/* ---- answers ------------------------------------------------------------------------- */

static struct forward_about about(const struct moe_remote *m, int lane)
{
    return (struct forward_about){.epoch = m->table->epoch,
                                  .step = m->step,
                                  .layer = round_layer(m->lanes[lane].round),
                                  .lane = lane};
}

/* What the reply must match is told by the round itself. */
static int take_reply(struct trip *t, const struct reply *reply, struct err *e)
{
    struct moe_remote *m = t->moe;
    struct round *round = m->lanes[t->lane].round;
    const struct round_parcel *p = round_parcel(round, t->ticket.parcel);
    struct forward_about where = about(m, t->lane);
    struct wire_forward expect = forward_describe(&m->calls, &where, p);
    int rc = wire_forward_reply_decode(reply->message, reply->payloads, reply->n_payloads, &expect,
                                       &m->reply, e);
    if (rc < 0)
        return e->code = E_CORRUPT; /* the node's fault, not the question's */
    struct round_reply taken = {
        .mode = m->reply.mode,
        .n_rows = (int)m->reply.n_rows,
        .data = reply->payloads[0].data,
        .bytes = reply->payloads[0].size_bytes,
        .overflow_rows = m->reply.overflow_rows,
        .n_overflow = (int)m->reply.n_overflow,
    };
    return round_take(round, t->ticket, &taken, e);
}

static void note_failure(struct trip *t, int code, const char *why)
{
    struct moe_remote *m = t->moe;
    t->peer->failovers++;
    m->counters.not_finite += code == E_CORRUPT;
    if (code == E_DEADLINE) {
        t->peer->lates += !t->is_late;
        m->counters.lates += !t->is_late;
    }
    if (code == E_DEADLINE || code == E_UNAVAILABLE)
        expert_peer_suspect(t->peer, why);
}

/* An answer that was waited for, good or not. */
static void observe(const struct trip *t, const struct reply *reply, int layer, int code)
{
    int64_t now_ns = clock_now_ns();
    struct wire_node_traffic *traffic = &t->peer->traffic;
    uint64_t received_bytes = 0;
    for (int i = 0; i < reply->n_payloads; i++)
        received_bytes += reply->payloads[i].size_bytes;
    if (code == 0) {
        traffic->calls++;
        traffic->received_bytes += received_bytes;
        traffic->call_us += (uint64_t)((now_ns - t->sent_ns) / CLOCK_US);
        traffic->queue_us += reply->queue_us;
        traffic->compute_us += reply->compute_us;
    }
    if (!t->moe->options.observer)
        return;
    struct wire_span span = {.kind = WIRE_SPAN_CALL,
                             .layer = (uint32_t)layer,
                             .lane = (uint32_t)t->lane,
                             .node_id = t->peer->node_id,
                             .queue_us = reply->queue_us,
                             .compute_us = reply->compute_us,
                             .rows = t->n_rows,
                             .bytes = t->sent_bytes + received_bytes,
                             .is_failed = code < 0};
    observer_called(t->moe->options.observer, &span, t->sent_ns, now_ns);
}

static void take_pace(const struct trip *t)
{
    int64_t took_ns = clock_now_ns() - t->sent_ns;
    int64_t usual_ns = pace_usual_ns(&t->peer->pace, t->n_routes);
    if (!t->moe->is_deaf || usual_ns == 0 || took_ns < usual_ns)
        pace_take(&t->peer->pace, t->n_routes, took_ns);
}

static void on_reply(void *ud, const struct reply *reply)
{
    struct trip *t = ud;
    struct moe_remote *m = t->moe;
    struct round *round = m->lanes[t->lane].round;
    t->call_id = 0;
    bool is_waited_for = round_is_out(round, t->ticket);
    struct err e = {0};
    int code = reply->code;
    if (!is_waited_for)
        m->late_replies++;
    else if (code < 0)
        err_set(&e, code, "%s", reply->text && reply->text[0] ? reply->text : err_text(code));
    else
        code = take_reply(t, reply, &e);
    if (!is_waited_for)
        return;
    observe(t, reply, round_layer(round), code);
    if (code == 0) {
        take_pace(t);
        m->counters.hedge_wins += round_parcel(round, t->ticket.parcel)->reason == REASON_HEDGE;
    } else {
        note_failure(t, code, e.text);
        round_fail(round, t->ticket, code, e.text);
    }
    int liar = round_take_liar(round);
    if (liar >= 0)
        expert_peer_ban(m->peers.items[liar], "a value that is not finite where a replica's is");
}

static int64_t earlier(int64_t a_ns, int64_t b_ns)
{
    return a_ns < b_ns ? a_ns : b_ns;
}

/* ---- sending parcels ----------------------------------------------------------------- */

static void note_sent(struct moe_remote *m, struct trip *t, const struct round_parcel *p)
{
    m->counters.calls++;
    m->counters.retries += p->reason == REASON_RETRY || p->reason == REASON_LATE;
    m->counters.hedges += p->reason == REASON_HEDGE;
    m->counters.checks += p->reason == REASON_CHECK;
    t->peer->traffic.retries += p->reason == REASON_RETRY || p->reason == REASON_LATE;
    t->peer->traffic.hedges += p->reason == REASON_HEDGE;
    t->peer->traffic.sent_bytes += t->sent_bytes;
    if (p->reason == REASON_FIRST)
        pace_earn(&m->hedges, 1);
    t->sent_ns = clock_now_ns();
    t->late_ns = t->sent_ns + pace_deadline_ns(&t->peer->pace, &m->pace_limits, p->n_routes);
    t->hedge_ns = t->sent_ns + pace_hedge_ns(&t->peer->pace, &m->pace_limits, p->n_routes);
}

/* 0, or what channel_call() said. */
static int send_parcel(struct moe_remote *m, int lane, int index)
{
    struct lane *l = &m->lanes[lane];
    const struct round_parcel *p = round_parcel(l->round, index);
    struct expert_peer *peer = m->peers.items[p->node];
    if (!peer->channel || !channel_is_connected(peer->channel))
        return E_UNAVAILABLE;
    struct trip *t = &l->trips[index];
    int64_t deadline_ns = clock_now_ns() + m->options.call_timeout_ns;
    *t = (struct trip){.moe = m,
                       .peer = peer,
                       .lane = lane,
                       .n_routes = p->n_routes,
                       .n_rows = (uint32_t)p->n_rows};
    struct forward_request r = {.about = about(m, lane),
                                .parcel = p,
                                .rows = round_rows(l->round),
                                .deadline_ns = earlier(deadline_ns, m->step_deadline_ns),
                                .trace_id = m->trace_id,
                                .done = on_reply,
                                .ud = t};
    int rc = forward_send(&m->calls, peer->channel, &r, &t->call_id, &t->sent_bytes);
    if (rc == 0) {
        note_sent(m, t, p);
        t->ticket = round_sent(l->round, index);
    }
    return rc;
}

/* A parcel that no node took: elsewhere. */
static void give_up_unsent(struct moe_remote *m, int lane, int index, int code)
{
    struct round *round = m->lanes[lane].round;
    struct expert_peer *peer = m->peers.items[round_parcel(round, index)->node];
    peer->failovers++;
    if (code == E_UNAVAILABLE)
        expert_peer_suspect(peer, "the connection broke");
    round_fail_unsent(round, index, code,
                      code == E_UNAVAILABLE ? "not connected"
                      : code == E_BUSY      ? "its queue stayed full"
                                            : "could not be sent");
}

/* Sends what can be sent; true if something is left that must wait for a full channel. */
static bool send_parcels(struct moe_remote *m, int lane, int64_t now_ns)
{
    struct lane *l = &m->lanes[lane];
    bool is_left = false;
    for (int i = round_next(l->round, -1); i >= 0; i = round_next(l->round, i)) {
        int rc = send_parcel(m, lane, i);
        if (rc == E_BUSY && now_ns < l->begun_ns + m->options.call_timeout_ns)
            is_left = true;
        else if (rc < 0)
            give_up_unsent(m, lane, i, rc);
    }
    return is_left;
}

/* ---- mending ------------------------------------------------------------------------- */

static void hedge(struct moe_remote *m, struct trip *t)
{
    t->is_hedged = true;
    if (!pace_may_spend(&m->hedges))
        return;
    pace_spend(&m->hedges, round_hedge(m->lanes[t->lane].round, t->ticket));
}

/* Whoever has answered a probe since, but not the parcel, will not answer it. */
static bool is_lost(const struct trip *t, int64_t now_ns)
{
    int64_t after_ns = 8 * (t->late_ns - t->sent_ns);
    return expert_peer_standing(t->peer) == STANDING_GOOD &&
           now_ns - t->sent_ns >= (after_ns > LOST_NS ? after_ns : LOST_NS);
}

static int64_t be_late(struct moe_remote *m, struct trip *t, int64_t now_ns)
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

/* Asks elsewhere for what is late or slow; returns when something is next. */
static int64_t mind_parcels(struct moe_remote *m, int lane, int64_t now_ns)
{
    struct lane *l = &m->lanes[lane];
    int64_t next_ns = CLOCK_NEVER;
    int n = round_n_parcels(l->round);
    for (int i = 0; i < n; i++) {
        struct trip *t = &l->trips[i];
        const struct round_parcel *p = round_parcel(l->round, i);
        if (p->state != PARCEL_OUT)
            continue;
        if (now_ns >= t->late_ns) {
            next_ns = earlier(next_ns, be_late(m, t, now_ns));
            continue;
        }
        bool may_hedge = m->hedges.percent > 0 && !t->is_hedged && !p->is_asked_twice;
        if (may_hedge && now_ns >= t->hedge_ns)
            hedge(m, t);
        else if (may_hedge)
            next_ns = earlier(next_ns, t->hedge_ns);
        next_ns = earlier(next_ns, t->late_ns);
    }
    return next_ns;
}

static bool is_any_fresh(const struct moe_remote *m, int64_t now_ns)
{
    for (int i = 0; i < m->peers.n; i++)
        if (expert_peer_is_fresh(m->peers.items[i], now_ns))
            return true;
    return false;
}

static void count_wait(struct moe_remote *m, struct lane *l)
{
    l->is_wait_counted = true;
    m->counters.waits++;
    log_warn("round.waiting", "step=%" PRIu64 " layer=%d selections=%d epoch=%" PRIu64, m->step,
             round_layer(l->round), round_n_orphans(l->round), moe_remote_epoch(m));
}

/* Experts that no node can be asked for: a table, or a node that comes back, may help. */
static int64_t mind_orphans(struct moe_remote *m, int lane, int64_t now_ns)
{
    struct lane *l = &m->lanes[lane];
    const struct ladder *ladder = &m->options.ladder;
    if (round_n_orphans(l->round) == 0) {
        l->waits_since_ns = 0;
        return CLOCK_NEVER;
    }
    if (l->waits_since_ns == 0) {
        l->waits_since_ns = l->next_retry_ns = now_ns;
        l->is_wait_counted = false;
    }
    if (now_ns >= l->next_retry_ns) {
        l->next_retry_ns = now_ns + RETRY_NS;
        if (round_state(l->round) == ROUND_WAITING)
            cancel_calls(m, lane, ALL_CALLS);
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
    int64_t until_ns = earlier(l->next_retry_ns, l->waits_since_ns + ladder->wait_ns);
    return earlier(until_ns, is_fresh ? now_ns + 10 * CLOCK_MS : until_ns);
}

/* Whoever places experts shall not wait for a lease where a connection has broken. */
static void tell_broken(struct moe_remote *m)
{
    uint64_t broken[WIRE_MAX_BROKEN];
    uint32_t n = 0;
    bool has_changed = false;
    for (int i = 0; i < m->peers.n && n < WIRE_MAX_BROKEN; i++) {
        const struct expert_peer *p = m->peers.items[i];
        has_changed |= expert_peer_is_broken(p) != p->is_told_broken;
        if (expert_peer_is_broken(p))
            broken[n++] = p->incarnation;
    }
    if (!m->options.tell_broken || (!has_changed && n == m->n_told_broken) ||
        !m->options.tell_broken(m->options.ud, broken, n))
        return;
    m->n_told_broken = n;
    for (int i = 0; i < m->peers.n; i++)
        m->peers.items[i]->is_told_broken = expert_peer_is_broken(m->peers.items[i]);
}

static int64_t mind_peers(struct moe_remote *m, int64_t now_ns)
{
    int64_t next_ns = expert_peers_mind(&m->peers, now_ns);
    tell_broken(m);
    return next_ns;
}

/* What has become known of the nodes since the last turn. */
static void take_standings(struct moe_remote *m, struct lane *l, int64_t now_ns)
{
    uint32_t n_good = 0;
    for (int i = 0; i < m->peers.n; i++) {
        enum standing standing = expert_peer_standing(m->peers.items[i]);
        round_stand(l->round, i, standing);
        n_good += standing != STANDING_AWAY;
    }
    if (n_good > l->n_good)
        l->next_retry_ns = now_ns; /* whoever came may have what is nowhere */
    l->n_good = n_good;
}

/* ---- moe_ops ------------------------------------------------------------------------- */

void moe_remote_begin_step(struct moe_remote *m, uint64_t step, uint64_t trace_id,
                           int64_t deadline_ns)
{
    m->step = step;
    m->trace_id = trace_id;
    m->step_deadline_ns = deadline_ns;
    m->experts_ns = 0;
    m->n_left_out = 0;
    m->is_disputed = false;
    m->error = (struct err){0};
}

static int scatter(void *ud, int lane, const struct moe_rows *rows)
{
    struct moe_remote *m = ud;
    must(lane >= 0 && lane < m->options.n_lanes);
    struct lane *l = &m->lanes[lane];
    must(!l->is_under_way);
    l->begun_ns = clock_now_ns();
    l->waits_since_ns = 0;
    l->is_beside = false;
    if (!m->table)
        return err_set(&m->error, E_UNAVAILABLE, "no table of expert nodes yet");
    must(m->options.group ? rows->rows.group == m->options.group : rows->rows.f32 != NULL);
    struct round_plan plan = {
        .rows = rows,
        .mode = m->options.mode,
        .holders = wire_table_holders(m->table, (uint32_t)rows->layer, 0),
        .n_replicas = (int)m->table->n_replicas,
        .check_one_in = m->options.ladder.verify_one_in,
    };
    l->rows = rows;
    mind_peers(m, l->begun_ns);
    take_standings(m, l, l->begun_ns);
    round_begin(l->round, &plan);
    l->is_under_way = true;
    for (int i = 0; i < m->options.n_lanes; i++)
        if (i != lane && m->lanes[i].is_under_way)
            l->is_beside = m->lanes[i].is_beside = true;
    send_parcels(m, lane, l->begun_ns);
    int64_t now_ns = clock_now_ns();
    l->scatter_ns = now_ns - l->begun_ns;
    if (m->options.observer)
        observer_scattered(m->options.observer, lane, rows->layer, rows->n_rows, l->begun_ns,
                           now_ns);
    return 0;
}

static bool is_any_orphan(const struct moe_remote *m)
{
    for (int i = 0; i < m->options.n_lanes; i++)
        if (is_going_on(&m->lanes[i]) && round_n_orphans(m->lanes[i].round) > 0)
            return true;
    return false;
}

/* Nobody brings tables any more. */
static void give_up_orphans(struct moe_remote *m)
{
    for (int i = 0; i < m->options.n_lanes; i++)
        if (is_going_on(&m->lanes[i]) && round_n_orphans(m->lanes[i].round) > 0)
            round_give_up(m->lanes[i].round, "this side is stopping");
}

static int64_t mind_lane(struct moe_remote *m, int lane, int64_t now_ns)
{
    const struct lane *l = &m->lanes[lane];
    /* First, so that what is sent now, a witness or a retry, has its deadline among those below. */
    bool is_left = send_parcels(m, lane, now_ns);
    if (!is_going_on(l))
        return now_ns;
    int64_t until_ns = mind_parcels(m, lane, now_ns);
    until_ns = earlier(until_ns, mind_orphans(m, lane, now_ns));
    if (is_left)
        return earlier(until_ns, now_ns + UNSENT_POLL_NS);
    return is_going_on(l) && round_next(l->round, -1) >= 0 ? now_ns : until_ns;
}

/* One turn of gather's loop, up to the wait; returns until when to wait. */
static int64_t turn(struct moe_remote *m)
{
    int64_t now_ns = clock_now_ns();
    int64_t until_ns = mind_peers(m, now_ns);
    for (int i = 0; i < m->options.n_lanes; i++) {
        if (!is_going_on(&m->lanes[i]))
            continue;
        take_standings(m, &m->lanes[i], now_ns);
        cancel_calls(m, i, DROPPED_CALLS);
    }
    if (is_any_orphan(m) && m->options.take_tables && !m->options.take_tables(m->options.ud)) {
        give_up_orphans(m);
        return now_ns;
    }
    for (int i = 0; i < m->options.n_lanes; i++)
        if (is_going_on(&m->lanes[i]))
            until_ns = earlier(until_ns, mind_lane(m, i, now_ns));
    return until_ns;
}

/* The first lane whose round has failed, or -1. */
static int failed_lane(const struct moe_remote *m)
{
    for (int i = 0; i < m->options.n_lanes; i++)
        if (m->lanes[i].is_under_way && round_state(m->lanes[i].round) == ROUND_FAILED)
            return i;
    return -1;
}

/* Turns until the lane's round is through, or another one has failed. */
static void wait_for_lane(struct moe_remote *m, const struct lane *l)
{
    m->is_deaf = l->is_beside;
    if (m->is_deaf)
        channel_wait(m->peers.channels, m->peers.n_channels, -1, 0, 0);
    m->is_deaf = false;
    while (is_going_on(l) && failed_lane(m) < 0) {
        int64_t until_ns = turn(m);
        if (!is_going_on(l) || failed_lane(m) >= 0)
            break;
        int fd = is_any_orphan(m) ? m->options.tables_fd : -1;
        channel_wait(m->peers.channels, m->peers.n_channels, fd, until_ns, m->options.spin_ns);
    }
}

/* The round is idle: what its open calls end with concerns nobody. */
static void end_lane(struct moe_remote *m, int lane)
{
    struct lane *l = &m->lanes[lane];
    cancel_calls(m, lane, ALL_CALLS);
    l->is_under_way = false;
    if (!l->has_old_nodes)
        return;
    struct round_node *nodes = list_nodes(m, m->table);
    round_install(l->round, nodes, (int)m->table->n_nodes);
    mem_free(nodes);
    l->has_old_nodes = false;
}

static void abandon(void *ud, int lane)
{
    struct moe_remote *m = ud;
    struct lane *l = &m->lanes[lane];
    must(l->is_under_way);
    round_abandon(l->round);
    end_lane(m, lane);
}

static void accuse(struct moe_remote *m, const struct round_answer *a, bool is_sure)
{
    if (a->node >= 0)
        expert_peer_ban(m->peers.items[a->node],
                        is_sure ? "its answer has other bits than a replica's"
                                : "its answer or a replica's is wrong, and nobody can say which");
}

/* Two nodes gave other bits: who is asked no more, and what the owner is told.  Where nobody can
 * say who was wrong both are asked no more: the coordinator has them tested. */
static int settle_dispute(struct moe_remote *m, const struct moe_rows *rows,
                          const struct round_dispute *d)
{
    struct inquiry q = {
        .calls = &m->calls,
        .peers = &m->peers,
        .table = m->table,
        .rows = rows,
        .about = {m->table->epoch, m->step, rows->layer, 0},
        .deadline_ns = earlier(clock_now_ns() + m->options.call_timeout_ns, m->step_deadline_ns)};
    struct verify_verdict v = inquiry_run(&q, d);
    log_error("verify.mismatch",
              "step=%" PRIu64 " layer=%d row=%d first=%d witnesses=%d decided=%d", m->step,
              rows->layer, d->row, d->first.node, d->n_parts, v.is_decided);
    m->counters.mismatches++;
    m->is_disputed = true;
    if (v.is_whole_wrong)
        accuse(m, &d->first, v.is_decided);
    for (int i = 0; i < d->n_parts; i++)
        if (v.is_part_wrong[i])
            accuse(m, &d->parts[i], v.is_decided);
    return err_set(&m->error, v.is_decided ? E_ABORTED : E_UNAVAILABLE,
                   "layer %d: two expert nodes gave other bits for the same row%s", rows->layer,
                   v.is_decided ? "" : ", and nobody can say which was wrong");
}

static void fold(struct moe_remote *m, struct lane *l, float *x)
{
    int n_left_out = round_n_left_out(l->round);
    m->n_left_out += n_left_out;
    m->counters.left_out += (uint64_t)n_left_out;
    if (n_left_out > 0)
        log_warn("round.left_out", "step=%" PRIu64 " layer=%d selections=%d", m->step,
                 round_layer(l->round), n_left_out);
    round_fold(l->round, x);
}

/* The round of that lane fails the step. */
static int fail(struct moe_remote *m, int lane)
{
    struct lane *l = &m->lanes[lane];
    struct round_dispute d;
    cancel_calls(m, lane, ALL_CALLS);
    m->error = *round_error(l->round);
    /* Nodes that are numbered otherwise now cannot be accused. */
    if (!l->has_old_nodes && round_find_dispute(l->round, &d))
        return settle_dispute(m, l->rows, &d);
    return m->error.code;
}

static int gather(void *ud, int lane, float *x)
{
    struct moe_remote *m = ud;
    must(lane >= 0 && lane < m->options.n_lanes);
    struct lane *l = &m->lanes[lane];
    must(l->is_under_way);
    int layer = round_layer(l->round), rc = 0;
    int64_t waiting_ns = clock_now_ns();
    wait_for_lane(m, l);
    int failed = failed_lane(m);
    if (failed >= 0) {
        rc = fail(m, failed);
        round_abandon(l->round);
    } else {
        fold(m, l, x);
    }
    end_lane(m, lane);
    int64_t now_ns = clock_now_ns();
    m->experts_ns += l->is_beside ? l->scatter_ns + now_ns - waiting_ns : now_ns - l->begun_ns;
    if (m->options.observer)
        observer_gathered(m->options.observer, lane, layer, l->begun_ns, now_ns);
    return rc;
}

const struct moe_ops moe_remote_ops = {.scatter = scatter, .gather = gather, .abandon = abandon};

const struct err *moe_remote_error(const struct moe_remote *m)
{
    return &m->error;
}

int64_t moe_remote_experts_ns(const struct moe_remote *m)
{
    return m->experts_ns;
}

bool moe_remote_is_disputed(const struct moe_remote *m)
{
    return m->is_disputed;
}

int moe_remote_left_out(const struct moe_remote *m)
{
    return m->n_left_out;
}

const struct wire_ladder_counters *moe_remote_counters(const struct moe_remote *m)
{
    return &m->counters;
}

uint32_t moe_remote_node_health(const struct moe_remote *m, struct wire_node_health *out,
                                uint32_t most)
{
    static const enum wire_standing names[] = {[STANDING_GOOD] = WIRE_STANDING_GOOD,
                                               [STANDING_DOUBTFUL] = WIRE_STANDING_SUSPECT,
                                               [STANDING_AWAY] = WIRE_STANDING_AWAY};
    uint32_t n = 0;
    for (int i = 0; i < m->peers.n && n < most; i++) {
        const struct expert_peer *p = m->peers.items[i];
        struct wire_node_health h = {
            .node_id = p->node_id,
            .incarnation = p->incarnation,
            .standing = p->is_banned ? WIRE_STANDING_WRONG : names[expert_peer_standing(p)],
            .failovers = p->failovers,
            .lates = p->lates,
            .wrongs = p->wrongs,
            .usual_us = (uint64_t)(pace_usual_ns(&p->pace, m->options.top_k) / CLOCK_US)};
        if (h.standing != WIRE_STANDING_GOOD || h.failovers > 0 || h.wrongs > 0)
            out[n++] = h;
    }
    return n;
}

uint32_t moe_remote_take_traffic(struct moe_remote *m, struct wire_node_traffic *out, uint32_t most)
{
    uint32_t n = 0;
    for (int i = 0; i < m->peers.n && n < most; i++) {
        struct expert_peer *p = m->peers.items[i];
        struct wire_node_traffic *t = &p->traffic;
        t->failovers = p->failovers - p->failovers_told;
        if (t->sent_bytes == 0 && t->calls == 0 && t->failovers == 0)
            continue;
        t->node_id = p->node_id;
        t->incarnation = p->incarnation;
        out[n++] = *t;
        *t = (struct wire_node_traffic){0};
        p->failovers_told = p->failovers;
    }
    return n;
}

/* Probes go on while the thread waits for work. */
void moe_remote_wait(struct moe_remote *m, int fd, int64_t deadline_ns)
{
    int64_t probe_ns = mind_peers(m, clock_now_ns());
    channel_wait(m->peers.channels, m->peers.n_channels, fd, earlier(deadline_ns, probe_ns), 0);
}
