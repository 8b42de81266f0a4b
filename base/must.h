/* base/must.h - assertions that stay on in release.
 *
 * For our own bugs only: outside data is refused with an error and never asserted on. */
#pragma once

/* Prints the expression, place and backtrace to stderr and aborts. */
_Noreturn void must_fail(const char *file, int line, const char *function, const char *what);

#define must(condition) \
    ((condition) ? (void)0 : must_fail(__FILE__, __LINE__, __func__, #condition))

/* For calls whose failure can only be our bug (a pthread call, a full static table). */
#define must_zero(call) \
    ((call) == 0 ? (void)0 : must_fail(__FILE__, __LINE__, __func__, #call " == 0"))

#define unreachable() must_fail(__FILE__, __LINE__, __func__, "unreachable")
