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

struct hub_request *hub_request_new(struct hub *h, struct request *q)
{
    struct hub_request *r = mem_alloc(sizeof *r);
    list_init(&r->clients);
    r->received_ns = clock_now_ns();
    r->request = *q;
    *q = (struct request){0};
    list_push_back(&h->requests, &r->link);
    h->n_requests++;
    return r;
}

static void free_client(struct hub_client *c)
{
    list_remove(&c->link);
    buf_fini(&c->held);
    mem_free(c->seen);
    mem_free(c);
}

/* What it takes in memory and in the log. */
static int64_t bytes_of(const struct hub_request *r)
{
    size_t n = r->body.len + request_prompt_tokens(&r->request) * 4;
    for (const struct request *c = &r->request; c; c = c->next)
        n += c->output.len * (28 + (c->samples ? sizeof *c->samples : 0)) + KEPT_OVERHEAD_BYTES;
    return (int64_t)n;
}

/* Once; what was refused before it ran has cost nothing. */
static void end_for_key(struct hub_request *r)
{
    const struct request *q = &r->request;
    size_t n_tokens =
        q->state == REQUEST_RECEIVED ? 0 : request_prompt_tokens(q) + request_output_tokens(q);
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

struct hub_request *hub_request_of(const struct hub *h, uint64_t seq)
{
    for (struct list *l = h->requests.next; l != &h->requests; l = l->next) {
        struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
        if (seq - r->request.seq < (uint64_t)r->request.n_choices)
            return r;
    }
    return NULL;
}

/* The same, and which of its choices. */
static struct hub_request *find(const struct hub *h, uint64_t seq, struct request **choice)
{
    struct hub_request *r = hub_request_of(h, seq);
    *choice = r ? request_choice(&r->request, seq) : NULL;
    return r;
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

void hub_request_stop(struct hub *h, const struct hub_request *r)
{
    uint64_t seqs[REQUEST_MAX_CHOICES];
    int n = 0;
    for (const struct request *c = &r->request; c; c = c->next)
        if (c->state != REQUEST_DONE)
            seqs[n++] = c->seq;
    for (int i = 0; i < n; i++)
        cancel_seq(h, seqs[i]);
}

void hub_request_cancel(struct hub *h, struct hub_request *r)
{
    hub_request_stop(h, r);
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

/* Has it, from an earlier stream, what is only coming now? */
static bool is_ahead(const struct hub_client *c, const struct request *r)
{
    for (; r && c->seen; r = r->next)
        if (c->seen[r->index] >= r->output.len)
            return true;
    return false;
}

/* What the newest token has to say, to everyone who has not heard it in an earlier stream. */
static void give_events(struct hub *h, struct hub_request *r)
{
    struct request *q = &r->request;
    struct buf text = {0};
    dialect_write_events(&h->model, q, &text);
    for (struct list *l = r->clients.next; l != &r->clients && text.len > 0; l = l->next) {
        struct hub_client *c = LIST_ITEM(l, struct hub_client, link);
        if (!is_ahead(c, q)) {
            buf_append_str(&c->held, buf_str(&text));
            continue;
        }
        request_set_seen(q, c->seen);
        dialect_write_events(&h->model, q, &c->held);
        request_set_seen(q, NULL);
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
        request_set_seen(&r->request, c->seen);
        dialect_write_error_event(&e, &r->request, &c->held);
        request_set_seen(&r->request, NULL);
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
    struct request *q;
    struct hub_request *r = find(h, seq, &q);
    if (!r || q->state != REQUEST_QUEUED)
        return; /* another choice of its request has failed in the same event */
    request_started(q);
    if (r->started_ns)
        return;
    r->started_ns = clock_now_ns();
    stats_record(&h->counters.queue_us, (r->started_ns - r->received_ns) / CLOCK_US);
}

void hub_moved(struct hub *h, uint64_t seq, uint32_t side)
{
    struct request *q;
    struct hub_request *r = find(h, seq, &q);
    if (!r)
        return; /* as above */
    size_t tokens = q->prompt.len + q->output.len;
    h->counters.replays++;
    h->counters.replayed_tokens += (int64_t)tokens;
    log_info("request.replayed", "request=%s side=%u tokens=%zu", r->request.id, side, tokens);
}

void hub_inherited(struct hub *h, uint64_t seq, uint32_t side)
{
    struct request *q;
    struct hub_request *r = find(h, seq, &q);
    if (!r)
        return; /* as above */
    h->counters.handovers++;
    log_info("request.handed_over", "request=%s side=%u tokens=%zu", r->request.id, side,
             q->prompt.len + q->output.len);
}

/* The gaps are those of one choice at a time: several may have tokens in the same step. */
static void count_token(struct hub *h, struct hub_request *r, const struct request *choice)
{
    int64_t now_ns = clock_now_ns();
    if (request_output_tokens(&r->request) == 1) {
        stats_record(&h->counters.first_token_us, (now_ns - r->received_ns) / CLOCK_US);
        r->first_ns = now_ns;
    } else if (r->token_ns && choice->seq == r->token_seq)
        stats_record(&h->counters.token_gap_us, (now_ns - r->token_ns) / CLOCK_US);
    if (!r->token_ns || choice->state == REQUEST_DONE)
        r->token_seq = choice->seq;
    if (choice->seq == r->token_seq)
        r->token_ns = now_ns;
    h->counters.output_tokens++;
}

static void mark_degraded(struct hub *h, struct hub_request *r, struct request *choice)
{
    if (choice->is_degraded)
        return;
    bool is_first = true;
    for (const struct request *c = &r->request; c; c = c->next)
        is_first = is_first && !c->is_degraded;
    choice->is_degraded = true;
    choice->degraded_from = choice->output.len;
    h->counters.degraded += is_first;
    log_warn("request.degraded", "request=%s choice=%d after_tokens=%zu", r->request.id,
             choice->index, choice->output.len);
}

void hub_token(struct hub *h, const struct sched_action *a)
{
    struct request *q;
    struct hub_request *r = find(h, a->seq, &q);
    if (!r || q->state == REQUEST_DONE)
        return; /* it ended with an earlier token of the same step: by a stop string, or a hang-up */
    if (q->output.len == 0) /* fed again after a loss, it may be another number */
        q->n_cached = a->n_cached;
    if (a->is_degraded)
        mark_degraded(h, r, q);
    bool over = request_token(q, a->sampled, a->finish);
    count_token(h, r, q);
    hub_log_token(h, r, q, a->sampled);
    /* A stop string is the request's own end: the scheduler is to hear of it. */
    if (over && a->finish == SCHED_GOES_ON)
        cancel_seq(h, a->seq);
    if (r->request.streams)
        give_events(h, r);
    if (request_is_done(&r->request)) {
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
    struct request *q;
    struct hub_request *r = find(h, a->seq, &q);
    if (!r)
        return; /* with another of its choices */
    r->retry_s = a->retry_s;
    hub_request_stop(h, r);
    hub_request_fail(h, r, a->code, a->text);
}

/* ---- answers that are asked for again ------------------------------------------------------ */

/* One token for a choice of `q`. */
static void feed(const struct hub *h, struct request *q, struct request *choice,
                 const struct sampled *sampled, enum sched_finish finish, struct buf *events)
{
    request_token(choice, sampled, finish);
    if (!q->streams || !request_has_events(choice))
        return;
    if (events)
        dialect_write_events(&h->model, q, events);
    request_sent(q);
}

void hub_request_feed(struct hub *h, struct hub_request *r, struct request *choice,
                      const struct sampled *sampled, enum sched_finish finish)
{
    feed(h, &r->request, choice, sampled, finish, NULL);
}

static void repeat_choice(const struct hub *h, struct request *out, struct request *choice,
                          const struct request *q, struct buf *events)
{
    choice->n_cached = q->n_cached;
    request_started(choice);
    for (size_t i = 0; i < q->output.len; i++) {
        struct sampled plain = {.token = q->output.ids[i]};
        bool last = i + 1 == q->output.len;
        choice->is_degraded = q->is_degraded && i >= q->degraded_from;
        feed(h, out, choice, q->samples ? &q->samples[i] : &plain, last ? q->given : SCHED_GOES_ON,
             events);
    }
}

/* The request as it was admitted, fed with its tokens; for streams, the events after `seen`. */
static void repeat(const struct hub *h, const struct hub_request *r, const uint64_t *seen,
                   struct request *out, struct buf *events)
{
    const struct request *q = &r->request;
    request_again(q, out);
    request_set_seen(out, seen);
    for (struct request *choice = out; choice; choice = choice->next, q = q->next)
        repeat_choice(h, out, choice, q, events);
}

static void catch_up(struct hub *h, struct hub_request *r, struct hub_client *c)
{
    bool done = request_is_done(&r->request);
    struct request again;
    if (request_output_tokens(&r->request) > 0 && (r->request.streams || done)) {
        repeat(h, r, c->seen, &again, &c->held);
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

int hub_attach(struct hub *h, struct hub_request *r, struct http_exchange *x, const char *id)
{
    uint64_t seen[REQUEST_MAX_CHOICES + 1];
    if (id && !request_read_seen(&r->request, id, seen))
        return E_INVALID;
    struct hub_client *c = mem_alloc(sizeof *c);
    *c = (struct hub_client){.request = r,
                             .exchange = x,
                             .status = r->request.streams ? 0 : 200,
                             .written_ns = clock_now_ns()};
    if (id) {
        size_t bytes = ((size_t)r->request.n_choices + 1) * sizeof *seen;
        c->seen = memcpy(mem_alloc(bytes), seen, bytes);
    }
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
    return 0;
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
