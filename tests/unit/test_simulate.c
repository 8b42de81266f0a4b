/* tests/unit/test_simulate.c - polymath simulate and plan as commands: the same seed gives the same
 * numbers, losses are counted, bad options are refused. */
#include <jansson.h>
#include <string.h>

#include "tests/lib/cluster.h"
#include "tests/lib/test.h"

static json_t *simulate(const char *const *arguments, struct buf *out)
{
    buf_reset(out);
    int code = cluster_run("polymath", arguments, out);
    if (code != 0)
        test_fail(__FILE__, __LINE__, "exit code %d: %s", code, out->data);
    json_t *root = json_loadb(out->data, out->len, 0, NULL);
    CHECK(root != NULL);
    return root;
}

/* All but how long planning took. */
static void drop_times(json_t *root)
{
    json_t *rows = json_object_get(root, "rows");
    for (size_t i = 0; i < json_array_size(rows); i++)
        json_object_del(json_array_get(rows, i), "plan_ms");
}

TEST(simulate_repeats_itself_and_counts_losses)
{
    const char *const arguments[] = {
        "simulate", "--preset",     "m2-layers-6", "--nodes",    "2,12", "--read",
        "80",       "--streams",    "1,4",         "--replicas", "2",    "--jitter",
        "30",       "--stragglers", "0.2@0.5",     "--lose",     "1,2",  "--trials",
        "60",       "--json",       "--seed",      "9",          NULL};
    struct buf out = {0};
    json_t *once = simulate(arguments, &out), *again = simulate(arguments, &out);
    drop_times(once);
    drop_times(again);
    CHECK(json_equal(once, again));
    json_t *rows = json_object_get(once, "rows");
    CHECK_INT(json_array_size(rows), 6); /* two sizes: two numbers of streams, and losses */
    const json_t *one = json_array_get(rows, 3), *losses = json_array_get(rows, 5);
    CHECK_INT(json_integer_value(json_object_get(one, "nodes")), 12);
    CHECK(json_real_value(json_object_get(one, "tokens_s")) > 0);
    CHECK(json_real_value(json_object_get(one, "step_p99_ms")) >=
          json_real_value(json_object_get(one, "step_ms")));
    const json_t *list = json_object_get(losses, "machine_losses");
    CHECK_INT(json_array_size(list), 2);
    CHECK(json_real_value(json_object_get(json_array_get(list, 0), "survived")) == 1);
    CHECK(json_real_value(json_object_get(json_array_get(list, 1), "survived")) < 1);
    CHECK(json_real_value(json_object_get(json_array_get(list, 1), "experts_gone")) >= 1);
    json_decref(once);
    json_decref(again);
    buf_fini(&out);
}

TEST(simulate_and_plan_refuse_what_makes_no_sense)
{
    static const char *const bad[][6] = {
        {"simulate", "--nodes", "0", NULL},
        {"simulate", "--nodes", "2001", NULL},
        {"simulate", "--nodes", "2,", NULL},
        {"simulate", "--stragglers", "2@0.5", NULL},
        {"simulate", "--lose", "x", NULL},
        {"simulate", "--validate", NULL},
        {"simulate", "--hosts", "1x1", "--config", "f", NULL},
        {"simulate", "more", NULL},
        {"plan", "--replicas", "5", NULL},
        {"plan", "--context", "1.5", NULL},
        {"plan", "--efficiency", "0", NULL},
        {"plan", "--nonsense", NULL},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct buf out = {0};
        int code = cluster_run("polymath", bad[i], &out);
        if (code != 2 || out.len == 0)
            test_fail(__FILE__, __LINE__, "%s %s: exit code %d", bad[i][0], bad[i][1], code);
        buf_fini(&out);
    }
    const char *const missing[] = {"plan", "--config", "nowhere", NULL};
    struct buf out = {0};
    CHECK_INT(cluster_run("polymath", missing, &out), 1);
    CHECK_HAS(out.data, "nowhere");
    buf_fini(&out);
}
