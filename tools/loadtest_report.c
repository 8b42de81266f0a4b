/* tools/loadtest_report.c - see loadtest_report.h. */
#include "tools/loadtest_report.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "tools/loadtest_overload.h"

/* ---- sums ---------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double rank(const float *sorted, int64_t n, double share)
{
    int64_t at = (int64_t)ceil(share * (double)n) - 1;
    return sorted[at < 0 ? 0 : at];
}

struct loadtest_spread_ms loadtest_spread_of(float *values_ms, int64_t n)
{
    struct loadtest_spread_ms s = {.n = n};
    if (n == 0)
        return s;
    qsort(values_ms, (size_t)n, sizeof(float), compare);
    for (int64_t i = 0; i < n; i++)
        s.mean += values_ms[i];
    s.mean /= (double)n;
    s.p50 = rank(values_ms, n, 0.5);
    s.p90 = rank(values_ms, n, 0.9);
    s.p99 = rank(values_ms, n, 0.99);
    s.most = values_ms[n - 1];
    return s;
}

enum times { FIRST, WHOLE };

/* Sorted; the caller's to mem_free(). */
static float *times_of(const struct loadtest_result *r, enum times which, int64_t *n)
{
    float *values = mem_array((size_t)r->n_samples + 1, sizeof *values);
    *n = 0;
    for (int64_t i = 0; i < r->n_samples; i++)
        if (r->samples[i].outcome == LOADTEST_OK)
            values[(*n)++] = which == FIRST ? r->samples[i].first_ms : r->samples[i].whole_ms;
    qsort(values, (size_t)*n, sizeof *values, compare);
    return values;
}

void loadtest_sum_up(struct loadtest_result *r, const struct loadtest_goal *goal,
                     struct loadtest_summary *out)
{
    *out = (struct loadtest_summary){.seconds = (double)r->elapsed_ns / 1e9};
    for (int64_t i = 0; i < r->n_samples; i++) {
        const struct loadtest_sample *s = &r->samples[i];
        out->outcomes[s->outcome]++;
        out->output_tokens += s->n_tokens;
        if (s->outcome != LOADTEST_OK)
            continue;
        out->prompt_tokens += s->n_prompt;
        out->n_good += s->first_ms <= goal->first_ms && s->worst_gap_ms <= goal->gap_ms;
    }
    int64_t n;
    float *values = times_of(r, FIRST, &n);
    out->first = loadtest_spread_of(values, n);
    mem_free(values);
    values = times_of(r, WHOLE, &n);
    out->whole = loadtest_spread_of(values, n);
    mem_free(values);
    out->gap = loadtest_spread_of(r->gaps_ms, r->n_gaps);
}

static double per_second(const struct loadtest_summary *s, int64_t n)
{
    return s->seconds > 0 ? (double)n / s->seconds : 0;
}

/* ---- table --------------------------------------------------------------------------------- */

static void row(struct buf *out, const char *name, const struct loadtest_spread_ms *s)
{
    buf_printf(out, "%-20s%10.2f%10.2f%10.2f%10.2f%10.2f\n", name, s->mean, s->p50, s->p90, s->p99,
               s->most);
}

