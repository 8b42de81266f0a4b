/* tests/sim/test_round_sim.c - rounds in simulated time: answers are delayed, lost, doubled,
 * overtaken and come after their round has ended; nodes die and come back, tables change in the
 * middle, parcels are hedged.  Every round has the bits of one without any trouble, or fails by
 * its rule: when an expert stayed without a node for WAIT_US.
 *
 * The same with a node that lies.  Where every answer is checked no wrong bit is ever folded, and
 * a dispute has the liar in it; where one in some is, what is folded may be wrong. */
#include "attn_node/round.h"

#include <stdio.h>

#include "base/mem.h"
#include "engine/moe_fold.h"
#include "tests/lib/test.h"

enum { ROWS = 8, TOP_K = 4, HIDDEN = 16, EXPERTS = 24, NODES = 6, SLOTS = ROWS * TOP_K };
enum { REPLICAS = 3, LATE_US = 400, TIMEOUT_US = 2000, WAIT_US = 2000, MAX_EVENTS = 4096 };

enum event_kind { REPLY, DISCONNECT, HEDGE, LATE, TIMEOUT };
struct event {
    int64_t at_us;
    enum event_kind kind;
    struct round_ticket ticket;
    int node, n_rows, n_routes;
    enum combine_mode mode;
    uint32_t overflow[ROWS];
    int n_overflow;
    char bytes[SLOTS * HIDDEN * 4];
};

struct sim {
    struct rng rng;
    int64_t now_us;
    struct event *events[MAX_EVENTS];
    int n_events;
    bool is_dead[NODES]; /* by name: node i of a table is names[order[i]] */
    int liar;            /* by name; -1: none */
    bool is_steady;      /* it says the same wrong thing each time */
    int64_t check_one_in;
    int order[NODES];
    struct round_node nodes[NODES];
    uint16_t holders[EXPERTS][REPLICAS];
    int64_t waiting_since_us; /* 0: nothing is without a node */
    bool is_hopeless;         /* nothing helps in this round */
    struct round *round;

    struct moe_rows rows;
    struct routing routing;
    uint16_t experts[SLOTS];
    float weights[SLOTS];
    int16_t exponents[ROWS];
    float outputs[ROWS][EXPERTS][HIDDEN];
    int n_done, n_failed, n_wrong, n_disputes, n_stale, n_hedges, n_late, n_waits, n_tables;
};

static void post(struct sim *s, struct event *e, int64_t delay_us)
{
    CHECK(s->n_events < MAX_EVENTS);
    e->at_us = s->now_us + delay_us;
    s->events[s->n_events++] = e;
}

static struct event *next_event(struct sim *s)
{
    int first = 0;
    CHECK(s->n_events > 0);
    for (int i = 1; i < s->n_events; i++)
        if (s->events[i]->at_us < s->events[first]->at_us)
            first = i;
    struct event *e = s->events[first];
    s->events[first] = s->events[--s->n_events];
    if (e->at_us > s->now_us)
        s->now_us = e->at_us;
    return e;
}

static void compute_fixed(const struct sim *s, const struct round_parcel *p, struct event *e)
{
    const struct kernels *k = kernels_named("portable");
    for (int i = 0; i < p->n_rows; i++) {
        int32_t sum[HIDDEN] = {0};
        int over = 0;
        for (int j = p->first_route[i]; j < p->first_route[i + 1]; j++)
            over += k->fixed_add(s->outputs[p->rows[i]][p->experts[j]], p->weights[j],
                                 p->exponents[i], HIDDEN, sum);
        memcpy(e->bytes + (size_t)i * sizeof(sum), sum, sizeof(sum));
        if (over > 0)
            e->overflow[e->n_overflow++] = (uint32_t)i;
    }
}

