/* model/grammar_tokens.h - which tokens a grammar allows next (step 12 of a token's path).
 *
 * The vocabulary is a trie over bytes, and a state's mask is a walk through it together with the grammar, which ends
 * wherever no more can follow.  Two things make that cheap.  What a state allows does not depend on its
 * return stack until it returns into it, so the walk is done once for all states that differ only there
 * (inside strings, say), and each of them only walks on where the first one left, as behind a closing
 * quote.  Tokens of plain characters alone, most of them, lie in a part of the trie of their own, and are allowed
 * all together, by their length, where one such character does as well as any other: within a string, also one
 * whose length is limited.  For other sets of characters that come again, as patterns have them, the same is kept in
 * classes (grammar_class.h).  And grammars are kept by their text: sequences that are held to the same one share all that
 * any of them has found out.
 *
 * Owner: the cache's; but a token_list, once made, is only read, by any thread. */
#pragma once

#include <stdint.h>

#include "model/grammar.h"
#include "model/tokenizer.h"

/* A vocabulary in walking order. */
struct token_list;
/* Of ids below vocab_size; the tokenizer is borrowed for its life. */
struct token_list *token_list_new(const struct tokenizer *t, int vocab_size);
void token_list_free(struct token_list **l);

/* Grammars by their text. */
struct grammar_cache;
/* Grammars that no constraint uses are kept while all together take at most max_bytes. */
struct grammar_cache *grammar_cache_new(const struct token_list *l, size_t max_bytes);
/* All constraints must be gone. */
void grammar_cache_free(struct grammar_cache **c);
/* So far. */
struct grammar_counts {
    uint64_t compiled, refused, shared; /* constraints by where their grammar was from */
    uint64_t masks_asked, masks_made;
    uint64_t bytes; /* now */
    uint64_t grammars;
};
struct grammar_counts grammar_cache_counts(const struct grammar_cache *c);

/* Where one sequence is in a grammar. */
struct constraint;
/* Of the grammar's text; E_INVALID if it does not compile. */
int constraint_new(struct grammar_cache *cache, struct str text, struct constraint **out,
                   struct err *e);
void constraint_free(struct constraint **c);
/* What may follow output [n]: a bit for every id, [vocab_size]; good until the next call for any constraint of
 * the cache.  NULL if the output is not in the grammar, as a guess may be that is thrown away later.
 * It is a function of the output alone; what earlier calls were asked is only remembered. */
const uint64_t *constraint_allow(struct constraint *c, const int32_t *output, int n);
