/* rpc/member.h - a node's side of membership: join, heartbeat, epoch, leave.
 *
 * A node dials the coordinator, joins, and sends heartbeats.  A heartbeat's reply carries
 * the newest epoch and holdings version; when one of them is newer than what the node
 * has, the member pulls it (Cluster/Table for attention sides, Cluster/Holdings for
 * expert nodes; context nodes need neither) and hands it over.  Pull, because then only nodes dial the coordinator
 * (NAT, start order) and a lost message repeats by itself with the next heartbeat.
 * When the coordinator is away or has forgotten the node, the member joins again for ever.
 *
 * Owner: the control thread, whose loop it lives on.  Log events: member.joined,
 * member.refused, member.lost. */
#pragma once

#include "base/err.h"
#include "rpc/loop.h"
#include "rpc/wire.h"

struct member;

enum { MEMBER_MAX_ENDPOINTS = 8 };

struct member_options {
    /* Where the coordinator is, or its standbys are: several with commas between.  The member goes
     * on to the next when one does not answer. */
    const char *coordinator_endpoint;
    /* Keys of this process (rpc/auth.h), which know the coordinator's; borrowed; NULL: none.
     * The member of an expert or context node tells them whom the coordinator names as callers. */
    struct auth *auth;
    /* protocol_version and public_key are filled in by the member, and incarnation if 0 */
    struct wire_join join;
    /* New state to take over; borrowed for the call.  Only the one of the role is set.
     * After every (new) join it is handed over again, also if it has not changed. */
    void (*on_holdings)(void *ud, const struct wire_holdings *h);
    void (*on_table)(void *ud, const struct wire_table *t);
    /* Optional: what a heartbeat's answer says. */
    void (*on_orders)(void *ud, const struct wire_heartbeat_reply *r);
    /* The coordinator refuses this node for good (another model, another version): the
     * program should end with `e`.  Runs once, inside a callback of the loop: stop the loop
     * there and close the member afterwards.  A name in use is not for good: it is mostly
     * the lease of a dead predecessor. */
    void (*on_refused)(void *ud, const struct err *e);
    void *ud;
};

int member_open(struct loop *l, const struct member_options *o, struct member **out, struct err *e);
/* Says Leave (best effort, at most 200 ms) and closes. */
void member_close(struct member **m, const char *reason);
/* What the next heartbeats say; changes of state, epoch, holdings_version, tested, kv_pages or
 * the broken are sent at once. */
struct member_report {
    enum node_state state;
    uint64_t epoch, holdings_version;
    uint32_t experts_held, experts_wanted;
    uint64_t held_bytes, tested;
    uint32_t n_broken;
    uint64_t broken[WIRE_MAX_BROKEN]; /* as in struct wire_heartbeat */
    uint32_t kv_pages;                /* likewise */
};
void member_report(struct member *m, const struct member_report *r);
uint32_t member_node_id(const struct member *m); /* 0 while not joined */
/* false: whoever was the coordinator is not there now. */
bool member_is_connected(const struct member *m);
/* An attention side's router counts, [n_layers][n_experts]; best effort. */
void member_send_load(struct member *m, uint32_t n_layers, uint32_t n_experts,
                      const uint16_t *counts);
