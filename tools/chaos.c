/* tools/chaos.c - `polymath chaos`: faults against a live cluster under load, and what they
 * cost.  Starts real processes on this machine, alone or each on a host of its own inside it,
 * and leaves nothing behind. */
#include "tools/chaos.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "base/signals.h"
#include "model/format.h"
#include "tools/chaos_attack.h"

enum { MAX_CHOSEN = 32, DEFAULT_SECONDS = 8 };

struct verb {
    struct chaos chaos;
    const char *names;   /* "all" or comma-separated */
    const char *rows;    /* file for rows of a table; NULL: none */
    const char *targets; /* to be attacked; NULL: scenarios */
    const struct chaos_scenario *chosen[MAX_CHOSEN];
    int n_chosen;
    bool as_json, lists;
    char *bin_dir;
    char *own_model; /* removed at the end; NULL: the user's */
};

static void usage(FILE *out)
{
    struct buf list = {0};
    chaos_scenario_list(&list);
    fprintf(out,
            "usage: polymath chaos [OPTION]...\n\n"
            "Starts a cluster, lets clients stream from it, disturbs it, and prints what that\n"
            "cost: requests lost, streams with other tokens than undisturbed, the longest pause\n"
            "between two tokens (the longest of all, the 99th percentile of the faults' longest,\n"
            "what is allowed, and the longest undisturbed one: a step), the longest wait for a\n"
            "first token, the time from a fault or a return until every expert had all its copies\n"
            "again; calls asked again elsewhere and made early, sequences replayed.  Exit code 1\n"
            "if a promise was not kept.\n\n"
            "  --scenario NAMES one or more, with commas, or all (default all)\n"
            "  --nodes N        expert nodes (default 4)\n"
            "  --replicas R     copies of every expert (default 2)\n"
            "  --seconds S      length of the scenarios that go on and on, or again and again\n"
            "                   (default 8)\n"
            "  --count N        faults of those (kills), however long they take\n"
            "  --clients N      streams at a time (default 8)\n"
            "  --tokens N       length of an answer (default 64)\n"
            "  --model DIR      checkpoint (default: a tiny one, made for the run)\n"
            "  --format F       how weights and the KV cache are held, as for polymath up\n"
            "  --seed S         of prompts and of the choice of victims (default: printed)\n"
            "  --hosts          every process on a host of its own: network namespaces with\n"
            "                   wires between them, over tcp; needs root and /dev/net/tun\n"
            "  --round-trip US  between those hosts (default 200)\n"
            "  --set WHO.KEY=V  as for polymath up (repeatable)\n"
            "  --dir DIR        keep each scenario's logs there\n"
            "  --json           one JSON object for each scenario\n"
            "  --rows FILE      append a row of a Markdown table for each scenario, too\n"
            "  --list           only list the scenarios\n"
            "  --attack TARGETS no cluster: send garbage to these endpoints (tcp://, ipc://,\n"
            "                   http://, with commas), --seconds long, or until a signal\n\n"
            "Scenarios:\n%s",
            list.data);
    buf_fini(&list);
}

/* ---- options --------------------------------------------------------------------------- */

static bool parse_number(const char *text, long long least, long long most, long long *out)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (*text == 0 || *end != 0 || errno || n < least || n > most)
        return false;
    *out = n;
    return true;
}

static bool parse_count(const char *text, int least, int most, int *out)
{
    long long n;
    if (!parse_number(text, least, most, &n))
        return false;
    *out = (int)n;
    return true;
}

enum {
    OPTION_SCENARIO = 1,
    OPTION_NODES,
    OPTION_REPLICAS,
    OPTION_SECONDS,
    OPTION_COUNT,
    OPTION_CLIENTS,
    OPTION_TOKENS,
    OPTION_MODEL,
    OPTION_FORMAT,
    OPTION_SEED,
    OPTION_HOSTS,
    OPTION_ROUND_TRIP,
    OPTION_SET,
    OPTION_DIR,
    OPTION_JSON,
    OPTION_ROWS,
    OPTION_LIST,
    OPTION_ATTACK,
    OPTION_HELP,
};

static const struct option option_table[] = {
    {"scenario", required_argument, NULL, OPTION_SCENARIO},
    {"nodes", required_argument, NULL, OPTION_NODES},
    {"replicas", required_argument, NULL, OPTION_REPLICAS},
    {"seconds", required_argument, NULL, OPTION_SECONDS},
    {"count", required_argument, NULL, OPTION_COUNT},
    {"clients", required_argument, NULL, OPTION_CLIENTS},
    {"tokens", required_argument, NULL, OPTION_TOKENS},
    {"model", required_argument, NULL, OPTION_MODEL},
    {"format", required_argument, NULL, OPTION_FORMAT},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"hosts", no_argument, NULL, OPTION_HOSTS},
    {"round-trip", required_argument, NULL, OPTION_ROUND_TRIP},
    {"set", required_argument, NULL, OPTION_SET},
    {"dir", required_argument, NULL, OPTION_DIR},
    {"json", no_argument, NULL, OPTION_JSON},
    {"rows", required_argument, NULL, OPTION_ROWS},
    {"list", no_argument, NULL, OPTION_LIST},
    {"attack", required_argument, NULL, OPTION_ATTACK},
    {"help", no_argument, NULL, OPTION_HELP},
    {0}};

