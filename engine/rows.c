/* engine/rows.c - memory for quantised rows, and quantising over the pool; see rows.h. */
#include "engine/rows.h"

#include "base/mem.h"
#include "base/must.h"
#include "engine/gemm.h"

enum { STRIDE_BYTES = 64, ROWS_PER_TASK = 4 };

bool rows_room_open(struct rows_room *r, int max_rows, int cols, int group)
{
    *r = (struct rows_room){0};
    if (group == 0)
        return true;
    must(max_rows > 0 && cols > 0 && group > 0);
    size_t rows = (size_t)max_rows, groups = ((size_t)cols + (size_t)group - 1) / (size_t)group;
    size_t lines = (groups * (size_t)group + STRIDE_BYTES - 1) / STRIDE_BYTES;
    size_t stride = (lines | 1) * STRIDE_BYTES;
    size_t q8_bytes, scale_bytes, bytes;
    if (!mem_mul(rows, stride, &q8_bytes) || !mem_mul(rows * groups, sizeof(float), &scale_bytes) ||
        !mem_add(q8_bytes, 2 * scale_bytes, &bytes))
        return false;
    int8_t *block = mem_try_aligned(bytes);
    if (!block)
        return false;
    float *scales = (void *)(block + q8_bytes);
    *r = (struct rows_room){.max_rows = max_rows,
                            .cols = cols,
                            .group = group,
                            .q8_stride = stride,
                            .scale_stride = groups,
                            .q8 = block,
                            .scales = scales,
                            .sums = (void *)(scales + rows * groups),
                            .bytes = bytes};
    return true;
}

void rows_room_close(struct rows_room *r)
{
    mem_free(r->q8);
    *r = (struct rows_room){0};
}

struct rows rows_room_view(const struct rows_room *r, int n_rows)
{
    must(n_rows >= 0 && n_rows <= r->max_rows);
    return (struct rows){.n_rows = n_rows,
                         .cols = r->cols,
                         .group = r->group,
                         .q8 = r->q8,
                         .q8_stride = r->q8_stride,
                         .scales = r->scales,
                         .sums = r->sums,
                         .scale_stride = r->scale_stride};
}

struct quantise_job {
    const struct kernels *kernels;
    const struct rows_room *room;
    const struct rows *x;
};

static void quantise_task(void *ctx, int task)
{
    const struct quantise_job *job = ctx;
    const struct rows_room *r = job->room;
    int first = task * ROWS_PER_TASK, end = first + ROWS_PER_TASK;
    for (int row = first; row < end && row < job->x->n_rows; row++) {
        size_t at = (size_t)row, scale = at * r->scale_stride;
        job->kernels->quantise(job->x->f32 + at * job->x->f32_stride, r->cols, r->group,
                               r->q8 + at * r->q8_stride, r->scales + scale, r->sums + scale);
    }
}

void rows_quantise(const struct compute *c, struct rows_room *r, struct rows *x)
{
    if (r->group == 0)
        return;
    must(x->f32 && x->cols == r->cols && x->n_rows <= r->max_rows);
    struct quantise_job job = {.kernels = c->kernels, .room = r, .x = x};
    pool_run(c->pool, quantise_task, &job, (x->n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK);
    struct rows quantised = rows_room_view(r, x->n_rows);
    quantised.f32 = x->f32;
    quantised.f32_stride = x->f32_stride;
    *x = quantised;
}
