/* engine/attention_chosen.c - rows of a sparse layer that see chosen blocks of keys (msa.h). */
#include "engine/attention_parts.h"

/* On a walk over them in ascending order. */
struct walk {
    const int32_t *blocks;
    int n_blocks, block_size, n_visible; /* keys before n_visible only */
    int next;                            /* block */
    int at;                              /* position: keys before it were visited */
};

/* Keys of one page that lie together; n 0: there are no more. */
struct segment {
    int first, n;
};

static struct segment next_segment(struct walk *w)
{
    while (w->next < w->n_blocks && w->at >= (w->blocks[w->next] + 1) * w->block_size)
        w->next++;
    if (w->next == w->n_blocks)
        return (struct segment){0};
    int start = w->blocks[w->next] * w->block_size;
    int first = w->at > start ? w->at : start;
    int page_end = (first / ATTEND_BLOCK + 1) * ATTEND_BLOCK;
    int end = start + w->block_size;
    while (end < page_end && w->next + 1 < w->n_blocks &&
           w->blocks[w->next + 1] * w->block_size == end) {
        w->next++;
        end += w->block_size;
    }
    end = min_int(min_int(end, page_end), w->n_visible);
    if (end <= first)
        return (struct segment){0};
    w->at = end;
    return (struct segment){first, end - first};
}

static struct walk walk_begin(const struct attention *a, int row, int kv_head)
{
    const struct row_group *g = &a->plan->groups[a->plan->row_group[row]];
    return (struct walk){.blocks = msa_blocks(&a->msa, row, kv_head),
                         .n_blocks = a->sparse.top_k,
                         .block_size = a->sparse.block_size,
                         .n_visible = min_int(row_position(a, row) + 1, g->n_here)};
}

/* What a row sees of the chunk of `s`, its first segment there; returns the first segment of
 * the next chunk. */
static struct segment fold_seen(struct attention *a, struct walk *w, struct segment s, int row,
                                int kv_head, size_t first_partial)
{
    const struct row_group *g = &a->plan->groups[a->plan->row_group[row]];
    size_t query = query_index(a, kv_head, row);
    struct attend_block b =
        attention_begin_chunk(a, query, (size_t)a->group_heads, first_partial + query);
    int chunk = s.first / ATTENTION_CHUNK;
    for (; s.n > 0 && s.first / ATTENTION_CHUNK == chunk; s = next_segment(w)) {
        kv_block(a->kv, g->seq, a->layer, s.first / ATTEND_BLOCK, kv_head, &b);
        kv_skip_keys(a->kv, &b, s.first % ATTEND_BLOCK);
        b.n_keys = s.n;
        a->compute.kernels->attend[a->kv_format](&b);
    }
    return s;
}

/* Of the chunks that a row walks through: a part's rows bring what they were before, and may go on. */
static struct place walk_place(const struct row_group *g, bool is_first, bool is_last)
{
    return (struct place){is_first && !g->is_part, is_last && (!g->is_part || g->ends)};
}

/* Task = (KV head, group): its rows one after another, chunks merged on the way. */
static void choosing_whole_task(void *ctx, int task)
{
    struct attention *a = ctx;
    const struct group_list *l = a->list;
    const struct row_group *g = &a->plan->groups[l->groups[l->n - 1 - task % l->n]];
    int kv_head = task / l->n;
    for (int row = g->first_row; row < g->first_row + g->n_rows; row++) {
        struct walk w = walk_begin(a, row, kv_head);
        struct segment s = next_segment(&w);
        for (bool is_first = true; s.n > 0; is_first = false) {
            s = fold_seen(a, &w, s, row, kv_head, 0);
            attention_merge_row(a, row, kv_head, walk_place(g, is_first, s.n == 0), 0);
        }
    }
}

/* The first segment of the slot-th chunk that the walk comes through. */
static struct segment find_slot(struct walk *w, int slot)
{
    struct segment s = next_segment(w);
    for (int chunk = s.first / ATTENTION_CHUNK; slot > 0 && s.n > 0; s = next_segment(w)) {
        if (s.first / ATTENTION_CHUNK == chunk)
            continue;
        chunk = s.first / ATTENTION_CHUNK;
        if (--slot == 0)
            break;
    }
    return s;
}

/* Task = (slot, KV head, row), rows fastest: one chunk that a row sees something of. */
static void choosing_slot_task(void *ctx, int task)
{
    struct attention *a = ctx;
    int row = task % a->plan->n_rows, kv_head = task / a->plan->n_rows % a->n_kv_heads;
    int slot = task / a->plan->n_rows / a->n_kv_heads;
    if (!row_chooses(a, row))
        return;
    struct walk w = walk_begin(a, row, kv_head);
    struct segment s = find_slot(&w, slot);
    if (s.n > 0)
        (void)fold_seen(a, &w, s, row, kv_head, (size_t)slot * chunk_partials(a));
}

/* Task = (KV head, row). */
static void choosing_merge_task(void *ctx, int task)
{
    struct attention *a = ctx;
    int row = task % a->plan->n_rows, kv_head = task / a->plan->n_rows;
    const struct row_group *g = &a->plan->groups[a->plan->row_group[row]];
    if (!g->chooses)
        return;
    struct walk w = walk_begin(a, row, kv_head);
    struct segment s = next_segment(&w);
    for (int slot = 0; s.n > 0; slot++) {
        int chunk = s.first / ATTENTION_CHUNK;
        while (s.n > 0 && s.first / ATTENTION_CHUNK == chunk)
            s = next_segment(&w);
        attention_merge_row(a, row, kv_head, walk_place(g, slot == 0, s.n == 0),
                            (size_t)slot * chunk_partials(a));
    }
}

void attention_choose(struct attention *a)
{
    const struct group_list *l = &a->plan->lists[LIST_HERE];
    if (l->n > 0)
        msa_choose(&a->msa, &a->compute, a->kv, a->layer, a->plan->groups, l->groups, l->n);
}

static void rank_list(struct attention *a, int list)
{
    const struct group_list *l = &a->plan->lists[list];
    if (l->n > 0)
        msa_rank(&a->msa, &a->compute, a->kv, a->layer, a->plan->groups, l->groups, l->n);
}

void attention_rank(struct attention *a)
{
    rank_list(a, LIST_LONG);
    rank_list(a, LIST_SHORT);
}

void attention_attend_chosen(struct attention *a)
{
    const struct group_list *l = a->list = &a->plan->lists[LIST_CHOOSING];
    if (l->n == 0)
        return;
    if (l->is_whole) {
        attention_run(a, choosing_whole_task, a->n_kv_heads * l->n);
        return;
    }
    attention_run(a, choosing_slot_task, a->max_slots * a->n_kv_heads * a->plan->n_rows);
    attention_run(a, choosing_merge_task, a->n_kv_heads * a->plan->n_rows);
}
