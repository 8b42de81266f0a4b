/* coordinator/admin.c - what operators see: readiness, and the cluster as JSON.  Reads the hub,
 * changes nothing.
 *
 * GET /cluster, beside what its keys say: nodes[].rack is "" where the host is its own; nodes[].build
 * and version (this coordinator's) differ in a rolling upgrade; token_log, where there is a state.dir and
 * this coordinator leads, counts records since its start, of which on_record are what its death leaves;
 * leadership.standbys[]: of each one's copy of that log, has_bytes are on its disk and lag_bytes are not
 * yet. */
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/must.h"
#include "base/version.h"
#include "coordinator/hub_state.h"

static void set(json_t *object, const char *key, json_t *v)
{
    if (!v) /* a node's text that is no UTF-8 */
        v = json_string("?");
    must_zero(json_object_set_new(object, key, v));
}

static void dump(json_t *v, struct buf *out)
{
    char *text = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(9));
    must(text);
    buf_puts(out, text);
    free(text);
    json_decref(v);
}

static json_t *coverage(const struct placement *p)
{
    json_t *o = json_object();
    set(o, "experts", json_integer(p->n_total));
    set(o, "live", json_integer(p->n_live));
    set(o, "copies", json_integer(p->n_copies));
    set(o, "share", json_real((double)p->n_live / (double)(p->n_total ? p->n_total : 1)));
    return o;
}

/* Copies, moves, and what is still to be read. */
static json_t *placement_object(const struct hub *h)
{
    const struct placement *p = &h->placement;
    json_t *o = json_object();
    int64_t expert_bytes = 0;
    for (int i = 0; i < h->members.n_nodes; i++)
        if (h->members.nodes[i]->join.role == NODE_EXPERT)
            expert_bytes = (int64_t)h->members.nodes[i]->join.expert_bytes;
    bool any = p->n_total > 0 && p->lowest <= PLACEMENT_PLACES;
    set(o, "replicas", p->config.replicas ? json_integer(p->config.replicas) : json_string("auto"));
    set(o, "copies", json_integer(p->n_copies));
    set(o, "lowest", json_integer(any ? p->lowest : 0));
    set(o, "wanted_lowest", json_integer(any ? p->wanted_lowest : 0));
    set(o, "to_load", json_integer(p->n_to_load));
    set(o, "to_load_bytes", json_integer(p->n_to_load * expert_bytes));
    set(o, "retiring", json_integer(p->n_retiring));
    set(o, "settled", json_boolean(placement_is_settled(p)));
    set(o, "observed", json_real(p->observed));
    return o;
}

void admin_health(const struct hub *h, struct buf *out)
{
    json_t *o = hub_leader_object(h);
    set(o, "status", json_string("ok"));
    dump(o, out);
}

void admin_ready(const struct hub *h, struct buf *out)
{
    json_t *o = json_object();
    set(o, "ready", json_boolean(h->ready));
    set(o, "epoch", json_integer((json_int_t)h->placement.epoch));
    if (!h->ready)
        set(o, "reason", json_string(h->why_not));
    set(o, "coverage", coverage(&h->placement));
    dump(o, out);
}

static const struct placement_node *placed(const struct hub *h, uint32_t id)
{
    for (int i = 0; i < h->placement.n_nodes; i++)
        if (h->placement.nodes[i].presence != PLACEMENT_FREE &&
            h->placement.nodes[i].table.node_id == id)
            return &h->placement.nodes[i];
    return NULL;
}

static const struct hub_attention *attention(const struct hub *h, uint32_t id)
{
    for (struct list *l = h->attentions.next; l != &h->attentions; l = l->next) {
        const struct hub_attention *a = LIST_ITEM(l, struct hub_attention, link);
        if (a->node_id == id)
            return a;
    }
    return NULL;
}

/* Between the moment in which the sides lose a node and its lease's end it is "silent". */
static const char *state_name(const struct node *n)
{
    if (n->state == NODE_GONE)
        return node_state_name(n->state);
    if (n->trust != NODE_TRUSTED)
        return node_trust_name(n->trust);
    return n->doubted_ns != 0 ? "silent" : node_state_name(n->state);
}

