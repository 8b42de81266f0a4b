/* tests/cluster/test_ladder.c - expert nodes that die, stop, lose answers or lie while an
 * answer streams: with two copies of every expert the client gets the tokens of the
 * undisturbed run, and no error. */
#include <jansson.h>
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

enum { TOKENS = 60, ACT_AT = 20, EXPERTS = 3 * 256 /* of cluster_model() */ };
#define BODY(extra) \
    "{\"prompt\":[5,17,9,33,2],\"max_tokens\":60,\"temperature\":0,\"ignore_eos\":true," \
    "\"return_token_ids\":true" extra "}"

/* One streaming request; at token ACT_AT something happens. */
struct stream {
    struct cluster *c;
    void (*act)(struct cluster *c);
    int n_tokens;
    int tokens[TOKENS];
    int n_degraded;         /* tokens that say so */
    char id[64], again[96]; /* of the answer; where it is asked for again, "": it is new */
    bool is_marked_last;
    int64_t last_ns, longest_ns;
    char trouble[256];
};

static void take_event(struct stream *s, const char *text)
{
    json_t *event = json_loads(text, JSON_ALLOW_NUL, NULL); /* a random model says \\u0000, too */
    if (!event || json_object_get(event, "error"))
        snprintf(s->trouble, sizeof(s->trouble), "%s", text);
    s->is_marked_last = json_is_true(json_object_get(event, "degraded"));
    const char *name = json_string_value(json_object_get(event, "id"));
    snprintf(s->id, sizeof s->id, "%s", name ? name : "");
    json_t *ids = cluster_at(event, "choices.0.token_ids");
    size_t i;
    json_t *id;
    json_array_foreach(ids, i, id)
    {
        int64_t now_ns = clock_now_ns();
        CHECK(s->n_tokens < TOKENS);
        s->tokens[s->n_tokens++] = (int)json_integer_value(id);
        if (s->n_tokens > 1 && now_ns - s->last_ns > s->longest_ns)
            s->longest_ns = now_ns - s->last_ns;
        s->last_ns = now_ns;
        s->n_degraded += s->is_marked_last;
        if (s->n_tokens == ACT_AT && s->act)
            s->act(s->c);
    }
    json_decref(event);
}

static bool on_line(void *ud, struct str line)
{
    struct stream *s = ud;
    if (!str_has_prefix(line, STR("data: ")) || str_has_prefix(line, STR("data: [DONE]")))
        return true;
    char *text = mem_format("%.*s", (int)(line.len - 6), line.ptr + 6);
    take_event(s, text);
    mem_free(text);
    return true;
}

