/* tests/unit/test_fp8.c - E4M3, its block scales, and the 16-bit floats. */
#include "model/fp8.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "model/halves.h"
#include "tests/lib/test.h"

TEST(fp8_decodes_the_specified_values)
{
    static const struct {
        uint8_t byte;
        float value;
    } known[] = {
        {0x00, 0},
        {0x01, 0.001953125f},
        {0x07, 0.013671875f},
        {0x08, 0.015625f},
        {0x38, 1},
        {0x39, 1.125f},
        {0x40, 2},
        {0x48, 4},
        {0x7e, 448},
        {0xbc, -1.5f},
        {0xfe, -448},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        CHECK_NEAR(fp8_decode(known[i].byte), known[i].value, 0);
    CHECK(fp8_decode(0x80) == 0 && signbit(fp8_decode(0x80)));
    CHECK(isnan(fp8_decode(0x7f)) && isnan(fp8_decode(0xff)));
}

TEST(fp8_encode_gives_back_every_byte)
{
    for (int byte = 0; byte < 256; byte++)
        if ((byte & 0x7f) != 0x7f)
            CHECK_INT(fp8_encode(fp8_decode((uint8_t)byte)), byte);
    CHECK_INT(fp8_encode(NAN) & 0x7f, 0x7f);
}

TEST(fp8_encode_saturates)
{
    CHECK_INT(fp8_encode(449), 0x7e);
    CHECK_INT(fp8_encode(1e30f), 0x7e);
    CHECK_INT(fp8_encode(INFINITY), 0x7e);
    CHECK_INT(fp8_encode(-INFINITY), 0xfe);
    CHECK_INT(fp8_encode(-464), 0xfe);
}

/* Bytes 0x00 to 0x7e ascend in value, so the nearest byte is one of two neighbours. */
TEST(fp8_encode_rounds_to_nearest_with_ties_to_even)
{
    for (int byte = 0; byte < 0x7e; byte++) {
        float low = fp8_decode((uint8_t)byte), high = fp8_decode((uint8_t)(byte + 1));
        float middle = (low + high) / 2;
        CHECK_INT(fp8_encode(middle), byte % 2 == 0 ? byte : byte + 1);
        CHECK_INT(fp8_encode(nextafterf(middle, 0)), byte);
        CHECK_INT(fp8_encode(nextafterf(middle, 1000)), byte + 1);
        CHECK_INT(fp8_encode(-nextafterf(middle, 1000)), 0x80 | (byte + 1));
    }
}

TEST(fp8_quantize_scales_partial_blocks_by_themselves)
{
    enum { ROWS = 130, COLS = 300 };
    static float weights[ROWS * COLS], back[ROWS * COLS];
    static uint8_t bytes[ROWS * COLS];
    float scales[2 * 3];
    struct rng random = test_rng();
    for (int i = 0; i < ROWS * COLS; i++)
        weights[i] = (float)rng_normal(&random);
    for (int c = 256; c < COLS; c++) /* the lower right corner is all zero */
        weights[128 * COLS + c] = weights[129 * COLS + c] = 0;
    weights[129 * COLS + 130] = 44.8f;
    CHECK_INT(fp8_blocks(ROWS, FP8_BLOCK), 2);
    CHECK_INT(fp8_blocks(COLS, FP8_BLOCK), 3);
    CHECK_INT(fp8_blocks(256, FP8_BLOCK), 2);
    fp8_quantize(weights, ROWS, COLS, bytes, scales);
    CHECK_NEAR(scales[4], 0.1, 1e-7);
    CHECK_NEAR(scales[5], 1, 0);
    CHECK_INT(bytes[129 * COLS + 130], 0x7e);
    fp8_dequantize(bytes, scales, ROWS, COLS, back);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) {
            float scale = scales[r / 128 * 3 + c / 128], weight = weights[r * COLS + c];
            /* Half a step: 2^-4 of a normal value, 2^-10 of the scale below 2^-6. */
            CHECK_NEAR(back[r * COLS + c], weight,
                       fmaxf(fabsf(weight) / 16, scale * 0x1p-10f) * 1.0001f);
        }
}

TEST(halves_give_back_every_bit_pattern)
{
    for (int bits = 0; bits < 65536; bits++) {
        bool is_f16_nan = (bits & 0x7fff) > 0x7c00, is_bf16_nan = (bits & 0x7fff) > 0x7f80;
        if (is_f16_nan)
            CHECK(isnan(f16_to_f32((uint16_t)bits)));
        else
            CHECK_INT(f32_to_f16(f16_to_f32((uint16_t)bits)), bits);
        if (is_bf16_nan)
            CHECK(isnan(bf16_to_f32(f32_to_bf16(bf16_to_f32((uint16_t)bits)))));
        else
            CHECK_INT(f32_to_bf16(bf16_to_f32((uint16_t)bits)), bits);
    }
}

TEST(halves_round_to_nearest_with_ties_to_even)
{
    CHECK_INT(f32_to_bf16(1.00390625f), 0x3f80); /* 1 + 2^-8, a tie */
    CHECK_INT(f32_to_bf16(1.01171875f), 0x3f82); /* 1 + 3 * 2^-8, a tie */
    CHECK_INT(f32_to_bf16(1.00390637f), 0x3f81);
    CHECK_INT(f32_to_bf16(3.4e38f), 0x7f80);
    CHECK_NEAR(f16_to_f32(0x0001), 0x1p-24, 0);
    CHECK_NEAR(f16_to_f32(0x3555), 0.333251953125, 0);
    CHECK_INT(f32_to_f16(0x1p-25f), 0x0000);
    CHECK_INT(f32_to_f16(0x1.8p-24f), 0x0002);
    CHECK_INT(f32_to_f16(65519.0f), 0x7bff);
    CHECK_INT(f32_to_f16(65520.0f), 0x7c00);
    CHECK_INT(f32_to_f16(-1e9f), 0xfc00);
    CHECK_INT(f32_to_f16(1.00048828125f), 0x3c00); /* 1 + 2^-11, a tie */
}
