/* engine/msa_bound.c - the choice of msa.h without reading every key.
 *
 * For a row and head let n = top_k - 1.  The bounds of all blocks are computed; the n blocks with
 * the largest are tried, that is scored, for all heads.  The n-th best score of a head so far is
 * what a block needs: n blocks have it, so one whose bound, and with it its score, is below it is not
 * chosen (one that equals it may be: ties go by number).  Of all others those keys are scored whose
 * bound, SKETCH_UNIT of them together, is not below it; the rest count as without a score, and
 * the rule decides as it does after a plain scan. */
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/msa_parts.h"

enum {
    /* Contexts of fewer blocks than so many times top_k are scanned: trying would be most of it. */
    LEAST_BLOCKS = 12,
    /* What is done to a key, in hundredths of what a scan does to it: its sketch read with the
     * others, the key scored with 15 beside it, scored with its block (rounded up from what one machine with AVX-512 showed).  If a wave took longer than a scan, the next ones of
     * the layer go without: 16, and twice as many each time that nothing changed. */
    COST_SKETCH = 35,
    COST_UNIT = 130,
    COST_WHOLE = 105,
    COST_SCAN = 100,
    FIRST_PENALTY = 16,
    LARGEST_PENALTY = 256,
    TRIES_PER_THREAD = 4,
    FETCH_PAGES = 2,
    MOST_PENDING = 4,
};

static int n_tries(const struct msa *m)
{
    return m->config.top_k - 1;
}

static const struct sketch_query *row_sketches(const struct msa *m, int row)
{
    return m->sketches + (size_t)row * (size_t)m->config.n_heads;
}

static int8_t *row_integers(const struct msa *m, int row)
{
    return m->integers + (size_t)row * (size_t)m->config.n_heads * m->integer_stride;
}

static const float *row_queries(const struct msa *m, int row)
{
    return m->queries + (size_t)row * m->query_stride;
}

/* Of the step. */
static int step_row(const struct msa *m, const struct msa_row *r)
{
    return msa_group(m, r->group)->first_row + r->row;
}

/* Task = row of the wave. */
static void sketch_task(void *ctx, int task)
{
    struct msa *m = ctx;
    int row = step_row(m, &m->rows[task]), dim = m->config.head_dim;
    struct sketch_query *out = m->sketches + (size_t)row * (size_t)m->config.n_heads;
    m->is_sketched[row] = true;
    for (int head = 0; head < m->config.n_heads; head++)
        if (!sketch_query(row_queries(m, row) + (size_t)head * (size_t)dim, dim,
                          row_integers(m, row) + (size_t)head * m->integer_stride, &out[head]))
            m->is_sketched[row] = false;
}

/* ---- bounds ---- */

static int units_of_block(const struct msa *m)
{
    return m->config.block_size / SKETCH_UNIT;
}

/* Between two heads of a row's. */
static size_t unit_stride(const struct msa *m)
{
    return (size_t)m->n_blocks * (size_t)units_of_block(m);
}

/* [n_heads, units of all blocks] of a row of a group. */
static float *unit_bounds(const struct msa *m, int group, int row)
{
    size_t index = (size_t)group * GROUP_ROWS + (size_t)row;
    return m->units + index * (size_t)m->config.n_heads * unit_stride(m);
}

int msa_bound_groups(const struct msa *m)
{
    size_t group = (size_t)GROUP_ROWS * (size_t)m->config.n_heads * unit_stride(m);
    must(group <= m->n_units);
    return (int)(m->n_units / group);
}

/* The sketches of n_keys keys of a page; queries, largest and its stride are the caller's. */
static struct sketch_block sketch_block(const struct msa *m, const struct row_group *g,
                                        int first_key, int n_keys)
{
    int page = first_key / KV_PAGE_TOKENS, unit = first_key % KV_PAGE_TOKENS / SKETCH_UNIT;
    const char *sketch = kv_index_sketch(m->kv, g->seq, m->layer, page);
    size_t unit_bytes = sketch_unit_bytes(m->config.head_dim);
    return (struct sketch_block){.q_stride = m->integer_stride,
                                 .n_queries = m->config.n_heads,
                                 .head_dim = m->config.head_dim,
                                 .sketch = sketch + (size_t)unit * unit_bytes,
                                 .unit_bytes = unit_bytes,
                                 .n_keys = n_keys};
}