static void run_stream(struct cluster *c, struct stream *s)
{
    s->c = c;
    struct http_client *client = http_client_new();
    char *url = mem_format("%s%s", c->url, s->again[0] ? s->again : "/v1/completions");
    struct http_exchange x = {.url = url,
                              .body = s->again[0] ? NULL : BODY(",\"stream\":true"),
                              .timeout_ns = 60 * CLOCK_S,
                              .on_line = on_line,
                              .ud = s};
    struct err e = {0};
    int status = 0;
    struct buf answer = {0};
    if (http_exchange(client, &x, &status, &answer, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_INT(status, 200);
    CHECK_STR(s->trouble, "");
    CHECK_INT(s->n_tokens, TOKENS);
    buf_fini(&answer);
    mem_free(url);
    http_client_free(&client);
}

static void check_undisturbed(const char *what, struct cluster *c, void (*act)(struct cluster *c))
{
    struct stream calm = {0}, rough = {.act = act};
    run_stream(c, &calm);
    run_stream(c, &rough);
    test_say("%s: longest pause %.1f ms, %.1f ms undisturbed", what,
             (double)rough.longest_ns / CLOCK_MS, (double)calm.longest_ns / CLOCK_MS);
    CHECK_BYTES(rough.tokens, calm.tokens, sizeof(calm.tokens));
}

static const char *const two_copies[] = {"placement.replicas=2", NULL};

static void start_with_copies(struct cluster *c, int n_experts, const char *const *settings)
{
    cluster_start(c, n_experts, 0, settings);
    cluster_wait_value(c, "coverage.copies", 2 * EXPERTS, 40);
}

/* Another process in the place of expert-0, of which the faults are asked for. */
static void replace_by_a_faulty_one(struct cluster *c, const char *const *faults)
{
    cluster_kill(c, "expert-0", SIGKILL);
    int64_t deadline_ns = clock_now_ns() + 40 * CLOCK_S;
    for (long long copies = 2 * EXPERTS; copies == 2 * EXPERTS;) {
        json_t *root = cluster_ask_json(c, "/cluster", NULL);
        copies = json_integer_value(cluster_at(root, "coverage.copies"));
        json_decref(root);
        CHECK(clock_now_ns() < deadline_ns);
    }
    cluster_node_settings(faults);
    cluster_start_node(c, "expert_node", "expert-0");
    cluster_node_settings(NULL);
    cluster_wait_value(c, "coverage.copies", 2 * EXPERTS, 40);
}

/* Another stream in the same steps, longer than ours. */
static const char beside_body[] =
    "{\"prompt\":[3,1,4,1,5,9,2,6],\"max_tokens\":4000,\"temperature\":1,\"ignore_eos\":true}";

static void kill_one(struct cluster *c)
{
    cluster_kill(c, "expert-1", SIGKILL);
}

TEST_WITHIN(a_node_killed_while_an_answer_streams_costs_no_token, 120)
{
    struct cluster c;
    start_with_copies(&c, 4, two_copies);
    check_undisturbed("kill -9", &c, kill_one);
    cluster_stop(&c);
}

/* Another stream keeps steps at two rows, so that they go in two lanes; rounds of both are out when
 * the node dies. */
TEST_WITHIN(a_node_killed_under_two_lanes_costs_no_token, 120)
{
    static const char *const settings[] = {"placement.replicas=2", "attention.lanes=2", NULL};
    struct cluster c;
    start_with_copies(&c, 3, settings);
    struct stream alone = {0}, rough = {.act = kill_one};
    run_stream(&c, &alone);
    pid_t beside = cluster_ask_beside(&c, "/v1/completions", beside_body);
    cluster_wait_value(&c, "requests.running", 1, 20);
    run_stream(&c, &rough);
    CHECK(kill(beside, SIGKILL) == 0 && waitpid(beside, NULL, 0) == beside);
    CHECK_BYTES(rough.tokens, alone.tokens, sizeof(alone.tokens));
    CHECK_INT(cluster_ask(&c, "/metrics", NULL), 200);
    const char *at = strstr(c.answer.data, "polymath_steps_by_lanes_total{lanes=\"2\"} ");
    CHECK(at != NULL);
    long n_steps = strtol(strchr(at, ' '), NULL, 10);
    test_say("%ld steps in two lanes", n_steps);
    CHECK(n_steps > TOKENS - ACT_AT);
    cluster_stop(&c);
}

static void stop_one(struct cluster *c)
{
    cluster_kill(c, "expert-2", SIGSTOP);
}

TEST_WITHIN(a_node_stopped_while_an_answer_streams_costs_no_token, 120)
{
    struct cluster c;
    start_with_copies(&c, 3, two_copies);
    check_undisturbed("SIGSTOP", &c, stop_one);
    cluster_kill(&c, "expert-2", SIGCONT);
    struct stream after = {0};
    run_stream(&c, &after);
    cluster_stop(&c);
}

TEST_WITHIN(a_node_that_loses_answers_costs_no_token, 120)
{
    struct cluster c;
    static const char *const faults[] = {"fault.enabled=true", "fault.drop_one_in=40", NULL};
    start_with_copies(&c, 3, two_copies);
    struct stream calm = {0}, rough = {0};
    run_stream(&c, &calm);
    replace_by_a_faulty_one(&c, faults);
    run_stream(&c, &rough);
    test_say("lost answers: longest pause %.1f ms, %.1f ms undisturbed",
             (double)rough.longest_ns / CLOCK_MS, (double)calm.longest_ns / CLOCK_MS);
    CHECK_BYTES(rough.tokens, calm.tokens, sizeof(calm.tokens));
    cluster_stop(&c);
}

static bool is_logged(const char *what)
{
    struct buf log = cluster_log("coordinator");
    bool is_there = log.data && strstr(log.data, what);
    buf_fini(&log);
    return is_there;
}

/* Streams until the attention side has the table with the liar, and has found it out; each is
 * compared, if `calm` is not NULL. */
static void stream_until_found(struct cluster *c, const struct stream *calm)
{
    int64_t deadline_ns = clock_now_ns() + 40 * CLOCK_S;
    int n = 0;
    for (; !is_logged("ev=peer.wrong peer=\"expert-0\""); n++) {
        struct stream rough = {0};
        CHECK(clock_now_ns() < deadline_ns);
        run_stream(c, &rough);
        if (calm)
            CHECK_BYTES(rough.tokens, calm->tokens, sizeof(calm->tokens));
    }
    test_say("found in stream %d", n);
}

/* Every answer is confirmed before it counts: the client never sees a wrong token. */
TEST_WITHIN(a_node_that_lies_costs_no_token_where_every_answer_is_checked, 120)
{
    struct cluster c;
    static const char *const faults[] = {"fault.enabled=true", "fault.corrupt_one_in=3", NULL};
    static const char *const settings[] = {"placement.replicas=2", "round.verify_one_in=1", NULL};
    start_with_copies(&c, 3, settings);
    struct stream calm = {0}, after = {0};
    run_stream(&c, &calm);
    replace_by_a_faulty_one(&c, faults);
    stream_until_found(&c, &calm);
    CHECK(is_logged("ev=verify.mismatch"));
    CHECK(!is_logged("ev=peer.wrong peer=\"expert-1\""));
    CHECK(!is_logged("ev=peer.wrong peer=\"expert-2\""));
    run_stream(&c, &after);
    CHECK_BYTES(after.tokens, calm.tokens, sizeof(calm.tokens));
    cluster_stop(&c);
}

/* Samples find the liar; what came before was not known to be wrong, what comes after is right. */
TEST_WITHIN(a_node_that_lies_is_found_by_samples_and_asked_no_more, 120)
{
    struct cluster c;
    static const char *const faults[] = {"fault.enabled=true", "fault.corrupt_one_in=3", NULL};
    static const char *const settings[] = {"placement.replicas=2", "round.verify_one_in=16", NULL};
    start_with_copies(&c, 3, settings);
    struct stream calm = {0}, after = {0};
    run_stream(&c, &calm);
    replace_by_a_faulty_one(&c, faults);
    stream_until_found(&c, NULL);
    CHECK(is_logged("ev=session.doubted"));
    run_stream(&c, &after);
    CHECK_BYTES(after.tokens, calm.tokens, sizeof(calm.tokens));
    cluster_stop(&c);
}

/* One copy, and a node that dies: where the operator allows it the answer goes on without its
 * experts, and says so. */
TEST_WITHIN(an_answer_without_lost_experts_is_marked, 120)
{
    struct cluster c;
    static const char *const settings[] = {"placement.replicas=1", "round.degraded=true",
                                           "state.dir=state", NULL};
    cluster_start(&c, 3, 0, settings);
    cluster_wait_value(&c, "coverage.copies", EXPERTS, 40);
    struct stream calm = {0}, rough = {.act = kill_one};
    run_stream(&c, &calm);
    CHECK_INT(calm.n_degraded, 0);
    /* Where we stand still between a token and the kill, the answer is already whole. */
    for (int tries = 0; tries < 5 && rough.n_degraded == 0; tries++) {
        if (tries > 0) {
            cluster_start_node(&c, "expert_node", "expert-1");
            cluster_wait_value(&c, "coverage.copies", EXPERTS, 40);
            rough = (struct stream){.act = kill_one};
        }
        run_stream(&c, &rough);
    }
    CHECK(rough.n_degraded > 0 && rough.n_degraded <= TOKENS - ACT_AT);
    CHECK(rough.is_marked_last);
    CHECK_BYTES(rough.tokens, calm.tokens, ACT_AT * sizeof(calm.tokens[0]));
    CHECK(is_logged("ev=request.degraded"));
    CHECK(is_logged("ev=round.left_out"));
    char *url = mem_format("%s/metrics", c.url);
    struct http_client *client = http_client_new();
    struct buf metrics = {0};
    struct err e = {0};
    int status = 0;
    struct http_exchange x = {.url = url, .timeout_ns = 20 * CLOCK_S};
    CHECK_INT(http_exchange(client, &x, &status, &metrics, &e), 0);
    buf_append(&metrics, "", 1);
    CHECK_HAS(metrics.data, "polymath_requests_degraded_total 1\n");
    buf_fini(&metrics);
    http_client_free(&client);
    mem_free(url);
    /* The mark outlives the coordinator, and begins where it did. */
    cluster_kill(&c, "coordinator", SIGKILL);
    cluster_start_coordinator(&c);
    struct stream again = {0};
    snprintf(again.again, sizeof again.again, "/v1/streams/%s", rough.id);
    run_stream(&c, &again);
    CHECK_INT(again.n_degraded, rough.n_degraded);
    CHECK_BYTES(again.tokens, rough.tokens, sizeof(again.tokens));
    cluster_stop(&c);
}

TEST_WITHIN(faults_need_to_be_allowed, 30)
{
    static const char *const arguments[] = {"--set", "fault.drop_one_in=5", "--check-config", NULL};
    struct buf output = {0};
    CHECK_INT(cluster_run("expert_node", arguments, &output), 2);
    CHECK_HAS(output.data, "fault.enabled");
    buf_fini(&output);
}
