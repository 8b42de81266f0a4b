/* tools/bench_fill.c - see bench_fill.h. */
#include "tools/bench_fill.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "engine/rope.h"
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
    const struct rope *rope;
};

/* ---- index keys ---- */

/* What a key has of a direction common to all, of its topic - that of a run of about 300 tokens,
 * one of 256 -, of its word - one of 4,096, the n-th in proportion to 1/n - and of its own, as
 * shares of its squared length; the first four are sinks, nearly all common.  Then it is made as
 * long as a norm makes it, and turned for its position.  Queries look for nothing in particular:
 * a trained index's scores stand out more, and its bounds leave fewer blocks. */
enum { N_TOPICS = 256, N_WORDS = 4096, RUN = 300, N_SINKS = 4, MAX_INDEX_DIM = 1024 };
static const float common_share = 0.15f, topic_share = 0.25f, word_share = 0.3f, own_share = 0.3f;

static void add_part(const float *from, float share, int dim, float *key)
{
    float by = sqrtf(share);
    for (int d = 0; d < dim; d++)
        key[d] += by * from[d];
}

/* The `which`-th direction of a kind. */
static const float *direction(const struct fill *f, int kind, uint64_t which)
{
    struct rng r = rng_seed(which * 8 + (uint64_t)kind);
    return f->table + rng_below(&r, TABLE_FLOATS);
}

static void make_index_key(const struct fill *f, int layer, int at, float *key)
{
    enum { COMMON, TOPIC, WORD, OWN };
    int dim = f->config->sparse.head_dim, half = f->rope->half;
    uint64_t base = (uint64_t)layer << 32;
    struct rng here = rng_seed(base + (uint64_t)at);
    struct rng run = rng_seed((base + (uint64_t)at / RUN) ^ 0x70707);
    uint64_t word = (uint64_t)exp(rng_unit(&here) * log(N_WORDS));
    memset(key, 0, (size_t)dim * sizeof(*key));
    add_part(direction(f, COMMON, base), at < N_SINKS ? 8.0f : common_share, dim, key);
    add_part(direction(f, TOPIC, base + rng_below(&run, N_TOPICS)), topic_share, dim, key);
    add_part(direction(f, WORD, base + word), word_share, dim, key);
    add_part(direction(f, OWN, base + (uint64_t)at), own_share, dim, key);
    double squares = 0;
    for (int d = 0; d < dim; d++)
        squares += (double)key[d] * (double)key[d];
    for (int d = 0; d < dim; d++)
        key[d] *= (float)sqrt(dim / squares);
    float sine[MAX_INDEX_DIM], cosine[MAX_INDEX_DIM];
    must(dim <= MAX_INDEX_DIM && half <= MAX_INDEX_DIM);
    rope_angles(f->rope, at, sine, cosine);
    rope_turn(f->rope, sine, cosine, key);
}

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
        if (config_is_sparse(f->config, layer)) {
            float index_key[MAX_INDEX_DIM];
            make_index_key(f, layer, at, index_key);
            kv_index_write(f->kv, f->seq, layer, at, index_key);
        }
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
    struct rope rope;
    rope_init(&rope, config->rope_theta, config->rotary_dim);
    struct fill f = {.config = config,
                     .kv = kv,
                     .seq = seq,
                     .n_positions = n_positions,
                     .table = table,
                     .rope = &rope};
    int pages = (n_positions + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    must(pages <= seq->n_pages);
    bench_random_floats(table, floats, 11);
    pool_run(pool, fill_task, &f, pages * config->n_layers);
    seq->length = n_positions;
    rope_fini(&rope);
    mem_free(table);
}
