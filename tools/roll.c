/* tools/roll.c - `polymath roll`: every node is started again, one after another, under
 * load: drained, restarted by whoever supervises it (or by a hook), and only when every copy
 * is live again comes the next. */
#include "tools/roll.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tools/cluster_view.h"

struct roll {
    const char *url, *key, *hook;
    int64_t timeout_ns; /* of each wait */
    struct cluster_view view;
};

static void usage(FILE *out)
{
    fputs("usage: polymath roll [--url URL] [--key FILE] [--hook COMMAND] [--timeout SECONDS] "
          "[NAME]...\n\n"
          "Restarts nodes one after another while the cluster works: each hands over what it\n"
          "holds, ends with exit code 3, is started again and loads; only when every copy is\n"
          "live again comes the next.  An attention node's streams are taken over by others, so a\n"
          "single one is left alone.  `polymath up` and systemd units with Restart=always start\n"
          "a node again by themselves.\n\n"
          "  NAME         only these nodes (default: every node)\n"
          "  --url URL    the coordinator (default http://127.0.0.1:8080)\n"
          "  --key FILE   holds an admin's API key, mode 0600\n"
          "  --hook CMD   run by the shell when a node has left, its name as $1, to start it\n"
          "               again (and before that perhaps to upgrade it)\n"
          "  --timeout S  for each wait (default 600)\n"
          "\nExit code: 0 all are back, 1 one is not, 2 misused.\n",
          out);
}

/* Waits until is(...) is true of the cluster. */
static int wait_until(struct roll *r, bool (*is)(struct roll *r, const char *name, long long what),
                      const char *name, long long what, struct err *e)
{
    int64_t deadline_ns = clock_now_ns() + r->timeout_ns;
    for (;;) {
        int rc = cluster_view_read(&r->view, e);
        if (rc == 0 && is(r, name, what))
            return 0;
        if (rc < 0 && rc != E_UNAVAILABLE && rc != E_DEADLINE)
            return rc;
        if (clock_now_ns() >= deadline_ns)
            return rc < 0 ? rc : E_DEADLINE;
        clock_sleep_until(clock_now_ns() + CLOCK_S / 10);
    }
}

static bool is_settled(struct roll *r, const char *name, long long what)
{
    (void)name, (void)what;
    return cluster_view_is_settled(&r->view);
}

static bool has_left(struct roll *r, const char *name, long long incarnation)
{
    const json_t *n = cluster_view_node(&r->view, name);
    return !n || cluster_view_number(n, "incarnation") != incarnation;
}

static bool is_side(const json_t *node)
{
    return strcmp(cluster_view_text(node, "role"), "attention") == 0;
}

static bool is_back(struct roll *r, const char *name, long long incarnation)
{
    const json_t *n = cluster_view_node(&r->view, name);
    return n && cluster_view_number(n, "incarnation") != incarnation &&
           strcmp(cluster_view_text(n, "state"), "ready") == 0 &&
           (!is_side(n) || json_is_true(json_object_get(n, "up"))) &&
           cluster_view_is_settled(&r->view);
}

static int run_hook(const struct roll *r, const char *name, struct err *e)
{
    int wait_status = 0;
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0)
        return err_set_errno(e, errno, "run the hook");
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", r->hook, "polymath-roll", name, (char *)NULL);
        _exit(127);
    }
    while (waitpid(pid, &wait_status, 0) < 0 && errno == EINTR)
        ;
    if (!WIFEXITED(wait_status) || WEXITSTATUS(wait_status) != 0)
        return err_set(e, E_INTERNAL, "the hook failed for %s: status %d", name, wait_status);
    return 0;
}

