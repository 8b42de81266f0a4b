/* engine/attention.c - see engine/attention.h; attention_parts.h says which file does what. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/attention_parts.h"

/* Of GROUP_ROWS = 16 rows of 6 heads queries, states and outputs (100 KiB at 128 dimensions) stay
 * in L2 beside the block's 32 to 64 KiB of keys and values. */
enum {
    /* Partial results kept, in rows x chunks; also bounds what a wave of decode can share. */
    MIN_PARTIALS = 128,
    FLOATS_UNIT = 16,
};
_Static_assert(ATTENTION_CHUNK % ATTEND_BLOCK == 0, "a chunk is whole blocks");
/* Slots of a cache line of keys are then written by one thread. */
_Static_assert(GROUP_ROWS % LANES == 0 && ATTEND_BLOCK % GROUP_ROWS == 0, "groups fill lanes");

/* ---- scratch ---- */

/* NULL when memory is out or the product does not fit. */
static void *scratch(struct attention *a, size_t count, size_t unit, size_t unit_bytes)
{
    size_t bytes;
    if (!mem_mul(count, unit, &bytes) || !mem_mul(bytes, unit_bytes, &bytes))
        return NULL;
    a->scratch_bytes += bytes;
    return mem_try_aligned(bytes);
}

static bool take_plan(struct attention *a, struct attention_plan *p)
{
    size_t rows = (size_t)a->max_rows, half = (size_t)a->rope.half;
    p->groups = mem_array(rows, sizeof(*p->groups));
    p->row_group = mem_array(rows, sizeof(*p->row_group));
    p->here = mem_array(rows, sizeof(*p->here));
    for (int i = 0; i < N_LISTS; i++)
        p->lists[i].groups = mem_array(rows, sizeof(*p->lists[i].groups));
    p->sine = scratch(a, rows, half, sizeof(float));
    p->cosine = scratch(a, rows, half, sizeof(float));
    return p->sine && p->cosine;
}

static void free_plan(struct attention_plan *p)
{
    for (int i = 0; i < N_LISTS; i++)
        mem_free(p->lists[i].groups);
    mem_free(p->groups);
    mem_free(p->row_group);
    mem_free(p->here);
    mem_free(p->sine);
    mem_free(p->cosine);
}

static bool take_scratch(struct attention *a)
{
    size_t rows = (size_t)a->max_rows, heads = (size_t)a->n_heads;
    size_t partials = (size_t)a->n_partials;
    size_t all_heads, wide;
    for (int i = 0; i < FORWARD_LANES; i++)
        if (!take_plan(a, &a->plans[i]))
            return false;
    if (!mem_mul(partials, heads, &all_heads) || !mem_mul(rows, heads, &wide))
        return false;
    a->h = scratch(a, rows, a->hidden_stride, sizeof(float));
    a->q = scratch(a, rows, a->q_stride, sizeof(float));
    a->k = scratch(a, rows, a->kv_stride, sizeof(float));
    a->v = scratch(a, rows, a->kv_stride, sizeof(float));
    if (!rows_room_open(&a->h_room, a->max_rows, a->hidden, a->group) ||
        !rows_room_open(&a->q_room, a->max_rows, a->n_heads * a->head_dim, a->group))
        return false;
    a->scratch_bytes += a->h_room.bytes + a->q_room.bytes;
    a->queries = scratch(a, wide, a->head_stride, sizeof(float));
    a->queries8 = scratch(a, wide, a->head_stride, 1);
    a->query_scales = scratch(a, wide, 1, sizeof(float));
    a->state = scratch(a, all_heads, 1, sizeof(*a->state));
    a->o = scratch(a, all_heads, a->head_stride, sizeof(float));
    a->merged = scratch(a, wide, 1, sizeof(*a->merged));
    a->merged_o = scratch(a, wide, a->head_stride, sizeof(float));
    return a->h && a->q && a->k && a->v && a->queries && a->queries8 && a->query_scales &&
           a->state && a->o && a->merged && a->merged_o;
}

