/* engine/matrix.h - weight matrices: how a checkpoint's tensor becomes panels.
 *
 * One panel array and (fp8) its scales behind it are one run of matrix_layout() bytes: what
 * a packed directory stores, what a room must have, what matrix_bytes() counts. */
#pragma once

#include "base/err.h"
#include "engine/gemm.h"
#include "engine/kernels.h"
#include "model/weights.h"

/* Fills all but the pointers of m (format is not native) and gives the bytes of panels and
 * scales together, a multiple of 64.  E_RANGE if that is no size for a matrix. */
int matrix_layout(struct matrix *m, enum weight_format format, int64_t rows, int64_t cols,
                  size_t *bytes, struct err *e);
/* The format that a view's matrix will have: `want`, or for native the packed format or the
 * nearest to what is stored (F8_E4M3 -> fp8, MXFP8 and BF16 -> bf16, F32 and F16 -> f32). */
enum weight_format matrix_format(const struct linear_view *view, enum weight_format want);
/* Bytes that a view's matrix will take in memory of ours (0 when it stays in a mapping). */
int matrix_view_bytes(const struct linear_view *view, enum weight_format want, size_t *bytes,
                      struct err *e);

/* Packs a checkpoint matrix into panels of the wanted format, over the pool.  `room`, if not
 * NULL, is matrix_view_bytes() bytes aligned to 64, zeroed, that outlive m; otherwise m owns
 * its memory.  Conversions go through exact f32 values: to bf16 by round-to-nearest-even, to
 * fp8 by absmax/448 per 128x128 block (of MXFP8 the power of two from there on), to q8 and q4 by the scale that minimises the squared
 * error (quantise.h).  A packed view becomes a borrowed matrix over the mapping, or a copy if
 * it says so; E_PRECONDITION if `want` is another format, naming both and the remedy.
 * E_CORRUPT if a weight is not finite, naming view->label and the element; E_NOMEM. */
int matrix_pack(struct matrix *m, const struct linear_view *view, enum weight_format want,
                void *room, const struct compute *c, struct err *e);
void matrix_fini(struct matrix *m);
size_t matrix_bytes(const struct matrix *m);
/* Row r of W as f32, as the kernels see it; for tests and the reference engine. */
void matrix_row(const struct matrix *m, int r, float *out);
