/* engine/attention_input.c - the parts of an attention layer on both sides of the scores: norm,
 * projections, rotation and the cache before them, the output projection after them. */
#include <math.h>

#include "engine/attention_parts.h"

enum {
    /* Up to so many rows q, k and v are one call of the pool: its three ends would count.  Panels
     * are handed out in fours, which the kernels read at once. */
    FUSED_ROWS = 16,
    PANELS_AT_ONCE = 4,
    FUSED_MACS = 1 << 16,
};

static void quantise_row(struct attention *a, struct rows_room *r, int row, const float *x)
{
    if (a->group == 0)
        return;
    size_t at = (size_t)row, scale = at * r->scale_stride;
    a->compute.kernels->quantise(x, r->cols, a->group, r->q8 + at * r->q8_stride, r->scales + scale,
                                 r->sums + scale);
}

/* The step's rows at f32, with their quantised form if the projections read that. */
static struct rows step_rows(const struct attention *a, const struct rows_room *r, const float *f32,
                             size_t f32_stride, int cols)
{
    struct rows x = {0};
    if (a->group != 0)
        x = rows_room_view(r, a->plan->n_rows);
    x.n_rows = a->plan->n_rows;
    x.cols = cols;
    x.f32 = f32;
    x.f32_stride = f32_stride;
    return x;
}

static void input_task(void *ctx, int row)
{
    struct attention *a = ctx;
    float *h = a->h + (size_t)row * a->hidden_stride;
    a->compute.kernels->rms_norm(a->x + (size_t)row * (size_t)a->hidden, a->weights->input_norm,
                                 a->hidden, a->eps, h);
    quantise_row(a, &a->h_room, row, h);
}

/* One of the products of h. */
struct projection {
    const struct matrix *m;
    float *y;
    size_t y_stride;
};

enum { MAX_PROJECTIONS = 5 };
struct projections {
    struct attention *a;
    struct rows h;
    int panels_per_task, n;
    struct projection all[MAX_PROJECTIONS];
};

static int projection_tasks(const struct projections *p, int i)
{
    return (p->all[i].m->n_panels + p->panels_per_task - 1) / p->panels_per_task;
}

static void project_task(void *ctx, int task)
{
    const struct projections *p = ctx;
    int i = 0;
    for (; task >= projection_tasks(p, i); i++)
        task -= projection_tasks(p, i);
    const struct projection *to = &p->all[i];
    int first = task * p->panels_per_task, left = to->m->n_panels - first;
    matmul_range(&p->a->compute, to->m, first,
                 left < p->panels_per_task ? left : p->panels_per_task, &p->h, to->y, to->y_stride);
}

/* Index queries of rows that see everything are not asked for. */
static bool any_chooses(const struct attention *a)
{
    for (int i = 0; i < a->plan->n_groups; i++)
        if (a->plan->groups[i].chooses)
            return true;
    return false;
}

static void project(struct attention *a)
{
    const struct attention_weights *w = a->weights;
    struct projections p = {.a = a,
                            .h = step_rows(a, &a->h_room, a->h, a->hidden_stride, a->hidden),
                            .n = !w->is_sparse    ? 3
                                 : any_chooses(a) ? 5
                                                  : 4,
                            .all = {{&w->wq, a->q, a->q_stride},
                                    {&w->wk, a->k, a->kv_stride},
                                    {&w->wv, a->v, a->kv_stride},
                                    {&w->index_k, a->msa.keys, a->msa.key_stride},
                                    {&w->index_q, a->msa.queries, a->msa.query_stride}}};
    int64_t panels = 0;
    for (int i = 0; i < p.n; i++)
        panels += p.all[i].m->n_panels;
    if (a->plan->n_rows > FUSED_ROWS ||
        panels * PANEL_ROWS * a->hidden * a->plan->n_rows < FUSED_MACS) {
        for (int i = 0; i < p.n; i++)
            matmul(&a->compute, p.all[i].m, &p.h, p.all[i].y, p.all[i].y_stride);
        return;
    }
    int64_t share = panels / (2 * TASKS_PER_THREAD * pool_threads(a->compute.pool));
    share -= share % PANELS_AT_ONCE;
    p.panels_per_task = share < PANELS_AT_ONCE ? PANELS_AT_ONCE : (int)share;
    int n_tasks = 0;
    for (int i = 0; i < p.n; i++)
        n_tasks += projection_tasks(&p, i);
    pool_run(a->compute.pool, project_task, &p, n_tasks);
}

/* Index of a row's query of any head. */
static size_t head_index(const struct attention *a, int head, int row)
{
    return query_index(a, head / a->group_heads, row) + (size_t)(head % a->group_heads);
}

static void prepare_query(struct attention *a, const float *from, size_t index)
{
    float *to = a->queries + index * a->head_stride;
    scale_floats(from, a->scale, false, a->head_dim, to);
    if (a->kv_format == KV_INT8)
        a->query_scales[index] = kv_quantise(to, a->head_dim, a->queries8 + index * a->head_stride);
}