/* A row's bounds of some units, and in them of their block. */
static void bound_row(const struct msa *m, struct sketch_block *b, float *of_block)
{
    int n_units = b->n_keys / SKETCH_UNIT;
    const float *at = b->largest;
    m->compute->kernels->index_bound(b);
    for (int head = 0; head < m->config.n_heads; head++, at += b->largest_stride) {
        for (int unit = 0; unit < n_units; unit++)
            *of_block = at[unit] > *of_block ? at[unit] : *of_block;
        of_block += m->n_blocks;
    }
}

static void bound_keys(const struct msa *m, int group, int block, int first_key, int n_keys)
{
    const struct row_group *g = msa_group(m, group);
    struct sketch_block b = sketch_block(m, g, first_key, n_keys);
    b.largest_stride = unit_stride(m);
    /* A page's sketches are too short for what fetches ahead by itself. */
    int ahead = first_key / KV_PAGE_TOKENS + FETCH_PAGES;
    if (ahead < g->seq->n_pages)
        b.next = kv_index_sketch(m->kv, g->seq, m->layer, ahead);
    for (int row = 0; row < g->n_rows; row++) {
        b.q = row_integers(m, g->first_row + row);
        b.queries = row_sketches(m, g->first_row + row);
        b.largest = unit_bounds(m, group, row) + first_key / SKETCH_UNIT;
        bound_row(m, &b, msa_scores(m, group, row) + block);
        b.next = NULL;
    }
}

/* Task = (span of blocks, group), groups fastest. */
static void bound_task(void *ctx, int task)
{
    const struct msa *m = ctx;
    int group = task % m->n_wave, size = m->config.block_size;
    int first = task / m->n_wave * m->span_blocks, end = msa_begin_span(m, group, first);
    int step = min_int(size, KV_PAGE_TOKENS);
    for (int b = first; b < end; b++)
        for (int key = b * size; key < (b + 1) * size; key += step)
            bound_keys(m, group, b, key, step);
}

/* ---- what is needed ---- */

/* A block's scores for all heads of a row: largest [n_heads, stride]. */
static void score_block(const struct msa *m, const struct row_group *g, int row, int block,
                        float *largest, size_t stride)
{
    int size = m->config.block_size, step = min_int(size, KV_PAGE_TOKENS), end = (block + 1) * size;
    for (int head = 0; head < m->config.n_heads; head++)
        largest[(size_t)head * stride] = -INFINITY;
    for (int key = block * size; key < end; key += step) {
        struct index_block b = msa_index_block(m, g, key, step);
        b.q = row_queries(m, row);
        b.largest = largest;
        b.largest_stride = stride;
        if (key + step < end)
            b.next = kv_index_page(m->kv, g->seq, m->layer, (key + step) / KV_PAGE_TOKENS);
        m->compute->kernels->index_largest[kv_index_format(kv_format_of(m->kv))](&b);
    }
}

static bool is_among(const int32_t *blocks, int n, int32_t block)
{
    for (int i = 0; i < n; i++)
        if (blocks[i] == block)
            return true;
    return false;
}

/* The i-th block of one head, unless a head before it tries the same. */
static void try_one(const struct msa *m, const struct msa_row *r, int head, int i)
{
    int row = step_row(m, r), n = n_tries(m);
    int32_t block = msa_chosen(m, row, head)[i];
    size_t heads = (size_t)m->config.n_heads;
    size_t index = ((size_t)row * heads + (size_t)head) * (size_t)n + (size_t)i;
    float *scores = m->tried + index * heads;
    for (int before = 0; before < head; before++)
        if (is_among(msa_chosen(m, row, before), n, block)) {
            for (size_t h = 0; h < heads; h++)
                scores[h] = -INFINITY;
            return;
        }
    score_block(m, msa_group(m, r->group), row, block, scores, 1);
}

/* Task = (row of the wave, head, some of its tries). */
static void try_task(void *ctx, int task)
{
    const struct msa *m = ctx;
    int n = n_tries(m), parts = (n + m->tries_per_task - 1) / m->tries_per_task;
    int first = task % parts * m->tries_per_task, head = task / parts % m->config.n_heads;
    const struct msa_row *r = &m->rows[task / parts / m->config.n_heads];
    for (int i = first; i < min_int(first + m->tries_per_task, n); i++)
        try_one(m, r, head, i);
}

