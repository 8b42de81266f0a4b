/* expert_node/batch.c - see batch.h.
 *
 * Items lie one after another in `waiting`; a group of several is copied together into
 * `merged`, a group of one is served where it lies. */
#include "expert_node/batch.h"

#include <string.h>

#include "base/mem.h"
#include "base/must.h"

/* Arrays for all rows and routes of a batch. */
struct room {
    float *f32; /* [rows, f32_stride], or NULL */
    size_t f32_stride;
    struct rows_room quantised; /* empty with group 0 */
    int16_t *exponents;
    int32_t *first_route;
    uint16_t *experts;
    float *weights;
};

struct batch {
    struct batch_limits limits;
    int max_routes;
    struct room waiting, merged;
    struct batch_item *items; /* [max_items] */
    bool *is_served;
    int n_items, n_rows, n_routes;
    int *group_items, *group_rows, *group_routes; /* [max_items] */
};

/* Matrices of floats are read up to a multiple of this. */
enum { F32_COLUMNS = 16 };

static struct room room_new(const struct batch_limits *l, int max_routes)
{
    size_t rows = (size_t)l->max_rows, routes = (size_t)max_routes;
    /* Every item has one more first_route than rows. */
    size_t n_first = rows + (size_t)l->max_items;
    size_t stride = mem_round_up((size_t)l->hidden, F32_COLUMNS), bytes = 0;
    struct rows_room quantised;
    must(mem_mul(rows, stride * sizeof(float), &bytes));
    must(rows_room_open(&quantised, l->max_rows, l->hidden, l->group));
    return (struct room){
        .f32 = l->group ? NULL : mem_aligned(bytes),
        .f32_stride = stride,
        .quantised = quantised,
        .exponents = mem_aligned(rows * sizeof(int16_t)),
        .first_route = mem_aligned(n_first * sizeof(int32_t)),
        .experts = mem_aligned(routes * sizeof(uint16_t)),
        .weights = mem_aligned(routes * sizeof(float)),
    };
}

static void room_free(struct room *r)
{
    mem_free(r->f32);
    rows_room_close(&r->quantised);
    mem_free(r->exponents);
    mem_free(r->first_route);
    mem_free(r->experts);
    mem_free(r->weights);
}

struct batch *batch_new(const struct batch_limits *l)
{
    must(l->max_items > 0 && l->max_rows > 0 && l->top_k > 0 && l->hidden > 0);
    must(l->top_k <= INT32_MAX / l->max_rows);
    struct batch *b = mem_alloc(sizeof(*b));
    size_t n = (size_t)l->max_items;
    b->limits = *l;
    b->max_routes = l->max_rows * l->top_k;
    b->waiting = room_new(l, b->max_routes);
    b->merged = room_new(l, b->max_routes);
    b->items = mem_array(n, sizeof(*b->items));
    b->is_served = mem_array(n, sizeof(*b->is_served));
    b->group_items = mem_array(n, sizeof(int));
    b->group_rows = mem_array(n, sizeof(int));
    b->group_routes = mem_array(n, sizeof(int));
    return b;
}

void batch_free(struct batch **batch)
{
    struct batch *b = *batch;
    if (!b)
        return;
    *batch = NULL;
    room_free(&b->waiting);
    room_free(&b->merged);
    mem_free(b->items);
    mem_free(b->is_served);
    mem_free(b->group_items);
    mem_free(b->group_rows);
    mem_free(b->group_routes);
    mem_free(b);
}

static void place_rows(const struct room *r, int first_row, struct batch_item *item)
{
    size_t first = (size_t)first_row;
    const struct rows_room *q = &r->quantised;
    item->f32_stride = r->f32_stride;
    item->q8_stride = q->q8_stride;
    item->scale_stride = q->scale_stride;
    if (r->f32) {
        item->f32 = r->f32 + first * r->f32_stride;
        return;
    }
    item->q8 = q->q8 + first * q->q8_stride;
    item->scales = q->scales + first * q->scale_stride;
    item->sums = q->sums + first * q->scale_stride;
}

struct batch_item *batch_add(struct batch *b, int layer, enum combine_mode mode, int n_rows,
                             int n_routes)
{
    must(n_rows > 0 && n_routes > 0);
    if (b->n_items == b->limits.max_items || n_rows > b->limits.max_rows - b->n_rows ||
        n_routes > b->max_routes - b->n_routes)
        return NULL;
    struct batch_item *item = &b->items[b->n_items];
    *item = (struct batch_item){
        .layer = layer,
        .n_rows = n_rows,
        .n_routes = n_routes,
        .mode = mode,
        .exponents = b->waiting.exponents + b->n_rows,
        .first_route = b->waiting.first_route + b->n_rows + b->n_items,
        .experts = b->waiting.experts + b->n_routes,
        .weights = b->waiting.weights + b->n_routes,
    };
    place_rows(&b->waiting, b->n_rows, item);
    b->is_served[b->n_items++] = false;
    b->n_rows += n_rows;
    b->n_routes += n_routes;
    return item;
}

