/* tools/chaos_scenario.c - the table of scenarios; see chaos_scenario.h. */
#include "tools/chaos_scenario.h"

#include <string.h>

/* Promises, from the design of the cluster: a killed node costs 100 ms and one step, one that
 * is silent 500 ms once (after which the others are as fast as they are alone), one that comes or
 * goes in order nothing that a client notices, and streams go on within two seconds of the
 * coordinator's death. */
#define KILLED \
    { \
        .pause_ms = 100, .pause_steps = 1, .whole_s = 60 \
    }
#define SILENT \
    { \
        .pause_ms = 500, .pause_steps = 1, .outage_once = true, .whole_s = 60, .rate_percent = 95 \
    }
#define ORDERLY \
    { \
        .pause_steps = 2, .whole_s = 60 \
    }
#define LATE \
    { \
        .pause_ms = 500, .pause_steps = 1 \
    }
#define RESUMED \
    { \
        .pause_ms = 2000, .pause_steps = 1, .whole_s = 60 \
    }
#define ANY_PAUSE \
    { \
        .pause_ms = -1, .whole_s = 60 \
    }

/* How soon after the lease a silent node's copies are made elsewhere. */
#define REJOIN "coordinator.placement.rejoin_ms=500"
/* Answers that can be asked for again are no leak. */
#define KEEP_FEW "coordinator.streams.keep_bytes=1MiB"
#define STATE "coordinator.state.dir=%d/state"

