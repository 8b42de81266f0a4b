/* engine/pack_job.h - what the files of the packing job share; only they include it. */
#pragma once

#include <stdatomic.h>

#include "base/thread.h"
#include "engine/gemm.h"
#include "engine/pack.h"
#include "model/packed.h"
#include "model/weights.h"

/* Written into the directory first, removed last: what is being packed there. */
#define PACK_MARKER "packing.json"
#define PACK_TENSORS "model.safetensors"

/* One thread's place to pack into. */
struct pack_room {
    atomic_bool is_taken;
    void *data;
};

struct pack_job {
    const struct pack_options *options;
    struct checkpoint *source;
    const struct model_config *config;
    struct format_set formats; /* none native */
    struct packed_manifest manifest;
    uint64_t key; /* of model, formats and layout */
    struct compute compute;
    struct pack_room *rooms; /* one per thread */
    size_t room_bytes;
    char (*kept)[TENSOR_NAME_BYTES]; /* [n_tensors]: of model.safetensors, in its order */
    int n_tensors;
    int64_t total_bytes, kept_bytes; /* all; of model.safetensors */
    int n_kept;
    struct owner owner; /* the calling thread, which alone tells the progress */
    _Atomic int64_t done_bytes;
};

void pack_add_progress(struct pack_job *job, size_t bytes);

/* ---- pack_blobs.c: matrices ---- */

/* Formats and sizes of every part, files and offsets of every blob, room and threads. */
int pack_plan(struct pack_job *job, struct err *e);
void pack_plan_fini(struct pack_job *job);
/* The key of one file, and where its last blob ends. */
uint64_t pack_file_key(const struct pack_job *job, int file);
size_t pack_file_data_bytes(const struct pack_job *job, int file);
/* Fills a file; hashes go into the manifest. */
int pack_write_blobs(struct pack_job *job, int file, struct packed_writer *w, struct err *e);

/* ---- pack_files.c: everything else ---- */

/* Lists the tensors that are not packed, and counts their bytes. */
int pack_measure_tensors(struct pack_job *job, struct err *e);
void pack_tensors_fini(struct pack_job *job);
/* model.safetensors, unless an earlier run finished it. */
int pack_write_tensors(struct pack_job *job, struct err *e);
/* config.json, the tokenizer, whatever is small and no weights. */
int pack_copy_files(struct pack_job *job, struct err *e);
