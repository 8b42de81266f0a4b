/* tools/simulate.h - `polymath simulate`: clusters of any size, with lateness and losses, as numbers. */
#pragma once

#include "tools/plan_options.h"

int simulate_main(int argc, char **argv);

/* tools/simulate_validate.c: what is predicted for 1, 2 and 4 expert nodes on this machine, beside
 * what they then do. */
int simulate_validate(const struct plan_options *o, struct err *e);
