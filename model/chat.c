#include "model/chat.h"

#include "base/err.h"
#include "base/mem.h"
#include "model/chat_script.h"

static const char *const marker_texts[CHAT_N_MARKS] = {
    [CHAT_MARK_BEGIN] = "]~!b[",
    [CHAT_MARK_ROLE] = "]~b]",
    [CHAT_MARK_END] = "[e~[",
    [CHAT_MARK_THINK] = "<think>",
    [CHAT_MARK_END_THINK] = "</think>",
    [CHAT_MARK_CALLS] = "<minimax:tool_call>",
    [CHAT_MARK_END_CALLS] = "</minimax:tool_call>",
    [CHAT_MARK_M3_THINK] = "<mm:think>",
    [CHAT_MARK_M3_END_THINK] = "</mm:think>",
    [CHAT_MARK_M3_NAMESPACE] = "]<]minimax[>[",
    [CHAT_MARK_M3_CALLS] = "<tool_call>",
    [CHAT_MARK_M3_END_CALLS] = "</tool_call>",
};

static bool is_of(enum chat_template template, int marker)
{
    if (marker <= CHAT_MARK_END)
        return true;
    return (marker >= CHAT_MARK_M3_THINK) == (template == CHAT_TEMPLATE_M3);
}

#define DEFAULT_IDENTITY STR("You are a helpful assistant.")

enum chat_role chat_role_of(struct str name)
{
    if (str_equal(name, STR("system")))
        return CHAT_SYSTEM;
    if (str_equal(name, STR("user")))
        return CHAT_USER;
    if (str_equal(name, STR("assistant")))
        return CHAT_ASSISTANT;
    if (str_equal(name, STR("tool")))
        return CHAT_TOOL;
    return CHAT_OTHER;
}

struct str chat_content_of(const struct chat_message *m, struct buf *joined)
{
    if (m->n_parts == 0)
        return m->content;
    buf_reset(joined);
    for (int i = 0; i < m->n_parts; i++)
        buf_append_str(joined, m->parts[i]);
    return buf_str(joined);
}

/* ---- system ----------------------------------------------------------------------------- */

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
    put_text(s, "</tools>\n\n"
                "When making tool calls, use XML format to invoke tools and pass parameters:\n\n");
    put_mark(s, CHAT_MARK_CALLS);
    put_text(s, "\n<invoke name=\"tool-name-1\">\n"
                "<parameter name=\"param-key-1\">param-value-1</parameter>\n"
                "<parameter name=\"param-key-2\">param-value-2</parameter>\n"
                "...\n</invoke>\n");
    put_mark(s, CHAT_MARK_END_CALLS);
    return 0;
}

static int put_system(struct script *s, const struct chat_prompt *p,
                      const struct chat_message *system, struct err *e)
{
    struct buf joined = {0};
    struct str text = system ? chat_content_of(system, &joined) : (struct str){NULL, 0};

    put_mark(s, CHAT_MARK_BEGIN);
    put_role(s, "system\n");
    if (text.len > 0)
        put_str(s, text);
    else
        put_str(s, p->model_identity.len > 0 ? p->model_identity : DEFAULT_IDENTITY);
    buf_fini(&joined);
    if (system && system->current_date.len > 0) {
        put_text(s, "\nCurrent date: ");
        put_str(s, system->current_date);
    }
    if (system && system->current_location.len > 0) {
        put_text(s, "\nCurrent location: ");
        put_str(s, system->current_location);
    }
    if (json_array_size(p->tools) > 0 && put_tools(s, p->tools, e) < 0)
        return E_INVALID;
    put_end(s);
    return 0;
}

/* ---- assistant -------------------------------------------------------------------------- */

static size_t find_last(struct str text, struct str needle)
{
    size_t found = SIZE_MAX, from = 0, at;

    while ((at = str_find((struct str){text.ptr + from, text.len - from}, needle)) != SIZE_MAX) {
        found = from + at;
        from = found + needle.len;
    }
    return found;
}

static struct str strip_line_feeds(struct str text)
{
    while (text.len > 0 && text.ptr[0] == '\n') {
        text.ptr++;
        text.len--;
    }
    while (text.len > 0 && text.ptr[text.len - 1] == '\n')
        text.len--;
    return text;
}

void chat_split_reasoning(struct str opening, struct str closing, struct str *content,
                          struct str *reasoning)
{
    size_t first = str_find(*content, closing), last, open;

