/* engine/forward.c - the layer loop; see engine/forward.h. */
#include "engine/forward.h"

#include <limits.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/attention.h"
#include "engine/combine.h"
#include "engine/matrix.h"
#include "engine/mlp.h"

enum { FLOATS_UNIT = 16, LANE = 0 };

struct layer {
    struct attention_weights attention;
    float *post_norm;
    bool has_experts, has_mlp;
    struct router router; /* has_experts */
    struct expert mlp;    /* has_mlp: with experts the shared one */
};

struct forward {
    struct model_config config;
    struct compute compute;
    struct layer *layers; /* [n_layers] */
    struct tensor embedding;
    float *final_norm;
    struct matrix lm_head;
    struct attention *attention;
    struct mlp *dense, *shared; /* NULL where the model has no such MLP */
    int max_rows;

    size_t h_stride;                         /* floats; hidden with padding that stays zero */
    float *x;                                /* [max_rows, hidden]: the residual stream */
    float *h;                                /* [max_rows, h_stride]: its norm */
    struct rows_room expert_room, head_room; /* h quantised, where that format reads it so */
    int16_t *exponents;                      /* [max_rows] */
    float *scores;                           /* [max_rows, n_experts] */
    struct routing routing;
    int32_t *row_tokens;
    int32_t *logit_rows; /* [max_rows]: the rows whose logits are wanted */
    float *logits;       /* [logits_rows, vocab]; grows with what is asked for */
    size_t logits_bytes;
    size_t scratch_bytes;

    /* The call in progress. */
    const float *norm;
};

/* ---- loading ---- */

static int load_layer(struct forward *f, struct checkpoint *c, int index,
                      const struct format_set *formats, struct err *e)
{
    struct layer *layer = &f->layers[index];
    struct layer_view view;
    int rc = weights_layer(c, index, &view, e);
    if (rc == 0 && !config_is_sparse(&f->config, index))
        view.is_sparse = false;
    if (rc == 0)
        rc = attention_load(&layer->attention, &view, formats->attention, &f->compute, e);
    if (rc == 0 && view.has_experts)
        rc = router_load(&layer->router, &view.router_gate, &view.router_bias, f->config.top_k,
                         &f->compute, e);
    if (rc == 0 && view.has_mlp)
        rc = expert_load(&layer->mlp, &view.mlp, formats->experts, &f->compute, e);
    if (rc < 0)
        return err_prefix(e, "layer %d", index);
    layer->has_experts = view.has_experts;
    layer->has_mlp = view.has_mlp;
    layer->router.scale = f->config.routed_scale;
    layer->post_norm = attention_vector(&view.post_norm, view.has_offset_norms);
    if (!layer->attention.wq.is_borrowed)
        weights_advise_layer(c, index, MAPPING_DONE);
    if (layer->has_mlp && layer->mlp.room)
        weights_advise_mlp(c, index, MAPPING_DONE);
    return 0;
}

static int load_weights(struct forward *f, struct checkpoint *c, const struct format_set *formats,
                        struct err *e)
{
    struct model_view view;
    int rc = weights_model(c, &view, e);
    if (rc < 0)
        return rc;
    f->embedding = view.embedding;
    f->final_norm = attention_vector(&view.final_norm, view.has_offset_norms);
    rc = matrix_pack(&f->lm_head, &view.lm_head, formats->head, NULL, &f->compute, e);
    if (rc == 0 && !f->lm_head.is_borrowed)
        weights_advise_model(c, MAPPING_DONE);
    for (int i = 0; rc == 0 && i < f->config.n_layers; i++)
        rc = load_layer(f, c, i, formats, e);
    return rc;
}

/* NULL when memory is out or the product does not fit. */
static void *scratch(struct forward *f, size_t count, size_t unit_bytes)
{
    size_t bytes;
    if (!mem_mul((size_t)f->max_rows, count, &bytes) || !mem_mul(bytes, unit_bytes, &bytes))
        return NULL;
    f->scratch_bytes += bytes;
    return mem_try_aligned(bytes);
}

static bool take_mlp(struct forward *f, int size, int group, struct mlp **out)
{
    *out = size > 0 ? mlp_new(f->max_rows, f->config.hidden_size, size, group) : NULL;
    f->scratch_bytes += mlp_bytes(*out);
    return size == 0 || *out;
}

