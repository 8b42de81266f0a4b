/* model/chat_script.h - what the chat templates are written with (chat.c, chat_m3.c). */
#pragma once

#include "base/buf.h"
#include "base/mem.h"
#include "model/chat.h"

/* A prompt before it becomes ids or text: plain text, and where markers stand in it.  Text
 * between two markers is encoded in one go, so that the template's words join with the contents
 * as they would in the publisher's tokenizer. */
struct script {
    struct buf text;
    struct script_mark {
        size_t offset;
        enum chat_marker marker;
    } * marks;
    size_t n_marks, size;
};

static inline void script_fini(struct script *s)
{
    buf_fini(&s->text);
    mem_free(s->marks);
}

static inline void put_mark(struct script *s, enum chat_marker marker)
{
    if (s->n_marks == s->size) {
        s->size = s->size == 0 ? 16 : 2 * s->size;
        s->marks = mem_resize(s->marks, s->size * sizeof(*s->marks));
    }
    s->marks[s->n_marks++] = (struct script_mark){.offset = s->text.len, .marker = marker};
}

static inline void put_text(struct script *s, const char *text)
{
    buf_puts(&s->text, text);
}

static inline void put_str(struct script *s, struct str text)
{
    buf_append_str(&s->text, text);
}

static inline void put_role(struct script *s, const char *role)
{
    put_mark(s, CHAT_MARK_ROLE);
    put_text(s, role);
}

static inline void put_end(struct script *s)
{
    put_mark(s, CHAT_MARK_END);
    put_text(s, "\n");
}

/* The content as one text; `joined` holds it where it came in parts. */
struct str chat_content_of(const struct chat_message *m, struct buf *joined);
/* Clients that know no reasoning field send the model's whole output back as content: what stands
 * before `closing` becomes the reasoning, from `opening` on if that is there. */
void chat_split_reasoning(struct str opening, struct str closing, struct str *content,
                          struct str *reasoning);

/* Writes the whole prompt in M3's template. */
int chat_m3_write(struct script *s, const struct chat_prompt *p, struct err *e);