static const struct chaos_scenario scenarios[] = {
    {.name = "still",
     .summary = "nothing happens: what the others are compared with",
     .steps = {{CHAOS_WAIT, NULL, 2000}},
     .target = {.pause_ms = -1}},
    {.name = "kill",
     .summary = "SIGKILL of an expert node; it comes back two seconds later",
     .steps = {{CHAOS_KILL, "expert-?", 0},
               {CHAOS_WAIT, NULL, 2000},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0}},
     .target = KILLED},
    {.name = "kills",
     .summary = "SIGKILL and restart of expert nodes at random: --count times, or --seconds long",
     .steps = {{CHAOS_KILL, "expert-?", 0},
               {CHAOS_WAIT, NULL, 200},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_AGAIN, NULL, 0}},
     .target = KILLED},
    {.name = "two",
     .summary = "SIGKILL of two expert nodes at once, with three copies of everything",
     .replicas = 3,
     .steps = {{CHAOS_KILL, "expert-?", 0},
               {CHAOS_KILL, "expert-?", 0},
               {CHAOS_WAIT, NULL, 1000},
               {CHAOS_START, "first", 0},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0}},
     .target = KILLED},
    {.name = "stop",
     .summary = "SIGSTOP of an expert node; later it is drained: the others are as fast without it",
     .settings = {REJOIN},
     .steps = {{CHAOS_STOP, "expert-?", 0},
               {CHAOS_WAIT, NULL, 4500},
               {CHAOS_RATE, NULL, 5000},
               {CHAOS_CONTINUE, "last", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_DRAIN, "last", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_RATE_OF_OTHERS, NULL, 5000},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_AGAIN, NULL, 0}},
     .target = SILENT},
    {.name = "slow",
     .summary = "an expert node runs every other 10 ms only, for four seconds",
     .steps = {{CHAOS_STUTTER, "expert-?", 4000}, {CHAOS_WHOLE, NULL, 0}},
     .target = LATE},
    {.name = "join",
     .summary = "one more expert node joins and takes its share",
     .has_spare = true,
     .steps = {{CHAOS_START, "spare", 0}, {CHAOS_WHOLE, NULL, 0}, {CHAOS_WAIT, NULL, 1000}},
     .target = ORDERLY},
    {.name = "drain",
     .summary = "an expert node is asked to go (SIGTERM) and comes back later",
     .steps = {{CHAOS_DRAIN, "expert-?", 0},
               {CHAOS_WAIT, NULL, 1000},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0}},
     .target = ORDERLY},
    {.name = "roll",
     .summary = "every expert node in turn is asked to go and started again",
     .n_attention = 2,
     .steps = {{CHAOS_DRAIN, "expert-+", 0},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_AGAIN, NULL, CHAOS_EVERY}},
     .target = ORDERLY},
    {.name = "roll-attention",
     .summary = "the same for both attention nodes, which hand their sequences over",
     .n_attention = 2,
     .steps = {{CHAOS_DRAIN, "attn-+", 0},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_AGAIN, NULL, CHAOS_EVERY}},
     .target = ORDERLY},
    {.name = "attention",
     .summary = "SIGKILL of one of two attention nodes; its sequences go on at the other",
     .n_attention = 2,
     .steps = {{CHAOS_KILL, "attn-?", 0},
               {CHAOS_WAIT, NULL, 2000},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0}},
     .target = ANY_PAUSE},
    {.name = "coordinator",
     .summary = "SIGKILL and restart of the coordinator; clients ask for their streams by id",
     .resumes = true,
     .settings = {STATE},
     .steps = {{CHAOS_KILL, "coordinator", 0},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_WAIT, NULL, 1000}},
     .target = RESUMED},
    {.name = "standby",
     .summary = "SIGKILL of the coordinator; one that waited for it goes on with its streams",
     .resumes = true,
     .has_standby = true,
     .settings = {STATE, "coordinator.state.standby=true"},
     .steps = {{CHAOS_KILL, "coordinator", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_WAIT, NULL, 1000},
               {CHAOS_START, "coordinator", 0},
               {CHAOS_WAIT, NULL, 1000},
               {CHAOS_KILL, "standby", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_WAIT, NULL, 1000}},
     .target = RESUMED},
    {.name = "leader-etcd",
     .summary = "SIGKILL of the coordinator that leads through etcd; the other goes on from a copy",
     .resumes = true,
     .has_standby = true,
     .has_etcd = true,
     .settings = {STATE},
     .steps = {{CHAOS_IN_STEP, NULL, 0},
               {CHAOS_KILL, "coordinator", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_START, "coordinator", 0},
               {CHAOS_IN_STEP, NULL, 0},
               {CHAOS_KILL, "standby", 0},
               {CHAOS_WHOLE, NULL, 0}},
     .target = RESUMED},
    {.name = "storage",
     .summary = "SIGKILL of an expert node without copies: experts are read from storage",
     .replicas = 1,
     .steps = {{CHAOS_KILL, "expert-?", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_WAIT, NULL, 1000},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0}},
     .target = {.pause_ms = -1, .whole_s = 60, .whole_as_start = true}},
    {.name = "full-disk",
     .summary = "no room for the token log for two seconds, then SIGKILL of the coordinator",
     .resumes = true,
     .small_state = true,
     .settings = {STATE},
     .steps = {{CHAOS_FILL, NULL, 0},
               {CHAOS_WAIT, NULL, 2000},
               {CHAOS_FREE, NULL, 0},
               {CHAOS_WAIT, NULL, 2000},
               {CHAOS_FILL, NULL, 0},
               {CHAOS_WAIT, NULL, 500},
               {CHAOS_KILL, "coordinator", 0},
               {CHAOS_FREE, NULL, 0},
               {CHAOS_START, "coordinator", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_WAIT, NULL, 1000}},
     .target = {.pause_ms = -1, .whole_s = 60, .refusal = "token log has stopped"}},
    {.name = "hostile",
     .summary = "strangers send garbage and damaged frames to every port, --seconds long",
     .n_attention = 1,
     .settings = {KEEP_FEW},
     .steps = {{CHAOS_ATTACK, NULL, 0}, {CHAOS_WHOLE, NULL, 0}},
     .target = {.pause_ms = -1, .growth_mib = 16}},
    {.name = "keys",
     .summary = "with keys: strangers at every port, then SIGKILL of an expert node",
     .needs_hosts = true,
     .has_keys = true,
     .settings = {KEEP_FEW},
     .steps = {{CHAOS_ATTACK, NULL, 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_KILL, "expert-?", 0},
               {CHAOS_WAIT, NULL, 1000},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0}},
     .target = {.pause_ms = 100, .pause_steps = 1, .whole_s = 60, .growth_mib = 16}},
    {.name = "drop",
     .summary = "a node joins of which one answer in a hundred never comes",
     .has_spare = true,
     .settings = {"spare.fault.enabled=true", "spare.fault.drop_one_in=100"},
     .steps = {{CHAOS_START, "spare", 0}, {CHAOS_WAIT, NULL, 6000}},
     .target = LATE},
    {.name = "corrupt",
     .summary = "a node joins of which one answer in two hundred is wrong: found, and shut out",
     .has_spare = true,
     .settings = {"spare.fault.enabled=true", "spare.fault.corrupt_one_in=200",
                  "coordinator.round.verify_one_in=1"},
     .steps = {{CHAOS_START, "spare", 0}, {CHAOS_WAIT, NULL, 6000}},
     .target = LATE},
    {.name = "blackhole",
     .summary = "the wire of an expert node's host is cut for ten seconds, nobody is told",
     .needs_hosts = true,
     .settings = {REJOIN},
     .steps = {{CHAOS_CUT, "expert-?", 0},
               {CHAOS_WAIT, NULL, 4500},
               {CHAOS_RATE, NULL, 5000},
               {CHAOS_HEAL, "last", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_DRAIN, "last", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_RATE_OF_OTHERS, NULL, 5000},
               {CHAOS_START, "last", 0},
               {CHAOS_WHOLE, NULL, 0},
               {CHAOS_AGAIN, NULL, 0}},
     .target = SILENT},
    {.name = "partition",
     .summary = "two expert nodes' hosts are cut off together for four seconds",
     .needs_hosts = true,
     .steps = {{CHAOS_CUT, "expert-+", 0},
               {CHAOS_CUT, "expert-+", 0},
               {CHAOS_WAIT, NULL, 4000},
               {CHAOS_HEAL, "first", 0},
               {CHAOS_HEAL, "last", 0},
               {CHAOS_WHOLE, NULL, 0}},
     .target = ANY_PAUSE},
    {.name = "loss",
     .summary = "one frame in fifty of an expert node's host is lost, for five seconds",
     .needs_hosts = true,
     .steps = {{CHAOS_LOSS, "expert-?", 20},
               {CHAOS_WAIT, NULL, 5000},
               {CHAOS_HEAL, "last", 0},
               {CHAOS_WHOLE, NULL, 0}},
     .target = {.pause_ms = 500, .pause_steps = 1, .whole_s = 60}},
    {.name = "delay",
     .summary = "an expert node's host is 20 to 40 ms away for five seconds",
     .needs_hosts = true,
     .steps = {{CHAOS_DELAY, "expert-?", 20000},
               {CHAOS_WAIT, NULL, 5000},
               {CHAOS_HEAL, "last", 0},
               {CHAOS_WHOLE, NULL, 0}},
     .target = {.pause_ms = 500, .pause_steps = 1, .whole_s = 60}},
};
enum { N_SCENARIOS = sizeof scenarios / sizeof scenarios[0] };

const struct chaos_scenario *chaos_scenario_at(int index)
{
    return index < N_SCENARIOS ? &scenarios[index] : NULL;
}

const struct chaos_scenario *chaos_scenario_named(const char *name)
{
    for (int i = 0; i < N_SCENARIOS; i++)
        if (strcmp(scenarios[i].name, name) == 0)
            return &scenarios[i];
    return NULL;
}

void chaos_scenario_list(struct buf *out)
{
    for (int i = 0; i < N_SCENARIOS; i++)
        buf_printf(out, "  %-14s %s%s\n", scenarios[i].name, scenarios[i].summary,
                   scenarios[i].needs_hosts ? " (--hosts)" : "");
}
