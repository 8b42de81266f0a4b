/* coordinator/admin.c - what operators see: readiness, the cluster as JSON, counters in
 * Prometheus' text format 0.0.4.  Reads the hub, changes nothing. */
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

static json_t *node_object(const struct hub *h, const struct node *n, int64_t now_ns)
{
    json_t *o = json_object();
    set(o, "id", json_integer(n->id));
    set(o, "name", json_string(n->join.name));
    set(o, "role", json_string(node_role_name(n->join.role)));
    bool is_doubtful = n->trust != NODE_TRUSTED && n->state != NODE_GONE;
    set(o, "state",
        json_string(is_doubtful ? node_trust_name(n->trust) : node_state_name(n->state)));
    set(o, "incarnation", json_integer((json_int_t)(n->join.incarnation >> 1)));
    set(o, "endpoint", json_string(n->join.endpoint));
    set(o, "host", json_string(n->join.host));
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
    } else if (a) {
        set(o, "kv_pages_total", json_integer(a->description.kv_pages_total));
        set(o, "kv_pages_free", json_integer(a->kv_pages_free));
        set(o, "page_tokens", json_integer(a->description.page_tokens));
        set(o, "max_rows", json_integer(a->description.max_rows));
        set(o, "max_seqs", json_integer(a->description.max_seqs));
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
    set(o, "combine", json_string(combine_name((enum combine_mode)h->config->weights_combine)));
    set(o, "layers", json_integer(h->model_config.n_layers));
    set(o, "experts", json_integer(h->model_config.n_experts));
    set(o, "context", json_integer(h->model_config.max_positions));
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
    set(tokens, "prompt", json_integer(h->counters.prompt_tokens));
    set(tokens, "generated", json_integer(h->counters.output_tokens));
    set(o, "epoch", json_integer((json_int_t)h->placement.epoch));
    set(o, "ready", json_boolean(h->ready));
    if (!h->ready)
        set(o, "reason", json_string(h->why_not));
    set(o, "version", json_string(version_string()));
    set(o, "listen", json_string(server_endpoint(h->servers[0])));
    set(o, "model", model_object(h));
    set(o, "coverage", coverage(&h->placement));
    set(o, "placement", placement_object(h));
    set(o, "nodes", nodes);
    set(o, "attention_sides", json_integer(h->sched.n_sides));
    set(o, "requests", requests);
    set(o, "tokens", tokens);
    dump(o, out);
}

/* ---- Prometheus -------------------------------------------------------------------------------- */

static void describe(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP polymath_%s %s\n# TYPE polymath_%s %s\n", name, help, name, type);
}

static void number(struct buf *out, const char *name, const char *type, int64_t value,
                   const char *help)
{
    describe(out, name, type, help);
    buf_printf(out, "polymath_%s %" PRId64 "\n", name, value);
}

static void seconds(struct buf *out, const char *name, const struct stats_histogram *h,
                    const char *help)
{
    static const double shares[] = {0.5, 0.9, 0.99};
    describe(out, name, "summary", help);
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++)
        buf_printf(out, "polymath_%s{quantile=\"%g\"} %.6f\n", name, shares[i],
                   stats_quantile(h, shares[i]) / 1e6);
    buf_printf(out, "polymath_%s_sum %.6f\n", name, (double)h->sum / 1e6);
    buf_printf(out, "polymath_%s_count %lld\n", name, (long long)h->count);
}

