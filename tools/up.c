/* tools/up.c - `polymath up`: a local cluster under one supervisor.
 *
 * Starts the coordinator, expert nodes and attention nodes as separate processes that talk
 * over ipc sockets in a run directory, waits until the cluster is ready, starts again what
 * dies, and ends everything on SIGINT or SIGTERM.  Children die with the supervisor. */
#include "tools/up.h"

#include <getopt.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "model/format.h"
#include "tools/http_client.h"
#include "tools/local_cluster.h"

enum { QUICK_FAILURES = 5, EXIT_RESTART = 3 /* expert_node/main.c */ };
/* A child that lived shorter than this failed to start; it is not simply restarted. */
static const int64_t quick_ns = 3 * CLOCK_S;

/* When a dead process is started again, and how often in a row it failed at once. */
struct fate {
    int64_t restart_ns; /* CLOCK_NEVER: it was drained, and stays away */
    int quick_failures;
};

struct up {
    struct local_cluster cluster;
    const char *ask;
    bool was_ready;
    struct fate fates[LOCAL_CLUSTER_MAX_PROCESSES]; /* beside the cluster's processes */
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
          "  --contexts N     nodes that lend memory for contexts that are too long for one\n"
          "                   attention side; the sides borrow it (default 0)\n"
          "  --port P         HTTP port (default 8080; 0: any free one)\n"
          "  --host ADDRESS   HTTP address (default 127.0.0.1)\n"
          "  --format F       how weights and the KV cache are held (default native,kv=bf16):\n"
          "                   " FORMAT_SET_HELP ",\n"
          "                   FORMAT one of " FORMAT_CHOICES ",\n"
          "                   kv one of " KV_FORMAT_CHOICES "\n"
          "  --threads N      compute threads of each expert node (default: the nodes divide\n"
          "                   the CPUs; attention, which works while they wait, has all)\n"
          "  --set WHO.KEY=V  an option of one program: WHO is coordinator, expert_node,\n"
          "                   attn_node or a process such as expert-0, KEY as in configs/\n"
          "                   (repeatable)\n"
          "  --dir DIR        keep sockets and logs there (default: a temporary directory)\n"
          "  --replicas N     copies of each expert on different nodes, 1 to 4 (default 1)\n"
          "  --ask TEXT       ask this once the cluster is ready, print the answer, go on\n"
          "\nEnds on Ctrl-C.\n",
          out);
}

/* false: this process will not come up; the whole cluster should end. */
static bool process_ended(struct up *u, struct local_process *p, int wait_status)
{
    struct fate *f = &u->fates[p - u->cluster.processes];
    int64_t now = clock_now_ns();
    bool quick = now - p->started_ns < quick_ns;
    char how[64];
    if (WIFSIGNALED(wait_status))
        snprintf(how, sizeof how, "was killed by signal %d", WTERMSIG(wait_status));
    else
        snprintf(how, sizeof how, "ended with exit code %d", WEXITSTATUS(wait_status));
    bool is_drained = strncmp(p->name, "expert-", 7) == 0 || strncmp(p->name, "context-", 8) == 0;
    bool is_exit = WIFEXITED(wait_status);
    if (is_drained && is_exit && WEXITSTATUS(wait_status) == 0) {
        fprintf(stderr, "%s was drained and stays away\n", p->name);
        f->restart_ns = CLOCK_NEVER;
        return true;
    }
    if (is_drained && is_exit && WEXITSTATUS(wait_status) == EXIT_RESTART) {
        fprintf(stderr, "%s was drained to be started again\n", p->name);
        f->restart_ns = now;
        return true;
    }
    f->quick_failures = quick ? f->quick_failures + 1 : 0;
    bool hopeless = WIFEXITED(wait_status) && (WEXITSTATUS(wait_status) == 2 || !u->was_ready) &&
                    WEXITSTATUS(wait_status) != 0;
    if (hopeless || f->quick_failures >= QUICK_FAILURES) {
        fprintf(stderr, "polymath up: %s %s; its last words:\n", p->name, how);
        local_cluster_print_log_tail(p);
        return false;
    }
    f->restart_ns = now + (500 * CLOCK_MS << f->quick_failures);
    fprintf(stderr, "%s %s; starting it again\n", p->name, how);
    return true;
}

/* false if a process cannot be kept running. */
static bool reap(struct up *u)
{
    for (;;) {
        int wait_status;
        pid_t pid = waitpid(-1, &wait_status, WNOHANG);
        if (pid <= 0)
            return true;
        if (pid == u->asking)
            u->asking = 0;
        struct local_process *p = local_cluster_ended(&u->cluster, pid);
        if (p && !process_ended(u, p, wait_status))
            return false;
    }
}

static int restart_dead(struct up *u, struct err *e)
{
    int64_t now = clock_now_ns();
    for (int i = 0; i < u->cluster.n_processes; i++) {
        struct local_process *p = &u->cluster.processes[i];
        if (p->pid || now < u->fates[i].restart_ns)
            continue;
        int rc = local_cluster_start(&u->cluster, p, e);
        if (rc < 0)
            return rc;
        if (u->was_ready)
            fprintf(stderr, "%s is back as process %d\n", p->name, (int)p->pid);
    }
    return 0;
}

