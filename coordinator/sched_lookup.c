/* coordinator/sched_lookup.c - see sched_lookup.h. */
#include "coordinator/sched_lookup.h"

#include "base/mem.h"

enum {
    GRAM = 3,
    FIRST_SLOTS = 256,
    SPARSE = 2, /* slots for each token, at least */
    PROBES = 8, /* after so many collisions a guess is lost */
    FIRST_LENGTH = 4,
    HOPE_PERMILLE = 600, /* before anything is known */
    FIRST_PAUSE = 8,
    MOST_PAUSE = 256,
};

void lookup_fini(struct lookup *l)
{
    mem_free(l->slots);
    *l = (struct lookup){0};
}

static int32_t token_at(const struct lookup_text *t, uint32_t i)
{
    return i < t->n_prompt ? t->prompt[i] : t->output[i - t->n_prompt];
}

static bool are_same(const struct lookup_text *t, uint32_t end_a, uint32_t end_b)
{
    for (uint32_t i = 1; i <= GRAM; i++)
        if (token_at(t, end_a - i) != token_at(t, end_b - i))
            return false;
    return true;
}

/* The slot of the three tokens before `end`: where they are, or may be put. */
static uint32_t *slot_of(const struct lookup *l, const struct lookup_text *t, uint32_t end)
{
    uint64_t h = 0;
    for (uint32_t i = end - GRAM; i < end; i++)
        h = ((h ^ h >> 29) + (uint64_t)(uint32_t)token_at(t, i) + 1) * 0x9e3779b97f4a7c15u;
    uint32_t *first = NULL;
    for (uint64_t i = h >> 32; i < (h >> 32) + PROBES; i++) {
        uint32_t *slot = &l->slots[i & (l->n_slots - 1)];
        first = first ? first : slot;
        if (*slot == 0 || are_same(t, *slot, end))
            return slot;
    }
    return first;
}

/* Everything that is followed by a token already. */
static void index_text(struct lookup *l, const struct lookup_text *t, uint32_t n)
{
    if (n > l->n_slots / SPARSE) {
        l->n_slots = l->n_slots ? l->n_slots : FIRST_SLOTS;
        while (n > l->n_slots / SPARSE)
            l->n_slots *= 2;
        mem_free(l->slots);
        l->slots = mem_array(l->n_slots, sizeof *l->slots);
        l->n_indexed = 0;
    }
    if (l->n_indexed < GRAM)
        l->n_indexed = GRAM;
    for (; l->n_indexed < n; l->n_indexed++)
        *slot_of(l, t, l->n_indexed) = l->n_indexed;
}

uint32_t lookup_guess(struct lookup *l, const struct lookup_text *t, uint32_t most,
                      uint32_t cost_permille, int32_t *out)
{
    uint32_t n = t->n_prompt + t->n_output, length;
    if (l->length == 0) {
        l->length = FIRST_LENGTH;
        l->rate_permille = HOPE_PERMILLE;
        l->next_pause = FIRST_PAUSE;
    }
    if (n <= GRAM || most == 0)
        return 0;
    if (l->pause > 0 && --l->pause > 0)
        return 0;
    length = l->length;
    if (l->rate_permille < cost_permille) {
        /* It does not pay: one token, to see whether that changes, and then nothing for a while. */
        l->pause = l->next_pause;
        l->next_pause = l->next_pause < MOST_PAUSE ? 2 * l->next_pause : MOST_PAUSE;
        length = 1;
    }
    index_text(l, t, n);
    uint32_t behind = *slot_of(l, t, n), k = 0;
    if (behind == 0 || !are_same(t, behind, n))
        return 0;
    while (k < length && k < most && behind + k < n) {
        out[k] = token_at(t, behind + k);
        k++;
    }
    return k;
}

void lookup_learn(struct lookup *l, uint32_t n_guessed, uint32_t n_true)
{
    if (n_guessed == 0)
        return;
    l->rate_permille = (l->rate_permille * 3 + n_true * 1000 / n_guessed) / 4;
    if (n_true == n_guessed) {
        l->length = l->length < 1u << 16 ? 2 * l->length : l->length;
        l->next_pause = FIRST_PAUSE;
    } else if (n_true < n_guessed / 2 || n_true == 0) {
        l->length = l->length > 1 ? l->length / 2 : 1;
    }
}
