/* tools/loadtest_plan.h - the requests of `polymath loadtest`: a pure function of the options and a number.
 *
 * Prompts are token ids that every vocabulary has.  Those of one group begin with the same tokens, as
 * conversations with one system message do. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

enum loadtest_spread { LOADTEST_EVEN, LOADTEST_EXPONENTIAL };
/* A number of tokens: low to high evenly, or exponential with the mean `low`, at most `high`. */
struct loadtest_length {
    enum loadtest_spread spread;
    int low, high;
};
/* "64", "16-256" or "exp:128" (cut at eight times the mean); E_INVALID. */
int loadtest_read_length(const char *text, struct loadtest_length *out, struct err *e);

enum loadtest_arrival { LOADTEST_POISSON, LOADTEST_STEADY };
struct loadtest_load {
    double rate; /* requests per second; 0: closed loop */
    enum loadtest_arrival arrival;
    struct loadtest_length prompt, output;
    int prefix_tokens, n_groups; /* shared beginnings; prompts are at least one token longer */
    double temperature;
    int hang_up_tokens;   /* mean number of tokens after which a client leaves; 0: it stays */
    double hang_up_share; /* of the clients that do so; 0: all */
    uint64_t seed;
};

struct loadtest_request {
    int64_t gap_ns; /* after the one before; 0 in a closed loop */
    int n_prompt, n_output, group;
    int leaves_after; /* tokens; 0: it stays */
};
void loadtest_plan(const struct loadtest_load *l, uint64_t index, struct loadtest_request *out);
/* The body of a streaming completion; replaces what is in `out`, NUL-terminated. */
void loadtest_body(const struct loadtest_load *l, uint64_t index, struct buf *out);
