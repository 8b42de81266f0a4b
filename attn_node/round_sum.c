/* attn_node/round_sum.c - what nodes answer, and what it does to the rows (step 11); see
 * round_books.h. */
#include <string.h>

#include "attn_node/round_books.h"
#include "base/must.h"
#include "engine/combine.h"
#include "engine/moe_fold.h"

static size_t slot_bytes(const struct round *r)
{
    return (size_t)r->limits.hidden * sizeof(float);
}

/* ---- answers ------------------------------------------------------------------------- */

static int check_shape(const struct round *r, const struct round_parcel *p,
                       const struct round_reply *reply, struct err *e)
{
    static const size_t value_bytes[COMBINE_COUNT] = {
        [COMBINE_FIXED] = 4, [COMBINE_EXPERT] = 4, [COMBINE_NODE] = 2};
    if (reply->mode != p->mode || reply->n_rows != p->n_rows)
        return err_set(e, E_CORRUPT, "answer to %d rows in another mode or number", p->n_rows);
    size_t vectors = (size_t)(p->mode == COMBINE_EXPERT ? p->n_routes : p->n_rows);
    size_t want = vectors * (size_t)r->limits.hidden * value_bytes[p->mode];
    if (reply->bytes != want)
        return err_set(e, E_CORRUPT, "answer of %zu bytes, expected %zu", reply->bytes, want);
    if (reply->n_overflow < 0 || reply->n_overflow > p->n_rows ||
        (reply->n_overflow > 0 && p->mode != COMBINE_FIXED))
        return err_set(e, E_CORRUPT, "answer with %d rows off the grid", reply->n_overflow);
    for (int i = 0; i < reply->n_overflow; i++)
        if (reply->overflow_rows[i] >= (uint32_t)p->n_rows)
            return err_set(e, E_CORRUPT, "answer with row %u of %d off the grid",
                           reply->overflow_rows[i], p->n_rows);
    return 0;
}

/* Exponents of all ones, in any number of bits set; perhaps misaligned. */
static bool is_finite_f32(const char *data, int n)
{
    enum { BLOCK = 256 };
    uint32_t bits[BLOCK], bad = 0;
    for (int at = 0; at < n; at += BLOCK) {
        int k = n - at < BLOCK ? n - at : BLOCK;
        memcpy(bits, data + (size_t)at * 4, (size_t)k * 4);
        for (int i = 0; i < k; i++)
            bad |= (uint32_t)((bits[i] & 0x7f800000u) == 0x7f800000u);
    }
    return !bad;
}

static bool is_finite_bf16(const char *data, int n)
{
    uint16_t bits;
    bool bad = false;
    for (int i = 0; i < n; i++) {
        memcpy(&bits, data + (size_t)i * 2, 2);
        bad |= (bits & 0x7f80u) == 0x7f80u;
    }
    return !bad;
}

/* A value that is not finite, of a row that is: not believed until a second answer has it too,
 * because a wrong node is likelier than an overflow.  (In mode fixed the node itself reports
 * such rows as off the grid.) */
static int check_values(struct round *r, const struct round_parcel *p,
                        const struct round_reply *reply, struct err *e)
{
    int rc = 0, hidden = r->limits.hidden;
    for (int i = 0; i < p->n_rows; i++)
        for (int k = p->first_route[i]; k < p->first_route[i + 1]; k++) {
            const char *data = reply->data;
            struct slot_books *s = &r->slot_books[p->slots[k]];
            bool is_fine = p->exponents[i] == COMBINE_MAX_EXPONENT ||
                           (p->mode == COMBINE_EXPERT
                                ? is_finite_f32(data + (size_t)k * slot_bytes(r), hidden)
                                : is_finite_bf16(data + (size_t)i * slot_bytes(r) / 2, hidden));
            if (is_fine && s->doubted_by != 0 && s->doubted_by != ROUND_UNKNOWN_LIAR)
                r->liar = s->doubted_by - 1;
            if (is_fine || s->doubted_by != 0)
                continue;
            s->doubted_by = (uint16_t)(1 + p->node);
            rc = err_set(e, E_CORRUPT, "the output of expert %d is not finite", p->experts[k]);
        }
    return rc;
}

static void take_fixed(struct round *r, const struct round_parcel *p,
                       const struct round_reply *reply)
{
    for (int i = 0; i < reply->n_overflow; i++)
        r->is_overflowed[p->rows[reply->overflow_rows[i]]] = 1;
    for (int i = 0; i < p->n_rows; i++) {
        int row = p->rows[i];
        if (!r->is_overflowed[row])
            r->limits.kernels->add_int32(r->sums + (size_t)row * (size_t)r->limits.hidden,
                                         (const char *)reply->data + (size_t)i * slot_bytes(r),
                                         r->limits.hidden);
    }
}

