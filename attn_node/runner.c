/* attn_node/runner.c - see runner.h.
 *
 * Where a step's time went is measured from outside, because the engine has no clock: the
 * experts' share inside moe_remote, the head's from the end of the last layer to
 * the end of sampling, and attention is the rest. */
#include "attn_node/runner.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "attn_node/borrow.h"
#include "attn_node/moe_remote.h"
#include "attn_node/observer.h"
#include "attn_node/seqs.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/queue.h"
#include "base/thread.h"
#include "engine/lanes.h"
#include "model/prefix.h"
#include "rpc/io_threads.h"

enum {
    MAX_HEALTH = 512, /* nodes that one step's reply tells of */
    MAX_SAMPLERS = 16 /* threads that sample: each needs 20 bytes for every word */
};

/* A sequence's samples of a step: from its first row with logits on, as many as it got. */
struct drawn {
    uint32_t first, n;
};

struct runner {
    struct runner_options options;
    struct queue *jobs, *done;
    struct queue *tables; /* jobs too, but of those a step may take while it runs */
    struct thread *thread;
    struct runner_job wake; /* ends the wait of a thread that shall stop */
    struct runner_job news; /* the engine thread's until it is out */
    atomic_bool is_news_out;
    _Atomic int pages_total, pages_free;
    _Atomic uint32_t *chosen; /* [n_layers][n_experts] since they were asked for */
    size_t n_chosen;
    _Atomic uint64_t session; /* written by the engine thread */

    /* engine thread only */
    struct thread *self;
    const struct model_config *config;
    struct compute compute;
    struct forward *forward;
    struct kv *kv;
    struct seqs *seqs;
    struct moe_remote *moe;
    struct borrow *borrow; /* NULL: contexts stay here */
    struct sampler *samplers[MAX_SAMPLERS];
    int n_samplers;
    struct drawn *drawn;              /* [max_seqs] */
    struct step_seq *step_seqs;       /* [max_seqs] */
    struct wire_step_sample *samples; /* [max_rows] */
    struct wire_step_opened *opened;  /* [max_seqs] */
    struct wire_node_health *health;  /* [MAX_HEALTH] */
    struct observer *observer;
    struct wire_node_traffic *traffic; /* [MAX_HEALTH] */
    int64_t layers_done_ns, logits_done_ns;
    struct lane_trial lanes;
    uint32_t step_lanes, step_lanes_permille; /* of the present step */
};

void runner_job_fini(struct runner_job *j)
{
    mem_free(j->step);
    mem_free(j->release);
    mem_free(j->table);
    j->step = NULL;
    j->release = NULL;
    j->table = NULL;
}

/* ---- set-up, on the engine thread ---------------------------------------------------- */

