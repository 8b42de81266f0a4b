/* engine/kv_parts.h - what the files of kv.h share, and nobody else: kv.c has the memory of this host and
 * what lies in it, kv_books.c who has which page, here and elsewhere. */
#pragma once

#include "engine/kv.h"
#include "engine/pages.h"

/* Bytes of K and of V in a block, and of all of it. */
struct block_bytes {
    size_t k, v, block;
};

struct kv {
    int n_layers, n_kv_heads, head_dim, value_stride;
    enum kv_format format;
    struct block_bytes bytes;     /* of one layer and head in a page */
    int index_dim, n_plain;       /* of index keys; layers before the first sparse one */
    size_t index_key_bytes;       /* of one sparse layer in a page */
    size_t sketch_bytes;          /* likewise */
    size_t blocks_bytes;          /* of a page, without what the sparse layers have besides */
    char *memory;                 /* [n_pages, blocks_bytes], then what the next two point to */
    char *index_keys;             /* [sparse layers, n_pages, index_key_bytes] */
    char *sketches;               /* [sparse layers, n_pages, sketch_bytes] */
    size_t n_pages, memory_bytes; /* here */
    struct pages *pages;
    int promised[KV_MAX_PLACES]; /* sum of the sequences' n_promised */
};
