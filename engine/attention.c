/* engine/attention.c - see engine/attention.h.
 *
 * How the work is shared out.  A group is up to GROUP_ROWS consecutive rows of one sequence;
 * its queries for one KV head go through a block of keys together, so prefill reads and
 * decodes the cache once per group and not once per row.
 *
 * With many groups a task is a group and a KV head with all their chunks, merged on the way
 * ("whole").  With few - decode at depth - the chunks too are shared out: a task is a span of
 * chunks, whose partial results are kept and merged per row and KV head afterwards, in waves
 * of as many chunks as there is room for.  The additions are the same either way. */
#include "engine/attention.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/forward.h"
#include "engine/mathf.h"
#include "engine/rope.h"

enum {
    /* 16 rows of 6 heads: their queries, states and outputs (100 KiB at 128 dimensions) stay in
     * L2 beside the block's 32 to 64 KiB of keys and values. */
    GROUP_ROWS = 16,
    /* Partial results kept, in rows x chunks; also bounds what a wave of decode can share. */
    MIN_PARTIALS = 128,
    /* Tasks per thread, so that a slower thread can leave some to others. */
    TASKS_PER_THREAD = 4,
    /* Up to so many rows q, k and v are one call of the pool: its three ends would count.  Panels
     * are handed out in fours, which the kernels read at once. */
    FUSED_ROWS = 16,
    PANELS_AT_ONCE = 4,
    FUSED_MACS = 1 << 16,
    FLOATS_UNIT = 16,
    LANES = 16,
};
_Static_assert(ATTENTION_CHUNK % ATTEND_BLOCK == 0, "a chunk is whole blocks");
/* Slots of a cache line of keys are then written by one thread. */
_Static_assert(GROUP_ROWS % LANES == 0 && ATTEND_BLOCK % GROUP_ROWS == 0, "groups fill lanes");

/* Consecutive rows of one sequence, positions within one multiple of GROUP_ROWS. */
struct row_group {
    const struct kv_seq *seq;
    int first_row, n_rows;
    int position; /* of first_row */
};

/* What the chunks so far gave, of one row and head; o follows in its own array. */
struct merged {
    float max, sum;
};

struct attention {
    struct compute compute;
    int hidden, n_heads, n_kv_heads, head_dim;
    int group_heads; /* query heads per KV head */
    float eps, scale;
    struct rope rope;
    int max_rows, n_partials;
    int group; /* columns per activation scale of the projections, or 0 */
    enum kv_format kv_format;

    /* The plan of the present step. */
    int n_rows, n_groups, n_chunks;
    bool is_whole;
    struct row_group *groups; /* [max_rows] */
    int32_t *row_group;       /* [max_rows]: index into groups */
    float *sine, *cosine;     /* [max_rows, rope.half] */

    /* Strides in floats, rounded up so that every row is aligned and zero-padded. */
    size_t hidden_stride, q_stride, kv_stride, head_stride;
    float *h;                   /* [max_rows, hidden_stride] */
    float *q, *k, *v;           /* [max_rows, q_stride or kv_stride] */
    struct rows_room h_room;    /* h, quantised for q, k and v */
    struct rows_room q_room;    /* the heads side by side, quantised for o */
    float *queries;             /* [n_kv_heads, n_rows, group_heads, head_stride] */
    int8_t *queries8;           /* the same for an int8 cache, zero past head_dim */
    float *query_scales;        /* [n_kv_heads, n_rows, group_heads] */
    struct attend_state *state; /* [wave's chunk, n_kv_heads, n_rows, group_heads] */
    float *o;                   /* the same, [.., head_stride] */
    struct merged *merged;      /* [n_rows, n_heads] */
    float *merged_o;            /* [n_rows, n_heads, head_stride] */
    size_t scratch_bytes;

    /* The call in progress. */
    const struct attention_weights *weights;
    struct kv *kv;
    int layer, first_chunk, wave_chunks, span_chunks;
    float *x;
};

/* ---- weights ---- */

float *attention_vector(const struct tensor *t)
{
    float *v = mem_array((size_t)t->dims[0], sizeof(*v));
    tensor_read_f32(t, 0, t->dims[0], v);
    return v;
}

