/* expert_node/worker.h - the work thread: receives parcels, runs them, answers (step 10).
 *
 * Everything that waits is taken in one turn, merged by layer (batch.h) and answered.  The
 * worker owns the data service (Expert, health, reflection) and sees experts only through
 * the view that the store lends it.  It keeps nothing about any request.
 *
 * Log events: worker.view, parcel (debug), worker.faults. */
#pragma once

#include <stdint.h>

#include "base/err.h"
#include "base/queue.h"
#include "engine/gemm.h"
#include "expert_node/fault.h"
#include "model/config.h"
#include "model/format.h"

struct worker_options {
    const char *name;                  /* copied */
    const char *endpoint;              /* copied; port 0 binds a free one */
    struct auth *auth;                 /* rpc/auth.h; borrowed until worker_stop(); NULL: no keys */
    const struct model_config *config; /* borrowed until worker_stop() */
    uint64_t fingerprint;
    struct format_set formats;
    enum combine_mode combine; /* for Describe; a parcel may ask for any */
    const struct kernels *kernels;
    int threads, max_rows;
    int64_t spin_ns; /* busy wait for the next parcel before sleeping; 0: nothing here spins */
    struct queue *views, *retired; /* store.h; borrowed */
    struct fault_options fault;    /* all-zero: none */
    /* For tests: after so many parcels the thread may allocate nothing any more (base/mem.h,
     * the allocation guard); 0: it may.  Mode expert allocates its answers. */
    int64_t guard_after;
};

struct worker;
int worker_start(const struct worker_options *o, struct worker **out, struct err *e);
/* Open calls are answered UNAVAILABLE.  Views that are still on their way stay in the queues. */
void worker_stop(struct worker **w);
/* As bound, with the real port. */
const char *worker_endpoint(const struct worker *w);
