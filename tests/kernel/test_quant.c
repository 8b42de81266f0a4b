/* tests/kernel/test_quant.c - int8 rows and q8 and q4 weights: every column of the table gives
 * the bits of portable C, and portable C gives the bits of the formulas in kernels.h and
 * rows.h.  Panels are made here, byte by byte, so that what lies past the last row and column
 * of W can be anything. */
#include <float.h>
#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "engine/kernels.h"
#include "model/halves.h"
#include "tests/lib/test.h"

enum { MAX_ROWS = 70, CANARIES = 24, Q8_BYTES = 2112, Q4_BYTES = 576 };
#define CANARY 0x7ac0ffeeu /* a finite float that no kernel computes */
#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))
static const enum weight_format formats[] = {FORMAT_Q8, FORMAT_Q4};

static const struct kernels *portable(void)
{
    return kernels_named("portable");
}

/* Calls `check` for every level that runs here; says which do not. */
static void each_level(void (*check)(const struct kernels *k))
{
    for (const char *const *name = kernels_names(); *name; name++) {
        const struct kernels *k = kernels_named(*name);
        if (k)
            check(k);
        else
            test_say("%s does not run on this machine", *name);
    }
}

/* Equal bits; of a NaN only that it is one. */
static bool is_same(float a, float b)
{
    return (isnan(a) && isnan(b)) || f32_to_bits(a) == f32_to_bits(b);
}

static void check_same(const char *what, const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!is_same(got[i], want[i]))
            test_fail(__FILE__, __LINE__, "%s: [%zu] is %a, expected %a", what, i, (double)got[i],
                      (double)want[i]);
}

static void fill_canaries(float *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = f32_from_bits(CANARY);
}

/* ---- weights and rows ---- */

/* What fills the integers: random ones, or those for which 16 bits hold least. */
enum filling { RANDOM, LARGEST, SMALLEST, ALTERNATING, ZEROS, N_FILLINGS };

static int filled(enum filling f, int low, int high, uint64_t at, struct rng *r)
{
    switch (f) {
    case LARGEST:
        return high;
    case SMALLEST:
        return low;
    case ALTERNATING:
        return at % 2 ? low : high;
    case ZEROS:
        return 0;
    default:
        return low + (int)rng_below(r, (uint64_t)(high - low + 1));
    }
}

static float random_scale(struct rng *r)
{
    switch (rng_below(r, 20)) {
    case 0:
        return 0.0f;
    case 1:
        return (float)ldexp(rng_normal(r), -140);
    default:
        return (float)ldexp(rng_normal(r), -7);
    }
}

static size_t group_bytes(const struct matrix *m)
{
    return m->format == FORMAT_Q8 ? Q8_BYTES : Q4_BYTES;
}

static char *group_at(const struct matrix *m, int panel, int g)
{
    return (char *)m->panels + (size_t)panel * m->panel_bytes + (size_t)g * group_bytes(m);
}

static struct matrix make_matrix(enum weight_format f, int rows, int cols, enum filling filling,
                                 struct rng *r)
{
    struct matrix m = {.format = f, .rows = rows, .cols = cols, .group = format_group(f)};
    int n_groups = (cols + m.group - 1) / m.group;
    m.padded_cols = n_groups * m.group;
    m.n_panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS;
    m.panel_bytes = (size_t)n_groups * group_bytes(&m);
    m.panels = mem_aligned((size_t)m.n_panels * m.panel_bytes);
    for (int g = 0; g < m.n_panels * n_groups; g++) {
        char *at = group_at(&m, 0, g);
        float scales[PANEL_ROWS];
        for (int i = 0; i < PANEL_ROWS; i++)
            scales[i] = random_scale(r);
        memcpy(at, scales, sizeof(scales));
        for (size_t i = sizeof(scales); i < group_bytes(&m); i++)
            if (f == FORMAT_Q8)
                at[i] = (char)filled(filling, -127, 127, i, r);
            else
                at[i] = (char)((filled(filling, -8, 7, i, r) + 8) |
                               (filled(filling, -8, 7, i, r) + 8) << 4);
    }
    return m;
}

