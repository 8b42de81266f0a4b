/* tests/sim/test_placement_sim.c - thousands of simulated clusters: random joins, losses,
 * returns, drains, distrust, slow loads, lost reports and load statistics.  After each event
 * the invariants of placement.h are checked against a model of the nodes; in the end all
 * calms down, and everything that fits is there as often as it fits. */
#include <stdio.h>

#include "base/mem.h"
#include "coordinator/placement.h"
#include "tests/lib/test.h"

enum { MAX_NODES = 9, SETTLE = 30, REJOIN = 100 };

struct sim_node {
    bool alive, draining;
    enum node_trust trust;
    uint32_t id;
    char host[16];
    int64_t capacity;
    uint64_t loaded; /* version */
    uint8_t *held;   /* what it has loaded */
    uint64_t pulled; /* version that it is loading */
    uint8_t *wanted;
};

struct sim {
    struct placement p;
    struct sim_node nodes[MAX_NODES];
    struct rng rng;
    int64_t now;
    uint32_t last_id;
    uint64_t side_epoch; /* the one attention side's table */
    uint16_t *side_holders;
    uint32_t *side_ids, side_replicas;
    uint64_t last_epoch, trace; /* a hash of all that was answered */
    size_t bitmap_bytes;
    bool hosts_differ;
    bool *was_live; /* [n_total] before the event */
};

static bool bit(const struct sim *s, const uint8_t *bitmap, int64_t i)
{
    uint32_t n = s->p.config.n_experts;
    size_t at = (size_t)(i / n) * ((n + 7) / 8) + (size_t)(i % n) / 8;
    return bitmap[at] >> (i % n % 8) & 1;
}

static void start(struct sim *s)
{
    struct placement_config c = {.n_layers = 1 + (uint32_t)rng_below(&s->rng, 5),
                                 .n_experts = 1 + (uint32_t)rng_below(&s->rng, 20),
                                 .replicas = (int)rng_below(&s->rng, 5),
                                 .settle_ns = SETTLE,
                                 .rejoin_ns = REJOIN,
                                 .rebalance_ns = 50,
                                 .moves_per_s = rng_below(&s->rng, 2) ? 0 : 1e8,
                                 .first_version = 1};
    placement_init(&s->p, &c);
    s->now = 1;
    s->last_epoch = s->side_epoch = s->trace = 0;
    s->side_replicas = 1;
    s->bitmap_bytes = placement_bitmap_bytes(&s->p);
    s->side_holders = mem_array((size_t)s->p.n_total * WIRE_MAX_REPLICAS, sizeof *s->side_holders);
    s->side_ids = mem_array(1, sizeof *s->side_ids);
    s->was_live = mem_array((size_t)s->p.n_total, sizeof *s->was_live);
    for (int64_t i = 0; i < s->p.n_total; i++)
        s->side_holders[i] = WIRE_NO_HOLDER;
    int n_hosts = 1 + (int)rng_below(&s->rng, MAX_NODES);
    s->hosts_differ = n_hosts == MAX_NODES;
    for (int i = 0; i < MAX_NODES; i++) {
        s->nodes[i] = (struct sim_node){.held = mem_alloc(s->bitmap_bytes),
                                        .wanted = mem_alloc(s->bitmap_bytes)};
        snprintf(s->nodes[i].host, sizeof s->nodes[i].host, "h%d", i % n_hosts);
    }
}

static void finish(struct sim *s)
{
    for (int i = 0; i < MAX_NODES; i++) {
        mem_free(s->nodes[i].held);
        mem_free(s->nodes[i].wanted);
    }
    mem_free(s->side_holders);
    mem_free(s->side_ids);
    mem_free(s->was_live);
    placement_fini(&s->p);
}

static struct sim_node *by_id(struct sim *s, uint32_t id)
{
    for (int i = 0; i < MAX_NODES; i++)
        if (s->nodes[i].alive && s->nodes[i].id == id)
            return &s->nodes[i];
    return NULL;
}

/* ---- events ------------------------------------------------------------------------------- */

static void join(struct sim *s, int i, int64_t capacity)
{
    struct sim_node *n = &s->nodes[i];
    struct placement_newcomer new = {.table.node_id = ++s->last_id, .host = n->host};
    snprintf(new.table.name, sizeof new.table.name, "n%d", i);
    n->alive = true;
    n->draining = false;
    n->trust = NODE_TRUSTED;
    n->id = new.table.node_id;
    n->capacity = new.capacity = capacity;
    n->loaded = n->pulled = 0;
    memset(n->held, 0, s->bitmap_bytes);
    placement_join(&s->p, &new, s->now);
}

