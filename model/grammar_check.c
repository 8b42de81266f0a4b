/* model/grammar_check.c - is a value of a schema; see grammar_build.h.  For enum and const, whose values are known, and for
 * names of properties. */
#include <math.h>
#include <string.h>

#include "model/grammar_regex.h"
#include "model/utf8.h"

enum { MAX_DEPTH = 64 };

unsigned build_type_of(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return TYPE_OBJECT;
    case JSON_ARRAY:
        return TYPE_ARRAY;
    case JSON_STRING:
        return TYPE_STRING;
    case JSON_INTEGER:
        return TYPE_INTEGER | TYPE_NUMBER;
    case JSON_REAL:
        return floor(json_real_value(value)) == json_real_value(value) ? TYPE_INTEGER | TYPE_NUMBER
                                                                       : TYPE_NUMBER;
    case JSON_TRUE:
    case JSON_FALSE:
        return TYPE_BOOLEAN;
    case JSON_NULL:
        break;
    }
    return TYPE_NULL;
}

static bool is_at_least(const json_t *schema, const char *key, double x)
{
    const json_t *v = json_object_get(schema, key);
    const json_t *strict = json_object_get(schema, "exclusiveMinimum");
    bool is_strict = strcmp(key, "minimum") == 0 && json_is_true(strict);
    return !json_is_number(v) || x > json_number_value(v) ||
           (!is_strict && x >= json_number_value(v));
}

static bool is_at_most(const json_t *schema, const char *key, double x)
{
    const json_t *v = json_object_get(schema, key);
    const json_t *strict = json_object_get(schema, "exclusiveMaximum");
    bool is_strict = strcmp(key, "maximum") == 0 && json_is_true(strict);
    return !json_is_number(v) || x < json_number_value(v) ||
           (!is_strict && x <= json_number_value(v));
}

static bool takes_number(const json_t *schema, double x)
{
    const json_t *least = json_object_get(schema, "exclusiveMinimum");
    const json_t *most = json_object_get(schema, "exclusiveMaximum");
    const json_t *unit = json_object_get(schema, "multipleOf");
    if (!is_at_least(schema, "minimum", x) || !is_at_most(schema, "maximum", x) ||
        (json_is_number(least) && x <= json_number_value(least)) ||
        (json_is_number(most) && x >= json_number_value(most)))
        return false;
    double times = json_is_number(unit) ? x / json_number_value(unit) : 0;
    return fabs(times - nearbyint(times)) < 1e-9;
}

static bool takes_string(struct builder *b, const json_t *schema, struct str text)
{
    int n = 0;
    int32_t c;
    for (size_t at = 0, bytes; at < text.len; at += bytes ? bytes : 1, n++)
        bytes = utf8_decode(text, at, &c);
    return is_at_least(schema, "minLength", n) && is_at_most(schema, "maxLength", n) &&
           build_matches(b, schema, text);
}

static bool takes_contained(struct builder *b, const json_t *schema, const json_t *value)
{
    const json_t *what = json_object_get(schema, "contains");
    double n = 0;
    for (size_t i = 0; what && i < json_array_size(value); i++)
        n += build_takes(b, what, json_array_get(value, i));
    bool has_least = json_object_get(schema, "minContains");
    return !what || ((has_least ? is_at_least(schema, "minContains", n) : n >= 1) &&
                     is_at_most(schema, "maxContains", n));
}

static bool takes_array(struct builder *b, const json_t *schema, const json_t *value)
{
    struct build_items items = build_items_of(b, schema);
    size_t n = json_array_size(value);
    if (!is_at_least(schema, "minItems", (double)n) || !is_at_most(schema, "maxItems", (double)n) ||
        !takes_contained(b, schema, value))
        return false;
    for (size_t i = 0; i < n; i++) {
        const json_t *one = build_item(&items, i);
        if (one && !build_takes(b, one, json_array_get(value, i)))
            return false;
        for (size_t k = 0; k < i && json_is_true(json_object_get(schema, "uniqueItems")); k++)
            if (build_are_equal(json_array_get(value, k), json_array_get(value, i)))
                return false;
    }
    return true;
}

