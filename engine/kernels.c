/* engine/kernels.c - portable C, the definition of the bits, and the choice of a table.
 *
 * Everything here is written for clearness first; an instruction set is faster in a
 * kernels_<isa>.c of its own and must give the same bits.  A NaN's sign and payload are
 * the one thing that is not defined. */
#include "engine/kernels.h"

#include <cpuid.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "base/must.h"
#include "engine/combine.h"
#include "engine/mathf.h"
#include "model/fp8.h"
#include "model/halves.h"

enum { LANES = 16, ROWS_AT_ONCE = 8 };

/* Columns first_col .. first_col + n_cols - 1 of a panel as [col][16]; n_cols at most
 * SCALE_BLOCK and first_col a multiple of it. */
typedef void decode_block(const struct matrix *w, int panel, int first_col, int n_cols,
                          float out[][PANEL_ROWS]);

static const void *panel_at(const struct matrix *w, int panel)
{
    return (const char *)w->panels + (size_t)panel * w->panel_bytes;
}

static void decode_f32(const struct matrix *w, int panel, int first_col, int n_cols,
                       float out[][PANEL_ROWS])
{
    const float *from = (const float *)panel_at(w, panel) + (size_t)first_col * PANEL_ROWS;
    memcpy(out, from, (size_t)n_cols * PANEL_ROWS * sizeof(float));
}

static void decode_bf16(const struct matrix *w, int panel, int first_col, int n_cols,
                        float out[][PANEL_ROWS])
{
    const uint16_t *from = (const uint16_t *)panel_at(w, panel) + (size_t)first_col * PANEL_ROWS;
    for (int k = 0; k < n_cols; k++)
        for (int r = 0; r < PANEL_ROWS; r++)
            out[k][r] = bf16_to_f32(from[(k / 2) * 2 * PANEL_ROWS + 2 * r + k % 2]);
}

static void decode_fp8(const struct matrix *w, int panel, int first_col, int n_cols,
                       float out[][PANEL_ROWS])
{
    const uint8_t *from = (const uint8_t *)panel_at(w, panel) + (size_t)first_col * PANEL_ROWS;
    for (int k = 0; k < n_cols; k++)
        for (int r = 0; r < PANEL_ROWS; r++)
            out[k][r] = fp8_decode(from[(k / 2) * 2 * PANEL_ROWS + 2 * r + k % 2]);
}

static void chain(float weights[][PANEL_ROWS], int n_cols, const float *x, float acc[PANEL_ROWS])
{
    for (int k = 0; k < n_cols; k++)
        for (int r = 0; r < PANEL_ROWS; r++)
            acc[r] = fmaf(weights[k][r], x[k], acc[r]);
}

static int block_cols(const struct matrix *w, int first_col)
{
    return w->cols - first_col < SCALE_BLOCK ? w->cols - first_col : SCALE_BLOCK;
}

/* One panel for at most ROWS_AT_ONCE rows. */
static void panel_float(const struct matrix *w, decode_block *decode, int panel, const float *x,
                        size_t x_stride, float (*acc)[PANEL_ROWS], int n_rows)
{
    float weights[SCALE_BLOCK][PANEL_ROWS];
    for (int first = 0; first < w->cols; first += SCALE_BLOCK) {
        int n_cols = block_cols(w, first);
        decode(w, panel, first, n_cols, weights);
        for (int m = 0; m < n_rows; m++)
            chain(weights, n_cols, x + (size_t)m * x_stride + first, acc[m]);
    }
}

static void panel_fp8(const struct matrix *w, int panel, const float *x, size_t x_stride,
                      float (*acc)[PANEL_ROWS], int n_rows)
{
    float weights[SCALE_BLOCK][PANEL_ROWS];
    int blocks = (w->cols + SCALE_BLOCK - 1) / SCALE_BLOCK;
    const float *scales = w->scales + (size_t)(panel * PANEL_ROWS / SCALE_BLOCK) * (size_t)blocks;
    for (int b = 0; b < blocks; b++) {
        int first = b * SCALE_BLOCK, n_cols = block_cols(w, first);
        decode_fp8(w, panel, first, n_cols, weights);
        for (int m = 0; m < n_rows; m++) {
            float block[PANEL_ROWS] = {0};
            chain(weights, n_cols, x + (size_t)m * x_stride + first, block);
            for (int r = 0; r < PANEL_ROWS; r++)
                acc[m][r] = fmaf(scales[b], block[r], acc[m][r]);
        }
    }
}

