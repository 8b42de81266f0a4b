/* engine/pool.h - fixed worker threads; the only parallelism of the arithmetic.
 *
 * Which thread runs a task never changes a bit: tasks write disjoint outputs. */
#pragma once

struct pool;

/* n_threads counts the caller; 1 makes a pool without threads.  Workers are pinned when
 * the process has at least that many CPUs for itself (PIN_CPUS).  Where the system gives
 * fewer threads the pool is smaller: pool_threads() tells. */
enum pool_pinning { POOL_FREE, POOL_PIN_CPUS };
struct pool *pool_new(int n_threads, enum pool_pinning pinning);
void pool_free(struct pool **p);
int pool_threads(const struct pool *p);

/* Runs body(ctx, task) for task = 0..n_tasks-1 and returns when all are done.  Tasks are
 * claimed in ascending order.  Serial when n_tasks is 1, the pool has no threads, or the
 * call comes from inside a task.  p may be NULL (serial).  Allocates nothing.  One caller
 * at a time; no deadline: a task is arithmetic and ends. */
typedef void pool_body(void *ctx, int task);
void pool_run(struct pool *p, pool_body *body, void *ctx, int n_tasks);
