/* coordinator/events.h - the last things that happened to the cluster, for whoever looks at it: the log's
 * most important lines, as they are shown to people.
 *
 * A ring of EVENTS_KEPT; ids count up from 1, so a reader asks for what came after the last one that
 * it has.  Pure: time comes with every call.  Owner: coordinator loop. */
#pragma once

#include <stdint.h>

enum { EVENTS_KEPT = 256, EVENTS_TEXT_BYTES = 200 };
enum events_level { EVENTS_GOOD, EVENTS_INFO, EVENTS_WARN, EVENTS_BAD };

struct event {
    uint64_t id;
    int64_t time_us; /* since 1970 */
    enum events_level level;
    const char *kind; /* "node gone"; static */
    char text[EVENTS_TEXT_BYTES];
};

/* All-zero is empty. */
struct events {
    struct event ring[EVENTS_KEPT];
    uint64_t last; /* id of the newest; 0: none */
};

void events_add(struct events *e, int64_t time_us, enum events_level level, const char *kind,
                const char *format, ...) __attribute__((format(printf, 5, 6)));
/* The first one after `id` that is still there, or NULL. */
const struct event *events_after(const struct events *e, uint64_t id);
const char *events_level_name(enum events_level level);
