/* coordinator/ship.h - the leader's half of copying the token log to those who stand by.
 *
 * For each standby the log is a stream of bytes: a snapshot of all that is live, and behind it
 * every record as it is written (coordinator/records.h).  A standby asks for what follows the bytes
 * that it has on its disk, so its question says what it has; a question that cannot be answered
 * any more (another leader's stream, bytes that were dropped) begins a new stream, with a new snapshot.
 *
 *   question (no stream of ours) -> new stream --snapshot--> copying --all, in time--> IN STEP
 *                                                               ^                        |
 *                                                               +-- later than patience -+
 *
 * What is to be told to a client waits until every standby in step has it: so whichever of them
 * leads next knows it.  One that is later than patience_ns is not in step any more, and nobody waits
 * for it until it has caught up: a standby that dies costs one such pause, once.
 *
 * Where it is on record who is in step, so that only such a one leads next (ship_unrecorded()), nothing
 * is told before there is a record, nor while it names one who is not in step any more.
 *
 * A standby that restarts is on record by its state directory until that is changed, and takes its own
 * place here: nobody waits for what it was.
 *
 * Pure: questions and records in, answers out, time passed in.  Owner: coordinator loop. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"

enum { SHIP_MAX_STANDBYS = 8, SHIP_NAME_BYTES = 64, SHIP_CHUNK_BYTES = 256 << 10 };

struct ship_config {
    uint64_t first_stream; /* random: no other leader's streams have these numbers */
    int64_t window_bytes;  /* of records kept for standbys; one further behind begins anew */
    int64_t patience_ns;   /* 0: nothing waits for anybody */
    int64_t hold_ns;       /* how long a question may wait for news */
    int64_t forget_ns;     /* a standby that has not asked for so long is gone */
    bool is_recorded;      /* elsewhere, who is in step */
};

struct ship_question {
    uint64_t instance; /* of the standby's process; not 0 */
    uint64_t state;    /* of its state directory, by which it is on record; not 0 */
    const char *name;
    uint64_t stream, offset; /* all bytes before that are on its disk; stream 0: none */
};
struct ship_answer {
    int slot; /* whose: below SHIP_MAX_STANDBYS */
    uint64_t stream, offset, snapshot_bytes;
    struct str bytes; /* from `offset` on; empty: no news.  Until the next call here */
};

struct ship_standby {
    uint64_t instance; /* 0: a free slot */
    uint64_t state;
    char name[SHIP_NAME_BYTES];
    uint64_t stream;
    struct buf snapshot; /* until it has all of it */
    uint64_t snapshot_bytes;
    uint64_t base; /* position of the log at which the snapshot was taken */
    uint64_t have; /* bytes of the stream */
    bool is_held;  /* its question waits for news; then it has everything */
    bool in_step;
    uint64_t whole_from; /* it has all that was told when it has come to here */
    bool is_recorded;    /* may be on record as in step, */
    bool is_in_question; /* and is, or is not, after what is being written */
    int64_t asked_ns;
    /* An answer that left at mark_ns held all up to here: what is behind came after that. */
    uint64_t mark;
    int64_t mark_ns;
    int64_t behind_ns; /* what it does not have is no older than this */
};

struct ship {
    struct ship_config config;
    struct ship_standby standbys[SHIP_MAX_STANDBYS];
    struct buf window; /* the log's last bytes, as far as somebody may ask for them */
    uint64_t end;      /* position behind them */
    uint64_t n_streams;
    bool is_recording, has_record, is_record_sure;
    int64_t n_late, sent_bytes; /* fallen behind; of snapshots and records */
};

void ship_init(struct ship *s, const struct ship_config *c);
void ship_fini(struct ship *s);
/* A record has been added to the log; the position behind it. */
uint64_t ship_append(struct ship *s, uint8_t type, struct str payload, int64_t now_ns);
/* Is what lies before this position with everyone who is in step? */
bool ship_has(const struct ship *s, uint64_t position);
/* Who is in step, if that is to be written now: how many; -1: nothing is, or something is being
 * written.  Its end is told to ship_recorded(). */
int ship_unrecorded(struct ship *s, uint64_t states[SHIP_MAX_STANDBYS]);
/* is_done false: perhaps it was written, and perhaps not. */
void ship_recorded(struct ship *s, bool is_done);
int ship_count(const struct ship *s, bool in_step);
/* What a standby lacks, snapshot included. */
uint64_t ship_lag_bytes(const struct ship *s, const struct ship_standby *b);

enum ship_verdict {
    SHIP_ANSWER, /* `out` */
    SHIP_HOLD,   /* later: by ship_next().  out->slot is set; an earlier question of this slot that
                      is still held is void */
    SHIP_SNAPSHOT, /* ship_begin() must come next, with all that is live now */
    SHIP_FULL,     /* too many standbys */
    SHIP_TWIN,     /* another one, which lives, has a directory of the same identity: `slot` */
};
enum ship_verdict ship_ask(struct ship *s, const struct ship_question *q, int64_t now_ns,
                           struct ship_answer *out);
/* Takes the snapshot (the buffer is empty afterwards). */
void ship_begin(struct ship *s, int slot, struct buf *snapshot, int64_t now_ns,
                struct ship_answer *out);
/* A held question that is to be answered now; call until false. */
bool ship_next(struct ship *s, int64_t now_ns, struct ship_answer *out);
/* A standby that was in step until now and is late, or NULL; call until then.  Forgets those that
 * have not asked for long. */
const struct ship_standby *ship_tick(struct ship *s, int64_t now_ns);
