/* engine/combine.c - see combine.h. */
#include "engine/combine.h"

#include <math.h>
#include <string.h>

#include "model/halves.h"

enum { LANES = 16, F64_BIAS = 1023, F64_MANTISSA_BITS = 52 };

/* floor(log2(v)) of a normal v > 0. */
static int floor_log2(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof(bits));
    return (int)(bits >> F64_MANTISSA_BITS) - F64_BIAS;
}

int combine_exponent(const float *x, int hidden)
{
    double lanes[LANES] = {0};
    int i = 0;
    for (; i + LANES <= hidden; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] += (double)x[i + lane] * (double)x[i + lane];
    for (int lane = 0; i + lane < hidden; lane++)
        lanes[lane] += (double)x[i + lane] * (double)x[i + lane];
    double sum = 0.0;
    for (int lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    double mean = sum / hidden;
    if (!isfinite(mean))
        return COMBINE_MAX_EXPONENT;
    if (mean == 0.0)
        return COMBINE_MIN_EXPONENT;
    /* floor(log2(sqrt(m))) is floor(floor(log2(m)) / 2), for odd and negative values too. */
    int log2_rms = floor_log2(mean) >> 1;
    return (log2_rms > COMBINE_MIN_LOG2 ? log2_rms : COMBINE_MIN_LOG2) - COMBINE_GRID_LOG2;
}

void combine_node(const float *const *y, const float *weights, int n_slots, int hidden,
                  uint16_t *out)
{
    for (int i = 0; i < hidden; i++) {
        float acc = 0.0f;
        for (int slot = 0; slot < n_slots; slot++)
            acc = fmaf(weights[slot], y[slot][i], acc);
        out[i] = f32_to_bf16(acc);
    }
}
