/* tests/unit/test_wire_placement.c - what nodes fetch and report: holdings, tables, callers, load; there
 * and back, damaged, and refused where the contracts say so. */
#include "base/mem.h"
#include "rpc/wire.h"
#include "tests/unit/wire_random.h"

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
    struct wire_table_context contexts[2] = {{.node_id = 9, .borrower = 4, .incarnation = 5},
                                             {.node_id = 3, .borrower = 6}};
    for (int i = 0; i < 2; i++) {
        wire_random_text(&r, contexts[i].name, sizeof(contexts[i].name));
        wire_random_text(&r, contexts[i].endpoint, sizeof(contexts[i].endpoint));
        wire_random_key(&r, contexts[i].public_key);
    }
    struct wire_table in = {77, LAYERS, EXPERTS, NODES, REPLICAS, nodes, holders, 2, contexts};
    struct wire_table *out = NULL;
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
    CHECK_INT(out->n_contexts, 2);
    for (int i = 0; i < 2; i++) {
        const struct wire_table_context *a = &contexts[i], *b = &out->contexts[i];
        CHECK(a->node_id == b->node_id && a->borrower == b->borrower);
        CHECK(a->incarnation == b->incarnation);
        CHECK_STR(b->name, a->name);
        CHECK_STR(b->endpoint, a->endpoint);
        CHECK_STR(b->public_key, a->public_key);
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

TEST(wire_table_refuses_contexts_of_nobody)
{
    struct wire_table_context good = {.node_id = 9, .borrower = 4, .endpoint = "ipc://x"};
    struct wire_table_context cases[] = {good, good, good, good, good};
    cases[1].node_id = 0;
    cases[2].borrower = 0;
    cases[3].endpoint[0] = 0;
    memcpy(cases[4].public_key, "short", 6);
    uint16_t holder = WIRE_NO_HOLDER;
    for (int i = 0; i < 5; i++) {
        struct wire_table in = {1, 1, 1, 0, 1, NULL, &holder, 1, &cases[i]};
        struct buf message = {0};
        struct blob *payload = NULL;
        wire_table_encode(&in, &message, &payload);
        struct frame frame = frame_of(payload);
        CHECK_INT(check_table(NULL, buf_str(&message), &frame, 1), i == 0 ? 0 : E_INVALID);
        blob_unref(&payload);
        buf_fini(&message);
    }
}

/* A key that is no key must not get through, wherever one travels. */
TEST(wire_refuses_what_is_no_key)
{
    struct wire_table_node node = {.node_id = 1, .endpoint = "ipc://x", .public_key = "short"};
    uint16_t holder = 0;
    struct wire_table in = {1, 1, 1, 1, 1, &node, &holder, 0, NULL}, *out = NULL;
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
