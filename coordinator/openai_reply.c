/* coordinator/openai_reply.c - answers, chunks and errors as OpenAI's JSON; see openai.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "coordinator/openai.h"
#include "coordinator/openai_json.h"
#include "model/utf8.h"

/* Digits that give back the same float. */
enum { FLOAT_DIGITS = 9 };

static void dump(json_t *v, struct buf *out)
{
    char *text = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(FLOAT_DIGITS));
    must(text); /* everything in it is ours or was made valid UTF-8 */
    buf_puts(out, text);
    free(text);
    json_decref(v);
}

/* As JSON text; bytes that are no characters become U+FFFD. */
static json_t *text_of(struct str s)
{
    if (utf8_is_valid(s))
        return json_stringn_nocheck(s.ptr ? s.ptr : "", s.len);
    struct buf clean = {0};
    struct utf8_stream stream = {0};
    utf8_feed(&stream, s, &clean);
    utf8_finish(&stream, &clean);
    json_t *v = json_stringn_nocheck(clean.data ? clean.data : "", clean.len);
    buf_fini(&clean);
    return v;
}

static void set(json_t *object, const char *key, json_t *v)
{
    must_zero(json_object_set_new_nocheck(object, key, v));
}

static void add(json_t *array, json_t *v)
{
    must_zero(json_array_append_new(array, v));
}

/* ---- errors and models --------------------------------------------------------------- */

static json_t *error_object(const struct openai_error *e)
{
    json_t *error = json_object(), *root = json_object();
    set(error, "message", text_of(str_of(e->message)));
    set(error, "type", json_string(e->type));
    set(error, "param", e->param[0] ? text_of(str_of(e->param)) : json_null());
    set(error, "code", e->code ? json_string(e->code) : json_null());
    set(root, "error", error);
    return root;
}

void openai_write_error(const struct openai_error *e, struct buf *out)
{
    dump(error_object(e), out);
}

static void write_event(uint64_t id, json_t *v, struct buf *out)
{
    buf_printf(out, "id: %" PRIu64 "\ndata: ", id);
    dump(v, out);
    buf_puts(out, "\n\n");
}

void openai_write_error_event(const struct openai_error *e, const struct request *r,
                              struct buf *out)
{
    uint64_t id = r->output.len + 1;
    if (id > r->seen)
        write_event(id, error_object(e), out);
}

static json_t *model_object(const struct openai_model *m)
{
    json_t *o = json_object();
    set(o, "id", text_of(str_of(m->name)));
    set(o, "object", json_string("model"));
    set(o, "created", json_integer(m->created_s));
    set(o, "owned_by", json_string("polymath"));
    set(o, "max_model_len", json_integer(m->config->max_positions));
    return o;
}

void openai_write_model(const struct openai_model *m, struct buf *out)
{
    dump(model_object(m), out);
}

void openai_write_models(const struct openai_model *m, struct buf *out)
{
    json_t *root = json_object(), *data = json_array();
    add(data, model_object(m));
    set(root, "object", json_string("list"));
    set(root, "data", data);
    dump(root, out);
}

/* ---- tokens -------------------------------------------------------------------------- */

static struct str token_text(const struct openai_model *m, int32_t id)
{
    return m->tokenizer ? tokenizer_token_bytes(m->tokenizer, id) : (struct str){"", 0};
}

/* A log-probability that JSON can hold: it knows no infinity. */
static json_t *logprob(float x)
{
    return json_real(x >= -9999.0f ? (double)x : -9999.0);
}

static json_t *chat_token(const struct openai_model *m, int32_t id, float lp)
{
    json_t *o = json_object(), *bytes = json_array();
    struct str text = token_text(m, id);
    for (size_t i = 0; i < text.len; i++)
        add(bytes, json_integer((unsigned char)text.ptr[i]));
    set(o, "token", text_of(text));
    set(o, "logprob", logprob(lp));
    set(o, "bytes", bytes);
    return o;
}

static json_t *chat_logprobs(const struct openai_model *m, const struct request *r, size_t from)
{
    json_t *content = json_array(), *root = json_object();
    for (size_t i = from; i < r->output.len; i++) {
        const struct sampled *s = &r->samples[i];
        json_t *o = chat_token(m, s->token, s->logprob), *top = json_array();
        for (int k = 0; k < s->n_top; k++)
            add(top, chat_token(m, s->top[k].token, s->top[k].logprob));
        set(o, "top_logprobs", top);
        add(content, o);
    }
    set(root, "content", content);
    return root;
}

