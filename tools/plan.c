/* tools/plan.c - `polymath plan`: the placement that the coordinator would make on these machines,
 * what may fail, and how fast it would be; see forecast.h for how that is reckoned. */
#include "tools/plan.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "base/rng.h"
#include "tools/plan_options.h"

enum { SHOWN_HOSTS = 24, MOST_PAIRS = 3000, N_BATCHES = 3, STEPS = 40 };
static const int batches[N_BATCHES] = {1, 8, 32};
#define GIB (1024.0 * 1024 * 1024)

static void usage(FILE *out)
{
    fputs(
        "usage: polymath plan [--hosts LIST | --config FILE] [OPTION]...\n\n"
        "What the coordinator would place on these machines, what may fail, how fast it is.\n\n"
        "  --hosts LIST      COUNTxGIB@GB/S with commas between, such as 4x64@80,128@120: so many\n"
        "                    machines with so much memory for experts that is read so fast;\n"
        "                    without @ as fast as this one, which is then measured\n"
        "  --config FILE     a line for each kind of machine: name=big count=4 memory=64GiB\n"
        "                    read_gb_s=80 nodes=2 rack=a wire_gbit=10 round_trip_us=150\n"
        "                    (with neither: this machine alone)\n"
        "  --kv GIB[+GIB]... memory of a side's KV cache, and of machines that lend it theirs: "
        "says\n"
        "                    how long a context may be\n"
        "  --probe           only measure this machine, and print its line for "
        "--config\n" PLAN_USAGE
        "\nExit code: 0, 1 (the model does not fit, or a file is bad), 2 misused.\n",
        out);
}

/* What a loss takes. */
struct loss {
    const char *what;
    int n_tried, n_bad;
    int64_t worst;       /* experts without a copy */
    int64_t most_copies; /* to make again */
    bool is_sample;
};

static void note_loss(struct loss *l, const struct forecast *f)
{
    int64_t gone = forecast_uncovered(f), copies = forecast_lost_copies(f);
    l->n_tried++;
    l->n_bad += gone > 0;
    l->worst = gone > l->worst ? gone : l->worst;
    l->most_copies = copies > l->most_copies ? copies : l->most_copies;
}

static struct loss lose_one_node(struct forecast *f)
{
    struct loss l = {.what = "any one node"};
    for (int i = 0; i < f->n_nodes; i++) {
        f->is_lost[i] = true;
        note_loss(&l, f);
        f->is_lost[i] = false;
    }
    return l;
}

static struct loss lose_one_host(struct forecast *f)
{
    struct loss l = {.what = "any one machine"};
    for (int i = 0; i < f->hosts->n_hosts; i++) {
        forecast_lose_host(f, i, true);
        note_loss(&l, f);
        forecast_lose_host(f, i, false);
    }
    return l;
}

static bool same_rack(const struct plan_hosts *h, int a, int b)
{
    return strcmp(h->hosts[a].rack, h->hosts[b].rack) == 0;
}

/* Nothing is tried where every machine is a rack of its own, or all are in one. */
static struct loss lose_one_rack(struct forecast *f)
{
    const struct plan_hosts *h = f->hosts;
    struct loss l = {.what = "any one rack"};
    int n_racks = 0;
    for (int i = 0; i < h->n_hosts; i++) {
        int first = 0;
        while (!same_rack(h, first, i))
            first++;
        n_racks += first == i;
    }
    for (int i = 0; i < h->n_hosts && n_racks > 1 && n_racks < h->n_hosts; i++) {
        for (int k = 0; k < h->n_hosts; k++)
            if (same_rack(h, i, k))
                forecast_lose_host(f, k, true);
        note_loss(&l, f);
        for (int k = 0; k < h->n_hosts; k++)
            forecast_lose_host(f, k, false);
    }
    return l;
}

static void lose_pair(struct forecast *f, int a, int b, struct loss *l)
{
    forecast_lose_host(f, a, true);
    forecast_lose_host(f, b, true);
    note_loss(l, f);
    forecast_lose_host(f, a, false);
    forecast_lose_host(f, b, false);
}

static struct loss lose_two_hosts(struct forecast *f)
{
    struct loss l = {.what = "any two machines"};
    int n = f->hosts->n_hosts;
    struct rng r = rng_stream(f->options.seed, 4);
    l.is_sample = (int64_t)n * (n - 1) / 2 > MOST_PAIRS;
    for (int a = 0; a < n && !l.is_sample; a++)
        for (int b = a + 1; b < n; b++)
            lose_pair(f, a, b, &l);
    for (int i = 0; i < MOST_PAIRS && l.is_sample; i++) {
        int a = (int)rng_below(&r, (uint64_t)n), b = (int)rng_below(&r, (uint64_t)n - 1);
        lose_pair(f, a, b < a ? b : b + 1, &l);
    }
    return l;
}