static json_t *node_object(const struct hub *h, const struct node *n, int64_t now_ns)
{
    json_t *o = json_object();
    set(o, "id", json_integer(n->id));
    set(o, "name", json_string(n->join.name));
    set(o, "role", json_string(node_role_name(n->join.role)));
    set(o, "state", json_string(state_name(n)));
    set(o, "incarnation", json_integer((json_int_t)(n->join.incarnation >> 1)));
    set(o, "endpoint", json_string(n->join.endpoint));
    set(o, "host", json_string(n->join.host));
    set(o, "rack", json_string(n->join.rack));
    set(o, "pid", json_integer(n->join.pid));
    set(o, "kernels", json_string(n->join.kernels));
    set(o, "build", json_string(n->join.build));
    set(o, "heartbeat_age_ms", json_integer((now_ns - n->seen_ns) / CLOCK_MS));
    set(o, "epoch", json_integer((json_int_t)n->last.epoch));
    const struct placement_node *p = placed(h, n->id);
    const struct hub_attention *a = attention(h, n->id);
    if (n->join.role == NODE_EXPERT) {
        set(o, "experts_held", json_integer(n->last.experts_held));
        set(o, "experts_wanted", json_integer(p ? p->held : 0));
        set(o, "experts_live", json_integer(p ? p->live : 0));
        set(o, "experts_loading", json_integer(p ? p->loading : 0));
        set(o, "draining", json_boolean(n->drain || n->state == NODE_DRAINING));
        set(o, "held_bytes", json_integer((json_int_t)n->last.held_bytes));
        set(o, "memory_bytes", json_integer((json_int_t)n->join.memory_bytes));
        set(o, "read_bytes_s", json_integer((json_int_t)n->join.read_bytes_s));
        set(o, "holdings_version", json_integer((json_int_t)n->last.holdings_version));
    } else if (n->join.role == NODE_CONTEXT) {
        const struct lending_host *l = lending_find(&h->lending, n->id);
        const struct node *borrower = l ? members_find(&h->members, l->borrower) : NULL;
        set(o, "kv_pages_total", json_integer(n->last.kv_pages));
        set(o, "memory_bytes", json_integer((json_int_t)n->join.memory_bytes));
        set(o, "kv_pages_lent", json_integer(borrower ? n->last.kv_pages : 0));
        set(o, "lent_to", json_string(borrower ? borrower->join.name : ""));
        set(o, "draining", json_boolean(n->drain || n->state == NODE_DRAINING));
    } else if (a) {
        set(o, "kv_pages_total", json_integer(a->description.kv_pages_total));
        set(o, "kv_pages_free", json_integer(a->kv_pages_free));
        set(o, "page_tokens", json_integer(a->description.page_tokens));
        set(o, "max_rows", json_integer(a->description.max_rows));
        set(o, "max_seqs", json_integer(a->description.max_seqs));
        set(o, "borrows", json_boolean(n->join.borrows));
        set(o, "borrowed_bytes", json_integer((json_int_t)lending_bytes(&h->lending, n->id)));
        set(o, "up", json_boolean(sched_has_side(&h->sched, n->id)));
        set(o, "sequences", json_integer(sched_side_seqs(&h->sched, n->id)));
        set(o, "draining", json_boolean(n->drain));
    }
    return o;
}

static json_t *model_object(const struct hub *h)
{
    json_t *o = json_object();
    char hex[24];
    snprintf(hex, sizeof hex, "%016" PRIx64, h->fingerprint);
    set(o, "name", json_string(h->model_name));
    set(o, "fingerprint", json_string(hex));
    char formats[FORMAT_SET_BYTES];
    set(o, "format", json_string(format_set_text(&h->formats, formats)));
    set(o, "combine", json_string(combine_name((enum combine_mode)h->config->weights.combine)));
    set(o, "layers", json_integer(h->model_config.n_layers));
    set(o, "experts", json_integer(h->model_config.n_experts));
    set(o, "context", json_integer(h->model_config.max_positions));
    return o;
}

/* How far the log is where a restart finds it; standbys' copies: hub_ship_object(). */
static json_t *log_object(const struct hub *h)
{
    const char *why = journal_why_stopped(h->journal);
    json_t *o = json_object();
    set(o, "records", json_integer((json_int_t)journal_appended(h->journal)));
    set(o, "on_record", json_integer((json_int_t)journal_durable(h->journal)));
    set(o, "bytes", json_integer(journal_bytes(h->journal)));
    set(o, "max_bytes", json_integer(h->config->state_max_bytes));
    set(o, "synced", json_boolean(h->config->state_syncs));
    if (why)
        set(o, "stopped", json_string(why));
    return o;
}

/* Sums since the start; readers take differences. */
static json_t *steps_object(const struct hub_counters *c)
{
    json_t *o = json_object();
    set(o, "count", json_integer(c->steps));
    set(o, "rows", json_integer(c->step_rows));
    set(o, "attention_us", json_integer(c->attention_us));
    set(o, "experts_us", json_integer(c->experts_us));
    set(o, "head_us", json_integer(c->head_us));
    return o;
}

