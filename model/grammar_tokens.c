/* model/grammar_tokens.c - see grammar_tokens.h. */
#include "model/grammar_tokens.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/mem.h"
#include "base/must.h"
#include "model/grammar_class.h"
#include "model/utf8.h"

enum { MAX_MASKS = 256, MASK_SLOTS = 1024 };

struct mask {
    uint32_t state; /* 0: free */
    uint64_t *bits;
    /* Of states whose stack was cut off: */
    uint32_t *leaves; /* nodes where a way returns into what was cut off */
    int n_leaves, leaves_room;
    int reach;
};

/* A grammar and what is known about it. */
struct held {
    struct held *newer, *older; /* by last use */
    char *text;
    size_t text_len;
    uint64_t hash;
    struct grammar *grammar;
    struct mask masks[MASK_SLOTS]; /* open addressing by state */
    int n_masks;
    struct constraint *users;
    size_t bytes; /* when it was last used */
};

struct grammar_cache {
    const struct token_list *list;
    struct token_classes *classes;
    size_t max_bytes;
    struct held *newest, *oldest;
    struct grammar_counts counts;
};

struct constraint {
    struct grammar_cache *cache;
    struct held *held;
    struct constraint *next, **at; /* among the grammar's users */
    int32_t *output;               /* as far as it was followed */
    uint32_t *states;              /* [n_output + 1]: before each token, and after the last */
    int n_output, room;
};

/* ---- the vocabulary ----------------------------------------------------------------------------- */

static struct str bytes_of(const struct token_list *l, int32_t id)
{
    return tokenizer_token_bytes(l->tokenizer, id);
}

static int compare_ids(const void *a, const void *b, void *list)
{
    struct str x = bytes_of(list, *(const int32_t *)a), y = bytes_of(list, *(const int32_t *)b);
    size_t n = x.len < y.len ? x.len : y.len;
    int order = n ? memcmp(x.ptr, y.ptr, n) : 0;
    return order ? order : (x.len > y.len) - (x.len < y.len);
}

static uint32_t add_node(struct token_list *l, unsigned char byte, size_t depth)
{
    if (l->n_nodes == l->nodes_room) {
        l->nodes_room = l->nodes_room ? 2 * l->nodes_room : 1024;
        l->nodes = mem_resize(l->nodes, l->nodes_room * sizeof *l->nodes);
    }
    l->nodes[l->n_nodes] = (struct trie_node){.id = -1, .depth = (uint16_t)depth, .byte = byte};
    return l->n_nodes++;
}

/* Tokens come sorted, so a token's way begins with a part of the last one's. */
static void build_trie(struct token_list *l, const int32_t *ids, int n)
{
    uint32_t way[MAX_TOKEN_BYTES + 1]; /* the nodes of the last token */
    size_t len = 0;
    for (int i = 0; i < n; i++) {
        struct str text = bytes_of(l, ids[i]);
        size_t same = 0;
        while (same < len && same < text.len &&
               l->nodes[way[same]].byte == (unsigned char)text.ptr[same])
            same++;
        while (len > same)
            l->nodes[way[--len]].end = l->n_nodes;
        for (; len < text.len; len++)
            way[len] = add_node(l, (unsigned char)text.ptr[len], len);
        l->nodes[way[len - 1]].id = ids[i];
    }
    while (len > 0)
        l->nodes[way[--len]].end = l->n_nodes;
}

/* How many plain characters are all of it?  0: it has others, or too many. */
static int plain_length(struct str text)
{
    int n = 0;
    int32_t code_point;
    for (size_t at = 0, len; at < text.len; at += len, n++) {
        len = utf8_decode(text, at, &code_point);
        if (len == 0 || n == MAX_PLAIN || !grammar_is_plain(code_point))
            return 0;
    }
    return n;
}

static void allow_all(const struct token_list *l, const uint64_t *from, uint64_t *bits)
{
    for (size_t i = 0; i < mask_words(l); i++)
        bits[i] |= from[i];
}