static void multiply(const struct matrix *w, decode_block *decode, int first_panel, int n_panels,
                     const struct rows *x, float *y, size_t y_stride)
{
    for (int p = first_panel; p < first_panel + n_panels; p++) {
        int first_out = p * PANEL_ROWS;
        int n_out = w->rows - first_out < PANEL_ROWS ? w->rows - first_out : PANEL_ROWS;
        for (int first = 0; first < x->n_rows; first += ROWS_AT_ONCE) {
            int n = x->n_rows - first < ROWS_AT_ONCE ? x->n_rows - first : ROWS_AT_ONCE;
            float acc[ROWS_AT_ONCE][PANEL_ROWS] = {{0}};
            const float *rows = x->f32 + (size_t)first * x->f32_stride;
            if (decode)
                panel_float(w, decode, p, rows, x->f32_stride, acc, n);
            else
                panel_fp8(w, p, rows, x->f32_stride, acc, n);
            for (int m = 0; m < n; m++)
                memcpy(y + (size_t)(first + m) * y_stride + first_out, acc[m],
                       (size_t)n_out * sizeof(float));
        }
    }
}

static void matmul_f32(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                       float *y, size_t y_stride)
{
    multiply(w, decode_f32, first_panel, n_panels, x, y, y_stride);
}

static void matmul_bf16(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                        float *y, size_t y_stride)
{
    multiply(w, decode_bf16, first_panel, n_panels, x, y, y_stride);
}

static void matmul_fp8(const struct matrix *w, int first_panel, int n_panels, const struct rows *x,
                       float *y, size_t y_stride)
{
    multiply(w, NULL, first_panel, n_panels, x, y, y_stride);
}

static void rms_norm(const float *x, const float *w, int n, float eps, float *out)
{
    float lanes[LANES] = {0};
    for (int i = 0; i < n; i++)
        lanes[i % LANES] = fmaf(x[i], x[i], lanes[i % LANES]);
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    float r = math_rsqrt(sum / (float)n + eps);
    for (int i = 0; i < n; i++)
        out[i] = x[i] * r * w[i];
}

static void swiglu(float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i++)
        gate[i] = math_silu(gate[i]) * up[i];
}

static void swiglu_oai(float *gate, const float *up, int n, const struct activation *a)
{
    for (int i = 0; i < n; i++) {
        float g = a->limit < gate[i] ? a->limit : gate[i];
        float u = a->limit < up[i] ? a->limit : up[i];
        u = -a->limit > u ? -a->limit : u;
        gate[i] = g * math_sigmoid(a->alpha * g) * (u + a->beta);
    }
}

static void add(float *x, const float *y, int n)
{
    for (int i = 0; i < n; i++)
        x[i] = x[i] + y[i];
}

static void exp_each(const float *x, int n, float *out)
{
    for (int i = 0; i < n; i++)
        out[i] = math_exp(x[i]);
}

static void sigmoid_each(const float *x, int n, float *out)
{
    for (int i = 0; i < n; i++)
        out[i] = math_sigmoid(x[i]);
}

/* Multiplying by 2^-exponent is exact unless the result overflows (then it is over the
 * limit anyway) or is below 2^-126 (then it rounds to 0 anyway). */
static int fixed_add(const float *y, float weight, int exponent, int n, int32_t *acc)
{
    must(combine_exponent_valid(exponent));
    const float scale = ldexpf(1.0f, -exponent), limit = ldexpf(1.0f, COMBINE_LIMIT_LOG2);
    const double rounder = 0x1.8p52;
    int n_over = 0;
    for (int i = 0; i < n; i++) {
        float v = weight * y[i] * scale;
        if (!(fabsf(v) < limit)) {
            n_over++;
            continue;
        }
        int32_t q = (int32_t)((double)v + rounder - rounder);
        acc[i] = (int32_t)((uint32_t)acc[i] + (uint32_t)q);
    }
    return n_over;
}

