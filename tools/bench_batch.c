/* tools/bench_batch.c - see bench_batch.h.
 *
 * Clients stream completions of equal length; what is measured lies between the moment when the last
 * of them has its first token and that when the first is done, so that every step is one token of every
 * stream.  The cluster stays up throughout and sleeps while a peer computes. */
#include "tools/bench_batch.h"

#include <getopt.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/thread.h"
#include "base/version.h"
#include "tools/bench.h"
#include "tools/bench_cluster.h"
#include "tools/bench_peer.h"
#include "tools/http_client.h"
#include "tools/loadtest_run.h"
#include "tools/loadtest_server.h"

enum { DEFAULT_NODES = 1, DEFAULT_PROMPT = 16, DEFAULT_TOKENS = 48, DEFAULT_REPEAT = 3 };
enum { MAX_STREAMS = 4096, ANSWER_S = 3600 };

struct batch {
    const char *model, *format;
    struct bench_list streams;
    int nodes, prompt, tokens, repeat;
    bool as_json;
    struct bench_peer peer; /* program NULL: none */
    struct local_cluster cluster;
    struct http_client *http;
    struct bench_report report;
    char max_seqs[64], max_queue[64];

    /* the run in progress */
    struct bench_batch_count begin, end;
    struct err error; /* of a reading */
    uint64_t seed;

    struct bench_batch_sample samples[BENCH_MAX_LIST][BENCH_MAX_REPEAT];
    struct bench_series peers[BENCH_MAX_LIST];
    int n_repetitions;
};

static void usage(FILE *out)
{
    fprintf(
        out,
        "usage: polymath bench batch --model DIR [OPTION]...\n\n"
        "Many streams at once through a cluster of this machine: all tokens per second, where the\n"
        "time of a step goes, and the coordinator's own share of it; where the attention side "
        "tried\n"
        "two lanes (attention.lanes=auto), what they take of one lane's time.\n\n"
        "  --model DIR      checkpoint or packed directory, best one with the model's true sizes\n"
        "  --format F       as for polymath up\n"
        "  --streams LIST   how many at once (default 1,4,16,64)\n"
        "  --nodes N        expert nodes (default %d)\n"
        "  --prompt N       tokens of each prompt (default %d)\n"
        "  --tokens N       of each answer (default %d); every answer must outlast all prompts\n"
        "  --repeat N       repetitions (default %d)\n"
        "  --set W.K=V      an option of a program, as for polymath up; again for more\n"
        "  --json           the same as JSON\n"
        "  --llama-batched-bench PATH\n"
        "                   the peer's program (llama.cpp's or ik_llama.cpp's), run in turn\n"
        "  --model-gguf FILE  its model (polymath synth --gguf writes the same synthetic one)\n"
        "  --peer-args TEXT   more of its options, such as \"-fa -fmoe\"\n"
        "  --help           this text\n",
        DEFAULT_NODES, DEFAULT_PROMPT, DEFAULT_TOKENS, DEFAULT_REPEAT);
}

/* ---- what the coordinator counts ----------------------------------------------------------- */

static const struct {
    const char *metric, *key, *name; /* of /metrics, in JSON, for people */
    bool is_own;                     /* scheduler, tokenizer, parser and HTTP: what has a limit */
} parts[BENCH_BATCH_PARTS] = {
    [BENCH_BATCH_ATTENTION] = {"step_part_seconds_total{part=\"attention\"}", "attention",
                               "attention", false},
    [BENCH_BATCH_ROUTER] = {"step_part_seconds_total{part=\"router\"}", "router", "router", false},
    [BENCH_BATCH_EXPERTS] = {"step_part_seconds_total{part=\"experts\"}", "experts",
                             "experts and wire", false},
    [BENCH_BATCH_HEAD] = {"step_part_seconds_total{part=\"head\"}", "head", "head", false},
    [BENCH_BATCH_SAMPLING] = {"step_part_seconds_total{part=\"sampling\"}", "sampling", "sampling",
                              false},
    [BENCH_BATCH_SCHEDULER] = {"coordinator_work_seconds_total{work=\"scheduler\"}", "scheduler",
                               "scheduler", true},
    [BENCH_BATCH_READING] = {"coordinator_work_seconds_total{work=\"reading\"}", "reading",
                             "reading, tokenizer", true},
    [BENCH_BATCH_WRITING] = {"coordinator_work_seconds_total{work=\"writing\"}", "writing",
                             "output parser, writing", true},
    [BENCH_BATCH_HTTP] = {"coordinator_work_seconds_total{work=\"http\"}", "http", "HTTP", true},
    [BENCH_BATCH_OTHER] = {"coordinator_work_seconds_total{work=\"other\"}", "other",
                           "messages and the rest", false},
};

