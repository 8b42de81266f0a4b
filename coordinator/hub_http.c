/* coordinator/hub_http.c - clients: routes and admission (steps 2 and 3 of a token's path); see
 * hub.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "coordinator/anthropic.h"
#include "coordinator/dialect.h"
#include "coordinator/hub_state.h"
#include "coordinator/web.h"

static const char JSON[] = "application/json";
enum { MAX_KEY_BYTES = 200 };

/* ---- small answers --------------------------------------------------------------------------------- */

void hub_count_bad(struct hub *h, const char *reason)
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

void hub_reply_error(struct http_exchange *x, const struct openai_error *e)
{
    struct buf body = {0};
    dialect_write_path_error(http_path(x), e, &body);
    if (e->status == 429 || e->status == 503) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", HUB_RETRY_AFTER_S);
        http_add_header(x, "Retry-After", seconds);
    }
    reply_buf(x, e->status, &body);
}

static void on_refused(void *ud, const struct http_exchange *x, int status, const char *why,
                       struct buf *body)
{
    struct openai_error e;
    openai_refuse(&e, status == 413 ? "too_large" : "http", "", "%s", why);
    if (status >= 500) {
        e.reason = "connections";
        e.type = "server_error";
        e.code = "too_many_connections";
    }
    if (status == 401 || status == 403) {
        e.reason = status == 401 ? "no_api_key" : "api_key_denied";
        e.code = status == 401 ? "invalid_api_key" : "insufficient_permissions";
    }
    e.status = status;
    hub_count_bad(ud, e.reason);
    dialect_write_path_error(http_path(x), &e, body);
}

/* ---- keys and their limits ------------------------------------------------------------------------------ */

static struct access_key *key_of(struct hub *h, const struct http_exchange *x)
{
    return access_find(h->access, http_request_header(x, "Authorization"),
                       http_request_header(x, "x-api-key"));
}

static int admit_headers(void *ud, struct http_exchange *x, const char *path, const char **why)
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
    hub_count_bad(h, e.reason);
    h->counters.outcomes[HUB_REFUSED]++;
    char seconds[24];
    snprintf(seconds, sizeof seconds, "%lld", (long long)retry_s);
    http_add_header(x, "Retry-After", seconds);
    struct buf body = {0};
    dialect_write_path_error(http_path(x), &e, &body);
    reply_buf(x, e.status, &body);
    return false;
}

/* ---- submission ----------------------------------------------------------------------------------------- */

/* The client's wish within what the context and the KV cache can hold: one limit for all choices, which the
 * longest prompt sets. */
static int limit_tokens(const struct hub *h, struct request *r, struct openai_error *e)
{
    uint64_t room = sched_capacity_tokens(&h->sched), longest = 0;
    for (const struct request *c = r; c; c = c->next)
        longest = c->prompt.len > longest ? c->prompt.len : longest;
    if (longest > room) {
        openai_refuse(e, "context", "prompt",
                      "the prompt has %" PRIu64
                      " tokens; the KV cache of this cluster holds %" PRIu64
                      " (attention.kv_bytes)",
                      longest, room);
        e->code = "context_length_exceeded";
        return E_INVALID;
    }
    uint64_t most = (uint64_t)h->model_config.max_positions - longest;
    /* The last token is never fed, so it needs no place. */
    if (room - longest + 1 < most)
        most = room - longest + 1;
    if (r->max_tokens == 0)
        r->max_tokens = (uint32_t)h->config->request_max_tokens;
    if (r->max_tokens > most)
        r->max_tokens = (uint32_t)most;
    for (struct request *c = r->next; c; c = c->next)
        c->max_tokens = r->max_tokens;
    return 0;
}

/* More than the queue holds would be refused as busy for ever. */
static int limit_choices(const struct hub *h, const struct request *r, struct openai_error *e)
{
    int64_t most = h->config->request_queue_limit * 3 / 4; /* of one key: sched.h */
    if (r->n_choices == 1 || r->n_choices <= most)
        return 0;
    return openai_refuse(
        e, "range", r->n_tried > r->n_wanted ? "best_of" : "n",
        "the request asks for %d sequences; this server queues at most %lld of one "
        "key (request.queue_limit)",
        r->n_choices, (long long)most);
}

