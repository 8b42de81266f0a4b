/* model/grammar.c - the graph of a grammar and its states; see grammar.h. */
#include "model/grammar.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "model/grammar_graph.h"

enum node_kind {
    NODE_NOWHERE,
    NODE_BYTES,
    NODE_MARKER,
    NODE_ANY_MARKER,
    NODE_EITHER,
    NODE_CALL,
    NODE_RETURN,
    NODE_END,
    NODE_FLOOR /* below it lies a stack that was cut off */
};

struct node {
    uint8_t kind;
    uint8_t need;         /* depth of calls that it takes at least to return from here */
    uint32_t next, other; /* other: set, marker, second way or rule */
};

/* A return stack, as a list that others share. */
struct cell {
    uint32_t below, node; /* node: where to go on */
    uint16_t depth, reach;
};

struct thread {
    uint32_t node, cell;
};

struct state {
    uint32_t first, n; /* of its threads */
    bool accepts, leaves, has_markers;
    uint16_t reach;
    enum { NOT_ASKED, TAKES_PLAIN, TAKES_OTHERWISE } takes;
    uint32_t plain; /* grammar_plain(); UNKNOWN: not looked at yet */
    uint32_t *next; /* [256]; UNKNOWN: not looked at yet */
};

enum {
    NEVER = 255,        /* of node.need */
    MAX_THREADS = 2048, /* of a state; each can be completed alone, so any of them may go */
    MAX_STATES = 8192,  /* before they are forgotten */
    MAX_CELLS = 1 << 20,
    MAX_CLOSED = 16,
    SEEN_SLOTS = 8192, /* a power of two, well over what one closure visits */
};
#define UNKNOWN UINT32_MAX

struct table { /* open addressing; numbers of what is in an array, from 1 */
    uint32_t *slots;
    uint32_t n_slots, n;
};

struct grammar {
    struct node *nodes;
    uint32_t n_nodes, nodes_room;
    struct byte_set *sets;
    uint32_t n_sets, sets_room;
    int32_t stops[GRAMMAR_MAX_STOPS], closed[MAX_CLOSED];
    int n_stops, n_closed;
    uint32_t start, returns, end, floor;
    uint32_t floor_cell; /* the stack of NODE_FLOOR alone */

    struct cell *cells; /* [0] is the empty stack */
    uint32_t n_cells, cells_room;
    struct table cell_table;
    struct thread *threads; /* of all states */
    uint32_t n_threads, threads_room;
    struct state *states; /* [0] is the dead one */
    uint32_t n_states, states_room;
    uint32_t n_rows; /* states that have a `next` */
    struct table state_table;

    struct thread *work, *fresh; /* scratch of a closure */
    uint32_t n_work, n_fresh;
    uint64_t seen[SEEN_SLOTS];
    uint32_t seen_at[SEEN_SLOTS / 2 + 1]; /* slots that are taken */
    uint32_t n_seen;
};

static void grow(void *array, uint32_t *room, uint32_t n, size_t size)
{
    void **p = array;
    if (n < *room)
        return;
    *room = *room ? 2 * *room : 64;
    *p = mem_resize(*p, (size_t)*room * size);
}

/* ---- building --------------------------------------------------------------------------- */

static uint32_t add(struct grammar *g, enum node_kind kind, uint32_t next, uint32_t other)
{
    if (g->n_nodes >= GRAMMAR_MAX_NODES)
        return 0;
    grow(&g->nodes, &g->nodes_room, g->n_nodes, sizeof *g->nodes);
    g->nodes[g->n_nodes] =
        (struct node){.kind = (uint8_t)kind, .need = NEVER, .next = next, .other = other};
    return g->n_nodes++;
}

struct grammar *grammar_new(void)
{
    struct grammar *g = mem_alloc(sizeof *g);
    add(g, NODE_NOWHERE, 0, 0);
    g->returns = add(g, NODE_RETURN, 0, 0);
    g->end = add(g, NODE_END, 0, 0);
    g->floor = add(g, NODE_FLOOR, 0, 0);
    g->work = mem_array(SEEN_SLOTS, sizeof *g->work);
    g->fresh = mem_array(MAX_THREADS, sizeof *g->fresh);
    return g;
}

