/* tests/unit/test_pack_m3.c - a packed MiniMax-M3: dense layers, the shared expert, index
 * projections, and from both forms of source the bits of the released folder. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "engine/pack.h"
#include "model/packed.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"
#include "tools/local_engine.h"
#include "tools/quality.h"
#include "tools/synth_packed.h"

enum { VOCAB = 512, N_TOKENS = 90, DENSE_SIZE = PACK_ROWS + 200 };

static struct synth_options options_of(const char *dir, enum dtype dtype)
{
    struct synth_options o;
    synth_defaults(&o);
    CHECK_INT(synth_preset("m3-tiny", &o.config, NULL), 0);
    o.config.vocab_size = VOCAB;
    o.config.dense_size = DENSE_SIZE; /* packed in two ranges */
    o.config.shared_size = 72;
    o.dir = dir;
    o.dtype = dtype;
    o.is_forced = true;
    return o;
}

static void write_m3(const char *dir, enum dtype dtype)
{
    struct synth_options o = options_of(dir, dtype);
    struct err e = {0};
    if (synth_write(&o, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

static void pack(const char *from, const char *to, const char *formats, bool is_forced)
{
    struct pack_options o = {.model_dir = from,
                             .out_dir = to,
                             .kernels = kernels_named("portable"),
                             .n_threads = 3,
                             .is_forced = is_forced,
                             .verifies = true};
    struct err e = {0};
    CHECK_INT(format_set_parse(formats, &o.formats, &e), 0);
    if (pack_make(&o, NULL, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

/* Far enough that rows choose their blocks. */
static float *logits_of(const char *dir, const char *format)
{
    struct tiny_model_options o = {.n_threads = 2, .max_rows = N_TOKENS, .format = format};
    struct tiny_model m;
    struct kv_seq seq = {0};
    int32_t tokens[N_TOKENS];
    struct rng r = rng_stream(7, 1);
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (int32_t)rng_below(&r, VOCAB - 60);
    float *logits = mem_array((size_t)N_TOKENS * VOCAB, sizeof *logits);
    tiny_model_open(&m, dir, &o);
    tiny_model_run(&m, &seq, tokens, N_TOKENS, 64, logits);
    kv_truncate(m.kv, &seq, 0);
    tiny_model_close(&m);
    return logits;
}

TEST_WITHIN(pack_of_m3_gives_the_bits_of_the_released_folder, 60)
{
    static const char *const formats[] = {"native", "q8,kv=int8",
                                          "experts=q4,attention=fp8,head=bf16"};
    static const enum dtype dtypes[] = {DTYPE_F8_E4M3, DTYPE_BF16};
    for (int d = 0; d < 2; d++) {
        write_m3("model", dtypes[d]);
        for (int i = 0; i < 3; i++) {
            test_note("%s of %s", formats[i], dtype_name(dtypes[d]));
            pack("model", "packed", formats[i], true);
            float *want = logits_of("model", formats[i]), *got = logits_of("packed", formats[i]);
            CHECK_BYTES(got, want, (size_t)N_TOKENS * VOCAB * sizeof *got);
            mem_free(want);
            mem_free(got);
        }
    }
}

/* What one packing holds can be packed again; vision tensors stay behind, one format holds for
 * all that is an expert, and what is asked of the wrong one is refused by name. */
TEST(pack_of_m3_has_a_place_for_everything)
{
    struct checkpoint *plain, *packed;
    struct layer_view want, got;
    struct tensor t;
    struct format_set other;
    struct err e = {0};
    size_t bytes[2];
    write_m3("model", DTYPE_F8_E4M3);
    pack("model", "first", "experts=q8,attention=bf16,head=bf16", false);
    pack("first", "packed", "native", false);
    CHECK_INT(checkpoint_open("model", &plain, &e), 0);
    CHECK_INT(checkpoint_open("packed", &packed, &e), 0);
    for (int layer = 0; layer < 4; layer++) {
        CHECK_INT(weights_layer(plain, layer, &want, &e), 0);
        CHECK_INT(weights_layer(packed, layer, &got, &e), 0);
        CHECK(got.has_mlp && got.mlp.gate.packed && got.wq.packed);
        CHECK_INT(got.mlp.gate.packed_format, FORMAT_Q8);
        CHECK_INT(got.mlp.down.cols, layer == 0 ? DENSE_SIZE : 72);
        CHECK_INT(got.has_experts, layer > 0);
        CHECK_INT(got.is_sparse, layer > 0);
        if (layer == 0)
            continue;
        CHECK(!got.index_q.packed && got.index_q.weight.dtype == DTYPE_F8_E4M3);
        CHECK_BYTES(got.index_k.weight.data, want.index_k.weight.data,
                    want.index_k.weight.size_bytes);
        CHECK_BYTES(got.index_k.scale.data, want.index_k.scale.data, want.index_k.scale.size_bytes);
    }
    CHECK_INT(checkpoint_find(packed, "multi_modal_projector.linear_1.weight", &t, NULL),
              E_NOT_FOUND);
    CHECK_INT(checkpoint_expert_bytes(packed, &bytes[0], NULL), 0);
    CHECK(bytes[0] == packed_contents(checkpoint_packed(packed))->parts[PACKED_EXPERTS].blob_bytes);
    CHECK_INT(format_set_parse("q4", &other, NULL), 0);
    CHECK_INT(checkpoint_formats(packed, &other, &e), E_PRECONDITION);
    CHECK_HAS(e.text, "packed with experts=q8");
    checkpoint_close(&plain);
    checkpoint_close(&packed);
}

TEST(synth_packs_m3_at_once)
{
    struct synth_options o = options_of("p", DTYPE_F8_E4M3);
    struct format_set formats;
    struct err e = {0};
    CHECK_INT(format_set_parse("experts=q4,attention=q8,head=q8", &formats, NULL), 0);
    int rc = synth_packed_write(&o, &formats, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
    float *logits = logits_of("p", "native");
    CHECK(logits[0] != logits[1]);
    mem_free(logits);
}

/* Dense layers route nothing, and say so. */
TEST(quality_measures_m3)
{
    struct local_engine_options o;
    struct format_set reference, tested;
    struct quality_ids ids;
    struct quality_stats s;
    struct err e = {0};
    write_m3("m", DTYPE_F8_E4M3);
    local_engine_defaults(&o);
    o.model_dir = "m";
    o.n_threads = 1;
    CHECK_INT(format_set_parse("native", &reference, NULL), 0);
    CHECK_INT(format_set_parse("q8", &tested, NULL), 0);
    CHECK_INT(quality_ids_parse(STR("1 2 3 4 5 6 7 8 9\n10 11\n"), &ids, NULL), 0);
    int rc = quality_compare(&o, &reference, &tested, &ids, &s, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
    CHECK_INT(s.n_layers, 4);
    CHECK(quality_divergence_mean(&s) > 0);
    for (int layer = 0; layer < 4; layer++) {
        CHECK(quality_layer_error(&s.layers[layer]) > 0);
        CHECK_INT(s.layers[layer].n_slots > 0, layer > 0);
    }
    CHECK(quality_layer_overlap(&s.layers[1]) > 0.5);
    quality_ids_fini(&ids);
    quality_stats_fini(&s);
    rc = quality_scales("m", 2, true, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
}
