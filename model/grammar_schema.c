/* model/grammar_schema.c - a JSON schema as a graph; see grammar_build.h. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/grammar_build.h"

/* How values are written: as JSON, or as arguments of a tool, with their closing tag. */
enum {
    TYPE_STRING = 1,
    TYPE_INTEGER = 2,
    TYPE_NUMBER = 4,
    TYPE_BOOLEAN = 8,
    TYPE_NULL = 16,
    TYPE_OBJECT = 32,
    TYPE_ARRAY = 64
};
static const char *const type_names[] = {"string", "integer", "number", "boolean",
                                         "null",   "object",  "array"};
enum { N_TYPES = sizeof type_names / sizeof type_names[0], ALL_TYPES = (1 << N_TYPES) - 1 };

uint32_t build_refuse(struct builder *b, const char *format, ...)
{
    if (b->failed)
        return 0;
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    b->failed = true;
    err_set(b->e, E_INVALID, "%.200s: %s", b->path.data, text);
    return 0;
}

size_t build_enter(struct builder *b, const char *key)
{
    size_t mark = b->path.len;
    buf_printf(&b->path, ".%s", key);
    return mark;
}

void build_leave(struct builder *b, size_t mark)
{
    b->path.len = mark;
    b->path.data[mark] = '\0';
}

static json_t *field(const json_t *schema, const char *key)
{
    return json_object_get(schema, key);
}

/* ---- types ------------------------------------------------------------------------------------- */

static unsigned type_of_name(struct builder *b, const json_t *name)
{
    const char *text = json_string_value(name);
    for (int i = 0; text && i < N_TYPES; i++)
        if (strcmp(text, type_names[i]) == 0)
            return 1u << i;
    build_refuse(b, "type \"%.40s\" is not one of JSON's", text ? text : "");
    return 0;
}

static unsigned types_of(struct builder *b, const json_t *schema)
{
    const json_t *type = field(schema, "type"), *one;
    unsigned types = 0;
    size_t i;
    if (json_is_array(type)) {
        json_array_foreach(type, i, one)
        {
            types |= type_of_name(b, one);
        }
    } else if (type) {
        types = type_of_name(b, type);
    } else if (field(schema, "properties") || field(schema, "required")) {
        types = TYPE_OBJECT;
    } else if (field(schema, "items")) {
        types = TYPE_ARRAY;
    } else {
        types = ALL_TYPES;
    }
    return types & TYPE_NUMBER ? types & ~(unsigned)TYPE_INTEGER : types;
}

static unsigned type_of_value(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return TYPE_OBJECT;
    case JSON_ARRAY:
        return TYPE_ARRAY;
    case JSON_STRING:
        return TYPE_STRING;
    case JSON_INTEGER:
        return TYPE_INTEGER | TYPE_NUMBER;
    case JSON_REAL:
        return TYPE_NUMBER;
    case JSON_TRUE:
    case JSON_FALSE:
        return TYPE_BOOLEAN;
    case JSON_NULL:
        break;
    }
    return TYPE_NULL;
}

/* ---- keywords ------------------------------------------------------------------------------------ */

/* Those that we would have to ignore. */
static void refuse_unsupported(struct builder *b, const json_t *schema)
{
    static const char *const words[] = {"pattern",
                                        "patternProperties",
                                        "propertyNames",
                                        "minProperties",
                                        "maxProperties",
                                        "dependentRequired",
                                        "dependentSchemas",
                                        "dependencies",
                                        "if",
                                        "then",
                                        "else",
                                        "not",
                                        "contains",
                                        "minContains",
                                        "maxContains",
                                        "prefixItems",
                                        "uniqueItems",
                                        "multipleOf",
                                        "$dynamicRef",
                                        "$recursiveRef"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        const json_t *v = field(schema, words[i]);
        if (v && !json_is_false(v))
            build_refuse(b, "the keyword \"%s\" is not supported", words[i]);
    }
}

/* A count; -1 if it is absent. */
static int64_t count_of(struct builder *b, const json_t *schema, const char *key)
{
    const json_t *v = field(schema, key);
    if (!v)
        return -1;
    double x = json_is_number(v) ? json_number_value(v) : -1;
    if (!(x >= 0 && x <= 1e9) || floor(x) != x) {
        build_refuse(b, "%s must be a whole number from 0 on", key);
        return -1;
    }
    return (int64_t)x;
}

