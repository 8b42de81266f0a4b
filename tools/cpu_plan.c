/* tools/cpu_plan.c - see cpu_plan.h. */
#include "tools/cpu_plan.h"

#include "base/must.h"

static int share_of(int n_cpus, int n_processes)
{
    return n_cpus > n_processes ? n_cpus / n_processes : 1;
}

struct cpu_plan cpu_plan_new(int n_cpus, int n_sides, int n_experts, int expert_threads)
{
    must(n_cpus > 0 && n_sides > 0 && n_experts > 0 && expert_threads >= 0);
    struct cpu_plan p = {.side_threads = share_of(n_cpus, n_sides),
                         .expert_threads =
                             expert_threads ? expert_threads : share_of(n_cpus, n_experts)};
    p.is_crowded =
        p.side_threads * n_sides > n_cpus || (long long)p.expert_threads * n_experts > n_cpus;
    return p;
}
