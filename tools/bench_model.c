/* tools/bench_model.c - see bench_model.h. */
#include "tools/bench_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "engine/matrix.h"
#include "tools/bench_fill.h"
#include "tools/bench_profile.h"
#include "tools/progress.h"
#include "tools/synth.h"

/* ---- costs ---- */

struct kind_costs {
    double bytes, ops;
};

static int add_matrix(struct kind_costs *k, enum weight_format format, int64_t rows, int64_t cols,
                      struct err *e)
{
    struct matrix m;
    size_t bytes;
    int rc = matrix_layout(&m, format, rows, cols, &bytes, e);
    if (rc == 0) {
        k->bytes += (double)bytes;
        k->ops += 2.0 * (double)rows * (double)cols;
    }
    return rc;
}

/* What each part's matrices are in memory; a --geometry names its formats. */
static int held_formats(struct bench_model *m, struct format_set *held, struct err *e)
{
    struct layer_view layer;
    struct model_view model;
    struct expert_view expert;
    *held = m->formats;
    int rc = weights_layer(m->checkpoint, 0, &layer, e);
    if (rc == 0)
        rc = weights_model(m->checkpoint, &model, e);
    if (rc < 0)
        return rc;
    held->attention = matrix_format(&layer.wq, held->attention);
    held->head = matrix_format(&model.lm_head, held->head);
    if (held->experts != FORMAT_NATIVE)
        return 0;
    rc = weights_expert(m->checkpoint, 0, 0, &expert, e);
    if (rc == 0)
        held->experts = matrix_format(&expert.gate, held->experts);
    return rc;
}

static int find_costs(struct bench_model *m, struct format_set *held, struct err *e)
{
    const struct model_config *c = m->config;
    int64_t hidden = c->hidden_size, q = (int64_t)c->n_heads * c->head_dim;
    int64_t kv = (int64_t)c->n_kv_heads * c->head_dim;
    struct kind_costs expert = {0}, layer = {0}, head = {0};
    int rc = held_formats(m, held, e);
    for (int i = 0; i < 2 && rc == 0; i++)
        rc = add_matrix(&expert, held->experts, c->expert_size, hidden, e);
    if (rc == 0)
        rc = add_matrix(&expert, held->experts, hidden, c->expert_size, e);
    if (rc == 0)
        rc = add_matrix(&layer, held->attention, q + 2 * kv, hidden, e);
    if (rc == 0)
        rc = add_matrix(&layer, held->attention, hidden, q, e);
    if (rc == 0)
        rc = add_matrix(&layer, FORMAT_F32, c->n_experts, hidden, e);
    if (rc == 0)
        rc = add_matrix(&head, held->head, c->vocab_size, hidden, e);
    m->costs = (struct bench_costs){.expert_bytes = expert.bytes,
                                    .layer_bytes = layer.bytes,
                                    .head_bytes = head.bytes,
                                    .position_bytes =
                                        (double)kv_page_bytes(c, m->formats.kv) / KV_PAGE_TOKENS,
                                    .expert_ops = expert.ops,
                                    .layer_ops = layer.ops,
                                    .head_ops = head.ops};
    return rc;
}

/* ---- loading ---- */

static void on_progress(void *ud, int done, int total)
{
    struct progress *p = ud;
    (void)total;
    if (done > p->done)
        progress_add(p, done - p->done);
}

static int load_experts(struct bench_model *m, struct err *e)
{
    struct progress progress;
    progress_begin(&progress, "load experts",
                   (int64_t)config_expert_layers(m->config) * m->config->n_experts, PROGRESS_ITEMS);
    int rc = moe_local_open(m->checkpoint, m->formats.experts, COMBINE_FIXED, m->max_rows,
                            m->compute, on_progress, &progress, &m->moe, e);
    progress_end(&progress);
    return rc;
}

static int open_forward(struct bench_model *m, const char *dir, struct err *e)
{
    struct forward_options o = {.formats = m->formats, .max_rows = m->max_rows};
    int rc = checkpoint_open_with(dir, &m->bench->options->engine.checkpoint, &m->checkpoint, e);
    if (rc == 0)
        rc = checkpoint_formats(m->checkpoint, &o.formats, e);
    if (rc < 0)
        return rc;
    m->formats = o.formats;
    m->config = checkpoint_config(m->checkpoint);
    m->compute.kernels = bench_profile_wrap(m->bench->compute.kernels, m->config);
    return forward_open(m->checkpoint, &o, m->compute, &m->forward, e);
}

static void remove_directory(const char *dir)
{
    static const char *const names[] = {"config.json", "generation_config.json",
                                        "model.safetensors"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *path = mem_format("%s/%s", dir, names[i]);
        unlink(path);
        mem_free(path);
    }
    rmdir(dir);
}

