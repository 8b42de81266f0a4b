/* base/clock.c - the only reader of the system's clocks.  No state; any thread. */
#include "base/clock.h"

#include <errno.h>
#include <time.h>

#include "base/must.h"

int64_t clock_now_ns(void)
{
    struct timespec t;
    must_zero(clock_gettime(CLOCK_MONOTONIC, &t));
    return (int64_t)t.tv_sec * CLOCK_S + t.tv_nsec;
}

int64_t clock_thread_ns(void)
{
    struct timespec t;
    must_zero(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t));
    return (int64_t)t.tv_sec * CLOCK_S + t.tv_nsec;
}

int64_t clock_unix_us(void)
{
    struct timespec t;
    must_zero(clock_gettime(CLOCK_REALTIME, &t));
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void clock_sleep_until(int64_t deadline_ns)
{
    if (deadline_ns <= 0)
        return;
    struct timespec t = {.tv_sec = deadline_ns / CLOCK_S, .tv_nsec = deadline_ns % CLOCK_S};
    int rc;
    do
        rc = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    while (rc == EINTR);
    must_zero(rc);
}

int clock_left_ms(int64_t deadline_ns, int64_t now_ns, int most)
{
    if (deadline_ns <= now_ns)
        return 0;
    /* The difference of two int64 can be wider than int64; unsigned arithmetic is exact here. */
    uint64_t left_ns = (uint64_t)deadline_ns - (uint64_t)now_ns;
    uint64_t left_ms = left_ns / CLOCK_MS + (left_ns % CLOCK_MS != 0);
    return left_ms < (uint64_t)(most < 0 ? 0 : most) ? (int)left_ms : most;
}
