/* tests/unit/test_config.c - config.json as released, as newer writers have it, and wrong. */
#include "model/config.h"

#include <stdio.h>

#include "base/buf.h"
#include "tests/lib/test.h"

static void write_file(const char *path, const char *text)
{
    struct buf b = {0};
    buf_puts(&b, text);
    CHECK_INT(buf_write_file(&b, path, NULL), 0);
    buf_fini(&b);
}

#define SIZES \
    "\"vocab_size\": 200064, \"hidden_size\": 3072, \"num_hidden_layers\": 2," \
    "\"num_attention_heads\": 48, \"num_key_value_heads\": 8, \"intermediate_size\": 1536," \
    "\"num_local_experts\": 256, \"num_experts_per_tok\": 8"
#define NAMED "\"architectures\": [\"MiniMaxM2ForCausalLM\"], " SIZES

/* The released file, with two layers instead of 62. */
static const char released[] =
    "{" NAMED ", \"model_type\": \"minimax_m2\", \"head_dim\": 128, \"rotary_dim\": 64,"
    "\"rope_theta\": 5000000, \"max_position_embeddings\": 196608, \"rms_norm_eps\": 1e-06,"
    "\"hidden_act\": \"silu\", \"mlp_intermediate_size\": 8192, \"shared_intermediate_size\": 0,"
    "\"scoring_func\": \"sigmoid\", \"use_routing_bias\": true, \"use_qk_norm\": true,"
    "\"qk_norm_type\": \"per_layer\", \"attn_type_list\": [1, 1], \"sliding_window\": null,"
    "\"attention_dropout\": 0.0, \"tie_word_embeddings\": false, \"use_mtp\": true,"
    "\"num_mtp_modules\": 3, \"mtp_transformer_layers\": 1, \"torch_dtype\": \"bfloat16\","
    "\"bos_token_id\": 200034, \"eos_token_id\": 200020, \"quantization_config\": {"
    "\"quant_method\": \"fp8\", \"fmt\": \"float8_e4m3fn\", \"activation_scheme\": \"dynamic\","
    "\"weight_block_size\": [128, 128],"
    "\"modules_to_not_convert\": [\"gate\", \"e_score_correction_bias\", \"lm_head\"]}}";

TEST(config_reads_the_released_file)
{
    struct model_config c;
    struct err e = {0};
    write_file("config.json", released);
    write_file("generation_config.json", "{\"bos_token_id\": 200019, \"eos_token_id\": [200020, 7],"
                                         "\"temperature\": 0.7, \"top_p\": 0.9, \"top_k\": 20}");
    CHECK_INT(config_read(".", &c, &e), 0);
    CHECK_INT(c.vocab_size, 200064);
    CHECK_INT(c.hidden_size, 3072);
    CHECK_INT(c.n_layers, 2);
    CHECK_INT(c.n_heads, 48);
    CHECK_INT(c.n_kv_heads, 8);
    CHECK_INT(c.head_dim, 128);
    CHECK_INT(c.rotary_dim, 64);
    CHECK_INT(c.expert_size, 1536);
    CHECK_INT(c.n_experts, 256);
    CHECK_INT(c.top_k, 8);
    CHECK_INT(c.max_positions, 196608);
    CHECK_NEAR(c.rope_theta, 5e6, 0);
    CHECK_NEAR(c.rms_norm_eps, 1e-6f, 0);
    CHECK_INT(c.scale_block_rows, 128);
    CHECK_INT(c.scale_block_cols, 128);
    CHECK_INT(c.n_eos, 2);
    CHECK(config_is_eos(&c, 200020) && config_is_eos(&c, 7) && !config_is_eos(&c, 200034));
    CHECK_NEAR(c.temperature, 0.7, 0);
    CHECK_NEAR(c.top_p, 0.9, 0);
    CHECK_INT(c.top_k_sampling, 20);
}

