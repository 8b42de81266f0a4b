/* base/stats.h - counters and log2 histograms, owned by one thread, read by snapshot. */
#pragma once

#include <stdint.h>

/* Written by one thread, read by any: relaxed atomics, so a reader sees a recent value. */
struct stats_counter {
    _Atomic int64_t value;
};
void stats_add(struct stats_counter *c, int64_t n);
int64_t stats_read(const struct stats_counter *c);

/* Bucket i counts values in [2^i, 2^(i+1)); bucket 0 also holds 0 and less. */
enum { STATS_BUCKETS = 48 };
struct stats_histogram {
    _Atomic int64_t buckets[STATS_BUCKETS];
    _Atomic int64_t count, sum;
};
void stats_record(struct stats_histogram *h, int64_t value);
/* The value below which share `q` (0 to 1) of what was recorded lies, interpolated
 * inside its bucket; 0 when nothing was recorded. */
double stats_quantile(const struct stats_histogram *h, double q);
