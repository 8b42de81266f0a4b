/* coordinator/request.h - one request's life as named steps:
 *
 *   RECEIVED -> QUEUED -> PREFILL -> DECODE -> DONE
 *                  \---------\----------\----> FAILED
 *
 * It holds what was asked, what came out so far, and what the client has not been sent yet.
 *
 * A request for several answers (n, best_of, several prompts) is a chain of them, the choices, each with a
 * sequence of its own; the first one speaks for all: it alone can fail, and what has one value only (kind,
 * streams, created_s ...) is read there.  Choice i of a prompt has the request's seed plus i, so it is
 * what the same request gives alone with that seed.
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

enum { REQUEST_ID_BYTES = 48, REQUEST_MAX_CHOICES = 128, REQUEST_MOST = 9 };

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
    bool echoes; /* the prompt's text goes before the answer's */
    struct stream text_of;
    char *grammar; /* sampling.grammar; the first choice's */
    int raise;     /* classes of priority above its key's; REQUEST_MOST either way: to the end */
    struct buf
        echo; /* JSON of fields that an answer of REQUEST_RESPONSES repeats; the first choice's */
    bool names_tier; /* the answer says which service_tier was granted */
    int n_wanted;    /* answers to each prompt */
    int n_tried;     /* sequences for each prompt: the likeliest n_wanted are the answer */

    /* the chain */
    struct request *next; /* owned by the one before; its seq is one higher */
    int n_choices;        /* of the first: all of the chain */
    int index;            /* in the chain */
    bool borrows_prompt;  /* from a choice before */

    /* what came out */
    const char *tier; /* granted, static: default, flex, priority; NULL: not asked, or not known */
    struct tokens output;
    uint32_t n_cached;       /* tokens of the prompt that an attention side still had */
    struct sampled *samples; /* beside `output`, if log-probabilities or hashes are wanted */
    size_t samples_room;
    struct output_events said; /* not yet sent */
    struct output_events
        whole;          /* already sent; kept for REQUEST_RESPONSES, whose last events repeat all */
    size_t n_reasoning; /* output tokens that were reasoning */
    size_t n_sent;      /* tokens already sent */
    bool end_is_sent;
    struct request_part part; /* that the next event goes on with, if it is of its kind */
    size_t part_from;         /* its first event in `whole` */
    uint64_t seen;            /* events up to this id need not be written: openai_write_events() */
    uint64_t seen_past;       /* of the first of several: of the events after the last token */
    bool is_degraded;         /* experts were left out: the answer is marked, */
    size_t degraded_from;     /* from this token on */
    enum sched_finish finish, given; /* with the newest token: ours, and as the scheduler gave it */
    int code;                        /* of a failure */
    char error[SCHED_TEXT_BYTES];
};

void request_init(struct request *r, enum request_kind kind, uint64_t seq, int64_t created_s);
void request_fini(struct request *r);
/* Its number, and with it the id that the client sees; of the whole chain. */
void request_number(struct request *r, uint64_t seq);

/* Once it is understood: one choice becomes n_tried for its prompt, and as many for each of `more`
 * prompts, whose ids are taken over. */
void request_spread(struct request *r, struct tokens *more, int n_more);
/* What a record of the request repeats: of the first choice, and what follows from it for all. */
void request_set_seed(struct request *r, uint64_t seed);
/* From a fresh parse of its body: queued with the numbers that it was admitted with. */
void request_repeat(struct request *r, uint32_t max_tokens, uint64_t seed);
/* The same request, queued, as if nothing had come out of it yet; without its grammar, which only sampling needs. */
void request_again(const struct request *r, struct request *out);
/* The choice with this sequence; NULL if it is another request's. */
struct request *request_choice(struct request *r, uint64_t seq);
/* Sums, each prompt once. */
size_t request_prompt_tokens(const struct request *r);
size_t request_output_tokens(const struct request *r);
/* Must all of what was sampled be kept beside the tokens? */
bool request_keeps_samples(const struct request *r);
/* The choices that are the answer, best first, prompt by prompt, into `out` [n_choices]; how many. */
int request_answers(const struct request *r, const struct request **out);

/* Where a stream's reader is, an event's id: the number of tokens seen; of several choices, of each,
 * joined by '.', and past the last tokens one number more.  `seen` has n_choices + 1 numbers.
 * false: not such an id. */
bool request_read_seen(const struct request *r, const char *id, uint64_t *seen);
/* NULL: the beginning. */
void request_set_seen(struct request *r, const uint64_t *seen);

/* Of the whole chain. */
void request_queued(struct request *r);
/* Of one choice, like request_token() and request_has_events(). */
void request_started(struct request *r);
/* One more token.  true if the request is DONE with it: by `finish`, or because a stop
 * string came up (then the scheduler does not know yet). */
bool request_token(struct request *r, const struct sampled *sampled, enum sched_finish finish);
void request_failed(struct request *r, int code, const char *text);
/* What was there to send, of the whole chain, has been sent. */
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
/* Has every choice ended? */
static inline bool request_is_done(const struct request *r)
{
    while (r && r->state == REQUEST_DONE)
        r = r->next;
    return !r;
}
static inline bool request_is_over(const struct request *r)
{
    return r->state == REQUEST_FAILED || request_is_done(r);
}
