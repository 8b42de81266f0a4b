/* tests/unit/test_events.c - the ring of what happened, and the recording of a trace when it is full. */
#include "coordinator/events.h"

#include "base/clock.h"
#include "coordinator/trace.h"
#include "tests/lib/test.h"

TEST(events_are_read_from_where_one_was)
{
    static struct events e;
    CHECK(events_after(&e, 0) == NULL);
    for (int i = 1; i <= 3; i++)
        events_add(&e, i, EVENTS_WARN, "node gone", "%d", i);
    CHECK_INT(events_after(&e, 0)->id, 1);
    CHECK_STR(events_after(&e, 2)->text, "3");
    CHECK(events_after(&e, 3) == NULL);
    CHECK(events_after(&e, 99) == NULL);
    for (int i = 4; i <= EVENTS_KEPT + 10; i++)
        events_add(&e, i, EVENTS_GOOD, "node ready", "%0300d", i);
    /* The oldest are gone; a text that is too long is cut. */
    CHECK_INT(events_after(&e, 3)->id, 11);
    CHECK_INT(strlen(events_after(&e, 20)->text), EVENTS_TEXT_BYTES - 1);
    CHECK_INT(events_after(&e, EVENTS_KEPT + 9)->id, EVENTS_KEPT + 10);
    CHECK(events_after(&e, EVENTS_KEPT + 10) == NULL);
}

static const char *no_name(void *ud, uint32_t node_id)
{
    (void)ud;
    (void)node_id;
    return "a\"b";
}

TEST(trace_is_bounded_and_says_what_did_not_fit)
{
    struct wire_span spans[2] = {
        {.kind = WIRE_SPAN_CALL, .node_id = 7, .begin_us = 10, .length_us = 100, .compute_us = 60},
        {.kind = WIRE_SPAN_CALL, .node_id = 7, .begin_us = 50, .length_us = 100, .queue_us = 99}};
    struct wire_step_report report = {.n_spans = 2, .spans = spans, .spans_lost = 1};
    struct trace_step s = {.step = 1,
                           .side = 3,
                           .side_name = "attn",
                           .sent_ns = 5 * CLOCK_MS,
                           .done_ns = 6 * CLOCK_MS,
                           .queue_us = UINT64_MAX,
                           .compute_us = 200,
                           .report = &report};
    struct trace *t = trace_new(5 * CLOCK_MS);
    struct buf out = {0};
    for (int i = 0; i < TRACE_ITEMS; i++)
        trace_add_step(t, &s, no_name, NULL);
    CHECK(trace_is_full(t));
    CHECK(trace_write(t, 4, &out));
    buf_putc(&out, '\0');
    CHECK_HAS(out.data, "spans did not fit");
    CHECK_HAS(out.data, "a?b");
    /* Two calls at a time are two threads of the node. */
    CHECK_HAS(out.data, "\"pid\":1007,\"tid\":49,\"ts\":810,\"dur\":100");
    CHECK_HAS(out.data, "\"pid\":1007,\"tid\":50,\"ts\":850,\"dur\":100");
    buf_reset(&out);
    while (trace_write(t, 10000, &out))
        ;
    CHECK(out.len > 2 && memcmp(out.data + out.len - 3, "\n]\n", 3) == 0);
    buf_fini(&out);
    trace_free(&t);
}
