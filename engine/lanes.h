/* engine/lanes.h - where the rows of a step are cut in two, so that attention of one part overlaps
 * with the experts of the other.
 *
 * The cut is as near to the middle as LANES_SLACK rows.  It goes between two sequences where it can,
 * and otherwise through one, at a position where groups of rows end anyway (engine/attention_parts.h):
 * the earlier rows are then in the first lane, which is ahead of the second in every layer. */
#pragma once

#include "engine/forward.h"
#include "engine/msa.h"

enum { LANES_SLACK = GROUP_ROWS / 2 };

/* Rows of the first lane; 0: nothing is gained by two (or a step of so few rows of one sequence cannot
 * be cut). */
int lanes_cut(const struct step_seq *seqs, int n_seqs);
/* More rows the second lane of a step of up to max_rows never has. */
int lanes_most_rows(int max_rows);
/* The parts of the sequences before row `cut` and from there on, one behind the other in
 * out [n_seqs + 1]; returns how many lie before it. */
int lanes_deal(const struct step_seq *seqs, int n_seqs, int cut, struct step_seq *out);
