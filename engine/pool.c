/* engine/pool.c - see pool.h.
 *
 * One atomic word, the ticket, holds the generation of the current call and the number of
 * the next task; a task is claimed by adding one to it.  Whoever got a task that exists may
 * trust the job's fields: they change only when all tasks are done.  Whoever got none cannot
 * mistake the fields of a later call for those of his, because the generation has changed
 * by then; so the caller need not wait for workers that claimed nothing.  Between calls the
 * ticket is closed.
 *
 * Waiting is a spin on a word that only publishing writes, then sleep on a futex: no lock
 * that woken threads would queue at.  The sequentially consistent pairs "publish, then look
 * for sleepers" and "count as sleeper, then let the kernel compare once more" make sure that
 * no wake-up is lost. */
#include "engine/pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cpus.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"

/* FREE: up to about 50 us of pauses, longer than the gaps between the matrices of a layer.
 * On CPUs of its own, some milliseconds: longer than a layer's trip to the experts, because
 * waking a dozen sleepers for every layer costs more than the trip's network. */
enum { SPINS_FREE = 1000, SPINS_OWN = 50000 };
/* Who waits that long, which is for the experts, lets the threads that speak with them have the CPU
 * (rpc/io_threads.h) every few microseconds. */
enum { SPINS_PER_YIELD = 64 };

#define CLOSED (UINT32_MAX / 2) /* tasks from here on are none */

struct worker {
    struct pool *pool;
    int index; /* from 1; 0 is the caller */
    struct thread *thread;
};

struct pool {
    int n_threads;
    int spins;
    struct worker *workers; /* [n_threads - 1] */

    /* Four cache lines: all claim; all read; all count and the caller waits; all wait. */
    _Alignas(MEM_ALIGN) _Atomic uint64_t ticket; /* generation, then next task */
    _Alignas(MEM_ALIGN) _Atomic(pool_body *) body;
    _Atomic(void *) ctx;
    _Atomic uint32_t n_tasks;
    _Alignas(MEM_ALIGN) _Atomic uint32_t n_done;
    atomic_bool is_caller_asleep, is_running;
    _Alignas(MEM_ALIGN) _Atomic uint32_t news; /* changes with every call and at the end */
    atomic_int n_sleepers;
    bool is_pinned;
};

static _Thread_local bool is_inside_task;

static uint64_t ticket_of(uint32_t generation, uint32_t task)
{
    return (uint64_t)generation << 32 | task;
}

static uint32_t generation_of(uint64_t ticket)
{
    return (uint32_t)(ticket >> 32);
}

static void spin_once(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

/* Until somebody wakes, or at once if *word is not `seen` any more.  May return early. */
static void sleep_on(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void wake(_Atomic uint32_t *word, int n_threads)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n_threads, NULL, NULL, 0);
}

static void run_task(pool_body *body, void *ctx, int task)
{
    bool before = is_inside_task;
    is_inside_task = true;
    body(ctx, task);
    is_inside_task = before;
}

static void finish_task(struct pool *p, uint32_t n_tasks)
{
    if (atomic_fetch_add(&p->n_done, 1) + 1 == n_tasks && atomic_load(&p->is_caller_asleep))
        wake(&p->n_done, 1);
}

/* Runs tasks until none is left to claim. */
static void work(struct pool *p)
{
    for (;;) {
        uint64_t claimed = atomic_fetch_add(&p->ticket, 1);
        uint32_t task = (uint32_t)claimed;
        if (task >= CLOSED)
            return;
        uint32_t n_tasks = atomic_load(&p->n_tasks);
        if (task >= n_tasks || generation_of(atomic_load(&p->ticket)) != generation_of(claimed))
            return;
        run_task(atomic_load_explicit(&p->body, memory_order_relaxed),
                 atomic_load_explicit(&p->ctx, memory_order_relaxed), (int)task);
        finish_task(p, n_tasks);
    }
}

/* Until `news` is not `seen` any more. */
static void wait_for_news(struct pool *p, uint32_t seen)
{
    for (int i = 0; i < p->spins; i++) {
        if (atomic_load(&p->news) != seen)
            return;
        spin_once();
        if (i > SPINS_FREE && i % SPINS_PER_YIELD == 0)
            sched_yield();
    }
    atomic_fetch_add(&p->n_sleepers, 1);
    while (atomic_load(&p->news) == seen)
        sleep_on(&p->news, seen);
    atomic_fetch_sub(&p->n_sleepers, 1);
}

