/* coordinator/prepare.h - reading bodies away from the loop (steps 2 and 3 of a token's path).
 *
 * JSON, template, tokenizer and schema take a second for the largest bodies, and all streams would wait that
 * long.  Two threads do it: one for short bodies, in the order in which they came, one for long ones, of
 * which the shorter overtakes the longer, though nobody for ever: each byte counts as so much time of having
 * come later.
 *
 * Owner: coordinator loop.  A job that is being worked on belongs to its thread until `done` is called. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/list.h"
#include "rpc/loop.h"

enum {
    PREPARE_SHORT_BYTES = 64 << 10,
    PREPARE_NS_PER_BYTE = 1000, /* some ten times what a byte takes */
};

/* Embedded in the owner's. */
struct prepare_job {
    struct list link; /* while it waits */
    /* On one of the threads: may touch the job's own, and what everybody only reads. */
    void (*work)(struct prepare_job *job);
    int64_t due_ns;
    int lane;
    bool is_out; /* being worked on, or done and not yet told */
};

struct preparer;
/* `done` is called on the loop. */
int prepare_open(struct loop *l, int max_waiting, void (*done)(void *ud, struct prepare_job *job),
                 void *ud, struct preparer **out, struct err *e);
/* Waits for the jobs that are being worked on, and forgets all; `done` is not called any more. */
void prepare_close(struct preparer **p);

/* Of a body of n_bytes.  E_BUSY: too many wait, and nothing is done. */
int prepare_give(struct preparer *p, struct prepare_job *job, size_t n_bytes, int64_t now_ns);
/* true: it waited, and is forgotten; false: it is being worked on, and `done` will come. */
bool prepare_take_back(struct preparer *p, struct prepare_job *job);
