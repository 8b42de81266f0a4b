/* tools/bench_attention.c - `polymath bench attention`: one layer's attention over a full
 * cache, one token and a prefill step.
 *
 * The layer has M2's or M3's heads but a hidden size of 16, so that its projections cost nothing
 * and what remains is norms, rotation, appending, the scores, the sum over values and the merge;
 * of sparse attention also the scoring and the choice of blocks.  Both kinds of M3 run in turn
 * over one cache, so that their ratio means something on a busy machine too.
 *
 * A row's hidden vector is nearly one of 16 directions, another one in every pass, for each of which
 * the index heads look for something (bench_fill.h). */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/attention.h"
#include "engine/forward.h"
#include "tools/bench.h"
#include "tools/bench_fill.h"
#include "tools/bench_plot.h"
#include "tools/bench_random.h"

enum { HIDDEN = 16, DEFAULT_PROMPT = 512, N_MATRICES = 6, INDEX_Q = 4, INDEX_K = 5 };

#define ONE_LAYER \
    .vocab_size = 16, .hidden_size = HIDDEN, .n_layers = 1, .head_dim = 128, .rotary_dim = 64, \
    .expert_size = 16, .n_experts = 1, .top_k = 1, .max_positions = 1 << 21, .rope_theta = 5e6, \
    .rms_norm_eps = 1e-6f
static const struct model_config m2_layer = {ONE_LAYER, .n_heads = 48, .n_kv_heads = 8};
static const struct model_config m3_layer = {
    ONE_LAYER,
    .n_heads = 64,
    .n_kv_heads = 4,
    .has_head_norms = true,
    .sparse = {.block_size = 128, .top_k = 16, .n_heads = 4, .head_dim = 128},
};

enum kind { KIND_FULL, KIND_MSA, KIND_SCAN, KIND_WINDOW, N_KINDS };
static const char *const kind_names[N_KINDS] = {"full", "msa", "scan", "window"};
static const enum msa_choice choices[N_KINDS] = {
    [KIND_MSA] = MSA_BEST, [KIND_SCAN] = MSA_SCAN, [KIND_WINDOW] = MSA_LAST};

struct attention_bench {
    const struct model_config *model;
    bool wanted[N_KINDS];
    struct attention *attention[N_KINDS];
    struct attention_weights weights[N_KINDS];
    struct bench_matrix matrices[N_MATRICES];
    float *ones; /* every norm's weights */
    struct kv *kv;
    struct kv_seq seq;
    float *x;
    int rows, pass;
    enum kind kind; /* that is measured */
    struct msa_counts counts;
    struct bench_plot *plot;
};

static void body(void *ud)
{
    struct attention_bench *a = ud;
    struct step_seq q = {.kv = &a->seq, .position = a->seq.length, .n_tokens = a->rows};
    for (int row = 0; row < a->rows; row++)
        for (int i = 0; i < HIDDEN; i++)
            a->x[row * HIDDEN + i] = i == (row + a->pass) % HIDDEN ? 1.0f : 0.02f;
    a->pass++;
    attention_begin(a->attention[a->kind], 0, &q, 1);
    attention_layer(a->attention[a->kind], 0, &a->weights[a->kind], a->kv, 0, a->x);
}

static void close_all(struct attention_bench *a)
{
    for (int kind = 0; kind < N_KINDS; kind++)
        attention_close(&a->attention[kind]);
    for (int i = 0; i < N_MATRICES; i++)
        bench_matrix_close(&a->matrices[i]);
    mem_free(a->ones);
    mem_free(a->x);
    if (a->kv)
        kv_truncate(a->kv, &a->seq, 0);
    kv_close(&a->kv);
}

/* Column i makes the i-th query of every head. */
static void aim_index(struct attention_bench *a)
{
    const struct sparse_config *s = &a->model->sparse;
    struct matrix *m = &a->matrices[INDEX_Q].m;
    float *panels = m->panels, *queries;
    int rows = s->n_heads * s->head_dim;
    must(m->padded_cols == HIDDEN && m->rows == rows);
    queries = mem_array((size_t)rows * HIDDEN, sizeof(*queries));
    bench_fill_index_queries(a->model, 0, s->n_heads * HIDDEN, queries);
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < HIDDEN; i++)
            panels[(row / PANEL_ROWS * HIDDEN + i) * PANEL_ROWS + row % PANEL_ROWS] =
                queries[i * rows + row];
    mem_free(queries);
}

