/* tests/unit/test_lender.c - the work thread of a node that lends memory, over the wire: the bits of the
 * context that it is made of, whose it is, and what it refuses. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "attn_node/lender_worker.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/thread.h"
#include "base/version.h"
#include "engine/context.h"
#include "engine/kernels.h"
#include "engine/kv.h"
#include "rpc/channel.h"
#include "tests/lib/test.h"
#include "tools/synth.h"

enum { FINGERPRINT = 42, MAX_ROWS = 32, MAX_SEQS = 4, N_PAGES = 16, MOST_BYTES = 1 << 20 };

struct stage {
    struct model_config config;
    struct wire_context_model model;
    struct lender_worker *worker;
    struct channel *channel;
    uint64_t session;

    /* Of the latest call. */
    bool is_over;
    int code;
    char text[ERR_TEXT_BYTES];
    struct wire_context_open_reply opened;
    char payload[MOST_BYTES];
    size_t payload_bytes;
};

static void on_reply(void *ud, const struct reply *r)
{
    struct stage *s = ud;
    s->is_over = true;
    s->code = r->code;
    snprintf(s->text, sizeof(s->text), "%s", r->text);
    wire_context_open_reply_decode(r->message, &s->opened, NULL);
    s->payload_bytes = r->n_payloads > 0 ? r->payloads[0].size_bytes : 0;
    CHECK(s->payload_bytes <= MOST_BYTES);
    if (s->payload_bytes > 0)
        memcpy(s->payload, r->payloads[0].data, s->payload_bytes);
}

/* Takes the message and the payloads. */
static int call(struct stage *s, int method, struct buf *message, struct blob **payloads, int n)
{
    struct call c = {.method = wire_method(WIRE_CONTEXT, method),
                     .message = message,
                     .payloads = payloads,
                     .n_payloads = n,
                     .deadline_ns = clock_now_ns() + 20 * CLOCK_S,
                     .done = on_reply,
                     .ud = s};
    uint64_t id;
    s->is_over = false;
    while (!channel_is_connected(s->channel))
        channel_wait(&s->channel, 1, -1, clock_now_ns() + CLOCK_MS, 0);
    CHECK_INT(channel_call(s->channel, &c, &id), 0);
    while (!s->is_over)
        channel_wait(&s->channel, 1, -1, clock_now_ns() + CLOCK_S, 0);
    buf_fini(message);
    for (int i = 0; i < n; i++)
        blob_unref(&payloads[i]);
    return s->code;
}

static struct wire_context_open plain_open(void)
{
    return (struct wire_context_open){.fingerprint = FINGERPRINT,
                                      .kv = KV_BF16,
                                      .protocol_version = POLYMATH_PROTOCOL_VERSION,
                                      .max_rows = MAX_ROWS,
                                      .owner = "attn-0"};
}

static int open_with(struct stage *s, const struct wire_context_open *o)
{
    struct buf message = {0};
    wire_context_open_encode(o, &message);
    int rc = call(s, CONTEXT_OPEN, &message, NULL, 0);
    if (rc == 0)
        s->session = s->opened.session;
    return rc;
}

static int begin(struct stage *s, const struct wire_context_begin *b)
{
    struct buf message = {0};
    struct blob *payload;
    struct wire_context_begin mine = *b;
    mine.session = s->session;
    wire_context_begin_encode(&mine, &message, &payload);
    return call(s, CONTEXT_BEGIN, &message, &payload, payload != NULL);
}