void grammar_free(struct grammar **gp)
{
    struct grammar *g = *gp;
    *gp = NULL;
    if (!g)
        return;
    for (uint32_t i = 0; i < g->n_states; i++)
        mem_free(g->states[i].next);
    mem_free(g->states);
    mem_free(g->threads);
    mem_free(g->cells);
    mem_free(g->cell_table.slots);
    mem_free(g->state_table.slots);
    mem_free(g->nodes);
    mem_free(g->sets);
    mem_free(g->work);
    mem_free(g->fresh);
    mem_free(g);
}

uint32_t grammar_bytes(struct grammar *g, const struct byte_set *set, uint32_t next)
{
    if (next == 0)
        return 0;
    /* Looked for among the latest: a set that is there twice does no harm. */
    uint32_t i = g->n_sets > 256 ? g->n_sets - 256 : 0;
    while (i < g->n_sets && memcmp(&g->sets[i], set, sizeof *set) != 0)
        i++;
    if (i == g->n_sets) {
        grow(&g->sets, &g->sets_room, g->n_sets, sizeof *g->sets);
        g->sets[g->n_sets++] = *set;
    }
    return add(g, NODE_BYTES, next, i);
}

uint32_t grammar_range(struct grammar *g, unsigned char first, unsigned char last, uint32_t next)
{
    struct byte_set set = {0};
    byte_set_add(&set, first, last);
    return grammar_bytes(g, &set, next);
}

uint32_t grammar_literal(struct grammar *g, struct str text, uint32_t next)
{
    for (size_t i = text.len; i > 0; i--) {
        unsigned char c = (unsigned char)text.ptr[i - 1];
        next = grammar_range(g, c, c, next);
    }
    return next;
}

uint32_t grammar_marker_node(struct grammar *g, int32_t id, uint32_t next)
{
    return next ? add(g, NODE_MARKER, next, (uint32_t)id) : 0;
}

uint32_t grammar_any_marker(struct grammar *g, uint32_t next)
{
    return next ? add(g, NODE_ANY_MARKER, next, 0) : 0;
}

void grammar_close(struct grammar *g, int32_t id)
{
    if (g->n_closed < MAX_CLOSED)
        g->closed[g->n_closed++] = id;
}

void grammar_add_stop(struct grammar *g, int32_t id)
{
    if (g->n_stops < GRAMMAR_MAX_STOPS)
        g->stops[g->n_stops++] = id;
}

uint32_t grammar_either(struct grammar *g, uint32_t a, uint32_t b)
{
    if (a == 0 || b == 0 || a == b)
        return a ? a : b;
    return add(g, NODE_EITHER, a, b);
}

uint32_t grammar_call(struct grammar *g, uint32_t rule, uint32_t next)
{
    return rule && next ? add(g, NODE_CALL, next, rule) : 0;
}

uint32_t grammar_return(struct grammar *g)
{
    return g->returns;
}

uint32_t grammar_end(struct grammar *g)
{
    return g->end;
}

uint32_t grammar_ahead(struct grammar *g)
{
    return add(g, NODE_EITHER, 0, 0);
}

void grammar_lead(struct grammar *g, uint32_t ahead, uint32_t to)
{
    if (ahead)
        g->nodes[ahead].next = g->nodes[ahead].other = to;
}

bool grammar_is_full(const struct grammar *g)
{
    return g->n_nodes >= GRAMMAR_MAX_NODES;
}

static unsigned needed(const struct grammar *g, const struct node *n)
{
    const struct node *next = &g->nodes[n->next], *other;
    switch ((enum node_kind)n->kind) {
    case NODE_NOWHERE:
        return NEVER;
    case NODE_RETURN:
    case NODE_END:
    case NODE_FLOOR:
        return 0;
    case NODE_BYTES:
    case NODE_MARKER:
    case NODE_ANY_MARKER:
        return next->need;
    case NODE_EITHER:
        other = &g->nodes[n->other];
        return next->need < other->need ? next->need : other->need;
    case NODE_CALL:
        other = &g->nodes[n->other];
        if (other->need >= GRAMMAR_MAX_DEPTH)
            return NEVER;
        return other->need + 1u > next->need ? other->need + 1u : next->need;
    }
    return NEVER;
}

