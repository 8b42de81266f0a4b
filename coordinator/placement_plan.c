/* coordinator/placement_plan.c - see placement_plan.h. */
#include "coordinator/placement_plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "coordinator/placement_order.h"

enum {
    NOBODY = PLACEMENT_NOBODY,
    MAX_COPIES = WIRE_MAX_REPLICAS,
    PRIOR_COUNTS = 32, /* what an expert is taken to have been chosen before anybody looked */
    SPARE_SHARE = 64,  /* third copies and further leave one in so many places free for moves */
};
/* A layer is rearranged only if its slowest node becomes faster by this share. */
#define PLAN_GAIN 0.05
/* An extra copy stays where it is unless another expert is hotter by this factor. */
#define PLAN_STICKY 1.5

struct plan {
    struct placement *p;
    int n_nodes;
    double *weight;    /* [n_total] how busy one copy makes its node */
    uint8_t *n_copies; /* [n_total] */
    double *cost;      /* [n_layers][n_nodes] sum of the weights */
    double *share;     /* [n_nodes] copies it should have: its speed, as memory permits */
    double *speed;
    int64_t *claimed;  /* copies wanted there so far */
    int64_t *arriving; /* of them not there yet */
    int64_t *free_now; /* places that nothing lies in */
    bool *is_open;     /* may be given something new */
    int64_t *capacity;
    struct placement_order *order;
    uint64_t *hosts, *racks; /* [n_hosts], [n_racks] of open nodes, ascending */
    size_t n_hosts, n_racks;
    bool is_stuck; /* a swap was looked for in vain */
};

static uint32_t layer_of(const struct plan *q, int64_t i)
{
    return (uint32_t)(i / q->p->config.n_experts);
}

static double *cost_of(struct plan *q, int64_t i, int node)
{
    return &q->cost[(size_t)layer_of(q, i) * (size_t)q->n_nodes + (size_t)node];
}

static const struct placement_place *place_at(const struct placement_expert *x, int node)
{
    for (int k = 0; k < PLACEMENT_PLACES; k++)
        if (x->places[k].state != PLACE_NONE && x->places[k].node == node)
            return &x->places[k];
    return NULL;
}

static int count_want(const struct placement_expert *x)
{
    int n = 0;
    while (n < MAX_COPIES && x->want[n] != NOBODY)
        n++;
    return n;
}

/* ---- how many copies --------------------------------------------------------------------- */

/* Has it a part in the long run? */
static bool is_counted(const struct placement_node *n)
{
    if (n->presence == PLACEMENT_PRESENT)
        return n->trust != NODE_QUARANTINED || n->is_reserved;
    return n->presence == PLACEMENT_AWAY;
}

static int64_t useful_capacity(const struct plan *q, const struct placement_node *n)
{
    return n->capacity < q->p->n_total ? n->capacity : q->p->n_total;
}

struct heat {
    double value;
    uint32_t expert, layer;
};

static int by_heat(const void *a, const void *b)
{
    const struct heat *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    /* Equal ones take turns over the layers. */
    if (x->expert != y->expert)
        return x->expert < y->expert ? -1 : 1;
    return x->layer < y->layer ? -1 : x->layer > y->layer;
}

static int count_copies(const struct placement_expert *x)
{
    int n = 0;
    for (int k = 0; k < PLACEMENT_PLACES; k++)
        n += x->places[k].state == PLACE_LIVE || x->places[k].state == PLACE_LOADING ||
             x->places[k].state == PLACE_WAITING;
    return n;
}

