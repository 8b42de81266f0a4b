/* attn_node/expert_peers.c - see peers.h. */
#include "attn_node/expert_peers.h"

#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

enum {
    MAX_CALLS = 1024, /* open at a time per node; more wait in gather */
    SILENT_PARCELS = 3,
};
#define FRESH_NS (1 * CLOCK_S)
#define PROBE_DEADLINE_NS (1 * CLOCK_S)
#define PROBE_PAUSE_NS (50 * CLOCK_MS)
#define PROBE_PAUSE_MAX_NS (1 * CLOCK_S)

static void free_peer(struct expert_peer *p)
{
    if (p->channel)
        channel_close(&p->channel);
    mem_free(p);
}

void expert_peers_free(struct expert_peers *ps)
{
    for (int i = 0; i < ps->n; i++)
        if (ps->items[i])
            free_peer(ps->items[i]);
    mem_free(ps->items);
    mem_free(ps->channels);
    *ps = (struct expert_peers){0};
}

/* The peer of the same process at the same address, taken out of the old ones. */
static struct expert_peer *keep_peer(struct expert_peers *old, const struct wire_table_node *n,
                                     int *index)
{
    for (int i = 0; i < old->n; i++) {
        struct expert_peer *p = old->items[i];
        if (!p || p->incarnation != n->incarnation || strcmp(p->endpoint, n->endpoint))
            continue;
        old->items[i] = NULL;
        *index = i;
        return p;
    }
    return NULL;
}

static struct expert_peer *open_peer(const struct wire_table_node *n, struct auth *auth)
{
    struct expert_peer *p = mem_alloc(sizeof(*p));
    p->incarnation = n->incarnation;
    p->opened_ns = clock_now_ns();
    memcpy(p->endpoint, n->endpoint, sizeof(p->endpoint));
    struct err e = {0};
    struct channel_options o = {.endpoint = n->endpoint,
                                .peer_name = n->name,
                                .max_calls = MAX_CALLS,
                                .auth = auth,
                                .server_key = n->public_key};
    if (channel_open(&o, &p->channel, &e) < 0)
        log_error("peer.refused", "peer=%s why=%s", log_quote(n->name).text,
                  log_quote(e.text).text);
    return p;
}

void expert_peers_install(struct expert_peers *ps, const struct wire_table *t, int32_t *moved,
                          struct expert_peers *gone)
{
    struct expert_peers old = *ps;
    for (int i = 0; moved && i < old.n; i++)
        moved[i] = -1;
    ps->n = (int)t->n_nodes;
    ps->items = mem_array(t->n_nodes + 1, sizeof(*ps->items));
    ps->channels = mem_array(t->n_nodes + 1, sizeof(*ps->channels));
    ps->n_channels = 0;
    for (int i = 0; i < ps->n; i++) {
        const struct wire_table_node *n = &t->nodes[i];
        int was = -1;
        struct expert_peer *p = keep_peer(&old, n, &was);
        if (p && moved)
            moved[was] = i;
        if (!p)
            p = open_peer(n, ps->auth);
        p->node_id = n->node_id;
        memcpy(p->name, n->name, sizeof(p->name));
        ps->items[i] = p;
        if (p->channel)
            ps->channels[ps->n_channels++] = p->channel;
    }
    *gone = old;
}

enum standing expert_peer_standing(const struct expert_peer *p)
{
    if (!p->channel || p->is_banned || !channel_is_connected(p->channel))
        return STANDING_AWAY;
    return p->is_suspect ? STANDING_DOUBTFUL : STANDING_GOOD;
}

bool expert_peer_is_broken(const struct expert_peer *p)
{
    return p->channel && p->was_connected && !channel_is_connected(p->channel);
}

bool expert_peer_is_fresh(const struct expert_peer *p, int64_t now_ns)
{
    return p->channel && !p->was_connected && now_ns < p->opened_ns + FRESH_NS;
}

void expert_peer_suspect(struct expert_peer *p, const char *why)
{
    if (p->is_suspect)
        return;
    p->is_suspect = true;
    p->next_probe_ns = 0;
    p->probe_pause_ns = PROBE_PAUSE_NS;
    log_warn("peer.suspect", "peer=%s why=%s", log_quote(p->name).text, log_quote(why).text);
}

static int64_t n_heard(const struct expert_peer *p)
{
    struct channel_counters counters;
    channel_count(p->channel, &counters);
    return counters.replies + counters.late_replies;
}

bool expert_peer_outrun(struct expert_peer *p, int64_t late_ns, int64_t now_ns)
{
    int64_t heard = n_heard(p);
    if (p->silence.n == 0 || p->silence.n_heard != heard) {
        p->silence.n = 0;
        p->silence.n_heard = heard;
        p->silence.late_ns = late_ns;
    }
    p->silence.n++;
    /* One alone may be a server's that heard of the cancelling first and did not answer. */
    if (p->is_suspect || p->silence.n < SILENT_PARCELS || now_ns < p->silence.late_ns)
        return false;
    expert_peer_suspect(p, "no answer in time, others were quicker");
    return true;
}

void expert_peer_ban(struct expert_peer *p, const char *why)
{
    p->wrongs++;
    if (!p->is_banned)
        log_error("peer.wrong", "peer=%s why=%s", log_quote(p->name).text, log_quote(why).text);
    p->is_banned = true;
}

static void on_probe(void *ud, const struct reply *r)
{
    struct expert_peer *p = ud;
    p->is_probed = false;
    if (r->code == 0) {
        p->is_suspect = false;
        log_warn("peer.well", "peer=%s", log_quote(p->name).text);
        return;
    }
    p->next_probe_ns = clock_now_ns() + p->probe_pause_ns;
    if (p->probe_pause_ns < PROBE_PAUSE_MAX_NS)
        p->probe_pause_ns *= 2;
}

static void send_probe(struct expert_peer *p, int64_t now_ns)
{
    struct call call = {.method = wire_method(WIRE_EXPERT, EXPERT_DESCRIBE),
                        .deadline_ns = now_ns + PROBE_DEADLINE_NS,
                        .done = on_probe,
                        .ud = p};
    p->is_probed = channel_call(p->channel, &call, NULL) == 0;
    if (!p->is_probed)
        p->next_probe_ns = now_ns + PROBE_PAUSE_NS;
}

int64_t expert_peers_mind(struct expert_peers *ps, int64_t now_ns)
{
    int64_t again_ns = CLOCK_NEVER;
    for (int i = 0; i < ps->n; i++) {
        struct expert_peer *p = ps->items[i];
        bool is_connected = p->channel && channel_is_connected(p->channel);
        if (p->was_connected && !is_connected)
            expert_peer_suspect(p, "the connection broke");
        /* Stays set for a peer that was connected once: it is no longer fresh. */
        p->was_connected |= is_connected;
        if (!p->is_suspect || p->is_probed || !is_connected)
            continue;
        if (now_ns >= p->next_probe_ns)
            send_probe(p, now_ns);
        if (!p->is_probed && p->next_probe_ns < again_ns)
            again_ns = p->next_probe_ns;
    }
    return again_ns;
}