static bool has_next(const struct node *n)
{
    return n->kind != NODE_NOWHERE && n->kind != NODE_RETURN && n->kind != NODE_END &&
           n->kind != NODE_FLOOR;
}

static bool has_other(const struct node *n)
{
    return n->kind == NODE_EITHER || n->kind == NODE_CALL;
}

/* Who leads to a node: by[first[i]] to by[first[i + 1] - 1]. */
static void find_leaders(const struct grammar *g, uint32_t *first, uint32_t *by)
{
    for (uint32_t i = 0; i < g->n_nodes; i++) {
        first[g->nodes[i].next + 2] += has_next(&g->nodes[i]);
        if (has_other(&g->nodes[i]))
            first[g->nodes[i].other + 2]++;
    }
    for (uint32_t i = 2; i < g->n_nodes + 2; i++)
        first[i] += first[i - 1];
    for (uint32_t i = 0; i < g->n_nodes; i++) {
        if (has_next(&g->nodes[i]))
            by[first[g->nodes[i].next + 1]++] = i;
        if (has_other(&g->nodes[i]))
            by[first[g->nodes[i].other + 1]++] = i;
    }
}

/* The least that is consistent: down from NEVER, and whenever a node's changes, those that lead to it. */
static void find_needs(struct grammar *g)
{
    uint32_t n = g->n_nodes, n_work = n;
    uint32_t *first = mem_array((size_t)n + 3, sizeof *first);
    uint32_t *by = mem_array(2 * (size_t)n, sizeof *by);
    uint32_t *work = mem_array(n, sizeof *work);
    bool *is_waiting = mem_array(n, sizeof *is_waiting);
    find_leaders(g, first, by);
    for (uint32_t i = 0; i < n; i++) {
        work[i] = n - 1 - i;
        is_waiting[i] = true;
    }
    while (n_work > 0) {
        uint32_t i = work[--n_work];
        unsigned need = needed(g, &g->nodes[i]);
        is_waiting[i] = false;
        if (need >= g->nodes[i].need)
            continue;
        g->nodes[i].need = (uint8_t)need;
        for (uint32_t k = first[i]; k < first[i + 1]; k++) {
            if (!is_waiting[by[k]])
                work[n_work++] = by[k];
            is_waiting[by[k]] = true;
        }
    }
    mem_free(first);
    mem_free(by);
    mem_free(work);
    mem_free(is_waiting);
}

/* ---- stacks ---------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
    x *= 0x9e3779b97f4a7c15u;
    return x ^ (x >> 29);
}

static bool is_cell(const struct grammar *g, uint32_t i, uint32_t below, uint32_t node)
{
    return g->cells[i].below == below && g->cells[i].node == node;
}

static void table_grow(struct table *t, uint64_t (*hash_of)(const struct grammar *g, uint32_t i),
                       const struct grammar *g)
{
    struct table bigger = {.n_slots = t->n_slots ? 2 * t->n_slots : 256, .n = t->n};
    bigger.slots = mem_array(bigger.n_slots, sizeof *bigger.slots);
    for (uint32_t i = 0; i < t->n_slots; i++) {
        if (!t->slots[i])
            continue;
        uint64_t at = hash_of(g, t->slots[i]);
        while (bigger.slots[at & (bigger.n_slots - 1)])
            at++;
        bigger.slots[at & (bigger.n_slots - 1)] = t->slots[i];
    }
    mem_free(t->slots);
    *t = bigger;
}

static uint64_t cell_hash(const struct grammar *g, uint32_t i)
{
    return mix(((uint64_t)g->cells[i].below << 32) | g->cells[i].node);
}

/* The stack with `node` on top of `below`; 0 if there are too many. */
static uint32_t push_cell(struct grammar *g, uint32_t below, uint32_t node)
{
    struct table *t = &g->cell_table;
    if (2 * (t->n + 1) > t->n_slots)
        table_grow(t, cell_hash, g);
    uint64_t at = mix(((uint64_t)below << 32) | node);
    for (; t->slots[at & (t->n_slots - 1)]; at++) {
        uint32_t i = t->slots[at & (t->n_slots - 1)];
        if (is_cell(g, i, below, node))
            return i;
    }
    if (g->n_cells >= MAX_CELLS)
        return 0;
    grow(&g->cells, &g->cells_room, g->n_cells, sizeof *g->cells);
    const struct cell *under = &g->cells[below];
    unsigned reach = under->depth + (unsigned)g->nodes[node].need;
    g->cells[g->n_cells] =
        (struct cell){.below = below,
                      .node = node,
                      .depth = (uint16_t)(under->depth + 1),
                      .reach = (uint16_t)(reach > under->reach ? reach : under->reach)};
    t->slots[at & (t->n_slots - 1)] = g->n_cells;
    t->n++;
    return g->n_cells++;
}

