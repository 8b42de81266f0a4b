/* engine/quantise.h - choosing scales for q8 and q4 weights (numerics.md 5).
 *
 * The scale of a group is searched among candidates around absmax/127 (q8) or, with both
 * signs, around absmax/8 (q4): the one with the smallest sum of squared errors wins, the
 * first of equals.  The result does not depend on the instruction set. */
#pragma once

#include <stdint.h>

#include "model/format.h"

enum quantise_search { QUANTISE_MAX /* plain absmax, for comparison */, QUANTISE_BEST };

/* x [n], n at most Q8_GROUP: q in [-127, 127].  Returns the scale (0 for all zeros). */
float quantise_q8(const float *x, int n, enum quantise_search search, int8_t *q);
/* x [n], n at most Q4_GROUP: q in [-8, 7]. */
float quantise_q4(const float *x, int n, enum quantise_search search, int8_t *q);
