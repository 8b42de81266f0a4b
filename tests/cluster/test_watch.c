/* tests/cluster/test_watch.c - what operators see of a running cluster. */
#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/thread.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

static const char GREEDY[] = "{\"prompt\":[5,17,99,200,31,7],\"max_tokens\":24,\"temperature\":0,"
                             "\"ignore_eos\":true}";

/* The value of a sample by its whole name, labels included; -1 if there is none. */
static double metric(struct cluster *c, const char *name)
{
    char *key = mem_format("\n%s ", name);
    const char *at = strstr(c->answer.data, key);
    double v = at ? strtod(at + strlen(key), NULL) : -1;
    mem_free(key);
    return v;
}

/* ---- the form of /metrics ------------------------------------------------------------------ */

struct family {
    char name[96], type[16];
    double last_bucket;
};

static bool is_of(const char *sample, const struct family *f)
{
    size_t n = strlen(f->name);
    if (strncmp(sample, f->name, n) != 0)
        return false;
    const char *suffix = sample + n;
    if (strcmp(f->type, "histogram") != 0)
        return *suffix == '\0';
    return strcmp(suffix, "_bucket") == 0 || strcmp(suffix, "_sum") == 0 ||
           strcmp(suffix, "_count") == 0;
}

static void check_sample(const char *line, struct family *f)
{
    char name[128], *end;
    size_t n = strcspn(line, "{ ");
    CHECK(n > 0 && n < sizeof name);
    snprintf(name, sizeof name, "%.*s", (int)n, line);
    for (const char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c) && *c != '_')
            test_fail(__FILE__, __LINE__, "name of %s", line);
    if (!is_of(name, f))
        test_fail(__FILE__, __LINE__, "%s is not of the family %s", line, f->name);
    const char *value = strrchr(line, ' ');
    CHECK(value);
    double v = strtod(value + 1, &end);
    if (end == value + 1 || *end)
        test_fail(__FILE__, __LINE__, "no number: %s", line);
    const char *tail = name + strlen(f->name);
    bool is_bucket = strcmp(tail, "_bucket") == 0;
    if (is_bucket && v < f->last_bucket)
        test_fail(__FILE__, __LINE__, "a bucket below the one before: %s", line);
    if (strcmp(tail, "_count") == 0 && v != f->last_bucket)
        test_fail(__FILE__, __LINE__, "not the last bucket's: %s", line);
    bool is_last = strcmp(tail, "_count") == 0;
    if (is_bucket || is_last) /* another label's buckets may follow */
        f->last_bucket = is_last ? 0 : v;
}

/* Each family once, with help and type in front; names end as their type says; no sample twice. */
static void check_exposition(const char *text)
{
    struct family f = {0};
    char *copy = mem_string(text), *save = NULL, *seen[4096];
    int n_seen = 0, n_families = 0;
    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (strncmp(line, "# HELP ", 7) == 0) {
            f = (struct family){0};
            CHECK_INT(sscanf(line, "# HELP %95s", f.name), 1);
            char *key = mem_format("# HELP %s ", f.name);
            CHECK(!strstr(strstr(text, key) + 1, key));
            mem_free(key);
            n_families++;
        } else if (strncmp(line, "# TYPE ", 7) == 0) {
            char name[96];
            CHECK_INT(sscanf(line, "# TYPE %95s %15s", name, f.type), 2);
            CHECK_STR(name, f.name);
            bool is_total = strlen(name) > 6 && strcmp(name + strlen(name) - 6, "_total") == 0;
            if (is_total != (strcmp(f.type, "counter") == 0))
                test_fail(__FILE__, __LINE__, "%s is a %s", name, f.type);
        } else {
            check_sample(line, &f);
            *strrchr(line, ' ') = '\0';
            for (int i = 0; i < n_seen; i++)
                if (strcmp(seen[i], line) == 0)
                    test_fail(__FILE__, __LINE__, "twice: %s", line);
            CHECK(n_seen < 4096);
            seen[n_seen++] = line;
        }
    }
    CHECK(n_families > 60);
    mem_free(copy);
}

