/* coordinator/hub_attention.c - the channels to the attention sides: Describe once, then
 * Step after Step, and Release (step 5 of a token's path, and 13); see hub.h. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "coordinator/hub_state.h"

enum { DESCRIBE_TIMEOUT_MS = 5000, DESCRIBE_AGAIN_MS = 500, RELEASE_TIMEOUT_MS = 10000 };
enum { MAX_CALLS = 1024 };
static const char WHY_GONE[] = "the attention side that held this request is gone";

static struct hub_attention *find(const struct hub *h, uint32_t node_id)
{
    for (struct list *l = h->attentions.next; l != &h->attentions; l = l->next) {
        struct hub_attention *a = LIST_ITEM(l, struct hub_attention, link);
        if (a->node_id == node_id)
            return a;
    }
    return NULL;
}

void hub_attention_add(struct hub *h, const struct node *n)
{
    struct err e = {0};
    struct hub_attention *a = mem_alloc(sizeof *a);
    struct channel_options o = {.endpoint = n->join.endpoint,
                                .peer_name = n->join.name,
                                .max_calls = MAX_CALLS,
                                .auth = h->auth,
                                .server_key = n->join.public_key};
    a->hub = h;
    a->node_id = n->id;
    list_push_back(&h->attentions, &a->link);
    if (channel_open(&o, &a->channel, &e) < 0) {
        log_warn("attention.unusable", "name=%s why=%s", n->join.name, log_quote(e.text).text);
        return;
    }
    channel_attach(a->channel, h->loop);
}

/* Its sequences are replayed elsewhere, or there when it is back; it is then told of a new session,
 * so nobody has to release what it still has of this one. */
static void side_down(struct hub *h, struct hub_attention *a, const char *why)
{
    if (!sched_has_side(&h->sched, a->node_id))
        return;
    uint32_t n = sched_side_seqs(&h->sched, a->node_id);
    log_warn("attention.down", "node_id=%u sequences=%u why=%s", a->node_id, n,
             log_quote(why).text);
    hub_tell(h, EVENTS_BAD, "attention down", "%u sequences move: %s", n, why);
    a->n_releases = 0;
    struct sched_event e = {.kind = SCHED_SIDE_DOWN,
                            .now_ns = clock_now_ns(),
                            .side.id = a->node_id,
                            .code = E_UNAVAILABLE,
                            .text = why};
    hub_event(h, &e);
}

static void side_up(struct hub *h, struct hub_attention *a)
{
    const struct wire_attention_description *d = &a->description;
    a->session = ++h->last_session;
    a->n_releases = 0;
    struct sched_event e = {.kind = SCHED_SIDE_UP,
                            .now_ns = clock_now_ns(),
                            .side = {.id = a->node_id,
                                     .pages = d->kv_pages_total,
                                     .keeps_prefixes = d->keeps_prefixes,
                                     .takes_drafts = d->takes_drafts,
                                     .page_tokens = d->page_tokens,
                                     .max_rows = d->max_rows,
                                     .max_seqs = d->max_seqs}};
    hub_event(h, &e);
}

static void free_attention(struct hub_attention *a)
{
    a->closing = true;
    /* Its memory is gone with it. */
    traffic_add_grammars(&a->hub->traffic, &a->grammars, &(struct wire_grammar_counters){0});
    list_remove(&a->link);
    if (a->channel) {
        channel_detach(a->channel, a->hub->loop);
        channel_close(&a->channel);
    }
    mem_free(a->releases);
    mem_free(a);
}

void hub_attention_remove(struct hub *h, uint32_t node_id)
{
    struct hub_attention *a = find(h, node_id);
    if (!a)
        return;
    side_down(h, a, WHY_GONE);
    free_attention(a);
    hub_run(h);
}

void hub_attention_pages(struct hub *h, uint32_t node_id, uint32_t pages)
{
    struct hub_attention *a = find(h, node_id);
    uint32_t before = a && a->described ? a->description.kv_pages_total : 0;
    if (before == 0 || pages == 0 || pages == before)
        return;
    a->description.kv_pages_total = pages;
    if (a->kv_pages_free > pages)
        a->kv_pages_free = pages;
    log_info("attention.pages", "name=%s kv_tokens=%llu before=%llu", channel_peer_name(a->channel),
             (unsigned long long)pages * a->description.page_tokens,
             (unsigned long long)before * a->description.page_tokens);
    struct sched_event e = {.kind = SCHED_SIDE_PAGES,
                            .now_ns = clock_now_ns(),
                            .side = {.id = node_id, .pages = pages}};
    hub_event(h, &e);
    hub_run(h);
}

