/* tools/recall.c - see recall.h. */
#include "tools/recall.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "tools/bench_stats.h"
#include "tools/local_engine.h"
#include "tools/progress.h"
#include "tools/quality_stats.h"
#include "tools/recall_tasks.h"

enum { MAX_LENGTHS = 16, MAX_ITEMS = 1000, DEFAULT_ITEMS = 4, DEFAULT_WINDOW = 2048 };
enum kind { KIND_FULL, KIND_MSA, KIND_WINDOW, KINDS };
static const char *const kind_names[KINDS] = {"full", "msa", "window"};

struct recall_options {
    struct local_engine_options engine;
    bool tasks[RECALL_TASKS], kinds[KINDS];
    int64_t lengths[MAX_LENGTHS];
    int n_lengths;
    int64_t n_items, window, seed;
    bool as_json, by_layer;
};

static void usage(FILE *out)
{
    fputs(
        "usage: polymath eval recall --model DIR [OPTION]...\n\n"
        "What each kind of attention sees of the tokens that an answer follows from, and what it\n"
        "changes: RULER-style tasks made of token ids, run through the model in this process\n"
        "with full attention and, if it has sparse layers, with its own (MiniMax Sparse "
        "Attention)\n"
        "and with a sliding window instead.\n\n"
        "  --tasks LIST       of " RECALL_TASK_CHOICES "\n"
        "                     (default: all)\n"
        "  --lengths LIST     tokens of a context, with commas between, 128 or more each\n"
        "                     (default 512,2048)\n"
        "  --items N          of each task and length (default 4)\n"
        "  --kinds LIST       of full,msa,window (default: all that the model has)\n"
        "  --window N         keys that the window sees, in whole blocks with the row's own\n"
        "                     (default: as many as msa); without sparse layers what 2048 would\n"
        "                     show is reckoned, not run\n"
        "  --layers           a line for each layer and KV head, too\n"
        "  --seed N           of the tasks (default 1)\n"
        "  --json             as JSON\n" LOCAL_ENGINE_HELP
        "\nvisible: share of the evidence in sight of a row that says the answer, mean over "
        "sparse\n"
        "layers and KV heads; reached: in sight of at least one of them; KL (nats) and top-1:\n"
        "against full attention; exact: answers whose every token is the first choice.  Weights\n"
        "that were never trained choose blocks and tokens by chance: their visible is what chance\n"
        "gives, their exact is nothing; KL then says how much attention matters at all.\n"
        "\nExit code: 0, 1 failed, 2 misused.\n",
        out);
}

/* ---- what is counted ---- */

struct cell {
    double visible, reached, divergence;
    int64_t n_visible, n_items, n_logits, n_agreeing, n_exact;
    double *by_head; /* [layers * heads] sums of shares, msa only */
    int64_t n_by_head;
};

struct run {
    const struct recall_options *options;
    struct local_engine engine;
    struct forward *full;   /* the same weights, every key in sight */
    struct forward *window; /* the last blocks; NULL: reckoned */
    int n_sparse, n_heads, first_sparse, seen_keys, window_blocks;
    struct cell cells[KINDS];
    struct progress progress;
    struct bench_report report;

    /* The item in progress. */
    enum kind kind; /* that runs */
    const struct recall_item *item;
    bool *reached; /* [n_evidence] by any layer and head of a row */
    float *wanted; /* [n_answer, vocab]: logits of full attention */
};

/* ---- visibility ---- */

static bool is_seen(const struct run *r, const int32_t *blocks, int position)
{
    const struct sparse_config *s = &r->engine.config->sparse;
    if (!blocks)
        return true;
    int n = r->kind == KIND_WINDOW ? r->window_blocks : s->top_k;
    for (int i = 0; i < n; i++)
        if (blocks[i] == position / s->block_size)
            return true;
    return false;
}

static void on_blocks(void *ud, int layer, int row, int kv_head, const int32_t *blocks)
{
    struct run *r = ud;
    struct cell *c = &r->cells[r->kind];
    const struct recall_item *item = r->item;
    int n_seen = 0;
    (void)row; /* all rows of this step say the answer */
    for (int i = 0; i < item->n_evidence; i++) {
        bool is = is_seen(r, blocks, item->evidence[i]);
        n_seen += is;
        r->reached[i] |= is;
    }
    double share = item->n_evidence > 0 ? (double)n_seen / item->n_evidence : 1;
    c->visible += share;
    c->n_visible++;
    if (r->kind != KIND_MSA)
        return;
    c->by_head[(layer - r->first_sparse) * r->n_heads + kv_head] += share;
    c->n_by_head += layer == r->first_sparse && kv_head == 0;
}

