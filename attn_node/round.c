/* attn_node/round.c - see round.h; how selections become parcels is in round_plan.c, what is done
 * with the values in round_sum.c, how they are confirmed in round_check.c. */
#include "attn_node/round.h"

#include <stdio.h>
#include <string.h>

#include "attn_node/round_books.h"
#include "base/mem.h"
#include "base/must.h"

static size_t slot_bytes(const struct round *r)
{
    return (size_t)r->limits.hidden * sizeof(float);
}

struct round *round_new(const struct round_limits *l)
{
    must(l->max_rows > 0 && l->top_k > 0 && l->top_k <= MODEL_MAX_TOP_K && l->hidden > 0);
    struct round *r = mem_alloc(sizeof(*r));
    r->limits = *l;
    size_t n_slots = 0, room = 0, bytes = 0;
    must(mem_mul((size_t)l->max_rows, (size_t)l->top_k, &n_slots));
    must(mem_mul(n_slots, 2 * ROUND_ASKS, &room) && room <= INT32_MAX);
    must(mem_mul(n_slots, slot_bytes(r), &bytes));
    room = n_slots * ROUND_ASKS;
    r->max_routes = (int)n_slots;
    r->room = (int)room;
    r->liar = r->dispute = -1;
    r->rng = rng_seed(1);
    r->choice = choice_new(l->n_experts);
    r->parcels = mem_array(room, sizeof(*r->parcels));
    r->entry_rows = mem_array(room, sizeof(int32_t));
    r->entry_route = mem_array(room, sizeof(int32_t));
    r->entry_exponents = mem_array(room, sizeof(int16_t));
    r->first_routes = mem_array(2 * room, sizeof(int32_t));
    r->route_slots = mem_array(room, sizeof(int32_t));
    r->route_experts = mem_array(room, sizeof(uint16_t));
    r->route_weights = mem_array(room, sizeof(float));
    r->slot_books = mem_array(n_slots, sizeof(*r->slot_books));
    r->wanted = mem_array(n_slots, sizeof(int32_t));
    r->sums = mem_aligned_raw((size_t)l->max_rows * slot_bytes(r));
    r->scaled = mem_aligned(slot_bytes(r));
    r->is_overflowed = mem_array((size_t)l->max_rows, 1);
    r->slots = mem_aligned_raw(bytes);
    r->has_slot = mem_array(n_slots, 1);
    r->first_said = mem_aligned_raw(bytes); /* untouched, and so no memory, without checks */
    r->witness_said = mem_aligned_raw(bytes);
    return r;
}

int round_max_parcels(const struct round_limits *l)
{
    return ROUND_ASKS * l->max_rows * l->top_k;
}

void round_free(struct round **round)
{
    struct round *r = *round;
    if (!r)
        return;
    *round = NULL;
    choice_free(&r->choice);
    void *const owned[] = {r->nodes,           r->standing,      r->load,        r->cost,
                           r->parcels,         r->entry_rows,    r->entry_route, r->slot_books,
                           r->entry_exponents, r->first_routes,  r->route_slots, r->wanted,
                           r->route_experts,   r->route_weights, r->sums,        r->scaled,
                           r->is_overflowed,   r->slots,         r->has_slot,    r->first_said,
                           r->witness_said};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++)
        mem_free(owned[i]);
    mem_free(r);
}

static void reserve_nodes(struct round *r, int n_nodes)
{
    if (n_nodes <= r->nodes_size)
        return;
    size_t n = (size_t)n_nodes;
    r->nodes = mem_resize(r->nodes, n * sizeof(*r->nodes));
    r->standing = mem_resize(r->standing, n * sizeof(*r->standing));
    r->load = mem_resize(r->load, n * sizeof(*r->load));
    r->cost = mem_resize(r->cost, n * sizeof(*r->cost));
    r->nodes_size = n_nodes;
}

