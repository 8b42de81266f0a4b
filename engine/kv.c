/* engine/kv.c - pages of keys and values (step 6).
 *
 * One anonymous mapping holds all pages: it is promised at the start and becomes real page
 * by page, zeroed by the system, so V's padding is zero without being written. */
#include "engine/kv.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "base/must.h"

enum { LANES = 16 };

struct kv {
    int n_layers, n_kv_heads, head_dim, value_stride;
    size_t head_floats; /* K and V of one layer and head in a page */
    size_t page_floats;
    float *memory; /* [n_pages, page_floats] */
    size_t memory_bytes;
    int32_t *free_pages; /* a stack */
    int n_pages, n_free;
};

static int value_stride_of(const struct model_config *config)
{
    return (int)mem_round_up((size_t)config->head_dim, LANES);
}

size_t kv_page_bytes(const struct model_config *config)
{
    size_t width = (size_t)config->head_dim + (size_t)value_stride_of(config);
    size_t bytes;
    if (!mem_mul(width, KV_PAGE_TOKENS * sizeof(float), &bytes) ||
        !mem_mul(bytes, (size_t)config->n_kv_heads, &bytes) ||
        !mem_mul(bytes, (size_t)config->n_layers, &bytes))
        return SIZE_MAX;
    return bytes;
}

/* Reserves the mapping for as many pages as `bytes` holds. */
static int map_pages(struct kv *kv, size_t page_bytes, size_t bytes, struct err *e)
{
    size_t n_pages = bytes / page_bytes;
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
    kv->n_pages = kv->n_free = (int)n_pages;
    kv->free_pages = mem_array(n_pages, sizeof(*kv->free_pages));
    /* The lowest page lies on top: a lightly used cache touches little memory. */
    for (int i = 0; i < kv->n_pages; i++)
        kv->free_pages[i] = kv->n_pages - 1 - i;
    return 0;
}

int kv_open(const struct model_config *config, size_t bytes, struct kv **out, struct err *e)
{
    *out = NULL;
    size_t page_bytes = kv_page_bytes(config);
    if (bytes < page_bytes)
        return err_set(e, E_INVALID, "kv cache: %zu bytes hold no page, one takes %zu", bytes,
                       page_bytes);
    struct kv *kv = mem_alloc(sizeof(*kv));
    kv->n_layers = config->n_layers;
    kv->n_kv_heads = config->n_kv_heads;
    kv->head_dim = config->head_dim;
    kv->value_stride = value_stride_of(config);
    kv->head_floats = KV_PAGE_TOKENS * ((size_t)kv->head_dim + (size_t)kv->value_stride);
    kv->page_floats = page_bytes / sizeof(float);
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
    mem_free((*kv)->free_pages);
    mem_free(*kv);
    *kv = NULL;
}

int kv_pages_total(const struct kv *kv)
{
    return kv->n_pages;
}

int kv_pages_free(const struct kv *kv)
{
    return kv->n_free;
}

static int pages_for(int n_tokens)
{
    return n_tokens / KV_PAGE_TOKENS + (n_tokens % KV_PAGE_TOKENS != 0);
}

int kv_reserve(struct kv *kv, struct kv_seq *s, int n_tokens)
{
    int wanted = pages_for(n_tokens);
    if (wanted <= s->n_pages)
        return 0;
    if (wanted - s->n_pages > kv->n_free)
        return E_BUSY;
    if (wanted > s->pages_size) {
        /* Never more than the cache has: n_tokens came from a request, the bound did not. */
        int size = wanted > kv->n_pages / 2 ? kv->n_pages : 2 * wanted;
        s->pages = mem_resize(s->pages, (size_t)size * sizeof(*s->pages));
        s->pages_size = size;
    }
    while (s->n_pages < wanted)
        s->pages[s->n_pages++] = kv->free_pages[--kv->n_free];
    return 0;
}

void kv_truncate(struct kv *kv, struct kv_seq *s, int n_tokens)
{
    must(n_tokens >= 0);
    int keep = pages_for(n_tokens);
    while (s->n_pages > keep) {
        must(kv->n_free < kv->n_pages);
        kv->free_pages[kv->n_free++] = s->pages[--s->n_pages];
    }
    if (s->length > n_tokens)
        s->length = n_tokens;
    if (n_tokens == 0) {
        mem_free(s->pages);
        *s = (struct kv_seq){0};
    }
}

static float *keys_at(const struct kv *kv, const struct kv_seq *s, int layer, int page_index,
                      int kv_head)
{
    must(page_index >= 0 && page_index < s->n_pages);
    must(layer >= 0 && layer < kv->n_layers && kv_head >= 0 && kv_head < kv->n_kv_heads);
    size_t head = (size_t)layer * (size_t)kv->n_kv_heads + (size_t)kv_head;
    return kv->memory + (size_t)s->pages[page_index] * kv->page_floats + head * kv->head_floats;
}

static size_t key_floats(const struct kv *kv)
{
    return (size_t)KV_PAGE_TOKENS * (size_t)kv->head_dim;
}

void kv_write(struct kv *kv, const struct kv_seq *s, int layer, int position, const float *k,
              const float *v)
{
    int slot = position % KV_PAGE_TOKENS;
    size_t dim = (size_t)kv->head_dim;
    for (int head = 0; head < kv->n_kv_heads; head++, k += dim, v += dim) {
        float *base = keys_at(kv, s, layer, position / KV_PAGE_TOKENS, head);
        float *keys = base + (size_t)(slot / LANES) * dim * LANES + slot % LANES;
        for (size_t d = 0; d < dim; d++)
            keys[d * LANES] = k[d];
        memcpy(base + key_floats(kv) + (size_t)slot * (size_t)kv->value_stride, v,
               dim * sizeof(*v));
    }
}

const float *kv_keys(const struct kv *kv, const struct kv_seq *s, int layer, int page_index,
                     int kv_head)
{
    return keys_at(kv, s, layer, page_index, kv_head);
}

const float *kv_values(const struct kv *kv, const struct kv_seq *s, int layer, int page_index,
                       int kv_head)
{
    return keys_at(kv, s, layer, page_index, kv_head) + key_floats(kv);
}

int kv_value_stride(const struct kv *kv)
{
    return kv->value_stride;
}
