/* tools/synth_write.c - the writing half of synth.h: one pass, one chunk of memory. */
#include "tools/synth.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/must.h"
#include "model/fp8.h"
#include "model/mx.h"
#include "model/safetensors.h"
#include "model/tokenizer_write.h"
#include "tools/progress.h"
#include "tools/synth_tensors.h"

/* Added tokens of M2 as offsets from the first one. */
enum {
    ADDED_ROLE = 19,
    ADDED_END = 20,
    ADDED_IMAGE = 25,
    ADDED_START = 34,
    M2_VOCAB = 200064,
    M2_FIRST_ADDED = 200000
};

static int first_added_id(const struct synth_options *o)
{
    /* Without ours, the released tokenizer is what will be put beside a full vocabulary. */
    if (!o->has_tokenizer && o->config.vocab_size == M2_VOCAB)
        return M2_FIRST_ADDED;
    return o->config.vocab_size - tokenizer_write_n_added(o->config.family);
}

static int write_json(const char *dir, const char *file_name, json_t *root, struct err *e)
{
    struct buf text = {0};
    char *path = mem_format("%s/%s", dir, file_name);
    char *dumped = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    must(dumped);
    buf_puts(&text, dumped);
    buf_putc(&text, '\n');
    free(dumped);
    int rc = buf_write_file(&text, path, e);
    buf_fini(&text);
    mem_free(path);
    json_decref(root);
    return rc;
}

static void add_int(json_t *root, const char *name, int value)
{
    must_zero(json_object_set_new(root, name, json_integer(value)));
}

static void add_sizes(json_t *root, const struct model_config *c)
{
    add_int(root, "vocab_size", c->vocab_size);
    add_int(root, "hidden_size", c->hidden_size);
    add_int(root, "num_hidden_layers", c->n_layers);
    add_int(root, "num_attention_heads", c->n_heads);
    add_int(root, "num_key_value_heads", c->n_kv_heads);
    add_int(root, "head_dim", c->head_dim);
    add_int(root, "rotary_dim", c->rotary_dim);
    add_int(root, "intermediate_size", c->expert_size);
    add_int(root, "num_local_experts", c->n_experts);
    add_int(root, "num_experts_per_tok", c->top_k);
    add_int(root, "max_position_embeddings", c->max_positions);
    json_object_set_new(root, "rope_theta", json_real(c->rope_theta));
    /* "1e-06" rather than the nearest float's nine digits. */
    char eps[32];
    snprintf(eps, sizeof eps, "%.6g", (double)c->rms_norm_eps);
    json_object_set_new(root, "rms_norm_eps", json_real(strtod(eps, NULL)));
}

/* Every field of the released config.json; those that say nothing about size are M2's. */
static int write_config(const struct synth_options *o, struct err *e)
{
    json_t *layers = json_array();
    for (int i = 0; i < o->config.n_layers; i++)
        json_array_append_new(layers, json_integer(1));
    json_t *root = json_pack(
        "{s:[s], s:s, s:s, s:i, s:i, s:s, s:b, s:b, s:s, s:o, s:n, s:f, s:b, s:b, s:i, s:i, s:s, "
        "s:i, s:i}",
        "architectures", "MiniMaxM2ForCausalLM", "model_type", "minimax_m2", "hidden_act", "silu",
        "mlp_intermediate_size", 8192, "shared_intermediate_size", 0, "scoring_func", "sigmoid",
        "use_routing_bias", 1, "use_qk_norm", 1, "qk_norm_type", "per_layer", "attn_type_list",
        layers, "sliding_window", "attention_dropout", 0.0, "tie_word_embeddings", 0, "use_mtp", 1,
        "num_mtp_modules", 3, "mtp_transformer_layers", 1, "torch_dtype",
        o->dtype == DTYPE_F32 ? "float32" : "bfloat16", "bos_token_id",
        first_added_id(o) + ADDED_START, "eos_token_id", first_added_id(o) + ADDED_END);
    must(root);
    add_sizes(root, &o->config);
    if (o->dtype == DTYPE_F8_E4M3)
        json_object_set_new(root, "quantization_config",
                            json_pack("{s:s, s:s, s:s, s:[i,i], s:[s,s,s]}", "quant_method", "fp8",
                                      "fmt", "float8_e4m3fn", "activation_scheme", "dynamic",
                                      "weight_block_size", FP8_BLOCK, FP8_BLOCK,
                                      "modules_to_not_convert", "gate", "e_score_correction_bias",
                                      "lm_head"));
    return write_json(o->dir, "config.json", root, e);
}

