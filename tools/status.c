/* tools/status.c - `polymath status`: what the coordinator's /cluster says, for people. */
#include "tools/status.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tools/cluster_view.h"
#include "tools/status_forecast.h"

/* --model: over which steps are seen. */
#define INTERVAL_NS (2 * CLOCK_S)

static void usage(FILE *out)
{
    fputs(
        "usage: polymath status [--url URL] [--key FILE] [--json | --model DIR]\n\n"
        "Shows a running cluster: nodes and their states, placement, requests.\n\n"
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

static void print_node(const json_t *node)
{
    char held[48] = "-", reads[24] = "-";
    if (cluster_view_number(node, "read_bytes_s") > 0)
        snprintf(reads, sizeof reads, "%.1f",
                 (double)cluster_view_number(node, "read_bytes_s") / 1e9);
    if (strcmp(cluster_view_text(node, "role"), "expert") == 0)
        snprintf(held, sizeof held, "%lld/%lld", cluster_view_number(node, "experts_held"),
                 cluster_view_number(node, "experts_wanted"));
    else
        snprintf(held, sizeof held, "%lld KV pages", cluster_view_number(node, "kv_pages_free"));
    printf("  %-22s %-10s %-11s %7lld  %-15s %9.1f  %7s  %8lld  %s\n",
           cluster_view_text(node, "name"), cluster_view_text(node, "role"),
           cluster_view_text(node, "state"), cluster_view_number(node, "pid"), held,
           (double)cluster_view_number(node, "held_bytes") / (1 << 20), reads,
           cluster_view_number(node, "heartbeat_age_ms"), cluster_view_text(node, "endpoint"));
}

/* Copies, and what is under way. */
static void print_placement(const json_t *p)
{
    const json_t *replicas = json_object_get(p, "replicas");
    char wish[24] = "auto";
    if (json_is_integer(replicas))
        snprintf(wish, sizeof wish, "%lld", (long long)json_integer_value(replicas));
    printf("  copies: %lld live, at least %lld of each (wish %s, memory gives %lld); %s",
           cluster_view_number(p, "copies"), cluster_view_number(p, "lowest"), wish,
           cluster_view_number(p, "wanted_lowest"),
           json_is_true(json_object_get(p, "settled")) ? "nothing moves\n" : "");
    if (!json_is_true(json_object_get(p, "settled")))
        printf("%lld to load (%.1f MiB), %lld to give up\n", cluster_view_number(p, "to_load"),
               (double)cluster_view_number(p, "to_load_bytes") / (1 << 20),
               cluster_view_number(p, "retiring"));
}

/* Only where there are several coordinators. */
static void print_leadership(const json_t *o)
{
    if (!json_object_get(o, "etcd"))
        return;
    printf("  this coordinator: %s; leader: %s %s; etcd: %s\n", cluster_view_text(o, "role"),
           cluster_view_text(o, "leader"), cluster_view_text(o, "leader_url"),
           cluster_view_text(o, "etcd"));
    size_t i;
    const json_t *standby;
    json_array_foreach(json_object_get(o, "standbys"), i, standby) printf(
        "  standby %s: %s, lacks %lld bytes of the token log\n", cluster_view_text(standby, "name"),
        json_is_true(json_object_get(standby, "in_step")) ? "in step" : "catching up",
        cluster_view_number(standby, "lag_bytes"));
}

static void print_cluster(const json_t *root)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *coverage = json_object_get(root, "coverage");
    const json_t *requests = json_object_get(root, "requests");
    const json_t *nodes = json_object_get(root, "nodes");
    bool ready = json_is_true(json_object_get(root, "ready"));

    printf("%s: %s%s\n", cluster_view_text(model, "name"),
           ready ? "ready" : "not ready: ", ready ? "" : cluster_view_text(root, "reason"));
    printf("  epoch %lld, experts %lld of %lld placed, weights %s, combine %s, fingerprint %s\n",
           cluster_view_number(root, "epoch"), cluster_view_number(coverage, "live"),
           cluster_view_number(coverage, "experts"), cluster_view_text(model, "format"),
           cluster_view_text(model, "combine"), cluster_view_text(model, "fingerprint"));
    print_leadership(json_object_get(root, "leadership"));
    print_placement(json_object_get(root, "placement"));
    printf("  requests: %lld running, %lld queued\n\n", cluster_view_number(requests, "running"),
           cluster_view_number(requests, "queued"));
    printf("  %-22s %-10s %-11s %7s  %-15s %9s  %7s  %8s  %s\n", "node", "role", "state", "pid",
           "experts/free KV", "MiB", "GB/s", "seen ms", "endpoint");
    for (size_t i = 0; i < json_array_size(nodes); i++)
        print_node(json_array_get(nodes, i));
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
