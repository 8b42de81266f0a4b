/* coordinator/responses_reply.c - answers, events and errors of the Responses API; see responses.h.
 *
 * The last event of an item repeats all of it, so the request keeps what was said (request.whole). */
#include <inttypes.h>
#include <stdio.h>

#include "base/must.h"
#include "coordinator/json_write.h"
#include "coordinator/responses.h"

enum { EVENTS_PER_TOKEN = 64 }; /* room in the sequence numbers */

/* One part of the answer is one output item. */
struct item {
    struct request_part part;
    struct buf name, text;
};

static void item_fini(struct item *i)
{
    buf_fini(&i->name);
    buf_fini(&i->text);
}

static json_t *item_id(const struct request *r, const struct request_part *p)
{
    static const char *const prefixes[] = {
        [OUTPUT_REASONING] = "rs", [OUTPUT_CONTENT] = "msg", [OUTPUT_CALL] = "fc"};
    char id[REQUEST_ID_BYTES];
    snprintf(id, sizeof id, "%s_%016" PRIx64 "%04x", prefixes[p->kind], r->seq, (unsigned)p->n);
    return json_string(id);
}

/* The one part of a message or of reasoning. */
static json_t *content_part(enum output_kind kind, struct str text)
{
    json_t *o = json_object();
    json_put(o, "type", json_string(kind == OUTPUT_CONTENT ? "output_text" : "reasoning_text"));
    json_put(o, "text", json_text(text));
    if (kind == OUTPUT_CONTENT) {
        json_put(o, "annotations", json_array());
        json_put(o, "logprobs", json_array());
    }
    return o;
}

enum progress { BEGINS, IS_COMPLETE, IS_CUT };

static json_t *item_object(const struct request *r, const struct item *i, enum progress progress)
{
    static const char *const words[] = {"in_progress", "completed", "incomplete"};
    json_t *o = json_object(), *content = json_array();
    json_put(o, "id", item_id(r, &i->part));
    json_put(o, "status", json_string(words[progress]));
    if (i->part.kind == OUTPUT_CALL) {
        char id[REQUEST_ID_BYTES];
        snprintf(id, sizeof id, "call_%016" PRIx64 "%08x", r->seq, (unsigned)i->part.call);
        json_put(o, "type", json_string("function_call"));
        json_put(o, "call_id", json_string(id));
        json_put(o, "name", json_text(buf_str(&i->name)));
        json_put(o, "arguments", json_text(buf_str(&i->text)));
        json_decref(content);
        return o;
    }
    if (progress != BEGINS)
        json_push(content, content_part(i->part.kind, buf_str(&i->text)));
    json_put(o, "content", content);
    if (i->part.kind == OUTPUT_REASONING) {
        json_put(o, "type", json_string("reasoning"));
        json_put(o, "summary", json_array());
    } else {
        json_put(o, "type", json_string("message"));
        json_put(o, "role", json_string("assistant"));
    }
    return o;
}

/* Moves past an event and gathers its text. */
static enum request_step pass(struct item *i, const struct output_events *events, size_t at)
{
    const struct output_event *event = &events->list[at];
    enum request_step step = request_pass(&i->part, event);
    if (step == REQUEST_NEW_PART) {
        buf_reset(&i->name);
        buf_reset(&i->text);
    }
    if (event->kind == OUTPUT_CALL)
        buf_append_str(&i->name, output_events_text(events, at));
    else if (event->kind != OUTPUT_ERROR)
        buf_append_str(&i->text, output_events_text(events, at));
    return step;
}

static json_t *output_of(const struct request *r, const struct output_events *events)
{
    json_t *output = json_array();
    struct item i = {0};
    enum progress last = request_ending(r) == REQUEST_CUT ? IS_CUT : IS_COMPLETE;
    for (size_t at = 0; at < events->n; at++) {
        const struct request_part before = i.part;
        struct request_part peek = before;
        bool ends = request_pass(&peek, &events->list[at]) == REQUEST_NEW_PART && before.is_open;
        if (ends)
            json_push(output, item_object(r, &i, IS_COMPLETE));
        if (pass(&i, events, at) == REQUEST_PART_ENDS)
            json_push(output, item_object(r, &i, IS_COMPLETE));
    }
    if (i.part.is_open)
        json_push(output, item_object(r, &i, last));
    item_fini(&i);
    return output;
}

/* ---- the response -------------------------------------------------------------------------------- */

static json_t *usage(const struct request *r)
{
    json_t *o = json_object(), *in = json_object(), *out = json_object();
    json_put(in, "cached_tokens", json_integer((json_int_t)r->n_cached));
    json_put(out, "reasoning_tokens", json_integer((json_int_t)r->n_reasoning));
    json_put(o, "input_tokens", json_integer((json_int_t)r->prompt.len));
    json_put(o, "input_tokens_details", in);
    json_put(o, "output_tokens", json_integer((json_int_t)r->output.len));
    json_put(o, "output_tokens_details", out);
    json_put(o, "total_tokens", json_integer((json_int_t)(r->prompt.len + r->output.len)));
    return o;
}

