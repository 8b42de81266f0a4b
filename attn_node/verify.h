/* attn_node/verify.h - two nodes gave other bits for the same row: who was wrong?  (cluster.md 4)
 *
 * Evidence: what each said, what it says when it is asked again, and what a third holder says.
 * Who contradicts itself was wrong; if nobody does, two against one decide; with two holders
 * that both stand by what they said nobody knows.  Pure.
 *
 * A row's whole answer is one node's; the parts are the witnesses', each for some of the row's
 * experts (round.h). */
#pragma once

#include <stdbool.h>

#include "model/format.h"

enum { VERIFY_MAX_PARTS = 32 };

/* All-zero: there is none. */
struct verify_answer {
    bool is_there, is_off_grid;
    const void *data; /* one vector of the case's mode; means nothing off the grid */
};
struct verify_part {
    struct verify_answer said, again, third; /* `said` is there */
};
struct verify_case {
    enum combine_mode mode;
    int hidden;
    struct verify_part whole; /* its `third` is not used */
    int n_parts;
    struct verify_part parts[VERIFY_MAX_PARTS];
};

/* Who was wrong; not decided: who may have been. */
struct verify_verdict {
    bool is_decided, is_whole_wrong;
    bool is_part_wrong[VERIFY_MAX_PARTS];
};
struct verify_verdict verify_judge(const struct verify_case *c);
