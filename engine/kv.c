/* engine/kv.c - pages of keys and values (step 6).
 *
 * One anonymous mapping holds all pages: it is promised at the start and becomes real page
 * by page, zeroed by the system, so V's padding is zero without being written. */
#include "engine/kv.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/index_sketch.h"
#include "engine/kv_parts.h"
#include "engine/mathf.h"
#include "model/halves.h"

enum { LANES = 16, PIECE = 64 };
/* 65,536 products of two int8 do not overflow an int32. */
enum { INT8_MAX_DIM = 65536 };
#define INT8_LARGEST 127.0f
#define SMALLEST_SCALED 0x1p-100f
#define ROUNDER 0x1.8p+23f /* adding it rounds to an integer, which is then in the low bits */

static int value_stride_of(const struct model_config *config)
{
    return (int)mem_round_up((size_t)config->head_dim, LANES);
}

/* false if a size does not fit. */
static bool size_block(const struct model_config *config, enum kv_format format,
                       struct block_bytes *out)
{
    static const size_t element[] = {[KV_F32] = 4, [KV_BF16] = 2, [KV_INT8] = 1};
    /* A 32-bit lane holds as many dims of a key. */
    size_t dims = mem_round_up((size_t)config->head_dim, sizeof(float) / element[format]);
    size_t unit = KV_PAGE_TOKENS * element[format];
    size_t scales = format == KV_INT8 ? 2 * KV_PAGE_TOKENS * sizeof(float) : 0;
    return mem_mul(dims, unit, &out->k) &&
           mem_mul((size_t)value_stride_of(config), unit, &out->v) &&
           mem_add(out->k, out->v, &out->block) && mem_add(out->block, scales, &out->block);
}

enum kv_format kv_index_format(enum kv_format of_cache)
{
    return of_cache == KV_F32 ? KV_F32 : KV_BF16;
}

/* Of one sparse layer in a page. */
static size_t index_key_bytes(const struct model_config *config, enum kv_format format)
{
    size_t lane_dims = kv_index_format(format) == KV_F32 ? 1 : 2;
    size_t lanes = ((size_t)config->sparse.head_dim + lane_dims - 1) / lane_dims;
    return lanes * sizeof(float) * KV_PAGE_TOKENS;
}

static size_t sketch_page_bytes(const struct model_config *config)
{
    int dim = config->sparse.head_dim;
    return dim > SKETCH_MAX_DIM ? 0 : KV_PAGE_TOKENS / SKETCH_UNIT * sketch_unit_bytes(dim);
}

static size_t sparse_layers(const struct model_config *config)
{
    bool has_sparse = config->sparse.block_size > 0;
    return has_sparse ? (size_t)(config->n_layers - config->sparse.n_full_layers) : 0;
}

size_t kv_page_bytes(const struct model_config *config, enum kv_format format)
{
    struct block_bytes sizes;
    size_t bytes, index;
    if (!size_block(config, format, &sizes) ||
        !mem_mul(sizes.block, (size_t)config->n_kv_heads, &bytes) ||
        !mem_mul(bytes, (size_t)config->n_layers, &bytes) ||
        !mem_mul(index_key_bytes(config, format) + sketch_page_bytes(config), sparse_layers(config),
                 &index) ||
        !mem_add(bytes, index, &bytes))
        return SIZE_MAX;
    return bytes;
}

/* Reserves the mapping for as many pages as `bytes` holds.  Index keys and sketches are read from
 * one end of a context to the other, one layer's at a time: they lie in the order in which they
 * are read, or every page would cost the processor a look into another corner of its memory. */
