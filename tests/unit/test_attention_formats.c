/* tests/unit/test_attention_formats.c - the attention half of a layer with projections in every
 * weight format: the same bits row by row as all at once, and near to those of f32. */
#include <math.h>

#include "base/mem.h"
#include "engine/attention.h"
#include "engine/forward.h"
#include "tests/lib/test.h"

/* Large enough that one row's projections are shared out over threads in one go; the groups of
 * q8 and q4 do not divide the rows. */
enum { HIDDEN = 328, HEADS = 9, KV_HEADS = 3, DIM = 40, ROTARY = 24, ROWS = 70 };
enum { QS = HEADS * DIM, KS = KV_HEADS * DIM };

static const struct model_config config = {.hidden_size = HIDDEN,
                                           .n_layers = 1,
                                           .n_heads = HEADS,
                                           .n_kv_heads = KV_HEADS,
                                           .head_dim = DIM,
                                           .rotary_dim = ROTARY,
                                           .rope_theta = 10000.0,
                                           .rms_norm_eps = 1e-6f};

struct layer_data {
    float wq[QS * HIDDEN], wk[KS * HIDDEN], wv[KS * HIDDEN], wo[HIDDEN * QS];
    float input_norm[HIDDEN], q_norm[QS], k_norm[KS];
    float x[ROWS * HIDDEN];
    struct layer_view view;
};

static struct tensor filled(struct rng *r, float *v, int rows, int cols, double mean, double spread)
{
    size_t n = (size_t)rows * (size_t)cols;
    for (size_t i = 0; i < n; i++)
        v[i] = (float)(mean + spread * rng_normal(r));
    return (struct tensor){.dtype = DTYPE_F32,
                           .n_dims = rows > 1 ? 2 : 1,
                           .dims = {rows > 1 ? rows : cols, cols},
                           .data = v,
                           .size_bytes = n * sizeof(*v)};
}

static struct linear_view linear(struct rng *r, const char *label, float *w, int rows, int cols)
{
    return (struct linear_view){.label = label,
                                .rows = rows,
                                .cols = cols,
                                .weight = filled(r, w, rows, cols, 0, 1 / sqrt(cols))};
}

static struct layer_data *make_layer(void)
{
    struct rng r = test_rng();
    struct layer_data *l = mem_alloc(sizeof(*l));
    l->view = (struct layer_view){.wq = linear(&r, "q_proj", l->wq, QS, HIDDEN),
                                  .wk = linear(&r, "k_proj", l->wk, KS, HIDDEN),
                                  .wv = linear(&r, "v_proj", l->wv, KS, HIDDEN),
                                  .wo = linear(&r, "o_proj", l->wo, HIDDEN, QS),
                                  .input_norm = filled(&r, l->input_norm, 1, HIDDEN, 1, 0.2),
                                  .q_norm = filled(&r, l->q_norm, 1, QS, 1, 0.2),
                                  .k_norm = filled(&r, l->k_norm, 1, KS, 1, 0.2)};
    filled(&r, l->x, ROWS, HIDDEN, 0, 1);
    return l;
}

/* What the layer adds to x, rows_per_step rows at a time. */
static void run(const struct layer_data *l, enum weight_format format, int n_threads,
                int rows_per_step, float *out)
{
    struct err e = {0};
    struct attention *attention;
    struct attention_weights weights;
    struct kv *kv;
    struct kv_seq seq = {0};
    struct compute c = {kernels_best(), pool_new(n_threads, POOL_FREE)};
    struct attention_options o = {
        .max_rows = rows_per_step, .group = format_group(format), .kv = KV_BF16};
    CHECK_INT(kv_open(&config, KV_BF16, 2 * kv_page_bytes(&config, KV_BF16), &kv, &e), 0);
    CHECK_INT(attention_load(&weights, &l->view, format, &c, &e), 0);
    CHECK_INT(attention_open(&config, &o, c, &attention, &e), 0);
    CHECK(attention_scratch_bytes(attention) > 0 && attention_bytes(&weights) > 0);
    CHECK_INT(kv_reserve(kv, &seq, ROWS), 0);
    memcpy(out, l->x, sizeof(l->x));
    for (int position = 0; position < ROWS; position += rows_per_step) {
        int n = ROWS - position < rows_per_step ? ROWS - position : rows_per_step;
        struct step_seq s = {.kv = &seq, .position = position, .n_tokens = n};
        mem_guard_begin("attention");
        attention_begin(attention, 0, &s, 1);
        attention_layer(attention, 0, &weights, kv, 0, out + position * HIDDEN);
        mem_guard_end();
    }
    for (int i = 0; i < ROWS * HIDDEN; i++)
        out[i] -= l->x[i];
    attention_close(&attention);
    attention_fini(&weights);
    kv_truncate(kv, &seq, 0);
    kv_close(&kv);
    pool_free(&c.pool);
}

static double relative_error(const float *got, const float *want)
{
    double error = 0, size = 0;
    for (int i = 0; i < ROWS * HIDDEN; i++) {
        error += pow((double)got[i] - (double)want[i], 2);
        size += pow((double)want[i], 2);
    }
    return sqrt(error / size);
}

TEST(attention_in_every_weight_format)
{
    /* Four products in a row, each with the error of its weights and of its rows' int8:
     * q8 about 0.7 and 0.5 %, q4 about 10 %. */
    static const double allowed[FORMAT_COUNT] = {
        [FORMAT_NATIVE] = 0, [FORMAT_F32] = 0,   [FORMAT_BF16] = 0.01,
        [FORMAT_FP8] = 0.15, [FORMAT_Q8] = 0.04, [FORMAT_Q4] = 0.5};
    struct layer_data *l = make_layer();
    float *want = mem_alloc(sizeof(l->x)), *all = mem_alloc(sizeof(l->x));
    float *got = mem_alloc(sizeof(l->x));
    run(l, FORMAT_F32, 1, ROWS, want);
    for (int format = 0; format < FORMAT_COUNT; format++) {
        run(l, (enum weight_format)format, 1, ROWS, all);
        double error = relative_error(all, want);
        test_note("format %d: error %.3g", format, error);
        CHECK(error <= allowed[format]);
        const int ways[][2] = {{1, 1}, {2, 1}, {3, 1}, {2, 16}, {2, 33}, {3, ROWS}};
        for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
            run(l, (enum weight_format)format, ways[i][0], ways[i][1], got);
            CHECK_BYTES(got, all, sizeof(l->x));
        }
    }
    mem_free(want);
    mem_free(all);
    mem_free(got);
    mem_free(l);
}
