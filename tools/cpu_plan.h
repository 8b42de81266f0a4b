/* tools/cpu_plan.h - who computes where when a whole cluster lives on one machine.
 *
 * Every attention side and every expert node gets CPUs that no other process computes on.
 * The two halves of a layer take turns, so this leaves CPUs idle now and then; what it buys
 * is that a thread that works or waits busily is never in another's way.  With fewer CPUs
 * than processes that is not to be had: then all share all, none is pinned, and none waits
 * busily. */
#pragma once

#include <stdbool.h>

#include "base/cpus.h"

struct cpu_plan {
    bool is_shared;
    int side_cpus, expert_cpus; /* of each attention side and expert node; shared: its threads */
};

/* expert_threads 0: chosen here. */
struct cpu_plan cpu_plan_new(int n_cpus, int n_sides, int n_experts, int expert_threads);
/* The CPUs, out of `all`, of the index-th attention side and the index-th expert node. */
struct cpus cpu_plan_side(const struct cpu_plan *p, const struct cpus *all, int index);
struct cpus cpu_plan_expert(const struct cpu_plan *p, const struct cpus *all, int n_sides,
                            int index);
