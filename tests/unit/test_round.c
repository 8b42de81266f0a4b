/* tests/unit/test_round.c - the books of one layer's trip: every slot is asked once, every
 * answer counts once, and the sum has the bits of the in-process fold whatever the order. */
#include "attn_node/round.h"

#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "engine/moe_fold.h"
#include "tests/lib/test.h"

enum { MAX_ROWS = 13, TOP_K = 3, HIDDEN = 20, EXPERTS = 12, NODES = 7, SLOTS = MAX_ROWS * TOP_K };
enum { REPLICAS = 3 };

/* Rows, their routing, and what every expert would say about every row. */
struct world {
    struct moe_rows rows;
    struct routing routing;
    uint16_t experts[SLOTS];
    float weights[SLOTS];
    int16_t exponents[MAX_ROWS];
    float x[MAX_ROWS * HIDDEN];
    float outputs[MAX_ROWS][EXPERTS][HIDDEN];
    uint16_t holders[EXPERTS][REPLICAS];
    struct round_node nodes[NODES];
    int n_nodes;
};

static const char *const names[NODES] = {"e-0", "e-1", "e-2", "e-3", "e-4", "e-5", "e-6"};

static void place_experts(struct world *w, struct rng *r)
{
    w->n_nodes = 1 + (int)rng_below(r, NODES);
    for (int i = 0; i < w->n_nodes; i++)
        w->nodes[i] = (struct round_node){.name = names[i], .max_rows = 1 + (int)rng_below(r, 9)};
    for (int i = 0; i < EXPERTS; i++) {
        int n = 1 + (int)rng_below(r, REPLICAS), first = (int)rng_below(r, (uint64_t)w->n_nodes);
        for (int k = 0; k < REPLICAS; k++)
            w->holders[i][k] = k < n && k < w->n_nodes ? (uint16_t)((first + k) % w->n_nodes)
                                                       : (uint16_t)ROUND_NO_HOLDER;
    }
}

/* Every expert on one node alone. */
static void place_once(struct world *w)
{
    for (int i = 0; i < EXPERTS; i++)
        w->holders[i][1] = w->holders[i][2] = ROUND_NO_HOLDER;
}

static bool is_holder(const struct world *w, int expert, int node)
{
    bool found = false;
    for (int k = 0; k < REPLICAS; k++)
        found |= w->holders[expert][k] == node;
    return found;
}

static struct round_plan plan_of(const struct world *w, enum combine_mode mode)
{
    return (struct round_plan){
        .rows = &w->rows, .mode = mode, .holders = w->holders[0], .n_replicas = REPLICAS};
}

static void make_outputs(struct world *w, struct rng *r, int row)
{
    /* One expert in sixteen does not fit the grid of this row. */
    for (int e = 0; e < EXPERTS; e++) {
        float scale = rng_below(r, 16) == 0 ? 4e6f : 1;
        for (int i = 0; i < HIDDEN; i++)
            w->outputs[row][e][i] = scale * (float)rng_normal(r);
    }
}

static void make_world(struct world *w, struct rng *r)
{
    memset(w, 0, sizeof(*w));
    int n_rows = 1 + (int)rng_below(r, MAX_ROWS);
    place_experts(w, r);
    for (int row = 0; row < n_rows; row++) {
        uint16_t order[EXPERTS];
        for (int e = 0; e < EXPERTS; e++)
            order[e] = (uint16_t)e;
        for (int slot = 0; slot < TOP_K; slot++) {
            int pick = slot + (int)rng_below(r, (uint64_t)(EXPERTS - slot));
            uint16_t chosen = order[pick];
            order[pick] = order[slot];
            order[slot] = chosen;
            w->experts[row * TOP_K + slot] = chosen;
            w->weights[row * TOP_K + slot] = (float)rng_unit(r);
        }
        w->exponents[row] = (int16_t)(-21 + (int)rng_below(r, 3));
        make_outputs(w, r, row);
        for (int i = 0; i < HIDDEN; i++)
            w->x[row * HIDDEN + i] = (float)rng_normal(r);
    }
    w->routing = (struct routing){
        .n_rows = n_rows, .top_k = TOP_K, .experts = w->experts, .weights = w->weights};
    w->rows = (struct moe_rows){
        .layer = 3,
        .n_rows = n_rows,
        .hidden = HIDDEN,
        .rows = {.n_rows = n_rows, .cols = HIDDEN, .f32 = w->x, .f32_stride = HIDDEN},
        .exponents = w->exponents,
        .routing = &w->routing};
}

