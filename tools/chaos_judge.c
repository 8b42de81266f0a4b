/* tools/chaos_judge.c - see chaos_judge.h. */
#include "tools/chaos_judge.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"

enum { KIND_BYTES = 72 };

struct pause {
    int64_t from_ns, to_ns;
};

struct pauses {
    struct pause *all; /* by beginning */
    int n, room;
};

void chaos_stream_token(struct chaos_stream *s, int32_t token, int64_t now_ns)
{
    if (s->n_tokens == s->room) {
        s->room = s->room ? 2 * s->room : 64;
        s->tokens = mem_resize(s->tokens, (size_t)s->room * sizeof *s->tokens);
        s->times_ns = mem_resize(s->times_ns, (size_t)s->room * sizeof *s->times_ns);
    }
    s->tokens[s->n_tokens] = token;
    s->times_ns[s->n_tokens++] = now_ns;
}

void chaos_stream_fini(struct chaos_stream *s)
{
    mem_free(s->tokens);
    mem_free(s->times_ns);
    *s = (struct chaos_stream){0};
}

/* ---- tokens and errors ------------------------------------------------------------------- */

static bool is_changed(const struct chaos_stream *s, const struct chaos_answer *known)
{
    if (s->n_tokens > known->n_tokens || (s->is_complete && s->n_tokens != known->n_tokens))
        return true;
    return s->n_tokens > 0 &&
           memcmp(s->tokens, known->tokens, (size_t)s->n_tokens * sizeof *s->tokens) != 0;
}

/* Numbers, and what lies far behind, differ from one request to the next and would make every
 * error its own kind. */
static void kind_of(const char *error, char out[CHAOS_ERROR_BYTES])
{
    size_t n = 0;
    for (const char *c = error; *c && n < KIND_BYTES - 1; c++)
        if (!isdigit((unsigned char)*c))
            out[n++] = *c;
        else if (n == 0 || out[n - 1] != '#')
            out[n++] = '#';
    out[n] = 0;
}

static void count_error(struct chaos_verdict *v, const char *error)
{
    char kind[CHAOS_ERROR_BYTES];
    kind_of(error[0] ? error : "ended early", kind);
    int i = 0;
    while (i < v->n_errors && strcmp(v->errors[i].text, kind) != 0)
        i++;
    if (i == v->n_errors && i == CHAOS_ERROR_KINDS) {
        i--; /* the last place counts all others */
        snprintf(v->errors[i].text, sizeof v->errors[i].text, "others");
    } else if (i == v->n_errors) {
        v->n_errors++;
        snprintf(v->errors[i].text, sizeof v->errors[i].text, "%s", kind);
    }
    v->errors[i].n++;
}

/* ---- pauses -------------------------------------------------------------------------------- */

static void add_pause(struct pauses *p, int64_t from_ns, int64_t to_ns)
{
    if (p->n == p->room) {
        p->room = p->room ? 2 * p->room : 1024;
        p->all = mem_resize(p->all, (size_t)p->room * sizeof *p->all);
    }
    p->all[p->n++] = (struct pause){from_ns, to_ns};
}

static int by_beginning(const void *a, const void *b)
{
    int64_t x = ((const struct pause *)a)->from_ns, y = ((const struct pause *)b)->from_ns;
    return x < y ? -1 : x > y;
}

static struct pauses pauses_of(const struct chaos_record *r)
{
    struct pauses p = {0};
    for (int i = 0; i < r->n_streams; i++) {
        const struct chaos_stream *s = &r->streams[i];
        for (int k = 1; k < s->n_tokens; k++)
            add_pause(&p, s->times_ns[k - 1], s->times_ns[k]);
        if (!s->is_complete && s->n_tokens > 0)
            add_pause(&p, s->times_ns[s->n_tokens - 1], s->ended_ns);
    }
    if (p.n > 0)
        qsort(p.all, (size_t)p.n, sizeof *p.all, by_beginning);
    return p;
}

static int64_t length(struct pause p)
{
    return p.to_ns - p.from_ns;
}

