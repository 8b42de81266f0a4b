/* tools/cpu_plan.h - who computes where when a whole cluster lives on one machine.
 *
 * The two halves of a layer take turns: while the experts compute, attention waits, and the
 * other way round. So the attention sides divide all CPUs among themselves, and the expert
 * nodes do, too; the system finds the place. CPUs kept for one half would idle while the other
 * reads at half the machine's rate (measured: half the tokens per second on 2 CPUs, two
 * thirds on 16). */
#pragma once

#include <stdbool.h>

struct cpu_plan {
    int side_threads, expert_threads; /* of each attention side, of each expert node */
    /* One half alone has more threads than there are CPUs: nobody shall wait busily. */
    bool is_crowded;
};

/* expert_threads 0: chosen here. */
struct cpu_plan cpu_plan_new(int n_cpus, int n_sides, int n_experts, int expert_threads);
