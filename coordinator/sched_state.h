/* coordinator/sched_state.h - the timetable's state, shared by sched*.c only: sched.c has the events
 * and the ends of sequences, sched_place.c who runs where, sched_plan.c what is in a step, sched_heir.c
 * how sequences leave a side that goes. */
#pragma once

#include "base/must.h"
#include "coordinator/sched.h"
#include "coordinator/sched_lookup.h"

#define SCHED_NEVER INT64_MAX
enum { SCHED_MOVE_AFTER = 3 /* failures in a row, while another side does well */ };

/* Whoever shares the machine with others: an API key.  Lives while it has sequences, and then until
 * nobody has any. */
struct sched_key {
    struct list link;
    uint64_t id;
    uint32_t share, n_seqs, n_queued;
    uint64_t served; /* rows that were run for it, for each part of its share */
};

struct sched_seq {
    struct list link; /* queue, lost, or the side's prefilling, decoding or doomed list */
    struct sched_submit want;
    struct sched_key *key;
    struct sched_side *side; /* NULL while queued or lost */
    uint64_t order;          /* of submission */
    uint64_t pages;          /* that it has or is sure to get */
    uint64_t life_pages;     /* if it gets as long as it may */
    uint32_t fed;            /* tokens whose KV is on the side, as far as we know */
    uint32_t chunk;          /* rows of it in the step in flight; 0: not in it */
    uint32_t n_drafted;      /* of these rows, guesses */
    uint32_t n_output;
    uint32_t n_cached;     /* tokens of the prompt that were there when it first began */
    uint32_t n_blocks;     /* of `fed`, noted as what its side has */
    uint64_t block_number; /* of the last of them */
    struct lookup lookup;
    int n_replays; /* since the newest token */
    /* sched_heir.c: on another side, where what is known of this sequence is computed, too; NULL:
     * nowhere.  The heir's `heir_of` points back: it is nobody's sequence yet. */
    struct sched_seq *heir, *heir_of;
    int n_heirs; /* since the newest token */
    int n_held;  /* steps in which an heir could have taken over, and others had far to go */
    int64_t submitted_ns, started_ns;
    int64_t stalled_ns; /* since when it makes no progress; SCHED_NEVER: it does */
    bool is_started, is_lost, has_begun;
    bool is_sent;     /* the side may know it */
    bool is_degraded; /* experts were left out of what its tokens came from */
    bool is_decoded;  /* in the side's decoding list */
    bool is_doomed;   /* ended while in flight: released when the step is over */
    bool is_heirs;    /* its step in flight was planned when it was an heir, */
    bool is_closing;  /* and brings all that was known, and a sample */
};

struct sched_side {
    struct sched_side_limits limits;
    struct list prefilling, decoding, doomed;
    uint64_t pages_reserved; /* of its sequences' pages and life_pages the sums */
    uint64_t pages_promised;
    uint64_t pages_free; /* as it said with its newest answer */
    uint32_t n_seqs;
    uint32_t pages_said; /* fewer than limits.pages: those from when no step is in flight on */
    bool is_leaving;
    uint64_t step; /* in flight; 0: none */
    int64_t sent_ns, retry_ns, done_ns, failing_ns;
    int64_t step_ns;            /* smoothed, of steps with one row for each sequence; 0: unknown */
    uint32_t draft_permille;    /* of step_ns that one more row takes, smoothed; 0: unknown */
    uint32_t n_drafts;          /* in the step in flight */
    int n_failures;             /* in a row */
    char why[SCHED_TEXT_BYTES]; /* of the latest one */
    struct sched_seq **in_step;
    struct wire_step_seq *step_seqs;
    int32_t *step_tokens;
    size_t n_step_tokens, step_tokens_room;
    struct wire_step message;
    uint64_t *slots; /* sched_prefix.c; NULL: it keeps nothing */
    uint64_t n_slots;
    int32_t *block;
};

/* Tokens that are known: all of them must be fed before the next one can be sampled. */
static inline uint32_t sched_known(const struct sched_seq *q)
{
    return q->want.n_prompt + q->n_output;
}

static inline int32_t sched_token_at(const struct sched_seq *q, uint32_t position)
{
    if (position < q->want.n_prompt)
        return q->want.prompt[position];
    must(position - q->want.n_prompt < q->want.output->len);
    return q->want.output->ids[position - q->want.n_prompt];
}

