/* tools/loadtest_report.h - what a load test has measured: percentiles as a table, as JSON and as a plot. */
#pragma once

#include "base/buf.h"
#include "tools/loadtest_run.h"

/* Milliseconds; all 0 without values. */
struct loadtest_spread_ms {
    int64_t n;
    double mean, p50, p90, p99, most;
};
/* Sorts the values; percentiles are those of the nearest rank. */
struct loadtest_spread_ms loadtest_spread_of(float *values_ms, int64_t n);

/* A request is good if its first token and each later one came in time. */
struct loadtest_goal {
    double first_ms, gap_ms;
};

struct loadtest_summary {
    int64_t outcomes[LOADTEST_OUTCOMES], n_good;
    int64_t prompt_tokens, output_tokens;
    double seconds;
    struct loadtest_spread_ms first, gap, whole; /* of those that were answered wholly */
};
void loadtest_sum_up(struct loadtest_result *r, const struct loadtest_goal *goal,
                     struct loadtest_summary *out);
void loadtest_write_table(const struct loadtest_result *r, const struct loadtest_summary *s,
                          const struct loadtest_goal *goal, struct buf *out);
struct loadtest_overload;
/* `overload` NULL: it was none. */
void loadtest_write_json(const struct loadtest_result *r, const struct loadtest_summary *s,
                         const struct loadtest_goal *goal, const struct loadtest_overload *overload,
                         struct buf *out);
/* The distributions of the three times, and tokens per second over the run. */
void loadtest_write_svg(const struct loadtest_result *r, const struct loadtest_summary *s,
                        struct buf *out);
