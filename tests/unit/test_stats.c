/* tests/unit/test_stats.c - counters and the quantiles of log2 buckets. */
#include "base/stats.h"

#include "base/thread.h"
#include "tests/lib/test.h"

TEST(stats_buckets_hold_their_powers_of_two)
{
    struct stats_histogram h = {0};
    static const int64_t values[] = {INT64_MIN, -1, 0, 1, 2, 3, 4, 1023, 1024, INT64_MAX};
    static const int buckets[] = {0, 0, 0, 0, 1, 1, 2, 9, 10, STATS_BUCKETS - 1};
    for (int i = 0; i < 10; i++) {
        int64_t before = h.buckets[buckets[i]];
        stats_record(&h, values[i]);
        CHECK_INT(h.buckets[buckets[i]], before + 1);
    }
    CHECK_INT(h.count, 10);
}

TEST(stats_quantiles_lie_in_the_right_bucket)
{
    struct stats_histogram h = {0};
    CHECK(stats_quantile(&h, 0.5) == 0);
    for (int i = 0; i < 90; i++)
        stats_record(&h, 100); /* [64, 128) */
    for (int i = 0; i < 10; i++)
        stats_record(&h, 5000); /* [4096, 8192) */
    CHECK_INT(h.sum, 90 * 100 + 10 * 5000);
    double p50 = stats_quantile(&h, 0.5), p99 = stats_quantile(&h, 0.99);
    CHECK(p50 >= 64 && p50 <= 128);
    CHECK(p99 >= 4096 && p99 <= 8192);
    CHECK(stats_quantile(&h, 0) >= 64 && stats_quantile(&h, 1) <= 8192);
    CHECK(stats_quantile(&h, 7) == stats_quantile(&h, 1));
    /* Half of a bucket's values is half of its width: exact in binary. */
    CHECK_NEAR(stats_quantile(&h, 0.45), 96, 0);
}

static void count_up(struct thread *t, void *arg)
{
    thread_ready(t, 0, NULL);
    while (stats_read(arg) < 1000)
        stats_add(arg, 1);
}

TEST(stats_counter_is_read_while_written)
{
    struct stats_counter c = {0};
    struct thread *t = NULL;
    CHECK_INT(thread_start("count", count_up, &c, &t, NULL), 0);
    int64_t last = 0;
    while (last < 1000) {
        int64_t now = stats_read(&c);
        CHECK(now >= last);
        last = now;
    }
    thread_stop(&t, NULL, NULL);
    stats_add(&c, -1000);
    CHECK_INT(stats_read(&c), 0);
}
