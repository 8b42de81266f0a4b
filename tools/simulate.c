/* tools/simulate.c - see simulate.h: many forecasts (forecast.h), and machines or racks that are
 * lost at once. */
#include "tools/simulate.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "tools/progress.h"

enum { MAX_SIZES = 16, MAX_LOSSES = 8, DEFAULT_STEPS = 40, DEFAULT_TRIALS = 500 };
#define GIB (1024.0 * 1024 * 1024)

struct list {
    int n, values[MAX_SIZES];
};

struct simulation {
    struct plan_options plan;
    struct list nodes, streams, losses;
    bool ignores_speed;
    double memory_gib, read_gb_s, jitter_us, straggler_share, straggler_speed;
    int racks, steps, trials;
    bool validates, is_given; /* machines by --hosts or --config */
    struct plan_model model;
    struct trace *trace;
    json_t *rows;
};

static void usage(FILE *out)
{
    fputs(
        "usage: polymath simulate [--nodes LIST | --hosts LIST | --config FILE] [OPTION]...\n"
        "       polymath simulate --validate --model DIR [--format F]\n\n"
        "Clusters of any size: the same code that places and chooses, against machines that are\n"
        "numbers.\n\n"
        "  --nodes LIST      so many equal machines, 1 to 2000 (default 2,4,8,16,64,256)\n"
        "  --memory GIB      of each (default: what --replicas copies take, or two)\n"
        "  --read GB/S       of each (default: this machine's, measured)\n"
        "  --streams LIST    streams that are served at once (default 1,8,32)\n"
        "  --jitter US       mean of what a node's answer comes late (default 0)\n"
        "  --stragglers X@S  a share X of the nodes reads at S times the speed that it said\n"
        "  --equal-choice    choose among copies as if all machines read alike, to compare\n"
        "  --lose LIST       so many machines lost at once (default 1,2,3)\n"
        "  --racks N         or racks, where the machines stand in N of them\n"
        "  --trials N        losses that are tried, at random (default 500)\n"
        "  --steps N         steps of each forecast (default 40)\n"
        "  --validate        predict 1, 2 and 4 expert nodes on this machine, start them, measure\n"
        "  --hosts, --config as for polymath plan\n" PLAN_USAGE
        "\nExit code: 0, 1 (failed), 2 misused.\n",
        out);
}

/* ---- losses ------------------------------------------------------------------------------ */

struct survival {
    int n_lost;
    double share;   /* of the trials in which every expert kept a copy */
    double experts; /* without a copy, mean of the other trials */
};

/* Machines of the same rack are lost together. */
static int list_racks(const struct plan_hosts *h, int *rack_of)
{
    int n = 0;
    for (int i = 0; i < h->n_hosts; i++) {
        rack_of[i] = -1;
        for (int k = 0; k < i && rack_of[i] < 0; k++)
            if (strcmp(h->hosts[k].rack, h->hosts[i].rack) == 0)
                rack_of[i] = rack_of[k];
        if (rack_of[i] < 0)
            rack_of[i] = n++;
    }
    return n;
}

struct trial {
    struct forecast *f;
    int *rack_of, *order, n_racks;
    bool *is_chosen; /* [n_racks] */
    struct rng rng;
};

static void set_lost(struct trial *t, int n_lost, bool is_lost)
{
    memset(t->is_chosen, 0, (size_t)t->n_racks * sizeof *t->is_chosen);
    for (int i = 0; i < n_lost; i++)
        t->is_chosen[t->order[i]] = true;
    for (int i = 0; i < t->f->n_nodes; i++)
        if (t->is_chosen[t->rack_of[t->f->host_of[i]]])
            t->f->is_lost[i] = is_lost;
}

static int64_t lose(struct trial *t, int n_lost)
{
    for (int i = 0; i < n_lost; i++) {
        int k = i + (int)rng_below(&t->rng, (uint64_t)(t->n_racks - i)), other = t->order[i];
        t->order[i] = t->order[k];
        t->order[k] = other;
    }
    set_lost(t, n_lost, true);
    int64_t gone = forecast_uncovered(t->f);
    set_lost(t, n_lost, false);
    return gone;
}

