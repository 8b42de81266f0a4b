#include "model/reasoning.h"

#include "base/err.h"
#include "base/rng.h"
#include "model/tokenizer_write.h"
#include "tests/lib/test.h"

static struct tokenizer *small_tokenizer(void)
{
    struct tokenizer *t = NULL;
    struct err e = {0};

    if (tokenizer_write_synthetic("tokenizer.json", 700, &e) < 0 || tokenizer_open(".", &t, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return t;
}

static void feed_all(struct reasoning *r, const struct tokens *ids, struct reasoning_text *out)
{
    for (size_t i = 0; i < ids->len; i++) {
        reasoning_feed(r, ids->ids[i], out);
        CHECK(utf8_is_valid(buf_str(&out->thinking)));
        CHECK(utf8_is_valid(buf_str(&out->content)));
    }
    reasoning_finish(r, out);
    buf_puts(&out->thinking, "");
    buf_puts(&out->content, "");
}

static void check_ids(const struct tokenizer *t, const struct tokens *ids,
                      enum reasoning_part begins, const char *thinking, const char *content)
{
    struct reasoning r;
    struct reasoning_text out = {0};

    reasoning_init(&r, t, begins);
    feed_all(&r, ids, &out);
    CHECK_STR(out.thinking.data, thinking);
    CHECK_STR(out.content.data, content);
    reasoning_text_fini(&out);
}

/* The output as the tokenizer cuts it with think tokens as ids, and byte by byte between them. */
static void check_split(const struct tokenizer *t, struct str output, enum reasoning_part begins,
                        const char *thinking, const char *content)
{
    struct tokens ids = {0}, bytes = {0};

    CHECK_INT(tokenizer_encode(t, output, TOKENIZER_WITH_MARKERS, &ids), 0);
    check_ids(t, &ids, begins, thinking, content);
    for (size_t i = 0; i < ids.len; i++) {
        struct str token = tokenizer_token_bytes(t, ids.ids[i]);
        if (tokenizer_is_added(t, ids.ids[i]))
            tokens_push(&bytes, ids.ids[i]);
        else
            for (size_t k = 0; k < token.len; k++)
                tokens_push(&bytes, (unsigned char)token.ptr[k]);
    }
    check_ids(t, &bytes, begins, thinking, content);
    tokens_fini(&ids);
    tokens_fini(&bytes);
}

TEST(reasoning_is_split_at_its_end_token)
{
    struct tokenizer *t = small_tokenizer();

    check_split(t, STR("let me think\n</think>\n\nAnswer\n"), REASONING_THINKING, "let me think",
                "Answer\n");
    check_split(t, STR("a\n\nb\n\n</think>\n\n\nc"), REASONING_THINKING, "a\n\nb\n", "\nc");
    check_split(t, STR("a</think>b"), REASONING_THINKING, "a", "b");
    check_split(t, STR("</think>\nb\n\nc"), REASONING_THINKING, "", "b\n\nc");
    tokenizer_free(&t);
}

TEST(reasoning_may_end_anywhere)
{
    struct tokenizer *t = small_tokenizer();

    check_split(t, STR(""), REASONING_THINKING, "", "");
    check_split(t, STR("unfinished\n"), REASONING_THINKING, "unfinished\n", "");
    check_split(t, STR("done\n</think>"), REASONING_THINKING, "done", "");
    check_split(t, STR("done\n</think>\n"), REASONING_THINKING, "done", "");
    check_split(t, STR("<thi"), REASONING_THINKING, "<thi", "");
    check_split(t, STR("cut \xe4\xbd"), REASONING_THINKING, "cut \xef\xbf\xbd", "");
    check_split(t, STR("cut \xe4\xbd</think>ok"), REASONING_THINKING, "cut \xef\xbf\xbd", "ok");
    tokenizer_free(&t);
}

TEST(reasoning_tolerates_an_opening_at_the_start)
{
    struct tokenizer *t = small_tokenizer();
    struct tokens spelt = {0};

    check_split(t, STR("<think>\nhm\n</think>\n\nyes"), REASONING_THINKING, "hm", "yes");
    check_split(t, STR("<think>hm</think>yes"), REASONING_CONTENT, "hm", "yes");
    check_split(t, STR("no thought"), REASONING_CONTENT, "", "no thought");
    check_split(t, STR("\n\nno thought"), REASONING_CONTENT, "", "\n\nno thought");
    /* Later ones are text, and so is an end without a beginning. */
    check_split(t, STR("a <think> b</think>c</think>d"), REASONING_THINKING, "a <think> b",
                "c</think>d");
    check_split(t, STR("a</think>b"), REASONING_CONTENT, "", "a</think>b");
    /* Spelt in letters. */
    CHECK_INT(tokenizer_encode(t, STR("<think>\nhm"), TOKENIZER_PLAIN, &spelt), 0);
    tokens_push(&spelt, tokenizer_find(t, STR("</think>")));
    check_ids(t, &spelt, REASONING_THINKING, "hm", "");
    check_ids(t, &spelt, REASONING_CONTENT, "hm", "");
    tokens_reset(&spelt);
    CHECK_INT(tokenizer_encode(t, STR("<thinker>"), TOKENIZER_PLAIN, &spelt), 0);
    check_ids(t, &spelt, REASONING_CONTENT, "", "<thinker>");
    tokens_fini(&spelt);
    tokenizer_free(&t);
}

TEST(reasoning_gives_text_out_as_soon_as_it_is_certain)
{
    struct tokenizer *t = small_tokenizer();
    struct reasoning r;
    struct reasoning_text out = {0};

    reasoning_init(&r, t, REASONING_THINKING);
    CHECK_INT(reasoning_where(&r), REASONING_THINKING);
    reasoning_feed(&r, 'a', &out);
    CHECK_INT(out.thinking.len, 1);
    reasoning_feed(&r, '\n', &out); /* may be the template's */
    CHECK_INT(out.thinking.len, 1);
    reasoning_feed(&r, 'b', &out);
    CHECK_INT(out.thinking.len, 3);
    reasoning_feed(&r, 0xe4, &out);
    reasoning_feed(&r, 0xbd, &out);
    CHECK_INT(out.thinking.len, 3);
    reasoning_feed(&r, 0xa0, &out);
    CHECK_INT(out.thinking.len, 6);
    reasoning_feed(&r, tokenizer_find(t, STR("</think>")), &out);
    CHECK_INT(reasoning_where(&r), REASONING_CONTENT);
    reasoning_feed(&r, 'c', &out);
    CHECK_INT(out.content.len, 1);
    reasoning_feed(&r, '\n', &out);
    CHECK_INT(out.content.len, 2);
    reasoning_text_fini(&out);
    tokenizer_free(&t);
}

TEST(reasoning_shows_no_special_token)
{
    struct tokenizer *t = small_tokenizer();

    check_split(t, STR("a[e~[b</think>]~b]c<minimax:tool_call>"), REASONING_THINKING, "ab",
                "c<minimax:tool_call>");
    tokenizer_free(&t);
}

TEST(reasoning_survives_any_ids)
{
    struct tokenizer *t = small_tokenizer();
    struct rng rng = test_rng();

    for (int i = 0; i < 2000; i++) {
        struct reasoning r;
        struct reasoning_text out = {0};
        struct tokens ids = {0};
        for (int k = (int)rng_below(&rng, 30); k > 0; k--)
            tokens_push(&ids, (int32_t)rng_below(&rng, 710) - 5);
        reasoning_init(&r, t, rng_below(&rng, 2) ? REASONING_THINKING : REASONING_CONTENT);
        feed_all(&r, &ids, &out);
        reasoning_text_fini(&out);
        tokens_fini(&ids);
    }
    tokenizer_free(&t);
}
