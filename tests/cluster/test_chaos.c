/* tests/cluster/test_chaos.c - `polymath chaos` itself, in its short form: what it finds, and
 * that nothing is left of it, however it ends. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tools/chaos_net.h"

/* Runs `polymath chaos` on the tests' model; the exit code. */
static int chaos(const char *const *more, struct buf *output)
{
    /* a long lease: the tests' machine does other things too */
    const char *argv[40] = {"chaos",
                            "--model",
                            cluster_model(),
                            "--seed",
                            "3",
                            "--seconds",
                            "1",
                            "--clients",
                            "4",
                            "--tokens",
                            "24",
                            "--set",
                            "coordinator.cluster.lease_ms=10000"};
    int n = 13;
    for (int i = 0; more[i]; i++)
        argv[n++] = more[i];
    buf_reset(output);
    return cluster_run("polymath", argv, output);
}

TEST_WITHIN(chaos_finds_nothing_where_nothing_happens, 60)
{
    char rows[] = "/tmp/polymath-rows-XXXXXX";
    close(mkstemp(rows));
    const char *const more[] = {"--scenario", "still", "--nodes", "2", "--rows", rows, NULL};
    struct buf output = {0}, table = {0};
    if (chaos(more, &output) != 0)
        test_fail(__FILE__, __LINE__, "%s", output.data);
    CHECK_HAS(output.data, "still ");
    CHECK_HAS(output.data, "kept");
    CHECK(!strstr(output.data, "busy with other work")); /* only where a promise was not kept */
    CHECK_INT(buf_read_file(&table, rows, 4096, NULL), 0);
    CHECK_HAS(table.data, "(`still`) | ");
    CHECK_HAS(table.data, " | any |  | 0 | 0 | ");
    unlink(rows);
    buf_fini(&table);
    buf_fini(&output);
}