void hub_attention_drain(struct hub *h, uint32_t node_id)
{
    struct sched_event e = {
        .kind = SCHED_SIDE_LEAVING, .now_ns = clock_now_ns(), .side.id = node_id};
    hub_event(h, &e);
    hub_run(h);
}

void hub_attention_close(struct hub *h)
{
    while (!list_is_empty(&h->attentions))
        free_attention(LIST_ITEM(h->attentions.next, struct hub_attention, link));
}

/* ---- Describe ---------------------------------------------------------------------------------- */

static int check_description(const struct hub *h, const struct wire_attention_description *d,
                             struct err *e)
{
    if (d->fingerprint != h->fingerprint)
        return err_set(e, E_PRECONDITION, "fingerprint: it has another model");
    if (d->max_rows == 0 || d->max_seqs == 0 || d->page_tokens == 0 || d->kv_pages_total == 0)
        return err_set(e, E_PRECONDITION, "it has no room: %u rows, %u sequences, %u KV pages",
                       d->max_rows, d->max_seqs, d->kv_pages_total);
    if (d->max_rows > WIRE_MAX_ROWS)
        return err_set(e, E_PRECONDITION, "max_rows is %u; at most %d", d->max_rows, WIRE_MAX_ROWS);
    return 0;
}

static void on_described(void *ud, const struct reply *r)
{
    struct hub_attention *a = ud;
    struct err e = {0};
    if (a->closing)
        return;
    a->describing = false;
    int rc = r->code;
    if (rc < 0)
        err_set(&e, rc, "%s", r->text);
    else
        rc = wire_attention_description_decode(r->message, &a->description, &e);
    if (rc == 0)
        rc = check_description(a->hub, &a->description, &e);
    if (rc < 0) {
        log_warn("attention.unusable", "name=%s why=%s", channel_peer_name(a->channel),
                 log_quote(e.text).text);
        return;
    }
    const struct wire_attention_description *d = &a->description;
    a->described = true;
    /* Above what anyone has ever told it, this coordinator's own steps on their way included. */
    if (d->session > a->hub->last_session)
        a->hub->last_session = d->session;
    a->kv_pages_free = d->kv_pages_free;
    log_info("attention.up", "name=%s kv_tokens=%llu max_rows=%u max_seqs=%u kernels=%s",
             channel_peer_name(a->channel), (unsigned long long)d->kv_pages_total * d->page_tokens,
             d->max_rows, d->max_seqs, d->kernels);
    hub_tell(a->hub, EVENTS_GOOD, "attention up", "%s", channel_peer_name(a->channel));
    hub_refresh(a->hub);
}

static void describe(struct hub_attention *a, int64_t now_ns)
{
    struct buf message = {0};
    struct call call = {.method = wire_method(WIRE_ATTENTION, ATTENTION_DESCRIBE),
                        .message = &message,
                        .deadline_ns = now_ns + DESCRIBE_TIMEOUT_MS * CLOCK_MS,
                        .done = on_described,
                        .ud = a};
    uint64_t id;
    a->describe_again_ns = now_ns + DESCRIBE_AGAIN_MS * CLOCK_MS;
    a->describing = true;
    if (channel_call(a->channel, &call, &id) < 0)
        a->describing = false;
    buf_fini(&message);
}

void hub_attention_tick(struct hub *h, int64_t now_ns)
{
    for (struct list *l = h->attentions.next; l != &h->attentions; l = l->next) {
        struct hub_attention *a = LIST_ITEM(l, struct hub_attention, link);
        if (!a->channel)
            continue;
        /* After a break another process may answer there. */
        if (!channel_is_connected(a->channel))
            a->described = false;
        else if (!a->described && !a->describing && now_ns >= a->describe_again_ns)
            describe(a, now_ns);
    }
    hub_attention_flush(h);
}

static bool is_alive(const struct hub *h, const struct hub_attention *a)
{
    const struct node *n = members_find(&h->members, a->node_id);
    /* One that is leaving serves what it has until others have it. */
    bool serves = n && (n->state == NODE_READY ||
                        (n->state == NODE_DRAINING && sched_has_side(&h->sched, a->node_id)));
    return serves && a->channel && a->described && channel_is_connected(a->channel);
}

