/* tools/bench_cluster.h - `polymath bench cluster`. */
#pragma once

#include "tools/local_cluster.h"

int bench_cluster_main(int argc, char **argv);

/* A cluster of this machine for measuring, from what the caller has set in `r` (model, format, nodes,
 * threads, settings): plans, starts and waits until it takes requests.  To be ended by
 * local_cluster_stop() and local_cluster_close(), whatever is returned. */
int bench_cluster_up(struct local_cluster *r, struct err *e);
