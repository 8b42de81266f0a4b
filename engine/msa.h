/* engine/msa.h - MiniMax Sparse Attention: which blocks of keys a row sees (m3.md 5.1 to 5.3).
 *
 * A sparse layer has, beside q, k and v, small index queries (one head for each KV head) and
 * one index key per position.  A row at position t, in block B = t / block_size, sees every
 * block while there are at most top_k of them.  Beyond that, for each index head by itself, it
 * sees B and the top_k - 1 of the blocks 0 .. B-1 whose best score
 *
 *     max over the keys j of the block of  sum over d of query[d] * key_j[d]
 *
 * is largest; of equal scores the lower block goes ahead, a NaN counts as no score.  The other
 * blocks of a head's KV group do not exist for that row.  Attention then is exact over what is
 * seen (engine/attention.h), in ascending order of positions.
 *
 * The choice depends on the row's query and the cached index keys alone: not on chunks, other
 * rows, threads or the machine.  Index projections are always used as the checkpoint stores
 * them, like the router: formats do not change what is seen more than they must.
 *
 * Owner: engine thread; msa_choose() runs its parts on the pool. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/gemm.h"
#include "engine/kv.h"
#include "model/config.h"

enum {
    /* Rows that attention works on together: consecutive, of one sequence, positions within one
     * multiple of it.  They lie in one block. */
    GROUP_ROWS = 16,
};
struct row_group {
    const struct kv_seq *seq;
    int first_row, n_rows;
    int position; /* of first_row */
};

/* Between two calls only queries, keys and blocks mean something to others. */
struct msa {
    struct sparse_config config;
    int max_rows;
    size_t query_stride, key_stride; /* floats */
    float *queries;                  /* [max_rows, query_stride]: heads one after another */
    float *keys;                     /* [max_rows, key_stride] */
    int32_t *blocks;                 /* [max_rows, n_heads, top_k]: chosen, ascending */
    float *scores;                   /* [rows of a wave, n_heads, blocks of the longest] */
    size_t n_scores;
    size_t bytes;

    /* The call in progress. */
    const struct compute *compute;
    const struct kv *kv;
    const struct row_group *groups;
    const int32_t *which; /* indices of groups */
    int layer, first, n_wave, n_blocks, span_blocks;
};

/* Room for steps of max_rows rows and contexts of max_positions.  E_NOMEM. */
int msa_open(struct msa *m, const struct sparse_config *config, int max_rows, int max_positions,
             struct err *e);
void msa_close(struct msa *m);

/* Whether a row at this position sees less than everything. */
static inline bool msa_chooses(const struct sparse_config *c, int position)
{
    return position / c->block_size >= c->top_k;
}

/* Chooses for every row of the groups which[0 .. n-1], all of whose rows msa_chooses(); their
 * queries are ready, their keys written. */
void msa_choose(struct msa *m, const struct compute *c, const struct kv *kv, int layer,
                const struct row_group *groups, const int32_t *which, int n);
/* What was chosen: top_k blocks, ascending. */
const int32_t *msa_blocks(const struct msa *m, int row, int head);

/* The rule alone, for the scores of the blocks 0 .. own-1 (own >= top_k): blocks [top_k]
 * ascending, the last of them `own`. */
void msa_select(const float *scores, int own, int top_k, int32_t *blocks);
