/* tools/synth_tensors.c - see synth_tensors.h.
 *
 * Only additions, multiplications, divisions and square roots make the values, all of
 * which IEEE 754 rounds in one way: no libm, so every machine writes the same bytes. */
#include "tools/synth_tensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "model/fp8.h"
#include "model/halves.h"
#include "model/mx.h"

/* Spread of each kind of weight, in units of 1 / sqrt(inputs): attention and experts add
 * to the stream about as much as they should for it to grow slowly; logits spread by 2. */
#define GAIN_PLAIN 1.0f
#define GAIN_DOWN 2.0f
#define GAIN_HEAD 2.0f
#define SPREAD_NORM 0.1f
#define SPREAD_BIAS 0.05f

static void add(struct synth_list *l, enum dtype dtype, int64_t rows, int64_t cols, float mean,
                float spread, const char *name)
{
    struct synth_tensor *t = &l->tensors[l->n_tensors++];
    snprintf(t->name, sizeof t->name, "%s", name);
    t->declaration = (struct safetensors_declaration){
        .name = t->name, .dtype = dtype, .n_dims = cols > 0 ? 2 : 1, .dims = {rows, cols}};
    t->mean = mean;
    t->spread = spread;
    t->size_bytes = rows * (cols > 0 ? cols : 1) * (int64_t)dtype_bytes(dtype);
    /* Saturates: sizes at their limits add up to more, and no disk has room for that. */
    bool fits = l->total_bytes <= INT64_MAX - t->size_bytes;
    l->total_bytes = fits ? l->total_bytes + t->size_bytes : INT64_MAX;
}

/* One layer's, one expert's or the model's corner of the name space. */
struct corner {
    struct synth_list *list;
    const struct model_config *config;
    enum dtype weight_dtype, norm_dtype;
    char prefix[96];
};

static void set_prefix(struct corner *k, int layer, const char *part)
{
    snprintf(k->prefix, sizeof k->prefix, "%smodel.layers.%d.%s", config_tensor_prefix(k->config),
             layer, part);
}

static float norm_mean(const struct model_config *c)
{
    return c->has_offset_norms ? 0.0f : 1.0f;
}

static void add_vector(struct corner *k, const char *name, int64_t rows)
{
    char full[TENSOR_NAME_BYTES];
    snprintf(full, sizeof full, "%s%s.weight", k->prefix, name);
    add(k->list, k->norm_dtype, rows, 0, norm_mean(k->config), SPREAD_NORM, full);
}

static void add_matrix(struct corner *k, const char *name, int64_t rows, int64_t cols, float gain)
{
    char full[TENSOR_NAME_BYTES];
    float spread = gain / sqrtf((float)cols);
    snprintf(full, sizeof full, "%s%s.weight", k->prefix, name);
    add(k->list, k->weight_dtype, rows, cols, 0.0f, spread, full);
    if (k->weight_dtype != DTYPE_F8_E4M3)
        return;
    snprintf(full, sizeof full, "%s%s.weight_scale_inv", k->prefix, name);
    if (k->config->family == MODEL_MINIMAX_M3) {
        add(k->list, DTYPE_U8, rows, fp8_blocks(cols, MX_BLOCK), spread, 0.0f, full);
        return;
    }
    add(k->list, DTYPE_F32, fp8_blocks(rows, FP8_BLOCK), fp8_blocks(cols, FP8_BLOCK), spread, 0.0f,
        full);
}

static void add_index(struct corner *k, const struct model_config *c)
{
    const struct sparse_config *s = &c->sparse;
    add_matrix(k, "self_attn.index_q_proj", (int64_t)s->n_heads * s->head_dim, c->hidden_size,
               GAIN_PLAIN);
    add_matrix(k, "self_attn.index_k_proj", s->head_dim, c->hidden_size, GAIN_PLAIN);
    add_vector(k, "self_attn.index_q_norm", s->head_dim);
    add_vector(k, "self_attn.index_k_norm", s->head_dim);
}

static void add_mlp(struct corner *k, const struct model_config *c, const char *part, int size)
{
    char name[64];
    snprintf(name, sizeof name, "%sgate_proj", part);
    add_matrix(k, name, size, c->hidden_size, GAIN_PLAIN);
    snprintf(name, sizeof name, "%sup_proj", part);
    add_matrix(k, name, size, c->hidden_size, GAIN_PLAIN);
    snprintf(name, sizeof name, "%sdown_proj", part);
    add_matrix(k, name, c->hidden_size, size, GAIN_DOWN);
}

/* A corner of the released file that a text model skips. */
static void add_vision(struct synth_list *l, enum dtype dtype, int hidden)
{
    add(l, dtype, 8, 16, 0.0f, 1.0f, "vision_tower.vision_model.embeddings.patch_embedding.weight");
    add(l, dtype, hidden, 8, 0.0f, 1.0f, "multi_modal_projector.linear_1.weight");
}

