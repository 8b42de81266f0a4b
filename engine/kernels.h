/* engine/kernels.h - the table of inner loops.
 *
 * Portable C (kernels.c, kernels_attend.c) defines the bits; every other column of the
 * table gives the same bits (tests/kernel compares them all).  The rule that makes this
 * possible is that a sum is one chain in a fixed order and vector lanes hold different
 * sums: rows of W, keys, or dimensions.  Where one sum must be spread over lanes
 * (rms_norm, the softmax denominator) there are always 16 lane sums, element i belongs to
 * lane i mod 16, and lanes are added 0..15. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/rows.h"
#include "model/config.h"
#include "model/format.h"

enum {
    PANEL_ROWS = 16,  /* rows of W that lie interleaved */
    SCALE_BLOCK = 128 /* FP8: one scale per 128 x 128 */
};

/* A packed weight matrix, y = W x, W [rows, cols].  Panel p holds rows 16p..16p+15 (rows
 * past the end are zero), columns padded with zeros to a multiple of 4 (f32, bf16, fp8) or
 * of the group (q8, q4):
 *   f32   float    [panel][k][16]
 *   bf16  uint16_t [panel][k/2][16][2]
 *   fp8   uint8_t  [panel][k/2][16][2]; float scales [ceil(rows/128)][ceil(cols/128)]
 *   q8    [panel][group of 128] { float scales[16]; int8_t q[128/4][16][4]; }       2,112 bytes
 *   q4    [panel][group of 64]  { float scales[16]; uint8_t q[64/8][16][4]; }         576 bytes
 *         byte [j][r][i] holds column 8j + i in its low and 8j + 4 + i in its high four
 *         bits, each as value + 8
 * One k-step of four columns x 16 rows (64 bytes of q8) is the operand of vpdpbusd and one
 * row of the AMX B tile.  Layout shared by all levels (numerics.md 1). */
struct matrix {
    enum weight_format format; /* never FORMAT_NATIVE */
    int rows, cols;
    int padded_cols, n_panels;
    int group; /* columns per scale: Q8_GROUP, Q4_GROUP, or 0 */
    size_t panel_bytes;
    void *panels;     /* aligned to 64 */
    float *scales;    /* fp8 only */
    bool is_borrowed; /* panels and scales belong to a mapping or to a larger room */
};

struct q8_panel_group {
    float scales[PANEL_ROWS];
    int8_t q[Q8_GROUP / 4][PANEL_ROWS][4];
};
struct q4_panel_group {
    float scales[PANEL_ROWS];
    uint8_t q[Q4_GROUP / 8][PANEL_ROWS][4];
};
_Static_assert(sizeof(struct q8_panel_group) == 2112 && sizeof(struct q4_panel_group) == 576,
               "the layout of packed files");

/* y[m][16p + r] = sum over k of W[16p + r][k] * x[m][k] for the n_panels panels from
 * first_panel and all rows m of x; y stride y_stride, written for rows below w->rows only.
 *   f32, bf16: acc = fmaf(w, x, acc) for k = 0..cols-1, from 0
 *   fp8: per block of 128 columns  block = fmaf(e4m3, x, block) from 0, then
 *        acc = fmaf(scale, block, acc), blocks ascending
 *   q8, q4: per group  isum = exact sum of q_w * q_x in int32, then
 *        acc = fmaf(wscale * xscale, (float)isum, acc), groups ascending, from 0
 * Float formats read x->f32; q8 and q4 read the quantised form, whose group must be w's. */
typedef void matmul_panels(const struct matrix *w, int first_panel, int n_panels,
                           const struct rows *x, float *y, size_t y_stride);

/* One block of at most ATTEND_BLOCK keys for the query heads that share a KV head.
 * Layouts of K and V in a block (dims padded with zeros; lanes hold keys in K, dims in V):
 *   f32   K float    [64/16][head_dim][16]               V float    [64][v_stride]
 *   bf16  K uint16_t [64/16][ceil(head_dim/2)][16][2]    V uint16_t [64/2][v_stride][2 keys]
 *   int8  K int8_t   [64/16][ceil(head_dim/4)][16][4]    V int8_t   [64/4][v_stride][4 keys]
 *         and one f32 scale per key for K and for V, absmax/127 over head_dim, or NaN */
