/* coordinator/hub_metrics.c - GET /metrics: everything that is counted, for Prometheus; see hub.h.
 * Reads the hub, changes nothing.  Labels are names of nodes, keys, layers and fixed words, so their
 * number is bounded. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/version.h"
#include "coordinator/hub_state.h"
#include "coordinator/metrics.h"

static void counter(struct metrics *m, const char *name, int64_t value, const char *help)
{
    metrics_one(m, name, METRICS_COUNTER, help, value);
}

static void gauge(struct metrics *m, const char *name, int64_t value, const char *help)
{
    metrics_one(m, name, METRICS_GAUGE, help, value);
}

static void seconds(struct metrics *m, const char *name, const struct stats_histogram *h,
                    const char *help)
{
    metrics_family(m, name, METRICS_HISTOGRAM, help);
    metrics_histogram(m, h, METRICS_SECONDS);
}

/* ---- requests ------------------------------------------------------------------------------ */

static void write_requests(struct metrics *m, const struct hub *h)
{
    static const char *const names[HUB_OUTCOMES] = {"ok", "failed", "cancelled", "refused"};
    const struct hub_counters *c = &h->counters;
    metrics_family(m, "requests_total", METRICS_COUNTER, "Generating requests by outcome.");
    for (int i = 0; i < HUB_OUTCOMES; i++) {
        metrics_label(m, "outcome", names[i]);
        metrics_int(m, c->outcomes[i]);
    }
    counter(m, "requests_degraded_total", c->degraded,
            "Requests of which experts were left out (round.degraded).");
    metrics_family(m, "bad_requests_total", METRICS_COUNTER, "Requests refused, by reason.");
    for (int i = 0; i < HUB_MAX_REASONS && c->bad[i].name; i++) {
        metrics_label(m, "reason", c->bad[i].name);
        metrics_int(m, c->bad[i].n);
    }
    gauge(m, "requests_running", h->sched.n_running, "Requests in the batch.");
    gauge(m, "requests_queued", h->sched.n_queued, "Requests waiting for room.");
    counter(m, "requests_preempted_total", (int64_t)h->sched.n_preempted,
            "Sequences that made place for others and were fed again later.");
    counter(m, "draft_tokens_total", (int64_t)h->sched.n_drafted,
            "Tokens guessed from a sequence's own text.");
    counter(m, "draft_accepted_tokens_total", (int64_t)h->sched.n_draft_true,
            "Of these, that came true.");
    counter(m, "prefix_cached_tokens_total", (int64_t)h->sched.n_cached_tokens,
            "Tokens that were not fed, because an attention side still had them.");
    counter(m, "prompt_tokens_total", c->prompt_tokens, "Tokens of accepted prompts.");
    counter(m, "generated_tokens_total", c->output_tokens, "Tokens generated.");
    counter(m, "handovers_total", c->handovers,
            "sequences that left an attention side which was going, without a pause");
    counter(m, "replays_total", c->replays,
            "Sequences that were fed again to another attention side, or to the same.");
    counter(m, "replayed_tokens_total", c->replayed_tokens, "Tokens of theirs.");
    gauge(m, "requests_reading", h->n_admissions, "Requests whose bodies are being read.");
    seconds(m, "prepare_seconds", &c->prepare_us,
            "From a body's arrival until it was read and tokenised.");
    seconds(m, "queue_seconds", &c->queue_us, "From a request's arrival to its place in a batch.");
    seconds(m, "first_token_seconds", &c->first_token_us,
            "From a request's arrival to its first token.");
    seconds(m, "inter_token_seconds", &c->token_gap_us, "Between two tokens of a request.");
    seconds(m, "request_seconds", &c->request_us,
            "From a request's arrival to its end, for those that ended well.");
}

static void write_http(struct metrics *m, const struct hub *h)
{
    struct http_counters c;
    http_count(h->http, &c);
    counter(m, "http_connections_total", c.connections, "Client connections.");
    gauge(m, "http_connections_open", c.open, "Client connections now.");
    counter(m, "http_requests_total", c.requests, "HTTP requests.");
    counter(m, "http_refused_total", c.refused, "HTTP requests refused before anyone read them.");
    counter(m, "http_hung_up_total", c.hung_up, "Clients that left before their answer.");
}

