/* tests/cluster/test_faults.c - what goes wrong outside: dead nodes, bad requests, garbage
 * on the wire, wrong command lines.  One clear error each, and the next request is served. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "rpc/link.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"

#define ONE_TOKEN \
    "{\"prompt\":[5,17,9],\"max_tokens\":4,\"temperature\":0,\"return_token_ids\":true}"

static char *ids_of(struct cluster *c)
{
    json_t *root = cluster_ask_json(c, "/v1/completions", ONE_TOKEN);
    char *text = json_dumps(cluster_at(root, "choices.0.token_ids"), JSON_COMPACT);
    json_decref(root);
    CHECK(text);
    return text;
}

TEST_WITHIN(the_only_expert_node_killed_fails_requests_until_it_is_back, 90)
{
    struct cluster c;
    static const char *const settings[] = {"request.patience_ms=500", "round.wait_ms=300", NULL};
    cluster_start(&c, 1, 0, settings);
    char *before = ids_of(&c);
    cluster_kill(&c, "expert-0", SIGKILL);

    int status = cluster_ask(&c, "/v1/completions", ONE_TOKEN);
    CHECK_INT(status, 503);
    CHECK_HAS(c.answer.data, "expert");
    test_say("answer while expert-0 is dead: %s", c.answer.data);
    cluster_wait_not_ready(&c, 10);
    CHECK_INT(cluster_ask(&c, "/health", NULL), 200);

    cluster_start_node(&c, "expert_node", "expert-0");
    cluster_wait_ready(&c, 30);
    char *after = ids_of(&c);
    CHECK_STR(after, before);
    free(before);
    free(after);
    cluster_stop(&c);
}

TEST_WITHIN(survivors_take_over_when_a_node_stays_away, 90)
{
    struct cluster c;
    static const char *const settings[] = {"placement.rejoin_ms=300", NULL};
    cluster_start(&c, 3, 0, settings);
    char *before = ids_of(&c);
    cluster_kill(&c, "expert-2", SIGKILL);
    cluster_wait_log("coordinator", "ev=node.gone name=expert-2");
    cluster_wait_ready(&c, 30);
    char *after = ids_of(&c);
    CHECK_STR(after, before);
    free(before);
    free(after);
    cluster_stop(&c);
}

/* The coordinator does not wait for the lease: whoever's connection broke tells it at once. */
TEST_WITHIN(experts_without_copies_are_read_again_long_before_the_lease, 90)
{
    struct cluster c;
    static const char *const settings[] = {"placement.replicas=1", "cluster.lease_ms=60000",
                                           "request.patience_ms=40000", NULL};
    cluster_start(&c, 2, 0, settings);
    char *before = ids_of(&c);
    cluster_kill(&c, "expert-1", SIGKILL);
    int64_t begun_ns = clock_now_ns();
    char *after = ids_of(&c);
    int64_t took_ns = clock_now_ns() - begun_ns;
    CHECK_STR(after, before);
    struct buf log = cluster_log("coordinator");
    CHECK_HAS(log.data, "its heartbeat did not come");
    test_say("answered %lld ms after the death of half of the experts; the lease is 60 s",
             (long long)(took_ns / CLOCK_MS));
    CHECK(took_ns < 30 * CLOCK_S);
    buf_fini(&log);
    free(before);
    free(after);
    cluster_stop(&c);
}

TEST_WITHIN(a_node_that_joins_takes_its_share, 90)
{
    struct cluster c;
    cluster_start(&c, 1, 0, NULL);
    char *before = ids_of(&c);
    cluster_wait_value(&c, "coverage.live", 3 * 256, 10);
    cluster_start_node(&c, "expert_node", "expert-1");
    int64_t deadline = clock_now_ns() + 40 * CLOCK_S;
    /* About a half: the planner weighs experts by how often the first answer chose them. */
    const long long all = 3 * 256, least = all * 9 / 20;
    for (long long held[2] = {0}; held[0] + held[1] != all || held[0] < least || held[1] < least;) {
        json_t *root = cluster_ask_json(&c, "/cluster", NULL);
        json_t *nodes = cluster_at(root, "nodes");
        for (size_t i = 0; i < json_array_size(nodes); i++) {
            json_t *node = json_array_get(nodes, i);
            const char *name = json_string_value(json_object_get(node, "name"));
            if (strncmp(name, "expert-", 7) == 0)
                held[name[7] - '0'] = json_integer_value(json_object_get(node, "experts_held"));
        }
        json_decref(root);
        if (clock_now_ns() > deadline)
            test_fail(__FILE__, __LINE__, "the experts are shared %lld to %lld", held[0], held[1]);
        clock_sleep_until(clock_now_ns() + 50 * CLOCK_MS);
    }
    char *after = ids_of(&c);
    CHECK_STR(after, before);
    free(before);
    free(after);
    cluster_stop(&c);
}

