/* tools/runner.h - the processes of a cluster on this machine: which ones, with which
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
#include "tools/cpu_plan.h"

enum { RUNNER_MAX_NODES = 64, RUNNER_MAX_ARGUMENTS = 96, RUNNER_MAX_SETTINGS = 48 };

struct runner_process {
    char *name, *log_path;
    char *argv[RUNNER_MAX_ARGUMENTS];
    int argc;
    pid_t pid; /* 0: not running */
    int64_t started_ns;
};

/* A network of hosts that processes are put on; process i (the coordinator is 0) runs on host i.
 * NULL in struct runner: all on this host, over ipc. */
struct runner_hosts {
    const char *(*address)(void *ud, int host); /* as text; stays valid */
    int (*enter)(void *ud, int host);           /* puts the calling process there; 0 or -1 */
    void *ud;
};

struct runner {
    /* what the caller wants; borrowed */
    const char *model, *host, *format;
    /* "WHO.KEY=VALUE", WHO a program or a process's name; a later one wins */
    const char *settings[RUNNER_MAX_SETTINGS];
    int n_settings;
    int n_experts, n_attention, port;
    int threads;      /* of each expert node; 0: the CPUs are divided */
    int death_signal; /* what processes get if the runner dies */
    const struct runner_hosts *hosts;
    /* what came of it */
    struct cpu_plan plan;
    int n_sides;
    char *bin_dir, *run_dir, *url; /* url: NULL until known */
    bool run_dir_is_ours;
    struct runner_process processes[2 * RUNNER_MAX_NODES + 1];
    int n_processes;
};

/* Finds the programs and makes the run directory: `dir`, or a temporary one if NULL. */
int runner_open(struct runner *r, const char *dir, struct err *e);
/* One more "WHO.KEY=VALUE"; false if there are too many. */
bool runner_set(struct runner *r, const char *setting);
/* Coordinator, expert nodes, attention nodes with all their options; starts none. */
void runner_plan(struct runner *r);
/* NULL if there is none of that name. */
struct runner_process *runner_find(struct runner *r, const char *name);
int runner_start(struct runner *r, struct runner_process *p, struct err *e);
/* Notes which process has ended, for the caller's waitpid(); NULL: none of ours. */
struct runner_process *runner_ended(struct runner *r, pid_t pid);
/* Where the coordinator answers, once it has said so in its log; NULL before. */
const char *runner_url(struct runner *r);
/* SIGTERM to all, nodes first so that they say goodbye; SIGKILL after ten seconds. */
void runner_stop(struct runner *r);
/* After runner_stop().  Removes sockets, and a temporary run directory unless its logs are to
 * be kept. */
enum runner_logs { RUNNER_DROP_LOGS, RUNNER_KEEP_LOGS };
void runner_close(struct runner *r, enum runner_logs logs);
/* A directory of ours with all that is in it. */
void runner_remove_tree(const char *dir);
/* The last lines of a process's log, where the reason of its end stands, on stderr. */
void runner_print_log_tail(const struct runner_process *p);