static void write_access(struct metrics *m, const struct hub *h)
{
    struct access_counters c;
    access_count(h->access, &c);
    gauge(m, "api_keys", c.n_keys, "API keys that are let in.");
    counter(m, "api_unknown_total", c.unknown, "Requests without a key that is known.");
    counter(m, "api_denied_total", c.denied, "Requests that need an admin's key.");
    counter(m, "api_limited_total", c.limited, "Requests over their key's limits.");
    const struct list *keys = access_keys(h->access);
    metrics_family(m, "api_requests_total", METRICS_COUNTER, "Requests by API key.");
    for (struct list *l = keys->next; l != keys; l = l->next) {
        const struct access_key *k = LIST_ITEM(l, struct access_key, link);
        metrics_label(m, "key", k->line.name);
        metrics_int(m, k->n_requests);
    }
    metrics_family(m, "api_tokens_total", METRICS_COUNTER, "Prompt and output tokens by API key.");
    for (struct list *l = keys->next; l != keys; l = l->next) {
        const struct access_key *k = LIST_ITEM(l, struct access_key, link);
        metrics_label(m, "key", k->line.name);
        metrics_int(m, k->n_tokens);
    }
}

/* ---- steps --------------------------------------------------------------------------------- */

static void write_steps(struct metrics *m, const struct hub *h)
{
    const struct hub_counters *c = &h->counters;
    const struct {
        const char *name;
        int64_t us;
    } parts[] = {{"attention", c->attention_us - c->router_us},
                 {"router", c->router_us},
                 {"experts", c->experts_us},
                 {"head", c->head_us - c->sampling_us},
                 {"sampling", c->sampling_us}};
    counter(m, "steps_total", c->steps, "Forward passes.");
    counter(m, "step_rows_total", c->step_rows, "Tokens fed to them.");
    counter(m, "step_failures_total", c->step_failures, "Forward passes that failed.");
    metrics_family(m, "step_rows", METRICS_HISTOGRAM, "Rows of a forward pass.");
    metrics_histogram(m, &c->rows_of_step, (struct metrics_range){.last = 16, .unit = 1});
    seconds(m, "step_seconds", &c->step_us, "Time of a forward pass.");
    metrics_family(m, "step_part_seconds_total", METRICS_COUNTER,
                   "Where the forward passes' time went.");
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        metrics_label(m, "part", parts[i].name);
        metrics_us(m, parts[i].us);
    }
    metrics_family(m, "steps_by_lanes_total", METRICS_COUNTER,
                   "Forward passes in one lane, and in two that overlap attention and experts.");
    metrics_label(m, "lanes", "1");
    metrics_int(m, c->steps - c->two_lane_steps);
    metrics_label(m, "lanes", "2");
    metrics_int(m, c->two_lane_steps);
    metrics_family(
        m, "lanes_saved_seconds_total", METRICS_COUNTER,
        "What forward passes in two lanes were faster than in one, reckoned from trials.");
    metrics_us(m, c->lanes_saved_us);
    metrics_family(
        m, "lanes_time_ratio", METRICS_GAUGE,
        "Time of two lanes to that of one, when forward passes like the latest were last "
        "tried; 0: never.");
    metrics_double(m, (double)c->lanes_permille / 1000);
}

static void write_work(struct metrics *m, const struct hub *h)
{
    metrics_family(
        m, "coordinator_work_seconds_total", METRICS_COUNTER,
        "Processor time of the coordinator's loop and of its reading threads, by what it "
        "was spent on.");
    for (int i = 0; i < WORK_KINDS; i++) {
        metrics_label(m, "work", work_name((enum work_kind)i));
        metrics_us(m, h->work.ns[i] / CLOCK_US);
    }
}

/* One family over the layers that have been run. */
static void layers(struct metrics *m, const struct traffic *t, const char *name, const char *help,
                   size_t field, bool is_us)
{
    metrics_family(m, name, METRICS_COUNTER, help);
    for (uint32_t i = 0; i < t->n_layers; i++) {
        uint64_t value;
        memcpy(&value, (const char *)&t->layers[i] + field, sizeof value);
        if (t->layers[i].rounds == 0)
            continue;
        metrics_label_int(m, "layer", i);
        if (is_us)
            metrics_us(m, (int64_t)value);
        else
            metrics_int(m, (int64_t)value);
    }
}