/* More than every sequence at its longest is of no use. */
static size_t choose_kv_bytes(const struct runner *r)
{
    size_t page_bytes = kv_page_bytes(r->config, r->options.formats.kv), most = 0;
    size_t pages = ((size_t)r->config->max_positions + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    size_t bytes =
        r->options.kv_bytes > 0 ? (size_t)r->options.kv_bytes : mem_available_bytes() / 4;
    if (mem_mul(pages, (size_t)r->options.max_seqs, &most) && mem_mul(most, page_bytes, &most) &&
        most < bytes)
        bytes = most;
    return bytes;
}

static bool take_tables(void *ud);
static bool tell_broken(void *ud, const uint64_t *incarnations, uint32_t n);

static int open_borrow(struct runner *r, int64_t spin_ns, struct err *e)
{
    const struct runner_options *o = &r->options;
    struct borrow_options b = {.config = r->config,
                               .kv = o->formats.kv,
                               .fingerprint = o->fingerprint,
                               .name = o->borrower,
                               .max_rows = o->max_rows,
                               .max_seqs = o->max_seqs,
                               .spin_ns = spin_ns,
                               .auth = o->auth};
    r->borrow = borrow_new(&b);
    int rc = forward_set_far(r->forward, &borrow_ops, r->borrow, r->kv, (uint32_t)o->max_seqs, e);
    return rc < 0 ? err_prefix(e, "attention.borrows") : 0;
}

static int set_up(struct runner *r, struct err *e)
{
    const struct runner_options *o = &r->options;
    int64_t begun_ns = clock_now_ns();
    r->config = checkpoint_config(o->checkpoint);
    size_t kv_bytes = choose_kv_bytes(r);
    enum pool_pinning pinning = o->spin_ns == 0 ? POOL_SHARED : pool_pinning_here();
    r->compute = (struct compute){.kernels = o->kernels, .pool = pool_new(o->threads, pinning)};
    struct forward_options f = {.formats = o->formats, .max_rows = o->max_rows};
    int rc = forward_open(o->checkpoint, &f, r->compute, &r->forward, e);
    if (rc < 0)
        return rc;
    log_info("weights.loaded", "mb=%zu seconds=%.1f", forward_bytes(r->forward) >> 20,
             (double)(clock_now_ns() - begun_ns) / CLOCK_S);
    rc = kv_open(r->config, o->formats.kv, kv_bytes, &r->kv, e);
    if (rc < 0)
        return err_prefix(e, "attention.kv_bytes");
    atomic_store(&r->pages_total, kv_pages_total(r->kv));
    atomic_store(&r->pages_free, kv_pages_free(r->kv));
    r->seqs = seqs_new(r->kv, o->max_seqs, o->keeps_prefixes,
                       prefix_seed(o->fingerprint, (int)o->formats.kv));
    seqs_set_words(r->seqs, o->words);
    r->n_samplers = o->threads < MAX_SAMPLERS ? o->threads : MAX_SAMPLERS;
    for (int i = 0; i < r->n_samplers; i++)
        r->samplers[i] = sampler_new(r->config->vocab_size);
    r->drawn = mem_array((size_t)o->max_seqs, sizeof(*r->drawn));
    struct moe_remote_options m = {
        .kernels = o->kernels,
        .n_layers = config_expert_layers(r->config),
        .n_experts = r->config->n_experts,
        .top_k = r->config->top_k,
        .hidden = r->config->hidden_size,
        .max_rows = o->max_rows,
        .n_lanes = o->lanes == LANES_ONE ? 1 : FORWARD_LANES,
        .group = format_group(o->formats.experts),
        .mode = o->combine,
        .fingerprint = o->fingerprint,
        .auth = o->auth,
        .observer = r->observer = observer_new(r->config->n_layers),
        .call_timeout_ns = o->call_timeout_ns,
        /* On a single CPU waiting busily keeps the network's thread from bringing the answer. */
        .spin_ns = thread_cpu_count() > 1 ? o->spin_ns : 0,
        .ladder = o->ladder,
        .tables_fd = queue_fd(r->tables),
        .take_tables = take_tables,
        .tell_broken = tell_broken,
        .ud = r,
    };
    io_threads_spin(m.spin_ns);
    r->moe = moe_remote_new(&m);
    rc = o->borrower ? open_borrow(r, m.spin_ns, e) : 0;
    if (rc < 0)
        return rc;
    lane_trial_init(&r->lanes, o->lanes);
    r->step_seqs = mem_array((size_t)o->max_seqs, sizeof(*r->step_seqs));
    r->samples = mem_array((size_t)(o->max_rows > o->max_seqs ? o->max_rows : o->max_seqs),
                           sizeof(*r->samples));
    r->opened = mem_array((size_t)o->max_seqs, sizeof(*r->opened));
    r->health = mem_array(MAX_HEALTH, sizeof(*r->health));
    r->traffic = mem_array(MAX_HEALTH, sizeof(*r->traffic));
    return 0;
}

static void tear_down(struct runner *r)
{
    moe_remote_free(&r->moe);
    borrow_free(&r->borrow);
    for (int i = 0; i < r->n_samplers; i++)
        sampler_free(&r->samplers[i]);
    mem_free(r->drawn);
    seqs_free(&r->seqs);
    kv_close(&r->kv);
    forward_close(&r->forward);
    pool_free(&r->compute.pool);
    mem_free(r->step_seqs);
    mem_free(r->samples);
    mem_free(r->opened);
    mem_free(r->health);
    observer_free(&r->observer);
    mem_free(r->traffic);
}

/* ---- a step -------------------------------------------------------------------------- */

static void note_layer(void *ud, int layer, const struct routing *routing)
{
    struct runner *r = ud;
    if (routing) {
        size_t expert_layer = (size_t)(layer - r->config->n_dense_layers);
        _Atomic uint32_t *chosen = r->chosen + expert_layer * (size_t)r->config->n_experts;
        for (int i = 0; i < routing->n_rows * routing->top_k; i++)
            atomic_fetch_add_explicit(&chosen[routing->experts[i]], 1, memory_order_relaxed);
    }
    if (layer == r->config->n_layers - 1)
        r->layers_done_ns = clock_now_ns();
}

static void note_attended(void *ud, int layer)
{
    struct runner *r = ud;
    (void)layer;
    observer_attended(r->observer, clock_now_ns());
}

/* ---- sampling ------------------------------------------------------------------------ */

struct sampling_job {
    struct runner *runner;
    const struct wire_step *step;
    const float *logits; /* row by row, as the samples are before they are moved together */
};

/* The token after each of the i-th sequence's rows, as far as the guesses come true; the rest of them
 * never were.  A row whose logits are not finite fails its sequence alone. */
static void sample_seq(const struct sampling_job *job, struct sampler *sampler, uint32_t i)
{
    struct runner *r = job->runner;
    const struct step_seq *q = &r->step_seqs[i];
    struct drawn *d = &r->drawn[i];
    int rows = q->all_logits ? 1 : q->n_tokens; /* that the history goes up to */
    for (d->n = 0;; rows++) {
        size_t row = d->first + d->n++;
        struct wire_step_sample *s = &r->samples[row];
        struct sample_history history = seqs_history(r->seqs, (int)i);
        history.n_tokens = q->position + rows;
        *s = (struct wire_step_sample){.seq = job->step->seqs[i].seq};
        s->code = sample_token(sampler, job->logits + row * (size_t)r->config->vocab_size,
                               seqs_sampling(r->seqs, (int)i), &history, (uint64_t)history.n_tokens,
                               &s->sampled);
        if (s->code < 0 || rows == q->n_tokens || s->sampled.token != q->tokens[rows])
            break;
    }
}

static bool has_grammar(const struct runner *r, uint32_t i)
{
    return seqs_sampling(r->seqs, (int)i)->grammar != NULL;
}

static void sample_task(void *ctx, int task)
{
    const struct sampling_job *job = ctx;
    const struct runner *r = job->runner;
    for (uint32_t i = (uint32_t)task; i < job->step->n_seqs; i += (uint32_t)r->n_samplers)
        if (!r->step_seqs[i].no_logits && !has_grammar(r, i))
            sample_seq(job, r->samplers[task], i);
}

/* Grammars have what they remember in common, so those sequences take turns. */
static uint32_t sample_rows(struct runner *r, const struct wire_step *step, const float *logits)
{
    struct sampling_job job = {r, step, logits};
    uint32_t row = 0, n = 0;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct step_seq *q = &r->step_seqs[i];
        r->drawn[i] = (struct drawn){.first = row};
        row += q->no_logits ? 0 : q->all_logits ? (uint32_t)q->n_tokens : 1;
    }
    int n_tasks = (int)step->n_seqs < r->n_samplers ? (int)step->n_seqs : r->n_samplers;
    pool_run(r->compute.pool, sample_task, &job, n_tasks);
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        if (!r->step_seqs[i].no_logits && has_grammar(r, i))
            sample_seq(&job, r->samplers[0], i);
        const struct drawn *d = &r->drawn[i];
        memmove(&r->samples[n], &r->samples[d->first], d->n * sizeof(*r->samples));
        n += d->n;
        if (r->step_seqs[i].all_logits)
            seqs_cut(r->seqs, (int)i, (int)d->n);
    }
    return n;
}

