/* coordinator/anthropic.c - a body of /v1/messages becomes a request; see anthropic.h. */
#include "coordinator/anthropic.h"

#include <string.h>

#include "coordinator/conversation.h"
#include "coordinator/openai_json.h"

/* What to do with the blocks of a message, in one pass: texts are collected, calls and results counted. */
struct blocks {
    struct conversation *c;
    const char *at; /* "messages[2].content" */
    struct str *texts;
    int n_texts;
    struct chat_tool_call *calls;
    int n_calls;
    struct buf thinking;
    bool has_thinking, has_results;
};

static const char *type_of(const json_t *block)
{
    const char *type = json_string_value(json_object_get(block, "type"));
    return type ? type : "";
}

static int read_string(const json_t *block, const char *field, const char *at, struct str *out,
                       struct openai_error *e)
{
    const json_t *v = json_object_get(block, field);
    if (!json_is_string(v))
        return openai_refuse(e, "type", at, "%s.%s must be a string", at, field);
    *out = json_str(v);
    return 0;
}

/* ---- tool results ------------------------------------------------------------------------ */

/* A result's texts as one. */
static int read_result_text(const json_t *content, const char *at, struct conversation *c,
                            struct str *out, struct openai_error *e)
{
    *out = STR("");
    if (!content)
        return 0;
    if (json_is_string(content)) {
        *out = json_str(content);
        return 0;
    }
    if (!json_is_array(content))
        return openai_refuse(e, "type", at, "%s.content must be a string or an array, not %s", at,
                             json_type_name(content));
    struct buf all = {0};
    struct str text;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(content); i++) {
        const json_t *block = json_array_get(content, i);
        struct place here = place("%s.content[%zu]", at, i);
        if (strcmp(type_of(block), "text") != 0)
            rc = openai_refuse(e, "unsupported", here.name,
                               "%s: type \"%.40s\" is not supported; this model reads text only",
                               here.name, type_of(block));
        else
            rc = read_string(block, "text", here.name, &text, e);
        if (rc == 0)
            buf_append_str(&all, text);
    }
    if (rc == 0)
        *out =
            json_str(conversation_keep(c, json_stringn_nocheck(all.data ? all.data : "", all.len)));
    buf_fini(&all);
    return rc;
}

static int read_result(const json_t *block, const char *at, struct blocks *b,
                       struct openai_error *e)
{
    struct str id, text;
    if (b->n_texts > 0)
        return openai_refuse(e, "results", at, "%s: tool results come before the message's texts",
                             at);
    int rc = read_string(block, "tool_use_id", at, &id, e);
    if (rc == 0 && id.len == 0)
        rc = openai_refuse(e, "results", at, "%s.tool_use_id is empty", at);
    if (rc == 0)
        rc = read_result_text(json_field(block, "content"), at, b->c, &text, e);
    if (rc < 0)
        return rc;
    struct chat_message *m = conversation_add(b->c, CHAT_TOOL);
    m->answers = id;
    m->content = text;
    b->has_results = true;
    return 0;
}

/* ---- messages ---------------------------------------------------------------------------- */

static int read_call(const json_t *block, const char *at, struct blocks *b, struct openai_error *e)
{
    struct chat_tool_call *call = &b->calls[b->n_calls++];
    int rc = read_string(block, "name", at, &call->name, e);
    if (rc == 0)
        rc = read_string(block, "id", at, &call->id, e);
    const json_t *input = json_field(block, "input");
    if (rc == 0 && input && !json_is_object(input))
        rc = openai_refuse(e, "type", at, "%s.input must be an object, not %s", at,
                           json_type_name(input));
    call->arguments = input;
    return rc;
}