static uint32_t repeat(struct builder *b, const json_t *schema, const char *least, const char *most,
                       uint32_t rule, uint32_t next)
{
    int64_t min = count_of(b, schema, least), max = count_of(b, schema, most);
    if (max >= 0 && min > max)
        return build_refuse(b, "%s %lld is more than %s %lld", least, (long long)min, most,
                            (long long)max);
    return build_repeat(b, rule, min < 0 ? 0 : min, max, next);
}

static uint32_t string_of(struct builder *b, const json_t *schema, uint32_t next)
{
    if (!field(schema, "minLength") && !field(schema, "maxLength"))
        return build_string(b, next);
    next = grammar_range(b->g, '"', '"', next);
    next = repeat(b, schema, "minLength", "maxLength", build_character(b), next);
    return grammar_range(b->g, '"', '"', next);
}

/* The bound that is meant, made inclusive, or `none`. */
static int64_t bound(struct builder *b, const json_t *schema, const char *key, const char *strict,
                     int step, int64_t none)
{
    const json_t *v = field(schema, key), *s = field(schema, strict);
    int64_t best = none;
    if (v) {
        double x = json_number_value(v);
        if (!json_is_number(v) || !(fabs(x) < 1e18))
            build_refuse(b, "%s must be a number of at most 18 digits", key);
        else
            best = (int64_t)(step > 0 ? ceil(x) : floor(x));
    }
    if (s) {
        double x = json_number_value(s);
        if (!json_is_number(s) || !(fabs(x) < 1e18)) {
            build_refuse(b, "%s must be a number of at most 18 digits", strict);
        } else {
            int64_t at = (int64_t)(step > 0 ? floor(x) : ceil(x)) + step;
            if (!v || (step > 0 ? at > best : at < best))
                best = at;
        }
    }
    return best;
}

static uint32_t integer_of(struct builder *b, const json_t *schema, uint32_t next)
{
    int64_t min = bound(b, schema, "minimum", "exclusiveMinimum", 1, INT64_MIN);
    int64_t max = bound(b, schema, "maximum", "exclusiveMaximum", -1, INT64_MAX);
    return build_integer(b, min, max, next);
}

static uint32_t number_of(struct builder *b, const json_t *schema, uint32_t next)
{
    static const char *const bounds[] = {"minimum", "exclusiveMinimum", "maximum",
                                         "exclusiveMaximum"};
    for (int i = 0; i < 4; i++)
        if (field(schema, bounds[i]))
            return build_refuse(b, "%s is supported for type \"integer\" only", bounds[i]);
    return build_number(b, next);
}

/* A schema as a rule of its own, so that it is built once however often it is used. */
static uint32_t rule_of(struct builder *b, const json_t *schema)
{
    for (int i = 0; i < b->n_rules; i++)
        if (b->rules[i].schema == schema)
            return b->rules[i].entry;
    if (b->n_rules == BUILD_MAX_RULES)
        return build_refuse(b, "the schema has more than %d parts", BUILD_MAX_RULES);
    uint32_t entry = grammar_ahead(b->g);
    b->rules[b->n_rules++] = (struct build_rule){.schema = schema, .entry = entry};
    grammar_lead(b->g, entry, build_schema(b, schema, grammar_return(b->g)));
    return entry;
}

static uint32_t array_of(struct builder *b, const json_t *schema, uint32_t next)
{
    const json_t *items = field(schema, "items");
    int64_t min = count_of(b, schema, "minItems"), max = count_of(b, schema, "maxItems");
    size_t mark = build_enter(b, "items");
    uint32_t item = items ? rule_of(b, items) : build_any(b, grammar_return(b->g));
    build_leave(b, mark);
    if (max >= 0 && min > max)
        return build_refuse(b, "minItems %lld is more than maxItems %lld", (long long)min,
                            (long long)max);
    uint32_t end = build_space(b, grammar_range(b->g, ']', ']', next));
    uint32_t more = build_space(b, grammar_call(b->g, item, grammar_return(b->g)));
    more = grammar_range(b->g, ',', ',', more); /* the rule of an item that follows another */
    uint32_t all = 0;
    if (max != 0) {
        uint32_t rest = build_repeat(b, more, min > 1 ? min - 1 : 0, max < 0 ? -1 : max - 1, end);
        all = build_space(b, grammar_call(b->g, item, rest));
    }
    if (min <= 0)
        all = grammar_either(b->g, end, all);
    return grammar_range(b->g, '[', '[', all);
}

