/* coordinator/dialect.c - see dialect.h. */
#include "coordinator/dialect.h"

#include <string.h>

#include "coordinator/anthropic.h"
#include "coordinator/responses.h"

bool dialect_of_path(const char *path, enum request_kind *out)
{
    static const struct {
        const char *path;
        enum request_kind kind;
    } paths[] = {{"/v1/chat/completions", REQUEST_CHAT},
                 {"/v1/completions", REQUEST_COMPLETION},
                 {"/v1/messages", REQUEST_MESSAGES},
                 {"/v1/responses", REQUEST_RESPONSES}};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
        if (strcmp(path, paths[i].path) == 0) {
            *out = paths[i].kind;
            return true;
        }
    return false;
}

int dialect_parse(const struct openai_model *m, struct str body, struct request *r,
                  struct openai_error *e)
{
    if (r->kind == REQUEST_MESSAGES)
        return anthropic_parse(m, body, r, e);
    if (r->kind == REQUEST_RESPONSES)
        return responses_parse(m, body, r, e);
    return r->kind == REQUEST_CHAT ? openai_parse_chat(m, body, r, e)
                                   : openai_parse_completion(m, body, r, e);
}

void dialect_write_reply(const struct openai_model *m, const struct request *r, struct buf *out)
{
    if (r->kind == REQUEST_MESSAGES)
        anthropic_write_reply(m, r, out);
    else if (r->kind == REQUEST_RESPONSES)
        responses_write_reply(m, r, out);
    else
        openai_write_reply(m, r, out);
}

void dialect_write_events(const struct openai_model *m, const struct request *r, struct buf *out)
{
    if (r->kind == REQUEST_MESSAGES)
        anthropic_write_events(m, r, out);
    else if (r->kind == REQUEST_RESPONSES)
        responses_write_events(m, r, out);
    else
        openai_write_events(m, r, out);
}

void dialect_write_error_event(const struct openai_error *e, const struct request *r,
                               struct buf *out)
{
    if (r->kind == REQUEST_MESSAGES)
        anthropic_write_error_event(e, r, out);
    else if (r->kind == REQUEST_RESPONSES)
        responses_write_error_event(e, r, out);
    else
        openai_write_error_event(e, r, out);
}

void dialect_write_ping(const struct request *r, struct buf *out)
{
    if (r->kind == REQUEST_MESSAGES)
        anthropic_write_ping(out);
    else
        buf_puts(out, ": ping\n\n");
}

void dialect_write_error(enum request_kind kind, const struct openai_error *e, struct buf *out)
{
    if (kind == REQUEST_MESSAGES)
        anthropic_write_error(e, out);
    else
        openai_write_error(e, out);
}

void dialect_write_path_error(const char *path, const struct openai_error *e, struct buf *out)
{
    static const char messages[] = "/v1/messages";
    bool is_message = strncmp(path, messages, sizeof messages - 1) == 0;
    dialect_write_error(is_message ? REQUEST_MESSAGES : REQUEST_CHAT, e, out);
}