/* The in-process fold: what engine/moe_local.c does with the same outputs. */
static void fold_locally(const struct world *w, enum combine_mode mode, float *x)
{
    const struct kernels *k = kernels_named("portable");
    for (int row = 0; row < w->rows.n_rows; row++) {
        int32_t sum[HIDDEN] = {0};
        const void *slots[TOP_K];
        int over = 0;
        for (int slot = 0; slot < TOP_K; slot++) {
            int at = row * TOP_K + slot;
            slots[slot] = w->outputs[row][w->experts[at]];
            over += k->fixed_add(slots[slot], w->weights[at], w->exponents[row], HIDDEN, sum);
        }
        if (mode == COMBINE_EXPERT || over > 0)
            moe_fold_expert(slots, w->weights + (size_t)row * TOP_K, TOP_K, HIDDEN,
                            x + (size_t)row * HIDDEN);
        else
            moe_fold_fixed(k, sum, w->exponents[row], HIDDEN, x + (size_t)row * HIDDEN);
    }
}

/* What a node answers; `data` begins at an odd address, as frames do. */
struct answer {
    struct round_ticket ticket;
    struct round_reply reply;
    uint32_t overflow[MAX_ROWS];
    char bytes[SLOTS * HIDDEN * 4 + 1];
};

static void answer_fixed(const struct world *w, const struct round_parcel *p, struct answer *a)
{
    const struct kernels *k = kernels_named("portable");
    for (int i = 0; i < p->n_rows; i++) {
        int32_t sum[HIDDEN] = {0};
        int over = 0;
        for (int j = p->first_route[i]; j < p->first_route[i + 1]; j++)
            over += k->fixed_add(w->outputs[p->rows[i]][p->experts[j]], p->weights[j],
                                 p->exponents[i], HIDDEN, sum);
        memcpy(a->bytes + 1 + (size_t)i * sizeof(sum), sum, sizeof(sum));
        if (over > 0)
            a->overflow[a->reply.n_overflow++] = (uint32_t)i;
    }
    a->reply.bytes = (size_t)p->n_rows * HIDDEN * sizeof(int32_t);
}

static void answer_by_expert(const struct world *w, const struct round_parcel *p, struct answer *a)
{
    size_t bytes = HIDDEN * sizeof(float);
    for (int i = 0; i < p->n_rows; i++)
        for (int j = p->first_route[i]; j < p->first_route[i + 1]; j++)
            memcpy(a->bytes + 1 + (size_t)j * bytes, w->outputs[p->rows[i]][p->experts[j]], bytes);
    a->reply.bytes = (size_t)p->n_routes * bytes;
}

/* Any numbers will do: what is tested is who adds them in which order. */
static void answer_by_node(const struct round_parcel *p, struct answer *a)
{
    for (int i = 0; i < p->n_rows; i++)
        for (int k = 0; k < HIDDEN; k++) {
            uint16_t bf16 = (uint16_t)(0x3c00 + 97 * p->rows[i] + 31 * p->node + 7 * k);
            memcpy(a->bytes + 1 + (size_t)(i * HIDDEN + k) * 2, &bf16, 2);
        }
    a->reply.bytes = (size_t)p->n_rows * HIDDEN * 2;
}

static void make_answer(const struct world *w, const struct round_parcel *p,
                        struct round_ticket ticket, struct answer *a)
{
    a->ticket = ticket;
    a->reply = (struct round_reply){
        .mode = p->mode, .n_rows = p->n_rows, .data = a->bytes + 1, .overflow_rows = a->overflow};
    if (p->mode == COMBINE_FIXED)
        answer_fixed(w, p, a);
    else if (p->mode == COMBINE_EXPERT)
        answer_by_expert(w, p, a);
    else
        answer_by_node(p, a);
}

static struct round *new_round(void)
{
    struct round_limits l = {.kernels = kernels_named("portable"),
                             .max_rows = MAX_ROWS,
                             .top_k = TOP_K,
                             .hidden = HIDDEN,
                             .n_experts = EXPERTS};
    return round_new(&l);
}

enum { MAX_OUT = 8 * SLOTS };

