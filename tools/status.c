/* tools/status.c - `polymath status`: what the coordinator's /cluster says, for people. */
#include "tools/status.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "tools/http_client.h"

static void usage(FILE *out)
{
    fputs("usage: polymath status [--url URL] [--key FILE] [--json]\n\n"
          "Shows a running cluster: nodes and their states, placement, requests.\n\n"
          "  --url URL   the coordinator (default http://127.0.0.1:8080)\n"
          "  --key FILE  holds an admin's API key, mode 0600\n"
          "  --json      the coordinator's answer as it is\n"
          "\nExit code: 0 ready, 1 not ready or not reachable, 2 misused.\n",
          out);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "-";
}

static long long number_of(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

static void print_node(const json_t *node)
{
    char held[48] = "-", reads[24] = "-";
    if (number_of(node, "read_bytes_s") > 0)
        snprintf(reads, sizeof reads, "%.1f", (double)number_of(node, "read_bytes_s") / 1e9);
    if (strcmp(text_of(node, "role"), "expert") == 0)
        snprintf(held, sizeof held, "%lld/%lld", number_of(node, "experts_held"),
                 number_of(node, "experts_wanted"));
    else
        snprintf(held, sizeof held, "%lld KV pages", number_of(node, "kv_pages_free"));
    printf("  %-22s %-10s %-11s %7lld  %-15s %9.1f  %7s  %8lld  %s\n", text_of(node, "name"),
           text_of(node, "role"), text_of(node, "state"), number_of(node, "pid"), held,
           (double)number_of(node, "held_bytes") / (1 << 20), reads,
           number_of(node, "heartbeat_age_ms"), text_of(node, "endpoint"));
}

/* Copies, and what is under way. */
static void print_placement(const json_t *p)
{
    const json_t *replicas = json_object_get(p, "replicas");
    char wish[24] = "auto";
    if (json_is_integer(replicas))
        snprintf(wish, sizeof wish, "%lld", (long long)json_integer_value(replicas));
    printf("  copies: %lld live, at least %lld of each (wish %s, memory gives %lld); %s",
           number_of(p, "copies"), number_of(p, "lowest"), wish, number_of(p, "wanted_lowest"),
           json_is_true(json_object_get(p, "settled")) ? "nothing moves\n" : "");
    if (!json_is_true(json_object_get(p, "settled")))
        printf("%lld to load (%.1f MiB), %lld to give up\n", number_of(p, "to_load"),
               (double)number_of(p, "to_load_bytes") / (1 << 20), number_of(p, "retiring"));
}

/* Only where there are several coordinators. */
static void print_leadership(const json_t *o)
{
    if (!json_object_get(o, "etcd"))
        return;
    printf("  this coordinator: %s; leader: %s %s; etcd: %s\n", text_of(o, "role"),
           text_of(o, "leader"), text_of(o, "leader_url"), text_of(o, "etcd"));
}

static void print_cluster(const json_t *root)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *coverage = json_object_get(root, "coverage");
    const json_t *requests = json_object_get(root, "requests");
    const json_t *nodes = json_object_get(root, "nodes");
    bool ready = json_is_true(json_object_get(root, "ready"));

    printf("%s: %s%s\n", text_of(model, "name"),
           ready ? "ready" : "not ready: ", ready ? "" : text_of(root, "reason"));
    printf("  epoch %lld, experts %lld of %lld placed, weights %s, combine %s, fingerprint %s\n",
           number_of(root, "epoch"), number_of(coverage, "live"), number_of(coverage, "experts"),
           text_of(model, "format"), text_of(model, "combine"), text_of(model, "fingerprint"));
    print_leadership(json_object_get(root, "leadership"));
    print_placement(json_object_get(root, "placement"));
    printf("  requests: %lld running, %lld queued\n\n", number_of(requests, "running"),
           number_of(requests, "queued"));
    printf("  %-22s %-10s %-11s %7s  %-15s %9s  %7s  %8s  %s\n", "node", "role", "state", "pid",
           "experts/free KV", "MiB", "GB/s", "seen ms", "endpoint");
    for (size_t i = 0; i < json_array_size(nodes); i++)
        print_node(json_array_get(nodes, i));
}

int status_main(int argc, char **argv)
{
    static const struct option options[] = {{"url", required_argument, NULL, 'u'},
                                            {"key", required_argument, NULL, 'k'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    const char *base = "http://127.0.0.1:8080", *key = NULL;
    bool raw = false;
    optind = 1;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (o) {
        case 'u':
            base = optarg;
            break;
        case 'k':
            key = optarg;
            break;
        case 'j':
            raw = true;
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

    struct http_client *client = http_client_new();
    struct buf answer = {0};
    struct err e = {0};
    char *url = mem_format("%s/cluster", base);
    json_t *root = NULL;
    int http_status = 0, exit_code = 1;
    int rc = key ? http_client_use_key(client, key, &e) : 0;
    if (rc == 0)
        rc = http_exchange(client, &(struct http_exchange){.url = url}, &http_status, &answer, &e);
    if (rc == 0 && http_status != 200) {
        http_error_text(&answer, http_status, &e);
        rc = e.code;
    }
    if (rc == 0 && !(root = json_loadb(answer.data, answer.len, 0, NULL)))
        rc = err_set(&e, E_CORRUPT, "%s: the answer is not JSON", url);
    if (rc < 0) {
        fprintf(stderr, "polymath status: %s\n", e.text);
        goto out;
    }
    if (raw)
        printf("%s\n", answer.data);
    else
        print_cluster(root);
    exit_code = json_is_true(json_object_get(root, "ready")) ? 0 : 1;
out:
    json_decref(root);
    mem_free(url);
    buf_fini(&answer);
    http_client_free(&client);
    return exit_code;
}
