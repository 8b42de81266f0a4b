#include "model/utf8.h"

#include "base/buf.h"
#include "tests/lib/test.h"

/* Feeds `in` in two parts, cut at every place, and byte by byte: always `want`. */
static void check_stream(struct str in, const char *want)
{
    for (size_t cut = 0; cut <= in.len + 1; cut++) {
        struct utf8_stream s = {0};
        struct buf out = {0};

        if (cut > in.len) {
            for (size_t i = 0; i < in.len; i++)
                utf8_feed(&s, (struct str){in.ptr + i, 1}, &out);
        } else {
            utf8_feed(&s, (struct str){in.ptr, cut}, &out);
            CHECK(utf8_is_valid(buf_str(&out)));
            utf8_feed(&s, (struct str){in.ptr + cut, in.len - cut}, &out);
        }
        utf8_finish(&s, &out);
        buf_putc(&out, '.');
        CHECK_STR(out.data, want);
        buf_fini(&out);
    }
}

#define BAD "\xef\xbf\xbd"

TEST(utf8_stream_passes_whole_characters)
{
    check_stream(STR(""), ".");
    check_stream(STR("plain"), "plain.");
    check_stream(STR("\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x9a\x80!"),
                 "\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x9a\x80!.");
}

TEST(utf8_stream_replaces_each_broken_sequence_once)
{
    check_stream(STR("a\xff"
                     "b"),
                 "a" BAD "b.");
    check_stream(STR("\x80"), BAD ".");
    check_stream(STR("\xf0\x9f\x9a"), BAD ".");
    check_stream(STR("\xf0\x9f\x9a!"), BAD "!.");
    check_stream(STR("\xf0\x9f\xf0\x9f\x9a\x80"), BAD "\xf0\x9f\x9a\x80.");
    /* Overlong forms, surrogates, beyond U+10FFFF: no byte of them can begin a character. */
    check_stream(STR("\xc0\xaf"), BAD BAD ".");
    check_stream(STR("\xe0\x80\x80"), BAD BAD BAD ".");
    check_stream(STR("\xed\xa0\x80"), BAD BAD BAD ".");
    check_stream(STR("\xf4\x90\x80\x80"), BAD BAD BAD BAD ".");
    /* The example of the Unicode standard, table 3-11. */
    check_stream(STR("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41"), BAD BAD BAD BAD "\x41.");
}

TEST(utf8_stream_holds_back_only_what_may_go_on)
{
    struct utf8_stream s = {0};
    struct buf out = {0};

    utf8_feed(&s, STR("ab\xe4\xbd"), &out);
    CHECK_INT(out.len, 2);
    utf8_feed(&s, STR("\xa0"), &out);
    CHECK_INT(out.len, 5);
    utf8_finish(&s, &out);
    CHECK_INT(out.len, 5);
    buf_fini(&out);
}

TEST(utf8_decode_and_append_are_inverse)
{
    int32_t back = -1;

    for (int32_t c = 0; c <= 0x10ffff; c += c < 0x900 ? 1 : 61) {
        struct buf out = {0};
        if (c >= 0xd800 && c <= 0xdfff)
            continue;
        utf8_append(&out, c);
        CHECK_INT(utf8_decode(buf_str(&out), 0, &back), out.len);
        CHECK_INT(back, c);
        buf_fini(&out);
    }
    CHECK_INT(utf8_decode(STR("\xed\xa0\x80"), 0, &back), 0);
    CHECK_INT(utf8_decode(STR("\xe4\xbd"), 0, &back), 0);
    CHECK(!utf8_is_valid(STR("ok\xc3")));
    CHECK(utf8_is_valid(STR("ok\xc3\xa9")));
}
