/* model/chat_m3.c - MiniMax-M3's chat template; see chat.h.
 *
 * A system block of the publisher's, with how to think; a developer block with the caller's
 * system message and tools; reasoning stays in every turn, without line feeds around it.  In tool
 * calls every tag follows a token of its own ("namespace"), a parameter is an element named by its
 * key, objects and arrays are nested elements. */
#include "base/err.h"
#include "model/chat_script.h"

enum { MAX_DEPTH = 64 };

static const char identity[] =
    "Your model version is MiniMax-M3, developed by MiniMax. Knowledge cutoff: January 2026. "
    "Founded in early 2022, MiniMax is a global AI foundation model company committed to advancing "
    "the frontiers of AI towards AGI.";
#define DEFAULT_DEVELOPER STR("You are a helpful assistant.")

static void put_system(struct script *s, enum chat_thinking thinking)
{
    put_mark(s, CHAT_MARK_BEGIN);
    put_role(s, "system\n");
    put_text(s, identity);
    put_text(s, "\n\n<thinking_instructions>\n"
                "You have a thinking capability that allows you to reason step by step before "
                "responding. When thinking is enabled, wrap your reasoning in ");
    put_mark(s, CHAT_MARK_M3_THINK);
    put_mark(s, CHAT_MARK_M3_END_THINK);
    put_text(s, " tags before your response. When thinking is disabled, begin your response "
                "directly after the ");
    put_mark(s, CHAT_MARK_M3_END_THINK);
    put_text(s, " prefix. When thinking is adaptive, decide on your own whether to think for the "
                "current turn.\n");
    put_text(s, thinking == CHAT_THINKING_ON
                    ? "Current thinking mode: enabled. You MUST think step by step before every "
                      "response, including after receiving function/tool results."
                    : "Current thinking mode: disabled. Do not output any thinking process.");
    put_text(s, "\n</thinking_instructions>");
    put_end(s);
}

/* ---- tools ---- */

/* A tag after its namespace: "<" or "</", then the name. */
static void put_tag(struct script *s, const char *open, struct str name)
{
    put_mark(s, CHAT_MARK_M3_NAMESPACE);
    put_text(s, open);
    put_str(s, name);
    put_text(s, ">");
}

static void put_calls(struct script *s, enum chat_marker marker)
{
    put_mark(s, CHAT_MARK_M3_NAMESPACE);
    put_mark(s, marker);
}

static void put_leaf(struct script *s, const char *name, const char *value)
{
    put_tag(s, "<", str_of(name));
    put_text(s, value);
    put_tag(s, "</", str_of(name));
}

static void put_example(struct script *s)
{
    put_calls(s, CHAT_MARK_M3_CALLS);
    put_text(s, "\n");
    put_tag(s, "<", STR("invoke name=\"tool-name-1\""));
    put_leaf(s, "param-1", "value-1");
    put_tag(s, "<", STR("param-2"));
    put_tag(s, "<", STR("item"));
    put_leaf(s, "key-a", "val-a");
    put_leaf(s, "key-b", "val-b");
    put_tag(s, "</", STR("item"));
    put_tag(s, "</", STR("param-2"));
    put_tag(s, "</", STR("invoke"));
    put_text(s, "\n");
    put_tag(s, "<", STR("invoke name=\"tool-name-2\""));
    put_leaf(s, "param-1", "value-1");
    put_tag(s, "</", STR("invoke"));
    put_text(s, "\n");
    put_calls(s, CHAT_MARK_M3_END_CALLS);
}

static int put_tools(struct script *s, const json_t *tools, struct err *e)
{
    const json_t *tool;
    size_t i;

    put_text(s, "\n\n# Tools\n"
                "You may call one or more tools to assist with the user query.\n"
                "Here are the tools available in JSONSchema format:\n\n<tools>\n");
    json_array_foreach(tools, i, tool)
    {
        const json_t *function = json_object_get(tool, "function");
        if (!json_is_object(function))
            return err_set(e, E_INVALID, "tools[%zu]: 'function' is not an object", i);
        put_text(s, "<tool>");
        chat_dump_json(function, &s->text);
        put_text(s, "</tool>\n");
    }
    put_text(s, "</tools>\n\nTo call tools, wrap all invocations in a single ");
    put_calls(s, CHAT_MARK_M3_CALLS);
    put_calls(s, CHAT_MARK_M3_END_CALLS);
    put_text(s, " block. Parameter values containing nested objects or arrays are recursively "
                "expanded into XML elements. Example:\n\n");
    put_example(s);
    return 0;
}

static int put_developer(struct script *s, const struct chat_prompt *p,
                         const struct chat_message *system, struct err *e)
{
    struct buf joined = {0};
    struct str text = system ? chat_content_of(system, &joined) : (struct str){NULL, 0};
    int rc = 0;

    put_role(s, "developer\n");
    if (text.len > 0)
        put_str(s, text);
    else
        put_str(s, p->model_identity.len > 0 ? p->model_identity : DEFAULT_DEVELOPER);
    buf_fini(&joined);
    if (json_array_size(p->tools) > 0)
        rc = put_tools(s, p->tools, e);
    put_end(s);
    return rc;
}

/* ---- turns ---- */

static int put_value(struct script *s, const json_t *value, int depth, struct err *e);