/* Sends everything that is planned now; returns how many answers wait. */
static int send_all(struct round *round, const struct world *w, struct answer *answers, int n)
{
    for (int i = round_next(round, -1); i >= 0; i = round_next(round, i)) {
        CHECK(n < MAX_OUT);
        struct round_ticket t = round_sent(round, i);
        make_answer(w, round_parcel(round, i), t, &answers[n++]);
    }
    return n;
}

/* Plays a round: answers come in random order, one in four twice; `late` is a stale one. */
static void play(struct round *round, const struct world *w, enum combine_mode mode, struct rng *r,
                 struct answer *answers, float *x)
{
    struct err e = {0};
    struct round_plan plan = plan_of(w, mode);
    round_begin(round, &plan);
    int n = 0;
    while (round_state(round) == ROUND_RUNNING) {
        n = send_all(round, w, answers, n);
        CHECK(n > 0);
        int pick = (int)rng_below(r, (uint64_t)n);
        CHECK_INT(round_take(round, answers[pick].ticket, &answers[pick].reply, &e), 0);
        if (rng_below(r, 4) == 0)
            CHECK_INT(round_take(round, answers[pick].ticket, &answers[pick].reply, &e), E_STALE);
        answers[pick] = answers[--n];
        /* The pointers moved with it. */
        answers[pick].reply.data = answers[pick].bytes + 1;
        answers[pick].reply.overflow_rows = answers[pick].overflow;
    }
    CHECK_INT(round_state(round), ROUND_DONE);
    CHECK_INT(round_n_out(round), 0);
    round_fold(round, x);
}

TEST_WITHIN(round_sums_have_the_local_bits_whatever_the_order, 120)
{
    struct rng r = test_rng();
    struct answer *answers = mem_array(MAX_OUT, sizeof(*answers));
    struct world *w = mem_alloc(sizeof(*w));
    struct round *round = new_round();
    int n_overflowed = 0;
    for (int i = 0; i < 1000; i++) {
        float got[MAX_ROWS * HIDDEN], want[MAX_ROWS * HIDDEN], expert[MAX_ROWS * HIDDEN];
        enum combine_mode mode = i % 2 ? COMBINE_FIXED : COMBINE_EXPERT;
        make_world(w, &r);
        round_install(round, w->nodes, w->n_nodes);
        memcpy(got, w->x, sizeof(got));
        memcpy(want, w->x, sizeof(want));
        memcpy(expert, w->x, sizeof(want));
        fold_locally(w, mode, want);
        fold_locally(w, COMBINE_EXPERT, expert);
        play(round, w, mode, &r, answers, got);
        size_t bytes = (size_t)w->rows.n_rows * HIDDEN * sizeof(float);
        CHECK_BYTES(got, want, bytes);
        n_overflowed += mode == COMBINE_FIXED && memcmp(want, expert, bytes) != 0;
    }
    /* The two modes must differ somewhere, or this test would not see them mixed up. */
    CHECK(n_overflowed > 0);
    round_free(&round);
    mem_free(w);
    mem_free(answers);
}

TEST(round_by_node_adds_in_an_order_that_replies_do_not_change)
{
    struct rng r = test_rng();
    struct answer *answers = mem_array(MAX_OUT, sizeof(*answers));
    struct world *w = mem_alloc(sizeof(*w));
    struct round *round = new_round();
    for (int i = 0; i < 100; i++) {
        float first[MAX_ROWS * HIDDEN], again[MAX_ROWS * HIDDEN];
        make_world(w, &r);
        round_install(round, w->nodes, w->n_nodes);
        memcpy(first, w->x, sizeof(first));
        play(round, w, COMBINE_NODE, &r, answers, first);
        for (int k = 0; k < 5; k++) {
            memcpy(again, w->x, sizeof(again));
            play(round, w, COMBINE_NODE, &r, answers, again);
            CHECK_BYTES(again, first, (size_t)w->rows.n_rows * HIDDEN * sizeof(float));
        }
    }
    round_free(&round);
    mem_free(w);
    mem_free(answers);
}

