/* coordinator/openai_chat.c - /v1/chat/completions: messages become a prompt; see openai.h. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/openai.h"
#include "coordinator/openai_json.h"

/* The conversation while it is read.  Strings stay in the body's JSON. */
struct conversation {
    struct chat_message *messages;
    int n_messages;
    json_t *keep;  /* what was parsed out of strings in the body */
    void **arrays; /* parts and calls, to be freed */
    int n_arrays;
};

static void conversation_fini(struct conversation *c)
{
    for (int i = 0; i < c->n_arrays; i++)
        mem_free(c->arrays[i]);
    mem_free(c->arrays);
    mem_free(c->messages);
    json_decref(c->keep);
    *c = (struct conversation){0};
}

static void *new_array(struct conversation *c, size_t count, size_t size)
{
    return c->arrays[c->n_arrays++] = mem_array(count ? count : 1, size);
}

struct place {
    char name[64];
};
__attribute__((format(printf, 1, 2))) static struct place place(const char *format, ...)
{
    struct place p;
    va_list args;
    va_start(args, format);
    vsnprintf(p.name, sizeof p.name, format, args);
    va_end(args);
    return p;
}

static int parse_part(const json_t *part, const char *at, struct str *out, struct openai_error *e)
{
    if (json_is_string(part)) {
        *out = json_str(part);
        return 0;
    }
    if (!json_is_object(part))
        return openai_refuse(e, "type", at, "%s must be an object, not %s", at,
                             json_type_name(part));
    const char *type = json_string_value(json_object_get(part, "type"));
    if (!type)
        return openai_refuse(e, "type", at, "%s has no type", at);
    if (strcmp(type, "text") != 0)
        return openai_refuse(e, "unsupported", at,
                             "%s: type \"%.40s\" is not supported; this model reads text only", at,
                             type);
    const json_t *text = json_object_get(part, "text");
    if (!json_is_string(text))
        return openai_refuse(e, "type", at, "%s: text must be a string", at);
    *out = json_str(text);
    return 0;
}

static int parse_content(const json_t *message, int i, struct conversation *c,
                         struct chat_message *m, struct openai_error *e)
{
    const json_t *content = json_field(message, "content");
    struct place at = place("messages[%d].content", i);
    if (!content) {
        if (m->role == CHAT_ASSISTANT)
            return 0; /* tool calls or reasoning alone */
        return openai_refuse(e, "missing", at.name, "%s is missing", at.name);
    }
    if (json_is_string(content)) {
        m->content = json_str(content);
        return 0;
    }
    if (!json_is_array(content))
        return openai_refuse(e, "type", at.name, "%s must be a string or an array of parts, not %s",
                             at.name, json_type_name(content));
    size_t n = json_array_size(content);
    struct str *parts = new_array(c, n, sizeof *parts);
    for (size_t k = 0; k < n; k++) {
        int rc = parse_part(json_array_get(content, k),
                            place("messages[%d].content[%zu]", i, k).name, &parts[k], e);
        if (rc < 0)
            return rc;
    }
    m->parts = parts;
    m->n_parts = (int)n;
    return 0;
}

