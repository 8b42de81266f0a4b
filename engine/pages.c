/* engine/pages.c - see pages.h. */
#include "engine/pages.h"

#include <string.h>

#include "base/mem.h"
#include "base/must.h"

struct page {
    uint32_t holders;
    int32_t next_in_bucket;
    int32_t older, newer; /* among those that only the index has */
    uint64_t serial;      /* 0: not in the index */
    uint64_t hash, before;
};

struct pages {
    struct page *pages; /* [n_pages] */
    int32_t *tokens;    /* [n_pages, page_tokens]: of those in the index */
    int32_t *buckets;   /* [n_buckets]: the first page of each, or NO_PAGE */
    uint64_t n_buckets; /* a power of two */
    int32_t *unused;    /* a stack */
    int n_pages, page_tokens, n_unused, n_idle, n_indexed;
    int32_t oldest, newest; /* of those that only the index has */
    uint64_t last_serial;
};

struct pages *pages_new(int n_pages, int page_tokens)
{
    must(n_pages > 0 && page_tokens > 0);
    struct pages *p = mem_alloc(sizeof(*p));
    p->n_pages = n_pages;
    p->page_tokens = page_tokens;
    p->pages = mem_array((size_t)n_pages, sizeof(*p->pages));
    p->tokens = mem_array((size_t)n_pages * (size_t)page_tokens, sizeof(*p->tokens));
    p->n_buckets = 16;
    while (p->n_buckets < (uint64_t)n_pages)
        p->n_buckets *= 2;
    p->buckets = mem_array(p->n_buckets, sizeof(*p->buckets));
    for (uint64_t i = 0; i < p->n_buckets; i++)
        p->buckets[i] = NO_PAGE;
    p->unused = mem_array((size_t)n_pages, sizeof(*p->unused));
    /* The lowest page lies on top: a lightly used cache touches little memory. */
    for (int i = 0; i < n_pages; i++)
        p->unused[i] = n_pages - 1 - i;
    p->n_unused = n_pages;
    p->oldest = p->newest = NO_PAGE;
    return p;
}

void pages_free(struct pages **pages)
{
    struct pages *p = *pages;
    if (!p)
        return;
    *pages = NULL;
    mem_free(p->pages);
    mem_free(p->tokens);
    mem_free(p->buckets);
    mem_free(p->unused);
    mem_free(p);
}

int pages_count(const struct pages *p)
{
    return p->n_pages;
}

int pages_unheld(const struct pages *p)
{
    return p->n_unused + p->n_idle;
}

int pages_indexed(const struct pages *p)
{
    return p->n_indexed;
}

static struct page *page_at(const struct pages *p, int32_t page)
{
    must(page >= 0 && page < p->n_pages);
    return &p->pages[page];
}

static void add_unused(struct pages *p, int32_t page)
{
    must(p->n_unused < p->n_pages);
    p->unused[p->n_unused++] = page;
}

static int32_t *tokens_of(const struct pages *p, int32_t page)
{
    return p->tokens + (size_t)page * (size_t)p->page_tokens;
}

/* ---- those that only the index has, by age -------------------------------------------- */

static void add_newest(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    g->newer = NO_PAGE;
    g->older = p->newest;
    if (p->newest != NO_PAGE)
        p->pages[p->newest].newer = page;
    else
        p->oldest = page;
    p->newest = page;
    p->n_idle++;
}

static void remove_idle(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    if (g->older != NO_PAGE)
        p->pages[g->older].newer = g->newer;
    else
        p->oldest = g->newer;
    if (g->newer != NO_PAGE)
        p->pages[g->newer].older = g->older;
    else
        p->newest = g->older;
    p->n_idle--;
}

/* ---- the index -------------------------------------------------------------------------- */

static int32_t *bucket_of(const struct pages *p, uint64_t hash)
{
    return &p->buckets[hash & (p->n_buckets - 1)];
}

static void remove_indexed(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    int32_t *at = bucket_of(p, g->hash);
    while (*at != page)
        at = &p->pages[*at].next_in_bucket;
    *at = g->next_in_bucket;
    g->serial = 0;
    p->n_indexed--;
}

static uint64_t serial_of(const struct pages *p, int32_t page)
{
    if (page == NO_PAGE)
        return 0;
    uint64_t serial = page_at(p, page)->serial;
    must(serial != 0);
    return serial;
}

static int32_t look_up(const struct pages *p, uint64_t hash, int32_t before, const int32_t *tokens)
{
    uint64_t serial = serial_of(p, before);
    size_t bytes = (size_t)p->page_tokens * sizeof(*tokens);
    int32_t page = *bucket_of(p, hash);
    while (page != NO_PAGE) {
        const struct page *g = page_at(p, page);
        if (g->hash == hash && g->before == serial &&
            memcmp(tokens_of(p, page), tokens, bytes) == 0)
            return page;
        page = g->next_in_bucket;
    }
    return NO_PAGE;
}

static int32_t hold(struct pages *p, int32_t page)
{
    if (page == NO_PAGE)
        return page;
    if (page_at(p, page)->holders++ == 0)
        remove_idle(p, page);
    return page;
}

int32_t pages_find(struct pages *p, uint64_t hash, int32_t before, const int32_t *tokens)
{
    return hold(p, look_up(p, hash, before, tokens));
}

int32_t pages_index(struct pages *p, int32_t page, uint64_t hash, int32_t before,
                    const int32_t *tokens)
{
    struct page *g = page_at(p, page);
    must(g->holders == 1 && g->serial == 0);
    int32_t same = pages_find(p, hash, before, tokens);
    if (same != NO_PAGE) {
        pages_give_back(p, page);
        return same;
    }
    g->hash = hash;
    g->before = serial_of(p, before);
    g->serial = ++p->last_serial;
    memcpy(tokens_of(p, page), tokens, (size_t)p->page_tokens * sizeof(*tokens));
    int32_t *bucket = bucket_of(p, hash);
    g->next_in_bucket = *bucket;
    *bucket = page;
    p->n_indexed++;
    return page;
}

/* ---- holders ------------------------------------------------------------------------------ */

int32_t pages_take(struct pages *p)
{
    int32_t page = p->oldest;
    if (p->n_unused > 0) {
        page = p->unused[--p->n_unused];
    } else if (page != NO_PAGE) {
        remove_idle(p, page);
        remove_indexed(p, page);
    } else {
        return NO_PAGE;
    }
    struct page *g = page_at(p, page);
    must(g->holders == 0 && g->serial == 0);
    g->holders = 1;
    return page;
}

void pages_give_back(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    must(g->holders > 0);
    if (--g->holders > 0)
        return;
    if (g->serial != 0)
        add_newest(p, page);
    else
        add_unused(p, page);
}

void pages_forget(struct pages *p)
{
    must(p->n_indexed == p->n_idle);
    while (p->newest != NO_PAGE) {
        int32_t page = p->newest;
        remove_idle(p, page);
        remove_indexed(p, page);
        add_unused(p, page);
    }
}
