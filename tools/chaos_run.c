/* tools/chaos_run.c - see chaos_run.h. */
#include "tools/chaos_run.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "tools/chaos_watch.h"
#include "tools/http_client.h"

enum { HTTP_PORT = 8080, MAX_CHOICES = 16 };
static const int64_t ready_ns = 120 * CLOCK_S, whole_ns = 60 * CLOCK_S, request_ns = 60 * CLOCK_S;

/* One scenario under way. */
struct run {
    struct chaos *chaos;
    const struct chaos_scenario *scenario;
    struct local_cluster cluster;
    struct chaos_net *net;
    struct chaos_load *load;
    struct rng rng;
    int replicas;
    bool is_expected[2 * LOCAL_CLUSTER_MAX_NODES + 1]; /* beside the processes: to be running */
    int64_t fault_ns[CHAOS_MAX_FAULTS];
    int n_faults;
    /* choices of the script since its first step */
    struct local_process *chosen[MAX_CHOICES];
    int n_chosen, turn;
    char *texts[CHAOS_MAX_SETTINGS + 8];
    int n_texts;
    struct chaos_result *result;
};

/* ---- time, signals and deaths ------------------------------------------------------------- */

static void add_why(struct run *r, const char *text)
{
    if (r->result->why.len > 0)
        buf_puts(&r->result->why, "; ");
    buf_puts(&r->result->why, text);
}

/* Takes note of processes that ended; one that nobody ended is a finding. */
static void reap(struct run *r)
{
    int wait_status;
    for (pid_t pid; (pid = waitpid(-1, &wait_status, WNOHANG)) > 0;) {
        struct local_process *p = local_cluster_ended(&r->cluster, pid);
        if (!p || !r->is_expected[p - r->cluster.processes])
            continue;
        char *text = WIFSIGNALED(wait_status)
                         ? mem_format("%s died of signal %d", p->name, WTERMSIG(wait_status))
                         : mem_format("%s ended with code %d", p->name, WEXITSTATUS(wait_status));
        add_why(r, text);
        mem_free(text);
        r->is_expected[p - r->cluster.processes] = false;
        local_cluster_print_log_tail(p);
    }
}

/* Lets time pass; E_CANCELLED after a signal. */
static int pass(struct run *r, int64_t until_ns, struct err *e)
{
    for (;;) {
        int64_t now_ns = clock_now_ns();
        struct pollfd p = {.fd = r->chaos->signal_fd, .events = POLLIN};
        if (poll(&p, 1, clock_left_ms(until_ns, now_ns, 20)) > 0) {
            r->chaos->is_interrupted = true;
            return err_set(e, E_CANCELLED, "interrupted");
        }
        reap(r);
        if (clock_now_ns() >= until_ns)
            return 0;
    }
}

/* ---- the cluster ----------------------------------------------------------------------------- */

/* A port for the coordinator, the same after its restart. */
static int free_port(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    bool known = fd >= 0 && bind(fd, (struct sockaddr *)&a, size) == 0 &&
                 getsockname(fd, (struct sockaddr *)&a, &size) == 0;
    if (fd >= 0)
        close(fd);
    return known ? ntohs(a.sin_port) : HTTP_PORT;
}

/* A setting whose text is ours: "%d" becomes the run directory, "spare." its name. */
static void set_text(struct run *r, const char *text)
{
    char *own;
    const char *place = strstr(text, "%d");
    if (strncmp(text, "spare.", 6) == 0)
        own = mem_format("expert-%d%s", r->cluster.n_experts - 1, text + 5);
    else if (place)
        own = mem_format("%.*s%s%s", (int)(place - text), text, r->cluster.run_dir, place + 2);
    else
        own = mem_string(text);
    r->texts[r->n_texts++] = own;
    must(local_cluster_set(&r->cluster, own));
}

