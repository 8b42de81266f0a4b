/* coordinator/hub_admit.c - requests on their way in (steps 2 and 3 of a token's path): limits, reading,
 * admission; see hub.h.
 *
 * What a body means is found out by the preparer's threads (prepare.h), which read the model's words and
 * nothing else of the hub's; what is then allowed is decided here, with the state of that moment.  A request
 * has no number before it is read, and no place in any list but this file's. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "coordinator/anthropic.h"
#include "coordinator/dialect.h"
#include "coordinator/hub_state.h"

enum { MAX_KEY_BYTES = 200 };

/* A body that is being read.  `read` is the preparer's; the rest is the loop's. */
struct admission {
    struct list link; /* in hub.admissions */
    struct prepare_job job;
    struct hub *hub;
    struct http_exchange *exchange; /* NULL: it hung up */
    struct access_key *access;      /* whose limits it counts against */
    void (*finish)(struct admission *a);
    int64_t received_ns;
    bool was_ready; /* the cluster, when it came */
    struct reading {
        const struct openai_model *model;
        int (*make)(struct reading *r);
        struct buf body;
        struct request request;
        struct buf answer; /* of what is an answer in itself */
        int rc;
        int64_t ns; /* of the processor's time */
        struct openai_error error;
    } read;
};

/* ---- keys and their limits --------------------------------------------------------------- */

/* The request counts against its key, or is answered 429. */
static bool begin_for_key(struct hub *h, struct http_exchange *x, struct access_key **key)
{
    struct openai_error e;
    struct err why = {0};
    int64_t retry_s;
    *key = hub_key_of(h, x);
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
    http_reply(x, e.status, "application/json", buf_str(&body));
    buf_fini(&body);
    return false;
}

/* ---- limits and submission ---------------------------------------------------------------- */

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
    int more = access_priority(r->access, raise) - access_priority(r->access, 0);
    if (q->names_tier)
        q->tier = more > 0 ? "priority" : more < 0 ? "flex" : "default";
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

/* The same key again: true if that was the answer. */
static bool answer_again(struct hub *h, struct http_exchange *x, struct str body,
                         enum request_kind kind, const char *key)
{
    struct openai_error e;
    struct hub_request *r = hub_request_by_key(h, owner_of(x), key);
    if (strlen(key) == 0 || strlen(key) > MAX_KEY_BYTES) {
        openai_refuse(&e, "range", "Idempotency-Key", "Idempotency-Key must have 1 to %d bytes",
                      MAX_KEY_BYTES);
        hub_refuse(h, x, &e);
        return true;
    }
    if (!r)
        return false;
    if (r->request.kind != kind || !str_equal(buf_str(&r->body), body)) {
        openai_refuse(&e, "idempotency", "Idempotency-Key",
                      "this Idempotency-Key was used for another request");
        e.status = 409;
        e.code = "idempotency_key_reused";
        hub_refuse(h, x, &e);
    } else if (attach_again(h, r, x, &e) < 0) {
        hub_refuse(h, x, &e);
    }
    return true;
}

/* ---- reading, on another thread --------------------------------------------------------- */

static int read_request(struct reading *r)
{
    return dialect_parse(r->model, buf_str(&r->body), &r->request, &r->error);
}

static int read_count(struct reading *r)
{
    int rc = anthropic_parse_count(r->model, buf_str(&r->body), &r->request, &r->error);
    if (rc == 0)
        anthropic_write_count(&r->request, &r->answer);
    return rc;
}

static int read_tokens(struct reading *r)
{
    return openai_tokenize(r->model, buf_str(&r->body), &r->answer, &r->error);
}

static int read_text(struct reading *r)
{
    return openai_detokenize(r->model, buf_str(&r->body), &r->answer, &r->error);
}

static void work(struct prepare_job *job)
{
    struct reading *r = &LIST_ITEM(job, struct admission, job)->read;
    int64_t from_ns = clock_thread_ns();
    r->rc = r->make(r);
    r->ns = clock_thread_ns() - from_ns;
}

/* ---- what is being read ------------------------------------------------------------------ */

static void free_admission(struct admission *a)
{
    struct hub *h = a->hub;
    access_end(&a->access, 0, clock_now_ns());
    list_remove(&a->link);
    h->n_admissions--;
    request_fini(&a->read.request);
    buf_fini(&a->read.body);
    buf_fini(&a->read.answer);
    mem_free(a);
}

static void on_prepared(void *ud, struct prepare_job *job)
{
    struct admission *a = LIST_ITEM(job, struct admission, job);
    struct hub *h = ud;
    work_add(&h->work, WORK_READING, a->read.ns);
    stats_record(&h->counters.prepare_us, (clock_now_ns() - a->received_ns) / CLOCK_US);
    if (a->exchange)
        a->finish(a);
    free_admission(a);
}

/* Reads the body; `access` counts until the end of it. */
static void begin(struct hub *h, struct http_exchange *x, const struct http_message *m,
                  enum request_kind kind, int (*make)(struct reading *r),
                  void (*finish)(struct admission *a), struct access_key *access)
{
    struct admission *a = mem_alloc(sizeof *a);
    *a = (struct admission){.job.work = work,
                            .hub = h,
                            .exchange = x,
                            .access = access,
                            .finish = finish,
                            .received_ns = clock_now_ns(),
                            .was_ready = h->ready,
                            .read = {.model = &h->model, .make = make}};
    request_init(&a->read.request, kind, 0, clock_unix_us() / 1000000);
    buf_append_str(&a->read.body, m->body);
    list_push_back(&h->admissions, &a->link);
    h->n_admissions++;
    if (prepare_give(h->preparer, &a->job, m->body.len, a->received_ns) == 0)
        return;
    struct openai_error e;
    openai_error_of(&e, E_BUSY, "too many requests wait to be read (request.queue_limit)");
    hub_refuse(h, x, &e);
    free_admission(a);
}