    if (first == SIZE_MAX)
        return;
    *reasoning = strip_line_feeds((struct str){content->ptr, first});
    open = find_last(*reasoning, opening);
    if (open != SIZE_MAX) {
        reasoning->ptr += open + opening.len;
        reasoning->len -= open + opening.len;
        *reasoning = strip_line_feeds(*reasoning);
    }
    last = find_last(*content, closing) + closing.len;
    *content = strip_line_feeds((struct str){content->ptr + last, content->len - last});
}

static int put_tool_call(struct script *s, const struct chat_tool_call *call, struct err *e)
{
    json_t *arguments = (json_t *)(uintptr_t)call->arguments; /* iterators want it non-const */
    const json_t *value;
    const char *key;

    if (arguments && !json_is_object(arguments))
        return err_set(e, E_INVALID, "arguments are not a JSON object");
    put_text(s, "<invoke name=\"");
    put_str(s, call->name);
    put_text(s, "\">\n");
    json_object_foreach(arguments, key, value)
    {
        buf_printf(&s->text, "<parameter name=\"%s\">", key);
        if (json_is_string(value))
            put_str(s, (struct str){json_string_value(value), json_string_length(value)});
        else
            chat_dump_json(value, &s->text);
        put_text(s, "</parameter>\n");
    }
    put_text(s, "</invoke>\n");
    return 0;
}

static int put_assistant(struct script *s, const struct chat_message *m,
                         enum chat_history reasoning_stays, struct err *e)
{
    struct buf joined = {0};
    struct str content = chat_content_of(m, &joined), reasoning = m->reasoning;

    if (!reasoning.ptr)
        chat_split_reasoning(STR("<think>"), STR("</think>"), &content, &reasoning);
    put_role(s, "ai\n");
    if (reasoning.len > 0 && reasoning_stays == CHAT_HISTORY_KEEPS) {
        put_mark(s, CHAT_MARK_THINK);
        put_text(s, "\n");
        put_str(s, reasoning);
        put_text(s, "\n");
        put_mark(s, CHAT_MARK_END_THINK);
        put_text(s, "\n\n");
    }
    put_str(s, content);
    buf_fini(&joined);
    if (m->n_tool_calls > 0) {
        put_text(s, "\n");
        put_mark(s, CHAT_MARK_CALLS);
        put_text(s, "\n");
        for (int i = 0; i < m->n_tool_calls; i++)
            if (put_tool_call(s, &m->tool_calls[i], e) < 0)
                return err_prefix(e, "tool call %d", i);
        put_mark(s, CHAT_MARK_END_CALLS);
    }
    put_end(s);
    return 0;
}

/* ---- the other roles, and the whole ----------------------------------------------------- */

static void put_user(struct script *s, const struct chat_message *m)
{
    struct buf joined = {0};

    put_role(s, "user\n");
    put_str(s, chat_content_of(m, &joined));
    put_end(s);
    buf_fini(&joined);
}

static void put_tool_result(struct script *s, const struct chat_message *m)
{
    if (m->n_parts == 0) {
        put_text(s, "\n<response>");
        put_str(s, m->content);
        put_text(s, "</response>");
        return;
    }
    for (int i = 0; i < m->n_parts; i++) {
        put_text(s, "\n<response>");
        put_str(s, m->parts[i]);
        put_text(s, "\n</response>");
    }
}

/* Where the template is in the conversation. */
struct walk {
    int last_user;                      /* index, or -1 */
    enum { NO_CALLS, HAS_CALLS } asked; /* the latest assistant message */
};

static int put_message(struct script *s, const struct chat_prompt *p, int i, struct walk *w,
                       struct err *e)
{
    const struct chat_message *m = &p->messages[i];
    const struct chat_message *prev = i > 0 ? m - 1 : NULL;
    const struct chat_message *next = i + 1 < p->n_messages ? m + 1 : NULL;

    switch (m->role) {
    case CHAT_USER:
        put_user(s, m);
        return 0;
    case CHAT_ASSISTANT:
        w->asked = m->n_tool_calls > 0 ? HAS_CALLS : NO_CALLS;
        return put_assistant(s, m, i > w->last_user ? CHAT_HISTORY_KEEPS : p->history, e);
    case CHAT_TOOL:
        if (w->asked == NO_CALLS)
            return err_set(e, E_INVALID,
                           "a tool result, but no assistant message with tool calls before it");
        if (!prev || prev->role != CHAT_TOOL)
            put_role(s, "tool");
        put_tool_result(s, m);
        if (!next || next->role != CHAT_TOOL)
            put_end(s);
        return 0;
    case CHAT_SYSTEM:
    case CHAT_OTHER:
        return 0;
    }
    return 0;
}

