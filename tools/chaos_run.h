/* tools/chaos_run.h - one scenario from beginning to end: a cluster of its own, clients, the
 * script of faults, the judgement; nothing of it is left afterwards.
 *
 * Owner: the main thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "tools/chaos_load.h"
#include "tools/chaos_net.h"
#include "tools/chaos_scenario.h"
#include "tools/local_cluster.h"

enum { CHAOS_OWN_SETTINGS = 96 }; /* at most, beside those of the command line */

struct chaos_options {
    const char *model, *format, *dir; /* dir: where logs stay; NULL: nowhere */
    const char *settings[LOCAL_CLUSTER_MAX_SETTINGS - CHAOS_OWN_SETTINGS];
    int n_settings;
    int n_nodes, replicas, n_clients, n_prompts, n_tokens, seconds;
    int count; /* how often a script without an end is repeated; 0: for `seconds` */
    uint64_t seed;
    bool on_hosts;
    struct chaos_wire wire; /* between hosts when nothing is wrong */
};

struct chaos {
    struct chaos_options options;
    const char *bin_dir;
    struct chaos_prompt *prompts; /* [n_prompts] */
    struct chaos_answer *answers; /* [n_prompts]; NULL until they are recorded */
    int signal_fd;                /* readable: somebody wants us to end */
    bool is_interrupted;
    bool has_own_mounts; /* this process sees mounts that others do not */
};

enum chaos_outcome { CHAOS_KEPT, CHAOS_MISSED, CHAOS_SKIPPED, CHAOS_BROKEN };

struct chaos_result {
    enum chaos_outcome outcome;
    struct buf why; /* unless KEPT */
    struct chaos_verdict verdict;
    struct chaos_measures measures;
    int64_t pause_from_us; /* since 1970, as in logs: when the longest pause began */
    /* What the coordinator counted; -1: it does not answer any more. */
    long long retries, hedges; /* of calls to expert nodes */
    long long replays;         /* of sequences, on another attention side or the same */
};

/* 0 also when promises were not kept; E_CANCELLED after a signal. */
int chaos_run(struct chaos *c, const struct chaos_scenario *s, struct chaos_result *out,
              struct err *e);
/* Runs a program of ours to its end, its output appended to `out`; the exit code, -1: could not. */
int chaos_program(const char *const *argv, struct buf *out);
