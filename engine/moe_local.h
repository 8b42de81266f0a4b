/* engine/moe_local.h - moe_ops in the process: tests, `polymath generate`; the oracle that
 * the cluster is compared with. */
#pragma once

#include "engine/expert.h"
#include "engine/forward.h"

struct moe_local;
/* Loads every expert of every layer; `progress` (may be NULL) is told how many are done
 * so far, now and then, by one thread at a time. */
int moe_local_open(struct checkpoint *c, enum weight_format format, enum combine_mode mode,
                   int max_rows, struct compute compute,
                   void (*progress)(void *ud, int done, int total), void *progress_ud,
                   struct moe_local **out, struct err *e);
void moe_local_close(struct moe_local **m);
/* For forward_step(), with the moe_local as `ud`. */
extern const struct moe_ops moe_local_ops;
