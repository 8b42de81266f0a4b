/* tests/unit/test_wire.c - messages without payloads there and back with random contents; cut
 * at every byte; with bits flipped; and what protobuf alone would let through. */
#include "rpc/wire.h"

#include "tests/unit/wire_random.h"

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
                wire_damage(buf_str(&message), NULL, 0, check_##name, NULL); \
            buf_fini(&message); \
        } \
    }

#define SAME(field) CHECK(a->field == b->field)
#define SAME_TEXT(field) CHECK_STR(b->field, a->field)

static struct format_set any_formats(struct rng *r)
{
    return (struct format_set){.experts = (enum weight_format)rng_below(r, FORMAT_COUNT),
                               .attention = (enum weight_format)rng_below(r, FORMAT_COUNT),
                               .head = (enum weight_format)rng_below(r, FORMAT_COUNT),
                               .kv = (enum kv_format)rng_below(r, KV_FORMAT_COUNT)};
}

static void fill_join(struct rng *r, struct wire_join *m)
{
    m->role = (enum node_role)rng_below(r, 3);
    m->borrows = rng_below(r, 2);
    wire_random_text(r, m->name, sizeof(m->name));
    wire_random_text(r, m->endpoint, sizeof(m->endpoint));
    wire_random_text(r, m->host, sizeof(m->host));
    wire_random_text(r, m->rack, sizeof(m->rack));
    wire_random_text(r, m->kernels, sizeof(m->kernels));
    wire_random_text(r, m->build, sizeof(m->build));
    m->pid = wire_random_32(r);
    m->threads = wire_random_32(r);
    m->incarnation = wire_random_64(r) | 1;
    m->protocol_version = wire_random_32(r);
    m->fingerprint = wire_random_64(r);
    m->formats = any_formats(r);
    m->combine = (enum combine_mode)rng_below(r, COMBINE_COUNT);
    m->memory_bytes = wire_random_64(r);
    m->expert_bytes = wire_random_64(r);
    m->max_rows = wire_random_32(r);
    wire_random_key(r, m->public_key);
    m->read_bytes_s = wire_random_64(r);
}
static void same_join(const struct wire_join *a, const struct wire_join *b)
{
    SAME(role);
    SAME_TEXT(name);
    SAME_TEXT(endpoint);
    SAME_TEXT(host);
    SAME_TEXT(rack);
    SAME_TEXT(kernels);
    SAME_TEXT(build);
    SAME(pid);
    SAME(threads);
    SAME(incarnation);
    SAME(protocol_version);
    SAME(fingerprint);
    CHECK(format_set_equal(&a->formats, &b->formats));
    SAME(combine);
    SAME(memory_bytes);
    SAME(expert_bytes);
    SAME(max_rows);
    SAME_TEXT(public_key);
    SAME(read_bytes_s);
    SAME(borrows);
}
ROUND_TRIP(wire_join, join, fill_join)

static void fill_join_reply(struct rng *r, struct wire_join_reply *m)
{
    m->node_id = wire_random_32(r) | 1;
    m->epoch = wire_random_64(r);
    m->heartbeat_ms = 1 + (uint32_t)rng_below(r, 5000);
    m->lease_ms = m->heartbeat_ms + wire_random_32(r) / 2;
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
    m->node_id = wire_random_32(r);
    m->incarnation = wire_random_64(r);
    m->state = (enum node_state)rng_below(r, 5);
    m->epoch = wire_random_64(r);
    m->holdings_version = wire_random_64(r);
    m->experts_held = wire_random_32(r);
    m->experts_wanted = wire_random_32(r);
    m->held_bytes = wire_random_64(r);
    m->tested = wire_random_64(r);
    m->kv_pages = wire_random_32(r);
    m->n_broken = (uint32_t)rng_below(r, WIRE_MAX_BROKEN + 1);
    for (uint32_t i = 0; i < m->n_broken; i++)
        m->broken[i] = wire_random_64(r);
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
    SAME(tested);
    SAME(kv_pages);
    SAME(n_broken);
    for (uint32_t i = 0; i < a->n_broken; i++)
        SAME(broken[i]);
}
ROUND_TRIP(wire_heartbeat, heartbeat, fill_heartbeat)