/* By the layout in kernels.h. */
static int weight_at(const struct matrix *m, int row, int col)
{
    const char *q = group_at(m, row / PANEL_ROWS, col / m->group) + PANEL_ROWS * sizeof(float);
    int r = row % PANEL_ROWS, k = col % m->group;
    if (m->format == FORMAT_Q8)
        return (int8_t)q[k / 4 * 64 + r * 4 + k % 4];
    uint8_t pair = (uint8_t)q[k / 8 * 64 + r * 4 + k % 4];
    return (k % 8 < 4 ? pair & 15 : pair >> 4) - 8;
}

static float weight_scale(const struct matrix *m, int row, int g)
{
    float scales[PANEL_ROWS];
    memcpy(scales, group_at(m, row / PANEL_ROWS, g), sizeof(scales));
    return scales[row % PANEL_ROWS];
}

/* The memory of rows, exactly as large as the contract says that it must be. */
struct own_rows {
    struct rows x;
    int8_t *q8;
    float *scales;
    int32_t *sums;
};

static void sum_groups(struct own_rows *o)
{
    size_t group = (size_t)o->x.group;
    for (size_t m = 0; m < (size_t)o->x.n_rows; m++)
        for (size_t g = 0; g < o->x.scale_stride; g++) {
            int32_t sum = 0;
            for (size_t k = 0; k < group; k++)
                sum += o->q8[m * o->x.q8_stride + g * group + k];
            o->sums[m * o->x.scale_stride + g] = sum;
        }
}

static struct own_rows make_rows(const struct matrix *m, int n_rows, enum filling filling,
                                 struct rng *r)
{
    struct own_rows o = {.x = {.n_rows = n_rows, .cols = m->cols, .group = m->group}};
    o.x.q8_stride = ((size_t)m->padded_cols / 64 | 1) * 64;
    o.x.scale_stride = (size_t)(m->padded_cols / m->group);
    o.q8 = mem_aligned((size_t)n_rows * o.x.q8_stride);
    o.scales = mem_array((size_t)n_rows * o.x.scale_stride, sizeof(float));
    o.sums = mem_array((size_t)n_rows * o.x.scale_stride, sizeof(int32_t));
    memset(o.q8, 0, (size_t)n_rows * o.x.q8_stride);
    for (size_t i = 0; i < (size_t)n_rows; i++)
        for (size_t k = 0; k < (size_t)m->cols; k++)
            o.q8[i * o.x.q8_stride + k] = (int8_t)filled(filling, -127, 127, k, r);
    for (size_t i = 0; i < (size_t)n_rows * o.x.scale_stride; i++)
        o.scales[i] = random_scale(r);
    o.x.q8 = o.q8;
    o.x.scales = o.scales;
    o.x.sums = o.sums;
    sum_groups(&o);
    return o;
}

static void free_rows(struct own_rows *o)
{
    mem_free(o->q8);
    mem_free(o->scales);
    mem_free(o->sums);
}

/* ---- products ---- */

static float by_definition(const struct matrix *m, int row, const struct rows *x, size_t i)
{
    float acc = 0.0f;
    for (int g = 0; g < m->padded_cols / m->group; g++) {
        int32_t isum = 0;
        for (int k = g * m->group; k < m->cols && k < (g + 1) * m->group; k++)
            isum += weight_at(m, row, k) * x->q8[i * x->q8_stride + (size_t)k];
        float x_scale = x->scales[i * x->scale_stride + (size_t)g];
        acc = fmaf(weight_scale(m, row, g) * x_scale, (float)isum, acc);
    }
    return acc;
}

TEST(portable_integer_products_are_the_written_chain)
{
    struct rng r = test_rng();
    for (int f = 0; f < COUNT(formats); f++) {
        struct matrix m = make_matrix(formats[f], 37, 301, RANDOM, &r);
        struct own_rows o = make_rows(&m, 5, RANDOM, &r);
        float y[5 * 37];
        portable()->matmul[formats[f]](&m, 0, m.n_panels, &o.x, y, 37);
        for (int i = 0; i < 5; i++)
            for (int row = 0; row < 37; row++)
                CHECK(is_same(y[i * 37 + row], by_definition(&m, row, &o.x, (size_t)i)));
        free_rows(&o);
        mem_free(m.panels);
    }
}

