/* rpc/wire_cluster.c - membership and placement: struct <-> frames.
 *
 * Enumerations are one higher on the wire than in C: there 0 means "not said". */
#include <string.h>
#include <xxhash.h>

#include "base/mem.h"
#include "base/must.h"
#include "proto/cluster.pb-c.h"
#include "rpc/wire.h"
#include "rpc/wire_codec.h"

const char *node_role_name(enum node_role r)
{
    switch (r) {
    case NODE_EXPERT:
        return "expert";
    case NODE_ATTENTION:
        return "attention";
    case NODE_CONTEXT:
        return "context";
    }
    return "unknown";
}

const char *node_state_name(enum node_state s)
{
    switch (s) {
    case NODE_JOINING:
        return "joining";
    case NODE_LOADING:
        return "loading";
    case NODE_READY:
        return "ready";
    case NODE_DRAINING:
        return "draining";
    case NODE_GONE:
        return "gone";
    }
    return "unknown";
}

const char *node_trust_name(enum node_trust t)
{
    switch (t) {
    case NODE_TRUSTED:
        return "trusted";
    case NODE_SUSPECT:
        return "suspect";
    case NODE_QUARANTINED:
        return "quarantined";
    }
    return "unknown";
}

void wire_join_encode(const struct wire_join *m, struct buf *message)
{
    Polymath__V1__JoinRequest p;
    polymath__v1__join_request__init(&p);
    p.role = (Polymath__V1__NodeRole)(m->role + 1);
    p.name = wire_borrow(m->name);
    p.endpoint = wire_borrow(m->endpoint);
    p.host = wire_borrow(m->host);
    p.rack = wire_borrow(m->rack);
    p.pid = m->pid;
    p.threads = m->threads;
    p.incarnation = m->incarnation;
    p.protocol_version = m->protocol_version;
    p.fingerprint = m->fingerprint;
    char formats[FORMAT_SET_BYTES];
    p.format = wire_borrow(format_set_text(&m->formats, formats));
    p.combine = wire_borrow(combine_name(m->combine));
    p.kernels = wire_borrow(m->kernels);
    p.build = wire_borrow(m->build);
    p.memory_bytes = m->memory_bytes;
    p.expert_bytes = m->expert_bytes;
    p.max_rows = m->max_rows;
    p.public_key = wire_borrow(m->public_key);
    p.read_bytes_s = m->read_bytes_s;
    p.borrows = m->borrows;
    wire_pack(&p.base, message);
}

/* A key, or nothing. */
static int read_key(char out[KEY_TEXT_BYTES], const char *in, struct err *e)
{
    int rc = wire_text(out, KEY_TEXT_BYTES, in, "public_key", e);
    if (rc == 0 && out[0] && !key_is_valid(out))
        rc = wire_invalid(e, "public_key is not a key");
    return rc;
}

static int read_role(int on_wire, enum node_role *out, struct err *e)
{
    if (on_wire < NODE_EXPERT + 1 || on_wire > NODE_CONTEXT + 1)
        return wire_invalid(e, "unknown role %d", on_wire);
    *out = (enum node_role)(on_wire - 1);
    return 0;
}

static int read_join_texts(const Polymath__V1__JoinRequest *p, struct wire_join *out, struct err *e)
{
    int rc = wire_text(out->name, sizeof(out->name), p->name, "name", e);
    if (rc == 0)
        rc = wire_text(out->endpoint, sizeof(out->endpoint), p->endpoint, "endpoint", e);
    if (rc == 0)
        rc = wire_text(out->host, sizeof(out->host), p->host, "host", e);
    if (rc == 0)
        rc = wire_text(out->rack, sizeof(out->rack), p->rack, "rack", e);
    if (rc == 0)
        rc = wire_text(out->kernels, sizeof(out->kernels), p->kernels, "kernels", e);
    if (rc == 0)
        rc = wire_text(out->build, sizeof(out->build), p->build, "build", e);
    if (rc == 0)
        rc = read_key(out->public_key, p->public_key, e);
    if (rc == 0 && (!out->name[0] || !out->endpoint[0]))
        rc = wire_invalid(e, "name and endpoint must not be empty");
    return rc;
}

