/* model/grammar_class.c - see grammar_class.h. */
#include "model/grammar_class.h"

#include <string.h>

#include "base/mem.h"
#include "model/grammar_graph.h"

enum { MAX_CLASSES = 8, MAX_SEEN = 32, FEWEST = 16 };

/* Bytes, of which those from 0x80 on are there all or none: whole characters beyond ASCII. */
struct kept {
    struct byte_set set;
    struct token_class class;
    uint64_t used; /* when */
};

struct token_classes {
    const struct token_list *list;
    struct kept kept[MAX_CLASSES];
    int n_kept;
    struct byte_set seen[MAX_SEEN]; /* once */
    int n_seen;
    uint64_t now;
};

struct token_classes *token_classes_new(const struct token_list *l)
{
    struct token_classes *c = mem_alloc(sizeof *c);
    *c = (struct token_classes){.list = l};
    return c;
}

static void free_class(struct token_class *class)
{
    mem_free(class->by_length[0]); /* all are one piece */
    mem_free(class->skip);
}

void token_classes_free(struct token_classes **cp)
{
    struct token_classes *c = *cp;
    *cp = NULL;
    if (!c)
        return;
    for (int i = 0; i < c->n_kept; i++)
        free_class(&c->kept[i].class);
    mem_free(c);
}

/* ---- characters that a state does not tell apart ----------------------------------------------------- */

static bool are_same(const struct byte_set *x, const struct byte_set *y)
{
    return memcmp(x, y, sizeof *x) == 0;
}

static int count_of(const struct byte_set *s)
{
    int n = 0;
    for (int k = 0; k < 4; k++)
        n += __builtin_popcountll(s->bits[k]);
    return n;
}

/* The characters that most others agree with about where they lead. */
static struct byte_set largest_set(struct grammar *g, uint32_t state)
{
    uint32_t next[128], beyond = grammar_beyond(g, state);
    int best = -1, most = 0;
    for (int c = ' '; c < 0x7f; c++)
        next[c] = grammar_byte(g, state, (unsigned char)c);
    for (int c = ' '; c < 0x7f; c++) {
        int n = 0;
        for (int k = c; k < 0x7f && next[c] != GRAMMAR_DEAD; k++)
            n += next[k] == next[c];
        if (n > most) {
            most = n;
            best = c;
        }
    }
    struct byte_set set = {0};
    for (int c = ' '; c < 0x7f && best >= 0; c++)
        if (next[c] == next[best])
            byte_set_add(&set, (unsigned)c, (unsigned)c);
    if (best >= 0 && beyond == next[best])
        byte_set_add(&set, 0x80, 0xff);
    return set;
}

/* Where any of them leads; GRAMMAR_DIFFERS: not to the same. */
static uint32_t after_any(struct grammar *g, uint32_t state, const struct byte_set *set)
{
    uint32_t all = GRAMMAR_DIFFERS;
    for (unsigned c = ' '; c < 0x7f; c++) {
        if (!byte_set_has(set, c))
            continue;
        uint32_t next = grammar_byte(g, state, (unsigned char)c);
        if (all != GRAMMAR_DIFFERS && next != all)
            return GRAMMAR_DIFFERS;
        all = next;
    }
    return byte_set_has(set, 0x80) && grammar_beyond(g, state) != all ? GRAMMAR_DIFFERS : all;
}

/* How many of them may come; -1: that depends. */
static int room_of(struct grammar *g, uint32_t state, const struct byte_set *set, int *reach)
{
    for (int n = 0; n < MAX_PLAIN; n++) {
        uint32_t next = after_any(g, state, set);
        if (next == GRAMMAR_DEAD)
            return n;
        if (next == GRAMMAR_DIFFERS || grammar_leaves(g, next))
            return -1;
        int own = grammar_reach(g, next);
        *reach = own > *reach ? own : *reach;
        if (next == state)
            return MAX_PLAIN;
        state = next;
    }
    return MAX_PLAIN;
}