static void wake_workers(void *ud)
{
    struct pool *p = ud;
    atomic_fetch_add(&p->news, 1);
    wake(&p->news, INT_MAX);
}

/* A new generation with the ticket closed, so that the job may change. */
static uint32_t close_ticket(struct pool *p)
{
    uint32_t generation = generation_of(atomic_load(&p->ticket)) + 1;
    atomic_store(&p->ticket, ticket_of(generation, CLOSED));
    return generation;
}

static void publish(struct pool *p, pool_body *body, void *ctx, uint32_t n_tasks)
{
    uint32_t generation = close_ticket(p);
    atomic_store_explicit(&p->body, body, memory_order_relaxed);
    atomic_store_explicit(&p->ctx, ctx, memory_order_relaxed);
    atomic_store(&p->n_tasks, n_tasks);
    atomic_store(&p->n_done, 0);
    atomic_store(&p->ticket, ticket_of(generation + 1, 0));
    atomic_fetch_add(&p->news, 1);
    /* No more than can find a task; who sleeps on is no worse off. */
    if (atomic_load(&p->n_sleepers) > 0)
        wake(&p->news, (int)(n_tasks - 1));
}

static void wait_until_done(struct pool *p, uint32_t n_tasks)
{
    for (int i = 0; i < p->spins; i++) {
        if (atomic_load(&p->n_done) == n_tasks)
            return;
        spin_once();
    }
    atomic_store(&p->is_caller_asleep, true);
    for (uint32_t n; (n = atomic_load(&p->n_done)) != n_tasks;)
        sleep_on(&p->n_done, n);
    atomic_store(&p->is_caller_asleep, false);
}

void pool_run(struct pool *p, pool_body *body, void *ctx, int n_tasks)
{
    if (n_tasks <= 1 || !p || p->n_threads == 1 || is_inside_task) {
        for (int task = 0; task < n_tasks; task++)
            run_task(body, ctx, task);
        return;
    }
    must(!atomic_exchange(&p->is_running, true)); /* one caller at a time */
    must((uint32_t)n_tasks < CLOSED / 2);
    publish(p, body, ctx, (uint32_t)n_tasks);
    work(p);
    wait_until_done(p, (uint32_t)n_tasks);
    atomic_store(&p->is_running, false);
}

int pool_threads(const struct pool *p)
{
    return p ? p->n_threads : 1;
}

static void worker_main(struct thread *t, void *arg)
{
    struct worker *w = arg;
    if (w->pool->is_pinned)
        cpus_pin_thread(w->index);
    thread_ready(t, 0, NULL);
    while (!thread_should_stop(t)) {
        uint32_t seen = atomic_load(&w->pool->news);
        work(w->pool);
        /* Asked to stop since then: the news has changed too. */
        if (!thread_should_stop(t))
            wait_for_news(w->pool, seen);
    }
}

struct pool *pool_new(int n_threads, enum pool_pinning pinning)
{
    must(n_threads >= 1);
    struct pool *p = mem_aligned(sizeof(*p));
    bool is_roomy = n_threads <= thread_cpu_count();
    p->is_pinned = pinning == POOL_PIN_CPUS && is_roomy;
    if (is_roomy && pinning != POOL_SHARED)
        p->spins = p->is_pinned ? SPINS_OWN : SPINS_FREE;
    atomic_init(&p->ticket, ticket_of(0, CLOSED));
    p->workers = mem_array((size_t)n_threads, sizeof(*p->workers));
    p->n_threads = 1;
    for (int i = 1; i < n_threads; i++) {
        struct worker *w = &p->workers[i - 1];
        char name[24];
        snprintf(name, sizeof(name), "pool-%d", i);
        *w = (struct worker){.pool = p, .index = i};
        if (thread_start(name, worker_main, w, &w->thread, NULL) < 0)
            break;
        p->n_threads++;
    }
    if (p->is_pinned)
        cpus_pin_thread(0);
    return p;
}

enum pool_pinning pool_pinning_here(void)
{
    return cpus_are_own() ? POOL_PIN_CPUS : POOL_FREE;
}

void pool_free(struct pool **pool)
{
    struct pool *p = *pool;
    if (!p)
        return;
    *pool = NULL;
    must(!atomic_load(&p->is_running));
    for (int i = 0; i < p->n_threads - 1; i++)
        thread_stop(&p->workers[i].thread, wake_workers, p);
    if (p->is_pinned)
        cpus_free_thread();
    mem_free(p->workers);
    mem_free(p);
}
