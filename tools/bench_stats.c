/* tools/bench_stats.c - see bench_stats.h. */
#include "tools/bench_stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"

void bench_series_add(struct bench_series *s, double value)
{
    if (s->n < BENCH_MAX_REPEAT)
        s->values[s->n++] = value;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct bench_summary bench_summarise(const struct bench_series *s)
{
    double sorted[BENCH_MAX_REPEAT];
    if (s->n == 0)
        return (struct bench_summary){0};
    size_t n = (size_t)s->n;
    memcpy(sorted, s->values, n * sizeof(*sorted));
    qsort(sorted, n, sizeof(*sorted), compare_doubles);
    return (struct bench_summary){.median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2,
                                  .least = sorted[0],
                                  .most = sorted[n - 1]};
}

struct bench_series bench_ratio(const struct bench_series *a, const struct bench_series *b)
{
    struct bench_series out = {0};
    for (int i = 0; i < a->n && i < b->n; i++)
        bench_series_add(&out, b->values[i] > 0 ? a->values[i] / b->values[i] : 0);
    return out;
}

struct bench_metric bench_metric_of(const char *key, const char *unit,
                                    const struct bench_series *values, const char *share_of,
                                    const struct bench_series *ceiling)
{
    struct bench_metric m = {.key = key, .unit = unit, .value = bench_summarise(values)};
    if (ceiling) {
        struct bench_series share = bench_ratio(values, ceiling);
        m.share_of = share_of;
        m.share = bench_summarise(&share);
    }
    return m;
}

/* ---- the report ---- */

void bench_report_begin(struct bench_report *r, bool as_json, FILE *out)
{
    *r = (struct bench_report){.as_json = as_json, .out = out, .root = json_object()};
    must(r->root);
    must_zero(json_object_set_new(r->root, "rows", json_array()));
}

void bench_report_text(struct bench_report *r, const char *key, const char *value)
{
    if (!r->as_json)
        fprintf(r->out, "%-22s %s\n", key, value);
    must_zero(json_object_set_new(r->root, key, json_string(value)));
}

void bench_report_number(struct bench_report *r, const char *key, double value)
{
    if (!r->as_json)
        fprintf(r->out, "%-22s %.6g\n", key, value);
    must_zero(json_object_set_new(r->root, key, json_real(value)));
}

void bench_report_note(struct bench_report *r, const char *text)
{
    if (!r->as_json)
        fprintf(r->out, "%s\n", text);
}

/* Four significant figures, none after the point from 1,000 on. */
static int decimals(double value)
{
    double size = fabs(value);
    return size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
}

static void print_metric(FILE *out, const struct bench_metric *m)
{
    int digits = decimals(m->value.median);
    fprintf(out, "  %8.*f %s", digits, m->value.median, m->unit);
    if (m->value.least < m->value.most)
        fprintf(out, " [%.*f..%.*f]", digits, m->value.least, digits, m->value.most);
    if (m->share_of)
        fprintf(out, " %.2f of %s", m->share.median, m->share_of);
}

static json_t *summary_json(const struct bench_summary *s)
{
    json_t *root =
        json_pack("{s:f, s:f, s:f}", "median", s->median, "min", s->least, "max", s->most);
    must(root);
    return root;
}

void bench_report_row(struct bench_report *r, const char *name, const struct bench_metric *metrics,
                      int n_metrics)
{
    json_t *row = json_pack("{s:s}", "name", name);
    must(row);
    for (int i = 0; i < n_metrics; i++) {
        const struct bench_metric *m = &metrics[i];
        json_t *one = summary_json(&m->value);
        if (m->share_of) {
            json_t *share = summary_json(&m->share);
            must_zero(json_object_set_new(share, "of", json_string(m->share_of)));
            must_zero(json_object_set_new(one, "share", share));
        }
        must_zero(json_object_set_new(row, m->key, one));
    }
    must_zero(json_array_append_new(json_object_get(r->root, "rows"), row));
    if (r->as_json)
        return;
    fprintf(r->out, "%-34s", name);
    for (int i = 0; i < n_metrics; i++)
        print_metric(r->out, &metrics[i]);
    fprintf(r->out, "\n");
    fflush(r->out);
}

void bench_report_end(struct bench_report *r)
{
    if (r->as_json) {
        must_zero(json_dumpf(r->root, r->out, JSON_INDENT(2) | JSON_REAL_PRECISION(6)));
        fprintf(r->out, "\n");
    }
    json_decref(r->root);
    r->root = NULL;
}