static void fill_heartbeat_reply(struct rng *r, struct wire_heartbeat_reply *m)
{
    m->epoch = wire_random_64(r);
    m->holdings_version = wire_random_64(r);
    m->callers_version = wire_random_64(r);
    m->drain = rng_below(r, 2);
    m->restart = rng_below(r, 2);
    m->may_leave = rng_below(r, 2);
    m->test = wire_random_64(r);
}
static void same_heartbeat_reply(const struct wire_heartbeat_reply *a,
                                 const struct wire_heartbeat_reply *b)
{
    SAME(epoch);
    SAME(holdings_version);
    SAME(callers_version);
    SAME(drain);
    SAME(restart);
    SAME(may_leave);
    SAME(test);
}
ROUND_TRIP(wire_heartbeat_reply, heartbeat_reply, fill_heartbeat_reply)

static void fill_holdings_request(struct rng *r, struct wire_holdings_request *m)
{
    m->node_id = wire_random_32(r);
}
static void same_holdings_request(const struct wire_holdings_request *a,
                                  const struct wire_holdings_request *b)
{
    SAME(node_id);
}
ROUND_TRIP(wire_holdings_request, holdings_request, fill_holdings_request)

static void fill_leave(struct rng *r, struct wire_leave *m)
{
    m->node_id = wire_random_32(r);
    m->incarnation = wire_random_64(r);
    wire_random_text(r, m->reason, sizeof(m->reason));
}
static void same_leave(const struct wire_leave *a, const struct wire_leave *b)
{
    SAME(node_id);
    SAME(incarnation);
    SAME_TEXT(reason);
}
ROUND_TRIP(wire_leave, leave, fill_leave)

static void fill_follow(struct rng *r, struct wire_follow *m)
{
    m->instance = wire_random_64(r) | 1;
    m->state = wire_random_64(r) | 1;
    wire_random_text(r, m->name, sizeof(m->name));
    m->stream = wire_random_64(r);
    m->offset = wire_random_64(r);
}
static void same_follow(const struct wire_follow *a, const struct wire_follow *b)
{
    SAME(instance);
    SAME(state);
    SAME_TEXT(name);
    SAME(stream);
    SAME(offset);
}
ROUND_TRIP(wire_follow, follow, fill_follow)

TEST(wire_follow_of_an_earlier_version_has_its_instance_for_a_state)
{
    struct wire_follow in = {.instance = 7, .name = "b"}, out;
    struct buf message = {0};
    wire_follow_encode(&in, &message);
    CHECK_INT(wire_follow_decode(buf_str(&message), &out, NULL), 0);
    CHECK_INT(out.state, 7);
    buf_fini(&message);
}

TEST(wire_follow_reply_comes_back)
{
    struct wire_follow_reply in = {5, 1ull << 40, 77, STR("some bytes")}, out;
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_follow_reply_encode(&in, &message, &payload);
    struct frame frame = {payload->data, payload->size_bytes};
    CHECK_INT(wire_follow_reply_decode(buf_str(&message), &frame, 1, &out, NULL), 0);
    CHECK(out.stream == in.stream && out.offset == in.offset);
    CHECK_INT(out.snapshot_bytes, 77);
    CHECK(str_equal(out.bytes, in.bytes));
    struct err e = {0};
    CHECK_INT(wire_follow_reply_decode(buf_str(&message), &frame, 0, &out, &e), E_INVALID);
    CHECK_HAS(e.text, "0 payloads");
    ((char *)payload->data)[3] ^= 1;
    CHECK_INT(wire_follow_reply_decode(buf_str(&message), &frame, 1, &out, &e), E_INVALID);
    CHECK_HAS(e.text, "checksum");
    blob_unref(&payload);
    buf_fini(&message);
}

