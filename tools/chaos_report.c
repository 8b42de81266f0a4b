/* tools/chaos_report.c - what `polymath chaos` prints; see chaos.h. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/must.h"
#include "tools/chaos.h"

static const char *const outcome_names[] = {"kept", "MISSED", "skipped", "BROKEN"};

static double ms(int64_t ns)
{
    return (double)ns / CLOCK_MS;
}

static bool was_run(const struct chaos_result *r)
{
    return r->outcome == CHAOS_KEPT || r->outcome == CHAOS_MISSED;
}

void chaos_print_head(struct buf *out)
{
    buf_puts(
        out,
        "               requests  lost  other  faults  longest pause ms   still  first  whole  "
        "tokens/s     retries/hedges/\n"
        "scenario                       tokens            p99    limit    ms     ms      s  "
        "still/then   replays\n");
}

static void count_or_dash(long long n, char text[24])
{
    if (n < 0)
        snprintf(text, 24, "-");
    else
        snprintf(text, 24, "%lld", n);
}

/* As in logs, so that what happened then is found there. */
static const char *time_text(int64_t unix_us, char text[32])
{
    time_t s = (time_t)(unix_us / 1000000);
    struct tm tm;
    size_t n = strftime(text, 32, "%Y-%m-%dT%H:%M:%S", gmtime_r(&s, &tm));
    snprintf(text + n, 32 - n, ".%03dZ", (int)(unix_us / 1000 % 1000));
    return text;
}

static void print_numbers(const struct chaos_scenario *s, const struct chaos_result *r,
                          struct buf *out)
{
    const struct chaos_verdict *v = &r->verdict;
    char retries[24], hedges[24], replays[24], whole[24] = "-", limit[24] = "any";
    int64_t most_ns = chaos_most_pause_ns(v, &s->target);
    count_or_dash(r->retries, retries);
    count_or_dash(r->hedges, hedges);
    count_or_dash(r->replays, replays);
    if (r->measures.whole_ns > 0)
        snprintf(whole, sizeof whole, "%.2f", (double)r->measures.whole_ns / CLOCK_S);
    if (most_ns >= 0)
        snprintf(limit, sizeof limit, "%.0f", ms(most_ns));
    buf_printf(out, "%8d %5d %6d %7d %6.0f %6.0f %6s %7.1f %6.0f %6s %5.0f/%-5.0f %4s/%s/%-3s ",
               v->n_requests, v->n_lost, v->n_changed, v->n_faults, ms(v->pause_ns),
               ms(v->pause_p99_ns), limit, ms(v->still_pause_ns), ms(v->first_token_ns), whole,
               v->still_tokens_per_s, v->tokens_per_s, retries, hedges, replays);
}

static void share_of_others(const struct chaos_measures *m, struct buf *out)
{
    struct bench_summary percent = chaos_rate_percent(m);
    buf_printf(out, "%.0f %% [%.0f..%.0f] of what the others give alone", percent.median,
               percent.least, percent.most);
}

/* What only some scenarios measure. */
static void print_findings(const struct chaos_scenario *s, const struct chaos_result *r,
                           struct buf *out)
{
    static const char indent[] = "               ";
    const struct chaos_measures *m = &r->measures;
    const struct chaos_verdict *v = &r->verdict;
    if (r->outcome == CHAOS_MISSED && r->pause_from_us > 0)
        buf_printf(out, "%sthe longest pause began at %s\n", indent,
                   time_text(r->pause_from_us, (char[32]){0}));
    if (r->outcome == CHAOS_MISSED && m->stalled_ns > CHAOS_OUTAGE_NS)
        buf_printf(out, "%sthe machine was busy with other work: %.0f ms without a CPU\n", indent,
                   ms(m->stalled_ns));
    if (m->remaining_per_s.n > 0) {
        buf_printf(out, "%s%.0f tokens/s without the silent node, ", indent,
                   bench_summarise(&m->after_per_s).median);
        share_of_others(m, out);
        buf_puts(out, "\n");
    }
    if (m->n_attacks > 0)
        buf_printf(out, "%s%lld attacks; no process grew by more than %.1f MiB\n", indent,
                   m->n_attacks, (double)m->growth_bytes / (1 << 20));
    if (v->n_refused > 0)
        buf_printf(out, "%s%d of the requests were refused for a while: %s\n", indent, v->n_refused,
                   s->target.refusal);
    for (int i = 0; i < v->n_errors; i++)
        buf_printf(out, "%s%d x %s\n", indent, v->errors[i].n, v->errors[i].text);
}

void chaos_print_result(const struct chaos_scenario *s, const struct chaos_result *r,
                        struct buf *out)
{
    buf_printf(out, "%-14s ", s->name);
    if (was_run(r))
        print_numbers(s, r, out);
    buf_puts(out, outcome_names[r->outcome]);
    if (r->why.len > 0)
        buf_printf(out, ": %s", r->why.data);
    buf_puts(out, "\n");
    if (was_run(r))
        print_findings(s, r, out);
}

/* " ms", or " s" from a second on. */
static void span(int64_t ns, struct buf *out)
{
    if (ns < CLOCK_S)
        buf_printf(out, "%.0f ms", ms(ns));
    else
        buf_printf(out, "%.1f s", (double)ns / CLOCK_S);
}

