/* tests/unit/test_pool.c - every task once, before the call returns, on any number of threads. */
#include "engine/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/mem.h"
#include "base/thread.h"
#include "tests/lib/test.h"

enum { MOST = 257 };

struct tally {
    struct pool *pool;
    atomic_int runs[MOST];
    int plain[MOST];   /* not atomic: the pool must order what a task writes before the return */
    atomic_int others; /* nested tasks on another thread than their parent's */
};

static void count(void *ctx, int task)
{
    struct tally *t = ctx;
    atomic_fetch_add(&t->runs[task], 1);
    t->plain[task]++;
}

static void check_counts(struct tally *t, int n_tasks, int times)
{
    for (int i = 0; i < MOST; i++) {
        CHECK_INT(atomic_load(&t->runs[i]), i < n_tasks ? times : 0);
        CHECK_INT(t->plain[i], i < n_tasks ? times : 0);
    }
}

TEST(every_task_runs_once)
{
    const int n_tasks[] = {0, 1, 2, 7, 64, MOST};
    for (int n_threads = 1; n_threads <= 5; n_threads++) {
        struct pool *p = pool_new(n_threads, POOL_FREE);
        CHECK_INT(pool_threads(p), n_threads);
        for (int i = 0; i < 6; i++) {
            struct tally t = {.pool = p};
            pool_run(p, count, &t, n_tasks[i]);
            check_counts(&t, n_tasks[i], 1);
        }
        pool_free(&p);
        CHECK(p == NULL);
    }
}

/* More threads than processors: workers are late, asleep, or wake for a call that is over. */
TEST(thousands_of_short_calls_lose_and_double_nothing)
{
    int n_calls = test_is_slow_build() ? 2000 : 20000;
    struct pool *p = pool_new(4, POOL_FREE);
    struct tally few = {.pool = p}, many = {.pool = p};
    for (int i = 0; i < n_calls; i++) {
        pool_run(p, count, &few, 3);
        pool_run(p, count, &many, 11);
    }
    check_counts(&few, 3, n_calls);
    check_counts(&many, 11, n_calls);
    pool_free(&p);
}

/* A figure for the reader; what is checked is that every task ran. */
TEST(what_a_call_of_one_empty_task_for_each_thread_costs)
{
    int n_calls = test_is_slow_build() ? 500 : 5000;
    int n_cpus = thread_cpu_count();
    const int n_threads[] = {1, 2, n_cpus};
    for (int i = 0; i < 3; i++) {
        enum pool_pinning pinning = n_threads[i] <= n_cpus ? POOL_PIN_CPUS : POOL_SHARED;
        struct pool *p = pool_new(n_threads[i], pinning);
        struct tally t = {.pool = p};
        pool_run(p, count, &t, n_threads[i]);
        int64_t begun_ns = clock_now_ns();
        for (int k = 1; k < n_calls; k++)
            pool_run(p, count, &t, n_threads[i]);
        int64_t spent_ns = clock_now_ns() - begun_ns;
        test_say("%d threads on %d CPUs: %.2f us a call", n_threads[i], n_cpus,
                 (double)spent_ns / n_calls / CLOCK_US);
        check_counts(&t, n_threads[i], n_calls);
        pool_free(&p);
    }
}

TEST(pinned_and_shared_pools_do_the_same)
{
    static const enum pool_pinning kinds[] = {POOL_PIN_CPUS, POOL_SHARED};
    for (int kind = 0; kind < 2; kind++) {
        struct pool *p = pool_new(2, kinds[kind]);
        struct tally t = {.pool = p};
        for (int i = 0; i < 100; i++)
            pool_run(p, count, &t, 40);
        check_counts(&t, 40, 100);
        pool_free(&p);
    }
}

/* Which CPU each thread of a pool is on; the tasks meet, so every thread has one. */
struct places {
    int n_threads;
    atomic_int arrived;
    int cpu[8], n_allowed[8];
};

static void note_place(void *ctx, int task)
{
    struct places *p = ctx;
    cpu_set_t set;
    atomic_fetch_add(&p->arrived, 1);
    while (atomic_load(&p->arrived) < p->n_threads)
        sched_yield();
    CHECK_INT(sched_getaffinity(0, sizeof(set), &set), 0);
    p->n_allowed[task] = CPU_COUNT(&set);
    p->cpu[task] = sched_getcpu();
}

