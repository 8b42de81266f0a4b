/* tests/unit/test_clock.c - monotonic time and what is left of it. */
#include "base/clock.h"

#include "tests/lib/test.h"

TEST(clock_never_goes_back_and_sleeps_long_enough)
{
    int64_t last_ns = clock_now_ns();
    for (int i = 0; i < 10000; i++) {
        int64_t now_ns = clock_now_ns();
        CHECK(now_ns >= last_ns);
        last_ns = now_ns;
    }
    int64_t deadline_ns = clock_now_ns() + 5 * CLOCK_MS;
    clock_sleep_until(deadline_ns);
    CHECK(clock_now_ns() >= deadline_ns);
    clock_sleep_until(0);
    clock_sleep_until(-5);
    CHECK(clock_unix_us() > 1700000000LL * 1000000);
}

TEST(clock_left_rounds_up_and_is_bounded)
{
    CHECK_INT(clock_left_ms(100, 100, 50), 0);
    CHECK_INT(clock_left_ms(99, 100, 50), 0);
    CHECK_INT(clock_left_ms(101, 100, 50), 1);
    CHECK_INT(clock_left_ms(CLOCK_MS, 0, 50), 1);
    CHECK_INT(clock_left_ms(CLOCK_MS + 1, 0, 50), 2);
    CHECK_INT(clock_left_ms(CLOCK_NEVER, 0, 50), 50);
    CHECK_INT(clock_left_ms(CLOCK_NEVER, INT64_MIN, INT32_MAX), INT32_MAX);
    CHECK_INT(clock_left_ms(INT64_MIN, CLOCK_NEVER, 50), 0);
}
