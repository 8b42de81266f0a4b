/* tools/loadtest_run.h - many streaming requests at a time from one thread, over libcurl's multi interface.
 *
 * In a closed loop so many clients ask again as soon as they are answered; in an open loop requests
 * begin when the plan says so, however many are under way, up to `max_open`: beyond it they begin late,
 * which is counted.  Owner: the calling thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "tools/loadtest_plan.h"

enum loadtest_outcome {
    LOADTEST_OK,
    LOADTEST_BUSY, /* 429 */
    LOADTEST_FAILED,
    LOADTEST_LEFT, /* it hung up, as planned */
    LOADTEST_OUTCOMES
};

struct loadtest_sample {
    enum loadtest_outcome outcome;
    int status; /* HTTP; 0: no answer */
    int n_prompt, n_tokens;
    float begin_s;                          /* since the run began */
    float first_ms, whole_ms, worst_gap_ms; /* 0: did not come to that */
};

struct loadtest_options {
    struct loadtest_load load;
    const char *url;        /* of the coordinator; borrowed */
    const char *key_header; /* "Authorization: Bearer ..."; NULL: none */
    int n_clients;          /* closed loop */
    int max_open;           /* open loop */
    int64_t n_requests;     /* 0: as many as begin within `run_ns` */
    int64_t run_ns;         /* 0: until n_requests have begun; what runs then is waited for */
    int64_t timeout_ns;     /* of one request */
    /* Called once a second and at the end; false: end at once.  May be NULL. */
    bool (*progress)(void *ud, int64_t elapsed_ns, int64_t n_over, int n_open);
    /* Of a closed loop of n_clients requests: every one has had its first token; then, the first answer
     * is over.  What lies between is decoding by all of them.  Both may be NULL. */
    void (*all_begun)(void *ud);
    void (*one_over)(void *ud);
    void *ud;
};

struct loadtest_result {
    struct loadtest_sample *samples; /* in the order of their ends */
    int64_t n_samples, samples_room;
    float *gaps_ms; /* between events of one stream, all streams */
    int64_t n_gaps, gaps_room;
    int64_t *tokens_by_second;
    int n_seconds, seconds_room;
    int64_t elapsed_ns, n_late; /* began 20 ms or more after they should have */
    int most_open;
    char error[256]; /* the first failure's */
};
void loadtest_result_fini(struct loadtest_result *r);
int loadtest_run(const struct loadtest_options *o, struct loadtest_result *out, struct err *e);
