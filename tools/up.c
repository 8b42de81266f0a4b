/* tools/up.c - `polymath up`: a local cluster under one supervisor.
 *
 * Starts the coordinator, expert nodes and attention nodes as separate processes that talk
 * over ipc sockets in a run directory, waits until the cluster is ready, starts again what
 * dies, and ends everything on SIGINT or SIGTERM.  Children die with the supervisor. */
#include "tools/up.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/cpus.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "model/format.h"
#include "tools/cpu_plan.h"
#include "tools/http_client.h"

enum { MAX_NODES = 64, MAX_ARGUMENTS = 96, QUICK_FAILURES = 5 };
/* A child that lived shorter than this failed to start; it is not simply restarted. */
static const int64_t quick_ns = 3 * CLOCK_S;

struct child {
    char *name, *log_path;
    char *argv[MAX_ARGUMENTS];
    int argc;
    pid_t pid; /* 0: not running */
    int64_t started_ns, restart_ns;
    int quick_failures;
};

struct up {
    const char *model, *host, *ask, *format;
    char *settings[32];
    int n_settings;
    int n_experts, n_attention, n_sides, port, threads;
    struct cpu_plan plan;
    char *bin_dir, *run_dir, *url;
    bool run_dir_is_ours, was_ready;
    struct child children[2 * MAX_NODES + 1];
    int n_children;
    pid_t asking;
    struct http_client *http;
    char last_why[256];
};

static void usage(FILE *out)
{
    fputs("usage: polymath up --model DIR [OPTION]...\n\n"
          "Starts a coordinator and its nodes on this machine and keeps them running.\n\n"
          "  --model DIR      checkpoint in Hugging Face form\n"
          "  --experts N      expert nodes (default 4)\n"
          "  --attn N         attention nodes beside the coordinator's own; with N > 0 the\n"
          "                   coordinator runs none itself (default 0)\n"
          "  --port P         HTTP port (default 8080; 0: any free one)\n"
          "  --host ADDRESS   HTTP address (default 127.0.0.1)\n"
          "  --format F       how weights and the KV cache are held (default native,kv=bf16):\n"
          "                   " FORMAT_SET_HELP ",\n"
          "                   FORMAT one of " FORMAT_CHOICES ",\n"
          "                   kv one of " KV_FORMAT_CHOICES "\n"
          "  --threads N      compute threads of each expert node (default: the CPUs are\n"
          "                   divided; three tenths are for attention)\n"
          "  --set WHO.KEY=V  an option of one program: WHO is coordinator, expert_node or\n"
          "                   attn_node, KEY as in configs/ (repeatable)\n"
          "  --dir DIR        keep sockets and logs there (default: a temporary directory)\n"
          "  --ask TEXT       ask this once the cluster is ready, print the answer, go on\n"
          "\nEnds on Ctrl-C.\n",
          out);
}

static void argument(struct child *c, char *text)
{
    must(c->argc < MAX_ARGUMENTS - 1);
    c->argv[c->argc++] = text;
}

static void setting(struct child *c, char *assignment)
{
    argument(c, mem_string("--set"));
    argument(c, assignment);
}

/* Adds what the user set for this program with --set. */
static void user_settings(const struct up *u, struct child *c, const char *program)
{
    size_t prefix = strlen(program);
    for (int i = 0; i < u->n_settings; i++)
        if (strncmp(u->settings[i], program, prefix) == 0 && u->settings[i][prefix] == '.')
            setting(c, mem_string(u->settings[i] + prefix + 1));
}

static struct child *add_child(struct up *u, const char *program, const char *name)
{
    struct child *c = &u->children[u->n_children++];
    c->name = mem_string(name);
    c->log_path = mem_format("%s/%s.log", u->run_dir, name);
    argument(c, mem_format("%s/%s", u->bin_dir, program));
    setting(c, mem_format("node.name=%s", name));
    setting(c, mem_format("model.path=%s", u->model));
    if (u->format)
        setting(c, mem_format("weights.format=%s", u->format));
    return c;
}

