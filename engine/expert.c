/* engine/expert.c - see expert.h.
 *
 * The routes of a parcel are sorted by expert (a counting sort), and the rows of each
 * expert are copied together, so that every weight is read once for all its rows.  Then
 * three rounds of tasks:
 *   1  gate and up for a range of panels of one expert, and SwiGLU of what came out
 *   2  down for a range of panels of one expert
 *   3  the contributions of one row come together
 * Input and output of an expert share a buffer: round 2 reads only what round 1 made. */
#include "engine/expert.h"

#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "model/config.h"

enum {
    STRIDE_FLOATS = 16, /* rows of scratch begin on a cache line */
    PANELS_AT_ONCE = 4, /* what the kernels read at once */
    TASKS_PER_THREAD = 8,
    /* A row costs about this many times less than reading the weights for the first one. */
    ROWS_PER_READ = 3,
    ROWS_PER_COMBINE = 8,
};

struct expert_scratch {
    int max_rows, max_routes, hidden, expert_size;
    size_t hidden_stride, inner_stride;
    float *io;         /* [max_routes, hidden_stride], by expert: first x, then y */
    float *gate, *up;  /* [max_routes, inner_stride] */
    int32_t *place;    /* [max_routes]: where a route's row is in io */
    int32_t *next;     /* [MODEL_MAX_EXPERTS + 1] */
    int32_t *used;     /* [max_routes]: experts of this parcel, ascending */
    int32_t *first_io; /* [max_routes + 1]: first row of used[i] in io */
    int n_used;
};

int expert_load(struct expert *x, const struct expert_view *view, enum weight_format want,
                const struct compute *c, struct err *e)
{
    *x = (struct expert){0};
    int rc = matrix_pack(&x->gate, &view->gate, want, c, e);
    if (rc == 0)
        rc = matrix_pack(&x->up, &view->up, want, c, e);
    if (rc == 0)
        rc = matrix_pack(&x->down, &view->down, want, c, e);
    if (rc == 0 && (x->up.rows != x->gate.rows || x->up.cols != x->gate.cols ||
                    x->down.rows != x->gate.cols || x->down.cols != x->gate.rows))
        rc = err_set(e, E_CORRUPT, "%s [%d, %d], %s [%d, %d] and %s [%d, %d] are not one expert",
                     view->gate.label, x->gate.rows, x->gate.cols, view->up.label, x->up.rows,
                     x->up.cols, view->down.label, x->down.rows, x->down.cols);
    if (rc < 0)
        expert_fini(x);
    return rc;
}

void expert_fini(struct expert *x)
{
    matrix_fini(&x->gate);
    matrix_fini(&x->up);
    matrix_fini(&x->down);
}

size_t expert_bytes(const struct expert *x)
{
    return matrix_bytes(&x->gate) + matrix_bytes(&x->up) + matrix_bytes(&x->down);
}

struct expert_scratch *expert_scratch_new(int max_rows, int top_k, int hidden, int expert_size)
{
    must(max_rows > 0 && top_k > 0 && hidden > 0 && expert_size > 0);
    must(top_k <= INT32_MAX / max_rows);
    struct expert_scratch *s = mem_alloc(sizeof(*s));
    size_t routes = (size_t)max_rows * (size_t)top_k;
    s->max_rows = max_rows;
    s->max_routes = max_rows * top_k;
    s->hidden = hidden;
    s->expert_size = expert_size;
    s->hidden_stride = mem_round_up((size_t)hidden, STRIDE_FLOATS);
    s->inner_stride = mem_round_up((size_t)expert_size, STRIDE_FLOATS);
    /* Zeroed: what is past the last column stays zero, as the kernels want it. */
    s->io = mem_aligned(routes * s->hidden_stride * sizeof(float));
    s->gate = mem_aligned(routes * s->inner_stride * sizeof(float));
    s->up = mem_aligned(routes * s->inner_stride * sizeof(float));
    s->place = mem_array(routes, sizeof(*s->place));
    s->used = mem_array(routes, sizeof(*s->used));
    s->first_io = mem_array(routes + 1, sizeof(*s->first_io));
    s->next = mem_array(MODEL_MAX_EXPERTS + 1, sizeof(*s->next));
    return s;
}

void expert_scratch_free(struct expert_scratch **scratch)
{
    struct expert_scratch *s = *scratch;
    if (!s)
        return;
    *scratch = NULL;
    mem_free(s->io);
    mem_free(s->gate);
    mem_free(s->up);
    mem_free(s->place);
    mem_free(s->used);
    mem_free(s->first_io);
    mem_free(s->next);
    mem_free(s);
}

