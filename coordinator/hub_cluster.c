/* coordinator/hub_cluster.c - the Cluster service: nodes join, report, and fetch what they
 * shall hold or whom they may ask; see hub.h. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "coordinator/hub_state.h"

#define TABLE_EVERY_NS (25 * CLOCK_MS)

/* ---- placement ----------------------------------------------------------------------------- */

static uint64_t oldest_epoch(const struct hub *h)
{
    uint64_t oldest = UINT64_MAX;
    for (int i = 0; i < h->members.n_nodes; i++) {
        const struct node *n = h->members.nodes[i];
        if (n->join.role == NODE_ATTENTION && n->state != NODE_GONE && n->last.epoch < oldest)
            oldest = n->last.epoch;
    }
    return oldest;
}

static void hub_place(struct hub *h, int64_t now_ns)
{
    const struct placement *p = &h->placement;
    placement_tick(&h->placement, oldest_epoch(h), now_ns);
    bool settled = placement_is_settled(p) && placement_is_covered(p);
    if (settled && !h->settled)
        log_info("placement.settled", "epoch=%llu copies=%lld lowest=%d",
                 (unsigned long long)p->epoch, (long long)p->n_copies, p->lowest);
    h->settled = settled;
}

/* ---- members come and go --------------------------------------------------------------------- */

/* Who does not lead has nothing to say to nodes, and they go on to the next. */
static bool stands_by(const struct hub *h, struct server_call **call)
{
    if (h->leads)
        return false;
    server_fail(call, E_UNAVAILABLE, "%s", h->why_not);
    return true;
}

static int64_t capacity_of(const struct wire_join *j)
{
    return j->expert_bytes ? (int64_t)(j->memory_bytes / j->expert_bytes) : 0;
}

/* The attention sides have changed, and with them who may call expert nodes. */
static void renew_callers(struct hub *h)
{
    if (auth_has_keys(h->auth))
        h->callers_version++;
}

/* Sides learn of it with the table's next epoch. */
static void tell_lending(struct hub *h, bool has_changed)
{
    if (has_changed)
        placement_renew_table(&h->placement);
}

static void node_gone(struct hub *h, uint32_t node_id, const char *name, enum node_role role,
                      enum placement_loss loss, const char *why)
{
    int64_t live_before = h->placement.n_live;
    log_info("node.gone", "name=%s id=%u why=%s", name, node_id, log_quote(why).text);
    hub_tell(h, loss == PLACEMENT_LEFT ? EVENTS_INFO : EVENTS_BAD, "node gone", "%s: %s", name,
             why);
    h->counters.nodes_lost++;
    if (role == NODE_ATTENTION) {
        renew_callers(h);
        tell_lending(h, lending_side_gone(&h->lending, node_id));
        hub_attention_remove(h, node_id);
        return;
    }
    if (role == NODE_CONTEXT) {
        tell_lending(h, lending_host_gone(&h->lending, node_id));
        return;
    }
    int64_t now_ns = clock_now_ns();
    placement_gone(&h->placement, node_id, loss, now_ns);
    hub_place(h, now_ns);
    if (h->placement.n_live < live_before)
        log_warn("placement.uncovered", "name=%s experts=%lld of=%lld", name,
                 (long long)(live_before - h->placement.n_live), (long long)h->placement.n_total);
}

