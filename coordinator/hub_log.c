/* coordinator/hub_log.c - the token log on disk: what is written when, and what is made of it at
 * start; see hub.h, journal.h and token_log.h.
 *
 * The guarantee: a client that has been sent anything (the headers of a stream included) has its
 * request in the log; the request then ends with the answer that it would have had, whatever
 * becomes of this process.  The scheduler starts before that, so that the disk costs no time; what
 * comes out is held until the record is durable. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "coordinator/hub_state.h"

enum { BUCKETS = 4096, STANDBY_POLL_MS = 20 };

/* ---- writing ------------------------------------------------------------------------- */

/* Every snapshot must leave room for what comes before the next one. */
int hub_log_admits(const struct hub *h, size_t body_bytes, struct openai_error *e)
{
    if (!h->journal)
        return 0;
    const char *why = journal_why_stopped(h->journal);
    if (why) {
        char text[ERR_TEXT_BYTES];
        snprintf(text, sizeof text, "the token log has stopped: %.400s", why);
        openai_error_of(e, E_UNAVAILABLE, text);
        return E_UNAVAILABLE;
    }
    if (h->log_bytes + (int64_t)body_bytes < h->config->state_max_bytes / 2)
        return 0;
    openai_error_of(e, E_BUSY, "the token log is full (state.max_bytes)");
    return E_BUSY;
}

static bool is_durable(const struct hub *h, const struct hub_request *r)
{
    return !h->journal || (r->logged <= journal_durable(h->journal) &&
                           r->marked <= journal_durable(h->journal) && hub_ship_has(h, r->shipped));
}

/* Who does not lead any more may have written to a file that nobody will read. */
bool hub_log_has(const struct hub *h, const struct hub_request *r)
{
    return h->leads && is_durable(h, r);
}

static void write_request(const struct hub_request *r, struct buf *out)
{
    const struct request *q = &r->request;
    struct token_log_request record = {.seq = q->seq,
                                       .owner = r->owner,
                                       .kind = q->kind,
                                       .created_s = q->created_s,
                                       .seed = q->sampling.seed,
                                       .prompt_hash = token_log_prompt_hash(q),
                                       .max_tokens = q->max_tokens,
                                       .key = str_of(r->key),
                                       .body = buf_str(&r->body)};
    token_log_write_request(&record, out);
}

static void write_token(const struct hub_request *r, const struct request *choice, size_t i,
                        const struct sampled *sampled, struct buf *out)
{
    bool last = i + 1 == choice->output.len;
    struct token_log_token record = {.seq = r->request.seq,
                                     .index = (uint32_t)i,
                                     .finish = last ? choice->given : SCHED_GOES_ON,
                                     .is_full = choice->samples != NULL,
                                     .sampled = *sampled,
                                     .choice = (uint32_t)choice->index,
                                     .n_cached = choice->n_cached,
                                     .is_degraded =
                                         choice->is_degraded && i >= choice->degraded_from};
    token_log_write_token(&record, out);
}

static void write_end(const struct hub_request *r, enum token_log_outcome outcome, int64_t unix_us,
                      struct buf *out)
{
    struct token_log_end record = {.seq = r->request.seq,
                                   .outcome = outcome,
                                   .n_tokens = (uint32_t)request_output_tokens(&r->request),
                                   .unix_us = unix_us,
                                   .code = r->request.code,
                                   .text = str_of(r->request.error)};
    token_log_write_end(&record, out);
}

void hub_log_request(struct hub *h, struct hub_request *r)
{
    struct buf record = {0};
    if (!h->journal || !r->is_kept)
        return;
    write_request(r, &record);
    r->logged = journal_append(h->journal, TOKEN_LOG_REQUEST, buf_str(&record));
    r->shipped = hub_ship_add(h, TOKEN_LOG_REQUEST, buf_str(&record));
    h->log_bytes += (int64_t)record.len;
    buf_fini(&record);
}

void hub_log_token(struct hub *h, struct hub_request *r, const struct request *choice,
                   const struct sampled *sampled)
{
    struct buf record = {0};
    /* A log that has stopped need not remember what can be computed again. */
    if (!h->journal || !r->is_kept || journal_why_stopped(h->journal))
        return;
    write_token(r, choice, choice->output.len - 1, sampled, &record);
    uint64_t logged = journal_append(h->journal, TOKEN_LOG_TOKEN, buf_str(&record));
    uint64_t shipped = hub_ship_add(h, TOKEN_LOG_TOKEN, buf_str(&record));
    /* Without the experts that were left out it would not come again: it is said when it is safe. */
    if (choice->is_degraded) {
        r->marked = logged;
        r->shipped = shipped;
    }
    buf_fini(&record);
}