static void write_requests(const struct hub *h, struct buf *out)
{
    static const char *const names[HUB_OUTCOMES] = {"ok", "failed", "cancelled", "refused"};
    describe(out, "requests_total", "counter", "Generating requests by outcome.");
    for (int i = 0; i < HUB_OUTCOMES; i++)
        buf_printf(out, "polymath_requests_total{outcome=\"%s\"} %" PRId64 "\n", names[i],
                   h->counters.outcomes[i]);
    describe(out, "bad_requests_total", "counter", "Requests refused, by reason.");
    for (int i = 0; i < HUB_MAX_REASONS && h->counters.bad[i].name; i++)
        buf_printf(out, "polymath_bad_requests_total{reason=\"%s\"} %" PRId64 "\n",
                   h->counters.bad[i].name, h->counters.bad[i].n);
    number(out, "requests_running", "gauge", h->sched.n_running, "Requests in the batch.");
    number(out, "requests_queued", "gauge", h->sched.n_queued, "Requests waiting for room.");
    number(out, "requests_preempted_total", "counter", (int64_t)h->sched.n_preempted,
           "Sequences that made place for others and were fed again later.");
    number(out, "prompt_tokens_total", "counter", h->counters.prompt_tokens,
           "Tokens of accepted prompts.");
    number(out, "generated_tokens_total", "counter", h->counters.output_tokens,
           "Tokens of finished requests.");
    number(out, "replays_total", "counter", h->counters.replays,
           "Sequences that were fed again to another attention side, or to the same.");
    number(out, "replayed_tokens_total", "counter", h->counters.replayed_tokens,
           "Tokens of theirs.");
    seconds(out, "first_token_seconds", &h->counters.first_token_us,
            "From a request's arrival to its first token.");
    seconds(out, "request_seconds", &h->counters.request_us,
            "From a request's arrival to its end, for those that ended well.");
}

static void write_auth(const struct hub *h, struct buf *out)
{
    struct auth_counters c;
    auth_count(h->auth, &c);
    number(out, "auth_keys", "gauge", c.n_allowed, "Public keys that may connect.");
    number(out, "auth_accepted_total", "counter", c.accepted,
           "Connections whose key was accepted.");
    describe(out, "auth_refused_total", "counter", "Connections and calls refused, by reason.");
    for (int i = 0; i < AUTH_REFUSALS; i++)
        buf_printf(out, "polymath_auth_refused_total{reason=\"%s\"} %" PRId64 "\n",
                   auth_refusal_name((enum auth_refusal)i), c.refused[i]);
}

static void write_access(const struct hub *h, struct buf *out)
{
    struct access_counters c;
    access_count(h->access, &c);
    number(out, "api_keys", "gauge", c.n_keys, "API keys that are let in.");
    number(out, "api_unknown_total", "counter", c.unknown, "Requests without a key that is known.");
    number(out, "api_denied_total", "counter", c.denied, "Requests that need an admin's key.");
    number(out, "api_limited_total", "counter", c.limited, "Requests over their key's limits.");
    const struct list *keys = access_keys(h->access);
    describe(out, "api_requests_total", "counter", "Requests by API key.");
    for (struct list *l = keys->next; l != keys; l = l->next) {
        const struct access_key *k = LIST_ITEM(l, struct access_key, link);
        buf_printf(out, "polymath_api_requests_total{key=\"%s\"} %" PRId64 "\n", k->line.name,
                   k->n_requests);
    }
    describe(out, "api_tokens_total", "counter", "Prompt and output tokens by API key.");
    for (struct list *l = keys->next; l != keys; l = l->next) {
        const struct access_key *k = LIST_ITEM(l, struct access_key, link);
        buf_printf(out, "polymath_api_tokens_total{key=\"%s\"} %" PRId64 "\n", k->line.name,
                   k->n_tokens);
    }
}

