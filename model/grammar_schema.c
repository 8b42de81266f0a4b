/* model/grammar_schema.c - a JSON schema as a graph: keywords, unions, strings and numbers; arrays and objects are in
 * grammar_shapes.c; see grammar_build.h. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/grammar_regex.h"

static const char *const type_names[N_TYPES] = {"string", "integer", "number", "boolean",
                                                "null",   "object",  "array"};

static json_t *field(const json_t *schema, const char *key)
{
    return json_object_get(schema, key);
}

/* ---- saying why --------------------------------------------------------------------------------- */

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

uint32_t build_impossible(struct builder *b, const char *format, ...)
{
    char text[200];
    va_list args;
    if (b->why[0])
        return 0;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(b->why, sizeof b->why, "%.90s: %s", b->path.data, text);
    return 0;
}

bool build_step(struct builder *b, int64_t n)
{
    b->steps += n;
    if (b->steps > BUILD_MAX_STEPS)
        build_refuse(b, "too much to compare: use fewer alternatives and values");
    return !b->failed;
}

size_t build_enter(struct builder *b, const char *key)
{
    size_t mark = b->path.len;
    buf_putc(&b->path, '/');
    for (; *key; key++) {
        if (*key == '~' || *key == '/')
            buf_puts(&b->path, *key == '~' ? "~0" : "~1");
        else
            buf_putc(&b->path, *key);
    }
    return mark;
}

void build_leave(struct builder *b, size_t mark)
{
    b->path.len = mark;
    b->path.data[mark] = '\0';
}

static void refuse_keyword(struct builder *b, const char *key, const char *why)
{
    size_t mark = build_enter(b, key);
    build_refuse(b, "%s", why);
    build_leave(b, mark);
}

/* Those that we would have to ignore. */
static void check_keyword(struct builder *b, const json_t *schema, const char *key)
{
    static const char *const known[] = {"type",
                                        "enum",
                                        "const",
                                        "anyOf",
                                        "oneOf",
                                        "allOf",
                                        "$ref",
                                        "nullable",
                                        "not",
                                        "if",
                                        "then",
                                        "else",
                                        "dependentRequired",
                                        "dependentSchemas",
                                        "dependencies",
                                        BUILD_ALSO,
                                        BUILD_PATTERNS,
                                        "format",
                                        "pattern",
                                        "minLength",
                                        "maxLength",
                                        "minimum",
                                        "maximum",
                                        "exclusiveMinimum",
                                        "exclusiveMaximum",
                                        "multipleOf",
                                        "items",
                                        "additionalItems",
                                        "contains",
                                        "minContains",
                                        "maxContains",
                                        "uniqueItems",
                                        "prefixItems",
                                        "minItems",
                                        "maxItems",
                                        "properties",
                                        "required",
                                        "additionalProperties",
                                        "patternProperties",
                                        "propertyNames",
                                        "minProperties",
                                        "maxProperties"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(known[i], key) == 0)
            return;
    if (strncmp(key, "unevaluated", 11) == 0 && json_is_false(field(schema, key)))
        return; /* nothing comes that is not declared */
    refuse_keyword(b, key,
                   "this keyword is not supported: leave it out, or call an annotation of your "
                   "own \"x-...\"");
}

static void check_keywords(struct builder *b, const json_t *schema)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)schema, key, v)
    {
        json_t *one = json_pack("{sO}", key, v);
        if (build_constrains(one, ""))
            check_keyword(b, schema, key);
        json_decref(one);
    }
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

