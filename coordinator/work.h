/* coordinator/work.h - what the coordinator's loop spends its processor time on.
 *
 * Whoever begins a kind of work says so, and names the former kind again at its end; kinds that lie
 * inside each other count apart, and all together are the thread's time.  It is processor time, so that
 * a loop that waits, or that others keep from its CPU, has none.  Pure: time comes with every call.
 * Owner: coordinator loop. */
#pragma once

#include <stdint.h>

enum work_kind {
    WORK_OTHER,     /* nodes, timers, the log, messages */
    WORK_SCHEDULER, /* what runs in the next step */
    WORK_READING,   /* JSON, templates and tokenizer: requests; on threads of its own */
    WORK_WRITING,   /* parser and JSON: answers */
    WORK_HTTP,      /* connections */
    WORK_KINDS
};
const char *work_name(enum work_kind kind);

/* All-zero but for `since_ns`, the thread's time at the start. */
struct work {
    enum work_kind kind;
    int64_t since_ns;
    int64_t ns[WORK_KINDS];
};
/* What was done until now was the kind before, which is returned. */
enum work_kind work_turn(struct work *w, enum work_kind kind, int64_t thread_ns);
/* That another thread did for the loop. */
void work_add(struct work *w, enum work_kind kind, int64_t ns);
