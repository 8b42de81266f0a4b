/* tests/cluster/test_loadtest.c - a busy cluster says no early and nothing else; clients that wait or hang up
 * cost little and leave nothing.  The short forms of what `polymath loadtest` measures at length. */
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"

/* `polymath loadtest --url URL ARGUMENTS`; its output is NUL-terminated. */
static int loadtest(const struct cluster *c, const char *const *arguments, struct buf *output)
{
    const char *all[32] = {"loadtest", "--url", c->url};
    int n = 3;
    for (; *arguments; arguments++)
        all[n++] = *arguments;
    buf_reset(output);
    int rc = cluster_run("polymath", all, output);
    buf_putc(output, '\0');
    return rc;
}

static json_t *read_json(const char *path)
{
    json_t *root = json_load_file(path, 0, NULL);
    CHECK(root);
    return root;
}

/* More than it can do for long enough: 429 for what is too much, answers for the rest. */
TEST_WITHIN(overload_is_answered_429_and_nothing_else, 240)
{
    static const char *const settings[] = {"attention.max_seqs=4", "request.queue_limit=4", NULL};
    static const char *const warm[] = {"--clients", "8",        "--requests", "40", "--prompt",
                                       "8-64",      "--output", "8-32",       NULL};
    static const char *const mixed[] = {
        "--clients", "24",         "--seconds", "4",         "--prompt", "8-64",
        "--output",  "8-32",       "--prefix",  "16",        "--groups", "3",
        "--json",    "mixed.json", "--svg",     "mixed.svg", NULL};
    struct cluster c;
    struct buf output = {0}, plot = {0};
    cluster_start(&c, 2, 0, settings);
    CHECK_INT(loadtest(&c, warm, &output), 0);
    double before = cluster_metric(&c, "process_resident_memory_bytes");
    if (loadtest(&c, mixed, &output) != 0)
        test_fail(__FILE__, __LINE__, "%s", output.data);
    test_say("%.*s", (int)strcspn(output.data, "\n"), output.data);
    json_t *r = read_json("mixed.json");
    long long ok = (long long)json_integer_value(json_object_get(r, "ok"));
    long long busy = (long long)json_integer_value(json_object_get(r, "busy"));
    CHECK(ok > 0);
    CHECK(busy > 0);
    CHECK_INT(json_integer_value(json_object_get(r, "failed")), 0);
    CHECK_INT(json_integer_value(json_object_get(r, "requests")), ok + busy);
    json_decref(r);
    CHECK_INT(buf_read_file(&plot, "mixed.svg", 1 << 20, NULL), 0);
    CHECK(str_find(buf_str(&plot), STR("</svg>")) < plot.len);
    double grown = cluster_metric(&c, "process_resident_memory_bytes") - before;
    test_say("the coordinator grew by %.1f MB", grown / 1e6);
    if (!test_is_slow_build()) /* sanitizers keep freed memory */
        CHECK(grown < 32e6);
    CHECK_INT(cluster_metric(&c, "polymath_requests_total{outcome=\"failed\"}"), 0);
    CHECK_INT(cluster_metric(&c, "polymath_requests_total{outcome=\"cancelled\"}"), 0);
    buf_fini(&output);
    buf_fini(&plot);
    cluster_stop(&c);
}

TEST_WITHIN(idle_streams_are_cheap_and_hang_ups_leave_nothing, 240)
{
    static const char *const settings[] = {"request.queue_limit=2000", "schedule.queue_ms=86400000",
                                           "http.max_connections=1200", NULL};
    static const char *const idle[] = {"--idle", "1000", "--hold", "8", "--output", "200", NULL};
    static const char *const hangup[] = {"--hangup", "1000",     "--clients", "100", "--prompt",
                                         "4-8",      "--output", "200",       NULL};
    struct cluster c;
    struct buf output = {0};
    cluster_start(&c, 2, 0, settings);
    if (loadtest(&c, idle, &output) != 0)
        test_fail(__FILE__, __LINE__, "%s", output.data);
    const char *figure = strstr(output.data, "connections for ");
    CHECK(figure);
    double mb = strtod(figure + strlen("connections for "), NULL);
    test_say("1,000 idle streams: %.1f MB", mb);
    if (!test_is_slow_build())
        CHECK(mb < 100);
    double before = cluster_metric(&c, "process_resident_memory_bytes");
    if (loadtest(&c, hangup, &output) != 0)
        test_fail(__FILE__, __LINE__, "%s", output.data);
    CHECK_HAS(output.data, "0 failed, 1000 hung up");
    cluster_wait_metric(&c, "polymath_requests_running", 0);
    cluster_wait_metric(&c, "polymath_requests_queued", 0);
    CHECK(cluster_metric(&c, "polymath_requests_total{outcome=\"cancelled\"}") >= 1000);
    cluster_wait_metric(&c, "polymath_http_connections_open", 3);
    double grown = cluster_metric(&c, "process_resident_memory_bytes") - before;
    test_say("1,000 hang-ups: the coordinator grew by %.1f MB", grown / 1e6);
    if (!test_is_slow_build())
        CHECK(grown < 16e6);
    /* What they held is free: one more is answered, and its pages are all that is used. */
    CHECK_INT(cluster_ask(&c, "/v1/completions", "{\"prompt\":[5,6],\"max_tokens\":2}"), 200);
    CHECK(cluster_metric(&c, "polymath_kv_pages_used{node=\"coordinator-attention\"}") <= 1);
    buf_fini(&output);
    cluster_stop(&c);
}

