/* tests/unit/test_metrics.c - Prometheus' text form: escaping, histograms; and the sums behind it. */
#include "coordinator/metrics.h"

#include <stdio.h>

#include "coordinator/traffic.h"
#include "coordinator/work.h"
#include "tests/lib/test.h"

TEST(metrics_escape_labels)
{
    struct buf out = {0};
    struct metrics m = {.out = &out};
    metrics_family(&m, "calls_total", METRICS_COUNTER, "Calls.");
    metrics_label(&m, "node", "a\"b\\c\nd");
    metrics_label_int(&m, "layer", -3);
    metrics_int(&m, 7);
    metrics_label(&m, "node",
                  "\xff\xfe"
                  "x");
    metrics_double(&m, 0.5);
    metrics_label(&m, "node", "\xc3\xa4");
    metrics_us(&m, 1500000);
    metrics_double(&m, -1.0 / 0.0);
    metrics_one(&m, "process_open_fds", METRICS_GAUGE, "Files.", 4);
    buf_putc(&out, '\0');
    CHECK_STR(out.data, "# HELP polymath_calls_total Calls.\n# TYPE polymath_calls_total counter\n"
                        "polymath_calls_total{node=\"a\\\"b\\\\c\\nd\",layer=\"-3\"} 7\n"
                        "polymath_calls_total{node=\"??x\"} 0.5\n"
                        "polymath_calls_total{node=\"\xc3\xa4\"} 1.500000\n"
                        "polymath_calls_total -Inf\n"
                        "# HELP process_open_fds Files.\n# TYPE process_open_fds gauge\n"
                        "process_open_fds 4\n");
    metrics_fini(&m);
    buf_fini(&out);
}

TEST(metrics_histograms_are_cumulative_and_complete)
{
    struct buf out = {0};
    struct metrics m = {.out = &out};
    struct stats_histogram h = {0};
    static const int64_t values[] = {0, 1, 3, 4, 7, 8, 100000};
    for (int i = 0; i < 7; i++)
        stats_record(&h, values[i]);
    metrics_family(&m, "rows", METRICS_HISTOGRAM, "Rows.");
    metrics_label(&m, "side", "a");
    metrics_histogram(&m, &h, (struct metrics_range){.first = 1, .last = 3, .unit = 1});
    metrics_family(&m, "wait_seconds", METRICS_HISTOGRAM, "Waits.");
    metrics_histogram(&m, &h, (struct metrics_range){.first = 2, .last = 3, .unit = 1e-6});
    buf_putc(&out, '\0');
    /* 8 and more are outside of "up to 7": the bounds are exact for whole numbers. */
    CHECK_STR(out.data, "# HELP polymath_rows Rows.\n# TYPE polymath_rows histogram\n"
                        "polymath_rows_bucket{side=\"a\",le=\"3\"} 3\n"
                        "polymath_rows_bucket{side=\"a\",le=\"7\"} 5\n"
                        "polymath_rows_bucket{side=\"a\",le=\"15\"} 6\n"
                        "polymath_rows_bucket{side=\"a\",le=\"+Inf\"} 7\n"
                        "polymath_rows_sum{side=\"a\"} 100023\n"
                        "polymath_rows_count{side=\"a\"} 7\n"
                        "# HELP polymath_wait_seconds Waits.\n"
                        "# TYPE polymath_wait_seconds histogram\n"
                        "polymath_wait_seconds_bucket{le=\"7e-06\"} 5\n"
                        "polymath_wait_seconds_bucket{le=\"1.5e-05\"} 6\n"
                        "polymath_wait_seconds_bucket{le=\"+Inf\"} 7\n"
                        "polymath_wait_seconds_sum 0.100023\n"
                        "polymath_wait_seconds_count 7\n");
    metrics_fini(&m);
    buf_fini(&out);
}

