/* attn_node/choice.h - which holder of each expert is asked (step 8; cluster.md 3.3).
 *
 * At small batch a layer takes as long as the node that reads longest, so the experts of a call
 * are spread such that this node reads for the shortest time: those with the fewest holders
 * first, each to the holder that would be through with it first, then one pass that moves experts
 * away from the nodes that read longest (directly, or by pushing another expert on).  Where nodes
 * are equally fast, or nobody knows, the time is the number of experts.
 *
 * The choice decides who computes, never what comes out.  It is a function of its input
 * alone.  Pure: no socket, clock or log; a choice allocates nothing. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { CHOICE_NOBODY = 0xffff };
/* How much a node is trusted to answer now.  A doubtful one is asked when no good one has the
 * expert, one that is away never. */
enum standing { STANDING_GOOD, STANDING_DOUBTFUL, STANDING_AWAY };

struct choice;
/* For experts 0 .. n_experts-1 of one layer. */
struct choice *choice_new(int n_experts);
void choice_free(struct choice **c);

/* What is asked for; nodes are numbered as the holders name them. */
struct choice_question {
    const uint16_t *experts; /* [n_slots], repeats are fine: slot i of the caller's */
    const int32_t *slots;    /* [n_slots] which of `experts` count */
    int n_slots;
    const uint16_t *holders; /* [n_experts][n_replicas], CHOICE_NOBODY ends a list early */
    int n_replicas;
    const uint8_t *standing; /* [n_nodes] enum standing */
    enum standing worst;     /* that may be asked: GOOD or DOUBTFUL */
    const int *cost;         /* [n_nodes] of reading one expert: choice_costs(); NULL: equal */
    bool is_whole;           /* nobody is chosen unless every expert finds somebody */
    int *load;               /* [n_nodes] experts to read that a node has; counts the new ones in */
};
/* From measured speeds (0: unknown, taken for the median) to costs: CHOICE_COST for the median, and
 * for all that are as good as equal to it. */
enum { CHOICE_COST = 1000 };
void choice_costs(const uint64_t *read_bytes_s, int n_nodes, int *cost);
/* Returns how many of the distinct experts found nobody. */
int choice_make(struct choice *c, const struct choice_question *q);
/* Of an expert of the latest question. */
uint16_t choice_of(const struct choice *c, uint16_t expert);