static void row_findings(const struct chaos_result *r, struct buf *out)
{
    const struct chaos_measures *m = &r->measures;
    const struct chaos_verdict *v = &r->verdict;
    buf_printf(out, "%d requests", v->n_requests);
    if (v->n_faults > 1)
        buf_printf(out, ", %d faults", v->n_faults);
    if (m->remaining_per_s.n > 0) {
        buf_puts(out, "; then ");
        share_of_others(m, out);
    }
    if (m->n_attacks > 0)
        buf_printf(out, "; %lld attacks, no process grew by more than %.1f MiB", m->n_attacks,
                   (double)m->growth_bytes / (1 << 20));
    if (r->replays > 0)
        buf_printf(out, "; %lld sequences fed again", r->replays);
    if (v->n_refused > 0)
        buf_printf(out, "; %d refused for a while", v->n_refused);
    if (r->outcome == CHAOS_MISSED)
        buf_printf(out, "; **missed**: %s", r->why.data);
}

void chaos_print_row(const struct chaos_scenario *s, const struct chaos_result *r, struct buf *out)
{
    int64_t most_ns = chaos_most_pause_ns(&r->verdict, &s->target);
    buf_printf(out, "| %s (`%s`) | ", s->summary, s->name);
    if (!was_run(r)) {
        buf_printf(out, "| | | | | %s: %s |\n", outcome_names[r->outcome], r->why.data);
        return;
    }
    span(r->verdict.pause_ns, out);
    buf_puts(out, " | ");
    if (most_ns < 0)
        buf_puts(out, "any");
    else
        span(most_ns, out);
    buf_puts(out, " | ");
    if (r->measures.whole_ns > 0)
        span(r->measures.whole_ns, out);
    buf_printf(out, " | %d | %d | ", r->verdict.n_lost, r->verdict.n_changed);
    row_findings(r, out);
    buf_puts(out, " |\n");
}

static void set(json_t *object, const char *key, json_t *value)
{
    if (!value) /* a server's text that is no UTF-8 */
        value = json_string("?");
    must_zero(json_object_set_new(object, key, value));
}

static json_t *verdict_object(const struct chaos_verdict *v)
{
    json_t *o = json_object(), *errors = json_object(), *outages = json_array();
    set(o, "requests", json_integer(v->n_requests));
    set(o, "lost", json_integer(v->n_lost));
    set(o, "other_tokens", json_integer(v->n_changed));
    set(o, "resumed", json_integer(v->n_resumed));
    set(o, "refused", json_integer(v->n_refused));
    set(o, "faults", json_integer(v->n_faults));
    set(o, "pauses", json_integer(v->n_outages));
    for (int i = 0; i < v->n_outages && i < CHAOS_KNOWN_OUTAGES; i++)
        must_zero(json_array_append_new(outages, json_pack("{s:f,s:f}", "after_ms",
                                                           ms(v->outages[i].after_ns), "length_ms",
                                                           ms(v->outages[i].length_ns))));
    set(o, "outages", outages);
    set(o, "pause_ms", json_real(ms(v->pause_ns)));
    set(o, "pause_p99_ms", json_real(ms(v->pause_p99_ns)));
    set(o, "still_pause_ms", json_real(ms(v->still_pause_ns)));
    set(o, "first_token_ms", json_real(ms(v->first_token_ns)));
    set(o, "still_tokens_per_s", json_real(v->still_tokens_per_s));
    set(o, "tokens_per_s", json_real(v->tokens_per_s));
    for (int i = 0; i < v->n_errors; i++)
        set(errors, v->errors[i].text, json_integer(v->errors[i].n));
    set(o, "errors", errors);
    return o;
}

static json_t *series_array(const struct bench_series *s)
{
    json_t *a = json_array();
    for (int i = 0; i < s->n; i++)
        must_zero(json_array_append_new(a, json_real(s->values[i])));
    return a;
}

static void set_measures(json_t *o, const struct chaos_measures *m)
{
    set(o, "stalled_ms", json_real(ms(m->stalled_ns)));
    set(o, "start_s", json_real((double)m->start_ns / CLOCK_S));
    if (m->whole_ns != 0)
        set(o, "whole_s", m->whole_ns < 0 ? json_null() : json_real((double)m->whole_ns / CLOCK_S));
    if (m->remaining_per_s.n > 0) {
        set(o, "after_tokens_per_s", series_array(&m->after_per_s));
        set(o, "remaining_tokens_per_s", series_array(&m->remaining_per_s));
    }
    if (m->n_attacks > 0) {
        set(o, "attacks", json_integer(m->n_attacks));
        set(o, "growth_bytes", json_integer(m->growth_bytes));
    }
}

void chaos_print_json(const struct chaos_scenario *s, const struct chaos_result *r, struct buf *out)
{
    json_t *o = was_run(r) ? verdict_object(&r->verdict) : json_object();
    set(o, "scenario", json_string(s->name));
    set(o, "outcome", json_string(outcome_names[r->outcome]));
    if (r->why.len > 0)
        set(o, "why", json_string(r->why.data));
    if (r->pause_from_us > 0)
        set(o, "pause_from", json_string(time_text(r->pause_from_us, (char[32]){0})));
    if (was_run(r)) {
        int64_t most_ns = chaos_most_pause_ns(&r->verdict, &s->target);
        set(o, "limit_ms", most_ns < 0 ? json_null() : json_real(ms(most_ns)));
        set_measures(o, &r->measures);
    }
    if (r->retries >= 0) {
        set(o, "retries", json_integer(r->retries));
        set(o, "hedges", json_integer(r->hedges));
        set(o, "replays", json_integer(r->replays));
    }
    char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6) | JSON_SORT_KEYS);
    must(text);
    buf_printf(out, "%s\n", text);
    free(text);
    json_decref(o);
}
