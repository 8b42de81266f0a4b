/* tools/bench_fill.c - see bench_fill.h. */
#include "tools/bench_fill.h"

#include "base/mem.h"
#include "base/must.h"
#include "tools/bench_random.h"

/* Keys and values of one position are a window into one table of random numbers: drawing
 * each anew would take longer than writing them. */
enum { TABLE_FLOATS = 1 << 16 };

struct fill {
    const struct model_config *config;
    struct kv *kv;
    const struct kv_seq *seq;
    int n_positions;
    const float *table; /* [TABLE_FLOATS + width] */
};

/* Task = (layer, page): pages are written by one thread each. */
static void fill_task(void *ctx, int task)
{
    const struct fill *f = ctx;
    int pages = (f->n_positions + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    int layer = task / pages, first = task % pages * KV_PAGE_TOKENS;
    for (int at = first; at < first + KV_PAGE_TOKENS && at < f->n_positions; at++) {
        size_t key = ((size_t)at * 7919 + (size_t)layer * 104729) % TABLE_FLOATS;
        size_t value = (key + TABLE_FLOATS / 2) % TABLE_FLOATS;
        kv_write(f->kv, f->seq, layer, at, f->table + key, f->table + value);
        if (config_is_sparse(f->config, layer))
            kv_index_write(f->kv, f->seq, layer, at, f->table + (key + 31) % TABLE_FLOATS);
    }
}

void bench_fill_cache(const struct model_config *config, struct kv *kv, struct kv_seq *seq,
                      int n_positions, struct pool *pool)
{
    size_t width = (size_t)config->n_kv_heads * (size_t)config->head_dim;
    if (width < (size_t)config->sparse.head_dim)
        width = (size_t)config->sparse.head_dim;
    size_t floats = TABLE_FLOATS + width;
    float *table = mem_array(floats, sizeof(*table));
    struct fill f = {
        .config = config, .kv = kv, .seq = seq, .n_positions = n_positions, .table = table};
    int pages = (n_positions + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    must(pages <= seq->n_pages);
    bench_random_floats(table, floats, 11);
    pool_run(pool, fill_task, &f, pages * config->n_layers);
    seq->length = n_positions;
    mem_free(table);
}
