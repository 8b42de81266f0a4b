/* tests/unit/test_chaos_net.c - hosts inside this machine: what their wires do to frames.
 * Needs root and /dev/net/tun; skipped without. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/lib/test.h"
#include "tools/chaos_net.h"

enum { PORT = 4242 };

static struct chaos_net *open_net(int n_hosts, const struct chaos_wire *wire)
{
    struct chaos_net *net = NULL;
    struct err e = {0};
    if (chaos_net_open(n_hosts, wire, &net, &e) < 0)
        test_skip("no hosts inside this machine: %s", e.text);
    CHECK_INT(chaos_net_start(net, &e), 0);
    return net;
}

/* A datagram socket on a host; the caller stays where it is called from next. */
static int socket_on(const struct chaos_net *net, int host)
{
    CHECK_INT(chaos_net_enter(net, host), 0);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

static void say(const struct chaos_net *net, int fd, int to_host, int number)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    CHECK(inet_pton(AF_INET, chaos_net_address(net, to_host), &a.sin_addr) == 1);
    CHECK(sendto(fd, &number, sizeof number, 0, (struct sockaddr *)&a, sizeof a) == sizeof number);
}

/* The number that arrives within the time; -1: none. */
static int hear(int fd, int within_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int number = -1;
    if (poll(&p, 1, within_ms) > 0)
        CHECK(recv(fd, &number, sizeof number, 0) == sizeof number);
    return number;
}

TEST(chaos_net_frames_wait_on_both_wires)
{
    struct chaos_wire wire = {.delay_ns = 15 * CLOCK_MS};
    struct chaos_net *net = open_net(3, &wire);
    int a = socket_on(net, 0), b = socket_on(net, 2);
    int64_t began_ns = clock_now_ns();
    say(net, a, 2, 7);
    CHECK_INT(hear(b, 10000), 7);
    /* who-has, its answer and the datagram: three ways of two wires each */
    CHECK(clock_now_ns() - began_ns >= 90 * CLOCK_MS);
    began_ns = clock_now_ns();
    say(net, b, 0, 8);
    CHECK_INT(hear(a, 10000), 8);
    CHECK(clock_now_ns() - began_ns >= 30 * CLOCK_MS);
    close(a);
    close(b);
    chaos_net_close(&net);
    CHECK(net == NULL);
}

TEST(chaos_net_a_cut_wire_is_silent_until_it_is_healed)
{
    struct chaos_wire whole = {0}, cut = {.is_cut = true};
    struct chaos_net *net = open_net(3, &whole);
    int a = socket_on(net, 0), b = socket_on(net, 1), c = socket_on(net, 2);
    say(net, a, 1, 1);
    CHECK_INT(hear(b, 10000), 1);
    chaos_net_set(net, 1, &cut);
    say(net, a, 1, 2);
    say(net, a, 2, 3); /* the others still hear each other */
    CHECK_INT(hear(c, 10000), 3);
    CHECK_INT(hear(b, 50), -1);
    chaos_net_set(net, 1, &whole);
    say(net, a, 1, 4);
    CHECK_INT(hear(b, 10000), 4);
    struct chaos_net_counters n;
    chaos_net_count(net, &n);
    CHECK(n.cut >= 1 && n.lost == 0);
    chaos_net_close(&net);
}

TEST(chaos_net_loses_the_share_that_it_is_told)
{
    enum { SENT = 400 };
    struct chaos_wire whole = {0}, lossy = {.loss_permille = 300};
    struct chaos_net *net = open_net(2, &whole);
    int a = socket_on(net, 0), b = socket_on(net, 1), n = 0;
    say(net, a, 1, 1);
    CHECK_INT(hear(b, 10000), 1);
    chaos_net_set(net, 1, &lossy);
    for (int i = 0; i < SENT; i++) {
        /* one at a time, so that only the wire can lose it; a late one still counts */
        say(net, a, 1, 2 + i);
        n += hear(b, 5) != -1;
    }
    while (hear(b, 50) != -1)
        n++;
    struct chaos_net_counters c;
    chaos_net_count(net, &c);
    CHECK(n > SENT / 2 && n < SENT * 9 / 10); /* 280 on average, deviation 9 */
    CHECK(c.lost >= SENT - n);
    chaos_net_close(&net);
}

TEST(chaos_net_is_another_network)
{
    struct chaos_wire wire = {0};
    struct chaos_net *net = open_net(2, &wire);
    char before[64] = "", inside[64] = "", after[64] = "";
    ssize_t size = (ssize_t)sizeof before - 1;
    CHECK(readlink("/proc/thread-self/ns/net", before, (size_t)size) > 0);
    CHECK_INT(chaos_net_enter(net, 1), 0);
    CHECK(readlink("/proc/thread-self/ns/net", inside, (size_t)size) > 0);
    CHECK(strcmp(before, inside) != 0);
    CHECK_STR(chaos_net_address(net, 1), "10.77.0.11");
    chaos_net_close(&net); /* takes the caller home */
    CHECK(readlink("/proc/thread-self/ns/net", after, (size_t)size) > 0);
    CHECK_STR(after, before);
}
