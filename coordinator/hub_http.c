/* coordinator/hub_http.c - clients: routes and small answers; see hub.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "coordinator/dialect.h"
#include "coordinator/hub_state.h"
#include "coordinator/web.h"

static const char JSON[] = "application/json";

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

void hub_refuse(struct hub *h, struct http_exchange *x, const struct openai_error *e)
{
    hub_count_bad(h, e->reason);
    h->counters.outcomes[HUB_REFUSED]++;
    hub_reply_error(x, e);
}

/* ---- keys and their limits ------------------------------------------------------------------------------ */

struct access_key *hub_key_of(struct hub *h, const struct http_exchange *x)
{
    return access_find(h->access, http_request_header(x, "Authorization"),
                       http_request_header(x, "x-api-key"));
}

static int admit_headers(void *ud, struct http_exchange *x, const char *path, const char **why)
{
    struct hub *h = ud;
    int status = access_status(h->access, hub_key_of(h, x), access_level_of(path));
    if (status == 401)
        http_add_header(x, "WWW-Authenticate", "Bearer");
    if (status)
        *why = access_why(status);
    return status;
}

/* ---- routes ------------------------------------------------------------------------------------------------ */

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
    {"/v1/chat/completions", "POST", hub_admit_generate},
    {"/v1/completions", "POST", hub_admit_generate},
    {"/v1/messages", "POST", hub_admit_generate},
    {"/v1/responses", "POST", hub_admit_generate},
    {"/v1/messages/count_tokens", "POST", hub_admit_count_tokens},
    {"/tokenize", "POST", hub_admit_tokenize},
    {"/detokenize", "POST", hub_admit_detokenize},
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

void hub_point_to_leader(struct hub *h, struct http_exchange *x)
{
    struct openai_error e;
    const char *url = hub_leader_url(h);
    openai_error_of(&e, E_UNAVAILABLE, h->why_not);
    e.code = "not_the_leader";
    if (url[0])
        http_add_header(x, "X-Polymath-Leader", url);
    hub_refuse(h, x, &e);
}

static void on_request(void *ud, struct http_exchange *x, const struct http_message *m)
{
    struct hub *h = ud;
    if (!h->leads && is_for_leader(m)) {
        hub_point_to_leader(h, x);
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
    if (strncmp(m->path, HUB_STREAMS, sizeof HUB_STREAMS - 1) == 0 && is_method(m, "GET"))
        hub_admit_again(h, x, m);
    else if (is_method(m, "GET") && page(x, m->path))
        return;
    else
        not_found(h, x, m);
}

static void on_gone(void *ud, struct http_exchange *x)
{
    if (!hub_trace_gone(ud, x) && !hub_admit_gone(ud, x))
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