static void compute(const struct sim *s, const struct round_parcel *p, struct event *e)
{
    size_t bytes = HIDDEN * sizeof(float);
    e->mode = p->mode;
    e->n_rows = p->n_rows;
    e->n_routes = p->n_routes;
    if (p->mode == COMBINE_FIXED) {
        compute_fixed(s, p, e);
        return;
    }
    for (int i = 0; i < p->n_rows; i++)
        for (int j = p->first_route[i]; j < p->first_route[i + 1]; j++)
            memcpy(e->bytes + (size_t)j * bytes, s->outputs[p->rows[i]][p->experts[j]], bytes);
}

/* One answer in two is wrong somewhere, or off the grid; or every answer with expert 3 is. */
static void lie(struct sim *s, const struct round_parcel *p, struct event *e)
{
    uint32_t *values = (uint32_t *)(void *)e->bytes;
    if (s->is_steady) {
        for (int i = 0; i < p->n_rows; i++)
            for (int j = p->first_route[i]; j < p->first_route[i + 1]; j++)
                if (p->experts[j] == 3)
                    values[(p->mode == COMBINE_EXPERT ? j : i) * HIDDEN] ^= 4;
        return;
    }
    if (rng_below(&s->rng, 2) == 0)
        return;
    if (p->mode == COMBINE_FIXED && rng_below(&s->rng, 4) == 0) {
        e->n_overflow = e->n_overflow == 0; /* row 0, or none any more */
        e->overflow[0] = 0;
        return;
    }
    int n = p->mode == COMBINE_EXPERT ? p->n_routes : p->n_rows;
    values[rng_below(&s->rng, (uint64_t)n * HIDDEN)] ^= 1u << rng_below(&s->rng, 20);
}

static struct event *new_event(enum event_kind kind, struct round_ticket t)
{
    struct event *e = mem_alloc(sizeof(*e));
    e->kind = kind;
    e->ticket = t;
    return e;
}

/* What the network makes of one parcel: an answer (perhaps late, perhaps twice), silence,
 * or a broken connection.  The deadlines come in any case. */
static void send_parcel(struct sim *s, int index)
{
    const struct round_parcel *p = round_parcel(s->round, index);
    bool is_dead = s->is_dead[s->order[p->node]];
    struct round_ticket t = round_sent(s->round, index);
    post(s, new_event(TIMEOUT, t), TIMEOUT_US);
    post(s, new_event(LATE, t), LATE_US);
    if (rng_below(&s->rng, 4) == 0)
        post(s, new_event(HEDGE, t), (int64_t)rng_below(&s->rng, 200));
    uint64_t fate = rng_below(&s->rng, 100);
    if (is_dead && fate < 70) {
        post(s, new_event(DISCONNECT, t), 1 + (int64_t)rng_below(&s->rng, 20));
        return;
    }
    if (is_dead || fate < 3)
        return;
    int copies = fate < 20 ? 2 : 1;
    for (int i = 0; i < copies; i++) {
        struct event *e = new_event(REPLY, t);
        compute(s, p, e);
        if (s->order[p->node] == s->liar)
            lie(s, p, e);
        /* Some answers come after the deadlines, into a later round. */
        post(s, e, 10 + (int64_t)rng_below(&s->rng, fate > 90 ? 2 * TIMEOUT_US : 300));
    }
}

static void take_reply(struct sim *s, struct event *e)
{
    struct round_reply r = {.mode = e->mode,
                            .n_rows = e->n_rows,
                            .data = e->bytes,
                            .bytes = (size_t)(e->mode == COMBINE_EXPERT ? e->n_routes : e->n_rows) *
                                     HIDDEN * 4,
                            .overflow_rows = e->overflow,
                            .n_overflow = e->n_overflow};
    int rc = round_take(s->round, e->ticket, &r, NULL);
    CHECK(rc == 0 || rc == E_STALE);
    s->n_stale += rc == E_STALE;
}

static void deliver(struct sim *s, struct event *e)
{
    switch (e->kind) {
    case REPLY:
        take_reply(s, e);
        break;
    case HEDGE:
        s->n_hedges += round_hedge(s->round, e->ticket) > 0;
        break;
    case LATE:
        s->n_late += round_late(s->round, e->ticket) > 0;
        break;
    case DISCONNECT:
        round_fail(s->round, e->ticket, E_UNAVAILABLE, "the connection broke");
        break;
    case TIMEOUT:
        round_fail(s->round, e->ticket, E_DEADLINE, "no answer in time");
        break;
    }
    mem_free(e);
}

