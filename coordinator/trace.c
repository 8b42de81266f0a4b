/* coordinator/trace.c - see trace.h. */
#include "coordinator/trace.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"

enum { REQUESTS_PID = 1, STEPS_PID = 2, ENGINE_TID = 1, TRACKS = 16, MAX_NAMES = 1024 };

enum item_kind { ITEM_STEP, ITEM_SPAN, ITEM_REQUEST };

struct item {
    enum item_kind kind;
    uint32_t pid, tid;
    int64_t begin_us, length_us; /* begin: since the recording's */
    uint64_t step, queue_us, compute_us, bytes;
    uint32_t rows, layer, n_seqs;
    enum wire_span_kind span;
    int code;
    union {
        uint64_t seqs[TRACE_STEP_SEQS];
        struct {
            char id[TRACE_ID_BYTES], client_id[TRACE_ID_BYTES];
            int64_t started_us, first_us; /* after begin; -1: did not */
            uint32_t n_output;
        } request;
    };
};

/* The calls of one side at one node: how many at a time. */
struct tracks {
    uint32_t side, node;
    int64_t ends_us[TRACKS];
};

struct trace {
    int64_t begun_ns;
    struct item *items; /* [room] */
    size_t n_items, room;
    uint64_t n_lost; /* here and at the sides */
    struct {
        uint32_t node_id;
        bool is_side;
        char name[WIRE_NAME_BYTES];
    } names[MAX_NAMES];
    int n_names;
    struct tracks tracks[MAX_NAMES];
    int n_tracks;
    size_t n_written;
    bool is_begun;
};

struct trace *trace_new(int64_t now_ns)
{
    struct trace *t = mem_alloc(sizeof *t);
    t->begun_ns = now_ns;
    return t;
}

void trace_free(struct trace **tp)
{
    if (!*tp)
        return;
    mem_free((*tp)->items);
    mem_free(*tp);
    *tp = NULL;
}

bool trace_is_full(const struct trace *t)
{
    return t->n_items == TRACE_ITEMS;
}

/* NULL if there is no room. */
static struct item *add(struct trace *t, const struct item *item)
{
    if (trace_is_full(t)) {
        t->n_lost++;
        return NULL;
    }
    if (t->n_items == t->room) {
        t->room = t->room ? 2 * t->room : 1024;
        t->items = mem_resize(t->items, t->room * sizeof *t->items);
    }
    t->items[t->n_items] = *item;
    return &t->items[t->n_items++];
}

static int64_t since(const struct trace *t, int64_t ns)
{
    return (ns - t->begun_ns) / CLOCK_US;
}

static void name_node(struct trace *t, uint32_t node_id, const char *name, bool is_side)
{
    for (int i = 0; i < t->n_names; i++)
        if (t->names[i].node_id == node_id)
            return;
    if (t->n_names == MAX_NAMES)
        return;
    t->names[t->n_names].node_id = node_id;
    t->names[t->n_names].is_side = is_side;
    snprintf(t->names[t->n_names++].name, WIRE_NAME_BYTES, "%s", name ? name : "gone");
}

/* ---- recording ----------------------------------------------------------------------------- */

/* Spans come in the order of their ends, so whatever ended before this one begins is out of its
 * way. */
static uint32_t track_of(struct trace *t, uint32_t side, uint32_t node, int64_t begin_us,
                         int64_t end_us)
{
    struct tracks *found = NULL;
    for (int i = 0; i < t->n_tracks && !found; i++)
        if (t->tracks[i].side == side && t->tracks[i].node == node)
            found = &t->tracks[i];
    if (!found) {
        if (t->n_tracks == MAX_NAMES)
            return 0;
        found = &t->tracks[t->n_tracks++];
        *found = (struct tracks){.side = side, .node = node};
        for (int i = 0; i < TRACKS; i++)
            found->ends_us[i] = INT64_MIN;
    }
    int at = 0;
    while (at < TRACKS - 1 && found->ends_us[at] > begin_us)
        at++;
    found->ends_us[at] = end_us;
    return (uint32_t)(side * TRACKS) + (uint32_t)at + 1;
}

static void add_span(struct trace *t, const struct trace_step *s, const struct wire_span *w,
                     int64_t step_us)
{
    struct item item = {.kind = ITEM_SPAN,
                        .span = w->kind,
                        .pid = TRACE_NODE_PID + s->side,
                        .tid = ENGINE_TID,
                        .begin_us = step_us + (int64_t)w->begin_us,
                        .length_us = (int64_t)w->length_us,
                        .step = s->step,
                        .layer = w->layer,
                        .queue_us = w->queue_us,
                        .compute_us = w->compute_us,
                        .rows = w->rows,
                        .bytes = w->bytes,
                        .code = w->is_failed ? E_UNAVAILABLE : 0};
    if (w->kind == WIRE_SPAN_ROUND)
        item.tid = ENGINE_TID + 1 + w->lane;
    if (w->kind == WIRE_SPAN_CALL) {
        item.pid = TRACE_NODE_PID + w->node_id;
        item.tid = track_of(t, s->side, w->node_id, item.begin_us, item.begin_us + item.length_us);
    }
    add(t, &item);
}

