/* tests/unit/test_thread.c - the handshake at both ends of a thread's life, and owners. */
#include "base/thread.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/must.h"
#include "base/queue.h"
#include "tests/lib/test.h"

struct room {
    struct queue *q;
    int made, n_popped; /* plain: the handshakes order them, and tsan checks that */
    char name[16];
    bool is_term_blocked, is_segv_blocked;
    struct owner owner;
};

static void room_main(struct thread *t, void *arg)
{
    struct room *r = arg;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    r->is_term_blocked = sigismember(&mask, SIGTERM);
    r->is_segv_blocked = sigismember(&mask, SIGSEGV);
    pthread_getname_np(pthread_self(), r->name, sizeof(r->name));
    owner_take(&r->owner);
    r->made = 42;
    thread_ready(t, 0, NULL);
    while (!thread_should_stop(t))
        if (queue_pop_wait(r->q, CLOCK_NEVER))
            r->n_popped++;
}

static void wake_room(void *ud)
{
    static int token;
    void *item = &token;
    must_zero(queue_push(ud, &item));
}

TEST(thread_start_waits_until_ready_and_stop_joins)
{
    struct room r = {.q = queue_new(1)};
    struct thread *t = NULL;
    struct err e = {0};
    CHECK_INT(thread_start("a-rather-long-name", room_main, &r, &t, &e), 0);
    CHECK_INT(r.made, 42);
    CHECK_STR(r.name, "a-rather-long-n");
    CHECK(r.is_term_blocked && !r.is_segv_blocked);
    CHECK(!owner_is_me(&r.owner));
    thread_stop(&t, wake_room, r.q);
    CHECK(t == NULL);
    /* It may have seen the wish to stop before it waited again. */
    CHECK_INT(r.n_popped + queue_len(r.q), 1);
    queue_pop(r.q);
    thread_stop(&t, NULL, NULL);
    queue_free(&r.q);
}

static void fail_with_text(struct thread *t, void *arg)
{
    (void)arg;
    struct err e = {0};
    thread_ready(t, err_set(&e, E_EXISTS, "port 80 is taken"), &e);
}

static void fail_with_code(struct thread *t, void *arg)
{
    (void)arg;
    thread_ready(t, E_IO, NULL);
}

TEST(thread_start_passes_on_why_it_failed)
{
    struct thread *t = NULL;
    struct err e = {0};
    CHECK_INT(thread_start("http", fail_with_text, NULL, &t, &e), E_EXISTS);
    CHECK(t == NULL);
    CHECK_STR(e.text, "thread http: port 80 is taken");
    CHECK_INT(thread_start("http", fail_with_code, NULL, &t, &e), E_IO);
    CHECK_STR(e.text, "thread http: input/output error");
    CHECK_INT(thread_start("http", fail_with_code, NULL, &t, NULL), E_IO);
}

static void demand_ownership(void *ud)
{
    struct room *r = ud;
    must_own(r);
}

TEST(thread_owner_checks_hold_for_the_owner_only)
{
    struct room r = {0};
    CHECK(!owner_is_me(&r.owner));
    CHECK_INT(test_run_apart(demand_ownership, &r).signal, SIGABRT);
    owner_take(&r.owner);
    CHECK(owner_is_me(&r.owner));
    must_own(&r);
}

static void yield_main(struct thread *t, void *arg)
{
    int *niceness = arg;
    thread_yield_to_others();
    niceness[0] = getpriority(PRIO_PROCESS, 0);
    thread_ready(t, 0, NULL);
}

TEST(thread_that_yields_to_others_is_alone_in_that)
{
    int before = getpriority(PRIO_PROCESS, 0), niceness[1] = {-100};
    struct thread *t = NULL;
    CHECK_INT(thread_start("loader", yield_main, niceness, &t, NULL), 0);
    thread_stop(&t, NULL, NULL);
    CHECK_INT(niceness[0], before < 9 ? before + 10 : 19);
    CHECK_INT(getpriority(PRIO_PROCESS, 0), before);
}

TEST(thread_cpu_count_is_sane)
{
    CHECK(thread_cpu_count() >= 1 && thread_cpu_count() <= 1 << 16);
}