TEST(round_asks_every_slot_once_and_every_row_once_per_node)
{
    struct rng r = test_rng();
    struct world *w = mem_alloc(sizeof(*w));
    struct round *round = new_round();
    for (int i = 0; i < 300; i++) {
        int slots[SLOTS] = {0}, rows[NODES][MAX_ROWS] = {{0}};
        make_world(w, &r);
        round_install(round, w->nodes, w->n_nodes);
        struct round_plan plan = plan_of(w, COMBINE_FIXED);
        round_begin(round, &plan);
        for (int k = 0; k < round_n_parcels(round); k++) {
            const struct round_parcel *p = round_parcel(round, k);
            CHECK(p->n_rows >= 1 && p->n_rows <= w->nodes[p->node].max_rows);
            CHECK_INT(p->first_route[0], 0);
            CHECK_INT(p->first_route[p->n_rows], p->n_routes);
            for (int j = 0; j < p->n_rows; j++) {
                CHECK_INT(rows[p->node][p->rows[j]]++, 0);
                CHECK_INT(p->exponents[j], w->exponents[p->rows[j]]);
                for (int t = p->first_route[j]; t < p->first_route[j + 1]; t++) {
                    CHECK_INT(p->slots[t] / TOP_K, p->rows[j]);
                    CHECK_INT(slots[p->slots[t]]++, 0);
                    CHECK_INT(p->experts[t], w->experts[p->slots[t]]);
                    CHECK(is_holder(w, p->experts[t], p->node));
                    CHECK(p->weights[t] == w->weights[p->slots[t]]);
                }
            }
        }
        for (int k = 0; k < w->rows.n_rows * TOP_K; k++)
            CHECK_INT(slots[k], 1);
        round_abandon(round);
    }
    round_free(&round);
    mem_free(w);
}

TEST(round_refuses_answers_of_the_wrong_shape_and_goes_on)
{
    struct rng r = test_rng();
    struct answer *answers = mem_array(MAX_OUT, sizeof(*answers));
    struct world *w = mem_alloc(sizeof(*w));
    struct round *round = new_round();
    make_world(w, &r);
    round_install(round, w->nodes, w->n_nodes);
    struct round_plan plan = plan_of(w, COMBINE_FIXED);
    round_begin(round, &plan);
    int n = send_all(round, w, answers, 0);
    struct round_reply good = answers[0].reply, bad = good;
    uint32_t outside = (uint32_t)good.n_rows;
    struct err e = {0};
    bad.bytes--;
    CHECK_INT(round_take(round, answers[0].ticket, &bad, &e), E_CORRUPT);
    CHECK_HAS(e.text, "bytes");
    bad = good;
    bad.mode = COMBINE_EXPERT;
    CHECK_INT(round_take(round, answers[0].ticket, &bad, &e), E_CORRUPT);
    bad = good;
    bad.n_rows++;
    CHECK_INT(round_take(round, answers[0].ticket, &bad, &e), E_CORRUPT);
    bad = good;
    bad.n_overflow = 1;
    bad.overflow_rows = &outside;
    CHECK_INT(round_take(round, answers[0].ticket, &bad, &e), E_CORRUPT);
    struct round_ticket nowhere = {.trip = answers[0].ticket.trip, .parcel = 1 << 20};
    CHECK_INT(round_take(round, nowhere, &good, &e), E_STALE);
    nowhere.parcel = -1;
    CHECK_INT(round_take(round, nowhere, &good, &e), E_STALE);
    /* None of it counted: the right answers still make the right sum. */
    float got[MAX_ROWS * HIDDEN], want[MAX_ROWS * HIDDEN];
    memcpy(got, w->x, sizeof(got));
    memcpy(want, w->x, sizeof(want));
    for (int done = 0; done < n; n = send_all(round, w, answers, n))
        for (; done < n; done++)
            CHECK_INT(round_take(round, answers[done].ticket, &answers[done].reply, &e), 0);
    round_fold(round, got);
    fold_locally(w, COMBINE_FIXED, want);
    CHECK_BYTES(got, want, (size_t)w->rows.n_rows * HIDDEN * sizeof(float));
    round_free(&round);
    mem_free(w);
    mem_free(answers);
}

/* Takes all answers but those of `node`. */
static void take_all_but(struct round *round, struct answer *answers, int n, int node)
{
    for (int i = 0; i < n; i++)
        if (round_parcel(round, answers[i].ticket.parcel)->node != node)
            CHECK_INT(round_take(round, answers[i].ticket, &answers[i].reply, NULL), 0);
}

static void check_bits(const struct world *w, struct round *round, enum combine_mode mode)
{
    float got[MAX_ROWS * HIDDEN], want[MAX_ROWS * HIDDEN];
    memcpy(got, w->x, sizeof(got));
    memcpy(want, w->x, sizeof(want));
    CHECK_INT(round_state(round), ROUND_DONE);
    round_fold(round, got);
    fold_locally(w, mode, want);
    CHECK_BYTES(got, want, (size_t)w->rows.n_rows * HIDDEN * sizeof(float));
}

