/* attn_node/lender_worker.c - see lender_worker.h.
 *
 * A call is worked on within its handler, one after the other: rows of one layer wait for each other
 * anyway.  Frames may be misaligned, so rows are copied once, into memory that is aligned. */
#include "attn_node/lender_worker.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "attn_node/context_model.h"
#include "base/blob.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/queue.h"
#include "base/rng.h"
#include "base/thread.h"
#include "base/version.h"
#include "engine/context.h"
#include "engine/forward.h"
#include "engine/kv.h"
#include "rpc/server.h"

_Static_assert((int)WIRE_CONTEXT_LANES == (int)FORWARD_LANES, "a lane here is one there");
_Static_assert(sizeof(struct wire_context_candidate) == sizeof(struct context_candidate) &&
                   sizeof(struct context_state) == 2 * sizeof(float),
               "they cross the wire as they lie in memory");

#define IDLE_NS CLOCK_S

/* Of a lane: the step that was begun; `counts` are all 0 without one. */
struct begun {
    uint64_t step;
    struct wire_context_counts counts;
};

struct lender_worker {
    struct lender_worker_options options;
    char *name, *endpoint, *bound;
    int n_pages;
    struct thread *thread;
    struct queue *wake;

    /* worker thread only */
    struct compute compute;
    struct server *server;
    struct context *context;
    struct wire_context_model model;
    uint64_t session; /* 0: nobody's yet */
    struct begun lanes[WIRE_CONTEXT_LANES];
    char *rows; /* of a call, aligned */
    size_t rows_bytes;
    struct buf message;
};

/* ---- Open and Begin ------------------------------------------------------------------ */

static int check_open(const struct lender_worker *w, const struct wire_context_open *o,
                      struct err *e)
{
    if (o->protocol_version != POLYMATH_PROTOCOL_VERSION)
        return err_set(e, E_PRECONDITION, "protocol_version: %s speaks %u, this node %d", o->owner,
                       o->protocol_version, POLYMATH_PROTOCOL_VERSION);
    if (o->fingerprint != w->options.fingerprint)
        return err_set(e, E_PRECONDITION,
                       "fingerprint: %s has another model (%016" PRIx64
                       ") than this node (%016" PRIx64 ")",
                       o->owner, o->fingerprint, w->options.fingerprint);
    if (o->kv != w->options.kv)
        return err_set(e, E_PRECONDITION, "weights.format: %s has kv=%s, this node kv=%s", o->owner,
                       kv_format_name(o->kv), kv_format_name(w->options.kv));
    if (o->max_rows > (uint32_t)w->options.max_rows)
        return err_set(e, E_PRECONDITION,
                       "attention.max_rows: %s has steps of %u rows, this node takes %d", o->owner,
                       o->max_rows, w->options.max_rows);
    return 0;
}

static void on_open(void *ud, struct server_call *call, const struct server_request *r)
{
    struct lender_worker *w = ud;
    struct wire_context_open o;
    struct err e = {0};
    int rc = wire_context_open_decode(r->message, &o, &e);
    if (rc == 0)
        rc = check_open(w, &o, &e);
    if (rc < 0) {
        log_warn("lender.refused", "why=%s", log_quote(e.text).text);
        server_fail(&call, rc, "%s", e.text);
        return;
    }
    context_clear(w->context);
    memset(w->lanes, 0, sizeof(w->lanes));
    do
        w->session = rng_entropy();
    while (w->session == 0);
    log_info("lender.opened", "owner=%s pages=%d", log_quote(o.owner).text, w->n_pages);
    struct wire_context_open_reply reply = {.session = w->session,
                                            .pages = (uint32_t)w->n_pages,
                                            .page_tokens = KV_PAGE_TOKENS,
                                            .max_seqs = (uint32_t)w->options.max_seqs};
    wire_context_open_reply_encode(&reply, &w->message);
    server_reply(&call, &(struct server_answer){.message = &w->message});
}

static int check_session(const struct lender_worker *w, uint64_t session, struct err *e)
{
    if (session == w->session && session != 0)
        return 0;
    return err_set(e, E_PRECONDITION, "the memory here belongs to another session: open again");
}