/* ---- states ---------------------------------------------------------------------------------- */

static bool is_new(struct grammar *g, struct thread t)
{
    uint64_t key = ((uint64_t)t.node << 32) | t.cell, at = mix(key);
    for (; g->seen[at & (SEEN_SLOTS - 1)]; at++)
        if (g->seen[at & (SEEN_SLOTS - 1)] == key)
            return false;
    if (2 * g->n_seen >= SEEN_SLOTS)
        return false;
    g->seen[at & (SEEN_SLOTS - 1)] = key;
    g->seen_at[g->n_seen++] = (uint32_t)(at & (SEEN_SLOTS - 1));
    return true;
}

/* To be followed, unless it was already or could not be completed within the depth. */
static void follow(struct grammar *g, uint32_t node, uint32_t cell)
{
    struct thread t = {node, cell};
    uint32_t need = g->nodes[node].need;
    if (need != NEVER && g->cells[cell].depth + need <= GRAMMAR_MAX_DEPTH && is_new(g, t))
        g->work[g->n_work++] = t;
}

/* Follows all that takes no input. */
static void close_over(struct grammar *g)
{
    while (g->n_work > 0) {
        struct thread t = g->work[--g->n_work];
        const struct node *n = &g->nodes[t.node];
        uint32_t cell;
        switch ((enum node_kind)n->kind) {
        case NODE_EITHER:
            follow(g, n->next, t.cell);
            follow(g, n->other, t.cell);
            break;
        case NODE_CALL:
            cell = push_cell(g, t.cell, n->next);
            if (cell)
                follow(g, n->other, cell);
            break;
        case NODE_RETURN:
            if (t.cell)
                follow(g, g->cells[t.cell].node, g->cells[t.cell].below);
            break;
        case NODE_NOWHERE:
            break;
        case NODE_BYTES:
        case NODE_MARKER:
        case NODE_ANY_MARKER:
        case NODE_END:
        case NODE_FLOOR:
            if (g->n_fresh < MAX_THREADS)
                g->fresh[g->n_fresh++] = t;
            break;
        }
    }
}

static int compare_threads(const void *a, const void *b)
{
    const struct thread *x = a, *y = b;
    if (x->node != y->node)
        return x->node < y->node ? -1 : 1;
    return (x->cell > y->cell) - (x->cell < y->cell);
}

static uint64_t threads_hash(const struct thread *t, uint32_t n)
{
    uint64_t h = n;
    for (uint32_t i = 0; i < n; i++)
        h = mix(h ^ (((uint64_t)t[i].node << 32) | t[i].cell));
    return h;
}

static uint64_t state_hash(const struct grammar *g, uint32_t i)
{
    return threads_hash(g->threads + g->states[i].first, g->states[i].n);
}

