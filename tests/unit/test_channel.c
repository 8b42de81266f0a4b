/* tests/unit/test_channel.c - calls over real links: every call ends exactly once. */
#include "rpc/channel.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "rpc/loop.h"
#include "rpc/wire.h"
#include "tests/lib/test.h"
#include "tests/unit/rpc_echo.h"

/* Long, because sanitizers on a busy machine are slow; only failures wait for it. */
#define PATIENCE_NS (20 * CLOCK_S)

static const char *const endpoints[] = {"inproc://echo", "ipc://echo.sock", "tcp://127.0.0.1:0"};
enum { N_ENDPOINTS = 3 };

/* What became of a call. */
struct outcome {
    int n_items, n_ends, code;
    char text[256], message[256];
    struct blob *payload;
    uint64_t queue_us, compute_us;
};

static void note(void *ud, const struct reply *r)
{
    struct outcome *o = ud;
    o->n_items += !r->last;
    o->n_ends += r->last;
    o->code = r->code;
    snprintf(o->text, sizeof(o->text), "%s", r->text);
    snprintf(o->message, sizeof(o->message), "%.*s", (int)r->message.len,
             r->message.ptr ? r->message.ptr : "");
    if (r->n_payloads > 0) {
        blob_unref(&o->payload);
        o->payload = blob_copy(r->payloads[0].data, r->payloads[0].size_bytes);
    }
    o->queue_us = r->queue_us;
    o->compute_us = r->compute_us;
}

static struct channel *dial(const char *endpoint, int max_calls)
{
    struct channel_options o = {
        .endpoint = endpoint, .peer_name = "echo-0", .max_calls = max_calls};
    struct channel *c = NULL;
    struct err e = {0};
    if (channel_open(&o, &c, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return c;
}

static void wait_connected(struct channel *c)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (!channel_is_connected(c) && clock_now_ns() < deadline_ns)
        channel_wait(&c, 1, -1, deadline_ns, 0);
    CHECK(channel_is_connected(c));
}

static int start(struct channel *c, const char *text, struct outcome *o, int64_t for_ns,
                 uint64_t *id)
{
    struct buf message = {0};
    buf_puts(&message, text);
    struct call call = {.method = wire_method(WIRE_EXPERT, EXPERT_FORWARD),
                        .message = &message,
                        .deadline_ns = clock_now_ns() + for_ns,
                        .done = note,
                        .ud = o};
    int rc = channel_call(c, &call, id);
    buf_fini(&message);
    return rc;
}

static void wait_end(struct channel *c, const struct outcome *o)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (o->n_ends == 0 && clock_now_ns() < deadline_ns)
        channel_wait(&c, 1, -1, deadline_ns, 0);
    CHECK_INT(o->n_ends, 1);
}

/* One call and its end. */
static struct outcome ask(struct channel *c, const char *text)
{
    struct outcome o = {0};
    CHECK_INT(start(c, text, &o, PATIENCE_NS, NULL), 0);
    wait_end(c, &o);
    return o;
}

TEST(channel_carries_a_call_over_every_transport)
{
    for (int i = 0; i < N_ENDPOINTS; i++) {
        struct rpc_echo *server = rpc_echo_start(endpoints[i], 0);
        struct channel *c = dial(rpc_echo_endpoint(server), 0);
        wait_connected(c);
        struct outcome o = ask(c, "echo this");
        CHECK_INT(o.code, 0);
        CHECK_STR(o.message, "echo this");
        CHECK_INT(o.queue_us, 3);
        CHECK_INT(o.compute_us, 4);
        o = ask(c, "fail");
        CHECK_INT(o.code, E_PRECONDITION);
        CHECK_STR(o.text, "as you wished");
        channel_close(&c);
        rpc_echo_stop(&server);
    }
}

