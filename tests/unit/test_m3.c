/* tests/unit/test_m3.c - a whole MiniMax-M3 in small: one answer in every chunking, dense while
 * everything is seen, and what a broken checkpoint is told. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "model/checkpoint.h"
#include "model/mx.h"
#include "model/safetensors.h"
#include "model/weights.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"
#include "tools/synth.h"

enum { VOCAB = 512, N_TOKENS = 150, N_FEW = 100, SEES_ALL = 64 };

static void write_m3(const char *dir, int top_k_blocks, int n_full_layers, enum dtype dtype)
{
    struct synth_options o;
    struct err e = {0};
    synth_defaults(&o);
    CHECK_INT(synth_preset("m3-tiny", &o.config, &e), 0);
    o.config.vocab_size = VOCAB;
    o.config.sparse.top_k = top_k_blocks;
    o.config.sparse.n_full_layers = n_full_layers;
    o.dtype = dtype;
    o.dir = dir;
    o.is_forced = true;
    if (synth_write(&o, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

/* Of the first n_tokens, which those behind them do not change. */
static float *logits_of(const char *dir, const struct tiny_model_options *o, int n_tokens,
                        int chunk)
{
    struct tiny_model m;
    struct kv_seq seq = {0};
    int32_t tokens[N_TOKENS];
    struct rng r = rng_stream(5, 1);
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (int32_t)rng_below(&r, VOCAB - 60);
    float *logits = mem_array((size_t)n_tokens * VOCAB, sizeof *logits);
    tiny_model_open(&m, dir, o);
    tiny_model_run(&m, &seq, tokens, n_tokens, chunk, logits);
    kv_truncate(m.kv, &seq, 0);
    tiny_model_close(&m);
    return logits;
}

TEST_WITHIN(m3_gives_the_same_bits_in_every_chunking, 120)
{
    static const struct {
        struct tiny_model_options o;
        int n_tokens, chunk;
    } ways[] = {
        {{.n_threads = 1, .max_rows = N_TOKENS}, N_TOKENS, N_TOKENS},
        {{.n_threads = 3, .max_rows = N_TOKENS}, N_TOKENS, N_TOKENS},
        {{.n_threads = 1}, N_FEW, 1}, /* each step of more threads is one to be stalled in */
        {{.n_threads = 2}, N_TOKENS, 7},
        {{.n_threads = 3}, N_TOKENS, 77},
        {{.n_threads = 2, .kernels = "portable"}, N_FEW, 64},
        {{.combine = COMBINE_FIXED}, N_TOKENS, 128}};
    static const char *const formats[] = {"native", "f32,kv=f32", "q8,kv=int8"};
    write_m3("m3", 4, 1, DTYPE_F8_E4M3);
    for (int f = 0; f < 3; f++) {
        float *want = NULL;
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            struct tiny_model_options o = ways[i].o;
            o.format = formats[f];
            int n = ways[i].n_tokens;
            float *got = logits_of("m3", &o, n, ways[i].chunk);
            if (!want)
                want = got;
            CHECK_BYTES(got, want, (size_t)n * VOCAB * sizeof *got);
            if (got != want)
                mem_free(got);
        }
        mem_free(want);
    }
}

/* With room for all blocks the same weights are a model without sparse attention. */
TEST(m3_is_dense_while_everything_is_seen)
{
    struct tiny_model_options o = {.n_threads = 2, .max_rows = N_TOKENS};
    write_m3("sparse", 4, 1, DTYPE_BF16);
    write_m3("dense", 64, 1, DTYPE_BF16);
    float *sparse = logits_of("sparse", &o, N_TOKENS, 50);
    float *dense = logits_of("dense", &o, N_TOKENS, N_TOKENS);
    CHECK_BYTES(sparse, dense, (size_t)SEES_ALL * VOCAB * sizeof *sparse);
    size_t rest = (size_t)(N_TOKENS - SEES_ALL) * VOCAB;
    CHECK(memcmp(sparse + SEES_ALL * VOCAB, dense + SEES_ALL * VOCAB, rest * sizeof *sparse) != 0);
    mem_free(sparse);
    mem_free(dense);
}

/* ---- MXFP8 ---- */

TEST(mx_scales_are_powers_of_two)
{
    CHECK_NEAR(mx_scale_decode(127), 1.0, 0);
    CHECK_NEAR(mx_scale_decode(130), 8.0, 0);
    CHECK_NEAR(mx_scale_decode(1), 0x1p-126, 0);
    CHECK_NEAR(mx_scale_decode(0), 0x1p-127, 0);
    CHECK_NEAR(mx_scale_decode(254), 0x1p127, 0);
    CHECK(isnan(mx_scale_decode(255)));
}

/* ---- broken checkpoints ---- */

#define SCALE "language_model.model.layers.2.block_sparse_moe.experts.3.w2.weight_scale_inv"

