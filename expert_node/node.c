/* expert_node/node.c - see node.h. */
#include "expert_node/node.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/queue.h"
#include "base/thread.h"
#include "base/version.h"
#include "engine/model_open.h"
#include "engine/read_probe.h"
#include "expert_node/store.h"
#include "expert_node/worker.h"
#include "rpc/endpoint.h"
#include "rpc/member.h"

enum { QUEUED_VIEWS = 4 };
#define REPORT_EVERY_NS (CLOCK_S / 2)
#define TELL_EVERY_NS (5 * CLOCK_S)
/* Without a coordinator nobody takes over what a draining node holds. */
#define ALONE_NS (CLOCK_S / 4)
/* How long the speed of memory is measured. */
#define MEASURE_NS (CLOCK_S / 10)

struct node {
    const struct expert_node_config *config;
    struct auth *auth;
    struct loop *loop;
    struct checkpoint *checkpoint;
    uint64_t fingerprint;
    struct format_set said, held; /* engine/model_open.h */
    int64_t told_ns;              /* how far packing is */
    const struct kernels *kernels;
    int threads;
    size_t memory_bytes, expert_bytes;
    uint64_t read_bytes_s;
    struct queue *views, *retired;
    struct store *store;
    struct worker *worker;
    struct member *member;
    struct loop_timer report_timer;
    bool has_fd;

    uint64_t asked_version;  /* of the newest holdings; what the store works on */
    struct buf asked_bitmap; /* theirs: a new coordinator may count from one again */
    bool is_draining, wants_restart;
    int64_t drain_deadline_ns, connected_ns; /* the coordinator was there then */
    uint64_t test;                           /* newest that was asked for */
    struct err failure;
};

/* ---- what the coordinator is told ---------------------------------------------------- */

static void report(struct node *n)
{
    struct store_progress p;
    store_progress(n->store, &p);
    struct member_report r = {
        .state = NODE_JOINING,
        .holdings_version = p.serving_version,
        .experts_held = p.held,
        .experts_wanted = p.wanted,
        .held_bytes = p.held_bytes,
        .tested = p.tested,
    };
    if (n->is_draining)
        r.state = NODE_DRAINING;
    else if (p.serving_version > 0)
        r.state = NODE_READY;
    else if (n->asked_version > 0)
        r.state = NODE_LOADING;
    member_report(n->member, &r);
}

static void end_drain(struct node *n, const char *why)
{
    log_info("node.drained", "why=%s", log_quote(why).text);
    loop_stop(n->loop);
}

static void mind_drain(struct node *n, int64_t now_ns)
{
    if (member_is_connected(n->member))
        n->connected_ns = now_ns;
    else if (now_ns - n->connected_ns >= ALONE_NS)
        end_drain(n, "the coordinator is not there");
    if (now_ns >= n->drain_deadline_ns)
        end_drain(n, "drain.timeout_ms is over");
}

static void on_report_timer(void *ud, int64_t now_ns)
{
    struct node *n = ud;
    report(n);
    if (n->is_draining)
        mind_drain(n, now_ns);
    int64_t every_ns = n->is_draining ? ALONE_NS / 2 : REPORT_EVERY_NS;
    loop_set_timer(n->loop, &n->report_timer, now_ns + every_ns);
}

void node_drain(struct node *n)
{
    if (n->is_draining)
        return;
    int64_t now_ns = clock_now_ns();
    n->is_draining = true;
    n->drain_deadline_ns = now_ns + n->config->drain_timeout_ns;
    n->connected_ns = now_ns;
    log_info("node.draining", "timeout_ms=%lld",
             (long long)(n->config->drain_timeout_ns / CLOCK_MS));
    on_report_timer(n, now_ns);
}

bool node_wants_restart(const struct node *n)
{
    return n->wants_restart;
}

static void on_orders(void *ud, const struct wire_heartbeat_reply *r)
{
    struct node *n = ud;
    if (r->test > n->test) {
        n->test = r->test;
        store_test(n->store, r->test);
    }
    if (r->drain) {
        n->wants_restart = r->restart;
        node_drain(n);
    }
    if (n->is_draining && r->may_leave)
        end_drain(n, "nobody needs it any more");
}

static void fail(struct node *n, const struct err *e)
{
    n->failure = *e;
    loop_stop(n->loop);
}

