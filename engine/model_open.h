/* engine/model_open.h - the model that a program's options name: its directory, or the packed
 * form of it in a cache directory, which the first start makes. */
#pragma once

#include <stdint.h>

#include "base/err.h"
#include "engine/kernels.h"
#include "model/checkpoint.h"
#include "model/format.h"

struct model_open_options {
    const char *model_dir;
    const char *cache_dir; /* NULL or "": none */
    struct format_set formats;
    struct checkpoint_options checkpoint;
    const struct kernels *kernels; /* for packing into the cache */
    int n_threads;
    /* Told now and then while the cache is made, by the calling thread; may be NULL. */
    void (*packing)(void *ud, int64_t done_bytes, int64_t total_bytes);
    void *ud;
};

struct model_opened {
    struct checkpoint *checkpoint;
    /* What nodes compare with each other: native parts as model_dir itself has them, so that
     * nodes with and without a cache belong together. */
    struct format_set said;
    struct format_set held; /* as the weights lie here: native parts as the cache has them */
};

/* The caller closes out->checkpoint; NULL on failure. */
int model_open(const struct model_open_options *o, struct model_opened *out, struct err *e);