int attention_open(const struct model_config *config, const struct attention_options *o,
                   struct compute c, struct attention **out, struct err *e)
{
    int max_rows = o->max_rows;
    must(max_rows >= 1);
    struct attention *a = mem_alloc(sizeof(*a));
    size_t head_dim = (size_t)config->head_dim;
    a->compute = c;
    a->hidden = config->hidden_size;
    a->n_heads = config->n_heads;
    a->n_kv_heads = config->n_kv_heads;
    a->head_dim = config->head_dim;
    a->group_heads = config->n_heads / config->n_kv_heads;
    a->eps = config->rms_norm_eps;
    a->has_head_norms = config->has_head_norms;
    a->sparse = config->sparse;
    /* A block lies in one chunk, in two, or in some. */
    a->max_slots = a->sparse.top_k * (a->sparse.block_size / ATTENTION_CHUNK + 2);
    a->scale = (float)(1.0 / sqrt((double)config->head_dim));
    a->max_rows = max_rows;
    a->group = o->group;
    a->kv_format = o->kv;
    a->n_partials = max_rows > MIN_PARTIALS ? max_rows : MIN_PARTIALS;
    a->hidden_stride = mem_round_up((size_t)config->hidden_size, FLOATS_UNIT);
    a->q_stride = mem_round_up((size_t)config->n_heads * head_dim, FLOATS_UNIT);
    a->kv_stride = mem_round_up((size_t)config->n_kv_heads * head_dim, FLOATS_UNIT);
    a->head_stride = mem_round_up(head_dim, FLOATS_UNIT);
    rope_init(&a->rope, config->rope_theta, config->rotary_dim);
    *out = a;
    int rc = 0;
    if (!take_scratch(a))
        rc = err_set(e, E_NOMEM, "attention: no memory for steps of %d rows", max_rows);
    if (rc == 0 && a->sparse.block_size > 0)
        rc = msa_open(&a->msa, &a->sparse,
                      &(struct msa_options){.max_rows = max_rows,
                                            .max_positions = config->max_positions,
                                            .n_layers = config->n_layers,
                                            .choice = o->choice},
                      e);
    if (rc == 0)
        a->scratch_bytes += a->msa.bytes;
    else
        attention_close(out);
    return rc;
}

void attention_close(struct attention **attention)
{
    struct attention *a = *attention;
    if (!a)
        return;
    attention_far_close(a);
    rope_fini(&a->rope);
    msa_close(&a->msa);
    for (int i = 0; i < FORWARD_LANES; i++)
        free_plan(&a->plans[i]);
    rows_room_close(&a->h_room);
    rows_room_close(&a->q_room);
    void *const blocks[] = {
        a->h,     a->q, a->k,      a->v,       a->queries, a->queries8, a->query_scales,
        a->state, a->o, a->merged, a->merged_o};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        mem_free(blocks[i]);
    mem_free(a);
    *attention = NULL;
}

size_t attention_scratch_bytes(const struct attention *a)
{
    return a->scratch_bytes;
}

/* ---- the plan of a step ---- */
static void angles_task(void *ctx, int row)
{
    struct attention *a = ctx;
    size_t at = (size_t)row * (size_t)a->rope.half;
    rope_angles(&a->rope, row_position(a, row), a->plan->sine + at, a->plan->cosine + at);
}

/* Consecutive rows, whose keys are all here or whose context goes on elsewhere. */
static void plan_group(struct attention *a, const struct kv_seq *here, int position, int n)
{
    struct attention_plan *p = a->plan;
    must(p->n_rows + n <= a->max_rows);
    bool is_part = position / KV_PAGE_TOKENS >= here->n_pages;
    p->groups[p->n_groups] =
        (struct row_group){.seq = here,
                           .first_row = p->n_rows,
                           .n_rows = n,
                           .position = position,
                           .chooses = a->sparse.block_size > 0 && msa_chooses(&a->sparse, position),
                           .is_part = is_part,
                           .n_here = is_part ? here->n_pages * KV_PAGE_TOKENS : INT_MAX};
    p->has_parts |= is_part;
    for (int i = 0; i < n; i++)
        p->row_group[p->n_rows++] = p->n_groups;
    p->n_groups++;
}

static void plan_seq(struct attention *a, const struct step_seq *q)
{
    struct kv_seq *here = &a->plan->here[a->plan->n_groups];
    *here = *q->kv;
    here->n_pages = attention_pages_here(a, q->kv);
    for (int done = 0; done < q->n_tokens;) {
        int position = q->position + done;
        int n = min_int(GROUP_ROWS - position % GROUP_ROWS, q->n_tokens - done);
        plan_group(a, here, position, n);
        done += n;
    }
}