/* ---- objects ---------------------------------------------------------------------------------------- */

static bool is_required(const json_t *schema, const char *key)
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
    const json_t *schema;
    bool required;
    uint32_t rule; /* "key": value */
};

/* Properties in their order, then those that are only required. */
static struct member *members_of(struct builder *b, const json_t *schema, size_t *n)
{
    static const json_t *const anything = NULL;
    json_t *properties = field(schema, "properties"), *required = field(schema, "required"), *v;
    const char *key;
    size_t i;
    struct member *all =
        mem_array(json_object_size(properties) + json_array_size(required) + 1, sizeof *all);
    *n = 0;
    json_object_foreach(properties, key, v)
    {
        all[(*n)++] =
            (struct member){.key = key, .schema = v, .required = is_required(schema, key)};
    }
    json_array_foreach(required, i, v)
    {
        key = json_string_value(v);
        const json_t *more = field(schema, "additionalProperties");
        if (!key)
            build_refuse(b, "required must hold strings");
        else if (json_is_false(more) && !json_object_get(properties, key))
            build_refuse(b, "cannot be satisfied: \"%.60s\" is required and not allowed", key);
        else if (!json_object_get(properties, key))
            all[(*n)++] = (struct member){
                .key = key, .schema = json_is_object(more) ? more : anything, .required = true};
    }
    return all;
}

static uint32_t member_rule(struct builder *b, const struct member *m)
{
    json_t *key = json_string(m->key);
    uint32_t end = grammar_return(b->g);
    size_t mark = build_enter(b, "properties"), inner = build_enter(b, m->key);
    uint32_t value = m->schema ? build_schema(b, m->schema, end) : build_any(b, end);
    build_leave(b, inner);
    build_leave(b, mark);
    value = grammar_range(b->g, ':', ':', build_space(b, value));
    value = build_json(b, key, value);
    json_decref(key);
    return value;
}

/* From the last property to the first: `first` where none came before, `rest` where one did. */
static uint32_t members(struct builder *b, struct member *all, size_t n, uint32_t next)
{
    uint32_t end = build_space(b, grammar_range(b->g, '}', '}', next)), first = end, rest = end;
    for (size_t i = n; i > 0; i--) {
        struct member *m = &all[i - 1];
        m->rule = member_rule(b, m);
        uint32_t here = grammar_call(b->g, m->rule, rest);
        uint32_t begins = build_space(b, here);
        uint32_t follows = grammar_range(b->g, ',', ',', build_space(b, here));
        first = m->required ? begins : grammar_either(b->g, begins, first);
        rest = m->required ? follows : grammar_either(b->g, follows, rest);
    }
    return grammar_range(b->g, '{', '{', first);
}

/* Keys of any name with values of one schema. */
static uint32_t map_of(struct builder *b, const json_t *schema, uint32_t next)
{
    size_t mark = build_enter(b, "additionalProperties");
    uint32_t value = grammar_call(b->g, rule_of(b, schema), grammar_return(b->g));
    build_leave(b, mark);
    uint32_t member = build_string(b, grammar_range(b->g, ':', ':', build_space(b, value)));
    uint32_t end = build_space(b, grammar_range(b->g, '}', '}', next));
    uint32_t more = grammar_range(b->g, ',', ',', build_space(b, member));
    uint32_t rest = build_repeat(b, more, 0, -1, end);
    uint32_t first = build_space(b, grammar_call(b->g, member, rest));
    return grammar_range(b->g, '{', '{', grammar_either(b->g, end, first));
}

