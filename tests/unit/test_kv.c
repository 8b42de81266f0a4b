/* tests/unit/test_kv.c - pages: who has which, and where a position's numbers lie. */
#include <stdint.h>

#include "engine/kv.h"
#include "tests/lib/test.h"

static const struct model_config config = {.n_layers = 3, .n_kv_heads = 2, .head_dim = 20};
enum { DIM = 20, STRIDE = 32, HEADS = 2 };

static struct kv *open_kv(int n_pages)
{
    struct kv *kv;
    struct err e = {0};
    CHECK_INT(kv_open(&config, (size_t)n_pages * kv_page_bytes(&config), &kv, &e), 0);
    CHECK_INT(kv_pages_total(kv), n_pages);
    CHECK_INT(kv_pages_free(kv), n_pages);
    return kv;
}

TEST(kv_page_is_keys_and_padded_values_of_every_layer_and_head)
{
    CHECK_INT(kv_page_bytes(&config), 3 * 2 * 64 * (20 + 32) * sizeof(float));
    struct model_config huge = config;
    huge.n_layers = huge.n_kv_heads = huge.head_dim = INT32_MAX / 2;
    CHECK(kv_page_bytes(&huge) == SIZE_MAX);
}

TEST(kv_open_refuses_less_than_a_page_and_more_than_the_machine_has)
{
    struct kv *kv;
    struct err e = {0};
    CHECK_INT(kv_open(&config, kv_page_bytes(&config) - 1, &kv, &e), E_INVALID);
    CHECK(!kv);
    CHECK_HAS(e.text, "hold no page");
    CHECK_INT(kv_open(&config, (size_t)1 << 46, &kv, &e), E_NOMEM);
    CHECK(!kv);
    struct model_config huge = config;
    huge.n_layers = huge.n_kv_heads = huge.head_dim = INT32_MAX / 2;
    CHECK_INT(kv_open(&huge, (size_t)1 << 40, &kv, &e), E_INVALID);
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

static float key(int seq, int layer, int position, int i)
{
    return (float)(((seq * 3 + layer) * 200 + position) * 64 + i);
}

TEST(kv_write_puts_every_number_where_the_kernels_read_it)
{
    struct kv *kv = open_kv(6);
    struct kv_seq s[2] = {{0}, {0}};
    float k[HEADS * DIM], v[HEADS * DIM];
    CHECK_INT(kv_value_stride(kv), STRIDE);
    for (int position = 0; position < 150; position++)
        for (int q = 0; q < 2; q++) {
            CHECK_INT(kv_reserve(kv, &s[q], position + 1), 0);
            for (int layer = 0; layer < config.n_layers; layer++) {
                for (int i = 0; i < HEADS * DIM; i++) {
                    k[i] = key(q, layer, position, i);
                    v[i] = -k[i];
                }
                kv_write(kv, &s[q], layer, position, k, v);
            }
        }
    for (int q = 0; q < 2; q++)
        for (int layer = 0; layer < config.n_layers; layer++)
            for (int position = 0; position < 150; position++)
                for (int head = 0; head < HEADS; head++) {
                    int slot = position % 64;
                    const float *keys = kv_keys(kv, &s[q], layer, position / 64, head);
                    const float *values = kv_values(kv, &s[q], layer, position / 64, head);
                    CHECK(((uintptr_t)keys | (uintptr_t)values) % 64 == 0);
                    for (int d = 0; d < STRIDE; d++) {
                        float want = key(q, layer, position, head * DIM + d);
                        if (d < DIM)
                            CHECK(keys[(slot / 16 * DIM + d) * 16 + slot % 16] == want);
                        CHECK(values[slot * STRIDE + d] == (d < DIM ? -want : 0.0f));
                    }
                }
    kv_truncate(kv, &s[0], 0);
    kv_truncate(kv, &s[1], 0);
    kv_close(&kv);
}