void bench_batch_parse(const char *metrics, int64_t now_ns, struct bench_batch_count *out)
{
    *out = (struct bench_batch_count){
        .tokens = loadtest_server_value(metrics, "polymath_generated_tokens_total"),
        .steps = loadtest_server_value(metrics, "polymath_steps_total"),
        .two_lane_steps =
            loadtest_server_value(metrics, "polymath_steps_by_lanes_total{lanes=\"2\"}"),
        .lanes_ratio = loadtest_server_value(metrics, "polymath_lanes_time_ratio"),
        .at_ns = now_ns};
    for (int i = 0; i < BENCH_BATCH_PARTS; i++) {
        char name[96];
        snprintf(name, sizeof name, "polymath_%s", parts[i].metric);
        out->parts[i] = loadtest_server_value(metrics, name);
    }
}

bool bench_batch_between(const struct bench_batch_count *before,
                         const struct bench_batch_count *after, struct bench_batch_sample *out)
{
    double steps = after->steps - before->steps, tokens = after->tokens - before->tokens;
    double spent_ms = (double)(after->at_ns - before->at_ns) / CLOCK_MS;
    *out = (struct bench_batch_sample){0};
    if (steps <= 0 || spent_ms <= 0)
        return false;
    out->tokens_s = tokens / spent_ms * 1e3;
    out->step_ms = spent_ms / steps;
    out->rows = tokens / steps;
    out->between_ms = out->step_ms;
    out->two_lanes_percent = (after->two_lane_steps - before->two_lane_steps) / steps * 100;
    out->lanes_ratio = after->lanes_ratio;
    for (int i = 0; i < BENCH_BATCH_PARTS; i++) {
        out->part_ms[i] = (after->parts[i] - before->parts[i]) * 1e3 / steps;
        if (i <= BENCH_BATCH_SAMPLING)
            out->between_ms -= out->part_ms[i];
        else if (parts[i].is_own)
            out->own_ms += out->part_ms[i];
    }
    /* A step is counted at its end, so one that lies across a moment may add a little. */
    if (out->between_ms < 0)
        out->between_ms = 0;
    return true;
}

static int read_count(struct batch *b, struct bench_batch_count *out, struct err *e)
{
    char *url = mem_format("%s/metrics", local_cluster_url(&b->cluster));
    struct http_exchange x = {.url = url};
    struct buf answer = {0};
    int status = 0;
    int rc = http_exchange(b->http, &x, &status, &answer, e);
    if (rc == 0 && status != 200)
        rc = err_set(e, E_UNKNOWN, "/metrics: HTTP %d", status);
    if (rc == 0) {
        buf_putc(&answer, '\0');
        bench_batch_parse(answer.data, clock_now_ns(), out);
    }
    buf_fini(&answer);
    mem_free(url);
    return rc;
}

static void on_all_begun(void *ud)
{
    struct batch *b = ud;
    if (!b->error.code)
        read_count(b, &b->begin, &b->error);
}

static void on_one_over(void *ud)
{
    struct batch *b = ud;
    if (!b->error.code)
        read_count(b, &b->end, &b->error);
}

/* ---- one run ------------------------------------------------------------------------------- */

static int all_answered(const struct loadtest_result *r, int n, struct err *e)
{
    int n_ok = 0;
    for (int64_t i = 0; i < r->n_samples; i++)
        n_ok += r->samples[i].outcome == LOADTEST_OK;
    return n_ok == n ? 0
                     : err_set(e, E_UNAVAILABLE, "%d of %d streams were answered; %s", n_ok, n,
                               r->error[0] ? r->error : "the others were refused");
}

