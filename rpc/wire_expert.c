/* rpc/wire_expert.c - one layer's trip to the experts and back (steps 9 to 11): struct <->
 * frames.
 *
 * Forward is the hottest message of all: neither direction allocates, once the caller's
 * buffer has grown.  Payloads may be misaligned and are read with memcpy. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "proto/expert.pb-c.h"
#include "rpc/wire.h"
#include "rpc/wire_codec.h"

void wire_forward_encode(const struct wire_forward *m, struct buf *message)
{
    Polymath__V1__ForwardRequest p;
    polymath__v1__forward_request__init(&p);
    p.fingerprint = m->fingerprint;
    p.epoch = m->epoch;
    p.step = m->step;
    p.layer = m->layer;
    p.lane = m->lane;
    p.n_rows = m->n_rows;
    p.hidden = m->hidden;
    p.n_routes = m->n_routes;
    p.group = m->group;
    p.mode = (Polymath__V1__CombineMode)(m->mode + 1);
    wire_pack(&p.base, message);
}

size_t wire_forward_routes_bytes(uint32_t n_rows, uint32_t n_routes)
{
    return (size_t)n_rows * (sizeof(uint16_t) + sizeof(int16_t)) +
           (size_t)n_routes * (sizeof(uint16_t) + sizeof(float));
}

uint32_t wire_forward_groups(const struct wire_forward *m)
{
    return m->group ? (m->hidden + m->group - 1) / m->group : 0;
}

bool wire_forward_rows_bytes(const struct wire_forward *m, size_t *out)
{
    size_t row_bytes = (size_t)m->hidden * (m->group ? sizeof(int8_t) : sizeof(float));
    row_bytes += wire_forward_groups(m) * sizeof(float);
    return mem_mul(m->n_rows, row_bytes, out);
}

void wire_forward_pack_routes(const struct wire_forward *m, const int32_t *first_route,
                              const int16_t *exponents, const uint16_t *experts,
                              const float *weights, void *out)
{
    must(first_route[0] == 0 && (uint32_t)first_route[m->n_rows] == m->n_routes);
    char *at = out;
    for (uint32_t i = 0; i < m->n_rows; i++) {
        uint16_t n = (uint16_t)(first_route[i + 1] - first_route[i]);
        memcpy(at, &n, sizeof(n));
        at += sizeof(n);
    }
    memcpy(at, exponents, m->n_rows * sizeof(*exponents));
    at += m->n_rows * sizeof(*exponents);
    memcpy(at, experts, m->n_routes * sizeof(*experts));
    at += m->n_routes * sizeof(*experts);
    memcpy(at, weights, m->n_routes * sizeof(*weights));
}

static int read_mode(int on_wire, enum combine_mode *out, struct err *e)
{
    if (on_wire < 1 || on_wire > COMBINE_COUNT)
        return wire_invalid(e, "unknown combine mode %d", on_wire);
    *out = (enum combine_mode)(on_wire - 1);
    return 0;
}

/* "f32" or "groups of 64". */
static const char *name_rows(uint32_t group, char out[32])
{
    if (group)
        snprintf(out, 32, "groups of %u", group);
    else
        snprintf(out, 32, "f32");
    return out;
}

static int refuse_group(uint32_t sent, uint32_t wanted, struct err *e)
{
    char sent_text[32], wanted_text[32];
    return wire_invalid(e, "rows come as %s, the experts here read %s: weights.format differs",
                        name_rows(sent, sent_text), name_rows(wanted, wanted_text));
}

static int check_forward(const struct wire_forward *m, const struct wire_forward_limits *l,
                         struct err *e)
{
    if (m->fingerprint != l->fingerprint)
        return wire_invalid(e, "fingerprint %016llx, this node serves %016llx",
                            (unsigned long long)m->fingerprint, (unsigned long long)l->fingerprint);
    if (m->group != l->group)
        return refuse_group(m->group, l->group, e);
    if (m->layer >= l->n_layers)
        return wire_invalid(e, "layer %u of %u", m->layer, l->n_layers);
    if (m->hidden != l->hidden)
        return wire_invalid(e, "rows of %u, the model has %u", m->hidden, l->hidden);
    if (m->n_rows == 0 || m->n_rows > l->max_rows)
        return wire_invalid(e, "%u rows, 1 to %u are taken", m->n_rows, l->max_rows);
    if (m->n_routes < m->n_rows || m->n_routes > (uint64_t)m->n_rows * l->max_top_k)
        return wire_invalid(e, "%u routes for %u rows, at most %u each", m->n_routes, m->n_rows,
                            l->max_top_k);
    return 0;
}

