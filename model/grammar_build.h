/* model/grammar_build.h - shared by grammar_json.c (values by schema), grammar_schema.c (keywords) and grammar_text.c
 * (the whole output). */
#pragma once

#include <jansson.h>

#include "model/grammar_graph.h"

enum {
    BUILD_MAX_RULES = 1024,
    BUILD_MAX_NESTING = 48,
    BUILD_MAX_REPEATS = 8192,
    BUILD_MAX_VALUES = 1000
};

struct build_rule {
    const json_t *schema;
    uint32_t entry;
};

/* Rules that are made when they are first needed; 0: not yet. */
enum build_shared {
    BUILD_SPACE,     /* between parts of a value: nothing, a space, or a line feed and an indent */
    BUILD_CHARACTER, /* of a JSON string */
    BUILD_RAW,       /* of a tool's argument that is a string: not '<' */
    BUILD_STRING,
    BUILD_NUMBER,
    BUILD_ANY, /* a JSON value */
    BUILD_OBJECT,
    BUILD_N_SHARED,
};

struct builder {
    struct grammar *g;
    const json_t *root; /* of the schema that is read, for $ref */
    struct err *e;
    struct buf path;
    int nesting;
    uint32_t shared[BUILD_N_SHARED];
    struct build_rule *rules;
    int n_rules;
    /* Inside a tool call: no string may hold '<', where "</parameter>" would end the value.  Shared rules are of
     * one kind: they are forgotten when this changes. */
    bool in_call;
    bool failed;
};

/* Says why, once; returns 0, the node to nowhere. */
uint32_t build_refuse(struct builder *b, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* "path.key", until build_leave() with what it returned. */
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
/* An integer of at most 18 digits. */
uint32_t build_integer(struct builder *b, int64_t min, int64_t max, uint32_t next);
uint32_t build_json(struct builder *b, const json_t *value, uint32_t next);
/* Text up to and with "</parameter>". */
uint32_t build_raw_to_close(struct builder *b, uint32_t next);

/* grammar_schema.c: a value of a schema, as JSON. */
uint32_t build_schema(struct builder *b, const json_t *schema, uint32_t next);
/* An argument of a tool and its closing tag, as the model writes it: strings are not quoted. */
uint32_t build_argument(struct builder *b, const json_t *schema, uint32_t next);
