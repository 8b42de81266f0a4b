/* engine/msa.c - see msa.h.
 *
 * Scoring is most of the work of a long context: every index key is read once per group of
 * rows.  A task is a group and a span of blocks; the rows of a group follow each other page by
 * page, so that a page is read from memory once and from a cache for the others. */
#include "engine/msa.h"

#include <math.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/msa_parts.h"

enum {
    FLOATS_UNIT = 16,
    /* Scores, or bounds, that are kept at a time, if one group of the longest context does not need
     * more. */
    WAVE_FLOATS = 4 << 20,
    TASKS_PER_THREAD = 8,
    /* A span is at least so many positions. */
    SPAN_POSITIONS = 512,
};

static void *scratch(struct msa *m, size_t count, size_t unit, size_t unit_bytes)
{
    size_t bytes;
    if (!mem_mul(count, unit, &bytes) || !mem_mul(bytes, unit_bytes, &bytes))
        return NULL;
    m->bytes += bytes;
    return mem_try_aligned(bytes);
}

/* Of what has so many floats a row: those of one group at least. */
static size_t wave_floats(size_t rows, size_t row_floats)
{
    size_t group, all;
    if (!mem_mul(GROUP_ROWS, row_floats, &group))
        return 0;
    if (!mem_mul(rows, row_floats, &all) || all > WAVE_FLOATS)
        all = WAVE_FLOATS;
    return all > group ? all : group;
}

int msa_open(struct msa *m, const struct sparse_config *config, const struct msa_options *o,
             struct err *e)
{
    *m = (struct msa){.config = *config,
                      .max_rows = o->max_rows,
                      .choice = o->choice,
                      .has_bounds = o->choice == MSA_BEST && config->top_k > 1 &&
                                    config->head_dim <= SKETCH_MAX_DIM};
    size_t rows = (size_t)o->max_rows, heads = (size_t)config->n_heads;
    size_t dim = (size_t)config->head_dim, n_tried = (size_t)config->top_k * heads;
    size_t blocks = (size_t)(o->max_positions / config->block_size) + 1;
    m->query_stride = mem_round_up(heads * dim, FLOATS_UNIT);
    m->key_stride = mem_round_up(dim, FLOATS_UNIT);
    m->n_scores = wave_floats(rows, heads * blocks);
    m->n_units = wave_floats(rows, heads * blocks * (size_t)(config->block_size / SKETCH_UNIT));
    m->queries = scratch(m, rows, m->query_stride, sizeof(float));
    m->keys = scratch(m, rows, m->key_stride, sizeof(float));
    m->blocks = scratch(m, rows * heads, (size_t)config->top_k, sizeof(*m->blocks));
    m->ranked = scratch(m, rows * heads, (size_t)config->top_k, sizeof(*m->ranked));
    m->scores = scratch(m, m->n_scores, 1, sizeof(float));
    m->layers = mem_array((size_t)o->n_layers, sizeof(*m->layers));
    m->rows = mem_array(rows, sizeof(*m->rows));
    m->is_sketched = mem_array(rows, sizeof(*m->is_sketched));
    m->integer_stride = sketch_query_stride((int)dim);
    m->integers = scratch(m, rows * heads, m->integer_stride, 1);
    m->sketches = scratch(m, rows, heads, sizeof(*m->sketches));
    m->tried = scratch(m, rows * heads, n_tried, sizeof(float));
    m->needed = scratch(m, rows, heads, sizeof(float));
    m->units = scratch(m, m->has_bounds ? m->n_units : 1, 1, sizeof(float));
    if (m->n_scores > 0 && m->n_units > 0 && m->queries && m->keys && m->blocks && m->ranked &&
        m->scores && m->integers && m->sketches && m->tried && m->needed && m->units)
        return 0;
    msa_close(m);
    return err_set(e, E_NOMEM, "sparse attention: no memory for steps of %d rows at %d positions",
                   o->max_rows, o->max_positions);
}

void msa_close(struct msa *m)
{
    mem_free(m->queries);
    mem_free(m->keys);
    mem_free(m->blocks);
    mem_free(m->ranked);
    mem_free(m->scores);
    mem_free(m->layers);
    mem_free(m->rows);
    mem_free(m->is_sketched);
    mem_free(m->integers);
    mem_free(m->sketches);
    mem_free(m->tried);
    mem_free(m->needed);
    mem_free(m->units);
    *m = (struct msa){0};
}

int32_t *msa_chosen(const struct msa *m, int row, int head)
{
    size_t index = (size_t)row * (size_t)m->config.n_heads + (size_t)head;
    return m->blocks + index * (size_t)m->config.top_k;
}

const int32_t *msa_blocks(const struct msa *m, int row, int head)
{
    return msa_chosen(m, row, head);
}