static int check_forward_payloads(const struct wire_forward *m, const struct frame *payloads,
                                  int n_payloads, struct err *e)
{
    if (n_payloads != 2)
        return wire_invalid(e, "%d payloads, expected 2", n_payloads);
    size_t routes_bytes = wire_forward_routes_bytes(m->n_rows, m->n_routes), rows_bytes;
    if (payloads[0].size_bytes != routes_bytes)
        return wire_invalid(e, "routes have %zu bytes, expected %zu", payloads[0].size_bytes,
                            routes_bytes);
    if (!wire_forward_rows_bytes(m, &rows_bytes) || payloads[1].size_bytes != rows_bytes)
        return wire_invalid(e, "rows have %zu bytes, not what %u x %u take", payloads[1].size_bytes,
                            m->n_rows, m->hidden);
    return 0;
}

int wire_forward_decode(struct str message, const struct frame *payloads, int n_payloads,
                        const struct wire_forward_limits *limits, struct wire_forward *out,
                        struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    int rc = E_INVALID;
    const Polymath__V1__ForwardRequest *p =
        wire_unpack(&memory, &polymath__v1__forward_request__descriptor, message, e);
    if (!p)
        goto out;
    *out = (struct wire_forward){.fingerprint = p->fingerprint,
                                 .epoch = p->epoch,
                                 .step = p->step,
                                 .layer = p->layer,
                                 .lane = p->lane,
                                 .n_rows = p->n_rows,
                                 .hidden = p->hidden,
                                 .n_routes = p->n_routes,
                                 .group = p->group};
    rc = read_mode((int)p->mode, &out->mode, e);
    if (rc == 0)
        rc = check_forward(out, limits, e);
    if (rc == 0)
        rc = check_forward_payloads(out, payloads, n_payloads, e);
out:
    wire_memory_fini(&memory);
    return rc;
}

static int check_row(const uint16_t *experts, const float *weights, int n,
                     const struct wire_forward_limits *limits, struct err *e)
{
    for (int i = 0; i < n; i++) {
        if (experts[i] >= limits->n_experts)
            return wire_invalid(e, "expert %u of %u", experts[i], limits->n_experts);
        if (!isfinite(weights[i]))
            return wire_invalid(e, "a weight is not finite");
        for (int k = 0; k < i; k++)
            if (experts[k] == experts[i])
                return wire_invalid(e, "expert %u twice in one row", experts[i]);
    }
    return 0;
}

int wire_forward_unpack_routes(const struct wire_forward *m, const struct frame *routes,
                               const struct wire_forward_limits *limits, int32_t *first_route,
                               int16_t *exponents, uint16_t *experts, float *weights, struct err *e)
{
    must(routes->size_bytes == wire_forward_routes_bytes(m->n_rows, m->n_routes));
    const char *counts = routes->data;
    const char *at = counts + m->n_rows * sizeof(uint16_t);
    memcpy(exponents, at, m->n_rows * sizeof(*exponents));
    at += m->n_rows * sizeof(*exponents);
    memcpy(experts, at, m->n_routes * sizeof(*experts));
    at += m->n_routes * sizeof(*experts);
    memcpy(weights, at, m->n_routes * sizeof(*weights));

    uint32_t next = 0;
    for (uint32_t i = 0; i < m->n_rows; i++) {
        uint16_t n;
        memcpy(&n, counts + i * sizeof(n), sizeof(n));
        if (n == 0 || n > limits->max_top_k || n > m->n_routes - next)
            return wire_invalid(e, "row %u has %u routes", i, n);
        int rc = check_row(experts + next, weights + next, n, limits, e);
        if (rc < 0)
            return rc;
        first_route[i] = (int32_t)next;
        next += n;
    }
    first_route[m->n_rows] = (int32_t)next;
    return next == m->n_routes ? 0
                               : wire_invalid(e, "%u routes, the rows name %u", m->n_routes, next);
}

