/* model/grammar_merge.c - schemas that hold together become one: allOf, what stands beside anyOf or $ref; see
 * grammar_build.h. */
#include <math.h>
#include <string.h>

#include "model/grammar_build.h"

enum { MAX_FLATTEN = 16 };

static json_t *keep(struct builder *b, json_t *v)
{
    json_array_append_new(b->made, v);
    return v;
}

static bool is_annotation(const char *key)
{
    static const char *const words[] = {
        "title", "description", "default", "examples", "example", "$comment", "$schema", "$id",
        "$anchor", "$defs", "definitions", "deprecated", "readOnly", "writeOnly", "contentEncoding",
        "contentMediaType", "$vocabulary", "id", "$dynamicAnchor", "$recursiveAnchor",
        "contentSchema",
        /* OpenAPI's, and what generators of schemas add */
        "discriminator", "xml", "externalDocs", "errorMessage", "markdownDescription", "enumNames",
        "enumDescriptions", "propertyOrdering"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(words[i], key) == 0)
            return true;
    return strncmp(key, "x-", 2) == 0;
}

bool build_constrains(const json_t *schema, const char *but)
{
    json_t *object = (json_t *)(uintptr_t)schema; /* iterators want it non-const */
    const char *key;
    json_t *v;
    json_object_foreach(object, key, v)
    {
        if (!is_annotation(key) && strcmp(key, but) != 0)
            return true;
    }
    return false;
}

/* ---- keyword by keyword --------------------------------------------------------------------------- */

static json_t *both_types(const json_t *x, const json_t *y)
{
    json_t *all = json_array(), *one;
    json_t *left = json_is_array(x) ? json_incref((json_t *)(uintptr_t)x) : json_pack("[O]", x);
    json_t *right = json_is_array(y) ? json_incref((json_t *)(uintptr_t)y) : json_pack("[O]", y);
    size_t i, k;
    json_array_foreach(left, i, one)
    {
        const char *a = json_string_value(one);
        for (k = 0; a && k < json_array_size(right); k++) {
            const char *c = json_string_value(json_array_get(right, k));
            if (!c)
                continue;
            if (strcmp(a, c) == 0 || (strcmp(a, "integer") == 0 && strcmp(c, "number") == 0))
                json_array_append_new(all, json_string(a));
            else if (strcmp(a, "number") == 0 && strcmp(c, "integer") == 0)
                json_array_append_new(all, json_string(c));
        }
    }
    json_decref(left);
    json_decref(right);
    return all;
}

static bool has_value(const json_t *list, const json_t *v)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_equal(json_array_get(list, i), v))
            return true;
    return false;
}

static json_t *both_lists(const json_t *x, const json_t *y, bool union_of)
{
    json_t *all = union_of ? json_copy((json_t *)(uintptr_t)x) : json_array();
    for (size_t i = 0; i < json_array_size(y); i++)
        if (has_value(x, json_array_get(y, i)) != union_of)
            json_array_append(all, json_array_get(y, i));
    return all;
}

/* What a schema says of a property by its additionalProperties; NULL: nothing. */
static json_t *of_others(const json_t *schema, const char *key)
{
    if (json_object_get(json_object_get(schema, "properties"), key))
        return NULL;
    return json_object_get(schema, "additionalProperties");
}

static json_t *both_schemas(struct builder *b, const json_t *x, const json_t *y)
{
    json_t *all = build_merge(b, x, y);
    return all ? json_incref(all) : json_false();
}

static json_t *both_properties(struct builder *b, const json_t *x, const json_t *y)
{
    json_t *left = json_object_get(x, "properties"), *right = json_object_get(y, "properties"), *v;
    json_t *all = json_object();
    const char *key;
    json_object_foreach(left, key, v)
    {
        json_t *other = json_object_get(right, key);
        other = other ? other : of_others(y, key);
        json_object_set_new(all, key, other ? both_schemas(b, v, other) : json_incref(v));
    }
    json_object_foreach(right, key, v)
    {
        json_t *other = of_others(x, key);
        if (!json_object_get(left, key))
            json_object_set_new(all, key, other ? both_schemas(b, v, other) : json_incref(v));
    }
    return all;
}

/* Where a map has only one of them, patterns and the rest of the names speak of the same ones. */
static json_t *both_patterns(struct builder *b, const json_t *x, const json_t *y)
{
    json_t *left = json_object_get(x, "patternProperties");
    json_t *right = json_object_get(y, "patternProperties"), *v;
    bool is_map = !json_object_get(x, "properties") && !json_object_get(y, "properties");
    json_t *more_x = is_map && !left ? json_object_get(x, "additionalProperties") : NULL;
    json_t *more_y = is_map && !right ? json_object_get(y, "additionalProperties") : NULL;
    json_t *all = json_object();
    const char *key;
    json_object_foreach(left, key, v)
    {
        json_t *other = json_object_get(right, key);
        other = other ? other : more_y;
        json_object_set_new(all, key, other ? both_schemas(b, v, other) : json_incref(v));
    }
    json_object_foreach(right, key, v)
    {
        if (!json_object_get(left, key))
            json_object_set_new(all, key, more_x ? both_schemas(b, v, more_x) : json_incref(v));
    }
    return all;
}

