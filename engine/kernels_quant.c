/* engine/kernels_quant.c - portable C for int8 activations and for q8 and q4 weights: the
 * definition of the bits, written for clearness. */
#include <math.h>
#include <string.h>

#include "base/must.h"
#include "engine/kernels.h"

/* ---- activations ---- */

static float largest_magnitude(const float *x, int n)
{
    float largest = 0.0f;
    for (int i = 0; i < n; i++) {
        float magnitude = fabsf(x[i]);
        if (!(magnitude <= largest)) /* a NaN stays: nothing compares with it */
            largest = magnitude;
        if (isnan(largest))
            return largest;
    }
    return largest;
}

static void quantise_group(const float *x, int n, int8_t *q, float *scale, int32_t *sum)
{
    float largest = largest_magnitude(x, n);
    float inverse = 127.0f / largest;
    *scale = 0.0f;
    *sum = 0;
    for (int i = 0; i < n; i++)
        q[i] = 0;
    if (!isfinite(largest)) {
        *scale = NAN;
        return;
    }
    if (isinf(inverse))
        return;
    *scale = largest * (1.0f / 127.0f);
    for (int i = 0; i < n; i++) {
        q[i] = (int8_t)rintf(x[i] * inverse);
        *sum += q[i];
    }
}

static void quantise(const float *x, int n, int group, int8_t *q, float *scales, int32_t *sums)
{
    for (int first = 0, g = 0; first < n; first += group, g++) {
        int count = n - first < group ? n - first : group;
        quantise_group(x + first, count, q + first, &scales[g], &sums[g]);
        memset(q + first + count, 0, (size_t)(group - count));
    }
}

/* ---- weights ---- */

/* One group of one panel as [column][row]; returns its scales. */
typedef const float *decode_group(const struct matrix *w, int panel, int group,
                                  int8_t out[][PANEL_ROWS]);

static const void *panel_at(const struct matrix *w, int panel)
{
    return (const char *)w->panels + (size_t)panel * w->panel_bytes;
}

static const float *decode_q8(const struct matrix *w, int panel, int group,
                              int8_t out[][PANEL_ROWS])
{
    const struct q8_panel_group *b = (const struct q8_panel_group *)panel_at(w, panel) + group;
    for (int k = 0; k < Q8_GROUP; k++)
        for (int r = 0; r < PANEL_ROWS; r++)
            out[k][r] = b->q[k / 4][r][k % 4];
    return b->scales;
}

static const float *decode_q4(const struct matrix *w, int panel, int group,
                              int8_t out[][PANEL_ROWS])
{
    const struct q4_panel_group *b = (const struct q4_panel_group *)panel_at(w, panel) + group;
    for (int k = 0; k < Q4_GROUP; k++)
        for (int r = 0; r < PANEL_ROWS; r++) {
            int pair = b->q[k / 8][r][k % 4];
            out[k][r] = (int8_t)((k % 8 < 4 ? pair & 15 : pair >> 4) - 8);
        }
    return b->scales;
}

static void add_group(int8_t weights[][PANEL_ROWS], const float *weight_scales, int group,
                      const int8_t *x, float x_scale, float acc[PANEL_ROWS])
{
    int32_t sums[PANEL_ROWS] = {0};
    for (int k = 0; k < group; k++)
        for (int r = 0; r < PANEL_ROWS; r++)
            sums[r] += weights[k][r] * x[k];
    for (int r = 0; r < PANEL_ROWS; r++)
        acc[r] = fmaf(weight_scales[r] * x_scale, (float)sums[r], acc[r]);
}

static void multiply_panel(const struct matrix *w, decode_group *decode, int panel,
                           const struct rows *x, float *y, size_t y_stride)
{
    int first_out = panel * PANEL_ROWS;
    int n_out = w->rows - first_out < PANEL_ROWS ? w->rows - first_out : PANEL_ROWS;
    int n_groups = w->padded_cols / w->group;
    for (int m = 0; m < x->n_rows; m++) {
        float acc[PANEL_ROWS] = {0};
        for (int g = 0; g < n_groups; g++) {
            int8_t weights[Q8_GROUP][PANEL_ROWS];
            const float *scales = decode(w, panel, g, weights);
            add_group(weights, scales, w->group,
                      x->q8 + (size_t)m * x->q8_stride + (size_t)g * (size_t)w->group,
                      x->scales[(size_t)m * x->scale_stride + (size_t)g], acc);
        }
        memcpy(y + (size_t)m * y_stride + first_out, acc, (size_t)n_out * sizeof(float));
    }
}

static void multiply(const struct matrix *w, decode_group *decode, int first_panel, int n_panels,
                     const struct rows *x, float *y, size_t y_stride)
{
    must(x->group == w->group);
    for (int p = first_panel; p < first_panel + n_panels; p++)
        multiply_panel(w, decode, p, x, y, y_stride);
}

static void matmul_q8(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                      float *y, size_t y_stride)
{
    multiply(w, decode_q8, first_panel, n_panels, x, y, y_stride);
}

static void matmul_q4(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                      float *y, size_t y_stride)
{
    multiply(w, decode_q4, first_panel, n_panels, x, y, y_stride);
}

void kernels_portable_quant(struct kernels *k)
{
    k->quantise = quantise;
    k->matmul[FORMAT_Q8] = matmul_q8;
    k->matmul[FORMAT_Q4] = matmul_q4;
}
