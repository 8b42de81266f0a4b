/* tools/bench_probe.c - see bench_probe.h: the measuring, and the portable level's loops. */
#include "tools/bench_probe.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/read_probe.h"

enum { MIN_BUFFER_BYTES = 512 << 20, BUFFER_BYTES_PER_THREAD = 64 << 20, FIRST_ROUNDS = 1000 };
#define PROBE_NS (100 * CLOCK_MS)

struct bench_probe {
    struct pool *pool;
    const struct bench_level *level;
    int n_threads;
    struct read_probe *reads;
    long rounds[3]; /* of each arithmetic kind, once known */

    /* The call in progress. */
    bench_arithmetic *loop;
    long loop_rounds;
    struct bench_probe_cell {
        _Alignas(64) double ops;
        uint32_t sink;
    } * cells; /* [n_threads] */
    uint64_t sink;
};

static const struct bench_level *find_level(const char *name)
{
    static const struct bench_level *const levels[] = {&bench_level_portable, &bench_level_avx2,
                                                       &bench_level_avx512, &bench_level_amx};
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
        if (strcmp(levels[i]->name, name) == 0)
            return levels[i];
    return &bench_level_portable;
}

struct bench_probe *bench_probe_open(struct pool *pool, const char *kernels_name)
{
    struct bench_probe *p = mem_alloc(sizeof(*p));
    p->pool = pool;
    p->level = find_level(kernels_name);
    p->n_threads = pool_threads(pool);
    size_t bytes = (size_t)p->n_threads * BUFFER_BYTES_PER_THREAD;
    p->cells = mem_aligned((size_t)p->n_threads * sizeof(*p->cells));
    p->reads = read_probe_open(pool, kernels_named(p->level->name),
                               bytes < MIN_BUFFER_BYTES ? MIN_BUFFER_BYTES : bytes);
    if (!p->reads)
        bench_probe_close(&p);
    return p;
}

void bench_probe_close(struct bench_probe **probe)
{
    struct bench_probe *p = *probe;
    if (!p)
        return;
    read_probe_close(&p->reads);
    mem_free(p->cells);
    mem_free(p);
    *probe = NULL;
}

double bench_probe_read_gb_s(struct bench_probe *p)
{
    int64_t begun_ns = clock_now_ns(), spent_ns;
    double bytes = 0;
    do {
        bytes += (double)read_probe_pass(p->reads);
        spent_ns = clock_now_ns() - begun_ns;
    } while (spent_ns < PROBE_NS);
    return bytes / (double)spent_ns;
}

static void arithmetic_task(void *ctx, int task)
{
    struct bench_probe *p = ctx;
    struct bench_probe_cell *cell = &p->cells[task];
    cell->ops = p->loop(p->loop_rounds, &cell->sink);
}

/* As many tasks as threads; a thread that takes two makes the figure smaller, as it would
 * a kernel's. */
static double run_arithmetic(struct bench_probe *p, int64_t *spent_ns)
{
    int64_t begun_ns = clock_now_ns();
    pool_run(p->pool, arithmetic_task, p, p->n_threads);
    *spent_ns = clock_now_ns() - begun_ns;
    double ops = 0;
    for (int i = 0; i < p->n_threads; i++) {
        ops += p->cells[i].ops;
        p->sink += p->cells[i].sink;
    }
    return ops;
}

double bench_probe_gop_s(struct bench_probe *p, enum bench_arithmetic_kind kind)
{
    bench_arithmetic *const loops[] = {p->level->f32, p->level->q8, p->level->q4};
    int64_t spent_ns = 0;
    p->loop = loops[kind];
    p->loop_rounds = p->rounds[kind] > 0 ? p->rounds[kind] : FIRST_ROUNDS;
    for (;;) {
        double ops = run_arithmetic(p, &spent_ns);
        if (spent_ns >= PROBE_NS / 2 || p->rounds[kind] > 0) {
            p->rounds[kind] = p->loop_rounds;
            return ops / (double)spent_ns;
        }
        double factor = spent_ns > 0 ? 1.2 * PROBE_NS / (double)spent_ns : 100;
        p->loop_rounds = (long)ceil((double)p->loop_rounds * fmin(factor, 100));
    }
}

const char *bench_probe_name(const struct bench_probe *p, enum bench_arithmetic_kind kind)
{
    const char *const names[] = {p->level->f32_name, p->level->q8_name, p->level->q4_name};
    return names[kind];
}

/* ---- the portable level ---- */

/* fmaf() without the instruction is a library call: what the portable kernels do too. */
static double f32_portable(long rounds, uint32_t *sink)
{
    enum { SUMS = 16, STEPS = 16 };
    float sums[SUMS] = {0};
    volatile float factor = 0.999f, term = 0.5f;
    float a = factor, b = term;
    for (long round = 0; round < rounds; round++)
        for (int step = 0; step < STEPS; step++)
            for (int i = 0; i < SUMS; i++)
                sums[i] = fmaf(sums[i], a, b);
    float all = 0;
    for (int i = 0; i < SUMS; i++)
        all += sums[i];
    *sink += all > 1;
    return 2.0 * SUMS * STEPS * (double)rounds;
}

static double int8_portable(long rounds, uint32_t *sink)
{
    enum { ROWS = 16, STEPS = 64 };
    static const int8_t weights[STEPS][ROWS] = {{1, 2, 3}, {4, -5, 6}};
    volatile int8_t start = 3;
    int32_t sums[ROWS] = {0};
    for (long round = 0; round < rounds; round++) {
        int8_t x = start;
        for (int step = 0; step < STEPS; step++)
            for (int row = 0; row < ROWS; row++)
                sums[row] += weights[step][row] * x;
    }
    for (int row = 0; row < ROWS; row++)
        *sink += (uint32_t)sums[row];
    return 2.0 * ROWS * STEPS * (double)rounds;
}

const struct bench_level bench_level_portable = {.name = "portable",
                                                 .f32 = f32_portable,
                                                 .f32_name = "fmaf",
                                                 .q8 = int8_portable,
                                                 .q8_name = "int8 multiply-add in C",
                                                 .q4 = int8_portable,
                                                 .q4_name = "int8 multiply-add in C"};
