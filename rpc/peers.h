/* rpc/peers.h - whom a server talks to: each peer's proven key and how many of its calls are
 * open.
 *
 * A ROUTER never says that a peer has gone, so idle records are forgotten when there are many:
 * a peer that comes back gets a new one.  The records are one block of memory: single ones that
 * stay, among the frames that come and go, would keep the heap from ever shrinking.
 * Owner: the server's thread. */
#pragma once

#include <stdbool.h>

#include "rpc/auth.h"
#include "rpc/link.h"

enum { PEERS_MAX_IDLE = 4096 };

struct peer {
    struct peer *next; /* of its bucket */
    uint8_t id[LINK_PEER_BYTES];
    size_t id_bytes;
    int n_open;               /* calls */
    char key[KEY_TEXT_BYTES]; /* "": the connection has no keys */
    uint64_t generation;      /* of the list that `is_allowed` comes from */
    bool is_allowed, is_known;
};

struct peers;
/* `max_open`: calls, of all peers together. */
struct peers *peers_new(int max_open);
void peers_free(struct peers **p);
/* The sender of a message; makes a record of a new one.  Valid while its n_open is not 0, or
 * until the next call here. */
struct peer *peers_of(struct peers *p, const struct message *m);
/* Looks at the list again if it has changed.  `a` is what the link was opened with. */
bool peer_is_allowed(struct peer *peer, const struct auth *a);
int peers_count(const struct peers *p);
