/* coordinator/placement.c - see placement.h.
 *
 * Every event ends in finish(): counts are taken anew, changed holdings get a version and a
 * changed table an epoch.  reconcile() takes the steps from what is to what is wanted. */
#include "coordinator/placement.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "coordinator/placement_plan.h"

enum {
    NOBODY = PLACEMENT_NOBODY,
    MAX_AGAIN = 8, /* plans that follow from one event */
};
/* Observed counts halve in this time. */
#define HALF_LIFE_NS (600LL * 1000 * 1000 * 1000)

void placement_init(struct placement *p, const struct placement_config *c)
{
    must(c->replicas >= 0 && c->replicas <= WIRE_MAX_REPLICAS);
    *p = (struct placement){.config = *c,
                            .epoch = c->first_version,
                            .covered_epoch = c->first_version,
                            .last_version = c->first_version,
                            .n_total = (int64_t)c->n_layers * c->n_experts};
    p->experts = mem_array((size_t)p->n_total, sizeof *p->experts);
    p->load = mem_array((size_t)p->n_total, sizeof *p->load);
    for (int64_t i = 0; i < p->n_total; i++)
        for (int k = 0; k < WIRE_MAX_REPLICAS; k++)
            p->experts[i].want[k] = NOBODY;
}

void placement_fini(struct placement *p)
{
    mem_free(p->experts);
    mem_free(p->load);
    mem_free(p->nodes);
    *p = (struct placement){0};
}

static bool is_here(const struct placement_node *n)
{
    return n->presence == PLACEMENT_PRESENT || n->presence == PLACEMENT_DRAINING;
}

static int find_node(const struct placement *p, uint32_t node_id)
{
    for (int i = 0; i < p->n_nodes; i++)
        if (is_here(&p->nodes[i]) && p->nodes[i].table.node_id == node_id)
            return i;
    return -1;
}

/* ---- one expert ---------------------------------------------------------------------------- */

/* May be asked. */
static bool answers(const struct placement *p, const struct placement_place *l)
{
    const struct placement_node *n = &p->nodes[l->node];
    return l->state == PLACE_LIVE && is_here(n) && n->trust != NODE_QUARANTINED;
}

static int count_answering(const struct placement *p, const struct placement_expert *x)
{
    int n = 0;
    for (int k = 0; k < PLACEMENT_PLACES; k++)
        n += answers(p, &x->places[k]);
    return n;
}

static bool is_wanted(const struct placement_expert *x, int node)
{
    for (int k = 0; k < WIRE_MAX_REPLICAS && x->want[k] != NOBODY; k++)
        if (x->want[k] == node)
            return true;
    return false;
}

static struct placement_place *place_at(struct placement_expert *x, int node)
{
    for (int k = 0; k < PLACEMENT_PLACES; k++)
        if (x->places[k].state != PLACE_NONE && x->places[k].node == node)
            return &x->places[k];
    return NULL;
}

static int count_state(const struct placement_expert *x, enum placement_place_state state)
{
    int n = 0;
    for (int k = 0; k < PLACEMENT_PLACES; k++)
        n += x->places[k].state == state;
    return n;
}

static void clear_place(struct placement *p, struct placement_place *l)
{
    if (l->state >= PLACE_LOADING)
        p->nodes[l->node].changed = true;
    *l = (struct placement_place){0};
}

static void set_live(struct placement *p, struct placement_place *l)
{
    *l = (struct placement_place){.node = l->node, .state = PLACE_LIVE};
    p->table_changed = true;
}

static void set_retiring(struct placement *p, struct placement_place *l)
{
    *l = (struct placement_place){.node = l->node, .state = PLACE_RETIRING, .since = p->epoch + 1};
    p->table_changed = true;
}

/* ---- the end of every event ------------------------------------------------------------------ */