/* The line of the result, behind those of progress; the caller decrefs. */
static json_t *result_of(const struct buf *output)
{
    const char *at = output->data ? strstr(output->data, "{\"") : NULL;
    json_t *root = at ? json_loads(at, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
    if (!root)
        test_fail(__FILE__, __LINE__, "not JSON: %s", output->data);
    return root;
}

/* One copy of everything and nobody else who has it while the node is away: it must be seen. */
TEST_WITHIN(chaos_finds_what_a_fault_costs, 90)
{
    static const char *const more[] = {"--scenario", "kill", "--nodes", "1",
                                       "--replicas", "1",    "--json",  NULL};
    struct buf output = {0};
    int code = chaos(more, &output);
    json_t *root = result_of(&output);
    CHECK_STR(json_string_value(json_object_get(root, "scenario")), "kill");
    /* what is allowed grows with the steps of a machine that does other things too */
    bool is_missed = json_integer_value(json_object_get(root, "lost")) > 0 ||
                     json_real_value(json_object_get(root, "pause_p99_ms")) >
                         json_real_value(json_object_get(root, "limit_ms"));
    CHECK_STR(json_string_value(json_object_get(root, "outcome")), is_missed ? "MISSED" : "kept");
    CHECK_INT(code, is_missed);
    CHECK_INT(json_integer_value(json_object_get(root, "faults")), 1);
    /* between two tokens, or before the first where all streams had just ended */
    CHECK(json_integer_value(json_object_get(root, "lost")) > 0 ||
          json_real_value(json_object_get(root, "pause_ms")) > 600 ||
          json_real_value(json_object_get(root, "first_token_ms")) > 600);
    CHECK_INT(json_integer_value(json_object_get(root, "other_tokens")), 0);
    json_decref(root);
    buf_fini(&output);
}

/* Nothing is lost and no token differs.  Pauses are not asserted on: the tests' machine does other
 * things too. */
static void check_costs_nothing(const char *const *more)
{
    struct buf output = {0};
    chaos(more, &output);
    json_t *root = result_of(&output);
    const char *outcome = json_string_value(json_object_get(root, "outcome"));
    json_t *whole = json_object_get(root, "whole_s");
    if (strcmp(outcome, "skipped") == 0)
        test_skip("%s", json_string_value(json_object_get(root, "why")));
    if (strcmp(outcome, "BROKEN") == 0 || json_integer_value(json_object_get(root, "lost")) != 0 ||
        json_integer_value(json_object_get(root, "other_tokens")) != 0 ||
        json_integer_value(json_object_get(root, "requests")) == 0 ||
        (whole && json_real_value(whole) <= 0))
        test_fail(__FILE__, __LINE__, "%s", output.data);
    json_decref(root);
    buf_fini(&output);
}
#define COSTS_NOTHING(...) check_costs_nothing((const char *const[]){"--json", __VA_ARGS__, NULL})

TEST_WITHIN(chaos_a_node_that_joins_disturbs_nobody, 60)
{
    COSTS_NOTHING("--scenario", "join", "--nodes", "2");
}

TEST_WITHIN(chaos_a_standby_goes_on_with_every_stream, 90)
{
    COSTS_NOTHING("--scenario", "standby", "--nodes", "2");
}

TEST_WITHIN(chaos_a_full_disk_loses_nothing_that_was_acknowledged, 90)
{
    COSTS_NOTHING("--scenario", "full-disk", "--nodes", "2");
}

TEST_WITHIN(chaos_strangers_disturb_nobody, 90)
{
    COSTS_NOTHING("--scenario", "hostile", "--nodes", "2");
}

/* On hosts of their own, over tcp with CURVE, under an API key; garbage, then a death. */
TEST_WITHIN(chaos_a_cluster_with_keys_loses_nothing, 90)
{
    COSTS_NOTHING("--scenario", "keys", "--nodes", "2", "--hosts");
}

TEST_WITHIN(chaos_two_hosts_cut_off_cost_nothing, 90)
{
    COSTS_NOTHING("--scenario", "partition", "--hosts");
}

/* A script that says what llama-bench would, if it is asked as expected. */
static void write_peer(void)
{
    struct buf text = {0};
    buf_printf(&text, "#!/bin/sh\n"
                      "[ \"$*\" = '-m m.gguf -t 1 -r 1 -o json -p 0 -n 16 -ngl 99 --rpc h:1,h:2' ] "
                      "|| exit 3\n"
                      "echo '[\n{\"n_gen\": 16, \"avg_ts\": 0.125}]'\n");
    CHECK_INT(buf_write_file(&text, "peer.sh", NULL), 0);
    CHECK_INT(chmod("peer.sh", 0755), 0);
    buf_fini(&text);
}

TEST_WITHIN(bench_cluster_compares_a_cluster_with_one_process, 90)
{
    write_peer();
    const char *const arguments[] = {
        "bench",         "cluster",   "--model", cluster_model(), "--rounds",     "1",
        "--tokens",      "16",        "--rpc",   "h:1,h:2",       "--model-gguf", "m.gguf",
        "--llama-bench", "./peer.sh", NULL};
    struct buf output = {0};
    if (cluster_run("polymath", arguments, &output) != 0)
        test_fail(__FILE__, __LINE__, "%s", output.data);
    CHECK_HAS(output.data, "single process, 2 threads");
    CHECK_HAS(output.data, "cluster, 2 expert nodes");
    CHECK_HAS(output.data, "cluster / single process");
    CHECK_HAS(output.data, "0.1 tok/s");
    CHECK_HAS(output.data, "cluster / the other engine's");
    buf_fini(&output);
    CHECK_INT(cluster_run("polymath", (const char *const[]){"bench", "cluster", NULL}, &output), 2);
    buf_fini(&output);
}

/* What travels for a row of MiniMax-M2, with all that is around it, is within 3 % of what must. */
TEST(bench_rpc_counts_the_bytes_of_a_row)
{
    const char *const arguments[] = {"bench", "rpc",     "--nodes", "1", "--turns",
                                     "1",     "--calls", "10",      NULL};
    struct buf output = {0};
    if (cluster_run("polymath", arguments, &output) != 0)
        test_fail(__FILE__, __LINE__, "%s", output.data);
    CHECK_HAS(output.data, "3220 bytes must travel there, 12288 back");
    const char *sealed = strstr(output.data, "with CURVE");
    double both = 100;
    CHECK(sealed && sscanf(strstr(sealed, "both ways"), "both ways %lf", &both) == 1);
    CHECK(both > 0 && both < 3);
    CHECK_HAS(output.data, "CURVE spinning");
    buf_fini(&output);
}

/* Hosts of their own: a round trip takes what their wires take, whatever carries it. */
TEST(bench_rpc_puts_nodes_on_hosts_that_are_far_away)
{
    struct chaos_net *net = NULL;
    struct err e = {0};
    if (chaos_net_open(2, &(struct chaos_wire){0}, &net, &e) < 0)
        test_skip("no hosts inside this machine: %s", e.text);
    chaos_net_close(&net);
    const char *const arguments[] = {"bench",   "rpc", "--nodes",    "1",    "--turns", "1",
                                     "--calls", "10",  "--delay-us", "4000", NULL};
    struct buf output = {0};
    if (cluster_run("polymath", arguments, &output) != 0)
        test_fail(__FILE__, __LINE__, "%s", output.data);
    static const char *const names[] = {"tcp blocking", "call blocking", "CURVE spinning"};
    for (int i = 0; i < 3; i++) {
        const char *line = strstr(output.data, names[i]);
        double median_us = 0;
        CHECK(line && sscanf(line + strlen(names[i]), "%lf", &median_us) == 1);
        CHECK(median_us >= 4000);
    }
    buf_fini(&output);
}

TEST(chaos_refuses_what_it_does_not_know)
{
    struct buf output = {0};
    CHECK_INT(chaos((const char *const[]){"--scenario", "earthquake", NULL}, &output), 2);
    CHECK_HAS(output.data, "earthquake");
    CHECK_INT(chaos((const char *const[]){"--replicas", "5", NULL}, &output), 2);
    CHECK_HAS(output.data, "out of range");
    CHECK_INT(chaos((const char *const[]){"--list", NULL}, &output), 0);
    CHECK_HAS(output.data, "attention");
    CHECK_INT(chaos((const char *const[]){"--scenario", "blackhole", NULL}, &output), 0);
    CHECK_HAS(output.data, "skipped");
    buf_fini(&output);
}

/* Processes whose command line names this directory. */
static int processes_in(const char *dir)
{
    int n = 0;
    FILE *f = popen("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'", "r");
    char line[4096];
    CHECK(f);
    while (fgets(line, sizeof line, f))
        n += strstr(line, dir) != NULL && strstr(line, "node.listen") != NULL;
    pclose(f);
    return n;
}

static void wait_for_processes(const char *dir, bool some)
{
    int64_t deadline_ns = clock_now_ns() + (test_is_slow_build() ? 80 : 20) * CLOCK_S;
    while ((processes_in(dir) > 0) != some) {
        if (clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "%d processes run", processes_in(dir));
        clock_sleep_until(clock_now_ns() + 20 * CLOCK_MS);
    }
}

/* SIGINT, and SIGKILL, in the middle of it. */
TEST_WITHIN(chaos_leaves_no_process_behind, 60)
{
    static const int signals[] = {SIGINT, SIGKILL};
    char dir[4096];
    CHECK(getcwd(dir, sizeof dir - 8));
    strncat(dir, "/run", sizeof dir - strlen(dir) - 1);
    char *program = mem_format("%s/polymath", test_bin_dir());
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            int fd = open("chaos.log", O_WRONLY | O_CREAT | O_APPEND, 0644);
            dup2(fd, STDOUT_FILENO);
            dup2(fd, STDERR_FILENO);
            execl(program, program, "chaos", "--model", cluster_model(), "--scenario", "kills",
                  "--seconds", "60", "--dir", dir, (char *)NULL);
            _exit(127);
        }
        wait_for_processes(dir, true);
        int wait_status;
        CHECK(kill(pid, signals[i]) == 0);
        CHECK(waitpid(pid, &wait_status, 0) == pid);
        if (signals[i] == SIGINT)
            CHECK_INT(WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1, 1);
        wait_for_processes(dir, false);
    }
    mem_free(program);
}
