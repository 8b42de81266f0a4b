/* tools/plan_model.h - what a model takes and what a token reads, from its geometry alone.
 *
 * Numbers of the formats with their scales: engine/kernels.h.  MiniMax-M3's are those of its
 * released config.json; this program plans for it before it runs it. */
#pragma once

#include "base/err.h"
#include "model/format.h"

struct plan_model {
    char name[64], format[FORMAT_SET_BYTES];
    int n_layers; /* with experts */
    int n_experts, top_k, hidden;
    double expert_bytes;
    double attention_bytes; /* what an attention side reads for every step: projections, routers,
                               dense and shared experts */
    double head_bytes, embedding_bytes;
    double position_bytes;      /* of the KV cache, and of the index where there is one */
    double read_fixed_bytes;    /* of the cache, read for a token at most ... */
    double read_position_bytes; /* ... beside so much for every position */
    bool reads_all;             /* dense attention: position_bytes for every position */
    int group;                  /* of a row on the wire, 0: floats */
};

/* `preset`: m2, m3, or one of `polymath synth`; or `dir`, which holds a config.json.  `format` as
 * for format_set_parse(); native is FP8 where the checkpoint is quantised, bf16 elsewhere. */
int plan_model_open(const char *preset, const char *dir, const char *format, struct plan_model *out,
                    struct err *e);
/* Bytes of weights that one step of n tokens reads on the attention side, and of cache at `context`
 * positions each. */
double plan_model_attention_bytes(const struct plan_model *m, double n_tokens, double context);
/* Of a row and its routes to one node, and of its answer; frames' headers included. */
double plan_model_row_out_bytes(const struct plan_model *m, double n_rows, double n_routes);
double plan_model_row_back_bytes(const struct plan_model *m, double n_rows);