/* Where a tensor's bytes lie in a file. */
static long offset_in_file(const char *path, const char *name)
{
    struct safetensors *file;
    struct tensor t, first;
    const char *first_name;
    uint64_t header;
    CHECK_INT(safetensors_open(path, &file, NULL), 0);
    CHECK(safetensors_find(file, name, &t));
    safetensors_at(file, 0, &first_name, &first);
    FILE *f = fopen(path, "rb");
    CHECK(f && fread(&header, 1, 8, f) == 8);
    fclose(f);
    long at = (long)(8 + header) + (long)((const char *)t.data - (const char *)first.data);
    safetensors_close(&file);
    return at;
}

static void patch(const char *path, long at, int byte)
{
    FILE *f = fopen(path, "r+b");
    CHECK(f && fseek(f, at, SEEK_SET) == 0 && fputc(byte, f) == byte);
    CHECK_INT(fclose(f), 0);
}

TEST(m3_scale_that_is_no_number_is_refused_by_name)
{
    struct checkpoint *c;
    struct expert_view v;
    struct err e = {0};
    write_m3("m3", 4, 1, DTYPE_F8_E4M3);
    patch("m3/model.safetensors", offset_in_file("m3/model.safetensors", SCALE) + 5, 255);
    CHECK_INT(checkpoint_open("m3", &c, &e), 0);
    CHECK_INT(weights_expert(c, 1, 2, &v, &e), 0); /* another expert, in the layers with experts */
    CHECK_INT(weights_expert(c, 1, 3, &v, &e), E_CORRUPT);
    CHECK_HAS(e.text, SCALE);
    CHECK_HAS(e.text, "scale 5 is 255");
    checkpoint_close(&c);
}

TEST(m3_without_its_index_tensors_is_refused_by_name)
{
    struct checkpoint *c;
    struct layer_view v;
    struct err e = {0};
    write_m3("m3", 4, 1, DTYPE_BF16);
    write_m3("other", 4, 2, DTYPE_BF16);
    CHECK(system("cp other/model.safetensors m3/model.safetensors") == 0);
    CHECK_INT(checkpoint_open("m3", &c, &e), 0);
    CHECK_INT(weights_layer(c, 1, &v, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "language_model.model.layers.1.self_attn.index_q_proj.weight");
    CHECK_INT(weights_layer(c, 2, &v, &e), 0);
    checkpoint_close(&c);
}

TEST(m3_context_past_its_limit_is_refused_and_the_next_step_works)
{
    struct tiny_model m;
    struct kv_seq seq = {0};
    int32_t tokens[70] = {0};
    const float *logits;
    int n;
    write_m3("m3", 4, 1, DTYPE_BF16);
    CHECK(system("sed -i 's/\"max_position_embeddings\": [0-9]*/\"max_position_embeddings\": 66/' "
                 "m3/config.json") == 0);
    tiny_model_open(&m, "m3", &(struct tiny_model_options){.n_threads = 1});
    CHECK_INT(m.config->max_positions, 66);
    CHECK_INT(kv_reserve(m.kv, &seq, 70), 0);
    struct step_seq part = {.kv = &seq, .n_tokens = 67, .tokens = tokens};
    struct step step = {.n_seqs = 1, .seqs = &part};
    CHECK_INT(forward_step(m.forward, m.kv, &step, &moe_local_ops, m.moe, &logits, &n), E_RANGE);
    CHECK_INT(seq.length, 0);
    part.n_tokens = 66;
    CHECK_INT(forward_step(m.forward, m.kv, &step, &moe_local_ops, m.moe, &logits, &n), 0);
    CHECK_INT(seq.length, 66);
    kv_truncate(m.kv, &seq, 0);
    tiny_model_close(&m);
}

/* What a node must agree about. */
TEST(m3_fingerprint_knows_the_rules_of_the_network)
{
    static const char *const edits[] = {
        "s/\"swiglu_alpha\": [0-9.]*/\"swiglu_alpha\": 1.5/",
        "s/\"swiglu_limit\": [0-9.]*/\"swiglu_limit\": 6.0/",
        "s/\"swiglu_beta\": [0-9.]*/\"swiglu_beta\": 0.5/",
        "s/\"routed_scaling_factor\": [0-9.]*/\"routed_scaling_factor\": 1.0/",
        "s/\"sparse_topk_blocks\": [0-9]*/\"sparse_topk_blocks\": 5/",
        "s/\"sparse_block_size\": [0-9]*/\"sparse_block_size\": 32/",
    };
    struct checkpoint *c;
    struct err e = {0};
    uint64_t seen[8];
    int n = 0;
    for (size_t i = 0; i <= sizeof edits / sizeof *edits; i++) {
        write_m3("m3", 4, 1, DTYPE_BF16);
        char *command = mem_format("sed -i '%s' m3/config.json", i > 0 ? edits[i - 1] : "");
        CHECK(system(command) == 0);
        mem_free(command);
        CHECK_INT(checkpoint_open("m3", &c, &e), 0);
        CHECK_INT(checkpoint_fingerprint(c, &seen[n], &e), 0);
        for (int j = 0; j < n; j++)
            CHECK(seen[j] != seen[n]);
        n++;
        checkpoint_close(&c);
    }
}
