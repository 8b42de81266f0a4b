/* tests/reference/test_reference.c - against the reference implementation: every case that
 * make_reference.py left in tests/reference/cases.
 *
 * The weights are the same to the bit and both sides compute in f32, so what differs is the
 * order of additions: logits must agree to 1e-4 of their standard deviation (numerics.md 7),
 * routed sets and the greedy continuation exactly (the script chose decisive ones). */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "model/safetensors.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"

#define TOLERANCE 1e-4 /* of the standard deviation of what is compared */

enum { PATH_BYTES = 512 };

struct reference {
    char dir[PATH_BYTES];
    const char *name;
    struct safetensors *file;
    struct tensor prompt, hidden, routed, logits, continuation, continuation_logits;
    bool has_selected;
    struct tensor selected; /* I32 [sparse layers, T, KV heads, blocks], -1 where there are fewer */
};

/* What is computed, compared on the way by the probe. */
struct comparison {
    const struct reference *ref;
    const struct model_config *config;
    int n_prompt;
    double worst_hidden; /* in standard deviations */
    int n_chosen;        /* rows and KV heads that saw less than everything */
};

static struct tensor tensor_named(const struct reference *r, const char *name, enum dtype dtype)
{
    struct tensor t;
    if (!safetensors_find(r->file, name, &t))
        test_fail(__FILE__, __LINE__, "%s: no tensor '%s'", r->dir, name);
    CHECK_INT(t.dtype, dtype);
    return t;
}

