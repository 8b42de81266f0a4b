/* tests/unit/test_router.c - which experts a row goes to, and with what weights. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "engine/router.h"
#include "model/config.h"
#include "model/halves.h"
#include "tests/lib/test.h"

static const struct compute *portable(void)
{
    static struct compute c;
    c.kernels = kernels_named("portable");
    return &c;
}

static float sigmoid(double x)
{
    return (float)(1.0 / (1.0 + exp(-x)));
}

/* The example of the specification: the expert with the largest score is not chosen. */
TEST(router_selects_by_biased_and_weighs_by_unbiased_scores)
{
    const double logits[6] = {0.3, -1.2, 2.0, 0.7, -0.1, 1.1};
    const float bias[6] = {0, 0.5f, -0.6f, 0.1f, 0.4f, 0};
    float scores[6], weights[3];
    uint16_t experts[3];
    for (int i = 0; i < 6; i++)
        scores[i] = sigmoid(logits[i]);
    router_select(scores, bias, 6, 3, experts, weights);
    CHECK_INT(experts[0], 4);
    CHECK_INT(experts[1], 3);
    CHECK_INT(experts[2], 5);
    CHECK_NEAR(weights[0], 0.2508733, 1e-6);
    CHECK_NEAR(weights[1], 0.3528908, 1e-6);
    CHECK_NEAR(weights[2], 0.3962358, 1e-6);
}

TEST(router_ties_go_to_the_lower_expert)
{
    const float scores[5] = {0.5f, 0.25f, 0.5f, 0.5f, 0.25f}, bias[5] = {0};
    uint16_t experts[4];
    float weights[4];
    router_select(scores, bias, 5, 4, experts, weights);
    const uint16_t want[4] = {0, 2, 3, 1};
    CHECK_BYTES(experts, want, sizeof(want));
}

TEST(router_gives_different_experts_even_for_nan)
{
    const float nan_scores[4] = {NAN, 0.5f, NAN, NAN}, bias[4] = {0};
    uint16_t experts[3];
    float weights[3];
    router_select(nan_scores, bias, 4, 3, experts, weights);
    const uint16_t want[3] = {1, 0, 2};
    CHECK_BYTES(experts, want, sizeof(want));
}

struct biased {
    float score;
    int expert;
};

static int by_score(const void *a, const void *b)
{
    const struct biased *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->expert - y->expert;
}

TEST(router_equals_a_full_sort)
{
    struct rng r = test_rng();
    for (int round = 0; round < 300; round++) {
        enum { MOST = 300 };
        float scores[MOST], bias[MOST], weights[MODEL_MAX_TOP_K];
        uint16_t experts[MODEL_MAX_TOP_K];
        struct biased sorted[MOST];
        int n = 1 + (int)rng_below(&r, MOST);
        int top_k = 1 + (int)rng_below(&r, (uint64_t)(n < MODEL_MAX_TOP_K ? n : MODEL_MAX_TOP_K));
        for (int i = 0; i < n; i++) {
            /* Few values, so that ties are common. */
            scores[i] = (float)(1 + rng_below(&r, 20)) / 32.0f;
            bias[i] = (float)rng_below(&r, 4) / 32.0f;
            sorted[i] = (struct biased){scores[i] + bias[i], i};
        }
        qsort(sorted, (size_t)n, sizeof(sorted[0]), by_score);
        router_select(scores, bias, n, top_k, experts, weights);
        float sum = 0;
        for (int i = 0; i < top_k; i++) {
            CHECK_INT(experts[i], sorted[i].expert);
            sum += scores[experts[i]];
        }
        for (int i = 0; i < top_k; i++)
            CHECK(weights[i] == scores[experts[i]] / sum);
    }
}

enum { EXPERTS = 21, HIDDEN = 30, STRIDE = 32, ROWS = 5, TOP_K = 4 };

struct gate {
    uint16_t weights[EXPERTS * HIDDEN];
    float bias[EXPERTS];
    struct tensor weight_tensor, bias_tensor;
};

static void make_gate(struct gate *g, struct rng *r)
{
    for (int i = 0; i < EXPERTS * HIDDEN; i++)
        g->weights[i] = f32_to_bf16((float)rng_normal(r) * 0.3f);
    for (int i = 0; i < EXPERTS; i++)
        g->bias[i] = (float)rng_normal(r) * 0.1f;
    g->weight_tensor = (struct tensor){.dtype = DTYPE_BF16,
                                       .n_dims = 2,
                                       .dims = {EXPERTS, HIDDEN},
                                       .data = g->weights,
                                       .size_bytes = sizeof(g->weights)};
    g->bias_tensor = (struct tensor){.dtype = DTYPE_F32,
                                     .n_dims = 1,
                                     .dims = {EXPERTS},
                                     .data = g->bias,
                                     .size_bytes = sizeof(g->bias)};
}

TEST(router_route_scores_every_row)
{
    struct rng r = test_rng();
    struct gate g;
    make_gate(&g, &r);
    struct router router;
    struct err e = {0};
    CHECK_INT(router_load(&router, &g.weight_tensor, &g.bias_tensor, TOP_K, portable(), &e), 0);
    CHECK_INT(router.gate.format, FORMAT_BF16);
    float *h = mem_aligned(ROWS * STRIDE * sizeof(float));
    for (int row = 0; row < ROWS; row++)
        for (int i = 0; i < HIDDEN; i++)
            h[row * STRIDE + i] = (float)rng_normal(&r);
    float scratch[ROWS * EXPERTS], weights[ROWS * TOP_K];
    uint16_t experts[ROWS * TOP_K];
    struct routing out = {.experts = experts, .weights = weights};
    router_route(portable(), &router, h, STRIDE, ROWS, scratch, &out);
    CHECK_INT(out.n_rows, ROWS);
    CHECK_INT(out.top_k, TOP_K);
    for (int row = 0; row < ROWS; row++) {
        double best = -1, sum = 0;
        for (int i = 0; i < EXPERTS; i++) {
            double z = 0;
            for (int k = 0; k < HIDDEN; k++)
                z += (double)bf16_to_f32(g.weights[i * HIDDEN + k]) * (double)h[row * STRIDE + k];
            /* Thirty terms in f32. */
            CHECK_NEAR(scratch[row * EXPERTS + i], 1.0 / (1.0 + exp(-z)), 1e-6);
            best = fmax(best, 1.0 / (1.0 + exp(-z)) + (double)g.bias[i]);
        }
        int first = experts[row * TOP_K];
        CHECK_NEAR(scratch[row * EXPERTS + first] + g.bias[first], best, 1e-6);
        for (int i = 0; i < TOP_K; i++)
            sum += (double)weights[row * TOP_K + i];
        CHECK_NEAR(sum, 1.0, 1e-6);
    }
    mem_free(h);
    router_fini(&router);
}

TEST(router_load_refuses_what_is_not_a_number)
{
    struct rng r = test_rng();
    struct gate g;
    struct router router;
    struct err e = {0};
    make_gate(&g, &r);
    g.bias[7] = INFINITY;
    CHECK_INT(router_load(&router, &g.weight_tensor, &g.bias_tensor, TOP_K, portable(), &e),
              E_CORRUPT);
    CHECK_HAS(e.text, "element 7");
    make_gate(&g, &r);
    g.weights[35] = 0x7fc0;
    CHECK_INT(router_load(&router, &g.weight_tensor, &g.bias_tensor, TOP_K, portable(), &e),
              E_CORRUPT);
    CHECK_HAS(e.text, "gate");
    router_fini(&router);
}
