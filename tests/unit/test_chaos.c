/* tests/unit/test_chaos.c - what polymath chaos concludes from what clients saw. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"
#include "tools/chaos.h"
#include "tools/chaos_judge.h"
#include "tools/chaos_scenario.h"
#include "tools/chaos_watch.h"

static const struct chaos_answer known = {(int32_t[]){7, 8, 9, 10}, 4};

/* A stream of tokens at these milliseconds. */
static struct chaos_stream stream_at(const int32_t *tokens, const int *at_ms, int n, bool complete)
{
    struct chaos_stream s = {.began_ns = 0, .is_complete = complete};
    for (int i = 0; i < n; i++)
        chaos_stream_token(&s, tokens[i], at_ms[i] * CLOCK_MS);
    s.ended_ns = n ? at_ms[n - 1] * CLOCK_MS : 0;
    return s;
}

static struct chaos_verdict judge(struct chaos_stream *streams, int n, const int64_t *fault_ns,
                                  int n_faults)
{
    struct chaos_verdict v;
    struct chaos_record r = {streams, n, &known, fault_ns, n_faults};
    chaos_judge(&r, &v);
    for (int i = 0; i < n; i++)
        chaos_stream_fini(&streams[i]);
    return v;
}

TEST(chaos_tokens_are_compared_one_by_one)
{
    static const int at[] = {1, 2, 3, 4, 5};
    struct chaos_stream streams[] = {
        stream_at((const int32_t[]){7, 8, 9, 10}, at, 4, true),
        stream_at((const int32_t[]){7, 8, 9, 11}, at, 4, true),     /* another token */
        stream_at((const int32_t[]){7, 8, 9}, at, 3, true),         /* ended too early */
        stream_at((const int32_t[]){7, 8, 9, 10, 11}, at, 5, true), /* went on */
        stream_at((const int32_t[]){7, 8}, at, 2, false),           /* lost, not changed */
        stream_at((const int32_t[]){7, 3}, at, 2, false),           /* lost and changed */
        stream_at(NULL, at, 0, false),                              /* never began */
    };
    snprintf(streams[4].error, sizeof streams[4].error, "expert-3: broke at layer 12");
    snprintf(streams[5].error, sizeof streams[5].error, "expert-1: broke at layer 4");
    struct chaos_verdict v = judge(streams, 7, NULL, 0);
    CHECK_INT(v.n_requests, 7);
    CHECK_INT(v.n_lost, 3);
    CHECK_INT(v.n_changed, 4);
    CHECK_INT(v.n_errors, 2);
    CHECK_STR(v.errors[0].text, "expert-#: broke at layer #");
    CHECK_INT(v.errors[0].n, 2);
    CHECK_STR(v.errors[1].text, "ended early");
}

TEST(chaos_more_kinds_of_errors_than_places_are_others)
{
    struct chaos_stream streams[CHAOS_ERROR_KINDS + 3];
    for (int i = 0; i < CHAOS_ERROR_KINDS + 3; i++) {
        streams[i] = (struct chaos_stream){0};
        snprintf(streams[i].error, sizeof streams[i].error, "kind %c", 'a' + i);
    }
    struct chaos_verdict v = judge(streams, CHAOS_ERROR_KINDS + 3, NULL, 0);
    CHECK_INT(v.n_errors, CHAOS_ERROR_KINDS);
    CHECK_STR(v.errors[0].text, "kind a");
    CHECK_STR(v.errors[CHAOS_ERROR_KINDS - 1].text, "others");
    CHECK_INT(v.errors[CHAOS_ERROR_KINDS - 1].n, 4);
}

TEST(chaos_pauses_before_and_after_the_fault_are_apart)
{
    static const int32_t tokens[] = {7, 8, 9, 10};
    struct chaos_stream streams[] = {
        stream_at(tokens, (const int[]){10, 30, 45, 300}, 4, true), /* 255 ms over the fault */
        stream_at(tokens, (const int[]){20, 25, 30, 35}, 4, true),
    };
    struct chaos_verdict v = judge(streams, 2, (const int64_t[]){50 * CLOCK_MS}, 1);
    CHECK_INT(v.still_pause_ns, 20 * CLOCK_MS);
    CHECK_INT(v.pause_ns, 255 * CLOCK_MS);
    CHECK_INT(v.pause_from_ns, 45 * CLOCK_MS);
    CHECK_INT(v.pause_p99_ns, 255 * CLOCK_MS);
    CHECK_INT(v.first_token_ns, 20 * CLOCK_MS);
    CHECK_INT(v.n_outages, 1);
    CHECK_NEAR(v.still_tokens_per_s, 7 / 0.050, 1e-6);
    CHECK_NEAR(v.tokens_per_s, 1 / 0.250, 1e-6);
}

