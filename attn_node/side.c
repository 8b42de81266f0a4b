/* attn_node/side.c - see side.h.
 *
 * The control thread answers Describe, health and heartbeats itself, so that a long step
 * never looks like a death; Step, Release and new tables are jobs for the engine thread.
 * Jobs come from a fixed set: when all are out, the answer is E_BUSY.  A new table has a
 * job of its own and waits in `next_table` while that one is out. */
#include "attn_node/side.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "attn_node/moe_remote.h"
#include "attn_node/runner.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "base/version.h"
#include "engine/kv.h"
#include "engine/model_open.h"
#include "model/grammar_tokens.h"
#include "rpc/endpoint.h"
#include "rpc/loop.h"
#include "rpc/member.h"
#include "rpc/server.h"

enum { MAX_CALLS = 32 /* steps and releases that wait for the engine thread */ };
/* A step in progress may finish before the process ends. */
#define STOP_TIMEOUT_NS (2 * CLOCK_S)
#define TELL_EVERY_NS (5 * CLOCK_S)
/* How often the coordinator hears which experts are chosen. */
#define LOAD_EVERY_NS (2 * CLOCK_S)
/* Without a coordinator nobody takes over the sequences of a side that drains. */
#define ALONE_NS (CLOCK_S / 4)

struct side {
    struct side_config config;
    char *name, *coordinator_endpoint, *listen_endpoint, *advertise;
    struct checkpoint *checkpoint;
    struct tokenizer *tokenizer; /* for grammars; NULL: the checkpoint has none */
    struct token_list *words;
    uint64_t fingerprint;
    const struct kernels *kernels;
    int threads;
    int64_t told_ns; /* how far packing is */
    struct runner *runner;
    struct thread *control;

    struct err refusal; /* written before is_refused is set */
    _Atomic bool is_refused;
    _Atomic bool is_told_to_go, wants_restart;
    _Atomic bool wants_drain, may_go;

    /* control thread only */
    struct thread *self;
    struct loop *loop;
    struct server *server;
    struct member *member;
    struct loop_timer stop_timer; /* looks for thread_stop() */
    struct runner_job jobs[MAX_CALLS];
    struct runner_job *idle[MAX_CALLS];
    int n_idle;
    struct runner_job table_job;
    bool is_table_out;
    struct wire_table *next_table;
    uint32_t next_node_id; /* what it is for */
    uint32_t kv_pages;     /* as told last */
    uint64_t epoch;
    uint32_t n_broken;
    uint64_t broken[WIRE_MAX_BROKEN]; /* of the expert nodes, as reported */
    bool is_draining;
    int64_t drain_deadline_ns, connected_ns;
    int64_t load_ns; /* when the router's counts were sent last */
};

/* ---- calls --------------------------------------------------------------------------- */

static struct runner_job *take_job(struct side *s, enum runner_job_kind kind,
                                   struct server_call *call, const struct server_request *r)
{
    if (s->n_idle == 0)
        return NULL;
    struct runner_job *job = s->idle[--s->n_idle];
    job->kind = kind;
    job->ud = call;
    job->deadline_ns = r->deadline_ns;
    job->trace_id = r->trace_id;
    return job;
}

static void put_job(struct side *s, struct runner_job *job)
{
    runner_job_fini(job);
    s->idle[s->n_idle++] = job;
}

/* The queue has room for every job there is. */
static void submit(struct side *s, struct runner_job *job)
{
    must_zero(runner_submit(s->runner, &job));
}

static void on_step(void *ud, struct server_call *call, const struct server_request *r)
{
    struct side *s = ud;
    struct runner_job *job = take_job(s, RUNNER_STEP, call, r);
    if (!job) {
        server_fail(&call, E_BUSY, "%d calls wait for the engine already", MAX_CALLS);
        return;
    }
    const struct model_config *model = checkpoint_config(s->checkpoint);
    struct wire_step_limits limits = {
        .max_rows = (uint32_t)s->config.max_rows,
        .max_seqs = (uint32_t)s->config.max_seqs,
        .vocab_size = (uint32_t)model->vocab_size,
        .max_positions = (uint32_t)model->max_positions,
    };
    struct err e = {0};
    int rc = wire_step_decode(r->message, r->payloads, r->n_payloads, &limits, &job->step, &e);
    if (rc < 0) {
        put_job(s, job);
        server_fail(&call, rc, "%s", e.text);
        return;
    }
    submit(s, job);
}

