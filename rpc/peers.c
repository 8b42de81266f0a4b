/* rpc/peers.c - see peers.h. */
#include "rpc/peers.h"

#include <string.h>

#include "base/mem.h"
#include "base/must.h"

enum { BUCKETS = 512 };

struct peers {
    struct peer *buckets[BUCKETS];
    struct peer *records, *unused; /* [capacity]; chained by `next` */
    int capacity, n_touched, n;
};

struct peers *peers_new(int max_open)
{
    struct peers *p = mem_alloc(sizeof(*p));
    p->capacity = PEERS_MAX_IDLE + max_open;
    p->records = mem_array((size_t)p->capacity, sizeof(*p->records));
    return p;
}

void peers_free(struct peers **peers)
{
    struct peers *p = *peers;
    if (!p)
        return;
    *peers = NULL;
    mem_free(p->records);
    mem_free(p);
}

/* libzmq numbers its peers, so the last bytes differ. */
static unsigned bucket_of(const uint8_t *id, size_t bytes)
{
    unsigned h = 0;
    for (size_t i = 0; i < bytes; i++)
        h = h * 31 + id[i];
    return h % BUCKETS;
}

static void forget_idle(struct peers *p)
{
    for (int i = 0; i < BUCKETS; i++)
        for (struct peer **at = &p->buckets[i]; *at;) {
            struct peer *peer = *at;
            if (peer->n_open > 0) {
                at = &peer->next;
                continue;
            }
            *at = peer->next;
            peer->next = p->unused;
            p->unused = peer;
            p->n--;
        }
}

/* A record that nobody has; there is one, because those with open calls do not take all. */
static struct peer *take(struct peers *p)
{
    if (p->n == p->capacity)
        forget_idle(p);
    struct peer *peer = p->unused;
    if (peer)
        p->unused = peer->next;
    else
        peer = &p->records[p->n_touched++];
    must(p->n < p->capacity && p->n_touched <= p->capacity);
    p->n++;
    *peer = (struct peer){0};
    return peer;
}

struct peer *peers_of(struct peers *p, const struct message *m)
{
    unsigned bucket = bucket_of(m->peer, m->peer_bytes);
    for (struct peer *at = p->buckets[bucket]; at; at = at->next)
        if (at->id_bytes == m->peer_bytes && memcmp(at->id, m->peer, m->peer_bytes) == 0)
            return at;
    struct peer *peer = take(p);
    memcpy(peer->id, m->peer, m->peer_bytes);
    peer->id_bytes = m->peer_bytes;
    const char *key = message_key(m);
    if (key_is_valid(key))
        memcpy(peer->key, key, KEY_TEXT_BYTES);
    peer->next = p->buckets[bucket];
    p->buckets[bucket] = peer;
    return peer;
}

bool peer_is_allowed(struct peer *peer, const struct auth *a)
{
    uint64_t generation = auth_generation(a);
    if (!peer->is_known || peer->generation != generation) {
        peer->is_allowed = peer->key[0] && auth_allows(a, peer->key, NULL);
        peer->generation = generation;
        peer->is_known = true;
    }
    return peer->is_allowed;
}

int peers_count(const struct peers *p)
{
    return p->n;
}
