/* engine/sample.c - see engine/sample.h.
 *
 * A vocabulary has 200,000 entries and the usual request keeps 40 of them, so nothing is
 * sorted whole: top-k keeps a heap of the best k, and top-p alone first drops what is so
 * unlikely that all of it together could not matter.  Weights e^((z - max) / T) are f32 from
 * the kernels' exp (the same bits at every level) and are added in double, in a fixed order. */
#include "engine/sample.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "engine/kernels.h"
#include "engine/mathf.h"
#include "model/grammar_tokens.h"
#include "model/halves.h"

/* Passes over a whole vocabulary go by so many values at once, which compilers make vectors of. */
enum { LANES = 16 };

struct candidate {
    float z; /* logit, or weight once it was softened */
    int32_t token;
};

struct sampler {
    const struct kernels *kernels;
    int vocab;
    float *adjusted;        /* [vocab]: logits after bias and penalties */
    float *weights;         /* [vocab] */
    struct candidate *heap; /* [vocab] */
    int32_t *n_seen;        /* [vocab], all zero between calls */
};

struct sampler *sampler_new(int vocab_size)
{
    must(vocab_size >= 1);
    struct sampler *s = mem_alloc(sizeof(*s));
    size_t n = (size_t)vocab_size;
    s->kernels = kernels_best();
    s->vocab = vocab_size;
    s->adjusted = mem_aligned(n * sizeof(float));
    s->weights = mem_aligned(n * sizeof(float));
    s->heap = mem_array(n, sizeof(*s->heap));
    s->n_seen = mem_array(n, sizeof(*s->n_seen));
    return s;
}

void sampler_free(struct sampler **s)
{
    if (!*s)
        return;
    mem_free((*s)->adjusted);
    mem_free((*s)->weights);
    mem_free((*s)->heap);
    mem_free((*s)->n_seen);
    mem_free(*s);
    *s = NULL;
}

uint64_t sample_logits_hash(const float *logits, int n)
{
    return XXH3_64bits(logits, (size_t)n * sizeof(*logits));
}

/* ---- what is refused ---- */

static bool has_finite_logits(const float *logits, int n)
{
    const uint32_t exponent = 0x7f800000u;
    uint32_t strange[LANES] = {0}, any = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            strange[j] |= (f32_to_bits(logits[i + j]) & exponent) == exponent;
    for (; i < n; i++)
        any |= (f32_to_bits(logits[i]) & exponent) == exponent;
    for (int j = 0; j < LANES; j++)
        any |= strange[j];
    return any == 0;
}

static bool is_in_vocab(const struct sampler *s, int32_t token)
{
    return token >= 0 && token < s->vocab;
}

static bool are_parameters_sound(const struct sampler *s, const struct sampling *p,
                                 const struct sample_history *history)
{
    if (!(p->temperature >= 0.0f) || p->n_bias < 0 || p->n_bias > SAMPLING_MAX_BIAS ||
        p->n_top < 0 || p->n_top > SAMPLING_MAX_TOP || !(p->repetition_penalty >= 0.0f) ||
        !isfinite(p->frequency_penalty) || !isfinite(p->presence_penalty))
        return false;
    if (p->grammar && !history->constraint)
        return false;
    for (int i = 0; i < p->n_bias; i++)
        if (!is_in_vocab(s, p->bias[i].token) || !isfinite(p->bias[i].bias))
            return false;
    for (int i = 0; i < history->n_tokens; i++)
        if (!is_in_vocab(s, history->tokens[i]))
            return false;
    return history->n_prompt >= 0 && history->n_prompt <= history->n_tokens;
}

/* ---- bias and penalties ---- */

/* Each token of the history once: a token's count is taken when it is met and cleared. */
static void penalise_repetition(struct sampler *s, float penalty,
                                const struct sample_history *history)
{
    for (int i = 0; i < history->n_tokens; i++)
        s->n_seen[history->tokens[i]] = 1;
    for (int i = 0; i < history->n_tokens; i++) {
        int32_t token = history->tokens[i];
        if (!s->n_seen[token])
            continue;
        s->n_seen[token] = 0;
        float z = s->adjusted[token];
        s->adjusted[token] = z < 0.0f ? z * penalty : z / penalty;
    }
}

static void penalise_output(struct sampler *s, const struct sampling *p,
                            const struct sample_history *history)
{
    for (int i = history->n_prompt; i < history->n_tokens; i++)
        s->n_seen[history->tokens[i]]++;
    for (int i = history->n_prompt; i < history->n_tokens; i++) {
        int32_t token = history->tokens[i];
        if (!s->n_seen[token])
            continue;
        float count = (float)s->n_seen[token];
        s->n_seen[token] = 0;
        s->adjusted[token] -= count * p->frequency_penalty + p->presence_penalty;
    }
}

