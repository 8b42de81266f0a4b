/* coordinator/embed.h - the attention side inside the coordinator's process.
 *
 * Starting it means loading weights, which takes seconds to minutes, so that happens on a
 * thread of its own while HTTP and Cluster answer already.  From then on the side is a
 * member like any other, over inproc://.
 *
 * Owner: coordinator loop.  Log event: attention.started. */
#pragma once

#include "base/err.h"
#include "coordinator/config.h"
#include "rpc/loop.h"

struct embed;

struct auth;
struct embed_options {
    const struct coordinator_config *config;
    struct auth *auth; /* rpc/auth.h; borrowed until embed_stop(); NULL: no keys */
    /* Runs on the loop if the side cannot start or is refused; the program should end. */
    void (*on_failed)(void *ud, const struct err *e);
    void *ud;
};
int embed_start(struct loop *l, const struct embed_options *o, struct embed **out, struct err *e);
/* false while weights are still being loaded, which nothing can interrupt. */
bool embed_can_stop(const struct embed *m);
/* The process ends before the load does. */
void embed_abandon(struct embed *m);
/* Waits for a load in progress. */
void embed_stop(struct embed **m);
