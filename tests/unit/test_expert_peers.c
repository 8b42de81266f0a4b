/* tests/unit/test_expert_peers.c - when a node that others are quicker than is taken for silent. */
#include "attn_node/expert_peers.h"

#include <string.h>

#include "base/clock.h"
#include "tests/lib/test.h"
#include "tests/unit/rpc_echo.h"

struct world {
    struct rpc_echo *server;
    struct expert_peers peers;
    struct expert_peer *peer;
};

static void open_world(struct world *w)
{
    struct wire_table_node node = {.node_id = 1, .incarnation = 7, .name = "expert", .max_rows = 8};
    struct wire_table table = {.n_nodes = 1, .nodes = &node};
    *w = (struct world){.server = rpc_echo_start("ipc://echo.sock", 1 << 16)};
    strcpy(node.endpoint, rpc_echo_endpoint(w->server));
    struct expert_peers gone;
    expert_peers_install(&w->peers, &table, NULL, &gone);
    expert_peers_free(&gone);
    w->peer = w->peers.items[0];
    int64_t deadline_ns = clock_now_ns() + 10 * CLOCK_S;
    while (!channel_is_connected(w->peer->channel) && clock_now_ns() < deadline_ns)
        channel_wait(w->peers.channels, 1, -1, clock_now_ns() + 10 * CLOCK_MS, 0);
    CHECK(expert_peer_standing(w->peer) == STANDING_GOOD);
}

static void close_world(struct world *w)
{
    expert_peers_free(&w->peers);
    rpc_echo_stop(&w->server);
}

static void on_answer(void *ud, const struct reply *r)
{
    *(bool *)ud = true;
    CHECK_INT(r->code, 0);
}

static void hear_of_it(struct world *w)
{
    bool is_answered = false;
    struct buf message = {0};
    buf_puts(&message, "echo");
    struct call call = {.method = "polymath.v1.Expert/Forward",
                        .message = &message,
                        .deadline_ns = clock_now_ns() + 10 * CLOCK_S,
                        .done = on_answer,
                        .ud = &is_answered};
    CHECK_INT(channel_call(w->peer->channel, &call, NULL), 0);
    while (!is_answered)
        channel_wait(w->peers.channels, 1, -1, clock_now_ns() + CLOCK_S, 0);
    buf_fini(&message);
}

/* Others win every time, so that no parcel of it is ever late; what it says is that it is silent. */
TEST(expert_peers_suspect_whom_hedges_would_hide)
{
    struct world w;
    open_world(&w);
    for (int i = 0; i < 50; i++) /* before the first one's deadline nothing is known */
        CHECK(!expert_peer_outrun(w.peer, 1000 + i, 999));
    CHECK(expert_peer_outrun(w.peer, 2000, 1000));
    CHECK(expert_peer_standing(w.peer) == STANDING_DOUBTFUL);
    CHECK(!expert_peer_outrun(w.peer, 2000, 3000)); /* that is known already */
    close_world(&w);
}

TEST(expert_peers_trust_who_is_slow_but_answers)
{
    struct world w;
    open_world(&w);
    for (int i = 0; i < 20; i++) {
        CHECK(!expert_peer_outrun(w.peer, 1000, 2000));
        CHECK(!expert_peer_outrun(w.peer, 1000, 2000));
        hear_of_it(&w);
    }
    CHECK(expert_peer_standing(w.peer) == STANDING_GOOD);
    close_world(&w);
}
