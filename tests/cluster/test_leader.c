/* tests/cluster/test_leader.c - two coordinators and a real etcd: one leads, and when it is killed,
 * stopped or cut off from etcd the other one does, or nobody for a while; streams go on with the same
 * tokens, each once. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/etcd.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"
#include "tools/local_cluster.h"

enum { N_STREAMS = 4, TOKENS = 400, LEASE_MS = 1000 };

/* ---- a client that knows both coordinators, in a process of its own -------------------------- */

struct follower {
    const char *urls[2];
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

static char *body_of(int i)
{
    const char *how =
        i % 2 ? "\"temperature\":1,\"top_p\":0.95,\"repetition_penalty\":1.1" : "\"temperature\":0";
    return mem_format("{\"prompt\":[5,17,%d,200,31,7],\"max_tokens\":%d,%s,\"seed\":%d,"
                      "\"ignore_eos\":true,\"stream\":true,\"return_token_ids\":true}",
                      40 + i, TOKENS, how, 100 + i);
}

/* Whatever happens, the next coordinator is asked for what is missing.  Writes "IDS EVENTS" to
 * PATH, and the longest gap to PATH.gap. */
static _Noreturn void follow(const char *const urls[2], int i, const char *run)
{
    char path[64], key[64], progress[80], gap[80];
    snprintf(path, sizeof path, "%s-%d.ids", run, i);
    snprintf(progress, sizeof progress, "%s.progress", path);
    snprintf(gap, sizeof gap, "%s.gap", path);
    snprintf(key, sizeof key, "%s-%d", run, i);
    struct follower f = {.urls = {urls[0], urls[1]}, .progress = fopen(progress, "w")};
    struct buf answer = {0};
    char *body = body_of(i);
    int64_t deadline_ns = clock_now_ns() + 150 * CLOCK_S;
    CHECK(f.progress);
    while (!f.is_done) {
        int status = connect_once(&f, body, key, &answer);
        if (status == 404 || status == 400 || clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "stream %d at %s: status %d: %s", i, f.urls[f.at], status,
                      answer.data ? answer.data : "");
        f.at = 1 - f.at;
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

static void start_streams(const char *const urls[2], const char *run, pid_t pids[N_STREAMS])
{
    for (int i = 0; i < N_STREAMS; i++) {
        pids[i] = fork();
        CHECK(pids[i] >= 0);
        if (pids[i] == 0)
            follow(urls, i, run);
    }
}

static void wait_for_tokens(const char *run, size_t n)
{
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 200 : 60) * CLOCK_S;
    for (int i = 0; i < N_STREAMS; i++)
        for (size_t have = 0; have < n;) {
            struct buf text = text_of(run, i, ".progress");
            have = text.len;
            buf_fini(&text);
            if (clock_now_ns() > deadline_ns)
                test_fail(__FILE__, __LINE__, "%s-%d never had %zu tokens", run, i, n);
            clock_sleep_until(clock_now_ns() + 5 * CLOCK_MS);
        }
}

/* The longest gap in any of them, in ms. */
static long long finish_streams(const char *run, pid_t pids[N_STREAMS])
{
    long long longest = 0;
    for (int i = 0; i < N_STREAMS; i++) {
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

static void check_same(const char *run)
{
    for (int i = 0; i < N_STREAMS; i++) {
        struct buf want = text_of("quiet", i, ""), got = text_of(run, i, "");
        CHECK_HAS(want.data, " END 1,2,3,");
        CHECK_STR(got.data, want.data);
        buf_fini(&want);
        buf_fini(&got);
    }
}

/* ---- two coordinators ------------------------------------------------------------------------ */

struct pair {
    struct local_etcd etcd;
    struct cluster cluster; /* its URL is the first one's, unless set otherwise */
    char urls[2][64];
};

/* "coordinator" leads and "second" stands by; expert-0, expert-1 and attn-0.  `own_logs`: each its
 * state directory.  `more`: a further setting, or NULL. */
static void start_pair(struct pair *p, bool own_logs, const char *more)
{
    static char endpoints[96];
    static const char *const nodes[] = {"coordinator.endpoint=ipc://cluster.sock,ipc://second.sock",
                                        NULL};
    etcd_begin(&p->etcd);
    snprintf(endpoints, sizeof endpoints, "etcd.endpoints=%s", p->etcd.url);
    char *lease = mem_format("etcd.lease_ms=%d", LEASE_MS);
    /* Fixed ports: one that begins anew shall be found again. */
    char *first_port = mem_format("http.port=%d", local_cluster_free_port());
    char *second_port = mem_format("http.port=%d", local_cluster_free_port());
    const char *shared = own_logs ? "state.shared=false" : "state.shared=true";
    const char *const settings[] = {
        "state.dir=state", endpoints, lease, first_port, shared, more, NULL};
    cluster_node_settings(nodes);
    cluster_start(&p->cluster, 2, 1, settings);
    const char *const second[] = {"cluster.listen=ipc://second.sock", "node.name=second",
                                  own_logs ? "state.dir=state2" : "state.dir=state", second_port,
                                  NULL};
    cluster_start_another(&p->cluster, "second", second, p->urls[1]);
    memcpy(p->urls[0], p->cluster.url, sizeof p->urls[0]);
    mem_free(lease);
    mem_free(first_port);
    mem_free(second_port);
}

static void turn_to(struct pair *p, int which)
{
    memcpy(p->cluster.url, p->urls[which], sizeof p->cluster.url);
}

/* Until /health of that coordinator says so. */
static void wait_role(struct pair *p, int which, const char *role)
{
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 80 : 20) * CLOCK_S;
    turn_to(p, which);
    for (;;) {
        json_t *root = cluster_ask_json(&p->cluster, "/health", NULL);
        const char *is = json_string_value(json_object_get(root, "role"));
        bool same = is && strcmp(is, role) == 0;
        json_decref(root);
        if (same)
            return;
        if (clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "coordinator %d never became %s: %s", which, role,
                      p->cluster.answer.data);
        clock_sleep_until(clock_now_ns() + 10 * CLOCK_MS);
    }
}

static void wait_log(const char *name, const char *what)
{
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 80 : 20) * CLOCK_S;
    for (bool has = false; !has;) {
        struct buf log = cluster_log(name);
        has = strstr(log.data, what);
        if (!has && clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "%s never logged %s: %s", name, what, log.data);
        buf_fini(&log);
        clock_sleep_until(clock_now_ns() + 10 * CLOCK_MS);
    }
}

static void check_log_has(const char *name, const char *what)
{
    struct buf log = cluster_log(name);
    CHECK_HAS(log.data, what);
    buf_fini(&log);
}

static void run_quietly(struct pair *p)
{
    const char *const urls[2] = {p->urls[0], p->urls[0]};
    pid_t pids[N_STREAMS];
    start_streams(urls, "quiet", pids);
    finish_streams("quiet", pids);
}

static void stop_pair(struct pair *p)
{
    cluster_stop(&p->cluster);
    etcd_end(&p->etcd);
}

TEST_WITHIN(a_standby_leads_after_the_leaders_death, 180)
{
    static struct pair p;
    pid_t pids[N_STREAMS];
    start_pair(&p, false, NULL);
    const char *const urls[2] = {p.urls[0], p.urls[1]};
    run_quietly(&p);

    /* The one that stands by says so, and who leads. */
    turn_to(&p, 1);
    wait_role(&p, 1, "standby");
    CHECK_HAS(p.cluster.answer.data, p.urls[0]);
    CHECK_INT(cluster_ask(&p.cluster, "/ready", NULL), 503);
    char *body = body_of(0);
    CHECK_INT(cluster_ask(&p.cluster, "/v1/completions", body), 503);
    CHECK_HAS(p.cluster.answer.data, p.urls[0]);
    CHECK_HAS(p.cluster.answer.data, "not_the_leader");
    mem_free(body);
    etcd_wait_key(&p.etcd, "/polymath/placement");
    etcd_wait_key(&p.etcd, "/polymath/nodes/expert-1");

    start_streams(urls, "hit", pids);
    wait_for_tokens("hit", 40);
    cluster_kill(&p.cluster, "coordinator", SIGKILL);
    int64_t died_ns = clock_now_ns();
    wait_role(&p, 1, "leader");
    int64_t leads_ns = clock_now_ns() - died_ns;
    long long gap_ms = finish_streams("hit", pids);
    check_same("hit");
    test_say(
        "after kill -9 of the leader, with a lease of %d ms: the standby leads in %lld ms, the "
        "longest gap of a stream is %lld ms",
        LEASE_MS, (long long)(leads_ns / CLOCK_MS), gap_ms);
    check_log_has("second", "ev=leader.placement_restored nodes=2 unreadable=0");
    /* Nodes kept what they had: nothing was loaded for the new leader. */
    json_t *root = cluster_ask_json(&p.cluster, "/cluster", NULL);
    CHECK_INT(json_integer_value(cluster_at(root, "placement.to_load")), 0);
    json_decref(root);
    stop_pair(&p);
}

TEST_WITHIN(without_etcd_a_leader_serves_for_its_lease_and_waits, 180)
{
    static struct pair p;
    pid_t pids[N_STREAMS];
    start_pair(&p, false, NULL);
    const char *const urls[2] = {p.urls[0], p.urls[1]};
    run_quietly(&p);
    start_streams(urls, "hit", pids);
    wait_for_tokens("hit", 40);
    etcd_end(&p.etcd);
    int64_t died_ns = clock_now_ns();
    wait_role(&p, 0, "suspended");
    int64_t served_ns = clock_now_ns() - died_ns;
    CHECK(served_ns > LEASE_MS * CLOCK_MS / 3);
    char *body = body_of(0);
    CHECK_INT(cluster_ask(&p.cluster, "/v1/completions", body), 503);
    CHECK_HAS(p.cluster.answer.data, "lease in etcd");
    wait_role(&p, 1, "standby");
    clock_sleep_until(clock_now_ns() + 2 * LEASE_MS * CLOCK_MS);
    wait_role(&p, 0, "suspended");
    etcd_again(&p.etcd);
    int64_t back_ns = clock_now_ns();
    wait_role(&p, 0, "leader");
    test_say(
        "without etcd a leader with a lease of %d ms serves for %lld ms; it leads again %lld ms "
        "after etcd is back",
        LEASE_MS, (long long)(served_ns / CLOCK_MS),
        (long long)((clock_now_ns() - back_ns) / CLOCK_MS));
    finish_streams("hit", pids);
    check_same("hit");
    check_log_has("coordinator", "ev=leader.resumed");
    wait_role(&p, 1, "standby");
    mem_free(body);
    stop_pair(&p);
}

TEST_WITHIN(a_leader_that_was_stopped_steps_down, 180)
{
    static struct pair p;
    pid_t pids[N_STREAMS];
    start_pair(&p, false, NULL);
    const char *const urls[2] = {p.urls[0], p.urls[1]};
    run_quietly(&p);
    start_streams(urls, "hit", pids);
    wait_for_tokens("hit", 40);
    cluster_kill(&p.cluster, "coordinator", SIGSTOP);
    wait_role(&p, 1, "leader");
    check_log_has("second", "ev=journal.taken_over");
    clock_sleep_until(clock_now_ns() + LEASE_MS * CLOCK_MS);
    cluster_kill(&p.cluster, "coordinator", SIGCONT);
    /* It begins anew, in the same process, and finds who leads. */
    wait_log("coordinator", "ev=leader.suspended");
    wait_log("coordinator", "ev=leader.stepped_down");
    wait_log("coordinator", "ev=leader.stands_by");
    long long gap_ms = finish_streams("hit", pids);
    check_same("hit");
    test_say("after SIGSTOP of the leader, with a lease of %d ms: the longest gap of a stream is "
             "%lld ms",
             LEASE_MS, gap_ms);
    stop_pair(&p);
}

TEST_WITHIN(an_orderly_end_hands_over_at_once, 120)
{
    static struct pair p;
    start_pair(&p, false, NULL);
    int64_t from_ns = clock_now_ns();
    cluster_kill(&p.cluster, "coordinator", SIGTERM);
    wait_role(&p, 1, "leader");
    int64_t leads_ns = clock_now_ns() - from_ns;
    cluster_wait_ready(&p.cluster, 30);
    test_say("after SIGTERM the standby leads in %lld ms and is ready in %lld ms",
             (long long)(leads_ns / CLOCK_MS), (long long)((clock_now_ns() - from_ns) / CLOCK_MS));
    stop_pair(&p);
}

/* ---- each with its own token log ------------------------------------------------------------- */

/* Until the first coordinator's standby has, or has not, all of its log, and is on record as such. */
static void wait_in_step(struct pair *p, bool in_step)
{
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 80 : 20) * CLOCK_S;
    for (;;) {
        json_t *root = cluster_ask_json(&p->cluster, "/health", NULL);
        json_t *is = cluster_at(root, "standbys.0.recorded");
        bool done = is && json_is_true(is) == in_step;
        json_decref(root);
        if (done)
            return;
        if (clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "the standby is never%s in step: %s",
                      in_step ? "" : " not", p->cluster.answer.data);
        clock_sleep_until(clock_now_ns() + 10 * CLOCK_MS);
    }
}

static void lose_directory(const char *dir)
{
    const char *const arguments[] = {"-c", "mv \"$0\" lost && : > \"$0\"", dir, NULL};
    char *argv[8] = {"sh"};
    for (int i = 0; arguments[i]; i++)
        argv[i + 1] = (char *)(uintptr_t)arguments[i];
    pid_t pid = fork();
    if (pid == 0) {
        execv("/bin/sh", argv);
        _exit(127);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_INT(status, 0);
}

TEST_WITHIN(a_standby_with_its_own_log_goes_on_after_the_leaders_host_is_lost, 180)
{
    static struct pair p;
    pid_t pids[N_STREAMS];
    start_pair(&p, true, NULL);
    const char *const urls[2] = {p.urls[0], p.urls[1]};
    run_quietly(&p);
    wait_in_step(&p, true);
    CHECK_INT(cluster_ask(&p.cluster, "/metrics", NULL), 200);
    CHECK_HAS(p.cluster.answer.data, "polymath_standbys_in_step 1");

    start_streams(urls, "hit", pids);
    wait_for_tokens("hit", 40);
    cluster_kill(&p.cluster, "coordinator", SIGKILL);
    lose_directory("state");
    int64_t died_ns = clock_now_ns();
    wait_role(&p, 1, "leader");
    int64_t leads_ns = clock_now_ns() - died_ns;
    long long gap_ms = finish_streams("hit", pids);
    check_same("hit");
    test_say("after kill -9 of the leader and loss of its directory, with a lease of %d ms: the "
             "standby leads in %lld ms, the longest gap of a stream is %lld ms",
             LEASE_MS, (long long)(leads_ns / CLOCK_MS), gap_ms);
    check_log_has("second", "ev=requests.resumed unfinished=4");
    stop_pair(&p);
}

/* It stops answering: one request waits for it, once; then requests go on without it, and it catches
 * up when it is back. */
TEST_WITHIN(a_standby_that_hangs_is_waited_for_once, 120)
{
    static struct pair p;
    start_pair(&p, true, "state.standby_ms=700");
    wait_in_step(&p, true);
    char *body = body_of(0);
    cluster_kill(&p.cluster, "second", SIGSTOP);
    CHECK_INT(cluster_ask(&p.cluster, "/v1/completions", body), 200);
    check_log_has("coordinator", "ev=standby.late name=\"second\"");
    wait_in_step(&p, false);
    CHECK_INT(cluster_ask(&p.cluster, "/metrics", NULL), 200);
    CHECK_HAS(p.cluster.answer.data, "polymath_standby_late_total 1");
    CHECK_INT(cluster_ask(&p.cluster, "/v1/completions", body), 200);
    CHECK_INT(cluster_ask(&p.cluster, "/metrics", NULL), 200);
    CHECK_HAS(p.cluster.answer.data, "polymath_standby_late_total 1");
    cluster_kill(&p.cluster, "second", SIGCONT);
    wait_in_step(&p, true);

    /* Without a leader what is over can be asked for at the other one, too. */
    const char *id = strstr(p.cluster.answer.data, "cmpl-");
    CHECK(!id);
    CHECK_INT(cluster_ask(&p.cluster, "/v1/completions", body), 200);
    id = strstr(p.cluster.answer.data, "cmpl-");
    char path[96];
    CHECK(id);
    snprintf(path, sizeof path, "/v1/streams/%.*s", (int)strcspn(id, "\""), id);
    cluster_kill(&p.cluster, "coordinator", SIGKILL);
    wait_role(&p, 1, "leader");
    cluster_wait_ready(&p.cluster, 30);
    CHECK_INT(cluster_ask(&p.cluster, path, NULL), 200);
    mem_free(body);
    stop_pair(&p);
}

/* Whoever would write into a directory that is another's ends, and names it. */
TEST_WITHIN(two_coordinators_with_one_directory_of_their_own_refuse, 60)
{
    static struct pair p;
    start_pair(&p, true, NULL);
    char *model = mem_format("model.path=%s", cluster_model());
    char *endpoints = mem_format("etcd.endpoints=%s", p.etcd.url);
    struct buf output = {0};
    const char *const arguments[] = {"--set", model,
                                     "--set", "http.port=0",
                                     "--set", "cluster.listen=ipc://third.sock",
                                     "--set", "node.name=third",
                                     "--set", "state.dir=state",
                                     "--set", endpoints,
                                     "--set", "attention.embedded=false",
                                     NULL};
    CHECK_INT(cluster_run("coordinator", arguments, &output), 1);
    CHECK_HAS(output.data, "state.dir: state is in use by coordinator coordinator");
    buf_fini(&output);
    mem_free(endpoints);
    mem_free(model);
    stop_pair(&p);
}