/* Those of either kind, of sorted ids; the plain ones by length, too. */
static void build_part(struct token_list *l, const int32_t *ids, int n, bool is_plain)
{
    int32_t *part = mem_array((size_t)n, sizeof *part);
    int n_part = 0;
    for (int i = 0; i < n; i++) {
        int length = plain_length(bytes_of(l, ids[i]));
        if ((length > 0) != is_plain)
            continue;
        part[n_part++] = ids[i];
        if (is_plain)
            mask_allow(l->plain[length], ids[i]);
    }
    build_trie(l, part, n_part);
    mem_free(part);
}

struct token_list *token_list_new(const struct tokenizer *t, int vocab_size)
{
    struct token_list *l = mem_alloc(sizeof *l);
    *l = (struct token_list){.tokenizer = t, .vocab_size = vocab_size};
    int32_t *ids = mem_array((size_t)vocab_size, sizeof *ids);
    int n = 0;
    l->markers = mem_array((size_t)vocab_size, sizeof *l->markers);
    for (int32_t id = 0; id < vocab_size; id++) {
        size_t len = bytes_of(l, id).len;
        if (tokenizer_is_added(t, id))
            l->markers[l->n_markers++] = id;
        else if (len > 0 && len <= MAX_TOKEN_BYTES)
            ids[n++] = id;
    }
    qsort_r(ids, (size_t)n, sizeof *ids, compare_ids, l);
    for (int k = 0; k <= MAX_PLAIN; k++)
        l->plain[k] = mem_array(mask_words(l), sizeof *l->plain[k]);
    build_part(l, ids, n, true);
    l->n_plain = l->n_nodes;
    build_part(l, ids, n, false);
    for (int k = 1; k <= MAX_PLAIN; k++)
        allow_all(l, l->plain[k - 1], l->plain[k]);
    mem_free(ids);
    return l;
}

void token_list_free(struct token_list **lp)
{
    struct token_list *l = *lp;
    *lp = NULL;
    if (!l)
        return;
    for (int k = 0; k <= MAX_PLAIN; k++)
        mem_free(l->plain[k]);
    mem_free(l->nodes);
    mem_free(l->markers);
    mem_free(l);
}

/* ---- masks -------------------------------------------------------------------------------------- */

static void add_leaf(struct mask *m, uint32_t node)
{
    if (m->n_leaves == m->leaves_room) {
        m->leaves_room = m->leaves_room ? 2 * m->leaves_room : 16;
        m->leaves = mem_resize(m->leaves, (size_t)m->leaves_room * sizeof *m->leaves);
    }
    m->leaves[m->n_leaves++] = node;
}

/* Allows every token among the nodes [from, to) that leads somewhere; path[d] is the state before a node of
 * depth d.  Where a way leaves what is known, the walk goes no further and the node is noted.  `skip`, a bit for each
 * node or NULL: what is decided already. */
static void walk(const struct token_list *l, struct grammar *g, uint32_t from, uint32_t to,
                 uint32_t *path, const uint64_t *skip, struct mask *m)
{
    for (uint32_t i = from; i < to;) {
        const struct trie_node *node = &l->nodes[i];
        if (skip && mask_has(skip, i)) {
            i = node->end;
            continue;
        }
        uint32_t next = grammar_byte(g, path[node->depth], node->byte);
        if (next == GRAMMAR_DEAD) {
            i = node->end;
            continue;
        }
        if (node->id >= 0)
            mask_allow(m->bits, node->id);
        int reach = grammar_reach(g, next);
        m->reach = reach > m->reach ? reach : m->reach;
        path[node->depth + 1] = next;
        if (grammar_leaves(g, next)) {
            add_leaf(m, i);
            i = node->end;
        } else {
            i++;
        }
    }
}

/* How many plain characters may come, whichever they are, at most MAX_PLAIN; -1: that depends. */
static int plain_room(struct grammar *g, uint32_t state, struct mask *m)
{
    int n = 0;
    while (n < MAX_PLAIN) {
        uint32_t next = grammar_plain(g, state);
        if (next == GRAMMAR_DEAD)
            break;
        if (next == GRAMMAR_DIFFERS || grammar_leaves(g, next))
            return -1;
        if (next == state)
            return MAX_PLAIN;
        int reach = grammar_reach(g, next);
        m->reach = reach > m->reach ? reach : m->reach;
        state = next;
        n++;
    }
    return n;
}