/* The n-th largest of `count` numbers `stride` apart, count >= n >= 1; `room` [n]. */
static float nth_largest(const float *x, size_t count, size_t stride, int n, float *room)
{
    int kept = 0;
    for (size_t i = 0; i < count; i++) {
        float value = x[i * stride];
        if (kept == n && !(value > room[n - 1]))
            continue;
        int at = kept < n ? kept++ : n - 1;
        for (; at > 0 && room[at - 1] < value; at--)
            room[at] = room[at - 1];
        room[at] = value;
    }
    return room[n - 1];
}

/* Task = row of the wave.  A head's own tries are among all, so there are n at least; its list of
 * blocks, which has done its work, makes room. */
static void need_task(void *ctx, int task)
{
    const struct msa *m = ctx;
    int row = step_row(m, &m->rows[task]), n = n_tries(m);
    size_t heads = (size_t)m->config.n_heads, count = heads * (size_t)n;
    for (size_t head = 0; head < heads; head++) {
        size_t index = (size_t)row * heads + head;
        float *room = (float *)(void *)msa_chosen(m, row, (int)head);
        m->needed[index] =
            nth_largest(m->tried + (size_t)row * count * heads + head, count, heads, n, room);
    }
}

/* ---- the blocks that are left ---- */

/* The first block from `at` on that may be chosen; the others' bounds become no score. */
static int next_wanted(const struct msa *m, float *bounds, const float *needed, int at, int end)
{
    size_t stride = (size_t)m->n_blocks;
    int heads = m->config.n_heads;
    for (; at < end; at++) {
        for (int head = 0; head < heads; head++)
            if (bounds[(size_t)head * stride + (size_t)at] >= needed[head])
                return at;
        for (int head = 0; head < heads; head++)
            bounds[(size_t)head * stride + (size_t)at] = -INFINITY;
    }
    return end;
}

/* What is done to some blocks of a row: units, from each of these keys on, that are on their way
 * from memory and will be scored, the oldest of which is at `oldest`; keys that were scored with their unit
 * or their block. */
struct work {
    int group, row; /* of the wave; of the group */
    int n_pending, oldest, pending[MOST_PENDING];
    int64_t in_units, in_blocks;
};

/* While the oldest is scored, `next` comes: a unit, or NULL. */
static void score_oldest(const struct msa *m, const void *next, float *scores, struct work *w)
{
    const struct row_group *g = msa_group(m, w->group);
    int first_key = w->pending[w->oldest];
    struct index_block b = msa_index_block(m, g, first_key, SKETCH_UNIT);
    b.q = row_queries(m, g->first_row + w->row);
    b.largest = scores + first_key / m->config.block_size;
    b.largest_stride = (size_t)m->n_blocks;
    b.next = next;
    m->compute->kernels->index_largest[kv_index_format(kv_format_of(m->kv))](&b);
    w->oldest = (w->oldest + 1) % MOST_PENDING;
    w->n_pending--;
    w->in_units += SKETCH_UNIT;
}

static void add_pending(const struct msa *m, int first_key, float *scores, struct work *w)
{
    struct index_block b = msa_index_block(m, msa_group(m, w->group), first_key, SKETCH_UNIT);
    size_t bytes = kv_index_unit_bytes(m->kv);
    if (w->n_pending == MOST_PENDING)
        score_oldest(m, b.k, scores, w);
    else
        for (size_t at = 0; at < bytes; at += MEM_ALIGN)
            __builtin_prefetch((const char *)b.k + at);
    w->pending[(w->oldest + w->n_pending++) % MOST_PENDING] = first_key;
}

/* Whether one of SKETCH_UNIT keys may score what is needed. */
static bool may_matter(const struct msa *m, const struct work *w, const float *needed, int unit)
{
    const float *bound = unit_bounds(m, w->group, w->row) + unit;
    for (int head = 0; head < m->config.n_heads; head++, bound += unit_stride(m))
        if (*bound >= needed[head])
            return true;
    return false;
}

/* Scores of a block in its bounds' place, of the keys that matter: if the others' are below what
 * is needed, so is the block's, or it is that of a key that matters. */
