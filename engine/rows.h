/* engine/rows.h - the rows that a product reads: as f32, quantised to int8, or both.
 *
 * Integer weight formats multiply int8 activations (numerics.md 4 and 5).  A row is quantised
 * once, by whoever makes it, for every product that reads it; the attention side sends the
 * quantised form itself to the experts, so nothing is rounded twice.
 *
 * Per row and group of `group` columns (the last group may be shorter):
 *   scale = absmax * (1/127)        q = round-to-nearest-even(x * (127 / absmax))
 * and an absmax of 0, or so small that 127 / absmax is infinite, gives scale 0 and zeros.  q is in [-127, 127]; a NaN or an infinity gives
 * scale NaN, so that it shows in every product, and zeros. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Borrowed.  A form that is not there has a NULL pointer and (q8) group 0. */
struct rows {
    int n_rows, cols;
    const float *f32; /* [n_rows, f32_stride], readable and zero up to a multiple of 16 columns */
    size_t f32_stride;
    int group;        /* Q8_GROUP or Q4_GROUP; 0: no quantised form */
    const int8_t *q8; /* [n_rows, q8_stride], readable and zero up to a multiple of `group` */
    size_t q8_stride; /* a multiple of 64 bytes, an odd one: rows then fall into all cache sets */
    const float *scales; /* [n_rows, scale_stride]: one per group */
    const int32_t *sums; /* [n_rows, scale_stride]: sum of q over the group, for kernels that
                            offset the weights to unsigned */
    size_t scale_stride;
};

/* Owned memory for quantised rows. */
struct rows_room {
    int max_rows, cols, group;
    size_t q8_stride, scale_stride;
    int8_t *q8;
    float *scales;
    int32_t *sums;
    size_t bytes;
};

struct compute;
/* Rows from first on, n of them. */
static inline struct rows rows_part(const struct rows *x, int first, int n)
{
    struct rows part = *x;
    size_t skip = (size_t)first;
    part.n_rows = n;
    part.f32 = x->f32 ? x->f32 + skip * x->f32_stride : NULL;
    part.q8 = x->q8 ? x->q8 + skip * x->q8_stride : NULL;
    part.scales = x->scales ? x->scales + skip * x->scale_stride : NULL;
    part.sums = x->sums ? x->sums + skip * x->scale_stride : NULL;
    return part;
}

/* Zeroed room; group 0 makes an empty one.  false when memory is out. */
bool rows_room_open(struct rows_room *r, int max_rows, int cols, int group);
void rows_room_close(struct rows_room *r);
/* A view of the room's first n_rows rows (quantised form only). */
struct rows rows_room_view(const struct rows_room *r, int n_rows);
/* Quantises x->f32 into the room, over the pool, and adds the quantised form to x.  Does
 * nothing when the room is empty. */
void rows_quantise(const struct compute *c, struct rows_room *r, struct rows *x);
