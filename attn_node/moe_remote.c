/* attn_node/moe_remote.c - see moe_remote.h.
 *
 * scatter() plans the round and sends what can be sent; gather() sends the rest (a node
 * that was not connected yet, a full channel, rows that are asked again), waits and folds.
 * No call outlives its round: when a round fails the open ones are cancelled, so a trip's
 * memory can be used again by the next round. */
#include "attn_node/moe_remote.h"

#include <inttypes.h>
#include <string.h>

#include "attn_node/round.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "rpc/channel.h"

_Static_assert((int)ROUND_NO_HOLDER == (int)WIRE_NO_HOLDER, "the table is used as it came");

enum {
    LANES = 1,         /* forward_step() uses one */
    MAX_CALLS = 1024,  /* open at a time per node; more wait in gather */
    POOLED_BLOBS = 16, /* of each kind; beyond that the heap serves */
};
/* A node that the table names but that is not connected may be about to be. */
#define CONNECT_TIMEOUT_NS (1 * CLOCK_S)
/* A full channel gives no event when it drains. */
#define UNSENT_POLL_NS (2 * CLOCK_MS)

struct peer {
    struct channel *channel; /* NULL if the endpoint is unusable */
    uint64_t incarnation;
    char endpoint[LINK_ENDPOINT_BYTES];
};

/* One call of one round. */
struct trip {
    struct moe_remote *moe;
    int lane;
    struct round_ticket ticket;
    uint64_t call_id;
};

struct lane {
    struct round *round;
    struct trip *trips; /* [round_max_parcels()] */
    int64_t begun_ns, deadline_ns;
};

struct moe_remote {
    struct moe_remote_options options;
    struct wire_table *table;
    uint16_t *first_holder; /* [n_layers][n_experts] of the table */
    struct peer *peers;     /* [table->n_nodes] */
    struct channel **channels;
    int n_peers, n_channels;
    struct lane lanes[LANES];

    uint64_t step;
    int64_t step_deadline_ns, experts_ns, late_replies;
    struct err error;

    struct blob_pool *route_blobs, *row_blobs;
    struct buf message;
    struct wire_forward_reply reply; /* big; decoded into one at a time */
};

struct moe_remote *moe_remote_new(const struct moe_remote_options *o)
{
    struct moe_remote *m = mem_alloc(sizeof(*m));
    m->options = *o;
    struct round_limits limits = {
        .kernels = o->kernels, .max_rows = o->max_rows, .top_k = o->top_k, .hidden = o->hidden};
    for (int i = 0; i < LANES; i++) {
        m->lanes[i].round = round_new(&limits);
        m->lanes[i].trips = mem_array((size_t)round_max_parcels(&limits), sizeof(struct trip));
    }
    uint32_t max_routes = (uint32_t)o->max_rows * (uint32_t)o->top_k;
    m->route_blobs =
        blob_pool_new(wire_forward_routes_bytes((uint32_t)o->max_rows, max_routes), POOLED_BLOBS);
    struct wire_forward most = {.n_rows = (uint32_t)o->max_rows,
                                .hidden = (uint32_t)o->hidden,
                                .group = (uint32_t)o->group};
    size_t rows_bytes;
    must(wire_forward_rows_bytes(&most, &rows_bytes));
    m->row_blobs = blob_pool_new(rows_bytes, POOLED_BLOBS);
    return m;
}

static void close_peers(struct peer *peers, int n)
{
    for (int i = 0; i < n; i++)
        if (peers[i].channel)
            channel_close(&peers[i].channel);
    mem_free(peers);
}

void moe_remote_free(struct moe_remote **moe)
{
    struct moe_remote *m = *moe;
    if (!m)
        return;
    *moe = NULL;
    close_peers(m->peers, m->n_peers);
    mem_free(m->channels);
    for (int i = 0; i < LANES; i++) {
        round_free(&m->lanes[i].round);
        mem_free(m->lanes[i].trips);
    }
    blob_pool_free(&m->route_blobs);
    blob_pool_free(&m->row_blobs);
    buf_fini(&m->message);
    mem_free(m->table);
    mem_free(m->first_holder);
    mem_free(m);
}

/* ---- the table ----------------------------------------------------------------------- */

struct wire_table *moe_remote_copy_table(const struct wire_table *t)
{
    size_t n_holders = (size_t)t->n_layers * t->n_experts * t->n_replicas;
    size_t nodes_bytes = t->n_nodes * sizeof(*t->nodes);
    char *at = mem_alloc(sizeof(*t) + nodes_bytes + n_holders * sizeof(*t->holders));
    struct wire_table *copy = (void *)at;
    struct wire_table_node *nodes = (void *)(at + sizeof(*t));
    uint16_t *holders = (void *)(at + sizeof(*t) + nodes_bytes);
    if (t->n_nodes > 0)
        memcpy(nodes, t->nodes, nodes_bytes);
    if (n_holders > 0)
        memcpy(holders, t->holders, n_holders * sizeof(*holders));
    *copy = *t;
    copy->nodes = nodes;
    copy->holders = holders;
    return copy;
}