static int read_block(const json_t *block, enum chat_role role, const char *at, struct blocks *b,
                      struct openai_error *e)
{
    const char *type = type_of(block);
    struct str text;
    if (!json_is_object(block))
        return openai_refuse(e, "type", at, "%s must be an object, not %s", at,
                             json_type_name(block));
    if (strcmp(type, "text") == 0)
        return read_string(block, "text", at, &b->texts[b->n_texts++], e);
    if (strcmp(type, "tool_result") == 0 && role == CHAT_USER)
        return read_result(block, at, b, e);
    if (strcmp(type, "tool_use") == 0 && role == CHAT_ASSISTANT)
        return read_call(block, at, b, e);
    if (strcmp(type, "redacted_thinking") == 0 && role == CHAT_ASSISTANT)
        return 0; /* nobody but its maker can read it */
    if (strcmp(type, "thinking") == 0 && role == CHAT_ASSISTANT) {
        int rc = read_string(block, "thinking", at, &text, e);
        if (rc == 0)
            buf_append_str(&b->thinking, text);
        b->has_thinking = true;
        return rc;
    }
    return openai_refuse(e, "unsupported", at, "%s: type \"%.40s\" is not supported here", at,
                         type);
}

static int read_blocks(const json_t *content, enum chat_role role, struct blocks *b,
                       struct openai_error *e)
{
    size_t n = json_array_size(content);
    b->texts = conversation_array(b->c, n, sizeof *b->texts);
    if (role == CHAT_ASSISTANT)
        b->calls = conversation_array(b->c, n, sizeof *b->calls);
    int rc = n > 0 ? 0 : openai_refuse(e, "empty", b->at, "%s is empty", b->at);
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = read_block(json_array_get(content, i), role, place("%s[%zu]", b->at, i).name, b, e);
    return rc;
}

/* A user's message of results alone is none for the template: the turn goes on. */
static void add_message(enum chat_role role, struct blocks *b)
{
    if (role == CHAT_USER && b->has_results && b->n_texts == 0)
        return;
    struct chat_message *m = conversation_add(b->c, role);
    m->parts = b->texts;
    m->n_parts = b->n_texts;
    m->tool_calls = b->calls;
    m->n_tool_calls = b->n_calls;
    if (role != CHAT_ASSISTANT)
        return;
    m->reasoning = STR("");
    if (b->has_thinking && b->thinking.len > 0)
        m->reasoning = json_str(
            conversation_keep(b->c, json_stringn_nocheck(b->thinking.data, b->thinking.len)));
}

static int read_message(const json_t *message, int i, struct conversation *c,
                        struct openai_error *e)
{
    struct place at = place("messages[%d]", i), inside = place("messages[%d].content", i);
    const char *role = json_string_value(json_object_get(message, "role"));
    enum chat_role who = role ? chat_role_of(str_of(role)) : CHAT_OTHER;
    if (!json_is_object(message))
        return openai_refuse(e, "type", at.name, "%s must be an object, not %s", at.name,
                             json_type_name(message));
    if (who != CHAT_USER && who != CHAT_ASSISTANT)
        return openai_refuse(
            e, "role", at.name,
            "%s.role \"%.40s\" is neither user nor assistant; instructions go into "
            "\"system\"",
            at.name, role ? role : "");
    const json_t *content = json_field(message, "content");
    if (json_is_string(content)) {
        struct chat_message *m = conversation_add(c, who);
        m->content = json_str(content);
        m->reasoning = STR("");
        return 0;
    }
    if (!json_is_array(content))
        return openai_refuse(e, "type", inside.name,
                             "%s must be a string or an array of blocks, not %s", inside.name,
                             content ? json_type_name(content) : "missing");
    struct blocks b = {.c = c, .at = inside.name};
    int rc = read_blocks(content, who, &b, e);
    if (rc == 0)
        add_message(who, &b);
    buf_fini(&b.thinking);
    return rc;
}

static int read_messages(const json_t *body, struct conversation *c, struct openai_error *e)
{
    const json_t *messages = json_field(body, "messages");
    if (!messages)
        return openai_refuse(e, "missing", "messages", "messages: field required");
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return openai_refuse(e, "type", "messages", "messages must be an array of at least one");
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(messages); i++)
        rc = read_message(json_array_get(messages, i), (int)i, c, e);
    if (rc == 0 && c->messages[c->n_messages - 1].role == CHAT_ASSISTANT)
        return openai_refuse(e, "unsupported", "messages",
                             "messages: the last one must be the user's; going on with a message "
                             "of the assistant is not supported");
    return rc;
}

