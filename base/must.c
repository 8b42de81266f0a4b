/* base/must.c - the end of a process that found its own bug.
 *
 * Runs on whatever thread failed, possibly with locks held or the heap broken, so it
 * writes with write(2) only and takes nothing. */
#include "base/must.h"

#include <execinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MUST_MAX_FRAMES = 64, MUST_LINE_BYTES = 1024 };

_Noreturn void must_fail(const char *file, int line, const char *function, const char *what)
{
    char text[MUST_LINE_BYTES];
    int n = snprintf(text, sizeof(text), "%s:%d: %s: must hold: %s\n", file, line, function, what);
    if (n >= (int)sizeof(text))
        n = (int)sizeof(text) - 1;
    if (n > 0 && write(STDERR_FILENO, text, (size_t)n) >= 0) {
        void *frames[MUST_MAX_FRAMES];
        backtrace_symbols_fd(frames, backtrace(frames, MUST_MAX_FRAMES), STDERR_FILENO);
    }
    abort();
}
