/* tools/cpu_plan.c - see cpu_plan.h. */
#include "tools/cpu_plan.h"

#include "base/must.h"

/* Attention reads about three tenths of the bytes of a token's pass through M2. */
enum { SIDE_TENTHS = 3 };

static int at_least_one(int n)
{
    return n > 0 ? n : 1;
}

struct cpu_plan cpu_plan_new(int n_cpus, int n_sides, int n_experts, int expert_threads)
{
    must(n_cpus > 0 && n_sides > 0 && n_experts > 0 && expert_threads >= 0);
    int for_sides = n_cpus * SIDE_TENTHS / 10;
    if (for_sides < n_sides)
        for_sides = n_sides;
    struct cpu_plan p = {.expert_cpus = expert_threads};
    if (expert_threads == 0)
        p.expert_cpus = at_least_one((n_cpus - for_sides) / n_experts);
    /* What does not divide goes to the sides. */
    p.side_cpus = (n_cpus - p.expert_cpus * n_experts) / n_sides;
    if (p.side_cpus > 0)
        return p;
    return (struct cpu_plan){.is_shared = true,
                             .side_cpus = n_cpus,
                             .expert_cpus = expert_threads ? expert_threads
                                                           : at_least_one(n_cpus / n_experts)};
}

static struct cpus slice(const struct cpus *all, int first, int n)
{
    struct cpus out = {.n = n};
    must(first >= 0 && first + n <= all->n);
    for (int i = 0; i < n; i++)
        out.ids[i] = all->ids[first + i];
    return out;
}

struct cpus cpu_plan_side(const struct cpu_plan *p, const struct cpus *all, int index)
{
    must(!p->is_shared);
    return slice(all, index * p->side_cpus, p->side_cpus);
}

struct cpus cpu_plan_expert(const struct cpu_plan *p, const struct cpus *all, int n_sides,
                            int index)
{
    must(!p->is_shared);
    return slice(all, n_sides * p->side_cpus + index * p->expert_cpus, p->expert_cpus);
}
