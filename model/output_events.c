/* model/output_events.c - see output_events.h. */
#include "model/output_events.h"

#include <stdbool.h>

#include "base/mem.h"
#include "base/must.h"

void output_events_fini(struct output_events *events)
{
    mem_free(events->list);
    buf_fini(&events->text);
    *events = (struct output_events){0};
}

void output_events_reset(struct output_events *events)
{
    events->n = 0;
    buf_reset(&events->text);
}

static bool is_piece(enum output_kind kind)
{
    return kind == OUTPUT_REASONING || kind == OUTPUT_CONTENT || kind == OUTPUT_ARGUMENTS;
}

void output_events_put(struct output_events *events, enum output_kind kind, int call,
                       struct str text)
{
    struct output_event *last = events->n > 0 ? &events->list[events->n - 1] : NULL;
    size_t offset = events->text.len;

    if (is_piece(kind) && text.len == 0)
        return;
    buf_append_str(&events->text, text);
    if (last && is_piece(kind) && last->kind == kind && last->call == call) {
        last->len += text.len;
        return;
    }
    if (events->n == events->size) {
        events->size = events->size > 0 ? 2 * events->size : 8;
        events->list = mem_resize(events->list, events->size * sizeof *events->list);
    }
    events->list[events->n++] =
        (struct output_event){.kind = kind, .call = call, .offset = offset, .len = text.len};
}

struct str output_events_text(const struct output_events *events, size_t i)
{
    must(i < events->n);
    return (struct str){(events->text.data ? events->text.data : "") + events->list[i].offset,
                        events->list[i].len};
}

void output_events_gather(const struct output_events *events, enum output_kind kind,
                          struct buf *out)
{
    for (size_t i = 0; i < events->n; i++)
        if (events->list[i].kind == kind)
            buf_append_str(out, output_events_text(events, i));
}
