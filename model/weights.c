/* model/weights.c - see weights.h. */
#include "model/weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include "model/fp8.h"
#include "model/mx.h"
#include "model/packed.h"

enum {
    DTYPES_FLOAT = 1 << DTYPE_F32 | 1 << DTYPE_F16 | 1 << DTYPE_BF16,
    DTYPES_FP8 = 1 << DTYPE_F8_E4M3,
    DTYPES_POWER = 1 << DTYPE_U8 | 1 << DTYPE_F8_E8M0
};

/* What a tensor must look like; cols = 0 for a vector. */
struct wanted {
    int dtypes; /* bit per enum dtype */
    int64_t rows, cols;
};

/* A tensor's full name: the prefix of its layer or expert, then its own. */
struct full_name {
    char text[TENSOR_NAME_BYTES];
};

static struct full_name join(const char *prefix, const char *name)
{
    struct full_name full;
    int len = snprintf(full.text, sizeof full.text, "%s%s", prefix, name);
    must(len > 0 && (size_t)len < sizeof full.text);
    return full;
}

static void dtypes_text(int dtypes, char *out, size_t size)
{
    size_t len = 0;
    for (int d = 0; d < DTYPE_OTHER; d++)
        if (dtypes & 1 << d && len < size)
            len += (size_t)snprintf(out + len, size - len, "%s%s", len ? " or " : "",
                                    dtype_name((enum dtype)d));
}

static int check_tensor(const struct tensor *t, const char *name, struct wanted w, struct err *e)
{
    char found[TENSOR_TEXT_BYTES], dtypes[64] = "";
    bool is_shape = w.cols > 0 ? t->n_dims == 2 && t->dims[0] == w.rows && t->dims[1] == w.cols
                               : t->n_dims == 1 && t->dims[0] == w.rows;
    if (is_shape && w.dtypes & 1 << t->dtype)
        return 0;
    tensor_text(t, found);
    dtypes_text(w.dtypes, dtypes, sizeof dtypes);
    if (w.cols > 0)
        return err_set(e, E_CORRUPT, "%s: expected %s [%lld, %lld], file has %s", name, dtypes,
                       (long long)w.rows, (long long)w.cols, found);
    return err_set(e, E_CORRUPT, "%s: expected %s [%lld], file has %s", name, dtypes,
                   (long long)w.rows, found);
}

static int find_checked(struct checkpoint *c, const char *name, struct wanted w, struct tensor *out,
                        struct err *e)
{
    int rc = checkpoint_find(c, name, out, e);
    return rc < 0 ? rc : check_tensor(out, name, w, e);
}

static int check_finite(const struct tensor *t, const char *name, struct err *e)
{
    float values[256];
    int64_t count = (int64_t)(t->size_bytes / dtype_bytes(t->dtype));
    for (int64_t at = 0; at < count; at += 256) {
        int64_t n = count - at < 256 ? count - at : 256;
        tensor_read_f32(t, at, n, values);
        for (int64_t i = 0; i < n; i++)
            if (!isfinite(values[i]))
                return err_set(e, E_CORRUPT,
                               "%s: element %lld is %g, expected a finite number; "
                               "fetch the file again",
                               name, (long long)(at + i), (double)values[i]);
    }
    return 0;
}

/* A vector of small floats whose every element must be finite. */
static int bind_vector(struct checkpoint *c, struct full_name name, int64_t rows,
                       struct tensor *out, struct err *e)
{
    struct wanted w = {DTYPES_FLOAT, rows, 0};
    int rc = find_checked(c, name.text, w, out, e);
    return rc < 0 ? rc : check_finite(out, name.text, e);
}

/* A released file calls these bytes U8. */
static int check_powers(struct tensor *t, const char *name, struct err *e)
{
    const uint8_t *bytes = t->data, *bad = memchr(bytes, MX_SCALE_NAN, t->size_bytes);
    t->dtype = DTYPE_F8_E8M0;
    if (!bad)
        return 0;
    return err_set(
        e, E_CORRUPT,
        "%s: scale %lld is 255 (not a number), expected an exponent from 0 to 254; fetch "
        "the file again",
        name, (long long)(bad - bytes));
}

