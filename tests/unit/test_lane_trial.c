/* tests/unit/test_lane_trial.c - two lanes are used where they are measured to be faster, and only there. */
#include "attn_node/lane_trial.h"

#include "base/clock.h"
#include "tests/lib/test.h"

/* Steps of n_rows whose times are a function of their lanes; `two` of those that had two. */
struct run {
    struct lane_trial trial;
    int64_t now_ns;
    int n_two;
};

/* Two lanes take `ratio` of one's 10 us a row; noise is that share of a step's time. */
static void steps(struct run *r, struct rng *g, int n, struct lane_step s, double ratio,
                  double noise)
{
    r->n_two = 0;
    for (int i = 0; i < n; i++) {
        bool has_two = lane_trial_wants_two(&r->trial, &s, r->now_ns);
        double share = 1.0 + noise * (rng_unit(g) - 0.5);
        int64_t took_ns = (int64_t)(s.n_rows * 10e3 * (has_two ? ratio : 1.0) * share);
        r->n_two += has_two;
        r->now_ns += took_ns;
        lane_trial_took(&r->trial, &s, has_two, true, took_ns, r->now_ns);
    }
}

static struct run begin(void)
{
    struct run r = {.now_ns = 5 * CLOCK_S};
    lane_trial_init(&r.trial, LANES_AUTO);
    return r;
}

static const struct lane_step decode = {16, 16}, prompt = {64, 1}, guesses = {16, 4};
enum { TRIAL_STEPS = 2 * LANE_TRIAL_PAIRS };

TEST(lane_trial_takes_what_is_faster)
{
    struct rng g = test_rng();
    struct run r = begin();
    CHECK(lane_trial_ratio(&r.trial, &decode) == 0);
    steps(&r, &g, LANE_TRIAL_WARM_UP, decode, 0.8, 0.01);
    CHECK_INT(r.n_two, 0);
    steps(&r, &g, TRIAL_STEPS, decode, 0.8, 0.01);
    CHECK_INT(r.n_two, LANE_TRIAL_PAIRS);
    CHECK(lane_trial_ratio(&r.trial, &decode) > 0.77 && lane_trial_ratio(&r.trial, &decode) < 0.83);
    steps(&r, &g, 50, decode, 0.8, 0.01);
    CHECK_INT(r.n_two, 50);
    /* Other steps know nothing of it; those with guesses are like the first. */
    CHECK(!lane_trial_wants_two(&r.trial, &prompt, r.now_ns));
    CHECK(!lane_trial_wants_two(&r.trial, &(struct lane_step){64, 64}, r.now_ns));
    CHECK(lane_trial_wants_two(&r.trial, &guesses, r.now_ns));
    CHECK(lane_trial_wants_two(&r.trial, &(struct lane_step){31, 31}, r.now_ns));
}

TEST(lane_trial_ends_early_where_two_are_much_slower)
{
    struct rng g = test_rng();
    struct run r = begin();
    steps(&r, &g, LANE_TRIAL_WARM_UP + 4, decode, 1.5, 0.01);
    CHECK_INT(r.n_two, 2);
    steps(&r, &g, 100, decode, 1.5, 0.01);
    CHECK_INT(r.n_two, 0);
    CHECK(lane_trial_ratio(&r.trial, &decode) > 1.4);
}

/* Noise of 2 % either way around equal times: one lane stays, and so do two. */
TEST(lane_trial_does_not_follow_noise)
{
    struct rng g = test_rng();
    struct run r = begin();
    for (int k = 0; k < 200; k++) {
        steps(&r, &g, LANE_TRIAL_WARM_UP + TRIAL_STEPS, decode, 1.0, 0.02);
        r.now_ns += 3600 * CLOCK_S;
        CHECK(!r.trial.kinds[0][4].has_two);
    }
    steps(&r, &g, LANE_TRIAL_WARM_UP + TRIAL_STEPS, decode, 0.9, 0.02);
    CHECK(r.trial.kinds[0][4].has_two);
    for (int k = 0; k < 200; k++) {
        r.now_ns += 3600 * CLOCK_S;
        steps(&r, &g, TRIAL_STEPS, decode, 1.0, 0.02);
        CHECK(r.trial.kinds[0][4].has_two);
    }
    r.now_ns += 3600 * CLOCK_S;
    steps(&r, &g, TRIAL_STEPS, decode, 1.1, 0.02);
    CHECK(!r.trial.kinds[0][4].has_two);
}