static void count_expert(struct placement *p, const struct placement_expert *x)
{
    int answering = 0, wanted = 0, coming = 0;
    for (int k = 0; k < PLACEMENT_PLACES; k++) {
        const struct placement_place *l = &x->places[k];
        if (l->state < PLACE_LOADING)
            continue;
        struct placement_node *n = &p->nodes[l->node];
        bool is_answering = answers(p, l);
        n->held++;
        n->live += is_answering;
        n->loading += l->state == PLACE_LOADING;
        p->n_retiring += l->state == PLACE_RETIRING;
        answering += is_answering;
        coming += is_wanted(x, l->node) && l->state == PLACE_LIVE;
    }
    while (wanted < WIRE_MAX_REPLICAS && x->want[wanted] != NOBODY)
        wanted++;
    p->n_live += answering > 0;
    p->n_copies += answering;
    p->n_to_load += wanted - coming;
    p->lowest = answering < p->lowest ? answering : p->lowest;
    p->wanted_lowest = wanted < p->wanted_lowest ? wanted : p->wanted_lowest;
}

static void recount(struct placement *p)
{
    for (int i = 0; i < p->n_nodes; i++)
        p->nodes[i].held = p->nodes[i].live = p->nodes[i].loading = 0;
    p->n_live = p->n_copies = p->n_to_load = p->n_retiring = 0;
    p->lowest = p->wanted_lowest = PLACEMENT_PLACES;
    for (int64_t i = 0; i < p->n_total; i++)
        count_expert(p, &p->experts[i]);
}

/* Gives every node whose holdings changed a new version of them. */
static void publish_holdings(struct placement *p)
{
    bool any = false;
    for (int i = 0; i < p->n_nodes; i++) {
        struct placement_node *n = &p->nodes[i];
        if (!n->changed)
            continue;
        n->changed = false;
        n->version = ++p->last_version;
        any = true;
    }
    for (int64_t i = 0; i < p->n_total && any; i++)
        for (int k = 0; k < PLACEMENT_PLACES; k++) {
            struct placement_place *l = &p->experts[i].places[k];
            if (l->state == PLACE_LOADING && l->since == 0)
                l->since = p->nodes[l->node].version;
        }
}

static void finish(struct placement *p)
{
    recount(p);
    publish_holdings(p);
    if (!p->table_changed)
        return;
    p->table_changed = false;
    p->epoch++;
    if (!p->was_covered && placement_is_covered(p))
        p->covered_epoch = p->epoch;
    p->was_covered = placement_is_covered(p);
}

/* ---- from what is to what is wanted ------------------------------------------------------------ */

static int count_wanted(const struct placement_expert *x)
{
    int n = 0;
    while (n < WIRE_MAX_REPLICAS && x->want[n] != NOBODY)
        n++;
    return n;
}

/* Copies that will stay: on nodes that are not about to go. */
static int count_staying(const struct placement *p, const struct placement_expert *x)
{
    int n = 0;
    for (int k = 0; k < PLACEMENT_PLACES; k++)
        n += answers(p, &x->places[k]) && p->nodes[x->places[k].node].presence == PLACEMENT_PRESENT;
    return n;
}

/* A copy that is not wanted can be spared: every wanted one answers (and there is one), or
 * there are more than are wanted. */
static bool is_served(const struct placement *p, struct placement_expert *x)
{
    int n_wanted = count_wanted(x);
    if (n_wanted > 0 && count_staying(p, x) > n_wanted)
        return true;
    for (int k = 0; k < WIRE_MAX_REPLICAS && x->want[k] != NOBODY; k++) {
        const struct placement_place *l = place_at(x, x->want[k]);
        if (!l || !answers(p, l))
            return false;
    }
    return x->want[0] != NOBODY;
}

/* A wanted copy has no place to come to, because others have all: after several drains at once
 * there may be more of those than there are places to spare. */
static bool lacks_place(struct placement_expert *x)
{
    if (count_state(x, PLACE_NONE) + count_state(x, PLACE_RETIRING) > 0)
        return false;
    for (int k = 0; k < WIRE_MAX_REPLICAS && x->want[k] != NOBODY; k++)
        if (!place_at(x, x->want[k]))
            return true;
    return false;
}