static int bind_scale(struct checkpoint *c, const char *weight_name, struct linear_view *l,
                      struct err *e)
{
    const struct model_config *m = checkpoint_config(c);
    struct full_name name = join(weight_name, "_scale_inv");
    if (m->scale_block_rows == 0)
        return err_set(e, E_CORRUPT,
                       "%s is F8_E4M3, but config.json has no quantization_config that gives "
                       "weight_block_size",
                       weight_name);
    l->block_rows = m->scale_block_rows;
    l->block_cols = m->scale_block_cols;
    struct wanted w = {m->has_power_scales ? DTYPES_POWER : 1 << DTYPE_F32,
                       fp8_blocks(l->rows, l->block_rows), fp8_blocks(l->cols, l->block_cols)};
    int rc = find_checked(c, name.text, w, &l->scale, e);
    if (rc < 0)
        return rc;
    return m->has_power_scales ? check_powers(&l->scale, name.text, e)
                               : check_finite(&l->scale, name.text, e);
}

/* `l` says label, rows and cols; the rest is filled. */
static int bind_linear(struct checkpoint *c, const char *prefix, struct linear_view *l,
                       struct err *e)
{
    struct full_name name = join(join(prefix, l->label).text, ".weight");
    struct wanted w = {DTYPES_FLOAT | DTYPES_FP8, l->rows, l->cols};
    int rc = find_checked(c, name.text, w, &l->weight, e);
    if (rc == 0 && l->weight.dtype == DTYPE_F8_E4M3)
        rc = bind_scale(c, name.text, l, e);
    return rc;
}

/* The matrices of a blob, in its order.  The views say label, rows and cols. */
static int bind_blob(struct checkpoint *c, int index, enum packed_part part,
                     struct linear_view *const *views, struct err *e)
{
    struct packed *p = checkpoint_packed(c);
    const struct packed_part_info *info = &packed_contents(p)->parts[part];
    const void *data;
    int rc = packed_find(p, index, &data, e);
    if (rc < 0)
        return rc;
    const char *at = data;
    for (int i = 0; i < info->n_matrices; i++) {
        views[i]->packed = at;
        views[i]->packed_bytes = info->matrix_bytes[i];
        views[i]->packed_format = info->format;
        views[i]->copies_packed = checkpoint_how(c)->copies;
        at += info->matrix_bytes[i];
    }
    return 0;
}

/* The matrices of a part: from its blob, or tensor by tensor. */
static int bind_part(struct checkpoint *c, enum packed_part part, int layer, int expert,
                     const char *prefix, struct linear_view *const *views, struct err *e)
{
    struct packed *p = checkpoint_packed(c);
    if (p)
        return bind_blob(c, packed_blob_index(packed_contents(p), part, layer, expert), part, views,
                         e);
    int rc = 0;
    for (int i = 0; i < packed_part_matrices(part) && rc == 0; i++)
        rc = bind_linear(c, prefix, views[i], e);
    return rc;
}

static struct full_name layer_prefix(const struct model_config *m, int layer, const char *part)
{
    struct full_name prefix;
    snprintf(prefix.text, sizeof prefix.text, "%smodel.layers.%d.%s", config_tensor_prefix(m),
             layer, part);
    return prefix;
}

/* Never packed: their matrices are read as they are stored. */
static int bind_index(struct checkpoint *c, const char *prefix, struct layer_view *v, struct err *e)
{
    const struct model_config *m = checkpoint_config(c);
    const struct sparse_config *s = &m->sparse;
    v->is_sparse = true;
    v->index_q = (struct linear_view){
        .label = "index_q_proj", .rows = (int64_t)s->n_heads * s->head_dim, .cols = m->hidden_size};
    v->index_k =
        (struct linear_view){.label = "index_k_proj", .rows = s->head_dim, .cols = m->hidden_size};
    int rc = bind_linear(c, prefix, &v->index_q, e);
    if (rc == 0)
        rc = bind_linear(c, prefix, &v->index_k, e);
    if (rc == 0)
        rc = bind_vector(c, join(prefix, "index_q_norm.weight"), s->head_dim, &v->index_q_norm, e);
    if (rc == 0)
        rc = bind_vector(c, join(prefix, "index_k_norm.weight"), s->head_dim, &v->index_k_norm, e);
    return rc;
}

/* The width of what every row of a layer goes through, and where it is; 0: nothing. */
static int mlp_size(const struct model_config *m, int layer, const char **part)
{
    bool is_dense = layer < m->n_dense_layers;
    *part = is_dense ? "mlp." : "block_sparse_moe.shared_experts.";
    return is_dense ? m->dense_size : m->shared_size;
}

