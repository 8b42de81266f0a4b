/* tests/unit/test_wire.c - every message there and back with random contents; cut at every
 * byte; with bytes flipped; and the refusals that the contracts name. */
#include "rpc/wire.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "tests/lib/test.h"

/* ---- Random contents -------------------------------------------------------------- */

static uint32_t any32(struct rng *r)
{
    /* Small and large values alike: varints change length. */
    return (uint32_t)(rng_next(r) >> (32 + rng_below(r, 32)));
}

static uint64_t any64(struct rng *r)
{
    return rng_next(r) >> rng_below(r, 64);
}

static float any_float(struct rng *r, float low, float high)
{
    return low + (high - low) * (float)rng_unit(r);
}

/* A text of at least one character that may be longer in bytes than in characters. */
static void any_text(struct rng *r, char *out, size_t size)
{
    static const char *const pieces[] = {
        "a", "Z", "0", "-", ":", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
    size_t limit = 1 + (size_t)rng_below(r, size - 1), len = 0;
    do {
        const char *piece = pieces[rng_below(r, 8)];
        if (len + strlen(piece) > limit)
            break;
        memcpy(out + len, piece, strlen(piece));
        len += strlen(piece);
    } while (len < limit);
    if (len == 0)
        out[len++] = 'x';
    out[len] = '\0';
}

/* ---- Running a decoder over damaged input ------------------------------------------ */

/* Decodes and gives back what it took; 0 or E_INVALID and nothing else. */
typedef int decode_check(void *ud, struct str message, const struct frame *payloads,
                         int n_payloads);

/* Every prefix and `n_flips` damaged copies, each in a block of exactly its size, so that the
 * sanitizers see a byte too many. */
static void damage(struct str message, const struct frame *payloads, int n_payloads,
                   decode_check *check, void *ud)
{
    struct rng r = test_rng();
    int n_flips = test_is_slow_build() ? 200 : 2000;
    for (size_t i = 0; i < message.len + (size_t)n_flips; i++) {
        size_t len = i < message.len ? i : message.len;
        char *copy = malloc(len);
        if (len > 0)
            memcpy(copy, message.ptr, len);
        for (int k = 0; i >= message.len && len > 0 && k < 1 + (int)rng_below(&r, 4); k++)
            copy[rng_below(&r, len)] ^= (char)(1 << rng_below(&r, 8));
        int rc = check(ud, (struct str){copy, len}, payloads, n_payloads);
        CHECK(rc == 0 || rc == E_INVALID);
        free(copy);
    }
    for (int k = 0; k < n_payloads; k++) {
        struct frame changed[4];
        memcpy(changed, payloads, (size_t)n_payloads * sizeof(*payloads));
        changed[k].size_bytes--;
        CHECK_INT(check(ud, message, changed, n_payloads), E_INVALID);
        CHECK_INT(check(ud, message, payloads, k), E_INVALID);
    }
}

/* A message whose `set` bytes of a C struct must come back as they were. */
#define ROUND_TRIP(type, name, fill) \
    static int check_##name(void *ud, struct str message, const struct frame *payloads, int n) \
    { \
        (void)ud; \
        (void)payloads; \
        (void)n; \
        static struct type out; \
        return wire_##name##_decode(message, &out, NULL); \
    } \
    TEST(wire_##name##_comes_back) \
    { \
        struct rng r = test_rng(); \
        for (int i = 0; i < 50; i++) { \
            static struct type in, out; \
            memset(&in, 0, sizeof(in)); \
            memset(&out, 0xff, sizeof(out)); \
            fill(&r, &in); \
            struct buf message = {0}; \
            wire_##name##_encode(&in, &message); \
            struct err e = {0}; \
            if (wire_##name##_decode(buf_str(&message), &out, &e) < 0) \
                test_fail(__FILE__, __LINE__, "%s", e.text); \
            same_##name(&in, &out); \
            if (i < 3) \
                damage(buf_str(&message), NULL, 0, check_##name, NULL); \
            buf_fini(&message); \
        } \
    }

#define SAME(field) CHECK(a->field == b->field)
#define SAME_TEXT(field) CHECK_STR(b->field, a->field)

static void fill_join(struct rng *r, struct wire_join *m)
{
    m->role = (enum node_role)rng_below(r, 2);
    any_text(r, m->name, sizeof(m->name));
    any_text(r, m->endpoint, sizeof(m->endpoint));
    any_text(r, m->host, sizeof(m->host));
    any_text(r, m->kernels, sizeof(m->kernels));
    any_text(r, m->build, sizeof(m->build));
    m->pid = any32(r);
    m->threads = any32(r);
    m->incarnation = any64(r) | 1;
    m->protocol_version = any32(r);
    m->fingerprint = any64(r);
    m->format = (enum weight_format)rng_below(r, FORMAT_COUNT);
    m->combine = (enum combine_mode)rng_below(r, COMBINE_COUNT);
    m->memory_bytes = any64(r);
    m->expert_bytes = any64(r);
    m->max_rows = any32(r);
}
static void same_join(const struct wire_join *a, const struct wire_join *b)
{
    SAME(role);
    SAME_TEXT(name);
    SAME_TEXT(endpoint);
    SAME_TEXT(host);
    SAME_TEXT(kernels);
    SAME_TEXT(build);
    SAME(pid);
    SAME(threads);
    SAME(incarnation);
    SAME(protocol_version);
    SAME(fingerprint);
    SAME(format);
    SAME(combine);
    SAME(memory_bytes);
    SAME(expert_bytes);
    SAME(max_rows);
}
ROUND_TRIP(wire_join, join, fill_join)

static void fill_join_reply(struct rng *r, struct wire_join_reply *m)
{
    m->node_id = any32(r) | 1;
    m->epoch = any64(r);
    m->heartbeat_ms = 1 + (uint32_t)rng_below(r, 5000);
    m->lease_ms = m->heartbeat_ms + any32(r) / 2;
}
static void same_join_reply(const struct wire_join_reply *a, const struct wire_join_reply *b)
{
    SAME(node_id);
    SAME(epoch);
    SAME(heartbeat_ms);
    SAME(lease_ms);
}
ROUND_TRIP(wire_join_reply, join_reply, fill_join_reply)

static void fill_heartbeat(struct rng *r, struct wire_heartbeat *m)
{
    m->node_id = any32(r);
    m->incarnation = any64(r);
    m->state = (enum node_state)rng_below(r, 5);
    m->epoch = any64(r);
    m->holdings_version = any64(r);
    m->experts_held = any32(r);
    m->experts_wanted = any32(r);
    m->held_bytes = any64(r);
}
static void same_heartbeat(const struct wire_heartbeat *a, const struct wire_heartbeat *b)
{
    SAME(node_id);
    SAME(incarnation);
    SAME(state);
    SAME(epoch);
    SAME(holdings_version);
    SAME(experts_held);
    SAME(experts_wanted);
    SAME(held_bytes);
}
ROUND_TRIP(wire_heartbeat, heartbeat, fill_heartbeat)

static void fill_heartbeat_reply(struct rng *r, struct wire_heartbeat_reply *m)
{
    m->epoch = any64(r);
    m->holdings_version = any64(r);
}
static void same_heartbeat_reply(const struct wire_heartbeat_reply *a,
                                 const struct wire_heartbeat_reply *b)
{
    SAME(epoch);
    SAME(holdings_version);
}
ROUND_TRIP(wire_heartbeat_reply, heartbeat_reply, fill_heartbeat_reply)

static void fill_holdings_request(struct rng *r, struct wire_holdings_request *m)
{
    m->node_id = any32(r);
}
static void same_holdings_request(const struct wire_holdings_request *a,
                                  const struct wire_holdings_request *b)
{
    SAME(node_id);
}
ROUND_TRIP(wire_holdings_request, holdings_request, fill_holdings_request)

static void fill_leave(struct rng *r, struct wire_leave *m)
{
    m->node_id = any32(r);
    m->incarnation = any64(r);
    any_text(r, m->reason, sizeof(m->reason));
}
static void same_leave(const struct wire_leave *a, const struct wire_leave *b)
{
    SAME(node_id);
    SAME(incarnation);
    SAME_TEXT(reason);
}
ROUND_TRIP(wire_leave, leave, fill_leave)

static void fill_expert_description(struct rng *r, struct wire_expert_description *m)
{
    any_text(r, m->name, sizeof(m->name));
    any_text(r, m->kernels, sizeof(m->kernels));
    any_text(r, m->build, sizeof(m->build));
    m->fingerprint = any64(r);
    m->holdings_version = any64(r);
    m->held_bytes = any64(r);
    m->experts_held = any32(r);
    m->n_layers = any32(r);
    m->n_experts = any32(r);
    m->protocol_version = any32(r);
    m->format = (enum weight_format)rng_below(r, FORMAT_COUNT);
    m->combine = (enum combine_mode)rng_below(r, COMBINE_COUNT);
}
static void same_expert_description(const struct wire_expert_description *a,
                                    const struct wire_expert_description *b)
{
    SAME_TEXT(name);
    SAME_TEXT(kernels);
    SAME_TEXT(build);
    SAME(fingerprint);
    SAME(holdings_version);
    SAME(held_bytes);
    SAME(experts_held);
    SAME(n_layers);
    SAME(n_experts);
    SAME(protocol_version);
    SAME(format);
    SAME(combine);
}
ROUND_TRIP(wire_expert_description, expert_description, fill_expert_description)

static void fill_attention_description(struct rng *r, struct wire_attention_description *m)
{
    any_text(r, m->name, sizeof(m->name));
    any_text(r, m->kernels, sizeof(m->kernels));
    any_text(r, m->build, sizeof(m->build));
    m->fingerprint = any64(r);
    m->epoch = any64(r);
    m->kv_pages_total = any32(r);
    m->kv_pages_free = any32(r);
    m->page_tokens = any32(r);
    m->max_rows = any32(r);
    m->max_seqs = any32(r);
    m->max_positions = any32(r);
    m->protocol_version = any32(r);
    m->format = (enum weight_format)rng_below(r, FORMAT_COUNT);
    m->combine = (enum combine_mode)rng_below(r, COMBINE_COUNT);
}
static void same_attention_description(const struct wire_attention_description *a,
                                       const struct wire_attention_description *b)
{
    SAME_TEXT(name);
    SAME_TEXT(kernels);
    SAME_TEXT(build);
    SAME(fingerprint);
    SAME(epoch);
    SAME(kv_pages_total);
    SAME(kv_pages_free);
    SAME(page_tokens);
    SAME(max_rows);
    SAME(max_seqs);
    SAME(max_positions);
    SAME(protocol_version);
    SAME(format);
    SAME(combine);
}
ROUND_TRIP(wire_attention_description, attention_description, fill_attention_description)

static uint32_t any_metadata(struct rng *r, struct wire_metadata *m)
{
    uint32_t n = (uint32_t)rng_below(r, WIRE_MAX_METADATA + 1);
    for (uint32_t i = 0; i < n; i++) {
        any_text(r, m[i].key, sizeof(m[i].key));
        any_text(r, m[i].value, sizeof(m[i].value));
    }
    return n;
}
static void same_metadata(const struct wire_metadata *a, const struct wire_metadata *b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        CHECK_STR(b[i].key, a[i].key);
        CHECK_STR(b[i].value, a[i].value);
    }
}
static void fill_call_header(struct rng *r, struct wire_call_header *m)
{
    m->version = any32(r);
    m->flags = any32(r);
    m->call_id = any64(r) | 1;
    m->trace_id = any64(r);
    m->deadline_us = any64(r);
    any_text(r, m->method, sizeof(m->method));
    m->n_metadata = any_metadata(r, m->metadata);
}
static void same_call_header(const struct wire_call_header *a, const struct wire_call_header *b)
{
    SAME(version);
    SAME(flags);
    SAME(call_id);
    SAME(trace_id);
    SAME(deadline_us);
    SAME_TEXT(method);
    SAME(n_metadata);
    same_metadata(a->metadata, b->metadata, a->n_metadata);
}
ROUND_TRIP(wire_call_header, call_header, fill_call_header)

static void fill_reply_header(struct rng *r, struct wire_reply_header *m)
{
    m->version = any32(r);
    m->flags = any32(r);
    m->call_id = any64(r) | 1;
    m->code = -(int)rng_below(r, 17);
    any_text(r, m->text, sizeof(m->text));
    m->queue_us = any64(r);
    m->compute_us = any64(r);
    m->n_metadata = any_metadata(r, m->metadata);
}
static void same_reply_header(const struct wire_reply_header *a, const struct wire_reply_header *b)
{
    SAME(version);
    SAME(flags);
    SAME(call_id);
    SAME(code);
    SAME_TEXT(text);
    SAME(queue_us);
    SAME(compute_us);
    SAME(n_metadata);
    same_metadata(a->metadata, b->metadata, a->n_metadata);
}
ROUND_TRIP(wire_reply_header, reply_header, fill_reply_header)

static void fill_health(struct rng *r, struct wire_health *m)
{
    m->serving = rng_below(r, 2) == 1;
}
static void same_health(const struct wire_health *a, const struct wire_health *b)
{
    SAME(serving);
}
ROUND_TRIP(wire_health, health, fill_health)

static void fill_listing(struct rng *r, struct wire_listing *m)
{
    m->n_methods = (uint32_t)rng_below(r, WIRE_MAX_LISTED + 1);
    for (uint32_t i = 0; i < m->n_methods; i++)
        any_text(r, m->methods[i], WIRE_METHOD_BYTES);
}
static void same_listing(const struct wire_listing *a, const struct wire_listing *b)
{
    SAME(n_methods);
    for (uint32_t i = 0; i < a->n_methods; i++)
        CHECK_STR(b->methods[i], a->methods[i]);
}
ROUND_TRIP(wire_listing, listing, fill_listing)

/* ---- Messages with payloads or lists ------------------------------------------------ */

static struct frame frame_of(const struct blob *b)
{
    return (struct frame){b->data, b->size_bytes};
}

static int check_holdings(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    struct wire_holdings out;
    uint8_t *bitmap = NULL;
    int rc = wire_holdings_decode(message, payloads, n, &out, &bitmap, NULL);
    CHECK((rc == 0) == (bitmap != NULL));
    mem_free(bitmap);
    return rc;
}

TEST(wire_holdings_come_back)
{
    struct rng r = test_rng();
    for (int i = 0; i < 20; i++) {
        uint8_t bits[5 * 32];
        for (size_t k = 0; k < sizeof(bits); k++)
            bits[k] = (uint8_t)rng_next(&r);
        struct wire_holdings in = {.version = any64(&r),
                                   .n_layers = 1 + (uint32_t)rng_below(&r, 5),
                                   .n_experts = 1 + (uint32_t)rng_below(&r, 256),
                                   .bitmap = bits},
                             out;
        struct buf message = {0};
        struct blob *payload = NULL;
        wire_holdings_encode(&in, &message, &payload);
        CHECK_INT(payload->size_bytes, in.n_layers * ((in.n_experts + 7) / 8));
        struct frame frame = frame_of(payload);
        uint8_t *bitmap = NULL;
        CHECK_INT(wire_holdings_decode(buf_str(&message), &frame, 1, &out, &bitmap, NULL), 0);
        CHECK(out.version == in.version);
        CHECK_INT(out.n_layers, in.n_layers);
        CHECK_INT(out.n_experts, in.n_experts);
        CHECK_BYTES(out.bitmap, bits, payload->size_bytes);
        mem_free(bitmap);
        if (i < 3)
            damage(buf_str(&message), &frame, 1, check_holdings, NULL);
        blob_unref(&payload);
        buf_fini(&message);
    }
}

static int check_table(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    struct wire_table *out = NULL;
    int rc = wire_table_decode(message, payloads, n, &out, NULL);
    CHECK((rc == 0) == (out != NULL));
    mem_free(out);
    return rc;
}

TEST(wire_table_comes_back)
{
    enum { LAYERS = 3, EXPERTS = 40, NODES = 5 };
    struct rng r = test_rng();
    struct wire_table_node nodes[NODES] = {0};
    uint16_t holder[LAYERS * EXPERTS];
    for (int i = 0; i < NODES; i++) {
        nodes[i].node_id = 1 + any32(&r) / 2;
        any_text(&r, nodes[i].name, sizeof(nodes[i].name));
        any_text(&r, nodes[i].endpoint, sizeof(nodes[i].endpoint));
        nodes[i].incarnation = any64(&r);
        nodes[i].max_rows = any32(&r);
    }
    for (int i = 0; i < LAYERS * EXPERTS; i++)
        holder[i] = rng_below(&r, 6) == 5 ? WIRE_NO_HOLDER : (uint16_t)rng_below(&r, NODES);
    struct wire_table in = {77, LAYERS, EXPERTS, NODES, nodes, holder}, *out = NULL;
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_table_encode(&in, &message, &payload);
    struct frame frame = frame_of(payload);
    CHECK_INT(wire_table_decode(buf_str(&message), &frame, 1, &out, NULL), 0);
    CHECK_INT(out->epoch, 77);
    CHECK_INT(out->n_nodes, NODES);
    for (int i = 0; i < NODES; i++) {
        CHECK(out->nodes[i].node_id == nodes[i].node_id);
        CHECK_STR(out->nodes[i].name, nodes[i].name);
        CHECK_STR(out->nodes[i].endpoint, nodes[i].endpoint);
        CHECK(out->nodes[i].incarnation == nodes[i].incarnation);
        CHECK(out->nodes[i].max_rows == nodes[i].max_rows);
    }
    CHECK_BYTES(out->holder, holder, sizeof(holder));
    mem_free(out);
    damage(buf_str(&message), &frame, 1, check_table, NULL);

    uint16_t *sent = payload->data;
    sent[7] = NODES; /* a node that the table does not name */
    CHECK_INT(check_table(NULL, buf_str(&message), &frame, 1), E_INVALID);
    sent[7] = WIRE_NO_HOLDER;
    CHECK_INT(check_table(NULL, buf_str(&message), &frame, 1), 0);
    blob_unref(&payload);
    buf_fini(&message);
}

/* ---- Forward ---------------------------------------------------------------------- */

static const struct wire_forward_limits limits = {
    .fingerprint = 42, .n_layers = 4, .n_experts = 16, .hidden = 8, .max_rows = 32, .max_top_k = 4};

struct parcel {
    struct wire_forward m;
    int32_t first_route[33];
    int16_t exponents[32];
    uint16_t experts[128];
    float weights[128];
    float rows[32 * 8];
    uint8_t routes[4096];
    struct frame frames[2];
    struct buf message;
};

static void fill_parcel(struct rng *r, struct parcel *p)
{
    memset(p, 0, sizeof(*p));
    p->m = (struct wire_forward){.fingerprint = limits.fingerprint,
                                 .epoch = any64(r),
                                 .step = any64(r),
                                 .layer = (uint32_t)rng_below(r, limits.n_layers),
                                 .lane = (uint32_t)rng_below(r, 2),
                                 .n_rows = 1 + (uint32_t)rng_below(r, limits.max_rows),
                                 .hidden = limits.hidden,
                                 .mode = (enum combine_mode)rng_below(r, COMBINE_COUNT)};
    for (uint32_t i = 0; i < p->m.n_rows; i++) {
        uint32_t n = 1 + (uint32_t)rng_below(r, limits.max_top_k);
        p->first_route[i] = (int32_t)p->m.n_routes;
        p->exponents[i] = (int16_t)rng_next(r);
        for (uint32_t k = 0; k < n; k++) {
            p->experts[p->m.n_routes] = (uint16_t)(k * 4 + rng_below(r, 4));
            p->weights[p->m.n_routes++] = any_float(r, -2, 2);
        }
    }
    p->first_route[p->m.n_rows] = (int32_t)p->m.n_routes;
    size_t routes_bytes = wire_forward_routes_bytes(p->m.n_rows, p->m.n_routes);
    CHECK(routes_bytes < sizeof(p->routes));
    /* At an odd address, as libzmq delivers it. */
    wire_forward_pack_routes(&p->m, p->first_route, p->exponents, p->experts, p->weights,
                             p->routes + 1);
    p->frames[0] = (struct frame){p->routes + 1, routes_bytes};
    p->frames[1] = (struct frame){p->rows, p->m.n_rows * limits.hidden * sizeof(float)};
    wire_forward_encode(&p->m, &p->message);
}

static int unpack(const struct parcel *p, struct err *e)
{
    static int32_t first_route[33];
    static int16_t exponents[32];
    static uint16_t experts[128];
    static float weights[128];
    struct wire_forward out;
    int rc = wire_forward_decode(buf_str(&p->message), p->frames, 2, &limits, &out, e);
    if (rc < 0)
        return rc;
    rc = wire_forward_unpack_routes(&out, &p->frames[0], &limits, first_route, exponents, experts,
                                    weights, e);
    if (rc == 0) {
        CHECK_BYTES(first_route, p->first_route, (out.n_rows + 1) * sizeof(int32_t));
        CHECK_BYTES(exponents, p->exponents, out.n_rows * sizeof(int16_t));
        CHECK_BYTES(experts, p->experts, out.n_routes * sizeof(uint16_t));
        CHECK_BYTES(weights, p->weights, out.n_routes * sizeof(float));
    }
    return rc;
}

static int check_forward(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    struct wire_forward out;
    return wire_forward_decode(message, payloads, n, &limits, &out, NULL);
}

TEST(wire_forward_comes_back)
{
    struct rng r = test_rng();
    static struct parcel p;
    for (int i = 0; i < 100; i++) {
        fill_parcel(&r, &p);
        struct err e = {0};
        struct wire_forward out;
        CHECK_INT(wire_forward_decode(buf_str(&p.message), p.frames, 2, &limits, &out, &e), 0);
        CHECK(out.epoch == p.m.epoch && out.step == p.m.step && out.layer == p.m.layer);
        CHECK(out.lane == p.m.lane && out.n_rows == p.m.n_rows && out.n_routes == p.m.n_routes);
        CHECK(out.mode == p.m.mode && out.fingerprint == 42 && out.hidden == 8);
        if (unpack(&p, &e) < 0)
            test_fail(__FILE__, __LINE__, "%s", e.text);
        if (i < 3)
            damage(buf_str(&p.message), p.frames, 2, check_forward, NULL);
        buf_fini(&p.message);
    }
}

static void check_forward_refused(struct parcel *p, const char *why)
{
    struct err e = {0};
    struct wire_forward out;
    wire_forward_encode(&p->m, &p->message);
    CHECK_INT(wire_forward_decode(buf_str(&p->message), p->frames, 2, &limits, &out, &e),
              E_INVALID);
    CHECK_HAS(e.text, why);
}

TEST(wire_forward_refuses_what_the_worker_cannot_take)
{
    struct rng r = test_rng();
    static struct parcel p;
    fill_parcel(&r, &p);
    struct wire_forward good = p.m;
    p.m.fingerprint++;
    check_forward_refused(&p, "fingerprint");
    p.m = good;
    p.m.layer = limits.n_layers;
    check_forward_refused(&p, "layer 4 of 4");
    p.m = good;
    p.m.hidden = 16;
    check_forward_refused(&p, "rows of 16");
    p.m = good;
    p.m.n_rows = 0;
    check_forward_refused(&p, "0 rows");
    p.m.n_rows = limits.max_rows + 1;
    check_forward_refused(&p, "33 rows");
    p.m = good;
    p.m.n_routes = good.n_rows - 1;
    check_forward_refused(&p, "routes");
    p.m.n_routes = good.n_rows * limits.max_top_k + 1;
    check_forward_refused(&p, "routes");
    p.m.n_routes = UINT32_MAX;
    check_forward_refused(&p, "routes");
    p.m = good;
    p.m.mode = COMBINE_COUNT;
    check_forward_refused(&p, "combine mode");
    buf_fini(&p.message);
}

static void put16(struct parcel *p, size_t index, uint16_t value)
{
    memcpy(p->routes + 1 + index * sizeof(value), &value, sizeof(value));
}

TEST(wire_forward_refuses_bad_routes)
{
    struct rng r = test_rng();
    static struct parcel p;
    struct err e = {0};
    for (int i = 0; i < 6; i++) {
        do {
            buf_fini(&p.message);
            fill_parcel(&r, &p);
        } while (p.first_route[1] < 2 || p.m.n_rows < 2);
        size_t experts = (size_t)p.m.n_rows * 2;
        float weight = i == 4 ? NAN : -INFINITY;
        static const char *const why[] = {"row 0 has 0 routes", "routes",     "expert 16 of 16",
                                          "twice in one row",   "not finite", "not finite"};
        switch (i) {
        case 0:
            put16(&p, 0, 0);
            break;
        case 1:
            /* One route too many, or a last row without any. */
            put16(&p, p.m.n_rows - 1,
                  (uint16_t)(p.first_route[p.m.n_rows] - p.first_route[p.m.n_rows - 1] - 1));
            break;
        case 2:
            put16(&p, experts, 16);
            break;
        case 3:
            put16(&p, experts + 1, p.experts[0]);
            break;
        default:
            memcpy(p.routes + 1 + (experts + p.m.n_routes) * 2 + (p.m.n_routes - 1) * sizeof(float),
                   &weight, sizeof(weight));
        }
        CHECK_INT(unpack(&p, &e), E_INVALID);
        CHECK_HAS(e.text, why[i]);
    }
    buf_fini(&p.message);
}

static int check_forward_reply(void *ud, struct str message, const struct frame *payloads, int n)
{
    static struct wire_forward_reply out;
    return wire_forward_reply_decode(message, payloads, n, ud, &out, NULL);
}

TEST(wire_forward_reply_comes_back_in_every_mode)
{
    static struct wire_forward_reply in, out;
    static const uint8_t data[10000];
    for (int mode = 0; mode < COMBINE_COUNT; mode++) {
        struct wire_forward asked = {.step = 9,
                                     .layer = 2,
                                     .lane = 1,
                                     .n_rows = 5,
                                     .hidden = 8,
                                     .n_routes = 11,
                                     .mode = (enum combine_mode)mode};
        memset(&in, 0, sizeof(in));
        in.step = 9;
        in.layer = 2;
        in.lane = 1;
        in.n_rows = 5;
        in.mode = (enum combine_mode)mode;
        if (mode == COMBINE_FIXED) {
            in.n_overflow = 2;
            in.overflow_rows[0] = 1;
            in.overflow_rows[1] = 4;
        }
        static const size_t want[] = {5 * 8 * 4, 11 * 8 * 4, 5 * 8 * 2};
        struct frame frame = {data, want[mode]};
        struct buf message = {0};
        wire_forward_reply_encode(&in, &message);
        CHECK_INT(wire_forward_reply_decode(buf_str(&message), &frame, 1, &asked, &out, NULL), 0);
        CHECK_INT(out.n_overflow, in.n_overflow);
        CHECK_BYTES(out.overflow_rows, in.overflow_rows, in.n_overflow * sizeof(uint32_t));
        damage(buf_str(&message), &frame, 1, check_forward_reply, &asked);

        /* The answer to another question. */
        struct wire_forward other = asked;
        other.step++;
        CHECK_INT(check_forward_reply(&other, buf_str(&message), &frame, 1), E_INVALID);
        other = asked;
        other.lane = 0;
        CHECK_INT(check_forward_reply(&other, buf_str(&message), &frame, 1), E_INVALID);
        other = asked;
        other.n_rows = 4;
        CHECK_INT(check_forward_reply(&other, buf_str(&message), &frame, 1), E_INVALID);

        in.n_overflow = 1;
        in.overflow_rows[0] = 5; /* of 5 rows */
        wire_forward_reply_encode(&in, &message);
        CHECK_INT(check_forward_reply(&asked, buf_str(&message), &frame, 1), E_INVALID);
        in.n_overflow = 2;
        in.overflow_rows[0] = in.overflow_rows[1] = 1;
        wire_forward_reply_encode(&in, &message);
        CHECK_INT(check_forward_reply(&asked, buf_str(&message), &frame, 1), E_INVALID);
        buf_fini(&message);
    }
}

/* ---- Step ------------------------------------------------------------------------- */

static const struct wire_step_limits step_limits = {
    .max_rows = 256, .max_seqs = 16, .vocab_size = 1000, .max_positions = 4096};

struct step_case {
    struct wire_step m;
    struct wire_step_seq seqs[16];
    struct sampling sampling[16];
    int32_t tokens[256];
};

static void fill_sampling(struct rng *r, struct sampling *s)
{
    s->temperature = any_float(r, 0, 100);
    s->top_k = (int)rng_below(r, 1000);
    s->top_p = any_float(r, 0, 1);
    s->min_p = any_float(r, 0, 1);
    s->repetition_penalty = any_float(r, 0, 2);
    s->frequency_penalty = any_float(r, -2, 2);
    s->presence_penalty = any_float(r, -2, 2);
    s->seed = rng_next(r);
    s->logprobs = rng_below(r, 2) == 1;
    s->n_top = (int)rng_below(r, SAMPLING_MAX_TOP + 1);
    s->logits_hash = rng_below(r, 2) == 1;
    s->n_bias = (int)rng_below(r, SAMPLING_MAX_BIAS + 1);
    for (int i = 0; i < s->n_bias; i++) {
        s->bias[i].token = (int32_t)rng_below(r, 1000);
        s->bias[i].bias = any_float(r, -100, 100);
    }
}

static void fill_step(struct rng *r, struct step_case *c)
{
    memset(c, 0, sizeof(*c));
    c->m = (struct wire_step){.step = any64(r),
                              .n_seqs = 1 + (uint32_t)rng_below(r, 16),
                              .seqs = c->seqs,
                              .tokens = c->tokens};
    for (uint32_t i = 0; i < c->m.n_seqs; i++) {
        struct wire_step_seq *q = &c->seqs[i];
        q->seq = any64(r) << 5 | i;
        q->n_tokens = 1 + (uint32_t)rng_below(r, 16);
        q->sample = rng_below(r, 2) == 1;
        q->position = rng_below(r, 2) ? 1 + (uint32_t)rng_below(r, 4000) : 0;
        if (q->position == 0) {
            q->n_prompt = q->n_tokens + (uint32_t)rng_below(r, 1000);
            fill_sampling(r, &c->sampling[i]);
            q->sampling = &c->sampling[i];
        }
        c->m.n_tokens += q->n_tokens;
    }
    for (uint32_t i = 0; i < c->m.n_tokens; i++)
        c->tokens[i] = (int32_t)rng_below(r, 1000);
}

static void same_sampling(const struct sampling *a, const struct sampling *b)
{
    SAME(temperature);
    SAME(top_k);
    SAME(top_p);
    SAME(min_p);
    SAME(repetition_penalty);
    SAME(frequency_penalty);
    SAME(presence_penalty);
    SAME(seed);
    SAME(logprobs);
    SAME(n_top);
    SAME(logits_hash);
    SAME(n_bias);
    CHECK_BYTES(b->bias, a->bias, (size_t)a->n_bias * sizeof(a->bias[0]));
}

static int check_step(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    struct wire_step *out = NULL;
    int rc = wire_step_decode(message, payloads, n, &step_limits, &out, NULL);
    CHECK((rc == 0) == (out != NULL));
    mem_free(out);
    return rc;
}

TEST(wire_step_comes_back)
{
    struct rng r = test_rng();
    static struct step_case c;
    for (int i = 0; i < 50; i++) {
        fill_step(&r, &c);
        struct buf message = {0};
        struct blob *payload = NULL;
        wire_step_encode(&c.m, &message, &payload);
        struct frame frame = frame_of(payload);
        struct wire_step *out = NULL;
        struct err e = {0};
        if (wire_step_decode(buf_str(&message), &frame, 1, &step_limits, &out, &e) < 0)
            test_fail(__FILE__, __LINE__, "%s", e.text);
        CHECK(out->step == c.m.step);
        CHECK_INT(out->n_seqs, c.m.n_seqs);
        CHECK_INT(out->n_tokens, c.m.n_tokens);
        CHECK_BYTES(out->tokens, c.tokens, c.m.n_tokens * sizeof(int32_t));
        for (uint32_t k = 0; k < c.m.n_seqs; k++) {
            const struct wire_step_seq *a = &c.seqs[k], *b = &out->seqs[k];
            SAME(seq);
            SAME(position);
            SAME(n_tokens);
            SAME(sample);
            SAME(n_prompt);
            CHECK((a->sampling == NULL) == (b->sampling == NULL));
            if (a->sampling)
                same_sampling(a->sampling, b->sampling);
        }
        mem_free(out);
        if (i == 0)
            damage(buf_str(&message), &frame, 1, check_step, NULL);
        blob_unref(&payload);
        buf_fini(&message);
    }
}

static void check_step_refused(const struct step_case *c, const char *why)
{
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_step_encode(&c->m, &message, &payload);
    struct frame frame = frame_of(payload);
    struct wire_step *out = NULL;
    struct err e = {0};
    CHECK_INT(wire_step_decode(buf_str(&message), &frame, 1, &step_limits, &out, &e), E_INVALID);
    CHECK(!out);
    CHECK_HAS(e.text, why);
    blob_unref(&payload);
    buf_fini(&message);
}

/* One sequence at position 0 with two tokens, nothing special. */
static struct step_case plain_step(void)
{
    return (struct step_case){.m = {.step = 1, .n_seqs = 1, .n_tokens = 2},
                              .seqs = {{.seq = 7, .n_tokens = 2, .sample = true, .n_prompt = 2}}};
}

#define REFUSE_STEP(why, change) \
    do { \
        struct step_case c = plain_step(); \
        c.m.seqs = c.seqs; \
        c.m.tokens = c.tokens; \
        c.seqs[0].sampling = &c.sampling[0]; \
        change; \
        check_step_refused(&c, why); \
    } while (0)

TEST(wire_step_refuses_what_cannot_run)
{
    REFUSE_STEP("token -1 of 1000", c.tokens[1] = -1);
    REFUSE_STEP("token 1000 of 1000", c.tokens[0] = 1000);
    REFUSE_STEP("0 tokens", c.seqs[0].n_tokens = 0);
    REFUSE_STEP("the sequences name 1", c.seqs[0].n_tokens = 1);
    REFUSE_STEP("position 0", c.seqs[0].sampling = NULL);
    REFUSE_STEP("position 0", c.seqs[0].position = 1);
    REFUSE_STEP("a prompt of 0", c.seqs[0].n_prompt = 0);
    REFUSE_STEP("a prompt of 4097", c.seqs[0].n_prompt = 4097);
    REFUSE_STEP("4096 positions", (c.seqs[0].position = 4095, c.seqs[0].sampling = NULL));
    REFUSE_STEP("4096 positions", (c.seqs[0].position = UINT32_MAX, c.seqs[0].sampling = NULL));
    REFUSE_STEP("twice in one step", {
        c.m.n_seqs = 2;
        c.m.n_tokens = 4;
        c.seqs[1] = c.seqs[0];
    });
    REFUSE_STEP("17 sequences", {
        static struct wire_step_seq many[17];
        c.m.n_seqs = 17;
        c.m.seqs = many;
    });
}

TEST(wire_step_refuses_sampling_out_of_range)
{
    REFUSE_STEP("temperature", c.sampling[0].temperature = NAN);
    REFUSE_STEP("temperature", c.sampling[0].temperature = INFINITY);
    REFUSE_STEP("temperature", c.sampling[0].temperature = -0.5f);
    REFUSE_STEP("temperature", c.sampling[0].temperature = 101);
    REFUSE_STEP("top_p", c.sampling[0].top_p = 1.5f);
    REFUSE_STEP("min_p", c.sampling[0].min_p = NAN);
    REFUSE_STEP("repetition_penalty", c.sampling[0].repetition_penalty = -1);
    REFUSE_STEP("presence_penalty", c.sampling[0].presence_penalty = NAN);
    REFUSE_STEP("frequency_penalty", c.sampling[0].frequency_penalty = -INFINITY);
    REFUSE_STEP("n_top 21", c.sampling[0].n_top = 21);
    REFUSE_STEP("bias of token 1000", {
        c.sampling[0].n_bias = 1;
        c.sampling[0].bias[0].token = 1000;
    });
    REFUSE_STEP("bias of token 3", {
        c.sampling[0].n_bias = 1;
        c.sampling[0].bias[0].token = 3;
        c.sampling[0].bias[0].bias = NAN;
    });
}

static int check_step_reply(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    (void)payloads;
    (void)n;
    struct wire_step_reply *out = NULL;
    int rc = wire_step_reply_decode(message, &out, NULL);
    CHECK((rc == 0) == (out != NULL));
    mem_free(out);
    return rc;
}

TEST(wire_step_reply_comes_back)
{
    struct rng r = test_rng();
    static struct wire_step_sample samples[20];
    memset(samples, 0, sizeof(samples));
    for (int i = 0; i < 20; i++) {
        struct sampled *s = &samples[i].sampled;
        samples[i].seq = any64(&r);
        samples[i].code = i % 5 == 0 ? E_CORRUPT : 0;
        s->token = (int32_t)(any32(&r) >> 1);
        s->logprob = i == 3 ? -INFINITY : any_float(&r, -20, 0);
        s->logits_hash = rng_next(&r);
        s->n_top = i;
        for (int k = 0; k < i; k++) {
            s->top[k].token = (int32_t)(any32(&r) >> 1);
            s->top[k].logprob = any_float(&r, -20, 0);
        }
    }
    struct wire_step_reply in = {5, 6, 20, samples, 7, 8, 9, 10}, *out = NULL;
    struct buf message = {0};
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), 0);
    CHECK_INT(out->step, 5);
    CHECK_INT(out->epoch, 6);
    CHECK_INT(out->attention_us, 7);
    CHECK_INT(out->experts_us, 8);
    CHECK_INT(out->head_us, 9);
    CHECK_INT(out->kv_pages_free, 10);
    CHECK_INT(out->n_samples, 20);
    for (int i = 0; i < 20; i++) {
        const struct sampled *a = &samples[i].sampled, *b = &out->samples[i].sampled;
        CHECK(out->samples[i].seq == samples[i].seq);
        CHECK_INT(out->samples[i].code, samples[i].code);
        SAME(token);
        SAME(logprob);
        SAME(logits_hash);
        SAME(n_top);
        CHECK_BYTES(b->top, a->top, (size_t)a->n_top * sizeof(a->top[0]));
    }
    mem_free(out);
    damage(buf_str(&message), NULL, 0, check_step_reply, NULL);
    samples[0].sampled.logprob = NAN;
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), E_INVALID);
    buf_fini(&message);
}

