/* tests/cluster/test_keys.c - a cluster with keys over TCP: the same bits, and nobody who should
 * not be there; API keys on HTTP. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "rpc/auth.h"
#include "rpc/channel.h"
#include "rpc/wire.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

#define QUESTION \
    "{\"prompt\":[5,6,7,8],\"max_tokens\":12,\"temperature\":0,\"ignore_eos\":true," \
    "\"return_token_ids\":true,\"return_logits_hash\":true}"

static void polymath(const char *const *arguments, struct buf *output)
{
    struct buf own = {0};
    int code = cluster_run("polymath", arguments, output ? output : &own);
    if (code != 0)
        test_fail(__FILE__, __LINE__, "polymath %s ended with %d: %s", arguments[1], code,
                  (output ? output : &own)->data);
    buf_fini(&own);
}
#define POLYMATH(output, ...) polymath((const char *const[]){__VA_ARGS__, NULL}, output)

/* Ids and hashes of one greedy answer. */
static void ask(struct cluster *c, struct buf *out)
{
    json_t *root = cluster_ask_json(c, "/v1/completions", QUESTION);
    char *ids = json_dumps(cluster_at(root, "choices.0.token_ids"), JSON_COMPACT);
    char *hashes = json_dumps(cluster_at(root, "choices.0.logits_hashes"), JSON_COMPACT);
    CHECK(ids && hashes && strlen(hashes) > 30);
    buf_reset(out);
    buf_printf(out, "%s %s", ids, hashes);
    free(ids);
    free(hashes);
    json_decref(root);
}

static void check_same(struct cluster *c, const struct buf *want)
{
    struct buf got = {0};
    ask(c, &got);
    CHECK_STR(got.data, want->data);
    buf_fini(&got);
}

/* Starts a node with these settings beside the usual ones; `more` may be NULL. */
static void start_node_with(struct cluster *c, const char *program, const char *name,
                            const char *key, const char *server_key, const char *more)
{
    char endpoint[256];
    cluster_endpoint("coordinator", "ev=cluster.listening", endpoint, sizeof endpoint);
    char *coordinator = mem_format("coordinator.endpoint=%s", endpoint);
    char *key_file = mem_format("security.key_file=%s", key);
    char *server = mem_format("security.server_key=%s", server_key);
    const char *settings[] = {
        "node.listen=tcp://127.0.0.1:0", coordinator, key_file, server, more, NULL};
    if (!key[0])
        settings[2] = NULL;
    cluster_node_settings(settings);
    cluster_start_node(c, program, name);
    cluster_node_settings(NULL);
    mem_free(coordinator);
    mem_free(key_file);
    mem_free(server);
}

static void start_node(struct cluster *c, const char *program, const char *name, const char *key,
                       const char *server_key)
{
    start_node_with(c, program, name, key, server_key, NULL);
}

static const char *const with_keys[] = {"cluster.listen=tcp://127.0.0.1:0",
                                        "security.key_file=coordinator.key",
                                        "security.allow_file=allow", "placement.rejoin_ms=0", NULL};

static void make_keys(void)
{
    POLYMATH(NULL, "keys", "new", "coordinator", "expert-0", "expert-1", "expert-2", "attn-0",
             "stranger");
    POLYMATH(NULL, "keys", "allow", "allow", "expert-0.pub", "expert-1.pub", "expert-2.pub",
             "attn-0.pub");
}

/* What a cluster without keys answers. */
static void answer_without_keys(struct buf *out)
{
    struct cluster c;
    cluster_start(&c, 1, 0, NULL);
    ask(&c, out);
    cluster_stop(&c);
    /* The next cluster's lines are waited for. */
    CHECK_INT(unlink("coordinator.log"), 0);
    CHECK_INT(unlink("expert-0.log"), 0);
}

