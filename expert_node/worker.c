/* expert_node/worker.c - see worker.h.
 *
 * A Forward's rows are copied once, from the received frame into the batch's aligned
 * memory.  When a batch is full it is run at once and the parcel that did not fit begins
 * the next one, so nothing is ever refused for being merged. */
#include "expert_node/worker.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/blob.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "base/version.h"
#include "expert_node/batch.h"
#include "expert_node/store.h"
#include "rpc/io_threads.h"
#include "rpc/server.h"

enum {
    MAX_PARCELS = 64, /* that are merged at a time */
    POOLED_BLOBS = 8,
    MAX_UNANSWERED = 64, /* calls that a fault keeps without an answer */
    LEAST_FRAME_BYTES = 64 << 10,
};
#define IDLE_NS CLOCK_S

/* The call behind an item of the batch. */
struct pending {
    struct server_call *call;
    struct wire_forward forward;
    int64_t received_ns;
};

struct worker {
    struct worker_options options;
    char *name, *endpoint, *bound;
    struct thread *thread;
    struct store_view wake; /* ends the wait of a worker that shall stop */

    /* worker thread only */
    struct compute compute;
    struct server *server;
    struct wire_forward_limits limits;
    struct store_view *view; /* NULL before the first */
    int64_t spin_ns, n_parcels;
    struct batch *batch;
    struct pending pending[MAX_PARCELS];
    struct expert_scratch *scratch;
    uint8_t *overflow;         /* [max_rows] */
    struct blob_pool *answers; /* of max_rows rows of 4 bytes per value */
    struct buf message;
    struct wire_forward_reply reply; /* big; one at a time */

    struct fault fault;
    struct server_call *unanswered[MAX_UNANSWERED]; /* a ring */
    int n_unanswered;
};

/* ---- the view ------------------------------------------------------------------------ */

static void take_views(struct worker *w)
{
    must(batch_count(w->batch) == 0);
    for (struct store_view *v; (v = queue_pop(w->options.views));) {
        if (v == &w->wake)
            continue;
        struct store_view *old = w->view;
        w->view = v;
        log_info("worker.view", "version=%" PRIu64 " experts=%d", v->version, v->n_held);
        if (old)
            must_zero(queue_push(w->options.retired, (void **)&old));
        server_set_serving(w->server, v->n_held > 0);
    }
}

/* The first expert of the parcel that is not here, or -1. */
static int find_missing(const struct worker *w, const struct batch_item *item)
{
    for (int i = 0; i < item->n_routes; i++) {
        size_t at = (size_t)item->layer * w->limits.n_experts + item->experts[i];
        if (!w->view || !w->view->held[at])
            return item->experts[i];
    }
    return -1;
}

/* ---- answers ------------------------------------------------------------------------- */

static size_t vector_bytes(const struct worker *w, enum combine_mode mode)
{
    return (size_t)w->limits.hidden * (mode == COMBINE_NODE ? sizeof(uint16_t) : sizeof(float));
}

static struct blob *answer_blob(struct worker *w, enum combine_mode mode, int n_vectors)
{
    size_t bytes = (size_t)n_vectors * vector_bytes(w, mode);
    if (mode == COMBINE_EXPERT)
        return blob_new(bytes);
    struct blob *b = blob_pool_get(w->answers);
    b->size_bytes = bytes;
    return b;
}

static void list_overflow(struct worker *w, int first_row, int n_rows)
{
    w->reply.n_overflow = 0;
    for (int i = 0; i < n_rows; i++)
        if (w->overflow[first_row + i]) {
            must(w->reply.n_overflow < WIRE_MAX_OVERFLOW);
            w->reply.overflow_rows[w->reply.n_overflow++] = (uint32_t)i;
        }
}

/* Of a call that a fault hits; false: answer it as usual. */
static bool keep_unanswered(struct worker *w, const struct fault_action *a, struct pending *p)
{
    if (a->delay_ns > 0)
        clock_sleep_until(clock_now_ns() + a->delay_ns);
    if (!a->is_dropped)
        return false;
    struct server_call **place = &w->unanswered[w->n_unanswered++ % MAX_UNANSWERED];
    if (*place) /* long given up by its caller */
        server_fail(place, E_UNAVAILABLE, "a fault on purpose");
    *place = p->call;
    p->call = NULL;
    return true;
}

