/* model/bpe.h - merges the bytes of one piece into tokens (step 3).
 *
 * Starting from single bytes, the adjacent pair with the lowest rank (leftmost if equal) is
 * merged until no pair has a rank.  A heap over a linked list does that in n log n, so
 * a million equal letters in one piece cost what a million letters of prose cost.
 *
 * Threads: a struct bpe is only read once built; a scratch belongs to one caller. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "model/tokenizer.h"

struct bpe_pair {
    uint64_t key; /* left id + 1 in the upper half, right id in the lower; 0 is a free slot */
    uint32_t rank;
    int32_t merged;
};

/* All-zero is empty. */
struct bpe {
    int32_t byte_ids[256];
    struct bpe_pair *pairs; /* hash table, at most half full */
    size_t n_slots, n_pairs;
};
/* Room for `n_pairs` merges. */
void bpe_init(struct bpe *b, size_t n_pairs);
void bpe_fini(struct bpe *b);
/* Tokens `left` and `right` become `merged` with this rank (< UINT32_MAX).  false if the pair is
 * already there or the room is used up. */
bool bpe_add(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t merged);

/* Working memory, reused from piece to piece.  All-zero is empty. */
struct bpe_scratch {
    struct bpe_node *nodes;
    uint64_t *heap;
    size_t n_nodes, n_heap;
    size_t steps; /* look-ups and heap moves so far; tests bound it */
};
void bpe_scratch_fini(struct bpe_scratch *s);

/* Appends the piece's ids to `out`; the piece must be shorter than 2^31 bytes. */
void bpe_encode(const struct bpe *b, struct str piece, struct bpe_scratch *s, struct tokens *out);
