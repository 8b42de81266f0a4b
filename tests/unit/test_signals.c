/* tests/unit/test_signals.c - signals as a descriptor; what comes while a process begins anew waits. */
#include "base/signals.h"

#include <poll.h>
#include <signal.h>

#include "tests/lib/test.h"

static bool is_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

TEST(signals_held_wait_for_who_opens_them)
{
    CHECK(!signals_hold());
    CHECK(raise(SIGTERM) == 0);
    CHECK(raise(SIGHUP) == 0);
    int fd = signals_open();
    CHECK(is_readable(fd));
    CHECK_INT(signals_hangups(), 1);
}

TEST(signals_that_have_come_are_told_to_who_would_begin_anew)
{
    int fd = signals_open();
    CHECK(!is_readable(fd));
    CHECK(raise(SIGTERM) == 0);
    CHECK(is_readable(fd));
    CHECK(signals_hold());
}
