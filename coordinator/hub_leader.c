/* coordinator/hub_leader.c - leadership: what coordinator/leader.c asks is asked of etcd, what it
 * decides is done here; and what a successor needs to start where we stand is kept in etcd.  See
 * hub.h.
 *
 * Log events: leader.stands_by, leader.leads, leader.suspended, leader.resumed, leader.stepped_down,
 * leader.placement_restored, leader.not_stored, leader.unknown_directory. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "coordinator/etcd.h"
#include "coordinator/etcd_keys.h"
#include "coordinator/hub_state.h"
#include "coordinator/identity.h"
#include "rpc/endpoint.h"

#define FETCH_TIMEOUT_NS (1 * CLOCK_S)
#define STORE_TIMEOUT_NS (1 * CLOCK_S)
#define STORE_EVERY_NS (1 * CLOCK_S)
#define LAST_WORD_NS (500 * CLOCK_MS)
/* How long a new leader's plan waits for the nodes of the old one to come. */
#define AWAIT_NODES_NS (2 * CLOCK_S)

/* A node's holdings, as etcd has them. */
struct stored {
    char name[WIRE_NAME_BYTES];
    uint64_t version;
    bool is_here; /* the placement has it, too */
};

struct hub_leader {
    struct etcd *etcd;
    struct leader machine;
    struct leader_request request; /* under way */
    struct etcd_leader self, holder;
    uint64_t cluster; /* etcd's own name; 0: not known yet */
    struct loop_timer timer;
    int64_t suspended_ns;
    bool is_fetching, is_storing, has_begun;
    struct etcd_placement old; /* what an earlier leader left */
    int n_restored;
    struct stored *stored;
    int n_stored, stored_room;
    int64_t store_again_ns;
};

static void pump(struct hub *h);

/* Does each coordinator have its own state directory, and copies of the leader's log in it? */
static bool keeps_own_log(const struct hub *h)
{
    return h->config->state_dir[0] && !h->config->state_is_shared;
}

/* ---- what an earlier leader left ------------------------------------------------------------- */

static struct stored *stored_of(struct hub_leader *w, const char *name)
{
    for (int i = 0; i < w->n_stored; i++)
        if (strcmp(w->stored[i].name, name) == 0)
            return &w->stored[i];
    if (w->n_stored == w->stored_room) {
        w->stored_room = w->stored_room ? 2 * w->stored_room : 16;
        w->stored = mem_resize(w->stored, (size_t)w->stored_room * sizeof *w->stored);
    }
    struct stored *s = &w->stored[w->n_stored++];
    *s = (struct stored){0};
    snprintf(s->name, sizeof s->name, "%s", name);
    return s;
}

static void restore_node(void *ud, const struct etcd_node *n)
{
    struct hub *h = ud;
    if (strlen(n->name) >= WIRE_NAME_BYTES || h->leader->n_restored == WIRE_MAX_NODES)
        return;
    h->leader->n_restored++;
    stored_of(h->leader, n->name);
    placement_restore(&h->placement, n->name, n->host, n->capacity, n->holds,
                      clock_now_ns() + AWAIT_NODES_NS);
}

static void ignore_node(void *ud, const struct etcd_node *n)
{
    stored_of(((struct hub *)ud)->leader, n->name); /* so that it is deleted */
}

static void restore(struct hub *h, const json_t *answer)
{
    struct hub_leader *w = h->leader;
    const char *prefix = h->config->etcd_prefix;
    size_t bytes = placement_bitmap_bytes(&h->placement);
    etcd_read_placement(answer, prefix, bytes, &w->old, ignore_node, h);
    /* Also if it was of another model: nodes remember versions. */
    if (w->old.version >= h->placement.config.first_version) {
        struct placement_config c = h->placement.config;
        c.first_version = w->old.version + 1;
        placement_fini(&h->placement);
        placement_init(&h->placement, &c);
    }
    if (w->old.fingerprint != h->fingerprint || w->old.n_layers != h->placement.config.n_layers ||
        w->old.n_experts != h->placement.config.n_experts)
        return;
    int n_bad = etcd_read_placement(answer, prefix, bytes, &w->old, restore_node, h);
    log_info("leader.placement_restored", "nodes=%d unreadable=%d", w->n_restored, n_bad);
}

