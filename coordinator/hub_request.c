/* coordinator/hub_request.c - requests and whoever waits for them: delivery, hang-ups, answers that
 * are asked for again (step 14 of a token's path); see hub.h.
 *
 * What a client gets is a function of the request's tokens: events are made after every token, and a
 * client that comes later is given what the same tokens make from a fresh beginning, without the
 * events that it has seen. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "coordinator/dialect.h"
#include "coordinator/hub_state.h"

enum { KEPT_OVERHEAD_BYTES = 1024 };

/* ---- birth, look-up, death --------------------------------------------------------------- */

struct hub_request *hub_request_new(struct hub *h, enum request_kind kind, uint64_t seq,
                                    int64_t created_s)
{
    struct hub_request *r = mem_alloc(sizeof *r);
    list_init(&r->clients);
    r->received_ns = clock_now_ns();
    request_init(&r->request, kind, seq, created_s);
    list_push_back(&h->requests, &r->link);
    h->n_requests++;
    return r;
}

static void free_client(struct hub_client *c)
{
    list_remove(&c->link);
    buf_fini(&c->held);
    mem_free(c);
}

/* What it takes in memory and in the log. */
static int64_t bytes_of(const struct hub_request *r)
{
    const struct request *q = &r->request;
    size_t samples = q->samples ? q->output.len * sizeof *q->samples : 0;
    return (int64_t)(r->body.len + q->prompt.len * 4 + q->output.len * 28 + samples) +
           KEPT_OVERHEAD_BYTES;
}

/* Once; what was refused before it ran has cost nothing. */
static void end_for_key(struct hub_request *r)
{
    const struct request *q = &r->request;
    size_t n_tokens = q->state == REQUEST_RECEIVED ? 0 : q->prompt.len + q->output.len;
    access_end(&r->access, (int64_t)n_tokens, clock_now_ns());
}

void hub_request_free(struct hub *h, struct hub_request **rp)
{
    struct hub_request *r = *rp;
    *rp = NULL;
    end_for_key(r);
    while (!list_is_empty(&r->clients))
        free_client(LIST_ITEM(r->clients.next, struct hub_client, link));
    if (r->is_over)
        h->kept_bytes -= bytes_of(r);
    else
        h->n_requests--;
    list_remove(&r->link);
    request_fini(&r->request);
    mem_free(r->key);
    buf_fini(&r->body);
    mem_free(r);
}

void hub_request_close(struct hub *h)
{
    struct list *lists[] = {&h->requests, &h->kept};
    for (int i = 0; i < 2; i++)
        while (!list_is_empty(lists[i])) {
            struct hub_request *r = LIST_ITEM(lists[i]->next, struct hub_request, link);
            hub_request_free(h, &r);
        }
}

static struct hub_request *find(const struct hub *h, uint64_t seq)
{
    for (struct list *l = h->requests.next; l != &h->requests; l = l->next) {
        struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
        if (r->request.seq == seq)
            return r;
    }
    return NULL;
}

static bool is_meant(const struct hub_request *r, uint64_t owner, const char *id, const char *key)
{
    if (!r->is_kept || r->owner != owner)
        return false;
    return id ? strcmp(r->request.id, id) == 0 : r->key && strcmp(r->key, key) == 0;
}

static struct hub_request *find_kept(const struct hub *h, uint64_t owner, const char *id,
                                     const char *key)
{
    const struct list *lists[] = {&h->requests, &h->kept};
    for (int i = 0; i < 2; i++)
        for (struct list *l = lists[i]->next; l != lists[i]; l = l->next) {
            struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
            if (is_meant(r, owner, id, key))
                return r;
        }
    return NULL;
}

struct hub_request *hub_request_by_id(const struct hub *h, uint64_t owner, const char *id)
{
    return find_kept(h, owner, id, NULL);
}

struct hub_request *hub_request_by_key(const struct hub *h, uint64_t owner, const char *key)
{
    return find_kept(h, owner, NULL, key);
}

void hub_request_keep(struct hub *h, struct hub_request *r, int64_t over_us)
{
    must(!r->is_over);
    end_for_key(r);
    r->is_over = true;
    r->over_us = over_us;
    h->n_requests--;
    h->kept_bytes += bytes_of(r);
    list_remove(&r->link);
    list_push_back(&h->kept, &r->link);
}

static void cancel_seq(struct hub *h, uint64_t seq)
{
    struct sched_event e = {.kind = SCHED_CANCEL, .now_ns = clock_now_ns(), .seq = seq};
    hub_event(h, &e);
}

void hub_request_cancel(struct hub *h, struct hub_request *r)
{
    cancel_seq(h, r->request.seq);
    hub_log_end(h, r, TOKEN_LOG_FORGOTTEN);
    h->counters.outcomes[HUB_CANCELLED]++;
    hub_trace_request(h, r);
    hub_request_free(h, &r);
}

