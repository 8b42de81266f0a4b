/* coordinator/responses.c - a body of /v1/responses becomes a request; see responses.h. */
#include "coordinator/responses.h"

#include <string.h>

#include "coordinator/conversation.h"
#include "coordinator/json_write.h"
#include "coordinator/openai_json.h"

/* Reasoning, texts and calls that follow each other are one message of the assistant's. */
struct reader {
    struct conversation *c;
    int assistant;                /* index of the message that is being put together; -1: none */
    struct chat_tool_call *calls; /* room for one of each item */
    int n_calls;
};

static const char *type_of(const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    return type ? type : "";
}

/* A string, or an array of parts with texts, as one text. */
static int read_text(const json_t *content, const char *at, struct conversation *c, struct str *out,
                     struct openai_error *e)
{
    if (json_is_string(content)) {
        *out = json_str(content);
        return 0;
    }
    if (!json_is_array(content))
        return openai_refuse(e, "type", at, "%s must be a string or an array of parts", at);
    struct buf all = {0};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(content); i++) {
        static const char *const known[] = {"input_text", "output_text",  "text",
                                            "refusal",    "summary_text", "reasoning_text"};
        const json_t *part = json_array_get(content, i), *text = json_object_get(part, "text");
        bool is_known = false;
        for (size_t k = 0; k < sizeof known / sizeof known[0]; k++)
            is_known |= strcmp(type_of(part), known[k]) == 0;
        if (strcmp(type_of(part), "refusal") == 0)
            text = json_object_get(part, "refusal");
        if (!is_known)
            rc = openai_refuse(
                e, "unsupported", at,
                "%s[%zu]: type \"%.40s\" is not supported; this model reads text only", at, i,
                type_of(part));
        else if (!json_is_string(text))
            rc = openai_refuse(e, "type", at, "%s[%zu]: text must be a string", at, i);
        else
            buf_append_str(&all, json_str(text));
    }
    if (rc == 0)
        *out =
            json_str(conversation_keep(c, json_stringn_nocheck(all.data ? all.data : "", all.len)));
    buf_fini(&all);
    return rc;
}

/* The message of the assistant's that goes on. */
static struct chat_message *assistant(struct reader *d)
{
    if (d->assistant < 0) {
        conversation_add(d->c, CHAT_ASSISTANT)->reasoning = STR("");
        d->assistant = d->c->n_messages - 1;
    }
    return &d->c->messages[d->assistant];
}

/* More of a text that may be there already. */
static void append(struct conversation *c, struct str *text, struct str more)
{
    if (text->len == 0) {
        *text = more;
        return;
    }
    struct buf all = {0};
    buf_append_str(&all, *text);
    buf_append_str(&all, more);
    *text = json_str(conversation_keep(c, json_stringn_nocheck(all.data, all.len)));
    buf_fini(&all);
}

static int read_message(const json_t *item, const char *at, struct reader *d,
                        struct openai_error *e)
{
    const char *role = json_string_value(json_object_get(item, "role"));
    enum chat_role who = role ? chat_role_of(str_of(role)) : CHAT_OTHER;
    struct str text;
    if (role && strcmp(role, "developer") == 0)
        who = CHAT_SYSTEM;
    if (who == CHAT_OTHER || who == CHAT_TOOL)
        return openai_refuse(e, "role", at,
                             "%s.role \"%.40s\" is not one of user, assistant, system, developer",
                             at, role ? role : "");
    int rc =
        read_text(json_object_get(item, "content"), place("%s.content", at).name, d->c, &text, e);
    if (rc < 0)
        return rc;
    if (who == CHAT_ASSISTANT) {
        append(d->c, &assistant(d)->content, text);
        return 0;
    }
    d->assistant = -1;
    /* Instructions and the first messages of the system's are one. */
    if (who == CHAT_SYSTEM && d->c->n_messages == 1 && d->c->messages[0].role == CHAT_SYSTEM) {
        append(d->c, &d->c->messages[0].content, STR("\n\n"));
        append(d->c, &d->c->messages[0].content, text);
        return 0;
    }
    conversation_add(d->c, who)->content = text;
    return 0;
}

