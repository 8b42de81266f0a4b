/* coordinator/placement.c - see placement.h. */
#include "coordinator/placement.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"

enum { NOBODY = PLACEMENT_NOBODY };

void placement_init(struct placement *p, const struct placement_config *c)
{
    *p = (struct placement){.config = *c,
                            .epoch = c->first_version,
                            .covered_epoch = c->first_version,
                            .last_version = c->first_version,
                            .n_total = (int64_t)c->n_layers * c->n_experts};
    p->experts = mem_array((size_t)p->n_total, sizeof *p->experts);
    for (int64_t i = 0; i < p->n_total; i++)
        p->experts[i] = (struct placement_expert){.live = NOBODY, .target = NOBODY, .from = NOBODY};
}

void placement_fini(struct placement *p)
{
    mem_free(p->experts);
    mem_free(p->nodes);
    mem_free(p->counts);
    *p = (struct placement){0};
}

static int find_node(const struct placement *p, uint32_t node_id)
{
    for (int i = 0; i < p->n_nodes; i++)
        if ((p->nodes[i].presence == PLACEMENT_PRESENT ||
             p->nodes[i].presence == PLACEMENT_DRAINING) &&
            p->nodes[i].table.node_id == node_id)
            return i;
    return -1;
}

/* Recounts what follows from the experts' places. */
static void recount(struct placement *p)
{
    for (int i = 0; i < p->n_nodes; i++)
        p->nodes[i].held = p->nodes[i].live = 0;
    p->n_live = 0;
    for (int64_t i = 0; i < p->n_total; i++) {
        const struct placement_expert *x = &p->experts[i];
        if (x->live != NOBODY) {
            p->nodes[x->live].held++;
            p->nodes[x->live].live++;
            p->n_live++;
        }
        if (x->target != NOBODY && x->target != x->live)
            p->nodes[x->target].held++;
        if (x->from != NOBODY && x->from != x->target && x->from != x->live)
            p->nodes[x->from].held++;
    }
}

/* The table changed: a new epoch.  Call after recount(). */
static void new_epoch(struct placement *p, bool was_covered)
{
    p->epoch++;
    if (!was_covered && placement_is_covered(p))
        p->covered_epoch = p->epoch;
}

/* Gives every node whose holdings changed a new version of them. */
static void publish_holdings(struct placement *p)
{
    for (int i = 0; i < p->n_nodes; i++) {
        struct placement_node *n = &p->nodes[i];
        if (!n->changed)
            continue;
        n->changed = false;
        n->version = ++p->last_version;
        for (int64_t k = 0; k < p->n_total; k++)
            if (p->experts[k].target == i && p->experts[k].live != i && p->experts[k].since == 0)
                p->experts[k].since = n->version;
    }
}

static int take_slot(struct placement *p, const char *name)
{
    int spare = -1;
    for (int i = 0; i < p->n_nodes; i++) {
        if (p->nodes[i].presence == PLACEMENT_AWAY && strcmp(p->nodes[i].table.name, name) == 0)
            return i;
        if (p->nodes[i].presence == PLACEMENT_FREE)
            spare = i;
    }
    if (spare >= 0)
        return spare;
    if (p->n_nodes == p->room) {
        p->room = p->room ? 2 * p->room : 16;
        p->nodes = mem_resize(p->nodes, (size_t)p->room * sizeof *p->nodes);
        p->counts = mem_resize(p->counts, (size_t)p->room * sizeof *p->counts);
    }
    must(p->n_nodes < NOBODY);
    p->nodes[p->n_nodes] = (struct placement_node){0};
    return p->n_nodes++;
}

void placement_join(struct placement *p, const struct wire_table_node *node, int64_t capacity,
                    int64_t now_ns)
{
    int at = take_slot(p, node->name);
    p->nodes[at] = (struct placement_node){.presence = PLACEMENT_PRESENT,
                                           .table = *node,
                                           .capacity = capacity > 0 ? capacity : 0,
                                           .changed = true};
    /* What was reserved for its return, as far as it still fits. */
    int64_t kept = 0;
    for (int64_t i = 0; i < p->n_total; i++) {
        struct placement_expert *x = &p->experts[i];
        if (x->target != at)
            continue;
        x->since = 0;
        if (++kept > p->nodes[at].capacity)
            x->target = NOBODY;
    }
    recount(p);
    publish_holdings(p);
    p->last_join_ns = now_ns;
    p->dirty = true;
}