/* Answers the i-th item of the group with its part of `whole`. */
static void answer_item(struct worker *w, const struct batch_group *g, int i, struct blob *whole,
                        int64_t begun_ns)
{
    const struct batch_item *item = batch_item(w->batch, g->items[i]);
    struct pending *p = &w->pending[g->items[i]];
    enum combine_mode mode = g->parcel.mode;
    struct fault_action fault = fault_next(&w->fault);
    if (keep_unanswered(w, &fault, p))
        return;
    struct blob *payload = NULL;
    if (g->n_items == 1) {
        payload = blob_ref(whole);
    } else {
        int first = mode == COMBINE_EXPERT ? g->first_route[i] : g->first_row[i];
        payload = answer_blob(w, mode, mode == COMBINE_EXPERT ? item->n_routes : item->n_rows);
        memcpy(payload->data, (char *)whole->data + (size_t)first * vector_bytes(w, mode),
               payload->size_bytes);
    }
    fault_corrupt(&fault, payload->data, payload->size_bytes);
    w->reply.step = p->forward.step;
    w->reply.layer = p->forward.layer;
    w->reply.lane = p->forward.lane;
    w->reply.n_rows = p->forward.n_rows;
    w->reply.mode = mode;
    w->reply.n_overflow = 0;
    if (mode == COMBINE_FIXED)
        list_overflow(w, g->first_row[i], item->n_rows);
    buf_reset(&w->message);
    wire_forward_reply_encode(&w->reply, &w->message);
    struct server_answer a = {
        .message = &w->message,
        .payloads = &payload,
        .n_payloads = 1,
        .queue_us = (uint64_t)((begun_ns - p->received_ns) / CLOCK_US),
        .compute_us = (uint64_t)((clock_now_ns() - begun_ns) / CLOCK_US),
    };
    server_reply(&p->call, &a);
    blob_unref(&payload);
}

static void run_group(struct worker *w, const struct batch_group *g)
{
    const struct parcel *p = &g->parcel;
    int64_t begun_ns = clock_now_ns();
    struct blob *whole =
        answer_blob(w, p->mode, p->mode == COMBINE_EXPERT ? p->n_routes : p->n_rows);
    struct parcel_result result = {.overflow = w->overflow};
    switch (p->mode) {
    case COMBINE_FIXED:
        result.fixed = whole->data;
        break;
    case COMBINE_EXPERT:
        result.by_expert = whole->data;
        break;
    case COMBINE_NODE:
        result.node = whole->data;
        break;
    default:
        unreachable();
    }
    const struct expert *const *held =
        (const struct expert *const *)w->view->held + (size_t)p->layer * w->limits.n_experts;
    expert_forward(&w->compute, w->scratch, held, (int)w->limits.n_experts, p, &result);
    for (int i = 0; i < g->n_items; i++)
        answer_item(w, g, i, whole, begun_ns);
    blob_unref(&whole);
    log_debug("parcel", "layer=%d parcels=%d rows=%d routes=%d us=%lld", p->layer, g->n_items,
              p->n_rows, p->n_routes, (long long)((clock_now_ns() - begun_ns) / CLOCK_US));
}

static void run_batch(struct worker *w)
{
    struct batch_group g;
    while (batch_next(w->batch, &g))
        run_group(w, &g);
    batch_reset(w->batch);
}

/* ---- calls --------------------------------------------------------------------------- */

static int take_rows(const struct wire_forward *f, const struct frame *frame,
                     struct batch_item *item, struct err *e)
{
    struct wire_rows to = {.f32 = item->f32,
                           .q8 = item->q8,
                           .scales = item->scales,
                           .sums = item->sums,
                           .f32_stride = item->f32_stride,
                           .q8_stride = item->q8_stride,
                           .scale_stride = item->scale_stride};
    return wire_forward_unpack_rows(f, frame, &to, e);
}

