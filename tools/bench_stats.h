/* tools/bench_stats.h - what a benchmark measured: series of repetitions, their summary, and
 * a report of rows as a table for people or as JSON.
 *
 * A figure is the median of its repetitions with the smallest and the largest beside it; a
 * share is the median over repetitions of the figure divided by the ceiling that was
 * measured right before it, so that a machine that slows down for a while harms both. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

enum { BENCH_MAX_REPEAT = 101, BENCH_MAX_METRICS = 6 };

struct bench_series {
    int n;
    double values[BENCH_MAX_REPEAT];
};
/* Beyond BENCH_MAX_REPEAT values nothing is added. */
void bench_series_add(struct bench_series *s, double value);

struct bench_summary {
    double median, least, most;
};
/* All zero for an empty series; the median of an even number lies between the middle two. */
struct bench_summary bench_summarise(const struct bench_series *s);
/* Value by value a / b, as far as both have values; b = 0 gives 0. */
struct bench_series bench_ratio(const struct bench_series *a, const struct bench_series *b);

struct bench_metric {
    const char *key, *unit; /* "read_gb_s", "GB/s"; both borrowed */
    struct bench_summary value;
    const char *share_of; /* NULL: no ceiling */
    struct bench_summary share;
};

struct bench_report {
    bool as_json;
    FILE *out;    /* the table; JSON goes there too, at the end */
    json_t *root; /* owned; "rows" holds an array */
};
void bench_report_begin(struct bench_report *r, bool as_json, FILE *out);
/* Facts about the run: a line of the table and a member of the JSON object. */
void bench_report_text(struct bench_report *r, const char *key, const char *value);
void bench_report_number(struct bench_report *r, const char *key, double value);
/* A line between rows for people only. */
void bench_report_note(struct bench_report *r, const char *text);
void bench_report_row(struct bench_report *r, const char *name, const struct bench_metric *metrics,
                      int n_metrics);
/* Prints the JSON, if that was asked for, and frees it. */
void bench_report_end(struct bench_report *r);

/* A metric from a series and, unless NULL, its ceiling in the same repetitions. */
struct bench_metric bench_metric_of(const char *key, const char *unit,
                                    const struct bench_series *values, const char *share_of,
                                    const struct bench_series *ceiling);
