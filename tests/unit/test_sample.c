/* tests/unit/test_sample.c - each parameter's effect against a naive sampler in double, the
 * draw's distribution and its dependence on seed and position only. */
#include <math.h>
#include <stdlib.h>
#include <xxhash.h>

#include "base/mem.h"
#include "engine/sample.h"
#include "tests/lib/test.h"

enum { VOCAB = 24 };

static const struct sample_history no_history;

static struct sampled sample(struct sampler *s, const float *logits, const struct sampling *p,
                             uint64_t position)
{
    struct sampled out;
    CHECK_INT(sample_token(s, logits, p, &no_history, position, &out), 0);
    return out;
}

static void fill_logits(struct rng *r, float *logits, int n, double spread)
{
    for (int i = 0; i < n; i++)
        logits[i] = (float)(rng_normal(r) * spread);
}

/* ---- the naive sampler: probabilities of what is left, in double ---- */

struct ranked {
    double p;
    int token;
};

static int by_probability(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->p != y->p)
        return x->p > y->p ? -1 : 1;
    return x->token - y->token;
}

static void naive_adjust(const float *logits, const struct sampling *p,
                         const struct sample_history *h, double *z)
{
    int in_all[VOCAB] = {0}, in_output[VOCAB] = {0};
    for (int i = 0; i < h->n_tokens; i++) {
        in_all[h->tokens[i]]++;
        in_output[h->tokens[i]] += i >= h->n_prompt;
    }
    for (int i = 0; i < VOCAB; i++)
        z[i] = (double)logits[i];
    for (int i = 0; i < p->n_bias; i++)
        z[p->bias[i].token] += (double)p->bias[i].bias;
    for (int i = 0; i < VOCAB; i++) {
        double penalty = (double)p->repetition_penalty;
        if (in_all[i] && penalty > 0)
            z[i] = z[i] < 0 ? z[i] * penalty : z[i] / penalty;
        if (in_output[i])
            z[i] -= in_output[i] * (double)p->frequency_penalty + (double)p->presence_penalty;
    }
}

/* probabilities[token] of the draw. */
static void naive(const float *logits, const struct sampling *p, const struct sample_history *h,
                  double *probabilities)
{
    double z[VOCAB], sum = 0;
    struct ranked ranked[VOCAB];
    naive_adjust(logits, p, h, z);
    for (int i = 0; i < VOCAB; i++)
        ranked[i] = (struct ranked){exp(z[i] / (double)p->temperature), i};
    qsort(ranked, VOCAB, sizeof(ranked[0]), by_probability);
    int n = p->top_k > 0 && p->top_k < VOCAB ? p->top_k : VOCAB;
    for (int i = 0; i < n; i++)
        sum += ranked[i].p;
    if (p->top_p > 0 && p->top_p < 1) {
        double so_far = 0;
        for (int i = 0; i < n; i++)
            if ((so_far += ranked[i].p) >= (double)p->top_p * sum)
                n = i + 1;
    }
    while (n > 1 && ranked[n - 1].p < (double)p->min_p * ranked[0].p)
        n--;
    sum = 0;
    for (int i = 0; i < n; i++)
        sum += ranked[i].p;
    memset(probabilities, 0, VOCAB * sizeof(*probabilities));
    for (int i = 0; i < n; i++)
        probabilities[ranked[i].token] = ranked[i].p / sum;
}

/* Draws many times; chi-square against the naive probabilities.  No token of probability 0
 * may come.  The bound is mean + 6 standard deviations of chi-square: seeds are fixed, so a
 * pass stays a pass. */
static void check_distribution(const float *logits, struct sampling p,
                               const struct sample_history *h)
{
    enum { DRAWS = 20000 };
    double want[VOCAB], chi = 0;
    int seen[VOCAB] = {0}, n_kinds = 0;
    struct sampler *s = sampler_new(VOCAB);
    naive(logits, &p, h, want);
    for (int i = 0; i < DRAWS; i++) {
        struct sampled out;
        p.seed = 12345;
        CHECK_INT(sample_token(s, logits, &p, h, (uint64_t)i, &out), 0);
        seen[out.token]++;
    }
    for (int i = 0; i < VOCAB; i++) {
        if (want[i] == 0) {
            CHECK_INT(seen[i], 0);
            continue;
        }
        double expected = want[i] * DRAWS;
        if (expected < 1) /* too rare for the statistic */
            continue;
        chi += (seen[i] - expected) * (seen[i] - expected) / expected;
        n_kinds++;
    }
    CHECK(n_kinds >= 1);
    CHECK(chi <= n_kinds + 6 * sqrt(2.0 * n_kinds));
    sampler_free(&s);
}

