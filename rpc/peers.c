/* rpc/peers.c - see peers.h. */
#include "rpc/peers.h"

#include <string.h>

#include "base/mem.h"

enum { BUCKETS = 512 };

struct peers {
    struct peer *buckets[BUCKETS];
    int n;
};

struct peers *peers_new(void)
{
    return mem_alloc(sizeof(struct peers));
}

void peers_free(struct peers **peers)
{
    struct peers *p = *peers;
    if (!p)
        return;
    *peers = NULL;
    for (int i = 0; i < BUCKETS; i++)
        for (struct peer *at = p->buckets[i], *next; at; at = next) {
            next = at->next;
            mem_free(at);
        }
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
            mem_free(peer);
            p->n--;
        }
}

struct peer *peers_of(struct peers *p, const struct message *m)
{
    unsigned bucket = bucket_of(m->peer, m->peer_bytes);
    for (struct peer *at = p->buckets[bucket]; at; at = at->next)
        if (at->id_bytes == m->peer_bytes && memcmp(at->id, m->peer, m->peer_bytes) == 0)
            return at;
    if (p->n >= PEERS_MAX_IDLE)
        forget_idle(p);
    struct peer *peer = mem_alloc(sizeof(*peer));
    memcpy(peer->id, m->peer, m->peer_bytes);
    peer->id_bytes = m->peer_bytes;
    const char *key = message_key(m);
    if (key_is_valid(key))
        memcpy(peer->key, key, KEY_TEXT_BYTES);
    peer->next = p->buckets[bucket];
    p->buckets[bucket] = peer;
    p->n++;
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