/* What every test below begins with: all is sent, nothing has come. */
struct scene {
    struct rng rng;
    struct answer *answers;
    struct world *w;
    struct round *round;
    struct round_plan plan;
    int n;
};

static void open_scene(struct scene *s, enum combine_mode mode, int n_replicas)
{
    s->rng = test_rng();
    s->answers = mem_array(MAX_OUT, sizeof(*s->answers));
    s->w = mem_alloc(sizeof(*s->w));
    s->round = new_round();
    do
        make_world(s->w, &s->rng);
    while (s->w->n_nodes < 4 || s->w->rows.n_rows < 4);
    for (int i = 0; i < EXPERTS; i++)
        for (int k = 0; k < REPLICAS; k++)
            s->w->holders[i][k] =
                k < n_replicas ? (uint16_t)((i + k) % s->w->n_nodes) : (uint16_t)ROUND_NO_HOLDER;
    round_install(s->round, s->w->nodes, s->w->n_nodes);
    s->plan = plan_of(s->w, mode);
    round_begin(s->round, &s->plan);
    s->n = send_all(s->round, s->w, s->answers, 0);
}

static void close_scene(struct scene *s)
{
    round_free(&s->round);
    mem_free(s->w);
    mem_free(s->answers);
}

/* Sends what is planned and takes every answer, until nothing is left to do. */
static void finish(struct scene *s)
{
    for (int done = 0; done < s->n || round_next(s->round, -1) >= 0;) {
        s->n = send_all(s->round, s->w, s->answers, s->n);
        for (; done < s->n; done++) {
            int rc = round_take(s->round, s->answers[done].ticket, &s->answers[done].reply, NULL);
            CHECK(rc == 0 || rc == E_STALE);
        }
    }
}

TEST(round_asks_exactly_the_missing_selections_elsewhere)
{
    struct scene s;
    open_scene(&s, COMBINE_EXPERT, 2);
    const struct round_parcel *lost = round_parcel(s.round, s.answers[0].ticket.parcel);
    int first = round_n_parcels(s.round), asked[SLOTS] = {0};
    CHECK_INT(round_fail(s.round, s.answers[0].ticket, E_UNAVAILABLE, "gone"), 0);
    CHECK(round_n_parcels(s.round) > first);
    for (int i = first; i < round_n_parcels(s.round); i++) {
        const struct round_parcel *p = round_parcel(s.round, i);
        CHECK_INT(p->reason, REASON_RETRY);
        CHECK(p->node != lost->node);
        for (int k = 0; k < p->n_routes; k++)
            asked[p->slots[k]]++;
    }
    for (int k = 0; k < lost->n_routes; k++)
        CHECK_INT(asked[lost->slots[k]]--, 1);
    for (int k = 0; k < SLOTS; k++)
        CHECK_INT(asked[k], 0);
    finish(&s);
    check_bits(s.w, s.round, COMBINE_EXPERT);
    close_scene(&s);
}

TEST(round_counts_the_first_whole_answer_to_a_late_parcel)
{
    for (int late_first = 0; late_first < 2; late_first++) {
        struct scene s;
        open_scene(&s, COMBINE_FIXED, 2);
        struct answer late = s.answers[0];
        late.reply.data = late.bytes + 1;
        int first = s.n;
        int n_more = round_late(s.round, late.ticket);
        CHECK(n_more > 0);
        CHECK_INT(round_late(s.round, late.ticket), 0);
        s.n = send_all(s.round, s.w, s.answers, s.n);
        CHECK_INT(s.n, first + n_more);
        if (late_first) {
            CHECK_INT(round_take(s.round, late.ticket, &late.reply, NULL), 0);
            for (int i = first; i < s.n; i++) {
                CHECK_INT(round_parcel(s.round, s.answers[i].ticket.parcel)->state, PARCEL_DROPPED);
                CHECK_INT(round_take(s.round, s.answers[i].ticket, &s.answers[i].reply, NULL),
                          E_STALE);
            }
        } else {
            CHECK_INT(round_take(s.round, s.answers[first].ticket, &s.answers[first].reply, NULL),
                      0);
            CHECK_INT(round_parcel(s.round, late.ticket.parcel)->state, PARCEL_DROPPED);
            CHECK_INT(round_take(s.round, late.ticket, &late.reply, NULL), E_STALE);
        }
        finish(&s);
        check_bits(s.w, s.round, COMBINE_FIXED);
        close_scene(&s);
    }
}