/* Everything but the experts is a few per cent: a synthetic checkpoint without them, made in
 * a folder that is gone again before anything is measured. */
static int open_geometry(struct bench_model *m, const struct bench_options *o, struct err *e)
{
    char dir[] = P_tmpdir "/polymath-bench-XXXXXX";
    struct synth_options s;
    synth_defaults(&s);
    int rc = synth_preset(o->geometry, &s.config, e);
    if (rc < 0)
        return err_prefix(e, "--geometry");
    if (o->vocab)
        s.config.vocab_size = o->vocab;
    s.has_tokenizer = false;
    s.contents = SYNTH_NO_EXPERTS;
    s.shard_bytes = INT64_MAX;
    s.is_forced = true;
    if (!mkdtemp(dir))
        return err_set(e, E_IO, "%s: cannot make a temporary folder", dir);
    s.dir = dir;
    rc = synth_write(&s, e);
    if (rc == 0)
        rc = open_forward(m, dir, e);
    remove_directory(dir);
    if (rc == 0)
        rc = bench_moe_open(m->config, m->formats.experts, m->max_rows, m->compute, &m->random_moe,
                            e);
    return rc;
}

int bench_model_open(struct bench_model *m, struct bench *b, int max_rows, struct err *e)
{
    const struct bench_options *o = b->options;
    char text[FORMAT_SET_BYTES];
    struct format_set held;
    *m = (struct bench_model){.bench = b, .compute = b->compute, .max_rows = max_rows};
    m->random = rng_seed(1);
    const char *formats = o->formats ? o->formats : o->geometry ? "q8" : "native";
    int rc = format_set_parse(formats, &m->formats, e);
    if (rc < 0)
        return err_prefix(e, "--format");
    if (o->geometry && (m->formats.experts == FORMAT_NATIVE))
        return err_set(e, E_INVALID, "--format %s: --geometry needs a format for the experts",
                       formats);
    rc = o->geometry ? open_geometry(m, o, e) : open_forward(m, o->engine.model_dir, e);
    if (rc == 0 && !o->geometry)
        rc = load_experts(m, e);
    if (rc == 0)
        rc = find_costs(m, &held, e);
    if (rc < 0) {
        bench_model_close(m);
        return rc;
    }
    const char *name = o->geometry ? o->geometry : o->engine.model_dir;
    snprintf(m->title, sizeof(m->title), "%.40s %s", name, format_set_text(&held, text));
    return 0;
}

static void drop_seqs(struct bench_model *m)
{
    for (int i = 0; i < m->n_seqs; i++)
        kv_truncate(m->kv, &m->seqs[i], 0);
    kv_close(&m->kv);
    mem_free(m->seqs);
    m->seqs = NULL;
    m->n_seqs = 0;
}

void bench_model_close(struct bench_model *m)
{
    drop_seqs(m);
    moe_local_close(&m->moe);
    bench_moe_close(&m->random_moe);
    forward_close(&m->forward);
    checkpoint_close(&m->checkpoint);
}

/* ---- sequences ---- */

int bench_model_fill(struct bench_model *m, int n_seqs, int depth, int n_more, struct err *e)
{
    drop_seqs(m);
    int64_t positions = (int64_t)depth + n_more;
    size_t pages = (size_t)(positions / KV_PAGE_TOKENS + 1), bytes;
    if (positions > m->config->max_positions)
        return err_set(e, E_RANGE, "%lld positions are asked for, the model has %d",
                       (long long)positions, m->config->max_positions);
    if (!mem_mul(pages * (size_t)n_seqs, kv_page_bytes(m->config, m->formats.kv), &bytes))
        return err_set(e, E_NOMEM, "the cache does not fit");
    int rc = kv_open(m->config, m->formats.kv, bytes, &m->kv, e);
    if (rc < 0)
        return rc;
    m->seqs = mem_array((size_t)n_seqs, sizeof(*m->seqs));
    m->n_seqs = n_seqs;
    for (int i = 0; i < n_seqs; i++) {
        if (kv_reserve(m->kv, &m->seqs[i], (int)positions) < 0)
            return err_set(e, E_NOMEM, "the cache has no room for %lld positions",
                           (long long)positions);
        bench_fill_cache(m->config, m->kv, &m->seqs[i], depth, m->compute.pool);
    }
    return 0;
}

void bench_model_rewind(struct bench_model *m, int depth)
{
    for (int i = 0; i < m->n_seqs; i++)
        m->seqs[i].length = depth;
}

/* ---- steps ---- */

