/* tools/bench_fill.h - a KV cache full of random keys and values, without running a model. */
#pragma once

#include "engine/kv.h"
#include "engine/pool.h"

/* Writes positions 0 .. n_positions-1 of every layer, which the sequence must have reserved,
 * and makes that its length. */
void bench_fill_cache(const struct model_config *config, struct kv *kv, struct kv_seq *seq,
                      int n_positions, struct pool *pool);
