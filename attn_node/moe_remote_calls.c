/* attn_node/moe_remote_calls.c - the calls of a round's parcels: sending them, taking their answers,
 * and what each says of its node.  See moe_remote_state.h. */
#include "attn_node/moe_remote_state.h"

#include "attn_node/observer.h"
#include "base/clock.h"
#include "rpc/channel.h"

/* ---- answers ------------------------------------------------------------------------- */

/* Nobody waits for its answer any more, mostly because others were quicker. */
static void give_up_trip(struct moe_remote *m, const struct moe_trip *t,
                         const struct round_parcel *p)
{
    int64_t now_ns = clock_now_ns();
    pace_take_at_least(&t->peer->pace, t->n_routes, now_ns - t->sent_ns);
    if (!p->is_asked_twice || t->is_late || !expert_peer_outrun(t->peer, t->late_ns, now_ns))
        return;
    m->counters.lates++;
    t->peer->lates++;
    t->peer->failovers++;
}

void moe_remote_cancel_calls(struct moe_remote *m, int lane, enum moe_which_calls which)
{
    struct moe_lane *l = &m->lanes[lane];
    for (int i = 0; i < round_n_parcels(l->round); i++) {
        struct moe_trip *t = &l->trips[i];
        if (t->call_id == 0)
            continue;
        if (which == MOE_DROPPED_CALLS && round_parcel(l->round, i)->state != PARCEL_DROPPED)
            continue;
        uint64_t call_id = t->call_id;
        t->call_id = 0;
        give_up_trip(m, t, round_parcel(l->round, i));
        channel_cancel(t->peer->channel, call_id);
    }
}

static struct forward_about about(const struct moe_remote *m, int lane)
{
    return (struct forward_about){.epoch = m->table->epoch,
                                  .step = m->step,
                                  .layer = round_layer(m->lanes[lane].round),
                                  .lane = lane};
}

/* What the reply must match is told by the round itself. */
static int take_reply(struct moe_trip *t, const struct reply *reply, struct err *e)
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

static void note_failure(struct moe_trip *t, int code, const char *why)
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
static void observe(const struct moe_trip *t, const struct reply *reply, int layer, int code)
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

static void take_pace(const struct moe_trip *t)
{
    int64_t took_ns = clock_now_ns() - t->sent_ns;
    int64_t usual_ns = pace_usual_ns(&t->peer->pace, t->n_routes);
    if (!t->moe->is_deaf || usual_ns == 0 || took_ns < usual_ns)
        pace_take(&t->peer->pace, t->n_routes, took_ns);
}

static void on_reply(void *ud, const struct reply *reply)
{
    struct moe_trip *t = ud;
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

/* ---- sending ------------------------------------------------------------------------- */

static void note_sent(struct moe_remote *m, struct moe_trip *t, const struct round_parcel *p)
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
    struct moe_lane *l = &m->lanes[lane];
    const struct round_parcel *p = round_parcel(l->round, index);
    struct expert_peer *peer = m->peers.items[p->node];
    if (!peer->channel || !channel_is_connected(peer->channel))
        return E_UNAVAILABLE;
    struct moe_trip *t = &l->trips[index];
    int64_t deadline_ns = clock_now_ns() + m->options.call_timeout_ns;
    *t = (struct moe_trip){.moe = m,
                           .peer = peer,
                           .lane = lane,
                           .n_routes = p->n_routes,
                           .n_rows = (uint32_t)p->n_rows};
    struct forward_request r = {.about = about(m, lane),
                                .parcel = p,
                                .rows = round_rows(l->round),
                                .deadline_ns = earlier_ns(deadline_ns, m->step_deadline_ns),
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

bool moe_remote_send_parcels(struct moe_remote *m, int lane, int64_t now_ns)
{
    struct moe_lane *l = &m->lanes[lane];
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