/* What the keywords are about, where no type is said. */
static unsigned types_by_keywords(const json_t *schema)
{
    static const struct {
        const char *key;
        unsigned type;
    } list[] = {
        {"pattern", TYPE_STRING},           {BUILD_PATTERNS, TYPE_STRING},
        {"minLength", TYPE_STRING},         {"maxLength", TYPE_STRING},
        {"minimum", TYPE_NUMBER},           {"maximum", TYPE_NUMBER},
        {"exclusiveMinimum", TYPE_NUMBER},  {"exclusiveMaximum", TYPE_NUMBER},
        {"multipleOf", TYPE_NUMBER},        {"items", TYPE_ARRAY},
        {"contains", TYPE_ARRAY},           {"uniqueItems", TYPE_ARRAY},
        {"prefixItems", TYPE_ARRAY},        {"minItems", TYPE_ARRAY},
        {"maxItems", TYPE_ARRAY},           {"properties", TYPE_OBJECT},
        {"required", TYPE_OBJECT},          {"patternProperties", TYPE_OBJECT},
        {"propertyNames", TYPE_OBJECT},     {"minProperties", TYPE_OBJECT},
        {"maxProperties", TYPE_OBJECT},     {"additionalProperties", TYPE_OBJECT},
        {"dependentRequired", TYPE_OBJECT}, {"dependentSchemas", TYPE_OBJECT},
        {"dependencies", TYPE_OBJECT},
    };
    unsigned types = 0;
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        if (field(schema, list[i].key))
            types |= list[i].type;
    return types ? types : ALL_TYPES;
}

unsigned build_types(struct builder *b, const json_t *schema)
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
    } else {
        types = types_by_keywords(schema);
    }
    types |= json_is_true(field(schema, "nullable")) ? TYPE_NULL : 0;
    return types & TYPE_NUMBER ? types & ~(unsigned)TYPE_INTEGER : types;
}

/* ---- strings ---------------------------------------------------------------------------------- */

int64_t build_count(struct builder *b, const json_t *schema, const char *key)
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

bool build_range(struct builder *b, const json_t *schema, const char *least, const char *most,
                 int64_t *min, int64_t *max)
{
    *min = build_count(b, schema, least);
    *max = build_count(b, schema, most);
    if (*max >= 0 && *min > *max)
        build_impossible(b, "%s %lld is more than %s %lld", least, (long long)*min, most,
                         (long long)*max);
    *min = *min < 0 ? 0 : *min;
    return *max < 0 || *min <= *max;
}

static uint32_t string_of(struct builder *b, const json_t *schema, uint32_t next)
{
    int64_t min, max;
    if (!build_range(b, schema, "minLength", "maxLength", &min, &max))
        return 0;
    bool has_pattern = build_has_pattern(schema);
    if (!has_pattern && min == 0 && max < 0)
        return build_string(b, next);
    next = grammar_range(b->g, '"', '"', next);
    if (has_pattern)
        next = build_pattern(b, schema, REGEX_JSON, min, max, next);
    else
        next = build_repeat(b, build_character(b), min, max, next);
    return grammar_range(b->g, '"', '"', next);
}

/* ---- numbers ------------------------------------------------------------------------------------ */

static bool read_bound(struct builder *b, const json_t *schema, const char *key, double *x)
{
    const json_t *v = field(schema, key);
    if (!v || json_is_boolean(v))
        return false;
    *x = json_number_value(v);
    if (!json_is_number(v) || !(fabs(*x) < 1e18)) {
        build_refuse(b, "%s must be a number of at most 18 digits", key);
        return false;
    }
    return true;
}

static struct build_bounds bounds_of(struct builder *b, const json_t *schema)
{
    struct build_bounds x = {.places = -1};
    double strict = 0;
    x.has_min = read_bound(b, schema, "minimum", &x.min);
    x.has_max = read_bound(b, schema, "maximum", &x.max);
    /* Until draft 6, and in OpenAPI 3.0: a word about the other bound. */
    x.min_is_strict = x.has_min && json_is_true(field(schema, "exclusiveMinimum"));
    x.max_is_strict = x.has_max && json_is_true(field(schema, "exclusiveMaximum"));
    if (read_bound(b, schema, "exclusiveMinimum", &strict) && (!x.has_min || strict >= x.min)) {
        x.has_min = x.min_is_strict = true;
        x.min = strict;
    }
    if (read_bound(b, schema, "exclusiveMaximum", &strict) && (!x.has_max || strict <= x.max)) {
        x.has_max = x.max_is_strict = true;
        x.max = strict;
    }
    if (x.has_min && x.has_max &&
        (x.min > x.max || (x.min == x.max && (x.min_is_strict || x.max_is_strict))))
        build_impossible(b, "no number is from %g to %g", x.min, x.max);
    return x;
}