/* One that is not wanted goes before its successor is there, if another answers. */
static void make_place(struct placement *p, struct placement_expert *x)
{
    for (int k = 0; k < PLACEMENT_PLACES; k++) {
        struct placement_place *l = &x->places[k];
        if (l->state != PLACE_LIVE || is_wanted(x, l->node) ||
            count_answering(p, x) - answers(p, l) == 0)
            continue;
        set_retiring(p, l);
        return;
    }
}

/* What is not wanted goes, as far as nobody depends on it; true if something must stay yet. */
static bool let_go(struct placement *p, struct placement_expert *x)
{
    bool is_left = false;
    for (int k = 0; k < PLACEMENT_PLACES; k++) {
        struct placement_place *l = &x->places[k];
        if (l->state == PLACE_NONE)
            continue;
        if (is_wanted(x, l->node)) {
            if (l->state == PLACE_RETIRING) /* it is still loaded there */
                set_live(p, l);
        } else if (l->state == PLACE_WAITING || l->state == PLACE_LOADING) {
            clear_place(p, l);
        } else if (l->state == PLACE_LIVE && is_served(p, x)) {
            set_retiring(p, l);
        } else if (l->state == PLACE_LIVE) {
            is_left = true;
        }
    }
    if (is_left && lacks_place(x))
        make_place(p, x);
    return is_left;
}

enum haste { HASTE_UNCOVERED, HASTE_COPY, HASTE_MOVE };

static enum haste haste_of(const struct placement *p, const struct placement_expert *x)
{
    if (count_answering(p, x) == 0 && count_state(x, PLACE_LOADING) == 0)
        return HASTE_UNCOVERED;
    return count_staying(p, x) < count_wanted(x) ? HASTE_COPY : HASTE_MOVE;
}

static bool may_load(struct placement *p, struct placement_expert *x, int node, enum haste haste)
{
    const struct placement_node *n = &p->nodes[node];
    if (n->presence != PLACEMENT_PRESENT || n->held >= n->capacity)
        return false;
    if (haste == HASTE_UNCOVERED)
        return true;
    /* A batch goes out when the one before it is loaded. */
    if (n->loading >= PLACEMENT_BATCH || (n->loading > 0 && !n->changed))
        return false;
    if (haste == HASTE_COPY)
        return true;
    if (count_state(x, PLACE_LOADING) + count_state(x, PLACE_RETIRING) > 0)
        return false;
    if (p->config.moves_per_s > 0 && p->move_budget < 1)
        return false;
    p->move_budget -= 1;
    return true;
}

/* false if there is no place for it now. */
static bool begin_load(struct placement *p, struct placement_expert *x, int node)
{
    struct placement_place *l = place_at(x, node);
    for (int k = 0; k < PLACEMENT_PLACES && !l; k++)
        if (x->places[k].state == PLACE_NONE)
            l = &x->places[k];
    if (!l)
        return false;
    *l = (struct placement_place){.node = (uint16_t)node, .state = PLACE_LOADING};
    p->nodes[node].held++;
    p->nodes[node].loading++;
    p->nodes[node].changed = true;
    return true;
}

/* Starts what may start of this haste; true if something is left. */
static bool load_some(struct placement *p, struct placement_expert *x, enum haste now)
{
    bool is_left = false;
    for (int k = 0; k < WIRE_MAX_REPLICAS && x->want[k] != NOBODY; k++) {
        const struct placement_place *l = place_at(x, x->want[k]);
        if (l && l->state != PLACE_WAITING)
            continue;
        enum haste haste = haste_of(p, x);
        if (haste != now || !may_load(p, x, x->want[k], haste) || !begin_load(p, x, x->want[k]))
            is_left = true;
    }
    return is_left;
}

/* Most urgent first.  `changed` of a node also marks a batch that is being put together, so
 * what is let go, which changes holdings too, is published before. */
static void reconcile(struct placement *p)
{
    bool is_left = false;
    for (int64_t i = 0; i < p->n_total; i++)
        is_left |= let_go(p, &p->experts[i]);
    finish(p);
    for (int haste = HASTE_UNCOVERED; haste <= HASTE_MOVE; haste++) {
        bool any = false;
        for (int64_t i = 0; i < p->n_total; i++)
            any |= load_some(p, &p->experts[i], (enum haste)haste);
        if (!any)
            break;
        is_left |= haste == HASTE_MOVE;
    }
    p->pending = is_left;
    finish(p);
}