static int read_join(const Polymath__V1__JoinRequest *p, struct wire_join *out, struct err *e)
{
    int rc = read_role((int)p->role, &out->role, e);
    if (rc == 0)
        rc = read_join_texts(p, out, e);
    if (rc == 0)
        rc = wire_model_choices(p->format, p->combine, &out->formats, &out->combine, e);
    if (rc == 0 && p->incarnation == 0)
        rc = wire_invalid(e, "incarnation 0");
    out->pid = p->pid;
    out->threads = p->threads;
    out->incarnation = p->incarnation;
    out->protocol_version = p->protocol_version;
    out->fingerprint = p->fingerprint;
    out->memory_bytes = p->memory_bytes;
    out->expert_bytes = p->expert_bytes;
    out->max_rows = p->max_rows;
    out->read_bytes_s = p->read_bytes_s;
    out->borrows = p->borrows;
    return rc;
}

int wire_join_decode(struct str message, struct wire_join *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__JoinRequest *p =
        wire_unpack(&memory, &polymath__v1__join_request__descriptor, message, e);
    int rc = p ? read_join(p, out, e) : E_INVALID;
    wire_memory_fini(&memory);
    return rc;
}

void wire_join_reply_encode(const struct wire_join_reply *m, struct buf *message)
{
    Polymath__V1__JoinReply p;
    polymath__v1__join_reply__init(&p);
    p.node_id = m->node_id;
    p.epoch = m->epoch;
    p.heartbeat_ms = m->heartbeat_ms;
    p.lease_ms = m->lease_ms;
    wire_pack(&p.base, message);
}

int wire_join_reply_decode(struct str message, struct wire_join_reply *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__JoinReply *p =
        wire_unpack(&memory, &polymath__v1__join_reply__descriptor, message, e);
    int rc = p ? 0 : E_INVALID;
    if (p && (p->node_id == 0 || p->heartbeat_ms == 0 || p->lease_ms < p->heartbeat_ms))
        rc = wire_invalid(e, "node %u, heartbeat %u ms, lease %u ms", p->node_id, p->heartbeat_ms,
                          p->lease_ms);
    if (rc == 0)
        *out = (struct wire_join_reply){.node_id = p->node_id,
                                        .epoch = p->epoch,
                                        .heartbeat_ms = p->heartbeat_ms,
                                        .lease_ms = p->lease_ms};
    wire_memory_fini(&memory);
    return rc;
}

void wire_heartbeat_encode(const struct wire_heartbeat *m, struct buf *message)
{
    Polymath__V1__HeartbeatRequest p;
    polymath__v1__heartbeat_request__init(&p);
    p.node_id = m->node_id;
    p.incarnation = m->incarnation;
    p.state = (Polymath__V1__NodeState)(m->state + 1);
    p.epoch = m->epoch;
    p.holdings_version = m->holdings_version;
    p.experts_held = m->experts_held;
    p.experts_wanted = m->experts_wanted;
    p.held_bytes = m->held_bytes;
    p.tested = m->tested;
    p.n_broken = m->n_broken;
    p.broken = (uint64_t *)(uintptr_t)m->broken;
    p.kv_pages = m->kv_pages;
    wire_pack(&p.base, message);
}

int wire_heartbeat_decode(struct str message, struct wire_heartbeat *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__HeartbeatRequest *p =
        wire_unpack(&memory, &polymath__v1__heartbeat_request__descriptor, message, e);
    int rc = p ? 0 : E_INVALID;
    int state = p ? (int)p->state - 1 : 0;
    if (p && (state < NODE_JOINING || state > NODE_GONE))
        rc = wire_invalid(e, "unknown state %d", (int)p->state);
    if (rc == 0 && p->n_broken > WIRE_MAX_BROKEN)
        rc = wire_invalid(e, "broken: %zu nodes, at most %d", p->n_broken, WIRE_MAX_BROKEN);
    if (rc == 0)
        *out = (struct wire_heartbeat){.node_id = p->node_id,
                                       .incarnation = p->incarnation,
                                       .state = (enum node_state)state,
                                       .epoch = p->epoch,
                                       .holdings_version = p->holdings_version,
                                       .experts_held = p->experts_held,
                                       .experts_wanted = p->experts_wanted,
                                       .held_bytes = p->held_bytes,
                                       .tested = p->tested,
                                       .kv_pages = p->kv_pages,
                                       .n_broken = (uint32_t)p->n_broken};
    if (rc == 0 && p->n_broken > 0)
        memcpy(out->broken, p->broken, p->n_broken * sizeof(*out->broken));
    wire_memory_fini(&memory);
    return rc;
}

