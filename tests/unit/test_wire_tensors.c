/* tests/unit/test_wire_tensors.c - messages with payloads or lists: holdings, tables, Forward,
 * Step; there and back, damaged, and refused where the contracts say so. */
#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "rpc/wire.h"
#include "tests/unit/wire_random.h"

#define SAME(field) CHECK(a->field == b->field)

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
        struct wire_holdings in = {.version = wire_random_64(&r),
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
            wire_damage(buf_str(&message), &frame, 1, check_holdings, NULL);
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

/* A random number of places for each expert, no node twice. */
static void fill_places(struct rng *r, uint16_t *places, uint32_t n_nodes, uint32_t n_replicas)
{
    uint32_t n = (uint32_t)rng_below(r, n_replicas + 1), first = (uint32_t)rng_below(r, n_nodes);
    for (uint32_t i = 0; i < n_replicas; i++)
        places[i] = i < n ? (uint16_t)((first + i) % n_nodes) : WIRE_NO_HOLDER;
}

TEST(wire_table_comes_back)
{
    enum { LAYERS = 3, EXPERTS = 40, NODES = 5, REPLICAS = 3 };
    struct rng r = test_rng();
    struct wire_table_node nodes[NODES] = {0};
    uint16_t holders[LAYERS * EXPERTS * REPLICAS];
    for (int i = 0; i < NODES; i++) {
        nodes[i].node_id = 1 + wire_random_32(&r) / 2;
        wire_random_text(&r, nodes[i].name, sizeof(nodes[i].name));
        wire_random_text(&r, nodes[i].endpoint, sizeof(nodes[i].endpoint));
        nodes[i].incarnation = wire_random_64(&r);
        nodes[i].max_rows = wire_random_32(&r), nodes[i].read_bytes_s = wire_random_64(&r);
        wire_random_key(&r, nodes[i].public_key);
    }
    for (int i = 0; i < LAYERS * EXPERTS; i++)
        fill_places(&r, holders + REPLICAS * i, NODES, REPLICAS);
    struct wire_table in = {77, LAYERS, EXPERTS, NODES, REPLICAS, nodes, holders}, *out = NULL;
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_table_encode(&in, &message, &payload);
    struct frame frame = frame_of(payload);
    CHECK_INT(wire_table_decode(buf_str(&message), &frame, 1, &out, NULL), 0);
    CHECK(out->epoch == 77 && out->n_nodes == NODES);
    for (int i = 0; i < NODES; i++) {
        CHECK(out->nodes[i].node_id == nodes[i].node_id);
        CHECK_STR(out->nodes[i].name, nodes[i].name);
        CHECK_STR(out->nodes[i].endpoint, nodes[i].endpoint);
        CHECK(out->nodes[i].incarnation == nodes[i].incarnation);
        CHECK(out->nodes[i].max_rows == nodes[i].max_rows &&
              out->nodes[i].read_bytes_s == nodes[i].read_bytes_s);
        CHECK_STR(out->nodes[i].public_key, nodes[i].public_key);
    }
    CHECK_INT(out->n_replicas, REPLICAS);
    CHECK_BYTES(out->holders, holders, sizeof(holders));
    CHECK_BYTES(wire_table_holders(out, 2, 39), holders + (2 * EXPERTS + 39) * REPLICAS,
                REPLICAS * sizeof(*holders));
    mem_free(out);
    wire_damage(buf_str(&message), &frame, 1, check_table, NULL);

    static const struct {
        uint16_t places[REPLICAS];
        int code;
    } cases[] = {
        {{NODES, WIRE_NO_HOLDER, WIRE_NO_HOLDER}, E_INVALID}, /* one that the table does not name */
        {{0, 1, NODES}, E_INVALID},
        {{2, 1, 2}, E_INVALID},
        {{1, WIRE_NO_HOLDER, 2}, E_INVALID},
        {{WIRE_NO_HOLDER, WIRE_NO_HOLDER, 0}, E_INVALID},
        {{WIRE_NO_HOLDER, WIRE_NO_HOLDER, WIRE_NO_HOLDER}, 0},
        {{4, 0, 2}, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        memcpy((uint16_t *)payload->data + 7 * REPLICAS, cases[i].places, sizeof(cases[i].places));
        CHECK_INT(check_table(NULL, buf_str(&message), &frame, 1), cases[i].code);
    }
    blob_unref(&payload);
    buf_fini(&message);
}

/* A key that is no key must not get through, wherever one travels. */
TEST(wire_refuses_what_is_no_key)
{
    struct wire_table_node node = {.node_id = 1, .endpoint = "ipc://x", .public_key = "short"};
    uint16_t holder = 0;
    struct wire_table in = {1, 1, 1, 1, 1, &node, &holder}, *out = NULL;
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_table_encode(&in, &message, &payload);
    struct frame frame = frame_of(payload);
    struct err e = {0};
    CHECK_INT(wire_table_decode(buf_str(&message), &frame, 1, &out, &e), E_INVALID);
    CHECK_HAS(e.text, "public_key");
    blob_unref(&payload);
    memset(node.public_key, '"', KEY_TEXT_BYTES - 1); /* 40 characters, but not of Z85 */
    wire_table_encode(&in, &message, &payload);
    frame = frame_of(payload);
    CHECK_INT(wire_table_decode(buf_str(&message), &frame, 1, &out, &e), E_INVALID);
    CHECK_HAS(e.text, "public_key");
    blob_unref(&payload);
    buf_fini(&message);
}

static int check_callers(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud, (void)payloads, (void)n;
    struct wire_callers *out = NULL;
    int rc = wire_callers_decode(message, &out, NULL);
    CHECK((rc == 0) == (out != NULL));
    for (uint32_t i = 0; out && i < out->n_keys; i++)
        CHECK(key_is_valid(out->keys[i]));
    mem_free(out);
    return rc;
}

TEST(wire_callers_come_back)
{
    struct rng r = test_rng();
    char keys[5][KEY_TEXT_BYTES];
    for (int i = 0; i < 5; i++)
        do
            wire_random_key(&r, keys[i]);
        while (!keys[i][0]);
    struct wire_callers in = {wire_random_64(&r), 5, keys}, *out = NULL;
    struct buf message = {0};
    wire_callers_encode(&in, &message);
    CHECK_INT(wire_callers_decode(buf_str(&message), &out, NULL), 0);
    CHECK(out->version == in.version);
    CHECK_INT(out->n_keys, 5);
    for (int i = 0; i < 5; i++)
        CHECK_STR(out->keys[i], keys[i]);
    mem_free(out);
    wire_damage(buf_str(&message), NULL, 0, check_callers, NULL);

    keys[2][0] = '\0'; /* a caller without a key would be everybody */
    wire_callers_encode(&in, &message);
    CHECK_INT(wire_callers_decode(buf_str(&message), &out, NULL), E_INVALID);
    in.n_keys = 0;
    wire_callers_encode(&in, &message);
    CHECK_INT(wire_callers_decode(buf_str(&message), &out, NULL), 0);
    CHECK_INT(out->n_keys, 0);
    mem_free(out);
    buf_fini(&message);
}

static int check_load(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    struct wire_load out;
    uint16_t *counts = NULL;
    int rc = wire_load_decode(message, payloads, n, &out, &counts, NULL);
    CHECK((rc == 0) == (counts != NULL));
    mem_free(counts);
    return rc;
}

TEST(wire_load_comes_back)
{
    enum { LAYERS = 3, EXPERTS = 7 };
    struct rng r = test_rng();
    uint16_t counts[LAYERS * EXPERTS], *back = NULL;
    for (int i = 0; i < LAYERS * EXPERTS; i++)
        counts[i] = (uint16_t)rng_next(&r);
    struct wire_load in = {5, 77, LAYERS, EXPERTS, counts}, out;
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_load_encode(&in, &message, &payload);
    struct frame frame = frame_of(payload);
    CHECK_INT(wire_load_decode(buf_str(&message), &frame, 1, &out, &back, NULL), 0);
    CHECK_INT(out.node_id, 5);
    CHECK_INT(out.incarnation, 77);
    CHECK_INT(out.n_layers, LAYERS);
    CHECK_BYTES(out.counts, counts, sizeof(counts));
    mem_free(back);
    wire_damage(buf_str(&message), &frame, 1, check_load, NULL);
    blob_unref(&payload);
    buf_fini(&message);
}

/* ---- Forward ---------------------------------------------------------------------- */

/* The group changes from test to test. */
static struct wire_forward_limits limits = {
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
                                 .epoch = wire_random_64(r),
                                 .step = wire_random_64(r),
                                 .layer = (uint32_t)rng_below(r, limits.n_layers),
                                 .lane = (uint32_t)rng_below(r, 2),
                                 .n_rows = 1 + (uint32_t)rng_below(r, limits.max_rows),
                                 .hidden = limits.hidden,
                                 .group = limits.group,
                                 .mode = (enum combine_mode)rng_below(r, COMBINE_COUNT)};
    for (uint32_t i = 0; i < p->m.n_rows; i++) {
        uint32_t n = 1 + (uint32_t)rng_below(r, limits.max_top_k);
        p->first_route[i] = (int32_t)p->m.n_routes;
        p->exponents[i] = (int16_t)rng_next(r);
        for (uint32_t k = 0; k < n; k++) {
            p->experts[p->m.n_routes] = (uint16_t)(k * 4 + rng_below(r, 4));
            p->weights[p->m.n_routes++] = wire_random_float(r, -2, 2);
        }
    }
    p->first_route[p->m.n_rows] = (int32_t)p->m.n_routes;
    size_t routes_bytes = wire_forward_routes_bytes(p->m.n_rows, p->m.n_routes);
    CHECK(routes_bytes < sizeof(p->routes));
    /* At an odd address, as libzmq delivers it. */
    wire_forward_pack_routes(&p->m, p->first_route, p->exponents, p->experts, p->weights,
                             p->routes + 1);
    p->frames[0] = (struct frame){p->routes + 1, routes_bytes};
    p->frames[1] = (struct frame){.data = p->rows};
    CHECK(wire_forward_rows_bytes(&p->m, &p->frames[1].size_bytes));
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
            wire_damage(buf_str(&p.message), p.frames, 2, check_forward, NULL);
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
    p.m.group = 64;
    check_forward_refused(&p, "rows come as groups of 64, the experts here read f32");
    limits.group = 128;
    check_forward_refused(&p, "rows come as groups of 64, the experts here read groups of 128");
    p.m = good;
    check_forward_refused(&p, "rows come as f32, the experts here read groups of 128");
    limits.group = 0;
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

/* ---- Forward's rows ----------------------------------------------------------------- */

/* 3 rows of 200 columns in groups of 64: the last group has 8. */
enum { ROWS = 3, COLS = 200, GROUPS = 4, ROOM = 256 };

static const struct wire_forward quantised = {
    .n_rows = ROWS, .hidden = COLS, .group = 64, .n_routes = ROWS};

struct quantised_rows {
    /* At an odd address, as libzmq delivers it. */
    char bytes[1 + ROWS * (COLS + GROUPS * sizeof(float))];
    int8_t q8[ROWS * ROOM];
    float scales[ROWS * GROUPS];
    int32_t sums[ROWS * GROUPS];
};

static void set_q8(struct quantised_rows *q, int row, int col, int8_t value)
{
    q->bytes[1 + row * COLS + col] = (char)value;
}

static void set_scale(struct quantised_rows *q, int row, int group, float value)
{
    memcpy(q->bytes + 1 + ROWS * COLS + (size_t)(row * GROUPS + group) * sizeof(value), &value,
           sizeof(value));
}

static int unpack_quantised(struct quantised_rows *q, struct err *e)
{
    struct frame f = {.data = q->bytes + 1};
    struct wire_rows to = {.q8 = q->q8,
                           .scales = q->scales,
                           .sums = q->sums,
                           .q8_stride = ROOM,
                           .scale_stride = GROUPS};
    CHECK(wire_forward_rows_bytes(&quantised, &f.size_bytes));
    CHECK_INT(f.size_bytes, sizeof(q->bytes) - 1);
    return wire_forward_unpack_rows(&quantised, &f, &to, e);
}

static void fill_quantised(struct rng *r, struct quantised_rows *q)
{
    memset(q, 0, sizeof(*q));
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < COLS; k++)
            set_q8(q, i, k, (int8_t)((int)rng_below(r, 255) - 127));
        for (int g = 0; g < GROUPS; g++)
            set_scale(q, i, g, (float)rng_unit(r));
    }
}

