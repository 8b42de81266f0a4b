/* coordinator/hub_http.c - clients: routes, submission, delivery (steps 2, 3 and 14 of a
 * token's path); see hub.h. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "coordinator/hub_state.h"

static const char JSON[] = "application/json";

/* ---- small answers --------------------------------------------------------------------------------- */

static void count_bad(struct hub *h, const char *reason)
{
    for (int i = 0; i < HUB_MAX_REASONS; i++) {
        if (!h->counters.bad[i].name)
            h->counters.bad[i].name = reason;
        if (strcmp(h->counters.bad[i].name, reason) == 0) {
            h->counters.bad[i].n++;
            return;
        }
    }
}

static void reply_buf(struct http_exchange *x, int status, struct buf *body)
{
    http_reply(x, status, JSON, buf_str(body));
    buf_fini(body);
}

static void reply_error(struct http_exchange *x, const struct openai_error *e)
{
    struct buf body = {0};
    openai_write_error(e, &body);
    if (e->status == 429 || e->status == 503) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", HUB_RETRY_AFTER_S);
        http_add_header(x, "Retry-After", seconds);
    }
    reply_buf(x, e->status, &body);
}

static void on_refused(void *ud, int status, const char *why, struct buf *body)
{
    struct openai_error e;
    openai_refuse(&e, status == 413 ? "too_large" : "http", "", "%s", why);
    if (status == 401 || status == 403) {
        e.reason = status == 401 ? "no_api_key" : "api_key_denied";
        e.code = status == 401 ? "invalid_api_key" : "insufficient_permissions";
    }
    e.status = status;
    count_bad(ud, e.reason);
    openai_write_error(&e, body);
}

/* ---- a request's end ---------------------------------------------------------------------------------- */

static struct hub_request *find(const struct hub *h, uint64_t seq)
{
    for (struct list *l = h->requests.next; l != &h->requests; l = l->next) {
        struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
        if (r->request.seq == seq)
            return r;
    }
    return NULL;
}

static void forget(struct hub *h, struct hub_request *r, enum hub_outcome outcome)
{
    access_end(&r->key, (int64_t)(r->request.prompt.len + r->request.output.len), clock_now_ns());
    h->counters.outcomes[outcome]++;
    h->counters.output_tokens += (int64_t)r->request.output.len;
    if (outcome == HUB_OK)
        stats_record(&h->counters.request_us, (clock_now_ns() - r->received_ns) / CLOCK_US);
    h->n_requests--;
    list_remove(&r->link);
    request_fini(&r->request);
    mem_free(r);
}

static void cancel_seq(struct hub *h, uint64_t seq)
{
    struct sched_event e = {.kind = SCHED_CANCEL, .seq = seq};
    hub_event(h, &e);
}

static void on_gone(void *ud, struct http_exchange *x)
{
    struct hub *h = ud;
    struct hub_request *r = http_user(x);
    if (!r)
        return;
    cancel_seq(h, r->request.seq);
    forget(h, r, HUB_CANCELLED);
    hub_run(h);
}

/* ---- delivery ------------------------------------------------------------------------------------------ */

static void begin_stream(struct hub_request *r)
{
    if (r->begun)
        return;
    r->begun = true;
    http_add_header(r->exchange, "Cache-Control", "no-cache");
    http_add_header(r->exchange, "X-Accel-Buffering", "no");
    http_stream_begin(r->exchange, 200, "text/event-stream");
}

/* false if the client lets too much pile up: it is cut off and the request forgotten. */
static bool write_stream(struct hub *h, struct hub_request *r, struct str text)
{
    begin_stream(r);
    r->written_ns = clock_now_ns();
    if (http_stream_write(r->exchange, text) <= HUB_UNREAD_BYTES)
        return true;
    log_warn("client.too_slow", "request=%s", r->request.id);
    http_abort(r->exchange);
    cancel_seq(h, r->request.seq);
    forget(h, r, HUB_CANCELLED);
    return false;
}

