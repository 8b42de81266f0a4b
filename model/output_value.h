/* model/output_value.h - a tool's parameter becomes JSON (step 14 of a token's path).
 *
 * The model writes a parameter as bare text: `2` may be a number or a text.  The tool's JSON schema
 * says which.  Types are tried in this order, those that the schema allows:
 *
 *   1. null      null, none or nil in any case; also where neither null nor string is declared
 *   2. integer   digits with a sign; an integral real such as 2.0 becomes 2
 *   3. number    any JSON number
 *   4. boolean   true or false in any case; 1, yes, on, 0, no, off where string is not declared
 *   5. object, array   JSON of that type
 *   6. string    the text as it is, with its white space
 *
 * A text that fits none of them, or whose parameter has no declared type, is JSON if it parses as
 * such, else a string.  Numbers, objects and arrays are passed on as the model wrote them, without
 * the white space around them, so no digit is lost.
 *
 * Schemas come from clients: reading one takes bounded time whatever it refers to. */
#pragma once

#include <jansson.h>

#include "base/buf.h"

/* A set of types; 0 is "nothing declared". */
enum output_type {
    OUTPUT_TYPE_STRING = 1,
    OUTPUT_TYPE_INTEGER = 2,
    OUTPUT_TYPE_NUMBER = 4,
    OUTPUT_TYPE_BOOLEAN = 8,
    OUTPUT_TYPE_NULL = 16,
    OUTPUT_TYPE_OBJECT = 32,
    OUTPUT_TYPE_ARRAY = 64,
};

/* The `parameters` schema of a tool in OpenAI's array of {"function": {...}}; NULL if the tool is
 * unknown or declares none.  Borrowed from `tools`. */
const json_t *output_schema_of(const json_t *tools, const char *tool);
/* The types that a schema allows for a parameter; from type, enum, const, anyOf, oneOf, allOf,
 * nullable, local $ref, additionalProperties.  The schema may be NULL. */
unsigned output_types_of(const json_t *schema, const char *parameter);

/* What describes a member of this name, or an item (NULL), in a schema within `root`, where $ref looks; NULL:
 * nothing does.  Borrowed. */
const json_t *output_schema_part(const json_t *root, const json_t *schema, const char *name);
/* The types that a schema within `root` allows. */
unsigned output_schema_types(const json_t *root, const json_t *schema);

/* Appends the JSON of a parameter's text, which is valid UTF-8. */
void output_value_write(struct str text, unsigned types, struct buf *out);
/* Appends the inside of a JSON string: `text` escaped, without the quotes. */
void output_value_escape(struct str text, struct buf *out);
