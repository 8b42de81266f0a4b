/* tests/cluster/test_resume.c - attention sides and the coordinator die in the middle of streams: the
 * same tokens come out as if nothing had happened. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

enum { N_STREAMS = 6 };

/* Half of them greedy, half sampled with penalties, all long enough to be hit. */
static char *body_of(int i, const char *more)
{
    const char *how = i % 2 ? "\"temperature\":1,\"top_p\":0.95,\"repetition_penalty\":1.1,"
                              "\"presence_penalty\":0.5,\"frequency_penalty\":0.3"
                            : "\"temperature\":0";
    return mem_format("{\"prompt\":[5,17,%d,200,31,7],\"max_tokens\":300,%s,\"seed\":%d,"
                      "\"ignore_eos\":true,\"stream\":true,\"return_token_ids\":true%s}",
                      40 + i, how, 100 + i, more);
}

/* ---- one stream, followed by a process of its own ------------------------------------------ */

struct follower {
    FILE *out;
    int64_t last_ns, gap_ns;
    bool is_done;
};

static bool on_line(void *ud, struct str line)
{
    struct follower *f = ud;
    if (str_equal(line, STR("data: [DONE]")))
        f->is_done = true;
    if (!str_has_prefix(line, STR("data: {")))
        return true;
    int64_t now_ns = clock_now_ns();
    if (f->last_ns && now_ns - f->last_ns > f->gap_ns)
        f->gap_ns = now_ns - f->last_ns;
    f->last_ns = now_ns;
    json_t *event = json_loadb(line.ptr + 6, line.len - 6, JSON_ALLOW_NUL, NULL);
    CHECK(event);
    json_t *ids = cluster_at(event, "choices.0.token_ids");
    for (size_t i = 0; i < json_array_size(ids); i++)
        fprintf(f->out, "%lld,", (long long)json_integer_value(json_array_get(ids, i)));
    if (cluster_at(event, "error"))
        fprintf(f->out, "%.*s", (int)line.len, line.ptr);
    fflush(f->out);
    json_decref(event);
    return true;
}

/* Writes the ids to `path` as they come, and at the end " END" and the longest gap to path.gap. */
static _Noreturn void follow(const struct cluster *c, const char *body, const char *path)
{
    struct follower f = {.out = fopen(path, "w")};
    struct http_client *client = http_client_new();
    char *url = mem_format("%s/v1/completions", c->url);
    struct buf answer = {0};
    int status = 0;
    CHECK(f.out);
    http_exchange(
        client,
        &(struct http_exchange){
            .url = url, .body = body, .timeout_ns = 200 * CLOCK_S, .on_line = on_line, .ud = &f},
        &status, &answer, NULL);
    fprintf(f.out, f.is_done ? " END" : " status %d: %s", status, answer.data);
    fclose(f.out);
    char *gap = mem_format("%s.gap", path);
    FILE *g = fopen(gap, "w");
    CHECK(g);
    fprintf(g, "%lld", (long long)f.gap_ns);
    fclose(g);
    _exit(0);
}

struct streams {
    pid_t pids[N_STREAMS];
    char paths[N_STREAMS][32];
};

static void start_streams(const struct cluster *c, struct streams *s, const char *run)
{
    for (int i = 0; i < N_STREAMS; i++) {
        snprintf(s->paths[i], sizeof s->paths[i], "%s-%d.ids", run, i);
        s->pids[i] = fork();
        CHECK(s->pids[i] >= 0);
        if (s->pids[i] == 0)
            follow(c, body_of(i, ""), s->paths[i]);
    }
}

static struct buf text_of(const char *path)
{
    struct buf text = {0};
    buf_read_file(&text, path, 1 << 20, NULL);
    return text;
}

static int tokens_in(const char *path)
{
    struct buf text = text_of(path);
    int n = 0;
    for (size_t i = 0; i < text.len; i++)
        n += text.data[i] == ',';
    buf_fini(&text);
    return n;
}

/* Until every stream has `n` tokens. */
static void wait_for_tokens(const struct streams *s, int n)
{
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 200 : 50) * CLOCK_S;
    for (int i = 0; i < N_STREAMS; i++)
        while (tokens_in(s->paths[i]) < n) {
            if (clock_now_ns() > deadline_ns)
                test_fail(__FILE__, __LINE__, "%s never had %d tokens", s->paths[i], n);
            clock_sleep_until(clock_now_ns() + 5 * CLOCK_MS);
        }
}

/* Waits for their ends; the longest gap of all. */
static int64_t finish_streams(struct streams *s)
{
    int64_t longest_ns = 0;
    for (int i = 0; i < N_STREAMS; i++) {
        int wait_status;
        CHECK(waitpid(s->pids[i], &wait_status, 0) == s->pids[i]);
        CHECK_INT(wait_status, 0);
        char *path = mem_format("%s.gap", s->paths[i]);
        struct buf gap = text_of(path);
        int64_t gap_ns = gap.data ? strtoll(gap.data, NULL, 10) : 0;
        longest_ns = gap_ns > longest_ns ? gap_ns : longest_ns;
        buf_fini(&gap);
        mem_free(path);
    }
    return longest_ns;
}

