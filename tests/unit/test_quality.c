/* tests/unit/test_quality.c - how far answers are apart: the figures on known numbers, the ids,
 * and a model against itself. */
#include "tools/quality.h"

#include <math.h>

#include "tests/lib/test.h"
#include "tools/synth.h"

TEST(quality_divergence_on_known_numbers)
{
    /* p = (1/2, 1/2), q = (4/5, 1/5): 1/2 ln(5/8) + 1/2 ln(5/2) */
    const float even[] = {1, 1}, uneven[] = {(float)log(4), 0}, shifted[] = {-7, -7};
    double expected = 0.5 * log(0.625) + 0.5 * log(2.5);
    CHECK_NEAR(quality_divergence(even, uneven, 2), expected, 1e-7); /* logits are f32 */
    CHECK(quality_divergence(even, even, 2) == 0);
    CHECK_NEAR(quality_divergence(even, shifted, 2), 0, 1e-12); /* the same distribution */
    CHECK(quality_divergence(uneven, even, 2) > 0);
    CHECK(quality_divergence(uneven, even, 2) != quality_divergence(even, uneven, 2));
}

TEST(quality_divergence_of_large_logits_is_finite)
{
    const float a[] = {3e4f, 0, -3e4f}, b[] = {-3e4f, 0, 3e4f};
    double d = quality_divergence(a, b, 3);
    CHECK_NEAR(d, 6e4, 1e-6);
}

TEST(quality_quantile_and_agreement)
{
    struct quality_stats s;
    const float one[] = {1, 0}, other[] = {0, 1};
    quality_stats_init(&s, 1);
    for (int i = 0; i < 99; i++)
        quality_add_logits(&s, one, one, 2);
    quality_add_logits(&s, one, other, 2);
    double apart = quality_divergence(one, other, 2);
    CHECK(quality_divergence_quantile(&s, 0.99) == 0);
    CHECK(quality_divergence_quantile(&s, 0.995) == apart);
    CHECK(quality_divergence_quantile(&s, 0) == 0);
    CHECK_NEAR(quality_divergence_mean(&s), apart / 100, 1e-15);
    CHECK_NEAR(quality_agreement(&s), 0.99, 1e-15);
    quality_stats_fini(&s);
}

TEST(quality_layers_on_known_numbers)
{
    struct quality_stats s;
    const float reference[] = {3, 4}, tested[] = {3, 4.5f};
    const uint16_t a[] = {1, 2, 3, 4}, same[] = {4, 3, 2, 1}, half[] = {1, 9, 3, 8};
    quality_stats_init(&s, 2);
    quality_add_stream(&s, 1, reference, tested, 2);
    quality_add_routing(&s, 1, a, same, 4);
    quality_add_routing(&s, 1, a, half, 4);
    CHECK_NEAR(quality_layer_error(&s.layers[1]), 0.1, 1e-12);
    CHECK_NEAR(quality_layer_overlap(&s.layers[1]), 0.75, 1e-12);
    CHECK_NEAR(quality_layer_equal_sets(&s.layers[1]), 0.5, 1e-12);
    CHECK(quality_layer_error(&s.layers[0]) == 0);
    CHECK(quality_layer_overlap(&s.layers[0]) == 1);
    quality_stats_fini(&s);
}

TEST(quality_ids_are_lines)
{
    struct quality_ids q;
    CHECK_INT(quality_ids_parse(STR("1, 2 3\n\n\t\n4\n5 6"), &q, NULL), 0);
    CHECK_INT(q.n, 3);
    CHECK_INT(q.ends[0], 3);
    CHECK_INT(q.ends[1], 4);
    CHECK_INT(q.ends[2], 6);
    CHECK_INT(q.ids.ids[5], 6);
    quality_ids_fini(&q);
}

TEST(quality_ids_are_refused_by_line)
{
    static const char *const bad[] = {"1 2\n3 x\n", "1\n2 -3\n", "1\n99999999999\n", "1\n2x\n"};
    struct quality_ids q;
    for (int i = 0; i < 4; i++) {
        struct err e = {0};
        CHECK_INT(quality_ids_parse(str_of(bad[i]), &q, &e), E_INVALID);
        CHECK_HAS(e.text, "line 2");
    }
    struct err e = {0};
    CHECK_INT(quality_ids_parse(STR("\n \n"), &q, &e), E_INVALID);
    CHECK_HAS(e.text, "no token ids");
}

static void make_model(const char *dir)
{
    struct synth_options o;
    struct err e = {0};
    synth_defaults(&o);
    CHECK_INT(synth_set(&o.config, "num_hidden_layers=2", NULL), 0);
    CHECK_INT(synth_set(&o.config, "num_local_experts=16", NULL), 0);
    o.dir = dir;
    int rc = synth_write(&o, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
}

static void compare(const char *tested_format, struct quality_stats *out)
{
    struct local_engine_options o;
    struct format_set reference, tested;
    struct quality_ids ids;
    struct err e = {0};
    local_engine_defaults(&o);
    o.model_dir = "m";
    o.n_threads = 1;
    o.chunk_rows = 4; /* several steps in a sequence */
    CHECK_INT(format_set_parse("fp8", &reference, NULL), 0);
    CHECK_INT(format_set_parse(tested_format, &tested, NULL), 0);
    CHECK_INT(quality_ids_parse(STR("1 2 3 4 5 6 7 8 9\n10 11\n"), &ids, NULL), 0);
    int rc = quality_compare(&o, &reference, &tested, &ids, out, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
    quality_ids_fini(&ids);
}

TEST(quality_of_a_model_against_itself_is_perfect)
{
    struct quality_stats s;
    make_model("m");
    compare("fp8", &s);
    CHECK_INT(s.n_rows, 11);
    CHECK(quality_divergence_mean(&s) == 0);
    CHECK(quality_agreement(&s) == 1);
    for (int layer = 0; layer < 2; layer++) {
        CHECK_INT(s.layers[layer].n_rows, 11);
        CHECK(s.layers[layer].reference_squares > 0);
        CHECK(quality_layer_error(&s.layers[layer]) == 0);
        CHECK(quality_layer_equal_sets(&s.layers[layer]) == 1);
    }
    quality_stats_fini(&s);
}

TEST(quality_sees_that_four_bits_cost_more_than_eight)
{
    struct quality_stats q8, q4;
    make_model("m");
    compare("q8", &q8);
    compare("q4", &q4);
    CHECK(quality_divergence_mean(&q8) > 0);
    CHECK(quality_divergence_mean(&q4) > quality_divergence_mean(&q8));
    CHECK(quality_layer_error(&q4.layers[0]) > quality_layer_error(&q8.layers[0]));
    quality_stats_fini(&q8);
    quality_stats_fini(&q4);
}
