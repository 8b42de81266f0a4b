/* tests/unit/test_wire_context.c - Context: there and back, damaged, and refused where the contracts say
 * so, above all payloads of any other size than model and counts make it. */
#include "rpc/wire.h"

#include "base/mem.h"
#include "tests/unit/wire_random.h"

enum { MAX_ROWS = 64, MAX_SEQS = 8, N_PAGES = 40 };
static const struct wire_context_limits limits = {MAX_ROWS, MAX_SEQS, N_PAGES};
/* Layers 0 and 1 see everything. */
static const struct wire_context_model model = {.n_layers = 4,
                                                .n_full_layers = 2,
                                                .n_heads = 8,
                                                .n_kv_heads = 2,
                                                .head_dim = 16,
                                                .index_heads = 2,
                                                .index_dim = 8,
                                                .top_k = 4};

struct begin {
    struct wire_context_begin m;
    struct wire_context_part parts[MAX_SEQS];
    struct wire_context_group groups[MAX_ROWS];
    int32_t pages[N_PAGES];
    struct buf message;
    struct blob *payload;
};

/* Of two parts at least; the first has new pages. */
static void fill_begin(struct rng *r, struct begin *b)
{
    memset(b, 0, sizeof(*b));
    b->m = (struct wire_context_begin){.session = wire_random_64(r),
                                       .step = wire_random_64(r),
                                       .lane = (uint32_t)rng_below(r, WIRE_CONTEXT_LANES),
                                       .n_parts = 2 + (uint32_t)rng_below(r, 3),
                                       .parts = b->parts,
                                       .pages = b->pages,
                                       .groups = b->groups};
    for (uint32_t i = 0; i < b->m.n_parts; i++) {
        b->parts[i] = (struct wire_context_part){.seq = MAX_SEQS - 1 - i,
                                                 .n_kept = (uint32_t)rng_below(r, 8),
                                                 .n_new = (uint32_t)rng_below(r, 4) + (i == 0)};
        for (uint32_t k = 0; k < 2; k++)
            b->groups[b->m.n_groups++] = (struct wire_context_group){
                .part = i,
                .n_rows = 1 + (uint32_t)rng_below(r, 4),
                .position = wire_random_32(r) / 4,
                .chooses = rng_below(r, 2),
                .ends = rng_below(r, 2),
            };
    }
    for (size_t i = 0; i < N_PAGES; i++)
        b->pages[i] = (int32_t)rng_below(r, N_PAGES);
    wire_context_begin_encode(&b->m, &b->message, &b->payload);
}

static void fini_begin(struct begin *b)
{
    buf_fini(&b->message);
    blob_unref(&b->payload);
}

static int decode_begin(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    struct wire_context_begin *out;
    int rc = wire_context_begin_decode(message, payloads, n, &limits, &out, NULL);
    mem_free(out);
    return rc;
}

TEST(wire_context_begin_comes_back)
{
    struct rng r = test_rng();
    static struct begin b;
    for (int i = 0; i < 50; i++) {
        fill_begin(&r, &b);
        struct frame frame = frame_of(b.payload);
        struct wire_context_begin *out;
        struct err e = {0};
        if (wire_context_begin_decode(buf_str(&b.message), &frame, 1, &limits, &out, &e) < 0)
            test_fail(__FILE__, __LINE__, "%s", e.text);
        CHECK(out->session == b.m.session && out->step == b.m.step && out->lane == b.m.lane);
        CHECK(out->n_parts == b.m.n_parts && out->n_groups == b.m.n_groups);
        CHECK_BYTES(out->parts, b.parts, out->n_parts * sizeof(b.parts[0]));
        for (uint32_t k = 0; k < out->n_groups; k++) {
            const struct wire_context_group *g = &out->groups[k], *w = &b.groups[k];
            CHECK(g->part == w->part && g->n_rows == w->n_rows && g->position == w->position);
            CHECK(g->chooses == w->chooses && g->ends == w->ends);
        }
        CHECK_BYTES(out->pages, b.pages, frame.size_bytes);
        struct wire_context_counts n = wire_context_count(out);
        CHECK(n.rows >= out->n_groups && n.ending <= n.rows && n.choosing <= n.rows);
        mem_free(out);
        if (i < 3)
            wire_damage(buf_str(&b.message), &frame, 1, decode_begin, NULL);
        fini_begin(&b);
    }
}

