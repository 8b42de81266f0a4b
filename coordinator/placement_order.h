/* coordinator/placement_order.h - whom to give the next expert of a layer: the node that is then least
 * busy for its share, out of thousands, without looking at all of them.
 *
 * For each layer, nodes of about the same share (within 2 %) lie in a heap by how busy they are there.
 * While experts are given out, nothing but grows, in this layer and in others: an entry that is out of
 * date stands too early, never too late, and is put right when it comes to the top.  Whatever takes
 * something away from a node calls placement_order_renew().
 *
 * Pure; part of placement_plan.c. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* The planner's books, [n_nodes] each; borrowed. */
struct placement_order_books {
    int n_nodes, n_layers;
    const double *cost;      /* [n_layers][n_nodes] how busy */
    const double *share;     /* what it should have */
    const int64_t *capacity; /* places ... */
    const int64_t *claimed;  /* ... that are taken */
    const int64_t *arriving; /* of them, not there yet */
    const int64_t *free_now; /* places that nothing lies in */
    const bool *is_open;     /* may be given something */
};

struct placement_order;
struct placement_order *placement_order_new(const struct placement_order_books *books);
void placement_order_free(struct placement_order **o);
/* Something became less. */
void placement_order_renew(struct placement_order *o);

struct placement_order_question {
    int layer;
    double weight; /* what it would be busy with on top */
    bool now_only; /* not on places that are still to be freed */
    /* May this node have it? */
    bool (*accepts)(void *ud, int node);
    void *ud;
};
/* The best node with a place, one that need not wait before one that must; or -1. */
int placement_order_best(struct placement_order *o, const struct placement_order_question *q);
