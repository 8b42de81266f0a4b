/* rpc/member.c - a node's side of membership.
 *
 *   AWAY ---- Join ----> JOINING ---- reply ----> JOINED
 *    ^                      |                        |
 *    +------ backoff -------+<-- no heartbeat heard for a lease, or forgotten
 *
 * Which answers to Join are for good: those that another try cannot change, because the
 * coordinator understood the node and does not want it (FAILED_PRECONDITION: another model
 * or version; PERMISSION_DENIED; INVALID_ARGUMENT; UNIMPLEMENTED: not a coordinator).  A
 * name in use (ALREADY_EXISTS) is tried again: mostly the lease of this node's own dead
 * predecessor still runs.
 *
 * What was pulled counts per membership: after a new Join everything is pulled anew, since
 * a coordinator that started again counts its versions from the beginning.
 *
 * Log events: member.joined, member.refused (for good: error), member.lost, and
 * member.waiting while Join does not succeed. */
#include "rpc/member.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "base/thread.h"
#include "base/version.h"
#include "rpc/auth.h"
#include "rpc/channel.h"
#include "rpc/endpoint.h"

#define JOIN_DEADLINE_NS (2 * CLOCK_S)
#define PULL_DEADLINE_NS (5 * CLOCK_S)
#define LEAVE_DEADLINE_NS (200 * CLOCK_MS)
/* Between tries that reached the coordinator, doubled each time. */
#define BACKOFF_FIRST_NS (100 * CLOCK_MS)
#define BACKOFF_MOST_NS (5 * CLOCK_S)
/* Looking whether the connection is there costs nothing. */
#define DIAL_POLL_NS (20 * CLOCK_MS)
/* Of several coordinators: one that has not answered the dial by then leads no more. */
#define DIAL_NEXT_NS (250 * CLOCK_MS)
/* Of a member whose heartbeats are more frequent. */
#define LEAST_PATIENCE_NS (250 * CLOCK_MS)
#define SAY_AGAIN_NS (5 * CLOCK_S)

enum { MEMBER_MAX_HEARTBEATS = 8 }; /* under way at a time */
enum { MEMBER_MAX_STAYS = 10 };     /* tries at a standby before the round goes on */

enum phase { AWAY, JOINING, JOINED, REFUSED, LEAVING };

struct member {
    struct owner owner;
    struct loop *loop;
    struct channel *channel;
    struct member_options options;
    char *endpoints[MEMBER_MAX_ENDPOINTS];
    int n_endpoints, at;  /* the one that is dialled */
    const char *endpoint; /* the same */
    int64_t dialled_ns;
    struct loop_timer timer;
    struct rng rng;
    enum phase phase;
    struct member_report report;
    struct wire_join_reply joined;
    int64_t backoff_ns, heard_ns, next_heartbeat_ns;
    int n_silent, n_stays; /* dials in a row that nobody took; tries at the one that did */
    int64_t said_ns;       /* that it waits; 0: not since it was a member */
    int n_heartbeats;      /* under way */
    bool is_unanswered;    /* the latest Join, or heartbeats for a lease */
    bool is_pulling, is_pulling_callers, has_left;
    uint64_t pulled;    /* newest that was handed over in this membership */
    uint64_t callers;   /* likewise */
    uint64_t join_call; /* call ids only grow: what is below belongs to an earlier membership */
    struct buf message;
};

static void set_timer(struct member *m, int64_t deadline_ns)
{
    loop_set_timer(m->loop, &m->timer, deadline_ns);
}

/* Between half of `ns` and all of it: nodes that lost a coordinator together shall not
 * come back together. */
static int64_t with_jitter(struct member *m, int64_t ns)
{
    return ns / 2 + (int64_t)rng_below(&m->rng, (uint64_t)(ns / 2 + 1));
}

static int call(struct member *m, int method, int64_t for_ns, reply_callback *done, uint64_t *id)
{
    struct call c = {.method = wire_method(WIRE_CLUSTER, method),
                     .message = &m->message,
                     .deadline_ns = clock_now_ns() + for_ns,
                     .done = done,
                     .ud = m};
    return channel_call(m->channel, &c, id);
}

static void go_away(struct member *m, int64_t wait_ns)
{
    m->phase = AWAY;
    m->joined = (struct wire_join_reply){0};
    set_timer(m, clock_now_ns() + wait_ns);
}