TEST_WITHIN(a_cluster_with_keys_answers_with_the_same_bits, 120)
{
    struct cluster c;
    struct buf want = {0};
    answer_without_keys(&want);
    make_keys();
    cluster_launch(&c, 0, 0, with_keys);
    start_node(&c, "expert_node", "expert-0", "expert-0.key", "coordinator.pub");
    start_node(&c, "expert_node", "expert-1", "expert-1.key", "coordinator.pub");
    cluster_wait_ready(&c, 40);
    check_same(&c, &want);
    CHECK_INT(cluster_ask(&c, "/metrics", NULL), 200);
    CHECK_HAS(c.answer.data, "polymath_auth_keys 4");
    /* On a busy machine a connection may break and come back. */
    const char *accepted = strstr(c.answer.data, "\npolymath_auth_accepted_total ");
    CHECK(accepted && atoi(strchr(accepted, ' ')) >= 2);
    cluster_stop(&c);
    buf_fini(&want);
}

/* The expert nodes' list has nobody but the coordinator: it names the attention node to them. */
TEST_WITHIN(an_attention_node_is_let_in_by_expert_nodes, 120)
{
    struct cluster c;
    struct buf want = {0};
    answer_without_keys(&want);
    make_keys();
    const char *settings[8] = {"attention.embedded=false"};
    for (int i = 0; with_keys[i]; i++)
        settings[1 + i] = with_keys[i];
    cluster_launch(&c, 0, 0, settings);
    start_node(&c, "expert_node", "expert-0", "expert-0.key", "coordinator.pub");
    start_node(&c, "expert_node", "expert-1", "expert-1.key", "coordinator.pub");
    start_node(&c, "attn_node", "attn-0", "attn-0.key", "coordinator.pub");
    cluster_wait_ready(&c, 40);
    check_same(&c, &want);
    struct buf log = cluster_log("expert-0");
    CHECK_HAS(log.data, "ev=auth.callers keys=1");
    buf_fini(&log);
    cluster_stop(&c);
    buf_fini(&want);
}

/* Likewise a node that lends, and the side that borrows. */
TEST_WITHIN(an_attention_node_is_let_in_by_nodes_that_lend, 120)
{
    struct cluster c;
    make_keys();
    const char *settings[8] = {"attention.embedded=false"};
    for (int i = 0; with_keys[i]; i++)
        settings[1 + i] = with_keys[i];
    cluster_launch(&c, 0, 0, settings);
    start_node(&c, "expert_node", "expert-0", "expert-0.key", "coordinator.pub");
    start_node_with(&c, "attn_node", "attn-0", "attn-0.key", "coordinator.pub",
                    "attention.borrows=true");
    cluster_wait_ready(&c, 40);
    start_node_with(&c, "attn_node", "lender", "expert-1.key", "coordinator.pub",
                    "attention.lends=true");
    cluster_wait_log("attn-0", "ev=context.opened name=lender");
    struct buf log = cluster_log("lender"), got = {0};
    CHECK_HAS(log.data, "ev=auth.callers keys=1");
    buf_fini(&log);
    ask(&c, &got);
    buf_fini(&got);
    cluster_stop(&c);
}

TEST_WITHIN(strangers_are_refused_counted_and_named_while_others_go_on, 120)
{
    struct cluster c;
    struct buf want = {0};
    make_keys();
    cluster_launch(&c, 0, 0, with_keys);
    start_node(&c, "expert_node", "expert-0", "expert-0.key", "coordinator.pub");
    cluster_wait_ready(&c, 40);
    ask(&c, &want);

    start_node(&c, "expert_node", "unlisted", "stranger.key", "coordinator.pub");
    cluster_wait_log("coordinator", "ev=auth.refused why=unknown_key");
    cluster_wait_log("unlisted", "ev=channel.refused peer=\"coordinator\"");
    check_same(&c, &want);
    start_node(&c, "expert_node", "keyless", "", "");
    cluster_wait_log("keyless", "ev=channel.refused peer=\"coordinator\"");
    check_same(&c, &want);
    start_node(&c, "expert_node", "misled", "expert-1.key", "expert-0.pub");
    cluster_wait_log("coordinator", "ev=auth.refused why=crypto");
    cluster_wait_log("misled", "ev=channel.refused peer=\"coordinator\"");
    check_same(&c, &want);
    CHECK_INT(cluster_ask(&c, "/cluster", NULL), 200);
    CHECK(!strstr(c.answer.data, "unlisted") && !strstr(c.answer.data, "keyless") &&
          !strstr(c.answer.data, "misled"));
    CHECK_INT(cluster_ask(&c, "/metrics", NULL), 200);
    CHECK(!strstr(c.answer.data, "auth_refused_total{reason=\"crypto\"} 0"));
    CHECK(!strstr(c.answer.data, "auth_refused_total{reason=\"unknown_key\"} 0"));

    /* Put on the list it comes in, without anybody's restart. */
    POLYMATH(NULL, "keys", "allow", "allow", "stranger.pub");
    cluster_wait_log("coordinator", "ev=node.joined name=unlisted");
    check_same(&c, &want);
    cluster_stop(&c);
    buf_fini(&want);
}

