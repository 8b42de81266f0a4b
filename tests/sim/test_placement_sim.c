/* tests/sim/test_placement_sim.c - thousands of random joins, losses, returns, drains and slow
 * loads; after each event the invariants of placement.h are checked against a model of the
 * nodes, and in the end everything that fits is covered. */
#include <stdio.h>

#include "base/mem.h"
#include "coordinator/placement.h"
#include "tests/lib/test.h"

enum { MAX_NODES = 9, SETTLE = 30, REJOIN = 100 };

struct sim_node {
    bool alive, draining;
    uint32_t id;
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
    uint16_t *side_holder;
    uint32_t *side_ids;
    uint64_t last_epoch;
    size_t bitmap_bytes;
};

static bool bit(const struct sim *s, const uint8_t *bitmap, int64_t i)
{
    uint32_t n = s->p.config.n_experts;
    size_t at = (size_t)(i / n) * ((n + 7) / 8) + (size_t)(i % n) / 8;
    return bitmap[at] >> (i % n % 8) & 1;
}

static void begin(struct sim *s)
{
    *s = (struct sim){.rng = test_rng()};
}

static void start(struct sim *s)
{
    struct placement_config c = {.n_layers = 1 + (uint32_t)rng_below(&s->rng, 5),
                                 .n_experts = 1 + (uint32_t)rng_below(&s->rng, 20),
                                 .settle_ns = SETTLE,
                                 .rejoin_ns = REJOIN,
                                 .first_version = 1};
    placement_init(&s->p, &c);
    s->now = 0;
    s->last_epoch = s->side_epoch = 0;
    s->bitmap_bytes = placement_bitmap_bytes(&s->p);
    s->side_holder = mem_array((size_t)s->p.n_total, sizeof *s->side_holder);
    s->side_ids = mem_array(1, sizeof *s->side_ids);
    for (int64_t i = 0; i < s->p.n_total; i++)
        s->side_holder[i] = WIRE_NO_HOLDER;
    for (int i = 0; i < MAX_NODES; i++) {
        s->nodes[i] = (struct sim_node){.held = mem_alloc(s->bitmap_bytes),
                                        .wanted = mem_alloc(s->bitmap_bytes)};
    }
}

static void finish(struct sim *s)
{
    for (int i = 0; i < MAX_NODES; i++) {
        mem_free(s->nodes[i].held);
        mem_free(s->nodes[i].wanted);
    }
    mem_free(s->side_holder);
    mem_free(s->side_ids);
    placement_fini(&s->p);
}

static struct sim_node *by_id(struct sim *s, uint32_t id)
{
    for (int i = 0; i < MAX_NODES; i++)
        if (s->nodes[i].alive && s->nodes[i].id == id)
            return &s->nodes[i];
    return NULL;
}

