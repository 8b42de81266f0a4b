/* model/normalize.h - Unicode normalisation form C for tokenizers that ask for it (step 3).
 *
 * Bytes that are not valid UTF-8 pass as they are and compose with nothing. */
#pragma once

#include "base/buf.h"

/* Appends the composed form of `text` to `out`.  More than 128 combining marks in a row are
 * composed in groups of 128, which keeps the time proportional to the text. */
void normalize_nfc(struct str text, struct buf *out);
