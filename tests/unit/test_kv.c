/* tests/unit/test_kv.c - pages: who has which, and where a position's numbers lie. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "engine/index_sketch.h"
#include "engine/kv.h"
#include "model/halves.h"
#include "tests/lib/test.h"

static const struct model_config config = {.n_layers = 3, .n_kv_heads = 2, .head_dim = 20};
enum { DIM = 20, STRIDE = 32, HEADS = 2 };

static struct kv *open_format(const struct model_config *model, enum kv_format format, int n_pages)
{
    struct kv *kv;
    struct err e = {0};
    CHECK_INT(kv_open(model, format, (size_t)n_pages * kv_page_bytes(model, format), &kv, &e), 0);
    CHECK_INT(kv_pages_total(kv), n_pages);
    CHECK_INT(kv_pages_free(kv), n_pages);
    CHECK_INT(kv_format_of(kv), format);
    return kv;
}

static struct kv *open_kv(int n_pages)
{
    return open_format(&config, KV_BF16, n_pages);
}

TEST(kv_page_is_keys_and_padded_values_of_every_layer_and_head)
{
    CHECK_INT(kv_page_bytes(&config, KV_F32), 3 * 2 * 64 * (20 + 32) * 4);
    CHECK_INT(kv_page_bytes(&config, KV_BF16), 3 * 2 * 64 * (20 + 32) * 2);
    CHECK_INT(kv_page_bytes(&config, KV_INT8), 3 * 2 * 64 * (20 + 32 + 2 * 4));
    struct model_config odd = config, huge = config;
    odd.head_dim = 21; /* a lane of keys holds two dimensions, or four */
    CHECK_INT(kv_page_bytes(&odd, KV_BF16), 3 * 2 * 64 * (22 + 32) * 2);
    CHECK_INT(kv_page_bytes(&odd, KV_INT8), 3 * 2 * 64 * (24 + 32 + 2 * 4));
    huge.n_layers = huge.n_kv_heads = huge.head_dim = INT32_MAX / 2;
    for (int format = 0; format < KV_FORMAT_COUNT; format++)
        CHECK(kv_page_bytes(&huge, (enum kv_format)format) == SIZE_MAX);
}

TEST(kv_open_refuses_less_than_a_page_and_more_than_the_machine_has)
{
    struct kv *kv;
    struct err e = {0};
    CHECK_INT(kv_open(&config, KV_BF16, kv_page_bytes(&config, KV_BF16) - 1, &kv, &e), E_INVALID);
    CHECK(!kv);
    CHECK_HAS(e.text, "hold no page");
    CHECK_INT(kv_open(&config, KV_BF16, (size_t)1 << 46, &kv, &e), E_NOMEM);
    CHECK(!kv);
    struct model_config huge = config;
    huge.n_layers = huge.n_kv_heads = huge.head_dim = INT32_MAX / 2;
    CHECK_INT(kv_open(&huge, KV_F32, (size_t)1 << 40, &kv, &e), E_INVALID);
    struct model_config wide = config;
    wide.head_dim = 65537; /* its sums of products may not fit an int32 */
    CHECK_INT(kv_open(&wide, KV_INT8, (size_t)1 << 40, &kv, &e), E_INVALID);
    CHECK_HAS(e.text, "head_dim");
    kv_close(&kv);
}