static void walk_all(struct grammar_cache *c, struct grammar *g, uint32_t state, struct mask *m)
{
    const struct token_list *l = c->list;
    const struct token_class *class = NULL;
    uint32_t path[MAX_TOKEN_BYTES + 1];
    int room = plain_room(g, state, m), class_room;
    path[0] = state;
    if (room <= 0)
        class = token_class_of(c->classes, g, state, &class_room, &m->reach);
    if (class) {
        allow_all(l, class->by_length[class_room], m->bits);
        walk(l, g, 0, l->n_nodes, path, class->skip, m);
        return;
    }
    if (room >= 0)
        allow_all(l, l->plain[room], m->bits);
    walk(l, g, room >= 0 ? l->n_plain : 0, l->n_nodes, path, NULL, m);
}

/* From every node where the mask of the state without its stack gave up. */
static void walk_on(const struct token_list *l, struct grammar *g, uint32_t state,
                    const struct mask *cut, struct mask *m)
{
    uint32_t path[MAX_TOKEN_BYTES + 1];
    path[0] = state;
    for (int i = 0; i < cut->n_leaves; i++) {
        const struct trie_node *leaf = &l->nodes[cut->leaves[i]];
        struct str text = {NULL, 0};
        for (uint32_t k = cut->leaves[i]; text.len == 0; k++)
            if (l->nodes[k].id >= 0)
                text = bytes_of(l, l->nodes[k].id);
        for (uint16_t d = 0; d <= leaf->depth; d++)
            path[d + 1] = grammar_byte(g, path[d], (unsigned char)text.ptr[d]);
        walk(l, g, cut->leaves[i] + 1, leaf->end, path, NULL, m);
    }
}

static void forget_masks(struct held *h)
{
    for (int i = 0; i < MASK_SLOTS; i++) {
        mem_free(h->masks[i].bits);
        mem_free(h->masks[i].leaves);
        h->masks[i] = (struct mask){0};
    }
    h->n_masks = 0;
}

static struct mask *slot_of(struct held *h, uint32_t state)
{
    size_t at = state * 2654435761u % MASK_SLOTS;
    while (h->masks[at].state && h->masks[at].state != state)
        at = (at + 1) % MASK_SLOTS;
    return &h->masks[at];
}

static struct mask *new_mask(struct grammar_cache *c, struct held *h, uint32_t state)
{
    struct mask *m = slot_of(h, state);
    m->state = state;
    m->bits = mem_array(mask_words(c->list), sizeof *m->bits);
    h->n_masks++;
    c->counts.masks_made++;
    return m;
}

/* Of a state as grammar_cut() leaves it: plain tokens only. */
static const struct mask *cut_mask(struct grammar_cache *c, struct held *h, uint32_t state)
{
    struct mask *m = slot_of(h, state);
    if (m->state)
        return m;
    m = new_mask(c, h, state);
    m->reach = grammar_reach(h->grammar, state);
    walk_all(c, h->grammar, state, m);
    return m;
}

static void allow_markers(const struct grammar_cache *c, struct grammar *g, uint32_t state,
                          uint64_t *bits)
{
    const struct token_list *l = c->list;
    int n;
    for (int i = 0; i < l->n_markers && grammar_has_markers(g, state); i++)
        if (grammar_marker(g, state, l->markers[i]) != GRAMMAR_DEAD)
            mask_allow(bits, l->markers[i]);
    const int32_t *stops = grammar_stops(g, &n);
    for (int i = 0; i < n && grammar_accepts(g, state); i++)
        if (stops[i] >= 0 && stops[i] < l->vocab_size)
            mask_allow(bits, stops[i]);
}

/* Does one character return into what was cut off?  Then nearly every token does, and would be walked on. */
static bool ends_with_a_character(struct grammar *g, uint32_t cut)
{
    uint32_t next = grammar_plain(g, cut);
    return next != GRAMMAR_DEAD && next != GRAMMAR_DIFFERS && grammar_leaves(g, next);
}

