/* engine/gemm.c - see gemm.h.
 *
 * A product is cut into (range of panels) x (block of rows); neighbouring tasks share the
 * panels, which then come from the cache that the threads share. */
#include "engine/gemm.h"

#include <cblas.h>
#include <limits.h>
#include <pthread.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/matrix.h"

enum {
    /* Panels are handed out in fours: the kernels read four of them at once. */
    PANELS_AT_ONCE = 4,
    TASKS_PER_THREAD = 8,
    /* Few rows: reading the weights is all the work, and long ranges are read faster. */
    FEW_ROWS = 4,
    FEW_ROWS_PANELS = 64,
    FEW_ROWS_TASKS_PER_THREAD = 2,
    /* Rows whose inputs stay in the second-level cache while panels go by: 64 x 3072
     * floats are 768 KiB. */
    ROWS_PER_TASK = 64,
    MIN_ROWS_PER_TASK = 8,
    /* Below this waking threads costs more than the product (about 10 us). */
    SERIAL_MACS = 1 << 16,
};

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

static int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

void matmul_range(const struct compute *c, const struct matrix *m, int first_panel, int n_panels,
                  const struct rows *x, float *y, size_t y_stride)
{
    c->kernels->matmul[m->format](m, first_panel, n_panels, x, y, y_stride);
}

struct product {
    const struct compute *c;
    const struct matrix *m;
    const struct rows *x;
    float *y;
    size_t y_stride;
    int panels_per_task, rows_per_task, n_row_blocks;
};

static void product_task(void *ctx, int task)
{
    const struct product *p = ctx;
    int panel = task / p->n_row_blocks * p->panels_per_task;
    int row = task % p->n_row_blocks * p->rows_per_task;
    struct rows x = rows_part(p->x, row, min_int(p->rows_per_task, p->x->n_rows - row));
    matmul_range(p->c, p->m, panel, min_int(p->panels_per_task, p->m->n_panels - panel), &x,
                 p->y + (size_t)row * p->y_stride, p->y_stride);
}

static int split_product(struct product *p, int n_threads)
{
    int wanted = n_threads * TASKS_PER_THREAD, n_panels = p->m->n_panels;
    if (p->x->n_rows <= FEW_ROWS)
        wanted = max_int(min_int(wanted, n_panels / FEW_ROWS_PANELS),
                         n_threads * FEW_ROWS_TASKS_PER_THREAD);
    p->rows_per_task = ROWS_PER_TASK;
    while (p->rows_per_task > MIN_ROWS_PER_TASK &&
           (int64_t)ceil_div(n_panels, PANELS_AT_ONCE) * ceil_div(p->x->n_rows, p->rows_per_task) <
               n_threads)
        p->rows_per_task /= 2;
    p->n_row_blocks = ceil_div(p->x->n_rows, p->rows_per_task);
    int ranges = max_int(1, ceil_div(wanted, p->n_row_blocks));
    int panels = n_panels / ranges;
    /* A range that is much larger than the second-level cache would be read from memory
     * again by every block of rows. */
    if (p->n_row_blocks > 1)
        panels = min_int(panels, 2 * PANELS_AT_ONCE);
    p->panels_per_task = max_int(panels - panels % PANELS_AT_ONCE, PANELS_AT_ONCE);
    return ceil_div(n_panels, p->panels_per_task) * p->n_row_blocks;
}

void matmul(const struct compute *c, const struct matrix *m, const struct rows *x, float *y,
            size_t y_stride)
{
    must(x->cols == m->cols && (m->group ? x->group == m->group : x->f32 != NULL));
    int64_t macs = (int64_t)m->rows * m->cols * x->n_rows;
    if (macs < SERIAL_MACS) {
        matmul_range(c, m, 0, m->n_panels, x, y, y_stride);
        return;
    }
    struct product p = {.c = c, .m = m, .x = x, .y = y, .y_stride = y_stride};
    int n_tasks = split_product(&p, pool_threads(c->pool));
    pool_run(c->pool, product_task, &p, n_tasks);
}

static void blas_single_threaded(void)
{
    openblas_set_num_threads(1);
}

int matmul_blas(const struct matrix *m, const struct rows *x, float *y, size_t y_stride)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    must_zero(pthread_once(&once, blas_single_threaded));
    must(x->f32 && x->f32_stride <= INT_MAX && y_stride <= INT_MAX);
    size_t bytes;
    if (!mem_mul((size_t)SCALE_BLOCK * sizeof(float), (size_t)m->cols, &bytes))
        return E_NOMEM;
    float *w = mem_try_aligned(bytes);
    if (!w)
        return E_NOMEM;
    for (int first = 0; first < m->rows; first += SCALE_BLOCK) {
        int n = min_int(SCALE_BLOCK, m->rows - first);
        for (int r = 0; r < n; r++)
            matrix_row(m, first + r, w + (size_t)r * (size_t)m->cols);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, x->n_rows, n, m->cols, 1.0f, x->f32,
                    (int)x->f32_stride, w, m->cols, 0.0f, y + first, (int)y_stride);
    }
    mem_free(w);
    return 0;
}
