/* attn_node/round.h - one layer's trip to the experts and back (steps 8 and 11).
 *
 * A round begins when the router has chosen top_k experts for each row and ends when every
 * chosen expert's output is there to be added to that row.  This module only keeps the
 * books: whom to send what, what came back, what is missing.  It has no socket, clock or
 * log, and allocates only in round_new() and round_install(), so a test can play thousands
 * of rounds with lost, late and doubled replies in a second.
 *
 * The owner asks for actions (round_next: send this parcel to that node) and reports events
 * (round_sent, round_take, round_fail).  Each parcel goes
 *
 *     PLANNED -> OUT -> DONE | FAILED
 *
 * A reply counts once, whatever its order.  In mode fixed, rows that do not fit the grid
 * somewhere are collected; when all first answers are in, their whole routing is asked
 * again in mode expert and their fixed sums are forgotten.
 *
 * Invariant: round_fold() gives the same bits whatever order replies arrived in, and (but
 * for mode node) whoever answered.
 *
 * Owner: engine thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/forward.h"

enum { ROUND_NO_HOLDER = 0xffff };

struct round_limits {
    const struct kernels *kernels;
    int max_rows, top_k, hidden;
};

struct round_node {
    const char *name; /* borrowed until the next round_install() */
    int max_rows;     /* of one parcel */
};

enum round_state { ROUND_IDLE, ROUND_RUNNING, ROUND_DONE, ROUND_FAILED };
enum round_parcel_state { PARCEL_PLANNED, PARCEL_OUT, PARCEL_DONE, PARCEL_FAILED };

/* The rows of one request to one node; each row once.  Owned by the round. */
struct round_parcel {
    enum round_parcel_state state;
    enum combine_mode mode;
    int node, n_rows, n_routes;
    const int32_t *rows;        /* [n_rows] indices into the round's rows, ascending */
    const int32_t *first_route; /* [n_rows + 1] */
    const int16_t *exponents;   /* [n_rows] */
    const int32_t *slots;       /* [n_routes] row * top_k + routing slot */
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
/* No round has more parcels than this. */
int round_max_parcels(const struct round_limits *l);
/* The nodes that parcels may go to from now on; only between rounds. */
void round_install(struct round *r, const struct round_node *nodes, int n_nodes);

/* What one layer asks for.  `rows` and `holder` are borrowed until the round has ended. */
struct round_plan {
    const struct moe_rows *rows;
    enum combine_mode mode;
    const uint16_t *holder; /* [n_experts] node of each expert of this layer, or NO_HOLDER */
};
/* 0, or E_UNAVAILABLE if a wanted expert is on no node: the round is then still idle. */
int round_begin(struct round *r, const struct round_plan *plan, struct err *e);

/* The first parcel after `after` (-1: from the start) that must be sent, or -1. */
int round_next(const struct round *r, int after);
const struct round_parcel *round_parcel(const struct round *r, int parcel);
/* PLANNED becomes OUT. */
struct round_ticket round_sent(struct round *r, int parcel);

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
/* 0; E_STALE if it belongs to an older round or was taken already (count it and go on);
 * E_CORRUPT if its shape is wrong: the parcel is then still out, the caller may fail it. */
int round_take(struct round *r, struct round_ticket t, const struct round_reply *reply,
               struct err *e);
/* The parcel will not be answered, which fails the round.  E_STALE as above. */
int round_fail(struct round *r, struct round_ticket t, int code, const char *why);
/* The same for a parcel that could not even be sent. */
void round_fail_unsent(struct round *r, int parcel, int code, const char *why);

enum round_state round_state(const struct round *r);
/* Of a failed round: names node, layer and experts. */
const struct err *round_error(const struct round *r);
/* Parcels planned so far and those still out, for logs and deadlines. */
int round_n_parcels(const struct round *r);
int round_n_out(const struct round *r);
/* true while a reply to this ticket would be taken. */
bool round_is_out(const struct round *r, struct round_ticket t);
/* What the round in progress is about. */
int round_layer(const struct round *r);
const struct rows *round_rows(const struct round *r);

/* Adds the experts' contributions into x [n_rows, hidden]; only of a round that is done,
 * which ends. */
void round_fold(struct round *r, float *x);
/* Ends a round without a result; its tickets are stale from here on. */
void round_abandon(struct round *r);
