/* engine/kv_books.c - which sequence has which pages of the cache, here and in other places; see kv.h. */
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/kv_parts.h"
#include "model/prefix.h"

_Static_assert((int)KV_MAX_PLACES == (int)PAGES_MAX_PLACES, "one bound of places");

/* ---- places ------------------------------------------------------------------------------- */

int kv_places(const struct kv *kv)
{
    return pages_places(kv->pages);
}

void kv_add_place(struct kv *kv, int n_pages)
{
    pages_add_place(kv->pages, n_pages);
}

void kv_drop_places(struct kv *kv)
{
    pages_drop_places(kv->pages);
    memset(kv->promised, 0, sizeof(kv->promised));
}

struct kv_part kv_part(const struct kv *kv, const struct kv_seq *s, int place)
{
    int32_t first = pages_first(kv->pages, place);
    bool is_last = place + 1 == kv_places(kv);
    int32_t end = is_last ? pages_count(kv->pages) : pages_first(kv->pages, place + 1);
    struct kv_part p = {0};
    /* Pages lie in ascending order of places: both ends by halving. */
    for (int step = s->n_pages; step > 0; step /= 2)
        while (p.first + step <= s->n_pages && s->pages[p.first + step - 1] < first)
            p.first += step;
    p.end = p.first;
    for (int step = s->n_pages; step > 0; step /= 2)
        while (p.end + step <= s->n_pages && s->pages[p.end + step - 1] < end)
            p.end += step;
    return p;
}

int32_t kv_page_there(const struct kv *kv, const struct kv_seq *s, int page_index)
{
    must(page_index >= 0 && page_index < s->n_pages);
    int32_t page = s->pages[page_index];
    return page - pages_first(kv->pages, pages_place(kv->pages, page));
}

/* Pages that neither a sequence nor a promise has. */
static int free_in(const struct kv *kv, int place)
{
    return pages_unheld(kv->pages, place) - kv->promised[place];
}

static int last_place(const struct kv *kv, const struct kv_seq *s)
{
    return s->n_pages > 0 ? pages_place(kv->pages, s->pages[s->n_pages - 1]) : 0;
}

static int whole_spans(int pages)
{
    return pages > 0 ? pages / KV_SPAN_PAGES * KV_SPAN_PAGES : 0;
}

int kv_pages_total(const struct kv *kv)
{
    int n_places = kv_places(kv), total = 0;
    if (n_places == 1)
        return pages_count(kv->pages);
    for (int i = 0; i < n_places; i++) {
        int end = i + 1 < n_places ? pages_first(kv->pages, i + 1) : pages_count(kv->pages);
        total += whole_spans(end - pages_first(kv->pages, i));
    }
    return total;
}

int kv_pages_free(const struct kv *kv)
{
    int n_places = kv_places(kv), n_free = 0;
    if (n_places == 1)
        return pages_unheld(kv->pages, 0);
    for (int i = 0; i < n_places; i++)
        n_free += whole_spans(free_in(kv, i));
    return n_free;
}

int kv_pages_kept(const struct kv *kv)
{
    return pages_indexed(kv->pages);
}

static int pages_for(int n_tokens)
{
    return n_tokens / KV_PAGE_TOKENS + (n_tokens % KV_PAGE_TOKENS != 0);
}

/* Room for the numbers of so many pages. */
static void make_list(const struct kv *kv, struct kv_seq *s, int wanted)
{
    if (wanted <= s->pages_size)
        return;
    /* Never more than the cache has: what is wanted came from a request, the bound did not. */
    int n_pages = pages_count(kv->pages), size = wanted > n_pages / 2 ? n_pages : 2 * wanted;
    s->pages = mem_resize(s->pages, (size_t)size * sizeof(*s->pages));
    s->pages_size = size;
}

/* A sequence's next pages, as they are given. */
struct giving {
    int place, promised;
    int n_free[KV_MAX_PLACES];
};

static struct giving begin_giving(const struct kv *kv, const struct kv_seq *s)
{
    struct giving g = {.place = last_place(kv, s), .promised = s->n_promised};
    for (int i = 0; i < kv_places(kv); i++)
        g.n_free[i] = free_in(kv, i);
    return g;
}

/* Finds the place of one more page.  A span is promised whole when it begins. */
static bool give_page(const struct kv *kv, struct giving *g, int page_index)
{
    if (page_index % KV_SPAN_PAGES == 0) {
        while (g->n_free[g->place] < KV_SPAN_PAGES)
            if (++g->place == kv_places(kv))
                return false;
        g->n_free[g->place] -= KV_SPAN_PAGES;
        g->promised = KV_SPAN_PAGES;
    }
    if (g->promised > 0)
        g->promised--;
    else if (--g->n_free[g->place] < 0)
        return false;
    return true;
}

static void promise(struct kv *kv, struct kv_seq *s, int n)
{
    s->n_promised = n;
    kv->promised[last_place(kv, s)] += n;
}

static void unpromise(struct kv *kv, struct kv_seq *s)
{
    kv->promised[last_place(kv, s)] -= s->n_promised;
    s->n_promised = 0;
}

