/* model/vocab.h - which token is which bytes.
 *
 * Two tables over one store of bytes: id to bytes by index, bytes to id by hash.  No two
 * tokens have the same bytes.  Built once by model/tokenizer_json.c, then only read. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum vocab_kind {
    VOCAB_NONE,    /* an id without a token */
    VOCAB_MERGED,  /* a byte or a product of merges */
    VOCAB_ADDED,   /* a marker that a reader sees */
    VOCAB_SPECIAL, /* a marker that a reader does not see */
};

struct vocab_token {
    uint32_t offset, len; /* in `bytes` */
    enum vocab_kind kind;
};

/* All-zero is empty. */
struct vocab {
    struct vocab_token *tokens; /* [n_ids] */
    int32_t n_ids;
    struct buf bytes;
    int32_t *slots; /* hash table of id + 1; 0 is free; at most half full */
    size_t n_slots, n_tokens;
};

/* Room for ids below `n_ids` and for `n_tokens` tokens. */
void vocab_init(struct vocab *v, int32_t n_ids, size_t n_tokens);
void vocab_fini(struct vocab *v);
/* E_EXISTS if the id or the bytes are taken; E_RANGE if the id is not below n_ids, the room is
 * used up, or all bytes together would exceed 4 GiB. */
int vocab_add(struct vocab *v, int32_t id, struct str bytes, enum vocab_kind kind);
/* The id of these bytes, or -1. */
int32_t vocab_find(const struct vocab *v, struct str bytes);
/* VOCAB_NONE for any id that has no token, negative ones included. */
enum vocab_kind vocab_kind_of(const struct vocab *v, int32_t id);
/* Empty for an id without a token. */
struct str vocab_bytes(const struct vocab *v, int32_t id);

/* The character that stands for a byte in a tokenizer.json: printable Latin-1 for itself, the
 * other 68 bytes in their order from U+0100 on (the map of GPT-2). */
int32_t vocab_char_of_byte(unsigned char byte);
/* The byte of such a character, or -1. */
int vocab_byte_of_char(int32_t code_point);
