/* tools/synth.h - `polymath synth`: a random checkpoint in the released format.
 *
 * Names, dtypes and files are those of the released M2 or M3; the geometry is free.  The same
 * options give the same bytes on every machine.  Weights are bell-shaped with a spread of
 * about 1 / sqrt(inputs), so that hidden states stay sane through any number of layers. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/config.h"
#include "model/tensor.h"

int synth_main(int argc, char **argv);

/* Which tensors are written. */
enum synth_contents {
    SYNTH_ALL,
    SYNTH_NO_EXPERTS,
    SYNTH_NO_MATRICES, /* nor projections and head: what a packed directory has beside blobs */
};

struct synth_options {
    struct model_config config; /* sizes; scale blocks and end ids are set by synth_write() */
    enum dtype dtype;           /* of experts and attention: F8_E4M3 (M3: MXFP8), BF16 or F32 */
    uint64_t seed;
    const char *dir;
    int64_t shard_bytes; /* one file up to this size, shards beyond */
    bool has_tokenizer;  /* write tokenizer.json too */
    enum synth_contents contents;
    bool is_forced; /* replace a checkpoint that is there */
    bool shows_progress;
};

/* FP8, seed 1, 4 GiB shards, with a tokenizer, geometry of m2-tiny. */
void synth_defaults(struct synth_options *o);
/* "m2-tiny", "m2-mini", "m2-layers-N", "m3-tiny" or "m3-layer"; E_NOT_FOUND names those. */
int synth_preset(const char *name, struct model_config *out, struct err *e);
/* Sets one field by its name in config.json, "hidden_size=256"; E_INVALID says what is wrong. */
int synth_set(struct model_config *c, const char *assignment, struct err *e);
/* Makes the directory and all its files.  E_EXISTS if it holds something and is not forced. */
int synth_write(const struct synth_options *o, struct err *e);
/* Whether the reader of checkpoints accepts the geometry; E_INVALID and others say why not. */
int synth_check(const struct synth_options *o, struct err *e);