static int64_t whole_bound(struct build_bounds x, bool is_min)
{
    if (is_min)
        return !x.has_min ? INT64_MIN : (int64_t)(x.min_is_strict ? floor(x.min) + 1 : ceil(x.min));
    return !x.has_max ? INT64_MAX : (int64_t)(x.max_is_strict ? ceil(x.max) - 1 : floor(x.max));
}

/* Each of a few. */
static uint32_t multiples(struct builder *b, int64_t min, int64_t max, int64_t unit, uint32_t next)
{
    uint32_t all = 0;
    int64_t first = min / unit - (min % unit < 0), last = max / unit - (max % unit < 0);
    for (int64_t i = first + (first * unit < min); i <= last; i++) {
        char text[32];
        snprintf(text, sizeof text, "%lld", (long long)(i * unit));
        all = grammar_either(b->g, all, grammar_literal(b->g, str_of(text), next));
    }
    return all ? all : build_impossible(b, "no multiple of %lld is there", (long long)unit);
}

static uint32_t integer_of(struct builder *b, struct build_bounds x, double unit, uint32_t next)
{
    int64_t min = whole_bound(x, true), max = whole_bound(x, false);
    if (unit <= BUILD_MAX_MULTIPLE) {
        uint32_t at = build_integer(b, min, max, (int)unit, next);
        return at ? at : build_impossible(b, "no whole number is from %g to %g", x.min, x.max);
    }
    if (!x.has_min || !x.has_max || (double)max - (double)min > unit * BUILD_MAX_VALUES)
        return build_refuse(b,
                            "multipleOf %g: up to %d is supported, or with minimum and maximum no "
                            "more than %d multiples apart",
                            unit, BUILD_MAX_MULTIPLE, BUILD_MAX_VALUES);
    return multiples(b, min, max, (int64_t)unit, next);
}

static uint32_t number_of(struct builder *b, const json_t *schema, bool is_integer, uint32_t next)
{
    struct build_bounds x = bounds_of(b, schema);
    double unit = 0;
    if (read_bound(b, schema, "multipleOf", &unit) && !(unit > 0))
        return build_refuse(b, "multipleOf must be more than 0");
    if (unit >= 1 && floor(unit) == unit)
        return integer_of(b, x, unit, next);
    if (unit > 0) {
        double power = 0.1;
        x.places = 1;
        while (x.places < 9 && fabs(unit / power - 1) > 1e-9) {
            power /= 10;
            x.places++;
        }
        if (x.places == 9)
            return build_refuse(b, "multipleOf %g: whole numbers, and 0.1, 0.01 ... are supported",
                                unit);
    }
    if (is_integer)
        return integer_of(b, x, 1, next);
    if (!x.has_min && !x.has_max && x.places < 0)
        return build_number(b, next);
    return build_decimal(b, &x, next);
}

/* ---- unions and values ---------------------------------------------------------------------------- */

uint32_t build_rule_of(struct builder *b, const json_t *schema)
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

const json_t *build_resolve(const struct builder *b, const char *ref)
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
        if (json_is_array(at))
            at = part[0] >= '0' && part[0] <= '9' ? json_array_get(at, strtoul(part, NULL, 10))
                                                  : NULL;
        else
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
    case TYPE_NUMBER:
        return number_of(b, schema, type == TYPE_INTEGER, next);
    case TYPE_BOOLEAN:
        return grammar_either(b->g, grammar_literal(b->g, STR("true"), next),
                              grammar_literal(b->g, STR("false"), next));
    case TYPE_NULL:
        return grammar_literal(b->g, STR("null"), next);
    case TYPE_OBJECT:
        return build_object(b, schema, next);
    default:
        return build_array(b, schema, next);
    }
}