static void own_cpus(struct child *c, const struct cpus *cpus)
{
    char *text = mem_alloc(CPUS_TEXT_BYTES);
    setting(c, mem_format("compute.cpus=%s", cpus_text(cpus, text, CPUS_TEXT_BYTES)));
    mem_free(text);
}

/* The attention side's place: `prefix` is where its program keeps the number of threads. */
static void place_side(struct up *u, struct child *c, const char *prefix, int index)
{
    if (u->plan.is_shared) {
        setting(c, mem_string("attention.spin_us=0"));
        return;
    }
    struct cpus cpus = cpu_plan_side(&u->plan, cpus_of_process(), index);
    setting(c, mem_format("%s.threads=%d", prefix, u->plan.side_cpus));
    own_cpus(c, &cpus);
}

static void place_expert(struct up *u, struct child *c, int index)
{
    setting(c, mem_format("compute.threads=%d", u->plan.expert_cpus));
    if (u->plan.is_shared) {
        setting(c, mem_string("compute.spin_us=0"));
        return;
    }
    struct cpus cpus = cpu_plan_expert(&u->plan, cpus_of_process(), u->n_sides, index);
    own_cpus(c, &cpus);
}

static void plan_children(struct up *u)
{
    u->n_sides = u->n_attention ? u->n_attention : 1;
    u->plan = cpu_plan_new(thread_cpu_count(), u->n_sides, u->n_experts, u->threads);
    struct child *c = add_child(u, "coordinator", "coordinator");
    setting(c, mem_format("http.host=%s", u->host));
    setting(c, mem_format("http.port=%d", u->port));
    setting(c, mem_format("cluster.listen=ipc://%s/cluster.sock", u->run_dir));
    setting(c, mem_format("attention.embedded=%s", u->n_attention ? "false" : "true"));
    if (!u->n_attention)
        place_side(u, c, "attention", 0);
    user_settings(u, c, "coordinator");
    for (int i = 0; i < u->n_experts; i++) {
        char name[32];
        snprintf(name, sizeof name, "expert-%d", i);
        c = add_child(u, "expert_node", name);
        setting(c, mem_format("coordinator.endpoint=ipc://%s/cluster.sock", u->run_dir));
        setting(c, mem_format("node.listen=ipc://%s/%s.sock", u->run_dir, name));
        place_expert(u, c, i);
        user_settings(u, c, "expert_node");
    }
    for (int i = 0; i < u->n_attention; i++) {
        char name[32];
        snprintf(name, sizeof name, "attn-%d", i);
        c = add_child(u, "attn_node", name);
        setting(c, mem_format("coordinator.endpoint=ipc://%s/cluster.sock", u->run_dir));
        setting(c, mem_format("node.listen=ipc://%s/%s.sock", u->run_dir, name));
        place_side(u, c, "compute", i);
        user_settings(u, c, "attn_node");
    }
}

/* In the child between fork and exec. */
static _Noreturn void become(const struct child *c, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1); /* the supervisor died before the line above took effect */
    int log = open(c->log_path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    int null = open("/dev/null", O_RDONLY);
    if (log < 0 || null < 0)
        _exit(1);
    dup2(null, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    /* An own group, so that Ctrl-C reaches the supervisor alone and the end is orderly. */
    setpgid(0, 0);
    execv(c->argv[0], c->argv);
    dprintf(STDERR_FILENO, "cannot start %s: %s\n", c->argv[0], strerror(errno));
    _exit(127);
}

static int start_child(struct child *c, struct err *e)
{
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0)
        return err_set_errno(e, errno, "start %s", c->name);
    if (pid == 0)
        become(c, parent);
    c->pid = pid;
    c->started_ns = clock_now_ns();
    return 0;
}

/* The last lines of a child's log, where the reason of its end stands. */
static void print_log_tail(const struct child *c)
{
    struct buf log = {0};
    if (buf_read_file(&log, c->log_path, 64 << 20, NULL) == 0) {
        size_t start = log.len;
        for (int lines = 0; start > 0 && lines < 6; start--)
            lines += log.data[start - 1] == '\n' && start < log.len;
        fprintf(stderr, "%s\n", log.data + start + (start > 0));
    }
    buf_fini(&log);
}