struct bad_request {
    const char *path, *body;
    int status;
    const char *says;
};

static const struct bad_request bad_requests[] = {
    {"/v1/chat/completions", "{\"messages\":", 400, "JSON"},
    {"/v1/chat/completions", "[]", 400, "object"},
    {"/v1/chat/completions", "{}", 400, "messages"},
    {"/v1/chat/completions", "{\"messages\":[]}", 400, "messages"},
    {"/v1/chat/completions", "{\"messages\":[{\"role\":\"alien\",\"content\":\"x\"}]}", 400,
     "role"},
    {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":7}]}", 400, "content"},
    {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}", 400,
     ""},
    {"/v1/chat/completions",
     "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]}",
     400, "image"},
    {"/v1/completions", "{\"prompt\":[]}", 400, "prompt"},
    {"/v1/completions", "{\"prompt\":\"\"}", 400, "prompt"},
    {"/v1/completions", "{\"prompt\":[99999999]}", 400, "99999999"},
    {"/v1/completions", "{\"prompt\":[-1]}", 400, "-1"},
    {"/v1/completions", "{\"prompt\":[5],\"max_tokens\":0}", 400, "max_tokens"},
    {"/v1/completions", "{\"prompt\":[5],\"max_tokens\":-3}", 400, "max_tokens"},
    {"/v1/completions", "{\"prompt\":[5],\"max_tokens\":1000000000000}", 400, "max_tokens"},
    {"/v1/completions", "{\"prompt\":[5],\"max_tokens\":\"many\"}", 400, "max_tokens"},
    {"/v1/completions", "{\"prompt\":[5],\"temperature\":-1}", 400, "temperature"},
    {"/v1/completions", "{\"prompt\":[5],\"temperature\":1e999}", 400, ""},
    {"/v1/completions", "{\"prompt\":[5],\"top_p\":2}", 400, "top_p"},
    {"/v1/completions", "{\"prompt\":[5],\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\"]}", 400,
     "stop"},
    {"/v1/completions", "{\"prompt\":[5],\"n\":1000}", 400, "n"},
    {"/v1/completions", "{\"prompt\":[5],\"model\":\"gpt-5\"}", 404, "gpt-5"},
    {"/v1/nothing", "{}", 404, ""},
    {"/v1/chat/completions", NULL, 405, ""},
};

TEST(bad_requests_get_one_clear_error_each)
{
    struct cluster c;
    cluster_start(&c, 1, 0, NULL);
    for (size_t i = 0; i < sizeof bad_requests / sizeof bad_requests[0]; i++) {
        const struct bad_request *b = &bad_requests[i];
        int status = cluster_ask(&c, b->path, b->body);
        if (status != b->status)
            test_fail(__FILE__, __LINE__, "%s %s: HTTP %d, expected %d: %s", b->path, b->body,
                      status, b->status, c.answer.data);
        CHECK_HAS(c.answer.data, "\"error\"");
        CHECK_HAS(c.answer.data, b->says);
    }
    /* a prompt over the context, and a deeply nested body */
    struct buf long_body = {0};
    buf_puts(&long_body, "{\"max_tokens\":1,\"prompt\":[1");
    for (int i = 0; i < 5000; i++)
        buf_puts(&long_body, ",1");
    buf_puts(&long_body, "]}");
    CHECK_INT(cluster_ask(&c, "/v1/completions", long_body.data), 400);
    CHECK_HAS(c.answer.data, "context");
    buf_reset(&long_body);
    for (int i = 0; i < 100000; i++)
        buf_putc(&long_body, '[');
    CHECK_INT(cluster_ask(&c, "/v1/completions", long_body.data), 400);
    buf_fini(&long_body);

    free(ids_of(&c));
    CHECK_INT(cluster_ask(&c, "/metrics", NULL), 200);
    cluster_stop(&c);
}

