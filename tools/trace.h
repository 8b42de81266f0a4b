/* tools/trace.h - which experts tokens choose: recorded, or made from a seed.
 *
 * A recorded trace is gzip: a line of JSON (layers, experts, top_k), then for each token, layer and
 * slot one byte, the expert (models/demo/routing_trace.gz is one).  A model with more layers than the
 * trace uses its layers again, with the experts renumbered; one with more or fewer experts cannot use
 * it.  A made one gives every layer a popularity of its own, (rank + 8)^-skew. */
#pragma once

#include "base/err.h"
#include "base/rng.h"
#include "tools/plan_model.h"

struct trace;
/* `path` NULL: made, with this skew (0: all experts alike). */
int trace_open(const char *path, const struct plan_model *m, double skew, uint64_t seed,
               struct trace **out, struct err *e);
void trace_close(struct trace **t);
/* What n tokens at random choose, each from all layers: experts [n_layers][n_tokens * top_k]. */
void trace_draw(struct trace *t, struct rng *r, int n_tokens, uint16_t *experts);
/* "models/demo/routing_trace.gz, 19991 tokens" or "made, skew 0.6, seed 1". */
const char *trace_title(const struct trace *t);