static enum packed_part mlp_part(const struct model_config *m, int layer)
{
    return layer < m->n_dense_layers ? PACKED_DENSE : PACKED_SHARED;
}

static int bind_mlp(struct checkpoint *c, int layer, struct layer_view *v, struct err *e)
{
    const struct model_config *m = checkpoint_config(c);
    const char *part;
    int size = mlp_size(m, layer, &part);
    v->has_mlp = size > 0;
    if (!v->has_mlp)
        return 0;
    struct full_name prefix = layer_prefix(m, layer, part);
    struct linear_view *const views[] = {&v->mlp.gate, &v->mlp.up, &v->mlp.down};
    v->mlp = (struct expert_view){
        .gate = {.label = "gate_proj", .rows = size, .cols = m->hidden_size},
        .up = {.label = "up_proj", .rows = size, .cols = m->hidden_size},
        .down = {.label = "down_proj", .rows = m->hidden_size, .cols = size},
        .activation = m->activation,
    };
    return bind_part(c, mlp_part(m, layer), layer, 0, prefix.text, views, e);
}

static int bind_router(struct checkpoint *c, int layer, struct layer_view *v, struct err *e)
{
    const struct model_config *m = checkpoint_config(c);
    v->has_experts = layer >= m->n_dense_layers;
    if (!v->has_experts)
        return 0;
    struct full_name gate = layer_prefix(m, layer, "block_sparse_moe.gate.weight");
    struct full_name bias = layer_prefix(m, layer, "block_sparse_moe.e_score_correction_bias");
    struct wanted gate_wanted = {DTYPES_FLOAT, m->n_experts, m->hidden_size};
    int rc = find_checked(c, gate.text, gate_wanted, &v->router_gate, e);
    return rc < 0 ? rc : bind_vector(c, bias, m->n_experts, &v->router_bias, e);
}

static int bind_attention(struct checkpoint *c, int layer, struct layer_view *v, struct err *e)
{
    const struct model_config *m = checkpoint_config(c);
    struct full_name prefix = layer_prefix(m, layer, "self_attn.");
    int64_t q = (int64_t)m->n_heads * m->head_dim, kv = (int64_t)m->n_kv_heads * m->head_dim;
    v->wq = (struct linear_view){.label = "q_proj", .rows = q, .cols = m->hidden_size};
    v->wk = (struct linear_view){.label = "k_proj", .rows = kv, .cols = m->hidden_size};
    v->wv = (struct linear_view){.label = "v_proj", .rows = kv, .cols = m->hidden_size};
    v->wo = (struct linear_view){.label = "o_proj", .rows = m->hidden_size, .cols = q};
    struct linear_view *const views[] = {&v->wq, &v->wk, &v->wv, &v->wo};
    bool by_head = m->has_head_norms;
    int rc = bind_part(c, PACKED_ATTENTION, layer, 0, prefix.text, views, e);
    if (rc == 0)
        rc = bind_vector(c, join(prefix.text, "q_norm.weight"), by_head ? m->head_dim : q,
                         &v->q_norm, e);
    if (rc == 0)
        rc = bind_vector(c, join(prefix.text, "k_norm.weight"), by_head ? m->head_dim : kv,
                         &v->k_norm, e);
    if (rc == 0 && config_is_sparse(m, layer))
        rc = bind_index(c, prefix.text, v, e);
    return rc;
}

int weights_layer(struct checkpoint *c, int layer, struct layer_view *out, struct err *e)
{
    const struct model_config *m = checkpoint_config(c);
    struct layer_view v = {.has_offset_norms = m->has_offset_norms};
    must(layer >= 0 && layer < m->n_layers);
    struct full_name prefix = layer_prefix(m, layer, "");
    int rc = bind_vector(c, join(prefix.text, "input_layernorm.weight"), m->hidden_size,
                         &v.input_norm, e);
    if (rc == 0)
        rc = bind_attention(c, layer, &v, e);
    if (rc == 0)
        rc = bind_vector(c, join(prefix.text, "post_attention_layernorm.weight"), m->hidden_size,
                         &v.post_norm, e);
    if (rc == 0)
        rc = bind_router(c, layer, &v, e);
    if (rc == 0)
        rc = bind_mlp(c, layer, &v, e);
    if (rc == 0)
        *out = v;
    return rc;
}

