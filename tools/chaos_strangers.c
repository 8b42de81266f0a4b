/* tools/chaos_strangers.c - the process that attacks a scenario's ports; see chaos_state.h. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tools/chaos_state.h"

static const char endpoint_keys[][16] = {"cluster.listen=", "node.listen="};

/* Every port of every process: that of the Cluster or of the node, and HTTP. */
static char *targets(const struct chaos_state *r)
{
    struct buf out = {0};
    for (int i = 0; i < r->n_urls; i++)
        buf_printf(&out, "%s%s", i ? "," : "", r->urls[i]);
    for (int i = 0; i < r->cluster.n_processes; i++) {
        const struct local_process *p = &r->cluster.processes[i];
        for (int k = 0; k < 2 * p->argc; k++) {
            const char *key = endpoint_keys[k % 2], *text = p->argv[k / 2];
            if (strncmp(text, key, strlen(key)) == 0)
                buf_printf(&out, ",%s", text + strlen(key));
        }
    }
    return out.data;
}

static _Noreturn void become(const struct chaos_state *r, const char *where, const char *log_path,
                             pid_t parent)
{
    char *program = mem_format("%s/polymath", r->chaos->bin_dir);
    char *seed = mem_format("%llu", (unsigned long long)r->chaos->options.seed);
    char chaos[] = "chaos", attack[] = "--attack", with_seed[] = "--seed";
    char *argv[] = {program, chaos, attack, mem_string(where), with_seed, seed, NULL};
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (getppid() != parent || log < 0)
        _exit(1);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    setpgid(0, 0);
    execv(program, argv);
    _exit(127);
}

static char *log_path_of(const struct chaos_state *r)
{
    return mem_format("%s/strangers.log", r->cluster.run_dir);
}

int chaos_strangers_start(struct chaos_state *r, struct err *e)
{
    char *where = targets(r), *log_path = log_path_of(r);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        become(r, where, log_path, parent);
    mem_free(where);
    mem_free(log_path);
    if (pid < 0)
        return err_set_errno(e, errno, "start the strangers");
    r->strangers = pid;
    return 0;
}

void chaos_strangers_stop(struct chaos_state *r)
{
    if (!r->strangers)
        return;
    int64_t deadline_ns = clock_now_ns() + 5 * CLOCK_S;
    kill(r->strangers, SIGTERM);
    while (waitpid(r->strangers, NULL, WNOHANG) == 0) {
        if (clock_now_ns() > deadline_ns)
            kill(r->strangers, SIGKILL);
        clock_sleep_until(clock_now_ns() + 10 * CLOCK_MS);
    }
    r->strangers = 0;
    struct buf log = {0};
    char *log_path = log_path_of(r);
    if (buf_read_file(&log, log_path, 1 << 20, NULL) == 0) {
        const char *at = strstr(log.data ? log.data : "", "attacks=");
        r->result->measures.n_attacks += at ? strtoll(at + 8, NULL, 10) : 0;
    }
    mem_free(log_path);
    buf_fini(&log);
}