static void submit_choice(struct hub *h, const struct hub_request *r, struct request *q,
                          bool is_resumed)
{
    /* What an earlier coordinator left comes before the keys are read. */
    bool knows_keys = !h->access || access_has_keys(h->access);
    int raise = is_resumed && q->raise > 0 ? 0 : q->raise;
    struct sched_event e = {
        .kind = SCHED_SUBMIT,
        .now_ns = r->received_ns,
        .submit = {.seq = q->seq,
                   .prompt = q->prompt.ids,
                   .output = &q->output,
                   .is_resumed = is_resumed,
                   .n_prompt = (uint32_t)q->prompt.len,
                   .max_tokens = q->max_tokens,
                   .key = knows_keys ? r->owner : 0,
                   .share = access_share(r->access),
                   .priority = access_priority(r->access, raise),
                   .sampling = &q->sampling,
                   .stop_ids = h->stop_ids,
                   .n_stop_ids = q->ignores_eos ? 0 : h->n_stop_ids,
                   .deadline_ns = r->received_ns + h->config->request_timeout_ns}};
    hub_event(h, &e);
}

void hub_submit(struct hub *h, struct hub_request *r, bool is_resumed)
{
    uint64_t seq = r->request.seq, end = seq + (uint64_t)r->request.n_choices;
    h->counters.prompt_tokens += (int64_t)request_prompt_tokens(&r->request);
    /* A choice that is refused takes the request with it. */
    for (; seq < end && (r = hub_request_of(h, seq)); seq++) {
        struct request *q = request_choice(&r->request, seq);
        if (q->state != REQUEST_DONE)
            submit_choice(h, r, q, is_resumed);
    }
}

int hub_parse(const struct hub *h, struct str body, struct request *r, struct openai_error *e)
{
    return dialect_parse(&h->model, body, r, e);
}

/* Answers are shown to whoever has the credentials that they were asked for with. */
static uint64_t owner_of(const struct http_exchange *x)
{
    const char *credentials = http_request_header(x, "Authorization");
    if (!credentials)
        credentials = http_request_header(x, "x-api-key");
    return credentials ? XXH3_64bits(credentials, strlen(credentials)) : 0;
}

/* From Last-Event-ID on. */
static int attach_again(struct hub *h, struct hub_request *r, struct http_exchange *x,
                        struct openai_error *e)
{
    if (hub_attach(h, r, x, http_request_header(x, "Last-Event-ID")) == 0)
        return 0;
    return openai_refuse(e, "range", "Last-Event-ID",
                         "Last-Event-ID must be the id of an event of this stream: a number, or of "
                         "several choices one for each, joined by dots");
}

static void refuse(struct hub *h, struct http_exchange *x, const struct openai_error *e)
{
    hub_count_bad(h, e->reason);
    h->counters.outcomes[HUB_REFUSED]++;
    hub_reply_error(x, e);
}

/* The same key again: true if that was the answer. */
static bool answer_again(struct hub *h, struct http_exchange *x, const struct http_message *m,
                         enum request_kind kind, const char *key)
{
    struct openai_error e;
    struct hub_request *r = hub_request_by_key(h, owner_of(x), key);
    if (strlen(key) == 0 || strlen(key) > MAX_KEY_BYTES) {
        openai_refuse(&e, "range", "Idempotency-Key", "Idempotency-Key must have 1 to %d bytes",
                      MAX_KEY_BYTES);
        refuse(h, x, &e);
        return true;
    }
    if (!r)
        return false;
    if (r->request.kind != kind || !str_equal(buf_str(&r->body), m->body)) {
        openai_refuse(&e, "idempotency", "Idempotency-Key",
                      "this Idempotency-Key was used for another request");
        e.status = 409;
        e.code = "idempotency_key_reused";
        refuse(h, x, &e);
    } else if (attach_again(h, r, x, &e) < 0) {
        refuse(h, x, &e);
    }
    return true;
}