/* It is told so where its connection holds, and ends.  If that broke meanwhile (a machine that stalls), it stays
 * outside like any stranger, and we end it. */
static bool end_of_revoked(struct cluster *c)
{
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 120 : 30) * CLOCK_S;
    for (;;) {
        struct buf log = cluster_log("expert-1");
        bool was_told = strstr(log.data, "ev=member.refused");
        bool is_outside = strstr(log.data, "ev=channel.refused peer=\"coordinator\"");
        if (!was_told && !is_outside && clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "expert-1 was not refused: %s", log.data);
        buf_fini(&log);
        for (int i = 0; i < c->n_processes && is_outside && !was_told; i++)
            if (strcmp(c->processes[i].name, "expert-1") == 0)
                CHECK(kill(c->processes[i].pid, SIGKILL) == 0);
        if (was_told || is_outside)
            return was_told;
        clock_sleep_until(clock_now_ns() + 10 * CLOCK_MS);
    }
}

TEST_WITHIN(a_revoked_node_is_thrown_out_and_the_rest_goes_on, 120)
{
    struct cluster c;
    struct buf want = {0};
    make_keys();
    cluster_launch(&c, 0, 0, with_keys);
    start_node(&c, "expert_node", "expert-0", "expert-0.key", "coordinator.pub");
    start_node(&c, "expert_node", "expert-1", "expert-1.key", "coordinator.pub");
    cluster_wait_ready(&c, 40);
    ask(&c, &want);
    POLYMATH(NULL, "keys", "revoke", "allow", "expert-1");
    cluster_wait_log("coordinator", "ev=auth.refused why=");
    cluster_wait_log("coordinator", "ev=node.gone name=expert-1");
    bool was_told = end_of_revoked(&c);
    for (int i = 0; i < c.n_processes; i++) {
        struct cluster_process *p = &c.processes[i];
        int status;
        if (strcmp(p->name, "expert-1") != 0)
            continue;
        CHECK(waitpid(p->pid, &status, 0) == p->pid);
        CHECK(!was_told || (WIFEXITED(status) && WEXITSTATUS(status) == 1));
        p->pid = 0;
    }
    cluster_wait_ready(&c, 40);
    check_same(&c, &want);
    cluster_stop(&c);
    buf_fini(&want);
}

/* ---- one member against another ----------------------------------------------------------- */

struct heard {
    int n, code;
    char text[256];
};

static void on_reply(void *ud, const struct reply *r)
{
    struct heard *h = ud;
    h->n++;
    h->code = r->code;
    snprintf(h->text, sizeof h->text, "%s", r->text);
}

static struct heard call(struct channel *c, int method, const struct buf *message)
{
    struct heard h = {0};
    struct call call = {.method = wire_method(WIRE_CLUSTER, method),
                        .message = message,
                        .deadline_ns = clock_now_ns() + 20 * CLOCK_S,
                        .done = on_reply,
                        .ud = &h};
    while (channel_call(c, &call, NULL) == E_UNAVAILABLE && clock_now_ns() < call.deadline_ns)
        channel_wait(&c, 1, -1, clock_now_ns() + 10 * CLOCK_MS, 0);
    while (h.n == 0 && clock_now_ns() < call.deadline_ns)
        channel_wait(&c, 1, -1, call.deadline_ns, 0);
    CHECK_INT(h.n, 1);
    return h;
}

