/* tools/chaos_run.c - see chaos_run.h. */
#include "tools/chaos_run.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "tools/chaos_state.h"
#include "tools/chaos_watch.h"

enum { PROGRESS_S = 5, STILL_TOKENS = 16 };
static const int64_t request_ns = 60 * CLOCK_S;

/* ---- time, signals and deaths ------------------------------------------------------------- */

void chaos_add_why(struct chaos_state *r, const char *text)
{
    if (r->result->why.len > 0)
        buf_puts(&r->result->why, "; ");
    buf_puts(&r->result->why, text);
}

/* Takes note of processes that ended; one that nobody ended is a finding. */
static void reap(struct chaos_state *r)
{
    int wait_status;
    for (pid_t pid; (pid = waitpid(-1, &wait_status, WNOHANG)) > 0;) {
        struct local_process *p = local_cluster_ended(&r->cluster, pid);
        if (pid == r->etcd.pid) {
            r->etcd.pid = 0;
            chaos_add_why(r, "etcd died");
        }
        if (pid == r->strangers) {
            r->strangers = 0;
            chaos_add_why(r, "the strangers died");
        }
        if (!p || !r->is_expected[p - r->cluster.processes])
            continue;
        char *text = WIFSIGNALED(wait_status)
                         ? mem_format("%s died of signal %d", p->name, WTERMSIG(wait_status))
                         : mem_format("%s ended with code %d", p->name, WEXITSTATUS(wait_status));
        chaos_add_why(r, text);
        mem_free(text);
        r->is_expected[p - r->cluster.processes] = false;
        local_cluster_print_log_tail(p);
    }
}

/* A line on stderr every few seconds. */
static void show_progress(struct chaos_state *r, int64_t now_ns)
{
    if (now_ns < r->next_progress_ns)
        return;
    if (r->next_progress_ns && r->load)
        fprintf(stderr, "polymath chaos: %s: %d faults, %lld tokens\n", r->scenario->name,
                r->n_faults, (long long)chaos_load_tokens(r->load));
    else if (r->next_progress_ns)
        fprintf(stderr, "polymath chaos: %s: the cluster starts\n", r->scenario->name);
    r->next_progress_ns = now_ns + PROGRESS_S * CLOCK_S;
}

/* Whoever sleeps for 20 ms and wakes much later was kept from the CPU, and the cluster with it. */
static void note_stall(struct chaos_state *r, int64_t late_ns)
{
    if (r->load && late_ns > r->result->measures.stalled_ns)
        r->result->measures.stalled_ns = late_ns;
}

int chaos_pass(struct chaos_state *r, int64_t until_ns, struct err *e)
{
    for (;;) {
        int64_t now_ns = clock_now_ns();
        struct pollfd p = {.fd = r->chaos->signal_fd, .events = POLLIN};
        int wait_ms = clock_left_ms(until_ns, now_ns, 20);
        if (poll(&p, 1, wait_ms) > 0) {
            r->chaos->is_interrupted = true;
            return err_set(e, E_CANCELLED, "interrupted");
        }
        note_stall(r, clock_now_ns() - now_ns - wait_ms * CLOCK_MS);
        reap(r);
        show_progress(r, now_ns);
        if (clock_now_ns() >= until_ns)
            return 0;
    }
}

/* ---- clients ------------------------------------------------------------------------------- */

static int start_load(struct chaos_state *r, int n_rounds, struct err *e)
{
    const struct chaos_options *o = &r->chaos->options;
    struct chaos_load_options l = {.n_urls = r->n_urls,
                                   .key_path = r->key_path,
                                   .prompts = r->chaos->prompts,
                                   .n_prompts = o->n_prompts,
                                   .n_clients = o->n_clients,
                                   .n_rounds = n_rounds,
                                   .patience = r->scenario->resumes ? CHAOS_RESUME : CHAOS_TRY_ONCE,
                                   .refusal = r->scenario->target.refusal,
                                   .timeout_ns = request_ns};
    for (int i = 0; i < r->n_urls; i++)
        l.urls[i] = r->urls[i];
    return chaos_load_start(&l, &r->load, e);
}

/* The streams, once all have ended; the caller frees them. */
static struct chaos_stream *finish_load(struct chaos_state *r, int *n, int *rc, struct err *e)
{
    while (*rc == 0 && !chaos_load_is_over(r->load))
        *rc = chaos_pass(r, clock_now_ns() + 20 * CLOCK_MS, e);
    return chaos_load_end(&r->load, *rc < 0 ? CHAOS_ABORT : CHAOS_FINISH, n);
}

static void free_streams(struct chaos_stream *streams, int n)
{
    for (int i = 0; i < n; i++)
        chaos_stream_fini(&streams[i]);
    mem_free(streams);
}

/* Plays every prompt once with nothing wrong and keeps what came. */
static int record(struct chaos_state *r, struct err *e)
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

/* What the coordinator that serves has counted. */
static void read_counters(struct chaos_state *r)
{
    struct buf metrics = {0};
    for (int i = 0; i < r->n_urls && metrics.len == 0; i++)
        chaos_watch_metrics(r->http, r->urls[i], &metrics);
    r->result->retries = chaos_metric(buf_str(&metrics), "polymath_expert_retries_total");
    r->result->hedges = chaos_metric(buf_str(&metrics), "polymath_expert_hedges_total");
    r->result->replays = chaos_metric(buf_str(&metrics), "polymath_replays_total");
    buf_fini(&metrics);
}