/* ---- clients ---------------------------------------------------------------------------- */

/* The last client of a running request has gone: it may come back. */
static void leave_alone(struct hub *h, struct hub_request *r)
{
    if (r->is_over || request_is_over(&r->request) || !list_is_empty(&r->clients))
        return;
    if (r->is_kept && h->config->streams_linger_ns > 0)
        r->alone_ns = clock_now_ns();
    else
        hub_request_cancel(h, r);
}

void hub_client_gone(struct hub *h, struct http_exchange *x)
{
    struct hub_client *c = http_user(x);
    if (!c)
        return;
    struct hub_request *r = c->request;
    free_client(c);
    leave_alone(h, r);
    hub_run(h);
}

static void begin_stream(struct hub_client *c)
{
    if (c->begun)
        return;
    c->begun = true;
    http_add_header(c->exchange, "Cache-Control", "no-cache");
    http_add_header(c->exchange, "X-Accel-Buffering", "no");
    http_stream_begin(c->exchange, 200, "text/event-stream");
}

static void answer_whole(struct hub_client *c)
{
    if (c->status == 429 || c->status == 503) {
        char seconds[16];
        int retry_s = c->request->retry_s > 0 ? c->request->retry_s : HUB_RETRY_AFTER_S;
        snprintf(seconds, sizeof seconds, "%d", retry_s);
        http_add_header(c->exchange, "Retry-After", seconds);
    }
    http_reply(c->exchange, c->status, "application/json", buf_str(&c->held));
    free_client(c);
}

/* Gives the client what is held for it; the client may be gone afterwards. */
static void flush_client(struct hub *h, struct hub_client *c)
{
    if (!hub_log_has(h, c->request))
        return;
    if (c->status) {
        if (c->ends)
            answer_whole(c);
        return;
    }
    if (c->held.len > 0) {
        begin_stream(c);
        c->written_ns = clock_now_ns();
        size_t unread = http_stream_write(c->exchange, buf_str(&c->held));
        buf_reset(&c->held);
        if (unread > HUB_UNREAD_BYTES) {
            log_warn("client.too_slow", "request=%s", c->request->request.id);
            http_abort(c->exchange);
            free_client(c);
            return;
        }
    }
    if (!c->ends)
        return;
    begin_stream(c);
    http_stream_end(c->exchange);
    free_client(c);
}

void hub_request_release(struct hub *h, struct hub_request *r)
{
    for (struct list *l = r->clients.next, *next; l != &r->clients; l = next) {
        next = l->next;
        flush_client(h, LIST_ITEM(l, struct hub_client, link));
    }
}

void hub_request_unsay(struct hub_request *r)
{
    for (struct list *l = r->clients.next; l != &r->clients; l = l->next) {
        struct hub_client *c = LIST_ITEM(l, struct hub_client, link);
        must(!c->begun);
        buf_reset(&c->held);
    }
}

/* ---- delivery ----------------------------------------------------------------------------- */

/* What the newest token has to say, to everyone who has not heard it in an earlier stream. */
static void give_events(struct hub *h, struct hub_request *r)
{
    struct request *q = &r->request;
    struct buf text = {0};
    dialect_write_events(&h->model, q, &text);
    for (struct list *l = r->clients.next; l != &r->clients && text.len > 0; l = l->next) {
        struct hub_client *c = LIST_ITEM(l, struct hub_client, link);
        if (c->seen < q->output.len) {
            buf_append_str(&c->held, buf_str(&text));
            continue;
        }
        q->seen = c->seen;
        dialect_write_events(&h->model, q, &c->held);
        q->seen = 0;
    }
    if (text.len > 0)
        request_sent(q);
    buf_fini(&text);
}

static void write_error(struct hub_request *r, struct hub_client *c)
{
    struct openai_error e;
    openai_error_of(&e, r->request.code, r->request.error);
    if (c->begun || c->held.len > 0) {
        r->request.seen = c->seen;
        dialect_write_error_event(&e, &r->request, &c->held);
        r->request.seen = 0;
    } else {
        c->status = e.status;
        dialect_write_error(r->request.kind, &e, &c->held);
    }
    c->ends = true;
}

