/* coordinator/hub_trace.c - GET /debug/trace?seconds=N: records the steps of the next seconds and answers
 * with a Chrome trace (trace.h); see hub.h.
 *
 * While it records, Step calls have a trace_id and attention sides answer with spans; otherwise none of
 * this costs anything.  The answer is written in pieces, so that the loop goes on.
 *
 * Log events: trace.begun, trace.done. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/must.h"
#include "coordinator/hub_state.h"
#include "coordinator/trace.h"

enum { MAX_SECONDS = 60, ITEMS_AT_ONCE = 2000, UNREAD_BYTES = 4 << 20 };

static void refuse(struct hub *h, struct http_exchange *x, int status, const char *why)
{
    struct openai_error e;
    openai_refuse(&e, "trace", "seconds", "%s", why);
    e.status = status;
    hub_count_bad(h, e.reason);
    hub_reply_error(x, &e);
}

void hub_trace_ask(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    (void)m;
    const char *text = http_query(x, "seconds");
    char *end = NULL;
    long seconds = text ? strtol(text, &end, 10) : 5;
    if ((end && (end == text || *end)) || seconds < 1 || seconds > MAX_SECONDS) {
        refuse(h, x, 400, "seconds is a number from 1 to 60: GET /debug/trace?seconds=5");
        return;
    }
    if (h->trace) {
        refuse(h, x, 409, "a trace is being recorded already: try again when it is over");
        return;
    }
    int64_t now_ns = clock_now_ns();
    h->trace = trace_new(now_ns);
    h->trace_reader = x;
    h->trace_until_ns = now_ns + seconds * CLOCK_S;
    log_info("trace.begun", "seconds=%ld", seconds);
}

static void end(struct hub *h)
{
    trace_free(&h->trace);
    h->trace_reader = NULL;
    h->trace_until_ns = 0;
}

bool hub_trace_is_on(const struct hub *h)
{
    return h->trace && h->trace_until_ns;
}

bool hub_trace_gone(struct hub *h, const struct http_exchange *x)
{
    if (!h->trace || h->trace_reader != x)
        return false;
    end(h);
    return true;
}

void hub_trace_tick(struct hub *h, int64_t now_ns)
{
    if (!h->trace || (hub_trace_is_on(h) && now_ns < h->trace_until_ns && !trace_is_full(h->trace)))
        return;
    struct http_exchange *x = h->trace_reader;
    if (h->trace_until_ns) {
        h->trace_until_ns = 0;
        http_add_header(x, "Cache-Control", "no-store");
        http_add_header(x, "Content-Disposition", "attachment; filename=\"polymath-trace.json\"");
        http_stream_begin(x, 200, "application/json");
    }
    /* A reader that is slower than this gets its next piece when it has taken some. */
    if (http_stream_write(x, STR("")) > UNREAD_BYTES)
        return;
    struct buf piece = {0};
    bool is_more = trace_write(h->trace, ITEMS_AT_ONCE, &piece);
    http_stream_write(x, buf_str(&piece));
    buf_fini(&piece);
    if (is_more)
        return;
    http_stream_end(x);
    end(h);
    log_info("trace.done", "seconds_since_boot=%lld", (long long)(now_ns / CLOCK_S));
}

void hub_trace_close(struct hub *h)
{
    trace_free(&h->trace);
}

static const char *name_of(void *ud, uint32_t node_id)
{
    const struct hub *h = ud;
    const struct node *n = members_find(&h->members, node_id);
    return n ? n->join.name : NULL;
}

void hub_trace_step(struct hub *h, const struct hub_attention *a, const struct reply *r,
                    const struct wire_step_report *report)
{
    if (!hub_trace_is_on(h))
        return;
    struct trace_step s = {.step = a->step,
                           .side = a->node_id,
                           .side_name = channel_peer_name(a->channel),
                           .sent_ns = a->sent_ns,
                           .done_ns = clock_now_ns(),
                           .queue_us = r->queue_us,
                           .compute_us = r->compute_us,
                           .n_rows = a->sent_rows,
                           .n_seqs = a->sent_seqs,
                           .code = r->code,
                           .report = report};
    memcpy(s.seqs, a->first_seqs, sizeof s.seqs);
    trace_add_step(h->trace, &s, name_of, h);
}

void hub_trace_request(struct hub *h, const struct hub_request *r)
{
    if (!hub_trace_is_on(h))
        return;
    const struct request *q = &r->request;
    trace_add_request(h->trace,
                      &(struct trace_request){.id = q->id,
                                              .client_id = r->client_id,
                                              .seq = q->seq,
                                              .received_ns = r->received_ns,
                                              .started_ns = r->started_ns,
                                              .first_ns = r->first_ns,
                                              .over_ns = clock_now_ns(),
                                              .n_prompt = (uint32_t)request_prompt_tokens(q),
                                              .n_output = (uint32_t)request_output_tokens(q),
                                              .code = q->code});
}
