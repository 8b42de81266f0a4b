/* model/config.c - see config.h. */
#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "model/json.h"

enum { CONFIG_LIMIT_BYTES = 16 << 20, SIZE_LIMIT = 1 << 24, POSITIONS_LIMIT = 1 << 30 };

/* One file being read.  The first error sticks, so a list of fields reads as a list. */
struct reader {
    const char *path; /* for messages: the file, and the object in it */
    const json_t *file;
    const json_t *root; /* the object that the fields are looked for in */
    struct err *e;
    int rc;
};

#define FAIL(r, code, ...) ((r)->rc = err_set((r)->e, (code), __VA_ARGS__))

/* NULL for a field that is missing or null: both mean "not said". */
static const json_t *field(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

/* A value as the file has it, shortened, for messages. */
struct shown {
    char text[48];
};

static struct shown show(const json_t *value)
{
    struct shown s;
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    snprintf(s.text, sizeof s.text, "%.44s%s", text ? text : "nothing",
             text && strlen(text) > 44 ? "..." : "");
    free(text);
    return s;
}

static void refuse(struct reader *r, const char *name, const json_t *found, const char *expected)
{
    if (r->rc == 0)
        FAIL(r, E_UNIMPLEMENTED, "%s: %s: found %s, expected %s", r->path, name, show(found).text,
             expected);
}

static void check_size(struct reader *r, const char *name, const json_t *value, int limit, int *out)
{
    if (json_is_integer(value) && json_integer_value(value) >= 1 &&
        json_integer_value(value) <= limit)
        *out = (int)json_integer_value(value);
    else
        FAIL(r, E_INVALID, "%s: %s: found %s, expected a whole number from 1 to %d", r->path, name,
             show(value).text, limit);
}

static void read_size(struct reader *r, const char *name, int limit, int *out)
{
    const json_t *value = field(r->root, name);
    if (r->rc < 0)
        return;
    if (value)
        check_size(r, name, value, limit, out);
    else
        FAIL(r, E_INVALID, "%s: %s is missing", r->path, name);
}

static void read_size_or(struct reader *r, const char *name, int limit, int fallback, int *out)
{
    *out = fallback;
    if (r->rc == 0 && field(r->root, name))
        read_size(r, name, limit, out);
}

/* A number above `above` and at most `most`; *out keeps its value if the field is not there. */
static void read_number(struct reader *r, const json_t *object, const char *name, double above,
                        double most, double *out)
{
    const json_t *value = field(object, name);
    if (!value || r->rc < 0)
        return;
    double number = json_number_value(value);
    if (json_is_number(value) && number > above && number <= most)
        *out = number;
    else
        FAIL(r, E_INVALID, "%s: %s: found %s, expected a number above %g and at most %g", r->path,
             name, show(value).text, above, most);
}

/* What the forward pass takes for granted.  A field that is not there says the same. */
struct fixed_field {
    const char *name, *value;
};
static const struct fixed_field m2_fields[] = {
    {"hidden_act", "\"silu\""},
    {"scoring_func", "\"sigmoid\""},
    {"use_routing_bias", "true"},
    {"use_qk_norm", "true"},
    {"shared_intermediate_size", "0"},
    {"tie_word_embeddings", "false"},
    {"qk_norm_type", "\"per_layer\""},
    {"attention_bias", "false"},
    {"mlp_bias", "false"},
    {"routed_scaling_factor", "1.0"},
    {"n_group", "1"},
    {"qkv_bias", "false"},
    {NULL, NULL},
};
static const struct fixed_field m3_fields[] = {
    {"hidden_act", "\"swigluoai\""},
    {"scoring_func", "\"sigmoid\""},
    {"use_routing_bias", "true"},
    {"use_qk_norm", "true"},
    {"use_gemma_norm", "true"},
    {"qk_norm_type", "\"per_head\""},
    {"attention_output_gate", "false"},
    {"n_shared_experts", "1"},
    {"tie_word_embeddings", "false"},
    {"attention_bias", "false"},
    {"mlp_bias", "false"},
    {"n_group", "1"},
    {"qkv_bias", "false"},
    {NULL, NULL},
};
static const struct fixed_field sparse_fields[] = {
    {"use_sparse_attention", "true"},
    {"sparse_score_type", "\"max\""},
    {"sparse_init_block", "0"},
    {"sparse_local_block", "1"},
    {NULL, NULL},
};

static void check_fixed_fields(struct reader *r, const struct fixed_field *fields)
{
    for (const struct fixed_field *f = fields; f->name; f++) {
        const json_t *found = field(r->root, f->name);
        if (!found)
            continue;
        json_t *expected = json_loads(f->value, JSON_DECODE_ANY, NULL);
        bool is_same =
            json_is_number(expected)
                ? json_is_number(found) && json_number_value(found) == json_number_value(expected)
                : json_equal(found, expected);
        json_decref(expected);
        if (!is_same)
            refuse(r, f->name, found, f->value);
    }
    /* use_sliding_window false turns a window off that is still written down. */
    const json_t *window = field(r->root, "sliding_window");
    if (window && !json_is_false(json_object_get(r->root, "use_sliding_window")))
        refuse(r, "sliding_window", window, "null");
}

/* How a config.json says what it is. */
static const struct {
    const char *architecture, *type;
    enum model_family family;
    bool is_inside_vision;
} architectures[] = {
    {"MiniMaxM2ForCausalLM", "minimax_m2", MODEL_MINIMAX_M2, false},
    {"MiniMaxM3SparseForCausalLM", "minimax_m3", MODEL_MINIMAX_M3, false},
    {"MiniMaxM3SparseForConditionalGeneration", "minimax_m3_vl", MODEL_MINIMAX_M3, true},
};
#define EXPECTED_ARCHITECTURES \
    "[\"MiniMaxM2ForCausalLM\"] or [\"MiniMaxM3SparseForConditionalGeneration\"]"
#define EXPECTED_TYPES "\"minimax_m2\" or \"minimax_m3_vl\""

/* Position in architectures[], or -1. */
static int find_architecture(const char *architecture, const char *type)
{
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
        if ((architecture && strcmp(architecture, architectures[i].architecture) == 0) ||
            (type && strcmp(type, architectures[i].type) == 0))
            return (int)i;
    return -1;
}

static void read_architecture(struct reader *r, struct model_config *c)
{
    const json_t *list = field(r->root, "architectures");
    const json_t *model_type = field(r->root, "model_type");
    int found = -1;
    for (size_t i = 0; i < json_array_size(list) && found < 0; i++)
        found = find_architecture(json_string_value(json_array_get(list, i)), NULL);
    if (!list)
        found = find_architecture(NULL, json_string_value(model_type));
    if (found >= 0) {
        c->family = architectures[found].family;
        c->is_inside_vision = architectures[found].is_inside_vision;
    } else if (list) {
        refuse(r, "architectures", list, EXPECTED_ARCHITECTURES);
    } else if (model_type) {
        refuse(r, "model_type", model_type, EXPECTED_TYPES);
    } else {
        FAIL(r, E_INVALID, "%s: architectures is missing; is this a model's config.json?", r->path);
    }
}

/* One list with an entry per layer, each of which must be full attention. */
static void check_layer_list(struct reader *r, const char *name, const json_t *expected,
                             int n_layers)
{
    const json_t *list = field(r->root, name);
    if (!list || r->rc < 0)
        return;
    if (!json_is_array(list) || json_array_size(list) != (size_t)n_layers) {
        FAIL(r, E_INVALID, "%s: %s: found %s, expected a list of num_hidden_layers = %d entries",
             r->path, name, show(list).text, n_layers);
        return;
    }
    for (int i = 0; i < n_layers && r->rc == 0; i++) {
        const json_t *found = json_array_get(list, (size_t)i);
        if (!json_equal(found, expected))
            FAIL(r, E_UNIMPLEMENTED, "%s: %s[%d]: found %s, expected %s (full attention)", r->path,
                 name, i, show(found).text, show(expected).text);
    }
}

static void check_layers(struct reader *r, int n_layers)
{
    json_t *full = json_integer(1), *full_name = json_string("full_attention");
    check_layer_list(r, "attn_type_list", full, n_layers);
    check_layer_list(r, "layer_types", full_name, n_layers);
    json_decref(full);
    json_decref(full_name);
}

static void check_no_scaling(struct reader *r, const char *name, const json_t *rope)
{
    const json_t *type = field(rope, "rope_type");
    if (!type)
        type = field(rope, "type");
    if (!json_is_object(rope))
        refuse(r, name, rope, "an object or null");
    else if (type && (!json_is_string(type) || strcmp(json_string_value(type), "default") != 0))
        refuse(r, name, type, "rope_type \"default\"");
    else if (!type && field(rope, "factor"))
        refuse(r, name, rope, "no rope scaling");
}

/* The released files say rope_theta and rotary_dim; files that newer transformers wrote
 * say rope_parameters {rope_theta, partial_rotary_factor}. */
static void read_rope(struct reader *r, struct model_config *c)
{
    static const char *const groups[] = {"rope_scaling", "rope_parameters"};
    double share = 0;
    c->rope_theta = 5e6;
    read_number(r, r->root, "rope_theta", 1, 1e18, &c->rope_theta);
    read_number(r, r->root, "partial_rotary_factor", 0, 1, &share);
    for (int i = 0; i < 2; i++) {
        const json_t *rope = field(r->root, groups[i]);
        if (!rope || r->rc < 0)
            continue;
        check_no_scaling(r, groups[i], rope);
        read_number(r, rope, "rope_theta", 1, 1e18, &c->rope_theta);
        read_number(r, rope, "partial_rotary_factor", 0, 1, &share);
    }
    int by_share = share > 0 ? (int)lround(share * c->head_dim) : c->head_dim;
    read_size_or(r, "rotary_dim", SIZE_LIMIT, by_share, &c->rotary_dim);
    if (r->rc < 0)
        return;
    if (share > 0 && c->rotary_dim != by_share)
        FAIL(r, E_INVALID,
             "%s: rotary_dim is %d, but partial_rotary_factor %g of head_dim %d is %d", r->path,
             c->rotary_dim, share, c->head_dim, by_share);
    else if (c->rotary_dim < 2 || c->rotary_dim > c->head_dim || c->rotary_dim % 2 != 0)
        FAIL(r, E_INVALID,
             "%s: rotary_dim: found %d, expected an even number from 2 to head_dim = %d", r->path,
             c->rotary_dim, c->head_dim);
}

static const json_t *quantization_of(const struct reader *r)
{
    const json_t *own = field(r->root, "quantization_config");
    return own ? own : field(r->file, "quantization_config");
}

static void check_text(struct reader *r, const char *name, const json_t *found, const char *wanted)
{
    char expected[64];
    snprintf(expected, sizeof expected, "\"%s\"", wanted);
    if (!json_is_string(found) || strcmp(json_string_value(found), wanted) != 0)
        refuse(r, name, found, expected);
}

static void read_quantization(struct reader *r, struct model_config *c)
{
    const json_t *quantization = quantization_of(r);
    if (!quantization || r->rc < 0)
        return;
    const json_t *method = field(quantization, "quant_method");
    const json_t *format = field(quantization, "fmt");
    const json_t *block = field(quantization, "weight_block_size");
    const char *name = json_string_value(method);
    c->has_power_scales = name && strcmp(name, "mxfp8") == 0;
    if (!c->has_power_scales && (!name || strcmp(name, "fp8") != 0))
        refuse(r, "quantization_config.quant_method", method,
               "\"fp8\" or \"mxfp8\" (or an unquantised checkpoint)");
    else if (format && !c->has_power_scales)
        check_text(r, "quantization_config.fmt", format, "float8_e4m3fn");
    else if (c->has_power_scales && field(quantization, "scale_fmt"))
        check_text(r, "quantization_config.scale_fmt", field(quantization, "scale_fmt"), "ue8m0");
    if (r->rc == 0 && json_array_size(block) != 2)
        refuse(r, "quantization_config.weight_block_size", block, "[rows, cols]");
    if (r->rc < 0)
        return;
    name = "quantization_config.weight_block_size";
    check_size(r, name, json_array_get(block, 0), 1 << 16, &c->scale_block_rows);
    if (r->rc == 0)
        check_size(r, name, json_array_get(block, 1), 1 << 16, &c->scale_block_cols);
    if (r->rc == 0 && c->has_power_scales && c->scale_block_rows != 1)
        refuse(r, name, block, "[1, cols] with quant_method \"mxfp8\"");
}

static void add_eos(struct reader *r, struct model_config *c, const json_t *id)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX) {
        FAIL(r, E_INVALID, "%s: eos_token_id: found %s, expected a token id", r->path,
             show(id).text);
        return;
    }
    int token_id = (int)json_integer_value(id);
    if (config_is_eos(c, token_id))
        return;
    if (c->n_eos == MODEL_MAX_EOS)
        FAIL(r, E_INVALID, "%s: eos_token_id: more than %d different ids", r->path, MODEL_MAX_EOS);
    else
        c->eos_ids[c->n_eos++] = token_id;
}

