/* tools/local_etcd.c - see local_etcd.h. */
#include "tools/local_etcd.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "tools/local_cluster.h"

static const char program[] = "/usr/bin/etcd";
enum { MAX_ARGUMENTS = 28 };

struct arguments {
    const char *items[MAX_ARGUMENTS + 1];
    int n;
};

static void add(struct arguments *a, const char *option, const char *value)
{
    must(a->n + 2 <= MAX_ARGUMENTS);
    a->items[a->n++] = option;
    a->items[a->n++] = value;
}

const char *local_etcd_missing(void)
{
    return access(program, X_OK) == 0
               ? NULL
               : "needs /usr/bin/etcd: deploy/install-debian.sh installs etcd-server";
}

/* In the child between fork and exec. */
static _Noreturn void become(const struct local_etcd *t, const struct arguments *a, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || chdir(t->dir) < 0)
        _exit(127);
    int log = open("etcd.log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    if (t->net && chaos_net_enter(t->net, t->net_host) < 0)
        _exit(127);
    setpgid(0, 0);
    execv(program, (char *const *)(uintptr_t)a->items);
    _exit(127);
}

int local_etcd_start(struct local_etcd *t, struct err *e)
{
    must(t->pid == 0);
    const char *scheme = t->is_secured ? "https" : "http";
    t->client_port = t->client_port ? t->client_port : local_cluster_free_port();
    t->peer_port = t->peer_port ? t->peer_port : local_cluster_free_port();
    snprintf(t->url, sizeof t->url, "%s://%s:%d", scheme, t->host, t->client_port);
    char *peer = mem_format("http://%s:%d", t->host, t->peer_port);
    char *members = mem_format("default=%s", peer);
    struct arguments a = {.items = {program}, .n = 1};
    add(&a, "--data-dir", "etcd.data");
    add(&a, "--listen-client-urls", t->url);
    add(&a, "--advertise-client-urls", t->url);
    add(&a, "--listen-peer-urls", peer);
    add(&a, "--initial-advertise-peer-urls", peer);
    add(&a, "--initial-cluster", members);
    add(&a, "--heartbeat-interval", "50");
    add(&a, "--election-timeout", "500");
    add(&a, "--logger", "zap");
    add(&a, "--log-level", "warn");
    if (t->is_secured) {
        add(&a, "--cert-file", "server.pem");
        add(&a, "--key-file", "server.key");
        add(&a, "--trusted-ca-file", "ca.pem");
        a.items[a.n++] = "--client-cert-auth";
    }
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        become(t, &a, parent);
    mem_free(members);
    mem_free(peer);
    if (pid < 0)
        return err_set_errno(e, errno, "start %s", program);
    t->pid = pid;
    return 0;
}

bool local_etcd_answers(const struct local_etcd *t, struct http_client *http)
{
    struct buf answer = {0};
    char *url = mem_format("%s/v3/kv/range", t->url);
    int status = 0;
    struct http_exchange x = {.url = url, .body = "{\"key\":\"AA==\"}", .timeout_ns = CLOCK_S};
    bool fine = http_exchange(http, &x, &status, &answer, NULL) == 0 && status == 200;
    mem_free(url);
    buf_fini(&answer);
    return fine;
}

void local_etcd_kill(struct local_etcd *t)
{
    if (t->pid == 0)
        return;
    kill(t->pid, SIGKILL);
    waitpid(t->pid, NULL, 0);
    t->pid = 0;
}