/* false: this child will not come up; the whole cluster should end. */
static bool child_ended(struct up *u, struct child *c, int wait_status)
{
    int64_t now = clock_now_ns();
    bool quick = now - c->started_ns < quick_ns;
    char how[64];
    if (WIFSIGNALED(wait_status))
        snprintf(how, sizeof how, "was killed by signal %d", WTERMSIG(wait_status));
    else
        snprintf(how, sizeof how, "ended with exit code %d", WEXITSTATUS(wait_status));
    c->pid = 0;
    c->quick_failures = quick ? c->quick_failures + 1 : 0;
    bool hopeless = WIFEXITED(wait_status) && (WEXITSTATUS(wait_status) == 2 || !u->was_ready) &&
                    WEXITSTATUS(wait_status) != 0;
    if (hopeless || c->quick_failures >= QUICK_FAILURES) {
        fprintf(stderr, "polymath up: %s %s; its last words:\n", c->name, how);
        print_log_tail(c);
        return false;
    }
    c->restart_ns = now + (500 * CLOCK_MS << c->quick_failures);
    fprintf(stderr, "%s %s; starting it again\n", c->name, how);
    return true;
}

/* false if a child cannot be kept running. */
static bool reap(struct up *u)
{
    for (;;) {
        int wait_status;
        pid_t pid = waitpid(-1, &wait_status, WNOHANG);
        if (pid <= 0)
            return true;
        if (pid == u->asking)
            u->asking = 0;
        for (int i = 0; i < u->n_children; i++)
            if (u->children[i].pid == pid && !child_ended(u, &u->children[i], wait_status))
                return false;
    }
}

static int restart_dead(struct up *u, struct err *e)
{
    int64_t now = clock_now_ns();
    for (int i = 0; i < u->n_children; i++) {
        struct child *c = &u->children[i];
        if (c->pid || now < c->restart_ns)
            continue;
        int rc = start_child(c, e);
        if (rc < 0)
            return rc;
        if (u->was_ready)
            fprintf(stderr, "%s is back as process %d\n", c->name, (int)c->pid);
    }
    return 0;
}

/* With port 0 the coordinator's log line ev=http.ready tells the address. */
static void find_url(struct up *u)
{
    struct buf log = {0};
    if (u->port != 0) {
        u->url = mem_format("http://%s:%d", u->host, u->port);
        return;
    }
    if (buf_read_file(&log, u->children[0].log_path, 64 << 20, NULL) == 0) {
        struct str text = buf_str(&log);
        size_t at = str_find(text, STR("ev=http.ready url="));
        if (at != SIZE_MAX) {
            const char *start = log.data + at + strlen("ev=http.ready url=");
            u->url = str_copy((struct str){start, strcspn(start, " \n")});
        }
    }
    buf_fini(&log);
}

static void say_why_not(struct up *u, const struct buf *answer)
{
    json_t *root = json_loadb(answer->data ? answer->data : "", answer->len, 0, NULL);
    const char *why = json_string_value(json_object_get(root, "why"));
    if (why && strcmp(why, u->last_why) != 0) {
        snprintf(u->last_why, sizeof u->last_why, "%s", why);
        fprintf(stderr, "waiting: %s\n", why);
    }
    json_decref(root);
}

static bool is_ready(struct up *u)
{
    if (!u->url)
        find_url(u);
    if (!u->url)
        return false;
    struct buf answer = {0};
    char *url = mem_format("%s/ready", u->url);
    int status = 0;
    struct http_exchange x = {.url = url, .timeout_ns = CLOCK_S};
    bool ready = http_exchange(u->http, &x, &status, &answer, NULL) == 0 && status == 200;
    if (!ready)
        say_why_not(u, &answer);
    mem_free(url);
    buf_fini(&answer);
    return ready;
}

