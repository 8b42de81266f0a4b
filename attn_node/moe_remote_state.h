/* attn_node/moe_remote_state.h - the state of rounds on the wire, shared by moe_remote*.c only:
 * moe_remote.c has the round from scatter to the end of gather, moe_remote_calls.c the calls of its
 * parcels and their answers, moe_remote_mend.c what is asked elsewhere or waited for, and
 * moe_remote_nodes.c the table and what is known and told of its nodes. */
#pragma once

#include "attn_node/expert_peers.h"
#include "attn_node/forward_call.h"
#include "attn_node/moe_remote.h"
#include "attn_node/round.h"
#include "engine/lanes.h"

/* One call of one round. */
struct moe_trip {
    struct moe_remote *moe;
    struct expert_peer *peer;
    int lane, n_routes;
    struct round_ticket ticket;
    uint64_t call_id; /* 0: not open */
    int64_t sent_ns, hedge_ns, late_ns, deadline_ns;
    bool is_late, is_hedged;
    uint32_t n_rows;
    uint64_t sent_bytes;
};

struct moe_lane {
    struct round *round;
    const struct moe_rows *rows; /* of the round in progress */
    struct moe_trip *trips;      /* [round_max_parcels()] */
    int64_t begun_ns;
    int64_t waits_since_ns; /* experts are nowhere; 0: none */
    int64_t next_retry_ns;
    int waits_taken; /* replies when the wait began */
    bool is_wait_counted;
    bool is_under_way;  /* between scatter and the end of gather */
    bool is_beside;     /* the other lane's was, too, for a part of that */
    bool has_old_nodes; /* a table came after the round was through, and before it was folded */
    int64_t scatter_ns; /* spent in scatter() */
    uint32_t n_good;    /* nodes of good standing when orphans were looked at last */
};

struct moe_remote {
    struct moe_remote_options options;
    struct pace_limits pace_limits;
    struct pace_budget hedges;
    struct wire_table *table;
    struct expert_peers peers; /* as the table numbers them */
    uint32_t n_told_broken;
    struct moe_lane lanes[FORWARD_LANES]; /* options.n_lanes of them */
    bool is_deaf;                         /* what is taken now may have come long ago */

    uint64_t step, trace_id;
    int64_t step_deadline_ns, experts_ns, late_replies;
    int n_left_out;
    struct err error;
    struct wire_ladder_counters counters;

    bool is_disputed;
    struct forward_calls calls;
    struct wire_forward_reply reply; /* big; decoded into one at a time */
};

static inline int64_t earlier_ns(int64_t a_ns, int64_t b_ns)
{
    return a_ns < b_ns ? a_ns : b_ns;
}

static inline bool moe_lane_is_going_on(const struct moe_lane *l)
{
    return l->is_under_way &&
           (round_state(l->round) == ROUND_RUNNING || round_state(l->round) == ROUND_WAITING);
}

/* moe_remote_calls.c: sends what can be sent; true if something is left that must wait for a full
 * channel. */
bool moe_remote_send_parcels(struct moe_remote *m, int lane, int64_t now_ns);
/* Ends the calls of a round whose answers nobody waits for: all that are open, or those of
 * parcels that were dropped. */
enum moe_which_calls { MOE_ALL_CALLS, MOE_DROPPED_CALLS };
void moe_remote_cancel_calls(struct moe_remote *m, int lane, enum moe_which_calls which);

/* moe_remote_mend.c: asks elsewhere for what is late or slow; returns when something is next. */
int64_t moe_remote_mind_parcels(struct moe_remote *m, int lane, int64_t now_ns);
/* Experts that no node can be asked for: a table, or a node that comes back, may help.  Returns
 * when to come again. */
int64_t moe_remote_mind_orphans(struct moe_remote *m, int lane, int64_t now_ns);
bool moe_remote_is_any_orphan(const struct moe_remote *m);
/* Nobody brings tables any more. */
void moe_remote_give_up_orphans(struct moe_remote *m);

/* moe_remote_nodes.c: the nodes of a table, numbered as the round knows them; one too many, so that
 * it is never empty.  mem_free() it. */
struct round_node *moe_remote_list_nodes(const struct moe_remote *m, const struct wire_table *t);
/* Sends the probes that are due, and tells of connections that broke; returns when to come again. */
int64_t moe_remote_mind_peers(struct moe_remote *m, int64_t now_ns);
/* Tells the lane's round what has become known of the nodes since the last turn. */
void moe_remote_take_standings(struct moe_remote *m, struct moe_lane *l, int64_t now_ns);
