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

enum regex_form {
    REGEX_JSON, /* within a JSON string; what must be escaped there is */
    REGEX_RAW   /* as it is; what could end a tool's argument is left out */
};
/* All texts that match and have from `least` to `most` (-1: any number of) characters. */
uint32_t regex_build(const struct regex *r, struct builder *b, enum regex_form form, int64_t least,
                     int64_t most, uint32_t next);
/* The same of a pattern's text; refuses what regex_open() does. */
uint32_t build_pattern(struct builder *b, struct str pattern, enum regex_form form, int64_t min,
                       int64_t max, uint32_t next);