static void fold_without_trouble(const struct sim *s, enum combine_mode mode, float *x)
{
    const struct kernels *k = kernels_named("portable");
    for (int row = 0; row < ROWS; row++) {
        int32_t sum[HIDDEN] = {0};
        const void *slots[TOP_K];
        int over = 0;
        for (int i = 0; i < TOP_K; i++) {
            slots[i] = s->outputs[row][s->experts[row * TOP_K + i]];
            over +=
                k->fixed_add(slots[i], s->weights[row * TOP_K + i], s->exponents[row], HIDDEN, sum);
        }
        if (mode == COMBINE_EXPERT || over > 0)
            moe_fold_expert(slots, s->weights + (size_t)row * TOP_K, TOP_K, HIDDEN,
                            x + (size_t)row * HIDDEN);
        else
            moe_fold_fixed(k, sum, s->exponents[row], HIDDEN, x + (size_t)row * HIDDEN);
    }
}

static int live_node(const struct sim *s)
{
    for (int i = 0; i < NODES; i++)
        if (!s->is_dead[s->order[i]])
            return i;
    return 0;
}

/* Nodes in another order and number, experts at living nodes for the most part. */
static void make_table(struct sim *s)
{
    static const char *const names[NODES] = {"n-0", "n-1", "n-2", "n-3", "n-4", "n-5"};
    for (int i = 0; i < NODES; i++)
        s->order[i] = i;
    for (int i = NODES - 1; i > 0; i--) {
        int k = (int)rng_below(&s->rng, (uint64_t)i + 1), kept = s->order[i];
        s->order[i] = s->order[k];
        s->order[k] = kept;
    }
    for (int i = 0; i < NODES; i++)
        s->nodes[i] = (struct round_node){.name = names[s->order[i]],
                                          .max_rows = 1 + (int)rng_below(&s->rng, ROWS),
                                          .standing = rng_below(&s->rng, 5) == 0 ? STANDING_DOUBTFUL
                                                                                 : STANDING_GOOD};
    for (int i = 0; i < EXPERTS; i++) {
        int n = 1 + (int)rng_below(&s->rng, REPLICAS), first = (int)rng_below(&s->rng, NODES);
        for (int k = 0; k < REPLICAS; k++) {
            s->holders[i][k] = k < n ? (uint16_t)((first + k) % NODES) : (uint16_t)ROUND_NO_HOLDER;
            if (k < n && s->is_dead[s->order[s->holders[i][k]]] && rng_below(&s->rng, 8) > 0)
                s->holders[i][k] = (uint16_t)(k > 0 ? ROUND_NO_HOLDER : live_node(s));
            if (s->holders[i][k] == ROUND_NO_HOLDER)
                n = k;
        }
    }
    s->n_tables++;
}

static void revive(struct sim *s)
{
    for (int i = 0; i < NODES; i++)
        s->is_dead[i] = s->is_dead[i] && rng_below(&s->rng, 3) > 0;
}

static void change_table(struct sim *s)
{
    int32_t moved[NODES], was[NODES];
    for (int i = 0; i < NODES; i++)
        was[i] = s->order[i];
    make_table(s);
    for (int i = 0; i < NODES; i++) {
        moved[i] = -1;
        for (int k = 0; k < NODES; k++)
            if (s->order[k] == was[i] && (was[i] == s->liar || rng_below(&s->rng, 10) > 0))
                moved[i] = k;
    }
    round_change(s->round, &(struct round_change){.nodes = s->nodes,
                                                  .n_nodes = NODES,
                                                  .moved = moved,
                                                  .holders = s->holders[0],
                                                  .n_replicas = REPLICAS});
}

/* What the owner does about experts without a node: a node comes back, a table comes, or the
 * time is up. */
