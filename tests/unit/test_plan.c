/* tests/unit/test_plan.c - polymath plan: sizes beside the published ones, machines as they are
 * written, and forecasts beside what can be reckoned by hand. */
#include <stdio.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "engine/load.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"
#include "tools/plan_options.h"
#include "tools/synth.h"

#define GB 1e9

static struct plan_model model(const char *preset, const char *format)
{
    struct plan_model m;
    CHECK_INT(plan_model_open(preset, NULL, format, &m, NULL), 0);
    return m;
}

TEST(plan_knows_the_sizes_of_m2)
{
    struct plan_model m = model("m2", "native,kv=bf16");
    CHECK_INT(m.n_layers, 62);
    CHECK_INT(m.n_experts, 256);
    /* 230.12 GB as released: experts, attention with router, head and embedding. */
    double all = 62.0 * 256 * m.expert_bytes + m.attention_bytes + m.head_bytes + m.embedding_bytes;
    CHECK(all > 229.9 * GB && all < 230.2 * GB);
    CHECK(m.position_bytes == 253952);
    m = model("m2", "q4,kv=int8");
    CHECK(m.expert_bytes == 14155776 * 0.5625);
    CHECK(m.position_bytes == 126976 + 62 * 2 * 8 * 4);
    /* A row of 3,072 numbers in 8 bits with 48 scales; back as int32. */
    CHECK(plan_model_row_out_bytes(&m, 2, 0) - plan_model_row_out_bytes(&m, 1, 0) ==
          3072 + 48 * 4 + 4);
    CHECK(plan_model_row_back_bytes(&m, 2) - plan_model_row_back_bytes(&m, 1) == 3072 * 4);
}

TEST(plan_knows_the_sizes_of_m3)
{
    struct plan_model m = model("m3", "bf16,kv=bf16");
    CHECK(m.position_bytes == 141348);
    CHECK(m.expert_bytes == 2.0 * 56623104);
    /* 852.3 GB of BF16, routers in f32. */
    double all = 57.0 * 128 * m.expert_bytes + m.attention_bytes + m.head_bytes + m.embedding_bytes;
    CHECK(all > 852.2 * GB && all < 852.6 * GB);
    /* Cache reads of a token: 2.957 GB at 131,072 positions; all of it while that is less. */
    double none = plan_model_attention_bytes(&m, 0, 131072);
    double cache = plan_model_attention_bytes(&m, 1, 131072) - none;
    CHECK(cache > 2.95 * GB && cache < 2.965 * GB);
    cache = plan_model_attention_bytes(&m, 1, 100) - none;
    CHECK(cache == 141348.0 * 100);
    cache = plan_model_attention_bytes(&m, 1, 1 << 20) - none;
    CHECK(cache > 21.97 * GB && cache < 21.99 * GB);
    /* 3 dense layers, 57 with experts, a shared one, sparse attention and an index. */
    CHECK_INT(m.n_all_layers, 60);
    CHECK_INT(m.n_layers, 57);
    CHECK_INT(m.n_sparse_layers, 57);
    CHECK(m.index_bytes == 14592 + 57 * 68);
    CHECK_NEAR(m.attention_bytes,
               2.0 * (6417285120.0 + 679477248.0 + 3227516928.0 + 224133120.0) + 4 * 44833920.0,
               1e-6 * GB);
    /* 243.7 GB at 4.5 bits with index, head and embedding in bf16. */
    m = model("m3", "experts=q4,attention=q4,head=bf16,kv=int8");
    all = 57.0 * 128 * m.expert_bytes + m.attention_bytes + m.head_bytes + m.embedding_bytes;
    CHECK(all > 243.6 * GB && all < 243.9 * GB);
    /* int8 has a scale for each key and value of a head. */
    CHECK(m.position_bytes - m.index_bytes == 61440 + 60 * 2 * 4 * 4);
}

TEST(plan_knows_what_a_million_positions_take)
{
    struct plan_model m = model("m3", "q4,kv=bf16");
    struct err e = {0};
    CHECK_INT(m.max_positions, 1 << 20);
    CHECK(plan_model_stream_bytes(&m, 1 << 20) == 141348.0 * (1 << 20)); /* 148 GB */
    CHECK(plan_model_stream_bytes(&m, 32768) == 141348.0 * 32768);
    CHECK(plan_model_stream_bytes(&m, 1) == 141348.0 * 64); /* a page */
    CHECK_INT(plan_model_check_context(&m, 1 << 20, &e), 0);
    CHECK_INT(plan_model_check_context(&m, (1 << 20) + 1, &e), E_RANGE);
    CHECK_HAS(e.text, "--context 1048577");
    CHECK_HAS(e.text, "max_position_embeddings of m3 is 1048576");
    m = model("m2", "q4,kv=bf16");
    CHECK_INT(plan_model_check_context(&m, 196609, &e), E_RANGE);
}