void round_install(struct round *r, const struct round_node *nodes, int n_nodes)
{
    must(r->state == ROUND_IDLE);
    reserve_nodes(r, n_nodes);
    r->n_nodes = n_nodes;
    for (int i = 0; i < n_nodes; i++) {
        must(nodes[i].max_rows > 0);
        r->nodes[i] = (struct node_books){.node = nodes[i]};
        r->load[i] = 0;
    }
}

/* ---- what is missing ----------------------------------------------------------------- */

/* The rows that this part of the round is about. */
static bool is_planned(const struct round *r, int row)
{
    return !r->asked_again || r->is_overflowed[row];
}

/* The selections that nobody has been asked for. */
static int list_wanted(struct round *r, bool with_orphans)
{
    int n = 0, top_k = r->limits.top_k;
    for (int slot = 0; slot < r->plan.rows->n_rows * top_k; slot++) {
        struct slot_books *s = &r->slot_books[slot];
        if (!is_planned(r, slot / top_k) || s->is_counted || s->is_left_out || s->n_live > 0)
            continue;
        if (s->is_orphan && !with_orphans)
            continue;
        r->n_orphans -= s->is_orphan;
        s->is_orphan = false;
        r->wanted[n++] = slot;
    }
    return n;
}

static void finish_part(struct round *r);

/* After every event: is there something left to wait for? */
static void settle(struct round *r)
{
    if (r->state == ROUND_DONE || r->state == ROUND_FAILED)
        return;
    if (r->n_missing + r->n_unchecked == 0)
        finish_part(r);
    else if (r->n_planned + r->n_out == 0)
        r->state = ROUND_WAITING;
    else
        r->state = ROUND_RUNNING;
}

/* Asks somebody for what nobody is asked for. */
static int recover(struct round *r, enum round_reason reason, bool with_orphans)
{
    struct round_wish w = {.slots = r->wanted,
                           .n_slots = list_wanted(r, with_orphans),
                           .reason = reason,
                           .worst = STANDING_DOUBTFUL,
                           .without_node = -1,
                           .nor_node = -1};
    int n = round_plan_slots(r, &w);
    if (with_orphans)
        n += round_ask_witnesses(r);
    settle(r);
    return n;
}

static void clear_parcels(struct round *r)
{
    must(r->n_planned + r->n_out == 0);
    r->trip++;
    r->n_parcels = r->n_entries = r->n_routes = r->n_first_routes = 0;
    r->has_rivals = false;
}

void round_begin(struct round *r, const struct round_plan *plan)
{
    const struct moe_rows *rows = plan->rows;
    must(r->state == ROUND_IDLE);
    must(rows->n_rows > 0 && rows->n_rows <= r->limits.max_rows);
    must(rows->hidden == r->limits.hidden && rows->routing->top_k == r->limits.top_k);
    int n_slots = rows->n_rows * r->limits.top_k;
    clear_parcels(r);
    r->plan = *plan;
    r->error.code = r->last.code = 0;
    r->asked_again = false;
    r->n_missing = n_slots;
    r->n_taken = 0;
    r->n_orphans = r->n_left_out = r->n_unchecked = r->n_check_out = r->n_checks = 0;
    r->dispute = -1;
    if (plan->mode == COMBINE_FIXED)
        memset(r->sums, 0, (size_t)rows->n_rows * slot_bytes(r));
    memset(r->is_overflowed, 0, (size_t)rows->n_rows);
    memset(r->has_slot, 0, (size_t)n_slots);
    memset(r->slot_books, 0, (size_t)n_slots * sizeof(*r->slot_books));
    for (int i = 0; i < r->n_nodes; i++) {
        r->nodes[i].grudge = GRUDGE_NONE;
        r->nodes[i].n_out = 0;
    }
    for (int slot = 0; slot < n_slots; slot++)
        r->wanted[slot] = slot;
    struct round_wish w = {.slots = r->wanted,
                           .n_slots = n_slots,
                           .reason = REASON_FIRST,
                           .worst = STANDING_DOUBTFUL,
                           .without_node = -1,
                           .nor_node = -1};
    round_plan_slots(r, &w);
    r->state = ROUND_RUNNING;
    settle(r);
}

