/* attn_node/expert_peers.h - the expert nodes as the engine thread sees them: a channel to each, how
 * fast it usually is, and whether it is trusted to answer now (steps 9 and 11; cluster.md 2).
 *
 * A node that let a deadline pass, or whose connection broke, is suspect: it is asked nothing
 * that somebody else can do until it has answered a probe (Describe).  So is one that has not said a
 * word since before that deadline where others were quicker each time: hedges would hide that it
 * is silent, and each would wait longer than the one before.  A node that gave a
 * wrong answer is banned: it is asked nothing until it comes back as a new process.
 *
 * Owner: engine thread.  Log events: peer.refused, peer.suspect, peer.well, peer.wrong. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "attn_node/choice.h"
#include "attn_node/pace.h"
#include "base/err.h"
#include "rpc/channel.h"
#include "rpc/wire.h"

struct expert_peer {
    uint32_t node_id;
    uint64_t incarnation;
    char name[WIRE_NAME_BYTES], endpoint[LINK_ENDPOINT_BYTES];
    struct channel *channel; /* NULL if the endpoint is unusable */
    struct pace pace;
    int64_t opened_ns;
    bool was_connected; /* ever, or when last looked at */
    bool is_suspect, is_banned, is_probed;
    bool is_told_broken; /* the owner of the peers has been told that the connection broke */
    int64_t next_probe_ns, probe_pause_ns;
    struct {
        int64_t n_heard; /* of the channel's answers, when the first of them was given up */
        int n;           /* parcels since then that others answered first; 0: none */
        int64_t late_ns; /* when the first of them should have been answered */
    } silence;
    uint64_t failovers;               /* parcels that were asked elsewhere because of it */
    uint64_t lates;                   /* of these, because of a deadline */
    uint64_t wrongs;                  /* answers that were wrong */
    struct wire_node_traffic traffic; /* since it was told last */
    uint64_t failovers_told;
};

struct expert_peers {
    struct expert_peer **items; /* [n], as the table numbers the nodes */
    int n;
    struct channel **channels; /* [n_channels] those that are open */
    int n_channels;
    struct auth *auth; /* borrowed; NULL: no keys */
};

void expert_peers_free(struct expert_peers *ps);
/* Dials the nodes of a table.  A node that stays (same endpoint, same incarnation) keeps its
 * peer; `moved` ([old n], may be NULL) gets the new number of each old peer, or -1.  The peers
 * that go are left in `gone`: expert_peers_free() it when nobody names them any more. */
void expert_peers_install(struct expert_peers *ps, const struct wire_table *t, int32_t *moved,
                          struct expert_peers *gone);

enum standing expert_peer_standing(const struct expert_peer *p);
/* There was a connection, and there is none. */
bool expert_peer_is_broken(const struct expert_peer *p);
/* Not connected yet, but dialled so recently that it may be soon. */
bool expert_peer_is_fresh(const struct expert_peer *p, int64_t now_ns);
/* A deadline passed or a call failed. */
void expert_peer_suspect(struct expert_peer *p, const char *why);
/* Another node was quicker with a parcel that this one should have answered by late_ns, and its
 * answer is not waited for.  true if the node has become suspect by it. */
bool expert_peer_outrun(struct expert_peer *p, int64_t late_ns, int64_t now_ns);
void expert_peer_ban(struct expert_peer *p, const char *why);
/* Looks at the connections and sends the probes that are due; returns when to come again. */
int64_t expert_peers_mind(struct expert_peers *ps, int64_t now_ns);