TEST(config_fills_in_what_is_not_said)
{
    struct model_config c;
    write_file("config.json",
               "{" NAMED ", \"sliding_window\": null, \"quantization_config\": null}");
    CHECK_INT(config_read(".", &c, NULL), 0);
    CHECK_INT(c.head_dim, 64); /* hidden / heads */
    CHECK_INT(c.rotary_dim, 64);
    CHECK_NEAR(c.rope_theta, 5e6, 0);
    CHECK_NEAR(c.rms_norm_eps, 1e-6f, 0);
    CHECK_INT(c.max_positions, 196608);
    CHECK_INT(c.scale_block_rows, 0);
    CHECK_INT(c.n_eos, 0);
    CHECK_NEAR(c.temperature, 1, 0);
    CHECK_NEAR(c.top_p, 0.95, 0);
    CHECK_INT(c.top_k_sampling, 40);
}

TEST(config_reads_what_newer_writers_say_about_rotation)
{
    struct model_config c;
    write_file("config.json", "{\"model_type\": \"minimax_m2\", " SIZES ", \"head_dim\": 12,"
                              "\"rope_parameters\": {\"rope_type\": \"default\","
                              "\"rope_theta\": 10000.0, \"partial_rotary_factor\": 0.6666666667}}");
    CHECK_INT(config_read(".", &c, NULL), 0);
    CHECK_INT(c.rotary_dim, 8);
    CHECK_NEAR(c.rope_theta, 1e4, 0);
    write_file("config.json",
               "{" NAMED ", \"head_dim\": 128, \"partial_rotary_factor\": 0.5, \"rotary_dim\": 64,"
               "\"layer_types\": [\"full_attention\", \"full_attention\"]}");
    CHECK_INT(config_read(".", &c, NULL), 0);
    CHECK_INT(c.rotary_dim, 64);
}

/* Each row: what is said beside the sizes, and what the refusal must name. */
static const struct {
    const char *fields, *named, *found;
} refusals[] = {
    {"\"hidden_act\": \"gelu\"", "hidden_act", "\"gelu\", expected \"silu\""},
    {"\"scoring_func\": \"softmax\"", "scoring_func", "\"softmax\", expected \"sigmoid\""},
    {"\"shared_intermediate_size\": 1024", "shared_intermediate_size", "1024, expected 0"},
    {"\"sliding_window\": 4096", "sliding_window", "4096, expected null"},
    {"\"attn_type_list\": [1, 0]", "attn_type_list[1]", "0, expected 1"},
    {"\"attn_type_list\": [1]", "attn_type_list", "num_hidden_layers = 2"},
    {"\"layer_types\": [\"full_attention\", \"sliding_attention\"]", "layer_types[1]",
     "\"sliding_attention\""},
    {"\"use_qk_norm\": false", "use_qk_norm", "false, expected true"},
    {"\"qk_norm_type\": \"per_head\"", "qk_norm_type", "\"per_head\""},
    {"\"use_routing_bias\": false", "use_routing_bias", "false"},
    {"\"tie_word_embeddings\": true", "tie_word_embeddings", "true"},
    {"\"routed_scaling_factor\": 2.5", "routed_scaling_factor", "2.5"},
    {"\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0}", "rope_scaling", "\"yarn\""},
    {"\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 2.0}", "rope_parameters",
     "\"linear\""},
    {"\"quantization_config\": {\"quant_method\": \"awq\"}", "quant_method", "\"awq\""},
    {"\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e5m2\"}", "fmt", "\"e5m2\""},
    {"\"quantization_config\": {\"quant_method\": \"fp8\"}", "weight_block_size", "nothing"},
    {"\"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [128, 0]}",
     "weight_block_size", "found 0"},
    {"\"rotary_dim\": 65, \"head_dim\": 128", "rotary_dim", "found 65"},
    {"\"rotary_dim\": 130, \"head_dim\": 128", "rotary_dim", "head_dim = 128"},
    {"\"rotary_dim\": 32, \"head_dim\": 128, \"partial_rotary_factor\": 0.5", "rotary_dim",
     "is 64"},
    {"\"head_dim\": -1", "head_dim", "found -1"},
    {"\"head_dim\": 1000000", "num_attention_heads * head_dim", "beyond"},
    {"\"rms_norm_eps\": 0", "rms_norm_eps", "found 0"},
    {"\"rope_theta\": \"big\"", "rope_theta", "\"big\""},
    {"\"eos_token_id\": -1", "eos_token_id", "-1"},
    {"\"eos_token_id\": [1,2,3,4,5,6,7,8,9]", "eos_token_id", "more than 8"},
};

