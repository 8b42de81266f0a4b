/* tests/unit/test_pages.c - who holds a page, and which are found by their tokens. */
#include "engine/pages.h"

#include <string.h>

#include "tests/lib/test.h"

enum { BLOCK = 4 };
static const int32_t A[BLOCK] = {1, 2, 3, 4}, B[BLOCK] = {5, 6, 7, 8}, C[BLOCK] = {9, 9, 9, 9};

/* A page in the index, held by the caller. */
static int32_t put(struct pages *p, uint64_t hash, int32_t before, const int32_t *tokens)
{
    int32_t page = pages_take(p, 0);
    CHECK(page != NO_PAGE);
    return pages_index(p, page, hash, before, tokens);
}

TEST(pages_are_kept_after_their_last_holder_and_found_again)
{
    struct pages *p = pages_new(4, BLOCK);
    int32_t a = put(p, 1, NO_PAGE, A), b = put(p, 2, a, B);
    CHECK_INT(pages_unheld(p, 0), 2);
    pages_give_back(p, b);
    pages_give_back(p, a);
    CHECK_INT(pages_unheld(p, 0), 4);
    CHECK_INT(pages_indexed(p), 2);
    CHECK_INT(pages_find(p, 1, NO_PAGE, A), a);
    CHECK_INT(pages_find(p, 2, a, B), b);
    CHECK_INT(pages_find(p, 1, NO_PAGE, A), a); /* a second holder */
    CHECK_INT(pages_unheld(p, 0), 2);
    pages_give_back(p, b);
    pages_give_back(p, a);
    CHECK_INT(pages_unheld(p, 0), 3);
    pages_give_back(p, a);
    CHECK_INT(pages_unheld(p, 0), 4);
    pages_free(&p);
}

TEST(pages_with_equal_hashes_are_told_apart_by_their_tokens)
{
    struct pages *p = pages_new(8, BLOCK);
    int32_t a = put(p, 7, NO_PAGE, A), b = put(p, 7, NO_PAGE, B);
    CHECK(a != b);
    CHECK_INT(pages_find(p, 7, NO_PAGE, B), b);
    CHECK_INT(pages_find(p, 7, NO_PAGE, A), a);
    CHECK_INT(pages_find(p, 7, NO_PAGE, C), NO_PAGE);
    /* The same tokens behind other ones are another page, whatever their hash. */
    int32_t behind_a = put(p, 7, a, C), behind_b = put(p, 7, b, C);
    CHECK(behind_a != behind_b);
    CHECK_INT(pages_find(p, 7, a, C), behind_a);
    CHECK_INT(pages_find(p, 7, b, C), behind_b);
    CHECK_INT(pages_find(p, 7, NO_PAGE, C), NO_PAGE);
    pages_free(&p);
}

TEST(pages_that_come_twice_become_one)
{
    struct pages *p = pages_new(4, BLOCK);
    int32_t first = put(p, 1, NO_PAGE, A), again = put(p, 1, NO_PAGE, A);
    CHECK_INT(first, again);
    CHECK_INT(pages_indexed(p), 1);
    CHECK_INT(pages_unheld(p, 0), 3);
    pages_give_back(p, first);
    CHECK_INT(pages_unheld(p, 0), 3); /* the other one has it still */
    pages_give_back(p, again);
    CHECK_INT(pages_unheld(p, 0), 4);
    pages_free(&p);
}

TEST(pages_used_longest_ago_go_first_and_ends_before_beginnings)
{
    struct pages *p = pages_new(4, BLOCK);
    int32_t a = put(p, 1, NO_PAGE, A), b = put(p, 2, a, B), c = put(p, 3, NO_PAGE, C);
    pages_give_back(p, b);
    pages_give_back(p, a);
    pages_give_back(p, c);
    CHECK_INT(pages_take(p, 0), 3); /* never used */
    CHECK_INT(pages_take(p, 0), b);
    CHECK_INT(pages_find(p, 2, a, B), NO_PAGE);
    CHECK_INT(pages_find(p, 1, NO_PAGE, A), a); /* used again: the youngest but one */
    pages_give_back(p, a);
    CHECK_INT(pages_take(p, 0), c);
    CHECK_INT(pages_take(p, 0), a);
    CHECK_INT(pages_indexed(p), 0);
    CHECK_INT(pages_take(p, 0), NO_PAGE);
    pages_free(&p);
}

