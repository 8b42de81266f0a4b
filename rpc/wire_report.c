/* rpc/wire_report.c - what an attention side tells of its work beside a step's reply; see wire.h. */
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "proto/attention.pb-c.h"
#include "rpc/wire.h"
#include "rpc/wire_codec.h"

#define LONGEST_SPAN_US (86400ULL * 1000000)

/* ---- from structs to bytes -------------------------------------------------------------- */

static void view_traffic(const struct wire_node_traffic *m, Polymath__V1__NodeTraffic *p)
{
    polymath__v1__node_traffic__init(p);
    p->node_id = m->node_id;
    p->incarnation = m->incarnation;
    p->calls = m->calls;
    p->failovers = m->failovers;
    p->hedges = m->hedges;
    p->retries = m->retries;
    p->sent_bytes = m->sent_bytes;
    p->received_bytes = m->received_bytes;
    p->call_us = m->call_us;
    p->queue_us = m->queue_us;
    p->compute_us = m->compute_us;
}

static void view_layer(const struct wire_layer_time *m, Polymath__V1__LayerTime *p)
{
    polymath__v1__layer_time__init(p);
    p->layer = m->layer;
    p->rounds = m->rounds;
    p->rows = m->rows;
    p->attention_us = m->attention_us;
    p->experts_us = m->experts_us;
}

static void view_span(const struct wire_span *m, Polymath__V1__Span *p)
{
    polymath__v1__span__init(p);
    p->kind = (Polymath__V1__SpanKind)(m->kind + 1);
    p->layer = m->layer;
    p->lane = m->lane;
    p->node_id = m->node_id;
    p->begin_us = m->begin_us;
    p->length_us = m->length_us;
    p->queue_us = m->queue_us;
    p->compute_us = m->compute_us;
    p->rows = m->rows;
    p->bytes = m->bytes;
    p->failed = m->is_failed;
}

