/* tools/chaos_script.c - the steps of a scenario, one after the other; see chaos_state.h. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "tools/chaos_state.h"

static const int64_t whole_ns = 60 * CLOCK_S;

/* ---- who ----------------------------------------------------------------------------------- */

static void note_fault(struct chaos_state *r)
{
    r->changed_ns = clock_now_ns();
    if (r->n_faults < CHAOS_MAX_FAULTS)
        r->fault_ns[r->n_faults++] = r->changed_ns;
}

/* Running processes whose name begins with `prefix`; picks one. */
static struct local_process *any(struct chaos_state *r, const char *prefix)
{
    struct local_process *found[2 * LOCAL_CLUSTER_MAX_NODES + 1];
    uint64_t n = 0;
    for (int i = 0; i < r->cluster.n_processes; i++)
        if (r->is_expected[i] && strncmp(r->cluster.processes[i].name, prefix, strlen(prefix)) == 0)
            found[n++] = &r->cluster.processes[i];
    return n ? found[rng_below(&r->rng, n)] : NULL;
}

/* How many processes take turns as `who`; 0: it names none in turn. */
static int n_in_turn(const struct chaos_state *r, const char *who)
{
    if (who && strcmp(who, "expert-+") == 0)
        return r->cluster.n_experts;
    if (who && strcmp(who, "attn-+") == 0)
        return r->cluster.n_attention;
    return 0;
}

static struct local_process *choose(struct chaos_state *r, const char *who)
{
    if (strcmp(who, "expert-?") == 0)
        return any(r, "expert-");
    if (strcmp(who, "attn-?") == 0)
        return any(r, "attn-");
    if (strcmp(who, "spare") == 0)
        return chaos_spare(r);
    if (strcmp(who, "last") == 0)
        return r->n_chosen ? r->chosen[r->n_chosen - 1] : NULL;
    if (strcmp(who, "first") == 0)
        return r->n_chosen ? r->chosen[0] : NULL;
    int n = n_in_turn(r, who); /* behind the coordinator come expert nodes, then attention nodes */
    if (n == 0)
        return local_cluster_find(&r->cluster, who);
    int first = strcmp(who, "attn-+") == 0 ? 1 + r->cluster.n_experts : 1;
    return &r->cluster.processes[first + r->turn++ % n];
}

/* ---- processes -------------------------------------------------------------------------------- */

static int send_signal(const struct local_process *p, int signal_number, struct err *e)
{
    if (p->pid == 0 || kill(p->pid, signal_number) < 0)
        return err_set(e, E_UNAVAILABLE, "%s does not run any more", p->name);
    return 0;
}

static int act_kill(struct chaos_state *r, struct local_process *p, struct err *e)
{
    r->is_expected[p - r->cluster.processes] = false;
    note_fault(r);
    int rc = send_signal(p, SIGKILL, e);
    while (rc == 0 && p->pid)
        rc = chaos_pass(r, clock_now_ns() + CLOCK_MS, e);
    return rc;
}

/* SIGTERM; the process has 60 s to end by itself, with exit code 0. */
static int act_drain(struct chaos_state *r, struct local_process *p, struct err *e)
{
    int64_t deadline_ns = clock_now_ns() + 60 * CLOCK_S;
    pid_t pid = p->pid;
    r->is_expected[p - r->cluster.processes] = false;
    note_fault(r);
    int rc = send_signal(p, SIGTERM, e), wait_status = 0;
    while (rc == 0 && waitpid(pid, &wait_status, WNOHANG) == 0) {
        struct pollfd poll_fd = {.fd = r->chaos->signal_fd, .events = POLLIN};
        if (poll(&poll_fd, 1, 10) > 0)
            return chaos_pass(r, 0, e);
        if (clock_now_ns() > deadline_ns)
            return err_set(e, E_DEADLINE, "%s does not end on SIGTERM", p->name);
    }
    if (rc == 0)
        p->pid = 0;
    if (rc == 0 && wait_status != 0) {
        char *text = mem_format("%s ended its drain with status %d", p->name, wait_status);
        chaos_add_why(r, text);
        mem_free(text);
    }
    return rc;
}

