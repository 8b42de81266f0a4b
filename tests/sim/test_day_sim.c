/* tests/sim/test_day_sim.c - whole days of a cluster's life in simulated time: members.c and
 * placement.c wired as coordinator/hub_cluster.c wires them, eight expert nodes on five hosts, one
 * attention side, and random faults: crashes, cut cables, lost reports, wrong and missing answers,
 * drains, slow loads, coordinators that start again.
 *
 * Every second the invariants are checked; at the end all faults stop and everything must be whole
 * again.  `make test` runs one day; POLYMATH_SIM_DAYS=30 as many, each from its own printed seed, and
 * POLYMATH_SIM_SEED=N that one again. */
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/version.h"
#include "coordinator/members.h"
#include "coordinator/placement.h"
#include "tests/lib/test.h"

enum { NODES = 8, HOSTS = 5, LAYERS = 3, EXPERTS = 16, TOTAL = LAYERS * EXPERTS, DAY_S = 86400 };
enum { LEASE_S = 3, DRAIN_S = 120, CALM_S = 3600, BITMAP = LAYERS * ((EXPERTS + 7) / 8) };
#define SECOND 1000000000LL

enum phase { DOWN, AWAY, JOINED };

struct machine {
    enum phase phase; /* of the process; AWAY: it runs and is no member */
    uint64_t incarnation;
    uint32_t id;
    int64_t capacity;
    int64_t up_at, cut_until, wrong_until, mute_until, loaded_at, left_at;
    bool drains;
    uint64_t pulled, loaded, test; /* versions; newest self-test that it passed */
    uint8_t held[BITMAP], wanted[BITMAP];
};

struct day {
    struct members m;
    struct placement p;
    struct machine nodes[NODES];
    struct rng rng;
    int64_t now; /* seconds */
    uint64_t incarnations, side_epoch, last_epoch;
    uint16_t holders[TOTAL * WIRE_MAX_REPLICAS];
    uint32_t side_ids[NODES + 1], side_replicas, last_id;
    bool was_live[TOTAL], may_lose;
    int crashes, cuts, drains, lies, silences, restarts;
    int64_t uncovered_s;
};

static bool bit(const uint8_t *bitmap, int i)
{
    return bitmap[i / EXPERTS * ((EXPERTS + 7) / 8) + i % EXPERTS / 8] >> (i % EXPERTS % 8) & 1;
}

/* Once in so many seconds, in the mean. */
static bool now_and_then(struct day *d, uint64_t seconds)
{
    return rng_below(&d->rng, seconds) == 0;
}

static int64_t soon(struct day *d, uint64_t seconds)
{
    return d->now + 1 + (int64_t)rng_below(&d->rng, seconds);
}

static void open_coordinator(struct day *d, uint64_t first_version)
{
    struct members_config m = {.fingerprint = 1, .lease_ns = LEASE_S * SECOND};
    struct placement_config p = {.n_layers = LAYERS,
                                 .n_experts = EXPERTS,
                                 .replicas = 2,
                                 .settle_ns = 2 * SECOND,
                                 .rejoin_ns = 60 * SECOND,
                                 .rebalance_ns = 300 * SECOND,
                                 .moves_per_s = 4,
                                 .first_version = first_version};
    members_init(&d->m, &m);
    placement_init(&d->p, &p);
    memset(d->was_live, 0, sizeof d->was_live);
}

static void close_coordinator(struct day *d)
{
    members_fini(&d->m);
    placement_fini(&d->p);
}

/* Numbers begin anew with a coordinator, and who has not heard of it yet keeps its old one: only the
 * member's process is meant. */
static struct machine *by_id(struct day *d, uint32_t id)
{
    const struct node *member = members_find(&d->m, id);
    for (int i = 0; i < NODES && member; i++)
        if (d->nodes[i].phase == JOINED && d->nodes[i].id == id &&
            d->nodes[i].incarnation == member->join.incarnation)
            return &d->nodes[i];
    return NULL;
}

/* ---- what hub_cluster.c does --------------------------------------------------------------- */

static void node_gone(struct day *d, uint32_t id, enum placement_loss loss)
{
    placement_gone(&d->p, id, loss, d->now * SECOND);
    d->may_lose = true;
}

