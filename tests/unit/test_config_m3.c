/* tests/unit/test_config_m3.c - MiniMax-M3's config.json: as released, and wrong. */
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "model/config.h"
#include "tests/lib/test.h"

/* The released text_config with five layers instead of 60; %s: what is said beside and after it,
 * the last of equal names counting. */
#define SPARSE \
    "\"sparse_attention_config\": {\"use_sparse_attention\": true, \"sparse_index_dim\": 128," \
    "\"sparse_num_index_heads\": 4, \"sparse_topk_blocks\": 16, \"sparse_block_size\": 128," \
    "\"sparse_score_type\": \"max\", \"sparse_init_block\": 0, \"sparse_local_block\": 1," \
    "\"sparse_attention_freq\": [0, 0, 0, 1, 1], \"sparse_disable_index_value\": [0, 0, 0, 1, 1]}"
static const char fields[] =
    "\"model_type\": \"minimax_m3\", \"hidden_size\": 6144, \"num_hidden_layers\": 5,"
    "\"num_attention_heads\": 64, \"num_key_value_heads\": 4, \"head_dim\": 128,"
    "\"rotary_dim\": 64, \"partial_rotary_factor\": 0.5, \"rope_theta\": 5000000,"
    "\"max_position_embeddings\": 1048576, \"vocab_size\": 200064, \"rms_norm_eps\": 1e-06,"
    "\"use_gemma_norm\": true, \"use_qk_norm\": true, \"qk_norm_type\": \"per_head\","
    "\"attention_output_gate\": false, \"hidden_act\": \"swigluoai\", \"swiglu_alpha\": 1.702,"
    "\"swiglu_limit\": 7.0, \"swiglu_beta\": 1.0, \"intermediate_size\": 3072,"
    "\"shared_intermediate_size\": 3072, \"n_shared_experts\": 1,"
    "\"dense_intermediate_size\": 12288, \"num_local_experts\": 128, \"num_experts_per_tok\": 4,"
    "\"scoring_func\": \"sigmoid\", \"use_routing_bias\": true, \"routed_scaling_factor\": 2.0,"
    "\"moe_layer_freq\": [0, 0, 0, 1, 1], \"tie_word_embeddings\": false, " SPARSE;

static void write_file(const char *text)
{
    struct buf b = {0};
    buf_puts(&b, text);
    CHECK_INT(buf_write_file(&b, "config.json", NULL), 0);
    buf_fini(&b);
}

/* The file with `from` replaced by `to` in its text_config. */
static void write_edited(const char *from, const char *to, const char *beside)
{
    struct buf b = {0};
    const char *at = strstr(fields, from);
    CHECK(at != NULL);
    buf_puts(&b, "{\"architectures\": [\"MiniMaxM3SparseForConditionalGeneration\"], "
                 "\"model_type\": \"minimax_m3_vl\", \"vision_config\": {\"hidden_size\": 1280}, "
                 "\"text_config\": {");
    buf_append(&b, fields, (size_t)(at - fields));
    buf_puts(&b, to);
    buf_puts(&b, at + strlen(from));
    buf_printf(&b, "}, \"eos_token_id\": 200020%s}", beside);
    write_file(b.data);
    buf_fini(&b);
}