TEST(sample_draws_from_the_softmax)
{
    struct rng r = rng_seed(1);
    float logits[VOCAB];
    for (int i = 0; i < 4; i++) {
        fill_logits(&r, logits, VOCAB, 1.5);
        check_distribution(logits, (struct sampling){.temperature = 1}, &no_history);
    }
}

TEST(sample_temperature_top_k_top_p_and_min_p_cut_as_said)
{
    struct rng r = rng_seed(2);
    float logits[VOCAB];
    const struct sampling cases[] = {
        {.temperature = 0.5f},
        {.temperature = 2},
        {.temperature = 1, .top_k = 1},
        {.temperature = 1, .top_k = 5},
        {.temperature = 1, .top_k = VOCAB},
        {.temperature = 1, .top_k = 1000},
        {.temperature = 1, .top_p = 0.01f},
        {.temperature = 1, .top_p = 0.5f},
        {.temperature = 1, .top_p = 0.95f},
        {.temperature = 1, .top_p = 1},
        {.temperature = 1, .min_p = 0.2f},
        {.temperature = 1, .min_p = 1},
        {.temperature = 0.7f, .top_k = 10, .top_p = 0.8f},
        {.temperature = 1.3f, .top_k = 12, .top_p = 0.9f, .min_p = 0.15f},
        {.temperature = 1.3f, .top_p = 0.9f, .min_p = 0.1f},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fill_logits(&r, logits, VOCAB, 1.5);
        check_distribution(logits, cases[i], &no_history);
    }
}

TEST(sample_penalties_and_bias_change_what_they_name)
{
    struct rng r = rng_seed(3);
    float logits[VOCAB];
    const int32_t tokens[] = {3, 3, 5, 7, 3, 9, 9, 9, 11};
    const struct sample_history h = {.tokens = tokens, .n_tokens = 9, .n_prompt = 4};
    const struct sampling cases[] = {
        {.temperature = 1, .repetition_penalty = 1.8f},
        {.temperature = 1, .frequency_penalty = 0.7f},
        {.temperature = 1, .presence_penalty = 1.1f},
        {.temperature = 1, .frequency_penalty = -0.5f, .presence_penalty = 0.4f},
        {.temperature = 1, .n_bias = 2, .bias = {{4, 2.5f}, {3, -100.0f}}},
        {.temperature = 0.8f,
         .repetition_penalty = 1.3f,
         .frequency_penalty = 0.3f,
         .presence_penalty = 0.2f,
         .n_bias = 1,
         .bias = {{9, 1.5f}}},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fill_logits(&r, logits, VOCAB, 1.5);
        check_distribution(logits, cases[i], &h);
    }
}

TEST(sample_greedy_takes_the_lowest_of_the_largest)
{
    struct sampler *s = sampler_new(5);
    const struct sampling greedy = {0};
    const float ties[5] = {-1, 2, 0, 2, 2};
    CHECK_INT(sample(s, ties, &greedy, 0).token, 1);
    const float zeros[5] = {-0.0f, 0.0f, -0.0f, 0.0f, -1};
    CHECK_INT(sample(s, zeros, &greedy, 0).token, 0);
    const int32_t seen[] = {1, 1, 3};
    const struct sample_history h = {.tokens = seen, .n_tokens = 3, .n_prompt = 0};
    struct sampled out;
    struct sampling p = {.frequency_penalty = 0.5f};
    CHECK_INT(sample_token(s, ties, &p, &h, 0, &out), 0);
    CHECK_INT(out.token, 4);
    /* Counts of one call do not leak into the next. */
    CHECK_INT(sample(s, ties, &p, 0).token, 1);
    sampler_free(&s);
}

