/* tools/local_cluster.h - the processes of a cluster on this machine: which ones, with which
 * options, and how they start and end.
 *
 * `polymath up` and `polymath chaos` both run clusters through this; what to do when a process
 * dies is theirs.  Processes talk over ipc sockets in a run directory, or, with one network
 * namespace for each, over tcp.
 *
 * Owner: the main thread: processes die with the thread that started them. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/err.h"
#include "tools/chaos_net.h"
#include "tools/cpu_plan.h"

enum {
    LOCAL_CLUSTER_MAX_NODES = 64,
    LOCAL_CLUSTER_MAX_PROCESSES = 3 * LOCAL_CLUSTER_MAX_NODES + 2,
    LOCAL_CLUSTER_MAX_ARGUMENTS = 96,
    LOCAL_CLUSTER_MAX_SETTINGS = 192
};

struct local_process {
    char *name, *log_path;
    char *argv[LOCAL_CLUSTER_MAX_ARGUMENTS];
    int argc;
    pid_t pid; /* 0: not running */
    int64_t started_ns;
};

struct local_cluster {
    /* what the caller wants; borrowed */
    const char *model, *host, *format;
    /* "WHO.KEY=VALUE", WHO a program or a process's name; a later one wins */
    const char *settings[LOCAL_CLUSTER_MAX_SETTINGS];
    int n_settings;
    int n_experts, n_attention, port;
    int n_contexts; /* nodes that lend memory to the attention sides, which borrow if there are any */
    /* A second coordinator, "standby", that waits for the first one's state directory (which a
     * setting names); it serves on this port then.  0: none. */
    int standby_port;
    int threads;      /* of each expert node; 0: they divide the CPUs */
    int death_signal; /* what processes get if the supervisor dies */
    /* Process i (the coordinator is 0) runs on host i; NULL: all on this host, over ipc. */
    const struct chaos_net *net;
    /* what came of it */
    struct cpu_plan plan;
    int n_sides;
    char *bin_dir, *run_dir, *url; /* url: NULL until known */
    bool run_dir_is_ours;
    struct local_process processes[LOCAL_CLUSTER_MAX_PROCESSES];
    int n_processes;
};

/* Of 127.0.0.1, and nobody has it at this moment; 0: there is none. */
int local_cluster_free_port(void);
/* Finds the programs and makes the run directory: `dir`, or a temporary one if NULL. */
int local_cluster_open(struct local_cluster *r, const char *dir, struct err *e);
/* One more "WHO.KEY=VALUE"; false if there are too many. */
bool local_cluster_set(struct local_cluster *r, const char *setting);
/* Coordinator, expert, attention and context nodes, standby with all their options; starts none. */
void local_cluster_plan(struct local_cluster *r);
/* NULL if there is none of that name. */
struct local_process *local_cluster_find(struct local_cluster *r, const char *name);
int local_cluster_start(struct local_cluster *r, struct local_process *p, struct err *e);
/* Notes which process has ended, for the caller's waitpid(); NULL: none of ours. */
struct local_process *local_cluster_ended(struct local_cluster *r, pid_t pid);
/* Where the coordinator answers, once it has said so in its log; NULL before. */
const char *local_cluster_url(struct local_cluster *r);
/* SIGTERM to all, nodes first so that they say goodbye; SIGKILL after ten seconds. */
void local_cluster_stop(struct local_cluster *r);
/* After local_cluster_stop().  Removes sockets, and a temporary run directory unless its logs are to
 * be kept. */
enum local_logs { LOCAL_CLUSTER_DROP_LOGS, LOCAL_CLUSTER_KEEP_LOGS };
void local_cluster_close(struct local_cluster *r, enum local_logs logs);
/* A directory of ours with all that is in it. */
void local_cluster_remove_tree(const char *dir);
/* The last lines of a process's log, where the reason of its end stands, on stderr. */
void local_cluster_print_log_tail(const struct local_process *p);
