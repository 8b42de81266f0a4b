/* tests/unit/test_expert.c - parcels against the formula row by row; every mode, any number
 * of threads, any placement. */
#include "engine/expert.h"

#include <math.h>

#include "base/mem.h"
#include "engine/matrix.h"
#include "model/halves.h"
#include "tests/lib/test.h"

enum { EXPERTS = 12, TOP_K = 4, HIDDEN = 150, INNER = 330, MAX_ROWS = 90 };
enum { X_STRIDE = 160, INNER_STRIDE = 336 };

struct world {
    struct compute c;
    struct expert experts[EXPERTS];
    const struct expert *held[EXPERTS];
    struct expert_scratch *scratch;
    enum weight_format format;
    struct parcel p;
    float rows[MAX_ROWS * X_STRIDE];
    struct rows_room room; /* of rows, for integer formats */
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
    w->format = f;
    w->c = (struct compute){.kernels = kernels_best(), .pool = pool_new(n_threads, POOL_FREE)};
    for (int i = 0; i < EXPERTS; i++) {
        struct expert_view v = random_expert(r, INNER);
        struct err e = {0};
        if (expert_load(&w->experts[i], &v, f, &w->c, &e) < 0)
            test_fail(__FILE__, __LINE__, "%s", e.text);
        free_views(&v);
        w->held[i] = &w->experts[i];
    }
    w->scratch = expert_scratch_new(MAX_ROWS, TOP_K, HIDDEN, INNER, format_group(f));
    CHECK(rows_room_open(&w->room, MAX_ROWS, HIDDEN, format_group(f)));
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
    rows_room_close(&w->room);
    pool_free(&w->c.pool);
    mem_free(w->out.fixed);
    mem_free(w->out.overflow);
    mem_free(w->out.by_expert);
    mem_free(w->out.node);
    mem_free(w);
}

/* Integer formats get the quantised form alone, as a node gets it from the wire. */
static void set_rows(struct world *w, int n_rows)
{
    w->p.rows =
        (struct rows){.n_rows = n_rows, .cols = HIDDEN, .f32 = w->rows, .f32_stride = X_STRIDE};
    rows_quantise(&w->c, &w->room, &w->p.rows);
    if (w->p.rows.group)
        w->p.rows.f32 = NULL;
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
            w->rows[row * X_STRIDE + i] = (float)rng_normal(r);
        w->exponents[row] = (int16_t)combine_exponent(w->rows + row * X_STRIDE, HIDDEN);
    }
    w->first_route[n_rows] = n;
    w->p = (struct parcel){.n_rows = n_rows,
                           .hidden = HIDDEN,
                           .n_routes = n,
                           .exponents = w->exponents,
                           .first_route = w->first_route,
                           .experts = w->chosen,
                           .weights = w->weights};
    set_rows(w, n_rows);
}