TEST(round_hedges_only_with_nodes_of_good_standing)
{
    struct scene s;
    open_scene(&s, COMBINE_FIXED, 2);
    for (int i = 0; i < s.w->n_nodes; i++)
        round_stand(s.round, i, STANDING_DOUBTFUL);
    CHECK_INT(round_hedge(s.round, s.answers[0].ticket), 0);
    CHECK(round_late(s.round, s.answers[0].ticket) > 0);
    finish(&s);
    check_bits(s.w, s.round, COMBINE_FIXED);
    close_scene(&s);
}

/* The hedge fails: its selections are still out at the first node, and nobody else is asked.
 * Then the first fails too. */
TEST(round_falls_back_when_hedge_and_parcel_fail)
{
    struct scene s;
    open_scene(&s, COMBINE_FIXED, 3);
    int first = s.n;
    CHECK(round_hedge(s.round, s.answers[0].ticket) > 0);
    s.n = send_all(s.round, s.w, s.answers, s.n);
    int n_parcels = round_n_parcels(s.round);
    for (int i = first; i < n_parcels; i++)
        CHECK_INT(round_fail(s.round, s.answers[i].ticket, E_DEADLINE, ""), 0);
    CHECK_INT(round_n_parcels(s.round), n_parcels);
    CHECK_INT(round_fail(s.round, s.answers[0].ticket, E_UNAVAILABLE, "gone"), 0);
    CHECK(round_n_parcels(s.round) > n_parcels || round_n_orphans(s.round) > 0);
    finish(&s);
    if (round_state(s.round) == ROUND_WAITING) {
        CHECK(round_retry(s.round) > 0);
        s.n = send_all(s.round, s.w, s.answers, 0);
        finish(&s);
    }
    check_bits(s.w, s.round, COMBINE_FIXED);
    close_scene(&s);
}

TEST(round_waits_for_a_table_and_goes_on_with_what_is_missing)
{
    struct scene s;
    open_scene(&s, COMBINE_FIXED, 1);
    int dead = round_parcel(s.round, s.answers[0].ticket.parcel)->node;
    int n_wanted = 0;
    for (int i = 0; i < s.n; i++) {
        const struct round_parcel *p = round_parcel(s.round, s.answers[i].ticket.parcel);
        n_wanted += p->node == dead ? p->n_routes : 0;
        if (p->node == dead)
            CHECK_INT(round_fail(s.round, s.answers[i].ticket, E_UNAVAILABLE, "gone"), 0);
    }
    CHECK_INT(round_n_orphans(s.round), n_wanted);
    CHECK_INT(round_state(s.round), s.n > 1 ? ROUND_RUNNING : ROUND_WAITING);
    take_all_but(s.round, s.answers, s.n, dead);
    CHECK_INT(round_state(s.round), ROUND_WAITING);
    /* The numbers change: the dead node is gone, all others move up, one is new. */
    struct round_node nodes[NODES];
    int32_t moved[NODES];
    int n_nodes = 0;
    for (int i = 0; i < s.w->n_nodes; i++) {
        moved[i] = i == dead ? -1 : n_nodes;
        if (i != dead)
            nodes[n_nodes++] = s.w->nodes[i];
    }
    nodes[n_nodes++] = (struct round_node){.name = "new", .max_rows = 2};
    for (int i = 0; i < EXPERTS; i++) {
        int32_t to = moved[s.w->holders[i][0]];
        s.w->holders[i][0] = (uint16_t)(to >= 0 ? to : n_nodes - 1);
    }
    round_change(s.round, &(struct round_change){.nodes = nodes,
                                                 .n_nodes = n_nodes,
                                                 .moved = moved,
                                                 .holders = s.w->holders[0],
                                                 .n_replicas = REPLICAS});
    CHECK_INT(round_state(s.round), ROUND_RUNNING);
    int n_asked = 0;
    for (int i = 0; i < round_n_parcels(s.round); i++) {
        CHECK_INT(round_parcel(s.round, i)->node, n_nodes - 1);
        n_asked += round_parcel(s.round, i)->n_routes;
    }
    CHECK_INT(n_asked, n_wanted);
    s.n = send_all(s.round, s.w, s.answers, 0);
    finish(&s);
    check_bits(s.w, s.round, COMBINE_FIXED);
    close_scene(&s);
}

