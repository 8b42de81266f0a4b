/* tests/unit/test_choice.c - the choice among replicas: legal, repeatable, and close to the
 * best there is. */
#include "attn_node/choice.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"

enum { EXPERTS = 256, REPLICAS = 4, MAX_NODES = 16, TOP_K = 8, MAX_SLOTS = 256 * TOP_K };

struct scene {
    struct choice *choice;
    uint16_t holders[EXPERTS * REPLICAS], experts[MAX_SLOTS];
    int32_t slots[MAX_SLOTS];
    uint8_t standing[MAX_NODES];
    int load[MAX_NODES], cost[MAX_NODES];
    int n_nodes, n_replicas, n_slots;
};

/* n_replicas different nodes for each expert. */
static void place(struct scene *s, struct rng *r, int n_nodes, int n_replicas)
{
    s->n_nodes = n_nodes;
    s->n_replicas = n_replicas;
    memset(s->standing, STANDING_GOOD, sizeof(s->standing));
    for (int e = 0; e < EXPERTS; e++) {
        uint16_t *h = &s->holders[e * n_replicas];
        for (int k = 0; k < n_replicas; k++) {
            bool is_new;
            do {
                h[k] = (uint16_t)rng_below(r, (uint64_t)n_nodes);
                is_new = true;
                for (int i = 0; i < k; i++)
                    is_new &= h[i] != h[k];
            } while (!is_new);
        }
    }
}

static void route(struct scene *s, struct rng *r, int n_rows)
{
    s->n_slots = n_rows * TOP_K;
    for (int i = 0; i < s->n_slots; i++) {
        bool is_new;
        s->slots[i] = i;
        do {
            s->experts[i] = (uint16_t)rng_below(r, EXPERTS);
            is_new = true;
            for (int k = i - i % TOP_K; k < i; k++)
                is_new &= s->experts[k] != s->experts[i];
        } while (!is_new);
    }
}

static int choose(struct scene *s)
{
    struct choice_question q = {.experts = s->experts,
                                .slots = s->slots,
                                .n_slots = s->n_slots,
                                .holders = s->holders,
                                .n_replicas = s->n_replicas,
                                .standing = s->standing,
                                .worst = STANDING_DOUBTFUL,
                                .cost = s->cost[0] > 0 ? s->cost : NULL,
                                .load = s->load};
    memset(s->load, 0, sizeof(s->load));
    return choice_make(s->choice, &q);
}

static int slowest(const struct scene *s)
{
    int most = 0;
    for (int i = 0; i < s->n_nodes; i++)
        most = s->load[i] > most ? s->load[i] : most;
    return most;
}

/* The best that any assignment of the (at most eight) experts reaches. */
static int best_of_all(const struct scene *s, int slot, int *load)
{
    int best = TOP_K;
    if (slot == s->n_slots) {
        int most = 0;
        for (int i = 0; i < s->n_nodes; i++)
            most = load[i] > most ? load[i] : most;
        return most;
    }
    for (int k = 0; k < s->n_replicas; k++) {
        int node = s->holders[s->experts[slot] * s->n_replicas + k];
        load[node]++;
        int rest = best_of_all(s, slot + 1, load);
        load[node]--;
        best = rest < best ? rest : best;
    }
    return best;
}

TEST(choice_is_nearly_the_best_for_one_row)
{
    struct rng r = test_rng();
    struct scene *s = mem_alloc(sizeof(*s));
    s->choice = choice_new(EXPERTS);
    int sum[REPLICAS + 1] = {0}, n_worse = 0, n = 500;
    for (int replicas = 1; replicas <= 3; replicas++) {
        place(s, &r, 8, replicas);
        for (int i = 0; i < n; i++) {
            route(s, &r, 1);
            CHECK_INT(choose(s), 0);
            int load[MAX_NODES] = {0}, best = best_of_all(s, 0, load);
            CHECK(slowest(s) <= best + 1);
            n_worse += slowest(s) > best;
            sum[replicas] += slowest(s);
        }
    }
    test_say("8 nodes, one row: the slowest reads %.2f experts with one copy, %.2f with two, %.2f "
             "with three; %d of %d choices are one above the best",
             (double)sum[1] / n, (double)sum[2] / n, (double)sum[3] / n, n_worse, 3 * n);
    /* About 6 % in 6,000 draws. */
    CHECK(n_worse < 3 * n / 8);
    CHECK(sum[2] < sum[1] * 8 / 10 && sum[3] < sum[2]);
    choice_free(&s->choice);
    mem_free(s);
}

