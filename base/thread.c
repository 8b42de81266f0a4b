/* base/thread.c - named threads with a ready-handshake.
 *
 * `outcome` and `is_told` are guarded by the mutex; `should_stop` is atomic because the
 * body polls it.  A thread blocks every signal that is not about itself: they belong to
 * the main thread's handler (base/signals.h). */
#include "base/thread.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/resource.h>

#include "base/cgroup.h"
#include "base/cpus.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/must.h"

enum { THREAD_NAME_BYTES = 16 }; /* pthread_setname_np(3) */

struct thread {
    pthread_t id;
    char name[THREAD_NAME_BYTES];
    thread_main body;
    void *arg;
    atomic_bool should_stop;
    pthread_mutex_t lock;
    pthread_cond_t told;
    bool is_told, is_creator_pinned;
    struct err outcome;
};

static void *thread_entry(void *ud)
{
    struct thread *t = ud;
    pthread_setname_np(pthread_self(), t->name);
    /* A pinned thread's place is its own: a new thread would inherit it. */
    if (t->is_creator_pinned)
        cpus_free_thread();
    t->body(t, t->arg);
    must_zero(pthread_mutex_lock(&t->lock));
    must(t->is_told);
    must_zero(pthread_mutex_unlock(&t->lock));
    return NULL;
}

void thread_ready(struct thread *t, int rc, const struct err *e)
{
    must_zero(pthread_mutex_lock(&t->lock));
    must(!t->is_told);
    t->is_told = true;
    if (rc < 0 && e && e->text[0])
        t->outcome = *e;
    else if (rc < 0)
        err_set(&t->outcome, rc, "%s", err_text(rc));
    t->outcome.code = rc < 0 ? rc : 0;
    must_zero(pthread_cond_signal(&t->told));
    must_zero(pthread_mutex_unlock(&t->lock));
}

bool thread_should_stop(const struct thread *t)
{
    return atomic_load_explicit(&t->should_stop, memory_order_acquire);
}

static int create_with_signals_blocked(struct thread *t)
{
    sigset_t block, before;
    sigfillset(&block);
    const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
    for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
        sigdelset(&block, own[i]);
    must_zero(pthread_sigmask(SIG_SETMASK, &block, &before));
    int failed = pthread_create(&t->id, NULL, thread_entry, t);
    must_zero(pthread_sigmask(SIG_SETMASK, &before, NULL));
    return failed;
}

static void free_thread(struct thread *t)
{
    must_zero(pthread_cond_destroy(&t->told));
    must_zero(pthread_mutex_destroy(&t->lock));
    mem_free(t);
}

int thread_start(const char *name, thread_main body, void *arg, struct thread **out, struct err *e)
{
    *out = NULL;
    struct thread *t = mem_alloc(sizeof(*t));
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->body = body;
    t->arg = arg;
    t->is_creator_pinned = cpus_is_thread_pinned();
    atomic_init(&t->should_stop, false);
    must_zero(pthread_mutex_init(&t->lock, NULL));
    must_zero(pthread_cond_init(&t->told, NULL));

    int failed = create_with_signals_blocked(t);
    if (failed) {
        free_thread(t);
        return err_set_errno(e, failed, "start thread %s", name);
    }
    must_zero(pthread_mutex_lock(&t->lock));
    while (!t->is_told)
        must_zero(pthread_cond_wait(&t->told, &t->lock));
    struct err outcome = t->outcome;
    must_zero(pthread_mutex_unlock(&t->lock));
    if (outcome.code < 0) {
        must_zero(pthread_join(t->id, NULL));
        free_thread(t);
        return err_set(e, outcome.code, "thread %s: %s", name, outcome.text);
    }
    *out = t;
    return 0;
}

void thread_stop(struct thread **thread, void (*wake)(void *ud), void *wake_ud)
{
    struct thread *t = *thread;
    if (!t)
        return;
    *thread = NULL;
    atomic_store_explicit(&t->should_stop, true, memory_order_release);
    if (wake)
        wake(wake_ud);
    must_zero(pthread_join(t->id, NULL));
    free_thread(t);
}

void thread_abandon(struct thread *t)
{
    must_zero(pthread_detach(t->id));
}

void owner_take(struct owner *o)
{
    o->id = (unsigned long)pthread_self();
}

bool owner_is_me(const struct owner *o)
{
    return o->id == (unsigned long)pthread_self();
}

void thread_yield_to_others(void)
{
    enum { LESS = 10, LEAST = 19 };
    int niceness = getpriority(PRIO_PROCESS, 0) + LESS;
    /* of this thread alone, on Linux */
    (void)setpriority(PRIO_PROCESS, 0, niceness < LEAST ? niceness : LEAST);
}

int thread_cpu_count(void)
{
    int count = cpus_of_process()->n;
    /* Rounded down: threads that meet at barriers lose more to throttling than to one fewer. */
    double quota = cgroup_cpu_quota();
    if (quota > 0 && quota < count)
        count = (int)quota;
    return count > 0 ? count : 1;
}