static int begin(struct lender_worker *w, const struct wire_context_begin *b, struct err *e)
{
    int rc = check_session(w, b->session, e);
    if (rc < 0)
        return rc;
    struct begun *lane = &w->lanes[b->lane];
    *lane = (struct begun){0};
    struct context_part *parts = mem_array(b->n_parts + 1, sizeof(*parts));
    struct context_group *groups = mem_array(b->n_groups + 1, sizeof(*groups));
    for (uint32_t i = 0; i < b->n_parts; i++)
        parts[i] = (struct context_part){
            .seq = b->parts[i].seq, .n_kept = b->parts[i].n_kept, .n_new = b->parts[i].n_new};
    for (uint32_t i = 0; i < b->n_groups; i++)
        groups[i] = (struct context_group){.part = b->groups[i].part,
                                           .n_rows = b->groups[i].n_rows,
                                           .position = b->groups[i].position,
                                           .chooses = b->groups[i].chooses,
                                           .ends = b->groups[i].ends};
    struct context_plan plan = {.n_parts = b->n_parts,
                                .n_groups = b->n_groups,
                                .parts = parts,
                                .pages = b->pages,
                                .groups = groups};
    rc = context_begin(w->context, (int)b->lane, &plan, e);
    mem_free(parts);
    mem_free(groups);
    if (rc == 0)
        *lane = (struct begun){.step = b->step, .counts = wire_context_count(b)};
    return rc;
}

static void on_begin(void *ud, struct server_call *call, const struct server_request *r)
{
    struct lender_worker *w = ud;
    struct wire_context_limits limits = {.max_rows = (uint32_t)w->options.max_rows,
                                         .max_seqs = (uint32_t)w->options.max_seqs,
                                         .n_pages = (uint32_t)w->n_pages};
    struct wire_context_begin *b = NULL;
    struct err e = {0};
    int rc = wire_context_begin_decode(r->message, r->payloads, r->n_payloads, &limits, &b, &e);
    if (rc == 0)
        rc = begin(w, b, &e);
    mem_free(b);
    if (rc < 0)
        server_fail(&call, rc, "%s", e.text);
    else
        server_reply(&call, &(struct server_answer){0});
}

/* ---- Choose and Attend --------------------------------------------------------------- */

/* The lane's counts; NULL: the call is not of what was begun, or nobody waits for it any more. */
static const struct wire_context_counts *take_call(struct lender_worker *w,
                                                   const struct server_call *call,
                                                   const struct server_request *r,
                                                   struct wire_context_call *m, struct err *e)
{
    if (wire_context_call_decode(r->message, m, e) < 0 || check_session(w, m->session, e) < 0)
        return NULL;
    const struct begun *lane = &w->lanes[m->lane];
    if (lane->counts.rows == 0 || lane->step != m->step) {
        err_set(e, E_PRECONDITION, "step %" PRIu64 " was not begun in lane %u", m->step, m->lane);
        return NULL;
    }
    if (server_call_is_cancelled(call)) {
        err_set(e, E_CANCELLED, "nobody waits for it");
        return NULL;
    }
    return &lane->counts;
}

/* The next `bytes` of the call's aligned memory, with what lies at `from`. */
static void *copy(char **at, const void *from, size_t bytes)
{
    void *to = *at;
    memcpy(to, from, bytes);
    *at += mem_round_up(bytes, MEM_ALIGN);
    return to;
}

static void copy_writes(const struct lender_worker *w, const struct wire_context_counts *n,
                        const void *writes, char **at, struct context_rows *rows)
{
    size_t n_values = (size_t)n->ending * w->model.n_kv_heads * w->model.head_dim;
    if (!writes)
        return;
    const float *all = copy(at, writes, wire_context_writes_bytes(&w->model, n, rows->layer));
    rows->k = all;
    rows->v = all + n_values;
    rows->index_k = rows->layer >= w->model.n_full_layers ? all + 2 * n_values : NULL;
}

/* A call of Choose or Attend on its way to the answer. */
struct work {
    int64_t begun_ns;
    struct wire_context_call call;
    const struct wire_context_counts *n;
    struct wire_context_rows in;
    struct context_rows rows;
    char *at; /* where the next of its rows are copied to */
    struct blob *payload;
    struct err why;
};

/* wire_context_choose_payloads() or its brother. */
typedef int payloads_reader(const struct wire_context_call *m, const struct frame *payloads,
                            int n_payloads, const struct wire_context_model *model,
                            const struct wire_context_counts *counts, struct wire_context_rows *out,
                            struct err *e);