static void say_why_not(struct up *u, const struct buf *answer)
{
    json_t *root = json_loadb(answer->data ? answer->data : "", answer->len, 0, NULL);
    const char *why = json_string_value(json_object_get(root, "reason"));
    if (why && strcmp(why, u->last_why) != 0) {
        snprintf(u->last_why, sizeof u->last_why, "%s", why);
        fprintf(stderr, "waiting: %s\n", why);
    }
    json_decref(root);
}

static bool is_ready(struct up *u)
{
    if (!local_cluster_url(&u->cluster))
        return false;
    struct buf answer = {0};
    char *url = mem_format("%s/ready", u->cluster.url);
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
        char *self = mem_format("%s/polymath", u->cluster.bin_dir);
        char *const argv[] = {self,
                              "chat",
                              "--url",
                              u->cluster.url,
                              "--max-tokens",
                              "48",
                              "--once",
                              mem_string(u->ask),
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
    const struct local_cluster *r = &u->cluster;
    printf("ready: %s  (%d expert node%s", r->url, r->n_experts, r->n_experts == 1 ? "" : "s");
    if (r->n_attention)
        printf(", %d attention node%s", r->n_attention, r->n_attention == 1 ? "" : "s");
    if (r->n_contexts)
        printf(", %d that lend%s memory", r->n_contexts, r->n_contexts == 1 ? "s" : "");
    printf(")\n");
    printf("  %d CPUs, which attention and experts take turns on: %d thread%s for each attention "
           "side, "
           "%d for each expert node%s\n",
           thread_cpu_count(), r->plan.side_threads, r->plan.side_threads == 1 ? "" : "s",
           r->plan.expert_threads,
           r->plan.is_crowded ? " (more than CPUs: nothing waits busily)" : "");
    for (int i = 0; i < r->n_processes; i++)
        printf("  %-12s process %d, log %s\n", r->processes[i].name, (int)r->processes[i].pid,
               r->processes[i].log_path);
    printf("try: curl -s %s/v1/chat/completions -d "
           "'{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"max_tokens\":16}'\n",
           r->url);
    printf("     %s/polymath chat --url %s\nCtrl-C ends the cluster.\n", r->bin_dir, r->url);
    fflush(stdout);
    if (u->ask)
        ask(u);
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
        {"model", required_argument, NULL, 'm'},    {"experts", required_argument, NULL, 'e'},
        {"attn", required_argument, NULL, 'a'},     {"contexts", required_argument, NULL, 'c'},
        {"port", required_argument, NULL, 'p'},     {"host", required_argument, NULL, 'H'},
        {"threads", required_argument, NULL, 't'},  {"format", required_argument, NULL, 'f'},
        {"set", required_argument, NULL, 's'},      {"dir", required_argument, NULL, 'd'},
        {"replicas", required_argument, NULL, 'r'}, {"ask", required_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},           {0}};
    int replicas;
    optind = 1;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        bool fine = true;
        switch (o) {
        case 'm':
            u->cluster.model = optarg;
            break;
        case 'e':
            fine = parse_count(optarg, 1, LOCAL_CLUSTER_MAX_NODES, &u->cluster.n_experts);
            break;
        case 'a':
            fine = parse_count(optarg, 0, LOCAL_CLUSTER_MAX_NODES, &u->cluster.n_attention);
            break;
        case 'c':
            fine = parse_count(optarg, 0, LOCAL_CLUSTER_MAX_NODES, &u->cluster.n_contexts);
            break;
        case 'p':
            fine = parse_count(optarg, 0, 65535, &u->cluster.port);
            break;
        case 'H':
            u->cluster.host = optarg;
            break;
        case 't':
            fine = parse_count(optarg, 1, 1024, &u->cluster.threads);
            break;
        case 'f':
            u->cluster.format = optarg;
            break;
        case 's':
            fine = local_cluster_set(&u->cluster, optarg);
            break;
        case 'd':
            *dir = optarg;
            break;
        case 'r':
            fine = parse_count(optarg, 1, 4, &replicas) &&
                   local_cluster_set(&u->cluster,
                                     mem_format("coordinator.placement.replicas=%d", replicas));
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
    if (optind < argc || !u->cluster.model) {
        fprintf(stderr,
                u->cluster.model ? "polymath up: unexpected argument '%s'\n"
                                 : "polymath up: --model DIR is missing; `polymath synth --preset "
                                   "m2-tiny --out DIR` makes a small one\n",
                u->cluster.model ? argv[optind] : "");
        return 2;
    }
    struct format_set formats;
    struct err e = {0};
    if (u->cluster.format && format_set_parse(u->cluster.format, &formats, &e) < 0) {
        fprintf(stderr, "polymath up: --format: %s\n", e.text);
        return 2;
    }
    return -1;
}

int up_main(int argc, char **argv)
{
    static struct up u = {
        .cluster = {.host = "127.0.0.1", .n_experts = 4, .port = 8080, .death_signal = SIGTERM}};
    const char *dir = NULL;
    struct err e = {0};
    int code = parse_options(&u, argc, argv, &dir);
    if (code >= 0)
        return code;
    if (local_cluster_open(&u.cluster, dir, &e) < 0) {
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
    local_cluster_plan(&u.cluster);
    code = supervise(&u, signal_fd);
    if (u.asking)
        kill(u.asking, SIGTERM);
    local_cluster_stop(&u.cluster);
    local_cluster_close(&u.cluster, code == 0 ? LOCAL_CLUSTER_DROP_LOGS : LOCAL_CLUSTER_KEEP_LOGS);
    http_client_free(&u.http);
    close(signal_fd);
    return code;
}