static void read_eos(struct reader *r, struct model_config *c, const json_t *from)
{
    const json_t *eos = field(from, "eos_token_id");
    if (json_is_array(eos))
        for (size_t i = 0; i < json_array_size(eos) && r->rc == 0; i++)
            add_eos(r, c, json_array_get(eos, i));
    else if (eos && r->rc == 0)
        add_eos(r, c, eos);
}

static void check_consistency(struct reader *r, const struct model_config *c)
{
    if (r->rc < 0)
        return;
    if (c->n_heads % c->n_kv_heads != 0)
        FAIL(r, E_INVALID,
             "%s: num_attention_heads = %d is not a multiple of num_key_value_heads = %d", r->path,
             c->n_heads, c->n_kv_heads);
    else if ((int64_t)c->n_heads * c->head_dim > SIZE_LIMIT)
        FAIL(r, E_INVALID, "%s: num_attention_heads * head_dim = %lld is beyond %d", r->path,
             (long long)c->n_heads * c->head_dim, SIZE_LIMIT);
    else if (c->top_k > c->n_experts)
        FAIL(r, E_INVALID, "%s: num_experts_per_tok = %d is more than num_local_experts = %d",
             r->path, c->top_k, c->n_experts);
}

static void read_dimensions(struct reader *r, struct model_config *c)
{
    read_size(r, "vocab_size", SIZE_LIMIT, &c->vocab_size);
    read_size(r, "hidden_size", SIZE_LIMIT, &c->hidden_size);
    read_size(r, "num_hidden_layers", MODEL_MAX_LAYERS, &c->n_layers);
    read_size(r, "num_attention_heads", SIZE_LIMIT, &c->n_heads);
    read_size_or(r, "num_key_value_heads", SIZE_LIMIT, c->n_heads, &c->n_kv_heads);
    if (r->rc < 0)
        return;
    int whole = c->hidden_size / c->n_heads;
    read_size_or(r, "head_dim", SIZE_LIMIT, whole > 0 ? whole : 1, &c->head_dim);
    read_size(r, "intermediate_size", SIZE_LIMIT, &c->expert_size);
    read_size(r, "num_local_experts", MODEL_MAX_EXPERTS, &c->n_experts);
    read_size(r, "num_experts_per_tok", MODEL_MAX_TOP_K, &c->top_k);
    read_size_or(r, "max_position_embeddings", POSITIONS_LIMIT,
                 c->family == MODEL_MINIMAX_M3 ? 1 << 20 : 196608, &c->max_positions);
}

