/* tests/cluster/test_leader.c - two or three coordinators and a real etcd: one leads, and when it is
 * killed, stopped or cut off from etcd another one does, or nobody for a while; streams go on with the same
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
#include "tests/lib/streams.h"
#include "tests/lib/test.h"
#include "tools/local_cluster.h"

/* A machine that stalls for some 100 ms, here and in etcd, shall not end it. */
enum { LEASE_MS = 2000 };

/* ---- coordinators ---------------------------------------------------------------------------- */

static const char *const names[] = {"coordinator", "second", "third"};

struct coordinators {
    struct local_etcd etcd;
    struct cluster cluster; /* its URL is the first one's, unless set otherwise */
    char urls[3][64];
};

/* One more that stands by, with a state directory of its own. */
static void start_third(struct coordinators *p)
{
    char *port = mem_format("http.port=%d", local_cluster_free_port());
    const char *const settings[] = {"cluster.listen=ipc://third.sock", "node.name=third",
                                    "state.dir=state3", port, NULL};
    cluster_start_another(&p->cluster, names[2], settings, p->urls[2]);
    mem_free(port);
}

/* "coordinator" leads, "second" and, of three, "third" stand by; expert-0, expert-1 and attn-0.
 * `own_logs`: each its state directory.  `more`: a further setting, or NULL. */
