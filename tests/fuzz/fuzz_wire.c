/* tests/fuzz/fuzz_wire.c - every decoder of rpc/wire.h.
 *
 * Input: byte 0 selects the decoder; two numbers of two bytes each, low byte first, say how
 * long the message and payload 0 are; the message, payload 0, and payload 1 (the rest)
 * follow. */
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "rpc/wire.h"
#include "tests/lib/fuzz.h"

struct input {
    struct str message;
    struct frame payloads[2];
    int n_payloads;
};

static const struct wire_forward_limits forward_limits = {
    .fingerprint = 1, .n_layers = 4, .n_experts = 16, .hidden = 4, .max_rows = 16, .max_top_k = 4};
static const struct wire_step_limits step_limits = {
    .max_rows = 64, .max_seqs = 16, .vocab_size = 1000, .max_positions = 1000};

static void decode_holdings(const struct input *in)
{
    struct wire_holdings out;
    uint8_t *bitmap = NULL;
    if (wire_holdings_decode(in->message, in->payloads, in->n_payloads, &out, &bitmap, NULL) == 0) {
        must(out.n_layers > 0 && out.n_experts > 0);
        /* The last byte that the sizes promise: the sanitizer knows whether it is there. */
        volatile uint8_t last = out.bitmap[(size_t)out.n_layers * ((out.n_experts + 7) / 8) - 1];
        (void)last;
    }
    mem_free(bitmap);
}

static void decode_follow_reply(const struct input *in)
{
    struct wire_follow_reply out;
    wire_follow_reply_decode(in->message, in->payloads, in->n_payloads, &out, NULL);
}

static void decode_load(const struct input *in)
{
    struct wire_load out;
    uint16_t *counts = NULL;
    if (wire_load_decode(in->message, in->payloads, in->n_payloads, &out, &counts, NULL) == 0) {
        must(out.n_layers > 0 && out.n_experts > 0);
        volatile uint16_t last = out.counts[(size_t)out.n_layers * out.n_experts - 1];
        (void)last;
    }
    mem_free(counts);
}

static void decode_table(const struct input *in)
{
    struct wire_table *out = NULL;
    if (wire_table_decode(in->message, in->payloads, in->n_payloads, &out, NULL) == 0)
        for (size_t i = 0; i < (size_t)out->n_layers * out->n_experts * out->n_replicas; i++)
            must(out->holders[i] == WIRE_NO_HOLDER || out->nodes[out->holders[i]].node_id != 0);
    mem_free(out);
}

/* The first limits that take it: f32 rows, then quantised ones. */
static bool decode_forward_header(const struct input *in, struct wire_forward *out)
{
    static const uint32_t groups[] = {0, 64, 128};
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        struct wire_forward_limits limits = forward_limits;
        limits.group = groups[i];
        if (wire_forward_decode(in->message, in->payloads, in->n_payloads, &limits, out, NULL) == 0)
            return true;
    }
    return false;
}

static void unpack_rows(const struct input *in, const struct wire_forward *f)
{
    float f32[16 * 4], scales[16];
    int8_t q8[16 * 64];
    int32_t sums[16];
    struct wire_rows to = {f32, q8, scales, sums, 4, 64, 1};
    if (wire_forward_unpack_rows(f, &in->payloads[1], &to, NULL) < 0 || f->group == 0)
        return;
    for (uint32_t i = 0; i < f->n_rows; i++)
        must(sums[i] >= -127 * 4 && sums[i] <= 127 * 4 && !(scales[i] < 0));
}

static void decode_forward(const struct input *in)
{
    struct wire_forward out;
    int32_t first_route[16 + 1];
    int16_t exponents[16];
    uint16_t experts[16 * 4];
    float weights[16 * 4];
    if (!decode_forward_header(in, &out))
        return;
    unpack_rows(in, &out);
    if (wire_forward_unpack_routes(&out, &in->payloads[0], &forward_limits, first_route, exponents,
                                   experts, weights, NULL) == 0)
        for (uint32_t i = 0; i < out.n_rows; i++)
            must(first_route[i] < first_route[i + 1] && experts[first_route[i]] < 16);
}

static void decode_forward_reply(const struct input *in)
{
    static const struct wire_forward expect = {
        .step = 3, .layer = 2, .lane = 1, .n_rows = 4, .hidden = 4, .n_routes = 6};
    static struct wire_forward_reply out;
    if (wire_forward_reply_decode(in->message, in->payloads, in->n_payloads, &expect, &out, NULL) ==
        0)
        must(out.n_overflow <= 4 && (out.n_overflow == 0 || out.overflow_rows[0] < 4));
}

static void decode_step(const struct input *in)
{
    struct wire_step *out = NULL;
    if (wire_step_decode(in->message, in->payloads, in->n_payloads, &step_limits, &out, NULL) == 0)
        for (uint32_t i = 0; i < out->n_tokens; i++)
            must(out->tokens[i] >= 0 && out->tokens[i] < 1000);
    mem_free(out);
}

static void decode_step_reply(const struct input *in)
{
    struct wire_step_reply *out = NULL;
    if (wire_step_reply_decode(in->message, &out, NULL) == 0)
        for (uint32_t i = 0; i < out->n_samples; i++)
            must(out->samples[i].sampled.n_top <= SAMPLING_MAX_TOP);
    mem_free(out);
}

static void decode_step_report(const struct input *in)
{
    struct wire_step_report *out = NULL;
    if (wire_step_report_decode(in->message, &out, NULL) == 0)
        for (uint32_t i = 0; i < out->n_spans; i++)
            must(out->spans[i].queue_us + out->spans[i].compute_us <= out->spans[i].length_us);
    mem_free(out);
}