static int dial(struct member *m, int at, struct err *e)
{
    struct channel *channel = NULL;
    struct channel_options options = {.endpoint = m->endpoints[at],
                                      .peer_name = "coordinator",
                                      .auth = m->options.auth,
                                      .server_key = auth_server_key(m->options.auth)};
    m->dialled_ns = clock_now_ns();
    int rc = channel_open(&options, &channel, e);
    if (rc < 0)
        return rc;
    channel_close(&m->channel);
    m->channel = channel;
    m->at = at;
    m->endpoint = m->endpoints[at];
    channel_attach(channel, m->loop);
    return 0;
}

/* Only one of several coordinators leads; this one does not answer. */
static void dial_next(struct member *m)
{
    if (m->n_endpoints > 1)
        dial(m, (m->at + 1) % m->n_endpoints, NULL);
    m->backoff_ns = BACKOFF_FIRST_NS;
}

/* Without a word for so long the coordinator may be gone. */
static int64_t patience_ns(const struct member *m)
{
    int64_t every_ns = m->joined.heartbeat_ms * CLOCK_MS;
    return every_ns > LEAST_PATIENCE_NS ? every_ns : LEAST_PATIENCE_NS;
}

static void lose(struct member *m, const char *why)
{
    log_warn("member.lost", "coordinator=%s node_id=%u why=%s", log_quote(m->endpoint).text,
             m->joined.node_id, log_quote(why).text);
    m->is_unanswered = clock_now_ns() - m->heard_ns > patience_ns(m);
    m->backoff_ns = BACKOFF_FIRST_NS;
    go_away(m, 0);
}

/* ---- Pulling what is new ---------------------------------------------------------- */

static bool is_of_this_membership(const struct member *m, const struct reply *r)
{
    return m->phase == JOINED && r->call_id > m->join_call;
}

static void on_holdings(void *ud, const struct reply *r)
{
    struct member *m = ud;
    if (!is_of_this_membership(m, r))
        return;
    m->is_pulling = false;
    if (r->code < 0)
        return;
    struct wire_holdings holdings;
    uint8_t *bitmap = NULL;
    struct err e = {0};
    if (wire_holdings_decode(r->message, r->payloads, r->n_payloads, &holdings, &bitmap, &e) < 0) {
        log_warn("member.bad_reply", "method=Holdings why=%s", log_quote(e.text).text);
        return;
    }
    m->pulled = holdings.version;
    if (m->options.on_holdings)
        m->options.on_holdings(m->options.ud, &holdings);
    mem_free(bitmap);
}

static void on_table(void *ud, const struct reply *r)
{
    struct member *m = ud;
    if (!is_of_this_membership(m, r))
        return;
    m->is_pulling = false;
    if (r->code < 0)
        return;
    struct wire_table *table = NULL;
    struct err e = {0};
    if (wire_table_decode(r->message, r->payloads, r->n_payloads, &table, &e) < 0) {
        log_warn("member.bad_reply", "method=Table why=%s", log_quote(e.text).text);
        return;
    }
    m->pulled = table->epoch;
    if (m->options.on_table)
        m->options.on_table(m->options.ud, table);
    mem_free(table);
}

static void on_callers(void *ud, const struct reply *r)
{
    struct member *m = ud;
    if (!is_of_this_membership(m, r))
        return;
    m->is_pulling_callers = false;
    if (r->code < 0)
        return;
    struct wire_callers *callers = NULL;
    struct err e = {0};
    if (wire_callers_decode(r->message, &callers, &e) < 0) {
        log_warn("member.bad_reply", "method=Callers why=%s", log_quote(e.text).text);
        return;
    }
    m->callers = callers->version;
    auth_set_callers(m->options.auth, callers->keys, callers->n_keys);
    mem_free(callers);
}

static void pull_callers_if_newer(struct member *m, uint64_t newest)
{
    if (newest <= m->callers || m->is_pulling_callers || !auth_has_keys(m->options.auth) ||
        m->options.join.role == NODE_ATTENTION)
        return;
    buf_reset(&m->message);
    m->is_pulling_callers = call(m, CLUSTER_CALLERS, PULL_DEADLINE_NS, on_callers, NULL) == 0;
}

