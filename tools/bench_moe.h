/* tools/bench_moe.h - moe_ops over random experts in memory, for `--geometry`.
 *
 * The same expert_forward() and the same fold as moe_local, in mode fixed; only where the
 * weights come from differs. */
#pragma once

#include "engine/forward.h"

struct bench_moe;
/* Every expert of the model in one format.  E_NOMEM says how much is needed and there. */
int bench_moe_open(const struct model_config *config, enum weight_format format, int max_rows,
                   struct compute compute, struct bench_moe **out, struct err *e);
void bench_moe_close(struct bench_moe **m);
/* For forward_step(), with the bench_moe as `ud`.  E_RANGE if a row leaves the fixed grid,
 * which random weights of a sane spread do not do. */
extern const struct moe_ops bench_moe_ops;
