/* tests/unit/test_round.c - the books of one layer's trip: every slot is asked once, every
 * answer counts once, and the sum has the bits of the in-process fold whatever the order. */
#include "attn_node/round.h"

#include <stdio.h>

#include "base/mem.h"
#include "engine/moe_fold.h"
#include "tests/lib/test.h"

enum { MAX_ROWS = 13, TOP_K = 3, HIDDEN = 20, EXPERTS = 12, NODES = 7, SLOTS = MAX_ROWS * TOP_K };

/* Rows, their routing, and what every expert would say about every row. */
struct world {
    struct moe_rows rows;
    struct routing routing;
    uint16_t experts[SLOTS];
    float weights[SLOTS];
    int16_t exponents[MAX_ROWS];
    float x[MAX_ROWS * HIDDEN];
    float outputs[MAX_ROWS][EXPERTS][HIDDEN];
    uint16_t holder[EXPERTS];
    struct round_node nodes[NODES];
    int n_nodes;
};

static const char *const names[NODES] = {"e-0", "e-1", "e-2", "e-3", "e-4", "e-5", "e-6"};

static void place_experts(struct world *w, struct rng *r)
{
    w->n_nodes = 1 + (int)rng_below(r, NODES);
    for (int i = 0; i < w->n_nodes; i++)
        w->nodes[i] = (struct round_node){.name = names[i], .max_rows = 1 + (int)rng_below(r, 9)};
    for (int i = 0; i < EXPERTS; i++)
        w->holder[i] = (uint16_t)rng_below(r, (uint64_t)w->n_nodes);
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
                             .hidden = HIDDEN};
    return round_new(&l);
}

enum { MAX_OUT = 4 * SLOTS };

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
    struct round_plan plan = {.rows = &w->rows, .mode = mode, .holder = w->holder};
    CHECK_INT(round_begin(round, &plan, &e), 0);
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
        struct round_plan plan = {.rows = &w->rows, .mode = COMBINE_FIXED, .holder = w->holder};
        CHECK_INT(round_begin(round, &plan, NULL), 0);
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
                    CHECK_INT(w->holder[p->experts[t]], p->node);
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
    struct round_plan plan = {.rows = &w->rows, .mode = COMBINE_FIXED, .holder = w->holder};
    CHECK_INT(round_begin(round, &plan, NULL), 0);
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

TEST(round_fails_with_node_layer_and_experts_and_forgets_it)
{
    struct rng r = test_rng();
    struct answer *answers = mem_array(MAX_OUT, sizeof(*answers));
    struct world *w = mem_alloc(sizeof(*w));
    struct round *round = new_round();
    make_world(w, &r);
    round_install(round, w->nodes, w->n_nodes);
    struct round_plan plan = {.rows = &w->rows, .mode = COMBINE_FIXED, .holder = w->holder};
    CHECK_INT(round_begin(round, &plan, NULL), 0);
    send_all(round, w, answers, 0);
    CHECK_INT(round_fail(round, answers[0].ticket, E_DEADLINE, "no answer in 500 ms"), 0);
    CHECK_INT(round_state(round), ROUND_FAILED);
    CHECK_INT(round_error(round)->code, E_DEADLINE);
    char expect[64];
    const struct round_parcel *p = round_parcel(round, answers[0].ticket.parcel);
    snprintf(expect, sizeof(expect), "node %s: layer 3, experts %d", names[p->node], p->experts[0]);
    CHECK_HAS(round_error(round)->text, expect);
    CHECK_HAS(round_error(round)->text, "no answer in 500 ms");
    CHECK_INT(round_fail(round, answers[0].ticket, E_DEADLINE, "again"), E_STALE);
    CHECK_INT(round_take(round, answers[0].ticket, &answers[0].reply, NULL), E_STALE);
    CHECK_INT(round_next(round, -1), -1);
    struct answer late = answers[0];
    late.reply.data = late.bytes + 1;
    round_abandon(round);
    /* The next round is not touched by what comes late. */
    CHECK_INT(round_begin(round, &plan, NULL), 0);
    send_all(round, w, answers, 0);
    CHECK_INT(round_take(round, late.ticket, &late.reply, NULL), E_STALE);
    CHECK_INT(round_fail(round, late.ticket, E_UNAVAILABLE, "late"), E_STALE);
    CHECK_INT(round_state(round), ROUND_RUNNING);
    round_abandon(round);
    float got[MAX_ROWS * HIDDEN], want[MAX_ROWS * HIDDEN];
    memcpy(got, w->x, sizeof(got));
    memcpy(want, w->x, sizeof(want));
    play(round, w, COMBINE_FIXED, &r, answers, got);
    fold_locally(w, COMBINE_FIXED, want);
    CHECK_BYTES(got, want, (size_t)w->rows.n_rows * HIDDEN * sizeof(float));
    round_free(&round);
    mem_free(w);
    mem_free(answers);
}

TEST(round_without_a_holder_names_the_expert)
{
    struct rng r = test_rng();
    struct world *w = mem_alloc(sizeof(*w));
    struct round *round = new_round();
    make_world(w, &r);
    round_install(round, w->nodes, w->n_nodes);
    int gone = w->experts[0];
    w->holder[gone] = ROUND_NO_HOLDER;
    struct round_plan plan = {.rows = &w->rows, .mode = COMBINE_FIXED, .holder = w->holder};
    struct err e = {0};
    char expect[64];
    snprintf(expect, sizeof(expect), "expert %d of layer 3 is on no node", gone);
    CHECK_INT(round_begin(round, &plan, &e), E_UNAVAILABLE);
    CHECK_STR(e.text, expect);
    CHECK_INT(round_state(round), ROUND_IDLE);
    w->holder[gone] = 0;
    CHECK_INT(round_begin(round, &plan, &e), 0);
    round_abandon(round);
    round_free(&round);
    mem_free(w);
}
