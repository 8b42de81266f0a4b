/* attn_node/lender.c - see lender.h. */
#include "attn_node/lender.h"

#include <stdio.h>
#include <unistd.h>

#include "attn_node/lender_worker.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/thread.h"
#include "base/version.h"
#include "engine/kernels.h"
#include "engine/kv.h"
#include "engine/model_open.h"
#include "rpc/endpoint.h"
#include "rpc/member.h"

/* Without a coordinator nobody takes the memory back. */
#define ALONE_NS (CLOCK_S / 4)
#define REPORT_EVERY_NS (CLOCK_S / 2)

struct lender {
    const struct side_config *config;
    struct loop *loop;
    struct checkpoint *checkpoint;
    struct format_set formats;
    uint64_t fingerprint;
    const struct kernels *kernels;
    int threads;
    struct lender_worker *worker;
    struct member *member;
    struct loop_timer timer;
    bool is_draining, wants_restart;
    int64_t drain_deadline_ns, connected_ns;
    struct err failure;
};

/* ---- what the coordinator is told, and says ------------------------------------------- */

static void report(struct lender *l)
{
    struct member_report r = {.state = l->is_draining ? NODE_DRAINING : NODE_READY,
                              .kv_pages = (uint32_t)lender_worker_pages(l->worker)};
    member_report(l->member, &r);
}

static void end_drain(struct lender *l, const char *why)
{
    log_info("node.drained", "why=%s", log_quote(why).text);
    loop_stop(l->loop);
}

static void mind_drain(struct lender *l, int64_t now_ns)
{
    if (member_is_connected(l->member))
        l->connected_ns = now_ns;
    else if (now_ns - l->connected_ns >= ALONE_NS)
        end_drain(l, "the coordinator is not there");
    if (now_ns >= l->drain_deadline_ns)
        end_drain(l, "drain.timeout_ms is over");
}

static void on_timer(void *ud, int64_t now_ns)
{
    struct lender *l = ud;
    report(l);
    if (l->is_draining)
        mind_drain(l, now_ns);
    loop_set_timer(l->loop, &l->timer, now_ns + (l->is_draining ? ALONE_NS / 2 : REPORT_EVERY_NS));
}

void lender_drain(struct lender *l)
{
    if (l->is_draining)
        return;
    int64_t now_ns = clock_now_ns();
    l->is_draining = true;
    l->drain_deadline_ns = now_ns + l->config->drain_timeout_ns;
    l->connected_ns = now_ns;
    log_info("node.draining", "timeout_ms=%lld",
             (long long)(l->config->drain_timeout_ns / CLOCK_MS));
    on_timer(l, now_ns);
}

bool lender_wants_restart(const struct lender *l)
{
    return l->wants_restart;
}

const struct err *lender_failure(const struct lender *l)
{
    return &l->failure;
}

static void on_orders(void *ud, const struct wire_heartbeat_reply *r)
{
    struct lender *l = ud;
    if (r->drain) {
        l->wants_restart = r->restart;
        lender_drain(l);
    }
    if (l->is_draining && r->may_leave)
        end_drain(l, "nobody has its memory any more");
}

/* The member has logged it. */
static void on_refused(void *ud, const struct err *e)
{
    struct lender *l = ud;
    l->failure = *e;
    loop_stop(l->loop);
}