/* One row's bytes; false if one of them is -128.  `sums` gets each group's. */
static bool take_row(const struct wire_forward *m, const int8_t *from, int8_t *to, int32_t *sums)
{
    uint32_t n_groups = wire_forward_groups(m);
    memcpy(to, from, m->hidden);
    for (uint32_t g = 0; g < n_groups; g++) {
        uint32_t end = g + 1 < n_groups ? (g + 1) * m->group : m->hidden;
        int32_t sum = 0, least = 0;
        for (uint32_t i = g * m->group; i < end; i++) {
            sum += to[i];
            least = to[i] < least ? to[i] : least;
        }
        if (least == INT8_MIN)
            return false;
        sums[g] = sum;
    }
    return true;
}

int wire_forward_unpack_rows(const struct wire_forward *m, const struct frame *rows,
                             const struct wire_rows *to, struct err *e)
{
    size_t want_bytes, n_groups = wire_forward_groups(m), row_bytes = m->hidden * sizeof(float);
    must(wire_forward_rows_bytes(m, &want_bytes) && rows->size_bytes == want_bytes);
    const char *from = rows->data;
    for (size_t i = 0; i < m->n_rows && m->group == 0; i++)
        memcpy(to->f32 + i * to->f32_stride, from + i * row_bytes, row_bytes);
    const char *scales = from + (size_t)m->n_rows * m->hidden;
    for (size_t i = 0; i < m->n_rows && m->group != 0; i++) {
        if (!take_row(m, (const int8_t *)from + i * m->hidden, to->q8 + i * to->q8_stride,
                      to->sums + i * to->scale_stride))
            return wire_invalid(e, "row %zu holds a -128", i);
        float *row_scales = to->scales + i * to->scale_stride;
        memcpy(row_scales, scales + i * n_groups * sizeof(float), n_groups * sizeof(float));
        for (size_t g = 0; g < n_groups; g++)
            if (row_scales[g] < 0 || isinf(row_scales[g]))
                return wire_invalid(e, "row %zu has a scale of %g", i, (double)row_scales[g]);
    }
    return 0;
}

void wire_forward_reply_encode(const struct wire_forward_reply *m, struct buf *message)
{
    must(m->n_overflow <= WIRE_MAX_OVERFLOW);
    Polymath__V1__ForwardReply p;
    polymath__v1__forward_reply__init(&p);
    p.step = m->step;
    p.layer = m->layer;
    p.lane = m->lane;
    p.n_rows = m->n_rows;
    p.mode = (Polymath__V1__CombineMode)(m->mode + 1);
    p.n_overflow_rows = m->n_overflow;
    p.overflow_rows = (uint32_t *)(uintptr_t)m->overflow_rows;
    wire_pack(&p.base, message);
}

static int read_overflow(const Polymath__V1__ForwardReply *p, struct wire_forward_reply *out,
                         struct err *e)
{
    if (p->n_overflow_rows > WIRE_MAX_OVERFLOW)
        return wire_invalid(e, "%zu overflow rows", p->n_overflow_rows);
    if (p->n_overflow_rows > 0 && out->mode != COMBINE_FIXED)
        return wire_invalid(e, "overflow rows outside mode fixed");
    for (size_t i = 0; i < p->n_overflow_rows; i++) {
        uint32_t row = p->overflow_rows[i];
        if (row >= out->n_rows || (i > 0 && row <= p->overflow_rows[i - 1]))
            return wire_invalid(e, "overflow row %u of %u, out of order", row, out->n_rows);
        out->overflow_rows[i] = row;
    }
    out->n_overflow = (uint32_t)p->n_overflow_rows;
    return 0;
}