/* ---- events ---------------------------------------------------------------------------------- */

static uint64_t hash_text(const char *s)
{
    uint64_t h = 1469598103934665603u;
    for (; s && *s; s++)
        h = (h ^ (unsigned char)*s) * 1099511628211u;
    return h;
}

/* The slot that this name had, a free one, or a new one. */
static int take_slot(struct placement *p, const char *name)
{
    int spare = -1;
    for (int i = 0; i < p->n_nodes; i++) {
        if (p->nodes[i].presence == PLACEMENT_AWAY && strcmp(p->nodes[i].table.name, name) == 0)
            return i;
        if (p->nodes[i].presence == PLACEMENT_FREE && spare < 0)
            spare = i;
    }
    if (spare >= 0)
        return spare;
    if (p->n_nodes == p->room) {
        p->room = p->room ? 2 * p->room : 16;
        p->nodes = mem_resize(p->nodes, (size_t)p->room * sizeof *p->nodes);
    }
    must(p->n_nodes < NOBODY);
    p->nodes[p->n_nodes] = (struct placement_node){0};
    return p->n_nodes++;
}

static bool has_bit(const struct placement *p, const uint8_t *bitmap, int64_t i)
{
    size_t row_bytes = (p->config.n_experts + 7) / 8;
    size_t layer = (size_t)i / p->config.n_experts, k = (size_t)i % p->config.n_experts;
    return bitmap[layer * row_bytes + k / 8] >> (k % 8) & 1;
}

void placement_restore(struct placement *p, const char *name, const char *host, int64_t capacity,
                       const uint8_t *bitmap, int64_t until_ns)
{
    int at = take_slot(p, name);
    p->nodes[at] = (struct placement_node){.presence = PLACEMENT_AWAY,
                                           .host = hash_text(host),
                                           .rack = hash_text(host),
                                           .away_since_ns = until_ns,
                                           .is_reserved = true,
                                           .is_restored = true,
                                           .capacity = capacity > 0 ? capacity : 0};
    snprintf(p->nodes[at].table.name, sizeof p->nodes[at].table.name, "%s", name);
    p->restored_until_ns = until_ns;
    int64_t n_held = 0;
    for (int64_t i = 0; i < p->n_total; i++) {
        struct placement_expert *x = &p->experts[i];
        int k = 0;
        while (k < WIRE_MAX_REPLICAS && x->want[k] != NOBODY)
            k++;
        if (!has_bit(p, bitmap, i) || k == WIRE_MAX_REPLICAS || n_held == capacity)
            continue;
        n_held++;
        x->want[k] = (uint16_t)at;
        x->places[k] = (struct placement_place){.node = (uint16_t)at, .state = PLACE_WAITING};
    }
}

/* It has them still, or is the one that loads them anyway. */
static void take_back(struct placement *p, int at)
{
    for (int64_t i = 0; i < p->n_total; i++) {
        const struct placement_place *l = place_at(&p->experts[i], at);
        if (l && l->state == PLACE_WAITING && is_wanted(&p->experts[i], at) &&
            p->nodes[at].held < p->nodes[at].capacity)
            begin_load(p, &p->experts[i], at);
    }
}

static bool awaits_restored(const struct placement *p, int64_t now_ns)
{
    if (now_ns >= p->restored_until_ns)
        return false;
    for (int i = 0; i < p->n_nodes; i++)
        if (p->nodes[i].is_restored && p->nodes[i].presence == PLACEMENT_AWAY)
            return true;
    return false;
}