/* The first question runs as a process of its own, so that the supervisor keeps watching. */
static void ask(struct up *u)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        char *self = mem_format("%s/polymath", u->bin_dir);
        char *const argv[] = {
            self, "chat", "--url", u->url, "--max-tokens", "48", "--once", mem_string(u->ask),
            NULL};
        printf("\n> %s\n", u->ask);
        fflush(stdout);
        execv(self, argv);
        _exit(127);
    }
    u->asking = pid > 0 ? pid : 0;
}

static void announce(struct up *u)
{
    printf("ready: %s  (%d expert node%s", u->url, u->n_experts, u->n_experts == 1 ? "" : "s");
    if (u->n_attention)
        printf(", %d attention node%s", u->n_attention, u->n_attention == 1 ? "" : "s");
    printf(")\n");
    if (u->plan.is_shared)
        printf("  %d nodes share %d CPUs: nothing is pinned, nothing waits busily\n",
               u->n_experts + u->n_sides, thread_cpu_count());
    else
        printf("  CPUs of their own: %d for each attention side, %d for each expert node\n",
               u->plan.side_cpus, u->plan.expert_cpus);
    for (int i = 0; i < u->n_children; i++)
        printf("  %-12s process %d, log %s\n", u->children[i].name, (int)u->children[i].pid,
               u->children[i].log_path);
    printf("try: curl -s %s/v1/chat/completions -d "
           "'{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"max_tokens\":16}'\n",
           u->url);
    printf("     %s/polymath chat --url %s\nCtrl-C ends the cluster.\n", u->bin_dir, u->url);
    fflush(stdout);
    if (u->ask)
        ask(u);
}

/* SIGTERM to all, nodes first so that they say goodbye; SIGKILL after ten seconds. */
static void stop_children(struct up *u)
{
    int64_t deadline = clock_now_ns() + 10 * CLOCK_S;
    bool killed = false;
    if (u->asking)
        kill(u->asking, SIGTERM);
    for (int i = u->n_children - 1; i >= 0; i--)
        if (u->children[i].pid)
            kill(u->children[i].pid, SIGTERM);
    for (;;) {
        int running = 0;
        for (int i = 0; i < u->n_children; i++) {
            struct child *c = &u->children[i];
            if (c->pid && waitpid(c->pid, NULL, WNOHANG) != 0)
                c->pid = 0;
            running += c->pid != 0;
        }
        if (running == 0)
            return;
        if (!killed && clock_now_ns() > deadline) {
            for (int i = 0; i < u->n_children; i++)
                if (u->children[i].pid)
                    kill(u->children[i].pid, SIGKILL);
            killed = true;
        }
        clock_sleep_until(clock_now_ns() + 20 * CLOCK_MS);
    }
}

static int supervise(struct up *u, int signal_fd)
{
    struct err e = {0};
    for (;;) {
        if (restart_dead(u, &e) < 0) {
            fprintf(stderr, "polymath up: %s\n", e.text);
            return 1;
        }
        struct pollfd p = {.fd = signal_fd, .events = POLLIN};
        if (poll(&p, 1, u->was_ready ? 500 : 100) > 0) {
            struct signalfd_siginfo info;
            if (read(signal_fd, &info, sizeof info) == sizeof info && info.ssi_signo != SIGCHLD)
                return 0;
            if (!reap(u))
                return 1;
        }
        if (!u->was_ready && is_ready(u)) {
            u->was_ready = true;
            announce(u);
        }
    }
}

static int make_run_dir(struct up *u, const char *dir, struct err *e)
{
    if (dir) {
        u->run_dir = mem_string(dir);
        if (mkdir(dir, 0755) < 0 && errno != EEXIST)
            return err_set_errno(e, errno, "create %s", dir);
        /* ipc paths must fit into sockaddr_un */
        if (strlen(dir) > 80)
            return err_set(e, E_INVALID, "--dir %s: over 80 characters, too long for sockets", dir);
        return 0;
    }
    char path[] = "/tmp/polymath-XXXXXX";
    if (!mkdtemp(path))
        return err_set_errno(e, errno, "create %s", path);
    u->run_dir = mem_string(path);
    u->run_dir_is_ours = true;
    return 0;
}

