/* engine/gemm.h - rows x weights, shared out over the pool. */
#pragma once

#include "base/err.h"
#include "engine/kernels.h"
#include "engine/pool.h"
#include "engine/rows.h"

/* What every part of the engine needs to compute. */
struct compute {
    const struct kernels *kernels;
    struct pool *pool; /* NULL: serial */
};

/* y [x->n_rows, m->rows] = x W^T over the pool; y_stride in floats.  x has the form that
 * m->format reads (kernels.h). */
void matmul(const struct compute *c, const struct matrix *m, const struct rows *x, float *y,
            size_t y_stride);
/* One range of panels on the calling thread: for callers that split work themselves. */
void matmul_range(const struct compute *c, const struct matrix *m, int first_panel, int n_panels,
                  const struct rows *x, float *y, size_t y_stride);
/* The reference engine: the same product of x->f32 by cblas_sgemm on unpacked rows,
 * single-threaded; not bit-equal, for checks only.  E_NOMEM. */
int matmul_blas(const struct matrix *m, const struct rows *x, float *y, size_t y_stride);
