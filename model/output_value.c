/* model/output_value.c - see output_value.h. */
#include "model/output_value.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

#include "base/must.h"
#include "model/chat.h"

/* ---- what the schema allows --------------------------------------------------------------- */

enum {
    SCHEMA_VISITS = 256, /* subschemas looked at for one parameter */
    SCHEMA_DEPTH = 16,
};

struct reading {
    const json_t *root;
    int n_visits, depth;
    unsigned types;
};

const json_t *output_schema_of(const json_t *tools, const char *tool)
{
    const json_t *item;
    size_t i;

    json_array_foreach(tools, i, item)
    {
        const json_t *function = json_object_get(item, "function");
        const char *name = json_string_value(json_object_get(function, "name"));
        if (name && strcmp(name, tool) == 0)
            return json_object_get(function, "parameters");
    }
    return NULL;
}

static unsigned type_named(const char *name)
{
    static const struct {
        const char *name;
        unsigned type;
    } types[] = {
        {"string", OUTPUT_TYPE_STRING}, {"integer", OUTPUT_TYPE_INTEGER},
        {"number", OUTPUT_TYPE_NUMBER}, {"boolean", OUTPUT_TYPE_BOOLEAN},
        {"null", OUTPUT_TYPE_NULL},     {"object", OUTPUT_TYPE_OBJECT},
        {"array", OUTPUT_TYPE_ARRAY},
    };
    for (size_t i = 0; name && i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i].name, name) == 0)
            return types[i].type;
    return 0;
}

static unsigned type_of_value(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return OUTPUT_TYPE_OBJECT;
    case JSON_ARRAY:
        return OUTPUT_TYPE_ARRAY;
    case JSON_STRING:
        return OUTPUT_TYPE_STRING;
    case JSON_INTEGER:
        return OUTPUT_TYPE_INTEGER;
    case JSON_REAL:
        return OUTPUT_TYPE_NUMBER;
    case JSON_TRUE:
    case JSON_FALSE:
        return OUTPUT_TYPE_BOOLEAN;
    case JSON_NULL:
        break;
    }
    return OUTPUT_TYPE_NULL;
}

/* "#/$defs/name" within the tool's schema; keys that need an escape are not found. */
static const json_t *follow(const json_t *root, const char *reference)
{
    char key[128];

    if (!reference || reference[0] != '#')
        return NULL;
    for (reference++; root && *reference == '/';) {
        size_t len = strcspn(++reference, "/");
        if (len >= sizeof key)
            return NULL;
        memcpy(key, reference, len);
        key[len] = 0;
        root = json_object_get(root, key);
        reference += len;
    }
    return *reference ? NULL : root;
}

static void read_schema(struct reading *r, const json_t *schema);

static void read_each(struct reading *r, const json_t *schemas)
{
    const json_t *item;
    size_t i;

    json_array_foreach(schemas, i, item)
    {
        if (r->n_visits >= SCHEMA_VISITS)
            return;
        read_schema(r, item);
    }
}

static void read_own_types(struct reading *r, const json_t *schema)
{
    const json_t *type = json_object_get(schema, "type"), *one = json_object_get(schema, "const");
    const json_t *choices = json_object_get(schema, "enum"), *item;
    size_t i;

    r->types |= type_named(json_string_value(type));
    json_array_foreach(type, i, item)
    {
        r->types |= type_named(json_string_value(item));
    }
    if (one)
        r->types |= type_of_value(one);
    json_array_foreach(choices, i, item)
    {
        r->types |= type_of_value(item);
    }
    if (json_is_true(json_object_get(schema, "nullable")))
        r->types |= OUTPUT_TYPE_NULL;
    if (!type && json_object_get(schema, "properties"))
        r->types |= OUTPUT_TYPE_OBJECT;
    if (!type && json_object_get(schema, "items"))
        r->types |= OUTPUT_TYPE_ARRAY;
}

static void read_schema(struct reading *r, const json_t *schema)
{
    if (!json_is_object(schema) || r->depth == SCHEMA_DEPTH || r->n_visits++ >= SCHEMA_VISITS)
        return;
    r->depth++;
    read_own_types(r, schema);
    read_each(r, json_object_get(schema, "anyOf"));
    read_each(r, json_object_get(schema, "oneOf"));
    read_each(r, json_object_get(schema, "allOf"));
    read_schema(r, follow(r->root, json_string_value(json_object_get(schema, "$ref"))));
    r->depth--;
}

static const json_t *find_part(struct reading *r, const json_t *schema, const char *name)
{
    static const char *const lists[] = {"anyOf", "oneOf", "allOf"};
    const json_t *found, *item;
    size_t k;

    if (!json_is_object(schema) || r->depth == SCHEMA_DEPTH || r->n_visits++ >= SCHEMA_VISITS)
        return NULL;
    r->depth++;
    found = name ? json_object_get(json_object_get(schema, "properties"), name)
                 : json_object_get(schema, "items");
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
        json_array_foreach(json_object_get(schema, lists[i]), k, item)
        {
            if (!found)
                found = find_part(r, item, name);
        }
    if (!found)
        found =
            find_part(r, follow(r->root, json_string_value(json_object_get(schema, "$ref"))), name);
    if (!found && name)
        found = json_object_get(schema, "additionalProperties");
    r->depth--;
    return found;
}

