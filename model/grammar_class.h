/* model/grammar_class.h - tokens whose characters a state does not tell apart, by their number.
 *
 * A pattern like "[A-Za-z ]{3,60}" is at another place behind every character, and each place wants a mask of its own; but
 * what matters of a token of such characters alone is how many they are.  So for a set of characters that has been met
 * before, the tokens of nothing else are kept by their length, as the plain ones of grammar_tokens.h are, and parts of the
 * trie in which there are no others are not walked.
 *
 * Owner: a grammar_cache; some sets at a time, about 30 bits a token each. */
#pragma once

#include "model/grammar_trie.h"

struct token_classes;
struct token_classes *token_classes_new(const struct token_list *l);
void token_classes_free(struct token_classes **c);

struct token_class {
    uint64_t *by_length[MAX_PLAIN + 1]; /* those of at most so many characters */
    uint64_t *skip;                     /* a bit for each node: below it is nothing else */
};
/* The class of what may come most in this state, and *room, the number of such characters that may come, at most
 * MAX_PLAIN; *reach grows by what the states on that way need.  NULL: it would not pay, or not yet.  Good until the next
 * call. */
const struct token_class *token_class_of(struct token_classes *c, struct grammar *g, uint32_t state,
                                         int *room, int *reach);
