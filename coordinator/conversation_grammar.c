/* coordinator/conversation_grammar.c - what an answer is held to becomes the text of a grammar; see conversation.h. */
#include <string.h>

#include "base/mem.h"
#include "coordinator/conversation.h"
#include "coordinator/json_write.h"
#include "coordinator/openai_json.h"
#include "model/grammar.h"

static const json_t *function_of(const json_t *tool)
{
    return json_object_get(tool, "function");
}

static bool is_strict(const json_t *function)
{
    return json_is_true(json_object_get(function, "strict"));
}

static json_t *stops_of(const struct openai_model *m)
{
    json_t *stops = json_array();
    for (int i = 0; i < m->config->n_eos; i++)
        json_push(stops, json_integer(m->config->eos_ids[i]));
    if (!config_is_eos(m->config, chat_end_id(m->chat)))
        json_push(stops, json_integer(chat_end_id(m->chat)));
    return stops;
}

enum schemas { STRICT_SCHEMAS, ALL_SCHEMAS };

static json_t *tools_of(const struct conversation *c, enum schemas which)
{
    json_t *all = json_array();
    const json_t *tool;
    size_t i;
    json_array_foreach(c->prompt.tools, i, tool)
    {
        const json_t *function = function_of(tool);
        json_t *name = json_object_get(function, "name"), *one;
        json_t *schema = json_object_get(function, "parameters");
        if (c->rules.only.len > 0 && !str_equal(json_str(name), c->rules.only))
            continue;
        one = json_object();
        json_object_set(one, "name", name);
        if (schema && (which == ALL_SCHEMAS || is_strict(function)))
            json_object_set(one, "schema", schema);
        json_push(all, one);
    }
    return all;
}

static char *write_text(const struct conversation *c, const struct openai_model *m,
                        enum schemas which)
{
    json_t *root = json_object(), *calls = json_array();
    struct buf text = {0};
    bool is_m3 = m->chat->template == CHAT_TEMPLATE_M3;
    json_put(root, "stops", stops_of(m));
    if (c->prompt.thinking == CHAT_THINKING_ON)
        json_put(root, "after",
                 json_integer(m->chat->ids[is_m3 ? CHAT_MARK_M3_END_THINK : CHAT_MARK_END_THINK]));
    json_push(calls, json_integer(m->chat->ids[is_m3 ? CHAT_MARK_M3_CALLS : CHAT_MARK_CALLS]));
    json_push(calls,
              json_integer(m->chat->ids[is_m3 ? CHAT_MARK_M3_END_CALLS : CHAT_MARK_END_CALLS]));
    json_put(root, "calls", calls);
    if (is_m3)
        json_put(root, "namespace", json_integer(m->chat->ids[CHAT_MARK_M3_NAMESPACE]));
    if (c->rules.value)
        json_object_set(root, "value", (json_t *)(uintptr_t)c->rules.value);
    if (c->prompt.tools)
        json_put(root, "tools", tools_of(c, which));
    json_put(root, "forced", json_boolean(c->rules.forced));
    json_put(root, "single", json_boolean(c->rules.single));
    json_write(root, &text);
    return text.data;
}

static bool has_strict_tool(const struct conversation *c)
{
    const json_t *tool;
    size_t i;
    json_array_foreach(c->prompt.tools, i, tool)
    {
        if (is_strict(function_of(tool)))
            return true;
    }
    return false;
}

static bool has_tool(const struct conversation *c, struct str name)
{
    const json_t *tool;
    size_t i;
    json_array_foreach(c->prompt.tools, i, tool)
    {
        if (str_equal(json_str(json_object_get(function_of(tool), "name")), name))
            return true;
    }
    return false;
}

/* Text that compiles, or NULL and why. */
static char *text_that_compiles(const struct conversation *c, const struct openai_model *m,
                                enum schemas which, struct err *why)
{
    char *text = write_text(c, m, which);
    struct grammar *g;
    if (grammar_compile(str_of(text), &g, why) < 0) {
        mem_free(text);
        return NULL;
    }
    grammar_free(&g);
    return text;
}

int conversation_constrain(const struct conversation *c, const struct openai_model *m,
                           struct request *r, struct openai_error *e)
{
    const struct conversation_rules *rules = &c->rules;
    struct err why = {0};
    if (rules->forced && !c->prompt.tools)
        return openai_refuse(e, "tools", "tool_choice",
                             "tool_choice forces a tool, and there are none");
    if (rules->only.len > 0 && !has_tool(c, rules->only))
        return openai_refuse(e, "tools", "tool_choice", "tool_choice: there is no tool \"%.60s\"",
                             rules->only.ptr);
    if (!rules->value && !rules->forced &&
        !(c->prompt.tools && (rules->single || has_strict_tool(c))))
        return 0;
    if (r->ignores_eos)
        return openai_refuse(e, "contradiction", "ignore_eos",
                             "ignore_eos and an answer of a certain form contradict each other");
    r->grammar = text_that_compiles(c, m, rules->forced ? ALL_SCHEMAS : STRICT_SCHEMAS, &why);
    /* Without "strict" a schema that cannot be enforced is only shown to the model. */
    if (!r->grammar && rules->forced && !has_strict_tool(c))
        r->grammar = text_that_compiles(c, m, STRICT_SCHEMAS, &why);
    if (!r->grammar)
        return openai_refuse(e, "schema", rules->value ? "response_format" : "tools", "%s",
                             why.text);
    r->sampling.grammar = r->grammar;
    return 0;
}