int attention_load(struct attention_weights *w, const struct layer_view *view,
                   enum weight_format format, const struct compute *c, struct err *e)
{
    *w = (struct attention_weights){0};
    int rc = matrix_pack(&w->wq, &view->wq, format, NULL, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->wk, &view->wk, format, NULL, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->wv, &view->wv, format, NULL, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->wo, &view->wo, format, NULL, c, e);
    if (rc < 0) {
        attention_fini(w);
        return rc;
    }
    w->input_norm = attention_vector(&view->input_norm);
    w->q_norm = attention_vector(&view->q_norm);
    w->k_norm = attention_vector(&view->k_norm);
    return 0;
}

void attention_fini(struct attention_weights *w)
{
    matrix_fini(&w->wq);
    matrix_fini(&w->wk);
    matrix_fini(&w->wv);
    matrix_fini(&w->wo);
    mem_free(w->input_norm);
    mem_free(w->q_norm);
    mem_free(w->k_norm);
    *w = (struct attention_weights){0};
}

size_t attention_bytes(const struct attention_weights *w)
{
    return matrix_bytes(&w->wq) + matrix_bytes(&w->wk) + matrix_bytes(&w->wv) +
           matrix_bytes(&w->wo);
}

/* ---- scratch ---- */

/* NULL when memory is out or the product does not fit. */
static void *scratch(struct attention *a, size_t count, size_t unit, size_t unit_bytes)
{
    size_t bytes;
    if (!mem_mul(count, unit, &bytes) || !mem_mul(bytes, unit_bytes, &bytes))
        return NULL;
    a->scratch_bytes += bytes;
    return mem_try_aligned(bytes);
}

static bool take_scratch(struct attention *a)
{
    size_t rows = (size_t)a->max_rows, heads = (size_t)a->n_heads;
    size_t partials = (size_t)a->n_partials;
    size_t all_heads, wide;
    if (!mem_mul(partials, heads, &all_heads) || !mem_mul(rows, heads, &wide))
        return false;
    a->groups = mem_array(rows, sizeof(*a->groups));
    a->row_group = mem_array(rows, sizeof(*a->row_group));
    a->sine = scratch(a, rows, (size_t)a->rope.half, sizeof(float));
    a->cosine = scratch(a, rows, (size_t)a->rope.half, sizeof(float));
    a->h = scratch(a, rows, a->hidden_stride, sizeof(float));
    a->q = scratch(a, rows, a->q_stride, sizeof(float));
    a->k = scratch(a, rows, a->kv_stride, sizeof(float));
    a->v = scratch(a, rows, a->kv_stride, sizeof(float));
    if (!rows_room_open(&a->h_room, a->max_rows, a->hidden, a->group) ||
        !rows_room_open(&a->q_room, a->max_rows, a->n_heads * a->head_dim, a->group))
        return false;
    a->scratch_bytes += a->h_room.bytes + a->q_room.bytes;
    a->queries = scratch(a, wide, a->head_stride, sizeof(float));
    a->queries8 = scratch(a, wide, a->head_stride, 1);
    a->query_scales = scratch(a, wide, 1, sizeof(float));
    a->state = scratch(a, all_heads, 1, sizeof(*a->state));
    a->o = scratch(a, all_heads, a->head_stride, sizeof(float));
    a->merged = scratch(a, wide, 1, sizeof(*a->merged));
    a->merged_o = scratch(a, wide, a->head_stride, sizeof(float));
    return a->sine && a->cosine && a->h && a->q && a->k && a->v && a->queries && a->queries8 &&
           a->query_scales && a->state && a->o && a->merged && a->merged_o;
}

int attention_open(const struct model_config *config, const struct attention_options *o,
                   struct compute c, struct attention **out, struct err *e)
{
    int max_rows = o->max_rows;
    must(max_rows >= 1);
    struct attention *a = mem_alloc(sizeof(*a));
    size_t head_dim = (size_t)config->head_dim;
    a->compute = c;
    a->hidden = config->hidden_size;
    a->n_heads = config->n_heads;
    a->n_kv_heads = config->n_kv_heads;
    a->head_dim = config->head_dim;
    a->group_heads = config->n_heads / config->n_kv_heads;
    a->eps = config->rms_norm_eps;
    a->scale = (float)(1.0 / sqrt((double)config->head_dim));
    a->max_rows = max_rows;
    a->group = o->group;
    a->kv_format = o->kv;
    a->n_partials = max_rows > MIN_PARTIALS ? max_rows : MIN_PARTIALS;
    a->hidden_stride = mem_round_up((size_t)config->hidden_size, FLOATS_UNIT);
    a->q_stride = mem_round_up((size_t)config->n_heads * head_dim, FLOATS_UNIT);
    a->kv_stride = mem_round_up((size_t)config->n_kv_heads * head_dim, FLOATS_UNIT);
    a->head_stride = mem_round_up(head_dim, FLOATS_UNIT);
    rope_init(&a->rope, config->rope_theta, config->rotary_dim);
    *out = a;
    if (take_scratch(a))
        return 0;
    attention_close(out);
    return err_set(e, E_NOMEM, "attention: no memory for steps of %d rows", max_rows);
}

