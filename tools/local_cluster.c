/* tools/local_cluster.c - see local_cluster.h. */
#include "tools/local_cluster.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"

enum { CLUSTER_PORT = 7070, NODE_PORT = 7071 };

/* ---- which processes, with which options ------------------------------------------------ */

static void argument(struct local_process *p, char *text)
{
    must(p->argc < LOCAL_CLUSTER_MAX_ARGUMENTS - 1);
    p->argv[p->argc++] = text;
}

static void setting(struct local_process *p, char *assignment)
{
    argument(p, mem_string("--set"));
    argument(p, assignment);
}

bool local_cluster_set(struct local_cluster *r, const char *text)
{
    if (r->n_settings == LOCAL_CLUSTER_MAX_SETTINGS)
        return false;
    r->settings[r->n_settings++] = text;
    return true;
}

/* Adds what was set for this program, then what for this process alone. */
static void own_settings(const struct local_cluster *r, struct local_process *p,
                         const char *program)
{
    const char *const whose[] = {program, p->name};
    for (int k = 0; k < (strcmp(program, p->name) == 0 ? 1 : 2); k++) {
        size_t prefix = strlen(whose[k]);
        for (int i = 0; i < r->n_settings; i++)
            if (strncmp(r->settings[i], whose[k], prefix) == 0 && r->settings[i][prefix] == '.')
                setting(p, mem_string(r->settings[i] + prefix + 1));
    }
}

static struct local_process *add_process(struct local_cluster *r, const char *program,
                                         const char *name)
{
    must(r->n_processes < (int)(sizeof r->processes / sizeof r->processes[0]));
    struct local_process *p = &r->processes[r->n_processes++];
    p->name = mem_string(name);
    p->log_path = mem_format("%s/%s.log", r->run_dir, name);
    argument(p, mem_format("%s/%s", r->bin_dir, program));
    setting(p, mem_format("node.name=%s", name));
    setting(p, mem_format("model.path=%s", r->model));
    if (r->format)
        setting(p, mem_format("weights.format=%s", r->format));
    return p;
}

static char *cluster_endpoint(const struct local_cluster *r)
{
    if (r->net)
        return mem_format("tcp://%s:%d", chaos_net_address(r->net, 0), CLUSTER_PORT);
    return mem_format("ipc://%s/cluster.sock", r->run_dir);
}

/* The standby is the last process, on the last host but the clients'. */
static int standby_host(const struct local_cluster *r)
{
    return 1 + r->n_experts + r->n_attention + r->n_contexts;
}

static char *standby_endpoint(const struct local_cluster *r)
{
    if (r->net)
        return mem_format("tcp://%s:%d", chaos_net_address(r->net, standby_host(r)), CLUSTER_PORT);
    return mem_format("ipc://%s/standby.sock", r->run_dir);
}

/* Where nodes join. */
static char *coordinators(const struct local_cluster *r)
{
    char *first = cluster_endpoint(r);
    if (!r->standby_port)
        return first;
    char *second = standby_endpoint(r), *both = mem_format("%s,%s", first, second);
    mem_free(first);
    mem_free(second);
    return both;
}

static struct local_process *add_node(struct local_cluster *r, const char *program,
                                      const char *prefix, int index)
{
    char name[32];
    snprintf(name, sizeof name, "%s-%d", prefix, index);
    int host = r->n_processes;
    struct local_process *p = add_process(r, program, name);
    char *cluster = coordinators(r);
    setting(p, mem_format("coordinator.endpoint=%s", cluster));
    if (r->net)
        setting(p,
                mem_format("node.listen=tcp://%s:%d", chaos_net_address(r->net, host), NODE_PORT));
    else
        setting(p, mem_format("node.listen=ipc://%s/%s.sock", r->run_dir, name));
    mem_free(cluster);
    return p;
}

/* The attention side's share: `prefix` is where its program keeps the number of threads. */
static void place_side(struct local_cluster *r, struct local_process *p, const char *prefix)
{
    setting(p, mem_format("%s.threads=%d", prefix, r->plan.side_threads));
    if (r->n_contexts > 0)
        setting(p, mem_string("attention.borrows=true"));
    if (r->plan.is_crowded)
        setting(p, mem_string("attention.spin_us=0"));
}

static void place_expert(struct local_cluster *r, struct local_process *p)
{
    setting(p, mem_format("compute.threads=%d", r->plan.expert_threads));
    if (r->plan.is_crowded)
        setting(p, mem_string("compute.spin_us=0"));
}