TEST(chaos_a_stream_that_breaks_paused_until_its_end)
{
    struct chaos_stream s = stream_at((const int32_t[]){7}, (const int[]){10}, 1, false);
    s.ended_ns = 900 * CLOCK_MS;
    struct chaos_verdict v = judge(&s, 1, (const int64_t[]){5 * CLOCK_MS}, 1);
    CHECK_INT(v.pause_ns, 890 * CLOCK_MS);
}

/* Two streams that wait at the same time share one outage; a later wait is another. */
TEST(chaos_outages_are_counted_once)
{
    static const int32_t tokens[] = {7, 8, 9, 10};
    struct chaos_stream streams[] = {
        stream_at(tokens, (const int[]){10, 400, 410, 420}, 4, true),
        stream_at(tokens, (const int[]){20, 420, 430, 440}, 4, true),
        stream_at(tokens, (const int[]){1000, 1010, 1300, 1310}, 4, true),
    };
    struct chaos_verdict v = judge(streams, 3, (const int64_t[]){15 * CLOCK_MS}, 1);
    CHECK_INT(v.n_outages, 2);
    CHECK_INT(v.outages[0].after_ns, -5 * CLOCK_MS);
    CHECK_INT(v.outages[0].length_ns, 410 * CLOCK_MS);
    CHECK_INT(v.outages[1].after_ns, 995 * CLOCK_MS);
    CHECK_INT(v.outages[1].length_ns, 290 * CLOCK_MS);
}

/* 99 faults cost 20 ms and one costs 2 s: within the percentile, not within the longest. */
TEST(chaos_percentile_is_over_the_faults)
{
    enum { FAULTS = 100 };
    int64_t fault_ns[FAULTS];
    struct chaos_stream s = {.is_complete = true};
    int64_t now_ns = 0;
    for (int i = 0; i < FAULTS; i++) {
        chaos_stream_token(&s, 7, now_ns);
        fault_ns[i] = now_ns + 1;
        now_ns += i == 40 ? 2 * CLOCK_S : 20 * CLOCK_MS;
    }
    chaos_stream_token(&s, 7, now_ns);
    s.ended_ns = now_ns;
    struct chaos_verdict v;
    struct chaos_record r = {&s, 1, NULL, fault_ns, FAULTS};
    chaos_judge(&r, &v);
    chaos_stream_fini(&s);
    CHECK_INT(v.pause_ns, 2 * CLOCK_S);
    CHECK_INT(v.pause_p99_ns, 20 * CLOCK_MS);
    CHECK_INT(v.n_changed, 0); /* nothing to compare with */
}

static char *all_misses(struct chaos_verdict v, struct chaos_target t, struct chaos_measures m)
{
    static struct buf out;
    buf_reset(&out);
    buf_puts(&out, "");
    chaos_misses(&v, &t, &m, &out);
    return out.data;
}

static char *misses(struct chaos_verdict v, struct chaos_target t, int64_t whole_ns)
{
    return all_misses(v, t, (struct chaos_measures){.whole_ns = whole_ns});
}

TEST(chaos_promises_are_checked_one_by_one)
{
    struct chaos_verdict fine = {.n_requests = 5,
                                 .n_faults = 1,
                                 .n_outages = 1,
                                 .still_pause_ns = 10 * CLOCK_MS,
                                 .pause_ns = 110 * CLOCK_MS,
                                 .pause_p99_ns = 110 * CLOCK_MS};
    struct chaos_target t = {.pause_ms = 100, .pause_steps = 1, .outage_once = true, .whole_s = 2};
    CHECK_STR(misses(fine, t, CLOCK_S), "");
    struct chaos_verdict v = fine;
    v.n_lost = 2;
    CHECK_STR(misses(v, t, CLOCK_S), "2 requests lost");
    v = fine;
    v.n_changed = 1;
    CHECK_STR(misses(v, t, CLOCK_S), "1 stream with other tokens");
    v = fine;
    v.pause_p99_ns++;
    CHECK_HAS(misses(v, t, CLOCK_S), "a pause of 110 ms, at most 110");
    v = fine;
    v.n_outages = 2;
    v.outages[0].length_ns = 133 * CLOCK_MS;
    v.outages[1].length_ns = 190 * CLOCK_MS;
    v.outages[1].after_ns = 2300 * CLOCK_MS;
    CHECK_HAS(misses(v, t, CLOCK_S),
              "2 pauses for 1 fault: 133 ms at 0.00 s, 190 ms at 2.30 s after the first fault");
    CHECK_HAS(misses(fine, t, -1), "did not come back");
    CHECK_HAS(misses(fine, t, 3 * CLOCK_S), "after 3.0 s, at most 2");
    CHECK_HAS(misses((struct chaos_verdict){0}, t, 0), "no request");
    t = (struct chaos_target){.pause_ms = -1};
    v = fine;
    v.pause_p99_ns = 100 * CLOCK_S;
    CHECK_STR(misses(v, t, 3 * CLOCK_S), "");
}

