/* engine/moe_fold.c - see engine/moe_fold.h. */
#include "engine/moe_fold.h"

#include <math.h>
#include <string.h>

#include "model/halves.h"

/* Values that are copied out of a frame at a time. */
enum { BLOCK = 64 };

void moe_fold_fixed(const struct kernels *k, const int32_t *acc, int exponent, int hidden, float *x)
{
    k->fixed_fold(acc, exponent, hidden, x);
}

void moe_fold_expert(const void *const *slots, const float *weights, int n_slots, int hidden,
                     float *x)
{
    for (int at = 0; at < hidden; at += BLOCK) {
        int n = hidden - at < BLOCK ? hidden - at : BLOCK;
        float sum[BLOCK] = {0}, y[BLOCK];
        for (int slot = 0; slot < n_slots; slot++) {
            memcpy(y, (const char *)slots[slot] + (size_t)at * sizeof(float),
                   (size_t)n * sizeof(float));
            for (int i = 0; i < n; i++)
                sum[i] = fmaf(weights[slot], y[i], sum[i]);
        }
        for (int i = 0; i < n; i++)
            x[at + i] += sum[i];
    }
}

void moe_fold_node(const void *row, int hidden, float *x)
{
    for (int i = 0; i < hidden; i++) {
        uint16_t half;
        memcpy(&half, (const char *)row + (size_t)i * sizeof(half), sizeof(half));
        x[i] += bf16_to_f32(half);
    }
}
