/* tests/lib/tiny_model.h - a small checkpoint and the whole engine over it, for tests.
 *
 * Any failure to write or open ends the test. */
#pragma once

#include "engine/forward.h"
#include "engine/moe_local.h"

/* Writes a random FP8 checkpoint in which no size is a power of two: hidden 72, 6 heads of 20
 * over 3 KV heads, 12 experts of 24, top-3, a vocabulary of 400 with a tokenizer. */
void tiny_model_write(const char *dir, int n_layers, uint64_t seed);

/* All-zero is: best kernels, one thread, steps of 128 rows, native with a bf16 cache, fixed. */
struct tiny_model_options {
    const char *kernels;
    int n_threads, max_rows;
    const char *format; /* for format_set_parse(); NULL: native, a bf16 cache */
    enum combine_mode combine;
    bool has_two_lanes; /* of tiny_model_run()'s steps */
};
enum { TINY_MODEL_MAX_ROWS = 128, TINY_MODEL_PAGES = 24 };

struct tiny_model {
    struct checkpoint *checkpoint;
    const struct model_config *config;
    struct format_set formats;
    struct compute compute;
    struct forward *forward;
    struct moe_local *moe;
    struct kv *kv; /* TINY_MODEL_PAGES pages */
    bool has_two_lanes;
};
void tiny_model_open(struct tiny_model *m, const char *dir, const struct tiny_model_options *o);
void tiny_model_close(struct tiny_model *m);

/* Runs all tokens at the end of `seq` in steps of at most chunk_rows; `logits` gets every
 * row: [n_tokens, vocab]. */
void tiny_model_run(struct tiny_model *m, struct kv_seq *seq, const int32_t *tokens, int n_tokens,
                    int chunk_rows, float *logits);
