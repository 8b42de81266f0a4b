/* tests/unit/test_format.c - names of formats, and the sets that a cluster shares. */
#include "model/format.h"

#include "tests/lib/test.h"

TEST(format_names_are_read_back)
{
    for (int f = FORMAT_NATIVE; f < FORMAT_COUNT; f++) {
        enum weight_format got = FORMAT_COUNT;
        CHECK(format_parse(format_name((enum weight_format)f), &got));
        CHECK_INT(got, f);
    }
    for (int f = KV_F32; f < KV_FORMAT_COUNT; f++) {
        enum kv_format got = KV_FORMAT_COUNT;
        CHECK(kv_format_parse(kv_format_name((enum kv_format)f), &got));
        CHECK_INT(got, f);
    }
    enum weight_format f = FORMAT_FP8;
    CHECK(!format_parse("int8", &f) && !format_parse("", &f) && !format_parse("Q8", &f));
    CHECK_INT(f, FORMAT_FP8);
    enum kv_format kv;
    CHECK(!kv_format_parse("q8", &kv));
    CHECK_INT(format_group(FORMAT_Q8), 128);
    CHECK_INT(format_group(FORMAT_Q4), 64);
    CHECK_INT(format_group(FORMAT_FP8), 0);
    CHECK_INT(format_group(FORMAT_NATIVE), 0);
}

TEST(format_sets_have_one_spelling)
{
    const struct {
        const char *text, *want;
    } cases[] = {
        {"native", "native,kv=bf16"},
        {"q8", "q8,kv=bf16"},
        {"q8,kv=int8", "q8,kv=int8"},
        {"kv=int8,q8", "q8,kv=int8"},
        {"f32", "f32,kv=f32"},
        {"f32,kv=bf16", "f32,kv=bf16"},
        {"kv=bf16,f32", "f32,kv=bf16"},
        {"f32,q8", "q8,kv=bf16"},
        {"experts=q4", "experts=q4,attention=native,head=native,kv=bf16"},
        {"q8,experts=q4", "experts=q4,attention=q8,head=q8,kv=bf16"},
        {"experts=q4,q8", "q8,kv=bf16"},
        {"head=fp8,attention=fp8,experts=fp8", "fp8,kv=bf16"},
        {"experts=f32", "experts=f32,attention=native,head=native,kv=bf16"},
        {"experts=native,attention=native,head=bf16,kv=f32",
         "experts=native,attention=native,head=bf16,kv=f32"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct format_set set, again;
        struct err e = {0};
        char text[FORMAT_SET_BYTES];
        CHECK_INT(format_set_parse(cases[i].text, &set, &e), 0);
        CHECK_STR(format_set_text(&set, text), cases[i].want);
        CHECK_INT(format_set_parse(text, &again, &e), 0);
        CHECK(format_set_equal(&set, &again));
    }
}

TEST(format_sets_that_mean_nothing_are_refused_by_item)
{
    const struct {
        const char *text, *part;
    } cases[] = {
        {"", "''"},
        {"q8,", "''"},
        {",q8", "''"},
        {"q5", "'q5'"},
        {"q8,kv=q8", "'kv=q8': the cache's format is one of f32|bf16|int8"},
        {"experts=int8", "native|f32|bf16|fp8|q8|q4"},
        {"router=f32", "'router=f32': expected FORMAT or part=FORMAT"},
        {"=q8", "'=q8'"},
        {"experts=", "'experts='"},
        {"kv=", "'kv='"},
        {"q8 ", "'q8 '"},
        {"expertsexpertsexpertsexpertsexperts=q8", "expected"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct format_set set = {.head = FORMAT_FP8};
        struct err e = {0};
        CHECK_INT(format_set_parse(cases[i].text, &set, &e), E_INVALID);
        CHECK_HAS(e.text, cases[i].part);
        CHECK_INT(set.head, FORMAT_FP8);
    }
}

TEST(format_sets_differ_in_any_part)
{
    const struct format_set a = {FORMAT_Q8, FORMAT_Q8, FORMAT_Q8, KV_BF16};
    struct format_set b = a;
    CHECK(format_set_equal(&a, &b));
    b.kv = KV_F32;
    CHECK(!format_set_equal(&a, &b));
    b = a;
    b.experts = FORMAT_Q4;
    CHECK(!format_set_equal(&a, &b));
    b = a;
    b.attention = FORMAT_Q4;
    CHECK(!format_set_equal(&a, &b));
    b = a;
    b.head = FORMAT_Q4;
    CHECK(!format_set_equal(&a, &b));
}
