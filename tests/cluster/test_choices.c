/* tests/cluster/test_choices.c - several answers to one request, on a real cluster: each is what it would be alone,
 * streams of them are taken up again, and whoever hangs up leaves none of them running. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

enum { N = 3 };

static char *body_of(const char *prompt, int max_tokens, int seed, const char *more)
{
    return mem_format("{\"prompt\":%s,\"max_tokens\":%d,\"temperature\":1,\"seed\":%d,"
                      "\"ignore_eos\":true,\"return_token_ids\":true%s}",
                      prompt, max_tokens, seed, more);
}

static json_t *complete(struct cluster *c, const char *prompt, int seed, const char *more)
{
    char *body = body_of(prompt, 12, seed, more);
    json_t *v = cluster_ask_json(c, "/v1/completions", body);
    mem_free(body);
    return v;
}

static json_t *choice(json_t *answer, int i, const char *member)
{
    char path[64];
    snprintf(path, sizeof path, "choices.%d.%s", i, member);
    return cluster_at(answer, path);
}

TEST_WITHIN(choices_are_what_each_would_be_alone, 90)
{
    struct cluster c;
    cluster_start(&c, 2, 0, NULL);
    static const char *const prompts[] = {"[5,17,40,200,31,7]", "[9,8]"};
    json_t *many = complete(&c, "[[5,17,40,200,31,7],[9,8]]", 50, ",\"n\":3,\"logprobs\":0");
    json_t *best = complete(&c, prompts[0], 50, ",\"best_of\":3");
    CHECK_INT(json_array_size(cluster_at(many, "choices")), 2 * N);
    CHECK_INT(json_integer_value(cluster_at(many, "usage.prompt_tokens")), 8);
    CHECK_INT(json_integer_value(cluster_at(many, "usage.completion_tokens")), 2 * N * 12);
    double highest = -1e9;
    json_t *likeliest = NULL;
    for (int i = 0; i < 2 * N; i++) {
        json_t *alone = complete(&c, prompts[i / N], 50 + i % N, "");
        CHECK(json_equal(choice(many, i, "token_ids"), choice(alone, 0, "token_ids")));
        double sum = 0;
        for (size_t k = 0; k < 12; k++)
            sum += json_number_value(json_array_get(choice(many, i, "logprobs.token_logprobs"), k));
        if (i < N && sum > highest) {
            highest = sum;
            likeliest = choice(many, i, "token_ids");
        }
        json_decref(alone);
    }
    CHECK(json_equal(choice(best, 0, "token_ids"), likeliest));
    CHECK_INT(json_integer_value(cluster_at(best, "usage.completion_tokens")), N * 12);
    json_decref(many);
    json_decref(best);
    cluster_stop(&c);
}

/* What a stream has brought so far, over all connections. */
struct gathered {
    struct buf ids[N]; /* of tokens */
    char name[64], last[64];
    char usage[256];
    int n_events, stop_at; /* 0: never */
    bool is_done;
};

static bool on_line(void *ud, struct str line)
{
    struct gathered *g = ud;
    if (str_has_prefix(line, STR("id: ")))
        snprintf(g->last, sizeof g->last, "%.*s", (int)line.len - 4, line.ptr + 4);
    if (str_equal(line, STR("data: [DONE]")))
        g->is_done = true;
    if (line.len == 0)
        return !g->stop_at || ++g->n_events < g->stop_at;
    if (!str_has_prefix(line, STR("data: {")))
        return true;
    json_t *event = json_loadb(line.ptr + 6, line.len - 6, JSON_ALLOW_NUL, NULL);
    CHECK(event);
    snprintf(g->name, sizeof g->name, "%s", json_string_value(json_object_get(event, "id")));
    json_t *first = cluster_at(event, "choices.0"), *ids = json_object_get(first, "token_ids");
    json_int_t index = json_integer_value(json_object_get(first, "index"));
    CHECK(index >= 0 && index < N);
    for (size_t i = 0; i < json_array_size(ids); i++)
        buf_printf(&g->ids[index], "%lld,", (long long)json_integer_value(json_array_get(ids, i)));
    if (json_is_object(json_object_get(event, "usage"))) {
        char *text = json_dumps(json_object_get(event, "usage"), JSON_COMPACT);
        snprintf(g->usage, sizeof g->usage, "%s", text);
        free(text);
    }
    json_decref(event);
    return true;
}