static int run_streams(struct batch *b, int n, struct bench_batch_sample *out, struct err *e)
{
    struct loadtest_options o = {.load = {.prompt = {.low = b->prompt, .high = b->prompt},
                                          .output = {.low = b->tokens, .high = b->tokens},
                                          .n_groups = 1,
                                          .seed = ++b->seed},
                                 .url = local_cluster_url(&b->cluster),
                                 .n_clients = n,
                                 .n_requests = n,
                                 .timeout_ns = ANSWER_S * CLOCK_S,
                                 .all_begun = on_all_begun,
                                 .one_over = on_one_over,
                                 .ud = b};
    struct loadtest_result r;
    b->error = (struct err){0};
    b->begin = b->end = (struct bench_batch_count){0};
    int rc = loadtest_run(&o, &r, e);
    if (rc == 0)
        rc = all_answered(&r, n, e);
    loadtest_result_fini(&r);
    if (rc == 0 && b->error.code) {
        *e = b->error;
        rc = e->code;
    }
    if (rc == 0 && (!b->begin.at_ns || !bench_batch_between(&b->begin, &b->end, out)))
        rc = err_set(e, E_PRECONDITION,
                     "the first of %d answers ended before the last began: --tokens must be more "
                     "than %d",
                     n, b->tokens);
    return rc;
}

static int run_peer(struct batch *b, struct err *e)
{
    double rates[BENCH_MAX_LIST];
    if (!b->peer.program)
        return 0;
    int rc = bench_peer_batches(&b->peer, b->streams.values, b->streams.n, rates, e);
    for (int i = 0; i < b->streams.n && rc == 0; i++)
        bench_series_add(&b->peers[i], rates[i]);
    return rc < 0 ? err_prefix(e, "--llama-batched-bench") : 0;
}

/* The first repetition warms up: weights come into memory, threads start. */
static int run_all(struct batch *b, struct err *e)
{
    struct bench_batch_sample unused;
    int rc = run_streams(b, b->streams.values[0], &unused, e);
    for (int k = 0; k < b->repeat && rc == 0; k++) {
        for (int i = 0; i < b->streams.n && rc == 0; i++) {
            rc = run_streams(b, b->streams.values[i], &b->samples[i][k], e);
            if (rc == 0)
                fprintf(stderr, "bench batch: round %d of %d: %d streams, %.1f tok/s\n", k + 1,
                        b->repeat, b->streams.values[i], b->samples[i][k].tokens_s);
        }
        if (rc == 0)
            rc = run_peer(b, e);
        b->n_repetitions += rc == 0;
    }
    return rc;
}

/* ---- the report ------------------------------------------------------------------------------ */

static struct bench_series series(const struct batch *b, int list_index, size_t field)
{
    struct bench_series s = {0};
    for (int k = 0; k < b->n_repetitions; k++) {
        double value;
        memcpy(&value, (const char *)&b->samples[list_index][k] + field, sizeof value);
        bench_series_add(&s, value);
    }
    return s;
}
#define FIELD(f) offsetof(struct bench_batch_sample, f)

/* What the attention side's own trial of two lanes found, on these very steps. */
static void report_lanes(struct batch *b, int i)
{
    struct bench_series lanes = series(b, i, FIELD(lanes_ratio));
    struct bench_series share = series(b, i, FIELD(two_lanes_percent));
    struct bench_metric metrics[2] = {
        bench_metric_of("lanes_ratio", "x one lane's time", &lanes, NULL, NULL),
        bench_metric_of("two_lanes_percent", "% of steps", &share, NULL, NULL)};
    for (int k = 0; k < lanes.n; k++)
        if (lanes.values[k] <= 0)
            return;
    bench_report_row(&b->report, "  two lanes", metrics, 2);
}

static void report_speed(struct batch *b, int i)
{
    struct bench_series ours = series(b, i, FIELD(tokens_s)), one = series(b, 0, FIELD(tokens_s));
    struct bench_series ms = series(b, i, FIELD(step_ms)), rows = series(b, i, FIELD(rows));
    struct bench_series gain = bench_ratio(&ours, &one), ratio;
    struct bench_metric metrics[BENCH_MAX_METRICS];
    char name[64], of[32];
    int n = 0;
    metrics[n++] = bench_metric_of("tokens_s", "tok/s", &ours, NULL, NULL);
    metrics[n++] = bench_metric_of("step_ms", "ms/step", &ms, NULL, NULL);
    metrics[n++] = bench_metric_of("rows", "rows", &rows, NULL, NULL);
    snprintf(of, sizeof of, "x of %d", b->streams.values[0]);
    metrics[n++] = bench_metric_of("gain", of, &gain, NULL, NULL);
    snprintf(name, sizeof name, "%d stream%s", b->streams.values[i],
             b->streams.values[i] == 1 ? "" : "s");
    bench_report_row(&b->report, name, metrics, n);
    report_lanes(b, i);
    if (!b->peer.program)
        return;
    ratio = bench_ratio(&ours, &b->peers[i]);
    metrics[0] = bench_metric_of("tokens_s", "tok/s", &b->peers[i], NULL, NULL);
    metrics[1] = bench_metric_of("ratio", "x ours/peer", &ratio, NULL, NULL);
    bench_report_row(&b->report, "  peer", metrics, 2);
}