static int check_release(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    (void)payloads;
    (void)n;
    struct wire_release *out = NULL;
    int rc = wire_release_decode(message, &out, NULL);
    mem_free(out);
    return rc;
}

TEST(wire_release_comes_back)
{
    struct rng r = test_rng();
    uint64_t seqs[30];
    for (int i = 0; i < 30; i++)
        seqs[i] = any64(&r);
    struct buf message = {0};
    for (uint32_t n = 0; n <= 30; n += 15) {
        struct wire_release *out = NULL;
        wire_release_encode(&(struct wire_release){n, seqs}, &message);
        CHECK_INT(wire_release_decode(buf_str(&message), &out, NULL), 0);
        CHECK_INT(out->n_seqs, n);
        CHECK_BYTES(out->seqs, seqs, n * sizeof(*seqs));
        mem_free(out);
    }
    damage(buf_str(&message), NULL, 0, check_release, NULL);
    buf_fini(&message);
}

/* ---- What protobuf alone would let through ------------------------------------------ */

static void check_leave_refused(const char *bytes, size_t n, const char *why)
{
    struct wire_leave out;
    struct err e = {0};
    CHECK_INT(wire_leave_decode((struct str){bytes, n}, &out, &e), E_INVALID);
    CHECK_HAS(e.text, why);
}