static void mind_orphans(struct sim *s)
{
    if (round_n_orphans(s->round) == 0) {
        s->waiting_since_us = 0;
        return;
    }
    if (s->waiting_since_us == 0) {
        s->waiting_since_us = s->now_us;
        s->n_waits++;
    }
    if (s->now_us - s->waiting_since_us > WAIT_US) {
        round_give_up(s->round, "waited");
        return;
    }
    if (round_state(s->round) == ROUND_WAITING)
        s->now_us += 500;
    if (!s->is_hopeless && rng_below(&s->rng, 10) == 0)
        revive(s);
    if (!s->is_hopeless && rng_below(&s->rng, 6) == 0)
        change_table(s);
    else if (round_state(s->round) == ROUND_WAITING || rng_below(&s->rng, 10) == 0)
        round_retry(s->round);
}

/* One layer: to its good or bad end.  Events of older rounds come in between. */
static void run_round(struct sim *s, enum combine_mode mode)
{
    float got[ROWS * HIDDEN], want[ROWS * HIDDEN];
    for (int i = 0; i < ROWS * HIDDEN; i++)
        got[i] = want[i] = (float)rng_normal(&s->rng);
    struct round_plan plan = {.rows = &s->rows,
                              .mode = mode,
                              .holders = s->holders[0],
                              .n_replicas = REPLICAS,
                              .check_one_in = s->check_one_in};
    struct round_dispute d;
    round_begin(s->round, &plan);
    s->waiting_since_us = 0;
    s->is_hopeless = rng_below(&s->rng, 20) == 0;
    if (s->is_hopeless && rng_below(&s->rng, 3) == 0)
        memset(s->is_dead, true,
               sizeof(s->is_dead)); /* so that some rounds do fail, whatever the seed */
    while (round_state(s->round) == ROUND_RUNNING || round_state(s->round) == ROUND_WAITING) {
        for (int i = round_next(s->round, -1); i >= 0; i = round_next(s->round, i))
            send_parcel(s, i);
        if (round_state(s->round) == ROUND_RUNNING)
            deliver(s, next_event(s));
        if (round_state(s->round) == ROUND_RUNNING && rng_below(&s->rng, 100) == 0)
            change_table(s);
        if (round_state(s->round) == ROUND_RUNNING || round_state(s->round) == ROUND_WAITING)
            mind_orphans(s);
    }
    if (round_state(s->round) == ROUND_DONE) {
        round_fold(s->round, got);
        fold_without_trouble(s, mode, want);
        bool is_right = memcmp(got, want, sizeof(got)) == 0;
        CHECK(is_right || (s->liar >= 0 && s->check_one_in != 1));
        s->n_wrong += !is_right;
        s->n_done++;
    } else if (round_find_dispute(s->round, &d)) {
        CHECK(s->liar >= 0 && s->check_one_in > 0);
        bool has_liar = d.first.node < 0 || s->order[d.first.node] == s->liar;
        for (int i = 0; i < d.n_parts; i++)
            has_liar |= d.parts[i].node < 0 || s->order[d.parts[i].node] == s->liar;
        CHECK(has_liar);
        round_abandon(s->round);
        s->n_disputes++;
    } else {
        CHECK(s->now_us - s->waiting_since_us > WAIT_US);
        CHECK(strstr(round_error(s->round)->text, "experts ") ||
              strstr(round_error(s->round)->text, "no second node"));
        CHECK_HAS(round_error(s->round)->text, "waited");
        round_abandon(s->round);
        s->n_failed++;
    }
}

static void make_step(struct sim *s)
{
    for (int slot = 0; slot < SLOTS; slot++) {
        /* Distinct experts of a row: a random start and a stride. */
        int row = slot / TOP_K, k = slot % TOP_K;
        s->experts[slot] = k == 0 ? (uint16_t)rng_below(&s->rng, EXPERTS)
                                  : (uint16_t)((s->experts[row * TOP_K] + 5 * k) % EXPERTS);
        s->weights[slot] = (float)rng_unit(&s->rng);
    }
    for (int row = 0; row < ROWS; row++) {
        s->exponents[row] = -20;
        for (int e = 0; e < EXPERTS; e++)
            for (int i = 0; i < HIDDEN; i++)
                s->outputs[row][e][i] =
                    (rng_below(&s->rng, 3000) == 0 ? 1e6f : 1) * (float)rng_normal(&s->rng);
    }
}