static void write_layers(struct metrics *m, const struct traffic *t)
{
    layers(m, t, "layer_rounds_total", "Rounds of the experts' half, by layer.",
           offsetof(struct wire_layer_time, rounds), false);
    layers(m, t, "layer_rows_total", "Rows of these rounds, by layer.",
           offsetof(struct wire_layer_time, rows), false);
    layers(m, t, "layer_attention_seconds_total", "Time of attention and routing, by layer.",
           offsetof(struct wire_layer_time, attention_us), true);
    layers(m, t, "layer_experts_seconds_total", "From scatter to the end of gather, by layer.",
           offsetof(struct wire_layer_time, experts_us), true);
}

static void write_ladder(struct metrics *m, const struct wire_ladder_counters *l)
{
    counter(m, "expert_calls_total", (int64_t)l->calls, "Calls of expert nodes.");
    counter(m, "expert_retries_total", (int64_t)l->retries,
            "Of these, asked elsewhere after a failure or a deadline.");
    counter(m, "expert_lates_total", (int64_t)l->lates, "Deadlines of expert nodes that passed.");
    counter(m, "expert_hedges_total", (int64_t)l->hedges,
            "Calls of expert nodes made because another was slow.");
    counter(m, "expert_hedge_wins_total", (int64_t)l->hedge_wins, "Of these, answered first.");
    counter(m, "expert_waits_total", (int64_t)l->waits,
            "Rounds that waited for an expert that was nowhere.");
    counter(m, "expert_left_out_total", (int64_t)l->left_out,
            "Selections of experts that were left out (degraded mode).");
    counter(m, "expert_checks_total", (int64_t)l->checks,
            "Answers that a second node was asked for as well.");
    counter(m, "expert_mismatches_total", (int64_t)l->mismatches, "Of these, with other bits.");
    counter(m, "expert_not_finite_total", (int64_t)l->not_finite,
            "Answers refused for a NaN or an infinity.");
}

static void write_grammars(struct metrics *m, const struct wire_grammar_counters *g)
{
    counter(m, "grammar_cache_hits_total", (int64_t)g->shared,
            "Answers of a form whose grammar was there already.");
    counter(m, "grammar_cache_misses_total", (int64_t)g->compiled, "Whose grammar was compiled.");
    counter(m, "grammar_refused_total", (int64_t)g->refused, "Whose grammar did not compile.");
    counter(m, "grammar_masks_total", (int64_t)g->masks_asked, "Tokens held to a grammar.");
    counter(m, "grammar_masks_made_total", (int64_t)g->masks_made,
            "Masks of tokens that were not known yet.");
    gauge(m, "grammar_cache_bytes", (int64_t)g->bytes, "Memory of the attention sides' grammars.");
    gauge(m, "grammars", (int64_t)g->kept, "Grammars that they keep.");
}

/* ---- nodes --------------------------------------------------------------------------------- */

static void nodes(struct metrics *m, const struct traffic *t, const char *name, const char *help,
                  size_t field, bool is_us)
{
    metrics_family(m, name, METRICS_COUNTER, help);
    for (int i = 0; i < t->n_nodes; i++) {
        uint64_t value;
        memcpy(&value, (const char *)&t->nodes[i].sums + field, sizeof value);
        metrics_label(m, "node", t->nodes[i].name);
        if (is_us)
            metrics_us(m, (int64_t)value);
        else
            metrics_int(m, (int64_t)value);
    }
}

static void write_traffic(struct metrics *m, const struct traffic *t)
{
#define FIELD(f) offsetof(struct wire_node_traffic, f)
    nodes(m, t, "node_calls_total", "Calls that an expert node has answered well.", FIELD(calls),
          false);
    nodes(m, t, "node_call_seconds_total", "Time of these calls, as the caller sees it.",
          FIELD(call_us), true);
    nodes(m, t, "node_queue_seconds_total", "Of this, waiting at the node.", FIELD(queue_us), true);
    nodes(m, t, "node_compute_seconds_total", "Of this, being worked on.", FIELD(compute_us), true);
    nodes(m, t, "node_sent_bytes_total", "Rows and routes sent to an expert node.",
          FIELD(sent_bytes), false);
    nodes(m, t, "node_received_bytes_total", "Rows received from an expert node.",
          FIELD(received_bytes), false);
    nodes(m, t, "node_failovers_total", "Parcels asked elsewhere because of an expert node.",
          FIELD(failovers), false);
    nodes(m, t, "node_hedges_total", "Calls made to a node because another was slow.",
          FIELD(hedges), false);
    nodes(m, t, "node_retries_total", "Calls made to a node because another failed or was late.",
          FIELD(retries), false);
#undef FIELD
}

