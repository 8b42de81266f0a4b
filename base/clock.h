/* base/clock.h - monotonic time; the only reader of the system's clocks.
 *
 * Every wait in the house takes an absolute `deadline_ns` on this clock. */
#pragma once

#include <stdint.h>

#define CLOCK_NEVER INT64_MAX
#define CLOCK_US 1000LL
#define CLOCK_MS 1000000LL
#define CLOCK_S 1000000000LL

/* Nanoseconds since an arbitrary start; never goes back. */
int64_t clock_now_ns(void);

/* Processor time that the calling thread has used so far; two readings of one thread give what lies
 * between them, whoever else ran meanwhile. */
int64_t clock_thread_ns(void);

/* Seconds and microseconds since 1970, for log lines and API timestamps only. */
int64_t clock_unix_us(void);

/* Sleeps until the deadline; for tools and tests, never on a server's loop. */
void clock_sleep_until(int64_t deadline_ns);

/* Milliseconds left until the deadline, rounded up, at least 0, at most `most`; for poll(). */
int clock_left_ms(int64_t deadline_ns, int64_t now_ns, int most);
