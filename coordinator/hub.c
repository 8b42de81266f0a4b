/* coordinator/hub.c - see hub.h.  This file holds the middle: the scheduler's events and
 * actions, readiness, start and end. */
#include "coordinator/hub.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "coordinator/hub_state.h"
#include "model/checkpoint.h"

/* ---- the scheduler's events and actions --------------------------------------------------- */

static void perform(struct hub *h, const struct sched_action *a)
{
    enum work_kind before;
    switch (a->kind) {
    case SCHED_SEND:
        hub_attention_flush(h);
        hub_attention_send(h, a->side, a->step);
        break;
    case SCHED_RELEASE:
        hub_attention_release(h, a->side, a->seq);
        break;
    case SCHED_STARTED:
        hub_started(h, a->seq);
        break;
    case SCHED_MOVED:
        hub_moved(h, a->seq, a->side);
        break;
    case SCHED_INHERITED:
        hub_inherited(h, a->seq, a->side);
        break;
    case SCHED_TOKEN:
        before = hub_work(h, WORK_WRITING);
        hub_token(h, a);
        hub_work(h, before);
        break;
    case SCHED_FAIL:
        hub_failed(h, a);
        break;
    }
}

enum work_kind hub_work(struct hub *h, enum work_kind kind)
{
    return work_turn(&h->work, kind, clock_thread_ns());
}

void hub_event(struct hub *h, const struct sched_event *e)
{
    /* An action may lead to another event, so each event has its own list. */
    struct sched_actions actions = {0};
    enum work_kind before = hub_work(h, WORK_SCHEDULER);
    sched_step(&h->sched, e, &actions);
    hub_work(h, before);
    for (int i = 0; i < actions.n; i++)
        perform(h, &actions.items[i]);
    sched_actions_fini(&actions);
    hub_attention_flush(h);
}

void hub_run(struct hub *h)
{
    struct sched_event e = {.kind = SCHED_TICK, .now_ns = clock_now_ns()};
    hub_event(h, &e);
}

/* ---- readiness ------------------------------------------------------------------------------ */

static void find_why_not(struct hub *h)
{
    h->why_not[0] = '\0';
    if (h->leader && !h->leads)
        hub_leader_why(h, h->why_not, sizeof h->why_not);
    else if (h->draining)
        snprintf(h->why_not, sizeof h->why_not, "shutting down");
    else if (!placement_is_covered(&h->placement))
        placement_why(&h->placement, h->why_not, sizeof h->why_not);
    else if (members_count(&h->members, NODE_ATTENTION) == 0)
        snprintf(h->why_not, sizeof h->why_not,
                 h->config->attention_embedded ? "the attention side is still loading"
                                               : "no attention side has joined");
}

void hub_refresh(struct hub *h)
{
    find_why_not(h);
    hub_attention_refresh(h, h->why_not);
    if (!h->why_not[0] && sched_capacity_tokens(&h->sched) == 0)
        snprintf(h->why_not, sizeof h->why_not, "no attention side is ready yet");
    bool ready = h->why_not[0] == '\0';
    if (ready == h->ready)
        return;
    h->ready = ready;
    for (int i = 0; i < 2; i++)
        if (h->servers[i])
            server_set_serving(h->servers[i], ready);
    hub_tell(h, ready ? EVENTS_GOOD : EVENTS_BAD, ready ? "cluster ready" : "cluster not ready",
             "%s", h->why_not);
    if (ready)
        log_info("cluster.ready", "epoch=%llu nodes=%d attention=%d",
                 (unsigned long long)h->placement.epoch, members_count(&h->members, NODE_EXPERT),
                 members_count(&h->members, NODE_ATTENTION));
    else
        log_info("cluster.not_ready", "why=%s", log_quote(h->why_not).text);
}

/* While this loop was away nobody's heartbeat was heard, and nobody is to blame for that. */
static void count_absence(struct hub *h, int64_t now_ns)
{
    int64_t away_ns = now_ns - h->ticked_ns - HUB_TICK_MS * CLOCK_MS;
    if (h->ticked_ns && away_ns > HUB_AWAY_MS * CLOCK_MS) {
        log_warn("loop.away", "ms=%lld", (long long)(away_ns / CLOCK_MS));
        members_extend(&h->members, away_ns);
    }
    h->ticked_ns = now_ns;
}

