/* tests/unit/test_status_forecast.c - what was seen between two answers of /cluster, and what is reckoned
 * for the nodes that they name. */
#include "tools/status_forecast.h"

#include "base/mem.h"
#include "tests/lib/test.h"

static json_t *answer(int steps, int nodes, const char *reads)
{
    char *text = mem_format("{\"attention_sides\":1, \"model\":{\"format\":\"native,kv=bf16\"},"
                            "\"placement\":{\"replicas\":1}, \"steps\":{\"count\":%d, \"rows\":%d, "
                            "\"attention_us\":%d, \"experts_us\":%d, \"head_us\":%d}, \"nodes\":["
                            "{\"role\":\"attention\", \"state\":\"ready\", \"host\":\"a\"},"
                            "{\"role\":\"expert\", \"state\":\"gone\", \"host\":\"z\"}]}",
                            steps, 4 * steps, 1000 * steps, 3000 * steps, 500 * steps);
    json_t *root = json_loads(text, 0, NULL);
    mem_free(text);
    CHECK(root != NULL);
    for (int i = 0; i < nodes; i++) {
        text = mem_format("{\"role\":\"expert\", \"state\":\"ready\", \"host\":\"h%d\", "
                          "\"memory_bytes\":1000000000, \"read_bytes_s\":%s}",
                          i, reads);
        json_array_append_new(json_object_get(root, "nodes"), json_loads(text, 0, NULL));
        mem_free(text);
    }
    return root;
}

static int forecast(int before, int after, int nodes, const char *reads,
                    struct status_forecast *out, struct err *e)
{
    json_t *a = answer(before, nodes, reads), *b = answer(after, nodes, reads);
    char *model = mem_format("%s/models/demo", test_source_dir());
    int rc = status_forecast(a, b, model, 100, out, e);
    mem_free(model);
    json_decref(a);
    json_decref(b);
    return rc;
}

TEST(status_forecast_sees_the_steps_between_two_answers)
{
    struct status_forecast f;
    CHECK_INT(forecast(10, 30, 2, "10000000000", &f, NULL), 0);
    CHECK_INT(f.n_steps, 20);
    CHECK(f.rows == 4 && f.seen_attention_ms == 1.5 && f.seen_experts_ms == 3 && f.seen_ms == 4.5);
    CHECK(f.told_ms > 0 && f.told_tokens_s > 0);
    /* None between them: all since the start. */
    CHECK_INT(forecast(30, 30, 2, "10000000000", &f, NULL), 0);
    CHECK_INT(f.n_steps, 30);
    CHECK(f.seen_ms == 4.5);
    CHECK_INT(forecast(0, 0, 2, "10000000000", &f, NULL), 0);
    CHECK_INT(f.n_steps, 0);
}

TEST(status_forecast_follows_the_nodes)
{
    struct status_forecast slow, fast, many;
    CHECK_INT(forecast(0, 5, 2, "10000000", &slow, NULL), 0);
    CHECK_INT(forecast(0, 5, 2, "100000000", &fast, NULL), 0);
    CHECK_INT(forecast(0, 5, 4, "10000000", &many, NULL), 0);
    CHECK(fast.told_experts_ms < slow.told_experts_ms);
    CHECK(many.told_experts_ms < slow.told_experts_ms);
}

TEST(status_forecast_says_what_is_missing)
{
    struct status_forecast f;
    struct err e = {0};
    CHECK_INT(forecast(0, 5, 0, "1", &f, &e), E_INVALID);
    CHECK_HAS(e.text, "no expert node");
    CHECK_INT(forecast(0, 5, 1, "0", &f, &e), E_INVALID);
    CHECK_HAS(e.text, "h0");
}
