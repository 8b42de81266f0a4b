/* engine/moe_local.c - see engine/moe_local.h.
 *
 * scatter() only notes the rows, because it must not block; gather() runs them. */
#include "engine/moe_local.h"

#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/load.h"
#include "engine/moe_fold.h"

struct moe_local {
    struct compute compute;
    enum combine_mode mode;
    int n_layers, n_experts, top_k, hidden, max_rows;
    struct expert *experts;     /* [n_layers * n_experts] */
    const struct expert **held; /* the same, as pointers */
    struct expert_scratch *scratch;

    int32_t *first_route; /* [max_rows + 1]: every row has top_k */
    struct parcel_result result;
    struct moe_rows rows[FORWARD_LANES]; /* of rounds that are out */
    bool is_out[FORWARD_LANES];
};

/* ---- loading ---- */

/* Threads of the pool do not wait for each other to tell: the next one says more. */
struct telling {
    atomic_flag is_busy;
    void (*progress)(void *ud, int done, int total);
    void *ud;
};

static void tell(void *ud, int n_done, int n_all)
{
    struct telling *t = ud;
    if (atomic_flag_test_and_set(&t->is_busy))
        return;
    t->progress(t->ud, n_done, n_all);
    atomic_flag_clear(&t->is_busy);
}

static int load_all(struct moe_local *m, struct checkpoint *c, enum weight_format format,
                    void (*progress)(void *ud, int done, int total), void *progress_ud,
                    struct err *e)
{
    size_t total = (size_t)m->n_layers * (size_t)m->n_experts;
    size_t *which = mem_array(total, sizeof(*which));
    struct expert **out = mem_array(total, sizeof(*out));
    for (size_t i = 0; i < total; i++) {
        which[i] = i;
        out[i] = &m->experts[i];
        m->held[i] = &m->experts[i];
    }
    struct telling t = {.is_busy = ATOMIC_FLAG_INIT, .progress = progress, .ud = progress_ud};
    struct load_options o = {.checkpoint = c,
                             .format = format,
                             .compute = &m->compute,
                             .loaded = progress ? tell : NULL,
                             .ud = &t};
    int rc = load_experts(&o, which, (int)total, out, e);
    mem_free(which);
    mem_free(out);
    return rc;
}

/* Room for `rows` rows of `width` values; NULL when memory is out. */
static void *room(size_t rows, size_t width, size_t value_bytes)
{
    size_t bytes;
    if (!mem_mul(rows, width, &bytes) || !mem_mul(bytes, value_bytes, &bytes))
        return NULL;
    return mem_try_aligned(bytes);
}

static int take_room(struct moe_local *m, struct err *e)
{
    size_t rows = (size_t)m->max_rows, top_k = (size_t)m->top_k, hidden = (size_t)m->hidden;
    bool is_expert = m->mode == COMBINE_EXPERT;
    m->first_route = mem_array(rows + 1, sizeof(*m->first_route));
    for (int i = 0; i <= m->max_rows; i++)
        m->first_route[i] = i * m->top_k;
    /* In mode fixed a row that overflows is asked again alone. */
    m->result.by_expert = room(is_expert ? rows * top_k : top_k, hidden, sizeof(float));
    bool ok = m->result.by_expert;
    if (m->mode == COMBINE_FIXED) {
        m->result.fixed = room(rows, hidden, sizeof(int32_t));
        m->result.overflow = room(rows, 1, 1);
        ok = ok && m->result.fixed && m->result.overflow;
    }
    if (m->mode == COMBINE_NODE) {
        m->result.node = room(rows, hidden, sizeof(uint16_t));
        ok = ok && m->result.node;
    }
    return ok ? 0 : err_set(e, E_NOMEM, "experts: no memory for steps of %d rows", m->max_rows);
}

int moe_local_open(struct checkpoint *c, enum weight_format format, enum combine_mode mode,
                   int max_rows, struct compute compute,
                   void (*progress)(void *ud, int done, int total), void *progress_ud,
                   struct moe_local **out, struct err *e)
{
    must(max_rows >= 1);
    const struct model_config *config = checkpoint_config(c);
    struct moe_local *m = mem_alloc(sizeof(*m));
    m->compute = compute;
    m->mode = mode;
    m->n_layers = config_expert_layers(config);
    m->n_experts = config->n_experts;
    m->top_k = config->top_k;
    m->hidden = config->hidden_size;
    m->max_rows = max_rows;
    size_t total = (size_t)m->n_layers * (size_t)m->n_experts;
    m->experts = mem_array(total, sizeof(*m->experts));
    m->held = mem_array(total, sizeof(const struct expert *));
    int rc = load_all(m, c, format, progress, progress_ud, e);
    if (rc == 0)
        rc = take_room(m, e);
    if (rc == 0)
        m->scratch = expert_scratch_new(max_rows, m->top_k, m->hidden, config->expert_size,
                                        m->experts[0].gate.group);
    else
        moe_local_close(&m);
    *out = m;
    return rc;
}

