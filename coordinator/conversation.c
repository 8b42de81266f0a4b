/* coordinator/conversation.c - see conversation.h. */
#include "coordinator/conversation.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/mem.h"
#include "coordinator/openai_json.h"

void conversation_fini(struct conversation *c)
{
    for (int i = 0; i < c->n_arrays; i++)
        mem_free(c->arrays[i]);
    mem_free(c->arrays);
    mem_free(c->messages);
    json_decref(c->keep);
    *c = (struct conversation){0};
}

struct chat_message *conversation_add(struct conversation *c, enum chat_role role)
{
    if (c->n_messages == c->messages_room) {
        c->messages_room = c->messages_room ? 2 * c->messages_room : 16;
        c->messages = mem_resize(c->messages, (size_t)c->messages_room * sizeof *c->messages);
    }
    struct chat_message *m = &c->messages[c->n_messages++];
    *m = (struct chat_message){.role = role};
    return m;
}

void *conversation_array(struct conversation *c, size_t count, size_t size)
{
    if (c->n_arrays == c->arrays_room) {
        c->arrays_room = c->arrays_room ? 2 * c->arrays_room : 16;
        c->arrays = mem_resize(c->arrays, (size_t)c->arrays_room * sizeof *c->arrays);
    }
    return c->arrays[c->n_arrays++] = mem_array(count ? count : 1, size);
}

json_t *conversation_keep(struct conversation *c, json_t *v)
{
    if (!c->keep)
        c->keep = json_array();
    json_array_append_new(c->keep, v);
    return v;
}

struct place place(const char *format, ...)
{
    struct place p;
    va_list args;
    va_start(args, format);
    vsnprintf(p.name, sizeof p.name, format, args);
    va_end(args);
    return p;
}

int conversation_finish(struct conversation *c, const struct openai_model *m, struct request *r,
                        struct openai_error *e)
{
    struct err why = {0};
    struct chat_prompt *p = &c->prompt;
    if (!m->chat)
        return openai_refuse(e, "unsupported", "messages",
                             "this model has no tokenizer with a chat template: send token ids to "
                             "/v1/completions");
    p->messages = c->messages;
    p->n_messages = c->n_messages;
    if (chat_order_results(c->messages, c->n_messages, &why) < 0)
        return openai_refuse(e, "results", "messages", "%s", why.text);
    if (chat_render(m->chat, p, &r->prompt, &why) < 0)
        return openai_refuse(e, "template", "messages", "%s", why.text);
    stream_split(&r->text_of,
                 p->thinking == CHAT_THINKING_ON ? OUTPUT_IN_REASONING : OUTPUT_IN_CONTENT,
                 p->tools);
    int rc = conversation_constrain(c, m, r, e);
    return rc < 0 ? rc : openai_check_prompt(m, &r->prompt, e);
}
