/* tests/unit/test_weights.c - tensors bound by meaning: strict shapes, dtypes and numbers. */
#include "model/weights.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "engine/matrix.h"
#include "engine/pack.h"
#include "model/safetensors.h"
#include "tests/lib/test.h"
#include "tools/synth.h"

enum { HIDDEN = 136, EXPERT = 24, MOST_TENSORS = 256 };

/* One layer of two experts under m/, one file. */
static void make_model(enum dtype dtype)
{
    static const char *const sizes[] = {
        "hidden_size=136",       "num_hidden_layers=1",   "num_local_experts=2",
        "num_experts_per_tok=1", "intermediate_size=24",  "vocab_size=64",
        "num_attention_heads=6", "num_key_value_heads=3", "head_dim=48"};
    struct synth_options o;
    struct err e = {0};
    synth_defaults(&o);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        CHECK_INT(synth_set(&o.config, sizes[i], NULL), 0);
    o.dir = "m";
    o.has_tokenizer = false;
    o.is_forced = true;
    o.dtype = dtype;
    int rc = synth_write(&o, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
}

/* Rewrites m/model.safetensors with tensor `name` declared as `changed` (data zero, or 1.0
 * bytes `fill`); its other tensors stay. */
static void change_tensor(const char *name, struct safetensors_declaration changed, uint8_t fill)
{
    static struct safetensors_declaration declarations[MOST_TENSORS];
    struct safetensors *s;
    struct safetensors_writer *w;
    struct tensor t;
    bool is_found = false;
    CHECK_INT(safetensors_open("m/model.safetensors", &s, NULL), 0);
    int n = safetensors_count(s);
    CHECK(n <= MOST_TENSORS);
    for (int i = 0; i < n; i++) {
        const char *present;
        safetensors_at(s, i, &present, &t);
        declarations[i] = (struct safetensors_declaration){present, t.dtype, t.n_dims, {0}};
        memcpy(declarations[i].dims, t.dims, sizeof t.dims);
        if (strcmp(present, name) == 0) {
            declarations[i] = changed;
            declarations[i].name = present;
            is_found = true;
        }
    }
    CHECK(is_found);
    CHECK_INT(safetensors_create("m/new", declarations, n, &w, NULL), 0);
    for (int i = 0; i < n; i++) {
        const char *present;
        size_t bytes = dtype_bytes(declarations[i].dtype);
        safetensors_at(s, i, &present, &t);
        for (int d = 0; d < declarations[i].n_dims; d++)
            bytes *= (size_t)declarations[i].dims[d];
        uint8_t *filled = mem_alloc(bytes);
        memset(filled, fill, bytes);
        bool is_it = strcmp(present, name) == 0;
        CHECK_INT(safetensors_write(w, is_it ? filled : t.data, bytes, NULL), 0);
        mem_free(filled);
    }
    CHECK_INT(safetensors_finish(&w, NULL), 0);
    safetensors_close(&s);
    CHECK_INT(rename("m/new", "m/model.safetensors"), 0);
}

TEST(weights_bind_a_layer_with_partial_blocks)
{
    struct checkpoint *c;
    struct layer_view v;
    struct expert_view x;
    struct model_view m;
    make_model(DTYPE_F8_E4M3);
    CHECK_INT(checkpoint_open("m", &c, NULL), 0);
    CHECK_INT(weights_layer(c, 0, &v, NULL), 0);
    CHECK_STR(v.wq.label, "q_proj");
    CHECK_INT(v.wq.rows, 288);
    CHECK_INT(v.wq.cols, HIDDEN);
    CHECK_INT(v.wq.weight.dtype, DTYPE_F8_E4M3);
    CHECK_INT(v.wq.scale.dims[0], 3);
    CHECK_INT(v.wq.scale.dims[1], 2);
    CHECK_INT(v.wq.block_rows, 128);
    CHECK_INT(v.wo.rows, HIDDEN);
    CHECK_INT(v.wo.cols, 288);
    CHECK_INT(v.wk.rows, 144);
    CHECK_INT(v.k_norm.dims[0], 144);
    CHECK_INT(v.router_gate.dims[0], 2);
    CHECK_INT(weights_expert(c, 0, 1, &x, NULL), 0);
    CHECK_STR(x.gate.label, "w1");
    CHECK_STR(x.up.label, "w3");
    CHECK_STR(x.down.label, "w2");
    CHECK_INT(x.down.rows, HIDDEN);
    CHECK_INT(x.down.cols, EXPERT);
    CHECK_INT(x.down.scale.dims[0], 2);
    CHECK_INT(weights_model(c, &m, NULL), 0);
    CHECK_INT(m.embedding.dims[0], 64);
    CHECK(m.lm_head.scale.data == NULL);
    checkpoint_close(&c);
}

TEST(weights_bind_unquantised_models)
{
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F32};
    for (int i = 0; i < 2; i++) {
        struct checkpoint *c;
        struct layer_view v;
        struct expert_view x;
        make_model(dtypes[i]);
        CHECK_INT(checkpoint_open("m", &c, NULL), 0);
        CHECK_INT(weights_layer(c, 0, &v, NULL), 0);
        CHECK_INT(weights_expert(c, 0, 0, &x, NULL), 0);
        CHECK_INT(x.gate.weight.dtype, dtypes[i]);
        CHECK(x.gate.scale.data == NULL);
        CHECK_INT(x.gate.block_rows, 0);
        checkpoint_close(&c);
    }
}

