/* tools/status.c - `polymath status`: what the coordinator's /cluster says, for people. */
#include "tools/status.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "tools/cluster_view.h"
#include "tools/status_forecast.h"
#include "tools/status_text.h"

/* --model: over which steps are seen. */
#define INTERVAL_NS (2 * CLOCK_S)

static void usage(FILE *out)
{
    fputs(
        "usage: polymath status [--url URL] [--key FILE] [--json | --model DIR]\n\n"
        "Shows a running cluster: nodes with their states, hosts and racks, placement, requests,\n"
        "how far the token log is on disk and at standbys, and who runs which build where they\n"
        "differ (a rolling upgrade).  Endpoints, processes and the rest: --json.\n\n"
        "  --url URL         the coordinator (default http://127.0.0.1:8080)\n"
        "  --key FILE        holds an admin's API key, mode 0600\n"
        "  --json            the coordinator's answer as it is\n"
        "  --model DIR       the served model's directory: watches for two seconds and shows how\n"
        "                    long steps take beside what `polymath plan` would expect of these "
        "nodes\n"
        "  --round-trip US   of a call without work, for that (default 200; 60 on one machine)\n"
        "\nExit code: 0 ready, 1 not ready or not reachable, 2 misused.\n",
        out);
}

static void print_cluster(const json_t *root)
{
    struct buf text = {0};
    status_text(root, &text);
    fwrite(text.data, 1, text.len, stdout);
    buf_fini(&text);
}

static int print_forecast(struct cluster_view *v, const char *model_dir, double round_trip_us,
                          struct err *e)
{
    struct status_forecast f;
    json_t *before = json_incref(v->root);
    clock_sleep_until(clock_now_ns() + INTERVAL_NS);
    int rc = cluster_view_read(v, e);
    if (rc == 0)
        rc = status_forecast(before, v->root, model_dir, round_trip_us, &f, e);
    json_decref(before);
    if (rc < 0)
        return rc;
    if (f.n_steps == 0) {
        printf("\n  no step has run yet, so there is nothing to compare\n");
        return 0;
    }
    printf("\n  %-28s %9s %12s %12s %10s\n", "a step", "ms", "attention", "experts", "tokens/s");
    printf("  seen, %-7.1f rows %9s %9.2f %12.2f %12.2f %10.1f\n", f.rows, "", f.seen_ms,
           f.seen_attention_ms, f.seen_experts_ms, f.seen_tokens_s);
    printf("  expected %19s %9.2f %12.2f %12.2f %10.1f\n", "", f.told_ms, f.told_attention_ms,
           f.told_experts_ms, f.told_tokens_s);
    printf(
        "  %lld steps; expected is reading alone, at 80 %% of the nodes' speeds (polymath plan)\n",
        f.n_steps);
    return 0;
}

struct status_options {
    const char *url, *key, *model_dir;
    double round_trip_us;
    bool is_raw;
};

/* -1: go on; else the exit code. */
static int parse_options(struct status_options *o, int argc, char **argv)
{
    static const struct option options[] = {{"url", required_argument, NULL, 'u'},
                                            {"key", required_argument, NULL, 'k'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"model", required_argument, NULL, 'm'},
                                            {"round-trip", required_argument, NULL, 'r'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    char *end = NULL;
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (c) {
        case 'u':
            o->url = optarg;
            break;
        case 'k':
            o->key = optarg;
            break;
        case 'j':
            o->is_raw = true;
            break;
        case 'm':
            o->model_dir = optarg;
            break;
        case 'r':
            o->round_trip_us = strtod(optarg, &end);
            if (*end || !(o->round_trip_us > 0)) {
                fprintf(stderr, "polymath status: --round-trip %s is no time in us\n", optarg);
                return 2;
            }
            break;
        case 'h':
            usage(stdout);
            return 0;
        default:
            return 2;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "polymath status: unexpected argument '%s'\n", argv[optind]);
        return 2;
    }
    if (o->is_raw && o->model_dir) {
        fprintf(stderr,
                "polymath status: --json shows no forecast; take one of --json and --model\n");
        return 2;
    }
    return -1;
}

static void print_raw(const json_t *root)
{
    json_dumpf(root, stdout, JSON_COMPACT);
    putchar('\n');
}

int status_main(int argc, char **argv)
{
    struct status_options o = {.url = "http://127.0.0.1:8080"};
    int code = parse_options(&o, argc, argv);
    if (code >= 0)
        return code;
    struct cluster_view v;
    struct err e = {0};
    int rc = cluster_view_open(&v, o.url, o.key, &e);
    if (rc == 0)
        rc = cluster_view_read(&v, &e);
    if (rc == 0 && o.is_raw)
        print_raw(v.root);
    else if (rc == 0)
        print_cluster(v.root);
    if (rc == 0 && o.model_dir)
        rc = print_forecast(&v, o.model_dir, o.round_trip_us, &e);
    if (rc < 0)
        fprintf(stderr, "polymath status: %s\n", e.text);
    code = rc == 0 && json_is_true(json_object_get(v.root, "ready")) ? 0 : 1;
    cluster_view_close(&v);
    return code;
}
