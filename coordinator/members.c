/* coordinator/members.c - see members.h.
 *
 * The list is short (at most WIRE_MAX_NODES, usually tens) and changes at human speed, so
 * every look-up is a walk. */
#include "coordinator/members.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "base/version.h"

/* Entries of the dead that are kept for show. */
enum { MEMBERS_MAX_GONE = 64 };

void members_init(struct members *m, const struct members_config *c)
{
    *m = (struct members){.config = *c};
}

void members_fini(struct members *m)
{
    for (int i = 0; i < m->n_nodes; i++)
        mem_free(m->nodes[i]);
    mem_free(m->nodes);
    *m = (struct members){0};
}

struct node *members_find(const struct members *m, uint32_t id)
{
    for (int i = 0; i < m->n_nodes; i++)
        if (m->nodes[i]->id == id && m->nodes[i]->state != NODE_GONE)
            return m->nodes[i];
    return NULL;
}

struct node *members_find_name(const struct members *m, const char *name)
{
    for (int i = 0; i < m->n_nodes; i++)
        if (m->nodes[i]->state != NODE_GONE && strcmp(m->nodes[i]->join.name, name) == 0)
            return m->nodes[i];
    return NULL;
}

int members_count(const struct members *m, enum node_role role)
{
    int n = 0;
    for (int i = 0; i < m->n_nodes; i++)
        n += m->nodes[i]->join.role == role && m->nodes[i]->state != NODE_GONE;
    return n;
}

static struct node *find_name(const struct members *m, const char *name)
{
    for (int i = 0; i < m->n_nodes; i++)
        if (strcmp(m->nodes[i]->join.name, name) == 0)
            return m->nodes[i];
    return NULL;
}

static int check_same_model(const struct members_config *c, const struct wire_join *j,
                            struct err *e)
{
    if (j->protocol_version != POLYMATH_PROTOCOL_VERSION)
        return err_set(e, E_PRECONDITION, "protocol_version: %s speaks %u, the coordinator %d",
                       j->name, j->protocol_version, POLYMATH_PROTOCOL_VERSION);
    if (j->fingerprint != c->fingerprint)
        return err_set(e, E_PRECONDITION,
                       "fingerprint: %s has another model (%016" PRIx64
                       ") than the coordinator (%016" PRIx64 ")",
                       j->name, j->fingerprint, c->fingerprint);
    if (!format_set_equal(&j->formats, &c->formats)) {
        char theirs[FORMAT_SET_BYTES], ours[FORMAT_SET_BYTES];
        return err_set(e, E_PRECONDITION, "weights.format: %s uses %s, the coordinator %s", j->name,
                       format_set_text(&j->formats, theirs), format_set_text(&c->formats, ours));
    }
    if (j->combine != c->combine)
        return err_set(e, E_PRECONDITION, "weights.combine: %s uses %s, the coordinator %s",
                       j->name, combine_name(j->combine), combine_name(c->combine));
    return 0;
}

static int count_gone(const struct members *m)
{
    int n = 0;
    for (int i = 0; i < m->n_nodes; i++)
        n += m->nodes[i]->state == NODE_GONE;
    return n;
}

static void forget_oldest_gone(struct members *m)
{
    int oldest = -1;
    for (int i = 0; i < m->n_nodes; i++)
        if (m->nodes[i]->state == NODE_GONE &&
            (oldest < 0 || m->nodes[i]->seen_ns < m->nodes[oldest]->seen_ns))
            oldest = i;
    if (oldest < 0)
        return;
    mem_free(m->nodes[oldest]);
    m->nodes[oldest] = m->nodes[--m->n_nodes];
}

static struct node *add_entry(struct members *m)
{
    if (m->n_nodes == m->room) {
        m->room = m->room ? 2 * m->room : 16;
        m->nodes = mem_resize(m->nodes, (size_t)m->room * sizeof *m->nodes);
    }
    return m->nodes[m->n_nodes++] = mem_alloc(sizeof(struct node));
}

int members_join(struct members *m, const struct wire_join *j, int64_t now_ns,
                 struct members_joined *out, struct err *e)
{
    *out = (struct members_joined){0};
    int rc = check_same_model(&m->config, j, e);
    if (rc < 0)
        return rc;
    struct node *n = find_name(m, j->name);
    if (n && n->state != NODE_GONE) {
        if (n->join.incarnation == j->incarnation) {
            n->seen_ns = now_ns;
            out->node = n;
            return 0;
        }
        bool same_address = strcmp(n->join.endpoint, j->endpoint) == 0 &&
                            strcmp(n->join.host, j->host) == 0 && n->join.role == j->role &&
                            strcmp(n->join.public_key, j->public_key) == 0;
        if (!same_address)
            return err_set(e, E_EXISTS, "name \"%s\" is in use by a live node (pid %u on %s)",
                           j->name, n->join.pid, n->join.host);
        out->gone_id = n->id;
    }
    if (!n) {
        if (count_gone(m) > MEMBERS_MAX_GONE || m->n_nodes >= WIRE_MAX_NODES)
            forget_oldest_gone(m);
        if (m->n_nodes >= WIRE_MAX_NODES)
            return err_set(e, E_BUSY, "the cluster has %d nodes already", WIRE_MAX_NODES);
        n = add_entry(m);
    }
    *n = (struct node){.join = *j,
                       .id = ++m->last_id,
                       .state = NODE_JOINING,
                       .joined_ns = now_ns,
                       .seen_ns = now_ns};
    out->node = n;
    out->is_new = true;
    return 0;
}

