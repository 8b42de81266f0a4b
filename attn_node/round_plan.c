/* attn_node/round_plan.c - selections become parcels (step 8); see round_books.h.
 *
 * A parcel's lists are slices of arrays that hold the parcels of a round one after another,
 * grouped by node: entries (a row on a node) and routes (an expert of a row). */
#include <stdio.h>
#include <string.h>

#include "attn_node/round_books.h"
#include "base/must.h"

/* Whom choice.c may choose, and what each has to read already. */
static void tell_standing(struct round *r, const struct round_wish *w)
{
    for (int i = 0; i < r->n_nodes; i++) {
        const struct node_books *n = &r->nodes[i];
        uint8_t standing = (uint8_t)n->node.standing;
        if (n->grudge == GRUDGE_LATE && standing == STANDING_GOOD)
            standing = STANDING_DOUBTFUL;
        if (n->grudge == GRUDGE_FAILED || i == w->without_node || i == w->nor_node)
            standing = STANDING_AWAY;
        r->standing[i] = standing;
        r->cost[i] = n->node.cost > 0 ? n->node.cost : CHOICE_COST;
        if (n->n_out == 0)
            r->load[i] = 0;
    }
}

static int choose(struct round *r, const struct round_wish *w)
{
    tell_standing(r, w);
    struct choice_question q = {
        .experts = r->plan.rows->routing->experts,
        .slots = w->slots,
        .n_slots = w->n_slots,
        .holders = r->plan.holders,
        .n_replicas = r->plan.n_replicas,
        .standing = r->standing,
        .worst = w->worst,
        .is_whole = w->is_whole,
        .load = r->load,
        .cost = r->cost,
    };
    return choice_make(r->choice, &q);
}

static struct node_books *node_of_slot(const struct round *r, int slot)
{
    uint16_t node = choice_of(r->choice, r->plan.rows->routing->experts[slot]);
    return node == CHOICE_NOBODY ? NULL : &r->nodes[node];
}

/* Counts each node's entries and routes, and gives it its place in the arrays. */
static void plan_places(struct round *r, const struct round_wish *w)
{
    for (int i = 0; i < r->n_nodes; i++) {
        r->nodes[i].n_entries = r->nodes[i].n_routes = 0;
        r->nodes[i].last_row = -1;
    }
    for (int i = 0; i < w->n_slots; i++) {
        int row = w->slots[i] / r->limits.top_k;
        struct node_books *n = node_of_slot(r, w->slots[i]);
        if (!n)
            continue;
        n->n_routes++;
        n->n_entries += n->last_row != row;
        n->last_row = row;
    }
    for (int i = 0; i < r->n_nodes; i++) {
        struct node_books *n = &r->nodes[i];
        n->first_entry = r->n_entries;
        n->first_place = r->n_routes;
        r->n_entries += n->n_entries;
        r->n_routes += n->n_routes;
        n->n_entries = n->n_routes = 0;
        n->last_row = -1;
    }
}

static void make_orphan(struct round *r, int slot)
{
    struct slot_books *s = &r->slot_books[slot];
    must(!s->is_orphan && !s->is_counted && s->n_live == 0);
    s->is_orphan = true;
    r->n_orphans++;
}

/* A selection that finds nobody; one that is to be confirmed is left as it was. */
static void leave(struct round *r, const struct round_wish *w, int slot)
{
    if (w->reason != REASON_CHECK)
        make_orphan(r, slot);
}

static void note_asked(struct round *r, const struct round_wish *w, int slot)
{
    struct slot_books *s = &r->slot_books[slot];
    if (w->reason != REASON_CHECK) {
        s->n_live++;
        return;
    }
    must(s->check == CHECK_WANTED);
    s->check = CHECK_OUT;
    r->n_check_out++;
}