static void start(struct coordinators *p, int n, bool own_logs, const char *more)
{
    static char endpoints[96];
    const char *const nodes[] = {
        n == 3 ? "coordinator.endpoint=ipc://cluster.sock,ipc://second.sock,ipc://third.sock"
               : "coordinator.endpoint=ipc://cluster.sock,ipc://second.sock",
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
    if (n == 3)
        start_third(p);
    memcpy(p->urls[0], p->cluster.url, sizeof p->urls[0]);
    cluster_node_settings(NULL);
    mem_free(lease);
    mem_free(first_port);
    mem_free(second_port);
}

static void turn_to(struct coordinators *p, int which)
{
    memcpy(p->cluster.url, p->urls[which], sizeof p->cluster.url);
}

/* Until /health of that coordinator says so. */
static void wait_role(struct coordinators *p, int which, const char *role)
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

static void check_log_has(const char *name, const char *what)
{
    struct buf log = cluster_log(name);
    CHECK_HAS(log.data, what);
    buf_fini(&log);
}

static void run_quietly(struct coordinators *p)
{
    const char *const urls[2] = {p->urls[0], p->urls[0]};
    pid_t pids[STREAMS];
    streams_start(urls, 2, "quiet", pids);
    streams_finish("quiet", pids);
}

static void stop(struct coordinators *p)
{
    cluster_stop(&p->cluster);
    etcd_end(&p->etcd);
}

TEST_WITHIN(a_standby_leads_after_the_leaders_death, 180)
{
    static struct coordinators p;
    pid_t pids[STREAMS];
    start(&p, 2, false, NULL);
    const char *const urls[2] = {p.urls[0], p.urls[1]};
    run_quietly(&p);

    /* The one that stands by says so, and who leads. */
    turn_to(&p, 1);
    wait_role(&p, 1, "standby");
    CHECK_HAS(p.cluster.answer.data, p.urls[0]);
    CHECK_INT(cluster_ask(&p.cluster, "/ready", NULL), 503);
    char *body = streams_body(0);
    CHECK_INT(cluster_ask(&p.cluster, "/v1/completions", body), 503);
    CHECK_HAS(p.cluster.answer.data, p.urls[0]);
    CHECK_HAS(p.cluster.answer.data, "not_the_leader");
    mem_free(body);
    etcd_wait_key(&p.etcd, "/polymath/placement");
    etcd_wait_key(&p.etcd, "/polymath/nodes/expert-1");

    streams_start(urls, 2, "hit", pids);
    streams_wait("hit", 40);
    cluster_kill(&p.cluster, "coordinator", SIGKILL);
    int64_t died_ns = clock_now_ns();
    wait_role(&p, 1, "leader");
    int64_t leads_ns = clock_now_ns() - died_ns;
    long long gap_ms = streams_finish("hit", pids);
    streams_check_same("hit");
    test_say(
        "after kill -9 of the leader, with a lease of %d ms: the standby leads in %lld ms, the "
        "longest gap of a stream is %lld ms",
        LEASE_MS, (long long)(leads_ns / CLOCK_MS), gap_ms);
    check_log_has("second", "ev=leader.placement_restored nodes=2 unreadable=0");
    /* Nodes kept what they had: nothing was loaded for the new leader. */
    json_t *root = cluster_ask_json(&p.cluster, "/cluster", NULL);
    CHECK_INT(json_integer_value(cluster_at(root, "placement.to_load")), 0);
    json_decref(root);
    stop(&p);
}

TEST_WITHIN(without_etcd_a_leader_serves_for_its_lease_and_waits, 180)
{
    static struct coordinators p;
    pid_t pids[STREAMS];
    start(&p, 2, false, NULL);
    const char *const urls[2] = {p.urls[0], p.urls[1]};
    run_quietly(&p);
    streams_start(urls, 2, "hit", pids);
    streams_wait("hit", 40);
    etcd_end(&p.etcd);
    int64_t died_ns = clock_now_ns();
    wait_role(&p, 0, "suspended");
    int64_t served_ns = clock_now_ns() - died_ns;
    char *body = streams_body(0);
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
    streams_finish("hit", pids);
    streams_check_same("hit");
    check_log_has("coordinator", "ev=leader.resumed");
    wait_role(&p, 1, "standby");
    mem_free(body);
    stop(&p);
}

TEST_WITHIN(a_leader_that_was_stopped_steps_down, 180)
{
    static struct coordinators p;
    pid_t pids[STREAMS];
    start(&p, 2, false, NULL);
    const char *const urls[2] = {p.urls[0], p.urls[1]};
    run_quietly(&p);
    streams_start(urls, 2, "hit", pids);
    streams_wait("hit", 40);
    cluster_kill(&p.cluster, "coordinator", SIGSTOP);
    wait_role(&p, 1, "leader");
    check_log_has("second", "ev=journal.taken_over");
    clock_sleep_until(clock_now_ns() + LEASE_MS * CLOCK_MS);
    cluster_kill(&p.cluster, "coordinator", SIGCONT);
    /* It begins anew, in the same process, and finds who leads. */
    cluster_wait_log("coordinator", "ev=leader.suspended");
    cluster_wait_log("coordinator", "ev=leader.stepped_down");
    cluster_wait_log("coordinator", "ev=leader.stands_by");
    long long gap_ms = streams_finish("hit", pids);
    streams_check_same("hit");
    test_say("after SIGSTOP of the leader, with a lease of %d ms: the longest gap of a stream is "
             "%lld ms",
             LEASE_MS, gap_ms);
    stop(&p);
}

TEST_WITHIN(an_orderly_end_hands_over_at_once, 120)
{
    static struct coordinators p;
    start(&p, 2, false, NULL);
    int64_t from_ns = clock_now_ns();
    cluster_kill(&p.cluster, "coordinator", SIGTERM);
    wait_role(&p, 1, "leader");
    int64_t leads_ns = clock_now_ns() - from_ns;
    cluster_wait_ready(&p.cluster, 30);
    test_say("after SIGTERM the standby leads in %lld ms and is ready in %lld ms",
             (long long)(leads_ns / CLOCK_MS), (long long)((clock_now_ns() - from_ns) / CLOCK_MS));
    stop(&p);
}

/* ---- each with its own token log ------------------------------------------------------------- */

/* Until the coordinator whose URL the cluster has, which leads, has so many standbys that have all of
 * its log, and are on record as such. */
static void wait_standbys(struct coordinators *p, int n_in_step)
{
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 80 : 20) * CLOCK_S;
    for (;;) {
        json_t *root = cluster_ask_json(&p->cluster, "/health", NULL);
        json_t *standbys = cluster_at(root, "standbys");
        int n = 0;
        for (size_t i = 0; i < json_array_size(standbys); i++)
            n += json_is_true(json_object_get(json_array_get(standbys, i), "recorded"));
        json_decref(root);
        if (n == n_in_step)
            return;
        if (clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "never %d standbys in step: %s", n_in_step,
                      p->cluster.answer.data);
        clock_sleep_until(clock_now_ns() + 10 * CLOCK_MS);
    }
}