static uint32_t object_of(struct builder *b, const json_t *schema, uint32_t next)
{
    const json_t *more = field(schema, "additionalProperties");
    size_t n;
    struct member *all = members_of(b, schema, &n);
    uint32_t at;
    if (n > 0 || json_is_false(more))
        at = members(b, all, n, next);
    else if (json_is_object(more))
        at = map_of(b, more, next);
    else
        at = build_object_of_anything(b, next);
    mem_free(all);
    return at;
}

/* ---- any schema --------------------------------------------------------------------------------------- */

static const json_t *resolve(struct builder *b, const char *ref)
{
    const json_t *at = b->root;
    if (ref[0] != '#' || (ref[1] && ref[1] != '/'))
        return NULL;
    for (const char *p = ref + 1; at && *p == '/';) {
        char part[256];
        size_t n = 0;
        for (p++; *p && *p != '/' && n + 1 < sizeof part; p++) {
            char c = *p;
            if (c == '~' && (p[1] == '0' || p[1] == '1'))
                c = *++p == '0' ? '~' : '/';
            part[n++] = c;
        }
        part[n] = '\0';
        at = json_object_get(at, part);
    }
    return at;
}

/* How one type is written. */
static uint32_t typed(struct builder *b, const json_t *schema, unsigned type, uint32_t next)
{
    switch (type) {
    case TYPE_STRING:
        return string_of(b, schema, next);
    case TYPE_INTEGER:
        return integer_of(b, schema, next);
    case TYPE_NUMBER:
        return number_of(b, schema, next);
    case TYPE_BOOLEAN:
        return grammar_either(b->g, grammar_literal(b->g, STR("true"), next),
                              grammar_literal(b->g, STR("false"), next));
    case TYPE_NULL:
        return grammar_literal(b->g, STR("null"), next);
    case TYPE_OBJECT:
        return object_of(b, schema, next);
    default:
        return array_of(b, schema, next);
    }
}

static uint32_t values_of(struct builder *b, const json_t *list, unsigned types, uint32_t next)
{
    const json_t *v;
    uint32_t all = 0;
    size_t i;
    if (json_array_size(list) > BUILD_MAX_VALUES)
        return build_refuse(b, "enum has more than %d values", BUILD_MAX_VALUES);
    json_array_foreach(list, i, v)
    {
        if (type_of_value(v) & types)
            all = grammar_either(b->g, all, build_json(b, v, next));
    }
    return all ? all : build_refuse(b, "cannot be satisfied: no value of enum has the type");
}

/* One of several schemas; NULL if the keyword is absent. */
static const json_t *union_of(struct builder *b, const json_t *schema, const char **key)
{
    static const char *const keys[] = {"anyOf", "oneOf", "allOf"};
    for (int i = 0; i < 3; i++) {
        const json_t *list = field(schema, keys[i]);
        if (!list)
            continue;
        *key = keys[i];
        if (!json_is_array(list) || json_array_size(list) == 0)
            build_refuse(b, "%s must be an array of schemas", keys[i]);
        else if (field(schema, "properties") || field(schema, "items"))
            build_refuse(b, "%s beside properties or items is not supported", keys[i]);
        else if (i == 2 && json_array_size(list) > 1)
            build_refuse(b, "allOf of more than one schema is not supported");
        return list;
    }
    return NULL;
}

static uint32_t any_of(struct builder *b, const json_t *list, const char *key, uint32_t next)
{
    const json_t *one;
    uint32_t all = 0;
    size_t i;
    json_array_foreach(list, i, one)
    {
        char name[32];
        snprintf(name, sizeof name, "%s[%zu]", key, i);
        size_t mark = build_enter(b, name);
        all = grammar_either(b->g, all, build_schema(b, one, next));
        build_leave(b, mark);
    }
    return all;
}