/* Answers of a table's nodes that stay count under the new numbers. */
TEST(round_keeps_what_is_out_when_the_table_changes)
{
    struct scene s;
    open_scene(&s, COMBINE_FIXED, 2);
    struct round_node nodes[NODES];
    int32_t moved[NODES];
    int n = s.w->n_nodes;
    for (int i = 0; i < n; i++) {
        moved[i] = n - 1 - i;
        nodes[n - 1 - i] = s.w->nodes[i];
    }
    for (int i = 0; i < EXPERTS; i++)
        for (int k = 0; k < 2; k++)
            s.w->holders[i][k] = (uint16_t)moved[s.w->holders[i][k]];
    int was = round_parcel(s.round, s.answers[0].ticket.parcel)->node;
    round_change(s.round, &(struct round_change){.nodes = nodes,
                                                 .n_nodes = n,
                                                 .moved = moved,
                                                 .holders = s.w->holders[0],
                                                 .n_replicas = REPLICAS});
    CHECK_INT(round_parcel(s.round, s.answers[0].ticket.parcel)->node, moved[was]);
    CHECK_INT(round_next(s.round, -1), -1);
    finish(&s);
    check_bits(s.w, s.round, COMBINE_FIXED);
    close_scene(&s);
}

TEST(round_leaves_lost_experts_out_and_scales_the_rest)
{
    struct scene s;
    open_scene(&s, COMBINE_EXPERT, 1);
    int dead = round_parcel(s.round, s.answers[0].ticket.parcel)->node;
    for (int i = 0; i < s.n; i++)
        if (round_parcel(s.round, s.answers[i].ticket.parcel)->node == dead)
            CHECK_INT(round_fail(s.round, s.answers[i].ticket, E_UNAVAILABLE, "gone"), 0);
    take_all_but(s.round, s.answers, s.n, dead);
    int n_orphans = round_n_orphans(s.round);
    round_leave_out(s.round);
    CHECK_INT(round_n_left_out(s.round), n_orphans);
    CHECK_INT(round_state(s.round), ROUND_DONE);
    float got[MAX_ROWS * HIDDEN];
    memcpy(got, s.w->x, sizeof(got));
    round_fold(s.round, got);
    for (int row = 0; row < s.w->rows.n_rows; row++)
        for (int i = 0; i < HIDDEN; i++) {
            double all = 0, rest = 0, sum = 0;
            for (int k = row * TOP_K; k < (row + 1) * TOP_K; k++) {
                all += (double)s.w->weights[k];
                if (is_holder(s.w, s.w->experts[k], dead))
                    continue;
                rest += (double)s.w->weights[k];
                sum += (double)s.w->weights[k] * (double)s.w->outputs[row][s.w->experts[k]][i];
            }
            double want = (double)s.w->x[row * HIDDEN + i] + (rest > 0 ? sum * all / rest : 0);
            /* float sums of three products of up to 4e6 */
            CHECK_NEAR(got[row * HIDDEN + i], want,
                       1e-5 * (1 + fabs(sum * all / (rest + 1e-9))) + 1e-5);
        }
    close_scene(&s);
}

TEST(round_believes_a_nan_only_when_two_say_so)
{
    for (int truth = 0; truth < 2; truth++) {
        struct scene s;
        open_scene(&s, COMBINE_EXPERT, 2);
        const struct round_parcel *p = round_parcel(s.round, s.answers[0].ticket.parcel);
        int liar = p->node, row = p->rows[0], expert = p->experts[0];
        struct answer wrong = s.answers[0];
        wrong.reply.data = wrong.bytes + 1;
        uint32_t infinity = 0x7f800000;
        memcpy(wrong.bytes + 1 + 5 * sizeof(float), &infinity, sizeof(infinity));
        if (truth)
            memcpy(&s.w->outputs[row][expert][5], &infinity, sizeof(infinity));
        struct err e = {0};
        CHECK_INT(round_take(s.round, wrong.ticket, &wrong.reply, &e), E_CORRUPT);
        CHECK_HAS(e.text, "not finite");
        CHECK_INT(round_fail(s.round, wrong.ticket, E_CORRUPT, e.text), 0);
        finish(&s);
        CHECK_INT(round_take_liar(s.round), truth ? -1 : liar);
        check_bits(s.w, s.round, COMBINE_EXPERT);
        close_scene(&s);
    }
}