/* One copy more for as many as there are places left. */
static void favour_hottest(struct plan *q, int64_t n_extra, int n_all)
{
    struct placement *p = q->p;
    struct heat *heat = mem_array((size_t)p->n_total, sizeof *heat);
    for (int64_t i = 0; i < p->n_total; i++) {
        double stick = count_copies(&p->experts[i]) > n_all ? PLAN_STICKY : 1;
        heat[i] = (struct heat){.value = q->weight[i] * stick,
                                .expert = (uint32_t)(i % p->config.n_experts),
                                .layer = layer_of(q, i)};
    }
    qsort(heat, (size_t)p->n_total, sizeof *heat, by_heat);
    for (int64_t k = 0; k < n_extra && k < p->n_total; k++)
        q->n_copies[(int64_t)heat[k].layer * p->config.n_experts + heat[k].expert]++;
    mem_free(heat);
}

static void set_copies(struct plan *q)
{
    struct placement *p = q->p;
    int64_t room = 0, spare = 0;
    int n_counted = 0, most = p->config.replicas ? p->config.replicas : MAX_COPIES;
    for (int i = 0; i < q->n_nodes; i++) {
        if (!is_counted(&p->nodes[i]))
            continue;
        int64_t capacity = useful_capacity(q, &p->nodes[i]);
        n_counted++;
        room += capacity;
        spare += capacity / SPARE_SHARE + (capacity > 1);
    }
    most = most < n_counted ? most : n_counted;
    int n_all = 1;
    while (n_all < most && room - (n_all >= 2 ? spare : 0) >= (n_all + 1) * p->n_total)
        n_all++;
    memset(q->n_copies, n_all, (size_t)p->n_total);
    int64_t left = room - n_all * p->n_total - (n_all >= 2 ? spare : 0);
    if (n_all < most && left > 0)
        favour_hottest(q, left, n_all);
}

/* What the routers chose, smoothed: until much was observed all are alike. */
static void set_heat(struct plan *q)
{
    struct placement *p = q->p;
    double mean = p->observed / (double)(p->n_total ? p->n_total : 1);
    for (int64_t i = 0; i < p->n_total; i++)
        q->weight[i] = (p->load[i] + PRIOR_COUNTS) / (mean + PRIOR_COUNTS);
}

/* ---- how much each node should have -------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static int by_host(const void *a, const void *b)
{
    const struct placement_node *x = *(const struct placement_node *const *)a;
    const struct placement_node *y = *(const struct placement_node *const *)b;
    return x->host < y->host ? -1 : x->host > y->host;
}

/* The nodes of one host share its memory, and what each measured depends on who measured beside
 * it: together they have what they measured, each by its threads. */
static void share_hosts(const struct plan *q, double *speed)
{
    struct placement_node **known = mem_array((size_t)q->n_nodes + 1, sizeof(*known));
    size_t n = 0;
    for (int i = 0; i < q->n_nodes; i++)
        if (q->p->nodes[i].presence != PLACEMENT_FREE && q->p->nodes[i].speed > 0)
            known[n++] = &q->p->nodes[i];
    qsort(known, n, sizeof(*known), by_host);
    for (size_t first = 0, end; first < n; first = end) {
        double sum = 0, threads = 0;
        for (end = first; end < n && known[end]->host == known[first]->host; end++) {
            sum += known[end]->speed;
            threads += known[end]->threads;
        }
        for (size_t k = first; k < end; k++)
            speed[known[k] - q->p->nodes] = sum / threads * known[k]->threads;
    }
    mem_free(known);
}

static double median_speed(const struct plan *q, const double *speed)
{
    double *known = mem_array((size_t)q->n_nodes + 1, sizeof *known), median = 1;
    size_t n = 0;
    for (int i = 0; i < q->n_nodes; i++)
        if (speed[i] > 0)
            known[n++] = speed[i];
    qsort(known, n, sizeof *known, by_value);
    if (n > 0)
        median = known[n / 2];
    mem_free(known);
    return median;
}

static void set_speeds(struct plan *q)
{
    share_hosts(q, q->speed);
    double median = median_speed(q, q->speed);
    for (int i = 0; i < q->n_nodes; i++) {
        double s = q->speed[i] / median;
        bool is_same = s <= 0 || fabs(s - 1) < PLACEMENT_SAME_SPEED;
        q->speed[i] = is_same ? 1 : s;
    }
}

