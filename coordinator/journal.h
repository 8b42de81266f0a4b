/* coordinator/journal.h - an append-only file of records that survives its process: the disk half
 * of the token log (what the records mean: coordinator/token_log.h).
 *
 * A state directory belongs to one process at a time (flock).  It holds `journal.N`: a header,
 * then records (coordinator/records.h).  Records are gathered for delay_ns, or for as
 * long as the previous write takes, and written and synced by a thread of their own, so that
 * no disk ever holds up the loop.  From time to time the owner has the whole state written anew
 * (a rewrite) to journal.N+1, which then replaces the old one: written beside it, synced, renamed.
 *
 * What was durable is never lost: not by a death (the tail is cut at the first record that is not
 * whole), not by a full disk (the log stops with an error, cuts off what it wrote in part, tries
 * again every second, and goes on where it stood).  Records may come back twice, after a rewrite:
 * reading them must be idempotent.
 *
 * A process that goes on after its successor has begun (it was stopped for a while) cannot spoil
 * anything: the successor's file has another name, which it cannot take, and what it appends to its
 * own, which has no name any more, counts as not written.
 *
 * Log events: journal.opened, journal.damaged, journal.stopped, journal.goes_on, journal.rewritten,
 * journal.rewrite_failed.
 *
 * Owner: coordinator loop. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "coordinator/records.h"
#include "rpc/loop.h"

struct journal_options {
    const char *dir;    /* made if it is not there */
    const char *holder; /* who we are, in one line: for those who find the directory in use */
    /* The end of that line for all of whom one at a time may have the directory, and it is us: a
     * holder that has it too cannot write any more, though it may live (stopped, or cut off),
     * and is not waited for.  "": there is nothing of the kind. */
    const char *led_through;
    bool syncs; /* to the disk: survives the machine's death; else only the process's */
    int64_t delay_ns;
    int64_t max_bytes; /* of a file; what would go over it stops the log until a rewrite */
    void (*on_durable)(void *ud);
    void (*on_stopped)(void *ud, const char *why);
    void *ud;
};

struct journal;
/* Locks the directory and hands over every whole record.  E_BUSY: another process holds it (the
 * text names it); E_CORRUPT: the newest file is no journal. */
int journal_open(const struct journal_options *o, records_each *each, void *ud,
                 struct journal **out, struct err *e);
/* Writes a new file with `snapshot` alone, which makes the old one superfluous, and is ready to
 * append.  Blocks. */
int journal_start(struct journal *j, struct loop *l, const struct buf *snapshot, struct err *e);
/* Writes what is pending; blocks. */
void journal_close(struct journal **j);

/* Adds a record to the log and returns its position: it is durable once journal_durable() is at
 * least that. */
uint64_t journal_append(struct journal *j, uint8_t type, struct str payload);
uint64_t journal_durable(const struct journal *j);
/* The position of the latest record. */
uint64_t journal_appended(const struct journal *j);
/* NULL while the log works. */
const char *journal_why_stopped(const struct journal *j);

/* Has the file grown so far beyond its beginning that a rewrite pays? */
bool journal_wants_rewrite(const struct journal *j);
/* Has the file replaced by this state, which is taken (the buffer is empty afterwards); it must hold
 * everything that was appended so far. */
void journal_rewrite(struct journal *j, struct buf *snapshot);
/* How many have come to their end, and well. */
uint64_t journal_rewrites(const struct journal *j);
/* Nothing waits to be written, or is being written. */
bool journal_is_idle(const struct journal *j);
int64_t journal_bytes(const struct journal *j);
