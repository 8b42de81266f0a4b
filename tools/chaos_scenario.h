/* tools/chaos_scenario.h - what chaos can do to a cluster, as one table.
 *
 * A scenario is a cluster's shape, a script of faults and what is promised meanwhile.  Scripts
 * are played by chaos_run.c, one step after the other, while clients stream. */
#pragma once

#include <stdbool.h>

#include "base/buf.h"
#include "tools/chaos_judge.h"

enum chaos_act {
    CHAOS_END,
    CHAOS_WAIT,           /* `amount` ms */
    CHAOS_KILL,           /* SIGKILL */
    CHAOS_STOP,           /* SIGSTOP: the process is there and does not answer */
    CHAOS_CONTINUE,       /* SIGCONT */
    CHAOS_STUTTER,        /* for `amount` ms: 10 ms stopped, 10 ms running */
    CHAOS_DRAIN,          /* SIGTERM, then it must end by itself with exit code 0 */
    CHAOS_START,          /* a process that does not run */
    CHAOS_WHOLE,          /* waits until every expert has all its copies again; the time counts */
    CHAOS_IN_STEP,        /* waits until a standby has all of the leader's token log */
    CHAOS_CUT,            /* the wire of its host */
    CHAOS_LOSS,           /* `amount` per mille of the frames of its host */
    CHAOS_DELAY,          /* `amount` us more on its wire, each way, and as much jitter */
    CHAOS_HEAL,           /* that wire as it was */
    CHAOS_RATE,           /* for `amount` ms: the clients' tokens a second after the fault */
    CHAOS_RATE_OF_OTHERS, /* the same when the node has left in order */
    CHAOS_FILL,           /* the file system of the state directory, until nothing fits */
    CHAOS_FREE,           /* there is room again */
    CHAOS_ATTACK,         /* strangers send what they should not, until the time is over */
    /* from the first step: `amount` times in all; 0: until the time or the count is over;
     * CHAOS_EVERY: once for each process that "expert-+" or "attn-+" names */
    CHAOS_AGAIN,
};
enum { CHAOS_EVERY = -1 };

/* `who`: a process's name; "expert-?" any expert node that runs, "attn-?" likewise; "expert-+"
 * the next expert node in turn, "attn-+" likewise; "spare" the expert node that is not
 * started with the others; "last" and "first" the latest and the earliest choice since the
 * script's first step. */
struct chaos_step {
    enum chaos_act act;
    const char *who;
    int amount;
};

enum { CHAOS_MAX_STEPS = 14, CHAOS_MAX_SETTINGS = 6 };

struct chaos_scenario {
    const char *name, *summary;
    int replicas;     /* 0: as the command line says */
    int n_attention;  /* attention nodes; 0: embedded */
    bool needs_hosts; /* several hosts, with wires between them (--hosts) */
    bool has_spare;   /* one expert node more, not started with the others */
    bool resumes;     /* clients ask again for what broke */
    bool has_standby; /* a second coordinator with the same state directory, */
    bool has_etcd;    /* or with one of its own: an etcd says which of them leads */
    bool has_keys;    /* CURVE between hosts, API keys for clients */
    bool small_state; /* the state directory has a small file system to itself (needs root) */
    /* for local_cluster_set(); %d: the run directory, spare.: that node's own */
    const char *settings[CHAOS_MAX_SETTINGS];
    struct chaos_step steps[CHAOS_MAX_STEPS];
    struct chaos_target target;
};

/* NULL behind the last. */
const struct chaos_scenario *chaos_scenario_at(int index);
const struct chaos_scenario *chaos_scenario_named(const char *name);
/* One line for each. */
void chaos_scenario_list(struct buf *out);