void wire_heartbeat_reply_encode(const struct wire_heartbeat_reply *m, struct buf *message)
{
    Polymath__V1__HeartbeatReply p;
    polymath__v1__heartbeat_reply__init(&p);
    p.epoch = m->epoch;
    p.holdings_version = m->holdings_version;
    p.callers_version = m->callers_version;
    p.drain = m->drain;
    p.restart = m->restart;
    p.may_leave = m->may_leave;
    p.test = m->test;
    wire_pack(&p.base, message);
}

int wire_heartbeat_reply_decode(struct str message, struct wire_heartbeat_reply *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__HeartbeatReply *p =
        wire_unpack(&memory, &polymath__v1__heartbeat_reply__descriptor, message, e);
    if (p)
        *out = (struct wire_heartbeat_reply){.epoch = p->epoch,
                                             .holdings_version = p->holdings_version,
                                             .callers_version = p->callers_version,
                                             .drain = p->drain,
                                             .restart = p->restart,
                                             .may_leave = p->may_leave,
                                             .test = p->test};
    wire_memory_fini(&memory);
    return p ? 0 : E_INVALID;
}

void wire_holdings_request_encode(const struct wire_holdings_request *m, struct buf *message)
{
    Polymath__V1__HoldingsRequest p;
    polymath__v1__holdings_request__init(&p);
    p.node_id = m->node_id;
    wire_pack(&p.base, message);
}

int wire_holdings_request_decode(struct str message, struct wire_holdings_request *out,
                                 struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__HoldingsRequest *p =
        wire_unpack(&memory, &polymath__v1__holdings_request__descriptor, message, e);
    if (p)
        out->node_id = p->node_id;
    wire_memory_fini(&memory);
    return p ? 0 : E_INVALID;
}

/* Layers times bytes per layer; both factors are checked first, so it fits easily. */
static size_t bitmap_bytes(uint32_t n_layers, uint32_t n_experts)
{
    return (size_t)n_layers * ((n_experts + 7) / 8);
}

static int check_grid(uint32_t n_layers, uint32_t n_experts, struct err *e)
{
    if (n_layers == 0 || n_layers > WIRE_MAX_LAYERS)
        return wire_invalid(e, "%u layers, 1 to %d are possible", n_layers, WIRE_MAX_LAYERS);
    if (n_experts == 0 || n_experts > WIRE_MAX_EXPERTS)
        return wire_invalid(e, "%u experts, 1 to %d are possible", n_experts, WIRE_MAX_EXPERTS);
    return 0;
}

static int check_payload(const struct frame *payloads, int n_payloads, size_t want_bytes,
                         struct err *e)
{
    if (n_payloads != 1)
        return wire_invalid(e, "%d payloads, expected 1", n_payloads);
    if (payloads[0].size_bytes != want_bytes)
        return wire_invalid(e, "payload has %zu bytes, expected %zu", payloads[0].size_bytes,
                            want_bytes);
    return 0;
}

void wire_holdings_encode(const struct wire_holdings *m, struct buf *message, struct blob **payload)
{
    must_zero(check_grid(m->n_layers, m->n_experts, NULL));
    Polymath__V1__HoldingsReply p;
    polymath__v1__holdings_reply__init(&p);
    p.version = m->version;
    p.n_layers = m->n_layers;
    p.n_experts = m->n_experts;
    wire_pack(&p.base, message);
    *payload = blob_copy(m->bitmap, bitmap_bytes(m->n_layers, m->n_experts));
}

