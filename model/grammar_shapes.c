/* model/grammar_shapes.c - arrays and objects of a schema as graphs; see grammar_build.h. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/grammar_regex.h"

static json_t *field(const json_t *schema, const char *key)
{
    return json_object_get(schema, key);
}

/* ---- arrays ------------------------------------------------------------------------------------ */

static uint32_t item_rule(struct builder *b, const json_t *schema, const char *key, int i)
{
    char number[16];
    size_t mark = build_enter(b, key), inner = b->path.len;
    snprintf(number, sizeof number, "%d", i);
    if (i >= 0)
        build_enter(b, number);
    uint32_t rule = schema ? build_rule_of(b, schema) : build_any(b, grammar_return(b->g));
    build_leave(b, inner);
    build_leave(b, mark);
    return rule;
}

/* An item behind `before` others. */
static uint32_t item(struct builder *b, uint32_t rule, int before, uint32_t next)
{
    uint32_t at = build_space(b, grammar_call(b->g, rule, next));
    return before > 0 ? grammar_range(b->g, ',', ',', at) : at;
}

/* Items behind those of prefixItems, which are `n`. */
static uint32_t more_items(struct builder *b, const json_t *items, int n, int64_t min, int64_t max,
                           uint32_t end)
{
    uint32_t none = n >= min ? end : 0;
    if (json_is_false(items) || max == n)
        return none ? none : build_impossible(b, "items allows none, minItems wants more");
    uint32_t rule = item_rule(b, items, "items", -1);
    uint32_t follower = item(b, rule, 1, grammar_return(b->g));
    int64_t least = min > n ? min - n : 0, most = max < 0 ? -1 : max - n;
    if (n > 0)
        return build_repeat(b, follower, least, most, end);
    uint32_t rest =
        build_repeat(b, follower, least > 1 ? least - 1 : 0, most < 0 ? -1 : most - 1, end);
    return grammar_either(b->g, none, item(b, rule, 0, rest));
}

uint32_t build_array(struct builder *b, const json_t *schema, uint32_t next)
{
    const json_t *first = field(schema, "prefixItems"), *items = field(schema, "items");
    int64_t min, max;
    if (!build_range(b, schema, "minItems", "maxItems", &min, &max))
        return 0;
    if ((first && !json_is_array(first)) || json_is_array(items) || json_array_size(first) > 256)
        return build_refuse(b, "prefixItems must be an array of at most 256 schemas, and items one "
                               "schema");
    int n = (int)json_array_size(first);
    uint32_t end = build_space(b, grammar_range(b->g, ']', ']', next));
    uint32_t at = max >= 0 && max < n ? 0 : more_items(b, items, n, min, max, end);
    for (int i = n - 1; i >= 0; i--) {
        uint32_t rule = item_rule(b, json_array_get(first, (size_t)i), "prefixItems", i);
        uint32_t with = max >= 0 && i >= max ? 0 : item(b, rule, i, at);
        at = grammar_either(b->g, i >= min ? end : 0, with);
    }
    return grammar_range(b->g, '[', '[', at);
}

/* ---- objects ------------------------------------------------------------------------------------------ */

bool build_is_required(const json_t *schema, const char *key)
{
    const json_t *one;
    size_t i;
    json_array_foreach(field(schema, "required"), i, one)
    {
        if (json_is_string(one) && strcmp(json_string_value(one), key) == 0)
            return true;
    }
    return false;
}

struct member {
    const char *key;
    const json_t *schema; /* NULL: anything */
    bool required;
};

static bool matches(struct builder *b, const char *pattern, const char *key)
{
    struct regex *r;
    struct err e = {0};
    if (regex_open(str_of(pattern), &r, &e) < 0)
        return build_refuse(b, "patternProperties: %.200s", e.text) != 0;
    bool does = regex_matches(r, str_of(key));
    regex_free(&r);
    return does;
}

/* What the schema says of a property of this name; NULL: anything. */
static const json_t *schema_of(struct builder *b, const json_t *schema, const char *key)
{
    const json_t *own = field(field(schema, "properties"), key), *all = own;
    const json_t *names = field(schema, "propertyNames");
    const char *pattern;
    json_t *v, *name = json_string(key);
    bool is_known = own != NULL;
    if (names && !build_takes(b, names, name))
        all = json_false();
    json_decref(name);
    json_object_foreach(field(schema, "patternProperties"), pattern, v)
    {
        if (!matches(b, pattern, key))
            continue;
        is_known = true;
        all = all ? build_merge(b, all, v) : v;
    }
    return is_known ? all : all ? all : field(schema, "additionalProperties");
}

/* Properties in their order, then those that are only required. */
static struct member *members_of(struct builder *b, const json_t *schema, size_t *n)
{
    json_t *properties = field(schema, "properties"), *required = field(schema, "required"), *v;
    const char *key;
    size_t i;
    struct member *all =
        mem_array(json_object_size(properties) + json_array_size(required) + 1, sizeof *all);
    *n = 0;
    json_object_foreach(properties, key, v)
    {
        all[(*n)++] =
            (struct member){key, schema_of(b, schema, key), build_is_required(schema, key)};
    }
    json_array_foreach(required, i, v)
    {
        key = json_string_value(v);
        if (!key)
            build_refuse(b, "required must hold strings");
        else if (!json_object_get(properties, key))
            all[(*n)++] = (struct member){key, schema_of(b, schema, key), true};
    }
    return all;
}

