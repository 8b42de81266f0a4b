/* coordinator/lending.h - which attention side may use the memory of which context node.
 *
 * Each context node lends all it has to one side that borrows: to the one that has the least so far, at
 * equal amounts to the lowest id.  It stays there until either of them is gone; what a side has put
 * there is worth more than an even share.
 *
 * Pure.  Events say whether anybody's borrower has changed, which a new table then tells.
 * Owner: coordinator loop. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct lending_side {
    uint32_t node_id;
    bool is_leaving; /* it gets nothing more */
};

struct lending_host {
    uint32_t node_id;
    uint64_t bytes;
    uint32_t borrower; /* node id; 0: nobody borrows */
};

/* All-zero is empty. */
struct lending {
    struct lending_side *sides;
    struct lending_host *hosts; /* in order of arrival */
    int n_sides, n_hosts;
};
void lending_fini(struct lending *l);

bool lending_side_joins(struct lending *l, uint32_t node_id);
void lending_side_leaves(struct lending *l, uint32_t node_id);
/* Unknown ones are fine, here and below. */
bool lending_side_gone(struct lending *l, uint32_t node_id);
bool lending_host_joins(struct lending *l, uint32_t node_id, uint64_t bytes);
bool lending_host_gone(struct lending *l, uint32_t node_id);

/* NULL: the node lends nothing. */
const struct lending_host *lending_find(const struct lending *l, uint32_t node_id);
/* That the side may use. */
uint64_t lending_bytes(const struct lending *l, uint32_t side_id);