/* ---- what is told -------------------------------------------------------------------- */

static void encode_report(struct runner *r, struct runner_job *job, int64_t now_ns)
{
    buf_reset(&job->report);
    observer_headed(r->observer, r->layers_done_ns, now_ns);
    if (!observer_is_due(r->observer, now_ns))
        return;
    struct wire_step_report report = {.nodes = r->traffic};
    observer_report(r->observer, &report, now_ns);
    report.n_nodes = moe_remote_take_traffic(r->moe, r->traffic, MAX_HEALTH);
    wire_step_report_encode(&report, &job->report);
}

/* How much of the sequences that began in this step was there already. */
static uint32_t list_opened(struct runner *r, const struct wire_step *step)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < step->n_seqs; i++)
        if (step->seqs[i].position == 0 && r->step_seqs[i].position > 0)
            r->opened[n++] = (struct wire_step_opened){
                .seq = step->seqs[i].seq, .n_cached = (uint32_t)r->step_seqs[i].position};
    return n;
}

static void encode_reply(struct runner *r, struct runner_job *job, uint32_t n_samples,
                         int64_t begun_ns)
{
    int64_t now_ns = clock_now_ns(), experts_ns = moe_remote_experts_ns(r->moe);
    int64_t attention_ns = r->layers_done_ns - begun_ns - experts_ns;
    struct wire_step_reply reply = {
        .step = job->step->step,
        .epoch = moe_remote_epoch(r->moe),
        .n_samples = n_samples,
        .samples = r->samples,
        .n_opened = list_opened(r, job->step),
        .opened = r->opened,
        .attention_us = attention_ns > 0 ? (uint64_t)(attention_ns / CLOCK_US) : 0,
        .experts_us = (uint64_t)(experts_ns / CLOCK_US),
        .head_us = (uint64_t)((now_ns - r->layers_done_ns) / CLOCK_US),
        .router_us = (uint64_t)(observer_router_ns(r->observer) / CLOCK_US),
        .sampling_us = n_samples > 0 ? (uint64_t)((now_ns - r->logits_done_ns) / CLOCK_US) : 0,
        .lanes = r->step_lanes,
        .lanes_permille = r->step_lanes_permille,
        .kv_pages_free = (uint32_t)kv_pages_free(r->kv),
        .degraded = moe_remote_left_out(r->moe) > 0,
        .code = job->code,
        .ladder = *moe_remote_counters(r->moe),
        .grammars = seqs_grammars(r->seqs),
        .n_nodes = moe_remote_node_health(r->moe, r->health, MAX_HEALTH),
        .nodes = r->health,
    };
    snprintf(reply.text, sizeof(reply.text), "%s", job->why.text);
    buf_reset(&job->message);
    wire_step_reply_encode(&reply, &job->message);
    job->has_message = true;
    encode_report(r, job, now_ns);
    log_debug("step",
              "step=%" PRIu64 " seqs=%u rows=%u attention_us=%" PRIu64 " experts_us=%" PRIu64
              " head_us=%" PRIu64,
              reply.step, job->step->n_seqs, job->step->n_tokens, reply.attention_us,
              reply.experts_us, reply.head_us);
}