static void check_with_promtool(const struct cluster *c)
{
    if (system("command -v promtool >/dev/null 2>&1") != 0) {
        test_say("promtool is not installed: its check is left out");
        return;
    }
    FILE *p = popen("promtool check metrics >promtool.out 2>&1", "w");
    CHECK(p);
    CHECK(fwrite(c->answer.data, 1, c->answer.len, p) == c->answer.len);
    int status = pclose(p);
    struct buf said = {0};
    CHECK_INT(buf_read_file(&said, "promtool.out", 1 << 16, NULL), 0);
    if (status != 0)
        test_fail(__FILE__, __LINE__, "promtool: %.*s", (int)said.len, said.data);
    buf_fini(&said);
}

/* Every name in the dashboard that is shipped is one that the cluster tells. */
static void check_dashboard(const struct cluster *c)
{
    struct buf text = {0};
    char *path = mem_format("%s/deploy/grafana.json", test_source_dir()), name[96];
    int n = 0;
    CHECK_INT(buf_read_file(&text, path, 1 << 20, NULL), 0);
    json_t *root = json_loadb(text.data, text.len, 0, NULL);
    CHECK(root);
    buf_putc(&text, '\0');
    for (const char *at = text.data; (at = strstr(at, "polymath_")); at += strlen(name), n++) {
        snprintf(name, sizeof name, "%.*s", (int)strspn(at, "abcdefghijklmnopqrstuvwxyz_"), at);
        char *key = mem_format("\n%s", name);
        if (!strstr(c->answer.data, key))
            test_fail(__FILE__, __LINE__, "the dashboard asks for %s", name);
        mem_free(key);
    }
    CHECK(n > 20);
    json_decref(root);
    buf_fini(&text);
    mem_free(path);
}

static double sum_over_nodes(struct cluster *c, const char *name)
{
    double sum = 0;
    for (int i = 0; i < 2; i++) {
        char *key = mem_format("%s{node=\"expert-%d\"}", name, i);
        double v = metric(c, key);
        CHECK(v > 0);
        sum += v;
        mem_free(key);
    }
    return sum;
}

TEST_WITHIN(metrics_tell_what_the_cluster_did, 120)
{
    struct cluster c;
    cluster_start(&c, 2, 0, NULL);
    for (int i = 0; i < 4; i++) {
        CHECK_INT(cluster_ask(&c, "/v1/completions", GREEDY), 200);
        clock_sleep_until(clock_now_ns() + 300 * CLOCK_MS); /* for a report of the next step */
    }
    CHECK_INT(cluster_ask(&c, "/v1/completions", "{\"prompt\":3}"), 400);
    CHECK_INT(cluster_ask(&c, "/metrics", NULL), 200);
    check_exposition(c.answer.data);
    check_with_promtool(&c);
    check_dashboard(&c);
    CHECK_INT(metric(&c, "polymath_requests_total{outcome=\"ok\"}"), 4);
    CHECK_INT(metric(&c, "polymath_requests_total{outcome=\"refused\"}"), 1);
    CHECK_INT(metric(&c, "polymath_generated_tokens_total"), 96);
    CHECK_INT(metric(&c, "polymath_prompt_tokens_total"), 24);
    CHECK_INT(metric(&c, "polymath_first_token_seconds_count"), 4);
    CHECK_INT(metric(&c, "polymath_queue_seconds_count"), 4);
    CHECK_INT(metric(&c, "polymath_inter_token_seconds_count"), 92);
    CHECK_INT(metric(&c, "polymath_step_rows_count"), metric(&c, "polymath_steps_total"));
    CHECK(metric(&c, "process_resident_memory_bytes") > 1 << 20);
    /* As the newest step left them. */
    double used = metric(&c, "polymath_kv_pages_used{node=\"coordinator-attention\"}");
    CHECK(used >= 0 && used < metric(&c, "polymath_kv_pages{node=\"coordinator-attention\"}"));
    /* All calls but those since the last report, a quarter of a second at most. */
    double calls = metric(&c, "polymath_expert_calls_total");
    double told = sum_over_nodes(&c, "polymath_node_calls_total");
    CHECK(calls > 0 && told <= calls && told > calls / 2);
    CHECK(sum_over_nodes(&c, "polymath_node_sent_bytes_total") > 0);
    CHECK(sum_over_nodes(&c, "polymath_node_received_bytes_total") > 0);
    double call_s = sum_over_nodes(&c, "polymath_node_call_seconds_total");
    CHECK(sum_over_nodes(&c, "polymath_node_compute_seconds_total") < call_s);
    CHECK(metric(&c, "polymath_layer_rounds_total{layer=\"0\"}") > 0);
    CHECK(metric(&c, "polymath_layer_experts_seconds_total{layer=\"1\"}") > 0);
    cluster_stop(&c);
}