/* Nobody waits for this node any more: what it should have held is free for others. */
static void give_up(struct placement *p, int at)
{
    for (int64_t i = 0; i < p->n_total; i++)
        if (p->experts[i].target == at)
            p->experts[i].target = NOBODY;
    p->nodes[at] = (struct placement_node){.presence = PLACEMENT_FREE};
    p->dirty = true;
}

void placement_gone(struct placement *p, uint32_t node_id, enum placement_loss loss, int64_t now_ns)
{
    int at = find_node(p, node_id);
    if (at < 0)
        return;
    bool was_covered = placement_is_covered(p), table_changed = false;
    for (int64_t i = 0; i < p->n_total; i++) {
        struct placement_expert *x = &p->experts[i];
        if (x->from == at)
            x->from = NOBODY;
        if (x->live == at) {
            /* The former holder still has its copy: it answers again. */
            x->live = x->from;
            x->from = NOBODY;
            if (x->live != NOBODY && x->target == at)
                x->target = x->live;
            table_changed = true;
        } else if (x->target == at && x->live != NOBODY) {
            x->target = x->live;
        }
    }
    p->nodes[at].presence = PLACEMENT_AWAY;
    p->nodes[at].away_since_ns = now_ns;
    if (loss == PLACEMENT_LEFT)
        give_up(p, at);
    recount(p);
    if (table_changed)
        new_epoch(p, was_covered);
    p->dirty = true;
}

void placement_drain(struct placement *p, uint32_t node_id)
{
    int at = find_node(p, node_id);
    if (at < 0 || p->nodes[at].presence == PLACEMENT_DRAINING)
        return;
    p->nodes[at].presence = PLACEMENT_DRAINING;
    p->dirty = true;
}

void placement_report(struct placement *p, uint32_t node_id, uint64_t version)
{
    int at = find_node(p, node_id);
    /* A version that we never gave to this process belongs to an earlier life of it. */
    if (at < 0 || version <= p->nodes[at].ready_version || version > p->nodes[at].version)
        return;
    p->nodes[at].ready_version = version;
    bool was_covered = placement_is_covered(p), table_changed = false;
    for (int64_t i = 0; i < p->n_total; i++) {
        struct placement_expert *x = &p->experts[i];
        if (x->target != at || x->live == at || x->since == 0 || x->since > version)
            continue;
        x->from = x->live;
        x->retire_epoch = p->epoch + 1;
        x->live = (uint16_t)at;
        table_changed = true;
    }
    if (!table_changed)
        return;
    recount(p);
    new_epoch(p, was_covered);
}

/* ---- the plan ---------------------------------------------------------------------- */

/* How many experts each present node should have: equal shares, limited by memory. */
static void set_shares(struct placement *p)
{
    int64_t to_give = p->n_total;
    int left = 0;
    for (int i = 0; i < p->n_nodes; i++) {
        p->nodes[i].share = -1;
        left += p->nodes[i].presence == PLACEMENT_PRESENT;
    }
    for (int64_t i = 0; i < p->n_total; i++) {
        uint16_t t = p->experts[i].target;
        to_give -= t != NOBODY && p->nodes[t].presence == PLACEMENT_AWAY;
    }
    /* Smallest first, so that what it cannot take is shared by the larger ones. */
    for (; left > 0; left--) {
        int least = -1;
        for (int i = 0; i < p->n_nodes; i++)
            if (p->nodes[i].presence == PLACEMENT_PRESENT && p->nodes[i].share < 0 &&
                (least < 0 || p->nodes[i].capacity < p->nodes[least].capacity))
                least = i;
        struct placement_node *n = &p->nodes[least];
        n->share = to_give / left < n->capacity ? to_give / left : n->capacity;
        to_give -= n->share;
    }
}

/* By how much node i has more than its share of one layer, in units of 1/n_layers expert. */
static int64_t surplus(const struct placement *p, int i)
{
    return p->counts[i] * p->config.n_layers - p->nodes[i].share;
}

/* The present node that is furthest below its share of this layer and has room, or -1.
 * Among equals the one with least in total, which spreads remainders over the nodes. */
static int neediest(const struct placement *p)
{
    int best = -1;
    int64_t best_surplus = 0, best_held = 0;
    for (int i = 0; i < p->n_nodes; i++) {
        const struct placement_node *n = &p->nodes[i];
        if (n->presence != PLACEMENT_PRESENT || n->held >= n->capacity)
            continue;
        int64_t s = surplus(p, i), held = n->held - n->share;
        if (best < 0 || s < best_surplus || (s == best_surplus && held < best_held)) {
            best = i;
            best_surplus = s;
            best_held = held;
        }
    }
    return best;
}

