/* tools/quality_stats.c - see quality_stats.h. */
#include "tools/quality_stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"

void quality_stats_init(struct quality_stats *s, int n_layers)
{
    *s = (struct quality_stats){.n_layers = n_layers};
    s->layers = mem_array((size_t)n_layers, sizeof(*s->layers));
}

void quality_stats_fini(struct quality_stats *s)
{
    mem_free(s->layers);
    mem_free(s->divergences);
    *s = (struct quality_stats){0};
}

static double log_sum(const float *x, int n, double most)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += exp(x[i] - most);
    return most + log(sum);
}

static int largest(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

double quality_divergence(const float *reference, const float *tested, int vocab)
{
    double p_log = log_sum(reference, vocab, reference[largest(reference, vocab)]);
    double q_log = log_sum(tested, vocab, tested[largest(tested, vocab)]);
    double sum = 0;
    for (int i = 0; i < vocab; i++) {
        double p = reference[i] - p_log;
        sum += exp(p) * (p - (tested[i] - q_log));
    }
    return sum > 0 ? sum : 0; /* rounding can leave a little less than nothing */
}

void quality_add_logits(struct quality_stats *s, const float *reference, const float *tested,
                        int vocab)
{
    if (s->n_rows == s->size) {
        s->size = s->size ? 2 * s->size : 256;
        s->divergences = mem_resize(s->divergences, s->size * sizeof(*s->divergences));
    }
    s->divergences[s->n_rows++] = quality_divergence(reference, tested, vocab);
    s->n_agreeing += largest(reference, vocab) == largest(tested, vocab);
}

void quality_add_stream(struct quality_stats *s, int layer, const float *reference,
                        const float *tested, size_t n)
{
    must(layer >= 0 && layer < s->n_layers);
    struct quality_layer *l = &s->layers[layer];
    for (size_t i = 0; i < n; i++) {
        double error = (double)tested[i] - reference[i];
        l->error_squares += error * error;
        l->reference_squares += (double)reference[i] * reference[i];
    }
}

void quality_add_routing(struct quality_stats *s, int layer, const uint16_t *reference,
                         const uint16_t *tested, int top_k)
{
    must(layer >= 0 && layer < s->n_layers);
    struct quality_layer *l = &s->layers[layer];
    int shared = 0;
    for (int i = 0; i < top_k; i++)
        for (int j = 0; j < top_k; j++)
            shared += reference[i] == tested[j];
    l->n_rows++;
    l->n_slots += top_k;
    l->n_shared += shared;
    l->n_equal_sets += shared == top_k;
}

/* ---- results ---- */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double quality_divergence_quantile(const struct quality_stats *s, double q)
{
    if (s->n_rows == 0)
        return 0;
    double *sorted = mem_array(s->n_rows, sizeof(*sorted));
    memcpy(sorted, s->divergences, s->n_rows * sizeof(*sorted));
    qsort(sorted, s->n_rows, sizeof(*sorted), compare_doubles);
    double at = ceil(q * (double)s->n_rows) - 1;
    double value = sorted[at > 0 ? (size_t)at : 0];
    mem_free(sorted);
    return value;
}

double quality_divergence_mean(const struct quality_stats *s)
{
    double sum = 0;
    for (size_t i = 0; i < s->n_rows; i++)
        sum += s->divergences[i];
    return s->n_rows ? sum / (double)s->n_rows : 0;
}

double quality_agreement(const struct quality_stats *s)
{
    return s->n_rows ? (double)s->n_agreeing / (double)s->n_rows : 1;
}

double quality_layer_error(const struct quality_layer *l)
{
    return l->reference_squares > 0 ? sqrt(l->error_squares / l->reference_squares) : 0;
}

double quality_layer_overlap(const struct quality_layer *l)
{
    return l->n_slots ? (double)l->n_shared / (double)l->n_slots : 1;
}

double quality_layer_equal_sets(const struct quality_layer *l)
{
    return l->n_rows ? (double)l->n_equal_sets / (double)l->n_rows : 1;
}