static void lose(struct sim *s, struct sim_node *n, enum placement_loss loss)
{
    n->alive = false;
    placement_gone(&s->p, n->id, loss, s->now);
}

static void pull(struct sim *s, struct sim_node *n)
{
    uint64_t newest = placement_version(&s->p, n->id);
    if (newest == n->pulled)
        return;
    CHECK(placement_holdings(&s->p, n->id, n->wanted));
    n->pulled = newest;
    /* What is not wanted any more goes at once; the rest comes with load(). */
    for (size_t b = 0; b < s->bitmap_bytes; b++)
        n->held[b] &= n->wanted[b];
}

/* The report may be lost: the next one says the same. */
static void load(struct sim *s, struct sim_node *n, bool is_heard)
{
    if (n->pulled == 0)
        return;
    memcpy(n->held, n->wanted, s->bitmap_bytes);
    n->loaded = n->pulled;
    if (is_heard)
        placement_report(&s->p, n->id, n->loaded);
}

static void side_pulls(struct sim *s)
{
    struct wire_table_node *nodes = mem_array((size_t)s->p.n_nodes + 1, sizeof *nodes);
    struct wire_table t;
    placement_table(&s->p, nodes, s->side_holders, &t);
    CHECK_INT(wire_table_check(&t, NULL), 0);
    mem_free(s->side_ids);
    s->side_ids = mem_array((size_t)t.n_nodes + 1, sizeof *s->side_ids);
    for (uint32_t i = 0; i < t.n_nodes; i++)
        s->side_ids[i] = nodes[i].node_id;
    s->side_epoch = t.epoch;
    s->side_replicas = t.n_replicas;
    mem_free(nodes);
}

static void observe(struct sim *s)
{
    uint16_t *counts = mem_array((size_t)s->p.n_total, sizeof *counts);
    for (int64_t i = 0; i < s->p.n_total; i++)
        counts[i] =
            (uint16_t)(rng_below(&s->rng, 4) ? rng_below(&s->rng, 100) : rng_below(&s->rng, 5000));
    placement_observe(&s->p, counts);
    mem_free(counts);
}

static void tick(struct sim *s, int64_t passed)
{
    s->now += passed;
    placement_tick(&s->p, s->side_epoch, s->now);
}

/* true if copies may rightly have got lost. */
static bool random_event(struct sim *s)
{
    int i = (int)rng_below(&s->rng, MAX_NODES);
    struct sim_node *n = &s->nodes[i];
    uint64_t what = rng_below(&s->rng, 16);
    if (what < 2 && !n->alive)
        join(s, i, (int64_t)rng_below(&s->rng, (uint64_t)s->p.n_total + 4));
    if (what == 10)
        side_pulls(s);
    if (what == 11)
        observe(s);
    if (what > 12)
        tick(s, (int64_t)rng_below(&s->rng, 40));
    if (!n->alive)
        return false;
    if (what == 2) {
        lose(s, n, rng_below(&s->rng, 3) ? PLACEMENT_LOST : PLACEMENT_LEFT);
        return true;
    }
    if (what == 3 && rng_below(&s->rng, 3) == 0) {
        n->draining = true;
        placement_drain(&s->p, n->id);
    }
    if (what == 4 && rng_below(&s->rng, 2)) {
        n->trust = (enum node_trust)rng_below(&s->rng, 3);
        placement_trust(&s->p, n->id, n->trust, s->now);
        return n->trust == NODE_QUARANTINED;
    }
    if (what >= 5 && what < 8)
        pull(s, n);
    if (what == 8 || what == 9)
        load(s, n, rng_below(&s->rng, 4) > 0);
    return false;
}

/* ---- invariants --------------------------------------------------------------------------- */

static int count_live(const struct sim *s, int64_t i)
{
    int n = 0;
    for (int k = 0; k < PLACEMENT_PLACES; k++) {
        const struct placement_place *l = &s->p.experts[i].places[k];
        n += l->state == PLACE_LIVE && s->p.nodes[l->node].trust != NODE_QUARANTINED;
    }
    return n;
}