static void join(struct day *d, int i)
{
    struct machine *n = &d->nodes[i];
    struct wire_join j = {.role = NODE_EXPERT,
                          .protocol_version = POLYMATH_PROTOCOL_VERSION,
                          .fingerprint = 1,
                          .incarnation = n->incarnation,
                          .expert_bytes = 1,
                          .memory_bytes = (uint64_t)n->capacity};
    snprintf(j.name, sizeof j.name, "n%d", i);
    snprintf(j.endpoint, sizeof j.endpoint, "tcp://h%d:%d", i % HOSTS, i);
    snprintf(j.host, sizeof j.host, "h%d", i % HOSTS);
    struct members_joined joined;
    if (members_join(&d->m, &j, d->now * SECOND, &joined, NULL) < 0)
        return;
    if (joined.gone_id)
        node_gone(d, joined.gone_id, PLACEMENT_LOST);
    n->id = joined.node->id;
    n->phase = JOINED;
    n->pulled = n->loaded = 0;
    n->loaded_at = 0;
    if (!joined.is_new)
        return;
    struct placement_newcomer new = {.table = {.node_id = n->id, .incarnation = n->incarnation},
                                     .host = j.host,
                                     .capacity = n->capacity,
                                     .speed = 100 + (double)rng_below(&d->rng, 8)};
    memcpy(new.table.name, j.name, sizeof new.table.name);
    CHECK(n->id > d->last_id); /* never used twice */
    d->last_id = n->id;
    placement_join(&d->p, &new, d->now * SECOND);
}

static void pull(struct day *d, struct machine *n)
{
    uint64_t newest = placement_version(&d->p, n->id);
    if (newest == n->pulled)
        return;
    CHECK(placement_holdings(&d->p, n->id, n->wanted));
    n->pulled = newest;
    /* What is not wanted any more goes at once. */
    for (int b = 0; b < BITMAP; b++)
        n->held[b] &= n->wanted[b];
    n->loaded_at = soon(d, 10);
}

static void heartbeat(struct day *d, struct machine *n)
{
    struct wire_heartbeat b = {.node_id = n->id,
                               .incarnation = n->incarnation,
                               .holdings_version = n->loaded,
                               .tested = n->test,
                               .state = n->drains ? NODE_DRAINING : NODE_READY};
    struct node *member;
    if (members_heartbeat(&d->m, &b, d->now * SECOND, &member) < 0) {
        n->phase = AWAY;
        return;
    }
    if (n->drains)
        placement_drain(&d->p, n->id);
    placement_report(&d->p, n->id, b.holdings_version);
    if (rng_below(&d->rng, 3) == 0)
        n->test = member->test;
    pull(d, n);
    bool may_leave = n->drains && (placement_is_drained(&d->p, n->id) || d->now >= n->left_at);
    if (!may_leave)
        return;
    struct wire_leave l = {.node_id = n->id, .incarnation = n->incarnation};
    CHECK_INT(members_leave(&d->m, &l, &member), 0);
    node_gone(d, n->id, PLACEMENT_LEFT);
    n->phase = DOWN;
    n->up_at = soon(d, 120);
}

static void tick_coordinator(struct day *d)
{
    int64_t now_ns = d->now * SECOND;
    for (struct node *n; (n = members_expire(&d->m, now_ns)) != NULL;)
        node_gone(d, n->id, PLACEMENT_LOST);
    for (struct node *n; (n = members_forgive(&d->m, d->p.epoch, now_ns)) != NULL;)
        placement_trust(&d->p, n->id, NODE_TRUSTED, now_ns);
    placement_tick(&d->p, d->side_epoch, now_ns);
}

/* ---- the attention side --------------------------------------------------------------------- */

static void side_judges(struct day *d)
{
    for (int i = 0; i < NODES; i++) {
        const struct machine *n = &d->nodes[i];
        if (n->id == 0)
            continue;
        struct members_opinion o = {.node_id = n->id,
                                    .incarnation = n->incarnation,
                                    .is_wrong = n->wrong_until > d->now,
                                    .is_silent = n->phase == DOWN || n->cut_until > d->now ||
                                                 n->mute_until > d->now,
                                    .side_epoch = d->side_epoch,
                                    .epoch = d->p.epoch};
        if (!members_judge(&d->m, &o, d->now * SECOND))
            continue;
        const struct node *member = members_find(&d->m, n->id);
        placement_trust(&d->p, n->id, member->trust, d->now * SECOND);
        d->may_lose |= member->trust == NODE_QUARANTINED;
    }
}