TEST(config_reads_the_released_m3)
{
    struct model_config c;
    struct err e = {0};
    write_edited("", "",
                 ", \"quantization_config\": {\"quant_method\": \"mxfp8\", \"scale_fmt\": "
                 "\"ue8m0\", \"weight_block_size\": [1, 32]}");
    if (config_read(".", &c, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_INT(c.family, MODEL_MINIMAX_M3);
    CHECK_STR(config_tensor_prefix(&c), "language_model.");
    CHECK(c.has_head_norms && c.has_offset_norms && c.has_power_scales);
    CHECK_INT(c.scale_block_rows, 1);
    CHECK_INT(c.scale_block_cols, 32);
    CHECK_INT(c.activation.kind, ACTIVATION_SWIGLU_OAI);
    CHECK_NEAR(c.activation.alpha, 1.702f, 0);
    CHECK_NEAR(c.activation.limit, 7, 0);
    CHECK_NEAR(c.activation.beta, 1, 0);
    CHECK_NEAR(c.routed_scale, 2, 0);
    CHECK_INT(c.n_dense_layers, 3);
    CHECK_INT(c.dense_size, 12288);
    CHECK_INT(c.shared_size, 3072);
    CHECK_INT(config_expert_layers(&c), 2);
    CHECK_INT(c.sparse.n_full_layers, 3);
    CHECK_INT(c.sparse.block_size, 128);
    CHECK_INT(c.sparse.top_k, 16);
    CHECK_INT(c.sparse.n_heads, 4);
    CHECK_INT(c.sparse.head_dim, 128);
    CHECK(!config_is_sparse(&c, 2) && config_is_sparse(&c, 3));
    CHECK_INT(c.rotary_dim, 64);
    CHECK_INT(c.max_positions, 1 << 20);
    CHECK(config_is_eos(&c, 200020));
}

/* What is edited, and what the refusal must name. */
static const struct {
    const char *from, *to, *named, *found;
} refusals[] = {
    {"\"sparse_num_index_heads\": 4", "\"sparse_num_index_heads\": 8", "sparse_num_index_heads",
     "found 8, expected num_key_value_heads = 4"},
    {"\"sparse_block_size\": 128", "\"sparse_block_size\": 0", "sparse_block_size", "found 0"},
    {"\"sparse_block_size\": 128", "\"sparse_block_size\": 100", "sparse_block_size", "found 100"},
    {"\"sparse_topk_blocks\": 16", "\"sparse_topk_blocks\": 0", "sparse_topk_blocks", "found 0"},
    {"\"sparse_index_dim\": 128", "\"sparse_index_dim\": 32", "sparse_index_dim",
     "rotary_dim = 64"},
    {"\"sparse_attention_freq\": [0, 0, 0, 1, 1]", "\"sparse_attention_freq\": [0, 0, 0, 1]",
     "sparse_attention_freq", "num_hidden_layers = 5"},
    {"\"sparse_attention_freq\": [0, 0, 0, 1, 1]", "\"sparse_attention_freq\": [0, 1, 0, 1, 1]",
     "sparse_attention_freq[2]", "found 0"},
    {"\"sparse_disable_index_value\": [0, 0, 0, 1, 1]",
     "\"sparse_disable_index_value\": [0, 0, 0, 0, 1]", "sparse_disable_index_value[3]", "found 0"},
    {"\"sparse_score_type\": \"max\"", "\"sparse_score_type\": \"mean\"", "sparse_score_type",
     "\"mean\", expected \"max\""},
    {"\"sparse_init_block\": 0", "\"sparse_init_block\": 1", "sparse_init_block",
     "found 1, expected 0"},
    {"\"sparse_local_block\": 1", "\"sparse_local_block\": 2", "sparse_local_block", "found 2"},
    {"\"use_sparse_attention\": true", "\"use_sparse_attention\": false", "use_sparse_attention",
     "false, expected true"},
    {"\"moe_layer_freq\": [0, 0, 0, 1, 1]", "\"moe_layer_freq\": [0, 0, 1]", "moe_layer_freq",
     "num_hidden_layers = 5"},
    {"\"moe_layer_freq\": [0, 0, 0, 1, 1]", "\"moe_layer_freq\": [0, 0, 0, 0, 0]", "moe_layer_freq",
     "only zeros"},
    {"\"hidden_act\": \"swigluoai\"", "\"hidden_act\": \"silu\"", "hidden_act", "\"silu\""},
    {"\"qk_norm_type\": \"per_head\"", "\"qk_norm_type\": \"per_layer\"", "qk_norm_type",
     "\"per_layer\""},
    {"\"use_gemma_norm\": true", "\"use_gemma_norm\": false", "use_gemma_norm", "false"},
    {"\"attention_output_gate\": false", "\"attention_output_gate\": true", "attention_output_gate",
     "true"},
    {"\"n_shared_experts\": 1", "\"n_shared_experts\": 2", "n_shared_experts", "found 2"},
    {"\"shared_intermediate_size\": 3072", "\"shared_intermediate_size\": 0",
     "shared_intermediate_size", "found 0"},
    {"\"dense_intermediate_size\": 12288", "\"dense_intermediate_size\": null",
     "dense_intermediate_size", "missing"},
    {"\"swiglu_limit\": 7.0", "\"swiglu_limit\": -1", "swiglu_limit", "found -1"},
    {SPARSE, "\"sparse_attention_config\": null", "sparse_attention_config", "missing"},
};

TEST(config_refuses_an_m3_that_the_engine_does_not_do)
{
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        struct model_config c;
        struct err e = {0};
        write_edited(refusals[i].from, refusals[i].to, "");
        CHECK(config_read(".", &c, &e) < 0);
        CHECK_HAS(e.text, "./config.json: text_config");
        CHECK_HAS(e.text, refusals[i].named);
        CHECK_HAS(e.text, refusals[i].found);
    }
}

TEST(config_refuses_other_quantisations_of_m3)
{
    struct model_config c;
    struct err e = {0};
    write_edited("", "",
                 ", \"quantization_config\": {\"quant_method\": \"mxfp8\", \"scale_fmt\": "
                 "\"fp32\", \"weight_block_size\": [1, 32]}");
    CHECK_INT(config_read(".", &c, &e), E_UNIMPLEMENTED);
    CHECK_HAS(e.text, "scale_fmt");
    write_edited("", "",
                 ", \"quantization_config\": {\"quant_method\": \"mxfp8\", "
                 "\"weight_block_size\": [32, 32]}");
    CHECK_INT(config_read(".", &c, &e), E_UNIMPLEMENTED);
    CHECK_HAS(e.text, "weight_block_size");
}

TEST(config_refuses_an_m3_without_its_text)
{
    struct model_config c;
    struct err e = {0};
    write_file("{\"architectures\": [\"MiniMaxM3SparseForConditionalGeneration\"]}");
    CHECK_INT(config_read(".", &c, &e), E_INVALID);
    CHECK_HAS(e.text, "text_config is missing");
}
