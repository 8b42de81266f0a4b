/* tools/loadtest.c - see loadtest.h: options, the run, and what the server says before and after. */
#include "tools/loadtest.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tools/loadtest_overload.h"
#include "tools/loadtest_report.h"
#include "tools/loadtest_run.h"
#include "tools/loadtest_server.h"

enum { SETTLE_S = 60, MOST = 1000000 };

enum mode { MODE_LOAD, MODE_IDLE, MODE_HANGUP, MODE_OVERLOAD };

struct loadtest {
    struct loadtest_options run;
    struct loadtest_goal goal;
    enum mode mode;
    const char *key, *json, *svg;
    int64_t hold_ns;
    double most_first_ms;
    struct loadtest_overload overload;
    struct http_client *http;
    struct loadtest_server before, during, after;
    bool is_terminal;
};

static volatile sig_atomic_t is_interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    is_interrupted = 1;
}

static void usage(FILE *out)
{
    fputs(
        "usage: polymath loadtest [OPTION]...\n\n"
        "Streams completions from a running cluster with many clients at once and prints what they "
        "saw.\n"
        "(polymath load measures something else: how fast weights are read.)\n\n"
        "  --url URL          the coordinator (default http://127.0.0.1:8080)\n"
        "  --key FILE         holds an API key, mode 0600; an admin's, so that /metrics can be "
        "read\n"
        "  --clients N        closed loop: so many ask, each again when answered (default 8)\n"
        "  --rate R           open loop: R requests per second, whatever comes of them\n"
        "  --arrival HOW      of an open loop: poisson (default) or steady\n"
        "  --max-open N       of an open loop: no more at a time (default 1000)\n"
        "  --requests N       end after so many\n"
        "  --seconds S        begin none after so long (default 30, without --requests)\n"
        "  --prompt LENGTH    tokens of a prompt: 64, 16-256 (evenly) or exp:128 (default 16-256)\n"
        "  --output LENGTH    tokens of an answer (default 16-128)\n"
        "  --prefix N         tokens that the prompts of a group begin with (default 0)\n"
        "  --groups N         so many groups (default 1)\n"
        "  --temperature T    default 0\n"
        "  --seed N           the same requests again (default 1)\n"
        "  --timeout S        of one request (default 300)\n"
        "  --goal-first MS    goodput counts answers whose first token came within MS (default "
        "5000)\n"
        "  --goal-gap MS      and every later one within MS of the one before (default 1000)\n"
        "  --json FILE        all of it as JSON (-: standard output, without the table)\n"
        "  --svg FILE         a plot\n"
        "  --idle N           open N streams, hold them for --hold seconds (default 5), leave: "
        "what\n"
        "                     do they cost the coordinator?  Its queue must take them\n"
        "                     (request.queue_limit, schedule.queue_ms)\n"
        "  --hangup N         N clients that leave in the middle of their answers: what stays "
        "behind?\n"
        "  --overload S       finds out how many requests per second are answered (closed loop), "
        "then\n"
        "                     S seconds of twice as many, a tenth of whom hang up: only 429 may "
        "fail,\n"
        "                     memory must be flat, and 99 % of those let in have their first "
        "token\n"
        "  --most-first MS    within MS (default 120000, twice the usual schedule.queue_ms)\n"
        "\nExit code: 0; 1 if a request failed other than by 429, an overload did not go well or "
        "the\ntest did not run; 2 misused.\n",
        out);
}

/* ---- options ------------------------------------------------------------------------------- */

static int read_number(const char *name, const char *text, double low, double high, double *out,
                       struct err *e)
{
    char *end;
    *out = strtod(text, &end);
    if (end == text || *end || !(*out >= low && *out <= high))
        return err_set(e, E_INVALID, "--%s takes %g to %g, not \"%s\"", name, low, high, text);
    return 0;
}

