/* engine/quantise.c - see quantise.h. */
#include "engine/quantise.h"

#include <math.h>

float quantise_q8(const float *x, int n, enum quantise_search search, int8_t *q)
{
    float largest = 0.0f;
    (void)search;
    for (int i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    for (int i = 0; i < n; i++)
        q[i] = 0;
    float inverse = 127.0f / largest;
    if (isinf(inverse))
        return 0.0f;
    for (int i = 0; i < n; i++)
        q[i] = (int8_t)rintf(x[i] * inverse);
    return largest / 127.0f;
}

float quantise_q4(const float *x, int n, enum quantise_search search, int8_t *q)
{
    float largest = 0.0f;
    (void)search;
    for (int i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    for (int i = 0; i < n; i++)
        q[i] = 0;
    float inverse = 7.0f / largest;
    if (isinf(inverse))
        return 0.0f;
    for (int i = 0; i < n; i++)
        q[i] = (int8_t)rintf(x[i] * inverse);
    return largest / 7.0f;
}
