/* coordinator/openai.h - OpenAI's JSON <-> struct request (steps 2, 3 and 14 of a token's
 * path).
 *
 * Bodies come from anyone: each is either understood or refused with one clear error in
 * OpenAI's form that names the field.  What we cannot honour (images, log-probabilities of prompts) is
 * refused rather than ignored; unknown fields are ignored.  response_format, tool_choice and strict tools are
 * held to by a grammar (model/grammar.h).
 *
 * Extensions: "return_token_ids" and "return_logits_hash" (ids, and 16-digit hashes of the
 * logits, per choice or per chunk), "ignore_eos", "min_p", "top_k", "repetition_penalty",
 * "chat_template_kwargs": {"enable_thinking": ...}; "reasoning_content" in answers.
 *
 * Urgency, in all dialects: "service_tier" ("flex": the lowest class, "priority": the highest that the key may
 * have, others: the key's own; the answer says which was granted) or vLLM's "priority" (an integer, lower is sooner: so many classes below or, if
 * negative, above the key's own).  More than the key may have counts as what it may have.
 *
 * A request with tools gets tool_calls, whose ids are made of the request's number.  A call that was
 * cut short (finish_reason "length") has arguments that are no whole JSON, so that no client
 * runs half of one. */
#pragma once

#include <stdint.h>

#include "base/buf.h"
#include "coordinator/request.h"
#include "model/chat.h"
#include "model/config.h"
#include "model/tokenizer.h"

/* What is served.  All borrowed. */
struct openai_model {
    const char *name;
    const struct model_config *config;
    const struct tokenizer *tokenizer; /* NULL: the checkpoint has none; ids only */
    const struct chat *chat;           /* NULL: no chat */
    int64_t created_s;
};

/* OpenAI's error object and the HTTP status that goes with it. */
struct openai_error {
    int status;
    const char *type, *code; /* static; code may be NULL */
    const char *reason;      /* static; the counter's label */
    char param[96];          /* "" is null */
    char message[ERR_TEXT_BYTES];
};
/* Fills `e` for one of our own codes (a failed step, a full queue, no cluster). */
void openai_error_of(struct openai_error *e, int code, const char *text);
/* A request's own fault, found in field `param` ("": none).  Returns E_INVALID. */
int openai_refuse(struct openai_error *e, const char *reason, const char *param, const char *format,
                  ...) __attribute__((format(printf, 4, 5)));

/* Fill a request from request_init().  `max_tokens` stays 0 if the client named none.
 * E_INVALID with `e` filled; the request is then only good for request_fini(). */
int openai_parse_chat(const struct openai_model *m, struct str body, struct request *r,
                      struct openai_error *e);
int openai_parse_completion(const struct openai_model *m, struct str body, struct request *r,
                            struct openai_error *e);
/* Whole exchanges: the answer is appended to `out`.  /tokenize takes a "prompt" ("markers": false encodes their
 * texts as letters), or the body of a chat and gives the ids of its prompt; /detokenize takes "tokens" and
 * shows markers as their texts. */
int openai_tokenize(const struct openai_model *m, struct str body, struct buf *out,
                    struct openai_error *e);
int openai_detokenize(const struct openai_model *m, struct str body, struct buf *out,
                      struct openai_error *e);
/* Is this the served model's name, its last path component, or no name? */
bool openai_is_model(const struct openai_model *m, struct str name);

/* Answers; appended to `out`. */
void openai_write_error(const struct openai_error *e, struct buf *out);
void openai_write_models(const struct openai_model *m, struct buf *out);
void openai_write_model(const struct openai_model *m, struct buf *out);
/* The whole answer of a request that is DONE. */
void openai_write_reply(const struct openai_model *m, const struct request *r, struct buf *out);
/* What the request has not sent yet, as server-sent events; if it is DONE also the end.
 * Nothing if there is nothing to say yet.
 *
 * An event's id is the number of output tokens when it was made; usage, the end and an error count
 * on from there.  Called after every token, the same tokens give the same events, bytes and ids, whoever
 * makes them; those up to request.seen are left out.  Of several choices each has its own events, which
 * come as their tokens do: what is the same each time is what each choice says, and an id has the tokens of
 * each ("12.9.14"; request_read_seen()). */
void openai_write_events(const struct openai_model *m, const struct request *r, struct buf *out);
void openai_write_error_event(const struct openai_error *e, const struct request *r,
                              struct buf *out);
