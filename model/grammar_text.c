/* model/grammar_text.c - the text of a grammar becomes its graph: what may come in a whole output; see grammar.h. */
#include <string.h>

#include "base/mem.h"
#include "model/grammar_regex.h"

struct marks {
    int32_t after, begin, end, namespace; /* -1: none */
};

static int32_t id_of(const json_t *v)
{
    json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    return id >= 0 && id <= INT32_MAX ? (int32_t)id : -1;
}

/* Any text and any marker that means nothing here. */
static uint32_t free_text(struct builder *b, uint32_t next)
{
    uint32_t loop = grammar_ahead(b->g);
    uint32_t on =
        grammar_either(b->g, grammar_range(b->g, 0, 255, loop), grammar_any_marker(b->g, loop));
    grammar_lead(b->g, loop, grammar_either(b->g, next, on));
    return loop;
}

/* M2 writes them between the parts of an answer, where nobody reads them; M3 none. */
static uint32_t line_feeds(struct builder *b, int most, uint32_t next)
{
    uint32_t at = next;
    for (int i = 0; i < most; i++)
        at = grammar_either(b->g, next, grammar_range(b->g, '\n', '\n', at));
    return at;
}

/* ---- tool calls --------------------------------------------------------------------------------- */

static uint32_t parameter(struct builder *b, const char *key, const json_t *schema, uint32_t next)
{
    if (b->namespace >= 0)
        return build_element(b, key, schema, next);
    uint32_t value = build_argument(b, schema, grammar_literal(b->g, STR("\n"), next));
    value = grammar_literal(b->g, STR("\">"), value);
    value = grammar_literal(b->g, str_of(key), value);
    return grammar_literal(b->g, STR("<parameter name=\""), value);
}

/* Arguments that nobody described.  M3's tags come in pairs of one name, which no grammar can say of any name. */
static uint32_t any_parameters(struct builder *b, uint32_t next)
{
    if (b->namespace >= 0)
        return free_text(b, next);
    struct byte_set name = {0};
    byte_set_add(&name, '0', '9');
    byte_set_add(&name, 'A', 'Z');
    byte_set_add(&name, 'a', 'z');
    byte_set_add(&name, '_', '_');
    byte_set_add(&name, '-', '.');
    uint32_t end = grammar_literal(b->g, STR("\n"), grammar_return(b->g));
    uint32_t value = grammar_literal(b->g, STR("\">"), build_raw_to_close(b, end));
    uint32_t letter = grammar_bytes(b->g, &name, grammar_return(b->g));
    uint32_t rule =
        grammar_literal(b->g, STR("<parameter name=\""), build_repeat(b, letter, 1, 64, value));
    return build_repeat(b, rule, 0, -1, next);
}

static bool is_named(const json_t *list, const char *key)
{
    const json_t *one;
    size_t i;
    json_array_foreach(list, i, one)
    {
        if (json_is_string(one) && strcmp(json_string_value(one), key) == 0)
            return true;
    }
    return false;
}

uint32_t build_members(struct builder *b, const json_t *schema, uint32_t next)
{
    json_t *properties = json_object_get(schema, "properties"), *v;
    const json_t *required = json_object_get(schema, "required");
    const char *key;
    size_t n = json_object_size(properties), i = 0;
    const char **keys = mem_array(n + 1, sizeof *keys);
    json_object_foreach(properties, key, v)
    {
        keys[i++] = key;
    }
    json_array_foreach(required, i, v)
    {
        if (!json_is_string(v) || !json_object_get(properties, json_string_value(v)))
            build_refuse(b, "required: every name must be one of properties");
    }
    for (i = n; i > 0; i--) {
        size_t mark = build_enter(b, "properties"), inner = build_enter(b, keys[i - 1]);
        if (strpbrk(keys[i - 1], "\"<>\n"))
            build_refuse(b, "the model's form of calls has no way to write this name");
        uint32_t with = parameter(b, keys[i - 1], json_object_get(properties, keys[i - 1]), next);
        build_leave(b, inner);
        build_leave(b, mark);
        next = is_named(required, keys[i - 1]) ? with : grammar_either(b->g, with, next);
    }
    mem_free(keys);
    return next;
}

