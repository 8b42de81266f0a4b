/* engine/attention.h - the attention half of a layer for all rows of a step (step 6).
 *
 * norm, q k v, norm over the whole q and the whole k (m2.md 4.3) or over each head (m3.md 4),
 * rope, append to the KV cache, attend, output projection, residual.
 *
 * One order of additions: a row at position p folds the keys 0..p of its own sequence in
 * blocks of 64 and chunks of ATTENTION_CHUNK positions, both anchored at position 0.  A
 * chunk's state begins from nothing; chunks are merged in ascending order by one formula.
 * The bits of a row therefore depend on p and the cache alone - not on the other rows of
 * the step, on how its prompt was cut, or on the threads, which only share out the chunks.
 *
 * A sparse layer's row that sees all of its blocks of keys is such a row.  One that does not
 * folds the keys that it sees (engine/msa.h) in the same way: ascending, what lies together in
 * one block of 64 at once, chunks without a key of its own left out.
 *
 * Owner: engine thread; a call runs its parts on the pool. */
#pragma once

#include <stddef.h>

#include "base/err.h"
#include "engine/gemm.h"
#include "engine/matrix.h"
#include "engine/msa.h"
#include "model/config.h"
#include "model/format.h"
#include "model/weights.h"

/* A multiple of ATTEND_BLOCK; part of the definition of the bits. */
enum { ATTENTION_CHUNK = 512 };

struct attention_weights {
    struct matrix wq, wk, wv, wo;
    float *input_norm, *q_norm, *k_norm; /* owned */
    /* Of a sparse layer. */
    bool is_sparse;
    struct matrix index_q, index_k;
    float *index_q_norm, *index_k_norm; /* owned */
};

int attention_load(struct attention_weights *w, const struct layer_view *view,
                   enum weight_format format, const struct compute *c, struct err *e);
void attention_fini(struct attention_weights *w);
size_t attention_bytes(const struct attention_weights *w);
/* A norm's weights as f32, plus 1 (in f32) if they are stored as offsets; free with mem_free(). */
float *attention_vector(const struct tensor *t, bool is_offset);

/* Scratch and plan of one step at a time. */
struct attention;
struct kv;
struct step_seq;
struct far_ops;
struct attention_options {
    int max_rows;      /* of one step */
    int group;         /* format_group() of the projections: columns per activation scale, or 0 */
    enum kv_format kv; /* of every cache that attention_layer() gets */
    enum msa_choice choice; /* of sparse layers */
};
/* E_NOMEM. */
int attention_open(const struct model_config *config, const struct attention_options *o,
                   struct compute c, struct attention **out, struct err *e);
void attention_close(struct attention **a);
size_t attention_scratch_bytes(const struct attention *a);

/* Contexts may go on in other places (engine/far.h) from now on; `max_seqs`: numbers of sequences are
 * below it.  E_NOMEM; E_INVALID where the model's blocks do not lie in one chunk. */
int attention_set_far(struct attention *a, const struct far_ops *ops, void *ud, struct kv *kv,
                      uint32_t max_seqs, struct err *e);
/* Once per step and lane (engine/forward.h; 0 where there is one), before the layers: who is where.
 * Keeps what the sequences point to until that lane's next call.  Only other places fail. */
int attention_begin(struct attention *a, int lane, const struct step_seq *seqs, int n_seqs);
/* x [rows of the lane, hidden] becomes x + attention; writes k and v of every row to kv.  Rows of a
 * sequence that lie in an earlier lane have been through this layer before.  Likewise; x is as it was. */
int attention_layer(struct attention *a, int lane, const struct attention_weights *w, struct kv *kv,
                    int layer, float *x);
/* Blocks that sparse layers could have scored since attention_open(), and those that they did. */
const struct msa_counts *attention_msa_counts(const struct attention *a);
/* What the last layer, a sparse one, chose for a row and KV head: top_k blocks ascending, or NULL
 * if the row saw everything. */
const int32_t *attention_blocks(const struct attention *a, int row, int kv_head);