static void side_pulls(struct day *d)
{
    struct wire_table_node nodes[2 * NODES + 2];
    struct wire_table t;
    CHECK(d->p.n_nodes <= 2 * NODES);
    placement_table(&d->p, nodes, d->holders, &t);
    CHECK_INT(wire_table_check(&t, NULL), 0);
    CHECK(t.n_nodes <= NODES);
    for (uint32_t i = 0; i < t.n_nodes; i++) {
        d->side_ids[i] = nodes[i].node_id;
        const struct node *member = members_find(&d->m, nodes[i].node_id);
        CHECK(member != NULL && member->trust != NODE_QUARANTINED);
    }
    d->side_epoch = t.epoch;
    d->side_replicas = t.n_replicas;
}

static void side_observes(struct day *d)
{
    uint16_t counts[TOTAL];
    for (int i = 0; i < TOTAL; i++)
        counts[i] = (uint16_t)rng_below(&d->rng, i % 7 ? 20 : 200);
    placement_observe(&d->p, counts);
}

/* ---- faults --------------------------------------------------------------------------------- */

static void start_process(struct day *d, struct machine *n)
{
    *n = (struct machine){.phase = AWAY,
                          .incarnation = ++d->incarnations,
                          .capacity = n->capacity,
                          .cut_until = n->cut_until};
}

static void disturb(struct day *d, struct machine *n)
{
    if (n->phase == DOWN)
        return;
    if (now_and_then(d, 3600)) {
        n->phase = DOWN;
        n->up_at = soon(d, now_and_then(d, 5) ? 1800 : 60);
        d->crashes++;
    } else if (now_and_then(d, 3600)) {
        n->cut_until = soon(d, 30);
        d->cuts++;
    } else if (now_and_then(d, 7200)) {
        n->wrong_until = soon(d, 20);
        d->lies++;
    } else if (now_and_then(d, 3600)) {
        n->mute_until = soon(d, 20);
        d->silences++;
    } else if (n->phase == JOINED && !n->drains && now_and_then(d, 7200)) {
        n->drains = true;
        n->left_at = d->now + DRAIN_S;
        d->drains++;
    }
}

static void restart_coordinator(struct day *d)
{
    uint64_t first = (d->p.epoch > d->p.last_version ? d->p.epoch : d->p.last_version) + 100;
    close_coordinator(d);
    open_coordinator(d, first);
    d->last_id = 0;
    d->restarts++;
}

/* ---- invariants ----------------------------------------------------------------------------- */

static void check_place(struct day *d, int i, const struct placement_place *l)
{
    const struct placement_node *at = &d->p.nodes[l->node];
    CHECK(members_find(&d->m, at->table.node_id) != NULL); /* never on the gone */
    struct machine *n = by_id(d, at->table.node_id);
    if (n && n->incarnation == at->table.incarnation)
        CHECK(bit(n->held, i));
}

static void check_table(struct day *d, int i)
{
    for (uint32_t k = 0; k < d->side_replicas; k++) {
        uint16_t at = d->holders[(uint32_t)i * d->side_replicas + k];
        struct machine *n = at == WIRE_NO_HOLDER ? NULL : by_id(d, d->side_ids[at]);
        if (n)
            CHECK(bit(n->held, i));
    }
}

