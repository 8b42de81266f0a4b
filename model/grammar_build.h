/* model/grammar_build.h - shared by grammar_json.c (values by schema), grammar_schema.c (keywords) and grammar_text.c
 * (the whole output). */
#pragma once

#include <jansson.h>

#include "model/grammar_graph.h"

enum {
    BUILD_MAX_RULES = 1024,
    BUILD_MAX_NESTING = 48,
    BUILD_MAX_REPEATS = 8192,
    BUILD_MAX_VALUES = 1000,
    BUILD_MAX_MULTIPLE = 100,
    BUILD_MAX_STEPS = 60000, /* of comparing and merging, about a microsecond each */
    BUILD_MAX_SPLITS = 10000,
    BUILD_MAX_SPLITS_DEEP = 400,
    BUILD_MAX_REGEXES = 64,
    BUILD_MAX_MEMBERS = 512
};

/* Keywords of our own, for schemas that were put together: schemas that hold, too, and patterns [..] of which each is a
 * string or {"not": a string or a list of texts}. */
#define BUILD_ALSO "$also"
#define BUILD_PATTERNS "$patterns"

struct build_rule {
    const json_t *schema;
    uint32_t entry;
};

/* Rules that are made when they are first needed; 0: not yet. */
enum build_shared {
    BUILD_SPACE,     /* between parts of a value: nothing, a space, or a line feed and an indent */
    BUILD_CHARACTER, /* of a JSON string */
    BUILD_RAW,       /* of a tool's argument that is a string: not '<', where in_call */
    BUILD_STRING,
    BUILD_NUMBER,
    BUILD_ANY, /* a JSON value */
    BUILD_OBJECT,
    BUILD_N_SHARED,
};

/* A property that several objects have, as alternatives do. */
struct build_member {
    const json_t *schema;
    char *key;
    uint32_t entry;
};

struct regex;
struct build_regex {
    char *text;
    struct regex *regex;
};

struct builder {
    struct grammar *g;
    const json_t *root; /* of the schema that is read, for $ref */
    struct err *e;
    struct buf path;
    int nesting, splits_deep, n_splits;
    int64_t steps;
    uint32_t shared[BUILD_N_SHARED];
    struct build_rule *rules;
    int n_rules;
    struct build_member members[BUILD_MAX_MEMBERS]; /* those that were met last */
    int n_members;
    json_t *made;                                  /* schemas that were put together from others */
    struct build_regex regexes[BUILD_MAX_REGEXES]; /* those that were met last */
    int n_regexes;
    char why[300]; /* the first contradiction, for where nothing is left */
    /* Inside a tool call: no string may hold '<', where "</parameter>" would end the value.  Shared rules are of
     * one kind: they are forgotten when this changes. */
    bool in_call;
    /* M3's calls: the marker before every tag; -1: M2's, or no call. */
    int32_t namespace;
    bool failed;
};

