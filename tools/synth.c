/* tools/synth.c - see synth.h: options and presets. */
#include "tools/synth.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/conf.h"
#include "model/config.h"
#include "tools/synth_gguf.h"
#include "tools/synth_packed.h"

/* Seconds to build and to run, yet every mechanism is there: 256 experts, top-8, GQA. */
static const struct model_config tiny = {
    .vocab_size = 1024,
    .hidden_size = 128,
    .n_layers = 4,
    .n_heads = 8,
    .n_kv_heads = 2,
    .head_dim = 32,
    .rotary_dim = 16,
    .expert_size = 64,
    .n_experts = 256,
    .top_k = 8,
    .max_positions = 4096,
    .rope_theta = 5e6,
    .rms_norm_eps = 1e-6f,
};

/* Large enough for a benchmark to mean something, 0.9 GB in FP8. */
static const struct model_config mini = {
    .vocab_size = 8192,
    .hidden_size = 1024,
    .n_layers = 8,
    .n_heads = 16,
    .n_kv_heads = 4,
    .head_dim = 64,
    .rotary_dim = 32,
    .expert_size = 512,
    .n_experts = 64,
    .top_k = 8,
    .max_positions = 32768,
    .rope_theta = 5e6,
    .rms_norm_eps = 1e-6f,
};

/* The released M2, but for the number of layers. */
static const struct model_config full = {
    .vocab_size = 200064,
    .hidden_size = 3072,
    .n_layers = 62,
    .n_heads = 48,
    .n_kv_heads = 8,
    .head_dim = 128,
    .rotary_dim = 64,
    .expert_size = 1536,
    .n_experts = 256,
    .top_k = 8,
    .max_positions = 196608,
    .rope_theta = 5e6,
    .rms_norm_eps = 1e-6f,
};

/* The released M3's constants that are no sizes. */
#define M3_RULES \
    .family = MODEL_MINIMAX_M3, .is_inside_vision = true, .has_head_norms = true, \
    .has_offset_norms = true, .activation = {ACTIVATION_SWIGLU_OAI, 1.702f, 7.0f, 1.0f}, \
    .routed_scale = 2.0f, .rope_theta = 5e6, .rms_norm_eps = 1e-6f

/* Every mechanism of M3 in small: a dense layer, sparse ones whose rows begin to choose at
 * position 64, two index heads, a shared expert. */
static const struct model_config m3_tiny = {
    M3_RULES,
    .vocab_size = 1024,
    .hidden_size = 128,
    .n_layers = 4,
    .n_heads = 8,
    .n_kv_heads = 2,
    .head_dim = 32,
    .rotary_dim = 16,
    .expert_size = 64,
    .n_experts = 32,
    .top_k = 4,
    .max_positions = 4096,
    .n_dense_layers = 1,
    .dense_size = 128,
    .shared_size = 64,
    .sparse = {.n_full_layers = 1, .block_size = 16, .top_k = 4, .n_heads = 2, .head_dim = 32},
};

/* One sparse layer of the released M3, with a small vocabulary. */
static const struct model_config m3_layer = {
    M3_RULES,
    .vocab_size = 1024,
    .hidden_size = 6144,
    .n_layers = 1,
    .n_heads = 64,
    .n_kv_heads = 4,
    .head_dim = 128,
    .rotary_dim = 64,
    .expert_size = 3072,
    .n_experts = 128,
    .top_k = 4,
    .max_positions = 1 << 20,
    .shared_size = 3072,
    .sparse = {.block_size = 128, .top_k = 16, .n_heads = 4, .head_dim = 128},
};

/* As many layers of the released M3, its three dense ones first. */
static void m3_layers(int n_layers, struct model_config *out)
{
    enum { DENSE = 3 };
    *out = m3_layer;
    out->n_layers = n_layers;
    out->vocab_size = full.vocab_size;
    out->n_dense_layers = out->sparse.n_full_layers = DENSE;
    out->dense_size = 12288;
}

void synth_defaults(struct synth_options *o)
{
    *o = (struct synth_options){.config = tiny,
                                .dtype = DTYPE_F8_E4M3,
                                .seed = 1,
                                .shard_bytes = 4LL << 30,
                                .has_tokenizer = true};
}

static bool parse_whole(const char *text, long long least, long long most, long long *out)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < least || value > most)
        return false;
    *out = value;
    return true;
}

