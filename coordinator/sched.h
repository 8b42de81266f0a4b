/* coordinator/sched.h - the timetable: which sequences run in the next step (step 4 of a
 * token's path, and 13 on the way back), and on which attention side.
 *
 * Continuous batching, pure: events in, actions out, no clock, socket or log.  A step of a side has
 * one budget of rows: one for every decoding sequence, then chunks of prompts.  Each side has at
 * most one step in flight.
 *
 * Whose turn it is: the higher class of priority (waiting raises it, by one class in aging_ns); in a
 * class what was begun already; then the key that has had the least rows for its share; then first
 * come, first served.  Nobody overtakes who waits for room, so large ones get in, too.  A request
 * is refused at once if it would wait longer than queue_ns.
 *
 * KV pages are given as they are needed.  When a side has none left, the last in line there (lowest
 * class, youngest) makes place and is replayed later; so does a lower class for a higher one that
 * waits.  Among the sides that have room, the one with the least to do per free KV memory gets the
 * next sequence; but one that seems to keep more of its beginning is preferred, unless a token
 * costs several times as much there.
 *
 * Trouble: what a side holds is a function of the tokens that it was fed, and sampling one of
 * (sampling, n_prompt, tokens), so nothing is lost with a side or a step:
 *
 *   the side says that a step failed, and may succeed later   the same rows again, with backoff
 *   nobody knows whether the sequences moved                  the same; the side refuses them if
 *                                                             they did: E_PRECONDITION
 *   the side has not what we think, or answers nonsense       its sequences are replayed: prompt and
 *                                                             answer so far from position 0
 *   the side is gone                                          the same, on another side
 *   the side is leaving                                       the same, while it still decodes them:
 *                                                             another computes what there is, and
 *                                                             takes over when it has caught up
 *   a side fails while others do well                         the same, on another side
 *   the step itself is refused (E_INVALID ...)                its sequences fail
 *
 * A sequence without progress for patience_ns (no side that could hold it, or no step that
 * succeeds) fails; one that only waits for room on a side waits until its deadline.
 *
 * Invariants: every submitted sequence ends with exactly one SCHED_TOKEN that has a finish,
 * or one SCHED_FAIL, or the caller's own SCHED_CANCEL; a living side is told to release exactly
 * the sequences that were sent to it; a sequence that ends while its step is in flight
 * keeps its pages until that step is over.  A side that comes up (again) is taken to be empty.
 *
 * Owner: coordinator loop. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "model/sampling.h"
#include "model/tokenizer.h"
#include "rpc/wire.h"

struct sched_config {
    int queue_limit; /* requests that wait; three quarters of it for one key that is not 0 */
    int64_t patience_ns;
    int64_t queue_ns;      /* longest wait that is foreseen for whoever is let in; 0: any */
    int64_t aging_ns;      /* of waiting raise a sequence by one class; 0: never */
    uint32_t step_rows;    /* of a step; 0: as many as the side takes */
    uint32_t prompt_rows;  /* of these, for prompts while others decode; 0: all that are left */
    uint32_t draft_tokens; /* longest guess of what comes next, sched_lookup.h; 0: none */
};

/* `prompt`, `output`, `sampling` and `stop_ids` stay the caller's and must live as long as the
 * sequence. */
struct sched_submit {
    uint64_t seq; /* unique */
    const int32_t *prompt;
    /* The token log: the caller appends the token of every SCHED_TOKEN before the next event.
     * What is in it already counts as answered. */
    const struct tokens *output;
    bool is_resumed;               /* admitted in an earlier life: not refused for want of room */
    uint32_t n_prompt, max_tokens; /* both at least 1; max_tokens more than output has */
    uint64_t key;                  /* whose it is; 0: nobody's in particular */
    uint32_t share;                /* of that key; 0 is 1 */
    int priority;                  /* class, 0 to 9, higher first */
    const struct sampling *sampling;
    const int *stop_ids; /* end of sequence */
    int n_stop_ids;
    int64_t deadline_ns;
};

struct sched_side_limits {
    uint32_t id; /* the attention side's node id */
    uint32_t pages, page_tokens, max_rows, max_seqs;
    bool keeps_prefixes; /* and so wants all tokens of a sequence at its beginning */
    bool takes_drafts;
};