/* protobuf-c wants an array of pointers beside each array of messages. */
#define VIEW_ALL(type, n, from, view) \
    type *items_##view = mem_array((n) + 1, sizeof(*items_##view)); \
    type **pointers_##view = mem_array((n) + 1, sizeof(type *)); \
    for (uint32_t i = 0; i < (n); i++) { \
        view(&(from)[i], &items_##view[i]); \
        pointers_##view[i] = &items_##view[i]; \
    }
#define DROP_VIEWS(view) \
    mem_free(items_##view); \
    mem_free(pointers_##view)

void wire_step_report_encode(const struct wire_step_report *m, struct buf *payload)
{
    must(m->n_nodes <= WIRE_MAX_NODES && m->n_layers <= WIRE_MAX_LAYERS &&
         m->n_spans <= WIRE_MAX_SPANS);
    VIEW_ALL(Polymath__V1__NodeTraffic, m->n_nodes, m->nodes, view_traffic)
    VIEW_ALL(Polymath__V1__LayerTime, m->n_layers, m->layers, view_layer)
    VIEW_ALL(Polymath__V1__Span, m->n_spans, m->spans, view_span)
    Polymath__V1__StepReport p;
    polymath__v1__step_report__init(&p);
    p.n_nodes = m->n_nodes;
    p.nodes = pointers_view_traffic;
    p.n_layers = m->n_layers;
    p.layers = pointers_view_layer;
    p.n_spans = m->n_spans;
    p.spans = pointers_view_span;
    p.spans_lost = m->spans_lost;
    wire_pack(&p.base, payload);
    DROP_VIEWS(view_traffic);
    DROP_VIEWS(view_layer);
    DROP_VIEWS(view_span);
}

/* ---- and back ----------------------------------------------------------------------------- */

static int read_traffic(const Polymath__V1__NodeTraffic *p, struct wire_node_traffic *out,
                        struct err *e)
{
    if (p->node_id == 0)
        return wire_invalid(e, "traffic of node 0");
    *out = (struct wire_node_traffic){.node_id = p->node_id,
                                      .incarnation = p->incarnation,
                                      .calls = p->calls,
                                      .failovers = p->failovers,
                                      .hedges = p->hedges,
                                      .retries = p->retries,
                                      .sent_bytes = p->sent_bytes,
                                      .received_bytes = p->received_bytes,
                                      .call_us = p->call_us,
                                      .queue_us = p->queue_us,
                                      .compute_us = p->compute_us};
    return 0;
}

static int read_layer(const Polymath__V1__LayerTime *p, struct wire_layer_time *out, struct err *e)
{
    if (p->layer >= WIRE_MAX_LAYERS)
        return wire_invalid(e, "time of layer %u", p->layer);
    *out = (struct wire_layer_time){.layer = p->layer,
                                    .rounds = p->rounds,
                                    .rows = p->rows,
                                    .attention_us = p->attention_us,
                                    .experts_us = p->experts_us};
    return 0;
}

static int read_span(const Polymath__V1__Span *p, struct wire_span *out, struct err *e)
{
    if ((unsigned)p->kind - 1 >= WIRE_SPANS || p->layer >= WIRE_MAX_LAYERS)
        return wire_invalid(e, "span of kind %d in layer %u", (int)p->kind, p->layer);
    if (p->begin_us > LONGEST_SPAN_US || p->length_us > LONGEST_SPAN_US ||
        p->queue_us > p->length_us || p->compute_us > p->length_us - p->queue_us)
        return wire_invalid(e, "span in layer %u: its parts are longer than itself", p->layer);
    *out = (struct wire_span){.kind = (enum wire_span_kind)(p->kind - 1),
                              .layer = p->layer,
                              .lane = p->lane,
                              .node_id = p->node_id,
                              .begin_us = p->begin_us,
                              .length_us = p->length_us,
                              .queue_us = p->queue_us,
                              .compute_us = p->compute_us,
                              .rows = p->rows,
                              .bytes = p->bytes,
                              .is_failed = p->failed};
    return 0;
}

static int read_report(const Polymath__V1__StepReport *p, struct wire_step_report **out,
                       struct err *e)
{
    if (p->n_nodes > WIRE_MAX_NODES || p->n_layers > WIRE_MAX_LAYERS || p->n_spans > WIRE_MAX_SPANS)
        return wire_invalid(e, "%zu nodes, %zu layers, %zu spans", p->n_nodes, p->n_layers,
                            p->n_spans);
    struct wire_step_report *r =
        mem_try_aligned(sizeof(*r) + p->n_nodes * sizeof(*r->nodes) +
                        p->n_layers * sizeof(*r->layers) + p->n_spans * sizeof(*r->spans));
    if (!r)
        return err_set(e, E_NOMEM, "no memory for %zu spans", p->n_spans);
    struct wire_node_traffic *nodes = (void *)(r + 1);
    struct wire_layer_time *layers = (void *)(nodes + p->n_nodes);
    struct wire_span *spans = (void *)(layers + p->n_layers);
    *r = (struct wire_step_report){.n_nodes = (uint32_t)p->n_nodes,
                                   .n_layers = (uint32_t)p->n_layers,
                                   .n_spans = (uint32_t)p->n_spans,
                                   .nodes = nodes,
                                   .layers = layers,
                                   .spans = spans,
                                   .spans_lost = p->spans_lost};
    int rc = 0;
    for (size_t i = 0; i < p->n_nodes && rc == 0; i++)
        rc = read_traffic(p->nodes[i], &nodes[i], e);
    for (size_t i = 0; i < p->n_layers && rc == 0; i++)
        rc = read_layer(p->layers[i], &layers[i], e);
    for (size_t i = 0; i < p->n_spans && rc == 0; i++)
        rc = read_span(p->spans[i], &spans[i], e);
    if (rc < 0)
        mem_free(r);
    else
        *out = r;
    return rc;
}

int wire_step_report_decode(struct str payload, struct wire_step_report **out, struct err *e)
{
    *out = NULL;
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__StepReport *p =
        wire_unpack(&memory, &polymath__v1__step_report__descriptor, payload, e);
    int rc = p ? read_report(p, out, e) : E_INVALID;
    wire_memory_fini(&memory);
    return rc;
}
