/* tests/unit/test_bench.c - benchmarks without a clock: statistics on known numbers, options,
 * random weights, a peer's JSON, and which loop belongs to which part. */
#include "tools/bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"
#include "tools/bench_batch.h"
#include "tools/bench_fill.h"
#include "tools/bench_peer.h"
#include "tools/bench_profile.h"
#include "tools/bench_random.h"

static struct bench_series series_of(int n, const double *values)
{
    struct bench_series s = {0};
    for (int i = 0; i < n; i++)
        bench_series_add(&s, values[i]);
    return s;
}

TEST(bench_median_least_and_most)
{
    const double odd[] = {5, 1, 9}, even[] = {4, 1, 2, 100};
    struct bench_series a = series_of(3, odd), b = series_of(4, even), none = {0};
    CHECK(bench_summarise(&a).median == 5);
    CHECK(bench_summarise(&a).least == 1);
    CHECK(bench_summarise(&a).most == 9);
    CHECK(bench_summarise(&b).median == 3);
    CHECK(bench_summarise(&none).median == 0);
    for (int i = 0; i < 2 * BENCH_MAX_REPEAT; i++)
        bench_series_add(&none, i);
    CHECK_INT(none.n, BENCH_MAX_REPEAT);
}

TEST(bench_share_is_taken_repetition_by_repetition)
{
    /* A machine that halves its speed in the middle: the share stays. */
    const double values[] = {8, 4, 4}, ceiling[] = {10, 5, 5};
    struct bench_series a = series_of(3, values), b = series_of(3, ceiling);
    struct bench_metric m = bench_metric_of("k", "u", &a, "read", &b);
    CHECK_NEAR(m.share.least, 0.8, 1e-12);
    CHECK_NEAR(m.share.most, 0.8, 1e-12);
    CHECK(m.value.median == 4);
    b.values[0] = 0;
    struct bench_series ratio = bench_ratio(&a, &b);
    CHECK(ratio.values[0] == 0);
}

TEST(bench_report_is_json_on_demand)
{
    const double values[] = {2, 3, 4};
    struct bench_series s = series_of(3, values);
    struct bench_metric m = bench_metric_of("gb_s", "GB/s", &s, "read", &s);
    struct bench_report r;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    bench_report_begin(&r, true, out);
    bench_report_text(&r, "kernels", "portable");
    bench_report_note(&r, "not in JSON");
    bench_report_row(&r, "one", &m, 1);
    bench_report_end(&r);
    fclose(out);
    json_t *root = json_loads(text, 0, NULL);
    CHECK(root != NULL);
    CHECK_STR(json_string_value(json_object_get(root, "kernels")), "portable");
    json_t *row = json_array_get(json_object_get(root, "rows"), 0);
    json_t *metric = json_object_get(row, "gb_s");
    CHECK(json_real_value(json_object_get(metric, "median")) == 3);
    CHECK(json_real_value(json_object_get(metric, "max")) == 4);
    CHECK_STR(json_string_value(json_object_get(json_object_get(metric, "share"), "of")), "read");
    json_decref(root);
    free(text);
}

TEST(bench_report_is_a_table_for_people)
{
    const double values[] = {22.345, 20, 30};
    struct bench_series s = series_of(3, values);
    struct bench_metric m = bench_metric_of("gb_s", "GB/s", &s, "read", &s);
    struct bench_report r;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    bench_report_begin(&r, false, out);
    bench_report_row(&r, "one", &m, 1);
    bench_report_end(&r);
    fclose(out);
    CHECK_HAS(text, "22.34 GB/s [20.00..30.00] 1.00 of read\n");
    free(text);
}