static void fixed_fold(const int32_t *acc, int exponent, int n, float *x)
{
    must(combine_exponent_valid(exponent));
    const float step = ldexpf(1.0f, exponent);
    for (int i = 0; i < n; i++)
        x[i] = x[i] + (float)acc[i] * step;
}

static void add_int32(int32_t *acc, const void *y, int n)
{
    for (int i = 0; i < n; i++) {
        uint32_t v;
        memcpy(&v, (const char *)y + (size_t)i * sizeof(v), sizeof(v));
        acc[i] = (int32_t)((uint32_t)acc[i] + v);
    }
}

enum { LEVEL_PORTABLE, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AMX, N_LEVELS };
static struct kernels tables[N_LEVELS];
static const char *const level_names[N_LEVELS + 1] = {"portable", "avx2", "avx512", "amx", NULL};
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void fill_portable(struct kernels *k)
{
    *k = (struct kernels){
        .matmul =
            {[FORMAT_F32] = matmul_f32, [FORMAT_BF16] = matmul_bf16, [FORMAT_FP8] = matmul_fp8},
        .rms_norm = rms_norm,
        .swiglu = swiglu,
        .swiglu_oai = swiglu_oai,
        .add = add,
        .exp = exp_each,
        .sigmoid = sigmoid_each,
        .fixed_add = fixed_add,
        .fixed_fold = fixed_fold,
        .add_int32 = add_int32};
    kernels_portable_quant(k);
    kernels_portable_attend(k);
    kernels_portable_search(k);
    kernels_portable_read(k);
    kernels_portable_index(k);
    kernels_portable_sketch(k);
}

static void fill_avx2(struct kernels *k)
{
    kernels_avx2_fill(k);
    kernels_avx2_quant(k);
    kernels_avx2_attend(k);
    kernels_avx2_search(k);
    kernels_avx2_read(k);
    kernels_avx2_index(k);
    kernels_avx2_sketch(k);
}

static void fill_avx512(struct kernels *k)
{
    kernels_avx512_fill(k);
    kernels_avx512_quant(k);
    kernels_avx512_attend(k);
    kernels_avx512_search(k);
    kernels_avx512_read(k);
    kernels_avx512_index(k);
    kernels_avx512_sketch(k);
}

/* clang's __builtin_cpu_supports() does not know F16C. */
static bool cpu_has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool cpu_has_amx_int8(void)
{
    enum { TILE = 1 << 24, INT8 = 1 << 25 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & TILE) && (d & INT8);
}

/* __builtin_cpu_supports() also asks whether the system saves the registers of that width. */
static bool level_adds_runs(int level)
{
    switch (level) {
    case LEVEL_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c();
    case LEVEL_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
    case LEVEL_AMX:
        return cpu_has_amx_int8() && kernels_amx_allowed();
    default:
        return true;
    }
}

/* A level is a copy of the ones below it, so all of them must run. */
static bool level_runs(int level)
{
    for (int below = LEVEL_PORTABLE; below <= level; below++)
        if (!level_adds_runs(below))
            return false;
    return true;
}

/* Even filling a table runs code of its level: what this CPU cannot run stays empty. */
static void fill_tables(void)
{
    void (*const fills[N_LEVELS])(struct kernels * k) = {fill_portable, fill_avx2, fill_avx512,
                                                         kernels_amx_fill};
    for (int level = 0; level < N_LEVELS && level_runs(level); level++) {
        if (level > 0)
            tables[level] = tables[level - 1];
        fills[level](&tables[level]);
        tables[level].name = level_names[level];
    }
}

const struct kernels *kernels_named(const char *name)
{
    must_zero(pthread_once(&tables_once, fill_tables));
    for (int level = 0; level < N_LEVELS; level++)
        if (strcmp(name, level_names[level]) == 0)
            return level_runs(level) ? &tables[level] : NULL;
    return NULL;
}

const struct kernels *kernels_best(void)
{
    const struct kernels *best = NULL;
    for (int level = 0; level < N_LEVELS; level++) {
        const struct kernels *k = kernels_named(level_names[level]);
        if (k)
            best = k;
    }
    return best;
}

const char *const *kernels_names(void)
{
    return level_names;
}
