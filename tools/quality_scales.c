/* tools/quality_scales.c - see quality.h: plain and searched scales on a model's own weights. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "engine/matrix.h"
#include "engine/quantise.h"
#include "tools/bench_stats.h"
#include "tools/progress.h"
#include "tools/quality.h"

/* Experts of a layer that are looked at: enough for a figure, few enough to be quick. */
enum { SAMPLED_EXPERTS = 4, SAMPLED_LAYERS = 4 };
enum kind { KIND_Q, KIND_K, KIND_V, KIND_O, KIND_GATE, KIND_UP, KIND_DOWN, KIND_HEAD, KINDS };
static const char *const kind_names[] = {"wq", "wk", "wv", "wo", "gate", "up", "down", "head"};
enum { Q8_MAX, Q8_BEST, Q4_MAX, Q4_BEST, WAYS };
static const char *const way_names[] = {"q8_max", "q8_best", "q4_max", "q4_best"};

struct sums {
    double errors[WAYS], squares;
};

struct scales {
    struct checkpoint *checkpoint;
    struct compute compute;
    struct sums kinds[KINDS];
    /* The matrix in progress. */
    const struct matrix *matrix;
    struct sums *rows; /* [matrix->rows] */
};

static double group_error(const struct scales *s, const float *x, int n, int way, int8_t *q)
{
    enum quantise_search search = way == Q8_MAX || way == Q4_MAX ? QUANTISE_MAX : QUANTISE_BEST;
    enum weight_format format = way <= Q8_BEST ? FORMAT_Q8 : FORMAT_Q4;
    float scale = quantise_weights(s->compute.kernels, format, x, n, search, q);
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double error = (double)x[i] - (double)scale * q[i];
        sum += error * error;
    }
    return sum;
}

static void row_task(void *ctx, int r)
{
    struct scales *s = ctx;
    struct sums *out = &s->rows[r];
    int cols = s->matrix->cols;
    float *x = mem_array((size_t)s->matrix->padded_cols, sizeof(*x));
    int8_t q[Q8_GROUP];
    matrix_row(s->matrix, r, x);
    for (int way = 0; way < WAYS; way++) {
        int group = way <= Q8_BEST ? Q8_GROUP : Q4_GROUP;
        for (int at = 0; at < cols; at += group)
            out->errors[way] +=
                group_error(s, x + at, cols - at < group ? cols - at : group, way, q);
    }
    for (int i = 0; i < cols; i++)
        out->squares += (double)x[i] * x[i];
    mem_free(x);
}

static int add_matrix(struct scales *s, enum kind kind, const struct linear_view *view,
                      struct err *e)
{
    struct matrix m;
    int rc = matrix_pack(&m, view, FORMAT_F32, NULL, &s->compute, e);
    if (rc < 0)
        return rc;
    s->matrix = &m;
    s->rows = mem_array((size_t)m.rows, sizeof(*s->rows));
    pool_run(s->compute.pool, row_task, s, m.rows);
    for (int r = 0; r < m.rows; r++) {
        for (int way = 0; way < WAYS; way++)
            s->kinds[kind].errors[way] += s->rows[r].errors[way];
        s->kinds[kind].squares += s->rows[r].squares;
    }
    mem_free(s->rows);
    matrix_fini(&m);
    return 0;
}

static int add_expert(struct scales *s, const struct expert_view *x, struct err *e)
{
    const struct linear_view *matrices[] = {&x->gate, &x->up, &x->down};
    int rc = 0;
    for (int k = 0; k < 3 && rc == 0; k++)
        rc = add_matrix(s, KIND_GATE + k, matrices[k], e);
    return rc;
}

/* A dense MLP or a shared expert counts as an expert. */
static int add_layer(struct scales *s, int layer, struct err *e)
{
    struct layer_view view;
    const struct model_config *c = checkpoint_config(s->checkpoint);
    int rc = weights_layer(s->checkpoint, layer, &view, e);
    const struct linear_view *attention[] = {&view.wq, &view.wk, &view.wv, &view.wo};
    for (int i = 0; i < 4 && rc == 0; i++)
        rc = add_matrix(s, KIND_Q + i, attention[i], e);
    if (rc == 0 && view.has_mlp)
        rc = add_expert(s, &view.mlp, e);
    for (int i = 0; i < SAMPLED_EXPERTS && rc == 0 && view.has_experts; i++) {
        struct expert_view expert;
        rc = weights_expert(s->checkpoint, layer - c->n_dense_layers,
                            (int)((int64_t)i * c->n_experts / SAMPLED_EXPERTS), &expert, e);
        if (rc == 0)
            rc = add_expert(s, &expert, e);
    }
    return rc;
}

static int add_all(struct scales *s, struct err *e)
{
    struct model_view view;
    struct progress progress;
    int n_layers = checkpoint_config(s->checkpoint)->n_layers;
    int n = n_layers < SAMPLED_LAYERS ? n_layers : SAMPLED_LAYERS;
    progress_begin(&progress, "quantise", n + 1, PROGRESS_ITEMS);
    int rc = weights_model(s->checkpoint, &view, e);
    if (rc == 0)
        rc = add_matrix(s, KIND_HEAD, &view.lm_head, e);
    progress_add(&progress, 1);
    for (int i = 0; i < n && rc == 0; i++) {
        rc = add_layer(s, (int)((int64_t)i * n_layers / n), e);
        progress_add(&progress, 1);
    }
    progress_end(&progress);
    return rc;
}

static void report(const struct scales *s, bool as_json)
{
    struct bench_report r;
    bench_report_begin(&r, as_json, stdout);
    bench_report_note(&r, "relative error of the weights: scale of the largest, and searched");
    for (int kind = 0; kind < KINDS; kind++) {
        struct bench_metric metrics[WAYS];
        for (int way = 0; way < WAYS; way++) {
            double squares = s->kinds[kind].squares;
            double error = squares > 0 ? 100 * sqrt(s->kinds[kind].errors[way] / squares) : 0;
            metrics[way] = (struct bench_metric){
                .key = way_names[way], .unit = "%", .value = {error, error, error}};
        }
        if (!as_json && kind == 0)
            printf("%-34s  %10s  %10s  %10s  %10s\n", "", "q8 max", "q8 best", "q4 max", "q4 best");
        bench_report_row(&r, kind_names[kind], metrics, WAYS);
    }
    bench_report_end(&r);
}

int quality_scales(const char *model_dir, int n_threads, bool as_json, struct err *e)
{
    struct scales s = {.compute = {.kernels = kernels_best()}};
    int rc = checkpoint_open(model_dir, &s.checkpoint, e);
    if (rc < 0)
        return rc;
    s.compute.pool = pool_new(n_threads ? n_threads : thread_cpu_count(), POOL_FREE);
    rc = add_all(&s, e);
    if (rc == 0)
        report(&s, as_json);
    pool_free(&s.compute.pool);
    checkpoint_close(&s.checkpoint);
    return rc;
}