static int map_pages(struct kv *kv, size_t page_bytes, size_t bytes, struct err *e)
{
    size_t n_pages = bytes / page_bytes, n_sparse = (size_t)(kv->n_layers - kv->n_plain);
    if (n_pages > INT32_MAX)
        n_pages = INT32_MAX;
    kv->memory_bytes = n_pages * page_bytes;
    size_t available = mem_available_bytes();
    if (kv->memory_bytes > available)
        return err_set(e, E_NOMEM, "kv cache: %zu MiB asked for, %zu MiB available",
                       kv->memory_bytes >> 20, available >> 20);
    void *p =
        mmap(NULL, kv->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return err_set_errno(e, errno, "kv cache: map %zu MiB", kv->memory_bytes >> 20);
    /* Advice only: without huge pages it is slower, not wrong. */
    (void)madvise(p, kv->memory_bytes, MADV_HUGEPAGE);
    kv->memory = p;
    kv->n_pages = n_pages;
    kv->index_keys = kv->memory + n_pages * kv->blocks_bytes;
    kv->sketches = kv->index_keys + n_sparse * n_pages * kv->index_key_bytes;
    kv->pages = pages_new((int)n_pages, KV_PAGE_TOKENS);
    return 0;
}

int kv_open(const struct model_config *config, enum kv_format format, size_t bytes, struct kv **out,
            struct err *e)
{
    *out = NULL;
    if (format == KV_INT8 && config->head_dim > INT8_MAX_DIM)
        return err_set(e, E_INVALID, "kv cache: int8 takes head_dim up to %d, not %d", INT8_MAX_DIM,
                       config->head_dim);
    size_t page_bytes = kv_page_bytes(config, format);
    if (bytes < page_bytes)
        return err_set(e, E_INVALID, "kv cache: %zu bytes hold no page, one takes %zu", bytes,
                       page_bytes);
    struct kv *kv = mem_alloc(sizeof(*kv));
    kv->n_layers = config->n_layers;
    kv->n_kv_heads = config->n_kv_heads;
    kv->head_dim = config->head_dim;
    kv->value_stride = value_stride_of(config);
    kv->format = format;
    must(size_block(config, format, &kv->bytes));
    kv->index_dim = config->sparse.head_dim;
    kv->index_key_bytes = index_key_bytes(config, format);
    kv->sketch_bytes = sketch_page_bytes(config);
    kv->n_plain = config->n_layers - (int)sparse_layers(config);
    kv->blocks_bytes = (size_t)kv->n_layers * (size_t)kv->n_kv_heads * kv->bytes.block;
    int rc = map_pages(kv, page_bytes, bytes, e);
    if (rc < 0)
        kv_close(&kv);
    *out = kv;
    return rc;
}

void kv_close(struct kv **kv)
{
    if (!*kv)
        return;
    if ((*kv)->memory)
        must_zero(munmap((*kv)->memory, (*kv)->memory_bytes));
    pages_free(&(*kv)->pages);
    mem_free(*kv);
    *kv = NULL;
}

static char *block_at(const struct kv *kv, const struct kv_seq *s, int layer, int page_index,
                      int kv_head)
{
    must(page_index >= 0 && page_index < s->n_pages);
    must(layer >= 0 && layer < kv->n_layers && kv_head >= 0 && kv_head < kv->n_kv_heads);
    size_t head = (size_t)layer * (size_t)kv->n_kv_heads + (size_t)kv_head;
    size_t page = (size_t)s->pages[page_index];
    must(page < kv->n_pages);
    return kv->memory + page * kv->blocks_bytes + head * kv->bytes.block;
}

/* A key's first lane, of `lane_dims` dimensions each; the next ones follow LANES apart. */
static uint32_t *key_lanes_of(char *block, int slot, size_t dim, size_t lane_dims)
{
    size_t n_lanes = (dim + lane_dims - 1) / lane_dims;
    return (uint32_t *)(void *)block + (size_t)(slot / LANES) * n_lanes * LANES +
           (size_t)(slot % LANES);
}

static uint32_t *key_lanes(const struct kv *kv, char *block, int slot, size_t lane_dims)
{
    return key_lanes_of(block, slot, (size_t)kv->head_dim, lane_dims);
}

static void write_key_f32(uint32_t *lanes, size_t dim, const float *k)
{
    for (size_t d = 0; d < dim; d++)
        lanes[d * LANES] = f32_to_bits(k[d]);
}

static void write_key_bf16(uint32_t *lanes, size_t dim, const float *k)
{
    for (size_t d = 0; d < dim; d += 2) {
        uint32_t odd = d + 1 < dim ? f32_to_bf16(k[d + 1]) : 0;
        lanes[d / 2 * LANES] = odd << 16 | f32_to_bf16(k[d]);
    }
}

static void write_f32(const struct kv *kv, char *block, int slot, const float *k, const float *v)
{
    size_t dim = (size_t)kv->head_dim;
    write_key_f32(key_lanes(kv, block, slot, 1), dim, k);
    float *values = (float *)(void *)(block + kv->bytes.k);
    memcpy(values + (size_t)slot * (size_t)kv->value_stride, v, dim * sizeof(*v));
}

static void write_bf16(const struct kv *kv, char *block, int slot, const float *k, const float *v)
{
    size_t dim = (size_t)kv->head_dim;
    write_key_bf16(key_lanes(kv, block, slot, 2), dim, k);
    uint16_t *values = (uint16_t *)(void *)(block + kv->bytes.k) +
                       (size_t)(slot / 2) * (size_t)kv->value_stride * 2 + (size_t)(slot % 2);
    for (size_t d = 0; d < dim; d++)
        values[2 * d] = f32_to_bf16(v[d]);
}

/* What x is multiplied with to lie within INT8_LARGEST, and the scale that undoes it. */
struct int8_scale {
    float up, scale;
};

static struct int8_scale int8_scale_of(const float *x, int n)
{
    float size = math_magnitude(x, n);
    if (!(size <= FLT_MAX))
        return (struct int8_scale){0.0f, NAN};
    if (size < SMALLEST_SCALED)
        return (struct int8_scale){0.0f, 0.0f};
    return (struct int8_scale){INT8_LARGEST / size, size * (1.0f / INT8_LARGEST)};
}

static int8_t int8_of(float x, float up)
{
    float t = x * up + ROUNDER;
    return (int8_t)(f32_to_bits(t) - f32_to_bits(ROUNDER));
}

static void quantise(const float *x, int n, float up, int8_t *q)
{
    int i = 0;
    if (up == 0.0f) {
        memset(q, 0, (size_t)n);
        return;
    }
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            q[i + lane] = int8_of(x[i + lane], up);
    for (; i < n; i++)
        q[i] = int8_of(x[i], up);
}

float kv_quantise(const float *x, int n, int8_t *q)
{
    struct int8_scale s = int8_scale_of(x, n);
    quantise(x, n, s.up, q);
    return s.scale;
}

static void write_int8(const struct kv *kv, char *block, int slot, const float *k, const float *v)
{
    float *scales = (float *)(void *)(block + kv->bytes.k + kv->bytes.v);
    struct int8_scale key = int8_scale_of(k, kv->head_dim), value = int8_scale_of(v, kv->head_dim);
    scales[slot] = key.scale;
    scales[KV_PAGE_TOKENS + slot] = value.scale;
    uint32_t *keys = key_lanes(kv, block, slot, 4);
    char *values = block + kv->bytes.k + (size_t)(slot / 4) * (size_t)kv->value_stride * 4 +
                   (size_t)(slot % 4);
    for (int first = 0; first < kv->head_dim; first += PIECE) {
        int n = kv->head_dim - first < PIECE ? kv->head_dim - first : PIECE;
        int8_t q[PIECE] = {0};
        quantise(k + first, n, key.up, q);
        for (int d = 0; d < n; d += 4)
            memcpy(&keys[(first + d) / 4 * LANES], q + d, 4);
        quantise(v + first, n, value.up, q);
        for (int d = 0; d < n; d++)
            values[4 * (first + d)] = (char)q[d];
    }
}

void kv_write(struct kv *kv, const struct kv_seq *s, int layer, int position, const float *k,
              const float *v)
{
    int slot = position % KV_PAGE_TOKENS;
    size_t dim = (size_t)kv->head_dim;
    must(position / KV_PAGE_TOKENS >= s->n_indexed); /* others may read it */
    for (int head = 0; head < kv->n_kv_heads; head++, k += dim, v += dim) {
        char *block = block_at(kv, s, layer, position / KV_PAGE_TOKENS, head);
        switch (kv->format) {
        case KV_BF16:
            write_bf16(kv, block, slot, k, v);
            break;
        case KV_INT8:
            write_int8(kv, block, slot, k, v);
            break;
        default:
            write_f32(kv, block, slot, k, v);
        }
    }
}

void kv_block(const struct kv *kv, const struct kv_seq *s, int layer, int page_index, int kv_head,
              struct attend_block *b)
{
    const char *block = block_at(kv, s, layer, page_index, kv_head);
    b->k = block;
    b->v = block + kv->bytes.k;
    b->k_scales = b->v_scales = NULL;
    if (kv->format == KV_INT8) {
        b->k_scales = (const float *)(const void *)(block + kv->bytes.k + kv->bytes.v);
        b->v_scales = b->k_scales + KV_PAGE_TOKENS;
    }
}

void kv_skip_keys(const struct kv *kv, struct attend_block *b, int keys)
{
    must(keys >= 0 && keys < KV_PAGE_TOKENS && keys % LANES == 0);
    size_t skip = (size_t)keys;
    b->k = (const char *)b->k + kv->bytes.k / KV_PAGE_TOKENS * skip;
    b->v = (const char *)b->v + kv->bytes.v / KV_PAGE_TOKENS * skip;
    if (b->k_scales) {
        b->k_scales += skip;
        b->v_scales += skip;
    }
}

/* What a sparse layer has of a page in one of the two regions. */
static char *index_at(const struct kv *kv, const struct kv_seq *s, int layer, int page_index,
                      char *region, size_t bytes)
{
    must(page_index >= 0 && page_index < s->n_pages);
    must(layer >= kv->n_plain && layer < kv->n_layers);
    size_t page = (size_t)s->pages[page_index];
    must(page < kv->n_pages);
    return region + ((size_t)(layer - kv->n_plain) * kv->n_pages + page) * bytes;
}

/* To bf16 and back, in pieces that the compiler makes vectors of. */
static void round_key(const float *key, size_t dim, float *rounded)
{
    size_t d = 0;
    for (; d + LANES <= dim; d += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            rounded[d + lane] = bf16_to_f32(f32_to_bf16(key[d + lane]));
    for (; d < dim; d++)
        rounded[d] = bf16_to_f32(f32_to_bf16(key[d]));
}

static void write_rounded_key(uint32_t *lanes, size_t dim, const float *rounded)
{
    for (size_t d = 0; d < dim; d += 2) {
        uint32_t odd = d + 1 < dim ? f32_to_bits(rounded[d + 1]) : 0;
        lanes[d / 2 * LANES] = odd | f32_to_bits(rounded[d]) >> 16;
    }
}

/* Its sketch is of what the cache holds of it. */
static void write_sketch(struct kv *kv, const struct kv_seq *s, int layer, int position,
                         const float *stored)
{
    int slot = position % KV_PAGE_TOKENS, page_index = position / KV_PAGE_TOKENS;
    char *sketches = index_at(kv, s, layer, page_index, kv->sketches, kv->sketch_bytes);
    sketch_key(stored, kv->index_dim,
               sketches + (size_t)(slot / SKETCH_UNIT) * sketch_unit_bytes(kv->index_dim),
               slot % SKETCH_UNIT);
}

void kv_index_write(struct kv *kv, const struct kv_seq *s, int layer, int position,
                    const float *key)
{
    int slot = position % KV_PAGE_TOKENS, page_index = position / KV_PAGE_TOKENS;
    char *page = index_at(kv, s, layer, page_index, kv->index_keys, kv->index_key_bytes);
    size_t dim = (size_t)kv->index_dim;
    bool is_f32 = kv_index_format(kv->format) == KV_F32, has_sketch = dim <= SKETCH_MAX_DIM;
    float rounded[SKETCH_MAX_DIM];
    if (is_f32) {
        write_key_f32(key_lanes_of(page, slot, dim, 1), dim, key);
    } else if (has_sketch) {
        round_key(key, dim, rounded);
        write_rounded_key(key_lanes_of(page, slot, dim, 2), dim, rounded);
    } else {
        write_key_bf16(key_lanes_of(page, slot, dim, 2), dim, key);
    }
    if (has_sketch)
        write_sketch(kv, s, layer, position, is_f32 ? key : rounded);
}

const void *kv_index_page(const struct kv *kv, const struct kv_seq *s, int layer, int page_index)
{
    return index_at(kv, s, layer, page_index, kv->index_keys, kv->index_key_bytes);
}

const void *kv_index_sketch(const struct kv *kv, const struct kv_seq *s, int layer, int page_index)
{
    return index_at(kv, s, layer, page_index, kv->sketches, kv->sketch_bytes);
}

size_t kv_index_unit_bytes(const struct kv *kv)
{
    return kv->index_key_bytes / KV_PAGE_TOKENS * SKETCH_UNIT;
}

size_t kv_block_bytes(const struct kv *kv)
{
    return kv->bytes.block;
}

enum kv_format kv_format_of(const struct kv *kv)
{
    return kv->format;
}

int kv_value_stride(const struct kv *kv)
{
    return kv->value_stride;
}