TEST(chaos_measures_have_limits_too)
{
    static const struct chaos_verdict fine = {.n_requests = 5, .n_refused = 1};
    CHECK_INT(chaos_most_pause_ns(&fine, &(struct chaos_target){.pause_ms = -1}), -1);
    CHECK_INT(chaos_most_pause_ns(&(struct chaos_verdict){.still_pause_ns = 7},
                                  &(struct chaos_target){.pause_ms = 1, .pause_steps = 2}),
              CLOCK_MS + 14);
    struct chaos_target t = {.pause_ms = -1,
                             .whole_as_start = true,
                             .rate_percent = 95,
                             .growth_mib = 2,
                             .refusal = "the log has stopped"};
    struct chaos_measures m = {.start_ns = 3 * CLOCK_S,
                               .lease_ns = CLOCK_S,
                               .whole_ns = 3 * CLOCK_S,
                               .after_per_s = {3, {96, 70, 130}},
                               .remaining_per_s = {3, {100, 100, 100}},
                               .growth_bytes = 2 << 20};
    CHECK_STR(all_misses(fine, t, m), "");
    m.whole_ns = 5 * CLOCK_S;
    CHECK_HAS(all_misses(fine, t, m), "after 5.0 s; the lease is 1.0 s, reading all took 3.0 s");
    m.whole_ns = 0;
    m.after_per_s.values[2] = 90;
    CHECK_HAS(all_misses(fine, t, m), "90 tokens/s afterwards, 90 % of what the others give");
    m.remaining_per_s.values[0] = 120; /* the median of 80, 70 and 90 */
    CHECK_HAS(all_misses(fine, t, m), "90 tokens/s afterwards, 80 % of what the others give");
    m.after_per_s = m.remaining_per_s = (struct bench_series){0};
    CHECK_HAS(all_misses(fine, t, m), "0 tokens/s afterwards");
    m.after_per_s = m.remaining_per_s = (struct bench_series){1, {100}};
    m.growth_bytes++;
    CHECK_HAS(all_misses(fine, t, m), "a process grew by 2.0 MiB, at most 2");
    m.growth_bytes = 0;
    CHECK_HAS(all_misses((struct chaos_verdict){.n_requests = 5}, t, m),
              "nobody was refused because \"the log has stopped\"");
}

#define NODE_OF(pid, role, state, live, wanted) \
    "{\"pid\":" #pid ",\"role\":\"" role "\",\"state\":\"" state "\",\"experts_live\":" #live \
    ",\"experts_wanted\":" #wanted "}"
#define NODE(role, state, live, wanted) NODE_OF(11, role, state, live, wanted)
#define OTHER(role, state, live, wanted) NODE_OF(12, role, state, live, wanted)
#define CLUSTER(ready, experts, live, nodes) \
    "{\"epoch\":9,\"ready\":" ready ",\"coverage\":{\"experts\":" #experts ",\"live\":" #live \
    "},\"placement\":{\"settled\":true},\"nodes\":[" nodes "]}"