void loadtest_write_table(const struct loadtest_result *r, const struct loadtest_summary *s,
                          const struct loadtest_goal *goal, struct buf *out)
{
    buf_printf(out,
               "%" PRId64 " requests in %.1f s, at most %d at a time: %" PRId64 " ok, %" PRId64
               " busy (429), %" PRId64 " failed",
               r->n_samples, s->seconds, r->most_open, s->outcomes[LOADTEST_OK],
               s->outcomes[LOADTEST_BUSY], s->outcomes[LOADTEST_FAILED]);
    if (s->outcomes[LOADTEST_LEFT] > 0)
        buf_printf(out, ", %" PRId64 " hung up", s->outcomes[LOADTEST_LEFT]);
    if (r->n_late > 0)
        buf_printf(out, ", %" PRId64 " began late", r->n_late);
    buf_printf(out, "\n\n%-20s%10s%10s%10s%10s%10s\n", "milliseconds", "mean", "50 %", "90 %",
               "99 %", "most");
    row(out, "first token", &s->first);
    row(out, "between tokens", &s->gap);
    row(out, "whole request", &s->whole);
    buf_printf(out,
               "\n%.1f tokens/s generated, %.1f prompt tokens/s\n"
               "goodput %.2f requests/s: %" PRId64
               " had their first token within %g ms and no gap over %g ms\n",
               per_second(s, s->output_tokens), per_second(s, s->prompt_tokens),
               per_second(s, s->n_good), s->n_good, goal->first_ms, goal->gap_ms);
    if (r->error[0])
        buf_printf(out, "the first failure: %s\n", r->error);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static json_t *spread_json(const struct loadtest_spread_ms *s)
{
    return json_pack("{s:I,s:f,s:f,s:f,s:f,s:f}", "n", (json_int_t)s->n, "mean", s->mean, "p50",
                     s->p50, "p90", s->p90, "p99", s->p99, "max", s->most);
}

static json_t *overload_json(const struct loadtest_overload *o)
{
    return json_pack("{s:f,s:f,s:f}", "capacity_per_second", o->capacity, "memory_rise_bytes",
                     o->rise_bytes, "memory_rise_bytes_per_minute", o->rise_bytes_per_minute);
}

void loadtest_write_json(const struct loadtest_result *r, const struct loadtest_summary *s,
                         const struct loadtest_goal *goal, const struct loadtest_overload *overload,
                         struct buf *out)
{
    json_t *seconds = json_array();
    for (int i = 0; i < r->n_seconds; i++)
        must_zero(json_array_append_new(seconds, json_integer(r->tokens_by_second[i])));
    json_t *error = json_string(r->error); /* NULL: no UTF-8 */
    json_t *o = json_pack(
        "{s:f,s:I,s:I,s:I,s:I,s:I,s:I,s:i,s:I,s:I,s:f,s:f,s:f,s:f,s:f,s:o,s:o,s:o,s:o,s:o}",
        "seconds", s->seconds, "requests", (json_int_t)r->n_samples, "ok",
        (json_int_t)s->outcomes[LOADTEST_OK], "busy", (json_int_t)s->outcomes[LOADTEST_BUSY],
        "failed", (json_int_t)s->outcomes[LOADTEST_FAILED], "hung_up",
        (json_int_t)s->outcomes[LOADTEST_LEFT], "began_late", (json_int_t)r->n_late, "most_open",
        r->most_open, "output_tokens", (json_int_t)s->output_tokens, "prompt_tokens",
        (json_int_t)s->prompt_tokens, "tokens_per_second", per_second(s, s->output_tokens),
        "goodput_per_second", per_second(s, s->n_good), "goal_first_ms", goal->first_ms,
        "goal_gap_ms", goal->gap_ms, "offered_per_second", per_second(s, r->n_samples),
        "first_token_ms", spread_json(&s->first), "between_tokens_ms", spread_json(&s->gap),
        "request_ms", spread_json(&s->whole), "tokens_by_second", seconds, "error",
        error ? error : json_string("?"));
    must(o);
    if (overload)
        must_zero(json_object_set_new(o, "overload", overload_json(overload)));
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    must(text);
    buf_puts(out, text);
    buf_putc(out, '\n');
    free(text);
    json_decref(o);
}

/* ---- plot ---------------------------------------------------------------------------------- */

enum {
    WIDTH = 900,
    HEIGHT = 360,
    LEFT = 56,
    TOP = 40,
    PANEL = 360,
    PANEL_HEIGHT = 260,
    STEPS = 200
};
enum { SECOND_LEFT = LEFT + PANEL + 80 };

/* A milliseconds axis of powers of ten. */
struct log_axis {
    double low, high; /* log10 */
};

static double x_of(const struct log_axis *a, double ms)
{
    double at = (log10(ms > 1e-3 ? ms : 1e-3) - a->low) / (a->high - a->low);
    return LEFT + PANEL * (at < 0 ? 0 : at > 1 ? 1 : at);
}

static void text_at(struct buf *out, double x, double y, const char *anchor, const char *text)
{
    buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor,
               text);
}

static void rule(struct buf *out, double x1, double y1, double x2, double y2)
{
    buf_printf(out, "<path class=\"grid\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", x1, y1, x2, y2);
}

static void curve(struct buf *out, const struct log_axis *a, const float *sorted, int64_t n,
                  const char *name, int index)
{
    static const char *const colours[] = {"#3f51b5", "#d2691e", "#2e8b57"};
    if (n > 0) {
        buf_printf(out, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"2\" d=\"",
                   colours[index]);
        for (int i = 0; i <= STEPS; i++) {
            double share = (double)i / STEPS;
            buf_printf(out, "%s%.1f %.1f", i ? "L" : "M", x_of(a, rank(sorted, n, share)),
                       TOP + PANEL_HEIGHT * (1 - share));
        }
        buf_puts(out, "\"/>\n");
    }
    buf_printf(out, "<text x=\"%d\" y=\"%d\" fill=\"%s\">%s</text>\n", LEFT + 8,
               TOP + 16 + 16 * index, colours[index], name);
}