static uint32_t new_state(struct grammar *g)
{
    grow(&g->states, &g->states_room, g->n_states, sizeof *g->states);
    struct state *s = &g->states[g->n_states];
    *s = (struct state){.first = g->n_threads, .n = g->n_fresh, .plain = UNKNOWN};
    for (uint32_t i = 0; i < g->n_fresh; i++) {
        grow(&g->threads, &g->threads_room, g->n_threads, sizeof *g->threads);
        g->threads[g->n_threads++] = g->fresh[i];
        const struct node *node = &g->nodes[g->fresh[i].node];
        const struct cell *cell = &g->cells[g->fresh[i].cell];
        unsigned reach = cell->depth + (unsigned)node->need;
        reach = reach > cell->reach ? reach : cell->reach;
        s->accepts |= node->kind == NODE_END;
        s->leaves |= node->kind == NODE_FLOOR;
        s->has_markers |= node->kind == NODE_MARKER || node->kind == NODE_ANY_MARKER;
        s->reach = s->reach > reach ? s->reach : (uint16_t)reach;
    }
    return g->n_states++;
}

/* The state of the threads in `fresh`. */
static uint32_t find_state(struct grammar *g)
{
    struct table *t = &g->state_table;
    if (g->n_fresh == 0)
        return GRAMMAR_DEAD;
    qsort(g->fresh, g->n_fresh, sizeof *g->fresh, compare_threads);
    if (2 * (t->n + 1) > t->n_slots)
        table_grow(t, state_hash, g);
    uint64_t at = threads_hash(g->fresh, g->n_fresh);
    for (; t->slots[at & (t->n_slots - 1)]; at++) {
        uint32_t i = t->slots[at & (t->n_slots - 1)];
        const struct state *s = &g->states[i];
        if (s->n == g->n_fresh &&
            memcmp(g->threads + s->first, g->fresh, s->n * sizeof *g->fresh) == 0)
            return i;
    }
    uint32_t i = new_state(g);
    t->slots[at & (t->n_slots - 1)] = i;
    t->n++;
    return i;
}

static void begin_closure(struct grammar *g)
{
    for (uint32_t i = 0; i < g->n_seen; i++)
        g->seen[g->seen_at[i]] = 0;
    g->n_work = g->n_fresh = g->n_seen = 0;
}

static void forget_states(struct grammar *g)
{
    for (uint32_t i = 0; i < g->n_states; i++)
        mem_free(g->states[i].next);
    g->n_states = g->n_threads = g->n_rows = 0;
    g->n_cells = 0;
    if (g->cell_table.slots)
        memset(g->cell_table.slots, 0, g->cell_table.n_slots * sizeof *g->cell_table.slots);
    if (g->state_table.slots)
        memset(g->state_table.slots, 0, g->state_table.n_slots * sizeof *g->state_table.slots);
    g->cell_table.n = g->state_table.n = 0;
    grow(&g->cells, &g->cells_room, 0, sizeof *g->cells);
    g->cells[g->n_cells++] = (struct cell){0};
    g->floor_cell = push_cell(g, 0, g->floor);
    g->cells[g->floor_cell].depth = 0; /* what lies below has a depth that only the caller knows */
    g->n_fresh = 0;
    new_state(g); /* the dead one */
}

bool grammar_begin(struct grammar *g, uint32_t start)
{
    g->start = start;
    find_needs(g);
    forget_states(g);
    return start && g->nodes[start].need <= GRAMMAR_MAX_DEPTH;
}

uint32_t grammar_start(struct grammar *g)
{
    begin_closure(g);
    follow(g, g->start, 0);
    close_over(g);
    return find_state(g);
}

uint32_t grammar_byte(struct grammar *g, uint32_t state, unsigned char byte)
{
    struct state *s = &g->states[state];
    if (state == GRAMMAR_DEAD)
        return GRAMMAR_DEAD;
    if (!s->next) {
        s->next = mem_array(256, sizeof *s->next);
        g->n_rows++;
        memset(s->next, 0xff, 256 * sizeof *s->next);
    }
    if (s->next[byte] != UNKNOWN)
        return s->next[byte];
    begin_closure(g);
    for (uint32_t i = s->first; i < s->first + s->n; i++) {
        struct thread t = g->threads[i];
        const struct node *n = &g->nodes[t.node];
        if (n->kind == NODE_BYTES && byte_set_has(&g->sets[n->other], byte))
            follow(g, n->next, t.cell);
    }
    close_over(g);
    uint32_t next = find_state(g);
    g->states[state].next[byte] = next; /* the array may have moved */
    return next;
}

