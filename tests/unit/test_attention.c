/* tests/unit/test_attention.c - the attention half of a layer against a naive one in double,
 * over several chunks, and the same bits however the rows come. */
#include <math.h>

#include "base/mem.h"
#include "engine/attention.h"
#include "engine/forward.h"
#include "tests/lib/test.h"

/* No size is a power of two; positions reach into the third chunk. */
enum {
    HIDDEN = 22,
    HEADS = 6,
    KV_HEADS = 2,
    DIM = 12,
    ROTARY = 6,
    QS = HEADS * DIM,
    KS = KV_HEADS * DIM,
    ROWS = 2 * ATTENTION_CHUNK + 100,
    OTHER_ROWS = 300,
    PAGES = 40,
};
#define THETA 10000.0
#define EPS 1e-6f

struct layer_data {
    float wq[QS * HIDDEN], wk[KS * HIDDEN], wv[KS * HIDDEN], wo[HIDDEN * QS];
    float input_norm[HIDDEN], q_norm[QS], k_norm[KS];
    struct layer_view view;
};

static const struct model_config config = {.hidden_size = HIDDEN,
                                           .n_layers = 1,
                                           .n_heads = HEADS,
                                           .n_kv_heads = KV_HEADS,
                                           .head_dim = DIM,
                                           .rotary_dim = ROTARY,
                                           .rope_theta = THETA,
                                           .rms_norm_eps = EPS};

static void fill(struct rng *r, float *v, int n, double mean, double spread)
{
    for (int i = 0; i < n; i++)
        v[i] = (float)(mean + spread * rng_normal(r));
}

static struct tensor vector(const float *v, int n)
{
    return (struct tensor){.dtype = DTYPE_F32,
                           .n_dims = 1,
                           .dims = {n},
                           .data = v,
                           .size_bytes = (size_t)n * sizeof(*v)};
}

static struct linear_view linear(const char *label, const float *w, int rows, int cols)
{
    struct tensor t = vector(w, rows * cols);
    t.n_dims = 2;
    t.dims[0] = rows;
    t.dims[1] = cols;
    return (struct linear_view){.label = label, .rows = rows, .cols = cols, .weight = t};
}

static void make_layer(struct layer_data *l, struct rng *r)
{
    fill(r, l->wq, QS * HIDDEN, 0, 0.3);
    fill(r, l->wk, KS * HIDDEN, 0, 0.3);
    fill(r, l->wv, KS * HIDDEN, 0, 0.3);
    fill(r, l->wo, HIDDEN * QS, 0, 0.3);
    fill(r, l->input_norm, HIDDEN, 1, 0.2);
    fill(r, l->q_norm, QS, 1.5, 0.2);
    fill(r, l->k_norm, KS, 1.5, 0.2);
    l->view = (struct layer_view){.input_norm = vector(l->input_norm, HIDDEN),
                                  .wq = linear("q_proj", l->wq, QS, HIDDEN),
                                  .wk = linear("k_proj", l->wk, KS, HIDDEN),
                                  .wv = linear("v_proj", l->wv, KS, HIDDEN),
                                  .wo = linear("o_proj", l->wo, HIDDEN, QS),
                                  .q_norm = vector(l->q_norm, QS),
                                  .k_norm = vector(l->k_norm, KS)};
}

/* ---- the naive layer ---- */

static void naive_norm(const double *v, const float *w, int n, double *out)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += v[i] * v[i];
    double r = 1 / sqrt(sum / n + (double)EPS);
    for (int i = 0; i < n; i++)
        out[i] = v[i] * r * (double)w[i];
}

static void naive_matmul(const float *w, int rows, int cols, const double *x, double *y)
{
    for (int i = 0; i < rows; i++) {
        y[i] = 0;
        for (int k = 0; k < cols; k++)
            y[i] += (double)w[i * cols + k] * x[k];
    }
}

static void naive_rope(double *heads, int n_heads, int position)
{
    for (int h = 0; h < n_heads; h++)
        for (int j = 0; j < ROTARY / 2; j++) {
            double angle = position / pow(THETA, 2.0 * j / ROTARY);
            double *a = heads + h * DIM + j, *b = a + ROTARY / 2, was = *a;
            *a = was * cos(angle) - *b * sin(angle);
            *b = *b * cos(angle) + was * sin(angle);
        }
}

struct naive_cache {
    double k[ROWS][KS], v[ROWS][KS];
};

static void naive_head(const struct naive_cache *c, const double *q, int head, int n_keys,
                       double *o)
{
    static double p[ROWS];
    double max = -HUGE_VAL, sum = 0;
    int base = head / (HEADS / KV_HEADS) * DIM;
    for (int j = 0; j < n_keys; j++) {
        p[j] = 0;
        for (int d = 0; d < DIM; d++)
            p[j] += q[d] * c->k[j][base + d] / sqrt(DIM);
        max = p[j] > max ? p[j] : max;
    }
    for (int j = 0; j < n_keys; j++)
        sum += p[j] = exp(p[j] - max);
    for (int d = 0; d < DIM; d++) {
        o[d] = 0;
        for (int j = 0; j < n_keys; j++)
            o[d] += p[j] / sum * c->v[j][base + d];
    }
}

