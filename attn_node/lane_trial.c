/* attn_node/lane_trial.c - see lane_trial.h. */
#include "attn_node/lane_trial.h"

#include "base/clock.h"

#define FIRST_PAUSE_NS (30 * CLOCK_S)
#define LONGEST_PAUSE_NS (16 * 60 * CLOCK_S)

void lane_trial_init(struct lane_trial *t, enum lane_choice choice)
{
    *t = (struct lane_trial){.choice = choice};
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < LANE_TRIAL_ROW_CLASSES; k++)
            t->kinds[i][k] =
                (struct lane_kind){.n_warm = LANE_TRIAL_WARM_UP, .pause_ns = FIRST_PAUSE_NS};
}

static int row_class_of(const struct lane_step *s)
{
    int row_class = 0;
    while (row_class < LANE_TRIAL_ROW_CLASSES - 1 && s->n_rows >> (row_class + 1) > 0)
        row_class++;
    return row_class;
}

/* Guesses make a few rows of a sequence that decodes. */
static bool is_prompt(const struct lane_step *s)
{
    return s->n_rows >= 8 * s->n_seqs;
}

static struct lane_kind *kind_of(struct lane_trial *t, const struct lane_step *s)
{
    return &t->kinds[is_prompt(s)][row_class_of(s)];
}

static bool is_trial_on(const struct lane_kind *k, int64_t now_ns)
{
    return k->n_samples > 0 || (k->n_warm == 0 && now_ns >= k->next_ns);
}

/* 1 2 2 1 1 2 2 1: what grows from step to step does so for both. */
static bool has_turn_two(int sample)
{
    return ((sample + 1) & 2) != 0;
}

bool lane_trial_wants_two(struct lane_trial *t, const struct lane_step *s, int64_t now_ns)
{
    const struct lane_kind *k = kind_of(t, s);
    if (t->choice != LANES_AUTO)
        return t->choice == LANES_TWO;
    return is_trial_on(k, now_ns) ? has_turn_two(k->n_samples) : k->has_two;
}

/* Two lanes to one, of each whole pair, in ascending order; returns how many. */
static int list_ratios(const struct lane_kind *k, double *out)
{
    int n = k->n_samples / 2;
    for (int i = 0; i < n; i++) {
        const double *pair = k->per_row_ns + 2 * i;
        double ratio = has_turn_two(2 * i) ? pair[0] / pair[1] : pair[1] / pair[0];
        int at = i;
        for (; at > 0 && out[at - 1] > ratio; at--)
            out[at] = out[at - 1];
        out[at] = ratio;
    }
    return n;
}

static void end_trial(struct lane_kind *k, double ratio, int64_t now_ns)
{
    double margin = 1.0 + LANE_TRIAL_PERCENT / 100.0;
    bool has_two = k->has_two ? ratio < margin : ratio * margin < 1.0;
    if (has_two != k->has_two)
        k->pause_ns = FIRST_PAUSE_NS;
    else if (k->is_tried)
        k->pause_ns = 2 * k->pause_ns < LONGEST_PAUSE_NS ? 2 * k->pause_ns : LONGEST_PAUSE_NS;
    k->has_two = has_two;
    k->is_tried = true;
    k->ratio = ratio;
    k->n_samples = 0;
    k->next_ns = now_ns + k->pause_ns;
}

void lane_trial_took(struct lane_trial *t, const struct lane_step *s, bool had_two, bool is_clean,
                     int64_t took_ns, int64_t now_ns)
{
    struct lane_kind *k = kind_of(t, s);
    double ratios[LANE_TRIAL_PAIRS];
    if (t->choice != LANES_AUTO || !is_clean || took_ns <= 0)
        return;
    if (k->n_warm > 0) {
        k->n_warm--;
        return;
    }
    if (!is_trial_on(k, now_ns) || had_two != has_turn_two(k->n_samples))
        return;
    k->per_row_ns[k->n_samples++] = (double)took_ns / s->n_rows;
    if (k->n_samples % 2 != 0)
        return;
    int n = list_ratios(k, ratios);
    if (n == LANE_TRIAL_PAIRS)
        end_trial(k, ratios[n / 2], now_ns);
    else if (n == 2 && !k->has_two && ratios[0] > LANE_TRIAL_HOPELESS)
        end_trial(k, ratios[0], now_ns);
}

double lane_trial_ratio(const struct lane_trial *t, const struct lane_step *s)
{
    return t->kinds[is_prompt(s)][row_class_of(s)].ratio;
}