/* What makes a step take longer than its rows do. */
static uint64_t count_trouble(const struct runner *r)
{
    const struct wire_ladder_counters *c = moe_remote_counters(r->moe);
    return c->lates + c->retries + c->waits + c->left_out + c->mismatches;
}

static int run_in_lanes(struct runner *r, struct step *step, const float **logits)
{
    struct lane_step s = {.n_seqs = step->n_seqs};
    for (int i = 0; i < step->n_seqs; i++)
        s.n_rows += step->seqs[i].n_tokens;
    int64_t begun_ns = clock_now_ns();
    uint64_t trouble = count_trouble(r);
    int n_logits = 0;
    bool can_be_cut = lanes_cut(step->seqs, step->n_seqs) > 0;
    step->has_two_lanes = can_be_cut && lane_trial_wants_two(&r->lanes, &s, begun_ns);
    r->step_lanes = step->has_two_lanes ? 2 : 1;
    int rc = forward_step(r->forward, r->kv, step, &moe_remote_ops, r->moe, logits, &n_logits);
    if (can_be_cut)
        lane_trial_took(&r->lanes, &s, step->has_two_lanes, rc == 0 && count_trouble(r) == trouble,
                        r->layers_done_ns - begun_ns, clock_now_ns());
    double ratio = can_be_cut ? lane_trial_ratio(&r->lanes, &s) : 0.0;
    r->step_lanes_permille = (uint32_t)(1000 * fmin(ratio, 1000.0));
    return rc;
}

