/* coordinator/follow.h - the standby's half of copying the token log: takes a leader's answers
 * (coordinator/ship.h), puts their bytes together, and says what is to be written.
 *
 * What a leader says is believed only if it fits: every byte has its place in the stream and every
 * record a checksum.  What does not fit begins the copy anew, and what is on the disk stays
 * until the new snapshot is whole.
 *
 * Pure.  Owner: coordinator loop. */
#pragma once

#include <stdint.h>

#include "base/buf.h"

struct follow {
    uint64_t stream, offset; /* what has come; stream 0: nothing yet */
    uint64_t snapshot_bytes;
    struct buf pending; /* not to be written yet: an incomplete snapshot or record */
    int64_t n_restarts; /* streams begun beside the first */
};

struct follow_answer {
    uint64_t stream, offset, snapshot_bytes;
    struct str bytes;
};
enum follow_act {
    FOLLOW_ASK,     /* for what follows */
    FOLLOW_REPLACE, /* all that was written by `records`; when they are on the disk, ask */
    FOLLOW_APPEND,  /* `records`, likewise */
    FOLLOW_ANEW,    /* that made no sense: ask for a new stream, after a pause */
};

void follow_fini(struct follow *f);
/* The next question asks for a new stream. */
void follow_restart(struct follow *f);
/* `records` are whole ones, and good until follow_written(). */
enum follow_act follow_take(struct follow *f, const struct follow_answer *a, struct str *records);
/* What follow_take() gave has been taken over. */
void follow_written(struct follow *f, struct str records);
