/* tools/bench_kernels.c - `polymath bench kernels`: the products, the expert forward and the
 * small loops, on experts and attention matrices of M2's size. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tools/bench.h"
#include "tools/bench_random.h"

enum {
    HIDDEN = 3072,
    EXPERT_SIZE = 1536,
    Q_WIDTH = 6144, /* 48 heads x 128 */
    TOP_K = 8,
    MAX_EXPERTS = 256,
    ROWS_PER_EXPERT = 16,
    ATTENTION_ROWS = 512,
    ATTENTION_MATRICES = 4,
    SMALL_ROWS = 64
};

/* One format's experts and the rows that go through them. */
struct expert_bench {
    const struct compute *compute;
    enum weight_format format;
    int n_experts;
    struct expert *experts;
    const struct expert **held;
    size_t expert_bytes;

    int max_rows;
    float *f32;            /* [max_rows, HIDDEN]: also the narrower rows of `down` */
    struct rows_room room; /* of `wide` rows */
    struct rows_room narrow_room;
    struct rows wide, narrow; /* [max_rows]: HIDDEN and EXPERT_SIZE columns */
    float *y;                 /* [max_rows, HIDDEN] */

    struct expert_scratch *scratch;
    struct parcel_result result;
    int32_t *first_route;
    uint16_t *routes;
    float *weights;
    int16_t *exponents;

    int product_rows; /* of the case that runs */
    struct bench_matrix attention[ATTENTION_MATRICES];
};

/* ---- set-up ---- */

static int choose_experts(const struct bench_options *o, enum weight_format format, int *n,
                          struct err *e)
{
    size_t each;
    int rc = bench_expert_bytes(format, HIDDEN, EXPERT_SIZE, &each, e);
    if (rc < 0)
        return rc;
    size_t fit = mem_available_bytes() / 2 / each;
    *n = o->experts ? o->experts : fit < MAX_EXPERTS ? (int)fit : MAX_EXPERTS;
    *n -= *n % TOP_K;
    if (*n < TOP_K)
        return err_set(e, E_INVALID, "--experts: at least %d are needed, of %zu MB each", TOP_K,
                       each / 1000000);
    return 0;
}

static bool open_rows(struct expert_bench *x, int group)
{
    size_t rows = (size_t)x->max_rows;
    x->f32 = mem_try_aligned(rows * HIDDEN * sizeof(float));
    x->y = mem_try_aligned(rows * Q_WIDTH * sizeof(float));
    if (!x->f32 || !x->y || !rows_room_open(&x->room, x->max_rows, HIDDEN, group) ||
        !rows_room_open(&x->narrow_room, x->max_rows, EXPERT_SIZE, group))
        return false;
    bench_random_floats(x->f32, rows * HIDDEN, 1);
    x->wide =
        (struct rows){.n_rows = x->max_rows, .cols = HIDDEN, .f32 = x->f32, .f32_stride = HIDDEN};
    x->narrow = x->wide;
    x->narrow.cols = EXPERT_SIZE;
    rows_quantise(x->compute, &x->room, &x->wide);
    rows_quantise(x->compute, &x->narrow_room, &x->narrow);
    return true;
}

/* Row i goes to experts 8i .. 8i + 7, modulo their number: every expert gets as many rows. */
static bool open_routes(struct expert_bench *x)
{
    int n_rows = x->n_experts * ROWS_PER_EXPERT / TOP_K, n_routes = n_rows * TOP_K;
    x->first_route = mem_array((size_t)n_rows + 1, sizeof(*x->first_route));
    x->routes = mem_array((size_t)n_routes, sizeof(*x->routes));
    x->weights = mem_array((size_t)n_routes, sizeof(*x->weights));
    x->exponents = mem_array((size_t)n_rows, sizeof(*x->exponents));
    for (int i = 0; i <= n_rows; i++)
        x->first_route[i] = i * TOP_K;
    for (int i = 0; i < n_routes; i++) {
        x->routes[i] = (uint16_t)(i % x->n_experts);
        x->weights[i] = 1.0f / TOP_K;
    }
    for (int i = 0; i < n_rows; i++)
        x->exponents[i] = (int16_t)combine_exponent(x->f32 + (size_t)i * HIDDEN, HIDDEN);
    size_t values = (size_t)n_rows * HIDDEN;
    x->result.fixed = mem_try_aligned(values * sizeof(*x->result.fixed));
    x->result.overflow = mem_try_aligned((size_t)n_rows);
    x->scratch = expert_scratch_new(n_rows, TOP_K, HIDDEN, EXPERT_SIZE, format_group(x->format));
    return x->result.fixed && x->result.overflow && x->scratch;
}