static void write_wire(const struct hub *h, struct buf *out)
{
    struct http_counters http;
    http_count(h->http, &http);
    number(out, "http_connections_total", "counter", http.connections, "Client connections.");
    number(out, "http_requests_total", "counter", http.requests, "HTTP requests.");
    number(out, "http_refused_total", "counter", http.refused,
           "HTTP requests refused before anyone read them.");
    number(out, "http_hung_up_total", "counter", http.hung_up,
           "Clients that left before their answer.");
    int64_t calls = 0, bad = 0, unknown = 0, late = 0;
    for (int i = 0; i < 2; i++) {
        struct server_counters c;
        server_count(h->servers[i], &c);
        calls += c.calls;
        bad += c.bad_frames;
        unknown += c.unknown_methods;
    }
    for (struct list *l = h->attentions.next; l != &h->attentions; l = l->next) {
        const struct hub_attention *a = LIST_ITEM(l, struct hub_attention, link);
        struct channel_counters c = {0};
        if (a->channel)
            channel_count(a->channel, &c);
        bad += c.bad_frames;
        late += c.late_replies;
    }
    write_auth(h, out);
    write_access(h, out);
    number(out, "rpc_calls_total", "counter", calls, "Calls that nodes made here.");
    number(out, "rpc_bad_frames_total", "counter", bad, "Frames that were refused.");
    number(out, "rpc_unknown_methods_total", "counter", unknown, "Calls of unknown methods.");
    number(out, "rpc_late_replies_total", "counter", late, "Replies that came after their call.");
}

static void write_step_parts(const struct hub *h, struct buf *out)
{
    const struct {
        const char *name;
        int64_t us;
    } parts[] = {{"attention", h->counters.attention_us},
                 {"experts", h->counters.experts_us},
                 {"head", h->counters.head_us}};
    describe(out, "step_part_seconds_total", "counter", "Where the forward passes' time went.");
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        buf_printf(out, "polymath_step_part_seconds_total{part=\"%s\"} %.6f\n", parts[i].name,
                   (double)parts[i].us / 1e6);
}

static void write_placement(const struct hub *h, struct buf *out)
{
    const struct placement *p = &h->placement;
    int64_t n_doubtful = 0;
    for (int i = 0; i < h->members.n_nodes; i++)
        n_doubtful +=
            h->members.nodes[i]->state != NODE_GONE && h->members.nodes[i]->trust != NODE_TRUSTED;
    number(out, "expert_copies", "gauge", p->n_copies, "Live copies of experts.");
    number(out, "expert_copies_lowest", "gauge", p->lowest <= PLACEMENT_PLACES ? p->lowest : 0,
           "Live copies of the expert that has fewest.");
    number(out, "expert_copies_to_load", "gauge", p->n_to_load, "Wanted copies that are not live.");
    number(out, "expert_copies_retiring", "gauge", p->n_retiring,
           "Copies that are given up and still in memory.");
    number(out, "nodes_doubtful", "gauge", n_doubtful,
           "Expert nodes that are suspect or quarantined now.");
}

void admin_metrics(const struct hub *h, struct buf *out)
{
    write_requests(h, out);
    number(out, "steps_total", "counter", h->counters.steps, "Forward passes.");
    number(out, "step_rows_total", "counter", h->counters.step_rows, "Tokens fed to them.");
    number(out, "step_failures_total", "counter", h->counters.step_failures,
           "Forward passes that failed.");
    seconds(out, "step_seconds", &h->counters.step_us, "Time of a forward pass.");
    write_step_parts(h, out);
    number(out, "cluster_ready", "gauge", h->ready, "1 if requests are accepted.");
    number(out, "cluster_epoch", "gauge", (int64_t)h->placement.epoch,
           "Version of the expert table.");
    number(out, "experts", "gauge", h->placement.n_total, "Experts of the model.");
    number(out, "experts_live", "gauge", h->placement.n_live, "Experts with a live holder.");
    write_placement(h, out);
    number(out, "nodes_expert", "gauge", members_count(&h->members, NODE_EXPERT),
           "Expert nodes that are alive.");
    number(out, "nodes_attention", "gauge", members_count(&h->members, NODE_ATTENTION),
           "Attention sides that are alive.");
    number(out, "joins_total", "counter", h->counters.joins, "Nodes that joined.");
    number(out, "joins_refused_total", "counter", h->counters.joins_refused,
           "Joins that were refused.");
    number(out, "nodes_lost_total", "counter", h->counters.nodes_lost,
           "Nodes that left or were lost.");
    number(out, "nodes_distrusted_total", "counter", h->counters.nodes_distrusted,
           "Nodes that were suspect or quarantined.");
    write_wire(h, out);
}