TEST(kv_reserve_takes_whole_pages_or_none)
{
    struct kv *kv = open_kv(5);
    struct kv_seq a = {0}, b = {0};
    CHECK_INT(kv_reserve(kv, &a, 0), 0);
    CHECK_INT(kv_pages_free(kv), 5);
    CHECK_INT(kv_reserve(kv, &a, 1), 0);
    CHECK_INT(kv_reserve(kv, &a, KV_PAGE_TOKENS), 0);
    CHECK_INT(kv_pages_free(kv), 4);
    CHECK_INT(kv_reserve(kv, &a, KV_PAGE_TOKENS + 1), 0);
    CHECK_INT(kv_pages_free(kv), 3);
    CHECK_INT(kv_reserve(kv, &b, 4 * KV_PAGE_TOKENS), E_BUSY);
    CHECK_INT(kv_pages_free(kv), 3);
    CHECK_INT(b.n_pages, 0);
    CHECK_INT(kv_reserve(kv, &b, INT32_MAX), E_BUSY);
    CHECK_INT(kv_reserve(kv, &b, 3 * KV_PAGE_TOKENS), 0);
    CHECK_INT(kv_pages_free(kv), 0);
    CHECK_INT(a.length + b.length, 0);
    bool taken[5] = {0};
    for (int i = 0; i < a.n_pages + b.n_pages; i++) {
        int page = i < a.n_pages ? a.pages[i] : b.pages[i - a.n_pages];
        CHECK(page >= 0 && page < 5 && !taken[page]);
        taken[page] = true;
    }
    kv_truncate(kv, &a, 0);
    kv_truncate(kv, &b, 0);
    CHECK_INT(kv_pages_free(kv), 5);
    kv_close(&kv);
}

TEST(kv_truncate_gives_back_what_is_no_longer_covered)
{
    struct kv *kv = open_kv(4);
    struct kv_seq s = {0};
    CHECK_INT(kv_reserve(kv, &s, 200), 0);
    s.length = 150;
    kv_truncate(kv, &s, 200);
    CHECK_INT(s.length, 150);
    kv_truncate(kv, &s, 65);
    CHECK_INT(s.length, 65);
    CHECK_INT(kv_pages_free(kv), 2);
    kv_truncate(kv, &s, 64);
    CHECK_INT(kv_pages_free(kv), 3);
    kv_truncate(kv, &s, 0);
    CHECK_INT(kv_pages_free(kv), 4);
    CHECK(!s.pages && s.length == 0);
    kv_truncate(kv, &s, 0);
    kv_close(&kv);
}

/* Numbers that every format holds exactly but for int8's scale: integers below 128. */
static float key(int seq, int layer, int position, int i)
{
    return (float)((seq * 31 + layer * 17 + position * 7 + i * 3) % 255 - 127);
}

static float element(enum kv_format format, const void *base, size_t index)
{
    if (format == KV_F32)
        return ((const float *)base)[index];
    if (format == KV_BF16)
        return bf16_to_f32(((const uint16_t *)base)[index]);
    return ((const int8_t *)base)[index];
}

/* One position of one head against what was written; int8 is within half a step. */
static void check_slot(const struct kv *kv, const struct attend_block *b, int dim, int slot,
                       const float *k)
{
    enum kv_format format = kv_format_of(kv);
    size_t packed = format == KV_F32 ? 1 : format == KV_BF16 ? 2 : 4;
    size_t lanes = ((size_t)dim + packed - 1) / packed, stride = (size_t)kv_value_stride(kv);
    size_t at = (size_t)slot;
    float k_scale = format == KV_INT8 ? b->k_scales[slot] : 1.0f;
    float v_scale = format == KV_INT8 ? b->v_scales[slot] : 1.0f;
    double near = format == KV_INT8 ? 0.5001 : 0.0;
    for (size_t d = 0; d < stride; d++) {
        double want = d < (size_t)dim ? (double)k[d] : 0.0;
        size_t key_index = ((at / 16 * lanes + d / packed) * 16 + at % 16) * packed + d % packed;
        size_t value_index = (at / packed * stride + d) * packed + at % packed;
        if (d < lanes * packed)
            CHECK_NEAR(element(format, b->k, key_index) * k_scale, want, near);
        CHECK_NEAR(element(format, b->v, value_index) * v_scale, -want, near);
    }
}