/* A range of panels: equal to portable C, and nothing else is touched. */
static void compare(const struct kernels *k, const struct matrix *m, const struct rows *x,
                    int first_panel, int n_panels)
{
    size_t stride = (size_t)m->rows + 5, n = CANARIES + (size_t)x->n_rows * stride + CANARIES;
    float *got = mem_array(n, sizeof(float)), *want = mem_array(n, sizeof(float));
    fill_canaries(got, n);
    fill_canaries(want, n);
    portable()->matmul[m->format](m, first_panel, n_panels, x, want + CANARIES, stride);
    k->matmul[m->format](m, first_panel, n_panels, x, got + CANARIES, stride);
    char what[96];
    snprintf(what, sizeof(what), "%s %s [%d, %d] x %d, panels %d+%d", k->name,
             format_name(m->format), m->rows, m->cols, x->n_rows, first_panel, n_panels);
    check_same(what, got, want, n);
    size_t end = (size_t)(first_panel + n_panels) * PANEL_ROWS;
    for (size_t i = 0; i < n; i++) {
        size_t row = (i - CANARIES) % stride;
        bool is_room = i < CANARIES || i >= n - CANARIES;
        if (is_room || row < (size_t)first_panel * PANEL_ROWS || row >= end ||
            row >= (size_t)m->rows)
            CHECK_INT(f32_to_bits(got[i]), CANARY);
    }
    mem_free(got);
    mem_free(want);
}

static const int some_rows[] = {1, 15, 16, 17, 33, 64, 70, 130, 161, 305};
static const int some_cols[] = {1, 3, 4, 63, 64, 65, 127, 128, 129, 192, 391};

static void compare_shapes(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = 0; f < COUNT(formats); f++)
        for (int i = 0; i < COUNT(some_rows); i++)
            for (int j = 0; j < COUNT(some_cols); j++) {
                struct matrix m = make_matrix(formats[f], some_rows[i], some_cols[j], RANDOM, &r);
                struct own_rows o = make_rows(&m, 1 + (int)rng_below(&r, MAX_ROWS), RANDOM, &r);
                struct rows one = rows_part(&o.x, o.x.n_rows - 1, 1);
                int first = (int)rng_below(&r, (uint64_t)m.n_panels);
                compare(k, &m, &o.x, 0, m.n_panels);
                compare(k, &m, &one, first, m.n_panels - first);
                free_rows(&o);
                mem_free(m.panels);
            }
}

TEST(integer_products_have_the_same_bits_at_every_level_for_any_shape)
{
    each_level(compare_shapes);
}

static void compare_counts(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = 0; f < COUNT(formats); f++) {
        struct matrix m = make_matrix(formats[f], 267, 261, RANDOM, &r);
        struct own_rows o = make_rows(&m, 140, RANDOM, &r);
        for (int n = 1; n <= MAX_ROWS; n++) {
            struct rows some = rows_part(&o.x, n % 7, n);
            compare(k, &m, &some, 0, m.n_panels);
        }
        compare(k, &m, &o.x, 1, 6);
        for (int first = 0; first < m.n_panels; first++)
            for (int n = 1; n <= m.n_panels - first; n++) {
                struct rows some = rows_part(&o.x, first, 1 + (first + 5 * n) % 11);
                compare(k, &m, &some, first, n);
            }
        free_rows(&o);
        mem_free(m.panels);
    }
}

TEST(integer_products_have_the_same_bits_for_1_to_70_rows_and_any_range)
{
    each_level(compare_counts);
}

/* Sums of products that 16 bits must not saturate on. */
static void compare_fillings(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = 0; f < COUNT(formats); f++)
        for (int w = 0; w < N_FILLINGS; w++)
            for (int q = 0; q < N_FILLINGS; q++) {
                struct matrix m = make_matrix(formats[f], 67, 387, (enum filling)w, &r);
                struct own_rows o = make_rows(&m, 9, (enum filling)q, &r);
                for (int n = 1; n <= 9; n++) {
                    struct rows some = rows_part(&o.x, 0, n);
                    compare(k, &m, &some, 0, m.n_panels);
                }
                free_rows(&o);
                mem_free(m.panels);
            }
}