const json_t *output_schema_part(const json_t *root, const json_t *schema, const char *name)
{
    struct reading r = {.root = root};
    return find_part(&r, schema, name);
}

unsigned output_schema_types(const json_t *root, const json_t *schema)
{
    struct reading r = {.root = root};
    read_schema(&r, schema);
    return r.types;
}

unsigned output_types_of(const json_t *schema, const char *parameter)
{
    struct reading r = {.root = schema};
    const json_t *property = json_object_get(json_object_get(schema, "properties"), parameter);

    read_schema(&r, property ? property : json_object_get(schema, "additionalProperties"));
    return r.types;
}

/* ---- text to JSON ------------------------------------------------------------------------- */

void output_value_escape(struct str text, struct buf *out)
{
    struct buf quoted = {0};
    json_t *string = json_stringn_nocheck(text.ptr ? text.ptr : "", text.len);

    must(string);
    chat_dump_json(string, &quoted);
    buf_append(out, quoted.data + 1, quoted.len - 2);
    buf_fini(&quoted);
    json_decref(string);
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static struct str trim(struct str text)
{
    while (text.len > 0 && is_space(text.ptr[0])) {
        text.ptr++;
        text.len--;
    }
    while (text.len > 0 && is_space(text.ptr[text.len - 1]))
        text.len--;
    return text;
}

/* Is the text one of the words, in any case? */
static bool is_word(struct str text, const char *const *words)
{
    for (; *words; words++)
        if (strlen(*words) == text.len && strncasecmp(*words, text.ptr, text.len) == 0)
            return true;
    return false;
}

/* The text as JSON: its type (0: it is none), and for a number its value. */
struct parsed {
    unsigned type;
    double number;
};

/* Integers are read as reals, so that one over 64 bits is a number too. */
static struct parsed parse(struct str bare)
{
    json_t *v = json_loadb(bare.ptr ? bare.ptr : "", bare.len,
                           JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    struct parsed is = {.type = v ? type_of_value(v) : 0, .number = json_real_value(v)};

    json_decref(v);
    if (is.type == OUTPUT_TYPE_NUMBER && !memchr(bare.ptr, '.', bare.len) &&
        !memchr(bare.ptr, 'e', bare.len) && !memchr(bare.ptr, 'E', bare.len))
        is.type = OUTPUT_TYPE_INTEGER;
    return is;
}

static bool write_null(struct str bare, unsigned types, struct buf *out)
{
    static const char *const nulls[] = {"null", "none", "nil", NULL};

    if (types == 0 || ((types & OUTPUT_TYPE_STRING) && !(types & OUTPUT_TYPE_NULL)) ||
        !is_word(bare, nulls))
        return false;
    buf_puts(out, "null");
    return true;
}

static bool write_boolean(struct str bare, unsigned types, struct buf *out)
{
    static const char *const yes[] = {"true", NULL}, *const no[] = {"false", NULL};
    static const char *const loose_yes[] = {"1", "yes", "on", NULL};
    static const char *const loose_no[] = {"0", "no", "off", NULL};
    bool is_loose = !(types & OUTPUT_TYPE_STRING);

    if (!(types & OUTPUT_TYPE_BOOLEAN))
        return false;
    if (is_word(bare, yes) || (is_loose && is_word(bare, loose_yes)))
        buf_puts(out, "true");
    else if (is_word(bare, no) || (is_loose && is_word(bare, loose_no)))
        buf_puts(out, "false");
    else
        return false;
    return true;
}

static bool write_number(struct str bare, struct parsed is, unsigned types, struct buf *out)
{
    const double exact = 9007199254740992.0; /* 2^53: beyond it a real is not one integer */
    bool integer = types & OUTPUT_TYPE_INTEGER, number = types & OUTPUT_TYPE_NUMBER;

    if (integer && is.type == OUTPUT_TYPE_NUMBER && fabs(is.number) < exact &&
        is.number == floor(is.number)) {
        buf_printf(out, "%.0f", is.number + 0.0); /* turns -0.0 into 0 */
        return true;
    }
    if (is.type == OUTPUT_TYPE_INTEGER ? !integer && !number
                                       : is.type != OUTPUT_TYPE_NUMBER || !number)
        return false;
    buf_append_str(out, bare);
    return true;
}

void output_value_write(struct str text, unsigned types, struct buf *out)
{
    if (types != OUTPUT_TYPE_STRING) {
        struct str bare = trim(text);
        struct parsed is = parse(bare);
        if (write_null(bare, types, out) || write_number(bare, is, types, out) ||
            write_boolean(bare, types, out))
            return;
        if ((is.type & types & (OUTPUT_TYPE_OBJECT | OUTPUT_TYPE_ARRAY)) ||
            (is.type != 0 && !(types & OUTPUT_TYPE_STRING))) {
            buf_append_str(out, bare);
            return;
        }
    }
    buf_putc(out, '"');
    output_value_escape(text, out);
    buf_putc(out, '"');
}
