/* attn_node/round_books.h - the inside of a round, shared by round.c (events), round_plan.c
 * (selections become parcels), round_sum.c (values) and round_check.c (witnesses).  Nobody else includes it. */
#pragma once

#include "attn_node/round.h"
#include "base/rng.h"

/* Every selection may be asked so many times before the round has to stop and tidy up; the
 * first time, once more for rows that do not fit the grid, both again as checks, and the rest for
 * trouble. */
enum { ROUND_ASKS = 8 };
/* In doubted_by: a node of an older table.  The same in answered_by and confirmed_by. */
enum { ROUND_UNKNOWN_LIAR = 0xffff, ROUND_GONE = 0xffff };

/* Why a node is asked less, or nothing, in this round. */
enum round_grudge { GRUDGE_NONE, GRUDGE_LATE, GRUDGE_FAILED };

struct node_books {
    struct round_node node;
    enum round_grudge grudge;
    int n_out;                    /* parcels PLANNED or OUT */
    int n_entries, n_routes;      /* counted, then how many are filled in */
    int first_entry, first_place; /* where its slices begin */
    int last_row;                 /* the row that was added last, or -1 */
};

/* Of a selection that was counted: is it to be confirmed? */
enum slot_check { CHECK_NONE, CHECK_WANTED, CHECK_OUT, CHECK_DONE };
/* What is known of one selection. */
struct slot_books {
    uint16_t n_live;     /* parcels that are PLANNED or OUT and have it; without witnesses */
    uint16_t doubted_by; /* 1 + the node whose value was not finite; 0: none */
    bool is_counted, is_orphan, is_left_out;
    /* A row's answer, the first or a witness's, is kept at the place of the first of its slots. */
    bool is_off_grid, is_witness_off_grid; /* of the answer at this place */
    uint8_t check;                         /* enum slot_check */
    uint16_t answered_by, confirmed_by;    /* nodes, or ROUND_GONE */
    int32_t check_id;                      /* which check it belongs to */
    int32_t place, witness_place;          /* where the answers with it are kept */
};

struct round {
    struct round_limits limits;
    int max_routes; /* max_rows * top_k */
    int room;       /* routes and entries in the arrays below */

    struct node_books *nodes;
    uint8_t *standing; /* [n_nodes] what choice.c is told */
    int *load;         /* [n_nodes] */
    int *cost;         /* [n_nodes], likewise */
    int n_nodes, nodes_size;
    struct choice *choice;

    uint64_t trip;
    enum round_state state;
    struct round_plan plan;
    struct err error;
    struct err last;  /* the latest trouble of a node */
    bool asked_again; /* the second part of the round has been planned */
    bool has_rivals;  /* some selection is in more than one parcel, or was */
    int liar;

    struct round_parcel *parcels; /* [room] */
    int n_parcels, n_planned, n_out;
    int n_taken;                          /* replies */
    int n_missing, n_orphans, n_left_out; /* selections */
    int n_unchecked, n_check_out;         /* of these, at witnesses */
    int n_checks;                         /* begun */
    int dispute;                          /* the place of an answer that was not confirmed; -1 */
    struct rng rng;                       /* which parcels are checked */

    int n_entries, n_routes, n_first_routes; /* filled so far */
    int32_t *entry_rows, *entry_route;       /* [room] */
    int16_t *entry_exponents;
    int32_t *first_routes; /* [2 * room] */
    int32_t *route_slots;  /* [room] */
    uint16_t *route_experts;
    float *route_weights;

    struct slot_books *slot_books; /* [max_routes] */
    int32_t *wanted;               /* [max_routes] */

    int32_t *sums;          /* [max_rows, hidden]: mode fixed */
    float *scaled;          /* [hidden]: a row's contributions before they are scaled */
    uint8_t *is_overflowed; /* [max_rows] */
    char *slots;            /* [max_routes] rows of `hidden` floats (expert) or bf16s (node) */
    uint8_t *has_slot;      /* [max_routes] */
    char *first_said;       /* [max_routes] as `slots`: answers that are checked */
    char *witness_said;     /* [max_routes] */
};

/* What to plan. */
struct round_wish {
    const int32_t *slots; /* [n_slots], ascending */
    int n_slots;
    enum round_reason reason;
    enum standing worst;
    int without_node; /* is not asked; -1: any may be */
    int nor_node;     /* a second one, or -1 */
    bool is_whole;    /* everything or nothing; otherwise what finds nobody becomes an orphan */
};
/* Returns how many parcels were planned. */
int round_plan_slots(struct round *r, const struct round_wish *w);
/* "1, 17, 40, ..." : the distinct experts of these slots, as many as a line bears. */
void round_name_experts(const struct round *r, const int32_t *slots, int n, char *out,
                        size_t bytes);
/* 0, or E_CORRUPT as round_take() says. */
int round_check_reply(struct round *r, const struct round_parcel *p,
                      const struct round_reply *reply, struct err *e);
/* Puts the values where round_fold() finds them. */
void round_add_reply(struct round *r, const struct round_parcel *p,
                     const struct round_reply *reply);

/* ---- round_check.c: no parcel is PLANNED or sent by anything else for a check */

/* Every answer is to be confirmed, or the round does not end. */
bool round_is_strict(const struct round *r);
/* The answer to p was counted: shall others be asked as well? */
void round_maybe_check(struct round *r, const struct round_parcel *p,
                       const struct round_reply *reply);
/* A witness's answer, of the right shape. */
void round_take_witness(struct round *r, const struct round_parcel *p,
                        const struct round_reply *reply);
/* The slots of a witness that has ended without an answer: others are asked, or the check is
 * given up. */
void round_lose_witness(struct round *r, const struct round_parcel *p);
/* All of p is asked of a third node, and p waited for no more; false: there is none. */
bool round_replace_witness(struct round *r, struct round_parcel *p);
/* Asks for what nobody is asked to confirm; returns how many parcels were planned. */
int round_ask_witnesses(struct round *r);
/* What nobody can confirm is believed; returns how many selections. */
int round_believe(struct round *r);
/* When every check has its answers: the place of one that was not confirmed, or -1. */
int round_compare(const struct round *r);

/* round.c */
bool round_is_live(const struct round_parcel *p);
void round_end_parcel(struct round *r, struct round_parcel *p, enum round_parcel_state state);
