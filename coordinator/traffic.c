/* coordinator/traffic.c - see traffic.h. */
#include "coordinator/traffic.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"

void traffic_init(struct traffic *t, uint32_t n_layers)
{
    *t = (struct traffic){.n_layers = n_layers};
    t->layers = mem_array(n_layers, sizeof *t->layers);
    for (uint32_t i = 0; i < n_layers; i++)
        t->layers[i].layer = i;
}

void traffic_fini(struct traffic *t)
{
    mem_free(t->nodes);
    mem_free(t->layers);
    *t = (struct traffic){0};
}

static struct traffic_node *node_of(struct traffic *t, const char *name)
{
    for (int i = 0; i < t->n_nodes; i++)
        if (strcmp(t->nodes[i].name, name) == 0)
            return &t->nodes[i];
    if (t->n_nodes == TRAFFIC_NODES - 1)
        name = "other";
    else if (t->n_nodes == TRAFFIC_NODES)
        return &t->nodes[TRAFFIC_NODES - 1];
    if (t->n_nodes == t->room) {
        t->room = t->room ? 2 * t->room : 16;
        t->nodes = mem_resize(t->nodes, (size_t)t->room * sizeof *t->nodes);
    }
    struct traffic_node *n = &t->nodes[t->n_nodes++];
    *n = (struct traffic_node){0};
    snprintf(n->name, sizeof n->name, "%s", name);
    return n;
}

void traffic_add_node(struct traffic *t, const char *name, const struct wire_node_traffic *more)
{
    struct wire_node_traffic *s = &node_of(t, name)->sums;
    s->calls += more->calls;
    s->failovers += more->failovers;
    s->hedges += more->hedges;
    s->retries += more->retries;
    s->sent_bytes += more->sent_bytes;
    s->received_bytes += more->received_bytes;
    s->call_us += more->call_us;
    s->queue_us += more->queue_us;
    s->compute_us += more->compute_us;
}

void traffic_add_layer(struct traffic *t, const struct wire_layer_time *more)
{
    if (more->layer >= t->n_layers)
        return;
    struct wire_layer_time *s = &t->layers[more->layer];
    s->rounds += more->rounds;
    s->rows += more->rows;
    s->attention_us += more->attention_us;
    s->experts_us += more->experts_us;
}

/* A side that has started again counts from 0. */
static uint64_t grown(uint64_t before, uint64_t now)
{
    return now >= before ? now - before : now;
}

void traffic_add_ladder(struct traffic *t, struct wire_ladder_counters *before,
                        const struct wire_ladder_counters *now)
{
    struct wire_ladder_counters *s = &t->ladder;
    s->calls += grown(before->calls, now->calls);
    s->retries += grown(before->retries, now->retries);
    s->lates += grown(before->lates, now->lates);
    s->hedges += grown(before->hedges, now->hedges);
    s->hedge_wins += grown(before->hedge_wins, now->hedge_wins);
    s->waits += grown(before->waits, now->waits);
    s->left_out += grown(before->left_out, now->left_out);
    s->checks += grown(before->checks, now->checks);
    s->mismatches += grown(before->mismatches, now->mismatches);
    s->not_finite += grown(before->not_finite, now->not_finite);
    *before = *now;
}

void traffic_add_grammars(struct traffic *t, struct wire_grammar_counters *before,
                          const struct wire_grammar_counters *now)
{
    struct wire_grammar_counters *s = &t->grammars;
    s->compiled += grown(before->compiled, now->compiled);
    s->shared += grown(before->shared, now->shared);
    s->refused += grown(before->refused, now->refused);
    s->masks_asked += grown(before->masks_asked, now->masks_asked);
    s->masks_made += grown(before->masks_made, now->masks_made);
    s->bytes += now->bytes - before->bytes;
    s->kept += now->kept - before->kept;
    *before = *now;
}
