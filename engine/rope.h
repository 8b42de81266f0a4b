/* engine/rope.h - rotary position embedding (step 6; m2.md 4.3 step 5).
 *
 * Partial and "rotate half": of each head the first rotary_dim dimensions turn, in pairs
 * (j, j + rotary_dim/2).  The frequencies follow the reference implementation's route
 * through f32, so an angle has the same bits as there:
 *   p = (float)theta^(2j/rotary_dim),  f_j = 1.0f / p,  angle = (float)position * f_j */
#pragma once

struct rope {
    int half;         /* pairs: rotary_dim / 2 */
    float *frequency; /* [half]; owned */
};

void rope_init(struct rope *r, double theta, int rotary_dim);
void rope_fini(struct rope *r);
/* sine, cosine [half] for a position. */
void rope_angles(const struct rope *r, int position, float *sine, float *cosine);
/* Turns one head in place; what lies past the first 2 * half stays. */
void rope_turn(const struct rope *r, const float *sine, const float *cosine, float *head);
