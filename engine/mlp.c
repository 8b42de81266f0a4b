/* engine/mlp.c - see mlp.h: one expert that all rows are routed to. */
#include "engine/mlp.h"

#include "base/mem.h"
#include "base/must.h"

struct mlp {
    struct expert_scratch *scratch;
    int max_rows, n_rows, hidden;
    float *out;           /* [max_rows, hidden] */
    int32_t *first_route; /* [max_rows + 1]: one route each */
    uint16_t *zeros;      /* [max_rows]: the expert of each */
    size_t bytes;
};

struct mlp *mlp_new(int max_rows, int hidden, int size, int group)
{
    struct mlp *m = mem_alloc(sizeof(*m));
    size_t rows = (size_t)max_rows;
    m->max_rows = max_rows;
    m->hidden = hidden;
    if (mem_mul(rows * sizeof(float), (size_t)hidden, &m->bytes))
        m->out = mem_try_aligned(m->bytes);
    if (!m->out) {
        mem_free(m);
        return NULL;
    }
    m->scratch = expert_scratch_new(max_rows, 1, hidden, size, group);
    m->first_route = mem_array(rows + 1, sizeof(*m->first_route));
    for (int i = 0; i <= max_rows; i++)
        m->first_route[i] = i;
    m->zeros = mem_array(rows, sizeof(*m->zeros));
    m->bytes += rows * ((size_t)hidden + (size_t)size) * (group ? 1 : sizeof(float));
    return m;
}

void mlp_free(struct mlp **mlp)
{
    struct mlp *m = *mlp;
    if (!m)
        return;
    *mlp = NULL;
    expert_scratch_free(&m->scratch);
    mem_free(m->out);
    mem_free(m->first_route);
    mem_free(m->zeros);
    mem_free(m);
}

size_t mlp_bytes(const struct mlp *m)
{
    return m ? m->bytes : 0;
}

void mlp_run(struct mlp *m, const struct compute *c, const struct expert *weights,
             const struct rows *x)
{
    must(x->n_rows >= 1 && x->n_rows <= m->max_rows && x->cols == m->hidden);
    struct parcel p = {.n_rows = x->n_rows,
                       .hidden = m->hidden,
                       .n_routes = x->n_rows,
                       .mode = COMBINE_EXPERT,
                       .rows = *x,
                       .first_route = m->first_route,
                       .experts = m->zeros};
    struct parcel_result out = {.by_expert = m->out};
    m->n_rows = x->n_rows;
    expert_forward(c, m->scratch, &weights, 1, &p, &out);
}

struct adding {
    const struct mlp *m;
    const struct kernels *kernels;
    float *to;
};

static void add_task(void *ctx, int row)
{
    const struct adding *a = ctx;
    size_t at = (size_t)row * (size_t)a->m->hidden;
    a->kernels->add(a->to + at, a->m->out + at, a->m->hidden);
}

void mlp_add(const struct mlp *m, const struct compute *c, float *to)
{
    struct adding a = {.m = m, .kernels = c->kernels, .to = to};
    pool_run(c->pool, add_task, &a, m->n_rows);
}