static void begin(struct hub *h)
{
    struct hub_leader *w = h->leader;
    struct err e = {0};
    w->has_begun = true;
    h->leads = true;
    hub_follow_close(h);
    if (keeps_own_log(h))
        hub_ship_open(h);
    log_info("leader.leads", "term=%" PRIu64 " name=%s", w->machine.term, w->self.name);
    if (hub_log_open(h, &e) < 0) {
        hub_end_with(h, HUB_BROKEN, &e);
        return;
    }
    hub_refresh(h);
}

static void on_fetched(void *ud, int code, const json_t *answer, const char *why)
{
    struct hub *h = ud;
    struct hub_leader *w = h->leader;
    w->is_fetching = false;
    if (w->machine.state != LEADER_LEADS || w->has_begun)
        return;
    if (code < 0)
        log_warn("leader.placement_unread", "why=%s", log_quote(why).text);
    else
        restore(h, answer);
    begin(h);
}

static void fetch(struct hub *h)
{
    struct hub_leader *w = h->leader;
    if (w->is_fetching)
        return;
    w->is_fetching = etcd_post(w->etcd, etcd_path_range, etcd_fetch(h->config->etcd_prefix),
                               FETCH_TIMEOUT_NS, on_fetched, h) == 0;
    if (!w->is_fetching)
        begin(h);
}

/* ---- turns ---------------------------------------------------------------------------------- */

static void suspend(struct hub *h)
{
    const char *why = etcd_why_lost(h->leader->etcd);
    log_warn("leader.suspended", "why=%s",
             log_quote(why ? why : "the lease was not renewed in time").text);
    h->leads = false;
    h->leader->suspended_ns = clock_now_ns();
    hub_refresh(h);
}

static void resume(struct hub *h)
{
    struct hub_leader *w = h->leader;
    if (!w->has_begun) {
        fetch(h);
        return;
    }
    int64_t away_ns = clock_now_ns() - w->suspended_ns;
    log_info("leader.resumed", "term=%" PRIu64 " away_ms=%lld", w->machine.term,
             (long long)(away_ns / CLOCK_MS));
    h->leads = true;
    members_extend(&h->members, away_ns);
    hub_log_release(h);
    hub_refresh(h);
    hub_run(h);
}

static void take_turn(struct hub *h, enum leader_turn turn)
{
    switch (turn) {
    case LEADER_GO_ON:
        break;
    case LEADER_LEAD:
        fetch(h);
        break;
    case LEADER_SUSPEND:
        suspend(h);
        break;
    case LEADER_RESUME:
        resume(h);
        break;
    case LEADER_STEP_DOWN:
        log_warn("leader.stepped_down", "leader=%s", log_quote(h->leader->holder.name).text);
        h->leads = false;
        hub_end_with(h, HUB_ANEW, NULL);
        break;
    }
}

static void note_holder(struct hub *h, const struct etcd_leader *holder)
{
    struct hub_leader *w = h->leader;
    struct err e = {0};
    bool is_news = holder->instance != w->holder.instance;
    w->holder = *holder;
    if (!is_news || !holder->instance || holder->instance == w->self.instance)
        return;
    log_info("leader.stands_by", "leader=%s url=%s", log_quote(holder->name).text,
             log_quote(holder->url).text);
    if (keeps_own_log(h) && w->machine.state == LEADER_STANDBY &&
        hub_follow_leader(h, &w->self, holder->name, holder->cluster, &e) < 0)
        hub_end_with(h, HUB_BROKEN, &e);
}

static void on_answer(void *ud, int code, const json_t *answer, const char *why)
{
    struct hub *h = ud;
    struct hub_leader *w = h->leader;
    struct leader_answer a = {.number = w->request.number, .outcome = LEADER_FAILED};
    struct etcd_leader holder = {0};
    struct err e = {0};
    (void)why;
    if (code == 0 &&
        etcd_answer_of(answer, &w->request, &w->self, &a, &holder, &w->cluster, &e) < 0) {
        a.outcome = LEADER_FAILED;
        log_warn("leader.bad_answer", "why=%s", log_quote(e.text).text);
    }
    bool has_keys = w->request.ask == LEADER_LOOK || w->request.ask == LEADER_TAKE;
    if (has_keys && a.outcome != LEADER_FAILED)
        note_holder(h, &holder);
    take_turn(h, leader_answer(&w->machine, &a, clock_now_ns()));
    pump(h);
}

