/* tools/bench_against.c - `polymath bench against`: ours and a peer's, in turn.
 *
 * Both models stay in memory (ours in this process, the peer's in the page cache), so that a
 * round begins with neither cold; together they must fit. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "tools/bench_model.h"
#include "tools/bench_peer.h"

enum { DEFAULT_PROMPT = 512, STEP_ROWS = 512 };

struct contest {
    struct bench_model *model;
    struct bench_peer peer;
    int depth, prompt, tokens;
    struct bench_series our_decode, our_prefill, our_gb_s, our_gop_s;
    struct bench_series peer_decode, peer_prefill, peer_gop_s;
    struct bench_series reads, peak;
    char build[64];
};

/* The peers drop all rows but those with logits before the last layer's experts. */
static double peer_ops_per_token(const struct contest *c)
{
    const struct bench_costs *costs = &c->model->costs;
    double layers = c->model->config->n_layers;
    double experts = (layers - 1 + 1.0 / c->prompt) * c->model->config->top_k * costs->expert_ops;
    return layers * costs->layer_ops + experts + costs->head_ops / c->prompt;
}

static int run_ours(struct contest *c, bool is_warm_up, struct err *e)
{
    struct bench *b = c->model->bench;
    struct bench_sample decode, prefill;
    double reads = is_warm_up ? 0 : bench_probe_read_gb_s(b->probe), peak = 0;
    int rc = bench_model_decode(c->model, c->depth, is_warm_up ? 2 : c->tokens, &decode, e);
    if (rc == 0 && !is_warm_up)
        peak = bench_probe_gop_s(b->probe, bench_kind_of(c->model->formats.experts));
    if (rc == 0)
        rc = bench_model_prefill(c->model, c->depth, c->prompt, &prefill, e);
    if (rc < 0 || is_warm_up)
        return rc;
    bench_series_add(&c->reads, reads);
    bench_series_add(&c->peak, peak);
    bench_series_add(&c->our_decode, decode.tokens_s);
    bench_series_add(&c->our_gb_s, decode.gb_s);
    bench_series_add(&c->our_prefill, prefill.tokens_s);
    bench_series_add(&c->our_gop_s, prefill.gop_s);
    return 0;
}

static int run_peer(struct contest *c, struct err *e)
{
    struct bench_peer_sample sample;
    int rc = bench_peer_run(&c->peer, &sample, e);
    if (rc < 0)
        return rc;
    snprintf(c->build, sizeof(c->build), "%s", sample.build);
    bench_series_add(&c->peer_decode, sample.decode);
    bench_series_add(&c->peer_prefill, sample.prefill);
    bench_series_add(&c->peer_gop_s, sample.prefill * peer_ops_per_token(c) / 1e9);
    return 0;
}

static void report_ratio(struct bench_report *r, const char *name, const struct bench_series *ours,
                         const struct bench_series *theirs)
{
    struct bench_series ratio = bench_ratio(ours, theirs);
    struct bench_metric m = bench_metric_of("ratio", "x", &ratio, NULL, NULL);
    bench_report_row(r, name, &m, 1);
}

static void report(struct contest *c)
{
    struct bench *b = c->model->bench;
    const char *arithmetic = bench_probe_name(b->probe, bench_kind_of(c->model->formats.experts));
    struct bench_metric metrics[2];
    bench_report_text(&b->report, "peer build", c->build);
    metrics[0] = bench_metric_of("tokens_s", "tok/s", &c->our_decode, NULL, NULL);
    metrics[1] = bench_metric_of("gb_s", "GB/s", &c->our_gb_s, "read", &c->reads);
    bench_report_row(&b->report, "decode, ours", metrics, 2);
    metrics[0] = bench_metric_of("tokens_s", "tok/s", &c->peer_decode, NULL, NULL);
    bench_report_row(&b->report, "decode, peer", metrics, 1);
    report_ratio(&b->report, "decode, ours / peer", &c->our_decode, &c->peer_decode);
    metrics[0] = bench_metric_of("tokens_s", "tok/s", &c->our_prefill, NULL, NULL);
    metrics[1] = bench_metric_of("gop_s", "GOP/s", &c->our_gop_s, arithmetic, &c->peak);
    bench_report_row(&b->report, "prefill, ours", metrics, 2);
    if (bench_summarise(&c->peer_prefill).median <= 0) {
        bench_report_note(&b->report, "this peer cannot measure a prompt at a depth");
        return;
    }
    metrics[0] = bench_metric_of("tokens_s", "tok/s", &c->peer_prefill, NULL, NULL);
    metrics[1] = bench_metric_of("gop_s", "GOP/s", &c->peer_gop_s, arithmetic, &c->peak);
    bench_report_row(&b->report, "prefill, peer", metrics, 2);
    report_ratio(&b->report, "prefill tok/s, ours / peer", &c->our_prefill, &c->peer_prefill);
    report_ratio(&b->report, "prefill GOP/s, ours / peer", &c->our_gop_s, &c->peer_gop_s);
    bench_report_note(&b->report,
                      "GOP/s count what was computed.  In the last layer both engines send only\n"
                      "the rows with logits through the experts, so tok/s compare too.");
}