static int check_table(const struct moe_remote *m, const struct wire_table *t, struct err *e)
{
    if (t->n_layers != (uint32_t)m->options.n_layers ||
        t->n_experts != (uint32_t)m->options.n_experts)
        return err_set(e, E_INVALID, "table of %u layers of %u experts, the model has %d of %d",
                       t->n_layers, t->n_experts, m->options.n_layers, m->options.n_experts);
    for (uint32_t i = 0; i < t->n_nodes; i++)
        if (t->nodes[i].max_rows == 0)
            return err_set(e, E_INVALID, "node %s takes no rows", t->nodes[i].name);
    return wire_table_check(t, e);
}

/* The channel of the same process at the same address, taken out of the old table. */
static struct channel *keep_channel(struct moe_remote *m, const struct wire_table_node *n)
{
    for (int i = 0; i < m->n_peers; i++) {
        struct peer *p = &m->peers[i];
        if (!p->channel || p->incarnation != n->incarnation || strcmp(p->endpoint, n->endpoint))
            continue;
        struct channel *kept = p->channel;
        p->channel = NULL;
        return kept;
    }
    return NULL;
}

static struct peer open_peer(struct moe_remote *m, const struct wire_table_node *n)
{
    struct peer p = {.incarnation = n->incarnation};
    memcpy(p.endpoint, n->endpoint, sizeof(p.endpoint));
    p.channel = keep_channel(m, n);
    if (p.channel)
        return p;
    struct err e = {0};
    struct channel_options o = {
        .endpoint = n->endpoint, .peer_name = n->name, .max_calls = MAX_CALLS};
    if (channel_open(&o, &p.channel, &e) < 0)
        log_error("moe.peer_refused", "peer=%s why=%s", log_quote(n->name).text,
                  log_quote(e.text).text);
    return p;
}

static void install_rounds(struct moe_remote *m)
{
    const struct wire_table *t = m->table;
    struct round_node *nodes = mem_array(t->n_nodes + 1, sizeof(*nodes));
    for (uint32_t i = 0; i < t->n_nodes; i++) {
        uint32_t most = (uint32_t)m->options.max_rows;
        nodes[i].name = t->nodes[i].name;
        nodes[i].max_rows = (int)(t->nodes[i].max_rows < most ? t->nodes[i].max_rows : most);
    }
    for (int i = 0; i < LANES; i++)
        round_install(m->lanes[i].round, nodes, (int)t->n_nodes);
    mem_free(nodes);
}

int moe_remote_install(struct moe_remote *m, struct wire_table **table, struct err *e)
{
    struct wire_table *t = *table;
    *table = NULL;
    int rc = check_table(m, t, e);
    if (rc < 0) {
        log_error("moe.table_refused", "epoch=%" PRIu64 " why=%s", t->epoch,
                  log_quote(e ? e->text : err_text(rc)).text);
        mem_free(t);
        return rc;
    }
    struct peer *peers = mem_array(t->n_nodes + 1, sizeof(*peers));
    for (uint32_t i = 0; i < t->n_nodes; i++)
        peers[i] = open_peer(m, &t->nodes[i]);
    close_peers(m->peers, m->n_peers);
    m->peers = peers;
    m->n_peers = (int)t->n_nodes;
    m->channels = mem_resize(m->channels, (t->n_nodes + 1) * sizeof(*m->channels));
    m->n_channels = 0;
    for (int i = 0; i < m->n_peers; i++)
        if (peers[i].channel)
            m->channels[m->n_channels++] = peers[i].channel;
    mem_free(m->table);
    m->table = t;
    size_t n = (size_t)t->n_layers * t->n_experts;
    m->first_holder = mem_resize(m->first_holder, n * sizeof(*m->first_holder));
    for (size_t i = 0; i < n; i++)
        m->first_holder[i] = t->holders[i * t->n_replicas];
    install_rounds(m);
    log_info("moe.table", "epoch=%" PRIu64 " nodes=%u", t->epoch, t->n_nodes);
    return 0;
}

uint64_t moe_remote_epoch(const struct moe_remote *m)
{
    return m->table ? m->table->epoch : 0;
}

/* ---- sending ------------------------------------------------------------------------- */

