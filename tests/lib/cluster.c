/* tests/lib/cluster.c - a cluster of the real programs, for tests. */
#include "tests/lib/cluster.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

static const int64_t poll_ns = 20 * CLOCK_MS;

/* Slow builds get more time, like the tests themselves. */
static int64_t deadline_in(int seconds)
{
    return clock_now_ns() + seconds * CLOCK_S * (test_is_slow_build() ? 4 : 1);
}

static _Noreturn void become(const char *program, const char *const *arguments)
{
    char *path = mem_format("%s/%s", test_bin_dir(), program);
    const char *argv[64] = {path};
    for (int i = 0; arguments[i] && i < 62; i++)
        argv[i + 1] = arguments[i];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execv(path, (char *const *)(uintptr_t)argv);
    dprintf(STDERR_FILENO, "cannot run %s: %s\n", path, strerror(errno));
    _exit(127);
}

int cluster_run(const char *program, const char *const *arguments, struct buf *output)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        become(program, arguments);
    }
    close(ends[1]);
    char chunk[4096];
    for (ssize_t n; (n = read(ends[0], chunk, sizeof chunk)) > 0;)
        buf_append(output, chunk, (size_t)n);
    close(ends[0]);
    int wait_status;
    CHECK(waitpid(pid, &wait_status, 0) == pid);
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
}

static const char *preset = "m2-tiny";

void cluster_use_preset(const char *name)
{
    preset = name;
}

const char *cluster_model(void)
{
    static char path[4096];
    struct stat st;
    bool is_default = strcmp(preset, "m2-tiny") == 0;
    snprintf(path, sizeof path, "%s/../%s", test_bin_dir(), is_default ? "m2-test" : preset);
    if (stat(path, &st) == 0)
        return path;
    /* Two tests may make it at once: each under a name of its own, the first rename wins. */
    char *mine = mem_format("%s.%d", path, (int)getpid());
    const char *const arguments[] = {
        "synth", "--preset", preset, "--seed", "7", "--set", "num_hidden_layers=3",
        "--out", mine,       NULL};
    struct buf output = {0};
    int code = cluster_run("polymath", arguments, &output);
    if (code != 0)
        test_fail(__FILE__, __LINE__, "polymath synth ended with %d: %s", code, output.data);
    if (rename(mine, path) < 0)
        CHECK(stat(path, &st) == 0);
    buf_fini(&output);
    mem_free(mine);
    return path;
}

static struct cluster_process *find(struct cluster *c, const char *name)
{
    for (int i = 0; i < c->n_processes; i++)
        if (strcmp(c->processes[i].name, name) == 0)
            return &c->processes[i];
    return NULL;
}

static const char *const *settings_of_all, *const *settings_of_nodes;

void cluster_settings(const char *const *settings)
{
    settings_of_all = settings;
}

void cluster_node_settings(const char *const *settings)
{
    settings_of_nodes = settings;
}

static void spawn(struct cluster *c, const char *program, const char *name,
                  const char *const *settings)
{
    struct cluster_process *p = find(c, name);
    if (!p) {
        CHECK(c->n_processes < CLUSTER_MAX_PROCESSES);
        p = &c->processes[c->n_processes++];
        snprintf(p->name, sizeof p->name, "%s", name);
        snprintf(p->program, sizeof p->program, "%s", program);
    }
    CHECK_INT(p->pid, 0);
    const char *arguments[62];
    const char *const *const lists[] = {
        settings, settings_of_all, strcmp(program, "coordinator") == 0 ? NULL : settings_of_nodes};
    int n = 0;
    for (int list = 0; list < 3; list++)
        for (int i = 0; lists[list] && lists[list][i]; i++) {
            CHECK(n < 60);
            arguments[n++] = "--set";
            arguments[n++] = lists[list][i];
        }
    arguments[n] = NULL;
    char *log = mem_format("%s.log", name);
    p->pid = fork();
    CHECK(p->pid >= 0);
    if (p->pid == 0) {
        int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        become(program, arguments);
    }
    mem_free(log);
}