void trace_add_step(struct trace *t, const struct trace_step *s,
                    const char *(*name_of)(void *ud, uint32_t node_id), void *ud)
{
    struct item item = {.kind = ITEM_STEP,
                        .pid = STEPS_PID,
                        .tid = s->side,
                        .begin_us = since(t, s->sent_ns),
                        .length_us = (s->done_ns - s->sent_ns) / CLOCK_US,
                        .step = s->step,
                        .rows = s->n_rows,
                        .n_seqs = s->n_seqs,
                        .code = s->code};
    uint64_t length_us = (uint64_t)item.length_us;
    item.compute_us = s->compute_us < length_us ? s->compute_us : length_us;
    uint64_t rest_us = length_us - item.compute_us;
    item.queue_us = s->queue_us < rest_us ? s->queue_us : rest_us;
    memcpy(item.seqs, s->seqs, sizeof item.seqs);
    name_node(t, s->side, s->side_name, true);
    add(t, &item);
    if (!s->report)
        return;
    int64_t wire_us = (int64_t)(rest_us - item.queue_us);
    int64_t step_us = item.begin_us + wire_us / 2 + (int64_t)item.queue_us;
    for (uint32_t i = 0; i < s->report->n_spans; i++) {
        const struct wire_span *w = &s->report->spans[i];
        if (w->kind == WIRE_SPAN_CALL)
            name_node(t, w->node_id, name_of(ud, w->node_id), false);
        add_span(t, s, w, step_us);
    }
    t->n_lost += s->report->spans_lost;
}

void trace_add_request(struct trace *t, const struct trace_request *r)
{
    struct item item = {.kind = ITEM_REQUEST,
                        .pid = REQUESTS_PID,
                        .tid = (uint32_t)(r->seq & 0x7fffffff),
                        .begin_us = since(t, r->received_ns),
                        .length_us = (r->over_ns - r->received_ns) / CLOCK_US,
                        .rows = r->n_prompt,
                        .code = r->code};
    struct item *kept = add(t, &item);
    if (!kept)
        return;
    kept->request.started_us = r->started_ns ? (r->started_ns - r->received_ns) / CLOCK_US : -1;
    kept->request.first_us = r->first_ns ? (r->first_ns - r->received_ns) / CLOCK_US : -1;
    kept->request.n_output = r->n_output;
    snprintf(kept->request.id, sizeof kept->request.id, "%s", r->id);
    snprintf(kept->request.client_id, sizeof kept->request.client_id, "%s", r->client_id);
}

/* ---- writing ------------------------------------------------------------------------------- */

/* Names come from nodes: quotes, backslashes and control characters do not belong into JSON. */
static void put_text(struct buf *out, const char *text)
{
    for (const char *c = text; *c; c++)
        buf_putc(out, *c == '"' || *c == '\\' || (unsigned char)*c < 0x20 || (signed char)*c < 0
                          ? '?'
                          : *c);
}

static void begin_event(struct trace *t, struct buf *out)
{
    buf_puts(out, t->is_begun ? ",\n" : "[\n");
    t->is_begun = true;
}

static void event(struct trace *t, struct buf *out, const struct item *i, const char *name,
                  int64_t begin_us, int64_t length_us)
{
    begin_event(t, out);
    buf_printf(out,
               "{\"name\":\"%s\",\"ph\":\"X\",\"pid\":%u,\"tid\":%u,\"ts\":%" PRId64
               ",\"dur\":%" PRId64,
               name, i->pid, i->tid, begin_us, length_us);
}

static void name_thread(struct trace *t, struct buf *out, uint32_t pid, uint32_t tid,
                        const char *what, const char *name)
{
    begin_event(t, out);
    buf_printf(out, "{\"name\":\"%s\",\"ph\":\"M\",\"pid\":%u,\"tid\":%u,\"args\":{\"name\":\"",
               what, pid, tid);
    put_text(out, name);
    buf_puts(out, "\"}}");
}

/* What a call consists of: wire, queue, compute, wire. */
static void write_parts(struct trace *t, struct buf *out, const struct item *i)
{
    int64_t wire_us = i->length_us - (int64_t)i->queue_us - (int64_t)i->compute_us;
    const struct {
        const char *name;
        int64_t us;
    } parts[] = {{"wire", wire_us / 2},
                 {"queue", (int64_t)i->queue_us},
                 {"compute", (int64_t)i->compute_us},
                 {"wire", wire_us - wire_us / 2}};
    int64_t at_us = i->begin_us;
    for (int k = 0; k < 4; k++) {
        if (parts[k].us > 0) {
            event(t, out, i, parts[k].name, at_us, parts[k].us);
            buf_puts(out, "}");
        }
        at_us += parts[k].us;
    }
}