/* The request is over: the last word to each client, and what remains of it. */
static void complete(struct hub *h, struct hub_request *r, enum hub_outcome outcome)
{
    bool failed = r->request.state == REQUEST_FAILED;
    h->counters.outcomes[outcome]++;
    hub_trace_request(h, r);
    if (outcome == HUB_OK)
        stats_record(&h->counters.request_us, (clock_now_ns() - r->received_ns) / CLOCK_US);
    hub_log_end(h, r, failed ? TOKEN_LOG_FAILED : TOKEN_LOG_DONE);
    for (struct list *l = r->clients.next; l != &r->clients; l = l->next) {
        struct hub_client *c = LIST_ITEM(l, struct hub_client, link);
        c->ends = true;
        if (failed)
            write_error(r, c);
        else if (!r->request.streams)
            dialect_write_reply(&h->model, &r->request, &c->held);
    }
    hub_request_release(h, r);
    if (failed) { /* the next one with this key is a new attempt */
        mem_free(r->key);
        r->key = NULL;
    }
    if (r->is_kept)
        hub_request_keep(h, r, clock_unix_us());
    else
        hub_request_free(h, &r);
}

void hub_started(struct hub *h, uint64_t seq)
{
    struct hub_request *r = find(h, seq);
    must(r);
    if (r->request.state != REQUEST_QUEUED)
        return;
    request_started(&r->request);
    r->started_ns = clock_now_ns();
    stats_record(&h->counters.queue_us, (r->started_ns - r->received_ns) / CLOCK_US);
}

void hub_moved(struct hub *h, uint64_t seq, uint32_t side)
{
    struct hub_request *r = find(h, seq);
    must(r);
    size_t tokens = r->request.prompt.len + r->request.output.len;
    h->counters.replays++;
    h->counters.replayed_tokens += (int64_t)tokens;
    log_info("request.replayed", "request=%s side=%u tokens=%zu", r->request.id, side, tokens);
}

static void count_token(struct hub *h, struct hub_request *r)
{
    int64_t now_ns = clock_now_ns();
    if (r->request.output.len == 0) {
        stats_record(&h->counters.first_token_us, (now_ns - r->received_ns) / CLOCK_US);
        r->first_ns = now_ns;
    } else if (r->token_ns)
        stats_record(&h->counters.token_gap_us, (now_ns - r->token_ns) / CLOCK_US);
    r->token_ns = now_ns;
    h->counters.output_tokens++;
}

static void mark_degraded(struct hub *h, struct hub_request *r)
{
    if (r->request.is_degraded)
        return;
    r->request.is_degraded = true;
    h->counters.degraded++;
    log_warn("request.degraded", "request=%s after_tokens=%zu", r->request.id,
             r->request.output.len);
}

void hub_token(struct hub *h, const struct sched_action *a)
{
    struct hub_request *r = find(h, a->seq);
    if (!r)
        return; /* it ended with an earlier token of the same step: by a stop string, or a hang-up */
    r->request.n_cached = a->n_cached;
    count_token(h, r);
    r->last_finish = a->finish;
    if (a->is_degraded)
        mark_degraded(h, r);
    bool over = request_token(&r->request, a->sampled, a->finish);
    hub_log_token(h, r, a->sampled);
    /* A stop string is the request's own end: the scheduler is to hear of it. */
    if (over && a->finish == SCHED_GOES_ON)
        cancel_seq(h, a->seq);
    if (r->request.streams)
        give_events(h, r);
    if (over) {
        complete(h, r, HUB_OK);
        return;
    }
    bool had_clients = !list_is_empty(&r->clients);
    hub_request_release(h, r);
    if (had_clients)
        leave_alone(h, r);
}

void hub_request_fail(struct hub *h, struct hub_request *r, int code, const char *text)
{
    request_failed(&r->request, code, text);
    bool refused = code == E_BUSY || code == E_RANGE;
    if (!refused)
        log_warn("request.failed", "request=%s client_id=%s code=%s why=%s", r->request.id,
                 log_quote(r->client_id).text, err_name(code), log_quote(text).text);
    complete(h, r, refused ? HUB_REFUSED : HUB_FAILED);
}

void hub_failed(struct hub *h, const struct sched_action *a)
{
    struct hub_request *r = find(h, a->seq);
    must(r);
    r->retry_s = a->retry_s;
    hub_request_fail(h, r, a->code, a->text);
}

/* ---- answers that are asked for again ------------------------------------------------------ */

static void feed(const struct hub *h, struct request *q, const struct sampled *sampled,
                 enum sched_finish finish, struct buf *events)
{
    request_token(q, sampled, finish);
    if (!q->streams || !request_has_events(q))
        return;
    if (events)
        dialect_write_events(&h->model, q, events);
    request_sent(q);
}

void hub_request_feed(struct hub *h, struct hub_request *r, const struct sampled *sampled,
                      enum sched_finish finish)
{
    r->last_finish = finish;
    feed(h, &r->request, sampled, finish, NULL);
}

