/* tools/progress.c - see progress.h. */
#include "tools/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"

#define QUIET_NS (2 * CLOCK_S)
#define REDRAW_NS (100 * CLOCK_MS)
#define LINE_NS (5 * CLOCK_S)

/* An amount in the unit that suits it: "7.3 GB", "12". */
struct amount {
    char text[32];
};

static struct amount show(double amount, enum progress_unit unit)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    struct amount a;
    int i = 0;
    if (unit == PROGRESS_ITEMS) {
        snprintf(a.text, sizeof a.text, "%.0f", amount);
        return a;
    }
    for (; amount >= 999.5 && i < 4; i++)
        amount /= 1000;
    snprintf(a.text, sizeof a.text, "%.*f %s", i > 0 && amount < 99.95 ? 1 : 0, amount, units[i]);
    return a;
}

const char *progress_text(const struct progress *p, int64_t elapsed_ns,
                          char out[PROGRESS_TEXT_BYTES])
{
    double seconds = (double)elapsed_ns / CLOCK_S;
    double rate = seconds > 0 ? (double)p->done / seconds : 0;
    double share = p->total > 0 ? (double)p->done / (double)p->total : 1;
    double left_s = rate > 0 ? (double)(p->total - p->done) / rate : 0;
    snprintf(out, PROGRESS_TEXT_BYTES, "%s: %.0f %%, %s of %s, %s/s, %.0f s left", p->label,
             100 * share, show((double)p->done, p->unit).text, show((double)p->total, p->unit).text,
             show(rate, p->unit).text, left_s);
    return out;
}

void progress_begin(struct progress *p, const char *label, int64_t total, enum progress_unit unit)
{
    int64_t now = clock_now_ns();
    *p = (struct progress){.label = label,
                           .unit = unit,
                           .total = total,
                           .started_ns = now,
                           .next_ns = now + QUIET_NS,
                           .is_terminal = isatty(STDERR_FILENO) == 1};
}

void progress_add(struct progress *p, int64_t amount)
{
    char text[PROGRESS_TEXT_BYTES];
    int64_t now = clock_now_ns();
    p->done += amount;
    if (now < p->next_ns)
        return;
    p->next_ns = now + (p->is_terminal ? REDRAW_NS : LINE_NS);
    p->has_drawn = true;
    progress_text(p, now - p->started_ns, text);
    fprintf(stderr, p->is_terminal ? "\r%s\033[K" : "%s\n", text);
}

void progress_end(struct progress *p)
{
    if (!p->has_drawn)
        return;
    double seconds = (double)(clock_now_ns() - p->started_ns) / CLOCK_S;
    fprintf(stderr, "%s%s: %s in %.1f s\n", p->is_terminal ? "\r\033[K" : "", p->label,
            show((double)p->done, p->unit).text, seconds);
}