/* A pull that fails is repeated after the next heartbeat. */
static void pull_if_newer(struct member *m, uint64_t newest)
{
    if (newest <= m->pulled || m->is_pulling || m->options.join.role == NODE_CONTEXT)
        return;
    int rc;
    if (m->options.join.role == NODE_EXPERT) {
        wire_holdings_request_encode(&(struct wire_holdings_request){m->joined.node_id},
                                     &m->message);
        rc = call(m, CLUSTER_HOLDINGS, PULL_DEADLINE_NS, on_holdings, NULL);
    } else {
        buf_reset(&m->message);
        rc = call(m, CLUSTER_TABLE, PULL_DEADLINE_NS, on_table, NULL);
    }
    m->is_pulling = rc == 0;
}

/* ---- Heartbeats ------------------------------------------------------------------- */

static void on_heartbeat(void *ud, const struct reply *r)
{
    struct member *m = ud;
    m->n_heartbeats--;
    if (!is_of_this_membership(m, r))
        return;
    if (r->code == E_NOT_FOUND || r->code == E_PRECONDITION) {
        lose(m, "the coordinator does not know this node");
        return;
    }
    struct wire_heartbeat_reply reply;
    /* It is there and does not lead: somebody else does, or it will again in a moment. */
    if (r->code == E_UNAVAILABLE && m->n_endpoints > 1 && channel_is_connected(m->channel)) {
        lose(m, r->text);
        m->is_unanswered = true;
        return;
    }
    if (r->code < 0 || wire_heartbeat_reply_decode(r->message, &reply, NULL) < 0)
        return; /* the lease decides */
    m->heard_ns = clock_now_ns();
    pull_if_newer(m, m->options.join.role == NODE_EXPERT ? reply.holdings_version : reply.epoch);
    pull_callers_if_newer(m, reply.callers_version);
    if (m->options.on_orders)
        m->options.on_orders(m->options.ud, &reply);
}

static void send_heartbeat(struct member *m)
{
    int64_t now_ns = clock_now_ns();
    m->next_heartbeat_ns = now_ns + m->joined.heartbeat_ms * CLOCK_MS;
    set_timer(m, m->next_heartbeat_ns);
    if (m->n_heartbeats == MEMBER_MAX_HEARTBEATS)
        return;
    struct wire_heartbeat h = {.node_id = m->joined.node_id,
                               .incarnation = m->options.join.incarnation,
                               .state = m->report.state,
                               .epoch = m->report.epoch,
                               .holdings_version = m->report.holdings_version,
                               .experts_held = m->report.experts_held,
                               .experts_wanted = m->report.experts_wanted,
                               .held_bytes = m->report.held_bytes,
                               .tested = m->report.tested,
                               .kv_pages = m->report.kv_pages,
                               .n_broken = m->report.n_broken};
    memcpy(h.broken, m->report.broken, sizeof h.broken);
    wire_heartbeat_encode(&h, &m->message);
    if (call(m, CLUSTER_HEARTBEAT, m->joined.lease_ms * CLOCK_MS, on_heartbeat, NULL) == 0)
        m->n_heartbeats++;
}

void member_report(struct member *m, const struct member_report *r)
{
    must_own(m);
    bool is_urgent = r->state != m->report.state || r->epoch != m->report.epoch ||
                     r->holdings_version != m->report.holdings_version ||
                     r->tested != m->report.tested || r->kv_pages != m->report.kv_pages ||
                     r->n_broken != m->report.n_broken ||
                     memcmp(r->broken, m->report.broken, sizeof r->broken) != 0;
    m->report = *r;
    if (is_urgent && m->phase == JOINED)
        send_heartbeat(m);
}

bool member_is_connected(const struct member *m)
{
    return channel_is_connected(m->channel);
}

static void on_load_taken(void *ud, const struct reply *r)
{
    (void)ud, (void)r; /* counts that got lost are no loss */
}

void member_send_load(struct member *m, uint32_t n_layers, uint32_t n_experts,
                      const uint16_t *counts)
{
    must_own(m);
    if (m->phase != JOINED)
        return;
    struct wire_load l = {.node_id = m->joined.node_id,
                          .incarnation = m->options.join.incarnation,
                          .n_layers = n_layers,
                          .n_experts = n_experts,
                          .counts = counts};
    struct blob *payload = NULL;
    wire_load_encode(&l, &m->message, &payload);
    struct call c = {.method = wire_method(WIRE_CLUSTER, CLUSTER_LOAD),
                     .message = &m->message,
                     .payloads = &payload,
                     .n_payloads = 1,
                     .deadline_ns = clock_now_ns() + PULL_DEADLINE_NS,
                     .done = on_load_taken,
                     .ud = m};
    channel_call(m->channel, &c, NULL);
    blob_unref(&payload);
}

