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

/* ---- attention sides ---------------------------------------------------------------------- */

TEST_WITHIN(streams_survive_the_death_of_attention_nodes, 180)
{
    struct cluster c;
    struct streams quiet, hit;
    cluster_start(&c, 2, 2, NULL);
    cluster_wait_value(&c, "attention_sides", 2, 20);
    start_streams(&c, &quiet, "quiet");
    int64_t quiet_ns = finish_streams(&quiet);
    CHECK_INT(cluster_metric(&c, "polymath_replays_total"), 0);

    int64_t gap_ns = 0;
    long long replays = 0;
    while (replays < 2) { /* where we come too late the streams are over: then again */
        start_streams(&c, &hit, "hit");
        wait_for_tokens(&hit, 30);
        cluster_kill(&c, "attn-0", SIGKILL);
        wait_for_tokens(&hit, 100);
        cluster_start_node(&c, "attn_node", "attn-0");
        wait_for_tokens(&hit, 150);
        cluster_kill(&c, "attn-1", SIGKILL);
        gap_ns = finish_streams(&hit);
        check_same(&quiet, &hit);
        cluster_start_node(&c, "attn_node", "attn-1");
        cluster_wait_value(&c, "attention_sides", 2, 20);
        replays = (long long)cluster_metric(&c, "polymath_replays_total");
    }
    test_say("%lld replays; longest gap %lld ms, undisturbed %lld ms", replays,
             (long long)(gap_ns / CLOCK_MS), (long long)(quiet_ns / CLOCK_MS));
    CHECK_INT(cluster_metric(&c, "polymath_requests_total{outcome=\"failed\"}"), 0);
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
    CHECK_INT(cluster_metric(&c, "polymath_requests_total{outcome=\"failed\"}"), 0);
    cluster_stop(&c);
}

/* ---- the coordinator ------------------------------------------------------------------------ */

/* What one stream has brought so far, over all connections. */
struct resumed {
    struct buf ids, events; /* of tokens; ids of events */
    char name[64];          /* of the request */
    unsigned long long last_event;
    bool is_done;
    const char *begun; /* a file made with the first event; NULL: none */
};

static bool on_event(void *ud, struct str line)
{
    struct resumed *s = ud;
    if (str_has_prefix(line, STR("id: "))) {
        s->last_event = strtoull(line.ptr + 4, NULL, 10);
        buf_printf(&s->events, "%llu,", s->last_event);
    }
    if (str_equal(line, STR("data: [DONE]")))
        s->is_done = true;
    if (!str_has_prefix(line, STR("data: {")))
        return true;
    if (s->begun && !s->name[0])
        fclose(fopen(s->begun, "w"));
    json_t *event = json_loadb(line.ptr + 6, line.len - 6, JSON_ALLOW_NUL, NULL);
    CHECK(event);
    const char *name = json_string_value(json_object_get(event, "id"));
    if (!name)
        test_fail(__FILE__, __LINE__, "%.*s", (int)line.len, line.ptr);
    if (s->name[0])
        CHECK_STR(name, s->name);
    snprintf(s->name, sizeof s->name, "%s", name);
    json_t *ids = cluster_at(event, "choices.0.token_ids");
    for (size_t i = 0; i < json_array_size(ids); i++)
        buf_printf(&s->ids, "%lld,", (long long)json_integer_value(json_array_get(ids, i)));
    json_decref(event);
    return true;
}

/* Stops in the middle. */
static bool on_few_events(void *ud, struct str line)
{
    struct resumed *s = ud;
    on_event(ud, line);
    return s->last_event < 20 || line.len > 0;
}

/* One connection; what came of it. */
static int read_stream(const struct cluster *c, const char *path, const char *body,
                       const char *header, bool (*on)(void *ud, struct str line), struct resumed *s)
{
    struct http_client *client = http_client_new();
    char *url = mem_format("%s%s", c->url, path);
    const char *const headers[] = {header, NULL};
    struct buf answer = {0};
    int status = 0;
    http_exchange(client,
                  &(struct http_exchange){.url = url,
                                          .body = body,
                                          .headers = header ? headers : NULL,
                                          .timeout_ns = 100 * CLOCK_S,
                                          .on_line = on,
                                          .ud = s},
                  &status, &answer, NULL);
    buf_fini(&answer);
    mem_free(url);
    http_client_free(&client);
    return status;
}