/* ---- MiniMax-M3 ---- */

/* A list of zeros and then ones, an entry per layer: *n_zeros, or -1 if it is not there. */
static void read_first_layers(struct reader *r, const char *name, int n_layers, int *n_zeros)
{
    const json_t *list = field(r->root, name);
    *n_zeros = -1;
    if (!list || r->rc < 0)
        return;
    if (!json_is_array(list) || json_array_size(list) != (size_t)n_layers) {
        FAIL(r, E_INVALID, "%s: %s: found %s, expected a list of num_hidden_layers = %d entries",
             r->path, name, show(list).text, n_layers);
        return;
    }
    int zeros = 0;
    for (int i = 0; i < n_layers && r->rc == 0; i++) {
        const json_t *found = json_array_get(list, (size_t)i);
        bool is_zero = json_is_integer(found) && json_integer_value(found) == 0;
        bool is_one = json_is_integer(found) && json_integer_value(found) == 1;
        if (!is_one && !(is_zero && zeros == i))
            FAIL(r, E_UNIMPLEMENTED, "%s: %s[%d]: found %s, expected zeros first and then ones",
                 r->path, name, i, show(found).text);
        zeros += is_zero;
    }
    *n_zeros = zeros;
}

static bool is_block_size(int n)
{
    return n % 16 == 0 && (n % 64 == 0 || 64 % n == 0);
}

