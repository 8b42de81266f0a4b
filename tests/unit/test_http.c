/* tests/unit/test_http.c - http.c against raw sockets: a trivial handler on a loop of its own
 * thread, and clients that behave badly. */
#include "coordinator/http.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/stats.h"
#include "base/thread.h"
#include "tests/lib/test.h"

/* What the handler does, by path:
 *   /echo    answers with method, path and body        /later   answers after 60 ms
 *   /never   keeps the exchange                        /stream  three pieces, then the end
 *   /flood   writes as long as less than LIMIT waits   /cut     begins, then aborts */
enum { MAX_BODY = 4096, FLOOD_LIMIT = 1 << 20, FLOOD_TOTAL = 16 << 20 };

struct server_side {
    struct thread *thread;
    struct loop *loop;
    struct http *http;
    struct http_exchange *later, *flood;
    struct loop_timer timer;
    size_t flooded;
    struct stats_counter gone, most_unread;
    int64_t request_ns;
    _Atomic int port;
};
/* Only where slowness is what is looked at may a request be late: our own machine stalls, too. */
static struct server_side server = {.request_ns = 60 * CLOCK_S};

static void echo(struct http_exchange *x, const struct http_message *m)
{
    struct buf b = {0};
    buf_printf(&b, "%s %s %zu:", m->method, m->path, m->body.len);
    buf_append_str(&b, m->body);
    http_add_header(x, "X-Test", "yes");
    http_reply(x, 200, "text/plain", buf_str(&b));
    buf_fini(&b);
}

static void on_request(void *ud, struct http_exchange *x, const struct http_message *m)
{
    struct server_side *s = ud;
    if (strcmp(m->path, "/later") == 0) {
        s->later = x;
        loop_set_timer(s->loop, &s->timer, clock_now_ns() + 60 * CLOCK_MS);
    } else if (strcmp(m->path, "/never") == 0) {
        http_set_user(x, s);
    } else if (strcmp(m->path, "/stream") == 0) {
        http_stream_begin(x, 200, "text/event-stream");
        http_stream_write(x, STR("one "));
        http_stream_write(x, STR("two "));
        http_stream_write(x, STR("three"));
        http_stream_end(x);
    } else if (strcmp(m->path, "/flood") == 0) {
        http_stream_begin(x, 200, "text/plain");
        s->flood = x;
        s->flooded = 0;
        loop_set_timer(s->loop, &s->timer, clock_now_ns());
    } else if (strcmp(m->path, "/cut") == 0) {
        http_stream_begin(x, 200, "text/plain");
        http_stream_write(x, STR("begun"));
        http_abort(x);
    } else {
        echo(x, m);
    }
}

static void on_gone(void *ud, struct http_exchange *x)
{
    struct server_side *s = ud;
    if (x == s->later)
        s->later = NULL;
    if (x == s->flood)
        s->flood = NULL;
    stats_add(&s->gone, 1);
}

static void on_refused(void *ud, const struct http_exchange *x, int status, const char *why,
                       struct buf *body)
{
    (void)ud;
    CHECK(http_path(x)[0] == '/');
    buf_printf(body, "{\"status\":%d,\"why\":\"%s\"}", status, why);
}

static void on_timer(void *ud, int64_t now_ns)
{
    struct server_side *s = ud;
    static char block[65536];
    if (s->later) {
        http_reply(s->later, 201, "text/plain", STR("late"));
        s->later = NULL;
    }
    if (!s->flood)
        return;
    size_t unread = http_stream_write(s->flood, (struct str){"", 0});
    while (unread < FLOOD_LIMIT && s->flooded < FLOOD_TOTAL) {
        memset(block, 'a' + (int)(s->flooded / sizeof block % 26), sizeof block);
        unread = http_stream_write(s->flood, (struct str){block, sizeof block});
        s->flooded += sizeof block;
    }
    if ((int64_t)unread > stats_read(&s->most_unread))
        stats_add(&s->most_unread, (int64_t)unread - stats_read(&s->most_unread));
    if (s->flooded >= FLOOD_TOTAL) {
        http_stream_end(s->flood);
        s->flood = NULL;
        return;
    }
    loop_set_timer(s->loop, &s->timer, now_ns + CLOCK_MS);
}

