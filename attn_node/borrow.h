/* attn_node/borrow.h - the memory of context nodes, as the engine thread uses it: who lends, a channel to
 * each, and the calls of engine/far.h over it.
 *
 * A node that lends is opened when its connection is there, and then is a place of the cache
 * (engine/kv.h).  Any call of it that fails, and a connection that breaks, is a loss: what it held is not
 * known any more, and parts of sequences are of no use.  The owner then forgets all sequences - they are
 * replayed from their tokens - and takes the places that are left anew.
 *
 * Owner: engine thread.  Log events: context.opened, context.refused, context.lost. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/far.h"
#include "model/config.h"
#include "model/format.h"
#include "rpc/wire.h"

struct borrow;
struct borrow_options {
    const struct model_config *config; /* borrowed */
    enum kv_format kv;
    uint64_t fingerprint;
    const char *name; /* of this node; copied */
    int max_rows, max_seqs;
    int64_t spin_ns;
    struct auth *auth; /* rpc/auth.h; borrowed; NULL: no keys */
};
struct borrow *borrow_new(const struct borrow_options *o);
void borrow_free(struct borrow **b);

/* Who lends to this node from now on, of a new table.  Nothing else changes before borrow_mind(). */
void borrow_install(struct borrow *b, const struct wire_table *t, uint32_t node_id);
/* Between steps: dials, opens, notices what broke; returns when to come again. */
int64_t borrow_mind(struct borrow *b, int64_t now_ns);
/* Whether something was lost since the last call; no place is in use afterwards. */
bool borrow_take_loss(struct borrow *b);
/* Pages of a node that is open and no place yet, which becomes this one; 0: there is none. */
int borrow_take_pages(struct borrow *b, int place);

void borrow_begin_step(struct borrow *b, uint64_t step, uint64_t trace_id, int64_t deadline_ns);
/* Why the step failed, if that was it: code 0 if not. */
const struct err *borrow_error(const struct borrow *b);
/* `ud` is a struct borrow. */
extern const struct far_ops borrow_ops;