static const char *state_of(const struct node *n)
{
    bool is_doubtful = n->trust != NODE_TRUSTED && n->state != NODE_GONE;
    return is_doubtful ? node_trust_name(n->trust) : node_state_name(n->state);
}

static void write_nodes(struct metrics *m, const struct hub *h)
{
    const struct members *all = &h->members;
    metrics_family(m, "node_info", METRICS_GAUGE, "1 for the state that a node is in.");
    for (int i = 0; i < all->n_nodes; i++) {
        const struct node *n = all->nodes[i];
        metrics_label(m, "node", n->join.name);
        metrics_label(m, "role", node_role_name(n->join.role));
        metrics_label(m, "state", state_of(n));
        metrics_int(m, 1);
    }
    metrics_family(m, "node_held_bytes", METRICS_GAUGE, "Experts in a node's memory.");
    for (int i = 0; i < all->n_nodes; i++)
        if (all->nodes[i]->join.role == NODE_EXPERT && all->nodes[i]->state != NODE_GONE) {
            metrics_label(m, "node", all->nodes[i]->join.name);
            metrics_int(m, (int64_t)all->nodes[i]->last.held_bytes);
        }
    gauge(m, "nodes_expert", members_count(all, NODE_EXPERT), "Expert nodes that are alive.");
    gauge(m, "nodes_attention", members_count(all, NODE_ATTENTION),
          "Attention sides that are alive.");
    gauge(m, "nodes_context", members_count(all, NODE_CONTEXT),
          "Nodes that lend memory for contexts and are alive.");
    counter(m, "joins_total", h->counters.joins, "Nodes that joined.");
    counter(m, "joins_refused_total", h->counters.joins_refused, "Joins that were refused.");
    counter(m, "nodes_lost_total", h->counters.nodes_lost, "Nodes that left or were lost.");
    counter(m, "nodes_distrusted_total", h->counters.nodes_distrusted,
            "Nodes that were suspect or quarantined.");
}

static const struct hub_attention *next_side(const struct hub *h, struct list **at)
{
    *at = *at ? (*at)->next : h->attentions.next;
    return *at == &h->attentions ? NULL : LIST_ITEM(*at, struct hub_attention, link);
}

static void write_kv(struct metrics *m, const struct hub *h)
{
    struct list *at = NULL;
    const struct hub_attention *a;
    metrics_family(m, "kv_pages", METRICS_GAUGE, "Pages of an attention side's KV cache.");
    while ((a = next_side(h, &at)))
        if (a->described) {
            metrics_label(m, "node", channel_peer_name(a->channel));
            metrics_int(m, a->description.kv_pages_total);
        }
    at = NULL;
    metrics_family(m, "kv_pages_used", METRICS_GAUGE, "Of these, in use after the newest step.");
    while ((a = next_side(h, &at)))
        if (a->described) {
            metrics_label(m, "node", channel_peer_name(a->channel));
            metrics_int(m, (int64_t)a->description.kv_pages_total - a->kv_pages_free);
        }
}

static void write_placement(struct metrics *m, const struct hub *h)
{
    const struct placement *p = &h->placement;
    int64_t n_doubtful = 0;
    for (int i = 0; i < h->members.n_nodes; i++)
        n_doubtful +=
            h->members.nodes[i]->state != NODE_GONE && h->members.nodes[i]->trust != NODE_TRUSTED;
    gauge(m, "cluster_ready", h->ready, "1 if requests are accepted.");
    gauge(m, "cluster_epoch", (int64_t)p->epoch, "Version of the expert table.");
    gauge(m, "experts", p->n_total, "Experts of the model.");
    gauge(m, "experts_live", p->n_live, "Experts with a live holder.");
    gauge(m, "expert_copies", p->n_copies, "Live copies of experts.");
    gauge(m, "expert_copies_lowest", p->lowest <= PLACEMENT_PLACES ? p->lowest : 0,
          "Live copies of the expert that has fewest.");
    gauge(m, "expert_copies_to_load", p->n_to_load, "Wanted copies that are not live.");
    gauge(m, "expert_copies_retiring", p->n_retiring,
          "Copies that are given up and still in memory.");
    gauge(m, "nodes_doubtful", n_doubtful, "Expert nodes that are suspect or quarantined now.");
}

