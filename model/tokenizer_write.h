/* model/tokenizer_write.h - a tokenizer.json for synthetic checkpoints.
 *
 * The M2 layout in small: 256 byte tokens with id = byte, merges learned from a short English
 * text, and the 54 added tokens of M2 as the last ids of the vocabulary; ids between have no
 * token.  The same size always gives the same file. */
#pragma once

struct err;

enum { TOKENIZER_WRITE_N_ADDED = 54, TOKENIZER_WRITE_MIN_VOCAB = 256 + 54 };

/* Writes `path` whole or not at all.  E_INVALID if vocab_size < TOKENIZER_WRITE_MIN_VOCAB. */
int tokenizer_write_synthetic(const char *path, int vocab_size, struct err *e);
