/* tools/bench_moe.c - see bench_moe.h. */
#include "tools/bench_moe.h"

#include "base/mem.h"
#include "base/must.h"
#include "engine/expert.h"
#include "engine/moe_fold.h"
#include "tools/bench_random.h"
#include "tools/progress.h"

struct bench_moe {
    struct compute compute;
    int n_layers, n_experts, top_k, hidden;
    size_t n_total;
    struct expert *experts;     /* [n_layers * n_experts] */
    const struct expert **held; /* the same, as pointers */
    struct expert_scratch *scratch;
    int32_t *first_route; /* [max_rows + 1] */
    struct parcel_result result;
    struct moe_rows rows; /* of the round that is out */
    float *x;             /* of the fold in progress */
};

static int check_memory(const struct bench_moe *m, const struct model_config *config,
                        enum weight_format format, struct err *e)
{
    size_t each, needed, there = mem_available_bytes();
    int rc = bench_expert_bytes(format, config->hidden_size, config->expert_size, &each, e);
    if (rc < 0)
        return rc;
    if (!mem_mul(each, m->n_total, &needed) || needed > there)
        return err_set(e, E_NOMEM, "%zu experts in %s need %.1f GB, %.1f GB are free", m->n_total,
                       format_name(format), (double)each * (double)m->n_total / 1e9,
                       (double)there / 1e9);
    return 0;
}

static int fill_experts(struct bench_moe *m, const struct model_config *config,
                        enum weight_format format, struct err *e)
{
    struct progress progress;
    int rc = 0;
    progress_begin(&progress, "random experts", (int64_t)m->n_total, PROGRESS_ITEMS);
    for (int layer = 0; layer < m->n_layers && rc == 0; layer++) {
        struct expert *first = m->experts + (size_t)layer * (size_t)m->n_experts;
        rc = bench_experts_open(first, m->n_experts, format, m->hidden, config->expert_size,
                                m->compute.pool, e);
        progress_add(&progress, m->n_experts);
    }
    progress_end(&progress);
    return rc;
}

int bench_moe_open(const struct model_config *config, enum weight_format format, int max_rows,
                   struct compute compute, struct bench_moe **out, struct err *e)
{
    struct bench_moe *m = mem_alloc(sizeof(*m));
    size_t rows = (size_t)max_rows;
    m->compute = compute;
    m->n_layers = config_expert_layers(config);
    m->n_experts = config->n_experts;
    m->top_k = config->top_k;
    m->hidden = config->hidden_size;
    m->n_total = (size_t)m->n_layers * (size_t)m->n_experts;
    m->experts = mem_array(m->n_total, sizeof(*m->experts));
    m->held = mem_array(m->n_total, sizeof(const struct expert *));
    for (size_t i = 0; i < m->n_total; i++)
        m->held[i] = &m->experts[i];
    m->first_route = mem_array(rows + 1, sizeof(*m->first_route));
    for (int i = 0; i <= max_rows; i++)
        m->first_route[i] = i * m->top_k;
    m->result.fixed = mem_aligned(rows * (size_t)m->hidden * sizeof(*m->result.fixed));
    m->result.overflow = mem_aligned(rows);
    int rc = check_memory(m, config, format, e);
    if (rc == 0)
        rc = fill_experts(m, config, format, e);
    if (rc == 0)
        m->scratch = expert_scratch_new(max_rows, m->top_k, m->hidden, config->expert_size,
                                        format_group(format));
    else
        bench_moe_close(&m);
    *out = m;
    return rc;
}

void bench_moe_close(struct bench_moe **moe)
{
    struct bench_moe *m = *moe;
    if (!m)
        return;
    for (size_t i = 0; i < m->n_total; i++)
        expert_fini(&m->experts[i]);
    expert_scratch_free(&m->scratch);
    mem_free(m->experts);
    mem_free(m->held);
    mem_free(m->first_route);
    mem_free(m->result.fixed);
    mem_free(m->result.overflow);
    mem_free(m);
    *moe = NULL;
}

static int scatter(void *ud, int lane, const struct moe_rows *rows)
{
    struct bench_moe *m = ud;
    must(lane == 0);
    m->rows = *rows;
    return 0;
}

static void fold_task(void *ctx, int row)
{
    struct bench_moe *m = ctx;
    size_t at = (size_t)row * (size_t)m->hidden;
    moe_fold_fixed(m->compute.kernels, m->result.fixed + at, m->rows.exponents[row], m->hidden,
                   m->x + at);
}

static int gather(void *ud, int lane, float *x)
{
    struct bench_moe *m = ud;
    const struct moe_rows *rows = &m->rows;
    must(lane == 0);
    struct parcel p = {.layer = rows->layer,
                       .n_rows = rows->n_rows,
                       .hidden = m->hidden,
                       .n_routes = rows->n_rows * m->top_k,
                       .mode = COMBINE_FIXED,
                       .rows = rows->rows,
                       .exponents = rows->exponents,
                       .first_route = m->first_route,
                       .experts = rows->routing->experts,
                       .weights = rows->routing->weights};
    const struct expert *const *held = m->held + (size_t)rows->layer * (size_t)m->n_experts;
    expert_forward(&m->compute, m->scratch, held, m->n_experts, &p, &m->result);
    for (int row = 0; row < rows->n_rows; row++)
        if (m->result.overflow[row])
            return E_RANGE;
    m->x = x;
    pool_run(m->compute.pool, fold_task, m, rows->n_rows);
    return 0;
}

const struct moe_ops bench_moe_ops = {.scatter = scatter, .gather = gather};