static const uint64_t *mask_of(struct grammar_cache *c, struct held *h, uint32_t state)
{
    c->counts.masks_asked++;
    struct mask *m = slot_of(h, state);
    if (m->state)
        return m->bits;
    if (h->n_masks + 2 > MAX_MASKS)
        forget_masks(h);
    int cut_depth;
    uint32_t cut = grammar_cut(h->grammar, state, &cut_depth);
    bool pays = cut != state && !ends_with_a_character(h->grammar, cut);
    const struct mask *known = pays ? cut_mask(c, h, cut) : NULL;
    if (known && cut_depth + known->reach > GRAMMAR_MAX_DEPTH)
        known = NULL; /* there it may go deeper than here */
    m = new_mask(c, h, state);
    if (known) {
        memcpy(m->bits, known->bits, mask_words(c->list) * sizeof *m->bits);
        walk_on(c->list, h->grammar, state, known, m);
    } else {
        walk_all(c, h->grammar, state, m);
    }
    allow_markers(c, h->grammar, state, m->bits);
    return m->bits;
}

/* ---- the cache ----------------------------------------------------------------------------------- */

struct grammar_cache *grammar_cache_new(const struct token_list *l, size_t max_bytes)
{
    struct grammar_cache *c = mem_alloc(sizeof *c);
    *c = (struct grammar_cache){.list = l, .classes = token_classes_new(l), .max_bytes = max_bytes};
    return c;
}

static void unlink_held(struct grammar_cache *c, struct held *h)
{
    *(h->newer ? &h->newer->older : &c->newest) = h->older;
    *(h->older ? &h->older->newer : &c->oldest) = h->newer;
    h->newer = h->older = NULL;
}

static void link_newest(struct grammar_cache *c, struct held *h)
{
    h->older = c->newest;
    *(c->newest ? &c->newest->newer : &c->oldest) = h;
    c->newest = h;
}

static void drop(struct grammar_cache *c, struct held *h)
{
    must(!h->users);
    unlink_held(c, h);
    c->counts.bytes -= h->bytes;
    c->counts.grammars--;
    forget_masks(h);
    grammar_free(&h->grammar);
    mem_free(h->text);
    mem_free(h);
}

void grammar_cache_free(struct grammar_cache **cp)
{
    struct grammar_cache *c = *cp;
    *cp = NULL;
    if (!c)
        return;
    while (c->newest)
        drop(c, c->newest);
    token_classes_free(&c->classes);
    mem_free(c);
}

struct grammar_counts grammar_cache_counts(const struct grammar_cache *c)
{
    return c->counts;
}

static void weigh(struct grammar_cache *c, struct held *h)
{
    size_t mask_bytes = mask_words(c->list) * sizeof(uint64_t);
    size_t bytes =
        sizeof *h + h->text_len + grammar_bytes_held(h->grammar) + (size_t)h->n_masks * mask_bytes;
    c->counts.bytes += bytes - h->bytes;
    h->bytes = bytes;
}

/* What was used longest ago goes first; what is in use stays. */
static void make_room(struct grammar_cache *c)
{
    for (struct held *h = c->oldest, *newer; h && c->counts.bytes > c->max_bytes; h = newer) {
        newer = h->newer;
        if (!h->users)
            drop(c, h);
    }
}

static struct held *find(struct grammar_cache *c, struct str text, uint64_t hash)
{
    for (struct held *h = c->newest; h; h = h->older)
        if (h->hash == hash && str_equal((struct str){h->text, h->text_len}, text))
            return h;
    return NULL;
}

static struct held *hold(struct grammar_cache *c, struct str text, uint64_t hash, struct err *e)
{
    struct grammar *g;
    if (grammar_compile(text, &g, e) < 0) {
        c->counts.refused++;
        return NULL;
    }
    struct held *h = mem_alloc(sizeof *h);
    *h = (struct held){.grammar = g, .hash = hash, .text_len = text.len};
    h->text = mem_alloc(text.len + 1);
    memcpy(h->text, text.ptr, text.len);
    c->counts.compiled++;
    c->counts.grammars++;
    link_newest(c, h);
    return h;
}