static int run_layers(struct runner *r, const struct runner_job *job, const float **logits,
                      struct err *e)
{
    const struct wire_step *w = job->step;
    struct step step = {.n_seqs = (int)w->n_seqs,
                        .seqs = r->step_seqs,
                        .layer_done = note_layer,
                        .attended = note_attended,
                        .layer_done_ud = r};
    moe_remote_begin_step(r->moe, w->step, job->trace_id, job->deadline_ns);
    if (r->borrow)
        borrow_begin_step(r->borrow, w->step, job->trace_id, job->deadline_ns);
    int rc = run_in_lanes(r, &step, logits);
    if (rc < 0) {
        const struct err *why = moe_remote_error(r->moe);
        if (r->borrow && borrow_error(r->borrow)->code)
            why = borrow_error(r->borrow);
        return err_set(e, rc, "%s", why->code ? why->text : err_text(rc));
    }
    return 0;
}

/* What an earlier holder of this side left behind is nobody's. */
static int take_session(struct runner *r, uint64_t session, struct err *e)
{
    uint64_t present = atomic_load(&r->session);
    if (session < present)
        return err_set(e, E_DENIED,
                       "session %" PRIx64 " is over: this attention side has one of %" PRIx64,
                       session, present);
    if (session == present)
        return 0;
    if (seqs_count(r->seqs) > 0)
        log_info("session.cleared", "session=%" PRIx64 " sequences=%d", session,
                 seqs_count(r->seqs));
    seqs_clear(r->seqs);
    atomic_store(&r->session, session);
    return 0;
}

static bool is_everything_checked(const struct runner *r)
{
    return r->options.ladder.verify_one_in == 1 && r->options.combine != COMBINE_NODE;
}

/* Where only samples are checked, whoever lied now may have lied before: what the sequences hold
 * is forgotten, and the coordinator replays them. */
static int doubt_sequences(struct runner *r, int code)
{
    log_error("session.doubted", "sequences=%d", seqs_count(r->seqs));
    seqs_clear_all(r->seqs);
    return code == E_ABORTED ? E_PRECONDITION : code;
}

/* Between steps: what others lend comes and goes.  Where it went, whatever lay there is forgotten with
 * all that belongs to it, and so the places that are left are taken anew.  When to come again. */
static int64_t mind_places(struct runner *r)
{
    if (!r->borrow)
        return CLOCK_NEVER;
    int64_t next_ns = borrow_mind(r->borrow, clock_now_ns());
    int n_before = kv_places(r->kv);
    bool is_lost = borrow_take_loss(r->borrow);
    if (is_lost) {
        seqs_clear_all(r->seqs);
        kv_drop_places(r->kv);
    }
    for (int n; (n = borrow_take_pages(r->borrow, kv_places(r->kv))) > 0;)
        kv_add_place(r->kv, n);
    if (is_lost || kv_places(r->kv) != n_before) {
        log_info("context.places", "places=%d kv_pages=%d forgotten=%d", kv_places(r->kv),
                 kv_pages_total(r->kv), is_lost);
        atomic_store(&r->pages_total, kv_pages_total(r->kv));
        atomic_store(&r->pages_free, kv_pages_free(r->kv));
    }
    return next_ns;
}