static int read_call(const json_t *item, const char *at, struct reader *d, struct openai_error *e)
{
    const json_t *name = json_object_get(item, "name"), *id = json_object_get(item, "call_id");
    const json_t *arguments = json_object_get(item, "arguments");
    struct chat_message *m = assistant(d);
    struct chat_tool_call *call = &d->calls[d->n_calls++];
    if (!json_is_string(name) || !json_is_string(id) || !json_is_string(arguments))
        return openai_refuse(e, "type", at, "%s: name, call_id and arguments must be strings", at);
    struct str text = json_str(arguments);
    json_t *parsed = json_loadb(text.ptr, text.len, JSON_ALLOW_NUL, NULL);
    if (text.len > 0 && !json_is_object(parsed)) {
        json_decref(parsed);
        return openai_refuse(e, "json", at, "%s.arguments must be the JSON text of an object", at);
    }
    *call = (struct chat_tool_call){.name = json_str(name), .id = json_str(id)};
    if (parsed)
        call->arguments = conversation_keep(d->c, parsed);
    if (m->n_tool_calls++ == 0)
        m->tool_calls = call;
    return 0;
}

static int read_item(const json_t *item, const char *at, struct reader *d, struct openai_error *e)
{
    const char *type = type_of(item);
    struct str text;
    if (!json_is_object(item))
        return openai_refuse(e, "type", at, "%s must be an object, not %s", at,
                             json_type_name(item));
    if (strcmp(type, "message") == 0 || (!*type && json_object_get(item, "role")))
        return read_message(item, at, d, e);
    if (strcmp(type, "function_call") == 0)
        return read_call(item, at, d, e);
    if (strcmp(type, "function_call_output") == 0) {
        int rc =
            read_text(json_object_get(item, "output"), place("%s.output", at).name, d->c, &text, e);
        if (rc < 0)
            return rc;
        struct chat_message *m = conversation_add(d->c, CHAT_TOOL);
        m->content = text;
        m->answers = json_str(json_object_get(item, "call_id"));
        d->assistant = -1;
        return m->answers.len > 0
                   ? 0
                   : openai_refuse(e, "results", at, "%s.call_id must be a string", at);
    }
    if (strcmp(type, "reasoning") == 0) {
        const json_t *content = json_field(item, "content");
        int rc = content ? read_text(content, place("%s.content", at).name, d->c, &text, e) : 0;
        if (rc == 0 && content && text.len > 0)
            append(d->c, &assistant(d)->reasoning, text);
        return rc;
    }
    return openai_refuse(e, "unsupported", at, "%s: type \"%.40s\" is not supported", at, type);
}

static int read_input(const json_t *body, struct conversation *c, struct openai_error *e)
{
    const json_t *input = json_field(body, "input"),
                 *instructions = json_field(body, "instructions");
    size_t n = json_array_size(input);
    if (instructions && !json_is_string(instructions))
        return openai_refuse(e, "type", "instructions", "instructions must be a string, not %s",
                             json_type_name(instructions));
    if (instructions)
        conversation_add(c, CHAT_SYSTEM)->content = json_str(instructions);
    if (json_is_string(input)) {
        conversation_add(c, CHAT_USER)->content = json_str(input);
        return 0;
    }
    if (!json_is_array(input) || n == 0)
        return openai_refuse(e, input ? "type" : "missing", "input",
                             "input must be a string or an array of at least one item");
    struct reader d = {.c = c, .assistant = -1};
    d.calls = conversation_array(c, n, sizeof *d.calls);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = read_item(json_array_get(input, i), place("input[%zu]", i).name, &d, e);
    return rc;
}

/* As chat has them: {"type": "function", "function": {...}}. */
static int read_tools(const json_t *body, struct conversation *c, bool none, struct openai_error *e)
{
    static const char *const fields[] = {"name", "description", "parameters", "strict"};
    const json_t *tools = json_field(body, "tools");
    if (!tools)
        return 0;
    if (!json_is_array(tools))
        return openai_refuse(e, "type", "tools", "tools must be an array, not %s",
                             json_type_name(tools));
    json_t *wrapped = conversation_keep(c, json_array());
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        struct place at = place("tools[%zu]", i);
        if (strcmp(type_of(tool), "function") != 0)
            return openai_refuse(e, "unsupported", at.name,
                                 "%s: type \"%.40s\" is not supported; tools are functions",
                                 at.name, type_of(tool));
        if (!json_is_string(json_object_get(tool, "name")))
            return openai_refuse(e, "type", at.name, "%s.name must be a string", at.name);
        json_t *function = json_object(), *one = json_object();
        for (int k = 0; k < 4; k++)
            if (json_field(tool, fields[k]))
                json_object_set(function, fields[k], json_field(tool, fields[k]));
        json_object_set_new(one, "type", json_string("function"));
        json_object_set_new(one, "function", function);
        json_array_append_new(wrapped, one);
    }
    if (json_array_size(wrapped) > 0 && !none)
        c->prompt.tools = wrapped;
    return 0;
}