/* ---- the rule ---- */

/* A heap of blocks, the one that would go first on top: the lowest score, and of equal ones
 * the highest block. */
static bool goes_before(const float *scores, int32_t a, int32_t b)
{
    return scores[a] < scores[b] || (scores[a] == scores[b] && a > b);
}

static void sink(const float *scores, int32_t *heap, int n, int at)
{
    int32_t moved = heap[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && goes_before(scores, heap[child + 1], heap[child]))
            child++;
        if (!goes_before(scores, heap[child], moved))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static void sort_ascending(int32_t *blocks, int n)
{
    for (int i = 1; i < n; i++) {
        int32_t moved = blocks[i];
        int at = i;
        for (; at > 0 && blocks[at - 1] > moved; at--)
            blocks[at] = blocks[at - 1];
        blocks[at] = moved;
    }
}

void msa_select(const float *scores, int own, int top_k, int32_t *blocks)
{
    int n = top_k - 1;
    must(n >= 0 && own >= top_k);
    for (int b = 0; b < n; b++)
        blocks[b] = b;
    for (int at = n / 2 - 1; at >= 0; at--)
        sink(scores, blocks, n, at);
    /* Strictly: of equal scores the lower block stays. */
    for (int b = n; b < own && n > 0; b++)
        if (scores[b] > scores[blocks[0]]) {
            blocks[0] = b;
            sink(scores, blocks, n, 0);
        }
    sort_ascending(blocks, n);
    blocks[n] = own;
}

/* ---- of parts ---- */

struct context_candidate *msa_ranked(const struct msa *m, int row, int head)
{
    size_t index = (size_t)row * (size_t)m->config.n_heads + (size_t)head;
    return m->ranked + index * (size_t)(m->config.top_k - 1);
}

static bool is_better(const struct context_candidate *a, const struct context_candidate *b)
{
    return b->block < 0 || a->score > b->score || (a->score == b->score && a->block < b->block);
}

/* Into a list of n, best first, of which the last falls out. */
static void put_ranked(struct context_candidate *list, int n, struct context_candidate new)
{
    if (n == 0 || !is_better(&new, &list[n - 1]))
        return;
    int at = n - 1;
    for (; at > 0 && is_better(&new, &list[at - 1]); at--)
        list[at] = list[at - 1];
    list[at] = new;
}

void msa_merge_ranked(const struct msa *m, struct context_candidate *ranked,
                      const struct context_candidate *more, int32_t origin)
{
    int n = m->config.top_k - 1;
    for (int i = 0; i < n && more[i].block >= 0; i++)
        put_ranked(ranked, n, (struct context_candidate){more[i].score, origin + more[i].block});
}

void msa_take_ranked(struct msa *m, int row, int head, int own)
{
    const struct context_candidate *ranked = msa_ranked(m, row, head);
    int32_t *blocks = msa_chosen(m, row, head);
    int n = m->config.top_k - 1;
    for (int i = 0; i < n; i++)
        blocks[i] = ranked[i].block;
    sort_ascending(blocks, n);
    blocks[n] = own;
}

/* Of the blocks 0 .. own-1 of a part: all of them if they are fewer than top_k. */
static void rank(struct msa *m, const float *scores, int own, int row, int head)
{
    struct context_candidate *ranked = msa_ranked(m, row, head);
    int n = m->config.top_k - 1, n_blocks = own < m->config.top_k ? own : n;
    const int32_t *blocks = msa_chosen(m, row, head);
    for (int i = 0; i < n; i++)
        ranked[i].block = -1;
    for (int i = 0; i < n_blocks; i++) {
        int32_t block = own < m->config.top_k ? i : blocks[i];
        put_ranked(ranked, n, (struct context_candidate){scores[block], block});
    }
}

/* ---- scores ---- */

/* The keys of one page that belong to a block, for all rows of a group. */
static void score_keys(const struct msa *m, int group, int block, int first_key, int n_keys)
{
    const struct row_group *g = msa_group(m, group);
    struct index_block b = msa_index_block(m, g, first_key, n_keys);
    b.largest_stride = (size_t)m->n_blocks;
    int page = first_key / KV_PAGE_TOKENS;
    if (page + 1 < g->seq->n_pages)
        b.next = kv_index_page(m->kv, g->seq, m->layer, page + 1);
    for (int row = 0; row < g->n_rows; row++) {
        b.q = m->queries + (size_t)(g->first_row + row) * m->query_stride;
        b.largest = msa_scores(m, group, row) + block;
        m->compute->kernels->index_largest[kv_index_format(kv_format_of(m->kv))](&b);
        b.next = NULL;
    }
}

/* Task = (span of blocks, group), groups fastest. */
static void score_task(void *ctx, int task)
{
    const struct msa *m = ctx;
    int group = task % m->n_wave, size = m->config.block_size;
    int first = task / m->n_wave * m->span_blocks, end = msa_begin_span(m, group, first);
    int step = min_int(size, KV_PAGE_TOKENS);
    for (int b = first; b < end; b++)
        for (int key = b * size; key < (b + 1) * size; key += step)
            score_keys(m, group, b, key, step);
}

/* Task = (row of the wave, head). */
static void select_task(void *ctx, int task)
{
    struct msa *m = ctx;
    const struct msa_row *r = &m->rows[task / m->config.n_heads];
    int head = task % m->config.n_heads;
    const struct row_group *g = msa_group(m, r->group);
    int row = g->first_row + r->row, own = msa_own_block(m, g);
    const float *scores = msa_scores(m, r->group, r->row) + (size_t)head * (size_t)m->n_blocks;
    if (!m->ranks || own >= m->config.top_k)
        msa_select(scores, own, m->config.top_k, msa_chosen(m, row, head));
    if (m->ranks)
        rank(m, scores, own, row, head);
}

void msa_select_all(struct msa *m)
{
    pool_run(m->compute->pool, select_task, m, m->n_rows * m->config.n_heads);
}

static void plan_wave(struct msa *m)
{
    int threads = pool_threads(m->compute->pool);
    int64_t share = (int64_t)m->n_blocks * m->n_wave / ((int64_t)threads * TASKS_PER_THREAD);
    int least = SPAN_POSITIONS / m->config.block_size;
    m->span_blocks = share > least ? (int)share : least > 0 ? least : 1;
    if (m->span_blocks > m->n_blocks)
        m->span_blocks = m->n_blocks;
    m->n_rows = 0;
    for (int group = 0; group < m->n_wave; group++)
        for (int row = 0; row < msa_group(m, group)->n_rows; row++)
            m->rows[m->n_rows++] = (struct msa_row){group, row};
}

static void choose_wave(struct msa *m)
{
    plan_wave(m);
    int64_t keys = 0;
    for (int i = 0; i < m->n_wave; i++)
        keys += (int64_t)msa_own_block(m, msa_group(m, i)) * msa_group(m, i)->n_rows;
    keys *= m->config.block_size;
    m->counts.waves++;
    m->counts.keys += keys;
    if (msa_bound_wave(m, keys))
        return;
    m->counts.scored += keys;
    pool_run(m->compute->pool, score_task, m, msa_spans(m) * m->n_wave);
    msa_select_all(m);
}

static void choose_last(struct msa *m, const struct row_group *g)
{
    int top_k = m->config.top_k, first = msa_own_block(m, g) - top_k + 1;
    for (int row = g->first_row; row < g->first_row + g->n_rows; row++)
        for (int head = 0; head < m->config.n_heads; head++)
            for (int i = 0; i < top_k; i++)
                msa_chosen(m, row, head)[i] = first + i;
}

static void choose(struct msa *m, int n)
{
    m->n_blocks = 1;
    for (int i = 0; i < n; i++) {
        int own = msa_own_block(m, &m->groups[m->which[i]]);
        m->n_blocks = own > m->n_blocks ? own : m->n_blocks;
    }
    size_t group_scores = (size_t)GROUP_ROWS * (size_t)m->config.n_heads * (size_t)m->n_blocks;
    must(group_scores <= m->n_scores);
    int wave = (int)(m->n_scores / group_scores);
    if (m->has_bounds)
        wave = min_int(wave, msa_bound_groups(m));
    for (m->first = 0; m->first < n; m->first += m->n_wave) {
        m->n_wave = min_int(wave, n - m->first);
        choose_wave(m);
    }
}

static void begin(struct msa *m, const struct compute *c, const struct kv *kv, int layer,
                  const struct row_group *groups, const int32_t *which)
{
    m->compute = c;
    m->kv = kv;
    m->layer = layer;
    m->groups = groups;
    m->which = which;
}

void msa_choose(struct msa *m, const struct compute *c, const struct kv *kv, int layer,
                const struct row_group *groups, const int32_t *which, int n)
{
    begin(m, c, kv, layer, groups, which);
    m->ranks = false;
    if (m->choice == MSA_LAST)
        for (int i = 0; i < n; i++)
            choose_last(m, &groups[which[i]]);
    else
        choose(m, n);
}

bool msa_is_long(const struct msa *m, const struct row_group *g)
{
    return msa_own_block(m, g) >= m->config.top_k;
}

void msa_rank(struct msa *m, const struct compute *c, const struct kv *kv, int layer,
              const struct row_group *groups, const int32_t *which, int n)
{
    must(m->choice != MSA_LAST);
    begin(m, c, kv, layer, groups, which);
    m->ranks = true;
    choose(m, n);
}
