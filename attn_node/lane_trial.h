/* attn_node/lane_trial.h - whether steps are faster in two lanes (engine/lanes.h), found out by trying.
 *
 * Two lanes hide a part of attention behind the experts, and read experts that both lanes want twice:
 * which of the two is more depends on the model, the machines, the network, how many rows a step has
 * and how long their contexts are.  So both are measured, on the steps that are to be computed anyway,
 * and the bits are the same either way.
 *
 * Steps are told apart by their rows (powers of two) and by whether most of them are prompts'.  Of each
 * kind a few go first unmeasured; then a trial takes one and two lanes in turns (1 2 2 1 ...) and
 * compares each pair's time per row.  The median decides: the other way is taken where it is faster by
 * LANE_TRIAL_PERCENT, so that noise alone switches nothing.  A trial that goes clearly against two lanes
 * ends early.  The next one comes after 30 s; each that changes nothing doubles that, up to 16 min.
 *
 * Pure: time is passed in, no clock, no allocation.  Owner: engine thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    LANE_TRIAL_ROW_CLASSES = 16,
    LANE_TRIAL_WARM_UP = 6, /* steps of a kind before its first trial */
    LANE_TRIAL_PAIRS = 5,
    LANE_TRIAL_PERCENT = 3,
};
/* A trial whose first two pairs say so has lost. */
#define LANE_TRIAL_HOPELESS 1.25

/* What the option attention.lanes says: "auto|1|2". */
enum lane_choice { LANES_AUTO, LANES_ONE, LANES_TWO };

struct lane_kind {
    bool has_two; /* what is used between trials */
    bool is_tried;
    int n_warm;    /* steps left before the first trial */
    int n_samples; /* of the trial in progress */
    double per_row_ns[2 * LANE_TRIAL_PAIRS];
    double ratio; /* time of two lanes to that of one, in the last trial; 0: there was none */
    int64_t next_ns, pause_ns;
};

struct lane_trial {
    enum lane_choice choice;
    struct lane_kind kinds[2][LANE_TRIAL_ROW_CLASSES]; /* [are prompts] */
};

struct lane_step {
    int n_rows, n_seqs;
};

void lane_trial_init(struct lane_trial *t, enum lane_choice choice);
/* Whether a step shall have two lanes; of one that can be cut in two. */
bool lane_trial_wants_two(struct lane_trial *t, const struct lane_step *s, int64_t now_ns);
/* The step that was asked about has taken so long.  `is_clean`: nothing was retried or waited for;
 * what is not says nothing. */
void lane_trial_took(struct lane_trial *t, const struct lane_step *s, bool had_two, bool is_clean,
                     int64_t took_ns, int64_t now_ns);
/* Of such steps in the last trial, time of two lanes to that of one; 0: there was none. */
double lane_trial_ratio(const struct lane_trial *t, const struct lane_step *s);
