/* tools/bench_plot.c - see bench_plot.h. */
#include "tools/bench_plot.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WIDTH = 760, HEIGHT = 440, LEFT = 72, TOP = 48, PANEL_WIDTH = 500, PANEL_HEIGHT = 330 };
static const char *const colours[BENCH_PLOT_CURVES] = {"#3f51b5", "#d2691e", "#2e8b57", "#8b2e6b",
                                                       "#555555", "#b58900", "#268bd2", "#cb4b16"};

void bench_plot_add(struct bench_plot *p, const char *name, double x, double y)
{
    int i = 0;
    while (i < p->n && strcmp(p->curves[i].name, name) != 0)
        i++;
    if (i == BENCH_PLOT_CURVES || !(x > 0) || !(y > 0))
        return;
    struct bench_curve *c = &p->curves[i];
    if (i == p->n) {
        snprintf(c->name, sizeof c->name, "%s", name);
        p->n++;
    }
    if (c->n == BENCH_PLOT_POINTS)
        return;
    c->x[c->n] = x;
    c->y[c->n++] = y;
}

/* Whole powers of `base` around all values. */
struct axis {
    double base, low, high;
};

static double power_of(const struct axis *a, double value)
{
    return log(value) / log(a->base);
}

static void stretch(struct axis *a, double value)
{
    /* A power itself is not stretched past by what its logarithm was rounded. */
    a->low = fmin(a->low, floor(power_of(a, value) + 1e-9));
    a->high = fmax(a->high, ceil(power_of(a, value) - 1e-9));
}

static struct axis axis_of(const struct bench_plot *p, double base, bool is_y)
{
    struct axis a = {base, INFINITY, -INFINITY};
    for (int i = 0; i < p->n; i++)
        for (int k = 0; k < p->curves[i].n; k++)
            stretch(&a, is_y ? p->curves[i].y[k] : p->curves[i].x[k]);
    if (p->n == 0)
        a.low = a.high = 0;
    if (a.high == a.low)
        a.high++;
    return a;
}

static double x_at(const struct axis *a, double power)
{
    return LEFT + PANEL_WIDTH * (power - a->low) / (a->high - a->low);
}

static double y_at(const struct axis *a, double power)
{
    return TOP + PANEL_HEIGHT * (1 - (power - a->low) / (a->high - a->low));
}

static void text_at(struct buf *out, double x, double y, const char *anchor, const char *text)
{
    buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor,
               text);
}

static void rule(struct buf *out, double x1, double y1, double x2, double y2)
{
    buf_printf(out, "<path class=\"grid\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", x1, y1, x2, y2);
}

/* Positions as people name them: 1024 is 1 K. */
static void write_grid(struct buf *out, const struct axis *x, const struct axis *y)
{
    char label[32];
    for (double p = x->low; p <= x->high; p++) {
        double value = pow(x->base, p), kilo = 1024;
        bool is_mega = value >= kilo * kilo, is_kilo = value >= kilo;
        snprintf(label, sizeof label, "%g%s",
                 is_mega   ? value / kilo / kilo
                 : is_kilo ? value / kilo
                           : value,
                 is_mega   ? " M"
                 : is_kilo ? " K"
                           : "");
        rule(out, x_at(x, p), TOP, x_at(x, p), TOP + PANEL_HEIGHT);
        text_at(out, x_at(x, p), TOP + PANEL_HEIGHT + 18, "middle", label);
    }
    for (double p = y->low; p <= y->high; p++) {
        snprintf(label, sizeof label, "%g", pow(y->base, p));
        rule(out, LEFT, y_at(y, p), LEFT + PANEL_WIDTH, y_at(y, p));
        text_at(out, LEFT - 6, y_at(y, p) + 4, "end", label);
    }
}

static void write_curve(struct buf *out, const struct bench_curve *c, int index,
                        const struct axis *x, const struct axis *y)
{
    buf_printf(out, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"2\" d=\"", colours[index]);
    for (int i = 0; i < c->n; i++)
        buf_printf(out, "%s%.1f %.1f", i ? "L" : "M", x_at(x, power_of(x, c->x[i])),
                   y_at(y, power_of(y, c->y[i])));
    buf_puts(out, "\"/>\n");
    for (int i = 0; i < c->n; i++)
        buf_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n",
                   x_at(x, power_of(x, c->x[i])), y_at(y, power_of(y, c->y[i])), colours[index]);
    buf_printf(out, "<text x=\"%d\" y=\"%d\" fill=\"%s\">%s</text>\n", LEFT + PANEL_WIDTH + 12,
               TOP + 14 + 18 * index, colours[index], c->name);
}

void bench_plot_write(const struct bench_plot *p, struct buf *out)
{
    struct axis x = axis_of(p, 2, false), y = axis_of(p, 10, true);
    buf_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
               "font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n"
               "<style>.grid{stroke:#ddd}</style>\n"
               "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
               WIDTH, HEIGHT);
    text_at(out, LEFT, 18, "start", p->title);
    text_at(out, LEFT, TOP - 10, "start", p->y_label);
    text_at(out, LEFT + PANEL_WIDTH, TOP + PANEL_HEIGHT + 40, "end", p->x_label);
    write_grid(out, &x, &y);
    for (int i = 0; i < p->n; i++)
        write_curve(out, &p->curves[i], i, &x, &y);
    buf_puts(out, "</svg>\n");
}