static void stream(struct cluster *c, const char *path, const char *body, const char *header,
                   struct gathered *g)
{
    struct http_client *client = http_client_new();
    const char *const headers[] = {header, NULL};
    char *url = mem_format("%s%s", c->url, path);
    struct buf answer = {0};
    int status = 0;
    http_exchange(client,
                  &(struct http_exchange){.url = url,
                                          .body = body,
                                          .headers = header ? headers : NULL,
                                          .timeout_ns = 80 * CLOCK_S,
                                          .on_line = on_line,
                                          .ud = g},
                  &status, &answer, NULL);
    CHECK_INT(status, g->stop_at ? 0 : 200); /* 0: we have broken it off */
    mem_free(url);
    buf_fini(&answer);
    http_client_free(&client);
}

static void go_on(struct cluster *c, struct gathered *g, int stop_at)
{
    char *path = mem_format("/v1/streams/%s", g->name);
    char *header = mem_format("Last-Event-ID: %s", g->last);
    g->n_events = 0;
    g->stop_at = stop_at;
    stream(c, path, NULL, header, g);
    mem_free(path);
    mem_free(header);
}

TEST_WITHIN(choices_go_on_where_their_reader_left_them, 120)
{
    struct cluster c;
    static const char *const settings[] = {"state.dir=state", NULL};
    cluster_start(&c, 2, 0, settings);
    char *body = body_of("[5,17,40,200,31,7]", 100, 50,
                         ",\"n\":3,\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    struct gathered g = {.stop_at = 20}, again = {0};
    stream(&c, "/v1/completions", body, NULL, &g);
    CHECK(!g.is_done);
    go_on(&c, &g, 40);
    cluster_kill(&c, "coordinator", SIGKILL);
    cluster_start_coordinator(&c);
    go_on(&c, &g, 0);
    CHECK(g.is_done);
    cluster_wait_ready(&c, 40); /* which it need not be for what was over before the death */
    /* The same without death and interruption; the numbers of usage are those of this life. */
    stream(&c, "/v1/completions", body, "Idempotency-Key: k", &again);
    CHECK(again.is_done);
    for (int i = 0; i < N; i++) {
        CHECK_STR(g.ids[i].data, again.ids[i].data);
        buf_fini(&g.ids[i]);
    }
    /* Once it is over, the whole once more; and again after another restart, with the same usage. */
    cluster_kill(&c, "coordinator", SIGKILL);
    cluster_start_coordinator(&c);
    struct gathered kept = {0};
    stream(&c, "/v1/completions", body, "Idempotency-Key: k", &kept);
    CHECK_STR(kept.usage, again.usage);
    CHECK_HAS(kept.usage, "\"completion_tokens\":300");
    for (int i = 0; i < N; i++) {
        CHECK_STR(kept.ids[i].data, again.ids[i].data);
        buf_fini(&again.ids[i]);
        buf_fini(&kept.ids[i]);
    }
    cluster_wait_ready(&c, 40); /* one that is still loading ends otherwise */
    mem_free(body);
    cluster_stop(&c);
}

TEST_WITHIN(a_hang_up_ends_all_choices, 60)
{
    struct cluster c;
    cluster_start(&c, 1, 0, NULL);
    char *body = body_of("[5,17]", 2000, 1, ",\"n\":3,\"stream\":true");
    struct gathered g = {.stop_at = 5};
    stream(&c, "/v1/completions", body, NULL, &g);
    cluster_wait_value(&c, "requests.running", 0, 20);
    CHECK_INT(cluster_ask(&c, "/metrics", NULL), 200);
    CHECK_HAS(c.answer.data, "\npolymath_requests_total{outcome=\"cancelled\"} 1\n");
    for (int i = 0; i < N; i++)
        buf_fini(&g.ids[i]);
    mem_free(body);
    cluster_stop(&c);
}