static int read_system(const json_t *body, struct conversation *c, struct openai_error *e)
{
    const json_t *system = json_field(body, "system");
    if (!system)
        return 0;
    struct chat_message *m = conversation_add(c, CHAT_SYSTEM);
    if (json_is_string(system)) {
        m->content = json_str(system);
        return 0;
    }
    if (!json_is_array(system))
        return openai_refuse(e, "type", "system",
                             "system must be a string or an array of text blocks, not %s",
                             json_type_name(system));
    size_t n = json_array_size(system);
    struct str *texts = conversation_array(c, n, sizeof *texts);
    for (size_t i = 0; i < n; i++) {
        const json_t *block = json_array_get(system, i);
        struct place at = place("system[%zu]", i);
        if (strcmp(type_of(block), "text") != 0)
            return openai_refuse(e, "unsupported", at.name, "%s must be a text block", at.name);
        int rc = read_string(block, "text", at.name, &texts[i], e);
        if (rc < 0)
            return rc;
    }
    m->parts = texts;
    m->n_parts = (int)n;
    return 0;
}

/* ---- tools and thinking ---------------------------------------------------------------------- */

/* As the template wants it: {"type": "function", "function": {name, description, parameters}}. */
static int read_tool(const json_t *tool, const char *at, json_t *out, struct openai_error *e)
{
    const char *type = type_of(tool);
    json_t *name = json_object_get(tool, "name"), *schema = json_field(tool, "input_schema");
    json_t *description = json_field(tool, "description");
    if (type[0] && strcmp(type, "custom") != 0)
        return openai_refuse(e, "unsupported", at,
                             "%s: type \"%.40s\" is a tool of the server's; this one has none", at,
                             type);
    if (!json_is_string(name))
        return openai_refuse(e, "type", at, "%s.name must be a string", at);
    if (!json_is_object(schema))
        return openai_refuse(e, "type", at, "%s.input_schema must be an object", at);
    if (description && !json_is_string(description))
        return openai_refuse(e, "type", at, "%s.description must be a string", at);
    json_t *function = json_object(), *wrapped = json_object();
    json_object_set(function, "name", name);
    if (description)
        json_object_set(function, "description", description);
    json_object_set(function, "parameters", schema);
    if (json_is_true(json_object_get(tool, "strict")))
        json_object_set_new(function, "strict", json_true());
    json_object_set_new(wrapped, "type", json_string("function"));
    json_object_set_new(wrapped, "function", function);
    json_array_append_new(out, wrapped);
    return 0;
}

static int read_tool_choice(const json_t *body, struct conversation *c, bool *none,
                            struct openai_error *e)
{
    const json_t *choice = json_field(body, "tool_choice");
    const char *type = type_of(choice);
    *none = strcmp(type, "none") == 0;
    if (!choice || *none)
        return 0;
    int rc = json_read_bool(choice, "disable_parallel_tool_use", &c->rules.single, e);
    if (rc < 0 || strcmp(type, "auto") == 0)
        return rc;
    c->rules.forced = true;
    c->rules.only = json_str(json_object_get(choice, "name"));
    if (strcmp(type, "any") == 0 || (strcmp(type, "tool") == 0 && c->rules.only.len > 0))
        return 0;
    return openai_refuse(e, "range", "tool_choice",
                         "tool_choice.type must be auto, any, none, or tool with a name");
}

/* output_config.format, and its older name output_format. */
static int read_format(const json_t *body, struct conversation *c, struct openai_error *e)
{
    const json_t *format = json_field(json_field(body, "output_config"), "format");
    if (!format)
        format = json_field(body, "output_format");
    if (!format)
        return 0;
    c->rules.value = json_object_get(format, "schema");
    if (strcmp(type_of(format), "json_schema") == 0 && c->rules.value)
        return 0;
    return openai_refuse(e, "range", "output_config",
                         "output_config.format must have type json_schema and a schema");
}

