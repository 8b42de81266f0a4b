/* engine/attention_far.c - rows whose contexts go on in other places (engine/far.h), as their side sees
 * them.
 *
 * What is here comes first and is folded as always; then the rows go from place to place.  In a sparse
 * layer every place says at the same time which of its blocks are its best, and the best of these
 * are what all of them attend to. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/attention_parts.h"

/* A row that comes by in a place. */
struct far_row {
    int32_t row;
    int32_t origin; /* position of the sequence's first one there */
    int32_t n_there;
    bool chooses, ends;
};

/* Who comes by in a place in one lane. */
struct far_place {
    struct far_row *rows; /* [max_rows] */
    int n_rows, n_ending, n_choosing;
    bool has_written; /* in the present layer */
};

struct far {
    const struct far_ops *ops;
    void *ud;
    struct kv *kv;
    struct far_place places[FORWARD_LANES][KV_MAX_PLACES];

    /* Of a message. */
    struct context_part *parts;   /* [max_seqs] */
    struct context_group *groups; /* [max_rows] */
    int32_t *pages;               /* [pages_size] */
    size_t pages_size;
    size_t q_floats, kv_floats, index_q_floats, index_k_floats; /* of a row */
    float *q, *o;                                               /* [max_rows, q_floats] */
    struct context_state *state;                                /* [max_rows, n_heads] */
    float *k, *v;                                               /* [max_rows, kv_floats] */
    float *index_q, *index_k;
    struct context_candidate *candidates; /* [max_rows, index heads, top_k - 1] */
    int32_t *blocks;                      /* [max_rows, n_kv_heads, top_k] */

    /* The call in progress. */
    const struct far_place *place;
};

/* ---- room ---- */

static void *far_scratch(struct attention *a, size_t unit_bytes, size_t count)
{
    size_t bytes;
    if (!mem_mul((size_t)a->max_rows, count, &bytes) || !mem_mul(bytes, unit_bytes, &bytes))
        return NULL;
    a->scratch_bytes += bytes;
    return mem_try_aligned(bytes > 0 ? bytes : 1);
}

static bool take_far(struct attention *a, struct far *f, uint32_t max_seqs)
{
    size_t rows = (size_t)a->max_rows, heads = (size_t)a->n_heads;
    size_t lists = (size_t)a->sparse.n_heads, top_k = (size_t)a->sparse.top_k;
    f->q_floats = heads * (size_t)a->head_dim;
    f->kv_floats = (size_t)(a->n_kv_heads * a->head_dim);
    f->index_k_floats = (size_t)a->sparse.head_dim;
    f->index_q_floats = lists * f->index_k_floats;
    for (int lane = 0; lane < FORWARD_LANES; lane++)
        for (int i = 1; i < KV_MAX_PLACES; i++)
            f->places[lane][i].rows = mem_array(rows, sizeof(struct far_row));
    f->parts = mem_array(max_seqs, sizeof(*f->parts));
    f->groups = mem_array(rows, sizeof(*f->groups));
    f->q = far_scratch(a, sizeof(float), f->q_floats);
    f->o = far_scratch(a, sizeof(float), f->q_floats);
    f->state = far_scratch(a, sizeof(*f->state), heads);
    f->k = far_scratch(a, sizeof(float), f->kv_floats);
    f->v = far_scratch(a, sizeof(float), f->kv_floats);
    f->index_q = far_scratch(a, sizeof(float), f->index_q_floats);
    f->index_k = far_scratch(a, sizeof(float), f->index_k_floats);
    f->candidates = far_scratch(a, sizeof(*f->candidates), lists * top_k);
    f->blocks = far_scratch(a, sizeof(*f->blocks), (size_t)a->n_kv_heads * top_k);
    return f->q && f->o && f->state && f->k && f->v && f->index_q && f->index_k && f->candidates &&
           f->blocks;
}

int attention_set_far(struct attention *a, const struct far_ops *ops, void *ud, struct kv *kv,
                      uint32_t max_seqs, struct err *e)
{
    must(!a->far && max_seqs > 0);
    if (a->sparse.block_size > 0 && ATTENTION_CHUNK % a->sparse.block_size != 0)
        return err_set(e, E_INVALID,
                       "contexts cannot be split between blocks of %d positions: %d "
                       "is no multiple of it",
                       a->sparse.block_size, ATTENTION_CHUNK);
    struct far *f = mem_alloc(sizeof(*f));
    *f = (struct far){.ops = ops, .ud = ud, .kv = kv};
    a->far = f;
    if (take_far(a, f, max_seqs))
        return 0;
    attention_far_close(a);
    return err_set(e, E_NOMEM, "attention: no memory for split contexts, steps of %d rows",
                   a->max_rows);
}