/* false: it has been answered. */
static bool begin_work(struct lender_worker *w, struct server_call **call,
                       const struct server_request *r, payloads_reader *read, struct work *k)
{
    *k = (struct work){.begun_ns = clock_now_ns(), .at = w->rows};
    k->n = take_call(w, *call, r, &k->call, &k->why);
    if (!k->n || read(&k->call, r->payloads, r->n_payloads, &w->model, k->n, &k->in, &k->why) < 0) {
        server_fail(call, k->why.code, "%s", k->why.text);
        return false;
    }
    k->rows.layer = k->call.layer;
    copy_writes(w, k->n, k->in.writes, &k->at, &k->rows);
    return true;
}

static void end_work(struct server_call **call, const struct server_request *r, struct work *k,
                     int rc)
{
    struct server_answer a = {.payloads = &k->payload,
                              .n_payloads = 1,
                              .queue_us = (uint64_t)((k->begun_ns - r->received_ns) / CLOCK_US),
                              .compute_us = (uint64_t)((clock_now_ns() - k->begun_ns) / CLOCK_US)};
    if (rc < 0)
        server_fail(call, rc, "%s", k->why.text);
    else
        server_reply(call, &a);
    blob_unref(&k->payload);
}

static void on_choose(void *ud, struct server_call *call, const struct server_request *r)
{
    struct lender_worker *w = ud;
    struct work k;
    if (!begin_work(w, &call, r, wire_context_choose_payloads, &k))
        return;
    k.rows.index_q = copy(&k.at, k.in.index_q, wire_context_index_q_bytes(&w->model, k.n));
    k.payload = blob_new(wire_context_candidates_bytes(&w->model, k.n));
    k.rows.candidates = k.payload->data;
    end_work(&call, r, &k, context_choose(w->context, (int)k.call.lane, &k.rows, &k.why));
}

/* What is known of the rows before: what was sent, or nothing. */
static void fill_states(const struct lender_worker *w, const struct wire_context_counts *n,
                        const void *sent, struct blob *to)
{
    if (sent) {
        memcpy(to->data, sent, to->size_bytes);
        return;
    }
    memset(to->data, 0, to->size_bytes);
    struct context_state *states = to->data;
    for (size_t i = 0; i < (size_t)n->rows * w->model.n_heads; i++)
        states[i].max = -INFINITY;
}

static void on_attend(void *ud, struct server_call *call, const struct server_request *r)
{
    struct lender_worker *w = ud;
    struct work k;
    if (!begin_work(w, &call, r, wire_context_attend_payloads, &k))
        return;
    k.rows.q = copy(&k.at, k.in.q, wire_context_q_bytes(&w->model, k.n));
    if (k.in.blocks)
        k.rows.blocks =
            copy(&k.at, k.in.blocks, wire_context_blocks_bytes(&w->model, k.n, k.call.layer));
    k.payload = blob_new(wire_context_states_bytes(&w->model, k.n));
    fill_states(w, k.n, k.in.states, k.payload);
    k.rows.state = k.payload->data;
    k.rows.o =
        (float *)(void *)((char *)k.payload->data + wire_context_state_bytes(&w->model, k.n));
    end_work(&call, r, &k, context_attend(w->context, (int)k.call.lane, &k.rows, &k.why));
}

/* ---- the thread ---------------------------------------------------------------------- */

/* Room for a call of as many rows as there may be, and the largest of its frames. */
static void take_rows(struct lender_worker *w, size_t *max_frame_bytes)
{
    uint32_t most = (uint32_t)w->options.max_rows;
    struct wire_context_counts n = {most, most, most};
    uint32_t last = w->model.n_layers - 1;
    size_t writes = wire_context_writes_bytes(&w->model, &n, last);
    size_t q = wire_context_q_bytes(&w->model, &n);
    size_t index_q = wire_context_index_q_bytes(&w->model, &n);
    size_t blocks = wire_context_blocks_bytes(&w->model, &n, last);
    size_t states = wire_context_states_bytes(&w->model, &n);
    w->rows_bytes = writes + q + index_q + blocks + 4 * MEM_ALIGN;
    w->rows = mem_aligned(w->rows_bytes);
    *max_frame_bytes = writes > states ? writes : states;
    *max_frame_bytes = index_q > *max_frame_bytes ? index_q : *max_frame_bytes;
    /* Begin: lists of all pages, and a group for each row. */
    size_t lists = (size_t)w->n_pages * sizeof(int32_t) + (size_t)most * 32 + (1 << 20);
    *max_frame_bytes = lists > *max_frame_bytes ? lists : *max_frame_bytes;
}

