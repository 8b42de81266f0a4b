/* engine/attention_fold.c - blocks of keys folded into chunks, chunks merged into rows: the order
 * of additions that attention.h promises, and how the work on it is shared out. */
#include <math.h>
#include <string.h>

#include "engine/attention_parts.h"
#include "engine/mathf.h"

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
struct attend_block attention_begin_chunk(struct attention *a, size_t query, size_t n_queries,
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
    struct attend_block b = attention_begin_chunk(a, query, n_queries, partial);
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

/* A part's rows bring what they were before, and only its own have their last chunk in it. */
static struct place chunk_place(const struct attention *a, int row, int chunk)
{
    const struct row_group *g = &a->plan->groups[a->plan->row_group[row]];
    return (struct place){chunk == 0 && !g->is_part,
                          chunk == row_position(a, row) / ATTENTION_CHUNK};
}

/* A chunk of which the partial results begin at `first_partial`, for one row and KV head.
 * After the row's last chunk its heads go into q, whose values are no longer needed. */
void attention_merge_row(struct attention *a, int row, int kv_head, struct place place,
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
    const struct row_group *g = &a->plan->groups[l->groups[l->n - 1 - task % l->n]];
    struct fold f = {.group = g, .kv_head = task / l->n};
    int n_chunks = group_chunks(g);
    f.end_page = pages_until(g, n_chunks);
    for (int chunk = 0; chunk < n_chunks; chunk++) {
        fold_chunk(a, &f, chunk, query_index(a, f.kv_head, g->first_row));
        for (int row = 0; row < g->n_rows; row++)
            attention_merge_row(a, g->first_row + row, f.kv_head,
                                chunk_place(a, g->first_row + row, chunk), 0);
    }
}

/* Task = (span of the wave, KV head, group), groups fastest. */
static void span_task(void *ctx, int task)
{
    struct attention *a = ctx;
    const struct group_list *l = a->list;
    const struct row_group *g = &a->plan->groups[l->groups[task % l->n]];
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
    const struct row_group *g = &a->plan->groups[a->plan->row_group[row]];
    int position = row_position(a, row);
    int n_chunks = position < g->n_here ? position / ATTENTION_CHUNK + 1 : group_chunks(g);
    if (a->list == &a->plan->lists[LIST_SEEING] && g->chooses)
        return;
    for (int i = 0; i < a->wave_chunks && a->first_chunk + i < n_chunks; i++)
        attention_merge_row(a, row, task % a->n_kv_heads, chunk_place(a, row, a->first_chunk + i),
                            (size_t)i * chunk_partials(a));
}

static void attend_spans(struct attention *a)
{
    int wave = a->n_partials / a->plan->n_rows;
    int tasks_wanted = 2 * TASKS_PER_THREAD * pool_threads(a->compute.pool);
    int n_chunks = a->list->n_chunks, n_groups = a->list->n;
    for (a->first_chunk = 0; a->first_chunk < n_chunks; a->first_chunk += wave) {
        int left = n_chunks - a->first_chunk;
        a->wave_chunks = left < wave ? left : wave;
        int64_t units = (int64_t)a->wave_chunks * a->n_kv_heads * n_groups;
        int64_t span = units / tasks_wanted;
        a->span_chunks = span < 1 ? 1 : span > a->wave_chunks ? a->wave_chunks : (int)span;
        int n_spans = (a->wave_chunks + a->span_chunks - 1) / a->span_chunks;
        attention_run(a, span_task, n_spans * a->n_kv_heads * n_groups);
        attention_run(a, merge_task, a->plan->n_rows * a->n_kv_heads);
    }
}

void attention_attend_all(struct attention *a, int list)
{
    a->list = &a->plan->lists[list];
    if (a->list->n == 0)
        return;
    if (a->list->is_whole)
        attention_run(a, whole_task, a->n_kv_heads * a->list->n);
    else
        attend_spans(a);
}
