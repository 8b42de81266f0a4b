/* engine/gemm.h - weight matrices: packing, and rows x weights. */
#pragma once

#include "base/err.h"
#include "engine/kernels.h"
#include "engine/pool.h"
#include "model/weights.h"

/* What every part of the engine needs to compute. */
struct compute {
    const struct kernels *kernels;
    struct pool *pool; /* NULL: serial */
};

/* Packs a checkpoint matrix into panels of the wanted format (FORMAT_NATIVE: the nearest to
 * what is stored: F8_E4M3 -> fp8, BF16 -> bf16, F32 and F16 -> f32).  Conversions go through
 * exact f32 values; to bf16 by round-to-nearest-even, to fp8 by absmax/448 per 128x128
 * block.  Reads the view's bytes once, in parallel over panels.  E_CORRUPT if a weight is
 * NaN, naming view->label and the element; E_NOMEM. */
int matrix_pack(struct matrix *m, const struct linear_view *view, enum weight_format want,
                const struct compute *c, struct err *e);
void matrix_fini(struct matrix *m);
size_t matrix_bytes(const struct matrix *m);
/* Row r of W as f32, exactly as the kernels see it; for tests and the reference engine. */
void matrix_row(const struct matrix *m, int r, float *out);

/* y [n_rows, rows] = x [n_rows, cols] W^T over the pool; strides in floats; x readable and
 * zero up to m->padded_cols. */
void matmul(const struct compute *c, const struct matrix *m, const float *x, size_t x_stride,
            int n_rows, float *y, size_t y_stride);
/* One range of panels on the calling thread: for callers that split work themselves. */
void matmul_range(const struct compute *c, const struct matrix *m, int first_panel, int n_panels,
                  const float *x, size_t x_stride, int n_rows, float *y, size_t y_stride);
/* The reference engine: the same product by cblas_sgemm on unpacked rows, single-threaded;
 * not bit-equal, for checks only.  E_NOMEM. */
int matmul_blas(const struct matrix *m, const float *x, size_t x_stride, int n_rows, float *y,
                size_t y_stride);