/* ---- their tokens ------------------------------------------------------------------------------------ */

/* How far a way through the trie is in characters of the set. */
struct progress {
    int16_t n;       /* characters that are begun; -1: there are others, too, or too many */
    int16_t missing; /* bytes of the last one */
};

static struct progress after_byte(struct progress p, const struct byte_set *set, unsigned c)
{
    bool is_more = (c & 0xc0) == 0x80;
    if (p.n < 0 || !byte_set_has(set, c) || is_more != (p.missing > 0))
        return (struct progress){-1, 0};
    if (is_more)
        return (struct progress){p.n, (int16_t)(p.missing - 1)};
    p.missing = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    p.n = p.n < MAX_PLAIN ? (int16_t)(p.n + 1) : -1;
    return p;
}

static void find_tokens(const struct token_list *l, const struct byte_set *set,
                        struct token_class *class)
{
    struct progress way[MAX_TOKEN_BYTES + 1] = {{0, 0}};
    uint64_t *others =
        mem_array((l->n_nodes + 63) / 64, sizeof *others); /* nodes that end others */
    size_t words = mask_words(l);
    class->by_length[0] = mem_array((MAX_PLAIN + 1) * words, sizeof **class->by_length);
    for (size_t k = 1; k <= MAX_PLAIN; k++)
        class->by_length[k] = class->by_length[0] + k * words;
    class->skip = mem_array((l->n_nodes + 63) / 64, sizeof *class->skip);
    for (uint32_t i = 0; i < l->n_nodes; i++) {
        const struct trie_node *node = &l->nodes[i];
        struct progress p = after_byte(way[node->depth], set, node->byte);
        way[node->depth + 1] = p;
        if (node->id >= 0 && p.n > 0 && p.missing == 0)
            mask_allow(class->by_length[p.n], node->id);
        else if (node->id >= 0)
            others[i >> 6] |= 1ull << (i & 63);
    }
    for (int k = 1; k <= MAX_PLAIN; k++)
        for (size_t i = 0; i < words; i++)
            class->by_length[k][i] |= class->by_length[k - 1][i];
    uint32_t next = l->n_nodes; /* that ends another */
    for (uint32_t i = l->n_nodes; i-- > 0;) {
        next = mask_has(others, i) ? i : next;
        if (next >= l->nodes[i].end)
            class->skip[i >> 6] |= 1ull << (i & 63);
    }
    mem_free(others);
}

static struct kept *make(struct token_classes *c, const struct byte_set *set)
{
    struct kept *k = &c->kept[0];
    for (int i = 1; i < c->n_kept; i++)
        k = c->kept[i].used < k->used ? &c->kept[i] : k;
    if (c->n_kept < MAX_CLASSES)
        k = &c->kept[c->n_kept++];
    else
        free_class(&k->class);
    *k = (struct kept){.set = *set};
    find_tokens(c->list, set, &k->class);
    return k;
}

/* A class costs as much as a mask, so it is made for what comes again. */
static bool was_seen(struct token_classes *c, const struct byte_set *set)
{
    for (int i = 0; i < MAX_SEEN && i < c->n_seen; i++)
        if (are_same(&c->seen[i], set))
            return true;
    c->seen[c->n_seen++ % MAX_SEEN] = *set;
    return false;
}

const struct token_class *token_class_of(struct token_classes *c, struct grammar *g, uint32_t state,
                                         int *room, int *reach)
{
    struct byte_set set = largest_set(g, state);
    struct kept *k = NULL;
    int own = *reach;
    if (count_of(&set) < FEWEST || (*room = room_of(g, state, &set, &own)) < 1)
        return NULL;
    for (int i = 0; i < c->n_kept && !k; i++)
        k = are_same(&c->kept[i].set, &set) ? &c->kept[i] : NULL;
    if (!k && !was_seen(c, &set))
        return NULL;
    k = k ? k : make(c, &set);
    k->used = ++c->now;
    *reach = own;
    return &k->class;
}