static void count_layer(struct placement *p, uint32_t layer)
{
    memset(p->counts, 0, (size_t)p->n_nodes * sizeof *p->counts);
    const struct placement_expert *x = p->experts + (size_t)layer * p->config.n_experts;
    for (uint32_t k = 0; k < p->config.n_experts; k++)
        if (x[k].target != NOBODY)
            p->counts[x[k].target]++;
}

static void send_to(struct placement *p, struct placement_expert *x, int to)
{
    if (x->target != NOBODY) {
        p->counts[x->target]--;
        if (x->live == NOBODY) { /* a load that nobody depends on yet is just called off */
            p->nodes[x->target].held--;
            p->nodes[x->target].changed = true;
        }
    }
    x->target = (uint16_t)to;
    x->since = 0;
    p->counts[to]++;
    p->nodes[to].held++;
    p->nodes[to].changed = true;
}

/* Experts without a holder, present or future.  false if some found no room. */
static bool place_orphans(struct placement *p)
{
    bool all = true;
    for (uint32_t layer = 0; layer < p->config.n_layers; layer++) {
        count_layer(p, layer);
        struct placement_expert *x = p->experts + (size_t)layer * p->config.n_experts;
        for (uint32_t k = 0; k < p->config.n_experts; k++) {
            if (x[k].target != NOBODY)
                continue;
            int to = neediest(p);
            if (to >= 0)
                send_to(p, &x[k], to);
            else
                all = false;
        }
    }
    return all;
}

/* May its target be changed?  One move at a time, and none while the last one's old copy waits. */
static bool can_move(const struct placement_expert *x)
{
    return x->from == NOBODY && (x->live == x->target || x->live == NOBODY);
}

/* One of node i's experts in this layer: rather one that is not loaded yet. */
static struct placement_expert *pick_from(struct placement *p, uint32_t layer, int i)
{
    struct placement_expert *x = p->experts + (size_t)layer * p->config.n_experts, *found = NULL;
    for (uint32_t k = 0; k < p->config.n_experts; k++) {
        if (x[k].target != i || !can_move(&x[k]))
            continue;
        if (x[k].live == NOBODY)
            return &x[k];
        found = &x[k];
    }
    return found;
}

/* The node that has most too much of this layer and something that can move; draining
 * nodes have too much as long as they have anything. */
static int richest(const struct placement *p)
{
    int best = -1;
    for (int i = 0; i < p->n_nodes; i++) {
        enum placement_presence is = p->nodes[i].presence;
        if (p->counts[i] == 0 || (is != PLACEMENT_PRESENT && is != PLACEMENT_DRAINING))
            continue;
        if (is == PLACEMENT_DRAINING)
            return i;
        if (best < 0 || surplus(p, i) > surplus(p, best))
            best = i;
    }
    return best;
}

static void even_out(struct placement *p)
{
    for (uint32_t layer = 0; layer < p->config.n_layers; layer++) {
        count_layer(p, layer);
        for (uint32_t moves = 0; moves < p->config.n_experts; moves++) {
            int from = richest(p), to = neediest(p);
            if (from < 0 || from == to)
                break;
            bool draining = p->nodes[from].presence == PLACEMENT_DRAINING;
            if (to < 0) {
                p->out_of_room = true;
                break;
            }
            /* Less than a whole expert to gain: not worth a move. */
            if (!draining && surplus(p, from) - surplus(p, to) <= p->config.n_layers)
                break;
            struct placement_expert *x = pick_from(p, layer, from);
            if (!x) {
                p->out_of_room = true; /* all under way: look again when they have settled */
                break;
            }
            send_to(p, x, to);
        }
    }
}

static void plan(struct placement *p)
{
    p->dirty = p->out_of_room = false;
    recount(p);
    set_shares(p);
    if (place_orphans(p))
        even_out(p);
    else
        p->out_of_room = true;
    publish_holdings(p);
}

