/* tools/quality_stats.h - how far one model's answers are from another's, row by row.
 *
 * Logits: the Kullback-Leibler divergence of the tested distribution from the reference's, in
 * nats, and whether both have the same most likely token.  Residual stream: |x - r|^2 / |r|^2
 * over all rows of a layer, square root.  Routing: the share of experts chosen by both, and of
 * rows whose set is the same.
 *
 * Pure: what came in decides. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct quality_layer {
    double error_squares, reference_squares;
    int64_t n_rows, n_shared, n_slots, n_equal_sets;
};

/* All-zero is empty; `layers` and the list of divergences belong to it. */
struct quality_stats {
    int n_layers;
    struct quality_layer *layers; /* [n_layers] */
    double *divergences;          /* [n_rows] */
    size_t n_rows, size;
    int64_t n_agreeing; /* rows with the same first choice */
};
void quality_stats_init(struct quality_stats *s, int n_layers);
void quality_stats_fini(struct quality_stats *s);

/* One position's logits. */
void quality_add_logits(struct quality_stats *s, const float *reference, const float *tested,
                        int vocab);
/* n floats of the residual stream after a layer. */
void quality_add_stream(struct quality_stats *s, int layer, const float *reference,
                        const float *tested, size_t n);
/* One row's experts, in any order. */
void quality_add_routing(struct quality_stats *s, int layer, const uint16_t *reference,
                         const uint16_t *tested, int top_k);

/* sum p_i * (log p_i - log q_i) of the softmax of both; exactly 0 for equal logits. */
double quality_divergence(const float *reference, const float *tested, int vocab);
/* The value below which share q of the rows lies (the smallest that has it). */
double quality_divergence_quantile(const struct quality_stats *s, double q);
double quality_divergence_mean(const struct quality_stats *s);
double quality_agreement(const struct quality_stats *s);
double quality_layer_error(const struct quality_layer *l);
double quality_layer_overlap(const struct quality_layer *l);
double quality_layer_equal_sets(const struct quality_layer *l);