static int look_at_peer(struct contest *c, const struct bench_options *o, struct err *e)
{
    struct stat st;
    c->peer = (struct bench_peer){.program = o->llama_bench,
                                  .model = o->model_gguf,
                                  .more_args = o->peer_args,
                                  .threads = pool_threads(c->model->bench->compute.pool),
                                  .prompt = c->prompt,
                                  .tokens = c->tokens,
                                  .depth = c->depth};
    if (stat(o->model_gguf, &st) != 0)
        return err_set(e, E_NOT_FOUND, "--model-gguf %s: there is no such file", o->model_gguf);
    int rc = bench_peer_look(&c->peer, e);
    if (rc < 0)
        return err_prefix(e, "--llama-bench");
    if (c->depth > 0 && !c->peer.has_depth && !c->peer.has_gp)
        return err_set(e, E_PRECONDITION, "--depth: this llama-bench knows neither -d nor -gp");
    if ((size_t)st.st_size > mem_available_bytes())
        fprintf(stderr,
                "bench against: %.1f GB of model beside ours do not fit into the %.1f GB that are "
                "free: the peer will read from the disk\n",
                (double)st.st_size / 1e9, (double)mem_available_bytes() / 1e9);
    return 0;
}

static int run_rounds(struct contest *c, const struct bench_options *o, struct err *e)
{
    struct bench_report *r = &c->model->bench->report;
    int rc = bench_model_fill(c->model, 1, c->depth, c->prompt + c->tokens, e);
    if (rc == 0)
        rc = look_at_peer(c, o, e);
    if (rc == 0)
        rc = run_ours(c, true, e);
    if (rc < 0)
        return rc;
    bench_report_text(r, "model", c->model->title);
    bench_report_text(r, "peer", o->llama_bench);
    bench_report_text(r, "peer model", o->model_gguf);
    bench_report_text(r, "peer arguments", o->peer_args ? o->peer_args : "");
    bench_report_number(r, "depth", c->depth);
    for (int i = 0; i < o->repeat && rc == 0; i++) {
        rc = run_peer(c, e);
        if (rc == 0)
            rc = run_ours(c, false, e);
        if (rc == 0 && !o->as_json)
            fprintf(stderr, "round %d of %d: decode %.1f / %.1f tok/s, prefill %.0f / %.0f\n",
                    i + 1, o->repeat, c->our_decode.values[i], c->peer_decode.values[i],
                    c->our_prefill.values[i], c->peer_prefill.values[i]);
    }
    if (rc == 0)
        report(c);
    return rc;
}

int bench_against(const struct bench_options *o, struct err *e)
{
    struct bench b;
    struct bench_model m;
    struct contest c = {.model = &m,
                        .prompt = o->prompt ? o->prompt : DEFAULT_PROMPT,
                        .tokens = o->tokens,
                        .depth = o->depths.n > 0 ? o->depths.values[0] : 0};
    if (o->depths.n > 1)
        return err_set(e, E_INVALID, "--depth: bench against takes one");
    int rc =
        bench_open(&b, o, o->engine.kernels ? kernels_named(o->engine.kernels) : kernels_best(), e);
    if (rc < 0)
        return rc;
    rc = bench_model_open(&m, &b, c.prompt < STEP_ROWS ? c.prompt : STEP_ROWS, e);
    if (rc == 0) {
        rc = run_rounds(&c, o, e);
        bench_model_close(&m);
    }
    bench_close(&b);
    return rc;
}