static struct full_name expert_prefix(const struct model_config *m, int layer, int expert)
{
    struct full_name prefix;
    snprintf(prefix.text, sizeof prefix.text, "%smodel.layers.%d.block_sparse_moe.experts.%d.",
             config_tensor_prefix(m), layer + m->n_dense_layers, expert);
    return prefix;
}

int weights_expert(struct checkpoint *c, int layer, int expert, struct expert_view *out,
                   struct err *e)
{
    const struct model_config *m = checkpoint_config(c);
    must(layer >= 0 && layer < config_expert_layers(m));
    must(expert >= 0 && expert < m->n_experts);
    struct full_name prefix = expert_prefix(m, layer, expert);
    struct expert_view v = {
        .gate = {.label = "w1", .rows = m->expert_size, .cols = m->hidden_size},
        .up = {.label = "w3", .rows = m->expert_size, .cols = m->hidden_size},
        .down = {.label = "w2", .rows = m->hidden_size, .cols = m->expert_size},
        .activation = m->activation,
    };
    struct linear_view *const views[] = {&v.gate, &v.up, &v.down};
    int rc = bind_part(c, PACKED_EXPERTS, layer + m->n_dense_layers, expert, prefix.text, views, e);
    if (rc == 0)
        *out = v;
    return rc;
}

int weights_model(struct checkpoint *c, struct model_view *out, struct err *e)
{
    const struct model_config *m = checkpoint_config(c);
    struct model_view v = {
        .has_offset_norms = m->has_offset_norms,
        .lm_head = {.label = "lm_head", .rows = m->vocab_size, .cols = m->hidden_size}};
    struct wanted embedding = {DTYPES_FLOAT, m->vocab_size, m->hidden_size};
    const char *prefix = config_tensor_prefix(m);
    int rc =
        find_checked(c, join(prefix, "model.embed_tokens.weight").text, embedding, &v.embedding, e);
    if (rc == 0)
        rc = bind_vector(c, join(prefix, "model.norm.weight"), m->hidden_size, &v.final_norm, e);
    if (rc == 0)
        rc = bind_part(c, PACKED_HEAD, 0, 0, prefix, (struct linear_view *const[]){&v.lm_head}, e);
    if (rc == 0)
        *out = v;
    return rc;
}

/* ---- advice ---- */

static const char *const labels[PACKED_PARTS][PACKED_MAX_MATRICES] = {
    [PACKED_EXPERTS] = {"w1", "w3", "w2"},
    [PACKED_ATTENTION] = {"q_proj", "k_proj", "v_proj", "o_proj"},
    [PACKED_HEAD] = {"lm_head"},
    [PACKED_DENSE] = {"gate_proj", "up_proj", "down_proj"},
    [PACKED_SHARED] = {"gate_proj", "up_proj", "down_proj"},
};

static void advise(struct checkpoint *c, enum packed_part part, int layer, int expert,
                   const char *prefix, enum mapping_advice a)
{
    struct packed *p = checkpoint_packed(c);
    if (p) {
        packed_advise(p, packed_blob_index(packed_contents(p), part, layer, expert), a);
        return;
    }
    /* Scales are small and share their pages with other tensors. */
    for (int i = 0; i < packed_part_matrices(part); i++)
        checkpoint_advise(c, join(join(prefix, labels[part][i]).text, ".weight").text, a);
}

void weights_advise_expert(struct checkpoint *c, int layer, int expert, enum mapping_advice a)
{
    const struct model_config *m = checkpoint_config(c);
    advise(c, PACKED_EXPERTS, layer + m->n_dense_layers, expert,
           expert_prefix(m, layer, expert).text, a);
}

void weights_advise_layer(struct checkpoint *c, int layer, enum mapping_advice a)
{
    const struct model_config *m = checkpoint_config(c);
    advise(c, PACKED_ATTENTION, layer, 0, layer_prefix(m, layer, "self_attn.").text, a);
}

void weights_advise_mlp(struct checkpoint *c, int layer, enum mapping_advice a)
{
    const struct model_config *m = checkpoint_config(c);
    const char *part;
    if (mlp_size(m, layer, &part) == 0)
        return;
    advise(c, mlp_part(m, layer), layer, 0, layer_prefix(m, layer, part).text, a);
}

void weights_advise_model(struct checkpoint *c, enum mapping_advice a)
{
    advise(c, PACKED_HEAD, 0, 0, config_tensor_prefix(checkpoint_config(c)), a);
}