TEST(round_stops_at_what_every_node_would_say)
{
    struct scene s;
    open_scene(&s, COMBINE_FIXED, 2);
    CHECK_INT(round_fail(s.round, s.answers[0].ticket, E_PRECONDITION, "another model"), 0);
    CHECK_INT(round_state(s.round), ROUND_FAILED);
    CHECK_INT(round_error(s.round)->code, E_PRECONDITION);
    CHECK_HAS(round_error(s.round)->text, "another model");
    round_abandon(s.round);
    close_scene(&s);
}

/* Nodes that fail again and again use the room for parcels up; the round then tidies up. */
TEST(round_may_be_retried_without_end)
{
    struct scene s;
    open_scene(&s, COMBINE_FIXED, 1);
    for (int i = 0; i < 100; i++) {
        for (int k = 0; k < s.n; k++)
            CHECK_INT(round_fail(s.round, s.answers[k].ticket, E_BUSY, "full"), 0);
        CHECK_INT(round_state(s.round), ROUND_WAITING);
        struct round_ticket old = s.answers[0].ticket;
        CHECK(round_retry(s.round) > 0);
        s.n = send_all(s.round, s.w, s.answers, 0);
        CHECK_INT(round_take(s.round, old, &s.answers[0].reply, NULL), E_STALE);
    }
    finish(&s);
    check_bits(s.w, s.round, COMBINE_FIXED);
    close_scene(&s);
}

TEST(round_gives_up_with_node_layer_and_experts_and_forgets_it)
{
    struct scene s;
    open_scene(&s, COMBINE_FIXED, 1);
    CHECK_INT(round_fail(s.round, s.answers[0].ticket, E_DEADLINE, "no answer in 500 ms"), 0);
    CHECK(round_n_orphans(s.round) > 0);
    round_give_up(s.round, "waited 60000 ms");
    CHECK_INT(round_state(s.round), ROUND_FAILED);
    CHECK_INT(round_error(s.round)->code, E_DEADLINE);
    char expect[64];
    const struct round_parcel *p = round_parcel(s.round, s.answers[0].ticket.parcel);
    snprintf(expect, sizeof(expect), "node %s: layer 3, experts %d", names[p->node], p->experts[0]);
    CHECK_HAS(round_error(s.round)->text, expect);
    CHECK_HAS(round_error(s.round)->text, "no answer in 500 ms (waited 60000 ms)");
    CHECK_INT(round_fail(s.round, s.answers[0].ticket, E_DEADLINE, "again"), E_STALE);
    CHECK_INT(round_take(s.round, s.answers[0].ticket, &s.answers[0].reply, NULL), E_STALE);
    CHECK_INT(round_next(s.round, -1), -1);
    struct answer late = s.answers[0];
    late.reply.data = late.bytes + 1;
    round_abandon(s.round);
    /* The next round is not touched by what comes late. */
    round_begin(s.round, &s.plan);
    s.n = send_all(s.round, s.w, s.answers, 0);
    CHECK_INT(round_take(s.round, late.ticket, &late.reply, NULL), E_STALE);
    CHECK_INT(round_fail(s.round, late.ticket, E_UNAVAILABLE, "late"), E_STALE);
    CHECK_INT(round_state(s.round), ROUND_RUNNING);
    finish(&s);
    check_bits(s.w, s.round, COMBINE_FIXED);
    close_scene(&s);
}

TEST(round_without_a_holder_names_the_experts)
{
    struct rng r = test_rng();
    struct world *w = mem_alloc(sizeof(*w));
    struct round *round = new_round();
    make_world(w, &r);
    place_once(w);
    round_install(round, w->nodes, w->n_nodes);
    for (int i = 0; i < EXPERTS; i++)
        w->holders[i][0] = ROUND_NO_HOLDER;
    struct round_plan plan = plan_of(w, COMBINE_FIXED);
    char expect[64];
    snprintf(expect, sizeof(expect), "layer 3, experts %d", w->experts[0]);
    round_begin(round, &plan);
    CHECK_INT(round_state(round), ROUND_WAITING);
    CHECK_INT(round_n_orphans(round), w->rows.n_rows * TOP_K);
    round_give_up(round, "waited 5 ms");
    CHECK_INT(round_error(round)->code, E_UNAVAILABLE);
    CHECK_HAS(round_error(round)->text, expect);
    CHECK_HAS(round_error(round)->text, "on no node (waited 5 ms)");
    round_abandon(round);
    round_free(&round);
    mem_free(w);
}