static int survive(const struct simulation *s, struct forecast *f, struct survival *out)
{
    int n_hosts = f->hosts->n_hosts, n = 0;
    struct trial t = {.f = f,
                      .rack_of = mem_array((size_t)n_hosts, sizeof(int)),
                      .order = mem_array((size_t)n_hosts, sizeof(int)),
                      .is_chosen = mem_array((size_t)n_hosts, sizeof(bool)),
                      .rng = rng_stream(s->plan.seed, 5)};
    t.n_racks = list_racks(f->hosts, t.rack_of);
    for (int i = 0; i < t.n_racks; i++)
        t.order[i] = i;
    for (int k = 0; k < s->losses.n && s->losses.values[k] < t.n_racks; k++) {
        int n_good = 0;
        double experts = 0;
        for (int trial = 0; trial < s->trials; trial++) {
            int64_t gone = lose(&t, s->losses.values[k]);
            n_good += gone == 0;
            experts += (double)gone;
        }
        int n_bad = s->trials - n_good;
        out[n++] = (struct survival){.n_lost = s->losses.values[k],
                                     .share = (double)n_good / s->trials,
                                     .experts = n_bad > 0 ? experts / n_bad : 0};
    }
    mem_free(t.rack_of);
    mem_free(t.order);
    mem_free(t.is_chosen);
    return n;
}

/* ---- one size ---------------------------------------------------------------------------- */

static void tell(const struct simulation *s, const struct forecast *f, int n_streams,
                 const struct forecast_step *p)
{
    const struct plan_host *h = &f->hosts->hosts[0];
    if (!s->plan.as_json)
        printf("%6d %7.1f %6.2f %8.1f %7d %5d %9.2f %9.1f %9.1f %8.2f %8.2f %9.1f\n", f->n_nodes,
               (double)h->memory_bytes / GIB, (double)f->n_copies / (double)f->placement.n_total,
               f->plan_ms, n_streams, p->lanes, p->tokens_s, p->step_ms, p->p99_ms, p->slowest,
               p->balance, p->wire_bytes / 1e3);
    must_zero(json_array_append_new(
        s->rows,
        json_pack("{s:i,s:i,s:f,s:f,s:f,s:f,s:i,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "nodes",
                  f->n_nodes, "lanes", p->lanes, "two_lanes_ratio", p->two_lanes, "hidden_ms",
                  p->hidden_ms, "copies", (double)f->n_copies / (double)f->placement.n_total,
                  "plan_ms", f->plan_ms, "streams", n_streams, "tokens_s", p->tokens_s, "step_ms",
                  p->step_ms, "step_p99_ms", p->p99_ms, "attention_ms", p->attention_ms,
                  "network_ms", p->network_ms, "experts_ms", p->experts_ms, "balance", p->balance,
                  "wire_bytes_per_token", p->wire_bytes)));
}

static void tell_survival(const struct simulation *s, const struct forecast *f,
                          const struct survival *v, int n)
{
    json_t *list = json_array();
    if (!s->plan.as_json && n > 0)
        printf("%6d   %s lost at once, all experts survive:", f->n_nodes,
               s->racks > 0 ? "racks" : "machines");
    for (int i = 0; i < n; i++) {
        if (!s->plan.as_json) {
            printf("  %d: %.1f %%", v[i].n_lost, 100 * v[i].share);
            if (v[i].share < 1)
                printf(" (else %.0f experts gone)", v[i].experts);
        }
        must_zero(
            json_array_append_new(list, json_pack("{s:i,s:f,s:f}", "lost", v[i].n_lost, "survived",
                                                  v[i].share, "experts_gone", v[i].experts)));
    }
    if (!s->plan.as_json && n > 0)
        printf("\n");
    must_zero(json_array_append_new(
        s->rows, json_pack("{s:i,s:i,s:o}", "nodes", f->n_nodes, "trials", s->trials,
                           s->racks > 0 ? "rack_losses" : "machine_losses", list)));
}

static void set_racks(const struct simulation *s, struct plan_hosts *h)
{
    for (int i = 0; i < h->n_hosts && s->racks > 0; i++)
        snprintf(h->hosts[i].rack, sizeof h->hosts[i].rack, "rack-%d", i % s->racks);
}