static json_t *completion_logprobs(const struct openai_model *m, const struct request *r,
                                   size_t from)
{
    json_t *root = json_object(), *texts = json_array(), *lps = json_array();
    json_t *tops = json_array(), *offsets = json_array();
    size_t offset = 0;
    for (size_t i = 0; i < r->output.len; i++) {
        const struct sampled *s = &r->samples[i];
        struct str text = token_text(m, s->token);
        if (i >= from) {
            json_t *top = json_object();
            for (int k = 0; k < s->n_top; k++) {
                json_t *key = text_of(token_text(m, s->top[k].token));
                set(top, json_string_value(key), logprob(s->top[k].logprob));
                json_decref(key);
            }
            add(texts, text_of(text));
            add(lps, logprob(s->logprob));
            add(tops, top);
            add(offsets, json_integer((json_int_t)offset));
        }
        offset += text.len;
    }
    set(root, "tokens", texts);
    set(root, "token_logprobs", lps);
    set(root, "top_logprobs", tops);
    set(root, "text_offset", offsets);
    return root;
}

/* The extensions, for the tokens from `from` on. */
static void add_extensions(const struct request *r, size_t from, json_t *choice)
{
    if (r->wants_token_ids) {
        json_t *ids = json_array();
        for (size_t i = from; i < r->output.len; i++)
            add(ids, json_integer(r->output.ids[i]));
        set(choice, "token_ids", ids);
    }
    if (r->sampling.logits_hash) {
        json_t *hashes = json_array();
        for (size_t i = from; i < r->output.len; i++) {
            char hex[17];
            snprintf(hex, sizeof hex, "%016" PRIx64, r->samples[i].logits_hash);
            add(hashes, json_string(hex));
        }
        set(choice, "logits_hashes", hashes);
    }
}

/* ---- answers ------------------------------------------------------------------------- */

static json_t *finish_reason(const struct request *r)
{
    if (r->state != REQUEST_DONE)
        return json_null();
    if (r->finish == SCHED_LENGTH || stream_is_broken(&r->text_of))
        return json_string("length");
    return json_string(stream_has_calls(&r->text_of) ? "tool_calls" : "stop");
}

static json_t *usage(const struct request *r)
{
    json_t *o = json_object();
    set(o, "prompt_tokens", json_integer((json_int_t)r->prompt.len));
    set(o, "completion_tokens", json_integer((json_int_t)r->output.len));
    set(o, "total_tokens", json_integer((json_int_t)(r->prompt.len + r->output.len)));
    return o;
}

static json_t *envelope(const struct openai_model *m, const struct request *r, const char *object)
{
    json_t *root = json_object();
    set(root, "id", json_string(r->id));
    set(root, "object", json_string(object));
    set(root, "created", json_integer(r->created_s));
    set(root, "model", text_of(str_of(m->name)));
    return root;
}

/* `what` is "message", "delta" or "text". */
static json_t *choice_of(const struct openai_model *m, const struct request *r, size_t from,
                         const char *what, json_t *said)
{
    json_t *choice = json_object(), *logprobs = NULL;
    if (r->wants_logprobs)
        logprobs =
            r->kind == REQUEST_CHAT ? chat_logprobs(m, r, from) : completion_logprobs(m, r, from);
    set(choice, "index", json_integer(0));
    set(choice, what, said);
    set(choice, "logprobs", logprobs ? logprobs : json_null());
    set(choice, "finish_reason", finish_reason(r));
    add_extensions(r, from, choice);
    return choice;
}

/* All there is of one kind; NULL if there is nothing. */
static json_t *said(const struct request *r, enum output_kind kind)
{
    struct buf text = {0};
    output_events_gather(&r->said, kind, &text);
    json_t *v = text.len > 0 ? text_of(buf_str(&text)) : NULL;
    buf_fini(&text);
    return v;
}

/* The events of one call from event *i on, as one object; *i is then the first of another. */
static json_t *call_of(const struct request *r, size_t *i)
{
    const struct output_events *events = &r->said;
    int call = events->list[*i].call;
    json_t *o = json_object(), *function = json_object();
    struct buf arguments = {0};
    set(o, "index", json_integer(call));
    for (; *i < events->n && events->list[*i].call == call; ++*i) {
        if (events->list[*i].kind == OUTPUT_CALL) {
            char id[REQUEST_ID_BYTES];
            snprintf(id, sizeof id, "call_%016" PRIx64 "%08x", r->seq, (unsigned)call);
            set(o, "id", json_string(id));
            set(o, "type", json_string("function"));
            set(function, "name", text_of(output_events_text(events, *i)));
        } else if (events->list[*i].kind == OUTPUT_ARGUMENTS) {
            buf_append_str(&arguments, output_events_text(events, *i));
        }
    }
    set(function, "arguments", text_of(buf_str(&arguments)));
    set(o, "function", function);
    buf_fini(&arguments);
    return o;
}

