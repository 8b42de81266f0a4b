/* coordinator/sched.h - the timetable: which sequences run in the next step (step 4 of a
 * token's path, and 13 on the way back).
 *
 * Continuous batching, pure: events in, actions out, no clock, socket or log.  Requests
 * wait in one queue, first come first served.  One is admitted when an attention side has
 * KV pages for its whole prompt and answer, so that an admitted sequence never runs out.
 * A step of a side takes one row of every decoding sequence and fills up with chunks of
 * prompts; each side has at most one step in flight.
 *
 * Invariants: every submitted sequence ends with exactly one SCHED_TOKEN that has a finish,
 * or one SCHED_FAIL, or the caller's own SCHED_CANCEL; sides are told to release exactly
 * the sequences that were sent to them; a sequence that ends while its step is in flight
 * keeps its pages until that step is over.
 *
 * Owner: coordinator loop. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "model/sampling.h"
#include "rpc/wire.h"

/* `prompt`, `sampling` and `stop_ids` stay the caller's and must live as long as the sequence. */
struct sched_submit {
    uint64_t seq; /* unique */
    const int32_t *prompt;
    uint32_t n_prompt, max_tokens; /* both at least 1 */
    const struct sampling *sampling;
    const int *stop_ids; /* end of sequence */
    int n_stop_ids;
    int64_t deadline_ns;
};

struct sched_side_limits {
    uint32_t id; /* the attention side's node id */
    uint32_t pages, page_tokens, max_rows, max_seqs;
};

enum sched_event_kind {
    SCHED_SUBMIT,
    SCHED_CANCEL, /* the caller has no interest in `seq` any more; unknown ones are fine */
    SCHED_SIDE_UP,
    SCHED_SIDE_DOWN, /* its sequences fail with `code` and `text` */
    SCHED_STEP_DONE, /* results of `step` */
    SCHED_STEP_FAILED,
    SCHED_TICK, /* time passes; only this starts steps, so that what a result led to is known */
};
struct sched_event {
    enum sched_event_kind kind;
    int64_t now_ns;
    struct sched_submit submit;
    uint64_t seq;
    struct sched_side_limits side; /* for all but SIDE_UP only the id counts */
    uint64_t step;
    const struct wire_step_reply *reply;
    int code;
    const char *text;
};

enum sched_action_kind {
    SCHED_SEND,    /* `step` to `side`; valid until the next event */
    SCHED_RELEASE, /* `seq` on `side` */
    SCHED_STARTED, /* `seq` left the queue */
    SCHED_TOKEN,   /* `seq` has `sampled`; borrowed from the event */
    SCHED_FAIL,    /* `seq` is over: `code`, `text` */
};
enum sched_finish { SCHED_GOES_ON, SCHED_STOP, SCHED_LENGTH };

enum { SCHED_TEXT_BYTES = 256 };
struct sched_action {
    enum sched_action_kind kind;
    uint32_t side;
    uint64_t seq;
    const struct wire_step *step;
    const struct sampled *sampled;
    enum sched_finish finish;
    int code;
    char text[SCHED_TEXT_BYTES];
};
/* The caller's; all-zero is empty.  sched_step() appends. */
struct sched_actions {
    struct sched_action *items;
    int n, room;
};
void sched_actions_fini(struct sched_actions *a);

struct sched_seq;
struct sched_side;
struct sched {
    int queue_limit;
    struct list queue;
    struct sched_side **sides;
    int n_sides;
    int n_queued, n_running;
    uint64_t last_step;
};

void sched_init(struct sched *s, int queue_limit);
void sched_fini(struct sched *s);
void sched_step(struct sched *s, const struct sched_event *e, struct sched_actions *out);

/* Tokens, prompt and answer together, that the roomiest side can hold for one sequence; 0
 * without sides. */
uint64_t sched_capacity_tokens(const struct sched *s);
bool sched_has_side(const struct sched *s, uint32_t id);