TEST(integer_sums_are_exact_where_they_are_largest)
{
    each_level(compare_fillings);
}

static const float extremes[] = {0.0f,     -0.0f,    0x1p-149f, -0x1p-130f, FLT_MAX,
                                 -FLT_MAX, INFINITY, -INFINITY, NAN};

static void compare_extremes(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = 0; f < COUNT(formats); f++)
        for (int round = 0; round < COUNT(extremes) * COUNT(extremes); round++) {
            struct matrix m = make_matrix(formats[f], 67, 300, RANDOM, &r);
            struct own_rows o = make_rows(&m, round % 2 ? 1 : 6, RANDOM, &r);
            size_t n_scales = (size_t)o.x.n_rows * o.x.scale_stride;
            for (int i = 0; i < 3; i++) {
                o.scales[rng_below(&r, n_scales)] = extremes[round % COUNT(extremes)];
                char *at = group_at(&m, 0, (int)rng_below(&r, 5));
                memcpy(at + 4 * rng_below(&r, PANEL_ROWS), &extremes[round / COUNT(extremes)], 4);
            }
            compare(k, &m, &o.x, 0, m.n_panels);
            free_rows(&o);
            mem_free(m.panels);
        }
}

TEST(integer_products_have_the_same_bits_for_any_scale)
{
    each_level(compare_extremes);
}

static void compare_neighbours(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = 0; f < COUNT(formats); f++) {
        struct matrix m = make_matrix(formats[f], 80, 260, RANDOM, &r);
        struct own_rows o = make_rows(&m, MAX_ROWS, RANDOM, &r);
        float together[MAX_ROWS * 80], alone[80];
        k->matmul[formats[f]](&m, 0, m.n_panels, &o.x, together, 80);
        for (int i = 0; i < MAX_ROWS; i++) {
            struct rows one = rows_part(&o.x, i, 1);
            k->matmul[formats[f]](&m, 0, m.n_panels, &one, alone, 80);
            for (int row = 0; row < 80; row++)
                CHECK(is_same(alone[row], together[i * 80 + row]));
        }
        free_rows(&o);
        mem_free(m.panels);
    }
}

TEST(a_row_of_an_integer_product_does_not_depend_on_its_neighbours)
{
    each_level(compare_neighbours);
}

/* ---- activations ---- */

enum { MAX_COLS = 520, MAX_GROUPS = 64 };

struct quantised {
    int8_t q[MAX_COLS + Q8_GROUP + 2 * CANARIES]; /* whole groups */
    float scales[MAX_GROUPS + CANARIES];
    int32_t sums[MAX_GROUPS + CANARIES];
};

static void quantise(const struct kernels *k, const float *x, int n, int group,
                     struct quantised *out)
{
    memset(out, 0x55, sizeof(*out));
    k->quantise(x, n, group, out->q + CANARIES, out->scales, out->sums);
}

/* The rule of rows.h.  Where 127 / absmax is infinite the quotient says nothing: zeros. */
static void quantise_by_definition(const float *x, int n, int group, struct quantised *out)
{
    memset(out, 0x55, sizeof(*out));
    for (int first = 0, g = 0; first < n; first += group, g++) {
        float largest = 0.0f;
        bool is_finite = true;
        for (int i = first; i < n && i < first + group; i++) {
            is_finite &= isfinite(x[i]) != 0;
            largest = fmaxf(largest, fabsf(x[i]));
        }
        float inverse = 127.0f / largest;
        bool is_usable = is_finite && isfinite(inverse);
        out->scales[g] = !is_finite ? NAN : is_usable ? largest * (1.0f / 127.0f) : 0.0f;
        out->sums[g] = 0;
        for (int i = first; i < first + group; i++) {
            float v = is_usable && i < n ? nearbyintf(x[i] * inverse) : 0.0f;
            CHECK(v >= -127.0f && v <= 127.0f);
            out->q[CANARIES + i] = (int8_t)v;
            out->sums[g] += (int)v;
        }
    }
}