/* The tool calls, or what is new of them; NULL if there is nothing. */
static json_t *calls_of(const struct request *r)
{
    json_t *calls = NULL;
    for (size_t i = 0; i < r->said.n;) {
        if (r->said.list[i].call < 0) {
            i++;
            continue;
        }
        if (!calls)
            calls = json_array();
        add(calls, call_of(r, &i));
    }
    return calls;
}

static json_t *chat_message(const struct request *r)
{
    json_t *message = json_object(), *reasoning = said(r, OUTPUT_REASONING), *call;
    json_t *content = said(r, OUTPUT_CONTENT), *calls = calls_of(r);
    size_t i;
    if (!content)
        content = calls ? json_null() : json_string("");
    set(message, "role", json_string("assistant"));
    set(message, "content", content);
    if (reasoning)
        set(message, "reasoning_content", reasoning);
    json_array_foreach(calls, i, call)
    {
        json_object_del(call, "index"); /* is for pieces */
    }
    if (calls)
        set(message, "tool_calls", calls);
    return message;
}

/* /v1/completions knows content only. */
static json_t *completion_text(const struct request *r)
{
    json_t *text = said(r, OUTPUT_CONTENT);
    return text ? text : json_string("");
}

void openai_write_reply(const struct openai_model *m, const struct request *r, struct buf *out)
{
    bool chat = r->kind == REQUEST_CHAT;
    json_t *root = envelope(m, r, chat ? "chat.completion" : "text_completion");
    json_t *choices = json_array();
    add(choices, chat ? choice_of(m, r, 0, "message", chat_message(r))
                      : choice_of(m, r, 0, "text", completion_text(r)));
    set(root, "choices", choices);
    set(root, "usage", usage(r));
    dump(root, out);
}

static json_t *chat_delta(const struct request *r)
{
    json_t *delta = json_object(), *reasoning = said(r, OUTPUT_REASONING);
    json_t *content = said(r, OUTPUT_CONTENT), *calls = calls_of(r);
    if (r->n_sent == 0)
        set(delta, "role", json_string("assistant"));
    if (reasoning)
        set(delta, "reasoning_content", reasoning);
    if (!content && r->n_sent == 0)
        content = json_string("");
    if (content)
        set(delta, "content", content);
    if (calls)
        set(delta, "tool_calls", calls);
    return delta;
}

static json_t *chunk(const struct openai_model *m, const struct request *r)
{
    bool chat = r->kind == REQUEST_CHAT;
    json_t *root = envelope(m, r, chat ? "chat.completion.chunk" : "text_completion");
    json_t *choices = json_array();
    add(choices, chat ? choice_of(m, r, r->n_sent, "delta", chat_delta(r))
                      : choice_of(m, r, r->n_sent, "text", completion_text(r)));
    set(root, "choices", choices);
    if (r->wants_usage)
        set(root, "usage", json_null());
    return root;
}

bool openai_has_events(const struct request *r)
{
    bool per_token = r->wants_token_ids || r->wants_logprobs || r->sampling.logits_hash;
    bool has_tokens = r->output.len > r->n_sent;
    return r->state == REQUEST_DONE || r->said.n > 0 ||
           (has_tokens && (per_token || r->n_sent == 0));
}

void openai_write_events(const struct openai_model *m, const struct request *r, struct buf *out)
{
    bool done = r->state == REQUEST_DONE;
    if (!openai_has_events(r))
        return;
    uint64_t id = r->output.len;
    if (id > r->seen)
        write_event(id, chunk(m, r), out);
    if (!done)
        return;
    if (r->wants_usage && ++id > r->seen) {
        json_t *root =
            envelope(m, r, r->kind == REQUEST_CHAT ? "chat.completion.chunk" : "text_completion");
        set(root, "choices", json_array());
        set(root, "usage", usage(r));
        write_event(id, root, out);
    }
    if (++id > r->seen)
        buf_printf(out, "id: %" PRIu64 "\ndata: [DONE]\n\n", id);
}