void placement_join(struct placement *p, const struct placement_newcomer *n, int64_t now_ns)
{
    int at = take_slot(p, n->table.name);
    bool was_restored = p->nodes[at].is_restored, has_rack = n->rack && n->rack[0];
    double before = p->nodes[at].speed, speed = n->speed > 0 ? n->speed : 0;
    /* Back again and nearly as fast: a measurement's noise, and no reason to move anything. */
    if (before > 0 && speed > 0 && fabs(speed / before - 1) < PLACEMENT_SAME_SPEED)
        speed = before;
    p->nodes[at] = (struct placement_node){.presence = PLACEMENT_PRESENT,
                                           .table = n->table,
                                           .host = hash_text(n->host),
                                           .rack = hash_text(has_rack ? n->rack : n->host),
                                           .speed = speed,
                                           .threads = n->threads > 0 ? n->threads : 1,
                                           .capacity = n->capacity > 0 ? n->capacity : 0,
                                           .changed = true};
    p->nodes[at].table.read_bytes_s = (uint64_t)speed;
    if (was_restored)
        take_back(p, at);
    p->last_join_ns = now_ns;
    p->dirty = p->pending = true;
    finish(p);
}

/* Nobody waits for this node any more. */
static void give_up(struct placement *p, int at)
{
    for (int64_t i = 0; i < p->n_total; i++) {
        struct placement_place *l = place_at(&p->experts[i], at);
        if (l)
            *l = (struct placement_place){0};
    }
    p->nodes[at] = (struct placement_node){.presence = PLACEMENT_FREE};
    p->dirty = true;
}

/* Somebody stopped answering: a copy that was about to go may be the only one. */
static void see_to_cover(struct placement *p, struct placement_expert *x)
{
    if (count_answering(p, x) > 0)
        return;
    for (int k = 0; k < PLACEMENT_PLACES; k++) {
        struct placement_place *l = &x->places[k];
        const struct placement_node *n = &p->nodes[l->node];
        if (l->state == PLACE_RETIRING && is_here(n) && n->trust != NODE_QUARANTINED)
            set_live(p, l);
    }
    p->urgent |= count_answering(p, x) == 0;
}

static void lose_place(struct placement *p, struct placement_expert *x, int at)
{
    struct placement_place *l = place_at(x, at);
    if (!l)
        return;
    bool was_live = l->state == PLACE_LIVE;
    *l = (struct placement_place){.node = (uint16_t)at,
                                  .state = is_wanted(x, at) ? PLACE_WAITING : PLACE_NONE};
    if (!was_live)
        return;
    p->table_changed = true;
    see_to_cover(p, x);
}

void placement_gone(struct placement *p, uint32_t node_id, enum placement_loss loss, int64_t now_ns)
{
    int at = find_node(p, node_id);
    if (at < 0)
        return;
    p->nodes[at].presence = PLACEMENT_AWAY;
    p->nodes[at].away_since_ns = now_ns;
    p->nodes[at].is_reserved = true;
    for (int64_t i = 0; i < p->n_total; i++)
        lose_place(p, &p->experts[i], at);
    if (loss == PLACEMENT_LEFT)
        give_up(p, at);
    p->dirty = true;
    finish(p);
}

void placement_drain(struct placement *p, uint32_t node_id)
{
    int at = find_node(p, node_id);
    if (at < 0 || p->nodes[at].presence == PLACEMENT_DRAINING)
        return;
    p->nodes[at].presence = PLACEMENT_DRAINING;
    p->dirty = p->urgent = true;
}

void placement_trust(struct placement *p, uint32_t node_id, enum node_trust trust, int64_t now_ns)
{
    int at = find_node(p, node_id);
    if (at < 0 || p->nodes[at].trust == trust)
        return;
    struct placement_node *n = &p->nodes[at];
    n->trust = trust;
    /* Whoever answers wrongly is not waited for: what it held gets its copies elsewhere. */
    n->is_reserved = false;
    n->away_since_ns = now_ns;
    for (int64_t i = 0; i < p->n_total && trust == NODE_QUARANTINED; i++) {
        const struct placement_place *l = place_at(&p->experts[i], at);
        if (l && l->state == PLACE_LIVE)
            see_to_cover(p, &p->experts[i]);
    }
    p->table_changed = p->dirty = true;
    finish(p);
}