int synth_preset(const char *name, struct model_config *out, struct err *e)
{
    static const char layers[] = "m2-layers-", layers_of_m3[] = "m3-layers-";
    long long n_layers;
    if (strcmp(name, "m2-tiny") == 0) {
        *out = tiny;
    } else if (strcmp(name, "m2-mini") == 0) {
        *out = mini;
    } else if (strcmp(name, "m3-tiny") == 0) {
        *out = m3_tiny;
    } else if (strcmp(name, "m3-layer") == 0) {
        *out = m3_layer;
    } else if (strncmp(name, layers, strlen(layers)) == 0 &&
               parse_whole(name + strlen(layers), 1, MODEL_MAX_LAYERS, &n_layers)) {
        *out = full;
        out->n_layers = (int)n_layers;
    } else if (strncmp(name, layers_of_m3, strlen(layers_of_m3)) == 0 &&
               parse_whole(name + strlen(layers_of_m3), 4, MODEL_MAX_LAYERS, &n_layers)) {
        m3_layers((int)n_layers, out);
    } else {
        return err_set(e, E_NOT_FOUND,
                       "no preset \"%s\"; there are m2-tiny, m2-mini, m2-layers-N (N from 1 to "
                       "%d), m3-tiny, m3-layer and m3-layers-N (from 4)",
                       name, MODEL_MAX_LAYERS);
    }
    return 0;
}

#define INT_FIELD(name, field) \
    { \
        name, offsetof(struct model_config, field) \
    }
static const struct {
    const char *name;
    size_t offset;
} int_fields[] = {
    INT_FIELD("vocab_size", vocab_size),
    INT_FIELD("hidden_size", hidden_size),
    INT_FIELD("num_hidden_layers", n_layers),
    INT_FIELD("num_attention_heads", n_heads),
    INT_FIELD("num_key_value_heads", n_kv_heads),
    INT_FIELD("head_dim", head_dim),
    INT_FIELD("rotary_dim", rotary_dim),
    INT_FIELD("intermediate_size", expert_size),
    INT_FIELD("num_local_experts", n_experts),
    INT_FIELD("num_experts_per_tok", top_k),
    INT_FIELD("max_position_embeddings", max_positions),
    INT_FIELD("dense_intermediate_size", dense_size),
    INT_FIELD("shared_intermediate_size", shared_size),
    INT_FIELD("sparse_block_size", sparse.block_size),
    INT_FIELD("sparse_topk_blocks", sparse.top_k),
    INT_FIELD("sparse_num_index_heads", sparse.n_heads),
    INT_FIELD("sparse_index_dim", sparse.head_dim),
};
enum { N_INT_FIELDS = sizeof int_fields / sizeof *int_fields, N_FIELDS = N_INT_FIELDS + 2 };

static int unknown_field(const char *name, struct err *e)
{
    const char *known[N_FIELDS] = {[N_INT_FIELDS] = "rope_theta", "rms_norm_eps"};
    for (int i = 0; i < N_INT_FIELDS; i++)
        known[i] = int_fields[i].name;
    const char *nearest = conf_nearest(name, known, N_FIELDS);
    return err_set(e, E_INVALID, "unknown field \"%s\"%s%s%s", name,
                   nearest ? "; did you mean " : "; see --help", nearest ? nearest : "",
                   nearest ? "?" : "");
}

static int set_real(struct model_config *c, const char *name, const char *text, struct err *e)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value > 0 && value < 1e18))
        return err_set(e, E_INVALID, "%s: found \"%s\", expected a number above 0", name, text);
    if (strcmp(name, "rope_theta") == 0)
        c->rope_theta = value;
    else
        c->rms_norm_eps = (float)value;
    return 0;
}

int synth_set(struct model_config *c, const char *assignment, struct err *e)
{
    char name[64];
    const char *equals = strchr(assignment, '=');
    if (!equals || (size_t)(equals - assignment) >= sizeof name)
        return err_set(e, E_INVALID, "found \"%s\", expected FIELD=VALUE", assignment);
    snprintf(name, sizeof name, "%.*s", (int)(equals - assignment), assignment);
    if (strcmp(name, "rope_theta") == 0 || strcmp(name, "rms_norm_eps") == 0)
        return set_real(c, name, equals + 1, e);
    for (int i = 0; i < N_INT_FIELDS; i++) {
        long long value;
        if (strcmp(name, int_fields[i].name) != 0)
            continue;
        if (!parse_whole(equals + 1, 1, INT_MAX, &value))
            return err_set(e, E_INVALID, "%s: found \"%s\", expected a whole number from 1 on",
                           name, equals + 1);
        *(int *)(void *)((char *)c + int_fields[i].offset) = (int)value;
        return 0;
    }
    return unknown_field(name, e);
}

