/* attn_node/moe_remote.h - the expert half of a layer over the wire (steps 8, 9 and 11).
 *
 * Drives round.c with real channels and deadlines: one channel per expert node, one Forward
 * per parcel, posted to all nodes before any answer is awaited.  What goes wrong is mended
 * inside the layer (cluster.md 4): lost and late parcels are asked elsewhere, slow ones are
 * hedged, and a round whose experts are nowhere waits for a table.
 *
 * Owner: engine thread.  Log events: moe.table, moe.table_refused, round.waiting,
 * round.left_out, verify.mismatch, and those of expert_peers.h. */
#pragma once

#include <stdint.h>

#include "attn_node/ladder.h"
#include "base/err.h"
#include "engine/forward.h"
#include "rpc/wire.h"

struct moe_remote_options {
    const struct kernels *kernels;
    int n_layers, n_experts, top_k, hidden, max_rows;
    int n_lanes; /* that steps may have: rounds that may be out at a time */
    int group;   /* format_group() of the experts: the form in which rows are sent */
    enum combine_mode mode;
    uint64_t fingerprint;
    int64_t call_timeout_ns, spin_ns;
    struct ladder ladder;
    struct auth *auth;         /* borrowed; NULL: no keys */
    struct observer *observer; /* borrowed; NULL: nobody watches */
    /* Optional: a round that waits looks for tables.  take_tables() installs those that there
     * are, and says whether to go on waiting; `tables_fd` is readable when there are some (-1:
     * none). */
    int tables_fd;
    bool (*take_tables)(void *ud);
    /* Optional: these nodes' connections are broken now (incarnations, n of them); told when that
     * has changed.  false: not now; it is told again in the next turn. */
    bool (*tell_broken)(void *ud, const uint64_t *incarnations, uint32_t n);
    void *ud;
};

struct moe_remote;
struct moe_remote *moe_remote_new(const struct moe_remote_options *o);
/* Ends open calls and closes the channels. */
void moe_remote_free(struct moe_remote **m);

/* A table in one allocation, freed with mem_free(); for handing it to the engine thread. */
struct wire_table *moe_remote_copy_table(const struct wire_table *t);
/* Takes the table; between steps, or from take_tables().  Channels to nodes that stay (same
 * endpoint, same incarnation) stay open.  E_INVALID: a table for another model; the old one
 * stays. */
int moe_remote_install(struct moe_remote *m, struct wire_table **t, struct err *e);
/* Of the table in use; 0 before the first. */
uint64_t moe_remote_epoch(const struct moe_remote *m);

/* Names the step that follows and bounds its waits; forgets the last step's error and time.
 * `trace_id` goes with its calls; 0: it is not traced. */
void moe_remote_begin_step(struct moe_remote *m, uint64_t step, uint64_t trace_id,
                           int64_t deadline_ns);
/* For forward_step(), with the moe_remote as `ud`. */
extern const struct moe_ops moe_remote_ops;
/* Why the step failed; code 0 if it was not the experts. */
const struct err *moe_remote_error(const struct moe_remote *m);
/* The step failed because nodes gave other bits for the same row: E_ABORTED, whoever was wrong is
 * asked nothing more and the same step may be computed again at once; E_UNAVAILABLE, nobody knows
 * who was, and neither is asked until the coordinator has had them tested. */
bool moe_remote_is_disputed(const struct moe_remote *m);
/* Time of this step between scatter and the end of gather; where two lanes overlap only what is spent
 * in those. */
int64_t moe_remote_experts_ns(const struct moe_remote *m);
/* Selections that were left out of this step (degraded mode). */
int moe_remote_left_out(const struct moe_remote *m);
/* Since the start. */
const struct wire_ladder_counters *moe_remote_counters(const struct moe_remote *m);
/* Nodes that something is to be said about (trouble since the start, or not well now), at most
 * `most`; returns how many. */
uint32_t moe_remote_node_health(const struct moe_remote *m, struct wire_node_health *out,
                                uint32_t most);

/* The nodes' traffic since the last call, of those that had any; at most `most`. */
uint32_t moe_remote_take_traffic(struct moe_remote *m, struct wire_node_traffic *out,
                                 uint32_t most);

/* Keeps the channels alive between steps, until `fd` is readable or the deadline. */
void moe_remote_wait(struct moe_remote *m, int fd, int64_t deadline_ns);