static void check(struct day *d)
{
    const struct placement *p = &d->p;
    CHECK(p->epoch >= d->last_epoch);
    d->last_epoch = p->epoch;
    int64_t live = 0;
    for (int i = 0; i < TOTAL; i++) {
        bool is_live = false;
        for (int k = 0; k < PLACEMENT_PLACES; k++) {
            const struct placement_place *l = &p->experts[i].places[k];
            if (l->state == PLACE_LIVE || l->state == PLACE_RETIRING)
                check_place(d, i, l);
            is_live |= l->state == PLACE_LIVE && p->nodes[l->node].trust != NODE_QUARANTINED;
        }
        if (d->side_epoch >= p->config.first_version)
            check_table(d, i);
        /* Only death and distrust take the last copy. */
        CHECK(is_live || d->may_lose || !d->was_live[i]);
        d->was_live[i] = is_live;
        live += is_live;
    }
    CHECK_INT(live, p->n_live);
    d->uncovered_s += live < TOTAL;
    d->may_lose = false;
    int n_members = 0;
    for (int i = 0; i < p->n_nodes; i++) {
        const struct placement_node *n = &p->nodes[i];
        if (n->presence != PLACEMENT_PRESENT && n->presence != PLACEMENT_DRAINING)
            continue;
        n_members++;
        CHECK(n->held <= n->capacity);
        const struct node *member = members_find(&d->m, n->table.node_id);
        CHECK(member != NULL && member->trust == n->trust);
    }
    CHECK_INT(n_members, members_count(&d->m, NODE_EXPERT));
}

/* ---- a second, a day ------------------------------------------------------------------------ */

static void pass_second(struct day *d, bool is_calm)
{
    d->now++;
    for (int i = 0; i < NODES; i++) {
        struct machine *n = &d->nodes[i];
        if (!is_calm)
            disturb(d, n);
        if (n->phase == DOWN && d->now >= n->up_at)
            start_process(d, n);
        if (n->phase == DOWN)
            continue;
        if (n->loaded_at > 0 && d->now >= n->loaded_at) {
            memcpy(n->held, n->wanted, sizeof n->held);
            n->loaded = n->pulled;
            n->loaded_at = 0;
        }
        bool is_heard = n->cut_until <= d->now && (is_calm || rng_below(&d->rng, 20) > 0);
        if (is_heard && n->phase == AWAY)
            join(d, i);
        else if (is_heard)
            heartbeat(d, n);
    }
    if (!is_calm && now_and_then(d, 3 * 3600))
        restart_coordinator(d);
    side_judges(d);
    tick_coordinator(d);
    if (is_calm || rng_below(&d->rng, 3) == 0)
        side_pulls(d);
    if (d->now % 20 == 0)
        side_observes(d);
    check(d);
}

static void live_a_day(uint64_t seed)
{
    struct day *d = mem_alloc(sizeof *d);
    d->rng = rng_seed(seed);
    d->now = 1;
    d->side_replicas = 1;
    for (int i = 0; i < TOTAL; i++)
        d->holders[i] = WIRE_NO_HOLDER;
    open_coordinator(d, 1);
    /* Two copies, two nodes lost, and a little more. */
    for (int i = 0; i < NODES; i++)
        d->nodes[i] = (struct machine){.phase = DOWN, .capacity = 2 * TOTAL / 5 + i % 3};
    for (int s = 0; s < DAY_S; s++)
        pass_second(d, false);
    d->p.config.rebalance_ns = 0; /* or load would move something now and then */
    for (int s = 0; s < CALM_S; s++)
        pass_second(d, true);
    CHECK(placement_is_covered(&d->p));
    CHECK(placement_is_settled(&d->p));
    CHECK_INT(d->p.lowest, 2);
    CHECK_INT(members_count(&d->m, NODE_EXPERT), NODES);
    test_say("24 h, seed %llu: %d crashes, %d cuts, %d drains, %d liars, %d mute, %d coordinators; "
             "not every expert held for %lld s",
             (unsigned long long)seed, d->crashes, d->cuts, d->drains, d->lies, d->silences,
             d->restarts, (long long)d->uncovered_s);
    close_coordinator(d);
    mem_free(d);
}

TEST_WITHIN(cluster_keeps_its_invariants_through_days_of_random_faults, 3600)
{
    const char *wish = getenv("POLYMATH_SIM_DAYS"), *again = getenv("POLYMATH_SIM_SEED");
    int days = wish ? atoi(wish) : 1;
    struct rng seeds = test_rng();
    for (int k = 0; k < days; k++) {
        uint64_t seed = again ? strtoull(again, NULL, 10) : rng_next(&seeds);
        test_note("day %d: seed %llu", k, (unsigned long long)seed);
        live_a_day(seed);
    }
}