static void open_stage(struct stage *s, const char *preset)
{
    struct synth_options o;
    struct err e = {0};
    synth_defaults(&o);
    CHECK_INT(synth_preset(preset, &o.config, &e), 0);
    memset(s, 0, sizeof(*s));
    s->config = o.config;
    const struct sparse_config *sparse = &s->config.sparse;
    bool is_sparse = sparse->block_size > 0;
    s->model = (struct wire_context_model){
        .n_layers = (uint32_t)s->config.n_layers,
        .n_full_layers = (uint32_t)(is_sparse ? sparse->n_full_layers : s->config.n_layers),
        .n_heads = (uint32_t)s->config.n_heads,
        .n_kv_heads = (uint32_t)s->config.n_kv_heads,
        .head_dim = (uint32_t)s->config.head_dim,
        .index_heads = (uint32_t)sparse->n_heads,
        .index_dim = (uint32_t)sparse->head_dim,
        .top_k = (uint32_t)sparse->top_k};
    struct lender_worker_options w = {.name = "lender",
                                      .endpoint = "ipc://lender.sock",
                                      .config = &s->config,
                                      .fingerprint = FINGERPRINT,
                                      .kv = KV_BF16,
                                      .kernels = kernels_best(),
                                      .threads = 2,
                                      .kv_bytes =
                                          N_PAGES * (int64_t)kv_page_bytes(&s->config, KV_BF16),
                                      .max_rows = MAX_ROWS,
                                      .max_seqs = MAX_SEQS};
    if (lender_worker_start(&w, &s->worker, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_INT(lender_worker_pages(s->worker), N_PAGES);
    struct channel_options c = {.endpoint = lender_worker_endpoint(s->worker), .peer_name = "l"};
    CHECK_INT(channel_open(&c, &s->channel, &e), 0);
}

static void close_stage(struct stage *s)
{
    channel_close(&s->channel);
    lender_worker_stop(&s->worker);
}

static void check_refused(struct stage *s, const struct wire_context_open *o, const char *why)
{
    CHECK_INT(open_with(s, o), E_PRECONDITION);
    CHECK_HAS(s->text, why);
}

TEST(lender_refuses_sides_that_do_not_match_by_the_fields_name)
{
    static struct stage s;
    open_stage(&s, "m2-tiny");
    struct wire_context_open o = plain_open();
    o.fingerprint++;
    check_refused(&s, &o, "fingerprint: attn-0");
    o = plain_open();
    o.kv = KV_INT8;
    check_refused(&s, &o, "kv=int8, this node kv=bf16");
    o = plain_open();
    o.protocol_version++;
    check_refused(&s, &o, "protocol_version");
    o = plain_open();
    o.max_rows = MAX_ROWS + 1;
    check_refused(&s, &o, "attention.max_rows: attn-0 has steps of 33 rows, this node takes 32");
    o = plain_open();
    CHECK_INT(open_with(&s, &o), 0);
    CHECK_INT(s.opened.pages, N_PAGES);
    CHECK_INT(s.opened.page_tokens, KV_PAGE_TOKENS);
    CHECK_INT(s.opened.max_seqs, MAX_SEQS);
    close_stage(&s);
}

/* ---- who has it -------------------------------------------------------------------- */

static const struct wire_context_part one_part = {.seq = 1, .n_new = 8};
static const int32_t some_pages[] = {3, 1, 4, 0, 5, 9, 2, 6};
static const struct wire_context_group writers = {.n_rows = 16, .ends = true};

static struct wire_context_begin plain_begin(uint64_t step)
{
    return (struct wire_context_begin){.step = step,
                                       .n_parts = 1,
                                       .n_groups = 1,
                                       .parts = &one_part,
                                       .pages = some_pages,
                                       .groups = &writers};
}

static int attend_nothing(struct stage *s, uint64_t session, uint64_t step)
{
    struct buf message = {0};
    struct wire_context_call m = {.session = session, .step = step};
    wire_context_call_encode(&m, &message);
    return call(s, CONTEXT_ATTEND, &message, NULL, 0);
}

TEST(lender_belongs_to_who_opened_it_last)
{
    static struct stage s;
    open_stage(&s, "m2-tiny");
    struct wire_context_open o = plain_open();
    struct wire_context_begin b = plain_begin(7);
    CHECK_INT(begin(&s, &b), E_PRECONDITION); /* session 0 */
    CHECK_INT(open_with(&s, &o), 0);
    uint64_t first = s.session;
    CHECK_INT(attend_nothing(&s, first, 7), E_PRECONDITION);
    CHECK_HAS(s.text, "step 7 was not begun");
    CHECK_INT(begin(&s, &b), 0);
    CHECK_INT(attend_nothing(&s, first, 6), E_PRECONDITION);
    CHECK_INT(attend_nothing(&s, first, 7), E_INVALID); /* it is of the step, but has no rows */
    CHECK_HAS(s.text, "0 payloads");
    CHECK_INT(open_with(&s, &o), 0);
    CHECK(s.session != first);
    CHECK_INT(attend_nothing(&s, first, 7), E_PRECONDITION);
    CHECK_HAS(s.text, "another session");
    CHECK_INT(attend_nothing(&s, s.session, 7), E_PRECONDITION);
    CHECK_HAS(s.text, "was not begun");
    /* Lists are forgotten, too. */
    struct wire_context_part kept = {.seq = 1, .n_kept = 8};
    b.parts = &kept;
    CHECK_INT(begin(&s, &b), E_INVALID);
    CHECK_HAS(s.text, "8 pages kept of 0");
    CHECK_INT(attend_nothing(&s, s.session, 7), E_PRECONDITION);
    close_stage(&s);
}

/* ---- bits -------------------------------------------------------------------------- */

/* At an odd distance from what libzmq gives: the first byte of the message is not the rows'. */
static struct blob *random_floats(struct rng *r, size_t bytes)
{
    struct blob *b = blob_new(bytes);
    float *to = b->data;
    for (size_t i = 0; i < bytes / sizeof(float); i++)
        to[i] = (float)rng_normal(r);
    return b;
}

/* The same rows through the wire and through a context of our own: equal bits. */
static void check_layer(struct stage *s, struct rng *r, struct context *mine, uint32_t layer,
                        uint64_t step, struct wire_context_counts n, bool has_states)
{
    const struct wire_context_model *m = &s->model;
    bool chooses = layer >= m->n_full_layers && n.choosing > 0;
    struct wire_context_call c = {.session = s->session, .step = step, .layer = layer};
    struct context_rows rows = {.layer = layer};
    struct buf message = {0};
    struct err e = {0};
    c.has_writes = n.ending > 0;
    struct blob *writes =
        c.has_writes ? random_floats(r, wire_context_writes_bytes(m, &n, layer)) : NULL;
    size_t n_values = (size_t)n.ending * m->n_kv_heads * m->head_dim;
    if (writes) {
        rows.k = writes->data;
        rows.v = rows.k + n_values;
        rows.index_k = layer >= m->n_full_layers ? rows.v + n_values : NULL;
    }
    if (chooses) {
        struct blob *payloads[2], *index_q = random_floats(r, wire_context_index_q_bytes(m, &n));
        static struct context_candidate want[MAX_ROWS * 64];
        CHECK(wire_context_candidates_bytes(m, &n) <= sizeof(want));
        rows.index_q = index_q->data;
        rows.candidates = want;
        int at = 0;
        if (writes)
            payloads[at++] = blob_ref(writes);
        payloads[at++] = blob_ref(index_q);
        wire_context_call_encode(&c, &message);
        CHECK_INT(call(s, CONTEXT_CHOOSE, &message, payloads, at), 0);
        CHECK_INT(context_choose(mine, 0, &rows, &e), 0);
        CHECK_INT(s->payload_bytes, wire_context_candidates_bytes(m, &n));
        CHECK_BYTES(s->payload, want, s->payload_bytes);
        blob_unref(&index_q);
        blob_unref(&writes);
        rows = (struct context_rows){.layer = layer};
        c.has_writes = false;
    }
    struct blob *payloads[4], *q = random_floats(r, wire_context_q_bytes(m, &n)), *blocks = NULL;
    struct blob *states = random_floats(r, wire_context_states_bytes(m, &n));
    struct context_state *state = states->data;
    size_t n_states = (size_t)n.rows * m->n_heads;
    float *o = (float *)(void *)(state + n_states);
    for (size_t i = 0; i < n_states; i++) {
        state[i].max = has_states ? state[i].max : -INFINITY;
        state[i].sum = has_states ? 1 + fabsf(state[i].sum) : 0;
    }
    if (!has_states)
        memset(o, 0, wire_context_q_bytes(m, &n));
    int at = 0;
    if (writes)
        payloads[at++] = blob_ref(writes);
    payloads[at++] = blob_ref(q);
    if (chooses) {
        blocks = blob_new(wire_context_blocks_bytes(m, &n, layer));
        int32_t *to = blocks->data;
        for (size_t i = 0; i < blocks->size_bytes / sizeof(*to); i++)
            to[i] = i % m->top_k == 0 ? 0 : 9 + (int32_t)(i % m->top_k);
        rows.blocks = to;
        payloads[at++] = blob_ref(blocks);
    }
    c.has_states = has_states;
    if (has_states)
        payloads[at++] = blob_copy(states->data, states->size_bytes);
    wire_context_call_encode(&c, &message);
    if (call(s, CONTEXT_ATTEND, &message, payloads, at) < 0)
        test_fail(__FILE__, __LINE__, "layer %u: %s", layer, s->text);
    rows.q = q->data;
    rows.state = state;
    rows.o = o;
    if (context_attend(mine, 0, &rows, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_INT(s->payload_bytes, states->size_bytes);
    CHECK_BYTES(s->payload, states->data, s->payload_bytes);
    blob_unref(&writes);
    blob_unref(&q);
    blob_unref(&states);
    if (blocks)
        blob_unref(&blocks);
}

static void check_bits(const char *preset)
{
    static struct stage s;
    open_stage(&s, preset);
    struct rng r = test_rng();
    struct pool *pool = pool_new(1, POOL_FREE);
    struct context *mine = NULL;
    struct context_options o = {.kv = KV_BF16,
                                .kv_bytes = N_PAGES * (int64_t)kv_page_bytes(&s.config, KV_BF16),
                                .max_rows = MAX_ROWS,
                                .max_seqs = MAX_SEQS};
    struct err e = {0};
    CHECK_INT(context_open(&s.config, &o, (struct compute){kernels_best(), pool}, &mine, &e), 0);
    struct wire_context_open open = plain_open();
    CHECK_INT(open_with(&s, &open), 0);
    /* Two groups of rows that write, then rows further on that see all of them. */
    for (uint32_t step = 0; step < 3; step++) {
        struct wire_context_part part = {.seq = 1, .n_kept = step ? 8 : 0, .n_new = step ? 0 : 8};
        struct wire_context_group group = {.n_rows = step < 2 ? 16 : 5,
                                           .position =
                                               step < 2 ? 16 * step : 8 * KV_PAGE_TOKENS + 96,
                                           .chooses = step == 2 && s.config.sparse.block_size > 0,
                                           .ends = step < 2};
        struct wire_context_begin b = plain_begin(step + 10);
        b.parts = &part;
        b.groups = &group;
        CHECK_INT(begin(&s, &b), 0);
        struct context_part my_part = {part.seq, part.n_kept, part.n_new};
        struct context_group my_group = {.n_rows = group.n_rows,
                                         .position = group.position,
                                         .chooses = group.chooses,
                                         .ends = group.ends};
        struct context_plan plan = {1, 1, &my_part, some_pages, &my_group};
        if (context_begin(mine, 0, &plan, &e) < 0)
            test_fail(__FILE__, __LINE__, "%s", e.text);
        struct wire_context_counts n = wire_context_count(&b);
        for (uint32_t layer = 0; layer < s.model.n_layers; layer++)
            check_layer(&s, &r, mine, layer, b.step, n, step != 1);
    }
    context_close(&mine);
    pool_free(&pool);
    close_stage(&s);
}

TEST(lender_gives_the_bits_of_its_context_where_rows_see_everything)
{
    check_bits("m2-tiny");
}

TEST(lender_gives_the_bits_of_its_context_where_rows_choose)
{
    check_bits("m3-tiny");
}