/* false if the size does not fit in size_t. */
static bool result_bytes(const struct wire_forward *m, size_t *out)
{
    size_t rows = m->mode == COMBINE_EXPERT ? m->n_routes : m->n_rows;
    size_t value = m->mode == COMBINE_NODE ? sizeof(uint16_t) : sizeof(float);
    return mem_mul(rows, m->hidden, out) && mem_mul(*out, value, out);
}

static int check_reply(const Polymath__V1__ForwardReply *p, const struct wire_forward *expect,
                       const struct frame *payloads, int n_payloads, struct err *e)
{
    if (p->step != expect->step || p->layer != expect->layer || p->lane != expect->lane)
        return wire_invalid(e, "answers step %llu layer %u lane %u", (unsigned long long)p->step,
                            p->layer, p->lane);
    if (p->n_rows != expect->n_rows || (int)p->mode != (int)expect->mode + 1)
        return wire_invalid(e, "answers %u rows in mode %d", p->n_rows, (int)p->mode);
    size_t want;
    if (n_payloads != 1 || !result_bytes(expect, &want) || payloads[0].size_bytes != want)
        return wire_invalid(e, "%d payloads, the first not of the size that was asked for",
                            n_payloads);
    return 0;
}

int wire_forward_reply_decode(struct str message, const struct frame *payloads, int n_payloads,
                              const struct wire_forward *expect, struct wire_forward_reply *out,
                              struct err *e)
{
    struct wire_memory memory;
    wire_memory_init(&memory);
    int rc = E_INVALID;
    /* Not the 16 KiB behind it. */
    out->n_overflow = 0;
    const Polymath__V1__ForwardReply *p =
        wire_unpack(&memory, &polymath__v1__forward_reply__descriptor, message, e);
    if (!p)
        goto out;
    rc = check_reply(p, expect, payloads, n_payloads, e);
    if (rc < 0)
        goto out;
    out->step = p->step;
    out->layer = p->layer;
    out->lane = p->lane;
    out->n_rows = p->n_rows;
    out->mode = expect->mode;
    rc = read_overflow(p, out, e);
out:
    wire_memory_fini(&memory);
    return rc;
}

void wire_expert_description_encode(const struct wire_expert_description *m, struct buf *message)
{
    Polymath__V1__ExpertDescription p;
    polymath__v1__expert_description__init(&p);
    p.name = wire_borrow(m->name);
    p.fingerprint = m->fingerprint;
    p.holdings_version = m->holdings_version;
    p.held_bytes = m->held_bytes;
    p.experts_held = m->experts_held;
    p.n_layers = m->n_layers;
    p.n_experts = m->n_experts;
    p.protocol_version = m->protocol_version;
    char formats[FORMAT_SET_BYTES];
    p.format = wire_borrow(format_set_text(&m->formats, formats));
    p.combine = wire_borrow(combine_name(m->combine));
    p.kernels = wire_borrow(m->kernels);
    p.build = wire_borrow(m->build);
    wire_pack(&p.base, message);
}

static int read_description(const Polymath__V1__ExpertDescription *p,
                            struct wire_expert_description *out, struct err *e)
{
    int rc = wire_text(out->name, sizeof(out->name), p->name, "name", e);
    if (rc == 0)
        rc = wire_text(out->kernels, sizeof(out->kernels), p->kernels, "kernels", e);
    if (rc == 0)
        rc = wire_text(out->build, sizeof(out->build), p->build, "build", e);
    if (rc == 0)
        rc = wire_model_choices(p->format, p->combine, &out->formats, &out->combine, e);
    out->fingerprint = p->fingerprint;
    out->holdings_version = p->holdings_version;
    out->held_bytes = p->held_bytes;
    out->experts_held = p->experts_held;
    out->n_layers = p->n_layers;
    out->n_experts = p->n_experts;
    out->protocol_version = p->protocol_version;
    return rc;
}

int wire_expert_description_decode(struct str message, struct wire_expert_description *out,
                                   struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__ExpertDescription *p =
        wire_unpack(&memory, &polymath__v1__expert_description__descriptor, message, e);
    int rc = p ? read_description(p, out, e) : E_INVALID;
    wire_memory_fini(&memory);
    return rc;
}
