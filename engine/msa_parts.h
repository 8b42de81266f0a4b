/* engine/msa_parts.h - what the files of msa.h share, and nobody else: msa.c has the rule and the
 * plain scan, msa_bound.c the same choice with fewer keys read. */
#pragma once

#include <math.h>

#include "engine/index_sketch.h"
#include "engine/msa.h"

static inline int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* A member of the wave. */
static inline const struct row_group *msa_group(const struct msa *m, int group)
{
    return &m->groups[m->which[m->first + group]];
}

/* The block that no row of a group has to choose, all before it being there to be chosen: their own one,
 * or the first behind the part that is here. */
static inline int msa_own_block(const struct msa *m, const struct row_group *g)
{
    return min_int(g->position, g->n_here) / m->config.block_size;
}

/* [n_heads, n_blocks] of a row of a group. */
static inline float *msa_scores(const struct msa *m, int group, int row)
{
    size_t index = (size_t)group * GROUP_ROWS + (size_t)row;
    return m->scores + index * (size_t)m->config.n_heads * (size_t)m->n_blocks;
}

static inline int msa_spans(const struct msa *m)
{
    return (m->n_blocks + m->span_blocks - 1) / m->span_blocks;
}

/* Where the span from `first` on ends for a group, whose scores there become -infinity. */
static inline int msa_begin_span(const struct msa *m, int group, int first)
{
    const struct row_group *g = msa_group(m, group);
    int end = min_int(first + m->span_blocks, msa_own_block(m, g));
    for (int row = 0; row < g->n_rows; row++)
        for (int head = 0; head < m->config.n_heads; head++)
            for (int b = first; b < end; b++)
                msa_scores(m, group, row)[(size_t)head * (size_t)m->n_blocks + (size_t)b] =
                    -INFINITY;
    return end;
}

/* n_keys keys of one page; queries, largest and its stride are the caller's. */
static inline struct index_block msa_index_block(const struct msa *m, const struct row_group *g,
                                                 int first_key, int n_keys)
{
    size_t skip = (size_t)(first_key % KV_PAGE_TOKENS) * (size_t)m->config.head_dim;
    enum kv_format format = kv_index_format(kv_format_of(m->kv));
    const char *keys = kv_index_page(m->kv, g->seq, m->layer, first_key / KV_PAGE_TOKENS);
    return (struct index_block){.n_queries = m->config.n_heads,
                                .q_stride = m->config.head_dim,
                                .k = keys + skip * (format == KV_F32 ? 4 : 2),
                                .head_dim = m->config.head_dim,
                                .n_keys = n_keys};
}

/* Where a row's chosen blocks are put: [top_k]. */
int32_t *msa_chosen(const struct msa *m, int row, int head);
/* msa_select() for every row and head of the wave. */
void msa_select_all(struct msa *m);

/* Groups that a wave may have where bounds are asked. */
int msa_bound_groups(const struct msa *m);
/* Chooses for the wave, of which the rows have so many keys to be scored, or returns false. */
bool msa_bound_wave(struct msa *m, int64_t keys);