/* Says why, once; returns 0, the node to nowhere. */
uint32_t build_refuse(struct builder *b, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* There is no such value, but there may be others; says why if there are none at all. */
uint32_t build_impossible(struct builder *b, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* So much work; refuses what takes too much, and then returns false. */
bool build_step(struct builder *b, int64_t n);
/* "path/key", until build_leave() with what it returned. */
size_t build_enter(struct builder *b, const char *key);
void build_leave(struct builder *b, size_t mark);

/* All return where to begin before `next`. */
uint32_t build_space(struct builder *b, uint32_t next);
uint32_t build_any(struct builder *b, uint32_t next);
uint32_t build_object_of_anything(struct builder *b, uint32_t next);
uint32_t build_string(struct builder *b, uint32_t next);
/* As often as from min to max (-1: any number) of times. */
uint32_t build_repeat(struct builder *b, uint32_t rule, int64_t min, int64_t max, uint32_t next);
uint32_t build_character(struct builder *b);     /* the rule */
uint32_t build_raw_character(struct builder *b); /* likewise */
uint32_t build_number(struct builder *b, uint32_t next);
/* A multiple of `multiple`, of at most 18 digits. */
uint32_t build_integer(struct builder *b, int64_t min, int64_t max, int multiple, uint32_t next);
struct build_bounds {
    bool has_min, has_max, min_is_strict, max_is_strict;
    double min, max;
    int places; /* behind the point at most; -1: as many as a double keeps apart */
};
/* A number without exponent. */
uint32_t build_decimal(struct builder *b, const struct build_bounds *x, uint32_t next);
uint32_t build_json(struct builder *b, const json_t *value, uint32_t next);
/* Text up to and with M2's "</parameter>"; M3's ends at a marker, which is `next`. */
uint32_t build_raw_to_close(struct builder *b, uint32_t next);

/* Where "#/..." leads in the schema that is read; NULL: nowhere. */
const json_t *build_resolve(const struct builder *b, const char *ref);

/* grammar_merge.c: the schema of what two schemas both take, kept by the builder; NULL: refused. */
json_t *build_merge(struct builder *b, const json_t *x, const json_t *y);
/* The same for all parts of an allOf, and for a $ref and what stands beside it; a schema that has neither is returned as it is. */
const json_t *build_flatten(struct builder *b, const json_t *schema);
/* Does it have more than annotations, `but` left out? */
bool build_constrains(const json_t *schema, const char *but);

/* As JSON Schema has it: 1 is 1.0. */
bool build_are_equal(const json_t *x, const json_t *y);
/* grammar_check.c: is it a value of the schema? */
bool build_takes(struct builder *b, const json_t *schema, const json_t *value);
/* Can no value be of both?  false: perhaps. */
bool build_are_disjoint(struct builder *b, const json_t *x, const json_t *y);

/* grammar_logic.c: does a keyword say which of several schemas holds (anyOf, oneOf, if, not ...)? */
bool build_is_split(const json_t *schema);
/* Then an array, kept by the builder, of schemas without that keyword, which is *key: any value of any of them is
 * one of the schema. */
const json_t *build_alternatives(struct builder *b, const json_t *schema, const char **key);

/* build_enter(), but for what nobody wrote. */
size_t build_enter_split(struct builder *b, const char *key);

/* Types of JSON as bits. */
enum {
    TYPE_STRING = 1,
    TYPE_INTEGER = 2,
    TYPE_NUMBER = 4,
    TYPE_BOOLEAN = 8,
    TYPE_NULL = 16,
    TYPE_OBJECT = 32,
    TYPE_ARRAY = 64,
    N_TYPES = 7,
    ALL_TYPES = (1 << N_TYPES) - 1
};
/* Those that a schema's keywords speak of; a number may be an integer. */
unsigned build_types(struct builder *b, const json_t *schema);
unsigned build_type_of(const json_t *value);

/* A whole number from 0 on that is said there, or -1. */
int64_t build_count(struct builder *b, const json_t *schema, const char *key);
/* Two of them, *max -1 where there is none; false: a contradiction. */
bool build_range(struct builder *b, const json_t *schema, const char *least, const char *most,
                 int64_t *min, int64_t *max);
/* Values of enum or const that the rest of the schema allows; a new array. */
json_t *build_values(struct builder *b, const json_t *schema);

/* A schema as a rule of its own, so that it is built once however often it is used. */
uint32_t build_rule_of(struct builder *b, const json_t *schema);
/* The schemas of the first items and of those behind; of both ways to write them. */
struct build_items {
    const json_t *first, *rest; /* an array or NULL; a schema or NULL: anything */
};
struct build_items build_items_of(struct builder *b, const json_t *schema);
/* What is said of item i; NULL: nothing. */
const json_t *build_item(const struct build_items *items, size_t i);
/* What was built once is of no use any more: it is another schema, or to be written in another way. */
void build_forget(struct builder *b);
/* grammar_array.c and grammar_shapes.c. */
uint32_t build_array(struct builder *b, const json_t *schema, uint32_t next);
uint32_t build_object(struct builder *b, const json_t *schema, uint32_t next);
/* grammar_schema.c: a value of a schema, as JSON. */
uint32_t build_schema(struct builder *b, const json_t *schema, uint32_t next);
/* An argument of a tool as the model writes it, strings without quotes, and M2's closing tag. */
uint32_t build_argument(struct builder *b, const json_t *schema, uint32_t next);

/* grammar_elements.c: M3's form of calls, in which a tag stands behind the namespace's marker.  The tag itself, as
 * "<name>"; an element with its value; */
uint32_t build_tag(struct builder *b, const char *open, const char *name, uint32_t next);
uint32_t build_element(struct builder *b, const char *name, const json_t *schema, uint32_t next);
/* and elements for the parts of an object or array of this schema, whose only type is `types`; 0 where they would not
 * say it, and JSON must. */
uint32_t build_parts(struct builder *b, const json_t *schema, unsigned types, uint32_t next);
/* grammar_text.c: members of an object, each as a parameter or an element, in the order of the schema; those that are
 * not required may be left out. */
uint32_t build_members(struct builder *b, const json_t *schema, uint32_t next);