static void node_joined(struct hub *h, const struct node *n)
{
    const struct wire_join *j = &n->join;
    h->counters.joins++;
    hub_tell(h, EVENTS_INFO, "node joined", "%s on %s", j->name, j->host);
    log_info("node.joined", "name=%s id=%u role=%s endpoint=%s host=%s pid=%u experts_room=%lld",
             j->name, n->id, node_role_name(j->role), j->endpoint, j->host, j->pid,
             (long long)(j->role == NODE_EXPERT ? capacity_of(j) : 0));
    if (j->role == NODE_ATTENTION) {
        renew_callers(h);
        if (j->borrows)
            tell_lending(h, lending_side_joins(&h->lending, n->id));
        hub_attention_add(h, n);
        return;
    }
    if (j->role == NODE_CONTEXT) {
        tell_lending(h, lending_host_joins(&h->lending, n->id, j->memory_bytes));
        return;
    }
    struct placement_newcomer new = {
        .table = {.node_id = n->id, .incarnation = j->incarnation, .max_rows = j->max_rows},
        .host = j->host,
        .rack = j->rack,
        .capacity = capacity_of(j),
        .threads = (int)(j->threads < 65536 ? j->threads : 65536),
        .speed = (double)j->read_bytes_s};
    memcpy(new.table.name, j->name, sizeof new.table.name);
    memcpy(new.table.endpoint, j->endpoint, sizeof new.table.endpoint);
    memcpy(new.table.public_key, j->public_key, sizeof new.table.public_key);
    placement_join(&h->placement, &new, clock_now_ns());
    if (h->config->placement_move_bytes > 0)
        h->placement.config.moves_per_s =
            (double)h->config->placement_move_bytes / (double)j->expert_bytes;
}

/* A node's key is the one that its connection proved.  Over ipc and inproc there is none to
 * prove: who can open the socket's file is trusted. */
static int check_key(const struct hub *h, const struct wire_join *j, const char *proved,
                     struct err *e)
{
    if (!auth_has_keys(h->auth))
        return 0;
    if (proved[0] && strcmp(proved, j->public_key) != 0)
        return err_set(e, E_DENIED, "public_key: %s claims a key that its connection did not prove",
                       j->name);
    if (!j->public_key[0] && str_has_prefix(str_of(j->endpoint), STR("tcp:")))
        return err_set(e, E_DENIED, "public_key: %s has none, and this cluster has keys", j->name);
    return 0;
}

static int check_join(const struct wire_join *j, struct err *e)
{
    if (!j->name[0] || !j->endpoint[0])
        return err_set(e, E_INVALID, "a node needs a name and an endpoint");
    if (j->role == NODE_EXPERT && j->expert_bytes == 0)
        return err_set(e, E_INVALID, "%s: expert_bytes is 0", j->name);
    return 0;
}

/* Only a node speaks for itself. */
static bool is_caller(const struct node *n, const struct server_request *r)
{
    return !n || !r->key[0] || strcmp(n->join.public_key, r->key) == 0;
}

/* A side learns of a new table with its heartbeats; until then it does not know who took over from a
 * node that died, and if a second one dies its streams stand still. */
static uint32_t heartbeat_ms(const struct hub *h, enum node_role role)
{
    int64_t every_ns = h->config->cluster_heartbeat_ns;
    if (role == NODE_ATTENTION && every_ns > TABLE_EVERY_NS)
        every_ns = TABLE_EVERY_NS;
    return (uint32_t)(every_ns / CLOCK_MS);
}

static void on_join(void *ud, struct server_call *call, const struct server_request *r)
{
    struct hub *h = ud;
    struct wire_join j;
    struct members_joined joined;
    struct err e = {0};
    if (stands_by(h, &call))
        return;
    int rc = wire_join_decode(r->message, &j, &e);
    if (rc == 0)
        rc = check_join(&j, &e);
    if (rc == 0)
        rc = check_key(h, &j, r->key, &e);
    if (rc == 0)
        rc = members_join(&h->members, &j, clock_now_ns(), &joined, &e);
    if (rc < 0) {
        h->counters.joins_refused++;
        hub_tell(h, EVENTS_WARN, "node refused", "%s", e.text);
        log_warn("node.refused", "why=%s", log_quote(e.text).text);
        server_fail(&call, rc, "%s", e.text);
        return;
    }
    if (joined.gone_id)
        node_gone(h, joined.gone_id, j.name, j.role, PLACEMENT_LOST, "restarted at its address");
    if (joined.is_new)
        node_joined(h, joined.node);
    struct wire_join_reply reply = {.node_id = joined.node->id,
                                    .epoch = h->placement.epoch,
                                    .heartbeat_ms = heartbeat_ms(h, j.role),
                                    .lease_ms = (uint32_t)(h->config->cluster_lease_ns / CLOCK_MS)};
    struct buf message = {0};
    wire_join_reply_encode(&reply, &message);
    server_reply(&call, &(struct server_answer){.message = &message});
    buf_fini(&message);
    hub_refresh(h);
}