void attention_far_close(struct attention *a)
{
    struct far *f = a->far;
    if (!f)
        return;
    a->far = NULL;
    for (int lane = 0; lane < FORWARD_LANES; lane++)
        for (int i = 1; i < KV_MAX_PLACES; i++)
            mem_free(f->places[lane][i].rows);
    void *const blocks[] = {f->parts, f->groups, f->pages,   f->q,       f->o,          f->state,
                            f->k,     f->v,      f->index_q, f->index_k, f->candidates, f->blocks};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        mem_free(blocks[i]);
    mem_free(f);
}

/* ---- the plan of a step ---- */

int attention_pages_here(const struct attention *a, const struct kv_seq *s)
{
    return a->far ? kv_part(a->far->kv, s, 0).end : s->n_pages;
}

void attention_begin_part(struct attention *a, int row)
{
    size_t first = (size_t)row * (size_t)a->n_heads;
    for (int head = 0; head < a->n_heads; head++)
        a->merged[first + (size_t)head] = (struct merged){.max = -INFINITY};
    memset(a->merged_o + first * a->head_stride, 0,
           (size_t)a->n_heads * a->head_stride * sizeof(float));
}

static void make_room_for_pages(struct far *f, size_t n)
{
    if (n <= f->pages_size)
        return;
    f->pages = mem_resize(f->pages, 2 * n * sizeof(*f->pages));
    f->pages_size = 2 * n;
}

/* What the place does not know yet of a sequence's pages. */
static void plan_part(struct far *f, const struct step_seq *q, struct kv_part part,
                      struct context_plan *p, size_t *n_pages)
{
    int told = q->kv->n_told < part.first ? part.first
               : q->kv->n_told > part.end ? part.end
                                          : q->kv->n_told;
    make_room_for_pages(f, *n_pages + (size_t)(part.end - told));
    for (int i = told; i < part.end; i++)
        f->pages[(*n_pages)++] = kv_page_there(f->kv, q->kv, i);
    f->parts[p->n_parts++] = (struct context_part){.seq = q->number,
                                                   .n_kept = (uint32_t)(told - part.first),
                                                   .n_new = (uint32_t)(part.end - told)};
}

static void plan_row(struct far_place *at, const struct row_group *g, int row, struct kv_part part)
{
    bool ends = g->position < part.end * KV_PAGE_TOKENS;
    at->rows[at->n_rows++] = (struct far_row){.row = row,
                                              .origin = part.first * KV_PAGE_TOKENS,
                                              .n_there = (part.end - part.first) * KV_PAGE_TOKENS,
                                              .chooses = g->chooses,
                                              .ends = ends};
    at->n_ending += ends;
    at->n_choosing += g->chooses;
}

/* The groups of a sequence, from `group` on, that come by in its part. */
static void plan_groups(struct attention *a, struct far_place *at, struct kv_part part, int group,
                        int end_row, struct context_plan *p)
{
    for (; group < a->plan->n_groups && a->plan->groups[group].first_row < end_row; group++) {
        const struct row_group *g = &a->plan->groups[group];
        if (g->position < part.first * KV_PAGE_TOKENS)
            continue;
        a->far->groups[p->n_groups++] = (struct context_group){
            .part = p->n_parts - 1,
            .n_rows = (uint32_t)g->n_rows,
            .position = (uint32_t)(g->position - part.first * KV_PAGE_TOKENS),
            .chooses = g->chooses,
            .ends = g->position < part.end * KV_PAGE_TOKENS};
        for (int i = 0; i < g->n_rows; i++)
            plan_row(at, g, g->first_row + i, part);
    }
}