static int parse_call(const json_t *call, const char *at, struct conversation *c,
                      struct chat_tool_call *out, struct openai_error *e)
{
    const json_t *function = json_object_get(call, "function");
    const json_t *name = json_object_get(function, "name");
    if (!json_is_string(name))
        return openai_refuse(e, "type", at, "%s.function.name must be a string", at);
    out->name = json_str(name);
    json_t *arguments = json_field(function, "arguments");
    if (json_is_string(arguments) && json_string_length(arguments) > 0) {
        json_error_t why;
        struct str s = json_str(arguments);
        json_t *parsed = json_loadb(s.ptr, s.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
        if (!parsed)
            return openai_refuse(e, "json", at, "%s.function.arguments is not valid JSON: %s", at,
                                 why.text);
        json_array_append_new(c->keep, parsed);
        arguments = parsed;
    } else if (json_is_string(arguments)) {
        arguments = NULL;
    }
    if (arguments && !json_is_object(arguments))
        return openai_refuse(e, "type", at, "%s.function.arguments must be an object, not %s", at,
                             json_type_name(arguments));
    out->arguments = arguments;
    return 0;
}

static int parse_calls(const json_t *message, int i, struct conversation *c, struct chat_message *m,
                       struct openai_error *e)
{
    const json_t *calls = json_field(message, "tool_calls");
    struct place at = place("messages[%d].tool_calls", i);
    if (!calls)
        return 0;
    if (!json_is_array(calls))
        return openai_refuse(e, "type", at.name, "%s must be an array, not %s", at.name,
                             json_type_name(calls));
    size_t n = json_array_size(calls);
    struct chat_tool_call *out = new_array(c, n, sizeof *out);
    for (size_t k = 0; k < n; k++) {
        int rc =
            parse_call(json_array_get(calls, k), place("%s[%zu]", at.name, k).name, c, &out[k], e);
        if (rc < 0)
            return rc;
    }
    m->tool_calls = out;
    m->n_tool_calls = (int)n;
    return 0;
}

static int parse_message(const json_t *message, int i, struct conversation *c,
                         struct chat_message *m, struct openai_error *e)
{
    struct place at = place("messages[%d]", i);
    if (!json_is_object(message))
        return openai_refuse(e, "type", at.name, "%s must be an object, not %s", at.name,
                             json_type_name(message));
    const json_t *role = json_object_get(message, "role");
    if (!json_is_string(role))
        return openai_refuse(e, "type", at.name, "%s.role must be a string", at.name);
    m->role = chat_role_of(json_str(role));
    /* OpenAI's newer name for the system's voice. */
    if (str_equal(json_str(role), STR("developer")))
        m->role = CHAT_SYSTEM;
    if (m->role == CHAT_OTHER)
        return openai_refuse(e, "role", at.name,
                             "%s.role \"%.40s\" is not one of system, user, assistant, tool",
                             at.name, json_string_value(role));
    const json_t *reasoning = json_field(message, "reasoning_content");
    if (!reasoning)
        reasoning = json_field(message, "reasoning");
    if (json_is_string(reasoning))
        m->reasoning = json_str(reasoning);
    int rc = parse_content(message, i, c, m, e);
    return rc < 0 ? rc : parse_calls(message, i, c, m, e);
}

static int parse_messages(const json_t *body, struct conversation *c, struct openai_error *e)
{
    const json_t *messages = json_field(body, "messages");
    if (!messages)
        return openai_refuse(e, "missing", "messages", "messages is missing");
    if (!json_is_array(messages))
        return openai_refuse(e, "type", "messages", "messages must be an array, not %s",
                             json_type_name(messages));
    size_t n = json_array_size(messages);
    if (n == 0)
        return openai_refuse(e, "empty", "messages", "messages is empty");
    c->messages = mem_array(n, sizeof *c->messages);
    c->arrays = mem_array(2 * n, sizeof *c->arrays);
    c->keep = json_array();
    c->n_messages = (int)n;
    for (size_t i = 0; i < n; i++) {
        int rc = parse_message(json_array_get(messages, i), (int)i, c, &c->messages[i], e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The tools that the model is told of; forcing it to use one is not possible yet. */
static int parse_tools(const json_t *body, struct chat_prompt *p, struct openai_error *e)
{
    const json_t *tools = json_field(body, "tools"), *choice = json_field(body, "tool_choice");
    if (tools && !json_is_array(tools))
        return openai_refuse(e, "type", "tools", "tools must be an array, not %s",
                             json_type_name(tools));
    const char *word = choice ? json_string_value(choice) : "auto";
    bool none = word && strcmp(word, "none") == 0;
    if (!none && (!word || strcmp(word, "auto") != 0))
        return openai_refuse(e, "unsupported", "tool_choice",
                             "tool_choice must be \"auto\" or \"none\"; a tool cannot be forced");
    if (tools && json_array_size(tools) > 0 && !none)
        p->tools = tools;
    return 0;
}

static int parse_thinking(const json_t *body, struct chat_prompt *p, struct openai_error *e)
{
    const json_t *kwargs = json_field(body, "chat_template_kwargs");
    if (!kwargs)
        return 0;
    if (!json_is_object(kwargs))
        return openai_refuse(e, "type", "chat_template_kwargs",
                             "chat_template_kwargs must be an object, not %s",
                             json_type_name(kwargs));
    bool thinks = true;
    int rc = json_read_bool(kwargs, "enable_thinking", &thinks, e);
    p->thinking = thinks ? CHAT_THINKING_ON : CHAT_THINKING_OFF;
    return rc;
}

static int parse_logprobs(const json_t *body, struct request *r, struct openai_error *e)
{
    int64_t n_top = -1;
    int rc = json_read_bool(body, "logprobs", &r->wants_logprobs, e);
    if (rc == 0)
        rc = json_read_int(body, "top_logprobs", 0, SAMPLING_MAX_TOP, &n_top, e);
    if (rc < 0)
        return rc;
    if (n_top >= 0 && !r->wants_logprobs)
        return openai_refuse(e, "range", "top_logprobs", "top_logprobs needs logprobs: true");
    r->sampling.logprobs = r->wants_logprobs;
    r->sampling.n_top = n_top > 0 ? (int)n_top : 0;
    return 0;
}

static int parse_chat(const struct openai_model *m, const json_t *body, struct request *r,
                      struct openai_error *e)
{
    struct conversation c = {0};
    struct chat_prompt p = {.ending = CHAT_ASK_FOR_ANSWER};
    int rc = openai_parse_common(m, body, r, e);
    if (rc == 0 && !m->chat)
        rc = openai_refuse(e, "unsupported", "messages",
                           "this model has no tokenizer with a chat template: send token ids to "
                           "/v1/completions");
    if (rc == 0)
        rc = parse_logprobs(body, r, e);
    if (rc == 0)
        rc = parse_tools(body, &p, e);
    if (rc == 0)
        rc = parse_thinking(body, &p, e);
    if (rc == 0)
        rc = parse_messages(body, &c, e);
    if (rc == 0) {
        struct err why = {0};
        p.messages = c.messages;
        p.n_messages = c.n_messages;
        if (chat_render(m->chat, &p, &r->prompt, &why) < 0)
            rc = openai_refuse(e, "template", "messages", "%s", why.text);
    }
    if (rc == 0)
        stream_split(&r->text_of,
                     p.thinking == CHAT_THINKING_ON ? OUTPUT_IN_REASONING : OUTPUT_IN_CONTENT,
                     p.tools);
    conversation_fini(&c);
    return rc < 0 ? rc : openai_check_prompt(m, r, e);
}

int openai_parse_chat(const struct openai_model *m, struct str text, struct request *r,
                      struct openai_error *e)
{
    json_t *body;
    int rc = json_body(text, &body, e);
    if (rc < 0)
        return rc;
    rc = parse_chat(m, body, r, e);
    json_decref(body);
    return rc;
}
