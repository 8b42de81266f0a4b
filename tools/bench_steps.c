/* tools/bench_steps.c - `polymath bench decode` and `bench prefill`: tokens per second of a
 * whole model, and where the time goes. */
#include <stdio.h>
#include <string.h>

#include "tools/bench_model.h"
#include "tools/bench_profile.h"

enum { DEFAULT_PROMPT = 512, STEP_ROWS = 512 };

enum kind { DECODE, PREFILL };

static int run_once(struct bench_model *m, enum kind kind, int depth, struct bench_sample *out,
                    struct err *e)
{
    const struct bench_options *o = m->bench->options;
    if (kind == DECODE)
        return bench_model_decode(m, depth, o->tokens, out, e);
    return bench_model_prefill(m, depth, o->prompt ? o->prompt : DEFAULT_PROMPT, out, e);
}

static int warm_up(struct bench_model *m, enum kind kind, int depth, struct err *e)
{
    struct bench_sample unused;
    if (kind == DECODE)
        return bench_model_decode(m, depth, m->bench->options->tokens < 4 ? 1 : 4, &unused, e);
    return run_once(m, kind, depth, &unused, e);
}

/* One run with every loop timed: thread time per token in each part, and what no loop took. */
static int report_parts(struct bench_model *m, enum kind kind, int depth, struct err *e)
{
    struct bench *b = m->bench;
    struct bench_sample sample;
    bench_profile_set(true);
    int rc = run_once(m, kind, depth, &sample, e);
    bench_profile_set(false);
    if (rc < 0)
        return rc;
    double threads = pool_threads(b->compute.pool), all_ms = sample.seconds * 1e3;
    double tokens = sample.tokens_s * sample.seconds, left_ms = all_ms;
    for (enum bench_part part = 0; part <= BENCH_PARTS; part++) {
        char name[64];
        double ms = part < BENCH_PARTS ? (double)bench_profile_ns(part) / 1e6 / threads : left_ms;
        double per_token = ms / tokens, share = 100 * ms / all_ms;
        struct bench_metric metrics[2] = {
            {.key = "ms_per_token", .unit = "ms", .value = {per_token, per_token, per_token}},
            {.key = "percent", .unit = "%", .value = {share, share, share}}};
        left_ms -= ms;
        snprintf(name, sizeof(name), "  %s",
                 part < BENCH_PARTS ? bench_part_name(part) : "waiting and everything else");
        bench_report_row(&b->report, name, metrics, 2);
    }
    return 0;
}

static int measure(struct bench_model *m, enum kind kind, int depth, struct err *e)
{
    struct bench *b = m->bench;
    const struct bench_options *o = b->options;
    enum bench_arithmetic_kind arithmetic = bench_kind_of(m->formats.experts);
    struct bench_series tokens = {0}, bytes = {0}, ops = {0}, reads = {0}, peak = {0};
    int rc = warm_up(m, kind, depth, e);
    for (int i = 0; i < o->repeat && rc == 0; i++) {
        struct bench_sample s;
        bench_series_add(&reads, bench_probe_read_gb_s(b->probe));
        bench_series_add(&peak, bench_probe_gop_s(b->probe, arithmetic));
        rc = run_once(m, kind, depth, &s, e);
        bench_series_add(&tokens, s.tokens_s);
        bench_series_add(&bytes, s.gb_s);
        bench_series_add(&ops, s.gop_s);
    }
    if (rc < 0)
        return rc;
    char name[64];
    if (kind == DECODE)
        snprintf(name, sizeof(name), "decode %d x %d at %d", o->batch, o->tokens, depth);
    else
        snprintf(name, sizeof(name), "prefill %d at %d", o->prompt ? o->prompt : DEFAULT_PROMPT,
                 depth);
    struct bench_metric metrics[3] = {
        bench_metric_of("tokens_s", "tok/s", &tokens, NULL, NULL),
        bench_metric_of("gb_s", "GB/s", &bytes, "read", &reads),
        bench_metric_of("gop_s", "GOP/s", &ops, bench_probe_name(b->probe, arithmetic), &peak)};
    bench_report_row(&b->report, name, metrics, 3);
    return report_parts(m, kind, depth, e);
}

static int run_depths(struct bench_model *m, enum kind kind, struct err *e)
{
    const struct bench_options *o = m->bench->options;
    struct bench_list depths = o->depths;
    int prompt = o->prompt ? o->prompt : DEFAULT_PROMPT;
    int more = kind == DECODE ? o->tokens : prompt, rc = 0;
    if (depths.n == 0)
        depths = (struct bench_list){.n = 1};
    for (int i = 0; i < depths.n && rc == 0; i++) {
        rc = bench_model_fill(m, kind == DECODE ? o->batch : 1, depths.values[i], more + 4, e);
        if (rc == 0)
            rc = measure(m, kind, depths.values[i], e);
    }
    return rc;
}

static void report_costs(struct bench_model *m)
{
    const struct bench_costs *c = &m->costs;
    const struct model_config *config = m->config;
    double token_bytes =
        config->n_layers * (c->layer_bytes + config->top_k * c->expert_bytes) + c->head_bytes;
    double token_ops = config->n_layers * (c->layer_ops + config->top_k * c->expert_ops);
    bench_report_text(&m->bench->report, "model", m->title);
    bench_report_number(&m->bench->report, "weight MB per token", token_bytes / 1e6);
    bench_report_number(&m->bench->report, "GOP per prompt token", token_ops / 1e9);
}

static int run(const struct bench_options *o, enum kind kind, struct err *e)
{
    struct bench b;
    struct bench_model m;
    int prompt = o->prompt ? o->prompt : DEFAULT_PROMPT;
    int max_rows = kind == DECODE ? o->batch : prompt < STEP_ROWS ? prompt : STEP_ROWS;
    int rc =
        bench_open(&b, o, o->engine.kernels ? kernels_named(o->engine.kernels) : kernels_best(), e);
    if (rc < 0)
        return rc;
    rc = bench_model_open(&m, &b, max_rows, e);
    if (rc == 0) {
        report_costs(&m);
        rc = run_depths(&m, kind, e);
        bench_model_close(&m);
    }
    bench_close(&b);
    return rc;
}

int bench_decode(const struct bench_options *o, struct err *e)
{
    return run(o, DECODE, e);
}

int bench_prefill(const struct bench_options *o, struct err *e)
{
    return run(o, PREFILL, e);
}
