/* attn_node/round_check.c - what one node answered is confirmed by others (step 11); see
 * round_books.h.
 *
 * A check begins when a parcel's answer has been counted: its selections are planned again as
 * parcels of REASON_CHECK, the witnesses, at nodes other than the one that answered.  Each
 * witness parcel belongs to one check.  What was said is kept as it came, a row's answer at the
 * place of its first slot, until every witness has answered; then the parts must add up to the
 * whole, bit by bit.  In mode fixed they do so exactly, however a parcel is split. */
#include <string.h>

#include "attn_node/round_books.h"
#include "base/must.h"

static size_t slot_bytes(const struct round *r)
{
    return (size_t)r->limits.hidden * sizeof(float);
}

static int n_slots(const struct round *r)
{
    return r->plan.rows->n_rows * r->limits.top_k;
}

bool round_is_strict(const struct round *r)
{
    return r->plan.check_one_in == 1 && r->plan.mode != COMBINE_NODE;
}

/* ---- asking -------------------------------------------------------------------------- */

/* Nobody waits for this check any more. */
static void give_up(struct round *r, int id)
{
    for (int i = 0; i < r->n_parcels; i++) {
        struct round_parcel *p = &r->parcels[i];
        if (p->reason == REASON_CHECK && round_is_live(p) &&
            r->slot_books[p->slots[0]].check_id == id)
            round_end_parcel(r, p, PARCEL_DROPPED);
    }
    for (int slot = 0; slot < n_slots(r); slot++) {
        struct slot_books *s = &r->slot_books[slot];
        if (s->check == CHECK_NONE || s->check_id != id)
            continue;
        r->n_unchecked -= s->check == CHECK_WANTED;
        s->check = CHECK_NONE;
    }
}

static int plan_witnesses(struct round *r, const int32_t *slots, int n, int nor_node, bool is_whole)
{
    uint16_t by = r->slot_books[slots[0]].answered_by;
    bool is_strict = round_is_strict(r);
    struct round_wish w = {.slots = slots,
                           .n_slots = n,
                           .reason = REASON_CHECK,
                           .worst = is_strict ? STANDING_DOUBTFUL : STANDING_GOOD,
                           .without_node = by == ROUND_GONE ? -1 : by,
                           .nor_node = nor_node,
                           .is_whole = is_whole || !is_strict};
    return round_plan_slots(r, &w);
}

/* What is wanted of one check. */
static int ask(struct round *r, int id)
{
    int n = 0;
    for (int slot = 0; slot < n_slots(r); slot++)
        if (r->slot_books[slot].check == CHECK_WANTED && r->slot_books[slot].check_id == id)
            r->wanted[n++] = slot;
    if (n == 0)
        return 0;
    int n_parcels = plan_witnesses(r, r->wanted, n, -1, false);
    if (n_parcels == 0 && !round_is_strict(r))
        give_up(r, id);
    return n_parcels;
}

int round_ask_witnesses(struct round *r)
{
    int n = 0;
    for (int id = 0; id < r->n_checks && r->n_unchecked > r->n_check_out; id++)
        n += ask(r, id);
    return n;
}

void round_lose_witness(struct round *r, const struct round_parcel *p)
{
    ask(r, r->slot_books[p->slots[0]].check_id);
}

/* The parcel is as it was before round_end_parcel(). */
static void take_back(struct round *r, struct round_parcel *p)
{
    p->state = PARCEL_OUT;
    r->n_out++;
    r->nodes[p->node].n_out++;
    for (int i = 0; i < p->n_routes; i++)
        r->slot_books[p->slots[i]].check = CHECK_OUT;
    r->n_check_out += p->n_routes;
}

bool round_replace_witness(struct round *r, struct round_parcel *p)
{
    must(p->state == PARCEL_OUT);
    if (!round_is_strict(r)) {
        give_up(r, r->slot_books[p->slots[0]].check_id);
        return false;
    }
    round_end_parcel(r, p, PARCEL_DROPPED);
    if (plan_witnesses(r, p->slots, p->n_routes, p->node, true) > 0)
        return true;
    take_back(r, p);
    return false;
}

int round_believe(struct round *r)
{
    int n = r->n_unchecked - r->n_check_out;
    for (int slot = 0; slot < n_slots(r); slot++)
        if (r->slot_books[slot].check == CHECK_WANTED)
            give_up(r, r->slot_books[slot].check_id);
    return n;
}

/* ---- what was said ------------------------------------------------------------------- */

/* Copies a parcel's answer to its places. */
static void keep(struct round *r, const struct round_parcel *p, const struct round_reply *reply,
                 char *said)
{
    const char *data = reply->data;
    size_t bytes = p->mode == COMBINE_NODE ? slot_bytes(r) / 2 : slot_bytes(r);
    int n = p->mode == COMBINE_EXPERT ? p->n_routes : p->n_rows;
    for (int i = 0; i < n; i++) {
        int32_t place = p->slots[p->mode == COMBINE_EXPERT ? i : p->first_route[i]];
        memcpy(said + (size_t)place * slot_bytes(r), data + (size_t)i * bytes, bytes);
    }
}

/* Of the k-th route, in row i of the parcel. */
static int32_t place_of(const struct round_parcel *p, int i, int k)
{
    return p->slots[p->mode == COMBINE_EXPERT ? k : p->first_route[i]];
}

