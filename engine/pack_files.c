/* engine/pack_files.c - the packing job's other files: tensors that stay as stored, and what
 * is copied. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/pack_job.h"
#include "model/safetensors.h"

enum { PIECE_BYTES = 4 << 20, RELEASE_BYTES = 64 << 20 };
#define COPY_LIMIT_BYTES (256LL << 20)

/* ---- tensors ---- */

static void keep(struct pack_job *job, int layer, const char *name)
{
    const char *prefix = config_tensor_prefix(job->config);
    char *to = job->kept[job->n_tensors++];
    int len = layer < 0
                  ? snprintf(to, TENSOR_NAME_BYTES, "%s%s", prefix, name)
                  : snprintf(to, TENSOR_NAME_BYTES, "%smodel.layers.%d.%s", prefix, layer, name);
    must(len > 0 && len < TENSOR_NAME_BYTES);
}

/* The matrix of an index projection, and its scale where it has one. */
static int keep_projection(struct pack_job *job, int layer, const char *name, const char *scale,
                           struct err *e)
{
    struct tensor t;
    keep(job, layer, name);
    int rc = checkpoint_find(job->source, job->kept[job->n_tensors - 1], &t, e);
    if (rc == 0 && t.dtype == DTYPE_F8_E4M3)
        keep(job, layer, scale);
    return rc;
}

/* Names and shapes are checked by model/weights.c before this. */
static int keep_layer(struct pack_job *job, int layer, struct err *e)
{
    int rc = 0;
    keep(job, layer, "input_layernorm.weight");
    keep(job, layer, "self_attn.q_norm.weight");
    keep(job, layer, "self_attn.k_norm.weight");
    keep(job, layer, "post_attention_layernorm.weight");
    if (layer >= job->config->n_dense_layers) {
        keep(job, layer, "block_sparse_moe.gate.weight");
        keep(job, layer, "block_sparse_moe.e_score_correction_bias");
    }
    if (!config_is_sparse(job->config, layer))
        return 0;
    keep(job, layer, "self_attn.index_q_norm.weight");
    keep(job, layer, "self_attn.index_k_norm.weight");
    rc = keep_projection(job, layer, "self_attn.index_q_proj.weight",
                         "self_attn.index_q_proj.weight_scale_inv", e);
    if (rc == 0)
        rc = keep_projection(job, layer, "self_attn.index_k_proj.weight",
                             "self_attn.index_k_proj.weight_scale_inv", e);
    return rc;
}

int pack_measure_tensors(struct pack_job *job, struct err *e)
{
    enum { OF_MODEL = 2, OF_LAYER = 12 };
    struct tensor t;
    int n_layers = job->config->n_layers, rc = 0;
    job->kept = mem_array((size_t)n_layers * OF_LAYER + OF_MODEL, sizeof *job->kept);
    keep(job, -1, "model.embed_tokens.weight");
    keep(job, -1, "model.norm.weight");
    for (int layer = 0; layer < n_layers && rc == 0; layer++)
        rc = keep_layer(job, layer, e);
    for (int i = 0; i < job->n_tensors && rc == 0; i++) {
        rc = checkpoint_find(job->source, job->kept[i], &t, e);
        if (rc == 0)
            job->kept_bytes += (int64_t)t.size_bytes;
    }
    return rc;
}

void pack_tensors_fini(struct pack_job *job)
{
    mem_free(job->kept);
}

static int write_tensor(struct pack_job *job, struct safetensors_writer *w, int i, struct err *e)
{
    const char *name = job->kept[i];
    struct tensor t;
    int rc = checkpoint_find(job->source, name, &t, e);
    for (size_t at = 0; rc == 0 && at < t.size_bytes; at += PIECE_BYTES) {
        size_t n = t.size_bytes - at < PIECE_BYTES ? t.size_bytes - at : PIECE_BYTES;
        rc = safetensors_write(w, (const char *)t.data + at, n, e);
        pack_add_progress(job, n);
        if (at % RELEASE_BYTES == 0)
            checkpoint_advise(job->source, name, MAPPING_DONE);
    }
    checkpoint_advise(job->source, name, MAPPING_DONE);
    return rc;
}

