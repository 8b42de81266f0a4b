/* tests/unit/test_bench_plot.c - curves over logarithmic axes. */
#include "tools/bench_plot.h"

#include <stdio.h>
#include <string.h>

#include "tests/lib/test.h"

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *at = text; (at = strstr(at, what)); at++)
        n++;
    return n;
}

TEST(bench_plot_draws_each_curve_over_whole_powers)
{
    struct bench_plot p = {.title = "title", .x_label = "across", .y_label = "up"};
    struct buf out = {0};
    bench_plot_add(&p, "full", 1024, 0.2);
    bench_plot_add(&p, "msa", 1024, 0.2);
    bench_plot_add(&p, "full", 1 << 20, 90);
    bench_plot_add(&p, "full", 0, 3); /* has no place on such an axis */
    CHECK_INT(p.n, 2);
    CHECK_INT(p.curves[0].n, 2);
    bench_plot_write(&p, &out);
    CHECK_INT(count(out.data, "<circle"), 3);
    CHECK_INT(count(out.data, "stroke-width=\"2\""), 2);
    CHECK_HAS(out.data, ">1 K<");
    CHECK_HAS(out.data, ">1 M<");
    CHECK_HAS(out.data, ">0.1<");
    CHECK_HAS(out.data, ">100<");
    CHECK_HAS(out.data, ">full<");
    /* From the left edge to the right one. */
    CHECK_HAS(out.data, "d=\"M72.0 ");
    CHECK_HAS(out.data, "L572.0 ");
    buf_fini(&out);
}

TEST(bench_plot_leaves_out_what_does_not_fit)
{
    struct bench_plot p = {.title = "", .x_label = "", .y_label = ""};
    struct buf out = {0};
    bench_plot_write(&p, &out); /* of nothing: axes alone */
    CHECK_INT(count(out.data, "<circle"), 0);
    for (int i = 0; i < 2 * BENCH_PLOT_CURVES; i++) {
        char name[32];
        snprintf(name, sizeof name, "curve %d", i);
        for (int k = 0; k < 2 * BENCH_PLOT_POINTS; k++)
            bench_plot_add(&p, name, 1 + k, 1);
    }
    CHECK_INT(p.n, BENCH_PLOT_CURVES);
    CHECK_INT(p.curves[0].n, BENCH_PLOT_POINTS);
    buf_fini(&out);
}