void round_maybe_check(struct round *r, const struct round_parcel *p,
                       const struct round_reply *reply)
{
    int64_t one_in = r->plan.check_one_in;
    if (one_in == 0 || (one_in > 1 && rng_below(&r->rng, (uint64_t)one_in) != 0))
        return;
    int id = r->n_checks++;
    for (int i = 0; i < p->n_rows; i++)
        for (int k = p->first_route[i]; k < p->first_route[i + 1]; k++) {
            struct slot_books *s = &r->slot_books[p->slots[k]];
            s->check = CHECK_WANTED;
            s->check_id = id;
            s->answered_by = (uint16_t)p->node;
            s->place = place_of(p, i, k);
            s->is_off_grid = false;
        }
    for (int i = 0; i < reply->n_overflow; i++)
        r->slot_books[place_of(p, (int)reply->overflow_rows[i], 0)].is_off_grid = true;
    keep(r, p, reply, r->first_said);
    r->n_unchecked += p->n_routes;
    ask(r, id);
}

void round_take_witness(struct round *r, const struct round_parcel *p,
                        const struct round_reply *reply)
{
    for (int i = 0; i < p->n_rows; i++)
        for (int k = p->first_route[i]; k < p->first_route[i + 1]; k++) {
            struct slot_books *s = &r->slot_books[p->slots[k]];
            must(s->check == CHECK_OUT);
            s->check = CHECK_DONE;
            s->confirmed_by = (uint16_t)p->node;
            s->witness_place = place_of(p, i, k);
            s->is_witness_off_grid = false;
        }
    for (int i = 0; i < reply->n_overflow; i++)
        r->slot_books[place_of(p, (int)reply->overflow_rows[i], 0)].is_witness_off_grid = true;
    keep(r, p, reply, r->witness_said);
    r->n_check_out -= p->n_routes;
    r->n_unchecked -= p->n_routes;
}

/* ---- comparing ----------------------------------------------------------------------- */

static enum combine_mode mode_of(const struct round *r, int row)
{
    return r->asked_again && r->is_overflowed[row] ? COMBINE_EXPERT : r->plan.mode;
}

static const void *said_at(const struct round *r, const char *said, int32_t place)
{
    return said + (size_t)place * slot_bytes(r);
}

static struct round_answer answer_of(const struct round *r, uint16_t node, const char *said,
                                     int32_t place)
{
    const struct slot_books *s = &r->slot_books[place];
    return (struct round_answer){.node = node == ROUND_GONE ? -1 : node,
                                 .is_off_grid = said == r->first_said ? s->is_off_grid
                                                                      : s->is_witness_off_grid,
                                 .data = said_at(r, said, place)};
}

/* What was said of the row whose first answer is kept at this place. */
static void list_answers(const struct round *r, int32_t place, struct round_dispute *d)
{
    d->row = place / r->limits.top_k;
    d->mode = mode_of(r, d->row);
    d->first = answer_of(r, r->slot_books[place].answered_by, r->first_said, place);
    d->n_parts = 0;
    for (int slot = place; slot < (d->row + 1) * r->limits.top_k; slot++) {
        const struct slot_books *s = &r->slot_books[slot];
        if (s->check != CHECK_DONE || s->place != place)
            continue;
        d->first.slots[d->first.n_slots++] = slot;
        if (s->witness_place == slot)
            d->parts[d->n_parts++] = answer_of(r, s->confirmed_by, r->witness_said, slot);
        for (int i = 0; i < d->n_parts; i++)
            if (d->parts[i].data == said_at(r, r->witness_said, s->witness_place))
                d->parts[i].slots[d->parts[i].n_slots++] = slot;
    }
}

/* Do the parts add up? */
static bool is_confirmed(const struct round *r, const struct round_dispute *d)
{
    bool is_off_grid = false;
    for (int i = 0; i < d->n_parts; i++)
        is_off_grid |= d->parts[i].is_off_grid;
    if (is_off_grid || d->first.is_off_grid)
        return is_off_grid == d->first.is_off_grid;
    size_t bytes = d->mode == COMBINE_NODE ? slot_bytes(r) / 2 : slot_bytes(r);
    if (d->n_parts == 1)
        return memcmp(d->first.data, d->parts[0].data, bytes) == 0;
    must(d->mode == COMBINE_FIXED && d->n_parts > 1);
    const uint32_t *whole = d->first.data;
    for (int k = 0; k < r->limits.hidden; k++) {
        uint32_t sum = 0;
        for (int i = 0; i < d->n_parts; i++)
            sum += ((const uint32_t *)d->parts[i].data)[k];
        if (sum != whole[k])
            return false;
    }
    return true;
}

int round_compare(const struct round *r)
{
    struct round_dispute d;
    if (r->n_checks == 0)
        return -1;
    for (int slot = 0; slot < n_slots(r); slot++) {
        const struct slot_books *s = &r->slot_books[slot];
        if (s->check != CHECK_DONE || s->place != slot)
            continue;
        list_answers(r, slot, &d);
        if (!is_confirmed(r, &d))
            return slot;
    }
    return -1;
}

bool round_find_dispute(const struct round *r, struct round_dispute *out)
{
    if (r->state != ROUND_FAILED || r->dispute < 0)
        return false;
    list_answers(r, r->dispute, out);
    return true;
}
