/* model/tokenizer_write.h - a tokenizer.json for synthetic checkpoints.
 *
 * The layout of M2, or of M3, in small: 256 byte tokens with id = byte, merges learned from a
 * short English text, and the 54 added tokens of M2 or the 61 of M3 as the last ids of the
 * vocabulary; ids between have no token.  The same size always gives the same file. */
#pragma once

#include "model/config.h"

struct err;

enum { TOKENIZER_WRITE_N_ADDED = 54, TOKENIZER_WRITE_MIN_VOCAB = 256 + 54 };

/* Of a family; TOKENIZER_WRITE_N_ADDED are M2's. */
int tokenizer_write_n_added(enum model_family family);
int tokenizer_write_min_vocab(enum model_family family);
/* Writes `path` whole or not at all.  E_INVALID if vocab_size is below the family's least. */
int tokenizer_write_family(const char *path, enum model_family family, int vocab_size,
                           struct err *e);
/* M2's. */
int tokenizer_write_synthetic(const char *path, int vocab_size, struct err *e);