/* Far below any logit, and finite: e^ of it is 0. */
static const float FORBIDDEN = -1e30f;

static void forbid(struct sampler *s, const uint64_t *allowed)
{
    for (int from = 0; from < s->vocab; from += 64) {
        int end = from + 64 < s->vocab ? from + 64 : s->vocab;
        uint64_t bits = allowed[from >> 6];
        for (int i = from; i < end && ~bits; i++)
            if (!(bits >> (i & 63) & 1))
                s->adjusted[i] = FORBIDDEN;
    }
}

/* The logits to choose from: the caller's own where nothing changes them. */
static const float *adjust(struct sampler *s, const float *logits, const struct sampling *p,
                           const struct sample_history *history)
{
    bool repeats = p->repetition_penalty != 0.0f && p->repetition_penalty != 1.0f;
    bool outputs = p->frequency_penalty != 0.0f || p->presence_penalty != 0.0f;
    const uint64_t *allowed = NULL;
    if (p->grammar)
        allowed = constraint_allow(history->constraint, history->tokens + history->n_prompt,
                                   history->n_tokens - history->n_prompt);
    if (p->n_bias == 0 && !repeats && !outputs && !allowed)
        return logits;
    memcpy(s->adjusted, logits, (size_t)s->vocab * sizeof(*logits));
    for (int i = 0; i < p->n_bias; i++)
        s->adjusted[p->bias[i].token] += p->bias[i].bias;
    if (repeats)
        penalise_repetition(s, p->repetition_penalty, history);
    if (outputs)
        penalise_output(s, p, history);
    if (allowed)
        forbid(s, allowed);
    return s->adjusted;
}

static float largest(const float *z, int n)
{
    float lanes[LANES], most = z[0];
    int i = 0;
    for (int j = 0; j < LANES; j++)
        lanes[j] = z[0];
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] = z[i + j] > lanes[j] ? z[i + j] : lanes[j];
    for (; i < n; i++)
        most = z[i] > most ? z[i] : most;
    for (int j = 0; j < LANES; j++)
        most = lanes[j] > most ? lanes[j] : most;
    return most;
}

/* The first of the largest. */
static int32_t argmax(const float *z, int n)
{
    float most = largest(z, n);
    for (int i = 0; i < n; i++)
        if (z[i] == most)
            return i;
    return 0; /* penalties beyond all measure have made it a NaN */
}

/* ---- heaps: the root is the worst that was kept ---- */

static bool is_better(struct candidate a, struct candidate b)
{
    return a.z > b.z || (a.z == b.z && a.token < b.token);
}

