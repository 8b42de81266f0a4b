/* rpc/loop.h - one thread's event loop: links, channels' and servers' links, descriptors,
 * queues and timers.  Owner: the thread that opened it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "rpc/link.h"

struct loop;
typedef void loop_callback(void *ud, int64_t now_ns);

int loop_open(struct loop **out, struct err *e);
void loop_close(struct loop **l);

/* Calls back in every turn in which the link may have a message or an event. */
void loop_add_link(struct loop *l, struct link *link, loop_callback *cb, void *ud);
void loop_remove_link(struct loop *l, struct link *link);
/* Calls back while the descriptor is readable. */
void loop_add_fd(struct loop *l, int fd, loop_callback *cb, void *ud);
void loop_remove_fd(struct loop *l, int fd);
/* A timer object; the callback runs once at its deadline and must set it again. */
struct loop_timer {
    int64_t deadline_ns; /* CLOCK_NEVER: off */
    loop_callback *cb;
    void *ud;
    bool added;
};
void loop_set_timer(struct loop *l, struct loop_timer *t, int64_t deadline_ns);
void loop_remove_timer(struct loop *l, struct loop_timer *t);

/* Called in every turn after the wait and before anything else; NULL: nobody. */
void loop_set_gate(struct loop *l, loop_callback *cb, void *ud);

/* One turn: waits for the next event or timer, at most until deadline_ns. */
void loop_turn(struct loop *l, int64_t deadline_ns);
/* Turns until loop_stop() (callable from a callback). */
void loop_run(struct loop *l);
void loop_stop(struct loop *l);