/* [0] * n_zeros + [1] * the rest. */
static json_t *layer_flags(int n_zeros, int n_layers)
{
    json_t *list = json_array();
    for (int i = 0; i < n_layers; i++)
        json_array_append_new(list, json_integer(i >= n_zeros));
    return list;
}

static json_t *sparse_config_of(const struct model_config *c)
{
    const struct sparse_config *s = &c->sparse;
    json_t *root =
        json_pack("{s:b, s:i, s:i, s:i, s:i, s:s, s:i, s:i, s:o, s:o}", "use_sparse_attention", 1,
                  "sparse_index_dim", s->head_dim, "sparse_num_index_heads", s->n_heads,
                  "sparse_topk_blocks", s->top_k, "sparse_block_size", s->block_size,
                  "sparse_score_type", "max", "sparse_init_block", 0, "sparse_local_block", 1,
                  "sparse_attention_freq", layer_flags(s->n_full_layers, c->n_layers),
                  "sparse_disable_index_value", layer_flags(s->n_full_layers, c->n_layers));
    must(root);
    return root;
}

/* As a float's shortest digits would have it: "1.702". */
static json_t *short_real(float value)
{
    char text[32];
    snprintf(text, sizeof text, "%.6g", (double)value);
    return json_real(strtod(text, NULL));
}

/* Every field of the released text_config; those that say nothing about size are M3's. */
static json_t *text_config_of(const struct synth_options *o)
{
    const struct model_config *c = &o->config;
    json_t *root = json_pack(
        "{s:[s], s:s, s:s, s:f, s:b, s:b, s:s, s:b, s:o, s:o, s:o, s:i, s:i, s:i, s:s, s:b, s:o, "
        "s:o, s:b, s:i, s:i, s:s, s:i, s:i, s:o}",
        "architectures", "MiniMaxM3SparseForCausalLM", "model_type", "minimax_m3", "hidden_act",
        "swigluoai", "partial_rotary_factor", (double)c->rotary_dim / c->head_dim, "use_gemma_norm",
        1, "use_qk_norm", 1, "qk_norm_type", "per_head", "attention_output_gate", 0, "swiglu_alpha",
        short_real(c->activation.alpha), "swiglu_limit", short_real(c->activation.limit),
        "swiglu_beta", short_real(c->activation.beta), "shared_intermediate_size", c->shared_size,
        "n_shared_experts", 1, "dense_intermediate_size", c->dense_size > 0 ? c->dense_size : 12288,
        "scoring_func", "sigmoid", "use_routing_bias", 1, "routed_scaling_factor",
        short_real(c->routed_scale), "moe_layer_freq", layer_flags(c->n_dense_layers, c->n_layers),
        "tie_word_embeddings", 0, "num_mtp_modules", 7, "num_nextn_predict_layers", 1,
        "torch_dtype", o->dtype == DTYPE_F32 ? "float32" : "bfloat16", "bos_token_id",
        first_added_id(o) + ADDED_START, "eos_token_id", first_added_id(o) + ADDED_END,
        "sparse_attention_config", sparse_config_of(c));
    must(root);
    add_sizes(root, c);
    return root;
}

static int write_m3_config(const struct synth_options *o, struct err *e)
{
    json_t *root = json_pack(
        "{s:[s], s:s, s:o, s:{s:s}, s:i, s:i}", "architectures",
        "MiniMaxM3SparseForConditionalGeneration", "model_type", "minimax_m3_vl", "text_config",
        text_config_of(o), "vision_config", "model_type", "clip_vision_model", "image_token_index",
        first_added_id(o) + ADDED_IMAGE, "video_token_index", first_added_id(o) + ADDED_IMAGE + 1);
    must(root);
    if (o->dtype == DTYPE_F8_E4M3)
        json_object_set_new(root, "quantization_config",
                            json_pack("{s:s, s:s, s:s, s:[i,i]}", "quant_method", "mxfp8",
                                      "activation_scheme", "dynamic", "scale_fmt", "ue8m0",
                                      "weight_block_size", 1, MX_BLOCK));
    return write_json(o->dir, "config.json", root, e);
}

static int write_generation_config(const struct synth_options *o, struct err *e)
{
    json_t *root =
        json_pack("{s:i, s:i, s:b, s:f, s:f, s:i}", "bos_token_id", first_added_id(o) + ADDED_ROLE,
                  "eos_token_id", first_added_id(o) + ADDED_END, "do_sample", 1, "temperature", 1.0,
                  "top_p", 0.95, "top_k", 40);
    must(root);
    return write_json(o->dir, "generation_config.json", root, e);
}

