/* tests/unit/test_round_cost.c - what planning a round costs, in CPU time: it happens once in
 * each layer of each step. */
#include "attn_node/round.h"

#include <time.h>

#include "base/mem.h"
#include "tests/lib/test.h"

enum { EXPERTS = 256, TOP_K = 8, MAX_ROWS = 256, NODES = 8, COPIES = 2, HIDDEN = 16 };

static double cpu_us(void)
{
    struct timespec t;
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static double plan_us(struct round *round, const struct round_plan *plan, int n)
{
    double begun_us = cpu_us();
    for (int i = 0; i < n; i++) {
        round_begin(round, plan);
        round_abandon(round);
    }
    return (cpu_us() - begun_us) / n;
}

TEST(round_planning_takes_microseconds)
{
    static const int n_rows[] = {1, 8, 64, 256};
    struct rng r = test_rng();
    static uint16_t holders[EXPERTS * COPIES], experts[MAX_ROWS * TOP_K];
    static float weights[MAX_ROWS * TOP_K], x[MAX_ROWS * HIDDEN];
    static int16_t exponents[MAX_ROWS];
    struct round_node nodes[NODES];
    for (int i = 0; i < NODES; i++)
        nodes[i] = (struct round_node){.name = "node", .max_rows = MAX_ROWS};
    for (int i = 0; i < EXPERTS; i++) {
        holders[i * COPIES] = (uint16_t)rng_below(&r, NODES);
        holders[i * COPIES + 1] = (uint16_t)((holders[i * COPIES] + 1 + rng_below(&r, 7)) % NODES);
    }
    for (int i = 0; i < MAX_ROWS * TOP_K; i++)
        experts[i] = (uint16_t)((i % TOP_K * 32 + (int)rng_below(&r, 32)) % EXPERTS);
    struct round_limits limits = {.kernels = kernels_best(),
                                  .max_rows = MAX_ROWS,
                                  .top_k = TOP_K,
                                  .hidden = HIDDEN,
                                  .n_experts = EXPERTS};
    struct round *round = round_new(&limits);
    round_install(round, nodes, NODES);
    double us[4];
    for (int i = 0; i < 4; i++) {
        struct routing routing = {
            .n_rows = n_rows[i], .top_k = TOP_K, .experts = experts, .weights = weights};
        struct moe_rows rows = {.n_rows = n_rows[i],
                                .hidden = HIDDEN,
                                .rows = {.n_rows = n_rows[i], .cols = HIDDEN, .f32 = x},
                                .exponents = exponents,
                                .routing = &routing};
        struct round_plan plan = {
            .rows = &rows, .mode = COMBINE_FIXED, .holders = holders, .n_replicas = COPIES};
        plan_us(round, &plan, 10);
        us[i] = plan_us(round, &plan, 20000 / n_rows[i]);
    }
    test_say("256 experts, 8 of them a row, two copies on 8 nodes: %.2f us for 1 row, %.2f for 8, "
             "%.1f for 64, %.1f for 256",
             us[0], us[1], us[2], us[3]);
    /* Far above what any machine needs; a quadratic plan would take a second. */
    if (!test_is_slow_build())
        CHECK(us[0] < 50 && us[3] < 2000);
    round_free(&round);
}