/* Which of these two leads, as soon as one does; the cluster has its URL then. */
static int wait_leader(struct coordinators *p, int a, int b)
{
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 80 : 20) * CLOCK_S;
    for (int which = a;; which = a + b - which) {
        turn_to(p, which);
        json_t *root = cluster_ask_json(&p->cluster, "/health", NULL);
        const char *role = json_string_value(json_object_get(root, "role"));
        bool leads = role && strcmp(role, "leader") == 0;
        json_decref(root);
        if (leads)
            return which;
        if (clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "neither coordinator %d nor %d leads: %s", a, b,
                      p->cluster.answer.data);
        clock_sleep_until(clock_now_ns() + 5 * CLOCK_MS);
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

/* When nothing runs: all of the log is on disk, and the standby's copy is as far. */
static void check_status(struct coordinators *p)
{
    const char *const arguments[] = {"status", "--url", p->urls[0], NULL};
    struct buf output = {0};
    json_t *root = cluster_ask_json(&p->cluster, "/cluster", NULL);
    CHECK(json_integer_value(cluster_at(root, "token_log.records")) > 0);
    CHECK(json_integer_value(cluster_at(root, "token_log.bytes")) > 0);
    CHECK(json_integer_value(cluster_at(root, "leadership.standbys.0.has_bytes")) > 0);
    json_decref(root);
    cluster_wait_value(&p->cluster, "leadership.standbys.0.lag_bytes", 0, 20);
    CHECK_INT(cluster_run("polymath", arguments, &output), 0);
    CHECK_HAS(output.data, "  token log on disk: ");
    CHECK_HAS(output.data, "standby second: in step, has ");
    CHECK_HAS(output.data, ", which is all of the token log\n");
    CHECK(!strstr(output.data, "builds run"));
    buf_fini(&output);
}

TEST_WITHIN(a_standby_with_its_own_log_goes_on_after_the_leaders_host_is_lost, 180)
{
    static struct coordinators p;
    pid_t pids[STREAMS];
    start(&p, 2, true, NULL);
    const char *const urls[2] = {p.urls[0], p.urls[1]};
    run_quietly(&p);
    wait_standbys(&p, 1);
    CHECK_INT(cluster_ask(&p.cluster, "/metrics", NULL), 200);
    CHECK_HAS(p.cluster.answer.data, "polymath_standbys_in_step 1");
    check_status(&p);

    streams_start(urls, 2, "hit", pids);
    streams_wait("hit", 40);
    cluster_kill(&p.cluster, "coordinator", SIGKILL);
    lose_directory("state");
    int64_t died_ns = clock_now_ns();
    wait_role(&p, 1, "leader");
    int64_t leads_ns = clock_now_ns() - died_ns;
    long long gap_ms = streams_finish("hit", pids);
    streams_check_same("hit");
    test_say("after kill -9 of the leader and loss of its directory, with a lease of %d ms: the "
             "standby leads in %lld ms, the longest gap of a stream is %lld ms",
             LEASE_MS, (long long)(leads_ns / CLOCK_MS), gap_ms);
    check_log_has("second", "ev=requests.resumed unfinished="); /* 4, unless we came too late */
    stop(&p);
}

/* Whichever of the standbys leads after the first death is killed too, in the middle of the same
 * answers; the last one brings them to their end, and the first is a standby when it is back. */
TEST_WITHIN(a_third_coordinator_goes_on_when_two_have_died, 240)
{
    static struct coordinators p;
    pid_t pids[STREAMS];
    start(&p, 3, true, NULL);
    const char *const urls[] = {p.urls[0], p.urls[1], p.urls[2]};
    run_quietly(&p);
    wait_standbys(&p, 2);

    streams_start(urls, 3, "hit", pids);
    streams_wait("hit", 40);
    cluster_kill(&p.cluster, names[0], SIGKILL);
    int next = wait_leader(&p, 1, 2), last = 3 - next;
    wait_standbys(&p, 1);
    streams_wait("hit", 120);
    cluster_kill(&p.cluster, names[next], SIGKILL);
    wait_role(&p, last, "leader");
    long long gap_ms = streams_finish("hit", pids);
    streams_check_same("hit");
    test_say(
        "%s and then %s led after deaths, with a lease of %d ms: the longest gap of a stream is "
        "%lld ms",
        names[next], names[last], LEASE_MS, gap_ms);

    cluster_start_coordinator(&p.cluster);
    wait_role(&p, 0, "standby");
    turn_to(&p, last);
    wait_standbys(&p, 1);
    char *body = streams_body(0);
    CHECK_INT(cluster_ask(&p.cluster, "/v1/completions", body), 200);
    mem_free(body);
    stop(&p);
}

/* Both are dead, and the standby comes back alone: it is on record as having the whole log, so it
 * leads at once, and not when the others' turn is over, which with its lease is no time to wait for. */
TEST_WITHIN(a_standby_is_known_again_after_its_restart, 180)
{
    static struct coordinators p;
    start(&p, 2, true, NULL);
    wait_standbys(&p, 1);
    char *body = streams_body(0);
    CHECK_INT(cluster_ask(&p.cluster, "/v1/completions", body), 200);
    const char *id = strstr(p.cluster.answer.data, "cmpl-");
    CHECK(id);
    char *path = mem_format("/v1/streams/%.*s", (int)strcspn(id, "\""), id);
    cluster_kill(&p.cluster, names[0], SIGKILL);
    cluster_kill(&p.cluster, names[1], SIGKILL);
    CHECK(rename("second.log", "second-1.log") == 0);
    const char *const again[] = {"cluster.listen=ipc://second.sock", "node.name=second",
                                 "state.dir=state2", "etcd.lease_ms=600000", NULL};
    cluster_start_another(&p.cluster, names[1], again, p.urls[1]);
    wait_role(&p, 1, "leader");
    cluster_wait_ready(&p.cluster, 30);
    CHECK_INT(cluster_ask(&p.cluster, path, NULL), 200);
    mem_free(path);
    mem_free(body);
    stop(&p);
}

/* It stops answering: one request waits for it, once; then requests go on without it, and it catches
 * up when it is back. */
TEST_WITHIN(a_standby_that_hangs_is_waited_for_once, 120)
{
    static struct coordinators p;
    start(&p, 2, true, "state.standby_ms=700");
    wait_standbys(&p, 1);
    char *body = streams_body(0);
    cluster_kill(&p.cluster, "second", SIGSTOP);
    CHECK_INT(cluster_ask(&p.cluster, "/v1/completions", body), 200);
    check_log_has("coordinator", "ev=standby.late name=\"second\"");
    wait_standbys(&p, 0);
    CHECK_INT(cluster_ask(&p.cluster, "/metrics", NULL), 200);
    CHECK_HAS(p.cluster.answer.data, "polymath_standby_late_total 1");
    CHECK_INT(cluster_ask(&p.cluster, "/v1/completions", body), 200);
    CHECK_INT(cluster_ask(&p.cluster, "/metrics", NULL), 200);
    CHECK_HAS(p.cluster.answer.data, "polymath_standby_late_total 1");
    cluster_kill(&p.cluster, "second", SIGCONT);
    wait_standbys(&p, 1);

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
    stop(&p);
}

/* Whoever would write into a directory that is another's ends, and names it. */
TEST_WITHIN(two_coordinators_with_one_directory_of_their_own_refuse, 60)
{
    static struct coordinators p;
    start(&p, 2, true, NULL);
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
    stop(&p);
}