static void add_layer(struct corner *k, const struct model_config *c, int layer)
{
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    char full[TENSOR_NAME_BYTES];
    set_prefix(k, layer, "");
    add_vector(k, "input_layernorm", c->hidden_size);
    add_matrix(k, "self_attn.q_proj", q, c->hidden_size, GAIN_PLAIN);
    add_matrix(k, "self_attn.k_proj", kv, c->hidden_size, GAIN_PLAIN);
    add_matrix(k, "self_attn.v_proj", kv, c->hidden_size, GAIN_PLAIN);
    add_matrix(k, "self_attn.o_proj", c->hidden_size, q, GAIN_PLAIN);
    add_vector(k, "self_attn.q_norm", c->has_head_norms ? c->head_dim : q);
    add_vector(k, "self_attn.k_norm", c->has_head_norms ? c->head_dim : kv);
    if (config_is_sparse(c, layer))
        add_index(k, c);
    add_vector(k, "post_attention_layernorm", c->hidden_size);
    if (layer < c->n_dense_layers) {
        add_mlp(k, c, "mlp.", c->dense_size);
        return;
    }
    if (c->shared_size > 0)
        add_mlp(k, c, "block_sparse_moe.shared_experts.", c->shared_size);
    snprintf(full, sizeof full, "%sblock_sparse_moe.gate.weight", k->prefix);
    add(k->list, DTYPE_F32, c->n_experts, c->hidden_size, 0.0f,
        GAIN_PLAIN / sqrtf((float)c->hidden_size), full);
    snprintf(full, sizeof full, "%sblock_sparse_moe.e_score_correction_bias", k->prefix);
    add(k->list, DTYPE_F32, c->n_experts, 0, 0.0f, SPREAD_BIAS, full);
    for (int expert = 0; expert < c->n_experts; expert++) {
        char part[64];
        snprintf(part, sizeof part, "block_sparse_moe.experts.%d.", expert);
        set_prefix(k, layer, part);
        add_matrix(k, "w1", c->expert_size, c->hidden_size, GAIN_PLAIN);
        add_matrix(k, "w2", c->hidden_size, c->expert_size, GAIN_DOWN);
        add_matrix(k, "w3", c->expert_size, c->hidden_size, GAIN_PLAIN);
    }
}

void synth_list_init(struct synth_list *l, const struct model_config *c, enum dtype dtype)
{
    enum dtype other = dtype == DTYPE_F8_E4M3 ? DTYPE_BF16 : dtype;
    size_t per_layer = 2 * (9 + 3 * (size_t)c->n_experts) + 8;
    struct corner k = {.list = l, .config = c, .weight_dtype = dtype, .norm_dtype = other};
    char full[TENSOR_NAME_BYTES];
    const char *prefix = config_tensor_prefix(c);
    *l = (struct synth_list){
        .tensors = mem_array(per_layer * (size_t)c->n_layers + 5, sizeof *l->tensors)};
    snprintf(full, sizeof full, "%smodel.embed_tokens.weight", prefix);
    add(l, other, c->vocab_size, c->hidden_size, 0.0f, 1.0f, full);
    for (int layer = 0; layer < c->n_layers; layer++)
        add_layer(&k, c, layer);
    snprintf(full, sizeof full, "%smodel.norm.weight", prefix);
    add(l, other, c->hidden_size, 0, norm_mean(c), SPREAD_NORM, full);
    snprintf(full, sizeof full, "%slm_head.weight", prefix);
    add(l, other, c->vocab_size, c->hidden_size, 0.0f, GAIN_HEAD / sqrtf((float)c->hidden_size),
        full);
    if (c->is_inside_vision)
        add_vision(l, other, c->hidden_size);
}

void synth_list_drop(struct synth_list *l, const char *part)
{
    int kept = 0;
    l->total_bytes = 0;
    for (int i = 0; i < l->n_tensors; i++) {
        if (strstr(l->tensors[i].name, part))
            continue;
        struct synth_tensor *t = &l->tensors[kept++];
        *t = l->tensors[i];
        t->declaration.name = t->name;
        l->total_bytes += t->size_bytes;
    }
    l->n_tensors = kept;
}

void synth_list_fini(struct synth_list *l)
{
    mem_free(l->tensors);
    *l = (struct synth_list){0};
}

struct synth_source {
    uint64_t seed;
    struct rng random;
    const struct synth_tensor *tensor;
    float bell[SYNTH_BELL_STEPS]; /* equally likely values of mean 0 and spread 1 */
    uint8_t fp8[256];             /* the same as FP8 bytes, filling its range */
    float fp8_spread;             /* of the bytes' values */
    union {
        uint16_t bf16[SYNTH_BELL_STEPS];
        float f32[SYNTH_BELL_STEPS];
    } table; /* the present tensor's values */
    uint8_t chunk[SYNTH_CHUNK_BYTES];
};