static int64_t until_next_trial_ns(const struct run *r)
{
    return r->trial.kinds[0][4].next_ns - r->now_ns;
}

TEST(lane_trial_comes_again_ever_more_rarely)
{
    struct rng g = test_rng();
    struct run r = begin();
    int64_t pause_ns = 30 * CLOCK_S;
    steps(&r, &g, LANE_TRIAL_WARM_UP, decode, 1.1, 0.01);
    for (int k = 0; k < 8; k++) {
        steps(&r, &g, TRIAL_STEPS, decode, 1.1, 0.01);
        CHECK_INT(r.n_two, LANE_TRIAL_PAIRS);
        CHECK_INT(until_next_trial_ns(&r), pause_ns);
        r.now_ns += pause_ns - CLOCK_MS;
        CHECK(!lane_trial_wants_two(&r.trial, &decode, r.now_ns));
        r.now_ns += CLOCK_MS;
        pause_ns = pause_ns < 8 * 60 * CLOCK_S ? 2 * pause_ns : 16 * 60 * CLOCK_S;
    }
    /* What has changed is looked at soon again. */
    steps(&r, &g, TRIAL_STEPS, decode, 0.8, 0.01);
    CHECK_INT(until_next_trial_ns(&r), 30 * CLOCK_S);
}

/* A step that something went wrong in is tried again; so is one that was not as asked. */
TEST(lane_trial_counts_only_what_says_something)
{
    struct rng g = test_rng();
    struct run r = begin();
    steps(&r, &g, LANE_TRIAL_WARM_UP, decode, 0.9, 0.0);
    for (int k = 0; k < 20; k++) {
        CHECK(!lane_trial_wants_two(&r.trial, &decode, r.now_ns));
        lane_trial_took(&r.trial, &decode, false, false, 1000, r.now_ns);
        lane_trial_took(&r.trial, &decode, true, true, 1000, r.now_ns);
        lane_trial_took(&r.trial, &decode, false, true, 0, r.now_ns);
    }
    steps(&r, &g, 1, decode, 0.9, 0.0);
    CHECK(lane_trial_wants_two(&r.trial, &decode, r.now_ns));
    steps(&r, &g, TRIAL_STEPS - 1, decode, 0.9, 0.0);
    CHECK(lane_trial_ratio(&r.trial, &decode) > 0.89 && lane_trial_ratio(&r.trial, &decode) < 0.91);
}

/* Contexts grow: later steps take longer, whatever they have. */
TEST(lane_trial_is_fair_while_steps_grow)
{
    struct run r = begin();
    int64_t row_ns = 10000;
    for (int i = 0; i < LANE_TRIAL_WARM_UP + TRIAL_STEPS; i++, row_ns += 100) {
        bool has_two = lane_trial_wants_two(&r.trial, &decode, r.now_ns);
        lane_trial_took(&r.trial, &decode, has_two, true, 16 * row_ns, r.now_ns);
    }
    CHECK(lane_trial_ratio(&r.trial, &decode) > 0.985 &&
          lane_trial_ratio(&r.trial, &decode) < 1.015);
    CHECK(!r.trial.kinds[0][4].has_two);
}

TEST(lane_trial_does_as_it_is_told)
{
    struct rng g = test_rng();
    struct run r = {.now_ns = CLOCK_S};
    lane_trial_init(&r.trial, LANES_ONE);
    steps(&r, &g, 100, decode, 0.5, 0.0);
    CHECK_INT(r.n_two, 0);
    lane_trial_init(&r.trial, LANES_TWO);
    steps(&r, &g, 100, decode, 1.5, 0.0);
    CHECK_INT(r.n_two, 100);
    CHECK(lane_trial_ratio(&r.trial, &decode) == 0);
    /* Sizes beyond every class. */
    CHECK(lane_trial_wants_two(&r.trial, &(struct lane_step){1 << 20, 1}, r.now_ns));
}