static void take_report(struct hub *h, const struct node *n, enum node_state before)
{
    const struct wire_heartbeat *b = &n->last;
    if (n->state != before && n->state == NODE_READY) {
        hub_tell(h, EVENTS_GOOD, "node ready", "%s", n->join.name);
        log_info("node.ready", "name=%s id=%u experts=%u", n->join.name, n->id, b->experts_held);
    }
    bool drains_now = n->state == NODE_DRAINING && before != NODE_DRAINING;
    if (drains_now) {
        hub_tell(h, EVENTS_WARN, "node draining", "%s", n->join.name);
        log_info("node.draining", "name=%s id=%u", n->join.name, n->id);
    }
    if (n->join.role == NODE_CONTEXT) {
        if (drains_now && !h->draining)
            tell_lending(h, lending_host_gone(&h->lending, n->id));
        return;
    }
    if (n->join.role == NODE_ATTENTION) {
        hub_attention_pages(h, n->id, b->kv_pages);
        if (drains_now) {
            lending_side_leaves(&h->lending, n->id);
            hub_attention_drain(h, n->id);
        }
        return;
    }
    if (drains_now) {
        placement_drain(&h->placement, n->id);
        hub_place(h, clock_now_ns());
    }
    if (n->state != NODE_JOINING)
        placement_report(&h->placement, n->id, b->holdings_version);
}

static bool is_busy(struct hub *h)
{
    bool is_stepping = false;
    for (struct list *l = h->attentions.next; l != &h->attentions; l = l->next)
        is_stepping |= LIST_ITEM(l, struct hub_attention, link)->stepping;
    return is_stepping || h->n_requests + h->n_admissions > 0;
}

/* Without another one its sequences wait for it to come back, and go on from their tokens then. */
static bool side_may_leave(struct hub *h, const struct node *n)
{
    if (h->draining)
        return !is_busy(h);
    return sched_side_seqs(&h->sched, n->id) == 0 || !sched_has_heirs(&h->sched, n->id);
}

/* No table names it any more, and every side has such a table. */
static bool context_may_leave(struct hub *h, const struct node *n)
{
    if (h->draining)
        return !is_busy(h);
    return !lending_find(&h->lending, n->id) && oldest_epoch(h) >= h->placement.epoch;
}

/* When the whole cluster ends nobody takes anything over, but what runs needs its experts. */
static bool may_leave(struct hub *h, const struct node *n)
{
    if (n->join.role == NODE_ATTENTION)
        return side_may_leave(h, n);
    if (n->join.role == NODE_CONTEXT)
        return context_may_leave(h, n);
    if (placement_is_drained(&h->placement, n->id))
        return true;
    bool is_end = h->draining || !placement_has_heirs(&h->placement);
    return is_end && !is_busy(h);
}

static void on_heartbeat(void *ud, struct server_call *call, const struct server_request *r)
{
    struct hub *h = ud;
    struct wire_heartbeat b;
    struct err e = {0};
    if (stands_by(h, &call))
        return;
    int rc = wire_heartbeat_decode(r->message, &b, &e);
    if (rc < 0) {
        server_fail(&call, rc, "%s", e.text);
        return;
    }
    struct node *n = members_find(&h->members, b.node_id);
    enum node_state before = n ? n->state : NODE_GONE;
    if (!is_caller(n, r)) {
        server_fail(&call, E_DENIED, "node %u has another key", b.node_id);
        return;
    }
    if (members_heartbeat(&h->members, &b, clock_now_ns(), &n) < 0) {
        server_fail(&call, E_NOT_FOUND, "node %u is not a member: join again", b.node_id);
        return;
    }
    take_report(h, n, before);
    struct wire_heartbeat_reply reply = {
        .epoch = h->placement.epoch,
        .holdings_version = placement_version(&h->placement, n->id),
        .callers_version = h->callers_version,
        .drain = n->drain,
        .restart = n->restart,
        .may_leave = n->state == NODE_DRAINING && may_leave(h, n),
        .test = n->test,
    };
    struct buf message = {0};
    wire_heartbeat_reply_encode(&reply, &message);
    server_reply(&call, &(struct server_answer){.message = &message});
    buf_fini(&message);
    hub_refresh(h);
}