static uint32_t member_rule(struct builder *b, const struct member *m)
{
    json_t *key = json_string(m->key);
    uint32_t end = grammar_return(b->g);
    size_t mark = build_enter(b, "properties");
    build_enter(b, m->key);
    if (json_is_false(m->schema) && m->required)
        build_impossible(b, "\"%.60s\" is required and not allowed", m->key);
    uint32_t value = m->schema ? build_schema(b, m->schema, end) : build_any(b, end);
    build_leave(b, mark);
    value = grammar_range(b->g, ':', ':', build_space(b, value));
    value = build_json(b, key, value);
    json_decref(key);
    return value;
}

/* From the last property to the first; rest[c]: where to go on with c members written, c = n_counts - 1 standing for
 * more, too, where there is no limit. */
static uint32_t members(struct builder *b, const struct member *all, size_t n, int64_t min,
                        int64_t max, uint32_t next)
{
    size_t n_counts = (size_t)(max >= 0 ? max : min > 1 ? min : 1) + 1;
    if (n_counts > n + 2)
        n_counts = n + 2;
    uint32_t end = build_space(b, grammar_range(b->g, '}', '}', next));
    uint32_t *rest = mem_array(n_counts + 1, sizeof *rest);
    for (size_t c = 0; c < n_counts; c++)
        rest[c] = (int64_t)c >= min ? end : 0;
    for (size_t i = n; i > 0 && !grammar_is_full(b->g); i--) {
        const struct member *m = &all[i - 1];
        uint32_t rule = member_rule(b, m);
        for (size_t c = 0; c < n_counts; c++) {
            bool is_last = c + 1 == n_counts;
            uint32_t then = !is_last ? rest[c + 1] : max >= 0 && (int64_t)c >= max ? 0 : rest[c];
            uint32_t with = build_space(b, grammar_call(b->g, rule, then));
            with = c > 0 ? grammar_range(b->g, ',', ',', with) : with;
            rest[c] = m->required ? with : grammar_either(b->g, with, rest[c]);
        }
    }
    uint32_t start = rest[0];
    mem_free(rest);
    return grammar_range(b->g, '{', '{', start);
}

/* A name that nobody declared, before `next`. */
static uint32_t any_name(struct builder *b, const json_t *schema, const char *pattern,
                         uint32_t next)
{
    const json_t *names = field(schema, "propertyNames");
    if (names && pattern)
        return build_refuse(b, "propertyNames beside patternProperties is supported only where "
                               "properties are declared");
    if (names) {
        json_t *text = json_pack("{ss}", "type", "string");
        json_array_append_new(b->made, text);
        size_t mark = build_enter(b, "propertyNames");
        const json_t *both = build_merge(b, text, names);
        uint32_t at = both ? build_schema(b, both, next) : 0;
        build_leave(b, mark);
        return at;
    }
    if (!pattern)
        return build_string(b, next);
    uint32_t close = grammar_range(b->g, '"', '"', next);
    close = build_pattern(b, str_of(pattern), REGEX_JSON, 0, -1, close);
    return grammar_range(b->g, '"', '"', close);
}

/* Keys of any name with values of one schema. */
static uint32_t map_of(struct builder *b, const json_t *schema, int64_t min, int64_t max,
                       uint32_t next)
{
    json_t *patterns = field(schema, "patternProperties");
    void *only = json_object_iter(patterns);
    const json_t *of = only ? json_object_iter_value(only) : field(schema, "additionalProperties");
    if (json_object_size(patterns) > 1)
        return build_refuse(b, "patternProperties with more than one pattern are supported only "
                               "where properties are declared");
    if (min > 1)
        return build_refuse(b,
                            "minProperties of more than 1 is supported only where properties are "
                            "declared: names could repeat");
    size_t mark = build_enter(b, only ? "patternProperties" : "additionalProperties");
    uint32_t rule = of && !json_is_boolean(of) ? build_rule_of(b, of) : 0;
    uint32_t end = grammar_return(b->g);
    uint32_t value = rule                ? grammar_call(b->g, rule, end)
                     : json_is_false(of) ? 0
                                         : build_any(b, end);
    build_leave(b, mark);
    value = grammar_range(b->g, ':', ':', build_space(b, value));
    uint32_t entry =
        value ? any_name(b, schema, only ? json_object_iter_key(only) : NULL, value) : 0;
    uint32_t none = build_space(b, grammar_range(b->g, '}', '}', next));
    uint32_t more = grammar_range(b->g, ',', ',', build_space(b, entry));
    uint32_t some = 0;
    if (max != 0)
        some = build_space(
            b, grammar_call(b->g, entry, build_repeat(b, more, 0, max < 0 ? -1 : max - 1, none)));
    return grammar_range(b->g, '{', '{', grammar_either(b->g, min > 0 ? 0 : none, some));
}

uint32_t build_object(struct builder *b, const json_t *schema, uint32_t next)
{
    const json_t *more = field(schema, "additionalProperties");
    int64_t min, max;
    size_t n;
    if (!build_range(b, schema, "minProperties", "maxProperties", &min, &max))
        return 0;
    struct member *all = members_of(b, schema, &n);
    bool is_free = n == 0 && min == 0 && max < 0 && !field(schema, "propertyNames") &&
                   !field(schema, "patternProperties") && (!more || json_is_true(more));
    uint32_t at;
    if (is_free)
        at = build_object_of_anything(b, next);
    else if (n > 0)
        at = members(b, all, n, min, max, next);
    else
        at = map_of(b, schema, min, max, next);
    mem_free(all);
    return at;
}