static bool is_closed(const struct grammar *g, int32_t id)
{
    for (int i = 0; i < g->n_closed; i++)
        if (g->closed[i] == id)
            return true;
    return grammar_is_stop(g, id);
}

uint32_t grammar_marker(struct grammar *g, uint32_t state, int32_t id)
{
    const struct state *s = &g->states[state];
    if (!s->has_markers)
        return GRAMMAR_DEAD;
    begin_closure(g);
    for (uint32_t i = s->first; i < s->first + s->n; i++) {
        struct thread t = g->threads[i];
        const struct node *n = &g->nodes[t.node];
        if ((n->kind == NODE_MARKER && n->other == (uint32_t)id) ||
            (n->kind == NODE_ANY_MARKER && !is_closed(g, id)))
            follow(g, n->next, t.cell);
    }
    close_over(g);
    return find_state(g);
}

bool grammar_accepts(const struct grammar *g, uint32_t state)
{
    return g->states[state].accepts;
}

bool grammar_is_stop(const struct grammar *g, int32_t id)
{
    for (int i = 0; i < g->n_stops; i++)
        if (g->stops[i] == id)
            return true;
    return false;
}

const int32_t *grammar_stops(const struct grammar *g, int *n)
{
    *n = g->n_stops;
    return g->stops;
}

bool grammar_has_markers(const struct grammar *g, uint32_t state)
{
    return g->states[state].has_markers;
}

/* ---- states without the bottom of their stacks ------------------------------------------------- */

static uint32_t shared_cell(const struct grammar *g, uint32_t a, uint32_t b)
{
    while (a != b) {
        uint32_t *deeper = g->cells[a].depth >= g->cells[b].depth ? &a : &b;
        *deeper = g->cells[*deeper].below;
    }
    return a;
}

/* What lies above `from` in the stack `cell` of `cells`, on top of `to`; 0 if there are too many. */
static uint32_t restack(struct grammar *g, const struct cell *cells, uint32_t cell, uint32_t from,
                        uint32_t to)
{
    uint32_t nodes[GRAMMAR_MAX_DEPTH + 1];
    int n = 0;
    for (; cell != from; cell = cells[cell].below) {
        must(n <= GRAMMAR_MAX_DEPTH);
        nodes[n++] = cells[cell].node;
    }
    while (n > 0) {
        to = push_cell(g, to, nodes[--n]);
        if (to == 0)
            return 0;
    }
    return to;
}

uint32_t grammar_cut(struct grammar *g, uint32_t state, int *cut)
{
    const struct state *s = &g->states[state];
    uint32_t shared = s->n > 0 ? g->threads[s->first].cell : 0;
    for (uint32_t i = s->first + 1; i < s->first + s->n && shared; i++)
        shared = shared_cell(g, shared, g->threads[i].cell);
    *cut = g->cells[shared].depth;
    if (shared == 0)
        return state;
    for (uint32_t i = 0; i < s->n; i++) {
        struct thread t = g->threads[s->first + i];
        uint32_t cell = restack(g, g->cells, t.cell, shared, g->floor_cell);
        if (cell == 0) {
            *cut = 0;
            return state;
        }
        g->fresh[i] = (struct thread){t.node, cell};
    }
    g->n_fresh = s->n;
    return find_state(g);
}

bool grammar_leaves(const struct grammar *g, uint32_t state)
{
    return g->states[state].leaves;
}

int grammar_reach(const struct grammar *g, uint32_t state)
{
    return g->states[state].reach;
}

/* ---- one plain character ------------------------------------------------------------------------ */

/* Bytes that the forms of UTF-8 do not tell apart. */
enum block { ASCII, OF_2, E0, E1, ED, EE, F0, OF_4, F4, LOW, MIDDLE, HIGH, BLOCKS };
enum { MORE = 1 << LOW | 1 << MIDDLE | 1 << HIGH };

