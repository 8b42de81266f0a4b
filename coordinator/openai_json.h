/* coordinator/openai_json.h - typed fields of a request's JSON, shared by the openai_*.c files.
 *
 * null counts as absent.  A reader leaves its target alone if the field is absent and
 * returns E_INVALID with the field named if it has another type or is out of range. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "coordinator/openai.h"

/* Parses a whole body: one object, no duplicate keys. */
int json_body(struct str body, json_t **out, struct openai_error *e);
/* NULL if absent or null. */
json_t *json_field(const json_t *object, const char *name);
struct str json_str(const json_t *string);
const char *json_type_name(const json_t *v);

int json_read_bool(const json_t *object, const char *name, bool *out, struct openai_error *e);
/* Inclusive bounds. */
int json_read_number(const json_t *object, const char *name, double min, double max, double *out,
                     struct openai_error *e);
int json_read_int(const json_t *object, const char *name, int64_t min, int64_t max, int64_t *out,
                  struct openai_error *e);

/* What all dialects have: the model's name, the sampling numbers under their usual names, stop strings in
 * `field` (which also makes the request's stream). */
int openai_read_model(const struct openai_model *m, const json_t *body, struct openai_error *e);
int openai_read_sampling(const struct openai_model *m, const json_t *body, struct sampling *s,
                         struct openai_error *e);
int openai_read_stops(const struct openai_model *m, const json_t *body, const char *field,
                      struct request *r, struct openai_error *e);
/* "service_tier" and "priority" into r->raise. */
int openai_read_priority(const json_t *body, struct request *r, struct openai_error *e);
/* Reads what chat and completions have in common. */
int openai_parse_common(const struct openai_model *m, const json_t *body, struct request *r,
                        struct openai_error *e);
struct conversation;
/* tool_choice and parallel_tool_calls into the rules; *none: tools are not to be used. */
int openai_read_tool_choice(const json_t *body, struct conversation *c, bool *none,
                            struct openai_error *e);
/* The form of the answer; `holder` has the schema. */
int openai_read_format(const json_t *format, const json_t *holder, const char *field,
                       struct conversation *c, struct openai_error *e);
/* After the prompt is known: is it within the context? */
int openai_check_prompt(const struct openai_model *m, const struct tokens *prompt,
                        struct openai_error *e);
