/* expert_node/store.h - which experts are here: loads what the coordinator wants, gives up
 * what it no longer wants.
 *
 * A loader thread and its pool pack experts from the checkpoint, several at a time, or map
 * those of a packed directory.  The loader publishes an immutable view of them to the worker
 * through a queue; the worker hands the view before it back through another.  Only then are
 * experts freed that the new view lacks, so the worker never sees freed memory and nobody
 * shares a lock.  What was loaded is tested before it is published: the chosen kernels and the
 * portable ones must give the same finite bits; a test that is asked for later also reads
 * experts anew, and compares.
 *
 * New experts are loaded before old ones are given up, unless memory is too small for both.
 *
 * Log events: store.loading, store.ready, store.refused, store.failed, store.tested. */
#pragma once

#include <stdint.h>

#include "base/err.h"
#include "base/queue.h"
#include "engine/expert.h"
#include "model/checkpoint.h"
#include "rpc/wire.h"

/* What the worker may use.  Owned by the store, lent to the worker. */
struct store_view {
    uint64_t version;
    int n_experts; /* of a layer */
    int n_held;
    size_t held_bytes;
    const struct expert **held; /* [n_layers * n_experts], NULL where not here */
};

struct store_options {
    struct checkpoint *checkpoint; /* borrowed until store_stop() */
    enum weight_format format;
    const struct kernels *kernels;
    int threads; /* of the loader, itself included */
    size_t memory_bytes;
    /* Borrowed.  `views` to the worker, `retired` back from it; capacity 4 each.  The worker
     * must have stopped before store_stop(). */
    struct queue *views, *retired;
};

struct store;
int store_start(const struct store_options *o, struct store **out, struct err *e);
void store_stop(struct store **s);

/* Bytes of one expert as it will lie in memory, its own or a mapping. */
int store_expert_bytes(struct checkpoint *c, enum weight_format format, size_t *out, struct err *e);

/* The newest wish replaces older ones, finished or not.  E_INVALID: another model's shape. */
int store_want(struct store *s, const struct wire_holdings *h, struct err *e);

/* What is loaded is to be tested again, `test` growing from call to call.  Done when progress
 * says so; a failure is an outcome with the code E_CORRUPT. */
void store_test(struct store *s, uint64_t test);

/* What became of a wish. */
struct store_outcome {
    uint64_t version;
    int code; /* 0: published.  E_BUSY: more than fits.  E_CORRUPT, E_IO, ...: cannot be loaded */
    struct err why;
};
/* Readable while store_take_outcome() has something. */
int store_fd(const struct store *s);
/* false if there is none. */
bool store_take_outcome(struct store *s, struct store_outcome *out);

/* Any thread may ask. */
struct store_progress {
    uint32_t held, wanted;    /* experts in memory; of the newest wish */
    uint64_t held_bytes;      /* in memory */
    uint64_t read_bytes;      /* read from the checkpoint since the start */
    uint64_t serving_version; /* of the view that the worker has; 0 while experts of it go */
    uint64_t tested;          /* newest test that was passed */
};
void store_progress(const struct store *s, struct store_progress *out);