static void count_experts(struct bench_model *m, const struct routing *r)
{
    uint64_t seen[MODEL_MAX_EXPERTS / 64] = {0};
    m->routes += (int64_t)r->n_rows * r->top_k;
    for (int i = 0; i < r->n_rows * r->top_k; i++) {
        uint64_t bit = 1ULL << (r->experts[i] % 64);
        m->experts_touched += !(seen[r->experts[i] / 64] & bit);
        seen[r->experts[i] / 64] |= bit;
    }
}

static int count_and_scatter(void *ud, int lane, const struct moe_rows *rows)
{
    struct bench_model *m = ud;
    count_experts(m, rows->routing);
    return m->moe ? moe_local_ops.scatter(m->moe, lane, rows)
                  : bench_moe_ops.scatter(m->random_moe, lane, rows);
}

static int pass_gather(void *ud, int lane, float *x)
{
    struct bench_model *m = ud;
    bench_profile_experts(true);
    int rc = m->moe ? moe_local_ops.gather(m->moe, lane, x)
                    : bench_moe_ops.gather(m->random_moe, lane, x);
    bench_profile_experts(false);
    return rc;
}

static const struct moe_ops counting_ops = {.scatter = count_and_scatter, .gather = pass_gather};

int bench_model_step(struct bench_model *m, int n_tokens, bool wants_logits, struct err *e)
{
    size_t rows = (size_t)n_tokens * (size_t)m->n_seqs;
    must(rows <= (size_t)m->max_rows);
    int32_t *tokens = mem_array(rows, sizeof(*tokens));
    struct step_seq *seqs = mem_array((size_t)m->n_seqs, sizeof(*seqs));
    for (size_t i = 0; i < rows; i++)
        tokens[i] = (int32_t)rng_below(&m->random, (uint64_t)m->config->vocab_size);
    for (int i = 0; i < m->n_seqs; i++)
        seqs[i] = (struct step_seq){.kv = &m->seqs[i],
                                    .position = m->seqs[i].length,
                                    .n_tokens = n_tokens,
                                    .tokens = tokens + (size_t)i * (size_t)n_tokens,
                                    .no_logits = !wants_logits};
    struct step step = {.n_seqs = m->n_seqs, .seqs = seqs};
    const float *logits;
    int n_logits;
    int rc = forward_step(m->forward, m->kv, &step, &counting_ops, m, &logits, &n_logits);
    mem_free(tokens);
    mem_free(seqs);
    return rc < 0 ? err_set(e, rc, "step: %s", err_text(rc)) : 0;
}

/* What `n_steps` steps of `rows` rows touched, from what was counted. */
static struct bench_sample sample_of(const struct bench_model *m, int64_t rows, int n_steps,
                                     int64_t n_logits, double cache_bytes, int64_t spent_ns)
{
    const struct bench_costs *c = &m->costs;
    double layers = m->config->n_layers;
    double bytes = (double)m->experts_touched * c->expert_bytes +
                   n_steps * layers * c->layer_bytes + cache_bytes +
                   (n_logits > 0 ? n_steps * c->head_bytes : 0);
    double ops = (double)rows * layers * c->layer_ops + (double)m->routes * c->expert_ops +
                 (double)n_logits * c->head_ops;
    return (struct bench_sample){.tokens_s = (double)rows / (double)spent_ns * CLOCK_S,
                                 .gb_s = bytes / (double)spent_ns,
                                 .gop_s = ops / (double)spent_ns,
                                 .seconds = (double)spent_ns / CLOCK_S};
}

int bench_model_decode(struct bench_model *m, int depth, int n_steps, struct bench_sample *out,
                       struct err *e)
{
    int rc = 0;
    bench_model_rewind(m, depth);
    m->experts_touched = m->routes = 0;
    int64_t begun_ns = clock_now_ns();
    for (int i = 0; i < n_steps && rc == 0; i++)
        rc = bench_model_step(m, 1, true, e);
    int64_t spent_ns = clock_now_ns() - begun_ns, rows = (int64_t)n_steps * m->n_seqs;
    double positions = (double)rows * ((double)depth + (n_steps + 1) / 2.0);
    *out = sample_of(m, rows, n_steps, rows, positions * m->costs.position_bytes, spent_ns);
    return rc;
}

int bench_model_prefill(struct bench_model *m, int depth, int n_tokens, struct bench_sample *out,
                        struct err *e)
{
    int rc = 0, n_steps = 0;
    bench_model_rewind(m, depth);
    m->experts_touched = m->routes = 0;
    int64_t begun_ns = clock_now_ns();
    for (int done = 0; done < n_tokens && rc == 0; n_steps++) {
        int n = n_tokens - done < m->max_rows ? n_tokens - done : m->max_rows;
        done += n;
        rc = bench_model_step(m, n, done == n_tokens, e);
    }
    *out = sample_of(m, n_tokens, n_steps, 1, 0, clock_now_ns() - begun_ns);
    return rc;
}