static void deliver_events(struct hub *h, struct hub_request *r)
{
    struct buf text = {0};
    openai_write_events(&h->model, &r->request, &text);
    bool goes_on = true;
    if (text.len > 0) {
        request_sent(&r->request);
        goes_on = write_stream(h, r, buf_str(&text));
    }
    buf_fini(&text);
    if (goes_on && r->request.state == REQUEST_DONE) {
        http_stream_end(r->exchange);
        forget(h, r, HUB_OK);
    }
}

static void deliver(struct hub *h, struct hub_request *r)
{
    if (r->request.streams) {
        deliver_events(h, r);
    } else if (r->request.state == REQUEST_DONE) {
        struct buf body = {0};
        openai_write_reply(&h->model, &r->request, &body);
        reply_buf(r->exchange, 200, &body);
        forget(h, r, HUB_OK);
    }
}

void hub_started(struct hub *h, uint64_t seq)
{
    struct hub_request *r = find(h, seq);
    must(r);
    request_started(&r->request);
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

void hub_token(struct hub *h, uint64_t seq, const struct sampled *sampled, enum sched_finish finish)
{
    struct hub_request *r = find(h, seq);
    must(r);
    if (r->request.output.len == 0)
        stats_record(&h->counters.first_token_us, (clock_now_ns() - r->received_ns) / CLOCK_US);
    bool over = request_token(&r->request, sampled, finish);
    /* A stop string is the request's own end: the scheduler is to hear of it. */
    if (over && finish == SCHED_GOES_ON)
        cancel_seq(h, seq);
    deliver(h, r);
}

void hub_failed(struct hub *h, uint64_t seq, int code, const char *text)
{
    struct hub_request *r = find(h, seq);
    must(r);
    struct openai_error e;
    openai_error_of(&e, code, text);
    request_failed(&r->request, code, text);
    bool refused = code == E_BUSY || code == E_RANGE;
    if (!refused)
        log_warn("request.failed", "request=%s code=%s why=%s", r->request.id, err_name(code),
                 log_quote(text).text);
    if (r->begun) {
        struct buf event = {0};
        openai_write_error_event(&e, &event);
        http_stream_write(r->exchange, buf_str(&event));
        http_stream_end(r->exchange);
        buf_fini(&event);
    } else {
        reply_error(r->exchange, &e);
    }
    forget(h, r, refused ? HUB_REFUSED : HUB_FAILED);
}

void hub_http_tick(struct hub *h, int64_t now_ns)
{
    for (struct list *l = h->requests.next, *next; l != &h->requests; l = next) {
        next = l->next;
        struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
        if (r->request.streams && now_ns - r->written_ns >= HUB_PING_S * CLOCK_S)
            write_stream(h, r, STR(": ping\n\n"));
    }
}

/* ---- keys and their limits ------------------------------------------------------------------------------ */

static struct access_key *key_of(struct hub *h, const struct http_exchange *x)
{
    return access_find(h->access, http_request_header(x, "Authorization"),
                       http_request_header(x, "x-api-key"));
}

static int admit(void *ud, struct http_exchange *x, const char *path, const char **why)
{
    struct hub *h = ud;
    int status = access_status(h->access, key_of(h, x), access_level_of(path));
    if (status == 401)
        http_add_header(x, "WWW-Authenticate", "Bearer");
    if (status)
        *why = access_why(status);
    return status;
}

/* The request counts against its key, or is answered 429. */
static bool begin_for_key(struct hub *h, struct http_exchange *x, struct access_key **key)
{
    struct openai_error e;
    struct err why = {0};
    int64_t retry_s;
    *key = key_of(h, x);
    if (access_begin(*key, clock_now_ns(), &retry_s, &why) == 0)
        return true;
    openai_refuse(&e, "limit", "", "%s; try again in %lld s", why.text, (long long)retry_s);
    e.status = 429;
    e.type = "rate_limit_error";
    e.code = "rate_limit_exceeded";
    count_bad(h, e.reason);
    h->counters.outcomes[HUB_REFUSED]++;
    char seconds[24];
    snprintf(seconds, sizeof seconds, "%lld", (long long)retry_s);
    http_add_header(x, "Retry-After", seconds);
    struct buf body = {0};
    openai_write_error(&e, &body);
    reply_buf(x, e.status, &body);
    return false;
}

/* ---- submission ----------------------------------------------------------------------------------------- */

/* The client's wish within what the context and the KV cache can hold. */
static int limit_tokens(const struct hub *h, struct request *r, struct openai_error *e)
{
    uint64_t room = sched_capacity_tokens(&h->sched);
    if (r->prompt.len > room) {
        openai_refuse(e, "context", "prompt",
                      "the prompt has %zu tokens; the KV cache of this cluster holds %" PRIu64,
                      r->prompt.len, room);
        e->code = "context_length_exceeded";
        return E_INVALID;
    }
    uint64_t most = (uint64_t)h->model_config.max_positions - r->prompt.len;
    /* The last token is never fed, so it needs no place. */
    if (room - r->prompt.len + 1 < most)
        most = room - r->prompt.len + 1;
    if (r->max_tokens == 0)
        r->max_tokens = (uint32_t)h->config->request_max_tokens;
    if (r->max_tokens > most)
        r->max_tokens = (uint32_t)most;
    return 0;
}

static void submit(struct hub *h, struct hub_request *r)
{
    struct request *q = &r->request;
    h->counters.prompt_tokens += (int64_t)q->prompt.len;
    request_queued(q);
    struct sched_event e = {
        .kind = SCHED_SUBMIT,
        .now_ns = r->received_ns,
        .submit = {.seq = q->seq,
                   .prompt = q->prompt.ids,
                   .output = &q->output,
                   .n_prompt = (uint32_t)q->prompt.len,
                   .max_tokens = q->max_tokens,
                   .sampling = &q->sampling,
                   .stop_ids = h->stop_ids,
                   .n_stop_ids = q->ignores_eos ? 0 : h->n_stop_ids,
                   .deadline_ns = r->received_ns + h->config->request_timeout_ns}};
    hub_event(h, &e);
    hub_run(h);
}

static void generate(struct hub *h, struct http_exchange *x, const struct http_message *m,
                     enum request_kind kind)
{
    struct openai_error e;
    struct access_key *key;
    if (!begin_for_key(h, x, &key))
        return;
    struct hub_request *r = mem_alloc(sizeof *r);
    list_init(&r->link);
    r->key = key;
    r->exchange = x;
    r->received_ns = r->written_ns = clock_now_ns();
    request_init(&r->request, kind, h->id_base + ++h->n_ids, clock_unix_us() / 1000000);
    http_add_header(x, "X-Request-Id", r->request.id);
    int rc = kind == REQUEST_CHAT ? openai_parse_chat(&h->model, m->body, &r->request, &e)
                                  : openai_parse_completion(&h->model, m->body, &r->request, &e);
    if (rc == 0 && !h->ready) {
        rc = E_UNAVAILABLE;
        openai_error_of(&e, rc, h->why_not);
    }
    if (rc == 0)
        rc = limit_tokens(h, &r->request, &e);
    if (rc < 0) {
        count_bad(h, e.reason);
        h->counters.outcomes[HUB_REFUSED]++;
        reply_error(x, &e);
        access_end(&r->key, 0, clock_now_ns());
        request_fini(&r->request);
        mem_free(r);
        return;
    }
    http_set_user(x, r);
    list_push_back(&h->requests, &r->link);
    h->n_requests++;
    submit(h, r);
}

/* ---- routes ------------------------------------------------------------------------------------------------ */

static void chat(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    generate(h, x, m, REQUEST_CHAT);
}

static void completion(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    generate(h, x, m, REQUEST_COMPLETION);
}

static void models(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    struct buf body = {0};
    (void)m;
    openai_write_models(&h->model, &body);
    reply_buf(x, 200, &body);
}

static void health(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    (void)h;
    (void)m;
    http_reply(x, 200, JSON, STR("{\"status\":\"ok\"}"));
}

static void ready(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    struct buf body = {0};
    (void)m;
    admin_ready(h, &body);
    reply_buf(x, h->ready ? 200 : 503, &body);
}

static void cluster(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    struct buf body = {0};
    (void)m;
    admin_cluster(h, &body);
    reply_buf(x, 200, &body);
}

static void metrics(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    struct buf body = {0};
    (void)m;
    admin_metrics(h, &body);
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", buf_str(&body));
    buf_fini(&body);
}

static const struct {
    const char *path, *method;
    void (*answer)(struct hub *h, struct http_exchange *x, const struct http_message *m);
} routes[] = {
    {"/v1/chat/completions", "POST", chat},
    {"/v1/completions", "POST", completion},
    {"/v1/models", "GET", models},
    {"/health", "GET", health},
    {"/ready", "GET", ready},
    {"/cluster", "GET", cluster},
    {"/metrics", "GET", metrics},
};

static bool is_method(const struct http_message *m, const char *method)
{
    return strcmp(m->method, method) == 0 ||
           (strcmp(method, "GET") == 0 && strcmp(m->method, "HEAD") == 0);
}

static void not_found(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    static const char prefix[] = "/v1/models/";
    struct openai_error e;
    if (strncmp(m->path, prefix, sizeof prefix - 1) == 0 && is_method(m, "GET")) {
        struct str name = str_of(m->path + sizeof prefix - 1);
        if (name.len > 0 && openai_is_model(&h->model, name)) {
            struct buf body = {0};
            openai_write_model(&h->model, &body);
            reply_buf(x, 200, &body);
            return;
        }
        openai_refuse(&e, "model", "model",
                      "the model \"%.80s\" does not exist; this server has \"%s\"", name.ptr,
                      h->model.name);
        e.code = "model_not_found";
    } else {
        openai_refuse(&e, "path", "", "there is nothing at %s %.200s", m->method, m->path);
    }
    e.status = 404;
    count_bad(h, e.reason);
    reply_error(x, &e);
}

static void on_request(void *ud, struct http_exchange *x, const struct http_message *m)
{
    struct hub *h = ud;
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (strcmp(m->path, routes[i].path) != 0)
            continue;
        if (is_method(m, routes[i].method)) {
            routes[i].answer(h, x, m);
            return;
        }
        struct openai_error e;
        openai_refuse(&e, "method", "", "%s takes %s, not %.20s", m->path, routes[i].method,
                      m->method);
        e.status = 405;
        count_bad(h, e.reason);
        http_add_header(x, "Allow", routes[i].method);
        reply_error(x, &e);
        return;
    }
    not_found(h, x, m);
}

int hub_http_open(struct hub *h, struct err *e)
{
    const struct coordinator_config *c = h->config;
    struct http_options o = {.host = c->http_host,
                             .port = (int)c->http_port,
                             .max_body_bytes = (size_t)c->http_max_body,
                             .max_connections = (int)c->http_max_connections,
                             .idle_timeout_ns = c->http_idle_timeout_ns,
                             .on_request = on_request,
                             .admit = admit,
                             .on_gone = on_gone,
                             .on_refused = on_refused,
                             .ud = h};
    int rc = access_open(c->api_keys_file, clock_now_ns(), &h->access, e);
    if (rc == 0)
        rc = http_open(h->loop, &o, &h->http, e);
    if (rc < 0)
        return rc;
    log_info("http.ready", "url=%s", http_url(h->http));
    return 0;
}