TEST(traffic_goes_on_when_nodes_and_sides_start_again)
{
    struct traffic t;
    traffic_init(&t, 3);
    struct wire_node_traffic some = {.node_id = 4, .calls = 2, .sent_bytes = 10, .call_us = 7};
    traffic_add_node(&t, "expert-0", &some);
    some.node_id = 9; /* the same name, another process */
    traffic_add_node(&t, "expert-0", &some);
    traffic_add_node(&t, "expert-1", &some);
    CHECK_INT(t.n_nodes, 2);
    CHECK_INT(t.nodes[0].sums.calls, 4);
    CHECK_INT(t.nodes[0].sums.sent_bytes, 20);
    CHECK_INT(t.nodes[1].sums.call_us, 7);

    struct wire_layer_time layer = {.layer = 2, .rounds = 1, .experts_us = 5};
    traffic_add_layer(&t, &layer);
    layer.layer = 3;
    traffic_add_layer(&t, &layer);
    CHECK_INT(t.layers[2].rounds, 1);
    CHECK_INT(t.layers[2].experts_us, 5);

    struct wire_ladder_counters before = {0}, now = {.calls = 10, .hedges = 3};
    traffic_add_ladder(&t, &before, &now);
    traffic_add_ladder(&t, &before, &now);
    CHECK_INT(t.ladder.calls, 10);
    now.calls = 4; /* the side has started again */
    traffic_add_ladder(&t, &before, &now);
    CHECK_INT(t.ladder.calls, 14);
    CHECK_INT(t.ladder.hedges, 3);

    struct wire_grammar_counters had = {0}, has = {.shared = 5, .bytes = 70, .kept = 2}, none = {0};
    traffic_add_grammars(&t, &had, &has);
    has.bytes = 60;
    traffic_add_grammars(&t, &had, &has);
    CHECK_INT(t.grammars.shared, 5);
    CHECK_INT(t.grammars.bytes, 60);
    traffic_add_grammars(&t, &had, &none); /* the side is gone */
    CHECK_INT(t.grammars.shared, 5);
    CHECK_INT(t.grammars.bytes + t.grammars.kept, 0);
    traffic_fini(&t);
}

TEST(traffic_names_are_bounded)
{
    struct traffic t;
    struct wire_node_traffic one = {.node_id = 1, .calls = 1};
    traffic_init(&t, 1);
    for (int i = 0; i < 3 * TRAFFIC_NODES; i++) {
        char name[24];
        snprintf(name, sizeof name, "node-%d", i);
        traffic_add_node(&t, name, &one);
    }
    CHECK_INT(t.n_nodes, TRAFFIC_NODES);
    CHECK_STR(t.nodes[TRAFFIC_NODES - 1].name, "other");
    CHECK_INT(t.nodes[TRAFFIC_NODES - 1].sums.calls, 2 * TRAFFIC_NODES + 1);
    traffic_fini(&t);
}

TEST(work_inside_other_work_counts_apart)
{
    struct work w = {.since_ns = 1000};
    CHECK_INT(work_turn(&w, WORK_HTTP, 1100), WORK_OTHER);
    CHECK_INT(work_turn(&w, WORK_READING, 1110), WORK_HTTP);
    CHECK_INT(work_turn(&w, WORK_SCHEDULER, 1140), WORK_READING);
    CHECK_INT(work_turn(&w, WORK_READING, 1145), WORK_SCHEDULER);
    CHECK_INT(work_turn(&w, WORK_HTTP, 1150), WORK_READING);
    CHECK_INT(work_turn(&w, WORK_OTHER, 1157), WORK_HTTP);
    CHECK_INT(w.ns[WORK_OTHER], 100);
    CHECK_INT(w.ns[WORK_HTTP], 17);
    CHECK_INT(w.ns[WORK_READING], 35);
    CHECK_INT(w.ns[WORK_SCHEDULER], 5);
    CHECK_INT(w.ns[WORK_WRITING], 0);
    CHECK_STR(work_name(WORK_WRITING), "writing");
}
