/* coordinator/stream.c - see stream.h. */
#include "coordinator/stream.h"

#include <string.h>

#include "base/mem.h"
#include "base/must.h"

void stream_init(struct stream *s, const struct tokenizer *t)
{
    *s = (struct stream){.tokenizer = t};
}

void stream_split(struct stream *s, enum reasoning_part begins)
{
    must(s->tokenizer);
    s->splits = true;
    reasoning_init(&s->reasoning, s->tokenizer, begins);
}

void stream_add_stop(struct stream *s, struct str stop)
{
    must(s->n_stops < STREAM_MAX_STOPS && stop.len > 0);
    s->stops[s->n_stops++] = str_copy(stop);
}

void stream_fini(struct stream *s)
{
    for (int i = 0; i < s->n_stops; i++)
        mem_free(s->stops[i]);
    buf_fini(&s->held);
    reasoning_text_fini(&s->fresh);
    *s = (struct stream){0};
}

/* Offset of the first stop string in `text`, or SIZE_MAX. */
static size_t find_stop(const struct stream *s, struct str text)
{
    size_t first = SIZE_MAX;
    for (int i = 0; i < s->n_stops; i++) {
        size_t at = str_find(text, str_of(s->stops[i]));
        if (at < first)
            first = at;
    }
    return first;
}

/* Length of the longest end of `text` with which a stop string may begin. */
static size_t possible_stop(const struct stream *s, struct str text)
{
    size_t longest = 0;
    for (int i = 0; i < s->n_stops; i++) {
        size_t n = strlen(s->stops[i]) - 1;
        if (n > text.len)
            n = text.len;
        for (; n > longest; n--)
            if (memcmp(text.ptr + text.len - n, s->stops[i], n) == 0)
                longest = n;
    }
    return longest;
}

enum ending { GOES_ON, ENDS };

/* Passes the fresh text on, as far as it is certain. */
static bool give_out(struct stream *s, enum ending ending, struct reasoning_text *out)
{
    buf_append_str(&out->thinking, buf_str(&s->fresh.thinking));
    buf_append_str(&s->held, buf_str(&s->fresh.content));
    reasoning_text_reset(&s->fresh);
    struct str text = buf_str(&s->held);
    size_t stop = s->n_stops ? find_stop(s, text) : SIZE_MAX;
    if (stop != SIZE_MAX) {
        buf_append(&out->content, text.ptr, stop);
        buf_reset(&s->held);
        return s->stopped = true;
    }
    size_t certain = ending == ENDS ? text.len : text.len - possible_stop(s, text);
    if (certain > 0)
        buf_append(&out->content, text.ptr, certain);
    buf_drop(&s->held, certain);
    return false;
}

bool stream_feed(struct stream *s, int32_t id, struct reasoning_text *out)
{
    if (!s->tokenizer || s->stopped)
        return s->stopped;
    if (s->splits)
        reasoning_feed(&s->reasoning, id, &s->fresh);
    else if (!tokenizer_is_special(s->tokenizer, id))
        utf8_feed(&s->utf8, tokenizer_token_bytes(s->tokenizer, id), &s->fresh.content);
    return give_out(s, GOES_ON, out);
}

bool stream_finish(struct stream *s, struct reasoning_text *out)
{
    if (!s->tokenizer || s->stopped)
        return s->stopped;
    if (s->splits)
        reasoning_finish(&s->reasoning, &s->fresh);
    else
        utf8_finish(&s->utf8, &s->fresh.content);
    return give_out(s, ENDS, out);
}
