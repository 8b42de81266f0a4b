/* tests/unit/test_wire_forward.c - Forward, its rows and its answers: there and back, damaged, and
 * refused where the contracts say so. */
#include <math.h>

#include "base/mem.h"
#include "rpc/wire.h"
#include "tests/unit/wire_random.h"

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
