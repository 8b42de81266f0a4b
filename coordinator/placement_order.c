/* coordinator/placement_order.c - see placement_order.h. */
#include "coordinator/placement_order.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"

/* Shares of one class differ by this factor at most. */
#define CLASS_WIDTH 1.02
#define NO_SHARE 1e-9

struct entry {
    double busy;
    int node, turn;
    bool waits;
};

struct placement_order {
    struct placement_order_books books;
    int n_classes;
    int *first;          /* [n_classes + 1] of each class in `members` and in a layer's entries */
    int *members;        /* [n_nodes] open nodes by class */
    double *layer_share; /* [n_classes] copies that a layer gives to a class */
    struct entry *heaps; /* [n_layers][n_nodes] */
    int *sizes;          /* [n_layers][n_classes] */
    bool *is_stale;      /* [n_layers] to be built when it is asked for */
    struct entry *aside; /* [n_nodes] looked at and not wanted */
};

static double share_of(const struct placement_order *o, int node)
{
    double share = o->books.share[node];
    return share > 0 ? share : NO_SHARE;
}

static const double *costs(const struct placement_order *o, int layer)
{
    return o->books.cost + (size_t)layer * (size_t)o->books.n_nodes;
}

static struct entry entry_of(const struct placement_order *o, int layer, int node, int turn)
{
    const struct placement_order_books *b = &o->books;
    return (struct entry){.busy = costs(o, layer)[node] / share_of(o, node),
                          .node = node,
                          .turn = turn,
                          .waits = b->arriving[node] >= b->free_now[node]};
}

/* Nodes take turns where all else is equal: each layer begins behind those whom the one before gave
 * something, so that with many nodes and few experts a layer everybody has about as much in all, and
 * every second one goes backwards, so that nobody has the first copies of even experts only. */
static bool is_before(const struct entry *a, const struct entry *b)
{
    if (a->waits != b->waits)
        return b->waits;
    if (a->busy != b->busy)
        return a->busy < b->busy;
    return a->turn < b->turn;
}

/* ---- heaps ----------------------------------------------------------------------------------- */

static void sink(struct entry *heap, int n, int at)
{
    struct entry e = heap[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && is_before(&heap[child + 1], &heap[child]))
            child++;
        if (!is_before(&heap[child], &e))
            break;
        heap[at] = heap[child];
    }
    heap[at] = e;
}

static void push(struct entry *heap, int *n, struct entry e)
{
    int at = (*n)++;
    for (int parent; at > 0 && is_before(&e, &heap[parent = (at - 1) / 2]); at = parent)
        heap[at] = heap[parent];
    heap[at] = e;
}

static void pop(struct entry *heap, int *n)
{
    heap[0] = heap[--*n];
    if (*n > 0)
        sink(heap, *n, 0);
}

static struct entry *heap_of(struct placement_order *o, int layer, int class)
{
    return o->heaps + (size_t)layer * (size_t)o->books.n_nodes + o->first[class];
}

static void build(struct placement_order *o, int layer)
{
    const struct placement_order_books *b = &o->books;
    for (int c = 0; c < o->n_classes; c++) {
        struct entry *heap = heap_of(o, layer, c);
        int n = 0, n_members = o->first[c + 1] - o->first[c];
        int share = (int)fmin(o->layer_share[c], n_members);
        int begin = (int)fmod(layer * o->layer_share[c], n_members);
        for (int k = 0; k < n_members; k++) {
            int at = layer % 2 && k < share ? share - 1 - k : k;
            int node = o->members[o->first[c] + (begin + at) % n_members];
            if (b->claimed[node] < b->capacity[node])
                heap[n++] = entry_of(o, layer, node, k);
        }
        for (int at = n / 2 - 1; at >= 0; at--)
            sink(heap, n, at);
        o->sizes[(size_t)layer * (size_t)o->n_classes + (size_t)c] = n;
    }
    o->is_stale[layer] = false;
}

/* ---- classes --------------------------------------------------------------------------------- */

struct member {
    int class, node;
};

static int by_class(const void *a, const void *b)
{
    const struct member *x = a, *y = b;
    return x->class != y->class ? (x->class < y->class ? -1 : 1) : x->node - y->node;
}