static json_t *response(const struct openai_model *m, const struct request *r, json_t *output)
{
    enum request_ending ending = request_ending(r);
    const char *status = ending == REQUEST_GOES_ON ? "in_progress"
                         : ending == REQUEST_CUT   ? "incomplete"
                                                   : "completed";
    json_t *o = json_object();
    json_put(o, "id", json_string(r->id));
    json_put(o, "object", json_string("response"));
    json_put(o, "created_at", json_integer(r->created_s));
    json_put(o, "status", json_string(status));
    json_put(o, "error", json_null());
    json_put(o, "incomplete_details",
             ending == REQUEST_CUT ? json_pack("{s:s}", "reason", "max_output_tokens")
                                   : json_null());
    json_put(o, "background", json_false());
    json_put(o, "instructions", json_null());
    json_put(o, "metadata", json_object());
    json_put(o, "model", json_text(str_of(m->name)));
    if (r->tier)
        json_put(o, "service_tier", json_string(r->tier));
    json_put(o, "output", output);
    json_put(o, "parallel_tool_calls", json_true());
    json_put(o, "previous_response_id", json_null());
    json_put(o, "store", json_false());
    json_put(o, "temperature", json_real((double)r->sampling.temperature));
    json_put(o, "top_p", json_real((double)r->sampling.top_p));
    json_put(o, "tool_choice", json_string("auto"));
    json_put(o, "tools", json_array());
    json_put(o, "reasoning", json_pack("{s:n,s:n}", "effort", "summary"));
    json_put(o, "text", json_pack("{s:{s:s}}", "format", "type", "text"));
    json_put(o, "truncation", json_string("disabled"));
    json_put(o, "max_output_tokens", json_integer(r->max_tokens));
    json_t *echo =
        r->echo.len > 0 ? json_loadb(r->echo.data, r->echo.len, JSON_ALLOW_NUL, NULL) : NULL;
    if (echo)
        must_zero(json_object_update(o, echo));
    json_decref(echo);
    json_put(o, "usage", ending == REQUEST_GOES_ON ? json_null() : usage(r));
    return o;
}

void responses_write_reply(const struct openai_model *m, const struct request *r, struct buf *out)
{
    json_write(response(m, r, output_of(r, &r->said)), out);
}

/* ---- events ---------------------------------------------------------------------------------------- */

struct writer {
    const struct request *r;
    struct buf *out;
    uint64_t number;
};

static void event(struct writer *w, const char *type, json_t *o)
{
    json_t *all = json_object();
    json_put(all, "type", json_string(type));
    json_put(all, "sequence_number", json_integer((json_int_t)w->number++));
    must_zero(json_object_update(all, o));
    json_decref(o);
    buf_printf(w->out, "event: %s\ndata: ", type);
    json_write(all, w->out);
    buf_puts(w->out, "\n\n");
}

static json_t *of_item(const struct writer *w, const struct item *i)
{
    json_t *o = json_object();
    json_put(o, "item_id", item_id(w->r, &i->part));
    json_put(o, "output_index", json_integer(i->part.n - 1));
    if (i->part.kind != OUTPUT_CALL)
        json_put(o, "content_index", json_integer(0));
    if (i->part.kind == OUTPUT_CONTENT)
        json_put(o, "logprobs", json_array());
    return o;
}

/* "response.output_text.delta" and its like. */
static void text_event(struct writer *w, const struct item *i, const char *what, const char *field,
                       struct str text)
{
    const char *kind = i->part.kind == OUTPUT_CALL        ? "function_call_arguments"
                       : i->part.kind == OUTPUT_REASONING ? "reasoning_text"
                                                          : "output_text";
    char type[64];
    json_t *o = of_item(w, i);
    snprintf(type, sizeof type, "response.%s.%s", kind, what);
    json_put(o, field, json_text(text));
    if (i->part.kind == OUTPUT_CALL && i->name.len > 0 && field[0] == 'a')
        json_put(o, "name", json_text(buf_str(&i->name)));
    event(w, type, o);
}

static void part_event(struct writer *w, const struct item *i, const char *type, struct str text)
{
    json_t *o = of_item(w, i);
    json_object_del(o, "logprobs");
    json_put(o, "part", content_part(i->part.kind, text));
    event(w, type, o);
}

static void item_event(struct writer *w, const struct item *i, const char *type,
                       enum progress progress)
{
    json_t *o = json_object();
    json_put(o, "output_index", json_integer(i->part.n - 1));
    json_put(o, "item", item_object(w->r, i, progress));
    event(w, type, o);
}