/* Whatever their number and wherever the largest and those like it stand. */
TEST(sample_greedy_sees_every_place)
{
    struct rng r = test_rng();
    float z[70];
    for (int n = 1; n <= 70; n++) {
        struct sampler *s = sampler_new(n);
        for (int round = 0; round < 30; round++) {
            int want = 0;
            for (int i = 0; i < n; i++) {
                z[i] = (float)rng_below(&r, 5) - 3.0f;
                want = z[i] > z[want] ? i : want;
            }
            CHECK_INT(sample(s, z, &(struct sampling){0}, 0).token, want);
            struct sampled out;
            z[rng_below(&r, (uint64_t)n)] = round % 2 ? NAN : -INFINITY;
            CHECK_INT(sample_token(s, z, &(struct sampling){0}, &no_history, 0, &out), E_CORRUPT);
        }
        sampler_free(&s);
    }
}

TEST(sample_top_k_ties_go_to_the_lower_id)
{
    struct sampler *s = sampler_new(6);
    const float logits[6] = {1, 3, 1, 1, 3, 1};
    struct sampling p = {.temperature = 1, .top_k = 3, .seed = 9};
    bool seen[6] = {0};
    for (uint64_t i = 0; i < 500; i++)
        seen[sample(s, logits, &p, i).token] = true;
    CHECK(seen[0] && seen[1] && seen[4] && !seen[2] && !seen[3] && !seen[5]);
    sampler_free(&s);
}

TEST(sample_depends_on_seed_and_position_alone)
{
    struct rng r = test_rng();
    enum { N = 200 };
    float logits[VOCAB];
    fill_logits(&r, logits, VOCAB, 1);
    struct sampler *a = sampler_new(VOCAB), *b = sampler_new(VOCAB);
    struct sampling p = {.temperature = 1, .top_p = 0.95f, .seed = 77}, other = p;
    other.seed = 78;
    int32_t first[N];
    int n_other = 0;
    for (int i = 0; i < N; i++) {
        first[i] = sample(a, logits, &p, (uint64_t)i).token;
        n_other += sample(a, logits, &other, (uint64_t)i).token != first[i];
    }
    for (int i = N - 1; i >= 0; i--)
        CHECK_INT(sample(b, logits, &p, (uint64_t)i).token, first[i]);
    CHECK(n_other > N / 4);
    sampler_free(&a);
    sampler_free(&b);
}

