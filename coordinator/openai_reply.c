/* coordinator/openai_reply.c - answers, chunks and errors as OpenAI's JSON; see openai.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/json_write.h"
#include "coordinator/openai.h"

/* ---- errors and models --------------------------------------------------------------- */

static json_t *error_object(const struct openai_error *e)
{
    json_t *error = json_object(), *root = json_object();
    json_put(error, "message", json_text(str_of(e->message)));
    json_put(error, "type", json_string(e->type));
    json_put(error, "param", e->param[0] ? json_text(str_of(e->param)) : json_null());
    json_put(error, "code", e->code ? json_string(e->code) : json_null());
    json_put(root, "error", error);
    return root;
}

void openai_write_error(const struct openai_error *e, struct buf *out)
{
    json_write(error_object(e), out);
}

/* `past` counts the events after the newest token. */
static void write_id(const struct request *r, uint64_t past, struct buf *out)
{
    buf_puts(out, "id: ");
    if (!r->next)
        buf_printf(out, "%" PRIu64, r->output.len + past);
    for (const struct request *c = r; c && r->next; c = c->next) {
        uint64_t n = c->output.len > c->seen ? c->output.len : c->seen;
        buf_printf(out, "%s%" PRIu64, c == r ? "" : ".", n);
    }
    if (past && r->next)
        buf_printf(out, ".%" PRIu64, past);
    buf_puts(out, "\ndata: ");
}

static void write_event(const struct request *r, uint64_t past, json_t *v, struct buf *out)
{
    write_id(r, past, out);
    json_write(v, out);
    buf_puts(out, "\n\n");
}

/* Of the events after the last token. */
static bool is_seen(const struct request *r, uint64_t past)
{
    return r->next ? past <= r->seen_past : r->output.len + past <= r->seen;
}

void openai_write_error_event(const struct openai_error *e, const struct request *r,
                              struct buf *out)
{
    if (!is_seen(r, 1))
        write_event(r, 1, error_object(e), out);
}

static json_t *model_object(const struct openai_model *m)
{
    json_t *o = json_object();
    json_put(o, "id", json_text(str_of(m->name)));
    json_put(o, "object", json_string("model"));
    json_put(o, "created", json_integer(m->created_s));
    json_put(o, "owned_by", json_string("polymath"));
    json_put(o, "max_model_len", json_integer(m->config->max_positions));
    return o;
}

void openai_write_model(const struct openai_model *m, struct buf *out)
{
    json_write(model_object(m), out);
}

void openai_write_models(const struct openai_model *m, struct buf *out)
{
    json_t *root = json_object(), *data = json_array();
    json_push(data, model_object(m));
    json_put(root, "object", json_string("list"));
    json_put(root, "data", data);
    json_write(root, out);
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
        json_push(bytes, json_integer((unsigned char)text.ptr[i]));
    json_put(o, "token", json_text(text));
    json_put(o, "logprob", logprob(lp));
    json_put(o, "bytes", bytes);
    return o;
}

static json_t *chat_logprobs(const struct openai_model *m, const struct request *r, size_t from)
{
    json_t *content = json_array(), *root = json_object();
    for (size_t i = from; i < r->output.len; i++) {
        const struct sampled *s = &r->samples[i];
        json_t *o = chat_token(m, s->token, s->logprob), *top = json_array();
        for (int k = 0; k < s->n_top; k++)
            json_push(top, chat_token(m, s->top[k].token, s->top[k].logprob));
        json_put(o, "top_logprobs", top);
        json_push(content, o);
    }
    json_put(root, "content", content);
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
                json_t *key = json_text(token_text(m, s->top[k].token));
                json_put(top, json_string_value(key), logprob(s->top[k].logprob));
                json_decref(key);
            }
            json_push(texts, json_text(text));
            json_push(lps, logprob(s->logprob));
            json_push(tops, top);
            json_push(offsets, json_integer((json_int_t)offset));
        }
        offset += text.len;
    }
    json_put(root, "tokens", texts);
    json_put(root, "token_logprobs", lps);
    json_put(root, "top_logprobs", tops);
    json_put(root, "text_offset", offsets);
    return root;
}