static void put_slot(struct round *r, int slot, const void *data, size_t bytes)
{
    memcpy(r->slots + (size_t)slot * slot_bytes(r), data, bytes);
    r->has_slot[slot] = 1;
}

static void take_by_expert(struct round *r, const struct round_parcel *p,
                           const struct round_reply *reply)
{
    for (int i = 0; i < p->n_routes; i++)
        put_slot(r, p->slots[i], (const char *)reply->data + (size_t)i * slot_bytes(r),
                 slot_bytes(r));
}

/* A node's sum lies in the place of its first slot of that row, so that nodes are added in
 * an order that the routing gives, not the network. */
static void take_by_node(struct round *r, const struct round_parcel *p,
                         const struct round_reply *reply)
{
    size_t bytes = (size_t)r->limits.hidden * sizeof(uint16_t);
    for (int i = 0; i < p->n_rows; i++)
        put_slot(r, p->slots[p->first_route[i]], (const char *)reply->data + (size_t)i * bytes,
                 bytes);
}

int round_check_reply(struct round *r, const struct round_parcel *p,
                      const struct round_reply *reply, struct err *e)
{
    int rc = check_shape(r, p, reply, e);
    bool is_believed = p->mode == COMBINE_FIXED || p->reason == REASON_CHECK;
    return rc == 0 && !is_believed ? check_values(r, p, reply, e) : rc;
}

void round_add_reply(struct round *r, const struct round_parcel *p, const struct round_reply *reply)
{
    switch (p->mode) {
    case COMBINE_FIXED:
        take_fixed(r, p, reply);
        break;
    case COMBINE_EXPERT:
        take_by_expert(r, p, reply);
        break;
    case COMBINE_NODE:
        take_by_node(r, p, reply);
        break;
    default:
        unreachable();
    }
}

/* ---- the result ---------------------------------------------------------------------- */

static void fold_slots(const struct round *r, int row, float *x)
{
    const void *slots[MODEL_MAX_TOP_K];
    float weights[MODEL_MAX_TOP_K];
    int top_k = r->limits.top_k, n = 0;
    for (int slot = row * top_k; slot < (row + 1) * top_k; slot++) {
        if (r->slot_books[slot].is_left_out)
            continue;
        slots[n] = r->slots + (size_t)slot * slot_bytes(r);
        weights[n++] = r->plan.rows->routing->weights[slot];
    }
    moe_fold_expert(slots, weights, n, r->limits.hidden, x);
}

static void fold_nodes(const struct round *r, int row, float *x)
{
    int top_k = r->limits.top_k;
    for (int slot = row * top_k; slot < (row + 1) * top_k; slot++)
        if (r->has_slot[slot])
            moe_fold_node(r->slots + (size_t)slot * slot_bytes(r), r->limits.hidden, x);
}

static void fold_row(const struct round *r, int row, float *x)
{
    if (r->plan.mode == COMBINE_NODE)
        fold_nodes(r, row, x);
    else if (r->plan.mode == COMBINE_EXPERT || r->is_overflowed[row])
        fold_slots(r, row, x);
    else
        moe_fold_fixed(r->limits.kernels, r->sums + (size_t)row * (size_t)r->limits.hidden,
                       r->plan.rows->exponents[row], r->limits.hidden, x);
}

/* What the remaining contributions of a row are multiplied with: all weights over theirs. */
static float scale_of(const struct round *r, int row)
{
    float all = 0, rest = 0;
    int top_k = r->limits.top_k;
    for (int slot = row * top_k; slot < (row + 1) * top_k; slot++) {
        float weight = r->plan.rows->routing->weights[slot];
        all += weight;
        rest += r->slot_books[slot].is_left_out ? 0 : weight;
    }
    return rest != 0 ? all / rest : 0;
}

static void fold_scaled(const struct round *r, int row, float *x)
{
    float scale = scale_of(r, row);
    memset(r->scaled, 0, slot_bytes(r));
    fold_row(r, row, r->scaled);
    for (int i = 0; i < r->limits.hidden; i++)
        x[i] += scale * r->scaled[i];
}

static bool is_row_whole(const struct round *r, int row)
{
    int top_k = r->limits.top_k;
    for (int slot = row * top_k; slot < (row + 1) * top_k; slot++)
        if (r->slot_books[slot].is_left_out)
            return false;
    return true;
}

void round_fold(struct round *r, float *x)
{
    must(r->state == ROUND_DONE);
    size_t hidden = (size_t)r->limits.hidden;
    for (int row = 0; row < r->plan.rows->n_rows; row++) {
        if (r->n_left_out == 0 || is_row_whole(r, row))
            fold_row(r, row, x + row * hidden);
        else
            fold_scaled(r, row, x + row * hidden);
    }
    r->state = ROUND_IDLE;
}
