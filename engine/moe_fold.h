/* engine/moe_fold.h - what the experts' answer does to the residual stream (step 11).
 *
 * The in-process experts and the remote ones end here, so that both change x by the same
 * bits.  x [hidden] is one row. */
#pragma once

#include <stdint.h>

#include "engine/kernels.h"

/* Mode fixed: acc is the sum over every holder's answer. */
void moe_fold_fixed(const struct kernels *k, const int32_t *acc, int exponent, int hidden,
                    float *x);
/* Mode expert, and rows of mode fixed that did not fit the grid: slots[i] is the unweighted
 * output of the expert in routing slot i, perhaps misaligned (it may lie in a received frame).
 * sum = fmaf(weights[i], slots[i], sum) from 0 in slot order, then x += sum. */
void moe_fold_expert(const void *const *slots, const float *weights, int n_slots, int hidden,
                     float *x);
/* Mode node: one bf16 row of one holder, perhaps misaligned; holders in an order that the
 * caller keeps. */
void moe_fold_node(const void *row, int hidden, float *x);