static int begin_place(struct attention *a, int lane, int place, const struct step_seq *seqs,
                       int n_seqs)
{
    struct far *f = a->far;
    struct far_place *at = &f->places[lane][place];
    struct context_plan p = {0};
    size_t n_pages = 0;
    at->n_rows = at->n_ending = at->n_choosing = 0;
    for (int i = 0, row = 0; i < n_seqs; row += seqs[i++].n_tokens) {
        struct kv_part part = kv_part(f->kv, seqs[i].kv, place);
        if (part.end == part.first)
            continue;
        plan_part(f, &seqs[i], part, &p, &n_pages);
        plan_groups(a, at, part, a->plan->row_group[row], row + seqs[i].n_tokens, &p);
    }
    p.parts = f->parts;
    p.groups = f->groups;
    p.pages = f->pages;
    return p.n_parts > 0 ? f->ops->begin(f->ud, lane, place, &p) : 0;
}

int attention_far_begin(struct attention *a, int lane, const struct step_seq *seqs, int n_seqs)
{
    for (int place = 1; place < kv_places(a->far->kv); place++) {
        int rc = begin_place(a, lane, place, seqs, n_seqs);
        if (rc < 0)
            return rc;
    }
    for (int i = 0; i < n_seqs; i++)
        seqs[i].kv->n_told = seqs[i].kv->n_pages;
    return 0;
}

/* ---- messages ---- */

static void copy_floats(float *to, const float *from, size_t n)
{
    memcpy(to, from, n * sizeof(*to));
}

/* Keys and values of ending rows, once per layer. */
static void add_written(struct attention *a, struct far_place *at, struct context_rows *r)
{
    struct far *f = a->far;
    size_t n = 0;
    if (at->has_written || at->n_ending == 0)
        return;
    for (int i = 0; i < at->n_rows; i++) {
        if (!at->rows[i].ends)
            continue;
        size_t row = (size_t)at->rows[i].row;
        copy_floats(f->k + n * f->kv_floats, a->k + row * a->kv_stride, f->kv_floats);
        copy_floats(f->v + n * f->kv_floats, a->v + row * a->kv_stride, f->kv_floats);
        if (a->weights->is_sparse)
            copy_floats(f->index_k + n * f->index_k_floats, a->msa.keys + row * a->msa.key_stride,
                        f->index_k_floats);
        n++;
    }
    r->k = f->k;
    r->v = f->v;
    r->index_k = a->weights->is_sparse ? f->index_k : NULL;
    at->has_written = true;
}

static int send_choose(struct attention *a, int lane, int place)
{
    struct far *f = a->far;
    struct far_place *at = &f->places[lane][place];
    struct context_rows r = {.layer = (uint32_t)a->layer, .index_q = f->index_q};
    size_t n = 0;
    for (int i = 0; i < at->n_rows; i++)
        if (at->rows[i].chooses)
            copy_floats(f->index_q + n++ * f->index_q_floats,
                        a->msa.queries + (size_t)at->rows[i].row * a->msa.query_stride,
                        f->index_q_floats);
    add_written(a, at, &r);
    return f->ops->choose(f->ud, lane, place, &r);
}

/* A list of another place says nothing that could not be. */
static bool is_list(const struct attention *a, const struct far_row *r,
                    const struct context_candidate *list)
{
    int n_blocks = r->n_there / a->sparse.block_size;
    for (int i = 0; i < a->sparse.top_k - 1; i++)
        if (list[i].block < -1 || list[i].block >= n_blocks || isnan(list[i].score))
            return false;
    return true;
}

static int take_chosen(struct attention *a, int lane, int place)
{
    struct far *f = a->far;
    const struct far_place *at = &f->places[lane][place];
    const struct context_candidate *list = f->candidates;
    int rc = f->ops->chosen(f->ud, lane, place, f->candidates);
    for (int i = 0; rc == 0 && i < at->n_rows; i++) {
        const struct far_row *r = &at->rows[i];
        for (int head = 0; r->chooses && head < a->sparse.n_heads; head++) {
            if (!is_list(a, r, list))
                return E_CORRUPT;
            msa_merge_ranked(&a->msa, msa_ranked(&a->msa, r->row, head), list,
                             r->origin / a->sparse.block_size);
            list += a->sparse.top_k - 1;
        }
    }
    return rc;
}

/* Of a row of a part, of which all places have been heard. */
static int take_best(struct attention *a, int row)
{
    int n = a->sparse.top_k - 1;
    for (int head = 0; head < a->sparse.n_heads; head++) {
        if (n > 0 && msa_ranked(&a->msa, row, head)[n - 1].block < 0)
            return E_CORRUPT;
        msa_take_ranked(&a->msa, row, head, row_position(a, row) / a->sparse.block_size);
    }
    return 0;
}

