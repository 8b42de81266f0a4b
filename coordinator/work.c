/* coordinator/work.c - see work.h. */
#include "coordinator/work.h"

const char *work_name(enum work_kind kind)
{
    static const char *const names[WORK_KINDS] = {"other", "scheduler", "reading", "writing",
                                                  "http"};
    return names[kind];
}

enum work_kind work_turn(struct work *w, enum work_kind kind, int64_t thread_ns)
{
    enum work_kind before = w->kind;
    w->ns[before] += thread_ns - w->since_ns;
    w->since_ns = thread_ns;
    w->kind = kind;
    return before;
}

void work_add(struct work *w, enum work_kind kind, int64_t ns)
{
    w->ns[kind] += ns;
}