static struct byte_set block_set(enum block b)
{
    static const unsigned char ranges[BLOCKS][8] = {
        {' ', '!', '#', ';', '=', '[', ']', '~'}, /* as they are in JSON and in a tool's argument */
        {0xc2, 0xdf},
        {0xe0, 0xe0},
        {0xe1, 0xec},
        {0xed, 0xed},
        {0xee, 0xef},
        {0xf0, 0xf0},
        {0xf1, 0xf3},
        {0xf4, 0xf4},
        {0x80, 0x8f},
        {0x90, 0x9f},
        {0xa0, 0xbf}};
    struct byte_set set = {0};
    for (int i = 0; i < 8 && ranges[b][i]; i += 2)
        byte_set_add(&set, ranges[b][i], ranges[b][i + 1]);
    return set;
}

/* What a character consists of, block by block. */
static const uint16_t forms[][5] = {{1 << ASCII},
                                    {1 << OF_2, MORE},
                                    {1 << E0, 1 << HIGH, MORE},
                                    {1 << E1 | 1 << EE, MORE, MORE},
                                    {1 << ED, 1 << LOW | 1 << MIDDLE, MORE},
                                    {1 << F0, 1 << MIDDLE | 1 << HIGH, MORE, MORE},
                                    {1 << OF_4, MORE, MORE, MORE},
                                    {1 << F4, 1 << LOW, MORE, MORE}};

/* Where each of the block's bytes leads; UNKNOWN: not all to the same. */
static uint32_t step_block(struct grammar *g, uint32_t state, enum block b)
{
    struct byte_set block = block_set(b);
    const struct state *s = &g->states[state];
    for (uint32_t i = s->first; i < s->first + s->n; i++) {
        const struct node *n = &g->nodes[g->threads[i].node];
        uint64_t some = 0, others = 0;
        for (int k = 0; k < 4 && n->kind == NODE_BYTES; k++) {
            some |= block.bits[k] & g->sets[n->other].bits[k];
            others |= block.bits[k] & ~g->sets[n->other].bits[k];
        }
        if (some && others)
            return UNKNOWN;
    }
    unsigned first = 0;
    while (!byte_set_has(&block, first))
        first++;
    return grammar_byte(g, state, (unsigned char)first);
}

/* Does every character of the form lead to the floor, and to nothing else, without a call on the way? */
static bool leads_to_floor(struct grammar *g, uint32_t state, const uint16_t *form)
{
    const struct state *s = &g->states[state];
    if (*form == 0)
        return s->n == 1 && g->nodes[g->threads[s->first].node].kind == NODE_FLOOR;
    for (uint32_t i = s->first; i < s->first + s->n; i++) {
        struct thread t = g->threads[i];
        if (t.cell != g->floor_cell || g->nodes[t.node].need > 0)
            return false;
    }
    for (int b = 0; b < BLOCKS; b++) {
        if (!(*form >> b & 1))
            continue;
        uint32_t next = step_block(g, state, (enum block)b);
        if (next == UNKNOWN || !leads_to_floor(g, next, form + 1))
            return false;
    }
    return true;
}

/* The ways in `fresh`, on the floor. */
static bool take_one_character(struct grammar *g)
{
    uint32_t state = find_state(g);
    bool all = g->states[state].takes != TAKES_OTHERWISE;
    if (g->states[state].takes != NOT_ASKED)
        return all;
    for (size_t i = 0; i < sizeof forms / sizeof forms[0] && all; i++)
        all = leads_to_floor(g, state, forms[i]);
    g->states[state].takes = all ? TAKES_PLAIN : TAKES_OTHERWISE;
    return all;
}

/* The ways that a character can begin are looked at without what they return to, so that it is done once for
 * all lengths that a string may still have. */