static bool take_mlps(struct forward *f, int group)
{
    return take_mlp(f, f->config.n_dense_layers > 0 ? f->config.dense_size : 0, group, &f->dense) &&
           take_mlp(f, f->config.shared_size, group, &f->shared);
}

static int take_scratch(struct forward *f, const struct format_set *formats, struct err *e)
{
    size_t hidden = (size_t)f->config.hidden_size, top_k = (size_t)f->config.top_k;
    f->h_stride = mem_round_up(hidden, FLOATS_UNIT);
    f->x = scratch(f, hidden, sizeof(float));
    f->h = scratch(f, f->h_stride, sizeof(float));
    f->exponents = scratch(f, 1, sizeof(*f->exponents));
    f->scores = scratch(f, (size_t)f->config.n_experts, sizeof(float));
    f->routing.experts = scratch(f, top_k, sizeof(*f->routing.experts));
    f->routing.weights = scratch(f, top_k, sizeof(*f->routing.weights));
    f->row_tokens = scratch(f, 1, sizeof(*f->row_tokens));
    f->logit_rows = scratch(f, 1, sizeof(*f->logit_rows));
    if (!f->x || !f->h || !f->exponents || !f->scores || !f->routing.experts ||
        !f->routing.weights || !f->row_tokens || !f->logit_rows ||
        !rows_room_open(&f->expert_room, f->max_rows, f->config.hidden_size,
                        format_group(formats->experts)) ||
        !rows_room_open(&f->head_room, f->max_rows, f->config.hidden_size, f->lm_head.group))
        return err_set(e, E_NOMEM, "no memory for steps of %d rows", f->max_rows);
    f->scratch_bytes += f->expert_room.bytes + f->head_room.bytes;
    if (!take_mlps(f, format_group(formats->experts)))
        return err_set(e, E_NOMEM, "no memory for the MLPs of %d rows", f->max_rows);
    struct attention_options attention = {
        .max_rows = f->max_rows, .group = f->layers[0].attention.wq.group, .kv = formats->kv};
    return attention_open(&f->config, &attention, f->compute, &f->attention, e);
}

int forward_open(struct checkpoint *c, const struct forward_options *o, struct compute compute,
                 struct forward **out, struct err *e)
{
    must(o->max_rows >= 1);
    struct forward *f = mem_alloc(sizeof(*f));
    f->config = *checkpoint_config(c);
    if (o->sees_all)
        f->config.sparse = (struct sparse_config){0};
    f->compute = compute;
    f->max_rows = o->max_rows;
    f->layers = mem_array((size_t)f->config.n_layers, sizeof(*f->layers));
    int rc = load_weights(f, c, &o->formats, e);
    if (rc == 0)
        rc = take_scratch(f, &o->formats, e);
    if (rc < 0)
        forward_close(&f);
    *out = f;
    return rc;
}

void forward_close(struct forward **forward)
{
    struct forward *f = *forward;
    if (!f)
        return;
    for (int i = 0; i < f->config.n_layers; i++) {
        attention_fini(&f->layers[i].attention);
        router_fini(&f->layers[i].router);
        expert_fini(&f->layers[i].mlp);
        mem_free(f->layers[i].post_norm);
    }
    mem_free(f->layers);
    mem_free(f->final_norm);
    matrix_fini(&f->lm_head);
    attention_close(&f->attention);
    mlp_free(&f->dense);
    mlp_free(&f->shared);
    rows_room_close(&f->expert_room);
    rows_room_close(&f->head_room);
    void *const blocks[] = {f->x,
                            f->h,
                            f->exponents,
                            f->scores,
                            f->routing.experts,
                            f->routing.weights,
                            f->row_tokens,
                            f->logit_rows,
                            f->logits};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        mem_free(blocks[i]);
    mem_free(f);
    *forward = NULL;
}

size_t forward_bytes(const struct forward *f)
{
    size_t bytes = matrix_bytes(&f->lm_head) + f->scratch_bytes + f->logits_bytes +
                   attention_scratch_bytes(f->attention);
    for (int i = 0; i < f->config.n_layers; i++)
        bytes += attention_bytes(&f->layers[i].attention) +
                 matrix_bytes(&f->layers[i].router.gate) + expert_bytes(&f->layers[i].mlp);
    return bytes;
}