/* A directory is planned as the cache and the weights of the engine that opens it are. */
/* One host alone has whole pages of 64, several have spans of 8 pages each; a model has an end. */
TEST(plan_knows_how_long_a_context_may_be)
{
    struct plan_model m;
    struct err e = {0};
    CHECK_INT(plan_model_open("m3", NULL, "q8", &m, &e), 0);
    int64_t page = (int64_t)m.page_bytes;
    CHECK_INT(plan_model_longest(&m, (int64_t[]){15 * page}, 1), 15 * 64);
    CHECK_INT(plan_model_longest(&m, (int64_t[]){15 * page, 23 * page, 7 * page}, 3), 24 * 64);
    CHECK_INT(plan_model_longest(&m, (int64_t[]){page * 1000000}, 1), 1 << 20);
    /* 64 heads of 128: q, and twice o with its maximum and sum; 57 layers choose 15 of each of 4 heads'
     * blocks by queries of 128. */
    double layer = 3 * 4 * 64 * 128 + 2 * 8 * 64;
    double choice = 4 * 4 * 128 + 8 * 4 * 15 + 4 * 4 * 16;
    CHECK(m.far_bytes == 60 * layer + 57 * choice);
    CHECK_INT(m.far_calls, 60 + 57);
}

TEST(plan_of_a_folder_is_what_the_engine_takes)
{
    static const char *const formats[] = {"f32", "bf16,kv=bf16", "fp8,kv=int8", "bf16,kv=f32"};
    struct synth_options o;
    struct err e = {0};
    synth_defaults(&o);
    CHECK_INT(synth_preset("m3-tiny", &o.config, NULL), 0);
    o.dir = "m3";
    o.dtype = DTYPE_BF16;
    CHECK_INT(synth_write(&o, &e), 0);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        struct tiny_model_options options = {.format = formats[i]};
        struct tiny_model engine;
        struct plan_model m;
        CHECK_INT(plan_model_open(NULL, "m3", formats[i], &m, &e), 0);
        tiny_model_open(&engine, "m3", &options);
        CHECK(m.page_bytes == (double)kv_page_bytes(engine.config, engine.formats.kv));
        size_t bytes;
        CHECK_INT(load_expert_bytes(engine.checkpoint, engine.formats.experts, &bytes, NULL, &e),
                  0);
        /* Scales of small blocks are rounded up to a line. */
        CHECK(m.expert_bytes <= (double)bytes && m.expert_bytes + 3 * 64 >= (double)bytes);
        CHECK_INT(m.n_layers, 3);
        CHECK_INT(m.n_sparse_layers, 3);
        tiny_model_close(&engine);
    }
}

TEST(plan_reads_machines_and_names_what_is_wrong_with_them)
{
    struct plan_defaults d = {.read_bytes_s = 5 * GB, .wire_gbit = 10, .round_trip_us = 200};
    struct plan_hosts h;
    struct err e = {0};
    CHECK_INT(plan_hosts_open("3x64@80,128", NULL, &d, &h, &e), 0);
    CHECK_INT(h.n_hosts, 4);
    CHECK(h.hosts[2].memory_bytes == 64LL << 30 && h.hosts[2].read_bytes_s == 80 * GB);
    CHECK(!h.hosts[2].is_measured && h.hosts[3].is_measured);
    CHECK(h.hosts[3].read_bytes_s == 5 * GB);
    plan_hosts_close(&h);
    const char *const bad[] = {"x", "0x64", "4x", "4x64@", "4x64@-1", "4x64@80z", "", "5000x1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK(plan_hosts_open(bad[i], NULL, &d, &h, &e) < 0);
    static const struct {
        const char *text, *why;
    } files[] = {{"name=a\n", "machines:1: memory is missing"},
                 {"\n\nmemory=1GiB nodes=0\n", "machines:3"},
                 {"memory=1GiB speed=3\n", "speed"},
                 {"# nothing\n", "names no machine"}};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        struct buf text = {0};
        buf_puts(&text, files[i].text);
        CHECK_INT(buf_write_file(&text, "machines", NULL), 0);
        buf_fini(&text);
        CHECK(plan_hosts_open(NULL, "machines", &d, &h, &e) < 0);
        CHECK_HAS(e.text, files[i].why);
    }
    struct buf text = {0};
    buf_puts(&text, "name=a count=2 memory=64GiB nodes=2 rack=r # two\n"
                    "memory=1TiB read_gb_s=200 wire_gbit=100 round_trip_us=50");
    CHECK_INT(buf_write_file(&text, "machines", NULL), 0);
    buf_fini(&text);
    CHECK_INT(plan_hosts_open(NULL, "machines", &d, &h, &e), 0);
    CHECK_INT(h.n_hosts, 3);
    CHECK_INT(h.n_nodes, 5);
    CHECK_STR(h.hosts[1].name, "a-2");
    CHECK_STR(h.hosts[1].rack, "r");
    CHECK(h.hosts[2].wire_bytes_s == 12.5 * GB && h.hosts[2].round_trip_ns == 50e3);
    plan_hosts_close(&h);
}

