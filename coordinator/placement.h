/* coordinator/placement.h - which nodes hold which expert.
 *
 * Every expert of every layer has up to `replicas` places.  What is (places, each with a
 * state) and what shall be (want, made by placement_plan.c) are kept apart, and one turns
 * into the other by small steps that never leave a gap:
 *
 *   WAITING --> LOADING --> LIVE --> RETIRING --> nothing
 *
 * A node is told what to hold (its holdings, versioned), reports when it has loaded a
 * version, and only then its experts are LIVE: named by the table that attention sides
 * route by, versioned by the epoch.  A copy that is not wanted any more is RETIRING, no
 * table names it, and stays loaded until every attention side has such a table.  So an
 * expert that anyone may ask for is always loaded where it is asked for, and one that is
 * still wanted somewhere is never given up before its successor is LIVE.
 *
 * A node that is lost takes its places out of the table at once; the other copies answer.
 * Experts without any are loaded by whoever has room, at once; spare copies wait rejoin_ns
 * (WAITING) for the node to come back by the same name.
 *
 * Any number of nodes of any size.  Pure: time comes with every call; no clock, socket or
 * log.  Owner: coordinator loop. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rpc/wire.h"

enum {
    PLACEMENT_NOBODY = 0xffff,
    PLACEMENT_PLACES = 6, /* of one expert: four live ones, and two that come or go */
    PLACEMENT_BATCH = 64, /* experts that a node loads before it reports, but for urgent ones */
};

/* Measured speeds that differ by less than this share count as equal. */
#define PLACEMENT_SAME_SPEED 0.1

struct placement_config {
    uint32_t n_layers, n_experts;
    int replicas; /* 1 .. WIRE_MAX_REPLICAS; 0: as many as memory gives */
    /* Quiet time after a join before planning; how long spare copies wait for a lost node;
     * how often observed load may lead to moves (0: never). */
    int64_t settle_ns, rejoin_ns, rebalance_ns;
    /* Moves for balance read at most so many experts per second; 0: no limit.  What restores
     * copies or empties a draining node is not limited. */
    double moves_per_s;
    /* Epochs and holdings versions begin here; it must be higher than any that an earlier
     * coordinator of this cluster gave out, since nodes look for "newer". */
    uint64_t first_version;
};

enum placement_place_state {
    PLACE_NONE,
    PLACE_WAITING,  /* kept free for a lost node */
    PLACE_LOADING,  /* since: the holdings version that first has it, 0 until one has */
    PLACE_LIVE,     /* loaded; tables may name it */
    PLACE_RETIRING, /* since: the first epoch whose table does not name it */
};

struct placement_place {
    uint64_t since;
    uint16_t node; /* index into placement.nodes */
    uint8_t state;
};

struct placement_expert {
    struct placement_place places[PLACEMENT_PLACES];
    uint16_t want[WIRE_MAX_REPLICAS]; /* nodes; PLACEMENT_NOBODY from behind the last */
};

enum placement_presence { PLACEMENT_FREE, PLACEMENT_PRESENT, PLACEMENT_DRAINING, PLACEMENT_AWAY };

struct placement_node {
    enum placement_presence presence;
    enum node_trust trust;
    struct wire_table_node table; /* as tables name it */
    uint64_t host, rack;          /* equal for nodes that may die together */
    double speed;                 /* how fast it reads experts, in any unit; 0: unknown */
    int threads;                  /* that read them; at least 1 */
    int64_t away_since_ns;        /* lost, or quarantined */
    bool is_reserved;             /* for its return: until rejoin_ns after that */
    bool is_restored;             /* it had its experts under an earlier coordinator */
    int64_t capacity;             /* experts */
    int64_t held;                 /* LOADING, LIVE and RETIRING: what it is told to hold */
    int64_t live, loading;
    uint64_t version, ready_version;
    bool changed; /* its holdings, since the last version */
};