static void resume(const struct cluster *c, struct resumed *s)
{
    char *path = mem_format("/v1/streams/%s", s->name);
    char *header = mem_format("Last-Event-ID: %llu", s->last_event);
    CHECK_INT(read_stream(c, path, NULL, header, on_event, s), 200);
    mem_free(path);
    mem_free(header);
}

static void resumed_fini(struct resumed *s)
{
    buf_fini(&s->ids);
    buf_fini(&s->events);
    *s = (struct resumed){0};
}

enum { WAS_OVER = 3 }; /* exit status: there was nothing to resume */

/* Reads the stream until it breaks, and then the rest from the next coordinator. */
static _Noreturn void follow_over_death(const struct cluster *c, const char *body, const char *path,
                                        int url_fd)
{
    struct cluster mine = *c;
    struct resumed s = {.begun = mem_format("%s.begun", path)};
    FILE *out = fopen(path, "w");
    CHECK(out);
    read_stream(c, "/v1/completions", body, NULL, on_event, &s);
    bool was_cut = !s.is_done; /* on a busy machine some are over before the death */
    if (was_cut) {
        CHECK(s.name[0]);
        CHECK(read(url_fd, mine.url, sizeof mine.url - 1) > 0);
        resume(&mine, &s);
        CHECK(s.is_done);
    }
    fprintf(out, "%s END%s", s.ids.data, s.events.data);
    fclose(out);
    _exit(was_cut ? 0 : WAS_OVER);
}

enum successor { RESTARTED, STANDBY };

struct readers {
    pid_t pids[N_STREAMS];
    int pipes[N_STREAMS][2];
};

static void path_of(int i, const char *suffix, char path[32])
{
    snprintf(path, 32, "life-%d.ids%s", i, suffix);
}

/* Returns when each has heard something. */
static void start_readers(const struct cluster *c, struct readers *r)
{
    char path[32];
    for (int i = 0; i < N_STREAMS; i++) {
        CHECK(pipe(r->pipes[i]) == 0);
        path_of(i, "", path);
        r->pids[i] = fork();
        CHECK(r->pids[i] >= 0);
        if (r->pids[i] == 0)
            follow_over_death(c, body_of(i, ""), path, r->pipes[i][0]);
    }
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 200 : 50) * CLOCK_S;
    for (int i = 0; i < N_STREAMS; i++) {
        for (path_of(i, ".begun", path); access(path, F_OK) != 0;) {
            CHECK(clock_now_ns() < deadline_ns);
            clock_sleep_until(clock_now_ns() + CLOCK_MS);
        }
        CHECK_INT(unlink(path), 0);
    }
}

/* How many had something to resume. */
static int finish_readers(struct readers *r)
{
    int n_resumed = 0;
    for (int i = 0; i < N_STREAMS; i++) {
        int status;
        CHECK(waitpid(r->pids[i], &status, 0) == r->pids[i]);
        CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == WAS_OVER));
        n_resumed += status == 0;
        close(r->pipes[i][0]);
        close(r->pipes[i][1]);
    }
    return n_resumed;
}

static bool are_over(const struct readers *r)
{
    int n_over = 0;
    for (int i = 0; i < N_STREAMS; i++) {
        siginfo_t ended = {0};
        CHECK(waitid(P_PID, (id_t)r->pids[i], &ended, WEXITED | WNOWAIT | WNOHANG) == 0);
        n_over += ended.si_pid != 0;
    }
    return n_over == N_STREAMS;
}

/* Starts the streams and kills the coordinator under them.  Where we come too late for that, again. */
static void kill_coordinator_under(struct cluster *c, struct readers *r)
{
    for (;;) {
        start_readers(c, r);
        cluster_kill(c, "coordinator", SIGSTOP);
        if (!are_over(r))
            break;
        cluster_kill(c, "coordinator", SIGCONT);
        CHECK_INT(finish_readers(r), 0);
    }
    cluster_kill(c, "coordinator", SIGKILL);
}

