/* tools/bench_attention.c - `polymath bench attention`: one layer's attention over a full
 * cache, one token and a prefill step.
 *
 * The layer has M2's heads but a hidden size of 16, so that its projections cost nothing and
 * what remains is norms, rotation, appending, the scores, the sum over values and the merge. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "engine/attention.h"
#include "engine/forward.h"
#include "tools/bench.h"
#include "tools/bench_fill.h"
#include "tools/bench_random.h"

enum { HIDDEN = 16, HEADS = 48, KV_HEADS = 8, HEAD_DIM = 128, DEFAULT_PROMPT = 128 };

static const struct model_config one_layer = {.vocab_size = 16,
                                              .hidden_size = HIDDEN,
                                              .n_layers = 1,
                                              .n_heads = HEADS,
                                              .n_kv_heads = KV_HEADS,
                                              .head_dim = HEAD_DIM,
                                              .rotary_dim = 64,
                                              .expert_size = 16,
                                              .n_experts = 1,
                                              .top_k = 1,
                                              .max_positions = 1 << 21,
                                              .rope_theta = 5e6,
                                              .rms_norm_eps = 1e-6f};

struct attention_bench {
    struct attention *attention;
    struct attention_weights weights;
    struct bench_matrix matrices[4];
    float *ones; /* every norm's weights */
    struct kv *kv;
    struct kv_seq seq;
    float *x;
    int rows;
};

static void body(void *ud)
{
    struct attention_bench *a = ud;
    struct step_seq q = {.kv = &a->seq, .position = a->seq.length, .n_tokens = a->rows};
    struct step s = {.n_seqs = 1, .seqs = &q};
    attention_begin(a->attention, &s);
    attention_layer(a->attention, &a->weights, a->kv, 0, a->x);
}

static void close_all(struct attention_bench *a)
{
    attention_close(&a->attention);
    for (int i = 0; i < 4; i++)
        bench_matrix_close(&a->matrices[i]);
    mem_free(a->ones);
    mem_free(a->x);
    if (a->kv)
        kv_truncate(a->kv, &a->seq, 0);
    kv_close(&a->kv);
}

static int open_weights(struct attention_bench *a, struct err *e)
{
    int q = HEADS * HEAD_DIM, kv = KV_HEADS * HEAD_DIM, rc = 0;
    const int sizes[4][2] = {{q, HIDDEN}, {kv, HIDDEN}, {kv, HIDDEN}, {HIDDEN, q}};
    for (int i = 0; i < 4 && rc == 0; i++)
        rc = bench_matrix_open(&a->matrices[i], FORMAT_F32, sizes[i][0], sizes[i][1], (uint64_t)i,
                               e);
    a->ones = mem_aligned((size_t)q * sizeof(float));
    for (int i = 0; i < q; i++)
        a->ones[i] = 1;
    a->weights = (struct attention_weights){.wq = a->matrices[0].m,
                                            .wk = a->matrices[1].m,
                                            .wv = a->matrices[2].m,
                                            .wo = a->matrices[3].m,
                                            .input_norm = a->ones,
                                            .q_norm = a->ones,
                                            .k_norm = a->ones};
    return rc;
}

static int open_all(struct attention_bench *a, struct bench *b, enum kv_format format, int depth,
                    struct err *e)
{
    *a = (struct attention_bench){0};
    int pages = depth / KV_PAGE_TOKENS + 2;
    int prompt = b->options->prompt ? b->options->prompt : DEFAULT_PROMPT;
    struct attention_options o = {.max_rows = prompt, .kv = format};
    pages += prompt / KV_PAGE_TOKENS + 1;
    int rc = open_weights(a, e);
    if (rc == 0)
        rc = kv_open(&one_layer, format, (size_t)pages * kv_page_bytes(&one_layer, format), &a->kv,
                     e);
    if (rc == 0 && kv_reserve(a->kv, &a->seq, depth + prompt) < 0)
        rc = err_set(e, E_NOMEM, "the cache has no room for %d positions", depth + prompt);
    if (rc == 0)
        rc = attention_open(&one_layer, &o, b->compute, &a->attention, e);
    if (rc < 0) {
        close_all(a);
        return rc;
    }
    a->x = mem_aligned((size_t)prompt * HIDDEN * sizeof(float));
    bench_random_floats(a->x, (size_t)prompt * HIDDEN, 3);
    bench_fill_cache(&one_layer, a->kv, &a->seq, depth, b->compute.pool);
    return 0;
}

/* Scores and values: 2 multiply-adds per head, dimension and visible key. */
static double ops_of(int depth, int rows)
{
    double keys = (double)rows * depth + (double)rows * (rows + 1) / 2;
    return 4.0 * HEADS * HEAD_DIM * keys;
}

static void run_one(struct bench *b, struct attention_bench *a, enum kv_format format, int depth,
                    int rows)
{
    char name[64];
    a->rows = rows;
    snprintf(name, sizeof(name), "attention %s, %d row%s at %d", kv_format_name(format), rows,
             rows == 1 ? "" : "s", depth);
    /* A page holds its positions for the one layer. */
    double pages = (double)(depth + rows) / KV_PAGE_TOKENS;
    struct bench_case c = {.name = name,
                           .body = body,
                           .ud = a,
                           .bytes =
                               rows > 1 ? 0 : pages * (double)kv_page_bytes(&one_layer, format),
                           .ops = ops_of(depth, rows),
                           .kind = format == KV_INT8 ? BENCH_Q8 : BENCH_F32,
                           .shows_time = true};
    bench_case_run(b, &c);
}

static int run_depth(struct bench *b, enum kv_format format, int depth, struct err *e)
{
    struct attention_bench a;
    int rc = open_all(&a, b, format, depth, e);
    if (rc < 0)
        return err_prefix(e, "depth %d", depth);
    run_one(b, &a, format, depth, 1);
    run_one(b, &a, format, depth, b->options->prompt ? b->options->prompt : DEFAULT_PROMPT);
    close_all(&a);
    return 0;
}

int bench_attention(const struct bench_options *o, struct err *e)
{
    struct bench b;
    struct bench_list depths = o->depths;
    if (depths.n == 0)
        depths = (struct bench_list){.n = 2, .values = {4096, 16384}};
    int rc =
        bench_open(&b, o, o->engine.kernels ? kernels_named(o->engine.kernels) : kernels_best(), e);
    if (rc < 0)
        return rc;
    for (enum kv_format format = KV_F32; format < KV_FORMAT_COUNT && rc == 0; format++)
        for (int i = 0; i < depths.n && rc == 0; i++)
            rc = run_depth(&b, format, depths.values[i], e);
    bench_close(&b);
    return rc;
}