static void on_load(void *ud, struct server_call *call, const struct server_request *r)
{
    struct hub *h = ud;
    struct wire_load l;
    uint16_t *counts = NULL;
    struct err e = {0};
    if (stands_by(h, &call))
        return;
    int rc = wire_load_decode(r->message, r->payloads, r->n_payloads, &l, &counts, &e);
    const struct node *n = rc == 0 ? members_find(&h->members, l.node_id) : NULL;
    if (rc == 0 && (!n || n->join.incarnation != l.incarnation || n->join.role != NODE_ATTENTION))
        rc = err_set(&e, E_NOT_FOUND, "node %u is no attention side of this cluster", l.node_id);
    if (rc == 0 && !is_caller(n, r))
        rc = err_set(&e, E_DENIED, "node %u has another key", l.node_id);
    if (rc == 0 && (l.n_layers != h->placement.config.n_layers ||
                    l.n_experts != h->placement.config.n_experts))
        rc = err_set(&e, E_INVALID, "counts of %u layers of %u experts", l.n_layers, l.n_experts);
    if (rc == 0)
        placement_observe(&h->placement, counts);
    mem_free(counts);
    if (rc < 0)
        server_fail(&call, rc, "%s", e.text);
    else
        server_reply(&call, &(struct server_answer){0});
}

static void on_leave(void *ud, struct server_call *call, const struct server_request *r)
{
    struct hub *h = ud;
    struct wire_leave l;
    struct node *n;
    struct err e = {0};
    if (stands_by(h, &call))
        return;
    int rc = wire_leave_decode(r->message, &l, &e);
    if (rc < 0) {
        server_fail(&call, rc, "%s", e.text);
        return;
    }
    if (!is_caller(members_find(&h->members, l.node_id), r)) {
        server_fail(&call, E_DENIED, "node %u has another key", l.node_id);
        return;
    }
    /* Leaving twice, or after the lease, is the same as leaving. */
    if (members_leave(&h->members, &l, &n) == 0)
        node_gone(h, n->id, n->join.name, n->join.role, PLACEMENT_LEFT, l.reason);
    server_reply(&call, &(struct server_answer){0});
    hub_refresh(h);
}

/* ---- what they fetch --------------------------------------------------------------------------- */

static void on_holdings(void *ud, struct server_call *call, const struct server_request *r)
{
    struct hub *h = ud;
    struct wire_holdings_request q;
    struct err e = {0};
    if (stands_by(h, &call))
        return;
    int rc = wire_holdings_request_decode(r->message, &q, &e);
    if (rc < 0) {
        server_fail(&call, rc, "%s", e.text);
        return;
    }
    if (!is_caller(members_find(&h->members, q.node_id), r)) {
        server_fail(&call, E_DENIED, "node %u has another key", q.node_id);
        return;
    }
    uint8_t *bitmap = mem_alloc(placement_bitmap_bytes(&h->placement));
    if (!placement_holdings(&h->placement, q.node_id, bitmap)) {
        mem_free(bitmap);
        server_fail(&call, E_NOT_FOUND, "node %u is not a member: join again", q.node_id);
        return;
    }
    struct wire_holdings m = {.version = placement_version(&h->placement, q.node_id),
                              .n_layers = h->placement.config.n_layers,
                              .n_experts = h->placement.config.n_experts,
                              .bitmap = bitmap};
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_holdings_encode(&m, &message, &payload);
    server_reply(
        &call, &(struct server_answer){.message = &message, .payloads = &payload, .n_payloads = 1});
    blob_unref(&payload);
    buf_fini(&message);
    mem_free(bitmap);
}

