/* tools/progress.h - how far a long job is, on stderr.
 *
 * Silent for the first two seconds; then a line that redraws itself on a terminal, or one
 * line every few seconds elsewhere:
 *
 *   synth: 42 %, 3.1 of 7.3 GB, 812 MB/s, 5 s left
 *
 * Owner: one thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum progress_unit { PROGRESS_BYTES, PROGRESS_ITEMS };

struct progress {
    const char *label; /* borrowed */
    enum progress_unit unit;
    int64_t total, done;
    int64_t started_ns, next_ns; /* when the next line is due */
    bool is_terminal, has_drawn;
};

void progress_begin(struct progress *p, const char *label, int64_t total, enum progress_unit unit);
void progress_add(struct progress *p, int64_t amount);
/* Ends the line, saying the time that it took if anything was shown. */
void progress_end(struct progress *p);
/* The line for a job that has run for `elapsed_ns`, into `out`; progress_add() prints it. */
enum { PROGRESS_TEXT_BYTES = 160 };
const char *progress_text(const struct progress *p, int64_t elapsed_ns,
                          char out[PROGRESS_TEXT_BYTES]);
