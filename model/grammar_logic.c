/* model/grammar_logic.c - keywords that say which of several schemas holds, as alternatives that any of which may; see
 * grammar_build.h.
 *
 * What must not hold becomes what holds instead, keyword by keyword: not (A and B) is (not A) or (not B).  Alternatives may
 * leave out what is valid, as everywhere (numbers that are not whole where "integer" is forbidden, properties that nobody
 * declared), and never let in what is not. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#include "model/grammar_build.h"

enum { MAX_PAIRS = 8, MAX_TESTED = 64 };

static json_t *field(const json_t *schema, const char *key)
{
    return json_object_get(schema, key);
}

static json_t *keep(struct builder *b, json_t *v)
{
    json_array_append_new(b->made, v);
    return v;
}

static const char *const splitting[] = {
    "anyOf",        "oneOf", "if",      "dependentRequired", "dependentSchemas",
    "dependencies", "not",   BUILD_ALSO};

static const char *splits_by(const json_t *schema)
{
    for (size_t i = 0; i < sizeof splitting / sizeof splitting[0]; i++)
        if (field(schema, splitting[i]))
            return splitting[i];
    return NULL;
}

bool build_is_split(const json_t *schema)
{
    return json_is_object(schema) && !field(schema, "enum") && !field(schema, "const") &&
           splits_by(schema);
}

/* ---- what holds where a schema does not ----------------------------------------------------------------- */

struct negation {
    struct builder *b;
    const json_t *of;
    json_t *out; /* alternatives */
};

static json_t *opposite(json_t *schema)
{
    return json_pack("{sO}", "not", schema);
}

static void add(struct negation *n, json_t *schema)
{
    json_array_append_new(n->out, schema);
}

static void refuse_not(struct negation *n, const char *key)
{
    size_t mark = build_enter(n->b, key);
    build_refuse(n->b,
                 "what \"%.40s\" forbids cannot be said the other way round (not, if, or "
                 "parts of oneOf that are not apart)",
                 key);
    build_leave(n->b, mark);
}

static void negate_types(struct negation *n)
{
    static const struct {
        unsigned bits;
        const char *name;
    } all[] = {{TYPE_STRING, "string"},   {TYPE_INTEGER | TYPE_NUMBER, "number"},
               {TYPE_BOOLEAN, "boolean"}, {TYPE_NULL, "null"},
               {TYPE_OBJECT, "object"},   {TYPE_ARRAY, "array"}};
    unsigned types = build_types(n->b, n->of);
    json_t *names = json_array();
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (!(types & all[i].bits))
            json_array_append_new(names, json_string(all[i].name));
    if (json_array_size(names) > 0)
        add(n, json_pack("{sO}", "type", names));
    json_decref(names);
}

