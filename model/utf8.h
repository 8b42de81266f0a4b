/* model/utf8.h - UTF-8: one character at a time, and streams that may stop inside one.
 *
 * A token can end in the middle of a character, and a client must never see half of one
 * (step 14).  A stream holds such a tail back until the rest comes, and puts U+FFFD in the
 * place of bytes that can no longer become a character: one per maximal broken sequence, as
 * the Unicode standard recommends and browsers do.
 *
 * Owner of a stream: whoever embeds it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

/* The character that starts at text.ptr[at] (at < text.len): its length in bytes and, in
 * *code_point, its number.  Returns 0 if no valid character starts there. */
size_t utf8_decode(struct str text, size_t at, int32_t *code_point);
/* Appends a character; `code_point` must be a Unicode scalar value. */
void utf8_append(struct buf *out, int32_t code_point);
bool utf8_is_valid(struct str text);

/* All-zero is a fresh stream; it owns no memory. */
struct utf8_stream {
    char held[4]; /* an incomplete character so far */
    size_t n_held;
};
/* Appends to `out` every character that is complete by now; `out` is always valid UTF-8. */
void utf8_feed(struct utf8_stream *s, struct str bytes, struct buf *out);
/* The stream ends: a held tail becomes one U+FFFD.  The stream is fresh again. */
void utf8_finish(struct utf8_stream *s, struct buf *out);