static int open_attention(struct expert_bench *x, struct err *e)
{
    for (int i = 0; i < ATTENTION_MATRICES; i++) {
        int rc = bench_matrix_open(&x->attention[i], x->format, Q_WIDTH, HIDDEN, (uint64_t)i, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static void close_experts(struct expert_bench *x)
{
    for (int i = 0; x->experts && i < x->n_experts; i++)
        expert_fini(&x->experts[i]);
    for (int i = 0; i < ATTENTION_MATRICES; i++)
        bench_matrix_close(&x->attention[i]);
    expert_scratch_free(&x->scratch);
    rows_room_close(&x->room);
    rows_room_close(&x->narrow_room);
    void *const blocks[] = {x->experts,      x->held,           x->f32,     x->y,
                            x->first_route,  x->routes,         x->weights, x->exponents,
                            x->result.fixed, x->result.overflow};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        mem_free(blocks[i]);
}

static int open_experts(struct expert_bench *x, struct bench *b, enum weight_format format,
                        struct err *e)
{
    *x = (struct expert_bench){.compute = &b->compute, .format = format};
    int rc = choose_experts(b->options, format, &x->n_experts, e);
    if (rc == 0)
        rc = bench_expert_bytes(format, HIDDEN, EXPERT_SIZE, &x->expert_bytes, e);
    if (rc < 0)
        return rc;
    x->max_rows = x->n_experts * ROWS_PER_EXPERT / TOP_K;
    x->max_rows = x->max_rows > ATTENTION_ROWS ? x->max_rows : ATTENTION_ROWS;
    x->experts = mem_array((size_t)x->n_experts, sizeof(*x->experts));
    x->held = mem_array((size_t)x->n_experts, sizeof(const struct expert *));
    for (int i = 0; i < x->n_experts; i++)
        x->held[i] = &x->experts[i];
    rc = bench_experts_open(x->experts, x->n_experts, format, HIDDEN, EXPERT_SIZE, b->compute.pool,
                            e);
    if (rc == 0)
        rc = open_attention(x, e);
    if (rc == 0 && (!open_rows(x, format_group(format)) || !open_routes(x)))
        rc = err_set(e, E_NOMEM, "no memory for %d rows", x->max_rows);
    if (rc < 0)
        close_experts(x);
    return rc;
}

/* ---- the cases ---- */

/* Every matrix of every expert, each with its own rows. */
static void products_body(void *ud)
{
    struct expert_bench *x = ud;
    for (int i = 0; i < x->n_experts; i++) {
        int first = i * x->product_rows % (x->max_rows - x->product_rows + 1);
        struct rows wide = rows_part(&x->wide, first, x->product_rows);
        struct rows narrow = rows_part(&x->narrow, first, x->product_rows);
        matmul(x->compute, &x->experts[i].gate, &wide, x->y, EXPERT_SIZE);
        matmul(x->compute, &x->experts[i].up, &wide, x->y, EXPERT_SIZE);
        matmul(x->compute, &x->experts[i].down, &narrow, x->y, HIDDEN);
    }
}

static void attention_body(void *ud)
{
    struct expert_bench *x = ud;
    struct rows wide = rows_part(&x->wide, 0, x->product_rows);
    for (int i = 0; i < ATTENTION_MATRICES; i++)
        matmul(x->compute, &x->attention[i].m, &wide, x->y, (size_t)x->attention[i].m.rows);
}

static void run_parcel(struct expert_bench *x, const uint16_t *routes, int n_rows)
{
    struct parcel p = {.n_rows = n_rows,
                       .hidden = HIDDEN,
                       .n_routes = n_rows * TOP_K,
                       .mode = COMBINE_FIXED,
                       .rows = rows_part(&x->wide, 0, n_rows),
                       .exponents = x->exponents,
                       .first_route = x->first_route,
                       .experts = routes,
                       .weights = x->weights};
    expert_forward(x->compute, x->scratch, x->held, x->n_experts, &p, &x->result);
}

static void one_row_body(void *ud)
{
    struct expert_bench *x = ud;
    for (int first = 0; first < x->n_experts; first += TOP_K)
        run_parcel(x, x->routes + first, 1);
}

static void many_rows_body(void *ud)
{
    struct expert_bench *x = ud;
    run_parcel(x, x->routes, x->n_experts * ROWS_PER_EXPERT / TOP_K);
}

static double expert_weights(const struct expert_bench *x)
{
    return 3.0 * HIDDEN * EXPERT_SIZE * x->n_experts;
}

static void run_products(struct bench *b, struct expert_bench *x, int rows)
{
    char name[64];
    x->product_rows = rows;
    snprintf(name, sizeof(name), "matmul %s, %d row%s", format_name(x->format), rows,
             rows == 1 ? "" : "s");
    struct bench_case c = {.name = name,
                           .body = products_body,
                           .ud = x,
                           .bytes = (double)x->expert_bytes * x->n_experts,
                           .ops = rows > 1 ? 2 * expert_weights(x) * rows : 0,
                           .kind = bench_kind_of(x->format)};
    bench_case_run(b, &c);
}

static void run_attention_products(struct bench *b, struct expert_bench *x)
{
    char name[64];
    double weights = 0;
    x->product_rows = ATTENTION_ROWS;
    for (int i = 0; i < ATTENTION_MATRICES; i++)
        weights += (double)x->attention[i].m.rows * x->attention[i].m.cols;
    snprintf(name, sizeof(name), "matmul %s, %d rows, attention", format_name(x->format),
             ATTENTION_ROWS);
    struct bench_case c = {.name = name,
                           .body = attention_body,
                           .ud = x,
                           .ops = 2 * weights * ATTENTION_ROWS,
                           .kind = bench_kind_of(x->format)};
    bench_case_run(b, &c);
}

static void run_forward(struct bench *b, struct expert_bench *x)
{
    char name[64];
    snprintf(name, sizeof(name), "expert %s, 1 row x %d experts", format_name(x->format), TOP_K);
    struct bench_case one = {.name = name,
                             .body = one_row_body,
                             .ud = x,
                             .bytes = (double)x->expert_bytes * x->n_experts};
    bench_case_run(b, &one);
    snprintf(name, sizeof(name), "expert %s, %d rows x %d experts", format_name(x->format),
             ROWS_PER_EXPERT, x->n_experts);
    struct bench_case many = {.name = name,
                              .body = many_rows_body,
                              .ud = x,
                              .bytes = (double)x->expert_bytes * x->n_experts,
                              .ops = 2 * expert_weights(x) * ROWS_PER_EXPERT,
                              .kind = bench_kind_of(x->format)};
    bench_case_run(b, &many);
}

static int run_format(struct bench *b, enum weight_format format, struct err *e)
{
    struct expert_bench x;
    struct bench_list rows = b->options->rows;
    if (rows.n == 0)
        rows = (struct bench_list){.n = 3, .values = {1, 16, 64}};
    int rc = open_experts(&x, b, format, e);
    if (rc < 0)
        return err_prefix(e, "%s", format_name(format));
    for (int i = 0; i < rows.n && rc == 0; i++)
        if (rows.values[i] > x.max_rows)
            rc = err_set(e, E_INVALID, "--rows %d: at most %d with %d experts", rows.values[i],
                         x.max_rows, x.n_experts);
        else
            run_products(b, &x, rows.values[i]);
    if (rc == 0) {
        run_attention_products(b, &x);
        run_forward(b, &x);
    }
    close_experts(&x);
    return rc;
}

/* ---- small loops, on one thread, in the cache as on the step path ---- */

struct small {
    const struct kernels *kernels;
    float *x, *out, *weight;
    int8_t *q;
    float scales[HIDDEN / Q4_GROUP];
    int32_t sums[HIDDEN / Q4_GROUP];
    int group;
};

static void quantise_body(void *ud)
{
    struct small *s = ud;
    for (int row = 0; row < SMALL_ROWS; row++)
        s->kernels->quantise(s->x + (size_t)row * HIDDEN, HIDDEN, s->group, s->q, s->scales,
                             s->sums);
}

static void rms_norm_body(void *ud)
{
    struct small *s = ud;
    for (int row = 0; row < SMALL_ROWS; row++)
        s->kernels->rms_norm(s->x + (size_t)row * HIDDEN, s->weight, HIDDEN, 1e-6f, s->out);
}

static void swiglu_body(void *ud)
{
    struct small *s = ud;
    for (int row = 0; row < SMALL_ROWS; row++) {
        memcpy(s->out, s->x, EXPERT_SIZE * sizeof(float));
        s->kernels->swiglu(s->out, s->weight, EXPERT_SIZE);
    }
}

static void run_small(struct bench *b)
{
    struct small s = {.kernels = b->compute.kernels};
    size_t values = (size_t)SMALL_ROWS * HIDDEN;
    s.x = mem_aligned(values * sizeof(float));
    s.out = mem_aligned(HIDDEN * sizeof(float));
    s.weight = mem_aligned(HIDDEN * sizeof(float));
    s.q = mem_aligned(HIDDEN);
    bench_random_floats(s.x, values, 1);
    bench_random_floats(s.weight, HIDDEN, 2);
    struct bench_case c = {.ud = &s, .bytes = (double)values * sizeof(float), .is_serial = true};
    c.name = "quantise for q8, 1 thread";
    c.body = quantise_body;
    s.group = Q8_GROUP;
    bench_case_run(b, &c);
    c.name = "quantise for q4, 1 thread";
    s.group = Q4_GROUP;
    bench_case_run(b, &c);
    c.name = "rms_norm, 1 thread";
    c.body = rms_norm_body;
    bench_case_run(b, &c);
    c.name = "swiglu, 1 thread";
    c.body = swiglu_body;
    c.bytes /= 2;
    bench_case_run(b, &c);
    mem_free(s.x);
    mem_free(s.out);
    mem_free(s.weight);
    mem_free(s.q);
}

/* ---- the whole ---- */

static int parse_formats(const char *text, enum weight_format *out, int *n, struct err *e)
{
    char item[16];
    *n = 0;
    for (const char *at = text; *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ',')) {
        snprintf(item, sizeof(item), "%.*s", (int)strcspn(at, ","), at);
        if (!format_parse(item, &out[*n]) || out[*n] == FORMAT_NATIVE)
            return err_set(e, E_INVALID, "--format %s: \"%s\" is none of f32, bf16, fp8, q8, q4",
                           text, item);
        if (++*n == FORMAT_COUNT)
            break;
    }
    return *n > 0 ? 0 : err_set(e, E_INVALID, "--format: no format is named");
}

static void run_probes(struct bench *b)
{
    static const char *const keys[] = {"f32", "q8", "q4"};
    struct bench_series reads = {0};
    for (int i = 0; i < b->options->repeat; i++)
        bench_series_add(&reads, bench_probe_read_gb_s(b->probe));
    struct bench_metric m = bench_metric_of("gb_s", "GB/s", &reads, NULL, NULL);
    bench_report_row(&b->report, "probe read, 4 streams a thread", &m, 1);
    for (enum bench_arithmetic_kind kind = BENCH_F32; kind <= BENCH_Q4; kind++) {
        struct bench_series rates = {0};
        char name[64];
        for (int i = 0; i < b->options->repeat; i++)
            bench_series_add(&rates, bench_probe_gop_s(b->probe, kind));
        m = bench_metric_of("gop_s", "GOP/s", &rates, NULL, NULL);
        snprintf(name, sizeof(name), "probe %s, %s", keys[kind], bench_probe_name(b->probe, kind));
        bench_report_row(&b->report, name, &m, 1);
    }
}

static int run_level(const struct bench_options *o, const struct kernels *kernels, struct err *e)
{
    enum weight_format formats[FORMAT_COUNT];
    int n_formats;
    struct bench b;
    int rc = parse_formats(o->formats ? o->formats : "q8,q4,fp8,bf16", formats, &n_formats, e);
    if (rc == 0)
        rc = bench_open(&b, o, kernels, e);
    if (rc < 0)
        return rc;
    run_probes(&b);
    for (int i = 0; i < n_formats && rc == 0; i++)
        rc = run_format(&b, formats[i], e);
    if (rc == 0)
        run_small(&b);
    bench_close(&b);
    return rc;
}

int bench_kernels(const struct bench_options *o, struct err *e)
{
    if (!o->all_kernels)
        return run_level(o, o->engine.kernels ? kernels_named(o->engine.kernels) : kernels_best(),
                         e);
    int rc = 0;
    for (const char *const *name = kernels_names(); *name && rc == 0; name++) {
        const struct kernels *kernels = kernels_named(*name);
        if (kernels)
            rc = run_level(o, kernels, e);
        else
            fprintf(stderr, "bench kernels: %s does not run here\n", *name);
    }
    return rc;
}
