/* expert_node/node.h - the control thread of an expert node: membership and holdings.
 *
 * Puts the rooms together - store (what is here), worker (what is answered) - and tells
 * the coordinator: JOINING until the first holdings come, LOADING until they are resident
 * and self-tested, READY from then on.  A node that is READY stays so while it loads more,
 * unless memory makes it give up experts first.
 *
 * DRAINING: it goes on answering until the coordinator says that nobody needs what it holds
 * any more, drain.timeout_ms have passed, or the coordinator is gone; then the loop stops.
 *
 * Log events: node.listening, weights.packing, expert.loading, expert.ready,
 * expert.holdings_refused, node.draining, node.drained. */
#pragma once

#include <stdbool.h>

#include "base/err.h"
#include "expert_node/config.h"
#include "rpc/loop.h"

struct node;
/* Opens everything and starts joining.  The caller runs the loop. */
struct auth; /* rpc/auth.h: the keys of this program; borrowed until node_close() */
int node_open(const struct expert_node_config *c, struct auth *auth, struct loop *l,
              struct node **out, struct err *e);
/* The node shall go; asked twice is asked once. */
void node_drain(struct node *n);
/* The coordinator wants it to be started again after its end. */
bool node_wants_restart(const struct node *n);
/* Says Leave and ends all threads. */
void node_close(struct node **n);
/* Why the loop was stopped: code 0 if it was not by the node itself (refused by the
 * coordinator, a checkpoint that cannot be read). */
const struct err *node_failure(const struct node *n);
