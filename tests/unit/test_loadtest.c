/* tests/unit/test_loadtest.c - the load test's plan, its sums and what it writes. */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"
#include "tools/loadtest_overload.h"
#include "tools/loadtest_plan.h"
#include "tools/loadtest_report.h"
#include "tools/loadtest_server.h"

TEST(loadtest_lengths_are_read)
{
    struct loadtest_length l;
    struct err e = {0};
    CHECK_INT(loadtest_read_length("64", &l, NULL), 0);
    CHECK(l.spread == LOADTEST_EVEN && l.low == 64 && l.high == 64);
    CHECK_INT(loadtest_read_length("16-256", &l, NULL), 0);
    CHECK(l.low == 16 && l.high == 256);
    CHECK_INT(loadtest_read_length("exp:128", &l, NULL), 0);
    CHECK(l.spread == LOADTEST_EXPONENTIAL && l.low == 128 && l.high == 1024);
    static const char *const bad[] = {"",    "0",     "-4",      "5-3",   "5-",
                                      "5-x", "exp:0", "exp:4-9", "exp:x", "99999999"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK_INT(loadtest_read_length(bad[i], &l, &e), E_INVALID);
    CHECK_HAS(e.text, "99999999");
}

TEST(loadtest_plans_are_repeatable_and_as_wide_as_asked)
{
    struct loadtest_load l = {.rate = 50,
                              .prompt = {.low = 10, .high = 20},
                              .output = {.spread = LOADTEST_EXPONENTIAL, .low = 40, .high = 320},
                              .n_groups = 3,
                              .hang_up_tokens = 4,
                              .seed = 7};
    enum { N = 20000 };
    double gap_s = 0, gap2 = 0, output = 0, leaves = 0;
    int groups[3] = {0}, low = 1000, high = 0;
    for (uint64_t i = 0; i < N; i++) {
        struct loadtest_request q, again;
        loadtest_plan(&l, i, &q);
        loadtest_plan(&l, i, &again);
        CHECK(memcmp(&q, &again, sizeof q) == 0);
        gap_s += (double)q.gap_ns / 1e9 / N;
        gap2 += (double)q.gap_ns / 1e9 * ((double)q.gap_ns / 1e9) / N;
        output += (double)q.n_output / N;
        leaves += (double)q.leaves_after / N;
        groups[q.group]++;
        low = q.n_prompt < low ? q.n_prompt : low;
        high = q.n_prompt > high ? q.n_prompt : high;
        CHECK(q.n_output >= 1 && q.n_output <= 320 && q.leaves_after >= 1 && q.leaves_after <= 8);
    }
    /* Five standard errors of a mean of 20,000 exponential values. */
    double five = 5 / sqrt(N);
    CHECK_NEAR(gap_s, 0.02, 0.02 * five);
    CHECK_NEAR(sqrt(gap2 - gap_s * gap_s), 0.02, 0.02 * 3 * five);
    CHECK_NEAR(output, 40.5, 40 * five);
    CHECK_NEAR(leaves, 4.5, 4.5 * five);
    CHECK(low == 10 && high == 20);
    for (int i = 0; i < 3; i++)
        CHECK_NEAR(groups[i], N / 3.0, N * five);
    l.arrival = LOADTEST_STEADY;
    struct loadtest_request q;
    loadtest_plan(&l, 5, &q);
    CHECK_INT(q.gap_ns, 20 * CLOCK_MS);
}

static json_t *body_of(const struct loadtest_load *l, uint64_t index)
{
    struct buf b = {0};
    loadtest_body(l, index, &b);
    json_t *root = json_loads(b.data, 0, NULL);
    CHECK(root);
    buf_fini(&b);
    return root;
}

TEST(loadtest_prompts_of_a_group_begin_alike)
{
    struct loadtest_load l = {
        .prompt = {.low = 4, .high = 30}, .output = {.low = 9, .high = 9}, .prefix_tokens = 12};
    json_t *a = body_of(&l, 1), *b = body_of(&l, 2);
    json_t *ids_a = json_object_get(a, "prompt"), *ids_b = json_object_get(b, "prompt");
    CHECK(json_array_size(ids_a) > 12 && json_array_size(ids_b) > 12);
    for (size_t i = 0; i < 12; i++)
        CHECK(json_equal(json_array_get(ids_a, i), json_array_get(ids_b, i)));
    CHECK(!json_equal(ids_a, ids_b));
    CHECK_INT(json_integer_value(json_object_get(a, "max_tokens")), 9);
    json_decref(a);
    json_decref(b);
}

TEST(loadtest_sums_count_what_was_good)
{
    struct loadtest_sample samples[] = {
        {.outcome = LOADTEST_OK, .n_prompt = 5, .n_tokens = 10, .first_ms = 100, .whole_ms = 1000},
        {.outcome = LOADTEST_OK, .n_tokens = 10, .first_ms = 300, .whole_ms = 2000},
        {.outcome = LOADTEST_OK, .n_tokens = 10, .first_ms = 90, .worst_gap_ms = 80, .whole_ms = 9},
        {.outcome = LOADTEST_BUSY, .status = 429},
        {.outcome = LOADTEST_FAILED, .n_tokens = 3},
        {.outcome = LOADTEST_LEFT, .n_tokens = 2}};
    float gaps[] = {5, 1, 3, 2, 4};
    int64_t seconds[] = {20, 15};
    struct loadtest_result r = {.samples = samples,
                                .n_samples = 6,
                                .gaps_ms = gaps,
                                .n_gaps = 5,
                                .tokens_by_second = seconds,
                                .n_seconds = 2,
                                .elapsed_ns = 2 * CLOCK_S,
                                .error = "a \"<b>\" \xff"};
    struct loadtest_goal goal = {.first_ms = 200, .gap_ms = 50};
    struct loadtest_summary s;
    loadtest_sum_up(&r, &goal, &s);
    CHECK_INT(s.n_good, 1);
    CHECK_INT(s.outcomes[LOADTEST_OK], 3);
    CHECK_INT(s.outcomes[LOADTEST_BUSY], 1);
    CHECK_INT(s.output_tokens, 35);
    CHECK_NEAR(s.first.p50, 100, 0);
    CHECK_NEAR(s.first.p99, 300, 0);
    CHECK_NEAR(s.gap.mean, 3, 0);
    CHECK_NEAR(s.gap.p90, 5, 0);
    CHECK_NEAR(s.whole.most, 2000, 0);

    struct buf out = {0};
    loadtest_write_table(&r, &s, &goal, &out);
    buf_putc(&out, '\0');
    CHECK_HAS(out.data, "3 ok, 1 busy (429), 1 failed, 1 hung up");
    CHECK_HAS(out.data, "goodput 0.50 requests/s");
    buf_reset(&out);
    loadtest_write_json(&r, &s, &goal, NULL, &out);
    json_t *root = json_loadb(out.data, out.len, 0, NULL);
    CHECK(root);
    CHECK_INT(json_integer_value(json_object_get(root, "busy")), 1);
    CHECK_NEAR(json_real_value(json_object_get(json_object_get(root, "first_token_ms"), "p50")),
               100, 0);
    json_decref(root);
    buf_reset(&out);
    loadtest_write_svg(&r, &s, &out);
    buf_putc(&out, '\0');
    CHECK_HAS(out.data, "</svg>");
    CHECK(!strstr(out.data, "nan") && !strstr(out.data, "inf"));
    buf_fini(&out);
}

/* Nothing was answered: there is still a table, a plot and valid JSON. */
TEST(loadtest_without_answers_writes_all_the_same)
{
    struct loadtest_result r = {.elapsed_ns = 0};
    struct loadtest_goal goal = {.first_ms = 1, .gap_ms = 1};
    struct loadtest_summary s;
    struct buf out = {0};
    loadtest_sum_up(&r, &goal, &s);
    loadtest_write_table(&r, &s, &goal, &out);
    loadtest_write_svg(&r, &s, &out);
    buf_putc(&out, '\0');
    CHECK(!strstr(out.data, "nan") && !strstr(out.data, "inf"));
    buf_fini(&out);
}

TEST(loadtest_reads_what_the_coordinator_says)
{
    struct loadtest_server s;
    loadtest_server_parse("# HELP process_resident_memory_bytes Memory.\n"
                          "process_resident_memory_bytes 1.5e+06\n"
                          "polymath_requests_queued_more 7\npolymath_requests_queued 3\n"
                          "polymath_requests_total{outcome=\"cancelled\"} 12\n",
                          &s);
    CHECK(s.is_known);
    CHECK_NEAR(s.resident_bytes, 1.5e6, 0);
    CHECK_NEAR(s.queued, 3, 0);
    CHECK_NEAR(s.cancelled, 12, 0);
    loadtest_server_parse("nothing of ours", &s);
    CHECK(!s.is_known);
}

TEST(loadtest_overload_is_judged_by_refusals_waits_and_memory)
{
    struct loadtest_overload o = {.capacity = 4};
    struct loadtest_summary s = {.outcomes = {[LOADTEST_OK] = 9}, .first = {.p99 = 70}};
    struct err e = {0};
    struct buf text = {0};
    CHECK_INT(loadtest_overload_judge(&o, &s, 100, &e), E_UNKNOWN);
    CHECK_HAS(e.text, "nobody was refused");
    s.outcomes[LOADTEST_BUSY] = 5;
    CHECK_INT(loadtest_overload_judge(&o, &s, 100, &e), 0);
    CHECK_INT(loadtest_overload_judge(&o, &s, 60, &e), E_UNKNOWN);
    CHECK_HAS(e.text, "waited too long");
    /* Caches that fill at the beginning are no leak; the same rise later on is. */
    for (int i = 0; i < 300; i++)
        loadtest_overload_watch(&o, i, i < 90 ? 1e6 * i : 90e6);
    CHECK_INT(loadtest_overload_judge(&o, &s, 100, &e), 0);
    CHECK_NEAR(o.rise_bytes, 0, 1);
    loadtest_overload_write(&o, &text);
    CHECK_HAS(text.data, "rises by 0.0 MB");
    for (int i = 300; i < 600; i++)
        loadtest_overload_watch(&o, i, 90e6 + 0.3e6 * (i - 300));
    CHECK_INT(loadtest_overload_judge(&o, &s, 100, &e), E_UNKNOWN);
    CHECK_HAS(e.text, "memory is not flat");
    CHECK(o.rise_bytes_per_minute > 10e6 && o.rise_bytes_per_minute < 18e6);
    buf_fini(&text);
    loadtest_overload_fini(&o);
}