static int restart_one(struct roll *r, const char *name, struct err *e)
{
    int64_t begun_ns = clock_now_ns();
    int rc = wait_until(r, is_settled, name, 0, e);
    if (rc < 0)
        return err_set(e, rc, "the cluster does not come to rest; polymath status shows why");
    const json_t *n = cluster_view_node(&r->view, name);
    if (!n)
        return err_set(e, E_NOT_FOUND, "there is no node \"%s\"", name);
    long long incarnation = cluster_view_number(n, "incarnation");
    rc = cluster_view_drain(&r->view, name, CLUSTER_VIEW_RESTART, e);
    if (rc < 0)
        return rc;
    rc = wait_until(r, has_left, name, incarnation, e);
    if (rc < 0)
        return err_set(e, rc, "%s does not leave", name);
    int64_t left_ns = clock_now_ns();
    if (r->hook && (rc = run_hook(r, name, e)) < 0)
        return rc;
    rc = wait_until(r, is_back, name, incarnation, e);
    if (rc < 0)
        return err_set(e, rc, "%s left and did not come back", name);
    const json_t *p = json_object_get(r->view.root, "placement");
    printf("%-22s drained in %.1f s, back with every copy after %.1f s (lowest %lld)\n", name,
           (double)(left_ns - begun_ns) / CLOCK_S, (double)(clock_now_ns() - left_ns) / CLOCK_S,
           cluster_view_number(p, "lowest"));
    fflush(stdout);
    return 0;
}

static bool is_gone(const json_t *node)
{
    return strcmp(cluster_view_text(node, "state"), "gone") == 0;
}

/* Attention sides at work, that in the coordinator included. */
static int count_sides(const json_t *nodes)
{
    int n = 0;
    for (size_t i = 0; i < json_array_size(nodes); i++) {
        const json_t *o = json_array_get(nodes, i);
        n += is_side(o) && !is_gone(o);
    }
    return n;
}

/* All nodes of the moment that can be restarted, attention sides last; names are copied. */
static int list_all(struct roll *r, char **names, int most, struct err *e)
{
    int rc = cluster_view_read(&r->view, e), n = 0;
    if (rc < 0)
        return rc;
    const json_t *nodes = json_object_get(r->view.root, "nodes");
    bool has_spare_side = count_sides(nodes) > 1;
    for (int sides = 0; sides <= 1; sides++)
        for (size_t i = 0; i < json_array_size(nodes) && n < most; i++) {
            const json_t *o = json_array_get(nodes, i);
            bool is_embedded = strncmp(cluster_view_text(o, "endpoint"), "inproc:", 7) == 0;
            if (is_side(o) != (sides == 1) || is_gone(o) || is_embedded)
                continue;
            if (!is_side(o) || has_spare_side)
                names[n++] = mem_string(cluster_view_text(o, "name"));
            else
                printf("%-22s is left alone: there is no other attention side\n",
                       cluster_view_text(o, "name"));
        }
    return n;
}

static int roll(struct roll *r, char **names, int n, struct err *e)
{
    enum { MOST = 4096 };
    char **all = mem_array(MOST, sizeof *all);
    int rc = cluster_view_open(&r->view, r->url, r->key, e), n_all = 0;
    if (rc == 0 && n == 0) {
        rc = n_all = list_all(r, all, MOST, e);
        names = all;
        n = n_all;
    }
    if (rc >= 0 && n == 0)
        rc = err_set(e, E_NOT_FOUND, "the cluster has no node that can be restarted");
    for (int i = 0; i < n && rc >= 0; i++)
        rc = restart_one(r, names[i], e);
    for (int i = 0; i < n_all; i++)
        mem_free(all[i]);
    mem_free(all);
    cluster_view_close(&r->view);
    return rc;
}

int roll_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"url", required_argument, NULL, 'u'},  {"key", required_argument, NULL, 'k'},
        {"hook", required_argument, NULL, 'c'}, {"timeout", required_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},       {0}};
    struct roll r = {.url = "http://127.0.0.1:8080", .timeout_ns = 600 * CLOCK_S};
    char *end = NULL;
    optind = 1;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (o) {
        case 'u':
            r.url = optarg;
            break;
        case 'k':
            r.key = optarg;
            break;
        case 'c':
            r.hook = optarg;
            break;
        case 't':
            r.timeout_ns = strtol(optarg, &end, 10) * CLOCK_S;
            if (!optarg[0] || *end || r.timeout_ns < CLOCK_S || r.timeout_ns > 86400 * CLOCK_S) {
                fprintf(stderr, "polymath roll: --timeout takes 1 to 86400 seconds\n");
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
    struct err e = {0};
    int rc = roll(&r, argv + optind, argc - optind, &e);
    if (rc < 0)
        fprintf(stderr, "polymath roll: %s\n", e.text);
    return rc < 0 ? 1 : 0;
}