static struct wire_forward describe(const struct moe_remote *m, int lane, int layer,
                                    const struct round_parcel *p)
{
    return (struct wire_forward){
        .fingerprint = m->options.fingerprint,
        .epoch = m->table->epoch,
        .step = m->step,
        .layer = (uint32_t)layer,
        .lane = (uint32_t)lane,
        .n_rows = (uint32_t)p->n_rows,
        .hidden = (uint32_t)m->options.hidden,
        .n_routes = (uint32_t)p->n_routes,
        .group = (uint32_t)m->options.group,
        .mode = p->mode,
    };
}

static struct blob *pack_routes(struct moe_remote *m, const struct wire_forward *w,
                                const struct round_parcel *p)
{
    struct blob *b = blob_pool_get(m->route_blobs);
    b->size_bytes = wire_forward_routes_bytes(w->n_rows, w->n_routes);
    wire_forward_pack_routes(w, p->first_route, p->exponents, p->experts, p->weights, b->data);
    return b;
}

static struct blob *pack_rows(struct moe_remote *m, const struct wire_forward *w,
                              const struct round_parcel *p, const struct rows *rows)
{
    struct blob *b = blob_pool_get(m->row_blobs);
    size_t hidden = w->hidden, n = w->n_rows, n_groups = wire_forward_groups(w);
    must(wire_forward_rows_bytes(w, &b->size_bytes));
    char *out = b->data, *scales = out + n * hidden;
    for (size_t i = 0; i < n; i++) {
        size_t row = (size_t)p->rows[i];
        if (w->group == 0) {
            memcpy(out + i * hidden * sizeof(float), rows->f32 + row * rows->f32_stride,
                   hidden * sizeof(float));
            continue;
        }
        memcpy(out + i * hidden, rows->q8 + row * rows->q8_stride, hidden);
        memcpy(scales + i * n_groups * sizeof(float), rows->scales + row * rows->scale_stride,
               n_groups * sizeof(float));
    }
    return b;
}

/* What the reply must match is told by the round itself. */
static int decode_reply(struct trip *t, const struct reply *reply, struct round_reply *out,
                        struct err *e)
{
    struct moe_remote *m = t->moe;
    struct lane *l = &m->lanes[t->lane];
    const struct round_parcel *p = round_parcel(l->round, t->ticket.parcel);
    struct wire_forward expect = describe(m, t->lane, round_layer(l->round), p);
    int rc = wire_forward_reply_decode(reply->message, reply->payloads, reply->n_payloads, &expect,
                                       &m->reply, e);
    if (rc < 0)
        return rc;
    *out = (struct round_reply){
        .mode = m->reply.mode,
        .n_rows = (int)m->reply.n_rows,
        .data = reply->payloads[0].data,
        .bytes = reply->payloads[0].size_bytes,
        .overflow_rows = m->reply.overflow_rows,
        .n_overflow = (int)m->reply.n_overflow,
    };
    return 0;
}

static void on_reply(void *ud, const struct reply *reply)
{
    struct trip *t = ud;
    struct moe_remote *m = t->moe;
    struct round *round = m->lanes[t->lane].round;
    if (!round_is_out(round, t->ticket)) {
        m->late_replies++;
        return;
    }
    struct err e = {0};
    struct round_reply taken;
    int code = reply->code;
    if (code < 0)
        err_set(&e, code, "%s", reply->text && reply->text[0] ? reply->text : err_text(code));
    else
        code = decode_reply(t, reply, &taken, &e);
    if (code == 0)
        code = round_take(round, t->ticket, &taken, &e);
    if (code < 0)
        round_fail(round, t->ticket, code, e.text);
}

/* 0, or what channel_call() said. */
static int send_parcel(struct moe_remote *m, int lane, int index)
{
    struct lane *l = &m->lanes[lane];
    const struct round_parcel *p = round_parcel(l->round, index);
    struct channel *channel = m->peers[p->node].channel;
    if (!channel || !channel_is_connected(channel))
        return E_UNAVAILABLE;
    struct wire_forward w = describe(m, lane, round_layer(l->round), p);
    buf_reset(&m->message);
    wire_forward_encode(&w, &m->message);
    struct blob *payloads[] = {pack_routes(m, &w, p), pack_rows(m, &w, p, round_rows(l->round))};
    struct trip *t = &l->trips[index];
    *t = (struct trip){.moe = m, .lane = lane};
    struct call call = {
        .method = wire_method(WIRE_EXPERT, EXPERT_FORWARD),
        .message = &m->message,
        .payloads = payloads,
        .n_payloads = 2,
        .deadline_ns = l->deadline_ns,
        .done = on_reply,
        .ud = t,
    };
    int rc = channel_call(channel, &call, &t->call_id);
    if (rc == 0)
        t->ticket = round_sent(l->round, index);
    blob_unref(&payloads[0]);
    blob_unref(&payloads[1]);
    return rc;
}