static void write_and_read(const struct model_config *model, enum kv_format format)
{
    enum { POSITIONS = 150, SEQS = 2 };
    struct kv *kv = open_format(model, format, 6);
    struct kv_seq s[SEQS] = {{0}, {0}};
    int dim = model->head_dim, n = HEADS * dim;
    float k[HEADS * STRIDE], v[HEADS * STRIDE];
    CHECK_INT(kv_value_stride(kv), STRIDE);
    for (int at = 0; at < POSITIONS * SEQS * model->n_layers; at++) {
        int layer = at % model->n_layers, q = at / model->n_layers % SEQS;
        int position = at / model->n_layers / SEQS;
        CHECK_INT(kv_reserve(kv, &s[q], position + 1), 0);
        for (int i = 0; i < n; i++)
            v[i] = -(k[i] = key(q, layer, position, i));
        kv_write(kv, &s[q], layer, position, k, v);
    }
    for (int at = 0; at < POSITIONS * SEQS * model->n_layers * HEADS; at++) {
        int head = at % HEADS, layer = at / HEADS % model->n_layers;
        int q = at / HEADS / model->n_layers % SEQS, position = at / HEADS / model->n_layers / SEQS;
        struct attend_block b;
        kv_block(kv, &s[q], layer, position / 64, head, &b);
        CHECK(((uintptr_t)b.k | (uintptr_t)b.v) % 64 == 0);
        for (int i = 0; i < dim; i++)
            k[i] = key(q, layer, position, head * dim + i);
        check_slot(kv, &b, dim, position % 64, k);
    }
    for (int q = 0; q < SEQS; q++)
        kv_truncate(kv, &s[q], 0);
    kv_close(&kv);
}

TEST(kv_write_puts_every_number_where_the_kernels_read_it)
{
    struct model_config odd = config;
    odd.head_dim = 21;
    for (int format = 0; format < KV_FORMAT_COUNT; format++) {
        write_and_read(&config, (enum kv_format)format);
        write_and_read(&odd, (enum kv_format)format);
    }
}

/* ---- what sparse layers have besides ---- */

enum { INDEX_DIM = 20, SPARSE_PAGES = 5, SPARSE_TOKENS = SPARSE_PAGES * KV_PAGE_TOKENS };

static void write_index_keys(struct kv *kv, const struct kv_seq *s, int seq, int first, int end)
{
    float k[HEADS * STRIDE], v[HEADS * STRIDE];
    for (int at = first; at < end; at++)
        for (int layer = 0; layer < config.n_layers; layer++) {
            for (int i = 0; i < HEADS * DIM; i++)
                v[i] = -(k[i] = key(seq, layer, at, i));
            kv_write(kv, s, layer, at, k, v);
            if (layer > 0)
                kv_index_write(kv, s, layer, at, k + 1);
        }
}

/* A page of one layer: every index key, and the sketches that its keys have. */
static void check_index_page(const struct kv *kv, const struct kv_seq *s, int seq, int layer,
                             int page)
{
    enum kv_format format = kv_index_format(kv_format_of(kv));
    size_t packed = format == KV_F32 ? 1 : 2, lanes = INDEX_DIM / packed;
    const char *keys = kv_index_page(kv, s, layer, page);
    const char *sketches = kv_index_sketch(kv, s, layer, page);
    _Alignas(64) char want[KV_PAGE_TOKENS * 64] = {0};
    size_t unit = sketch_unit_bytes(INDEX_DIM);
    CHECK(unit * (KV_PAGE_TOKENS / SKETCH_UNIT) <= sizeof want);
    CHECK(((uintptr_t)keys | (uintptr_t)sketches) % 64 == 0);
    for (size_t slot = 0; slot < KV_PAGE_TOKENS; slot++) {
        float k[INDEX_DIM];
        for (size_t d = 0; d < INDEX_DIM; d++) {
            size_t at = ((slot / 16 * lanes + d / packed) * 16 + slot % 16) * packed + d % packed;
            k[d] = key(seq, layer, page * KV_PAGE_TOKENS + (int)slot, (int)d + 1);
            CHECK(element(format, keys, at) == k[d]);
        }
        sketch_key(k, INDEX_DIM, want + slot / SKETCH_UNIT * unit, (int)slot % SKETCH_UNIT);
    }
    CHECK_BYTES(sketches, want, unit * (KV_PAGE_TOKENS / SKETCH_UNIT));
}