/* ---- actions ------------------------------------------------------------------------- */

int round_next(const struct round *r, int after)
{
    if (r->state != ROUND_RUNNING || r->n_planned == 0)
        return -1;
    for (int i = after + 1; i < r->n_parcels; i++)
        if (r->parcels[i].state == PARCEL_PLANNED)
            return i;
    return -1;
}

const struct round_parcel *round_parcel(const struct round *r, int parcel)
{
    must(parcel >= 0 && parcel < r->n_parcels);
    return &r->parcels[parcel];
}

struct round_ticket round_sent(struct round *r, int parcel)
{
    must(r->state == ROUND_RUNNING && parcel >= 0 && parcel < r->n_parcels);
    must(r->parcels[parcel].state == PARCEL_PLANNED);
    r->parcels[parcel].state = PARCEL_OUT;
    r->n_planned--;
    r->n_out++;
    return (struct round_ticket){.trip = r->trip, .parcel = parcel};
}

/* ---- parcels end --------------------------------------------------------------------- */

bool round_is_out(const struct round *r, struct round_ticket t)
{
    return r->state == ROUND_RUNNING && t.trip == r->trip && t.parcel >= 0 &&
           t.parcel < r->n_parcels && r->parcels[t.parcel].state == PARCEL_OUT;
}

static struct round_parcel *parcel_that_is_out(struct round *r, struct round_ticket t)
{
    return round_is_out(r, t) ? &r->parcels[t.parcel] : NULL;
}

bool round_is_live(const struct round_parcel *p)
{
    return p->state == PARCEL_PLANNED || p->state == PARCEL_OUT;
}

/* What a witness was asked for is wanted again. */
static void free_slot(struct round *r, const struct round_parcel *p, struct slot_books *s)
{
    if (p->reason != REASON_CHECK) {
        s->n_live--;
    } else if (s->check == CHECK_OUT) {
        s->check = CHECK_WANTED;
        r->n_check_out--;
    }
}

void round_end_parcel(struct round *r, struct round_parcel *p, enum round_parcel_state state)
{
    must(round_is_live(p));
    if (p->state == PARCEL_PLANNED)
        r->n_planned--;
    else
        r->n_out--;
    r->nodes[p->node].n_out--;
    for (int i = 0; i < p->n_routes; i++)
        free_slot(r, p, &r->slot_books[p->slots[i]]);
    p->state = state;
}

static bool has_counted(const struct round *r, const struct round_parcel *p)
{
    if (p->reason == REASON_CHECK)
        return false;
    for (int i = 0; i < p->n_routes; i++)
        if (r->slot_books[p->slots[i]].is_counted)
            return true;
    return false;
}

/* Nobody waits any more for a parcel of which a part is counted already; what else it would
 * have brought is asked for once more. */
static void drop_rivals(struct round *r)
{
    for (int i = 0; i < r->n_parcels; i++)
        if (round_is_live(&r->parcels[i]) && has_counted(r, &r->parcels[i]))
            round_end_parcel(r, &r->parcels[i], PARCEL_DROPPED);
    recover(r, REASON_RETRY, false);
}

static bool share_selections(const struct round_parcel *a, const struct round_parcel *b)
{
    for (int i = 0, k = 0; i < a->n_routes && k < b->n_routes;) {
        if (a->slots[i] == b->slots[k])
            return true;
        if (a->slots[i] < b->slots[k])
            i++;
        else
            k++;
    }
    return false;
}

/* Its rivals may be asked elsewhere again. */
static void lose_rival(struct round *r, const struct round_parcel *lost)
{
    for (int i = 0; i < r->n_parcels; i++) {
        struct round_parcel *p = &r->parcels[i];
        if (round_is_live(p) && p->is_asked_twice && share_selections(p, lost))
            p->is_asked_twice = false;
    }
}

