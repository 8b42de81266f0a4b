/* rpc/io_threads.c - see io_threads.h. */
#include "rpc/io_threads.h"

#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>

#include "base/clock.h"
#include "base/cpus.h"

enum { CPUS_FOR_EACH = 2, MOST_THREADS = 4 };

static _Atomic int64_t the_spin_ns;
static struct {
    _Atomic int64_t ready, spun, slept;
} counters;

int io_threads_wanted(int n_cpus)
{
    int n = n_cpus / CPUS_FOR_EACH;
    return n < 1 ? 1 : n > MOST_THREADS ? MOST_THREADS : n;
}

void io_threads_spin(int64_t spin_ns)
{
    atomic_store_explicit(&the_spin_ns, cpus_are_own() ? spin_ns : 0, memory_order_relaxed);
}

void io_threads_count(struct io_threads_counters *out)
{
    out->ready = atomic_load_explicit(&counters.ready, memory_order_relaxed);
    out->spun = atomic_load_explicit(&counters.spun, memory_order_relaxed);
    out->slept = atomic_load_explicit(&counters.slept, memory_order_relaxed);
}

static void count(_Atomic int64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* By the name that libzmq gives them before they wait for the first time.  The first of them has most
 * or all connections of a process with few, and its place is beside the thread that waits for them,
 * which is pinned to the first CPU where CPUs are our own: woken by a thread of the same CPU it needs a
 * switch instead of an interrupt and an idle CPU's sleep. */
static bool is_io_thread(void)
{
    static _Thread_local enum { UNKNOWN, IO_THREAD, OTHER } kind;
    if (kind == UNKNOWN) {
        char name[16] = "";
        (void)prctl(PR_GET_NAME, name, 0, 0, 0);
        kind = strncmp(name, "ZMQbg/IO", 8) == 0 ? IO_THREAD : OTHER;
        if (strcmp(name, "ZMQbg/IO/0") == 0 && cpus_are_own())
            cpus_pin_thread(0);
    }
    return kind == IO_THREAD;
}

/* As epoll_wait().  libzmq's timers stay on time: what was spent looking is taken off the sleep. */
static int look_and_sleep(int fd, struct epoll_event *events, int n_events, int timeout_ms,
                          int64_t spin_ns)
{
    int n = epoll_pwait(fd, events, n_events, 0, NULL);
    if (n != 0 || timeout_ms == 0) {
        count(&counters.ready);
        return n;
    }
    int64_t now_ns = clock_now_ns();
    int64_t deadline_ns = timeout_ms < 0 ? CLOCK_NEVER : now_ns + timeout_ms * CLOCK_MS;
    int64_t until_ns = spin_ns < deadline_ns - now_ns ? now_ns + spin_ns : deadline_ns;
    while (now_ns < until_ns) {
        /* Who waits for the message often looks for it on the same CPU (link_wait()). */
        sched_yield();
        n = epoll_pwait(fd, events, n_events, 0, NULL);
        if (n != 0) {
            count(&counters.spun);
            return n;
        }
        now_ns = clock_now_ns();
    }
    count(&counters.slept);
    if (timeout_ms > 0)
        timeout_ms = clock_left_ms(deadline_ns, now_ns, INT_MAX);
    return epoll_pwait(fd, events, n_events, timeout_ms, NULL);
}

/* In front of the C library's, for every caller in the process.  The sanitizers watch
 * epoll_pwait(), too, so they miss nothing. */
int epoll_wait(int fd, struct epoll_event *events, int n_events, int timeout_ms)
{
    int64_t spin_ns = is_io_thread() ? atomic_load_explicit(&the_spin_ns, memory_order_relaxed) : 0;
    if (spin_ns > 0)
        return look_and_sleep(fd, events, n_events, timeout_ms, spin_ns);
    return epoll_pwait(fd, events, n_events, timeout_ms, NULL);
}
