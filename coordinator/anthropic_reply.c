/* coordinator/anthropic_reply.c - answers, events and errors as Anthropic's JSON; see anthropic.h. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include "coordinator/anthropic.h"
#include "coordinator/json_write.h"

/* ---- errors ---------------------------------------------------------------------------------- */

static const char *error_type(int status)
{
    static const struct {
        int status;
        const char *type;
    } types[] = {{401, "authentication_error"}, {403, "permission_error"},
                 {404, "not_found_error"},      {413, "request_too_large"},
                 {429, "rate_limit_error"},     {503, "overloaded_error"},
                 {504, "timeout_error"}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].status == status)
            return types[i].type;
    return status < 500 ? "invalid_request_error" : "api_error";
}

static json_t *error_object(const struct openai_error *e)
{
    json_t *error = json_object(), *root = json_object();
    json_put(error, "type", json_string(error_type(e->status)));
    json_put(error, "message", json_text(str_of(e->message)));
    json_put(root, "type", json_string("error"));
    json_put(root, "error", error);
    return root;
}

void anthropic_write_error(const struct openai_error *e, struct buf *out)
{
    json_write(error_object(e), out);
}

/* ---- what both forms of an answer have --------------------------------------------------------- */

static json_t *usage(const struct request *r)
{
    json_t *o = json_object();
    json_put(o, "input_tokens", json_integer((json_int_t)(r->prompt.len - r->n_cached)));
    json_put(o, "cache_creation_input_tokens", json_integer(0));
    json_put(o, "cache_read_input_tokens", json_integer((json_int_t)r->n_cached));
    json_put(o, "output_tokens", json_integer((json_int_t)r->output.len));
    if (r->tier) /* this API has no name for less */
        json_put(o, "service_tier",
                 json_string(strcmp(r->tier, "priority") == 0 ? r->tier : "standard"));
    return o;
}

void anthropic_write_count(const struct request *r, struct buf *out)
{
    buf_printf(out, "{\"input_tokens\":%zu}", r->prompt.len);
}

static void put_stop(const struct request *r, json_t *o)
{
    const char *by = r->text_of.stopped_by, *reason = NULL;
    switch (request_ending(r)) {
    case REQUEST_GOES_ON:
        break;
    case REQUEST_CUT:
        reason = "max_tokens";
        break;
    case REQUEST_CALLS:
        reason = "tool_use";
        break;
    case REQUEST_STOPPED:
        reason = by ? "stop_sequence" : "end_turn";
        break;
    }
    json_put(o, "stop_reason", reason ? json_string(reason) : json_null());
    json_put(o, "stop_sequence", by ? json_text(str_of(by)) : json_null());
}

static json_t *message(const struct openai_model *m, const struct request *r, json_t *content)
{
    json_t *o = json_object();
    json_put(o, "id", json_string(r->id));
    json_put(o, "type", json_string("message"));
    json_put(o, "role", json_string("assistant"));
    json_put(o, "model", json_text(str_of(m->name)));
    json_put(o, "content", content);
    put_stop(r, o);
    json_put(o, "usage", usage(r));
    if (r->is_degraded)
        json_put(o, "degraded", json_true());
    return o;
}

static const char *type_of(enum output_kind kind)
{
    if (kind == OUTPUT_CALL)
        return "tool_use";
    return kind == OUTPUT_REASONING ? "thinking" : "text";
}

/* A block of a kind without its contents. */
static json_t *block(const struct request *r, const struct request_part *p, struct str name)
{
    json_t *o = json_object();
    json_put(o, "type", json_string(type_of(p->kind)));
    if (p->kind == OUTPUT_CALL) {
        char id[REQUEST_ID_BYTES];
        snprintf(id, sizeof id, "toolu_%016" PRIx64 "%08x", r->seq, (unsigned)p->call);
        json_put(o, "id", json_string(id));
        json_put(o, "name", json_text(name));
        json_put(o, "input", json_object());
    } else {
        json_put(o, type_of(p->kind), json_string(""));
        if (p->kind == OUTPUT_REASONING)
            json_put(o, "signature", json_string(""));
    }
    return o;
}

/* ---- the whole answer ----------------------------------------------------------------------------- */

/* A call that was cut short has no input that could be shown: it is left out. */
static void push_block(const struct request *r, json_t *o, const struct request_part *p,
                       const struct buf *text, json_t *content)
{
    if (p->kind == OUTPUT_CALL) {
        json_t *input = json_loadb(text->data ? text->data : "", text->len, JSON_ALLOW_NUL, NULL);
        if (input)
            json_put(o, "input", input);
        if (p->is_open || !input) {
            json_decref(o);
            return;
        }
    } else {
        json_put(o, type_of(p->kind), json_text(buf_str(text)));
        if (p->kind == OUTPUT_REASONING)
            json_put(o, "signature", json_string(r->id));
    }
    json_push(content, o);
}

