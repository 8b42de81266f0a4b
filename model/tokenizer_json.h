/* model/tokenizer_json.h - the inside of a tokenizer, and reading it from a tokenizer.json.
 *
 * For model/tokenizer.c only; everyone else sees model/tokenizer.h. */
#pragma once

#include <stdint.h>

#include "base/buf.h"
#include "model/bpe.h"
#include "model/vocab.h"

struct err;

enum tokenizer_form { TOKENIZER_FORM_AS_IS, TOKENIZER_FORM_NFC };

struct tokenizer {
    struct vocab vocab;
    struct bpe bpe;
    /* Ids of the added tokens, by first byte, longer ones first; those that begin with byte c
     * are markers[first_marker[c]] .. markers[first_marker[c + 1] - 1]. */
    int32_t *markers;
    uint32_t first_marker[257];
    enum tokenizer_form form;
    /* The file's `ignore_merges`: a piece that is a token needs no merging. */
    enum { TOKENIZER_MERGE_ALWAYS, TOKENIZER_WHOLE_PIECES_FIRST } shortcut;
};

/* Fills an all-zero `t`; after an error the caller frees what is there.  Errors start with the
 * field, "model.merges[7]: ...". */
int tokenizer_json_read(struct str json, struct tokenizer *t, struct err *e);
