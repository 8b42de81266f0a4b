/* engine/context.c - see context.h: the place's half; attention_far.c is the side's. */
#include "engine/context.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/attention_parts.h"

/* What is known of a sequence's part. */
struct known {
    int32_t *pages;
    uint32_t n, size;
};

/* Who comes by in a lane. */
struct passing {
    struct context_counts counts;
    struct kv_seq *seqs; /* [max_rows]: of the groups */
};

struct context {
    struct model_config config;
    struct attention *attention;
    struct kv *kv;
    struct known *known; /* [max_seqs] */
    uint8_t *is_planned; /* [max_seqs] */
    struct context_options options;
    struct passing lanes[FORWARD_LANES];

    /* The call in progress. */
    const struct context_rows *rows;
};

/* ---- open ---- */

int context_open(const struct model_config *config, const struct context_options *o,
                 struct compute compute, struct context **out, struct err *e)
{
    must(o->max_rows > 0 && o->max_seqs > 0);
    *out = NULL;
    if (config->sparse.block_size > 0 && ATTENTION_CHUNK % config->sparse.block_size != 0)
        return err_set(e, E_INVALID,
                       "contexts cannot be split between blocks of %d positions: %d is no "
                       "multiple of it",
                       config->sparse.block_size, ATTENTION_CHUNK);
    struct context *c = mem_alloc(sizeof(*c));
    c->config = *config;
    c->options = *o;
    c->known = mem_array((size_t)o->max_seqs, sizeof(*c->known));
    c->is_planned = mem_array((size_t)o->max_seqs, 1);
    for (int i = 0; i < FORWARD_LANES; i++)
        c->lanes[i].seqs = mem_array((size_t)o->max_rows, sizeof(struct kv_seq));
    struct attention_options a = {.max_rows = o->max_rows, .kv = o->kv, .choice = MSA_BEST};
    int rc = attention_open(config, &a, compute, &c->attention, e);
    if (rc == 0)
        rc = kv_open(config, o->kv, (size_t)o->kv_bytes, &c->kv, e);
    if (rc < 0)
        context_close(&c);
    *out = c;
    return rc;
}

void context_close(struct context **context)
{
    struct context *c = *context;
    if (!c)
        return;
    *context = NULL;
    for (int i = 0; i < c->options.max_seqs; i++)
        mem_free(c->known[i].pages);
    for (int i = 0; i < FORWARD_LANES; i++)
        mem_free(c->lanes[i].seqs);
    attention_close(&c->attention);
    kv_close(&c->kv);
    mem_free(c->known);
    mem_free(c->is_planned);
    mem_free(c);
}

int context_pages(const struct context *c)
{
    return kv_pages_total(c->kv);
}

void context_clear(struct context *c)
{
    for (int i = 0; i < c->options.max_seqs; i++)
        c->known[i].n = 0;
    for (int i = 0; i < FORWARD_LANES; i++)
        c->lanes[i].counts = (struct context_counts){0};
}

struct context_counts context_counts(const struct context *c, int lane)
{
    must(lane >= 0 && lane < FORWARD_LANES);
    return c->lanes[lane].counts;
}

/* ---- who comes by ---- */