static void check_sparse(struct reader *r, const struct model_config *c, int n_plain_values)
{
    const struct sparse_config *s = &c->sparse;
    if (r->rc < 0)
        return;
    if (s->n_heads != c->n_kv_heads)
        FAIL(r, E_INVALID,
             "%s: sparse_num_index_heads: found %d, expected num_key_value_heads = %d, one for "
             "each",
             r->path, s->n_heads, c->n_kv_heads);
    else if (!is_block_size(s->block_size))
        FAIL(r, E_UNIMPLEMENTED,
             "%s: sparse_block_size: found %d, expected 16, 32, 64 or a multiple of 64", r->path,
             s->block_size);
    else if (s->head_dim < c->rotary_dim || s->head_dim % 2 != 0)
        FAIL(r, E_INVALID,
             "%s: sparse_index_dim: found %d, expected an even number from rotary_dim = %d on",
             r->path, s->head_dim, c->rotary_dim);
    else if (n_plain_values >= 0 && n_plain_values > s->n_full_layers)
        FAIL(r, E_UNIMPLEMENTED,
             "%s: sparse_disable_index_value[%d]: found 0, expected 1 where sparse_attention_freq "
             "is 1 (no index values)",
             r->path, s->n_full_layers);
}

/* Field names in messages are those of sparse_attention_config, which the path then names. */
static void read_sparse(struct reader *r, struct model_config *c)
{
    const json_t *sparse = field(r->root, "sparse_attention_config"), *outside = r->root;
    struct sparse_config *s = &c->sparse;
    const char *path = r->path;
    int n_plain_values = -1;
    if (r->rc < 0)
        return;
    if (!json_is_object(sparse)) {
        FAIL(r, E_INVALID, "%s: sparse_attention_config is missing or no object", r->path);
        return;
    }
    char *inside = mem_format("%s: sparse_attention_config", path);
    r->path = inside;
    r->root = sparse;
    check_fixed_fields(r, sparse_fields);
    read_size(r, "sparse_index_dim", 1 << 16, &s->head_dim);
    read_size(r, "sparse_num_index_heads", SIZE_LIMIT, &s->n_heads);
    read_size(r, "sparse_topk_blocks", 1 << 16, &s->top_k);
    read_size(r, "sparse_block_size", 1 << 20, &s->block_size);
    read_first_layers(r, "sparse_attention_freq", c->n_layers, &s->n_full_layers);
    if (r->rc == 0 && s->n_full_layers < 0)
        FAIL(r, E_INVALID, "%s: sparse_attention_freq is missing", r->path);
    read_first_layers(r, "sparse_disable_index_value", c->n_layers, &n_plain_values);
    check_sparse(r, c, n_plain_values);
    r->root = outside;
    r->path = path;
    mem_free(inside);
}

