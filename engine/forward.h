/* engine/forward.h - one step through all layers; the only layer loop in the project
 * (steps 6, 7 and 12 of the token's path).
 *
 * It knows no network: it asks for the expert half of a layer through `moe_ops`.
 * engine/moe_local.c answers in the process, attn_node/moe_remote.c over the wire. */
#pragma once

#include "engine/far.h"
#include "engine/gemm.h"
#include "engine/kv.h"
#include "engine/router.h"
#include "model/checkpoint.h"

/* A lane is half of a step's rows; with one, all of them. */
enum { FORWARD_LANES = 2 };

/* The rows of one lane on their way to the experts.  Borrowed until gather() or abandon()
 * returned. */
struct moe_rows {
    int layer; /* of those with experts, from 0 */
    int n_rows, hidden;
    struct rows rows; /* [n_rows, hidden], after post_attention_layernorm: f32, and quantised
                         where forward_options.formats.experts reads that (native: f32 only) */
    const int16_t *exponents; /* [n_rows], combine_exponent() of the residual stream */
    const struct routing *routing;
};

struct moe_ops {
    /* Sends out the rows of one lane; never blocks.  0 or an error that fails the step. */
    int (*scatter)(void *ud, int lane, const struct moe_rows *rows);
    /* Waits for that lane's experts, up to the step's deadline; adds into x [n_rows, hidden]. */
    int (*gather)(void *ud, int lane, float *x);
    /* The step has failed elsewhere: that lane's rows are wanted no more.  Never blocks; never
     * called, and may be NULL, where steps have one lane. */
    void (*abandon)(void *ud, int lane);
};

/* Consecutive positions of one sequence. */
struct step_seq {
    struct kv_seq *kv; /* reserved up to position + n_tokens */
    uint32_t number; /* of the sequence among those that there are; other places know it by that */
    int position;    /* == kv->length */
    int n_tokens;
    const int32_t *tokens;
    bool all_logits; /* logits of every row, not only of the last (polymath logits) */
    bool no_logits;  /* a chunk in the middle of a prompt */
};

struct step {
    int n_seqs;
    const struct step_seq *seqs;
    /* Halves the rows, where they can be halved (engine/lanes.h), so that one lane attends while the
     * other's experts work; the bits are the same.  Not with a probe. */
    bool has_two_lanes;
    /* Optional: sees the residual stream after the embedding (layer -1, routing NULL) and
     * after every layer (routing NULL where it has no experts).  For tests. */
    void (*probe)(void *ud, int layer, const float *x, int n_rows, const struct routing *r);
    /* Optional, beside `probe`: the top_k blocks (engine/msa.h) that a row and KV head of a sparse
     * layer sees, ascending; NULL where that is all of them. */
    void (*probe_blocks)(void *ud, int layer, int row, int kv_head, const int32_t *blocks);
    void *probe_ud;
    /* Optional, for whoever counts and measures: after every layer of every lane; `r` is what the router chose for
     * the rows that went through its experts, NULL if none did (a dense layer; the last one of a
     * step without logits).  Unlike a probe it changes nothing. */
    void (*layer_done)(void *ud, int layer, const struct routing *r);
    /* Optional, likewise: attention has been added to every row; norm and router follow. */
    void (*attended)(void *ud, int layer);
    void *layer_done_ud; /* of both */
};

struct forward;
struct forward_options {
    struct format_set formats; /* kv must be that of the cache */
    int max_rows;              /* rows of one step */
    /* Other functions, to compare with: sparse layers see every key, or so many last blocks. */
    bool sees_all;
    int window_blocks; /* 0: as the model says */
};

/* Loads everything but the experts: embedding (stays mapped), attention, routers, head. */
int forward_open(struct checkpoint *c, const struct forward_options *o, struct compute compute,
                 struct forward **out, struct err *e);
void forward_close(struct forward **f);
size_t forward_bytes(const struct forward *f); /* of packed weights and scratch */
/* A KV cache for this model is opened by the caller and named in every step. */

/* Contexts may go on in other places from now on (engine/far.h): attention_set_far(). */
int forward_set_far(struct forward *f, const struct far_ops *ops, void *ud, struct kv *kv,
                    uint32_t max_seqs, struct err *e);

/* Runs one step.  On success every seq's kv->length has moved by n_tokens, and *logits
 * points to [n, vocab] rows (stride vocab) in order of seqs and positions, valid until the
 * next call.  On failure no length has moved.  E_INVALID: a token outside the vocabulary.
 * E_RANGE: a model with sparse layers is asked for a position past its limit.
 * Allocates nothing after the first call of its size. */
int forward_step(struct forward *f, struct kv *kv, const struct step *s, const struct moe_ops *ops,
                 void *ud, const float **logits, int *n_logits);
