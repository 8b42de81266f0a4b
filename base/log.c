/* base/log.c - formats one line on the stack and writes it with one write(2).
 *
 * Lines of several threads therefore never mix, and nothing is allocated or locked.  A
 * line that is too long is cut and says so.  `node` and `level` are set before threads start. */
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

enum { LOG_LINE_BYTES = 4096, LOG_NODE_BYTES = 64, LOG_WARNINGS_PER_S = 10 };

static const char *const level_names[] = {"error", "warn", "info", "debug"};
enum { N_LEVELS = sizeof(level_names) / sizeof(level_names[0]) };

static char node[LOG_NODE_BYTES] = "-";
static enum log_level max_level = LOG_INFO;

void log_init(const char *name, enum log_level level)
{
    snprintf(node, sizeof(node), "%s", name && *name ? name : "-");
    for (char *p = node; *p; p++)
        if ((unsigned char)*p <= ' ' || *p == '"' || *p == '=')
            *p = '_';
    max_level = level;
}

bool log_level_parse(const char *text, enum log_level *out)
{
    for (int i = 0; i < N_LEVELS; i++) {
        if (text && strcmp(text, level_names[i]) == 0) {
            *out = (enum log_level)i;
            return true;
        }
    }
    return false;
}

bool log_enabled(enum log_level level)
{
    return level <= max_level;
}

/* false if this line is held back; else *held_back is what the line must own up to. */
static bool limit_allows(struct log_limit *limit, int *held_back)
{
    long long now_s = clock_now_ns() / CLOCK_S + 1; /* never 0, which means "no window yet" */
    long long window_s = atomic_load_explicit(&limit->window_s, memory_order_relaxed);
    /* One thread wins a new second; the losers count themselves into it. */
    if (window_s != now_s && atomic_compare_exchange_strong(&limit->window_s, &window_s, now_s))
        atomic_store_explicit(&limit->lines, 0, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&limit->lines, 1, memory_order_relaxed) >= LOG_WARNINGS_PER_S) {
        atomic_fetch_add_explicit(&limit->held_back, 1, memory_order_relaxed);
        return false;
    }
    *held_back = atomic_exchange_explicit(&limit->held_back, 0, memory_order_relaxed);
    return true;
}

/* Appends at *used, stops at the end of the line. */
__attribute__((format(printf, 3, 0))) static void append_args(char *line, size_t *used,
                                                              const char *format, va_list args)
{
    int n = vsnprintf(line + *used, LOG_LINE_BYTES - *used, format, args);
    if (n < 0)
        return;
    size_t room = LOG_LINE_BYTES - 1 - *used;
    *used += (size_t)n < room ? (size_t)n : room;
}

__attribute__((format(printf, 3, 4))) static void append(char *line, size_t *used,
                                                         const char *format, ...)
{
    va_list args;
    va_start(args, format);
    append_args(line, used, format, args);
    va_end(args);
}

static void append_head(char *line, size_t *used, enum log_level level, const char *ev)
{
    int64_t us = clock_unix_us();
    time_t s = (time_t)(us / 1000000);
    struct tm utc;
    gmtime_r(&s, &utc);
    size_t n = strftime(line, LOG_LINE_BYTES, "ts=%Y-%m-%dT%H:%M:%S", &utc);
    *used = n;
    append(line, used, ".%06dZ lvl=%s node=%s ev=%s", (int)(us % 1000000), level_names[level], node,
           ev);
}

void log_line(enum log_level level, struct log_limit *limit, const char *ev, const char *format,
              ...)
{
    int held_back = 0;
    if (!log_enabled(level) || (limit && !limit_allows(limit, &held_back)))
        return;
    int saved_errno = errno;
    char line[LOG_LINE_BYTES];
    size_t used;
    append_head(line, &used, level, ev);
    if (*format)
        append(line, &used, " ");
    va_list args;
    va_start(args, format);
    append_args(line, &used, format, args);
    va_end(args);
    if (held_back > 0)
        append(line, &used, " held_back=%d", held_back);
    static const char cut[] = " cut=true";
    if (used == LOG_LINE_BYTES - 1) {
        used -= sizeof(cut);
        memcpy(line + used, cut, sizeof(cut) - 1);
        used += sizeof(cut) - 1;
    }
    /* A line feed from outside must not forge a line. */
    for (size_t i = 0; i < used; i++)
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = '?';
    line[used++] = '\n';
    /* A log that cannot be written has nowhere to complain. */
    if (write(STDERR_FILENO, line, used) < 0)
        errno = saved_errno;
    errno = saved_errno;
}

struct log_quoted log_quote(const char *text)
{
    struct log_quoted q;
    size_t used = 0;
    q.text[used++] = '"';
    /* Room for the longest escape, the closing quote and the NUL. */
    for (const char *p = text ? text : ""; *p && used + 4 + 2 <= sizeof(q.text); p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\') {
            q.text[used++] = '\\';
            q.text[used++] = *p;
        } else if (c == '\n') {
            q.text[used++] = '\\';
            q.text[used++] = 'n';
        } else if (c < ' ' || c == 0x7f) {
            static const char hex[] = "0123456789abcdef";
            const char escape[] = {'\\', 'x', hex[c >> 4], hex[c & 15]};
            memcpy(q.text + used, escape, sizeof(escape));
            used += sizeof(escape);
        } else {
            q.text[used++] = *p;
        }
    }
    q.text[used++] = '"';
    q.text[used] = '\0';
    return q;
}
