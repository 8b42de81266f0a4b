/* tools/bench_batch.h - `polymath bench batch`: what many streams at once get out of a cluster, and where
 * the time of a step goes.
 *
 * Owner: the main thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

int bench_batch_main(int argc, char **argv);

/* What a coordinator has counted up to a moment, from the text of its /metrics: seconds, but for the
 * numbers of tokens and steps. */
enum bench_batch_part {
    /* of a step's time, on the attention side's clock */
    BENCH_BATCH_ATTENTION,
    BENCH_BATCH_ROUTER,
    BENCH_BATCH_EXPERTS,
    BENCH_BATCH_HEAD,
    BENCH_BATCH_SAMPLING,
    /* the coordinator's loop, processor time beside the steps */
    BENCH_BATCH_SCHEDULER,
    BENCH_BATCH_READING,
    BENCH_BATCH_WRITING,
    BENCH_BATCH_HTTP,
    BENCH_BATCH_OTHER,
    BENCH_BATCH_PARTS
};
struct bench_batch_count {
    double tokens, steps, parts[BENCH_BATCH_PARTS];
    double two_lane_steps;
    double lanes_ratio; /* time of two lanes to one for steps like the latest; 0: not tried */
    int64_t at_ns;
};
void bench_batch_parse(const char *metrics, int64_t now_ns, struct bench_batch_count *out);

/* What lies between two moments. */
struct bench_batch_sample {
    double tokens_s, step_ms;          /* from one step's begin to the next one's */
    double rows;                       /* tokens of a step */
    double part_ms[BENCH_BATCH_PARTS]; /* of a step */
    double between_ms;                 /* of a step: no side computes */
    double own_ms;                     /* scheduler, tokenizer, parser and HTTP */
    double two_lanes_percent;          /* of the steps */
    double lanes_ratio;                /* as in the later count */
};
/* false: no step was done. */
bool bench_batch_between(const struct bench_batch_count *before,
                         const struct bench_batch_count *after, struct bench_batch_sample *out);