/* What is lent; `contexts` has room for all. */
static uint32_t list_contexts(const struct hub *h, struct wire_table_context *contexts)
{
    uint32_t n_contexts = 0;
    for (int i = 0; i < h->lending.n_hosts; i++) {
        const struct lending_host *l = &h->lending.hosts[i];
        const struct node *n = members_find(&h->members, l->node_id);
        if (!n || l->borrower == 0)
            continue;
        struct wire_table_context *c = &contexts[n_contexts++];
        *c = (struct wire_table_context){
            .node_id = n->id, .incarnation = n->join.incarnation, .borrower = l->borrower};
        memcpy(c->name, n->join.name, sizeof c->name);
        memcpy(c->endpoint, n->join.endpoint, sizeof c->endpoint);
        memcpy(c->public_key, n->join.public_key, sizeof c->public_key);
    }
    return n_contexts;
}

static void on_table(void *ud, struct server_call *call, const struct server_request *r)
{
    struct hub *h = ud;
    const struct placement *p = &h->placement;
    if (stands_by(h, &call))
        return;
    (void)r;
    struct wire_table_node *nodes = mem_array((size_t)p->n_nodes + 1, sizeof *nodes);
    uint16_t *holders = mem_array((size_t)p->n_total * WIRE_MAX_REPLICAS, sizeof *holders);
    struct wire_table table;
    placement_table(p, nodes, holders, &table);
    struct wire_table_context *contexts =
        mem_array((size_t)h->lending.n_hosts + 1, sizeof *contexts);
    table.contexts = contexts;
    table.n_contexts = list_contexts(h, contexts);
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_table_encode(&table, &message, &payload);
    server_reply(
        &call, &(struct server_answer){.message = &message, .payloads = &payload, .n_payloads = 1});
    blob_unref(&payload);
    buf_fini(&message);
    mem_free(contexts);
    mem_free(nodes);
    mem_free(holders);
}

static void on_callers(void *ud, struct server_call *call, const struct server_request *r)
{
    struct hub *h = ud;
    if (stands_by(h, &call))
        return;
    (void)r;
    char(*keys)[KEY_TEXT_BYTES] = mem_array((size_t)h->members.n_nodes + 1, sizeof *keys);
    struct wire_callers callers = {.version = h->callers_version, .keys = keys};
    for (int i = 0; i < h->members.n_nodes; i++) {
        const struct node *n = h->members.nodes[i];
        if (n->join.role == NODE_ATTENTION && n->state != NODE_GONE && n->join.public_key[0])
            memcpy(keys[callers.n_keys++], n->join.public_key, KEY_TEXT_BYTES);
    }
    struct buf message = {0};
    wire_callers_encode(&callers, &message);
    server_reply(&call, &(struct server_answer){.message = &message});
    buf_fini(&message);
    mem_free(keys);
}

/* ---- time, and opening ------------------------------------------------------------------------- */

static void set_trust(struct hub *h, const struct node *n, int64_t now_ns)
{
    log_warn("node.trust", "name=%s id=%u trust=%s", n->join.name, n->id,
             node_trust_name(n->trust));
    hub_tell(h, n->trust == NODE_TRUSTED ? EVENTS_GOOD : EVENTS_BAD, "node trust", "%s is %s",
             n->join.name, node_trust_name(n->trust));
    placement_trust(&h->placement, n->id, n->trust, now_ns);
}

/* A side speaks of the nodes that are not well, or were not; of the others it has answers. */
static const struct wire_node_health *find_health(const struct wire_step_reply *r, uint32_t node_id)
{
    for (uint32_t i = 0; i < r->n_nodes; i++)
        if (r->nodes[i].node_id == node_id)
            return &r->nodes[i];
    return NULL;
}

static bool judge_node(struct hub *h, const struct node *n, const struct wire_step_reply *r,
                       int64_t now_ns)
{
    static const struct wire_node_health well = {.standing = WIRE_STANDING_GOOD};
    const struct wire_node_health *w = find_health(r, n->id);
    if (!w)
        w = &well;
    struct members_opinion o = {.node_id = n->id,
                                .incarnation = w == &well ? n->join.incarnation : w->incarnation,
                                .is_wrong = w->standing == WIRE_STANDING_WRONG,
                                .is_silent = w->standing == WIRE_STANDING_SUSPECT ||
                                             w->standing == WIRE_STANDING_AWAY,
                                .side_epoch = r->epoch,
                                .epoch = h->placement.epoch};
    return members_judge(&h->members, &o, now_ns);
}