static void sift_down(struct candidate *heap, int n, int at)
{
    struct candidate moving = heap[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && is_better(heap[child], heap[child + 1]))
            child++;
        if (!is_better(moving, heap[child]))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

static void heapify(struct candidate *heap, int n)
{
    for (int i = n / 2 - 1; i >= 0; i--)
        sift_down(heap, n, i);
}

/* A heap becomes a list, best first. */
static void sort_heap(struct candidate *heap, int n)
{
    for (int left = n - 1; left > 0; left--) {
        struct candidate worst = heap[0];
        heap[0] = heap[left];
        heap[left] = worst;
        sift_down(heap, left, 0);
    }
}

/* The k best of z, best first. */
static void select_best(const float *z, int n, int k, struct candidate *out)
{
    for (int i = 0; i < k; i++)
        out[i] = (struct candidate){.z = z[i], .token = i};
    heapify(out, k);
    for (int i = k; i < n; i++) {
        /* Ids ascend: an equal one is worse than what is there. */
        if (!(z[i] > out[0].z))
            continue;
        out[0] = (struct candidate){.z = z[i], .token = i};
        sift_down(out, k, 0);
    }
    sort_heap(out, k);
}

/* ---- drawing ---- */

/* weights[i] = e^((z[i] - max) / T) for i < n, and their sum in order. */
static double soften(struct sampler *s, const float *z, int n, float max, float temperature)
{
    for (int i = 0; i < n; i++)
        s->weights[i] = (z[i] - max) / temperature;
    s->kernels->exp(s->weights, n, s->weights);
    double sum = 0.0;
    for (int i = 0; i < n; i++)
        sum += (double)s->weights[i];
    return sum;
}

/* The best k with their weights, best first; returns how many, their sum in *sum. */
static int keep_top_k(struct sampler *s, const float *z, const struct sampling *p, double *sum)
{
    int k = p->top_k;
    select_best(z, s->vocab, k, s->heap);
    for (int i = 0; i < k; i++)
        s->adjusted[i] = s->heap[i].z; /* z may be this array: it was read */
    *sum = soften(s, s->adjusted, k, s->heap[0].z, p->temperature);
    for (int i = 0; i < k; i++)
        s->heap[i].z = s->weights[i];
    return k;
}

/* Candidates best first when only top-p cuts.  Each token below the bar has less than
 * (1 - top_p) / vocab of the whole, so all of them together are outside the nucleus. */
static int keep_likely(struct sampler *s, const float *z, const struct sampling *p, double *sum)
{
    *sum = soften(s, z, s->vocab, z[argmax(z, s->vocab)], p->temperature);
    double bar = (1.0 - (double)p->top_p) * *sum / s->vocab;
    int n = 0;
    for (int i = 0; i < s->vocab; i++)
        if ((double)s->weights[i] >= bar)
            s->heap[n++] = (struct candidate){.z = s->weights[i], .token = i};
    heapify(s->heap, n);
    sort_heap(s->heap, n);
    return n;
}

/* Every token in order of ids. */
static int keep_all(struct sampler *s, const float *z, const struct sampling *p, double *sum)
{
    *sum = soften(s, z, s->vocab, z[argmax(z, s->vocab)], p->temperature);
    for (int i = 0; i < s->vocab; i++)
        s->heap[i] = (struct candidate){.z = s->weights[i], .token = i};
    return s->vocab;
}

/* The shortest list of the best that holds at least top_p of the sum. */
static int cut_top_p(const struct candidate *c, int n, double top_p, double sum)
{
    double so_far = 0.0;
    for (int i = 0; i < n; i++) {
        so_far += (double)c[i].z;
        if (so_far >= top_p * sum)
            return i + 1;
    }
    return n;
}

/* In place; the largest weight is e^0 = 1. */
static int cut_min_p(struct candidate *c, int n, float min_p)
{
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (c[i].z >= min_p)
            c[kept++] = c[i];
    return kept;
}

static int32_t draw(const struct candidate *c, int n, double unit)
{
    double sum = 0.0, so_far = 0.0;
    for (int i = 0; i < n; i++)
        sum += (double)c[i].z;
    int last = 0;
    for (int i = 0; i < n; i++) {
        if (!(c[i].z > 0.0f))
            continue;
        so_far += (double)c[i].z;
        last = i;
        if (unit * sum < so_far)
            break;
    }
    return c[last].token;
}

static int32_t choose(struct sampler *s, const float *z, const struct sampling *p,
                      uint64_t position)
{
    bool has_top_k = p->top_k > 0 && p->top_k < s->vocab;
    bool has_top_p = p->top_p > 0.0f && p->top_p < 1.0f;
    double sum;
    int n;
    if (has_top_k)
        n = keep_top_k(s, z, p, &sum);
    else if (has_top_p)
        n = keep_likely(s, z, p, &sum);
    else
        n = keep_all(s, z, p, &sum);
    if (has_top_p)
        n = cut_top_p(s->heap, n, (double)p->top_p, sum);
    if (p->min_p > 0.0f)
        n = cut_min_p(s->heap, n, p->min_p < 1.0f ? p->min_p : 1.0f);
    struct rng r = rng_stream(p->seed, position);
    return draw(s->heap, n, rng_unit(&r));
}

/* ---- log-probabilities ---- */

/* Of the model's own distribution: log softmax, the sum in order of ids. */
static void report(struct sampler *s, const float *logits, const struct sampling *p,
                   struct sampled *out)
{
    float max = logits[argmax(logits, s->vocab)];
    float log_sum = math_log(soften(s, logits, s->vocab, max, 1.0f));
    out->logprob = logits[out->token] - max - log_sum;
    out->n_top = p->n_top < s->vocab ? p->n_top : s->vocab;
    if (out->n_top == 0)
        return;
    struct candidate best[SAMPLING_MAX_TOP];
    select_best(logits, s->vocab, out->n_top, best);
    for (int i = 0; i < out->n_top; i++) {
        out->top[i].token = best[i].token;
        out->top[i].logprob = best[i].z - max - log_sum;
    }
}

int sample_token(struct sampler *s, const float *logits, const struct sampling *p,
                 const struct sample_history *history, uint64_t position, struct sampled *out)
{
    if (!are_parameters_sound(s, p, history))
        return E_INVALID;
    if (!has_finite_logits(logits, s->vocab))
        return E_CORRUPT;
    *out = (struct sampled){0};
    const float *z = adjust(s, logits, p, history);
    if (p->temperature == 0.0f)
        out->token = argmax(z, s->vocab);
    else
        out->token = choose(s, z, p, position);
    if (p->logprobs)
        report(s, logits, p, out);
    if (p->logits_hash)
        out->logits_hash = sample_logits_hash(logits, s->vocab);
    return 0;
}