/* ---- Joining ---------------------------------------------------------------------- */

static bool is_for_good(int code)
{
    return code == E_PRECONDITION || code == E_DENIED || code == E_INVALID ||
           code == E_UNIMPLEMENTED || code == E_UNAUTHENTICATED;
}

static void refuse(struct member *m, const struct reply *r)
{
    struct err e = {0};
    err_set(&e, r->code, "the coordinator at %s refuses this node: %s", m->endpoint, r->text);
    log_error("member.refused", "coordinator=%s why=%s", log_quote(m->endpoint).text,
              log_quote(r->text).text);
    m->phase = REFUSED;
    set_timer(m, CLOCK_NEVER);
    if (m->options.on_refused)
        m->options.on_refused(m->options.ud, &e);
}

/* The same again, as with two coordinators of which none leads, is said now and then. */
static void say_waiting(struct member *m, const char *why)
{
    int64_t now_ns = clock_now_ns();
    if (m->said_ns && now_ns - m->said_ns < SAY_AGAIN_NS)
        return;
    m->said_ns = now_ns;
    log_warn("member.waiting", "coordinator=%s why=%s", log_quote(m->endpoint).text,
             log_quote(why).text);
}

static void try_later(struct member *m, const char *why)
{
    say_waiting(m, why);
    int64_t wait_ns = with_jitter(m, m->backoff_ns);
    m->backoff_ns = m->backoff_ns * 2 < BACKOFF_MOST_NS ? m->backoff_ns * 2 : BACKOFF_MOST_NS;
    go_away(m, wait_ns);
}

/* It stands by, and none of the others is there: it will lead soon, so it is asked again at once
 * rather than after another round of dials. */
static bool stays(struct member *m)
{
    m->backoff_ns = BACKOFF_FIRST_NS;
    if (m->n_silent >= m->n_endpoints - 1 && channel_is_connected(m->channel) &&
        ++m->n_stays <= MEMBER_MAX_STAYS)
        return true;
    m->n_silent = m->n_stays = 0;
    return false;
}

static void on_join(void *ud, const struct reply *r)
{
    struct member *m = ud;
    if (m->phase != JOINING)
        return;
    if (is_for_good(r->code)) {
        refuse(m, r);
        return;
    }
    struct err e = {0};
    struct wire_join_reply reply;
    if (r->code < 0 || wire_join_reply_decode(r->message, &reply, &e) < 0) {
        m->is_unanswered = r->code == E_DEADLINE || (r->code == E_UNAVAILABLE && !stays(m));
        try_later(m, r->code < 0 ? r->text : e.text);
        return;
    }
    m->phase = JOINED;
    m->said_ns = 0;
    m->joined = reply;
    m->backoff_ns = BACKOFF_FIRST_NS;
    m->heard_ns = clock_now_ns();
    m->pulled = m->callers = 0;
    m->is_pulling = m->is_pulling_callers = false;
    log_info("member.joined", "coordinator=%s node_id=%u epoch=%llu heartbeat_ms=%u lease_ms=%u",
             log_quote(m->endpoint).text, reply.node_id, (unsigned long long)reply.epoch,
             reply.heartbeat_ms, reply.lease_ms);
    send_heartbeat(m);
}

static void join(struct member *m)
{
    wire_join_encode(&m->options.join, &m->message);
    if (channel_is_connected(m->channel) &&
        call(m, CLUSTER_JOIN, JOIN_DEADLINE_NS, on_join, &m->join_call) == 0) {
        m->phase = JOINING;
        set_timer(m, CLOCK_NEVER); /* the call's deadline is set */
        return;
    }
    if (clock_now_ns() - m->dialled_ns >= DIAL_NEXT_NS) {
        m->n_silent++;
        dial_next(m);
    }
    set_timer(m, clock_now_ns() + with_jitter(m, DIAL_POLL_NS));
}

/* With a standby one need not wait for the lease. */
static bool has_left_us(const struct member *m, int64_t now_ns)
{
    return m->n_endpoints > 1 && !channel_is_connected(m->channel) &&
           now_ns - m->heard_ns > patience_ns(m);
}