/* Bounds, whose opposite is another bound. */
static bool negate_bound(struct negation *n, const char *key, json_t *v)
{
    static const struct {
        const char *key, *type, *other;
        int step;
    } list[] = {
        {"minLength", "string", "maxLength", -1},
        {"maxLength", "string", "minLength", 1},
        {"minItems", "array", "maxItems", -1},
        {"maxItems", "array", "minItems", 1},
        {"minProperties", "object", "maxProperties", -1},
        {"maxProperties", "object", "minProperties", 1},
        {"minimum", "number", "exclusiveMaximum", 0},
        {"maximum", "number", "exclusiveMinimum", 0},
        {"exclusiveMinimum", "number", "maximum", 0},
        {"exclusiveMaximum", "number", "minimum", 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        if (strcmp(list[i].key, key) != 0)
            continue;
        if (!json_is_number(v)) {
            build_refuse(n->b, "%s must be a number", key);
        } else if (list[i].step == 0) {
            add(n, json_pack("{ss,sO}", "type", list[i].type, list[i].other, v));
        } else {
            int64_t limit = build_count(n->b, n->of, key) + list[i].step;
            if (limit >= 0)
                add(n,
                    json_pack("{ss,sI}", "type", list[i].type, list[i].other, (json_int_t)limit));
        }
        return true;
    }
    return false;
}

static bool negate_object(struct negation *n, const char *key, json_t *v)
{
    json_t *one, *name;
    const char *property;
    size_t i, k;
    if (strcmp(key, "required") == 0) {
        json_array_foreach(v, i, one)
        {
            if (json_is_string(one))
                add(n, json_pack("{ss,s{so}}", "type", "object", "properties",
                                 json_string_value(one), json_false()));
        }
        return true;
    }
    if (strcmp(key, "dependentRequired") == 0) {
        json_object_foreach(v, property, one)
        {
            json_array_foreach(one, k, name)
            {
                if (json_is_string(name))
                    add(n, json_pack("{ss,s[s],s{so}}", "type", "object", "required", property,
                                     "properties", json_string_value(name), json_false()));
            }
        }
        return true;
    }
    if (strcmp(key, "properties") != 0)
        return false;
    json_object_foreach(v, property, one)
    {
        if (json_is_false(one))
            add(n, json_pack("{ss,s[s]}", "type", "object", "required", property));
        else if (json_is_object(one) && build_constrains(one, ""))
            add(n, json_pack("{ss,s[s],s{so}}", "type", "object", "required", property,
                             "properties", property, opposite(one)));
    }
    return true;
}

static bool negate_array(struct negation *n, const char *key, json_t *v)
{
    if (strcmp(key, "items") == 0 && !json_is_array(v) && !field(n->of, "prefixItems")) {
        add(n, json_pack("{ss,so}", "type", "array", "contains", opposite(v)));
        return true;
    }
    if (strcmp(key, "contains") == 0 && !field(n->of, "minContains") &&
        !field(n->of, "maxContains")) {
        add(n, json_pack("{ss,so}", "type", "array", "items", opposite(v)));
        return true;
    }
    return strcmp(key, "uniqueItems") == 0 && json_is_false(v);
}

static json_t *opposites(const json_t *list)
{
    json_t *all = json_array(), *one;
    size_t i;
    json_array_foreach(list, i, one)
    {
        json_array_append_new(all, opposite(one));
    }
    return json_pack("{so}", BUILD_ALSO, all);
}

/* None of them, or two. */
static void negate_one_of(struct negation *n, json_t *list)
{
    size_t count = json_array_size(list);
    add(n, opposites(list));
    for (size_t i = 0; i < count && count <= MAX_PAIRS; i++)
        for (size_t k = 0; k < i; k++)
            add(n,
                json_pack("{s[OO]}", BUILD_ALSO, json_array_get(list, i), json_array_get(list, k)));
}

static bool negate_logic(struct negation *n, const char *key, json_t *v)
{
    json_t *then = field(n->of, "then"), *other = field(n->of, "else"), *one;
    size_t i;
    if (strcmp(key, "anyOf") == 0) {
        add(n, opposites(v));
    } else if (strcmp(key, "oneOf") == 0) {
        negate_one_of(n, v);
    } else if (strcmp(key, "not") == 0) {
        add(n, json_incref(v));
    } else if (strcmp(key, BUILD_ALSO) == 0) {
        json_array_foreach(v, i, one)
        {
            add(n, opposite(one));
        }
    } else if (strcmp(key, "if") == 0) {
        if (then)
            add(n, json_pack("{s[Oo]}", BUILD_ALSO, v, opposite(then)));
        if (other)
            add(n, json_pack("{s[oo]}", BUILD_ALSO, opposite(v), opposite(other)));
    } else {
        return strcmp(key, "then") == 0 || strcmp(key, "else") == 0;
    }
    return true;
}

/* They speak of what is never generated where some properties are declared, or nobody must hold to them. */
static bool needs_no_opposite(const char *key)
{
    static const char *const keys[] = {"additionalProperties", "patternProperties", "propertyNames",
                                       "format", "nullable"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (strcmp(keys[i], key) == 0)
            return true;
    return strncmp(key, "unevaluated", 11) == 0;
}

static void negate_keyword(struct negation *n, const char *key, json_t *v)
{
    json_t *one = json_pack("{sO}", key, v);
    bool says_nothing = !build_constrains(one, "");
    json_decref(one);
    if (says_nothing || needs_no_opposite(key))
        return;
    if (strcmp(key, "type") == 0)
        negate_types(n);
    else if (strcmp(key, "const") == 0)
        add(n, json_pack("{s{s[O]}}", "not", "enum", v));
    else if (strcmp(key, "enum") == 0)
        add(n, json_pack("{s{sO}}", "not", "enum", v));
    else if (strcmp(key, "pattern") == 0)
        add(n, json_pack("{ss,s[{sO}]}", "type", "string", BUILD_PATTERNS, "not", v));
    else if (!negate_bound(n, key, v) && !negate_object(n, key, v) && !negate_array(n, key, v) &&
             !negate_logic(n, key, v))
        refuse_not(n, key);
}

/* Alternatives, of which at least one holds where the schema does not. */
static json_t *negate(struct builder *b, const json_t *schema)
{
    struct negation n = {.b = b, .of = json_is_object(schema) ? build_flatten(b, schema) : schema};
    n.out = keep(b, json_array());
    const char *key;
    json_t *v;
    if (json_is_false(n.of))
        add(&n, json_object());
    else if (!json_is_object(n.of) && !json_is_true(n.of))
        build_refuse(b, "a schema must be an object");
    json_object_foreach((json_t *)(uintptr_t)n.of, key, v)
    {
        if (!b->failed)
            negate_keyword(&n, key, v);
    }
    return n.out;
}

/* ---- all values but some ---------------------------------------------------------------------------------- */

static int compare_numbers(const void *x, const void *y)
{
    double a = *(const double *)x, c = *(const double *)y;
    return (a > c) - (a < c);
}

/* The numbers before, between and behind those that are not allowed. */
static void numbers_without(json_t *out, const char *type, const json_t *values)
{
    size_t n = 0, i;
    json_t *one;
    double *at = mem_array(json_array_size(values) + 1, sizeof *at);
    json_array_foreach(values, i, one)
    {
        if (json_is_number(one))
            at[n++] = json_number_value(one);
    }
    qsort(at, n, sizeof *at, compare_numbers);
    for (i = 0; i <= n; i++) {
        json_t *part = json_pack("{ss}", "type", type);
        if (i > 0)
            json_object_set_new(part, "exclusiveMinimum", json_real(at[i - 1]));
        if (i < n)
            json_object_set_new(part, "exclusiveMaximum", json_real(at[i]));
        json_array_append_new(out, part);
    }
    mem_free(at);
}

static json_t *strings_of(const json_t *values)
{
    json_t *all = json_array(), *one;
    size_t i;
    json_array_foreach(values, i, one)
    {
        if (json_is_string(one))
            json_array_append(all, one);
    }
    return all;
}

/* Only the empty object and the empty array can be left out. */
static void lists_without(struct builder *b, json_t *out, bool is_object, const json_t *values)
{
    bool no_empty = false;
    for (size_t i = 0; i < json_array_size(values); i++) {
        const json_t *one = json_array_get(values, i);
        if (!(is_object ? json_is_object(one) : json_is_array(one)))
            continue;
        if (json_object_size(one) + json_array_size(one) > 0)
            build_refuse(b, "one object or array among others cannot be forbidden");
        no_empty = true;
    }
    json_array_append_new(out, json_pack("{ss,sI}", "type", is_object ? "object" : "array",
                                         is_object ? "minProperties" : "minItems",
                                         (json_int_t)no_empty));
}

static json_t *all_but(struct builder *b, const json_t *rest, const json_t *values)
{
    unsigned types = build_types(b, rest);
    json_t *out = keep(b, json_array());
    if (types & TYPE_STRING) {
        json_t *strings = strings_of(values);
        json_array_append_new(
            out, json_array_size(strings)
                     ? json_pack("{ss,s[{sO}]}", "type", "string", BUILD_PATTERNS, "not", strings)
                     : json_pack("{ss}", "type", "string"));
        json_decref(strings);
    }
    if (types & (TYPE_NUMBER | TYPE_INTEGER))
        numbers_without(out, types & TYPE_NUMBER ? "number" : "integer", values);
    for (int i = 0; i < 3; i++) {
        json_t *v = i == 0 ? json_true() : i == 1 ? json_false() : json_null();
        bool is_there = false;
        for (size_t k = 0; k < json_array_size(values); k++)
            is_there = is_there || json_equal(json_array_get(values, k), v);
        if (!is_there && (types & build_type_of(v)))
            json_array_append_new(out, json_pack("{so}", "const", v));
    }
    if (types & TYPE_OBJECT)
        lists_without(b, out, true, values);
    if (types & TYPE_ARRAY)
        lists_without(b, out, false, values);
    return out;
}

/* The values that it lists and says nothing else of, or NULL. */
static json_t *only_listed(struct builder *b, const json_t *schema)
{
    const json_t *only = field(schema, "const"), *list = field(schema, "enum");
    if (only && !build_constrains(schema, "const"))
        return keep(b, json_pack("[O]", only));
    return json_is_array(list) && !build_constrains(schema, "enum") ? (json_t *)(uintptr_t)list
                                                                    : NULL;
}

/* ---- alternatives --------------------------------------------------------------------------------------- */

/* No value may be of two of them, so each goes without the others' values unless they have none in common. */
static json_t *one_of(struct builder *b, const json_t *schema, const json_t *rest)
{
    const json_t *list = field(schema, "oneOf");
    const json_t *tag = field(field(schema, "discriminator"), "propertyName");
    size_t n = json_array_size(list);
    json_t *out = keep(b, json_array()), *parts = keep(b, json_array());
    for (size_t i = 0; i < n; i++) {
        json_t *part = json_array_get(list, i);
        if (json_is_string(tag))
            part = build_merge(b, part, keep(b, json_pack("{s[O]}", "required", tag)));
        if (part && build_constrains(rest, ""))
            part = build_merge(b, part, rest);
        json_array_append(parts, part ? part : json_false());
    }
    for (size_t i = 0; i < n && !b->failed; i++) {
        json_t *all = json_pack("[O]", json_array_get(list, i));
        if (json_is_string(tag))
            json_array_append_new(all, json_pack("{s[O]}", "required", tag));
        for (size_t k = 0; k < n && !b->failed; k++)
            if (k != i &&
                !build_are_disjoint(b, json_array_get(parts, i), json_array_get(parts, k)))
                json_array_append_new(all, opposite(json_array_get(list, k)));
        json_t *one = json_array_size(all) > 1 ? json_pack("{sO}", BUILD_ALSO, all)
                                               : json_incref(json_array_get(list, i));
        json_array_append_new(out, one);
        json_decref(all);
    }
    return out;
}

static json_t *if_then(struct builder *b, const json_t *schema)
{
    json_t *when = field(schema, "if"), *then = field(schema, "then"),
           *other = field(schema, "else");
    if (!then && !other)
        return keep(b, json_pack("[{}]"));
    json_t *not = keep(b, opposite(when));
    json_t *first = then ? build_merge(b, when, then) : when;
    json_t *second = other ? build_merge(b, not, other) : not ;
    return keep(b, json_pack("[OO]", first ? first : json_false(), second ? second : json_false()));
}

/* The first property that others depend on, and what then holds; the rest of them goes on. */
static json_t *dependent(struct builder *b, const char *key, json_t *list)
{
    void *first = json_object_iter(list);
    if (!first)
        return keep(b, json_pack("[{}]"));
    const char *name = json_object_iter_key(first);
    json_t *then = json_object_iter_value(first), *others = json_copy(list);
    json_object_del(others, name);
    json_t *held = json_is_array(then) ? json_pack("{sO}", "required", then) : json_incref(then);
    json_t *out = json_pack("[{s{so}sO},{s[s]s[o]sO}]", "properties", name, json_false(), key,
                            others, "required", name, BUILD_ALSO, held, key, others);
    if (json_object_size(others) == 0)
        for (size_t i = 0; i < 2; i++)
            json_object_del(json_array_get(out, i), key);
    json_decref(others);
    return keep(b, out);
}

/* Is it plain that no value is of it?  Then it need not be built, nor what it would split into. */
static bool is_plainly_empty(struct builder *b, const json_t *schema, int depth)
{
    const json_t *one;
    size_t i;
    if (json_is_false(schema))
        return true;
    if (!json_is_object(schema) || depth > 2)
        return false;
    const json_t *list = field(schema, "enum"), *only = field(schema, "const");
    if (only && !field(schema, "$ref") && !build_takes(b, schema, only))
        return true;
    if (list && !only && json_array_size(list) <= MAX_TESTED) {
        bool any = false;
        json_array_foreach(list, i, one)
        {
            any = any || build_takes(b, schema, one);
        }
        if (!any)
            return true;
    }
    json_array_foreach(field(schema, "required"), i, one)
    {
        const json_t *of = field(field(schema, "properties"), json_string_value(one));
        if (json_is_string(one) && of && is_plainly_empty(b, of, depth + 1))
            return true;
    }
    const json_t *type = field(schema, "type");
    return json_is_array(type) && json_array_size(type) == 0;
}

static bool is_listed(const char *key)
{
    return strcmp(key, "anyOf") == 0 || strcmp(key, "oneOf") == 0;
}

static json_t *parts_of(struct builder *b, const json_t *schema, const char *key,
                        const json_t *rest)
{
    json_t *v = field(schema, key);
    bool is_also = strcmp(key, BUILD_ALSO) == 0;
    bool is_list = is_listed(key);
    if ((is_list || is_also) && (!json_is_array(v) || json_array_size(v) == 0)) {
        build_refuse(b, "%s must be an array of schemas", key);
        return NULL;
    }
    if (strcmp(key, "oneOf") == 0)
        return one_of(b, schema, rest);
    if (is_list)
        return v;
    if (strcmp(key, "if") == 0)
        return if_then(b, schema);
    if (is_also) {
        json_t *all = json_object(), *others = json_copy(v);
        json_array_remove(others, 0);
        if (json_array_size(others) > 0)
            json_object_set(all, BUILD_ALSO, others);
        json_decref(others);
        json_t *one = build_merge(b, json_array_get(v, 0), keep(b, all));
        return keep(b, json_pack("[O]", one ? one : json_false()));
    }
    if (strcmp(key, "not") == 0) {
        const json_t *of = json_is_object(v) ? build_flatten(b, v) : v;
        json_t *values = only_listed(b, of);
        return values ? all_but(b, rest, values) : negate(b, of);
    }
    if (!json_is_object(v)) {
        build_refuse(b, "%s must be an object", key);
        return NULL;
    }
    return dependent(b, key, v);
}

static json_t *without(struct builder *b, const json_t *schema, const char *key)
{
    json_t *rest = json_copy((json_t *)(uintptr_t)schema);
    json_object_del(rest, key);
    if (strcmp(key, "if") == 0) {
        json_object_del(rest, "then");
        json_object_del(rest, "else");
    }
    return keep(b, rest);
}

/* Such keywords are worked off one after another, and are not within each other. */
size_t build_enter_split(struct builder *b, const char *key)
{
    struct str path = buf_str(&b->path);
    bool is_there = strcmp(key, BUILD_ALSO) == 0;
    for (size_t i = 0; i < sizeof splitting / sizeof splitting[0] && !is_listed(key); i++) {
        size_t n = strlen(splitting[i]);
        is_there = is_there ||
                   (!is_listed(splitting[i]) && path.len > n && path.ptr[path.len - n - 1] == '/' &&
                    memcmp(path.ptr + path.len - n, splitting[i], n) == 0);
    }
    return is_there ? path.len : build_enter(b, key);
}

const json_t *build_alternatives(struct builder *b, const json_t *schema, const char **key)
{
    *key = splits_by(schema);
    json_t *out = keep(b, json_array());
    size_t mark = build_enter_split(b, *key), i;
    if (++b->n_splits > BUILD_MAX_SPLITS)
        build_refuse(b, "too many alternatives (of anyOf, oneOf, if, not and the like together)");
    const json_t *rest = without(b, schema, *key), *one;
    bool is_alone = !build_constrains(rest, "");
    const json_t *parts = b->failed ? NULL : parts_of(b, schema, *key, rest);
    json_array_foreach(parts, i, one)
    {
        if (b->failed)
            break;
        if (!json_is_object(one) && !json_is_boolean(one)) {
            build_refuse(b, "a schema must be an object");
            break;
        }
        if (!is_alone)
            one = build_merge(b, rest, one);
        json_array_append(out, one && !is_plainly_empty(b, one, 0) ? (json_t *)(uintptr_t)one
                                                                   : json_false());
    }
    build_leave(b, mark);
    return out;
}