static uint32_t find_plain(struct grammar *g, uint32_t state)
{
    const struct state *s = &g->states[state];
    struct byte_set begins = block_set(ASCII);
    uint32_t cell = UNKNOWN;
    byte_set_add(&begins, 0xc2, 0xf4);
    g->n_fresh = 0;
    for (uint32_t i = s->first; i < s->first + s->n; i++) {
        struct thread t = g->threads[i];
        const struct node *n = &g->nodes[t.node];
        uint64_t common = 0;
        for (int k = 0; k < 4 && n->kind == NODE_BYTES; k++)
            common |= begins.bits[k] & g->sets[n->other].bits[k];
        if (!common)
            continue;
        if (cell != UNKNOWN && cell != t.cell)
            return GRAMMAR_DIFFERS;
        cell = t.cell;
        g->fresh[g->n_fresh++] = (struct thread){t.node, g->floor_cell};
    }
    if (g->n_fresh == 0)
        return GRAMMAR_DEAD;
    return take_one_character(g) ? grammar_byte(g, state, 'a') : GRAMMAR_DIFFERS;
}

uint32_t grammar_plain(struct grammar *g, uint32_t state)
{
    if (state == GRAMMAR_DEAD)
        return GRAMMAR_DEAD;
    if (g->states[state].plain == UNKNOWN) {
        uint32_t plain = find_plain(g, state);
        g->states[state].plain = plain;
    }
    return g->states[state].plain;
}

/* Where every character of the form leads. */
static uint32_t after_form(struct grammar *g, uint32_t state, const uint16_t *form)
{
    uint32_t all = UNKNOWN;
    if (*form == 0 || state == GRAMMAR_DEAD)
        return state;
    for (int b = 0; b < BLOCKS; b++) {
        if (!(*form >> b & 1))
            continue;
        uint32_t next = step_block(g, state, (enum block)b);
        next = next == UNKNOWN ? UNKNOWN : after_form(g, next, form + 1);
        if (next == UNKNOWN || (all != UNKNOWN && next != all))
            return UNKNOWN;
        all = next;
    }
    return all;
}

uint32_t grammar_beyond(struct grammar *g, uint32_t state)
{
    uint32_t all = after_form(g, state, forms[1]);
    for (size_t i = 2; i < sizeof forms / sizeof forms[0] && all != UNKNOWN; i++)
        if (after_form(g, state, forms[i]) != all)
            all = UNKNOWN;
    return all == UNKNOWN ? GRAMMAR_DIFFERS : all;
}

bool grammar_is_plain(int32_t code_point)
{
    return code_point >= ' ' && code_point != 0x7f && code_point != '"' && code_point != '\\' &&
           code_point != '<';
}

/* ---- memory ------------------------------------------------------------------------------------- */

size_t grammar_bytes_held(const struct grammar *g)
{
    return g->nodes_room * sizeof *g->nodes + g->sets_room * sizeof *g->sets +
           g->cells_room * sizeof *g->cells + g->threads_room * sizeof *g->threads +
           g->states_room * sizeof *g->states + g->n_rows * 256 * sizeof(uint32_t) +
           (g->cell_table.n_slots + g->state_table.n_slots) * sizeof(uint32_t) +
           SEEN_SLOTS * sizeof *g->work + sizeof *g;
}

bool grammar_is_crowded(const struct grammar *g)
{
    return g->n_states > MAX_STATES || g->n_cells > MAX_CELLS / 2;
}

void grammar_trim(struct grammar *g, uint32_t *keep, int n_keep)
{
    struct grammar old = *g;
    g->cells = NULL;
    g->threads = NULL;
    g->states = NULL;
    g->cells_room = g->threads_room = g->states_room = g->n_states = 0;
    forget_states(g);
    for (int k = 0; k < n_keep; k++) {
        const struct state *s = &old.states[keep[k]];
        for (uint32_t i = 0; i < s->n; i++) {
            struct thread t = old.threads[s->first + i];
            g->fresh[i] = (struct thread){t.node, restack(g, old.cells, t.cell, 0, 0)};
        }
        g->n_fresh = s->n;
        keep[k] = find_state(g);
    }
    for (uint32_t i = 0; i < old.n_states; i++)
        mem_free(old.states[i].next);
    mem_free(old.states);
    mem_free(old.threads);
    mem_free(old.cells);
}
