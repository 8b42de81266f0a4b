/* tests/unit/test_member.c - a node and a coordinator made of handlers, on one loop. */
#include "rpc/member.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/version.h"
#include "rpc/server.h"
#include "tests/lib/test.h"

#define PATIENCE_NS (20 * CLOCK_S)

/* What the coordinator does and what it has seen; what the member has told. */
struct stage {
    struct loop *loop;
    struct server *server;
    struct member *member;
    int join_code; /* refuse with this */
    bool is_deaf, has_forgotten;
    uint64_t newest;
    uint32_t next_node_id, heartbeat_ms, lease_ms;
    int n_joins, n_heartbeats, n_pulls, n_leaves;
    struct wire_join join;
    struct wire_heartbeat heartbeat;
    struct wire_leave leave;
    int n_taken, n_refused;
    struct wire_heartbeat_reply orders, obeyed; /* what is added to replies; what came */
    uint64_t taken;
    struct err refused;
};

static void send_message(struct server_call *call, struct buf *message, struct blob *payload)
{
    struct server_answer a = {
        .message = message, .payloads = &payload, .n_payloads = payload != NULL};
    server_reply(&call, &a);
    blob_unref(&payload);
    buf_fini(message);
}

static void on_join(void *ud, struct server_call *call, const struct server_request *r)
{
    struct stage *s = ud;
    s->n_joins++;
    CHECK_INT(wire_join_decode(r->message, &s->join, NULL), 0);
    if (s->join_code) {
        server_fail(&call, s->join_code, "because");
        return;
    }
    s->has_forgotten = false;
    struct wire_join_reply reply = {.node_id = ++s->next_node_id,
                                    .epoch = 0,
                                    .heartbeat_ms = s->heartbeat_ms,
                                    .lease_ms = s->lease_ms};
    struct buf message = {0};
    wire_join_reply_encode(&reply, &message);
    send_message(call, &message, NULL);
}

static void on_heartbeat(void *ud, struct server_call *call, const struct server_request *r)
{
    struct stage *s = ud;
    s->n_heartbeats++;
    CHECK_INT(wire_heartbeat_decode(r->message, &s->heartbeat, NULL), 0);
    if (s->is_deaf)
        return; /* never answers: the call stays open */
    if (s->has_forgotten) {
        server_fail(&call, E_NOT_FOUND, "who are you");
        return;
    }
    CHECK_INT(s->heartbeat.node_id, s->next_node_id);
    struct buf message = {0};
    s->orders.epoch = s->orders.holdings_version = s->newest;
    wire_heartbeat_reply_encode(&s->orders, &message);
    send_message(call, &message, NULL);
}

static void on_holdings(void *ud, struct server_call *call, const struct server_request *r)
{
    struct stage *s = ud;
    struct wire_holdings_request request;
    CHECK_INT(wire_holdings_request_decode(r->message, &request, NULL), 0);
    CHECK_INT(request.node_id, s->next_node_id);
    if (s->n_pulls++ == 0) {
        server_fail(&call, E_UNAVAILABLE, "not yet"); /* it must ask again */
        return;
    }
    uint8_t bitmap[2 * 2] = {1, 2, 3, 1};
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_holdings_encode(&(struct wire_holdings){s->newest, 2, 9, bitmap}, &message, &payload);
    send_message(call, &message, payload);
}

static void on_table(void *ud, struct server_call *call, const struct server_request *r)
{
    (void)r;
    struct stage *s = ud;
    s->n_pulls++;
    uint16_t holder[2] = {0, WIRE_NO_HOLDER};
    struct wire_table_node node = {.node_id = 7, .name = "e", .endpoint = "ipc://e"};
    struct buf message = {0};
    struct blob *payload = NULL;
    struct wire_table table = {s->newest, 1, 2, 1, 1, &node, holder, 0, NULL};
    wire_table_encode(&table, &message, &payload);
    send_message(call, &message, payload);
}

static void on_leave(void *ud, struct server_call *call, const struct server_request *r)
{
    struct stage *s = ud;
    s->n_leaves++;
    CHECK_INT(wire_leave_decode(r->message, &s->leave, NULL), 0);
    struct buf message = {0};
    send_message(call, &message, NULL);
}