int wire_holdings_decode(struct str message, const struct frame *payloads, int n_payloads,
                         struct wire_holdings *out, uint8_t **bitmap, struct err *e)
{
    memset(out, 0, sizeof(*out));
    *bitmap = NULL;
    struct wire_memory memory;
    wire_memory_init(&memory);
    int rc = E_INVALID;
    const Polymath__V1__HoldingsReply *p =
        wire_unpack(&memory, &polymath__v1__holdings_reply__descriptor, message, e);
    if (!p)
        goto out;
    rc = check_grid(p->n_layers, p->n_experts, e);
    if (rc < 0)
        goto out;
    size_t bytes = bitmap_bytes(p->n_layers, p->n_experts);
    rc = check_payload(payloads, n_payloads, bytes, e);
    if (rc < 0)
        goto out;
    *bitmap = mem_alloc(bytes);
    memcpy(*bitmap, payloads[0].data, bytes);
    *out = (struct wire_holdings){.version = p->version,
                                  .n_layers = p->n_layers,
                                  .n_experts = p->n_experts,
                                  .bitmap = *bitmap};
out:
    wire_memory_fini(&memory);
    return rc;
}

/* All factors are bounded, so it fits easily. */
static size_t n_places(const struct wire_table *t)
{
    return (size_t)t->n_layers * t->n_experts * t->n_replicas;
}

static int check_counts(const struct wire_table *t, struct err *e)
{
    int rc = check_grid(t->n_layers, t->n_experts, e);
    if (rc == 0 && t->n_nodes > WIRE_MAX_NODES)
        rc = wire_invalid(e, "%u nodes, at most %d are possible", t->n_nodes, WIRE_MAX_NODES);
    if (rc == 0 && t->n_contexts > WIRE_MAX_NODES)
        rc = wire_invalid(e, "%u contexts, at most %d are possible", t->n_contexts, WIRE_MAX_NODES);
    if (rc == 0 && (t->n_replicas == 0 || t->n_replicas > WIRE_MAX_REPLICAS))
        rc = wire_invalid(e, "%u replicas, 1 to %d are possible", t->n_replicas, WIRE_MAX_REPLICAS);
    return rc;
}

static int check_places(const uint16_t *places, uint32_t n, uint32_t n_nodes, struct err *e)
{
    for (uint32_t i = 0; i < n; i++) {
        if (places[i] == WIRE_NO_HOLDER)
            continue;
        if (places[i] >= n_nodes)
            return wire_invalid(e, "holder %u of %u nodes", places[i], n_nodes);
        if (i > 0 && places[i - 1] == WIRE_NO_HOLDER)
            return wire_invalid(e, "a holder behind the last");
        for (uint32_t k = 0; k < i; k++)
            if (places[k] == places[i])
                return wire_invalid(e, "holder %u twice for one expert", places[i]);
    }
    return 0;
}

int wire_table_check(const struct wire_table *t, struct err *e)
{
    int rc = check_counts(t, e);
    size_t n = rc == 0 ? n_places(t) : 0;
    for (size_t i = 0; i < n && rc == 0; i += t->n_replicas)
        rc = check_places(t->holders + i, t->n_replicas, t->n_nodes, e);
    return rc;
}

static void view_context(const struct wire_table_context *m, Polymath__V1__TableContext *p)
{
    polymath__v1__table_context__init(p);
    p->node_id = m->node_id;
    p->name = wire_borrow(m->name);
    p->endpoint = wire_borrow(m->endpoint);
    p->incarnation = m->incarnation;
    p->public_key = wire_borrow(m->public_key);
    p->borrower = m->borrower;
}

