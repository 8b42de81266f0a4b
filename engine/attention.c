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

#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/forward.h"
#include "engine/mathf.h"
#include "engine/msa.h"
#include "engine/rope.h"

/* Of GROUP_ROWS = 16 rows of 6 heads queries, states and outputs (100 KiB at 128 dimensions) stay
 * in L2 beside the block's 32 to 64 KiB of keys and values. */
enum {
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

/* Groups that attend in the same way. */
struct group_list {
    int32_t *groups; /* [max_rows]: indices */
    int n, n_chunks; /* chunks: of the longest */
    bool is_whole;
};
/* All of them, for a layer in which everybody sees everything; in a sparse layer those that do
 * and those that do not. */
enum { LIST_ALL, LIST_SEEING, LIST_CHOOSING, N_LISTS };

/* What the chunks so far gave, of one row and head; o follows in its own array. */
struct merged {
    float max, sum;
};

struct attention {
    struct compute compute;
    int hidden, n_heads, n_kv_heads, head_dim;
    int group_heads; /* query heads per KV head */
    float eps, scale;
    bool has_head_norms;
    struct sparse_config sparse; /* block_size 0: there are no sparse layers */
    struct msa msa;
    int max_slots; /* chunks in which the keys that a row sees can lie */
    struct rope rope;
    int max_rows, n_partials;
    int group; /* columns per activation scale of the projections, or 0 */
    enum kv_format kv_format;