struct result {
    struct loss losses[4];
    int n_losses;
    struct forecast_step steps[N_BATCHES], after[N_BATCHES];
    bool survives_one;
};

static void work_out(struct plan_scene *s, double context, struct result *r)
{
    struct forecast *f = &s->forecast;
    *r = (struct result){0};
    for (int i = 0; i < N_BATCHES; i++)
        forecast_run(f, batches[i], context, STEPS, &r->steps[i]);
    r->losses[r->n_losses++] = lose_one_node(f);
    r->losses[r->n_losses++] = lose_one_host(f);
    r->survives_one = r->losses[1].n_bad == 0;
    struct loss rack = lose_one_rack(f);
    if (rack.n_tried > 0)
        r->losses[r->n_losses++] = rack;
    if (s->hosts.n_hosts > 1)
        r->losses[r->n_losses++] = lose_two_hosts(f);
    forecast_lose_host(f, 0, true);
    for (int i = 0; i < N_BATCHES && r->survives_one; i++)
        forecast_run(f, batches[i], context, STEPS, &r->after[i]);
    forecast_lose_host(f, 0, false);
}

/* ---- for people -------------------------------------------------------------------------- */

/* What is not the same in every layer. */
static void print_kinds(const struct plan_model *m)
{
    if (m->n_all_layers == m->n_layers && m->n_sparse_layers == 0)
        return;
    printf("layers: %d, %d of them dense%s; sparse attention in %d, index keys %.1f KiB for each "
           "position\n",
           m->n_all_layers, m->n_all_layers - m->n_layers,
           m->has_shared ? ", the others with a shared expert on the attention side" : "",
           m->n_sparse_layers, m->index_bytes / 1024);
}

/* The longest context of a side alone, and with what it borrows. */
static int64_t longest(const struct plan_options *o, const struct plan_model *m, bool borrows)
{
    int64_t bytes[1 + PLAN_MAX_LENDERS] = {o->kv.own_bytes};
    int n = 1;
    for (int i = 0; i < o->kv.n_lenders && borrows; i++)
        bytes[n++] = o->kv.lent_bytes[i];
    return plan_model_longest(m, bytes, n);
}

static void print_longest(const struct plan_options *o, const struct plan_model *m)
{
    if (o->kv.own_bytes == 0)
        return;
    printf("longest context: %lld positions in a side's own %.1f GiB",
           (long long)longest(o, m, false), (double)o->kv.own_bytes / GIB);
    if (o->kv.n_lenders > 0) {
        printf(
            ", %lld with what %d other%s (attention.lends)\n"
            "  a token whose context is there, too, costs %.2f MB and %d calls one after the other "
            "for each of them; not in the prediction below",
            (long long)longest(o, m, true), o->kv.n_lenders,
            o->kv.n_lenders == 1 ? " lends" : "s lend", m->far_bytes / 1e6, m->far_calls);
    }
    printf("\n");
}

static void print_model(const struct plan_options *o, const struct plan_scene *s)
{
    const struct plan_model *m = &s->model;
    const struct forecast *f = &s->forecast;
    printf("%s %s: %d layers x %d experts of %.2f MiB, %d for each token; routes: %s\n", m->name,
           m->format, m->n_layers, m->n_experts, m->expert_bytes / (1 << 20), m->top_k,
           trace_title(s->trace));
    print_kinds(m);
    double weights = m->attention_bytes + m->head_bytes + m->embedding_bytes;
    double stream = plan_model_stream_bytes(m, o->context);
    printf("attention sides: %d, each %.2f GiB of weights and %.1f KiB for each position: "
           "%.2f GiB for a stream of %lld (%.2f GiB with the weights)\n",
           o->n_sides, weights / GIB, m->position_bytes / 1024, stream / GIB, (long long)o->context,
           (weights + stream) / GIB);
    print_longest(o, m);
    printf("experts: %.1f GiB once; placed %.2f times, each at least %d and at most %d times "
           "(planned in %.0f ms)\n\n",
           (double)f->placement.n_total * m->expert_bytes / GIB,
           (double)f->n_copies / (double)f->placement.n_total, f->n_copies_least, f->n_copies_most,
           f->plan_ms);
}

static int64_t held_by(const struct forecast *f, int host)
{
    int64_t n = 0;
    for (int64_t i = 0; i < f->placement.n_total * WIRE_MAX_REPLICAS; i++)
        n += f->holders[i] != WIRE_NO_HOLDER && f->host_of[f->holders[i]] == host;
    return n;
}