static void open_scene(struct plan_scene *s, const char *hosts, int replicas, double skew)
{
    struct plan_options o;
    struct err e = {0};
    plan_options_defaults(&o);
    o.hosts = hosts;
    o.replicas = replicas;
    o.skew = skew;
    o.format = "q4,kv=int8";
    if (plan_scene_open(&o, s, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

/* Distinct experts on the slowest of 8 nodes for one token: 2.59 by chance with one copy; taking
 * the idler of two or three holders gives 1.89 and 1.66, and choice.c looks further than that. */
TEST(forecast_gives_the_slowest_node_what_chance_gives_it)
{
    static const double want[] = {2.59, 1.89, 1.66};
    for (int replicas = 1; replicas <= 3; replicas++) {
        struct plan_scene s;
        open_scene(&s, "8x100@80", replicas, 0);
        struct forecast_step p;
        forecast_run(&s.forecast, 1, 0, 200, &p);
        test_say("%d copies: the slowest of 8 nodes reads %.2f experts of a layer", replicas,
                 p.slowest);
        CHECK(p.slowest < want[replicas - 1] + 0.06);
        CHECK(replicas > 1 || p.slowest > want[0] - 0.06);
        CHECK(p.distinct == 8);
        CHECK_INT(p.n_missing, 0);
        plan_scene_close(&s);
    }
}

TEST(forecast_adds_up_what_a_step_takes)
{
    struct plan_scene s;
    open_scene(&s, "1x500@100", 1, 0.5);
    struct forecast_step p;
    forecast_run(&s.forecast, 1, 1000, 10, &p);
    const struct plan_model *m = &s.model;
    double speed = 100 * GB * 0.8;
    CHECK_NEAR(p.experts_ms, 1e3 * 62 * 8 * m->expert_bytes / speed, 1e-6);
    double attention = m->attention_bytes + m->head_bytes + 1000 * m->position_bytes;
    CHECK_NEAR(p.attention_ms, 1e3 * attention / speed, 1e-6);
    CHECK(p.network_ms > 62 * 0.2 && p.network_ms < 62 * 0.23);
    CHECK_NEAR(p.tokens_s, 1e3 / (p.attention_ms + p.network_ms + p.experts_ms), 1e-6);
    CHECK_NEAR(p.balance, 1, 1e-9);
    plan_scene_close(&s);
}

/* Attention of one lane while the other's experts are read: 10 and 10 in three layers end after 7 times 10, where
 * experts wait for attention; the network is waited for by its own lane only. */
TEST(forecast_of_two_lanes_is_a_pipeline)
{
    double attention[2] = {10, 10}, experts[6] = {10, 10, 10, 10, 10, 10}, none[6] = {0};
    double slow[6] = {0, 0, 30, 30, 0, 0}, trips[6] = {4, 4, 4, 4, 4, 4};
    CHECK_NEAR(forecast_two_lanes_ns(3, attention, experts, none), 70, 1e-9);
    CHECK_NEAR(forecast_two_lanes_ns(3, attention, none, none), 60, 1e-9);
    CHECK_NEAR(forecast_two_lanes_ns(1, attention, experts, trips), 34, 1e-9);
    CHECK_NEAR(forecast_two_lanes_ns(2, attention, none, trips), 44, 1e-9);
    CHECK_NEAR(forecast_two_lanes_ns(2, attention, slow, none), 90, 1e-9);
}

TEST(forecast_takes_two_lanes_where_they_win)
{
    struct plan_scene s;
    open_scene(&s, "8x100@80", 2, 0.5);
    struct forecast_step one, two, best, single;
    s.forecast.options.lanes = 1;
    forecast_run(&s.forecast, 16, 30000, 20, &one);
    s.forecast.options.lanes = 2;
    forecast_run(&s.forecast, 16, 30000, 20, &two);
    forecast_run(&s.forecast, 1, 30000, 20, &single);
    s.forecast.options.lanes = 0;
    forecast_run(&s.forecast, 16, 30000, 20, &best);
    test_say("16 streams at 30,000: %.1f ms in one lane, %.1f in two", one.step_ms, two.step_ms);
    CHECK(one.lanes == 1 && one.two_lanes == 0 && two.lanes == 2 && single.lanes == 1);
    CHECK_NEAR(two.hidden_ms, one.step_ms - two.step_ms, 1e-6);
    CHECK_NEAR(two.two_lanes, two.step_ms / one.step_ms, 1e-9);
    CHECK_NEAR(two.attention_ms, one.attention_ms, 1e-9);
    CHECK_NEAR(best.step_ms, two.two_lanes < 0.97 ? two.step_ms : one.step_ms, 1e-9);
    /* Long contexts are the lanes' own, and hide well; nothing is faster than attention alone. */
    CHECK(best.lanes == 2 && two.step_ms > one.attention_ms);
    plan_scene_close(&s);
}

TEST(forecast_knows_what_losses_cost)
{
    struct plan_scene s;
    open_scene(&s, "4x100@80", 2, 0.5);
    struct forecast *f = &s.forecast;
    struct forecast_step before, after;
    forecast_run(f, 8, 0, 20, &before);
    CHECK_INT(forecast_uncovered(f), 0);
    forecast_lose_host(f, 1, true);
    CHECK_INT(forecast_uncovered(f), 0);
    CHECK(forecast_lost_copies(f) > f->placement.n_total / 3);
    forecast_run(f, 8, 0, 20, &after);
    CHECK(after.tokens_s < before.tokens_s);
    CHECK_INT(after.n_missing, 0);
    forecast_lose_host(f, 2, true);
    CHECK(forecast_uncovered(f) > 0);
    forecast_lose_host(f, 0, true);
    forecast_lose_host(f, 3, true);
    CHECK_INT(forecast_uncovered(f), f->placement.n_total);
    plan_scene_close(&s);
    /* What does not fit is refused with the numbers. */
    struct plan_options o;
    struct err e = {0};
    plan_options_defaults(&o);
    o.hosts = "2x64@80";
    CHECK_INT(plan_scene_open(&o, &s, &e), E_NOMEM);
    CHECK_HAS(e.text, "209.3 GiB");
}

TEST(forecast_uses_what_was_recorded)
{
    struct plan_model m = model("m2", "q4");
    struct trace *t;
    struct err e = {0};
    char *path = mem_format("%s/../../../models/demo/routing_trace.gz", test_bin_dir());
    if (trace_open(path, &m, 0, 1, &t, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    struct rng r = rng_seed(1);
    uint16_t experts[62 * 2 * 8];
    trace_draw(t, &r, 2, experts);
    for (int i = 0; i < 62 * 2; i++)
        for (int k = 0; k < 8; k++) {
            CHECK(experts[i * 8 + k] < 256);
            for (int l = 0; l < k; l++)
                CHECK(experts[i * 8 + k] != experts[i * 8 + l]);
        }
    trace_close(&t);
    struct plan_model other = model("m3", "q4");
    CHECK_INT(trace_open(path, &other, 0, 1, &t, &e), E_PRECONDITION);
    CHECK(t == NULL);
    mem_free(path);
    CHECK(trace_open("/nowhere", &m, 0, 1, &t, &e) < 0);
    struct buf text = {0};
    buf_puts(&text, "{\"layers\": 1, \"experts\": 256, \"top_k\": 8}\n1234567");
    CHECK_INT(buf_write_file(&text, "short", NULL), 0);
    buf_fini(&text);
    CHECK_INT(trace_open("short", &m, 0, 1, &t, &e), E_CORRUPT);
}
