/* tools/local_engine.c - see tools/local_engine.h. */
#include "tools/local_engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "tools/progress.h"

enum { DEFAULT_CHUNK_ROWS = 256, MAX_CHUNK_ROWS = 8192, MAX_THREADS = 1024 };

/* ---- options ---- */

void local_engine_defaults(struct local_engine_options *o)
{
    *o = (struct local_engine_options){.chunk_rows = DEFAULT_CHUNK_ROWS};
    must_zero(format_set_parse("native", &o->formats, NULL));
}

int local_engine_integer(const char *option, const char *text, int64_t least, int64_t most,
                         int64_t *out, struct err *e)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || errno || value < least || value > most)
        return err_set(e, E_INVALID, "--%s %s: expected a whole number from %lld to %lld", option,
                       text, (long long)least, (long long)most);
    *out = value;
    return 0;
}

static int take_int(const char *option, const char *text, int most, int *out, struct err *e)
{
    int64_t value;
    int rc = local_engine_integer(option, text, 1, most, &value, e);
    if (rc == 0)
        *out = (int)value;
    return rc;
}

int local_engine_take(struct local_engine_options *o, int code, const char *value, struct err *e)
{
    switch (code) {
    case LOCAL_ENGINE_MODEL:
        o->model_dir = value;
        return 0;
    case LOCAL_ENGINE_KERNELS:
        o->kernels = value;
        if (!kernels_named(value))
            return err_set(e, E_INVALID, "--kernels %s: unknown, or not for this CPU", value);
        return 0;
    case LOCAL_ENGINE_FORMAT:
        return format_set_parse(value, &o->formats, e) < 0 ? err_prefix(e, "--format") : 0;
    case LOCAL_ENGINE_COMBINE:
        if (!combine_parse(value, &o->combine))
            return err_set(e, E_INVALID, "--combine %s: expected one of " COMBINE_CHOICES, value);
        return 0;
    case LOCAL_ENGINE_THREADS:
        return take_int("threads", value, MAX_THREADS, &o->n_threads, e);
    case LOCAL_ENGINE_CHUNK:
        return take_int("chunk", value, MAX_CHUNK_ROWS, &o->chunk_rows, e);
    case LOCAL_ENGINE_COPY:
        o->checkpoint.copies = true;
        return 0;
    case LOCAL_ENGINE_LOCK:
        o->checkpoint.locks = true;
        return 0;
    case LOCAL_ENGINE_VERIFY:
        o->checkpoint.verifies = true;
        return 0;
    default:
        return err_set(e, E_INVALID, "unknown option");
    }
}

int local_engine_ids(const char *text, struct tokens *out, struct err *e)
{
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        long value = strtol(at, &end, 10);
        bool is_digit = *at >= '0' && *at <= '9';
        if (!is_digit || errno || value > INT32_MAX || (*end && *end != ','))
            return err_set(e, E_INVALID, "--ids %s: expected token ids with commas between", text);
        tokens_push(out, (int32_t)value);
        at = end;
        if (!*at)
            return 0;
    }
}

/* ---- loading ---- */

static void on_progress(void *ud, int done, int total)
{
    struct progress *p = ud;
    (void)total;
    if (done > p->done)
        progress_add(p, done - p->done);
}

int local_engine_open(struct local_engine *g, const struct local_engine_options *o, struct err *e)
{
    *g = (struct local_engine){.chunk_rows = o->chunk_rows, .formats = o->formats};
    int rc = checkpoint_open_with(o->model_dir, &o->checkpoint, &g->checkpoint, e);
    if (rc == 0)
        rc = checkpoint_formats(g->checkpoint, &g->formats, e);
    if (rc == 0)
        g->config = checkpoint_config(g->checkpoint);
    return rc;
}