/* ---- /debug/trace, and request ids ---------------------------------------------------------- */

struct asked {
    char url[96];
    struct buf answer;
    int status;
};

static void fetch_trace(struct thread *t, void *arg)
{
    struct asked *a = arg;
    thread_ready(t, 0, NULL);
    buf_reset(&a->answer);
    struct http_client *client = http_client_new();
    struct http_exchange x = {.url = a->url, .timeout_ns = 60 * CLOCK_S};
    CHECK_INT(http_exchange(client, &x, &a->status, &a->answer, NULL), 0);
    http_client_free(&client);
}

static int times_logged(const char *what)
{
    struct buf log = cluster_log("coordinator");
    int n = 0;
    for (const char *at = log.data; at && (at = strstr(at, what)); at++)
        n++;
    buf_fini(&log);
    return n;
}

/* A trace of one whole request.  Where the machine is slow it is over too early: then a longer one. */
static void trace_a_request(struct cluster *c, struct asked *a)
{
    for (int seconds = 2;; seconds = seconds < 30 ? 2 * seconds : 60) {
        struct thread *reader = NULL;
        int n_done = times_logged("ev=trace.done"), n_begun = times_logged("ev=trace.begun");
        snprintf(a->url, sizeof a->url, "%s/debug/trace?seconds=%d", c->url, seconds);
        CHECK_INT(thread_start("reader", fetch_trace, a, &reader, NULL), 0);
        while (times_logged("ev=trace.begun") == n_begun)
            clock_sleep_until(clock_now_ns() + 5 * CLOCK_MS);
        int status = cluster_ask(c, "/debug/trace?seconds=1", NULL);
        CHECK_INT(cluster_ask(c, "/v1/completions", GREEDY), 200);
        bool is_whole = times_logged("ev=trace.done") == n_done;
        thread_stop(&reader, NULL, NULL);
        CHECK_INT(a->status, 200);
        if (!is_whole)
            continue;
        CHECK_INT(status, 409);
        return;
    }
}

static long long number_of(json_t *event, const char *path)
{
    return (long long)json_integer_value(cluster_at(event, path));
}

/* The step that a span belongs to, by its number. */
static json_t *step_of(json_t *trace, long long step)
{
    for (size_t i = 0; i < json_array_size(trace); i++) {
        json_t *e = json_array_get(trace, i);
        if (strcmp(json_string_value(cluster_at(e, "name")), "step") == 0 &&
            number_of(e, "args.step") == step)
            return e;
    }
    return NULL;
}

/* Inside its step, and its parts inside it. */
static void check_span(json_t *trace, json_t *e)
{
    json_t *step = step_of(trace, number_of(e, "args.step"));
    CHECK(step);
    long long begin = number_of(e, "ts"), end = begin + number_of(e, "dur");
    long long from = number_of(step, "ts"), to = from + number_of(step, "dur");
    CHECK(begin >= from && end <= to + 2); /* each number is cut to whole microseconds */
    long long parts = number_of(e, "args.queue_us") + number_of(e, "args.compute_us") +
                      number_of(e, "args.wire_us");
    if (strncmp(json_string_value(cluster_at(e, "name")), "layer ", 6) == 0)
        CHECK_INT(parts, number_of(e, "dur"));
}

