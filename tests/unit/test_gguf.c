/* tests/unit/test_gguf.c - GGUF files read back field by field, blocks by their definition, and
 * the synthetic model's values beside those of its checkpoint. */
#include "tools/gguf_write.h"

#include <math.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "model/halves.h"
#include "model/weights.h"
#include "tests/lib/test.h"
#include "tools/synth_gguf.h"

/* ---- a reader that believes nothing but the format's description ---- */

struct reader {
    struct buf file;
    size_t at;
};

static const void *take(struct reader *r, size_t bytes)
{
    CHECK(bytes <= r->file.len - r->at);
    const char *p = r->file.data + r->at;
    r->at += bytes;
    return p;
}

static uint32_t take_u32(struct reader *r)
{
    uint32_t value;
    memcpy(&value, take(r, sizeof(value)), sizeof(value));
    return value;
}

static uint64_t take_u64(struct reader *r)
{
    uint64_t value;
    memcpy(&value, take(r, sizeof(value)), sizeof(value));
    return value;
}

static void check_text(struct reader *r, const char *expected)
{
    uint64_t len = take_u64(r);
    CHECK_INT(len, strlen(expected));
    CHECK_BYTES(take(r, len), expected, len);
}

static void open_reader(struct reader *r, const char *path)
{
    struct err e = {0};
    *r = (struct reader){0};
    int rc = buf_read_file(&r->file, path, 1 << 28, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
}

TEST(gguf_reads_back_field_by_field)
{
    struct gguf_writer *w = gguf_writer_new();
    struct reader r;
    static const char *const words[] = {"a", "", "bcd"};
    const int32_t numbers[] = {-1, 7};
    const uint64_t wide[] = {64, 3}, vector[] = {5};
    const float five[] = {1, 2, 3, 4, 5};
    gguf_put_string(w, "s", "value");
    gguf_put_u32(w, "u", 4000000000u);
    gguf_put_f32(w, "f", 0.5f);
    gguf_put_strings(w, "ss", words, 3);
    gguf_put_i32s(w, "ii", numbers, 2);
    int q = gguf_add_tensor(w, "q", GGUF_Q8_0, 2, wide);
    int v = gguf_add_tensor(w, "v", GGUF_F32, 1, vector);
    CHECK_INT(gguf_create(w, "x.gguf", NULL), 0);
    CHECK_INT(gguf_write(w, v, 0, five, sizeof(five), NULL), 0);
    CHECK_INT(gguf_write(w, q, 34, "abc", 3, NULL), 0);
    CHECK(access("x.gguf", F_OK) != 0); /* no name before it is whole */
    CHECK_INT(gguf_finish(&w, 0, NULL), 0);

    open_reader(&r, "x.gguf");
    CHECK_BYTES(take(&r, 4), "GGUF", 4);
    CHECK_INT(take_u32(&r), 3);
    CHECK_INT(take_u64(&r), 2);
    CHECK_INT(take_u64(&r), 5);
    check_text(&r, "s");
    CHECK_INT(take_u32(&r), 8);
    check_text(&r, "value");
    check_text(&r, "u");
    CHECK_INT(take_u32(&r), 4);
    CHECK_INT(take_u32(&r), 4000000000u);
    check_text(&r, "f");
    CHECK_INT(take_u32(&r), 6);
    CHECK(f32_from_bits(take_u32(&r)) == 0.5f);
    check_text(&r, "ss");
    CHECK_INT(take_u32(&r), 9);
    CHECK_INT(take_u32(&r), 8);
    CHECK_INT(take_u64(&r), 3);
    for (int i = 0; i < 3; i++)
        check_text(&r, words[i]);
    check_text(&r, "ii");
    CHECK_INT(take_u32(&r), 9);
    CHECK_INT(take_u32(&r), 5);
    CHECK_INT(take_u64(&r), 2);
    CHECK_BYTES(take(&r, 8), numbers, 8);
    check_text(&r, "q");
    CHECK_INT(take_u32(&r), 2);
    CHECK_INT(take_u64(&r), 64);
    CHECK_INT(take_u64(&r), 3);
    CHECK_INT(take_u32(&r), GGUF_Q8_0);
    CHECK_INT(take_u64(&r), 0);
    check_text(&r, "v");
    CHECK_INT(take_u32(&r), 1);
    CHECK_INT(take_u64(&r), 5);
    CHECK_INT(take_u32(&r), GGUF_F32);
    uint64_t offset = take_u64(&r);
    CHECK_INT(offset, 224); /* 64 x 3 weights in 6 blocks of 34 bytes, to a multiple of 32 */
    size_t data = (r.at + 31) / 32 * 32;
    CHECK_BYTES(r.file.data + data + offset, five, sizeof(five));
    CHECK_BYTES(r.file.data + data + 34, "abc", 3);
    CHECK_INT(r.file.len, data + offset + 32);
    buf_fini(&r.file);
}

TEST(gguf_leaves_nothing_after_a_failure)
{
    struct gguf_writer *w = gguf_writer_new();
    struct err e = {0};
    CHECK_INT(gguf_create(w, "x.gguf", NULL), 0);
    CHECK_INT(gguf_finish(&w, E_IO, NULL), E_IO);
    CHECK(access("x.gguf", F_OK) != 0);
    CHECK(access("x.gguf.part", F_OK) != 0);
    CHECK(!w);
    w = gguf_writer_new();
    int rc = gguf_create(w, "no/such/folder.gguf", &e);
    CHECK_INT(rc, E_NOT_FOUND);
    CHECK_HAS(e.text, "no/such/folder.gguf");
    CHECK_INT(gguf_finish(&w, rc, &e), E_NOT_FOUND);
}

static float scale_of(const uint8_t *block)
{
    uint16_t half;
    memcpy(&half, block, sizeof(half));
    return f16_to_f32(half);
}

static void decode(enum gguf_type type, const uint8_t *bytes, float *out)
{
    float scale = scale_of(bytes);
    for (int i = 0; i < GGUF_BLOCK; i++) {
        uint8_t pair = bytes[2 + i % 16];
        out[i] = type == GGUF_Q8_0 ? scale * (int8_t)bytes[2 + i]
                                   : scale * (float)((i < 16 ? pair & 15 : pair >> 4) - 8);
    }
}

TEST(gguf_blocks_are_near_their_values)
{
    struct rng random = test_rng();
    float x[GGUF_BLOCK], back[GGUF_BLOCK];
    uint8_t bytes[64];
    for (int round = 0; round < 200; round++) {
        float most = 0;
        for (int i = 0; i < GGUF_BLOCK; i++) {
            x[i] = (float)rng_normal(&random);
            most = fmaxf(most, fabsf(x[i]));
        }
        /* Half a step, an f16 scale's 2^-11 of 127 steps, and at q4 a whole step at the end
         * that has only seven. */
        gguf_encode(GGUF_Q8_0, x, GGUF_BLOCK, bytes);
        decode(GGUF_Q8_0, bytes, back);
        for (int i = 0; i < GGUF_BLOCK; i++)
            CHECK_NEAR(back[i], x[i], most / 127 * 0.6);
        gguf_encode(GGUF_Q4_0, x, GGUF_BLOCK, bytes);
        decode(GGUF_Q4_0, bytes, back);
        for (int i = 0; i < GGUF_BLOCK; i++)
            CHECK_NEAR(back[i], x[i], most / 8 * 1.01);
    }
}

TEST(gguf_blocks_at_the_edge)
{
    float x[GGUF_BLOCK] = {0}, back[GGUF_BLOCK];
    uint8_t bytes[64];
    gguf_encode(GGUF_Q8_0, x, GGUF_BLOCK, bytes);
    decode(GGUF_Q8_0, bytes, back);
    CHECK_BYTES(back, x, sizeof(x));
    gguf_encode(GGUF_Q4_0, x, GGUF_BLOCK, bytes);
    decode(GGUF_Q4_0, bytes, back);
    for (int i = 0; i < GGUF_BLOCK; i++)
        CHECK(back[i] == 0);
    x[0] = 8; /* the largest becomes -8 steps: exact */
    x[17] = -3;
    gguf_encode(GGUF_Q4_0, x, GGUF_BLOCK, bytes);
    decode(GGUF_Q4_0, bytes, back);
    for (int j = 0; j < GGUF_BLOCK; j++)
        CHECK(back[j] == x[j]);
    CHECK_INT(gguf_bytes(GGUF_Q4_0, 64), 36);
    CHECK_INT(gguf_bytes(GGUF_Q8_0, 64), 68);
    CHECK_INT(gguf_bytes(GGUF_BF16, 3), 6);
}

/* ---- the synthetic model ---- */

/* Skips to the data and finds one tensor in the file that `r` has just opened. */
static size_t find_tensor(struct reader *r, const char *name, uint32_t *type)
{
    size_t found = SIZE_MAX;
    take(r, 8);
    uint64_t n_tensors = take_u64(r), n_values = take_u64(r);
    for (uint64_t i = 0; i < n_values; i++) {
        take(r, take_u64(r));
        uint32_t kind = take_u32(r), item = kind;
        uint64_t n = 1;
        if (kind == 9) {
            item = take_u32(r);
            n = take_u64(r);
        }
        for (uint64_t j = 0; j < n; j++)
            take(r, item == 8 ? take_u64(r) : 4);
    }
    for (uint64_t i = 0; i < n_tensors; i++) {
        uint64_t len = take_u64(r);
        const char *at = take(r, len);
        bool is_it = len == strlen(name) && memcmp(at, name, len) == 0;
        take(r, 8 * (size_t)take_u32(r));
        uint32_t its_type = take_u32(r);
        uint64_t offset = take_u64(r);
        if (is_it) {
            found = offset;
            *type = its_type;
        }
    }
    CHECK(found != SIZE_MAX);
    return (r->at + 31) / 32 * 32 + found;
}

static struct synth_options tiny_options(void)
{
    struct synth_options o;
    synth_defaults(&o);
    CHECK_INT(synth_set(&o.config, "num_hidden_layers=2", NULL), 0);
    CHECK_INT(synth_set(&o.config, "num_local_experts=8", NULL), 0);
    CHECK_INT(synth_set(&o.config, "intermediate_size=160", NULL), 0);
    o.dir = "m";
    return o;
}

static void write_both(enum gguf_type type)
{
    struct synth_options o = tiny_options();
    struct err e = {0};
    int rc = synth_write(&o, &e);
    if (rc == 0)
        rc = synth_gguf_write(&o, type, "m.gguf", &e);
    test_note("%s", e.text);
    CHECK_INT(rc, 0);
}

/* Row 1 of expert 5's matrix as the checkpoint means it. */
static void checkpoint_row(struct checkpoint *c, int layer, float *out)
{
    struct expert_view view;
    CHECK_INT(weights_expert(c, layer, 5, &view, NULL), 0);
    int64_t cols = view.down.cols;
    tensor_read_f32(&view.down.weight, cols, cols, out);
    for (int64_t i = 0; i < cols; i++) {
        float scale;
        tensor_read_f32(&view.down.scale, i / 128, 1, &scale);
        out[i] *= scale;
    }
}

TEST(gguf_synth_has_the_checkpoints_values)
{
    struct checkpoint *c;
    struct reader r;
    float row[160], back[GGUF_BLOCK];
    uint32_t type;
    write_both(GGUF_Q8_0);
    CHECK_INT(checkpoint_open("m", &c, NULL), 0);
    checkpoint_row(c, 1, row);
    open_reader(&r, "m.gguf");
    size_t at = find_tensor(&r, "blk.1.ffn_down_exps.weight", &type);
    CHECK_INT(type, GGUF_Q8_0);
    at += gguf_bytes(GGUF_Q8_0, (5 * 128 + 1) * 160);
    for (int block = 0; block < 160 / GGUF_BLOCK; block++, at += 34) {
        const uint8_t *bytes = (const uint8_t *)r.file.data + at;
        decode(GGUF_Q8_0, bytes, back);
        for (int i = 0; i < GGUF_BLOCK; i++)
            CHECK_NEAR(back[i], row[block * GGUF_BLOCK + i], fabsf(scale_of(bytes)) * 0.6);
    }
    r.at = 0;
    at = find_tensor(&r, "blk.0.exp_probs_b.bias", &type);
    struct layer_view layer;
    float bias[8];
    CHECK_INT(type, GGUF_F32);
    CHECK_INT(weights_layer(c, 0, &layer, NULL), 0);
    tensor_read_f32(&layer.router_bias, 0, 8, bias);
    CHECK_BYTES(r.file.data + at, bias, sizeof(bias));
    buf_fini(&r.file);
    checkpoint_close(&c);
}

TEST(gguf_synth_refuses_what_blocks_do_not_allow)
{
    struct synth_options o = tiny_options();
    struct err e = {0};
    CHECK_INT(synth_set(&o.config, "hidden_size=200", NULL), 0);
    CHECK_INT(synth_gguf_write(&o, GGUF_Q8_0, "m.gguf", &e), E_INVALID);
    CHECK_HAS(e.text, "hidden_size is 200");
    CHECK(access("m.gguf", F_OK) != 0);
    enum gguf_type type;
    CHECK_INT(synth_gguf_type("q5", &type, &e), E_INVALID);
    CHECK_HAS(e.text, "q8_0, q4_0 or bf16");
}
