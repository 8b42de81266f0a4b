/* attn_node/moe_remote_nodes.c - the table of who holds what, what is known of its nodes, and what is
 * told of them to others.  See moe_remote_state.h. */
#include "attn_node/moe_remote_state.h"

#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "rpc/channel.h"

_Static_assert((int)ROUND_NO_HOLDER == (int)WIRE_NO_HOLDER, "the table is used as it came");

/* ---- the table ----------------------------------------------------------------------- */

struct wire_table *moe_remote_copy_table(const struct wire_table *t)
{
    size_t n_holders = (size_t)t->n_layers * t->n_experts * t->n_replicas;
    size_t nodes_bytes = t->n_nodes * sizeof(*t->nodes);
    size_t contexts_bytes = t->n_contexts * sizeof(*t->contexts);
    char *at =
        mem_alloc(sizeof(*t) + nodes_bytes + contexts_bytes + n_holders * sizeof(*t->holders));
    struct wire_table *copy = (void *)at;
    struct wire_table_node *nodes = (void *)(at + sizeof(*t));
    struct wire_table_context *contexts = (void *)(at + sizeof(*t) + nodes_bytes);
    uint16_t *holders = (void *)(at + sizeof(*t) + nodes_bytes + contexts_bytes);
    if (t->n_nodes > 0)
        memcpy(nodes, t->nodes, nodes_bytes);
    if (t->n_contexts > 0)
        memcpy(contexts, t->contexts, contexts_bytes);
    if (n_holders > 0)
        memcpy(holders, t->holders, n_holders * sizeof(*holders));
    *copy = *t;
    copy->nodes = nodes;
    copy->contexts = contexts;
    copy->holders = holders;
    return copy;
}

static int check_table(const struct moe_remote *m, const struct wire_table *t, struct err *e)
{
    if (t->n_layers != (uint32_t)m->options.n_layers ||
        t->n_experts != (uint32_t)m->options.n_experts)
        return err_set(e, E_INVALID, "table of %u layers of %u experts, the model has %d of %d",
                       t->n_layers, t->n_experts, m->options.n_layers, m->options.n_experts);
    for (uint32_t i = 0; i < t->n_nodes; i++)
        if (t->nodes[i].max_rows == 0)
            return err_set(e, E_INVALID, "node %s takes no rows", t->nodes[i].name);
    return wire_table_check(t, e);
}

struct round_node *moe_remote_list_nodes(const struct moe_remote *m, const struct wire_table *t)
{
    struct round_node *nodes = mem_array(t->n_nodes + 1, sizeof(*nodes));
    uint64_t *speeds = mem_array(t->n_nodes + 1, sizeof(*speeds));
    int *costs = mem_array(t->n_nodes + 1, sizeof(*costs));
    for (uint32_t i = 0; i < t->n_nodes; i++)
        speeds[i] = t->nodes[i].read_bytes_s;
    choice_costs(speeds, (int)t->n_nodes, costs);
    uint32_t most = (uint32_t)m->options.max_rows;
    for (uint32_t i = 0; i < t->n_nodes; i++)
        nodes[i] = (struct round_node){
            .name = t->nodes[i].name,
            .max_rows = (int)(t->nodes[i].max_rows < most ? t->nodes[i].max_rows : most),
            .standing = expert_peer_standing(m->peers.items[i]),
            .cost = costs[i]};
    mem_free(costs);
    mem_free(speeds);
    return nodes;
}

static void change_round(struct moe_remote *m, int lane, const struct wire_table *t,
                         const struct round_node *nodes, const int32_t *moved)
{
    struct moe_lane *l = &m->lanes[lane];
    if (!l->is_under_way) {
        round_install(l->round, nodes, (int)t->n_nodes);
        return;
    }
    if (!moe_lane_is_going_on(l)) {
        l->has_old_nodes = true;
        return;
    }
    if (round_state(l->round) == ROUND_WAITING)
        moe_remote_cancel_calls(m, lane, MOE_ALL_CALLS);
    round_change(l->round, &(struct round_change){
                               .nodes = nodes,
                               .n_nodes = (int)t->n_nodes,
                               .moved = moved,
                               .holders = wire_table_holders(t, (uint32_t)round_layer(l->round), 0),
                               .n_replicas = (int)t->n_replicas});
}