static json_t *both_items(struct builder *b, const json_t *x, const json_t *y)
{
    if (!x || !y)
        return json_incref((json_t *)(uintptr_t)(x ? x : y));
    return both_schemas(b, x, y);
}

/* Item by item; in the newer way to write them. */
static void merge_items(struct builder *b, const json_t *x, const json_t *y, json_t *all)
{
    struct build_items left = build_items_of(b, x), right = build_items_of(b, y);
    size_t n = json_array_size(left.first), m = json_array_size(right.first);
    json_object_del(all, "items");
    json_object_del(all, "additionalItems");
    json_object_del(all, "prefixItems");
    json_t *first = json_array();
    for (size_t i = 0; i < n || i < m; i++) {
        json_t *one = both_items(b, build_item(&left, i), build_item(&right, i));
        json_array_append_new(first, one ? one : json_true());
    }
    if (n + m > 0)
        json_object_set(all, "prefixItems", first);
    json_decref(first);
    if (left.rest || right.rest)
        json_object_set_new(all, "items", both_items(b, left.rest, right.rest));
}

/* The least common multiple of whole numbers; NULL: who knows. */
static json_t *both_multiples(double x, double y)
{
    if (!(x >= 1 && y >= 1 && x < 1e6 && y < 1e6) || floor(x) != x || floor(y) != y)
        return NULL;
    double a = x, c = y;
    while (c > 0) {
        double rest = fmod(a, c);
        a = c;
        c = rest;
    }
    return json_integer((json_int_t)(x / a * y));
}

/* Keywords that work together, and cannot be put together with others of their kind. */
static const char *const groups[][4] = {
    {"anyOf", NULL},
    {"oneOf", "discriminator", NULL},
    {"not", NULL},
    {"if", "then", "else", NULL},
    {"contains", "minContains", "maxContains", NULL},
    {"dependentRequired", NULL},
    {"dependentSchemas", NULL},
    {"dependencies", NULL},
};

/* What y says in such keywords where x has them, too, holds beside the rest. */
static const json_t *set_apart(struct builder *b, const json_t *x, const json_t *y, json_t *also)
{
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        json_t *mine = json_object_get(x, groups[i][0]), *other = json_object_get(y, groups[i][0]);
        if (!mine || !other)
            continue;
        json_t *apart = json_object(), *rest = json_copy((json_t *)(uintptr_t)y);
        for (int k = 0; k < 4 && groups[i][k]; k++) {
            json_t *v = json_object_get(y, groups[i][k]);
            if (v)
                json_object_set(apart, groups[i][k], v);
            json_object_del(rest, groups[i][k]);
        }
        json_array_append_new(also, apart);
        y = keep(b, rest);
    }
    return y;
}

enum how { SAME_ONLY, LARGER, SMALLER, SCHEMAS, UNION, EITHER_TRUE, MULTIPLE };

