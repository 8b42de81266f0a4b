/* tools/forecast.h - what a cluster would do: the coordinator's placement and the attention side's
 * choice of copies, run on machines that are numbers.
 *
 * A step of n tokens takes
 *
 *   the attention side's weights and cache / its memory's speed
 *   + for each layer:  the round trip  +  rows on the wire / the network's speed
 *                      +  the slowest node's distinct experts / its memory's speed, and no less
 *                         than all that the nodes of its machine read / that machine's
 *
 * Two lanes (attention.lanes) cut the rows of a step in halves: the attention side works for one while the nodes work
 * for the other.  Each lane reads the attention side's weights and its own experts, so what both want is read twice;
 * forecast_two_lanes_ns() says what is won.  Attention side and nodes are taken to have memories of their own.
 *
 * where memory gives `efficiency` of what reading alone does.  Several attention sides each take
 * their part of the tokens, at the same time; nodes read for all of them together.  What arithmetic
 * costs beside reading is left out: this is about decoding, not about long prompts.
 *
 * Pure but for progress; owner: main thread. */
#pragma once

#include "base/rng.h"
#include "coordinator/placement.h"
#include "tools/plan_hosts.h"
#include "tools/plan_model.h"
#include "tools/trace.h"

struct forecast_options {
    int replicas; /* 0: as many as memory gives */
    double efficiency;
    double attention_bytes_s; /* of an attention side's memory */
    int n_sides;
    double fan_out_ns;                       /* for each node of a round after the first */
    double jitter_ns;                        /* mean of what a node's answer is late, exponential */
    double straggler_share, straggler_speed; /* nodes that are slower than they said */
    bool ignores_speed;                      /* when it chooses among copies */
    int lanes; /* of a step: 1, 2, or 0: what is faster, as attention.lanes=auto finds out */
    uint64_t seed;
};

struct forecast {
    struct forecast_options options;
    const struct plan_model *model;
    const struct plan_hosts *hosts;
    struct trace *trace;
    struct placement placement;
    double plan_ms; /* of CPU time, for the coordinator's first plan */
    int n_nodes;
    int *host_of;      /* [n_nodes] */
    double *bytes_s;   /* [n_nodes] true speed of reading experts */
    bool *is_lost;     /* [n_nodes] */
    uint16_t *holders; /* [n_layers][n_experts][replicas] as attention sides see them */
    int n_copies_least, n_copies_most;
    int64_t n_copies;
    struct choice *choice;
    int *cost; /* [n_nodes] as attention sides know them */
};

/* Joins all nodes, lets them see what the trace chooses, and plans.  E_NOMEM: the machines cannot
 * hold every expert once. */
int forecast_open(const struct plan_model *m, const struct plan_hosts *h, struct trace *t,
                  const struct forecast_options *o, struct forecast *out, struct err *e);
void forecast_close(struct forecast *f);

struct forecast_step {
    double step_ms;
    double attention_ms, network_ms, experts_ms; /* one after the other, in one lane */
    double hidden_ms;                            /* of these, what happens at the same time */
    int lanes;                                   /* 1 or 2 */
    double two_lanes;         /* time of two lanes to that of one; 0: there are too few rows */
    double p99_ms;            /* of the steps that were tried */
    double tokens_s;          /* all streams */
    double balance;           /* experts read by the busiest node of a layer / by the mean node */
    double slowest, distinct; /* experts of a layer on its slowest node, and on all */
    double wire_bytes;        /* per token, both ways */
    int64_t n_missing;        /* experts that were asked for and are nowhere */
};
/* Steps of n_tokens streams at `context` positions each, n_steps of them drawn from the trace. */
void forecast_run(struct forecast *f, int n_tokens, double context, int n_steps,
                  struct forecast_step *out);

/* From the first layer's attention to the last layer's experts, with attention_ns [2] of a lane in a layer and
 * experts_ns, network_ns [n_layers][2]: attention of the lanes in turn, and experts in the order in which they are asked. */
double forecast_two_lanes_ns(int n_layers, const double *attention_ns, const double *experts_ns,
                             const double *network_ns);

/* Marks all nodes of a machine as lost, or as there again. */
void forecast_lose_host(struct forecast *f, int host, bool is_lost);
/* Experts without a copy on a node that is there. */
int64_t forecast_uncovered(const struct forecast *f);
/* Copies that the lost ones held. */
int64_t forecast_lost_copies(const struct forecast *f);