static void print_help(void)
{
    printf(
        "usage: polymath synth (--preset NAME | --set FIELD=VALUE)... (--out DIR | --gguf FILE)\n"
        "                      [options]\n"
        "\n"
        "Writes a random checkpoint in MiniMax-M2's or M3's released format.\n"
        "\n"
        "  --preset NAME        m2-tiny      27 MB, 4 layers, seconds to build and run (default)\n"
        "                       m2-mini      0.9 GB, 8 layers of 64 experts, for benchmarks\n"
        "                       m2-layers-N  N layers of M2's true size, 3.7 GB each and 2.5 GB\n"
        "                                    for the vocabulary\n"
        "                       m3-tiny      2 MB, 4 layers of M3: sparse attention beyond 64\n"
        "                                    positions, a shared expert, a dense layer\n"
        "                       m3-layer     one sparse layer of M3's true size, 7.6 GB\n"
        "                       m3-layers-N  N layers (from 4 on) of M3's true size, the first 3\n"
        "                                    dense: 0.35 GB each, then 7.6 GB each, and 4.9 GB "
        "for\n"
        "                                    the vocabulary\n"
        "  --set FIELD=VALUE    one size over the preset's, by its name in config.json:\n"
        "                      ");
    for (int i = 0; i < N_INT_FIELDS; i++)
        printf(" %s%s", int_fields[i].name, i % 3 == 2 ? "\n                      " : "");
    printf(" rope_theta rms_norm_eps\n"
           "  --vocab N            short for --set vocab_size=N\n"
           "  --seed S             the same seed gives the same bytes (default 1)\n"
           "  --dtype TYPE         fp8 (default; M3: MXFP8), bf16 or f32 for experts and\n"
           "                       attention\n"
           "  --shard-bytes SIZE   more than this goes into several files (default 4GiB)\n"
           "  --no-tokenizer       leave tokenizer.json out\n"
           "  --out DIR            where to write; must be new or empty\n"
           "  --gguf FILE          write the same model as one GGUF file instead, which llama.cpp\n"
           "                       and its kin read (M2 presets)\n"
           "  --gguf-type TYPE     q8_0 (default), q4_0 or bf16 for its matrices\n"
           "  --packed FORMATS     write DIR in packed form at once, with random panels in these\n"
           "                       formats (such as q4): for models too large to write twice\n"
           "  --force              replace what a folder holds\n"
           "  --help               this text\n");
}

static int parse_dtype(const char *text, enum dtype *out, struct err *e)
{
    if (strcmp(text, "fp8") == 0)
        *out = DTYPE_F8_E4M3;
    else if (strcmp(text, "bf16") == 0)
        *out = DTYPE_BF16;
    else if (strcmp(text, "f32") == 0)
        *out = DTYPE_F32;
    else
        return err_set(e, E_INVALID, "found \"%s\", expected fp8, bf16 or f32", text);
    return 0;
}

static int parse_seed(const char *text, uint64_t *out, struct err *e)
{
    long long value;
    if (!parse_whole(text, 0, LLONG_MAX, &value))
        return err_set(e, E_INVALID, "found \"%s\", expected a whole number from 0 on", text);
    *out = (uint64_t)value;
    return 0;
}

static int parse_shard_bytes(const char *text, int64_t *out, struct err *e)
{
    if (!conf_parse_bytes(text, out) || *out <= 0)
        return err_set(e, E_INVALID, "found \"%s\", expected a size such as 4GiB", text);
    return 0;
}

enum option_id {
    OPT_PRESET = 256,
    OPT_SET,
    OPT_VOCAB,
    OPT_SEED,
    OPT_DTYPE,
    OPT_SHARD_BYTES,
    OPT_NO_TOKENIZER,
    OPT_OUT,
    OPT_GGUF,
    OPT_GGUF_TYPE,
    OPT_PACKED,
    OPT_FORCE,
    OPT_HELP
};
static const struct option long_options[] = {
    {"preset", required_argument, NULL, OPT_PRESET},
    {"set", required_argument, NULL, OPT_SET},
    {"vocab", required_argument, NULL, OPT_VOCAB},
    {"seed", required_argument, NULL, OPT_SEED},
    {"dtype", required_argument, NULL, OPT_DTYPE},
    {"shard-bytes", required_argument, NULL, OPT_SHARD_BYTES},
    {"no-tokenizer", no_argument, NULL, OPT_NO_TOKENIZER},
    {"out", required_argument, NULL, OPT_OUT},
    {"gguf", required_argument, NULL, OPT_GGUF},
    {"gguf-type", required_argument, NULL, OPT_GGUF_TYPE},
    {"packed", required_argument, NULL, OPT_PACKED},
    {"force", no_argument, NULL, OPT_FORCE},
    {"help", no_argument, NULL, OPT_HELP},
    {0},
};

