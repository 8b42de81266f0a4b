/* tests/unit/test_observer.c - where a step's time went, as the engine thread's observer sums it up. */
#include "attn_node/observer.h"

#include "base/clock.h"
#include "tests/lib/test.h"

#define MS CLOCK_MS

/* One layer: attention until `at`, then a round of 4 ms whose scatter takes 1. */
static void layer(struct observer *o, int index, int64_t at_ns)
{
    observer_scattered(o, 0, index, 3, at_ns, at_ns + 1 * MS);
    observer_gathered(o, 0, index, at_ns, at_ns + 4 * MS);
}

TEST(observer_sums_layers_and_begins_anew)
{
    struct observer *o = observer_new(3);
    struct wire_step_report r = {0};
    observer_begin_step(o, false, 100 * MS);
    layer(o, 0, 102 * MS);
    layer(o, 1, 109 * MS);
    observer_begin_step(o, false, 200 * MS);
    layer(o, 0, 205 * MS);
    CHECK(observer_is_due(o, 10 * CLOCK_S));
    observer_report(o, &r, 10 * CLOCK_S);
    CHECK_INT(r.n_layers, 2); /* the third was not run */
    CHECK_INT(r.layers[0].layer, 0);
    CHECK_INT(r.layers[0].rounds, 2);
    CHECK_INT(r.layers[0].rows, 6);
    CHECK_INT(r.layers[0].attention_us, 7000);
    CHECK_INT(r.layers[0].experts_us, 8000);
    CHECK_INT(r.layers[1].attention_us, 3000);
    CHECK_INT(r.n_spans, 0); /* nobody traces */
    CHECK(!observer_is_due(o, 10 * CLOCK_S + 249 * MS));
    CHECK(observer_is_due(o, 10 * CLOCK_S + 250 * MS));
    observer_report(o, &r, 11 * CLOCK_S);
    CHECK_INT(r.n_layers, 0);
    observer_free(&o);
    CHECK(o == NULL);
    observer_free(&o);
}

TEST(observer_router_begins_where_attention_has_been_added)
{
    struct observer *o = observer_new(2);
    observer_begin_step(o, false, 10 * MS);
    observer_attended(o, 15 * MS);
    layer(o, 0, 17 * MS);
    CHECK_INT(observer_router_ns(o), 2 * MS);
    layer(o, 1, 25 * MS); /* nobody said where its attention ended */
    CHECK_INT(observer_router_ns(o), 2 * MS);
    observer_begin_step(o, false, 40 * MS);
    CHECK_INT(observer_router_ns(o), 0);
    observer_free(&o);
}

/* With two lanes the engine computes one while the other's rows are away. */
TEST(observer_gives_attention_to_the_lane_that_it_was_for)
{
    struct observer *o = observer_new(1);
    struct wire_step_report r = {0};
    observer_begin_step(o, true, 0);
    observer_scattered(o, 0, 0, 1, 2 * MS, 3 * MS);
    observer_scattered(o, 1, 0, 1, 8 * MS, 9 * MS);
    observer_gathered(o, 0, 0, 2 * MS, 12 * MS);
    observer_gathered(o, 1, 0, 8 * MS, 14 * MS);
    observer_report(o, &r, 14 * MS);
    CHECK_INT(r.layers[0].attention_us, 7000);
    CHECK_INT(r.n_spans, 4);
    CHECK_INT(r.spans[1].lane, 1);
    CHECK_INT(r.spans[1].begin_us, 3000);
    CHECK_INT(r.spans[1].length_us, 5000);
    observer_free(&o);
}

TEST(observer_spans_are_bounded_and_believe_nobody)
{
    struct observer *o = observer_new(1);
    struct wire_step_report r = {0};
    struct wire_span call = {
        .kind = WIRE_SPAN_CALL, .node_id = 4, .queue_us = UINT64_MAX, .compute_us = 700};
    observer_begin_step(o, true, 5 * MS);
    for (int i = 0; i < OBSERVER_SPANS + 7; i++)
        observer_called(o, &call, 4 * MS, 6 * MS); /* sent before the step: by an older one */
    CHECK(observer_is_due(o, 0));
    observer_report(o, &r, 6 * MS);
    CHECK_INT(r.n_spans, OBSERVER_SPANS);
    CHECK_INT(r.spans_lost, 7);
    CHECK_INT(r.spans[0].begin_us, 0);
    CHECK_INT(r.spans[0].length_us, 2000);
    CHECK_INT(r.spans[0].compute_us, 700);
    CHECK_INT(r.spans[0].queue_us, 1300);
    observer_begin_step(o, true, 9 * MS);
    observer_report(o, &r, 9 * MS);
    CHECK_INT(r.n_spans, 0);
    CHECK_INT(r.spans_lost, 0);
    observer_free(&o);
}