static const struct number_option {
    const char *name;
    double low, high;
} numbers[] = {
    {"clients", 1, 20000},   {"rate", 0.001, 100000}, {"max-open", 1, 20000},
    {"requests", 1, 1e9},    {"seconds", 1, 864000},  {"prefix", 0, 1000000},
    {"groups", 1, 1000000},  {"temperature", 0, 2},   {"seed", 0, 4294967295.0},
    {"timeout", 1, 86400},   {"goal-first", 1, 1e9},  {"goal-gap", 1, 1e9},
    {"idle", 1, 20000},      {"hold", 1, 3600},       {"hangup", 1, MOST},
    {"overload", 5, 864000}, {"most-first", 1, 1e9},
};
enum {
    CLIENTS,
    RATE,
    MAX_OPEN,
    REQUESTS,
    SECONDS,
    PREFIX,
    GROUPS,
    TEMPERATURE,
    SEED,
    TIMEOUT,
    GOAL_FIRST,
    GOAL_GAP,
    IDLE,
    HOLD,
    HANGUP,
    OVERLOAD,
    MOST_FIRST,
    N_NUMBERS,
    URL = 256,
    KEY,
    ARRIVAL,
    PROMPT,
    OUTPUT,
    JSON,
    SVG,
    HELP
};
_Static_assert(sizeof numbers / sizeof numbers[0] == N_NUMBERS, "a name for each number");

static void take_number(struct loadtest *t, int which, double v)
{
    struct loadtest_options *r = &t->run;
    switch (which) {
    case CLIENTS:
        r->n_clients = (int)v;
        break;
    case RATE:
        r->load.rate = v;
        break;
    case MAX_OPEN:
        r->max_open = (int)v;
        break;
    case REQUESTS:
        r->n_requests = (int64_t)v;
        break;
    case SECONDS:
        r->run_ns = (int64_t)(v * CLOCK_S);
        break;
    case PREFIX:
        r->load.prefix_tokens = (int)v;
        break;
    case GROUPS:
        r->load.n_groups = (int)v;
        break;
    case TEMPERATURE:
        r->load.temperature = v;
        break;
    case SEED:
        r->load.seed = (uint64_t)v;
        break;
    case TIMEOUT:
        r->timeout_ns = (int64_t)(v * CLOCK_S);
        break;
    case GOAL_FIRST:
        t->goal.first_ms = v;
        break;
    case GOAL_GAP:
        t->goal.gap_ms = v;
        break;
    case IDLE:
        t->mode = MODE_IDLE;
        r->n_requests = r->n_clients = (int)v;
        break;
    case HOLD:
        t->hold_ns = (int64_t)(v * CLOCK_S);
        break;
    case HANGUP:
        t->mode = MODE_HANGUP;
        r->n_requests = (int64_t)v;
        r->load.hang_up_tokens = 4;
        break;
    case OVERLOAD:
        t->mode = MODE_OVERLOAD;
        r->run_ns = (int64_t)(v * CLOCK_S);
        break;
    case MOST_FIRST:
        t->most_first_ms = v;
        break;
    }
}

static int take_word(struct loadtest *t, int which, const char *value, struct err *e)
{
    switch (which) {
    case URL:
        t->run.url = value;
        return 0;
    case KEY:
        t->key = value;
        return 0;
    case ARRIVAL:
        t->run.load.arrival = strcmp(value, "steady") == 0 ? LOADTEST_STEADY : LOADTEST_POISSON;
        if (strcmp(value, "steady") != 0 && strcmp(value, "poisson") != 0)
            return err_set(e, E_INVALID, "--arrival takes poisson or steady, not \"%s\"", value);
        return 0;
    case PROMPT:
        return loadtest_read_length(value, &t->run.load.prompt, e);
    case OUTPUT:
        return loadtest_read_length(value, &t->run.load.output, e);
    case JSON:
        t->json = value;
        return 0;
    default:
        t->svg = value;
        return 0;
    }
}

static void set_defaults(struct loadtest *t)
{
    *t = (struct loadtest){
        .run = {.load = {.prompt = {.low = 16, .high = 256},
                         .output = {.low = 16, .high = 128},
                         .n_groups = 1,
                         .seed = 1},
                .url = "http://127.0.0.1:8080",
                .n_clients = 8,
                .max_open = 1000,
                .timeout_ns = 300 * CLOCK_S},
        .goal = {.first_ms = 5000, .gap_ms = 1000},
        .hold_ns = 5 * CLOCK_S,
        .most_first_ms = 120e3,
        .is_terminal = isatty(STDERR_FILENO),
    };
}