/* Its rows wait for it, so it has the CPUs of the side that it works for; all together take of the free
 * memory what one on a machine of its own would. */
static void place_context(struct local_cluster *r, struct local_process *p)
{
    setting(p, mem_string("attention.lends=true"));
    setting(p, mem_format("compute.threads=%d", r->plan.side_threads));
    setting(
        p, mem_format("attention.kv_bytes=%zu", mem_available_bytes() / 4 / (size_t)r->n_contexts));
    if (r->plan.is_crowded)
        setting(p, mem_string("attention.spin_us=0"));
}

static struct local_process *add_coordinator(struct local_cluster *r, const char *name,
                                             const char *host, int port, char *listen)
{
    struct local_process *p = add_process(r, "coordinator", name);
    setting(p, mem_format("http.host=%s", host));
    setting(p, mem_format("http.port=%d", port));
    setting(p, mem_format("cluster.listen=%s", listen));
    mem_free(listen);
    setting(p, mem_format("attention.embedded=%s", r->n_attention ? "false" : "true"));
    if (!r->n_attention)
        place_side(r, p, "attention");
    return p;
}

static void add_standby(struct local_cluster *r)
{
    const char *host = r->net ? chaos_net_address(r->net, standby_host(r)) : r->host;
    struct local_process *p =
        add_coordinator(r, "standby", host, r->standby_port, standby_endpoint(r));
    setting(p, mem_string("state.standby=true"));
    own_settings(r, p, "coordinator");
}

void local_cluster_plan(struct local_cluster *r)
{
    r->n_sides = r->n_attention ? r->n_attention : 1;
    r->plan = cpu_plan_new(thread_cpu_count(), r->n_sides, r->n_experts, r->threads);
    struct local_process *p =
        add_coordinator(r, "coordinator", r->host, r->port, cluster_endpoint(r));
    own_settings(r, p, "coordinator");
    for (int i = 0; i < r->n_experts; i++) {
        p = add_node(r, "expert_node", "expert", i);
        place_expert(r, p);
        own_settings(r, p, "expert_node");
    }
    for (int i = 0; i < r->n_attention; i++) {
        p = add_node(r, "attn_node", "attn", i);
        place_side(r, p, "compute");
        own_settings(r, p, "attn_node");
    }
    for (int i = 0; i < r->n_contexts; i++) {
        p = add_node(r, "attn_node", "context", i);
        place_context(r, p);
        own_settings(r, p, "attn_node");
    }
    if (r->standby_port)
        add_standby(r);
}

struct local_process *local_cluster_find(struct local_cluster *r, const char *name)
{
    for (int i = 0; i < r->n_processes; i++)
        if (strcmp(r->processes[i].name, name) == 0)
            return &r->processes[i];
    return NULL;
}

/* ---- start and end ----------------------------------------------------------------------- */

/* In the child between fork and exec. */
static _Noreturn void become(const struct local_cluster *r, const struct local_process *p,
                             pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, r->death_signal);
    if (getppid() != parent)
        _exit(1); /* the supervisor died before the line above took effect */
    int log = open(p->log_path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    int null = open("/dev/null", O_RDONLY);
    if (log < 0 || null < 0)
        _exit(1);
    dup2(null, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    if (r->net && chaos_net_enter(r->net, (int)(p - r->processes)) < 0) {
        dprintf(STDERR_FILENO, "cannot enter the host of %s: %s\n", p->name, strerror(errno));
        _exit(127);
    }
    /* An own group, so that Ctrl-C reaches the supervisor alone and the end is orderly. */
    setpgid(0, 0);
    execv(p->argv[0], p->argv);
    dprintf(STDERR_FILENO, "cannot start %s: %s\n", p->argv[0], strerror(errno));
    _exit(127);
}

int local_cluster_start(struct local_cluster *r, struct local_process *p, struct err *e)
{
    must(p->pid == 0);
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0)
        return err_set_errno(e, errno, "start %s", p->name);
    if (pid == 0)
        become(r, p, parent);
    p->pid = pid;
    p->started_ns = clock_now_ns();
    return 0;
}

struct local_process *local_cluster_ended(struct local_cluster *r, pid_t pid)
{
    for (int i = 0; i < r->n_processes; i++)
        if (r->processes[i].pid == pid) {
            r->processes[i].pid = 0;
            return &r->processes[i];
        }
    return NULL;
}

/* SIGCONT, because a stopped process does not see SIGTERM. */
static void end_process(const struct local_process *p, int signal_number)
{
    if (p->pid) {
        kill(p->pid, signal_number);
        kill(p->pid, SIGCONT);
    }
}