static void write_step(struct trace *t, struct buf *out, const struct item *i)
{
    event(t, out, i, "step", i->begin_us, i->length_us);
    buf_printf(out,
               ",\"args\":{\"step\":%" PRIu64 ",\"rows\":%u,\"sequences\":%u,\"code\":\"%s\","
               "\"queue_us\":%" PRIu64 ",\"compute_us\":%" PRIu64 ",\"seqs\":[",
               i->step, i->rows, i->n_seqs, i->code ? err_name(i->code) : "OK", i->queue_us,
               i->compute_us);
    for (uint32_t k = 0; k < i->n_seqs && k < TRACE_STEP_SEQS; k++)
        buf_printf(out, "%s\"%016" PRIx64 "\"", k ? "," : "", i->seqs[k]);
    buf_puts(out, "]}}");
    write_parts(t, out, i);
}

static void write_span(struct trace *t, struct buf *out, const struct item *i)
{
    static const char *const names[WIRE_SPANS] = {"attention", "experts", "layer", "head"};
    char name[32];
    if (i->span == WIRE_SPAN_HEAD)
        snprintf(name, sizeof name, "head and sampling");
    else
        snprintf(name, sizeof name, "%s %u", names[i->span], i->layer);
    event(t, out, i, name, i->begin_us, i->length_us);
    buf_printf(out, ",\"args\":{\"step\":%" PRIu64 ",\"layer\":%u", i->step, i->layer);
    if (i->span == WIRE_SPAN_CALL)
        buf_printf(out,
                   ",\"rows\":%u,\"bytes\":%" PRIu64 ",\"queue_us\":%" PRIu64
                   ",\"compute_us\":%" PRIu64 ",\"wire_us\":%" PRId64 ",\"failed\":%s",
                   i->rows, i->bytes, i->queue_us, i->compute_us,
                   i->length_us - (int64_t)i->queue_us - (int64_t)i->compute_us,
                   i->code ? "true" : "false");
    buf_puts(out, "}}");
    if (i->span == WIRE_SPAN_CALL)
        write_parts(t, out, i);
}

static void write_request(struct trace *t, struct buf *out, const struct item *i)
{
    int64_t started_us = i->request.started_us, first_us = i->request.first_us;
    const struct {
        const char *name;
        int64_t from_us, to_us;
    } parts[] = {{"queue", 0, started_us < 0 ? i->length_us : started_us},
                 {"prefill", started_us, first_us < 0 ? i->length_us : first_us},
                 {"decode", first_us, i->length_us}};
    name_thread(t, out, i->pid, i->tid, "thread_name", i->request.id);
    event(t, out, i, "request", i->begin_us, i->length_us);
    buf_puts(out, ",\"args\":{\"id\":\"");
    put_text(out, i->request.id);
    buf_puts(out, "\",\"client_id\":\"");
    put_text(out, i->request.client_id);
    buf_printf(out, "\",\"prompt_tokens\":%u,\"output_tokens\":%u,\"code\":\"%s\"}}", i->rows,
               i->request.n_output, i->code ? err_name(i->code) : "OK");
    for (int k = 0; k < 3; k++)
        if (parts[k].from_us >= 0 && parts[k].to_us > parts[k].from_us) {
            event(t, out, i, parts[k].name, i->begin_us + parts[k].from_us,
                  parts[k].to_us - parts[k].from_us);
            buf_puts(out, "}");
        }
}

static void write_names(struct trace *t, struct buf *out)
{
    name_thread(t, out, REQUESTS_PID, 0, "process_name", "requests");
    name_thread(t, out, STEPS_PID, 0, "process_name", "coordinator: steps");
    for (int i = 0; i < t->n_names; i++) {
        uint32_t pid = TRACE_NODE_PID + t->names[i].node_id;
        name_thread(t, out, pid, 0, "process_name", t->names[i].name);
        if (!t->names[i].is_side)
            continue;
        name_thread(t, out, STEPS_PID, t->names[i].node_id, "thread_name", t->names[i].name);
        name_thread(t, out, pid, ENGINE_TID, "thread_name", "engine");
        name_thread(t, out, pid, ENGINE_TID + 1, "thread_name", "experts, lane 0");
        name_thread(t, out, pid, ENGINE_TID + 2, "thread_name", "experts, lane 1");
    }
    if (t->n_lost == 0)
        return;
    begin_event(t, out);
    buf_printf(out,
               "{\"name\":\"%" PRIu64 " spans did not fit\",\"ph\":\"i\",\"s\":\"g\",\"pid\":%d,"
               "\"tid\":0,\"ts\":0}",
               t->n_lost, STEPS_PID);
}

bool trace_write(struct trace *t, size_t n, struct buf *out)
{
    if (!t->is_begun)
        write_names(t, out);
    for (; n > 0 && t->n_written < t->n_items; n--) {
        const struct item *i = &t->items[t->n_written++];
        switch (i->kind) {
        case ITEM_STEP:
            write_step(t, out, i);
            break;
        case ITEM_SPAN:
            write_span(t, out, i);
            break;
        case ITEM_REQUEST:
            write_request(t, out, i);
            break;
        }
    }
    if (t->n_written < t->n_items)
        return true;
    buf_puts(out, "\n]\n");
    return false;
}