static void on_release(void *ud, struct server_call *call, const struct server_request *r)
{
    struct side *s = ud;
    struct runner_job *job = take_job(s, RUNNER_RELEASE, call, r);
    if (!job) {
        server_fail(&call, E_BUSY, "%d calls wait for the engine already", MAX_CALLS);
        return;
    }
    struct err e = {0};
    int rc = wire_release_decode(r->message, &job->release, &e);
    if (rc < 0) {
        put_job(s, job);
        server_fail(&call, rc, "%s", e.text);
        return;
    }
    submit(s, job);
}

static void on_describe(void *ud, struct server_call *call, const struct server_request *r)
{
    struct side *s = ud;
    (void)r;
    struct wire_attention_description d = {
        .fingerprint = s->fingerprint,
        .epoch = s->epoch,
        .session = runner_session(s->runner),
        .keeps_prefixes = s->config.keeps_prefixes,
        .takes_drafts = true,
        .kv_pages_total = (uint32_t)runner_kv_pages_total(s->runner),
        .kv_pages_free = (uint32_t)runner_kv_pages_free(s->runner),
        .page_tokens = KV_PAGE_TOKENS,
        .max_rows = (uint32_t)s->config.max_rows,
        .max_seqs = (uint32_t)s->config.max_seqs,
        .max_positions = (uint32_t)checkpoint_config(s->checkpoint)->max_positions,
        .protocol_version = POLYMATH_PROTOCOL_VERSION,
        .formats = s->config.formats,
        .combine = s->config.combine,
    };
    snprintf(d.name, sizeof(d.name), "%s", s->name);
    snprintf(d.kernels, sizeof(d.kernels), "%s", s->kernels->name);
    snprintf(d.build, sizeof(d.build), "%s", version_string());
    struct buf message = {0};
    wire_attention_description_encode(&d, &message);
    server_reply(&call, &(struct server_answer){.message = &message});
    buf_fini(&message);
}

static void answer(struct runner_job *job)
{
    struct server_call *call = job->ud;
    if (job->code < 0 && !job->has_message) {
        server_fail(&call, job->code, "%s", job->why.text);
        return;
    }
    bool is_step = job->kind == RUNNER_STEP;
    struct blob *report = NULL;
    if (is_step && job->report.len > 0) {
        report = blob_new(job->report.len);
        memcpy(report->data, job->report.data, job->report.len);
    }
    struct server_answer a = {
        .message = is_step ? &job->message : NULL,
        .payloads = &report,
        .n_payloads = report != NULL,
        .queue_us = job->queue_us,
        .compute_us = job->compute_us,
    };
    server_reply(&call, &a);
    if (report)
        blob_unref(&report);
}

/* ---- tables and membership ----------------------------------------------------------- */

static void report(struct side *s)
{
    struct member_report r = {.state = s->is_draining ? NODE_DRAINING : NODE_READY,
                              .epoch = s->epoch,
                              .n_broken = s->n_broken,
                              .kv_pages = (uint32_t)runner_kv_pages_total(s->runner)};
    s->kv_pages = r.kv_pages;
    memcpy(r.broken, s->broken, sizeof(r.broken));
    member_report(s->member, &r);
}

/* The coordinator learns at once which nodes cannot be asked any more. */
static void hear_news(struct side *s, const struct runner_job *news)
{
    s->n_broken = news->n_broken;
    memcpy(s->broken, news->broken, sizeof(s->broken));
    runner_heard(s->runner);
    if (s->member)
        report(s);
}

static void install_next_table(struct side *s)
{
    if (s->is_table_out || !s->next_table)
        return;
    s->table_job.kind = RUNNER_TABLE;
    s->table_job.table = s->next_table;
    s->table_job.node_id = s->next_node_id;
    s->next_table = NULL;
    s->is_table_out = true;
    submit(s, &s->table_job);
}

static void on_table(void *ud, const struct wire_table *t)
{
    struct side *s = ud;
    mem_free(s->next_table);
    s->next_table = moe_remote_copy_table(t);
    s->next_node_id = member_node_id(s->member);
    install_next_table(s);
}

static void finish_table(struct side *s)
{
    s->is_table_out = false;
    s->epoch = s->table_job.epoch;
    if (s->member)
        report(s);
    install_next_table(s);
}

