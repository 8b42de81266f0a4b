/* tests/unit/test_pack.c - packing a checkpoint: the same matrices, the same model, whatever
 * interrupts it. */
#include "engine/pack.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fcntl.h>

#include "base/buf.h"
#include "base/mem.h"
#include "engine/matrix.h"
#include "model/packed.h"
#include "model/weights.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"
#include "tools/synth.h"

enum { LAYERS = 2, EXPERTS = 5 };

/* Attention and head have more rows than PACK_ROWS, and not a multiple of it. */
static void write_model(const char *dir, enum dtype dtype, uint64_t seed)
{
    struct synth_options o;
    struct err e = {0};
    synth_defaults(&o);
    o.config = (struct model_config){.family = MODEL_MINIMAX_M2,
                                     .vocab_size = 4500,
                                     .hidden_size = 136,
                                     .n_layers = LAYERS,
                                     .n_heads = 54,
                                     .n_kv_heads = 2,
                                     .head_dim = 40,
                                     .rotary_dim = 20,
                                     .expert_size = 88,
                                     .n_experts = EXPERTS,
                                     .top_k = 2,
                                     .max_positions = 512,
                                     .rope_theta = 5e6,
                                     .rms_norm_eps = 1e-6f};
    o.dir = dir;
    o.dtype = dtype;
    o.seed = seed;
    o.is_forced = true;
    if (synth_write(&o, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

static struct pack_options options_for(const char *formats)
{
    struct err e = {0};
    struct pack_options o = {.model_dir = "model",
                             .out_dir = "packed",
                             .kernels = kernels_named("portable"),
                             .n_threads = 3};
    CHECK_INT(format_set_parse(formats, &o.formats, &e), 0);
    return o;
}

static void must_pack(const struct pack_options *o, struct pack_result *result)
{
    struct err e = {0};
    if (pack_make(o, result, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

static bool is_there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* ---- what comes out ---- */

/* The matrix of a packed view is, byte for byte, what packing the other view gives. */
static void check_same(const struct linear_view *packed, const struct linear_view *plain,
                       enum weight_format format)
{
    struct matrix want, got;
    struct err e = {0};
    struct compute c = {.kernels = kernels_named("portable")};
    size_t bytes;
    CHECK(packed->packed != NULL && packed->weight.data == NULL);
    CHECK_STR(packed->label, plain->label);
    CHECK_INT(matrix_view_bytes(plain, format, &bytes, &e), 0);
    void *room = mem_aligned(bytes);
    CHECK_INT(matrix_pack(&want, plain, format, room, &c, &e), 0);
    CHECK_INT(matrix_pack(&got, packed, FORMAT_NATIVE, NULL, &c, &e), 0);
    CHECK(got.is_borrowed);
    CHECK_INT(got.format, want.format);
    CHECK_INT(packed->packed_bytes, bytes);
    CHECK_BYTES(got.panels, want.panels, bytes);
    matrix_fini(&got);
    matrix_fini(&want);
    mem_free(room);
}

static void check_experts(struct checkpoint *packed, struct checkpoint *plain, int layer,
                          enum weight_format format)
{
    for (int i = 0; i < EXPERTS; i++) {
        struct expert_view got, want;
        CHECK_INT(weights_expert(packed, layer, i, &got, NULL), 0);
        CHECK_INT(weights_expert(plain, layer, i, &want, NULL), 0);
        check_same(&got.gate, &want.gate, format);
        check_same(&got.up, &want.up, format);
        check_same(&got.down, &want.down, format);
    }
}

static void check_layer(struct checkpoint *packed, struct checkpoint *plain, int layer,
                        enum weight_format format)
{
    struct layer_view got, want;
    CHECK_INT(weights_layer(packed, layer, &got, NULL), 0);
    CHECK_INT(weights_layer(plain, layer, &want, NULL), 0);
    check_same(&got.wq, &want.wq, format);
    check_same(&got.wk, &want.wk, format);
    check_same(&got.wv, &want.wv, format);
    check_same(&got.wo, &want.wo, format);
    CHECK_INT(got.router_gate.dtype, want.router_gate.dtype);
    CHECK_BYTES(got.router_gate.data, want.router_gate.data, want.router_gate.size_bytes);
    CHECK_BYTES(got.router_bias.data, want.router_bias.data, want.router_bias.size_bytes);
    CHECK_BYTES(got.q_norm.data, want.q_norm.data, want.q_norm.size_bytes);
}

/* packed/ is model/ in these formats. */
static void check_packed(const struct format_set *f)
{
    struct checkpoint *packed, *plain;
    struct checkpoint_options verifies = {.verifies = true};
    struct model_view got, want;
    struct err e = {0};
    uint64_t fingerprints[2];
    if (checkpoint_open_with("packed", &verifies, &packed, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_INT(checkpoint_open("model", &plain, NULL), 0);
    CHECK_INT(checkpoint_fingerprint(packed, &fingerprints[0], NULL), 0);
    CHECK_INT(checkpoint_fingerprint(plain, &fingerprints[1], NULL), 0);
    CHECK(fingerprints[0] == fingerprints[1]);
    for (int layer = 0; layer < LAYERS; layer++) {
        check_layer(packed, plain, layer, f->attention);
        check_experts(packed, plain, layer, f->experts);
    }
    CHECK_INT(weights_model(packed, &got, NULL), 0);
    CHECK_INT(weights_model(plain, &want, NULL), 0);
    check_same(&got.lm_head, &want.lm_head, f->head);
    CHECK_BYTES(got.embedding.data, want.embedding.data, want.embedding.size_bytes);
    checkpoint_close(&packed);
    checkpoint_close(&plain);
}

TEST(pack_writes_what_loading_would_make)
{
    static const char *const formats[] = {"native", "experts=q4,attention=q8,head=fp8", "fp8",
                                          "bf16,head=f32"};
    static const enum dtype dtypes[] = {DTYPE_F8_E4M3, DTYPE_BF16};
    for (int d = 0; d < 2; d++) {
        write_model("model", dtypes[d], 1);
        for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
            struct pack_options o = options_for(formats[i]);
            struct pack_result r;
            o.is_forced = true;
            o.verifies = i % 2 == 0;
            test_note("%s", formats[i]);
            must_pack(&o, &r);
            CHECK_INT(r.n_files, LAYERS + 1);
            CHECK_INT(r.n_kept, 0);
            CHECK(!r.was_whole);
            check_packed(&o.formats);
            CHECK(!is_there("packed/packing.json"));
        }
    }
}

TEST(pack_keeps_the_rest_of_the_model)
{
    struct pack_options o = options_for("q8");
    struct buf text[2] = {{0}, {0}};
    struct checkpoint *c;
    size_t bytes;
    write_model("model", DTYPE_F8_E4M3, 1);
    must_pack(&o, NULL);
    CHECK_INT(buf_read_file(&text[0], "model/tokenizer.json", 1 << 24, NULL), 0);
    CHECK_INT(buf_read_file(&text[1], "packed/tokenizer.json", 1 << 24, NULL), 0);
    CHECK(str_equal(buf_str(&text[0]), buf_str(&text[1])));
    buf_fini(&text[0]);
    buf_fini(&text[1]);
    CHECK(is_there("packed/generation_config.json"));
    CHECK_INT(checkpoint_open("packed", &c, NULL), 0);
    CHECK_INT(checkpoint_expert_bytes(c, &bytes, NULL), 0);
    /* 88 rows are 6 panels of two groups, 136 rows are 9 of one. */
    CHECK_INT(bytes, 2 * 6 * 2 * 2112 + 9 * 2112);
    checkpoint_close(&c);
}

TEST(pack_of_a_packing_is_the_same_packing)
{
    struct pack_options o = options_for("q8");
    struct err e = {0};
    write_model("model", DTYPE_F8_E4M3, 1);
    must_pack(&o, NULL);
    CHECK_INT(rename("packed", "first"), 0);
    o.model_dir = "first";
    must_pack(&o, NULL);
    check_packed(&o.formats);
    o = options_for("q4");
    o.model_dir = "first";
    o.out_dir = "other";
    CHECK_INT(pack_make(&o, NULL, &e), E_PRECONDITION);
    CHECK_HAS(e.text, "experts=q8");
    CHECK_HAS(e.text, "experts=q4");
    CHECK(!is_there("other"));
}

/* ---- interruptions ---- */

struct stop {
    struct pack_options options;
    size_t most_bytes; /* of a file */
};

static void pack_with_limit(void *ud)
{
    const struct stop *s = ud;
    struct rlimit limit = {s->most_bytes, s->most_bytes};
    struct err e = {0};
    signal(SIGXFSZ, SIG_IGN);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
    int rc = pack_make(&s->options, NULL, &e);
    printf("%d %s\n", rc, e.text);
    fflush(stdout);
}

static int count_unfinished(const char *dir)
{
    int n = 0;
    DIR *entries = opendir(dir);
    for (struct dirent *entry = readdir(entries); entry; entry = readdir(entries))
        n += strstr(entry->d_name, ".tmp") != NULL;
    closedir(entries);
    return n;
}

TEST(pack_goes_on_where_a_full_disk_stopped_it)
{
    struct stop s = {.options = options_for("q8")};
    struct pack_result r;
    struct stat before, after;
    struct checkpoint *c;
    write_model("model", DTYPE_F8_E4M3, 1);
    must_pack(&s.options, &r);
    /* The head is the largest file: the layers can be written, it cannot. */
    struct stat layer, head;
    CHECK_INT(stat("packed/layer-00001.packed", &layer), 0);
    CHECK_INT(stat("packed/head.packed", &head), 0);
    struct stat tensors;
    CHECK_INT(stat("packed/model.safetensors", &tensors), 0);
    s.most_bytes = (size_t)(tensors.st_size > layer.st_size ? tensors.st_size : layer.st_size);
    s.options.out_dir = "again";
    s.options.formats.head = FORMAT_F32; /* larger than all else */
    struct test_end end = test_run_apart(pack_with_limit, &s);
    test_note("%s", end.output);
    CHECK_INT(end.exit_status, 0);
    CHECK_HAS(end.output, "again/head.packed.tmp");
    CHECK(is_there("again/packing.json"));
    CHECK(!is_there("again/packed.json"));
    CHECK(is_there("again/layer-00000.packed"));
    CHECK(is_there("again/layer-00001.packed"));
    CHECK_INT(count_unfinished("again"), 0);
    /* Half a packing has no head. */
    CHECK_INT(checkpoint_open("again", &c, NULL), 0);
    struct model_view v;
    struct err e = {0};
    CHECK_INT(weights_model(c, &v, &e), E_NOT_FOUND);
    checkpoint_close(&c);
    CHECK_INT(stat("again/layer-00000.packed", &before), 0);
    must_pack(&s.options, &r);
    CHECK_INT(r.n_kept, LAYERS);
    CHECK_INT(stat("again/layer-00000.packed", &after), 0);
    CHECK_INT(before.st_ino, after.st_ino);
    CHECK_INT(rename("packed", "elsewhere"), 0);
    CHECK_INT(rename("again", "packed"), 0);
    check_packed(&s.options.formats);
}

static void die_while_packing(void *ud, int64_t done_bytes, int64_t total_bytes)
{
    (void)ud;
    if (done_bytes > total_bytes / 3)
        raise(SIGKILL);
}

static void pack_and_die(void *ud)
{
    const struct pack_options *o = ud;
    pack_make(o, NULL, NULL);
}

TEST(pack_goes_on_after_a_kill)
{
    struct pack_options o = options_for("q8");
    struct pack_result r;
    write_model("model", DTYPE_F8_E4M3, 1);
    o.progress = die_while_packing;
    o.n_threads = 1;
    CHECK_INT(test_run_apart(pack_and_die, &o).signal, SIGKILL);
    CHECK(is_there("packed/packing.json"));
    CHECK(!is_there("packed/packed.json"));
    CHECK(count_unfinished("packed") > 0);
    /* A finished file whose trailer was damaged is no finished file. */
    bool has_first = is_there("packed/layer-00000.packed");
    if (has_first)
        CHECK_INT(truncate("packed/layer-00000.packed", 4096), 0);
    o.progress = NULL;
    must_pack(&o, &r);
    CHECK_INT(r.n_kept, 0);
    CHECK_INT(count_unfinished("packed"), 0);
    check_packed(&o.formats);
}

/* ---- what is there already ---- */

TEST(pack_again_finds_nothing_to_do)
{
    struct pack_options o = options_for("native");
    struct pack_result r;
    struct err e = {0};
    write_model("model", DTYPE_F8_E4M3, 1);
    must_pack(&o, &r);
    o.verifies = true;
    must_pack(&o, &r);
    CHECK(r.was_whole);
    CHECK_INT(r.formats.experts, FORMAT_FP8);
    CHECK_INT(r.formats.head, FORMAT_BF16);
    FILE *f = fopen("packed/layer-00001.packed", "r+b");
    CHECK(f != NULL);
    CHECK_INT(fseek(f, 5000, SEEK_SET), 0);
    fputc(0x55, f);
    CHECK_INT(fclose(f), 0);
    CHECK_INT(pack_make(&o, NULL, &e), E_CORRUPT);
    CHECK_HAS(e.text, "packed/layer-00001.packed: layer 1: attention: hash is");
    o.verifies = false;
    CHECK_INT(truncate("packed/layer-00001.packed", 5000), 0);
    CHECK_INT(pack_make(&o, NULL, &e), E_CORRUPT);
    CHECK_HAS(e.text, "has 5000 bytes");
}

TEST(pack_does_not_touch_what_it_did_not_write)
{
    struct pack_options o = options_for("q8");
    struct err e = {0};
    write_model("model", DTYPE_F8_E4M3, 1);
    write_model("packed", DTYPE_F8_E4M3, 2); /* a checkpoint lies there */
    CHECK_INT(pack_make(&o, NULL, &e), E_EXISTS);
    CHECK_HAS(e.text, "packed is not empty and holds no packing");
    o.is_forced = true;
    CHECK_INT(pack_make(&o, NULL, &e), E_EXISTS);
    CHECK(is_there("packed/model.safetensors"));
    o.out_dir = "model/.";
    CHECK_INT(pack_make(&o, NULL, &e), E_INVALID);
    CHECK_HAS(e.text, "the model's own folder");
    CHECK(is_there("model/model.safetensors"));
    o.out_dir = "no/such/parent";
    CHECK_INT(pack_make(&o, NULL, &e), E_NOT_FOUND);
}

TEST(pack_replaces_another_packing_only_by_force)
{
    struct pack_options o = options_for("q8");
    struct pack_result r;
    struct err e = {0};
    write_model("model", DTYPE_F8_E4M3, 1);
    must_pack(&o, NULL);
    struct pack_options q4 = options_for("q4");
    CHECK_INT(pack_make(&q4, NULL, &e), E_EXISTS);
    CHECK_HAS(e.text, "--force");
    write_model("model", DTYPE_F8_E4M3, 2);
    CHECK_INT(pack_make(&o, NULL, &e), E_EXISTS);
    o.is_forced = true;
    must_pack(&o, &r);
    CHECK(!r.was_whole);
    check_packed(&o.formats);
}

TEST(pack_of_another_model_is_not_opened)
{
    struct pack_options o = options_for("q8");
    struct checkpoint *c;
    struct err e = {0};
    write_model("model", DTYPE_F8_E4M3, 1);
    must_pack(&o, NULL);
    write_model("model", DTYPE_F8_E4M3, 2);
    o.out_dir = "other";
    must_pack(&o, NULL);
    CHECK_INT(rename("other/packed.json", "packed/packed.json"), 0);
    CHECK_INT(checkpoint_open("packed", &c, &e), E_PRECONDITION);
    CHECK_HAS(e.text, "packed/packed.json: fingerprint is");
    CHECK_HAS(e.text, "another model's manifest");
}

/* ---- bad input ---- */

TEST(pack_names_the_weight_that_is_no_number)
{
    struct pack_options o = options_for("q8");
    struct checkpoint *c;
    struct tensor t;
    struct err e = {0};
    write_model("model", DTYPE_BF16, 1);
    CHECK_INT(checkpoint_open("model", &c, NULL), 0);
    CHECK_INT(checkpoint_find(c, "model.embed_tokens.weight", &t, NULL), 0);
    const char *base = t.data; /* the first tensor of the only file */
    CHECK_INT(checkpoint_find(c, "model.layers.1.block_sparse_moe.experts.3.w2.weight", &t, NULL),
              0);
    long offset = (long)((const char *)t.data - base);
    checkpoint_close(&c);
    struct safetensors_place {
        long header;
    } place = {0};
    FILE *f = fopen("model/model.safetensors", "r+b");
    CHECK(f != NULL);
    unsigned char length[8];
    CHECK_INT(fread(length, 1, 8, f), 8);
    for (int i = 7; i >= 0; i--)
        place.header = place.header << 8 | length[i];
    CHECK_INT(fseek(f, 8 + place.header + offset, SEEK_SET), 0);
    CHECK_INT(fwrite("\xff\xff", 1, 2, f), 2);
    CHECK_INT(fclose(f), 0);
    CHECK_INT(pack_make(&o, NULL, &e), E_CORRUPT);
    test_note("%s", e.text);
    CHECK_HAS(e.text, "layer 1: expert 3: w2: weight [0, 0]");
    CHECK(!is_there("packed/packed.json"));
    CHECK_INT(count_unfinished("packed"), 0);
}

TEST(pack_lets_one_process_at_a_time)
{
    struct pack_options o = options_for("q8");
    struct err e = {0};
    write_model("model", DTYPE_F8_E4M3, 1);
    CHECK_INT(mkdir("packed", 0700), 0);
    int fd = open("packed", O_RDONLY | O_DIRECTORY);
    CHECK_INT(flock(fd, LOCK_EX), 0);
    CHECK_INT(pack_make(&o, NULL, &e), E_BUSY);
    CHECK_HAS(e.text, "another process");
    close(fd);
    must_pack(&o, NULL);
}

TEST(pack_cached_makes_a_folder_for_each_format)
{
    struct pack_options o = options_for("q8");
    struct err e = {0};
    char *dirs[4];
    write_model("model", DTYPE_F8_E4M3, 1);
    o.out_dir = NULL;
    CHECK_INT(pack_cached(&o, "cache", &dirs[0], &e), 0);
    CHECK_INT(pack_cached(&o, "cache", &dirs[1], &e), 0);
    CHECK_STR(dirs[1], dirs[0]);
    CHECK_HAS(dirs[0], "cache/");
    o.formats.kv = KV_INT8; /* is not packed */
    CHECK_INT(pack_cached(&o, "cache", &dirs[2], &e), 0);
    CHECK_STR(dirs[2], dirs[0]);
    o.formats.experts = FORMAT_Q4;
    CHECK_INT(pack_cached(&o, "cache", &dirs[3], &e), 0);
    CHECK(strcmp(dirs[3], dirs[0]) != 0);
    struct stat st;
    char *manifest = mem_format("%s/packed.json", dirs[3]);
    CHECK_INT(stat(manifest, &st), 0);
    mem_free(manifest);
    /* What is packed is its own cache. */
    char *own;
    o = options_for("native");
    o.model_dir = dirs[0];
    CHECK_INT(pack_cached(&o, "cache", &own, &e), 0);
    CHECK_STR(own, dirs[0]);
    mem_free(own);
    for (int i = 0; i < 4; i++)
        mem_free(dirs[i]);
}