void attention_close(struct attention **attention)
{
    struct attention *a = *attention;
    if (!a)
        return;
    rope_fini(&a->rope);
    rows_room_close(&a->h_room);
    rows_room_close(&a->q_room);
    void *const blocks[] = {
        a->groups,  a->row_group, a->sine,         a->cosine, a->h, a->q,      a->k,       a->v,
        a->queries, a->queries8,  a->query_scales, a->state,  a->o, a->merged, a->merged_o};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        mem_free(blocks[i]);
    mem_free(a);
    *attention = NULL;
}

size_t attention_scratch_bytes(const struct attention *a)
{
    return a->scratch_bytes;
}

/* ---- the plan of a step ---- */

static void run(struct attention *a, pool_body *body, int n_tasks)
{
    pool_run(a->compute.pool, body, a, n_tasks);
}

static int row_position(const struct attention *a, int row)
{
    const struct row_group *g = &a->groups[a->row_group[row]];
    return g->position + (row - g->first_row);
}

static void angles_task(void *ctx, int row)
{
    struct attention *a = ctx;
    size_t at = (size_t)row * (size_t)a->rope.half;
    rope_angles(&a->rope, row_position(a, row), a->sine + at, a->cosine + at);
}

static void plan_seq(struct attention *a, const struct step_seq *q)
{
    for (int done = 0; done < q->n_tokens;) {
        int position = q->position + done;
        int n = GROUP_ROWS - position % GROUP_ROWS;
        if (n > q->n_tokens - done)
            n = q->n_tokens - done;
        must(a->n_rows + n <= a->max_rows);
        a->groups[a->n_groups] = (struct row_group){
            .seq = q->kv, .first_row = a->n_rows, .n_rows = n, .position = position};
        for (int i = 0; i < n; i++)
            a->row_group[a->n_rows++] = a->n_groups;
        a->n_groups++;
        done += n;
    }
}

/* Chunks that the last row of a group sees. */
static int group_chunks(const struct row_group *g)
{
    return (g->position + g->n_rows - 1) / ATTENTION_CHUNK + 1;
}

/* Whole tasks, if no one of them is a large part of a thread's share. */
static void plan_tasks(struct attention *a)
{
    int64_t all = 0, heaviest = 0;
    a->n_chunks = 0;
    for (int i = 0; i < a->n_groups; i++) {
        const struct row_group *g = &a->groups[i];
        int chunks = group_chunks(g);
        int64_t cost = (int64_t)chunks * g->n_rows;
        all += cost;
        heaviest = cost > heaviest ? cost : heaviest;
        a->n_chunks = chunks > a->n_chunks ? chunks : a->n_chunks;
    }
    int threads = pool_threads(a->compute.pool);
    a->is_whole = threads == 1 || a->n_chunks == 1 ||
                  heaviest * threads * TASKS_PER_THREAD <= all * a->n_kv_heads;
}

void attention_begin(struct attention *a, const struct step *s)
{
    a->n_rows = a->n_groups = 0;
    for (int i = 0; i < s->n_seqs; i++)
        plan_seq(a, &s->seqs[i]);
    must(a->n_rows >= 1);
    plan_tasks(a);
    run(a, angles_task, a->n_rows);
}

/* ---- before the scores ---- */

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
        x = rows_room_view(r, a->n_rows);
    x.n_rows = a->n_rows;
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

/* One of the three products of h. */
struct projection {
    const struct matrix *m;
    float *y;
    size_t y_stride;
};