/* Where each coordinator has a log of its own: the leader's standbys, or what a standby has copied. */
static void write_standbys(struct metrics *m, const struct hub *h)
{
    const struct ship *s = hub_ship(h);
    counter(m, "token_log_copied_bytes_total", hub_follow_bytes(h),
            "Bytes of the leader's token log that came while this coordinator stood by.");
    if (!s)
        return;
    gauge(m, "standbys", ship_count(s, false), "Coordinators that copy the token log.");
    gauge(m, "standbys_in_step", ship_count(s, true),
          "Of these, those that have all of it; requests wait for them.");
    counter(m, "standby_late_total", s->n_late,
            "Times a standby fell behind, and requests went on without it.");
    counter(m, "standby_sent_bytes_total", s->sent_bytes, "Token log sent to standbys.");
    metrics_family(m, "standby_lag_bytes", METRICS_GAUGE, "Token log that a standby lacks.");
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++)
        if (s->standbys[i].instance) {
            metrics_label(m, "standby", s->standbys[i].name);
            metrics_int(m, (int64_t)ship_lag_bytes(s, &s->standbys[i]));
        }
}

/* ---- the wire, and this process ------------------------------------------------------------ */

static void write_auth(struct metrics *m, const struct hub *h)
{
    struct auth_counters c;
    auth_count(h->auth, &c);
    gauge(m, "auth_keys", c.n_allowed, "Public keys that may connect.");
    counter(m, "auth_accepted_total", c.accepted, "Connections whose key was accepted.");
    metrics_family(m, "auth_refused_total", METRICS_COUNTER,
                   "Connections and calls refused, by reason.");
    for (int i = 0; i < AUTH_REFUSALS; i++) {
        metrics_label(m, "reason", auth_refusal_name((enum auth_refusal)i));
        metrics_int(m, c.refused[i]);
    }
}

static void write_rpc(struct metrics *m, const struct hub *h)
{
    int64_t calls = 0, bad = 0, unknown = 0, late = 0;
    for (int i = 0; i < 2; i++) {
        struct server_counters c;
        server_count(h->servers[i], &c);
        calls += c.calls;
        bad += c.bad_frames;
        unknown += c.unknown_methods;
    }
    struct list *at = NULL;
    for (const struct hub_attention *a; (a = next_side(h, &at));) {
        struct channel_counters c = {0};
        if (a->channel)
            channel_count(a->channel, &c);
        bad += c.bad_frames;
        late += c.late_replies;
    }
    counter(m, "rpc_calls_total", calls, "Calls that nodes made here.");
    counter(m, "rpc_bad_frames_total", bad, "Frames that were refused.");
    counter(m, "rpc_unknown_methods_total", unknown, "Calls of unknown methods.");
    counter(m, "rpc_late_replies_total", late, "Replies that came after their call.");
}

static void write_process(struct metrics *m, const struct hub *h)
{
    struct buf text = {0};
    struct rusage usage = {0};
    long long pages = 0, resident = 0;
    if (buf_read_file(&text, "/proc/self/statm", 4096, NULL) == 0) {
        buf_putc(&text, '\0');
        if (sscanf(text.data, "%lld %lld", &pages, &resident) != 2)
            resident = 0;
    }
    buf_fini(&text);
    getrusage(RUSAGE_SELF, &usage);
    gauge(m, "process_resident_memory_bytes", resident * sysconf(_SC_PAGESIZE),
          "Resident memory of the coordinator.");
    metrics_family(m, "process_cpu_seconds_total", METRICS_COUNTER,
                   "CPU time of the coordinator, user and system.");
    metrics_us(m, (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL +
                      usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    gauge(m, "process_start_time_seconds", h->model.created_s,
          "Start of the coordinator, since 1970.");
    metrics_family(m, "build_info", METRICS_GAUGE, "1; what this coordinator is.");
    metrics_label(m, "version", POLYMATH_VERSION);
    metrics_label(m, "build", version_string());
    metrics_label(m, "model", h->model_name);
    metrics_int(m, 1);
}

void hub_write_metrics(const struct hub *h, struct buf *out)
{
    struct metrics m = {.out = out};
    write_requests(&m, h);
    write_http(&m, h);
    write_access(&m, h);
    write_steps(&m, h);
    write_work(&m, h);
    write_layers(&m, &h->traffic);
    write_ladder(&m, &h->traffic.ladder);
    write_grammars(&m, &h->traffic.grammars);
    write_traffic(&m, &h->traffic);
    write_nodes(&m, h);
    write_kv(&m, h);
    write_placement(&m, h);
    write_standbys(&m, h);
    write_auth(&m, h);
    write_rpc(&m, h);
    write_process(&m, h);
    metrics_fini(&m);
}