TEST(config_refuses_what_the_engine_does_not_do)
{
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        struct model_config c;
        struct err e = {0};
        char text[1024];
        snprintf(text, sizeof text, "{" NAMED ", %s}", refusals[i].fields);
        write_file("config.json", text);
        CHECK(config_read(".", &c, &e) < 0);
        CHECK_HAS(e.text, "./config.json");
        CHECK_HAS(e.text, refusals[i].named);
        CHECK_HAS(e.text, refusals[i].found);
    }
}

TEST(config_refuses_other_architectures_and_broken_files)
{
    struct model_config c;
    struct err e = {0};
    CHECK_INT(config_read(".", &c, &e), E_NOT_FOUND);
    write_file("config.json", "{\"architectures\": [\"LlamaForCausalLM\"], " SIZES "}");
    CHECK_INT(config_read(".", &c, &e), E_UNIMPLEMENTED);
    CHECK_HAS(e.text, "LlamaForCausalLM");
    CHECK_HAS(e.text, "MiniMaxM2ForCausalLM");
    write_file("config.json", "{\"model_type\": \"mixtral\", " SIZES "}");
    CHECK_INT(config_read(".", &c, &e), E_UNIMPLEMENTED);
    CHECK_HAS(e.text, "mixtral");
    write_file("config.json", "{" SIZES "}");
    CHECK_INT(config_read(".", &c, &e), E_INVALID);
    CHECK_HAS(e.text, "architectures is missing");
    write_file("config.json", "{\"architectures\": [\"MiniMaxM2ForCausalLM\"]}");
    CHECK_INT(config_read(".", &c, &e), E_INVALID);
    CHECK_HAS(e.text, "vocab_size is missing");
    write_file("config.json", "{" NAMED ", \"hidden_size\": 1}"); /* a field twice */
    CHECK_INT(config_read(".", &c, &e), E_CORRUPT);
    write_file("config.json", "[1]");
    CHECK_INT(config_read(".", &c, &e), E_CORRUPT);
    write_file("config.json", "{\n\"architectures\": [}");
    CHECK_INT(config_read(".", &c, NULL), E_CORRUPT);
}

TEST(config_checks_sizes_against_each_other)
{
    struct model_config c;
    struct err e = {0};
    static const struct {
        int heads, kv_heads, experts, top_k;
        const char *says;
    } rows[] = {
        {6, 4, 8, 2, "num_attention_heads = 6 is not a multiple of num_key_value_heads = 4"},
        {8, 4, 4, 5, "num_experts_per_tok = 5 is more than num_local_experts = 4"},
        {8, 4, 5000, 5, "num_local_experts: found 5000, expected a whole number from 1 to 4096"},
        {8, 4, 64, 17, "num_experts_per_tok: found 17, expected a whole number from 1 to 16"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[512];
        snprintf(text, sizeof text,
                 "{\"model_type\": \"minimax_m2\", \"vocab_size\": 10, \"hidden_size\": 64,"
                 "\"num_hidden_layers\": 1, \"num_attention_heads\": %d,"
                 "\"num_key_value_heads\": %d, \"intermediate_size\": 8,"
                 "\"num_local_experts\": %d, \"num_experts_per_tok\": %d}",
                 rows[i].heads, rows[i].kv_heads, rows[i].experts, rows[i].top_k);
        write_file("config.json", text);
        CHECK_INT(config_read(".", &c, &e), E_INVALID);
        CHECK_HAS(e.text, rows[i].says);
    }
}
