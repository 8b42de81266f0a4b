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
 * Reading every key of a long context is most of the work, so it is not done where it need not be
 * (msa_bound.c): the keys' sketches (index_sketch.h), a quarter of their bytes, say how much each
 * block can score at most; the blocks that can score most are scored; and of the rest only those
 * keys are whose bound reaches what is needed for their block to be chosen.  What is chosen is
 * exactly the same.  Where many keys had to be scored after all, a layer goes without bounds for
 * a while.
 *
 * Owner: engine thread; msa_choose() runs its parts on the pool. */
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/context.h"
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
    bool chooses; /* in a sparse layer the rows see less than everything */
    /* Rows whose context lies here in part (engine/context.h): the next ones come from, or go on to,
     * elsewhere.  Positions count from where this part begins. */
    bool is_part;
    bool ends;  /* the rows lie in this part */
    int n_here; /* positions of this part, if they do not; otherwise INT_MAX */
};

/* How a row's blocks are found.
 *   BEST     as above
 *   SCAN     the same blocks, every one scored: what BEST is compared with
 *   LAST     its own and the top_k - 1 before it, whatever their scores: a sliding window */
enum msa_choice { MSA_BEST, MSA_SCAN, MSA_LAST };

/* A row of a wave, and the member of the wave that it belongs to. */
struct msa_row {
    int group, row;
};

/* How bounds have paid in a layer. */
struct msa_layer {
    int n_without; /* waves to come that go without */
    int penalty;   /* how many those were the last time */
};

/* Keys that rows could have been scored against, and those that they were; waves, and those of
 * them with bounds. */
struct msa_counts {
    int64_t keys, scored, waves, tried;
};

/* Between two calls only queries, keys, blocks and counts mean something to others. */
struct msa {
    struct sparse_config config;
    enum msa_choice choice;
    bool has_bounds;
    int max_rows;
    size_t query_stride, key_stride;  /* floats */
    float *queries;                   /* [max_rows, query_stride]: heads one after another */
    float *keys;                      /* [max_rows, key_stride] */
    int32_t *blocks;                  /* [max_rows, n_heads, top_k]: chosen, ascending */
    struct context_candidate *ranked; /* [max_rows, n_heads, top_k - 1] */
    float *scores;                    /* [rows of a wave, n_heads, blocks of the longest] */
    size_t n_scores;
    size_t bytes;
    struct msa_counts counts;

    /* Of bounds. */
    struct msa_layer *layers;      /* [n_layers] */
    size_t integer_stride;         /* bytes */
    int8_t *integers;              /* [max_rows, n_heads, integer_stride]: queries */
    struct sketch_query *sketches; /* [max_rows, n_heads] */
    bool *is_sketched;             /* [max_rows] */
    float *tried;                  /* [max_rows, n_heads, top_k - 1, n_heads]: scores */
    float *needed;                 /* [max_rows, n_heads]: scores below are not chosen */
    float *units;                  /* [rows of a wave, n_heads, units of all blocks]: bounds */
    size_t n_units;
    atomic_llong n_scored, cost; /* of the wave: keys; msa_bound.c */

    /* The call in progress. */
    const struct compute *compute;
    const struct kv *kv;
    const struct row_group *groups;
    const int32_t *which; /* indices of groups */
    int layer, first, n_wave, n_blocks, span_blocks;
    bool ranks;           /* msa_rank() */
    struct msa_row *rows; /* [max_rows]: of the wave */
    int n_rows, tries_per_task;
};

struct msa_options {
    int max_rows, max_positions, n_layers;
    enum msa_choice choice;
};
/* Room for steps of max_rows rows and contexts of max_positions.  E_NOMEM. */
int msa_open(struct msa *m, const struct sparse_config *config, const struct msa_options *o,
             struct err *e);
void msa_close(struct msa *m);

/* Whether a row at this position of its sequence sees less than everything. */
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

/* Of groups that are parts: which of the part's whole blocks before the rows' own one are the best
 * top_k - 1.  All of the groups have at least top_k of them (is_long), or none has. */
void msa_rank(struct msa *m, const struct compute *c, const struct kv *kv, int layer,
              const struct row_group *groups, const int32_t *which, int n);
bool msa_is_long(const struct msa *m, const struct row_group *g);
/* [top_k - 1], best first: a higher score, and of equal ones the lower block. */
struct context_candidate *msa_ranked(const struct msa *m, int row, int head);
/* Puts `more` [top_k - 1], whose blocks begin at `origin`, among those of a row, whose list is as long.
 */
void msa_merge_ranked(const struct msa *m, struct context_candidate *ranked,
                      const struct context_candidate *more, int32_t origin);
/* The rule for what was merged: there are top_k - 1, and `own` is seen, too. */
void msa_take_ranked(struct msa *m, int row, int head, int own);

/* The rule alone, for the scores of the blocks 0 .. own-1 (own >= top_k): blocks [top_k]
 * ascending, the last of them `own`. */
void msa_select(const float *scores, int own, int top_k, int32_t *blocks);