static void print_hosts(const struct plan_scene *s)
{
    const struct forecast *f = &s->forecast;
    printf("%-20s %5s %10s %10s %9s %9s  %s\n", "machine", "nodes", "GiB for", "GiB held",
           "experts", "GB/s", "a layer");
    for (int i = 0; i < s->hosts.n_hosts && i < SHOWN_HOSTS; i++) {
        const struct plan_host *h = &s->hosts.hosts[i];
        int64_t held = held_by(f, i);
        printf("%-20s %5d %10.1f %10.1f %9lld %9.1f%s %7.1f\n", h->name, h->nodes,
               (double)h->memory_bytes / GIB, (double)held * s->model.expert_bytes / GIB,
               (long long)held, h->read_bytes_s / 1e9, h->is_measured ? "*" : " ",
               (double)held / s->model.n_layers);
    }
    if (s->hosts.n_hosts > SHOWN_HOSTS)
        printf("... and %d more\n", s->hosts.n_hosts - SHOWN_HOSTS);
    for (int i = 0; i < s->hosts.n_hosts; i++)
        if (s->hosts.hosts[i].is_measured) {
            printf("* measured on this machine\n");
            break;
        }
}

static void print_losses(const struct plan_scene *s, const struct result *r)
{
    double expert = s->model.expert_bytes / GIB;
    printf("\nmay fail at once, with every expert still in memory somewhere:\n");
    for (int i = 0; i < r->n_losses; i++) {
        const struct loss *l = &r->losses[i];
        if (l->n_bad == 0)
            printf("  %-17s yes; then %.1f GiB at most are copied again\n", l->what,
                   (double)l->most_copies * expert);
        else
            printf("  %-17s no: %d of %d %s lose experts, at worst %lld (%.1f GiB to read from "
                   "storage)\n",
                   l->what, l->n_bad, l->n_tried, l->is_sample ? "tried" : "cases",
                   (long long)l->worst, (double)l->worst * expert);
    }
}

static void print_steps(const struct plan_options *o, const struct result *r)
{
    printf("\npredicted, %lld positions each:\n", (long long)o->context);
    printf("  %7s %10s %10s %9s %10s %9s %9s %9s %5s %9s %8s %9s%s\n", "streams", "tok/s each",
           "tok/s all", "step ms", "attention", "network", "experts", "at once", "lanes", "slowest",
           "balance", "KB/token", r->survives_one ? "  one lost" : "");
    for (int i = 0; i < N_BATCHES; i++) {
        const struct forecast_step *p = &r->steps[i];
        printf("  %7d %10.2f %10.2f %9.1f %10.1f %9.1f %9.1f %9.1f %5d %9.2f %8.2f %9.1f",
               batches[i], p->tokens_s / batches[i], p->tokens_s, p->step_ms, p->attention_ms,
               p->network_ms, p->experts_ms, p->hidden_ms, p->lanes, p->slowest, p->balance,
               p->wire_bytes / 1e3);
        if (r->survives_one)
            printf(" %9.2f", r->after[i].tokens_s);
        printf("\n");
    }
    printf("  at once: of attention, network and experts, what two lanes do at the same time\n");
    printf("  slowest: experts that the busiest node of a layer reads; balance: beside the mean "
           "node's\n");
    if (r->survives_one)
        printf("  one lost: tok/s of all streams without the first machine\n");
}

/* ---- for programs ------------------------------------------------------------------------ */

static json_t *hosts_json(const struct plan_scene *s)
{
    json_t *list = json_array();
    for (int i = 0; i < s->hosts.n_hosts; i++) {
        const struct plan_host *h = &s->hosts.hosts[i];
        must_zero(json_array_append_new(
            list, json_pack("{s:s,s:s,s:i,s:I,s:I,s:f,s:b}", "name", h->name, "rack", h->rack,
                            "nodes", h->nodes, "memory_bytes", (json_int_t)h->memory_bytes,
                            "experts", (json_int_t)held_by(&s->forecast, i), "read_bytes_s",
                            h->read_bytes_s, "measured_here", h->is_measured)));
    }
    return list;
}

static json_t *losses_json(const struct result *r)
{
    json_t *list = json_array();
    for (int i = 0; i < r->n_losses; i++) {
        const struct loss *l = &r->losses[i];
        must_zero(json_array_append_new(
            list,
            json_pack("{s:s,s:b,s:i,s:i,s:I,s:I}", "of", l->what, "survived", l->n_bad == 0,
                      "cases", l->n_tried, "cases_bad", l->n_bad, "experts_lost_at_worst",
                      (json_int_t)l->worst, "copies_lost_at_most", (json_int_t)l->most_copies)));
    }
    return list;
}