static void naive_row(const struct layer_data *l, struct naive_cache *c, int position,
                      const float *x, double *out)
{
    double wide[HIDDEN], h[HIDDEN], q[QS], o[QS];
    for (int i = 0; i < HIDDEN; i++)
        wide[i] = (double)x[i];
    naive_norm(wide, l->input_norm, HIDDEN, h);
    naive_matmul(l->wq, QS, HIDDEN, h, q);
    naive_matmul(l->wk, KS, HIDDEN, h, c->k[position]);
    naive_matmul(l->wv, KS, HIDDEN, h, c->v[position]);
    naive_norm(q, l->q_norm, QS, q);
    naive_norm(c->k[position], l->k_norm, KS, c->k[position]);
    naive_rope(q, HEADS, position);
    naive_rope(c->k[position], KV_HEADS, position);
    for (int head = 0; head < HEADS; head++)
        naive_head(c, q + head * DIM, head, position + 1, o + head * DIM);
    naive_matmul(l->wo, HIDDEN, QS, o, out);
    for (int i = 0; i < HIDDEN; i++)
        out[i] += wide[i];
}

/* ---- ours ---- */

struct way {
    const char *kernels;
    enum kv_format kv;
    int n_threads, max_rows, chunk_rows;
    bool has_company; /* another sequence's rows come first in every step */
    bool has_stale;   /* the pages held another sequence's numbers, and NaN */
};

struct ours {
    struct attention *attention;
    struct attention_weights weights;
    struct compute compute;
    struct kv *kv;
    float *x; /* [max_rows, HIDDEN] */
};

static void open_ours(struct ours *o, const struct layer_data *l, const struct way *way)
{
    struct err e = {0};
    *o = (struct ours){.x = mem_aligned((size_t)way->max_rows * HIDDEN * sizeof(float))};
    o->compute.kernels = way->kernels ? kernels_named(way->kernels) : kernels_best();
    o->compute.pool = pool_new(way->n_threads, POOL_FREE);
    CHECK_INT(kv_open(&config, way->kv, PAGES * kv_page_bytes(&config, way->kv), &o->kv, &e), 0);
    struct attention_options options = {.max_rows = way->max_rows, .kv = way->kv};
    CHECK_INT(attention_load(&o->weights, &l->view, FORMAT_NATIVE, &o->compute, &e), 0);
    CHECK_INT(attention_open(&config, &options, o->compute, &o->attention, &e), 0);
}

static void close_ours(struct ours *o)
{
    attention_close(&o->attention);
    attention_fini(&o->weights);
    kv_close(&o->kv);
    pool_free(&o->compute.pool);
    mem_free(o->x);
}

