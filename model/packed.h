/* model/packed.h - our own on-disk form: matrices as the kernels want them.
 *
 * A packed directory is a Hugging Face directory (config.json, tokenizer files, a
 * model.safetensors with embedding, norms, routers and index projections as stored) whose other
 * matrices lie in `*.packed` files: one for each layer (its attention, its dense MLP or shared
 * expert, then its experts, each a blob) and one for the head.  It has the fingerprint of the checkpoint that it was made from.  packed.json
 * (model/packed_manifest.h), written last, says where each blob is.
 *
 * A `*.packed` file is its blobs, each at a multiple of PACKED_ALIGN_BYTES, and a trailer with
 * their hashes, by which a packing that was interrupted knows what it has finished.  It gets
 * its name only when it is whole and on the disk.
 *
 * This module knows containers, not arithmetic: engine/matrix.h says what is in a blob. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/checkpoint.h"
#include "model/mapping.h"
#include "model/packed_manifest.h"

/* ---- reading: opened with its checkpoint (model/checkpoint.h), thread-safe then ---- */

struct packed;

/* Whether DIR holds a packed.json. */
bool packed_is_here(const char *dir);
/* Reads the manifest and compares every file's size with it; maps nothing. */
int packed_open(const char *dir, const struct packed_shape *shape,
                const struct checkpoint_options *o, struct packed **out, struct err *e);
void packed_close(struct packed **p);
const struct packed_manifest *packed_contents(const struct packed *p);
/* How many files have been mapped so far. */
int packed_open_files(const struct packed *p);

/* The blob at `index` (packed_blob_index()), made ready as the options say: read into memory
 * (unless it will be copied), locked, its hash compared.  E_CORRUPT: another hash; E_IO. */
int packed_find(struct packed *p, int index, const void **data, struct err *e);
/* Compares a blob's hash now. */
int packed_verify(struct packed *p, int index, struct err *e);
/* Advice about a blob's pages; opens its file if need be. */
void packed_advise(struct packed *p, int index, enum mapping_advice advice);

/* ---- writing one `*.packed` file ---- */

struct packed_writer;

/* Bytes of a file whose last blob ends at `data_bytes`. */
size_t packed_file_bytes(size_t data_bytes, int n_blobs);
/* true if `path` is such a file, finished under this key; its hashes then are in `hashes`.
 * The key says what was packed: another model, format or layout has another. */
bool packed_file_is_whole(const char *path, uint64_t key, size_t data_bytes, int n_blobs,
                          uint64_t *hashes);
/* Reserves the whole file under a temporary name.  E_BUSY: the disk is full. */
int packed_writer_open(const char *path, uint64_t key, size_t data_bytes, int n_blobs,
                       struct packed_writer **out, struct err *e);
/* Any thread.  What is never written stays zero. */
int packed_writer_put(struct packed_writer *w, size_t offset, const void *data, size_t bytes,
                      struct err *e);
/* The hash of what was written there, read back in pieces. */
int packed_writer_hash(struct packed_writer *w, size_t offset, size_t bytes, uint64_t *hash,
                       struct err *e);
/* Trailer, fsync, rename.  Always frees and nulls; on failure the temporary file is removed. */
int packed_writer_finish(struct packed_writer **w, const uint64_t *hashes, struct err *e);
/* Removes the temporary file, frees, nulls. */
void packed_writer_abandon(struct packed_writer **w);

/* The hash of the manifest and of the trailers. */
uint64_t packed_hash(const void *data, size_t bytes);
/* fsync(2) of a file or directory by name. */
int packed_sync(const char *path, struct err *e);
/* Writes DIR/packed.json: on the disk under a temporary name first, then renamed. */
int packed_write_manifest(const char *dir, const struct packed_manifest *m, struct err *e);
