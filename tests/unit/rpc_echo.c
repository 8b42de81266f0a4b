/* tests/unit/rpc_echo.c - the server in a thread that the tests of rpc/ talk to. */
#include "tests/unit/rpc_echo.h"

#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "rpc/loop.h"
#include "tests/lib/test.h"

enum { MAX_HELD = 64 };

struct rpc_echo {
    struct thread *thread;
    struct server_options options;
    int wake_fd;
    atomic_bool wants_serving, wants_count;
    atomic_int counted;
    struct server_counters counters;
    /* The server's thread only. */
    struct server *server;
    struct loop *loop;
    struct server_call *held[MAX_HELD];
    int n_held;
    bool is_serving;
    char endpoint[LINK_ENDPOINT_BYTES];
};

static void answer(struct server_call *call, const char *text)
{
    struct buf message = {0};
    buf_puts(&message, text);
    server_reply(&call, &(struct server_answer){.message = &message});
    buf_fini(&message);
}

static void echo(struct server_call *call, const struct server_request *r)
{
    struct buf message = {0};
    struct blob *payloads[SERVER_MAX_PAYLOADS];
    buf_append_str(&message, r->message);
    for (int i = 0; i < r->n_payloads; i++)
        payloads[i] = blob_copy(r->payloads[i].data, r->payloads[i].size_bytes);
    server_reply(&call, &(struct server_answer){.message = &message,
                                                .payloads = payloads,
                                                .n_payloads = r->n_payloads,
                                                .queue_us = 3,
                                                .compute_us = 4,
                                                .n_metadata = r->n_metadata,
                                                .metadata = r->metadata});
    for (int i = 0; i < r->n_payloads; i++)
        blob_unref(&payloads[i]);
    buf_fini(&message);
}

static void forward(void *ud, struct server_call *call, const struct server_request *r)
{
    struct rpc_echo *e = ud;
    if (str_has_prefix(r->message, STR("fail"))) {
        server_fail(&call, E_PRECONDITION, "as you wished");
    } else if (str_has_prefix(r->message, STR("hold")) && e->n_held < MAX_HELD) {
        e->held[e->n_held++] = call;
    } else if (str_has_prefix(r->message, STR("release"))) {
        for (int i = 0; i < e->n_held; i++)
            answer(e->held[i], "late");
        e->n_held = 0;
        answer(call, "released");
    } else if (str_has_prefix(r->message, STR("held"))) {
        int n_cancelled = 0;
        for (int i = 0; i < e->n_held; i++)
            n_cancelled += server_call_is_cancelled(e->held[i]);
        char text[64];
        snprintf(text, sizeof(text), "%d cancelled %d", e->n_held, n_cancelled);
        answer(call, text);
    } else {
        echo(call, r);
    }
}

static void on_wake(void *ud, int64_t now_ns)
{
    (void)now_ns;
    struct rpc_echo *e = ud;
    eventfd_t value;
    (void)eventfd_read(e->wake_fd, &value);
    bool wants = atomic_load(&e->wants_serving);
    if (wants != e->is_serving)
        server_set_serving(e->server, wants);
    e->is_serving = wants;
    if (atomic_exchange(&e->wants_count, false)) {
        server_count(e->server, &e->counters);
        atomic_fetch_add(&e->counted, 1);
    }
}

static void echo_main(struct thread *t, void *arg)
{
    struct rpc_echo *e = arg;
    struct err why = {0};
    int rc = server_open(&e->options, &e->server, &why);
    if (rc < 0) {
        thread_ready(t, rc, &why);
        return;
    }
    server_handler *const handlers[EXPERT_METHODS] = {[EXPERT_FORWARD] = forward};
    server_add(e->server, WIRE_EXPERT, handlers, e);
    must_zero(loop_open(&e->loop, &why));
    server_attach(e->server, e->loop);
    loop_add_fd(e->loop, e->wake_fd, on_wake, e);
    snprintf(e->endpoint, sizeof(e->endpoint), "%s", server_endpoint(e->server));
    thread_ready(t, 0, NULL);
    while (!thread_should_stop(t))
        loop_turn(e->loop, CLOCK_NEVER);
    server_count(e->server, &e->counters);
    server_close(&e->server);
    loop_close(&e->loop);
}

static struct rpc_echo *start(const struct server_options *o)
{
    struct rpc_echo *e = mem_alloc(sizeof(*e));
    e->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    e->options = *o;
    struct err why = {0};
    if (thread_start("echo", echo_main, e, &e->thread, &why) < 0)
        test_fail(__FILE__, __LINE__, "%s", why.text);
    return e;
}

struct rpc_echo *rpc_echo_start(const char *endpoint, size_t max_frame_bytes)
{
    struct server_options o = {.endpoint = endpoint,
                               .name = "echo",
                               .max_frame_bytes = max_frame_bytes,
                               .max_calls = 1000,
                               .max_peer_calls = 1000};
    return start(&o);
}

struct rpc_echo *rpc_echo_start_with(const char *endpoint, struct auth *auth, int max_peer_calls)
{
    struct server_options o = {
        .endpoint = endpoint, .name = "echo", .auth = auth, .max_peer_calls = max_peer_calls};
    return start(&o);
}

static void wake(void *ud)
{
    struct rpc_echo *e = ud;
    (void)eventfd_write(e->wake_fd, 1);
}

void rpc_echo_stop(struct rpc_echo **echo_server)
{
    struct rpc_echo *e = *echo_server;
    *echo_server = NULL;
    thread_stop(&e->thread, wake, e);
    close(e->wake_fd);
    mem_free(e);
}

const char *rpc_echo_endpoint(const struct rpc_echo *e)
{
    return e->endpoint;
}

void rpc_echo_set_serving(struct rpc_echo *e, bool serving)
{
    atomic_store(&e->wants_serving, serving);
    wake(e);
}

struct server_counters rpc_echo_counters(struct rpc_echo *e)
{
    int before = atomic_load(&e->counted);
    atomic_store(&e->wants_count, true);
    wake(e);
    while (atomic_load(&e->counted) == before)
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
    return e->counters;
}
