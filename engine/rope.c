/* engine/rope.c - see engine/rope.h. */
#include "engine/rope.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "engine/mathf.h"

enum { PIECE = 16 };

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

/* PIECE pairs: all are read before one is written, so that the compiler may use vectors. */
static inline void turn_piece(const float *sine, const float *cosine, float *first, float *second)
{
    float turned[2][PIECE];
    for (int j = 0; j < PIECE; j++) {
        turned[0][j] = first[j] * cosine[j] - second[j] * sine[j];
        turned[1][j] = second[j] * cosine[j] + first[j] * sine[j];
    }
    memcpy(first, turned[0], sizeof(turned[0]));
    memcpy(second, turned[1], sizeof(turned[1]));
}

void rope_turn(const struct rope *r, const float *sine, const float *cosine, float *head)
{
    float *second = head + r->half;
    int j = 0;
    for (; j + PIECE <= r->half; j += PIECE)
        turn_piece(sine + j, cosine + j, head + j, second + j);
    for (; j < r->half; j++) {
        float a = head[j], b = second[j];
        head[j] = a * cosine[j] - b * sine[j];
        second[j] = b * cosine[j] + a * sine[j];
    }
}