enum { ATTEND_BLOCK = 64 };
struct attend_state { /* of one query head and one chunk; o follows in its own array */
    float max;        /* -inf before the first key */
    float sum[16];    /* lane sums of p; key j of the block belongs to lane j mod 16 */
};
struct attend_block {
    const float *q; /* [n_heads, q_stride], already scaled by 1/sqrt(head_dim) */
    int n_heads, q_stride;
    const int8_t *q8;      /* int8: [n_heads, q8_stride], zero up to a multiple of 16 */
    const float *q_scales; /* int8: [n_heads] */
    int q8_stride;
    const void *k, *v;
    const float *k_scales, *v_scales; /* int8: [ATTEND_BLOCK] */
    int head_dim;                     /* true size */
    int v_stride;                     /* head_dim rounded up to 16 */
    int n_keys;                       /* 1..ATTEND_BLOCK; keys from 0; what lies past them is
                                         undefined and must not be used */
    struct attend_state *state;       /* [n_heads] */
    float *o;                         /* [n_heads, v_stride], aligned to 64 */
    const void *next;                 /* a hint: what will be read next, next_bytes of it, is */
    size_t next_bytes;                /* fetched towards the caches meanwhile; NULL: nothing */
};

/* Index keys of part of a page, for a row's index heads (engine/msa.h). */
struct index_block {
    const float *q;          /* [n_queries, q_stride] */
    int n_queries, q_stride; /* any number of queries */
    const void *k;           /* laid out as K of a block is, f32 or bf16 */
    int head_dim;            /* even */
    int n_keys;              /* a multiple of 16, at most ATTEND_BLOCK */
    float *largest;          /* [n_queries, largest_stride]: see index_largest */
    size_t largest_stride;
    const void *next; /* a hint, as in an attend_block; NULL: nothing */
};

/* Sketches of the index keys of part of a page (index_sketch.h): units of SKETCH_UNIT keys, in each
 * a head and then, for every SKETCH_DIMS dimensions from d on, 4 bytes of each key; byte i holds
 * dimension d + i in its low and d + 4 + i in its high four bits. */
enum { SKETCH_UNIT = 16, SKETCH_DIMS = 8 };
#define SKETCH_LEAST 0x1p-120f
struct sketch_head {
    uint16_t step[SKETCH_UNIT]; /* bf16; a NaN: nothing is known of this key */
    uint8_t error[SKETCH_UNIT], norm[SKETCH_UNIT];
};
struct sketch_query {
    float unit, error, norm;
    int32_t middle;
};
struct sketch_block {
    const int8_t *q; /* [n_queries, q_stride]: integers, zero up to a multiple of SKETCH_DIMS */
    size_t q_stride;
    const struct sketch_query *queries; /* [n_queries] */
    int n_queries, head_dim;
    const void *sketch; /* aligned to 64 */
    size_t unit_bytes;
    int n_keys;     /* a multiple of SKETCH_UNIT */
    float *largest; /* [n_queries, largest_stride], of each unit one: see index_bound */
    size_t largest_stride;
    const void *next; /* a hint, as in an attend_block; NULL: nothing */
};

/* A candidate for the scale of a group of weights: scale = absmax / level. */
struct scale_level {
    float level, penalty; /* 1 / level^2 */
};

struct kernels {
    const char *name;                    /* "portable", "avx2", "avx512", "amx" */
    matmul_panels *matmul[FORMAT_COUNT]; /* by w->format; NULL for FORMAT_NATIVE */

    /* One row of n columns by the rule of rows.h: q up to a multiple of `group` (zeros past
     * n), scales and sums one per group. */
    void (*quantise)(const float *x, int n, int group, int8_t *q, float *scales, int32_t *sums);

    /* Weights of a group to integers (quantise.h); x [n], n = format_group(format), finite.
     * For each level  t = x * (level / absmax),  r = round-to-nearest-even(t), for q4 clamped to
     * [-8, 7] (for q8 no level is above 127),  error = sum of (t - r)^2 * penalty: 16 lane sums,
     * a product and a sum each, added in halves (i and i + 8, i + 4, i + 2, i + 1).  q = r of the
     * level with the smallest error, the first of equals (unseen where there is one level);
     * returns absmax / level, or 0 and zeros where 127 / absmax is infinite. */
    float (*quantise_weights)(const float *x, enum weight_format format,
                              const struct scale_level *levels, int n_levels, int8_t *q);

    /* out[i] = x[i] * r * w[i], r = 1/sqrt(mean(x^2) + eps); 16 lane sums by fmaf. */
    void (*rms_norm)(const float *x, const float *w, int n, float eps, float *out);
    /* gate[i] = silu(gate[i]) * up[i] */
    void (*swiglu)(float *gate, const float *up, int n);
    /* g = limit < gate[i] ? limit : gate[i];  u = up[i] between -limit and limit, a NaN stays;
     * gate[i] = (g * sigmoid(alpha * g)) * (u + beta) */
    void (*swiglu_oai)(float *gate, const float *up, int n, const struct activation *a);
    /* x[i] = x[i] + y[i] */
    void (*add)(float *x, const float *y, int n);
    /* out[i] = math_exp(x[i]) and out[i] = math_sigmoid(x[i]); in place allowed. */
    void (*exp)(const float *x, int n, float *out);
    void (*sigmoid)(const float *x, int n, float *out);