TEST_WITHIN(a_trace_tells_where_the_steps_went, 120)
{
    struct cluster c;
    struct asked a = {0};
    int n_steps = 0, n_attention = 0, n_rounds = 0, n_calls = 0, n_requests = 0;
    cluster_start(&c, 2, 0, NULL);
    CHECK_INT(cluster_ask(&c, "/debug/trace?seconds=61", NULL), 400);
    CHECK_INT(cluster_ask(&c, "/debug/trace?seconds=", NULL), 400);
    trace_a_request(&c, &a);
    json_t *trace = json_loadb(a.answer.data, a.answer.len, 0, NULL);
    CHECK(json_is_array(trace));
    for (size_t i = 0; i < json_array_size(trace); i++) {
        json_t *e = json_array_get(trace, i);
        const char *name = json_string_value(cluster_at(e, "name"));
        bool is_span = strncmp(name, "attention ", 10) == 0 || strncmp(name, "experts ", 8) == 0 ||
                       strncmp(name, "layer ", 6) == 0;
        n_steps += strcmp(name, "step") == 0;
        n_attention += strncmp(name, "attention ", 10) == 0;
        n_rounds += strncmp(name, "experts ", 8) == 0;
        n_calls += strncmp(name, "layer ", 6) == 0;
        n_requests += strcmp(name, "request") == 0;
        if (is_span)
            check_span(trace, e);
    }
    json_t *model = cluster_ask_json(&c, "/cluster", NULL);
    int n_layers = (int)number_of(model, "model.layers");
    json_decref(model);
    CHECK_INT(n_requests, 1);
    CHECK_INT(n_steps, 24);
    CHECK_INT(n_attention, n_steps * n_layers);
    CHECK_INT(n_rounds, n_steps * n_layers);
    CHECK(n_calls >= n_rounds);
    json_decref(trace);
    buf_fini(&a.answer);
    /* And off again: the next one begins with nothing. */
    json_t *empty = cluster_ask_json(&c, "/debug/trace?seconds=1", NULL);
    CHECK(json_array_size(empty) < 8);
    json_decref(empty);
    cluster_stop(&c);
}

/* ---- the pages and what they ask for --------------------------------------------------------- */

TEST_WITHIN(pages_and_their_data_are_served, 120)
{
    struct cluster c;
    cluster_start(&c, 2, 0, NULL);
    CHECK_INT(cluster_ask(&c, "/", NULL), 200);
    buf_putc(&c.answer, '\0');
    CHECK_HAS(c.answer.data, "<title>Polymath</title>");
    CHECK_INT(cluster_ask(&c, "/web/ops.js", NULL), 200);
    CHECK_INT(cluster_ask(&c, "/web/nothing.js", NULL), 404);
    CHECK_INT(cluster_ask(&c, "/web/../config.c", NULL), 404);
    json_t *heat = cluster_ask_json(&c, "/admin/heat", NULL);
    size_t n_experts = (size_t)number_of(heat, "experts");
    CHECK_INT(json_array_size(cluster_at(heat, "copies")), number_of(heat, "layers"));
    CHECK_INT(json_array_size(cluster_at(heat, "nodes")), 2);
    CHECK_INT(strlen(json_string_value(cluster_at(heat, "load.0"))), 2 * n_experts);
    const char *copies = json_string_value(cluster_at(heat, "copies.1"));
    const char *homes = json_string_value(cluster_at(heat, "homes.1"));
    CHECK_INT(strspn(copies, "1"), n_experts);
    CHECK_INT(strspn(homes, "01"), 2 * n_experts);
    json_decref(heat);
    json_t *events = cluster_ask_json(&c, "/admin/events", NULL);
    long long last = number_of(events, "last");
    CHECK_INT(json_array_size(cluster_at(events, "events")), last);
    CHECK(last >= 4);
    json_decref(events);
    cluster_kill(&c, "expert-1", SIGKILL);
    cluster_wait_not_ready(&c, 20);
    char path[64];
    snprintf(path, sizeof path, "/admin/events?after=%lld", last);
    events = cluster_ask_json(&c, path, NULL);
    CHECK_INT(number_of(events, "events.0.id"), last + 1);
    json_decref(events);
    CHECK_INT(cluster_ask(&c, path, NULL), 200);
    buf_putc(&c.answer, '\0');
    CHECK_HAS(c.answer.data, "node gone");
    CHECK_HAS(c.answer.data, "cluster not ready");
    CHECK_INT(cluster_ask(&c, "/admin/events?after=-1", NULL), 400);
    cluster_stop(&c);
}
