/* model/fp8.h - the 8-bit float E4M3 of the released checkpoints ("float8_e4m3fn"), and
 * its 128x128 block scales.
 *
 * One sign, four exponent bits (bias 7), three mantissa bits.  No infinity; 0x7F and 0xFF
 * are NaN; largest finite 448, smallest subnormal 2^-9.  A stored weight means
 *
 *   w[row][col] = fp8_decode(byte[row][col]) * scale[row / 128][col / 128]
 *
 * multiplied in f32 ("weight_scale_inv" is, despite its name, a factor).  Blocks at the
 * right and lower edge may be partial. */
#pragma once

#include <stdint.h>

enum { FP8_BLOCK = 128 };
#define FP8_MAX 448.0f

/* Value of each byte, exact in f32. */
extern const float fp8_table[256];

static inline float fp8_decode(uint8_t byte)
{
    return fp8_table[byte];
}

/* Nearest value, ties to even, saturating at +-448 (also for infinity); NaN gives NaN. */
uint8_t fp8_encode(float value);

/* Quantises weights [rows, cols] in blocks of FP8_BLOCK squared, each with the scale
 * (largest magnitude) / 448, or 1 where a block is all zero.  bytes [rows, cols], scales
 * [ceil(rows / 128), ceil(cols / 128)].  The weights must be finite. */
void fp8_quantize(const float *weights, int64_t rows, int64_t cols, uint8_t *bytes, float *scales);
/* The same with the smallest power of two that leaves no element above 448: weights of four
 * significant bits (MXFP8, model/mx.h) stay exact down to 2^-6 of their block's scale, and lie
 * within 2^-10 of it below. */
void fp8_quantize_powers(const float *weights, int64_t rows, int64_t cols, uint8_t *bytes,
                         float *scales);
/* Number of blocks along an extent: ceil(extent / block); block > 0. */
int64_t fp8_blocks(int64_t extent, int block);
/* The inverse of fp8_quantize(): f32 [rows, cols] into out. */
void fp8_dequantize(const uint8_t *bytes, const float *scales, int64_t rows, int64_t cols,
                    float *out);
