/* coordinator/stream.h - output ids become text (step 14 of a token's path).
 *
 * Text comes out as soon as it is certain: never half a character, never the beginning of
 * what may yet become a stop string, reasoning apart from content.  Stop strings are looked
 * for in the content only, because the reasoning is the model's own.
 *
 * Owner: the request that embeds it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "model/reasoning.h"
#include "model/tokenizer.h"

enum { STREAM_MAX_STOPS = 4, STREAM_MAX_STOP_BYTES = 512 };

struct stream {
    const struct tokenizer *tokenizer; /* NULL: no text ever comes out */
    bool splits;                       /* reasoning apart from content */
    struct reasoning reasoning;
    struct utf8_stream utf8;
    char *stops[STREAM_MAX_STOPS]; /* owned */
    int n_stops;
    struct buf held;             /* content that may be the beginning of a stop string */
    struct reasoning_text fresh; /* scratch */
    bool stopped;
};

/* All-zero is empty; `splits` with where the prompt left the model. */
void stream_init(struct stream *s, const struct tokenizer *t);
void stream_split(struct stream *s, enum reasoning_part begins);
/* At most STREAM_MAX_STOPS; not empty. */
void stream_add_stop(struct stream *s, struct str stop);
void stream_fini(struct stream *s);

/* One output token; appends to `out`.  true if a stop string was found: the text before it
 * has been given out, and nothing comes any more. */
bool stream_feed(struct stream *s, int32_t id, struct reasoning_text *out);
/* The output ends here: gives out what was held back.  true as above. */
bool stream_finish(struct stream *s, struct reasoning_text *out);
