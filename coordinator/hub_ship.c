/* coordinator/hub_ship.c - the leader's token log goes to the coordinators that stand by, where each
 * has a state directory of its own: Cluster/Follow, and who waits for whom (coordinator/ship.h
 * decides).  See hub.h.
 *
 * Log events: standby.follows, standby.in_step, standby.late, standby.refused. */
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "coordinator/hub_state.h"

#define HOLD_NS (500 * CLOCK_MS)
#define FORGET_NS (10 * CLOCK_S)
#define RECORD_AGAIN_NS (100 * CLOCK_MS)

struct hub_ship {
    struct ship machine;
    struct server_call *held[SHIP_MAX_STANDBYS];
    uint64_t known[SHIP_MAX_STANDBYS]; /* instances whose coming was told, */
    bool in_step[SHIP_MAX_STANDBYS];   /* and their being in step */
    struct loop_timer timer;
    int64_t record_again_ns; /* after a failure */
};

static void reply(struct server_call **call, const struct ship_answer *a)
{
    struct wire_follow_reply m = {.stream = a->stream,
                                  .offset = a->offset,
                                  .snapshot_bytes = a->snapshot_bytes,
                                  .bytes = a->bytes};
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_follow_reply_encode(&m, &message, &payload);
    server_reply(
        call, &(struct server_answer){.message = &message, .payloads = &payload, .n_payloads = 1});
    blob_unref(&payload);
    buf_fini(&message);
}

/* Those who wait for news and have some. */
static void answer_held(struct hub *h, int64_t now_ns)
{
    struct ship_answer a;
    while (ship_next(&h->ship->machine, now_ns, &a))
        if (h->ship->held[a.slot])
            reply(&h->ship->held[a.slot], &a);
}

static void on_timer(void *ud, int64_t now_ns)
{
    struct hub *h = ud;
    if (h->leads)
        answer_held(h, now_ns);
}

/* ---- questions ------------------------------------------------------------------------- */

static void tell(struct hub *h, int slot)
{
    struct hub_ship *w = h->ship;
    const struct ship_standby *b = &w->machine.standbys[slot];
    if (w->known[slot] != b->instance) {
        log_info("standby.follows", "name=%s", log_quote(b->name).text);
        w->known[slot] = b->instance;
        w->in_step[slot] = false;
    }
    if (b->in_step && !w->in_step[slot]) {
        log_info("standby.in_step", "name=%s snapshot_bytes=%llu", log_quote(b->name).text,
                 (unsigned long long)b->snapshot_bytes);
        hub_tell(h, EVENTS_GOOD, "standby in step", "%s has the whole token log", b->name);
    }
    w->in_step[slot] = b->in_step;
}

/* Whoever leads next shall be one of those who are in step. */
static void record(struct hub *h, int64_t now_ns)
{
    uint64_t states[SHIP_MAX_STANDBYS];
    if (now_ns < h->ship->record_again_ns || !hub_leader_is_sure(h))
        return;
    int n = ship_unrecorded(&h->ship->machine, states);
    if (n >= 0 && !hub_leader_record(h, states, n))
        hub_ship_recorded(h, false);
}

void hub_ship_recorded(struct hub *h, bool is_done)
{
    int64_t now_ns = clock_now_ns();
    ship_recorded(&h->ship->machine, is_done);
    if (is_done)
        record(h, now_ns); /* what has changed meanwhile */
    else
        h->ship->record_again_ns = now_ns + RECORD_AGAIN_NS;
    hub_log_release(h);
}

static void refuse_twin(struct server_call *call, const char *first, const char *second)
{
    log_warn("standby.refused", "name=%s why=%s", log_quote(second).text,
             log_quote("its state.dir is a copy of another coordinator's").text);
    server_fail(
        &call, E_PRECONDITION,
        "state.dir has the identity of %s's: it is a copy; remove its file \"identity\" and "
        "start again",
        first);
}

static void take_question(struct hub *h, struct server_call *call, const struct wire_follow *q)
{
    struct hub_ship *w = h->ship;
    int64_t now_ns = clock_now_ns();
    struct ship_question question = {.instance = q->instance,
                                     .state = q->state,
                                     .name = q->name,
                                     .stream = q->stream,
                                     .offset = q->offset};
    struct ship_answer a;
    enum ship_verdict verdict = ship_ask(&w->machine, &question, now_ns, &a);
    if (verdict == SHIP_FULL) {
        server_fail(&call, E_BUSY, "%d coordinators stand by already", SHIP_MAX_STANDBYS);
        return;
    }
    if (verdict == SHIP_TWIN) {
        refuse_twin(call, w->machine.standbys[a.slot].name, q->name);
        return;
    }
    if (w->held[a.slot])
        server_fail(&w->held[a.slot], E_ABORTED, "asked again");
    tell(h, a.slot);
    if (verdict == SHIP_SNAPSHOT) {
        struct buf snapshot = {0};
        hub_log_snapshot(h, &snapshot);
        ship_begin(&w->machine, a.slot, &snapshot, now_ns, &a);
    }
    if (verdict == SHIP_HOLD)
        w->held[a.slot] = call;
    else
        reply(&call, &a);
    record(h, now_ns);
    hub_log_release(h); /* what has just been acknowledged */
}

