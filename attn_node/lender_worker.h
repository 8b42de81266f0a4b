/* attn_node/lender_worker.h - the work thread of a node that lends memory: keys and values of other
 * hosts' contexts, and the attention over them (proto/context.proto on top of engine/context.h).
 *
 * It belongs to whoever opened it last; calls of any other session are E_PRECONDITION.  It keeps no books
 * and knows no tokens.
 *
 * Log events: lender.opened, lender.refused. */
#pragma once

#include <stdint.h>

#include "base/err.h"
#include "engine/gemm.h"
#include "model/config.h"
#include "model/format.h"

struct lender_worker_options {
    const char *name;                  /* copied */
    const char *endpoint;              /* copied; port 0 binds a free one */
    struct auth *auth;                 /* rpc/auth.h; borrowed; NULL: no keys */
    const struct model_config *config; /* borrowed until lender_worker_stop() */
    uint64_t fingerprint;
    enum kv_format kv;
    const struct kernels *kernels;
    int threads;
    int64_t kv_bytes;       /* what is lent */
    int max_rows, max_seqs; /* of one step of the borrower; numbers of sequences are below it */
    int64_t spin_ns;        /* busy wait for the next call before sleeping; 0: nothing here spins */
};

struct lender_worker;
/* Takes the memory and binds; E_NOMEM, E_INVALID as context_open(). */
int lender_worker_start(const struct lender_worker_options *o, struct lender_worker **out,
                        struct err *e);
/* Open calls are answered UNAVAILABLE. */
void lender_worker_stop(struct lender_worker **w);
/* As bound, with the real port. */
const char *lender_worker_endpoint(const struct lender_worker *w);
int lender_worker_pages(const struct lender_worker *w);
