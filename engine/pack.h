/* engine/pack.h - making a packed directory (model/packed.h) of a checkpoint.
 *
 * Parallel over experts and ranges of rows.  Memory: one room per thread, of an expert or of
 * PACK_ROWS rows of a larger matrix, at most PACK_ROOM_BYTES in all (fewer threads work where
 * that is too little); source pages are given back as they are used.
 *
 * Interrupted, by a kill or a full disk, it goes on where it stopped: layers that are finished
 * are kept, and packed.json comes last.  One process at a time packs into a directory. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/kernels.h"
#include "model/format.h"

enum { PACK_ROWS = 2048 };
#define PACK_ROOM_BYTES ((size_t)3 << 29) /* 1.5 GiB */

struct pack_options {
    const char *model_dir, *out_dir;
    struct format_set formats; /* native parts: the nearest to what is stored */
    const struct kernels *kernels;
    int n_threads;
    bool is_forced; /* replace a packing of another model or format that is there */
    bool verifies;  /* at the end, read everything again and compare the hashes */
    /* Told now and then by the calling thread; may be NULL. */
    void (*progress)(void *ud, int64_t done_bytes, int64_t total_bytes);
    void *progress_ud;
};

struct pack_result {
    struct format_set formats; /* what the directory holds */
    int64_t bytes;             /* of all packed files and of model.safetensors */
    int n_files, n_kept;       /* packed files; those that an earlier run had finished */
    bool was_whole;            /* all was there already */
};

/* E_EXISTS: out_dir holds something else.  E_BUSY: the disk is too small, or another process
 * packs there.  E_RANGE: a format that the geometry does not allow.  E_CORRUPT: a weight that
 * is no number, or with `verifies` a hash.  `result` may be NULL. */
int pack_make(const struct pack_options *o, struct pack_result *result, struct err *e);

/* The packed form of o->model_dir in these formats, in a folder of its own in `cache_dir`
 * named after fingerprint and formats; made first if it is not there (o->out_dir is ignored).
 * Waits for another process that makes the same.  A directory that is packed already is its
 * own.  Free *dir with mem_free(). */
int pack_cached(const struct pack_options *o, const char *cache_dir, char **dir, struct err *e);