/* ---- sequences ----------------------------------------------------------------------------------- */

int constraint_new(struct grammar_cache *cache, struct str text, struct constraint **out,
                   struct err *e)
{
    uint64_t hash = XXH3_64bits(text.ptr, text.len);
    struct held *h = find(cache, text, hash);
    *out = NULL;
    if (h) {
        cache->counts.shared++;
        unlink_held(cache, h);
        link_newest(cache, h);
    } else if (!(h = hold(cache, text, hash, e))) {
        return E_INVALID;
    }
    struct constraint *c = mem_alloc(sizeof *c);
    *c = (struct constraint){.cache = cache, .held = h, .room = 64};
    c->output = mem_array((size_t)c->room, sizeof *c->output);
    c->states = mem_array((size_t)c->room + 1, sizeof *c->states);
    c->states[0] = grammar_start(h->grammar);
    c->next = h->users;
    c->at = &h->users;
    if (c->next)
        c->next->at = &c->next;
    h->users = c;
    weigh(cache, h);
    make_room(cache);
    *out = c;
    return 0;
}

void constraint_free(struct constraint **cp)
{
    struct constraint *c = *cp;
    *cp = NULL;
    if (!c)
        return;
    *c->at = c->next;
    if (c->next)
        c->next->at = c->at;
    weigh(c->cache, c->held);
    make_room(c->cache);
    mem_free(c->output);
    mem_free(c->states);
    mem_free(c);
}

static uint32_t after_token(struct constraint *c, uint32_t state, int32_t id)
{
    struct grammar *g = c->held->grammar;
    if (tokenizer_is_added(c->cache->list->tokenizer, id))
        return grammar_marker(g, state, id);
    struct str text = bytes_of(c->cache->list, id);
    for (size_t i = 0; i < text.len; i++)
        state = grammar_byte(g, state, (unsigned char)text.ptr[i]);
    return text.len > 0 ? state : GRAMMAR_DEAD;
}

/* Where each sequence is now stays known; of what it went through only that is still good. */
static void trim(struct held *h)
{
    int n = 0;
    for (struct constraint *c = h->users; c; c = c->next)
        n++;
    uint32_t *keep = mem_array((size_t)n, sizeof *keep);
    n = 0;
    for (struct constraint *c = h->users; c; c = c->next)
        keep[n++] = c->states[c->n_output];
    grammar_trim(h->grammar, keep, n);
    n = 0;
    for (struct constraint *c = h->users; c; c = c->next) {
        memset(c->states, 0, (size_t)c->n_output * sizeof *c->states);
        c->states[c->n_output] = keep[n++];
    }
    forget_masks(h);
    mem_free(keep);
}

static void push(struct constraint *c, int32_t id)
{
    if (c->n_output == c->room) {
        c->room *= 2;
        c->output = mem_resize(c->output, (size_t)c->room * sizeof *c->output);
        c->states = mem_resize(c->states, ((size_t)c->room + 1) * sizeof *c->states);
    }
    uint32_t next = after_token(c, c->states[c->n_output], id);
    c->output[c->n_output++] = id;
    c->states[c->n_output] = next;
}

/* Back to what both have in common, or to the beginning if the states there were forgotten. */
static void rewind_to(struct constraint *c, const int32_t *output, int n)
{
    int same = 0;
    while (same < n && same < c->n_output && output[same] == c->output[same])
        same++;
    if (same == c->n_output)
        return;
    c->n_output = same;
    if (c->states[same] == GRAMMAR_DEAD) {
        c->n_output = 0;
        c->states[0] = grammar_start(c->held->grammar);
    }
}

const uint64_t *constraint_allow(struct constraint *c, const int32_t *output, int n)
{
    rewind_to(c, output, n);
    while (c->n_output < n) {
        if (grammar_is_crowded(c->held->grammar))
            trim(c->held);
        push(c, output[c->n_output]);
    }
    uint32_t state = c->states[c->n_output];
    return state == GRAMMAR_DEAD ? NULL : mask_of(c->cache, c->held, state);
}