/* A step's share of one sequence: rows from `from` go to x + *n_rows. */
static void place(struct ours *o, struct step_seq *s, const float *from, int *n_rows)
{
    size_t floats = (size_t)s->n_tokens * HIDDEN;
    memcpy(o->x + (size_t)*n_rows * HIDDEN, from + (size_t)s->position * HIDDEN,
           floats * sizeof(float));
    *n_rows += s->n_tokens;
    CHECK_INT(kv_reserve(o->kv, s->kv, s->position + s->n_tokens), 0);
    s->kv->length += s->n_tokens;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Every page is given back with NaN in it, or with what the largest numbers become. */
static void spoil_pages(struct ours *o)
{
    struct kv_seq seq = {0};
    float bad[KS];
    CHECK_INT(kv_reserve(o->kv, &seq, PAGES * KV_PAGE_TOKENS), 0);
    for (int position = 0; position < PAGES * KV_PAGE_TOKENS; position++) {
        for (int i = 0; i < KS; i++)
            bad[i] = position % 3 ? NAN : 1e38f;
        kv_write(o->kv, &seq, 0, position, bad, bad);
    }
    kv_truncate(o->kv, &seq, 0);
}

/* Runs all rows of x (and beside them `company`) through the layer. */
static void run_way(const struct layer_data *l, const struct way *way, const float *x,
                    const float *company, float *out)
{
    struct ours o;
    struct kv_seq seq = {0}, other = {0};
    open_ours(&o, l, way);
    if (way->has_stale)
        spoil_pages(&o);
    while (seq.length < ROWS) {
        struct step_seq seqs[2];
        int n_seqs = 0;
        int n_rows = 0;
        if (way->has_company && other.length < OTHER_ROWS) {
            int n = least(OTHER_ROWS - other.length, 5);
            seqs[n_seqs] = (struct step_seq){.kv = &other, .position = other.length, .n_tokens = n};
            place(&o, &seqs[n_seqs++], company, &n_rows);
        }
        int position = seq.length, first = n_rows;
        int n = least(least(ROWS - position, way->chunk_rows), way->max_rows - n_rows);
        seqs[n_seqs] = (struct step_seq){.kv = &seq, .position = position, .n_tokens = n};
        place(&o, &seqs[n_seqs++], x, &n_rows);
        attention_begin(o.attention, 0, seqs, n_seqs);
        attention_layer(o.attention, 0, &o.weights, o.kv, 0, o.x);
        memcpy(out + (size_t)position * HIDDEN, o.x + (size_t)first * HIDDEN,
               (size_t)n * HIDDEN * sizeof(float));
    }
    kv_truncate(o.kv, &seq, 0);
    kv_truncate(o.kv, &other, 0);
    close_ours(&o);
}

struct inputs {
    struct layer_data layer;
    float x[ROWS * HIDDEN], company[OTHER_ROWS * HIDDEN];
};

static struct inputs *make_inputs(void)
{
    struct rng r = test_rng();
    struct inputs *in = mem_alloc(sizeof(*in));
    make_layer(&in->layer, &r);
    fill(&r, in->x, ROWS * HIDDEN, 0, 1);
    fill(&r, in->company, OTHER_ROWS * HIDDEN, 0, 1);
    return in;
}

/* Largest and root mean square distance from the naive layer, of values of size 1. */
static void distance(const struct inputs *in, enum kv_format format, double *largest, double *rms)
{
    struct naive_cache *cache = mem_alloc(sizeof(*cache));
    float *got = mem_alloc(sizeof(in->x));
    const struct way way = {.kv = format, .n_threads = 1, .max_rows = 256, .chunk_rows = 256};
    run_way(&in->layer, &way, in->x, in->company, got);
    double sum = 0;
    *largest = 0;
    for (int row = 0; row < ROWS; row++) {
        double want[HIDDEN];
        naive_row(&in->layer, cache, row, in->x + row * HIDDEN, want);
        for (int i = 0; i < HIDDEN; i++) {
            double d = fabs((double)got[row * HIDDEN + i] - want[i]);
            CHECK(isfinite(d));
            *largest = d > *largest ? d : *largest;
            sum += d * d;
        }
    }
    *rms = sqrt(sum / (ROWS * HIDDEN));
    mem_free(got);
    mem_free(cache);
}

TEST(attention_agrees_with_a_naive_layer_over_several_chunks)
{
    struct inputs *in = make_inputs();
    double largest, rms;
    distance(in, KV_F32, &largest, &rms);
    /* f32 against double: values of size 1, softmax over up to 1,124 keys. */
    CHECK_NEAR(largest, 0, 3e-5);
    /* A rounding of bf16 is 2^-9 at most, 2^-10.3 rms, of keys, and scores are up to about 10;
     * int8's is 1/254 of the largest of 12 dimensions, of keys, queries and values.  Several
     * times what twelve seeds gave. */
    distance(in, KV_BF16, &largest, &rms);
    test_note("bf16: largest %.2g, rms %.2g", largest, rms);
    CHECK_NEAR(largest, 0, 0.15);
    CHECK_NEAR(rms, 0, 0.008);
    distance(in, KV_INT8, &largest, &rms);
    test_note("int8: largest %.2g, rms %.2g", largest, rms);
    CHECK_NEAR(largest, 0, 0.6);
    CHECK_NEAR(rms, 0, 0.03);
    mem_free(in);
}

TEST(attention_gives_the_same_bits_however_the_rows_come)
{
    struct inputs *in = make_inputs();
    float *want = mem_alloc(sizeof(in->x)), *got = mem_alloc(sizeof(in->x));
    const struct way ways[] = {
        {.n_threads = 1, .max_rows = 1, .chunk_rows = 1},
        {.n_threads = 1, .max_rows = 7, .chunk_rows = 7, .has_stale = true},
        {.n_threads = 2, .max_rows = 64, .chunk_rows = 64},
        {.n_threads = 3, .max_rows = 130, .chunk_rows = 130, .has_stale = true},
        {.n_threads = 3, .max_rows = ROWS, .chunk_rows = 1},
        {.n_threads = 2, .max_rows = 100, .chunk_rows = 33, .has_company = true},
        {.n_threads = 3, .max_rows = 6, .chunk_rows = 1, .has_company = true},
        {.kernels = "portable", .n_threads = 2, .max_rows = 200, .chunk_rows = 200},
        {.kernels = "avx2", .n_threads = 2, .max_rows = 90, .chunk_rows = 90, .has_stale = true},
    };
    for (int format = 0; format < KV_FORMAT_COUNT; format++) {
        struct way plain = {.n_threads = 1, .max_rows = ROWS, .chunk_rows = ROWS};
        plain.kv = (enum kv_format)format;
        run_way(&in->layer, &plain, in->x, in->company, want);
        for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
            struct way way = ways[i];
            way.kv = plain.kv;
            if (way.kernels && !kernels_named(way.kernels))
                continue;
            test_note("format %d, way %zu", format, i);
            memset(got, 0, sizeof(in->x));
            run_way(&in->layer, &way, in->x, in->company, got);
            CHECK_BYTES(got, want, sizeof(in->x));
        }
    }
    mem_free(got);
    mem_free(want);
    mem_free(in);
}
