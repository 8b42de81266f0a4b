/* tools/bench_model.h - a whole model for `bench decode`, `prefill` and `against`: loaded from
 * a directory, or random in memory for a geometry.
 *
 * Owner: main thread. */
#pragma once

#include "base/rng.h"
#include "engine/kv.h"
#include "engine/moe_local.h"
#include "tools/bench.h"
#include "tools/bench_moe.h"

/* What one token, or one step, reads and computes.  Weights only: what attention reads of the
 * cache is beside it. */
struct bench_costs {
    double expert_bytes; /* of one expert */
    double layer_bytes;  /* of a layer's projections and router */
    double head_bytes;
    double position_bytes; /* of one position in the cache, all layers */
    double expert_ops;     /* of one row through one expert */
    double layer_ops;      /* of one row through a layer's projections and router */
    double head_ops;
};

struct bench_model {
    struct bench *bench;
    struct compute compute; /* the bench's, with loops that can be timed */
    struct checkpoint *checkpoint;
    const struct model_config *config;
    struct format_set formats;
    struct forward *forward;
    struct moe_local *moe;
    struct bench_moe *random_moe;
    int max_rows;
    struct bench_costs costs;
    char title[128]; /* "m2-layers-4 q8,kv=bf16" */

    int n_seqs;
    struct kv *kv;
    struct kv_seq *seqs; /* [n_seqs] */
    struct rng random;
    int64_t experts_touched; /* distinct experts per layer and step, summed */
    int64_t routes;          /* rows sent to experts: in the last layer only those with logits */
};

/* Steps of up to max_rows rows. */
int bench_model_open(struct bench_model *m, struct bench *b, int max_rows, struct err *e);
void bench_model_close(struct bench_model *m);

/* n_seqs sequences with `depth` positions of random cache and room for n_more. */
int bench_model_fill(struct bench_model *m, int n_seqs, int depth, int n_more, struct err *e);
/* Back to `depth` positions. */
void bench_model_rewind(struct bench_model *m, int depth);
/* One step: n_tokens random tokens of every sequence; logits of each one's last if wanted. */
int bench_model_step(struct bench_model *m, int n_tokens, bool wants_logits, struct err *e);

struct bench_sample {
    double tokens_s, gb_s, gop_s;
    double seconds;
};
/* `n_steps` tokens of every sequence from `depth` on, one step each. */
int bench_model_decode(struct bench_model *m, int depth, int n_steps, struct bench_sample *out,
                       struct err *e);
/* A prompt of n_tokens from `depth` on, in steps of up to max_rows. */
int bench_model_prefill(struct bench_model *m, int depth, int n_tokens, struct bench_sample *out,
                        struct err *e);
