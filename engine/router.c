/* engine/router.c - see engine/router.h. */
#include "engine/router.h"

#include <math.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/matrix.h"
#include "model/config.h"

int router_load(struct router *r, const struct tensor *gate, const struct tensor *bias, int top_k,
                const struct compute *c, struct err *e)
{
    *r = (struct router){.n_experts = (int)gate->dims[0], .top_k = top_k, .scale = 1.0f};
    must(top_k >= 1 && top_k <= r->n_experts && top_k <= MODEL_MAX_TOP_K);
    struct linear_view view = {
        .label = "gate", .rows = gate->dims[0], .cols = gate->dims[1], .weight = *gate};
    int rc = matrix_pack(&r->gate, &view, FORMAT_NATIVE, NULL, c, e);
    if (rc < 0)
        return rc;
    r->bias = mem_array((size_t)r->n_experts, sizeof(*r->bias));
    tensor_read_f32(bias, 0, r->n_experts, r->bias);
    for (int i = 0; i < r->n_experts; i++) {
        if (isfinite(r->bias[i]))
            continue;
        router_fini(r);
        return err_set(e, E_CORRUPT, "e_score_correction_bias: element %d is not finite", i);
    }
    return 0;
}

void router_fini(struct router *r)
{
    matrix_fini(&r->gate);
    mem_free(r->bias);
    *r = (struct router){0};
}

void router_select(const float *scores, const float *bias, int n_experts, int top_k,
                   uint16_t *experts, float *weights)
{
    float best[MODEL_MAX_TOP_K];
    must(top_k >= 1 && top_k <= MODEL_MAX_TOP_K && top_k <= n_experts);
    int n = 0;
    for (int i = 0; i < n_experts; i++) {
        float score = scores[i] + bias[i];
        /* A NaN would make the order depend on where it stands. */
        if (!(score >= -INFINITY))
            score = -INFINITY;
        if (n == top_k && !(score > best[n - 1]))
            continue;
        int slot = n < top_k ? n++ : n - 1;
        /* Strictly: of equal scores the lower expert stays ahead. */
        for (; slot > 0 && score > best[slot - 1]; slot--) {
            best[slot] = best[slot - 1];
            experts[slot] = experts[slot - 1];
        }
        best[slot] = score;
        experts[slot] = (uint16_t)i;
    }
    float sum = 0.0f;
    for (int slot = 0; slot < top_k; slot++)
        sum += scores[experts[slot]];
    for (int slot = 0; slot < top_k; slot++)
        weights[slot] = scores[experts[slot]] / sum;
}

struct route_job {
    const struct compute *compute;
    const struct router *router;
    float *scores;
    struct routing *out;
};

static void route_task(void *ctx, int row)
{
    struct route_job *job = ctx;
    const struct router *r = job->router;
    float *scores = job->scores + (size_t)row * (size_t)r->n_experts;
    size_t slot = (size_t)row * (size_t)r->top_k;
    job->compute->kernels->sigmoid(scores, r->n_experts, scores);
    router_select(scores, r->bias, r->n_experts, r->top_k, job->out->experts + slot,
                  job->out->weights + slot);
    for (int i = 0; i < r->top_k; i++)
        job->out->weights[slot + (size_t)i] *= r->scale;
}

void router_route(const struct compute *c, const struct router *r, const float *h, size_t h_stride,
                  int n_rows, float *scratch, struct routing *out)
{
    struct rows x = {.n_rows = n_rows, .cols = r->gate.cols, .f32 = h, .f32_stride = h_stride};
    matmul(c, &r->gate, &x, scratch, (size_t)r->n_experts);
    out->n_rows = n_rows;
    out->top_k = r->top_k;
    struct route_job job = {.compute = c, .router = r, .scores = scratch, .out = out};
    pool_run(c->pool, route_task, &job, n_rows);
}
