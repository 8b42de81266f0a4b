/* engine/attention.c - see engine/attention.h.
 *
 * How the work is shared out.  A group is up to GROUP_ROWS consecutive rows of one sequence;
 * its queries for one KV head go through a block of keys together, so prefill reads the
 * cache once per group and not once per row.  One task is a group, a KV head and a chunk.
 * Chunks are done in waves: as many at once as there are partial results to keep, then
 * every row merges the wave in ascending order.  Decode at depth thus feeds many threads
 * with one row, and prefill needs no more memory than its rows. */
#include "engine/attention.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/forward.h"
#include "engine/mathf.h"
#include "engine/rope.h"

enum {
    /* 16 rows of 6 heads: their states and outputs (48 KiB at 128 dimensions) stay in L2
     * beside the block's 64 KiB of keys and values. */
    GROUP_ROWS = 16,
    /* Partial results kept, in rows x chunks; also bounds what a wave of decode can share. */
    MIN_PARTIALS = 128,
    FLOATS_UNIT = 16,
    LANES = 16,
};
_Static_assert(ATTENTION_CHUNK % ATTEND_BLOCK == 0, "a chunk is whole blocks");

/* Consecutive rows of one sequence. */
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

    /* The plan of the present step. */
    int n_rows, n_groups, n_chunks;
    struct row_group *groups; /* [max_rows] */
    int32_t *row_group;       /* [max_rows]: index into groups */
    float *sine, *cosine;     /* [max_rows, rope.half] */

    /* Strides in floats, rounded up so that every row is aligned and zero-padded. */
    size_t hidden_stride, q_stride, kv_stride, head_stride;
    float *h;                   /* [max_rows, hidden_stride] */
    float *q, *k, *v;           /* [max_rows, q_stride or kv_stride] */
    float *queries;             /* [n_kv_heads, n_rows, group_heads, head_stride] */
    struct attend_state *state; /* [wave's chunk, n_kv_heads, n_rows, group_heads] */
    float *o;                   /* the same, [.., head_stride] */
    struct merged *merged;      /* [n_rows, n_heads] */
    float *merged_o;            /* [n_rows, n_heads, head_stride] */
    size_t scratch_bytes;

    /* The call in progress. */
    const struct attention_weights *weights;
    struct kv *kv;
    int layer, first_chunk, wave_chunks;
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
    int rc = matrix_pack(&w->wq, &view->wq, format, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->wk, &view->wk, format, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->wv, &view->wv, format, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->wo, &view->wo, format, c, e);
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
    a->queries = scratch(a, wide, a->head_stride, sizeof(float));
    a->state = scratch(a, all_heads, 1, sizeof(*a->state));
    a->o = scratch(a, all_heads, a->head_stride, sizeof(float));
    a->merged = scratch(a, wide, 1, sizeof(*a->merged));
    a->merged_o = scratch(a, wide, a->head_stride, sizeof(float));
    return a->sine && a->cosine && a->h && a->q && a->k && a->v && a->queries && a->state && a->o &&
           a->merged && a->merged_o;
}

int attention_open(const struct model_config *config, int max_rows, struct compute c,
                   struct attention **out, struct err *e)
{
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
    void *const blocks[] = {a->groups, a->row_group, a->sine,    a->cosine,  a->h,
                            a->q,      a->k,         a->v,       a->queries, a->state,
                            a->o,      a->merged,    a->merged_o};
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
        int n = q->n_tokens - done < GROUP_ROWS ? q->n_tokens - done : GROUP_ROWS;
        must(a->n_rows + n <= a->max_rows);
        a->groups[a->n_groups] = (struct row_group){
            .seq = q->kv, .first_row = a->n_rows, .n_rows = n, .position = q->position + done};
        for (int i = 0; i < n; i++)
            a->row_group[a->n_rows++] = a->n_groups;
        a->n_groups++;
        done += n;
    }
    int chunks = (q->position + q->n_tokens - 1) / ATTENTION_CHUNK + 1;
    if (chunks > a->n_chunks)
        a->n_chunks = chunks;
}

void attention_begin(struct attention *a, const struct step *s)
{
    a->n_rows = a->n_groups = a->n_chunks = 0;
    for (int i = 0; i < s->n_seqs; i++)
        plan_seq(a, &s->seqs[i]);
    must(a->n_rows >= 1);
    run(a, angles_task, a->n_rows);
}