void hub_ship_follow(void *ud, struct server_call *call, const struct server_request *r)
{
    struct hub *h = ud;
    struct wire_follow q;
    struct err e = {0};
    int rc = 0;
    if (!h->leads)
        rc = err_set(&e, E_UNAVAILABLE, "%s", h->why_not);
    else if (!h->ship)
        rc = err_set(&e, E_PRECONDITION,
                     "the leader has no token log to copy (state.dir), or a shared one "
                     "(state.shared), and the standby expects its own");
    else if (auth_has_keys(h->auth) && r->key[0] && strcmp(r->key, auth_public_key(h->auth)) != 0)
        rc = err_set(&e, E_DENIED, "only a coordinator with the leader's own key may have its log");
    if (rc == 0)
        rc = wire_follow_decode(r->message, &q, &e);
    if (rc == 0 && q.state == hub_leader_state(h)) {
        refuse_twin(call, h->config->node_name, q.name);
        return;
    }
    if (rc == 0) {
        take_question(h, call, &q);
        return;
    }
    if (rc != E_UNAVAILABLE)
        log_warn("standby.refused", "why=%s", log_quote(e.text).text);
    server_fail(&call, rc, "%s", e.text);
}

/* ---- what is written, and when it counts -------------------------------------------------- */

uint64_t hub_ship_add(struct hub *h, uint8_t type, struct str payload)
{
    if (!h->ship)
        return 0;
    int64_t now_ns = clock_now_ns();
    /* After this turn: what a step brings goes together. */
    if (h->ship->timer.deadline_ns == CLOCK_NEVER && ship_count(&h->ship->machine, false) > 0)
        loop_set_timer(h->loop, &h->ship->timer, now_ns);
    return ship_append(&h->ship->machine, type, payload, now_ns);
}

bool hub_ship_has(const struct hub *h, uint64_t position)
{
    return !h->ship || ship_has(&h->ship->machine, position);
}

void hub_ship_tick(struct hub *h, int64_t now_ns)
{
    /* Only who certainly leads may go on without a standby: it could lead by now. */
    if (!h->ship || !hub_leader_is_sure(h))
        return;
    bool any = false;
    for (const struct ship_standby *b; (b = ship_tick(&h->ship->machine, now_ns)); any = true) {
        h->ship->in_step[b - h->ship->machine.standbys] = false;
        log_warn("standby.late", "name=%s lag_bytes=%llu why=%s", log_quote(b->name).text,
                 (unsigned long long)ship_lag_bytes(&h->ship->machine, b),
                 log_quote("requests go on without it until it has caught up").text);
        hub_tell(h, EVENTS_WARN, "standby late", "%s: requests go on without it", b->name);
    }
    answer_held(h, now_ns);
    record(h, now_ns);
    if (any)
        hub_log_release(h);
}

const struct ship *hub_ship(const struct hub *h)
{
    return h->ship ? &h->ship->machine : NULL;
}

json_t *hub_ship_object(const struct hub *h)
{
    json_t *all = json_array();
    for (int i = 0; h->ship && i < SHIP_MAX_STANDBYS; i++) {
        const struct ship_standby *b = &h->ship->machine.standbys[i];
        if (b->instance)
            json_array_append_new(all,
                                  json_pack("{ss, sb, sb, sI, sI}", "name", b->name, "in_step",
                                            b->in_step, "recorded", b->is_recorded && b->in_step,
                                            "has_bytes", (json_int_t)b->have, "lag_bytes",
                                            (json_int_t)ship_lag_bytes(&h->ship->machine, b)));
    }
    return all;
}

/* ---- start and end ------------------------------------------------------------------------- */

void hub_ship_open(struct hub *h)
{
    const struct coordinator_config *c = h->config;
    struct ship_config config = {.first_stream = rng_entropy(),
                                 .window_bytes = c->state_max_bytes / 4,
                                 .patience_ns = c->state_standby_ns,
                                 .hold_ns = HOLD_NS,
                                 .forget_ns = FORGET_NS,
                                 .is_recorded = true};
    h->ship = mem_alloc(sizeof *h->ship);
    h->ship->timer = (struct loop_timer){.deadline_ns = CLOCK_NEVER, .cb = on_timer, .ud = h};
    ship_init(&h->ship->machine, &config);
}

/* After the servers, which have answered what was held. */
void hub_ship_close(struct hub *h)
{
    if (!h->ship)
        return;
    if (h->ship->timer.added)
        loop_remove_timer(h->loop, &h->ship->timer);
    ship_fini(&h->ship->machine);
    mem_free(h->ship);
    h->ship = NULL;
}
