/* attn_node/round.h - one layer's trip to the experts and back (steps 8 and 11).
 *
 * A round begins when the router has chosen top_k experts for each row and ends when every
 * chosen expert's output is there to be added to that row.  This module only keeps the
 * books: whom to send what, what came back, what is missing, whom to ask instead.  It has no
 * socket, clock or log, and allocates only in round_new() and where a table is installed, so a
 * test can play thousands of rounds with lost, late and doubled replies in a second.
 *
 * What is counted is the selection: one expert of one row, named by its slot
 * row * top_k + routing slot.  A parcel asks one node for some selections.  It goes
 *
 *     PLANNED -> OUT -> DONE | FAILED | DROPPED
 *
 * The owner asks for actions (round_next: send this parcel to that node) and reports events.
 * When a parcel fails, its selections that nobody else has been asked for are planned again
 * at other holders; when it is late (or slower than it is worth waiting for) they are asked
 * elsewhere too, and the first whole answer counts: a parcel of which a part has been
 * counted already is DROPPED.  A selection that no node can be asked for is an orphan; a round
 * that has nothing else left is WAITING for a table, or a node, that helps.
 *
 * Checks: what a parcel brought is asked of other holders too, one parcel in check_one_in, and
 * the round ends only when these witnesses have answered: with other bits it fails, and
 * round_dispute() says who said what.  A sampled check (more than one in one) that finds no
 * witness, or loses it, comes to nothing.  With check_one_in = 1 a selection that nobody else
 * confirms is an orphan like one that nobody answers.
 *
 * In mode fixed, rows that do not fit the grid somewhere are collected; when all first answers
 * are in, their whole routing is asked again in mode expert and their fixed sums are
 * forgotten.
 *
 * Invariants: each selection is counted exactly once, and its witness is another node.  A selection that is not counted is in a
 * parcel that is PLANNED or OUT, or an orphan, or (degraded mode) left out.  round_fold()
 * gives the same bits whatever order replies arrived in, and (but for mode node) whoever
 * answered.
 *
 * Owner: engine thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attn_node/choice.h"
#include "base/err.h"
#include "engine/forward.h"

enum { ROUND_NO_HOLDER = CHOICE_NOBODY };

struct round_limits {
    const struct kernels *kernels;
    int max_rows, top_k, hidden, n_experts;
};

struct round_node {
    const char *name; /* borrowed until the next table */
    int max_rows;     /* of one parcel */
    enum standing standing;
    int cost; /* of reading an expert: choice_costs(); 0: all are equal */
};

enum round_state { ROUND_IDLE, ROUND_RUNNING, ROUND_WAITING, ROUND_DONE, ROUND_FAILED };
enum round_parcel_state {
    PARCEL_PLANNED,
    PARCEL_OUT,
    PARCEL_DONE,
    PARCEL_FAILED,
    PARCEL_DROPPED, /* nobody waits for it any more: cancel the call */
};
/* Why a parcel was planned. */
enum round_reason { REASON_FIRST, REASON_RETRY, REASON_LATE, REASON_HEDGE, REASON_CHECK };

/* The rows of one request to one node; each row once.  Owned by the round. */
struct round_parcel {
    enum round_parcel_state state;
    enum round_reason reason;
    enum combine_mode mode;
    bool is_asked_twice; /* all of it has been asked elsewhere too */
    int node, n_rows, n_routes;
    const int32_t *rows;        /* [n_rows] indices into the round's rows, ascending */
    const int32_t *first_route; /* [n_rows + 1] */
    const int16_t *exponents;   /* [n_rows] */
    const int32_t *slots;       /* [n_routes] row * top_k + routing slot, ascending */
    const uint16_t *experts;    /* [n_routes] in routing-slot order within a row */
    const float *weights;       /* [n_routes] */
};

/* Names one parcel of one round; of an older round it is recognised as stale. */
struct round_ticket {
    uint64_t trip;
    int parcel;
};

struct round;
struct round *round_new(const struct round_limits *l);
void round_free(struct round **r);
/* No round has more parcels than this at a time. */
int round_max_parcels(const struct round_limits *l);
/* The nodes that parcels may go to from now on; between rounds. */
void round_install(struct round *r, const struct round_node *nodes, int n_nodes);

/* What one layer asks for.  `rows` and `holders` are borrowed until the round has ended. */
struct round_plan {
    const struct moe_rows *rows;
    enum combine_mode mode;
    /* [n_experts][n_replicas] nodes that have each expert of this layer, NO_HOLDER from behind
     * the last */
    const uint16_t *holders;
    int n_replicas;
    /* One parcel in so many is checked; 0: none, 1: all.  In mode node, where the bits depend on
     * which experts a parcel has, a check needs one witness for all of it, and 1 is only
     * sampling, too. */
    int64_t check_one_in;
};
/* The round may be WAITING at once. */
void round_begin(struct round *r, const struct round_plan *plan);

/* ---- actions */

/* The first parcel after `after` (-1: from the start) that must be sent, or -1. */
int round_next(const struct round *r, int after);
const struct round_parcel *round_parcel(const struct round *r, int parcel);
/* PLANNED becomes OUT. */
struct round_ticket round_sent(struct round *r, int parcel);

