/* tools/plan_model.c - see plan_model.h. */
#include "tools/plan_model.h"

#include <stdio.h>
#include <string.h>

#include "engine/kernels.h"
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

/* Of one number in the cache; int8 has a scale for each key and value of a head. */
static double bytes_per_kv(enum kv_format f, int head_dim)
{
    return f == KV_F32 ? 4 : f == KV_BF16 ? 2 : 1 + 4.0 / head_dim;
}

/* Numbers of weights by part. */
struct parts {
    double expert, attention, attention_bf16, router, head;
};

static void set_bytes(struct plan_model *m, const struct parts *p, const struct format_set *f,
                      double native, double native_head)
{
    m->expert_bytes = p->expert * bytes_per_weight(f->experts, native);
    m->attention_bytes = p->attention * bytes_per_weight(f->attention, native) +
                         p->attention_bf16 * 2 + p->router * 4;
    m->head_bytes = p->head * bytes_per_weight(f->head, native_head);
    m->embedding_bytes = p->head * 2;
    m->group = format_group(f->experts);
}

static void from_config(const struct model_config *c, const struct format_set *f, bool is_quantised,
                        struct plan_model *m)
{
    double hidden = c->hidden_size, layers = c->n_layers;
    double q = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
    struct parts p = {.expert = 3.0 * hidden * c->expert_size,
                      .attention = layers * (2 * q + 2 * kv) * hidden,
                      .router = layers * c->n_experts * (hidden + 1),
                      .head = (double)c->vocab_size * hidden};
    m->n_layers = c->n_layers;
    m->n_experts = c->n_experts;
    m->top_k = c->top_k;
    m->hidden = c->hidden_size;
    set_bytes(m, &p, f, is_quantised ? bytes_per_weight(FORMAT_FP8, 0) : 2, 2);
    m->position_bytes = 2 * layers * kv * bytes_per_kv(f->kv, c->head_dim);
    m->read_position_bytes = m->position_bytes;
    m->reads_all = true;
}

/* MiniMax-M3, text only: 60 layers, 57 of them with experts and with attention to the 2,048 tokens
 * that an index of one key per token chooses; 3 dense ones. */
static void m3(const struct format_set *f, struct plan_model *m)
{
    enum { LAYERS = 60, SPARSE = 57, KV_HEADS = 4, HEAD = 128, CHOSEN = 2048 };
    struct parts p = {.expert = 3.0 * 6144 * 3072,
                      .attention = 6417285120.0 + 679477248.0 + 3227516928.0,
                      .attention_bf16 = 224133120.0,
                      .router = 44833920.0,
                      .head = 1229193216.0};
    m->n_layers = SPARSE;
    m->n_experts = 128;
    m->top_k = 4;
    m->hidden = 6144;
    set_bytes(m, &p, f, 1 + 1.0 / 32, 2);
    double kv = bytes_per_kv(f->kv, HEAD), layer = 2 * KV_HEADS * HEAD * kv;
    double index = SPARSE * HEAD * (f->kv == KV_INT8 ? kv : 2);
    m->position_bytes = LAYERS * layer + index;
    m->read_position_bytes = (LAYERS - SPARSE) * layer + index;
    m->read_fixed_bytes = SPARSE * layer * CHOSEN;
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
    if (preset && strcmp(preset, "m3") == 0) {
        m3(&f, out);
        return 0;
    }
    if (preset && strcmp(preset, "m2") == 0)
        preset = "m2-layers-62";
    if (preset && synth_preset(preset, &c, NULL) < 0)
        return err_set(e, E_NOT_FOUND,
                       "--preset %s: there are m2, m3, m2-tiny, m2-mini and m2-layers-N", preset);
    if (!preset)
        rc = config_read(dir, &c, e);
    if (rc == 0)
        from_config(&c, &f, preset || c.scale_block_rows > 0, out);
    return rc;
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
