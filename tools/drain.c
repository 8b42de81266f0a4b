/* tools/drain.c - `polymath drain`: a node hands over what it holds, and ends. */
#include "tools/drain.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tools/cluster_view.h"

static void usage(FILE *out)
{
    fputs("usage: polymath drain NAME [--url URL] [--key FILE] [--no-wait] [--timeout SECONDS]\n\n"
          "Lets a node go without an error: an expert node's experts are loaded elsewhere first,\n"
          "an attention node's sequences are computed at another one, too, which takes over with "
          "the\n"
          "same tokens and no pause.  Then it leaves and ends with exit code 0.\n\n"
          "  --url URL    the coordinator (default http://127.0.0.1:8080)\n"
          "  --key FILE   holds an admin's API key, mode 0600\n"
          "  --no-wait    only tell it\n"
          "  --timeout S  how long to wait until it has left (default 300)\n"
          "\nExit code: 0 it has left, 1 it has not or is not there, 2 misused.\n",
          out);
}

/* What a node hands over before it goes, and under which key /cluster has how many. */
struct thing {
    const char *role, *name, *key;
};

static const struct thing *held_by(const json_t *node)
{
    static const struct thing things[] = {{"expert", "experts", "experts_wanted"},
                                          {"context", "lent KV pages", "kv_pages_lent"},
                                          {"attention", "sequences", "sequences"}};
    const char *role = cluster_view_text(node, "role");
    const struct thing *t = things;
    while (strcmp(t->role, role) != 0 && strcmp(t->role, "attention") != 0)
        t++;
    return t;
}

/* Until the node is gone; says how far it is. */
static int wait_until_gone(struct cluster_view *v, const char *name, int64_t deadline_ns,
                           struct err *e)
{
    long long said = -1;
    for (;;) {
        int rc = cluster_view_read(v, e);
        if (rc < 0)
            return rc;
        const json_t *n = cluster_view_node(v, name);
        if (!n)
            return 0;
        const struct thing *t = held_by(n);
        const char *what = t->name;
        long long left = cluster_view_number(n, t->key);
        if (left != said)
            printf("%s: %lld %s are still there\n", name, left, what);
        fflush(stdout);
        said = left;
        if (clock_now_ns() >= deadline_ns)
            return err_set(e, E_DEADLINE, "%s has not left in time; it still holds %lld %s", name,
                           left, what);
        clock_sleep_until(clock_now_ns() + CLOCK_S / 5);
    }
}

static int drain(const char *url, const char *key, const char *name, int64_t timeout_ns,
                 struct err *e)
{
    struct cluster_view v;
    int rc = cluster_view_open(&v, url, key, e);
    if (rc == 0)
        rc = cluster_view_drain(&v, name, CLUSTER_VIEW_STAY_AWAY, e);
    if (rc == 0 && timeout_ns > 0)
        rc = wait_until_gone(&v, name, clock_now_ns() + timeout_ns, e);
    if (rc == 0)
        printf("%s %s\n", name, timeout_ns > 0 ? "has left" : "is draining");
    cluster_view_close(&v);
    return rc;
}

int drain_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"url", required_argument, NULL, 'u'}, {"key", required_argument, NULL, 'k'},
        {"no-wait", no_argument, NULL, 'n'},   {"timeout", required_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},      {0}};
    const char *url = "http://127.0.0.1:8080", *key = NULL;
    long seconds = 300;
    bool waits = true;
    char *end = NULL;
    optind = 1;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (o) {
        case 'u':
            url = optarg;
            break;
        case 'k':
            key = optarg;
            break;
        case 'n':
            waits = false;
            break;
        case 't':
            seconds = strtol(optarg, &end, 10);
            if (!optarg[0] || *end || seconds < 1 || seconds > 86400) {
                fprintf(stderr, "polymath drain: --timeout takes 1 to 86400 seconds\n");
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
    if (optind + 1 != argc) {
        fprintf(stderr, "polymath drain: name one node; polymath status lists them\n");
        return 2;
    }
    struct err e = {0};
    int rc = drain(url, key, argv[optind], waits ? seconds * CLOCK_S : 0, &e);
    if (rc < 0)
        fprintf(stderr, "polymath drain: %s\n", e.text);
    return rc < 0 ? 1 : 0;
}
