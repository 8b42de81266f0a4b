/* engine/forward.c - the layer loop; see engine/forward.h. */
#include "engine/forward.h"

#include <limits.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/attention.h"
#include "engine/combine.h"
#include "engine/lanes.h"
#include "engine/matrix.h"
#include "engine/mlp.h"

enum { FLOATS_UNIT = 16 };

struct layer {
    struct attention_weights attention;
    float *post_norm;
    bool has_experts, has_mlp;
    struct router router; /* has_experts */
    struct expert mlp;    /* has_mlp: with experts the shared one */
};

/* Consecutive rows of a step on their way through the layers. */
struct lane {
    int index;
    int first_row, n_rows; /* n_rows: those that still go on */
    int first_wanted, n_wanted;
    const struct step_seq *seqs;
    int n_seqs;
    struct routing routing;
    struct moe_rows rows; /* while they are out */
    struct mlp *shared;   /* NULL where the model has none */
    bool is_out;
};

struct forward {
    struct model_config config;
    struct compute compute;
    struct layer *layers; /* [n_layers] */
    struct tensor embedding;
    float *final_norm;
    struct matrix lm_head;
    struct attention *attention;
    struct mlp *dense; /* NULL where the model has no such MLP */
    struct lane lanes[FORWARD_LANES];
    struct step_seq *lane_seqs; /* [max_rows + 1]: the lanes' one behind the other */
    int max_rows;
    bool has_window; /* sparse layers see their last blocks */

    size_t h_stride;                         /* floats; hidden with padding that stays zero */
    float *x;                                /* [max_rows, hidden]: the residual stream */
    float *h;                                /* [max_rows, h_stride]: its norm */
    struct rows_room expert_room, head_room; /* h quantised, where that format reads it so */
    int16_t *exponents;                      /* [max_rows] */
    float *scores;                           /* [max_rows, n_experts] */
    struct routing routing;                  /* [max_rows] */
    int32_t *row_tokens;
    int32_t *logit_rows; /* [max_rows]: the rows whose logits are wanted */
    float *logits;       /* [logits_rows, vocab]; grows with what is asked for */
    size_t logits_bytes;
    size_t scratch_bytes;