static bool takes_dependent(struct builder *b, const json_t *schema, const json_t *value)
{
    static const char *const keys[] = {"dependentRequired", "dependentSchemas", "dependencies"};
    const char *key;
    json_t *then;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_object_foreach(json_object_get(schema, keys[i]), key, then)
        {
            if (!json_object_get(value, key))
                continue;
            json_t *held = json_is_array(then) ? json_pack("{sO}", "required", then) : NULL;
            bool takes = build_takes(b, held ? held : then, value);
            json_decref(held);
            if (!takes)
                return false;
        }
    }
    return true;
}

/* What the patterns say of a property; *is_known: one of them speaks of it. */
static bool takes_by_patterns(struct builder *b, const json_t *schema, const char *key,
                              const json_t *value, bool *is_known)
{
    const char *pattern;
    json_t *of;
    json_object_foreach(json_object_get(schema, "patternProperties"), pattern, of)
    {
        json_t *only = json_pack("{ss}", "pattern", pattern);
        bool does = build_matches(b, only, str_of(key));
        json_decref(only);
        *is_known = *is_known || does;
        if (does && !build_takes(b, of, value))
            return false;
    }
    return true;
}

static bool takes_object(struct builder *b, const json_t *schema, const json_t *value)
{
    const json_t *properties = json_object_get(schema, "properties");
    const json_t *more = json_object_get(schema, "additionalProperties");
    const json_t *names = json_object_get(schema, "propertyNames");
    const json_t *required = json_object_get(schema, "required");
    size_t n = json_object_size(value);
    const char *key;
    json_t *v;
    if (!is_at_least(schema, "minProperties", (double)n) ||
        !is_at_most(schema, "maxProperties", (double)n))
        return false;
    for (size_t i = 0; i < json_array_size(required); i++) {
        key = json_string_value(json_array_get(required, i));
        if (key && !json_object_get(value, key))
            return false;
    }
    json_object_foreach((json_t *)(uintptr_t)value, key, v)
    {
        const json_t *one = json_object_get(properties, key);
        json_t *name = json_string(key);
        bool is_name = !names || build_takes(b, names, name);
        json_decref(name);
        bool is_known = one != NULL;
        if (!is_name || !takes_by_patterns(b, schema, key, v, &is_known))
            return false;
        one = is_known ? one : more;
        if (one && !build_takes(b, one, v))
            return false;
    }
    return takes_dependent(b, schema, value);
}

static int count_takers(struct builder *b, const json_t *list, const json_t *value)
{
    int n = 0;
    for (size_t i = 0; i < json_array_size(list); i++)
        n += build_takes(b, json_array_get(list, i), value);
    return n;
}

static bool takes_unions(struct builder *b, const json_t *schema, const json_t *value)
{
    const json_t *any = json_object_get(schema, "anyOf"), *one = json_object_get(schema, "oneOf");
    const json_t *not = json_object_get(schema, "not"), *when = json_object_get(schema, "if");
    const json_t *also = json_object_get(schema, BUILD_ALSO);
    if (when) {
        when = json_object_get(schema, build_takes(b, when, value) ? "then" : "else");
        if (when && !build_takes(b, when, value))
            return false;
    }
    return (!any || count_takers(b, any, value) > 0) &&
           (!one || count_takers(b, one, value) == 1) && (!not || !build_takes(b, not, value)) &&
           count_takers(b, also, value) == (int)json_array_size(also);
}

bool build_are_equal(const json_t *x, const json_t *y)
{
    if (json_is_number(x) && json_is_number(y))
        return !(json_number_value(x) < json_number_value(y)) &&
               !(json_number_value(x) > json_number_value(y));
    return json_equal(x, y);
}

static bool is_listed(const json_t *schema, const json_t *value)
{
    const json_t *only = json_object_get(schema, "const"), *list = json_object_get(schema, "enum");
    if (only && !build_are_equal(only, value))
        return false;
    for (size_t i = 0; i < json_array_size(list); i++)
        if (build_are_equal(json_array_get(list, i), value))
            return true;
    return list == NULL;
}