static void start_node(struct cluster *c, const char *program, const char *name,
                       const char *kv_bytes)
{
    char *model = mem_format("model.path=%s", c->model);
    char *node = mem_format("node.name=%s", name);
    char *listen = mem_format("node.listen=ipc://%s.sock", name);
    /* Nodes that measure while others work would differ by chance, and so would the placement. */
    bool is_expert = strcmp(program, "expert_node") == 0;
    const char *const settings[] = {model,
                                    node,
                                    listen,
                                    "coordinator.endpoint=ipc://cluster.sock",
                                    "compute.threads=1",
                                    is_expert  ? "memory.read_bytes_s=10GiB"
                                    : kv_bytes ? "attention.lends=true"
                                               : NULL,
                                    kv_bytes,
                                    NULL};
    spawn(c, program, name, settings);
    mem_free(model);
    mem_free(node);
    mem_free(listen);
}

void cluster_start_node(struct cluster *c, const char *program, const char *name)
{
    start_node(c, program, name, NULL);
}

void cluster_start_lender(struct cluster *c, const char *name, const char *kv_bytes)
{
    char *setting = mem_format("attention.kv_bytes=%s", kv_bytes);
    start_node(c, "attn_node", name, setting);
    mem_free(setting);
}

struct buf cluster_log(const char *name)
{
    struct buf log = {0};
    char *path = mem_format("%s.log", name);
    buf_read_file(&log, path, 64 << 20, NULL);
    mem_free(path);
    return log;
}

/* The value of `key` in the log line that holds `event`; waits for it. */
static void wait_for_log(const char *name, const char *event, const char *key, char *out,
                         size_t bytes)
{
    int64_t deadline = deadline_in(20);
    for (;;) {
        struct buf log = cluster_log(name);
        const char *line = log.data ? strstr(log.data, event) : NULL;
        const char *value = line ? strstr(line, key) : NULL;
        const char *end = value ? strpbrk(value, " \n") : NULL;
        if (end) {
            value += strlen(key);
            snprintf(out, bytes, "%.*s", (int)(end - value), value);
            buf_fini(&log);
            return;
        }
        if (clock_now_ns() > deadline)
            test_fail(__FILE__, __LINE__, "%s never logged %s; its log: %s", name, event,
                      log.data ? log.data : "(empty)");
        buf_fini(&log);
        clock_sleep_until(clock_now_ns() + poll_ns);
    }
}

void cluster_endpoint(const char *name, const char *event, char *out, size_t bytes)
{
    wait_for_log(name, event, "endpoint=", out, bytes);
}

void cluster_wait_log(const char *name, const char *text)
{
    int64_t deadline = deadline_in(30);
    for (bool has = false; !has;) {
        struct buf log = cluster_log(name);
        has = log.data && strstr(log.data, text);
        if (!has && clock_now_ns() > deadline)
            test_fail(__FILE__, __LINE__, "%s never logged %s: %s", name, text,
                      log.data ? log.data : "(empty)");
        buf_fini(&log);
        if (!has)
            clock_sleep_until(clock_now_ns() + poll_ns);
    }
}

void cluster_launch(struct cluster *c, int n_experts, int n_attention, const char *const *settings)
{
    *c = (struct cluster){.model = cluster_model()};
    char *model = mem_format("model.path=%s", c->model);
    const char *list[30] = {model,
                            "http.port=0",
                            "cluster.listen=ipc://cluster.sock",
                            "attention.threads=1",
                            "attention.kv_bytes=64MiB",
                            "placement.rejoin_ms=60000",
                            n_attention ? "attention.embedded=false" : "attention.embedded=true"};
    int n = 7;
    for (int i = 0; settings && settings[i]; i++)
        list[n++] = settings[i];
    for (int i = 0; i < n; i++)
        c->coordinator_settings[i] = mem_string(list[i]);
    spawn(c, "coordinator", "coordinator", list);
    mem_free(model);
    for (int i = 0; i < n_experts; i++) {
        char name[32];
        snprintf(name, sizeof name, "expert-%d", i);
        cluster_start_node(c, "expert_node", name);
    }
    for (int i = 0; i < n_attention; i++) {
        char name[32];
        snprintf(name, sizeof name, "attn-%d", i);
        cluster_start_node(c, "attn_node", name);
    }
    wait_for_log("coordinator", "ev=http.ready", "url=", c->url, sizeof c->url);
}