/* Whole tasks, if no one of them is a large part of a thread's share. */
static void plan_tasks(struct attention *a, struct group_list *list, int most_chunks)
{
    int64_t all = 0, heaviest = 0;
    list->n_chunks = 0;
    for (int i = 0; i < list->n; i++) {
        const struct row_group *g = &a->plan->groups[list->groups[i]];
        int chunks = min_int(group_chunks(g), most_chunks);
        int64_t cost = (int64_t)chunks * g->n_rows;
        all += cost;
        heaviest = cost > heaviest ? cost : heaviest;
        list->n_chunks = chunks > list->n_chunks ? chunks : list->n_chunks;
    }
    int threads = pool_threads(a->compute.pool);
    list->is_whole = threads == 1 || list->n_chunks == 1 ||
                     heaviest * threads * TASKS_PER_THREAD <= all * a->n_kv_heads;
}

static void list_group(struct attention *a, int list, int group)
{
    struct group_list *l = &a->plan->lists[list];
    l->groups[l->n++] = group;
}

void attention_plan_lists(struct attention *a)
{
    for (int i = 0; i < N_LISTS; i++)
        a->plan->lists[i].n = 0;
    for (int i = 0; i < a->plan->n_groups; i++) {
        const struct row_group *g = &a->plan->groups[i];
        list_group(a, LIST_ALL, i);
        list_group(a, g->chooses ? LIST_CHOOSING : LIST_SEEING, i);
        if (g->chooses)
            list_group(a,
                       !g->is_part               ? LIST_HERE
                       : msa_is_long(&a->msa, g) ? LIST_LONG
                                                 : LIST_SHORT,
                       i);
    }
    plan_tasks(a, &a->plan->lists[LIST_ALL], INT_MAX);
    plan_tasks(a, &a->plan->lists[LIST_SEEING], INT_MAX);
    struct group_list *choosing = &a->plan->lists[LIST_CHOOSING];
    plan_tasks(a, choosing, a->max_slots);
    /* Partial results of every row must have room at once. */
    if ((int64_t)a->plan->n_rows * a->max_slots > a->n_partials)
        choosing->is_whole = true;
}

int attention_begin(struct attention *a, int lane, const struct step_seq *seqs, int n_seqs)
{
    a->plan = &a->plans[lane];
    a->plan->n_rows = a->plan->n_groups = 0;
    a->plan->has_parts = false;
    for (int i = 0; i < n_seqs; i++)
        plan_seq(a, &seqs[i]);
    must(a->plan->n_rows >= 1);
    attention_plan_lists(a);
    attention_run(a, angles_task, a->plan->n_rows);
    return a->plan->has_parts ? attention_far_begin(a, lane, seqs, n_seqs) : 0;
}

const struct msa_counts *attention_msa_counts(const struct attention *a)
{
    return &a->msa.counts;
}

const int32_t *attention_blocks(const struct attention *a, int row, int kv_head)
{
    if (!row_chooses(a, row))
        return NULL;
    return msa_blocks(&a->msa, row, kv_head);
}

/* A sparse layer's rows of which every block is seen, and the others. */
static int attend_sparse(struct attention *a, int lane)
{
    int rc = a->plan->has_parts ? attention_far_choose(a, lane) : 0;
    if (rc < 0)
        return rc;
    attention_choose(a);
    attention_attend_all(a, LIST_SEEING);
    attention_attend_chosen(a);
    return 0;
}

int attention_layer(struct attention *a, int lane, const struct attention_weights *w, struct kv *kv,
                    int layer, float *x)
{
    int rc = 0;
    a->plan = &a->plans[lane];
    a->weights = w;
    a->kv = kv;
    a->layer = layer;
    a->x = x;
    must((size_t)kv_value_stride(kv) == a->head_stride && kv_format_of(kv) == a->kv_format);
    must(w->wq.group == a->group && w->wk.group == a->group);
    must(w->wv.group == a->group && w->wo.group == a->group);
    attention_input(a);
    if (w->is_sparse)
        rc = attend_sparse(a, lane);
    else
        attention_attend_all(a, LIST_ALL);
    if (rc == 0 && a->plan->has_parts)
        rc = attention_far_attend(a, lane);
    if (rc == 0)
        attention_output(a);
    return rc;
}
