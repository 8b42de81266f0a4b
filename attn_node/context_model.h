/* attn_node/context_model.h - the sizes of a model as the calls of Context need them, for both ends. */
#pragma once

#include "model/config.h"
#include "rpc/wire.h"

static inline struct wire_context_model context_model(const struct model_config *c)
{
    const struct sparse_config *s = &c->sparse;
    bool has_sparse = s->block_size > 0;
    return (struct wire_context_model){.n_layers = (uint32_t)c->n_layers,
                                       .n_full_layers =
                                           (uint32_t)(has_sparse ? s->n_full_layers : c->n_layers),
                                       .n_heads = (uint32_t)c->n_heads,
                                       .n_kv_heads = (uint32_t)c->n_kv_heads,
                                       .head_dim = (uint32_t)c->head_dim,
                                       .index_heads = (uint32_t)s->n_heads,
                                       .index_dim = (uint32_t)s->head_dim,
                                       .top_k = (uint32_t)s->top_k};
}
