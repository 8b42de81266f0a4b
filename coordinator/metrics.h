/* coordinator/metrics.h - Prometheus' text format 0.0.4: families and their samples.
 *
 * A family is begun once and its samples follow; the labels of a sample are added before its value
 * and are gone with it.  Names get the prefix "polymath_" (those of the process, which every
 * exporter calls the same, do not).  Pure. */
#pragma once

#include <stdint.h>

#include "base/buf.h"
#include "base/stats.h"

enum metrics_type { METRICS_COUNTER, METRICS_GAUGE, METRICS_HISTOGRAM };
enum { METRICS_NAME_BYTES = 96 };

/* All-zero but for `out`. */
struct metrics {
    struct buf *out;
    char name[METRICS_NAME_BYTES]; /* of the family */
    struct buf labels;             /* of the next sample */
};
void metrics_fini(struct metrics *m);

/* Counters end in _total; a unit is part of the name (_seconds, _bytes).  `help` is one line. */
void metrics_family(struct metrics *m, const char *name, enum metrics_type type, const char *help);
/* `value` may be any bytes: it is escaped, and what is no UTF-8 is replaced. */
void metrics_label(struct metrics *m, const char *name, const char *value);
void metrics_label_int(struct metrics *m, const char *name, int64_t value);
void metrics_int(struct metrics *m, int64_t value);
void metrics_double(struct metrics *m, double value);
/* Counts of microseconds, as a number of seconds. */
void metrics_us(struct metrics *m, int64_t us);
/* A family of one sample. */
void metrics_one(struct metrics *m, const char *name, enum metrics_type type, const char *help,
                 int64_t value);

/* A histogram's values in units of `unit` (1e-6: recorded microseconds, shown seconds); buckets
 * from 2^first to 2^last, the rest in the outermost ones. */
struct metrics_range {
    int first, last;
    double unit;
};
#define METRICS_SECONDS ((struct metrics_range){.first = 8, .last = 28, .unit = 1e-6})
void metrics_histogram(struct metrics *m, const struct stats_histogram *h, struct metrics_range r);
