/* engine/index_sketch.c - see index_sketch.h. */
#include "engine/index_sketch.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/kv.h"
#include "engine/mathf.h"
#include "model/halves.h"

/* Values lie half a step beside the integers: code c stands for (c - MIDDLE) * step. */
#define MIDDLE 7.5f
#define SMALLEST_STEP 0x1p-100f
#define LIMIT 0x1p60f
/* More than what a sum of SKETCH_MAX_DIM squares in LANES chains of f32 loses, and what doubles do. */
#define UP (1.0 + 0x1p-15)
/* A dimension, 7.5 steps at most, times what one step's inverse was rounded to. */
#define ROUNDED_STEPS 0x1p-20
enum { LANES = 16, BYTE_MAX = 255 };

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

/* The next bf16 from x >= 0 on. */
static uint16_t bf16_above(float x)
{
    return (uint16_t)((f32_to_bits(x) + 0xffffu) >> 16);
}

static uint8_t byte_above(double value, double unit)
{
    double n = ceil(value * UP / unit);
    must(n >= 0 && n <= BYTE_MAX);
    return (uint8_t)n;
}

/* What is summed up over the dimensions, of steps: lane by lane, so that the compiler makes vectors of
 * it. */
struct key_sums {
    float off[LANES], own[LANES], sketch[LANES];
};

/* Every dimension is within 7.5 steps, and a little that was rounded, so its code is 0 to 15. */
static inline uint8_t add_dimension(struct key_sums *s, int lane, float x)
{
    int32_t code = (int32_t)(x + (MIDDLE + 0.5f));
    float y = (float)code - MIDDLE, off = x - y;
    s->off[lane] += off * off;
    s->own[lane] += x * x;
    s->sketch[lane] += y * y;
    return (uint8_t)code;
}

static double sum_lanes(const float lanes[LANES])
{
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        sum += (double)lanes[lane];
    return sum;
}

/* LANES dimensions' codes into their words.  Of eight bytes the second four go into the high halves of
 * the first. */
static void put_codes(const uint8_t codes[LANES], int n, uint32_t *words)
{
    for (int i = 0; i < n; i += SKETCH_DIMS, words += SKETCH_UNIT) {
        uint64_t eight;
        memcpy(&eight, codes + i, sizeof(eight));
        *words = (uint32_t)(eight | eight >> 28);
    }
}

static void add_dimensions(struct key_sums *s, const float *key, int dim, float inverse,
                           uint32_t *words)
{
    int first = 0;
    for (; first + LANES <= dim; first += LANES) {
        uint8_t codes[LANES];
        for (int lane = 0; lane < LANES; lane++)
            codes[lane] = add_dimension(s, lane, key[first + lane] * inverse);
        put_codes(codes, LANES, words + first / SKETCH_DIMS * SKETCH_UNIT);
    }
    uint8_t codes[LANES] = {0};
    for (int lane = 0; first + lane < dim; lane++)
        codes[lane] = add_dimension(s, lane, key[first + lane] * inverse);
    put_codes(codes, dim - first, words + first / SKETCH_DIMS * SKETCH_UNIT);
}

void sketch_key(const float *key, int dim, char *unit, int slot)
{
    struct sketch_head *head = (struct sketch_head *)(void *)unit;
    uint32_t *words = (uint32_t *)(void *)(unit + sizeof(*head)) + slot;
    float largest = math_magnitude(key, dim);
    if (!(largest < LIMIT)) {
        head->step[slot] = f32_to_bf16(NAN);
        return;
    }
    uint16_t half = bf16_above(largest / MIDDLE > SMALLEST_STEP ? largest / MIDDLE : SMALLEST_STEP);
    struct key_sums sums = {0};
    add_dimensions(&sums, key, dim, 1.0f / bf16_to_f32(half), words);
    double own = sum_lanes(sums.own), sketch = sum_lanes(sums.sketch);
    double rounded = sqrt((double)dim) * ROUNDED_STEPS;
    head->step[slot] = half;
    head->error[slot] = byte_above(sqrt(sum_lanes(sums.off)) + rounded, error_unit(dim));
    head->norm[slot] = byte_above(sqrt(own > sketch ? own : sketch) + rounded, norm_unit(dim));
}

/* A factor of a bound: positive, not below. */
static float float_above(double x)
{
    float f = (float)(x * (1.0 + 0x1p-16));
    return f > FLT_MIN ? f : FLT_MIN;
}

bool sketch_query(const float *q, int dim, int8_t *integers, struct sketch_query *out)
{
    float largest = math_magnitude(q, dim);
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