TEST(wire_refuses_broken_strings_and_encodings)
{
    struct wire_leave out;
    CHECK_INT(wire_leave_decode((struct str){"\x1a\x02ok", 4}, &out, NULL), 0);
    CHECK_STR(out.reason, "ok");
    check_leave_refused("\x1a\x03o\0k", 5, "reason");     /* NUL inside */
    check_leave_refused("\x1a\x02\xc3\x28", 4, "reason"); /* not UTF-8 */
    check_leave_refused("\x1a\x02\xc0\x80", 4, "reason"); /* NUL in disguise */
    check_leave_refused("\x1a\x05ok", 4, "cut short");
    check_leave_refused("\x1b\x1c", 2, "unknown wire type"); /* a group */
    check_leave_refused("\x02\x00", 2, "broken tag");        /* field 0 */
    check_leave_refused("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12, "broken number");
    char text[3 + WIRE_TEXT_BYTES];
    memset(text, 'x', sizeof(text));
    memcpy(text, "\x1a\x80\x01", 3); /* 128 bytes */
    check_leave_refused(text, sizeof(text), "reason has 128 bytes, at most 127 fit");
    text[1] = (char)0xff;
    text[2] = 0x00; /* 127, in two bytes */
    CHECK_INT(wire_leave_decode((struct str){text, sizeof(text) - 1}, &out, NULL), 0);
    /* Fields that a newer peer may send are ignored. */
    CHECK_INT(wire_leave_decode((struct str){"\x1a\x02ok\xa2\x06\x02\xff\x00", 9}, &out, NULL), 0);
    CHECK_INT(wire_leave_decode((struct str){NULL, 0}, &out, NULL), 0);
}

TEST(wire_refuses_enumerations_and_names_it_does_not_know)
{
    struct rng r = test_rng();
    struct wire_join in = {0}, out;
    fill_join(&r, &in);
    struct buf message = {0};
    struct err e = {0};
    in.role = (enum node_role)5;
    wire_join_encode(&in, &message);
    CHECK_INT(wire_join_decode(buf_str(&message), &out, &e), E_INVALID);
    CHECK_HAS(e.text, "role");
    fill_join(&r, &in);
    in.incarnation = 0;
    wire_join_encode(&in, &message);
    CHECK_INT(wire_join_decode(buf_str(&message), &out, &e), E_INVALID);
    CHECK_HAS(e.text, "incarnation");
    fill_join(&r, &in);
    wire_join_encode(&in, &message);
    buf_append(&message, "\x5a\x03sum", 5); /* field 11, combine: the last one counts */
    CHECK_INT(wire_join_decode(buf_str(&message), &out, &e), E_INVALID);
    CHECK_HAS(e.text, "\"sum\"");
    struct wire_heartbeat beat = {.state = (enum node_state)9}, beat_out;
    wire_heartbeat_encode(&beat, &message);
    CHECK_INT(wire_heartbeat_decode(buf_str(&message), &beat_out, &e), E_INVALID);
    struct wire_health health;
    CHECK_INT(wire_health_decode((struct str){"", 0}, &health, NULL), E_INVALID);
    struct wire_join_reply reply = {.node_id = 0, .heartbeat_ms = 5, .lease_ms = 50}, reply_out;
    wire_join_reply_encode(&reply, &message);
    CHECK_INT(wire_join_reply_decode(buf_str(&message), &reply_out, NULL), E_INVALID);
    buf_fini(&message);
}

TEST(wire_bounds_what_a_small_message_may_cost)
{
    /* Two bytes per empty sequence on the wire, some hundred in memory: 16 MiB of them. */
    struct buf message = {0};
    buf_reserve(&message, 16 << 20);
    for (int i = 0; i < (8 << 20) - 1; i++)
        buf_append(&message, "\x1a\x00", 2);
    struct wire_step *out = NULL;
    struct err e = {0};
    struct frame frame = {"", 0};
    CHECK_INT(wire_step_decode(buf_str(&message), &frame, 1, &step_limits, &out, &e), E_INVALID);
    CHECK(!out);
    buf_append(&message, "\x1a\x00\x1a\x00", 4); /* over 16 MiB */
    CHECK_INT(wire_step_decode(buf_str(&message), &frame, 1, &step_limits, &out, &e), E_INVALID);
    CHECK_HAS(e.text, "bytes");
    buf_fini(&message);
}

TEST(wire_names_come_from_the_services)
{
    static const int counts[] = {CLUSTER_METHODS, EXPERT_METHODS, ATTENTION_METHODS, 2, 1};
    static const char *const names[] = {"polymath.v1.Cluster/Leave", "polymath.v1.Expert/Describe",
                                        "polymath.v1.Attention/Describe",
                                        "polymath.v1.Health/Watch", "polymath.v1.Reflection/List"};
    for (int s = 0; s < WIRE_SERVICES; s++) {
        CHECK_INT(wire_service_methods((enum wire_service)s), counts[s]);
        CHECK_STR(wire_method((enum wire_service)s, counts[s] - 1), names[s]);
        for (int m = 0; m < counts[s]; m++) {
            enum wire_service service;
            int method;
            CHECK_INT(wire_method_find(wire_method((enum wire_service)s, m), &service, &method), 0);
            CHECK_INT(service, s);
            CHECK_INT(method, m);
            CHECK(wire_method_is_stream(service, method) ==
                  (s == WIRE_HEALTH && m == HEALTH_WATCH));
        }
    }
    CHECK_STR(wire_method(WIRE_CLUSTER, CLUSTER_JOIN), "polymath.v1.Cluster/Join");
    CHECK_STR(wire_method(WIRE_CLUSTER, CLUSTER_HEARTBEAT), "polymath.v1.Cluster/Heartbeat");
    CHECK_STR(wire_method(WIRE_CLUSTER, CLUSTER_HOLDINGS), "polymath.v1.Cluster/Holdings");
    CHECK_STR(wire_method(WIRE_CLUSTER, CLUSTER_TABLE), "polymath.v1.Cluster/Table");
    CHECK_STR(wire_method(WIRE_EXPERT, EXPERT_FORWARD), "polymath.v1.Expert/Forward");
    CHECK_STR(wire_method(WIRE_ATTENTION, ATTENTION_STEP), "polymath.v1.Attention/Step");
    CHECK_STR(wire_method(WIRE_ATTENTION, ATTENTION_RELEASE), "polymath.v1.Attention/Release");
    enum wire_service service;
    int method;
    CHECK_INT(wire_method_find("polymath.v1.Expert/forward", &service, &method), E_NOT_FOUND);
}