static void put_generation_prompt(struct script *s, enum chat_thinking thinking)
{
    put_role(s, "ai\n");
    put_mark(s, CHAT_MARK_THINK);
    put_text(s, "\n");
    if (thinking == CHAT_THINKING_OFF) {
        put_mark(s, CHAT_MARK_END_THINK);
        put_text(s, "\n\n");
    }
}

static int write_m2(struct script *s, const struct chat_prompt *p, struct err *e)
{
    int first = p->n_messages > 0 && p->messages[0].role == CHAT_SYSTEM ? 1 : 0, rc;
    struct walk w = {.last_user = -1};

    for (int i = first; i < p->n_messages; i++)
        if (p->messages[i].role == CHAT_USER)
            w.last_user = i;
    rc = put_system(s, p, first == 1 ? &p->messages[0] : NULL, e);
    for (int i = first; i < p->n_messages && rc == 0; i++) {
        rc = put_message(s, p, i, &w, e);
        if (rc < 0)
            err_prefix(e, "messages[%d]", i);
    }
    if (rc == 0 && p->ending == CHAT_ASK_FOR_ANSWER)
        put_generation_prompt(s, p->thinking);
    return rc;
}

static int write_script(enum chat_template template, struct script *s, const struct chat_prompt *p,
                        struct err *e)
{
    return template == CHAT_TEMPLATE_M3 ? chat_m3_write(s, p, e) : write_m2(s, p, e);
}

int chat_init(struct chat *c, const struct tokenizer *t, struct err *e)
{
    int32_t m3_think = tokenizer_find(t, str_of(marker_texts[CHAT_MARK_M3_THINK]));
    c->tokenizer = t;
    c->template = tokenizer_is_added(t, m3_think) ? CHAT_TEMPLATE_M3 : CHAT_TEMPLATE_M2;
    for (int i = 0; i < CHAT_N_MARKS; i++) {
        c->ids[i] = TOKENIZER_NO_ID;
        if (!is_of(c->template, i))
            continue;
        c->ids[i] = tokenizer_find(t, str_of(marker_texts[i]));
        if (!tokenizer_is_added(t, c->ids[i]))
            return err_set(e, E_NOT_FOUND,
                           "the tokenizer has no added token '%s', which the chat template needs",
                           marker_texts[i]);
    }
    return 0;
}

int32_t chat_end_id(const struct chat *c)
{
    return c->ids[CHAT_MARK_END];
}

int chat_render(const struct chat *c, const struct chat_prompt *p, struct tokens *out,
                struct err *e)
{
    struct script s = {0};
    size_t done = 0, n_before = out->len;
    int rc = write_script(c->template, &s, p, e);

    for (size_t i = 0; i <= s.n_marks && rc == 0; i++) {
        size_t end = i < s.n_marks ? s.marks[i].offset : s.text.len;
        if (end > done)
            rc = tokenizer_encode(c->tokenizer, (struct str){s.text.data + done, end - done},
                                  TOKENIZER_PLAIN, out);
        if (rc < 0)
            rc = err_set(e, rc, "a part of the prompt has %zu bytes, at most %zu are encoded",
                         end - done, TOKENIZER_TEXT_LIMIT_BYTES);
        else if (i < s.n_marks)
            tokens_push(out, c->ids[s.marks[i].marker]);
        done = end;
    }
    if (rc < 0)
        out->len = n_before;
    script_fini(&s);
    return rc;
}

int chat_render_text(enum chat_template template, const struct chat_prompt *p, struct buf *out,
                     struct err *e)
{
    struct script s = {0};
    size_t done = 0;
    int rc = write_script(template, &s, p, e);

    for (size_t i = 0; i < s.n_marks && rc == 0; i++) {
        buf_append(out, s.text.data + done, s.marks[i].offset - done);
        buf_puts(out, marker_texts[s.marks[i].marker]);
        done = s.marks[i].offset;
    }
    if (rc == 0)
        buf_append(out, s.text.data + done, s.text.len - done);
    script_fini(&s);
    return rc;
}
