/* tests/unit/test_pace.c - usual times, deadlines, hedges and their budget. */
#include "attn_node/pace.h"

#include "base/clock.h"
#include "tests/lib/test.h"

static const struct pace_limits limits = {
    .min_ns = 20 * CLOCK_MS, .max_ns = 500 * CLOCK_MS, .min_hedge_ns = CLOCK_MS};

TEST(pace_without_history_waits_the_longest)
{
    struct pace p = {0};
    CHECK_INT(pace_usual_ns(&p, 8), 0);
    CHECK_INT(pace_deadline_ns(&p, &limits, 8), limits.max_ns);
    CHECK_INT(pace_hedge_ns(&p, &limits, 8), limits.max_ns);
}

TEST(pace_deadline_is_four_times_the_usual_within_its_limits)
{
    static const int64_t usual_ms[] = {1, 5, 10, 50, 100, 120};
    static const int64_t deadline_ms[] = {20, 20, 40, 200, 400, 480};
    for (int i = 0; i < 6; i++) {
        struct pace p = {0};
        for (int k = 0; k < 2000; k++)
            pace_take(&p, 8, usual_ms[i] * CLOCK_MS);
        CHECK_INT(pace_usual_ns(&p, 8), usual_ms[i] * CLOCK_MS);
        CHECK_INT(pace_deadline_ns(&p, &limits, 8), deadline_ms[i] * CLOCK_MS);
    }
    /* A node that has always been slow is not late. */
    struct pace p = {0};
    for (int k = 0; k < 2000; k++)
        pace_take(&p, 8, 2 * CLOCK_S);
    CHECK(pace_deadline_ns(&p, &limits, 8) >= 3 * CLOCK_S);
}

/* Exponential times: the p95 is 3.0 times the mean. */
TEST(pace_finds_the_95th_percentile_and_follows_it)
{
    struct rng r = test_rng();
    struct pace p = {0};
    static const int64_t mean_ns[] = {4 * CLOCK_MS, 12 * CLOCK_MS, 2 * CLOCK_MS};
    for (int i = 0; i < 3; i++) {
        int n_above = 0, n = 20000;
        for (int k = 0; k < n; k++) {
            double x = 0;
            for (double u = rng_unit(&r); u < 0.999 && x < 50; u = rng_unit(&r), x += 1)
                if (u < 1.0 / 64)
                    break;
            int64_t took_ns = (int64_t)((double)mean_ns[i] * (x + rng_unit(&r)) / 64);
            if (k > n / 4)
                n_above += took_ns > p.classes[3].p95_ns;
            pace_take(&p, 8, took_ns);
        }
        /* One in twenty, within a factor of 1.6: the step is coarse and the mean moves. */
        double share = (double)n_above / (n * 3 / 4);
        test_note("mean %lld us: %.1f %% above", (long long)mean_ns[i] / 1000, 100 * share);
        CHECK(share > 0.03 && share < 0.08);
    }
}

/* A process that begins, or a machine that is busy for a moment, is slow for a while, and afterwards
 * a silent node is not waited for as long. */
TEST(pace_forgets_that_a_node_was_slow_once)
{
    struct pace p = {0};
    pace_take(&p, 8, 2 * CLOCK_S); /* the first of all */
    CHECK_INT(pace_deadline_ns(&p, &limits, 8), limits.max_ns);
    for (int k = 0; k < 100; k++)
        pace_take(&p, 8, CLOCK_MS);
    CHECK_INT(pace_deadline_ns(&p, &limits, 8), limits.max_ns);
    CHECK_INT(pace_deadline_ns(&p, &limits, 512), limits.max_ns); /* borrowed */
    for (int k = 0; k < 5000; k++)
        pace_take(&p, 8, CLOCK_MS);
    CHECK_INT(pace_deadline_ns(&p, &limits, 8), limits.min_ns);
    CHECK(pace_hedge_ns(&p, &limits, 8) < 3 * CLOCK_MS);
}

TEST(pace_borrows_from_other_sizes)
{
    struct pace p = {0};
    for (int k = 0; k < 100; k++)
        pace_take(&p, 8, 20 * CLOCK_MS);
    CHECK_INT(pace_usual_ns(&p, 15), 20 * CLOCK_MS); /* the same class */
    CHECK_INT(pace_usual_ns(&p, 32), 80 * CLOCK_MS); /* two classes up */
    CHECK_INT(pace_usual_ns(&p, 1), 20 * CLOCK_MS);  /* below */
    CHECK_INT(pace_deadline_ns(&p, &limits, 16), 160 * CLOCK_MS);
    pace_take(&p, 1 << 30, CLOCK_S); /* the last class takes all that is larger */
    CHECK_INT(pace_usual_ns(&p, 1 << 20), CLOCK_S);
}

TEST(pace_learns_from_answers_that_never_came)
{
    struct pace p = {0};
    for (int k = 0; k < 100; k++)
        pace_take(&p, 8, 10 * CLOCK_MS);
    pace_take_at_least(&p, 8, 5 * CLOCK_MS); /* says nothing */
    CHECK_INT(pace_usual_ns(&p, 8), 10 * CLOCK_MS);
    for (int k = 0; k < 100; k++)
        pace_take_at_least(&p, 8, pace_deadline_ns(&p, &limits, 8));
    CHECK(pace_usual_ns(&p, 8) > 100 * CLOCK_MS);
    CHECK_INT(pace_deadline_ns(&p, &limits, 8), limits.max_ns); /* however often none comes */
}

TEST(pace_hedges_at_the_p95_but_not_in_a_hurry)
{
    struct pace p = {0};
    for (int k = 0; k < 3000; k++)
        pace_take(&p, 8, 100 * CLOCK_US);
    CHECK_INT(pace_hedge_ns(&p, &limits, 8), limits.min_hedge_ns);
    struct pace slow = {0};
    for (int k = 0; k < 3000; k++)
        pace_take(&slow, 8, 10 * CLOCK_MS);
    CHECK_INT(pace_hedge_ns(&slow, &limits, 8), 20 * CLOCK_MS);
}

TEST(pace_budget_gives_its_share_and_no_more)
{
    struct pace_budget b = {.percent = 5};
    CHECK(!pace_may_spend(&b));
    int n_spent = 0;
    for (int i = 0; i < 1000; i++) {
        pace_earn(&b, 1);
        if (!pace_may_spend(&b))
            continue;
        pace_spend(&b, 3); /* a debt, which the next ones pay */
        n_spent += 3;
    }
    CHECK(n_spent >= 48 && n_spent <= 51);
    /* What is saved up is bounded. */
    for (int i = 0; i < 100000; i++)
        pace_earn(&b, 4);
    for (n_spent = 0; pace_may_spend(&b); n_spent++)
        pace_spend(&b, 1);
    CHECK_INT(n_spent, 32);
    struct pace_budget none = {.percent = 0};
    pace_earn(&none, 1000000);
    CHECK(!pace_may_spend(&none));
}