void batch_drop_last(struct batch *b)
{
    must(b->n_items > 0);
    const struct batch_item *item = &b->items[--b->n_items];
    b->n_rows -= item->n_rows;
    b->n_routes -= item->n_routes;
}

int batch_count(const struct batch *b)
{
    return b->n_items;
}

const struct batch_item *batch_item(const struct batch *b, int item)
{
    must(item >= 0 && item < b->n_items);
    return &b->items[item];
}

void batch_reset(struct batch *b)
{
    b->n_items = b->n_rows = b->n_routes = 0;
}

/* The first waiting item of the lowest layer, or -1. */
static int find_first(const struct batch *b)
{
    int first = -1;
    for (int i = 0; i < b->n_items; i++)
        if (!b->is_served[i] && (first < 0 || b->items[i].layer < b->items[first].layer))
            first = i;
    return first;
}

/* Copies an item behind what `merged` holds already. */
static void merge_item(struct batch *b, const struct batch_item *item, int at_row, int at_route)
{
    struct room *m = &b->merged;
    size_t rows = (size_t)item->n_rows, routes = (size_t)item->n_routes;
    struct batch_item to = {0};
    place_rows(m, at_row, &to);
    if (to.f32) {
        memcpy(to.f32, item->f32, rows * to.f32_stride * sizeof(float));
    } else {
        memcpy(to.q8, item->q8, rows * to.q8_stride);
        memcpy(to.scales, item->scales, rows * to.scale_stride * sizeof(float));
        memcpy(to.sums, item->sums, rows * to.scale_stride * sizeof(int32_t));
    }
    memcpy(m->exponents + at_row, item->exponents, rows * sizeof(int16_t));
    memcpy(m->experts + at_route, item->experts, routes * sizeof(uint16_t));
    memcpy(m->weights + at_route, item->weights, routes * sizeof(float));
    for (int i = 0; i <= item->n_rows; i++)
        m->first_route[at_row + i] = at_route + item->first_route[i];
}

static void collect(struct batch *b, int first, struct batch_group *out)
{
    const struct batch_item *head = &b->items[first];
    int n_rows = 0, n_routes = 0;
    out->n_items = 0;
    for (int i = first; i < b->n_items; i++) {
        const struct batch_item *item = &b->items[i];
        if (b->is_served[i] || item->layer != head->layer || item->mode != head->mode)
            continue;
        b->is_served[i] = true;
        b->group_items[out->n_items] = i;
        b->group_rows[out->n_items] = n_rows;
        b->group_routes[out->n_items++] = n_routes;
        n_rows += item->n_rows;
        n_routes += item->n_routes;
    }
    out->parcel.n_rows = n_rows;
    out->parcel.n_routes = n_routes;
}

struct rows batch_rows(const struct batch *b, const struct batch_item *item)
{
    return (struct rows){.n_rows = item->n_rows,
                         .cols = b->limits.hidden,
                         .f32 = item->f32,
                         .f32_stride = item->f32_stride,
                         .group = b->limits.group,
                         .q8 = item->q8,
                         .q8_stride = item->q8_stride,
                         .scales = item->scales,
                         .sums = item->sums,
                         .scale_stride = item->scale_stride};
}

bool batch_next(struct batch *b, struct batch_group *out)
{
    int first = find_first(b);
    if (first < 0)
        return false;
    const struct batch_item *head = &b->items[first];
    *out = (struct batch_group){
        .parcel = {.layer = head->layer, .mode = head->mode, .hidden = b->limits.hidden},
        .items = b->group_items,
        .first_row = b->group_rows,
        .first_route = b->group_routes,
    };
    collect(b, first, out);
    struct batch_item at = *head;
    if (out->n_items > 1) {
        place_rows(&b->merged, 0, &at);
        at.exponents = b->merged.exponents;
        at.first_route = b->merged.first_route;
        at.experts = b->merged.experts;
        at.weights = b->merged.weights;
        for (int i = 0; i < out->n_items; i++)
            merge_item(b, &b->items[b->group_items[i]], b->group_rows[i], b->group_routes[i]);
    }
    at.n_rows = out->parcel.n_rows;
    out->parcel.rows = batch_rows(b, &at);
    out->parcel.exponents = at.exponents;
    out->parcel.first_route = at.first_route;
    out->parcel.experts = at.experts;
    out->parcel.weights = at.weights;
    return true;
}