static int read_tools(const json_t *body, struct conversation *c, struct openai_error *e)
{
    const json_t *tools = json_field(body, "tools");
    bool none;
    int rc = read_tool_choice(body, c, &none, e);
    if (rc < 0 || !tools)
        return rc;
    if (!json_is_array(tools))
        return openai_refuse(e, "type", "tools", "tools must be an array, not %s",
                             json_type_name(tools));
    json_t *wrapped = conversation_keep(c, json_array());
    for (size_t i = 0; rc == 0 && i < json_array_size(tools); i++)
        rc = read_tool(json_array_get(tools, i), place("tools[%zu]", i).name, wrapped, e);
    if (rc == 0 && !none && json_array_size(wrapped) > 0)
        c->prompt.tools = wrapped;
    return rc;
}

static int read_thinking(const json_t *body, struct conversation *c, struct openai_error *e)
{
    const json_t *thinking = json_field(body, "thinking");
    const char *type = type_of(thinking);
    if (!thinking || strcmp(type, "enabled") == 0 || strcmp(type, "adaptive") == 0)
        return 0;
    c->prompt.thinking = CHAT_THINKING_OFF;
    return strcmp(type, "disabled") == 0
               ? 0
               : openai_refuse(e, "range", "thinking",
                               "thinking.type must be enabled, adaptive or disabled");
}

/* ---- the request ----------------------------------------------------------------------------- */

enum purpose { TO_ANSWER, TO_COUNT };

static int read_numbers(const struct openai_model *m, const json_t *body, struct request *r,
                        struct openai_error *e)
{
    int64_t max_tokens = 0;
    int rc = json_read_int(body, "max_tokens", 1, INT32_MAX, &max_tokens, e);
    if (rc == 0 && max_tokens == 0)
        rc = openai_refuse(e, "missing", "max_tokens", "max_tokens: field required");
    if (rc < 0)
        return rc;
    r->max_tokens = max_tokens < m->config->max_positions ? (uint32_t)max_tokens
                                                          : (uint32_t)m->config->max_positions;
    rc = openai_read_sampling(m, body, &r->sampling, e);
    if (rc == 0)
        rc = openai_read_priority(body, r, e);
    return rc < 0 ? rc : json_read_bool(body, "stream", &r->streams, e);
}

static int read_body(const struct openai_model *m, const json_t *body, enum purpose purpose,
                     struct request *r, struct openai_error *e)
{
    struct conversation c = {0};
    int rc = openai_read_model(m, body, e);
    if (rc == 0 && purpose == TO_ANSWER)
        rc = read_numbers(m, body, r, e);
    if (rc == 0)
        rc = openai_read_stops(m, body, "stop_sequences", r, e);
    if (rc == 0)
        rc = read_tools(body, &c, e);
    if (rc == 0)
        rc = read_thinking(body, &c, e);
    if (rc == 0)
        rc = read_format(body, &c, e);
    if (rc == 0)
        rc = read_system(body, &c, e);
    if (rc == 0)
        rc = read_messages(body, &c, e);
    if (rc == 0)
        rc = conversation_finish(&c, m, r, e);
    conversation_fini(&c);
    return rc;
}

static int parse(const struct openai_model *m, struct str text, enum purpose purpose,
                 struct request *r, struct openai_error *e)
{
    json_t *body;
    int rc = json_body(text, &body, e);
    if (rc < 0)
        return rc;
    rc = read_body(m, body, purpose, r, e);
    json_decref(body);
    return rc;
}

int anthropic_parse(const struct openai_model *m, struct str body, struct request *r,
                    struct openai_error *e)
{
    return parse(m, body, TO_ANSWER, r, e);
}

int anthropic_parse_count(const struct openai_model *m, struct str body, struct request *r,
                          struct openai_error *e)
{
    return parse(m, body, TO_COUNT, r, e);
}