TEST_WITHIN(a_node_cannot_speak_for_another, 120)
{
    struct cluster c;
    struct buf want = {0}, message = {0};
    struct err e = {0};
    make_keys();
    cluster_launch(&c, 0, 0, with_keys);
    start_node(&c, "expert_node", "expert-0", "expert-0.key", "coordinator.pub");
    cluster_wait_ready(&c, 40);
    ask(&c, &want);
    json_t *root = cluster_ask_json(&c, "/cluster", NULL), *nodes = cluster_at(root, "nodes");
    uint32_t id = 0;
    for (size_t i = 0; i < json_array_size(nodes); i++)
        if (strcmp(json_string_value(json_object_get(json_array_get(nodes, i), "name")),
                   "expert-0") == 0)
            id = (uint32_t)json_integer_value(json_object_get(json_array_get(nodes, i), "id"));
    CHECK(id > 0);
    json_decref(root);

    /* A member with a key of its own, and bad intentions. */
    struct auth *auth = NULL;
    struct channel *channel = NULL;
    char endpoint[256];
    cluster_endpoint("coordinator", "ev=cluster.listening", endpoint, sizeof endpoint);
    struct auth_options a = {
        .key_file = "expert-1.key", .server_key = "coordinator.pub", .is_client_only = true};
    CHECK_INT(auth_start(&a, &auth, &e), 0);
    struct channel_options o = {.endpoint = endpoint,
                                .peer_name = "coordinator",
                                .auth = auth,
                                .server_key = auth_server_key(auth)};
    CHECK_INT(channel_open(&o, &channel, &e), 0);

    struct wire_join join = {.name = "expert-9",
                             .endpoint = "tcp://127.0.0.1:9",
                             .incarnation = 1,
                             .expert_bytes = 1,
                             .memory_bytes = 1000};
    CHECK_INT(key_public_of("expert-0.pub", join.public_key, &e), 0);
    wire_join_encode(&join, &message);
    struct heard h = call(channel, CLUSTER_JOIN, &message);
    CHECK_INT(h.code, E_DENIED);
    CHECK_HAS(h.text, "did not prove");
    join.public_key[0] = '\0';
    wire_join_encode(&join, &message);
    CHECK_INT(call(channel, CLUSTER_JOIN, &message).code, E_DENIED);
    wire_heartbeat_encode(&(struct wire_heartbeat){.node_id = id, .state = NODE_DRAINING},
                          &message);
    CHECK_INT(call(channel, CLUSTER_HEARTBEAT, &message).code, E_DENIED);
    wire_leave_encode(&(struct wire_leave){.node_id = id}, &message);
    CHECK_INT(call(channel, CLUSTER_LEAVE, &message).code, E_DENIED);
    wire_holdings_request_encode(&(struct wire_holdings_request){id}, &message);
    CHECK_INT(call(channel, CLUSTER_HOLDINGS, &message).code, E_DENIED);
    check_same(&c, &want);

    channel_close(&channel);
    auth_stop(&auth);
    cluster_stop(&c);
    buf_fini(&message);
    buf_fini(&want);
}

