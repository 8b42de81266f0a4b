/* tests/unit/test_wire_report.c - what an attention side tells beside a step's reply: there and back, and
 * what is refused. */
#include "base/mem.h"
#include "rpc/wire.h"
#include "tests/unit/wire_random.h"

#define SAME(field) CHECK(a->field == b->field)

static int check_step_report(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    (void)payloads;
    (void)n;
    struct wire_step_report *out = NULL;
    int rc = wire_step_report_decode(message, &out, NULL);
    CHECK((rc == 0) == (out != NULL));
    mem_free(out);
    return rc;
}

TEST(wire_step_report_comes_back)
{
    struct wire_node_traffic nodes[] = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {.node_id = 2}};
    struct wire_layer_time layers[] = {{0, 1, 2, 3, 4}, {61, 5, 6, 7, 8}};
    struct wire_span spans[] = {
        {.kind = WIRE_SPAN_CALL,
         .layer = 3,
         .lane = 1,
         .node_id = 9,
         .begin_us = 10,
         .length_us = 20,
         .queue_us = 5,
         .compute_us = 15,
         .rows = 4,
         .bytes = 4096,
         .is_failed = true},
        {.kind = WIRE_SPAN_HEAD, .begin_us = 30, .length_us = 1},
    };
    struct wire_step_report in = {.n_nodes = 2,
                                  .n_layers = 2,
                                  .n_spans = 2,
                                  .nodes = nodes,
                                  .layers = layers,
                                  .spans = spans,
                                  .spans_lost = 77};
    struct wire_step_report *out = NULL;
    struct buf message = {0};
    wire_step_report_encode(&in, &message);
    CHECK_INT(wire_step_report_decode(buf_str(&message), &out, NULL), 0);
    CHECK_INT(out->n_nodes, 2);
    for (int i = 0; i < 2; i++) {
        const struct wire_node_traffic *a = &nodes[i], *b = &out->nodes[i];
        SAME(node_id);
        SAME(incarnation);
        SAME(calls);
        SAME(failovers);
        SAME(hedges);
        SAME(retries);
        SAME(sent_bytes);
        SAME(received_bytes);
        SAME(call_us);
        SAME(queue_us);
        SAME(compute_us);
    }
    CHECK_INT(out->n_layers, 2);
    for (int i = 0; i < 2; i++) {
        const struct wire_layer_time *a = &layers[i], *b = &out->layers[i];
        SAME(layer);
        SAME(rounds);
        SAME(rows);
        SAME(attention_us);
        SAME(experts_us);
    }
    CHECK_INT(out->n_spans, 2);
    for (int i = 0; i < 2; i++) {
        const struct wire_span *a = &spans[i], *b = &out->spans[i];
        SAME(kind);
        SAME(layer);
        SAME(lane);
        SAME(node_id);
        SAME(begin_us);
        SAME(length_us);
        SAME(queue_us);
        SAME(compute_us);
        SAME(rows);
        SAME(bytes);
        SAME(is_failed);
    }
    CHECK_INT(out->spans_lost, 77);
    mem_free(out);
    wire_damage(buf_str(&message), NULL, 0, check_step_report, NULL);
#define REFUSE_REPORT(change) \
    do { \
        struct wire_span kept = spans[0]; \
        struct wire_node_traffic kept_node = nodes[0]; \
        change; \
        wire_step_report_encode(&in, &message); \
        CHECK_INT(wire_step_report_decode(buf_str(&message), &out, NULL), E_INVALID); \
        CHECK(out == NULL); \
        spans[0] = kept; \
        nodes[0] = kept_node; \
    } while (0)
    REFUSE_REPORT(nodes[0].node_id = 0);
    REFUSE_REPORT(spans[0].kind = WIRE_SPANS);
    REFUSE_REPORT(spans[0].compute_us = 16);
    REFUSE_REPORT(spans[0].queue_us = UINT64_MAX);
    REFUSE_REPORT(spans[0].layer = WIRE_MAX_LAYERS);
    REFUSE_REPORT(spans[0].begin_us = 1ULL << 60);
    buf_fini(&message);
}

TEST(wire_step_reply_parts_are_not_more_than_their_whole)
{
    struct wire_step_reply in = {
        .attention_us = 7, .head_us = 9, .router_us = 3, .sampling_us = 44};
    struct wire_step_reply *out = NULL;
    struct buf message = {0};
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), 0);
    CHECK_INT(out->router_us, 3);
    CHECK_INT(out->sampling_us, 9);
    mem_free(out);
    buf_fini(&message);
}

/* A side that knows nothing of lanes has one. */
TEST(wire_step_reply_says_how_many_lanes)
{
    for (uint32_t lanes = 0; lanes <= 3; lanes++) {
        struct wire_step_reply in = {.lanes = lanes, .lanes_permille = 890 + lanes};
        struct wire_step_reply *out = NULL;
        struct buf message = {0};
        wire_step_reply_encode(&in, &message);
        CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), 0);
        CHECK_INT(out->lanes, lanes == 2 ? 2 : 1);
        CHECK_INT(out->lanes_permille, 890 + lanes);
        mem_free(out);
        buf_fini(&message);
    }
}
