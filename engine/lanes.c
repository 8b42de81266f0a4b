/* engine/lanes.c - see lanes.h. */
#include "engine/lanes.h"

/* Through `q`, of which `before` rows shall be in the first lane; returns how many are. */
static int cut_within(const struct step_seq *q, int before, bool is_first)
{
    int after = q->n_tokens - before;
    if (before <= LANES_SLACK && before <= after && !is_first)
        return 0;
    if (after <= LANES_SLACK)
        return q->n_tokens;
    int position = q->position + before + LANES_SLACK;
    position -= position % GROUP_ROWS;
    /* A group may end before the sequence's rows begin, or after they end. */
    if (position <= q->position)
        return 0;
    return position >= q->position + q->n_tokens ? q->n_tokens : position - q->position;
}

int lanes_cut(const struct step_seq *seqs, int n_seqs)
{
    int n_rows = 0, first = 0, cut = 0;
    for (int i = 0; i < n_seqs; i++)
        n_rows += seqs[i].n_tokens;
    int half = n_rows / 2;
    for (int i = 0; i < n_seqs && first < half; first += seqs[i++].n_tokens)
        cut = first + seqs[i].n_tokens <= half ? first + seqs[i].n_tokens
                                               : first + cut_within(&seqs[i], half - first, i == 0);
    return cut == n_rows ? 0 : cut;
}

int lanes_most_rows(int max_rows)
{
    int rows = (max_rows + 1) / 2 + LANES_SLACK;
    return rows < max_rows ? rows : max_rows;
}

int lanes_deal(const struct step_seq *seqs, int n_seqs, int cut, struct step_seq *out)
{
    int n = 0, n_before = 0, first = 0;
    for (int i = 0; i < n_seqs; first += seqs[i++].n_tokens) {
        int before = cut - first;
        out[n] = seqs[i];
        n_before += before > 0;
        if (before > 0 && before < seqs[i].n_tokens) {
            out[n++].n_tokens = before;
            out[n] = seqs[i];
            out[n].position += before;
            out[n].tokens += before;
            out[n].n_tokens -= before;
        }
        n++;
    }
    return n_before;
}
