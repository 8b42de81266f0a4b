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

/* Of each layer; names and shapes are checked by model/weights.c before this. */
static const char *const layer_tensors[] = {
    "input_layernorm.weight",       "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",      "post_attention_layernorm.weight",
    "block_sparse_moe.gate.weight", "block_sparse_moe.e_score_correction_bias",
};
static const char *const model_tensors[] = {"model.embed_tokens.weight", "model.norm.weight"};
enum {
    LAYER_TENSORS = sizeof layer_tensors / sizeof *layer_tensors,
    MODEL_TENSORS = sizeof model_tensors / sizeof *model_tensors
};

static int n_kept_tensors(const struct pack_job *job)
{
    return MODEL_TENSORS + LAYER_TENSORS * job->config->n_layers;
}

static int find_kept(struct pack_job *job, int i, char name[TENSOR_NAME_BYTES], struct tensor *t,
                     struct err *e)
{
    if (i < MODEL_TENSORS)
        snprintf(name, TENSOR_NAME_BYTES, "%s", model_tensors[i]);
    else
        snprintf(name, TENSOR_NAME_BYTES, "model.layers.%d.%s", (i - MODEL_TENSORS) / LAYER_TENSORS,
                 layer_tensors[(i - MODEL_TENSORS) % LAYER_TENSORS]);
    return checkpoint_find(job->source, name, t, e);
}

int pack_measure_tensors(struct pack_job *job, int64_t *bytes, struct err *e)
{
    char name[TENSOR_NAME_BYTES];
    struct tensor t;
    int rc = 0;
    *bytes = 0;
    for (int i = 0; i < n_kept_tensors(job) && rc == 0; i++) {
        rc = find_kept(job, i, name, &t, e);
        if (rc == 0)
            *bytes += (int64_t)t.size_bytes;
    }
    return rc;
}

static int write_tensor(struct pack_job *job, struct safetensors_writer *w, int i, struct err *e)
{
    char name[TENSOR_NAME_BYTES];
    struct tensor t;
    int rc = find_kept(job, i, name, &t, e);
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
                   char (*names)[TENSOR_NAME_BYTES], struct err *e)
{
    int rc = 0;
    for (int i = 0; i < n_kept_tensors(job) && rc == 0; i++) {
        struct tensor t;
        rc = find_kept(job, i, names[i], &t, e);
        if (rc < 0)
            break;
        declarations[i] = (struct safetensors_declaration){
            .name = names[i], .dtype = t.dtype, .n_dims = t.n_dims};
        memcpy(declarations[i].dims, t.dims, sizeof t.dims);
    }
    return rc;
}

static int write_tensors(struct pack_job *job, const char *path, struct err *e)
{
    int n = n_kept_tensors(job);
    struct err finish_error = {0};
    struct safetensors_writer *w;
    struct safetensors_declaration *declarations = mem_array((size_t)n, sizeof *declarations);
    char(*names)[TENSOR_NAME_BYTES] = mem_array((size_t)n, sizeof *names);
    int rc = declare(job, declarations, names, e);
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
    mem_free(names);
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
