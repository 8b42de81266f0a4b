/* tests/unit/test_checkpoint.c - a model's folder: shards, index, and what is touched when. */
#include "model/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/thread.h"
#include "engine/pack.h"
#include "model/safetensors.h"
#include "tests/lib/test.h"
#include "tools/synth.h"

/* Two layers of four experts in shards of 16 KiB, under m/. */
static struct synth_options small_options(void)
{
    static const char *const sizes[] = {"hidden_size=40",       "num_hidden_layers=2",
                                        "num_local_experts=4",  "num_experts_per_tok=2",
                                        "intermediate_size=24", "vocab_size=64"};
    struct synth_options o;
    synth_defaults(&o);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        CHECK_INT(synth_set(&o.config, sizes[i], NULL), 0);
    o.dir = "m";
    o.has_tokenizer = false;
    o.shard_bytes = 16 << 10;
    return o;
}

static void make_model(struct synth_options o)
{
    struct err e = {0};
    int rc = synth_write(&o, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
}

static void write_file(const char *path, const char *text)
{
    struct buf b = {0};
    buf_puts(&b, text);
    CHECK_INT(buf_write_file(&b, path, NULL), 0);
    buf_fini(&b);
}

TEST(checkpoint_opens_only_the_shards_that_are_asked_for)
{
    struct checkpoint *c;
    struct tensor t;
    struct err e = {0};
    make_model(small_options());
    CHECK(access("m/model.safetensors.index.json", F_OK) == 0);
    CHECK(access("m/model-00003-of-00003.safetensors", F_OK) != 0); /* there are more */
    CHECK_INT(checkpoint_open("m", &c, &e), 0);
    CHECK_INT(checkpoint_config(c)->hidden_size, 40);
    CHECK_STR(checkpoint_dir(c), "m");
    CHECK_INT(checkpoint_open_shards(c), 0);
    CHECK_INT(checkpoint_find(c, "model.embed_tokens.weight", &t, &e), 0);
    CHECK_INT(t.dims[0], 64);
    CHECK_INT(checkpoint_open_shards(c), 1);
    CHECK_INT(checkpoint_find(c, "model.embed_tokens.weight", &t, &e), 0);
    CHECK_INT(checkpoint_open_shards(c), 1);
    CHECK_INT(checkpoint_find(c, "lm_head.weight", &t, &e), 0);
    CHECK_INT(checkpoint_open_shards(c), 2);
    CHECK_INT(checkpoint_find(c, "model.layers.7.input_layernorm.weight", &t, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "model.layers.7.input_layernorm.weight");
    checkpoint_close(&c);
    CHECK(c == NULL);
}

TEST(checkpoint_reads_a_single_file)
{
    struct checkpoint *c;
    struct tensor t;
    struct err e = {0};
    struct synth_options o = small_options();
    o.shard_bytes = 1 << 30;
    make_model(o);
    CHECK(access("m/model.safetensors.index.json", F_OK) != 0);
    CHECK_INT(checkpoint_open("m", &c, &e), 0);
    CHECK_INT(checkpoint_find(c, "lm_head.weight", &t, &e), 0);
    CHECK_INT(checkpoint_find(c, "lm_head.bias", &t, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "m/model.safetensors: holds no tensor lm_head.bias");
    checkpoint_close(&c);
}

/* Index of one tensor in `file_name`, beside the model's good config.json. */
static int open_with_index(const char *file_name, struct err *e)
{
    char text[256];
    struct checkpoint *c;
    snprintf(text, sizeof text, "{\"weight_map\": {\"model.norm.weight\": %s}}", file_name);
    write_file("m/model.safetensors.index.json", text);
    int rc = checkpoint_open("m", &c, e);
    if (rc == 0)
        checkpoint_close(&c);
    return rc;
}

TEST(checkpoint_refuses_a_bad_index)
{
    struct err e = {0};
    make_model(small_options());
    CHECK_INT(open_with_index("\"model-00099-of-00100.safetensors\"", &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "names model-00099-of-00100.safetensors, which the folder lacks");
    CHECK_HAS(e.text, "1 of 1");
    CHECK_INT(open_with_index("\"../m/config.json\"", &e), E_CORRUPT);
    CHECK_HAS(e.text, "plain file name");
    CHECK_INT(open_with_index("\"..\"", &e), E_CORRUPT);
    CHECK_INT(open_with_index("\"\"", &e), E_CORRUPT);
    CHECK_INT(open_with_index("\"/etc/passwd\"", &e), E_CORRUPT);
    CHECK_INT(open_with_index("3", &e), E_CORRUPT);
    CHECK_INT(open_with_index("\"x\", \"model.norm.weight\": \"y\"", &e), E_CORRUPT);
    write_file("m/model.safetensors.index.json", "{\"weight_map\": {}}");
    struct checkpoint *c;
    CHECK_INT(checkpoint_open("m", &c, &e), E_CORRUPT);
    CHECK_INT(unlink("m/model.safetensors.index.json"), 0);
    CHECK_INT(checkpoint_open("m", &c, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "neither model.safetensors nor model.safetensors.index.json");
    CHECK_INT(checkpoint_open("nowhere", &c, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "nowhere/config.json");
}

TEST(checkpoint_names_the_shard_that_is_broken)
{
    struct checkpoint *c;
    struct tensor t;
    struct err e = {0};
    make_model(small_options());
    CHECK_INT(checkpoint_open("m", &c, &e), 0);
    /* Found by the index in a shard that does not have it. */
    CHECK_INT(open_with_index("\"config.json\"", &e), 0);
    checkpoint_close(&c);
    CHECK_INT(checkpoint_open("m", &c, &e), 0);
    CHECK_INT(checkpoint_find(c, "model.norm.weight", &t, &e), E_CORRUPT);
    CHECK_HAS(e.text, "m/config.json");
    CHECK_INT(checkpoint_open_shards(c), 0);
    checkpoint_close(&c);
    static const struct safetensors_declaration other = {"other", DTYPE_F32, 1, {0}};
    struct safetensors_writer *w;
    CHECK_INT(safetensors_create("m/odd.safetensors", &other, 1, &w, &e), 0);
    CHECK_INT(safetensors_finish(&w, &e), 0);
    CHECK_INT(open_with_index("\"odd.safetensors\"", &e), 0);
    CHECK_INT(checkpoint_open("m", &c, &e), 0);
    CHECK_INT(checkpoint_find(c, "model.norm.weight", &t, &e), E_CORRUPT);
    CHECK_HAS(e.text, "odd.safetensors: lacks tensor model.norm.weight");
    checkpoint_close(&c);
}

static uint64_t fingerprint_of(const char *dir)
{
    struct checkpoint *c;
    uint64_t fingerprint;
    CHECK_INT(checkpoint_open(dir, &c, NULL), 0);
    CHECK_INT(checkpoint_fingerprint(c, &fingerprint, NULL), 0);
    checkpoint_close(&c);
    return fingerprint;
}

TEST(checkpoint_fingerprint_tells_models_apart)
{
    struct synth_options o = small_options();
    make_model(o);
    o.dir = "same";
    o.shard_bytes = 1 << 30; /* other files, same model */
    make_model(o);
    o.dir = "other_weights";
    o.seed = 2;
    make_model(o);
    o.dir = "other_theta";
    o.seed = 1;
    o.config.rope_theta = 1e4;
    make_model(o);
    CHECK(fingerprint_of("m") == fingerprint_of("same"));
    CHECK(fingerprint_of("m") != fingerprint_of("other_weights"));
    CHECK(fingerprint_of("m") != fingerprint_of("other_theta"));
}

TEST(checkpoint_counts_an_experts_bytes)
{
    struct checkpoint *c;
    size_t bytes;
    struct synth_options o = small_options();
    make_model(o);
    CHECK_INT(checkpoint_open("m", &c, NULL), 0);
    CHECK_INT(checkpoint_expert_bytes(c, &bytes, NULL), 0);
    CHECK_INT(bytes, 3 * 40 * 24 + 3 * 4); /* one partial block each */
    checkpoint_close(&c);
    o.dir = "wide";
    o.dtype = DTYPE_BF16;
    make_model(o);
    CHECK_INT(checkpoint_open("wide", &c, NULL), 0);
    CHECK_INT(checkpoint_expert_bytes(c, &bytes, NULL), 0);
    CHECK_INT(bytes, 3 * 40 * 24 * 2);
    checkpoint_close(&c);
}

static void find_all_main(struct thread *t, void *arg)
{
    struct checkpoint *c = arg;
    struct tensor found;
    thread_ready(t, 0, NULL);
    for (int expert = 0; expert < 4; expert++) {
        char name[TENSOR_NAME_BYTES];
        snprintf(name, sizeof name, "model.layers.1.block_sparse_moe.experts.%d.w2.weight", expert);
        CHECK_INT(checkpoint_find(c, name, &found, NULL), 0);
        CHECK_INT(found.dims[0], 40);
    }
}

TEST(checkpoint_can_be_asked_by_many_threads)
{
    struct checkpoint *c;
    struct thread *threads[4];
    make_model(small_options());
    CHECK_INT(checkpoint_open("m", &c, NULL), 0);
    for (int i = 0; i < 4; i++)
        CHECK_INT(thread_start("find", find_all_main, c, &threads[i], NULL), 0);
    for (int i = 0; i < 4; i++)
        thread_stop(&threads[i], NULL, NULL);
    CHECK(checkpoint_open_shards(c) >= 1);
    checkpoint_close(&c);
}

static void pack(const char *formats)
{
    struct err e = {0};
    struct pack_options o = {.model_dir = "m",
                             .out_dir = "p",
                             .kernels = kernels_named("portable"),
                             .n_threads = 2,
                             .is_forced = true};
    CHECK_INT(format_set_parse(formats, &o.formats, &e), 0);
    if (pack_make(&o, NULL, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

TEST(checkpoint_opens_a_packed_directory)
{
    struct checkpoint *c;
    struct tensor t;
    struct err e = {0};
    make_model(small_options());
    pack("experts=q4,attention=q8,head=f32");
    CHECK_INT(checkpoint_open("p", &c, &e), 0);
    CHECK(checkpoint_packed(c) != NULL);
    CHECK_INT(checkpoint_config(c)->hidden_size, 40);
    /* The manifest's fingerprint was compared: that took the one shard. */
    CHECK_INT(checkpoint_open_shards(c), 1);
    CHECK_INT(checkpoint_find(c, "model.embed_tokens.weight", &t, &e), 0);
    CHECK_INT(checkpoint_find(c, "lm_head.weight", &t, &e), E_NOT_FOUND);
    CHECK_INT(checkpoint_open_shards(c), 1);
    checkpoint_close(&c);
    CHECK(fingerprint_of("p") == fingerprint_of("m"));
    CHECK_INT(checkpoint_open("m", &c, &e), 0);
    CHECK(checkpoint_packed(c) == NULL);
    checkpoint_close(&c);
}

TEST(checkpoint_settles_formats)
{
    struct checkpoint *c;
    struct format_set s;
    struct err e = {0};
    make_model(small_options());
    pack("experts=q4,attention=q8,head=f32");
    CHECK_INT(checkpoint_open("p", &c, &e), 0);
    CHECK_INT(format_set_parse("native,kv=int8", &s, NULL), 0);
    CHECK_INT(checkpoint_formats(c, &s, &e), 0);
    CHECK_INT(s.experts, FORMAT_Q4);
    CHECK_INT(s.attention, FORMAT_Q8);
    CHECK_INT(s.head, FORMAT_F32);
    CHECK_INT(s.kv, KV_INT8);
    CHECK_INT(checkpoint_formats(c, &s, &e), 0); /* what it holds may be asked for by name */
    CHECK_INT(format_set_parse("attention=fp8", &s, NULL), 0);
    CHECK_INT(checkpoint_formats(c, &s, &e), E_PRECONDITION);
    CHECK_HAS(e.text, "p is packed with attention=q8, attention=fp8 was asked for");
    CHECK_INT(s.experts, FORMAT_NATIVE); /* untouched by a failure */
    checkpoint_close(&c);
    CHECK_INT(checkpoint_open("m", &c, &e), 0);
    CHECK_INT(checkpoint_formats(c, &s, &e), 0);
    CHECK_INT(s.experts, FORMAT_NATIVE);
    CHECK_INT(s.attention, FORMAT_FP8);
    checkpoint_close(&c);
}
