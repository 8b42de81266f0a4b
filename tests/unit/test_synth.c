/* tests/unit/test_synth.c - synthetic checkpoints: the released format, the same bytes. */
#include "tools/synth.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "model/fp8.h"
#include "model/weights.h"
#include "tests/lib/test.h"
#include "tools/local_engine.h"
#include "tools/progress.h"
#include "tools/synth_packed.h"

static struct synth_options small_options(const char *dir)
{
    struct synth_options o;
    synth_defaults(&o);
    CHECK_INT(synth_set(&o.config, "num_hidden_layers=1", NULL), 0);
    CHECK_INT(synth_set(&o.config, "num_local_experts=8", NULL), 0);
    CHECK_INT(synth_set(&o.config, "hidden_size=200", NULL), 0);
    o.dir = dir;
    return o;
}

static void make(struct synth_options o)
{
    struct err e = {0};
    int rc = synth_write(&o, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
}

static bool is_same_file(const char *a, const char *b)
{
    struct buf x = {0}, y = {0};
    CHECK_INT(buf_read_file(&x, a, 1 << 28, NULL), 0);
    CHECK_INT(buf_read_file(&y, b, 1 << 28, NULL), 0);
    bool is_same = x.len == y.len && memcmp(x.data, y.data, x.len) == 0;
    buf_fini(&x);
    buf_fini(&y);
    return is_same;
}

TEST(synth_writes_the_same_bytes_for_the_same_seed)
{
    struct synth_options other = small_options("c");
    make(small_options("a"));
    make(small_options("b"));
    other.seed = 2;
    make(other);
    CHECK(is_same_file("a/model.safetensors", "b/model.safetensors"));
    CHECK(is_same_file("a/config.json", "b/config.json"));
    CHECK(is_same_file("a/tokenizer.json", "b/tokenizer.json"));
    CHECK(!is_same_file("a/model.safetensors", "c/model.safetensors"));
}

/* Bytes of one tensor do not depend on the others: sharded or not, more layers or fewer. */
TEST(synth_gives_a_tensor_its_own_numbers)
{
    struct synth_options o = small_options("a");
    struct checkpoint *a, *b;
    struct expert_view x, y;
    make(o);
    o.dir = "b";
    o.shard_bytes = 100000;
    o.config.n_layers = 2;
    make(o);
    CHECK_INT(checkpoint_open("a", &a, NULL), 0);
    CHECK_INT(checkpoint_open("b", &b, NULL), 0);
    CHECK_INT(weights_expert(a, 0, 5, &x, NULL), 0);
    CHECK_INT(weights_expert(b, 0, 5, &y, NULL), 0);
    CHECK_BYTES(y.up.weight.data, x.up.weight.data, x.up.weight.size_bytes);
    CHECK_INT(weights_expert(b, 1, 5, &y, NULL), 0);
    CHECK(memcmp(y.up.weight.data, x.up.weight.data, x.up.weight.size_bytes) != 0);
    checkpoint_close(&a);
    checkpoint_close(&b);
}

/* Root mean square of y = W x's weights, as the engine will see them. */
static double spread_of(const struct linear_view *l)
{
    size_t n = (size_t)(l->rows * l->cols);
    float *values = mem_array(n, sizeof *values);
    double squares = 0, sum = 0;
    tensor_read_f32(&l->weight, 0, (int64_t)n, values);
    if (l->scale.data)
        fp8_dequantize(l->weight.data, l->scale.data, l->rows, l->cols, values);
    for (size_t i = 0; i < n; i++) {
        CHECK(isfinite(values[i]));
        squares += (double)values[i] * values[i];
        sum += (double)values[i];
    }
    mem_free(values);
    /* Zero mean, within five standard errors. */
    CHECK_NEAR(sum / (double)n, 0, 5 * sqrt(squares / (double)n / (double)n));
    return sqrt(squares / (double)n);
}

TEST(synth_spreads_weights_by_their_inputs)
{
    static const enum dtype dtypes[] = {DTYPE_F8_E4M3, DTYPE_BF16, DTYPE_F32};
    static const char *const dirs[] = {"fp8", "bf16", "f32"};
    for (int i = 0; i < 3; i++) {
        struct synth_options o = small_options(dirs[i]);
        struct checkpoint *c;
        struct layer_view v;
        struct expert_view x;
        float norms[200], total = 0;
        o.dtype = dtypes[i];
        make(o);
        CHECK_INT(checkpoint_open(dirs[i], &c, NULL), 0);
        CHECK_INT(weights_layer(c, 0, &v, NULL), 0);
        CHECK_INT(weights_expert(c, 0, 3, &x, NULL), 0);
        CHECK_INT(x.gate.weight.dtype, dtypes[i]);
        /* FP8 scales vary by a quarter per block, and there are few blocks: 15 %. */
        CHECK_NEAR(spread_of(&v.wq) * sqrt(200), 1, 0.15);
        CHECK_NEAR(spread_of(&v.wo) * sqrt(256), 1, 0.15);
        CHECK_NEAR(spread_of(&x.gate) * sqrt(200), 1, 0.25);
        CHECK_NEAR(spread_of(&x.down) * sqrt(64), 2, 0.5);
        tensor_read_f32(&v.input_norm, 0, 200, norms);
        for (int k = 0; k < 200; k++)
            total += norms[k];
        CHECK_NEAR(total / 200, 1, 0.05);
        CHECK_INT(v.router_gate.dtype, DTYPE_F32);
        checkpoint_close(&c);
    }
}

TEST(synth_replaces_a_model_only_by_force)
{
    struct synth_options o = small_options("a");
    struct err e = {0};
    o.shard_bytes = 100000;
    make(o);
    CHECK(access("a/model.safetensors.index.json", F_OK) == 0);
    o.shard_bytes = 1 << 30;
    CHECK_INT(synth_write(&o, &e), E_EXISTS);
    CHECK_HAS(e.text, "--force");
    o.is_forced = true;
    make(o);
    CHECK(access("a/model.safetensors.index.json", F_OK) != 0);
    CHECK(access("a/model.safetensors", F_OK) == 0);
}

TEST(synth_refuses_impossible_sizes_and_leaves_nothing)
{
    struct synth_options o = small_options("a");
    struct err e = {0};
    o.config.n_kv_heads = 3;
    CHECK_INT(synth_write(&o, &e), E_INVALID);
    CHECK_HAS(e.text, "num_key_value_heads");
    CHECK(access("a", F_OK) != 0);
    o = small_options("a");
    o.config.vocab_size = 100;
    CHECK_INT(synth_write(&o, &e), E_INVALID);
    CHECK_HAS(e.text, "vocab_size");
    o = small_options("a");
    o.config.hidden_size = o.config.expert_size = 1 << 24;
    o.config.n_experts = 4096;
    o.config.n_layers = 4;
    o.has_tokenizer = false;
    CHECK_INT(synth_write(&o, &e), E_BUSY);
    CHECK_HAS(e.text, "MB free");
    CHECK(access("a", F_OK) != 0);
    o = small_options("no/such");
    CHECK_INT(synth_write(&o, &e), E_NOT_FOUND);
}

TEST(synth_knows_its_presets_and_fields)
{
    struct model_config c;
    struct err e = {0};
    CHECK_INT(synth_preset("m2-tiny", &c, &e), 0);
    CHECK_INT(c.n_experts, 256);
    CHECK_INT(synth_preset("m2-layers-2", &c, &e), 0);
    CHECK_INT(c.n_layers, 2);
    CHECK_INT(c.hidden_size, 3072);
    CHECK_INT(synth_preset("m2-layers-0", &c, &e), E_NOT_FOUND);
    CHECK_INT(synth_preset("m2-layers-2x", &c, &e), E_NOT_FOUND);
    CHECK_INT(synth_preset("m9", &c, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "m2-mini");
    CHECK_INT(synth_set(&c, "hidden_sise=4", &e), E_INVALID);
    CHECK_HAS(e.text, "did you mean hidden_size?");
    CHECK_INT(synth_set(&c, "hidden_size", &e), E_INVALID);
    CHECK_INT(synth_set(&c, "hidden_size=4k", &e), E_INVALID);
    CHECK_INT(synth_set(&c, "rope_theta=-1", &e), E_INVALID);
    CHECK_INT(synth_set(&c, "rope_theta=10000", &e), 0);
    CHECK_NEAR(c.rope_theta, 1e4, 0);
}

TEST(progress_says_how_far_and_how_long)
{
    struct progress p = {.label = "copy", .total = 8000000000, .done = 2000000000};
    char text[PROGRESS_TEXT_BYTES];
    CHECK_STR(progress_text(&p, 4 * CLOCK_S, text),
              "copy: 25 %, 2.0 GB of 8.0 GB, 500 MB/s, 12 s left");
    p = (struct progress){.label = "pack", .unit = PROGRESS_ITEMS, .total = 10, .done = 0};
    CHECK_STR(progress_text(&p, 0, text), "pack: 0 %, 0 of 10, 0/s, 0 s left");
}

/* Straight into packed form: opens, every hash is right, and the model answers. */
TEST(synth_packs_at_once)
{
    struct synth_options o = small_options("p");
    struct format_set formats;
    struct local_engine_options engine;
    struct local_engine g;
    struct err e = {0};
    const int32_t ids[] = {1, 2, 3};
    const float *logits = NULL;
    CHECK_INT(format_set_parse("experts=q4,attention=fp8,head=q8", &formats, NULL), 0);
    int rc = synth_packed_write(&o, &formats, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
    local_engine_defaults(&engine);
    engine.model_dir = "p";
    engine.n_threads = 1;
    engine.checkpoint.verifies = true;
    rc = local_engine_open(&g, &engine, &e);
    if (rc == 0)
        rc = local_engine_load(&g, &engine, 8, &e);
    if (rc == 0)
        rc = local_engine_step(&g, ids, 3, LOCAL_ENGINE_LAST_LOGITS, &logits, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
    CHECK_INT(g.formats.experts, FORMAT_Q4);
    CHECK_INT(g.formats.attention, FORMAT_FP8);
    CHECK(isfinite(logits[0]) && logits[0] != logits[1]);
    local_engine_close(&g);
    formats.head = FORMAT_NATIVE;
    CHECK_INT(synth_packed_write(&o, &formats, &e), E_INVALID);
    CHECK_HAS(e.text, "every part needs a format");
}