static bool is_final(int code)
{
    return code == E_INVALID || code == E_PRECONDITION || code == E_UNIMPLEMENTED ||
           code == E_DENIED || code == E_UNAUTHENTICATED;
}

static void fail_parcel(struct round *r, struct round_parcel *p, int code, const char *why)
{
    char experts[96];
    round_name_experts(r, p->slots, p->n_routes, experts, sizeof(experts));
    err_set(&r->last, code, "node %s: layer %d, experts %s: %s", r->nodes[p->node].node.name,
            r->plan.rows->layer, experts, why && why[0] ? why : err_text(code));
    round_end_parcel(r, p, PARCEL_FAILED);
    r->nodes[p->node].grudge = GRUDGE_FAILED;
    if (is_final(code)) {
        r->error = r->last;
        r->state = ROUND_FAILED;
        return;
    }
    if (p->reason == REASON_CHECK)
        round_lose_witness(r, p);
    else if (r->has_rivals)
        lose_rival(r, p);
    recover(r, REASON_RETRY, false);
}

int round_fail(struct round *r, struct round_ticket t, int code, const char *why)
{
    struct round_parcel *p = parcel_that_is_out(r, t);
    if (!p)
        return E_STALE;
    fail_parcel(r, p, code, why);
    return 0;
}

void round_fail_unsent(struct round *r, int parcel, int code, const char *why)
{
    must(r->state == ROUND_RUNNING && parcel >= 0 && parcel < r->n_parcels);
    must(r->parcels[parcel].state == PARCEL_PLANNED);
    fail_parcel(r, &r->parcels[parcel], code, why);
}

static int ask_elsewhere(struct round *r, struct round_parcel *p, const struct round_wish *how)
{
    if (p->is_asked_twice)
        return 0;
    struct round_wish w = *how;
    w.slots = p->slots;
    w.n_slots = p->n_routes;
    w.without_node = p->node;
    w.nor_node = -1;
    w.is_whole = true;
    int n = round_plan_slots(r, &w);
    p->is_asked_twice = n > 0;
    r->has_rivals |= n > 0;
    return n;
}

int round_late(struct round *r, struct round_ticket t)
{
    struct round_parcel *p = parcel_that_is_out(r, t);
    if (!p)
        return 0;
    if (r->nodes[p->node].grudge == GRUDGE_NONE)
        r->nodes[p->node].grudge = GRUDGE_LATE;
    if (p->reason == REASON_CHECK) {
        bool is_replaced = round_replace_witness(r, p);
        settle(r);
        return is_replaced;
    }
    return ask_elsewhere(r, p,
                         &(struct round_wish){.reason = REASON_LATE, .worst = STANDING_DOUBTFUL});
}

int round_hedge(struct round *r, struct round_ticket t)
{
    struct round_parcel *p = parcel_that_is_out(r, t);
    return p && p->reason != REASON_CHECK
               ? ask_elsewhere(r, p,
                               &(struct round_wish){.reason = REASON_HEDGE, .worst = STANDING_GOOD})
               : 0;
}

/* ---- answers ------------------------------------------------------------------------- */

static void count_selections(struct round *r, const struct round_parcel *p)
{
    for (int i = 0; i < p->n_routes; i++) {
        struct slot_books *s = &r->slot_books[p->slots[i]];
        must(!s->is_counted && !s->is_orphan && !s->is_left_out);
        s->is_counted = true;
    }
    r->n_missing -= p->n_routes;
}

/* The rows that are off the grid somewhere begin anew, in mode expert. */
static void begin_again(struct round *r)
{
    int top_k = r->limits.top_k;
    r->asked_again = true;
    for (int i = 0; i < r->n_parcels; i++)
        if (round_is_live(&r->parcels[i]))
            round_end_parcel(r, &r->parcels[i], PARCEL_DROPPED);
    for (int slot = 0; slot < r->plan.rows->n_rows * top_k; slot++)
        if (r->is_overflowed[slot / top_k] && !r->slot_books[slot].is_left_out) {
            r->slot_books[slot].is_counted = false;
            r->slot_books[slot].check = CHECK_NONE;
            r->n_missing++;
        }
    recover(r, REASON_FIRST, true);
}

