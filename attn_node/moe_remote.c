/* attn_node/moe_remote.c - see moe_remote.h.
 *
 * scatter() plans the round and sends what can be sent; gather() then turns in a loop: look at
 * the nodes, ask elsewhere for what is late or slow, send what is planned, mind the experts
 * that are nowhere, wait.  No call outlives its round: when a round ends the open ones are
 * cancelled, so a trip's memory can be used again by the next round.
 *
 * moe_remote_state.h says which file has what.
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

#include "attn_node/inquiry.h"
#include "attn_node/moe_remote_state.h"
#include "attn_node/observer.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "rpc/channel.h"

/* A full channel gives no event when it drains. */
#define UNSENT_POLL_NS (2 * CLOCK_MS)
#define MIN_HEDGE_NS (1 * CLOCK_MS)

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
        m->lanes[i].trips = mem_array((size_t)round_max_parcels(&limits), sizeof(struct moe_trip));
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
    struct moe_lane *l = &m->lanes[lane];
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
    moe_remote_mind_peers(m, l->begun_ns);
    moe_remote_take_standings(m, l, l->begun_ns);
    round_begin(l->round, &plan);
    l->is_under_way = true;
    for (int i = 0; i < m->options.n_lanes; i++)
        if (i != lane && m->lanes[i].is_under_way)
            l->is_beside = m->lanes[i].is_beside = true;
    moe_remote_send_parcels(m, lane, l->begun_ns);
    int64_t now_ns = clock_now_ns();
    l->scatter_ns = now_ns - l->begun_ns;
    if (m->options.observer)
        observer_scattered(m->options.observer, lane, rows->layer, rows->n_rows, l->begun_ns,
                           now_ns);
    return 0;
}

static int64_t mind_lane(struct moe_remote *m, int lane, int64_t now_ns)
{
    const struct moe_lane *l = &m->lanes[lane];
    /* First, so that what is sent now, a witness or a retry, has its deadline among those below. */
    bool is_left = moe_remote_send_parcels(m, lane, now_ns);
    if (!moe_lane_is_going_on(l))
        return now_ns;
    int64_t until_ns = moe_remote_mind_parcels(m, lane, now_ns);
    until_ns = earlier_ns(until_ns, moe_remote_mind_orphans(m, lane, now_ns));
    if (is_left)
        return earlier_ns(until_ns, now_ns + UNSENT_POLL_NS);
    return moe_lane_is_going_on(l) && round_next(l->round, -1) >= 0 ? now_ns : until_ns;
}

/* One turn of gather's loop, up to the wait; returns until when to wait. */
static int64_t turn(struct moe_remote *m)
{
    int64_t now_ns = clock_now_ns();
    int64_t until_ns = moe_remote_mind_peers(m, now_ns);
    for (int i = 0; i < m->options.n_lanes; i++) {
        if (!moe_lane_is_going_on(&m->lanes[i]))
            continue;
        moe_remote_take_standings(m, &m->lanes[i], now_ns);
        moe_remote_cancel_calls(m, i, MOE_DROPPED_CALLS);
    }
    if (moe_remote_is_any_orphan(m) && m->options.take_tables &&
        !m->options.take_tables(m->options.ud)) {
        moe_remote_give_up_orphans(m);
        return now_ns;
    }
    for (int i = 0; i < m->options.n_lanes; i++)
        if (moe_lane_is_going_on(&m->lanes[i]))
            until_ns = earlier_ns(until_ns, mind_lane(m, i, now_ns));
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
static void wait_for_lane(struct moe_remote *m, const struct moe_lane *l)
{
    m->is_deaf = l->is_beside;
    if (m->is_deaf)
        channel_wait(m->peers.channels, m->peers.n_channels, -1, 0, 0);
    m->is_deaf = false;
    while (moe_lane_is_going_on(l) && failed_lane(m) < 0) {
        int64_t until_ns = turn(m);
        if (!moe_lane_is_going_on(l) || failed_lane(m) >= 0)
            break;
        int fd = moe_remote_is_any_orphan(m) ? m->options.tables_fd : -1;
        channel_wait(m->peers.channels, m->peers.n_channels, fd, until_ns, m->options.spin_ns);
    }
}

/* The round is idle: what its open calls end with concerns nobody. */
static void end_lane(struct moe_remote *m, int lane)
{
    struct moe_lane *l = &m->lanes[lane];
    moe_remote_cancel_calls(m, lane, MOE_ALL_CALLS);
    l->is_under_way = false;
    if (!l->has_old_nodes)
        return;
    struct round_node *nodes = moe_remote_list_nodes(m, m->table);
    round_install(l->round, nodes, (int)m->table->n_nodes);
    mem_free(nodes);
    l->has_old_nodes = false;
}

static void abandon(void *ud, int lane)
{
    struct moe_remote *m = ud;
    struct moe_lane *l = &m->lanes[lane];
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
    struct inquiry q = {.calls = &m->calls,
                        .peers = &m->peers,
                        .table = m->table,
                        .rows = rows,
                        .about = {m->table->epoch, m->step, rows->layer, 0},
                        .deadline_ns = earlier_ns(clock_now_ns() + m->options.call_timeout_ns,
                                                  m->step_deadline_ns)};
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

static void fold(struct moe_remote *m, struct moe_lane *l, float *x)
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
    struct moe_lane *l = &m->lanes[lane];
    struct round_dispute d;
    moe_remote_cancel_calls(m, lane, MOE_ALL_CALLS);
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
    struct moe_lane *l = &m->lanes[lane];
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