TEST(sample_logprobs_are_the_models_own)
{
    struct rng r = test_rng();
    float logits[VOCAB];
    fill_logits(&r, logits, VOCAB, 3);
    struct sampler *s = sampler_new(VOCAB);
    double sum = 0;
    struct ranked ranked[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        sum += exp((double)logits[i]);
    for (int i = 0; i < VOCAB; i++)
        ranked[i] = (struct ranked){exp((double)logits[i]) / sum, i};
    qsort(ranked, VOCAB, sizeof(ranked[0]), by_probability);
    struct sampling p = {.temperature = 0.3f, .top_k = 4, .logprobs = true, .n_top = 7};
    p.n_bias = 1;
    p.bias[0].token = ranked[9].token;
    p.bias[0].bias = 50;
    struct sampled out = sample(s, logits, &p, 0);
    CHECK_INT(out.token, ranked[9].token);
    /* f32 logits of size 10 and one logarithm. */
    CHECK_NEAR(out.logprob, log(ranked[9].p), 4e-6);
    CHECK_INT(out.n_top, 7);
    for (int i = 0; i < 7; i++) {
        CHECK_INT(out.top[i].token, ranked[i].token);
        CHECK_NEAR(out.top[i].logprob, log(ranked[i].p), 4e-6);
    }
    p.logprobs = false;
    CHECK_INT(sample(s, logits, &p, 0).n_top, 0);
    sampler_free(&s);
}

TEST(sample_hash_is_of_the_logits_as_they_came)
{
    struct rng r = test_rng();
    float logits[VOCAB];
    fill_logits(&r, logits, VOCAB, 3);
    struct sampler *s = sampler_new(VOCAB);
    struct sampling p = {.temperature = 1, .logits_hash = true, .n_bias = 1, .bias = {{3, 4.0f}}};
    uint64_t hash = sample(s, logits, &p, 0).logits_hash;
    CHECK(hash == XXH3_64bits(logits, sizeof(logits)));
    CHECK(hash == sample_logits_hash(logits, VOCAB));
    p.logits_hash = false;
    CHECK(sample(s, logits, &p, 0).logits_hash == 0);
    logits[5] = -logits[5];
    CHECK(hash != sample_logits_hash(logits, VOCAB));
    sampler_free(&s);
}

static void check_refused(int want, const float *logits, const struct sampling *p,
                          const struct sample_history *h)
{
    struct sampler *s = sampler_new(VOCAB);
    struct sampled out, before;
    memset(&out, 0x5a, sizeof(out));
    before = out;
    CHECK_INT(sample_token(s, logits, p, h, 0, &out), want);
    CHECK_BYTES(&out, &before, sizeof(out));
    sampler_free(&s);
}

TEST(sample_refuses_what_is_not_finite)
{
    const float strange[] = {NAN, INFINITY, -INFINITY};
    const struct sampling greedy = {0}, warm = {.temperature = 1};
    for (int i = 0; i < 3; i++) {
        float logits[VOCAB] = {0};
        logits[VOCAB - 1 - i] = strange[i];
        check_refused(E_CORRUPT, logits, &greedy, &no_history);
        check_refused(E_CORRUPT, logits, &warm, &no_history);
    }
}

TEST(sample_refuses_parameters_out_of_range)
{
    const float logits[VOCAB] = {0};
    const int32_t past[] = {VOCAB}, below[] = {-1};
    const struct sampling cases[] = {{.temperature = -1},
                                     {.temperature = NAN},
                                     {.repetition_penalty = -2},
                                     {.frequency_penalty = NAN},
                                     {.presence_penalty = INFINITY},
                                     {.n_bias = 1, .bias = {{VOCAB, 1.0f}}},
                                     {.n_bias = 1, .bias = {{-1, 1.0f}}},
                                     {.n_bias = 1, .bias = {{1, NAN}}},
                                     {.n_bias = SAMPLING_MAX_BIAS + 1},
                                     {.n_top = SAMPLING_MAX_TOP + 1}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        check_refused(E_INVALID, logits, &cases[i], &no_history);
    const struct sampling p = {0};
    check_refused(E_INVALID, logits, &p, &(struct sample_history){.tokens = past, .n_tokens = 1});
    check_refused(E_INVALID, logits, &p, &(struct sample_history){.tokens = below, .n_tokens = 1});
}

/* A full vocabulary, with the cuts that a naive sort would make slow, and no allocation. */
TEST(sample_large_vocabulary_allocates_nothing_and_stays_in_the_nucleus)
{
    enum { N = 200064 };
    struct rng r = test_rng();
    float *logits = mem_aligned(N * sizeof(float));
    struct sampler *s = sampler_new(N);
    fill_logits(&r, logits, N, 2);
    for (int i = 0; i < 5; i++)
        logits[1000 * i + 17] = 30.0f + (float)i;
    const struct sampling cases[] = {{.temperature = 1, .top_k = 5},
                                     {.temperature = 1, .top_p = 0.95f},
                                     {.temperature = 1, .min_p = 0.001f},
                                     {.temperature = 1, .top_k = 40, .top_p = 0.95f}};
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++)
        for (uint64_t i = 0; i < 4; i++) {
            struct sampled out;
            mem_guard_begin("sample");
            CHECK_INT(sample_token(s, logits, &cases[c], &no_history, i, &out), 0);
            mem_guard_end();
            CHECK(out.token % 1000 == 17 && out.token < 5000);
        }
    /* All equal: the nucleus is nearly everything. */
    memset(logits, 0, N * sizeof(float));
    struct sampling p = {.temperature = 1, .top_p = 0.5f};
    for (uint64_t i = 0; i < 4; i++)
        CHECK(sample(s, logits, &p, i).token < N / 2 + 1);
    sampler_free(&s);
    mem_free(logits);
}
