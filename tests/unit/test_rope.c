/* tests/unit/test_rope.c - rotary frequencies to the bit, angles, and which pairs turn. */
#include <math.h>

#include "engine/rope.h"
#include "model/halves.h"
#include "tests/lib/test.h"

/* M2: theta 5e6, 64 dimensions; the reference route's bits. */
static const uint32_t m2_bits[32] = {
    0x3f800000, 0x3f1e165d, 0x3ec33f3a, 0x3e712429, 0x3e14e963, 0x3db7ea1a, 0x3d63251b, 0x3d0c44bf,
    0x3cad3d5e, 0x3c55f605, 0x3c042088, 0x3ba32f3e, 0x3b498ad3, 0x3af8ea93, 0x3a99b686, 0x3a3dd829,
    0x39ea77ff, 0x3990ca8b, 0x3932d34f, 0x38dcdc14, 0x38886320, 0x38287230, 0x37d00a62, 0x37807896,
    0x371eab4b, 0x36c3f72a, 0x36720755, 0x361575ab, 0x35b8975d, 0x3563fb18, 0x350cc8e3, 0x34ade091};

TEST(rope_frequencies_have_the_reference_bits)
{
    struct rope r;
    rope_init(&r, 5e6, 64);
    CHECK_INT(r.half, 32);
    for (int j = 0; j < 32; j++)
        if (f32_to_bits(r.frequency[j]) != m2_bits[j])
            test_fail(__FILE__, __LINE__, "frequency %d is %08x, expected %08x", j,
                      f32_to_bits(r.frequency[j]), m2_bits[j]);
    rope_fini(&r);
}

TEST(rope_angles_are_right_near_and_far)
{
    struct rope r;
    float s[32], c[32];
    rope_init(&r, 5e6, 64);
    rope_angles(&r, 0, s, c);
    for (int j = 0; j < 32; j++)
        CHECK(s[j] == 0.0f && c[j] == 1.0f);
    /* math_sincos promises 2^-22; the expected values have seven digits. */
    rope_angles(&r, 4096, s, c);
    CHECK_NEAR(c[1], -0.9148666, 3e-7);
    CHECK_NEAR(s[1], -0.4037563, 3e-7);
    rope_angles(&r, 1048575, s, c);
    CHECK_NEAR(c[31], 0.9428868, 3e-7);
    CHECK_NEAR(s[31], 0.3331134, 3e-7);
    for (int j = 0; j < 32; j++) {
        double angle = (double)(1048575.0f * r.frequency[j]);
        CHECK_NEAR(s[j], sin(angle), 3e-7);
        CHECK_NEAR(c[j], cos(angle), 3e-7);
    }
    rope_fini(&r);
}

TEST(rope_turns_pairs_half_apart_and_leaves_the_rest)
{
    struct rope r;
    enum { ROTARY = 6, DIM = 9 };
    float s[3], c[3], head[DIM], was[DIM];
    rope_init(&r, 100.0, ROTARY);
    rope_angles(&r, 7, s, c);
    for (int i = 0; i < DIM; i++)
        was[i] = head[i] = (float)(i + 1);
    rope_turn(&r, s, c, head);
    for (int j = 0; j < 3; j++) {
        double angle = 7.0 / pow(100.0, 2.0 * j / ROTARY);
        double a = (double)was[j], b = (double)was[j + 3];
        CHECK_NEAR(head[j], a * cos(angle) - b * sin(angle), 1e-5);
        CHECK_NEAR(head[j + 3], b * cos(angle) + a * sin(angle), 1e-5);
    }
    CHECK_BYTES(head + ROTARY, was + ROTARY, 3 * sizeof(float));
    rope_fini(&r);
}

TEST(rope_turns_many_pairs_as_it_turns_few)
{
    struct rope r;
    struct rng random = test_rng();
    enum { MOST = 80 };
    float s[MOST / 2], c[MOST / 2], head[MOST], want[MOST];
    for (int rotary = 2; rotary <= MOST; rotary += 2) {
        int half = rotary / 2;
        rope_init(&r, 5e6, rotary);
        rope_angles(&r, 12345, s, c);
        for (int i = 0; i < rotary; i++)
            head[i] = (float)rng_normal(&random);
        for (int j = 0; j < half; j++) {
            want[j] = head[j] * c[j] - head[j + half] * s[j];
            want[j + half] = head[j + half] * c[j] + head[j] * s[j];
        }
        rope_turn(&r, s, c, head);
        CHECK_BYTES(head, want, (size_t)rotary * sizeof(*head));
        rope_fini(&r);
    }
}
