/* engine/quantise.c - the candidates of the search; see quantise.h. */
#include "engine/quantise.h"

#include <string.h>

#include "base/must.h"

/* An error in steps becomes one in weights by scale^2, that is by 1 / level^2. */
#define LEVEL(l) \
    { \
        (l), 1.0f / ((l) * (l)) \
    }

/* None above 127, so nothing needs clamping. */
static const struct scale_level q8_levels[] = {
    LEVEL(127.0f), LEVEL(126.0f), LEVEL(125.0f), LEVEL(124.0f), LEVEL(120.0f), LEVEL(112.0f),
    LEVEL(108.0f), LEVEL(104.0f), LEVEL(96.0f),  LEVEL(88.0f),  LEVEL(80.0f)};
/* Above 7.5 the sign says which side has the value -8. */
static const struct scale_level q4_levels[] = {
    LEVEL(7.0f),  LEVEL(7.4f),   LEVEL(7.7f), LEVEL(-7.7f), LEVEL(8.0f), LEVEL(-8.0f),
    LEVEL(8.35f), LEVEL(-8.35f), LEVEL(8.7f), LEVEL(-8.7f), LEVEL(9.2f), LEVEL(-9.2f)};

enum {
    N_Q8_LEVELS = sizeof(q8_levels) / sizeof(q8_levels[0]),
    N_Q4_LEVELS = sizeof(q4_levels) / sizeof(q4_levels[0])
};
float quantise_weights(const struct kernels *k, enum weight_format format, const float *x, int n,
                       enum quantise_search search, int8_t *q)
{
    int group = format_group(format);
    must(group > 0 && n > 0 && n <= group);
    float padded[Q8_GROUP];
    if (n < group) {
        memset(padded, 0, sizeof(padded));
        memcpy(padded, x, (size_t)n * sizeof(*x));
        x = padded;
    }
    const struct scale_level *levels = format == FORMAT_Q8 ? q8_levels : q4_levels;
    int n_levels = format == FORMAT_Q8 ? N_Q8_LEVELS : N_Q4_LEVELS;
    return k->quantise_weights(x, format, levels, search == QUANTISE_MAX ? 1 : n_levels, q);
}
