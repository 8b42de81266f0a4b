/* engine/index_sketch.c - see index_sketch.h. */
#include "engine/index_sketch.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/kv.h"
#include "model/halves.h"

/* Values lie half a step beside the integers: code c stands for (c - MIDDLE) * step. */
#define MIDDLE 7.5f
#define SMALLEST_STEP 0x1p-100f
#define LIMIT 0x1p60f
/* What doubles round on the way is far below this. */
#define UP (1.0 + 1e-6)
enum { LARGEST_CODE = 15, BYTE_MAX = 255 };

/* Units of the two bytes, for a step of 1.  An error is at most half a step in every dimension, a
 * norm at most 7.5 of them; a little room above that. */
static double error_unit(int dim)
{
    return sqrt((double)dim) / 508;
}

static double norm_unit(int dim)
{
    return sqrt((double)dim) * (double)MIDDLE / 250;
}

static size_t code_groups(int dim)
{
    return ((size_t)dim + SKETCH_DIMS - 1) / SKETCH_DIMS;
}

size_t sketch_unit_bytes(int dim)
{
    return sizeof(struct sketch_head) + code_groups(dim) * SKETCH_UNIT * sizeof(uint32_t);
}

size_t sketch_query_stride(int dim)
{
    return code_groups(dim) * SKETCH_DIMS;
}

/* The largest magnitude, or a NaN. */
static float magnitude(const float *x, int n)
{
    float largest = 0.0f;
    for (int i = 0; i < n; i++) {
        float size = fabsf(x[i]);
        if (!(size <= largest))
            largest = size;
        if (size != size)
            return NAN;
    }
    return largest;
}

/* The next bf16 from x >= 0 on. */
static uint16_t bf16_above(float x)
{
    return (uint16_t)((f32_to_bits(x) + 0xffffu) >> 16);
}

static uint32_t code_of(float x, float inverse)
{
    int32_t at = (int32_t)(x * inverse + (MIDDLE + 0.5f));
    return at < 0 ? 0 : at > LARGEST_CODE ? LARGEST_CODE : (uint32_t)at;
}

static uint8_t byte_above(double value, double unit)
{
    double n = ceil(value * UP / unit);
    must(n >= 0 && n <= BYTE_MAX);
    return (uint8_t)n;
}

void sketch_key(const float *key, int dim, char *unit, int slot)
{
    struct sketch_head *head = (struct sketch_head *)(void *)unit;
    uint32_t *codes = (uint32_t *)(void *)(unit + sizeof(*head)) + slot;
    float largest = magnitude(key, dim);
    if (!(largest < LIMIT)) {
        head->step[slot] = f32_to_bf16(NAN);
        return;
    }
    uint16_t half = bf16_above(largest / MIDDLE > SMALLEST_STEP ? largest / MIDDLE : SMALLEST_STEP);
    float step = bf16_to_f32(half), inverse = 1.0f / step;
    double per_step = 1.0 / (double)step, off = 0, own = 0, sketch = 0;
    for (int first = 0; first < dim; first += SKETCH_DIMS) {
        uint32_t word = 0;
        for (int i = 0; i < SKETCH_DIMS && first + i < dim; i++) {
            uint32_t code = code_of(key[first + i], inverse);
            /* Low halves of the four bytes, then the high ones. */
            word |= code << (8 * (i % 4) + i / 4 * 4);
            double x = (double)key[first + i] * per_step;
            double y = (double)code - (double)MIDDLE;
            off += (x - y) * (x - y);
            own += x * x;
            sketch += y * y;
        }
        codes[first / SKETCH_DIMS * SKETCH_UNIT] = word;
    }
    head->step[slot] = half;
    head->error[slot] = byte_above(sqrt(off), error_unit(dim));
    head->norm[slot] = byte_above(sqrt(own > sketch ? own : sketch), norm_unit(dim));
}

/* A factor of a bound: positive, not below. */
static float float_above(double x)
{
    float f = (float)(x * (1.0 + 0x1p-16));
    return f > FLT_MIN ? f : FLT_MIN;
}

bool sketch_query(const float *q, int dim, int8_t *integers, struct sketch_query *out)
{
    float largest = magnitude(q, dim);
    if (!(largest < LIMIT))
        return false;
    memset(integers, 0, sketch_query_stride(dim));
    float scale = kv_quantise(q, dim, integers);
    double own = 0, rest = 0;
    int32_t sum = 0;
    for (int d = 0; d < dim; d++) {
        double x = (double)q[d], y = x - (double)scale * integers[d];
        own += x * x;
        rest += y * y;
        sum += integers[d];
    }
    own = sqrt(own) * UP;
    rest = sqrt(rest) * UP + (dim + 32) * 0x1p-22 * own;
    *out = (struct sketch_query){.unit = scale * 0.5f,
                                 .error = float_above(own * error_unit(dim)),
                                 .norm = float_above(rest * norm_unit(dim)),
                                 .middle = (int32_t)(2 * MIDDLE) * sum};
    return true;
}