static void configure(struct run *r)
{
    const struct chaos_options *o = &r->chaos->options;
    set_text(r, "coordinator.attention.kv_bytes=64MiB");
    set_text(r, "attn_node.attention.kv_bytes=64MiB");
    /* Measuring would disturb the others, who share this machine's memory. */
    if (chaos_knows(r->chaos, "expert_node.memory.read_bytes_s"))
        set_text(r, "expert_node.memory.read_bytes_s=10GiB");
    if (chaos_knows(r->chaos, "coordinator.placement.replicas")) {
        char *replicas = mem_format("coordinator.placement.replicas=%d", r->replicas);
        set_text(r, replicas);
        mem_free(replicas);
    }
    static const char *const programs[] = {"coordinator", "expert_node", "attn_node"};
    for (int i = 0; i < 3 && o->on_hosts; i++) {
        char *insecure = mem_format("%s.security.insecure", programs[i]);
        char *value = mem_format("%s=true", insecure);
        if (chaos_knows(r->chaos, insecure))
            set_text(r, value);
        mem_free(value);
        mem_free(insecure);
    }
    for (int i = 0; i < CHAOS_MAX_SETTINGS && r->scenario->settings[i]; i++)
        set_text(r, r->scenario->settings[i]);
    for (int i = 0; i < o->n_settings; i++)
        must(local_cluster_set(&r->cluster, o->settings[i]));
}

static int open_net(struct run *r, struct err *e)
{
    const struct chaos_options *o = &r->chaos->options;
    int n = 2 + r->cluster.n_experts + r->cluster.n_attention; /* the last one is the clients' */
    int rc = chaos_net_open(n, &o->wire, &r->net, e);
    if (rc < 0)
        return rc;
    r->cluster.net = r->net;
    r->cluster.host = chaos_net_address(r->net, 0);
    if (chaos_net_enter(r->net, n - 1) < 0)
        return err_set_errno(e, errno, "enter the clients' host");
    return 0;
}

static int open_cluster(struct run *r, struct err *e)
{
    const struct chaos_options *o = &r->chaos->options;
    r->cluster = (struct local_cluster){.model = o->model,
                                        .format = o->format,
                                        .host = "127.0.0.1",
                                        .n_experts = o->n_nodes + r->scenario->has_spare,
                                        .n_attention = r->scenario->n_attention,
                                        .threads = 1,
                                        .death_signal = SIGKILL};
    char *dir = o->dir ? mem_format("%s/%s", o->dir, r->scenario->name) : NULL;
    int rc = local_cluster_open(&r->cluster, dir, e);
    mem_free(dir);
    if (rc == 0 && o->on_hosts)
        rc = open_net(r, e);
    if (rc < 0)
        return rc;
    char *state = mem_format("%s/state", r->cluster.run_dir);
    bool has_state = mkdir(state, 0700) == 0 || errno == EEXIST;
    mem_free(state);
    if (!has_state)
        return err_set_errno(e, errno, "create a state directory in %s", r->cluster.run_dir);
    r->cluster.port = o->on_hosts ? HTTP_PORT : free_port();
    configure(r);
    local_cluster_plan(&r->cluster);
    return 0;
}

static int start(struct run *r, struct local_process *p, struct err *e)
{
    if (p->pid)
        return err_set(e, E_INTERNAL, "%s runs already", p->name);
    r->is_expected[p - r->cluster.processes] = true;
    return local_cluster_start(&r->cluster, p, e);
}

static struct local_process *spare(struct run *r)
{
    char name[32];
    snprintf(name, sizeof name, "expert-%d", r->cluster.n_experts - 1);
    return r->scenario->has_spare ? local_cluster_find(&r->cluster, name) : NULL;
}

static int n_expected_nodes(const struct run *r)
{
    int n = r->cluster.n_attention ? 0 : 1; /* the embedded side is a node too */
    for (int i = 1; i < r->cluster.n_processes; i++)
        n += r->is_expected[i];
    return n;
}

