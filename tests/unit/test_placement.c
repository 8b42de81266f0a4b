/* tests/unit/test_placement.c - the stories of placement one by one; tests/sim/ plays them in
 * random order. */
#include "coordinator/placement.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"

enum { LAYERS = 6, EXPERTS = 16, TOTAL = LAYERS * EXPERTS };
static struct placement place;
static int64_t now;

static void begin(void)
{
    struct placement_config c = {.n_layers = LAYERS,
                                 .n_experts = EXPERTS,
                                 .settle_ns = 100,
                                 .rejoin_ns = 1000,
                                 .first_version = 50};
    placement_init(&place, &c);
    now = 0;
}

static void join(uint32_t id, const char *name, int64_t capacity)
{
    struct wire_table_node n = {.node_id = id};
    snprintf(n.name, sizeof n.name, "%s", name);
    placement_join(&place, &n, capacity, now);
}

static void settle(uint64_t oldest_epoch)
{
    now += 100;
    placement_tick(&place, oldest_epoch, now);
}

static void load(uint32_t id)
{
    placement_report(&place, id, placement_version(&place, id));
}

/* Settles until nothing moves, with attention sides that are always up to date. */
static void converge(const uint32_t *ids, int n)
{
    for (int round = 0; round < 10; round++) {
        settle(place.epoch);
        for (int i = 0; i < n; i++)
            load(ids[i]);
    }
}

static int holds(uint32_t id, int layer)
{
    uint8_t bitmap[LAYERS * EXPERTS / 8];
    CHECK(placement_holdings(&place, id, bitmap));
    int n = 0;
    for (int k = 0; k < EXPERTS; k++)
        n += bitmap[layer * EXPERTS / 8 + k / 8] >> (k % 8) & 1;
    return n;
}

TEST(placement_waits_for_joins_to_settle)
{
    begin();
    join(1, "a", 1000);
    placement_tick(&place, UINT64_MAX, 99);
    CHECK_INT(holds(1, 0), 0);
    placement_tick(&place, UINT64_MAX, 100);
    CHECK_INT(holds(1, 0), EXPERTS);
    CHECK_INT(place.n_live, 0);
    uint64_t before = place.epoch;
    load(1);
    CHECK(placement_is_covered(&place));
    CHECK_INT(place.epoch, before + 1);
    CHECK_INT(place.covered_epoch, place.epoch);
    placement_fini(&place);
}

TEST(placement_spreads_every_layer_evenly)
{
    begin();
    uint32_t ids[] = {1, 2, 3};
    for (int i = 0; i < 3; i++)
        join(ids[i], (char[]){(char)('a' + i), 0}, 1000);
    converge(ids, 3);
    for (int layer = 0; layer < LAYERS; layer++)
        for (int i = 0; i < 3; i++) {
            int n = holds(ids[i], layer);
            CHECK(n == 5 || n == 6);
        }
    for (int i = 0; i < 3; i++)
        CHECK_INT(place.nodes[i].live, TOTAL / 3);
    placement_fini(&place);
}

TEST(placement_moves_no_more_than_evenness_needs)
{
    begin();
    uint32_t ids[] = {1, 2, 3};
    join(1, "a", 1000);
    join(2, "b", 1000);
    converge(ids, 2);
    uint16_t before[TOTAL];
    for (int i = 0; i < TOTAL; i++)
        before[i] = place.experts[i].live;
    join(3, "c", 1000);
    converge(ids, 3);
    int moved = 0;
    for (int i = 0; i < TOTAL; i++)
        moved += before[i] != place.experts[i].live;
    /* A third of all, and a layer's rounding. */
    CHECK(moved >= TOTAL / 3 - LAYERS && moved <= TOTAL / 3 + LAYERS);
    placement_fini(&place);
}

TEST(placement_keeps_the_old_copy_until_tables_are_new)
{
    begin();
    uint32_t ids[] = {1};
    join(1, "a", 1000);
    converge(ids, 1);
    join(2, "b", 1000);
    uint64_t old = place.epoch;
    settle(old);
    load(2);
    CHECK(place.epoch > old);
    CHECK(placement_is_covered(&place));
    CHECK_INT(place.nodes[0].live, TOTAL / 2);
    /* An attention side still routes by the old table. */
    uint64_t version = placement_version(&place, 1);
    settle(old);
    CHECK_INT(holds(1, 0), EXPERTS);
    CHECK_INT(placement_version(&place, 1), version);
    settle(place.epoch);
    CHECK_INT(holds(1, 0), EXPERTS / 2);
    CHECK(placement_version(&place, 1) > version);
    placement_fini(&place);
}