static void report_part(struct batch *b, int i, const char *name, const char *key, size_t field)
{
    struct bench_series ms = series(b, i, field), whole = series(b, i, FIELD(step_ms));
    struct bench_series share = bench_ratio(&ms, &whole);
    for (int k = 0; k < share.n; k++)
        share.values[k] *= 100;
    char ms_key[48], share_key[48], text[64];
    snprintf(ms_key, sizeof ms_key, "%s_ms", key);
    snprintf(share_key, sizeof share_key, "%s_percent", key);
    snprintf(text, sizeof text, "  %s", name);
    struct bench_metric metrics[2] = {bench_metric_of(ms_key, "ms", &ms, NULL, NULL),
                                      bench_metric_of(share_key, "%", &share, NULL, NULL)};
    bench_report_row(&b->report, text, metrics, 2);
}

static void report_parts(struct batch *b, int i)
{
    char text[96];
    snprintf(text, sizeof text, "\na step of %d streams", b->streams.values[i]);
    bench_report_note(&b->report, text);
    for (int part = 0; part <= BENCH_BATCH_SAMPLING; part++)
        report_part(b, i, parts[part].name, parts[part].key,
                    FIELD(part_ms) + (size_t)part * sizeof(double));
    report_part(b, i, "between the steps", "between", FIELD(between_ms));
    bench_report_note(&b->report, "the coordinator's loop meanwhile, processor time");
    for (int part = BENCH_BATCH_SCHEDULER; part < BENCH_BATCH_PARTS; part++)
        report_part(b, i, parts[part].name, parts[part].key,
                    FIELD(part_ms) + (size_t)part * sizeof(double));
    report_part(b, i, "scheduler to HTTP", "own", FIELD(own_ms));
}

static void report(struct batch *b)
{
    bench_report_begin(&b->report, b->as_json, stdout);
    bench_report_text(&b->report, "version", version_string());
    bench_report_text(&b->report, "model", b->model);
    bench_report_number(&b->report, "CPUs", thread_cpu_count());
    bench_report_number(&b->report, "expert nodes", b->nodes);
    bench_report_number(&b->report, "prompt tokens", b->prompt);
    bench_report_number(&b->report, "answer tokens", b->tokens);
    if (b->peer.program)
        bench_report_text(&b->report, "peer", b->peer.program);
    for (int i = 0; i < b->streams.n; i++)
        report_speed(b, i);
    for (int i = 0; i < b->streams.n; i++)
        report_parts(b, i);
    bench_report_end(&b->report);
}

/* ---- options --------------------------------------------------------------------------------- */

enum {
    OPT_HELP = 256,
    OPT_MODEL,
    OPT_FORMAT,
    OPT_STREAMS,
    OPT_NODES,
    OPT_PROMPT,
    OPT_TOKENS,
    OPT_REPEAT,
    OPT_SET,
    OPT_JSON,
    OPT_PEER,
    OPT_GGUF,
    OPT_PEER_ARGS
};

static int take_count(const char *name, const char *text, int least, int most, int *out,
                      struct err *e)
{
    int64_t value;
    int rc = local_engine_integer(name, text, least, most, &value, e);
    if (rc == 0)
        *out = (int)value;
    return rc;
}

static int take_streams(struct batch *b, const char *text, struct err *e)
{
    int rc = bench_list_parse("streams", text, 1, &b->streams, e);
    for (int i = 0; i < b->streams.n && rc == 0; i++)
        if (b->streams.values[i] > MAX_STREAMS)
            rc = err_set(e, E_INVALID, "--streams %s: at most %d", text, MAX_STREAMS);
    return rc;
}

static int take(struct batch *b, int option, const char *value, struct err *e)
{
    switch (option) {
    case OPT_MODEL:
        b->model = value;
        return 0;
    case OPT_FORMAT:
        b->format = value;
        return 0;
    case OPT_STREAMS:
        return take_streams(b, value, e);
    case OPT_NODES:
        return take_count("nodes", value, 1, LOCAL_CLUSTER_MAX_NODES, &b->nodes, e);
    case OPT_PROMPT:
        return take_count("prompt", value, 1, 1 << 20, &b->prompt, e);
    case OPT_TOKENS:
        return take_count("tokens", value, 2, 1 << 20, &b->tokens, e);
    case OPT_REPEAT:
        return take_count("repeat", value, 1, BENCH_MAX_REPEAT, &b->repeat, e);
    case OPT_SET:
        return local_cluster_set(&b->cluster, value) ? 0 : err_set(e, E_INVALID, "--set: too many");
    case OPT_JSON:
        b->as_json = true;
        return 0;
    case OPT_PEER:
        b->peer.program = value;
        return 0;
    case OPT_GGUF:
        b->peer.model = value;
        return 0;
    default:
        b->peer.more_args = value;
        return 0;
    }
}