/* Until full redundancy.  E_DEADLINE, E_CANCELLED. */
static int wait_whole(struct run *r, int64_t within_ns, struct err *e)
{
    int64_t deadline_ns = clock_now_ns() + within_ns;
    while (!chaos_watch_is_whole(r->chaos->http, local_cluster_url(&r->cluster), r->replicas,
                                 n_expected_nodes(r))) {
        if (clock_now_ns() > deadline_ns)
            return err_set(e, E_DEADLINE, "the cluster is not whole after %lld s",
                           (long long)(within_ns / CLOCK_S));
        int rc = pass(r, clock_now_ns() + 20 * CLOCK_MS, e);
        if (rc < 0)
            return rc;
        if (r->result->why.len > 0 && !r->load)
            return err_set(e, E_UNAVAILABLE, "the cluster does not start");
    }
    return 0;
}

static int start_cluster(struct run *r, struct err *e)
{
    int rc = 0;
    for (int i = 0; i < r->cluster.n_processes && rc == 0; i++)
        if (&r->cluster.processes[i] != spare(r))
            rc = start(r, &r->cluster.processes[i], e);
    return rc < 0 ? rc : wait_whole(r, ready_ns, e);
}

/* ---- the script ------------------------------------------------------------------------------- */

static void note_fault(struct run *r)
{
    if (r->n_faults < CHAOS_MAX_FAULTS)
        r->fault_ns[r->n_faults++] = clock_now_ns();
}

/* Running processes whose name begins with `prefix`; picks one. */
static struct local_process *any(struct run *r, const char *prefix)
{
    struct local_process *found[2 * LOCAL_CLUSTER_MAX_NODES + 1];
    uint64_t n = 0;
    for (int i = 0; i < r->cluster.n_processes; i++)
        if (r->is_expected[i] && strncmp(r->cluster.processes[i].name, prefix, strlen(prefix)) == 0)
            found[n++] = &r->cluster.processes[i];
    return n ? found[rng_below(&r->rng, n)] : NULL;
}

static struct local_process *choose(struct run *r, const char *who)
{
    if (strcmp(who, "expert-?") == 0)
        return any(r, "expert-");
    if (strcmp(who, "attn-?") == 0)
        return any(r, "attn-");
    if (strcmp(who, "spare") == 0)
        return spare(r);
    if (strcmp(who, "last") == 0)
        return r->n_chosen ? r->chosen[r->n_chosen - 1] : NULL;
    if (strcmp(who, "first") == 0)
        return r->n_chosen ? r->chosen[0] : NULL;
    if (strcmp(who, "expert-+") != 0)
        return local_cluster_find(&r->cluster, who);
    char name[32];
    snprintf(name, sizeof name, "expert-%d", r->turn++ % r->cluster.n_experts);
    return local_cluster_find(&r->cluster, name);
}

static int send_signal(const struct local_process *p, int signal_number, struct err *e)
{
    if (p->pid == 0 || kill(p->pid, signal_number) < 0)
        return err_set(e, E_UNAVAILABLE, "%s does not run any more", p->name);
    return 0;
}

static int act_kill(struct run *r, struct local_process *p, struct err *e)
{
    r->is_expected[p - r->cluster.processes] = false;
    note_fault(r);
    int rc = send_signal(p, SIGKILL, e);
    while (rc == 0 && p->pid)
        rc = pass(r, clock_now_ns() + CLOCK_MS, e);
    return rc;
}

/* SIGTERM; the process has 60 s to end by itself, with exit code 0. */
static int act_drain(struct run *r, struct local_process *p, struct err *e)
{
    int64_t deadline_ns = clock_now_ns() + 60 * CLOCK_S;
    pid_t pid = p->pid;
    r->is_expected[p - r->cluster.processes] = false;
    note_fault(r);
    int rc = send_signal(p, SIGTERM, e), wait_status = 0;
    while (rc == 0 && waitpid(pid, &wait_status, WNOHANG) == 0) {
        struct pollfd poll_fd = {.fd = r->chaos->signal_fd, .events = POLLIN};
        if (poll(&poll_fd, 1, 10) > 0)
            return pass(r, 0, e);
        if (clock_now_ns() > deadline_ns)
            return err_set(e, E_DEADLINE, "%s does not end on SIGTERM", p->name);
    }
    if (rc == 0)
        p->pid = 0;
    if (rc == 0 && wait_status != 0) {
        char *text = mem_format("%s ended its drain with status %d", p->name, wait_status);
        add_why(r, text);
        mem_free(text);
    }
    return rc;
}

