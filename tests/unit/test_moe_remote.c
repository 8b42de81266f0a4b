/* tests/unit/test_moe_remote.c - the experts over the wire: real workers, real sockets, and
 * the bits of the in-process experts; whatever breaks is named, and the next step works. */
#include "attn_node/moe_remote.h"

#include <poll.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/sample.h"
#include "expert_node/store.h"
#include "expert_node/worker.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"

enum { LAYERS = 3, EXPERTS = 12, HIDDEN = 72, TOP_K = 3, N_TOKENS = 40, MAX_WORKERS = 5 };
enum { ROW_BYTES = (EXPERTS + 7) / 8, HOLDERS = LAYERS * EXPERTS };

/* ---- a cluster of worker threads ----------------------------------------------------- */

struct expert_worker {
    struct queue *views, *retired;
    struct store *store;
    struct worker *worker;
    char listen[64];
    uint64_t incarnation;
};

struct world {
    struct tiny_model model;
    struct format_set worker_formats; /* the model's, unless a test says otherwise */
    uint64_t fingerprint;
    struct expert_worker workers[MAX_WORKERS];
    int n_workers;
    bool has_two_lanes;       /* of steps that can be cut */
    uint32_t max_rows;        /* that the table says */
    uint16_t holder[HOLDERS]; /* the first; further replicas are on the next workers */
    int n_replicas;
    int first_node, n_unnamed; /* the table names that worker first, and not the last ones */
    struct fault_options faults[MAX_WORKERS];
    struct ladder ladder;
    uint64_t epoch;
    struct moe_remote *moe;
    int64_t guard_after; /* for the workers */
    bool is_guarded;     /* no step may allocate */
    bool (*take_tables)(void *ud);
    int n_asked_for_tables;
    bool has_lost_one; /* a worker was killed in the middle of a step */
    int32_t tokens[N_TOKENS];
};

static int replica_of(const struct world *w, int expert, int k)
{
    return w->holder[expert] == WIRE_NO_HOLDER ? WIRE_NO_HOLDER
                                               : (w->holder[expert] + k) % w->n_workers;
}

static bool is_holder(const struct world *w, int expert, int index)
{
    bool found = false;
    for (int k = 0; k < w->n_replicas; k++)
        found |= replica_of(w, expert, k) == index;
    return found;
}

static void load(struct world *w, int index)
{
    struct expert_worker *x = &w->workers[index];
    uint8_t bitmap[LAYERS * ROW_BYTES] = {0};
    for (int i = 0; i < HOLDERS; i++)
        if (is_holder(w, i, index))
            bitmap[i / EXPERTS * ROW_BYTES + i % EXPERTS / 8] |= (uint8_t)(1 << (i % EXPERTS % 8));
    struct wire_holdings h = {
        .version = w->epoch, .n_layers = LAYERS, .n_experts = EXPERTS, .bitmap = bitmap};
    struct err e = {0};
    struct store_outcome o;
    CHECK_INT(store_want(x->store, &h, &e), 0);
    struct pollfd p = {.fd = store_fd(x->store), .events = POLLIN};
    CHECK_INT(poll(&p, 1, 30000), 1);
    CHECK(store_take_outcome(x->store, &o));
    CHECK_INT(o.code, 0);
}