/* The answer tells of the nodes all the same: whoever lied shall be known before the step is tried
 * again. */
static int fail_step(struct runner *r, struct runner_job *job, int code, int64_t begun_ns)
{
    log_warn("step.failed", "step=%" PRIu64 " code=%s why=%s", job->step->step, err_name(code),
             log_quote(job->why.text).text);
    if (moe_remote_is_disputed(r->moe) && !is_everything_checked(r))
        code = doubt_sequences(r, code);
    if (r->borrow && borrow_error(r->borrow)->code)
        code = E_PRECONDITION; /* the sequences are forgotten before the next step */
    job->code = code;
    encode_reply(r, job, 0, begun_ns);
    return code;
}

static int run_step(struct runner *r, struct runner_job *job)
{
    int64_t begun_ns = clock_now_ns();
    if (begun_ns >= job->deadline_ns)
        return err_set(&job->why, E_DEADLINE, "the step waited until its deadline");
    int rc = take_session(r, job->step->session, &job->why);
    if (rc < 0)
        return rc;
    rc = seqs_begin(r->seqs, job->step, r->step_seqs, &job->why);
    if (rc < 0)
        return rc;
    const float *logits = NULL;
    observer_begin_step(r->observer, job->trace_id != 0, begun_ns);
    rc = run_layers(r, job, &logits, &job->why);
    if (rc < 0) {
        seqs_roll_back(r->seqs);
        return fail_step(r, job, rc, begun_ns);
    }
    r->logits_done_ns = clock_now_ns();
    uint32_t n_samples = sample_rows(r, job->step, logits);
    seqs_commit(r->seqs, moe_remote_left_out(r->moe) == 0);
    encode_reply(r, job, n_samples, begun_ns);
    return 0;
}

static int run_release(struct runner *r, const struct runner_job *job)
{
    if (job->release->session < atomic_load(&r->session))
        return 0;
    for (uint32_t i = 0; i < job->release->n_seqs; i++)
        seqs_release(r->seqs, job->release->seqs[i]);
    return 0;
}

static void run_job(struct runner *r, struct runner_job *job)
{
    int64_t begun_ns = clock_now_ns();
    job->why = (struct err){0};
    job->code = 0;
    job->has_message = false;
    switch (job->kind) {
    case RUNNER_STEP:
        job->code = run_step(r, job);
        break;
    case RUNNER_RELEASE:
        job->code = run_release(r, job);
        break;
    case RUNNER_TABLE:
        if (r->borrow)
            borrow_install(r->borrow, job->table, job->node_id);
        job->code = moe_remote_install(r->moe, &job->table, &job->why);
        job->epoch = moe_remote_epoch(r->moe);
        break;
    default:
        unreachable();
    }
    atomic_store(&r->pages_free, kv_pages_free(r->kv));
    job->queue_us = (uint64_t)((begun_ns - job->submitted_ns) / CLOCK_US);
    job->compute_us = (uint64_t)((clock_now_ns() - begun_ns) / CLOCK_US);
}

/* ---- the thread ---------------------------------------------------------------------- */

static void hand_back(struct runner *r, struct runner_job *job)
{
    must_zero(queue_push(r->done, (void **)&job));
}

static bool tell_broken(void *ud, const uint64_t *incarnations, uint32_t n)
{
    struct runner *r = ud;
    if (atomic_load(&r->is_news_out))
        return false;
    atomic_store(&r->is_news_out, true);
    r->news.kind = RUNNER_NEWS;
    r->news.n_broken = n;
    memset(r->news.broken, 0, sizeof(r->news.broken));
    if (n > 0)
        memcpy(r->news.broken, incarnations, n * sizeof(*incarnations));
    hand_back(r, &r->news);
    return true;
}

/* Between steps, and in the middle of one that waits for a table; false: it need not wait any
 * longer, the thread shall stop. */