static int act_stutter(struct chaos_state *r, struct local_process *p, int for_ms, struct err *e)
{
    int64_t until_ns = clock_now_ns() + for_ms * CLOCK_MS;
    int rc = 0;
    note_fault(r);
    while (rc == 0 && clock_now_ns() < until_ns) {
        rc = send_signal(p, SIGSTOP, e);
        if (rc == 0)
            rc = chaos_pass(r, clock_now_ns() + 10 * CLOCK_MS, e);
        if (p->pid)
            kill(p->pid, SIGCONT);
        if (rc == 0)
            rc = chaos_pass(r, clock_now_ns() + 10 * CLOCK_MS, e);
    }
    return rc;
}

/* ---- wires, disks, clients ------------------------------------------------------------------------ */

static int act_wire(struct chaos_state *r, const struct local_process *p,
                    const struct chaos_step *s)
{
    struct chaos_wire wire = r->chaos->options.wire;
    wire.is_cut = s->act == CHAOS_CUT;
    if (s->act == CHAOS_LOSS)
        wire.loss_permille = s->amount;
    if (s->act == CHAOS_DELAY) {
        wire.delay_ns += s->amount * CLOCK_US;
        wire.jitter_ns += s->amount * CLOCK_US;
    }
    r->changed_ns = clock_now_ns();
    if (s->act != CHAOS_HEAL)
        note_fault(r);
    chaos_net_set(r->net, (int)(p - r->cluster.processes), &wire);
    return 0;
}

/* Until nothing fits into the state directory's file system any more, or there is room again. */
static int act_fill(struct chaos_state *r, bool fills, struct err *e)
{
    static const char zeros[4096];
    char *path = mem_format("%s/ballast", r->state_dir);
    int rc = 0;
    if (fills) {
        note_fault(r);
        int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        while (fd >= 0 && write(fd, zeros, sizeof zeros) > 0)
            continue;
        if (fd < 0 || errno != ENOSPC)
            rc = err_set_errno(e, errno, "fill %s", path);
        if (fd >= 0)
            close(fd);
    } else if (unlink(path) < 0) {
        rc = err_set_errno(e, errno, "remove %s", path);
    }
    mem_free(path);
    return rc;
}

static int act_rate(struct chaos_state *r, int for_ms, struct bench_series *per_s, struct err *e)
{
    int64_t begun_ns = clock_now_ns(), n = chaos_load_tokens(r->load);
    int rc = chaos_pass(r, begun_ns + for_ms * CLOCK_MS, e);
    bench_series_add(per_s, (double)(chaos_load_tokens(r->load) - n) * CLOCK_S /
                                (double)(clock_now_ns() - begun_ns));
    return rc;
}

/* The memory that each process really uses; 0: it does not run. */
static void read_sizes(const struct chaos_state *r, int64_t bytes[LOCAL_CLUSTER_MAX_PROCESSES])
{
    for (int i = 0; i < r->cluster.n_processes; i++) {
        char path[48];
        long pages = 0;
        snprintf(path, sizeof path, "/proc/%d/statm", (int)r->cluster.processes[i].pid);
        FILE *f = r->cluster.processes[i].pid ? fopen(path, "r") : NULL;
        if (f && fscanf(f, "%*d %ld", &pages) != 1)
            pages = 0;
        if (f)
            fclose(f);
        bytes[i] = pages * sysconf(_SC_PAGESIZE);
    }
}

/* What has gone wrong already need not be waited for. */
static int pass_unless_broken(struct chaos_state *r, int64_t until_ns, struct err *e)
{
    int rc = 0;
    while (rc == 0 && r->result->why.len == 0 && clock_now_ns() < until_ns) {
        int64_t soon_ns = clock_now_ns() + CLOCK_S;
        rc = chaos_pass(r, soon_ns < until_ns ? soon_ns : until_ns, e);
    }
    return rc;
}

/* A quarter of the time is for buffers that grow to what they shall be. */
static int act_attack(struct chaos_state *r, struct err *e)
{
    int64_t before[LOCAL_CLUSTER_MAX_PROCESSES], after[LOCAL_CLUSTER_MAX_PROCESSES];
    int64_t begun_ns = clock_now_ns(), for_ns = r->chaos->options.seconds * CLOCK_S;
    struct chaos_measures *m = &r->result->measures;
    note_fault(r);
    int rc = chaos_strangers_start(r, e);
    if (rc == 0)
        rc = pass_unless_broken(r, begun_ns + for_ns / 4, e);
    read_sizes(r, before);
    if (rc == 0)
        rc = pass_unless_broken(r, begun_ns + for_ns, e);
    read_sizes(r, after);
    chaos_strangers_stop(r);
    for (int i = 0; i < r->cluster.n_processes && rc == 0; i++)
        if (before[i] && after[i] - before[i] > m->growth_bytes)
            m->growth_bytes = after[i] - before[i];
    return rc;
}