static void decode_release(const struct input *in)
{
    struct wire_release *out = NULL;
    if (wire_release_decode(in->message, &out, NULL) == 0)
        must(out->n_seqs <= WIRE_MAX_SEQS);
    mem_free(out);
}

static const struct wire_context_model context_model = {.n_layers = 4,
                                                        .n_full_layers = 2,
                                                        .n_heads = 2,
                                                        .n_kv_heads = 1,
                                                        .head_dim = 2,
                                                        .index_heads = 1,
                                                        .index_dim = 2,
                                                        .top_k = 3};
static const struct wire_context_counts context_counts = {.rows = 3, .ending = 2, .choosing = 1};

static void decode_context_begin(const struct input *in)
{
    static const struct wire_context_limits limits = {
        .max_rows = 64, .max_seqs = 8, .n_pages = 100};
    struct wire_context_begin *out = NULL;
    /* A message that has no pages has no payload. */
    int n = in->payloads[0].size_bytes > 0 ? in->n_payloads : 0;
    if (wire_context_begin_decode(in->message, in->payloads, n, &limits, &out, NULL) == 0) {
        must(wire_context_count(out).rows <= 64);
        for (uint32_t i = 0; i < out->n_groups; i++)
            must(out->parts[out->groups[i].part].seq < 8);
        for (size_t i = 0; n > 0 && i < in->payloads[0].size_bytes / sizeof(int32_t); i++)
            must(out->pages[i] >= 0 && out->pages[i] < 100);
    }
    mem_free(out);
}

static void decode_context_call(const struct input *in)
{
    struct wire_context_call m;
    struct wire_context_rows rows;
    if (wire_context_call_decode(in->message, &m, NULL) < 0)
        return;
    if (wire_context_choose_payloads(&m, in->payloads, in->n_payloads, &context_model,
                                     &context_counts, &rows, NULL) == 0)
        must(m.layer >= 2 && rows.index_q && !rows.q && !rows.writes == !m.has_writes);
    if (wire_context_attend_payloads(&m, in->payloads, in->n_payloads, &context_model,
                                     &context_counts, &rows, NULL) == 0)
        must(m.layer < 4 && rows.q && !rows.blocks == (m.layer < 2) &&
             !rows.states == !m.has_states);
}

static void decode_context_choice(const struct input *in)
{
    struct wire_context_candidate out[2];
    int32_t n_blocks = 5;
    if (wire_context_choose_reply_decode(in->payloads, in->n_payloads, &context_model,
                                         &context_counts, &n_blocks, out, NULL) == 0)
        must(out[0].block < 5 && out[1].block < 5 &&
             (out[0].block != out[1].block || out[0].block == -1));
}

static void decode_callers(const struct input *in)
{
    struct wire_callers *out = NULL;
    if (wire_callers_decode(in->message, &out, NULL) == 0)
        for (uint32_t i = 0; i < out->n_keys; i++)
            must(key_is_valid(out->keys[i]));
    mem_free(out);
}

#define DECODER(name) \
    static void decode_##name(const struct input *in) \
    { \
        static struct wire_##name out; \
        struct err e = {0}; \
        int rc = wire_##name##_decode(in->message, &out, &e); \
        must(rc == 0 || (rc == E_INVALID && e.text[0])); \
    }
DECODER(join)
DECODER(join_reply)
DECODER(heartbeat)
DECODER(heartbeat_reply)
DECODER(holdings_request)
DECODER(leave)
DECODER(follow)
DECODER(expert_description)
DECODER(attention_description)
DECODER(call_header)
DECODER(reply_header)
DECODER(health)
DECODER(listing)
DECODER(context_open)
DECODER(context_open_reply)

/* The corpus depends on this order: append only. */
static void (*const decoders[])(const struct input *in) = {
    decode_call_header,
    decode_reply_header,
    decode_join,
    decode_join_reply,
    decode_heartbeat,
    decode_heartbeat_reply,
    decode_holdings_request,
    decode_holdings,
    decode_table,
    decode_leave,
    decode_forward,
    decode_forward_reply,
    decode_expert_description,
    decode_step,
    decode_step_reply,
    decode_release,
    decode_attention_description,
    decode_health,
    decode_listing,
    decode_callers,
    decode_load,
    decode_step_report,
    decode_follow,
    decode_follow_reply,
    decode_context_open,
    decode_context_open_reply,
    decode_context_begin,
    decode_context_call,
    decode_context_choice,
};

/* The next `bytes` bytes, or what there is. */
static struct frame take(struct str *rest, size_t bytes)
{
    struct frame f = {rest->ptr, bytes < rest->len ? bytes : rest->len};
    rest->ptr += f.size_bytes;
    rest->len -= f.size_bytes;
    return f;
}

FUZZ(wire)
{
    if (bytes < 5)
        return;
    struct str rest = {(const char *)data + 5, bytes - 5};
    struct frame message = take(&rest, (size_t)data[1] | (size_t)data[2] << 8);
    struct input in = {.message = {message.data, message.size_bytes}};
    in.payloads[0] = take(&rest, (size_t)data[3] | (size_t)data[4] << 8);
    in.payloads[1] = take(&rest, rest.len);
    in.n_payloads = in.payloads[1].size_bytes > 0 ? 2 : 1;
    decoders[data[0] % (sizeof(decoders) / sizeof(decoders[0]))](&in);
}
