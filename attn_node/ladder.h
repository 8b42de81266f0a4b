/* attn_node/ladder.h - what is done about trouble with expert nodes (cluster.md 4), as
 * configured; the same options wherever an attention side runs. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ladder {
    int64_t deadline_min_ns, deadline_max_ns;
    int64_t wait_ns;       /* for a table, when an expert is on no node that can be asked */
    int64_t hedge_percent; /* extra calls; 0: none */
    int64_t verify_one_in; /* parcels that others must confirm (round.h); 0: none */
    bool is_degraded;      /* experts that nobody can be asked for are left out */
};

/* Rows of an option table (base/conf.h); AT(field) is the offset of a field of the ladder. */
#define LADDER_OPTIONS(AT) \
    {"round.deadline_min_ms", \
     CONF_MS, \
     AT(deadline_min_ns), \
     "20", \
     1, \
     60000, \
     NULL, \
     "an expert node is late after four times its usual time, but not before this"}, \
        {"round.deadline_max_ms", \
         CONF_MS, \
         AT(deadline_max_ns), \
         "500", \
         1, \
         600000, \
         NULL, \
         "and after this at the latest, unless it has always been so slow"}, \
        {"round.hedge_percent", \
         CONF_INT, \
         AT(hedge_percent), \
         "5", \
         0, \
         100, \
         NULL, \
         "extra calls, in per cent, to replicas of nodes that are slower than usual; 0: none"}, \
        {"round.wait_ms", \
         CONF_MS, \
         AT(wait_ns), \
         "60000", \
         0, \
         3600000, \
         NULL, \
         "how long a step waits for an expert that is on no node, before it fails"}, \
        {"round.verify_one_in", \
         CONF_INT, \
         AT(verify_one_in), \
         "256", \
         0, \
         1000000000, \
         NULL, \
         "one in so many answers must have a replica's bits before it counts; 1: all; 0: none"}, \
    { \
        "round.degraded", CONF_BOOL, AT(is_degraded), "false", 0, 0, NULL, \
            "experts that are on no node are left out at once, and the answer is marked degraded" \
    }
