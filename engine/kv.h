/* engine/kv.h - the paged KV cache, in f32, bf16 (round-to-nearest-even) or int8 with a scale
 * per key.
 *
 * A page holds KV_PAGE_TOKENS consecutive positions of one sequence for every layer.  In a
 * page, per layer and KV head, K and V (and their scales) lie as kernels.h lays out a block.
 * A page is exactly one attention block, so the fold order depends on positions only.  To it
 * belong, per sparse layer, the index keys of the same positions (engine/msa.h), in f32 beside
 * f32 and in bf16 beside the others, laid out as K is, and their sketches
 * (engine/index_sketch.h), as kernels.h lays out a sketch_block: these two lie apart, one layer's
 * of all pages in a run each.
 *
 * What a page holds is a function of the tokens up to its end, so sequences that begin alike can
 * share pages that are full, and such pages are worth keeping after their sequence (pages.h).
 *
 * Places (kv_places.c): where the memory of other hosts has been added, the pages there are numbered behind
 * the ones here, and only the books of them are kept here; engine/context.h has their contents.  A
 * sequence goes from place to place in ascending order, and changes at a multiple of KV_SPAN_PAGES, so
 * that a chunk of attention lies in one place.
 *
 * Owner: engine thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/kernels.h"
#include "model/config.h"

/* A span is ATTENTION_CHUNK positions. */
enum { KV_PAGE_TOKENS = ATTEND_BLOCK, KV_SPAN_PAGES = 8, KV_MAX_PLACES = 16 };

struct kv;
/* A sequence's timeline.  All-zero is empty. */
struct kv_seq {
    int32_t *pages;
    int n_pages, pages_size;
    int length;     /* committed positions */
    int n_indexed;  /* pages, from the first, that are in the index: never written again */
    uint64_t chain; /* prefix_extend() of their tokens */
    /* With places. */
    bool is_unkept; /* what follows n_indexed is there already, in another place */
    int n_promised; /* pages of its last span that are kept free for it */
    int n_told;     /* pages, from the first, whose numbers the places know */
};

/* As many pages as `bytes` holds, at least one (E_NOMEM, E_INVALID otherwise).  Memory is
 * reserved at once and touched page by page. */
int kv_open(const struct model_config *config, enum kv_format format, size_t bytes, struct kv **out,
            struct err *e);
void kv_close(struct kv **kv);
/* Those of all places; with several, whole spans alone. */
int kv_pages_total(const struct kv *kv);
/* Pages that no sequence has; some may be kept for sequences to come, until they are needed. */
int kv_pages_free(const struct kv *kv);
int kv_pages_kept(const struct kv *kv); /* in the index */
/* SIZE_MAX if the exact number does not fit. */
size_t kv_page_bytes(const struct model_config *config, enum kv_format format);
enum kv_format kv_format_of(const struct kv *kv);
/* Room for positions below n_tokens: takes pages as needed.  Errors take none: E_BUSY, there are not enough;
 * E_PRECONDITION, they lie in places that the sequence has passed already. */
int kv_reserve(struct kv *kv, struct kv_seq *s, int n_tokens);
/* Forgets positions from n_tokens on and gives their pages back; 0 releases everything. */
void kv_truncate(struct kv *kv, struct kv_seq *s, int n_tokens);
/* Gives an empty sequence the pages that are kept of these tokens: full ones from the first on,
 * below n_tokens.  Its length in the end.  `seed`: prefix_seed(), always the same for one cache. */
int kv_adopt(struct kv *kv, struct kv_seq *s, uint64_t seed, const int32_t *tokens, int n_tokens);
/* Keeps the pages that the sequence has filled since; tokens [s->length]. */
void kv_keep(struct kv *kv, struct kv_seq *s, uint64_t seed, const int32_t *tokens);
/* Nothing that was kept can be found any more; no sequence may have any of it. */
void kv_forget(struct kv *kv);

/* One more place with so many pages; they are numbered from 0 on there.  Places: 0 is here. */
void kv_add_place(struct kv *kv, int n_pages);
/* All places but this one are gone.  No sequence has a page, and nothing is kept. */
void kv_drop_places(struct kv *kv);
int kv_places(const struct kv *kv);
/* Which pages of a sequence lie in a place: first .. end-1 of its list, end == first if none. */
struct kv_part {
    int first, end;
};
struct kv_part kv_part(const struct kv *kv, const struct kv_seq *s, int place);
/* The number that a page of a sequence has in its place. */
int32_t kv_page_there(const struct kv *kv, const struct kv_seq *s, int page_index);

/* Writes k, v [n_kv_heads, head_dim] of one position. */
void kv_write(struct kv *kv, const struct kv_seq *s, int layer, int position, const float *k,
              const float *v);
/* Points k, v and (int8) their scales of `b` to one page of a sequence. */
void kv_block(const struct kv *kv, const struct kv_seq *s, int layer, int page_index, int kv_head,
              struct attend_block *b);
/* Moves a block on by `keys`, a multiple of 16: it then begins with that key of the page. */
void kv_skip_keys(const struct kv *kv, struct attend_block *b, int keys);
/* Index keys of a sparse layer: writes one [index dim] and its sketch; KV_PAGE_TOKENS of them as
 * kernels.h's index_block reads them, in kv_index_format(); their sketches. */
void kv_index_write(struct kv *kv, const struct kv_seq *s, int layer, int position,
                    const float *key);
const void *kv_index_page(const struct kv *kv, const struct kv_seq *s, int layer, int page_index);
const void *kv_index_sketch(const struct kv *kv, const struct kv_seq *s, int layer, int page_index);
enum kv_format kv_index_format(enum kv_format of_cache);
/* Of SKETCH_UNIT index keys, which lie in a run. */
size_t kv_index_unit_bytes(const struct kv *kv);
/* Bytes that lie in a run from a block's keys on. */
size_t kv_block_bytes(const struct kv *kv);
/* What kv_write() does to a head in int8, for queries too: scale = absmax * (1/127), q = round-
 * to-nearest-even(x * (127 / absmax)); below 2^-100 scale 0 and zeros; a NaN or an infinity
 * gives scale NaN and zeros. */
float kv_quantise(const float *x, int n, int8_t *q);
int kv_value_stride(const struct kv *kv);
