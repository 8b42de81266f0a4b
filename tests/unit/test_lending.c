/* tests/unit/test_lending.c - who may use whose memory: by hand, and against the rule in random order. */
#include "coordinator/lending.h"

#include "tests/lib/test.h"

static uint32_t borrower(const struct lending *l, uint32_t host)
{
    const struct lending_host *h = lending_find(l, host);
    return h ? h->borrower : UINT32_MAX;
}

TEST(lending_goes_to_the_side_that_has_the_least)
{
    struct lending l = {0};
    CHECK(!lending_host_joins(&l, 10, 100)); /* nobody borrows: no table changes */
    CHECK_INT(borrower(&l, 10), 0);
    CHECK(lending_side_joins(&l, 3));
    CHECK_INT(borrower(&l, 10), 3);
    CHECK(!lending_side_joins(&l, 2)); /* what is lent stays where it is */
    CHECK_INT(borrower(&l, 10), 3);
    CHECK(lending_host_joins(&l, 11, 50));
    CHECK_INT(borrower(&l, 11), 2);
    CHECK(lending_host_joins(&l, 12, 50));
    CHECK_INT(borrower(&l, 12), 2); /* 50 against 100 */
    CHECK(lending_host_joins(&l, 13, 1));
    CHECK_INT(borrower(&l, 13), 2); /* equal: the lower id */
    CHECK(lending_host_joins(&l, 14, 1));
    CHECK_INT(borrower(&l, 14), 3);
    CHECK_INT(lending_bytes(&l, 2), 101);
    CHECK_INT(lending_bytes(&l, 3), 101);
    lending_fini(&l);
}

TEST(lending_ends_with_either_of_the_two)
{
    struct lending l = {0};
    lending_side_joins(&l, 1);
    lending_host_joins(&l, 10, 100);
    lending_host_joins(&l, 11, 100);
    lending_side_joins(&l, 2);
    CHECK(lending_side_gone(&l, 1));
    CHECK_INT(borrower(&l, 10), 2);
    CHECK_INT(borrower(&l, 11), 2);
    CHECK(lending_host_gone(&l, 10));
    CHECK(lending_find(&l, 10) == NULL);
    CHECK(!lending_host_gone(&l, 10));
    CHECK_INT(borrower(&l, 11), 2);
    CHECK(lending_side_gone(&l, 2)); /* lent to nobody: sides are told that, too */
    CHECK_INT(borrower(&l, 11), 0);
    CHECK(!lending_side_gone(&l, 2));
    CHECK(!lending_host_gone(&l, 11)); /* it was nobody's */
    lending_fini(&l);
}

TEST(lending_gives_nothing_more_to_a_side_that_leaves)
{
    struct lending l = {0};
    lending_side_joins(&l, 1);
    lending_host_joins(&l, 10, 100);
    lending_side_leaves(&l, 1);
    lending_side_leaves(&l, 77);
    CHECK_INT(borrower(&l, 10), 1); /* it still serves */
    CHECK(!lending_host_joins(&l, 11, 100));
    CHECK_INT(borrower(&l, 11), 0);
    CHECK(lending_side_joins(&l, 2));
    CHECK_INT(borrower(&l, 11), 2);
    lending_fini(&l);
}

/* After every event: nobody lends to one that is not there, nobody waits while one could borrow, and an
 * event that says that nothing has changed has changed nothing. */
TEST(lending_keeps_its_word_in_any_order)
{
    enum { SIDES = 5, HOSTS = 8, FIRST_HOST = 100 };
    struct rng r = test_rng();
    struct lending l = {0};
    bool has_side[SIDES] = {0}, has_host[HOSTS] = {0};
    uint32_t before[HOSTS] = {0};
    for (int i = 0; i < 5000; i++) {
        uint32_t side = (uint32_t)rng_below(&r, SIDES), host = (uint32_t)rng_below(&r, HOSTS);
        bool said;
        if (rng_below(&r, 2)) {
            said =
                has_side[side] ? lending_side_gone(&l, side + 1) : lending_side_joins(&l, side + 1);
            has_side[side] = !has_side[side];
        } else {
            said = has_host[host] ? lending_host_gone(&l, FIRST_HOST + host)
                                  : lending_host_joins(&l, FIRST_HOST + host, 1 + rng_below(&r, 9));
            has_host[host] = !has_host[host];
        }
        bool changed = false, any = false;
        for (int k = 0; k < SIDES; k++)
            any |= has_side[k];
        for (uint32_t k = 0; k < HOSTS; k++) {
            uint32_t now = has_host[k] ? borrower(&l, FIRST_HOST + k) : 0;
            CHECK(!has_host[k] || (now != 0) == any);
            CHECK(now == 0 || has_side[now - 1]);
            changed |= now != before[k];
            before[k] = now;
        }
        CHECK(said == changed);
    }
    lending_fini(&l);
}
