/* tools/plan_model.c - see plan_model.h. */
#include "tools/plan_model.h"

#include <stdio.h>
#include <string.h>

#include "engine/index_sketch.h"
#include "engine/kernels.h"
#include "engine/kv.h"
#include "model/config.h"
#include "rpc/wire.h"
#include "tools/synth.h"

enum { HEADER_BYTES = 160 }; /* of a call and its message, and about as many of the answer */

static double bytes_per_weight(enum weight_format f, double native)
{
    switch (f) {
    case FORMAT_F32:
        return 4;
    case FORMAT_BF16:
        return 2;
    case FORMAT_FP8:
        return 1 + 4.0 / (SCALE_BLOCK * SCALE_BLOCK);
    case FORMAT_Q8:
        return sizeof(struct q8_panel_group) / (double)(PANEL_ROWS * Q8_GROUP);
    case FORMAT_Q4:
        return sizeof(struct q4_panel_group) / (double)(PANEL_ROWS * Q4_GROUP);
    default:
        return native;
    }
}

/* Numbers of weights by part. */
struct parts {
    double expert,
        always; /* one routed expert; dense MLPs and shared experts, which are held alike */
    double attention, index, router, head;
};

static struct parts parts_of(const struct model_config *c)
{
    double hidden = c->hidden_size, layers = c->n_layers, with_experts = config_expert_layers(c);
    double q = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
    double index = (double)(c->sparse.n_heads + 1) * c->sparse.head_dim;
    double sparse = c->sparse.block_size > 0 ? layers - c->sparse.n_full_layers : 0;
    return (struct parts){
        .expert = 3.0 * hidden * c->expert_size,
        .always = 3.0 * hidden *
                  ((double)c->n_dense_layers * c->dense_size + with_experts * c->shared_size),
        .attention = layers * (2 * q + 2 * kv) * hidden,
        .index = sparse * index * hidden,
        .router = with_experts * c->n_experts * (hidden + 1),
        .head = (double)c->vocab_size * hidden};
}

/* What the engine holds where no format is asked for: engine/matrix.h. */
static double native_bytes(const struct model_config *c, bool is_quantised)
{
    return is_quantised && !c->has_power_scales ? bytes_per_weight(FORMAT_FP8, 0) : 2;
}

static void set_weights(struct plan_model *m, const struct model_config *c,
                        const struct format_set *f, bool is_quantised)
{
    struct parts p = parts_of(c);
    double native = native_bytes(c, is_quantised);
    m->expert_bytes = p.expert * bytes_per_weight(f->experts, native);
    /* Index projections stay as stored, but MXFP8 as bf16. */
    m->attention_bytes = p.attention * bytes_per_weight(f->attention, native) +
                         p.always * bytes_per_weight(f->experts, native) + p.index * 2 +
                         p.router * 4;
    m->head_bytes = p.head * bytes_per_weight(f->head, 2);
    m->embedding_bytes = p.head * 2;
    m->group = format_group(f->experts);
}

/* As the cache itself reckons its pages. */
static int set_cache(struct plan_model *m, const struct model_config *c, enum kv_format kv,
                     struct err *e)
{
    struct model_config full = *c;
    full.sparse = (struct sparse_config){0};
    size_t page = kv_page_bytes(c, kv), plain = kv_page_bytes(&full, kv);
    if (page == SIZE_MAX)
        return err_set(e, E_RANGE, "%s: a page of the KV cache does not fit in memory", m->name);
    double layer = (double)plain / KV_PAGE_TOKENS / c->n_layers;
    double index = (double)(page - plain) / KV_PAGE_TOKENS;
    int n_full = c->sparse.block_size > 0 ? c->sparse.n_full_layers : c->n_layers;
    m->page_bytes = (double)page;
    m->position_bytes = (double)page / KV_PAGE_TOKENS;
    m->index_bytes = index;
    m->reads_all = n_full == c->n_layers;
    /* As if every index key were read: what bounds save depends on the text (engine/msa.h). */
    double sketch = (double)sketch_unit_bytes(c->sparse.head_dim) / SKETCH_UNIT;
    m->read_position_bytes = n_full * layer + index - (c->n_layers - n_full) * sketch;
    m->read_fixed_bytes = (c->n_layers - n_full) * layer * c->sparse.block_size * c->sparse.top_k;
    return 0;
}