static bool take_tables(void *ud)
{
    struct runner *r = ud;
    for (struct runner_job *job; (job = queue_pop(r->tables));) {
        run_job(r, job);
        hand_back(r, job);
    }
    return !thread_should_stop(r->self);
}

static void engine_main(struct thread *t, void *arg)
{
    struct runner *r = arg;
    struct err e = {0};
    r->self = t;
    int rc = set_up(r, &e);
    if (rc < 0)
        tear_down(r);
    thread_ready(t, rc, &e);
    if (rc < 0)
        return;
    while (!thread_should_stop(t)) {
        take_tables(r);
        int64_t next_ns = mind_places(r), latest_ns = clock_now_ns() + CLOCK_S;
        struct runner_job *job = queue_pop(r->jobs);
        if (!job) {
            moe_remote_wait(r->moe, queue_fd(r->jobs), next_ns < latest_ns ? next_ns : latest_ns);
        } else if (job != &r->wake) {
            run_job(r, job);
            hand_back(r, job);
        }
    }
    tear_down(r);
}

/* A full queue needs no waking. */
static void wake_engine(void *ud)
{
    struct runner *r = ud;
    struct runner_job *wake = &r->wake;
    queue_push(r->jobs, (void **)&wake);
}

static void free_runner(struct runner **runner)
{
    struct runner *r = *runner;
    *runner = NULL;
    while (queue_pop(r->jobs) || queue_pop(r->tables))
        ;
    while (queue_pop(r->done))
        ;
    queue_free(&r->jobs);
    queue_free(&r->tables);
    queue_free(&r->done);
    mem_free(r->chosen);
    mem_free(r);
}

int runner_start(const struct runner_options *o, struct runner **out, struct err *e)
{
    must(o->threads > 0 && o->max_rows > 0 && o->max_seqs > 0 && o->max_jobs > 0);
    *out = NULL;
    struct runner *r = mem_alloc(sizeof(*r));
    r->options = *o;
    const struct model_config *model = checkpoint_config(o->checkpoint);
    r->n_chosen = (size_t)config_expert_layers(model) * (size_t)model->n_experts;
    r->chosen = mem_array(r->n_chosen, sizeof(*r->chosen));
    r->jobs = queue_new(o->max_jobs);
    r->tables = queue_new(o->max_jobs);
    r->done = queue_new(o->max_jobs);
    int rc = thread_start("engine", engine_main, r, &r->thread, e);
    if (rc < 0)
        free_runner(&r);
    *out = r;
    return rc;
}

void runner_stop(struct runner **runner)
{
    if (!*runner)
        return;
    thread_stop(&(*runner)->thread, wake_engine, *runner);
    free_runner(runner);
}

int runner_submit(struct runner *r, struct runner_job **job)
{
    (*job)->submitted_ns = clock_now_ns();
    if ((*job)->kind != RUNNER_TABLE)
        return queue_push(r->jobs, (void **)job);
    int rc = queue_push(r->tables, (void **)job);
    if (queue_len(r->jobs) == 0) /* otherwise it will look by itself */
        wake_engine(r);
    return rc;
}

int runner_done_fd(const struct runner *r)
{
    return queue_fd(r->done);
}

struct runner_job *runner_take_done(struct runner *r)
{
    return queue_pop(r->done);
}

void runner_heard(struct runner *r)
{
    atomic_store(&r->is_news_out, false);
}

bool runner_take_load(struct runner *r, uint16_t *counts)
{
    bool any = false;
    for (size_t i = 0; i < r->n_chosen; i++) {
        uint32_t n = atomic_exchange_explicit(&r->chosen[i], 0, memory_order_relaxed);
        counts[i] = n < UINT16_MAX ? (uint16_t)n : UINT16_MAX;
        any |= n > 0;
    }
    return any;
}

int runner_kv_pages_total(const struct runner *r)
{
    return atomic_load(&r->pages_total);
}

int runner_kv_pages_free(const struct runner *r)
{
    return atomic_load(&r->pages_free);
}

uint64_t runner_session(const struct runner *r)
{
    return atomic_load(&r->session);
}
