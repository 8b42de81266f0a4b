/* tests/cluster/test_hostile.c - clients that send nonsense, too much, too slowly or too often: each is refused in the
 * form of its API, and an answer that is made meanwhile is as it would be without them. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file_limit.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"

enum { MAX_CONNECTIONS = 64, CROWD = 1500 };

/* ---- nonsense ----------------------------------------------------------------------------- */

static const char chat[] = "/v1/chat/completions", messages[] = "/v1/messages",
                  completions[] = "/v1/completions", responses[] = "/v1/responses";

#define HELLO "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"
static const struct {
    const char *path, *body, *names; /* what the message speaks of */
} nonsense[] = {
    {chat, "\x16\x03\x01\x02\xff\xfe", "JSON"},
    {chat, "{\"messages\":\"\xff\xff\"}", "JSON"},
    {chat, "[]", "object"},
    {chat, "{" HELLO "} {}", "JSON"},
    {chat, "{\"messages\":[{\"role\":\"wizard\",\"content\":\"x\"}]}", "wizard"},
    {chat, "{\"messages\":[{\"role\":\"tool\",\"tool_call_id\":\"c\",\"content\":\"x\"}]}", "tool"},
    {chat, "{" HELLO ",\"top_logprobs\":3}", "logprobs"},
    {chat, "{" HELLO ",\"stream_options\":{}}", "stream"},
    {chat, "{" HELLO ",\"max_tokens\":5,\"max_completion_tokens\":6}", "contradict"},
    {chat, "{" HELLO ",\"tool_choice\":\"required\"}", "tool"},
    {chat, "{" HELLO ",\"n\":1000000}", "n must be"},
    {chat,
     "{" HELLO ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":"
     "{\"type\":\"nothing\"}}}}",
     "type"},
    {completions, "{\"prompt\":[1],\"best_of\":2,\"n\":3}", "best_of"},
    {completions, "{\"prompt\":{}}", "prompt"},
    {responses, "{\"input\":5}", "input"},
    {messages, "{\"max_tokens\":5," HELLO, "JSON"},
    {messages, "{" HELLO "}", "max_tokens"},
    {messages, "{\"max_tokens\":5,\"messages\":[{\"role\":\"wizard\",\"content\":\"x\"}]}", "role"},
    {messages,
     "{\"max_tokens\":5,\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"tool_result\","
     "\"tool_use_id\":\"t\",\"content\":\"x\"}]}]}",
     "tool"},
    {messages, "\x80\x81\x82", "JSON"},
};

/* The answer is an error in the form that the path's clients know, and speaks of `names`. */
static void check_form(struct cluster *c, const char *path, const char *names)
{
    json_t *v = json_loadb(c->answer.data, c->answer.len, 0, NULL);
    if (!v || c->status < 400 || c->status >= 500)
        test_fail(__FILE__, __LINE__, "%s: %d %.200s", path, c->status, c->answer.data);
    bool is_anthropic = strcmp(path, messages) == 0;
    if (is_anthropic)
        CHECK_STR(json_string_value(json_object_get(v, "type")), "error");
    else
        CHECK(cluster_at(v, "error.param") && cluster_at(v, "error.code"));
    CHECK(json_is_string(cluster_at(v, "error.type")));
    CHECK_HAS(json_string_value(cluster_at(v, "error.message")), names);
    json_decref(v);
}

static void send_nonsense(struct cluster *c)
{
    for (size_t i = 0; i < sizeof nonsense / sizeof nonsense[0]; i++) {
        test_note("%s %s", nonsense[i].path, nonsense[i].body);
        cluster_ask(c, nonsense[i].path, nonsense[i].body);
        check_form(c, nonsense[i].path, nonsense[i].names);
    }
    static const char *const paths[] = {chat, messages, completions, responses};
    struct buf deep = {0}, large = {0};
    for (int i = 0; i < 100000; i++)
        buf_puts(&deep, "{\"a\":[");
    for (int i = 0; i < 70000; i++)
        buf_putc(&large, ' ');
    for (int i = 0; i < 4; i++) {
        cluster_ask(c, paths[i], large.data);
        CHECK_INT(c->status, 413);
        check_form(c, paths[i], "larger");
        deep.data[60000] = '\0'; /* under the limit */
        cluster_ask(c, paths[i], deep.data);
        check_form(c, paths[i], "");
    }
    buf_fini(&deep);
    buf_fini(&large);
}

/* ---- raw connections ------------------------------------------------------------------------ */

