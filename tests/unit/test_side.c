/* tests/unit/test_side.c - the attention side behind its door: what its service answers
 * before there is a table, and that every refusal says why. */
#include "attn_node/side.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "rpc/channel.h"
#include "rpc/wire.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"

struct world {
    uint64_t session; /* of its steps */
    struct side *side;
    struct channel *channel;
    int code;
    bool is_answered, is_step;
    char text[WIRE_STATUS_TEXT_BYTES];
    struct wire_attention_description description;
};

static void open_world(struct world *w)
{
    struct side_config c = {.name = "attn-7",
                            .model_dir = "model",
                            .coordinator_endpoint = "ipc://nobody.sock",
                            .listen_endpoint = "ipc://side.sock",
                            .formats = {.kv = KV_BF16},
                            .threads = 1,
                            .kv_bytes = 4 << 20,
                            .max_rows = 32,
                            .max_seqs = 4,
                            .call_timeout_ns = 5 * CLOCK_S};
    struct err e = {0};
    *w = (struct world){0};
    tiny_model_write("model", 2, 1);
    if (side_start(&c, &w->side, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    struct channel_options o = {.endpoint = "ipc://side.sock", .peer_name = "attn-7"};
    CHECK_INT(channel_open(&o, &w->channel, &e), 0);
    int64_t until_ns = clock_now_ns() + 20 * CLOCK_S;
    while (!channel_is_connected(w->channel) && clock_now_ns() < until_ns)
        channel_wait(&w->channel, 1, -1, until_ns, 0);
    CHECK(channel_is_connected(w->channel));
}

static void close_world(struct world *w)
{
    channel_close(&w->channel);
    side_stop(&w->side);
    CHECK(w->side == NULL);
}

static void on_reply(void *ud, const struct reply *r)
{
    struct world *w = ud;
    w->is_answered = true;
    w->code = r->code;
    snprintf(w->text, sizeof(w->text), "%s", r->text);
    if (r->code < 0 || r->message.len == 0)
        return;
    if (!w->is_step) {
        CHECK_INT(wire_attention_description_decode(r->message, &w->description, NULL), 0);
        return;
    }
    struct wire_step_reply *reply = NULL;
    CHECK_INT(wire_step_reply_decode(r->message, &reply, NULL), 0);
    w->code = reply->code;
    snprintf(w->text, sizeof(w->text), "%s", reply->text);
    mem_free(reply);
}

static void ask(struct world *w, int method, const struct buf *message, struct blob *payload)
{
    struct call c = {.method = wire_method(WIRE_ATTENTION, method),
                     .message = message,
                     .payloads = &payload,
                     .n_payloads = payload ? 1 : 0,
                     .deadline_ns = clock_now_ns() + 20 * CLOCK_S,
                     .done = on_reply,
                     .ud = w};
    w->is_answered = false;
    w->is_step = method == ATTENTION_STEP;
    CHECK_INT(channel_call(w->channel, &c, NULL), 0);
    while (!w->is_answered)
        channel_wait(&w->channel, 1, -1, c.deadline_ns, 0);
}

static void step(struct world *w, const struct wire_step_seq *seqs, uint32_t n_seqs)
{
    int32_t tokens[64];
    struct wire_step s = {
        .step = 1, .session = w->session, .n_seqs = n_seqs, .seqs = seqs, .tokens = tokens};
    for (uint32_t i = 0; i < n_seqs; i++)
        s.n_tokens += seqs[i].n_tokens;
    for (int i = 0; i < 64; i++)
        tokens[i] = i;
    struct buf message = {0};
    struct blob *payload = NULL;
    wire_step_encode(&s, &message, &payload);
    ask(w, ATTENTION_STEP, &message, payload);
    blob_unref(&payload);
    buf_fini(&message);
}

static const struct sampling greedy;

static struct wire_step_seq at(uint64_t seq, uint32_t position, uint32_t n_tokens)
{
    return (struct wire_step_seq){.seq = seq,
                                  .position = position,
                                  .n_tokens = n_tokens,
                                  .sample = true,
                                  .n_prompt = position ? 0 : n_tokens,
                                  .sampling = position ? NULL : &greedy};
}

TEST(side_describes_itself)
{
    struct world w;
    open_world(&w);
    struct buf empty = {0};
    ask(&w, ATTENTION_DESCRIBE, &empty, NULL);
    CHECK_INT(w.code, 0);
    CHECK_STR(w.description.name, "attn-7");
    CHECK_INT(w.description.max_rows, 32);
    CHECK_INT(w.description.formats.kv, KV_BF16);
    CHECK_INT(w.description.epoch, 0);
    CHECK(w.description.kv_pages_total > 0);
    CHECK_INT(w.description.kv_pages_free, w.description.kv_pages_total);
    CHECK(!side_is_refused(w.side, NULL));
    close_world(&w);
}

TEST(side_refuses_steps_and_says_why)
{
    struct world w;
    open_world(&w);
    struct wire_step_seq s = at(1, 0, 4);
    step(&w, &s, 1);
    CHECK_INT(w.code, E_UNAVAILABLE);
    CHECK_HAS(w.text, "no table of expert nodes yet");
    s = at(1, 4, 1);
    step(&w, &s, 1);
    CHECK_INT(w.code, E_PRECONDITION);
    CHECK_HAS(w.text, "position 4");
    CHECK_HAS(w.text, "ends at 0");
    s = at(1, 0, 33);
    step(&w, &s, 1);
    CHECK_INT(w.code, E_INVALID);
    CHECK(w.text[0] != '\0');
    /* Nothing of it has taken a page. */
    struct buf empty = {0};
    ask(&w, ATTENTION_DESCRIBE, &empty, NULL);
    CHECK_INT(w.description.kv_pages_free, w.description.kv_pages_total);
    struct buf release = {0};
    uint64_t seqs[] = {1, 99};
    wire_release_encode(&(struct wire_release){.n_seqs = 2, .seqs = seqs}, &release);
    ask(&w, ATTENTION_RELEASE, &release, NULL);
    CHECK_INT(w.code, 0);
    buf_fini(&release);
    close_world(&w);
}

TEST(side_belongs_to_the_highest_session)
{
    struct world w;
    open_world(&w);
    struct buf empty = {0};
    struct wire_step_seq s = at(1, 0, 4);
    w.session = 5;
    step(&w, &s, 1);
    CHECK_INT(w.code, E_UNAVAILABLE); /* taken, although there are no experts */
    w.session = 4;
    step(&w, &s, 1);
    CHECK_INT(w.code, E_DENIED);
    CHECK_HAS(w.text, "session 4 is over");
    ask(&w, ATTENTION_DESCRIBE, &empty, NULL);
    CHECK_INT(w.description.session, 5);
    w.session = 6;
    step(&w, &s, 1);
    CHECK_INT(w.code, E_UNAVAILABLE);
    close_world(&w);
}

TEST(side_that_cannot_start_says_why)
{
    struct side_config c = {.name = "attn-7",
                            .model_dir = "nowhere",
                            .coordinator_endpoint = "ipc://nobody.sock",
                            .listen_endpoint = "ipc://side.sock",
                            .threads = 1,
                            .max_rows = 32,
                            .max_seqs = 4,
                            .call_timeout_ns = CLOCK_S};
    struct side *side = NULL;
    struct err e = {0};
    CHECK(side_start(&c, &side, &e) < 0);
    CHECK(side == NULL);
    CHECK_HAS(e.text, "load model: ");
    tiny_model_write("model", 1, 1);
    c.model_dir = "model";
    c.kernels = "abacus";
    CHECK_INT(side_start(&c, &side, &e), E_INVALID);
    CHECK_HAS(e.text, "abacus");
    c.kernels = NULL;
    c.listen_endpoint = "carrier-pigeon://home";
    CHECK(side_start(&c, &side, &e) < 0);
    CHECK_HAS(e.text, "node.listen");
    c.listen_endpoint = "ipc://side.sock";
    c.kv_bytes = 1;
    CHECK(side_start(&c, &side, &e) < 0);
    CHECK_HAS(e.text, "attention.kv_bytes");
}
