/* coordinator/request.h - one request's life as named steps:
 *
 *   RECEIVED -> QUEUED -> PREFILL -> DECODE -> DONE
 *                  \---------\----------\----> FAILED
 *
 * It holds what was asked, what came out so far, and what the client has not been sent yet.
 * Pure.  Owner: coordinator loop; the scheduler borrows prompt, sampling and stop ids while
 * the request is in its hands (QUEUED to DECODE). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "coordinator/sched.h"
#include "coordinator/stream.h"
#include "model/sampling.h"
#include "model/tokenizer.h"

/* Which endpoint, and so which dialect the answer is in: coordinator/dialect.h.  In the token log: new
 * ones at the end. */
enum request_kind {
    REQUEST_CHAT,
    REQUEST_COMPLETION,
    REQUEST_MESSAGES,
    REQUEST_RESPONSES,
    REQUEST_KINDS
};
enum request_state {
    REQUEST_RECEIVED,
    REQUEST_QUEUED,
    REQUEST_PREFILL,
    REQUEST_DECODE,
    REQUEST_DONE,
    REQUEST_FAILED,
};

enum request_ending {
    REQUEST_GOES_ON,
    REQUEST_STOPPED, /* by itself or at a stop string */
    REQUEST_CUT,     /* by a limit */
    REQUEST_CALLS,   /* tools */
};

enum { REQUEST_ID_BYTES = 48 };

/* Where the events that were sent left the answer, for dialects that number its parts. */
struct request_part {
    int n; /* begun so far */
    bool is_open;
    enum output_kind kind; /* OUTPUT_CALL for all of a call */
    int call;
};

struct request {
    uint64_t seq;
    char id[REQUEST_ID_BYTES]; /* "chatcmpl-...", as the client sees it */
    int64_t created_s;         /* since 1970 */
    enum request_kind kind;
    enum request_state state;

    /* what was asked */
    struct tokens prompt;
    uint32_t max_tokens; /* 0 until the limits are known: as many as fit the default */
    struct sampling sampling;
    bool streams, wants_usage, wants_token_ids, wants_logprobs, ignores_eos;
    struct stream text_of;
    char *grammar; /* sampling.grammar */

    /* what came out */
    struct tokens output;
    uint32_t n_cached;       /* tokens of the prompt that an attention side still had */
    struct sampled *samples; /* beside `output`, if log-probabilities or hashes are wanted */
    size_t samples_room;
    struct output_events said; /* not yet sent */
    struct output_events
        whole;          /* already sent; kept for REQUEST_RESPONSES, whose last events repeat all */
    size_t n_reasoning; /* output tokens that were reasoning */
    size_t n_sent;      /* tokens already sent */
    struct request_part part; /* that the next event goes on with, if it is of its kind */
    uint64_t seen;            /* events up to this id need not be written: openai_write_events() */
    bool is_degraded;         /* experts were left out: the answer is marked, from there on */
    enum sched_finish finish;
    int code; /* of a failure */
    char error[SCHED_TEXT_BYTES];
};

void request_init(struct request *r, enum request_kind kind, uint64_t seq, int64_t created_s);
void request_fini(struct request *r);

void request_queued(struct request *r);
void request_started(struct request *r);
/* One more token.  true if the request is DONE with it: by `finish`, or because a stop
 * string came up (then the scheduler does not know yet). */
bool request_token(struct request *r, const struct sampled *sampled, enum sched_finish finish);
void request_failed(struct request *r, int code, const char *text);
/* What was there to send has been sent. */
void request_sent(struct request *r);
/* Is there something to send? */
bool request_has_events(const struct request *r);
enum request_ending request_ending(const struct request *r);
/* Moves `p` past an event. */
enum request_step {
    REQUEST_SAME_PART,
    REQUEST_NEW_PART,  /* and if one was open it has ended */
    REQUEST_PART_ENDS, /* the event is the end of the part that was open */
};
enum request_step request_pass(struct request_part *p, const struct output_event *event);
static inline bool request_is_over(const struct request *r)
{
    return r->state == REQUEST_DONE || r->state == REQUEST_FAILED;
}