/* ---- against a simple model -------------------------------------------------------------------- */

enum { SEQS = 6, MOST = 5, PAGES = 12 };
struct timeline {
    int32_t pages[MOST], tokens[MOST][BLOCK];
    int n, n_indexed;
};

/* The model of a hash: so few values that most of them collide. */
static uint64_t few(const struct timeline *t, int end)
{
    int32_t sum = 0;
    for (int i = 0; i <= end; i++)
        sum += t->tokens[i][0];
    return (uint64_t)(sum % 3);
}

static bool same_beginning(const struct timeline *a, const struct timeline *b, int end)
{
    return memcmp(a->tokens, b->tokens, (size_t)(end + 1) * sizeof a->tokens[0]) == 0;
}

static void drop(struct pages *p, struct timeline *t)
{
    while (t->n > 0)
        pages_give_back(p, t->pages[--t->n]);
    t->n_indexed = 0;
}

static void begin(struct pages *p, struct timeline *t, struct rng *r)
{
    for (int i = 0; i < MOST; i++)
        for (int k = 0; k < BLOCK; k++)
            t->tokens[i][k] = (int32_t)rng_below(r, 2);
    for (int i = 0; i < MOST; i++) {
        int32_t page = pages_find(p, few(t, i), i ? t->pages[i - 1] : NO_PAGE, t->tokens[i]);
        if (page == NO_PAGE)
            break;
        t->pages[t->n++] = page;
        t->n_indexed++;
    }
    int32_t page = t->n == 0 ? pages_take(p, 0) : NO_PAGE;
    if (page != NO_PAGE)
        t->pages[t->n++] = page;
}

/* Two timelines have a page in common exactly where their tokens are equal up to its end. */
static void check_sharing(const struct timeline *all)
{
    for (int a = 0; a < SEQS; a++)
        for (int b = a + 1; b < SEQS; b++)
            for (int i = 0; i < all[a].n; i++)
                for (int k = 0; k < all[b].n; k++) {
                    bool both = i < all[a].n_indexed && k < all[b].n_indexed;
                    bool same = i == k && same_beginning(&all[a], &all[b], i);
                    CHECK((all[a].pages[i] == all[b].pages[k]) == (both && same));
                }
}

TEST(pages_are_shared_by_those_that_begin_alike_and_by_nobody_else)
{
    struct rng r = test_rng();
    struct pages *p = pages_new(PAGES, BLOCK);
    struct timeline all[SEQS] = {0};
    int found = 0;
    for (int i = 0; i < 20000; i++) {
        struct timeline *t = &all[rng_below(&r, SEQS)];
        if (rng_below(&r, 4) == 0) {
            drop(p, t);
        } else if (t->n == 0) {
            begin(p, t, &r);
            found += t->n_indexed > 0;
        } else if (t->n < MOST && rng_below(&r, 2)) {
            int32_t page = pages_take(p, 0);
            CHECK(page != NO_PAGE || pages_unheld(p, 0) == 0);
            if (page != NO_PAGE)
                t->pages[t->n++] = page;
        } else if (t->n_indexed < t->n) {
            int at = t->n_indexed++;
            t->pages[at] = pages_index(p, t->pages[at], few(t, at), at ? t->pages[at - 1] : NO_PAGE,
                                       t->tokens[at]);
        }
        check_sharing(all);
    }
    CHECK(found > 100);
    for (int i = 0; i < SEQS; i++)
        drop(p, &all[i]);
    CHECK_INT(pages_unheld(p, 0), PAGES);
    pages_free(&p);
}