void placement_report(struct placement *p, uint32_t node_id, uint64_t version)
{
    int at = find_node(p, node_id);
    /* A version that we never gave to this process belongs to an earlier life of it. */
    if (at < 0 || version <= p->nodes[at].ready_version || version > p->nodes[at].version)
        return;
    p->nodes[at].ready_version = version;
    for (int64_t i = 0; i < p->n_total; i++) {
        struct placement_place *l = place_at(&p->experts[i], at);
        if (l && l->state == PLACE_LOADING && l->since > 0 && l->since <= version)
            set_live(p, l);
    }
    /* Also the next batch, and what this one replaces: in the same table. */
    if (p->table_changed)
        reconcile(p);
}

void placement_observe(struct placement *p, const uint16_t *counts)
{
    for (int64_t i = 0; i < p->n_total; i++) {
        p->load[i] += counts[i];
        p->observed += counts[i];
    }
}

/* ---- time ------------------------------------------------------------------------------------ */

/* Old copies that no table names any more may go. */
static void retire(struct placement *p, uint64_t oldest_epoch)
{
    if (p->n_retiring == 0)
        return;
    bool any = false;
    for (int64_t i = 0; i < p->n_total; i++)
        for (int k = 0; k < PLACEMENT_PLACES; k++) {
            struct placement_place *l = &p->experts[i].places[k];
            if (l->state != PLACE_RETIRING || l->since > oldest_epoch)
                continue;
            clear_place(p, l);
            any = true;
        }
    if (any)
        finish(p);
}

static void expire(struct placement *p, int64_t now_ns)
{
    bool any = false;
    for (int i = 0; i < p->n_nodes; i++) {
        struct placement_node *n = &p->nodes[i];
        if (!n->is_reserved || now_ns - n->away_since_ns < p->config.rejoin_ns)
            continue;
        n->is_reserved = false;
        p->dirty = true;
        if (n->presence == PLACEMENT_AWAY) {
            give_up(p, i);
            any = true;
        }
    }
    if (any)
        finish(p);
}

/* Halves in HALF_LIFE_NS, a little at a time. */
static void forget(struct placement *p, int64_t passed_ns)
{
    double keep = 1 - 0.693 * (double)passed_ns / (double)HALF_LIFE_NS;
    keep = keep > 0 ? keep : 0;
    for (int64_t i = 0; i < p->n_total; i++)
        p->load[i] *= keep;
    p->observed *= keep;
}

static void pass_time(struct placement *p, int64_t now_ns)
{
    const struct placement_config *c = &p->config;
    int64_t passed_ns = now_ns - p->last_tick_ns;
    p->last_tick_ns = now_ns;
    double most = c->moves_per_s < 1 ? 1 : c->moves_per_s;
    p->move_budget += c->moves_per_s * (double)passed_ns / 1e9;
    p->move_budget = p->move_budget < most ? p->move_budget : most;
    if (c->rebalance_ns <= 0 || now_ns - p->last_rebalance_ns < c->rebalance_ns)
        return;
    forget(p, now_ns - p->last_rebalance_ns);
    p->last_rebalance_ns = now_ns;
    if (p->observed > 0 && !p->pending && p->n_to_load == 0)
        p->dirty = true;
}

/* Nothing is under way: all is done, or what is left waits in vain for memory. */
static bool is_quiet(const struct placement *p)
{
    for (int i = 0; i < p->n_nodes; i++)
        if (p->nodes[i].loading > 0)
            return false;
    return p->n_retiring == 0;
}

void placement_renew_table(struct placement *p)
{
    p->table_changed = true;
    finish(p);
}

void placement_tick(struct placement *p, uint64_t oldest_epoch, int64_t now_ns)
{
    pass_time(p, now_ns);
    expire(p, now_ns);
    retire(p, oldest_epoch);
    bool is_due = p->dirty && (p->urgent || now_ns - p->last_join_ns >= p->config.settle_ns);
    is_due = is_due && !awaits_restored(p, now_ns);
    if (is_due || (p->again > 0 && is_quiet(p))) {
        p->again = is_due ? MAX_AGAIN : p->again - 1;
        p->dirty = p->urgent = false;
        p->again = placement_plan(p) ? p->again : 0;
        p->pending = true;
    }
    if (p->pending)
        reconcile(p);
}

