/* model/fp8.c - see fp8.h. */
#include "model/fp8.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "model/halves.h"

#define SUBNORMAL(s, m) (s m * 0x1p-9f)
#define NORMAL(s, x, m) (s(8.0f + m) / 8.0f * (float)(1 << (x)) * 0x1p-7f)
#define EIGHT(s, x) \
    NORMAL(s, x, 0), NORMAL(s, x, 1), NORMAL(s, x, 2), NORMAL(s, x, 3), NORMAL(s, x, 4), \
        NORMAL(s, x, 5), NORMAL(s, x, 6), NORMAL(s, x, 7)
#define HALF(s) \
    SUBNORMAL(s, 0.0f), SUBNORMAL(s, 1), SUBNORMAL(s, 2), SUBNORMAL(s, 3), SUBNORMAL(s, 4), \
        SUBNORMAL(s, 5), SUBNORMAL(s, 6), SUBNORMAL(s, 7), EIGHT(s, 1), EIGHT(s, 2), EIGHT(s, 3), \
        EIGHT(s, 4), EIGHT(s, 5), EIGHT(s, 6), EIGHT(s, 7), EIGHT(s, 8), EIGHT(s, 9), \
        EIGHT(s, 10), EIGHT(s, 11), EIGHT(s, 12), EIGHT(s, 13), EIGHT(s, 14), NORMAL(s, 15, 0), \
        NORMAL(s, 15, 1), NORMAL(s, 15, 2), NORMAL(s, 15, 3), NORMAL(s, 15, 4), NORMAL(s, 15, 5), \
        NORMAL(s, 15, 6), NAN

const float fp8_table[256] = {HALF(+), HALF(-)};

uint8_t fp8_encode(float value)
{
    uint32_t bits = f32_to_bits(value);
    uint32_t sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint8_t)(sign | 0x7fu);
    if (magnitude >= f32_to_bits(FP8_MAX))
        return (uint8_t)(sign | 0x7eu);
    if (magnitude < f32_to_bits(0x1p-6f)) /* adding 2^14 rounds to a multiple of 2^-9 */
        return (uint8_t)(sign |
                         (f32_to_bits(f32_from_bits(magnitude) + 0x1p14f) - f32_to_bits(0x1p14f)));
    magnitude += 0x7ffffu + ((magnitude >> 20) & 1u);
    return (uint8_t)(sign | ((magnitude >> 20) - (120u << 3)));
}

int64_t fp8_blocks(int64_t extent, int block)
{
    return (extent + block - 1) / block;
}

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static float block_scale(const float *weights, int64_t rows, int64_t cols, int64_t stride)
{
    float largest = 0.0f;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            largest = fmaxf(largest, fabsf(weights[r * stride + c]));
    if (largest == 0.0f)
        return 1.0f;
    return fmaxf(largest / FP8_MAX, FLT_MIN);
}

static float power_from(float x)
{
    int exponent;
    float half = frexpf(x, &exponent);
    return ldexpf(1.0f, half == 0.5f ? exponent - 1 : exponent);
}

static void quantize(const float *weights, int64_t rows, int64_t cols, bool has_powers,
                     uint8_t *bytes, float *scales)
{
    int64_t block_cols = fp8_blocks(cols, FP8_BLOCK);
    for (int64_t row = 0; row < rows; row += FP8_BLOCK) {
        int64_t n_rows = min_i64(FP8_BLOCK, rows - row);
        for (int64_t col = 0; col < cols; col += FP8_BLOCK) {
            int64_t n_cols = min_i64(FP8_BLOCK, cols - col);
            float scale = block_scale(weights + row * cols + col, n_rows, n_cols, cols);
            if (has_powers)
                scale = power_from(scale);
            scales[row / FP8_BLOCK * block_cols + col / FP8_BLOCK] = scale;
            for (int64_t r = row; r < row + n_rows; r++)
                for (int64_t c = col; c < col + n_cols; c++)
                    bytes[r * cols + c] = fp8_encode(weights[r * cols + c] / scale);
        }
    }
}

void fp8_quantize(const float *weights, int64_t rows, int64_t cols, uint8_t *bytes, float *scales)
{
    quantize(weights, rows, cols, false, bytes, scales);
}

void fp8_quantize_powers(const float *weights, int64_t rows, int64_t cols, uint8_t *bytes,
                         float *scales)
{
    quantize(weights, rows, cols, true, bytes, scales);
}

void fp8_dequantize(const uint8_t *bytes, const float *scales, int64_t rows, int64_t cols,
                    float *out)
{
    int64_t block_cols = fp8_blocks(cols, FP8_BLOCK);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            out[r * cols + c] = fp8_decode(bytes[r * cols + c]) *
                                scales[r / FP8_BLOCK * block_cols + c / FP8_BLOCK];
}
