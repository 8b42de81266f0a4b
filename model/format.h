/* model/format.h - the choices that a whole cluster shares (design: numerics.md 3 and 5).
 * The handshake refuses a mixture. */
#pragma once

#include <stdbool.h>

/* How weight matrices are held in memory and multiplied. */
enum weight_format {
    FORMAT_NATIVE, /* as the checkpoint stores each matrix */
    FORMAT_F32,
    FORMAT_BF16,
    FORMAT_FP8, /* e4m3 with one f32 scale per 128x128 block, weight-only */
    FORMAT_COUNT
};
#define FORMAT_CHOICES "native|f32|bf16|fp8"

/* How expert outputs of a row come together. */
enum combine_mode {
    COMBINE_FIXED,  /* int32 on a grid per row: adds in any order, independent of placement */
    COMBINE_EXPERT, /* one f32 row per selected expert, added in routing-slot order */
    COMBINE_NODE,   /* one bf16 row per node: fewest bytes, depends on placement */
    COMBINE_COUNT
};
#define COMBINE_CHOICES "fixed|expert|node"

const char *format_name(enum weight_format f);
bool format_parse(const char *text, enum weight_format *out);
const char *combine_name(enum combine_mode m);
bool combine_parse(const char *text, enum combine_mode *out);