TEST_WITHIN(nothing_binds_beyond_loopback_without_keys, 60)
{
    char *model = mem_format("model.path=%s", cluster_model());
    static const struct {
        const char *program, *setting, *why;
    } cases[] = {
        {"coordinator", "cluster.listen=tcp://0.0.0.0:0", "security.key_file"},
        {"coordinator", "http.host=0.0.0.0", "security.api_keys_file"},
        {"expert_node", "node.listen=tcp://0.0.0.0:0", "security.insecure = true"},
        {"attn_node", "node.listen=tcp://*:0", "security.insecure = true"},
        {"expert_node", "security.key_file=nowhere.key", "security.server_key is missing"},
        {"coordinator", "security.key_file=nowhere.key", "security.allow_file is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct buf output = {0};
        const char *const arguments[] = {"--set", model, "--set", cases[i].setting, NULL};
        int code = cluster_run(cases[i].program, arguments, &output);
        CHECK(code == 1 || code == 2);
        CHECK_HAS(output.data, cases[i].why);
        buf_fini(&output);
    }
    mem_free(model);
}

/* ---- HTTP ------------------------------------------------------------------------------------- */

static int ask_as(struct cluster *c, const char *path, const char *body, const char *header)
{
    const char *const headers[] = {header, NULL};
    struct http_client *client = http_client_new();
    char *url = mem_format("%s%s", c->url, path);
    struct http_exchange x = {
        .url = url, .body = body, .timeout_ns = 60 * CLOCK_S, .headers = header ? headers : NULL};
    struct err e = {0};
    if (http_exchange(client, &x, &c->status, &c->answer, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    mem_free(url);
    http_client_free(&client);
    return c->status;
}

static void new_api_key(const char *header, const char *name, const char *limit, char *out,
                        size_t bytes)
{
    struct buf output = {0};
    POLYMATH(&output, "keys", "api", "new", "--name", name, limit);
    const char *key = strstr(output.data, "pm-");
    CHECK(key && strlen(key) == 47); /* with its line feed, and last */
    snprintf(out, bytes, "%s%.46s", header, key);
    buf_fini(&output);
}

TEST_WITHIN(clients_need_keys_when_there_are_keys, 120)
{
    char limited[128], admin[128];
    new_api_key("Authorization: Bearer ", "limited", "--requests=2", limited, sizeof limited);
    new_api_key("x-api-key: ", "ops", "--admin", admin, sizeof admin);
    static const char *const settings[] = {"security.api_keys_file=api_keys", NULL};
    struct cluster c;
    cluster_start(&c, 1, 0, settings); /* /ready is open */

    CHECK_INT(ask_as(&c, "/health", NULL, NULL), 200);
    CHECK_INT(ask_as(&c, "/v1/models", NULL, NULL), 401);
    CHECK_HAS(c.answer.data, "\"code\":\"invalid_api_key\"");
    CHECK_INT(ask_as(&c, "/v1/completions", QUESTION, NULL), 401);
    CHECK_INT(ask_as(&c, "/v1/completions", QUESTION, "Authorization: Bearer pm-wrong"), 401);
    CHECK_INT(ask_as(&c, "/nowhere", NULL, NULL), 401);
    CHECK_INT(ask_as(&c, "/metrics", NULL, NULL), 401);
    CHECK_INT(ask_as(&c, "/metrics", NULL, limited), 403);
    CHECK_INT(ask_as(&c, "/cluster", NULL, limited), 403);
    CHECK_INT(ask_as(&c, "/admin/drain", NULL, limited), 403);
    CHECK_INT(ask_as(&c, "/v1/models", NULL, limited), 200);

    CHECK_INT(ask_as(&c, "/v1/completions", QUESTION, limited), 200);
    CHECK_INT(ask_as(&c, "/v1/completions", QUESTION, limited), 200);
    CHECK_INT(ask_as(&c, "/v1/completions", QUESTION, limited), 429);
    CHECK_HAS(c.answer.data, "\"code\":\"rate_limit_exceeded\"");
    CHECK_HAS(c.answer.data, "2 requests per minute");
    CHECK_INT(ask_as(&c, "/v1/completions", QUESTION, admin), 200); /* another key, no limit */

    CHECK_INT(ask_as(&c, "/metrics", NULL, admin), 200);
    CHECK_HAS(c.answer.data, "polymath_api_requests_total{key=\"limited\"} 2");
    CHECK_HAS(c.answer.data, "polymath_api_tokens_total{key=\"ops\"} 16");
    CHECK_HAS(c.answer.data, "polymath_api_limited_total 1");
    CHECK_HAS(c.answer.data, "polymath_api_denied_total 3");

    POLYMATH(NULL, "keys", "api", "revoke", "--name", "limited");
    int64_t deadline_ns = clock_now_ns() + 30 * CLOCK_S;
    while (ask_as(&c, "/v1/models", NULL, limited) != 401 && clock_now_ns() < deadline_ns)
        clock_sleep_until(clock_now_ns() + 20 * CLOCK_MS);
    CHECK_INT(c.status, 401);
    CHECK_INT(ask_as(&c, "/v1/models", NULL, admin), 200);
    cluster_stop(&c);
}