    /* The call in progress. */
    const float *norm;
    int first_row; /* of the lane whose turn it is */
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

static bool take_mlp(struct forward *f, int rows, int size, int group, struct mlp **out)
{
    *out = size > 0 ? mlp_new(rows, f->config.hidden_size, size, group) : NULL;
    f->scratch_bytes += mlp_bytes(*out);
    return size == 0 || *out;
}

static bool take_mlps(struct forward *f, int group)
{
    int dense = f->config.n_dense_layers > 0 ? f->config.dense_size : 0;
    int shared = f->config.shared_size, second = lanes_most_rows(f->max_rows);
    return take_mlp(f, f->max_rows, dense, group, &f->dense) &&
           take_mlp(f, f->max_rows, shared, group, &f->lanes[0].shared) &&
           take_mlp(f, second, shared, group, &f->lanes[1].shared);
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
    f->lane_seqs = mem_array((size_t)f->max_rows + 1, sizeof(*f->lane_seqs));
    if (!f->x || !f->h || !f->exponents || !f->scores || !f->routing.experts ||
        !f->routing.weights || !f->row_tokens || !f->logit_rows ||
        !rows_room_open(&f->expert_room, f->max_rows, f->config.hidden_size,
                        format_group(formats->experts)) ||
        !rows_room_open(&f->head_room, f->max_rows, f->config.hidden_size, f->lm_head.group))
        return err_set(e, E_NOMEM, "no memory for steps of %d rows", f->max_rows);
    f->scratch_bytes += f->expert_room.bytes + f->head_room.bytes;
    if (!take_mlps(f, format_group(formats->experts)))
        return err_set(e, E_NOMEM, "no memory for the MLPs of %d rows", f->max_rows);
    struct attention_options attention = {.max_rows = f->max_rows,
                                          .group = f->layers[0].attention.wq.group,
                                          .kv = formats->kv,
                                          .choice = f->has_window ? MSA_LAST : MSA_BEST};
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
    f->has_window = o->window_blocks > 0 && f->config.sparse.block_size > 0;
    if (f->has_window)
        f->config.sparse.top_k = o->window_blocks;
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
    for (int i = 0; i < FORWARD_LANES; i++)
        mlp_free(&f->lanes[i].shared);
    mem_free(f->lane_seqs);
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

int forward_set_far(struct forward *f, const struct far_ops *ops, void *ud, struct kv *kv,
                    uint32_t max_seqs, struct err *e)
{
    return attention_set_far(f->attention, ops, ud, kv, max_seqs, e);
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

static void expert_input_task(void *ctx, int lane_row)
{
    struct forward *f = ctx;
    int hidden = f->config.hidden_size, row = f->first_row + lane_row;
    float *h = f->h + (size_t)row * f->h_stride;
    f->compute.kernels->rms_norm(x_row(f, row), f->norm, hidden, f->config.rms_norm_eps, h);
    f->exponents[row] = (int16_t)combine_exponent(x_row(f, row), hidden);
    quantise_row(f, &f->expert_room, row);
}

/* Attention of the last layer has written every key and value; from there on only the rows
 * whose logits are wanted go on, and they move together. */
static void keep_wanted_rows(struct forward *f, struct lane *l)
{
    size_t row_bytes = (size_t)f->config.hidden_size * sizeof(*f->x);
    int32_t *wanted = f->logit_rows + l->first_wanted;
    for (int i = 0; i < l->n_wanted; i++) {
        memmove(x_row(f, l->first_row + i), x_row(f, wanted[i]), row_bytes);
        wanted[i] = l->first_row + i;
    }
    l->n_rows = l->n_wanted;
}

/* The step in progress, for all lanes. */
struct pass {
    struct kv *kv;
    const struct step *step;
    const struct moe_ops *ops;
    void *ud;
    int n_lanes;
};

/* Rows go out; the shared expert works meanwhile. */
static int send_rows(struct forward *f, const struct pass *p, struct lane *l, int layer)
{
    const struct layer *weights = &f->layers[layer];
    size_t first = (size_t)l->first_row, route = first * (size_t)f->config.top_k;
    l->routing.experts = f->routing.experts + route;
    l->routing.weights = f->routing.weights + route;
    router_route(&f->compute, &weights->router, f->h + first * f->h_stride, f->h_stride, l->n_rows,
                 f->scores, &l->routing);
    struct rows all = normed_rows(f, &f->expert_room, l->first_row + l->n_rows);
    l->rows = (struct moe_rows){.layer = layer - f->config.n_dense_layers,
                                .n_rows = l->n_rows,
                                .hidden = f->config.hidden_size,
                                .rows = rows_part(&all, l->first_row, l->n_rows),
                                .exponents = f->exponents + first,
                                .routing = &l->routing};
    int rc = p->ops->scatter(p->ud, l->index, &l->rows);
    if (rc < 0)
        return rc;
    l->is_out = true;
    if (weights->has_mlp)
        mlp_run(l->shared, &f->compute, &weights->mlp, &l->rows.rows);
    return 0;
}

/* What follows attention in a layer, as far as it goes without waiting. */
static int begin_mlp(struct forward *f, const struct pass *p, struct lane *l, int layer)
{
    const struct layer *weights = &f->layers[layer];
    f->norm = weights->post_norm;
    f->first_row = l->first_row;
    pool_run(f->compute.pool, expert_input_task, f, l->n_rows);
    if (weights->has_experts)
        return send_rows(f, p, l, layer);
    struct rows all = normed_rows(f, &f->expert_room, l->first_row + l->n_rows);
    struct rows x = rows_part(&all, l->first_row, l->n_rows);
    mlp_run(f->dense, &f->compute, &weights->mlp, &x);
    mlp_add(f->dense, &f->compute, x_row(f, l->first_row));
    return 0;
}

static int begin_layer(struct forward *f, const struct pass *p, struct lane *l, int layer)
{
    int rc = attention_layer(f->attention, l->index, &f->layers[layer].attention, p->kv, layer,
                             x_row(f, l->first_row));
    if (rc < 0)
        return rc;
    if (p->step->attended)
        p->step->attended(p->step->layer_done_ud, layer);
    /* A probe wants to see every row. */
    if (layer == f->config.n_layers - 1 && !p->step->probe)
        keep_wanted_rows(f, l);
    return l->n_rows > 0 ? begin_mlp(f, p, l, layer) : 0;
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
                 layer < f->config.n_dense_layers ? NULL : &f->lanes[0].routing);
}

static int end_layer(struct forward *f, const struct pass *p, struct lane *l, int layer)
{
    const struct step *s = p->step;
    if (l->is_out) {
        l->is_out = false;
        int rc = p->ops->gather(p->ud, l->index, x_row(f, l->first_row));
        if (rc < 0)
            return rc;
        if (f->layers[layer].has_mlp)
            mlp_add(l->shared, &f->compute, x_row(f, l->first_row));
    }
    probe(f, s, layer, l->n_rows);
    if (s->layer_done)
        s->layer_done(s->layer_done_ud, layer,
                      l->n_rows > 0 && layer >= f->config.n_dense_layers ? &l->routing : NULL);
    return 0;
}

/* Every lane attends while the other's experts work, the first one always ahead. */
static int run_layers(struct forward *f, const struct pass *p)
{
    int rc = 0;
    for (int layer = 0; rc == 0 && layer <= f->config.n_layers; layer++)
        for (int i = 0; rc == 0 && i < p->n_lanes; i++) {
            if (layer > 0)
                rc = end_layer(f, p, &f->lanes[i], layer - 1);
            if (rc == 0 && layer < f->config.n_layers)
                rc = begin_layer(f, p, &f->lanes[i], layer);
        }
    for (int i = 0; i < p->n_lanes; i++) {
        if (f->lanes[i].is_out)
            p->ops->abandon(p->ud, i);
        f->lanes[i].is_out = false;
    }
    return rc;
}

/* Whose rows and wanted logits lie where; returns how many lanes there are. */
static int plan_lanes(struct forward *f, const struct step *s, int n_rows, int n_wanted)
{
    bool may_cut = s->has_two_lanes && !s->probe && !s->probe_blocks;
    int cut = may_cut ? lanes_cut(s->seqs, s->n_seqs) : 0, n_before = 0;
    struct lane *a = &f->lanes[0], *b = &f->lanes[1];
    *a = (struct lane){.n_rows = n_rows,
                       .n_wanted = n_wanted,
                       .seqs = s->seqs,
                       .n_seqs = s->n_seqs,
                       .shared = a->shared};
    if (cut == 0)
        return 1;
    while (n_before < n_wanted && f->logit_rows[n_before] < cut)
        n_before++;
    int n_first = lanes_deal(s->seqs, s->n_seqs, cut, f->lane_seqs), n_all = s->n_seqs;
    const struct step_seq *last = &f->lane_seqs[n_first - 1];
    n_all += last->n_tokens < s->seqs[n_first - 1].n_tokens;
    a->n_rows = cut;
    a->n_wanted = n_before;
    a->seqs = f->lane_seqs;
    a->n_seqs = n_first;
    *b = (struct lane){.index = 1,
                       .first_row = cut,
                       .n_rows = n_rows - cut,
                       .first_wanted = n_before,
                       .n_wanted = n_wanted - n_before,
                       .seqs = f->lane_seqs + n_first,
                       .n_seqs = n_all - n_first,
                       .shared = b->shared};
    return 2;
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

int forward_step(struct forward *f, struct kv *kv, const struct step *s, const struct moe_ops *ops,
                 void *ud, const float **logits, int *n_logits)
{
    int n_rows = 0, n_wanted = 0;
    int rc = plan_rows(f, s, &n_rows, &n_wanted);
    if (rc == 0)
        rc = grow_logits(f, n_wanted);
    if (rc < 0)
        return rc;
    struct pass pass = {
        .kv = kv, .step = s, .ops = ops, .ud = ud, .n_lanes = plan_lanes(f, s, n_rows, n_wanted)};
    for (int i = 0; rc == 0 && i < pass.n_lanes; i++)
        rc = attention_begin(f->attention, i, f->lanes[i].seqs, f->lanes[i].n_seqs);
    if (rc < 0)
        return rc;
    pool_run(f->compute.pool, embed_task, f, n_rows);
    probe(f, s, -1, n_rows);
    rc = run_layers(f, &pass);
    if (rc < 0)
        return rc;
    if (n_wanted > 0)
        run_head(f, n_wanted);
    for (int i = 0; i < s->n_seqs; i++)
        s->seqs[i].kv->length += s->seqs[i].n_tokens;
    *logits = f->logits;
    *n_logits = n_wanted;
    return 0;
}