static void on_done(void *ud, int64_t now_ns)
{
    struct side *s = ud;
    (void)now_ns;
    for (struct runner_job *job; (job = runner_take_done(s->runner));) {
        if (job == &s->table_job) {
            finish_table(s);
            continue;
        }
        if (job->kind == RUNNER_NEWS) {
            hear_news(s, job);
            continue;
        }
        answer(job);
        put_job(s, job);
    }
}

/* The member has logged it. */
static void on_refused(void *ud, const struct err *e)
{
    struct side *s = ud;
    s->refusal = *e;
    atomic_store(&s->is_refused, true);
}

static void end_drain(struct side *s, const char *why)
{
    if (atomic_load(&s->may_go))
        return;
    log_info("node.drained", "why=%s", log_quote(why).text);
    atomic_store(&s->may_go, true);
}

static void mind_drain(struct side *s, int64_t now_ns)
{
    if (!s->is_draining && atomic_load(&s->wants_drain)) {
        s->is_draining = true;
        s->drain_deadline_ns = now_ns + s->config.drain_timeout_ns;
        s->connected_ns = now_ns;
        log_info("node.draining", "timeout_ms=%lld",
                 (long long)(s->config.drain_timeout_ns / CLOCK_MS));
        report(s);
    }
    if (!s->is_draining)
        return;
    if (member_node_id(s->member) == 0)
        end_drain(s, "it is in no cluster");
    if (member_is_connected(s->member))
        s->connected_ns = now_ns;
    else if (now_ns - s->connected_ns >= ALONE_NS)
        end_drain(s, "the coordinator is not there");
    if (now_ns >= s->drain_deadline_ns)
        end_drain(s, "drain.timeout_ms is over");
}

/* Whoever runs the side drains and ends it. */
static void on_orders(void *ud, const struct wire_heartbeat_reply *r)
{
    struct side *s = ud;
    if (s->is_draining && r->may_leave)
        end_drain(s, "others have its sequences");
    if (!r->drain || atomic_load(&s->is_told_to_go))
        return;
    atomic_store(&s->wants_restart, r->restart);
    atomic_store(&s->is_told_to_go, true);
}

static int join(struct side *s, struct err *e)
{
    const struct model_config *model = checkpoint_config(s->checkpoint);
    struct member_options o = {
        .coordinator_endpoint = s->coordinator_endpoint,
        .auth = s->config.auth,
        .join =
            {
                .role = NODE_ATTENTION,
                .pid = (uint32_t)getpid(),
                .threads = (uint32_t)s->threads,
                .protocol_version = POLYMATH_PROTOCOL_VERSION,
                .fingerprint = s->fingerprint,
                .formats = s->config.formats,
                .combine = s->config.combine,
                .memory_bytes = (uint64_t)runner_kv_pages_total(s->runner) *
                                kv_page_bytes(model, s->config.formats.kv),
                .max_rows = (uint32_t)s->config.max_rows,
                .borrows = s->config.borrows,
            },
        .on_table = on_table,
        .on_refused = on_refused,
        .on_orders = on_orders,
        .ud = s,
    };
    snprintf(o.join.name, sizeof(o.join.name), "%s", s->name);
    int rc = endpoint_advertise(server_endpoint(s->server), s->advertise, o.join.endpoint, e);
    if (rc < 0)
        return err_prefix(e, "node.advertise");
    snprintf(o.join.kernels, sizeof(o.join.kernels), "%s", s->kernels->name);
    snprintf(o.join.build, sizeof(o.join.build), "%s", version_string());
    if (gethostname(o.join.host, sizeof(o.join.host) - 1) != 0)
        snprintf(o.join.host, sizeof(o.join.host), "unknown");
    rc = member_open(s->loop, &o, &s->member, e);
    if (rc == 0)
        report(s);
    return rc;
}

static void send_load(struct side *s, int64_t now_ns)
{
    const struct model_config *model = checkpoint_config(s->checkpoint);
    if (now_ns - s->load_ns < LOAD_EVERY_NS || member_node_id(s->member) == 0)
        return;
    s->load_ns = now_ns;
    uint32_t n_layers = (uint32_t)config_expert_layers(model),
             n_experts = (uint32_t)model->n_experts;
    uint16_t *counts = mem_array((size_t)n_layers * n_experts, sizeof(*counts));
    if (runner_take_load(s->runner, counts))
        member_send_load(s->member, n_layers, n_experts, counts);
    mem_free(counts);
}

/* ---- the control thread -------------------------------------------------------------- */