static int check(const struct batch *b, struct err *e)
{
    if (!b->model)
        return err_set(e, E_INVALID, "--model is needed");
    if (!b->peer.program != !b->peer.model)
        return err_set(e, E_INVALID, "--llama-batched-bench and --model-gguf belong together");
    return 0;
}

/* 0 to go on, 1 after --help, E_INVALID. */
static int parse(int argc, char **argv, struct batch *b, struct err *e)
{
    static const struct option options[] = {
        {"help", no_argument, NULL, OPT_HELP},
        {"model", required_argument, NULL, OPT_MODEL},
        {"format", required_argument, NULL, OPT_FORMAT},
        {"streams", required_argument, NULL, OPT_STREAMS},
        {"nodes", required_argument, NULL, OPT_NODES},
        {"prompt", required_argument, NULL, OPT_PROMPT},
        {"tokens", required_argument, NULL, OPT_TOKENS},
        {"repeat", required_argument, NULL, OPT_REPEAT},
        {"set", required_argument, NULL, OPT_SET},
        {"json", no_argument, NULL, OPT_JSON},
        {"llama-batched-bench", required_argument, NULL, OPT_PEER},
        {"model-gguf", required_argument, NULL, OPT_GGUF},
        {"peer-args", required_argument, NULL, OPT_PEER_ARGS},
        {0}};
    *b = (struct batch){.streams = {.n = 4, .values = {1, 4, 16, 64}},
                        .nodes = DEFAULT_NODES,
                        .prompt = DEFAULT_PROMPT,
                        .tokens = DEFAULT_TOKENS,
                        .repeat = DEFAULT_REPEAT};
    optind = 0;
    opterr = 0;
    for (int o, rc; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == OPT_HELP) {
            usage(stdout);
            return 1;
        }
        if (o == '?')
            return err_set(e, E_INVALID, "%s: unknown option or missing value; see --help",
                           argv[optind - 1]);
        if ((rc = take(b, o, optarg, e)) < 0)
            return rc;
    }
    return optind < argc ? err_set(e, E_INVALID, "%s: unexpected argument", argv[optind])
                         : check(b, e);
}

/* Room for the largest number of streams; no guesses, so that a step is one token of each. */
static void set_up(struct batch *b)
{
    struct local_cluster *r = &b->cluster;
    int most = 1;
    for (int i = 0; i < b->streams.n; i++)
        most = b->streams.values[i] > most ? b->streams.values[i] : most;
    r->model = b->model;
    r->format = b->format;
    r->n_experts = b->nodes;
    snprintf(b->max_seqs, sizeof b->max_seqs, "coordinator.attention.max_seqs=%d", most);
    snprintf(b->max_queue, sizeof b->max_queue, "coordinator.request.queue_limit=%d", most);
    local_cluster_set(r, b->max_seqs);
    local_cluster_set(r, b->max_queue);
    local_cluster_set(r, "coordinator.schedule.speculation=0");
    local_cluster_set(r, "coordinator.schedule.queue_ms=0");
    b->peer.threads = thread_cpu_count();
    b->peer.prompt = b->prompt;
    b->peer.tokens = b->tokens;
}

int bench_batch_main(int argc, char **argv)
{
    static struct batch b;
    struct err e = {0};
    int rc = parse(argc, argv, &b, &e);
    if (rc == 1)
        return 0;
    bool is_misused = rc < 0;
    if (rc == 0) {
        set_up(&b);
        b.http = http_client_new();
        rc = bench_cluster_up(&b.cluster, &e);
        if (rc == 0)
            rc = run_all(&b, &e);
        local_cluster_stop(&b.cluster);
        local_cluster_close(&b.cluster, LOCAL_CLUSTER_DROP_LOGS);
        http_client_free(&b.http);
        if (rc == 0)
            report(&b);
    }
    if (rc < 0)
        fprintf(stderr, "polymath bench batch: %s\n", e.text);
    return is_misused ? 2 : rc < 0 ? 1 : 0;
}
