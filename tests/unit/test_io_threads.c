/* tests/unit/test_io_threads.c - how libzmq's I/O threads wait: the system's way until they are told
 * to look first, and then for no longer than that. */
#include "rpc/io_threads.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/err.h"
#include "base/thread.h"
#include "rpc/link.h"
#include "tests/lib/test.h"

#define PATIENCE_NS (20 * CLOCK_S)

static struct io_threads_counters counters(void)
{
    struct io_threads_counters c;
    io_threads_count(&c);
    return c;
}

/* One epoll_wait() by a thread of that name, for an event that is there or not. */
struct one_wait {
    bool has_event;
    int timeout_ms, rc;
    int64_t took_ns;
    struct epoll_event event;
};

static void wait_once(struct thread *t, void *arg)
{
    struct one_wait *w = arg;
    int fd = eventfd(w->has_event, EFD_CLOEXEC), set = epoll_create1(EPOLL_CLOEXEC);
    CHECK(fd >= 0 && set >= 0);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 17};
    CHECK_INT(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event), 0);
    int64_t begun_ns = clock_now_ns();
    w->rc = epoll_wait(set, &w->event, 1, w->timeout_ms);
    w->took_ns = clock_now_ns() - begun_ns;
    close(set);
    close(fd);
    thread_ready(t, 0, NULL);
}

static struct one_wait wait_as(const char *name, bool has_event, int timeout_ms)
{
    struct one_wait w = {.has_event = has_event, .timeout_ms = timeout_ms};
    struct thread *t = NULL;
    struct err e = {0};
    CHECK_INT(thread_start(name, wait_once, &w, &t, &e), 0);
    thread_stop(&t, NULL, NULL);
    CHECK_INT(w.rc, has_event);
    CHECK_INT((int)w.event.data.u64, has_event ? 17 : 0);
    CHECK(has_event || w.took_ns >= timeout_ms * CLOCK_MS);
    return w;
}

TEST(io_threads_are_one_for_every_two_cpus)
{
    CHECK_INT(io_threads_wanted(1), 1);
    CHECK_INT(io_threads_wanted(3), 1);
    CHECK_INT(io_threads_wanted(4), 2);
    CHECK_INT(io_threads_wanted(8), 4);
    CHECK_INT(io_threads_wanted(192), 4);
}

TEST(io_threads_sleep_at_once_where_cpus_are_not_their_own)
{
    struct io_threads_counters before = counters();
    /* CPUs that others have, too: nobody waits busily. */
    io_threads_spin(5 * CLOCK_MS);
    wait_as("ZMQbg/IO/9", true, 0);
    wait_as("ZMQbg/IO/9", true, -1);
    wait_as("ZMQbg/IO/9", false, 2);
    struct io_threads_counters after = counters();
    CHECK_INT(after.ready + after.spun + after.slept, before.ready + before.spun + before.slept);
}

TEST(io_threads_that_spin_wait_as_long_as_they_are_asked_to)
{
    CHECK_INT(cpus_take("all", NULL), 0);
    io_threads_spin(5 * CLOCK_MS);
    struct io_threads_counters before = counters();
    wait_as("ZMQbg/IO/9", true, -1);
    wait_as("ZMQbg/IO/9", false, 0);
    CHECK_INT(counters().ready, before.ready + 2);
    /* Looking first, then asleep; and a timeout that ends before the looking does. */
    wait_as("ZMQbg/IO/9", false, 20);
    wait_as("ZMQbg/IO/9", false, 1);
    CHECK_INT(counters().slept, before.slept + 2);
    /* Nobody else's waits are touched. */
    struct io_threads_counters after = counters();
    wait_as("ZMQbg/Reaper", false, 2);
    wait_as("main", true, -1);
    io_threads_spin(0);
    CHECK_INT(counters().ready, after.ready);
    CHECK_INT(counters().slept, after.slept);
}

static struct link *open_link(enum link_role role, const char *endpoint)
{
    struct link_options o = {.role = role, .endpoint = endpoint};
    struct link *l = NULL;
    struct err e = {0};
    if (link_open(&o, &l, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return l;
}

static void wait_connected(struct link *l)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (link_next_event(l) == LINK_NOTHING && clock_now_ns() < deadline_ns)
        link_wait(&l, 1, -1, deadline_ns, 0);
    CHECK(link_is_connected(l));
}

/* libzmq's own threads: if a libzmq to come no longer called epoll_wait() by name, or named its
 * threads otherwise, this would say so. */
TEST(io_threads_of_libzmq_spin_for_messages_and_then_sleep)
{
    CHECK_INT(cpus_take("all", NULL), 0);
    struct link *server = open_link(LINK_SERVER, "ipc://io.sock");
    struct link *client = open_link(LINK_CLIENT, "ipc://io.sock");
    wait_connected(client);
    struct io_threads_counters before = counters();
    io_threads_spin(1 * CLOCK_MS);
    struct frame frame = {"hello", 5};
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    int rc = E_AGAIN;
    struct message m = {0};
    CHECK_INT(link_send(client, &(struct link_send){.frames = &frame, .n_frames = 1}), 0);
    while (rc == E_AGAIN && clock_now_ns() < deadline_ns) {
        link_wait(&server, 1, -1, deadline_ns, 1 * CLOCK_MS);
        rc = link_receive(server, &m);
    }
    CHECK_INT(rc, 0);
    CHECK_INT((int)m.frames[0].size_bytes, 5);
    message_fini(&m);
    /* Nothing comes any more, so it sleeps. */
    while (counters().slept == before.slept && clock_now_ns() < deadline_ns)
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
    CHECK(counters().slept > before.slept);
    io_threads_spin(0);
    link_close(&client);
    link_close(&server);
}