int members_heartbeat(struct members *m, const struct wire_heartbeat *h, int64_t now_ns,
                      struct node **out)
{
    struct node *n = members_find(m, h->node_id);
    *out = n;
    if (!n || n->join.incarnation != h->incarnation)
        return E_NOT_FOUND;
    n->seen_ns = now_ns;
    /* Being gone is ours to say; a node says it with Leave. */
    if (h->state != NODE_GONE)
        n->state = h->state;
    n->last = *h;
    return 0;
}

int members_leave(struct members *m, const struct wire_leave *l, struct node **out)
{
    struct node *n = members_find(m, l->node_id);
    *out = n;
    if (!n || n->join.incarnation != l->incarnation)
        return E_NOT_FOUND;
    n->state = NODE_GONE;
    return 0;
}

void members_extend(struct members *m, int64_t by_ns)
{
    for (int i = 0; i < m->n_nodes; i++)
        m->nodes[i]->seen_ns += by_ns;
}

/* An attention side says that its connection to this process broke. */
static bool is_missed(const struct members *m, const struct node *n)
{
    for (int i = 0; i < m->n_nodes; i++) {
        const struct node *side = m->nodes[i];
        if (side->join.role != NODE_ATTENTION || side->state == NODE_GONE)
            continue;
        for (uint32_t k = 0; k < side->last.n_broken; k++)
            if (side->last.broken[k] == n->join.incarnation)
                return true;
    }
    return false;
}

/* A process whose connection broke and whose next heartbeat did not come has died.  One that lives
 * says so in time, or joins again with the next heartbeat and is asked on. */
static bool has_died(const struct members *m, const struct node *n, int64_t now_ns)
{
    int64_t missed_ns = m->config.missed_ns;
    return n->join.role != NODE_ATTENTION && missed_ns > 0 && now_ns - n->seen_ns > missed_ns &&
           is_missed(m, n);
}

struct node *members_expire(struct members *m, int64_t now_ns)
{
    for (int i = 0; i < m->n_nodes; i++) {
        struct node *n = m->nodes[i];
        if (n->state == NODE_GONE)
            continue;
        n->is_missed = has_died(m, n, now_ns);
        if (n->is_missed || now_ns - n->seen_ns > m->config.lease_ns) {
            n->state = NODE_GONE;
            return n;
        }
    }
    return NULL;
}

/* ---- trust ----------------------------------------------------------------------------- */

static void distrust(struct node *n, enum node_trust trust, uint64_t epoch, int64_t now_ns)
{
    bool is_old = now_ns - n->distrusted_ns > MEMBERS_PAUSE_MAX_NS;
    if (n->pause_ns == 0 || is_old)
        n->pause_ns = MEMBERS_PAUSE_NS;
    else if (n->pause_ns < MEMBERS_PAUSE_MAX_NS)
        n->pause_ns *= 2;
    n->trust = trust;
    n->distrusted_ns = now_ns;
    n->until_ns = now_ns + n->pause_ns;
    n->doubted_ns = 0;
    n->trust_epoch = epoch + 1; /* of the table that follows from this */
    n->test = n->trust_epoch;   /* grows, also from coordinator to coordinator */
}

bool members_judge(struct members *m, const struct members_opinion *o, int64_t now_ns)
{
    struct node *n = members_find(m, o->node_id);
    if (!n || n->join.role != NODE_EXPERT || n->join.incarnation != o->incarnation ||
        o->side_epoch < n->trust_epoch)
        return false;
    if (o->is_wrong && n->trust != NODE_QUARANTINED) {
        distrust(n, NODE_QUARANTINED, o->epoch, now_ns);
        return true;
    }
    if (!o->is_silent) {
        n->doubted_ns = 0;
        return false;
    }
    if (n->doubted_ns == 0)
        n->doubted_ns = now_ns;
    if (n->trust != NODE_TRUSTED || now_ns - n->doubted_ns < MEMBERS_PATIENCE_NS)
        return false;
    distrust(n, NODE_SUSPECT, o->epoch, now_ns);
    return true;
}

struct node *members_forgive(struct members *m, uint64_t epoch, int64_t now_ns)
{
    for (int i = 0; i < m->n_nodes; i++) {
        struct node *n = m->nodes[i];
        if (n->state == NODE_GONE || n->trust == NODE_TRUSTED || now_ns < n->until_ns ||
            n->last.tested < n->test)
            continue;
        n->trust = NODE_TRUSTED;
        n->doubted_ns = 0;
        n->trust_epoch = epoch + 1;
        return n;
    }
    return NULL;
}
