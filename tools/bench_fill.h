/* tools/bench_fill.h - a KV cache full of random keys and values, without running a model. */
#pragma once

#include "engine/kv.h"
#include "engine/pool.h"

/* Writes positions 0 .. n_positions-1 of every layer, which the sequence must have reserved,
 * and makes that its length. */
void bench_fill_cache(const struct model_config *config, struct kv *kv, struct kv_seq *seq,
                      int n_positions, struct pool *pool);

/* Writes the index keys of these positions anew, all but alike: 2^-12 of each is its own.  Then no
 * bound tells one block from another. */
void bench_fill_alike(const struct model_config *config, struct kv *kv, const struct kv_seq *seq,
                      int n_positions, struct pool *pool);

/* Queries [n, index dim], before norm and rotation, that look for something in the index keys that
 * bench_fill_cache() writes to a sparse layer: a topic and a rare word of theirs. */
void bench_fill_index_queries(const struct model_config *config, int layer, int n, float *queries);