static void add_reached(struct cell *c, const struct run *r)
{
    int n = 0;
    for (int i = 0; i < r->item->n_evidence; i++)
        n += r->reached[i];
    c->reached += r->item->n_evidence > 0 ? (double)n / r->item->n_evidence : 1;
}

static void count_window(struct run *r)
{
    const struct recall_item *item = r->item;
    struct cell *c = &r->cells[KIND_WINDOW];
    int64_t window = r->options->window;
    memset(r->reached, 0, (size_t)item->n_evidence);
    for (int row = item->n_prompt - 1; row < item->length; row++) {
        int n_seen = 0;
        for (int i = 0; i < item->n_evidence; i++) {
            bool is = item->evidence[i] > row - window;
            n_seen += is;
            r->reached[i] |= is;
        }
        c->visible += item->n_evidence > 0 ? (double)n_seen / item->n_evidence : 1;
        c->n_visible++;
    }
    add_reached(c, r);
    c->n_items++;
}

/* ---- running ---- */

static int step(struct run *r, int at, int n, bool says, const float **logits, struct err *e)
{
    struct forward *const forwards[KINDS] = {r->full, r->engine.forward, r->window};
    struct local_engine *g = &r->engine;
    struct step_seq seq = {.kv = &g->seq,
                           .position = at,
                           .n_tokens = n,
                           .tokens = r->item->ids + at,
                           .all_logits = says,
                           .no_logits = !says};
    struct step s = {.n_seqs = 1, .seqs = &seq, .probe_ud = r};
    if (says && r->kind != KIND_FULL)
        s.probe_blocks = on_blocks;
    int n_logits;
    int rc = forward_step(forwards[r->kind], g->kv, &s, &moe_local_ops, g->moe, logits, &n_logits);
    progress_add(&r->progress, n);
    return rc < 0 ? err_set(e, rc, "step at position %d: %s", at, err_text(rc)) : 0;
}

/* A step is at most a chunk; the rows that say the answer are the last one's. */
static int run_item(struct run *r, const float **logits, struct err *e)
{
    const struct recall_item *item = r->item;
    struct local_engine *g = &r->engine;
    int end = item->n_prompt - 1, rc = 0;
    kv_truncate(g->kv, &g->seq, 0);
    if (kv_reserve(g->kv, &g->seq, item->length) < 0)
        return err_set(e, E_BUSY, "the KV cache is too small");
    for (int at = 0; at < end && rc == 0;) {
        int n = end - at < g->chunk_rows ? end - at : g->chunk_rows;
        rc = step(r, at, n, false, logits, e);
        at += n;
    }
    return rc < 0 ? rc : step(r, end, item->n_answer, true, logits, e);
}

