/* model/pretokenize.h - cuts text into the pieces inside which bytes are merged (step 3).
 *
 * By hand what the regular expression of the MiniMax-M2 family does (a test compares the two):
 *
 *   [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|...)?
 *   |[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|...)?
 *   |\p{N}{1,3}
 *   | ?[^\s\p{L}\p{N}]+[\r\n/]*
 *   |\s*[\r\n]+
 *   |\s+(?!\S)
 *   |\s+
 *
 * A byte that is not part of valid UTF-8 counts as a symbol of its own.  Pure; every piece
 * is found in time proportional to its length. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

/* Where the piece that starts at `at` (at < text.len) ends; always > at. */
size_t pretokenize_next(struct str text, size_t at);

/* Whether a Split pattern, as a tokenizer.json spells it, is the one above. */
bool pretokenize_knows(struct str regex);
/* The pattern above as a tokenizer.json spells it. */
const char *pretokenize_pattern(void);