TEST(placement_gives_a_returning_node_its_experts_back)
{
    begin();
    uint32_t ids[] = {1, 2};
    join(1, "a", 1000);
    join(2, "b", 1000);
    converge(ids, 2);
    uint8_t before[LAYERS * EXPERTS / 8], after[LAYERS * EXPERTS / 8];
    CHECK(placement_holdings(&place, 2, before));
    uint64_t epoch = place.epoch;
    placement_gone(&place, 2, PLACEMENT_LOST, now);
    CHECK_INT(place.epoch, epoch + 1);
    CHECK_INT(place.n_live, TOTAL / 2);
    CHECK_INT(placement_version(&place, 2), 0);
    settle(place.epoch);
    CHECK_INT(holds(1, 0), EXPERTS / 2);
    join(7, "b", 1000);
    CHECK(placement_holdings(&place, 7, after));
    CHECK_BYTES(after, before, sizeof before);
    CHECK(!placement_is_covered(&place));
    load(7);
    CHECK(placement_is_covered(&place));
    placement_fini(&place);
}

TEST(placement_gives_a_lost_nodes_experts_to_the_others)
{
    begin();
    uint32_t ids[] = {1, 2};
    join(1, "a", 1000);
    join(2, "b", 1000);
    converge(ids, 2);
    placement_gone(&place, 2, PLACEMENT_LOST, now);
    now += 1000;
    settle(place.epoch);
    load(1);
    CHECK(placement_is_covered(&place));
    CHECK_INT(place.nodes[0].live, TOTAL);
    placement_fini(&place);
}

TEST(placement_does_not_wait_for_one_that_left)
{
    begin();
    uint32_t ids[] = {1, 2};
    join(1, "a", 1000);
    join(2, "b", 1000);
    converge(ids, 2);
    placement_gone(&place, 2, PLACEMENT_LEFT, now);
    settle(place.epoch);
    load(1);
    CHECK(placement_is_covered(&place));
    placement_fini(&place);
}

TEST(placement_empties_a_draining_node_without_a_gap)
{
    begin();
    uint32_t ids[] = {1, 2};
    join(1, "a", 1000);
    join(2, "b", 1000);
    converge(ids, 2);
    placement_drain(&place, 2);
    for (int i = 0; i < 4; i++) {
        settle(place.epoch);
        CHECK(placement_is_covered(&place));
        load(1);
    }
    settle(place.epoch);
    CHECK_INT(place.nodes[0].live, TOTAL);
    CHECK_INT(holds(2, 0), 0);
    placement_fini(&place);
}

TEST(placement_says_what_memory_lacks)
{
    begin();
    join(1, "a", TOTAL / 2);
    converge((uint32_t[]){1}, 1);
    CHECK_INT(place.nodes[0].live, TOTAL / 2);
    char text[256];
    placement_why(&place, text, sizeof text);
    CHECK_HAS(text, "48 of 96 experts (50.0 %)");
    CHECK_HAS(text, "1 expert nodes have memory for 48");
    join(2, "b", TOTAL);
    converge((uint32_t[]){1, 2}, 2);
    CHECK(placement_is_covered(&place));
    placement_fini(&place);
}

TEST(placement_uses_small_and_large_nodes_together)
{
    begin();
    uint32_t ids[] = {1, 2, 3};
    join(1, "a", 10);
    join(2, "b", 1000);
    join(3, "c", 1000);
    converge(ids, 3);
    CHECK(placement_is_covered(&place));
    CHECK_INT(place.nodes[0].live, 10);
    CHECK_INT(place.nodes[1].live, 43);
    CHECK_INT(place.nodes[2].live, 43);
    placement_fini(&place);
}

TEST(placement_believes_no_version_that_it_never_gave)
{
    begin();
    join(1, "a", 1000);
    settle(UINT64_MAX);
    placement_report(&place, 1, placement_version(&place, 1) + 1);
    CHECK_INT(place.n_live, 0);
    placement_report(&place, 1, 3);
    CHECK_INT(place.n_live, 0);
    placement_fini(&place);
}

TEST(placement_tables_name_only_holders)
{
    begin();
    join(1, "a", 1000);
    join(2, "b", 1000);
    settle(UINT64_MAX);
    load(2);
    struct wire_table_node nodes[2];
    uint16_t holder[TOTAL];
    struct wire_table t;
    placement_table(&place, nodes, holder, &t);
    CHECK_INT(t.n_nodes, 1);
    CHECK_INT(t.nodes[0].node_id, 2);
    int n = 0;
    for (int i = 0; i < TOTAL; i++) {
        CHECK(holder[i] == 0 || holder[i] == WIRE_NO_HOLDER);
        n += holder[i] == 0;
    }
    CHECK_INT(n, TOTAL / 2);
    placement_fini(&place);
}