/* ---- a step ---- */

/* Lays out the rows and marks whose logits are wanted; E_INVALID for a strange token. */
static int plan_rows(struct forward *f, const struct step *s, int *n_rows, int *n_logits)
{
    int rows = 0, logits = 0;
    must(s->n_seqs >= 1);
    for (int i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seqs[i];
        must(q->n_tokens >= 1 && q->n_tokens <= f->max_rows - rows);
        must(q->position == q->kv->length && q->position <= INT_MAX - q->n_tokens);
        must((q->position + q->n_tokens - 1) / KV_PAGE_TOKENS < q->kv->n_pages);
        /* There is room for the scores of so many. */
        if (f->config.sparse.block_size > 0 && q->position + q->n_tokens > f->config.max_positions)
            return E_RANGE;
        for (int j = 0; j < q->n_tokens; j++, rows++) {
            if (q->tokens[j] < 0 || q->tokens[j] >= f->config.vocab_size)
                return E_INVALID;
            f->row_tokens[rows] = q->tokens[j];
            bool is_last = j == q->n_tokens - 1;
            if (q->all_logits || (is_last && !q->no_logits))
                f->logit_rows[logits++] = rows;
        }
    }
    *n_rows = rows;
    *n_logits = logits;
    return 0;
}

static int grow_logits(struct forward *f, int n_logits)
{
    size_t bytes;
    if (!mem_mul((size_t)n_logits, (size_t)f->config.vocab_size, &bytes) ||
        !mem_mul(bytes, sizeof(float), &bytes))
        return E_NOMEM;
    if (bytes <= f->logits_bytes)
        return 0;
    mem_free(f->logits);
    f->logits_bytes = 0;
    f->logits = mem_try_aligned(bytes);
    if (!f->logits)
        return E_NOMEM;
    f->logits_bytes = bytes;
    return 0;
}

static float *x_row(const struct forward *f, int row)
{
    return f->x + (size_t)row * (size_t)f->config.hidden_size;
}

static void embed_task(void *ctx, int row)
{
    struct forward *f = ctx;
    int64_t hidden = f->config.hidden_size;
    tensor_read_f32(&f->embedding, f->row_tokens[row] * hidden, hidden, x_row(f, row));
}

static void quantise_row(const struct forward *f, const struct rows_room *room, int row)
{
    size_t at = (size_t)row, scale = at * room->scale_stride;
    if (room->group)
        f->compute.kernels->quantise(f->h + at * f->h_stride, room->cols, room->group,
                                     room->q8 + at * room->q8_stride, room->scales + scale,
                                     room->sums + scale);
}

/* The first rows of h, and their quantised form where there is one. */
static struct rows normed_rows(const struct forward *f, const struct rows_room *room, int n_rows)
{
    struct rows rows = {0};
    if (room->group)
        rows = rows_room_view(room, n_rows);
    rows.n_rows = n_rows;
    rows.cols = f->config.hidden_size;
    rows.f32 = f->h;
    rows.f32_stride = f->h_stride;
    return rows;
}

static void expert_input_task(void *ctx, int row)
{
    struct forward *f = ctx;
    int hidden = f->config.hidden_size;
    float *h = f->h + (size_t)row * f->h_stride;
    f->compute.kernels->rms_norm(x_row(f, row), f->norm, hidden, f->config.rms_norm_eps, h);
    f->exponents[row] = (int16_t)combine_exponent(x_row(f, row), hidden);
    quantise_row(f, &f->expert_room, row);
}

/* Attention of the last layer has written every key and value; from there on only the rows
 * whose logits are wanted go on, and they move together. */
static int keep_wanted_rows(struct forward *f, int n_wanted)
{
    size_t row_bytes = (size_t)f->config.hidden_size * sizeof(*f->x);
    for (int i = 0; i < n_wanted; i++) {
        memmove(x_row(f, i), x_row(f, f->logit_rows[i]), row_bytes);
        f->logit_rows[i] = i;
    }
    return n_wanted;
}