/* ---- before the scores ---- */

static void input_task(void *ctx, int row)
{
    struct attention *a = ctx;
    a->compute.kernels->rms_norm(a->x + (size_t)row * (size_t)a->hidden, a->weights->input_norm,
                                 a->hidden, a->eps, a->h + (size_t)row * a->hidden_stride);
}

/* Index of a row's first query for a KV head, within one wave chunk. */
static size_t query_index(const struct attention *a, int kv_head, int row)
{
    return ((size_t)kv_head * (size_t)a->n_rows + (size_t)row) * (size_t)a->group_heads;
}

/* Norms, rotation, scaling and the cache, for one row. */
static void prepare_task(void *ctx, int row)
{
    struct attention *a = ctx;
    const struct kernels *kernels = a->compute.kernels;
    size_t dim = (size_t)a->head_dim, angle = (size_t)row * (size_t)a->rope.half;
    const float *sine = a->sine + angle, *cosine = a->cosine + angle;
    float *q = a->q + (size_t)row * a->q_stride, *k = a->k + (size_t)row * a->kv_stride;

    /* Over all heads together, not per head (m2.md 4.3 step 3). */
    kernels->rms_norm(q, a->weights->q_norm, a->n_heads * a->head_dim, a->eps, q);
    kernels->rms_norm(k, a->weights->k_norm, a->n_kv_heads * a->head_dim, a->eps, k);
    for (int head = 0; head < a->n_kv_heads; head++)
        rope_turn(&a->rope, sine, cosine, k + (size_t)head * dim);
    const struct kv_seq *seq = a->groups[a->row_group[row]].seq;
    kv_write(a->kv, seq, a->layer, row_position(a, row), k, a->v + (size_t)row * a->kv_stride);

    for (int head = 0; head < a->n_heads; head++) {
        float *from = q + (size_t)head * dim;
        rope_turn(&a->rope, sine, cosine, from);
        size_t at = query_index(a, head / a->group_heads, row) + (size_t)(head % a->group_heads);
        float *to = a->queries + at * a->head_stride;
        for (size_t d = 0; d < dim; d++)
            to[d] = from[d] * a->scale;
    }
    for (int head = 0; head < a->n_heads; head++)
        a->merged[(size_t)row * (size_t)a->n_heads + (size_t)head] =
            (struct merged){.max = -INFINITY};
    size_t wide = (size_t)a->n_heads * a->head_stride;
    memset(a->merged_o + (size_t)row * wide, 0, wide * sizeof(float));
}

/* ---- attend ---- */

/* Folds the block that begins at position `start` for rows first..first+n_rows-1 of a group,
 * which all see the same n_keys of it. */
static void fold_rows(struct attention *a, const struct attend_block *at, size_t first, int n_rows,
                      int n_keys)
{
    struct attend_block b = *at;
    size_t skip = first * (size_t)a->group_heads;
    b.q += skip * a->head_stride;
    b.state += skip;
    b.o += skip * a->head_stride;
    b.n_heads = n_rows * a->group_heads;
    b.n_keys = n_keys;
    a->compute.kernels->attend(&b);
}

static void fold_block(struct attention *a, const struct row_group *g, struct attend_block *b,
                       int kv_head, int page)
{
    int start = page * ATTEND_BLOCK;
    b->k = kv_keys(a->kv, g->seq, a->layer, page, kv_head);
    b->v = kv_values(a->kv, g->seq, a->layer, page, kv_head);
    /* Rows inside the block see part of it, each its own; rows past it see all, together. */
    int row = start > g->position ? start - g->position : 0;
    for (; row < g->n_rows && g->position + row < start + ATTEND_BLOCK - 1; row++)
        fold_rows(a, b, (size_t)row, 1, g->position + row - start + 1);
    if (row < g->n_rows)
        fold_rows(a, b, (size_t)row, g->n_rows - row, ATTEND_BLOCK);
}