static int act_whole(struct chaos_state *r, struct err *e)
{
    struct chaos_measures *m = &r->result->measures;
    int rc = chaos_wait_whole(r, whole_ns, e);
    int64_t took_ns = clock_now_ns() - r->changed_ns;
    if (rc == 0 && r->n_faults && m->whole_ns >= 0 && took_ns > m->whole_ns)
        m->whole_ns = took_ns;
    if (rc == E_DEADLINE || rc == E_UNAVAILABLE)
        m->whole_ns = -1;
    return m->whole_ns < 0 ? 0 : rc;
}

/* ---- the script ---------------------------------------------------------------------------------- */

static int act(struct chaos_state *r, const struct chaos_step *s, struct err *e)
{
    struct local_process *p = s->who ? choose(r, s->who) : NULL;
    if (s->who && !p)
        return err_set(e, E_NOT_FOUND, "no process is \"%s\" here", s->who);
    if (p && r->n_chosen < CHAOS_MAX_CHOICES && strcmp(s->who, "first") != 0)
        r->chosen[r->n_chosen++] = p;
    switch (s->act) {
    case CHAOS_WAIT:
        return chaos_pass(r, clock_now_ns() + s->amount * CLOCK_MS, e);
    case CHAOS_KILL:
        return act_kill(r, p, e);
    case CHAOS_STOP:
        note_fault(r);
        return send_signal(p, SIGSTOP, e);
    case CHAOS_CONTINUE:
        r->changed_ns = clock_now_ns();
        return send_signal(p, SIGCONT, e);
    case CHAOS_STUTTER:
        return act_stutter(r, p, s->amount, e);
    case CHAOS_DRAIN:
        return act_drain(r, p, e);
    case CHAOS_START:
        if (p == chaos_spare(r))
            note_fault(r); /* a newcomer disturbs too */
        r->changed_ns = clock_now_ns();
        return chaos_start_process(r, p, e);
    case CHAOS_WHOLE:
        return act_whole(r, e);
    case CHAOS_IN_STEP:
        return chaos_wait_in_step(r, whole_ns, e);
    case CHAOS_CUT:
    case CHAOS_LOSS:
    case CHAOS_DELAY:
    case CHAOS_HEAL:
        return act_wire(r, p, s);
    case CHAOS_RATE:
        return act_rate(r, s->amount, &r->result->measures.after_per_s, e);
    case CHAOS_RATE_OF_OTHERS:
        return act_rate(r, s->amount, &r->result->measures.remaining_per_s, e);
    case CHAOS_FILL:
    case CHAOS_FREE:
        return act_fill(r, s->act == CHAOS_FILL, e);
    case CHAOS_ATTACK:
        return act_attack(r, e);
    case CHAOS_AGAIN:
    case CHAOS_END:
        break;
    }
    unreachable();
}

/* Is the script played once more, having been played `times`? */
static bool goes_again(const struct chaos_state *r, const struct chaos_step *again, int times,
                       int64_t until_ns)
{
    const struct chaos_options *o = &r->chaos->options;
    if (again->amount == CHAOS_EVERY)
        return times < n_in_turn(r, r->scenario->steps[0].who);
    if (again->amount > 0)
        return times < again->amount;
    return o->count > 0 ? times < o->count : clock_now_ns() < until_ns;
}

int chaos_play(struct chaos_state *r, struct err *e)
{
    int64_t until_ns = clock_now_ns() + r->chaos->options.seconds * CLOCK_S;
    const struct chaos_step *steps = r->scenario->steps;
    for (int i = 0, times = 1; i < CHAOS_MAX_STEPS && steps[i].act != CHAOS_END; i++) {
        if (steps[i].act == CHAOS_AGAIN) {
            if (!goes_again(r, &steps[i], times++, until_ns))
                continue;
            i = -1;
            r->n_chosen = 0;
            continue;
        }
        int rc = act(r, &steps[i], e);
        if (rc < 0)
            return rc;
        if (r->result->measures.whole_ns < 0 || r->result->why.len > 0)
            return 0;
    }
    return 0;
}
