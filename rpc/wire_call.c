/* rpc/wire_call.c - call headers, health, reflection, and the names of services and
 * methods, which come from the generated descriptors. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include "proto/attention.pb-c.h"
#include "proto/cluster.pb-c.h"
#include "proto/context.pb-c.h"
#include "proto/expert.pb-c.h"
#include "proto/health.pb-c.h"
#include "proto/reflection.pb-c.h"
#include "proto/rpc.pb-c.h"
#include "rpc/wire.h"
#include "rpc/wire_codec.h"

enum { MAX_METHODS = 8 };

static const ProtobufCServiceDescriptor *const services[WIRE_SERVICES] = {
    [WIRE_CLUSTER] = &polymath__v1__cluster__descriptor,
    [WIRE_EXPERT] = &polymath__v1__expert__descriptor,
    [WIRE_ATTENTION] = &polymath__v1__attention__descriptor,
    [WIRE_HEALTH] = &polymath__v1__health__descriptor,
    [WIRE_REFLECTION] = &polymath__v1__reflection__descriptor,
    [WIRE_CONTEXT] = &polymath__v1__context__descriptor,
};

static char names[WIRE_SERVICES][MAX_METHODS][WIRE_METHOD_BYTES];
static pthread_once_t names_once = PTHREAD_ONCE_INIT;

static void make_names(void)
{
    for (int s = 0; s < WIRE_SERVICES; s++) {
        must(services[s]->n_methods <= MAX_METHODS);
        for (unsigned m = 0; m < services[s]->n_methods; m++) {
            int n = snprintf(names[s][m], WIRE_METHOD_BYTES, "%s/%s", services[s]->name,
                             services[s]->methods[m].name);
            must(n > 0 && n < WIRE_METHOD_BYTES);
        }
    }
}

int wire_service_methods(enum wire_service service)
{
    must(service >= 0 && service < WIRE_SERVICES);
    return (int)services[service]->n_methods;
}

const char *wire_method(enum wire_service service, int method)
{
    must(method >= 0 && method < wire_service_methods(service));
    must_zero(pthread_once(&names_once, make_names));
    return names[service][method];
}

int wire_method_find(const char *name, enum wire_service *service, int *method)
{
    must_zero(pthread_once(&names_once, make_names));
    for (int s = 0; s < WIRE_SERVICES; s++)
        for (unsigned m = 0; m < services[s]->n_methods; m++)
            if (strcmp(names[s][m], name) == 0) {
                *service = (enum wire_service)s;
                *method = (int)m;
                return 0;
            }
    return E_NOT_FOUND;
}

bool wire_method_is_stream(enum wire_service service, int method)
{
    /* protobuf-c's descriptors do not carry the keyword `stream`. */
    return service == WIRE_HEALTH && method == HEALTH_WATCH;
}

/* Fills the protobuf view of the metadata; both arrays hold WIRE_MAX_METADATA. */
static void view_metadata(const struct wire_metadata *from, uint32_t n,
                          Polymath__V1__Metadata *items, Polymath__V1__Metadata **pointers)
{
    must(n <= WIRE_MAX_METADATA);
    for (uint32_t i = 0; i < n; i++) {
        polymath__v1__metadata__init(&items[i]);
        items[i].key = wire_borrow(from[i].key);
        items[i].value = wire_borrow(from[i].value);
        pointers[i] = &items[i];
    }
}

static int copy_metadata(Polymath__V1__Metadata *const *from, size_t n, struct wire_metadata *out,
                         uint32_t *n_out, struct err *e)
{
    if (n > WIRE_MAX_METADATA)
        return wire_invalid(e, "%zu metadata, at most %d are taken", n, WIRE_MAX_METADATA);
    for (size_t i = 0; i < n; i++) {
        int rc = wire_text(out[i].key, sizeof(out[i].key), from[i]->key, "metadata key", e);
        if (rc == 0)
            rc = wire_text(out[i].value, sizeof(out[i].value), from[i]->value, "metadata value", e);
        if (rc < 0)
            return rc;
    }
    *n_out = (uint32_t)n;
    return 0;
}

void wire_call_header_encode(const struct wire_call_header *m, struct buf *out)
{
    Polymath__V1__CallHeader p;
    polymath__v1__call_header__init(&p);
    Polymath__V1__Metadata items[WIRE_MAX_METADATA], *pointers[WIRE_MAX_METADATA];
    view_metadata(m->metadata, m->n_metadata, items, pointers);
    p.version = m->version;
    p.call_id = m->call_id;
    p.method = wire_borrow(m->method);
    p.deadline_us = m->deadline_us;
    p.flags = m->flags;
    p.trace_id = m->trace_id;
    p.n_metadata = m->n_metadata;
    p.metadata = pointers;
    wire_pack(&p.base, out);
}