static void check_begin_refused(struct begin *b, const char *why)
{
    struct buf message = {0};
    struct blob *payload;
    wire_context_begin_encode(&b->m, &message, &payload);
    struct frame frame = payload ? frame_of(payload) : (struct frame){0};
    struct wire_context_begin *out;
    struct err e = {0};
    int n = payload != NULL;
    CHECK_INT(wire_context_begin_decode(buf_str(&message), &frame, n, &limits, &out, &e),
              E_INVALID);
    CHECK(out == NULL);
    CHECK_HAS(e.text, why);
    buf_fini(&message);
    blob_unref(&payload);
}

TEST(wire_context_begin_refuses_what_does_not_fit)
{
    struct rng r = test_rng();
    static struct begin b, good;
    fill_begin(&r, &b);
    good = b;
    b.m.lane = WIRE_CONTEXT_LANES;
    check_begin_refused(&b, "lane 2 of 2");
    b = good;
    b.parts[1].seq = MAX_SEQS;
    check_begin_refused(&b, "numbers are below 8");
    b = good;
    b.parts[0].n_kept = N_PAGES;
    check_begin_refused(&b, "pages of 40");
    b.parts[0].n_kept = UINT32_MAX;
    check_begin_refused(&b, "pages of 40");
    b = good;
    b.pages[0] = N_PAGES;
    check_begin_refused(&b, "page 40 of 40");
    b.pages[0] = -1;
    check_begin_refused(&b, "page -1 of 40");
    b = good;
    b.groups[0].part = b.m.n_parts;
    check_begin_refused(&b, "out of order");
    b = good;
    b.groups[0].part = 1;
    b.groups[1].part = 0;
    check_begin_refused(&b, "out of order");
    b = good;
    b.groups[0].n_rows = 0;
    check_begin_refused(&b, "0 rows");
    b.groups[0].n_rows = WIRE_CONTEXT_GROUP_ROWS + 1;
    check_begin_refused(&b, "17 rows");
    b = good;
    b.groups[0].position = UINT32_MAX;
    check_begin_refused(&b, "position 4294967295");
    b = good;
    b.m.n_groups = 5;
    for (uint32_t i = 0; i < b.m.n_groups; i++)
        b.groups[i] = (struct wire_context_group){.part = 1, .n_rows = 16};
    check_begin_refused(&b, "80 rows, at most 64");
    b = good;
    for (uint32_t i = 0; i < b.m.n_parts; i++)
        b.parts[i].n_new = 0;
    struct buf message = {0};
    struct blob *payload;
    wire_context_begin_encode(&b.m, &message, &payload);
    CHECK(payload == NULL);
    CHECK_INT(decode_begin(NULL, buf_str(&message), NULL, 0), 0);
    struct frame frame = {"", 0};
    CHECK_INT(decode_begin(NULL, buf_str(&message), &frame, 1), E_INVALID);
    buf_fini(&message);
    fini_begin(&good);
}

static int decode_open(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    (void)payloads;
    (void)n;
    struct wire_context_open out;
    return wire_context_open_decode(message, &out, NULL);
}