static void on_holdings(void *ud, const struct wire_holdings *h)
{
    struct node *n = ud;
    size_t bitmap_bytes = (size_t)h->n_layers * ((h->n_experts + 7) / 8);
    if (h->version == n->asked_version && bitmap_bytes == n->asked_bitmap.len &&
        memcmp(h->bitmap, n->asked_bitmap.data, bitmap_bytes) == 0)
        return;
    struct err e = {0};
    if (store_want(n->store, h, &e) < 0) {
        log_warn("expert.holdings_refused", "version=%" PRIu64 " why=%s", h->version,
                 log_quote(e.text).text);
        return;
    }
    n->asked_version = h->version;
    buf_reset(&n->asked_bitmap);
    buf_append(&n->asked_bitmap, h->bitmap, bitmap_bytes);
    log_info("expert.loading", "version=%" PRIu64, h->version);
    report(n);
}

/* Holdings that do not fit leave the node as it is: the coordinator may want less next
 * time.  Weights that cannot be read will not become better by waiting. */
static void on_outcome(void *ud, int64_t now_ns)
{
    struct node *n = ud;
    (void)now_ns;
    for (struct store_outcome o; store_take_outcome(n->store, &o);) {
        if (o.code == 0) {
            struct store_progress p;
            store_progress(n->store, &p);
            log_info("expert.ready", "version=%" PRIu64 " experts=%u mb=%.1f", o.version, p.held,
                     (double)p.held_bytes / 1e6);
        } else if (o.code != E_BUSY && o.code != E_NOMEM) {
            fail(n, &o.why);
        }
        report(n);
    }
}

/* The member has logged it. */
static void on_refused(void *ud, const struct err *e)
{
    fail(ud, e);
}

static int join(struct node *n, struct err *e)
{
    struct member_options o = {
        .coordinator_endpoint = n->config->node.coordinator_endpoint,
        .auth = n->auth,
        .join =
            {
                .role = NODE_EXPERT,
                .pid = (uint32_t)getpid(),
                .threads = (uint32_t)n->threads,
                .protocol_version = POLYMATH_PROTOCOL_VERSION,
                .fingerprint = n->fingerprint,
                .formats = n->said,
                .combine = (enum combine_mode)n->config->weights.combine,
                .memory_bytes = n->memory_bytes,
                .expert_bytes = n->expert_bytes,
                .max_rows = (uint32_t)n->config->max_rows,
                .read_bytes_s = n->read_bytes_s,
            },
        .on_holdings = on_holdings,
        .on_orders = on_orders,
        .on_refused = on_refused,
        .ud = n,
    };
    snprintf(o.join.name, sizeof(o.join.name), "%s", n->config->node.name);
    snprintf(o.join.rack, sizeof(o.join.rack), "%s", n->config->rack);
    int rc = endpoint_advertise(worker_endpoint(n->worker), n->config->node.advertise,
                                o.join.endpoint, e);
    if (rc < 0)
        return err_prefix(e, "node.advertise");
    snprintf(o.join.kernels, sizeof(o.join.kernels), "%s", n->kernels->name);
    snprintf(o.join.build, sizeof(o.join.build), "%s", version_string());
    if (gethostname(o.join.host, sizeof(o.join.host) - 1) != 0)
        snprintf(o.join.host, sizeof(o.join.host), "unknown");
    rc = member_open(n->loop, &o, &n->member, e);
    if (rc < 0)
        return err_prefix(e, "coordinator.endpoint");
    return 0;
}

/* ---- opening and closing ------------------------------------------------------------- */

static void log_packing(void *ud, int64_t done_bytes, int64_t total_bytes)
{
    struct node *n = ud;
    int64_t now_ns = clock_now_ns();
    if (now_ns - n->told_ns < TELL_EVERY_NS)
        return;
    n->told_ns = now_ns;
    log_info("weights.packing", "mb=%lld of=%lld", (long long)(done_bytes / 1000000),
             (long long)(total_bytes / 1000000));
}

static int open_model(struct node *n, struct err *e)
{
    const struct expert_node_config *c = n->config;
    n->kernels = c->weights.kernels[0] ? kernels_named(c->weights.kernels) : kernels_best();
    if (!n->kernels)
        return err_set(e, E_INVALID, "weights.kernels: \"%s\" does not run here",
                       c->weights.kernels);
    n->threads = c->threads > 0 ? (int)c->threads : thread_cpu_count();
    n->memory_bytes =
        c->memory_bytes > 0 ? (size_t)c->memory_bytes : mem_available_bytes() / 10 * 8;
    struct model_open_options o = {
        .model_dir = c->node.model_path,
        .cache_dir = c->weights.cache,
        .checkpoint = {.copies = c->weights.copies,
                       .locks = c->weights.locks,
                       .verifies = c->weights.verifies},
        .kernels = n->kernels,
        .n_threads = n->threads,
        .packing = log_packing,
        .ud = n,
    };
    struct model_opened opened;
    must_zero(format_set_parse(c->weights.format, &o.formats, NULL));
    int rc = model_open(&o, &opened, e);
    n->checkpoint = opened.checkpoint;
    n->said = opened.said;
    n->held = opened.held;
    if (rc == 0)
        rc = checkpoint_fingerprint(n->checkpoint, &n->fingerprint, e);
    if (rc == 0)
        rc = store_expert_bytes(n->checkpoint, n->held.experts, &n->expert_bytes, e);
    if (rc < 0)
        return err_prefix(e, "load model");
    return 0;
}

