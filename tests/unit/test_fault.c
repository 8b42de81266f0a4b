/* tests/unit/test_fault.c - faults on purpose: refused unless allowed, as many as asked for,
 * the same ones from the same seed. */
#include "expert_node/fault.h"

#include "tests/lib/test.h"

TEST(fault_is_refused_unless_it_is_allowed)
{
    struct err e = {0};
    struct fault_options o = {.delay_one_in = 1};
    CHECK_INT(fault_check(&o, &e), 0);
    o.corrupt_one_in = 5;
    CHECK_INT(fault_check(&o, &e), E_INVALID);
    CHECK_HAS(e.text, "fault.enabled");
    struct fault f = fault_new(&o);
    for (int i = 0; i < 1000; i++)
        CHECK(!fault_next(&f).is_corrupted);
    o.is_enabled = true;
    CHECK_INT(fault_check(&o, &e), 0);
}

TEST(fault_hits_one_in_so_many_and_repeats_from_its_seed)
{
    struct fault_options o = {.is_enabled = true,
                              .delay_ns = 7,
                              .delay_one_in = 2,
                              .drop_one_in = 10,
                              .corrupt_one_in = 50,
                              .seed = 3};
    struct fault a = fault_new(&o), b = fault_new(&o);
    int n_delayed = 0, n_dropped = 0, n_corrupted = 0;
    for (int i = 0; i < 10000; i++) {
        struct fault_action x = fault_next(&a), y = fault_next(&b);
        CHECK_INT(x.delay_ns, y.delay_ns);
        CHECK_INT(x.is_dropped, y.is_dropped);
        CHECK_INT(x.is_corrupted, y.is_corrupted);
        CHECK_INT(x.where, y.where);
        CHECK(x.delay_ns == 0 || x.delay_ns == 7);
        n_delayed += x.delay_ns > 0;
        n_dropped += x.is_dropped;
        n_corrupted += x.is_corrupted;
    }
    /* Six standard deviations. */
    CHECK_NEAR(n_delayed, 5000, 300);
    CHECK_NEAR(n_dropped, 1000, 180);
    CHECK_NEAR(n_corrupted, 200, 84);
}

TEST(fault_turns_one_bit_of_one_word)
{
    struct fault_options o = {.is_enabled = true, .corrupt_one_in = 1};
    struct fault f = fault_new(&o);
    for (int i = 0; i < 200; i++) {
        uint32_t words[33] = {0};
        struct fault_action a = fault_next(&f);
        CHECK(a.is_corrupted);
        fault_corrupt(&a, words, sizeof(words));
        int n_bits = 0;
        for (int k = 0; k < 33; k++)
            n_bits += __builtin_popcount(words[k]);
        CHECK_INT(n_bits, 1);
        fault_corrupt(&a, words, 3); /* nothing fits */
    }
}
