/* coordinator/events.c - see events.h. */
#include "coordinator/events.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

void events_add(struct events *e, int64_t time_us, enum events_level level, const char *kind,
                const char *format, ...)
{
    struct event *new = &e->ring[++e->last % EVENTS_KEPT];
    *new = (struct event){.id = e->last, .time_us = time_us, .level = level, .kind = kind};
    va_list args;
    va_start(args, format);
    vsnprintf(new->text, sizeof new->text, format, args);
    va_end(args);
}

const struct event *events_after(const struct events *e, uint64_t id)
{
    if (id >= e->last)
        return NULL;
    uint64_t oldest = e->last < EVENTS_KEPT ? 1 : e->last - EVENTS_KEPT + 1;
    return &e->ring[(id + 1 > oldest ? id + 1 : oldest) % EVENTS_KEPT];
}

const char *events_level_name(enum events_level level)
{
    static const char *const names[] = {"good", "info", "warn", "bad"};
    return names[level];
}
