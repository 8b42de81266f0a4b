/* engine/expert.c - see expert.h.
 *
 * The routes of a parcel are sorted by expert (a counting sort), and the rows of each
 * expert are copied together, so that every weight is read once for all its rows.  Then
 * three rounds of tasks:
 *   1  gate and up for a range of panels of one expert and at most ROWS_PER_TASK of its
 *      rows, SwiGLU of what came out and, for integer formats, its quantisation: ranges are
 *      whole groups
 *   2  down for a range of panels of one expert and as many rows
 *   3  the contributions of one row come together
 * Float formats: input and output of an expert share a buffer, because round 2 reads only
 * what round 1 made. */
#include "engine/expert.h"

#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/matrix.h"
#include "model/config.h"

enum {
    STRIDE_FLOATS = 16, /* rows of scratch begin on a cache line */
    /* What a range is a multiple of: the kernels read four panels at once, and a range of
     * round 1 begins where a group of its output (8 panels of q8, 4 of q4) and a row of FP8
     * scales do. */
    DOWN_PANELS = 4,
    GATE_PANELS = SCALE_BLOCK / PANEL_ROWS,
    Q4_GATE_PANELS = Q4_GROUP / PANEL_ROWS,
    TASKS_PER_THREAD = 8,
    /* With few rows an expert's weights are read once and that is all the work: long ranges
     * are read faster than short ones. */
    FEW_ROWS = 4,
    FEW_ROWS_TASKS_PER_THREAD = 2,
    ROWS_PER_TASK = 64,
    /* Outputs of gate (and of up) that a task of round 1 makes at a time, on its stack. */
    INNER_FLOATS = ROWS_PER_TASK * SCALE_BLOCK,
    /* A row costs about this many times less than reading the weights for the first one. */
    ROWS_PER_READ = 3,
    ROWS_PER_COMBINE = 8,
};

struct expert_scratch {
    int max_rows, max_routes, hidden, expert_size;
    int group;
    size_t hidden_stride, inner_stride;
    float *io;    /* [max_routes, hidden_stride], by expert: x (float formats), then y */
    float *inner; /* [max_routes, inner_stride]: input of down (float formats) */
    struct rows_room x_room, inner_room; /* both for integer formats */
    int32_t *place;                      /* [max_routes]: where a route's row is in io */
    int32_t *next;                       /* [MODEL_MAX_EXPERTS + 1] */
    int32_t *used;                       /* [max_routes]: experts of this parcel, ascending */
    int32_t *first_io;                   /* [max_routes + 1]: first row of used[i] in io */
    int32_t *first_block; /* [max_routes + 1]: blocks of rows of the experts before used[i] */
    int n_used;
};

