/* model/weights.h - tensors bound to fields by meaning, with strict shapes.
 *
 * After this nobody looks a tensor up by name.  Views borrow from the checkpoint.
 * Names and shapes: the released checkpoints (MiniMaxM2ForCausalLM and, under the prefix
 * "language_model.", MiniMaxM3SparseForConditionalGeneration). */
#pragma once

#include <stdint.h>

#include "base/err.h"
#include "model/checkpoint.h"
#include "model/format.h"
#include "model/tensor.h"

/* y = W x.  weight [rows, cols]; F32, F16, BF16, or F8_E4M3 with a scale. */
struct linear_view {
    const char *label; /* "w2": for messages */
    int64_t rows, cols;
    struct tensor weight;
    /* F32, or F8_E8M0 in MXFP8, [ceil(rows/block_rows), ceil(cols/block_cols)]; data NULL if
     * there is none */
    struct tensor scale;
    int block_rows, block_cols;
    /* From a packed directory (model/packed.h) instead: `weight` and `scale` are empty.  The
     * bytes are those of a matrix of this format as engine/matrix.h lays it out. */
    const void *packed; /* NULL: not packed; aligned to 64 */
    size_t packed_bytes;
    enum weight_format packed_format;
    bool copies_packed; /* the matrix shall be a copy in own (huge) pages, not the mapping */
};

struct expert_view {
    struct linear_view gate, up, down; /* w1, w3 [expert_size, hidden]; w2 [hidden, expert_size] */
    struct activation activation;
};

/* Norm weights of a view whose has_offset_norms is true are stored less 1. */
struct layer_view {
    bool has_offset_norms;
    struct tensor input_norm; /* [hidden] */
    struct linear_view wq, wk, wv,
        wo; /* [heads*dim, hidden] x1, [kv*dim, hidden] x2, [hidden, heads*dim] */
    struct tensor q_norm, k_norm; /* [heads*dim], [kv*dim]; [dim] both with norms per head */
    /* Of a sparse layer: [index heads*dim, hidden], [index dim, hidden]; [index dim] both. */
    bool is_sparse;
    struct linear_view index_q, index_k;
    struct tensor index_q_norm, index_k_norm;
    struct tensor post_norm;   /* [hidden] */
    bool has_experts;          /* then: */
    struct tensor router_gate; /* F32, BF16 or F16 [experts, hidden] */
    struct tensor router_bias; /* F32, BF16 or F16 [experts] */
    /* What every row goes through: the MLP of a layer without experts, the shared expert of
     * one with. */
    bool has_mlp;
    struct expert_view mlp;
};

struct model_view {
    bool has_offset_norms;
    struct tensor embedding;    /* [vocab, hidden] */
    struct tensor final_norm;   /* [hidden] */
    struct linear_view lm_head; /* [vocab, hidden] */
};

/* Each binds and checks dtype, shape and that scales and norms are finite; errors name the
 * tensor, what was expected and what was found.  Matrices are not read here, but in a packed
 * directory made ready as its options say (packed_find()); whether their sizes fit, the one
 * who makes matrices of them says. */
int weights_layer(struct checkpoint *c, int layer, struct layer_view *out, struct err *e);
/* `layer` counts the layers with experts (config_expert_layers()). */
int weights_expert(struct checkpoint *c, int layer, int expert, struct expert_view *out,
                   struct err *e);
int weights_model(struct checkpoint *c, struct model_view *out, struct err *e);

/* Advice about the pages that a bound expert, a layer's attention matrices, its MLP (of a model
 * whose layers have one) or the head lie in:
 * what will be bound soon is read ahead; what has become a matrix of its own, or is not used
 * any more, leaves the resident set.  Views stay valid. */
void weights_advise_expert(struct checkpoint *c, int layer, int expert, enum mapping_advice a);
void weights_advise_mlp(struct checkpoint *c, int layer, enum mapping_advice a);
void weights_advise_layer(struct checkpoint *c, int layer, enum mapping_advice a);
void weights_advise_model(struct checkpoint *c, enum mapping_advice a);
