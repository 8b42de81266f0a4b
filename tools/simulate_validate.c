/* tools/simulate_validate.c - `polymath simulate --validate`: predictions beside what happens.
 *
 * What the formula of forecast.h needs is measured without a cluster: round trips between idle
 * processes, and how fast this machine does the two halves of a token's pass in one process, with one
 * thread and with all.  From that 1, 2 and 4 expert nodes are predicted, and then they are started. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/thread.h"
#include "tools/bench_rpc.h"
#include "tools/cluster_view.h"
#include "tools/local_cluster.h"
#include "tools/local_engine.h"
#include "tools/simulate.h"

enum {
    N_SIZES = 3,
    MOST_NODES = 4,
    PROMPT = 4, /* tokens FIRST_TOKEN and the following ones */
    FIRST_TOKEN = 5,
    TOKENS = 48,
    TURNS = 3,
    CALLS = 300,
    READY_S = 300
};
/* Others on this machine only slow things down: of all times the one that a fifth stays below. */
#define CALM 0.2
static const int sizes[N_SIZES] = {1, 2, MOST_NODES};

/* Of one process with so many threads. */
struct pace {
    double attention_ns;   /* of a token, everything but the experts */
    double expert_bytes_s; /* what the experts' half reads */
};

struct validation {
    const struct plan_options *options;
    struct plan_model model;
    struct trace *trace;
    int n_cpus;
    double load; /* of the machine, before */
    struct pace one, all;
    double trip_us[MOST_NODES]; /* to so many nodes at once, less one */
    double predicted[N_SIZES], measured[N_SIZES];
};

/* ---- what is known before ---------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double calm(double *times, int n)
{
    qsort(times, (size_t)n, sizeof *times, by_value);
    return n > 0 ? times[(int)(CALM * (n - 1))] : 0;
}

static int32_t likeliest(const float *logits, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

/* The very tokens that the clusters will answer with, so that the same experts are read; the
 * nanoseconds of each in the experts' half and in all the rest. */
static int run_tokens(struct local_engine *g, double *experts_ns, double *rest_ns, struct err *e)
{
    const float *logits;
    int32_t token = 0;
    for (int i = 0; i < PROMPT + TOKENS; i++) {
        int64_t begun_ns = clock_now_ns(), before_ns = g->experts_ns;
        if (i < PROMPT)
            token = FIRST_TOKEN + i;
        int rc = local_engine_step(g, &token, 1, LOCAL_ENGINE_LAST_LOGITS, &logits, e);
        if (rc < 0)
            return rc;
        token = likeliest(logits, g->config->vocab_size);
        if (i < PROMPT)
            continue;
        experts_ns[i - PROMPT] = (double)(g->experts_ns - before_ns);
        rest_ns[i - PROMPT] = (double)(clock_now_ns() - begun_ns) - experts_ns[i - PROMPT];
    }
    return 0;
}

static int find_pace(const struct validation *v, int n_threads, struct pace *out, struct err *e)
{
    struct local_engine_options o;
    struct local_engine g;
    local_engine_defaults(&o);
    o.model_dir = v->options->dir;
    o.n_threads = n_threads;
    int rc = format_set_parse(v->options->format, &o.formats, e);
    if (rc == 0)
        rc = local_engine_open(&g, &o, e);
    if (rc < 0)
        return rc;
    rc = local_engine_load(&g, &o, PROMPT + TOKENS, e);
    double experts_ns[TOKENS], rest_ns[TOKENS];
    if (rc == 0)
        rc = run_tokens(&g, experts_ns, rest_ns, e);
    double bytes = (double)v->model.n_layers * v->model.top_k * v->model.expert_bytes;
    if (rc == 0)
        *out = (struct pace){.attention_ns = calm(rest_ns, TOKENS),
                             .expert_bytes_s = 1e9 * bytes / calm(experts_ns, TOKENS)};
    local_engine_close(&g);
    return rc;
}

