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

/* What a key has of a direction common to all, of its topic - that of a run of 300 tokens, one of
 * 256 -, of its word - one of 4,096, the n-th in proportion to 1/n - and of its own, as shares of
 * its squared length; the first four are sinks, nearly all common.  All but the last lies in the
 * dimensions that do not turn with the position, where trained models keep it.  Then a key is made
 * as long as a norm makes it, and turned. */
enum { N_TOPICS = 256, N_WORDS = 4096, RUN = 300, N_SINKS = 4, MAX_INDEX_DIM = 1024 };
enum direction { COMMON, TOPIC, WORD, OWN };
static const float key_shares[] = {[COMMON] = 0.15f, [TOPIC] = 0.25f, [WORD] = 0.3f, [OWN] = 0.3f};
/* A query looks for a topic and a word that is not among the most frequent. */
static const float query_shares[] = {[TOPIC] = 0.5f, [WORD] = 0.3f, [OWN] = 0.2f};
enum { FIRST_RARE_WORD = 256, SINK_SHARE = 8 };
#define OWN_OF_ALIKE 0x1p-12f

/* The `which`-th direction of a kind, added. */
static void add_direction(const struct fill *f, enum direction kind, uint64_t which, float share,
                          float *x)
{
    struct rng r = rng_seed(which * 8 + (uint64_t)kind);
    const float *from = f->table + rng_below(&r, TABLE_FLOATS);
    int dim = f->config->sparse.head_dim, turning = f->config->rotary_dim;
    int first = kind != OWN && turning < dim ? turning : 0;
    float by = sqrtf(share * (float)dim / (float)(dim - first));
    for (int d = first; d < dim; d++)
        x[d] += by * from[d];
}

static void make_index_key(const struct fill *f, int layer, int at, float *key)
{
    int dim = f->config->sparse.head_dim;
    uint64_t base = (uint64_t)layer << 32;
    struct rng here = rng_seed(base + (uint64_t)at);
    struct rng run = rng_seed((base + (uint64_t)at / RUN) ^ 0x70707);
    uint64_t word = (uint64_t)exp(rng_unit(&here) * log(N_WORDS));
    memset(key, 0, (size_t)dim * sizeof(*key));
    add_direction(f, COMMON, base, at < N_SINKS ? SINK_SHARE : key_shares[COMMON], key);
    add_direction(f, TOPIC, base + rng_below(&run, N_TOPICS), key_shares[TOPIC], key);
    add_direction(f, WORD, base + word, key_shares[WORD], key);
    add_direction(f, OWN, base + (uint64_t)at, key_shares[OWN], key);
    double squares = 0;
    for (int d = 0; d < dim; d++)
        squares += (double)key[d] * (double)key[d];
    float scale = (float)sqrt(dim / squares);
    for (int d = 0; d < dim; d++)
        key[d] *= scale;
    float sine[MAX_INDEX_DIM], cosine[MAX_INDEX_DIM];
    must(dim <= MAX_INDEX_DIM && f->rope->half <= MAX_INDEX_DIM);
    rope_angles(f->rope, at, sine, cosine);
    rope_turn(f->rope, sine, cosine, key);
}

static void make_alike_key(const struct fill *f, int layer, int at, float *key)
{
    const float *common = f->table + layer % TABLE_FLOATS;
    const float *own = f->table + ((size_t)at * 7919 + (size_t)layer) % TABLE_FLOATS;
    for (int d = 0; d < f->config->sparse.head_dim; d++)
        key[d] = common[d] + OWN_OF_ALIKE * own[d];
}

/* Task = (layer, page). */
static void alike_task(void *ctx, int task)
{
    const struct fill *f = ctx;
    int pages = (f->n_positions + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    int layer = task / pages, first = task % pages * KV_PAGE_TOKENS;
    float key[MAX_INDEX_DIM];
    if (!config_is_sparse(f->config, layer))
        return;
    for (int at = first; at < first + KV_PAGE_TOKENS && at < f->n_positions; at++) {
        make_alike_key(f, layer, at, key);
        kv_index_write(f->kv, f->seq, layer, at, key);
    }
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

static float *make_table(const struct model_config *config)
{
    size_t width = (size_t)config->n_kv_heads * (size_t)config->head_dim;
    if (width < (size_t)config->sparse.head_dim)
        width = (size_t)config->sparse.head_dim;
    size_t floats = TABLE_FLOATS + width;
    float *table = mem_array(floats, sizeof(*table));
    bench_random_floats(table, floats, 11);
    return table;
}

void bench_fill_index_queries(const struct model_config *config, int layer, int n, float *queries)
{
    struct fill f = {.config = config, .table = make_table(config)};
    uint64_t base = (uint64_t)layer << 32;
    struct rng r = rng_seed(base + 77);
    size_t dim = (size_t)config->sparse.head_dim;
    memset(queries, 0, (size_t)n * dim * sizeof(*queries));
    for (int i = 0; i < n; i++, queries += dim) {
        uint64_t word = FIRST_RARE_WORD + rng_below(&r, N_WORDS - FIRST_RARE_WORD);
        add_direction(&f, TOPIC, base + rng_below(&r, N_TOPICS), query_shares[TOPIC], queries);
        add_direction(&f, WORD, base + word, query_shares[WORD], queries);
        add_direction(&f, OWN, base + rng_next(&r) % (1ULL << 31), query_shares[OWN], queries);
    }
    mem_free((void *)(uintptr_t)f.table);
}

void bench_fill_alike(const struct model_config *config, struct kv *kv, const struct kv_seq *seq,
                      int n_positions, struct pool *pool)
{
    float *table = make_table(config);
    struct fill f = {
        .config = config, .kv = kv, .seq = seq, .n_positions = n_positions, .table = table};
    int pages = (n_positions + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    pool_run(pool, alike_task, &f, pages * config->n_layers);
    mem_free(table);
}

void bench_fill_cache(const struct model_config *config, struct kv *kv, struct kv_seq *seq,
                      int n_positions, struct pool *pool)
{
    float *table = make_table(config);
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
    pool_run(pool, fill_task, &f, pages * config->n_layers);
    seq->length = n_positions;
    rope_fini(&rope);
    mem_free(table);
}
