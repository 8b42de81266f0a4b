/* tests/unit/test_store.c - the store reads what it is asked for and nothing else, gives up
 * what is no longer wanted only after the worker has let go of it, and knows its limit.
 * The test plays the worker. */
#include "expert_node/store.h"

#include <math.h>
#include <poll.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/pack.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"
#include "tools/synth.h"

enum { LAYERS = 4, EXPERTS = 12, ALL = LAYERS * EXPERTS, ROW_BYTES = (EXPERTS + 7) / 8 };

struct world {
    struct checkpoint *checkpoint;
    struct queue *views, *retired;
    struct store *store;
    struct store_view *view;
    size_t expert_bytes, stored_bytes;
};

static int64_t soon(void)
{
    return clock_now_ns() + 30 * CLOCK_S;
}

static void open_world(struct world *w, int room_for)
{
    struct err e = {0};
    *w = (struct world){.views = queue_new(4), .retired = queue_new(4)};
    CHECK_INT(checkpoint_open("model", &w->checkpoint, &e), 0);
    CHECK_INT(store_expert_bytes(w->checkpoint, FORMAT_NATIVE, &w->expert_bytes, &e), 0);
    CHECK_INT(checkpoint_expert_bytes(w->checkpoint, &w->stored_bytes, &e), 0);
    struct store_options o = {.checkpoint = w->checkpoint,
                              .kernels = kernels_best(),
                              .threads = 1,
                              .memory_bytes = (size_t)room_for * w->expert_bytes,
                              .views = w->views,
                              .retired = w->retired};
    CHECK_INT(store_start(&o, &w->store, &e), 0);
}

static void close_world(struct world *w)
{
    store_stop(&w->store);
    while (queue_pop(w->views))
        ;
    queue_free(&w->views);
    queue_free(&w->retired);
    checkpoint_close(&w->checkpoint);
}

/* Wants the experts of `layer` from `first` to `last`. */
static void want(struct world *w, uint64_t version, int layer, int first, int last)
{
    uint8_t bitmap[LAYERS * ROW_BYTES] = {0};
    for (int i = first; i <= last; i++)
        bitmap[layer * ROW_BYTES + i / 8] |= (uint8_t)(1 << (i % 8));
    struct wire_holdings h = {
        .version = version, .n_layers = LAYERS, .n_experts = EXPERTS, .bitmap = bitmap};
    struct err e = {0};
    CHECK_INT(store_want(w->store, &h, &e), 0);
}

static struct store_outcome outcome(struct world *w)
{
    struct store_outcome o;
    struct pollfd p = {.fd = store_fd(w->store), .events = POLLIN};
    CHECK_INT(poll(&p, 1, 30000), 1);
    CHECK(store_take_outcome(w->store, &o));
    return o;
}

/* What the worker does between two parcels. */
static void take_view(struct world *w)
{
    struct store_view *v = queue_pop_wait(w->views, soon());
    CHECK(v != NULL);
    struct store_view *old = w->view;
    w->view = v;
    if (old)
        CHECK_INT(queue_push(w->retired, (void **)&old), 0);
}

static void check_held(const struct world *w, int layer, int first, int last)
{
    CHECK_INT(w->view->n_held, last - first + 1);
    for (int i = 0; i < ALL; i++) {
        bool is_wanted = i / EXPERTS == layer && i % EXPERTS >= first && i % EXPERTS <= last;
        CHECK((w->view->held[i] != NULL) == is_wanted);
        if (is_wanted)
            CHECK_INT(expert_bytes(w->view->held[i]), w->expert_bytes);
    }
}