static float odd_float(struct rng *r)
{
    switch (rng_below(r, 30)) {
    case 0:
        return -0.0f;
    case 1:
        return (float)ldexp(rng_normal(r), -140);
    case 2:
        return (float)ldexp(rng_normal(r), -60);
    default:
        return (float)rng_normal(r);
    }
}

static void check_quantise(const struct kernels *k, const float *x, int n, int group)
{
    static struct quantised got, want;
    quantise(k, x, n, group, &got);
    quantise_by_definition(x, n, group, &want);
    char what[64];
    snprintf(what, sizeof(what), "%s scales of %d by %d", k->name, n, group);
    check_same(what, got.scales, want.scales, COUNT(got.scales));
    CHECK_BYTES(got.q, want.q, sizeof(got.q));
    CHECK_BYTES(got.sums, want.sums, sizeof(got.sums));
}

static const int some_groups[] = {Q8_GROUP, Q4_GROUP, 16, 36, 80, 9};

static void quantise_lengths(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int i = 0; i < COUNT(some_groups); i++)
        for (int n = 1; n <= 300; n++) {
            float *x = mem_array((size_t)n, sizeof(float)); /* exactly: nothing past it is read */
            for (int c = 0; c < n; c++)
                x[c] = odd_float(&r);
            check_quantise(k, x, n, some_groups[i]);
            mem_free(x);
        }
}

TEST(rows_are_quantised_by_the_rule_at_every_level)
{
    each_level(quantise_lengths);
}

/* Sizes from the smallest denormal to the largest float, with ties and near ties. */
static void quantise_sizes(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int exponent = -149; exponent <= 127; exponent++) {
        float x[200];
        for (int c = 0; c < 200; c++)
            x[c] = (float)ldexp((double)rng_below(&r, 509) / 254.0 - 1.0, exponent);
        check_quantise(k, x, 200, Q8_GROUP);
        for (int c = 0; c < 200; c++)
            x[c] = (float)ldexp(((double)rng_below(&r, 508) + 0.5) / 2.0 - 127.0, exponent - 7);
        x[5] = x[100] = x[150] = (float)ldexp(127.0, exponent - 7);
        check_quantise(k, x, 200, Q4_GROUP);
    }
    float all[MAX_COLS];
    for (int c = 0; c < MAX_COLS; c++)
        all[c] = c % 2 ? -FLT_MAX : FLT_MAX;
    check_quantise(k, all, MAX_COLS, Q8_GROUP);
    memset(all, 0, sizeof(all));
    check_quantise(k, all, MAX_COLS, Q4_GROUP);
}

TEST(quantised_values_stay_within_127_for_any_size)
{
    each_level(quantise_sizes);
}

static void quantise_bad(const struct kernels *k)
{
    struct rng r = test_rng();
    static const float bad[] = {INFINITY, -INFINITY, NAN, -NAN};
    for (int round = 0; round < 400; round++) {
        float x[300];
        for (int c = 0; c < 300; c++)
            x[c] = odd_float(&r);
        for (int i = 0; i <= round % 3; i++)
            x[rng_below(&r, 300)] = bad[rng_below(&r, COUNT(bad))];
        check_quantise(k, x, 300, round % 2 ? Q8_GROUP : Q4_GROUP);
    }
}

TEST(a_group_with_a_nan_or_an_infinity_has_a_nan_for_scale)
{
    each_level(quantise_bad);
}

/* It shows in every result that reads the group. */
static void nan_shows(const struct kernels *k)
{
    struct rng r = test_rng();
    for (int f = 0; f < COUNT(formats); f++) {
        struct matrix m = make_matrix(formats[f], 50, 256, RANDOM, &r);
        struct own_rows o = make_rows(&m, 6, ZEROS, &r);
        o.scales[3 * o.x.scale_stride] = NAN;
        float y[6 * 50];
        k->matmul[formats[f]](&m, 0, m.n_panels, &o.x, y, 50);
        for (int i = 0; i < 6 * 50; i++)
            CHECK(i / 50 == 3 ? isnan(y[i]) : y[i] == 0.0f);
        free_rows(&o);
        mem_free(m.panels);
    }
}

TEST(a_nan_for_scale_shows_in_every_result_of_its_row)
{
    each_level(nan_shows);
}
