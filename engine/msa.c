/* engine/msa.c - see msa.h.
 *
 * Scoring is most of the work of a long context: every index key is read once per group of
 * rows.  A task is a group and a span of blocks; the rows of a group follow each other page by
 * page, so that a page is read from memory once and from a cache for the others. */
#include "engine/msa.h"

#include <math.h>

#include "base/mem.h"
#include "base/must.h"

enum {
    FLOATS_UNIT = 16,
    /* Scores that are kept at a time, if one group of the longest context does not need more. */
    WAVE_SCORES = 4 << 20,
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

int msa_open(struct msa *m, const struct sparse_config *config, int max_rows, int max_positions,
             struct err *e)
{
    *m = (struct msa){.config = *config, .max_rows = max_rows};
    size_t rows = (size_t)max_rows, heads = (size_t)config->n_heads;
    size_t dim = (size_t)config->head_dim;
    size_t blocks = (size_t)(max_positions / config->block_size) + 1;
    m->query_stride = mem_round_up(heads * dim, FLOATS_UNIT);
    m->key_stride = mem_round_up(dim, FLOATS_UNIT);
    size_t group;
    if (mem_mul(GROUP_ROWS * heads, blocks, &group))
        m->n_scores = group;
    size_t all;
    if (mem_mul(rows * heads, blocks, &all) && all > group)
        m->n_scores = all < WAVE_SCORES ? all : group > WAVE_SCORES ? group : WAVE_SCORES;
    m->queries = scratch(m, rows, m->query_stride, sizeof(float));
    m->keys = scratch(m, rows, m->key_stride, sizeof(float));
    m->blocks = scratch(m, rows * heads, (size_t)config->top_k, sizeof(*m->blocks));
    m->scores = scratch(m, m->n_scores, 1, sizeof(float));
    if (m->n_scores > 0 && m->queries && m->keys && m->blocks && m->scores)
        return 0;
    msa_close(m);
    return err_set(e, E_NOMEM, "sparse attention: no memory for steps of %d rows at %d positions",
                   max_rows, max_positions);
}

void msa_close(struct msa *m)
{
    mem_free(m->queries);
    mem_free(m->keys);
    mem_free(m->blocks);
    mem_free(m->scores);
    *m = (struct msa){0};
}

const int32_t *msa_blocks(const struct msa *m, int row, int head)
{
    size_t index = (size_t)row * (size_t)m->config.n_heads + (size_t)head;
    return m->blocks + index * (size_t)m->config.top_k;
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

/* ---- scores ---- */

/* Of a row, a member of the wave, and its first head. */
static float *row_scores(const struct msa *m, int group, int row)
{
    size_t index = (size_t)group * GROUP_ROWS + (size_t)row;
    return m->scores + index * (size_t)m->config.n_heads * (size_t)m->n_blocks;
}

/* The keys of one page that belong to a block, for all rows of a group. */
static void score_keys(const struct msa *m, int group, int block, int first_key, int n_keys)
{
    const struct row_group *g = &m->groups[m->which[m->first + group]];
    int page = first_key / KV_PAGE_TOKENS;
    size_t skip = (size_t)(first_key % KV_PAGE_TOKENS) * (size_t)m->config.head_dim;
    enum kv_format format = kv_index_format(kv_format_of(m->kv));
    const char *keys = kv_index_page(m->kv, g->seq, m->layer, page);
    struct index_block b = {.n_queries = m->config.n_heads,
                            .q_stride = m->config.head_dim,
                            .k = keys + skip * (format == KV_F32 ? 4 : 2),
                            .head_dim = m->config.head_dim,
                            .n_keys = n_keys,
                            .largest_stride = (size_t)m->n_blocks};
    if (page + 1 < g->seq->n_pages)
        b.next = kv_index_page(m->kv, g->seq, m->layer, page + 1);
    for (int row = 0; row < g->n_rows; row++) {
        b.q = m->queries + (size_t)(g->first_row + row) * m->query_stride;
        b.largest = row_scores(m, group, row) + block;
        m->compute->kernels->index_largest[format](&b);
        b.next = NULL;
    }
}

static int own_block(const struct msa *m, const struct row_group *g)
{
    return g->position / m->config.block_size;
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Task = (span of blocks, group), groups fastest. */
static void score_task(void *ctx, int task)
{
    const struct msa *m = ctx;
    int group = task % m->n_wave, size = m->config.block_size;
    const struct row_group *g = &m->groups[m->which[m->first + group]];
    int first = task / m->n_wave * m->span_blocks;
    int end = min_int(first + m->span_blocks, own_block(m, g));
    for (int row = 0; row < g->n_rows; row++)
        for (int head = 0; head < m->config.n_heads; head++)
            for (int b = first; b < end; b++)
                row_scores(m, group, row)[(size_t)head * (size_t)m->n_blocks + (size_t)b] =
                    -INFINITY;
    int step = min_int(size, KV_PAGE_TOKENS);
    for (int b = first; b < end; b++)
        for (int key = b * size; key < (b + 1) * size; key += step)
            score_keys(m, group, b, key, step);
}

/* Task = (group, one of its rows). */
static void select_task(void *ctx, int task)
{
    const struct msa *m = ctx;
    int group = task / GROUP_ROWS, row = task % GROUP_ROWS;
    const struct row_group *g = &m->groups[m->which[m->first + group]];
    if (row >= g->n_rows)
        return;
    const float *scores = row_scores(m, group, row);
    size_t index = (size_t)(g->first_row + row) * (size_t)m->config.n_heads;
    int32_t *blocks = m->blocks + index * (size_t)m->config.top_k;
    for (int head = 0; head < m->config.n_heads; head++) {
        msa_select(scores, own_block(m, g), m->config.top_k, blocks);
        scores += m->n_blocks;
        blocks += m->config.top_k;
    }
}

static void choose_wave(struct msa *m)
{
    int threads = pool_threads(m->compute->pool);
    int64_t share = (int64_t)m->n_blocks * m->n_wave / ((int64_t)threads * TASKS_PER_THREAD);
    int least = SPAN_POSITIONS / m->config.block_size;
    m->span_blocks = share > least ? (int)share : least > 0 ? least : 1;
    if (m->span_blocks > m->n_blocks)
        m->span_blocks = m->n_blocks;
    int n_spans = (m->n_blocks + m->span_blocks - 1) / m->span_blocks;
    pool_run(m->compute->pool, score_task, m, n_spans * m->n_wave);
    pool_run(m->compute->pool, select_task, m, m->n_wave * GROUP_ROWS);
}

void msa_choose(struct msa *m, const struct compute *c, const struct kv *kv, int layer,
                const struct row_group *groups, const int32_t *which, int n)
{
    m->compute = c;
    m->kv = kv;
    m->layer = layer;
    m->groups = groups;
    m->which = which;
    m->n_blocks = 1;
    for (int i = 0; i < n; i++) {
        int own = own_block(m, &groups[which[i]]);
        m->n_blocks = own > m->n_blocks ? own : m->n_blocks;
    }
    size_t group_scores = (size_t)GROUP_ROWS * (size_t)m->config.n_heads * (size_t)m->n_blocks;
    must(group_scores <= m->n_scores);
    int wave = (int)(m->n_scores / group_scores);
    for (m->first = 0; m->first < n; m->first += m->n_wave) {
        m->n_wave = min_int(wave, n - m->first);
        choose_wave(m);
    }
}
