/* engine/pool.c - see pool.h.
 *
 * One atomic word, the ticket, holds the generation of the current call and the number of
 * the next task; a task is claimed by a compare-and-swap on it.  So a worker that wakes up
 * late cannot claim a task of a later call by what it read of an earlier one, and the
 * caller need not wait for workers that claimed nothing.  Between calls the ticket is
 * closed, and only then the fields of a job change.
 *
 * Waiting is a spin, then sleep on a futex: no lock that woken threads would queue at.  The
 * sequentially consistent pairs "publish, then look for sleepers" and "count as sleeper, then
 * let the kernel compare once more" make sure that no wake-up is lost. */
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

#define CLOSED UINT32_MAX /* no task has this number */

struct worker {
    struct pool *pool;
    int index; /* from 1; 0 is the caller */
    struct thread *thread;
};

struct pool {
    int n_threads;
    int spins;
    struct worker *workers; /* [n_threads - 1] */

    _Alignas(MEM_ALIGN) _Atomic uint64_t ticket; /* generation, then next task */
    _Alignas(MEM_ALIGN) _Atomic(pool_body *) body;
    _Atomic(void *) ctx;
    _Atomic uint32_t n_tasks;
    _Alignas(MEM_ALIGN) _Atomic uint32_t n_done;
    _Alignas(MEM_ALIGN) _Atomic uint32_t news; /* changes with every call and at the end */
    atomic_int n_sleepers;
    atomic_bool is_caller_asleep, is_running;
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

/* Runs tasks until none is left to claim; the generation that was looked at. */
static uint32_t work(struct pool *p)
{
    for (;;) {
        uint64_t ticket = atomic_load(&p->ticket);
        uint32_t task = (uint32_t)ticket;
        if (task == CLOSED)
            return generation_of(ticket);
        pool_body *body = atomic_load_explicit(&p->body, memory_order_acquire);
        void *ctx = atomic_load_explicit(&p->ctx, memory_order_acquire);
        uint32_t n_tasks = atomic_load_explicit(&p->n_tasks, memory_order_acquire);
        /* What was read belongs to this generation if the exchange succeeds: a change of
         * the fields comes after the closing of the ticket. */
        if (task >= n_tasks) {
            if (atomic_load(&p->ticket) == ticket)
                return generation_of(ticket);
            continue;
        }
        if (!atomic_compare_exchange_weak(&p->ticket, &ticket, ticket + 1))
            continue;
        run_task(body, ctx, (int)task);
        finish_task(p, n_tasks);
    }
}

static bool has_news(struct pool *p, const struct thread *t, uint32_t seen)
{
    return generation_of(atomic_load(&p->ticket)) != seen || thread_should_stop(t);
}

static void wait_for_news(struct pool *p, const struct thread *t, uint32_t seen)
{
    for (int i = 0; i < p->spins; i++) {
        if (has_news(p, t, seen))
            return;
        spin_once();
    }
    atomic_fetch_add(&p->n_sleepers, 1);
    for (;;) {
        uint32_t news = atomic_load(&p->news);
        if (has_news(p, t, seen))
            break;
        sleep_on(&p->news, news);
    }
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
    atomic_store_explicit(&p->body, body, memory_order_release);
    atomic_store_explicit(&p->ctx, ctx, memory_order_release);
    atomic_store_explicit(&p->n_tasks, n_tasks, memory_order_release);
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
    for (;;) {
        uint32_t seen = work(w->pool);
        if (thread_should_stop(t))
            return;
        wait_for_news(w->pool, t, seen);
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
