/* model/grammar_tokens.h - which tokens a grammar allows next (step 12 of a token's path).
 *
 * The vocabulary lies sorted by bytes, so one pass over it walks every prefix once; the mask of a state is
 * kept, so a state that comes again (inside a string, as a rule) costs a look-up. */
#pragma once

#include <stdint.h>

#include "model/grammar.h"
#include "model/tokenizer.h"

/* A vocabulary in walking order; only read after it was made.  Threads: any. */
struct token_list;
/* Of ids below vocab_size; the tokenizer is borrowed for its life. */
struct token_list *token_list_new(const struct tokenizer *t, int vocab_size);
void token_list_free(struct token_list **l);

/* A grammar and where one sequence is in it.  Owner: the sequence's. */
struct constraint;
/* Compiles the grammar's text; E_INVALID. */
int constraint_new(const struct token_list *l, struct str text, struct constraint **out,
                   struct err *e);
void constraint_free(struct constraint **c);
/* What may follow output [n]: a bit for every id, [vocab_size]; good until the next call.  NULL if the output
 * is not in the grammar, as a guess may be that is thrown away later.  It is a function of the
 * output alone; what an earlier call was asked is only remembered. */
const uint64_t *constraint_allow(struct constraint *c, const int32_t *output, int n);