/* Only what is used of `metadata` is written: it is large, and this runs for every call. */
int wire_call_header_decode(struct str frame, struct wire_call_header *out, struct err *e)
{
    out->version = out->flags = out->n_metadata = 0;
    out->call_id = out->trace_id = out->deadline_us = 0;
    out->method[0] = '\0';
    struct wire_memory memory;
    wire_memory_init(&memory);
    int rc = E_INVALID;
    const Polymath__V1__CallHeader *p =
        wire_unpack(&memory, &polymath__v1__call_header__descriptor, frame, e);
    if (!p)
        goto out;
    out->version = p->version;
    out->call_id = p->call_id;
    out->deadline_us = p->deadline_us;
    out->flags = p->flags;
    out->trace_id = p->trace_id;
    rc = wire_text(out->method, sizeof(out->method), p->method, "method", e);
    if (rc == 0)
        rc = copy_metadata(p->metadata, p->n_metadata, out->metadata, &out->n_metadata, e);
    if (rc == 0 && out->call_id == 0)
        rc = wire_invalid(e, "call id 0");
out:
    wire_memory_fini(&memory);
    return rc;
}

void wire_reply_header_encode(const struct wire_reply_header *m, struct buf *out)
{
    Polymath__V1__ReplyHeader p;
    polymath__v1__reply_header__init(&p);
    Polymath__V1__Metadata items[WIRE_MAX_METADATA], *pointers[WIRE_MAX_METADATA];
    view_metadata(m->metadata, m->n_metadata, items, pointers);
    p.version = m->version;
    p.call_id = m->call_id;
    p.status = (uint32_t)err_to_status(m->code);
    p.text = wire_borrow(m->text);
    p.flags = m->flags;
    p.queue_us = m->queue_us;
    p.compute_us = m->compute_us;
    p.n_metadata = m->n_metadata;
    p.metadata = pointers;
    wire_pack(&p.base, out);
}

int wire_reply_header_decode(struct str frame, struct wire_reply_header *out, struct err *e)
{
    out->version = out->flags = out->n_metadata = 0;
    out->call_id = out->queue_us = out->compute_us = 0;
    out->code = 0;
    out->text[0] = '\0';
    struct wire_memory memory;
    wire_memory_init(&memory);
    int rc = E_INVALID;
    const Polymath__V1__ReplyHeader *p =
        wire_unpack(&memory, &polymath__v1__reply_header__descriptor, frame, e);
    if (!p)
        goto out;
    out->version = p->version;
    out->call_id = p->call_id;
    out->code = err_from_status(p->status <= 16 ? (int)p->status : -1);
    out->flags = p->flags;
    out->queue_us = p->queue_us;
    out->compute_us = p->compute_us;
    rc = wire_text(out->text, sizeof(out->text), p->text, "status text", e);
    if (rc == 0)
        rc = copy_metadata(p->metadata, p->n_metadata, out->metadata, &out->n_metadata, e);
    if (rc == 0 && out->call_id == 0)
        rc = wire_invalid(e, "call id 0");
out:
    wire_memory_fini(&memory);
    return rc;
}

void wire_health_encode(const struct wire_health *m, struct buf *message)
{
    Polymath__V1__HealthReply p;
    polymath__v1__health_reply__init(&p);
    p.status = m->serving ? POLYMATH__V1__SERVING_STATUS__SERVING_STATUS_SERVING
                          : POLYMATH__V1__SERVING_STATUS__SERVING_STATUS_NOT_SERVING;
    wire_pack(&p.base, message);
}

int wire_health_decode(struct str message, struct wire_health *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    int rc = 0;
    const Polymath__V1__HealthReply *p =
        wire_unpack(&memory, &polymath__v1__health_reply__descriptor, message, e);
    if (!p)
        rc = E_INVALID;
    else if (p->status != POLYMATH__V1__SERVING_STATUS__SERVING_STATUS_SERVING &&
             p->status != POLYMATH__V1__SERVING_STATUS__SERVING_STATUS_NOT_SERVING)
        rc = wire_invalid(e, "health: unknown status %d", (int)p->status);
    else
        out->serving = p->status == POLYMATH__V1__SERVING_STATUS__SERVING_STATUS_SERVING;
    wire_memory_fini(&memory);
    return rc;
}

void wire_listing_encode(const struct wire_listing *m, struct buf *message)
{
    must(m->n_methods <= WIRE_MAX_LISTED);
    char *pointers[WIRE_MAX_LISTED];
    for (uint32_t i = 0; i < m->n_methods; i++)
        pointers[i] = wire_borrow(m->methods[i]);
    Polymath__V1__ListReply p;
    polymath__v1__list_reply__init(&p);
    p.n_methods = m->n_methods;
    p.methods = pointers;
    wire_pack(&p.base, message);
}

int wire_listing_decode(struct str message, struct wire_listing *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    int rc = 0;
    const Polymath__V1__ListReply *p =
        wire_unpack(&memory, &polymath__v1__list_reply__descriptor, message, e);
    if (!p)
        rc = E_INVALID;
    else if (p->n_methods > WIRE_MAX_LISTED)
        rc = wire_invalid(e, "listing: %zu methods", p->n_methods);
    for (size_t i = 0; rc == 0 && i < p->n_methods; i++)
        rc = wire_text(out->methods[i], WIRE_METHOD_BYTES, p->methods[i], "method", e);
    if (rc == 0)
        out->n_methods = (uint32_t)p->n_methods;
    wire_memory_fini(&memory);
    return rc;
}
