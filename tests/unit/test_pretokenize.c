#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include "base/buf.h"
#include "model/pretokenize.h"
#include "model/utf8.h"
#include "tests/lib/test.h"

struct oracle {
    pcre2_code *code;
    pcre2_match_data *match;
};

static struct oracle oracle_new(const char *pattern)
{
    struct oracle o;
    int error;
    PCRE2_SIZE where;

    o.code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                           &error, &where, NULL);
    CHECK(o.code != NULL);
    pcre2_jit_compile(o.code, PCRE2_JIT_COMPLETE); /* only speed: without it pcre2 interprets */
    o.match = pcre2_match_data_create_from_pattern(o.code, NULL);
    return o;
}

static void oracle_free(struct oracle *o)
{
    pcre2_match_data_free(o->match);
    pcre2_code_free(o->code);
}

/* End of the match that starts at `at`; 0 if none does. */
static size_t oracle_next(struct oracle *o, struct str text, size_t at)
{
    PCRE2_SIZE *span = pcre2_get_ovector_pointer(o->match);

    if (pcre2_match(o->code, (PCRE2_SPTR)text.ptr, text.len, at, PCRE2_ANCHORED, o->match, NULL) <
        1)
        return 0;
    return span[1];
}

static void check_against(struct oracle *o, struct str text)
{
    size_t at = 0, end, want;

    for (; at < text.len; at = end) {
        end = pretokenize_next(text, at);
        want = oracle_next(o, text, at);
        if (end != want) {
            struct buf hex = {0};
            for (size_t i = 0; i < text.len; i++)
                buf_printf(&hex, "%02x%s", (unsigned char)text.ptr[i], i + 1 == at ? "|" : "");
            test_fail(__FILE__, __LINE__, "%s: piece ends at %zu, the pattern's at %zu", hex.data,
                      end, want);
        }
    }
}

/* Characters whose interplay the pattern is about, then whole blocks. */
static int32_t random_char(struct rng *rng)
{
    static const int32_t picked[] = {
        ' ',    ' ',    '\t',   '\n',    '\r',    0x0b,   0x85,    0xa0,    0x2028, 0x3000,
        '\'',   's',    'S',    't',     'r',     'e',    'L',     'v',     'M',    'd',
        0x17f,  '/',    '.',    '!',     '0',     '7',    0x664,   0x2167,  0xbd,   'a',
        'Z',    0xe9,   0xc9,   0x1c5,   0x2b0,   0x4e2d, 0x5b57,  0x301,   0x20dd, 0x903,
        0x5d0,  0x627,  0x3b1,  0x391,   0x1f680, 0x200d, 0xfe0f,  0x1f3fd, 0x20ac, 0x00,
        0x212a, 0x1e9e, 0xfb06, 0x1d400, 0xad,    0xfeff, 0x10400, 0x10428,
    };
    static const int32_t blocks[][2] = {{0x00, 0x7f},     {0x80, 0x24f},     {0x250, 0x52f},
                                        {0x530, 0x1cff},  {0x1d00, 0x2fff},  {0x3000, 0xd7ff},
                                        {0xe000, 0xffff}, {0x10000, 0x1ffff}};
    size_t n = sizeof(picked) / sizeof(*picked);
    const int32_t *block;

    if (rng_below(rng, 4) > 0)
        return picked[rng_below(rng, n)];
    block = blocks[rng_below(rng, 8)];
    return block[0] + (int32_t)rng_below(rng, (uint64_t)(block[1] - block[0] + 1));
}

/* Characters on which the two Unicode tables need not agree: those that one of them does not
 * have yet, and U+180E, which pcre2 calls a space for old times' sake. */
static bool is_disputed(struct oracle *unassigned, int32_t c)
{
    struct buf text = {0};
    bool disputed;

    utf8_append(&text, c);
    disputed = c == 0x180e || oracle_next(unassigned, buf_str(&text), 0) > 0;
    buf_fini(&text);
    return disputed;
}

TEST_WITHIN(pretokenize_agrees_with_the_regular_expression, 120)
{
    struct rng rng = test_rng();
    struct oracle pattern = oracle_new(pretokenize_pattern()), unassigned = oracle_new("\\p{Cn}");
    int n_texts = 100000;
    struct buf text = {0};

    for (int i = 0; i < n_texts; i++) {
        int n = 1 + (int)rng_below(&rng, 24);
        buf_reset(&text);
        while (n > 0) {
            int32_t c = random_char(&rng);
            if (is_disputed(&unassigned, c))
                continue;
            utf8_append(&text, c);
            n--;
        }
        check_against(&pattern, buf_str(&text));
    }
    test_note("%d random texts, seed %llu", n_texts, (unsigned long long)test_seed());
    buf_fini(&text);
    oracle_free(&pattern);
    oracle_free(&unassigned);
}

/* "a|b|c" for the pieces a, b, c. */
static void check_pieces(struct str text, const char *want)
{
    struct buf got = {0};
    size_t end;

    for (size_t at = 0; at < text.len; at = end) {
        end = pretokenize_next(text, at);
        CHECK(end > at && end <= text.len);
        if (at > 0)
            buf_putc(&got, '|');
        buf_append(&got, text.ptr + at, end - at);
    }
    CHECK_STR(got.data, want);
    buf_fini(&got);
}

TEST(pretokenize_splits_words_numbers_symbols_and_space)
{
    check_pieces(STR("Hello, world!"), "Hello|,| world|!");
    check_pieces(STR("1234567890"), "123|456|789|0");
    check_pieces(STR("HTMLParser getURL"), "HTMLParser| get|URL");
    check_pieces(STR("camelCase"), "camel|Case");
    check_pieces(STR("DON'T it'll 's"), "DON'T| it'll| '|s");
    check_pieces(STR("a/b/c.\n/d"), "a|/b|/c|.\n/|d");
    check_pieces(STR("a  b"), "a| | b");
    check_pieces(STR("a \n \n  b"), "a| \n \n| | b");
    check_pieces(STR("end   "), "end|   ");
}

TEST(pretokenize_takes_bad_bytes_as_symbols)
{
    check_pieces(STR("a\xff"
                     "b"),
                 "a|\xff"
                 "b");
    check_pieces(STR("\xe4\xbd"), "\xe4\xbd");
    check_pieces(STR("1\x80\x80 2"), "1|\x80\x80| |2");
}

TEST(pretokenize_knows_its_pattern_only)
{
    CHECK(pretokenize_knows(str_of(pretokenize_pattern())));
    CHECK(!pretokenize_knows(STR("\\s+")));
    CHECK(!pretokenize_knows(STR("")));
    CHECK(!pretokenize_knows(STR("'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}|"
                                 " ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+")));
}