/* Sends what is to be sent now, and sees to it that this is called again in time. */
static void pump(struct hub *h)
{
    struct hub_leader *w = h->leader;
    struct leader_request r;
    if (leader_ask(&w->machine, clock_now_ns(), &r)) {
        w->request = r;
        json_t *body = etcd_request_of(&r, h->config->etcd_prefix, &w->self);
        must_zero(etcd_post(w->etcd, etcd_path_of(r.ask), body, r.timeout_ns, on_answer, h));
    }
    loop_set_timer(h->loop, &w->timer, leader_next_ns(&w->machine));
}

static void on_timer(void *ud, int64_t now_ns)
{
    struct hub *h = ud;
    (void)now_ns; /* the gate has just looked */
    pump(h);
}

/* Before anything else in a turn of the loop: how long has this process been away? */
static void on_gate(void *ud, int64_t now_ns)
{
    struct hub *h = ud;
    take_turn(h, leader_tick(&h->leader->machine, now_ns));
}

/* ---- what a successor shall find ---------------------------------------------------------------- */

/* All of it again. */
static void forget_stored(struct hub_leader *w)
{
    for (int i = 0; i < w->n_stored; i++)
        w->stored[i].version = 0;
}

static void on_stored(void *ud, int code, const json_t *answer, const char *why)
{
    struct hub *h = ud;
    struct hub_leader *w = h->leader;
    w->is_storing = false;
    w->store_again_ns = clock_now_ns() + STORE_EVERY_NS;
    if (code == 0 && etcd_was_stored(answer))
        return;
    log_warn("leader.not_stored", "why=%s",
             log_quote(code < 0 ? why : "another coordinator has taken over").text);
    forget_stored(w);
}

/* Those whose holdings etcd does not have yet, and those that are no more. */
static int collect(struct hub *h, struct etcd_node nodes[ETCD_STORE_BATCH])
{
    struct hub_leader *w = h->leader;
    const struct placement *p = &h->placement;
    size_t bytes = placement_bitmap_bytes(p);
    int n = 0;
    for (int i = 0; i < w->n_stored; i++)
        w->stored[i].is_here = false;
    for (int i = 0; i < p->n_nodes; i++) {
        const struct placement_node *node = &p->nodes[i];
        if (node->presence == PLACEMENT_FREE)
            continue;
        struct stored *s = stored_of(w, node->table.name);
        s->is_here = true;
        if (node->presence == PLACEMENT_AWAY || s->version == node->version ||
            n == ETCD_STORE_BATCH)
            continue;
        const struct node *member = members_find(&h->members, node->table.node_id);
        uint8_t *holds = mem_alloc(bytes);
        placement_holdings(p, node->table.node_id, holds);
        nodes[n++] = (struct etcd_node){.name = node->table.name,
                                        .host = member ? member->join.host : "",
                                        .capacity = node->capacity,
                                        .holds = holds,
                                        .holds_bytes = bytes};
        s->version = node->version;
    }
    for (int i = 0; i < w->n_stored; i++)
        if (!w->stored[i].is_here && n < ETCD_STORE_BATCH)
            nodes[n++] = (struct etcd_node){.name = w->stored[i].name};
    return n;
}

static void drop_deleted(struct hub_leader *w, const struct etcd_node *nodes, int n_nodes)
{
    for (int k = n_nodes - 1; k >= 0; k--)
        if (!nodes[k].holds)
            for (int i = 0; i < w->n_stored; i++)
                if (w->stored[i].name == nodes[k].name) {
                    w->stored[i] = w->stored[--w->n_stored];
                    break;
                }
}