static int run_size(struct simulation *s, struct plan_hosts *h, struct progress *progress,
                    struct err *e)
{
    struct forecast f;
    struct forecast_options o = plan_forecast_options(&s->plan, h);
    o.jitter_ns = s->jitter_us * 1e3;
    o.straggler_share = s->straggler_share;
    o.straggler_speed = s->straggler_speed;
    o.ignores_speed = s->ignores_speed;
    set_racks(s, h);
    int rc = forecast_open(&s->model, h, s->trace, &o, &f, e);
    if (rc < 0)
        return rc;
    for (int i = 0; i < s->streams.n; i++) {
        struct forecast_step p;
        forecast_run(&f, s->streams.values[i], (double)s->plan.context, s->steps, &p);
        tell(s, &f, s->streams.values[i], &p);
        progress_add(progress, 1);
    }
    struct survival v[MAX_SIZES];
    tell_survival(s, &f, v, survive(s, &f, v));
    progress_add(progress, 1);
    forecast_close(&f);
    return 0;
}

/* What so many copies take, and a node's share more. */
static int64_t memory_of(const struct simulation *s, int n)
{
    if (s->memory_gib > 0)
        return (int64_t)(s->memory_gib * GIB);
    double experts = (double)s->model.n_layers * s->model.n_experts;
    int copies = s->plan.replicas > 0 ? s->plan.replicas : 2;
    copies = copies < n ? copies : n;
    return (int64_t)(ceil(experts * copies / n * 1.1 + 1) * s->model.expert_bytes);
}

static int run_all(struct simulation *s, struct err *e)
{
    struct plan_defaults d = s->plan.defaults;
    struct plan_hosts h;
    struct progress progress;
    d.read_bytes_s = s->read_gb_s * 1e9;
    int n_sizes = s->is_given ? 1 : s->nodes.n, rc = 0;
    progress_begin(&progress, "simulate", (int64_t)n_sizes * (s->streams.n + 1), PROGRESS_ITEMS);
    for (int i = 0; i < n_sizes && rc == 0; i++) {
        int n = s->nodes.values[i];
        rc = s->is_given ? plan_hosts_open(s->plan.hosts, s->plan.config, &d, &h, e)
                         : plan_hosts_equal(n, memory_of(s, n), &d, &h, e);
        if (rc == 0 && i == 0 && !s->plan.as_json)
            printf("%s %s, routes: %s, seed %llu; machines read %.1f GB/s, %g us, %g Gbit/s\n"
                   "%6s %7s %6s %8s %7s %5s %9s %9s %9s %8s %8s %9s\n",
                   s->model.name, s->model.format, trace_title(s->trace),
                   (unsigned long long)s->plan.seed, h.hosts[0].read_bytes_s / 1e9,
                   h.hosts[0].round_trip_ns / 1e3, h.hosts[0].wire_bytes_s * 8 / 1e9, "nodes",
                   "GiB", "copies", "plan ms", "streams", "lanes", "tok/s", "step ms", "p99",
                   "slowest", "balance", "KB/token");
        if (rc == 0)
            rc = run_size(s, &h, &progress, e);
        plan_hosts_close(&h);
    }
    progress_end(&progress);
    return rc;
}

static int simulate(struct simulation *s, struct err *e)
{
    const struct plan_options *o = &s->plan;
    int rc = plan_model_open(o->preset, o->dir, o->format, &s->model, e);
    if (rc == 0)
        rc = trace_open(o->trace, &s->model, o->skew, o->seed, &s->trace, e);
    s->rows = json_array();
    if (rc == 0)
        rc = run_all(s, e);
    if (rc == 0 && o->as_json) {
        json_t *root = json_pack("{s:i,s:s,s:s,s:s,s:I,s:O}", "version", 1, "model", s->model.name,
                                 "format", s->model.format, "routes", trace_title(s->trace), "seed",
                                 (json_int_t)o->seed, "rows", s->rows);
        char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        must(text);
        puts(text);
        free(text);
        json_decref(root);
    }
    json_decref(s->rows);
    trace_close(&s->trace);
    return rc;
}

/* ---- options ----------------------------------------------------------------------------- */

enum letter {
    NODES = 1,
    MEMORY,
    READ,
    STREAMS,
    JITTER,
    STRAGGLERS,
    EQUAL_CHOICE,
    LOSE,
    RACKS,
    TRIALS,
    STEPS
};

static bool read_list(const char *text, int most, struct list *out)
{
    *out = (struct list){0};
    for (;;) {
        char *end;
        long value = strtol(text, &end, 10);
        if (end == text || value < 1 || value > most || out->n == MAX_SIZES)
            return false;
        out->values[out->n++] = (int)value;
        if (*end == '\0')
            return true;
        if (*end != ',')
            return false;
        text = end + 1;
    }
}