/* The extensions, for the tokens from `from` on. */
static void add_extensions(const struct request *r, size_t from, json_t *choice)
{
    if (r->wants_token_ids) {
        json_t *ids = json_array();
        for (size_t i = from; i < r->output.len; i++)
            json_push(ids, json_integer(r->output.ids[i]));
        json_put(choice, "token_ids", ids);
    }
    if (r->sampling.logits_hash) {
        json_t *hashes = json_array();
        for (size_t i = from; i < r->output.len; i++) {
            char hex[17];
            snprintf(hex, sizeof hex, "%016" PRIx64, r->samples[i].logits_hash);
            json_push(hashes, json_string(hex));
        }
        json_put(choice, "logits_hashes", hashes);
    }
}

/* ---- answers ------------------------------------------------------------------------- */

static json_t *finish_reason(const struct request *r)
{
    switch (request_ending(r)) {
    case REQUEST_GOES_ON:
        break;
    case REQUEST_CUT:
        return json_string("length");
    case REQUEST_CALLS:
        return json_string("tool_calls");
    case REQUEST_STOPPED:
        return json_string("stop");
    }
    return json_null();
}

/* Of all choices, each prompt once; what best_of threw away was generated, too. */
static json_t *usage(const struct request *r)
{
    json_t *o = json_object();
    json_t *details = json_object();
    size_t n_prompt = request_prompt_tokens(r), n_output = request_output_tokens(r);
    size_t n_cached = 0, n_reasoning = 0;
    for (const struct request *c = r; c; c = c->next) {
        n_cached += c->borrows_prompt ? 0 : c->n_cached;
        n_reasoning += c->n_reasoning;
    }
    json_put(details, "cached_tokens", json_integer((json_int_t)n_cached));
    json_put(o, "prompt_tokens", json_integer((json_int_t)n_prompt));
    json_put(o, "prompt_tokens_details", details);
    json_put(o, "completion_tokens", json_integer((json_int_t)n_output));
    if (r->kind == REQUEST_CHAT)
        json_put(o, "completion_tokens_details",
                 json_pack("{s:I}", "reasoning_tokens", (json_int_t)n_reasoning));
    json_put(o, "total_tokens", json_integer((json_int_t)(n_prompt + n_output)));
    return o;
}

static bool is_degraded(const struct request *r)
{
    while (r && !r->is_degraded)
        r = r->next;
    return r;
}

static json_t *envelope(const struct openai_model *m, const struct request *r, const char *object)
{
    json_t *root = json_object();
    json_put(root, "id", json_string(r->id));
    json_put(root, "object", json_string(object));
    json_put(root, "created", json_integer(r->created_s));
    json_put(root, "model", json_text(str_of(m->name)));
    if (r->tier)
        json_put(root, "service_tier", json_string(r->tier));
    if (is_degraded(r))
        json_put(root, "degraded", json_true());
    return root;
}

/* `what` is "message", "delta" or "text". */
static json_t *choice_of(const struct openai_model *m, const struct request *r, int index,
                         size_t from, const char *what, json_t *said)
{
    json_t *choice = json_object(), *logprobs = NULL;
    if (r->wants_logprobs)
        logprobs =
            r->kind == REQUEST_CHAT ? chat_logprobs(m, r, from) : completion_logprobs(m, r, from);
    json_put(choice, "index", json_integer(index));
    json_put(choice, what, said);
    json_put(choice, "logprobs", logprobs ? logprobs : json_null());
    json_put(choice, "finish_reason", finish_reason(r));
    add_extensions(r, from, choice);
    return choice;
}