struct projections {
    struct attention *a;
    struct rows h;
    int panels_per_task;
    struct projection all[3];
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

static void project(struct attention *a)
{
    const struct attention_weights *w = a->weights;
    struct projections p = {.a = a,
                            .h = step_rows(a, &a->h_room, a->h, a->hidden_stride, a->hidden),
                            .all = {{&w->wq, a->q, a->q_stride},
                                    {&w->wk, a->k, a->kv_stride},
                                    {&w->wv, a->v, a->kv_stride}}};
    int64_t panels = (int64_t)w->wq.n_panels + w->wk.n_panels + w->wv.n_panels;
    if (a->n_rows > FUSED_ROWS || panels * PANEL_ROWS * a->hidden * a->n_rows < FUSED_MACS) {
        for (int i = 0; i < 3; i++)
            matmul(&a->compute, p.all[i].m, &p.h, p.all[i].y, p.all[i].y_stride);
        return;
    }
    int64_t share = panels / (2 * TASKS_PER_THREAD * pool_threads(a->compute.pool));
    share -= share % PANELS_AT_ONCE;
    p.panels_per_task = share < PANELS_AT_ONCE ? PANELS_AT_ONCE : (int)share;
    pool_run(a->compute.pool, project_task, &p,
             projection_tasks(&p, 0) + projection_tasks(&p, 1) + projection_tasks(&p, 2));
}

/* Index of a row's first query for a KV head, within one chunk. */
static size_t query_index(const struct attention *a, int kv_head, int row)
{
    return ((size_t)kv_head * (size_t)a->n_rows + (size_t)row) * (size_t)a->group_heads;
}

/* Index of a row's query of any head. */
static size_t head_index(const struct attention *a, int head, int row)
{
    return query_index(a, head / a->group_heads, row) + (size_t)(head % a->group_heads);
}

/* to = from * by, or from / by, in pieces that the compiler makes vectors of. */
static inline void scale_floats(const float *restrict from, float by, bool is_division, int n,
                                float *restrict to)
{
    int d = 0;
    for (; d + LANES <= n; d += LANES)
        for (int lane = 0; lane < LANES; lane++)
            to[d + lane] = is_division ? from[d + lane] / by : from[d + lane] * by;
    for (; d < n; d++)
        to[d] = is_division ? from[d] / by : from[d] * by;
}

static void prepare_query(struct attention *a, const float *from, size_t index)
{
    float *to = a->queries + index * a->head_stride;
    scale_floats(from, a->scale, false, a->head_dim, to);
    if (a->kv_format == KV_INT8)
        a->query_scales[index] = kv_quantise(to, a->head_dim, a->queries8 + index * a->head_stride);
}

/* Norms, rotation, scaling and the cache, for one row. */
static void prepare_row(struct attention *a, const struct row_group *g, int row)
{
    const struct kernels *kernels = a->compute.kernels;
    size_t dim = (size_t)a->head_dim, angle = (size_t)row * (size_t)a->rope.half;
    const float *sine = a->sine + angle, *cosine = a->cosine + angle;
    float *q = a->q + (size_t)row * a->q_stride, *k = a->k + (size_t)row * a->kv_stride;

    /* Over all heads together, not per head (m2.md 4.3 step 3). */
    kernels->rms_norm(q, a->weights->q_norm, a->n_heads * a->head_dim, a->eps, q);
    kernels->rms_norm(k, a->weights->k_norm, a->n_kv_heads * a->head_dim, a->eps, k);
    for (int head = 0; head < a->n_kv_heads; head++)
        rope_turn(&a->rope, sine, cosine, k + (size_t)head * dim);
    kv_write(a->kv, g->seq, a->layer, row_position(a, row), k, a->v + (size_t)row * a->kv_stride);
    for (int head = 0; head < a->n_heads; head++) {
        float *from = q + (size_t)head * dim;
        rope_turn(&a->rope, sine, cosine, from);
        prepare_query(a, from, head_index(a, head, row));
    }
}

/* By groups, because neighbouring positions lie in the same cache lines. */
static void prepare_task(void *ctx, int group)
{
    struct attention *a = ctx;
    const struct row_group *g = &a->groups[group];
    for (int row = g->first_row; row < g->first_row + g->n_rows; row++)
        prepare_row(a, g, row);
}

/* ---- attend ---- */

/* A group and KV head on their way through some chunks. */
struct fold {
    const struct row_group *group;
    int kv_head;
    int end_page; /* of the last chunk to come: what lies past it is not fetched ahead */
};

/* Rows first..first+n_rows-1 of a group, which all see the same n_keys of a block. */
static void fold_rows(struct attention *a, const struct attend_block *at, size_t first, int n_rows,
                      int n_keys)
{
    struct attend_block b = *at;
    size_t skip = first * (size_t)a->group_heads;
    b.q += skip * a->head_stride;
    b.q8 += skip * a->head_stride;
    b.q_scales += skip;
    b.state += skip;
    b.o += skip * a->head_stride;
    b.n_heads = n_rows * a->group_heads;
    b.n_keys = n_keys;
    a->compute.kernels->attend[a->kv_format](&b);
}

static void fold_block(struct attention *a, const struct fold *f, struct attend_block *b, int page)
{
    const struct row_group *g = f->group;
    int start = page * ATTEND_BLOCK;
    b->next = NULL;
    if (page + 1 < f->end_page) {
        kv_block(a->kv, g->seq, a->layer, page + 1, f->kv_head, b);
        b->next = b->k;
    }
    kv_block(a->kv, g->seq, a->layer, page, f->kv_head, b);
    /* Rows inside the block see part of it, each its own; rows past it see all, together. */
    int row = start > g->position ? start - g->position : 0;
    for (; row < g->n_rows && g->position + row < start + ATTEND_BLOCK - 1; row++)
        fold_rows(a, b, (size_t)row, 1, g->position + row - start + 1);
    if (row < g->n_rows)
        fold_rows(a, b, (size_t)row, g->n_rows - row, ATTEND_BLOCK);
}

/* A chunk from nothing into the partial results at `partial`. */
static void fold_chunk(struct attention *a, const struct fold *f, int chunk, size_t partial)
{
    const struct row_group *g = f->group;
    size_t query = query_index(a, f->kv_head, g->first_row);
    size_t n_queries = (size_t)g->n_rows * (size_t)a->group_heads;
    for (size_t i = 0; i < n_queries; i++)
        a->state[partial + i] = (struct attend_state){.max = -INFINITY};
    memset(a->o + partial * a->head_stride, 0, n_queries * a->head_stride * sizeof(float));
    struct attend_block b = {.q = a->queries + query * a->head_stride,
                             .q_stride = (int)a->head_stride,
                             .q8 = a->queries8 + query * a->head_stride,
                             .q_scales = a->query_scales + query,
                             .q8_stride = (int)a->head_stride,
                             .head_dim = a->head_dim,
                             .v_stride = kv_value_stride(a->kv),
                             .state = a->state + partial,
                             .o = a->o + partial * a->head_stride,
                             .next_bytes = kv_block_bytes(a->kv)};
    int first = chunk * (ATTENTION_CHUNK / ATTEND_BLOCK);
    for (int page = first; page < first + ATTENTION_CHUNK / ATTEND_BLOCK; page++)
        if (page * ATTEND_BLOCK < g->position + g->n_rows)
            fold_block(a, f, &b, page);
}

static int pages_until(const struct row_group *g, int end_chunk)
{
    int seen = (g->position + g->n_rows - 1) / ATTEND_BLOCK + 1;
    int end = end_chunk * (ATTENTION_CHUNK / ATTEND_BLOCK);
    return end < seen ? end : seen;
}

/* (m, l, o) after chunk i from that after chunk i-1 - nothing before the first - and the
 * chunk's own; n is a multiple of LANES. */
static void merge_chunk(struct merged *m, float *restrict o, const struct attend_state *s,
                        const float *restrict chunk_o, size_t n, bool is_first)
{
    float sum = 0.0f;
    if (is_first)
        *m = (struct merged){.max = -INFINITY};
    for (int lane = 0; lane < LANES; lane++)
        sum += s->sum[lane];
    float max = s->max > m->max ? s->max : m->max;
    float keep = m->max == -INFINITY ? 0.0f : math_exp(m->max - max);
    float take = math_exp(s->max - max);
    m->max = max;
    m->sum = m->sum * keep + sum * take;
    if (is_first) /* o is what an earlier step left there */
        memset(o, 0, n * sizeof(*o));
    for (size_t d = 0; d < n; d += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            o[d + lane] = o[d + lane] * keep + chunk_o[d + lane] * take;
}

/* A chunk of which the partial results begin at `first_partial`, for one row and KV head.
 * After the row's last chunk its heads go into q, whose values are no longer needed. */
static void merge_row(struct attention *a, int row, int kv_head, int chunk, size_t first_partial)
{
    size_t to = (size_t)row * (size_t)a->n_heads + (size_t)(kv_head * a->group_heads);
    size_t from = first_partial + query_index(a, kv_head, row);
    bool is_last = chunk == row_position(a, row) / ATTENTION_CHUNK;
    float *q = a->q + (size_t)row * a->q_stride + (size_t)(kv_head * a->group_heads * a->head_dim);
    for (int i = 0; i < a->group_heads; i++, to++, from++, q += a->head_dim) {
        float *o = a->merged_o + to * a->head_stride;
        merge_chunk(&a->merged[to], o, &a->state[from], a->o + from * a->head_stride,
                    a->head_stride, chunk == 0);
        if (is_last)
            scale_floats(o, a->merged[to].sum, true, a->head_dim, q);
    }
}

/* Task = (KV head, group), groups fastest: neighbours share keys.  The last group of a prompt
 * is the longest and comes first. */
static void whole_task(void *ctx, int task)
{
    struct attention *a = ctx;
    const struct row_group *g = &a->groups[a->n_groups - 1 - task % a->n_groups];
    struct fold f = {.group = g, .kv_head = task / a->n_groups};
    int n_chunks = group_chunks(g);
    f.end_page = pages_until(g, n_chunks);
    for (int chunk = 0; chunk < n_chunks; chunk++) {
        fold_chunk(a, &f, chunk, query_index(a, f.kv_head, g->first_row));
        for (int row = 0; row < g->n_rows; row++)
            merge_row(a, g->first_row + row, f.kv_head, chunk, 0);
    }
}

/* Partial results of one chunk for all rows and heads. */
static size_t chunk_partials(const struct attention *a)
{
    return (size_t)a->n_rows * (size_t)a->n_heads;
}

/* Task = (span of the wave, KV head, group), groups fastest. */
static void span_task(void *ctx, int task)
{
    struct attention *a = ctx;
    const struct row_group *g = &a->groups[task % a->n_groups];
    struct fold f = {.group = g, .kv_head = task / a->n_groups % a->n_kv_heads};
    int first = task / a->n_groups / a->n_kv_heads * a->span_chunks;
    int end = first + a->span_chunks;
    end = end < a->wave_chunks ? end : a->wave_chunks;
    int left = group_chunks(g) - a->first_chunk;
    end = end < left ? end : left;
    f.end_page = pages_until(g, a->first_chunk + end);
    for (int i = first; i < end; i++)
        fold_chunk(a, &f, a->first_chunk + i,
                   (size_t)i * chunk_partials(a) + query_index(a, f.kv_head, g->first_row));
}

/* Task = (row, KV head): the wave's chunks in ascending order. */
static void merge_task(void *ctx, int task)
{
    struct attention *a = ctx;
    int row = task / a->n_kv_heads;
    int last = row_position(a, row) / ATTENTION_CHUNK;
    for (int i = 0; i < a->wave_chunks && a->first_chunk + i <= last; i++)
        merge_row(a, row, task % a->n_kv_heads, a->first_chunk + i, (size_t)i * chunk_partials(a));
}

static void attend_spans(struct attention *a)
{
    int wave = a->n_partials / a->n_rows;
    int tasks_wanted = 2 * TASKS_PER_THREAD * pool_threads(a->compute.pool);
    for (a->first_chunk = 0; a->first_chunk < a->n_chunks; a->first_chunk += wave) {
        int left = a->n_chunks - a->first_chunk;
        a->wave_chunks = left < wave ? left : wave;
        int64_t units = (int64_t)a->wave_chunks * a->n_kv_heads * a->n_groups;
        int64_t span = units / tasks_wanted;
        a->span_chunks = span < 1 ? 1 : span > a->wave_chunks ? a->wave_chunks : (int)span;
        int n_spans = (a->wave_chunks + a->span_chunks - 1) / a->span_chunks;
        run(a, span_task, n_spans * a->n_kv_heads * a->n_groups);
        run(a, merge_task, a->n_rows * a->n_kv_heads);
    }
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

void attention_layer(struct attention *a, const struct attention_weights *w, struct kv *kv,
                     int layer, float *x)
{
    const struct compute *c = &a->compute;
    a->weights = w;
    a->kv = kv;
    a->layer = layer;
    a->x = x;
    must((size_t)kv_value_stride(kv) == a->head_stride && kv_format_of(kv) == a->kv_format);
    must(w->wq.group == a->group && w->wk.group == a->group);
    must(w->wv.group == a->group && w->wo.group == a->group);
    run(a, input_task, a->n_rows);
    project(a);
    run(a, prepare_task, a->n_groups);
    if (a->is_whole)
        run(a, whole_task, a->n_kv_heads * a->n_groups);
    else
        attend_spans(a);
    if (a->group != 0)
        run(a, quantise_task, a->n_rows);
    struct rows o = step_rows(a, &a->q_room, a->q, a->q_stride, a->n_heads * a->head_dim);
    matmul(c, &w->wo, &o, a->h, a->hidden_stride);
    run(a, add_task, a->n_rows);
}