static void note_metadata(void *ud, const struct reply *r)
{
    struct buf *seen = ud;
    CHECK_INT(r->code, 0);
    for (int i = 0; i < r->n_metadata; i++)
        buf_printf(seen, "%s=%s;", r->metadata[i].key, r->metadata[i].value);
}

TEST(channel_carries_metadata_both_ways)
{
    struct rpc_echo *e = rpc_echo_start("ipc://echo.sock", 0);
    struct channel *c = dial(rpc_echo_endpoint(e), 0);
    wait_connected(c);
    const struct wire_metadata metadata[] = {{"tenant", "a"}, {"note", "\xc3\xa9t\xc3\xa9"}};
    struct buf message = {0}, seen = {0};
    buf_puts(&message, "echo");
    struct call call = {.method = wire_method(WIRE_EXPERT, EXPERT_FORWARD),
                        .message = &message,
                        .deadline_ns = clock_now_ns() + PATIENCE_NS,
                        .n_metadata = 2,
                        .metadata = metadata,
                        .done = note_metadata,
                        .ud = &seen};
    CHECK_INT(channel_call(c, &call, NULL), 0);
    while (seen.len == 0 && clock_now_ns() < call.deadline_ns)
        channel_wait(&c, 1, -1, call.deadline_ns, 0);
    CHECK_STR(seen.data, "tenant=a;note=\xc3\xa9t\xc3\xa9;");
    channel_close(&c);
    rpc_echo_stop(&e);
    buf_fini(&message);
    buf_fini(&seen);
}

TEST(channel_refuses_calls_before_it_is_connected)
{
    struct channel *c = dial("ipc://nobody.sock", 0);
    struct outcome o = {0};
    CHECK_INT(start(c, "echo", &o, PATIENCE_NS, NULL), E_UNAVAILABLE);
    CHECK_INT(o.n_ends, 0);
    struct rpc_echo *server = rpc_echo_start("ipc://nobody.sock", 0);
    wait_connected(c); /* it dials for ever */
    CHECK_STR(ask(c, "echo").message, "echo");
    channel_close(&c);
    rpc_echo_stop(&server);
}

static void count_release(struct blob *b, void *ud)
{
    _Atomic int *n = ud;
    mem_free(b->data);
    mem_free(b);
    (*n)++;
}

static struct blob *counted_blob(size_t bytes, uint64_t seed, _Atomic int *n_released)
{
    struct blob *b = mem_alloc(sizeof(*b));
    b->references = 1;
    b->size_bytes = bytes;
    b->data = mem_aligned(bytes);
    b->release = count_release;
    b->ud = n_released;
    struct rng r = rng_seed(seed);
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)b->data)[i] = (uint8_t)rng_next(&r);
    return b;
}

TEST(channel_payloads_arrive_bit_exact_and_are_let_go)
{
    static const size_t sizes[] = {0, 1, 33, 6144, 1 << 20};
    static _Atomic int n_released;
    for (int i = 0; i < N_ENDPOINTS; i++) {
        struct rpc_echo *server = rpc_echo_start(endpoints[i], 0);
        struct channel *c = dial(rpc_echo_endpoint(server), 0);
        wait_connected(c);
        n_released = 0;
        for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
            struct blob *b = counted_blob(sizes[k], test_seed() + k, &n_released);
            struct blob *same = counted_blob(sizes[k], test_seed() + k, &n_released);
            struct outcome o = {0};
            struct buf message = {0};
            buf_puts(&message, "echo");
            struct call call = {.method = wire_method(WIRE_EXPERT, EXPERT_FORWARD),
                                .message = &message,
                                .payloads = &b,
                                .n_payloads = 1,
                                .deadline_ns = clock_now_ns() + PATIENCE_NS,
                                .done = note,
                                .ud = &o};
            CHECK_INT(channel_call(c, &call, NULL), 0);
            blob_unref(&b); /* the channel keeps its own reference */
            wait_end(c, &o);
            CHECK_INT(o.code, 0);
            CHECK_INT(o.payload->size_bytes, sizes[k]);
            CHECK_BYTES(o.payload->data, same->data, sizes[k]);
            blob_unref(&o.payload);
            blob_unref(&same);
            buf_fini(&message);
        }
        channel_close(&c);
        rpc_echo_stop(&server);
        /* The last reference may be dropped by libzmq's thread a moment later. */
        int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
        while (n_released < 10 && clock_now_ns() < deadline_ns)
            clock_sleep_until(clock_now_ns() + CLOCK_MS);
        CHECK_INT(n_released, 10);
    }
}