static int open_server(struct server_side *s, int port, struct err *e)
{
    struct http_options o = {.host = "127.0.0.1",
                             .port = port,
                             .max_body_bytes = MAX_BODY,
                             .max_connections = 100,
                             .idle_timeout_ns = 60 * CLOCK_S,
                             .request_ns = s->request_ns,
                             .on_request = on_request,
                             .on_gone = on_gone,
                             .on_refused = on_refused,
                             .ud = s};
    return http_open(s->loop, &o, &s->http, e);
}

static void server_main(struct thread *t, void *arg)
{
    struct server_side *s = arg;
    struct err e = {0};
    int rc = loop_open(&s->loop, &e);
    s->timer = (struct loop_timer){.deadline_ns = CLOCK_NEVER, .cb = on_timer, .ud = s};
    if (rc == 0)
        rc = open_server(s, 0, &e);
    if (rc == 0)
        s->port = http_port(s->http);
    thread_ready(t, rc, &e);
    if (rc < 0)
        return;
    while (!thread_should_stop(t))
        loop_turn(s->loop, clock_now_ns() + 10 * CLOCK_MS);
    http_close(&s->http);
    if (s->timer.added)
        loop_remove_timer(s->loop, &s->timer);
    loop_close(&s->loop);
}

static void begin(void)
{
    struct err e = {0};
    if (thread_start("http", server_main, &server, &server.thread, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

static void finish(void)
{
    thread_stop(&server.thread, NULL, NULL);
}

/* ---- a client ------------------------------------------------------------------------- */

static int dial(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)server.port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

static void say(int fd, const char *text)
{
    size_t n = strlen(text);
    CHECK_INT(send(fd, text, n, MSG_NOSIGNAL), n);
}

static struct buf heard;

/* Reads until `part` has come, the peer has closed (NULL: wait for that), or 10 s. */
static bool hear(int fd, const char *part)
{
    int64_t deadline = clock_now_ns() + 10 * CLOCK_S;
    char chunk[65536];
    for (;;) {
        if (part && heard.len && strstr(heard.data, part))
            return true;
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, clock_left_ms(deadline, clock_now_ns(), 10000)) <= 0)
            return false;
        ssize_t n = recv(fd, chunk, sizeof chunk, 0);
        if (n <= 0)
            return !part;
        buf_append(&heard, chunk, (size_t)n);
    }
}

static const char *ask(const char *request, const char *until)
{
    buf_reset(&heard);
    int fd = dial();
    say(fd, request);
    if (!hear(fd, until))
        test_fail(__FILE__, __LINE__, "no \"%s\" in \"%s\"", until ? until : "(end)",
                  heard.len ? heard.data : "");
    close(fd);
    return heard.data;
}

static void wait_gone(int64_t n)
{
    int64_t deadline = clock_now_ns() + 10 * CLOCK_S;
    while (stats_read(&server.gone) < n && clock_now_ns() < deadline)
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
    CHECK_INT(stats_read(&server.gone), n);
}

TEST(http_answers_and_keeps_the_connection)
{
    begin();
    int fd = dial();
    for (int i = 0; i < 3; i++) {
        buf_reset(&heard);
        say(fd, "POST /echo?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        CHECK(hear(fd, "POST /echo 2:hi"));
        CHECK_HAS(heard.data, "HTTP/1.1 200");
        CHECK_HAS(heard.data, "X-Test: yes");
    }
    close(fd);
    finish();
}

TEST(http_takes_a_request_byte_by_byte)
{
    begin();
    buf_reset(&heard);
    int fd = dial();
    for (const char *p = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde"; *p;
         p++)
        say(fd, (char[]){*p, 0});
    CHECK(hear(fd, "POST /echo 5:abcde"));
    close(fd);
    finish();
}

TEST(http_takes_chunked_bodies)
{
    begin();
    ask("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        "POST /echo 5:abcde");
    finish();
}

TEST(http_answers_later)
{
    begin();
    ask("GET /later HTTP/1.1\r\nHost: a\r\n\r\n", "late");
    CHECK_HAS(heard.data, "HTTP/1.1 201");
    finish();
}

TEST(http_streams)
{
    begin();
    ask("GET /stream HTTP/1.1\r\nHost: a\r\n\r\n", "0\r\n\r\n");
    CHECK_HAS(heard.data, "Transfer-Encoding: chunked");
    CHECK_HAS(heard.data, "one two three");
    /* An old client gets the stream, ended by the end of the connection. */
    ask("GET /stream HTTP/1.0\r\n\r\n", NULL);
    CHECK_HAS(heard.data, "one two three");
    finish();
}

TEST(http_refuses_long_bodies_with_413)
{
    begin();
    ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4097\r\n\r\n", "\"status\":413");
    CHECK_HAS(heard.data, "HTTP/1.1 413");
    CHECK_HAS(heard.data, "application/json");
    struct buf chunked = {0};
    buf_puts(&chunked, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 5; i++) {
        buf_puts(&chunked, "400\r\n");
        for (int k = 0; k < 1024; k++)
            buf_putc(&chunked, 'x');
        buf_puts(&chunked, "\r\n");
    }
    buf_puts(&chunked, "0\r\n\r\n");
    ask(chunked.data, "\"status\":413");
    buf_fini(&chunked);
    ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", "1:x");
    finish();
}

TEST(http_refuses_two_lengths_and_a_length_with_an_encoding)
{
    begin();
    ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "more than one Content-Length");
    CHECK_HAS(heard.data, "HTTP/1.1 400");
    ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        "0\r\n\r\n",
        "Content-Length and Transfer-Encoding together");
    CHECK_HAS(heard.data, "HTTP/1.1 400");
    CHECK_HAS(heard.data, "Connection: close");
    finish();
}

