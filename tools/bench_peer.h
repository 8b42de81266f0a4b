/* tools/bench_peer.h - runs another engine's llama-bench and reads what it measured. */
#pragma once

#include <stdbool.h>

#include "base/buf.h"
#include "base/err.h"

struct bench_peer {
    const char *program, *model, *more_args; /* borrowed; more_args may be NULL */
    int threads, prompt, tokens, depth;
    bool has_depth; /* knows -d */
    bool has_gp;    /* knows -gp: tokens after a prompt, ik_llama.cpp */
};

struct bench_peer_sample {
    double decode, prefill; /* tokens per second; 0: not measured */
    char build[64];         /* "8337e4cd3 (4840)" */
};

/* Asks the program for its help and fills has_depth and has_gp.  E_NOT_FOUND, E_UNAVAILABLE. */
int bench_peer_look(struct bench_peer *p, struct err *e);
/* One run: one prompt and one decode.  E_UNAVAILABLE if it failed, with its last line. */
int bench_peer_run(const struct bench_peer *p, struct bench_peer_sample *out, struct err *e);
/* One run of llama-batched-bench: tokens per second of all streams together, decoding only, for each
 * number of streams; every stream has `prompt` tokens before.  E_UNAVAILABLE. */
enum { BENCH_PEER_MAX_BATCHES = 16 };
int bench_peer_batches(const struct bench_peer *p, const int *streams, int n, double *tokens_s,
                       struct err *e);
/* The table that it prints; E_CORRUPT: a number of streams has no row. */
int bench_peer_parse_batches(struct str text, const int *streams, int n, double *tokens_s,
                             struct err *e);
/* The JSON of `llama-bench -o json`, which may have lines of log before it; E_CORRUPT. */
int bench_peer_parse(struct str text, struct bench_peer_sample *out, struct err *e);