static int load_matrices(struct expert *x, const struct expert_view *view, enum weight_format want,
                         const struct compute *c, struct err *e)
{
    struct matrix *const matrices[] = {&x->gate, &x->up, &x->down};
    const struct linear_view *const views[] = {&view->gate, &view->up, &view->down};
    size_t bytes[3], first[4] = {0};
    for (int i = 0; i < 3; i++) {
        int rc = matrix_view_bytes(views[i], want, &bytes[i], e);
        if (rc < 0)
            return rc;
        if (!mem_add(first[i], bytes[i], &first[i + 1]))
            return err_set(e, E_RANGE, "%s: too large", views[i]->label);
    }
    x->room_bytes = first[3];
    if (x->room_bytes > 0) {
        x->room = mem_weights(x->room_bytes);
        if (!x->room)
            return err_set(e, E_NOMEM, "%zu bytes for an expert", x->room_bytes);
    }
    for (int i = 0; i < 3; i++) {
        void *room = bytes[i] > 0 ? (char *)x->room + first[i] : NULL;
        int rc = matrix_pack(matrices[i], views[i], want, room, c, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int expert_load(struct expert *x, const struct expert_view *view, enum weight_format want,
                const struct compute *c, struct err *e)
{
    *x = (struct expert){.activation = view->activation};
    int rc = load_matrices(x, view, want, c, e);
    if (rc == 0 && (x->up.rows != x->gate.rows || x->up.cols != x->gate.cols ||
                    x->down.rows != x->gate.cols || x->down.cols != x->gate.rows))
        rc = err_set(e, E_CORRUPT, "%s [%d, %d], %s [%d, %d] and %s [%d, %d] are not one expert",
                     view->gate.label, x->gate.rows, x->gate.cols, view->up.label, x->up.rows,
                     x->up.cols, view->down.label, x->down.rows, x->down.cols);
    if (rc == 0 && (x->up.group != x->gate.group || x->down.group != x->gate.group))
        rc = err_set(e, E_CORRUPT, "%s in %s, %s in %s and %s in %s: activations differ in groups",
                     view->gate.label, format_name(x->gate.format), view->up.label,
                     format_name(x->up.format), view->down.label, format_name(x->down.format));
    if (rc < 0)
        expert_fini(x);
    return rc;
}

void expert_fini(struct expert *x)
{
    matrix_fini(&x->gate);
    matrix_fini(&x->up);
    matrix_fini(&x->down);
    mem_weights_free(x->room, x->room_bytes);
    *x = (struct expert){0};
}

size_t expert_bytes(const struct expert *x)
{
    return matrix_bytes(&x->gate) + matrix_bytes(&x->up) + matrix_bytes(&x->down);
}

struct expert_scratch *expert_scratch_new(int max_rows, int top_k, int hidden, int expert_size,
                                          int group)
{
    must(max_rows > 0 && top_k > 0 && hidden > 0 && expert_size > 0);
    must(top_k <= INT32_MAX / max_rows);
    struct expert_scratch *s = mem_alloc(sizeof(*s));
    size_t routes = (size_t)max_rows * (size_t)top_k;
    s->max_rows = max_rows;
    s->max_routes = max_rows * top_k;
    s->hidden = hidden;
    s->expert_size = expert_size;
    s->group = group;
    s->hidden_stride = mem_round_up((size_t)hidden, STRIDE_FLOATS);
    s->inner_stride = mem_round_up((size_t)expert_size, STRIDE_FLOATS);
    /* Zeroed: what is past the last column stays zero, as the kernels want it. */
    s->io = mem_aligned(routes * s->hidden_stride * sizeof(float));
    if (group == 0)
        s->inner = mem_aligned(routes * s->inner_stride * sizeof(float));
    must(rows_room_open(&s->x_room, s->max_routes, hidden, group));
    must(rows_room_open(&s->inner_room, s->max_routes, expert_size, group));
    s->place = mem_array(routes, sizeof(*s->place));
    s->used = mem_array(routes, sizeof(*s->used));
    s->first_io = mem_array(routes + 1, sizeof(*s->first_io));
    s->first_block = mem_array(routes + 1, sizeof(*s->first_block));
    s->next = mem_array(MODEL_MAX_EXPERTS + 1, sizeof(*s->next));
    return s;
}

void expert_scratch_free(struct expert_scratch **scratch)
{
    struct expert_scratch *s = *scratch;
    if (!s)
        return;
    *scratch = NULL;
    rows_room_close(&s->x_room);
    rows_room_close(&s->inner_room);
    mem_free(s->io);
    mem_free(s->inner);
    mem_free(s->place);
    mem_free(s->used);
    mem_free(s->first_io);
    mem_free(s->first_block);
    mem_free(s->next);
    mem_free(s);
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
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
        must(held[expert]->gate.group == s->group);
        s->next[expert]++;
    }
    int at = 0, blocks = 0;
    s->n_used = 0;
    for (int expert = 0; expert < n_experts; expert++) {
        int count = s->next[expert];
        s->next[expert] = at;
        if (count == 0)
            continue;
        s->used[s->n_used] = expert;
        s->first_io[s->n_used] = at;
        s->first_block[s->n_used++] = blocks;
        at += count;
        blocks += ceil_div(count, ROWS_PER_TASK);
    }
    s->first_io[s->n_used] = at;
    s->first_block[s->n_used] = blocks;
    for (int route = 0; route < p->n_routes; route++)
        s->place[route] = s->next[p->experts[route]]++;
}

/* Row `row` of the parcel to row `to` of its expert. */
static void gather_row(const struct expert_scratch *s, const struct rows *x, size_t row, size_t to)
{
    size_t hidden = (size_t)s->hidden;
    if (s->group == 0) {
        memcpy(s->io + to * s->hidden_stride, x->f32 + row * x->f32_stride, hidden * sizeof(float));
        return;
    }
    const struct rows_room *room = &s->x_room;
    size_t n_scales = room->scale_stride;
    memcpy(room->q8 + to * room->q8_stride, x->q8 + row * x->q8_stride, hidden);
    memcpy(room->scales + to * n_scales, x->scales + row * x->scale_stride,
           n_scales * sizeof(*x->scales));
    memcpy(room->sums + to * n_scales, x->sums + row * x->scale_stride,
           n_scales * sizeof(*x->sums));
}

static void gather_rows(void *ctx, int block)
{
    const struct forward_job *j = ctx;
    int end = min_int((block + 1) * ROWS_PER_COMBINE, j->p->n_rows);
    for (int row = block * ROWS_PER_COMBINE; row < end; row++)
        for (int route = j->p->first_route[row]; route < j->p->first_route[row + 1]; route++)
            gather_row(j->s, &j->p->rows, (size_t)row, (size_t)j->s->place[route]);
}

/* Ranges of panels such that the task of the busiest block is a small part of the whole. */
static int split_panels(struct forward_job *j, int n_panels, int unit)
{
    const struct expert_scratch *s = j->s;
    int64_t total = 0, most = 0;
    int most_rows = 0;
    for (int i = 0; i < s->n_used; i++) {
        int rows = s->first_io[i + 1] - s->first_io[i];
        most_rows = rows > most_rows ? rows : most_rows;
        int64_t block = min_int(rows, ROWS_PER_TASK) + ROWS_PER_READ;
        total += rows + (int64_t)ceil_div(rows, ROWS_PER_TASK) * ROWS_PER_READ;
        most = block > most ? block : most;
    }
    int64_t tasks = (int64_t)pool_threads(j->c->pool) *
                    (most_rows <= FEW_ROWS ? FEW_ROWS_TASKS_PER_THREAD : TASKS_PER_THREAD);
    int64_t panels = total * n_panels / (tasks * most);
    panels -= panels % unit;
    if (panels < unit)
        panels = unit;
    j->panels_per_task = panels < n_panels ? (int)panels : n_panels;
    j->n_ranges = ceil_div(n_panels, j->panels_per_task);
    return j->n_ranges * s->first_block[s->n_used];
}

/* What a task of round 1 or 2 works on. */
struct share {
    const struct expert *expert;
    int first_panel, n_panels;
    int first_row, n_rows; /* of io */
};

/* The last i with first[i] <= at; first ascends strictly. */
static int find_expert(const int32_t *first, int n, int at)
{
    int low = 0, high = n;
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (first[middle] <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* The blocks of rows of one range of an expert follow each other, so that the panels are
 * read from memory once. */
static struct share share_of(const struct forward_job *j, int task, int n_panels)
{
    const struct expert_scratch *s = j->s;
    int i = find_expert(s->first_block, s->n_used, task / j->n_ranges);
    int n_blocks = s->first_block[i + 1] - s->first_block[i];
    int local = task - s->first_block[i] * j->n_ranges;
    int first = local / n_blocks * j->panels_per_task;
    int row = s->first_io[i] + local % n_blocks * ROWS_PER_TASK;
    return (struct share){.expert = j->held[s->used[i]],
                          .first_panel = first,
                          .n_panels = min_int(j->panels_per_task, n_panels - first),
                          .first_row = row,
                          .n_rows = min_int(ROWS_PER_TASK, s->first_io[i + 1] - row)};
}

/* Panels of m as a matrix of their own; first_panel is a multiple of 8 where it is FP8. */
static struct matrix part_of(const struct matrix *m, int first_panel, int n_panels)
{
    struct matrix part = *m;
    part.panels = (char *)m->panels + (size_t)first_panel * m->panel_bytes;
    if (m->scales)
        part.scales = m->scales + (size_t)(first_panel * PANEL_ROWS / SCALE_BLOCK) *
                                      (size_t)ceil_div(m->cols, SCALE_BLOCK);
    part.rows = min_int(n_panels * PANEL_ROWS, m->rows - first_panel * PANEL_ROWS);
    part.n_panels = n_panels;
    return part;
}

static struct rows expert_input(const struct expert_scratch *s, const struct share *t)
{
    struct rows x = {
        .n_rows = s->max_routes, .cols = s->hidden, .f32 = s->io, .f32_stride = s->hidden_stride};
    if (s->group)
        x = rows_room_view(&s->x_room, s->max_routes);
    return rows_part(&x, t->first_row, t->n_rows);
}

static struct rows inner_rows(const struct expert_scratch *s, const struct share *t)
{
    struct rows x = {.n_rows = s->max_routes,
                     .cols = s->expert_size,
                     .f32 = s->inner,
                     .f32_stride = s->inner_stride};
    if (s->group)
        x = rows_room_view(&s->inner_room, s->max_routes);
    return rows_part(&x, t->first_row, t->n_rows);
}

/* Row `row` of the input of down, from column `first` on: as it is or quantised. */
static void store_inner(const struct forward_job *j, size_t row, int first, const float *from,
                        int n)
{
    const struct expert_scratch *s = j->s;
    if (s->group == 0) {
        memcpy(s->inner + row * s->inner_stride + first, from, (size_t)n * sizeof(*from));
        return;
    }
    const struct rows_room *room = &s->inner_room;
    size_t scale = row * room->scale_stride + (size_t)(first / s->group);
    j->c->kernels->quantise(from, n, s->group, room->q8 + row * room->q8_stride + first,
                            room->scales + scale, room->sums + scale);
}

static void activate(const struct kernels *k, const struct activation *a, float *gate,
                     const float *up, int n)
{
    if (a->kind == ACTIVATION_SWIGLU_OAI)
        k->swiglu_oai(gate, up, n, a);
    else
        k->swiglu(gate, up, n);
}

static void gate_and_up_part(const struct forward_job *j, const struct share *t,
                             const struct rows *x)
{
    _Alignas(MEM_ALIGN) float gate[INNER_FLOATS], up[INNER_FLOATS];
    size_t stride = (size_t)t->n_panels * PANEL_ROWS;
    must(stride * (size_t)t->n_rows <= INNER_FLOATS);
    struct matrix gate_part = part_of(&t->expert->gate, t->first_panel, t->n_panels);
    struct matrix up_part = part_of(&t->expert->up, t->first_panel, t->n_panels);
    matmul_range(j->c, &gate_part, 0, t->n_panels, x, gate, stride);
    matmul_range(j->c, &up_part, 0, t->n_panels, x, up, stride);
    for (int row = 0; row < t->n_rows; row++) {
        float *from = gate + (size_t)row * stride;
        activate(j->c->kernels, &t->expert->activation, from, up + (size_t)row * stride,
                 gate_part.rows);
        store_inner(j, (size_t)(t->first_row + row), t->first_panel * PANEL_ROWS, from,
                    gate_part.rows);
    }
}

static int gate_unit(const struct expert_scratch *s)
{
    return s->group == Q4_GROUP ? Q4_GATE_PANELS : GATE_PANELS;
}

static void gate_and_up(void *ctx, int task)
{
    const struct forward_job *j = ctx;
    struct share t = share_of(j, task, ceil_div(j->s->expert_size, PANEL_ROWS));
    struct rows x = expert_input(j->s, &t);
    int at_once = INNER_FLOATS / (t.n_rows * PANEL_ROWS);
    at_once -= at_once % gate_unit(j->s);
    int end = t.first_panel + t.n_panels;
    for (; t.first_panel < end; t.first_panel += at_once) {
        t.n_panels = min_int(at_once, end - t.first_panel);
        gate_and_up_part(j, &t, &x);
    }
}

static void down(void *ctx, int task)
{
    const struct forward_job *j = ctx;
    const struct expert_scratch *s = j->s;
    struct share t = share_of(j, task, ceil_div(s->hidden, PANEL_ROWS));
    struct rows x = inner_rows(s, &t);
    matmul_range(j->c, &t.expert->down, t.first_panel, t.n_panels, &x,
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
    must(p->n_rows == 0 || p->rows.group == s->group);
    struct forward_job j = {.c = c, .s = s, .held = held, .p = p, .out = out};
    int n_blocks = ceil_div(p->n_rows, ROWS_PER_COMBINE);
    sort_routes(s, held, n_experts, p);
    if (p->n_routes > 0) {
        pool_run(c->pool, gather_rows, &j, n_blocks);
        int n_tasks = split_panels(&j, ceil_div(s->expert_size, PANEL_ROWS), gate_unit(s));
        pool_run(c->pool, gate_and_up, &j, n_tasks);
        n_tasks = split_panels(&j, ceil_div(s->hidden, PANEL_ROWS), DOWN_PANELS);
        pool_run(c->pool, down, &j, n_tasks);
    }
    pool_run(c->pool, combine_rows, &j, n_blocks);
}