enum sched_event_kind {
    SCHED_SUBMIT,
    SCHED_CANCEL, /* the caller has no interest in `seq` any more; unknown ones are fine */
    SCHED_SIDE_UP,
    SCHED_SIDE_DOWN, /* its sequences are replayed elsewhere; `text` says why it is down */
    /* It will go as soon as it may: it gets no more sequences, and those that it has are handed over
     * to others.  Until SIDE_DOWN. */
    SCHED_SIDE_LEAVING,
    /* It has `side.pages` KV pages now, because it has borrowed or lost memory.  What it cannot hold
     * any more is replayed, there or elsewhere. */
    SCHED_SIDE_PAGES,
    SCHED_STEP_DONE,   /* results of `step` */
    SCHED_STEP_FAILED, /* `code`, as the side gave it or as the way there broke */
    SCHED_TICK, /* time passes; only this starts steps, so that what a result led to is known */
};
struct sched_event {
    enum sched_event_kind kind;
    int64_t now_ns;
    struct sched_submit submit;
    uint64_t seq;
    struct sched_side_limits side; /* for all but SIDE_UP and SIDE_PAGES only the id counts */
    uint64_t step;
    const struct wire_step_reply *reply;
    int code;
    const char *text;
};

enum sched_action_kind {
    SCHED_SEND,      /* `step` to `side`; valid until the next event */
    SCHED_RELEASE,   /* `seq` on `side` */
    SCHED_STARTED,   /* `seq` left the queue; once */
    SCHED_MOVED,     /* `seq`, which was started already, is replayed on `side` */
    SCHED_INHERITED, /* `seq` goes on on `side`, where that has been done while it went on */
    SCHED_TOKEN,     /* `seq` has `sampled`; borrowed from the event; several in one step if guesses
                    * came true: those after the owner has lost interest are to be ignored */
    SCHED_FAIL,      /* `seq` is over: `code`, `text` */
};
enum sched_finish { SCHED_GOES_ON, SCHED_STOP, SCHED_LENGTH };

enum { SCHED_TEXT_BYTES = 256 };
struct sched_action {
    enum sched_action_kind kind;
    uint32_t side;
    uint64_t seq;
    const struct wire_step *step;
    const struct sampled *sampled;
    bool is_degraded; /* with SCHED_TOKEN: experts were left out in its step or one before */
    enum sched_finish finish;
    int code;
    int retry_s;       /* of E_BUSY: when to come again */
    uint32_t n_cached; /* of SCHED_TOKEN: tokens of the prompt that were not fed */
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
    struct sched_config config;
    struct list queue; /* not started yet */
    struct list lost;  /* started, and on no side now: these go first */
    struct list keys;  /* that have had something to do lately */
    struct sched_side **sides;
    int n_sides;
    int n_queued, n_running; /* running: on a side, or lost */
    uint64_t last_step, last_order;
    uint64_t n_preempted;             /* sequences that made place for others */
    uint64_t n_drafted, n_draft_true; /* tokens that were guessed, and that came true */
    uint64_t n_cached_tokens;         /* that need not be fed, because a side had them */
    int64_t life_ns;                  /* that a sequence runs, smoothed; 0: unknown */
    bool had_side;                    /* before the first one nobody loses patience */
    char why_down[SCHED_TEXT_BYTES];  /* the latest SIDE_DOWN's text */
};

void sched_init(struct sched *s, const struct sched_config *c);
void sched_fini(struct sched *s);
void sched_step(struct sched *s, const struct sched_event *e, struct sched_actions *out);

/* Tokens, prompt and answer together, that the roomiest side can hold for one sequence; 0
 * without sides. */
uint64_t sched_capacity_tokens(const struct sched *s);
bool sched_has_side(const struct sched *s, uint32_t id);
/* Sequences that are on the side; 0 for an unknown one. */
uint32_t sched_side_seqs(const struct sched *s, uint32_t id);
/* Is there another side, which is not leaving, to take over what this one has? */
bool sched_has_heirs(const struct sched *s, uint32_t id);