static bool is_ours(const char *name)
{
    size_t len = strlen(name), suffix = strlen(".safetensors");
    return strcmp(name, "model.safetensors.index.json") == 0 ||
           (strncmp(name, "model", 5) == 0 && len > suffix &&
            strcmp(name + len - suffix, ".safetensors") == 0);
}

/* An old shard or index beside new ones would be read as part of the model. */
static int clear_directory(const struct synth_options *o, struct err *e)
{
    DIR *entries = opendir(o->dir);
    if (!entries)
        return err_set_errno(e, errno, "%s", o->dir);
    int rc = 0;
    for (struct dirent *entry = readdir(entries); entry && rc == 0; entry = readdir(entries)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (!o->is_forced)
            rc =
                err_set(e, E_EXISTS, "%s is not empty; name another folder or say --force", o->dir);
        else if (is_ours(entry->d_name) && unlinkat(dirfd(entries), entry->d_name, 0) < 0)
            rc = err_set_errno(e, errno, "%s/%s: remove", o->dir, entry->d_name);
    }
    closedir(entries);
    return rc;
}

static int make_directory(const struct synth_options *o, struct err *e)
{
    if (mkdir(o->dir, 0777) == 0)
        return 0;
    if (errno != EEXIST)
        return err_set_errno(e, errno, "%s: make the folder", o->dir);
    return clear_directory(o, e);
}

static int check_room(const char *dir, int64_t needed_bytes, struct err *e)
{
    struct statvfs st;
    if (statvfs(dir, &st) < 0)
        return err_set_errno(e, errno, "%s", dir);
    double free_bytes = (double)st.f_bavail * (double)st.f_frsize;
    if (free_bytes >= (double)needed_bytes)
        return 0;
    return err_set(e, E_BUSY, "%s: the model needs %.0f MB, the disk has %.0f MB free", dir,
                   (double)needed_bytes / 1e6, free_bytes / 1e6);
}

struct job {
    const struct synth_options *options;
    struct synth_list list;
    struct synth_source *source;
    struct progress progress;
    int *shard_ends; /* tensors [shard_ends[i-1], shard_ends[i]) are in shard i */
    int n_shards;
};

static void plan_shards(struct job *job)
{
    int64_t bytes = 0;
    job->shard_ends = mem_array((size_t)job->list.n_tensors, sizeof *job->shard_ends);
    for (int i = 0; i < job->list.n_tensors; i++) {
        int64_t next = job->list.tensors[i].size_bytes;
        if (bytes > 0 && bytes + next > job->options->shard_bytes) {
            job->shard_ends[job->n_shards++] = i;
            bytes = 0;
        }
        bytes += next;
    }
    job->shard_ends[job->n_shards++] = job->list.n_tensors;
}

static char *shard_name(const struct job *job, int shard)
{
    if (job->n_shards == 1)
        return mem_string("model.safetensors");
    return mem_format("model-%05d-of-%05d.safetensors", shard + 1, job->n_shards);
}

static int write_tensor(struct job *job, struct safetensors_writer *w, const struct synth_tensor *t,
                        struct err *e)
{
    int rc = 0;
    synth_source_begin(job->source, t);
    for (int64_t at = 0; at < t->size_bytes && rc == 0; at += SYNTH_CHUNK_BYTES) {
        int64_t left = t->size_bytes - at;
        int64_t bytes = left < SYNTH_CHUNK_BYTES ? left : SYNTH_CHUNK_BYTES;
        rc = safetensors_write(w, synth_source_next(job->source, bytes), (size_t)bytes, e);
        if (job->options->shows_progress)
            progress_add(&job->progress, bytes);
    }
    return rc;
}

static int write_shard(struct job *job, int shard, struct err *e)
{
    int first = shard > 0 ? job->shard_ends[shard - 1] : 0;
    int n_tensors = job->shard_ends[shard] - first;
    struct safetensors_declaration *declarations =
        mem_array((size_t)n_tensors, sizeof *declarations);
    struct safetensors_writer *w;
    struct err finish_error = {0};
    char *name = shard_name(job, shard);
    char *path = mem_format("%s/%s", job->options->dir, name);
    for (int i = 0; i < n_tensors; i++)
        declarations[i] = job->list.tensors[first + i].declaration;
    int rc = safetensors_create(path, declarations, n_tensors, &w, e);
    if (rc == 0) {
        for (int i = 0; i < n_tensors && rc == 0; i++)
            rc = write_tensor(job, w, &job->list.tensors[first + i], e);
        /* After a failed write the first error is the one to report. */
        int finish_rc = safetensors_finish(&w, rc < 0 ? &finish_error : e);
        rc = rc < 0 ? rc : finish_rc;
    }
    mem_free(path);
    mem_free(name);
    mem_free(declarations);
    return rc;
}