bool build_takes(struct builder *b, const json_t *schema, const json_t *value)
{
    if (b->failed || json_is_boolean(schema))
        return json_is_true(schema);
    if (b->nesting >= MAX_DEPTH)
        return false;
    if (!build_step(b, 1))
        return false;
    b->nesting++;
    schema = build_flatten(b, schema);
    bool takes = !json_is_false(schema);
    unsigned types = json_object_get(schema, "type") ? build_types(b, schema) : ALL_TYPES;
    takes = takes && (build_type_of(value) & types) && is_listed(schema, value) &&
            takes_unions(b, schema, value);
    if (takes && json_is_number(value))
        takes = takes_number(schema, json_number_value(value));
    else if (takes && json_is_string(value))
        takes = takes_string(b, schema,
                             (struct str){json_string_value(value), json_string_length(value)});
    else if (takes && json_is_array(value))
        takes = takes_array(b, schema, value);
    else if (takes && json_is_object(value))
        takes = takes_object(b, schema, value);
    b->nesting--;
    return takes && !b->failed;
}

/* ---- oneOf --------------------------------------------------------------------------------------------- */

/* The values that a schema lists, or NULL; a new reference. */
static json_t *listed(const json_t *schema)
{
    json_t *only = json_object_get(schema, "const"), *list = json_object_get(schema, "enum");
    return only ? json_pack("[O]", only) : json_incref(list);
}

static bool no_value_of(struct builder *b, const json_t *list, const json_t *schema)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (build_takes(b, schema, json_array_get(list, i)))
            return false;
    return true;
}

static bool is_required(const json_t *schema, const char *key)
{
    const json_t *list = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_is_string(json_array_get(list, i)) &&
            strcmp(json_string_value(json_array_get(list, i)), key) == 0)
            return true;
    return false;
}

/* A property that both must have and that says which it is. */
static bool have_a_tag(struct builder *b, const json_t *x, const json_t *y)
{
    const char *key;
    json_t *v;
    json_object_foreach(json_object_get(x, "properties"), key, v)
    {
        const json_t *other = json_object_get(json_object_get(y, "properties"), key);
        if (other && is_required(x, key) && is_required(y, key) && build_are_disjoint(b, v, other))
            return true;
    }
    return false;
}

/* One must have a property that the other must not. */
static bool excludes(const json_t *x, const json_t *y)
{
    const json_t *list = json_object_get(x, "required");
    if (!json_is_false(json_object_get(y, "additionalProperties")))
        return false;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *key = json_string_value(json_array_get(list, i));
        if (key && !json_object_get(json_object_get(y, "properties"), key))
            return true;
    }
    return false;
}

static bool ends_before(const json_t *x, const json_t *y)
{
    const json_t *most = json_object_get(x, "maximum"), *least = json_object_get(y, "minimum");
    return json_is_number(most) && json_is_number(least) &&
           json_number_value(most) < json_number_value(least);
}

bool build_are_disjoint(struct builder *b, const json_t *x, const json_t *y)
{
    if (b->nesting >= MAX_DEPTH || b->failed || !build_step(b, 1))
        return false;
    b->nesting++;
    x = build_flatten(b, x);
    y = build_flatten(b, y);
    json_t *left = listed(x), *right = listed(y);
    unsigned a = build_types(b, x), c = build_types(b, y);
    bool are = json_is_false(x) || json_is_false(y) || (left && no_value_of(b, left, y)) ||
               (right && no_value_of(b, right, x));
    a |= a & TYPE_NUMBER ? TYPE_INTEGER : 0;
    c |= c & TYPE_NUMBER ? TYPE_INTEGER : 0;
    bool both_typed = json_object_get(x, "type") && json_object_get(y, "type");
    if (!are && both_typed)
        are =
            (a & c) == 0 ||
            ((a & c) == TYPE_OBJECT && (have_a_tag(b, x, y) || excludes(x, y) || excludes(y, x))) ||
            ((a & c & ~(unsigned)(TYPE_NUMBER | TYPE_INTEGER)) == 0 &&
             (ends_before(x, y) || ends_before(y, x)));
    json_decref(left);
    json_decref(right);
    b->nesting--;
    return are;
}
