/* coordinator/hub.h - where the coordinator's two faces meet: clients on HTTP, nodes on the
 * Cluster service and the attention sides.  I/O becomes events for the pure modules
 * (members, placement, sched), and their actions become I/O.
 *
 * Log events (tools wait for the first four): http.ready, cluster.listening,
 * cluster.ready, cluster.not_ready; node.joined, node.refused, node.gone, node.ready,
 * attention.up, attention.down, attention.unusable, request.replayed, request.failed,
 * hub.draining; node.draining, node.drain_asked, node.trust, placement.uncovered,
 * placement.settled.
 *
 * Owner: coordinator loop. */
#pragma once

#include "base/err.h"
#include "coordinator/config.h"
#include "rpc/loop.h"

struct hub;

/* Where the embedded attention side joins, beside cluster.listen. */
#define HUB_INPROC_CLUSTER "inproc://cluster"

/* Reads the model's configuration and words, binds, and serves from then on. */
struct auth; /* rpc/auth.h: the keys of this program; borrowed until hub_close() */
int hub_open(struct loop *l, const struct coordinator_config *c, struct auth *auth,
             struct hub **out, struct err *e);
void hub_close(struct hub **h);
/* No new requests; the loop stops when the running ones are done or http.drain_ms is over. */
void hub_drain(struct hub *h);

/* Why the loop has stopped. */
enum hub_end {
    HUB_ENDED,  /* drained */
    HUB_BROKEN, /* it leads, but cannot: hub_end_text() */
    HUB_ANEW,   /* another coordinator leads: nothing of this one's state may be used any more, not
                   even to close it; the program begins anew, as a standby */
};
enum hub_end hub_end(const struct hub *h);
const char *hub_end_text(const struct hub *h);
