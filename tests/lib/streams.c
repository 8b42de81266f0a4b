/* tests/lib/streams.c - see streams.h. */
#include "tests/lib/streams.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

struct follower {
    const char *urls[STREAMS_MAX_URLS];
    int at;
    struct buf ids, events;
    char name[64];
    unsigned long long last_event;
    bool is_done;
    int64_t last_ns, gap_ns;
    FILE *progress;
};

static bool on_line(void *ud, struct str line)
{
    struct follower *f = ud;
    if (str_has_prefix(line, STR("id: "))) {
        f->last_event = strtoull(line.ptr + 4, NULL, 10);
        buf_printf(&f->events, "%llu,", f->last_event);
    }
    f->is_done |= str_equal(line, STR("data: [DONE]"));
    if (!str_has_prefix(line, STR("data: {")))
        return true;
    int64_t now_ns = clock_now_ns();
    if (f->last_ns && now_ns - f->last_ns > f->gap_ns)
        f->gap_ns = now_ns - f->last_ns;
    f->last_ns = now_ns;
    json_t *event = json_loadb(line.ptr + 6, line.len - 6, JSON_ALLOW_NUL, NULL);
    CHECK(event);
    const char *name = json_string_value(json_object_get(event, "id"));
    if (!name)
        test_fail(__FILE__, __LINE__, "%.*s", (int)line.len, line.ptr);
    snprintf(f->name, sizeof f->name, "%s", name);
    json_t *ids = cluster_at(event, "choices.0.token_ids");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        buf_printf(&f->ids, "%lld,", (long long)json_integer_value(json_array_get(ids, i)));
        fputc('.', f->progress);
    }
    fflush(f->progress);
    json_decref(event);
    return true;
}

/* One connection to the coordinator that is its turn. */
static int connect_once(struct follower *f, const char *body, const char *key, struct buf *answer)
{
    struct http_client *client = http_client_new();
    char *url = f->name[0] ? mem_format("%s/v1/streams/%s", f->urls[f->at], f->name)
                           : mem_format("%s/v1/completions", f->urls[f->at]);
    char *header = f->name[0] ? mem_format("Last-Event-ID: %llu", f->last_event)
                              : mem_format("Idempotency-Key: %s", key);
    const char *const headers[] = {header, NULL};
    int status = 0;
    buf_reset(answer);
    http_exchange(client,
                  &(struct http_exchange){.url = url,
                                          .body = f->name[0] ? NULL : body,
                                          .headers = headers,
                                          .timeout_ns = 4 * CLOCK_S,
                                          .on_line = on_line,
                                          .ud = f},
                  &status, answer, NULL);
    mem_free(header);
    mem_free(url);
    http_client_free(&client);
    return status;
}

char *streams_body(int i)
{
    const char *how =
        i % 2 ? "\"temperature\":1,\"top_p\":0.95,\"repetition_penalty\":1.1" : "\"temperature\":0";
    return mem_format("{\"prompt\":[5,17,%d,200,31,7],\"max_tokens\":%d,%s,\"seed\":%d,"
                      "\"ignore_eos\":true,\"stream\":true,\"return_token_ids\":true}",
                      40 + i, STREAMS_TOKENS, how, 100 + i);
}

/* Whatever happens, the next coordinator is asked for what is missing.  Writes "IDS EVENTS" to
 * PATH, and the longest gap to PATH.gap. */
static _Noreturn void follow(const char *const *urls, int n_urls, int i, const char *run)
{
    char path[64], key[64], progress[80], gap[80];
    snprintf(path, sizeof path, "%s-%d.ids", run, i);
    snprintf(progress, sizeof progress, "%s.progress", path);
    snprintf(gap, sizeof gap, "%s.gap", path);
    snprintf(key, sizeof key, "%s-%d", run, i);
    struct follower f = {.progress = fopen(progress, "w")};
    memcpy(f.urls, urls, (size_t)n_urls * sizeof *urls);
    struct buf answer = {0};
    char *body = streams_body(i);
    int64_t deadline_ns = clock_now_ns() + 150 * CLOCK_S;
    CHECK(f.progress);
    while (!f.is_done) {
        int status = connect_once(&f, body, key, &answer);
        if (status == 404 || status == 400 || clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "stream %d at %s: status %d: %s", i, f.urls[f.at], status,
                      answer.data ? answer.data : "");
        f.at = (f.at + 1) % n_urls;
        if (!f.is_done)
            clock_sleep_until(clock_now_ns() + 5 * CLOCK_MS);
    }
    struct buf text = {0};
    buf_printf(&text, "%s END %s", f.ids.data, f.events.data);
    CHECK_INT(buf_write_file(&text, path, NULL), 0);
    buf_reset(&text);
    buf_printf(&text, "%lld", (long long)(f.gap_ns / CLOCK_MS));
    CHECK_INT(buf_write_file(&text, gap, NULL), 0);
    _exit(0);
}

static struct buf text_of(const char *run, int i, const char *suffix)
{
    struct buf text = {0};
    char path[96];
    snprintf(path, sizeof path, "%s-%d.ids%s", run, i, suffix);
    buf_read_file(&text, path, 1 << 20, NULL);
    return text;
}

void streams_start(const char *const *urls, int n_urls, const char *run, pid_t pids[STREAMS])
{
    CHECK(n_urls <= STREAMS_MAX_URLS);
    for (int i = 0; i < STREAMS; i++) {
        pids[i] = fork();
        CHECK(pids[i] >= 0);
        if (pids[i] == 0)
            follow(urls, n_urls, i, run);
    }
}

void streams_wait(const char *run, size_t n)
{
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 200 : 60) * CLOCK_S;
    for (int i = 0; i < STREAMS; i++)
        for (size_t have = 0; have < n;) {
            struct buf text = text_of(run, i, ".progress");
            have = text.len;
            buf_fini(&text);
            if (clock_now_ns() > deadline_ns)
                test_fail(__FILE__, __LINE__, "%s-%d never had %zu tokens", run, i, n);
            clock_sleep_until(clock_now_ns() + 5 * CLOCK_MS);
        }
}

long long streams_finish(const char *run, pid_t pids[STREAMS])
{
    long long longest = 0;
    for (int i = 0; i < STREAMS; i++) {
        int status;
        CHECK(waitpid(pids[i], &status, 0) == pids[i]);
        CHECK_INT(status, 0);
        struct buf gap = text_of(run, i, ".gap");
        long long ms = strtoll(gap.data, NULL, 10);
        longest = ms > longest ? ms : longest;
        buf_fini(&gap);
    }
    return longest;
}

void streams_check_same(const char *run)
{
    for (int i = 0; i < STREAMS; i++) {
        struct buf want = text_of("quiet", i, ""), got = text_of(run, i, "");
        CHECK_HAS(want.data, " END 1,2,3,");
        CHECK_STR(got.data, want.data);
        buf_fini(&want);
        buf_fini(&got);
    }
}