static void on_tick(void *ud, int64_t now_ns)
{
    struct hub *h = ud;
    count_absence(h, now_ns);
    if (h->leads)
        hub_cluster_tick(h, now_ns);
    hub_attention_tick(h, now_ns);
    hub_refresh(h);
    hub_run(h);
    hub_request_tick(h, now_ns);
    hub_trace_tick(h, now_ns);
    access_tick(h->access, now_ns);
    hub_log_tick(h);
    hub_ship_tick(h, now_ns);
    hub_leader_tick(h, now_ns);
    if (h->draining && (h->n_requests + h->n_admissions == 0 || now_ns >= h->drain_deadline_ns))
        loop_stop(h->loop);
    loop_set_timer(h->loop, &h->tick, now_ns + HUB_TICK_MS * CLOCK_MS);
}

void hub_end_with(struct hub *h, enum hub_end end, const struct err *e)
{
    h->end = end;
    snprintf(h->end_text, sizeof h->end_text, "%s", e ? e->text : "");
    loop_stop(h->loop);
}

enum hub_end hub_end(const struct hub *h)
{
    return h->end;
}

const char *hub_end_text(const struct hub *h)
{
    return h->end_text;
}

void hub_drain(struct hub *h)
{
    if (h->draining)
        return;
    h->draining = true;
    h->drain_deadline_ns = clock_now_ns() + h->config->http_drain_ns;
    log_info("hub.draining", "requests=%d reading=%d", h->n_requests, h->n_admissions);
    http_stop_accepting(h->http);
}

/* ---- start and end --------------------------------------------------------------------------- */

static int read_model(struct hub *h, struct err *e)
{
    struct checkpoint *c = NULL;
    int rc = checkpoint_open(h->config->model_path, &c, e);
    if (rc == 0)
        rc = checkpoint_fingerprint(c, &h->fingerprint, e);
    if (rc == 0) {
        h->formats = weights_options_formats(&h->config->weights);
        rc = checkpoint_formats(c, &h->formats, e);
    }
    if (rc == 0)
        h->model_config = *checkpoint_config(c);
    checkpoint_close(&c);
    return rc < 0 ? err_prefix(e, "model.path") : 0;
}

/* Words are optional: without tokenizer.json a model is served by token ids. */
static int read_words(struct hub *h, struct err *e)
{
    int rc = tokenizer_open(h->config->model_path, &h->tokenizer, e);
    if (rc == E_NOT_FOUND) {
        log_info("model.no_tokenizer", "why=%s", log_quote(e->text).text);
        *e = (struct err){0};
        return 0;
    }
    if (rc < 0)
        return err_prefix(e, "model.path");
    h->model.tokenizer = h->tokenizer;
    struct err why = {0};
    if (chat_init(&h->chat, h->tokenizer, &why) == 0)
        h->model.chat = &h->chat;
    else
        log_info("model.no_chat", "why=%s", log_quote(why.text).text);
    return 0;
}

static void collect_stop_ids(struct hub *h)
{
    for (int i = 0; i < h->model_config.n_eos; i++)
        h->stop_ids[h->n_stop_ids++] = h->model_config.eos_ids[i];
    if (h->model.chat && !config_is_eos(&h->model_config, chat_end_id(&h->chat)))
        h->stop_ids[h->n_stop_ids++] = chat_end_id(&h->chat);
}

#define LATE_HEARTBEAT_NS (100 * CLOCK_MS)

/* One heartbeat and a half, and what a busy machine makes of it. */
static int64_t missed_ns(const struct coordinator_config *c)
{
    int64_t most_ns = c->cluster_heartbeat_ns * 3 / 2 + LATE_HEARTBEAT_NS;
    return most_ns < c->cluster_lease_ns ? most_ns : c->cluster_lease_ns;
}