static void open_reference(struct reference *r, const char *name)
{
    char path[PATH_BYTES + 32];
    struct err e = {0};
    r->name = name;
    snprintf(r->dir, sizeof(r->dir), "%s/tests/reference/cases/%s", test_source_dir(), name);
    snprintf(path, sizeof(path), "%s/reference.safetensors", r->dir);
    if (safetensors_open(path, &r->file, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    r->prompt = tensor_named(r, "prompt", DTYPE_I32);
    r->hidden = tensor_named(r, "hidden", DTYPE_F32);
    r->routed = tensor_named(r, "routed", DTYPE_I32);
    r->logits = tensor_named(r, "logits", DTYPE_F32);
    r->continuation = tensor_named(r, "continuation", DTYPE_I32);
    r->continuation_logits = tensor_named(r, "continuation_logits", DTYPE_F32);
    r->has_selected = safetensors_find(r->file, "selected", &r->selected);
}

/* Elements first .. first+n-1 of a tensor of 4-byte elements, copied: data may be misaligned. */
static void *slice(const struct tensor *t, size_t first, size_t n)
{
    CHECK((first + n) * 4 <= t->size_bytes);
    void *copy = mem_alloc(n * 4);
    memcpy(copy, (const char *)t->data + first * 4, n * 4);
    return copy;
}

/* A NaN stays, unlike with fmax(). */
static double worse(double worst, double d)
{
    return d > worst || isnan(d) ? d : worst;
}

/* The largest difference in standard deviations of what is wanted. */
static double distance(const float *got, const float *want, size_t n)
{
    double sum = 0, squares = 0, worst = 0;
    for (size_t i = 0; i < n; i++) {
        worst = worse(worst, fabs((double)got[i] - (double)want[i]));
        sum += (double)want[i];
        squares += (double)want[i] * (double)want[i];
    }
    double mean = sum / (double)n;
    return worst / sqrt(squares / (double)n - mean * mean);
}

static int by_value(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

static void compare_routing(const struct comparison *c, int layer, const struct routing *routing)
{
    size_t k = (size_t)c->config->top_k, n = (size_t)c->n_prompt * k;
    int32_t *want = slice(&c->ref->routed, (size_t)(layer - c->config->n_dense_layers) * n, n);
    for (size_t row = 0; row < (size_t)c->n_prompt; row++) {
        int32_t got[MODEL_MAX_TOP_K];
        for (size_t i = 0; i < k; i++)
            got[i] = routing->experts[row * k + i];
        qsort(got, k, sizeof(got[0]), by_value);
        CHECK_BYTES(got, want + row * k, k * sizeof(got[0]));
    }
    mem_free(want);
}

static void on_probe(void *ud, int layer, const float *x, int n_rows, const struct routing *r)
{
    struct comparison *c = ud;
    if (n_rows != c->n_prompt)
        return;
    size_t n = (size_t)n_rows * (size_t)c->config->hidden_size;
    float *want = slice(&c->ref->hidden, (size_t)(layer + 1) * n, n);
    c->worst_hidden = worse(c->worst_hidden, distance(x, want, n));
    mem_free(want);
    if (r)
        compare_routing(c, layer, r);
}

/* What a row sees: equal to the block. */
static void on_blocks(void *ud, int layer, int row, int kv_head, const int32_t *blocks)
{
    struct comparison *c = ud;
    if (c->n_prompt < 0)
        return;
    const struct sparse_config *s = &c->config->sparse;
    CHECK(c->ref->has_selected && row < c->n_prompt);
    size_t at = ((size_t)(layer - s->n_full_layers) * (size_t)c->n_prompt + (size_t)row) *
                    (size_t)s->n_heads +
                (size_t)kv_head;
    int32_t *want = slice(&c->ref->selected, at * (size_t)s->top_k, (size_t)s->top_k);
    int own = row / s->block_size;
    for (int i = 0; i < s->top_k; i++)
        CHECK_INT(blocks ? blocks[i] : i <= own ? i : -1, want[i]);
    c->n_chosen += blocks != NULL;
    mem_free(want);
}

static const float *run_step(struct tiny_model *m, struct kv_seq *seq, const int32_t *tokens,
                             int n_tokens, struct comparison *c)
{
    struct step_seq part = {.kv = seq,
                            .position = seq->length,
                            .n_tokens = n_tokens,
                            .tokens = tokens,
                            .all_logits = true};
    struct step step = {
        .n_seqs = 1, .seqs = &part, .probe = on_probe, .probe_blocks = on_blocks, .probe_ud = c};
    const float *logits;
    int n;
    CHECK_INT(forward_step(m->forward, m->kv, &step, &moe_local_ops, m->moe, &logits, &n), 0);
    CHECK_INT(n, n_tokens);
    return logits;
}

static int32_t argmax(const float *z, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (z[i] > z[best])
            best = i;
    return (int32_t)best;
}

/* Greedy from the prompt's last logits on; returns the worst distance of a step's logits. */
static double follow_continuation(struct tiny_model *m, struct kv_seq *seq, const float *logits,
                                  const struct reference *ref)
{
    size_t vocab = (size_t)m->config->vocab_size, n = (size_t)ref->continuation.dims[0];
    int32_t *tokens = slice(&ref->continuation, 0, n);
    float *want = slice(&ref->continuation_logits, 0, n * vocab);
    double worst = 0;
    struct comparison none = {.n_prompt = -1};
    CHECK_INT(kv_reserve(m->kv, seq, seq->length + (int)n), 0);
    for (size_t i = 0; i < n; i++) {
        worst = worse(worst, distance(logits, want + i * vocab, vocab));
        CHECK_INT(argmax(logits, vocab), tokens[i]);
        logits = run_step(m, seq, &tokens[i], 1, &none);
    }
    mem_free(tokens);
    mem_free(want);
    return worst;
}

static void compare(const struct reference *ref, const struct tiny_model_options *o)
{
    struct tiny_model m;
    struct kv_seq seq = {0};
    struct tiny_model_options options = *o;
    size_t n_prompt = (size_t)ref->prompt.dims[0];
    options.max_rows = (int)n_prompt;
    tiny_model_open(&m, ref->dir, &options);
    size_t vocab = (size_t)m.config->vocab_size;
    struct comparison c = {.ref = ref, .config = m.config, .n_prompt = (int)n_prompt};
    int32_t *prompt = slice(&ref->prompt, 0, n_prompt);
    float *want = slice(&ref->logits, 0, n_prompt * vocab);
    CHECK_INT(kv_reserve(m.kv, &seq, (int)n_prompt), 0);
    const float *got = run_step(&m, &seq, prompt, (int)n_prompt, &c);
    double worst = distance(got, want, n_prompt * vocab);
    double later = follow_continuation(&m, &seq, got + (n_prompt - 1) * vocab, ref);
    test_say("%s, %s, combine %s: of the standard deviation, logits differ by %.1e, the "
             "continuation's by %.1e, hidden states by %.1e",
             ref->name, o->format, combine_name(o->combine), worst, later, c.worst_hidden);
    CHECK(!ref->has_selected || c.n_chosen > 0);
    CHECK(worst <= TOLERANCE);
    CHECK(later <= TOLERANCE);
    CHECK(c.worst_hidden <= TOLERANCE);
    mem_free(prompt);
    mem_free(want);
    kv_truncate(m.kv, &seq, 0);
    tiny_model_close(&m);
}

static int is_case(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

TEST_WITHIN(reference_logits_routing_and_greedy_tokens_agree, 120)
{
    struct dirent **names;
    char dir[PATH_BYTES];
    snprintf(dir, sizeof(dir), "%s/tests/reference/cases", test_source_dir());
    int n_cases = scandir(dir, &names, is_case, alphasort);
    /* Without cases nothing would have been compared. */
    CHECK(n_cases >= 1);
    for (int i = 0; i < n_cases; i++) {
        struct reference ref = {.name = NULL};
        open_reference(&ref, names[i]->d_name);
        /* The reference keeps its cache in f32. */
        const char *native = "native,kv=f32";
        compare(&ref, &(struct tiny_model_options){.format = native, .n_threads = 2});
        compare(&ref, &(struct tiny_model_options){.format = "f32"});
        compare(&ref, &(struct tiny_model_options){.format = native, .combine = COMBINE_EXPERT});
        compare(&ref, &(struct tiny_model_options){.format = native, .kernels = "portable"});
        safetensors_close(&ref.file);
        free(names[i]);
    }
    free(names);
}