static void open_server(struct stage *s, const char *endpoint)
{
    struct server_options o = {.endpoint = endpoint, .name = "coordinator"};
    struct err e = {0};
    if (server_open(&o, &s->server, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    server_handler *const handlers[CLUSTER_METHODS] = {on_join, on_heartbeat, on_holdings, on_table,
                                                       on_leave};
    server_add(s->server, WIRE_CLUSTER, handlers, s);
    server_attach(s->server, s->loop);
}

static void take_holdings(void *ud, const struct wire_holdings *h)
{
    struct stage *s = ud;
    s->n_taken++;
    s->taken = h->version;
    CHECK_INT(h->n_layers, 2);
    CHECK_INT(h->n_experts, 9);
    CHECK_INT(h->bitmap[2], 3);
}

static void take_table(void *ud, const struct wire_table *t)
{
    struct stage *s = ud;
    s->n_taken++;
    s->taken = t->epoch;
    CHECK_INT(t->n_nodes, 1);
    CHECK_INT(t->nodes[0].node_id, 7);
    CHECK_INT(t->holders[1], WIRE_NO_HOLDER);
}

static void obey(void *ud, const struct wire_heartbeat_reply *r)
{
    struct stage *s = ud;
    s->obeyed = *r;
}

static void be_refused(void *ud, const struct err *e)
{
    struct stage *s = ud;
    s->n_refused++;
    s->refused = *e;
}

static void open_stage(struct stage *s, const char *endpoint, enum node_role role)
{
    CHECK_INT(loop_open(&s->loop, NULL), 0);
    s->heartbeat_ms = s->heartbeat_ms ? s->heartbeat_ms : 5;
    s->lease_ms = s->lease_ms ? s->lease_ms : 10000;
    struct member_options o = {.coordinator_endpoint = endpoint,
                               .join = {.role = role, .name = "n-0", .endpoint = "ipc://n-0"},
                               .on_holdings = take_holdings,
                               .on_table = take_table,
                               .on_orders = obey,
                               .on_refused = be_refused,
                               .ud = s};
    struct err e = {0};
    if (member_open(s->loop, &o, &s->member, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

static void close_stage(struct stage *s)
{
    member_close(&s->member, "test over");
    server_close(&s->server);
    loop_close(&s->loop);
}

#define TURN_UNTIL(s, condition) \
    do { \
        int64_t deadline_ns_ = clock_now_ns() + PATIENCE_NS; \
        while (!(condition) && clock_now_ns() < deadline_ns_) \
            loop_turn((s)->loop, deadline_ns_); \
        CHECK(condition); \
    } while (0)

TEST(member_joins_and_pulls_what_is_new_until_it_has_it)
{
    struct stage s = {.newest = 3};
    open_stage(&s, "inproc://coordinator", NODE_EXPERT);
    open_server(&s, "inproc://coordinator");
    CHECK_INT(member_node_id(s.member), 0);
    TURN_UNTIL(&s, s.n_taken == 1);
    CHECK_INT(member_node_id(s.member), 1);
    CHECK_INT(s.taken, 3);
    CHECK_INT(s.n_pulls, 2); /* the first one failed */
    CHECK_INT(s.join.protocol_version, POLYMATH_PROTOCOL_VERSION);
    CHECK_STR(s.join.name, "n-0");
    CHECK(s.join.incarnation != 0);
    int n = s.n_heartbeats;
    TURN_UNTIL(&s, s.n_heartbeats >= n + 3);
    CHECK_INT(s.n_taken, 1);
    s.newest = 4;
    TURN_UNTIL(&s, s.n_taken == 2);
    CHECK_INT(s.taken, 4);
    CHECK_INT(s.n_joins, 1);
    close_stage(&s);
}

TEST(member_of_the_attention_side_pulls_the_table)
{
    struct stage s = {.newest = 9};
    open_stage(&s, "ipc://coordinator.sock", NODE_ATTENTION);
    open_server(&s, "ipc://coordinator.sock"); /* the coordinator comes second */
    TURN_UNTIL(&s, s.n_taken == 1);
    CHECK_INT(s.taken, 9);
    close_stage(&s);
}

/* It holds nothing that a table or holdings could speak of. */
TEST(member_of_a_context_node_pulls_nothing)
{
    struct stage s = {.newest = 9, .heartbeat_ms = 5, .lease_ms = 60000};
    open_stage(&s, "inproc://coordinator", NODE_CONTEXT);
    open_server(&s, "inproc://coordinator");
    member_report(s.member, &(struct member_report){.state = NODE_READY, .kv_pages = 12});
    TURN_UNTIL(&s, s.n_heartbeats >= 5);
    CHECK_INT(s.heartbeat.state, NODE_READY);
    CHECK_INT(s.heartbeat.kv_pages, 12);
    CHECK_INT(s.join.role, NODE_CONTEXT);
    CHECK_INT(s.n_pulls, 0);
    close_stage(&s);
}

TEST(member_reports_changes_at_once)
{
    struct stage s = {.heartbeat_ms = 1000000, .lease_ms = 2000000};
    open_stage(&s, "inproc://coordinator", NODE_EXPERT);
    open_server(&s, "inproc://coordinator");
    TURN_UNTIL(&s, s.n_heartbeats == 1); /* the next one would be due in 17 minutes */
    CHECK_INT(s.heartbeat.state, NODE_JOINING);
    struct member_report r = {.state = NODE_LOADING, .experts_wanted = 5};
    member_report(s.member, &r);
    TURN_UNTIL(&s, s.n_heartbeats == 2);
    CHECK_INT(s.heartbeat.state, NODE_LOADING);
    CHECK_INT(s.heartbeat.experts_wanted, 5);
    r.experts_held = 3; /* no news that cannot wait */
    member_report(s.member, &r);
    r.holdings_version = 8;
    member_report(s.member, &r);
    TURN_UNTIL(&s, s.n_heartbeats == 3);
    CHECK_INT(s.heartbeat.holdings_version, 8);
    CHECK_INT(s.heartbeat.experts_held, 3);
    close_stage(&s);
}

TEST(member_hands_on_what_the_coordinator_orders)
{
    struct stage s = {.newest = 3};
    open_stage(&s, "inproc://coordinator", NODE_EXPERT);
    open_server(&s, "inproc://coordinator");
    TURN_UNTIL(&s, s.n_heartbeats > 2);
    CHECK(!s.obeyed.drain && !s.obeyed.may_leave);
    s.orders = (struct wire_heartbeat_reply){.drain = true, .restart = true, .test = 9};
    TURN_UNTIL(&s, s.obeyed.drain);
    CHECK(s.obeyed.restart && s.obeyed.test == 9 && !s.obeyed.may_leave);
    member_report(s.member, &(struct member_report){.state = NODE_DRAINING, .tested = 9});
    TURN_UNTIL(&s, s.heartbeat.tested == 9);
    CHECK_INT(s.heartbeat.state, NODE_DRAINING);
    s.orders.may_leave = true;
    TURN_UNTIL(&s, s.obeyed.may_leave);
    close_stage(&s);
}

TEST(member_joins_again_when_it_is_forgotten)
{
    struct stage s = {.newest = 3, .n_pulls = 1};
    open_stage(&s, "inproc://coordinator", NODE_EXPERT);
    open_server(&s, "inproc://coordinator");
    TURN_UNTIL(&s, s.n_taken == 1);
    uint64_t incarnation = s.join.incarnation;
    s.newest = 1; /* the new coordinator counts from the beginning */
    s.has_forgotten = true;
    TURN_UNTIL(&s, s.n_taken == 2);
    CHECK_INT(s.n_joins, 2);
    CHECK_INT(s.taken, 1);
    CHECK_INT(member_node_id(s.member), 2);
    CHECK(s.join.incarnation == incarnation);
    close_stage(&s);
}

TEST(member_joins_again_when_nobody_answers_for_a_lease)
{
    struct stage s = {.heartbeat_ms = 10, .lease_ms = 60};
    open_stage(&s, "inproc://coordinator", NODE_EXPERT);
    open_server(&s, "inproc://coordinator");
    TURN_UNTIL(&s, s.n_heartbeats >= 2);
    CHECK_INT(s.n_joins, 1);
    s.is_deaf = true;
    TURN_UNTIL(&s, s.n_joins == 2);
    s.is_deaf = false;
    TURN_UNTIL(&s, s.heartbeat.node_id == 2);
    close_stage(&s);
}

TEST(member_that_stood_still_itself_blames_nobody)
{
    struct stage s = {.heartbeat_ms = 10, .lease_ms = 60};
    open_stage(&s, "inproc://coordinator", NODE_EXPERT);
    open_server(&s, "inproc://coordinator");
    for (int i = 1; i <= 3; i++) {
        int n = s.n_heartbeats;
        TURN_UNTIL(&s, s.n_heartbeats >= n + i);
        clock_sleep_until(clock_now_ns() + 150 * CLOCK_MS);
    }
    TURN_UNTIL(&s, s.n_heartbeats >= 10);
    CHECK_INT(s.n_joins, 1);
    close_stage(&s);
}

TEST(member_survives_a_coordinator_that_goes_and_comes_back)
{
    struct stage s = {.newest = 3, .n_pulls = 1, .heartbeat_ms = 20, .lease_ms = 100};
    open_stage(&s, "ipc://coordinator.sock", NODE_EXPERT);
    open_server(&s, "ipc://coordinator.sock");
    TURN_UNTIL(&s, s.n_taken == 1);
    server_close(&s.server);
    TURN_UNTIL(&s, member_node_id(s.member) == 0);
    open_server(&s, "ipc://coordinator.sock");
    TURN_UNTIL(&s, s.n_taken == 2);
    CHECK_INT(s.n_joins, 2);
    close_stage(&s);
}

/* Of several coordinators one leads; when it is gone, the next. */
TEST(member_goes_on_to_the_next_coordinator)
{
    struct stage s = {.newest = 3, .n_pulls = 1, .heartbeat_ms = 20, .lease_ms = 10000};
    open_stage(&s, "ipc://first.sock,ipc://second.sock,ipc://third.sock", NODE_EXPERT);
    open_server(&s, "ipc://second.sock");
    TURN_UNTIL(&s, s.n_taken == 1);
    server_close(&s.server);
    /* Long before its lease is over. */
    open_server(&s, "ipc://first.sock");
    TURN_UNTIL(&s, s.n_taken == 2);
    CHECK_INT(s.n_joins, 2);
    close_stage(&s);
}

TEST(member_refuses_what_cannot_be_dialled)
{
    static const char one_too_many[] =
        "ipc://1,ipc://2,ipc://3,ipc://4,ipc://5,ipc://6,ipc://7,ipc://8,ipc://9";
    static const char *const bad[] = {"ipc://a.sock,", "ipc://a.sock,carrier-pigeon://home",
                                      "tcp://127.0.0.1:0", one_too_many};
    struct loop *loop = NULL;
    CHECK_INT(loop_open(&loop, NULL), 0);
    for (int i = 0; i < 4; i++) {
        struct member_options o = {.coordinator_endpoint = bad[i]};
        struct member *m = NULL;
        struct err e = {0};
        CHECK_INT(member_open(loop, &o, &m, &e), E_INVALID);
        CHECK(m == NULL && e.text[0]);
    }
    loop_close(&loop);
}

TEST(member_that_is_refused_for_good_says_so_once)
{
    static const int for_good[] = {E_PRECONDITION, E_DENIED, E_INVALID, E_UNIMPLEMENTED};
    for (int i = 0; i < 4; i++) {
        struct stage s = {.join_code = for_good[i]};
        open_stage(&s, "inproc://coordinator", NODE_EXPERT);
        open_server(&s, "inproc://coordinator");
        TURN_UNTIL(&s, s.n_refused > 0);
        loop_turn(s.loop, clock_now_ns() + 5 * CLOCK_MS);
        CHECK_INT(s.n_refused, 1);
        CHECK_INT(s.n_joins, 1);
        CHECK_INT(s.refused.code, for_good[i]);
        CHECK_HAS(s.refused.text, "because");
        close_stage(&s);
    }
}

TEST(member_waits_for_a_name_and_for_a_coordinator_in_trouble)
{
    static const int for_now[] = {E_EXISTS, E_UNAVAILABLE, E_BUSY};
    for (int i = 0; i < 3; i++) {
        struct stage s = {.join_code = for_now[i]};
        open_stage(&s, "inproc://coordinator", NODE_EXPERT);
        open_server(&s, "inproc://coordinator");
        TURN_UNTIL(&s, s.n_joins == 2);
        s.join_code = 0;
        TURN_UNTIL(&s, member_node_id(s.member) != 0);
        CHECK_INT(s.n_refused, 0);
        close_stage(&s);
    }
}

TEST(member_says_leave)
{
    struct stage s = {.lease_ms = 100000};
    open_stage(&s, "inproc://coordinator", NODE_EXPERT);
    open_server(&s, "inproc://coordinator");
    TURN_UNTIL(&s, member_node_id(s.member) != 0);
    /* Nobody turns the coordinator's loop while the member closes, so it gives up in time. */
    int64_t before_ns = clock_now_ns();
    member_close(&s.member, "stopping for a reason");
    CHECK(clock_now_ns() - before_ns >= 150 * CLOCK_MS);
    CHECK(clock_now_ns() - before_ns < PATIENCE_NS);
    TURN_UNTIL(&s, s.n_leaves == 1);
    CHECK_STR(s.leave.reason, "stopping for a reason");
    CHECK_INT(s.leave.node_id, 1);
    CHECK(s.leave.incarnation == s.join.incarnation);
    close_stage(&s);
}