TEST(http_survives_nonsense)
{
    static const char *const nonsense[] = {
        "\r\n\r\n\r\n",
        "GARBAGE\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    };
    begin();
    for (size_t i = 0; i < sizeof nonsense / sizeof nonsense[0]; i++) {
        int fd = dial();
        say(fd, nonsense[i]);
        close(fd);
    }
    ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", "1:x");
    finish();
}

TEST(http_bounds_headers)
{
    begin();
    struct buf b = {0};
    buf_puts(&b, "GET /echo HTTP/1.1\r\nHost: a\r\nX: ");
    for (int i = 0; i < 60000; i++)
        buf_putc(&b, 'x');
    buf_puts(&b, "\r\n\r\n");
    ask(b.data, "HTTP/1.1 431");
    buf_fini(&b);
    finish();
}

/* Byte after byte: each comes soon, and the whole never. */
static bool drip(int fd, const char *until)
{
    int64_t deadline_ns = clock_now_ns() + 10 * CLOCK_S;
    while (clock_now_ns() < deadline_ns) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 10) > 0)
            return hear(fd, until);
        (void)!send(fd, "x", 1, MSG_NOSIGNAL);
    }
    return false;
}

TEST(http_ends_requests_that_come_too_slowly)
{
    server.request_ns = CLOCK_S; /* longer than a stall between dialling and the first words */
    begin();
    int held = dial();
    say(held, "GET /never HTTP/1.1\r\nHost: a\r\n\r\n");
    int body = dial();
    say(body, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\n");
    int header = dial();
    say(header, "GET /echo HTTP/1.1\r\nHost: a\r\nX: ");
    buf_reset(&heard);
    CHECK(drip(body, "\"status\":408"));
    CHECK_HAS(heard.data, "HTTP/1.1 408 Request Timeout\r\n");
    CHECK(drip(header, NULL));
    /* Who waits for an answer has all the time of the world. */
    struct pollfd p = {.fd = held, .events = POLLIN};
    CHECK_INT(poll(&p, 1, 200), 0);
    ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", "1:x");
    close(body);
    close(header);
    close(held);
    finish();
}

TEST(http_tells_those_who_are_too_many)
{
    begin();
    int fds[100];
    for (int i = 0; i < 100; i++)
        fds[i] = dial();
    say(fds[0], "GET /never HTTP/1.1\r\nHost: a\r\n\r\n");
    ask("GET /echo HTTP/1.1\r\nHost: a\r\n\r\n", "\"status\":503");
    CHECK_HAS(heard.data, "\r\nRetry-After: 1\r\n");
    for (int i = 1; i < 100; i++)
        close(fds[i]);
    /* Room again, and who was there is still. */
    int64_t deadline = clock_now_ns() + 10 * CLOCK_S;
    do
        ask("GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", NULL);
    while (!strstr(heard.data, "GET /echo 0:") && clock_now_ns() < deadline);
    CHECK_HAS(heard.data, "GET /echo 0:");
    struct pollfd p = {.fd = fds[0], .events = POLLIN};
    CHECK_INT(poll(&p, 1, 0), 0);
    close(fds[0]);
    finish();
}

TEST(http_notices_a_hang_up_while_waiting)
{
    begin();
    int fd = dial();
    say(fd, "GET /never HTTP/1.1\r\nHost: a\r\n\r\n");
    /* Another client's answer shows that the first request has been taken. */
    ask("GET /later HTTP/1.1\r\nHost: a\r\n\r\n", "late");
    CHECK_INT(stats_read(&server.gone), 0);
    close(fd);
    wait_gone(1);
    finish();
}

TEST(http_notices_a_hang_up_in_a_stream)
{
    begin();
    int fd = dial();
    say(fd, "GET /flood HTTP/1.1\r\nHost: a\r\n\r\n");
    buf_reset(&heard);
    CHECK(hear(fd, "aaaa"));
    close(fd);
    wait_gone(1);
    finish();
}

TEST(http_holds_no_more_for_a_slow_reader_than_was_written)
{
    begin();
    int fd = dial();
    int small = 1 << 16;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    say(fd, "GET /flood HTTP/1.0\r\n\r\n");
    /* Not reading: the writer is told what piles up, and stops by itself. */
    int64_t deadline = clock_now_ns() + 10 * CLOCK_S;
    while (stats_read(&server.most_unread) < FLOOD_LIMIT && clock_now_ns() < deadline)
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
    CHECK(stats_read(&server.most_unread) >= FLOOD_LIMIT);
    CHECK(stats_read(&server.most_unread) < FLOOD_LIMIT + 65536 + 1);
    /* Reading: everything comes, in order. */
    buf_reset(&heard);
    CHECK(hear(fd, NULL));
    const char *body = strstr(heard.data, "\r\n\r\n") + 4;
    CHECK_INT(heard.len - (size_t)(body - heard.data), FLOOD_TOTAL);
    for (size_t i = 0; i < FLOOD_TOTAL; i += 4096)
        CHECK_INT(body[i], 'a' + (int)(i / 65536 % 26));
    close(fd);
    finish();
}

TEST(http_aborts)
{
    begin();
    ask("GET /cut HTTP/1.1\r\nHost: a\r\n\r\n", NULL);
    CHECK(heard.len == 0 || !strstr(heard.data, "0\r\n\r\n"));
    CHECK_INT(stats_read(&server.gone), 0); /* it was us */
    finish();
}

TEST(http_closes_with_requests_in_every_state)
{
    begin();
    int fds[3] = {dial(), dial(), dial()};
    say(fds[0], "GET /never HTTP/1.1\r\nHost: a\r\n\r\n");
    say(fds[1], "GET /flood HTTP/1.1\r\nHost: a\r\n\r\n");
    say(fds[2], "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhal");
    ask("GET /later HTTP/1.1\r\nHost: a\r\n\r\n", "late");
    finish();
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    CHECK_INT(stats_read(&server.gone), 0);
}

TEST(http_says_when_the_port_is_taken)
{
    struct err e = {0};
    begin();
    struct server_side second = {0};
    CHECK_INT(loop_open(&second.loop, &e), 0);
    CHECK_INT(open_server(&second, server.port, &e), E_EXISTS);
    CHECK_HAS(e.text, "in use");
    CHECK(second.http == NULL);
    loop_close(&second.loop);
    finish();
}