    /* The plan of the present step. */
    int n_rows, n_groups;
    struct group_list lists[N_LISTS];
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
    const struct group_list *list;
    float *x;
};

/* ---- weights ---- */

float *attention_vector(const struct tensor *t, bool is_offset)
{
    float *v = mem_array((size_t)t->dims[0], sizeof(*v));
    tensor_read_f32(t, 0, t->dims[0], v);
    for (int64_t i = 0; i < t->dims[0] && is_offset; i++)
        v[i] += 1.0f;
    return v;
}

/* As stored, whatever the others' format (engine/msa.h). */
static int load_index(struct attention_weights *w, const struct layer_view *view,
                      const struct compute *c, struct err *e)
{
    w->is_sparse = view->is_sparse;
    if (!view->is_sparse)
        return 0;
    int rc = matrix_pack(&w->index_q, &view->index_q, FORMAT_NATIVE, NULL, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->index_k, &view->index_k, FORMAT_NATIVE, NULL, c, e);
    if (rc < 0)
        return rc;
    w->index_q_norm = attention_vector(&view->index_q_norm, view->has_offset_norms);
    w->index_k_norm = attention_vector(&view->index_k_norm, view->has_offset_norms);
    return 0;
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
    if (rc == 0)
        rc = load_index(w, view, c, e);
    if (rc < 0) {
        attention_fini(w);
        return rc;
    }
    w->input_norm = attention_vector(&view->input_norm, view->has_offset_norms);
    w->q_norm = attention_vector(&view->q_norm, view->has_offset_norms);
    w->k_norm = attention_vector(&view->k_norm, view->has_offset_norms);
    return 0;
}

void attention_fini(struct attention_weights *w)
{
    matrix_fini(&w->wq);
    matrix_fini(&w->wk);
    matrix_fini(&w->wv);
    matrix_fini(&w->wo);
    matrix_fini(&w->index_q);
    matrix_fini(&w->index_k);
    mem_free(w->index_q_norm);
    mem_free(w->index_k_norm);
    mem_free(w->input_norm);
    mem_free(w->q_norm);
    mem_free(w->k_norm);
    *w = (struct attention_weights){0};
}

size_t attention_bytes(const struct attention_weights *w)
{
    return matrix_bytes(&w->wq) + matrix_bytes(&w->wk) + matrix_bytes(&w->wv) +
           matrix_bytes(&w->wo) + matrix_bytes(&w->index_q) + matrix_bytes(&w->index_k);
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
    for (int i = 0; i < N_LISTS; i++)
        a->lists[i].groups = mem_array(rows, sizeof(*a->lists[i].groups));
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
    a->has_head_norms = config->has_head_norms;
    a->sparse = config->sparse;
    /* A block lies in one chunk, in two, or in some. */
    a->max_slots = a->sparse.top_k * (a->sparse.block_size / ATTENTION_CHUNK + 2);
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
    int rc = 0;
    if (!take_scratch(a))
        rc = err_set(e, E_NOMEM, "attention: no memory for steps of %d rows", max_rows);
    if (rc == 0 && a->sparse.block_size > 0)
        rc = msa_open(&a->msa, &a->sparse, max_rows, config->max_positions, e);
    if (rc == 0)
        a->scratch_bytes += a->msa.bytes;
    else
        attention_close(out);
    return rc;
}

void attention_close(struct attention **attention)
{
    struct attention *a = *attention;
    if (!a)
        return;
    rope_fini(&a->rope);
    msa_close(&a->msa);
    for (int i = 0; i < N_LISTS; i++)
        mem_free(a->lists[i].groups);
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

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Whole tasks, if no one of them is a large part of a thread's share. */
static void plan_tasks(struct attention *a, struct group_list *list, int most_chunks)
{
    int64_t all = 0, heaviest = 0;
    list->n_chunks = 0;
    for (int i = 0; i < list->n; i++) {
        const struct row_group *g = &a->groups[list->groups[i]];
        int chunks = min_int(group_chunks(g), most_chunks);
        int64_t cost = (int64_t)chunks * g->n_rows;
        all += cost;
        heaviest = cost > heaviest ? cost : heaviest;
        list->n_chunks = chunks > list->n_chunks ? chunks : list->n_chunks;
    }
    int threads = pool_threads(a->compute.pool);
    list->is_whole = threads == 1 || list->n_chunks == 1 ||
                     heaviest * threads * TASKS_PER_THREAD <= all * a->n_kv_heads;
}

static bool group_chooses(const struct attention *a, const struct row_group *g)
{
    return a->sparse.block_size > 0 && msa_chooses(&a->sparse, g->position);
}

static void plan_lists(struct attention *a)
{
    for (int i = 0; i < N_LISTS; i++)
        a->lists[i].n = 0;
    for (int i = 0; i < a->n_groups; i++) {
        struct group_list *all = &a->lists[LIST_ALL];
        struct group_list *own =
            &a->lists[group_chooses(a, &a->groups[i]) ? LIST_CHOOSING : LIST_SEEING];
        all->groups[all->n++] = i;
        own->groups[own->n++] = i;
    }
    plan_tasks(a, &a->lists[LIST_ALL], INT_MAX);
    plan_tasks(a, &a->lists[LIST_SEEING], INT_MAX);
    struct group_list *choosing = &a->lists[LIST_CHOOSING];
    plan_tasks(a, choosing, a->max_slots);
    /* Partial results of every row must have room at once. */
    if ((int64_t)a->n_rows * a->max_slots > a->n_partials)
        choosing->is_whole = true;
}

void attention_begin(struct attention *a, const struct step *s)
{
    a->n_rows = a->n_groups = 0;
    for (int i = 0; i < s->n_seqs; i++)
        plan_seq(a, &s->seqs[i]);
    must(a->n_rows >= 1);
    plan_lists(a);
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

static void project(struct attention *a)
{
    const struct attention_weights *w = a->weights;
    struct projections p = {.a = a,
                            .h = step_rows(a, &a->h_room, a->h, a->hidden_stride, a->hidden),
                            .n = w->is_sparse ? 5 : 3,
                            .all = {{&w->wq, a->q, a->q_stride},
                                    {&w->wk, a->k, a->kv_stride},
                                    {&w->wv, a->v, a->kv_stride},
                                    {&w->index_q, a->msa.queries, a->msa.query_stride},
                                    {&w->index_k, a->msa.keys, a->msa.key_stride}}};
    int64_t panels = 0;
    for (int i = 0; i < p.n; i++)
        panels += p.all[i].m->n_panels;
    if (a->n_rows > FUSED_ROWS || panels * PANEL_ROWS * a->hidden * a->n_rows < FUSED_MACS) {
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

/* Of q or k: each head by itself (m3.md 4), or all together and not per head (m2.md 4.3 step 3). */
static void norm_heads(const struct attention *a, const float *weights, int n_heads, float *x)
{
    int times = a->has_head_norms ? n_heads : 1, n = n_heads / times * a->head_dim;
    for (int i = 0; i < times; i++, x += n)
        a->compute.kernels->rms_norm(x, weights, n, a->eps, x);
}

/* Index queries and key of one row (m3.md 5.1). */
static void prepare_index(struct attention *a, const struct row_group *g, int row)
{
    const struct attention_weights *w = a->weights;
    int dim = a->sparse.head_dim;
    size_t angle = (size_t)row * (size_t)a->rope.half;
    const float *sine = a->sine + angle, *cosine = a->cosine + angle;
    float *key = a->msa.keys + (size_t)row * a->msa.key_stride;
    a->compute.kernels->rms_norm(key, w->index_k_norm, dim, a->eps, key);
    rope_turn(&a->rope, sine, cosine, key);
    kv_index_write(a->kv, g->seq, a->layer, row_position(a, row), key);
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
    const float *sine = a->sine + angle, *cosine = a->cosine + angle;
    float *q = a->q + (size_t)row * a->q_stride, *k = a->k + (size_t)row * a->kv_stride;

    norm_heads(a, a->weights->q_norm, a->n_heads, q);
    norm_heads(a, a->weights->k_norm, a->n_kv_heads, k);
    for (int head = 0; head < a->n_kv_heads; head++)
        rope_turn(&a->rope, sine, cosine, k + (size_t)head * dim);
    kv_write(a->kv, g->seq, a->layer, row_position(a, row), k, a->v + (size_t)row * a->kv_stride);
    for (int head = 0; head < a->n_heads; head++) {
        float *from = q + (size_t)head * dim;
        rope_turn(&a->rope, sine, cosine, from);
        prepare_query(a, from, head_index(a, head, row));
    }
    if (a->weights->is_sparse)
        prepare_index(a, g, row);
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

/* The queries from `query` on, to be folded from nothing into the partial results at `partial`. */
static struct attend_block begin_chunk(struct attention *a, size_t query, size_t n_queries,
                                       size_t partial)
{
    for (size_t i = 0; i < n_queries; i++)
        a->state[partial + i] = (struct attend_state){.max = -INFINITY};
    memset(a->o + partial * a->head_stride, 0, n_queries * a->head_stride * sizeof(float));
    return (struct attend_block){.q = a->queries + query * a->head_stride,
                                 .q_stride = (int)a->head_stride,
                                 .q8 = a->queries8 + query * a->head_stride,
                                 .q_scales = a->query_scales + query,
                                 .q8_stride = (int)a->head_stride,
                                 .n_heads = (int)n_queries,
                                 .head_dim = a->head_dim,
                                 .v_stride = kv_value_stride(a->kv),
                                 .state = a->state + partial,
                                 .o = a->o + partial * a->head_stride,
                                 .next_bytes = kv_block_bytes(a->kv)};
}

/* A chunk from nothing into the partial results at `partial`. */
static void fold_chunk(struct attention *a, const struct fold *f, int chunk, size_t partial)
{
    const struct row_group *g = f->group;
    size_t query = query_index(a, f->kv_head, g->first_row);
    size_t n_queries = (size_t)g->n_rows * (size_t)a->group_heads;
    struct attend_block b = begin_chunk(a, query, n_queries, partial);
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

/* Where a chunk stands among those of a row. */
struct place {
    bool is_first, is_last;
};

static struct place chunk_place(const struct attention *a, int row, int chunk)
{
    return (struct place){chunk == 0, chunk == row_position(a, row) / ATTENTION_CHUNK};
}

/* A chunk of which the partial results begin at `first_partial`, for one row and KV head.
 * After the row's last chunk its heads go into q, whose values are no longer needed. */
static void merge_row(struct attention *a, int row, int kv_head, struct place place,
                      size_t first_partial)
{
    size_t to = (size_t)row * (size_t)a->n_heads + (size_t)(kv_head * a->group_heads);
    size_t from = first_partial + query_index(a, kv_head, row);
    float *q = a->q + (size_t)row * a->q_stride + (size_t)(kv_head * a->group_heads * a->head_dim);
    for (int i = 0; i < a->group_heads; i++, to++, from++, q += a->head_dim) {
        float *o = a->merged_o + to * a->head_stride;
        merge_chunk(&a->merged[to], o, &a->state[from], a->o + from * a->head_stride,
                    a->head_stride, place.is_first);
        if (place.is_last)
            scale_floats(o, a->merged[to].sum, true, a->head_dim, q);
    }
}

/* Task = (KV head, group), groups fastest: neighbours share keys.  The last group of a prompt
 * is the longest and comes first. */
static void whole_task(void *ctx, int task)
{
    struct attention *a = ctx;
    const struct group_list *l = a->list;
    const struct row_group *g = &a->groups[l->groups[l->n - 1 - task % l->n]];
    struct fold f = {.group = g, .kv_head = task / l->n};
    int n_chunks = group_chunks(g);
    f.end_page = pages_until(g, n_chunks);
    for (int chunk = 0; chunk < n_chunks; chunk++) {
        fold_chunk(a, &f, chunk, query_index(a, f.kv_head, g->first_row));
        for (int row = 0; row < g->n_rows; row++)
            merge_row(a, g->first_row + row, f.kv_head, chunk_place(a, g->first_row + row, chunk),
                      0);
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
    const struct group_list *l = a->list;
    const struct row_group *g = &a->groups[l->groups[task % l->n]];
    struct fold f = {.group = g, .kv_head = task / l->n % a->n_kv_heads};
    int first = task / l->n / a->n_kv_heads * a->span_chunks;
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
    if (a->list == &a->lists[LIST_SEEING] && group_chooses(a, &a->groups[a->row_group[row]]))
        return;
    for (int i = 0; i < a->wave_chunks && a->first_chunk + i <= last; i++)
        merge_row(a, row, task % a->n_kv_heads, chunk_place(a, row, a->first_chunk + i),
                  (size_t)i * chunk_partials(a));
}

static void attend_spans(struct attention *a)
{
    int wave = a->n_partials / a->n_rows;
    int tasks_wanted = 2 * TASKS_PER_THREAD * pool_threads(a->compute.pool);
    int n_chunks = a->list->n_chunks, n_groups = a->list->n;
    for (a->first_chunk = 0; a->first_chunk < n_chunks; a->first_chunk += wave) {
        int left = n_chunks - a->first_chunk;
        a->wave_chunks = left < wave ? left : wave;
        int64_t units = (int64_t)a->wave_chunks * a->n_kv_heads * n_groups;
        int64_t span = units / tasks_wanted;
        a->span_chunks = span < 1 ? 1 : span > a->wave_chunks ? a->wave_chunks : (int)span;
        int n_spans = (a->wave_chunks + a->span_chunks - 1) / a->span_chunks;
        run(a, span_task, n_spans * a->n_kv_heads * n_groups);
        run(a, merge_task, a->n_rows * a->n_kv_heads);
    }
}

/* ---- the keys that a row of a sparse layer sees ---- */

/* On a walk over them in ascending order. */
struct walk {
    const int32_t *blocks;
    int n_blocks, block_size, n_visible; /* keys before n_visible only */
    int next;                            /* block */
    int at;                              /* position: keys before it were visited */
};

/* Keys of one page that lie together; n 0: there are no more. */
struct segment {
    int first, n;
};

static struct segment next_segment(struct walk *w)
{
    while (w->next < w->n_blocks && w->at >= (w->blocks[w->next] + 1) * w->block_size)
        w->next++;
    if (w->next == w->n_blocks)
        return (struct segment){0};
    int start = w->blocks[w->next] * w->block_size;
    int first = w->at > start ? w->at : start;
    int page_end = (first / ATTEND_BLOCK + 1) * ATTEND_BLOCK;
    int end = start + w->block_size;
    while (end < page_end && w->next + 1 < w->n_blocks &&
           w->blocks[w->next + 1] * w->block_size == end) {
        w->next++;
        end += w->block_size;
    }
    end = min_int(min_int(end, page_end), w->n_visible);
    if (end <= first)
        return (struct segment){0};
    w->at = end;
    return (struct segment){first, end - first};
}

static struct walk walk_begin(const struct attention *a, int row, int kv_head)
{
    return (struct walk){.blocks = msa_blocks(&a->msa, row, kv_head),
                         .n_blocks = a->sparse.top_k,
                         .block_size = a->sparse.block_size,
                         .n_visible = row_position(a, row) + 1};
}

/* What a row sees of the chunk of `s`, its first segment there; returns the first segment of
 * the next chunk. */
static struct segment fold_seen(struct attention *a, struct walk *w, struct segment s, int row,
                                int kv_head, size_t first_partial)
{
    const struct row_group *g = &a->groups[a->row_group[row]];
    size_t query = query_index(a, kv_head, row);
    struct attend_block b = begin_chunk(a, query, (size_t)a->group_heads, first_partial + query);
    int chunk = s.first / ATTENTION_CHUNK;
    for (; s.n > 0 && s.first / ATTENTION_CHUNK == chunk; s = next_segment(w)) {
        kv_block(a->kv, g->seq, a->layer, s.first / ATTEND_BLOCK, kv_head, &b);
        kv_skip_keys(a->kv, &b, s.first % ATTEND_BLOCK);
        b.n_keys = s.n;
        a->compute.kernels->attend[a->kv_format](&b);
    }
    return s;
}

/* Task = (KV head, group): its rows one after another, chunks merged on the way. */
static void choosing_whole_task(void *ctx, int task)
{
    struct attention *a = ctx;
    const struct group_list *l = a->list;
    const struct row_group *g = &a->groups[l->groups[l->n - 1 - task % l->n]];
    int kv_head = task / l->n;
    for (int row = g->first_row; row < g->first_row + g->n_rows; row++) {
        struct walk w = walk_begin(a, row, kv_head);
        struct segment s = next_segment(&w);
        for (bool is_first = true; s.n > 0; is_first = false) {
            s = fold_seen(a, &w, s, row, kv_head, 0);
            merge_row(a, row, kv_head, (struct place){is_first, s.n == 0}, 0);
        }
    }
}

/* The first segment of the slot-th chunk that the walk comes through. */
static struct segment find_slot(struct walk *w, int slot)
{
    struct segment s = next_segment(w);
    for (int chunk = s.first / ATTENTION_CHUNK; slot > 0 && s.n > 0; s = next_segment(w)) {
        if (s.first / ATTENTION_CHUNK == chunk)
            continue;
        chunk = s.first / ATTENTION_CHUNK;
        if (--slot == 0)
            break;
    }
    return s;
}

static bool row_chooses(const struct attention *a, int row)
{
    return group_chooses(a, &a->groups[a->row_group[row]]);
}

/* Task = (slot, KV head, row), rows fastest: one chunk that a row sees something of. */
static void choosing_slot_task(void *ctx, int task)
{
    struct attention *a = ctx;
    int row = task % a->n_rows, kv_head = task / a->n_rows % a->n_kv_heads;
    int slot = task / a->n_rows / a->n_kv_heads;
    if (!row_chooses(a, row))
        return;
    struct walk w = walk_begin(a, row, kv_head);
    struct segment s = find_slot(&w, slot);
    if (s.n > 0)
        (void)fold_seen(a, &w, s, row, kv_head, (size_t)slot * chunk_partials(a));
}

/* Task = (KV head, row). */
static void choosing_merge_task(void *ctx, int task)
{
    struct attention *a = ctx;
    int row = task % a->n_rows, kv_head = task / a->n_rows;
    if (!row_chooses(a, row))
        return;
    struct walk w = walk_begin(a, row, kv_head);
    struct segment s = next_segment(&w);
    for (int slot = 0; s.n > 0; slot++) {
        int chunk = s.first / ATTENTION_CHUNK;
        while (s.n > 0 && s.first / ATTENTION_CHUNK == chunk)
            s = next_segment(&w);
        merge_row(a, row, kv_head, (struct place){slot == 0, s.n == 0},
                  (size_t)slot * chunk_partials(a));
    }
}

static void attend_all(struct attention *a, int list)
{
    a->list = &a->lists[list];
    if (a->list->n == 0)
        return;
    if (a->list->is_whole)
        run(a, whole_task, a->n_kv_heads * a->list->n);
    else
        attend_spans(a);
}

static void attend_chosen(struct attention *a)
{
    const struct group_list *l = a->list = &a->lists[LIST_CHOOSING];
    if (l->n == 0)
        return;
    msa_choose(&a->msa, &a->compute, a->kv, a->layer, a->groups, l->groups, l->n);
    if (l->is_whole) {
        run(a, choosing_whole_task, a->n_kv_heads * l->n);
        return;
    }
    run(a, choosing_slot_task, a->max_slots * a->n_kv_heads * a->n_rows);
    run(a, choosing_merge_task, a->n_kv_heads * a->n_rows);
}

const int32_t *attention_blocks(const struct attention *a, int row, int kv_head)
{
    if (!row_chooses(a, row))
        return NULL;
    return msa_blocks(&a->msa, row, kv_head);
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
    if (w->is_sparse) {
        attend_all(a, LIST_SEEING);
        attend_chosen(a);
    } else {
        attend_all(a, LIST_ALL);
    }
    if (a->group != 0)
        run(a, quantise_task, a->n_rows);
    struct rows o = step_rows(a, &a->q_room, a->q, a->q_stride, a->n_heads * a->head_dim);
    matmul(c, &w->wo, &o, a->h, a->hidden_stride);
    run(a, add_task, a->n_rows);
}
