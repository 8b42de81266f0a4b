/* tests/unit/test_expert.c - parcels against the formula row by row; every mode, any number
 * of threads, any placement. */
#include "engine/expert.h"

#include <math.h>

#include "base/mem.h"
#include "model/halves.h"
#include "tests/lib/test.h"

enum { EXPERTS = 12, TOP_K = 4, HIDDEN = 150, INNER = 83, MAX_ROWS = 90 };

struct world {
    struct compute c;
    struct expert experts[EXPERTS];
    const struct expert *held[EXPERTS];
    struct expert_scratch *scratch;
    struct parcel p;
    float rows[MAX_ROWS * HIDDEN];
    int16_t exponents[MAX_ROWS];
    int32_t first_route[MAX_ROWS + 1];
    uint16_t chosen[MAX_ROWS * TOP_K];
    float weights[MAX_ROWS * TOP_K];
    struct parcel_result out;
    float y[MAX_ROWS * TOP_K * HIDDEN]; /* each route's output, by the formula */
};

static struct linear_view random_view(struct rng *r, const char *label, int rows, int cols)
{
    size_t n = (size_t)rows * (size_t)cols;
    float *w = mem_array(n, sizeof(*w));
    for (size_t i = 0; i < n; i++)
        w[i] = (float)(0.1 * rng_normal(r));
    struct linear_view v = {.label = label, .rows = rows, .cols = cols};
    v.weight = (struct tensor){.dtype = DTYPE_F32,
                               .n_dims = 2,
                               .dims = {rows, cols},
                               .data = w,
                               .size_bytes = n * sizeof(*w)};
    return v;
}

static void free_view(const struct linear_view *v)
{
    float *w;
    memcpy(&w, &v->weight.data, sizeof(w)); /* ours; the view's pointer is const */
    mem_free(w);
}

static struct expert_view random_expert(struct rng *r, int inner)
{
    return (struct expert_view){.gate = random_view(r, "w1", inner, HIDDEN),
                                .up = random_view(r, "w3", inner, HIDDEN),
                                .down = random_view(r, "w2", HIDDEN, inner)};
}

static void free_views(const struct expert_view *v)
{
    free_view(&v->gate);
    free_view(&v->up);
    free_view(&v->down);
}

static struct world *world_new(enum weight_format f, int n_threads, struct rng *r)
{
    struct world *w = mem_alloc(sizeof(*w));
    w->c = (struct compute){.kernels = kernels_best(), .pool = pool_new(n_threads, POOL_FREE)};
    for (int i = 0; i < EXPERTS; i++) {
        struct expert_view v = random_expert(r, INNER);
        struct err e = {0};
        if (expert_load(&w->experts[i], &v, f, &w->c, &e) < 0)
            test_fail(__FILE__, __LINE__, "%s", e.text);
        free_views(&v);
        w->held[i] = &w->experts[i];
    }
    w->scratch = expert_scratch_new(MAX_ROWS, TOP_K, HIDDEN, INNER);
    w->out.fixed = mem_array(MAX_ROWS * HIDDEN, sizeof(int32_t));
    w->out.overflow = mem_array(MAX_ROWS, 1);
    w->out.by_expert = mem_array(MAX_ROWS * TOP_K * HIDDEN, sizeof(float));
    w->out.node = mem_array(MAX_ROWS * HIDDEN, sizeof(uint16_t));
    return w;
}

static void world_free(struct world *w)
{
    for (int i = 0; i < EXPERTS; i++)
        expert_fini(&w->experts[i]);
    expert_scratch_free(&w->scratch);
    pool_free(&w->c.pool);
    mem_free(w->out.fixed);
    mem_free(w->out.overflow);
    mem_free(w->out.by_expert);
    mem_free(w->out.node);
    mem_free(w);
}

