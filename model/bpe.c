#include "model/bpe.h"

#include "base/mem.h"
#include "base/must.h"

#define NO_RANK UINT32_MAX
#define NO_NODE UINT32_MAX

/* One token of the piece so far, and what its pair with the next one would become. */
struct bpe_node {
    uint32_t prev, next;
    uint32_t rank; /* NO_RANK: this pair does not merge, or the node is gone */
    int32_t merged;
    int32_t id;
};

void bpe_init(struct bpe *b, size_t n_pairs)
{
    size_t n_slots = 16;

    while (n_slots < 2 * n_pairs)
        n_slots *= 2;
    *b = (struct bpe){.n_slots = n_slots};
    b->pairs = mem_array(n_slots, sizeof(*b->pairs));
}

void bpe_fini(struct bpe *b)
{
    mem_free(b->pairs);
    *b = (struct bpe){0};
}

/* The slot that holds `key`, or the free one where it belongs. */
static struct bpe_pair *slot_of(const struct bpe *b, uint64_t key)
{
    /* The finishing steps of MurmurHash3's 64-bit mixer: every bit of the key moves the slot. */
    uint64_t h = key;
    size_t i;

    h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdULL;
    h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53ULL;
    for (i = (h ^ (h >> 33)) & (b->n_slots - 1); b->pairs[i].key != 0 && b->pairs[i].key != key;)
        i = (i + 1) & (b->n_slots - 1);
    return &b->pairs[i];
}

static uint64_t key_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)(left + 1) << 32 | (uint32_t)right;
}

bool bpe_add(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t merged)
{
    struct bpe_pair *slot;

    must(left >= 0 && right >= 0 && rank < NO_RANK);
    if (2 * (b->n_pairs + 1) > b->n_slots)
        return false;
    slot = slot_of(b, key_of(left, right));
    if (slot->key != 0)
        return false;
    *slot = (struct bpe_pair){.key = key_of(left, right), .rank = rank, .merged = merged};
    b->n_pairs++;
    return true;
}

void bpe_scratch_fini(struct bpe_scratch *s)
{
    mem_free(s->nodes);
    mem_free(s->heap);
    *s = (struct bpe_scratch){0};
}

/* Each merge takes one entry from the heap and adds two at most, so twice the piece is enough. */
static void reserve(struct bpe_scratch *s, size_t n)
{
    if (n <= s->n_nodes)
        return;
    s->n_nodes = n < 64 ? 64 : n + n / 2;
    s->nodes = mem_resize(s->nodes, s->n_nodes * sizeof(*s->nodes));
    s->heap = mem_resize(s->heap, 2 * s->n_nodes * sizeof(*s->heap));
}

/* A heap entry is rank and position in one number, so its order is "lowest rank, leftmost". */
static void heap_push(struct bpe_scratch *s, uint64_t entry)
{
    size_t i = s->n_heap++;

    while (i > 0 && s->heap[(i - 1) / 2] > entry) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
        s->steps++;
    }
    s->heap[i] = entry;
}

static uint64_t heap_pop(struct bpe_scratch *s)
{
    uint64_t top = s->heap[0], entry = s->heap[--s->n_heap];
    size_t i = 0, child;

    while ((child = 2 * i + 1) < s->n_heap) {
        if (child + 1 < s->n_heap && s->heap[child + 1] < s->heap[child])
            child++;
        if (s->heap[child] >= entry)
            break;
        s->heap[i] = s->heap[child];
        i = child;
        s->steps++;
    }
    s->heap[i] = entry;
    return top;
}

/* Looks up what node `at` and the one after it would become. */
static void rate_pair(const struct bpe *b, struct bpe_scratch *s, uint32_t at)
{
    struct bpe_node *node = &s->nodes[at];
    const struct bpe_pair *pair;

    s->steps++;
    node->rank = NO_RANK;
    if (node->next == NO_NODE)
        return;
    pair = slot_of(b, key_of(node->id, s->nodes[node->next].id));
    if (pair->key == 0)
        return;
    node->rank = pair->rank;
    node->merged = pair->merged;
    heap_push(s, (uint64_t)pair->rank << 32 | at);
}

static void merge_pair(const struct bpe *b, struct bpe_scratch *s, uint32_t at)
{
    struct bpe_node *node = &s->nodes[at], *right = &s->nodes[node->next];

    node->id = node->merged;
    node->next = right->next;
    right->rank = NO_RANK;
    if (node->next != NO_NODE)
        s->nodes[node->next].prev = at;
    rate_pair(b, s, at);
    if (node->prev != NO_NODE)
        rate_pair(b, s, node->prev);
}

void bpe_encode(const struct bpe *b, struct str piece, struct bpe_scratch *s, struct tokens *out)
{
    uint32_t n = (uint32_t)piece.len;

    must(piece.len < (size_t)1 << 31);
    if (n == 0)
        return;
    reserve(s, n);
    s->n_heap = 0;
    for (uint32_t i = 0; i < n; i++)
        s->nodes[i] = (struct bpe_node){.prev = i > 0 ? i - 1 : NO_NODE,
                                        .next = i + 1 < n ? i + 1 : NO_NODE,
                                        .id = b->byte_ids[(unsigned char)piece.ptr[i]]};
    for (uint32_t i = 0; i < n; i++)
        rate_pair(b, s, i);
    while (s->n_heap > 0) {
        uint64_t entry = heap_pop(s);
        uint32_t at = (uint32_t)entry;
        /* An entry is stale if its pair has changed since: a position never sees the same pair
         * twice, because its tokens only grow. */
        if (s->nodes[at].rank == (uint32_t)(entry >> 32))
            merge_pair(b, s, at);
    }
    for (uint32_t i = 0; i != NO_NODE; i = s->nodes[i].next)
        tokens_push(out, s->nodes[i].id);
}