static json_t *steps_json(const struct result *r)
{
    json_t *list = json_array();
    for (int i = 0; i < N_BATCHES; i++) {
        const struct forecast_step *p = &r->steps[i];
        json_t *o = json_pack(
            "{s:i,s:i,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "streams", batches[i], "lanes",
            p->lanes, "two_lanes_ratio", p->two_lanes, "hidden_ms", p->hidden_ms, "tokens_s",
            p->tokens_s, "step_ms", p->step_ms, "attention_ms", p->attention_ms, "network_ms",
            p->network_ms, "experts_ms", p->experts_ms, "slowest_node_experts", p->slowest,
            "balance", p->balance, "wire_bytes_per_token", p->wire_bytes);
        if (r->survives_one)
            must_zero(json_object_set_new(o, "tokens_s_one_machine_lost",
                                          json_real(r->after[i].tokens_s)));
        must_zero(json_array_append_new(list, o));
    }
    return list;
}

static void print_json(const struct plan_options *o, const struct plan_scene *s,
                       const struct result *r)
{
    const struct plan_model *m = &s->model;
    const struct forecast *f = &s->forecast;
    json_t *root = json_pack(
        "{s:i,s:s,s:s,s:s,s:I,s:I,s:f,s:f,s:f,s:f,s:f,s:i,s:i,s:i,s:i,s:I,s:i,s:i,s:f}", "version",
        1, "model", m->name, "format", m->format, "routes", trace_title(s->trace), "seed",
        (json_int_t)o->seed, "context", (json_int_t)o->context, "expert_bytes", m->expert_bytes,
        "attention_bytes", m->attention_bytes + m->head_bytes + m->embedding_bytes,
        "kv_bytes_per_position", m->position_bytes, "index_bytes_per_position", m->index_bytes,
        "stream_bytes", plan_model_stream_bytes(m, o->context), "layers", m->n_all_layers,
        "expert_layers", m->n_layers, "sparse_layers", m->n_sparse_layers, "max_positions",
        m->max_positions, "copies", (json_int_t)f->n_copies, "copies_least", f->n_copies_least,
        "copies_most", f->n_copies_most, "plan_ms", f->plan_ms);
    must(root);
    if (o->kv.own_bytes > 0)
        must_zero(json_object_set_new(
            root, "longest_context",
            json_pack("{s:I,s:I,s:f,s:i}", "alone", (json_int_t)longest(o, m, false), "with_lent",
                      (json_int_t)longest(o, m, true), "bytes_per_token_and_lender", m->far_bytes,
                      "calls_per_token_and_lender", m->far_calls)));
    must_zero(json_object_set_new(root, "machines", hosts_json(s)));
    must_zero(json_object_set_new(root, "failures", losses_json(r)));
    must_zero(json_object_set_new(root, "predicted", steps_json(r)));
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    must(text);
    puts(text);
    free(text);
    json_decref(root);
}

static int probe(const struct plan_options *o, struct err *e)
{
    struct plan_defaults d = o->defaults;
    struct plan_hosts h;
    int rc = plan_hosts_open(NULL, NULL, &d, &h, e);
    if (rc < 0)
        return rc;
    printf("name=this memory=%.0fMiB read_gb_s=%.2f\n", (double)h.hosts[0].memory_bytes / (1 << 20),
           h.hosts[0].read_bytes_s / 1e9);
    plan_hosts_close(&h);
    return 0;
}

int plan_main(int argc, char **argv)
{
    static const struct option options[] = {PLAN_LONG_OPTIONS,
                                            {"kv", required_argument, NULL, PLAN_KV},
                                            {"probe", no_argument, NULL, 'p'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct plan_options o;
    struct err e = {0};
    bool only_probes = false;
    plan_options_defaults(&o);
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        int rc = plan_options_take(&o, c, optarg, &e);
        only_probes |= c == 'p';
        if (c == 'h') {
            usage(stdout);
            return 0;
        }
        if (rc < 0)
            fprintf(stderr, "polymath plan: %s; see polymath plan --help\n", e.text);
        if (rc < 0 || (rc == 0 && c != 'p'))
            return 2;
    }
    if (optind < argc || (o.hosts && o.config)) {
        fprintf(stderr, "polymath plan: %s\n",
                optind < argc ? "it takes options only; see polymath plan --help"
                              : "--hosts and --config are one or the other");
        return 2;
    }
    struct plan_scene s;
    int rc = only_probes ? probe(&o, &e) : plan_scene_open(&o, &s, &e);
    if (rc < 0) {
        fprintf(stderr, "polymath plan: %s\n", e.text);
        return 1;
    }
    if (only_probes)
        return 0;
    struct result r;
    work_out(&s, (double)o.context, &r);
    if (o.as_json) {
        print_json(&o, &s, &r);
    } else {
        print_model(&o, &s);
        print_hosts(&s);
        print_losses(&s, &r);
        print_steps(&o, &r);
    }
    plan_scene_close(&s);
    return 0;
}
