/* attn_node/round.c - see round.h.
 *
 * A parcel's lists are slices of four arrays that hold the parcels of a round one after
 * another, grouped by node: entries (a row on a node) and routes (an expert of a row).
 * The first answers and the rows that are asked again share them, hence twice the room. */
#include "attn_node/round.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/moe_fold.h"

/* What planning knows of one node. */
struct node_plan {
    struct round_node node;
    int n_entries, n_routes;      /* counted, then how many are filled in */
    int first_entry, first_place; /* where its slices begin */
    int last_row;                 /* the row that was added last, or -1 */
};

struct round {
    struct round_limits limits;
    int max_routes; /* max_rows * top_k */

    struct node_plan *nodes;
    int n_nodes, nodes_size;

    uint64_t trip;
    enum round_state state;
    struct round_plan plan;
    struct err error;
    bool asked_again; /* the second part of the round has been planned */

    struct round_parcel *parcels; /* [2 * max_routes] */
    int n_parcels, n_out, n_missing;

    int n_entries, n_routes, n_first_routes; /* filled so far */
    int32_t *entry_rows, *entry_route;       /* [2 * max_routes] */
    int16_t *entry_exponents;
    int32_t *first_routes; /* [4 * max_routes] */
    int32_t *route_slots;  /* [2 * max_routes] */
    uint16_t *route_experts;
    float *route_weights;

    int32_t *sums;          /* [max_rows, hidden]: mode fixed */
    uint8_t *is_overflowed; /* [max_rows] */
    char *slots;            /* [max_routes] rows of `hidden` floats (expert) or bf16s (node) */
    uint8_t *has_slot;      /* [max_routes] */
};

static size_t slot_bytes(const struct round *r)
{
    return (size_t)r->limits.hidden * sizeof(float);
}

struct round *round_new(const struct round_limits *l)
{
    must(l->max_rows > 0 && l->top_k > 0 && l->top_k <= MODEL_MAX_TOP_K && l->hidden > 0);
    struct round *r = mem_alloc(sizeof(*r));
    r->limits = *l;
    size_t n_slots = 0, bytes = 0;
    must(mem_mul((size_t)l->max_rows, (size_t)l->top_k, &n_slots) && n_slots <= INT32_MAX / 4);
    must(mem_mul(n_slots, slot_bytes(r), &bytes));
    r->max_routes = (int)n_slots;
    r->parcels = mem_array(2 * n_slots, sizeof(*r->parcels));
    r->entry_rows = mem_array(2 * n_slots, sizeof(int32_t));
    r->entry_route = mem_array(2 * n_slots, sizeof(int32_t));
    r->entry_exponents = mem_array(2 * n_slots, sizeof(int16_t));
    r->first_routes = mem_array(4 * n_slots, sizeof(int32_t));
    r->route_slots = mem_array(2 * n_slots, sizeof(int32_t));
    r->route_experts = mem_array(2 * n_slots, sizeof(uint16_t));
    r->route_weights = mem_array(2 * n_slots, sizeof(float));
    r->sums = mem_aligned_raw((size_t)l->max_rows * slot_bytes(r));
    r->is_overflowed = mem_array((size_t)l->max_rows, 1);
    r->slots = mem_aligned_raw(bytes);
    r->has_slot = mem_array(n_slots, 1);
    return r;
}

int round_max_parcels(const struct round_limits *l)
{
    return 2 * l->max_rows * l->top_k;
}

void round_free(struct round **round)
{
    struct round *r = *round;
    if (!r)
        return;
    *round = NULL;
    void *const owned[] = {r->nodes,           r->parcels,      r->entry_rows,    r->entry_route,
                           r->entry_exponents, r->first_routes, r->route_slots,   r->route_experts,
                           r->route_weights,   r->sums,         r->is_overflowed, r->slots,
                           r->has_slot};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++)
        mem_free(owned[i]);
    mem_free(r);
}

void round_install(struct round *r, const struct round_node *nodes, int n_nodes)
{
    must(r->state == ROUND_IDLE);
    if (n_nodes > r->nodes_size) {
        r->nodes = mem_resize(r->nodes, (size_t)n_nodes * sizeof(*r->nodes));
        r->nodes_size = n_nodes;
    }
    r->n_nodes = n_nodes;
    for (int i = 0; i < n_nodes; i++) {
        must(nodes[i].max_rows > 0);
        r->nodes[i] = (struct node_plan){.node = nodes[i]};
    }
}

/* ---- planning ------------------------------------------------------------------------ */

/* The rows that this part of the round is about. */
static bool is_planned(const struct round *r, int row)
{
    return !r->asked_again || r->is_overflowed[row];
}

static struct node_plan *node_of_slot(const struct round *r, int slot)
{
    uint16_t node = r->plan.holder[r->plan.rows->routing->experts[slot]];
    must(node < r->n_nodes);
    return &r->nodes[node];
}

