/* base/blob.h - a reference-counted block of bytes: what crosses threads and sockets.
 *
 * The count is atomic because ZeroMQ drops its reference in its own I/O thread.  The
 * bytes are written by the one who made the blob, before it is shared, and only read after. */
#pragma once

#include <stddef.h>

struct blob {
    _Atomic int references;
    size_t size_bytes;
    void *data; /* aligned to MEM_ALIGN */
    void (*release)(struct blob *b, void *ud);
    void *ud;
};

/* One reference for the caller; contents undefined. */
struct blob *blob_new(size_t bytes);
struct blob *blob_copy(const void *data, size_t bytes);
/* Adds a reference and returns b. */
struct blob *blob_ref(struct blob *b);
/* Drops the caller's reference and sets *b to NULL; the last one frees.  NULL is fine. */
void blob_unref(struct blob **b);

/* Blobs of one size that return to their pool instead of the heap, from whatever thread;
 * blob_pool_get() falls back to the heap when the pool is empty. */
struct blob_pool;
struct blob_pool *blob_pool_new(size_t blob_bytes, int n_blobs);
struct blob *blob_pool_get(struct blob_pool *p);
/* Waits for nothing: blobs that are still out free themselves when they come back. */
void blob_pool_free(struct blob_pool **p);