TEST(wire_context_open_comes_back)
{
    struct rng r = test_rng();
    for (int i = 0; i < 50; i++) {
        struct wire_context_open in = {.fingerprint = wire_random_64(&r),
                                       .kv = (enum kv_format)rng_below(&r, KV_FORMAT_COUNT),
                                       .protocol_version = wire_random_32(&r),
                                       .max_rows = 1 + (uint32_t)rng_below(&r, WIRE_MAX_ROWS)},
                                 out;
        wire_random_text(&r, in.owner, sizeof(in.owner));
        struct buf message = {0};
        wire_context_open_encode(&in, &message);
        struct err e = {0};
        if (wire_context_open_decode(buf_str(&message), &out, &e) < 0)
            test_fail(__FILE__, __LINE__, "%s", e.text);
        CHECK(in.fingerprint == out.fingerprint && in.kv == out.kv && in.max_rows == out.max_rows);
        CHECK(in.protocol_version == out.protocol_version);
        CHECK_STR(out.owner, in.owner);
        if (i < 3)
            wire_damage(buf_str(&message), NULL, 0, decode_open, NULL);
        in.max_rows = i % 2 ? 0 : WIRE_MAX_ROWS + 1;
        wire_context_open_encode(&in, &message);
        CHECK_INT(wire_context_open_decode(buf_str(&message), &out, &e), E_INVALID);
        CHECK_HAS(e.text, "max_rows");
        buf_fini(&message);
    }
}

TEST(wire_context_open_reply_comes_back)
{
    struct wire_context_open_reply in = {
        .session = 1, .pages = 0, .page_tokens = 64, .max_seqs = 9};
    struct wire_context_open_reply out;
    struct buf message = {0};
    wire_context_open_reply_encode(&in, &message);
    CHECK_INT(wire_context_open_reply_decode(buf_str(&message), &out, NULL), 0);
    CHECK(out.session == 1 && out.pages == 0 && out.page_tokens == 64 && out.max_seqs == 9);
    struct wire_context_open_reply bad[] = {in, in, in, in};
    bad[0].session = 0;
    bad[1].pages = (uint32_t)INT32_MAX + 1;
    bad[2].page_tokens = 0;
    bad[3].max_seqs = 0;
    for (int i = 0; i < 4; i++) {
        wire_context_open_reply_encode(&bad[i], &message);
        CHECK_INT(wire_context_open_reply_decode(buf_str(&message), &out, NULL), E_INVALID);
    }
    buf_fini(&message);
}

/* ---- payloads of calls ------------------------------------------------------------- */

static const struct wire_context_counts counts = {.rows = 5, .ending = 3, .choosing = 2};

struct sizes {
    size_t writes, index_q, q, blocks, states;
};

/* By hand: k and v of 2 heads of 16, index keys of 8 from layer 2 on. */
static struct sizes sizes_of(uint32_t layer)
{
    bool sparse = layer >= 2;
    return (struct sizes){.writes = 3 * 4 * (sparse ? 2 * 32 + 8 : 2 * 32),
                          .index_q = 2 * 4 * 2 * 8,
                          .q = 5 * 4 * 8 * 16,
                          .blocks = sparse ? 2 * 4 * 2 * 4 : 0,
                          .states = 5 * 4 * 8 * (2 + 16)};
}

typedef int payloads_reader(const struct wire_context_call *, const struct frame *, int,
                            const struct wire_context_model *, const struct wire_context_counts *,
                            struct wire_context_rows *, struct err *);