/* Sends what can be sent; true if something is left that must wait. */
static bool send_parcels(struct moe_remote *m, int lane)
{
    struct lane *l = &m->lanes[lane];
    bool is_left = false;
    for (int i = round_next(l->round, -1); i >= 0; i = round_next(l->round, i)) {
        int rc = send_parcel(m, lane, i);
        if (rc == 0)
            continue;
        if (rc != E_UNAVAILABLE && rc != E_BUSY) {
            round_fail_unsent(l->round, i, rc, "could not be sent");
            return false;
        }
        is_left = true;
    }
    return is_left;
}

/* A parcel that could not be sent in time. */
static void give_up_unsent(struct moe_remote *m, int lane, int64_t now_ns)
{
    struct lane *l = &m->lanes[lane];
    int64_t connect_by = l->begun_ns + CONNECT_TIMEOUT_NS;
    int i = round_next(l->round, -1);
    if (i < 0)
        return;
    struct channel *channel = m->peers[round_parcel(l->round, i)->node].channel;
    bool is_connected = channel && channel_is_connected(channel);
    if (!is_connected && (now_ns >= connect_by || now_ns >= l->deadline_ns))
        round_fail_unsent(l->round, i, E_UNAVAILABLE, "not connected");
    else if (now_ns >= l->deadline_ns)
        round_fail_unsent(l->round, i, E_DEADLINE, "its queue stayed full");
}

/* ---- moe_ops ------------------------------------------------------------------------- */

void moe_remote_begin_step(struct moe_remote *m, uint64_t step, int64_t deadline_ns)
{
    m->step = step;
    m->step_deadline_ns = deadline_ns;
    m->experts_ns = 0;
    m->error = (struct err){0};
}

static int scatter(void *ud, int lane, const struct moe_rows *rows)
{
    struct moe_remote *m = ud;
    must(lane >= 0 && lane < LANES);
    struct lane *l = &m->lanes[lane];
    l->begun_ns = clock_now_ns();
    l->deadline_ns = l->begun_ns + m->options.call_timeout_ns;
    if (m->step_deadline_ns < l->deadline_ns)
        l->deadline_ns = m->step_deadline_ns;
    if (!m->table)
        return err_set(&m->error, E_UNAVAILABLE, "no table of expert nodes yet");
    must(m->options.group ? rows->rows.group == m->options.group : rows->rows.f32 != NULL);
    struct round_plan plan = {
        .rows = rows,
        .mode = m->options.mode,
        .holder = m->first_holder + (size_t)rows->layer * m->table->n_experts,
    };
    int rc = round_begin(l->round, &plan, &m->error);
    if (rc == 0)
        send_parcels(m, lane);
    return rc;
}

/* Nothing of a failed round may answer into the next one. */
static void cancel_calls(struct moe_remote *m, int lane)
{
    struct lane *l = &m->lanes[lane];
    for (int i = 0; i < round_n_parcels(l->round); i++) {
        const struct round_parcel *p = round_parcel(l->round, i);
        if (p->state == PARCEL_OUT)
            channel_cancel(m->peers[p->node].channel, l->trips[i].call_id);
    }
    round_abandon(l->round);
}

static int gather(void *ud, int lane, float *x)
{
    struct moe_remote *m = ud;
    must(lane >= 0 && lane < LANES);
    struct lane *l = &m->lanes[lane];
    while (round_state(l->round) == ROUND_RUNNING) {
        bool is_left = send_parcels(m, lane);
        int64_t now_ns = clock_now_ns();
        if (is_left)
            give_up_unsent(m, lane, now_ns);
        if (round_state(l->round) != ROUND_RUNNING)
            break;
        int64_t until_ns = l->deadline_ns;
        if (is_left && now_ns + UNSENT_POLL_NS < until_ns)
            until_ns = now_ns + UNSENT_POLL_NS;
        channel_wait(m->channels, m->n_channels, -1, until_ns, m->options.spin_ns);
    }
    int rc = 0;
    if (round_state(l->round) == ROUND_DONE) {
        round_fold(l->round, x);
    } else {
        m->error = *round_error(l->round);
        rc = m->error.code;
        cancel_calls(m, lane);
    }
    m->experts_ns += clock_now_ns() - l->begun_ns;
    return rc;
}

const struct moe_ops moe_remote_ops = {.scatter = scatter, .gather = gather};

const struct err *moe_remote_error(const struct moe_remote *m)
{
    return &m->error;
}

int64_t moe_remote_experts_ns(const struct moe_remote *m)
{
    return m->experts_ns;
}

void moe_remote_wait(struct moe_remote *m, int fd, int64_t deadline_ns)
{
    channel_wait(m->channels, m->n_channels, fd, deadline_ns, 0);
}