static int know(struct validation *v, struct err *e)
{
    struct bench_rpc_case c = {
        .nodes = MOST_NODES, .rows = 1, .hidden = v->model.hidden, .calls = CALLS, .share = CALM};
    int rc = bench_rpc_round_trips(&c, v->trip_us, e);
    if (rc == 0)
        rc = find_pace(v, 1, &v->one, e);
    if (rc == 0)
        rc = find_pace(v, v->n_cpus, &v->all, e);
    return rc;
}

/* Between one thread and all of them in a straight line. */
static double between(const struct validation *v, double one, double all, int n_threads)
{
    double share = v->n_cpus > 1 ? (n_threads - 1.0) / (v->n_cpus - 1.0) : 0;
    return one + (all - one) * (share < 1 ? share : 1);
}

static int predict(struct validation *v, int i, struct err *e)
{
    int n = sizes[i];
    struct cpu_plan plan = cpu_plan_new(v->n_cpus, 1, n, 0);
    double attention_ns = between(v, v->one.attention_ns, v->all.attention_ns, plan.side_threads);
    double node = between(v, v->one.expert_bytes_s, v->all.expert_bytes_s, plan.expert_threads);
    double machine =
        between(v, v->one.expert_bytes_s, v->all.expert_bytes_s, plan.expert_threads * n);
    struct plan_host host = {.name = "here",
                             .memory_bytes = INT64_MAX / 4,
                             .read_bytes_s = machine,
                             .node_bytes_s = node,
                             .wire_bytes_s = 1e12,
                             .round_trip_ns = v->trip_us[n - 1] * 1e3,
                             .nodes = n};
    struct plan_hosts hosts = {.hosts = &host, .n_hosts = 1, .n_nodes = n};
    struct forecast_options o = {
        .replicas = 1,
        .efficiency = 1,
        .n_sides = 1,
        .straggler_speed = 1,
        .seed = v->options->seed,
        .attention_bytes_s = 1e9 * plan_model_attention_bytes(&v->model, 1, 0) / attention_ns};
    struct forecast f;
    struct forecast_step p;
    int rc = forecast_open(&v->model, &hosts, v->trace, &o, &f, e);
    if (rc < 0)
        return rc;
    forecast_run(&f, 1, 0, 100, &p);
    /* And the step's own way from the coordinator's loop to the attention side and back. */
    v->predicted[i] = 1e9 / (p.step_ms * 1e6 + v->trip_us[0] * 1e3);
    forecast_close(&f);
    return 0;
}

/* ---- what happens ------------------------------------------------------------------------ */

static int wait_ready(struct local_cluster *c, struct err *e)
{
    int64_t deadline_ns = clock_now_ns() + READY_S * CLOCK_S;
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        struct local_process *p = pid > 0 ? local_cluster_ended(c, pid) : NULL;
        if (p) {
            local_cluster_print_log_tail(p);
            return err_set(e, E_UNAVAILABLE, "%s ended", p->name);
        }
        const char *url = local_cluster_url(c);
        struct cluster_view view;
        bool is_ready = url && cluster_view_open(&view, url, NULL, NULL) == 0;
        if (is_ready) {
            is_ready = cluster_view_read(&view, NULL) == 0 && cluster_view_is_settled(&view);
            cluster_view_close(&view);
        }
        if (is_ready)
            return 0;
        if (clock_now_ns() > deadline_ns)
            return err_set(e, E_DEADLINE, "the cluster is not ready after %d s", READY_S);
        clock_sleep_until(clock_now_ns() + 50 * CLOCK_MS);
    }
}

/* When a stream's tokens came. */
struct arrivals {
    int64_t last_ns;
    int n;
    double gaps_ns[TURNS * TOKENS];
};

static bool on_line(void *ud, struct str line)
{
    struct arrivals *a = ud;
    int64_t now_ns = clock_now_ns();
    if (!str_has_prefix(line, STR("data: {")))
        return true;
    if (a->last_ns > 0 && a->n < TURNS * TOKENS)
        a->gaps_ns[a->n++] = (double)(now_ns - a->last_ns);
    a->last_ns = now_ns;
    return true;
}

