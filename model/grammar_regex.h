/* model/grammar_regex.h - regular expressions of JSON Schema, for "pattern", "format" and names of properties.
 *
 * The subset of ECMA 262 that is regular: literals, `.`, classes, \d \w \s and their opposites, escapes of characters,
 * groups, `|`, quantifiers (a lazy one means the same set), and ^ and $ at the ends of an alternative;
 * without them anything may come before or behind.  Refused by name: looking around, back references, \b, \p, anchors
 * inside groups.  Characters are code points.
 *
 * Owner: whoever opened it. */
#pragma once

#include "base/err.h"
#include "model/grammar_build.h"

enum { REGEX_MAX_STATES = 4000, REGEX_MAX_CLASSES = 512, REGEX_MAX_REPEATS = 1000 };

struct regex;
/* E_INVALID: says what is wrong and at which character. */
int regex_open(struct str pattern, struct regex **out, struct err *e);
void regex_free(struct regex **r);
bool regex_matches(const struct regex *r, struct str text);
/* Its states. */
int regex_size(const struct regex *r);
/* Of several [n] that which matches what all of them match, but for those that are forbidden [n] and must not.
 * E_INVALID: they are too large together. */
int regex_combine(const struct regex *const *parts, const bool *forbidden, int n,
                  struct regex **out, struct err *e);

enum regex_form {
    REGEX_JSON, /* within a JSON string; what must be escaped there is */
    REGEX_RAW   /* as it is; what could end a tool's argument is left out */
};
/* All texts that match and have from `least` to `most` (-1: any number of) characters. */
uint32_t regex_build(const struct regex *r, struct builder *b, enum regex_form form, int64_t least,
                     int64_t most, uint32_t next);
/* The same of what a schema says of its strings: pattern, format and BUILD_PATTERNS, one of which it must have; refuses
 * what regex_open() and regex_combine() do. */
uint32_t build_pattern(struct builder *b, const json_t *schema, enum regex_form form, int64_t min,
                       int64_t max, uint32_t next);
/* Opened once for all that ask; NULL: refused.  Good until BUILD_MAX_REGEXES others were. */
const struct regex *build_regex(struct builder *b, struct str text);
void build_forget_regexes(struct builder *b);
bool build_regex_matches(struct builder *b, const struct regex *r, struct str text);
/* Does the schema have any of them? */
bool build_has_pattern(const json_t *schema);
/* Is the text as pattern and BUILD_PATTERNS want it? */
bool build_matches(struct builder *b, const json_t *schema, struct str text);
