/* tools/chaos_judge.h - what faults cost the clients: requests lost, tokens changed, pauses.
 *
 * Pure: works on what the load generator wrote down.  A pause is the time between two tokens of
 * one stream (or from its last token to its end, if it broke); what lies before the first fault
 * is the same cluster undisturbed, and its longest pause is what "one step" costs. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "tools/bench_stats.h"

enum { CHAOS_ERROR_BYTES = 112, CHAOS_ERROR_KINDS = 8, CHAOS_MAX_FAULTS = 1024 };
enum { CHAOS_KNOWN_OUTAGES = 8 };

/* One request, as its client saw it.  Owner: the client's thread, then the judge. */
struct chaos_stream {
    int prompt;
    int64_t began_ns, ended_ns;
    int32_t *tokens;
    int64_t *times_ns; /* when each came */
    int n_tokens, room;
    bool is_complete; /* ended as it was asked to */
    int n_resumes;
    int n_refusals;                /* how often it was refused for the reason that is expected */
    char error[CHAOS_ERROR_BYTES]; /* why it did not end as asked */
};
void chaos_stream_token(struct chaos_stream *s, int32_t token, int64_t now_ns);
void chaos_stream_fini(struct chaos_stream *s);

/* The tokens that a prompt is answered with when nothing is wrong. */
struct chaos_answer {
    int32_t *tokens;
    int n_tokens;
};

struct chaos_record {
    const struct chaos_stream *streams;
    int n_streams;
    const struct chaos_answer *answers; /* by prompt; NULL: not known yet */
    const int64_t *fault_ns;            /* ascending */
    int n_faults;
};

struct chaos_verdict {
    int n_requests, n_lost, n_changed, n_resumed, n_refused, n_faults;
    int64_t still_pause_ns; /* longest undisturbed */
    int64_t pause_ns;       /* longest since the first fault */
    int64_t pause_from_ns;  /* when it began */
    /* Each fault has a longest pause, up to the next fault; of those the 99th percentile. */
    int64_t pause_p99_ns;
    int64_t first_token_ns; /* longest wait for a first token */
    int n_outages;          /* separate times with pauses above CHAOS_OUTAGE_NS and one step */
    /* The first of them: since the first fault, and how long. */
    struct {
        int64_t after_ns, length_ns;
    } outages[CHAOS_KNOWN_OUTAGES];
    double still_tokens_per_s, tokens_per_s;
    struct {
        char text[CHAOS_ERROR_BYTES];
        int n;
    } errors[CHAOS_ERROR_KINDS]; /* what lost requests said, digits as '#' */
    int n_errors;
};
#define CHAOS_OUTAGE_NS (100 * INT64_C(1000000))

void chaos_judge(const struct chaos_record *r, struct chaos_verdict *v);

/* What was measured beside the clients' streams.  Zero: not asked. */
struct chaos_measures {
    int64_t start_ns; /* from the first process's start to full redundancy */
    int64_t lease_ns; /* after which a silent node is given up */
    int64_t whole_ns; /* longest time back to it after a fault; -1: it never came back */
    /* all clients' tokens a second after each fault, and then with the same nodes without it */
    struct bench_series after_per_s, remaining_per_s;
    int64_t growth_bytes; /* of the process that grew most, while it was attacked */
    long long n_attacks;
    int64_t stalled_ns; /* longest that chaos itself waited for a CPU while clients streamed */
};

/* What is promised.  A pause may last pause_ms and pause_steps steps. */
struct chaos_target {
    int pause_ms, pause_steps; /* -1 ms: any */
    bool outage_once;          /* at most one outage for each fault */
    int whole_s;               /* full redundancy again within this time; 0: not asked */
    bool whole_as_start; /* and, after the lease, within the time in which all was read first */
    int rate_percent;    /* chaos_rate_percent()'s median is at least this; 0: not asked */
    int growth_mib;      /* no process grows by more; 0: not asked */
    const char *refusal; /* requests were refused for this reason; NULL: not asked */
};
/* How fast the others are after a fault, in percent of what they give alone: each pair of
 * windows is one repetition, since rates a minute apart differ by more than is looked for. */
struct bench_summary chaos_rate_percent(const struct chaos_measures *m);
/* The longest pause that is allowed; -1: any. */
int64_t chaos_most_pause_ns(const struct chaos_verdict *v, const struct chaos_target *t);
/* Appends one clause for each promise that was not kept ("2 requests lost; ..."). */
void chaos_misses(const struct chaos_verdict *v, const struct chaos_target *t,
                  const struct chaos_measures *m, struct buf *out);