/* Frames that are cut short, oversized, empty, random, with wrong counts. */
static void send_garbage(const char *endpoint, struct rng *r)
{
    struct link *l = NULL;
    struct err e = {0};
    struct link_options o = {.role = LINK_CLIENT, .endpoint = endpoint};
    if (link_open(&o, &l, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s: %s", endpoint, e.text);
    int64_t deadline = clock_now_ns() + 10 * CLOCK_S;
    while (!link_is_connected(l)) {
        CHECK(clock_now_ns() < deadline);
        link_wait(&l, 1, -1, clock_now_ns() + 10 * CLOCK_MS, 0);
        link_next_event(l);
    }
    static uint8_t bytes[70000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)rng_next(r);
    for (int i = 0; i < 300; i++) {
        struct frame frames[LINK_MAX_FRAMES];
        int n = 1 + (int)rng_below(r, LINK_MAX_FRAMES);
        for (int k = 0; k < n; k++) {
            size_t size = rng_below(r, 20) ? rng_below(r, 200) : rng_below(r, sizeof bytes);
            frames[k] = (struct frame){bytes + rng_below(r, sizeof bytes - size), size};
        }
        link_send(l, &(struct link_send){.frames = frames, .n_frames = n});
        struct message m = {0};
        while (link_receive(l, &m) == 0)
            message_fini(&m);
        link_wait(&l, 1, -1, clock_now_ns() + CLOCK_MS, 0);
    }
    link_close(&l);
}

TEST(garbage_frames_cost_their_sender_only)
{
    struct cluster c;
    cluster_start(&c, 2, 1, NULL);
    char *before = ids_of(&c);
    struct rng r = test_rng();
    char endpoint[LINK_ENDPOINT_BYTES];
    send_garbage("ipc://cluster.sock", &r);
    cluster_endpoint("expert-0", "ev=node.listening", endpoint, sizeof endpoint);
    send_garbage(endpoint, &r);
    cluster_endpoint("attn-0", "ev=node.listening", endpoint, sizeof endpoint);
    send_garbage(endpoint, &r);
    char *after = ids_of(&c);
    CHECK_STR(after, before);
    free(before);
    free(after);
    cluster_stop(&c);
}

/* Not a ZeroMQ peer at all: raw bytes at the HTTP port. */
TEST(raw_bytes_at_the_http_port_are_survived)
{
    struct cluster c;
    cluster_start(&c, 1, 0, NULL);
    int port = 0;
    CHECK(sscanf(strrchr(c.url, ':'), ":%d", &port) == 1);
    static const char *const openings[] = {
        "\0\0\0\0", "GET / HTTP/9.9\r\n\r\n", "POST /v1/completions",
        "GET /\x01\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        ("POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
         "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")};
    for (size_t i = 0; i < sizeof openings / sizeof openings[0]; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        struct sockaddr_in address = {.sin_family = AF_INET,
                                      .sin_port = htons((uint16_t)port),
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
        CHECK(write(fd, openings[i], i ? strlen(openings[i]) : 4) > 0);
        close(fd);
    }
    free(ids_of(&c));
    cluster_stop(&c);
}

struct command {
    const char *program;
    const char *arguments[10];
    int exit_code;
    const char *says;
};

static const struct command commands[] = {
    {"coordinator", {"--version"}, 0, "0.1.0"},
    {"expert_node", {"--version"}, 0, "0.1.0"},
    {"attn_node", {"--version"}, 0, "0.1.0"},
    {"coordinator", {"--help"}, 0, "http.port"},
    {"expert_node", {"--help"}, 0, "memory.bytes"},
    {"attn_node", {"--help"}, 0, "attention.max_rows"},
    {"coordinator", {"--set", "http.prot=1"}, 2, "http.port"},
    {"coordinator", {"--set", "http.port=99999"}, 2, "http.port"},
    {"expert_node", {"--dump-config"}, 0, "memory"},
    {"expert_node", {}, 2, "model.path"},
    {"expert_node", {"--set", "model.path=/nowhere"}, 1, "/nowhere"},
    {"attn_node", {"--set", "model.path=/nowhere"}, 1, "/nowhere"},
    {"coordinator", {"--set", "model.path=/nowhere"}, 1, "/nowhere"},
    {"coordinator", {"-c", "/nowhere.cfg"}, 2, "/nowhere.cfg"},
    {"polymath", {"--version"}, 0, "0.1.0"},
    {"polymath", {"frobnicate"}, 2, "frobnicate"},
    {"polymath", {"generate"}, 2, "--model"},
    {"polymath", {"generate", "--model", "/nowhere", "--ids", "1"}, 1, "/nowhere"},
    {"polymath", {"synth", "--preset", "giant", "--out", "x"}, 2, "giant"},
    {"polymath", {"up"}, 2, "--model"},
    {"polymath", {"status", "--url", "http://127.0.0.1:1"}, 1, "127.0.0.1"},
};

TEST(command_lines_answer_or_refuse_in_one_sentence)
{
    struct buf output = {0};
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        const struct command *k = &commands[i];
        buf_reset(&output);
        int code = cluster_run(k->program, k->arguments, &output);
        if (code != k->exit_code || !output.data || !strstr(output.data, k->says))
            test_fail(__FILE__, __LINE__, "%s %s: exit code %d, expected %d and '%s': %s",
                      k->program, k->arguments[0] ? k->arguments[0] : "", code, k->exit_code,
                      k->says, output.data ? output.data : "");
    }
    buf_fini(&output);
}

TEST(logits_to_a_full_device_say_so_and_leave_it_there)
{
    CHECK(symlink("/dev/full", "full") == 0);
    const char *const arguments[] = {"logits", "--model", cluster_model(), "--ids",
                                     "1,2",    "--out",   "full",          NULL};
    struct buf output = {0};
    CHECK_INT(cluster_run("polymath", arguments, &output), 1);
    CHECK_HAS(output.data, "No space left");
    struct stat st;
    CHECK(lstat("full", &st) == 0);
    buf_fini(&output);
}

TEST(shipped_configurations_are_accepted)
{
    static const char *const files[][2] = {
        {"coordinator", "coordinator.cfg"},    {"expert_node", "expert_node.cfg"},
        {"attn_node", "attn_node.cfg"},        {"coordinator", "local/coordinator.cfg"},
        {"expert_node", "local/expert-0.cfg"}, {"expert_node", "local/expert-1.cfg"},
        {"expert_node", "local/expert-2.cfg"}, {"expert_node", "local/expert-3.cfg"}};
    struct buf output = {0};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char *path = mem_format("%s/configs/%s", test_source_dir(), files[i][1]);
        const char *const arguments[] = {
            "-c", path, "--set", "model.path=models/demo", "--check-config", NULL};
        buf_reset(&output);
        if (cluster_run(files[i][0], arguments, &output) != 0)
            test_fail(__FILE__, __LINE__, "%s: %s", path, output.data);
        mem_free(path);
    }
    buf_fini(&output);
}