struct placement {
    struct placement_config config;
    struct placement_expert *experts; /* [n_layers][n_experts] */
    struct placement_node *nodes;
    int n_nodes, room; /* slots, the free ones included */
    uint64_t epoch, covered_epoch, last_version;
    int64_t n_total, n_live; /* experts; those that somebody answers for */
    /* Copies: live ones, those still to be loaded (all reasons), and given up but not freed. */
    int64_t n_copies, n_to_load, n_retiring;
    int lowest, wanted_lowest; /* live copies of the expert with fewest, and what is wanted */
    double *load;              /* [n_layers][n_experts] decayed counts of the routers */
    double observed;           /* their sum */
    int64_t last_join_ns, last_rebalance_ns, last_tick_ns;
    int64_t restored_until_ns;   /* no plan before that, while restored nodes are away */
    double move_budget;          /* experts */
    bool dirty, urgent, pending; /* plan; now; reconcile */
    int again;                   /* plan when all has settled, at most so often */
    bool was_covered, table_changed;
};

void placement_init(struct placement *p, const struct placement_config *c);
void placement_fini(struct placement *p);

struct placement_newcomer {
    struct wire_table_node table;
    const char *host; /* its label; borrowed */
    const char *rack; /* likewise; NULL or "": the host is its own */
    int64_t capacity; /* experts */
    double speed; /* measured, in bytes per second or any unit; 0: unknown, the others' median */
    int threads;  /* that it reads with; 0: unknown, taken as 1 */
};

/* Before any event: what a node held under an earlier coordinator, as a bitmap like that of
 * placement_holdings().  It is waited for like a lost one, nothing is planned before `until_ns` unless
 * all such nodes are back, and when it is back it is told to hold all of that at once. */
void placement_restore(struct placement *p, const char *name, const char *host, int64_t capacity,
                       const uint8_t *bitmap, int64_t until_ns);

/* Events. */
void placement_join(struct placement *p, const struct placement_newcomer *n, int64_t now_ns);
enum placement_loss { PLACEMENT_LOST, PLACEMENT_LEFT };
/* LEFT: nothing waits for its return. */
void placement_gone(struct placement *p, uint32_t node_id, enum placement_loss loss,
                    int64_t now_ns);
/* The node wants to go: its experts move away while it still answers. */
void placement_drain(struct placement *p, uint32_t node_id);
/* SUSPECT: asked only where nobody else can answer, given nothing new.  QUARANTINED: not asked. */
void placement_trust(struct placement *p, uint32_t node_id, enum node_trust trust, int64_t now_ns);
/* The node has wholly loaded its holdings of `version`. */
void placement_report(struct placement *p, uint32_t node_id, uint64_t version);
/* How often each expert was chosen, [n_layers][n_experts]. */
void placement_observe(struct placement *p, const uint16_t *counts);
/* Something else that the table tells sides has changed: a new epoch. */
void placement_renew_table(struct placement *p);
/* Time passes.  `oldest_epoch`: the lowest that any live attention side has installed;
 * UINT64_MAX without attention sides. */
void placement_tick(struct placement *p, uint64_t oldest_epoch, int64_t now_ns);

/* Answers.  The version is 0 for an unknown node. */
uint64_t placement_version(const struct placement *p, uint32_t node_id);
/* It holds nothing that anybody may ask for, now or later. */
bool placement_is_drained(const struct placement *p, uint32_t node_id);
/* Is there a node that could take over what draining ones hold? */
bool placement_has_heirs(const struct placement *p);
size_t placement_bitmap_bytes(const struct placement *p);
/* Fills [n_layers][(n_experts + 7) / 8]; false for an unknown node. */
bool placement_holdings(const struct placement *p, uint32_t node_id, uint8_t *bitmap);
/* The table of the present epoch.  `nodes` has room for placement.n_nodes entries and
 * `holders` for n_layers * n_experts * WIRE_MAX_REPLICAS; `out` points to both. */
void placement_table(const struct placement *p, struct wire_table_node *nodes, uint16_t *holders,
                     struct wire_table *out);
static inline bool placement_is_covered(const struct placement *p)
{
    return p->n_live == p->n_total;
}
/* Every copy that is wanted is live and nothing moves. */
static inline bool placement_is_settled(const struct placement *p)
{
    return !p->dirty && !p->pending && p->again == 0 && p->n_to_load == 0 && p->n_retiring == 0;
}
/* Why it is not covered, for people: "812 of 15872 experts (5.1 %) have no holder: ...". */
void placement_why(const struct placement *p, char *text, size_t bytes);