static void plan_entries(struct round *r, const struct round_wish *w)
{
    const struct moe_rows *rows = r->plan.rows;
    for (int i = 0; i < w->n_slots; i++) {
        int slot = w->slots[i], row = slot / r->limits.top_k;
        struct node_books *n = node_of_slot(r, slot);
        if (!n) {
            leave(r, w, slot);
            continue;
        }
        int route = n->first_place + n->n_routes++;
        r->route_slots[route] = slot;
        r->route_experts[route] = rows->routing->experts[slot];
        r->route_weights[route] = rows->routing->weights[slot];
        note_asked(r, w, slot);
        if (n->last_row == row)
            continue;
        int entry = n->first_entry + n->n_entries++;
        r->entry_rows[entry] = row;
        r->entry_exponents[entry] = rows->exponents[row];
        r->entry_route[entry] = route;
        n->last_row = row;
    }
}

/* A parcel of one node's entries from `entry` on; its routes end at `route_end`. */
static void add_parcel(struct round *r, const struct round_parcel *like, int entry, int n_rows,
                       int route_end)
{
    must(r->n_parcels < r->room);
    int first = r->entry_route[entry];
    int32_t *first_route = &r->first_routes[r->n_first_routes];
    for (int i = 0; i < n_rows; i++)
        first_route[i] = r->entry_route[entry + i] - first;
    first_route[n_rows] = route_end - first;
    r->n_first_routes += n_rows + 1;
    struct round_parcel *p = &r->parcels[r->n_parcels++];
    *p = *like;
    p->n_rows = n_rows;
    p->n_routes = route_end - first;
    p->rows = &r->entry_rows[entry];
    p->first_route = first_route;
    p->exponents = &r->entry_exponents[entry];
    p->slots = &r->route_slots[first];
    p->experts = &r->route_experts[first];
    p->weights = &r->route_weights[first];
    r->n_planned++;
    r->nodes[p->node].n_out++;
}

static int plan_parcels(struct round *r, enum round_reason reason)
{
    int before = r->n_parcels;
    for (int i = 0; i < r->n_nodes; i++) {
        const struct node_books *n = &r->nodes[i];
        struct round_parcel like = {.state = PARCEL_PLANNED,
                                    .reason = reason,
                                    .mode = r->asked_again ? COMBINE_EXPERT : r->plan.mode,
                                    .node = i};
        for (int done = 0; done < n->n_entries; done += n->node.max_rows) {
            int left = n->n_entries - done;
            int n_rows = left < n->node.max_rows ? left : n->node.max_rows;
            int entry = n->first_entry + done;
            int route_end =
                n_rows < left ? r->entry_route[entry + n_rows] : n->first_place + n->n_routes;
            add_parcel(r, &like, entry, n_rows, route_end);
        }
    }
    return r->n_parcels - before;
}

int round_plan_slots(struct round *r, const struct round_wish *w)
{
    if (w->n_slots == 0)
        return 0;
    bool has_room = r->n_routes + w->n_slots <= r->room;
    if (!has_room && !w->is_whole)
        for (int i = 0; i < w->n_slots; i++)
            leave(r, w, w->slots[i]);
    if (!has_room)
        return 0;
    int n_without = choose(r, w);
    if (n_without > 0 && w->is_whole)
        return 0;
    plan_places(r, w);
    plan_entries(r, w);
    return plan_parcels(r, w->reason);
}

void round_name_experts(const struct round *r, const int32_t *slots, int n, char *out, size_t bytes)
{
    enum { NAMED = 8 };
    uint16_t seen[NAMED];
    int n_seen = 0;
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < n; i++) {
        uint16_t expert = r->plan.rows->routing->experts[slots[i]];
        bool is_known = false;
        for (int j = 0; j < n_seen; j++)
            is_known |= seen[j] == expert;
        if (is_known)
            continue;
        bool is_full = n_seen == NAMED;
        int k = is_full ? snprintf(out + used, bytes - used, ", ...")
                        : snprintf(out + used, bytes - used, "%s%d", n_seen ? ", " : "", expert);
        if (is_full || k < 0 || (size_t)k >= bytes - used)
            return;
        used += (size_t)k;
        seen[n_seen++] = expert;
    }
}