/* 0, or the code and text of the answer; the item is in the batch on 0 alone. */
static int take_parcel(struct worker *w, const struct server_request *r, struct wire_forward *f,
                       struct err *e)
{
    int rc = wire_forward_decode(r->message, r->payloads, r->n_payloads, &w->limits, f, e);
    if (rc < 0 && f->n_rows > 0 && f->fingerprint != w->limits.fingerprint)
        return err_set(e, E_PRECONDITION,
                       "the parcel is for model %016" PRIx64 ", this node has %016" PRIx64,
                       f->fingerprint, w->limits.fingerprint);
    if (rc < 0)
        return f->n_rows > 0 && f->group != w->limits.group ? e->code = E_PRECONDITION : rc;
    struct batch_item *item =
        batch_add(w->batch, (int)f->layer, f->mode, (int)f->n_rows, (int)f->n_routes);
    if (!item) {
        run_batch(w);
        item = batch_add(w->batch, (int)f->layer, f->mode, (int)f->n_rows, (int)f->n_routes);
        must(item);
    }
    rc = wire_forward_unpack_routes(f, &r->payloads[0], &w->limits, item->first_route,
                                    item->exponents, item->experts, item->weights, e);
    int missing = rc == 0 ? find_missing(w, item) : -1;
    if (missing >= 0)
        rc =
            err_set(e, E_NOT_FOUND, "expert %d of layer %u is not on this node", missing, f->layer);
    if (rc == 0)
        rc = take_rows(f, &r->payloads[1], item, e);
    if (rc < 0)
        batch_drop_last(w->batch);
    return rc;
}

static void on_forward(void *ud, struct server_call *call, const struct server_request *r)
{
    struct worker *w = ud;
    struct wire_forward f;
    struct err e = {0};
    int rc = take_parcel(w, r, &f, &e);
    if (rc == E_NOT_FOUND && queue_len(w->options.views) > 0) {
        /* The view that has it may have come after this turn began. */
        run_batch(w);
        take_views(w);
        rc = take_parcel(w, r, &f, &e);
    }
    if (rc < 0) {
        server_fail(&call, rc, "%s", e.text);
        return;
    }
    w->n_parcels++;
    w->pending[batch_count(w->batch) - 1] =
        (struct pending){.call = call, .forward = f, .received_ns = r->received_ns};
}

static void on_describe(void *ud, struct server_call *call, const struct server_request *r)
{
    struct worker *w = ud;
    (void)r;
    struct wire_expert_description d = {
        .fingerprint = w->limits.fingerprint,
        .holdings_version = w->view ? w->view->version : 0,
        .held_bytes = w->view ? w->view->held_bytes : 0,
        .experts_held = w->view ? (uint32_t)w->view->n_held : 0,
        .n_layers = w->limits.n_layers,
        .n_experts = w->limits.n_experts,
        .protocol_version = POLYMATH_PROTOCOL_VERSION,
        .formats = w->options.formats,
        .combine = w->options.combine,
    };
    snprintf(d.name, sizeof(d.name), "%s", w->name);
    snprintf(d.kernels, sizeof(d.kernels), "%s", w->options.kernels->name);
    snprintf(d.build, sizeof(d.build), "%s", version_string());
    buf_reset(&w->message);
    wire_expert_description_encode(&d, &w->message);
    server_reply(&call, &(struct server_answer){.message = &w->message});
}

/* ---- the thread ---------------------------------------------------------------------- */

/* Of what a peer may send at once: the rows or the routes of a full parcel, whatever is more. */
static size_t max_frame_bytes(const struct worker *w)
{
    size_t rows = (size_t)w->limits.max_rows;
    size_t row_bytes = (size_t)w->limits.hidden * sizeof(float);
    size_t routes =
        wire_forward_routes_bytes(w->limits.max_rows, w->limits.max_rows * w->limits.max_top_k);
    size_t bytes = rows * row_bytes > routes ? rows * row_bytes : routes;
    return bytes > LEAST_FRAME_BYTES ? bytes : LEAST_FRAME_BYTES;
}

static int open_server(struct worker *w, struct err *e)
{
    static server_handler *const handlers[EXPERT_METHODS] = {
        [EXPERT_FORWARD] = on_forward,
        [EXPERT_DESCRIBE] = on_describe,
    };
    struct server_options o = {.endpoint = w->endpoint,
                               .name = w->name,
                               .max_frame_bytes = max_frame_bytes(w),
                               .auth = w->options.auth};
    int rc = server_open(&o, &w->server, e);
    if (rc < 0)
        return err_prefix(e, "node.listen");
    server_add(w->server, WIRE_EXPERT, handlers, w);
    server_set_serving(w->server, false);
    w->bound = mem_string(server_endpoint(w->server));
    return 0;
}