/* All there is of one kind; NULL if there is nothing. */
static json_t *said(const struct request *r, enum output_kind kind)
{
    struct buf text = {0};
    output_events_gather(&r->said, kind, &text);
    json_t *v = text.len > 0 ? json_text(buf_str(&text)) : NULL;
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
    json_put(o, "index", json_integer(call));
    for (; *i < events->n && events->list[*i].call == call; ++*i) {
        if (events->list[*i].kind == OUTPUT_CALL) {
            char id[REQUEST_ID_BYTES];
            snprintf(id, sizeof id, "call_%016" PRIx64 "%08x", r->seq, (unsigned)call);
            json_put(o, "id", json_string(id));
            json_put(o, "type", json_string("function"));
            json_put(function, "name", json_text(output_events_text(events, *i)));
        } else if (events->list[*i].kind == OUTPUT_ARGUMENTS) {
            buf_append_str(&arguments, output_events_text(events, *i));
        }
    }
    json_put(function, "arguments", json_text(buf_str(&arguments)));
    json_put(o, "function", function);
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
        json_push(calls, call_of(r, &i));
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
    json_put(message, "role", json_string("assistant"));
    json_put(message, "content", content);
    if (reasoning)
        json_put(message, "reasoning_content", reasoning);
    json_array_foreach(calls, i, call)
    {
        json_object_del(call, "index"); /* is for pieces */
    }
    if (calls)
        json_put(message, "tool_calls", calls);
    return message;
}

/* /v1/completions knows content only. */
static json_t *completion_text(const struct openai_model *m, const struct request *r)
{
    struct buf text = {0};
    if (r->echoes && r->n_sent == 0)
        tokenizer_decode(m->tokenizer, r->prompt.ids, r->prompt.len, TOKENIZER_KEEP_SPECIAL, &text);
    output_events_gather(&r->said, OUTPUT_CONTENT, &text);
    json_t *v = json_text(buf_str(&text));
    buf_fini(&text);
    return v;
}

void openai_write_reply(const struct openai_model *m, const struct request *r, struct buf *out)
{
    bool chat = r->kind == REQUEST_CHAT;
    json_t *root = envelope(m, r, chat ? "chat.completion" : "text_completion");
    json_t *choices = json_array();
    const struct request *answers[REQUEST_MAX_CHOICES];
    int n = request_answers(r, answers);
    for (int i = 0; i < n; i++)
        json_push(choices,
                  chat ? choice_of(m, answers[i], i, 0, "message", chat_message(answers[i]))
                       : choice_of(m, answers[i], i, 0, "text", completion_text(m, answers[i])));
    json_put(root, "choices", choices);
    json_put(root, "usage", usage(r));
    json_write(root, out);
}

static json_t *chat_delta(const struct request *r)
{
    json_t *delta = json_object(), *reasoning = said(r, OUTPUT_REASONING);
    json_t *content = said(r, OUTPUT_CONTENT), *calls = calls_of(r);
    if (r->n_sent == 0)
        json_put(delta, "role", json_string("assistant"));
    if (reasoning)
        json_put(delta, "reasoning_content", reasoning);
    if (!content && r->n_sent == 0)
        content = json_string("");
    if (content)
        json_put(delta, "content", content);
    if (calls)
        json_put(delta, "tool_calls", calls);
    return delta;
}

/* What is new of choice `c`. */
static json_t *chunk(const struct openai_model *m, const struct request *r, const struct request *c)
{
    bool chat = r->kind == REQUEST_CHAT;
    json_t *root = envelope(m, r, chat ? "chat.completion.chunk" : "text_completion");
    json_t *choices = json_array();
    json_push(choices, chat ? choice_of(m, c, c->index, c->n_sent, "delta", chat_delta(c))
                            : choice_of(m, c, c->index, c->n_sent, "text", completion_text(m, c)));
    json_put(root, "choices", choices);
    if (r->wants_usage)
        json_put(root, "usage", json_null());
    return root;
}

void openai_write_events(const struct openai_model *m, const struct request *r, struct buf *out)
{
    uint64_t past = 0;
    bool has_events = false;
    for (const struct request *c = r; c; c = c->next) {
        if (!request_has_events(c))
            continue;
        has_events = true;
        if (c->output.len > c->seen)
            write_event(r, 0, chunk(m, r, c), out);
    }
    if (!has_events || !request_is_done(r))
        return;
    if (r->wants_usage && !is_seen(r, ++past)) {
        json_t *root =
            envelope(m, r, r->kind == REQUEST_CHAT ? "chat.completion.chunk" : "text_completion");
        json_put(root, "choices", json_array());
        json_put(root, "usage", usage(r));
        write_event(r, past, root, out);
    }
    if (is_seen(r, ++past))
        return;
    write_id(r, past, out);
    buf_puts(out, "[DONE]\n\n");
}
