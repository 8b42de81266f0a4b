/* engine/attention_parts.h - what the files of attention.h share, and nobody else.
 *
 *   attention.c         scratch, the plan of a step, the order of a layer
 *   attention_weights.c a layer's weights
 *   attention_input.c   norm, projections, rotation, the cache: what comes before the scores
 *   attention_fold.c    chunks of keys folded and merged: rows that see everything
 *   attention_chosen.c  the same for rows that see chosen blocks
 *   attention_far.c     rows whose contexts go on in other places, seen from their side
 *   context.c           and in such a place
 *
 * How the work is shared out.  A group is up to GROUP_ROWS consecutive rows of one sequence;
 * its queries for one KV head go through a block of keys together, so prefill reads and
 * decodes the cache once per group and not once per row.
 *
 * With many groups a task is a group and a KV head with all their chunks, merged on the way
 * ("whole").  With few - decode at depth - the chunks too are shared out: a task is a span of
 * chunks, whose partial results are kept and merged per row and KV head afterwards, in waves
 * of as many chunks as there is room for.  The additions are the same either way. */
#pragma once

#include "engine/attention.h"
#include "engine/forward.h"
#include "engine/msa.h"
#include "engine/rope.h"

enum {
    /* Tasks per thread, so that a slower thread can leave some to others. */
    TASKS_PER_THREAD = 4,
    LANES = 16,
};

struct group_list {
    int32_t *groups; /* [max_rows]: indices */
    int n, n_chunks; /* chunks: of the longest */
    bool is_whole;
};
/* All of them, for a layer in which everybody sees everything; in a sparse layer those that do
 * and those that do not.  Of the latter those whose blocks are chosen here, and the others, of which
 * the best here are ranked: of many blocks and of few (msa_rank()). */
enum { LIST_ALL, LIST_SEEING, LIST_CHOOSING, LIST_HERE, LIST_LONG, LIST_SHORT, N_LISTS };

/* What the chunks so far gave, of one row and head; o follows in its own array. */
struct merged {
    float max, sum;
};

/* One lane's rows of the present step. */
struct attention_plan {
    int n_rows, n_groups;
    struct group_list lists[N_LISTS];
    struct row_group *groups; /* [max_rows] */
    int32_t *row_group;       /* [max_rows]: index into groups */
    struct kv_seq *here;      /* [max_rows]: what the groups' sequences have here */
    bool has_parts;
    float *sine, *cosine; /* [max_rows, rope.half] */
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

    struct attention_plan plans[FORWARD_LANES];
    struct attention_plan *plan; /* of the lane whose turn it is: all below serves it alone */

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
    struct far *far;            /* attention_far.c; NULL: all contexts are here */
    size_t scratch_bytes;

    /* The call in progress. */
    const struct attention_weights *weights;
    struct kv *kv;
    int layer, first_chunk, wave_chunks, span_chunks;
    const struct group_list *list;
    float *x;
};

/* ---- attention.c ---- */

/* The rows of the plan's groups, and whose turn it is in which list. */
void attention_plan_lists(struct attention *a);

static inline void attention_run(struct attention *a, pool_body *body, int n_tasks)
{
    pool_run(a->compute.pool, body, a, n_tasks);
}

static inline int min_int(int a, int b)
{
    return a < b ? a : b;
}

static inline int row_position(const struct attention *a, int row)
{
    const struct row_group *g = &a->plan->groups[a->plan->row_group[row]];
    return g->position + (row - g->first_row);
}

/* Chunks that the last row of a group sees, of those that are here. */
static inline int group_chunks(const struct row_group *g)
{
    int last = g->position + g->n_rows - 1;
    return last < g->n_here ? last / ATTENTION_CHUNK + 1 : g->n_here / ATTENTION_CHUNK;
}

static inline bool row_chooses(const struct attention *a, int row)
{
    return a->plan->groups[a->plan->row_group[row]].chooses;
}

/* Index of a row's first query for a KV head, within one chunk. */
static inline size_t query_index(const struct attention *a, int kv_head, int row)
{
    return ((size_t)kv_head * (size_t)a->plan->n_rows + (size_t)row) * (size_t)a->group_heads;
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

/* ---- attention_input.c ---- */

/* x to q, k, v and the cache, for all rows of the layer in progress. */
void attention_input(struct attention *a);
/* What the heads made, times wo, added to x. */
void attention_output(struct attention *a);
/* Scaling and, for an int8 cache, quantising of a row's rotated queries, which lie in q. */
void attention_prepare_queries(struct attention *a, int row);

/* ---- attention_fold.c ---- */

/* Where a chunk stands among those of a row. */
struct place {
    bool is_first, is_last;
};

/* The queries from `query` on, to be folded from nothing into the partial results at `partial`. */
struct attend_block attention_begin_chunk(struct attention *a, size_t query, size_t n_queries,
                                          size_t partial);
/* A chunk of which the partial results begin at `first_partial`, for one row and KV head.
 * After the row's last chunk its heads go into q, whose values are no longer needed. */
void attention_merge_row(struct attention *a, int row, int kv_head, struct place place,
                         size_t first_partial);
/* Partial results of one chunk for all rows and heads. */
static inline size_t chunk_partials(const struct attention *a)
{
    return (size_t)a->plan->n_rows * (size_t)a->n_heads;
}

/* The rows of a list, which see every key. */
void attention_attend_all(struct attention *a, int list);

/* ---- attention_chosen.c ---- */

/* The blocks of LIST_HERE; then what the rows of LIST_CHOOSING see, whoever chose it. */
void attention_choose(struct attention *a);
/* The best blocks here of rows that are parts. */
void attention_rank(struct attention *a);
void attention_attend_chosen(struct attention *a);

/* ---- attention_far.c ---- */

/* Pages of a sequence that lie here. */
int attention_pages_here(const struct attention *a, const struct kv_seq *s);
/* A row of a part has met nothing yet. */
void attention_begin_part(struct attention *a, int row);
/* After attention_begin() has planned the rows: tells the places who comes by. */
int attention_far_begin(struct attention *a, int lane, const struct step_seq *seqs, int n_seqs);
/* The blocks of rows that choose, here and elsewhere. */
int attention_far_choose(struct attention *a, int lane);
/* What other places add to their rows, which then have their heads in q. */
int attention_far_attend(struct attention *a, int lane);
void attention_far_close(struct attention *a);