static int measure(const char *url, double *out, struct err *e)
{
    struct http_client *http = http_client_new();
    char *path = mem_format("%s/v1/completions", url);
    char *body = mem_format("{\"max_tokens\":%d,\"temperature\":0,\"ignore_eos\":true,"
                            "\"stream\":true,\"return_token_ids\":true,\"prompt\":[5,6,7,8]}",
                            TOKENS);
    struct arrivals a = {0};
    struct http_exchange x = {
        .url = path, .body = body, .timeout_ns = 300 * CLOCK_S, .on_line = on_line, .ud = &a};
    int rc = 0;
    for (int turn = 0; turn < TURNS && rc == 0; turn++) {
        struct buf answer = {0};
        int status = 0;
        a.last_ns = 0;
        rc = http_exchange(http, &x, &status, &answer, e);
        if (rc == 0 && status != 200) {
            http_error_text(&answer, status, e);
            rc = e->code;
        }
        buf_fini(&answer);
    }
    double gap_ns = calm(a.gaps_ns, a.n);
    if (rc == 0 && gap_ns <= 0)
        rc = err_set(e, E_CORRUPT, "%s sent no tokens", path);
    *out = rc == 0 ? 1e9 / gap_ns : 0;
    http_client_free(&http);
    mem_free(path);
    mem_free(body);
    return rc;
}

static int happen(struct validation *v, int i, struct err *e)
{
    struct local_cluster c = {.model = v->options->dir,
                              .format = v->options->format,
                              .host = "127.0.0.1",
                              .n_experts = sizes[i],
                              /* A token a step, as is predicted. */
                              .settings = {"coordinator.schedule.speculation=0"},
                              .n_settings = 1,
                              .death_signal = SIGKILL};
    int rc = local_cluster_open(&c, NULL, e);
    if (rc < 0)
        return rc;
    local_cluster_plan(&c);
    for (int k = 0; k < c.n_processes && rc == 0; k++)
        rc = local_cluster_start(&c, &c.processes[k], e);
    if (rc == 0)
        rc = wait_ready(&c, e);
    if (rc == 0)
        rc = measure(local_cluster_url(&c), &v->measured[i], e);
    local_cluster_stop(&c);
    local_cluster_close(&c, LOCAL_CLUSTER_DROP_LOGS);
    return rc;
}

/* ---- both -------------------------------------------------------------------------------- */

static void tell(const struct validation *v)
{
    printf("%s %s on %d CPUs; in one process: attention side %.2f ms a token with one thread, "
           "%.2f with all;\nexperts %.1f GB/s with one, %.1f with all\n\n",
           v->model.name, v->model.format, v->n_cpus, v->one.attention_ns / 1e6,
           v->all.attention_ns / 1e6, v->one.expert_bytes_s / 1e9, v->all.expert_bytes_s / 1e9);
    printf("%12s %14s %16s %15s %18s\n", "expert nodes", "round trip us", "predicted tok/s",
           "measured tok/s", "measured/predicted");
    for (int i = 0; i < N_SIZES; i++)
        printf("%12d %14.1f %16.2f %15.2f %18.2f\n", sizes[i], v->trip_us[sizes[i] - 1],
               v->predicted[i], v->measured[i], v->measured[i] / v->predicted[i]);
    if (v->load > 0.5)
        printf(
            "\nOthers computed here before this began (load average %.1f): that disturbs both.\n",
            v->load);
}

int simulate_validate(const struct plan_options *o, struct err *e)
{
    struct validation v = {.options = o, .n_cpus = thread_cpu_count()};
    if (getloadavg(&v.load, 1) != 1)
        v.load = 0;
    log_init("simulate", LOG_ERROR);
    int rc = plan_model_open(NULL, o->dir, o->format, &v.model, e);
    if (rc == 0)
        rc = trace_open(o->trace, &v.model, o->skew, o->seed, &v.trace, e);
    if (rc == 0)
        rc = know(&v, e);
    for (int i = 0; i < N_SIZES && rc == 0; i++)
        rc = predict(&v, i, e);
    for (int i = 0; i < N_SIZES && rc == 0; i++) {
        fprintf(stderr, "simulate: measuring %d expert node%s\n", sizes[i],
                sizes[i] == 1 ? "" : "s");
        rc = happen(&v, i, e);
    }
    trace_close(&v.trace);
    if (rc < 0)
        return rc;
    tell(&v);
    return 0;
}