TEST(a_port_in_use_is_one_sentence)
{
    struct cluster c;
    cluster_launch(&c, 0, 0, NULL);
    char *port = mem_format("http.port%s", strrchr(c.url, ':'));
    port[strlen("http.port")] = '=';
    char *model = mem_format("model.path=%s", cluster_model());
    const char *const arguments[] = {
        "--set", port, "--set", model, "--set", "cluster.listen=ipc://other.sock", NULL};
    struct buf output = {0};
    CHECK_INT(cluster_run("coordinator", arguments, &output), 1);
    CHECK_HAS(output.data, "in use");
    mem_free(port);
    mem_free(model);
    buf_fini(&output);
    cluster_stop(&c);
}

/* ---- nodes that do not match ------------------------------------------------------------- */

/* Starts the program with one setting of its own; it must end with 1 and say this. */
static void check_refused(const char *program, const char *model, const char *own, const char *says)
{
    char *path = mem_format("model.path=%s", model);
    const char *const arguments[] = {"--set", path,
                                     "--set", "node.name=other",
                                     "--set", "node.listen=ipc://other.sock",
                                     "--set", "coordinator.endpoint=ipc://cluster.sock",
                                     "--set", own,
                                     NULL};
    struct buf output = {0};
    int code = cluster_run(program, arguments, &output);
    if (code != 1 || !strstr(output.data, says))
        test_fail(__FILE__, __LINE__, "%s with %s ended with %d: %s", program, own, code,
                  output.data);
    buf_fini(&output);
    mem_free(path);
}

/* Another model, other weights, another way to add up: refused by the field's name, and the
 * cluster does not notice.  (Other protocol versions: unit/members_refuse...; strangers and
 * wrong keys: test_keys.c; a second coordinator: test_resume.c.) */
TEST_WITHIN(nodes_that_do_not_match_are_refused_by_the_fields_name, 90)
{
    static const char *const synth[] = {
        "synth", "--preset", "m2-tiny", "--seed", "8", "--set", "num_hidden_layers=3",
        "--out", "model",    NULL};
    static const char *const programs[] = {"expert_node", "attn_node"};
    struct cluster c;
    struct buf output = {0};
    CHECK_INT(cluster_run("polymath", synth, &output), 0);
    buf_fini(&output);
    cluster_start(&c, 1, 0, NULL);
    for (int i = 0; i < 2; i++) {
        check_refused(programs[i], "model", "log.level=info", "fingerprint");
        check_refused(programs[i], c.model, "weights.combine=expert",
                      "weights.combine: other uses expert, the coordinator fixed");
        check_refused(programs[i], c.model, "weights.format=q8", "weights.format: other uses q8");
    }
    CHECK_INT(cluster_ask(&c, "/metrics", NULL), 200);
    CHECK_HAS(c.answer.data, "polymath_joins_refused_total 6");
    free(ids_of(&c));
    cluster_stop(&c);
}