static void begin_item(struct writer *w, const struct item *i)
{
    item_event(w, i, "response.output_item.added", BEGINS);
    if (i->part.kind != OUTPUT_CALL)
        part_event(w, i, "response.content_part.added", STR(""));
}

static void end_item(struct writer *w, const struct item *i, enum progress progress)
{
    bool is_call = i->part.kind == OUTPUT_CALL;
    text_event(w, i, "done", is_call ? "arguments" : "text", buf_str(&i->text));
    if (!is_call)
        part_event(w, i, "response.content_part.done", buf_str(&i->text));
    item_event(w, i, "response.output_item.done", progress);
}

/* One event of the parser's. */
static void write_said(struct writer *w, struct item *i, size_t at)
{
    const struct output_event *said = &w->r->said.list[at];
    struct request_part peek = i->part;
    enum request_step step = request_pass(&peek, said);
    if (i->part.is_open && step != REQUEST_SAME_PART)
        end_item(w, i, IS_COMPLETE);
    pass(i, &w->r->said, at);
    if (step == REQUEST_NEW_PART)
        begin_item(w, i);
    if (said->kind == OUTPUT_REASONING || said->kind == OUTPUT_CONTENT ||
        said->kind == OUTPUT_ARGUMENTS)
        text_event(w, i, "delta", "delta", output_events_text(&w->r->said, at));
}

static void whole_event(struct writer *w, const struct openai_model *m, const char *type,
                        json_t *output)
{
    json_t *o = json_object();
    json_put(o, "response", response(m, w->r, output));
    event(w, type, o);
}

/* All that was said, what is sent now included. */
static json_t *whole_output(const struct request *r)
{
    struct output_events all = {0};
    const struct output_events *pieces[] = {&r->whole, &r->said};
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < pieces[k]->n; i++)
            output_events_put(&all, pieces[k]->list[i].kind, pieces[k]->list[i].call,
                              output_events_text(pieces[k], i));
    json_t *output = output_of(r, &all);
    output_events_fini(&all);
    return output;
}

static void put_id(uint64_t id, struct buf *out)
{
    must(out->len >= 2);
    out->len--; /* the empty line */
    buf_printf(out, "id: %" PRIu64 "\n\n", id);
}

/* Does what is to be sent now end the item that is open? */
static bool ends_item(const struct request *r)
{
    struct request_part peek = r->part;
    bool ends = r->state == REQUEST_DONE;
    for (size_t at = 0; at < r->said.n && !ends; at++)
        ends = request_pass(&peek, &r->said.list[at]) != REQUEST_SAME_PART;
    return ends && r->part.is_open;
}

/* With the item that is open; its text is gathered only when it is wanted, once, so that a long answer costs each of
 * its tokens no more than a short one. */
static void go_on(struct item *i, const struct request *r)
{
    i->part = r->part;
    if (!ends_item(r))
        return;
    i->part = (struct request_part){.n = r->part.n - 1};
    for (size_t at = r->part_from; at < r->whole.n; at++)
        pass(i, &r->whole, at);
}

void responses_write_events(const struct openai_model *m, const struct request *r, struct buf *out)
{
    struct writer w = {.r = r, .out = out, .number = (r->output.len - 1) * EVENTS_PER_TOKEN};
    struct item i = {0};
    size_t before = out->len;
    if (!request_has_events(r) || r->output.len <= r->seen)
        return;
    if (r->n_sent == 0) {
        struct request begun = *r;
        begun.state = REQUEST_DECODE;
        w.r = &begun;
        w.number = 0;
        whole_event(&w, m, "response.created", json_array());
        whole_event(&w, m, "response.in_progress", json_array());
        w.r = r;
    }
    go_on(&i, r);
    for (size_t at = 0; at < r->said.n; at++)
        write_said(&w, &i, at);
    if (r->state == REQUEST_DONE) {
        bool cut = request_ending(r) == REQUEST_CUT;
        if (i.part.is_open)
            end_item(&w, &i, cut ? IS_CUT : IS_COMPLETE);
        whole_event(&w, m, cut ? "response.incomplete" : "response.completed", whole_output(r));
    }
    item_fini(&i);
    if (out->len > before)
        put_id(r->output.len, out);
}

void responses_write_error_event(const struct openai_error *e, const struct request *r,
                                 struct buf *out)
{
    uint64_t id = r->output.len + 1;
    struct writer w = {.r = r, .out = out, .number = r->output.len * EVENTS_PER_TOKEN};
    json_t *o = json_object();
    if (id <= r->seen) {
        json_decref(o);
        return;
    }
    json_put(o, "code", json_string(e->code ? e->code : e->type));
    json_put(o, "message", json_text(str_of(e->message)));
    json_put(o, "param", json_null());
    event(&w, "error", o);
    put_id(id, out);
}