/* sched.c */
struct sched_action *sched_act(struct sched_actions *out, enum sched_action_kind kind, uint64_t seq,
                               uint32_t side);
/* Its pages are free again; TELL_SIDE: and the side shall forget it. */
enum sched_told { SCHED_TELL_SIDE, SCHED_SIDE_IS_GONE };
void sched_leave_side(struct sched_seq *q, enum sched_told told, struct sched_actions *out);
void sched_free_seq(struct sched_seq *q);
/* It is on no side any more, the side is told, and it is replayed when there is room. */
void sched_lose(struct sched *s, struct sched_seq *q, struct sched_actions *out);

/* sched_place.c */
uint64_t sched_pages_of(const struct sched_side *d, uint64_t n_tokens);
/* Is there a side that could hold it, were it empty? */
bool sched_has_home(const struct sched *s, const struct sched_submit *w);
/* Pages that no sequence of the side has or may yet take without asking. */
uint64_t sched_pages_left(const struct sched_side *d);
/* Is it a's turn before b's? */
bool sched_goes_before(const struct sched *s, const struct sched_seq *a, const struct sched_seq *b,
                       int64_t now_ns);
/* The best side that has room for it now and is not leaving; NULL: none. */
struct sched_side *sched_side_for(const struct sched *s, const struct sched_seq *q);
/* It is there, has its pages, and is the last to be fed. */
void sched_settle_on(struct sched_seq *q, struct sched_side *d);
/* Brings waiting sequences to sides, as far as there is room. */
void sched_admit(struct sched *s, int64_t now_ns, struct sched_actions *out);
/* The side has fewer pages now: who does not fit any more is lost. */
void sched_shrink(struct sched *s, struct sched_side *d, int64_t now_ns, struct sched_actions *out);
/* One more page for `q`, at the cost of those whose turn comes last: false if that is `q` itself,
 * which then waits again. */
bool sched_give_page(struct sched *s, struct sched_seq *q, int64_t now_ns,
                     struct sched_actions *out);
/* How long one that comes now would wait in the queue. */
int64_t sched_wait_ns(const struct sched *s, const struct sched_submit *w, int64_t now_ns);

struct sched_key *sched_key_of(struct sched *s, const struct sched_submit *w);
void sched_key_leave(struct sched *s, struct sched_key *k);
/* Requests of that key that wait. */
uint32_t sched_key_queued(const struct sched *s, uint64_t id);
void sched_charge(struct sched_key *k, uint32_t rows);

/* sched_prefix.c: a guess of what the side has of a sequence's tokens. */
void sched_prefix_open(struct sched_side *d);
void sched_prefix_close(struct sched_side *d);
/* Tokens from the first on, whole pages, fewer than are known. */
uint32_t sched_prefix_match(const struct sched_side *d, const struct sched_seq *q);
/* It has fed more; the first n_known tokens are in its log. */
void sched_prefix_learn(struct sched_side *d, struct sched_seq *q, uint32_t n_known);
void sched_prefix_correct(struct sched_side *d, const struct sched_seq *q, uint32_t n_cached);
/* Is another one computing what this one begins with? */
bool sched_prefix_is_coming(const struct sched_side *d, const struct sched_seq *q);

/* sched_heir.c: heirs for those on sides that are leaving, as far as there is room. */
void sched_bequeath(struct sched *s);
/* Nothing is computed ahead for its sequence any more. */
void sched_drop_heir(struct sched_seq *heir, enum sched_told told, struct sched_actions *out);
/* Has an heir come so far that the sequence shall not go on where it is? */
static inline bool sched_is_closing(const struct sched_seq *q)
{
    return q->heir && q->heir->is_closing;
}
/* Pages for what has become known since it began; false: there are none left, and it is dropped. */
bool sched_feed_heir(struct sched_seq *heir, struct sched_actions *out);
/* The heir is the sequence from now on, and what was it is over. */
void sched_inherit(struct sched_seq *q, enum sched_told told, struct sched_actions *out);
/* A step that was planned for an heir was done, with a sample.  Does the sample count? */
bool sched_heir_closed(struct sched_seq *heir, struct sched_actions *out);

/* sched_plan.c: fills d->message and sends it, if there is anything to do. */
void sched_plan(struct sched *s, struct sched_side *d, int64_t now_ns, struct sched_actions *out);