/* The request as it was admitted, fed with its tokens; for streams, the events after `seen`. */
static int repeat(const struct hub *h, const struct hub_request *r, uint64_t seen,
                  struct request *out, struct buf *events)
{
    const struct request *q = &r->request;
    struct openai_error e;
    request_init(out, q->kind, q->seq, q->created_s);
    int rc = hub_parse(h, buf_str(&r->body), out, &e);
    if (rc < 0)
        return rc;
    out->max_tokens = q->max_tokens;
    out->sampling.seed = q->sampling.seed;
    out->seen = seen;
    out->n_cached = q->n_cached;
    request_queued(out);
    request_started(out);
    for (size_t i = 0; i < q->output.len; i++) {
        struct sampled plain = {.token = q->output.ids[i]};
        bool last = i + 1 == q->output.len;
        feed(h, out, q->samples ? &q->samples[i] : &plain, last ? r->last_finish : SCHED_GOES_ON,
             events);
    }
    return 0;
}

static void catch_up(struct hub *h, struct hub_request *r, struct hub_client *c)
{
    bool done = r->request.state == REQUEST_DONE;
    struct request again;
    if (r->request.output.len > 0 && (r->request.streams || done)) {
        must_zero(repeat(h, r, c->seen, &again, &c->held));
        if (done && !r->request.streams)
            dialect_write_reply(&h->model, &again, &c->held);
        request_fini(&again);
    }
    if (r->request.state == REQUEST_FAILED)
        write_error(r, c);
    c->ends = r->is_over;
}

/* Letters, digits and a few signs: it goes into log lines and headers. */
const char *hub_client_id(const struct http_exchange *x)
{
    static const char chars[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:";
    const char *id = http_request_header(x, "X-Request-Id");
    size_t n = id ? strlen(id) : 0;
    return n > 0 && n < TRACE_ID_BYTES && strspn(id, chars) == n ? id : NULL;
}

void hub_name_answer(struct http_exchange *x, const struct request *q)
{
    const char *theirs = hub_client_id(x);
    http_add_header(x, "X-Request-Id", theirs ? theirs : q->id);
}

void hub_attach(struct hub *h, struct hub_request *r, struct http_exchange *x, uint64_t seen)
{
    struct hub_client *c = mem_alloc(sizeof *c);
    *c = (struct hub_client){.request = r,
                             .exchange = x,
                             .status = r->request.streams ? 0 : 200,
                             .seen = seen,
                             .written_ns = clock_now_ns()};
    http_set_user(x, c);
    hub_name_answer(x, &r->request);
    http_add_header(x, "request-id", r->request.id); /* as Anthropic's clients look for it */
    list_push_back(&r->clients, &c->link);
    r->alone_ns = 0;
    catch_up(h, r, c);
    /* Nothing is left to say to a stream's reader: it shall not come again. */
    if (c->ends && !c->status && c->held.len == 0)
        c->status = 204;
    flush_client(h, c);
}

/* ---- time ------------------------------------------------------------------------------------ */

static void ping(struct hub *h, struct hub_request *r, int64_t now_ns)
{
    for (struct list *l = r->clients.next, *next; l != &r->clients; l = next) {
        next = l->next;
        struct hub_client *c = LIST_ITEM(l, struct hub_client, link);
        if (c->status || now_ns - c->written_ns < HUB_PING_S * CLOCK_S)
            continue;
        c->written_ns = now_ns;
        dialect_write_ping(&r->request, &c->held);
        flush_client(h, c);
    }
}

/* Oldest first: by age, and whatever is too much. */
static void drop_kept(struct hub *h)
{
    int64_t oldest_us = clock_unix_us() - h->config->streams_keep_ns / CLOCK_US;
    for (struct list *l = h->kept.next, *next; l != &h->kept; l = next) {
        next = l->next;
        struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
        if (r->over_us > oldest_us && h->kept_bytes <= h->config->streams_keep_bytes)
            return;
        if (list_is_empty(&r->clients))
            hub_request_free(h, &r);
    }
}

void hub_request_tick(struct hub *h, int64_t now_ns)
{
    h->log_bytes = h->kept_bytes;
    for (struct list *l = h->requests.next, *next; l != &h->requests; l = next) {
        next = l->next;
        struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
        h->log_bytes += bytes_of(r);
        if (r->request.streams && !list_is_empty(&r->clients)) {
            ping(h, r, now_ns);
            leave_alone(h, r);
            continue;
        }
        if (!list_is_empty(&r->clients))
            continue;
        /* After a restart clients come back when there is something to come back to. */
        if (r->alone_ns == 0 && h->ready)
            r->alone_ns = now_ns;
        else if (r->alone_ns && (now_ns - r->alone_ns >= h->config->streams_linger_ns ||
                                 (h->draining && !h->journal)))
            hub_request_cancel(h, r);
    }
    drop_kept(h);
}