void cluster_start_standby(struct cluster *c)
{
    const char *list[34];
    int n = 0;
    for (; c->coordinator_settings[n]; n++)
        list[n] = c->coordinator_settings[n];
    list[n++] = "cluster.listen=ipc://standby.sock";
    list[n++] = "state.standby=true";
    list[n] = NULL;
    spawn(c, "coordinator", "standby", list);
}

void cluster_start_another(struct cluster *c, const char *name, const char *const *settings,
                           char url[64])
{
    const char *list[40];
    int n = 0;
    for (; c->coordinator_settings[n]; n++)
        list[n] = c->coordinator_settings[n];
    for (; *settings && n < 39; settings++)
        list[n++] = *settings;
    list[n] = NULL;
    spawn(c, "coordinator", name, list);
    wait_for_log(name, "ev=http.ready", "url=", url, 64);
}

void cluster_wait_takeover(struct cluster *c)
{
    wait_for_log("standby", "ev=http.ready", "url=", c->url, sizeof c->url);
}

void cluster_start_coordinator(struct cluster *c)
{
    /* Its log begins anew: what is waited for shall be of this life. */
    char *old = mem_format("coordinator-%d.log", ++c->n_lives);
    CHECK(rename("coordinator.log", old) == 0);
    mem_free(old);
    spawn(c, "coordinator", "coordinator", (const char *const *)c->coordinator_settings);
    wait_for_log("coordinator", "ev=http.ready", "url=", c->url, sizeof c->url);
}

void cluster_start(struct cluster *c, int n_experts, int n_attention, const char *const *settings)
{
    cluster_launch(c, n_experts, n_attention, settings);
    cluster_wait_ready(c, 40);
}

void cluster_kill(struct cluster *c, const char *name, int signal_number)
{
    struct cluster_process *p = find(c, name);
    CHECK(p && p->pid > 0);
    CHECK(kill(p->pid, signal_number) == 0);
    if (signal_number == SIGKILL || signal_number == SIGTERM) {
        CHECK(waitpid(p->pid, NULL, 0) == p->pid);
        p->pid = 0;
    }
}

/* Nothing waits for ever, and a process that died says so at once. */
static void check_alive(struct cluster *c)
{
    for (int i = 0; i < c->n_processes; i++) {
        struct cluster_process *p = &c->processes[i];
        int wait_status;
        if (p->pid && waitpid(p->pid, &wait_status, WNOHANG) == p->pid) {
            struct buf log = cluster_log(p->name);
            test_fail(__FILE__, __LINE__, "%s ended with status %d; its log: %s", p->name,
                      wait_status, log.data ? log.data : "(empty)");
        }
    }
}

static int exchange(struct cluster *c, const char *path, const char *body, struct err *e)
{
    struct http_client *client = http_client_new();
    char *url = mem_format("%s%s", c->url, path);
    struct http_exchange x = {
        .url = url, .body = body, .timeout_ns = deadline_in(30) - clock_now_ns()};
    int rc = http_exchange(client, &x, &c->status, &c->answer, e);
    mem_free(url);
    http_client_free(&client);
    return rc;
}

int cluster_ask(struct cluster *c, const char *path, const char *body)
{
    struct err e = {0};
    if (exchange(c, path, body, &e) < 0) {
        check_alive(c);
        test_fail(__FILE__, __LINE__, "%s: %s", path, e.text);
    }
    return c->status;
}

int cluster_try(struct cluster *c, const char *path, const char *body)
{
    if (exchange(c, path, body, NULL) == 0)
        return c->status;
    check_alive(c);
    return 0;
}

pid_t cluster_ask_beside(const struct cluster *c, const char *path, const char *body)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid > 0)
        return pid;
    struct cluster mine = *c;
    mine.answer = (struct buf){0};
    for (;;)
        cluster_ask(&mine, path, body);
}

json_t *cluster_ask_json(struct cluster *c, const char *path, const char *body)
{
    if (cluster_ask(c, path, body) != 200)
        test_fail(__FILE__, __LINE__, "%s: HTTP %d: %s", path, c->status, c->answer.data);
    json_error_t why;
    json_t *root = json_loadb(c->answer.data, c->answer.len, 0, &why);
    if (!root)
        test_fail(__FILE__, __LINE__, "%s: not JSON (%s): %s", path, why.text, c->answer.data);
    return root;
}