TEST(channel_ends_a_call_at_its_deadline_and_drops_the_late_reply)
{
    struct rpc_echo *server = rpc_echo_start("tcp://127.0.0.1:0", 0);
    struct channel *c = dial(rpc_echo_endpoint(server), 0);
    wait_connected(c);
    struct outcome held = {0};
    int64_t before_ns = clock_now_ns();
    CHECK_INT(start(c, "hold", &held, 50 * CLOCK_MS, NULL), 0);
    CHECK(channel_deadline_ns(c) >= before_ns + 50 * CLOCK_MS);
    wait_end(c, &held);
    CHECK_INT(held.code, E_DEADLINE);
    CHECK_HAS(held.text, "echo-0");
    CHECK(clock_now_ns() >= before_ns + 50 * CLOCK_MS);
    CHECK_INT(channel_deadline_ns(c), CLOCK_NEVER);
    CHECK_STR(ask(c, "release").message, "released");
    struct channel_counters n;
    channel_count(c, &n);
    CHECK_INT(n.late_replies, 1); /* it came before "released" */
    CHECK_INT(n.calls, 2);
    CHECK_INT(n.replies, 1);
    CHECK_INT(n.failures, 1);
    CHECK_INT(held.n_ends, 1);
    channel_close(&c);
    rpc_echo_stop(&server);
}

TEST(channel_cancel_ends_the_call_now_and_tells_the_server)
{
    struct rpc_echo *server = rpc_echo_start("ipc://echo.sock", 0);
    struct channel *c = dial(rpc_echo_endpoint(server), 0);
    wait_connected(c);
    struct outcome kept = {0}, cancelled = {0};
    uint64_t id = 0;
    CHECK_INT(start(c, "hold", &kept, PATIENCE_NS, NULL), 0);
    CHECK_INT(start(c, "hold", &cancelled, PATIENCE_NS, &id), 0);
    channel_cancel(c, id);
    CHECK_INT(cancelled.n_ends, 1);
    CHECK_INT(cancelled.code, E_CANCELLED);
    channel_cancel(c, id); /* no call any more */
    CHECK_INT(cancelled.n_ends, 1);
    CHECK_STR(ask(c, "held").message, "2 cancelled 1");
    CHECK_STR(ask(c, "release").message, "released");
    wait_end(c, &kept);
    CHECK_STR(kept.message, "late");
    struct channel_counters n;
    channel_count(c, &n);
    CHECK_INT(n.late_replies, 0); /* the server did not answer what was cancelled */
    channel_close(&c);
    rpc_echo_stop(&server);
}

TEST(channel_ends_open_calls_when_the_connection_breaks)
{
    for (int i = 1; i < N_ENDPOINTS; i++) {
        struct rpc_echo *server = rpc_echo_start(endpoints[i], 0);
        struct channel *c = dial(rpc_echo_endpoint(server), 0);
        wait_connected(c);
        struct outcome o[3] = {0};
        for (int k = 0; k < 3; k++)
            CHECK_INT(start(c, "hold", &o[k], PATIENCE_NS, NULL), 0);
        CHECK_STR(ask(c, "held").message, "3 cancelled 0");
        rpc_echo_stop(&server);
        for (int k = 0; k < 3; k++) {
            wait_end(c, &o[k]);
            CHECK_INT(o[k].code, E_UNAVAILABLE);
        }
        int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
        while (channel_is_connected(c) && clock_now_ns() < deadline_ns)
            channel_wait(&c, 1, -1, deadline_ns, 0);
        CHECK_INT(start(c, "echo", &o[0], PATIENCE_NS, NULL), E_UNAVAILABLE);
        channel_close(&c);
    }
}