static void let_coordinator_die(enum successor successor, const char *const *node_settings)
{
    struct cluster c;
    static const char *const settings[] = {"state.dir=state", NULL};
    struct resumed quiet = {0};
    cluster_node_settings(node_settings);
    cluster_start(&c, 2, 1, settings);
    if (successor == STANDBY)
        cluster_start_standby(&c);
    struct readers readers;
    kill_coordinator_under(&c, &readers);
    int64_t died_ns = clock_now_ns();
    if (successor == STANDBY)
        cluster_wait_takeover(&c);
    else
        cluster_start_coordinator(&c);
    int64_t up_ns = clock_now_ns() - died_ns;
    for (int i = 0; i < N_STREAMS; i++)
        CHECK(write(readers.pipes[i][1], c.url, sizeof c.url) == sizeof c.url);
    while (!are_over(&readers) && cluster_metric(&c, "polymath_steps_total") == 0)
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
    int64_t step_ns = clock_now_ns() - died_ns;
    int n_resumed = finish_readers(&readers);
    test_say("after the coordinator's death with %d streams cut: another one serves in %lld ms, "
             "its first step is done "
             "in %lld ms, all streams are complete in %lld ms",
             n_resumed, (long long)(up_ns / CLOCK_MS), (long long)(step_ns / CLOCK_MS),
             (long long)((clock_now_ns() - died_ns) / CLOCK_MS));
    /* The same without any death.  What was over needed no nodes. */
    cluster_wait_ready(&c, 40);
    for (int i = 0; i < N_STREAMS; i++) {
        char *body = body_of(i, "");
        CHECK_INT(read_stream(&c, "/v1/completions", body, NULL, on_event, &quiet), 200);
        char *want = mem_format("%s END%s", quiet.ids.data, quiet.events.data);
        char path[32];
        path_of(i, "", path);
        struct buf got = text_of(path);
        CHECK_STR(got.data, want);
        buf_fini(&got);
        mem_free(want);
        mem_free(body);
        resumed_fini(&quiet);
    }
    cluster_stop(&c);
}

TEST_WITHIN(streams_survive_the_death_of_the_coordinator, 180)
{
    let_coordinator_die(RESTARTED, NULL);
}

TEST_WITHIN(streams_go_on_with_a_standby, 180)
{
    static const char *const nodes[] = {
        "coordinator.endpoint=ipc://cluster.sock,ipc://standby.sock", NULL};
    let_coordinator_die(STANDBY, nodes);
}

TEST_WITHIN(a_stream_goes_on_where_its_reader_left_it, 90)
{
    struct cluster c;
    static const char *const settings[] = {"state.dir=state", NULL};
    cluster_start(&c, 1, 0, settings);
    char *body = body_of(1, ",\"stream_options\":{\"include_usage\":true}");
    struct resumed quiet = {0}, cut = {0}, late = {0};
    CHECK_INT(read_stream(&c, "/v1/completions", body, NULL, on_event, &quiet), 200);
    CHECK_INT(quiet.last_event, 302); /* 300 tokens, usage, end */

    read_stream(&c, "/v1/completions", body, NULL, on_few_events, &cut);
    CHECK(cut.last_event >= 20 && !cut.is_done);
    resume(&c, &cut);
    CHECK_STR(cut.ids.data, quiet.ids.data);
    CHECK_STR(cut.events.data, quiet.events.data);

    /* From the beginning, when it is over; also after an orderly restart. */
    for (int i = 0; i < 2; i++) {
        resumed_fini(&late);
        snprintf(late.name, sizeof late.name, "%s", cut.name);
        resume(&c, &late);
        CHECK_STR(late.ids.data, quiet.ids.data);
        CHECK_STR(late.events.data, quiet.events.data);
        cluster_kill(&c, "coordinator", SIGTERM);
        cluster_start_coordinator(&c);
    }
    char *path = mem_format("/v1/streams/%s", cut.name);
    CHECK_INT(read_stream(&c, path, NULL, "Last-Event-ID: 302", on_event, &late), 204);
    CHECK_INT(read_stream(&c, path, NULL, "Last-Event-ID: soon", NULL, &late), 400);
    CHECK_INT(read_stream(&c, path, NULL, "Authorization: Bearer somebody", NULL, &late), 404);
    CHECK_INT(read_stream(&c, "/v1/streams/cmpl-0", NULL, NULL, NULL, &late), 404);
    cluster_wait_ready(&c, 40); /* one that is still loading ends otherwise */
    mem_free(path);
    mem_free(body);
    resumed_fini(&quiet);
    resumed_fini(&cut);
    resumed_fini(&late);
    cluster_stop(&c);
}

