/* tools/loadtest_overload.c - see loadtest_overload.h. */
#include "tools/loadtest_overload.h"

#include "base/mem.h"

void loadtest_overload_fini(struct loadtest_overload *o)
{
    mem_free(o->at_s);
    mem_free(o->bytes);
    *o = (struct loadtest_overload){0};
}

void loadtest_overload_watch(struct loadtest_overload *o, double at_s, double bytes)
{
    if (o->n == o->room) {
        o->room = o->room ? 2 * o->room : 64;
        o->at_s = mem_resize(o->at_s, (size_t)o->room * sizeof(double));
        o->bytes = mem_resize(o->bytes, (size_t)o->room * sizeof(double));
    }
    o->at_s[o->n] = at_s;
    o->bytes[o->n++] = bytes;
}

/* Least squares over what was seen from `from` on. */
static void fit(struct loadtest_overload *o, int from)
{
    double n = o->n - from, mean_s = 0, mean_bytes = 0, above = 0, below = 0;
    for (int i = from; i < o->n; i++) {
        mean_s += o->at_s[i] / n;
        mean_bytes += o->bytes[i] / n;
    }
    for (int i = from; i < o->n; i++) {
        above += (o->at_s[i] - mean_s) * (o->bytes[i] - mean_bytes);
        below += (o->at_s[i] - mean_s) * (o->at_s[i] - mean_s);
    }
    double per_second = below > 0 ? above / below : 0;
    o->rise_bytes_per_minute = per_second * 60;
    o->rise_bytes = n > 0 ? per_second * (o->at_s[o->n - 1] - o->at_s[from]) : 0;
}

int loadtest_overload_judge(struct loadtest_overload *o, const struct loadtest_summary *s,
                            double most_first_ms, struct err *e)
{
    fit(o, o->n / 3);
    if (s->outcomes[LOADTEST_OK] == 0)
        return err_set(e, E_UNKNOWN, "nobody was answered");
    if (s->outcomes[LOADTEST_BUSY] == 0)
        return err_set(e, E_UNKNOWN,
                       "nobody was refused: that was no overload; let the test run longer than the "
                       "queue is long (schedule.queue_ms, request.queue_limit)");
    if (s->first.p99 > most_first_ms)
        return err_set(e, E_UNKNOWN,
                       "who was let in waited too long: 99 %% had the first token within %.0f ms, "
                       "not %.0f (--most-first)",
                       s->first.p99, most_first_ms);
    if (o->rise_bytes > LOADTEST_FLAT_BYTES)
        return err_set(e, E_UNKNOWN, "memory is not flat: it rose by %.1f MB (%.2f MB a minute)",
                       o->rise_bytes / 1e6, o->rise_bytes_per_minute / 1e6);
    return 0;
}

void loadtest_overload_write(const struct loadtest_overload *o, struct buf *out)
{
    buf_printf(out, "capacity %.2f requests/s; asked for twice that\n", o->capacity);
    if (o->n == 0)
        return;
    int third = o->n / 3;
    buf_printf(out,
               "memory %.1f MB after a third, %.1f MB at the end: a line through it rises by %.1f "
               "MB, %.3f MB a minute\n",
               o->bytes[third] / 1e6, o->bytes[o->n - 1] / 1e6, o->rise_bytes / 1e6,
               o->rise_bytes_per_minute / 1e6);
}
