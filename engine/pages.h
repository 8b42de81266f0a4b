/* engine/pages.h - who holds which page of the KV cache, and which full pages can be found by
 * their tokens.
 *
 * A page has any number of holders.  A full one can be put into the index: there it stays when
 * its last holder goes, and is found again by the tokens that it and the pages before it hold,
 * until its memory is needed.  Those that were used longest ago go first, and of one sequence the
 * last pages before the first: a sequence gives its pages back from its end, so a page never
 * outlives the ones before it.
 *
 * A hash only says where to look.  What counts is that the tokens are equal and that the page before
 * is the very one that stood before when the page was put in: each gets a serial number that is
 * never used again.
 *
 * Pages lie in places: 0, and others that may be added, which have the numbers behind.  A sequence
 * says in which it wants the next one.
 *
 * Pure.  Owner: engine thread. */
#pragma once

#include <stdint.h>

enum { NO_PAGE = -1, PAGES_MAX_PLACES = 16 };

struct pages;
struct pages *pages_new(int n_pages, int page_tokens);
void pages_free(struct pages **p);
int pages_count(const struct pages *p);
/* Of a place: pages without a holder: never used, given back, or only in the index. */
int pages_unheld(const struct pages *p, int place);
/* Pages that are in the index. */
int pages_indexed(const struct pages *p);

/* Empties the index, of whose pages nobody may hold one. */
void pages_forget(struct pages *p);

/* One more place with so many pages; there are fewer than PAGES_MAX_PLACES. */
void pages_add_place(struct pages *p, int n_pages);
/* All places but 0 are gone; nobody holds a page, and none is in the index. */
void pages_drop_places(struct pages *p);
int pages_places(const struct pages *p);
int pages_place(const struct pages *p, int32_t page);
/* Of the place's first page. */
int32_t pages_first(const struct pages *p, int place);

/* A page of a place for one holder, out of the index if no other is left; NO_PAGE: all are held. */
int32_t pages_take(struct pages *p, int place);
/* One holder less. */
void pages_give_back(struct pages *p, int32_t page);

/* The page with these tokens [page_tokens] after page `before` (NO_PAGE: the first one), held once
 * more; NO_PAGE: there is none.  `hash` is a function of all tokens up to its end. */
int32_t pages_find(struct pages *p, uint64_t hash, int32_t before, const int32_t *tokens);
/* Puts a full page of one holder into the index and returns it; or gives it back and returns
 * the one of its place that is there already with the same tokens, held once more.  `before` is in the
 * index.  NO_PAGE: one of another place is there, and nothing has changed. */
int32_t pages_index(struct pages *p, int32_t page, uint64_t hash, int32_t before,
                    const int32_t *tokens);
