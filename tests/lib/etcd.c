/* tests/lib/etcd.c - see etcd.h. */
#include "tests/lib/etcd.h"

#include <sodium.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

static int ask(const struct local_etcd *t, const char *path, const char *body, struct buf *answer)
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

static void start(struct local_etcd *t)
{
    struct err e = {0};
    if (local_etcd_start(t, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

void etcd_again(struct local_etcd *t)
{
    int64_t deadline_ns = clock_now_ns() + 30 * CLOCK_S;
    struct http_client *client = http_client_new();
    start(t);
    while (!local_etcd_answers(t, client)) {
        if (clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "etcd does not answer: see etcd.log");
        clock_sleep_until(clock_now_ns() + 20 * CLOCK_MS);
    }
    http_client_free(&client);
}

static void choose(struct local_etcd *t, bool is_secured)
{
    const char *missing = local_etcd_missing();
    if (missing)
        test_skip("%s", missing);
    *t = (struct local_etcd){.dir = ".", .host = "127.0.0.1", .is_secured = is_secured};
}

void etcd_begin(struct local_etcd *t)
{
    choose(t, false);
    etcd_again(t);
}

void etcd_begin_secured(struct local_etcd *t)
{
    choose(t, true);
    start(t);
}

void etcd_end(struct local_etcd *t)
{
    CHECK(t->pid > 0);
    local_etcd_kill(t);
}

static int ask_about(const struct local_etcd *t, const char *path, const char *key,
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

void etcd_wait_key(const struct local_etcd *t, const char *key)
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

void etcd_delete(const struct local_etcd *t, const char *key)
{
    struct buf answer = {0};
    CHECK_INT(ask_about(t, "/v3/kv/deleterange", key, &answer), 200);
    buf_fini(&answer);
}