static void read_m3(struct reader *r, struct model_config *c)
{
    double alpha = 1.702, limit = 7.0, beta = 1.0, scale = 2.0;
    c->has_head_norms = c->has_offset_norms = true;
    read_number(r, r->root, "swiglu_alpha", 0, 1e6, &alpha);
    read_number(r, r->root, "swiglu_limit", 0, 1e6, &limit);
    read_number(r, r->root, "swiglu_beta", -1e6, 1e6, &beta);
    read_number(r, r->root, "routed_scaling_factor", 0, 1e6, &scale);
    c->activation =
        (struct activation){ACTIVATION_SWIGLU_OAI, (float)alpha, (float)limit, (float)beta};
    c->routed_scale = (float)scale;
    read_first_layers(r, "moe_layer_freq", c->n_layers, &c->n_dense_layers);
    if (c->n_dense_layers < 0)
        c->n_dense_layers = 0;
    if (r->rc == 0 && c->n_dense_layers == c->n_layers)
        FAIL(r, E_UNIMPLEMENTED,
             "%s: moe_layer_freq: found only zeros, expected a layer with "
             "experts",
             r->path);
    if (c->n_dense_layers > 0)
        read_size(r, "dense_intermediate_size", SIZE_LIMIT, &c->dense_size);
    read_size(r, "shared_intermediate_size", SIZE_LIMIT, &c->shared_size);
    read_sparse(r, c);
}

