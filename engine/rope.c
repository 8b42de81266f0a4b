/* engine/rope.c - see engine/rope.h. */
#include "engine/rope.h"

#include <math.h>

#include "base/mem.h"
#include "engine/mathf.h"

void rope_init(struct rope *r, double theta, int rotary_dim)
{
    r->half = rotary_dim / 2;
    r->frequency = mem_array((size_t)r->half, sizeof(*r->frequency));
    for (int j = 0; j < r->half; j++) {
        /* libm's pow in double, rounded once: hosts may differ in the last bit of a double,
         * which is 2^-29 of what the rounding to f32 sees. */
        float exponent = (float)(2 * j) / (float)rotary_dim;
        float power = (float)pow(theta, (double)exponent);
        r->frequency[j] = 1.0f / power;
    }
}

void rope_fini(struct rope *r)
{
    mem_free(r->frequency);
    *r = (struct rope){0};
}

void rope_angles(const struct rope *r, int position, float *sine, float *cosine)
{
    for (int j = 0; j < r->half; j++)
        math_sincos((float)position * r->frequency[j], &sine[j], &cosine[j]);
}

void rope_turn(const struct rope *r, const float *sine, const float *cosine, float *head)
{
    float *second = head + r->half;
    for (int j = 0; j < r->half; j++) {
        float a = head[j], b = second[j];
        head[j] = a * cosine[j] - b * sine[j];
        second[j] = b * cosine[j] + a * sine[j];
    }
}
