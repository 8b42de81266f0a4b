/* model/reasoning.h - splits the model's output into reasoning and content (step 14).
 *
 * M2 answers with "{reasoning}\n</think>\n\n{content}": the prompt ended in "<think>\n", so the
 * output begins inside the reasoning, and token </think> ends it.  The splitter takes ids
 * as they come and gives out text as soon as it is certain: never half a character, never
 * a line feed that may yet turn out to be the template's.
 *
 * Stripped are exactly the line feeds that the chat template puts there (one before </think>, up to
 * two after it), so that reasoning and content, sent back in a history, render to the ids that
 * the model produced.
 *
 * Tolerated: a "<think>" at the very start, as token or as text, with its line feed; an end of
 * output anywhere; think tokens in other places, which are plain text.
 *
 * Owner: whoever embeds it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

enum reasoning_part { REASONING_THINKING, REASONING_CONTENT };

/* What came out, always valid UTF-8.  The splitter only appends; the caller resets.  Within
 * one call the reasoning comes before the content. */
struct reasoning_text {
    struct buf thinking, content;
};
void reasoning_text_fini(struct reasoning_text *text);
void reasoning_text_reset(struct reasoning_text *text);

struct reasoning {
    const struct tokenizer *tokenizer; /* borrowed */
    int32_t think_id, end_think_id;    /* TOKENIZER_NO_ID if the tokenizer has none */
    enum reasoning_part part;
    enum { REASONING_AT_START, REASONING_AFTER_OPENING, REASONING_IN_TEXT } place;
    struct utf8_stream utf8;
    char opening[8]; /* what may become "<think>" */
    size_t n_opening;
    size_t n_line_feeds; /* in thinking: held back; after </think>: still to be dropped */
};

/* `begins` is where the prompt left the model: REASONING_THINKING after a generation prompt with
 * thinking on, REASONING_CONTENT otherwise.  Owns no memory. */
void reasoning_init(struct reasoning *r, const struct tokenizer *t, enum reasoning_part begins);
/* One output token; special tokens give nothing. */
void reasoning_feed(struct reasoning *r, int32_t id, struct reasoning_text *out);
/* The output ends here: gives out what was held back. */
void reasoning_finish(struct reasoning *r, struct reasoning_text *out);
/* Where the next token belongs. */
enum reasoning_part reasoning_where(const struct reasoning *r);
