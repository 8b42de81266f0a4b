/* tools/local_engine.h - a whole model in this process, for `polymath generate` and
 * `polymath logits`: their common options, loading, and steps of one sequence.
 *
 * Owner: the main thread. */
#pragma once

#include <stdint.h>

#include "engine/forward.h"
#include "engine/moe_local.h"
#include "model/tokenizer.h"

struct local_engine_options {
    const char *model_dir;
    const char *kernels; /* NULL: the best that this CPU runs */
    struct format_set formats;
    enum combine_mode combine;
    struct checkpoint_options checkpoint;
    int n_threads;  /* 0: one per CPU that the process may use */
    int chunk_rows; /* rows of one step */
};

/* For the verbs' getopt tables: the codes that local_engine_take() knows. */
enum {
    LOCAL_ENGINE_MODEL = 1000,
    LOCAL_ENGINE_KERNELS,
    LOCAL_ENGINE_FORMAT,
    LOCAL_ENGINE_COMBINE,
    LOCAL_ENGINE_THREADS,
    LOCAL_ENGINE_CHUNK,
    LOCAL_ENGINE_COPY,
    LOCAL_ENGINE_LOCK,
    LOCAL_ENGINE_VERIFY
};
#define LOCAL_ENGINE_GETOPT \
    {"model", required_argument, NULL, LOCAL_ENGINE_MODEL}, \
        {"kernels", required_argument, NULL, LOCAL_ENGINE_KERNELS}, \
        {"format", required_argument, NULL, LOCAL_ENGINE_FORMAT}, \
        {"combine", required_argument, NULL, LOCAL_ENGINE_COMBINE}, \
        {"threads", required_argument, NULL, LOCAL_ENGINE_THREADS}, \
        {"copy", no_argument, NULL, LOCAL_ENGINE_COPY}, \
        {"lock", no_argument, NULL, LOCAL_ENGINE_LOCK}, \
        {"verify", no_argument, NULL, LOCAL_ENGINE_VERIFY}, \
    { \
        "chunk", required_argument, NULL, LOCAL_ENGINE_CHUNK \
    }
#define LOCAL_ENGINE_HELP \
    "  --model DIR        the checkpoint: a Hugging Face directory\n" \
    "  --format F         how weights and the KV cache are held (default native,kv=bf16):\n" \
    "                     " FORMAT_SET_HELP ",\n" \
    "                     FORMAT one of " FORMAT_CHOICES ",\n" \
    "                     kv one of " KV_FORMAT_CHOICES "\n" \
    "  --combine M        how expert outputs are added: " COMBINE_CHOICES " (default fixed)\n" \
    "  --threads N        default: one per CPU\n" \
    "  --kernels NAME     inner loops to use (default: the best that this CPU runs)\n" \
    "  --chunk N          prompt tokens of one step (default 256)\n" \
    "  --copy             of a packed directory: copy weights into huge pages\n" \
    "  --lock             of a packed directory: lock weights into memory\n" \
    "  --verify           of a packed directory: check the hash of all that is read\n"

void local_engine_defaults(struct local_engine_options *o);
/* One option; E_INVALID with what is wrong. */
int local_engine_take(struct local_engine_options *o, int code, const char *value, struct err *e);
/* An integer in [least, most]; E_INVALID names the option. */
int local_engine_integer(const char *option, const char *text, int64_t least, int64_t most,
                         int64_t *out, struct err *e);
/* "5,17,9", at least one; E_INVALID. */
int local_engine_ids(const char *text, struct tokens *out, struct err *e);

struct local_engine {
    struct checkpoint *checkpoint;
    const struct model_config *config;
    struct format_set formats; /* native parts as the checkpoint holds them */
    struct compute compute;
    struct forward *forward;
    struct moe_local *moe;
    struct kv *kv;
    struct kv_seq seq;
    int chunk_rows;
    int64_t experts_ns; /* time inside the experts' half so far */
};

/* Opens the checkpoint alone: what a tokenizer and a prompt need. */
int local_engine_open(struct local_engine *g, const struct local_engine_options *o, struct err *e);
/* Loads the weights and makes room for n_positions. */
int local_engine_load(struct local_engine *g, const struct local_engine_options *o,
                      int64_t n_positions, struct err *e);
void local_engine_close(struct local_engine *g);

enum local_engine_wants {
    LOCAL_ENGINE_NO_LOGITS,
    LOCAL_ENGINE_LAST_LOGITS,
    LOCAL_ENGINE_ALL_LOGITS
};
/* Runs up to chunk_rows tokens at the end of the sequence; *logits as forward_step() says. */
int local_engine_step(struct local_engine *g, const int32_t *tokens, int n_tokens,
                      enum local_engine_wants wants, const float **logits, struct err *e);
