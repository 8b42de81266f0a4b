/* base/stats.c - counters and log2 histograms.  Relaxed atomics: a reader wants a recent
 * value, not an order between two of them. */
#include "base/stats.h"

#include <math.h>
#include <stdatomic.h>

void stats_add(struct stats_counter *c, int64_t n)
{
    atomic_fetch_add_explicit(&c->value, n, memory_order_relaxed);
}

int64_t stats_read(const struct stats_counter *c)
{
    return atomic_load_explicit(&c->value, memory_order_relaxed);
}

static int bucket_of(int64_t value)
{
    if (value < 2)
        return 0;
    int i = 63 - __builtin_clzll((unsigned long long)value);
    return i < STATS_BUCKETS ? i : STATS_BUCKETS - 1;
}

void stats_record(struct stats_histogram *h, int64_t value)
{
    atomic_fetch_add_explicit(&h->buckets[bucket_of(value)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum, value, memory_order_relaxed);
}

double stats_quantile(const struct stats_histogram *h, double q)
{
    /* The total is taken from the buckets themselves: `count` may be one record ahead. */
    int64_t counts[STATS_BUCKETS], total = 0;
    for (int i = 0; i < STATS_BUCKETS; i++) {
        counts[i] = atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
        total += counts[i];
    }
    if (total == 0)
        return 0;
    double wanted = fmin(fmax(q, 0), 1) * (double)total, below = 0;
    int last = 0;
    for (int i = 0; i < STATS_BUCKETS; i++) {
        if (counts[i] == 0)
            continue;
        last = i;
        if (below + (double)counts[i] >= wanted) {
            double low = i == 0 ? 0 : ldexp(1, i), high = ldexp(1, i + 1);
            return low + (high - low) * (wanted - below) / (double)counts[i];
        }
        below += (double)counts[i];
    }
    return ldexp(1, last + 1);
}
