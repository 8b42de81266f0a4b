/* coordinator/sched_prefix.c - what an attention side is likely to have of a sequence's tokens; see
 * sched.h.
 *
 * A table of numbers of blocks (model/prefix.h) in small sets; in a full set the one that was used
 * longest ago makes place.  It is a guess, from what was fed there: the side alone knows what it
 * has kept, compares tokens, and says what it took.  A wrong guess costs time, never a token. */
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "coordinator/sched_state.h"
#include "model/prefix.h"

enum { WAYS = 8 /* slots of a set, latest first */, SLOTS_PER_PAGE = 4, MOST_SLOTS = 1 << 22 };

void sched_prefix_open(struct sched_side *d)
{
    if (!d->limits.keeps_prefixes)
        return;
    d->n_slots = 64;
    while (d->n_slots < (uint64_t)d->limits.pages * SLOTS_PER_PAGE && d->n_slots < MOST_SLOTS)
        d->n_slots *= 2;
    d->slots = mem_array(d->n_slots, sizeof *d->slots);
    d->block = mem_array(d->limits.page_tokens, sizeof *d->block);
}

void sched_prefix_close(struct sched_side *d)
{
    mem_free(d->slots);
    mem_free(d->block);
}

/* The number of the sequence's block `i`, given that of the one before. */
static uint64_t extend(const struct sched_side *d, const struct sched_seq *q, uint64_t before,
                       uint32_t i)
{
    uint32_t n = d->limits.page_tokens;
    for (uint32_t k = 0; k < n; k++)
        d->block[k] = sched_token_at(q, i * n + k);
    uint64_t number = prefix_extend(before, d->block, n);
    return number ? number : 1;
}

static uint64_t *set_of(const struct sched_side *d, uint64_t number)
{
    return &d->slots[number & (d->n_slots - 1) & ~(uint64_t)(WAYS - 1)];
}

/* Where it is in its set; WAYS: it is not. */
static int way_of(const uint64_t *set, uint64_t number)
{
    int way = 0;
    while (way < WAYS && set[way] != number)
        way++;
    return way;
}

static void put_first(uint64_t *set, uint64_t number)
{
    int way = way_of(set, number), behind = way < WAYS ? way : WAYS - 1;
    memmove(set + 1, set, (size_t)behind * sizeof *set);
    set[0] = number;
}

uint32_t sched_prefix_match(const struct sched_side *d, const struct sched_seq *q)
{
    if (!d->slots)
        return 0;
    uint32_t n = d->limits.page_tokens, tokens = 0;
    uint64_t number = 0;
    /* The last token is always fed: it gives the next one. */
    while (tokens + n < sched_known(q)) {
        number = extend(d, q, number, tokens / n);
        if (way_of(set_of(d, number), number) == WAYS)
            break;
        tokens += n;
    }
    return tokens;
}

void sched_prefix_learn(struct sched_side *d, struct sched_seq *q, uint32_t n_known)
{
    uint32_t end = q->fed < n_known ? q->fed : n_known;
    if (!d->slots)
        return;
    while ((q->n_blocks + 1) * d->limits.page_tokens <= end) {
        q->block_number = extend(d, q, q->block_number, q->n_blocks);
        put_first(set_of(d, q->block_number), q->block_number);
        q->n_blocks++;
    }
}

/* The side had only so much of it: what it was thought to have behind that is gone. */
void sched_prefix_correct(struct sched_side *d, const struct sched_seq *q, uint32_t n_cached)
{
    if (!d->slots)
        return;
    uint32_t n = d->limits.page_tokens, tokens = 0;
    uint64_t number = 0;
    for (; tokens + n < sched_known(q); tokens += n) {
        number = extend(d, q, number, tokens / n);
        uint64_t *set = set_of(d, number);
        int way = way_of(set, number);
        if (way == WAYS)
            return;
        if (tokens >= n_cached)
            set[way] = 0;
    }
}

static uint32_t common_tokens(const struct sched_seq *a, const struct sched_seq *b)
{
    uint32_t most = sched_known(a) < sched_known(b) ? sched_known(a) : sched_known(b), n = 0;
    while (n < most && sched_token_at(a, n) == sched_token_at(b, n))
        n++;
    return n;
}

bool sched_prefix_is_coming(const struct sched_side *d, const struct sched_seq *q)
{
    if (!d->slots || q->fed > 0)
        return false;
    for (struct list *l = d->prefilling.next; l != &d->prefilling; l = l->next) {
        const struct sched_seq *p = LIST_ITEM(l, struct sched_seq, link);
        if (p == q || (p->fed == 0 && p->chunk == 0))
            continue;
        uint32_t common = common_tokens(p, q);
        common -= common % d->limits.page_tokens;
        if (common > p->fed && common > sched_prefix_match(d, q))
            return true;
    }
    return false;
}