static int first_choice(const float *logits, int vocab)
{
    int best = 0;
    for (int i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static void count_logits(struct run *r, const float *logits)
{
    const struct recall_item *item = r->item;
    struct cell *c = &r->cells[r->kind];
    int vocab = r->engine.config->vocab_size, n_right = 0;
    for (int i = 0; i < item->n_answer; i++) {
        const float *row = logits + (size_t)i * (size_t)vocab;
        const float *wanted = r->wanted + (size_t)i * (size_t)vocab;
        int choice = first_choice(row, vocab);
        n_right += choice == item->answer[i];
        c->divergence += quality_divergence(wanted, row, vocab);
        c->n_agreeing += choice == first_choice(wanted, vocab);
        c->n_logits++;
    }
    c->n_exact += n_right == item->n_answer;
    c->n_items++;
}

/* With less in sight than full attention, which has been before. */
static int run_kind(struct run *r, enum kind kind, struct err *e)
{
    const float *logits;
    r->kind = kind;
    memset(r->reached, 0, (size_t)r->item->n_evidence);
    int rc = run_item(r, &logits, e);
    if (rc < 0)
        return rc;
    count_logits(r, logits);
    add_reached(&r->cells[kind], r);
    return 0;
}

static int run_kinds(struct run *r, struct err *e)
{
    const float *logits;
    size_t bytes = (size_t)r->item->n_answer * (size_t)r->engine.config->vocab_size;
    const bool *kinds = r->options->kinds;
    r->kind = KIND_FULL;
    int rc = run_item(r, &logits, e);
    if (rc < 0)
        return rc;
    memcpy(r->wanted, logits, bytes * sizeof *logits);
    count_logits(r, logits);
    r->cells[KIND_FULL].visible++;
    r->cells[KIND_FULL].reached++;
    r->cells[KIND_FULL].n_visible++;
    if (kinds[KIND_MSA])
        rc = run_kind(r, KIND_MSA, e);
    if (kinds[KIND_WINDOW] && r->window && rc == 0)
        rc = run_kind(r, KIND_WINDOW, e);
    else if (kinds[KIND_WINDOW] && rc == 0)
        count_window(r);
    return rc;
}

/* ---- the report ---- */

static struct bench_metric one(const char *key, const char *unit, double value)
{
    return (struct bench_metric){.key = key, .unit = unit, .value = {value, value, value}};
}

static double percent(double sum, int64_t n)
{
    return n > 0 ? 100 * sum / (double)n : 0;
}

static void report_heads(struct run *r, const char *name)
{
    const struct cell *c = &r->cells[KIND_MSA];
    for (int i = 0; i < r->n_sparse * r->n_heads; i++) {
        char text[96];
        snprintf(text, sizeof text, "%s layer %d head %d", name, r->first_sparse + i / r->n_heads,
                 i % r->n_heads);
        struct bench_metric m = one("visible", "% visible", percent(c->by_head[i], c->n_by_head));
        bench_report_row(&r->report, text, &m, 1);
    }
}

static void report_cells(struct run *r, enum recall_task task, int64_t length)
{
    for (int kind = 0; kind < KINDS; kind++) {
        const struct cell *c = &r->cells[kind];
        char name[64];
        if (!r->options->kinds[kind])
            continue;
        snprintf(name, sizeof name, "%s %lld %s", kind_names[kind], (long long)length,
                 recall_task_name(task));
        struct bench_metric m[] = {
            one("visible", "% visible", percent(c->visible, c->n_visible)),
            one("reached", "% reached", percent(c->reached, c->n_items)),
            one("kl", "KL", c->n_logits > 0 ? c->divergence / (double)c->n_logits : 0),
            one("top1", "% top-1", percent((double)c->n_agreeing, c->n_logits)),
            one("exact", "% exact", percent((double)c->n_exact, c->n_items))};
        bench_report_row(&r->report, name, m, c->n_logits > 0 ? 5 : 2);
        if (kind == KIND_MSA && r->options->by_layer)
            report_heads(r, name);
    }
}

static int run_cell(struct run *r, enum recall_task task, int64_t length, struct err *e)
{
    int vocab = r->engine.config->vocab_size, rc = 0;
    double *by_head = r->cells[KIND_MSA].by_head;
    memset(r->cells, 0, sizeof r->cells);
    memset(by_head, 0, (size_t)(r->n_sparse * r->n_heads + 1) * sizeof *by_head);
    r->cells[KIND_MSA].by_head = by_head;
    for (int64_t i = 0; i < r->options->n_items && rc == 0; i++) {
        struct recall_item item;
        uint64_t seed = (uint64_t)(r->options->seed * MAX_ITEMS + i);
        rc = recall_item_make(task, (int)length, vocab, seed, &item, e);
        if (rc < 0)
            break;
        r->item = &item;
        r->reached = mem_array((size_t)item.n_evidence + 1, sizeof *r->reached);
        rc = run_kinds(r, e);
        mem_free(r->reached);
        recall_item_fini(&item);
    }
    if (rc == 0)
        report_cells(r, task, length);
    return rc;
}

static void report_model(struct run *r)
{
    const struct model_config *c = r->engine.config;
    char text[FORMAT_SET_BYTES];
    bench_report_text(&r->report, "model", r->options->engine.model_dir);
    bench_report_text(&r->report, "format", format_set_text(&r->engine.formats, text));
    bench_report_number(&r->report, "items", (double)r->options->n_items);
    bench_report_number(&r->report, "seed", (double)r->options->seed);
    bench_report_number(&r->report, "layers", c->n_layers);
    bench_report_number(&r->report, "sparse_layers", r->n_sparse);
    bench_report_number(&r->report, "keys_msa_sees", r->seen_keys);
    bench_report_number(&r->report, "keys_window_sees", (double)r->options->window);
}

/* Of the keys, a sparse layer's row sees so many: what chance would show it. */
static void report_length(struct run *r, int64_t length)
{
    char text[96];
    double share = r->n_sparse == 0 || r->seen_keys >= length ? 1 : r->seen_keys / (double)length;
    snprintf(text, sizeof text, "%lld tokens, of which a sparse layer's row sees %.1f %%",
             (long long)length, 100 * share);
    bench_report_note(&r->report, text);
}

static int run_all(struct run *r, struct err *e)
{
    const struct recall_options *o = r->options;
    int64_t total = 0;
    int n_tasks = 0, rc = 0;
    for (int t = 0; t < RECALL_TASKS; t++)
        n_tasks += o->tasks[t];
    for (int i = 0; i < o->n_lengths; i++)
        total +=
            o->lengths[i] * n_tasks * o->n_items * (1 + o->kinds[KIND_MSA] + (r->window != NULL));
    bench_report_begin(&r->report, o->as_json, stdout);
    report_model(r);
    progress_begin(&r->progress, "recall", total, PROGRESS_ITEMS);
    for (int i = 0; i < o->n_lengths && rc == 0; i++) {
        report_length(r, o->lengths[i]);
        for (int t = 0; t < RECALL_TASKS && rc == 0; t++)
            if (o->tasks[t])
                rc = run_cell(r, (enum recall_task)t, o->lengths[i], e);
    }
    progress_end(&r->progress);
    bench_report_end(&r->report);
    return rc;
}

/* ---- loading ---- */

/* What the model does not have is not compared. */
static int settle(struct recall_options *o, struct run *r, struct err *e)
{
    const struct model_config *c = r->engine.config;
    r->first_sparse = c->sparse.n_full_layers;
    r->n_sparse = c->sparse.block_size > 0 ? c->n_layers - r->first_sparse : 0;
    r->n_heads = c->n_kv_heads;
    r->seen_keys = c->sparse.block_size * c->sparse.top_k;
    if (r->n_sparse == 0)
        o->kinds[KIND_MSA] = false;
    if (o->window == 0)
        o->window = r->n_sparse > 0 ? r->seen_keys : DEFAULT_WINDOW;
    if (r->n_sparse > 0) {
        int size = c->sparse.block_size;
        int64_t most = c->max_positions; /* more is never in sight */
        r->window_blocks = (int)(((o->window < most ? o->window : most) + size - 1) / size);
        o->window = (int64_t)r->window_blocks * size;
    }
    for (int i = 0; i < o->n_lengths; i++)
        if (o->lengths[i] > c->max_positions)
            return err_set(e, E_RANGE, "--lengths %lld: max_position_embeddings of %s is %d",
                           (long long)o->lengths[i], o->engine.model_dir, c->max_positions);
    return 0;
}

static int open_run(struct recall_options *o, struct run *r, struct err *e)
{
    int64_t longest = 0;
    for (int i = 0; i < o->n_lengths; i++)
        longest = o->lengths[i] > longest ? o->lengths[i] : longest;
    int rc = local_engine_open(&r->engine, &o->engine, e);
    if (rc == 0)
        rc = settle(o, r, e);
    if (rc == 0)
        rc = local_engine_load(&r->engine, &o->engine, longest, e);
    if (rc < 0)
        return rc;
    struct forward_options full = {
        .formats = r->engine.formats, .max_rows = r->engine.chunk_rows, .sees_all = true};
    struct forward_options window = full;
    window.sees_all = false;
    window.window_blocks = r->window_blocks;
    rc = forward_open(r->engine.checkpoint, &full, r->engine.compute, &r->full, e);
    if (rc == 0 && r->n_sparse > 0 && o->kinds[KIND_WINDOW])
        rc = forward_open(r->engine.checkpoint, &window, r->engine.compute, &r->window, e);
    r->cells[KIND_MSA].by_head =
        mem_array((size_t)(r->n_sparse * r->n_heads + 1), sizeof *r->cells[KIND_MSA].by_head);
    r->wanted = mem_array((size_t)RECALL_MAX_ANSWER * (size_t)r->engine.config->vocab_size,
                          sizeof *r->wanted);
    return rc;
}

static void close_run(struct run *r)
{
    mem_free(r->cells[KIND_MSA].by_head);
    mem_free(r->wanted);
    forward_close(&r->full);
    forward_close(&r->window);
    local_engine_close(&r->engine);
}

/* ---- command line ---- */

enum { TASKS = 't', LENGTHS = 'n', ITEMS = 'i', SHOWN = 'k', WINDOW = 'w', LAYERS = 'l' };
enum { SEED = 's', JSON = 'j', HELP = 'h' };
static const struct option options[] = {LOCAL_ENGINE_GETOPT,
                                        {"tasks", required_argument, NULL, TASKS},
                                        {"lengths", required_argument, NULL, LENGTHS},
                                        {"items", required_argument, NULL, ITEMS},
                                        {"kinds", required_argument, NULL, SHOWN},
                                        {"window", required_argument, NULL, WINDOW},
                                        {"layers", no_argument, NULL, LAYERS},
                                        {"seed", required_argument, NULL, SEED},
                                        {"json", no_argument, NULL, JSON},
                                        {"help", no_argument, NULL, HELP},
                                        {0}};

static int take_word(struct recall_options *o, int code, const char *word, struct err *e)
{
    enum recall_task task;
    int kind = 0;
    if (code == LENGTHS) {
        if (o->n_lengths == MAX_LENGTHS)
            return err_set(e, E_INVALID, "--lengths: more than %d", MAX_LENGTHS);
        return local_engine_integer("lengths", word, RECALL_LEAST_LENGTH, 1 << 24,
                                    &o->lengths[o->n_lengths++], e);
    }
    if (code == TASKS) {
        if (!recall_task_parse(word, &task))
            return err_set(e, E_INVALID, "--tasks: \"%s\" is none of " RECALL_TASK_CHOICES, word);
        o->tasks[task] = true;
        return 0;
    }
    while (kind < KINDS && strcmp(word, kind_names[kind]) != 0)
        kind++;
    if (kind == KINDS)
        return err_set(e, E_INVALID, "--kinds: \"%s\" is none of full,msa,window", word);
    o->kinds[kind] = true;
    return 0;
}

static int take_list(struct recall_options *o, int code, const char *text, struct err *e)
{
    char word[32];
    for (const char *at = text;;) {
        size_t len = strcspn(at, ",");
        snprintf(word, sizeof word, "%.*s", (int)len, at);
        int rc = take_word(o, code, word, e);
        if (rc < 0 || at[len] == '\0')
            return rc;
        at += len + 1;
    }
}

static int take(struct recall_options *o, int code, const char *value, struct err *e)
{
    switch (code) {
    case TASKS:
    case LENGTHS:
    case SHOWN:
        return take_list(o, code, value, e);
    case ITEMS:
        return local_engine_integer("items", value, 1, MAX_ITEMS, &o->n_items, e);
    case WINDOW:
        return local_engine_integer("window", value, 1, 1 << 24, &o->window, e);
    case SEED:
        return local_engine_integer("seed", value, 0, 1LL << 40, &o->seed, e);
    case LAYERS:
        o->by_layer = true;
        return 0;
    case JSON:
        o->as_json = true;
        return 0;
    default:
        return local_engine_take(&o->engine, code, value, e);
    }
}

static bool has_any(const bool *list, int n)
{
    bool any = false;
    for (int i = 0; i < n; i++)
        any |= list[i];
    return any;
}

/* 0 to go on, 1 after --help, E_INVALID. */
static int parse(int argc, char **argv, struct recall_options *o, struct err *e)
{
    *o = (struct recall_options){.n_items = DEFAULT_ITEMS, .seed = 1};
    local_engine_defaults(&o->engine);
    optind = 0;
    opterr = 0;
    for (int code; (code = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (code == HELP)
            return 1;
        if (code == '?')
            return err_set(e, E_INVALID, "%s: unknown option or missing value", argv[optind - 1]);
        int rc = take(o, code, optarg, e);
        if (rc < 0)
            return rc;
    }
    if (optind < argc)
        return err_set(e, E_INVALID, "%s: unexpected argument", argv[optind]);
    if (!o->engine.model_dir)
        return err_set(e, E_INVALID, "--model is needed");
    if (!has_any(o->tasks, RECALL_TASKS))
        memset(o->tasks, true, sizeof o->tasks);
    if (!has_any(o->kinds, KINDS))
        memset(o->kinds, true, sizeof o->kinds);
    if (o->n_lengths == 0) {
        o->lengths[o->n_lengths++] = 512;
        o->lengths[o->n_lengths++] = 2048;
    }
    return 0;
}

int recall_main(int argc, char **argv)
{
    struct recall_options o;
    struct run r = {.options = &o};
    struct err e = {0};
    int parsed = parse(argc - 1, argv + 1, &o, &e), rc = parsed;
    if (parsed == 1) {
        usage(stdout);
        return 0;
    }
    if (rc == 0) {
        rc = open_run(&o, &r, &e);
        if (rc == 0)
            rc = run_all(&r, &e);
        close_run(&r);
    }
    if (rc < 0)
        fprintf(stderr, "polymath eval recall: %s\n", e.text);
    return parsed < 0 ? 2 : rc < 0 ? 1 : 0;
}
