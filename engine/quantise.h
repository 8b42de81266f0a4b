/* engine/quantise.h - choosing scales for q8 and q4 weights (numerics.md 5).
 *
 * The scale of a group is searched among candidates, absmax / level for the levels below and,
 * for q4, with both signs: the one with the smallest sum of squared errors wins, the first of
 * equals.  The result does not depend on the instruction set.
 *
 * What comes from FP8 has four significant bits and one scale per block, so a group's values
 * lie on a grid of absmax / (8 to 15) and its binary fractions.  Levels that keep the grid
 * (120, 112, 104, .. are multiples of 8) win there; 127 to 124 win for other weights. */
#pragma once

#include <stdint.h>

#include "engine/kernels.h"
#include "model/format.h"

enum quantise_search { QUANTISE_MAX /* plain absmax, for comparison */, QUANTISE_BEST };

/* x [n], finite, 1 <= n <= format_group(format), format q8 or q4.  Fills q [format_group],
 * zeros from n on, in [-127, 127] or [-8, 7].  Returns the scale; 0, with zeros, where all
 * are zero or so small that 127 / absmax is infinite. */
float quantise_weights(const struct kernels *k, enum weight_format format, const float *x, int n,
                       enum quantise_search search, int8_t *q);