static void look_for_stop(void *ud, int64_t now_ns)
{
    struct side *s = ud;
    if (thread_should_stop(s->self)) {
        loop_stop(s->loop);
        return;
    }
    if (s->member) {
        send_load(s, now_ns);
        mind_drain(s, now_ns);
        if (s->kv_pages != (uint32_t)runner_kv_pages_total(s->runner))
            report(s);
    }
    loop_set_timer(s->loop, &s->stop_timer, now_ns + 50 * CLOCK_MS);
}

static int open_control(struct side *s, struct err *e)
{
    static server_handler *const handlers[ATTENTION_METHODS] = {
        [ATTENTION_STEP] = on_step,
        [ATTENTION_RELEASE] = on_release,
        [ATTENTION_DESCRIBE] = on_describe,
    };
    for (int i = 0; i < MAX_CALLS; i++)
        s->idle[s->n_idle++] = &s->jobs[i];
    int rc = loop_open(&s->loop, e);
    if (rc < 0)
        return rc;
    struct server_options o = {
        .endpoint = s->listen_endpoint, .name = s->name, .auth = s->config.auth};
    rc = server_open(&o, &s->server, e);
    if (rc < 0)
        return err_prefix(e, "node.listen");
    server_add(s->server, WIRE_ATTENTION, handlers, s);
    server_attach(s->server, s->loop);
    server_set_serving(s->server, true);
    loop_add_fd(s->loop, runner_done_fd(s->runner), on_done, s);
    s->stop_timer = (struct loop_timer){.cb = look_for_stop, .ud = s};
    loop_set_timer(s->loop, &s->stop_timer, clock_now_ns());
    log_info("node.listening", "endpoint=%s", server_endpoint(s->server));
    rc = join(s, e);
    if (rc < 0)
        return err_prefix(e, "coordinator.endpoint");
    return 0;
}

/* Leaves first, so that no new step comes; then lets the step in progress answer. */
static void close_control(struct side *s)
{
    if (s->member)
        member_close(&s->member, "stopped");
    int64_t until_ns = clock_now_ns() + STOP_TIMEOUT_NS;
    while (s->server && s->n_idle < MAX_CALLS && clock_now_ns() < until_ns)
        loop_turn(s->loop, until_ns);
    if (s->server) {
        loop_remove_timer(s->loop, &s->stop_timer);
        loop_remove_fd(s->loop, runner_done_fd(s->runner));
        server_detach(s->server, s->loop);
        server_close(&s->server);
    }
    if (s->loop)
        loop_close(&s->loop);
    mem_free(s->next_table);
    s->next_table = NULL;
}

static void control_main(struct thread *t, void *arg)
{
    struct side *s = arg;
    struct err e = {0};
    s->self = t;
    int rc = open_control(s, &e);
    if (rc < 0)
        close_control(s);
    thread_ready(t, rc, &e);
    if (rc < 0)
        return;
    loop_run(s->loop);
    close_control(s);
}

/* ---- the door ------------------------------------------------------------------------ */

static int choose_kernels(struct side *s, struct err *e)
{
    const char *name = s->config.kernels;
    s->kernels = name && name[0] ? kernels_named(name) : kernels_best();
    return s->kernels ? 0
                      : err_set(e, E_INVALID,
                                "kernels \"%s\" are not in this build or do not "
                                "run on this CPU",
                                name);
}

static void log_packing(void *ud, int64_t done_bytes, int64_t total_bytes)
{
    struct side *s = ud;
    int64_t now_ns = clock_now_ns();
    if (now_ns - s->told_ns < TELL_EVERY_NS)
        return;
    s->told_ns = now_ns;
    log_info("weights.packing", "mb=%lld of=%lld", (long long)(done_bytes / 1000000),
             (long long)(total_bytes / 1000000));
}

/* A checkpoint without a tokenizer serves ids, and no grammars. */
static int read_words(struct side *s, const char *model_dir, struct err *e)
{
    int rc = tokenizer_open(model_dir, &s->tokenizer, e);
    if (rc == E_NOT_FOUND) {
        *e = (struct err){0};
        return 0;
    }
    if (rc == 0)
        s->words = token_list_new(s->tokenizer, checkpoint_config(s->checkpoint)->vocab_size);
    return rc;
}