static json_t *content_of(const struct request *r)
{
    json_t *content = json_array(), *open = NULL;
    struct request_part p = {0}, last = {0};
    struct buf text = {0};
    for (size_t i = 0; i < r->said.n; i++) {
        const struct output_event *event = &r->said.list[i];
        bool begins = request_pass(&p, event) == REQUEST_NEW_PART;
        if (begins && open)
            push_block(r, open, &last, &text, content);
        if (begins) {
            open = block(r, &p, output_events_text(&r->said, i));
            buf_reset(&text);
        }
        if (event->kind != OUTPUT_CALL && event->kind != OUTPUT_CALL_END &&
            event->kind != OUTPUT_ERROR)
            buf_append_str(&text, output_events_text(&r->said, i));
        last = p;
    }
    if (open)
        push_block(r, open, &last, &text, content);
    buf_fini(&text);
    return content;
}

void anthropic_write_reply(const struct openai_model *m, const struct request *r, struct buf *out)
{
    json_write(message(m, r, content_of(r)), out);
}

/* ---- events ------------------------------------------------------------------------------------------ */

static void event(const char *type, json_t *o, struct buf *out)
{
    json_t *all = json_object();
    json_put(all, "type", json_string(type));
    must_zero(json_object_update(all, o));
    json_decref(o);
    buf_printf(out, "event: %s\ndata: ", type);
    json_write(all, out);
    buf_puts(out, "\n\n");
}

static json_t *of_block(const struct request_part *p)
{
    json_t *o = json_object();
    json_put(o, "index", json_integer(p->n - 1));
    return o;
}

static void write_delta(const struct request_part *p, const char *type, const char *field,
                        struct str text, struct buf *out)
{
    json_t *o = of_block(p), *delta = json_object();
    json_put(delta, "type", json_string(type));
    json_put(delta, field, json_text(text));
    json_put(o, "delta", delta);
    event("content_block_delta", o, out);
}

static void write_stop(const struct request *r, const struct request_part *p, struct buf *out)
{
    if (p->kind == OUTPUT_REASONING)
        write_delta(p, "signature_delta", "signature", str_of(r->id), out);
    event("content_block_stop", of_block(p), out);
}

/* One event of the parser's; `p` is where the answer was before it. */
static void write_said(const struct request *r, size_t i, struct request_part *p, struct buf *out)
{
    const struct output_event *said = &r->said.list[i];
    struct str text = output_events_text(&r->said, i);
    struct request_part before = *p;
    enum request_step step = request_pass(p, said);
    if (before.is_open && step != REQUEST_SAME_PART)
        write_stop(r, &before, out);
    if (step == REQUEST_NEW_PART) {
        json_t *o = of_block(p);
        json_put(o, "content_block", block(r, p, text));
        event("content_block_start", o, out);
    }
    if (said->kind == OUTPUT_REASONING)
        write_delta(p, "thinking_delta", "thinking", text, out);
    else if (said->kind == OUTPUT_CONTENT)
        write_delta(p, "text_delta", "text", text, out);
    else if (said->kind == OUTPUT_ARGUMENTS)
        write_delta(p, "input_json_delta", "partial_json", text, out);
}

static void write_start(const struct openai_model *m, const struct request *r, struct buf *out)
{
    json_t *o = json_object(), *empty = message(m, r, json_array());
    json_put(empty, "stop_reason", json_null());
    json_put(empty, "stop_sequence", json_null());
    json_put(o, "message", empty);
    event("message_start", o, out);
    anthropic_write_ping(out);
}

static void write_end(const struct request *r, struct buf *out)
{
    json_t *o = json_object(), *delta = json_object();
    put_stop(r, delta);
    json_put(o, "delta", delta);
    json_put(o, "usage", usage(r));
    if (r->is_degraded)
        json_put(o, "degraded", json_true());
    event("message_delta", o, out);
    event("message_stop", json_object(), out);
}

/* The last event in `out` gets the id. */
static void put_id(uint64_t id, struct buf *out)
{
    must(out->len >= 2);
    out->len--; /* the empty line */
    buf_printf(out, "id: %" PRIu64 "\n\n", id);
}

void anthropic_write_events(const struct openai_model *m, const struct request *r, struct buf *out)
{
    struct request_part p = r->part;
    uint64_t id = r->output.len;
    size_t before = out->len;
    if (!request_has_events(r) || id <= r->seen)
        return;
    if (r->n_sent == 0)
        write_start(m, r, out);
    for (size_t i = 0; i < r->said.n; i++)
        write_said(r, i, &p, out);
    if (r->state == REQUEST_DONE) {
        if (p.is_open)
            write_stop(r, &p, out);
        write_end(r, out);
    }
    if (out->len > before)
        put_id(id, out);
}

void anthropic_write_error_event(const struct openai_error *e, const struct request *r,
                                 struct buf *out)
{
    uint64_t id = r->output.len + 1;
    if (id <= r->seen)
        return;
    event("error", error_object(e), out);
    put_id(id, out);
}

void anthropic_write_ping(struct buf *out)
{
    event("ping", json_object(), out);
}