static int refuse_unsupported(const json_t *body, struct openai_error *e)
{
    static const char *const stored[] = {"previous_response_id", "conversation", "prompt"};
    bool background = false;
    for (int i = 0; i < 3; i++)
        if (json_field(body, stored[i]))
            return openai_refuse(
                e, "unsupported", stored[i],
                "%s is not supported: this server keeps no responses; send the whole "
                "history as input",
                stored[i]);
    int rc = json_read_bool(body, "background", &background, e);
    if (rc == 0 && background)
        rc = openai_refuse(e, "unsupported", "background", "background is not supported");
    return rc;
}

static int read_numbers(const struct openai_model *m, const json_t *body, struct request *r,
                        struct openai_error *e)
{
    int64_t most = 0;
    int rc = json_read_int(body, "max_output_tokens", 1, INT32_MAX, &most, e);
    r->max_tokens = (uint32_t)(most < m->config->max_positions ? most : m->config->max_positions);
    if (rc == 0)
        rc = openai_read_sampling(m, body, &r->sampling, e);
    if (rc == 0)
        rc = openai_read_priority(body, r, e);
    if (rc == 0)
        rc = openai_read_stops(m, body, "stop", r, e);
    return rc < 0 ? rc : json_read_bool(body, "stream", &r->streams, e);
}

/* {"reasoning": {"effort": "none"}} answers at once; other efforts are the model's own affair. */
static void read_reasoning(const json_t *body, struct conversation *c)
{
    const char *effort =
        json_string_value(json_object_get(json_field(body, "reasoning"), "effort"));
    if (effort && strcmp(effort, "none") == 0)
        c->prompt.thinking = CHAT_THINKING_OFF;
}

static int read_body(const struct openai_model *m, const json_t *body, struct request *r,
                     struct openai_error *e)
{
    struct conversation c = {0};
    const json_t *format = json_field(json_field(body, "text"), "format");
    bool none = false;
    int rc = openai_read_model(m, body, e);
    if (rc == 0)
        rc = refuse_unsupported(body, e);
    if (rc == 0)
        rc = read_numbers(m, body, r, e);
    if (rc == 0)
        rc = openai_read_tool_choice(body, &c, &none, e);
    if (rc == 0)
        rc = read_tools(body, &c, none, e);
    if (rc == 0 && format)
        rc = openai_read_format(format, format, "text.format", &c, e);
    if (rc == 0)
        rc = read_input(body, &c, e);
    if (rc == 0) {
        read_reasoning(body, &c);
        rc = conversation_finish(&c, m, r, e);
    }
    conversation_fini(&c);
    return rc;
}

/* What the answer says again, as clients expect that keep it beside the question. */
static void keep_echo(const json_t *body, struct request *r)
{
    static const char *const keys[] = {
        "instructions",     "metadata", "parallel_tool_calls", "reasoning", "text",
        "tool_choice",      "tools",    "truncation",          "user",      "prompt_cache_key",
        "safety_identifier"};
    json_t *echo = json_object();
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_t *v = json_object_get(body, keys[i]);
        if (v && !json_is_null(v))
            json_object_set(echo, keys[i], v);
    }
    buf_reset(&r->echo);
    if (json_object_size(echo) > 0)
        json_write(json_incref(echo), &r->echo);
    json_decref(echo);
}

int responses_parse(const struct openai_model *m, struct str text, struct request *r,
                    struct openai_error *e)
{
    json_t *body;
    int rc = json_body(text, &body, e);
    if (rc < 0)
        return rc;
    rc = read_body(m, body, r, e);
    if (rc == 0)
        keep_echo(body, r);
    json_decref(body);
    return rc;
}
