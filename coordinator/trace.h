/* coordinator/trace.h - a recording of where the steps' time went, as a Chrome trace (JSON array form;
 * chrome://tracing and ui.perfetto.dev open it).
 *
 * One recording at a time, of so many seconds and at most TRACE_ITEMS spans; what comes when it is
 * full is counted.  Clocks of other machines are not asked: the time that a call took is known here,
 * what the other side says of waiting and working lies in the middle of it, and the rest is the
 * wire's, half before and half behind.
 *
 * In the trace, process 1 is the requests (a thread each), process 2 the steps (a thread for each
 * attention side), and TRACE_NODE_PID + id every node: an attention side's thread 1 is its engine,
 * the others the rounds of its lanes; an expert node's threads are the calls that it had at a time.
 *
 * Pure.  Owner: coordinator loop. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "rpc/wire.h"

enum { TRACE_ITEMS = 65536, TRACE_NODE_PID = 1000, TRACE_STEP_SEQS = 8, TRACE_ID_BYTES = 48 };

struct trace;
/* Spans that end from `now_ns` on are kept. */
struct trace *trace_new(int64_t now_ns);
void trace_free(struct trace **t);
bool trace_is_full(const struct trace *t);

/* A call of Step that has been answered, or has failed (`code`, no spans). */
struct trace_step {
    uint64_t step;
    uint32_t side; /* node id */
    const char *side_name;
    int64_t sent_ns, done_ns;
    uint64_t queue_us, compute_us; /* as the side says */
    uint32_t n_rows, n_seqs;
    uint64_t seqs[TRACE_STEP_SEQS]; /* the first of them */
    int code;
    const struct wire_step_report *report; /* NULL: none */
};
/* `name_of` gives a node's name, or NULL. */
void trace_add_step(struct trace *t, const struct trace_step *s,
                    const char *(*name_of)(void *ud, uint32_t node_id), void *ud);

/* A request that is over; 0 for what did not happen. */
struct trace_request {
    const char *id;        /* as its client sees it */
    const char *client_id; /* as its client named it; "": it did not */
    uint64_t seq;
    int64_t received_ns, started_ns, first_ns, over_ns;
    uint32_t n_prompt, n_output;
    int code;
};
void trace_add_request(struct trace *t, const struct trace_request *r);

/* Writes up to `n` more spans; false when that was the end of the array. */
bool trace_write(struct trace *t, size_t n, struct buf *out);
