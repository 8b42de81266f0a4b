/* tests/cluster/test_reading.c - while a body is read that takes long, the others are answered; a client that
 * leaves meanwhile costs nothing; whoever drains waits for it. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"

/* Of one letter: the slowest thing to tokenise, and more than any context takes. */
enum { LONG_BYTES = 4 << 20, MEANWHILE = 3, PATIENCE_MS = 60000 };

/* Draining lasts for as long as a slow machine reads. */
static const char *const settings[] = {"http.max_body=8MiB", "http.drain_ms=60000", NULL};

static int dial(const struct cluster *c)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons((uint16_t)atoi(strrchr(c->url, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

/* All of a POST is with the kernel. */
static int post(const struct cluster *c, const char *path, struct str body)
{
    struct buf text = {0};
    int fd = dial(c);
    buf_printf(&text,
               "POST %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n",
               path, body.len);
    buf_append_str(&text, body);
    for (size_t at = 0; at < text.len;) {
        ssize_t n = send(fd, text.data + at, text.len - at, MSG_NOSIGNAL);
        CHECK(n > 0);
        at += (size_t)n;
    }
    buf_fini(&text);
    return fd;
}

static bool has_come(int fd, int ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, ms) == 1;
}

/* What has come so far, or all until the end. */
static struct buf hear(int fd, bool to_the_end)
{
    struct buf heard = {0};
    char chunk[65536];
    while (has_come(fd, to_the_end ? PATIENCE_MS : 0)) {
        ssize_t n = recv(fd, chunk, sizeof chunk, 0);
        if (n <= 0)
            break;
        buf_append(&heard, chunk, (size_t)n);
    }
    buf_putc(&heard, '\0');
    return heard;
}

static void check_refused(int fd)
{
    struct buf answer = hear(fd, true);
    CHECK_HAS(answer.data, "HTTP/1.1 400 ");
    CHECK_HAS(answer.data, "context_length_exceeded");
    buf_fini(&answer);
    close(fd);
}

/* Returns while it is being read.  What was over before we looked is refused, counted, and sent again. */
static int post_long(struct cluster *c, int *n_refused)
{
    struct buf body = {0};
    buf_puts(&body, "{\"messages\":[{\"role\":\"user\",\"content\":\"");
    for (int i = 0; i < LONG_BYTES; i++)
        buf_putc(&body, 'a');
    buf_puts(&body, "\"}]}");
    int fd = post(c, "/v1/chat/completions", buf_str(&body));
    int64_t deadline_ns = clock_now_ns() + PATIENCE_MS * CLOCK_MS;
    for (bool is_read = false; !is_read;) {
        json_t *root = cluster_ask_json(c, "/cluster", NULL);
        is_read = json_integer_value(cluster_at(root, "requests.reading")) == 1;
        json_decref(root);
        CHECK(clock_now_ns() < deadline_ns);
        if (is_read || !has_come(fd, 10))
            continue;
        check_refused(fd);
        ++*n_refused;
        fd = post(c, "/v1/chat/completions", buf_str(&body));
    }
    buf_fini(&body);
    return fd;
}

TEST_WITHIN(reading_a_long_body_keeps_nobody_waiting, 120)
{
    static const char stream[] = "{\"prompt\":[5,17,40],\"max_tokens\":4000,\"ignore_eos\":true,"
                                 "\"return_token_ids\":true,\"stream\":true}";
    static const char one[] = "{\"prompt\":[9,3],\"max_tokens\":1,\"ignore_eos\":true}";
    struct cluster c;
    cluster_start(&c, 1, 0, settings);
    /* A loop that reads it itself answers nobody before that is refused.  If it is we who stand still, another
     * try shows it. */
    int n = 0, n_refused = 0;
    for (int tries = 0; n < MEANWHILE && tries < 10; tries++) {
        int other = post(&c, "/v1/completions", str_of(stream));
        CHECK(has_come(other, PATIENCE_MS));
        int fd = post_long(&c, &n_refused);
        struct buf before = hear(other, false);
        for (n = 0; n < MEANWHILE && !has_come(fd, 0); n++) {
            CHECK_INT(cluster_ask(&c, "/v1/completions", one), 200);
            CHECK(has_come(other, PATIENCE_MS));
            struct buf more = hear(other, false);
            CHECK_HAS(more.data, "data: ");
            buf_fini(&more);
        }
        buf_fini(&before);
        check_refused(fd);
        close(other);
    }
    CHECK_INT(n, MEANWHILE);
    cluster_wait_value(&c, "requests.running", 0, 20);
    cluster_stop(&c);
}

TEST_WITHIN(reading_for_a_client_that_left_costs_nothing, 120)
{
    struct cluster c;
    cluster_start(&c, 1, 0, settings);
    int n_refused = 0, tries = 0, n_cancelled = 0;
    for (; n_cancelled == 0 && tries < 10; tries++) {
        close(post_long(&c, &n_refused));
        cluster_wait_value(&c, "requests.reading", 0, PATIENCE_MS / 1000);
        n_cancelled = (int)cluster_metric(&c, "polymath_requests_total{outcome=\"cancelled\"}");
    }
    CHECK_INT(n_cancelled, 1);
    CHECK_INT(cluster_metric(&c, "polymath_requests_total{outcome=\"refused\"}"),
              n_refused + tries - 1); /* which were read before we left */
    CHECK_INT(cluster_metric(&c, "polymath_prompt_tokens_total"), 0);
    cluster_stop(&c);
}

TEST_WITHIN(reading_ends_before_the_coordinator_does, 120)
{
    struct cluster c;
    cluster_start(&c, 1, 0, settings);
    int n_refused = 0, fd = post_long(&c, &n_refused);
    cluster_kill(&c, "coordinator", SIGTERM);
    check_refused(fd);
    cluster_stop(&c);
}