static struct sim *open_sim(void)
{
    struct sim *s = mem_alloc(sizeof(*s));
    struct round_limits limits = {.kernels = kernels_named("portable"),
                                  .max_rows = ROWS,
                                  .top_k = TOP_K,
                                  .hidden = HIDDEN,
                                  .n_experts = EXPERTS};
    s->rng = test_rng();
    s->liar = -1;
    s->round = round_new(&limits);
    s->routing = (struct routing){
        .n_rows = ROWS, .top_k = TOP_K, .experts = s->experts, .weights = s->weights};
    s->rows = (struct moe_rows){
        .n_rows = ROWS,
        .hidden = HIDDEN,
        .rows = {.n_rows = ROWS, .cols = HIDDEN, .f32 = s->outputs[0][0], .f32_stride = HIDDEN},
        .exponents = s->exponents,
        .routing = &s->routing};
    return s;
}

static void close_sim(struct sim *s)
{
    while (s->n_events > 0)
        deliver(s, next_event(s));
    round_free(&s->round);
    mem_free(s);
}

static void run_step(struct sim *s, int step)
{
    if (step % 4 == 0) {
        revive(s);
        make_table(s);
        round_install(s->round, s->nodes, NODES);
    }
    if (rng_below(&s->rng, 3) == 0)
        s->is_dead[rng_below(&s->rng, NODES)] = true;
    make_step(s);
    for (int layer = 0; layer < 3; layer++) {
        s->rows.layer = layer;
        run_round(s, step % 2 ? COMBINE_FIXED : COMBINE_EXPERT);
    }
}

TEST_WITHIN(round_sim_ends_with_the_right_bits_or_a_named_failure, 120)
{
    struct sim *s = open_sim();
    for (int step = 0; step < 700; step++)
        run_step(s, step);
    test_say("%d rounds done, %d failed; %d answers late or twice, %d hedges, %d late parcels, "
             "%d waits, %d tables",
             s->n_done, s->n_failed, s->n_stale, s->n_hedges, s->n_late, s->n_waits, s->n_tables);
    CHECK(s->n_done > 1500 && s->n_failed > 0 && s->n_stale > 0);
    CHECK(s->n_hedges > 100 && s->n_late > 100 && s->n_waits > 100 && s->n_tables > 300);
    close_sim(s);
}

static void lie_through(int64_t check_one_in, bool is_steady, struct sim *out)
{
    struct sim *s = open_sim();
    s->check_one_in = check_one_in;
    s->is_steady = is_steady;
    for (int step = 0; step < 300; step++) {
        s->liar = (int)rng_below(&s->rng, NODES + 1) - 1;
        run_step(s, step);
    }
    test_say("one check in %d, %s: %d rounds done, %d of them wrong, %d disputes, %d failed, "
             "%d waits",
             (int)check_one_in, is_steady ? "steady lies" : "lies", s->n_done, s->n_wrong,
             s->n_disputes, s->n_failed, s->n_waits);
    *out = *s;
    close_sim(s);
}

TEST_WITHIN(round_sim_never_folds_a_lie_where_every_answer_is_checked, 120)
{
    struct sim s;
    for (int steady = 0; steady < 2; steady++) {
        lie_through(0, steady, &s);
        CHECK(s.n_wrong > 20 && s.n_disputes == 0);
        lie_through(2, steady, &s);
        CHECK(s.n_wrong > 5 && s.n_disputes > 5);
        lie_through(1, steady, &s);
        CHECK(s.n_wrong == 0 && s.n_disputes > 20 && s.n_done > 50);
    }
}
