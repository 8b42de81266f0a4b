/* coordinator/placement.h - which node holds which expert.
 *
 * Every expert of every layer has at most one live holder: the table that attention sides
 * route by, versioned by the epoch.  Beside it stands the target: where the expert shall
 * be.  A node is told what to hold (its holdings, versioned too), reports when it has
 * loaded a version, and only then its experts go live; the old holder keeps its copy
 * until every attention side has a table in which it is not named any more.  So an expert
 * that anyone may ask for is always loaded where it is asked for.
 *
 * Spread: each layer as evenly as memory permits, because at small batch the time of a
 * layer is that of the node with most distinct experts to read.  Sticky: a change of
 * membership moves only what evenness needs.  Any number of nodes of any size.
 *
 * A node that is gone takes its live entries with it at once; its share stays reserved
 * for rejoin_ns, in case it comes back by the same name, and then goes to the others.
 *
 * Pure: time comes with every call; no clock, socket or log.  Owner: coordinator loop. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rpc/wire.h"

enum { PLACEMENT_NOBODY = 0xffff };

struct placement_config {
    uint32_t n_layers, n_experts;
    int64_t settle_ns, rejoin_ns; /* quiet time after a join before planning; see above */
    /* Epochs and holdings versions begin here; it must be higher than any that an earlier
     * coordinator of this cluster gave out, since nodes look for "newer". */
    uint64_t first_version;
};

/* One expert's places are indices into placement.nodes, or PLACEMENT_NOBODY.
 * `target` differs from `live` while a load or a move is under way; `from` is the former
 * holder that keeps its copy until all tables are newer than retire_epoch. */
struct placement_expert {
    uint16_t live, target, from;
    uint64_t since; /* the target's holdings version that first held it */
    uint64_t retire_epoch;
};

enum placement_presence { PLACEMENT_FREE, PLACEMENT_PRESENT, PLACEMENT_DRAINING, PLACEMENT_AWAY };

struct placement_node {
    enum placement_presence presence;
    struct wire_table_node table; /* as tables name it */
    int64_t away_since_ns;
    int64_t capacity, held; /* experts: room, and told to hold */
    int64_t live;           /* experts that tables send here */
    uint64_t version, ready_version;
    int64_t share; /* how many experts it should have, of the last plan */
    bool changed;
};

struct placement {
    struct placement_config config;
    struct placement_expert *experts; /* [n_layers][n_experts] */
    struct placement_node *nodes;
    int n_nodes, room; /* slots, the free ones included */
    uint64_t epoch, covered_epoch, last_version;
    int64_t n_total, n_live;
    int64_t last_join_ns;
    bool dirty;       /* something changed that a plan may answer */
    bool out_of_room; /* the last plan wanted more than fits at this moment */
    int64_t *counts;  /* scratch of a plan, [room] */
};

void placement_init(struct placement *p, const struct placement_config *c);
void placement_fini(struct placement *p);

/* Events.  `capacity` is in experts. */
void placement_join(struct placement *p, const struct wire_table_node *node, int64_t capacity,
                    int64_t now_ns);
enum placement_loss { PLACEMENT_LOST, PLACEMENT_LEFT };
/* LEFT gives its share away without waiting. */
void placement_gone(struct placement *p, uint32_t node_id, enum placement_loss loss,
                    int64_t now_ns);
/* The node wants to go: its experts move away while it still answers. */
void placement_drain(struct placement *p, uint32_t node_id);
/* The node has wholly loaded its holdings of `version`. */
void placement_report(struct placement *p, uint32_t node_id, uint64_t version);
/* Time passes.  `oldest_epoch`: the lowest that any live attention side has installed;
 * UINT64_MAX without attention sides. */
void placement_tick(struct placement *p, uint64_t oldest_epoch, int64_t now_ns);

/* Answers.  The version is 0 for an unknown node. */
uint64_t placement_version(const struct placement *p, uint32_t node_id);
size_t placement_bitmap_bytes(const struct placement *p);
/* Fills [n_layers][(n_experts + 7) / 8]; false for an unknown node. */
bool placement_holdings(const struct placement *p, uint32_t node_id, uint8_t *bitmap);
/* The table of the present epoch.  `nodes` has room for placement.n_nodes entries and
 * `holder` for n_layers * n_experts; `out` points to both. */
void placement_table(const struct placement *p, struct wire_table_node *nodes, uint16_t *holder,
                     struct wire_table *out);
static inline bool placement_is_covered(const struct placement *p)
{
    return p->n_live == p->n_total;
}
/* Why it is not covered, for people: "812 of 15872 experts (5.1 %) have no holder: ...". */
void placement_why(const struct placement *p, char *text, size_t bytes);