TEST(a_pinned_pool_has_one_cpu_for_each_thread)
{
    const struct cpus *cpus = cpus_of_process();
    struct places places = {.n_threads = cpus->n < 8 ? cpus->n : 8};
    int n_before = cpus->n;
    struct pool *p = pool_new(places.n_threads, POOL_PIN_CPUS);
    pool_run(p, note_place, &places, places.n_threads);
    for (int i = 0; i < places.n_threads; i++) {
        CHECK_INT(places.n_allowed[i], places.n_threads > 1 ? 1 : places.n_allowed[i]);
        for (int k = 0; k < i; k++)
            CHECK(places.cpu[k] != places.cpu[i]);
    }
    CHECK_INT(sched_getcpu(), cpus->ids[0]);
    pool_free(&p);
    /* The caller is free again. */
    cpu_set_t set;
    CHECK_INT(sched_getaffinity(0, sizeof(set), &set), 0);
    CHECK_INT(CPU_COUNT(&set), n_before);
    /* More threads than CPUs: nobody is pinned. */
    p = pool_new(n_before + 1, POOL_PIN_CPUS);
    CHECK(!cpus_is_thread_pinned());
    pool_free(&p);
}

struct child {
    struct tally *tally;
    pthread_t parent;
};

static void nested(void *ctx, int task)
{
    struct child *c = ctx;
    if (!pthread_equal(pthread_self(), c->parent))
        atomic_fetch_add(&c->tally->others, 1);
    count(c->tally, task);
}

static void parent(void *ctx, int task)
{
    (void)task;
    struct tally *t = ctx;
    /* An array of its own per parent, so that parents do not write the same counts. */
    struct tally mine = {0};
    struct child c = {.tally = &mine, .parent = pthread_self()};
    pool_run(t->pool, nested, &c, 5);
    for (int i = 0; i < 5; i++)
        atomic_fetch_add(&t->runs[i], atomic_load(&mine.runs[i]));
    atomic_fetch_add(&t->others, atomic_load(&mine.others));
}

TEST(a_call_from_inside_a_task_is_serial)
{
    struct pool *p = pool_new(3, POOL_FREE);
    struct tally t = {.pool = p};
    pool_run(p, parent, &t, 20);
    for (int i = 0; i < 5; i++)
        CHECK_INT(atomic_load(&t.runs[i]), 20);
    CHECK_INT(atomic_load(&t.others), 0);
    /* And what follows is parallel again: a call with more tasks than fit one thread's luck. */
    struct tally after = {.pool = p};
    pool_run(p, count, &after, MOST);
    check_counts(&after, MOST, 1);
    pool_free(&p);
}

static atomic_int order_next;

static void in_order(void *ctx, int task)
{
    (void)ctx;
    CHECK_INT(task, atomic_fetch_add(&order_next, 1));
}

TEST(without_a_pool_tasks_run_in_order)
{
    pool_run(NULL, in_order, NULL, 100);
    CHECK_INT(atomic_load(&order_next), 100);
    CHECK_INT(pool_threads(NULL), 1);
}

/* Two tasks that each wait for the other end only if two threads run them. */
static void meet(void *ctx, int task)
{
    (void)task;
    atomic_int *arrived = ctx;
    atomic_fetch_add(arrived, 1);
    while (atomic_load(arrived) < 2) {
    }
}

TEST(two_threads_work_at_the_same_time)
{
    struct pool *p = pool_new(2, POOL_FREE);
    for (int i = 0; i < 50; i++) {
        atomic_int arrived = 0;
        pool_run(p, meet, &arrived, 2);
        CHECK_INT(atomic_load(&arrived), 2);
    }
    pool_free(&p);
}

TEST(a_call_allocates_nothing)
{
    struct pool *p = pool_new(3, POOL_FREE);
    struct tally t = {.pool = p};
    mem_guard_begin("pool_run");
    pool_run(p, count, &t, 30);
    mem_guard_end();
    check_counts(&t, 30, 1);
    pool_free(&p);
    pool_free(&p); /* NULL is fine */
}
