/* tools/bench_plot.h - curves over two logarithmic axes as SVG: what a benchmark measured at
 * several sizes. */
#pragma once

#include "base/buf.h"

enum { BENCH_PLOT_CURVES = 8, BENCH_PLOT_POINTS = 32 };
struct bench_curve {
    char name[48];
    int n;
    double x[BENCH_PLOT_POINTS], y[BENCH_PLOT_POINTS]; /* above 0 */
};
struct bench_plot {
    const char *title, *x_label, *y_label; /* borrowed; plain text without markup */
    int n;
    struct bench_curve curves[BENCH_PLOT_CURVES];
};
/* To the curve of that name, which is made if it is new; what does not fit is left out. */
void bench_plot_add(struct bench_plot *p, const char *name, double x, double y);
void bench_plot_write(const struct bench_plot *p, struct buf *out);
