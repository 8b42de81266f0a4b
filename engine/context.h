/* engine/context.h - a part of other hosts' contexts: the pages of KV cache that an attention side
 * has no room for, and the attention over them (m3.md 5.7).
 *
 * A sequence whose context does not fit at its side goes on elsewhere: from some multiple of
 * ATTENTION_CHUNK positions on its keys and values lie in another place, and then perhaps in a third
 * one.  The side keeps the books - which pages there belong to which part - and its rows come by with
 * their queries, in order of the places: each folds the rows' chunks that it has (engine/attention.h) on
 * top of what the places before it have made of theirs.  The chunks and their order are those of one
 * host, and so are the bits.
 *
 * In a part positions and blocks count from its own first position.
 *
 * What comes here comes from another host: whatever does not fit together is E_INVALID and has
 * changed nothing but what rows may have written.
 *
 * Owner: one thread; calls run their parts on the pool. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/gemm.h"
#include "model/config.h"
#include "model/format.h"

/* Of one part, in a step.  The part's list of pages, kept from step to step under the number that its
 * side gave the sequence: of the list as it was the first n_kept still hold, n_new come behind. */
struct context_part {
    uint32_t seq, n_kept, n_new;
};

/* Consecutive rows of one sequence, within a multiple of 16 positions. */
struct context_group {
    uint32_t part;     /* index into the plan's parts */
    uint32_t n_rows;   /* 1 .. 16 */
    uint32_t position; /* of the first row; may lie behind the part's end */
    bool chooses;      /* in sparse layers the rows see chosen blocks */
    bool ends;         /* the rows lie in this part: they write their keys, and see no further */
};

/* Who comes by in the layers of one lane of a step. */
struct context_plan {
    uint32_t n_parts, n_groups;
    const struct context_part *parts;   /* no sequence twice */
    const int32_t *pages;               /* [sum of n_new] */
    const struct context_group *groups; /* in order of parts */
};

/* (m, l) of a row's head (attention.h); o lies apart. */
struct context_state {
    float max, sum;
};

/* A block that may be among the best, with its score. */
struct context_candidate {
    float score;
    int32_t block; /* -1: there are no more */
};

/* A lane's rows in one layer, in order of the plan's groups.  `Ending` and `choosing` rows are those of
 * such groups.  A value is f32. */
struct context_rows {
    uint32_t layer;
    /* With the layer's first call: of ending rows, after norm and rotation. */
    const float *k, *v;   /* [ending, n_kv_heads, head_dim]; NULL: they have been written */
    const float *index_k; /* [ending, index dim]; of a sparse layer */
    /* context_choose(): of choosing rows. */
    const float *index_q;                 /* [choosing, n_heads of sparse_config, index dim] */
    struct context_candidate *candidates; /* out: [choosing, n_heads, top_k - 1], best first */
    /* context_attend(). */
    const float *q;        /* [rows, n_heads, head_dim] */
    const int32_t *blocks; /* [choosing, n_kv_heads, top_k], ascending; those of other places
                                    lie below 0 or behind the part's end */
    struct context_state
        *state; /* [rows, n_heads]: before, then after; all-zero max -infinity: none */
    float *o;   /* [rows, n_heads, head_dim] likewise; of ending rows divided by the sum */
};

struct context;
struct context_options {
    enum kv_format kv;
    int64_t kv_bytes;
    int max_rows; /* of one step */
    int max_seqs; /* numbers of sequences are below it */
};
/* Pages for as much as kv_bytes holds.  E_NOMEM, E_INVALID as kv_open() and attention_open(). */
int context_open(const struct model_config *config, const struct context_options *o,
                 struct compute compute, struct context **out, struct err *e);
void context_close(struct context **c);
int context_pages(const struct context *c);
/* Somebody else's from now on: forgets all lists. */
void context_clear(struct context *c);

/* Before a step's layers, once for each of its lanes (forward.h: 0, and 1 where there are two).
 * E_INVALID names what is wrong. */
int context_begin(struct context *c, int lane, const struct context_plan *plan, struct err *e);
/* How many rows of the lane there are of each kind; all 0 before context_begin(). */
struct context_counts {
    uint32_t rows, ending, choosing;
};
struct context_counts context_counts(const struct context *c, int lane);
/* A sparse layer, if there are choosing rows: the blocks of the part that are the best for each. */
int context_choose(struct context *c, int lane, const struct context_rows *rows, struct err *e);
/* Every layer. */
int context_attend(struct context *c, int lane, const struct context_rows *rows, struct err *e);
