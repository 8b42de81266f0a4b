/* tools/bench_cluster.h - `polymath bench cluster`. */
#pragma once

int bench_cluster_main(int argc, char **argv);
