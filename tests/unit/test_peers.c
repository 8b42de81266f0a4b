/* tests/unit/test_peers.c - a server's peers: many that come once, few that stay. */
#include <string.h>

#include "rpc/peers.h"
#include "tests/lib/test.h"

static struct peer *peer_number(struct peers *p, uint32_t number)
{
    struct message m = {.peer_bytes = 5};
    memcpy(m.peer + 1, &number, sizeof number);
    return peers_of(p, &m);
}

/* As many as want may come: their number stays bounded, and who has a call open stays known. */
TEST(peers_that_are_idle_are_forgotten_and_those_with_calls_are_not)
{
    enum { MAX_OPEN = 3, ROUNDS = 4, CAME = ROUNDS * PEERS_MAX_IDLE };
    struct peers *p = peers_new(MAX_OPEN);
    struct peer *open[MAX_OPEN];
    for (uint32_t i = 0; i < MAX_OPEN; i++) {
        open[i] = peer_number(p, i);
        open[i]->n_open = 1;
    }
    int n_forgotten = 0;
    for (uint32_t i = MAX_OPEN; i < CAME; i++) {
        int before = peers_count(p);
        struct peer *peer = peer_number(p, i);
        CHECK_INT(peer->n_open, 0);
        CHECK(!peer->is_known);
        CHECK(peer_number(p, i) == peer);
        peer->is_known = true; /* what a record that is used again must not keep */
        n_forgotten += peers_count(p) < before;
        CHECK(peers_count(p) <= PEERS_MAX_IDLE + MAX_OPEN);
    }
    CHECK(n_forgotten >= ROUNDS - 1);
    for (uint32_t i = 0; i < MAX_OPEN; i++) {
        CHECK(peer_number(p, i) == open[i]);
        CHECK_INT(open[i]->n_open, 1);
    }
    peers_free(&p);
    CHECK(p == NULL);
}