static int open_weights(struct attention_bench *a, struct err *e)
{
    const struct model_config *m = a->model;
    const struct sparse_config *s = &m->sparse;
    bool is_sparse = s->block_size > 0;
    int q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim, rc = 0;
    const int sizes[N_MATRICES][2] = {{q, HIDDEN},
                                      {kv, HIDDEN},
                                      {kv, HIDDEN},
                                      {HIDDEN, q},
                                      {s->n_heads * s->head_dim, HIDDEN},
                                      {s->head_dim, HIDDEN}};
    for (int i = 0; i < (is_sparse ? N_MATRICES : 4) && rc == 0; i++)
        rc = bench_matrix_open(&a->matrices[i], FORMAT_F32, sizes[i][0], sizes[i][1], (uint64_t)i,
                               e);
    if (rc == 0 && is_sparse)
        aim_index(a);
    a->ones = mem_aligned((size_t)q * sizeof(float));
    for (int i = 0; i < q; i++)
        a->ones[i] = 1;
    struct attention_weights w = {.wq = a->matrices[0].m,
                                  .wk = a->matrices[1].m,
                                  .wv = a->matrices[2].m,
                                  .wo = a->matrices[3].m,
                                  .input_norm = a->ones,
                                  .q_norm = a->ones,
                                  .k_norm = a->ones,
                                  .index_q = a->matrices[INDEX_Q].m,
                                  .index_k = a->matrices[INDEX_K].m,
                                  .index_q_norm = a->ones,
                                  .index_k_norm = a->ones};
    for (int kind = 0; kind < N_KINDS; kind++) {
        a->weights[kind] = w;
        a->weights[kind].is_sparse = kind != KIND_FULL;
    }
    return rc;
}

static int prompt_of(const struct bench *b)
{
    return b->options->prompt ? b->options->prompt : DEFAULT_PROMPT;
}

static int open_attention(struct attention_bench *a, struct bench *b, enum kv_format format,
                          struct err *e)
{
    struct attention_options o = {.max_rows = prompt_of(b), .kv = format};
    struct model_config full = *a->model;
    full.sparse = (struct sparse_config){0};
    int rc = 0;
    for (int kind = 0; kind < N_KINDS && rc == 0; kind++) {
        o.choice = choices[kind];
        if (a->wanted[kind])
            rc = attention_open(kind == KIND_FULL ? &full : a->model, &o, b->compute,
                                &a->attention[kind], e);
    }
    return rc;
}

/* `a` says model and kinds. */
static int open_all(struct attention_bench *a, struct bench *b, enum kv_format format, int depth,
                    struct err *e)
{
    int prompt = prompt_of(b), pages = depth / KV_PAGE_TOKENS + prompt / KV_PAGE_TOKENS + 3;
    int rc = open_weights(a, e);
    if (rc == 0)
        rc = kv_open(a->model, format, (size_t)pages * kv_page_bytes(a->model, format), &a->kv, e);
    if (rc == 0 && kv_reserve(a->kv, &a->seq, depth + prompt) < 0)
        rc = err_set(e, E_NOMEM, "the cache has no room for %d positions", depth + prompt);
    if (rc == 0)
        rc = open_attention(a, b, format, e);
    if (rc < 0) {
        close_all(a);
        return rc;
    }
    a->x = mem_aligned((size_t)prompt * HIDDEN * sizeof(float));
    bench_fill_cache(a->model, a->kv, &a->seq, depth, b->compute.pool);
    return 0;
}

/* What one row at the end must read, or what all rows must multiply. */
struct work {
    double bytes, ops;
};

static struct work work_of(const struct attention_bench *a, enum kv_format format, int depth,
                           int rows)
{
    const struct sparse_config *s = &a->model->sparse;
    struct model_config full = *a->model;
    full.sparse = (struct sparse_config){0};
    double position_bytes = (double)kv_page_bytes(&full, format) / KV_PAGE_TOKENS;
    double index_bytes = (double)kv_page_bytes(a->model, format) / KV_PAGE_TOKENS - position_bytes;
    double keys = (double)rows * depth + (double)rows * (rows + 1) / 2, ops = 0;
    double seen = (double)depth + rows, scanned = 0;
    /* Of bounds the sketches; what is scored besides is theirs to save. */
    double key_bytes = s->head_dim * (format == KV_F32 ? 4.0 : 2.0);
    if (a->kind != KIND_FULL && depth / s->block_size >= s->top_k) {
        if (a->kind != KIND_WINDOW) {
            ops = 2.0 * s->n_heads * s->head_dim * keys;
            scanned = seen * (a->kind == KIND_SCAN ? key_bytes : index_bytes - key_bytes);
        }
        seen = (double)s->block_size * s->top_k;
        keys = seen * rows;
    }
    return (struct work){.bytes = rows > 1 ? 0 : seen * position_bytes + scanned,
                         .ops = ops + 4.0 * a->model->n_heads * a->model->head_dim * keys};
}

/* How much of the index was read in full since the last time. */
static bool share_scored(void *ud, struct bench_metric *out)
{
    struct attention_bench *a = ud;
    const struct msa_counts *now = attention_msa_counts(a->attention[a->kind]);
    double keys = (double)(now->keys - a->counts.keys);
    double scored = (double)(now->scored - a->counts.scored);
    a->counts = *now;
    if (a->kind != KIND_MSA || keys == 0)
        return false;
    struct bench_series percent = {.n = 1, .values = {100 * scored / keys}};
    *out = bench_metric_of("keys_scored_percent", "% of keys scored", &percent, NULL, NULL);
    return true;
}