static int act_stutter(struct run *r, struct local_process *p, int for_ms, struct err *e)
{
    int64_t until_ns = clock_now_ns() + for_ms * CLOCK_MS;
    int rc = 0;
    note_fault(r);
    while (rc == 0 && clock_now_ns() < until_ns) {
        rc = send_signal(p, SIGSTOP, e);
        if (rc == 0)
            rc = pass(r, clock_now_ns() + 10 * CLOCK_MS, e);
        if (p->pid)
            kill(p->pid, SIGCONT);
        if (rc == 0)
            rc = pass(r, clock_now_ns() + 10 * CLOCK_MS, e);
    }
    return rc;
}

static int act_wire(struct run *r, const struct local_process *p, const struct chaos_step *s)
{
    struct chaos_wire wire = r->chaos->options.wire;
    wire.is_cut = s->act == CHAOS_CUT;
    if (s->act == CHAOS_LOSS)
        wire.loss_permille = s->amount;
    if (s->act == CHAOS_DELAY) {
        wire.delay_ns += s->amount * CLOCK_US;
        wire.jitter_ns += s->amount * CLOCK_US;
    }
    if (s->act != CHAOS_HEAL)
        note_fault(r);
    chaos_net_set(r->net, (int)(p - r->cluster.processes), &wire);
    return 0;
}

/* The time counts from the latest fault on. */
static int act_whole(struct run *r, struct err *e)
{
    int rc = wait_whole(r, whole_ns, e);
    int64_t took_ns = clock_now_ns() - (r->n_faults ? r->fault_ns[r->n_faults - 1] : 0);
    if (rc == 0 && r->n_faults && r->result->whole_ns >= 0 && took_ns > r->result->whole_ns)
        r->result->whole_ns = took_ns;
    if (rc == E_DEADLINE)
        r->result->whole_ns = -1;
    return rc == E_DEADLINE ? 0 : rc;
}

static int act(struct run *r, const struct chaos_step *s, struct err *e)
{
    struct local_process *p = s->who ? choose(r, s->who) : NULL;
    if (s->who && !p)
        return err_set(e, E_NOT_FOUND, "no process is \"%s\" here", s->who);
    if (p && r->n_chosen < MAX_CHOICES && strcmp(s->who, "first") != 0)
        r->chosen[r->n_chosen++] = p;
    switch (s->act) {
    case CHAOS_WAIT:
        return pass(r, clock_now_ns() + s->amount * CLOCK_MS, e);
    case CHAOS_KILL:
        return act_kill(r, p, e);
    case CHAOS_STOP:
        note_fault(r);
        return send_signal(p, SIGSTOP, e);
    case CHAOS_CONTINUE:
        return send_signal(p, SIGCONT, e);
    case CHAOS_STUTTER:
        return act_stutter(r, p, s->amount, e);
    case CHAOS_DRAIN:
        return act_drain(r, p, e);
    case CHAOS_START:
        if (r->scenario->has_spare && p == spare(r))
            note_fault(r); /* a newcomer disturbs too */
        return start(r, p, e);
    case CHAOS_WHOLE:
        return act_whole(r, e);
    case CHAOS_CUT:
    case CHAOS_LOSS:
    case CHAOS_DELAY:
    case CHAOS_HEAL:
        return act_wire(r, p, s);
    case CHAOS_AGAIN:
    case CHAOS_END:
        break;
    }
    unreachable();
}

