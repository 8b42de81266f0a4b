/* model/output_events.h - what a model said, as a list of events (step 14 of a token's path).
 *
 * The parser of model/output.h appends; whoever writes answers reads and resets.  Neighbours of
 * one kind are one event, so the list depends on what was said and not on how it was cut into
 * tokens.  The text of every event is valid UTF-8.
 *
 * Owner: whoever embeds it. */
#pragma once

#include <stddef.h>

#include "base/buf.h"

enum output_kind {
    OUTPUT_REASONING, /* a piece of the reasoning */
    OUTPUT_CONTENT,   /* a piece of the answer */
    OUTPUT_CALL,      /* a tool call begins; the text is the tool's name */
    OUTPUT_ARGUMENTS, /* a piece of its arguments: together the JSON text of one object */
    OUTPUT_CALL_END,  /* its arguments are complete */
    OUTPUT_ERROR,     /* a limit was passed: the text says which; nothing comes after it */
};

struct output_event {
    enum output_kind kind;
    int call; /* which tool call, from 0; -1 where it belongs to none */
    size_t offset, len;
};

/* All-zero is empty. */
struct output_events {
    struct output_event *list;
    size_t n, size;
    struct buf text;
};
void output_events_fini(struct output_events *events);
/* Empty again, memory kept. */
void output_events_reset(struct output_events *events);
/* Appends an event; a piece of text lengthens a last event of its kind and call. */
void output_events_put(struct output_events *events, enum output_kind kind, int call,
                       struct str text);
/* The text of event i; valid until the next put. */
struct str output_events_text(const struct output_events *events, size_t i);
/* Appends the texts of all events of a kind. */
void output_events_gather(const struct output_events *events, enum output_kind kind,
                          struct buf *out);
