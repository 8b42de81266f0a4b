/* engine/pool.h - fixed worker threads; the only parallelism of the arithmetic.
 *
 * Which thread runs a task never changes a bit: tasks write disjoint outputs. */
#pragma once

struct pool;

/* n_threads counts the caller; 1 makes a pool without threads.  Where the system gives fewer
 * threads the pool is smaller: pool_threads() tells.
 *   FREE      the system places the threads; they wait busily for a moment, then sleep
 *   PIN_CPUS  the caller goes to the first CPU of the process, worker i to the i-th, if there
 *             are that many; for CPUs that nobody else computes on
 *   SHARED    others compute on the same CPUs: nobody waits busily */
enum pool_pinning { POOL_FREE, POOL_PIN_CPUS, POOL_SHARED };
/* The caller's thread is the pool's until pool_free(), on that same thread: nobody else
 * calls pool_run(). */
struct pool *pool_new(int n_threads, enum pool_pinning pinning);
void pool_free(struct pool **p);
/* PIN_CPUS where the process was given CPUs of its own (base/cpus.h), else FREE. */
enum pool_pinning pool_pinning_here(void);
int pool_threads(const struct pool *p);

/* Runs body(ctx, task) for task = 0..n_tasks-1 and returns when all are done.  Tasks are
 * claimed in ascending order.  Serial when n_tasks is 1, the pool has no threads, or the
 * call comes from inside a task.  p may be NULL (serial).  Allocates nothing.  One caller
 * at a time; no deadline: a task is arithmetic and ends. */
typedef void pool_body(void *ctx, int task);
void pool_run(struct pool *p, pool_body *body, void *ctx, int n_tasks);