void hub_cluster_judge(struct hub *h, const struct wire_step_reply *r)
{
    int64_t now_ns = clock_now_ns();
    for (int i = 0; i < h->members.n_nodes; i++) {
        const struct node *n = h->members.nodes[i];
        if (n->join.role != NODE_EXPERT || n->state == NODE_GONE || !judge_node(h, n, r, now_ns))
            continue;
        h->counters.nodes_distrusted++;
        set_trust(h, n, now_ns);
        hub_place(h, now_ns);
    }
}

/* An attention side's sequences are replayed on another, which must be there. */
static int check_side_may_go(const struct hub *h, const struct node *n, struct err *e)
{
    if (strncmp(n->join.endpoint, "inproc:", 7) == 0)
        return err_set(e, E_PRECONDITION,
                       "\"%s\" lives in the coordinator, and ends with it (attention.embedded)",
                       n->join.name);
    for (int i = 0; i < h->members.n_nodes; i++) {
        const struct node *o = h->members.nodes[i];
        if (o != n && !o->drain && sched_has_side(&h->sched, o->id))
            return 0;
    }
    return err_set(e, E_PRECONDITION, "\"%s\" is the only attention side that works now",
                   n->join.name);
}

int hub_cluster_drain(struct hub *h, const char *name, bool restart, struct err *e)
{
    struct node *n = members_find_name(&h->members, name);
    if (!n)
        return err_set(e, E_NOT_FOUND, "there is no node \"%.64s\" in the cluster", name);
    int rc = n->join.role == NODE_ATTENTION ? check_side_may_go(h, n, e) : 0;
    if (rc < 0)
        return rc;
    n->drain = true;
    n->restart = restart;
    return 0;
}

void hub_cluster_tick(struct hub *h, int64_t now_ns)
{
    const struct node *n;
    while ((n = members_expire(&h->members, now_ns)))
        node_gone(h, n->id, n->join.name, n->join.role, PLACEMENT_LOST,
                  n->is_missed ? "its connection broke and its heartbeat did not come"
                               : "its lease has ended");
    while ((n = members_forgive(&h->members, h->placement.epoch, now_ns)))
        set_trust(h, n, now_ns);
    hub_place(h, now_ns);
}

int hub_cluster_open(struct hub *h, struct err *e)
{
    static server_handler *const handlers[CLUSTER_METHODS] = {
        [CLUSTER_JOIN] = on_join,         [CLUSTER_HEARTBEAT] = on_heartbeat,
        [CLUSTER_HOLDINGS] = on_holdings, [CLUSTER_TABLE] = on_table,
        [CLUSTER_LEAVE] = on_leave,       [CLUSTER_LOAD] = on_load,
        [CLUSTER_CALLERS] = on_callers,   [CLUSTER_FOLLOW] = hub_ship_follow,
    };
    /* As epochs do, it counts from above what nodes remember of an earlier coordinator. */
    h->callers_version = auth_has_keys(h->auth) ? (uint64_t)clock_unix_us() / 1000000 : 0;
    const char *endpoints[2] = {h->config->cluster_listen, HUB_INPROC_CLUSTER};
    for (int i = 0; i < 2; i++) {
        struct server_options o = {.endpoint = endpoints[i],
                                   .name = "cluster",
                                   .max_frame_bytes = 1 << 20,
                                   .auth = h->auth};
        int rc = server_open(&o, &h->servers[i], e);
        if (rc < 0)
            return err_prefix(e, "cluster.listen");
        server_add(h->servers[i], WIRE_CLUSTER, handlers, h);
        server_attach(h->servers[i], h->loop);
    }
    log_info("cluster.listening", "endpoint=%s", server_endpoint(h->servers[0]));
    return 0;
}
