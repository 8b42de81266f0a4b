/* coordinator/token_log.h - what the journal's records say: requests, their tokens, their ends.
 *
 * A request's record holds what makes its answer: the body as it came, and what the body left open
 * (seed, number of tokens).  With it alone the answer can be computed again, token for token;
 * the tokens' records only save that work, so they may trail behind what a client has seen,
 * have gaps, or come twice.  A reader takes the next token of each sequence and skips the rest.
 *
 * Pure: bytes and structs.  Reading trusts nothing: a checksum says that bytes are what was written,
 * not by whom. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "coordinator/request.h"
#include "model/sampling.h"

/* On disk: append, never renumber. */
enum token_log_type {
    TOKEN_LOG_MODEL = 1, /* first of a file: what all the others were made with */
    TOKEN_LOG_REQUEST = 2,
    TOKEN_LOG_TOKEN = 3,
    TOKEN_LOG_END = 4,
};

/* Strings point into the record. */
struct token_log_model {
    uint64_t fingerprint;
    struct str formats, combine; /* as the configuration writes them */
};
struct token_log_request {
    uint64_t seq, owner; /* of the API key that it came with; 0: none */
    enum request_kind kind;
    int64_t created_s;
    uint64_t seed, prompt_hash;
    uint32_t max_tokens;
    struct str key, body; /* key "": none */
};
struct token_log_token {
    uint64_t seq;
    uint32_t index; /* in the answer */
    enum sched_finish finish;
    bool is_full; /* all of `sampled` was kept; else the token alone */
    struct sampled sampled;
    uint32_t choice;   /* of a request with several, from 0; `seq` is the first one's */
    uint32_t n_cached; /* with index 0: tokens of the prompt that were not computed */
    bool is_degraded;  /* experts were left out of it, or of one before */
};
enum token_log_outcome { TOKEN_LOG_DONE, TOKEN_LOG_FAILED, TOKEN_LOG_FORGOTTEN };
struct token_log_end {
    uint64_t seq;
    enum token_log_outcome outcome;
    uint32_t n_tokens;
    int64_t unix_us;
    int code; /* of a failure, and why */
    struct str text;
};

/* Appended to `out`: the payload of one record. */
void token_log_write_model(const struct token_log_model *m, struct buf *out);
void token_log_write_request(const struct token_log_request *r, struct buf *out);
void token_log_write_token(const struct token_log_token *t, struct buf *out);
void token_log_write_end(const struct token_log_end *e, struct buf *out);
/* false: not such a record. */
bool token_log_read_model(struct str payload, struct token_log_model *out);
bool token_log_read_request(struct str payload, struct token_log_request *out);
bool token_log_read_token(struct str payload, struct token_log_token *out);
bool token_log_read_end(struct str payload, struct token_log_end *out);

/* Of the ids of its prompts: does today's tokenizer still say the same? */
uint64_t token_log_prompt_hash(const struct request *r);