void wire_table_encode(const struct wire_table *m, struct buf *message, struct blob **payload)
{
    must_zero(wire_table_check(m, NULL));
    Polymath__V1__TableNode *items = mem_array(m->n_nodes, sizeof(*items));
    Polymath__V1__TableNode **pointers = mem_array(m->n_nodes, sizeof(Polymath__V1__TableNode *));
    for (uint32_t i = 0; i < m->n_nodes; i++) {
        polymath__v1__table_node__init(&items[i]);
        items[i].node_id = m->nodes[i].node_id;
        items[i].name = wire_borrow(m->nodes[i].name);
        items[i].endpoint = wire_borrow(m->nodes[i].endpoint);
        items[i].incarnation = m->nodes[i].incarnation;
        items[i].max_rows = m->nodes[i].max_rows;
        items[i].public_key = wire_borrow(m->nodes[i].public_key);
        items[i].read_bytes_s = m->nodes[i].read_bytes_s;
        pointers[i] = &items[i];
    }
    Polymath__V1__TableContext *contexts = mem_array(m->n_contexts, sizeof(*contexts));
    Polymath__V1__TableContext **context_pointers =
        mem_array(m->n_contexts, sizeof(Polymath__V1__TableContext *));
    for (uint32_t i = 0; i < m->n_contexts; i++) {
        view_context(&m->contexts[i], &contexts[i]);
        context_pointers[i] = &contexts[i];
    }
    Polymath__V1__TableReply p;
    polymath__v1__table_reply__init(&p);
    p.epoch = m->epoch;
    p.n_layers = m->n_layers;
    p.n_experts = m->n_experts;
    p.n_replicas = m->n_replicas;
    p.n_nodes = m->n_nodes;
    p.nodes = pointers;
    p.n_contexts = m->n_contexts;
    p.contexts = context_pointers;
    wire_pack(&p.base, message);
    mem_free(context_pointers);
    mem_free(contexts);
    mem_free(pointers);
    mem_free(items);
    *payload = blob_copy(m->holders, n_places(m) * sizeof(uint16_t));
}

static int read_node(const Polymath__V1__TableNode *p, struct wire_table_node *out, struct err *e)
{
    int rc = wire_text(out->name, sizeof(out->name), p->name, "name", e);
    if (rc == 0)
        rc = wire_text(out->endpoint, sizeof(out->endpoint), p->endpoint, "endpoint", e);
    if (rc == 0)
        rc = read_key(out->public_key, p->public_key, e);
    if (rc == 0 && (p->node_id == 0 || !out->endpoint[0]))
        rc = wire_invalid(e, "a node without id or endpoint");
    out->node_id = p->node_id;
    out->incarnation = p->incarnation;
    out->max_rows = p->max_rows;
    out->read_bytes_s = p->read_bytes_s;
    return rc;
}

static int read_context(const Polymath__V1__TableContext *p, struct wire_table_context *out,
                        struct err *e)
{
    int rc = wire_text(out->name, sizeof(out->name), p->name, "name", e);
    if (rc == 0)
        rc = wire_text(out->endpoint, sizeof(out->endpoint), p->endpoint, "endpoint", e);
    if (rc == 0)
        rc = read_key(out->public_key, p->public_key, e);
    if (rc == 0 && (p->node_id == 0 || p->borrower == 0 || !out->endpoint[0]))
        rc = wire_invalid(e, "a context without id, borrower or endpoint");
    out->node_id = p->node_id;
    out->incarnation = p->incarnation;
    out->borrower = p->borrower;
    return rc;
}

/* Table, nodes, contexts and holders in one block. */
static int read_table(const Polymath__V1__TableReply *p, const struct wire_table *head,
                      const struct frame *payload, struct wire_table **out, struct err *e)
{
    size_t bytes = n_places(head) * sizeof(uint16_t);
    size_t nodes_bytes = p->n_nodes * sizeof(struct wire_table_node);
    size_t contexts_bytes = p->n_contexts * sizeof(struct wire_table_context);
    struct wire_table *t = mem_try_aligned(sizeof(*t) + nodes_bytes + contexts_bytes + bytes);
    if (!t)
        return err_set(e, E_NOMEM, "no memory for a table of %zu bytes", bytes);
    struct wire_table_node *nodes = (struct wire_table_node *)(void *)(t + 1);
    struct wire_table_context *contexts = (struct wire_table_context *)(void *)(nodes + p->n_nodes);
    uint16_t *holders = (uint16_t *)(void *)(contexts + p->n_contexts);
    *t = *head;
    t->nodes = nodes;
    t->contexts = contexts;
    t->holders = holders;
    memcpy(holders, payload->data, bytes);
    int rc = wire_table_check(t, e);
    for (uint32_t i = 0; i < t->n_nodes && rc == 0; i++)
        rc = read_node(p->nodes[i], &nodes[i], e);
    for (uint32_t i = 0; i < t->n_contexts && rc == 0; i++)
        rc = read_context(p->contexts[i], &contexts[i], e);
    if (rc < 0)
        mem_free(t);
    else
        *out = t;
    return rc;
}