/* Share of sums of four uniform numbers that lie below x (Irwin-Hall). */
static double bell_below(double x)
{
    static const double weights[] = {1, -4, 6, -4};
    double sum = 0;
    for (int k = 0; k < 4 && x > k; k++)
        sum += weights[k] * (x - k) * (x - k) * (x - k) * (x - k);
    return sum / 24;
}

/* Values at the middle of n equally likely steps, unit spread. */
static void bell_steps(float *out, int n)
{
    double squares = 0;
    for (int i = 0; i < n; i++) {
        double low = 0, high = 4;
        for (int round = 0; round < 50; round++) {
            double middle = (low + high) / 2;
            if (bell_below(middle) < (i + 0.5) / n)
                low = middle;
            else
                high = middle;
        }
        out[i] = (float)(low - 2);
        squares += (double)out[i] * out[i];
    }
    float spread = (float)sqrt(squares / n);
    for (int i = 0; i < n; i++)
        out[i] /= spread;
}

struct synth_source *synth_source_new(uint64_t seed)
{
    struct synth_source *s = mem_alloc(sizeof *s);
    float steps[256];
    double squares = 0;
    s->seed = seed;
    bell_steps(s->bell, SYNTH_BELL_STEPS);
    bell_steps(steps, 256);
    for (int i = 0; i < 256; i++) {
        s->fp8[i] = fp8_encode(steps[i] / steps[255] * FP8_MAX);
        squares += (double)fp8_decode(s->fp8[i]) * fp8_decode(s->fp8[i]);
    }
    s->fp8_spread = (float)sqrt(squares / 256);
    return s;
}

void synth_source_free(struct synth_source **s)
{
    mem_free(*s);
    *s = NULL;
}

void synth_source_begin(struct synth_source *s, const struct synth_tensor *t)
{
    s->tensor = t;
    s->random = rng_stream(s->seed, XXH64(t->name, strlen(t->name), 0));
    if (t->declaration.dtype == DTYPE_F8_E4M3 || t->spread == 0)
        return;
    for (int i = 0; i < SYNTH_BELL_STEPS; i++) {
        float value = t->mean + t->spread * s->bell[i];
        if (t->declaration.dtype == DTYPE_BF16)
            s->table.bf16[i] = f32_to_bf16(value);
        else
            s->table.f32[i] = value;
    }
}

static void fill_fp8(struct synth_source *s, int64_t words)
{
    for (int64_t i = 0; i < words; i++) {
        uint64_t bits = rng_next(&s->random), out = 0;
        for (int b = 0; b < 64; b += 8)
            out |= (uint64_t)s->fp8[bits >> b & 0xff] << b;
        memcpy(s->chunk + i * 8, &out, sizeof out);
    }
}

static void fill_bf16(struct synth_source *s, int64_t words)
{
    for (int64_t i = 0; i < words; i++) {
        uint64_t bits = rng_next(&s->random), out = 0;
        for (int b = 0; b < 64; b += 16)
            out |= (uint64_t)s->table.bf16[bits >> b & (SYNTH_BELL_STEPS - 1)] << b;
        memcpy(s->chunk + i * 8, &out, sizeof out);
    }
}

static void fill_f32(struct synth_source *s, int64_t words)
{
    for (int64_t i = 0; i < words; i++) {
        uint64_t bits = rng_next(&s->random);
        float pair[2] = {s->table.f32[bits & (SYNTH_BELL_STEPS - 1)],
                         s->table.f32[bits >> 32 & (SYNTH_BELL_STEPS - 1)]};
        memcpy(s->chunk + i * 8, pair, sizeof pair);
    }
}

/* Each block's scale lies within a quarter of the mean, so that mixing blocks up shows. */
static void fill_scales(struct synth_source *s, int64_t words)
{
    for (int64_t i = 0; i < words * 2; i++) {
        float factor = 0.75f + 0.5f * (float)rng_unit(&s->random);
        float scale = s->tensor->mean / s->fp8_spread * factor;
        memcpy(s->chunk + i * 4, &scale, sizeof scale);
    }
}

/* Exponents that lie one to either side of what the spread asks for. */
static void fill_powers(struct synth_source *s, int64_t words)
{
    int middle;
    (void)frexpf(s->tensor->mean / s->fp8_spread, &middle);
    for (int64_t i = 0; i < words * 8; i++)
        s->chunk[i] = (uint8_t)(MX_SCALE_BIAS + middle - 1 + (int)(rng_next(&s->random) % 2));
}

const void *synth_source_next(struct synth_source *s, int64_t bytes)
{
    int64_t words = (bytes + 7) / 8;
    enum dtype dtype = s->tensor->declaration.dtype;
    must(bytes > 0 && bytes <= SYNTH_CHUNK_BYTES);
    if (dtype == DTYPE_F8_E4M3)
        fill_fp8(s, words);
    else if (dtype == DTYPE_BF16)
        fill_bf16(s, words);
    else if (dtype == DTYPE_U8)
        fill_powers(s, words);
    else if (s->tensor->spread > 0)
        fill_f32(s, words);
    else
        fill_scales(s, words);
    return s->chunk;
}
