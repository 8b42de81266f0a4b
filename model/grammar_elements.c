/* model/grammar_elements.c - calls as MiniMax-M3 writes them: elements within elements; see grammar_build.h.
 *
 * Strings are text up to the next marker, scalars JSON; objects of declared properties and arrays are elements, read
 * back by model/output_m3.c with the same schema.  Other objects and arrays, unions and what a $ref leads to are
 * written as JSON, which is read as well. */
#include <stdio.h>
#include <string.h>

#include "model/grammar_build.h"
#include "model/output.h"

uint32_t build_tag(struct builder *b, const char *open, const char *name, uint32_t next)
{
    next = grammar_literal(b->g, STR(">"), next);
    next = grammar_literal(b->g, str_of(name), next);
    return grammar_marker_node(b->g, b->namespace, grammar_literal(b->g, str_of(open), next));
}

uint32_t build_element(struct builder *b, const char *name, const json_t *schema, uint32_t next)
{
    /* "</invoke>" ends the call, wherever it stands. */
    if (!*name || strcmp(name, "invoke") == 0 || strlen(name) > OUTPUT_MAX_NAME_BYTES)
        return build_refuse(b, "the model's form of calls has no way to write this name");
    return build_tag(b, "<", name, build_argument(b, schema, build_tag(b, "</", name, next)));
}

/* Is there nothing in it but annotations and these? */
static bool has_only(const json_t *schema, const char *const *known)
{
    json_t *v;
    const char *key;
    json_object_foreach((json_t *)(uintptr_t)schema, key, v)
    {
        const char *const *k = known;
        while (*k && strcmp(*k, key) != 0)
            k++;
        json_t *one = *k ? NULL : json_pack("{sO}", key, v);
        bool constrains = one && build_constrains(one, "");
        json_decref(one);
        if (constrains)
            return false;
    }
    return true;
}

static bool requires_only_properties(const json_t *schema)
{
    const json_t *properties = json_object_get(schema, "properties"), *name;
    size_t i;
    json_array_foreach(json_object_get(schema, "required"), i, name)
    {
        if (!json_is_string(name) || !json_object_get(properties, json_string_value(name)))
            return false;
    }
    return true;
}

static uint32_t items(struct builder *b, const json_t *schema, uint32_t next)
{
    int64_t min, max;
    if (!build_range(b, schema, "minItems", "maxItems", &min, &max) || min > OUTPUT_MAX_PARAMETERS)
        return 0;
    if (max < 0 || max > OUTPUT_MAX_PARAMETERS)
        max = OUTPUT_MAX_PARAMETERS; /* more are not read */
    size_t mark = build_enter(b, "items");
    uint32_t item =
        build_element(b, "item", json_object_get(schema, "items"), grammar_return(b->g));
    build_leave(b, mark);
    return build_repeat(b, item, min, max, next);
}

uint32_t build_parts(struct builder *b, const json_t *schema, unsigned types, uint32_t next)
{
    static const char *const of_object[] = {"type", "properties", "required",
                                            "additionalProperties", NULL};
    static const char *const of_array[] = {"type", "items", "minItems", "maxItems", NULL};
    uint32_t all = 0;
    if (b->nesting >= BUILD_MAX_NESTING)
        return build_refuse(b, "the schema is nested more than %d deep", BUILD_MAX_NESTING);
    b->nesting++;
    size_t n = json_object_size(json_object_get(schema, "properties"));
    if (types == TYPE_OBJECT && n > 0 && n <= OUTPUT_MAX_PARAMETERS &&
        has_only(schema, of_object) && requires_only_properties(schema))
        all = build_members(b, schema, next);
    else if (types == TYPE_ARRAY && json_is_object(json_object_get(schema, "items")) &&
             has_only(schema, of_array))
        all = items(b, schema, next);
    b->nesting--;
    return all;
}