void hub_log_end(struct hub *h, const struct hub_request *r, enum token_log_outcome outcome)
{
    struct buf record = {0};
    if (!h->journal || !r->is_kept)
        return;
    write_end(r, outcome, clock_unix_us(), &record);
    journal_append(h->journal, TOKEN_LOG_END, buf_str(&record));
    hub_ship_add(h, TOKEN_LOG_END, buf_str(&record));
    buf_fini(&record);
}

/* ---- all of it --------------------------------------------------------------------------- */

static void put(struct buf *snapshot, enum token_log_type type, struct buf *record)
{
    records_put(snapshot, (uint8_t)type, buf_str(record));
    buf_reset(record);
}

static void put_model(const struct hub *h, struct buf *snapshot)
{
    char formats[FORMAT_SET_BYTES];
    struct token_log_model m = {
        .fingerprint = h->fingerprint,
        .formats = str_of(format_set_text(&h->formats, formats)),
        .combine = str_of(combine_name((enum combine_mode)h->config->weights.combine))};
    struct buf record = {0};
    token_log_write_model(&m, &record);
    put(snapshot, TOKEN_LOG_MODEL, &record);
    buf_fini(&record);
}

static void put_tokens(const struct hub_request *r, const struct request *choice,
                       struct buf *snapshot)
{
    struct buf record = {0};
    for (size_t i = 0; i < choice->output.len; i++) {
        struct sampled plain = {.token = choice->output.ids[i]};
        write_token(r, choice, i, choice->samples ? &choice->samples[i] : &plain, &record);
        put(snapshot, TOKEN_LOG_TOKEN, &record);
    }
    buf_fini(&record);
}

static void put_request(const struct hub_request *r, struct buf *snapshot)
{
    const struct request *q = &r->request;
    struct buf record = {0};
    write_request(r, &record);
    put(snapshot, TOKEN_LOG_REQUEST, &record);
    for (const struct request *c = q; c; c = c->next)
        put_tokens(r, c, snapshot);
    if (r->is_over) {
        write_end(r, q->state == REQUEST_FAILED ? TOKEN_LOG_FAILED : TOKEN_LOG_DONE, r->over_us,
                  &record);
        put(snapshot, TOKEN_LOG_END, &record);
    }
    buf_fini(&record);
}

void hub_log_snapshot(const struct hub *h, struct buf *snapshot)
{
    const struct list *lists[] = {&h->kept, &h->requests};
    put_model(h, snapshot);
    for (int i = 0; i < 2; i++)
        for (struct list *l = lists[i]->next; l != lists[i]; l = l->next) {
            const struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
            if (r->is_kept)
                put_request(r, snapshot);
        }
}

void hub_log_tick(struct hub *h)
{
    if (!h->leads || !h->journal || !journal_wants_rewrite(h->journal))
        return;
    struct buf snapshot = {0};
    hub_log_snapshot(h, &snapshot);
    journal_rewrite(h->journal, &snapshot);
}

/* ---- news from the journal ----------------------------------------------------------------- */

void hub_log_release(struct hub *h)
{
    struct list *lists[] = {&h->requests, &h->kept};
    for (int i = 0; i < 2; i++)
        for (struct list *l = lists[i]->next; l != lists[i]; l = l->next)
            hub_request_release(h, LIST_ITEM(l, struct hub_request, link));
}

static void on_durable(void *ud)
{
    hub_log_release(ud);
}

/* Who has been told nothing yet is told this.  The others are in the log. */
static void on_stopped(void *ud, const char *why)
{
    struct hub *h = ud;
    char text[ERR_TEXT_BYTES];
    snprintf(text, sizeof text, "the token log has stopped: %.400s", why);
    for (struct list *l = h->kept.next; l != &h->kept; l = l->next) {
        struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
        r->logged = r->shipped = r->marked = 0;
        hub_request_release(h, r);
    }
    for (struct list *l = h->requests.next, *next; l != &h->requests; l = next) {
        next = l->next;
        struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
        r->marked = 0;
        if (r->logged <= journal_durable(h->journal)) {
            hub_request_release(h, r);
            continue;
        }
        r->logged = r->shipped = 0;
        hub_request_stop(h, r);
        hub_request_unsay(r); /* tokens of an answer that cannot be asked for again */
        hub_request_fail(h, r, E_UNAVAILABLE, text);
    }
}