/* The short form of half an hour. */
TEST_WITHIN(a_cluster_asked_for_twice_what_it_can_stays_well, 240)
{
    static const char *const settings[] = {"attention.max_seqs=4", "request.queue_limit=6", NULL};
    struct cluster c;
    struct buf output = {0};
    cluster_start(&c, 2, 0, settings);
    /* A slow machine needs longer to fill the queue. */
    int rc = 0, seconds = 5;
    do {
        char *text = mem_format("%d", seconds);
        const char *const overload[] = {"--overload", text,         "--clients", "6",
                                        "--prompt",   "8-64",       "--output",  "8-32",
                                        "--json",     "mixed.json", NULL};
        rc = loadtest(&c, overload, &output);
        mem_free(text);
    } while (strstr(output.data, "nobody was refused") && (seconds *= 2) <= 80);
    test_say("%s", output.data);
    /* A sanitizer keeps what was freed for a while. */
    if (!test_is_slow_build() || !strstr(output.data, "memory is not flat"))
        CHECK_INT(rc, 0);
    json_t *r = read_json("mixed.json");
    CHECK_INT(json_integer_value(json_object_get(r, "failed")), 0);
    CHECK(json_integer_value(json_object_get(r, "busy")) > 0);
    CHECK(json_integer_value(json_object_get(r, "hung_up")) > 0);
    CHECK(json_number_value(cluster_at(r, "overload.capacity_per_second")) > 0);
    json_decref(r);
    cluster_wait_metric(&c, "polymath_requests_running", 0);
    cluster_wait_metric(&c, "polymath_requests_queued", 0);
    buf_fini(&output);
    cluster_stop(&c);
}

/* A value of a report's row; fails the test if it is not there. */
static double of_row(const json_t *root, const char *row, const char *key)
{
    const json_t *rows = json_object_get(root, "rows"), *found = NULL;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *one = json_array_get(rows, i);
        if (strcmp(json_string_value(json_object_get(one, "name")), row) == 0)
            found = one;
    }
    const json_t *median = json_object_get(json_object_get(found, key), "median");
    test_note("%s: %s", row, key);
    CHECK(json_is_number(median));
    return json_number_value(median);
}

TEST_WITHIN(bench_batch_tells_what_many_streams_get, 120)
{
    const char *const run[] = {
        "bench", "batch",    "--model", cluster_model(), "--streams", "1,3",    "--repeat",
        "1",     "--tokens", "24",      "--prompt",      "4",         "--json", NULL};
    const char *const misused[] = {"bench", "batch", "--streams", "1", NULL};
    const char *const no_model[] = {"bench", "batch", "--model", "nowhere", NULL};
    const char *const halved[] = {"bench",        "batch", "--model", cluster_model(),
                                  "--model-gguf", "x",     NULL};
    struct buf output = {0};
    json_error_t error;
    int code = cluster_run("polymath", run, &output);
    buf_putc(&output, '\0');
    if (code != 0)
        test_fail(__FILE__, __LINE__, "%s", output.data);
    const char *begin = strstr(output.data, "{\n"); /* behind the progress */
    CHECK(begin);
    json_t *root = json_loads(begin, 0, &error);
    CHECK(root);
    CHECK_NEAR(of_row(root, "1 stream", "rows"), 1, 1e-6);
    CHECK_NEAR(of_row(root, "3 streams", "rows"), 3, 0.2);
    CHECK(of_row(root, "3 streams", "tokens_s") > 0);
    CHECK(of_row(root, "  attention", "attention_ms") > 0);
    CHECK(of_row(root, "  router", "router_ms") > 0);
    CHECK(of_row(root, "  experts and wire", "experts_ms") > 0);
    CHECK(of_row(root, "  head", "head_ms") > 0);
    CHECK(of_row(root, "  scheduler", "scheduler_ms") > 0);
    CHECK(of_row(root, "  output parser, writing", "writing_ms") > 0);
    CHECK(of_row(root, "  HTTP", "http_ms") > 0);
    CHECK(of_row(root, "  scheduler to HTTP", "own_percent") < 100);
    json_decref(root);
    CHECK_INT(cluster_run("polymath", misused, &output), 2);
    CHECK_INT(cluster_run("polymath", halved, &output), 2);
    buf_reset(&output);
    CHECK_INT(cluster_run("polymath", no_model, &output), 1);
    buf_putc(&output, '\0');
    CHECK(strstr(output.data, "has ended"));
    buf_fini(&output);
}