static void begin_layer(struct attention *a, int lane)
{
    for (int place = 1; place < KV_MAX_PLACES; place++)
        a->far->places[lane][place].has_written = false;
}

int attention_far_choose(struct attention *a, int lane)
{
    struct far *f = a->far;
    int n_places = kv_places(f->kv), rc = 0;
    begin_layer(a, lane);
    if (a->plan->lists[LIST_LONG].n + a->plan->lists[LIST_SHORT].n == 0)
        return 0;
    for (int place = 1; rc == 0 && place < n_places; place++)
        if (f->places[lane][place].n_choosing > 0)
            rc = send_choose(a, lane, place);
    attention_rank(a);
    for (int place = 1; rc == 0 && place < n_places; place++)
        if (f->places[lane][place].n_choosing > 0)
            rc = take_chosen(a, lane, place);
    for (int row = 0; rc == 0 && row < a->plan->n_rows; row++) {
        const struct row_group *g = &a->plan->groups[a->plan->row_group[row]];
        if (g->is_part && g->chooses)
            rc = take_best(a, row);
    }
    return rc;
}

/* ---- attention there ---- */

/* Task = a row that comes by: what it brings. */
static void pack_task(void *ctx, int task)
{
    struct attention *a = ctx;
    struct far *f = a->far;
    size_t i = (size_t)task, row = (size_t)f->place->rows[task].row, heads = (size_t)a->n_heads;
    size_t dim = (size_t)a->head_dim;
    copy_floats(f->q + i * f->q_floats, a->q + row * a->q_stride, f->q_floats);
    for (size_t head = 0; head < heads; head++) {
        const struct merged *m = &a->merged[row * heads + head];
        f->state[i * heads + head] = (struct context_state){m->max, m->sum};
        copy_floats(f->o + i * f->q_floats + head * dim,
                    a->merged_o + (row * heads + head) * a->head_stride, dim);
    }
}

/* And what it takes along: its heads, or what they are so far. */
static void unpack_task(void *ctx, int task)
{
    struct attention *a = ctx;
    struct far *f = a->far;
    const struct far_row *r = &f->place->rows[task];
    size_t i = (size_t)task, row = (size_t)r->row, heads = (size_t)a->n_heads;
    size_t dim = (size_t)a->head_dim;
    if (r->ends) {
        copy_floats(a->q + row * a->q_stride, f->o + i * f->q_floats, f->q_floats);
        return;
    }
    for (size_t head = 0; head < heads; head++) {
        const struct context_state *s = &f->state[i * heads + head];
        a->merged[row * heads + head] = (struct merged){s->max, s->sum};
        copy_floats(a->merged_o + (row * heads + head) * a->head_stride,
                    f->o + i * f->q_floats + head * dim, dim);
    }
}

static void pack_blocks(struct attention *a, const struct far_place *at)
{
    int32_t *to = a->far->blocks;
    int top_k = a->sparse.top_k;
    for (int i = 0; i < at->n_rows; i++)
        for (int head = 0; at->rows[i].chooses && head < a->n_kv_heads; head++) {
            const int32_t *blocks = msa_blocks(&a->msa, at->rows[i].row, head);
            for (int b = 0; b < top_k; b++)
                *to++ = blocks[b] - at->rows[i].origin / a->sparse.block_size;
        }
}

static int attend_there(struct attention *a, int lane, int place)
{
    struct far *f = a->far;
    struct far_place *at = &f->places[lane][place];
    struct context_rows r = {.layer = (uint32_t)a->layer, .q = f->q, .state = f->state, .o = f->o};
    f->place = at;
    attention_run(a, pack_task, at->n_rows);
    add_written(a, at, &r);
    if (a->weights->is_sparse && at->n_choosing > 0) {
        pack_blocks(a, at);
        r.blocks = f->blocks;
    }
    int rc = f->ops->attend(f->ud, lane, place, &r);
    if (rc == 0)
        attention_run(a, unpack_task, at->n_rows);
    return rc;
}

int attention_far_attend(struct attention *a, int lane)
{
    int rc = 0;
    if (!a->weights->is_sparse)
        begin_layer(a, lane);
    for (int place = 1; rc == 0 && place < kv_places(a->far->kv); place++)
        if (a->far->places[lane][place].n_rows > 0)
            rc = attend_there(a, lane, place);
    return rc;
}