static int open_server(struct lender_worker *w, size_t max_frame_bytes, struct err *e)
{
    static server_handler *const handlers[CONTEXT_METHODS] = {
        [CONTEXT_OPEN] = on_open,
        [CONTEXT_BEGIN] = on_begin,
        [CONTEXT_CHOOSE] = on_choose,
        [CONTEXT_ATTEND] = on_attend,
    };
    struct server_options o = {.endpoint = w->endpoint,
                               .name = w->name,
                               .max_frame_bytes = max_frame_bytes,
                               .auth = w->options.auth};
    int rc = server_open(&o, &w->server, e);
    if (rc < 0)
        return err_prefix(e, "node.listen");
    server_add(w->server, WIRE_CONTEXT, handlers, w);
    server_set_serving(w->server, true);
    w->bound = mem_string(server_endpoint(w->server));
    return 0;
}

static int open_rooms(struct lender_worker *w, struct err *e)
{
    const struct lender_worker_options *o = &w->options;
    enum pool_pinning pinning = o->spin_ns == 0 ? POOL_SHARED : pool_pinning_here();
    w->compute = (struct compute){.kernels = o->kernels, .pool = pool_new(o->threads, pinning)};
    struct context_options c = {
        .kv = o->kv, .kv_bytes = o->kv_bytes, .max_rows = o->max_rows, .max_seqs = o->max_seqs};
    int rc = context_open(o->config, &c, w->compute, &w->context, e);
    if (rc < 0)
        return err_prefix(e, "attention.kv_bytes");
    w->n_pages = context_pages(w->context);
    size_t max_frame_bytes;
    take_rows(w, &max_frame_bytes);
    return open_server(w, max_frame_bytes, e);
}

static void close_rooms(struct lender_worker *w)
{
    if (w->server)
        server_close(&w->server);
    context_close(&w->context);
    pool_free(&w->compute.pool);
    mem_free(w->rows);
    buf_fini(&w->message);
}

static void worker_main(struct thread *t, void *arg)
{
    struct lender_worker *w = arg;
    struct err e = {0};
    int rc = open_rooms(w, &e);
    if (rc < 0)
        close_rooms(w);
    thread_ready(t, rc, &e);
    if (rc < 0)
        return;
    /* On a single CPU waiting busily keeps the network's thread from bringing the call. */
    int64_t spin_ns = thread_cpu_count() > 1 ? w->options.spin_ns : 0;
    struct link *link = server_link(w->server);
    int fd = queue_fd(w->wake);
    while (!thread_should_stop(t)) {
        link_wait(&link, 1, fd, clock_now_ns() + IDLE_NS, spin_ns);
        server_process(w->server, clock_now_ns());
    }
    close_rooms(w);
}

static void free_worker(struct lender_worker **worker)
{
    struct lender_worker *w = *worker;
    *worker = NULL;
    while (queue_pop(w->wake))
        ;
    queue_free(&w->wake);
    mem_free(w->name);
    mem_free(w->endpoint);
    mem_free(w->bound);
    mem_free(w);
}

int lender_worker_start(const struct lender_worker_options *o, struct lender_worker **out,
                        struct err *e)
{
    must(o->threads > 0 && o->max_rows > 0 && o->max_rows <= WIRE_MAX_ROWS && o->max_seqs > 0);
    *out = NULL;
    struct lender_worker *w = mem_alloc(sizeof(*w));
    w->options = *o;
    w->name = mem_string(o->name);
    w->endpoint = mem_string(o->endpoint);
    w->model = context_model(o->config);
    w->wake = queue_new(1);
    int rc = thread_start("lender", worker_main, w, &w->thread, e);
    if (rc < 0)
        free_worker(&w);
    *out = w;
    return rc;
}

static void wake_worker(void *ud)
{
    struct lender_worker *w = ud;
    void *anything = w;
    queue_push(w->wake, &anything);
}

void lender_worker_stop(struct lender_worker **worker)
{
    struct lender_worker *w = *worker;
    if (!w)
        return;
    thread_stop(&w->thread, wake_worker, w);
    free_worker(worker);
}

const char *lender_worker_endpoint(const struct lender_worker *w)
{
    return w->bound;
}

int lender_worker_pages(const struct lender_worker *w)
{
    return w->n_pages;
}
