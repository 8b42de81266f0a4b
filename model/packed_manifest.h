/* model/packed_manifest.h - packed.json: what a packed directory holds and where.
 *
 *   {"polymath_packed": 1, "fingerprint": "0123456789abcdef", "layers": 62, "experts": 256,
 *    "dense_layers": 3, "shared": true,
 *    "parts": {"experts": {"format": "q8", "matrix_bytes": [n, n, n]},
 *              "attention": {..., "matrix_bytes": [n, n, n, n]}, "head": {...},
 *              "dense": {...}, "shared": {...}},
 *    "files": [{"name": "layer-00000.packed", "bytes": n, "blobs": [
 *        {"part": "experts", "layer": 0, "expert": 7, "offset": n, "bytes": n, "hash": "..."}]}]}
 *
 * A blob is the matrices of its part one after another (experts, dense, shared: gate, up, down;
 * attention: q, k, v, o), each of matrix_bytes.  Layers are the model's, from 0.  "dense_layers"
 * and "shared", and their parts, are there only where a model has such (MiniMax-M3): the first
 * dense_layers layers have a dense MLP and no experts, the others may have a shared expert.  A manifest is believed in nothing: what a reader gets
 * names every blob exactly once, inside its file, aligned, and overlapping no other. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/config.h"
#include "model/format.h"

#define PACKED_MANIFEST "packed.json"
enum { PACKED_VERSION = 1, PACKED_ALIGN_BYTES = 4096, PACKED_MAX_MATRICES = 4 };

enum packed_part {
    PACKED_EXPERTS,
    PACKED_ATTENTION,
    PACKED_HEAD,
    PACKED_DENSE,  /* the MLP of a layer without experts; format of the experts */
    PACKED_SHARED, /* the expert that every row goes through; format of the experts */
    PACKED_PARTS
};

/* What decides which blobs there are. */
struct packed_shape {
    int n_layers, n_experts;
    int n_dense_layers; /* the first ones */
    bool has_shared;
};
struct packed_shape packed_shape_of(const struct model_config *c);

struct packed_part_info {
    enum weight_format format;
    int n_matrices; /* packed_part_matrices() */
    size_t matrix_bytes[PACKED_MAX_MATRICES];
    size_t blob_bytes; /* their sum */
};

struct packed_file_info {
    char *name;
    size_t bytes;
};

struct packed_blob_info {
    int file; /* in files; -1: not yet seen */
    size_t offset, bytes;
    uint64_t hash; /* XXH3-64 of its bytes */
};

/* All-zero is empty. */
struct packed_manifest {
    uint64_t fingerprint; /* of the checkpoint that it was made from */
    struct packed_shape shape;
    struct packed_part_info parts[PACKED_PARTS];
    struct packed_file_info *files;
    int n_files;
    struct packed_blob_info *blobs; /* [n_blobs], see packed_blob_index() */
    int n_blobs;
};

const char *packed_part_name(enum packed_part part); /* "experts" */
int packed_part_matrices(enum packed_part part);

/* Whether a model of this shape has blobs of a part. */
bool packed_shape_has(const struct packed_shape *s, enum packed_part part);

/* Sizes and room for every blob; nothing else is filled. */
void packed_manifest_init(struct packed_manifest *m, const struct packed_shape *shape);
void packed_manifest_fini(struct packed_manifest *m);
/* Where a blob is in m->blobs: by layer, attention, then the dense MLP or the shared expert,
 * then the experts; the head is last.  `layer` is the model's. */
int packed_blob_index(const struct packed_manifest *m, enum packed_part part, int layer,
                      int expert);
/* The other way round. */
struct packed_place {
    enum packed_part part;
    int layer, expert;
};
struct packed_place packed_place_of(const struct packed_manifest *m, int index);
/* The blobs of a layer, or of the head as layer n_layers: [*first, *first + *n). */
void packed_layer_blobs(const struct packed_manifest *m, int layer, int *first, int *n);
/* "layer 3: expert 17", "layer 3: attention", "head": for messages. */
enum { PACKED_BLOB_TEXT_BYTES = 64 };
const char *packed_blob_text(const struct packed_manifest *m, int index,
                             char out[PACKED_BLOB_TEXT_BYTES]);

/* For a model of this shape.  E_CORRUPT names what is wrong; E_PRECONDITION:
 * another version or another model's shape.  On failure m is empty. */
int packed_manifest_parse(const void *data, size_t bytes, const struct packed_shape *shape,
                          struct packed_manifest *m, struct err *e);
int packed_manifest_read(const char *dir, const struct packed_shape *shape,
                         struct packed_manifest *m, struct err *e);
void packed_manifest_text(const struct packed_manifest *m, struct buf *out);
