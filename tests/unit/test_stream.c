/* tests/unit/test_stream.c - ids to text: stop strings, half characters, reasoning. */
#include "coordinator/stream.h"

#include <stdio.h>

#include "base/err.h"
#include "model/tokenizer_write.h"
#include "tests/lib/test.h"

static struct tokenizer *words;
static struct stream stream;
static struct output_events out;
static struct buf gathered;

static void begin(void)
{
    struct err e = {0};
    if (tokenizer_write_synthetic("tokenizer.json", 700, &e) < 0 ||
        tokenizer_open(".", &words, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    stream_init(&stream, words);
}

static void finish(void)
{
    stream_fini(&stream);
    output_events_fini(&out);
    buf_fini(&gathered);
    tokenizer_free(&words);
}

/* Byte tokens have their byte as id. */
static bool feed(const char *bytes)
{
    bool stopped = false;
    for (; *bytes && !stopped; bytes++)
        stopped = stream_feed(&stream, (unsigned char)*bytes, &out);
    return stopped;
}

static const char *text_of(enum output_kind kind)
{
    buf_reset(&gathered);
    output_events_gather(&out, kind, &gathered);
    buf_puts(&gathered, "");
    return gathered.data;
}

static const char *content(void)
{
    return text_of(OUTPUT_CONTENT);
}

TEST(stream_gives_text_at_once_when_nothing_can_stop_it)
{
    begin();
    CHECK(!feed("ab"));
    CHECK_STR(content(), "ab");
    CHECK(!stream_finish(&stream, OUTPUT_STOPPED, &out));
    CHECK_STR(content(), "ab");
    finish();
}

TEST(stream_never_gives_half_a_character)
{
    begin();
    feed("\xe2\x82");
    CHECK_STR(content(), "");
    feed("\xac");
    CHECK_STR(content(), "\xe2\x82\xac");
    feed("\xf0\x9f");
    CHECK(!stream_finish(&stream, OUTPUT_STOPPED, &out));
    CHECK_STR(content(), "\xe2\x82\xac\xef\xbf\xbd");
    finish();
}

TEST(stream_stops_before_a_stop_string_and_hides_it)
{
    begin();
    stream_add_stop(&stream, STR("STOP"));
    CHECK(!feed("go ST"));
    CHECK_STR(content(), "go ");
    CHECK(feed("OPon"));
    CHECK_STR(content(), "go ");
    CHECK(stream_feed(&stream, 'x', &out));
    CHECK_STR(content(), "go ");
    finish();
}

TEST(stream_gives_back_what_only_looked_like_a_stop)
{
    begin();
    stream_add_stop(&stream, STR("aab"));
    CHECK(!feed("aaa"));
    CHECK_STR(content(), "a");
    CHECK(feed("b"));
    CHECK_STR(content(), "a");
    finish();
    memset(&stream, 0, sizeof stream);
    begin();
    stream_add_stop(&stream, STR("aab"));
    CHECK(!feed("aa"));
    CHECK(!stream_finish(&stream, OUTPUT_STOPPED, &out));
    CHECK_STR(content(), "aa");
    finish();
}

TEST(stream_takes_the_first_of_several_stops)
{
    begin();
    stream_add_stop(&stream, STR("yz"));
    stream_add_stop(&stream, STR("x"));
    stream_add_stop(&stream, STR("\n\n"));
    CHECK(!feed("a\nby"));
    CHECK_STR(content(), "a\nb");
    CHECK(feed("z"));
    CHECK_STR(content(), "a\nb");
    finish();
}

TEST(stream_keeps_reasoning_apart_and_free_of_stops)
{
    begin();
    stream_add_stop(&stream, STR("end"));
    stream_split(&stream, OUTPUT_IN_REASONING, NULL);
    CHECK(!feed("the end\n"));
    int32_t close = tokenizer_find(words, STR("</think>"));
    CHECK(close >= 0);
    CHECK(!stream_feed(&stream, close, &out));
    CHECK(feed("\n\nanswer end"));
    CHECK_STR(text_of(OUTPUT_REASONING), "the end");
    CHECK_STR(content(), "answer ");
    finish();
}

TEST(stream_ends_content_where_a_tool_call_begins)
{
    begin();
    json_t *tools = json_pack("[{s:{s:s}}]", "function", "name", "f");
    stream_add_stop(&stream, STR("end"));
    stream_split(&stream, OUTPUT_IN_CONTENT, tools);
    json_decref(tools); /* the stream holds it */
    CHECK(!feed("an en\n"));
    CHECK_STR(content(), "an "); /* "end" may come, and a line feed of the template's */
    CHECK(!stream_has_calls(&stream));
    CHECK(!feed("en"));
    CHECK_STR(content(), "an en\n");
    CHECK(!stream_feed(&stream, tokenizer_find(words, STR("<minimax:tool_call>")), &out));
    CHECK(!feed("<invoke name=\"f\"><parameter name=\"a\">the end</parameter></invoke>"));
    CHECK(stream_has_calls(&stream));
    CHECK_STR(content(), "an en\nen");
    CHECK_INT(out.list[1].kind, OUTPUT_CALL);
    CHECK_STR(text_of(OUTPUT_ARGUMENTS), "{\"a\": \"the end\"}");
    CHECK(!stream_finish(&stream, OUTPUT_STOPPED, &out));
    CHECK(!stream_is_broken(&stream));
    finish();
}

TEST(stream_stops_at_a_broken_tool_call)
{
    begin();
    json_t *tools = json_array();
    stream_split(&stream, OUTPUT_IN_CONTENT, tools);
    json_decref(tools);
    stream_feed(&stream, tokenizer_find(words, STR("<minimax:tool_call>")), &out);
    CHECK(!feed("<invoke name="));
    bool stopped = false;
    for (int i = 0; i < 1000 && !stopped; i++)
        stopped = feed("x");
    CHECK(stopped);
    CHECK(stream_is_broken(&stream));
    CHECK_HAS(text_of(OUTPUT_ERROR), "too long");
    CHECK(stream_finish(&stream, OUTPUT_STOPPED, &out));
    finish();
}

TEST(stream_without_words_is_silent)
{
    struct output_events text = {0};
    struct stream s;
    stream_init(&s, NULL);
    CHECK(!stream_feed(&s, 5, &text));
    CHECK(!stream_finish(&s, OUTPUT_STOPPED, &text));
    CHECK_INT(text.n, 0);
    stream_fini(&s);
}
