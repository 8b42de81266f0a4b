/* coordinator/dialect.h - which of the APIs a request speaks: one request, several dialects.
 *
 * A request's kind decides how its body is read and how its answer is written (openai.h,
 * responses.h, anthropic.h); an answer to something that is no request yet, above all an error, goes by the path. */
#pragma once

#include "coordinator/openai.h"

/* The kind that a POST to this path asks for.  false: nothing is generated there. */
bool dialect_of_path(const char *path, enum request_kind *out);

/* As openai_parse_chat(), by r->kind. */
int dialect_parse(const struct openai_model *m, struct str body, struct request *r,
                  struct openai_error *e);
/* As their namesakes in openai.h. */
void dialect_write_reply(const struct openai_model *m, const struct request *r, struct buf *out);
void dialect_write_events(const struct openai_model *m, const struct request *r, struct buf *out);
void dialect_write_error_event(const struct openai_error *e, const struct request *r,
                               struct buf *out);
/* For a stream in which nothing happens. */
void dialect_write_ping(const struct request *r, struct buf *out);
void dialect_write_error(enum request_kind kind, const struct openai_error *e, struct buf *out);
/* To whoever asked for `path`. */
void dialect_write_path_error(const char *path, const struct openai_error *e, struct buf *out);