static enum how how_to_merge(const char *key)
{
    static const struct {
        const char *key;
        enum how how;
    } list[] = {
        {"minimum", LARGER},
        {"exclusiveMinimum", LARGER},
        {"minLength", LARGER},
        {"minItems", LARGER},
        {"minProperties", LARGER},
        {"maximum", SMALLER},
        {"exclusiveMaximum", SMALLER},
        {"maxLength", SMALLER},
        {"maxItems", SMALLER},
        {"maxProperties", SMALLER},
        {"additionalProperties", SCHEMAS},
        {"propertyNames", SCHEMAS},
        {"required", UNION},
        {"uniqueItems", EITHER_TRUE},
        {BUILD_ALSO, UNION},
        {BUILD_PATTERNS, UNION},
        {"multipleOf", MULTIPLE},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        if (strcmp(list[i].key, key) == 0)
            return list[i].how;
    return SAME_ONLY;
}

static json_t *both_values(struct builder *b, const char *key, json_t *x, json_t *y)
{
    double left = json_number_value(x), right = json_number_value(y);
    json_t *all;
    if (strcmp(key, "type") == 0)
        return both_types(x, y);
    if (strcmp(key, "enum") == 0)
        return both_lists(x, y, false);
    if (json_equal(x, y))
        return json_incref(x);
    switch (how_to_merge(key)) {
    case LARGER:
        return json_incref(left > right ? x : y);
    case SMALLER:
        return json_incref(left < right ? x : y);
    case SCHEMAS:
        return both_schemas(b, x, y);
    case UNION:
        return both_lists(x, y, true);
    case EITHER_TRUE:
        return json_incref(json_is_true(x) ? x : y);
    case MULTIPLE:
        if ((all = both_multiples(left, right)))
            return all;
        break;
    case SAME_ONLY:
        break;
    }
    if (strcmp(key, "const") == 0)
        return NULL;
    build_refuse(
        b,
        "\"%.40s\" is said twice, in parts that must hold together (allOf, or beside anyOf "
        "or $ref): say it once",
        key);
    return NULL;
}

static bool is_merged_apart(const char *key)
{
    static const char *const keys[] = {"properties", "patternProperties", "prefixItems", "items",
                                       "additionalItems"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (strcmp(keys[i], key) == 0)
            return true;
    return false;
}

/* `all` may share its lists with what it is a copy of. */
static void add_to(json_t *all, const char *key, json_t *v)
{
    json_t *list = json_object_get(all, key);
    list = list ? json_copy(list) : json_array();
    json_array_append(list, v);
    json_object_set_new(all, key, list);
}

/* What merging it costs. */
static int64_t size_of(const json_t *schema)
{
    size_t n = json_array_size(json_object_get(schema, "required"));
    return (int64_t)(json_object_size(json_object_get(schema, "properties")) / 4 + n * n / 400 +
                     json_array_size(json_object_get(schema, BUILD_ALSO)));
}

json_t *build_merge(struct builder *b, const json_t *x, const json_t *y)
{
    if (b->failed || !build_step(b, 2 + size_of(x) + size_of(y)))
        return NULL;
    if (json_is_false(x) || json_is_false(y))
        return keep(b, json_false());
    if (b->nesting >= BUILD_MAX_NESTING) {
        build_refuse(b, "the schema is nested more than %d deep", BUILD_MAX_NESTING);
        return NULL;
    }
    b->nesting++;
    x = json_is_true(x) ? NULL : build_flatten(b, x);
    y = json_is_true(y) ? NULL : build_flatten(b, y);
    json_t *all = x ? json_copy((json_t *)(uintptr_t)x) : json_object(), *v;
    const char *key;
    bool is_possible = true;
    if ((x && !json_is_object(x)) || (y && !json_is_object(y))) {
        is_possible = !json_is_false(x) && !json_is_false(y);
        if (is_possible)
            build_refuse(b, "a schema must be an object");
        y = NULL;
    }
    json_t *also = json_array();
    const json_t *whole = y;
    y = x && y ? set_apart(b, x, y, also) : y;
    json_object_foreach((json_t *)(uintptr_t)y, key, v)
    {
        json_t *mine = json_object_get(all, key);
        bool is_idle = is_annotation(key) && (mine || strcmp(key, "discriminator") != 0);
        if (is_idle || is_merged_apart(key))
            continue;
        if (mine && strcmp(key, "pattern") == 0 && !json_equal(mine, v)) {
            add_to(all, BUILD_PATTERNS, v);
            continue;
        }
        json_t *merged = mine ? both_values(b, key, mine, v) : json_incref(v);
        is_possible = is_possible && merged;
        if (merged)
            json_object_set_new(all, key, merged);
    }
    for (size_t i = 0; i < json_array_size(also); i++)
        add_to(all, BUILD_ALSO, json_array_get(also, i));
    json_decref(also);
    if (json_object_get(x, "properties") || json_object_get(y, "properties"))
        json_object_set_new(all, "properties", both_properties(b, x, whole));
    if (json_object_get(x, "patternProperties") || json_object_get(y, "patternProperties"))
        json_object_set_new(all, "patternProperties", both_patterns(b, x, whole));
    merge_items(b, x, whole, all);
    b->nesting--;
    if (!is_possible) {
        json_decref(all);
        all = json_false();
    }
    return keep(b, all);
}

/* ---- allOf and $ref ------------------------------------------------------------------------------------ */

static json_t *without(struct builder *b, const json_t *schema, const char *key)
{
    json_t *rest = json_copy((json_t *)(uintptr_t)schema);
    json_object_del(rest, key);
    return keep(b, rest);
}

const json_t *build_flatten(struct builder *b, const json_t *schema)
{
    for (int i = 0; i < MAX_FLATTEN && json_is_object(schema) && !b->failed; i++) {
        const json_t *ref = json_object_get(schema, "$ref");
        const json_t *list = json_object_get(schema, "allOf");
        if (ref) {
            const char *name = json_string_value(ref);
            const json_t *target = name ? build_resolve(b, name) : NULL;
            if (!target) {
                build_refuse(b, "$ref \"%.80s\" leads nowhere in the schema", name ? name : "");
                return json_false();
            }
            if (build_constrains(schema, "$ref"))
                schema = build_merge(b, without(b, schema, "$ref"), target);
            else
                schema = target;
        } else if (list) {
            if (!json_is_array(list) || json_array_size(list) == 0) {
                build_refuse(b, "allOf must be an array of schemas");
                return json_false();
            }
            const json_t *all = without(b, schema, "allOf");
            for (size_t k = 0; k < json_array_size(list) && all; k++)
                all = build_merge(b, all, json_array_get(list, k));
            schema = all;
        } else {
            return schema;
        }
        if (!schema)
            return json_false();
    }
    if (json_is_object(schema) && !b->failed)
        build_refuse(b, "$ref and allOf lead in a circle");
    return json_is_object(schema) ? json_false() : schema;
}