static int open_kv(struct local_engine *g, int64_t n_positions, struct err *e)
{
    if (n_positions > g->config->max_positions)
        return err_set(e, E_RANGE, "%lld positions are asked for, the model has %d",
                       (long long)n_positions, g->config->max_positions);
    size_t pages = ((size_t)n_positions + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS, bytes;
    if (!mem_mul(pages, kv_page_bytes(g->config, g->formats.kv), &bytes))
        return err_set(e, E_NOMEM, "a KV cache of %zu pages does not fit", pages);
    int rc = kv_open(g->config, g->formats.kv, bytes, &g->kv, e);
    if (rc == 0)
        rc = kv_reserve(g->kv, &g->seq, (int)n_positions);
    return rc < 0 && e->code == 0 ? err_set(e, rc, "the KV cache is too small") : rc;
}

int local_engine_load(struct local_engine *g, const struct local_engine_options *o,
                      int64_t n_positions, struct err *e)
{
    int n_threads = o->n_threads ? o->n_threads : thread_cpu_count();
    g->compute.kernels = o->kernels ? kernels_named(o->kernels) : kernels_best();
    g->compute.pool = pool_new(n_threads, POOL_PIN_CPUS);
    int rc = open_kv(g, n_positions, e);
    if (rc < 0)
        return rc;
    struct forward_options options = {.formats = g->formats, .max_rows = g->chunk_rows};
    rc = forward_open(g->checkpoint, &options, g->compute, &g->forward, e);
    if (rc < 0)
        return err_prefix(e, "load %s", o->model_dir);
    struct progress progress;
    int64_t n_experts = (int64_t)config_expert_layers(g->config) * g->config->n_experts;
    progress_begin(&progress, "load experts", n_experts, PROGRESS_ITEMS);
    rc = moe_local_open(g->checkpoint, g->formats.experts, o->combine, g->chunk_rows, g->compute,
                        on_progress, &progress, &g->moe, e);
    progress_end(&progress);
    return rc < 0 ? err_prefix(e, "load %s", o->model_dir) : 0;
}

void local_engine_close(struct local_engine *g)
{
    if (g->kv)
        kv_truncate(g->kv, &g->seq, 0);
    kv_close(&g->kv);
    moe_local_close(&g->moe);
    forward_close(&g->forward);
    pool_free(&g->compute.pool);
    checkpoint_close(&g->checkpoint);
    *g = (struct local_engine){0};
}

/* ---- steps ---- */

/* The engine reads no clock, so the experts are timed from outside. */
static int timed_scatter(void *ud, int lane, const struct moe_rows *rows)
{
    struct local_engine *g = ud;
    int64_t begun_ns = clock_now_ns();
    int rc = moe_local_ops.scatter(g->moe, lane, rows);
    g->experts_ns += clock_now_ns() - begun_ns;
    return rc;
}

static int timed_gather(void *ud, int lane, float *x)
{
    struct local_engine *g = ud;
    int64_t begun_ns = clock_now_ns();
    int rc = moe_local_ops.gather(g->moe, lane, x);
    g->experts_ns += clock_now_ns() - begun_ns;
    return rc;
}

static const struct moe_ops timed_ops = {.scatter = timed_scatter, .gather = timed_gather};

int local_engine_step(struct local_engine *g, const int32_t *tokens, int n_tokens,
                      enum local_engine_wants wants, const float **logits, struct err *e)
{
    struct step_seq seq = {.kv = &g->seq,
                           .position = g->seq.length,
                           .n_tokens = n_tokens,
                           .tokens = tokens,
                           .all_logits = wants == LOCAL_ENGINE_ALL_LOGITS,
                           .no_logits = wants == LOCAL_ENGINE_NO_LOGITS};
    struct step step = {.n_seqs = 1, .seqs = &seq};
    int n_logits;
    int rc = forward_step(g->forward, g->kv, &step, &timed_ops, g, logits, &n_logits);
    if (rc == E_INVALID)
        return err_set(e, rc, "a token is outside the vocabulary of %d", g->config->vocab_size);
    return rc < 0 ? err_set(e, rc, "step at position %d: %s", seq.position, err_text(rc)) : 0;
}