void admin_cluster(const struct hub *h, struct buf *out)
{
    json_t *o = json_object(), *nodes = json_array(), *requests = json_object();
    json_t *tokens = json_object();
    int64_t now_ns = clock_now_ns();
    for (int i = 0; i < h->members.n_nodes; i++)
        must_zero(json_array_append_new(nodes, node_object(h, h->members.nodes[i], now_ns)));
    set(requests, "running", json_integer(h->sched.n_running));
    set(requests, "queued", json_integer(h->sched.n_queued));
    set(requests, "reading", json_integer(h->n_admissions));
    set(tokens, "prompt", json_integer(h->counters.prompt_tokens));
    set(tokens, "generated", json_integer(h->counters.output_tokens));
    set(o, "epoch", json_integer((json_int_t)h->placement.epoch));
    set(o, "ready", json_boolean(h->ready));
    if (!h->ready)
        set(o, "reason", json_string(h->why_not));
    set(o, "leadership", hub_leader_object(h));
    if (h->journal)
        set(o, "token_log", log_object(h));
    set(o, "version", json_string(version_string()));
    set(o, "listen", json_string(server_endpoint(h->servers[0])));
    set(o, "model", model_object(h));
    set(o, "coverage", coverage(&h->placement));
    set(o, "placement", placement_object(h));
    set(o, "nodes", nodes);
    set(o, "attention_sides", json_integer(h->sched.n_sides));
    set(o, "requests", requests);
    set(o, "tokens", tokens);
    set(o, "steps", steps_object(&h->counters));
    dump(o, out);
}

/* ---- what the operations page asks for: hub_admin.c has the form ----------------------------- */

/* What live copies an expert has, and the first one's node; -1: none. */
static int live_copies(const struct placement_expert *e, int *home)
{
    int n = 0;
    *home = -1;
    for (int i = 0; i < PLACEMENT_PLACES; i++)
        if (e->places[i].state == PLACE_LIVE && n++ == 0)
            *home = e->places[i].node;
    return n;
}

static void write_layer(const struct placement *p, uint32_t layer, json_t *load, json_t *copies,
                        json_t *homes)
{
    size_t first = (size_t)layer * p->config.n_experts;
    struct buf text[3] = {{0}};
    double most = 0;
    for (size_t i = 0; i < p->config.n_experts; i++)
        most = p->load[first + i] > most ? p->load[first + i] : most;
    for (size_t i = 0; i < p->config.n_experts; i++) {
        int home, n = live_copies(&p->experts[first + i], &home);
        double share = most > 0 ? p->load[first + i] / most : 0;
        buf_printf(&text[0], "%02x", (unsigned)(share * 255 + 0.5));
        buf_printf(&text[1], "%d", n);
        buf_printf(&text[2], "%02x", home >= 0 && home < 255 ? (unsigned)home : 255u);
    }
    json_t *to[3] = {load, copies, homes};
    for (int i = 0; i < 3; i++) {
        must_zero(json_array_append_new(to[i], json_stringn(text[i].data, text[i].len)));
        buf_fini(&text[i]);
    }
}

static void append_text(json_t *list, const char *text)
{
    json_t *v = json_string(text);
    must_zero(json_array_append_new(list, v ? v : json_string("?")));
}

void admin_heat(const struct hub *h, struct buf *out)
{
    const struct placement *p = &h->placement;
    json_t *o = json_object(), *nodes = json_array(), *load = json_array();
    json_t *copies = json_array(), *homes = json_array();
    for (int i = 0; i < p->n_nodes && i < 255; i++) {
        bool is_there = p->nodes[i].presence != PLACEMENT_FREE;
        append_text(nodes, is_there ? p->nodes[i].table.name : "");
    }
    for (uint32_t i = 0; i < p->config.n_layers; i++)
        write_layer(p, i, load, copies, homes);
    set(o, "layers", json_integer(p->config.n_layers));
    set(o, "experts", json_integer(p->config.n_experts));
    set(o, "nodes", nodes);
    set(o, "load", load);
    set(o, "copies", copies);
    set(o, "homes", homes);
    dump(o, out);
}

void admin_events(const struct hub *h, uint64_t after, struct buf *out)
{
    json_t *o = json_object(), *list = json_array();
    char coordinator[24];
    snprintf(coordinator, sizeof coordinator, "%016" PRIx64, h->id_base);
    for (const struct event *e; (e = events_after(&h->events, after)); after = e->id) {
        json_t *v = json_object();
        set(v, "id", json_integer((json_int_t)e->id));
        set(v, "time_ms", json_integer(e->time_us / 1000));
        set(v, "level", json_string(events_level_name(e->level)));
        set(v, "kind", json_string(e->kind));
        set(v, "text", json_string(e->text));
        must_zero(json_array_append_new(list, v));
    }
    set(o, "coordinator", json_string(coordinator));
    set(o, "last", json_integer((json_int_t)h->events.last));
    set(o, "events", list);
    dump(o, out);
}