/* The numbers; false: out of range. */
static bool take_number(struct chaos_options *o, int option, const char *text)
{
    long long n = 0;
    bool fine = true;
    switch (option) {
    case OPTION_NODES:
        return parse_count(text, 1, 32, &o->n_nodes);
    case OPTION_REPLICAS:
        return parse_count(text, 1, 4, &o->replicas);
    case OPTION_SECONDS:
        return parse_count(text, 1, 86400, &o->seconds);
    case OPTION_COUNT:
        return parse_count(text, 1, CHAOS_MAX_FAULTS, &o->count);
    case OPTION_CLIENTS:
        return parse_count(text, 1, CHAOS_MAX_CLIENTS, &o->n_clients);
    case OPTION_TOKENS:
        return parse_count(text, 2, 2048, &o->n_tokens);
    case OPTION_ROUND_TRIP: /* a frame passes two wires each way */
        fine = parse_number(text, 0, 1000000, &n);
        o->wire.delay_ns = n * CLOCK_US / 4;
        return fine;
    case OPTION_SEED:
        fine = parse_number(text, 0, INT64_MAX, &n);
        o->seed = (uint64_t)n;
        return fine;
    }
    unreachable();
}

/* 0, or the exit code. */
static int take_option(struct verb *v, int option)
{
    struct chaos_options *o = &v->chaos.options;
    bool fine = true;
    switch (option) {
    case OPTION_SCENARIO:
        v->names = optarg;
        break;
    case OPTION_MODEL:
        o->model = optarg;
        break;
    case OPTION_FORMAT:
        o->format = optarg;
        break;
    case OPTION_HOSTS:
        o->on_hosts = true;
        break;
    case OPTION_SET:
        fine = o->n_settings < (int)(sizeof o->settings / sizeof o->settings[0]);
        if (fine)
            o->settings[o->n_settings++] = optarg;
        break;
    case OPTION_DIR:
        o->dir = optarg;
        break;
    case OPTION_JSON:
        v->as_json = true;
        break;
    case OPTION_ROWS:
        v->rows = optarg;
        break;
    case OPTION_LIST:
        v->lists = true;
        break;
    case OPTION_ATTACK:
        v->targets = optarg;
        break;
    case '?':
        return 2;
    default:
        fine = take_number(o, option, optarg);
        break;
    }
    if (!fine)
        fprintf(stderr, "polymath chaos: '%s' is out of range; see polymath chaos --help\n",
                optarg);
    return fine ? 0 : 2;
}

static int choose_scenarios(struct verb *v)
{
    if (strcmp(v->names, "all") == 0) {
        while (chaos_scenario_at(v->n_chosen) && v->n_chosen < MAX_CHOSEN) {
            v->chosen[v->n_chosen] = chaos_scenario_at(v->n_chosen);
            v->n_chosen++;
        }
        return 0;
    }
    for (const char *at = v->names; *at; at += *at == ',') {
        size_t n = strcspn(at, ",");
        char *name = str_copy((struct str){at, n});
        const struct chaos_scenario *s = chaos_scenario_named(name);
        if (!s || v->n_chosen == MAX_CHOSEN)
            fprintf(stderr, "polymath chaos: no scenario is named '%s'; --list shows them\n", name);
        mem_free(name);
        if (!s || v->n_chosen == MAX_CHOSEN)
            return 2;
        v->chosen[v->n_chosen++] = s;
        at += n;
    }
    return 0;
}

/* -1: go on; else the exit code. */
static int parse(struct verb *v, int argc, char **argv)
{
    struct chaos_options *o = &v->chaos.options;
    struct format_set formats;
    struct err e = {0};
    optind = 1;
    for (int code; (code = getopt_long(argc, argv, "", option_table, NULL)) != -1;) {
        if (code == OPTION_HELP) {
            usage(stdout);
            return 0;
        }
        int rc = take_option(v, code);
        if (rc != 0)
            return rc;
    }
    if (optind < argc) {
        fprintf(stderr, "polymath chaos: unexpected argument '%s'\n", argv[optind]);
        return 2;
    }
    if (o->format && format_set_parse(o->format, &formats, &e) < 0) {
        fprintf(stderr, "polymath chaos: --format: %s\n", e.text);
        return 2;
    }
    o->n_prompts = 2 * o->n_clients;
    if (v->targets)
        return -1;
    o->seconds = o->seconds ? o->seconds : DEFAULT_SECONDS;
    return choose_scenarios(v) == 0 ? -1 : 2;
}

/* ---- what the run needs ------------------------------------------------------------------ */