static bool describes_nothing(const json_t *schema)
{
    return json_object_size(json_object_get(schema, "properties")) == 0 &&
           !json_is_false(json_object_get(schema, "additionalProperties"));
}

/* An object of declared properties, which is all that the form of calls can be held to. */
static json_t *check_parameters(struct builder *b, json_t *schema)
{
    static const char *const known[] = {"type", "properties", "required", "additionalProperties"};
    json_t *flat = schema ? (json_t *)(uintptr_t)build_flatten(b, schema) : NULL, *v;
    const char *key;
    json_object_foreach(flat, key, v)
    {
        json_t *one = json_pack("{sO}", key, v);
        bool is_known = !build_constrains(one, "");
        json_decref(one);
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
            is_known = is_known || strcmp(key, known[i]) == 0;
        size_t mark = build_enter(b, key);
        if (!is_known)
            build_refuse(b, "a tool's arguments can be held to properties, required and "
                            "additionalProperties only");
        build_leave(b, mark);
    }
    return flat;
}

/* The parameters of a call; a schema that is one of several has the parameters of any of them. */
static uint32_t parameters(struct builder *b, json_t *schema, uint32_t next)
{
    const json_t *flat = schema ? build_flatten(b, schema) : NULL, *one;
    if (json_is_false(flat))
        return build_impossible(b, "nothing is allowed here");
    if (!build_is_split(flat) || b->failed) {
        schema = check_parameters(b, schema);
        return describes_nothing(schema) ? any_parameters(b, next) : build_members(b, schema, next);
    }
    if (b->nesting >= BUILD_MAX_NESTING)
        return build_refuse(b, "the schema is nested more than %d deep", BUILD_MAX_NESTING);
    b->nesting++;
    const char *key;
    uint32_t all = 0;
    size_t i;
    const json_t *parts = build_alternatives(b, flat, &key);
    json_array_foreach(parts, i, one)
    {
        if (!json_is_false(one))
            all = grammar_either(b->g, all, parameters(b, (json_t *)(uintptr_t)one, next));
    }
    b->nesting--;
    return all;
}

static uint32_t end_invocation(struct builder *b, uint32_t next)
{
    next = grammar_literal(b->g, STR("\n"), next);
    return b->namespace >= 0 ? build_tag(b, "</", "invoke", next)
                             : grammar_literal(b->g, STR("</invoke>"), next);
}

/* Where a tool call goes on after "<invoke name=\"". */
static uint32_t invocation(struct builder *b, const json_t *tool, uint32_t next)
{
    const char *name = json_string_value(json_object_get(tool, "name"));
    json_t *schema = json_object_get(tool, "schema");
    if (!name || !*name || strpbrk(name, "\"<>\n"))
        return build_refuse(b,
                            "the model's form of calls has no way to write a tool's name \"%.60s\"",
                            name ? name : "");
    size_t mark = b->path.len;
    buf_printf(&b->path, " %s #", name);
    b->root = schema;
    build_forget(b);
    next = end_invocation(b, next);
    next = parameters(b, schema, next);
    build_leave(b, mark);
    struct str close = b->namespace >= 0 ? STR("\">") : STR("\">\n");
    return grammar_literal(b->g, str_of(name), grammar_literal(b->g, close, next));
}

static uint32_t behind_namespace(struct builder *b, uint32_t next)
{
    return b->namespace >= 0 ? grammar_marker_node(b->g, b->namespace, next) : next;
}

static uint32_t call_block(struct builder *b, const json_t *text, const struct marks *m,
                           uint32_t next)
{
    const json_t *tools = json_object_get(text, "tools"), *tool;
    uint32_t all = 0, again = grammar_ahead(b->g);
    size_t i;
    json_array_foreach(tools, i, tool)
    {
        all = grammar_either(b->g, all, invocation(b, tool, again));
    }
    uint32_t invoke = behind_namespace(b, grammar_literal(b->g, STR("<invoke name=\""), all));
    uint32_t close = behind_namespace(b, grammar_marker_node(b->g, m->end, next));
    bool single = json_is_true(json_object_get(text, "single"));
    grammar_lead(b->g, again, single ? close : grammar_either(b->g, close, invoke));
    invoke = grammar_literal(b->g, STR("\n"), invoke);
    return behind_namespace(b, grammar_marker_node(b->g, m->begin, invoke));
}

