/* model/config.h - every dimension and constant of a model, read from config.json once.
 *
 * Source of the field names and of M2's values: the released config.json (MiniMax-M2,
 * M2.1, M2.5, M2.7). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum model_family { MODEL_MINIMAX_M2 };

enum { MODEL_MAX_EOS = 8, MODEL_MAX_TOP_K = 16, MODEL_MAX_EXPERTS = 4096, MODEL_MAX_LAYERS = 1024 };

/* All sizes positive and consistent once config_read() succeeded: n_heads is a multiple
 * of n_kv_heads, rotary_dim is even and at most head_dim, top_k <= n_experts and
 * <= MODEL_MAX_TOP_K. */
struct model_config {
    enum model_family family;
    int vocab_size, hidden_size, n_layers;
    int n_heads, n_kv_heads, head_dim, rotary_dim;
    int expert_size; /* intermediate_size: width of one expert */
    int n_experts, top_k;
    int max_positions;
    double rope_theta;
    float rms_norm_eps;
    int scale_block_rows, scale_block_cols; /* of FP8 weights; 0 if not quantised */
    int eos_ids[MODEL_MAX_EOS], n_eos;      /* config.json and generation_config.json together */
    /* generation_config.json; the fallbacks are M2's */
    double temperature, top_p;
    int top_k_sampling;
};

/* Reads DIR/config.json and, if it is there, DIR/generation_config.json.  Refuses unknown
 * architectures and whatever the forward pass does not implement (linear attention
 * layers, shared experts, a sliding window, other activations or scoring functions) by
 * naming file, field, value found and value expected. */
int config_read(const char *model_dir, struct model_config *out, struct err *e);
bool config_is_eos(const struct model_config *c, int token_id);