static int admit(struct hub *h, struct hub_request *r, const struct http_message *m,
                 struct openai_error *e)
{
    enum work_kind before = hub_work(h, WORK_READING);
    int rc = hub_parse(h, m->body, &r->request, e);
    hub_work(h, before);
    if (rc == 0 && !h->ready) {
        rc = E_UNAVAILABLE;
        openai_error_of(e, rc, h->why_not);
    }
    if (rc == 0)
        rc = limit_tokens(h, &r->request, e);
    if (rc == 0)
        rc = limit_choices(h, &r->request, e);
    if (rc == 0)
        rc = hub_log_admits(h, m->body.len, e);
    return rc;
}

/* Everything that generates: which dialect says the path. */
static void generate(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    struct openai_error e;
    enum request_kind kind;
    must(dialect_of_path(m->path, &kind));
    const char *key = http_request_header(x, "Idempotency-Key");
    if (key && answer_again(h, x, m, kind, key))
        return;
    struct access_key *access;
    if (!begin_for_key(h, x, &access))
        return;
    struct hub_request *r =
        hub_request_new(h, kind, h->id_base + ++h->n_ids, clock_unix_us() / 1000000);
    r->access = access;
    const char *client_id = hub_client_id(x);
    snprintf(r->client_id, sizeof r->client_id, "%s", client_id ? client_id : "");
    if (admit(h, r, m, &e) < 0) {
        hub_name_answer(x, &r->request);
        hub_request_free(h, &r);
        refuse(h, x, &e);
        return;
    }
    h->n_ids += (uint64_t)r->request.n_choices - 1; /* their sequences */
    request_queued(&r->request);
    log_debug("request.admitted",
              "request=%s client_id=%s choices=%d prompt_tokens=%zu max_tokens=%u", r->request.id,
              r->client_id, r->request.n_choices, request_prompt_tokens(&r->request),
              r->request.max_tokens);
    r->is_kept = h->journal || key;
    r->owner = owner_of(x);
    if (r->is_kept) {
        r->key = key ? mem_string(key) : NULL;
        buf_append_str(&r->body, m->body);
    }
    hub_log_request(h, r);
    must_zero(hub_attach(h, r, x, NULL));
    hub_submit(h, r, false);
    hub_run(h);
}

/* ---- routes ------------------------------------------------------------------------------------------------ */

static const char STREAMS[] = "/v1/streams/";

/* GET /v1/streams/{id}: the rest of an answer. */
static void stream_again(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    const char *id = m->path + sizeof STREAMS - 1;
    struct openai_error e;
    struct hub_request *r = hub_request_by_id(h, owner_of(x), id);
    if (!r) {
        openai_refuse(&e, "stream", "",
                      "there is no answer %.60s, or not any more: they are kept for a time%s", id,
                      h->leader ? "; what was begun under another coordinator is known here only "
                                  "if this one has a copy of its token log"
                                : "");
        e.status = 404;
    }
    if (!r || attach_again(h, r, x, &e) < 0) {
        hub_count_bad(h, e.reason);
        hub_reply_error(x, &e);
    }
}

static void answer_now(struct hub *h, struct http_exchange *x, struct buf *body, int rc,
                       const struct openai_error *e)
{
    if (rc == 0) {
        reply_buf(x, 200, body);
        return;
    }
    hub_count_bad(h, e->reason);
    hub_reply_error(x, e);
}

/* POST /v1/messages/count_tokens */
static void count_tokens(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    struct openai_error e;
    struct request r;
    struct buf body = {0};
    request_init(&r, REQUEST_MESSAGES, 0, 0);
    int rc = anthropic_parse_count(&h->model, m->body, &r, &e);
    if (rc == 0)
        anthropic_write_count(&r, &body);
    answer_now(h, x, &body, rc, &e);
    request_fini(&r);
}

static void tokenize(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    struct openai_error e;
    struct buf body = {0};
    answer_now(h, x, &body, openai_tokenize(&h->model, m->body, &body, &e), &e);
}

static void detokenize(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    struct openai_error e;
    struct buf body = {0};
    answer_now(h, x, &body, openai_detokenize(&h->model, m->body, &body, &e), &e);
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
    struct buf body = {0};
    (void)m;
    admin_health(h, &body);
    reply_buf(x, 200, &body);
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
    hub_write_metrics(h, &body);
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", buf_str(&body));
    buf_fini(&body);
}

