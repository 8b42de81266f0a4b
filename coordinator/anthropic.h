/* coordinator/anthropic.h - Anthropic's Messages API <-> struct request: the same request as OpenAI's
 * chat, another dialect.
 *
 * Thinking: M2 always thinks unless it is told not to, so answers have thinking blocks unless the request
 * says {"thinking": {"type": "disabled"}}; budgets are not enforced.  A thinking block's signature is the
 * id of its message and is not checked when it comes back.
 *
 * What we cannot honour (images, documents, server tools, a message for the assistant to go on
 * with) is refused and named; cache_control, metadata and unknown fields are ignored. */
#pragma once

#include "coordinator/openai.h"

/* As openai_parse_chat(). */
int anthropic_parse(const struct openai_model *m, struct str body, struct request *r,
                    struct openai_error *e);
/* The same for count_tokens: max_tokens is not needed, and not looked at. */
int anthropic_parse_count(const struct openai_model *m, struct str body, struct request *r,
                          struct openai_error *e);

/* As their namesakes in openai.h.  An event's id stands on the last of those made after one token, so that
 * a client which lost one of them gets all again. */
void anthropic_write_error(const struct openai_error *e, struct buf *out);
void anthropic_write_count(const struct request *r, struct buf *out);
void anthropic_write_reply(const struct openai_model *m, const struct request *r, struct buf *out);
void anthropic_write_events(const struct openai_model *m, const struct request *r, struct buf *out);
void anthropic_write_error_event(const struct openai_error *e, const struct request *r,
                                 struct buf *out);
void anthropic_write_ping(struct buf *out);
