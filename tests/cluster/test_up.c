/* tests/cluster/test_up.c - `polymath up`, `chat` and `status` as a user runs them. */
#include <fcntl.h>
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

/* Starts `polymath up` with its output in up.log; the caller stops it. */
static pid_t start_up(const char *model, const char *const *more)
{
    char *program = mem_format("%s/polymath", test_bin_dir());
    const char *argv[24] = {
        program,     "up",    "--model", model,   "--port",
        "0",         "--dir", ".",       "--set", "coordinator.attention.kv_bytes=64MiB",
        "--threads", "1"};
    int n = 12;
    for (int i = 0; more[i]; i++)
        argv[n++] = more[i];
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int fd = open("up.log", O_WRONLY | O_CREAT | O_TRUNC, 0644);
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        execv(program, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    mem_free(program);
    return pid;
}

/* Waits until up.log holds `text` and returns the whole log. */
static struct buf wait_for_text(pid_t up, const char *text)
{
    int64_t deadline = clock_now_ns() + (test_is_slow_build() ? 200 : 50) * CLOCK_S;
    for (;;) {
        struct buf log = cluster_log("up");
        if (log.data && strstr(log.data, text))
            return log;
        if (clock_now_ns() > deadline || waitpid(up, NULL, WNOHANG) == up)
            test_fail(__FILE__, __LINE__, "polymath up never said '%s': %s", text, log.data);
        buf_fini(&log);
        clock_sleep_until(clock_now_ns() + 50 * CLOCK_MS);
    }
}

/* The process number that stands after "NAME ... process ". */
static pid_t process_of(const struct buf *log, const char *name)
{
    const char *at = strstr(log->data, name);
    at = at ? strstr(at, "process ") : NULL;
    CHECK(at);
    return (pid_t)strtol(at + strlen("process "), NULL, 10);
}

TEST_WITHIN(up_serves_restarts_what_dies_and_ends_orderly, 120)
{
    static const char *const more[] = {"--experts", "2", "--contexts", "1", "--ask", "Hello", NULL};
    pid_t up = start_up(cluster_model(), more);
    struct buf log = wait_for_text(up, "ready: http://");
    char url[64];
    CHECK(sscanf(strstr(log.data, "ready: ") + 7, "%63[^ ]", url) == 1);
    CHECK_HAS(log.data, "2 expert nodes, 1 that lends memory");
    pid_t victim = process_of(&log, "expert-1");
    buf_fini(&log);

    struct buf output = {0};
    const char *const chat[] = {"chat", "--url", url, "--max-tokens", "8", "--once", "Hi", NULL};
    CHECK_INT(cluster_run("polymath", chat, &output), 0);
    const char *const status[] = {"status", "--url", url, NULL};
    buf_reset(&output);
    CHECK_INT(cluster_run("polymath", status, &output), 0);
    CHECK_HAS(output.data, "expert-1");
    CHECK_HAS(output.data, "context-0");
    CHECK_HAS(output.data, " lent ");
    CHECK_HAS(output.data, "ready");

    CHECK(kill(victim, SIGKILL) == 0);
    log = wait_for_text(up, "expert-1 is back as process ");
    buf_fini(&log);
    int64_t deadline = clock_now_ns() + (test_is_slow_build() ? 200 : 50) * CLOCK_S;
    for (int code = 1; code != 0;) {
        CHECK(clock_now_ns() < deadline);
        buf_reset(&output);
        code = cluster_run("polymath", chat, &output);
    }
    buf_fini(&output);

    CHECK(kill(up, SIGTERM) == 0);
    int wait_status;
    CHECK(waitpid(up, &wait_status, 0) == up);
    CHECK_INT(wait_status, 0);
    CHECK(access("cluster.sock", F_OK) != 0);
}

TEST(up_with_a_broken_model_says_why)
{
    CHECK(mkdir("broken", 0755) == 0);
    FILE *f = fopen("broken/config.json", "w");
    CHECK(f && fputs("{\"architectures\":[\"LlamaForCausalLM\"]}", f) >= 0);
    fclose(f);
    const char *const arguments[] = {"up", "--model",   "broken", "--port",
                                     "0",  "--experts", "1",      NULL};
    struct buf output = {0};
    CHECK_INT(cluster_run("polymath", arguments, &output), 1);
    CHECK_HAS(output.data, "LlamaForCausalLM");
    buf_fini(&output);
}

TEST_WITHIN(the_demo_model_answers_held_out_tasks, 120)
{
    static const char *const more[] = {"--experts", "4", NULL};
    char *model = mem_format("%s/models/demo", test_source_dir());
    pid_t up = start_up(model, more);
    struct buf log = wait_for_text(up, "ready: http://");
    char url[64];
    CHECK(sscanf(strstr(log.data, "ready: ") + 7, "%63[^ ]", url) == 1);
    buf_fini(&log);
    char *tasks = mem_format("%s/evaluation", model);
    const char *const eval[] = {"eval",    "demo", "--url",     url,  "--tasks", tasks,
                                "--limit", "3",    "--require", "60", NULL};
    struct buf output = {0};
    int code = cluster_run("polymath", eval, &output);
    if (code != 0)
        test_fail(__FILE__, __LINE__, "polymath eval ended with %d: %s", code, output.data);
    buf_fini(&output);
    mem_free(tasks);
    mem_free(model);
    CHECK(kill(up, SIGTERM) == 0);
    int wait_status;
    CHECK(waitpid(up, &wait_status, 0) == up);
    CHECK_INT(wait_status, 0);
}
