/* attn_node/inquiry.h - after a dispute: everybody is asked again, and verify.h judges.
 *
 * Rare and unhurried: blocks until all have answered or the deadline, and allocates.
 *
 * Owner: engine thread. */
#pragma once

#include "attn_node/expert_peers.h"
#include "attn_node/forward_call.h"
#include "attn_node/verify.h"

struct inquiry {
    struct forward_calls *calls;
    struct expert_peers *peers;
    const struct wire_table *table; /* the peers' */
    const struct moe_rows *rows;    /* the round's */
    struct forward_about about;
    int64_t deadline_ns;
};
/* No other call may be open at the peers' channels whose callback minds being run here. */
struct verify_verdict inquiry_run(const struct inquiry *q, const struct round_dispute *d);