TEST(chaos_whole_means_every_copy_is_there)
{
    static const pid_t pids[] = {11, 12};
    static const struct {
        const char *json;
        int replicas, n_pids;
        bool has_embedded, whole;
    } cases[] = {
        {CLUSTER("true", 6, 6, NODE("expert", "ready", 6, 6) "," OTHER("expert", "ready", 6, 6)), 2,
         2, false, true},
        /* somebody who should be dead is still there; another is there in place of one of ours */
        {CLUSTER("true", 6, 6, NODE("expert", "ready", 6, 6) "," OTHER("expert", "ready", 6, 6)), 2,
         1, false, false},
        {CLUSTER("true", 6, 6,
                 NODE("expert", "ready", 6, 6) "," NODE_OF(13, "expert", "ready", 6, 6)),
         2, 2, false, false},
        /* fewer nodes than copies: as many as there are nodes */
        {CLUSTER("true", 6, 6, NODE("expert", "ready", 6, 6)), 2, 1, false, true},
        {CLUSTER("true", 6, 6, NODE("expert", "ready", 6, 6)), 2, 2, false, false},
        {CLUSTER("true", 6, 6, NODE("expert", "ready", 6, 6) "," OTHER("expert", "ready", 5, 6)), 2,
         2, false, false},
        {CLUSTER("true", 6, 6, NODE("expert", "ready", 6, 6) "," OTHER("expert", "loading", 6, 6)),
         1, 2, false, false},
        {CLUSTER("true", 6, 6, NODE("expert", "ready", 6, 6) "," OTHER("expert", "ready", 0, 0)), 1,
         2, false, false},
        {CLUSTER("true", 6, 6,
                 NODE("expert", "ready", 6, 6) ",{\"role\":\"attention\",\"state\":"
                                               "\"ready\",\"pid\":9,\"epoch\":9}"),
         1, 1, true, true},
        /* it does not know yet */
        {CLUSTER("true", 6, 6,
                 NODE("expert", "ready", 6, 6) ",{\"role\":\"attention\",\"state\":"
                                               "\"ready\",\"pid\":9,\"epoch\":8}"),
         1, 1, true, false},
        {CLUSTER("true", 6, 6, NODE("expert", "ready", 6, 6)), 1, 1, true, false},
        {CLUSTER("false", 6, 6, NODE("expert", "ready", 6, 6)), 1, 1, false, false},
        {CLUSTER("true", 6, 5, NODE("expert", "ready", 6, 6)), 1, 1, false, false},
        {"{\"ready\":true,\"coverage\":{\"experts\":6,\"live\":6},\"placement\":{\"settled\":false}"
         ","
         "\"nodes\":[" NODE("expert", "ready", 6, 6) "]}",
         1, 1, false, false},
        {"{}", 1, 0, false, false},
        {"[1,", 1, 0, false, false},
        {"", 1, 0, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct chaos_crew crew = {.replicas = cases[i].replicas,
                                  .pids = pids,
                                  .n_pids = cases[i].n_pids,
                                  .has_embedded = cases[i].has_embedded};
        if (chaos_is_whole(str_of(cases[i].json), &crew) != cases[i].whole)
            test_fail(__FILE__, __LINE__, "case %zu: %s", i, cases[i].json);
    }
}

TEST(chaos_knows_when_standbys_are_in_step)
{
#define STANDBY(in_step, recorded) \
    "{\"name\":\"b\",\"in_step\":" in_step ",\"recorded\":" recorded ",\"lag_bytes\":0}"
    static const struct {
        const char *json;
        bool in_step;
    } cases[] = {
        {"{\"role\":\"leader\",\"standbys\":[" STANDBY("true", "true") "]}", true},
        {"{\"standbys\":[" STANDBY("true", "true") "," STANDBY("true", "false") "]}", false},
        {"{\"standbys\":[" STANDBY("false", "false") "]}", false},
        {"{\"role\":\"leader\",\"standbys\":[]}", false},
        {"{\"role\":\"standby\"}", false},
        {"{\"standbys\":[7]}", false},
        {"no JSON", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (chaos_is_in_step(str_of(cases[i].json)) != cases[i].in_step)
            test_fail(__FILE__, __LINE__, "%s", cases[i].json);
}

TEST(chaos_metrics_are_summed_by_a_part_of_their_name)
{
    static const char text[] = "# HELP polymath_retries_total Retries.\n"
                               "# TYPE polymath_retries_total counter\n"
                               "polymath_retries_total{node=\"expert-0\"} 3\n"
                               "polymath_retries_total{node=\"a retry\"} 4\n"
                               "polymath_retries_open 9\n"
                               "polymath_other_total 11\n"
                               "polymath_hedges_total 0";
    CHECK_INT(chaos_metric(str_of(text), "retr"), 7);
    CHECK_INT(chaos_metric(str_of(text), "hedge"), 0);
    CHECK_INT(chaos_metric(str_of(text), "verify"), -1);
    CHECK_INT(chaos_metric(str_of(""), "retr"), -1);
}

TEST(chaos_scenarios_are_whole_and_named_once)
{
    int n = 0;
    for (const struct chaos_scenario *s; (s = chaos_scenario_at(n)); n++) {
        CHECK(s->name && s->summary);
        CHECK(chaos_scenario_named(s->name) == s);
        CHECK(s->steps[0].act != CHAOS_END);
        CHECK_INT(s->steps[CHAOS_MAX_STEPS - 1].act == CHAOS_END ||
                      s->steps[CHAOS_MAX_STEPS - 1].act == CHAOS_AGAIN,
                  1);
        for (int i = 0; i < CHAOS_MAX_STEPS && s->steps[i].act != CHAOS_END; i++) {
            const struct chaos_step *step = &s->steps[i];
            static const enum chaos_act of_all[] = {
                CHAOS_WAIT, CHAOS_WHOLE, CHAOS_AGAIN,  CHAOS_RATE,   CHAOS_RATE_OF_OTHERS,
                CHAOS_FILL, CHAOS_FREE,  CHAOS_ATTACK, CHAOS_IN_STEP};
            bool has_who = true;
            for (size_t k = 0; k < sizeof of_all / sizeof of_all[0]; k++)
                has_who = has_who && step->act != of_all[k];
            if ((step->who != NULL) != has_who)
                test_fail(__FILE__, __LINE__, "%s: step %d", s->name, i);
            if (step->who && strcmp(step->who, "spare") == 0)
                CHECK(s->has_spare);
            if (step->act >= CHAOS_CUT && step->act <= CHAOS_HEAL)
                CHECK(s->needs_hosts);
            if (step->act == CHAOS_IN_STEP)
                CHECK(s->has_etcd && s->has_standby);
            if (step->act == CHAOS_FILL)
                CHECK(s->small_state && s->target.refusal);
        }
        for (int i = 0; i < CHAOS_MAX_SETTINGS && s->settings[i]; i++)
            CHECK(strchr(s->settings[i], '='));
    }
    CHECK(n > 10);
    CHECK(chaos_scenario_named("no such") == NULL);
    struct buf list = {0};
    chaos_scenario_list(&list);
    CHECK_HAS(list.data, "kills");
    buf_fini(&list);
}

TEST(chaos_prompts_repeat_with_their_seed)
{
    struct chaos_prompt a[6], b[6], other[6];
    chaos_prompts_make(a, 6, 32, 5);
    chaos_prompts_make(b, 6, 32, 5);
    chaos_prompts_make(other, 6, 32, 6);
    CHECK_BYTES(a, b, sizeof a);
    CHECK(memcmp(a, other, sizeof a) != 0);
    for (int i = 0; i < 6; i++) {
        CHECK(a[i].n_ids >= 3 && a[i].n_ids <= CHAOS_PROMPT_TOKENS);
        CHECK_INT(a[i].temperature > 0, i % 2);
        CHECK_INT(a[i].max_tokens, 32);
    }
}

TEST(chaos_results_are_printed_as_a_line_and_as_json)
{
    struct chaos_result r = {.outcome = CHAOS_MISSED, .retries = -1, .hedges = 4, .replays = 2};
    r.measures = (struct chaos_measures){.whole_ns = -1, .n_attacks = 5, .growth_bytes = 3 << 20};
    r.verdict = (struct chaos_verdict){.n_requests = 12, .n_lost = 1, .pause_ns = 2 * CLOCK_S};
    r.verdict.n_errors = 1;
    r.verdict.errors[0].n = 1;
    snprintf(r.verdict.errors[0].text, sizeof r.verdict.errors[0].text, "HTTP #: \"gone\"");
    buf_puts(&r.why, "1 request lost");
    struct buf text = {0}, json = {0};
    chaos_print_head(&text);
    chaos_print_result(chaos_scenario_named("kill"), &r, &text);
    CHECK_HAS(text.data, "MISSED: 1 request lost");
    CHECK_HAS(text.data, "1 x HTTP #: \"gone\"");
    CHECK_HAS(text.data, "-/4/2");
    CHECK_HAS(text.data, "5 attacks; no process grew by more than 3.0 MiB");
    chaos_print_json(chaos_scenario_named("kill"), &r, &json);
    CHECK_HAS(json.data, "\"scenario\":\"kill\"");
    CHECK_HAS(json.data, "\"whole_s\":null");
    CHECK_HAS(json.data, "\"HTTP #: \\\"gone\\\"\":1");
    CHECK(strstr(json.data, "\"retries\"") == NULL);
    buf_fini(&text);
    buf_fini(&json);
    buf_fini(&r.why);
}
