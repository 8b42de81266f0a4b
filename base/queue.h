/* base/queue.h - a bounded queue of pointers between threads, with a descriptor to poll on.
 *
 * What is pushed belongs to the queue, what is popped belongs to the popper.  Full is an
 * answer (E_BUSY), never a wait. */
#pragma once

#include <stdint.h>

struct queue;

struct queue *queue_new(int capacity);
/* The queue must be empty: whoever filled it knows how to free what is in it. */
void queue_free(struct queue **q);
/* Takes *item and sets it to NULL.  On E_BUSY the item stays the caller's, because the
 * caller's remedy is to answer its sender with it. */
int queue_push(struct queue *q, void **item);
/* The oldest item, or NULL; never waits. */
void *queue_pop(struct queue *q);
/* The oldest item, or NULL at the deadline. */
void *queue_pop_wait(struct queue *q, int64_t deadline_ns);
/* Readable (POLLIN) while the queue holds something.  Owned by the queue. */
int queue_fd(const struct queue *q);
int queue_len(struct queue *q);