/* y = down(silu(gate x) * (up x)), one row at a time on one thread, every step of its own. */
static void compute_by_formula(struct world *w)
{
    struct compute c = {.kernels = w->c.kernels};
    float gate[INNER_STRIDE] = {0}, up[INNER_STRIDE];
    struct rows_room room;
    CHECK(rows_room_open(&room, 1, INNER, format_group(w->format)));
    for (int row = 0; row < w->p.n_rows; row++)
        for (int route = w->first_route[row]; route < w->first_route[row + 1]; route++) {
            const struct expert *e = &w->experts[w->chosen[route]];
            struct rows x = rows_part(&w->p.rows, row, 1);
            matmul(&c, &e->gate, &x, gate, INNER_STRIDE);
            matmul(&c, &e->up, &x, up, INNER_STRIDE);
            c.kernels->swiglu(gate, up, INNER);
            struct rows inner = {
                .n_rows = 1, .cols = INNER, .f32 = gate, .f32_stride = INNER_STRIDE};
            rows_quantise(&c, &room, &inner);
            matmul(&c, &e->down, &inner, w->y + route * HIDDEN, HIDDEN);
        }
    rows_room_close(&room);
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
    for (int way = 0; way < 2 * (FORMAT_COUNT - 1); way++) {
        struct world *w = world_new(FORMAT_F32 + way / 2, 1 + way % 3, &r);
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

/* One expert and more rows than a task takes; many threads. */
TEST(an_expert_with_all_the_rows_is_shared_out)
{
    struct rng r = test_rng();
    for (int f = FORMAT_F32; f < FORMAT_COUNT; f++) {
        struct world *w = world_new((enum weight_format)f, 5, &r);
        make_parcel(w, MAX_ROWS, &r);
        for (int row = 0; row < MAX_ROWS; row++)
            w->first_route[row + 1] = row + 1;
        for (int route = 0; route < MAX_ROWS; route++)
            w->chosen[route] = 7;
        w->p.n_routes = MAX_ROWS;
        compute_by_formula(w);
        run(w, COMBINE_EXPERT);
        CHECK_BYTES(w->out.by_expert, w->y, MAX_ROWS * HIDDEN * sizeof(float));
        world_free(w);
    }
}

/* The same routes, split over two holders of experts: integers add up to the same. */
TEST(fixed_sums_do_not_depend_on_placement)
{
    struct rng r = test_rng();
    struct world *w = world_new(FORMAT_Q8, 2, &r);
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
        w->p = all; /* its rows too */
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

static void check_flags(enum weight_format f, struct rng *r)
{
    struct world *w = world_new(f, 2, r);
    make_parcel(w, 5, r);
    for (int row = 0; row <= 5; row++)
        w->first_route[row] = row * TOP_K;
    for (int i = 0; i < 5 * TOP_K; i++) {
        w->chosen[i] = (uint16_t)(i % TOP_K);
        w->weights[i] = 0.25f;
    }
    w->p.n_routes = 5 * TOP_K;
    w->exponents[1] = -60;             /* much too fine for what comes */
    w->rows[2 * X_STRIDE + 149] = NAN; /* a row that is no row */
    w->exponents[3] = INT16_MIN;       /* an exponent that is never sent */
    set_rows(w, 5);
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

TEST(rows_that_leave_the_grid_are_flagged_alone)
{
    struct rng r = test_rng();
    for (int f = FORMAT_F32; f <= FORMAT_Q8; f += FORMAT_Q8 - FORMAT_F32)
        check_flags((enum weight_format)f, &r);
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
    CHECK_HAS(e.text, "w2 [150, 331]");
    CHECK(!x.gate.panels && !x.up.panels && !x.down.panels && !x.room);
    CHECK_INT(expert_load(&x, &v, FORMAT_NATIVE, &c, &e), 0);
    /* f32: 21 panels of 152 columns twice, 10 panels of 332 columns; one run. */
    CHECK_INT(expert_bytes(&x), 4 * 16 * (2 * 21 * 152 + 10 * 332));
    CHECK_INT(x.room_bytes, expert_bytes(&x));
    CHECK(x.gate.panels == x.room && (char *)x.up.panels == (char *)x.room + matrix_bytes(&x.gate));
    expert_fini(&x);
    free_views(&v);
    free_views(&other);
}

/* Packed matrices stay where they lie; nothing is taken for them. */
TEST(a_packed_expert_is_mapped_or_copied_whole)
{
    struct rng r = test_rng();
    struct expert_view v = random_expert(&r, INNER), packed = {0};
    struct compute c = {.kernels = kernels_best()};
    struct expert own, mapped;
    CHECK_INT(expert_load(&own, &v, FORMAT_Q4, &c, NULL), 0);
    struct linear_view *const views[] = {&packed.gate, &packed.up, &packed.down};
    const struct matrix *const from[] = {&own.gate, &own.up, &own.down};
    for (int i = 0; i < 3; i++)
        *views[i] = (struct linear_view){.label = "w",
                                         .rows = from[i]->rows,
                                         .cols = from[i]->cols,
                                         .packed = from[i]->panels,
                                         .packed_bytes = matrix_bytes(from[i]),
                                         .packed_format = FORMAT_Q4};
    CHECK_INT(expert_load(&mapped, &packed, FORMAT_NATIVE, &c, NULL), 0);
    CHECK(!mapped.room && mapped.room_bytes == 0 && mapped.down.panels == own.down.panels);
    expert_fini(&mapped);
    for (int i = 0; i < 3; i++)
        views[i]->copies_packed = true;
    CHECK_INT(expert_load(&mapped, &packed, FORMAT_Q4, &c, NULL), 0);
    CHECK_INT(mapped.room_bytes, own.room_bytes);
    CHECK_BYTES(mapped.room, own.room, own.room_bytes);
    expert_fini(&mapped);
    struct err e = {0};
    packed.up.packed_bytes--;
    CHECK_INT(expert_load(&mapped, &packed, FORMAT_Q4, &c, &e), E_CORRUPT);
    CHECK(!mapped.room);
    expert_fini(&own);
    free_views(&v);
}
