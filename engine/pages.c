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

struct page_place {
    int32_t first, end;     /* its pages */
    int32_t *unused;        /* [end - first]: a stack */
    int n_unused, n_idle;   /* idle: only the index has them */
    int32_t oldest, newest; /* of the idle */
};

struct pages {
    struct page *pages; /* [n_pages] */
    int32_t *tokens;    /* [n_pages, page_tokens]: of those in the index */
    int32_t *buckets;   /* [n_buckets]: the first page of each, or NO_PAGE */
    uint64_t n_buckets; /* a power of two */
    struct page_place places[PAGES_MAX_PLACES];
    int n_places, n_pages, page_tokens, n_indexed;
    uint64_t last_serial;
};

static int32_t *bucket_of(const struct pages *p, uint64_t hash)
{
    return &p->buckets[hash & (p->n_buckets - 1)];
}

static void put_in_bucket(struct pages *p, int32_t page)
{
    struct page *g = &p->pages[page];
    int32_t *bucket = bucket_of(p, g->hash);
    g->next_in_bucket = *bucket;
    *bucket = page;
}

/* Buckets for as many pages as there are now. */
static void make_buckets(struct pages *p)
{
    p->n_buckets = 16;
    while (p->n_buckets < (uint64_t)p->n_pages)
        p->n_buckets *= 2;
    mem_free(p->buckets);
    p->buckets = mem_array(p->n_buckets, sizeof(*p->buckets));
    for (uint64_t i = 0; i < p->n_buckets; i++)
        p->buckets[i] = NO_PAGE;
    for (int32_t page = 0; page < p->n_pages; page++)
        if (p->pages[page].serial != 0)
            put_in_bucket(p, page);
}

struct pages *pages_new(int n_pages, int page_tokens)
{
    must(page_tokens > 0);
    struct pages *p = mem_alloc(sizeof(*p));
    p->page_tokens = page_tokens;
    pages_add_place(p, n_pages);
    return p;
}

void pages_free(struct pages **pages)
{
    struct pages *p = *pages;
    if (!p)
        return;
    *pages = NULL;
    for (int i = 0; i < p->n_places; i++)
        mem_free(p->places[i].unused);
    mem_free(p->pages);
    mem_free(p->tokens);
    mem_free(p->buckets);
    mem_free(p);
}

void pages_add_place(struct pages *p, int n_pages)
{
    must(n_pages > 0 && n_pages <= INT32_MAX - p->n_pages && p->n_places < PAGES_MAX_PLACES);
    int32_t first = p->n_pages;
    struct page_place *at = &p->places[p->n_places++];
    p->n_pages += n_pages;
    p->pages = mem_resize(p->pages, (size_t)p->n_pages * sizeof(*p->pages));
    memset(p->pages + first, 0, (size_t)n_pages * sizeof(*p->pages));
    p->tokens =
        mem_resize(p->tokens, (size_t)p->n_pages * (size_t)p->page_tokens * sizeof(*p->tokens));
    *at = (struct page_place){.first = first,
                              .end = p->n_pages,
                              .unused = mem_array((size_t)n_pages, sizeof(*at->unused)),
                              .n_unused = n_pages,
                              .oldest = NO_PAGE,
                              .newest = NO_PAGE};
    /* The lowest page lies on top: a lightly used cache touches little memory. */
    for (int i = 0; i < n_pages; i++)
        at->unused[i] = at->end - 1 - i;
    make_buckets(p);
}

void pages_drop_places(struct pages *p)
{
    must(p->n_indexed == 0);
    while (p->n_places > 1) {
        struct page_place *last = &p->places[--p->n_places];
        must(last->n_unused == last->end - last->first);
        p->n_pages = last->first;
        mem_free(last->unused);
    }
}

int pages_places(const struct pages *p)
{
    return p->n_places;
}

int pages_place(const struct pages *p, int32_t page)
{
    must(page >= 0 && page < p->n_pages);
    int place = 0;
    while (page >= p->places[place].end)
        place++;
    return place;
}

int32_t pages_first(const struct pages *p, int place)
{
    must(place >= 0 && place < p->n_places);
    return p->places[place].first;
}

int pages_count(const struct pages *p)
{
    return p->n_pages;
}

int pages_unheld(const struct pages *p, int place)
{
    must(place >= 0 && place < p->n_places);
    return p->places[place].n_unused + p->places[place].n_idle;
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

static struct page_place *place_of(struct pages *p, int32_t page)
{
    return &p->places[pages_place(p, page)];
}

static void add_unused(struct pages *p, int32_t page)
{
    struct page_place *at = place_of(p, page);
    must(at->n_unused < at->end - at->first);
    at->unused[at->n_unused++] = page;
}

static int32_t *tokens_of(const struct pages *p, int32_t page)
{
    return p->tokens + (size_t)page * (size_t)p->page_tokens;
}

/* ---- those that only the index has, by age -------------------------------------------- */

static void add_newest(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    struct page_place *at = place_of(p, page);
    g->newer = NO_PAGE;
    g->older = at->newest;
    if (at->newest != NO_PAGE)
        p->pages[at->newest].newer = page;
    else
        at->oldest = page;
    at->newest = page;
    at->n_idle++;
}

static void remove_idle(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    struct page_place *at = place_of(p, page);
    if (g->older != NO_PAGE)
        p->pages[g->older].newer = g->newer;
    else
        at->oldest = g->newer;
    if (g->newer != NO_PAGE)
        p->pages[g->newer].older = g->older;
    else
        at->newest = g->older;
    at->n_idle--;
}

/* ---- the index -------------------------------------------------------------------------- */

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
    int32_t same = look_up(p, hash, before, tokens);
    if (same != NO_PAGE && place_of(p, same) != place_of(p, page))
        return NO_PAGE;
    if (same != NO_PAGE) {
        hold(p, same);
        pages_give_back(p, page);
        return same;
    }
    g->hash = hash;
    g->before = serial_of(p, before);
    g->serial = ++p->last_serial;
    memcpy(tokens_of(p, page), tokens, (size_t)p->page_tokens * sizeof(*tokens));
    put_in_bucket(p, page);
    p->n_indexed++;
    return page;
}

/* ---- holders ------------------------------------------------------------------------------ */

int32_t pages_take(struct pages *p, int place)
{
    must(place >= 0 && place < p->n_places);
    struct page_place *at = &p->places[place];
    int32_t page = at->oldest;
    if (at->n_unused > 0) {
        page = at->unused[--at->n_unused];
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
    for (int i = 0; i < p->n_places; i++)
        while (p->places[i].newest != NO_PAGE) {
            int32_t page = p->places[i].newest;
            remove_idle(p, page);
            remove_indexed(p, page);
            add_unused(p, page);
        }
    must(p->n_indexed == 0);
}