struct room {
    double ratio; /* of memory to speed */
    int node;
};

static int by_ratio(const void *a, const void *b)
{
    const struct room *x = a, *y = b;
    return x->ratio != y->ratio ? (x->ratio < y->ratio ? -1 : 1) : x->node - y->node;
}

/* Shares by speed, limited by memory: what the small cannot take is for the others. */
static void set_shares(struct plan *q)
{
    double to_give = 0, left_speed = 0;
    struct room *rooms = mem_array((size_t)q->n_nodes + 1, sizeof *rooms);
    size_t n = 0;
    for (int64_t i = 0; i < q->p->n_total; i++)
        to_give += q->n_copies[i];
    for (int i = 0; i < q->n_nodes; i++) {
        q->share[i] = 0;
        if (!is_counted(&q->p->nodes[i]))
            continue;
        left_speed += q->speed[i];
        rooms[n++] = (struct room){(double)useful_capacity(q, &q->p->nodes[i]) / q->speed[i], i};
    }
    qsort(rooms, n, sizeof *rooms, by_ratio);
    size_t k = 0;
    for (; k < n; k++) {
        int node = rooms[k].node;
        double capacity = (double)useful_capacity(q, &q->p->nodes[node]);
        if (capacity > to_give / left_speed * q->speed[node])
            break;
        q->share[node] = capacity;
        to_give -= capacity;
        left_speed -= q->speed[node];
    }
    /* Memory limits nobody from here on: those of one speed have exactly the same. */
    for (double each = to_give / left_speed; k < n; k++)
        q->share[rooms[k].node] = each * q->speed[rooms[k].node];
    mem_free(rooms);
}

/* ---- who gets what ------------------------------------------------------------------------- */

/* How far apart two copies are at least.  Where no racks are named each host is its own. */
enum host_rule { OTHER_RACK, OTHER_HOST, ANY_HOST };
enum room_rule { FREE_NOW, FREE_LATER };

static bool is_apart(const struct placement_node *a, const struct placement_node *b,
                     enum host_rule rule)
{
    return rule == ANY_HOST || (a->host != b->host && (rule == OTHER_HOST || a->rack != b->rack));
}

static bool may_join(const struct plan *q, const uint16_t *want, int node, enum host_rule rule)
{
    for (int k = 0; k < MAX_COPIES && want[k] != NOBODY; k++)
        if (want[k] == node || !is_apart(&q->p->nodes[want[k]], &q->p->nodes[node], rule))
            return false;
    return true;
}

static void claim(struct plan *q, int64_t i, int node)
{
    struct placement_expert *x = &q->p->experts[i];
    int n = count_want(x);
    must(n < MAX_COPIES);
    x->want[n] = (uint16_t)node;
    q->claimed[node]++;
    q->arriving[node] += !place_at(x, node);
    *cost_of(q, i, node) += q->weight[i];
}

/* How much a copy that is there speaks for staying; 0: it cannot. */
static int rank_place(const struct plan *q, const struct placement_place *l, int round)
{
    const struct placement_node *n = &q->p->nodes[l->node];
    if (l->state == PLACE_NONE || q->claimed[l->node] >= n->capacity)
        return 0;
    if (n->presence == PLACEMENT_PRESENT && n->trust != NODE_QUARANTINED)
        return l->state == PLACE_LIVE ? 5 : l->state == PLACE_RETIRING ? 4 : l->state + 1;
    /* Nobody waits with the first copy for a node that may never come back. */
    return round > 0 && is_counted(n) && l->state != PLACE_RETIRING ? 1 : 0;
}

/* Lower is better. */
static double fullness(const struct plan *q, int node)
{
    int64_t capacity = q->p->nodes[node].capacity;
    return capacity > 0 ? (double)q->claimed[node] / (double)capacity : 2;
}

