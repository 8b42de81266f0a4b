/* coordinator/openai_chat.c - /v1/chat/completions: messages become a prompt; see openai.h. */
#include <string.h>

#include "coordinator/conversation.h"
#include "coordinator/openai_json.h"

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
    struct str *parts = conversation_array(c, n, sizeof *parts);
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
    out->id = json_str(json_object_get(call, "id"));
    json_t *arguments = json_field(function, "arguments");
    if (json_is_string(arguments) && json_string_length(arguments) > 0) {
        json_error_t why;
        struct str s = json_str(arguments);
        json_t *parsed = json_loadb(s.ptr, s.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
        if (!parsed)
            return openai_refuse(e, "json", at, "%s.function.arguments is not valid JSON: %s", at,
                                 why.text);
        arguments = conversation_keep(c, parsed);
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
    struct chat_tool_call *out = conversation_array(c, n, sizeof *out);
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
                         struct openai_error *e)
{
    struct place at = place("messages[%d]", i);
    if (!json_is_object(message))
        return openai_refuse(e, "type", at.name, "%s must be an object, not %s", at.name,
                             json_type_name(message));
    const json_t *role = json_object_get(message, "role");
    if (!json_is_string(role))
        return openai_refuse(e, "type", at.name, "%s.role must be a string", at.name);
    struct chat_message *m = conversation_add(c, chat_role_of(json_str(role)));
    /* OpenAI's newer name for the system's voice. */
    if (str_equal(json_str(role), STR("developer")))
        m->role = CHAT_SYSTEM;
    if (m->role == CHAT_OTHER)
        return openai_refuse(e, "role", at.name,
                             "%s.role \"%.40s\" is not one of system, user, assistant, tool",
                             at.name, json_string_value(role));
    if (m->role == CHAT_TOOL)
        m->answers = json_str(json_object_get(message, "tool_call_id"));
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
    for (size_t i = 0; i < n; i++) {
        int rc = parse_message(json_array_get(messages, i), (int)i, c, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* "auto", "none", "required", or the one tool that is to be called. */
static int read_choice(const json_t *body, struct conversation *c, bool *none,
                       struct openai_error *e)
{
    const json_t *choice = json_field(body, "tool_choice");
    const char *word = choice ? json_string_value(choice) : "auto";
    *none = word && strcmp(word, "none") == 0;
    if (*none || (word && strcmp(word, "auto") == 0))
        return 0;
    const json_t *name = json_object_get(json_object_get(choice, "function"), "name");
    if (!name && json_object_get(choice, "name"))
        name = json_object_get(choice, "name"); /* as /v1/responses has it */
    c->rules.forced = true;
    c->rules.only = json_str(name);
    if ((word && strcmp(word, "required") == 0) || c->rules.only.len > 0)
        return 0;
    return openai_refuse(e, "unsupported", "tool_choice",
                         "tool_choice must be \"auto\", \"none\", \"required\" or name a function");
}

int openai_read_tool_choice(const json_t *body, struct conversation *c, bool *none,
                            struct openai_error *e)
{
    bool parallel = true;
    int rc = read_choice(body, c, none, e);
    if (rc == 0)
        rc = json_read_bool(body, "parallel_tool_calls", &parallel, e);
    c->rules.single = !parallel;
    return rc;
}

static int parse_tools(const json_t *body, struct conversation *c, struct openai_error *e)
{
    const json_t *tools = json_field(body, "tools");
    bool none;
    if (tools && !json_is_array(tools))
        return openai_refuse(e, "type", "tools", "tools must be an array, not %s",
                             json_type_name(tools));
    int rc = openai_read_tool_choice(body, c, &none, e);
    if (tools && json_array_size(tools) > 0 && !none)
        c->prompt.tools = tools;
    return rc;
}

int openai_read_format(const json_t *format, const json_t *holder, const char *field,
                       struct conversation *c, struct openai_error *e)
{
    const char *type = json_string_value(json_object_get(format, "type"));
    if (type && strcmp(type, "text") == 0)
        return 0;
    if (type && strcmp(type, "json_object") == 0) {
        c->rules.value = conversation_keep(c, json_pack("{s:s}", "type", "object"));
        return 0;
    }
    if (!type || strcmp(type, "json_schema") != 0)
        return openai_refuse(e, "range", field, "%s.type must be text, json_object or json_schema",
                             field);
    c->rules.value = json_object_get(holder, "schema");
    return c->rules.value ? 0
                          : openai_refuse(e, "missing", field, "%s: the schema is missing", field);
}

static int parse_format(const json_t *body, struct conversation *c, struct openai_error *e)
{
    const json_t *format = json_field(body, "response_format");
    if (!format)
        return 0;
    return openai_read_format(format, json_object_get(format, "json_schema"), "response_format", c,
                              e);
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
    bool thinks = true, keeps = false;
    int rc = json_read_bool(kwargs, "enable_thinking", &thinks, e);
    if (rc == 0)
        rc = json_read_bool(kwargs, "preserve_thinking", &keeps, e);
    p->thinking = thinks ? CHAT_THINKING_ON : CHAT_THINKING_OFF;
    p->history = keeps ? CHAT_HISTORY_KEEPS : CHAT_HISTORY_FORGETS;
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

/* What belongs to /v1/completions would be ignored silently. */
static int refuse_unsupported(const json_t *body, struct openai_error *e)
{
    static const char *const fields[] = {"best_of", "echo", "suffix"};
    for (int i = 0; i < 3; i++) {
        const json_t *v = json_field(body, fields[i]);
        bool asks_nothing = json_is_false(v) || (json_is_integer(v) && json_integer_value(v) == 1);
        if (v && !asks_nothing)
            return openai_refuse(e, "unsupported", fields[i],
                                 "%s belongs to /v1/completions; a chat has no such thing",
                                 fields[i]);
    }
    return 0;
}

static int parse_chat(const struct openai_model *m, const json_t *body, struct request *r,
                      struct openai_error *e)
{
    struct conversation c = {0};
    int rc = openai_parse_common(m, body, r, e);
    if (rc == 0)
        rc = refuse_unsupported(body, e);
    if (rc == 0)
        rc = parse_logprobs(body, r, e);
    if (rc == 0)
        rc = parse_tools(body, &c, e);
    if (rc == 0)
        rc = parse_format(body, &c, e);
    if (rc == 0)
        rc = parse_thinking(body, &c.prompt, e);
    if (rc == 0)
        rc = parse_messages(body, &c, e);
    if (rc == 0)
        rc = conversation_finish(&c, m, r, e);
    if (rc == 0)
        request_spread(r, NULL, 0);
    conversation_fini(&c);
    return rc;
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