int moe_remote_install(struct moe_remote *m, struct wire_table **table, struct err *e)
{
    struct wire_table *t = *table;
    *table = NULL;
    int rc = check_table(m, t, e);
    if (rc < 0) {
        log_error("moe.table_refused", "epoch=%" PRIu64 " why=%s", t->epoch,
                  log_quote(e ? e->text : err_text(rc)).text);
        mem_free(t);
        return rc;
    }
    struct expert_peers gone;
    int32_t *moved = mem_array((size_t)m->peers.n + 1, sizeof(*moved));
    expert_peers_install(&m->peers, t, moved, &gone);
    struct round_node *nodes = moe_remote_list_nodes(m, t);
    for (int i = 0; i < m->options.n_lanes; i++)
        change_round(m, i, t, nodes, moved);
    mem_free(nodes);
    mem_free(moved);
    expert_peers_free(&gone);
    mem_free(m->table);
    m->table = t;
    log_info("moe.table", "epoch=%" PRIu64 " nodes=%u", t->epoch, t->n_nodes);
    return 0;
}

uint64_t moe_remote_epoch(const struct moe_remote *m)
{
    return m->table ? m->table->epoch : 0;
}

/* ---- standing ------------------------------------------------------------------------ */

/* Whoever places experts shall not wait for a lease where a connection has broken. */
static void tell_broken(struct moe_remote *m)
{
    uint64_t broken[WIRE_MAX_BROKEN];
    uint32_t n = 0;
    bool has_changed = false;
    for (int i = 0; i < m->peers.n && n < WIRE_MAX_BROKEN; i++) {
        const struct expert_peer *p = m->peers.items[i];
        has_changed |= expert_peer_is_broken(p) != p->is_told_broken;
        if (expert_peer_is_broken(p))
            broken[n++] = p->incarnation;
    }
    if (!m->options.tell_broken || (!has_changed && n == m->n_told_broken) ||
        !m->options.tell_broken(m->options.ud, broken, n))
        return;
    m->n_told_broken = n;
    for (int i = 0; i < m->peers.n; i++)
        m->peers.items[i]->is_told_broken = expert_peer_is_broken(m->peers.items[i]);
}

int64_t moe_remote_mind_peers(struct moe_remote *m, int64_t now_ns)
{
    int64_t next_ns = expert_peers_mind(&m->peers, now_ns);
    tell_broken(m);
    return next_ns;
}

void moe_remote_take_standings(struct moe_remote *m, struct moe_lane *l, int64_t now_ns)
{
    uint32_t n_good = 0;
    for (int i = 0; i < m->peers.n; i++) {
        enum standing standing = expert_peer_standing(m->peers.items[i]);
        round_stand(l->round, i, standing);
        n_good += standing != STANDING_AWAY;
    }
    if (n_good > l->n_good)
        l->next_retry_ns = now_ns; /* whoever came may have what is nowhere */
    l->n_good = n_good;
}

/* Probes go on while the thread waits for work. */
void moe_remote_wait(struct moe_remote *m, int fd, int64_t deadline_ns)
{
    int64_t probe_ns = moe_remote_mind_peers(m, clock_now_ns());
    channel_wait(m->peers.channels, m->peers.n_channels, fd, earlier_ns(deadline_ns, probe_ns), 0);
}

/* ---- reports ------------------------------------------------------------------------- */

uint32_t moe_remote_node_health(const struct moe_remote *m, struct wire_node_health *out,
                                uint32_t most)
{
    static const enum wire_standing names[] = {[STANDING_GOOD] = WIRE_STANDING_GOOD,
                                               [STANDING_DOUBTFUL] = WIRE_STANDING_SUSPECT,
                                               [STANDING_AWAY] = WIRE_STANDING_AWAY};
    uint32_t n = 0;
    for (int i = 0; i < m->peers.n && n < most; i++) {
        const struct expert_peer *p = m->peers.items[i];
        struct wire_node_health h = {
            .node_id = p->node_id,
            .incarnation = p->incarnation,
            .standing = p->is_banned ? WIRE_STANDING_WRONG : names[expert_peer_standing(p)],
            .failovers = p->failovers,
            .lates = p->lates,
            .wrongs = p->wrongs,
            .usual_us = (uint64_t)(pace_usual_ns(&p->pace, m->options.top_k) / CLOCK_US)};
        if (h.standing != WIRE_STANDING_GOOD || h.failovers > 0 || h.wrongs > 0)
            out[n++] = h;
    }
    return n;
}

uint32_t moe_remote_take_traffic(struct moe_remote *m, struct wire_node_traffic *out, uint32_t most)
{
    uint32_t n = 0;
    for (int i = 0; i < m->peers.n && n < most; i++) {
        struct expert_peer *p = m->peers.items[i];
        struct wire_node_traffic *t = &p->traffic;
        t->failovers = p->failovers - p->failovers_told;
        if (t->sent_bytes == 0 && t->calls == 0 && t->failovers == 0)
            continue;
        t->node_id = p->node_id;
        t->incarnation = p->incarnation;
        out[n++] = *t;
        *t = (struct wire_node_traffic){0};
        p->failovers_told = p->failovers;
    }
    return n;
}
