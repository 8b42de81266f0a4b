/* attn_node/seqs.h - the sequences that live on this attention side: KV pages, token log,
 * sampling parameters (around steps 6 and 12 of a token's path).
 *
 * A step is all or nothing: seqs_begin() takes what the step needs or refuses it whole,
 * and then exactly one of seqs_commit() and seqs_roll_back() ends it.  After a roll-back
 * every sequence is as long as before; one that the step opened (or restarted at position
 * 0) is gone.
 *
 * Owner: engine thread. */
#pragma once

#include <stdint.h>

#include "base/err.h"
#include "engine/forward.h"
#include "engine/sample.h"
#include "model/grammar_tokens.h"
#include "rpc/wire.h"

struct seqs;
/* `kv` is borrowed and outlives the table.  With `keeps`, full pages stay in the cache as long as
 * their memory is not needed, for sequences that begin with the same tokens; `seed`:
 * prefix_seed(). */
struct seqs *seqs_new(struct kv *kv, int max_seqs, bool keeps, uint64_t seed);
/* The words of grammars; borrowed.  Without them a sequence with a grammar cannot be sampled. */
void seqs_set_words(struct seqs *s, const struct token_list *words);
/* Gives all pages back. */
void seqs_free(struct seqs **s);
int seqs_count(const struct seqs *s);
struct wire_grammar_counters seqs_grammars(const struct seqs *s);

/* Finds or opens every sequence of the step and reserves its positions.  On success
 * out[i] [step->n_seqs] describes step->seqs[i] for forward_step(); pointers into the
 * step and the table, valid until commit or roll-back.  A sequence that begins here starts behind
 * what the cache has of its tokens, at out[i].position, and has rows for n_tokens of the rest, or
 * fewer if no more are known; its logits are wanted if that is its end and w->sample is set.
 *   E_PRECONDITION  a position that is not where the sequence ends: names both; or free pages lie in
 *                   places (engine/kv.h) where they are of no use: all sequences are forgotten
 *   E_INVALID       a sequence twice in one step, or without tokens
 *   E_BUSY          no room: too many sequences, or no KV pages
 * On failure no sequence has changed, except that one which the step wanted to restart may be
 * gone. */
int seqs_begin(struct seqs *s, const struct wire_step *step, struct step_seq *out, struct err *e);
/* After forward_step(): of the i-th sequence of the step only the first n_rows rows count. */
void seqs_cut(struct seqs *s, int i, int n_rows);
/* After forward_step() has moved the lengths.  false: what was computed is not the function of the
 * tokens that it should be (experts were left out); nobody else gets any of it. */
void seqs_commit(struct seqs *s, bool is_exact);
void seqs_roll_back(struct seqs *s);

/* What sampling needs of the i-th sequence of the step, between begin and commit: the
 * history includes the step's own tokens. */
const struct sampling *seqs_sampling(const struct seqs *s, int i);
struct sample_history seqs_history(const struct seqs *s, int i);

/* Forgets a sequence; an unknown one is fine.  Only between steps. */
void seqs_release(struct seqs *s, uint64_t seq);
/* Forgets all of them.  Only between steps. */
void seqs_clear(struct seqs *s);
/* And what the cache has of earlier ones. */
void seqs_clear_all(struct seqs *s);
