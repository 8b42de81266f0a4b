/* tests/cluster/test_drain.c - expert nodes come and go by an operator's will while clients
 * get answers: nobody notices. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

enum { EXPERTS = 3 * 256 /* of cluster_model() */ };
#define ASK \
    "{\"prompt\":[5,17,9,33,2],\"max_tokens\":12,\"temperature\":0,\"ignore_eos\":true," \
    "\"return_token_ids\":true}"

static char *ids_in(json_t *root)
{
    return json_dumps(cluster_at(root, "choices.0.token_ids"), JSON_COMPACT | JSON_ENCODE_ANY);
}

static char *ids_of(struct cluster *c)
{
    json_t *root = cluster_ask_json(c, "/v1/completions", ASK);
    char *text = ids_in(root);
    json_decref(root);
    CHECK(text != NULL);
    return text;
}

/* One question after another, in a process of its own, at least four; ends with 0 when the file "enough"
 * is there, with 1 at the first answer that is not `want`. */
static _Noreturn void ask_for_ever(const char *base, const char *want)
{
    struct http_client *client = http_client_new();
    char *url = mem_format("%s/v1/completions", base);
    struct http_exchange x = {.url = url, .body = ASK, .timeout_ns = 60 * CLOCK_S};
    int n = 0;
    while (n < 4 || access("enough", F_OK) != 0) {
        struct buf answer = {0};
        struct err e = {0};
        int status = 0, rc = http_exchange(client, &x, &status, &answer, &e);
        json_t *root = rc == 0 ? json_loadb(answer.data, answer.len, 0, NULL) : NULL;
        char *ids = ids_in(root);
        if (rc < 0 || status != 200 || !ids || strcmp(ids, want) != 0) {
            fprintf(stderr, "request %d: %s HTTP %d %s\n", n, e.text, status,
                    answer.data ? answer.data : "");
            _exit(1);
        }
        free(ids);
        json_decref(root);
        buf_fini(&answer);
        n++;
    }
    _exit(0);
}

static pid_t start_asking(struct cluster *c, const char *want)
{
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        ask_for_ever(c->url, want);
    return pid;
}

static void stop_asking(pid_t pid)
{
    int wait_status;
    FILE *f = fopen("enough", "w");
    CHECK(f && fclose(f) == 0);
    CHECK(waitpid(pid, &wait_status, 0) == pid);
    CHECK_INT(wait_status, 0);
    CHECK_INT(unlink("enough"), 0);
}

static struct cluster_process *process_of(struct cluster *c, const char *name)
{
    for (int i = 0; i < c->n_processes; i++)
        if (strcmp(c->processes[i].name, name) == 0)
            return &c->processes[i];
    test_fail(__FILE__, __LINE__, "no process %s", name);
}

static void expect_end(struct cluster *c, const char *name, int exit_code)
{
    struct cluster_process *p = process_of(c, name);
    int wait_status;
    CHECK(waitpid(p->pid, &wait_status, 0) == p->pid);
    p->pid = 0;
    CHECK(WIFEXITED(wait_status));
    CHECK_INT(WEXITSTATUS(wait_status), exit_code);
}

TEST_WITHIN(a_node_that_gets_sigterm_hands_over_before_it_goes, 90)
{
    struct cluster c;
    cluster_start(&c, 3, 0, NULL);
    char *want = ids_of(&c);
    pid_t asking = start_asking(&c, want);
    CHECK(kill(process_of(&c, "expert-1")->pid, SIGTERM) == 0);
    expect_end(&c, "expert-1", 0);
    /* Never uncovered, and everything is at the other two. */
    CHECK_INT(cluster_ask(&c, "/ready", NULL), 200);
    cluster_wait_value(&c, "placement.copies", EXPERTS, 20);
    stop_asking(asking);
    struct buf log = cluster_log("coordinator");
    CHECK(strstr(log.data, "placement.uncovered") == NULL);
    CHECK_HAS(log.data, "ev=node.draining name=expert-1");
    buf_fini(&log);
    free(want);
    cluster_stop(&c);
}

