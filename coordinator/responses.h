/* coordinator/responses.h - OpenAI's Responses API <-> struct request: a third dialect of the same request.
 *
 * Nothing is stored: every request brings its whole history, `store` is ignored and previous_response_id,
 * conversation and background are refused.  Reasoning is given as items of type "reasoning" with
 * "reasoning_text", and taken back as such.  sequence_number ascends, with gaps. */
#pragma once

#include "coordinator/openai.h"

/* As openai_parse_chat(). */
int responses_parse(const struct openai_model *m, struct str body, struct request *r,
                    struct openai_error *e);
/* As their namesakes in openai.h; ids of events as in anthropic.h. */
void responses_write_reply(const struct openai_model *m, const struct request *r, struct buf *out);
void responses_write_events(const struct openai_model *m, const struct request *r, struct buf *out);
void responses_write_error_event(const struct openai_error *e, const struct request *r,
                                 struct buf *out);