/* Old copies that no table names any more may go. */
static void retire(struct placement *p, uint64_t oldest_epoch)
{
    bool any = false;
    for (int64_t i = 0; i < p->n_total; i++) {
        struct placement_expert *x = &p->experts[i];
        if (x->from == NOBODY || x->retire_epoch > oldest_epoch)
            continue;
        p->nodes[x->from].changed = any = true;
        x->from = NOBODY;
    }
    if (!any)
        return;
    recount(p);
    publish_holdings(p);
    if (p->out_of_room)
        p->dirty = true;
}

void placement_tick(struct placement *p, uint64_t oldest_epoch, int64_t now_ns)
{
    for (int i = 0; i < p->n_nodes; i++)
        if (p->nodes[i].presence == PLACEMENT_AWAY &&
            now_ns - p->nodes[i].away_since_ns >= p->config.rejoin_ns)
            give_up(p, i);
    retire(p, oldest_epoch);
    if (p->dirty && now_ns - p->last_join_ns >= p->config.settle_ns)
        plan(p);
}

/* ---- answers ----------------------------------------------------------------------- */

uint64_t placement_version(const struct placement *p, uint32_t node_id)
{
    int at = find_node(p, node_id);
    return at < 0 ? 0 : p->nodes[at].version;
}

size_t placement_bitmap_bytes(const struct placement *p)
{
    return (size_t)p->config.n_layers * ((p->config.n_experts + 7) / 8);
}

bool placement_holdings(const struct placement *p, uint32_t node_id, uint8_t *bitmap)
{
    int at = find_node(p, node_id);
    if (at < 0)
        return false;
    size_t row_bytes = (p->config.n_experts + 7) / 8;
    memset(bitmap, 0, placement_bitmap_bytes(p));
    for (uint32_t layer = 0; layer < p->config.n_layers; layer++) {
        const struct placement_expert *x = p->experts + (size_t)layer * p->config.n_experts;
        for (uint32_t k = 0; k < p->config.n_experts; k++)
            if (x[k].live == at || x[k].target == at || x[k].from == at)
                bitmap[layer * row_bytes + k / 8] |= (uint8_t)(1u << (k % 8));
    }
    return true;
}

void placement_table(const struct placement *p, struct wire_table_node *nodes, uint16_t *holder,
                     struct wire_table *out)
{
    uint32_t n_nodes = 0;
    for (int i = 0; i < p->n_nodes; i++) {
        p->counts[i] = WIRE_NO_HOLDER;
        if (p->nodes[i].live > 0) {
            p->counts[i] = n_nodes;
            nodes[n_nodes++] = p->nodes[i].table;
        }
    }
    for (int64_t i = 0; i < p->n_total; i++) {
        uint16_t live = p->experts[i].live;
        holder[i] = live == NOBODY ? WIRE_NO_HOLDER : (uint16_t)p->counts[live];
    }
    *out = (struct wire_table){.epoch = p->epoch,
                               .n_layers = p->config.n_layers,
                               .n_experts = p->config.n_experts,
                               .n_nodes = n_nodes,
                               .n_replicas = 1,
                               .nodes = nodes,
                               .holders = holder};
}

void placement_why(const struct placement *p, char *text, size_t bytes)
{
    int64_t room = 0, loading = 0, reserved = 0;
    int present = 0;
    for (int i = 0; i < p->n_nodes; i++) {
        if (p->nodes[i].presence != PLACEMENT_PRESENT)
            continue;
        present++;
        room += p->nodes[i].capacity;
    }
    for (int64_t i = 0; i < p->n_total; i++) {
        const struct placement_expert *x = &p->experts[i];
        if (x->live != NOBODY || x->target == NOBODY)
            continue;
        if (p->nodes[x->target].presence == PLACEMENT_AWAY)
            reserved++;
        else
            loading++;
    }
    int64_t missing = p->n_total - p->n_live;
    int used = snprintf(text, bytes, "%lld of %lld experts (%.1f %%) have no holder",
                        (long long)missing, (long long)p->n_total,
                        100.0 * (double)missing / (double)(p->n_total ? p->n_total : 1));
    if (used < 0 || (size_t)used >= bytes)
        return;
    text += used;
    bytes -= (size_t)used;
    if (present == 0)
        snprintf(text, bytes, ": no expert node has joined");
    else if (room < p->n_total)
        snprintf(text, bytes, ": %d expert nodes have memory for %lld of them", present,
                 (long long)room);
    else
        snprintf(text, bytes,
                 ": %lld are loading, %lld wait for a lost node to come back, %lld are about to be "
                 "placed",
                 (long long)loading, (long long)reserved,
                 (long long)(missing - loading - reserved));
}