static int play_script(struct run *r, struct err *e)
{
    int64_t until_ns = clock_now_ns() + r->chaos->options.seconds * CLOCK_S;
    const struct chaos_step *steps = r->scenario->steps;
    for (int i = 0, times = 1; i < CHAOS_MAX_STEPS && steps[i].act != CHAOS_END; i++) {
        if (steps[i].act == CHAOS_AGAIN) {
            if (steps[i].amount ? times++ == steps[i].amount : clock_now_ns() > until_ns)
                continue;
            i = -1;
            r->n_chosen = 0;
            continue;
        }
        int rc = act(r, &steps[i], e);
        if (rc < 0)
            return rc;
        if (r->result->whole_ns < 0)
            return 0;
    }
    return 0;
}

/* ---- clients ------------------------------------------------------------------------------------ */

static int start_load(struct run *r, int n_rounds, struct err *e)
{
    const struct chaos_options *o = &r->chaos->options;
    struct chaos_load_options l = {.url = local_cluster_url(&r->cluster),
                                   .prompts = r->chaos->prompts,
                                   .n_prompts = o->n_prompts,
                                   .n_clients = o->n_clients,
                                   .n_rounds = n_rounds,
                                   .patience = r->scenario->resumes ? CHAOS_RESUME : CHAOS_TRY_ONCE,
                                   .timeout_ns = request_ns};
    return chaos_load_start(&l, &r->load, e);
}

/* The streams, once all have ended; the caller frees them. */
static struct chaos_stream *finish_load(struct run *r, int *n, int *rc, struct err *e)
{
    while (*rc == 0 && !chaos_load_is_over(r->load))
        *rc = pass(r, clock_now_ns() + 20 * CLOCK_MS, e);
    return chaos_load_end(&r->load, *rc < 0 ? CHAOS_ABORT : CHAOS_FINISH, n);
}

static void free_streams(struct chaos_stream *streams, int n)
{
    for (int i = 0; i < n; i++)
        chaos_stream_fini(&streams[i]);
    mem_free(streams);
}

/* Plays every prompt once with nothing wrong and keeps what came. */
static int record(struct run *r, struct err *e)
{
    struct chaos *c = r->chaos;
    int n, rc = start_load(r, 1, e);
    if (rc < 0)
        return rc;
    struct chaos_stream *streams = finish_load(r, &n, &rc, e);
    for (int i = 0; i < n && rc == 0; i++)
        if (!streams[i].is_complete)
            rc = err_set(e, E_UNAVAILABLE, "undisturbed, a request failed: %s", streams[i].error);
    if (rc == 0) {
        c->answers = mem_array((size_t)c->options.n_prompts, sizeof *c->answers);
        for (int i = 0; i < n; i++) { /* the tokens change hands */
            c->answers[streams[i].prompt] =
                (struct chaos_answer){streams[i].tokens, streams[i].n_tokens};
            streams[i].tokens = NULL;
        }
    }
    free_streams(streams, n);
    return rc;
}

static void judge(struct run *r, const struct chaos_stream *streams, int n)
{
    struct chaos_result *out = r->result;
    struct chaos_record record_of = {.streams = streams,
                                     .n_streams = n,
                                     .answers = r->chaos->answers,
                                     .fault_ns = r->fault_ns,
                                     .n_faults = r->n_faults};
    struct buf metrics = {0}, misses = {0};
    chaos_judge(&record_of, &out->verdict);
    if (out->verdict.pause_ns > 0)
        out->pause_from_us =
            clock_unix_us() - (clock_now_ns() - out->verdict.pause_from_ns) / CLOCK_US;
    chaos_misses(&out->verdict, &r->scenario->target, out->whole_ns, &misses);
    if (misses.len > 0)
        add_why(r, misses.data);
    chaos_watch_metrics(r->chaos->http, local_cluster_url(&r->cluster), &metrics);
    out->retries = chaos_metric(buf_str(&metrics), "retr");
    out->hedges = chaos_metric(buf_str(&metrics), "hedge");
    out->outcome = out->why.len > 0 ? CHAOS_MISSED : CHAOS_KEPT;
    buf_fini(&metrics);
    buf_fini(&misses);
}

