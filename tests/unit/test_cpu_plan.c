/* tests/unit/test_cpu_plan.c - every process of a local cluster has CPUs of its own, or all
 * share. */
#include "tools/cpu_plan.h"

#include <string.h>

#include "tests/lib/test.h"

static struct cpus all;

/* CPUs 3, 5, 7, ...: what is divided are CPUs, not numbers. */
static void have(int n)
{
    all.n = n;
    for (int i = 0; i < n; i++)
        all.ids[i] = (uint16_t)(3 + 2 * i);
}

static void mark(const struct cpus *c, int n_wanted, int *used)
{
    CHECK_INT(c->n, n_wanted);
    for (int i = 0; i < c->n; i++) {
        CHECK(c->ids[i] % 2 == 1 && c->ids[i] >= 3);
        used[(c->ids[i] - 3) / 2]++;
    }
}

TEST(cpu_plan_gives_each_cpu_to_one_process_at_most)
{
    for (int n_cpus = 1; n_cpus <= 40; n_cpus++)
        for (int n_sides = 1; n_sides <= 3; n_sides++)
            for (int n_experts = 1; n_experts <= 6; n_experts++)
                for (int threads = 0; threads <= 3; threads++) {
                    static int used[64];
                    struct cpu_plan p = cpu_plan_new(n_cpus, n_sides, n_experts, threads);
                    CHECK(p.side_cpus > 0 && p.expert_cpus > 0);
                    CHECK(threads == 0 || p.expert_cpus == threads);
                    int least = n_sides + n_experts * (threads ? threads : 1);
                    CHECK_INT(p.is_shared, least > n_cpus);
                    if (p.is_shared)
                        continue;
                    have(n_cpus);
                    memset(used, 0, sizeof(used));
                    for (int i = 0; i < n_sides; i++) {
                        struct cpus c = cpu_plan_side(&p, &all, i);
                        mark(&c, p.side_cpus, used);
                    }
                    for (int i = 0; i < n_experts; i++) {
                        struct cpus c = cpu_plan_expert(&p, &all, n_sides, i);
                        mark(&c, p.expert_cpus, used);
                    }
                    for (int i = 0; i < 64; i++)
                        CHECK(used[i] <= (i < n_cpus));
                }
}

TEST(cpu_plan_of_usual_machines)
{
    static const struct {
        int n_cpus, n_sides, n_experts, side_cpus, expert_cpus;
        bool is_shared;
    } cases[] = {{16, 1, 4, 4, 3, false}, {16, 1, 1, 4, 12, false}, {8, 1, 4, 4, 1, false},
                 {2, 1, 1, 1, 1, false},  {2, 1, 4, 2, 1, true},    {64, 2, 6, 11, 7, false}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct cpu_plan p = cpu_plan_new(cases[i].n_cpus, cases[i].n_sides, cases[i].n_experts, 0);
        CHECK_INT(p.side_cpus, cases[i].side_cpus);
        CHECK_INT(p.expert_cpus, cases[i].expert_cpus);
        CHECK_INT(p.is_shared, cases[i].is_shared);
    }
}