static int join(struct lender *l, struct err *e)
{
    const struct side_config *c = l->config;
    struct member_options o = {
        .coordinator_endpoint = c->coordinator_endpoint,
        .auth = c->auth,
        .join =
            {
                .role = NODE_CONTEXT,
                .pid = (uint32_t)getpid(),
                .threads = (uint32_t)l->threads,
                .protocol_version = POLYMATH_PROTOCOL_VERSION,
                .fingerprint = l->fingerprint,
                .formats = l->formats,
                .combine = c->combine,
                .memory_bytes = (uint64_t)lender_worker_pages(l->worker) *
                                kv_page_bytes(checkpoint_config(l->checkpoint), l->formats.kv),
                .max_rows = (uint32_t)c->max_rows,
            },
        .on_orders = on_orders,
        .on_refused = on_refused,
        .ud = l,
    };
    snprintf(o.join.name, sizeof(o.join.name), "%s", c->name);
    int rc = endpoint_advertise(lender_worker_endpoint(l->worker), c->advertise ? c->advertise : "",
                                o.join.endpoint, e);
    if (rc < 0)
        return err_prefix(e, "node.advertise");
    snprintf(o.join.kernels, sizeof(o.join.kernels), "%s", l->kernels->name);
    snprintf(o.join.build, sizeof(o.join.build), "%s", version_string());
    if (gethostname(o.join.host, sizeof(o.join.host) - 1) != 0)
        snprintf(o.join.host, sizeof(o.join.host), "unknown");
    rc = member_open(l->loop, &o, &l->member, e);
    return rc < 0 ? err_prefix(e, "coordinator.endpoint") : 0;
}

/* ---- opening and closing ------------------------------------------------------------- */

/* Without a cache of packed weights: no weights are wanted. */
static int open_model(struct lender *l, struct err *e)
{
    const struct side_config *c = l->config;
    l->kernels = c->kernels && c->kernels[0] ? kernels_named(c->kernels) : kernels_best();
    if (!l->kernels)
        return err_set(e, E_INVALID, "weights.kernels: \"%s\" does not run here", c->kernels);
    l->threads = c->threads > 0 ? c->threads : thread_cpu_count();
    struct model_open_options o = {
        .model_dir = c->model_dir, .formats = c->formats, .kernels = l->kernels};
    struct model_opened opened;
    int rc = model_open(&o, &opened, e);
    l->checkpoint = opened.checkpoint;
    l->formats = opened.said;
    if (rc == 0)
        rc = checkpoint_fingerprint(l->checkpoint, &l->fingerprint, e);
    return rc < 0 ? err_prefix(e, "load model") : 0;
}

static int start_worker(struct lender *l, struct err *e)
{
    const struct side_config *c = l->config;
    struct lender_worker_options o = {
        .name = c->name,
        .endpoint = c->listen_endpoint,
        .auth = c->auth,
        .config = checkpoint_config(l->checkpoint),
        .fingerprint = l->fingerprint,
        .kv = l->formats.kv,
        .kernels = l->kernels,
        .threads = l->threads,
        .kv_bytes = c->kv_bytes > 0 ? c->kv_bytes : (int64_t)(mem_available_bytes() / 4 * 3),
        .max_rows = c->max_rows,
        .max_seqs = c->max_seqs,
        .spin_ns = c->spin_ns,
    };
    return lender_worker_start(&o, &l->worker, e);
}

int lender_open(const struct side_config *config, struct loop *loop, struct lender **out,
                struct err *e)
{
    struct lender *l = mem_alloc(sizeof(*l));
    l->config = config;
    l->loop = loop;
    int rc = open_model(l, e);
    if (rc == 0)
        rc = start_worker(l, e);
    if (rc == 0) {
        log_info("node.listening", "endpoint=%s kernels=%s threads=%d kv_pages=%d",
                 lender_worker_endpoint(l->worker), l->kernels->name, l->threads,
                 lender_worker_pages(l->worker));
        rc = join(l, e);
    }
    if (rc == 0) {
        l->timer = (struct loop_timer){.cb = on_timer, .ud = l};
        loop_set_timer(loop, &l->timer, clock_now_ns());
    } else {
        lender_close(&l);
    }
    *out = l;
    return rc;
}

void lender_close(struct lender **lender)
{
    struct lender *l = *lender;
    if (!l)
        return;
    *lender = NULL;
    if (l->member) {
        loop_remove_timer(l->loop, &l->timer);
        member_close(&l->member, l->failure.code  ? l->failure.text
                                 : l->is_draining ? "drained"
                                                  : "stopped");
    }
    lender_worker_stop(&l->worker);
    checkpoint_close(&l->checkpoint);
    mem_free(l);
}
