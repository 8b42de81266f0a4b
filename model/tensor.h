/* model/tensor.h - dtype, dims and a view into a mapping; no arithmetic. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F8_E4M3,
    DTYPE_F8_E8M0, /* a power of two, 2^(byte - 127); 255 is NaN (the scales of MXFP8) */
    DTYPE_U8,
    DTYPE_I32,
    DTYPE_OTHER
};

enum { TENSOR_MAX_DIMS = 4, TENSOR_NAME_BYTES = 160 };

/* A borrowed view: valid while the checkpoint is open.  `data` may be misaligned. */
struct tensor {
    enum dtype dtype;
    int n_dims;
    int64_t dims[TENSOR_MAX_DIMS];
    const void *data; /* row-major, little-endian */
    size_t size_bytes;
};

size_t dtype_bytes(enum dtype d);     /* of one element; 0 for DTYPE_OTHER */
const char *dtype_name(enum dtype d); /* as safetensors writes it: "BF16" */
enum dtype dtype_parse(struct str s);
/* "BF16 [1536, 3072]" into `out`, for messages. */
enum { TENSOR_TEXT_BYTES = 96 };
const char *tensor_text(const struct tensor *t, char out[TENSOR_TEXT_BYTES]);
/* Elements to f32, exactly (I32 beyond 2^24 rounds); not for DTYPE_OTHER.  A NaN gives NaN.
 * `first` and `count` are in elements; must lie inside the tensor. */
void tensor_read_f32(const struct tensor *t, int64_t first, int64_t count, float *out);
