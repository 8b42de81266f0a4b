/* engine/mlp.h - what every row of a layer goes through: the MLP of a layer without routed
 * experts, the shared expert of one with (m3.md 3.2, 4).
 *
 * It runs on the attention side, in the time between a round's parcels going out and their
 * answers coming back: there it needs no network, no place in any table and no replica, and
 * its rows are at hand.  On the expert nodes it would be read once per node and step.
 *
 * The arithmetic is that of an expert (engine/expert.h); the result is added as it is. */
#pragma once

#include "engine/expert.h"

/* Room for one width of MLP.  Owner: one thread. */
struct mlp;
/* NULL when memory is out.  `group` is format_group() of its weights. */
struct mlp *mlp_new(int max_rows, int hidden, int size, int group);
void mlp_free(struct mlp **m);
size_t mlp_bytes(const struct mlp *m); /* of room; not of weights */
/* Computes x's rows into the room; x has the form that the weights read. */
void mlp_run(struct mlp *m, const struct compute *c, const struct expert *weights,
             const struct rows *x);
/* Adds what the last mlp_run() computed to its n_rows rows: to [n_rows, hidden]. */
void mlp_add(const struct mlp *m, const struct compute *c, float *to);