/* ---- the file ---- */

static void read_text_model(struct reader *r, struct model_config *c)
{
    double eps = 1e-6;
    check_fixed_fields(r, c->family == MODEL_MINIMAX_M3 ? m3_fields : m2_fields);
    read_dimensions(r, c);
    check_consistency(r, c);
    read_number(r, r->root, "rms_norm_eps", 0, 1, &eps);
    c->rms_norm_eps = (float)eps;
    read_rope(r, c);
    if (c->family == MODEL_MINIMAX_M3)
        read_m3(r, c);
    else
        check_layers(r, c->n_layers);
    read_quantization(r, c);
    read_eos(r, c, r->root);
    if (r->root != r->file)
        read_eos(r, c, r->file);
}

static int read_model(struct reader *r, struct model_config *c)
{
    read_architecture(r, c);
    if (r->rc < 0 || !c->is_inside_vision) {
        read_text_model(r, c);
        return r->rc;
    }
    const json_t *text = field(r->file, "text_config");
    if (!json_is_object(text))
        return FAIL(r, E_INVALID, "%s: text_config is missing or no object", r->path);
    const char *path = r->path;
    char *inside = mem_format("%s: text_config", path);
    r->path = inside;
    r->root = text;
    read_text_model(r, c);
    r->root = r->file;
    r->path = path;
    mem_free(inside);
    return r->rc;
}

static int read_generation(struct reader *r, struct model_config *c)
{
    double top_k = c->top_k_sampling;
    read_number(r, r->root, "temperature", -1e-9, 100, &c->temperature);
    read_number(r, r->root, "top_p", 0, 1, &c->top_p);
    read_number(r, r->root, "top_k", -2, 1 << 30, &top_k);
    c->top_k_sampling = top_k > 0 ? (int)top_k : 0;
    read_eos(r, c, r->root);
    return r->rc;
}

static int read_file(const char *path, int (*read)(struct reader *r, struct model_config *c),
                     struct model_config *c, struct err *e)
{
    struct err own = {0};
    struct reader r = {.path = path, .e = e ? e : &own};
    json_t *file = json_read_object(path, CONFIG_LIMIT_BYTES, r.e);
    if (!file)
        return r.e->code;
    r.file = r.root = file;
    int rc = read(&r, c);
    json_decref(file);
    return rc;
}

int config_read(const char *model_dir, struct model_config *out, struct err *e)
{
    struct model_config c = {
        .routed_scale = 1.0f, .temperature = 1.0, .top_p = 0.95, .top_k_sampling = 40};
    char *path = mem_format("%s/config.json", model_dir);
    char *generation_path = mem_format("%s/generation_config.json", model_dir);
    int rc = read_file(path, read_model, &c, e);
    if (rc == 0 && access(generation_path, F_OK) == 0)
        rc = read_file(generation_path, read_generation, &c, e);
    if (rc == 0)
        *out = c;
    mem_free(path);
    mem_free(generation_path);
    return rc;
}

bool config_is_eos(const struct model_config *c, int token_id)
{
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos_ids[i] == token_id)
            return true;
    return false;
}

const char *config_tensor_prefix(const struct model_config *c)
{
    return c->is_inside_vision ? "language_model." : "";
}