static int check_part(struct context *c, const struct context_plan *p, uint32_t i,
                      const int32_t *pages, struct err *e)
{
    const struct context_part *part = &p->parts[i];
    uint32_t total = (uint32_t)kv_pages_total(c->kv);
    if (part->seq >= (uint32_t)c->options.max_seqs)
        return err_set(e, E_INVALID, "sequence %u, there is room for %d", part->seq,
                       c->options.max_seqs);
    if (c->is_planned[part->seq])
        return err_set(e, E_INVALID, "sequence %u comes twice", part->seq);
    if (part->n_kept > c->known[part->seq].n || part->n_new > total ||
        part->n_kept > total - part->n_new)
        return err_set(e, E_INVALID, "sequence %u: %u pages kept of %u, %u new of %u", part->seq,
                       part->n_kept, c->known[part->seq].n, part->n_new, total);
    int limit = (c->config.max_positions + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    if (part->n_kept + part->n_new > (uint32_t)limit)
        return err_set(e, E_INVALID, "sequence %u: %u pages are past the model's %d positions",
                       part->seq, part->n_kept + part->n_new, c->config.max_positions);
    for (uint32_t j = 0; j < part->n_new; j++)
        if (pages[j] < 0 || (uint32_t)pages[j] >= total)
            return err_set(e, E_INVALID, "sequence %u: page %d of %u", part->seq, pages[j], total);
    c->is_planned[part->seq] = true;
    return 0;
}

static int check_parts(struct context *c, const struct context_plan *p, struct err *e)
{
    const int32_t *pages = p->pages;
    int rc = 0;
    memset(c->is_planned, 0, (size_t)c->options.max_seqs);
    for (uint32_t i = 0; rc == 0 && i < p->n_parts; i++) {
        rc = check_part(c, p, i, pages, e);
        pages += p->parts[i].n_new;
    }
    return rc;
}

static int check_group(const struct context *c, const struct context_plan *p,
                       const struct context_group *g, struct err *e)
{
    if (g->part >= p->n_parts)
        return err_set(e, E_INVALID, "a group of part %u of %u", g->part, p->n_parts);
    const struct context_part *part = &p->parts[g->part];
    uint32_t n_pages = part->n_kept + part->n_new;
    uint32_t limit = (uint32_t)c->config.max_positions, end = n_pages * KV_PAGE_TOKENS;
    if (g->n_rows == 0 || g->n_rows > GROUP_ROWS || g->position > limit ||
        g->position % GROUP_ROWS + g->n_rows > GROUP_ROWS || g->n_rows > limit - g->position)
        return err_set(e, E_INVALID, "a group of %u rows at position %u", g->n_rows, g->position);
    bool is_inside = g->position + g->n_rows <= end, is_behind = g->position >= end;
    if (g->ends ? !is_inside : !is_behind || n_pages % KV_SPAN_PAGES != 0)
        return err_set(e, E_INVALID, "a group of %u rows at position %u of a part of %u pages",
                       g->n_rows, g->position, n_pages);
    if (g->chooses && c->config.sparse.block_size == 0)
        return err_set(e, E_INVALID, "rows that choose, and a model without sparse layers");
    return 0;
}

static int check_groups(const struct context *c, const struct context_plan *p, struct err *e)
{
    uint64_t n_rows = 0;
    for (uint32_t i = 0; i < p->n_groups; i++) {
        int rc = check_group(c, p, &p->groups[i], e);
        if (rc < 0)
            return rc;
        if (i > 0 && p->groups[i].part < p->groups[i - 1].part)
            return err_set(e, E_INVALID, "groups are not in order of their parts");
        n_rows += p->groups[i].n_rows;
        if (n_rows > (uint64_t)c->options.max_rows)
            return err_set(e, E_INVALID, "more than %d rows come by", c->options.max_rows);
    }
    return 0;
}

static void learn_parts(struct context *c, const struct context_plan *p)
{
    const int32_t *pages = p->pages;
    for (uint32_t i = 0; i < p->n_parts; i++) {
        const struct context_part *part = &p->parts[i];
        struct known *k = &c->known[part->seq];
        uint32_t n = part->n_kept + part->n_new;
        if (n > k->size) {
            k->size = 2 * n;
            k->pages = mem_resize(k->pages, k->size * sizeof(*k->pages));
        }
        if (part->n_new > 0)
            memcpy(k->pages + part->n_kept, pages, part->n_new * sizeof(*pages));
        k->n = n;
        pages += part->n_new;
    }
}

static void plan_group(struct context *c, int lane, const struct context_plan *p,
                       const struct context_group *g)
{
    struct attention_plan *plan = &c->attention->plans[lane];
    struct passing *l = &c->lanes[lane];
    const struct known *k = &c->known[p->parts[g->part].seq];
    struct kv_seq *seq = &l->seqs[plan->n_groups];
    *seq = (struct kv_seq){.pages = k->pages, .n_pages = (int)k->n};
    plan->groups[plan->n_groups] =
        (struct row_group){.seq = seq,
                           .first_row = plan->n_rows,
                           .n_rows = (int)g->n_rows,
                           .position = (int)g->position,
                           .chooses = g->chooses,
                           .is_part = true,
                           .ends = g->ends,
                           .n_here = g->ends ? INT_MAX : (int)k->n * KV_PAGE_TOKENS};
    for (uint32_t i = 0; i < g->n_rows; i++)
        plan->row_group[plan->n_rows++] = plan->n_groups;
    plan->n_groups++;
    l->counts.rows += g->n_rows;
    l->counts.ending += g->ends ? g->n_rows : 0;
    l->counts.choosing += g->chooses ? g->n_rows : 0;
}

int context_begin(struct context *c, int lane, const struct context_plan *p, struct err *e)
{
    must(lane >= 0 && lane < FORWARD_LANES);
    int rc = check_parts(c, p, e);
    if (rc == 0)
        rc = check_groups(c, p, e);
    c->lanes[lane].counts = (struct context_counts){0};
    if (rc < 0)
        return rc;
    learn_parts(c, p);
    struct attention *a = c->attention;
    a->plan = &a->plans[lane];
    a->plan->n_rows = a->plan->n_groups = 0;
    a->plan->has_parts = true;
    for (uint32_t i = 0; i < p->n_groups; i++)
        plan_group(c, lane, p, &p->groups[i]);
    attention_plan_lists(a);
    return 0;
}

/* ---- a layer ---- */

/* Where a group's rows stand among those of its kind. */
static int32_t count_before(const struct context *c, int group, bool of_choosing)
{
    const struct attention_plan *p = c->attention->plan;
    int32_t n = 0;
    for (int i = 0; i < group; i++)
        if (of_choosing ? p->groups[i].chooses : p->groups[i].ends)
            n += p->groups[i].n_rows;
    return n;
}

/* Task = group: keys and values of its rows. */
static void write_task(void *ctx, int group)
{
    struct context *c = ctx;
    struct attention *a = c->attention;
    const struct row_group *g = &a->plan->groups[group];
    const struct context_rows *r = c->rows;
    if (!g->ends)
        return;
    size_t first = (size_t)count_before(c, group, false);
    size_t dim = (size_t)(a->n_kv_heads * a->head_dim), index_dim = (size_t)a->sparse.head_dim;
    for (int i = 0; i < g->n_rows; i++) {
        size_t at = first + (size_t)i;
        kv_write(c->kv, g->seq, a->layer, g->position + i, r->k + at * dim, r->v + at * dim);
        if (r->index_k)
            kv_index_write(c->kv, g->seq, a->layer, g->position + i, r->index_k + at * index_dim);
    }
}

static int begin_call(struct context *c, int lane, const struct context_rows *r, struct err *e)
{
    must(lane >= 0 && lane < FORWARD_LANES);
    if (c->lanes[lane].counts.rows == 0)
        return err_set(e, E_PRECONDITION, "no row comes by in lane %d", lane);
    if (r->layer >= (uint32_t)c->config.n_layers)
        return err_set(e, E_INVALID, "layer %u of %d", r->layer, c->config.n_layers);
    bool is_sparse = config_is_sparse(&c->config, (int)r->layer);
    if (r->k && (!r->v || (r->index_k != NULL) != is_sparse))
        return err_set(e, E_INVALID, "layer %u: keys do not come with what belongs to them",
                       r->layer);
    struct attention *a = c->attention;
    a->plan = &a->plans[lane];
    a->kv = c->kv;
    a->layer = (int)r->layer;
    c->rows = r;
    if (r->k)
        pool_run(a->compute.pool, write_task, c, a->plan->n_groups);
    return 0;
}

/* ---- choose ---- */

/* Task = group: its rows' index queries. */
static void take_queries_task(void *ctx, int group)
{
    struct context *c = ctx;
    struct attention *a = c->attention;
    const struct row_group *g = &a->plan->groups[group];
    if (!g->chooses)
        return;
    size_t floats = (size_t)(a->sparse.n_heads * a->sparse.head_dim);
    size_t first = (size_t)count_before(c, group, true);
    for (int i = 0; i < g->n_rows; i++)
        memcpy(a->msa.queries + (size_t)(g->first_row + i) * a->msa.query_stride,
               c->rows->index_q + (first + (size_t)i) * floats, floats * sizeof(float));
}

int context_choose(struct context *c, int lane, const struct context_rows *r, struct err *e)
{
    int rc = begin_call(c, lane, r, e);
    if (rc < 0)
        return rc;
    struct attention *a = c->attention;
    if (!config_is_sparse(&c->config, a->layer) || c->lanes[lane].counts.choosing == 0)
        return err_set(e, E_INVALID, "layer %u: nothing is to be chosen", r->layer);
    pool_run(a->compute.pool, take_queries_task, c, a->plan->n_groups);
    attention_rank(a);
    struct context_candidate *to = r->candidates;
    size_t n = (size_t)(a->sparse.top_k - 1);
    for (int row = 0; row < a->plan->n_rows; row++)
        for (int head = 0; row_chooses(a, row) && head < a->sparse.n_heads; head++, to += n)
            memcpy(to, msa_ranked(&a->msa, row, head), n * sizeof(*to));
    return 0;
}

/* ---- attend ---- */

static int check_blocks(const struct context *c, int lane, const struct context_rows *r,
                        struct err *e)
{
    const struct attention *a = c->attention;
    size_t lists = (size_t)c->lanes[lane].counts.choosing * (size_t)a->n_kv_heads;
    int limit = c->config.max_positions / a->sparse.block_size + 1, top_k = a->sparse.top_k;
    for (size_t i = 0; i < lists; i++) {
        const int32_t *blocks = r->blocks + i * (size_t)top_k;
        for (int b = 0; b < top_k; b++)
            if (blocks[b] < -limit || blocks[b] > limit || (b > 0 && blocks[b] <= blocks[b - 1]))
                return err_set(e, E_INVALID, "layer %u: block %d is none, or out of order",
                               r->layer, blocks[b]);
    }
    return 0;
}

/* Task = group: its rows' blocks, queries and what they have met so far. */
static void take_rows_task(void *ctx, int group)
{
    struct context *c = ctx;
    struct attention *a = c->attention;
    const struct context_rows *r = c->rows;
    const struct row_group *g = &a->plan->groups[group];
    size_t heads = (size_t)a->n_heads, dim = (size_t)a->head_dim;
    for (int row = g->first_row; row < g->first_row + g->n_rows; row++) {
        size_t first = (size_t)row * heads;
        memcpy(a->q + (size_t)row * a->q_stride, r->q + first * dim, heads * dim * sizeof(float));
        attention_prepare_queries(a, row);
        for (size_t i = first; i < first + heads; i++) {
            a->merged[i] = (struct merged){r->state[i].max, r->state[i].sum};
            memcpy(a->merged_o + i * a->head_stride, r->o + i * dim, dim * sizeof(float));
        }
    }
    if (!g->chooses || !r->blocks)
        return;
    size_t lists = (size_t)a->n_kv_heads * (size_t)a->sparse.top_k;
    memcpy(a->msa.blocks + (size_t)g->first_row * lists,
           r->blocks + (size_t)count_before(c, group, true) * lists,
           (size_t)g->n_rows * lists * sizeof(*r->blocks));
}

/* Task = row. */
static void give_row_task(void *ctx, int row)
{
    struct context *c = ctx;
    const struct attention *a = c->attention;
    const struct context_rows *r = c->rows;
    size_t heads = (size_t)a->n_heads, dim = (size_t)a->head_dim, first = (size_t)row * heads;
    for (size_t i = first; i < first + heads; i++)
        r->state[i] = (struct context_state){a->merged[i].max, a->merged[i].sum};
    if (a->plan->groups[a->plan->row_group[row]].ends) {
        memcpy(r->o + first * dim, a->q + (size_t)row * a->q_stride, heads * dim * sizeof(float));
        return;
    }
    for (size_t i = first; i < first + heads; i++)
        memcpy(r->o + i * dim, a->merged_o + i * a->head_stride, dim * sizeof(float));
}

int context_attend(struct context *c, int lane, const struct context_rows *r, struct err *e)
{
    int rc = begin_call(c, lane, r, e);
    if (rc < 0)
        return rc;
    struct attention *a = c->attention;
    bool chooses = config_is_sparse(&c->config, a->layer) && c->lanes[lane].counts.choosing > 0;
    if (chooses != (r->blocks != NULL))
        return err_set(e, E_INVALID, "layer %u: chosen blocks %s", r->layer,
                       chooses ? "are missing" : "where every key is seen");
    if (chooses && (rc = check_blocks(c, lane, r, e)) < 0)
        return rc;
    pool_run(a->compute.pool, take_rows_task, c, a->plan->n_groups);
    if (config_is_sparse(&c->config, a->layer)) {
        attention_attend_all(a, LIST_SEEING);
        attention_attend_chosen(a);
    } else {
        attention_attend_all(a, LIST_ALL);
    }
    pool_run(a->compute.pool, give_row_task, c, a->plan->n_rows);
    return 0;
}