/* ---- answers --------------------------------------------------------------------------------- */

uint64_t placement_version(const struct placement *p, uint32_t node_id)
{
    int at = find_node(p, node_id);
    return at < 0 ? 0 : p->nodes[at].version;
}

bool placement_is_drained(const struct placement *p, uint32_t node_id)
{
    int at = find_node(p, node_id);
    return at < 0 || (p->nodes[at].presence == PLACEMENT_DRAINING && p->nodes[at].held == 0);
}

bool placement_has_heirs(const struct placement *p)
{
    for (int i = 0; i < p->n_nodes; i++)
        if (p->nodes[i].presence == PLACEMENT_PRESENT)
            return true;
    return false;
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
    for (int64_t i = 0; i < p->n_total; i++) {
        const struct placement_place *l = place_at(&p->experts[i], at);
        if (!l || l->state < PLACE_LOADING)
            continue;
        size_t layer = (size_t)i / p->config.n_experts, k = (size_t)i % p->config.n_experts;
        bitmap[layer * row_bytes + k / 8] |= (uint8_t)(1u << (k % 8));
    }
    return true;
}

/* Whom the table names: those that may be asked; the suspect only if there is nobody else. */
static int list_holders(const struct placement *p, const struct placement_expert *x, uint16_t *out)
{
    int n = 0, n_suspect = 0;
    uint16_t suspects[PLACEMENT_PLACES];
    for (int k = 0; k < PLACEMENT_PLACES; k++) {
        if (!answers(p, &x->places[k]))
            continue;
        if (p->nodes[x->places[k].node].trust == NODE_SUSPECT)
            suspects[n_suspect++] = x->places[k].node;
        else if (n < WIRE_MAX_REPLICAS)
            out[n++] = x->places[k].node;
    }
    for (int k = 0; k < n_suspect && n == 0 && k < WIRE_MAX_REPLICAS; k++)
        out[k] = suspects[k];
    return n > 0 ? n : n_suspect < WIRE_MAX_REPLICAS ? n_suspect : WIRE_MAX_REPLICAS;
}

static uint32_t most_holders(const struct placement *p)
{
    uint16_t holders[PLACEMENT_PLACES];
    int most = 1;
    for (int64_t i = 0; i < p->n_total; i++) {
        int n = list_holders(p, &p->experts[i], holders);
        most = n > most ? n : most;
    }
    return (uint32_t)most;
}

void placement_table(const struct placement *p, struct wire_table_node *nodes, uint16_t *holders,
                     struct wire_table *out)
{
    uint32_t n_nodes = 0, n_replicas = most_holders(p);
    uint16_t *index = mem_array((size_t)p->n_nodes + 1, sizeof *index);
    for (int i = 0; i < p->n_nodes; i++)
        if (p->nodes[i].live > 0) {
            index[i] = (uint16_t)n_nodes;
            nodes[n_nodes++] = p->nodes[i].table;
        }
    for (int64_t i = 0; i < p->n_total; i++) {
        uint16_t found[PLACEMENT_PLACES];
        uint32_t n = (uint32_t)list_holders(p, &p->experts[i], found);
        uint16_t *to = holders + i * n_replicas;
        /* The first one is somebody else from expert to expert. */
        for (uint32_t k = 0; k < n_replicas; k++)
            to[k] = k < n ? index[found[(k + (uint64_t)i) % n]] : WIRE_NO_HOLDER;
    }
    mem_free(index);
    *out = (struct wire_table){.epoch = p->epoch,
                               .n_layers = p->config.n_layers,
                               .n_experts = p->config.n_experts,
                               .n_nodes = n_nodes,
                               .n_replicas = n_replicas,
                               .nodes = nodes,
                               .holders = holders};
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
        if (count_answering(p, x) > 0)
            continue;
        if (count_state(x, PLACE_LOADING) > 0)
            loading++;
        else if (count_state(x, PLACE_WAITING) > 0)
            reserved++;
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
