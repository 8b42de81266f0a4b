/* coordinator/stream.c - see stream.h. */
#include "coordinator/stream.h"

#include <string.h>

#include "base/mem.h"
#include "base/must.h"

void stream_init(struct stream *s, const struct tokenizer *t)
{
    *s = (struct stream){.tokenizer = t};
}

void stream_split(struct stream *s, enum output_place begins, const json_t *tools)
{
    must(s->tokenizer && !s->splits);
    s->splits = true;
    s->begins = begins;
    output_init(&s->output, s->tokenizer, begins, tools);
}

void stream_add_stop(struct stream *s, struct str stop)
{
    must(s->n_stops < STREAM_MAX_STOPS && stop.len > 0);
    s->stops[s->n_stops++] = str_copy(stop);
}

void stream_copy(struct stream *to, const struct stream *from)
{
    stream_init(to, from->tokenizer);
    for (int i = 0; i < from->n_stops; i++)
        stream_add_stop(to, str_of(from->stops[i]));
    if (from->splits)
        stream_split(to, from->begins, from->output.tools);
}

void stream_fini(struct stream *s)
{
    for (int i = 0; i < s->n_stops; i++)
        mem_free(s->stops[i]);
    buf_fini(&s->held);
    output_fini(&s->output);
    output_events_fini(&s->fresh);
    *s = (struct stream){0};
}

/* Offset of the first stop string in `text`, and which; or SIZE_MAX. */
static size_t find_stop(const struct stream *s, struct str text, const char **which)
{
    size_t first = SIZE_MAX;
    for (int i = 0; i < s->n_stops; i++) {
        size_t at = str_find(text, str_of(s->stops[i]));
        if (at < first) {
            first = at;
            *which = s->stops[i];
        }
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

/* Passes content on, as far as it is certain. */
static bool give_content(struct stream *s, enum ending ending, struct output_events *out)
{
    struct str text = buf_str(&s->held);
    size_t stop = find_stop(s, text, &s->stopped_by);
    if (stop != SIZE_MAX) {
        output_events_put(out, OUTPUT_CONTENT, -1, (struct str){text.ptr, stop});
        buf_reset(&s->held);
        return s->stopped = true;
    }
    size_t certain = ending == ENDS ? text.len : text.len - possible_stop(s, text);
    output_events_put(out, OUTPUT_CONTENT, -1, (struct str){text.ptr, certain});
    buf_drop(&s->held, certain);
    return false;
}

/* Passes what is fresh on.  Whatever is no content ends the content before it. */
static bool give_out(struct stream *s, enum ending ending, struct output_events *out)
{
    for (size_t i = 0; i < s->fresh.n && !s->stopped; i++) {
        const struct output_event *event = &s->fresh.list[i];
        struct str text = output_events_text(&s->fresh, i);
        if (event->kind == OUTPUT_CONTENT) {
            buf_append_str(&s->held, text);
            give_content(s, GOES_ON, out);
        } else if (!give_content(s, ENDS, out)) {
            output_events_put(out, event->kind, event->call, text);
            s->stopped = event->kind == OUTPUT_ERROR;
        }
    }
    output_events_reset(&s->fresh);
    return s->stopped || (ending == ENDS && give_content(s, ENDS, out));
}

/* Everything is content. */
static void put_plain(struct stream *s, const struct buf *text)
{
    output_events_put(&s->fresh, OUTPUT_CONTENT, -1, buf_str(text));
}

bool stream_feed(struct stream *s, int32_t id, struct output_events *out)
{
    struct buf text = {0};
    if (!s->tokenizer || s->stopped)
        return s->stopped;
    if (s->splits)
        output_feed(&s->output, id, &s->fresh);
    else if (!tokenizer_is_special(s->tokenizer, id))
        utf8_feed(&s->utf8, tokenizer_token_bytes(s->tokenizer, id), &text);
    put_plain(s, &text);
    buf_fini(&text);
    return give_out(s, GOES_ON, out);
}

bool stream_finish(struct stream *s, enum output_ending ending, struct output_events *out)
{
    struct buf text = {0};
    if (!s->tokenizer || s->stopped)
        return s->stopped;
    if (s->splits)
        output_finish(&s->output, ending, &s->fresh);
    else
        utf8_finish(&s->utf8, &text);
    put_plain(s, &text);
    buf_fini(&text);
    return give_out(s, ENDS, out);
}

bool stream_is_broken(const struct stream *s)
{
    return s->output.place == OUTPUT_BROKEN;
}

bool stream_has_calls(const struct stream *s)
{
    return s->output.report.n_calls > 0;
}
