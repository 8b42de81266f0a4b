/* tools/quality_run.c - see quality.h: the two passes.
 *
 * Both passes cut the sequences into the same steps, so what they meet comes in the same
 * order: for every layer of a step its rows and their routing, then the step's logits. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "tools/progress.h"
#include "tools/quality.h"

struct pass {
    struct local_engine engine;
    FILE *file;                  /* the reference's rows */
    struct quality_stats *stats; /* NULL: this is the reference's pass */
    void *room;                  /* to read back into */
    size_t room_bytes;
    bool has_failed; /* the file */
};

/* ---- rows to and from the file ---- */

static void save(struct pass *p, const void *data, size_t bytes)
{
    if (fwrite(data, 1, bytes, p->file) != bytes)
        p->has_failed = true;
}

/* Borrowed until the next call; NULL if the file ends early. */
static const void *load(struct pass *p, size_t bytes)
{
    if (bytes > p->room_bytes) {
        p->room = mem_resize(p->room, bytes);
        p->room_bytes = bytes;
    }
    if (fread(p->room, 1, bytes, p->file) == bytes)
        return p->room;
    p->has_failed = true;
    return NULL;
}

static void take_stream(struct pass *p, int layer, const float *x, size_t n)
{
    if (!p->stats) {
        save(p, x, n * sizeof(*x));
        return;
    }
    const float *reference = load(p, n * sizeof(*x));
    if (reference)
        quality_add_stream(p->stats, layer, reference, x, n);
}

static void take_routing(struct pass *p, int layer, const struct routing *r)
{
    size_t top_k = (size_t)r->top_k, n = (size_t)r->n_rows * top_k;
    if (!p->stats) {
        save(p, r->experts, n * sizeof(*r->experts));
        return;
    }
    const uint16_t *reference = load(p, n * sizeof(*r->experts));
    for (size_t row = 0; reference && row < (size_t)r->n_rows; row++)
        quality_add_routing(p->stats, layer, reference + row * top_k, r->experts + row * top_k,
                            r->top_k);
}

static void probe(void *ud, int layer, const float *x, int n_rows, const struct routing *r)
{
    struct pass *p = ud;
    if (layer < 0 || p->has_failed)
        return;
    take_stream(p, layer, x, (size_t)n_rows * (size_t)p->engine.config->hidden_size);
    if (r)
        take_routing(p, layer, r);
}

static void take_logits(struct pass *p, const float *logits, int n_rows)
{
    size_t vocab = (size_t)p->engine.config->vocab_size;
    for (int row = 0; row < n_rows && !p->has_failed; row++) {
        const float *one = logits + (size_t)row * vocab;
        if (!p->stats) {
            save(p, one, vocab * sizeof(*one));
            continue;
        }
        const float *reference = load(p, vocab * sizeof(*one));
        if (reference)
            quality_add_logits(p->stats, reference, one, (int)vocab);
    }
}

/* ---- steps ---- */

static int run_step(struct pass *p, const int32_t *ids, int n, struct err *e)
{
    struct local_engine *g = &p->engine;
    struct step_seq seq = {
        .kv = &g->seq, .position = g->seq.length, .n_tokens = n, .tokens = ids, .all_logits = true};
    struct step step = {.n_seqs = 1, .seqs = &seq, .probe = probe, .probe_ud = p};
    const float *logits;
    int n_logits;
    int rc = forward_step(g->forward, g->kv, &step, &moe_local_ops, g->moe, &logits, &n_logits);
    if (rc == E_INVALID)
        return err_set(e, rc, "an id is outside the vocabulary of %d", g->config->vocab_size);
    if (rc < 0)
        return err_set(e, rc, "step: %s", err_text(rc));
    take_logits(p, logits, n_logits);
    return p->has_failed ? err_set_errno(e, errno ? errno : EIO, "the temporary file") : 0;
}

static int run_sequences(struct pass *p, const struct quality_ids *q, struct err *e)
{
    struct progress progress;
    int rc = 0;
    progress_begin(&progress, p->stats ? "tested format" : "reference", (int64_t)q->ids.len,
                   PROGRESS_ITEMS);
    for (size_t i = 0; i < q->n && rc == 0; i++) {
        size_t at = i ? q->ends[i - 1] : 0;
        p->engine.seq.length = 0; /* its pages stay */
        while (at < q->ends[i] && rc == 0) {
            size_t left = q->ends[i] - at, chunk = (size_t)p->engine.chunk_rows;
            size_t n = left < chunk ? left : chunk;
            rc = run_step(p, q->ids.ids + at, (int)n, e);
            at += n;
            progress_add(&progress, (int64_t)n);
        }
    }
    progress_end(&progress);
    return rc;
}

static size_t longest(const struct quality_ids *q)
{
    size_t most = 0;
    for (size_t i = 0; i < q->n; i++) {
        size_t len = q->ends[i] - (i ? q->ends[i - 1] : 0);
        most = len > most ? len : most;
    }
    return most;
}

static int run_pass(struct pass *p, const struct local_engine_options *o,
                    const struct format_set *formats, const struct quality_ids *q, struct err *e)
{
    struct local_engine_options options = *o;
    char text[FORMAT_SET_BYTES];
    options.formats = *formats;
    int rc = local_engine_open(&p->engine, &options, e);
    if (rc == 0)
        rc = local_engine_load(&p->engine, &options, (int64_t)longest(q), e);
    if (rc == 0)
        rc = run_sequences(p, q, e);
    local_engine_close(&p->engine);
    mem_free(p->room);
    return rc < 0 ? err_prefix(e, "%s", format_set_text(formats, text)) : 0;
}

static int count_layers(const char *model_dir, int *n_layers, struct err *e)
{
    struct model_config config;
    int rc = config_read(model_dir, &config, e);
    if (rc == 0)
        *n_layers = config.n_layers;
    return rc;
}

int quality_compare(const struct local_engine_options *o, const struct format_set *reference,
                    const struct format_set *tested, const struct quality_ids *ids,
                    struct quality_stats *out, struct err *e)
{
    int n_layers = 0;
    FILE *file = NULL;
    *out = (struct quality_stats){0};
    int rc = count_layers(o->model_dir, &n_layers, e);
    if (rc < 0)
        return rc;
    file = tmpfile();
    if (!file)
        return err_set_errno(e, errno, "a temporary file for the reference's rows");
    quality_stats_init(out, n_layers);
    struct pass first = {.file = file}, second = {.file = file, .stats = out};
    rc = run_pass(&first, o, reference, ids, e);
    rewind(file);
    if (rc == 0)
        rc = run_pass(&second, o, tested, ids, e);
    fclose(file);
    return rc;
}