static int set_vocab(struct model_config *c, const char *text, struct err *e)
{
    char assignment[64];
    snprintf(assignment, sizeof assignment, "vocab_size=%s", text);
    return synth_set(c, assignment, e);
}

/* What the command line says beside the model itself. */
struct request {
    struct synth_options options;
    const char *gguf;
    enum gguf_type gguf_type;
    bool is_packed;
    struct format_set formats;
};

static int apply_option(struct request *r, int option, struct err *e)
{
    struct synth_options *o = &r->options;
    switch (option) {
    case OPT_PRESET:
        return 0; /* applied before the others, whatever their order */
    case OPT_SET:
        return synth_set(&o->config, optarg, e);
    case OPT_VOCAB:
        return set_vocab(&o->config, optarg, e);
    case OPT_SEED:
        return parse_seed(optarg, &o->seed, e);
    case OPT_DTYPE:
        return parse_dtype(optarg, &o->dtype, e);
    case OPT_SHARD_BYTES:
        return parse_shard_bytes(optarg, &o->shard_bytes, e);
    case OPT_NO_TOKENIZER:
        o->has_tokenizer = false;
        return 0;
    case OPT_OUT:
        o->dir = optarg;
        return 0;
    case OPT_GGUF:
        r->gguf = optarg;
        return 0;
    case OPT_GGUF_TYPE:
        return synth_gguf_type(optarg, &r->gguf_type, e);
    case OPT_PACKED:
        r->is_packed = true;
        return format_set_parse(optarg, &r->formats, e);
    default:
        o->is_forced = true;
        return 0;
    }
}

/* The name of an option for messages, without its dashes. */
static const char *option_name(int option)
{
    for (int i = 0; long_options[i].name; i++)
        if (long_options[i].val == option)
            return long_options[i].name;
    return "?";
}

/* One walk over the command line. */
enum walk_kind { WALK_PRESETS, WALK_OTHERS };
static int walk(struct request *r, int argc, char **argv, enum walk_kind kind, struct err *e)
{
    int option, rc = 0;
    optind = 0;
    opterr = 0;
    while (rc == 0 && (option = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
        if (option == '?' || option == ':')
            return err_set(e, E_INVALID, "%s: %s", argv[optind - 1],
                           option == ':' ? "a value is missing" : "unknown option; see --help");
        if (option == OPT_HELP)
            return E_CANCELLED;
        if (kind == WALK_OTHERS)
            rc = apply_option(r, option, e);
        else if (option == OPT_PRESET)
            rc = synth_preset(optarg, &r->options.config, e);
        if (rc < 0)
            err_prefix(e, "--%s", option_name(option));
    }
    if (rc == 0 && optind < argc)
        rc = err_set(e, E_INVALID, "unexpected \"%s\"; see --help", argv[optind]);
    return rc;
}

static int write_model(const struct request *r, struct err *e)
{
    if (r->options.config.family != MODEL_MINIMAX_M2 && r->gguf)
        return err_set(e, E_UNIMPLEMENTED,
                       "--gguf is for M2's presets only: readers of GGUF do not agree about M3's "
                       "sparse attention, so the file would not be the same model; use --out");
    if (r->gguf)
        return synth_gguf_write(&r->options, r->gguf_type, r->gguf, e);
    if (r->is_packed)
        return synth_packed_write(&r->options, &r->formats, e);
    return synth_write(&r->options, e);
}

int synth_main(int argc, char **argv)
{
    struct request request = {.gguf_type = GGUF_Q8_0};
    struct synth_options *options = &request.options;
    struct err e = {0};
    synth_defaults(options);
    options->shows_progress = true;
    int rc = walk(&request, argc, argv, WALK_PRESETS, &e);
    if (rc == 0)
        rc = walk(&request, argc, argv, WALK_OTHERS, &e);
    if (rc == E_CANCELLED) {
        print_help();
        return 0;
    }
    if (rc == 0 && !options->dir && !request.gguf)
        rc = err_set(&e, E_INVALID, "--out is missing: where shall the model go?");
    if (rc == 0 && options->dir && request.gguf)
        rc = err_set(&e, E_INVALID, "--out and --gguf: one of them");
    if (rc == 0 && request.is_packed && request.gguf)
        rc = err_set(&e, E_INVALID, "--packed writes a folder: name it with --out");
    if (rc < 0) {
        fprintf(stderr, "polymath synth: %s\n", e.text);
        return 2;
    }
    if (write_model(&request, &e) < 0) {
        fprintf(stderr, "polymath synth: %s\n", e.text);
        return 1;
    }
    printf("%s: %d layers, %d experts, seed %llu\n", request.gguf ? request.gguf : options->dir,
           options->config.n_layers, options->config.n_experts, (unsigned long long)options->seed);
    return 0;
}