/* Before anything else runs here: no experts are read yet, so nobody is disturbed. */
static uint64_t measure_reads(const struct node *n)
{
    size_t bytes = read_probe_bytes(n->threads);
    if (bytes > mem_available_bytes() / 4)
        return 0;
    struct pool *pool = pool_new(n->threads, pool_pinning_here());
    struct read_probe *probe = read_probe_open(pool, n->kernels, bytes);
    double rate = probe ? read_probe_best(probe, clock_now_ns, MEASURE_NS) : 0;
    read_probe_close(&probe);
    pool_free(&pool);
    return (uint64_t)rate;
}

static int open_rooms(struct node *n, struct err *e)
{
    n->views = queue_new(QUEUED_VIEWS);
    n->retired = queue_new(QUEUED_VIEWS);
    struct store_options s = {
        .checkpoint = n->checkpoint,
        .format = n->held.experts,
        .kernels = n->kernels,
        .threads = n->threads,
        .memory_bytes = n->memory_bytes,
        .views = n->views,
        .retired = n->retired,
    };
    struct worker_options w = {
        .name = n->config->node.name,
        .endpoint = n->config->node.listen,
        .auth = n->auth,
        .config = checkpoint_config(n->checkpoint),
        .fingerprint = n->fingerprint,
        .formats = n->held,
        .combine = (enum combine_mode)n->config->weights.combine,
        .kernels = n->kernels,
        .threads = n->threads,
        .spin_ns = n->config->spin_us * CLOCK_US,
        .fault = n->config->fault,
        .max_rows = (int)n->config->max_rows,
        .views = n->views,
        .retired = n->retired,
    };
    int rc = store_start(&s, &n->store, e);
    if (rc == 0)
        rc = worker_start(&w, &n->worker, e);
    return rc;
}

int node_open(const struct expert_node_config *c, struct auth *auth, struct loop *l,
              struct node **out, struct err *e)
{
    struct node *n = mem_alloc(sizeof(*n));
    n->config = c;
    n->auth = auth;
    n->loop = l;
    int rc = open_model(n, e);
    if (rc == 0) {
        n->read_bytes_s = c->read_bytes_s > 0 ? (uint64_t)c->read_bytes_s : measure_reads(n);
        rc = open_rooms(n, e);
    }
    if (rc == 0) {
        log_info("node.listening", "endpoint=%s kernels=%s threads=%d memory_mb=%zu read_gb_s=%.2f",
                 worker_endpoint(n->worker), n->kernels->name, n->threads,
                 n->memory_bytes / 1000000, (double)n->read_bytes_s / 1e9);
        loop_add_fd(l, store_fd(n->store), on_outcome, n);
        n->has_fd = true;
        rc = join(n, e);
    }
    if (rc == 0) {
        n->report_timer = (struct loop_timer){.cb = on_report_timer, .ud = n};
        loop_set_timer(l, &n->report_timer, clock_now_ns());
    } else {
        node_close(&n);
    }
    *out = n;
    return rc;
}

/* Views belong to the store, which knows them all. */
static void free_queue(struct queue **q)
{
    while (*q && queue_pop(*q))
        ;
    queue_free(q);
}

void node_close(struct node **node)
{
    struct node *n = *node;
    if (!n)
        return;
    *node = NULL;
    if (n->member) {
        loop_remove_timer(n->loop, &n->report_timer);
        member_close(&n->member, n->failure.code  ? n->failure.text
                                 : n->is_draining ? "drained"
                                                  : "stopped");
    }
    if (n->has_fd)
        loop_remove_fd(n->loop, store_fd(n->store));
    worker_stop(&n->worker);
    store_stop(&n->store);
    free_queue(&n->views);
    free_queue(&n->retired);
    checkpoint_close(&n->checkpoint);
    buf_fini(&n->asked_bitmap);
    mem_free(n);
}

const struct err *node_failure(const struct node *n)
{
    return &n->failure;
}
