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

struct chaos_options {
    const char *model, *format, *dir; /* dir: where logs stay; NULL: nowhere */
    const char *settings[LOCAL_CLUSTER_MAX_SETTINGS];
    int n_settings;
    int n_nodes, replicas, n_clients, n_prompts, n_tokens, seconds;
    uint64_t seed;
    bool on_hosts;
    struct chaos_wire wire; /* between hosts when nothing is wrong */
};

struct chaos {
    struct chaos_options options;
    struct chaos_prompt *prompts; /* [n_prompts] */
    struct chaos_answer *answers; /* [n_prompts]; NULL until they are recorded */
    int signal_fd;                /* readable: somebody wants us to end */
    bool is_interrupted;
    struct http_client *http;
    struct buf coordinator_help, expert_help, attention_help; /* which options there are */
};

enum chaos_outcome { CHAOS_KEPT, CHAOS_MISSED, CHAOS_SKIPPED, CHAOS_BROKEN };

struct chaos_result {
    enum chaos_outcome outcome;
    struct buf why; /* unless KEPT */
    struct chaos_verdict verdict;
    int64_t pause_from_us;     /* since 1970, as in logs: when the longest pause began */
    int64_t whole_ns;          /* longest time to full redundancy; 0: not measured, -1: never */
    long long retries, hedges; /* -1: not counted in this build */
};

/* 0 also when promises were not kept; E_CANCELLED after a signal. */
int chaos_run(struct chaos *c, const struct chaos_scenario *s, struct chaos_result *out,
              struct err *e);
/* Whether the programs know "PROGRAM.KEY". */
bool chaos_knows(const struct chaos *c, const char *option);
