/* tools/chaos_state.h - one scenario under way: what those share that play it.
 *
 *   chaos_run.c      clients, judgement, the whole
 *   chaos_cluster.c  the processes: set up, started, waited for, cleaned up
 *   chaos_script.c   the steps of the script, one after the other
 *   chaos_strangers.c  those who attack the cluster's ports
 *
 * Owner: the main thread. */
#pragma once

#include "base/rng.h"
#include "tools/chaos_run.h"
#include "tools/http_client.h"
#include "tools/local_etcd.h"

enum { CHAOS_MAX_CHOICES = 32 };

struct chaos_state {
    struct chaos *chaos;
    const struct chaos_scenario *scenario;
    struct local_cluster cluster;
    struct chaos_net *net;
    struct http_client *http;
    struct chaos_load *load;
    struct rng rng;
    int replicas;
    bool is_expected[LOCAL_CLUSTER_MAX_PROCESSES]; /* beside the processes: to be running */
    int64_t fault_ns[CHAOS_MAX_FAULTS];
    int n_faults;
    int64_t changed_ns; /* the latest fault, or the latest return of what was missing */
    /* choices of the script since its first step */
    struct local_process *chosen[CHAOS_MAX_CHOICES];
    int n_chosen, turn;
    char *texts[CHAOS_OWN_SETTINGS]; /* settings of ours */
    int n_texts;
    char *urls[CHAOS_MAX_URLS];
    int n_urls;
    char *key_path;  /* of the clients' API key; NULL: none */
    char *state_dir; /* NULL until it is there */
    char *standby_state_dir;
    struct local_etcd etcd;
    bool has_state_mount;
    pid_t strangers; /* 0: none */
    int64_t next_progress_ns;
    struct chaos_result *result;
};

/* ---- chaos_run.c */
void chaos_add_why(struct chaos_state *r, const char *text);
/* Lets time pass, takes note of deaths, shows progress; E_CANCELLED after a signal. */
int chaos_pass(struct chaos_state *r, int64_t until_ns, struct err *e);

/* ---- chaos_cluster.c */
/* Directories, hosts, keys, the processes' options.  E_DENIED: needs rights that we lack. */
int chaos_cluster_open(struct chaos_state *r, struct err *e);
/* All processes but the spare; until every expert has its copies. */
int chaos_cluster_start(struct chaos_state *r, struct err *e);
int chaos_start_process(struct chaos_state *r, struct local_process *p, struct err *e);
/* The expert node that is not started with the others; NULL: there is none. */
struct local_process *chaos_spare(struct chaos_state *r);
/* Until full redundancy.  E_DEADLINE, E_CANCELLED. */
int chaos_wait_whole(struct chaos_state *r, int64_t within_ns, struct err *e);
/* Until a standby has all of the leader's token log, and is on record as such.  Likewise. */
int chaos_wait_in_step(struct chaos_state *r, int64_t within_ns, struct err *e);
/* Whatever of it exists. */
void chaos_cluster_close(struct chaos_state *r);

/* ---- chaos_script.c */
int chaos_play(struct chaos_state *r, struct err *e);

/* ---- chaos_strangers.c */
int chaos_strangers_start(struct chaos_state *r, struct err *e);
/* Ends them and notes how often they tried. */
void chaos_strangers_stop(struct chaos_state *r);
