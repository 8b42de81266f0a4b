/* model/grammar.h - what an output may be: a grammar over bytes and marker tokens, made of a JSON schema.
 *
 * The text of a grammar is JSON, so that it can travel with a sequence; both ends compile it:
 *
 *   {"stops": [200020],          ids that end the output
 *    "after": 200051,            free text up to this marker comes first; absent: the output begins at once
 *    "calls": [200052, 200053],  markers around a block of tool calls
 *    "namespace": 200058,        marker before each tag: calls have M3's form; absent: M2's
 *    "value": {...},             the answer is a JSON value of this schema; absent: it is free text
 *    "tools": [{"name": "f", "schema": {...}}, ...],  calls that are possible; without schema: any arguments
 *    "forced": true,             the answer is a block of calls and nothing else
 *    "single": true}             of one call
 *
 * Of JSON Schema:
 *   any value   type (also a list), nullable, enum, const (only those values that the rest allows), anyOf, allOf, $ref
 *               within the schema (also recursive); keywords beside them hold, too; oneOf, where values that two parts
 *               have in common are left out, and OpenAPI's discriminator is required; not, if, then, else, where what
 *               is forbidden can be said the other way round (not multipleOf, uniqueItems, prefixItems, counted contains,
 *               values that are objects or arrays with something in them); true and false
 *   strings     minLength, maxLength, pattern (model/grammar_regex.h), also several, format: date, time, date-time,
 *               duration, email, hostname, ipv4, ipv6, uuid, uri (others, and any beside a pattern, are annotations)
 *   numbers     minimum, maximum, exclusiveMinimum, exclusiveMaximum (numbers, or true beside the other), multipleOf
 *               (whole up to 100, or any where the bounds are close; 0.1, 0.01 ...)
 *   arrays      items, prefixItems (or items as a list, with additionalItems), minItems, maxItems, contains, minContains,
 *               maxContains; uniqueItems where items has few values: up to 8 in any order, more in that of the schema
 *   objects     properties, required, additionalProperties, minProperties, maxProperties, propertyNames, patternProperties
 *               (names of two patterns are left out where no properties are declared), dependentRequired,
 *               dependentSchemas, dependencies
 * Properties come in the order in which they are declared; where some are declared no others come.  Annotations
 * (title, description, default, examples, x-... and so on) are ignored; every other keyword is refused by its JSON
 * pointer, as is a schema that no value satisfies.  Whatever is generated is valid; not all that is valid can be
 * generated (white space, escapes, numbers of more than 18 digits).
 *
 * A grammar is a graph of nodes in which rules call each other; where an output is in it is a state, a set of
 * (node, return stack).  States are numbered as they are met and their transitions remembered, so that
 * a byte costs one look-up.  Stacks are GRAMMAR_MAX_DEPTH deep at most: deeper nesting is not allowed, and
 * never begun where it could not be ended.
 *
 * Owner: whoever compiled it; one thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/sampling.h"

enum {
    GRAMMAR_MAX_DEPTH = 64,
    GRAMMAR_MAX_NODES = 1 << 16,
    GRAMMAR_MAX_STOPS = 8,
};

struct grammar;
/* E_INVALID: names the place ("schema #/properties/age: ..."). */
int grammar_compile(struct str text, struct grammar **out, struct err *e);
void grammar_free(struct grammar **g);

enum { GRAMMAR_DEAD = 0 }; /* the state of an output that is not in the grammar */
#define GRAMMAR_DIFFERS (UINT32_MAX - 1)
uint32_t grammar_start(struct grammar *g);
uint32_t grammar_byte(struct grammar *g, uint32_t state, unsigned char byte);
uint32_t grammar_marker(struct grammar *g, uint32_t state, int32_t id);
/* May the output end here? */
bool grammar_accepts(const struct grammar *g, uint32_t state);
bool grammar_is_stop(const struct grammar *g, int32_t id);
/* Ids that end the output, [*n]. */
const int32_t *grammar_stops(const struct grammar *g, int *n);
bool grammar_has_markers(const struct grammar *g, uint32_t state);

/* The state without the part of the return stacks that all its ways share, *cut deep: where states agree in
 * that, they agree in all that happens before one of the ways returns into it.  0: the state itself. */
uint32_t grammar_cut(struct grammar *g, uint32_t state, int *cut);
/* Did a way return into what was cut off? */
bool grammar_leaves(const struct grammar *g, uint32_t state);
/* The depth that its ways have and will need at least. */
int grammar_reach(const struct grammar *g, uint32_t state);

/* A plain character is what any string may hold as it is: of ASCII what is printed, without quotes, backslash and
 * '<'; all that is beyond. */
bool grammar_is_plain(int32_t code_point);
/* Where any one plain character leads, if all lead to the same; else GRAMMAR_DIFFERS.  Cheap, unlike a walk through
 * all of them: a string in which characters are counted has as many states as may still come. */
uint32_t grammar_plain(struct grammar *g, uint32_t state);

/* Where any one character beyond ASCII leads, if all lead to the same; else GRAMMAR_DIFFERS. */
uint32_t grammar_beyond(struct grammar *g, uint32_t state);

size_t grammar_bytes_held(const struct grammar *g);
/* So many states that they should be forgotten?  Then keep[n_keep] get new numbers, and all others are void. */
bool grammar_is_crowded(const struct grammar *g);
void grammar_trim(struct grammar *g, uint32_t *keep, int n_keep);