static int run_experts(struct forward *f, int layer, int n_rows, const struct moe_ops *ops,
                       void *ud)
{
    const struct layer *l = &f->layers[layer];
    router_route(&f->compute, &l->router, f->h, f->h_stride, n_rows, f->scores, &f->routing);
    struct moe_rows rows = {.layer = layer - f->config.n_dense_layers,
                            .n_rows = n_rows,
                            .hidden = f->config.hidden_size,
                            .rows = normed_rows(f, &f->expert_room, n_rows),
                            .exponents = f->exponents,
                            .routing = &f->routing};
    int rc = ops->scatter(ud, LANE, &rows);
    if (rc < 0)
        return rc;
    /* While the parcels are out. */
    if (l->has_mlp)
        mlp_run(f->shared, &f->compute, &l->mlp, &rows.rows);
    rc = ops->gather(ud, LANE, f->x);
    if (rc == 0 && l->has_mlp)
        mlp_add(f->shared, &f->compute, f->x);
    return rc;
}

/* What follows attention in a layer. */
static int run_mlp(struct forward *f, int layer, int n_rows, const struct moe_ops *ops, void *ud)
{
    const struct layer *l = &f->layers[layer];
    f->norm = l->post_norm;
    pool_run(f->compute.pool, expert_input_task, f, n_rows);
    if (l->has_experts)
        return run_experts(f, layer, n_rows, ops, ud);
    struct rows x = normed_rows(f, &f->expert_room, n_rows);
    mlp_run(f->dense, &f->compute, &l->mlp, &x);
    mlp_add(f->dense, &f->compute, f->x);
    return 0;
}

static void output_task(void *ctx, int i)
{
    struct forward *f = ctx;
    f->compute.kernels->rms_norm(x_row(f, f->logit_rows[i]), f->final_norm, f->config.hidden_size,
                                 f->config.rms_norm_eps, f->h + (size_t)i * f->h_stride);
    quantise_row(f, &f->head_room, i);
}

static void run_head(struct forward *f, int n_logits)
{
    pool_run(f->compute.pool, output_task, f, n_logits);
    struct rows x = normed_rows(f, &f->head_room, n_logits);
    matmul(&f->compute, &f->lm_head, &x, f->logits, (size_t)f->config.vocab_size);
}

static void probe(struct forward *f, const struct step *s, int layer, int n_rows)
{
    for (int row = 0; s->probe_blocks && layer >= 0 && row < n_rows; row++)
        for (int head = 0; config_is_sparse(&f->config, layer) && head < f->config.n_kv_heads;
             head++)
            s->probe_blocks(s->probe_ud, layer, row, head,
                            attention_blocks(f->attention, row, head));
    if (s->probe)
        s->probe(s->probe_ud, layer, f->x, n_rows,
                 layer < f->config.n_dense_layers ? NULL : &f->routing);
}

int forward_step(struct forward *f, struct kv *kv, const struct step *s, const struct moe_ops *ops,
                 void *ud, const float **logits, int *n_logits)
{
    int n_rows = 0, n_wanted = 0;
    int rc = plan_rows(f, s, &n_rows, &n_wanted);
    if (rc == 0)
        rc = grow_logits(f, n_wanted);
    if (rc < 0)
        return rc;
    attention_begin(f->attention, s);
    pool_run(f->compute.pool, embed_task, f, n_rows);
    probe(f, s, -1, n_rows);
    for (int layer = 0; layer < f->config.n_layers; layer++) {
        attention_layer(f->attention, &f->layers[layer].attention, kv, layer, f->x);
        if (s->attended)
            s->attended(s->layer_done_ud, layer);
        /* A probe wants to see every row. */
        if (layer == f->config.n_layers - 1 && !s->probe)
            n_rows = keep_wanted_rows(f, n_wanted);
        rc = n_rows > 0 ? run_mlp(f, layer, n_rows, ops, ud) : 0;
        if (rc < 0)
            return rc;
        probe(f, s, layer, n_rows);
        if (s->layer_done)
            s->layer_done(s->layer_done_ud, layer,
                          n_rows > 0 && layer >= f->config.n_dense_layers ? &f->routing : NULL);
    }
    if (n_wanted > 0)
        run_head(f, n_wanted);
    for (int i = 0; i < s->n_seqs; i++)
        s->seqs[i].kv->length += s->seqs[i].n_tokens;
    *logits = f->logits;
    *n_logits = n_wanted;
    return 0;
}
