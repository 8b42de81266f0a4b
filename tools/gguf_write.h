/* tools/gguf_write.h - writes GGUF files (version 3), the format of llama.cpp and its kin.
 *
 * A file is a header, named values, what tensors there are, and their data, each at a multiple
 * of 32 bytes.  Values and tensors are declared first; after gguf_create() data may be written
 * in any order and by any thread.
 *
 * Matrices can be kept in blocks of 32 columns: Q8_0 is an f16 scale and 32 int8; Q4_0 an f16
 * scale and 16 bytes, byte j holding column j in its low and j + 16 in its high four bits, each
 * as value + 8. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* The numbers are the format's. */
enum gguf_type { GGUF_F32 = 0, GGUF_Q4_0 = 2, GGUF_Q8_0 = 8, GGUF_BF16 = 30 };
enum { GGUF_BLOCK = 32, GGUF_ALIGN = 32, GGUF_MAX_DIMS = 4, GGUF_VERSION = 3 };

/* Bytes of n values; n is a multiple of GGUF_BLOCK for the block types. */
size_t gguf_bytes(enum gguf_type type, size_t n);
/* n values as bytes of the type.  Finite values only. */
void gguf_encode(enum gguf_type type, const float *x, size_t n, void *out);

struct gguf_writer;
struct gguf_writer *gguf_writer_new(void);

void gguf_put_string(struct gguf_writer *w, const char *key, const char *value);
void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t value);
void gguf_put_f32(struct gguf_writer *w, const char *key, float value);
void gguf_put_strings(struct gguf_writer *w, const char *key, const char *const *values, size_t n);
void gguf_put_i32s(struct gguf_writer *w, const char *key, const int32_t *values, size_t n);
/* dims[0] is the number of columns, which lie side by side.  Returns the tensor's number. */
int gguf_add_tensor(struct gguf_writer *w, const char *name, enum gguf_type type, int n_dims,
                    const uint64_t *dims);

/* Reserves the whole file under PATH.part and writes all that was declared.  E_BUSY: the disk is
 * full; E_IO. */
int gguf_create(struct gguf_writer *w, const char *path, struct err *e);
/* Bytes of a tensor from `offset` on. */
int gguf_write(struct gguf_writer *w, int tensor, uint64_t offset, const void *data, size_t bytes,
               struct err *e);
/* Gives the file its name; frees and nulls.  With `rc` < 0, or before gguf_create(), nothing
 * remains on the disk and `rc` is returned. */
int gguf_finish(struct gguf_writer **w, int rc, struct err *e);
