/* tests/unit/test_verify.c - who is found to have been wrong, from what was said. */
#include "attn_node/verify.h"

#include <stdint.h>
#include <string.h>

#include "tests/lib/test.h"

enum { HIDDEN = 4 };

/* A case of two parts that add up to 10 in every element, and of which nothing is disputed. */
struct evidence {
    int32_t whole[HIDDEN], parts[2][HIDDEN], other[2][HIDDEN];
    struct verify_case c;
};

static struct verify_answer says(const int32_t *values)
{
    return (struct verify_answer){.is_there = true, .data = values};
}

static void agree(struct evidence *e)
{
    memset(e, 0, sizeof(*e));
    for (int k = 0; k < HIDDEN; k++) {
        e->whole[k] = 10;
        e->parts[0][k] = e->other[0][k] = 3;
        e->parts[1][k] = e->other[1][k] = 7;
    }
    e->c = (struct verify_case){.mode = COMBINE_FIXED, .hidden = HIDDEN, .n_parts = 2};
    e->c.whole.said = e->c.whole.again = says(e->whole);
    for (int i = 0; i < 2; i++)
        e->c.parts[i].said = e->c.parts[i].again = says(e->parts[i]);
}

static void check(const struct evidence *e, bool is_decided, bool whole, bool first, bool second)
{
    struct verify_verdict v = verify_judge(&e->c);
    CHECK_INT(v.is_decided, is_decided);
    CHECK_INT(v.is_whole_wrong, whole);
    CHECK_INT(v.is_part_wrong[0], first);
    CHECK_INT(v.is_part_wrong[1], second);
}

TEST(verify_blames_who_contradicts_himself)
{
    struct evidence e;
    int32_t truth[HIDDEN];
    agree(&e);
    memcpy(truth, e.whole, sizeof(truth));
    e.whole[2] = 11;
    e.c.whole.again = says(truth);
    check(&e, true, true, false, false);
    agree(&e);
    memcpy(truth, e.parts[1], sizeof(truth));
    e.parts[1][0] = 6;
    e.c.parts[1].again = says(truth);
    check(&e, true, false, false, true);
    /* Off the grid the first time, on it the second. */
    agree(&e);
    e.c.parts[0].said.is_off_grid = true;
    check(&e, true, false, true, false);
}

TEST(verify_lets_two_decide_against_one)
{
    struct evidence e;
    agree(&e);
    e.parts[0][1] = 4; /* said twice: parts[0].again is the same memory */
    e.c.parts[0].third = says(e.other[0]);
    check(&e, true, false, true, false);
    agree(&e);
    e.whole[0] = 9;
    e.c.parts[0].third = says(e.other[0]);
    e.c.parts[1].third = says(e.other[1]);
    check(&e, true, true, false, false);
}

TEST(verify_says_so_when_nobody_knows)
{
    struct evidence e;
    agree(&e);
    e.whole[0] = 9;
    check(&e, false, true, true, true);
    /* A third who backs one part clears that part alone. */
    e.c.parts[0].third = says(e.other[0]);
    check(&e, false, true, false, true);
    /* Nobody answers any more. */
    agree(&e);
    e.whole[0] = 9;
    e.c.whole.again.is_there = e.c.parts[0].again.is_there = e.c.parts[1].again.is_there = false;
    check(&e, false, true, true, true);
    /* A third whose word does not mend it is no judge. */
    e.other[0][3] = 100;
    e.c.parts[0].third = says(e.other[0]);
    check(&e, false, true, true, true);
}