static int put_element(struct script *s, const char *name, const json_t *value, int depth,
                       struct err *e)
{
    if (json_is_null(value))
        return 0;
    put_tag(s, "<", str_of(name));
    int rc = put_value(s, value, depth, e);
    put_tag(s, "</", str_of(name));
    return rc;
}

static int put_value(struct script *s, const json_t *value, int depth, struct err *e)
{
    json_t *object = (json_t *)(uintptr_t)value; /* iterators want it non-const */
    json_t *item;
    const char *key;
    size_t i;
    int rc = 0;

    if (depth == MAX_DEPTH)
        return err_set(e, E_INVALID, "arguments are nested deeper than %d", MAX_DEPTH);
    if (json_is_object(value)) {
        json_object_foreach(object, key, item) if (rc == 0) rc =
            put_element(s, key, item, depth + 1, e);
    } else if (json_is_array(value)) {
        json_array_foreach(object, i, item) if (rc == 0) rc =
            put_element(s, "item", item, depth + 1, e);
    } else if (json_is_string(value)) {
        put_str(s, (struct str){json_string_value(value), json_string_length(value)});
    } else {
        chat_dump_json(value, &s->text);
    }
    return rc;
}

static int put_call(struct script *s, const struct chat_tool_call *call, struct err *e)
{
    if (call->arguments && !json_is_object(call->arguments))
        return err_set(e, E_INVALID, "arguments are not a JSON object");
    put_mark(s, CHAT_MARK_M3_NAMESPACE);
    put_text(s, "<invoke name=\"");
    put_str(s, call->name);
    put_text(s, "\">");
    int rc = call->arguments ? put_value(s, call->arguments, 0, e) : 0;
    put_tag(s, "</", STR("invoke"));
    put_text(s, "\n");
    return rc;
}

static int put_assistant(struct script *s, const struct chat_message *m, struct err *e)
{
    struct buf joined = {0};
    struct str content = chat_content_of(m, &joined), reasoning = m->reasoning;
    int rc = 0;

    if (!reasoning.ptr)
        chat_split_reasoning(STR("<mm:think>"), STR("</mm:think>"), &content, &reasoning);
    if (!reasoning.ptr)
        chat_split_reasoning(STR("<think>"), STR("</think>"), &content, &reasoning);
    put_role(s, "ai\n");
    if (reasoning.len > 0) {
        put_mark(s, CHAT_MARK_M3_THINK);
        put_str(s, reasoning);
    }
    put_mark(s, CHAT_MARK_M3_END_THINK);
    put_str(s, content);
    buf_fini(&joined);
    if (m->n_tool_calls > 0) {
        put_calls(s, CHAT_MARK_M3_CALLS);
        put_text(s, "\n");
        for (int i = 0; i < m->n_tool_calls && rc == 0; i++)
            if (put_call(s, &m->tool_calls[i], e) < 0)
                rc = err_prefix(e, "tool call %d", i);
        put_calls(s, CHAT_MARK_M3_END_CALLS);
    }
    put_end(s);
    return rc;
}

static void put_results(struct script *s, const struct chat_message *m)
{
    for (int i = 0; i < (m->n_parts > 0 ? m->n_parts : 1); i++) {
        put_text(s, "\n<response>");
        put_str(s, m->n_parts > 0 ? m->parts[i] : m->content);
        put_text(s, "</response>");
    }
}

/* `asked`: whether the latest assistant message called tools. */
static int put_message(struct script *s, const struct chat_prompt *p, int i, bool *asked,
                       struct err *e)
{
    const struct chat_message *m = &p->messages[i];
    struct buf joined = {0};

    switch (m->role) {
    case CHAT_USER:
        put_role(s, "user\n");
        put_str(s, chat_content_of(m, &joined));
        put_end(s);
        buf_fini(&joined);
        return 0;
    case CHAT_ASSISTANT:
        *asked = m->n_tool_calls > 0;
        return put_assistant(s, m, e);
    case CHAT_TOOL:
        if (!*asked)
            return err_set(e, E_INVALID,
                           "a tool result, but no assistant message with tool calls before it");
        if (i == 0 || m[-1].role != CHAT_TOOL)
            put_role(s, "tool");
        put_results(s, m);
        if (i + 1 == p->n_messages || m[1].role != CHAT_TOOL)
            put_end(s);
        return 0;
    case CHAT_SYSTEM:
    case CHAT_OTHER:
        return 0;
    }
    return 0;
}

int chat_m3_write(struct script *s, const struct chat_prompt *p, struct err *e)
{
    int first = p->n_messages > 0 && p->messages[0].role == CHAT_SYSTEM ? 1 : 0;
    bool asked = false;

    put_system(s, p->thinking);
    int rc = put_developer(s, p, first == 1 ? &p->messages[0] : NULL, e);
    for (int i = first; i < p->n_messages && rc == 0; i++) {
        rc = put_message(s, p, i, &asked, e);
        if (rc < 0)
            err_prefix(e, "messages[%d]", i);
    }
    if (rc == 0 && p->ending == CHAT_ASK_FOR_ANSWER) {
        put_role(s, "ai\n");
        put_mark(s, p->thinking == CHAT_THINKING_ON ? CHAT_MARK_M3_THINK : CHAT_MARK_M3_END_THINK);
    }
    return rc;
}