/* 0 to go on, 1 after --help, E_INVALID. */
static int parse(int argc, char **argv, struct loadtest *t, struct err *e)
{
    static const struct {
        const char *name;
        int code;
    } words[] = {{"url", URL},       {"key", KEY},   {"arrival", ARRIVAL}, {"prompt", PROMPT},
                 {"output", OUTPUT}, {"json", JSON}, {"svg", SVG}};
    struct option options[N_NUMBERS + 9] = {0};
    int n = 0;
    for (; n < N_NUMBERS; n++)
        options[n] = (struct option){numbers[n].name, required_argument, NULL, n};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        options[n++] = (struct option){words[i].name, required_argument, NULL, words[i].code};
    options[n] = (struct option){"help", no_argument, NULL, HELP};
    set_defaults(t);
    optind = 1;
    int rc = 0;
    for (int o; rc == 0 && (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        double v = 0;
        if (o == HELP) {
            usage(stdout);
            return 1;
        }
        if (o == '?')
            return err_set(e, E_INVALID, "polymath loadtest --help lists the options");
        if (o >= N_NUMBERS) {
            rc = take_word(t, o, optarg, e);
            continue;
        }
        rc = read_number(numbers[o].name, optarg, numbers[o].low, numbers[o].high, &v, e);
        if (rc == 0)
            take_number(t, o, v);
    }
    if (rc == 0 && optind != argc)
        rc = err_set(e, E_INVALID, "what is \"%s\"?", argv[optind]);
    if (rc == 0 && t->mode == MODE_LOAD && t->run.n_requests == 0 && t->run.run_ns == 0)
        t->run.run_ns = 30 * CLOCK_S;
    return rc;
}

/* ---- the run ------------------------------------------------------------------------------- */

static bool on_progress(void *ud, int64_t elapsed_ns, int64_t n_over, int n_open)
{
    struct loadtest *t = ud;
    if (t->is_terminal)
        fprintf(stderr, "\r%5lld s  %lld over, %d open   ", (long long)(elapsed_ns / CLOCK_S),
                (long long)n_over, n_open);
    struct err e = {0};
    struct loadtest_server now;
    if (t->mode == MODE_OVERLOAD && t->run.load.rate > 0 &&
        loadtest_server_read(t->http, t->run.url, &now, &e) == 0)
        loadtest_overload_watch(&t->overload, (double)elapsed_ns / 1e9, now.resident_bytes);
    if (t->mode != MODE_IDLE || elapsed_ns < t->hold_ns)
        return !is_interrupted;
    if (loadtest_server_read(t->http, t->run.url, &t->during, &e) < 0)
        t->during.is_known = false;
    return false;
}

static int read_server(struct loadtest *t, struct err *e)
{
    int rc = loadtest_server_read(t->http, t->run.url, &t->before, e);
    /* A load can be made without; the other two are about nothing else. */
    return rc == E_DENIED && t->mode == MODE_LOAD ? 0 : rc;
}

/* Closed loop for a tenth of the run: how many does it answer? */
static int find_capacity(struct loadtest *t, struct err *e)
{
    struct loadtest_options o = t->run;
    struct loadtest_result r = {0};
    struct loadtest_summary s;
    o.run_ns /= 10;
    if (o.run_ns < 3 * CLOCK_S)
        o.run_ns = 3 * CLOCK_S;
    if (o.run_ns > 60 * CLOCK_S)
        o.run_ns = 60 * CLOCK_S;
    int rc = loadtest_run(&o, &r, e);
    loadtest_sum_up(&r, &t->goal, &s);
    t->overload.capacity = (double)s.outcomes[LOADTEST_OK] / s.seconds;
    if (rc == 0 && s.outcomes[LOADTEST_FAILED] > 0)
        rc = err_set(e, E_UNKNOWN, "a request failed without any overload: %.200s", r.error);
    if (rc == 0 && s.outcomes[LOADTEST_OK] == 0)
        rc = err_set(e, E_UNAVAILABLE, "nothing was answered in %.0f s", s.seconds);
    loadtest_result_fini(&r);
    t->run.load.rate = 2 * t->overload.capacity;
    t->run.load.hang_up_tokens = 4;
    t->run.load.hang_up_share = 0.1;
    return rc;
}

static int run(struct loadtest *t, struct loadtest_result *r, struct err *e)
{
    int rc = t->key ? http_client_use_key(t->http, t->key, e) : 0;
    if (rc == 0)
        rc = loadtest_server_is_ready(t->http, t->run.url, e);
    if (rc == 0)
        rc = read_server(t, e);
    if (rc < 0)
        return rc;
    t->run.key_header = http_client_key_header(t->http);
    t->run.progress = on_progress;
    t->run.ud = t;
    struct sigaction action = {.sa_handler = on_interrupt}, old;
    sigaction(SIGINT, &action, &old);
    rc = t->mode == MODE_OVERLOAD ? find_capacity(t, e) : 0;
    if (rc == 0)
        rc = loadtest_run(&t->run, r, e);
    sigaction(SIGINT, &old, NULL);
    if (t->is_terminal)
        fputs("\r\033[K", stderr);
    return rc;
}

/* Waits until what the test has begun is over there. */
static int settle(struct loadtest *t, struct err *e)
{
    if (!t->before.is_known)
        return 0;
    return loadtest_server_settle(t->http, t->run.url, t->before.connections + 1,
                                  clock_now_ns() + SETTLE_S * CLOCK_S, &t->after, e);
}

/* ---- what came of it ------------------------------------------------------------------------ */

static void put_server(const struct loadtest *t, struct buf *out)
{
    const struct loadtest_server *s[] = {&t->before, &t->during, &t->after};
    static const char *const names[] = {"before", "meanwhile", "after"};
    if (!t->before.is_known)
        return;
    if (out->len > 0)
        buf_putc(out, '\n');
    buf_printf(out, "%-20s%12s%14s%10s%10s\n", "the coordinator", "memory MB", "connections",
               "running", "queued");
    for (int i = 0; i < 3; i++)
        if (s[i]->is_known)
            buf_printf(out, "%-20s%12.1f%14g%10g%10g\n", names[i], s[i]->resident_bytes / 1e6,
                       s[i]->connections, s[i]->running, s[i]->queued);
    if (t->mode == MODE_IDLE && t->during.is_known)
        buf_printf(out, "%g connections for %.1f MB: %.1f KB each\n",
                   t->during.connections - t->before.connections,
                   (t->during.resident_bytes - t->before.resident_bytes) / 1e6,
                   (t->during.resident_bytes - t->before.resident_bytes) / 1e3 /
                       (t->during.connections > t->before.connections
                            ? t->during.connections - t->before.connections
                            : 1));
}

static int write_file(const char *path, const struct buf *text, struct err *e)
{
    if (strcmp(path, "-") != 0)
        return buf_write_file(text, path, e);
    fwrite(text->data, 1, text->len, stdout);
    return 0;
}

static int report(struct loadtest *t, struct loadtest_result *r, struct err *e)
{
    struct loadtest_summary s;
    struct buf text = {0};
    struct err ill = {0};
    bool is_overload = t->mode == MODE_OVERLOAD;
    int rc = 0;
    loadtest_sum_up(r, &t->goal, &s);
    int well = is_overload ? loadtest_overload_judge(&t->overload, &s, t->most_first_ms, &ill) : 0;
    if (!t->json || strcmp(t->json, "-") != 0) {
        if (t->mode != MODE_IDLE)
            loadtest_write_table(r, &s, &t->goal, &text);
        put_server(t, &text);
        if (is_overload)
            loadtest_overload_write(&t->overload, &text);
        fwrite(text.data, 1, text.len, stdout);
    }
    buf_reset(&text);
    if (t->json) {
        loadtest_write_json(r, &s, &t->goal, is_overload ? &t->overload : NULL, &text);
        rc = write_file(t->json, &text, e);
    }
    buf_reset(&text);
    if (rc == 0 && t->svg) {
        loadtest_write_svg(r, &s, &text);
        rc = write_file(t->svg, &text, e);
    }
    buf_fini(&text);
    if (rc == 0 && s.outcomes[LOADTEST_FAILED] > 0)
        rc = err_set(e, E_UNKNOWN, "%lld requests failed; the first: %s",
                     (long long)s.outcomes[LOADTEST_FAILED], r->error);
    if (rc == 0 && well < 0) {
        *e = ill;
        rc = well;
    }
    return rc;
}

int loadtest_main(int argc, char **argv)
{
    struct loadtest t;
    struct err e = {0};
    int rc = parse(argc, argv, &t, &e);
    if (rc != 0) {
        if (rc < 0)
            fprintf(stderr, "polymath loadtest: %s\n", e.text);
        return rc < 0 ? 2 : 0;
    }
    struct loadtest_result r = {0};
    t.http = http_client_new();
    rc = run(&t, &r, &e);
    if (rc == 0) {
        struct err why = {0};
        int settled = settle(&t, &why);
        rc = report(&t, &r, &e);
        if (rc == 0 && settled < 0) {
            rc = settled;
            e = why;
        }
    }
    loadtest_result_fini(&r);
    loadtest_overload_fini(&t.overload);
    http_client_free(&t.http);
    if (rc < 0)
        fprintf(stderr, "polymath loadtest: %s\n", e.text);
    return rc < 0 ? 1 : 0;
}
