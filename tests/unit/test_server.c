/* tests/unit/test_server.c - what a server does with what it should not get, and with what
 * nobody asks for twice.  Clients here are bare links: they can send what a channel cannot. */
#include "rpc/server.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/version.h"
#include "rpc/wire.h"
#include "tests/lib/test.h"
#include "tests/unit/rpc_echo.h"

#define PATIENCE_NS (20 * CLOCK_S)

static struct link *dial(const char *endpoint)
{
    struct link_options o = {.role = LINK_CLIENT, .endpoint = endpoint, .high_water = 1000};
    struct link *l = NULL;
    struct err e = {0};
    if (link_open(&o, &l, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (link_next_event(l) != LINK_CONNECTED && clock_now_ns() < deadline_ns)
        link_wait(&l, 1, -1, deadline_ns, 0);
    CHECK(link_is_connected(l));
    return l;
}

static void send_frames(struct link *l, const struct frame *frames, int n)
{
    CHECK_INT(link_send(l, &(struct link_send){.frames = frames, .n_frames = n}), 0);
}

/* A call with `n_more` frames "echo" after its header. */
static void send_call(struct link *l, const struct wire_call_header *h, int n_more)
{
    struct buf header = {0};
    wire_call_header_encode(h, &header);
    struct frame frames[LINK_MAX_FRAMES] = {{header.data, header.len}};
    for (int i = 0; i < n_more; i++)
        frames[1 + i] = (struct frame){"echo", 4};
    send_frames(l, frames, 1 + n_more);
    buf_fini(&header);
}

static struct wire_call_header call_header(uint64_t id, const char *method)
{
    struct wire_call_header h = {.version = POLYMATH_PROTOCOL_VERSION, .call_id = id};
    snprintf(h.method, sizeof(h.method), "%s", method);
    return h;
}

/* The next reply's header; its message goes into `message` if not NULL. */
static struct wire_reply_header receive(struct link *l, struct buf *message)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    struct message m;
    int rc;
    while ((rc = link_receive(l, &m)) == E_AGAIN && clock_now_ns() < deadline_ns)
        link_wait(&l, 1, -1, deadline_ns, 0);
    CHECK_INT(rc, 0);
    CHECK(m.n_frames >= 2);
    struct wire_reply_header h;
    struct str frame = {m.frames[0].data, m.frames[0].size_bytes};
    CHECK_INT(wire_reply_header_decode(frame, &h, NULL), 0);
    if (message) {
        buf_reset(message);
        buf_append(message, m.frames[1].data, m.frames[1].size_bytes);
    }
    message_fini(&m);
    return h;
}

static const char *forward(void)
{
    return wire_method(WIRE_EXPERT, EXPERT_FORWARD);
}

/* The server still answers; id is fresh. */
static void check_alive(struct link *l, uint64_t id)
{
    struct wire_call_header call = call_header(id, forward());
    send_call(l, &call, 1);
    struct wire_reply_header h = receive(l, NULL);
    CHECK_INT(h.call_id, id);
    CHECK_INT(h.code, 0);
    CHECK(h.flags & WIRE_FLAG_LAST);
}

TEST(server_answers_what_it_cannot_do)
{
    struct rpc_echo *server = rpc_echo_start("inproc://server", 0);
    struct link *l = dial("inproc://server");
    static const char *const unknown[] = {"polymath.v1.Expert/Backward", "polymath.v1.Expert", "",
                                          "polymath.v1.Cluster/Join",
                                          "polymath.v1.Expert/Describe"};
    for (int i = 0; i < 5; i++) {
        struct wire_call_header call = call_header(10 + (uint64_t)i, unknown[i]);
        send_call(l, &call, 1);
        struct wire_reply_header h = receive(l, NULL);
        CHECK_INT(h.call_id, 10 + i);
        CHECK_INT(h.code, E_UNIMPLEMENTED);
        CHECK_HAS(h.text, unknown[i]);
    }
    struct wire_call_header call = call_header(20, forward());
    call.version = POLYMATH_PROTOCOL_VERSION + 1;
    send_call(l, &call, 1);
    struct wire_reply_header h = receive(l, NULL);
    CHECK_INT(h.code, E_PRECONDITION);
    char named[32];
    snprintf(named, sizeof(named), "version %d", POLYMATH_PROTOCOL_VERSION + 1);
    CHECK_HAS(h.text, named);
    check_alive(l, 21);
    CHECK_INT(rpc_echo_counters(server).unknown_methods, 5);
    CHECK_INT(rpc_echo_counters(server).calls, 1);
    link_close(&l);
    rpc_echo_stop(&server);
}

TEST(server_answers_bad_frames_where_a_call_can_be_read)
{
    struct rpc_echo *server = rpc_echo_start("tcp://127.0.0.1:0", 0);
    struct link *l = dial(rpc_echo_endpoint(server));
    struct wire_call_header call = call_header(5, forward());
    send_call(l, &call, 0); /* no message */
    CHECK_INT(receive(l, NULL).code, E_INVALID);
    call.call_id = 6;
    send_call(l, &call, 2 + SERVER_MAX_PAYLOADS);
    CHECK_INT(receive(l, NULL).code, E_INVALID);

    /* A method name that is too long: the call id in front of it can still be read. */
    struct buf header = {0};
    call.call_id = 7;
    call.method[0] = '\0';
    wire_call_header_encode(&call, &header);
    buf_append(&header, "\x1a\x7f", 2); /* field 3, 127 bytes */
    for (int i = 0; i < 127; i++)
        buf_putc(&header, 'm');
    struct frame frames[2] = {{header.data, header.len}, {"echo", 4}};
    send_frames(l, frames, 2);
    struct wire_reply_header h = receive(l, NULL);
    CHECK_INT(h.call_id, 7);
    CHECK_INT(h.code, E_INVALID);
    CHECK_HAS(h.text, "method");

    /* Call id 0, an empty frame, and garbage: nobody to answer. */
    call = call_header(0, forward());
    send_call(l, &call, 1);
    frames[0] = (struct frame){"", 0};
    send_frames(l, frames, 2);
    struct rng rng = test_rng();
    char garbage[64];
    for (int i = 0; i < 200; i++) {
        for (size_t k = 0; k < sizeof(garbage); k++)
            garbage[k] = (char)rng_next(&rng);
        garbage[0] = '\x0f'; /* field 1 of wire type 7: valid nowhere */
        frames[0] = (struct frame){garbage, (size_t)rng_below(&rng, sizeof(garbage)) + 1};
        send_frames(l, frames, 2);
    }
    check_alive(l, 8);
    CHECK_INT(rpc_echo_counters(server).bad_frames, 205);
    CHECK_INT(rpc_echo_counters(server).calls, 1);
    buf_fini(&header);
    link_close(&l);
    rpc_echo_stop(&server);
}

TEST(server_drops_only_the_sender_of_an_oversized_frame)
{
    struct rpc_echo *server = rpc_echo_start("ipc://server.sock", 4096);
    struct link *bad = dial("ipc://server.sock"), *good = dial("ipc://server.sock");
    static const char large[5000];
    struct frame frame = {large, sizeof(large)};
    send_frames(bad, &frame, 1);
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (link_next_event(bad) != LINK_DISCONNECTED && clock_now_ns() < deadline_ns)
        link_wait(&bad, 1, -1, deadline_ns, 0);
    check_alive(good, 1);
    CHECK_INT(link_next_event(good), LINK_NOTHING);
    link_close(&bad);
    link_close(&good);
    rpc_echo_stop(&server);
}

TEST(server_is_busy_beyond_its_calls)
{
    struct server_options o = {
        .endpoint = "inproc://few", .name = "few", .max_calls = 2, .max_peer_calls = 2};
    struct server *s = NULL;
    CHECK_INT(server_open(&o, &s, NULL), 0);
    struct link *l = dial("inproc://few");
    struct wire_call_header call = call_header(1, wire_method(WIRE_HEALTH, HEALTH_WATCH));
    for (; call.call_id <= 3; call.call_id++)
        send_call(l, &call, 1);
    server_process(s, clock_now_ns());
    CHECK_INT(receive(l, NULL).flags, WIRE_FLAG_STREAM);
    CHECK_INT(receive(l, NULL).flags, WIRE_FLAG_STREAM);
    struct wire_reply_header h = receive(l, NULL);
    CHECK_INT(h.call_id, 3);
    CHECK_INT(h.code, E_BUSY);
    /* A cancelled watch gives its place back. */
    call = call_header(1, "");
    call.flags = WIRE_FLAG_CANCEL;
    send_call(l, &call, 0);
    server_process(s, clock_now_ns());
    call = call_header(4, wire_method(WIRE_HEALTH, HEALTH_CHECK));
    send_call(l, &call, 1);
    server_process(s, clock_now_ns());
    struct buf message = {0};
    h = receive(l, &message);
    CHECK_INT(h.call_id, 4);
    CHECK_INT(h.code, 0);
    struct wire_health health;
    CHECK_INT(wire_health_decode(buf_str(&message), &health, NULL), 0);
    CHECK(!health.serving); /* until it is told */
    server_close(&s);
    h = receive(l, NULL);
    CHECK_INT(h.call_id, 2);
    CHECK_INT(h.code, E_UNAVAILABLE);
    buf_fini(&message);
    link_close(&l);
}

TEST(server_lists_what_it_answers)
{
    struct rpc_echo *server = rpc_echo_start("inproc://server", 0);
    struct link *l = dial("inproc://server");
    struct wire_call_header call = call_header(1, wire_method(WIRE_REFLECTION, REFLECTION_LIST));
    send_call(l, &call, 1);
    struct buf message = {0};
    CHECK_INT(receive(l, &message).code, 0);
    static struct wire_listing listing;
    CHECK_INT(wire_listing_decode(buf_str(&message), &listing, NULL), 0);
    CHECK_INT(listing.n_methods, 4);
    CHECK_STR(listing.methods[0], "polymath.v1.Expert/Forward");
    CHECK_STR(listing.methods[1], "polymath.v1.Health/Check");
    CHECK_STR(listing.methods[2], "polymath.v1.Health/Watch");
    CHECK_STR(listing.methods[3], "polymath.v1.Reflection/List");
    buf_fini(&message);
    link_close(&l);
    rpc_echo_stop(&server);
}

/* Keeps the one call it gets. */
struct keeper {
    struct server_call *call;
    int64_t deadline_ns, received_ns;
};

static void keep(void *ud, struct server_call *call, const struct server_request *r)
{
    struct keeper *k = ud;
    k->call = call;
    k->deadline_ns = r->deadline_ns;
    k->received_ns = r->received_ns;
}

TEST(server_puts_deadlines_on_its_own_clock)
{
    struct server_options o = {.endpoint = "inproc://clock", .name = "clock"};
    struct server *s = NULL;
    struct keeper k = {.call = NULL};
    CHECK_INT(server_open(&o, &s, NULL), 0);
    server_handler *const handlers[EXPERT_METHODS] = {keep};
    server_add(s, WIRE_EXPERT, handlers, &k);
    struct link *l = dial("inproc://clock");
    static const struct {
        uint64_t left_us;
        int64_t want_ns;
    } cases[] = {{0, CLOCK_NEVER},
                 {1, 1000 + 1000},
                 {5000000, 1000 + 5 * CLOCK_S},
                 {UINT64_MAX, CLOCK_NEVER},
                 {INT64_MAX / 1000, CLOCK_NEVER}};
    for (uint64_t i = 0; i < 5; i++) {
        struct wire_call_header call = call_header(i + 1, forward());
        call.deadline_us = cases[i].left_us;
        send_call(l, &call, 1);
        server_process(s, 1000);
        CHECK_INT(k.deadline_ns, cases[i].want_ns);
        CHECK_INT(k.received_ns, 1000);
        /* 1000 ns after the clock's start is long ago. */
        CHECK(server_call_is_cancelled(k.call) == (cases[i].want_ns != CLOCK_NEVER));
        server_fail(&k.call, E_DEADLINE, "case %d", (int)i);
        CHECK(!k.call);
        CHECK_INT(receive(l, NULL).code, E_DEADLINE);
    }
    link_close(&l);
    server_close(&s);
}

TEST(server_drops_and_counts_answers_to_peers_that_are_gone)
{
    struct server_options o = {.endpoint = "ipc://gone.sock", .name = "gone"};
    struct server *s = NULL;
    struct keeper k = {.call = NULL};
    CHECK_INT(server_open(&o, &s, NULL), 0);
    server_handler *const handlers[EXPERT_METHODS] = {keep};
    server_add(s, WIRE_EXPERT, handlers, &k);
    struct link *l = dial("ipc://gone.sock"), *server_side = server_link(s);
    struct wire_call_header call = call_header(1, wire_method(WIRE_HEALTH, HEALTH_WATCH));
    send_call(l, &call, 1);
    call = call_header(2, forward());
    send_call(l, &call, 1);
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (!k.call && clock_now_ns() < deadline_ns) {
        link_wait(&server_side, 1, -1, deadline_ns, 0);
        server_process(s, clock_now_ns());
    }
    CHECK(k.call);
    link_close(&l);
    /* The ROUTER hears of it a moment later; each change tells the watcher. */
    struct server_counters n = {0};
    for (bool serving = true; n.dropped_answers == 0 && clock_now_ns() < deadline_ns;
         serving = !serving) {
        server_set_serving(s, serving);
        server_count(s, &n);
    }
    CHECK(n.dropped_answers > 0);
    server_reply(&k.call, &(struct server_answer){.message = NULL});
    CHECK(!k.call);
    struct server_counters after;
    server_count(s, &after);
    CHECK(after.dropped_answers > n.dropped_answers);
    server_close(&s);
}
