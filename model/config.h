/* model/config.h - every dimension and constant of a model, read from config.json once.
 *
 * Source of the field names and values: the released config.json files (MiniMax-M2, M2.1,
 * M2.5, M2.7; MiniMax-M3, whose text part lies under text_config). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum model_family { MODEL_MINIMAX_M2, MODEL_MINIMAX_M3 };

enum { MODEL_MAX_EOS = 8, MODEL_MAX_TOP_K = 16, MODEL_MAX_EXPERTS = 4096, MODEL_MAX_LAYERS = 1024 };

/* What stands between an MLP's two halves, of gate value g and up value u. */
struct activation {
    enum {
        ACTIVATION_SILU,       /* g sigmoid(g) u */
        ACTIVATION_SWIGLU_OAI, /* g' sigmoid(alpha g') (u' + beta), g' = min(g, limit),
                                  u' = min(max(u, -limit), limit) */
    } kind;
    float alpha, limit, beta;
};

/* MiniMax Sparse Attention: which keys a query sees is chosen block by block, by n_heads
 * small index heads, one for each KV head (engine/msa.h).  All zero where a model has none. */
struct sparse_config {
    int n_full_layers; /* the first layers see every key */
    int block_size;    /* positions; a multiple of 16 that divides 64 or that 64 divides */
    int top_k;         /* blocks that a query sees, its own among them */
    int n_heads, head_dim;
};

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
    bool has_power_scales;                  /* MXFP8: scales are exponents of two, one byte each */
    bool is_inside_vision;                  /* tensor names begin with "language_model." */
    bool has_head_norms;                    /* q and k are normed head by head, not all together */
    bool has_offset_norms;                  /* norm weights are stored less 1 */
    struct activation activation;
    float routed_scale; /* the routed experts' sum is multiplied with this */
    int n_dense_layers; /* the first layers have an MLP of dense_size and no experts */
    int dense_size;     /* 0 without such layers */
    int shared_size;    /* width of the expert that every row goes through; 0: none */
    struct sparse_config sparse;
    int eos_ids[MODEL_MAX_EOS], n_eos; /* config.json and generation_config.json together */
    /* generation_config.json; the fallbacks are M2's */
    double temperature, top_p;
    int top_k_sampling;
};

/* Layers that have routed experts.  What is about experts alone - messages between nodes,
 * placement, what weights_expert() is asked for - counts these, from 0. */
static inline int config_expert_layers(const struct model_config *c)
{
    return c->n_layers - c->n_dense_layers;
}
static inline bool config_is_sparse(const struct model_config *c, int layer)
{
    return c->sparse.block_size > 0 && layer >= c->sparse.n_full_layers;
}
/* What stands before "model.layers.0. ..." in the names of tensors. */
const char *config_tensor_prefix(const struct model_config *c);

/* Reads DIR/config.json and, if it is there, DIR/generation_config.json.  Refuses unknown
 * architectures and whatever the forward pass does not implement (linear attention
 * layers, a sliding window, other activations or scoring functions) by naming file, field,
 * value found and value expected.  Of MiniMax-M3's composite file the text part is read. */
int config_read(const char *model_dir, struct model_config *out, struct err *e);
bool config_is_eos(const struct model_config *c, int token_id);