TEST(bench_lists_are_parsed_and_refused)
{
    static const char *const bad[] = {"", "1,", "1,x", "0", "1 2", "-1", "99999999999"};
    struct bench_list l;
    CHECK_INT(bench_list_parse("rows", "1,16,512", 1, &l, NULL), 0);
    CHECK_INT(l.n, 3);
    CHECK_INT(l.values[2], 512);
    CHECK_INT(bench_list_parse("depth", "0", 0, &l, NULL), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err e = {0};
        CHECK_INT(bench_list_parse("rows", bad[i], 1, &l, &e), E_INVALID);
        CHECK_HAS(e.text, "--rows");
    }
    CHECK_INT(bench_list_parse("rows", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", 1, &l, NULL),
              E_INVALID);
}

static const char peer_json[] =
    "some log line\n[\n  {\"build_commit\": \"abc\", \"build_number\": 7, \"n_prompt\": 512, "
    "\"n_gen\": 0, \"avg_ts\": 99.0, \"samples_ts\": [ 135.5 ]},\n  {\"build_commit\": \"abc\", "
    "\"build_number\": 7, \"n_prompt\": 0, \"n_gen\": 64, \"avg_ts\": 30.7, \"samples_ts\": []}\n"
    "]\n";

TEST(bench_reads_a_peers_json)
{
    struct bench_peer_sample s;
    CHECK_INT(bench_peer_parse(str_of(peer_json), &s, NULL), 0);
    CHECK(s.prefill == 135.5);
    CHECK(s.decode == 30.7);
    CHECK_STR(s.build, "abc (7)");
}

TEST(bench_refuses_a_peers_nonsense)
{
    static const char *const bad[] = {
        "",     "no list",      "[\n{\"n_prompt\":",
        "[\n]", "[\n1, \"x\"]", "[\n{\"n_gen\": 5, \"avg_ts\": \"fast\"}]"};
    struct bench_peer_sample s;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        CHECK_INT(bench_peer_parse(str_of(bad[i]), &s, NULL), E_CORRUPT);
}

TEST(bench_says_what_a_broken_peer_did)
{
    struct bench_peer_sample s;
    struct err e = {0};
    struct bench_peer p = {.program = "/bin/false", .model = "x", .threads = 1};
    CHECK_INT(bench_peer_run(&p, &s, &e), E_UNAVAILABLE);
    CHECK_HAS(e.text, "/bin/false: exit status 1");
    p.program = "/no/such/llama-bench";
    CHECK_INT(bench_peer_look(&p, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "/no/such/llama-bench");
}

/* A script that prints what a peer would, if it was asked as expected. */
static void write_peer(const char *expected)
{
    struct buf text = {0};
    buf_printf(&text,
               "#!/bin/sh\n[ \"$*\" = '%s' ] || exit 3\n"
               "echo '[\n{\"n_gen\": 8, \"avg_ts\": 12.5}]'\n",
               expected);
    CHECK_INT(buf_write_file(&text, "peer.sh", NULL), 0);
    buf_fini(&text);
}

TEST(bench_asks_a_peer_for_what_it_knows)
{
    struct bench_peer_sample s;
    struct bench_peer p = {.program = "/bin/sh",
                           .model = "m.gguf",
                           .threads = 2,
                           .prompt = 16,
                           .tokens = 8,
                           .more_args = " -fa  1"};
    static const char *const expected[] = {
        "-m m.gguf -t 2 -r 1 -o json -p 16 -n 8 -fa 1",
        "-m m.gguf -t 2 -r 1 -o json -p 16 -n 8 -d 64 -fa 1",
        "-m m.gguf -t 2 -r 1 -o json -p 0 -n 0 -gp 64,8 -fa 1",
    };
    for (int i = 0; i < 3; i++) {
        write_peer(expected[i]);
        CHECK_INT(system("chmod +x peer.sh"), 0);
        p.program = "./peer.sh";
        p.depth = i > 0 ? 64 : 0;
        p.has_depth = i == 1;
        p.has_gp = i == 2;
        struct err e = {0};
        int rc = bench_peer_run(&p, &s, &e);
        test_note("%s", e.text);
        CHECK_INT(rc, 0);
        CHECK(s.decode == 12.5);
    }
}

/* One that writes its table to the standard error, among other lines, as older ones do. */
static const char peer_table[] = "llama_model_loader: loaded\n\n"
                                 "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG "
                                 "s | S_TG t/s |      T s |    S t/s |\n"
                                 "|-------|--------|------|--------|----------|----------|---------"
                                 "-|----------|----------|----------|\n"
                                 "|    16 |      8 |    1 |     24 |    0.226 |   282.89 |    "
                                 "1.142 |    28.06 |    1.4 |    22.5 |\n"
                                 "|    16 |      8 |    4 |     96 |    0.226 |   282.89 |    "
                                 "1.142 |   112.25 |    1.4 |    22.5 |\n";

TEST(bench_asks_a_peer_for_batches)
{
    struct buf script = {0};
    struct bench_peer p = {.program = "./peer.sh",
                           .model = "m.gguf",
                           .threads = 2,
                           .prompt = 16,
                           .tokens = 8,
                           .more_args = "-fa -fmoe"};
    static const int streams[] = {4, 1, 2};
    double rates[3];
    struct err e = {0};
    buf_printf(
        &script,
        "#!/bin/sh\n[ \"$*\" = '-m m.gguf -t 2 -npp 16 -ntg 8 -npl 4,1 -c 96 -fa -fmoe' ] || "
        "exit 3\ncat >&2 <<END\n%sEND\n",
        peer_table);
    CHECK_INT(buf_write_file(&script, "peer.sh", NULL), 0);
    CHECK_INT(system("chmod +x peer.sh"), 0);
    int rc = bench_peer_batches(&p, streams, 2, rates, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
    CHECK(rates[0] == 112.25 && rates[1] == 28.06);
    struct str table = {peer_table, sizeof peer_table - 1};
    CHECK_INT(bench_peer_parse_batches(table, streams, 3, rates, &e), E_CORRUPT);
    CHECK_INT(bench_peer_parse_batches(STR("|1|2|3|"), streams, 1, rates, NULL), E_CORRUPT);
    p.threads = 3;
    CHECK_INT(bench_peer_batches(&p, streams, 2, rates, &e), E_UNAVAILABLE);
    buf_fini(&script);
}

TEST(bench_batch_divides_what_lies_between_two_readings)
{
    static const char first[] = "polymath_generated_tokens_total 100\n"
                                "polymath_steps_total 10\n"
                                "polymath_steps_by_lanes_total{lanes=\"2\"} 10\n"
                                "polymath_step_part_seconds_total{part=\"attention\"} 1.5\n"
                                "polymath_coordinator_work_seconds_total{work=\"http\"} 0.25\n";
    static const char second[] = "polymath_generated_tokens_total 420\n"
                                 "polymath_steps_total 30\n"
                                 "polymath_steps_by_lanes_total{lanes=\"2\"} 15\n"
                                 "polymath_lanes_time_ratio 0.875\n"
                                 "polymath_step_part_seconds_total{part=\"attention\"} 2.5\n"
                                 "polymath_step_part_seconds_total{part=\"experts\"} 0.6\n"
                                 "polymath_coordinator_work_seconds_total{work=\"http\"} 0.35\n"
                                 "polymath_coordinator_work_seconds_total{work=\"other\"} 0.5\n";
    struct bench_batch_count a, b;
    struct bench_batch_sample s;
    bench_batch_parse(first, 5 * CLOCK_S, &a);
    bench_batch_parse(second, 7 * CLOCK_S, &b);
    CHECK(bench_batch_between(&a, &b, &s));
    CHECK_NEAR(s.tokens_s, 160, 1e-9);
    CHECK_NEAR(s.step_ms, 100, 1e-9);
    CHECK_NEAR(s.rows, 16, 1e-9);
    CHECK_NEAR(s.part_ms[BENCH_BATCH_ATTENTION], 50, 1e-9);
    CHECK_NEAR(s.part_ms[BENCH_BATCH_EXPERTS], 30, 1e-9);
    CHECK_NEAR(s.between_ms, 20, 1e-9);
    CHECK_NEAR(s.two_lanes_percent, 25, 1e-9);
    CHECK_NEAR(s.lanes_ratio, 0.875, 1e-9);
    CHECK_NEAR(s.own_ms, 5, 1e-9); /* messages are not of what has a limit */
    CHECK(!bench_batch_between(&b, &b, &s));
}

/* Every format's random weights are finite, of both signs, and spread about 1 / sqrt(cols). */
TEST(bench_random_weights_are_sane)
{
    enum { ROWS = 40, COLS = 256 };
    float row[COLS];
    for (enum weight_format f = FORMAT_F32; f < FORMAT_COUNT; f++) {
        struct bench_matrix m, again;
        double squares = 0;
        int n_negative = 0;
        CHECK_INT(bench_matrix_open(&m, f, ROWS, COLS, 1, NULL), 0);
        CHECK_INT(bench_matrix_open(&again, f, ROWS, COLS, 1, NULL), 0);
        CHECK_BYTES(m.room, again.room, m.bytes);
        for (int r = 0; r < ROWS; r++) {
            matrix_row(&m.m, r, row);
            for (int i = 0; i < COLS; i++) {
                CHECK(isfinite(row[i]));
                squares += (double)row[i] * row[i];
                n_negative += row[i] < 0;
            }
        }
        double spread = sqrt(squares / (ROWS * COLS)) * sqrt(COLS);
        test_note("%s: %.3f", format_name(f), spread);
        CHECK(spread > 0.5 && spread < 2); /* 1, but for the power of two of float formats */
        CHECK(n_negative > ROWS * COLS / 3 && n_negative < ROWS * COLS * 2 / 3);
        bench_matrix_close(&m);
        bench_matrix_close(&again);
    }
}

TEST(bench_random_q8_has_no_weight_below_minus_127)
{
    struct bench_matrix m;
    CHECK_INT(bench_matrix_open(&m, FORMAT_Q8, 16, 128, 3, NULL), 0);
    const int8_t *q = (const int8_t *)m.room + 16 * sizeof(float);
    for (int i = 0; i < 16 * 128; i++)
        CHECK(q[i] >= -127);
    bench_matrix_close(&m);
}

TEST(bench_profile_knows_the_parts)
{
    struct model_config c = {.vocab_size = 96,
                             .hidden_size = 32,
                             .n_heads = 4,
                             .n_kv_heads = 2,
                             .head_dim = 16,
                             .expert_size = 16,
                             .n_experts = 8};
    const struct kernels *k = bench_profile_wrap(kernels_named("portable"), &c);
    const struct {
        int rows, cols;
        enum bench_part part;
    } shapes[] = {{96, 32, BENCH_PART_HEAD},        {8, 32, BENCH_PART_ROUTER},
                  {16, 32, BENCH_PART_EXPERTS},     {64, 32, BENCH_PART_EXPERTS},
                  {64, 32, BENCH_PART_PROJECTIONS}, {32, 64, BENCH_PART_PROJECTIONS}};
    float *x = mem_aligned(64 * sizeof(float)), *y = mem_aligned(96 * sizeof(float));
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        struct bench_matrix m;
        struct rows rows = {.n_rows = 1, .cols = shapes[i].cols, .f32 = x, .f32_stride = 64};
        CHECK_INT(bench_matrix_open(&m, FORMAT_F32, shapes[i].rows, shapes[i].cols, 1, NULL), 0);
        k->matmul[FORMAT_F32](&m.m, 0, 1, &rows, y, 96); /* off: nothing is added */
        bench_profile_set(true);
        bench_profile_experts(shapes[i].part == BENCH_PART_EXPERTS);
        for (int j = 0; j < 1000; j++) /* so many that a coarse clock sees them */
            k->matmul[FORMAT_F32](&m.m, 0, 1, &rows, y, 96);
        bench_profile_set(false);
        bench_profile_experts(false);
        for (enum bench_part part = 0; part < BENCH_PARTS; part++)
            CHECK((bench_profile_ns(part) > 0) == (part == shapes[i].part));
        bench_matrix_close(&m);
    }
    mem_free(x);
    mem_free(y);
}

TEST(bench_fills_a_cache_whole)
{
    struct model_config c = {.n_layers = 2, .n_heads = 2, .n_kv_heads = 1, .head_dim = 16};
    enum { POSITIONS = 70 };
    struct kv *kv;
    struct kv_seq seq = {0};
    CHECK_INT(kv_open(&c, KV_F32, 2 * kv_page_bytes(&c, KV_F32), &kv, NULL), 0);
    CHECK_INT(kv_reserve(kv, &seq, POSITIONS), 0);
    bench_fill_cache(&c, kv, &seq, POSITIONS, NULL);
    CHECK_INT(seq.length, POSITIONS);
    for (int layer = 0; layer < 2; layer++)
        for (int at = 0; at < POSITIONS; at++) {
            struct attend_block b = {0};
            double size = 0;
            kv_block(kv, &seq, layer, at / KV_PAGE_TOKENS, 0, &b);
            const float *v =
                (const float *)b.v + (size_t)(at % KV_PAGE_TOKENS) * (size_t)kv_value_stride(kv);
            for (int d = 0; d < 16; d++)
                size += fabsf(v[d]);
            CHECK(isfinite(size) && size > 0);
        }
    kv_truncate(kv, &seq, 0);
    kv_close(&kv);
}

static int run_bench(char *a, char *b, char *c)
{
    char name[] = "bench";
    char *argv[] = {name, a, b, c, NULL};
    int argc = c ? 4 : b ? 3 : a ? 2 : 1;
    return bench_main(argc, argv);
}

TEST(bench_command_line_errors)
{
    char kernels[] = "kernels", decode[] = "decode", depth[] = "--depth", one[] = "1";
    char unknown[] = "sleep", against[] = "against", help[] = "--help";
    char geometry[] = "--geometry", tiny[] = "m2-tiny";
    CHECK_INT(run_bench(NULL, NULL, NULL), 2);
    CHECK_INT(run_bench(unknown, NULL, NULL), 2);
    CHECK_INT(run_bench(kernels, depth, one), 2);     /* not an option of this one */
    CHECK_INT(run_bench(decode, NULL, NULL), 2);      /* no model */
    CHECK_INT(run_bench(against, geometry, tiny), 2); /* no peer */
    char attention[] = "attention", kind[] = "--kind", msa[] = "msa", cache[] = "--cache";
    CHECK_INT(run_bench(attention, kind, msa), 2); /* M2 has none */
    CHECK_INT(run_bench(attention, kind, unknown), 2);
    CHECK_INT(run_bench(attention, geometry, tiny), 2); /* m2 or m3 */
    CHECK_INT(run_bench(attention, cache, tiny), 2);
    char scores[] = "--scores", adversarial[] = "adversarial";
    CHECK_INT(run_bench(attention, scores, unknown), 2);
    CHECK_INT(run_bench(attention, scores, adversarial), 2); /* M2 has no index keys */
    CHECK_INT(run_bench(help, NULL, NULL), 0);
    CHECK_INT(run_bench(decode, help, NULL), 0);
}
