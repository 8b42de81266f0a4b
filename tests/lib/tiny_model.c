/* tests/lib/tiny_model.c - see tests/lib/tiny_model.h. */
#include "tests/lib/tiny_model.h"

#include "tests/lib/test.h"
#include "tools/synth.h"

void tiny_model_write(const char *dir, int n_layers, uint64_t seed)
{
    struct synth_options o;
    struct err e = {0};
    synth_defaults(&o);
    o.config.vocab_size = 400;
    o.config.hidden_size = 72;
    o.config.n_layers = n_layers;
    o.config.n_heads = 6;
    o.config.n_kv_heads = 3;
    o.config.head_dim = 20;
    o.config.rotary_dim = 10;
    o.config.expert_size = 24;
    o.config.n_experts = 12;
    o.config.top_k = 3;
    o.seed = seed;
    o.dir = dir;
    o.is_forced = true;
    if (synth_write(&o, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

void tiny_model_open(struct tiny_model *m, const char *dir, const struct tiny_model_options *o)
{
    struct err e = {0};
    *m = (struct tiny_model){.has_two_lanes = o->has_two_lanes};
    if (format_set_parse(o->format ? o->format : "native", &m->formats, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    m->compute.kernels = o->kernels ? kernels_named(o->kernels) : kernels_best();
    CHECK(m->compute.kernels != NULL);
    m->compute.pool = pool_new(o->n_threads ? o->n_threads : 1, POOL_FREE);
    int rc = checkpoint_open(dir, &m->checkpoint, &e);
    if (rc == 0)
        rc = checkpoint_formats(m->checkpoint, &m->formats, &e);
    struct forward_options options = {.formats = m->formats,
                                      .max_rows = o->max_rows ? o->max_rows : TINY_MODEL_MAX_ROWS};
    if (rc == 0) {
        m->config = checkpoint_config(m->checkpoint);
        rc = forward_open(m->checkpoint, &options, m->compute, &m->forward, &e);
    }
    if (rc == 0)
        rc = moe_local_open(m->checkpoint, m->formats.experts, o->combine, options.max_rows,
                            m->compute, NULL, NULL, &m->moe, &e);
    if (rc == 0)
        rc = kv_open(m->config, m->formats.kv,
                     TINY_MODEL_PAGES * kv_page_bytes(m->config, m->formats.kv), &m->kv, &e);
    if (rc < 0)
        test_fail(__FILE__, __LINE__, "open %s: %s", dir, e.text);
}

void tiny_model_close(struct tiny_model *m)
{
    kv_close(&m->kv);
    moe_local_close(&m->moe);
    forward_close(&m->forward);
    pool_free(&m->compute.pool);
    checkpoint_close(&m->checkpoint);
}

void tiny_model_run(struct tiny_model *m, struct kv_seq *seq, const int32_t *tokens, int n_tokens,
                    int chunk_rows, float *logits)
{
    size_t vocab = (size_t)m->config->vocab_size;
    CHECK_INT(kv_reserve(m->kv, seq, seq->length + n_tokens), 0);
    for (int at = 0; at < n_tokens; at += chunk_rows) {
        int n = n_tokens - at < chunk_rows ? n_tokens - at : chunk_rows;
        struct step_seq s = {.kv = seq,
                             .position = seq->length,
                             .n_tokens = n,
                             .tokens = tokens + at,
                             .all_logits = true};
        struct step step = {.n_seqs = 1, .seqs = &s, .has_two_lanes = m->has_two_lanes};
        const float *got;
        int n_got;
        CHECK_INT(forward_step(m->forward, m->kv, &step, &moe_local_ops, m->moe, &got, &n_got), 0);
        CHECK_INT(n_got, n);
        memcpy(logits + (size_t)at * vocab, got, (size_t)n * vocab * sizeof(*logits));
    }
}
