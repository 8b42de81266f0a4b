/* base/signals.h - SIGTERM and SIGINT as a descriptor to poll on.
 *
 * A handler and not signalfd: a library may start threads when it is loaded, before main()
 * can block anything (OpenBLAS does), and a blocked signal then ends the process through
 * one of them. */
#pragma once

#include <stdbool.h>

/* Readable (POLLIN) once a signal has come, for good.  A second signal ends the process at
 * once with exit code 1.  SIGPIPE is ignored from here on.  Call once; never fails. */
int signals_open(void);
/* For a process that begins anew (execve): what comes from here on waits for the new program's
 * signals_open().  True if SIGTERM or SIGINT has come already, and so nothing is to begin.  The calling
 * thread; the other ones are to have blocked their signals (base/thread does). */
bool signals_hold(void);
/* How often SIGHUP came since signals_open(): "read your lists again".  Any thread. */
int signals_hangups(void);