/* A pause of our own (a stopped process, a stalled host) is nobody's silence. */
static void forgive_pause(struct member *m, int64_t now_ns)
{
    int64_t late_ns = now_ns - m->next_heartbeat_ns;
    if (late_ns > 0)
        m->heard_ns = m->heard_ns + late_ns < now_ns ? m->heard_ns + late_ns : now_ns;
}

static void on_timer(void *ud, int64_t now_ns)
{
    struct member *m = ud;
    if (m->phase == JOINED)
        forgive_pause(m, now_ns);
    /* Connected, and yet it did not take us: frozen, perhaps. */
    if (m->phase == AWAY && m->is_unanswered)
        dial_next(m);
    m->is_unanswered = false;
    if (m->phase == AWAY)
        join(m);
    else if (m->phase == JOINED && now_ns - m->heard_ns > m->joined.lease_ms * CLOCK_MS)
        lose(m, "no heartbeat was answered for a lease");
    else if (m->phase == JOINED && has_left_us(m, now_ns))
        lose(m, "the connection is broken, and there are others to ask");
    else if (m->phase == JOINED)
        send_heartbeat(m);
}

static void free_member(struct member *m)
{
    for (int i = 0; i < m->n_endpoints; i++)
        mem_free(m->endpoints[i]);
    buf_fini(&m->message);
    mem_free(m);
}

/* "A,B": each must be one that can be dialled. */
static int read_endpoints(struct member *m, const char *list, struct err *e)
{
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        struct endpoint parsed;
        if (m->n_endpoints == MEMBER_MAX_ENDPOINTS)
            return err_set(e, E_INVALID, "more than %d endpoints", MEMBER_MAX_ENDPOINTS);
        char *one = str_copy((struct str){at, strcspn(at, ",")});
        m->endpoints[m->n_endpoints++] = one;
        int rc = endpoint_parse(one, LINK_CLIENT, &parsed, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int member_open(struct loop *l, const struct member_options *o, struct member **out, struct err *e)
{
    *out = NULL;
    struct member *m = mem_alloc(sizeof(*m));
    owner_take(&m->owner);
    m->loop = l;
    m->options = *o;
    m->options.coordinator_endpoint = NULL; /* the caller's again */
    int rc = read_endpoints(m, o->coordinator_endpoint, e);
    if (rc == 0)
        rc = dial(m, 0, e);
    if (rc < 0) {
        free_member(m);
        return rc;
    }
    m->rng = rng_seed(rng_entropy());
    while (m->options.join.incarnation == 0)
        m->options.join.incarnation = rng_next(&m->rng);
    m->options.join.protocol_version = POLYMATH_PROTOCOL_VERSION;
    snprintf(m->options.join.public_key, KEY_TEXT_BYTES, "%s", auth_public_key(o->auth));
    m->backoff_ns = BACKOFF_FIRST_NS;
    m->timer = (struct loop_timer){.cb = on_timer, .ud = m};
    go_away(m, 0);
    *out = m;
    return 0;
}

static void on_leave(void *ud, const struct reply *r)
{
    (void)r;
    struct member *m = ud;
    m->has_left = true;
}

static void leave(struct member *m, const char *reason)
{
    struct wire_leave l = {.node_id = m->joined.node_id,
                           .incarnation = m->options.join.incarnation};
    snprintf(l.reason, sizeof(l.reason), "%s", reason ? reason : "");
    wire_leave_encode(&l, &m->message);
    m->phase = LEAVING;
    int64_t deadline_ns = clock_now_ns() + LEAVE_DEADLINE_NS;
    if (call(m, CLUSTER_LEAVE, LEAVE_DEADLINE_NS, on_leave, NULL) < 0)
        return;
    while (!m->has_left && clock_now_ns() < deadline_ns)
        channel_wait(&m->channel, 1, -1, deadline_ns, 0);
}

void member_close(struct member **member, const char *reason)
{
    struct member *m = *member;
    if (!m)
        return;
    *member = NULL;
    must_own(m);
    if (m->phase == JOINED)
        leave(m, reason);
    m->phase = LEAVING;
    channel_close(&m->channel);
    loop_remove_timer(m->loop, &m->timer);
    free_member(m);
}

uint32_t member_node_id(const struct member *m)
{
    return m->joined.node_id;
}