static bool read_number(const char *text, double least, double most, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && *out >= least && *out <= most;
}

static bool read_one(const char *text, int most, int *out)
{
    struct list one;
    bool is_good = read_list(text, most, &one) && one.n == 1;
    *out = is_good ? one.values[0] : 0;
    return is_good;
}

static bool take(struct simulation *s, int letter, const char *value)
{
    int used = 0;
    switch (letter) {
    case NODES:
        return read_list(value, 2000, &s->nodes);
    case STREAMS:
        return read_list(value, 1024, &s->streams);
    case LOSE:
        return read_list(value, 2000, &s->losses) && s->losses.n <= MAX_LOSSES;
    case MEMORY:
        return read_number(value, 1e-6, 65536, &s->memory_gib);
    case READ:
        return read_number(value, 1e-3, 1e6, &s->read_gb_s);
    case JITTER:
        return read_number(value, 0, 1e7, &s->jitter_us);
    case STRAGGLERS:
        return sscanf(value, "%lf@%lf%n", &s->straggler_share, &s->straggler_speed, &used) == 2 &&
               value[used] == '\0' && s->straggler_share >= 0 && s->straggler_share <= 1 &&
               s->straggler_speed > 0 && s->straggler_speed <= 1;
    case EQUAL_CHOICE:
        return s->ignores_speed = true;
    case RACKS:
        return read_one(value, 2000, &s->racks);
    case TRIALS:
        return read_one(value, 1000000, &s->trials);
    default:
        return read_one(value, 100000, &s->steps);
    }
}

/* -1: go on; else the exit code. */
static int parse(struct simulation *s, int argc, char **argv)
{
    static const struct option options[] = {PLAN_LONG_OPTIONS,
                                            {"nodes", required_argument, NULL, NODES},
                                            {"memory", required_argument, NULL, MEMORY},
                                            {"read", required_argument, NULL, READ},
                                            {"streams", required_argument, NULL, STREAMS},
                                            {"jitter", required_argument, NULL, JITTER},
                                            {"stragglers", required_argument, NULL, STRAGGLERS},
                                            {"equal-choice", no_argument, NULL, EQUAL_CHOICE},
                                            {"lose", required_argument, NULL, LOSE},
                                            {"racks", required_argument, NULL, RACKS},
                                            {"trials", required_argument, NULL, TRIALS},
                                            {"steps", required_argument, NULL, STEPS},
                                            {"validate", no_argument, NULL, 'v'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        struct err e = {0};
        int rc = plan_options_take(&s->plan, c, optarg, &e);
        s->validates |= c == 'v';
        if (c == 'h') {
            usage(stdout);
            return 0;
        }
        if (c == '?')
            return 2;
        if (rc < 0 || (rc == 0 && c != 'v' && !take(s, c, optarg))) {
            fprintf(stderr, "polymath simulate: '%s' is out of range; see --help\n", optarg);
            return 2;
        }
    }
    s->is_given = s->plan.hosts || s->plan.config;
    const char *why = optind < argc                  ? "it takes options only; see --help"
                      : s->validates && !s->plan.dir ? "--validate needs --model DIR"
                      : s->plan.hosts && s->plan.config
                          ? "--hosts and --config are one or the other"
                          : NULL;
    if (why)
        fprintf(stderr, "polymath simulate: %s\n", why);
    return why ? 2 : -1;
}

int simulate_main(int argc, char **argv)
{
    struct simulation s = {.nodes = {6, {2, 4, 8, 16, 64, 256}},
                           .streams = {3, {1, 8, 32}},
                           .losses = {3, {1, 2, 3}},
                           .straggler_speed = 1,
                           .steps = DEFAULT_STEPS,
                           .trials = DEFAULT_TRIALS};
    struct err e = {0};
    plan_options_defaults(&s.plan);
    int code = parse(&s, argc, argv);
    if (code >= 0)
        return code;
    int rc = s.validates ? simulate_validate(&s.plan, &e) : simulate(&s, &e);
    if (rc < 0)
        fprintf(stderr, "polymath simulate: %s\n", e.text);
    return rc < 0 ? 1 : 0;
}