static void check_expert(struct sim *s, int64_t i)
{
    const struct placement *p = &s->p;
    const struct placement_expert *x = &p->experts[i];
    for (int k = 0; k < PLACEMENT_PLACES; k++) {
        const struct placement_place *l = &x->places[k];
        for (int m = 0; m < k && l->state != PLACE_NONE; m++)
            CHECK(x->places[m].state == PLACE_NONE || x->places[m].node != l->node);
        if (l->state != PLACE_LIVE && l->state != PLACE_RETIRING)
            continue;
        struct sim_node *n = by_id(s, p->nodes[l->node].table.node_id);
        CHECK(n != NULL);          /* never on the gone */
        CHECK(bit(s, n->held, i)); /* and always loaded there */
    }
    /* Whoever the side's table names still has the expert, or is gone. */
    for (uint32_t k = 0; k < s->side_replicas; k++) {
        uint16_t at = s->side_holders[(uint64_t)i * s->side_replicas + k];
        if (at == WIRE_NO_HOLDER)
            continue;
        struct sim_node *n = by_id(s, s->side_ids[at]);
        CHECK(!n || bit(s, n->held, i));
    }
}

static void check_memory(struct sim *s)
{
    uint8_t *bitmap = mem_alloc(s->bitmap_bytes);
    for (int k = 0; k < MAX_NODES; k++) {
        struct sim_node *n = &s->nodes[k];
        if (!n->alive)
            continue;
        CHECK(placement_holdings(&s->p, n->id, bitmap));
        int64_t held = 0;
        for (int64_t i = 0; i < s->p.n_total; i++)
            held += bit(s, bitmap, i);
        CHECK(held <= n->capacity);
    }
    mem_free(bitmap);
}

static void check_invariants(struct sim *s, bool may_lose)
{
    const struct placement *p = &s->p;
    CHECK(p->epoch >= s->last_epoch);
    s->last_epoch = p->epoch;
    int64_t live = 0;
    for (int64_t i = 0; i < p->n_total; i++) {
        check_expert(s, i);
        bool is_live = count_live(s, i) > 0;
        /* Only death and distrust take the last copy; never a drain, a move or a plan. */
        CHECK(is_live || may_lose || !s->was_live[i]);
        s->was_live[i] = is_live;
        live += is_live;
    }
    CHECK_INT(live, p->n_live);
    check_memory(s);
    s->trace =
        (s->trace ^ p->epoch ^ p->last_version << 20 ^ (uint64_t)live << 40) * 6364136223846793005u;
}

/* Calm: everybody does what they are told, as often as it takes. */
static void calm(struct sim *s, int rounds)
{
    for (int round = 0; round < rounds; round++) {
        tick(s, SETTLE);
        check_invariants(s, false);
        for (int i = 0; i < MAX_NODES; i++)
            if (s->nodes[i].alive) {
                pull(s, &s->nodes[i]);
                load(s, &s->nodes[i], true);
                check_invariants(s, false);
            }
        side_pulls(s);
    }
}

/* Third copies and further leave a little room for moves, see placement_plan.c. */
static int copies_possible(struct sim *s)
{
    int64_t room = 0, spare = 0;
    int n_nodes = 0, most = s->p.config.replicas ? s->p.config.replicas : WIRE_MAX_REPLICAS;
    for (int i = 0; i < MAX_NODES; i++) {
        const struct sim_node *n = &s->nodes[i];
        if (!n->alive || n->draining)
            continue;
        int64_t useful = n->capacity < s->p.n_total ? n->capacity : s->p.n_total;
        n_nodes++;
        room += useful;
        spare += 1 + useful / 64;
    }
    /* Third copies on a host that has one already are not worth a move. */
    most = !s->hosts_differ && most > 2 ? 2 : most;
    most = most < n_nodes ? most : n_nodes;
    int64_t possible = room / s->p.n_total;
    if (possible > 2)
        possible = (room - spare) / s->p.n_total > 2 ? (room - spare) / s->p.n_total : 2;
    return possible < most ? (int)possible : most;
}

/* Two copies on one host: then no other host has room. */
static void check_hosts(struct sim *s)
{
    const struct placement *p = &s->p;
    for (int64_t i = 0; i < p->n_total; i++) {
        const uint16_t *want = p->experts[i].want;
        bool is_close = false;
        for (int k = 0; k < WIRE_MAX_REPLICAS && want[k] != PLACEMENT_NOBODY; k++)
            for (int m = 0; m < k; m++)
                is_close |= p->nodes[want[k]].host == p->nodes[want[m]].host;
        for (int n = 0; n < p->n_nodes && is_close; n++) {
            bool is_elsewhere = p->nodes[n].presence == PLACEMENT_PRESENT;
            for (int k = 0; k < WIRE_MAX_REPLICAS && want[k] != PLACEMENT_NOBODY; k++)
                is_elsewhere &= p->nodes[n].host != p->nodes[want[k]].host;
            CHECK(!is_elsewhere || p->nodes[n].held >= p->nodes[n].capacity);
        }
    }
}