/* ---- at start ------------------------------------------------------------------------------- */

struct loading {
    struct hub *hub;
    struct hub_request *buckets[BUCKETS];
    bool is_other_model;
    int n_bad;
};

static struct hub_request **bucket_of(struct loading *g, uint64_t seq)
{
    return &g->buckets[(seq * 0x9e3779b97f4a7c15u) >> 52];
}

static struct hub_request *loaded(struct loading *g, uint64_t seq)
{
    struct hub_request *r = *bucket_of(g, seq);
    while (r && r->request.seq != seq)
        r = r->next;
    return r;
}

static void load_model(struct loading *g, const struct token_log_model *m)
{
    char formats[FORMAT_SET_BYTES];
    const struct hub *h = g->hub;
    const char *combine = combine_name((enum combine_mode)h->config->weights.combine);
    g->is_other_model = m->fingerprint != h->fingerprint ||
                        !str_equal(m->formats, str_of(format_set_text(&h->formats, formats))) ||
                        !str_equal(m->combine, str_of(combine));
}

/* As it was admitted, up to its first token. */
static void load_request(struct loading *g, const struct token_log_request *q)
{
    struct hub *h = g->hub;
    struct openai_error e;
    if (loaded(g, q->seq))
        return;
    struct request fresh;
    request_init(&fresh, q->kind, q->seq, q->created_s);
    struct hub_request *r = hub_request_new(h, &fresh);
    struct hub_request **bucket = bucket_of(g, q->seq);
    r->next = *bucket;
    *bucket = r;
    r->is_kept = true;
    r->owner = q->owner;
    r->key = q->key.len ? str_copy(q->key) : NULL;
    buf_append_str(&r->body, q->body);
    if (g->is_other_model) {
        request_failed(&r->request, E_ABORTED, "the cluster was started again with another model");
        return;
    }
    if (hub_parse(h, q->body, &r->request, &e) < 0 ||
        token_log_prompt_hash(&r->request) != q->prompt_hash) {
        request_failed(&r->request, E_ABORTED,
                       "this version of the coordinator reads the request otherwise");
        return;
    }
    request_repeat(&r->request, q->max_tokens, q->seed);
    for (struct request *c = &r->request; c; c = c->next)
        request_started(c);
}

static void load_token(struct loading *g, const struct token_log_token *t)
{
    struct hub_request *r = loaded(g, t->seq);
    struct request *q = r ? request_choice(&r->request, t->seq + t->choice) : NULL;
    if (!q || request_is_over(&r->request) || q->state == REQUEST_DONE ||
        t->index != q->output.len || t->index >= q->max_tokens)
        return;
    bool goes_on = t->finish == SCHED_GOES_ON && t->index + 1 < q->max_tokens;
    if (request_keeps_samples(q) != t->is_full || (!goes_on && t->finish == SCHED_GOES_ON) ||
        t->sampled.token >= g->hub->model_config.vocab_size)
        return;
    if (t->index == 0 && t->n_cached <= q->prompt.len)
        q->n_cached = t->n_cached;
    if (t->is_degraded && !q->is_degraded) {
        q->is_degraded = true;
        q->degraded_from = t->index;
    }
    hub_request_feed(g->hub, r, q, &t->sampled, t->finish);
}

static void load_end(struct loading *g, const struct token_log_end *e)
{
    struct hub *h = g->hub;
    struct hub_request *r = loaded(g, e->seq);
    if (!r || r->is_over)
        return;
    if (e->outcome == TOKEN_LOG_FAILED && !request_is_over(&r->request)) {
        char text[SCHED_TEXT_BYTES];
        snprintf(text, sizeof text, "%.*s", (int)e->text.len, e->text.ptr);
        request_failed(&r->request, e->code < 0 ? e->code : E_UNKNOWN, text);
    }
    if (e->outcome == TOKEN_LOG_FORGOTTEN || (g->is_other_model && e->outcome == TOKEN_LOG_DONE)) {
        struct hub_request **at = bucket_of(g, e->seq);
        while (*at != r)
            at = &(*at)->next;
        *at = r->next;
        hub_request_free(h, &r);
        return;
    }
    /* One whose tokens are not all here is computed again. */
    if (request_is_over(&r->request))
        hub_request_keep(h, r, e->unix_us);
}