void moe_local_close(struct moe_local **moe)
{
    struct moe_local *m = *moe;
    if (!m)
        return;
    size_t total = (size_t)m->n_layers * (size_t)m->n_experts;
    for (size_t i = 0; i < total; i++)
        expert_fini(&m->experts[i]);
    mem_free(m->experts);
    mem_free(m->held);
    expert_scratch_free(&m->scratch);
    mem_free(m->first_route);
    mem_free(m->result.fixed);
    mem_free(m->result.overflow);
    mem_free(m->result.by_expert);
    mem_free(m->result.node);
    mem_free(m);
    *moe = NULL;
}

/* ---- a round ---- */

static int scatter(void *ud, int lane, const struct moe_rows *rows)
{
    struct moe_local *m = ud;
    must(lane >= 0 && lane < FORWARD_LANES && !m->is_out[lane]);
    must(rows->n_rows >= 1 && rows->n_rows <= m->max_rows && rows->hidden == m->hidden);
    m->rows[lane] = *rows;
    m->is_out[lane] = true;
    return 0;
}

static void run_experts(struct moe_local *m, const struct moe_rows *rows, int first_row, int n_rows,
                        enum combine_mode mode)
{
    const struct routing *routing = rows->routing;
    size_t first = (size_t)first_row, route = first * (size_t)m->top_k;
    struct parcel p = {.layer = rows->layer,
                       .n_rows = n_rows,
                       .hidden = m->hidden,
                       .n_routes = n_rows * m->top_k,
                       .mode = mode,
                       .rows = rows_part(&rows->rows, first_row, n_rows),
                       .exponents = rows->exponents + first,
                       .first_route = m->first_route,
                       .experts = routing->experts + route,
                       .weights = routing->weights + route};
    const struct expert *const *held = m->held + (size_t)rows->layer * (size_t)m->n_experts;
    expert_forward(&m->compute, m->scratch, held, m->n_experts, &p, &m->result);
}

/* Adds row `from` of by_expert to row `row` of x. */
static void fold_expert_row(struct moe_local *m, const struct moe_rows *rows, int row, int from,
                            float *x)
{
    const void *slots[MODEL_MAX_TOP_K];
    size_t slot_floats = (size_t)m->hidden, first = (size_t)from * (size_t)m->top_k;
    for (int slot = 0; slot < m->top_k; slot++)
        slots[slot] = m->result.by_expert + (first + (size_t)slot) * slot_floats;
    moe_fold_expert(slots, rows->routing->weights + (size_t)row * (size_t)m->top_k, m->top_k,
                    m->hidden, x + (size_t)row * slot_floats);
}

struct fold_job {
    struct moe_local *moe;
    const struct moe_rows *rows;
    float *x;
};

static void fold_task(void *ctx, int row)
{
    struct fold_job *job = ctx;
    struct moe_local *m = job->moe;
    size_t at = (size_t)row * (size_t)m->hidden;
    if (m->mode == COMBINE_EXPERT)
        fold_expert_row(m, job->rows, row, row, job->x);
    else if (m->mode == COMBINE_NODE)
        moe_fold_node(m->result.node + at, m->hidden, job->x + at);
    else if (!m->result.overflow[row])
        moe_fold_fixed(m->compute.kernels, m->result.fixed + at, job->rows->exponents[row],
                       m->hidden, job->x + at);
}

static int gather(void *ud, int lane, float *x)
{
    struct moe_local *m = ud;
    must(lane >= 0 && lane < FORWARD_LANES && m->is_out[lane]);
    const struct moe_rows *rows = &m->rows[lane];
    m->is_out[lane] = false;
    run_experts(m, rows, 0, rows->n_rows, m->mode);
    struct fold_job job = {.moe = m, .rows = rows, .x = x};
    pool_run(m->compute.pool, fold_task, &job, rows->n_rows);
    for (int row = 0; m->mode == COMBINE_FIXED && row < rows->n_rows; row++) {
        if (!m->result.overflow[row])
            continue;
        run_experts(m, rows, row, 1, COMBINE_EXPERT);
        fold_expert_row(m, rows, row, 0, x);
    }
    return 0;
}

static void abandon(void *ud, int lane)
{
    struct moe_local *m = ud;
    m->is_out[lane] = false;
}

const struct moe_ops moe_local_ops = {.scatter = scatter, .gather = gather, .abandon = abandon};