/* Exactly these sizes are taken; one byte more or less, one payload more or less is not. */
static void check_sizes(payloads_reader *read, const struct wire_context_call *m,
                        const size_t *bytes, int n)
{
    struct frame frames[6] = {{0}};
    for (int i = 0; i < n; i++)
        frames[i] = (struct frame){"x", bytes[i]};
    struct wire_context_rows rows;
    struct err e = {0};
    if (read(m, frames, n, &model, &counts, &rows, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_INT(read(m, frames, n + 1, &model, &counts, &rows, &e), E_INVALID);
    CHECK_INT(read(m, frames, n - 1, &model, &counts, &rows, &e), E_INVALID);
    for (int i = 0; i < n; i++) {
        static const size_t wrong[] = {1, (size_t)-1, 4, (size_t)-4, (size_t)1 << 32};
        for (size_t k = 0; k < sizeof(wrong) / sizeof(wrong[0]); k++) {
            frames[i].size_bytes = bytes[i] + wrong[k];
            CHECK_INT(read(m, frames, n, &model, &counts, &rows, &e), E_INVALID);
        }
        frames[i].size_bytes = 0;
        CHECK_INT(read(m, frames, n, &model, &counts, &rows, &e), E_INVALID);
        CHECK_HAS(e.text, "0 bytes, expected");
        frames[i].size_bytes = bytes[i];
    }
}

TEST(wire_context_payloads_have_one_size)
{
    for (uint32_t layer = 0; layer < model.n_layers; layer++)
        for (int flags = 0; flags < 4; flags++) {
            struct wire_context_call m = {
                .layer = layer, .has_writes = flags & 1, .has_states = flags & 2};
            struct sizes s = sizes_of(layer);
            size_t bytes[4];
            int n = 0;
            if (m.has_writes)
                bytes[n++] = s.writes;
            bytes[n++] = s.q;
            if (s.blocks)
                bytes[n++] = s.blocks;
            if (m.has_states)
                bytes[n++] = s.states;
            check_sizes(wire_context_attend_payloads, &m, bytes, n);
            if (layer < 2 || m.has_states)
                continue;
            bytes[m.has_writes] = s.index_q;
            check_sizes(wire_context_choose_payloads, &m, bytes, m.has_writes + 1);
        }
}

static void check_call_refused(payloads_reader *read, struct wire_context_call m,
                               struct wire_context_counts n, const char *why)
{
    struct frame frames[4] = {{"x", 1}, {"x", 1}, {"x", 1}, {"x", 1}};
    struct wire_context_rows rows;
    struct err e = {0};
    for (int i = 0; i <= 4; i++) {
        CHECK_INT(read(&m, frames, i, &model, &n, &rows, &e), E_INVALID);
        CHECK_HAS(e.text, why);
    }
}

TEST(wire_context_refuses_calls_that_make_no_sense)
{
    struct wire_context_call m = {.layer = 3};
    struct wire_context_counts none = {0}, no_ends = {.rows = 5, .choosing = 1};
    struct wire_context_counts no_choice = {.rows = 5, .ending = 5};
    check_call_refused(wire_context_choose_payloads, m, none, "no rows were announced");
    check_call_refused(wire_context_attend_payloads, m, none, "no rows were announced");
    check_call_refused(wire_context_choose_payloads, m, no_choice, "nothing is to be chosen");
    m.layer = 1;
    check_call_refused(wire_context_choose_payloads, m, counts, "nothing is to be chosen");
    m.layer = 4;
    check_call_refused(wire_context_attend_payloads, m, counts, "layer 4 of 4");
    m = (struct wire_context_call){.layer = 3, .has_writes = true};
    check_call_refused(wire_context_attend_payloads, m, no_ends, "no row ends here");
    m = (struct wire_context_call){.layer = 3, .has_states = true};
    check_call_refused(wire_context_choose_payloads, m, counts, "states");
}

static int decode_call(void *ud, struct str message, const struct frame *payloads, int n)
{
    (void)ud;
    (void)payloads;
    (void)n;
    struct wire_context_call out;
    return wire_context_call_decode(message, &out, NULL);
}

TEST(wire_context_call_comes_back)
{
    struct rng r = test_rng();
    for (int i = 0; i < 50; i++) {
        struct wire_context_call in = {.session = wire_random_64(&r),
                                       .step = wire_random_64(&r),
                                       .lane = (uint32_t)rng_below(&r, 2),
                                       .layer = wire_random_32(&r),
                                       .has_writes = rng_below(&r, 2),
                                       .has_states = rng_below(&r, 2)};
        struct wire_context_call out;
        struct buf message = {0};
        wire_context_call_encode(&in, &message);
        CHECK_INT(wire_context_call_decode(buf_str(&message), &out, NULL), 0);
        CHECK(in.session == out.session && in.step == out.step && in.lane == out.lane);
        CHECK(in.layer == out.layer && in.has_writes == out.has_writes);
        CHECK(in.has_states == out.has_states);
        if (i < 3)
            wire_damage(buf_str(&message), NULL, 0, decode_call, NULL);
        in.lane = 2;
        wire_context_call_encode(&in, &message);
        CHECK_INT(wire_context_call_decode(buf_str(&message), &out, NULL), E_INVALID);
        buf_fini(&message);
    }
}

/* ---- answers ----------------------------------------------------------------------- */

enum { N_LISTS = 2 * 2, LIST = 3 };

static int read_lists(const struct wire_context_candidate *lists, size_t bytes, struct err *e)
{
    /* At an odd address, as libzmq delivers it. */
    char raw[1 + N_LISTS * LIST * sizeof(*lists)];
    memcpy(raw + 1, lists, sizeof(raw) - 1);
    struct frame frame = {raw + 1, bytes};
    struct wire_context_candidate out[N_LISTS * LIST];
    static const int32_t n_blocks[] = {10, 20};
    int rc = wire_context_choose_reply_decode(&frame, 1, &model, &counts, n_blocks, out, e);
    if (rc == 0)
        CHECK_BYTES(out, lists, sizeof(out));
    return rc;
}

TEST(wire_context_choices_are_checked)
{
    struct wire_context_candidate good[N_LISTS * LIST], bad[N_LISTS * LIST];
    for (int i = 0; i < N_LISTS * LIST; i++)
        good[i] = (struct wire_context_candidate){(float)-i, i % LIST == 2 ? -1 : 9 - i % LIST};
    struct err e = {0};
    CHECK_INT(read_lists(good, sizeof(good), &e), 0);
    CHECK_INT(read_lists(good, sizeof(good) - 8, &e), E_INVALID);
    CHECK_INT(read_lists(good, sizeof(good) - 1, &e), E_INVALID);
    CHECK_INT(wire_context_choose_reply_decode(NULL, 0, &model, &counts, NULL, bad, &e), E_INVALID);
    memcpy(bad, good, sizeof(bad));
    bad[3].block = 10; /* of the first row, which has 10 */
    CHECK_INT(read_lists(bad, sizeof(bad), &e), E_INVALID);
    CHECK_HAS(e.text, "block 10 of 10");
    memcpy(bad, good, sizeof(bad));
    bad[6].block = 10; /* of the second */
    CHECK_INT(read_lists(bad, sizeof(bad), &e), 0);
    bad[6].block = -2;
    CHECK_INT(read_lists(bad, sizeof(bad), &e), E_INVALID);
    bad[6].block = 8;
    CHECK_INT(read_lists(bad, sizeof(bad), &e), E_INVALID);
    CHECK_HAS(e.text, "block 8 twice");
    bad[6].block = -1;
    CHECK_INT(read_lists(bad, sizeof(bad), &e), E_INVALID);
    CHECK_HAS(e.text, "behind the end");
}

TEST(wire_context_answers_have_one_size)
{
    struct sizes s = sizes_of(3);
    struct frame frame = {"x", s.states};
    const void *out;
    CHECK_INT(wire_context_attend_reply_decode(&frame, 1, &model, &counts, &out, NULL), 0);
    CHECK(out == frame.data);
    CHECK_INT(wire_context_attend_reply_decode(&frame, 0, &model, &counts, &out, NULL), E_INVALID);
    CHECK_INT(wire_context_attend_reply_decode(&frame, 2, &model, &counts, &out, NULL), E_INVALID);
    frame.size_bytes--;
    CHECK_INT(wire_context_attend_reply_decode(&frame, 1, &model, &counts, &out, NULL), E_INVALID);
}