static void judge(struct chaos_state *r, const struct chaos_stream *streams, int n)
{
    struct chaos_result *out = r->result;
    struct chaos_record record_of = {.streams = streams,
                                     .n_streams = n,
                                     .answers = r->chaos->answers,
                                     .fault_ns = r->fault_ns,
                                     .n_faults = r->n_faults};
    struct buf misses = {0};
    chaos_judge(&record_of, &out->verdict);
    if (out->verdict.pause_ns > 0)
        out->pause_from_us =
            clock_unix_us() - (clock_now_ns() - out->verdict.pause_from_ns) / CLOCK_US;
    chaos_misses(&out->verdict, &r->scenario->target, &out->measures, &misses);
    if (misses.len > 0)
        chaos_add_why(r, misses.data);
    read_counters(r);
    out->outcome = out->why.len > 0 ? CHAOS_MISSED : CHAOS_KEPT;
    buf_fini(&misses);
}

/* On a busy machine it takes longer until every client has seen a few steps, without which nobody
 * knows what one costs. */
static int know_steps(struct chaos_state *r, struct err *e)
{
    int64_t least = (int64_t)STILL_TOKENS * r->chaos->options.n_clients;
    int64_t deadline_ns = clock_now_ns() + request_ns;
    int rc = 0;
    while (rc == 0 && chaos_load_tokens(r->load) < least && clock_now_ns() < deadline_ns)
        rc = chaos_pass(r, clock_now_ns() + 20 * CLOCK_MS, e);
    return rc;
}

/* Clients stream, for a while undisturbed, then through the script and a second more. */
static int disturb(struct chaos_state *r, struct err *e)
{
    int64_t still_ns = r->chaos->options.seconds * CLOCK_S / 4;
    if (still_ns > 10 * CLOCK_S)
        still_ns = 10 * CLOCK_S;
    int n, rc = start_load(r, 0, e);
    if (rc < 0)
        return rc;
    rc = chaos_pass(r, clock_now_ns() + (still_ns > CLOCK_S ? still_ns : CLOCK_S), e);
    if (rc == 0)
        rc = know_steps(r, e);
    if (rc == 0)
        rc = chaos_play(r, e);
    if (rc == 0)
        rc = chaos_pass(r, clock_now_ns() + CLOCK_S, e);
    chaos_load_finish(r->load);
    struct chaos_stream *streams = finish_load(r, &n, &rc, e);
    if (rc == 0)
        judge(r, streams, n);
    free_streams(streams, n);
    return rc;
}

/* ---- programs ----------------------------------------------------------------------------- */

int chaos_program(const char *const *argv, struct buf *out)
{
    int ends[2], wait_status;
    if (pipe(ends) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(ends[1]);
    char chunk[4096];
    for (ssize_t n; pid > 0 && (n = read(ends[0], chunk, sizeof chunk)) > 0;)
        buf_append(out, chunk, (size_t)n);
    close(ends[0]);
    if (pid < 0 || waitpid(pid, &wait_status, 0) != pid)
        return -1;
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1;
}

/* ---- all ------------------------------------------------------------------------------------ */

static const char *cannot(const struct chaos *c, const struct chaos_scenario *s)
{
    if (s->needs_hosts && !c->options.on_hosts)
        return "needs several hosts: --hosts";
    if (s->small_state && geteuid() != 0)
        return "needs a file system of its own: root";
    if (s->has_etcd && local_etcd_missing())
        return local_etcd_missing();
    if (s->replicas > c->options.n_nodes)
        return "needs more expert nodes";
    return NULL;
}

int chaos_run(struct chaos *c, const struct chaos_scenario *s, struct chaos_result *out,
              struct err *e)
{
    *out = (struct chaos_result){.retries = -1, .hedges = -1, .replays = -1};
    const char *why_not = cannot(c, s);
    if (why_not) {
        out->outcome = CHAOS_SKIPPED;
        buf_puts(&out->why, why_not);
        return 0;
    }
    static struct chaos_state r;
    r = (struct chaos_state){.chaos = c,
                             .scenario = s,
                             .result = out,
                             .http = http_client_new(),
                             .rng = rng_seed(c->options.seed),
                             .replicas = s->replicas ? s->replicas : c->options.replicas};
    int rc = chaos_cluster_open(&r, e);
    bool is_denied = rc == E_DENIED; /* no namespaces or mounts here: that is no finding */
    if (rc == 0)
        rc = chaos_cluster_start(&r, e);
    if (rc == 0 && !c->answers)
        rc = record(&r, e);
    if (rc == 0)
        rc = disturb(&r, e);
    chaos_strangers_stop(&r);
    chaos_cluster_close(&r);
    http_client_free(&r.http);
    if (rc < 0 && rc != E_CANCELLED) {
        out->outcome = is_denied ? CHAOS_SKIPPED : CHAOS_BROKEN;
        chaos_add_why(&r, e->text);
        *e = (struct err){0};
        rc = 0;
    }
    return rc;
}
