/* attn_node/lender.h - a node that lends its memory for other sides' contexts: its control thread, which is
 * the caller's.  Membership as a context node (it takes no sequences and no experts), and the worker
 * beside it (lender_worker.h).  The checkpoint is read for its config and fingerprint; no weights are loaded.
 *
 * DRAINING: it goes on answering until the coordinator says that nobody has its memory any more,
 * drain.timeout_ms have passed, or the coordinator is gone; then the loop stops.
 *
 * Log events: node.listening, node.draining, node.drained. */
#pragma once

#include <stdbool.h>

#include "attn_node/side.h"
#include "base/err.h"
#include "rpc/loop.h"

struct lender;
/* Opens everything and starts joining; the caller runs the loop.  Of the configuration counts what is about
 * the node, the KV cache and the size of steps; kv_bytes 0: three quarters of the memory that is free.
 * `config` is borrowed until lender_close(). */
int lender_open(const struct side_config *config, struct loop *l, struct lender **out,
                struct err *e);
/* The node shall go; asked twice is asked once. */
void lender_drain(struct lender *l);
/* The coordinator wants it to be started again after its end. */
bool lender_wants_restart(const struct lender *l);
/* Says Leave and ends the worker. */
void lender_close(struct lender **l);
/* Why the loop was stopped: code 0 if it was not because the coordinator refused this node. */
const struct err *lender_failure(const struct lender *l);
