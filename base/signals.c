/* base/signals.c - SIGTERM and SIGINT as a descriptor. */
#include "base/signals.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/must.h"

static int signal_fd = -1;
static volatile sig_atomic_t n_signals;
static atomic_int n_hangups; /* lock-free, so a handler may; read by other threads */

static void on_signal(int number)
{
    (void)number;
    if (++n_signals > 1)
        _exit(1);
    uint64_t one = 1;
    int saved = errno;
    /* an eventfd takes eight bytes or nothing, and there is no remedy in a handler */
    if (write(signal_fd, &one, sizeof one) != (ssize_t)sizeof one)
        _exit(1);
    errno = saved;
}

static void on_hangup(int number)
{
    (void)number;
    atomic_fetch_add(&n_hangups, 1);
}

int signals_hangups(void)
{
    return atomic_load(&n_hangups);
}

static sigset_t held_signals(void)
{
    sigset_t set;
    must_zero(sigemptyset(&set));
    must_zero(sigaddset(&set, SIGTERM));
    must_zero(sigaddset(&set, SIGINT));
    must_zero(sigaddset(&set, SIGHUP));
    return set;
}

int signals_open(void)
{
    must(signal_fd < 0);
    signal_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    must(signal_fd >= 0);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    must_zero(sigaction(SIGTERM, &action, NULL));
    must_zero(sigaction(SIGINT, &action, NULL));
    action.sa_handler = on_hangup;
    must_zero(sigaction(SIGHUP, &action, NULL));
    action.sa_handler = SIG_IGN;
    must_zero(sigaction(SIGPIPE, &action, NULL));
    sigset_t held = held_signals();
    must_zero(pthread_sigmask(SIG_UNBLOCK, &held, NULL));
    return signal_fd;
}

bool signals_hold(void)
{
    sigset_t held = held_signals();
    must_zero(pthread_sigmask(SIG_BLOCK, &held, NULL));
    return n_signals > 0;
}