static void write_times(struct buf *out, const struct loadtest_result *r,
                        const struct loadtest_summary *s)
{
    double low_ms = s->gap.n ? s->gap.p50 / 10 : 0.1, high_ms = s->whole.n ? s->whole.most : 10;
    struct log_axis a = {.low = floor(log10(low_ms > 1e-3 ? low_ms : 1e-3)),
                         .high = ceil(log10(high_ms > 1 ? high_ms : 1))};
    if (a.high <= a.low)
        a.high = a.low + 1;
    char label[32];
    text_at(out, LEFT, TOP - 16, "start", "Share of values below (milliseconds)");
    for (double p = a.low; p <= a.high; p++) {
        snprintf(label, sizeof label, "%g", pow(10, p));
        rule(out, x_of(&a, pow(10, p)), TOP, x_of(&a, pow(10, p)), TOP + PANEL_HEIGHT);
        text_at(out, x_of(&a, pow(10, p)), TOP + PANEL_HEIGHT + 18, "middle", label);
    }
    for (int i = 0; i <= 4; i++) {
        double y = TOP + PANEL_HEIGHT * (1 - i / 4.0);
        snprintf(label, sizeof label, "%d %%", 25 * i);
        rule(out, LEFT, y, LEFT + PANEL, y);
        text_at(out, LEFT - 6, y + 4, "end", label);
    }
    int64_t n;
    float *values = times_of(r, FIRST, &n);
    curve(out, &a, values, n, "first token", 0);
    mem_free(values);
    curve(out, &a, r->gaps_ms, r->n_gaps, "between tokens", 1);
    values = times_of(r, WHOLE, &n);
    curve(out, &a, values, n, "whole request", 2);
    mem_free(values);
}

/* To 4, 8, 20 or 40 times a power of ten: quarters of it are round, too. */
static int64_t round_up(int64_t n)
{
    static const int steps[] = {4, 8, 20, 40};
    for (int64_t power = 1;; power *= 10)
        for (int i = 0; i < 4; i++)
            if (steps[i] * power >= n)
                return steps[i] * power;
}

static void write_rate(struct buf *out, const struct loadtest_result *r)
{
    int64_t most = 4;
    char label[32];
    for (int i = 0; i < r->n_seconds; i++)
        most = r->tokens_by_second[i] > most ? r->tokens_by_second[i] : most;
    most = round_up(most);
    text_at(out, SECOND_LEFT, TOP - 16, "start", "Tokens generated in each second");
    for (int i = 0; i <= 4; i++) {
        double y = TOP + PANEL_HEIGHT * (1 - i / 4.0);
        snprintf(label, sizeof label, "%.4g", (double)most * i / 4);
        rule(out, SECOND_LEFT, y, SECOND_LEFT + PANEL, y);
        text_at(out, SECOND_LEFT - 6, y + 4, "end", label);
    }
    snprintf(label, sizeof label, "%d s", r->n_seconds);
    text_at(out, SECOND_LEFT, TOP + PANEL_HEIGHT + 18, "start", "0");
    text_at(out, SECOND_LEFT + PANEL, TOP + PANEL_HEIGHT + 18, "end", label);
    if (r->n_seconds == 0)
        return;
    buf_puts(out, "<path fill=\"none\" stroke=\"#3f51b5\" stroke-width=\"2\" d=\"");
    for (int i = 0; i < r->n_seconds; i++)
        buf_printf(out, "%s%.1f %.1f", i ? "L" : "M",
                   SECOND_LEFT + PANEL * (i + 0.5) / r->n_seconds,
                   TOP + PANEL_HEIGHT * (1 - (double)r->tokens_by_second[i] / (double)most));
    buf_puts(out, "\"/>\n");
}

void loadtest_write_svg(const struct loadtest_result *r, const struct loadtest_summary *s,
                        struct buf *out)
{
    buf_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
               "font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n"
               "<style>.grid{stroke:#ddd}</style>\n"
               "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
               WIDTH, HEIGHT);
    write_times(out, r, s);
    write_rate(out, r);
    buf_puts(out, "</svg>\n");
}