static void finish_part(struct round *r)
{
    bool has_overflow = memchr(r->is_overflowed, 1, (size_t)r->plan.rows->n_rows) != NULL;
    r->dispute = round_compare(r);
    if (r->dispute >= 0) {
        err_set(&r->error, E_ABORTED, "layer %d: two nodes give other bits for the same row",
                r->plan.rows->layer);
        r->state = ROUND_FAILED;
        return;
    }
    if (has_overflow && !r->asked_again)
        begin_again(r);
    if (r->n_missing + r->n_unchecked == 0)
        r->state = ROUND_DONE;
}

int round_take(struct round *r, struct round_ticket t, const struct round_reply *reply,
               struct err *e)
{
    struct round_parcel *p = parcel_that_is_out(r, t);
    if (!p)
        return E_STALE;
    int rc = round_check_reply(r, p, reply, e);
    if (rc < 0)
        return rc;
    r->n_taken++;
    r->nodes[p->node].grudge = GRUDGE_NONE;
    if (p->reason == REASON_CHECK) {
        round_take_witness(r, p, reply);
        round_end_parcel(r, p, PARCEL_DONE);
    } else {
        round_add_reply(r, p, reply);
        round_end_parcel(r, p, PARCEL_DONE);
        count_selections(r, p);
        round_maybe_check(r, p, reply);
        if (r->has_rivals)
            drop_rivals(r);
    }
    settle(r);
    return 0;
}

/* ---- when nobody is left to ask ------------------------------------------------------ */

int round_n_orphans(const struct round *r)
{
    return r->n_orphans + r->n_unchecked - r->n_check_out;
}

void round_stand(struct round *r, int node, enum standing standing)
{
    must(node >= 0 && node < r->n_nodes);
    r->nodes[node].node.standing = standing;
}

int round_retry(struct round *r)
{
    must(r->state == ROUND_RUNNING || r->state == ROUND_WAITING);
    for (int i = 0; i < r->n_nodes; i++)
        if (r->nodes[i].grudge == GRUDGE_FAILED && r->nodes[i].n_out == 0)
            r->nodes[i].grudge = GRUDGE_NONE;
    if (r->state == ROUND_WAITING)
        clear_parcels(r);
    /* Without trouble so far nobody was asked: the nodes are only now there. */
    return recover(r, r->last.code ? REASON_RETRY : REASON_FIRST, true);
}

static uint16_t move_node(const struct round *r, const int32_t *moved, uint16_t node)
{
    return node < r->n_nodes && moved[node] >= 0 ? (uint16_t)moved[node] : (uint16_t)ROUND_GONE;
}

/* Parcels follow their nodes to the new numbers, or fail with them. */
static void move_parcels(struct round *r, const int32_t *moved)
{
    for (int i = 0; i < r->n_parcels; i++) {
        struct round_parcel *p = &r->parcels[i];
        int node = p->node < 0 ? -1 : moved[p->node];
        if (node < 0 && round_is_live(p))
            round_end_parcel(r, p, PARCEL_FAILED);
        p->node = node;
    }
    for (int slot = 0; slot < r->max_routes; slot++) {
        struct slot_books *s = &r->slot_books[slot];
        if (s->doubted_by != 0)
            s->doubted_by = ROUND_UNKNOWN_LIAR;
        s->answered_by = move_node(r, moved, s->answered_by);
        s->confirmed_by = move_node(r, moved, s->confirmed_by);
    }
    r->liar = -1;
}