static int64_t longer(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static void begin_outage(struct chaos_verdict *v, int64_t after_ns)
{
    if (v->n_outages++ < CHAOS_KNOWN_OUTAGES)
        v->outages[v->n_outages - 1].after_ns = after_ns;
}

/* Disjoint times in which some stream paused for longer than `least_ns`, after `since_ns`. */
static void list_outages(const struct pauses *p, int64_t since_ns, int64_t least_ns,
                         struct chaos_verdict *v)
{
    int64_t from_ns = 0, until_ns = INT64_MIN;
    for (int i = 0; i < p->n; i++) {
        if (p->all[i].to_ns <= since_ns || length(p->all[i]) <= least_ns)
            continue;
        if (p->all[i].from_ns > until_ns) {
            from_ns = p->all[i].from_ns;
            begin_outage(v, from_ns - since_ns);
        }
        until_ns = longer(until_ns, p->all[i].to_ns);
        if (v->n_outages <= CHAOS_KNOWN_OUTAGES)
            v->outages[v->n_outages - 1].length_ns = until_ns - from_ns;
    }
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* A pause is put down to the first fault that falls into it, or to the latest one before it;
 * -1: it was over before the first. */
static int fault_of(const struct chaos_record *r, struct pause p)
{
    int low = 0, high = r->n_faults; /* the first fault not before the pause */
    while (low < high) {
        int middle = (low + high) / 2;
        if (r->fault_ns[middle] < p.from_ns)
            low = middle + 1;
        else
            high = middle;
    }
    return low < r->n_faults && r->fault_ns[low] < p.to_ns ? low : low - 1;
}

/* The longest pause of each fault, then their 99th percentile. */
static int64_t fault_p99(const struct chaos_record *r, const struct pauses *p)
{
    if (r->n_faults == 0)
        return 0;
    int64_t *longest = mem_array((size_t)r->n_faults, sizeof *longest), p99;
    for (int i = 0; i < p->n; i++) {
        int f = fault_of(r, p->all[i]);
        if (f >= 0)
            longest[f] = longer(longest[f], length(p->all[i]));
    }
    qsort(longest, (size_t)r->n_faults, sizeof *longest, by_size);
    p99 = longest[(r->n_faults * 99 + 99) / 100 - 1];
    mem_free(longest);
    return p99;
}

static void judge_pauses(const struct chaos_record *r, struct chaos_verdict *v)
{
    struct pauses p = pauses_of(r);
    int64_t first_ns = r->n_faults > 0 ? r->fault_ns[0] : CLOCK_NEVER;
    for (int i = 0; i < p.n; i++) {
        bool is_still = p.all[i].to_ns <= first_ns;
        int64_t *longest = is_still ? &v->still_pause_ns : &v->pause_ns;
        if (!is_still && length(p.all[i]) > *longest)
            v->pause_from_ns = p.all[i].from_ns;
        *longest = longer(*longest, length(p.all[i]));
    }
    v->pause_p99_ns = fault_p99(r, &p);
    list_outages(&p, first_ns, CHAOS_OUTAGE_NS + v->still_pause_ns, v);
    mem_free(p.all);
}

/* ---- all ----------------------------------------------------------------------------------- */

static void judge_speed(const struct chaos_record *r, struct chaos_verdict *v)
{
    int64_t split_ns = r->n_faults > 0 ? r->fault_ns[0] : CLOCK_NEVER;
    int64_t from_ns = CLOCK_NEVER, to_ns = INT64_MIN, n[2] = {0};
    for (int i = 0; i < r->n_streams; i++) {
        const struct chaos_stream *s = &r->streams[i];
        from_ns = s->began_ns < from_ns ? s->began_ns : from_ns;
        to_ns = longer(to_ns, s->ended_ns);
        for (int k = 0; k < s->n_tokens; k++)
            n[s->times_ns[k] > split_ns]++;
    }
    int64_t middle_ns = split_ns < to_ns ? split_ns : to_ns;
    if (middle_ns > from_ns)
        v->still_tokens_per_s = (double)n[0] * CLOCK_S / (double)(middle_ns - from_ns);
    if (to_ns > split_ns)
        v->tokens_per_s = (double)n[1] * CLOCK_S / (double)(to_ns - split_ns);
}

void chaos_judge(const struct chaos_record *r, struct chaos_verdict *v)
{
    *v = (struct chaos_verdict){.n_requests = r->n_streams, .n_faults = r->n_faults};
    for (int i = 0; i < r->n_streams; i++) {
        const struct chaos_stream *s = &r->streams[i];
        v->n_resumed += s->n_resumes > 0;
        v->n_refused += s->n_refusals > 0;
        v->n_changed += r->answers && is_changed(s, &r->answers[s->prompt]);
        if (s->n_tokens > 0)
            v->first_token_ns = longer(v->first_token_ns, s->times_ns[0] - s->began_ns);
        if (!s->is_complete) {
            v->n_lost++;
            count_error(v, s->error);
        }
    }
    judge_pauses(r, v);
    judge_speed(r, v);
}

int64_t chaos_most_pause_ns(const struct chaos_verdict *v, const struct chaos_target *t)
{
    if (t->pause_ms < 0)
        return -1;
    return t->pause_ms * CLOCK_MS + t->pause_steps * v->still_pause_ns;
}

/* Begins a clause. */
static struct buf *clause(struct buf *out)
{
    if (out->len > 0)
        buf_puts(out, "; ");
    return out;
}

static void miss_once(const struct chaos_verdict *v, struct buf *out)
{
    buf_printf(clause(out), "%d pauses for %d fault%s", v->n_outages, v->n_faults,
               v->n_faults == 1 ? "" : "s");
    for (int i = 0; i < v->n_outages && i < CHAOS_KNOWN_OUTAGES; i++)
        buf_printf(out, "%s %lld ms at %.2f s", i == 0 ? ":" : ",",
                   (long long)(v->outages[i].length_ns / CLOCK_MS),
                   (double)v->outages[i].after_ns / CLOCK_S);
    buf_puts(out, " after the first fault");
}

static void miss_streams(const struct chaos_verdict *v, const struct chaos_target *t,
                         struct buf *out)
{
    int64_t most_ns = chaos_most_pause_ns(v, t);
    if (v->n_requests == 0)
        buf_puts(clause(out), "no request was made");
    if (v->n_lost > 0)
        buf_printf(clause(out), "%d request%s lost", v->n_lost, v->n_lost == 1 ? "" : "s");
    if (v->n_changed > 0)
        buf_printf(clause(out), "%d stream%s with other tokens", v->n_changed,
                   v->n_changed == 1 ? "" : "s");
    if (most_ns >= 0 && v->pause_p99_ns > most_ns)
        buf_printf(clause(out), "a pause of %lld ms, at most %lld",
                   (long long)(v->pause_p99_ns / CLOCK_MS), (long long)(most_ns / CLOCK_MS));
    if (t->outage_once && v->n_outages > v->n_faults)
        miss_once(v, out);
    if (t->refusal && v->n_refused == 0)
        buf_printf(clause(out), "nobody was refused because \"%s\"", t->refusal);
}

static void miss_whole(const struct chaos_target *t, const struct chaos_measures *m,
                       struct buf *out)
{
    double took_s = (double)m->whole_ns / CLOCK_S;
    if (m->whole_ns < 0)
        buf_puts(clause(out), "redundancy did not come back");
    else if (t->whole_s > 0 && m->whole_ns > t->whole_s * CLOCK_S)
        buf_printf(clause(out), "redundancy came back after %.1f s, at most %d", took_s,
                   t->whole_s);
    else if (t->whole_as_start && m->whole_ns > m->lease_ns + m->start_ns)
        buf_printf(
            clause(out),
            "redundancy came back after %.1f s; the lease is %.1f s, reading all took %.1f s",
            took_s, (double)m->lease_ns / CLOCK_S, (double)m->start_ns / CLOCK_S);
}

struct bench_summary chaos_rate_percent(const struct chaos_measures *m)
{
    struct bench_series percent = bench_ratio(&m->after_per_s, &m->remaining_per_s);
    for (int i = 0; i < percent.n; i++)
        percent.values[i] *= 100;
    return bench_summarise(&percent);
}

void chaos_misses(const struct chaos_verdict *v, const struct chaos_target *t,
                  const struct chaos_measures *m, struct buf *out)
{
    double percent = chaos_rate_percent(m).median;
    miss_streams(v, t, out);
    miss_whole(t, m, out);
    if (t->rate_percent > 0 && percent < t->rate_percent)
        buf_printf(clause(out), "%.0f tokens/s afterwards, %.0f %% of what the others give alone",
                   bench_summarise(&m->after_per_s).median, percent);
    if (t->growth_mib > 0 && m->growth_bytes > (int64_t)t->growth_mib << 20)
        buf_printf(clause(out), "a process grew by %.1f MiB, at most %d",
                   (double)m->growth_bytes / (1 << 20), t->growth_mib);
}