static int write_index(const struct job *job, struct err *e)
{
    json_t *weight_map = json_object();
    for (int shard = 0, i = 0; shard < job->n_shards; shard++) {
        char *name = shard_name(job, shard);
        for (; i < job->shard_ends[shard]; i++)
            must_zero(
                json_object_set_new(weight_map, job->list.tensors[i].name, json_string(name)));
        mem_free(name);
    }
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size",
                             (json_int_t)job->list.total_bytes, "weight_map", weight_map);
    must(root);
    return write_json(job->options->dir, "model.safetensors.index.json", root, e);
}

static int write_weights(struct job *job, struct err *e)
{
    const struct synth_options *o = job->options;
    int rc = 0;
    plan_shards(job);
    job->source = synth_source_new(o->seed);
    if (o->shows_progress)
        progress_begin(&job->progress, "synth", job->list.total_bytes, PROGRESS_BYTES);
    for (int shard = 0; shard < job->n_shards && rc == 0; shard++)
        rc = write_shard(job, shard, e);
    if (o->shows_progress)
        progress_end(&job->progress);
    if (rc == 0 && job->n_shards > 1)
        rc = write_index(job, e);
    synth_source_free(&job->source);
    mem_free(job->shard_ends);
    return rc;
}

/* The reader's own checks decide which geometry is allowed. */
static int write_checked_config(const struct synth_options *o, struct err *e)
{
    struct model_config read_back;
    enum model_family family = o->config.family;
    int least =
        o->has_tokenizer ? tokenizer_write_min_vocab(family) : tokenizer_write_n_added(family);
    if (o->config.vocab_size < least)
        return err_set(e, E_INVALID, "vocab_size is %d, expected at least %d", o->config.vocab_size,
                       least);
    int rc = family == MODEL_MINIMAX_M3 ? write_m3_config(o, e) : write_config(o, e);
    if (rc == 0)
        rc = write_generation_config(o, e);
    return rc < 0 ? rc : config_read(o->dir, &read_back, e);
}

static int write_tokenizer(const struct synth_options *o, struct err *e)
{
    char *path = mem_format("%s/tokenizer.json", o->dir);
    int rc = tokenizer_write_family(path, o->config.family, o->config.vocab_size, e);
    mem_free(path);
    return rc;
}

/* A refused geometry leaves nothing behind that the next attempt would stumble over. */
static void remove_config(const char *dir)
{
    char *config = mem_format("%s/config.json", dir);
    char *generation = mem_format("%s/generation_config.json", dir);
    unlink(config);
    unlink(generation);
    rmdir(dir);
    mem_free(config);
    mem_free(generation);
}

int synth_write(const struct synth_options *o, struct err *e)
{
    struct job job = {.options = o};
    int rc = make_directory(o, e);
    if (rc < 0)
        return rc;
    rc = write_checked_config(o, e);
    if (rc == 0) {
        synth_list_init(&job.list, &o->config, o->dtype);
        if (o->contents != SYNTH_ALL)
            synth_list_drop(&job.list, ".experts.");
        if (o->contents == SYNTH_NO_MATRICES) {
            /* Index projections are never packed. */
            static const char *const packed[] = {".q_proj.",    ".k_proj.",  ".v_proj.",
                                                 ".o_proj.",    ".up_proj.", ".gate_proj.",
                                                 ".down_proj.", "lm_head."};
            for (size_t i = 0; i < sizeof packed / sizeof *packed; i++)
                synth_list_drop(&job.list, packed[i]);
        }
        rc = check_room(o->dir, job.list.total_bytes, e);
    }
    if (rc < 0) {
        remove_config(o->dir);
        goto out;
    }
    if (o->has_tokenizer)
        rc = write_tokenizer(o, e);
    if (rc == 0)
        rc = write_weights(&job, e);
out:
    synth_list_fini(&job.list);
    return rc;
}

int synth_check(const struct synth_options *o, struct err *e)
{
    char dir[] = P_tmpdir "/polymath-synth-XXXXXX";
    struct synth_options there = *o;
    if (!mkdtemp(dir))
        return err_set_errno(e, errno, "%s: make a temporary folder", dir);
    there.dir = dir;
    int rc = write_checked_config(&there, e);
    remove_config(dir);
    return rc;
}
