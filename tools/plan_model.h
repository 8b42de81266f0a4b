/* tools/plan_model.h - what a model takes and what a token reads, from its geometry alone.
 *
 * Numbers of the formats with their scales: engine/kernels.h; of the cache: engine/kv.h.  So what is
 * planned is what the programs take. */
#pragma once

#include <stdint.h>

#include "base/err.h"
#include "model/format.h"

struct plan_model {
    char name[64], format[FORMAT_SET_BYTES];
    int n_layers; /* with experts */
    int n_all_layers, n_sparse_layers, max_positions;
    bool has_shared;
    int n_experts, top_k, hidden;
    double expert_bytes;
    double attention_bytes; /* what an attention side reads for every step: projections, routers,
                               dense and shared experts */
    double head_bytes, embedding_bytes;
    double page_bytes;          /* of the KV cache, index keys included */
    double position_bytes;      /* the same for a position */
    double index_bytes;         /* of these, index keys */
    double read_fixed_bytes;    /* of the cache, read for a token at most ... */
    double read_position_bytes; /* ... beside so much for every position */
    bool reads_all;             /* dense attention: position_bytes for every position */
    /* What a token costs at each machine that lends memory and has a part of its context
     * (proto/context.proto): bytes both ways, calls one after the other. */
    double far_bytes;
    int far_calls;
    int group; /* of a row on the wire, 0: floats */
};

/* `preset`: m2, m3, or one of `polymath synth`; or `dir`, which holds a config.json.  `format` as
 * for format_set_parse(); native is what the engine makes of the checkpoint (engine/matrix.h): FP8
 * where it has blocks of 128 x 128, bf16 elsewhere. */
int plan_model_open(const char *preset, const char *dir, const char *format, struct plan_model *out,
                    struct err *e);
/* E_RANGE: the model has fewer positions. */
int plan_model_check_context(const struct plan_model *m, int64_t context, struct err *e);
/* Bytes of cache for one stream: whole pages. */
double plan_model_stream_bytes(const struct plan_model *m, int64_t context);
/* The longest context that these amounts of memory hold: one alone whole pages, several whole spans each
 * (engine/kv.h), and never more than the model has. */
int64_t plan_model_longest(const struct plan_model *m, const int64_t *bytes, int n);
/* Bytes of weights that one step of n tokens reads on the attention side, and of cache at `context`
 * positions each. */
double plan_model_attention_bytes(const struct plan_model *m, double n_tokens, double context);
/* Of a row and its routes to one node, and of its answer; frames' headers included. */
double plan_model_row_out_bytes(const struct plan_model *m, double n_rows, double n_routes);
double plan_model_row_back_bytes(const struct plan_model *m, double n_rows);