static void run_one(struct bench *b, struct attention_bench *a, enum kv_format format, int depth,
                    int rows)
{
    char name[80];
    a->rows = rows;
    snprintf(name, sizeof(name), "%s %s, %d row%s at %d", kind_names[a->kind],
             kv_format_name(format), rows, rows == 1 ? "" : "s", depth);
    struct work w = work_of(a, format, depth, rows);
    struct bench_case c = {.name = name,
                           .body = body,
                           .ud = a,
                           .bytes = w.bytes,
                           .ops = w.ops,
                           .kind = format == KV_INT8 ? BENCH_Q8 : BENCH_F32,
                           .shows_time = true,
                           .more = share_scored};
    a->counts = *attention_msa_counts(a->attention[a->kind]);
    double milliseconds = bench_case_run(b, &c);
    snprintf(name, sizeof(name), "%s %s, %s", kind_names[a->kind], kv_format_name(format),
             rows == 1 ? "one row" : "a prefill step");
    bench_plot_add(a->plot, name, depth, milliseconds);
}

static int run_depth(struct bench *b, const struct attention_bench *as, enum kv_format format,
                     int depth, struct err *e)
{
    struct attention_bench a = *as;
    const int rows[2] = {1, prompt_of(b)};
    int rc = open_all(&a, b, format, depth, e);
    if (rc < 0)
        return err_prefix(e, "depth %d", depth);
    for (int i = 0; i < (rows[1] > 1 ? 2 : 1); i++)
        for (a.kind = 0; a.kind < N_KINDS; a.kind++)
            if (a.wanted[a.kind])
                run_one(b, &a, format, depth, rows[i]);
    close_all(&a);
    return 0;
}

static int parse_kinds(const char *text, struct attention_bench *a, struct err *e)
{
    bool has_sparse = a->model->sparse.block_size > 0;
    if (!text) {
        a->wanted[KIND_FULL] = true;
        a->wanted[KIND_MSA] = a->wanted[KIND_WINDOW] = has_sparse;
        return 0;
    }
    for (const char *at = text; *at; at += *at == ',') {
        size_t len = strcspn(at, ",");
        int kind = 0;
        while (kind < N_KINDS &&
               (strlen(kind_names[kind]) != len || strncmp(at, kind_names[kind], len) != 0))
            kind++;
        if (kind == N_KINDS || (kind != KIND_FULL && !has_sparse))
            return err_set(e, E_INVALID, "--kind: found \"%s\", expected %s", text,
                           has_sparse ? "some of full,msa,scan,window"
                                      : "full (the others are --geometry m3's)");
        a->wanted[kind] = true;
        at += len;
    }
    return 0;
}

static int parse_what(const struct bench_options *o, struct attention_bench *a,
                      enum kv_format *first, enum kv_format *last, struct err *e)
{
    *a = (struct attention_bench){.model = &m2_layer};
    if (o->geometry && strcmp(o->geometry, "m3") == 0)
        a->model = &m3_layer;
    else if (o->geometry && strcmp(o->geometry, "m2") != 0)
        return err_set(e, E_INVALID, "--geometry: found \"%s\", expected m2 or m3", o->geometry);
    *first = KV_F32;
    *last = KV_FORMAT_COUNT - 1;
    if (o->cache && !kv_format_parse(o->cache, first))
        return err_set(e, E_INVALID, "--cache: found \"%s\", expected " KV_FORMAT_CHOICES,
                       o->cache);
    if (o->cache)
        *last = *first;
    return parse_kinds(o->kinds, a, e);
}

static int write_plot(const struct bench_plot *plot, const char *path, struct err *e)
{
    struct buf text = {0};
    bench_plot_write(plot, &text);
    int rc = buf_write_file(&text, path, e);
    buf_fini(&text);
    return rc;
}

int bench_attention(const struct bench_options *o, struct err *e)
{
    struct bench_plot plot = {.title = "One layer's attention",
                              .x_label = "positions in the cache",
                              .y_label = "milliseconds"};
    struct bench b;
    struct attention_bench a;
    enum kv_format format = KV_F32, last = KV_F32;
    struct bench_list depths = o->depths;
    if (depths.n == 0)
        depths = (struct bench_list){.n = 2, .values = {4096, 16384}};
    int rc = parse_what(o, &a, &format, &last, e);
    if (rc == 0)
        rc = bench_open(&b, o,
                        o->engine.kernels ? kernels_named(o->engine.kernels) : kernels_best(), e);
    if (rc < 0)
        return rc;
    a.plot = &plot;
    for (; format <= last && rc == 0; format++)
        for (int i = 0; i < depths.n && rc == 0; i++)
            rc = run_depth(&b, &a, format, depths.values[i], e);
    bench_close(&b);
    if (rc == 0 && o->svg)
        rc = write_plot(&plot, o->svg, e);
    return rc;
}