TEST(channel_comes_back_when_the_server_does)
{
    struct rpc_echo *server = rpc_echo_start("ipc://echo.sock", 0);
    struct channel *c = dial("ipc://echo.sock", 0);
    wait_connected(c);
    rpc_echo_stop(&server);
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (channel_is_connected(c) && clock_now_ns() < deadline_ns)
        channel_wait(&c, 1, -1, deadline_ns, 0);
    CHECK(!channel_is_connected(c));
    server = rpc_echo_start("ipc://echo.sock", 0);
    wait_connected(c);
    CHECK_STR(ask(c, "echo again").message, "echo again");
    channel_close(&c);
    rpc_echo_stop(&server);
}

TEST(channel_close_cancels_what_is_open)
{
    struct rpc_echo *server = rpc_echo_start("inproc://echo", 0);
    struct channel *c = dial("inproc://echo", 2);
    struct outcome a = {0}, b = {0}, over = {0};
    CHECK_INT(start(c, "hold", &a, PATIENCE_NS, NULL), 0);
    CHECK_INT(start(c, "hold", &b, PATIENCE_NS, NULL), 0);
    CHECK_INT(start(c, "hold", &over, PATIENCE_NS, NULL), E_BUSY);
    channel_close(&c);
    CHECK(!c);
    CHECK_INT(a.n_ends + b.n_ends + over.n_ends, 2);
    CHECK_INT(a.code, E_CANCELLED);
    rpc_echo_stop(&server);
}

/* Issues the next call from inside the callback, until `left` is used up. */
struct chain {
    struct channel *channel;
    uint64_t victim; /* cancelled from inside the first callback */
    int left, n_done;
};

static void next_in_chain(void *ud, const struct reply *r)
{
    struct chain *chain = ud;
    CHECK_INT(r->code, 0);
    chain->n_done++;
    channel_cancel(chain->channel, chain->victim);
    chain->victim = 0;
    if (chain->left-- == 0)
        return;
    struct call call = {.method = wire_method(WIRE_EXPERT, EXPERT_FORWARD),
                        .deadline_ns = clock_now_ns() + PATIENCE_NS,
                        .done = next_in_chain,
                        .ud = chain};
    CHECK_INT(channel_call(chain->channel, &call, NULL), 0);
}

TEST(channel_callbacks_may_call_and_cancel)
{
    struct rpc_echo *server = rpc_echo_start("inproc://echo", 0);
    struct channel *c = dial("inproc://echo", 2); /* the second slot is used again each time */
    struct outcome victim = {0};
    struct chain chain = {.channel = c, .left = 20};
    CHECK_INT(start(c, "hold", &victim, PATIENCE_NS, &chain.victim), 0);
    struct call call = {.method = wire_method(WIRE_EXPERT, EXPERT_FORWARD),
                        .deadline_ns = clock_now_ns() + PATIENCE_NS,
                        .done = next_in_chain,
                        .ud = &chain};
    CHECK_INT(channel_call(c, &call, NULL), 0);
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (chain.n_done < 21 && clock_now_ns() < deadline_ns)
        channel_wait(&c, 1, -1, deadline_ns, 0);
    CHECK_INT(chain.n_done, 21);
    CHECK_INT(victim.code, E_CANCELLED);
    channel_close(&c);
    rpc_echo_stop(&server);
}

static void close_inside(void *ud, const struct reply *r)
{
    (void)r;
    channel_close(ud);
}

