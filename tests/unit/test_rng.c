/* tests/unit/test_rng.c - the generator's numbers, its bounds and its shape. */
#include "base/rng.h"

#include "tests/lib/test.h"

/* The first outputs of SplitMix64 for seed 1234567, as published with the algorithm. */
TEST(rng_gives_the_published_numbers)
{
    static const uint64_t want[] = {6457827717110365317ULL, 3203168211198807973ULL,
                                    9817491932198370423ULL, 4593380528125082431ULL,
                                    16408922859458223821ULL};
    struct rng r = rng_seed(1234567);
    for (int i = 0; i < 5; i++)
        CHECK(rng_next(&r) == want[i]);
}

TEST(rng_below_stays_below_and_reaches_all)
{
    struct rng r = test_rng();
    int seen[7] = {0};
    for (int i = 0; i < 7000; i++) {
        uint64_t x = rng_below(&r, 7);
        CHECK(x < 7);
        seen[x]++;
    }
    /* 1000 expected, standard deviation 29: 200 off is a broken generator, not bad luck. */
    for (int i = 0; i < 7; i++)
        CHECK_NEAR(seen[i], 1000, 200);
    CHECK_INT(rng_below(&r, 1), 0);
    uint64_t bound = (1ULL << 63) + 1;
    for (int i = 0; i < 100; i++)
        CHECK(rng_below(&r, bound) < bound);
}

TEST(rng_moments_are_right)
{
    struct rng r = test_rng();
    double sum = 0, square = 0, unit = 0;
    enum { N = 20000 };
    for (int i = 0; i < N; i++) {
        double x = rng_normal(&r), u = rng_unit(&r);
        CHECK(u >= 0 && u < 1);
        sum += x;
        square += x * x;
        unit += u;
    }
    /* Seven standard errors: 1/sqrt(N), sqrt(2/N) and sqrt(1/12N) are 0.007, 0.01, 0.002. */
    CHECK_NEAR(sum / N, 0, 0.05);
    CHECK_NEAR(square / N, 1, 0.07);
    CHECK_NEAR(unit / N, 0.5, 0.0145);
}

TEST(rng_streams_repeat_and_differ)
{
    struct rng a = rng_stream(1, 2), b = rng_stream(1, 2), c = rng_stream(1, 3),
               d = rng_stream(2, 2), swapped = rng_stream(2, 1);
    uint64_t x = rng_next(&a);
    CHECK(x == rng_next(&b));
    uint64_t y[] = {rng_next(&c), rng_next(&d), rng_next(&swapped)};
    CHECK(x != y[0] && x != y[1] && x != y[2] && y[1] != y[2]);
    CHECK(rng_entropy() != rng_entropy());
}
