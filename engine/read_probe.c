/* engine/read_probe.c - see read_probe.h. */
#include "engine/read_probe.h"

#include <string.h>
#include <unistd.h>

#include "base/mem.h"

enum {
    TASK_BYTES = 4 << 20,
    LEAST_BYTES = 128 << 20,
    MOST_BYTES = 1 << 30,
    BYTES_PER_THREAD = 32 << 20,
    TIMES_CACHE = 2,
};

struct read_probe {
    struct pool *pool;
    const struct kernels *kernels;
    uint8_t *buffer;
    int n_tasks;
    _Atomic uint64_t sink; /* so that no compiler leaves the reading out */
};

static size_t bytes_of(const struct read_probe *p)
{
    return (size_t)p->n_tasks * TASK_BYTES;
}

static void touch_task(void *ctx, int task)
{
    struct read_probe *p = ctx;
    memset(p->buffer + (size_t)task * TASK_BYTES, task + 1, TASK_BYTES);
}

static void read_task(void *ctx, int task)
{
    struct read_probe *p = ctx;
    p->sink += p->kernels->read(p->buffer + (size_t)task * TASK_BYTES, TASK_BYTES);
}

struct read_probe *read_probe_open(struct pool *pool, const struct kernels *kernels, size_t bytes)
{
    struct read_probe *p = mem_alloc(sizeof(*p));
    p->pool = pool;
    p->kernels = kernels;
    p->n_tasks = (int)((bytes + TASK_BYTES - 1) / TASK_BYTES);
    p->buffer = mem_weights(bytes_of(p));
    if (p->buffer)
        pool_run(pool, touch_task, p, p->n_tasks);
    else
        read_probe_close(&p);
    return p;
}

void read_probe_close(struct read_probe **probe)
{
    struct read_probe *p = *probe;
    if (!p)
        return;
    *probe = NULL;
    if (p->buffer)
        mem_weights_free(p->buffer, bytes_of(p));
    mem_free(p);
}

size_t read_probe_pass(struct read_probe *p)
{
    pool_run(p->pool, read_task, p, p->n_tasks);
    return bytes_of(p);
}

size_t read_probe_bytes(int n_threads)
{
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t bytes = (size_t)n_threads * BYTES_PER_THREAD;
    if (cache > 0 && bytes < (size_t)cache * TIMES_CACHE)
        bytes = (size_t)cache * TIMES_CACHE;
    bytes = bytes > LEAST_BYTES ? bytes : LEAST_BYTES;
    return bytes < MOST_BYTES ? bytes : MOST_BYTES;
}

double read_probe_best(struct read_probe *p, int64_t (*now_ns)(void), int64_t spend_ns)
{
    int64_t begun_ns = now_ns(), at_ns = begun_ns;
    double best = 0;
    do {
        int64_t before_ns = at_ns;
        size_t bytes = read_probe_pass(p);
        at_ns = now_ns();
        double rate = 1e9 * (double)bytes / (double)(at_ns > before_ns ? at_ns - before_ns : 1);
        best = rate > best ? rate : best;
    } while (at_ns - begun_ns < spend_ns);
    return best;
}