/* ---- the whole ----------------------------------------------------------------------------------- */

static void refuse_all(struct builder *b)
{
    if (b->why[0])
        build_refuse(b, "cannot be satisfied (%s)", b->why);
    else
        build_refuse(b, "cannot be satisfied: no value that ends is allowed");
}

static uint32_t build_answer(struct builder *b, const json_t *text, const struct marks *m)
{
    const json_t *value = json_object_get(text, "value");
    uint32_t end = grammar_end(b->g), calls = 0, said = 0;
    bool forced = json_is_true(json_object_get(text, "forced"));
    if (json_array_size(json_object_get(text, "tools")) > 0) {
        if (m->begin < 0 || m->end < 0)
            return build_refuse(b, "this model has no markers for tool calls");
        buf_reset(&b->path);
        buf_puts(&b->path, "tool");
        b->namespace = m->namespace;
        b->in_call = m->namespace < 0;
        calls = call_block(b, text, m, line_feeds(b, 1, end));
        b->in_call = false;
        b->namespace = -1;
        buf_reset(&b->path);
        buf_puts(&b->path, "schema #");
        memset(b->shared, 0, sizeof b->shared);
    }
    if (value && !forced) {
        b->root = value;
        build_forget(b);
        said = build_schema(b, value, end);
        if (!said && !b->failed)
            refuse_all(b);
    }
    if (!value && !forced)
        return free_text(b, grammar_either(b->g, end, calls));
    return grammar_either(b->g, said, calls ? line_feeds(b, m->namespace < 0 ? 1 : 0, calls) : 0);
}

static void read_marks(struct grammar *g, const json_t *text, struct marks *m)
{
    const json_t *calls = json_object_get(text, "calls"), *stop;
    size_t i;
    m->after = id_of(json_object_get(text, "after"));
    m->begin = id_of(json_array_get(calls, 0));
    m->end = id_of(json_array_get(calls, 1));
    m->namespace = id_of(json_object_get(text, "namespace"));
    grammar_close(g, m->after);
    grammar_close(g, m->begin);
    grammar_close(g, m->end);
    json_array_foreach(json_object_get(text, "stops"), i, stop)
    {
        grammar_add_stop(g, id_of(stop));
    }
}

static int build(struct builder *b, const json_t *text)
{
    struct marks m;
    read_marks(b->g, text, &m);
    buf_puts(&b->path, json_object_get(text, "value") ? "schema #" : "tool");
    uint32_t start = build_answer(b, text, &m);
    if (m.after >= 0)
        start = free_text(
            b, grammar_marker_node(b->g, m.after, line_feeds(b, m.namespace < 0 ? 2 : 0, start)));
    if (grammar_is_full(b->g))
        build_refuse(b, "the schema is too large");
    if (!b->failed && !grammar_begin(b->g, start))
        refuse_all(b);
    return b->failed ? E_INVALID : 0;
}

int grammar_compile(struct str text, struct grammar **out, struct err *e)
{
    json_error_t why;
    *out = NULL;
    if (text.len > SAMPLING_MAX_GRAMMAR_BYTES)
        return err_set(e, E_INVALID, "schema: %zu bytes, at most %d are taken", text.len,
                       SAMPLING_MAX_GRAMMAR_BYTES);
    json_t *root = json_loadb(text.ptr, text.len, JSON_ALLOW_NUL, &why);
    if (!root)
        return err_set(e, E_INVALID, "a grammar that is no JSON: %s", why.text);
    struct builder b = {.g = grammar_new(), .e = e, .namespace = -1};
    b.made = json_array();
    b.rules = mem_array(BUILD_MAX_RULES, sizeof *b.rules);
    int rc = build(&b, root);
    if (rc < 0)
        grammar_free(&b.g);
    *out = b.g;
    mem_free(b.rules);
    json_decref(b.made);
    build_forget(&b);
    build_forget_regexes(&b);
    buf_fini(&b.path);
    json_decref(root);
    return rc;
}