TEST(wire_forward_rows_come_back_quantised)
{
    struct rng r = test_rng();
    static struct quantised_rows q;
    struct err e = {0};
    CHECK_INT(wire_forward_groups(&quantised), GROUPS);
    fill_quantised(&r, &q);
    if (unpack_quantised(&q, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    for (int i = 0; i < ROWS; i++) {
        CHECK_BYTES(q.q8 + i * ROOM, q.bytes + 1 + i * COLS, COLS);
        for (int k = COLS; k < ROOM; k++)
            CHECK_INT(q.q8[i * ROOM + k], 0);
        int32_t sums[GROUPS] = {0};
        for (int k = 0; k < COLS; k++)
            sums[k / 64] += q.q8[i * ROOM + k];
        CHECK_BYTES(q.sums + i * GROUPS, sums, sizeof(sums));
    }
    CHECK_BYTES(q.scales, q.bytes + 1 + ROWS * COLS, sizeof(q.scales));
}

TEST(wire_forward_rows_come_back_as_floats)
{
    struct wire_forward m = {.n_rows = ROWS, .hidden = COLS, .n_routes = ROWS};
    struct rng r = test_rng();
    static float sent[ROWS * COLS], got[ROWS * ROOM];
    for (int i = 0; i < ROWS * COLS; i++)
        sent[i] = wire_random_float(&r, -9, 9);
    struct frame f = {.data = sent};
    struct wire_rows to = {.f32 = got, .f32_stride = ROOM};
    CHECK(wire_forward_rows_bytes(&m, &f.size_bytes));
    CHECK_INT(f.size_bytes, sizeof(sent));
    CHECK_INT(wire_forward_unpack_rows(&m, &f, &to, NULL), 0);
    for (int i = 0; i < ROWS; i++) {
        CHECK_BYTES(got + i * ROOM, sent + i * COLS, COLS * sizeof(float));
        CHECK(got[i * ROOM + COLS] == 0);
    }
}

/* In every group, so that no short cut over whole blocks leaves one out. */
TEST(wire_forward_refuses_hostile_rows)
{
    struct rng r = test_rng();
    static struct quantised_rows q;
    struct err e = {0};
    for (int row = 0; row < ROWS; row++)
        for (int col = 0; col < COLS; col += 11) {
            fill_quantised(&r, &q);
            set_q8(&q, row, col, -128);
            CHECK_INT(unpack_quantised(&q, &e), E_INVALID);
            CHECK_HAS(e.text, "-128");
        }
    static const float bad[] = {-1, -1e-40f, INFINITY, -INFINITY};
    for (int i = 0; i < 4; i++)
        for (int at = 0; at < ROWS * GROUPS; at++) {
            fill_quantised(&r, &q);
            set_scale(&q, at / GROUPS, at % GROUPS, bad[i]);
            CHECK_INT(unpack_quantised(&q, &e), E_INVALID);
            CHECK_HAS(e.text, "scale");
        }
    /* What a row that was not finite looks like, and a row of zeros. */
    fill_quantised(&r, &q);
    set_scale(&q, 1, GROUPS - 1, NAN);
    set_scale(&q, 2, 0, 0);
    CHECK_INT(unpack_quantised(&q, &e), 0);
    CHECK(isnan(q.scales[2 * GROUPS - 1]));
}

TEST(wire_forward_rows_of_the_wrong_size_are_refused)
{
    struct rng r = test_rng();
    static struct parcel p;
    struct wire_forward out;
    for (limits.group = 0; limits.group <= 128; limits.group += 64) {
        fill_parcel(&r, &p);
        struct frame good = p.frames[1];
        CHECK_INT(wire_forward_decode(buf_str(&p.message), p.frames, 2, &limits, &out, NULL), 0);
        for (int off = -1; off <= 1; off += 2) {
            p.frames[1].size_bytes = good.size_bytes + (size_t)off;
            CHECK_INT(wire_forward_decode(buf_str(&p.message), p.frames, 2, &limits, &out, NULL),
                      E_INVALID);
        }
        CHECK_INT(wire_forward_decode(buf_str(&p.message), p.frames, 1, &limits, &out, NULL),
                  E_INVALID);
        buf_fini(&p.message);
    }
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
        wire_damage(buf_str(&message), &frame, 1, check_forward_reply, &asked);

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
    int32_t tokens[1024];
};

static void fill_sampling(struct rng *r, struct sampling *s)
{
    s->temperature = wire_random_float(r, 0, 100);
    s->top_k = (int)rng_below(r, 1000);
    s->top_p = wire_random_float(r, 0, 1);
    s->min_p = wire_random_float(r, 0, 1);
    s->repetition_penalty = wire_random_float(r, 0, 2);
    s->frequency_penalty = wire_random_float(r, -2, 2);
    s->presence_penalty = wire_random_float(r, -2, 2);
    s->seed = rng_next(r);
    s->logprobs = rng_below(r, 2) == 1;
    s->n_top = (int)rng_below(r, SAMPLING_MAX_TOP + 1);
    s->logits_hash = rng_below(r, 2) == 1;
    s->n_bias = (int)rng_below(r, SAMPLING_MAX_BIAS + 1);
    for (int i = 0; i < s->n_bias; i++) {
        s->bias[i].token = (int32_t)rng_below(r, 1000);
        s->bias[i].bias = wire_random_float(r, -100, 100);
    }
}

static void fill_step(struct rng *r, struct step_case *c)
{
    uint32_t n_payload = 0;
    memset(c, 0, sizeof(*c));
    c->m = (struct wire_step){.step = wire_random_64(r),
                              .session = wire_random_64(r),
                              .n_seqs = 1 + (uint32_t)rng_below(r, 16),
                              .seqs = c->seqs,
                              .tokens = c->tokens};
    for (uint32_t i = 0; i < c->m.n_seqs; i++) {
        struct wire_step_seq *q = &c->seqs[i];
        q->seq = wire_random_64(r) << 5 | i;
        q->n_tokens = 1 + (uint32_t)rng_below(r, 16);
        q->sample = rng_below(r, 2) == 1;
        q->position = rng_below(r, 2) ? 1 + (uint32_t)rng_below(r, 4000) : 0;
        if (q->position == 0) {
            q->n_prompt = q->n_tokens + (uint32_t)rng_below(r, 1000);
            fill_sampling(r, &c->sampling[i]);
            q->sampling = &c->sampling[i];
            q->n_ahead = (uint32_t)rng_below(r, 30);
        } else if (q->sample) {
            q->n_draft = q->n_tokens - 1;
        }
        c->m.n_tokens += q->n_tokens;
        n_payload += q->n_tokens + q->n_ahead;
    }
    for (uint32_t i = 0; i < n_payload; i++)
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
        CHECK_BYTES(out->tokens, c.tokens, frame.size_bytes);
        for (uint32_t k = 0; k < c.m.n_seqs; k++) {
            const struct wire_step_seq *a = &c.seqs[k], *b = &out->seqs[k];
            SAME(seq);
            SAME(position);
            SAME(n_tokens);
            SAME(sample);
            SAME(n_prompt);
            SAME(n_ahead);
            SAME(n_draft);
            CHECK((a->sampling == NULL) == (b->sampling == NULL));
            if (a->sampling)
                same_sampling(a->sampling, b->sampling);
        }
        mem_free(out);
        if (i == 0)
            wire_damage(buf_str(&message), &frame, 1, check_step, NULL);
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
    static const int32_t many_tokens[4098];
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
    REFUSE_STEP("n_draft 1 with 2 tokens", c.seqs[0].n_draft = 1);
    REFUSE_STEP("n_ahead belongs to position 0", {
        c.seqs[0].position = 1;
        c.seqs[0].n_ahead = 1;
        c.seqs[0].sampling = NULL;
    });
    REFUSE_STEP("4098 tokens from position 0",
                (c.seqs[0].n_ahead = 4096, c.m.tokens = many_tokens));
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
        samples[i].seq = wire_random_64(&r);
        samples[i].code = i % 5 == 0 ? E_CORRUPT : 0;
        s->token = (int32_t)(wire_random_32(&r) >> 1);
        s->logprob = i == 3 ? -INFINITY : wire_random_float(&r, -20, 0);
        s->logits_hash = rng_next(&r);
        s->n_top = i;
        for (int k = 0; k < i; k++) {
            s->top[k].token = (int32_t)(wire_random_32(&r) >> 1);
            s->top[k].logprob = wire_random_float(&r, -20, 0);
        }
    }
    struct wire_node_health nodes[3] = {
        {.node_id = 7, .incarnation = 99, .standing = WIRE_STANDING_WRONG, .wrongs = 2},
        {.node_id = 8, .failovers = 5, .lates = 4, .usual_us = 1234},
        {.node_id = 9, .standing = WIRE_STANDING_AWAY}};
    struct wire_step_reply in = {.step = 5,
                                 .epoch = 6,
                                 .n_samples = 20,
                                 .samples = samples,
                                 .attention_us = 7,
                                 .experts_us = 8,
                                 .head_us = 9,
                                 .kv_pages_free = 10,
                                 .degraded = true,
                                 .ladder = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
                                 .n_nodes = 3,
                                 .nodes = nodes,
                                 .n_opened = 2,
                                 .opened = (struct wire_step_opened[]){{11, 64}, {12, 128}}};
    struct wire_step_reply *out = NULL;
    struct buf message = {0};
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), 0);
    CHECK_INT(out->step, 5);
    CHECK_INT(out->epoch, 6);
    CHECK_INT(out->attention_us, 7);
    CHECK_INT(out->experts_us, 8);
    CHECK_INT(out->head_us, 9);
    CHECK_INT(out->kv_pages_free, 10);
    CHECK(out->degraded);
    CHECK_BYTES(&out->ladder, &in.ladder, sizeof(in.ladder));
    CHECK_INT(out->n_opened, 2);
    CHECK_INT(out->opened[1].seq, 12);
    CHECK_INT(out->opened[1].n_cached, 128);
    CHECK_INT(out->n_nodes, 3);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(out->nodes[i].node_id, nodes[i].node_id);
        CHECK_INT(out->nodes[i].incarnation, nodes[i].incarnation);
        CHECK_INT(out->nodes[i].standing, nodes[i].standing);
        CHECK_INT(out->nodes[i].failovers, nodes[i].failovers);
        CHECK_INT(out->nodes[i].lates, nodes[i].lates);
        CHECK_INT(out->nodes[i].wrongs, nodes[i].wrongs);
        CHECK_INT(out->nodes[i].usual_us, nodes[i].usual_us);
    }
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
    wire_damage(buf_str(&message), NULL, 0, check_step_reply, NULL);
    nodes[1].node_id = 0;
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), E_INVALID);
    nodes[1].node_id = 8;
    samples[0].sampled.logprob = NAN;
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), E_INVALID);
    samples[0].sampled.logprob = 0;
    in.code = E_ABORTED; /* but with samples */
    snprintf(in.text, sizeof(in.text), "two nodes differ");
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), E_INVALID);
    in.n_samples = 0;
    wire_step_reply_encode(&in, &message);
    CHECK_INT(wire_step_reply_decode(buf_str(&message), &out, NULL), 0);
    CHECK_INT(out->code, E_ABORTED);
    CHECK_STR(out->text, "two nodes differ");
    CHECK_INT(out->n_nodes, 3);
    mem_free(out);
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
        seqs[i] = wire_random_64(&r);
    struct buf message = {0};
    for (uint32_t n = 0; n <= 30; n += 15) {
        struct wire_release *out = NULL;
        wire_release_encode(&(struct wire_release){n, seqs, 77 + n}, &message);
        CHECK_INT(wire_release_decode(buf_str(&message), &out, NULL), 0);
        CHECK_INT(out->session, 77 + n);
        CHECK_INT(out->n_seqs, n);
        CHECK_BYTES(out->seqs, seqs, n * sizeof(*seqs));
        mem_free(out);
    }
    wire_damage(buf_str(&message), NULL, 0, check_release, NULL);
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
