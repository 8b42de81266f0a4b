/* model/mx.h - MXFP8, the microscaling form of the released MiniMax-M3 checkpoint.
 *
 * E4M3 bytes (model/fp8.h), MX_BLOCK of a row sharing a scale that is a power of two, stored
 * as its biased exponent in one byte ("UE8M0"):
 *
 *   w[row][col] = fp8_decode(byte[row][col]) * 2^(scale[row][col / 32] - 127)
 *
 * and a scale byte of 255 is NaN.  Such a weight has four significant bits and an exponent
 * that bf16 has too (but below 2^-133), so bf16 holds it exactly. */
#pragma once

#include <math.h>
#include <stdint.h>

#include "model/halves.h"

enum { MX_BLOCK = 32, MX_SCALE_BIAS = 127, MX_SCALE_NAN = 255 };

static inline float mx_scale_decode(uint8_t byte)
{
    if (byte == MX_SCALE_NAN)
        return NAN;
    /* 2^-127 is denormal. */
    return byte == 0 ? 0x1p-127f : f32_from_bits((uint32_t)byte << 23);
}