static int open_side(struct side *s, struct err *e)
{
    const struct side_config *c = &s->config;
    int rc = choose_kernels(s, e);
    if (rc < 0)
        return rc;
    s->threads = c->threads > 0 ? c->threads : thread_cpu_count();
    struct model_open_options m = {.model_dir = c->model_dir,
                                   .cache_dir = c->cache_dir,
                                   .formats = c->formats,
                                   .checkpoint = c->checkpoint,
                                   .kernels = s->kernels,
                                   .n_threads = s->threads,
                                   .packing = log_packing,
                                   .ud = s};
    struct model_opened opened;
    rc = model_open(&m, &opened, e);
    s->checkpoint = opened.checkpoint;
    s->config.formats = opened.said;
    if (rc == 0)
        rc = checkpoint_fingerprint(s->checkpoint, &s->fingerprint, e);
    if (rc == 0)
        rc = read_words(s, c->model_dir, e);
    if (rc < 0)
        return err_prefix(e, "load model");
    struct runner_options o = {
        .checkpoint = s->checkpoint,
        .fingerprint = s->fingerprint,
        .formats = opened.held,
        .combine = c->combine,
        .kernels = s->kernels,
        .threads = s->threads,
        .kv_bytes = c->kv_bytes,
        .keeps_prefixes = c->keeps_prefixes,
        .borrower = c->borrows ? s->name : NULL,
        .max_rows = c->max_rows,
        .max_seqs = c->max_seqs,
        .lanes = (enum lane_choice)c->lanes,
        .max_jobs = MAX_CALLS + 4, /* a table, its call to wake and that to stop, news */
        .call_timeout_ns = c->call_timeout_ns,
        .spin_ns = c->spin_ns,
        .ladder = c->ladder,
        .words = s->words,
        .auth = c->auth,
    };
    rc = runner_start(&o, &s->runner, e);
    if (rc == 0)
        rc = thread_start("control", control_main, s, &s->control, e);
    return rc;
}

int side_start(const struct side_config *c, struct side **out, struct err *e)
{
    must(c->max_rows > 0 && c->max_seqs > 0);
    struct side *s = mem_alloc(sizeof(*s));
    s->config = *c;
    s->name = mem_string(c->name);
    s->coordinator_endpoint = mem_string(c->coordinator_endpoint);
    s->listen_endpoint = mem_string(c->listen_endpoint);
    s->advertise = mem_string(c->advertise ? c->advertise : "");
    int rc = open_side(s, e);
    /* These strings are the caller's again. */
    s->config.advertise = s->config.name = s->config.model_dir = s->config.cache_dir =
        s->config.kernels = NULL;
    if (rc < 0)
        side_stop(&s);
    else
        log_info("side.ready", "kernels=%s threads=%d kv_pages=%d", s->kernels->name, s->threads,
                 runner_kv_pages_total(s->runner));
    *out = s;
    return rc;
}

void side_stop(struct side **side)
{
    struct side *s = *side;
    if (!s)
        return;
    *side = NULL;
    thread_stop(&s->control, NULL, NULL);
    runner_stop(&s->runner);
    for (int i = 0; i < MAX_CALLS; i++) {
        runner_job_fini(&s->jobs[i]);
        buf_fini(&s->jobs[i].message);
        buf_fini(&s->jobs[i].report);
    }
    runner_job_fini(&s->table_job);
    token_list_free(&s->words);
    tokenizer_free(&s->tokenizer);
    checkpoint_close(&s->checkpoint);
    mem_free(s->name);
    mem_free(s->coordinator_endpoint);
    mem_free(s->listen_endpoint);
    mem_free(s->advertise);
    mem_free(s);
}

void side_drain(struct side *s)
{
    atomic_store(&s->wants_drain, true);
}

bool side_may_go(const struct side *s)
{
    return atomic_load(&s->may_go);
}

bool side_is_refused(const struct side *s, struct err *why)
{
    bool is_refused = atomic_load(&s->is_refused);
    if (is_refused && why)
        *why = s->refusal;
    return is_refused;
}

bool side_is_told_to_go(const struct side *s, bool *restart)
{
    *restart = atomic_load(&s->wants_restart);
    return atomic_load(&s->is_told_to_go);
}

/* The BLAS header stays in engine/gemm.c; this one call is about the build, not about arithmetic. */
extern char *openblas_get_config(void);

void side_print_version(FILE *out)
{
    fprintf(out, "polymath %s\nkernels %s\n%s\n", version_string(), kernels_best()->name,
            openblas_get_config());
}
