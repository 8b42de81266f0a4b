/* expert_node/batch.h - parcels that wait at the same time and want the same layer are
 * served as one (step 10): an expert's weights are then read once for all of them.
 *
 * Holds the parcels' rows and routes in aligned memory of its own.  An expert's output for
 * a row does not depend on the other rows, so merging changes no bit.  Pure: no socket,
 * clock or log; allocates only in batch_new().
 *
 * Owner: worker thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/combine.h"
#include "engine/rows.h"

struct batch_limits {
    int max_items;       /* parcels at a time */
    int max_rows, top_k; /* rows of all of them together; routes of a row */
    int hidden;
    int group; /* rows are quantised by it (engine/rows.h); 0: f32 */
};

/* One waiting parcel, filled by the caller: arrays sized by n_rows and n_routes. */
struct batch_item {
    int layer, n_rows, n_routes;
    enum combine_mode mode;
    /* [n_rows, hidden], one form alone; strides in elements; past `hidden` all is zero */
    float *f32;
    int8_t *q8;
    float *scales;
    int32_t *sums;
    size_t f32_stride, q8_stride, scale_stride;
    int16_t *exponents;   /* [n_rows] */
    int32_t *first_route; /* [n_rows + 1] */
    uint16_t *experts;    /* [n_routes] */
    float *weights;       /* [n_routes] */
};

struct batch;
struct batch *batch_new(const struct batch_limits *l);
void batch_free(struct batch **b);

/* Place for one more parcel, or NULL when it must be served after the others.  A parcel
 * within the limits always fits an empty batch.  Items are numbered 0, 1, ... */
struct batch_item *batch_add(struct batch *b, int layer, enum combine_mode mode, int n_rows,
                             int n_routes);
/* Takes the last item back. */
void batch_drop_last(struct batch *b);
int batch_count(const struct batch *b);

/* Items that are served together, in order of arrival; valid until the next call. */
struct batch_group {
    struct parcel parcel;
    int n_items;
    const int *items;       /* [n_items] */
    const int *first_row;   /* [n_items]: where an item's rows begin in the parcel */
    const int *first_route; /* [n_items]: and its routes */
};
/* The next group, lowest layer first; false when all items have been served. */
bool batch_next(struct batch *b, struct batch_group *out);
const struct batch_item *batch_item(const struct batch *b, int item);
/* An item's rows as the engine reads them. */
struct rows batch_rows(const struct batch *b, const struct batch_item *item);
/* Empty again. */
void batch_reset(struct batch *b);
