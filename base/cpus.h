/* base/cpus.h - the CPUs that this process may use, and pinning threads to them.
 *
 * What the process may use is its affinity mask when first asked, before any thread is
 * pinned, or what cpus_take() was given.  Any thread may ask; cpus_take() belongs to the
 * start of a program, before there are other threads. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { CPUS_MAX = 4096, CPUS_TEXT_BYTES = 6 * CPUS_MAX /* the longest text there is */ };

/* Ascending, each once. */
struct cpus {
    int n;
    uint16_t ids[CPUS_MAX];
};

/* "0-3,8" ; E_INVALID says what is wrong with it.  "" gives none. */
int cpus_parse(const char *text, struct cpus *out, struct err *e);
/* The same form back; cut with "..." where it does not fit (size at least 4). */
const char *cpus_text(const struct cpus *c, char *out, size_t size);

/* Whether a text has the form that cpus_take() takes, wherever it may run.  E_INVALID. */
int cpus_check(const char *text, struct err *e);
/* A program's compute.cpus: "" leaves everything as it is; "all" says that all CPUs of the
 * process are for it alone; a list keeps the process on these, for it alone.  E_INVALID; E_RANGE: a
 * CPU that the process may not use. */
int cpus_take(const char *text, struct err *e);
/* true once cpus_take() was told that nobody else shall compute here: threads may be pinned. */
bool cpus_are_own(void);
const struct cpus *cpus_of_process(void);

/* The calling thread stays on the index-th CPU of the process (modulo their number).  Where
 * the system refuses it goes on unpinned: slower, not wrong. */
void cpus_pin_thread(int index);
/* The calling thread goes where it likes among the CPUs of the process. */
void cpus_free_thread(void);
bool cpus_is_thread_pinned(void);
