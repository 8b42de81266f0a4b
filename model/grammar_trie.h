/* model/grammar_trie.h - the vocabulary as grammars walk through it; shared by grammar_tokens.c and grammar_class.c. */
#pragma once

#include "model/grammar_tokens.h"

enum { MAX_TOKEN_BYTES = 512, MAX_PLAIN = 24 };

struct trie_node {
    uint32_t end; /* behind the last node below it */
    int32_t id;   /* of the token that ends here; -1: none does */
    uint16_t depth;
    unsigned char byte;
};

struct token_list {
    const struct tokenizer *tokenizer;
    int vocab_size;
    /* Two tries, each node before those below it: [0, n_plain) of tokens of 1 to MAX_PLAIN plain characters,
     * the rest of all others. */
    struct trie_node *nodes;
    uint32_t n_plain, n_nodes, nodes_room;
    uint64_t *plain[MAX_PLAIN + 1]; /* those of at most so many characters */
    int32_t *markers;
    int n_markers;
};

static inline size_t mask_words(const struct token_list *l)
{
    return (size_t)(l->vocab_size + 63) / 64;
}
static inline void mask_allow(uint64_t *bits, int32_t id)
{
    bits[id >> 6] |= 1ull << (id & 63);
}
static inline bool mask_has(const uint64_t *bits, uint32_t i)
{
    return bits[i >> 6] >> (i & 63) & 1;
}
