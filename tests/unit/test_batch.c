/* tests/unit/test_batch.c - parcels that are served together get what they would get alone. */
#include "expert_node/batch.h"

#include "base/mem.h"
#include "engine/expert.h"
#include "model/weights.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"

enum { HIDDEN = 72, TOP_K = 3, EXPERTS = 12, LAYERS = 2, MAX_ROWS = 40, MAX_ITEMS = 6 };

/* The group changes from test to test. */
static struct batch_limits limits = {
    .max_items = MAX_ITEMS, .max_rows = MAX_ROWS, .top_k = TOP_K, .hidden = HIDDEN};

/* Random rows of a parcel, each to 1 to TOP_K experts. */
static int plan_routes(struct rng *r, int n_rows, int32_t *first_route)
{
    first_route[0] = 0;
    for (int i = 0; i < n_rows; i++)
        first_route[i + 1] = first_route[i] + 1 + (int)rng_below(r, TOP_K);
    return first_route[n_rows];
}

/* In the form that the batch keeps: as floats, or quantised as a Forward brings them. */
static void fill_row(struct rng *r, struct batch_item *item, int row)
{
    float x[HIDDEN];
    for (int i = 0; i < HIDDEN; i++)
        x[i] = (float)rng_normal(r);
    if (limits.group)
        kernels_best()->quantise(x, HIDDEN, limits.group, item->q8 + (size_t)row * item->q8_stride,
                                 item->scales + (size_t)row * item->scale_stride,
                                 item->sums + (size_t)row * item->scale_stride);
    else
        memcpy(item->f32 + (size_t)row * item->f32_stride, x, sizeof(x));
}

static void fill(struct rng *r, struct batch_item *item, const int32_t *first_route)
{
    memcpy(item->first_route, first_route, (size_t)(item->n_rows + 1) * sizeof(*first_route));
    for (int i = 0; i < item->n_rows; i++) {
        fill_row(r, item, i);
        /* Now and then a grid that is too fine: the row overflows. */
        item->exponents[i] = rng_below(r, 6) == 0 ? -40 : -20;
        int e = (int)rng_below(r, EXPERTS);
        for (int j = first_route[i]; j < first_route[i + 1]; j++, e++) {
            item->experts[j] = (uint16_t)(e % EXPERTS);
            item->weights[j] = (float)rng_unit(r);
        }
    }
}

struct world {
    struct checkpoint *checkpoint;
    struct expert experts[LAYERS * EXPERTS];
    const struct expert *held[LAYERS * EXPERTS];
    struct compute compute;
    struct expert_scratch *scratch;
};

static void open_world(struct world *w, enum weight_format format)
{
    struct err e = {0};
    tiny_model_write("model", LAYERS, 3);
    *w = (struct world){.compute = {.kernels = kernels_best()}};
    CHECK_INT(checkpoint_open("model", &w->checkpoint, &e), 0);
    for (int i = 0; i < LAYERS * EXPERTS; i++) {
        struct expert_view v;
        CHECK_INT(weights_expert(w->checkpoint, i / EXPERTS, i % EXPERTS, &v, &e), 0);
        CHECK_INT(expert_load(&w->experts[i], &v, format, &w->compute, &e), 0);
        w->held[i] = &w->experts[i];
    }
    limits.group = format_group(format);
    w->scratch = expert_scratch_new(MAX_ROWS, TOP_K, HIDDEN, 24, limits.group);
}

static void close_world(struct world *w)
{
    for (int i = 0; i < LAYERS * EXPERTS; i++)
        expert_fini(&w->experts[i]);
    expert_scratch_free(&w->scratch);
    checkpoint_close(&w->checkpoint);
}

struct outputs {
    int32_t fixed[MAX_ROWS * HIDDEN];
    float by_expert[MAX_ROWS * TOP_K * HIDDEN];
    uint16_t node[MAX_ROWS * HIDDEN];
    uint8_t overflow[MAX_ROWS];
};

static void run(struct world *w, const struct parcel *p, struct outputs *o)
{
    struct parcel_result result = {
        .fixed = o->fixed, .overflow = o->overflow, .by_expert = o->by_expert, .node = o->node};
    memset(o, 0, sizeof(*o));
    expert_forward(&w->compute, w->scratch, w->held + (size_t)p->layer * EXPERTS, EXPERTS, p,
                   &result);
}

static struct parcel parcel_of(const struct batch *b, const struct batch_item *item)
{
    return (struct parcel){.layer = item->layer,
                           .n_rows = item->n_rows,
                           .hidden = HIDDEN,
                           .n_routes = item->n_routes,
                           .mode = item->mode,
                           .rows = batch_rows(b, item),
                           .exponents = item->exponents,
                           .first_route = item->first_route,
                           .experts = item->experts,
                           .weights = item->weights};
}