static void join(struct sim *s, int i)
{
    struct sim_node *n = &s->nodes[i];
    struct wire_table_node t = {.node_id = ++s->last_id};
    snprintf(t.name, sizeof t.name, "n%d", i);
    n->alive = true;
    n->draining = false;
    n->id = t.node_id;
    n->capacity = (int64_t)rng_below(&s->rng, (uint64_t)s->p.n_total + 4);
    n->loaded = n->pulled = 0;
    memset(n->held, 0, s->bitmap_bytes);
    placement_join(&s->p, &t, n->capacity, s->now);
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

static void load(struct sim *s, struct sim_node *n)
{
    if (n->pulled == 0 || n->pulled == n->loaded)
        return;
    memcpy(n->held, n->wanted, s->bitmap_bytes);
    n->loaded = n->pulled;
    placement_report(&s->p, n->id, n->loaded);
}

static void side_pulls(struct sim *s)
{
    struct wire_table_node *nodes = mem_array((size_t)s->p.n_nodes + 1, sizeof *nodes);
    struct wire_table t;
    placement_table(&s->p, nodes, s->side_holder, &t);
    mem_free(s->side_ids);
    s->side_ids = mem_array((size_t)t.n_nodes + 1, sizeof *s->side_ids);
    for (uint32_t i = 0; i < t.n_nodes; i++)
        s->side_ids[i] = nodes[i].node_id;
    s->side_epoch = t.epoch;
    mem_free(nodes);
}

static void check_invariants(struct sim *s)
{
    const struct placement *p = &s->p;
    CHECK(p->epoch >= s->last_epoch);
    s->last_epoch = p->epoch;
    int64_t live = 0;
    for (int64_t i = 0; i < p->n_total; i++) {
        const struct placement_expert *x = &p->experts[i];
        if (x->live != PLACEMENT_NOBODY) {
            live++;
            struct sim_node *n = by_id(s, p->nodes[x->live].table.node_id);
            CHECK(n != NULL);          /* never live on the gone */
            CHECK(bit(s, n->held, i)); /* and always loaded there */
            CHECK(x->target != PLACEMENT_NOBODY);
        }
        /* A move is under way, or the last one's copy waits; never both. */
        if (x->from != PLACEMENT_NOBODY)
            CHECK(x->live == x->target);
        /* Whoever the side's table names still has the expert, or is gone. */
        if (s->side_holder[i] != WIRE_NO_HOLDER) {
            struct sim_node *n = by_id(s, s->side_ids[s->side_holder[i]]);
            CHECK(!n || bit(s, n->held, i));
        }
    }
    CHECK_INT(live, p->n_live);
    uint8_t *bitmap = mem_alloc(s->bitmap_bytes);
    for (int k = 0; k < MAX_NODES; k++) {
        struct sim_node *n = &s->nodes[k];
        if (!n->alive)
            continue;
        CHECK(placement_holdings(p, n->id, bitmap));
        int64_t held = 0;
        for (int64_t i = 0; i < p->n_total; i++)
            held += bit(s, bitmap, i);
        CHECK(held <= n->capacity);
    }
    mem_free(bitmap);
}

static void random_event(struct sim *s)
{
    int i = (int)rng_below(&s->rng, MAX_NODES);
    struct sim_node *n = &s->nodes[i];
    switch (rng_below(&s->rng, 12)) {
    case 0:
    case 1:
        if (!n->alive)
            join(s, i);
        break;
    case 2:
        if (n->alive) {
            n->alive = false;
            placement_gone(&s->p, n->id, rng_below(&s->rng, 3) ? PLACEMENT_LOST : PLACEMENT_LEFT,
                           s->now);
        }
        break;
    case 3:
        if (n->alive && rng_below(&s->rng, 3) == 0) {
            n->draining = true;
            placement_drain(&s->p, n->id);
        }
        break;
    case 4:
    case 5:
    case 6:
        if (n->alive)
            pull(s, n);
        break;
    case 7:
    case 8:
        if (n->alive)
            load(s, n);
        break;
    case 9:
        side_pulls(s);
        break;
    default:
        s->now += (int64_t)rng_below(&s->rng, 40);
        placement_tick(&s->p, s->side_epoch, s->now);
        break;
    }
}

/* Calm: everybody does what they are told, as often as it takes. */
static void calm(struct sim *s)
{
    for (int round = 0; round < 60; round++) {
        s->now += SETTLE;
        placement_tick(&s->p, s->side_epoch, s->now);
        check_invariants(s);
        for (int i = 0; i < MAX_NODES; i++)
            if (s->nodes[i].alive) {
                pull(s, &s->nodes[i]);
                load(s, &s->nodes[i]);
                check_invariants(s);
            }
        side_pulls(s);
    }
}

static void check_converged(struct sim *s)
{
    int64_t room = 0, draining = 0;
    for (int i = 0; i < MAX_NODES; i++) {
        if (s->nodes[i].alive && !s->nodes[i].draining)
            room += s->nodes[i].capacity;
        draining += s->nodes[i].alive && s->nodes[i].draining;
    }
    if (room >= s->p.n_total) {
        CHECK(placement_is_covered(&s->p));
        for (int i = 0; i < s->p.n_nodes; i++)
            if (s->p.nodes[i].presence == PLACEMENT_DRAINING)
                CHECK_INT(s->p.nodes[i].held, 0);
    } else if (draining == 0) {
        CHECK_INT(s->p.n_live, room);
    }
    /* Then nothing moves any more. */
    uint64_t epoch = s->p.epoch, version = s->p.last_version;
    calm(s);
    CHECK_INT(s->p.epoch, epoch);
    CHECK_INT(s->p.last_version, version);
}

TEST_WITHIN(placement_keeps_its_promises_through_random_histories, 120)
{
    struct sim s;
    begin(&s);
    int histories = test_is_slow_build() ? 300 : 2000;
    for (int h = 0; h < histories; h++) {
        start(&s);
        for (int k = 0; k < 150; k++) {
            random_event(&s);
            check_invariants(&s);
        }
        calm(&s);
        check_converged(&s);
        finish(&s);
    }
}

TEST(placement_spreads_evenly_whatever_came_before)
{
    struct sim s;
    begin(&s);
    for (int h = 0; h < 300; h++) {
        start(&s);
        for (int k = 0; k < 60; k++)
            random_event(&s);
        for (int i = 0; i < MAX_NODES; i++)
            if (s.nodes[i].alive) {
                s.nodes[i].alive = false;
                placement_gone(&s.p, s.nodes[i].id, PLACEMENT_LOST, s.now);
            }
        int n_nodes = 1 + (int)rng_below(&s.rng, 4);
        for (int i = 0; i < n_nodes; i++) {
            join(&s, i);
        }
        /* Room for everything everywhere: then evenness is all that counts. */
        for (int i = 0; i < s.p.n_nodes; i++)
            s.p.nodes[i].capacity = 2 * s.p.n_total;
        for (int i = 0; i < MAX_NODES; i++)
            s.nodes[i].capacity = 2 * s.p.n_total;
        calm(&s);
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