int wire_table_decode(struct str message, const struct frame *payloads, int n_payloads,
                      struct wire_table **out, struct err *e)
{
    *out = NULL;
    struct wire_memory memory;
    wire_memory_init(&memory);
    int rc = E_INVALID;
    const Polymath__V1__TableReply *p =
        wire_unpack(&memory, &polymath__v1__table_reply__descriptor, message, e);
    if (!p)
        goto out;
    /* A message is 16 MiB at most: its items can be counted in 32 bits. */
    struct wire_table head = {.epoch = p->epoch,
                              .n_layers = p->n_layers,
                              .n_experts = p->n_experts,
                              .n_nodes = (uint32_t)p->n_nodes,
                              .n_contexts = (uint32_t)p->n_contexts,
                              .n_replicas = p->n_replicas};
    rc = check_counts(&head, e);
    if (rc == 0)
        rc = check_payload(payloads, n_payloads, n_places(&head) * sizeof(uint16_t), e);
    if (rc == 0)
        rc = read_table(p, &head, &payloads[0], out, e);
out:
    wire_memory_fini(&memory);
    return rc;
}

void wire_callers_encode(const struct wire_callers *m, struct buf *message)
{
    must(m->n_keys <= WIRE_MAX_NODES);
    char **keys = mem_array(m->n_keys + 1, sizeof(char *));
    for (uint32_t i = 0; i < m->n_keys; i++)
        keys[i] = wire_borrow(m->keys[i]);
    Polymath__V1__CallersReply p;
    polymath__v1__callers_reply__init(&p);
    p.version = m->version;
    p.n_public_keys = m->n_keys;
    p.public_keys = keys;
    wire_pack(&p.base, message);
    mem_free(keys);
}

static int read_callers(const Polymath__V1__CallersReply *p, struct wire_callers **out,
                        struct err *e)
{
    if (p->n_public_keys > WIRE_MAX_NODES)
        return wire_invalid(e, "%zu callers, at most %d are possible", p->n_public_keys,
                            WIRE_MAX_NODES);
    struct wire_callers *c = mem_alloc(sizeof(*c) + p->n_public_keys * KEY_TEXT_BYTES);
    char(*keys)[KEY_TEXT_BYTES] = (char(*)[KEY_TEXT_BYTES])(c + 1);
    *c = (struct wire_callers){
        .version = p->version, .n_keys = (uint32_t)p->n_public_keys, .keys = keys};
    int rc = 0;
    for (uint32_t i = 0; i < c->n_keys && rc == 0; i++) {
        rc = read_key(keys[i], p->public_keys[i], e);
        if (rc == 0 && !keys[i][0])
            rc = wire_invalid(e, "a caller without a key");
    }
    if (rc < 0)
        mem_free(c);
    else
        *out = c;
    return rc;
}

int wire_callers_decode(struct str message, struct wire_callers **out, struct err *e)
{
    *out = NULL;
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__CallersReply *p =
        wire_unpack(&memory, &polymath__v1__callers_reply__descriptor, message, e);
    int rc = p ? read_callers(p, out, e) : E_INVALID;
    wire_memory_fini(&memory);
    return rc;
}

void wire_load_encode(const struct wire_load *m, struct buf *message, struct blob **payload)
{
    must_zero(check_grid(m->n_layers, m->n_experts, NULL));
    Polymath__V1__LoadRequest p;
    polymath__v1__load_request__init(&p);
    p.node_id = m->node_id;
    p.incarnation = m->incarnation;
    p.n_layers = m->n_layers;
    p.n_experts = m->n_experts;
    wire_pack(&p.base, message);
    *payload = blob_copy(m->counts, (size_t)m->n_layers * m->n_experts * sizeof(uint16_t));
}

