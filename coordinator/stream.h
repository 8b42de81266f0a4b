/* coordinator/stream.h - output ids become text (step 14 of a token's path).
 *
 * Text comes out as soon as it is certain: never half a character, never the beginning of
 * what may yet become a stop string, reasoning and tool calls apart from content.  Stop strings are
 * looked for in the content only, because the rest is the model's own.
 *
 * Owner: the request that embeds it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "model/output.h"
#include "model/tokenizer.h"

enum { STREAM_MAX_STOPS = 4, STREAM_MAX_STOP_BYTES = 512 };

struct stream {
    const struct tokenizer *tokenizer; /* NULL: no text ever comes out */
    bool splits;                       /* `output` reads it; else everything is content */
    enum output_place begins;          /* there */
    struct output output;
    struct utf8_stream utf8;
    char *stops[STREAM_MAX_STOPS]; /* owned */
    int n_stops;
    struct buf held;            /* content that may be the beginning of a stop string */
    struct output_events fresh; /* scratch */
    bool stopped;
    const char *stopped_by; /* one of `stops`; NULL: none was found */
};

/* All-zero is empty; `splits` with where the prompt left the model and, for tool calls, the
 * request's tools: see output_init(). */
void stream_init(struct stream *s, const struct tokenizer *t);
void stream_split(struct stream *s, enum output_place begins, const json_t *tools);
/* Another one for the same kind of output, that has been fed nothing yet. */
void stream_copy(struct stream *to, const struct stream *from);
/* At most STREAM_MAX_STOPS; not empty. */
void stream_add_stop(struct stream *s, struct str stop);
void stream_fini(struct stream *s);

/* One output token; appends to `out`.  true if a stop string was found or the output is broken: the
 * text before it has been given out, and nothing comes any more. */
bool stream_feed(struct stream *s, int32_t id, struct output_events *out);
/* The output ends here: gives out what was held back.  true as above. */
bool stream_finish(struct stream *s, enum output_ending ending, struct output_events *out);

/* Has the output passed a limit of the parser's? */
bool stream_is_broken(const struct stream *s);
/* Has the model begun a tool call? */
bool stream_has_calls(const struct stream *s);