    /* Fixed-point combine (combine.h): acc[i] += q, q = round-to-nearest-even(
     * weight * y[i] * 2^-exponent), the product weight * y rounded to f32 first.
     * Returns how many |q| were not below 2^27 (NaN counts); acc is then meaningless. */
    int (*fixed_add)(const float *y, float weight, int exponent, int n, int32_t *acc);
    /* x[i] += (float)acc[i] * 2^exponent */
    void (*fixed_fold)(const int32_t *acc, int exponent, int n, float *x);
    /* acc[i] += y[i], y possibly misaligned (it lies in a received frame). */
    void (*add_int32)(int32_t *acc, const void *y, int n);

    /* Folds one block of keys into the state of each head:
     *   s_j = chain over d of fmaf(q[d], k[d][j], s), from 0
     *         int8: s_j = (q_scale * k_scale_j) * (float)isum, isum exact in int32
     *   m'  = max(m, max_j s_j), NaN left out, a zero positive;  c = exp(m - m') (0 when m is -inf)
     *   p_j = exp(s_j - m')
     *   sum[lane] = sum[lane] * c;  o = o * c
     *   f32, bf16, for j ascending: sum[j mod 16] += p_j;  o = fmaf(p_j, v_j, o)
     *   int8: sum as above; t_j = p_j * v_scale_j;  T = max_j t_j, a NaN if any t_j is one;
     *         u_j = round-to-nearest-even(t_j * (32767 / T)) (0 when T is below 2^-100);
     *         o = fmaf(T * (1/32767), (float)isum, o), isum = sum_j u_j * v_j exact in int32
     * (15 bits of p: with 7 an int8 cache has up to twice the error.) */
    void (*attend[KV_FORMAT_COUNT])(const struct attend_block *b);

    /* Reads `bytes` (a multiple of 1,024) at an address that is a multiple of 64 in four streams,
     * as the loops above read panels, and folds them into one number: for read_probe.h. */
    uint64_t (*read)(const uint8_t *from, size_t bytes);

    /* largest = the largest of itself and of the scores of the block's keys, a score being the
     * chain over d of fmaf(q[d], k[d][j], s) from 0; NaN left out, a zero positive.  Keys of
     * KV_F32 or KV_BF16. */
    void (*index_largest[KV_FORMAT_COUNT])(const struct index_block *b);
    /* largest[u] = the largest of the bounds of the scores of unit u's keys, a bound being
     *   fmaf(step, fmaf(unit, (float)(2 * isum - middle), fmaf(error_q, error_k, norm_q * norm_k)),
     *        SKETCH_LEAST),  isum = sum over d of q[d] * code[d] exact in int32,
     * or infinity where the step is a NaN. */
    void (*index_bound)(const struct sketch_block *b);
};

/* The best table that this CPU runs, or the named one; NULL if unknown or not runnable
 * here.  Chosen once at start; the same pointer for the same name. */
const struct kernels *kernels_best(void);
const struct kernels *kernels_named(const char *name);
/* Names of all levels of this build, best last; NULL-terminated.  Not all may run here. */
const char *const *kernels_names(void);

/* Each file fills its part of a table; a level begins as a copy of the one below it. */
void kernels_portable_quant(struct kernels *k);
void kernels_portable_attend(struct kernels *k);
void kernels_portable_search(struct kernels *k);
void kernels_portable_read(struct kernels *k);
void kernels_portable_index(struct kernels *k);
void kernels_portable_sketch(struct kernels *k);
void kernels_avx2_fill(struct kernels *k);
void kernels_avx2_quant(struct kernels *k);
void kernels_avx2_attend(struct kernels *k);
void kernels_avx2_search(struct kernels *k);
void kernels_avx2_read(struct kernels *k);
void kernels_avx2_index(struct kernels *k);
void kernels_avx2_sketch(struct kernels *k);
void kernels_avx512_fill(struct kernels *k);
void kernels_avx512_quant(struct kernels *k);
void kernels_avx512_attend(struct kernels *k);
void kernels_avx512_search(struct kernels *k);
void kernels_avx512_read(struct kernels *k);
void kernels_avx512_index(struct kernels *k);
void kernels_avx512_sketch(struct kernels *k);
void kernels_amx_fill(struct kernels *k);
/* The system grants tile registers once per process; false where it does not. */
bool kernels_amx_allowed(void);