static void close_in_callback(void *ud)
{
    (void)ud;
    struct channel *c = dial("inproc://nobody", 0);
    struct call call = {.method = "x", .deadline_ns = 1, .done = close_inside, .ud = &c};
    CHECK_INT(channel_call(c, &call, NULL), 0);
    channel_process(c, clock_now_ns());
}

TEST(channel_closed_in_its_own_callback_is_our_bug)
{
    struct test_end end = test_run_apart(close_in_callback, NULL);
    CHECK_HAS(end.output, "c->depth == 0");
    CHECK(end.signal != 0 || end.exit_status != 0);
}

TEST(channel_keeps_a_thousand_calls_in_flight)
{
    enum { N = 1000 };
    static struct outcome o[N];
    for (int i = 0; i < N_ENDPOINTS; i++) {
        memset(o, 0, sizeof(o));
        struct rpc_echo *server = rpc_echo_start(endpoints[i], 0);
        struct channel *c = dial(rpc_echo_endpoint(server), N);
        wait_connected(c);
        char text[32];
        for (int k = 0; k < N; k++) {
            snprintf(text, sizeof(text), "echo %d", k);
            CHECK_INT(start(c, text, &o[k], PATIENCE_NS, NULL), 0);
        }
        for (int k = 0; k < N; k++) {
            wait_end(c, &o[k]);
            snprintf(text, sizeof(text), "echo %d", k);
            CHECK_INT(o[k].code, 0);
            CHECK_STR(o[k].message, text);
        }
        channel_close(&c);
        rpc_echo_stop(&server);
    }
}

TEST(channel_streams_health_until_it_is_cancelled)
{
    struct rpc_echo *server = rpc_echo_start("tcp://127.0.0.1:0", 0);
    struct channel *c = dial(rpc_echo_endpoint(server), 0);
    wait_connected(c);
    struct outcome o = {0};
    uint64_t id = 0;
    struct call call = {.method = wire_method(WIRE_HEALTH, HEALTH_WATCH),
                        .deadline_ns = CLOCK_NEVER,
                        .stream = true,
                        .done = note,
                        .ud = &o};
    CHECK_INT(channel_call(c, &call, &id), 0);
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    struct wire_health health;
    for (int n = 1; n <= 3; n++) {
        while (o.n_items < n && clock_now_ns() < deadline_ns)
            channel_wait(&c, 1, -1, deadline_ns, 0);
        CHECK_INT(o.n_items, n);
        CHECK_INT(o.n_ends, 0);
        CHECK_INT(wire_health_decode(str_of(o.message), &health, NULL), 0);
        CHECK(health.serving == (n == 2));
        rpc_echo_set_serving(server, n == 1);
    }
    channel_cancel(c, id);
    CHECK_INT(o.n_ends, 1);
    CHECK_INT(o.code, E_CANCELLED);
    channel_close(&c);
    rpc_echo_stop(&server);
}

TEST(channel_on_a_loop_ends_calls_without_being_asked)
{
    struct rpc_echo *server = rpc_echo_start("ipc://echo.sock", 0);
    struct loop *l = NULL;
    CHECK_INT(loop_open(&l, NULL), 0);
    struct channel *c = dial("ipc://echo.sock", 0);
    channel_attach(c, l);
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (!channel_is_connected(c) && clock_now_ns() < deadline_ns)
        loop_turn(l, deadline_ns);
    struct outcome o = {0}, late = {0};
    CHECK_INT(start(c, "echo", &o, PATIENCE_NS, NULL), 0);
    CHECK_INT(start(c, "hold", &late, 30 * CLOCK_MS, NULL), 0);
    while (late.n_ends + o.n_ends < 2 && clock_now_ns() < deadline_ns)
        loop_turn(l, CLOCK_NEVER);
    CHECK_STR(o.message, "echo");
    CHECK_INT(late.code, E_DEADLINE);
    channel_close(&c); /* leaves the loop by itself */
    loop_close(&l);
    rpc_echo_stop(&server);
}
