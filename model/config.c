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
    const char *path;
    json_t *root;
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
static const struct {
    const char *name, *value;
} fixed_fields[] = {
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
};

static void check_fixed_fields(struct reader *r)
{
    for (size_t i = 0; i < sizeof fixed_fields / sizeof *fixed_fields; i++) {
        const json_t *found = field(r->root, fixed_fields[i].name);
        if (!found)
            continue;
        json_t *expected = json_loads(fixed_fields[i].value, JSON_DECODE_ANY, NULL);
        bool is_same =
            json_is_number(expected)
                ? json_is_number(found) && json_number_value(found) == json_number_value(expected)
                : json_equal(found, expected);
        json_decref(expected);
        if (!is_same)
            refuse(r, fixed_fields[i].name, found, fixed_fields[i].value);
    }
    /* use_sliding_window false turns a window off that is still written down. */
    const json_t *window = field(r->root, "sliding_window");
    if (window && !json_is_false(json_object_get(r->root, "use_sliding_window")))
        refuse(r, "sliding_window", window, "null");
}

static void check_architecture(struct reader *r)
{
    static const char architecture[] = "MiniMaxM2ForCausalLM", type[] = "minimax_m2";
    const json_t *architectures = field(r->root, "architectures");
    const json_t *model_type = field(r->root, "model_type");
    for (size_t i = 0; i < json_array_size(architectures); i++) {
        const char *name = json_string_value(json_array_get(architectures, i));
        if (name && strcmp(name, architecture) == 0)
            return;
    }
    if (architectures)
        refuse(r, "architectures", architectures, "[\"MiniMaxM2ForCausalLM\"]");
    else if (!model_type)
        FAIL(r, E_INVALID, "%s: architectures is missing; is this a model's config.json?", r->path);
    else if (!json_is_string(model_type) || strcmp(json_string_value(model_type), type) != 0)
        refuse(r, "model_type", model_type, "\"minimax_m2\"");
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

static void read_quantization(struct reader *r, struct model_config *c)
{
    const json_t *quantization = field(r->root, "quantization_config");
    if (!quantization || r->rc < 0)
        return;
    const json_t *method = field(quantization, "quant_method");
    const json_t *format = field(quantization, "fmt");
    const json_t *block = field(quantization, "weight_block_size");
    if (!json_is_string(method) || strcmp(json_string_value(method), "fp8") != 0)
        refuse(r, "quantization_config.quant_method", method,
               "\"fp8\" (or an unquantised checkpoint)");
    else if (format &&
             (!json_is_string(format) || strcmp(json_string_value(format), "float8_e4m3fn") != 0))
        refuse(r, "quantization_config.fmt", format, "\"float8_e4m3fn\"");
    else if (json_array_size(block) != 2)
        refuse(r, "quantization_config.weight_block_size", block, "[rows, cols]");
    if (r->rc < 0)
        return;
    const char *name = "quantization_config.weight_block_size";
    check_size(r, name, json_array_get(block, 0), 1 << 16, &c->scale_block_rows);
    if (r->rc == 0)
        check_size(r, name, json_array_get(block, 1), 1 << 16, &c->scale_block_cols);
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

static void read_eos(struct reader *r, struct model_config *c)
{
    const json_t *eos = field(r->root, "eos_token_id");
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
    read_size_or(r, "max_position_embeddings", POSITIONS_LIMIT, 196608, &c->max_positions);
}

static int read_model(struct reader *r, struct model_config *c)
{
    double eps = 1e-6;
    check_architecture(r);
    check_fixed_fields(r);
    read_dimensions(r, c);
    check_consistency(r, c);
    check_layers(r, c->n_layers);
    read_number(r, r->root, "rms_norm_eps", 0, 1, &eps);
    c->rms_norm_eps = (float)eps;
    read_rope(r, c);
    read_quantization(r, c);
    read_eos(r, c);
    return r->rc;
}

static int read_generation(struct reader *r, struct model_config *c)
{
    double top_k = c->top_k_sampling;
    read_number(r, r->root, "temperature", -1e-9, 100, &c->temperature);
    read_number(r, r->root, "top_p", 0, 1, &c->top_p);
    read_number(r, r->root, "top_k", -2, 1 << 30, &top_k);
    c->top_k_sampling = top_k > 0 ? (int)top_k : 0;
    read_eos(r, c);
    return r->rc;
}

static int read_file(const char *path, int (*read)(struct reader *r, struct model_config *c),
                     struct model_config *c, struct err *e)
{
    struct err own = {0};
    struct reader r = {.path = path, .e = e ? e : &own};
    r.root = json_read_object(path, CONFIG_LIMIT_BYTES, r.e);
    if (!r.root)
        return r.e->code;
    int rc = read(&r, c);
    json_decref(r.root);
    return rc;
}

int config_read(const char *model_dir, struct model_config *out, struct err *e)
{
    struct model_config c = {
        .family = MODEL_MINIMAX_M2, .temperature = 1.0, .top_p = 0.95, .top_k_sampling = 40};
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