/* 0 to TOP_K different experts per row; expert 0 is in most rows, the last one in none. */
static void make_parcel(struct world *w, int n_rows, struct rng *r)
{
    int n = 0;
    for (int row = 0; row < n_rows; row++) {
        w->first_route[row] = n;
        int n_slots = n_rows == 1 ? TOP_K : (int)rng_below(r, TOP_K + 1);
        for (int slot = 0; slot < n_slots; slot++, n++) {
            int span = (EXPERTS - 1) / TOP_K, first = slot * span;
            w->chosen[n] = (uint16_t)(first + (slot ? (int)rng_below(r, (uint64_t)span) : 0));
            w->weights[n] = (float)rng_unit(r);
        }
        for (int i = 0; i < HIDDEN; i++)
            w->rows[row * HIDDEN + i] = (float)rng_normal(r);
        w->exponents[row] = (int16_t)combine_exponent(w->rows + row * HIDDEN, HIDDEN);
    }
    w->first_route[n_rows] = n;
    w->p = (struct parcel){.n_rows = n_rows,
                           .hidden = HIDDEN,
                           .n_routes = n,
                           .rows = w->rows,
                           .exponents = w->exponents,
                           .first_route = w->first_route,
                           .experts = w->chosen,
                           .weights = w->weights};
}

/* y = down(silu(gate x) * (up x)), one row at a time on one thread. */
static void compute_by_formula(struct world *w)
{
    struct compute c = {.kernels = w->c.kernels};
    float gate[INNER], up[INNER];
    for (int row = 0; row < w->p.n_rows; row++)
        for (int route = w->first_route[row]; route < w->first_route[row + 1]; route++) {
            const struct expert *x = &w->experts[w->chosen[route]];
            matmul(&c, &x->gate, w->rows + row * HIDDEN, HIDDEN, 1, gate, INNER);
            matmul(&c, &x->up, w->rows + row * HIDDEN, HIDDEN, 1, up, INNER);
            c.kernels->swiglu(gate, up, INNER);
            matmul(&c, &x->down, gate, INNER, 1, w->y + route * HIDDEN, HIDDEN);
        }
}

static void run(struct world *w, enum combine_mode mode)
{
    w->p.mode = mode;
    mem_guard_begin("expert_forward");
    expert_forward(&w->c, w->scratch, w->held, EXPERTS, &w->p, &w->out);
    mem_guard_end();
}

static void check_fixed(const struct world *w)
{
    for (int row = 0; row < w->p.n_rows; row++) {
        int32_t want[HIDDEN] = {0};
        int n_over = 0;
        for (int route = w->first_route[row]; route < w->first_route[row + 1]; route++)
            n_over += w->c.kernels->fixed_add(w->y + route * HIDDEN, w->weights[route],
                                              w->exponents[row], HIDDEN, want);
        CHECK_INT(w->out.overflow[row], n_over > 0);
        if (!n_over)
            CHECK_BYTES(w->out.fixed + row * HIDDEN, want, sizeof(want));
    }
}

static void check_node(const struct world *w)
{
    for (int row = 0; row < w->p.n_rows; row++)
        for (int i = 0; i < HIDDEN; i++) {
            float acc = 0.0f;
            for (int route = w->first_route[row]; route < w->first_route[row + 1]; route++)
                acc = fmaf(w->weights[route], w->y[route * HIDDEN + i], acc);
            CHECK_INT(w->out.node[row * HIDDEN + i], f32_to_bf16(acc));
        }
}

TEST(a_parcel_is_its_rows_one_by_one)
{
    const int n_rows[] = {1, 2, 7, 31, MAX_ROWS, 0};
    struct rng r = test_rng();
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        struct world *w = world_new(FORMAT_F32 + (n_threads - 1), n_threads, &r);
        for (int i = 0; i < 6; i++) {
            make_parcel(w, n_rows[i], &r);
            compute_by_formula(w);
            run(w, COMBINE_FIXED);
            check_fixed(w);
            run(w, COMBINE_EXPERT);
            CHECK_BYTES(w->out.by_expert, w->y, (size_t)w->p.n_routes * HIDDEN * sizeof(float));
            run(w, COMBINE_NODE);
            check_node(w);
        }
        world_free(w);
    }
}