static int reserve_in_places(struct kv *kv, struct kv_seq *s, int wanted)
{
    struct giving g = begin_giving(kv, s);
    for (int i = s->n_pages; i < wanted; i++)
        if (!give_page(kv, &g, i))
            return wanted - s->n_pages > kv_pages_free(kv) + s->n_promised ? E_BUSY
                                                                           : E_PRECONDITION;
    make_list(kv, s, wanted);
    g = begin_giving(kv, s);
    unpromise(kv, s);
    while (s->n_pages < wanted) {
        must(give_page(kv, &g, s->n_pages));
        s->pages[s->n_pages++] = pages_take(kv->pages, g.place);
    }
    promise(kv, s, g.promised);
    return 0;
}

int kv_reserve(struct kv *kv, struct kv_seq *s, int n_tokens)
{
    int wanted = pages_for(n_tokens);
    if (wanted <= s->n_pages)
        return 0;
    if (kv_places(kv) > 1)
        return reserve_in_places(kv, s, wanted);
    if (wanted - s->n_pages > pages_unheld(kv->pages, 0))
        return E_BUSY;
    make_list(kv, s, wanted);
    while (s->n_pages < wanted)
        s->pages[s->n_pages++] = pages_take(kv->pages, 0);
    return 0;
}

/* Gives the pages from `keep` on back.  What was promised of a span stays so, and what it had of it
 * is promised again. */
static void give_back(struct kv *kv, struct kv_seq *s, int keep)
{
    int span_end = (keep + KV_SPAN_PAGES - 1) / KV_SPAN_PAGES * KV_SPAN_PAGES, promised = 0;
    if (kv_places(kv) > 1 && s->n_pages > keep) {
        bool is_same_span = s->n_pages <= span_end;
        promised = is_same_span ? s->n_promised + s->n_pages - keep : span_end - keep;
        unpromise(kv, s);
    }
    /* From the end: pages.h. */
    bool any = s->n_pages > keep;
    while (s->n_pages > keep)
        pages_give_back(kv->pages, s->pages[--s->n_pages]);
    if (any)
        promise(kv, s, keep % KV_SPAN_PAGES != 0 ? promised : 0);
}

void kv_truncate(struct kv *kv, struct kv_seq *s, int n_tokens)
{
    must(n_tokens >= 0);
    int keep = pages_for(n_tokens);
    must(n_tokens == 0 || keep >= s->n_indexed);
    give_back(kv, s, keep);
    if (s->n_told > keep)
        s->n_told = keep;
    if (s->length > n_tokens)
        s->length = n_tokens;
    if (n_tokens == 0) {
        mem_free(s->pages);
        *s = (struct kv_seq){0};
    }
}

/* The rest of a span must find room where the span is. */
static bool has_room_for_span(const struct kv *kv, const struct kv_seq *s)
{
    return kv_places(kv) == 1 || s->n_pages % KV_SPAN_PAGES == 0 ||
           free_in(kv, last_place(kv, s)) >= KV_SPAN_PAGES - s->n_pages % KV_SPAN_PAGES;
}

int kv_adopt(struct kv *kv, struct kv_seq *s, uint64_t seed, const int32_t *tokens, int n_tokens)
{
    must(s->n_pages == 0 && s->length == 0 && s->n_indexed == 0);
    uint64_t span_chain = s->chain = seed;
    int32_t before = NO_PAGE;
    while (n_tokens - s->length >= KV_PAGE_TOKENS && s->n_pages < pages_count(kv->pages)) {
        const int32_t *block = tokens + s->length;
        uint64_t chain = prefix_extend(s->chain, block, KV_PAGE_TOKENS);
        int32_t page = pages_find(kv->pages, chain, before, block);
        if (page == NO_PAGE)
            break;
        make_list(kv, s, s->n_pages + 1);
        s->pages[s->n_pages++] = before = page;
        s->length += KV_PAGE_TOKENS;
        s->n_indexed++;
        s->chain = chain;
        span_chain = s->n_pages % KV_SPAN_PAGES == 0 ? chain : span_chain;
    }
    if (!has_room_for_span(kv, s)) {
        s->chain = span_chain;
        while (s->n_pages % KV_SPAN_PAGES != 0)
            pages_give_back(kv->pages, s->pages[--s->n_pages]);
        s->n_indexed = s->n_pages;
        s->length = s->n_pages * KV_PAGE_TOKENS;
    } else if (kv_places(kv) > 1 && s->n_pages % KV_SPAN_PAGES != 0) {
        promise(kv, s, KV_SPAN_PAGES - s->n_pages % KV_SPAN_PAGES);
    }
    return s->length;
}

void kv_forget(struct kv *kv)
{
    pages_forget(kv->pages);
}

void kv_keep(struct kv *kv, struct kv_seq *s, uint64_t seed, const int32_t *tokens)
{
    if (s->n_indexed == 0)
        s->chain = seed;
    while (!s->is_unkept && s->length / KV_PAGE_TOKENS > s->n_indexed) {
        int i = s->n_indexed;
        const int32_t *block = tokens + (size_t)i * KV_PAGE_TOKENS;
        uint64_t chain = prefix_extend(s->chain, block, KV_PAGE_TOKENS);
        int32_t page =
            pages_index(kv->pages, s->pages[i], chain, i > 0 ? s->pages[i - 1] : NO_PAGE, block);
        s->is_unkept = page == NO_PAGE;
        if (s->is_unkept)
            return;
        if (page != s->pages[i] && s->n_told > i)
            s->n_told = i;
        s->pages[i] = page;
        s->chain = chain;
        s->n_indexed++;
    }
}