static bool keep_place(struct plan *q, int64_t i, int round, enum host_rule rule)
{
    struct placement_expert *x = &q->p->experts[i];
    int best = -1, best_rank = 0;
    for (int k = 0; k < PLACEMENT_PLACES; k++) {
        const struct placement_place *l = &x->places[k];
        int rank = rank_place(q, l, round);
        if (rank == 0 || rank < best_rank || !may_join(q, x->want, l->node, rule))
            continue;
        if (rank == best_rank && fullness(q, l->node) >= fullness(q, best))
            continue;
        best = l->node;
        best_rank = rank;
    }
    if (best < 0)
        return false;
    claim(q, i, best);
    return true;
}

struct asker {
    const struct plan *plan;
    const uint16_t *want;
    enum host_rule rule;
};

static bool accepts(void *ud, int node)
{
    const struct asker *a = ud;
    return may_join(a->plan, a->want, node, a->rule);
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Is there an open node in a rack, or on a host, that has no copy yet?  Asking every node would be
 * slow where most of them share few. */
static bool has_other(const struct plan *q, const uint16_t *want, enum host_rule rule)
{
    const uint64_t *labels = rule == OTHER_RACK ? q->racks : q->hosts;
    size_t n_labels = rule == OTHER_RACK ? q->n_racks : q->n_hosts, n_taken = 0;
    uint64_t seen[MAX_COPIES];
    for (int k = 0; k < MAX_COPIES && want[k] != NOBODY; k++) {
        const struct placement_node *node = &q->p->nodes[want[k]];
        uint64_t label = rule == OTHER_RACK ? node->rack : node->host;
        bool is_new = bsearch(&label, labels, n_labels, sizeof label, by_number) != NULL;
        for (size_t m = 0; m < n_taken; m++)
            is_new &= seen[m] != label;
        if (is_new)
            seen[n_taken++] = label;
    }
    return n_taken < n_labels;
}

static bool pack(struct plan *q, int64_t i, enum host_rule rule, enum room_rule room)
{
    struct asker asker = {q, q->p->experts[i].want, rule};
    struct placement_order_question question = {.layer = (int)layer_of(q, i),
                                                .weight = q->weight[i],
                                                .now_only = room == FREE_NOW,
                                                .accepts = accepts,
                                                .ud = &asker};
    if (rule != ANY_HOST && !has_other(q, asker.want, rule))
        return false;
    int best = placement_order_best(q->order, &question);
    if (best >= 0)
        claim(q, i, best);
    return best >= 0;
}

/* Where `node` stands in want if that copy may go to `to`, or -1. */
static int movable(const struct plan *q, const struct placement_expert *x, int node, int to,
                   enum host_rule rule)
{
    uint16_t others[MAX_COPIES];
    int at = -1, n = 0;
    for (int k = 0; k < MAX_COPIES; k++) {
        others[k] = NOBODY;
        if (x->want[k] == node)
            at = k;
        else if (x->want[k] != NOBODY)
            others[n++] = x->want[k];
    }
    if (at < 0 || !may_join(q, others, to, ANY_HOST))
        return -1;
    if (rule == ANY_HOST)
        return at;
    /* Never closer together than it was. */
    for (enum host_rule apart = OTHER_RACK; apart < ANY_HOST; apart++)
        if (may_join(q, others, node, apart) && !may_join(q, others, to, apart))
            return -1;
    return at;
}

static void shift(struct plan *q, int64_t i, int at, int to)
{
    struct placement_expert *x = &q->p->experts[i];
    int from = x->want[at];
    q->claimed[from]--;
    q->arriving[from] -= !place_at(x, from);
    *cost_of(q, i, from) -= q->weight[i];
    placement_order_renew(q->order);
    x->want[at] = (uint16_t)to;
    q->claimed[to]++;
    q->arriving[to] += !place_at(x, to);
    *cost_of(q, i, to) += q->weight[i];
}

/* Another expert's copy goes to `to`, expert i takes its place. */
static bool swap_to(struct plan *q, int64_t i, int to, enum host_rule rule)
{
    struct placement *p = q->p;
    for (int64_t step = 1; step < p->n_total; step++) {
        int64_t f = (i + step) % p->n_total;
        struct placement_expert *x = &p->experts[f];
        for (int k = 0; k < MAX_COPIES && x->want[k] != NOBODY; k++) {
            int node = x->want[k];
            if (!q->is_open[node] || !may_join(q, p->experts[i].want, node, ANY_HOST) ||
                movable(q, x, node, to, rule) < 0)
                continue;
            shift(q, f, k, to);
            claim(q, i, node);
            return true;
        }
    }
    return false;
}

/* Wherever there is room, expert i has a copy already.  One swap is always enough: if every
 * full node's experts were on a node with room too, that node would hold all experts. */
static bool swap_in(struct plan *q, int64_t i)
{
    const struct placement_expert *x = &q->p->experts[i];
    bool was_tried = false;
    int n = count_want(x);
    for (int k = 0; k < n && !q->is_stuck; k++) {
        int to = x->want[k];
        if (!q->is_open[to] || q->claimed[to] >= q->p->nodes[to].capacity ||
            q->arriving[to] >= q->free_now[to])
            continue;
        /* Two copies on one host are better than one; three are not better than two apart. */
        if (swap_to(q, i, to, OTHER_HOST) || (n < 2 && swap_to(q, i, to, ANY_HOST)))
            return true;
        was_tried = true;
    }
    q->is_stuck |= was_tried && n < 2;
    return false;
}

/* The experts that have no copy of this round yet, heaviest first. */
static void pack_rest(struct plan *q, int round, struct heat *rest, size_t n)
{
    qsort(rest, n, sizeof *rest, by_heat);
    placement_order_renew(q->order);
    for (size_t k = 0; k < n; k++) {
        int64_t i = (int64_t)rest[k].layer * q->p->config.n_experts + rest[k].expert;
        /* Two copies that wait for each other's memory would wait for ever: what is there
         * moves only to where there is room now. */
        bool is_placed = pack(q, i, OTHER_RACK, FREE_NOW) || keep_place(q, i, round, OTHER_HOST) ||
                         pack(q, i, OTHER_HOST, FREE_NOW) || keep_place(q, i, round, ANY_HOST) ||
                         pack(q, i, OTHER_RACK, FREE_LATER) || pack(q, i, OTHER_HOST, FREE_LATER) ||
                         pack(q, i, ANY_HOST, FREE_LATER) || swap_in(q, i);
        /* No room: then it may as well wait for whom it waits. */
        if (!is_placed && round == 0)
            keep_place(q, i, 1, ANY_HOST);
    }
}

static void run_round(struct plan *q, int round)
{
    struct placement *p = q->p;
    struct heat *rest = mem_array((size_t)p->n_total, sizeof *rest);
    size_t n = 0;
    for (int64_t i = 0; i < p->n_total; i++) {
        if (q->n_copies[i] <= round || count_want(&p->experts[i]) < round ||
            keep_place(q, i, round, OTHER_RACK))
            continue;
        rest[n++] = (struct heat){.value = q->weight[i],
                                  .expert = (uint32_t)(i % p->config.n_experts),
                                  .layer = layer_of(q, i)};
    }
    pack_rest(q, round, rest, n);
    mem_free(rest);
}

/* ---- evenness ------------------------------------------------------------------------------ */

static double busy(const struct plan *q, const double *cost, int node)
{
    return cost[node] / (q->share[node] > 0 ? q->share[node] : 1e-9);
}

static int busiest(const struct plan *q, const double *cost)
{
    int best = -1;
    for (int i = 0; i < q->n_nodes; i++)
        if (q->p->nodes[i].presence == PLACEMENT_PRESENT && cost[i] > 0 &&
            (best < 0 || busy(q, cost, i) > busy(q, cost, best)))
            best = i;
    return best;
}

static int idlest(const struct plan *q, const double *cost)
{
    int best = -1;
    for (int i = 0; i < q->n_nodes; i++) {
        if (!q->is_open[i] || q->share[i] <= 0 || q->claimed[i] >= q->p->nodes[i].capacity)
            continue;
        if (best >= 0 && busy(q, cost, i) >= busy(q, cost, best))
            continue;
        if (q->arriving[i] < q->free_now[i])
            best = i;
    }
    return best;
}

struct move {
    int64_t expert;
    int at;
    double worse; /* how busy the busier of the two is afterwards */
};

static bool find_move(struct plan *q, uint32_t layer, int from, int to, struct move *out)
{
    const struct placement *p = q->p;
    int64_t first = (int64_t)layer * p->config.n_experts;
    const double *cost = q->cost + (size_t)layer * (size_t)q->n_nodes;
    bool found = false, found_idle = false;
    for (int64_t i = first; i < first + p->config.n_experts; i++) {
        const struct placement_place *l = place_at(&p->experts[i], from);
        bool is_idle = !l || l->state < PLACE_LIVE; /* nothing was read for it */
        if (found_idle && !is_idle)
            continue;
        double after_from = (cost[from] - q->weight[i]) / q->share[from];
        double after_to = (cost[to] + q->weight[i]) / q->share[to];
        double worse = after_from > after_to ? after_from : after_to;
        if (worse >= busy(q, cost, from) || (found && is_idle == found_idle && worse >= out->worse))
            continue;
        int at = movable(q, &p->experts[i], from, to, OTHER_HOST);
        if (at < 0)
            continue;
        *out = (struct move){.expert = i, .at = at, .worse = worse};
        found = true;
        found_idle = is_idle;
    }
    return found;
}

/* The moves of one layer are taken back if they are not worth it. */
static void even_out(struct plan *q, uint32_t layer, struct move *moves, uint16_t *sources)
{
    const double *cost = q->cost + (size_t)layer * (size_t)q->n_nodes;
    int most = (int)q->p->config.n_experts, n = 0;
    int from = busiest(q, cost);
    double before = from < 0 ? 0 : busy(q, cost, from), loads = 0;
    while (n < most && from >= 0 && q->share[from] > 0) {
        int to = idlest(q, cost);
        if (to < 0 || to == from || !find_move(q, layer, from, to, &moves[n]))
            break;
        const struct placement_place *l = place_at(&q->p->experts[moves[n].expert], from);
        loads += l && l->state >= PLACE_LIVE;
        sources[n] = (uint16_t)from;
        shift(q, moves[n].expert, moves[n].at, to);
        n++;
        from = busiest(q, cost);
    }
    if (n == 0 || loads == 0 || busy(q, cost, from) <= before * (1 - PLAN_GAIN))
        return;
    while (n-- > 0)
        shift(q, moves[n].expert, moves[n].at, sources[n]);
}

/* ---- the plan ------------------------------------------------------------------------------ */

/* Sorts, and leaves each once. */
static size_t unite(uint64_t *labels, size_t n)
{
    size_t n_left = 0;
    qsort(labels, n, sizeof *labels, by_number);
    for (size_t k = 0; k < n; k++)
        if (k == 0 || labels[k] != labels[k - 1])
            labels[n_left++] = labels[k];
    return n_left;
}

static void open_plan(struct plan *q, struct placement *p)
{
    size_t n = (size_t)p->n_nodes + 1, total = (size_t)p->n_total;
    *q = (struct plan){.p = p, .n_nodes = p->n_nodes};
    q->weight = mem_array(total, sizeof *q->weight);
    q->n_copies = mem_alloc(total);
    q->cost = mem_array(p->config.n_layers * n, sizeof *q->cost);
    q->share = mem_array(n, sizeof *q->share);
    q->speed = mem_array(n, sizeof *q->speed);
    q->claimed = mem_array(n, sizeof *q->claimed);
    q->arriving = mem_array(n, sizeof *q->arriving);
    q->free_now = mem_array(n, sizeof *q->free_now);
    q->is_open = mem_array(n, sizeof *q->is_open);
    q->capacity = mem_array(n, sizeof *q->capacity);
    q->hosts = mem_array(n, sizeof *q->hosts);
    q->racks = mem_array(n, sizeof *q->racks);
    for (int i = 0; i < p->n_nodes; i++) {
        q->is_open[i] =
            p->nodes[i].presence == PLACEMENT_PRESENT && p->nodes[i].trust == NODE_TRUSTED;
        q->free_now[i] = p->nodes[i].capacity - p->nodes[i].held;
        q->capacity[i] = p->nodes[i].capacity;
        if (q->is_open[i]) {
            q->hosts[q->n_hosts++] = p->nodes[i].host;
            q->racks[q->n_racks++] = p->nodes[i].rack;
        }
    }
    q->n_hosts = unite(q->hosts, q->n_hosts);
    q->n_racks = unite(q->racks, q->n_racks);
}

/* Once shares are known. */
static void open_order(struct plan *q)
{
    q->order = placement_order_new(&(struct placement_order_books){
        .n_nodes = q->n_nodes,
        .n_layers = (int)q->p->config.n_layers,
        .cost = q->cost,
        .share = q->share,
        .capacity = q->capacity,
        .claimed = q->claimed,
        .arriving = q->arriving,
        .free_now = q->free_now,
        .is_open = q->is_open,
    });
}

static void close_plan(struct plan *q)
{
    mem_free(q->weight);
    mem_free(q->n_copies);
    mem_free(q->cost);
    mem_free(q->share);
    mem_free(q->speed);
    mem_free(q->claimed);
    mem_free(q->arriving);
    mem_free(q->free_now);
    mem_free(q->is_open);
    mem_free(q->capacity);
    mem_free(q->hosts);
    mem_free(q->racks);
    placement_order_free(&q->order);
}

static bool has_all(const uint16_t *a, const uint16_t *b)
{
    for (int k = 0; k < MAX_COPIES && a[k] != NOBODY; k++) {
        bool found = false;
        for (int m = 0; m < MAX_COPIES; m++)
            found |= a[k] == b[m];
        if (!found)
            return false;
    }
    return true;
}

static void even_out_all(struct plan *q)
{
    struct placement *p = q->p;
    struct move *moves = mem_array(p->config.n_experts, sizeof *moves);
    uint16_t *sources = mem_array(p->config.n_experts, sizeof *sources);
    for (uint32_t layer = 0; layer < p->config.n_layers; layer++)
        even_out(q, layer, moves, sources);
    mem_free(moves);
    mem_free(sources);
}

bool placement_plan(struct placement *p)
{
    struct plan q;
    open_plan(&q, p);
    set_heat(&q);
    set_copies(&q);
    uint16_t(*before)[MAX_COPIES] = mem_array((size_t)p->n_total, sizeof *before);
    for (int64_t i = 0; i < p->n_total; i++) {
        q.weight[i] /= q.n_copies[i]; /* copies share an expert's work */
        memcpy(before[i], p->experts[i].want, sizeof *before);
        for (int k = 0; k < MAX_COPIES; k++)
            p->experts[i].want[k] = NOBODY;
    }
    set_speeds(&q);
    set_shares(&q);
    open_order(&q);
    for (int round = 0; round < MAX_COPIES; round++)
        run_round(&q, round);
    even_out_all(&q);
    bool has_changed = false;
    for (int64_t i = 0; i < p->n_total && !has_changed; i++)
        has_changed =
            !has_all(before[i], p->experts[i].want) || !has_all(p->experts[i].want, before[i]);
    mem_free(before);
    close_plan(&q);
    return has_changed;
}
