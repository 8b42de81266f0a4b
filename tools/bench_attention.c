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
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
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
    bool is_adversarial;
    int rows, pass;
    enum kind kind; /* that is measured */
    struct msa_counts counts;
    struct bench_plot *plot;
};

static void run_pass(struct attention_bench *a)
{
    struct step_seq q = {.kv = &a->seq, .position = a->seq.length, .n_tokens = a->rows};
    for (int row = 0; row < a->rows; row++)
        for (int i = 0; i < HIDDEN; i++)
            a->x[row * HIDDEN + i] = i == (row + a->pass) % HIDDEN ? 1.0f : 0.02f;
    attention_begin(a->attention[a->kind], 0, &q, 1);
    attention_layer(a->attention[a->kind], 0, &a->weights[a->kind], a->kv, 0, a->x);
}

static void body(void *ud)
{
    struct attention_bench *a = ud;
    run_pass(a);
    a->pass++;
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

static int open_kind(struct attention_bench *a, struct bench *b, enum kv_format format,
                     enum kind kind, struct err *e)
{
    struct attention_options o = {.max_rows = prompt_of(b), .kv = format, .choice = choices[kind]};
    struct model_config full = *a->model;
    full.sparse = (struct sparse_config){0};
    return attention_open(kind == KIND_FULL ? &full : a->model, &o, b->compute, &a->attention[kind],
                          e);
}

static int open_attention(struct attention_bench *a, struct bench *b, enum kv_format format,
                          struct err *e)
{
    int rc = 0;
    for (int kind = 0; kind < N_KINDS && rc == 0; kind++)
        if (a->wanted[kind])
            rc = open_kind(a, b, format, (enum kind)kind, e);
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
    if (a->is_adversarial)
        bench_fill_alike(a->model, a->kv, &a->seq, depth, b->compute.pool);
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

/* ---- two kinds in turn ---- */

enum { TURNS = 101, LEAST_TURNS = 5 };
#define TURN_NS (20.0 * CLOCK_MS)
#define TURNS_NS (20.0 * 1000 * CLOCK_MS)
/* What msa may take of the other's time. */
static const double most_ratio[N_KINDS] = {[KIND_FULL] = 1.02, [KIND_SCAN] = 1.05};

struct turns {
    double ns[2];  /* of one turn: msa, the other */
    double sum[2]; /* of all */
    float *x;      /* [rows, HIDDEN]: what the first kind of a pass gave */
    int64_t n_equal, n_passes;
};

/* One pass of each, on the same rows; who goes first alternates. */
static void run_both(struct attention_bench *a, enum kind other, struct turns *t)
{
    const enum kind kinds[2] = {KIND_MSA, other};
    size_t bytes = (size_t)a->rows * HIDDEN * sizeof(float);
    for (int i = 0; i < 2; i++) {
        int which = (i + a->pass) % 2;
        a->kind = kinds[which];
        int64_t begun_ns = clock_now_ns();
        run_pass(a);
        double ns = (double)(clock_now_ns() - begun_ns);
        t->ns[which] += ns;
        t->sum[which] += ns;
        if (i == 0)
            memcpy(t->x, a->x, bytes);
    }
    t->n_equal += memcmp(t->x, a->x, bytes) == 0;
    t->n_passes++;
    a->pass++;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median, and between which values the true one lies in 95 of 100 cases: by rank. */
static struct bench_summary median_interval(struct bench_series *s)
{
    struct bench_summary out = bench_summarise(s);
    double around = 0.98 * sqrt(s->n);
    int low = (int)floor(s->n / 2.0 - around), high = (int)ceil(s->n / 2.0 + around);
    qsort(s->values, (size_t)s->n, sizeof(s->values[0]), compare_doubles);
    out.least = s->values[low < 1 ? 0 : low - 1];
    out.most = s->values[high < s->n ? high : s->n - 1];
    return out;
}

static void report_turns(struct bench *b, const struct attention_bench *a, const char *name,
                         enum kind other, struct bench_series *ratios, const struct turns *t)
{
    const struct msa_counts *c = attention_msa_counts(a->attention[KIND_MSA]);
    double sum = t->sum[0] / t->sum[1], most = most_ratio[other];
    double equal = 100.0 * (double)t->n_equal / (double)t->n_passes;
    double tried = c->waves > 0 ? 100.0 * (double)c->tried / (double)c->waves : 0;
    struct bench_metric metrics[] = {
        {.key = "ratio", .unit = "x", .value = median_interval(ratios)},
        {.key = "sum_ratio", .unit = "x in all", .value = {sum, sum, sum}},
        {.key = "equal_bits_percent", .unit = "% equal bits", .value = {equal, equal, equal}},
        {.key = "choices_with_bounds_percent",
         .unit = "% of choices with bounds",
         .value = {tried, tried, tried}},
    };
    const struct bench_summary *v = &metrics[0].value;
    /* What is done in vain now and then is in the sum; single passes that were disturbed, too. */
    bool holds = v->most <= most && (other == KIND_FULL || sum <= most);
    bool fails = v->least > most || (other == KIND_SCAN && sum > most);
    char note[160];
    bench_report_row(&b->report, name, metrics, other == KIND_SCAN ? 4 : 3);
    snprintf(note, sizeof(note), "  at most %.2f times %s: %s after %lld passes of each", most,
             kind_names[other],
             holds   ? "yes"
             : fails ? "NO"
                     : "not decided",
             (long long)t->n_passes);
    bench_report_note(&b->report, note);
}

/* As many as take 20 s at most, the first one too. */
static void take_turns(struct attention_bench *a, enum kind other, struct turns *t,
                       struct bench_series *ratios)
{
    run_both(a, other, t); /* memory is touched */
    double ns = t->sum[0] + t->sum[1];
    int passes = ns < TURN_NS ? (int)(TURN_NS / ns) : 1;
    double turns = TURNS_NS / (ns * passes);
    turns = turns > TURNS ? TURNS : turns < LEAST_TURNS ? LEAST_TURNS : turns;
    t->n_equal = t->n_passes = 0;
    t->sum[0] = t->sum[1] = 0;
    for (int i = 0; i < (int)turns; i++) {
        t->ns[0] = t->ns[1] = 0;
        for (int pass = 0; pass < passes; pass++)
            run_both(a, other, t);
        bench_series_add(ratios, t->ns[0] / t->ns[1]);
    }
}

static int run_turns(struct bench *b, struct attention_bench *a, enum kv_format format, int depth,
                     enum kind other, struct err *e)
{
    struct bench_series ratios = {0};
    char name[80];
    /* With nothing learnt. */
    attention_close(&a->attention[KIND_MSA]);
    int rc = open_kind(a, b, format, KIND_MSA, e);
    if (rc < 0)
        return rc;
    struct turns t = {.x = mem_array((size_t)a->rows * HIDDEN, sizeof(float))};
    take_turns(a, other, &t, &ratios);
    snprintf(name, sizeof(name), "msa/%s %s, %d row%s at %d", kind_names[other],
             kv_format_name(format), a->rows, a->rows == 1 ? "" : "s", depth);
    report_turns(b, a, name, other, &ratios, &t);
    mem_free(t.x);
    return 0;
}

static int run_all_turns(struct bench *b, struct attention_bench *a, enum kv_format format,
                         int depth, struct err *e)
{
    bool sees_all = !msa_chooses(&a->model->sparse, depth + a->rows - 1);
    int rc = 0;
    if (a->wanted[KIND_MSA] && a->wanted[KIND_FULL] && sees_all)
        rc = run_turns(b, a, format, depth, KIND_FULL, e);
    if (a->wanted[KIND_MSA] && a->wanted[KIND_SCAN] && !sees_all && rc == 0)
        rc = run_turns(b, a, format, depth, KIND_SCAN, e);
    return rc;
}

static int run_depth(struct bench *b, const struct attention_bench *as, enum kv_format format,
                     int depth, struct err *e)
{
    struct attention_bench a = *as;
    const int rows[2] = {1, prompt_of(b)};
    int rc = open_all(&a, b, format, depth, e);
    if (rc < 0)
        return err_prefix(e, "depth %d", depth);
    for (int i = 0; i < (rows[1] > 1 ? 2 : 1) && rc == 0; i++) {
        for (a.kind = 0; a.kind < N_KINDS; a.kind++)
            if (a.wanted[a.kind])
                run_one(b, &a, format, depth, rows[i]);
        rc = run_all_turns(b, &a, format, depth, e);
    }
    close_all(&a);
    return rc;
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
    if (o->scores && strcmp(o->scores, "realistic") != 0 && strcmp(o->scores, "adversarial") != 0)
        return err_set(e, E_INVALID, "--scores: found \"%s\", expected realistic or adversarial",
                       o->scores);
    a->is_adversarial = o->scores && strcmp(o->scores, "adversarial") == 0;
    if (a->is_adversarial && a->model != &m3_layer)
        return err_set(e, E_INVALID, "--scores adversarial: only --geometry m3 has index keys");
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