/* Without waiting for it to be accepted. */
static int dial(const struct cluster *c)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons((uint16_t)atoi(strrchr(c->url, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK(connect(fd, (struct sockaddr *)&a, sizeof a) == 0 || errno == EINPROGRESS);
    return fd;
}

/* All that comes until the other side closes, with a byte every 20 ms meanwhile. */
static struct buf drip(int fd, const char *begin)
{
    struct buf heard = {0};
    int64_t deadline_ns = clock_now_ns() + 20 * CLOCK_S;
    CHECK(send(fd, begin, strlen(begin), MSG_NOSIGNAL) > 0);
    for (;;) {
        char chunk[4096];
        struct pollfd p = {.fd = fd, .events = POLLIN};
        CHECK(clock_now_ns() < deadline_ns);
        if (poll(&p, 1, 20) == 0) {
            (void)!send(fd, "x", 1, MSG_NOSIGNAL);
            continue;
        }
        ssize_t n = recv(fd, chunk, sizeof chunk, 0);
        if (n <= 0)
            break;
        buf_append(&heard, chunk, (size_t)n);
    }
    buf_putc(&heard, '\0');
    close(fd);
    return heard;
}

static int dialled(const struct cluster *c)
{
    int fd = dial(c);
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    CHECK_INT(poll(&p, 1, 10000), 1);
    return fd;
}

static void be_slow(const struct cluster *c)
{
    struct buf header = drip(dialled(c), "POST /v1/messages HTTP/1.1\r\nHost: a\r\nX: ");
    CHECK_STR(header.data, "");
    struct buf body = drip(dialled(c), "POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: "
                                       "60000\r\n\r\n{");
    CHECK_HAS(body.data, "HTTP/1.1 408 ");
    CHECK_HAS(body.data,
              "\r\n\r\n{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\"");
    buf_fini(&header);
    buf_fini(&body);
}

/* More than are taken: who asks is told so (or is cut off, if its request comes late in the crowd), and
 * when they are gone everything is as before. */
static void come_in_crowds(struct cluster *c)
{
    long room = file_limit_raise() - 200;
    const char *more = getenv("POLYMATH_CROWD"); /* 10000, for instance */
    int n = more ? atoi(more) : CROWD;
    n = room < n ? (int)room : n;
    int *fds = mem_array((size_t)n, sizeof *fds);
    for (int i = 0; i < n; i++)
        fds[i] = dial(c);
    int status = 0;
    for (int i = 0; i < 50 && status != 503; i++)
        status = cluster_try(c, "/health", NULL);
    CHECK_INT(status, 503);
    CHECK_HAS(c->answer.data, "too_many_connections");
    for (int i = 0; i < n; i++)
        close(fds[i]);
    mem_free(fds);
    int64_t deadline_ns = clock_now_ns() + 20 * CLOCK_S;
    while (cluster_try(c, "/health", NULL) != 200)
        CHECK(clock_now_ns() < deadline_ns);
    test_say("%d connections came, %d are taken", n, MAX_CONNECTIONS);
}

/* ---- the others ------------------------------------------------------------------------------ */

static const char others[] = "{\"prompt\":[5,17,40,200,31,7],\"max_tokens\":400,\"temperature\":1,"
                             "\"seed\":3,\"ignore_eos\":true,\"return_token_ids\":true}";

static char *ids_of(struct cluster *c)
{
    CHECK_INT(cluster_ask(c, completions, others), 200);
    json_t *v = json_loadb(c->answer.data, c->answer.len, JSON_ALLOW_NUL, NULL);
    CHECK(v != NULL);
    char *ids = json_dumps(cluster_at(v, "choices.0.token_ids"), JSON_COMPACT);
    json_decref(v);
    return ids;
}

TEST_WITHIN(hostile_clients_are_refused_and_the_others_never_notice, 120)
{
    static const char *const settings[] = {"http.max_body=64KiB", "http.max_connections=64",
                                           "http.request_ms=1500", NULL};
    struct cluster c;
    cluster_start(&c, 1, 0, settings);
    char *alone = ids_of(&c);
    pid_t other = fork();
    CHECK(other >= 0);
    if (other == 0) {
        char *beside = ids_of(&c);
        _exit(strcmp(beside, alone) == 0 ? 0 : 1);
    }
    cluster_wait_prompt_tokens(&c, 2 * 6);
    send_nonsense(&c);
    be_slow(&c);
    come_in_crowds(&c);
    int status;
    CHECK(waitpid(other, &status, 0) == other);
    CHECK_INT(status, 0);
    free(alone);
    cluster_stop(&c);
}