json_t *build_values(struct builder *b, const json_t *schema)
{
    const json_t *list = field(schema, "enum"), *only = field(schema, "const"), *v;
    json_t *all = json_array();
    size_t i;
    if (list && (!json_is_array(list) || json_array_size(list) > BUILD_MAX_VALUES))
        build_refuse(b, "enum must be an array of at most %d values", BUILD_MAX_VALUES);
    json_array_foreach(list, i, v)
    {
        if (build_takes(b, schema, v))
            json_array_append(all, (json_t *)(uintptr_t)v);
    }
    if (!list && build_takes(b, schema, only))
        json_array_append(all, (json_t *)(uintptr_t)only);
    if (json_array_size(all) == 0)
        build_impossible(b, "no value of %s is allowed by the rest", list ? "enum" : "const");
    return all;
}

static uint32_t values_of(struct builder *b, const json_t *schema, uint32_t next)
{
    json_t *values = build_values(b, schema), *v;
    uint32_t all = 0;
    size_t i;
    json_array_foreach(values, i, v)
    {
        all = grammar_either(b->g, all, build_json(b, v, next));
    }
    json_decref(values);
    return all;
}

static uint32_t union_of(struct builder *b, const json_t *schema, uint32_t next)
{
    const char *key;
    const json_t *parts = build_alternatives(b, schema, &key), *one;
    bool is_listed = strcmp(key, "anyOf") == 0 || strcmp(key, "oneOf") == 0;
    uint32_t all = 0;
    size_t i, mark = build_enter_split(b, key);
    if (b->splits_deep >= BUILD_MAX_SPLITS_DEEP)
        build_refuse(b, "the schema's conditions are nested too deep");
    b->splits_deep += !is_listed;
    b->nesting -= !is_listed; /* it is none of the schema's own */
    json_array_foreach(parts, i, one)
    {
        char name[24];
        snprintf(name, sizeof name, "%zu", i);
        size_t inner = is_listed ? build_enter(b, name) : b->path.len;
        all = grammar_either(b->g, all, build_schema(b, one, next));
        build_leave(b, inner);
    }
    b->splits_deep -= !is_listed;
    b->nesting += !is_listed;
    build_leave(b, mark);
    return all;
}

static uint32_t build_inside(struct builder *b, const json_t *schema, uint32_t next)
{
    const json_t *ref = field(schema, "$ref");
    check_keywords(b, schema);
    if (ref && !build_constrains(schema, "$ref")) {
        const char *name = json_string_value(ref);
        const json_t *target = name ? build_resolve(b, name) : NULL;
        if (!target)
            return build_refuse(b, "$ref \"%.80s\" leads nowhere in the schema", name ? name : "");
        return grammar_call(b->g, build_rule_of(b, target), next);
    }
    if (ref || field(schema, "allOf"))
        return build_schema(b, build_flatten(b, schema), next);
    if (field(schema, "enum") || field(schema, "const"))
        return values_of(b, schema, next);
    if (build_is_split(schema))
        return union_of(b, schema, next);
    unsigned types = build_types(b, schema);
    if (types == (ALL_TYPES & ~(unsigned)TYPE_INTEGER) && types_by_keywords(schema) == ALL_TYPES &&
        !build_has_pattern(schema))
        return build_any(b, next);
    if (types == 0)
        build_impossible(b, "no type is left");
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
        return build_impossible(b, "nothing is allowed here");
    if (!json_is_object(schema))
        return build_refuse(b, "a schema must be an object");
    if (b->nesting >= BUILD_MAX_NESTING)
        return build_refuse(b, "the schema is nested more than %d deep", BUILD_MAX_NESTING);
    b->nesting++;
    uint32_t at = build_inside(b, schema, next);
    b->nesting--;
    return at;
}

/* ---- arguments of tools ------------------------------------------------------------------------------ */

/* The types that a value may have. */
static unsigned argument_types(struct builder *b, const json_t *schema, int depth)
{
    const json_t *list, *one;
    unsigned types = 0;
    size_t i;
    schema = json_is_object(schema) ? build_flatten(b, schema) : schema;
    if (!json_is_object(schema) || depth > 8)
        return ALL_TYPES;
    for (int k = 0; k < 2; k++) {
        if (!(list = field(schema, k ? "oneOf" : "anyOf")))
            continue;
        json_array_foreach(list, i, one)
        {
            types |= argument_types(b, one, depth + 1);
        }
        return types;
    }
    if ((list = field(schema, "enum")) || field(schema, "const")) {
        json_t *values = build_values(b, schema);
        json_array_foreach(values, i, one)
        {
            types |= build_type_of(one);
        }
        json_decref(values);
        return types;
    }
    return build_types(b, schema);
}

