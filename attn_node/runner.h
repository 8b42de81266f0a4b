/* attn_node/runner.h - the engine thread: takes a step, runs the layers, answers.
 *
 * Jobs go in through one bounded queue and come back through another; whoever submits owns
 * them again then.  The engine thread owns everything that computes: weights, KV, sequences
 * and the channels to the expert nodes.
 *
 * Log events: weights.loaded, session.cleared, step (debug), step.failed,
 * session.doubted, context.places; borrow.h has others. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "attn_node/ladder.h"
#include "attn_node/lane_trial.h"
#include "base/err.h"
#include "engine/gemm.h"
#include "model/checkpoint.h"
#include "rpc/wire.h"

/* NEWS comes from the runner by itself: runner_heard() when it has been read. */
enum runner_job_kind { RUNNER_STEP, RUNNER_RELEASE, RUNNER_TABLE, RUNNER_NEWS };

/* One errand of the control thread.  All-zero is empty. */
struct runner_job {
    enum runner_job_kind kind;
    void *ud; /* the submitter's, untouched */
    int64_t submitted_ns, deadline_ns;
    uint64_t trace_id;            /* RUNNER_STEP; 0: not traced */
    struct wire_step *step;       /* RUNNER_STEP; freed by runner_job_fini() */
    struct wire_release *release; /* RUNNER_RELEASE; likewise */
    struct wire_table *table;     /* RUNNER_TABLE; taken by the runner */
    uint32_t node_id;             /* RUNNER_TABLE: which node of the cluster this is */

    int code; /* what came of it */
    struct err why;
    struct buf message; /* RUNNER_STEP: the encoded wire_step_reply; kept for the next job */
    bool has_message;   /* a step that failed in its layers has one, too */
    struct buf report;  /* RUNNER_STEP: an encoded wire_step_report, or empty; likewise */
    uint64_t queue_us, compute_us;
    uint64_t epoch; /* RUNNER_TABLE: of the table in use */
    uint32_t n_broken;
    uint64_t broken[WIRE_MAX_BROKEN]; /* RUNNER_NEWS: incarnations, as in struct wire_heartbeat */
};
/* Frees what the job holds but for the buffers' memory. */
void runner_job_fini(struct runner_job *j);

struct runner_options {
    struct checkpoint *checkpoint; /* borrowed until runner_stop() */
    uint64_t fingerprint;
    struct format_set formats;
    enum combine_mode combine;
    const struct kernels *kernels;
    int threads;          /* at least 1 */
    int64_t kv_bytes;     /* 0: a quarter of the memory that is free */
    bool keeps_prefixes;  /* seqs_new() */
    const char *borrower; /* this node's name, if it takes memory that others lend; else NULL */
    int max_rows, max_seqs, max_jobs;
    enum lane_choice lanes;
    int64_t call_timeout_ns, spin_ns;
    struct ladder ladder;
    const struct token_list *words; /* model/grammar_tokens.h; borrowed; NULL: no grammars */
    struct auth *auth;              /* rpc/auth.h; borrowed; NULL: no keys */
};

struct runner;
/* Loads the weights on the new thread and blocks for that long. */
int runner_start(const struct runner_options *o, struct runner **out, struct err *e);
/* Ends after the job in progress.  Jobs that still wait are forgotten: their submitter owns
 * their memory and answers for them. */
void runner_stop(struct runner **r);

/* Hands the job over; E_BUSY: max_jobs wait already, and the job stays the caller's. */
int runner_submit(struct runner *r, struct runner_job **job);
/* Readable while runner_take_done() has something. */
int runner_done_fd(const struct runner *r);
struct runner_job *runner_take_done(struct runner *r);
/* The news have been read, and there may be others. */
void runner_heard(struct runner *r);

/* How often each expert was chosen since the last call, [n_layers][n_experts], at most 65535;
 * false if none was.  One thread may ask. */
bool runner_take_load(struct runner *r, uint16_t *counts);

/* Any thread may ask. */
int runner_kv_pages_total(const struct runner *r);
int runner_kv_pages_free(const struct runner *r);
/* The highest session of a coordinator that has reached this side. */
uint64_t runner_session(const struct runner *r);