static void start_worker(struct world *w, int index)
{
    struct expert_worker *x = &w->workers[index];
    struct err e = {0};
    x->views = queue_new(4);
    x->retired = queue_new(4);
    x->incarnation += 1;
    struct store_options s = {.checkpoint = w->model.checkpoint,
                              .format = w->worker_formats.experts,
                              .kernels = w->model.compute.kernels,
                              .threads = 1,
                              .memory_bytes = 64 << 20,
                              .views = x->views,
                              .retired = x->retired};
    CHECK_INT(store_start(&s, &x->store, &e), 0);
    struct worker_options o = {.name = "expert",
                               .endpoint = x->listen,
                               .config = w->model.config,
                               .fingerprint = w->fingerprint,
                               .formats = w->worker_formats,
                               .kernels = w->model.compute.kernels,
                               .threads = w->guard_after ? 2 : 1,
                               .guard_after = w->guard_after,
                               .max_rows = 64,
                               .fault = w->faults[index],
                               .views = x->views,
                               .retired = x->retired};
    if (worker_start(&o, &x->worker, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    load(w, index);
}

static void stop_worker(struct world *w, int index)
{
    struct expert_worker *x = &w->workers[index];
    worker_stop(&x->worker);
    store_stop(&x->store);
    while (x->views && queue_pop(x->views))
        ;
    while (x->retired && queue_pop(x->retired))
        ;
    queue_free(&x->views);
    queue_free(&x->retired);
}

static void place_randomly(struct world *w, struct rng *r)
{
    for (int i = 0; i < HOLDERS; i++)
        w->holder[i] = (uint16_t)rng_below(r, (uint64_t)w->n_workers);
}

/* The number of a worker in the table. */
static int node_of(const struct world *w, int worker)
{
    int n_named = w->n_workers - w->n_unnamed;
    return worker == WIRE_NO_HOLDER ? WIRE_NO_HOLDER : (worker + n_named - w->first_node) % n_named;
}

static void install(struct world *w)
{
    struct wire_table_node nodes[MAX_WORKERS] = {0};
    for (int i = 0; i < w->n_workers - w->n_unnamed; i++) {
        struct wire_table_node *n = &nodes[node_of(w, i)];
        n->node_id = (uint32_t)i + 1;
        n->incarnation = w->workers[i].incarnation;
        n->max_rows = w->max_rows;
        snprintf(n->name, sizeof(n->name), "expert-%d", i);
        snprintf(n->endpoint, sizeof(n->endpoint), "%s",
                 w->workers[i].worker ? worker_endpoint(w->workers[i].worker)
                                      : w->workers[i].listen);
    }
    uint16_t holders[HOLDERS * MAX_WORKERS];
    for (int i = 0; i < HOLDERS; i++)
        for (int k = 0; k < w->n_replicas; k++)
            holders[i * w->n_replicas + k] = (uint16_t)node_of(w, replica_of(w, i, k));
    struct wire_table t = {.epoch = ++w->epoch,
                           .n_layers = LAYERS,
                           .n_experts = EXPERTS,
                           .n_nodes = (uint32_t)(w->n_workers - w->n_unnamed),
                           .n_replicas = (uint32_t)w->n_replicas,
                           .nodes = nodes,
                           .holders = holders};
    struct wire_table *copy = moe_remote_copy_table(&t);
    struct err e = {0};
    if (moe_remote_install(w->moe, &copy, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK(copy == NULL);
    CHECK_INT(moe_remote_epoch(w->moe), w->epoch);
}

/* However slow the machine is, nobody is late. */
static const struct ladder patient = {.deadline_min_ns = 20 * CLOCK_S,
                                      .deadline_max_ns = 20 * CLOCK_S};

/* n_replicas, faults and ladder of the world are the caller's. */
static void open_replicated(struct world *w, const char *format, enum combine_mode mode,
                            int n_workers, const char *transport)
{
    struct rng r = test_rng();
    struct err e = {0};
    w->n_workers = n_workers;
    w->max_rows = 64;
    w->epoch = 1;
    struct tiny_model_options o = {.format = format, .combine = mode, .max_rows = 64};
    tiny_model_write("model", LAYERS, 11);
    tiny_model_open(&w->model, "model", &o);
    w->worker_formats = w->model.formats;
    CHECK_INT(checkpoint_fingerprint(w->model.checkpoint, &w->fingerprint, &e), 0);
    struct moe_remote_options m = {.kernels = w->model.compute.kernels,
                                   .n_layers = LAYERS,
                                   .n_experts = EXPERTS,
                                   .top_k = TOP_K,
                                   .hidden = HIDDEN,
                                   .max_rows = 64,
                                   .n_lanes = FORWARD_LANES,
                                   .group = format_group(w->model.formats.experts),
                                   .mode = mode,
                                   .fingerprint = w->fingerprint,
                                   .call_timeout_ns = 20 * CLOCK_S,
                                   .spin_ns = 20 * CLOCK_US,
                                   .ladder = w->ladder,
                                   .tables_fd = -1,
                                   .take_tables = w->take_tables,
                                   .ud = w};
    w->moe = moe_remote_new(&m);
    /* Tokens are fixed, so that the printed hashes can be compared between runs. */
    struct rng fixed = rng_seed(3);
    for (int i = 0; i < N_TOKENS; i++)
        w->tokens[i] = (int32_t)rng_below(&fixed, 400);
    place_randomly(w, &r);
    for (int i = 0; i < n_workers; i++) {
        if (strcmp(transport, "tcp") == 0)
            snprintf(w->workers[i].listen, sizeof(w->workers[i].listen), "tcp://127.0.0.1:0");
        else
            snprintf(w->workers[i].listen, sizeof(w->workers[i].listen), "%s://expert-%d",
                     transport, i);
        start_worker(w, i);
    }
    install(w);
}

static void open_world(struct world *w, const char *format, enum combine_mode mode, int n_workers,
                       const char *transport)
{
    *w = (struct world){.n_replicas = 1, .ladder = patient};
    open_replicated(w, format, mode, n_workers, transport);
}

static void close_world(struct world *w)
{
    moe_remote_free(&w->moe);
    for (int i = 0; i < w->n_workers; i++)
        stop_worker(w, i);
    tiny_model_close(&w->model);
}

/* ---- steps ---------------------------------------------------------------------------- */

static const size_t all_bytes = (size_t)N_TOKENS * 400 * sizeof(float);

static int run_chunk(struct world *w, struct kv_seq *seq, int n, const struct step *like,
                     float *logits)
{
    struct step_seq s = {.kv = seq,
                         .position = seq->length,
                         .n_tokens = n,
                         .tokens = w->tokens + seq->length,
                         .all_logits = true};
    struct step step = *like;
    const float *got;
    int n_got, at = seq->length;
    step.n_seqs = 1;
    step.seqs = &s;
    step.has_two_lanes = w->has_two_lanes;
    CHECK_INT(kv_reserve(w->model.kv, seq, at + n), 0);
    moe_remote_begin_step(w->moe, 7, 0, clock_now_ns() + 30 * CLOCK_S);
    if (w->is_guarded)
        mem_guard_begin("a step");
    int rc =
        forward_step(w->model.forward, w->model.kv, &step, &moe_remote_ops, w->moe, &got, &n_got);
    if (w->is_guarded)
        mem_guard_end();
    if (rc < 0)
        test_note("%s", moe_remote_error(w->moe)->text);
    if (rc == 0) {
        CHECK_INT(n_got, n);
        memcpy(logits + (size_t)at * 400, got, (size_t)n * 400 * sizeof(float));
    }
    return rc;
}

static void run_remotely(struct world *w, int chunk_rows, float *logits)
{
    struct kv_seq seq = {0};
    struct step plain = {0};
    while (seq.length < N_TOKENS) {
        int n = N_TOKENS - seq.length < chunk_rows ? N_TOKENS - seq.length : chunk_rows;
        int rc = run_chunk(w, &seq, n, &plain, logits);
        if (rc < 0)
            test_fail(__FILE__, __LINE__, "%s: %s", err_name(rc), moe_remote_error(w->moe)->text);
    }
    CHECK(moe_remote_experts_ns(w->moe) > 0);
    kv_truncate(w->model.kv, &seq, 0);
}

static float *run_locally(struct world *w)
{
    struct kv_seq seq = {0};
    float *logits = mem_array(all_bytes, 1);
    tiny_model_run(&w->model, &seq, w->tokens, N_TOKENS, 16, logits);
    kv_truncate(w->model.kv, &seq, 0);
    return logits;
}

static void compare(const char *format, enum combine_mode mode, int n_workers,
                    const char *transport)
{
    struct world w;
    open_world(&w, format, mode, n_workers, transport);
    float *want = run_locally(&w);
    float *got = mem_array(all_bytes, 1);
    const struct {
        int rows;
        bool has_two_lanes;
    } chunks[] = {{N_TOKENS, false}, {1, false}, {7, false}, {N_TOKENS, true}, {20, true}};
    for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
        memset(got, 0, all_bytes);
        w.has_two_lanes = chunks[i].has_two_lanes;
        run_remotely(&w, chunks[i].rows, got);
        CHECK_BYTES(got, want, all_bytes);
    }
    /* Parcels of at most three rows: every node is asked several times. */
    w.max_rows = 3;
    install(&w);
    for (int lanes = 1; lanes <= 2; lanes++) {
        w.has_two_lanes = lanes == 2;
        run_remotely(&w, N_TOKENS, got);
        CHECK_BYTES(got, want, all_bytes);
    }
    test_say("%s, %s, %d workers: hash of all logits %016llx", format, combine_name(mode),
             n_workers, (unsigned long long)sample_logits_hash(got, N_TOKENS * 400));
    mem_free(want);
    mem_free(got);
    close_world(&w);
}

TEST(moe_remote_has_the_local_bits_with_one_worker)
{
    for (int mode = 0; mode < COMBINE_COUNT; mode++)
        compare("native", (enum combine_mode)mode, 1, "tcp");
}

TEST(moe_remote_has_the_local_bits_with_two_workers)
{
    compare("native", COMBINE_FIXED, 2, "tcp");
    compare("native", COMBINE_EXPERT, 2, "ipc");
}

TEST(moe_remote_has_the_local_bits_with_three_workers)
{
    compare("native", COMBINE_FIXED, 3, "inproc");
    compare("native", COMBINE_EXPERT, 3, "tcp");
}

TEST(moe_remote_has_the_local_bits_with_five_workers)
{
    compare("native", COMBINE_FIXED, 5, "ipc");
    compare("native", COMBINE_EXPERT, 5, "inproc");
}

/* Rows travel quantised: what arrives is what the in-process experts read. */
TEST(moe_remote_has_the_local_bits_in_every_format)
{
    static const char *const formats[] = {"q8", "q4", "fp8", "experts=q4,attention=q8,kv=int8"};
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        compare(formats[i], COMBINE_FIXED, 3, "inproc");
        compare(formats[i], COMBINE_EXPERT, 2, "ipc");
    }
    compare("q8", COMBINE_NODE, 1, "tcp");
}

/* The guard of base/mem.h on both sides of the wire: any allocation ends the process. */
TEST(moe_remote_steps_allocate_nothing_on_either_side)
{
    static const char *const formats[] = {"native", "q8"};
    for (int i = 0; i < 2; i++) {
        struct world w;
        open_world(&w, formats[i], COMBINE_FIXED, 2, "tcp");
        for (int k = 0; k < 2; k++) {
            stop_worker(&w, k);
            w.guard_after = LAYERS; /* each sees one parcel of each layer first */
            start_worker(&w, k);
        }
        install(&w);
        float *got = mem_array(all_bytes, 1);
        struct kv_seq seq = {0};
        struct step plain = {0};
        CHECK_INT(run_chunk(&w, &seq, 20, &plain, got), 0);
        CHECK_INT(run_chunk(&w, &seq, 1, &plain, got), 0);
        w.has_two_lanes = true;
        w.is_guarded = true;
        for (int k = 0; k < 10; k++)
            CHECK_INT(run_chunk(&w, &seq, 1, &plain, got), 0);
        CHECK_INT(run_chunk(&w, &seq, 9, &plain, got), 0);
        w.is_guarded = false;
        kv_truncate(w.model.kv, &seq, 20);
        CHECK_INT(kv_reserve(w.model.kv, &seq, N_TOKENS), 0);
        w.is_guarded = true;
        CHECK_INT(run_chunk(&w, &seq, 20, &plain, got), 0); /* two lanes */
        kv_truncate(w.model.kv, &seq, 0);
        mem_free(got);
        close_world(&w);
    }
}

TEST(moe_remote_says_so_when_a_node_reads_other_rows)
{
    struct world w;
    open_world(&w, "q8", COMBINE_FIXED, 1, "tcp");
    stop_worker(&w, 0);
    w.worker_formats.experts = FORMAT_Q4;
    start_worker(&w, 0);
    install(&w);
    float got[400];
    struct kv_seq seq = {0};
    struct step plain = {0};
    CHECK_INT(run_chunk(&w, &seq, 1, &plain, got), E_PRECONDITION);
    CHECK_HAS(moe_remote_error(w.moe)->text, "rows come as groups of 128");
    CHECK_HAS(moe_remote_error(w.moe)->text, "read groups of 64");
    kv_truncate(w.model.kv, &seq, 0);
    close_world(&w);
}

/* Rows whose grid is too fine are asked again in mode expert. */
TEST(moe_remote_asks_rows_again_that_do_not_fit_the_grid)
{
    enum { N = 9, PADDED = 80 /* a multiple of 16 columns */ };
    struct world w;
    struct rng r = test_rng();
    open_world(&w, "native", COMBINE_FIXED, 3, "tcp");
    static float padded[N * PADDED];
    float rows[N * HIDDEN], local[N * HIDDEN], remote[N * HIDDEN], weights[N * TOP_K];
    uint16_t experts[N * TOP_K];
    int16_t exponents[N];
    for (int i = 0; i < N * HIDDEN; i++)
        rows[i] = local[i] = remote[i] = padded[i / HIDDEN * PADDED + i % HIDDEN] =
            (float)rng_normal(&r);
    for (int i = 0; i < N; i++) {
        exponents[i] = i % 3 == 0 ? -60 : -20;
        for (int k = 0; k < TOP_K; k++) {
            experts[i * TOP_K + k] = (uint16_t)((i + 4 * k) % EXPERTS);
            weights[i * TOP_K + k] = (float)rng_unit(&r);
        }
    }
    struct routing routing = {.n_rows = N, .top_k = TOP_K, .experts = experts, .weights = weights};
    struct moe_rows m = {.layer = 1,
                         .n_rows = N,
                         .hidden = HIDDEN,
                         .rows = {.n_rows = N, .cols = HIDDEN, .f32 = padded, .f32_stride = PADDED},
                         .exponents = exponents,
                         .routing = &routing};
    CHECK_INT(moe_local_ops.scatter(w.model.moe, 0, &m), 0);
    CHECK_INT(moe_local_ops.gather(w.model.moe, 0, local), 0);
    moe_remote_begin_step(w.moe, 1, 0, clock_now_ns() + 30 * CLOCK_S);
    CHECK_INT(moe_remote_ops.scatter(w.moe, 0, &m), 0);
    CHECK_INT(moe_remote_ops.gather(w.moe, 0, remote), 0);
    CHECK_BYTES(remote, local, sizeof(local));
    /* Many small parcels, which the workers merge, each with its own list of such rows. */
    w.max_rows = 2;
    install(&w);
    memcpy(remote, rows, sizeof(remote));
    CHECK_INT(moe_remote_ops.scatter(w.moe, 0, &m), 0);
    CHECK_INT(moe_remote_ops.gather(w.moe, 0, remote), 0);
    CHECK_BYTES(remote, local, sizeof(local));
    CHECK(memcmp(remote, rows, sizeof(rows)) != 0);
    close_world(&w);
}

/* ---- trouble -------------------------------------------------------------------------- */

/* The same with a step's rows in one lane and in two. */
#define TEST_LANES(name) \
    static void name##_lanes(bool has_two_lanes); \
    TEST(name) \
    { \
        name##_lanes(false); \
    } \
    TEST(name##_in_two_lanes) \
    { \
        name##_lanes(true); \
    } \
    static void name##_lanes(bool has_two_lanes)

struct murder {
    struct world *world;
    int victim;
};

/* With two lanes the second one's rows of the same layer are out then. */
static void kill_after_first_layer(void *ud, int layer, const struct routing *routing)
{
    struct murder *m = ud;
    (void)routing;
    if (layer != 0 || m->world->has_lost_one)
        return;
    stop_worker(m->world, m->victim);
    m->world->has_lost_one = true;
}

TEST(moe_remote_names_a_worker_that_dies_and_works_when_it_is_back)
{
    struct world w;
    open_world(&w, "native", COMBINE_FIXED, 3, "ipc");
    float *want = run_locally(&w), *got = mem_array(all_bytes, 1);
    struct kv_seq seq = {0};
    struct murder m = {.world = &w, .victim = 1};
    struct step step = {.layer_done = kill_after_first_layer, .layer_done_ud = &m};
    w.has_two_lanes = true;
    int64_t begun_ns = clock_now_ns();
    CHECK_INT(run_chunk(&w, &seq, N_TOKENS, &step, got), E_UNAVAILABLE);
    CHECK(clock_now_ns() - begun_ns < 10 * CLOCK_S);
    CHECK_HAS(moe_remote_error(w.moe)->text, "expert-1");
    CHECK_HAS(moe_remote_error(w.moe)->text, "layer ");
    CHECK_INT(seq.length, 0);
    /* Still away: named again, within the time that a connection may take. */
    struct step plain = {0};
    begun_ns = clock_now_ns();
    CHECK_INT(run_chunk(&w, &seq, N_TOKENS, &plain, got), E_UNAVAILABLE);
    CHECK(clock_now_ns() - begun_ns < 10 * CLOCK_S);
    CHECK_HAS(moe_remote_error(w.moe)->text, "expert-1");
    kv_truncate(w.model.kv, &seq, 0);
    /* Back at the same place, as a new process: the table says so. */
    start_worker(&w, 1);
    install(&w);
    /* On a machine that stalls the connection may take longer than a step waits for it. */
    int64_t deadline_ns = clock_now_ns() + 30 * CLOCK_S;
    while (run_chunk(&w, &seq, N_TOKENS, &plain, got) < 0) {
        CHECK(clock_now_ns() < deadline_ns);
        kv_truncate(w.model.kv, &seq, 0);
    }
    CHECK_BYTES(got, want, all_bytes);
    kv_truncate(w.model.kv, &seq, 0);
    mem_free(want);
    mem_free(got);
    close_world(&w);
}

/* ---- the ladder ----------------------------------------------------------------------- */

/* Runs with the murder in the middle of the first step, the rest of the tokens after it. */
static void run_through(struct world *w, struct murder *m, const float *want)
{
    float *got = mem_array(all_bytes, 1);
    struct kv_seq seq = {0};
    struct step step = {.layer_done = kill_after_first_layer, .layer_done_ud = m}, plain = {0};
    int64_t begun_ns = clock_now_ns();
    CHECK_INT(run_chunk(w, &seq, 20, m ? &step : &plain, got), 0);
    test_say("the step with the fault took %.1f ms",
             (double)(clock_now_ns() - begun_ns) / CLOCK_MS);
    while (seq.length < N_TOKENS)
        CHECK_INT(run_chunk(w, &seq, w->has_two_lanes ? 20 : 1, &plain, got), 0);
    CHECK_BYTES(got, want, all_bytes);
    kv_truncate(w->model.kv, &seq, 0);
    mem_free(got);
}

TEST(moe_remote_has_the_local_bits_with_replicas)
{
    for (int n = 2; n <= 3; n++) {
        struct world w = {.n_replicas = n, .ladder = patient};
        open_replicated(&w, "native", n == 2 ? COMBINE_FIXED : COMBINE_EXPERT, 4, "ipc");
        float *want = run_locally(&w);
        run_through(&w, NULL, want);
        CHECK_INT(moe_remote_counters(w.moe)->retries, 0);
        mem_free(want);
        close_world(&w);
    }
}

TEST_LANES(moe_remote_goes_on_when_a_worker_dies_and_another_has_its_experts)
{
    struct world w = {.has_two_lanes = has_two_lanes, .n_replicas = 2};
    open_replicated(&w, "q8", COMBINE_FIXED, 4, "tcp");
    float *want = run_locally(&w), *got = mem_array(all_bytes, 1);
    /* The first step may wait for connections, where the machine is busy. */
    run_remotely(&w, N_TOKENS, got);
    uint64_t waits = moe_remote_counters(w.moe)->waits;
    struct murder m = {.world = &w, .victim = 1};
    run_through(&w, &m, want);
    const struct wire_ladder_counters *c = moe_remote_counters(w.moe);
    CHECK_INT(c->waits, waits);
    struct wire_node_health health[MAX_WORKERS];
    uint32_t n = moe_remote_node_health(w.moe, health, MAX_WORKERS);
    CHECK(n >= 1);
    for (uint32_t i = 0; i < n; i++)
        CHECK_INT(health[i].standing,
                  health[i].node_id == 2 ? WIRE_STANDING_AWAY : WIRE_STANDING_GOOD);
    mem_free(want);
    mem_free(got);
    close_world(&w);
}

TEST_LANES(moe_remote_asks_elsewhere_when_answers_get_lost)
{
    struct world w = {.has_two_lanes = has_two_lanes, .n_replicas = 2};
    w.ladder.deadline_max_ns = 30 * CLOCK_MS;
    w.faults[0] = (struct fault_options){.is_enabled = true, .drop_one_in = 5, .seed = 1};
    /* Sometimes both holders lose it. */
    w.faults[2] = (struct fault_options){.is_enabled = true, .drop_one_in = 15, .seed = 2};
    open_replicated(&w, "native", COMBINE_FIXED, 3, "ipc");
    float *want = run_locally(&w);
    run_through(&w, NULL, want);
    const struct wire_ladder_counters *c = moe_remote_counters(w.moe);
    test_say("%llu calls, %llu late, %llu asked again", (unsigned long long)c->calls,
             (unsigned long long)c->lates, (unsigned long long)c->retries);
    CHECK(c->lates > 0 && c->retries > 0);
    mem_free(want);
    close_world(&w);
}

/* A witness goes out alone, when all other answers have come: it has a deadline all the same. */
TEST_LANES(moe_remote_asks_another_witness_when_its_answer_gets_lost)
{
    struct world w = {.has_two_lanes = has_two_lanes, .n_replicas = 3};
    w.ladder.deadline_max_ns = 30 * CLOCK_MS;
    w.ladder.verify_one_in = 1;
    w.faults[0] = (struct fault_options){.is_enabled = true, .drop_one_in = 5, .seed = 1};
    open_replicated(&w, "native", COMBINE_FIXED, 3, "inproc");
    float *want = run_locally(&w), *got = mem_array(all_bytes, 1);
    struct kv_seq seq = {0};
    struct step plain = {0};
    while (seq.length < N_TOKENS) {
        int64_t from_ns = clock_now_ns();
        CHECK_INT(run_chunk(&w, &seq, w.has_two_lanes ? 20 : 1, &plain, got), 0);
        CHECK(clock_now_ns() - from_ns < 15 * CLOCK_S); /* a call ends by itself after 20 */
    }
    CHECK_BYTES(got, want, all_bytes);
    CHECK(moe_remote_counters(w.moe)->lates > 0);
    kv_truncate(w.model.kv, &seq, 0);
    mem_free(want);
    mem_free(got);
    close_world(&w);
}

TEST_LANES(moe_remote_hedges_slow_answers)
{
    struct world w = {.has_two_lanes = has_two_lanes, .n_replicas = 2};
    w.ladder.hedge_percent = 100;
    w.ladder.deadline_min_ns = w.ladder.deadline_max_ns = 10 * CLOCK_S;
    w.faults[1] = (struct fault_options){
        .is_enabled = true, .delay_ns = 300 * CLOCK_MS, .delay_one_in = 20, .seed = 5};
    open_replicated(&w, "native", COMBINE_FIXED, 3, "ipc");
    float *want = run_locally(&w);
    run_through(&w, NULL, want);
    const struct wire_ladder_counters *c = moe_remote_counters(w.moe);
    test_say("%llu calls, %llu hedges, %llu won", (unsigned long long)c->calls,
             (unsigned long long)c->hedges, (unsigned long long)c->hedge_wins);
    CHECK_INT(c->lates, 0);
    CHECK(c->hedges > 0 && c->hedge_wins > 0 && c->hedge_wins <= c->hedges);
    mem_free(want);
    close_world(&w);
}

/* Steps of one row, or of two lanes, until one fails; every other one has the right bits. */
static int run_until_failure(struct world *w, struct kv_seq *seq, const float *want)
{
    float *got = mem_array(all_bytes, 1);
    struct step plain = {0};
    int64_t deadline_ns = clock_now_ns() + 30 * CLOCK_S;
    for (;;) {
        CHECK(clock_now_ns() < deadline_ns);
        if (seq->length == N_TOKENS)
            kv_truncate(w->model.kv, seq, 0);
        int at = seq->length, n = w->has_two_lanes ? 20 : 1;
        int rc = run_chunk(w, seq, n, &plain, got);
        if (rc < 0) {
            kv_truncate(w->model.kv, seq, at);
            mem_free(got);
            return rc;
        }
        CHECK_BYTES(got + (size_t)at * 400, want + (size_t)at * 400,
                    (size_t)n * 400 * sizeof(float));
    }
}

/* Every answer is checked: no step ends with what worker 1 got wrong, and it is asked nothing
 * more.  Then, with two copies, some experts have nobody to confirm them. */
TEST_LANES(moe_remote_lets_no_wrong_answer_through_where_every_one_is_checked)
{
    for (int n_replicas = 2; n_replicas <= 3; n_replicas++) {
        struct world w = {.has_two_lanes = has_two_lanes, .n_replicas = n_replicas};
        w.ladder.verify_one_in = 1;
        w.faults[1] = (struct fault_options){.is_enabled = true, .corrupt_one_in = 9, .seed = 9};
        open_replicated(&w, "native", COMBINE_FIXED, 3, "inproc");
        float *want = run_locally(&w), *got = mem_array(all_bytes, 1);
        struct kv_seq seq = {0};
        struct step plain = {0};
        struct wire_node_health health[MAX_WORKERS];
        CHECK_INT(run_until_failure(&w, &seq, want), E_ABORTED);
        CHECK(moe_remote_is_disputed(w.moe));
        CHECK_INT(moe_remote_node_health(w.moe, health, MAX_WORKERS), 1);
        CHECK_INT(health[0].node_id, 2);
        CHECK_INT(health[0].wrongs, 1);
        CHECK_INT(health[0].standing, WIRE_STANDING_WRONG);
        CHECK_INT(moe_remote_counters(w.moe)->mismatches, 1);
        test_say("found after %llu checks", (unsigned long long)moe_remote_counters(w.moe)->checks);
        kv_truncate(w.model.kv, &seq, 0);
        if (n_replicas == 3) {
            run_remotely(&w, 7, got);
            CHECK_BYTES(got, want, all_bytes);
        } else {
            CHECK_INT(run_chunk(&w, &seq, 20, &plain, got), E_UNAVAILABLE);
            CHECK_HAS(moe_remote_error(w.moe)->text, "no second node confirms");
            CHECK(!moe_remote_is_disputed(w.moe));
            kv_truncate(w.model.kv, &seq, 0);
        }
        mem_free(want);
        mem_free(got);
        close_world(&w);
    }
}

/* One answer in a few is checked: the liar is found. */
TEST(moe_remote_finds_a_liar_by_samples)
{
    struct world w = {.n_replicas = 2};
    w.ladder.verify_one_in = 5;
    w.faults[1] = (struct fault_options){.is_enabled = true, .corrupt_one_in = 4, .seed = 9};
    open_replicated(&w, "native", COMBINE_EXPERT, 3, "inproc");
    struct wire_node_health health[MAX_WORKERS];
    float *got = mem_array(all_bytes, 1);
    struct kv_seq seq = {0};
    struct step plain = {0};
    int rc = 0;
    for (int i = 0; i < 400 && rc == 0; i++) {
        if (seq.length == N_TOKENS)
            kv_truncate(w.model.kv, &seq, 0);
        rc = run_chunk(&w, &seq, 1, &plain, got);
    }
    CHECK_INT(rc, E_ABORTED);
    CHECK_INT(moe_remote_node_health(w.moe, health, MAX_WORKERS), 1);
    CHECK_INT(health[0].node_id, 2);
    CHECK_INT(health[0].standing, WIRE_STANDING_WRONG);
    kv_truncate(w.model.kv, &seq, 0);
    float *want = run_locally(&w);
    run_remotely(&w, 7, got);
    CHECK_BYTES(got, want, all_bytes);
    mem_free(want);
    mem_free(got);
    close_world(&w);
}

/* The table that names a new home comes while the step waits. */
static bool bring_a_table(void *ud)
{
    struct world *w = ud;
    for (int i = 0; i < HOLDERS; i++)
        w->holder[i] = w->holder[i] == 1 ? 2 : w->holder[i];
    load(w, 2);
    install(w);
    return true;
}

static bool bring_a_table_at_last(void *ud)
{
    struct world *w = ud;
    return w->n_asked_for_tables++ == 2 ? bring_a_table(w) : true;
}

TEST_LANES(moe_remote_waits_for_a_table_in_the_middle_of_a_step)
{
    struct world w = {
        .has_two_lanes = has_two_lanes, .n_replicas = 1, .take_tables = bring_a_table_at_last};
    w.ladder.wait_ns = 20 * CLOCK_S;
    open_replicated(&w, "native", COMBINE_FIXED, 3, "ipc");
    float *want = run_locally(&w);
    w.n_asked_for_tables = 0;
    struct murder m = {.world = &w, .victim = 1};
    run_through(&w, &m, want);
    CHECK(w.n_asked_for_tables > 2);
    mem_free(want);
    close_world(&w);
}

/* Which experts of layer 1 each lane asks for. */
struct asked {
    bool experts[2][EXPERTS];
};

static void note_asked(void *ud, int layer, const struct routing *r)
{
    struct asked *a = ud;
    for (int i = 0; layer == 1 && i < r->n_rows * r->top_k; i++)
        a->experts[r->n_rows < 10][r->experts[i]] = true; /* 20 rows are 16 and 4 */
}

static bool bring_other_numbers(void *ud)
{
    struct world *w = ud;
    if (!w->has_lost_one || w->n_asked_for_tables++ != 6)
        return true;
    w->first_node = 2;
    w->n_unnamed = 0;
    return bring_a_table(w);
}

/* One expert, which only the first lane asks for, is nowhere; the second lane's round is through when
 * the table comes in which all nodes have other numbers, and there is one more. */
TEST(moe_remote_takes_a_table_while_one_lane_is_through)
{
    struct world w = {.n_replicas = 1, .has_two_lanes = true, .take_tables = bring_other_numbers};
    struct asked asked = {0};
    struct step noting = {.layer_done = note_asked, .layer_done_ud = &asked};
    struct kv_seq seq = {0};
    int alone = 0;
    w.ladder.wait_ns = 20 * CLOCK_S;
    open_replicated(&w, "native", COMBINE_FIXED, 4, "ipc");
    float *want = run_locally(&w), *got = mem_array(all_bytes, 1);
    CHECK_INT(run_chunk(&w, &seq, 20, &noting, got), 0);
    kv_truncate(w.model.kv, &seq, 0);
    while (alone < EXPERTS && (!asked.experts[0][alone] || asked.experts[1][alone]))
        alone++;
    CHECK(alone < EXPERTS);
    for (int i = 0; i < HOLDERS; i++)
        w.holder[i] = i == EXPERTS + alone ? 1 : i % 2 * 2;
    for (int i = 0; i < w.n_workers; i++)
        load(&w, i);
    w.n_unnamed = 1;
    install(&w);
    w.n_asked_for_tables = 0;
    struct murder m = {.world = &w, .victim = 1};
    run_through(&w, &m, want);
    CHECK_INT(w.first_node, 2);
    mem_free(want);
    mem_free(got);
    close_world(&w);
}

/* Whoever stops the thread does not wait as long as the step would.  Asking while the first connections are
 * made does not count. */
static bool ask_a_few_times(void *ud)
{
    struct world *w = ud;
    return !w->has_lost_one || w->n_asked_for_tables++ < 5;
}

TEST_LANES(moe_remote_stops_waiting_when_it_is_told)
{
    struct world w = {
        .has_two_lanes = has_two_lanes, .n_replicas = 1, .take_tables = ask_a_few_times};
    w.ladder = patient;
    w.ladder.wait_ns = 3600 * CLOCK_S;
    open_replicated(&w, "native", COMBINE_FIXED, 3, "ipc");
    float *got = mem_array(all_bytes, 1);
    struct kv_seq seq = {0};
    w.n_asked_for_tables = 0;
    struct murder m = {.world = &w, .victim = 1};
    struct step step = {.layer_done = kill_after_first_layer, .layer_done_ud = &m};
    CHECK_INT(run_chunk(&w, &seq, N_TOKENS, &step, got), E_UNAVAILABLE);
    CHECK_HAS(moe_remote_error(w.moe)->text, "is stopping");
    CHECK_HAS(moe_remote_error(w.moe)->text, "expert-1");
    kv_truncate(w.model.kv, &seq, 0);
    mem_free(got);
    close_world(&w);
}

TEST_LANES(moe_remote_leaves_lost_experts_out_only_where_that_is_allowed)
{
    struct world w = {.has_two_lanes = has_two_lanes, .n_replicas = 1};
    w.ladder.is_degraded = true;
    open_replicated(&w, "native", COMBINE_FIXED, 3, "ipc");
    float *want = run_locally(&w), *got = mem_array(all_bytes, 1);
    struct kv_seq seq = {0};
    struct murder m = {.world = &w, .victim = 1};
    struct step step = {.layer_done = kill_after_first_layer, .layer_done_ud = &m};
    CHECK_INT(run_chunk(&w, &seq, N_TOKENS, &step, got), 0);
    CHECK(moe_remote_left_out(w.moe) > 0);
    CHECK(memcmp(got, want, all_bytes) != 0);
    for (size_t i = 0; i < all_bytes / sizeof(float); i++)
        CHECK(got[i] - got[i] == 0); /* finite */
    kv_truncate(w.model.kv, &seq, 0);
    mem_free(want);
    mem_free(got);
    close_world(&w);
}

TEST(moe_remote_moves_to_another_placement_between_steps)
{
    struct world w;
    struct rng r = test_rng();
    open_world(&w, "native", COMBINE_FIXED, 3, "tcp");
    float *want = run_locally(&w), *got = mem_array(all_bytes, 1);
    struct kv_seq seq = {0};
    struct step plain = {0};
    for (int at = 0; at < N_TOKENS; at += 10) {
        CHECK_INT(run_chunk(&w, &seq, 10, &plain, got), 0);
        place_randomly(&w, &r);
        for (int i = 0; i < w.n_workers; i++)
            load(&w, i);
        install(&w);
    }
    CHECK_BYTES(got, want, all_bytes);
    kv_truncate(w.model.kv, &seq, 0);
    mem_free(want);
    mem_free(got);
    close_world(&w);
}

TEST(moe_remote_says_which_expert_is_missing_where)
{
    struct world w;
    open_world(&w, "native", COMBINE_FIXED, 2, "tcp");
    float *got = mem_array(all_bytes, 1);
    struct kv_seq seq = {0};
    struct step plain = {0};
    uint16_t right[HOLDERS];
    memcpy(right, w.holder, sizeof(right));
    for (int i = 0; i < EXPERTS; i++)
        w.holder[EXPERTS + i] = WIRE_NO_HOLDER;
    install(&w);
    CHECK_INT(run_chunk(&w, &seq, 4, &plain, got), E_UNAVAILABLE);
    CHECK_HAS(moe_remote_error(w.moe)->text, "layer 1, experts ");
    /* A table that is wrong about who has what. */
    for (int i = 0; i < HOLDERS; i++)
        w.holder[i] = (uint16_t)(1 - right[i]);
    install(&w);
    CHECK_INT(run_chunk(&w, &seq, 4, &plain, got), E_NOT_FOUND);
    CHECK_HAS(moe_remote_error(w.moe)->text, "of layer 0 is not on this node");
    CHECK_HAS(moe_remote_error(w.moe)->text, "node expert-");
    memcpy(w.holder, right, sizeof(right));
    install(&w);
    CHECK_INT(run_chunk(&w, &seq, 4, &plain, got), 0);
    kv_truncate(w.model.kv, &seq, 0);
    mem_free(got);
    close_world(&w);
}

/* It refuses at once: it is not asked as fast as it can refuse until the step's deadline. */
TEST(moe_remote_asks_a_lone_holder_that_refuses_at_its_leisure)
{
    struct world w;
    open_world(&w, "native", COMBINE_FIXED, 2, "tcp");
    float *got = mem_array(all_bytes, 1);
    struct kv_seq seq = {0};
    struct step plain = {0};
    for (int i = 0; i < HOLDERS; i++)
        w.holder[i] = 1;
    install(&w);
    CHECK_INT(run_chunk(&w, &seq, 4, &plain, got), E_NOT_FOUND);
    CHECK_HAS(moe_remote_error(w.moe)->text, "is not on this node");
    CHECK(moe_remote_counters(w.moe)->calls <= 10);
    kv_truncate(w.model.kv, &seq, 0);
    mem_free(got);
    close_world(&w);
}

TEST(moe_remote_refuses_tables_and_models_that_do_not_fit)
{
    struct world w;
    open_world(&w, "native", COMBINE_FIXED, 1, "tcp");
    uint16_t holder[HOLDERS + EXPERTS] = {0};
    struct wire_table_node node = {.node_id = 1, .max_rows = 8};
    struct wire_table t = {.epoch = 99,
                           .n_layers = LAYERS + 1,
                           .n_experts = EXPERTS,
                           .n_nodes = 1,
                           .n_replicas = 1,
                           .nodes = &node,
                           .holders = holder};
    struct err e = {0};
    uint64_t epoch = moe_remote_epoch(w.moe);
    struct wire_table_context context = {.node_id = 7, .borrower = 3};
    t.n_contexts = 1;
    t.contexts = &context;
    struct wire_table *copy = moe_remote_copy_table(&t);
    CHECK(copy->contexts != &context && copy->contexts[0].node_id == 7);
    CHECK_INT(moe_remote_install(w.moe, &copy, &e), E_INVALID);
    CHECK(copy == NULL);
    t.n_layers = LAYERS;
    holder[5] = 1;
    copy = moe_remote_copy_table(&t);
    CHECK_INT(moe_remote_install(w.moe, &copy, &e), E_INVALID);
    CHECK_INT(moe_remote_epoch(w.moe), epoch);
    /* A worker of another model says so. */
    stop_worker(&w, 0);
    w.fingerprint ^= 1;
    start_worker(&w, 0);
    install(&w);
    float got[400];
    struct kv_seq seq = {0};
    struct step plain = {0};
    CHECK_INT(run_chunk(&w, &seq, 1, &plain, got), E_PRECONDITION);
    CHECK_HAS(moe_remote_error(w.moe)->text, "is for model");
    kv_truncate(w.model.kv, &seq, 0);
    close_world(&w);
}