/* Binds everything; the first error, or 0. */
static int bind_all(struct err *e)
{
    struct checkpoint *c;
    struct layer_view v;
    struct expert_view x;
    struct model_view m;
    *e = (struct err){0};
    CHECK_INT(checkpoint_open("m", &c, e), 0);
    int rc = weights_layer(c, 0, &v, e);
    if (rc == 0)
        rc = weights_expert(c, 0, 1, &x, e);
    if (rc == 0)
        rc = weights_model(c, &m, e);
    checkpoint_close(&c);
    return rc;
}

#define LAYER "model.layers.0."
#define W2 LAYER "block_sparse_moe.experts.1.w2.weight"

TEST(weights_errors_name_both_shapes)
{
    static const struct {
        const char *name;
        struct safetensors_declaration changed;
        const char *says;
    } rows[] = {
        {LAYER "self_attn.q_proj.weight",
         {NULL, DTYPE_F8_E4M3, 2, {HIDDEN, 288}},
         "expected F32 or F16 or BF16 or F8_E4M3 [288, 136], file has F8_E4M3 [136, 288]"},
        {LAYER "input_layernorm.weight",
         {NULL, DTYPE_BF16, 1, {HIDDEN + 1}},
         "expected F32 or F16 or BF16 [136], file has BF16 [137]"},
        {LAYER "input_layernorm.weight",
         {NULL, DTYPE_BF16, 2, {HIDDEN, 1}},
         "file has BF16 [136, 1]"},
        {LAYER "input_layernorm.weight",
         {NULL, DTYPE_F8_E4M3, 1, {HIDDEN}},
         "file has F8_E4M3 [136]"},
        {W2 "_scale_inv", {NULL, DTYPE_F32, 2, {1, 1}}, "expected F32 [2, 1], file has F32 [1, 1]"},
        {W2 "_scale_inv", {NULL, DTYPE_BF16, 2, {2, 1}}, "file has BF16 [2, 1]"},
        {W2, {NULL, DTYPE_I32, 2, {HIDDEN, EXPERT}}, "file has I32 [136, 24]"},
        {LAYER "block_sparse_moe.gate.weight",
         {NULL, DTYPE_F32, 2, {3, HIDDEN}},
         "[2, 136], file has F32 [3, 136]"},
        {"model.embed_tokens.weight",
         {NULL, DTYPE_BF16, 2, {63, HIDDEN}},
         "[64, 136], file has BF16 [63, 136]"},
        {"lm_head.weight", {NULL, DTYPE_BF16, 2, {65, HIDDEN}}, "file has BF16 [65, 136]"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e;
        make_model(DTYPE_F8_E4M3);
        change_tensor(rows[i].name, rows[i].changed, 0);
        CHECK_INT(bind_all(&e), E_CORRUPT);
        CHECK_HAS(e.text, rows[i].name);
        CHECK_HAS(e.text, rows[i].says);
    }
}

TEST(weights_refuse_scales_and_norms_that_are_not_finite)
{
    static const struct {
        const char *name;
        struct safetensors_declaration same;
    } rows[] = {
        {W2 "_scale_inv", {NULL, DTYPE_F32, 2, {2, 1}}},
        {LAYER "self_attn.k_norm.weight", {NULL, DTYPE_BF16, 1, {144}}},
        {LAYER "block_sparse_moe.e_score_correction_bias", {NULL, DTYPE_F32, 1, {2}}},
        {"model.norm.weight", {NULL, DTYPE_BF16, 1, {HIDDEN}}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e;
        make_model(DTYPE_F8_E4M3);
        change_tensor(rows[i].name, rows[i].same, 0xff); /* all bits: NaN in each dtype */
        CHECK_INT(bind_all(&e), E_CORRUPT);
        CHECK_HAS(e.text, rows[i].name);
        CHECK_HAS(e.text, "element 0");
        change_tensor(rows[i].name, rows[i].same, 0x3f);
        CHECK_INT(bind_all(&e), 0);
    }
}

TEST(weights_accept_the_dtypes_in_the_wild)
{
    struct err e;
    make_model(DTYPE_F8_E4M3);
    change_tensor(LAYER "block_sparse_moe.gate.weight",
                  (struct safetensors_declaration){NULL, DTYPE_BF16, 2, {2, HIDDEN}}, 0);
    change_tensor(LAYER "block_sparse_moe.e_score_correction_bias",
                  (struct safetensors_declaration){NULL, DTYPE_BF16, 1, {2}}, 0);
    change_tensor("model.norm.weight",
                  (struct safetensors_declaration){NULL, DTYPE_F16, 1, {HIDDEN}}, 0);
    change_tensor(LAYER "self_attn.q_norm.weight",
                  (struct safetensors_declaration){NULL, DTYPE_F32, 1, {288}}, 0);
    CHECK_INT(bind_all(&e), 0);
}

TEST(weights_want_block_sizes_for_fp8)
{
    struct err e;
    make_model(DTYPE_BF16); /* its config.json has no quantization_config */
    change_tensor(W2, (struct safetensors_declaration){NULL, DTYPE_F8_E4M3, 2, {HIDDEN, EXPERT}},
                  0x38);
    CHECK_INT(bind_all(&e), E_CORRUPT);
    CHECK_HAS(e.text, W2);
    CHECK_HAS(e.text, "weight_block_size");
}

static void pack_as_q8(void)
{
    struct err e = {0};
    struct pack_options o = {.model_dir = "m",
                             .out_dir = "p",
                             .formats = {FORMAT_Q8, FORMAT_Q8, FORMAT_Q8, KV_BF16},
                             .kernels = kernels_named("portable"),
                             .n_threads = 1};
    if (pack_make(&o, NULL, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

TEST(weights_bind_blobs_of_a_packed_directory)
{
    struct checkpoint *c;
    struct layer_view v;
    struct expert_view x;
    struct model_view m;
    make_model(DTYPE_F8_E4M3);
    pack_as_q8();
    for (int copies = 0; copies < 2; copies++) {
        struct checkpoint_options o = {.copies = copies == 1};
        CHECK_INT(checkpoint_open_with("p", &o, &c, NULL), 0);
        CHECK_INT(weights_layer(c, 0, &v, NULL), 0);
        CHECK_INT(weights_expert(c, 0, 1, &x, NULL), 0);
        CHECK_INT(weights_model(c, &m, NULL), 0);
        CHECK_STR(x.up.label, "w3");
        CHECK_INT(x.down.rows, HIDDEN);
        CHECK_INT(x.down.cols, EXPERT);
        CHECK_INT(x.down.packed_format, FORMAT_Q8);
        CHECK_INT(x.down.copies_packed, copies);
        CHECK(x.down.weight.data == NULL && x.down.scale.data == NULL);
        /* One after another: gate, up, down; q, k, v, o. */
        CHECK((const char *)x.gate.packed + x.gate.packed_bytes == x.up.packed);
        CHECK((const char *)x.up.packed + x.up.packed_bytes == x.down.packed);
        CHECK((const char *)v.wq.packed + v.wq.packed_bytes == v.wk.packed);
        CHECK((const char *)v.wv.packed + v.wv.packed_bytes == v.wo.packed);
        CHECK(m.lm_head.packed != NULL && m.embedding.data != NULL);
        CHECK_INT(v.input_norm.dims[0], HIDDEN);
        /* Advice about what is bound leaves it as it is. */
        uint8_t first = *(const uint8_t *)x.gate.packed;
        weights_advise_expert(c, 0, 1, MAPPING_DONE);
        weights_advise_layer(c, 0, MAPPING_DONE);
        weights_advise_model(c, MAPPING_DONE);
        CHECK_INT(*(const uint8_t *)x.gate.packed, first);
        checkpoint_close(&c);
    }
}

/* The sizes agree with each other and with the files, but not with the geometry. */
TEST(weights_of_a_manifest_that_lies_become_no_matrix)
{
    struct checkpoint *c;
    struct expert_view x;
    struct matrix m;
    struct err e = {0};
    struct buf text = {0}, changed = {0};
    struct compute compute = {.kernels = kernels_named("portable")};
    make_model(DTYPE_F8_E4M3);
    pack_as_q8();
    CHECK_INT(buf_read_file(&text, "p/packed.json", 1 << 20, NULL), 0);
    size_t at = str_find(buf_str(&text), STR("q8"));
    buf_append(&changed, text.data, at);
    buf_puts(&changed, "q4");
    buf_puts(&changed, text.data + at + 2);
    CHECK_INT(buf_write_file(&changed, "p/packed.json", NULL), 0);
    CHECK_INT(checkpoint_open("p", &c, NULL), 0);
    CHECK_INT(weights_expert(c, 0, 0, &x, NULL), 0);
    CHECK_INT(matrix_pack(&m, &x.gate, FORMAT_NATIVE, NULL, &compute, &e), E_CORRUPT);
    CHECK_HAS(e.text, "w1");
    CHECK_HAS(e.text, "q4");
    checkpoint_close(&c);
    buf_fini(&text);
    buf_fini(&changed);
}
