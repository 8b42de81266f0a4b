/* tests/lib/etcd.c - see etcd.h. */
#include "tests/lib/etcd.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

static const char program[] = "/usr/bin/etcd";

int etcd_free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&a, size) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&a, &size) == 0);
    close(fd);
    return ntohs(a.sin_port);
}

static int ask(const struct test_etcd *t, const char *path, const char *body, struct buf *answer)
{
    struct http_client *client = http_client_new();
    char *url = mem_format("%s%s", t->url, path);
    int status = 0;
    struct http_exchange x = {.url = url, .body = body, .timeout_ns = CLOCK_S};
    if (http_exchange(client, &x, &status, answer, NULL) < 0)
        status = 0;
    mem_free(url);
    http_client_free(&client);
    return status;
}

static void wait_until_it_answers(const struct test_etcd *t)
{
    int64_t deadline_ns = clock_now_ns() + 30 * CLOCK_S;
    struct buf answer = {0};
    while (ask(t, "/v3/kv/range", "{\"key\":\"AA==\"}", &answer) != 200) {
        if (clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "etcd does not answer: see etcd.log");
        clock_sleep_until(clock_now_ns() + 20 * CLOCK_MS);
    }
    buf_fini(&answer);
}

static void spawn(struct test_etcd *t)
{
    char *peer = mem_format("http://127.0.0.1:%d", t->peer_port);
    char *cluster = mem_format("default=%s", peer);
    t->pid = fork();
    CHECK(t->pid >= 0);
    if (t->pid == 0) {
        int fd = open("etcd.log", O_WRONLY | O_CREAT | O_APPEND, 0644);
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* One argument is NULL for an open etcd, and ends the list. */
        const char *keys = t->is_secured ? "--cert-file=server.pem" : NULL;
        execl(program, program, "--data-dir", "etcd.data", "--listen-client-urls", t->url,
              "--advertise-client-urls", t->url, "--listen-peer-urls", peer,
              "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster,
              "--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap",
              "--log-level", "warn", keys, "--key-file=server.key", "--trusted-ca-file=ca.pem",
              "--client-cert-auth", (char *)NULL);
        _exit(127);
    }
    mem_free(cluster);
    mem_free(peer);
}

void etcd_again(struct test_etcd *t)
{
    spawn(t);
    wait_until_it_answers(t);
}

static void choose_ports(struct test_etcd *t, bool is_secured)
{
    *t = (struct test_etcd){.is_secured = is_secured};
    if (access(program, X_OK) != 0)
        test_skip("%s is missing: deploy/install-debian.sh installs etcd-server", program);
    t->client_port = etcd_free_port();
    t->peer_port = etcd_free_port();
    snprintf(t->url, sizeof t->url, "http%s://127.0.0.1:%d", is_secured ? "s" : "", t->client_port);
}

void etcd_begin(struct test_etcd *t)
{
    choose_ports(t, false);
    etcd_again(t);
}

void etcd_begin_secured(struct test_etcd *t)
{
    choose_ports(t, true);
    spawn(t);
}

void etcd_end(struct test_etcd *t)
{
    CHECK(t->pid > 0 && kill(t->pid, SIGKILL) == 0);
    CHECK(waitpid(t->pid, NULL, 0) == t->pid);
    t->pid = 0;
}

static int ask_about(const struct test_etcd *t, const char *path, const char *key,
                     struct buf *answer)
{
    char text[512];
    sodium_bin2base64(text, sizeof text, (const unsigned char *)key, strlen(key),
                      sodium_base64_VARIANT_ORIGINAL);
    char *body = mem_format("{\"key\":\"%s\"}", text);
    int status = ask(t, path, body, answer);
    mem_free(body);
    return status;
}

void etcd_wait_key(const struct test_etcd *t, const char *key)
{
    int64_t deadline_ns = clock_now_ns() + 30 * CLOCK_S;
    struct buf answer = {0};
    for (;;) {
        buf_reset(&answer);
        if (ask_about(t, "/v3/kv/range", key, &answer) == 200 && strstr(answer.data, "\"kvs\""))
            break;
        if (clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "etcd never had %s", key);
        clock_sleep_until(clock_now_ns() + 20 * CLOCK_MS);
    }
    buf_fini(&answer);
}

void etcd_delete(const struct test_etcd *t, const char *key)
{
    struct buf answer = {0};
    CHECK_INT(ask_about(t, "/v3/kv/deleterange", key, &answer), 200);
    buf_fini(&answer);
}