/* The part of the group's output that is the item's, against the item served alone. */
static void check_item(struct world *w, const struct batch *b, const struct batch_group *g, int i,
                       const struct outputs *together)
{
    static struct outputs alone;
    const struct batch_item *item = batch_item(b, g->items[i]);
    struct parcel p = parcel_of(b, item);
    run(w, &p, &alone);
    size_t row = (size_t)g->first_row[i], route = (size_t)g->first_route[i];
    size_t n_rows = (size_t)item->n_rows, n_routes = (size_t)item->n_routes;
    switch (item->mode) {
    case COMBINE_FIXED:
        CHECK_BYTES(together->overflow + row, alone.overflow, n_rows);
        for (size_t k = 0; k < n_rows; k++)
            if (!alone.overflow[k])
                CHECK_BYTES(together->fixed + (row + k) * HIDDEN, alone.fixed + k * HIDDEN,
                            HIDDEN * sizeof(int32_t));
        break;
    case COMBINE_EXPERT:
        CHECK_BYTES(together->by_expert + route * HIDDEN, alone.by_expert,
                    n_routes * HIDDEN * sizeof(float));
        break;
    default:
        CHECK_BYTES(together->node + row * HIDDEN, alone.node, n_rows * HIDDEN * sizeof(uint16_t));
    }
}

static void compare_merged(enum weight_format format)
{
    struct rng r = test_rng();
    static struct world w;
    static struct outputs together;
    open_world(&w, format);
    struct batch *b = batch_new(&limits);
    int n_merged = 0, n_overflowed = 0;
    for (int round = 0; round < 60; round++) {
        int32_t first_route[MAX_ROWS + 1];
        for (;;) {
            int n_rows = 1 + (int)rng_below(&r, 9);
            int n_routes = plan_routes(&r, n_rows, first_route);
            struct batch_item *item =
                batch_add(b, (int)rng_below(&r, LAYERS),
                          (enum combine_mode)rng_below(&r, COMBINE_COUNT), n_rows, n_routes);
            if (!item)
                break;
            fill(&r, item, first_route);
        }
        int n_served = 0, last_layer = 0;
        struct batch_group g;
        while (batch_next(b, &g)) {
            CHECK(g.parcel.layer >= last_layer);
            last_layer = g.parcel.layer;
            run(&w, &g.parcel, &together);
            for (int i = 0; i < g.n_items; i++) {
                const struct batch_item *item = batch_item(b, g.items[i]);
                CHECK(item->layer == g.parcel.layer && item->mode == g.parcel.mode);
                check_item(&w, b, &g, i, &together);
            }
            for (int i = 0; g.parcel.mode == COMBINE_FIXED && i < g.parcel.n_rows; i++)
                n_overflowed += together.overflow[i];
            n_served += g.n_items;
            n_merged += g.n_items > 1;
        }
        CHECK_INT(n_served, batch_count(b));
        batch_reset(b);
    }
    CHECK(n_merged > 0 && n_overflowed > 0);
    batch_free(&b);
    close_world(&w);
}

TEST(batch_merged_parcels_have_the_bits_of_separate_ones)
{
    static const enum weight_format formats[] = {FORMAT_NATIVE, FORMAT_Q8, FORMAT_Q4};
    for (int i = 0; i < 3; i++)
        compare_merged(formats[i]);
}

TEST(batch_is_bounded_and_takes_back_the_last)
{
    limits.group = Q4_GROUP;
    struct batch *b = batch_new(&limits);
    CHECK(!batch_add(b, 0, COMBINE_FIXED, MAX_ROWS + 1, MAX_ROWS + 1));
    CHECK(!batch_add(b, 0, COMBINE_FIXED, 1, MAX_ROWS * TOP_K + 1));
    CHECK(batch_add(b, 0, COMBINE_FIXED, MAX_ROWS, MAX_ROWS * TOP_K) != NULL);
    CHECK(!batch_add(b, 0, COMBINE_FIXED, 1, 1));
    batch_drop_last(b);
    for (int i = 0; i < MAX_ITEMS; i++)
        CHECK(batch_add(b, 0, COMBINE_FIXED, 1, 1) != NULL);
    CHECK(!batch_add(b, 0, COMBINE_FIXED, 1, 1));
    CHECK_INT(batch_count(b), MAX_ITEMS);
    batch_reset(b);
    struct batch_group g;
    CHECK(!batch_next(b, &g));
    batch_free(&b);
}
