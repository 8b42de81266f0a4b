/* coordinator/metrics.c - see metrics.h. */
#include "coordinator/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include "model/utf8.h"

void metrics_fini(struct metrics *m)
{
    buf_fini(&m->labels);
}

void metrics_family(struct metrics *m, const char *name, enum metrics_type type, const char *help)
{
    static const char *const types[] = {"counter", "gauge", "histogram"};
    bool is_ours = strncmp(name, "process_", 8) != 0;
    int n = snprintf(m->name, sizeof m->name, "%s%s", is_ours ? "polymath_" : "", name);
    must(n > 0 && n < METRICS_NAME_BYTES && m->labels.len == 0 && !strpbrk(help, "\n\\"));
    buf_printf(m->out, "# HELP %s %s\n# TYPE %s %s\n", m->name, help, m->name, types[type]);
}

void metrics_label(struct metrics *m, const char *name, const char *value)
{
    bool is_text = utf8_is_valid(str_of(value));
    buf_printf(&m->labels, "%s%s=\"", m->labels.len ? "," : "", name);
    for (const char *c = value; *c; c++) {
        if (*c == '\\' || *c == '"')
            buf_putc(&m->labels, '\\');
        if (*c == '\n')
            buf_puts(&m->labels, "\\n");
        else
            buf_putc(&m->labels, (signed char)*c < 0 && !is_text ? '?' : *c);
    }
    buf_putc(&m->labels, '"');
}

void metrics_label_int(struct metrics *m, const char *name, int64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, value);
    metrics_label(m, name, text);
}

static void begin_sample(struct metrics *m, const char *suffix)
{
    buf_puts(m->out, m->name);
    buf_puts(m->out, suffix);
    if (m->labels.len > 0) {
        buf_putc(m->out, '{');
        buf_append_str(m->out, buf_str(&m->labels));
        buf_putc(m->out, '}');
    }
    buf_putc(m->out, ' ');
}

void metrics_int(struct metrics *m, int64_t value)
{
    begin_sample(m, "");
    buf_printf(m->out, "%" PRId64 "\n", value);
    buf_reset(&m->labels);
}

void metrics_double(struct metrics *m, double value)
{
    begin_sample(m, "");
    if (isfinite(value))
        buf_printf(m->out, "%.9g\n", value);
    else
        buf_puts(m->out, isnan(value) ? "NaN\n" : value > 0 ? "+Inf\n" : "-Inf\n");
    buf_reset(&m->labels);
}

void metrics_us(struct metrics *m, int64_t us)
{
    begin_sample(m, "");
    buf_printf(m->out, "%.6f\n", (double)us / 1e6);
    buf_reset(&m->labels);
}

void metrics_one(struct metrics *m, const char *name, enum metrics_type type, const char *help,
                 int64_t value)
{
    metrics_family(m, name, type, help);
    metrics_int(m, value);
}

void metrics_histogram(struct metrics *m, const struct stats_histogram *h, struct metrics_range r)
{
    must(r.first >= 0 && r.first < r.last && r.last < STATS_BUCKETS);
    size_t plain = m->labels.len;
    int64_t n = 0;
    for (int i = 0; i < STATS_BUCKETS; i++) {
        n += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
        if (i < r.first || i > r.last)
            continue;
        /* What is recorded are whole numbers, and a bucket ends before the next power of two. */
        buf_printf(&m->labels, "%sle=\"%.9g\"", plain ? "," : "", (ldexp(1, i + 1) - 1) * r.unit);
        begin_sample(m, "_bucket");
        buf_printf(m->out, "%" PRId64 "\n", n);
        m->labels.len = plain;
    }
    buf_printf(&m->labels, "%sle=\"+Inf\"", plain ? "," : "");
    begin_sample(m, "_bucket");
    buf_printf(m->out, "%" PRId64 "\n", n);
    m->labels.len = plain;
    begin_sample(m, "_sum");
    buf_printf(m->out, "%.9g\n",
               (double)atomic_load_explicit(&h->sum, memory_order_relaxed) * r.unit);
    begin_sample(m, "_count");
    buf_printf(m->out, "%" PRId64 "\n", n);
    buf_reset(&m->labels);
}