static void fill_expert_description(struct rng *r, struct wire_expert_description *m)
{
    wire_random_text(r, m->name, sizeof(m->name));
    wire_random_text(r, m->kernels, sizeof(m->kernels));
    wire_random_text(r, m->build, sizeof(m->build));
    m->fingerprint = wire_random_64(r);
    m->holdings_version = wire_random_64(r);
    m->held_bytes = wire_random_64(r);
    m->experts_held = wire_random_32(r);
    m->n_layers = wire_random_32(r);
    m->n_experts = wire_random_32(r);
    m->protocol_version = wire_random_32(r);
    m->formats = any_formats(r);
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
    CHECK(format_set_equal(&a->formats, &b->formats));
    SAME(combine);
}
ROUND_TRIP(wire_expert_description, expert_description, fill_expert_description)

static void fill_attention_description(struct rng *r, struct wire_attention_description *m)
{
    wire_random_text(r, m->name, sizeof(m->name));
    wire_random_text(r, m->kernels, sizeof(m->kernels));
    wire_random_text(r, m->build, sizeof(m->build));
    m->fingerprint = wire_random_64(r);
    m->epoch = wire_random_64(r);
    m->kv_pages_total = wire_random_32(r);
    m->kv_pages_free = wire_random_32(r);
    m->page_tokens = wire_random_32(r);
    m->keeps_prefixes = rng_below(r, 2);
    m->takes_drafts = rng_below(r, 2);
    m->max_rows = wire_random_32(r);
    m->max_seqs = wire_random_32(r);
    m->max_positions = wire_random_32(r);
    m->protocol_version = wire_random_32(r);
    m->formats = any_formats(r);
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
    SAME(keeps_prefixes);
    SAME(takes_drafts);
    SAME(max_rows);
    SAME(max_seqs);
    SAME(max_positions);
    SAME(protocol_version);
    CHECK(format_set_equal(&a->formats, &b->formats));
    SAME(combine);
}
ROUND_TRIP(wire_attention_description, attention_description, fill_attention_description)

static uint32_t any_metadata(struct rng *r, struct wire_metadata *m)
{
    uint32_t n = (uint32_t)rng_below(r, WIRE_MAX_METADATA + 1);
    for (uint32_t i = 0; i < n; i++) {
        wire_random_text(r, m[i].key, sizeof(m[i].key));
        wire_random_text(r, m[i].value, sizeof(m[i].value));
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
    m->version = wire_random_32(r);
    m->flags = wire_random_32(r);
    m->call_id = wire_random_64(r) | 1;
    m->trace_id = wire_random_64(r);
    m->deadline_us = wire_random_64(r);
    wire_random_text(r, m->method, sizeof(m->method));
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
    m->version = wire_random_32(r);
    m->flags = wire_random_32(r);
    m->call_id = wire_random_64(r) | 1;
    m->code = -(int)rng_below(r, 17);
    wire_random_text(r, m->text, sizeof(m->text));
    m->queue_us = wire_random_64(r);
    m->compute_us = wire_random_64(r);
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
        wire_random_text(r, m->methods[i], WIRE_METHOD_BYTES);
}
static void same_listing(const struct wire_listing *a, const struct wire_listing *b)
{
    SAME(n_methods);
    for (uint32_t i = 0; i < a->n_methods; i++)
        CHECK_STR(b->methods[i], a->methods[i]);
}
ROUND_TRIP(wire_listing, listing, fill_listing)

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

TEST(wire_names_come_from_the_services)
{
    static const int counts[] = {CLUSTER_METHODS, EXPERT_METHODS, ATTENTION_METHODS, 2, 1,
                                 CONTEXT_METHODS};
    static const char *const names[] = {
        "polymath.v1.Cluster/Follow",     "polymath.v1.Expert/Describe",
        "polymath.v1.Attention/Describe", "polymath.v1.Health/Watch",
        "polymath.v1.Reflection/List",    "polymath.v1.Context/Attend"};
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
    CHECK_STR(wire_method(WIRE_CONTEXT, CONTEXT_OPEN), "polymath.v1.Context/Open");
    CHECK_STR(wire_method(WIRE_CONTEXT, CONTEXT_CHOOSE), "polymath.v1.Context/Choose");
    enum wire_service service;
    int method;
    CHECK_INT(wire_method_find("polymath.v1.Expert/forward", &service, &method), E_NOT_FOUND);
}
