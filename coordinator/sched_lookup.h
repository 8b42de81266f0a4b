/* coordinator/sched_lookup.h - guesses of the tokens that come next, looked up in the sequence's own
 * text: after three tokens that were there before, what followed them then.
 *
 * Guesses ride along as extra rows of a step, which says how many came true; so they change no token,
 * only the time.  How long they are follows from how they do, and while they do not pay there are
 * none, but for a short one now and then.  Pure. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Prompt and answer so far; borrowed. */
struct lookup_text {
    const int32_t *prompt, *output;
    uint32_t n_prompt, n_output;
};

/* All-zero is new. */
struct lookup {
    uint32_t *slots; /* where three tokens were seen last: the position behind them; 0: nowhere */
    uint32_t n_slots, n_indexed;
    uint32_t length;            /* of the next guess */
    uint32_t rate_permille;     /* of guessed tokens that came true, smoothed */
    uint32_t pause, next_pause; /* tokens without a guess */
};
void lookup_fini(struct lookup *l);

/* Up to `most` tokens into `out`; how many.  Asked once for each token of the answer.
 * `cost_permille`: what one more row costs against what one token more gives. */
uint32_t lookup_guess(struct lookup *l, const struct lookup_text *t, uint32_t most,
                      uint32_t cost_permille, int32_t *out);
/* Of n_guessed the first n_true came true. */
void lookup_learn(struct lookup *l, uint32_t n_guessed, uint32_t n_true);
