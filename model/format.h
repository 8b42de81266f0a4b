/* model/format.h - the choices that a whole cluster shares (design: numerics.md 3 and 5).
 * The handshake refuses a mixture. */
#pragma once

#include <stdbool.h>

#include "base/err.h"

/* How a weight matrix is held in memory and multiplied. */
enum weight_format {
    FORMAT_NATIVE, /* as the checkpoint stores each matrix */
    FORMAT_F32,
    FORMAT_BF16,
    FORMAT_FP8, /* e4m3 with one f32 scale per 128x128 block, weight-only */
    FORMAT_Q8,  /* int8 in [-127, 127], one f32 scale per row and Q8_GROUP columns */
    FORMAT_Q4,  /* 4 bits in [-8, 7], one f32 scale per row and Q4_GROUP columns */
    FORMAT_COUNT
};
#define FORMAT_CHOICES "native|f32|bf16|fp8|q8|q4"
enum { Q8_GROUP = 128, Q4_GROUP = 64 };

/* How keys and values are kept (engine/kv.h). */
enum kv_format { KV_F32, KV_BF16, KV_INT8, KV_FORMAT_COUNT };
#define KV_FORMAT_CHOICES "f32|bf16|int8"

/* Everything about formats that decides the bits of an answer; the router is always as stored. */
struct format_set {
    enum weight_format experts, attention, head;
    enum kv_format kv;
};
#define FORMAT_SET_HELP "FORMAT or part=FORMAT,... (parts: experts attention head kv)"

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
const char *kv_format_name(enum kv_format f);
bool kv_format_parse(const char *text, enum kv_format *out);
const char *combine_name(enum combine_mode m);
bool combine_parse(const char *text, enum combine_mode *out);

/* Columns that share an activation scale with weights of this format; 0 for float formats. */
int format_group(enum weight_format f);

/* Items with commas between, later ones win: "q8" sets the three weight parts, "experts=q4"
 * one part, "kv=int8" the cache.  What no item names is native, and bf16 for the cache -
 * except that "f32" as a whole item makes the cache f32 too unless kv= is given.
 * E_INVALID names the item and the choices. */
int format_set_parse(const char *text, struct format_set *out, struct err *e);
/* The one spelling of a set: "q8,kv=bf16" when the parts agree, otherwise
 * "experts=q4,attention=q8,head=q8,kv=bf16". */
enum { FORMAT_SET_BYTES = 80 };
const char *format_set_text(const struct format_set *s, char out[FORMAT_SET_BYTES]);
bool format_set_equal(const struct format_set *a, const struct format_set *b);