/* Strings as they are, everything else as JSON. */
static uint32_t raw_values(struct builder *b, const json_t *schema, struct str close, uint32_t next)
{
    json_t *values = build_values(b, schema), *v;
    uint32_t all = 0;
    size_t i;
    json_array_foreach(values, i, v)
    {
        struct str text = {json_string_value(v), json_string_length(v)};
        if (!json_is_string(v))
            all = grammar_either(b->g, all, build_json(b, v, next));
        else if (close.len == 0 || str_find(text, close) == SIZE_MAX)
            all = grammar_either(b->g, all, grammar_literal(b->g, text, next));
    }
    json_decref(values);
    return all;
}

static bool limits_strings(const json_t *schema)
{
    return field(schema, "pattern") || field(schema, BUILD_PATTERNS) ||
           field(schema, "minLength") || field(schema, "maxLength");
}

/* What M2 writes behind an argument; M3's tags are the caller's. */
static struct str closing_tag(const struct builder *b)
{
    return b->namespace >= 0 ? STR("") : STR("</parameter>");
}

/* Plain strings; what else may be one is free text. */
static uint32_t raw_string(struct builder *b, const json_t *schema, uint32_t next)
{
    uint32_t close = grammar_literal(b->g, closing_tag(b), next);
    int64_t min, max;
    check_keywords(b, schema);
    if (!build_range(b, schema, "minLength", "maxLength", &min, &max))
        return 0;
    if (build_has_pattern(schema))
        return build_pattern(b, schema, REGEX_RAW, min, max, close);
    if (limits_strings(schema))
        return build_repeat(b, build_raw_character(b), min, max, close);
    return build_raw_to_close(b, next);
}

/* Some alternatives are strings, others are not. */
static uint32_t split_argument(struct builder *b, const json_t *schema, uint32_t next)
{
    const char *key;
    uint32_t all = 0;
    size_t i;
    if (b->nesting >= BUILD_MAX_NESTING)
        return build_refuse(b, "the schema is nested more than %d deep", BUILD_MAX_NESTING);
    b->nesting++;
    const json_t *parts = build_alternatives(b, schema, &key), *one;
    json_array_foreach(parts, i, one)
    {
        bool is_text = json_is_object(one) && (argument_types(b, one, 0) & TYPE_STRING);
        uint32_t close = grammar_literal(b->g, closing_tag(b), next);
        all = grammar_either(b->g, all,
                             is_text ? build_argument(b, one, next) : build_schema(b, one, close));
    }
    b->nesting--;
    return all;
}

uint32_t build_argument(struct builder *b, const json_t *schema, uint32_t next)
{
    unsigned types = schema ? argument_types(b, schema, 0) : ALL_TYPES;
    if (json_is_false(schema))
        return build_impossible(b, "nothing is allowed here");
    if (b->failed)
        return 0;
    uint32_t parts = b->namespace >= 0 ? build_parts(b, schema, types, next) : 0;
    if (parts || b->failed)
        return parts;
    if (!(types & TYPE_STRING))
        return build_schema(b, schema, grammar_literal(b->g, closing_tag(b), next));
    const json_t *flat = json_is_object(schema) ? build_flatten(b, schema) : NULL;
    if (!flat)
        return build_raw_to_close(b, next);
    if (field(flat, "enum") || field(flat, "const"))
        return raw_values(b, flat, closing_tag(b), grammar_literal(b->g, closing_tag(b), next));
    if (build_is_split(flat))
        return split_argument(b, flat, next);
    if (types == TYPE_STRING)
        return raw_string(b, flat, next);
    if (limits_strings(flat))
        return build_refuse(b, "the model's form of calls cannot hold this to a string's limits "
                               "where it may be something else, too");
    return build_raw_to_close(b, next);
}