/* Task = (chunk of the wave, KV head, group), groups fastest: neighbours share keys. */
static void chunk_task(void *ctx, int task)
{
    struct attention *a = ctx;
    const struct row_group *g = &a->groups[task % a->n_groups];
    int kv_head = task / a->n_groups % a->n_kv_heads;
    int wave_chunk = task / a->n_groups / a->n_kv_heads;
    int begin = (a->first_chunk + wave_chunk) * ATTENTION_CHUNK;
    int last = g->position + g->n_rows - 1;
    if (begin > last)
        return;
    int end = last - begin < ATTENTION_CHUNK ? last + 1 : begin + ATTENTION_CHUNK;

    size_t per_chunk = (size_t)a->n_rows * (size_t)a->n_heads;
    size_t query = query_index(a, kv_head, g->first_row);
    size_t partial = (size_t)wave_chunk * per_chunk + query;
    size_t n_queries = (size_t)g->n_rows * (size_t)a->group_heads;
    for (size_t i = 0; i < n_queries; i++)
        a->state[partial + i] = (struct attend_state){.max = -INFINITY};
    memset(a->o + partial * a->head_stride, 0, n_queries * a->head_stride * sizeof(float));

    struct attend_block b = {.q = a->queries + query * a->head_stride,
                             .q_stride = (int)a->head_stride,
                             .head_dim = a->head_dim,
                             .v_stride = kv_value_stride(a->kv),
                             .state = a->state + partial,
                             .o = a->o + partial * a->head_stride};
    for (int page = begin / ATTEND_BLOCK; page * ATTEND_BLOCK < end; page++)
        fold_block(a, g, &b, kv_head, page);
}

/* (m, l, o) after chunk i from that after chunk i-1 and the chunk's own. */
static void merge_chunk(struct merged *m, float *o, const struct attend_state *s,
                        const float *chunk_o, size_t n)
{
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++)
        sum += s->sum[lane];
    float max = s->max > m->max ? s->max : m->max;
    float keep = m->max == -INFINITY ? 0.0f : math_exp(m->max - max);
    float take = math_exp(s->max - max);
    m->max = max;
    m->sum = m->sum * keep + sum * take;
    for (size_t d = 0; d < n; d++)
        o[d] = o[d] * keep + chunk_o[d] * take;
}

static void merge_task(void *ctx, int row)
{
    struct attention *a = ctx;
    int position = row_position(a, row);
    size_t per_chunk = (size_t)a->n_rows * (size_t)a->n_heads;
    for (int i = 0; i < a->wave_chunks; i++) {
        if ((a->first_chunk + i) * ATTENTION_CHUNK > position)
            return;
        for (int head = 0; head < a->n_heads; head++) {
            size_t to = (size_t)row * (size_t)a->n_heads + (size_t)head;
            size_t from = (size_t)i * per_chunk + query_index(a, head / a->group_heads, row) +
                          (size_t)(head % a->group_heads);
            merge_chunk(&a->merged[to], a->merged_o + to * a->head_stride, &a->state[from],
                        a->o + from * a->head_stride, (size_t)a->head_dim);
        }
    }
}

/* The row's heads side by side, into q: its values are no longer needed. */
static void concat_task(void *ctx, int row)
{
    struct attention *a = ctx;
    float *out = a->q + (size_t)row * a->q_stride;
    for (int head = 0; head < a->n_heads; head++) {
        size_t at = (size_t)row * (size_t)a->n_heads + (size_t)head;
        const float *o = a->merged_o + at * a->head_stride;
        for (int d = 0; d < a->head_dim; d++)
            *out++ = o[d] / a->merged[at].sum;
    }
}

static void attend(struct attention *a)
{
    int wave = a->n_partials / a->n_rows;
    for (a->first_chunk = 0; a->first_chunk < a->n_chunks; a->first_chunk += wave) {
        int left = a->n_chunks - a->first_chunk;
        a->wave_chunks = left < wave ? left : wave;
        run(a, chunk_task, a->wave_chunks * a->n_kv_heads * a->n_groups);
        run(a, merge_task, a->n_rows);
    }
    run(a, concat_task, a->n_rows);
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
    must((size_t)kv_value_stride(kv) == a->head_stride);
    run(a, input_task, a->n_rows);
    matmul(c, &w->wq, a->h, a->hidden_stride, a->n_rows, a->q, a->q_stride);
    matmul(c, &w->wk, a->h, a->hidden_stride, a->n_rows, a->k, a->kv_stride);
    matmul(c, &w->wv, a->h, a->hidden_stride, a->n_rows, a->v, a->kv_stride);
    run(a, prepare_task, a->n_rows);
    attend(a);
    matmul(c, &w->wo, a->q, a->q_stride, a->n_rows, a->h, a->hidden_stride);
    run(a, add_task, a->n_rows);
}