/* Clients stream, for a while undisturbed, then through the script and a second more. */
static int disturb(struct run *r, struct err *e)
{
    int64_t still_ns = r->chaos->options.seconds * CLOCK_S / 4;
    int n, rc = start_load(r, 0, e);
    if (rc < 0)
        return rc;
    rc = pass(r, clock_now_ns() + (still_ns > CLOCK_S ? still_ns : CLOCK_S), e);
    if (rc == 0)
        rc = play_script(r, e);
    if (rc == 0)
        rc = pass(r, clock_now_ns() + CLOCK_S, e);
    chaos_load_finish(r->load);
    struct chaos_stream *streams = finish_load(r, &n, &rc, e);
    if (rc == 0)
        judge(r, streams, n);
    free_streams(streams, n);
    return rc;
}

/* ---- all ----------------------------------------------------------------------------------------- */

/* In a program's --help every option begins a line. */
static bool names(struct str help, const char *key)
{
    for (size_t at; (at = str_find(help, str_of(key))) != SIZE_MAX;) {
        help.ptr += at + strlen(key);
        help.len -= at + strlen(key);
        bool ends = help.len == 0 || help.ptr[0] == '\n' || help.ptr[0] == ' ';
        if (ends && (at == 0 || help.ptr[-1 - (long)strlen(key)] == ' '))
            return true;
    }
    return false;
}

bool chaos_knows(const struct chaos *c, const char *option)
{
    static const char *const programs[] = {"coordinator.", "expert_node.", "attn_node."};
    const struct buf *const helps[] = {&c->coordinator_help, &c->expert_help, &c->attention_help};
    for (int i = 0; i < 3; i++)
        if (strncmp(option, programs[i], strlen(programs[i])) == 0)
            return names(buf_str(helps[i]), option + strlen(programs[i]));
    return false;
}

static const char *cannot(const struct chaos *c, const struct chaos_scenario *s)
{
    if (s->needs_hosts && !c->options.on_hosts)
        return "needs several hosts: --hosts";
    if (s->needs && !chaos_knows(c, s->needs))
        return "the programs of this build do not know its option";
    if (s->replicas > c->options.n_nodes)
        return "needs more expert nodes";
    return NULL;
}

int chaos_run(struct chaos *c, const struct chaos_scenario *s, struct chaos_result *out,
              struct err *e)
{
    *out = (struct chaos_result){.retries = -1, .hedges = -1};
    const char *why_not = cannot(c, s);
    if (why_not) {
        out->outcome = CHAOS_SKIPPED;
        buf_puts(&out->why, why_not);
        return 0;
    }
    static struct run r;
    r = (struct run){.chaos = c,
                     .scenario = s,
                     .result = out,
                     .rng = rng_seed(c->options.seed),
                     .replicas = s->replicas ? s->replicas : c->options.replicas};
    if (!chaos_knows(c, "coordinator.placement.replicas"))
        r.replicas = 1;
    int rc = open_cluster(&r, e);
    if (rc == 0)
        rc = start_cluster(&r, e);
    if (rc == 0 && !c->answers)
        rc = record(&r, e);
    if (rc == 0)
        rc = disturb(&r, e);
    local_cluster_stop(&r.cluster);
    chaos_net_close(&r.net);
    local_cluster_close(&r.cluster,
                        c->options.dir ? LOCAL_CLUSTER_KEEP_LOGS : LOCAL_CLUSTER_DROP_LOGS);
    for (int i = 0; i < r.n_texts; i++)
        mem_free(r.texts[i]);
    if (rc < 0 && rc != E_CANCELLED) {
        out->outcome = CHAOS_BROKEN;
        add_why(&r, e->text);
        *e = (struct err){0};
        rc = 0;
    }
    return rc;
}