void round_change(struct round *r, const struct round_change *c)
{
    must(r->state == ROUND_RUNNING || r->state == ROUND_WAITING);
    if (r->state == ROUND_WAITING)
        clear_parcels(r);
    move_parcels(r, c->moved);
    int n_old = r->n_nodes;
    struct node_books *old = mem_array((size_t)n_old + 1, sizeof(*old));
    for (int i = 0; i < n_old; i++)
        old[i] = r->nodes[i];
    reserve_nodes(r, c->n_nodes);
    r->n_nodes = c->n_nodes;
    for (int i = 0; i < c->n_nodes; i++) {
        r->nodes[i] = (struct node_books){.node = c->nodes[i]};
        r->load[i] = 0;
    }
    for (int i = 0; i < n_old; i++)
        if (c->moved[i] >= 0) {
            r->nodes[c->moved[i]].grudge = old[i].grudge;
            r->nodes[c->moved[i]].n_out = old[i].n_out;
        }
    mem_free(old);
    r->plan.holders = c->holders;
    r->plan.n_replicas = c->n_replicas;
    for (int i = 0; i < r->n_parcels; i++)
        r->parcels[i].is_asked_twice = false;
    recover(r, REASON_RETRY, true);
}

void round_leave_out(struct round *r)
{
    must(r->state == ROUND_RUNNING || r->state == ROUND_WAITING);
    for (int slot = 0; slot < r->plan.rows->n_rows * r->limits.top_k; slot++) {
        struct slot_books *s = &r->slot_books[slot];
        if (!s->is_orphan)
            continue;
        s->is_orphan = false;
        s->is_left_out = true;
        r->n_orphans--;
        r->n_missing--;
        r->n_left_out++;
    }
    r->n_left_out += round_believe(r);
    settle(r);
}

void round_give_up(struct round *r, const char *how_long)
{
    must(r->state == ROUND_RUNNING || r->state == ROUND_WAITING);
    must(round_n_orphans(r) > 0);
    r->state = ROUND_FAILED;
    if (r->last.code) {
        err_set(&r->error, r->last.code, "%s (%s)", r->last.text, how_long);
        return;
    }
    char experts[96];
    int n = list_wanted(r, true);
    if (n == 0) {
        err_set(&r->error, E_UNAVAILABLE,
                "layer %d: no second node confirms the answer of %d selections (%s)",
                r->plan.rows->layer, r->n_unchecked - r->n_check_out, how_long);
        return;
    }
    round_name_experts(r, r->wanted, n, experts, sizeof(experts));
    uint16_t expert = r->plan.rows->routing->experts[r->wanted[0]];
    uint16_t holder = r->plan.holders[(size_t)expert * (size_t)r->plan.n_replicas];
    if (holder == ROUND_NO_HOLDER)
        err_set(&r->error, E_UNAVAILABLE, "layer %d, experts %s: on no node (%s)",
                r->plan.rows->layer, experts, how_long);
    else
        err_set(&r->error, E_UNAVAILABLE, "node %s: layer %d, experts %s: not connected (%s)",
                r->nodes[holder].node.name, r->plan.rows->layer, experts, how_long);
}

/* ---- the state ----------------------------------------------------------------------- */

enum round_state round_state(const struct round *r)
{
    return r->state;
}

const struct err *round_error(const struct round *r)
{
    return &r->error;
}

int round_n_parcels(const struct round *r)
{
    return r->n_parcels;
}

int round_n_out(const struct round *r)
{
    return r->n_out;
}

int round_n_taken(const struct round *r)
{
    return r->n_taken;
}

int round_n_left_out(const struct round *r)
{
    return r->n_left_out;
}

int round_take_liar(struct round *r)
{
    int liar = r->liar;
    r->liar = -1;
    return liar;
}

int round_layer(const struct round *r)
{
    must(r->state != ROUND_IDLE);
    return r->plan.rows->layer;
}

const struct rows *round_rows(const struct round *r)
{
    must(r->state != ROUND_IDLE);
    return &r->plan.rows->rows;
}

void round_abandon(struct round *r)
{
    r->trip++;
    r->n_planned = r->n_out = 0;
    r->state = ROUND_IDLE;
}