static uint32_t build_inside(struct builder *b, const json_t *schema, uint32_t next)
{
    const char *key = "";
    const json_t *ref = field(schema, "$ref"), *list;
    refuse_unsupported(b, schema);
    if (ref) {
        const char *name = json_string_value(ref);
        const json_t *target = name ? resolve(b, name) : NULL;
        if (!target)
            return build_refuse(b, "$ref \"%.80s\" leads nowhere in the schema", name ? name : "");
        return grammar_call(b->g, rule_of(b, target), next);
    }
    if ((list = union_of(b, schema, &key)))
        return any_of(b, list, key, next);
    unsigned types = types_of(b, schema);
    if ((list = field(schema, "enum")))
        return values_of(b, list, types, next);
    if ((list = field(schema, "const")))
        return build_json(b, list, next);
    if (types == ALL_TYPES)
        return build_any(b, next);
    uint32_t all = 0;
    for (int i = 0; i < N_TYPES; i++)
        if (types & (1u << i))
            all = grammar_either(b->g, all, typed(b, schema, 1u << i, next));
    return all;
}

uint32_t build_schema(struct builder *b, const json_t *schema, uint32_t next)
{
    if (b->failed)
        return 0;
    if (grammar_is_full(b->g))
        return build_refuse(b, "the schema is too large");
    if (json_is_true(schema))
        return build_any(b, next);
    if (json_is_false(schema))
        return 0;
    if (!json_is_object(schema))
        return build_refuse(b, "a schema must be an object");
    if (b->nesting == BUILD_MAX_NESTING)
        return build_refuse(b, "the schema is nested more than %d deep", BUILD_MAX_NESTING);
    b->nesting++;
    uint32_t at = build_inside(b, schema, next);
    b->nesting--;
    return at;
}

/* ---- arguments of tools ------------------------------------------------------------------------------ */

/* May a value of this schema be a string? */
static unsigned argument_types(struct builder *b, const json_t *schema, int depth)
{
    const char *key = "";
    const json_t *list, *one, *ref = field(schema, "$ref");
    unsigned types = 0;
    size_t i;
    if (!json_is_object(schema) || depth > 8)
        return ALL_TYPES;
    if (ref) {
        const char *name = json_string_value(ref);
        const json_t *target = name ? resolve(b, name) : NULL;
        return target ? argument_types(b, target, depth + 1) : ALL_TYPES;
    }
    if ((list = union_of(b, schema, &key))) {
        json_array_foreach(list, i, one)
        {
            types |= argument_types(b, one, depth + 1);
        }
        return types;
    }
    if ((list = field(schema, "enum")) && !field(schema, "type")) {
        json_array_foreach(list, i, one)
        {
            types |= type_of_value(one);
        }
        return types;
    }
    return types_of(b, schema);
}

static uint32_t raw_values(struct builder *b, const json_t *list, uint32_t next)
{
    const json_t *v;
    uint32_t all = 0;
    size_t i;
    json_array_foreach(list, i, v)
    {
        struct str text = {json_string_value(v), json_string_length(v)};
        if (json_is_string(v) && str_find(text, STR("</parameter>")) == SIZE_MAX)
            all = grammar_either(b->g, all, grammar_literal(b->g, text, next));
    }
    return all;
}

/* Plain strings; what else may be one is free text. */
static uint32_t raw_string(struct builder *b, const json_t *schema, uint32_t next)
{
    uint32_t close = grammar_literal(b->g, STR("</parameter>"), next);
    json_t *one = field(schema, "const"), *list = field(schema, "enum");
    if (json_array_size(list) > BUILD_MAX_VALUES)
        return build_refuse(b, "enum has more than %d values", BUILD_MAX_VALUES);
    if (list || json_is_string(one)) {
        json_t *values = list ? json_incref(list) : json_pack("[O]", one);
        uint32_t all = raw_values(b, values, close);
        json_decref(values);
        return all;
    }
    refuse_unsupported(b, schema);
    if (field(schema, "minLength") || field(schema, "maxLength"))
        return repeat(b, schema, "minLength", "maxLength", build_raw_character(b), close);
    return build_raw_to_close(b, next);
}

uint32_t build_argument(struct builder *b, const json_t *schema, uint32_t next)
{
    unsigned types = schema ? argument_types(b, schema, 0) : ALL_TYPES;
    if (types == TYPE_STRING && !field(schema, "$ref") && !field(schema, "anyOf") &&
        !field(schema, "oneOf") && !field(schema, "allOf"))
        return raw_string(b, schema, next);
    if (types & TYPE_STRING)
        return build_raw_to_close(b, next);
    return build_schema(b, schema, grammar_literal(b->g, STR("</parameter>"), next));
}