static void check_converged(struct sim *s)
{
    const struct placement *p = &s->p;
    int possible = copies_possible(s);
    int64_t room = 0, draining = 0;
    for (int i = 0; i < MAX_NODES; i++) {
        room += s->nodes[i].alive && !s->nodes[i].draining ? s->nodes[i].capacity : 0;
        draining += s->nodes[i].alive && s->nodes[i].draining;
    }
    if (possible >= 1)
        CHECK(placement_is_settled(p));
    if (p->lowest < possible)
        test_fail(__FILE__, __LINE__, "%d copies of an expert, %d are possible", p->lowest,
                  possible);
    for (int i = 0; i < p->n_nodes && possible >= 1; i++)
        if (p->nodes[i].presence == PLACEMENT_DRAINING) {
            CHECK_INT(p->nodes[i].held, 0);
            CHECK(placement_is_drained(p, p->nodes[i].table.node_id));
        }
    if (possible < 1 && draining == 0)
        CHECK_INT(p->n_live, room);
    check_hosts(s);
    /* Then nothing moves any more. */
    uint64_t epoch = p->epoch, version = p->last_version;
    calm(s, 10);
    CHECK_INT(p->epoch, epoch);
    CHECK_INT(p->last_version, version);
}

/* Everybody is trusted again, and the copies of the lost are free. */
static void forgive(struct sim *s)
{
    for (int i = 0; i < MAX_NODES; i++)
        if (s->nodes[i].alive && s->nodes[i].trust != NODE_TRUSTED) {
            s->nodes[i].trust = NODE_TRUSTED;
            placement_trust(&s->p, s->nodes[i].id, NODE_TRUSTED, s->now);
        }
}

static uint64_t play(struct sim *s, uint64_t seed, int n_events)
{
    *s = (struct sim){.rng = rng_seed(seed)};
    start(s);
    for (int k = 0; k < n_events; k++) {
        bool may_lose = random_event(s);
        check_invariants(s, may_lose);
    }
    forgive(s);
    calm(s, 80);
    s->p.config.rebalance_ns = 0; /* what it has begun ends, too */
    calm(s, 40);
    check_converged(s);
    uint64_t trace = s->trace;
    finish(s);
    return trace;
}

TEST_WITHIN(placement_keeps_its_promises_through_random_histories, 120)
{
    struct sim s;
    struct rng seeds = test_rng();
    int histories = test_is_slow_build() ? 400 : 3000;
    for (int h = 0; h < histories; h++) {
        uint64_t seed = rng_next(&seeds);
        test_note("history %d: seed %llu", h, (unsigned long long)seed);
        uint64_t trace = play(&s, seed, 150);
        /* The same history again: the same answers. */
        if (h % 50 == 0)
            CHECK(play(&s, seed, 150) == trace);
    }
    test_say("%d clusters of 150 random events, then calm", histories);
}

TEST(placement_spreads_evenly_whatever_came_before)
{
    struct sim s;
    struct rng seeds = test_rng();
    for (int h = 0; h < 300; h++) {
        s = (struct sim){.rng = rng_seed(rng_next(&seeds))};
        start(&s);
        s.p.config.replicas = 1 + h % 2;
        for (int k = 0; k < 60; k++)
            random_event(&s);
        memset(s.p.load, 0, (size_t)s.p.n_total * sizeof *s.p.load);
        s.p.observed = 0;
        s.p.config.rebalance_ns = 0;
        for (int i = 0; i < MAX_NODES; i++)
            if (s.nodes[i].alive)
                lose(&s, &s.nodes[i], PLACEMENT_LOST);
        int n_nodes = 1 + (int)rng_below(&s.rng, 4);
        /* Room for everything everywhere: then evenness is all that counts. */
        for (int i = 0; i < n_nodes; i++) {
            snprintf(s.nodes[i].host, sizeof s.nodes[i].host, "x%d", i);
            join(&s, i, 2 * s.p.n_total);
        }
        memset(s.was_live, 0, (size_t)s.p.n_total * sizeof *s.was_live);
        calm(&s, 60);
        CHECK(placement_is_covered(&s.p));
        for (uint32_t layer = 0; layer < s.p.config.n_layers; layer++) {
            int64_t least = INT64_MAX, most = 0;
            for (int i = 0; i < n_nodes; i++) {
                int64_t n = 0;
                for (uint32_t e = 0; e < s.p.config.n_experts; e++)
                    n += bit(&s, s.nodes[i].held, (int64_t)layer * s.p.config.n_experts + e);
                least = n < least ? n : least;
                most = n > most ? n : most;
            }
            CHECK(most - least <= 2);
        }
        finish(&s);
    }
}