static void take_room(struct worker *w)
{
    const struct model_config *c = w->options.config;
    int max_rows = w->options.max_rows;
    enum pool_pinning pinning = w->options.spin_ns == 0 ? POOL_SHARED : pool_pinning_here();
    int group = format_group(w->options.formats.experts);
    w->compute = (struct compute){.kernels = w->options.kernels,
                                  .pool = pool_new(w->options.threads, pinning)};
    /* On a single CPU waiting busily keeps the network's thread from bringing the parcel. */
    w->spin_ns = thread_cpu_count() > 1 ? w->options.spin_ns : 0;
    io_threads_spin(w->spin_ns);
    struct batch_limits limits = {.max_items = MAX_PARCELS,
                                  .max_rows = max_rows,
                                  .top_k = c->top_k,
                                  .hidden = c->hidden_size,
                                  .group = group};
    w->batch = batch_new(&limits);
    w->scratch = expert_scratch_new(max_rows, c->top_k, c->hidden_size, c->expert_size, group);
    w->overflow = mem_array((size_t)max_rows, 1);
    w->answers = blob_pool_new((size_t)max_rows * vector_bytes(w, COMBINE_FIXED), POOLED_BLOBS);
}

static void close_worker(struct worker *w)
{
    server_close(&w->server);
    batch_free(&w->batch);
    expert_scratch_free(&w->scratch);
    mem_free(w->overflow);
    blob_pool_free(&w->answers);
    pool_free(&w->compute.pool);
    buf_fini(&w->message);
}

static void worker_main(struct thread *t, void *arg)
{
    struct worker *w = arg;
    struct err e = {0};
    int rc = open_server(w, &e);
    if (rc == 0)
        take_room(w);
    thread_ready(t, rc, &e);
    if (rc < 0)
        return;
    w->fault = fault_new(&w->options.fault);
    if (w->options.fault.is_enabled)
        log_error("worker.faults",
                  "delay_ms=%lld delay_one_in=%lld drop_one_in=%lld corrupt_one_in=%lld "
                  "why=\"this node does wrong on purpose\"",
                  (long long)(w->options.fault.delay_ns / CLOCK_MS),
                  (long long)w->options.fault.delay_one_in, (long long)w->options.fault.drop_one_in,
                  (long long)w->options.fault.corrupt_one_in);
    struct link *link = server_link(w->server);
    int fd = queue_fd(w->options.views);
    while (!thread_should_stop(t)) {
        bool is_guarded = w->options.guard_after > 0 && w->n_parcels >= w->options.guard_after;
        if (is_guarded)
            mem_guard_begin("a worker's turn");
        link_wait(&link, 1, fd, clock_now_ns() + IDLE_NS, w->spin_ns);
        take_views(w);
        server_process(w->server, clock_now_ns());
        run_batch(w);
        if (is_guarded)
            mem_guard_end();
    }
    close_worker(w);
}

static void free_worker(struct worker **worker)
{
    struct worker *w = *worker;
    *worker = NULL;
    mem_free(w->name);
    mem_free(w->endpoint);
    mem_free(w->bound);
    mem_free(w);
}

int worker_start(const struct worker_options *o, struct worker **out, struct err *e)
{
    must(o->threads > 0 && o->max_rows > 0 && o->max_rows <= WIRE_MAX_OVERFLOW);
    *out = NULL;
    struct worker *w = mem_alloc(sizeof(*w));
    w->options = *o;
    w->name = mem_string(o->name);
    w->endpoint = mem_string(o->endpoint);
    w->limits = (struct wire_forward_limits){
        .fingerprint = o->fingerprint,
        .n_layers = (uint32_t)config_expert_layers(o->config),
        .n_experts = (uint32_t)o->config->n_experts,
        .hidden = (uint32_t)o->config->hidden_size,
        .max_rows = (uint32_t)o->max_rows,
        .max_top_k = (uint32_t)o->config->top_k,
        .group = (uint32_t)format_group(o->formats.experts),
    };
    int rc = thread_start("worker", worker_main, w, &w->thread, e);
    if (rc < 0)
        free_worker(&w);
    *out = w;
    return rc;
}

static void wake_worker(void *ud)
{
    struct worker *w = ud;
    struct store_view *wake = &w->wake;
    queue_push(w->options.views, (void **)&wake);
}

void worker_stop(struct worker **worker)
{
    struct worker *w = *worker;
    if (!w)
        return;
    thread_stop(&w->thread, wake_worker, w);
    /* The wish to stop may still lie among the views. */
    struct store_view *kept[8];
    int n = 0;
    for (struct store_view *v; (v = queue_pop(w->options.views));)
        if (v != &w->wake && n < 8)
            kept[n++] = v;
    for (int i = 0; i < n; i++)
        must_zero(queue_push(w->options.views, (void **)&kept[i]));
    free_worker(worker);
}

const char *worker_endpoint(const struct worker *w)
{
    return w->bound;
}
