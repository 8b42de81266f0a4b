/* tests/unit/test_cpu_plan.c - the processes of a local cluster take turns on its CPUs. */
#include "tools/cpu_plan.h"

#include "tests/lib/test.h"

TEST(cpu_plan_gives_each_half_of_a_layer_all_cpus_once)
{
    for (int n_cpus = 1; n_cpus <= 40; n_cpus++)
        for (int n_sides = 1; n_sides <= 3; n_sides++)
            for (int n_experts = 1; n_experts <= 6; n_experts++) {
                struct cpu_plan p = cpu_plan_new(n_cpus, n_sides, n_experts, 0);
                CHECK(p.side_threads > 0 && p.expert_threads > 0);
                CHECK_INT(p.is_crowded, n_sides > n_cpus || n_experts > n_cpus);
                if (p.is_crowded)
                    continue;
                int sides = p.side_threads * n_sides, experts = p.expert_threads * n_experts;
                CHECK(sides <= n_cpus && sides + n_sides > n_cpus);
                CHECK(experts <= n_cpus && experts + n_experts > n_cpus);
            }
}

TEST(cpu_plan_of_usual_machines)
{
    static const struct {
        int n_cpus, n_sides, n_experts, threads, side_threads, expert_threads;
        bool is_crowded;
    } cases[] = {{16, 1, 4, 0, 16, 4, false}, {16, 1, 1, 0, 16, 16, false},
                 {8, 1, 4, 0, 8, 2, false},   {2, 1, 1, 0, 2, 2, false},
                 {2, 1, 4, 0, 2, 1, true},    {64, 2, 6, 0, 32, 10, false},
                 {2, 1, 2, 3, 2, 3, true},    {8, 1, 4, 1, 8, 1, false}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct cpu_plan p =
            cpu_plan_new(cases[i].n_cpus, cases[i].n_sides, cases[i].n_experts, cases[i].threads);
        CHECK_INT(p.side_threads, cases[i].side_threads);
        CHECK_INT(p.expert_threads, cases[i].expert_threads);
        CHECK_INT(p.is_crowded, cases[i].is_crowded);
    }
}