static void check_sparse(const struct kv *kv, const struct kv_seq *s, int seq)
{
    for (int page = 0; page < SPARSE_PAGES; page++)
        for (int layer = 0; layer < config.n_layers; layer++) {
            struct attend_block b;
            float k[DIM];
            kv_block(kv, s, layer, page, 1, &b);
            for (int i = 0; i < DIM; i++)
                k[i] = key(seq, layer, page * KV_PAGE_TOKENS + 63, DIM + i);
            check_slot(kv, &b, DIM, 63, k);
            if (layer > 0)
                check_index_page(kv, s, seq, layer, page);
        }
}

/* Two sequences that fill the cache, one of them cut and grown again. */
TEST(kv_index_write_puts_keys_and_their_sketches_apart_from_all_else)
{
    struct model_config model = config;
    model.sparse = (struct sparse_config){
        .n_full_layers = 1, .block_size = 64, .top_k = 2, .n_heads = 2, .head_dim = INDEX_DIM};
    for (int format = 0; format < KV_FORMAT_COUNT; format++) {
        struct kv *kv = open_format(&model, (enum kv_format)format, 2 * SPARSE_PAGES);
        struct kv_seq s[2] = {{0}, {0}};
        for (int at = 0; at < SPARSE_TOKENS; at += 80)
            for (int q = 0; q < 2; q++) {
                CHECK_INT(kv_reserve(kv, &s[q], at + 80), 0);
                write_index_keys(kv, &s[q], q, at, at + 80);
            }
        check_sparse(kv, &s[0], 0);
        check_sparse(kv, &s[1], 1);
        kv_truncate(kv, &s[0], 100);
        CHECK_INT(kv_reserve(kv, &s[0], SPARSE_TOKENS), 0);
        write_index_keys(kv, &s[0], 2, 0, SPARSE_TOKENS);
        check_sparse(kv, &s[0], 2);
        check_sparse(kv, &s[1], 1);
        kv_truncate(kv, &s[0], 0);
        kv_truncate(kv, &s[1], 0);
        kv_close(&kv);
    }
}

TEST(kv_quantise_follows_its_rule)
{
    struct rng r = test_rng();
    float x[200];
    int8_t q[200 + 1];
    for (int n = 1; n <= 200; n++) {
        double largest = 0;
        for (int i = 0; i < n; i++) {
            x[i] = (float)rng_normal(&r);
            largest = fmax(largest, fabs((double)x[i]));
        }
        q[n] = 99;
        float scale = kv_quantise(x, n, q), up = 127.0f / (float)largest;
        CHECK(scale == (float)largest * (1.0f / 127.0f));
        for (int i = 0; i < n; i++)
            CHECK_INT(q[i], lrintf(x[i] * up));
        CHECK_INT(q[n], 99);
    }
}

TEST(kv_quantise_takes_what_is_no_ordinary_number)
{
    int8_t q[20];
    static const float tiny[] = {0.0f, -0.0f, 1e-45f, 0x1p-126f, -0x1p-101f};
    for (size_t i = 0; i < sizeof(tiny) / sizeof(tiny[0]); i++) {
        float x[20] = {[3] = tiny[i]};
        CHECK(kv_quantise(x, 20, q) == 0.0f);
        for (int j = 0; j < 20; j++)
            CHECK_INT(q[j], 0);
    }
    float large[20] = {[0] = FLT_MAX, [1] = -FLT_MAX, [19] = FLT_MAX / 2};
    CHECK(kv_quantise(large, 20, q) == FLT_MAX * (1.0f / 127.0f));
    CHECK_INT(q[0], 127);
    CHECK_INT(q[1], -127);
    CHECK_INT(q[19], 64);
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        for (int at = 0; at < 20; at += 19) {
            float x[20] = {[5] = 1.0f};
            x[at] = bad[i];
            CHECK(isnan(kv_quantise(x, 20, q)));
            for (int j = 0; j < 20; j++)
                CHECK_INT(q[j], 0);
        }
}