static void store(struct hub *h)
{
    struct hub_leader *w = h->leader;
    struct etcd_node nodes[ETCD_STORE_BATCH];
    int n = collect(h, nodes);
    if (n == 0)
        return;
    uint64_t version = h->placement.last_version > h->placement.epoch ? h->placement.last_version
                                                                      : h->placement.epoch;
    /* Room for what is given out before the next time. */
    struct etcd_placement p = {.version = version + 100000,
                               .fingerprint = h->fingerprint,
                               .n_layers = h->placement.config.n_layers,
                               .n_experts = h->placement.config.n_experts};
    json_t *body = etcd_store(h->config->etcd_prefix, w->machine.term, &p, nodes, n);
    w->is_storing = etcd_post(w->etcd, etcd_path_txn, body, STORE_TIMEOUT_NS, on_stored, h) == 0;
    for (int i = 0; i < n; i++)
        mem_free((void *)(uintptr_t)nodes[i].holds);
    drop_deleted(w, nodes, n);
    if (!w->is_storing)
        forget_stored(w);
}

static void on_recorded(void *ud, int code, const json_t *answer, const char *why)
{
    bool is_done = code == 0 && etcd_was_stored(answer);
    if (!is_done)
        log_warn("leader.not_stored", "why=%s",
                 log_quote(code < 0 ? why : "another coordinator has taken over").text);
    hub_ship_recorded(ud, is_done);
}

bool hub_leader_record(struct hub *h, const uint64_t *states, int n)
{
    struct hub_leader *w = h->leader;
    json_t *body = etcd_store_in_step(h->config->etcd_prefix, w->machine.term, states, n);
    return etcd_post(w->etcd, etcd_path_txn, body, STORE_TIMEOUT_NS, on_recorded, h) == 0;
}

uint64_t hub_leader_state(const struct hub *h)
{
    return h->leader->self.state;
}

void hub_leader_tick(struct hub *h, int64_t now_ns)
{
    struct hub_leader *w = h->leader;
    if (w && h->leads && w->has_begun && !w->is_storing && now_ns >= w->store_again_ns)
        store(h);
}

/* ---- what others are told ------------------------------------------------------------------------ */

static const char *role_of(const struct hub *h)
{
    if (!h->leader || h->leads)
        return "leader";
    return h->leader->machine.state == LEADER_STANDBY ? "standby" : "suspended";
}

static bool knows_leader(const struct hub_leader *w)
{
    return w->holder.instance && w->holder.instance != w->self.instance;
}

void hub_leader_why(const struct hub *h, char *text, size_t bytes)
{
    const struct hub_leader *w = h->leader;
    const char *lost = etcd_why_lost(w->etcd);
    if (w->machine.state == LEADER_SUSPENDED)
        snprintf(text, bytes,
                 "this coordinator's lease in etcd may have ended, so it does nothing until it is "
                 "renewed (%.100s)",
                 lost ? lost : "it was not renewed in time");
    else if (lost)
        snprintf(text, bytes, "this coordinator stands by, and etcd does not answer: %.150s", lost);
    else if (knows_leader(w))
        snprintf(text, bytes, "this coordinator stands by; %.60s leads at %.120s", w->holder.name,
                 w->holder.url);
    else
        snprintf(text, bytes, "this coordinator stands by; nobody leads at the moment");
}

const char *hub_leader_url(const struct hub *h)
{
    return h->leader && knows_leader(h->leader) ? h->leader->holder.url : "";
}

bool hub_leader_is_sure(const struct hub *h)
{
    return h->leads && (!h->leader || leader_is_sure(&h->leader->machine, clock_now_ns()));
}

json_t *hub_leader_object(const struct hub *h)
{
    const struct hub_leader *w = h->leader;
    json_t *o = json_pack("{ss}", "role", role_of(h));
    if (w) {
        const struct etcd_leader *leader = h->leads ? &w->self : &w->holder;
        bool is_known = h->leads || knows_leader(w);
        const char *lost = etcd_why_lost(w->etcd);
        json_object_set_new(o, "name", json_string(w->self.name));
        json_object_set_new(o, "leader", json_string(is_known ? leader->name : ""));
        json_object_set_new(o, "leader_url", json_string(is_known ? leader->url : ""));
        json_object_set_new(o, "term", json_integer((json_int_t)w->machine.term));
        json_object_set_new(o, "lease_ms", json_integer(h->config->etcd_lease_ns / CLOCK_MS));
        json_object_set_new(o, "etcd", json_string(lost ? lost : "ok"));
        if (h->ship)
            json_object_set_new(o, "standbys", hub_ship_object(h));
        if (h->follow)
            json_object_set_new(o, "copy", hub_follow_object(h));
    }
    return o;
}