static const struct {
    const char *path, *method;
    void (*answer)(struct hub *h, struct http_exchange *x, const struct http_message *m);
} routes[] = {
    {"/v1/chat/completions", "POST", generate},
    {"/v1/completions", "POST", generate},
    {"/v1/messages", "POST", generate},
    {"/v1/responses", "POST", generate},
    {"/v1/messages/count_tokens", "POST", count_tokens},
    {"/tokenize", "POST", tokenize},
    {"/detokenize", "POST", detokenize},
    {"/v1/models", "GET", models},
    {"/health", "GET", health},
    {"/ready", "GET", ready},
    {"/cluster", "GET", cluster},
    {"/metrics", "GET", metrics},
    {"/admin/drain", "POST", hub_admin_drain},
    {"/admin/heat", "GET", hub_admin_heat},
    {"/admin/events", "GET", hub_admin_events},
    {"/debug/trace", "GET", hub_trace_ask},
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
    hub_count_bad(h, e.reason);
    hub_reply_error(x, &e);
}

/* true: it was one of the pages' files. */
static bool page(struct http_exchange *x, const char *path)
{
    struct web_file file;
    if (!web_find(path, &file))
        return false;
    http_add_header(x, "Content-Security-Policy", web_policy);
    http_add_header(x, "X-Content-Type-Options", "nosniff");
    http_add_header(x, "Referrer-Policy", "no-referrer");
    http_add_header(x, "Cache-Control", "no-cache");
    http_reply(x, 200, file.content_type, file.data);
    return true;
}

/* What only the leader can answer.  No redirect: clients drop their API key on the way to
 * another origin, while 503 with Retry-After is what they and load balancers try again. */
static bool is_for_leader(const struct http_message *m)
{
    static const char models[] = "/v1/models";
    return (strncmp(m->path, "/v1/", 4) == 0 && strncmp(m->path, models, sizeof models - 1) != 0) ||
           strncmp(m->path, "/admin/", 7) == 0;
}

static void point_to_leader(struct hub *h, struct http_exchange *x)
{
    struct openai_error e;
    const char *url = hub_leader_url(h);
    openai_error_of(&e, E_UNAVAILABLE, h->why_not);
    e.code = "not_the_leader";
    if (url[0])
        http_add_header(x, "X-Polymath-Leader", url);
    refuse(h, x, &e);
}

static void on_request(void *ud, struct http_exchange *x, const struct http_message *m)
{
    struct hub *h = ud;
    if (!h->leads && is_for_leader(m)) {
        point_to_leader(h, x);
        return;
    }
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
        hub_count_bad(h, e.reason);
        http_add_header(x, "Allow", routes[i].method);
        hub_reply_error(x, &e);
        return;
    }
    if (strncmp(m->path, STREAMS, sizeof STREAMS - 1) == 0 && is_method(m, "GET"))
        stream_again(h, x, m);
    else if (is_method(m, "GET") && page(x, m->path))
        return;
    else
        not_found(h, x, m);
}

static void on_gone(void *ud, struct http_exchange *x)
{
    if (!hub_trace_gone(ud, x))
        hub_client_gone(ud, x);
}

int hub_http_open(struct hub *h, struct err *e)
{
    const struct coordinator_config *c = h->config;
    struct http_options o = {.host = c->http_host,
                             .port = (int)c->http_port,
                             .max_body_bytes = (size_t)c->http_max_body,
                             .max_connections = (int)c->http_max_connections,
                             .idle_timeout_ns = c->http_idle_timeout_ns,
                             .request_ns = c->http_request_ns,
                             .on_request = on_request,
                             .admit = admit_headers,
                             .on_gone = on_gone,
                             .on_refused = on_refused,
                             .work = &h->work,
                             .ud = h};
    int rc = http_open(h->loop, &o, &h->http, e);
    if (rc < 0)
        return rc;
    log_info("http.ready", "url=%s", http_url(h->http));
    return 0;
}