/* In every layer q there, what is known of it there and back; where blocks are chosen, another call. */
static void set_far(struct plan_model *m, const struct model_config *c)
{
    double q = 4.0 * c->n_heads * c->head_dim, states = q + 8.0 * c->n_heads;
    double choice = 4.0 * c->sparse.n_heads * c->sparse.head_dim +
                    8.0 * c->sparse.n_heads * (c->sparse.top_k - 1) +
                    4.0 * c->n_kv_heads * c->sparse.top_k;
    m->far_bytes = c->n_layers * (q + 2 * states) + m->n_sparse_layers * choice;
    m->far_calls = c->n_layers + m->n_sparse_layers;
}

static int from_config(const struct model_config *c, const struct format_set *f, bool is_quantised,
                       struct plan_model *m, struct err *e)
{
    m->n_layers = config_expert_layers(c);
    m->n_all_layers = c->n_layers;
    m->n_sparse_layers = c->sparse.block_size > 0 ? c->n_layers - c->sparse.n_full_layers : 0;
    m->max_positions = c->max_positions;
    m->has_shared = c->shared_size > 0;
    m->n_experts = c->n_experts;
    m->top_k = c->top_k;
    m->hidden = c->hidden_size;
    set_weights(m, c, f, is_quantised);
    set_far(m, c);
    return set_cache(m, c, f->kv, e);
}

int plan_model_open(const char *preset, const char *dir, const char *format, struct plan_model *out,
                    struct err *e)
{
    struct format_set f;
    struct model_config c;
    *out = (struct plan_model){0};
    int rc = format_set_parse(format, &f, e);
    if (rc < 0)
        return err_prefix(e, "--format");
    format_set_text(&f, out->format);
    snprintf(out->name, sizeof out->name, "%s", preset ? preset : dir);
    const char *named = !preset                     ? NULL
                        : strcmp(preset, "m2") == 0 ? "m2-layers-62"
                        : strcmp(preset, "m3") == 0 ? "m3-layers-60"
                                                    : preset;
    if (named && synth_preset(named, &c, NULL) < 0)
        return err_set(e, E_NOT_FOUND,
                       "--preset %s: there are m2, m3, m2-tiny, m2-mini, m2-layers-N, m3-tiny, "
                       "m3-layer and m3-layers-N",
                       preset);
    if (!preset)
        rc = config_read(dir, &c, e);
    return rc < 0 ? rc : from_config(&c, &f, preset || c.scale_block_rows > 0, out, e);
}

int plan_model_check_context(const struct plan_model *m, int64_t context, struct err *e)
{
    if (context <= m->max_positions)
        return 0;
    return err_set(e, E_RANGE, "--context %lld: max_position_embeddings of %s is %d",
                   (long long)context, m->name, m->max_positions);
}

double plan_model_stream_bytes(const struct plan_model *m, int64_t context)
{
    return m->page_bytes * (double)((context + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS);
}

int64_t plan_model_longest(const struct plan_model *m, const int64_t *bytes, int n)
{
    int64_t n_pages = 0;
    for (int i = 0; i < n; i++) {
        int64_t pages = (int64_t)((double)bytes[i] / m->page_bytes);
        n_pages += n == 1 ? pages : pages / KV_SPAN_PAGES * KV_SPAN_PAGES;
    }
    int64_t longest = n_pages * KV_PAGE_TOKENS;
    return longest < m->max_positions ? longest : m->max_positions;
}

double plan_model_attention_bytes(const struct plan_model *m, double n_tokens, double context)
{
    double cache = m->read_position_bytes * context;
    if (!m->reads_all) {
        double all = m->position_bytes * context;
        cache = cache + m->read_fixed_bytes < all ? cache + m->read_fixed_bytes : all;
    }
    return m->attention_bytes + m->head_bytes + n_tokens * cache;
}

double plan_model_row_out_bytes(const struct plan_model *m, double n_rows, double n_routes)
{
    struct wire_forward one = {
        .n_rows = 1, .hidden = (uint32_t)m->hidden, .group = (uint32_t)m->group};
    size_t row = 0;
    (void)wire_forward_rows_bytes(&one, &row);
    double of_row = (double)(row + wire_forward_routes_bytes(1, 0));
    double of_route = (double)wire_forward_routes_bytes(0, 1);
    return HEADER_BYTES + n_rows * of_row + n_routes * of_route;
}

double plan_model_row_back_bytes(const struct plan_model *m, double n_rows)
{
    return HEADER_BYTES + n_rows * m->hidden * (double)sizeof(int32_t);
}