void hub_leader_label(const struct hub *h, char *text, size_t bytes)
{
    text[0] = '\0';
    if (h->leader)
        snprintf(text, bytes, ", led through etcd %016" PRIx64 " %.200s", h->leader->cluster,
                 h->config->etcd_prefix);
}

/* ---- start and end ---------------------------------------------------------------------------------- */

/* How other coordinators dial this one. */
static int advertise(struct hub *h, const char *host, struct err *e)
{
    const char *bound = server_endpoint(h->servers[0]), *as = h->config->cluster_advertise;
    char *out = h->leader->self.cluster;
    int rc = endpoint_advertise(bound, as, out, e);
    if (rc < 0 && !as[0])
        rc = endpoint_advertise(bound, host, out, e);
    return rc < 0 ? err_prefix(e, "cluster.advertise") : 0;
}

/* Without an identity of its own nobody knows the directory again. */
static uint64_t state_of(const struct hub *h, uint64_t instance)
{
    struct err e = {0};
    uint64_t state = instance;
    if (keeps_own_log(h) && identity_of(h->config->state_dir, &state, &e) < 0) {
        log_warn("leader.unknown_directory", "why=%s", log_quote(e.text).text);
        return instance;
    }
    return state;
}

static int introduce(struct hub *h, struct err *e)
{
    const struct coordinator_config *c = h->config;
    struct etcd_leader *self = &h->leader->self;
    while (self->instance == 0)
        self->instance = rng_entropy();
    self->state = state_of(h, self->instance);
    snprintf(self->name, sizeof self->name, "%s", c->node_name);
    bool is_any = strcmp(c->http_host, "0.0.0.0") == 0 || strcmp(c->http_host, "::") == 0;
    char host[128] = "";
    if (gethostname(host, sizeof host - 1) < 0)
        host[0] = '\0';
    if (c->etcd_advertise_url[0])
        snprintf(self->url, sizeof self->url, "%.255s", c->etcd_advertise_url);
    else if (is_any && host[0])
        snprintf(self->url, sizeof self->url, "http://%s:%d", host, http_port(h->http));
    else
        snprintf(self->url, sizeof self->url, "%.255s", http_url(h->http));
    return advertise(h, host, e);
}

int hub_leader_open(struct hub *h, struct err *e)
{
    const struct coordinator_config *c = h->config;
    struct hub_leader *w = h->leader = mem_alloc(sizeof *w);
    struct etcd_options o = coordinator_etcd_options(c);
    w->timer = (struct loop_timer){.deadline_ns = CLOCK_NEVER, .cb = on_timer, .ud = h};
    int rc = introduce(h, e);
    if (rc < 0)
        return rc;
    rc = etcd_open(h->loop, &o, &w->etcd, e);
    if (rc < 0)
        return err_prefix(e, "etcd");
    struct leader_config config = {.instance = w->self.instance, .lease_ns = c->etcd_lease_ns};
    leader_init(&w->machine, &config, clock_now_ns());
    loop_set_gate(h->loop, on_gate, h);
    pump(h);
    return 0;
}

/* A lease that is given back need not end by itself: the standby leads at once. */
void hub_leader_close(struct hub *h)
{
    struct hub_leader *w = h->leader;
    if (!w)
        return;
    if (w->etcd) {
        loop_set_gate(h->loop, NULL, NULL);
        if (w->machine.lease)
            etcd_post_last(w->etcd, etcd_path_revoke, etcd_revoke(w->machine.lease), LAST_WORD_NS);
    }
    etcd_close(&w->etcd);
    if (w->timer.added)
        loop_remove_timer(h->loop, &w->timer);
    mem_free(w->stored);
    mem_free(w);
    h->leader = NULL;
}