void attention_prepare_queries(struct attention *a, int row)
{
    const float *q = a->q + (size_t)row * a->q_stride;
    for (int head = 0; head < a->n_heads; head++)
        prepare_query(a, q + (size_t)(head * a->head_dim), head_index(a, head, row));
}

/* Of q or k: each head by itself (m3.md 4), or all together and not per head (m2.md 4.3 step 3). */
static void norm_heads(const struct attention *a, const float *weights, int n_heads, float *x)
{
    int times = a->has_head_norms ? n_heads : 1, n = n_heads / times * a->head_dim;
    for (int i = 0; i < times; i++, x += n)
        a->compute.kernels->rms_norm(x, weights, n, a->eps, x);
}

/* Of other places' rows the keys are written there. */
static bool writes_here(const struct row_group *g)
{
    return !g->is_part || g->ends;
}

/* Index queries and key of one row (m3.md 5.1). */
static void prepare_index(struct attention *a, const struct row_group *g, int row)
{
    const struct attention_weights *w = a->weights;
    int dim = a->sparse.head_dim;
    size_t angle = (size_t)row * (size_t)a->rope.half;
    const float *sine = a->plan->sine + angle, *cosine = a->plan->cosine + angle;
    float *key = a->msa.keys + (size_t)row * a->msa.key_stride;
    a->compute.kernels->rms_norm(key, w->index_k_norm, dim, a->eps, key);
    rope_turn(&a->rope, sine, cosine, key);
    if (writes_here(g))
        kv_index_write(a->kv, g->seq, a->layer, row_position(a, row), key);
    if (!g->chooses)
        return;
    float *query = a->msa.queries + (size_t)row * a->msa.query_stride;
    for (int head = 0; head < a->sparse.n_heads; head++, query += dim) {
        a->compute.kernels->rms_norm(query, w->index_q_norm, dim, a->eps, query);
        rope_turn(&a->rope, sine, cosine, query);
    }
}

/* Norms, rotation, scaling and the cache, for one row. */
static void prepare_row(struct attention *a, const struct row_group *g, int row)
{
    size_t dim = (size_t)a->head_dim, angle = (size_t)row * (size_t)a->rope.half;
    const float *sine = a->plan->sine + angle, *cosine = a->plan->cosine + angle;
    float *q = a->q + (size_t)row * a->q_stride, *k = a->k + (size_t)row * a->kv_stride;

    norm_heads(a, a->weights->q_norm, a->n_heads, q);
    norm_heads(a, a->weights->k_norm, a->n_kv_heads, k);
    for (int head = 0; head < a->n_kv_heads; head++)
        rope_turn(&a->rope, sine, cosine, k + (size_t)head * dim);
    if (writes_here(g))
        kv_write(a->kv, g->seq, a->layer, row_position(a, row), k,
                 a->v + (size_t)row * a->kv_stride);
    for (int head = 0; head < a->n_heads; head++)
        rope_turn(&a->rope, sine, cosine, q + (size_t)head * dim);
    attention_prepare_queries(a, row);
    if (g->is_part)
        attention_begin_part(a, row);
}

/* By groups, because neighbouring positions lie in the same cache lines; of a sparse layer first what is
 * most, and then the indices of all, which a thread that has nothing left to do may take. */
static void prepare_task(void *ctx, int task)
{
    struct attention *a = ctx;
    int n = a->plan->n_groups;
    const struct row_group *g = &a->plan->groups[task % n];
    for (int row = g->first_row; row < g->first_row + g->n_rows; row++)
        if (task < n)
            prepare_row(a, g, row);
        else
            prepare_index(a, g, row);
}

void attention_input(struct attention *a)
{
    attention_run(a, input_task, a->plan->n_rows);
    project(a);
    attention_run(a, prepare_task, a->plan->n_groups * (a->weights->is_sparse ? 2 : 1));
}

static void quantise_task(void *ctx, int row)
{
    struct attention *a = ctx;
    quantise_row(a, &a->q_room, row, a->q + (size_t)row * a->q_stride);
}

static void add_task(void *ctx, int row)
{
    struct attention *a = ctx;
    a->compute.kernels->add(a->x + (size_t)row * (size_t)a->hidden,
                            a->h + (size_t)row * a->hidden_stride, a->hidden);
}

void attention_output(struct attention *a)
{
    if (a->group != 0)
        attention_run(a, quantise_task, a->plan->n_rows);
    struct rows o = step_rows(a, &a->q_room, a->q, a->q_stride, a->n_heads * a->head_dim);
    matmul(&a->compute, &a->weights->wo, &o, a->h, a->hidden_stride);
    attention_run(a, add_task, a->plan->n_rows);
}