TEST_WITHIN(polymath_drain_lets_a_node_go, 90)
{
    struct cluster c;
    static const char *const settings[] = {"placement.replicas=2", NULL};
    cluster_start(&c, 3, 0, settings);
    cluster_wait_value(&c, "placement.lowest", 2, 30);
    char *want = ids_of(&c);
    pid_t asking = start_asking(&c, want);
    const char *const arguments[] = {"drain", "expert-2", "--url", c.url, NULL};
    struct buf output = {0};
    CHECK_INT(cluster_run("polymath", arguments, &output), 0);
    CHECK_HAS(output.data, "expert-2 has left");
    expect_end(&c, "expert-2", 0);
    json_t *root = cluster_ask_json(&c, "/cluster", NULL);
    CHECK_INT(json_integer_value(cluster_at(root, "placement.lowest")), 2);
    json_decref(root);
    stop_asking(asking);
    /* What cannot be drained is named. */
    buf_reset(&output);
    CHECK_INT(cluster_run("polymath", arguments, &output), 1);
    CHECK_HAS(output.data, "no node \"expert-2\"");
    CHECK_INT(cluster_ask(&c, "/admin/drain?node=coordinator-attention", "{}"), 409);
    CHECK_INT(cluster_ask(&c, "/admin/drain", "{}"), 400);
    CHECK_INT(cluster_ask(&c, "/admin/drain?node=%ff%fe", "{}"), 404);
    CHECK_INT(cluster_ask(&c, "/admin/drain?node=expert-0", NULL), 405);
    buf_fini(&output);
    free(want);
    cluster_stop(&c);
}

TEST_WITHIN(polymath_drain_moves_the_streams_of_an_attention_node, 90)
{
    struct cluster c;
    cluster_start(&c, 2, 2, NULL);
    char *want = ids_of(&c);
    pid_t asking = start_asking(&c, want);
    const char *const arguments[] = {"drain", "attn-0", "--url", c.url, NULL};
    struct buf output = {0};
    CHECK_INT(cluster_run("polymath", arguments, &output), 0);
    CHECK_HAS(output.data, "attn-0 has left");
    expect_end(&c, "attn-0", 0);
    stop_asking(asking);
    /* The last one stays. */
    CHECK_INT(cluster_ask(&c, "/admin/drain?node=attn-1", "{}"), 409);
    char *after = ids_of(&c);
    CHECK_STR(after, want);
    free(after);
    free(want);
    buf_fini(&output);
    cluster_stop(&c);
}

/* The hook tells us which node has left; we are the supervisor. */
TEST_WITHIN(polymath_roll_restarts_every_node_under_load, 240)
{
    struct cluster c;
    static const char *const settings[] = {"placement.replicas=2", NULL};
    static const char *const nodes[] = {"expert-0", "expert-1", "expert-2", "attn-0", "attn-1"};
    enum { NODES = sizeof nodes / sizeof nodes[0] };
    cluster_start(&c, 3, 2, settings);
    cluster_wait_value(&c, "placement.lowest", 2, 30);
    char *want = ids_of(&c);
    pid_t asking = start_asking(&c, want);
    fflush(NULL);
    pid_t rolling = fork();
    if (rolling == 0) {
        const char *const arguments[] = {"roll", "--url", c.url, "--hook", "touch left-$1", NULL};
        struct buf output = {0};
        int code = cluster_run("polymath", arguments, &output);
        if (code != 0)
            fprintf(stderr, "%s", output.data ? output.data : "");
        _exit(code);
    }
    int n_left = 0, wait_status;
    while (waitpid(rolling, &wait_status, WNOHANG) == 0) {
        for (int i = 0; i < NODES; i++) {
            char file[48];
            snprintf(file, sizeof file, "left-%s", nodes[i]);
            if (access(file, F_OK) != 0)
                continue;
            CHECK_INT(unlink(file), 0);
            expect_end(&c, nodes[i], 3);
            cluster_start_node(&c, i < 3 ? "expert_node" : "attn_node", nodes[i]);
            n_left++;
        }
        clock_sleep_until(clock_now_ns() + 20 * CLOCK_MS);
    }
    CHECK_INT(wait_status, 0);
    CHECK_INT(n_left, NODES);
    stop_asking(asking);
    json_t *root = cluster_ask_json(&c, "/cluster", NULL);
    CHECK_INT(json_integer_value(cluster_at(root, "placement.lowest")), 2);
    json_decref(root);
    char *after = ids_of(&c);
    CHECK_STR(after, want);
    free(after);
    free(want);
    cluster_stop(&c);
}