/* Does it know where all experts are? */
static bool is_current(const struct hub *h, const struct hub_attention *a)
{
    return members_find(&h->members, a->node_id)->last.epoch >= h->placement.covered_epoch;
}

void hub_attention_refresh(struct hub *h, const char *why)
{
    /* While we shut down, running requests may end. */
    bool cluster_ok = why[0] == '\0' || h->draining;
    for (struct list *l = h->attentions.next; l != &h->attentions; l = l->next) {
        struct hub_attention *a = LIST_ITEM(l, struct hub_attention, link);
        bool up = sched_has_side(&h->sched, a->node_id), alive = is_alive(h, a);
        /* A cluster that lacks experts takes no side down: what the sides hold stays good, and
         * their steps are tried again. */
        if (up && !alive)
            side_down(h, a, WHY_GONE);
        else if (!up && alive && cluster_ok && is_current(h, a) && !a->stepping)
            side_up(h, a);
    }
}

/* ---- Step ------------------------------------------------------------------------------------------ */

static void step_failed(struct hub_attention *a, int code, const char *text)
{
    struct hub *h = a->hub;
    h->counters.step_failures++;
    struct sched_event e = {.kind = SCHED_STEP_FAILED,
                            .now_ns = clock_now_ns(),
                            .side.id = a->node_id,
                            .step = a->step,
                            .code = code,
                            .text = text};
    hub_event(h, &e);
}

/* What two lanes saved is not measured in every step: the last trial of such steps says it. */
static void count_lanes(struct hub_counters *c, const struct wire_step_reply *reply)
{
    uint32_t permille = reply->lanes_permille;
    c->lanes_permille = permille;
    if (reply->lanes != 2)
        return;
    c->two_lane_steps++;
    double spent_us = (double)reply->attention_us + (double)reply->experts_us;
    /* A step of 1,000 s is nobody's. */
    if (permille > 0 && permille < 1000 && spent_us < 1e9)
        c->lanes_saved_us += (int64_t)(spent_us * (1000.0 / permille - 1.0));
}

static void on_step_done(void *ud, const struct reply *r)
{
    struct hub_attention *a = ud;
    struct hub *h = a->hub;
    if (a->closing)
        return;
    a->stepping = false;
    struct wire_step_reply *reply = NULL;
    struct err e = {0};
    int rc = r->code;
    if (rc < 0)
        err_set(&e, rc, "%s", r->text);
    else
        rc = wire_step_reply_decode(r->message, &reply, &e);
    if (rc == 0 && reply->code < 0) {
        rc = err_set(&e, reply->code, "%s", reply->text);
        hub_cluster_judge(h, reply);
    }
    if (rc < 0) {
        hub_trace_step(h, a, r, NULL);
        hub_tell(h, EVENTS_WARN, "step failed", "%s: %s", channel_peer_name(a->channel), e.text);
        step_failed(a, rc, e.text);
        /* Somebody else has taken it over, or has done so for a while. */
        if (rc == E_DENIED)
            a->described = false;
        /* If it is gone, nothing may be given to it any more. */
        hub_refresh(h);
    } else {
        h->counters.steps++;
        a->kv_pages_free = reply->kv_pages_free;
        h->counters.attention_us += (int64_t)reply->attention_us;
        h->counters.experts_us += (int64_t)reply->experts_us;
        h->counters.head_us += (int64_t)reply->head_us;
        h->counters.router_us += (int64_t)reply->router_us;
        h->counters.sampling_us += (int64_t)reply->sampling_us;
        count_lanes(&h->counters, reply);
        hub_cluster_judge(h, reply);
        hub_watch_step(h, a, r, reply);
        stats_record(&h->counters.step_us,
                     (int64_t)(reply->attention_us + reply->experts_us + reply->head_us));
        struct sched_event done = {.kind = SCHED_STEP_DONE,
                                   .now_ns = clock_now_ns(),
                                   .side.id = a->node_id,
                                   .step = a->step,
                                   .reply = reply};
        hub_event(h, &done);
    }
    mem_free(reply);
    hub_run(h);
}