void local_cluster_stop(struct local_cluster *r)
{
    int64_t deadline = clock_now_ns() + 10 * CLOCK_S;
    bool killed = false;
    for (int i = r->n_processes - 1; i >= 0; i--)
        end_process(&r->processes[i], SIGTERM);
    for (;;) {
        int running = 0;
        for (int i = 0; i < r->n_processes; i++) {
            struct local_process *p = &r->processes[i];
            if (p->pid && waitpid(p->pid, NULL, WNOHANG) != 0)
                p->pid = 0;
            running += p->pid != 0;
        }
        if (running == 0)
            return;
        if (!killed && clock_now_ns() > deadline) {
            for (int i = 0; i < r->n_processes; i++)
                end_process(&r->processes[i], SIGKILL);
            killed = true;
        }
        clock_sleep_until(clock_now_ns() + 20 * CLOCK_MS);
    }
}

void local_cluster_print_log_tail(const struct local_process *p)
{
    struct buf log = {0};
    if (buf_read_file(&log, p->log_path, 64 << 20, NULL) == 0) {
        size_t start = log.len;
        for (int lines = 0; start > 0 && lines < 6; start--)
            lines += log.data[start - 1] == '\n' && start < log.len;
        fprintf(stderr, "%s\n", log.data + start + (start > 0));
    }
    buf_fini(&log);
}

/* With port 0 the coordinator's latest log line ev=http.ready tells the address. */
const char *local_cluster_url(struct local_cluster *r)
{
    struct buf log = {0};
    if (r->url)
        return r->url;
    if (r->port != 0) {
        r->url = mem_format("http://%s:%d", r->host, r->port);
        return r->url;
    }
    if (buf_read_file(&log, r->processes[0].log_path, 64 << 20, NULL) == 0) {
        struct str text = buf_str(&log);
        size_t at = str_find(text, STR("ev=http.ready url="));
        if (at != SIZE_MAX) {
            const char *start = log.data + at + strlen("ev=http.ready url=");
            r->url = str_copy((struct str){start, strcspn(start, " \n")});
        }
    }
    buf_fini(&log);
    return r->url;
}

int local_cluster_free_port(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    bool known = fd >= 0 && bind(fd, (struct sockaddr *)&a, size) == 0 &&
                 getsockname(fd, (struct sockaddr *)&a, &size) == 0;
    if (fd >= 0)
        close(fd);
    return known ? ntohs(a.sin_port) : 0;
}

/* ---- the run directory -------------------------------------------------------------------- */

static int find_bin_dir(struct local_cluster *r, struct err *e)
{
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n < 0)
        return err_set_errno(e, errno, "read /proc/self/exe");
    path[n] = 0;
    *strrchr(path, '/') = 0;
    r->bin_dir = mem_string(path);
    return 0;
}

static int make_run_dir(struct local_cluster *r, const char *dir, struct err *e)
{
    if (dir) {
        r->run_dir = mem_string(dir);
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
    r->run_dir = mem_string(path);
    r->run_dir_is_ours = true;
    return 0;
}

int local_cluster_open(struct local_cluster *r, const char *dir, struct err *e)
{
    int rc = find_bin_dir(r, e);
    return rc < 0 ? rc : make_run_dir(r, dir, e);
}

static void remove_socket(const struct local_cluster *r, const char *name)
{
    char *path = mem_format("%s/%s.sock", r->run_dir, name);
    unlink(path);
    mem_free(path);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *walk)
{
    (void)st;
    (void)type;
    (void)walk;
    remove(path);
    return 0;
}

void local_cluster_remove_tree(const char *dir)
{
    nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

static void process_fini(struct local_process *p)
{
    for (int i = 0; i < p->argc; i++)
        mem_free(p->argv[i]);
    mem_free(p->name);
    mem_free(p->log_path);
}

void local_cluster_close(struct local_cluster *r, enum local_logs logs)
{
    for (int i = 0; i < r->n_processes; i++)
        remove_socket(r, r->processes[i].name);
    if (r->run_dir) {
        remove_socket(r, "cluster");
        if (r->run_dir_is_ours && logs == LOCAL_CLUSTER_DROP_LOGS)
            local_cluster_remove_tree(r->run_dir);
    }
    for (int i = 0; i < r->n_processes; i++)
        process_fini(&r->processes[i]);
    mem_free(r->bin_dir);
    mem_free(r->run_dir);
    mem_free(r->url);
    *r = (struct local_cluster){0};
}