static void check_same(const struct streams *want, const struct streams *got)
{
    for (int i = 0; i < N_STREAMS; i++) {
        struct buf a = text_of(want->paths[i]), b = text_of(got->paths[i]);
        CHECK_HAS(a.data, " END");
        CHECK_STR(b.data, a.data);
        buf_fini(&a);
        buf_fini(&b);
    }
}

static long long metric(struct cluster *c, const char *name)
{
    CHECK_INT(cluster_ask(c, "/metrics", NULL), 200);
    char *key = mem_format("\n%s ", name);
    const char *at = strstr(c->answer.data, key);
    if (!at)
        test_fail(__FILE__, __LINE__, "no metric %s", name);
    long long v = strtoll(at + strlen(key), NULL, 10);
    mem_free(key);
    return v;
}

/* ---- attention sides ---------------------------------------------------------------------- */

TEST_WITHIN(streams_survive_the_death_of_attention_nodes, 180)
{
    struct cluster c;
    struct streams quiet, hit;
    cluster_start(&c, 2, 2, NULL);
    cluster_wait_value(&c, "attention_sides", 2, 20);
    start_streams(&c, &quiet, "quiet");
    int64_t quiet_ns = finish_streams(&quiet);
    CHECK_INT(metric(&c, "polymath_replays_total"), 0);

    start_streams(&c, &hit, "hit");
    wait_for_tokens(&hit, 30);
    cluster_kill(&c, "attn-0", SIGKILL);
    wait_for_tokens(&hit, 100);
    cluster_start_node(&c, "attn_node", "attn-0");
    wait_for_tokens(&hit, 150);
    cluster_kill(&c, "attn-1", SIGKILL);
    int64_t gap_ns = finish_streams(&hit);
    check_same(&quiet, &hit);
    long long replays = metric(&c, "polymath_replays_total");
    test_say("%lld replays; longest gap %lld ms, undisturbed %lld ms", replays,
             (long long)(gap_ns / CLOCK_MS), (long long)(quiet_ns / CLOCK_MS));
    CHECK(replays >= 2);
    CHECK_INT(metric(&c, "polymath_requests_total{outcome=\"failed\"}"), 0);
    cluster_stop(&c);
}

/* Nobody is left for a while: streams wait, and go on when one is back. */
TEST_WITHIN(streams_wait_for_an_attention_node_to_come_back, 180)
{
    struct cluster c;
    struct streams quiet, hit;
    cluster_start(&c, 2, 1, NULL);
    start_streams(&c, &quiet, "quiet");
    finish_streams(&quiet);
    start_streams(&c, &hit, "hit");
    wait_for_tokens(&hit, 30);
    cluster_kill(&c, "attn-0", SIGKILL);
    cluster_wait_not_ready(&c, 10);
    cluster_start_node(&c, "attn_node", "attn-0");
    finish_streams(&hit);
    check_same(&quiet, &hit);
    cluster_stop(&c);
}

/* A stopped process breaks no connection: its lease ends. */
TEST_WITHIN(streams_leave_an_attention_node_that_hangs, 180)
{
    struct cluster c;
    struct streams quiet, hit;
    static const char *const settings[] = {"cluster.lease_ms=400", "cluster.heartbeat_ms=100",
                                           NULL};
    cluster_start(&c, 2, 2, settings);
    start_streams(&c, &quiet, "quiet");
    finish_streams(&quiet);
    start_streams(&c, &hit, "hit");
    wait_for_tokens(&hit, 30);
    cluster_kill(&c, "attn-0", SIGSTOP);
    int64_t gap_ns = finish_streams(&hit);
    check_same(&quiet, &hit);
    test_say("longest gap %lld ms with a lease of 400 ms", (long long)(gap_ns / CLOCK_MS));
    cluster_kill(&c, "attn-0", SIGCONT);
    cluster_wait_value(&c, "attention_sides", 2, 20);
    /* It still had the old sequences; they are cleared when it is given new ones. */
    start_streams(&c, &hit, "again");
    finish_streams(&hit);
    check_same(&quiet, &hit);
    cluster_stop(&c);
}

/* Experts that are missing for a while cost running streams a pause. */
TEST_WITHIN(streams_wait_for_experts_that_are_missing, 180)
{
    struct cluster c;
    struct streams quiet, hit;
    cluster_start(&c, 2, 0, NULL);
    start_streams(&c, &quiet, "quiet");
    finish_streams(&quiet);
    start_streams(&c, &hit, "hit");
    wait_for_tokens(&hit, 30);
    cluster_kill(&c, "expert-1", SIGKILL);
    cluster_wait_not_ready(&c, 10);
    cluster_start_node(&c, "expert_node", "expert-1");
    finish_streams(&hit);
    check_same(&quiet, &hit);
    CHECK_INT(metric(&c, "polymath_requests_total{outcome=\"failed\"}"), 0);
    cluster_stop(&c);
}