static void score_wanted(const struct msa *m, const float *needed, int block, float *scores,
                         struct work *w)
{
    const struct row_group *g = msa_group(m, w->group);
    int n_units = units_of_block(m), first = block * n_units, n_matter = 0;
    for (int unit = first; unit < first + n_units; unit++)
        n_matter += may_matter(m, w, needed, unit);
    if (n_matter * COST_UNIT > n_units * COST_WHOLE) {
        score_block(m, g, g->first_row + w->row, block, scores + block, (size_t)m->n_blocks);
        w->in_blocks += m->config.block_size;
        return;
    }
    for (int head = 0; head < m->config.n_heads; head++)
        scores[(size_t)head * (size_t)m->n_blocks + (size_t)block] = -INFINITY;
    for (int unit = first; unit < first + n_units; unit++)
        if (may_matter(m, w, needed, unit))
            add_pending(m, unit * SKETCH_UNIT, scores, w);
}

/* The blocks first .. end-1 of a row of a group. */
static struct work score_what_matters(const struct msa *m, int group, int row, int first, int end)
{
    struct work w = {.group = group, .row = row};
    float *scores = msa_scores(m, group, row);
    size_t of_step = (size_t)(msa_group(m, group)->first_row + row);
    const float *needed = m->needed + of_step * (size_t)m->config.n_heads;
    for (int b = first; (b = next_wanted(m, scores, needed, b, end)) < end; b++)
        score_wanted(m, needed, b, scores, &w);
    while (w.n_pending > 0)
        score_oldest(m, NULL, scores, &w);
    return w;
}

/* Task = (span of blocks, group), groups fastest. */
static void score_task(void *ctx, int task)
{
    struct msa *m = ctx;
    int group = task % m->n_wave;
    const struct row_group *g = msa_group(m, group);
    int first = task / m->n_wave * m->span_blocks;
    int end = min_int(first + m->span_blocks, msa_own_block(m, g));
    for (int i = 0; i < g->n_rows; i++) {
        struct work w = score_what_matters(m, group, i, first, end);
        int64_t cost = w.in_units * COST_UNIT + w.in_blocks * COST_WHOLE;
        atomic_fetch_add_explicit(&m->n_scored, w.in_units + w.in_blocks, memory_order_relaxed);
        atomic_fetch_add_explicit(&m->cost, cost, memory_order_relaxed);
    }
}

/* ---- whether it pays ---- */

static bool has_sketches(const struct msa *m)
{
    for (int i = 0; i < m->n_rows; i++)
        if (!m->is_sketched[step_row(m, &m->rows[i])])
            return false;
    return true;
}

static void learn(struct msa_layer *l, int64_t cost, int64_t keys)
{
    if (cost + keys * COST_SKETCH <= keys * COST_SCAN) {
        l->penalty = 0;
        return;
    }
    l->penalty = l->penalty == 0 ? FIRST_PENALTY : min_int(2 * l->penalty, LARGEST_PENALTY);
    l->n_without = l->penalty;
}

bool msa_bound_wave(struct msa *m, int64_t keys)
{
    struct msa_layer *l = &m->layers[m->layer];
    struct pool *pool = m->compute->pool;
    if (!m->has_bounds || m->n_blocks < LEAST_BLOCKS * m->config.top_k)
        return false;
    if (l->n_without > 0) {
        l->n_without--;
        return false;
    }
    pool_run(pool, sketch_task, m, m->n_rows);
    if (!has_sketches(m))
        return false;
    atomic_store_explicit(&m->n_scored, 0, memory_order_relaxed);
    atomic_store_explicit(&m->cost, 0, memory_order_relaxed);
    m->counts.tried++;
    pool_run(pool, bound_task, m, msa_spans(m) * m->n_wave);
    msa_select_all(m);
    int lists = m->n_rows * m->config.n_heads;
    m->tries_per_task = lists < TRIES_PER_THREAD * pool_threads(pool) ? 1 : n_tries(m);
    int parts = (n_tries(m) + m->tries_per_task - 1) / m->tries_per_task;
    pool_run(pool, try_task, m, lists * parts);
    pool_run(pool, need_task, m, m->n_rows);
    pool_run(pool, score_task, m, msa_spans(m) * m->n_wave);
    msa_select_all(m);
    m->counts.scored += atomic_load_explicit(&m->n_scored, memory_order_relaxed);
    learn(l, atomic_load_explicit(&m->cost, memory_order_relaxed), keys);
    return true;
}