bool hub_admit_gone(struct hub *h, const struct http_exchange *x)
{
    for (struct list *l = h->admissions.next; l != &h->admissions; l = l->next) {
        struct admission *a = LIST_ITEM(l, struct admission, link);
        if (a->exchange != x)
            continue;
        h->counters.outcomes[HUB_CANCELLED]++;
        a->exchange = NULL;
        access_end(&a->access, 0, clock_now_ns());
        if (prepare_take_back(h->preparer, &a->job))
            free_admission(a);
        return true;
    }
    return false;
}

int hub_admit_open(struct hub *h, struct err *e)
{
    return prepare_open(h->loop, (int)h->config->request_queue_limit, on_prepared, h, &h->preparer,
                        e);
}

void hub_admit_close(struct hub *h)
{
    prepare_close(&h->preparer);
    while (!list_is_empty(&h->admissions))
        free_admission(LIST_ITEM(h->admissions.next, struct admission, link));
}

/* ---- admission ---------------------------------------------------------------------------- */

static int admit(struct hub *h, const struct admission *a, struct request *r,
                 struct openai_error *e)
{
    /* What was here when the end was announced is still done. */
    bool is_last = h->draining && a->was_ready;
    int rc = 0;
    if (!h->ready && !is_last) {
        rc = E_UNAVAILABLE;
        openai_error_of(e, rc, h->why_not);
    }
    if (rc == 0)
        rc = limit_tokens(h, r, e);
    if (rc == 0)
        rc = limit_choices(h, r, e);
    if (rc == 0)
        rc = hub_log_admits(h, a->read.body.len, e);
    return rc;
}

/* The request is taken over. */
static struct hub_request *take(struct hub *h, struct admission *a, const char *key)
{
    struct hub_request *r = hub_request_new(h, &a->read.request);
    const char *client_id = hub_client_id(a->exchange);
    snprintf(r->client_id, sizeof r->client_id, "%s", client_id ? client_id : "");
    r->received_ns = a->received_ns;
    r->access = a->access;
    a->access = NULL;
    h->n_ids += (uint64_t)r->request.n_choices - 1; /* their sequences */
    request_queued(&r->request);
    r->is_kept = h->journal || key;
    r->owner = owner_of(a->exchange);
    if (r->is_kept) {
        r->key = key ? mem_string(key) : NULL;
        r->body = a->read.body;
        a->read.body = (struct buf){0};
    }
    return r;
}

static void finish_request(struct admission *a)
{
    struct hub *h = a->hub;
    struct http_exchange *x = a->exchange;
    struct request *q = &a->read.request;
    const char *key = http_request_header(x, "Idempotency-Key");
    if (!h->leads) {
        hub_point_to_leader(h, x);
        return;
    }
    /* The same may have been asked twice while neither was read. */
    if (key && answer_again(h, x, buf_str(&a->read.body), q->kind, key))
        return;
    request_number(q, h->id_base + ++h->n_ids);
    if (a->read.rc == 0)
        a->read.rc = admit(h, a, q, &a->read.error);
    if (a->read.rc < 0) {
        hub_name_answer(x, q);
        hub_refuse(h, x, &a->read.error);
        return;
    }
    struct hub_request *r = take(h, a, key);
    log_debug("request.admitted",
              "request=%s client_id=%s choices=%d prompt_tokens=%zu max_tokens=%u", r->request.id,
              r->client_id, r->request.n_choices, request_prompt_tokens(&r->request),
              r->request.max_tokens);
    hub_log_request(h, r);
    must_zero(hub_attach(h, r, x, NULL));
    hub_submit(h, r, false);
    hub_run(h);
}

/* Everything that generates: which dialect says the path. */
void hub_admit_generate(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    enum request_kind kind;
    must(dialect_of_path(m->path, &kind));
    const char *key = http_request_header(x, "Idempotency-Key");
    if (key && answer_again(h, x, m->body, kind, key))
        return;
    struct access_key *access;
    if (begin_for_key(h, x, &access))
        begin(h, x, m, kind, read_request, finish_request, access);
}

/* ---- whole exchanges ------------------------------------------------------------------------ */

static void finish_answer(struct admission *a)
{
    if (a->read.rc == 0) {
        http_reply(a->exchange, 200, "application/json", buf_str(&a->read.answer));
        return;
    }
    hub_count_bad(a->hub, a->read.error.reason);
    hub_reply_error(a->exchange, &a->read.error);
}

/* POST /v1/messages/count_tokens */
void hub_admit_count_tokens(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    begin(h, x, m, REQUEST_MESSAGES, read_count, finish_answer, NULL);
}

void hub_admit_tokenize(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    begin(h, x, m, REQUEST_CHAT, read_tokens, finish_answer, NULL);
}

void hub_admit_detokenize(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    begin(h, x, m, REQUEST_CHAT, read_text, finish_answer, NULL);
}

/* ---- again -------------------------------------------------------------------------------- */

/* GET /v1/streams/{id}: the rest of an answer. */
void hub_admit_again(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    const char *id = m->path + sizeof HUB_STREAMS - 1;
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