static void init_state(struct hub *h)
{
    const struct coordinator_config *c = h->config;
    struct members_config members = {.fingerprint = h->fingerprint,
                                     .formats = h->formats,
                                     .combine = (enum combine_mode)c->weights.combine,
                                     .lease_ns = c->cluster_lease_ns,
                                     .missed_ns = missed_ns(c)};
    /* Milliseconds since 1970 are higher than what an earlier coordinator counted up to. */
    struct placement_config placement = {.n_layers =
                                             (uint32_t)config_expert_layers(&h->model_config),
                                         .n_experts = (uint32_t)h->model_config.n_experts,
                                         .replicas = coordinator_replicas(c),
                                         .settle_ns = c->placement_settle_ns,
                                         .rejoin_ns = c->placement_rejoin_ns,
                                         .rebalance_ns = c->placement_rebalance_ns,
                                         .first_version = (uint64_t)clock_unix_us() / 1000};
    members_init(&h->members, &members);
    placement_init(&h->placement, &placement);
    struct sched_config sched = {.queue_limit = (int)c->request_queue_limit,
                                 .patience_ns = c->request_patience_ns,
                                 .queue_ns = c->schedule_queue_ns,
                                 .aging_ns = c->schedule_aging_ns,
                                 .step_rows = (uint32_t)c->schedule_step_rows,
                                 .prompt_rows = (uint32_t)c->schedule_prompt_rows,
                                 .draft_tokens = (uint32_t)c->schedule_speculation};
    sched_init(&h->sched, &sched);
    traffic_init(&h->traffic, (uint32_t)h->model_config.n_layers);
    /* Ids differ between coordinators, so that a side that outlives one is not confused. */
    h->id_base = rng_entropy() & ~0xffffffffull;
    snprintf(h->why_not, sizeof h->why_not, "starting");
}

int hub_open(struct loop *l, const struct coordinator_config *c, struct auth *auth,
             struct hub **out, struct err *e)
{
    struct hub *h = mem_alloc(sizeof *h);
    *out = NULL;
    h->config = c;
    h->auth = auth;
    h->loop = l;
    h->work.since_ns = clock_thread_ns();
    list_init(&h->requests);
    list_init(&h->kept);
    list_init(&h->admissions);
    list_init(&h->attentions);
    list_init(&h->sched.queue);
    list_init(&h->sched.lost);
    list_init(&h->sched.keys);
    h->tick = (struct loop_timer){.deadline_ns = CLOCK_NEVER, .cb = on_tick, .ud = h};
    int rc = read_model(h, e);
    if (rc == 0)
        rc = read_words(h, e);
    if (rc < 0)
        goto out;
    h->model_name = coordinator_model_name(c);
    h->model.name = h->model_name;
    h->model.config = &h->model_config;
    h->model.created_s = clock_unix_us() / 1000000;
    collect_stop_ids(h);
    init_state(h);
    /* Before the log: the requests that it brings back are submitted at once. */
    rc = access_open(c->api_keys_file, clock_now_ns(), &h->access, e);
    /* With etcd the log is opened by who leads, when it does. */
    h->leads = !c->etcd_endpoints[0];
    if (rc == 0 && h->leads)
        rc = hub_log_open(h, e);
    if (rc == 0)
        rc = hub_cluster_open(h, e);
    if (rc == 0)
        rc = hub_admit_open(h, e);
    if (rc == 0)
        rc = hub_http_open(h, e);
    if (rc == 0 && !h->leads)
        rc = hub_leader_open(h, e);
    if (rc < 0)
        goto out;
    loop_set_timer(l, &h->tick, clock_now_ns());
    *out = h;
    h = NULL;
out:
    hub_close(&h);
    return rc;
}

void hub_close(struct hub **hp)
{
    struct hub *h = *hp;
    *hp = NULL;
    if (!h)
        return;
    if (h->tick.added)
        loop_remove_timer(h->loop, &h->tick);
    http_close(&h->http);
    hub_admit_close(h);
    hub_attention_close(h);
    for (int i = 0; i < 2; i++) {
        if (h->servers[i])
            server_detach(h->servers[i], h->loop);
        server_close(&h->servers[i]);
    }
    hub_log_close(h);
    hub_ship_close(h);
    hub_follow_close(h);
    hub_leader_close(h);
    hub_request_close(h);
    access_close(&h->access);
    sched_fini(&h->sched);
    placement_fini(&h->placement);
    lending_fini(&h->lending);
    members_fini(&h->members);
    traffic_fini(&h->traffic);
    hub_trace_close(h);
    tokenizer_free(&h->tokenizer);
    mem_free(h->model_name);
    mem_free(h);
}