/* One call of expert_forward(), as its tasks see it. */
struct forward_job {
    const struct compute *c;
    struct expert_scratch *s;
    const struct expert *const *held;
    const struct parcel *p;
    struct parcel_result *out;
    int panels_per_task, n_ranges;
};

/* Counting sort: place[route], the experts that occur, and where their rows begin. */
static void sort_routes(struct expert_scratch *s, const struct expert *const *held, int n_experts,
                        const struct parcel *p)
{
    memset(s->next, 0, (size_t)n_experts * sizeof(*s->next));
    for (int route = 0; route < p->n_routes; route++) {
        int expert = p->experts[route];
        must(expert < n_experts && held[expert]);
        must(held[expert]->gate.rows == s->expert_size && held[expert]->gate.cols == s->hidden);
        s->next[expert]++;
    }
    int at = 0;
    s->n_used = 0;
    for (int expert = 0; expert < n_experts; expert++) {
        int count = s->next[expert];
        s->next[expert] = at;
        if (count == 0)
            continue;
        s->used[s->n_used] = expert;
        s->first_io[s->n_used++] = at;
        at += count;
    }
    s->first_io[s->n_used] = at;
    for (int route = 0; route < p->n_routes; route++)
        s->place[route] = s->next[p->experts[route]]++;
}

static void gather_rows(void *ctx, int block)
{
    const struct forward_job *j = ctx;
    int end = (block + 1) * ROWS_PER_COMBINE;
    if (end > j->p->n_rows)
        end = j->p->n_rows;
    for (int row = block * ROWS_PER_COMBINE; row < end; row++)
        for (int route = j->p->first_route[row]; route < j->p->first_route[row + 1]; route++)
            memcpy(j->s->io + (size_t)j->s->place[route] * j->s->hidden_stride,
                   j->p->rows + (size_t)row * (size_t)j->p->hidden,
                   (size_t)j->p->hidden * sizeof(float));
}

static int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* Ranges of panels such that the task of the busiest expert is a small part of the whole. */
static int split_panels(struct forward_job *j, int n_panels)
{
    const struct expert_scratch *s = j->s;
    int64_t total = 0, most = 0;
    for (int i = 0; i < s->n_used; i++) {
        int64_t cost = s->first_io[i + 1] - s->first_io[i] + ROWS_PER_READ;
        total += cost;
        most = cost > most ? cost : most;
    }
    int64_t tasks = (int64_t)pool_threads(j->c->pool) * TASKS_PER_THREAD;
    int64_t panels = total * n_panels / (tasks * most);
    panels -= panels % PANELS_AT_ONCE;
    if (panels < PANELS_AT_ONCE)
        panels = PANELS_AT_ONCE;
    j->panels_per_task = panels < n_panels ? (int)panels : n_panels;
    j->n_ranges = ceil_div(n_panels, j->panels_per_task);
    return j->n_ranges * s->n_used;
}

/* What a task of round 1 or 2 works on. */
struct share {
    const struct expert *expert;
    int first_panel, n_panels;
    int first_row, n_rows; /* of io */
};

static struct share share_of(const struct forward_job *j, int task, int n_panels)
{
    const struct expert_scratch *s = j->s;
    int i = task / j->n_ranges, first = task % j->n_ranges * j->panels_per_task;
    int n = n_panels - first < j->panels_per_task ? n_panels - first : j->panels_per_task;
    return (struct share){.expert = j->held[s->used[i]],
                          .first_panel = first,
                          .n_panels = n,
                          .first_row = s->first_io[i],
                          .n_rows = s->first_io[i + 1] - s->first_io[i]};
}

static void gate_and_up(void *ctx, int task)
{
    const struct forward_job *j = ctx;
    const struct expert_scratch *s = j->s;
    struct share t = share_of(j, task, ceil_div(s->expert_size, PANEL_ROWS));
    const float *x = s->io + (size_t)t.first_row * s->hidden_stride;
    float *gate = s->gate + (size_t)t.first_row * s->inner_stride;
    float *up = s->up + (size_t)t.first_row * s->inner_stride;
    matmul_range(j->c, &t.expert->gate, t.first_panel, t.n_panels, x, s->hidden_stride, t.n_rows,
                 gate, s->inner_stride);
    matmul_range(j->c, &t.expert->up, t.first_panel, t.n_panels, x, s->hidden_stride, t.n_rows, up,
                 s->inner_stride);
    int first = t.first_panel * PANEL_ROWS, n = t.n_panels * PANEL_ROWS;
    n = s->expert_size - first < n ? s->expert_size - first : n;
    for (int row = 0; row < t.n_rows; row++) {
        size_t at = (size_t)row * s->inner_stride + (size_t)first;
        j->c->kernels->swiglu(gate + at, up + at, n);
    }
}

