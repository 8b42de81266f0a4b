/* attn_node/forward_call.h - one parcel as one Forward: its frames, and the call (step 9).
 *
 * Owner: engine thread. */
#pragma once

#include "attn_node/round.h"
#include "rpc/channel.h"
#include "rpc/wire.h"

struct forward_calls {
    uint64_t fingerprint;
    int hidden, group; /* format_group() of the experts: the form in which rows are sent */
    struct blob_pool *route_blobs, *row_blobs;
    struct buf message;
};
/* Room for parcels of up to max_rows rows; beyond a few at a time the heap serves. */
void forward_calls_init(struct forward_calls *f, int max_rows, int top_k);
void forward_calls_fini(struct forward_calls *f);

/* What a parcel is a part of. */
struct forward_about {
    uint64_t epoch, step;
    int layer, lane;
};
/* The request's header, which the reply must match. */
struct wire_forward forward_describe(const struct forward_calls *f, const struct forward_about *a,
                                     const struct round_parcel *p);
struct forward_request {
    struct forward_about about;
    const struct round_parcel *parcel;
    const struct rows *rows; /* of the round; the parcel picks */
    int64_t deadline_ns;
    uint64_t trace_id;
    reply_callback *done;
    void *ud;
};
/* As channel_call(); `bytes` are those of the payloads. */
int forward_send(struct forward_calls *f, struct channel *c, const struct forward_request *r,
                 uint64_t *call_id, uint64_t *bytes);