/* Counts each node's entries and routes, and gives it its place in the arrays. */
static void plan_places(struct round *r)
{
    int top_k = r->limits.top_k;
    for (int i = 0; i < r->n_nodes; i++)
        r->nodes[i] = (struct node_plan){.node = r->nodes[i].node, .last_row = -1};
    for (int slot = 0; slot < r->plan.rows->n_rows * top_k; slot++) {
        int row = slot / top_k;
        if (!is_planned(r, row))
            continue;
        struct node_plan *n = node_of_slot(r, slot);
        n->n_routes++;
        n->n_entries += n->last_row != row;
        n->last_row = row;
    }
    for (int i = 0; i < r->n_nodes; i++) {
        struct node_plan *n = &r->nodes[i];
        n->first_entry = r->n_entries;
        n->first_place = r->n_routes;
        r->n_entries += n->n_entries;
        r->n_routes += n->n_routes;
        n->n_entries = n->n_routes = 0;
        n->last_row = -1;
    }
}

static void plan_entries(struct round *r)
{
    int top_k = r->limits.top_k;
    const struct moe_rows *rows = r->plan.rows;
    for (int slot = 0; slot < rows->n_rows * top_k; slot++) {
        int row = slot / top_k;
        if (!is_planned(r, row))
            continue;
        struct node_plan *n = node_of_slot(r, slot);
        int route = n->first_place + n->n_routes++;
        r->route_slots[route] = slot;
        r->route_experts[route] = rows->routing->experts[slot];
        r->route_weights[route] = rows->routing->weights[slot];
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
static void add_parcel(struct round *r, int node, int entry, int n_rows, int route_end)
{
    must(r->n_parcels < 2 * r->max_routes);
    int first = r->entry_route[entry];
    int32_t *first_route = &r->first_routes[r->n_first_routes];
    for (int i = 0; i < n_rows; i++)
        first_route[i] = r->entry_route[entry + i] - first;
    first_route[n_rows] = route_end - first;
    r->n_first_routes += n_rows + 1;
    r->parcels[r->n_parcels++] = (struct round_parcel){
        .state = PARCEL_PLANNED,
        .mode = r->asked_again ? COMBINE_EXPERT : r->plan.mode,
        .node = node,
        .n_rows = n_rows,
        .n_routes = route_end - first,
        .rows = &r->entry_rows[entry],
        .first_route = first_route,
        .exponents = &r->entry_exponents[entry],
        .slots = &r->route_slots[first],
        .experts = &r->route_experts[first],
        .weights = &r->route_weights[first],
    };
    r->n_missing++;
}

static void plan_parcels(struct round *r)
{
    plan_places(r);
    plan_entries(r);
    for (int i = 0; i < r->n_nodes; i++) {
        const struct node_plan *n = &r->nodes[i];
        for (int done = 0; done < n->n_entries; done += n->node.max_rows) {
            int left = n->n_entries - done;
            int n_rows = left < n->node.max_rows ? left : n->node.max_rows;
            int entry = n->first_entry + done;
            int route_end =
                n_rows < left ? r->entry_route[entry + n_rows] : n->first_place + n->n_routes;
            add_parcel(r, i, entry, n_rows, route_end);
        }
    }
}

int round_begin(struct round *r, const struct round_plan *plan, struct err *e)
{
    const struct moe_rows *rows = plan->rows;
    must(r->state == ROUND_IDLE);
    must(rows->n_rows > 0 && rows->n_rows <= r->limits.max_rows);
    must(rows->hidden == r->limits.hidden && rows->routing->top_k == r->limits.top_k);
    for (int slot = 0; slot < rows->n_rows * r->limits.top_k; slot++) {
        uint16_t expert = rows->routing->experts[slot];
        if (plan->holder[expert] == ROUND_NO_HOLDER)
            return err_set(e, E_UNAVAILABLE, "expert %d of layer %d is on no node", expert,
                           rows->layer);
    }
    r->trip++;
    r->state = ROUND_RUNNING;
    r->plan = *plan;
    r->error = (struct err){0};
    r->asked_again = false;
    r->n_parcels = r->n_out = r->n_missing = 0;
    r->n_entries = r->n_routes = r->n_first_routes = 0;
    if (plan->mode == COMBINE_FIXED)
        memset(r->sums, 0, (size_t)rows->n_rows * slot_bytes(r));
    memset(r->is_overflowed, 0, (size_t)rows->n_rows);
    memset(r->has_slot, 0, (size_t)(rows->n_rows * r->limits.top_k));
    plan_parcels(r);
    return 0;
}

/* ---- actions ------------------------------------------------------------------------- */

int round_next(const struct round *r, int after)
{
    if (r->state != ROUND_RUNNING)
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
    r->n_out++;
    return (struct round_ticket){.trip = r->trip, .parcel = parcel};
}

/* ---- events -------------------------------------------------------------------------- */

bool round_is_out(const struct round *r, struct round_ticket t)
{
    return r->state == ROUND_RUNNING && t.trip == r->trip && t.parcel >= 0 &&
           t.parcel < r->n_parcels && r->parcels[t.parcel].state == PARCEL_OUT;
}

static struct round_parcel *parcel_that_is_out(struct round *r, struct round_ticket t)
{
    return round_is_out(r, t) ? &r->parcels[t.parcel] : NULL;
}

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

static bool has_overflow(const struct round *r)
{
    return memchr(r->is_overflowed, 1, (size_t)r->plan.rows->n_rows) != NULL;
}

int round_take(struct round *r, struct round_ticket t, const struct round_reply *reply,
               struct err *e)
{
    struct round_parcel *p = parcel_that_is_out(r, t);
    if (!p)
        return E_STALE;
    int rc = check_shape(r, p, reply, e);
    if (rc < 0)
        return rc;
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
    p->state = PARCEL_DONE;
    r->n_out--;
    if (--r->n_missing > 0)
        return 0;
    if (!r->asked_again && has_overflow(r)) {
        r->asked_again = true;
        plan_parcels(r);
    } else {
        r->state = ROUND_DONE;
    }
    return 0;
}

/* "1, 17, 40, ..." : the distinct experts of a parcel, as many as a line bears. */
static void name_experts(const struct round_parcel *p, char *out, size_t bytes)
{
    enum { NAMED = 8 };
    uint16_t seen[NAMED];
    int n_seen = 0;
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < p->n_routes; i++) {
        bool is_known = false;
        for (int j = 0; j < n_seen; j++)
            is_known |= seen[j] == p->experts[i];
        if (is_known)
            continue;
        bool is_full = n_seen == NAMED;
        int n = is_full
                    ? snprintf(out + used, bytes - used, ", ...")
                    : snprintf(out + used, bytes - used, "%s%d", n_seen ? ", " : "", p->experts[i]);
        if (is_full || n < 0 || (size_t)n >= bytes - used)
            return;
        used += (size_t)n;
        seen[n_seen++] = p->experts[i];
    }
}

static void fail_parcel(struct round *r, struct round_parcel *p, int code, const char *why)
{
    char experts[96];
    name_experts(p, experts, sizeof(experts));
    p->state = PARCEL_FAILED;
    r->state = ROUND_FAILED;
    err_set(&r->error, code, "node %s: layer %d, experts %s: %s", r->nodes[p->node].node.name,
            r->plan.rows->layer, experts, why && why[0] ? why : err_text(code));
}

int round_fail(struct round *r, struct round_ticket t, int code, const char *why)
{
    struct round_parcel *p = parcel_that_is_out(r, t);
    if (!p)
        return E_STALE;
    r->n_out--;
    fail_parcel(r, p, code, why);
    return 0;
}

void round_fail_unsent(struct round *r, int parcel, int code, const char *why)
{
    must(r->state == ROUND_RUNNING && parcel >= 0 && parcel < r->n_parcels);
    must(r->parcels[parcel].state == PARCEL_PLANNED);
    fail_parcel(r, &r->parcels[parcel], code, why);
}

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

/* ---- the result ---------------------------------------------------------------------- */

static void fold_slots(const struct round *r, int row, float *x)
{
    const void *slots[MODEL_MAX_TOP_K];
    int top_k = r->limits.top_k;
    for (int i = 0; i < top_k; i++)
        slots[i] = r->slots + (size_t)(row * top_k + i) * slot_bytes(r);
    moe_fold_expert(slots, r->plan.rows->routing->weights + (size_t)row * (size_t)top_k, top_k,
                    r->limits.hidden, x);
}

static void fold_nodes(const struct round *r, int row, float *x)
{
    int top_k = r->limits.top_k;
    for (int slot = row * top_k; slot < (row + 1) * top_k; slot++)
        if (r->has_slot[slot])
            moe_fold_node(r->slots + (size_t)slot * slot_bytes(r), r->limits.hidden, x);
}

void round_fold(struct round *r, float *x)
{
    must(r->state == ROUND_DONE);
    size_t hidden = (size_t)r->limits.hidden;
    for (int row = 0; row < r->plan.rows->n_rows; row++) {
        float *x_row = x + (size_t)row * hidden;
        if (r->plan.mode == COMBINE_NODE)
            fold_nodes(r, row, x_row);
        else if (r->plan.mode == COMBINE_EXPERT || r->is_overflowed[row])
            fold_slots(r, row, x_row);
        else
            moe_fold_fixed(r->limits.kernels, r->sums + (size_t)row * hidden,
                           r->plan.rows->exponents[row], r->limits.hidden, x_row);
    }
    r->state = ROUND_IDLE;
}

void round_abandon(struct round *r)
{
    r->trip++;
    r->n_out = 0;
    r->state = ROUND_IDLE;
}
