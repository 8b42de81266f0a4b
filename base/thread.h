/* base/thread.h - named threads with a ready-handshake, and owner checks. */
#pragma once

#include <stdbool.h>

struct err;
struct thread;

/* Told by the new thread exactly once, before it does anything else that others may see:
 * thread_ready(t, 0, NULL) or, if its set-up failed, the code and the error's text. */
void thread_ready(struct thread *t, int rc, const struct err *e);
/* What the thread's body polls: true once thread_stop() was called. */
bool thread_should_stop(const struct thread *t);

typedef void (*thread_main)(struct thread *t, void *arg);

/* Starts body(t, arg) and waits for its thread_ready().  If that reports an error, the
 * thread has been joined and *out is NULL.  `name` shows in ps and gdb (15 characters). */
int thread_start(const char *name, thread_main body, void *arg, struct thread **out, struct err *e);
/* Asks it to stop, calls wake(wake_ud) if given (to end a wait), joins, frees, nulls. */
void thread_stop(struct thread **t, void (*wake)(void *ud), void *wake_ud);
/* For a process that ends at once although the thread runs: nobody will join it. */
void thread_abandon(struct thread *t);

/* Which thread owns an object.  All-zero is unowned. */
struct owner {
    unsigned long id;
};
void owner_take(struct owner *o);
bool owner_is_me(const struct owner *o);
#define must_own(owned) must(owner_is_me(&(owned)->owner))

/* The calling thread, and those that it starts from here on, give way to the others of the
 * machine: for work in the background (loading) beside a thread that somebody waits for. */
void thread_yield_to_others(void);

/* CPUs that this process may run on (base/cpus.h, and its cgroup's quota); at least 1. */
int thread_cpu_count(void);
