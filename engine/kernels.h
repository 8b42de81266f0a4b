/* engine/kernels.h - the table of inner loops.
 *
 * Portable C (kernels.c, kernels_attend.c) defines the bits; every other column of the
 * table gives the same bits (tests/kernel compares them all).  The rule that makes this
 * possible is that a sum is one chain in a fixed order and vector lanes hold different
 * sums: rows of W, keys, or dimensions.  Where one sum must be spread over lanes
 * (rms_norm, the softmax denominator) there are always 16 lane sums, element i belongs to
 * lane i mod 16, and lanes are added 0..15. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "model/format.h"

enum {
    PANEL_ROWS = 16,  /* rows of W that lie interleaved */
    SCALE_BLOCK = 128 /* FP8: one scale per 128 x 128 */
};

/* A packed weight matrix, y = W x, W [rows, cols].  Panel p holds rows 16p..16p+15 (rows
 * past the end are zero), columns padded with zeros to a multiple of 4:
 *   f32   float    [panel][k][16]
 *   bf16  uint16_t [panel][k/2][16][2]
 *   fp8   uint8_t  [panel][k/2][16][2]; float scales [ceil(rows/128)][ceil(cols/128)]
 * (element order chosen for AVX2 loads, shared by all levels; numerics.md 1). */
struct matrix {
    enum weight_format format; /* never FORMAT_NATIVE */
    int rows, cols;
    int padded_cols, n_panels;
    size_t panel_bytes;
    void *panels;  /* aligned to 64; owned */
    float *scales; /* fp8 only; owned */
};

/* y[m][16p + r] = sum over k of W[16p + r][k] * x[m][k] for the n_panels panels from
 * first_panel and all n_rows rows m.  x [n_rows, cols] with stride x_stride (floats),
 * readable up to padded_cols (padding must be zero); y stride y_stride, written for rows
 * below w->rows only.
 *   f32, bf16: acc = fmaf(w, x, acc) for k = 0..cols-1, from 0
 *   fp8: per block of 128 columns  block = fmaf(e4m3, x, block) from 0, then
 *        acc = fmaf(scale, block, acc), blocks ascending */
typedef void matmul_panels(const struct matrix *w, int first_panel, int n_panels, const float *x,
                           size_t x_stride, int n_rows, float *y, size_t y_stride);

/* One block of at most ATTEND_BLOCK keys for the query heads that share a KV head. */
enum { ATTEND_BLOCK = 64 };
struct attend_state { /* of one query head and one chunk; o follows in its own array */
    float max;        /* -inf before the first key */
    float sum[16];    /* lane sums of p; key j of the block belongs to lane j mod 16 */
};
struct attend_block {
    const float *q; /* [n_heads, q_stride], already scaled by 1/sqrt(head_dim) */
    int n_heads, q_stride;
    const float *k;             /* [ATTEND_BLOCK/16][head_dim][16]: transposed by 16 keys */
    const float *v;             /* [ATTEND_BLOCK][v_stride] */
    int head_dim;               /* true size */
    int v_stride;               /* head_dim rounded up to 16, padding zero */
    int n_keys;                 /* 1..ATTEND_BLOCK; keys from 0 */
    struct attend_state *state; /* [n_heads] */
    float *o;                   /* [n_heads, v_stride], aligned to 64 */
};

struct kernels {
    const char *name; /* "portable", "avx2" */
    matmul_panels *matmul_f32, *matmul_bf16, *matmul_fp8;

    /* out[i] = x[i] * r * w[i], r = 1/sqrt(mean(x^2) + eps); 16 lane sums by fmaf. */
    void (*rms_norm)(const float *x, const float *w, int n, float eps, float *out);
    /* gate[i] = silu(gate[i]) * up[i] */
    void (*swiglu)(float *gate, const float *up, int n);
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
     *   m'  = max(m, max_j s_j);  c = exp(m - m') (0 when m is -inf)
     *   sum[lane] = sum[lane] * c;  o = o * c
     *   for j ascending: p = exp(s_j - m');  sum[j mod 16] += p;  o = fmaf(p, v_j, o) */
    void (*attend)(const struct attend_block *b);
};

/* The best table that this CPU runs, or the named one; NULL if unknown or not runnable
 * here.  Chosen once at start; the same pointer for the same name. */
const struct kernels *kernels_best(void);
const struct kernels *kernels_named(const char *name);
/* Names of all levels of this build, best last; NULL-terminated.  Not all may run here. */
const char *const *kernels_names(void);

/* Each file fills its part of a table. */
void kernels_portable_attend(struct kernels *k);
void kernels_avx2_fill(struct kernels *k);
void kernels_avx2_attend(struct kernels *k);