/* The same routes, split over two holders of experts: integers add up to the same. */
TEST(fixed_sums_do_not_depend_on_placement)
{
    struct rng r = test_rng();
    struct world *w = world_new(FORMAT_BF16, 2, &r);
    make_parcel(w, 40, &r);
    run(w, COMBINE_FIXED);
    static int32_t whole[40 * HIDDEN], sum[40 * HIDDEN];
    memcpy(whole, w->out.fixed, sizeof(whole));
    struct parcel all = w->p;
    for (int node = 0; node < 2; node++) {
        static int32_t first_route[41];
        static uint16_t experts[40 * TOP_K];
        static float weights[40 * TOP_K];
        int n = 0;
        for (int row = 0; row < 40; row++) {
            first_route[row] = n;
            for (int i = all.first_route[row]; i < all.first_route[row + 1]; i++)
                if (all.experts[i] % 2 == node) {
                    experts[n] = all.experts[i];
                    weights[n++] = all.weights[i];
                }
        }
        first_route[40] = n;
        w->p = all;
        w->p.first_route = first_route;
        w->p.experts = experts;
        w->p.weights = weights;
        w->p.n_routes = n;
        for (int i = 0; i < EXPERTS; i++)
            w->held[i] = i % 2 == node ? &w->experts[i] : NULL;
        run(w, COMBINE_FIXED);
        w->c.kernels->add_int32(sum, w->out.fixed, 40 * HIDDEN);
    }
    CHECK_BYTES(sum, whole, sizeof(whole));
    world_free(w);
}

TEST(rows_that_leave_the_grid_are_flagged_alone)
{
    struct rng r = test_rng();
    struct world *w = world_new(FORMAT_F32, 2, &r);
    make_parcel(w, 5, &r);
    for (int row = 0; row <= 5; row++)
        w->first_route[row] = row * TOP_K;
    for (int i = 0; i < 5 * TOP_K; i++) {
        w->chosen[i] = (uint16_t)(i % TOP_K);
        w->weights[i] = 0.25f;
    }
    w->p.n_routes = 5 * TOP_K;
    w->exponents[1] = -60;           /* much too fine for what comes */
    w->rows[2 * HIDDEN + 149] = NAN; /* a row that is no row */
    w->exponents[3] = INT16_MIN;     /* an exponent that is never sent */
    run(w, COMBINE_FIXED);
    const int want[] = {0, 1, 1, 1, 0};
    for (int row = 0; row < 5; row++)
        CHECK_INT(w->out.overflow[row], want[row]);
    /* Mode expert answers for the flagged rows. */
    run(w, COMBINE_EXPERT);
    for (int i = 0; i < TOP_K * HIDDEN; i++)
        CHECK(isfinite(w->out.by_expert[1 * TOP_K * HIDDEN + i]));
    world_free(w);
}

TEST(matrices_that_are_not_one_expert_are_refused)
{
    struct rng r = test_rng();
    struct expert_view v = random_expert(&r, INNER), other = random_expert(&r, INNER + 1);
    struct compute c = {.kernels = kernels_best()};
    struct err e = {0};
    struct expert x;
    struct expert_view mixed = v;
    mixed.down = other.down;
    CHECK_INT(expert_load(&x, &mixed, FORMAT_NATIVE, &c, &e), E_CORRUPT);
    CHECK_HAS(e.text, "w2 [150, 84]");
    CHECK(!x.gate.panels && !x.up.panels && !x.down.panels);
    CHECK_INT(expert_load(&x, &v, FORMAT_NATIVE, &c, &e), 0);
    /* f32: 6 panels of 152 columns twice, 10 panels of 84 columns. */
    CHECK_INT(expert_bytes(&x), 4 * 16 * (2 * 6 * 152 + 10 * 84));
    expert_fini(&x);
    free_views(&v);
    free_views(&other);
}
