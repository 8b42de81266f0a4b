/* engine/combine.h - how expert outputs of a row come together (numerics.md 3).
 *
 * fixed: every weighted expert output is rounded to the row's grid 2^exponent and added as
 * int32, so the sum does not depend on order or place.  The grid comes from the residual
 * stream x before the experts' contribution, so it is known before any expert answers:
 *
 *     exponent = max(floor(log2(rms(x))), COMBINE_MIN_LOG2) - 20
 *
 * One expert may contribute |q| < 2^27, that is 128 times the row's RMS; with at most 16
 * experts the int32 sum cannot overflow.  A row with a larger (or NaN) contribution is
 * asked again in mode expert; that this happens depends on one expert's output alone,
 * hence not on placement.  Error bound: half a grid step, 2^-21 of the RMS, per expert. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/kernels.h"
#include "engine/rows.h"
#include "model/format.h"

enum { COMBINE_GRID_LOG2 = 20, COMBINE_LIMIT_LOG2 = 27, COMBINE_MIN_LOG2 = -80 };
/* All that combine_exponent() can give: the RMS of a finite row is below 2^128, and 2^128
 * stands for the others. */
enum {
    COMBINE_MIN_EXPONENT = COMBINE_MIN_LOG2 - COMBINE_GRID_LOG2,
    COMBINE_MAX_EXPONENT = 128 - COMBINE_GRID_LOG2
};
/* What fixed_add and fixed_fold insist on; a receiver refuses anything else. */
static inline bool combine_exponent_valid(int exponent)
{
    return exponent >= COMBINE_MIN_EXPONENT && exponent <= COMBINE_MAX_EXPONENT;
}

/* The exponent for a residual row x [hidden]; mean square by 16 lane sums, in double, where
 * a square is exact and cannot leave the range.  A row with a
 * NaN or an infinity gets the largest exponent (its sums will fail the limit). */
int combine_exponent(const float *x, int hidden);

/* Mode node: out = bf16 of a row's contributions, acc = fmaf(weight, y, acc) from 0 in slot
 * order; y [n_slots] rows of `hidden`. */
void combine_node(const float *const *y, const float *weights, int n_slots, int hidden,
                  uint16_t *out);

/* What one holder of experts is asked for one layer: each row once, however many of its
 * experts live there.  Borrowed for the call. */
struct parcel {
    int layer, n_rows, hidden, n_routes;
    enum combine_mode mode;
    /* [n_rows, hidden], rms-normed input of the experts; the quantised form (and perhaps only
     * that) where the experts' format reads it, else f32 */
    struct rows rows;
    const int16_t *exponents; /* [n_rows] (mode fixed) */
    const int32_t
        *first_route; /* [n_rows + 1]: row i has routes first_route[i] .. first_route[i+1]-1 */
    const uint16_t *experts; /* [n_routes], in routing-slot order within a row */
    const float *weights;    /* [n_routes] */
};

/* What comes back. */
struct parcel_result {
    int32_t *fixed;    /* mode fixed: [n_rows, hidden] */
    uint8_t *overflow; /* mode fixed: [n_rows], 1 = ask this row again in mode expert */
    float *by_expert;  /* mode expert: [n_routes, hidden], not weighted */
    uint16_t *node;    /* mode node: bf16 [n_rows, hidden] */
};