/* Shards so small that every layer has some of its own. */
static void write_model(void)
{
    struct synth_options o;
    struct err e = {0};
    synth_defaults(&o);
    o.config = (struct model_config){.family = MODEL_MINIMAX_M2,
                                     .vocab_size = 400,
                                     .hidden_size = 72,
                                     .n_layers = LAYERS,
                                     .n_heads = 6,
                                     .n_kv_heads = 3,
                                     .head_dim = 20,
                                     .rotary_dim = 10,
                                     .expert_size = 24,
                                     .n_experts = EXPERTS,
                                     .top_k = 3,
                                     .max_positions = 512,
                                     .rope_theta = 5e6,
                                     .rms_norm_eps = 1e-6f};
    o.dir = "model";
    o.shard_bytes = 32 << 10;
    if (synth_write(&o, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

TEST(store_reads_only_what_is_asked_for)
{
    struct world w;
    struct store_progress p;
    write_model();
    open_world(&w, ALL);
    int shards_before = checkpoint_open_shards(w.checkpoint);
    want(&w, 1, 2, 3, 6);
    take_view(&w);
    struct store_outcome o = outcome(&w);
    CHECK_INT(o.code, 0);
    CHECK_INT(o.version, 1);
    check_held(&w, 2, 3, 6);
    CHECK_INT(w.view->version, 1);
    CHECK_INT(w.view->held_bytes, 4 * w.expert_bytes);
    store_progress(w.store, &p);
    CHECK_INT(p.held, 4);
    CHECK_INT(p.wanted, 4);
    CHECK_INT(p.held_bytes, 4 * w.expert_bytes);
    CHECK_INT(p.read_bytes, 4 * w.stored_bytes);
    CHECK_INT(p.serving_version, 1);
    /* Four neighbours lie in one or two files of some fifteen. */
    int opened = checkpoint_open_shards(w.checkpoint) - shards_before;
    test_note("%d shards before, %d more", shards_before, opened);
    CHECK(shards_before + opened <= 4);
    close_world(&w);
}

TEST(store_gives_up_only_what_the_worker_has_let_go)
{
    struct world w;
    struct store_progress p;
    tiny_model_write("model", LAYERS, 5);
    open_world(&w, ALL);
    want(&w, 1, 0, 0, 5);
    take_view(&w);
    CHECK_INT(outcome(&w).code, 0);
    want(&w, 2, 0, 4, 9);
    struct store_view *next = queue_pop_wait(w.views, soon());
    CHECK(next != NULL);
    /* The new view is there, the old one still ours: ten experts are in memory, and the
     * ones that go are still whole. */
    store_progress(w.store, &p);
    CHECK_INT(p.held, 10);
    check_held(&w, 0, 0, 5);
    CHECK(next->held[4] == w.view->held[4]);
    CHECK_INT(p.read_bytes, 10 * w.stored_bytes);
    struct store_view *old = w.view;
    w.view = next;
    CHECK_INT(queue_push(w.retired, (void **)&old), 0);
    struct store_outcome o = outcome(&w);
    CHECK_INT(o.code, 0);
    CHECK_INT(o.version, 2);
    store_progress(w.store, &p);
    CHECK_INT(p.held, 6);
    CHECK_INT(p.held_bytes, 6 * w.expert_bytes);
    check_held(&w, 0, 4, 9);
    close_world(&w);
}

TEST(store_refuses_more_than_fits_and_says_what_does)
{
    struct world w;
    struct store_progress p;
    tiny_model_write("model", LAYERS, 5);
    open_world(&w, 7);
    want(&w, 1, 1, 0, 7);
    struct store_outcome o = outcome(&w);
    CHECK_INT(o.code, E_BUSY);
    CHECK_HAS(o.why.text, "8 experts");
    CHECK_HAS(o.why.text, "room for 7");
    store_progress(w.store, &p);
    CHECK_INT(p.held, 0);
    CHECK_INT(p.read_bytes, 0);
    want(&w, 2, 1, 0, 6);
    take_view(&w);
    CHECK_INT(outcome(&w).code, 0);
    check_held(&w, 1, 0, 6);
    close_world(&w);
}

TEST(store_gives_up_first_when_memory_is_too_small_for_both)
{
    struct world w;
    struct store_progress p;
    tiny_model_write("model", LAYERS, 5);
    open_world(&w, 7);
    want(&w, 1, 1, 0, 5);
    take_view(&w);
    CHECK_INT(outcome(&w).code, 0);
    want(&w, 2, 1, 4, 9);
    take_view(&w);
    /* What stays is served meanwhile; the node is not whole. */
    check_held(&w, 1, 4, 5);
    store_progress(w.store, &p);
    CHECK_INT(p.serving_version, 0);
    take_view(&w);
    CHECK_INT(outcome(&w).code, 0);
    check_held(&w, 1, 4, 9);
    store_progress(w.store, &p);
    CHECK_INT(p.held, 6);
    CHECK_INT(p.serving_version, 2);
    close_world(&w);
}

TEST(store_serves_the_newest_wish)
{
    struct world w;
    tiny_model_write("model", LAYERS, 5);
    open_world(&w, ALL);
    for (uint64_t version = 1; version <= 40; version++)
        want(&w, version, (int)version % LAYERS, 0, EXPERTS - 1);
    struct store_outcome o;
    do {
        /* Some were served on the way, the last one is in any case. */
        take_view(&w);
        o = outcome(&w);
        CHECK_INT(o.code, 0);
    } while (o.version != 40);
    check_held(&w, 40 % LAYERS, 0, EXPERTS - 1);
    close_world(&w);
}

TEST(store_refuses_holdings_of_another_model)
{
    struct world w;
    tiny_model_write("model", LAYERS, 5);
    open_world(&w, ALL);
    uint8_t bitmap[64] = {0};
    struct err e = {0};
    struct wire_holdings h = {
        .version = 1, .n_layers = LAYERS + 1, .n_experts = EXPERTS, .bitmap = bitmap};
    CHECK_INT(store_want(w.store, &h, &e), E_INVALID);
    CHECK_HAS(e.text, "5 layers");
    close_world(&w);
}

/* ---- formats, packed directories, threads ---- */

static void load_all_of(const char *dir, enum weight_format format,
                        const struct checkpoint_options *how, int threads)
{
    struct world w = {.views = queue_new(4), .retired = queue_new(4)};
    struct err e = {0};
    struct store_progress p;
    if (checkpoint_open_with(dir, how, &w.checkpoint, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_INT(store_expert_bytes(w.checkpoint, format, &w.expert_bytes, &e), 0);
    struct store_options o = {.checkpoint = w.checkpoint,
                              .format = format,
                              .kernels = kernels_best(),
                              .threads = threads,
                              .memory_bytes = EXPERTS * w.expert_bytes,
                              .views = w.views,
                              .retired = w.retired};
    CHECK_INT(store_start(&o, &w.store, &e), 0);
    want(&w, 1, 3, 0, EXPERTS - 1);
    take_view(&w);
    CHECK_INT(outcome(&w).code, 0);
    check_held(&w, 3, 0, EXPERTS - 1);
    CHECK_INT(w.view->held_bytes, EXPERTS * w.expert_bytes);
    /* All else has to go: no more than this layer fits. */
    want(&w, 2, 0, 0, 4);
    take_view(&w);
    take_view(&w);
    CHECK_INT(outcome(&w).code, 0);
    check_held(&w, 0, 0, 4);
    store_progress(w.store, &p);
    CHECK_INT(p.held, 5);
    CHECK_INT(p.held_bytes, 5 * w.expert_bytes);
    close_world(&w);
}

TEST(store_loads_every_format_with_any_number_of_threads)
{
    static const enum weight_format formats[] = {FORMAT_F32, FORMAT_BF16, FORMAT_FP8, FORMAT_Q8,
                                                 FORMAT_Q4};
    tiny_model_write("model", LAYERS, 5);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        for (int threads = 1; threads <= 16; threads *= 4)
            load_all_of("model", formats[i], &(struct checkpoint_options){0}, threads);
}

static void pack(enum weight_format format)
{
    struct err e = {0};
    struct pack_options o = {.model_dir = "model",
                             .out_dir = "packed",
                             .formats = {format, format, format, KV_BF16},
                             .kernels = kernels_best(),
                             .n_threads = 2,
                             .is_forced = true};
    if (pack_make(&o, NULL, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

TEST(store_opens_packed_directories_in_every_way)
{
    static const enum weight_format formats[] = {FORMAT_FP8, FORMAT_Q8, FORMAT_Q4};
    static const struct checkpoint_options how[] = {
        {0}, {.copies = true}, {.locks = true, .verifies = true}, {.copies = true, .locks = true}};
    tiny_model_write("model", LAYERS, 5);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        pack(formats[i]);
        for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
            load_all_of("packed", formats[i], &how[k], 2);
            load_all_of("packed", FORMAT_NATIVE, &how[k], 2);
        }
    }
}

TEST(store_counts_what_is_mapped_as_held)
{
    struct checkpoint *c;
    size_t mapped, made;
    tiny_model_write("model", LAYERS, 5);
    pack(FORMAT_Q8);
    CHECK_INT(checkpoint_open("model", &c, NULL), 0);
    CHECK_INT(store_expert_bytes(c, FORMAT_Q8, &made, NULL), 0);
    checkpoint_close(&c);
    CHECK_INT(checkpoint_open("packed", &c, NULL), 0);
    CHECK_INT(store_expert_bytes(c, FORMAT_NATIVE, &mapped, NULL), 0);
    checkpoint_close(&c);
    CHECK_INT(mapped, made);
}

TEST(store_says_which_blob_is_damaged)
{
    struct world w = {.views = queue_new(4), .retired = queue_new(4)};
    struct err e = {0};
    tiny_model_write("model", LAYERS, 5);
    pack(FORMAT_Q8);
    FILE *f = fopen("packed/layer-00002.packed", "r+b");
    CHECK(f != NULL);
    CHECK_INT(fseek(f, -8192, SEEK_END), 0); /* in the last expert */
    fputc(1, f);
    fputc(2, f);
    CHECK_INT(fclose(f), 0);
    CHECK_INT(checkpoint_open_with("packed", &(struct checkpoint_options){.verifies = true},
                                   &w.checkpoint, &e),
              0);
    struct store_options o = {.checkpoint = w.checkpoint,
                              .kernels = kernels_best(),
                              .threads = 2,
                              .memory_bytes = 1 << 30,
                              .views = w.views,
                              .retired = w.retired};
    CHECK_INT(store_start(&o, &w.store, &e), 0);
    CHECK_INT(store_expert_bytes(w.checkpoint, FORMAT_NATIVE, &w.expert_bytes, &e), 0);
    want(&w, 1, 2, 0, EXPERTS - 1);
    struct store_outcome got = outcome(&w);
    CHECK_INT(got.code, E_CORRUPT);
    CHECK_HAS(got.why.text, "layer 2: expert 11");
    CHECK_HAS(got.why.text, "packed/layer-00002.packed");
    CHECK(queue_pop(w.views) == NULL);
    /* The others can be had. */
    want(&w, 2, 2, 0, EXPERTS - 2);
    take_view(&w);
    CHECK_INT(outcome(&w).code, 0);
    check_held(&w, 2, 0, EXPERTS - 2);
    close_world(&w);
}

/* Kernels that are wrong by one bit in one place. */
static void matmul_off_by_a_bit(const struct matrix *m, int first_panel, int n_panels,
                                const struct rows *x, float *y, size_t y_stride)
{
    kernels_named("portable")->matmul[m->format](m, first_panel, n_panels, x, y, y_stride);
    if (first_panel == 0)
        y[0] = nextafterf(y[0], 1e9f);
}

TEST(store_does_not_serve_what_fails_its_self_test)
{
    struct world w;
    struct err e = {0};
    tiny_model_write("model", LAYERS, 5);
    open_world(&w, ALL);
    store_stop(&w.store);
    struct kernels wrong = *kernels_named("portable");
    wrong.matmul[FORMAT_FP8] = matmul_off_by_a_bit;
    wrong.name = "wrong";
    struct store_options o = {.checkpoint = w.checkpoint,
                              .kernels = &wrong,
                              .threads = 1,
                              .memory_bytes = (size_t)ALL * w.expert_bytes,
                              .views = w.views,
                              .retired = w.retired};
    CHECK_INT(store_start(&o, &w.store, &e), 0);
    want(&w, 1, 0, 0, 3);
    struct store_outcome out = outcome(&w);
    CHECK_INT(out.code, E_CORRUPT);
    CHECK_HAS(out.why.text, "self-test");
    CHECK_HAS(out.why.text, "wrong");
    CHECK(queue_pop(w.views) == NULL);
    close_world(&w);
}

static _Atomic bool has_decayed;

static void matmul_until_it_decays(const struct matrix *m, int first_panel, int n_panels,
                                   const struct rows *x, float *y, size_t y_stride)
{
    if (has_decayed)
        matmul_off_by_a_bit(m, first_panel, n_panels, x, y, y_stride);
    else
        kernels_named("portable")->matmul[m->format](m, first_panel, n_panels, x, y, y_stride);
}

TEST(store_tests_again_what_it_serves)
{
    struct world w;
    struct err e = {0};
    tiny_model_write("model", LAYERS, 5);
    open_world(&w, ALL);
    store_stop(&w.store);
    struct kernels frail = *kernels_named("portable");
    frail.matmul[FORMAT_FP8] = matmul_until_it_decays;
    frail.name = "frail";
    struct store_options o = {.checkpoint = w.checkpoint,
                              .kernels = &frail,
                              .threads = 1,
                              .memory_bytes = (size_t)ALL * w.expert_bytes,
                              .views = w.views,
                              .retired = w.retired};
    CHECK_INT(store_start(&o, &w.store, &e), 0);
    want(&w, 1, 0, 0, 3);
    CHECK_INT(outcome(&w).code, 0);
    store_test(w.store, 7);
    struct store_progress p = {0};
    for (int64_t until_ns = soon(); p.tested != 7 && clock_now_ns() < until_ns;) {
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
        store_progress(w.store, &p);
    }
    CHECK_INT(p.tested, 7);
    CHECK_INT(p.serving_version, 1);
    has_decayed = true;
    store_test(w.store, 8);
    struct store_outcome out = outcome(&w);
    CHECK_INT(out.code, E_CORRUPT);
    CHECK_HAS(out.why.text, "frail");
    store_progress(w.store, &p);
    CHECK_INT(p.tested, 7);
    close_world(&w);
}

/* One bit of a weight turns while it is in use. */
TEST(store_finds_memory_that_decays)
{
    struct world w;
    struct err e = {0};
    tiny_model_write("model", LAYERS, 5);
    open_world(&w, ALL);
    store_stop(&w.store);
    struct store_options o = {.checkpoint = w.checkpoint,
                              .kernels = kernels_named("portable"),
                              .threads = 1,
                              .memory_bytes = (size_t)ALL * w.expert_bytes,
                              .views = w.views,
                              .retired = w.retired};
    CHECK_INT(store_start(&o, &w.store, &e), 0);
    want(&w, 1, 0, 0, 3);
    CHECK_INT(outcome(&w).code, 0);
    struct store_view *view = queue_pop(w.views);
    CHECK(view != NULL);
    for (int i = 0; i < ALL; i++)
        if (view->held[i]) {
            memset(view->held[i]->room, 0x11, view->held[i]->room_bytes / 2);
            break;
        }
    store_test(w.store, 3);
    struct store_outcome out = outcome(&w);
    CHECK_INT(out.code, E_CORRUPT);
    CHECK_HAS(out.why.text, "self-test");
    CHECK_HAS(out.why.text, "not those on storage");
    close_world(&w);
}
