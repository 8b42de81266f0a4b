/* engine/sample.h - logits + parameters + seed -> token id (step 12).
 *
 * Order: logit bias, penalties (repetition as in transformers, frequency and presence as
 * in OpenAI's reference), temperature, top-k, top-p on the renormalised rest, min-p.  The
 * random number for position p is a function of (seed, p) alone, so a replayed sequence
 * draws the same tokens.  Ties go to the lower id.  A grammar leaves the tokens that it allows and comes
 * after the penalties; without one nothing of it runs. */
#pragma once

#include "base/err.h"
#include "model/sampling.h"

struct constraint; /* model/grammar_tokens.h */

struct sampler;
struct sampler *sampler_new(int vocab_size);
void sampler_free(struct sampler **s);

/* What the sampler may look back at. */
struct sample_history {
    const int32_t *tokens; /* prompt, then output */
    int n_tokens, n_prompt;
    struct constraint *constraint; /* of the output, where the parameters have a grammar */
};

/* E_CORRUPT if a logit is not finite; E_INVALID if a parameter is out of its range or a token
 * of the history or of the bias is outside the vocabulary, or if there is a grammar and no constraint.
 * `out` is then untouched.  Allocates nothing but what a constraint remembers. */
int sample_token(struct sampler *s, const float *logits, const struct sampling *p,
                 const struct sample_history *history, uint64_t position, struct sampled *out);
/* XXH3-64 of the bits of n floats. */
uint64_t sample_logits_hash(const float *logits, int n);
