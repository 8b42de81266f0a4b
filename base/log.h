/* base/log.h - one event per line, key=value, to stderr:
 *
 *   ts=2026-11-22T21:43:00.123456Z lvl=info node=expert-2 ev=store.ready epoch=4 experts=64
 *
 * The event name is stable and documented in the file that emits it.  Levels: error =
 * someone must act; warn = degraded, rate-limited per call site; info = life cycle only;
 * debug = per step.  Thread-safe: one line is one write(2). */
#pragma once

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* The node's name on every line from now on; copied.  Call before threads start. */
void log_init(const char *node, enum log_level level);
bool log_level_parse(const char *text, enum log_level *out);
bool log_enabled(enum log_level level);

/* `format` gives the key=value pairs after ev=; values that may hold spaces are written
 * with log_quote().  log_warn() at one place prints at most 10 lines a second and then
 * says how many it held back. */
#define log_error(ev, ...) log_line(LOG_ERROR, 0, ev, __VA_ARGS__)
#define log_info(ev, ...) log_line(LOG_INFO, 0, ev, __VA_ARGS__)
#define log_debug(ev, ...) \
    (log_enabled(LOG_DEBUG) ? log_line(LOG_DEBUG, 0, ev, __VA_ARGS__) : (void)0)
#define log_warn(ev, ...) \
    do { \
        static struct log_limit limit_; \
        log_line(LOG_WARN, &limit_, ev, __VA_ARGS__); \
    } while (0)

struct log_limit {
    _Atomic long long window_s;
    _Atomic int lines, held_back;
};

void log_line(enum log_level level, struct log_limit *limit, const char *ev, const char *format,
              ...) __attribute__((format(printf, 4, 5)));

enum { LOG_QUOTE_BYTES = 640 };
struct log_quoted {
    char text[LOG_QUOTE_BYTES];
};
/* `text` in double quotes with quotes, backslashes and control characters escaped;
 * use as `why=%s`, log_quote(e.text).text */
struct log_quoted log_quote(const char *text);