static void load_record(void *ud, uint8_t type, struct str payload)
{
    struct loading *g = ud;
    union {
        struct token_log_model model;
        struct token_log_request request;
        struct token_log_token token;
        struct token_log_end end;
    } u;
    if (type == TOKEN_LOG_MODEL && token_log_read_model(payload, &u.model))
        load_model(g, &u.model);
    else if (type == TOKEN_LOG_REQUEST && token_log_read_request(payload, &u.request))
        load_request(g, &u.request);
    else if (type == TOKEN_LOG_TOKEN && token_log_read_token(payload, &u.token))
        load_token(g, &u.token);
    else if (type == TOKEN_LOG_END && token_log_read_end(payload, &u.end))
        load_end(g, &u.end);
    else
        g->n_bad++;
}

/* What is over without saying so is over now; the rest goes on. */
static void take_up(struct hub *h)
{
    int n_resumed = 0, n_kept = 0;
    for (struct list *l = h->kept.next; l != &h->kept; l = l->next)
        n_kept++;
    for (struct list *l = h->requests.next, *next; l != &h->requests; l = next) {
        next = l->next;
        struct hub_request *r = LIST_ITEM(l, struct hub_request, link);
        r->next = NULL;
        if (request_is_over(&r->request)) {
            hub_request_keep(h, r, clock_unix_us());
            continue;
        }
        n_resumed++;
        hub_submit(h, r, true);
    }
    if (n_resumed || n_kept)
        log_info("requests.resumed", "unfinished=%d finished=%d", n_resumed, n_kept);
}

/* A directory that coordinators share is taken from a leader that was; one's own is not. */
int hub_log_open_dir(struct hub *h, const struct journal_options *given, records_each *each,
                     void *ud, struct journal **out, struct err *e)
{
    const struct coordinator_config *c = h->config;
    struct journal_options o = *given;
    char host[64] = "", label[320] = "";
    if (gethostname(host, sizeof host - 1) < 0)
        host[0] = '\0';
    if (c->state_is_shared)
        hub_leader_label(h, label, sizeof label);
    char *holder =
        mem_format("coordinator %s, process %d on %s%s", c->node_name, (int)getpid(), host, label);
    o.dir = c->state_dir;
    o.holder = holder;
    o.led_through = label;
    o.syncs = c->state_syncs;
    o.delay_ns = c->state_delay_ns;
    o.max_bytes = c->state_max_bytes;
    int rc = journal_open(&o, each, ud, out, e);
    mem_free(holder);
    return rc;
}

/* A standby has nothing to do, and nobody knows it, before the directory is its own. */
static int open_or_wait(struct hub *h, struct loading *g, struct err *e)
{
    const struct journal_options o = {.on_durable = on_durable, .on_stopped = on_stopped, .ud = h};
    int rc = hub_log_open_dir(h, &o, load_record, g, &h->journal, e);
    if (rc == E_BUSY && h->config->state_waits && !h->leader)
        log_info("standby.waiting", "why=%s", log_quote(e->text).text);
    while (rc == E_BUSY && h->config->state_waits && !h->leader) {
        clock_sleep_until(clock_now_ns() + STANDBY_POLL_MS * CLOCK_MS);
        *e = (struct err){0};
        rc = hub_log_open_dir(h, &o, load_record, g, &h->journal, e);
    }
    return rc;
}

int hub_log_open(struct hub *h, struct err *e)
{
    if (!h->config->state_dir[0])
        return 0;
    struct loading *g = mem_alloc(sizeof *g);
    g->hub = h;
    int rc = open_or_wait(h, g, e);
    if (rc == 0 && g->n_bad > 0)
        log_warn("journal.unknown_records", "n=%d", g->n_bad);
    mem_free(g);
    if (rc == 0) {
        struct buf snapshot = {0};
        hub_log_snapshot(h, &snapshot);
        rc = journal_start(h->journal, h->loop, &snapshot, e);
        buf_fini(&snapshot);
    }
    if (rc < 0)
        return err_prefix(e, "state.dir");
    take_up(h);
    return 0;
}

void hub_log_close(struct hub *h)
{
    journal_close(&h->journal);
}