/* Declared as found: shapes are the model's own. */
static int declare(struct pack_job *job, struct safetensors_declaration *declarations,
                   struct err *e)
{
    int rc = 0;
    for (int i = 0; i < job->n_tensors && rc == 0; i++) {
        struct tensor t;
        rc = checkpoint_find(job->source, job->kept[i], &t, e);
        if (rc < 0)
            break;
        declarations[i] = (struct safetensors_declaration){
            .name = job->kept[i], .dtype = t.dtype, .n_dims = t.n_dims};
        memcpy(declarations[i].dims, t.dims, sizeof t.dims);
    }
    return rc;
}

static int write_tensors(struct pack_job *job, const char *path, struct err *e)
{
    int n = job->n_tensors;
    struct err finish_error = {0};
    struct safetensors_writer *w;
    struct safetensors_declaration *declarations = mem_array((size_t)n, sizeof *declarations);
    int rc = declare(job, declarations, e);
    if (rc == 0)
        rc = safetensors_create(path, declarations, n, &w, e);
    if (rc == 0) {
        for (int i = 0; i < n && rc == 0; i++)
            rc = write_tensor(job, w, i, e);
        /* After a failed write the first error is the one to report. */
        int finish_rc = safetensors_finish(&w, rc < 0 ? &finish_error : e);
        rc = rc < 0 ? rc : finish_rc;
    }
    mem_free(declarations);
    return rc;
}

int pack_write_tensors(struct pack_job *job, struct err *e)
{
    char *path = mem_format("%s/" PACK_TENSORS, job->options->out_dir);
    char *temporary = mem_format("%s.tmp", path);
    int rc = 0;
    /* It got this name when it was whole. */
    if (access(path, F_OK) == 0) {
        pack_add_progress(job, (size_t)job->kept_bytes);
        goto out;
    }
    rc = write_tensors(job, temporary, e);
    if (rc == 0)
        rc = packed_sync(temporary, e);
    if (rc == 0 && rename(temporary, path) < 0)
        rc = err_set_errno(e, errno, "%s: rename", temporary);
out:
    mem_free(path);
    mem_free(temporary);
    return rc;
}

/* ---- copies ---- */

static bool has_suffix(const char *name, const char *suffix)
{
    size_t len = strlen(name), suffix_len = strlen(suffix);
    return len >= suffix_len && strcmp(name + len - suffix_len, suffix) == 0;
}

/* Weights in any form, and what belongs to a packing, stay behind. */
static bool is_copied(const char *name)
{
    static const char *const left[] = {".safetensors", ".safetensors.index.json",
                                       ".packed",      ".bin",
                                       ".pt",          ".pth",
                                       ".gguf",        ".tmp",
                                       ".new",         PACKED_MANIFEST,
                                       PACK_MARKER};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        if (has_suffix(name, left[i]))
            return false;
    return *name != '.';
}

static int copy_file(const struct pack_job *job, const char *name, struct err *e)
{
    struct buf text = {0};
    char *from = mem_format("%s/%s", job->options->model_dir, name);
    char *to = mem_format("%s/%s", job->options->out_dir, name);
    struct stat st;
    int rc = 0;
    if (stat(from, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= COPY_LIMIT_BYTES) {
        rc = buf_read_file(&text, from, (size_t)COPY_LIMIT_BYTES, e);
        if (rc == 0)
            rc = buf_write_file(&text, to, e);
        if (rc == 0)
            rc = packed_sync(to, e);
    }
    mem_free(from);
    mem_free(to);
    buf_fini(&text);
    return rc;
}

int pack_copy_files(struct pack_job *job, struct err *e)
{
    int rc = 0;
    DIR *entries = opendir(job->options->model_dir);
    if (!entries)
        return err_set_errno(e, errno, "%s", job->options->model_dir);
    for (struct dirent *entry = readdir(entries); entry && rc == 0; entry = readdir(entries))
        if (is_copied(entry->d_name))
            rc = copy_file(job, entry->d_name, e);
    closedir(entries);
    return rc;
}