int wire_load_decode(struct str message, const struct frame *payloads, int n_payloads,
                     struct wire_load *out, uint16_t **counts, struct err *e)
{
    memset(out, 0, sizeof(*out));
    *counts = NULL;
    struct wire_memory memory;
    wire_memory_init(&memory);
    int rc = E_INVALID;
    const Polymath__V1__LoadRequest *p =
        wire_unpack(&memory, &polymath__v1__load_request__descriptor, message, e);
    if (!p)
        goto out;
    size_t bytes = (size_t)p->n_layers * p->n_experts * sizeof(uint16_t);
    rc = check_grid(p->n_layers, p->n_experts, e);
    if (rc == 0)
        rc = check_payload(payloads, n_payloads, bytes, e);
    if (rc < 0)
        goto out;
    *counts = mem_alloc(bytes);
    memcpy(*counts, payloads[0].data, bytes);
    *out = (struct wire_load){.node_id = p->node_id,
                              .incarnation = p->incarnation,
                              .n_layers = p->n_layers,
                              .n_experts = p->n_experts,
                              .counts = *counts};
out:
    wire_memory_fini(&memory);
    return rc;
}

void wire_leave_encode(const struct wire_leave *m, struct buf *message)
{
    Polymath__V1__LeaveRequest p;
    polymath__v1__leave_request__init(&p);
    p.node_id = m->node_id;
    p.incarnation = m->incarnation;
    p.reason = wire_borrow(m->reason);
    wire_pack(&p.base, message);
}

int wire_leave_decode(struct str message, struct wire_leave *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__LeaveRequest *p =
        wire_unpack(&memory, &polymath__v1__leave_request__descriptor, message, e);
    int rc = p ? wire_text(out->reason, sizeof(out->reason), p->reason, "reason", e) : E_INVALID;
    if (rc == 0) {
        out->node_id = p->node_id;
        out->incarnation = p->incarnation;
    }
    wire_memory_fini(&memory);
    return rc;
}

void wire_follow_encode(const struct wire_follow *m, struct buf *message)
{
    Polymath__V1__FollowRequest p;
    polymath__v1__follow_request__init(&p);
    p.instance = m->instance;
    p.state = m->state;
    p.name = wire_borrow(m->name);
    p.stream = m->stream;
    p.offset = m->offset;
    wire_pack(&p.base, message);
}

int wire_follow_decode(struct str message, struct wire_follow *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__FollowRequest *p =
        wire_unpack(&memory, &polymath__v1__follow_request__descriptor, message, e);
    int rc = p ? wire_text(out->name, sizeof(out->name), p->name, "name", e) : E_INVALID;
    if (rc == 0 && p->instance == 0)
        rc = wire_invalid(e, "instance 0");
    if (rc == 0) {
        out->instance = p->instance;
        out->state = p->state ? p->state : p->instance;
        out->stream = p->stream;
        out->offset = p->offset;
    }
    wire_memory_fini(&memory);
    return rc;
}

void wire_follow_reply_encode(const struct wire_follow_reply *m, struct buf *message,
                              struct blob **payload)
{
    Polymath__V1__FollowReply p;
    polymath__v1__follow_reply__init(&p);
    p.stream = m->stream;
    p.offset = m->offset;
    p.snapshot_bytes = m->snapshot_bytes;
    p.checksum = XXH3_64bits(m->bytes.ptr, m->bytes.len);
    wire_pack(&p.base, message);
    *payload = blob_copy(m->bytes.ptr, m->bytes.len);
}

int wire_follow_reply_decode(struct str message, const struct frame *payloads, int n_payloads,
                             struct wire_follow_reply *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__FollowReply *p =
        wire_unpack(&memory, &polymath__v1__follow_reply__descriptor, message, e);
    int rc = p ? 0 : E_INVALID;
    if (rc == 0 && n_payloads != 1)
        rc = wire_invalid(e, "%d payloads, expected 1", n_payloads);
    if (rc == 0 && p->checksum != XXH3_64bits(payloads[0].data, payloads[0].size_bytes))
        rc = wire_invalid(e, "checksum: the payload is not what was sent");
    if (rc == 0)
        *out = (struct wire_follow_reply){.stream = p->stream,
                                          .offset = p->offset,
                                          .snapshot_bytes = p->snapshot_bytes,
                                          .bytes = {payloads[0].data, payloads[0].size_bytes}};
    wire_memory_fini(&memory);
    return rc;
}
