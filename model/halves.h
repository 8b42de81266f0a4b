/* model/halves.h - the 16-bit floats: bf16 and IEEE binary16, to and from f32.
 *
 * To f32 is exact.  From f32 rounds to nearest, ties to even; NaN stays NaN (quiet).
 * Bit patterns travel as uint16_t; plain C, no dependence on the CPU level. */
#pragma once

#include <stdint.h>
#include <string.h>

static inline uint32_t f32_to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float bf16_to_f32(uint16_t half)
{
    return f32_from_bits((uint32_t)half << 16);
}

static inline uint16_t f32_to_bf16(float value)
{
    uint32_t bits = f32_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return (uint16_t)(bits >> 16);
}

static inline float f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
    if (exponent == 0x1f)
        return f32_from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) /* zero and subnormals: multiples of 2^-24 */
        return f32_from_bits(sign | f32_to_bits((float)mantissa * 0x1p-24f));
    return f32_from_bits(sign | (exponent + 112u) << 23 | mantissa << 13);
}

/* From 65520 on the result is infinite. */
static inline uint16_t f32_to_f16(float value)
{
    uint32_t bits = f32_to_bits(value);
    uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= f32_to_bits(65520.0f))
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < f32_to_bits(0x1p-14f)) /* adding 0.5 rounds to a multiple of 2^-24 */
        return (uint16_t)(sign | (f32_to_bits(f32_from_bits(magnitude) + 0.5f) - 0x3f000000u));
    magnitude += 0xfffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((magnitude >> 13) - (112u << 10)));
}