static void sort_into_classes(struct placement_order *o)
{
    const struct placement_order_books *b = &o->books;
    struct member *m = mem_array((size_t)b->n_nodes + 1, sizeof *m);
    int n = 0;
    for (int i = 0; i < b->n_nodes; i++)
        if (b->is_open[i])
            m[n++] = (struct member){(int)floor(log(share_of(o, i)) / log(CLASS_WIDTH)), i};
    qsort(m, (size_t)n, sizeof *m, by_class);
    for (int i = 0; i < n; i++) {
        if (i == 0 || m[i].class != m[i - 1].class)
            o->first[o->n_classes++] = i;
        o->members[i] = m[i].node;
    }
    o->first[o->n_classes] = n;
    for (int c = 0; c < o->n_classes; c++) {
        for (int k = o->first[c]; k < o->first[c + 1]; k++)
            o->layer_share[c] += b->share[o->members[k]] / b->n_layers;
        o->layer_share[c] = floor(o->layer_share[c] + 0.5);
    }
    mem_free(m);
}

struct placement_order *placement_order_new(const struct placement_order_books *books)
{
    size_t n = (size_t)books->n_nodes + 1, layers = (size_t)books->n_layers;
    struct placement_order *o = mem_alloc(sizeof *o);
    o->books = *books;
    o->first = mem_array(n + 1, sizeof *o->first);
    o->members = mem_array(n, sizeof *o->members);
    o->layer_share = mem_array(n, sizeof *o->layer_share);
    sort_into_classes(o);
    o->heaps = mem_array(layers * n, sizeof *o->heaps);
    o->sizes = mem_array(layers * n, sizeof *o->sizes);
    o->is_stale = mem_array(layers, sizeof *o->is_stale);
    o->aside = mem_array(n, sizeof *o->aside);
    placement_order_renew(o);
    return o;
}

void placement_order_free(struct placement_order **order)
{
    struct placement_order *o = *order;
    if (!o)
        return;
    *order = NULL;
    mem_free(o->first);
    mem_free(o->members);
    mem_free(o->layer_share);
    mem_free(o->heaps);
    mem_free(o->sizes);
    mem_free(o->is_stale);
    mem_free(o->aside);
    mem_free(o);
}

void placement_order_renew(struct placement_order *o)
{
    for (int layer = 0; layer < o->books.n_layers; layer++)
        o->is_stale[layer] = true;
}

/* ---- the question ---------------------------------------------------------------------------- */

/* The first of a class that may have it; NULL: none. */
static const struct entry *first_of(struct placement_order *o,
                                    const struct placement_order_question *q, struct entry *heap,
                                    int *n, int *n_aside)
{
    const struct placement_order_books *b = &o->books;
    while (*n > 0) {
        struct entry now = entry_of(o, q->layer, heap[0].node, heap[0].turn);
        if (b->claimed[now.node] >= b->capacity[now.node]) {
            pop(heap, n);
            continue;
        }
        if (is_before(&heap[0], &now)) {
            heap[0] = now;
            sink(heap, *n, 0);
            continue;
        }
        if (now.waits && q->now_only)
            return NULL;
        if (q->accepts(q->ud, now.node))
            return &heap[0];
        o->aside[(*n_aside)++] = heap[0];
        pop(heap, n);
    }
    return NULL;
}

int placement_order_best(struct placement_order *o, const struct placement_order_question *q)
{
    struct entry best = {.node = -1};
    if (o->is_stale[q->layer])
        build(o, q->layer);
    for (int c = 0; c < o->n_classes; c++) {
        struct entry *heap = heap_of(o, q->layer, c);
        int *n = &o->sizes[(size_t)q->layer * (size_t)o->n_classes + (size_t)c], n_aside = 0;
        const struct entry *e = first_of(o, q, heap, n, &n_aside);
        if (e) {
            struct entry then = *e;
            then.busy += q->weight / share_of(o, e->node);
            if (best.node < 0 || is_before(&then, &best))
                best = then;
        }
        while (n_aside > 0)
            push(heap, n, o->aside[--n_aside]);
    }
    return best.node;
}
