/* tools/bench_rpc.h - `polymath bench rpc`: the round trip of a Forward without the experts. */
#pragma once

#include "base/err.h"

int bench_rpc_main(int argc, char **argv);

/* The same for who reckons with it: microseconds of a round trip to the first n of `nodes`
 * processes over our channels, nobody waiting busily, to us[n - 1].  Once in a process, and before
 * anything that starts threads: it forks. */
struct bench_rpc_case {
    int nodes, rows, hidden, calls;
    double share; /* of the round trips are faster: 0.5 is the median */
};
int bench_rpc_round_trips(const struct bench_rpc_case *c, double *us, struct err *e);
