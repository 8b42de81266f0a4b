/* tests/unit/test_link.c - endpoints, and frames over real sockets. */
#include "rpc/link.h"

#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "rpc/endpoint.h"
#include "tests/lib/test.h"

#define PATIENCE_NS (20 * CLOCK_S)

static struct link *open_link(enum link_role role, const char *endpoint, size_t max_frame_bytes,
                              int high_water)
{
    struct link_options o = {.role = role,
                             .endpoint = endpoint,
                             .max_frame_bytes = max_frame_bytes,
                             .high_water = high_water};
    struct link *l = NULL;
    struct err e = {0};
    if (link_open(&o, &l, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return l;
}

static void wait_event(struct link *l, enum link_event want)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    enum link_event event;
    while ((event = link_next_event(l)) == LINK_NOTHING && clock_now_ns() < deadline_ns)
        link_wait(&l, 1, -1, deadline_ns, 0);
    CHECK_INT(event, want);
    CHECK(link_is_connected(l) == (want == LINK_CONNECTED));
}

static void receive(struct link *l, struct message *m)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    int rc;
    while ((rc = link_receive(l, m)) == E_AGAIN && clock_now_ns() < deadline_ns)
        link_wait(&l, 1, -1, deadline_ns, 0);
    CHECK_INT(rc, 0);
}

static int send_text(struct link *l, const struct message *to, const char *text)
{
    struct frame frame = {text, strlen(text)};
    struct link_send s = {.frames = &frame, .n_frames = 1};
    if (to) {
        s.peer = to->peer;
        s.peer_bytes = to->peer_bytes;
    }
    return link_send(l, &s);
}