TEST(choice_takes_holders_that_may_be_asked_and_counts_each_expert_once)
{
    struct rng r = test_rng();
    struct scene *s = mem_alloc(sizeof(*s));
    s->choice = choice_new(EXPERTS);
    for (int i = 0; i < 300; i++) {
        place(s, &r, 2 + (int)rng_below(&r, MAX_NODES - 1), 1 + (int)rng_below(&r, 2));
        route(s, &r, 1 + (int)rng_below(&r, 40));
        for (int k = 0; k < s->n_nodes; k++)
            s->standing[k] = (uint8_t)rng_below(&r, 3);
        int n_without = choose(s), n_orphans = 0, counted[MAX_NODES] = {0};
        uint16_t first[EXPERTS];
        bool is_seen[EXPERTS] = {false};
        for (int k = 0; k < s->n_slots; k++) {
            uint16_t e = s->experts[k], node = choice_of(s->choice, e);
            const uint16_t *h = &s->holders[e * s->n_replicas];
            if (is_seen[e])
                continue;
            is_seen[e] = true;
            first[e] = node;
            n_orphans += node == CHOICE_NOBODY;
            int best = STANDING_AWAY;
            bool is_holder = false;
            for (int j = 0; j < s->n_replicas; j++) {
                best = s->standing[h[j]] < best ? s->standing[h[j]] : best;
                is_holder |= h[j] == node;
            }
            CHECK_INT(node == CHOICE_NOBODY, best == STANDING_AWAY);
            if (node == CHOICE_NOBODY)
                continue;
            CHECK(is_holder);
            CHECK_INT(s->standing[node], best);
            counted[node]++;
        }
        CHECK_INT(n_without, n_orphans);
        CHECK_BYTES(s->load, counted, sizeof(counted));
        choose(s);
        for (int e = 0; e < EXPERTS; e++)
            if (is_seen[e])
                CHECK_INT(choice_of(s->choice, (uint16_t)e), first[e]);
    }
    choice_free(&s->choice);
    mem_free(s);
}

TEST(choice_is_all_or_nothing_where_that_is_asked)
{
    struct rng r = test_rng();
    struct scene *s = mem_alloc(sizeof(*s));
    s->choice = choice_new(EXPERTS);
    place(s, &r, 4, 2);
    route(s, &r, 1);
    for (int k = 0; k < 2; k++)
        s->standing[s->holders[s->experts[3] * 2 + k]] = STANDING_AWAY;
    struct choice_question q = {.experts = s->experts,
                                .slots = s->slots,
                                .n_slots = s->n_slots,
                                .holders = s->holders,
                                .n_replicas = 2,
                                .standing = s->standing,
                                .worst = STANDING_GOOD,
                                .is_whole = true,
                                .load = s->load};
    CHECK(choice_make(s->choice, &q) > 0);
    for (int i = 0; i < MAX_NODES; i++)
        CHECK_INT(s->load[i], 0);
    choice_free(&s->choice);
    mem_free(s);
}

TEST(choice_loads_nodes_evenly_with_many_rows)
{
    struct rng r = test_rng();
    struct scene *s = mem_alloc(sizeof(*s));
    s->choice = choice_new(EXPERTS);
    place(s, &r, 8, 2);
    route(s, &r, 256);
    CHECK_INT(choose(s), 0);
    /* 256 rows of 8 name nearly all of 256 experts: 32 for each node. */
    CHECK(slowest(s) <= 33);
    choice_free(&s->choice);
    mem_free(s);
}

/* Until the last node has read what it is asked for, in experts of the median node. */
static double longest(const struct scene *s, const int *load)
{
    double most = 0;
    for (int i = 0; i < s->n_nodes; i++) {
        double time = (double)load[i] * s->cost[i] / CHOICE_COST;
        most = time > most ? time : most;
    }
    return most;
}

/* The shortest that any assignment of the experts reaches. */
static double shortest(const struct scene *s, int slot, int *load)
{
    double best = 1e9;
    if (slot == s->n_slots)
        return longest(s, load);
    for (int k = 0; k < s->n_replicas; k++) {
        int node = s->holders[s->experts[slot] * s->n_replicas + k];
        load[node]++;
        double rest = shortest(s, slot + 1, load);
        load[node]--;
        best = rest < best ? rest : best;
    }
    return best;
}

TEST(choice_gives_slow_nodes_less_to_read)
{
    enum { N = 300 };
    static const uint64_t speeds[MAX_NODES] = {40, 40, 40, 40, 20, 20, 10, 40};
    struct rng r = test_rng();
    struct scene *s = mem_alloc(sizeof(*s));
    int costs[MAX_NODES];
    double aware = 0, blind = 0, best = 0;
    s->choice = choice_new(EXPERTS);
    choice_costs(speeds, 8, costs);
    for (int i = 0; i < N; i++) {
        int load[MAX_NODES] = {0};
        place(s, &r, 8, 2);
        route(s, &r, 1);
        s->cost[0] = 0;
        CHECK_INT(choose(s), 0);
        memcpy(s->cost, costs, sizeof(costs));
        blind += longest(s, s->load);
        CHECK_INT(choose(s), 0);
        aware += longest(s, s->load);
        best += shortest(s, 0, load);
    }
    test_say("8 nodes, one at a quarter and two at half the others' speed, one row, two copies: "
             "the last node reads for %.2f experts' time, %.2f if speed does not count, %.2f at "
             "best",
             aware / N, blind / N, best / N);
    CHECK(aware < 0.9 * blind);
    CHECK(aware < 1.25 * best);
    choice_free(&s->choice);
    mem_free(s);
}

TEST(choice_costs_are_equal_where_speeds_are_nearly_or_nobody_knows)
{
    static const uint64_t unknown[4], near[4] = {1000, 1050, 0, 960}, far[4] = {1000, 1000, 500, 0};
    int cost[4];
    choice_costs(unknown, 4, cost);
    for (int i = 0; i < 4; i++)
        CHECK_INT(cost[i], CHOICE_COST);
    choice_costs(near, 4, cost);
    for (int i = 0; i < 4; i++)
        CHECK_INT(cost[i], CHOICE_COST);
    choice_costs(far, 4, cost);
    CHECK_INT(cost[0], CHOICE_COST);
    CHECK_INT(cost[2], 2 * CHOICE_COST);
    CHECK_INT(cost[3], CHOICE_COST);
}
