/* tests/unit/test_lanes_cut.c - engine/lanes.h: near the middle, nothing lost, earlier rows first. */
#include "engine/lanes.h"
#include "tests/lib/test.h"

static int cut_of(int n_seqs, const int *rows, int position)
{
    struct step_seq seqs[8];
    for (int i = 0; i < n_seqs; i++)
        seqs[i] = (struct step_seq){.position = position, .n_tokens = rows[i]};
    return lanes_cut(seqs, n_seqs);
}
#define CUT(position, ...) \
    cut_of(sizeof((int[]){__VA_ARGS__}) / sizeof(int), (int[]){__VA_ARGS__}, position)

TEST(lanes_are_cut_between_sequences_where_they_can)
{
    CHECK_INT(CUT(7, 1), 0);
    CHECK_INT(CUT(7, 9), 0); /* one sequence, and no end of a group near the middle */
    CHECK_INT(CUT(7, 1, 1), 1);
    CHECK_INT(CUT(7, 1, 1, 1), 1);
    CHECK_INT(CUT(7, 5, 1), 5);
    CHECK_INT(CUT(7, 1, 5), 1);
    CHECK_INT(CUT(7, 1, 1, 1, 1), 2);
    CHECK_INT(CUT(0, 64), 32);
    CHECK_INT(CUT(5, 64), 27);       /* 32 lies between two groups */
    CHECK_INT(CUT(5, 60, 1, 1), 27); /* as a prompt that others decode beside */
    CHECK_INT(CUT(5, 1, 1, 60), 29);
}

TEST(lanes_lose_nothing_and_are_nearly_equal)
{
    struct rng r = test_rng();
    for (int k = 0; k < 20000; k++) {
        struct step_seq seqs[12], out[13];
        int32_t tokens[12 * 100];
        int n_seqs = 1 + (int)rng_below(&r, 12), n_rows = 0, at = 0;
        int most = rng_below(&r, 2) ? 100 : 3;
        for (int i = 0; i < n_seqs; i++) {
            seqs[i] = (struct step_seq){.position = (int)rng_below(&r, 1000),
                                        .n_tokens = 1 + (int)rng_below(&r, (uint64_t)most),
                                        .tokens = tokens + n_rows};
            n_rows += seqs[i].n_tokens;
        }
        int cut = lanes_cut(seqs, n_seqs);
        CHECK(cut >= 0 && cut < n_rows);
        CHECK(cut > 0 || n_seqs == 1);
        if (cut == 0)
            continue;
        CHECK(cut - n_rows / 2 <= LANES_SLACK + 1 && n_rows / 2 - cut <= LANES_SLACK);
        CHECK(n_rows - cut <= lanes_most_rows(n_rows));
        int n_first = lanes_deal(seqs, n_seqs, cut, out), n_out = 0;
        for (; at < n_rows; at += out[n_out++].n_tokens) {
            CHECK(out[n_out].tokens == tokens + at && out[n_out].n_tokens > 0);
            CHECK_INT(n_out < n_first, at < cut);
            CHECK(at >= cut || at + out[n_out].n_tokens <= cut);
        }
        CHECK_INT(at, n_rows);
        CHECK(n_out == n_seqs || n_out == n_seqs + 1);
    }
}
