/* tests/unit/test_queue.c - order, fullness, and the descriptor that tells of both. */
#include "base/queue.h"

#include <poll.h>
#include <stdbool.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/thread.h"
#include "tests/lib/test.h"

static bool is_readable(const struct queue *q)
{
    struct pollfd p = {.fd = queue_fd(q), .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

TEST(queue_gives_back_in_order_and_says_when_full)
{
    struct queue *q = queue_new(3);
    int things[5];
    CHECK(queue_pop(q) == NULL && !is_readable(q));
    for (int round = 0; round < 4; round++) {
        void *item;
        for (int i = 0; i < 3; i++) {
            item = &things[i];
            CHECK_INT(queue_push(q, &item), 0);
            CHECK(item == NULL && is_readable(q));
        }
        item = &things[3];
        CHECK_INT(queue_push(q, &item), E_BUSY);
        CHECK(item == &things[3]);
        CHECK_INT(queue_len(q), 3);
        CHECK(queue_pop(q) == &things[0]);
        CHECK_INT(queue_push(q, &item), 0); /* the ring wraps */
        CHECK(queue_pop(q) == &things[1] && queue_pop(q) == &things[2]);
        CHECK(is_readable(q));
        CHECK(queue_pop(q) == &things[3]);
        CHECK(!is_readable(q));
    }
    queue_free(&q);
    CHECK(q == NULL);
}

TEST(queue_wait_ends_at_the_deadline)
{
    struct queue *q = queue_new(1);
    CHECK(queue_pop_wait(q, 0) == NULL);
    int64_t deadline_ns = clock_now_ns() + 20 * CLOCK_MS;
    CHECK(queue_pop_wait(q, deadline_ns) == NULL);
    CHECK(clock_now_ns() >= deadline_ns);
    queue_free(&q);
}

enum { N_ITEMS = 5000 };
static int payload[N_ITEMS];

static void produce(struct thread *t, void *arg)
{
    struct queue *q = arg;
    thread_ready(t, 0, NULL);
    for (int i = 0; i < N_ITEMS; i++) {
        payload[i] = i * 3; /* tsan checks that the consumer sees this */
        void *item = &payload[i];
        while (queue_push(q, &item) == E_BUSY)
            clock_sleep_until(0);
    }
}

TEST(queue_carries_between_two_threads)
{
    struct queue *q = queue_new(7);
    struct thread *t = NULL;
    CHECK_INT(thread_start("producer", produce, q, &t, NULL), 0);
    int64_t deadline_ns = clock_now_ns() + 50 * CLOCK_S;
    for (int i = 0; i < N_ITEMS; i++) {
        int *item = queue_pop_wait(q, deadline_ns);
        CHECK(item == &payload[i]);
        CHECK_INT(*item, i * 3);
    }
    thread_stop(&t, NULL, NULL);
    CHECK(!is_readable(q));
    queue_free(&q);
}
