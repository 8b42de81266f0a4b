/* model/grammar_shapes.c - objects of a schema as graphs; see grammar_build.h. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/grammar_regex.h"

static json_t *field(const json_t *schema, const char *key)
{
    return json_object_get(schema, key);
}

/* ---- objects ------------------------------------------------------------------------------------------ */

struct member {
    const char *key;
    const json_t *schema; /* NULL: anything */
    bool required;
};

static bool matches(struct builder *b, const char *pattern, const char *key)
{
    size_t mark = build_enter(b, "patternProperties");
    const struct regex *r = build_regex(b, str_of(pattern));
    build_leave(b, mark);
    return r && build_regex_matches(b, r, str_of(key));
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
        if (b->failed)
            return NULL;
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
    json_t *names = json_object();
    *n = 0;
    json_array_foreach(required, i, v)
    {
        if (json_is_string(v))
            json_object_set_new(names, json_string_value(v), json_true());
    }
    json_object_foreach(properties, key, v)
    {
        all[(*n)++] =
            (struct member){key, schema_of(b, schema, key), json_object_get(names, key) != NULL};
    }
    json_decref(names);
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

static uint32_t new_member_rule(struct builder *b, const struct member *m)
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

/* Once for all alternatives of an object that say the same of it. */
static uint32_t member_rule(struct builder *b, const struct member *m)
{
    for (int i = 0; i < b->n_members && i < BUILD_MAX_MEMBERS && m->schema; i++)
        if (b->members[i].schema == m->schema && strcmp(b->members[i].key, m->key) == 0)
            return b->members[i].entry;
    uint32_t entry = new_member_rule(b, m);
    struct build_member *kept = &b->members[b->n_members++ % BUILD_MAX_MEMBERS];
    mem_free(kept->key);
    *kept = (struct build_member){m->schema, mem_format("%s", m->key), entry};
    return entry;
}

void build_forget(struct builder *b)
{
    for (int i = 0; i < b->n_members && i < BUILD_MAX_MEMBERS; i++) {
        mem_free(b->members[i].key);
        b->members[i].key = NULL;
    }
    b->n_members = b->n_rules = 0;
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

/* What the names are that match pattern i and no other of n; -1: that match none. */
static const json_t *names_of(struct builder *b, const json_t *schema, int i)
{
    const json_t *names = field(schema, "propertyNames");
    json_t *list = json_array(), *v;
    const char *pattern;
    int k = 0;
    json_object_foreach(field(schema, "patternProperties"), pattern, v)
    {
        json_array_append_new(list,
                              k++ == i ? json_string(pattern) : json_pack("{ss}", "not", pattern));
    }
    json_t *all = json_pack("{ss}", "type", "string");
    if (k > 0)
        json_object_set(all, BUILD_PATTERNS, list);
    json_decref(list);
    json_array_append_new(b->made, all);
    return names ? build_merge(b, all, names) : all;
}

/* Any property with such a name. */
static uint32_t free_member(struct builder *b, const json_t *schema, const char *key, int i,
                            const json_t *of)
{
    size_t mark = build_enter(b, key);
    uint32_t end = grammar_return(b->g);
    const json_t *names = json_is_false(of) ? NULL : names_of(b, schema, i);
    uint32_t value = json_is_false(of)            ? 0
                     : of && !json_is_boolean(of) ? grammar_call(b->g, build_rule_of(b, of), end)
                                                  : build_any(b, end);
    build_leave(b, mark);
    mark = build_enter(b, i >= 0 ? "patternProperties" : "propertyNames");
    value = grammar_range(b->g, ':', ':', build_space(b, value));
    value = names && value ? build_schema(b, names, value) : 0;
    build_leave(b, mark);
    return value;
}

/* Keys of any name, whose values' schema depends on the patterns that the names match, one at most. */
static uint32_t map_of(struct builder *b, const json_t *schema, int64_t min, int64_t max,
                       uint32_t next)
{
    json_t *patterns = field(schema, "patternProperties"), *of;
    const json_t *others = field(schema, "additionalProperties");
    const char *pattern;
    uint32_t entry = 0;
    int i = 0;
    if (min > 1)
        return build_refuse(b,
                            "minProperties of more than 1 is supported only where properties are "
                            "declared: names could repeat");
    json_object_foreach(patterns, pattern, of)
    {
        entry = grammar_either(b->g, entry, free_member(b, schema, "patternProperties", i++, of));
    }
    if (i == 0 || json_is_object(others))
        entry =
            grammar_either(b->g, entry, free_member(b, schema, "additionalProperties", -1, others));
    uint32_t none = build_space(b, grammar_range(b->g, '}', '}', next));
    uint32_t more = grammar_range(b->g, ',', ',', build_space(b, entry));
    uint32_t some = 0;
    if (max != 0)
        some = build_space(
            b, grammar_call(b->g, entry, build_repeat(b, more, 0, max < 0 ? -1 : max - 1, none)));
    return grammar_range(b->g, '{', '{', grammar_either(b->g, min > 0 ? 0 : none, some));
}

/* Where only some names may be, they are as good as declared. */
static const json_t *with_listed_names(struct builder *b, const json_t *schema)
{
    const json_t *names = field(schema, "propertyNames"), *name;
    size_t i;
    if (!json_is_object(names) || json_object_size(field(schema, "properties")) > 0)
        return schema;
    names = build_flatten(b, names);
    if (!field(names, "enum") && !field(names, "const"))
        return schema;
    json_t *values = build_values(b, names), *all = json_copy((json_t *)(uintptr_t)schema);
    json_t *properties = json_object(), *of = field(schema, "additionalProperties");
    json_array_foreach(values, i, name)
    {
        if (json_is_string(name))
            json_object_set(properties, json_string_value(name), of ? of : json_true());
    }
    json_decref(values);
    json_object_set_new(all, "properties", properties);
    json_array_append_new(b->made, all);
    return all;
}

uint32_t build_object(struct builder *b, const json_t *schema, uint32_t next)
{
    const json_t *more = field(schema, "additionalProperties");
    int64_t min, max;
    size_t n;
    schema = with_listed_names(b, schema);
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