static int post_with_key(const struct cluster *c, const char *body, const char *key,
                         struct buf *answer)
{
    struct http_client *client = http_client_new();
    char *url = mem_format("%s/v1/completions", c->url);
    char *header = mem_format("Idempotency-Key: %s", key);
    const char *const headers[] = {header, NULL};
    int status = 0;
    buf_reset(answer);
    CHECK_INT(
        http_exchange(client,
                      &(struct http_exchange){
                          .url = url, .body = body, .headers = headers, .timeout_ns = 60 * CLOCK_S},
                      &status, answer, NULL),
        0);
    mem_free(header);
    mem_free(url);
    http_client_free(&client);
    return status;
}

/* Without a seed, so that an answer that was made twice would differ. */
#define UNSEEDED \
    "{\"prompt\":[5,17,9],\"max_tokens\":40,\"temperature\":1,\"return_token_ids\":true"

TEST_WITHIN(the_same_key_gives_the_same_answer, 90)
{
    struct cluster c;
    static const char *const settings[] = {"state.dir=state", NULL};
    cluster_start(&c, 1, 0, settings);
    struct buf first = {0}, second = {0};
    CHECK_INT(post_with_key(&c, UNSEEDED "}", "k1", &first), 200);
    CHECK_INT(post_with_key(&c, UNSEEDED "}", "k1", &second), 200);
    CHECK_STR(second.data, first.data);
    CHECK_INT(post_with_key(&c, UNSEEDED "}", "k2", &second), 200);
    CHECK(strcmp(second.data, first.data) != 0);
    CHECK_INT(post_with_key(&c, UNSEEDED ",\"top_p\":0.5}", "k1", &second), 409);
    CHECK_HAS(second.data, "idempotency_key_reused");

    /* While it runs: the second asks for what the first has begun. */
    static const char slow[] =
        "{\"prompt\":[5,17,9],\"max_tokens\":400,\"ignore_eos\":true,\"return_token_ids\":true}";
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        struct buf mine = {0};
        CHECK_INT(post_with_key(&c, slow, "k3", &mine), 200);
        CHECK_INT(buf_write_file(&mine, "mine.json", NULL), 0);
        _exit(0);
    }
    cluster_wait_prompt_tokens(&c, 3 * 3); /* of k1, k2 and k3 */
    CHECK_INT(post_with_key(&c, slow, "k3", &second), 200);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_INT(status, 0);
    struct buf mine = text_of("mine.json");
    CHECK_STR(second.data, mine.data);
    CHECK_INT(cluster_metric(&c, "polymath_requests_total{outcome=\"ok\"}"), 3);

    /* Also after the coordinator's death. */
    cluster_kill(&c, "coordinator", SIGKILL);
    cluster_start_coordinator(&c);
    CHECK_INT(post_with_key(&c, UNSEEDED "}", "k1", &second), 200);
    CHECK_STR(second.data, first.data);
    cluster_wait_ready(&c, 40); /* one that is still loading ends otherwise */
    buf_fini(&mine);
    buf_fini(&first);
    buf_fini(&second);
    cluster_stop(&c);
}

TEST(two_coordinators_with_one_state_directory_refuse)
{
    struct cluster c;
    static const char *const settings[] = {"state.dir=state", "attention.embedded=false", NULL};
    cluster_launch(&c, 0, 0, settings);
    char *model = mem_format("model.path=%s", cluster_model());
    const char *const arguments[] = {"--set", model,
                                     "--set", "http.port=0",
                                     "--set", "cluster.listen=ipc://other.sock",
                                     "--set", "state.dir=state",
                                     NULL};
    struct buf output = {0};
    CHECK_INT(cluster_run("coordinator", arguments, &output), 1);
    char *holder =
        mem_format("in use by coordinator coordinator, process %d", (int)c.processes[0].pid);
    CHECK_HAS(output.data, holder);
    CHECK_HAS(output.data, "state.dir");
    mem_free(holder);
    mem_free(model);
    buf_fini(&output);
    cluster_stop(&c);
}