json_t *cluster_at(json_t *root, const char *path)
{
    char key[64];
    while (root && *path) {
        size_t n = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, path);
        root = json_is_array(root) ? json_array_get(root, (size_t)strtoul(key, NULL, 10))
                                   : json_object_get(root, key);
        path += n + (path[n] == '.');
    }
    return root;
}

static void wait_status(struct cluster *c, bool ready, int seconds)
{
    int64_t deadline = deadline_in(seconds);
    while ((cluster_ask(c, "/ready", NULL) == 200) != ready) {
        check_alive(c);
        if (clock_now_ns() > deadline)
            test_fail(__FILE__, __LINE__, "/ready stays %d: %s", c->status, c->answer.data);
        clock_sleep_until(clock_now_ns() + poll_ns);
    }
}

void cluster_wait_ready(struct cluster *c, int seconds)
{
    wait_status(c, true, seconds);
}

void cluster_wait_not_ready(struct cluster *c, int seconds)
{
    wait_status(c, false, seconds);
}

void cluster_wait_value(struct cluster *c, const char *what, long long value, int seconds)
{
    int64_t deadline = deadline_in(seconds);
    for (;;) {
        json_t *root = cluster_ask_json(c, "/cluster", NULL);
        json_t *found = cluster_at(root, what);
        bool equal = json_is_integer(found) && json_integer_value(found) == value;
        json_decref(root);
        if (equal)
            return;
        if (clock_now_ns() > deadline)
            test_fail(__FILE__, __LINE__, "%s never became %lld: %s", what, value, c->answer.data);
        clock_sleep_until(clock_now_ns() + poll_ns);
    }
}

double cluster_metric(struct cluster *c, const char *name)
{
    CHECK_INT(cluster_ask(c, "/metrics", NULL), 200);
    char *key = mem_format("\n%s ", name);
    const char *at = strstr(c->answer.data, key);
    if (!at)
        test_fail(__FILE__, __LINE__, "no metric %s", name);
    double value = strtod(at + strlen(key), NULL);
    mem_free(key);
    return value;
}

void cluster_wait_metric(struct cluster *c, const char *name, double most)
{
    int64_t deadline = deadline_in(20);
    for (double value; (value = cluster_metric(c, name)) > most;) {
        if (clock_now_ns() > deadline)
            test_fail(__FILE__, __LINE__, "%s stays %g", name, value);
        clock_sleep_until(clock_now_ns() + poll_ns);
    }
}

void cluster_wait_prompt_tokens(struct cluster *c, long long n)
{
    int64_t deadline = deadline_in(30);
    while (cluster_metric(c, "polymath_prompt_tokens_total") < (double)n) {
        if (clock_now_ns() > deadline)
            test_fail(__FILE__, __LINE__, "%lld tokens of prompts were never taken", n);
        clock_sleep_until(clock_now_ns() + poll_ns);
    }
}

void cluster_stop(struct cluster *c)
{
    for (int i = c->n_processes - 1; i >= 0; i--)
        if (c->processes[i].pid)
            CHECK(kill(c->processes[i].pid, SIGTERM) == 0);
    int64_t deadline = deadline_in(15);
    for (int i = 0; i < c->n_processes; i++) {
        struct cluster_process *p = &c->processes[i];
        int wait_result = 0;
        while (p->pid && waitpid(p->pid, &wait_result, WNOHANG) == 0) {
            if (clock_now_ns() > deadline)
                test_fail(__FILE__, __LINE__, "%s does not end on SIGTERM", p->name);
            clock_sleep_until(clock_now_ns() + poll_ns);
        }
        if (p->pid && wait_result != 0) {
            struct buf log = cluster_log(p->name);
            test_fail(__FILE__, __LINE__, "%s ended with status %d on SIGTERM; its log: %s",
                      p->name, wait_result, log.data ? log.data : "(empty)");
        }
        p->pid = 0;
    }
    for (int i = 0; c->coordinator_settings[i]; i++)
        mem_free(c->coordinator_settings[i]);
    buf_fini(&c->answer);
}