static void note_sent(struct hub_attention *a, const struct wire_step *step)
{
    a->sent_ns = clock_now_ns();
    a->sent_rows = step->n_tokens;
    a->sent_seqs = step->n_seqs;
    for (uint32_t i = 0; i < step->n_seqs && i < TRACE_STEP_SEQS; i++)
        a->first_seqs[i] = step->seqs[i].seq;
}

void hub_attention_send(struct hub *h, uint32_t node_id, const struct wire_step *step)
{
    struct hub_attention *a = find(h, node_id);
    struct buf message = {0};
    struct blob *payload = NULL;
    struct wire_step in_session = *step;
    in_session.session = a->session;
    wire_step_encode(&in_session, &message, &payload);
    /* Each layer has its own deadline on the other side; this one only ends a hang. */
    int64_t allowed_ns = h->config->attention_call_timeout_ns * (h->model_config.n_layers + 2);
    struct call call = {.method = wire_method(WIRE_ATTENTION, ATTENTION_STEP),
                        .message = &message,
                        .payloads = &payload,
                        .n_payloads = 1,
                        .deadline_ns = clock_now_ns() + allowed_ns,
                        .trace_id = hub_trace_is_on(h) ? step->step : 0,
                        .done = on_step_done,
                        .ud = a};
    uint64_t id;
    a->step = step->step;
    note_sent(a, step);
    h->counters.step_rows += step->n_tokens;
    stats_record(&h->counters.rows_of_step, step->n_tokens);
    int rc = channel_call(a->channel, &call, &id);
    blob_unref(&payload);
    buf_fini(&message);
    if (rc == 0) {
        a->stepping = true;
        return;
    }
    /* The next tick takes it down: here other actions of the scheduler's still wait. */
    a->described = false;
    step_failed(a, rc, "the attention side cannot be reached");
}

/* ---- Release ----------------------------------------------------------------------------------------- */

void hub_attention_release(struct hub *h, uint32_t node_id, uint64_t seq)
{
    struct hub_attention *a = find(h, node_id);
    if (!a)
        return;
    if (a->n_releases == a->releases_room) {
        a->releases_room = a->releases_room ? 2 * a->releases_room : 64;
        a->releases = mem_resize(a->releases, a->releases_room * sizeof *a->releases);
    }
    a->releases[a->n_releases++] = seq;
}

/* What a Release said, in case it must be said again. */
struct release {
    struct hub_attention *attention;
    uint64_t session;
    size_t n;
    uint64_t seqs[];
};

static void on_released(void *ud, const struct reply *r)
{
    struct release *said = ud;
    struct hub_attention *a = said->attention;
    if (r->code < 0 && !a->closing && said->session == a->session)
        for (size_t i = 0; i < said->n; i++)
            hub_attention_release(a->hub, a->node_id, said->seqs[i]);
    mem_free(said);
}

static void flush(struct hub_attention *a)
{
    size_t n = a->n_releases < WIRE_MAX_SEQS ? a->n_releases : WIRE_MAX_SEQS;
    struct release *said = mem_alloc(sizeof *said + n * sizeof said->seqs[0]);
    said->attention = a;
    said->n = n;
    said->session = a->session;
    memcpy(said->seqs, a->releases, n * sizeof said->seqs[0]);
    struct wire_release m = {.session = a->session, .n_seqs = (uint32_t)n, .seqs = said->seqs};
    struct buf message = {0};
    wire_release_encode(&m, &message);
    struct call call = {.method = wire_method(WIRE_ATTENTION, ATTENTION_RELEASE),
                        .message = &message,
                        .deadline_ns = clock_now_ns() + RELEASE_TIMEOUT_MS * CLOCK_MS,
                        .done = on_released,
                        .ud = said};
    uint64_t id;
    int rc = channel_call(a->channel, &call, &id);
    buf_fini(&message);
    if (rc < 0) {
        mem_free(said); /* with the next flush */
        return;
    }
    a->n_releases -= n;
    memmove(a->releases, a->releases + n, a->n_releases * sizeof *a->releases);
}

void hub_attention_flush(struct hub *h)
{
    for (struct list *l = h->attentions.next; l != &h->attentions; l = l->next) {
        struct hub_attention *a = LIST_ITEM(l, struct hub_attention, link);
        if (a->n_releases > 0 && a->channel && channel_is_connected(a->channel))
            flush(a);
    }
}
