/* tests/cluster/test_context.c - nodes that lend memory, in a cluster of real processes: contexts that are too
 * long for one side have the bits of a large one, also when a node that holds a part of them dies. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

/* Of the node of that name in /cluster, numbers too; "" if it is not there. */
static char *text_of(struct cluster *c, const char *name, const char *key)
{
    json_t *root = cluster_ask_json(c, "/cluster", NULL), *node;
    size_t i;
    char *text = mem_string("");
    json_array_foreach(cluster_at(root, "nodes"), i, node)
    {
        json_t *value = json_object_get(node, key);
        if (strcmp(json_string_value(json_object_get(node, "name")), name) != 0 || !value)
            continue;
        mem_free(text);
        text = json_is_string(value) ? mem_string(json_string_value(value))
                                     : mem_format("%lld", (long long)json_integer_value(value));
    }
    json_decref(root);
    return text;
}

static void wait_for_text(struct cluster *c, const char *name, const char *key, const char *want)
{
    for (int i = 0;; i++) {
        char *text = text_of(c, name, key);
        bool is_there = strcmp(text, want) == 0;
        if (!is_there && i > 2000)
            test_fail(__FILE__, __LINE__, "%s: %s stays \"%s\"", name, key, text);
        mem_free(text);
        if (is_there)
            return;
        clock_sleep_until(clock_now_ns() + 10 * CLOCK_MS);
    }
}

static const char *const borrows[] = {"attention.borrows=true", NULL};

TEST(a_node_that_lends_joins_drains_and_comes_back)
{
    struct cluster c;
    cluster_start(&c, 1, 0, borrows);
    cluster_start_lender(&c, "lender", "2MiB");
    wait_for_text(&c, "lender", "lent_to", "coordinator-attention");
    wait_for_text(&c, "lender", "role", "context");
    wait_for_text(&c, "lender", "state", "ready");
    CHECK(cluster_metric(&c, "polymath_nodes_context") == 1);
    /* It takes no experts, and is no side. */
    cluster_wait_value(&c, "attention_sides", 1, 10);
    CHECK_INT(cluster_ask(&c, "/v1/completions", "{\"prompt\":[5,6,7],\"max_tokens\":3}"), 200);
    cluster_kill(&c, "lender", SIGTERM);
    wait_for_text(&c, "lender", "state", "gone");
    struct buf log = cluster_log("lender");
    CHECK_HAS(log.data, "ev=node.drained why=\"nobody has its memory any more\"");
    buf_fini(&log);
    cluster_start_lender(&c, "lender", "2MiB");
    wait_for_text(&c, "lender", "lent_to", "coordinator-attention");
    cluster_kill(&c, "lender", SIGKILL);
    wait_for_text(&c, "lender", "state", "gone");
    CHECK_INT(cluster_ask(&c, "/v1/completions", "{\"prompt\":[5,6,7],\"max_tokens\":3}"), 200);
    cluster_stop(&c);
}

TEST(a_node_that_lends_for_another_cache_is_refused_by_name)
{
    static const char *const int8[] = {"weights.format=kv=int8", NULL};
    struct cluster c;
    cluster_start(&c, 1, 0, borrows);
    cluster_node_settings(int8);
    cluster_start_lender(&c, "lender", "2MiB");
    int wait_status;
    struct cluster_process *p = &c.processes[c.n_processes - 1];
    CHECK(waitpid(p->pid, &wait_status, 0) == p->pid);
    p->pid = 0;
    CHECK(WIFEXITED(wait_status));
    CHECK_INT(WEXITSTATUS(wait_status), 1);
    struct buf log = cluster_log("lender");
    CHECK_HAS(log.data, "weights.format: lender uses native,kv=int8");
    buf_fini(&log);
    cluster_stop(&c);
}

/* ---- contexts ----------------------------------------------------------------------- */

/* 12 pages of 64 tokens (10 of M3's), of which 8 count where contexts go from place to place. */
#define ROOM "600KiB"
enum { LONG_PROMPT = 1300, MIDDLE_PROMPT = 900, STREAM_TOKENS = 40, ACT_AT = 10 };
#define SMALL "attention.borrows=true", "attention.kv_bytes=" ROOM
static const char *const small[] = {SMALL, NULL};

static char *body_of(int n_prompt, int max_tokens, const char *more)
{
    struct buf body = {0};
    buf_puts(&body, "{\"prompt\":[7");
    for (int i = 1; i < n_prompt; i++)
        buf_printf(&body, ",%d", (i * 37 + i / 5) % 400);
    buf_printf(&body,
               "],\"max_tokens\":%d,\"temperature\":0,\"ignore_eos\":true,"
               "\"return_token_ids\":true%s}",
               max_tokens, more);
    char *text = mem_string(body.data);
    buf_fini(&body);
    return text;
}

