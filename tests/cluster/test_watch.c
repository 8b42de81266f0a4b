/* tests/cluster/test_watch.c - what operators see of a running cluster. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"

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
