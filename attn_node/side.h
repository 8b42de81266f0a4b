/* attn_node/side.h - the attention side as a whole: the door through which a program runs
 * it.  attn_node's main() and the coordinator (embedded, over inproc://) start the same
 * thing: a control thread (member, Attention service) and an engine thread (KV, layers,
 * links to experts).  Everything else is messages.
 *
 * Log events: node.listening, node.draining, node.drained, side.ready, weights.packing. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "attn_node/ladder.h"
#include "base/err.h"
#include "model/checkpoint.h"
#include "model/format.h"

struct side_config {
    const char *name; /* "attn-0" */
    const char *model_dir;
    const char *cache_dir;            /* of packed weights, engine/model_open.h; NULL or "": none */
    const char *coordinator_endpoint; /* Cluster service to join */
    const char *listen_endpoint;      /* of the Attention service */
    const char *advertise;     /* how others reach that, endpoint_advertise(); NULL: as bound */
    struct auth *auth;         /* rpc/auth.h; borrowed until side_stop(); NULL: no keys */
    struct format_set formats; /* native parts are resolved by the checkpoint */
    enum combine_mode combine;
    struct checkpoint_options checkpoint;
    const char *kernels;     /* NULL or "": the best */
    int threads;             /* 0: all CPUs that the process may use */
    int64_t kv_bytes;        /* 0: a quarter of the memory that is free at start */
    bool keeps_prefixes;     /* KV pages, while their memory is not needed */
    bool borrows;            /* memory that context nodes lend (borrow.h) */
    int max_rows, max_seqs;  /* of one step; sequences with KV */
    int lanes;               /* of a step: 1, 2; 0: whichever is measured to be faster */
    int64_t call_timeout_ns; /* one layer's experts must have answered by then */
    int64_t drain_timeout_ns;
    struct ladder ladder; /* what is done about trouble with expert nodes */
    int64_t spin_ns;      /* busy-wait before sleeping in gather; 0: nothing in here spins */
};

struct side;
/* Loads the weights (progress in the log), binds, and starts joining; blocks for that long. */
int side_start(const struct side_config *c, struct side **out, struct err *e);
/* It shall go: it serves what it has until other sides have that, which side_may_go() tells. */
void side_drain(struct side *s);
/* After side_drain(): nobody needs it any more, or the coordinator is not there, or drain_timeout_ns
 * have passed. */
bool side_may_go(const struct side *s);
/* Leaves the cluster and ends both threads. */
void side_stop(struct side **s);
/* true once the coordinator refused this side for good; `why` is then filled. */
bool side_is_refused(const struct side *s, struct err *why);
/* true once an operator wants this node to go (polymath drain); `restart`: and to be started
 * again. */
bool side_is_told_to_go(const struct side *s, bool *restart);
/* What --version of a program with an attention side prints: build, kernels, BLAS. */
void side_print_version(FILE *out);
