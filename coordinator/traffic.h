/* coordinator/traffic.h - sums of what attention sides report: calls and bytes of each expert node,
 * time of each layer, what was done about trouble.
 *
 * Nodes are counted by name, so that a node that starts again goes on where it was; of at most
 * TRAFFIC_NODES names, the rest together as "other".  Pure.  Owner: coordinator loop. */
#pragma once

#include <stdint.h>

#include "rpc/wire.h"

enum { TRAFFIC_NODES = 512 };

struct traffic_node {
    char name[WIRE_NAME_BYTES];
    struct wire_node_traffic sums; /* node_id and incarnation mean nothing here */
};

struct traffic {
    struct traffic_node *nodes;
    int n_nodes, room;
    struct wire_layer_time *layers; /* [n_layers] */
    uint32_t n_layers;
    struct wire_ladder_counters ladder;
    struct wire_grammar_counters grammars; /* bytes and kept: of all sides together */
};

void traffic_init(struct traffic *t, uint32_t n_layers);
void traffic_fini(struct traffic *t);
void traffic_add_node(struct traffic *t, const char *name, const struct wire_node_traffic *more);
/* Layers that the model has not are left out. */
void traffic_add_layer(struct traffic *t, const struct wire_layer_time *more);
/* A side counts since its start: what it says `now` against what it said `before`, which it becomes. */
void traffic_add_ladder(struct traffic *t, struct wire_ladder_counters *before,
                        const struct wire_ladder_counters *now);
void traffic_add_grammars(struct traffic *t, struct wire_grammar_counters *before,
                          const struct wire_grammar_counters *now);
