/* base/queue.c - a ring under a mutex, with an eventfd that is readable exactly while the
 * ring holds something.
 *
 * Invariant, kept under the mutex: the eventfd's count is 1 if n_items > 0, else 0.  So a
 * poller never sleeps on a full queue and never spins on an empty one. */
#include "base/queue.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/must.h"

struct queue {
    pthread_mutex_t lock;
    int fd;
    int capacity, n_items, first;
    void **items;
};

/* Longest single poll(2); a wait for longer polls again. */
enum { QUEUE_POLL_MS = 60 * 1000 };

struct queue *queue_new(int capacity)
{
    must(capacity > 0);
    struct queue *q = mem_alloc(sizeof(*q));
    q->items = mem_array((size_t)capacity, sizeof(*q->items));
    q->capacity = capacity;
    must_zero(pthread_mutex_init(&q->lock, NULL));
    q->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    must(q->fd >= 0);
    return q;
}

void queue_free(struct queue **queue)
{
    struct queue *q = *queue;
    if (!q)
        return;
    *queue = NULL;
    must(queue_len(q) == 0);
    must_zero(pthread_mutex_destroy(&q->lock));
    close(q->fd);
    mem_free(q->items);
    mem_free(q);
}

static void signal_filled(struct queue *q)
{
    uint64_t one = 1;
    must(write(q->fd, &one, sizeof(one)) == (ssize_t)sizeof(one));
}

static void signal_drained(struct queue *q)
{
    uint64_t count;
    must(read(q->fd, &count, sizeof(count)) == (ssize_t)sizeof(count) && count == 1);
}

int queue_push(struct queue *q, void **item)
{
    must(*item != NULL);
    int rc = E_BUSY;
    must_zero(pthread_mutex_lock(&q->lock));
    if (q->n_items < q->capacity) {
        q->items[(q->first + q->n_items) % q->capacity] = *item;
        *item = NULL;
        if (q->n_items++ == 0)
            signal_filled(q);
        rc = 0;
    }
    must_zero(pthread_mutex_unlock(&q->lock));
    return rc;
}

void *queue_pop(struct queue *q)
{
    void *item = NULL;
    must_zero(pthread_mutex_lock(&q->lock));
    if (q->n_items > 0) {
        item = q->items[q->first];
        q->first = (q->first + 1) % q->capacity;
        if (--q->n_items == 0)
            signal_drained(q);
    }
    must_zero(pthread_mutex_unlock(&q->lock));
    return item;
}

void *queue_pop_wait(struct queue *q, int64_t deadline_ns)
{
    for (;;) {
        void *item = queue_pop(q);
        if (item)
            return item;
        int left_ms = clock_left_ms(deadline_ns, clock_now_ns(), QUEUE_POLL_MS);
        if (left_ms == 0)
            return NULL;
        struct pollfd p = {.fd = q->fd, .events = POLLIN};
        must(poll(&p, 1, left_ms) >= 0 || errno == EINTR);
    }
}

int queue_fd(const struct queue *q)
{
    return q->fd;
}

int queue_len(struct queue *q)
{
    must_zero(pthread_mutex_lock(&q->lock));
    int n = q->n_items;
    must_zero(pthread_mutex_unlock(&q->lock));
    return n;
}