static void down(void *ctx, int task)
{
    const struct forward_job *j = ctx;
    const struct expert_scratch *s = j->s;
    struct share t = share_of(j, task, ceil_div(s->hidden, PANEL_ROWS));
    matmul_range(j->c, &t.expert->down, t.first_panel, t.n_panels,
                 s->gate + (size_t)t.first_row * s->inner_stride, s->inner_stride, t.n_rows,
                 s->io + (size_t)t.first_row * s->hidden_stride, s->hidden_stride);
}

static const float *route_output(const struct forward_job *j, int route)
{
    return j->s->io + (size_t)j->s->place[route] * j->s->hidden_stride;
}

static void combine_fixed_row(const struct forward_job *j, int row)
{
    const struct parcel *p = j->p;
    int32_t *acc = j->out->fixed + (size_t)row * (size_t)p->hidden;
    memset(acc, 0, (size_t)p->hidden * sizeof(*acc));
    /* An exponent that we never send gives no usable grid: the row goes the other way. */
    int exponent = p->exponents[row];
    int n_over = !combine_exponent_valid(exponent);
    for (int route = p->first_route[row]; route < p->first_route[row + 1] && !n_over; route++)
        n_over = j->c->kernels->fixed_add(route_output(j, route), p->weights[route], exponent,
                                          p->hidden, acc);
    j->out->overflow[row] = n_over > 0;
    if (n_over)
        memset(acc, 0, (size_t)p->hidden * sizeof(*acc));
}

static void combine_row(const struct forward_job *j, int row)
{
    const struct parcel *p = j->p;
    size_t hidden = (size_t)p->hidden;
    int first = p->first_route[row], n_slots = p->first_route[row + 1] - first;
    must(n_slots >= 0 && n_slots <= MODEL_MAX_TOP_K);
    if (p->mode == COMBINE_FIXED) {
        combine_fixed_row(j, row);
        return;
    }
    const float *y[MODEL_MAX_TOP_K];
    for (int slot = 0; slot < n_slots; slot++)
        y[slot] = route_output(j, first + slot);
    if (p->mode == COMBINE_NODE) {
        combine_node(y, p->weights + first, n_slots, p->hidden, j->out->node + row * hidden);
        return;
    }
    for (int slot = 0; slot < n_slots; slot++)
        memcpy(j->out->by_expert + (size_t)(first + slot) * hidden, y[slot],
               hidden * sizeof(float));
}

static void combine_rows(void *ctx, int block)
{
    const struct forward_job *j = ctx;
    int end = (block + 1) * ROWS_PER_COMBINE;
    for (int row = block * ROWS_PER_COMBINE; row < end && row < j->p->n_rows; row++)
        combine_row(j, row);
}

void expert_forward(const struct compute *c, struct expert_scratch *s,
                    const struct expert *const *held, int n_experts, const struct parcel *p,
                    struct parcel_result *out)
{
    must(p->hidden == s->hidden && p->n_rows >= 0 && p->n_rows <= s->max_rows);
    must(p->n_routes >= 0 && p->n_routes <= s->max_routes);
    must(n_experts >= 0 && n_experts <= MODEL_MAX_EXPERTS);
    struct forward_job j = {.c = c, .s = s, .held = held, .p = p, .out = out};
    int n_blocks = ceil_div(p->n_rows, ROWS_PER_COMBINE);
    sort_routes(s, held, n_experts, p);
    if (p->n_routes > 0) {
        pool_run(c->pool, gather_rows, &j, n_blocks);
        int n_tasks = split_panels(&j, ceil_div(s->expert_size, PANEL_ROWS));
        pool_run(c->pool, gate_and_up, &j, n_tasks);
        n_tasks = split_panels(&j, ceil_div(s->hidden, PANEL_ROWS));
        pool_run(c->pool, down, &j, n_tasks);
    }
    pool_run(c->pool, combine_rows, &j, n_blocks);
}