static int make_model(struct verb *v, struct err *e)
{
    char dir[] = "/tmp/polymath-model-XXXXXX";
    if (!mkdtemp(dir))
        return err_set_errno(e, errno, "create %s", dir);
    v->own_model = mem_string(dir);
    v->chaos.options.model = v->own_model;
    char *path = mem_format("%s/polymath", v->bin_dir);
    const char *const argv[] = {
        path,     "synth", "--preset", "m2-tiny", "--set", "num_hidden_layers=3",
        "--seed", "7",     "--out",    dir,       NULL};
    struct buf output = {0};
    int rc = chaos_program(argv, &output) == 0
                 ? 0
                 : err_set(e, E_IO, "make a model: %.300s", output.data ? output.data : "");
    buf_fini(&output);
    mem_free(path);
    return rc;
}

static int prepare(struct verb *v, struct err *e)
{
    struct chaos *c = &v->chaos;
    struct local_cluster places = {0};
    if (c->options.dir && mkdir(c->options.dir, 0755) < 0 && errno != EEXIST)
        return err_set_errno(e, errno, "create %s", c->options.dir);
    int rc = local_cluster_open(&places, NULL, e);
    if (rc == 0)
        v->bin_dir = mem_string(places.bin_dir);
    local_cluster_close(&places, LOCAL_CLUSTER_DROP_LOGS);
    c->bin_dir = v->bin_dir;
    if (rc == 0 && !c->options.model)
        rc = make_model(v, e);
    if (rc < 0)
        return rc;
    c->prompts = mem_array((size_t)c->options.n_prompts, sizeof *c->prompts);
    chaos_prompts_make(c->prompts, c->options.n_prompts, c->options.n_tokens, c->options.seed);
    c->signal_fd = signals_open();
    return 0;
}

static void clean_up(struct verb *v)
{
    struct chaos *c = &v->chaos;
    for (int i = 0; c->answers && i < c->options.n_prompts; i++)
        mem_free(c->answers[i].tokens);
    mem_free(c->answers);
    mem_free(c->prompts);
    if (v->own_model) {
        local_cluster_remove_tree(v->own_model);
        mem_free(v->own_model);
    }
    mem_free(v->bin_dir);
}

/* ---- all ------------------------------------------------------------------------------------ */

static void print(struct buf *text)
{
    fputs(text->data ? text->data : "", stdout);
    fflush(stdout);
    buf_reset(text);
}

static int append_row(const struct verb *v, const struct chaos_scenario *s,
                      const struct chaos_result *result, struct err *e)
{
    struct buf row = {0};
    FILE *f = fopen(v->rows, "a");
    if (!f)
        return err_set_errno(e, errno, "--rows: open %s", v->rows);
    chaos_print_row(s, result, &row);
    bool fine = fputs(row.data, f) >= 0;
    fine = fclose(f) == 0 && fine;
    buf_fini(&row);
    return fine ? 0 : err_set_errno(e, errno, "--rows: write %s", v->rows);
}

/* The exit code. */
static int run_all(struct verb *v, struct err *e)
{
    struct buf text = {0};
    int code = 0;
    if (!v->as_json) {
        printf("seed %llu, %d expert nodes, %d copies, %d clients\n",
               (unsigned long long)v->chaos.options.seed, v->chaos.options.n_nodes,
               v->chaos.options.replicas, v->chaos.options.n_clients);
        chaos_print_head(&text);
        print(&text);
    }
    for (int i = 0; i < v->n_chosen; i++) {
        struct chaos_result result;
        int rc = chaos_run(&v->chaos, v->chosen[i], &result, e);
        if (rc == 0)
            (v->as_json ? chaos_print_json : chaos_print_result)(v->chosen[i], &result, &text);
        print(&text);
        if (rc == 0 && v->rows)
            rc = append_row(v, v->chosen[i], &result, e);
        buf_fini(&result.why);
        if (rc < 0 || result.outcome == CHAOS_MISSED || result.outcome == CHAOS_BROKEN)
            code = 1;
        if (rc < 0)
            break;
    }
    buf_fini(&text);
    return code;
}

static int attack(const struct verb *v)
{
    struct chaos_attack_options o = {.targets = v->targets,
                                     .seed = v->chaos.options.seed,
                                     .seconds = v->chaos.options.seconds,
                                     .signal_fd = signals_open()};
    return chaos_attack(&o);
}

int chaos_main(int argc, char **argv)
{
    static struct verb v;
    struct err e = {0};
    v = (struct verb){.names = "all",
                      .chaos.options = {.n_nodes = 4,
                                        .replicas = 2,
                                        .n_clients = 8,
                                        .n_tokens = 64,
                                        .wire.delay_ns = 50 * CLOCK_US}};
    v.chaos.options.seed = rng_entropy() >> 32;
    int code = parse(&v, argc, argv);
    if (code >= 0)
        return code;
    if (v.lists) {
        struct buf list = {0};
        chaos_scenario_list(&list);
        print(&list);
        buf_fini(&list);
        return 0;
    }
    if (v.targets)
        return attack(&v);
    code = prepare(&v, &e) < 0 ? 1 : run_all(&v, &e);
    if (e.code)
        fprintf(stderr, "polymath chaos: %s\n", e.text);
    clean_up(&v);
    return code;
}
