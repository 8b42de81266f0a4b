/* model/tokenizer.h - text to token ids and back (step 3 of a token's path; back in step 14).
 *
 * Byte-level BPE as Hugging Face's tokenizer.json describes it: the text is cut into pieces
 * (model/pretokenize.h), each piece's bytes are merged by rank (model/bpe.h), and a few added
 * tokens - markers such as "<think>" - stand outside of that.  A merge's rank is its index in
 * `merges`, whatever the ids are.  No begin or end token is added.
 *
 * Any bytes can be encoded, valid UTF-8 or not, and decode to the same bytes - except where the
 * file asks for normalisation form C, which then comes before everything else.
 *
 * Threads: made once, then only read; any number of threads may encode at the same time. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

struct err;
struct tokenizer;

/* A growing list of token ids.  All-zero is empty. */
struct tokens {
    int32_t *ids;
    size_t len, size;
};
void tokens_fini(struct tokens *t);
/* Empty again, memory kept. */
void tokens_reset(struct tokens *t);
void tokens_push(struct tokens *t, int32_t id);

enum { TOKENIZER_NO_ID = -1 };

/* Reads MODEL_DIR/tokenizer.json.  E_NOT_FOUND if there is none (a caller may go on with ids
 * only); E_CORRUPT if it is damaged or contradicts itself; E_UNIMPLEMENTED if it is sound but
 * asks for what we do not do (another splitting pattern, a normaliser).  Free with
 * tokenizer_free(). */
int tokenizer_open(const char *model_dir, struct tokenizer **out, struct err *e);
/* The same from memory; `name` stands for the file in errors.  Keeps nothing of either. */
int tokenizer_parse(struct str json, const char *name, struct tokenizer **out, struct err *e);
/* Sets *t to NULL; NULL is fine. */
void tokenizer_free(struct tokenizer **t);

enum tokenizer_markers {
    TOKENIZER_PLAIN,        /* "<think>" in the text is seven characters like any other: for what
                               users and tools say */
    TOKENIZER_WITH_MARKERS, /* added tokens in the text become their ids, leftmost longest first:
                               for text that the operator wrote */
};
/* Longest text that is encoded; a prompt of this size has millions of tokens. */
#define TOKENIZER_TEXT_LIMIT_BYTES ((size_t)64 << 20)
/* Appends the ids of `text` to `out`.  E_RANGE if the text is over the limit. */
int tokenizer_encode(const struct tokenizer *t, struct str text, enum tokenizer_markers markers,
                     struct tokens *out);

/* The bytes of a token (for an added token its text), perhaps not whole characters: see
 * model/utf8.h.  Empty for an id without a token; valid as long as the tokenizer. */
struct str tokenizer_token_bytes(const struct tokenizer *t, int32_t id);

/* Added tokens are the markers.  Special ones are not shown to a reader; the others, such as
 * "<think>", are, because parsers look for them. */
bool tokenizer_is_added(const struct tokenizer *t, int32_t id);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);

enum tokenizer_decode { TOKENIZER_SKIP_SPECIAL, TOKENIZER_KEEP_SPECIAL };
/* Appends the bytes of `n_ids` tokens to `out`. */
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n_ids,
                      enum tokenizer_decode what, struct buf *out);

/* The id of the token that is exactly these bytes, added or not, or TOKENIZER_NO_ID. */
int32_t tokenizer_find(const struct tokenizer *t, struct str bytes);

/* Highest id plus one; ids below it may lack a token.  A model may have more rows than this. */
int tokenizer_vocab_size(const struct tokenizer *t);