/* ---- events */

/* What a node said.  `data` may be misaligned; borrowed for the call. */
struct round_reply {
    enum combine_mode mode;
    int n_rows;
    const void *data; /* fixed: int32 [n_rows, hidden]; expert: float [n_routes, hidden];
                         node: bf16 [n_rows, hidden] */
    size_t bytes;
    const uint32_t *overflow_rows; /* mode fixed: rows of the parcel that do not fit the grid */
    int n_overflow;
};
/* 0; E_STALE if it belongs to an older round, was taken already or is not waited for any more
 * (count it and go on); E_CORRUPT if its shape is wrong, or if it holds a value that is not
 * finite for a row that is (which is believed only when it comes a second time): the parcel is
 * then still out, the caller may fail it. */
int round_take(struct round *r, struct round_ticket t, const struct round_reply *reply,
               struct err *e);
/* The parcel will not be answered: its node is asked nothing more in this round, and what is
 * missing is planned elsewhere.  Codes that another node would give as well (E_INVALID,
 * E_PRECONDITION, E_UNIMPLEMENTED, E_DENIED, E_UNAUTHENTICATED) fail the round.  E_STALE as
 * above. */
int round_fail(struct round *r, struct round_ticket t, int code, const char *why);
/* The same for a parcel that could not even be sent. */
void round_fail_unsent(struct round *r, int parcel, int code, const char *why);
/* It is over its deadline: all of it is asked elsewhere, if others have all of it; the node is
 * the last to be asked from now on.  Its answer still counts if it comes first whole.  Returns
 * how many parcels were planned; 0: nobody else could be asked (try again after the next
 * event), or it was done before. */
int round_late(struct round *r, struct round_ticket t);
/* The same without prejudice and only at nodes of good standing; never for a witness. */
int round_hedge(struct round *r, struct round_ticket t);
/* What is known of a node has changed. */
void round_stand(struct round *r, int node, enum standing standing);

/* ---- when nobody is left to ask */

/* Selections that no node can be asked for, to answer or to confirm. */
int round_n_orphans(const struct round *r);
/* Forgives the nodes that failed and plans the orphans again; returns how many parcels.  In
 * state WAITING the caller has ended every call of this round first: their tickets are stale
 * from here on, and parcels are numbered from 0 again. */
int round_retry(struct round *r);
/* Another table in the middle of a round.  Parcels at nodes that went are planned again, and so
 * are orphans; the caller has ended the calls as for round_retry(). */
struct round_change {
    const struct round_node *nodes;
    int n_nodes;
    const int32_t *moved; /* [old n_nodes] the new number of each old node, or -1 */
    const uint16_t *holders;
    int n_replicas;
};
void round_change(struct round *r, const struct round_change *c);
/* Degraded mode: orphans are left out of their rows' sums, and what remains of a row's weights
 * is scaled to the whole; what nobody else confirms is believed. */
void round_leave_out(struct round *r);
/* Fails the round for its orphans; `how_long` ("waited 60000 ms") ends the sentence. */
void round_give_up(struct round *r, const char *how_long);

/* ---- the state */

enum round_state round_state(const struct round *r);
/* Of a failed round: names node, layer and experts. */
const struct err *round_error(const struct round *r);
/* Parcels planned so far and those still out, for logs and deadlines. */
int round_n_parcels(const struct round *r);
int round_n_out(const struct round *r);
/* Replies that counted since round_begin(): whether anything gets on. */
int round_n_taken(const struct round *r);
/* true while a reply to this ticket would be taken. */
bool round_is_out(const struct round *r, struct round_ticket t);
/* Selections that were left out, or believed without the confirmation that was wanted. */
int round_n_left_out(const struct round *r);
/* A node that gave a value that is not finite where another one then gave a finite one; -1:
 * none.  Forgotten when asked for. */
int round_take_liar(struct round *r);
/* One answer to one row's selections; `data` is the round's until it is abandoned. */
struct round_answer {
    int node; /* -1: it is in no table any more */
    int n_slots;
    int32_t slots[MODEL_MAX_TOP_K];
    bool is_off_grid; /* `data` means nothing then */
    const void *data; /* fixed: int32 [hidden]; expert: float [hidden]; node: bf16 [hidden] */
};
/* What a check found: for one row, `first` and what the parts of it add up to are not equal. */
struct round_dispute {
    int row;
    enum combine_mode mode;
    struct round_answer first;
    int n_parts;
    struct round_answer parts[MODEL_MAX_TOP_K]; /* the witnesses' */
};
/* Of a round that failed; false: not because of a check. */
bool round_find_dispute(const struct round *r, struct round_dispute *out);
/* What the round in progress is about. */
int round_layer(const struct round *r);
const struct rows *round_rows(const struct round *r);

/* Adds the experts' contributions into x [n_rows, hidden]; only of a round that is done,
 * which ends. */
void round_fold(struct round *r, float *x);
/* Ends a round without a result; its tickets are stale from here on. */
void round_abandon(struct round *r);
