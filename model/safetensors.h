/* model/safetensors.h - one safetensors file, mapped read-only.
 *
 * The header is believed in nothing: length, JSON, names, dtypes, shapes, offsets, overlap
 * and the file's size are checked before a tensor is handed out.  Pages are touched only
 * by whoever reads a tensor's data.  A file that shrinks while it is mapped kills its reader
 * (SIGBUS): replace model files by renaming, never in place. */
#pragma once

#include "base/err.h"
#include "model/mapping.h"
#include "model/tensor.h"

struct safetensors;

/* E_NOT_FOUND, E_IO, or E_CORRUPT with what was expected and found. */
int safetensors_open(const char *path, struct safetensors **out, struct err *e);
void safetensors_close(struct safetensors **s);
int safetensors_count(const struct safetensors *s);
/* The i-th tensor in the order of its data; name is NUL-terminated and lives as long as s. */
void safetensors_at(const struct safetensors *s, int i, const char **name, struct tensor *out);
/* false if there is none of that name. */
bool safetensors_find(const struct safetensors *s, const char *name, struct tensor *out);
/* About the pages of a tensor of this file. */
void safetensors_advise(const struct safetensors *s, const struct tensor *t,
                        enum mapping_advice advice);
/* Parses a header alone (8 length bytes and JSON, `file_bytes` in all): for the fuzzer. */
int safetensors_check_header(const void *data, size_t bytes, size_t file_bytes, struct err *e);

/* Writes tensors one after another: for `polymath synth`.  The header is laid out from
 * the declarations, so data must come in the declared order and size. */
struct safetensors_writer;
struct safetensors_declaration {
    const char *name;
    enum dtype dtype;
    int n_dims;
    int64_t dims[TENSOR_MAX_DIMS];
};
int safetensors_create(const char *path, const struct safetensors_declaration *declarations,
                       int n_tensors, struct safetensors_writer **out, struct err *e);
int safetensors_write(struct safetensors_writer *w, const void *data, size_t bytes, struct err *e);
/* Fails if bytes are missing; on failure the file is removed.  Always frees and nulls. */
int safetensors_finish(struct safetensors_writer **w, struct err *e);