static void remove_run_dir(struct up *u, bool keep_logs)
{
    for (int i = 0; i < u->n_children; i++) {
        char *socket = mem_format("%s/%s.sock", u->run_dir, u->children[i].name);
        unlink(socket);
        mem_free(socket);
        if (u->run_dir_is_ours && !keep_logs)
            unlink(u->children[i].log_path);
    }
    char *socket = mem_format("%s/cluster.sock", u->run_dir);
    unlink(socket);
    mem_free(socket);
    if (u->run_dir_is_ours && !keep_logs)
        rmdir(u->run_dir);
}

static int find_bin_dir(struct up *u, struct err *e)
{
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n < 0)
        return err_set_errno(e, errno, "read /proc/self/exe");
    path[n] = 0;
    *strrchr(path, '/') = 0;
    u->bin_dir = mem_string(path);
    return 0;
}

static bool parse_count(const char *text, int least, int most, int *out)
{
    char *end;
    long n = strtol(text, &end, 10);
    if (*text == 0 || *end != 0 || n < least || n > most)
        return false;
    *out = (int)n;
    return true;
}

/* -1: go on; else the exit code. */
static int parse_options(struct up *u, int argc, char **argv, const char **dir)
{
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},  {"experts", required_argument, NULL, 'e'},
        {"attn", required_argument, NULL, 'a'},   {"port", required_argument, NULL, 'p'},
        {"host", required_argument, NULL, 'H'},   {"threads", required_argument, NULL, 't'},
        {"format", required_argument, NULL, 'f'}, {"set", required_argument, NULL, 's'},
        {"dir", required_argument, NULL, 'd'},    {"ask", required_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},         {0}};
    optind = 1;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        bool fine = true;
        switch (o) {
        case 'm':
            u->model = optarg;
            break;
        case 'e':
            fine = parse_count(optarg, 1, MAX_NODES, &u->n_experts);
            break;
        case 'a':
            fine = parse_count(optarg, 0, MAX_NODES, &u->n_attention);
            break;
        case 'p':
            fine = parse_count(optarg, 0, 65535, &u->port);
            break;
        case 'H':
            u->host = optarg;
            break;
        case 't':
            fine = parse_count(optarg, 1, 1024, &u->threads);
            break;
        case 'f':
            u->format = optarg;
            break;
        case 's':
            fine = u->n_settings < (int)(sizeof u->settings / sizeof u->settings[0]);
            if (fine)
                u->settings[u->n_settings++] = optarg;
            break;
        case 'd':
            *dir = optarg;
            break;
        case 'q':
            u->ask = optarg;
            break;
        case 'h':
            usage(stdout);
            return 0;
        default:
            return 2;
        }
        if (!fine) {
            fprintf(stderr, "polymath up: '%s' is out of range; see polymath up --help\n", optarg);
            return 2;
        }
    }
    if (optind < argc || !u->model) {
        fprintf(stderr,
                u->model ? "polymath up: unexpected argument '%s'\n"
                         : "polymath up: --model DIR is missing; `polymath synth --preset "
                           "m2-tiny --out DIR` makes a small one\n",
                u->model ? argv[optind] : "");
        return 2;
    }
    struct format_set formats;
    struct err e = {0};
    if (u->format && format_set_parse(u->format, &formats, &e) < 0) {
        fprintf(stderr, "polymath up: --format: %s\n", e.text);
        return 2;
    }
    return -1;
}

int up_main(int argc, char **argv)
{
    static struct up u = {.host = "127.0.0.1", .n_experts = 4, .port = 8080};
    const char *dir = NULL;
    struct err e = {0};
    int code = parse_options(&u, argc, argv, &dir);
    if (code >= 0)
        return code;
    if (find_bin_dir(&u, &e) < 0 || make_run_dir(&u, dir, &e) < 0) {
        fprintf(stderr, "polymath up: %s\n", e.text);
        return 1;
    }
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
    must(signal_fd >= 0);
    u.http = http_client_new();
    plan_children(&u);
    code = supervise(&u, signal_fd);
    stop_children(&u);
    remove_run_dir(&u, code != 0);
    http_client_free(&u.http);
    close(signal_fd);
    return code;
}