/* Token ids and the hashes of their logits. */
static char *answer_of(struct cluster *c, int n_prompt)
{
    char *body = body_of(n_prompt, 6, ",\"return_logits_hash\":true");
    json_t *root = cluster_ask_json(c, "/v1/completions", body);
    mem_free(body);
    json_t *tokens = cluster_at(root, "choices.0.token_ids");
    json_t *hashes = cluster_at(root, "choices.0.logits_hashes");
    CHECK_INT(json_array_size(tokens), 6);
    CHECK_INT(json_array_size(hashes), 6);
    char *a = json_dumps(tokens, 0), *b = json_dumps(hashes, 0), *text = mem_format("%s;%s", a, b);
    free(a);
    free(b);
    json_decref(root);
    return text;
}

static void check_refused(struct cluster *c, int n_prompt)
{
    char *body = body_of(n_prompt, 4, "");
    CHECK_INT(cluster_ask(c, "/v1/completions", body), 400);
    CHECK_HAS(c->answer.data, "the KV cache of this cluster holds");
    mem_free(body);
}

static void check_split(const char *preset, const char *const *settings)
{
    struct cluster c;
    cluster_use_preset(preset);
    cluster_start(&c, 1, 0, NULL);
    char *want = answer_of(&c, LONG_PROMPT);
    cluster_stop(&c);
    CHECK(system("rm -f *.log *.sock") == 0);
    cluster_start(&c, 1, 0, settings);
    check_refused(&c, LONG_PROMPT);
    cluster_start_lender(&c, "lender-0", ROOM);
    cluster_start_lender(&c, "lender-1", ROOM);
    wait_for_text(&c, "coordinator-attention", "kv_pages_total", "24");
    char *got = answer_of(&c, LONG_PROMPT);
    CHECK_STR(got, want);
    mem_free(got);
    got = answer_of(&c, LONG_PROMPT); /* from what the cache kept, wherever that lies */
    CHECK_STR(got, want);
    mem_free(got);
    mem_free(want);
    cluster_stop(&c);
}

TEST_WITHIN(a_context_of_m3_over_three_hosts_has_the_bits_of_one, 120)
{
    check_split("m3-tiny", small);
}

TEST_WITHIN(a_context_over_three_hosts_has_the_bits_of_one, 120)
{
    static const char *const in_lanes[] = {SMALL, "attention.max_rows=77", "attention.lanes=2",
                                           NULL};
    check_split("m2-tiny", in_lanes);
}

/* One stream; at token ACT_AT the node that lends gets the signal, and comes back. */
struct stream {
    struct cluster *c;
    int signal;
    int n;
    int tokens[STREAM_TOKENS];
    char trouble[256];
};

static bool on_line(void *ud, struct str line)
{
    struct stream *s = ud;
    if (!str_has_prefix(line, STR("data: {")))
        return true;
    json_t *event = json_loadb(line.ptr + 6, line.len - 6, JSON_ALLOW_NUL, NULL), *id;
    if (!event || json_object_get(event, "error"))
        snprintf(s->trouble, sizeof s->trouble, "%.*s", (int)(line.len - 6), line.ptr + 6);
    size_t i;
    json_array_foreach(cluster_at(event, "choices.0.token_ids"), i, id)
    {
        CHECK(s->n < STREAM_TOKENS);
        s->tokens[s->n++] = (int)json_integer_value(id);
        if (s->n == ACT_AT && s->signal) {
            cluster_kill(s->c, "lender", s->signal);
            cluster_start_lender(s->c, "lender", ROOM);
        }
    }
    json_decref(event);
    return true;
}

static void run_stream(struct cluster *c, struct stream *s)
{
    char *url = mem_format("%s/v1/completions", c->url);
    char *body = body_of(MIDDLE_PROMPT, STREAM_TOKENS, ",\"stream\":true");
    struct http_client *client = http_client_new();
    struct http_exchange x = {
        .url = url, .body = body, .timeout_ns = 60 * CLOCK_S, .on_line = on_line, .ud = s};
    struct buf answer = {0};
    int status = 0;
    struct err e = {0};
    s->c = c;
    if (http_exchange(client, &x, &status, &answer, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_INT(status, 200);
    CHECK_STR(s->trouble, "");
    CHECK_INT(s->n, STREAM_TOKENS);
    http_client_free(&client);
    buf_fini(&answer);
    mem_free(body);
    mem_free(url);
}

TEST_WITHIN(a_node_that_lends_drained_or_killed_under_a_stream_costs_no_token, 120)
{
    struct cluster c;
    cluster_start(&c, 1, 0, small);
    cluster_start_lender(&c, "lender", ROOM);
    wait_for_text(&c, "coordinator-attention", "kv_pages_total", "16");
    static struct stream calm, drained = {.signal = SIGTERM}, killed = {.signal = SIGKILL};
    run_stream(&c, &calm);
    run_stream(&c, &drained);
    CHECK_BYTES(drained.tokens, calm.tokens, sizeof calm.tokens);
    run_stream(&c, &killed);
    CHECK_BYTES(killed.tokens, calm.tokens, sizeof calm.tokens);
    /* For good: what does not fit any more is refused by name. */
    cluster_kill(&c, "lender", SIGKILL);
    wait_for_text(&c, "coordinator-attention", "kv_pages_total", "12");
    check_refused(&c, MIDDLE_PROMPT);
    char *body = body_of(100, 4, "");
    CHECK_INT(cluster_ask(&c, "/v1/completions", body), 200);
    mem_free(body);
    cluster_stop(&c);
}
