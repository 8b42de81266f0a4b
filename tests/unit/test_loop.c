/* tests/unit/test_loop.c - turns, timers, and callbacks that change the loop. */
#include "rpc/loop.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/lib/test.h"

struct room {
    struct loop *loop;
    int fd, other_fd;
    int n_fd, n_other, n_timer, order, timer_order, fd_order;
    struct loop_timer timer;
    struct link *server;
    int n_messages;
};

static void on_timer(void *ud, int64_t now_ns)
{
    struct room *r = ud;
    CHECK(now_ns >= 0);
    r->n_timer++;
    r->timer_order = ++r->order;
}

static void on_fd(void *ud, int64_t now_ns)
{
    (void)now_ns;
    struct room *r = ud;
    r->n_fd++;
    r->fd_order = ++r->order;
}

static void on_other(void *ud, int64_t now_ns)
{
    (void)now_ns;
    struct room *r = ud;
    r->n_other++;
}

static void open_room(struct room *r)
{
    *r = (struct room){.fd = eventfd(0, EFD_NONBLOCK), .other_fd = eventfd(0, EFD_NONBLOCK)};
    r->timer = (struct loop_timer){.cb = on_timer, .ud = r};
    CHECK_INT(loop_open(&r->loop, NULL), 0);
}

static void close_room(struct room *r)
{
    loop_close(&r->loop);
    close(r->fd);
    close(r->other_fd);
}

TEST(loop_timer_runs_once_at_its_deadline)
{
    struct room r;
    open_room(&r);
    int64_t before_ns = clock_now_ns();
    loop_set_timer(r.loop, &r.timer, before_ns + 15 * CLOCK_MS);
    while (r.n_timer == 0)
        loop_turn(r.loop, CLOCK_NEVER);
    CHECK(clock_now_ns() >= before_ns + 15 * CLOCK_MS);
    CHECK_INT(r.timer.deadline_ns, CLOCK_NEVER);
    loop_turn(r.loop, clock_now_ns());
    CHECK_INT(r.n_timer, 1);
    loop_set_timer(r.loop, &r.timer, 0);
    loop_remove_timer(r.loop, &r.timer);
    CHECK(!r.timer.added);
    loop_turn(r.loop, clock_now_ns());
    CHECK_INT(r.n_timer, 1);
    close_room(&r);
}

TEST(loop_calls_back_while_a_descriptor_is_readable)
{
    struct room r;
    open_room(&r);
    loop_add_fd(r.loop, r.fd, on_fd, &r);
    loop_add_fd(r.loop, r.other_fd, on_other, &r);
    loop_turn(r.loop, clock_now_ns());
    CHECK_INT(r.n_fd, 0);
    CHECK_INT(eventfd_write(r.fd, 1), 0);
    loop_turn(r.loop, CLOCK_NEVER);
    loop_turn(r.loop, CLOCK_NEVER); /* nobody read it */
    CHECK_INT(r.n_fd, 2);
    CHECK_INT(r.n_other, 0);
    loop_set_timer(r.loop, &r.timer, 0);
    loop_turn(r.loop, CLOCK_NEVER);
    CHECK(r.timer_order < r.fd_order);
    loop_remove_fd(r.loop, r.fd);
    loop_turn(r.loop, clock_now_ns());
    CHECK_INT(r.n_fd, 3);
    close_room(&r);
}

/* Removes itself and its neighbour, adds itself again, sets the timer: all in one turn. */
static void rearrange(void *ud, int64_t now_ns)
{
    struct room *r = ud;
    r->n_fd++;
    loop_remove_fd(r->loop, r->fd);
    loop_remove_fd(r->loop, r->other_fd);
    loop_add_fd(r->loop, r->fd, on_fd, r);
    for (int i = 0; i < 40; i++)
        loop_add_fd(r->loop, r->other_fd, on_other, r); /* moves the array */
    loop_remove_fd(r->loop, r->other_fd);
    loop_set_timer(r->loop, &r->timer, now_ns);
}

TEST(loop_survives_callbacks_that_rearrange_it)
{
    struct room r;
    open_room(&r);
    loop_add_fd(r.loop, r.fd, rearrange, &r);
    loop_add_fd(r.loop, r.other_fd, on_other, &r);
    CHECK_INT(eventfd_write(r.fd, 1), 0);
    CHECK_INT(eventfd_write(r.other_fd, 1), 0);
    loop_turn(r.loop, CLOCK_NEVER);
    CHECK_INT(r.n_fd, 1);
    CHECK_INT(r.n_other, 0); /* removed before its turn */
    CHECK_INT(r.n_timer, 0); /* timers had their turn */
    loop_turn(r.loop, CLOCK_NEVER);
    CHECK_INT(r.n_timer, 1);
    CHECK_INT(r.n_fd, 2); /* by on_fd now */
    CHECK_INT(r.fd_order, 2);
    close_room(&r);
}

static void set_again(void *ud, int64_t now_ns)
{
    struct room *r = ud;
    if (++r->n_timer == 3)
        loop_stop(r->loop);
    loop_set_timer(r->loop, &r->timer, now_ns + CLOCK_MS);
}

TEST(loop_runs_until_it_is_stopped)
{
    struct room r;
    open_room(&r);
    r.timer.cb = set_again;
    loop_set_timer(r.loop, &r.timer, 0);
    loop_run(r.loop);
    CHECK_INT(r.n_timer, 3);
    close_room(&r);
    CHECK(!r.timer.added); /* the loop is gone, the timer may go to another */
}

/* Takes one message of two per turn: level, not edge, is what the loop must see. */
static void take_one(void *ud, int64_t now_ns)
{
    (void)now_ns;
    struct room *r = ud;
    struct message m;
    if (link_receive(r->server, &m) < 0)
        return;
    r->n_messages++;
    message_fini(&m);
}

TEST(loop_comes_back_to_a_link_with_a_message_left)
{
    struct room r;
    open_room(&r);
    struct link_options o = {.role = LINK_SERVER, .endpoint = "inproc://loop"};
    CHECK_INT(link_open(&o, &r.server, NULL), 0);
    o.role = LINK_CLIENT;
    struct link *client = NULL;
    CHECK_INT(link_open(&o, &client, NULL), 0);
    loop_add_link(r.loop, r.server, take_one, &r);
    struct frame frame = {"x", 1};
    for (int i = 0; i < 2; i++)
        CHECK_INT(link_send(client, &(struct link_send){.frames = &frame, .n_frames = 1}), 0);
    while (r.n_messages < 2)
        loop_turn(r.loop, CLOCK_NEVER);
    loop_remove_link(r.loop, r.server);
    link_close(&client);
    link_close(&r.server);
    close_room(&r);
}