static void check_endpoint(const char *text, enum link_role role, const char *want)
{
    struct endpoint p;
    struct err e = {0};
    if (endpoint_parse(text, role, &p, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_STR(p.text, want);
}

static void check_refused(const char *text, enum link_role role, const char *why)
{
    struct link_options o = {.role = role, .endpoint = text};
    struct link *l = NULL;
    struct err e = {0};
    CHECK_INT(link_open(&o, &l, &e), E_INVALID);
    CHECK(!l);
    CHECK_HAS(e.text, why);
}

TEST(link_understands_endpoints)
{
    check_endpoint("tcp://127.0.0.1:0", LINK_SERVER, "tcp://127.0.0.1:*");
    check_endpoint("tcp://localhost:*", LINK_SERVER, "tcp://127.0.0.1:*");
    check_endpoint("tcp://[::1]:70", LINK_SERVER, "tcp://[::1]:70");
    check_endpoint("tcp://127.8.9.10:65535", LINK_SERVER, "tcp://127.8.9.10:65535");
    check_endpoint("tcp://node-3.rack:5000", LINK_CLIENT, "tcp://node-3.rack:5000");
    check_endpoint("ipc://a.sock", LINK_CLIENT, "ipc://a.sock");
    check_refused(NULL, LINK_CLIENT, "missing");
    check_refused("", LINK_CLIENT, "missing");
    check_refused("udp://127.0.0.1:1", LINK_CLIENT, "must begin with");
    check_refused("tcp://127.0.0.1", LINK_CLIENT, "a port is missing");
    check_refused("tcp://", LINK_CLIENT, "port");
    check_refused("tcp://:80", LINK_CLIENT, "not a host");
    check_refused("tcp://127.0.0.1:65536", LINK_CLIENT, "not a port");
    check_refused("tcp://127.0.0.1:8o", LINK_CLIENT, "not a port");
    check_refused("tcp://127.0.0.1:0", LINK_CLIENT, "cannot be dialled");
    check_refused("tcp://*:80", LINK_CLIENT, "cannot be dialled");
    check_refused("tcp://::1:80", LINK_CLIENT, "in brackets");
    check_refused("tcp://a b:80", LINK_CLIENT, "not a host");
    check_refused("ipc://", LINK_SERVER, "a path is missing");
    check_refused("inproc://", LINK_SERVER, "a name is missing");
    char text[LINK_ENDPOINT_BYTES + 32];
    memset(text, 'x', sizeof(text));
    memcpy(text, "ipc://", 6);
    text[LINK_ENDPOINT_BYTES + 8] = '\0';
    check_refused(text, LINK_SERVER, "too long");
    text[6 + 110] = '\0';
    check_refused(text, LINK_SERVER, "too long for a socket");
}

TEST(link_binds_nothing_but_loopback)
{
    static const char *const open_ones[] = {
        "tcp://0.0.0.0:0",   "tcp://*:0",    "tcp://10.0.0.1:0", "tcp://[::]:0",
        "tcp://[fe80::1]:0", "tcp://eth0:0", "tcp://128.0.0.1:0"};
    for (size_t i = 0; i < sizeof(open_ones) / sizeof(open_ones[0]); i++)
        check_refused(open_ones[i], LINK_SERVER, "not encrypted");
}

TEST(link_says_when_an_address_is_in_use)
{
    struct link *first = open_link(LINK_SERVER, "tcp://127.0.0.1:0", 0, 0);
    CHECK(strcmp(link_endpoint(first), "tcp://127.0.0.1:0") != 0);
    struct link *by_path = open_link(LINK_SERVER, "ipc://taken.sock", 0, 0);
    struct link *by_name = open_link(LINK_SERVER, "inproc://taken", 0, 0);
    const char *const taken[] = {link_endpoint(first), "ipc://taken.sock", "inproc://taken"};
    for (int i = 0; i < 3; i++) {
        struct link_options o = {.role = LINK_SERVER, .endpoint = taken[i]};
        struct link *second = NULL;
        struct err e = {0};
        CHECK_INT(link_open(&o, &second, &e), E_EXISTS);
        CHECK_HAS(e.text, taken[i]);
    }
    link_close(&first);
    link_close(&by_path);
    link_close(&by_name);
    /* A file that nobody listens on is in nobody's way. */
    FILE *f = fopen("stale.sock", "w");
    CHECK(f);
    fclose(f);
    struct link *again = open_link(LINK_SERVER, "ipc://stale.sock", 0, 0);
    link_close(&again);
}

TEST(link_inproc_meets_in_either_order)
{
    struct link *client = open_link(LINK_CLIENT, "inproc://early", 0, 0);
    CHECK(link_is_connected(client));
    CHECK_INT(link_next_event(client), LINK_CONNECTED);
    CHECK_INT(link_next_event(client), LINK_NOTHING);
    CHECK_INT(send_text(client, NULL, "before you"), 0);
    struct link *server = open_link(LINK_SERVER, "inproc://early", 0, 0);
    struct message m = {0};
    receive(server, &m);
    CHECK_INT(m.n_frames, 1);
    CHECK_BYTES(m.frames[0].data, "before you", 10);
    CHECK_INT(send_text(server, &m, "welcome"), 0);
    struct message reply = {0};
    receive(client, &reply);
    CHECK_BYTES(reply.frames[0].data, "welcome", 7);
    message_fini(&m);
    /* A message may outlive its link. */
    link_close(&client);
    CHECK_BYTES(reply.frames[0].data, "welcome", 7);
    message_fini(&reply);
    message_fini(&reply); /* all-zero is empty */
    link_close(&server);
}

TEST(link_counts_and_reports_its_connection)
{
    struct link *server = open_link(LINK_SERVER, "tcp://127.0.0.1:0", 0, 0);
    char endpoint[LINK_ENDPOINT_BYTES];
    snprintf(endpoint, sizeof(endpoint), "%s", link_endpoint(server));
    struct link *client = open_link(LINK_CLIENT, endpoint, 0, 0);
    CHECK(!link_is_connected(client));
    CHECK_INT(send_text(client, NULL, "too early"), E_UNAVAILABLE);
    wait_event(client, LINK_CONNECTED);
    CHECK_INT(send_text(client, NULL, "hello"), 0);
    struct message m = {0};
    receive(server, &m);
    struct link_counters n;
    link_count(client, &n);
    CHECK_INT(n.sent_messages, 1);
    CHECK_INT(n.sent_bytes, 5);
    link_count(server, &n);
    CHECK_INT(n.received_messages, 1);
    link_close(&server);
    wait_event(client, LINK_DISCONNECTED);
    CHECK_INT(send_text(client, NULL, "too late"), E_UNAVAILABLE);
    server = open_link(LINK_SERVER, endpoint, 0, 0);
    wait_event(client, LINK_CONNECTED);
    /* The old connection's name is worth nothing now. */
    CHECK_INT(send_text(server, &m, "who?"), E_UNAVAILABLE);
    message_fini(&m);
    link_close(&client);
    link_close(&server);
}

TEST(link_refuses_messages_of_too_many_frames_and_goes_on)
{
    struct link *server = open_link(LINK_SERVER, "inproc://many", 0, 0);
    struct link *client = open_link(LINK_CLIENT, "inproc://many", 0, 0);
    struct frame frames[40];
    for (int i = 0; i < 40; i++)
        frames[i] = (struct frame){"frame", 5};
    static const int counts[] = {LINK_MAX_FRAMES + 1, LINK_MAX_FRAMES + 2, 40, LINK_MAX_FRAMES};
    for (int i = 0; i < 4; i++)
        CHECK_INT(link_send(client, &(struct link_send){.frames = frames, .n_frames = counts[i]}),
                  0);
    struct message m = {0};
    receive(server, &m);
    CHECK_INT(m.n_frames, LINK_MAX_FRAMES);
    struct link_counters n;
    link_count(server, &n);
    CHECK_INT(n.refused_messages, 3);
    message_fini(&m);
    CHECK_INT(link_receive(server, &m), E_AGAIN);
    link_close(&client);
    link_close(&server);
}

TEST(link_drops_only_the_sender_of_an_oversized_frame)
{
    struct link *server = open_link(LINK_SERVER, "tcp://127.0.0.1:0", 1000, 0);
    struct link *bad = open_link(LINK_CLIENT, link_endpoint(server), 0, 0);
    struct link *good = open_link(LINK_CLIENT, link_endpoint(server), 0, 0);
    wait_event(bad, LINK_CONNECTED);
    wait_event(good, LINK_CONNECTED);
    static const char large[1001];
    struct frame frame = {large, sizeof(large)};
    CHECK_INT(link_send(bad, &(struct link_send){.frames = &frame, .n_frames = 1}), 0);
    wait_event(bad, LINK_DISCONNECTED);
    CHECK_INT(link_next_event(good), LINK_NOTHING);
    frame.size_bytes = 1000;
    CHECK_INT(link_send(good, &(struct link_send){.frames = &frame, .n_frames = 1}), 0);
    struct message m = {0};
    receive(server, &m);
    CHECK_INT(m.frames[0].size_bytes, 1000);
    message_fini(&m);
    link_close(&bad);
    link_close(&good);
    link_close(&server);
}

TEST(link_at_its_high_water_mark_is_busy)
{
    struct link *server = open_link(LINK_SERVER, "inproc://slow", 0, 4);
    struct link *client = open_link(LINK_CLIENT, "inproc://slow", 0, 4);
    CHECK_INT(send_text(client, NULL, "hello"), 0);
    struct message m = {0};
    receive(server, &m);
    int n = 0, rc;
    while ((rc = send_text(server, &m, "x")) == 0 && n < 100)
        n++;
    CHECK_INT(rc, E_BUSY);
    CHECK_INT(n, 8); /* inproc adds up both sides' marks */
    struct message reply = {0};
    for (int i = 0; i < 8; i++) {
        receive(client, &reply);
        message_fini(&reply);
    }
    CHECK_INT(send_text(server, &m, "x"), 0);
    message_fini(&m);
    link_close(&client);
    link_close(&server);
}

/* libzmq 4.3.4 aborts the process when a heartbeat is due on a connection that broke while nobody
 * took what had come over it: whoever is busy for long must not be killed by a peer that dies. */
TEST(link_server_that_is_busy_survives_a_peer_that_floods_it_and_goes)
{
    enum { FLOOD = 64, BYTES = 16 << 10, BUSY_MS = 1300 };
    static char bytes[BYTES];
    struct link *server = open_link(LINK_SERVER, "ipc://flood.sock", 0, 4);
    struct link *client = open_link(LINK_CLIENT, "ipc://flood.sock", 0, FLOOD);
    struct frame frame = {bytes, BYTES};
    struct link_send s = {.frames = &frame, .n_frames = 1};
    struct message m = {0};
    wait_event(client, LINK_CONNECTED);
    for (int i = 0; i < FLOOD; i++)
        link_send(client, &s);
    link_close(&client);
    clock_sleep_until(clock_now_ns() + BUSY_MS * CLOCK_MS);
    receive(server, &m);
    message_fini(&m);
    link_close(&server);
}

TEST(link_wait_keeps_its_deadline_and_sees_what_is_there)
{
    struct link *server = open_link(LINK_SERVER, "inproc://wait", 0, 0);
    struct link *client = open_link(LINK_CLIENT, "inproc://wait", 0, 0);
    CHECK_INT(link_next_event(client), LINK_CONNECTED);
    int64_t before_ns = clock_now_ns();
    link_wait(&client, 1, -1, before_ns + 20 * CLOCK_MS, 5 * CLOCK_MS);
    CHECK(clock_now_ns() >= before_ns + 20 * CLOCK_MS);
    /* Two messages, one taken: the second must not wait for another wake-up. */
    CHECK_INT(send_text(client, NULL, "one"), 0);
    CHECK_INT(send_text(client, NULL, "two"), 0);
    struct message m = {0};
    receive(server, &m);
    message_fini(&m);
    before_ns = clock_now_ns();
    link_wait(&server, 1, -1, before_ns + PATIENCE_NS, 0);
    CHECK(clock_now_ns() < before_ns + PATIENCE_NS);
    CHECK_INT(link_receive(server, &m), 0);
    message_fini(&m);
    int fd = eventfd(1, EFD_CLOEXEC);
    for (int64_t spin_ns = 0; spin_ns <= CLOCK_S; spin_ns += CLOCK_S) {
        before_ns = clock_now_ns();
        link_wait(&server, 1, fd, before_ns + PATIENCE_NS, spin_ns);
        CHECK(clock_now_ns() < before_ns + PATIENCE_NS);
    }
    close(fd);
    link_close(&client);
    link_close(&server);
}

/* A server in a process of its own that takes what comes until it is killed. */
static pid_t start_taker(void)
{
    pid_t parent = getpid(), child = fork();
    CHECK(child >= 0);
    if (child > 0)
        return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(0);
    struct link *server = open_link(LINK_SERVER, "ipc://taker.sock", 0, 0);
    for (struct message m = {0};;) {
        link_wait(&server, 1, -1, CLOCK_NEVER, 0);
        while (link_receive(server, &m) == 0)
            message_fini(&m);
    }
}

/* So that a link is in the middle of its messages. */
static void send_more_than_fits(struct link *l)
{
    struct blob *blobs[8];
    for (int i = 0; i < 8; i++) {
        blobs[i] = blob_new(20000);
        memset(blobs[i]->data, i, blobs[i]->size_bytes);
    }
    for (int i = 0; i < 100; i++)
        CHECK_INT(link_send(l, &(struct link_send){.blobs = blobs, .n_blobs = 8}), 0);
    for (int i = 0; i < 8; i++)
        blob_unref(&blobs[i]);
}

/* Closes a link in the middle of its messages, at about the time at which the peer dies. */
static void close_while_the_peer_dies(void *ud)
{
    struct rng *r = ud;
    pid_t taker = start_taker(); /* before this process has a context of its own */
    struct link *l = open_link(LINK_CLIENT, "ipc://taker.sock", 0, 100);
    wait_event(l, LINK_CONNECTED);
    send_more_than_fits(l);
    clock_sleep_until(clock_now_ns() + (int64_t)rng_below(r, 2000) * CLOCK_US);
    if (rng_below(r, 2)) {
        kill(taker, SIGKILL);
        link_close(&l);
    } else {
        link_close(&l);
        kill(taker, SIGKILL);
    }
    waitpid(taker, NULL, 0);
    /* libzmq's thread goes on; nothing tells when it is through with the link. */
    clock_sleep_until(clock_now_ns() + 20 * CLOCK_MS);
}

/* The same with a peer that hangs, and dies while this process stands still for a moment (a stolen CPU): after
 * that libzmq must not find at once that the time is over that a closed link has, and that a message of
 * which the peer has a half goes nowhere. */
static void pause_while_the_peer_dies(void *ud)
{
    (void)ud;
    pid_t taker = start_taker();
    struct link *l = open_link(LINK_CLIENT, "ipc://taker.sock", 0, 100);
    wait_event(l, LINK_CONNECTED);
    CHECK_INT(kill(taker, SIGSTOP), 0);
    send_more_than_fits(l);
    pid_t me = getpid(), stall = fork();
    CHECK(stall >= 0);
    if (stall == 0) {
        clock_sleep_until(clock_now_ns() + 50 * CLOCK_MS);
        kill(me, SIGSTOP);
        kill(taker, SIGKILL);
        clock_sleep_until(clock_now_ns() + 400 * CLOCK_MS);
        kill(me, SIGCONT);
        _exit(0);
    }
    link_close(&l);
    waitpid(stall, NULL, 0);
    waitpid(taker, NULL, 0);
    clock_sleep_until(clock_now_ns() + 50 * CLOCK_MS);
}

TEST(link_close_survives_a_peer_that_dies_while_we_stand_still)
{
    struct test_end end = test_run_apart(pause_while_the_peer_dies, NULL);
    CHECK_STR(end.output, "");
    CHECK_INT(end.signal, 0);
}

TEST(link_close_survives_a_peer_that_dies)
{
    struct rng r = test_rng();
    for (int i = 0; i < (test_is_slow_build() ? 5 : 40); i++) {
        struct test_end end = test_run_apart(close_while_the_peer_dies, &r);
        CHECK_STR(end.output, "");
        CHECK_INT(end.signal, 0);
        rng_next(&r);
    }
}
