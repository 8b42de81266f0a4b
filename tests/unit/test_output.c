/* tests/unit/test_output.c - the model's output to events: every case in every way of cutting it. */
#include "model/output.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/mem.h"
#include "model/chat.h"
#include "model/output_value.h"
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

static json_t *json_of(const char *text)
{
    json_error_t e;
    json_t *v = json_loads(text, 0, &e);

    if (!v)
        test_fail(__FILE__, __LINE__, "%s in %s", e.text, text);
    return v;
}

/* ---- running ------------------------------------------------------------------------------ */

/* What came out, one bracket for each event; the caller frees. */
static char *transcript(const struct output_events *said)
{
    static const char *const names[] = {"think", "say", "call", "args", "end", "error"};
    struct buf text = {0};

    for (size_t i = 0; i < said->n; i++) {
        struct str s = output_events_text(said, i);
        CHECK(utf8_is_valid(s));
        buf_printf(&text, "[%s%s%.*s]", names[said->list[i].kind], s.len ? " " : "", (int)s.len,
                   s.ptr);
    }
    char *copy = str_copy(buf_str(&text));
    buf_fini(&text);
    return copy;
}

struct run {
    const char *output;
    enum output_place begins;
    enum output_ending ending;
    const char *want;
};

static json_t *tools; /* of the run */

static void check_said(const struct run *r, const struct output_events *said, const char *how)
{
    char *have = transcript(said);

    if (strcmp(have, r->want) != 0)
        test_fail(__FILE__, __LINE__, "%s of \"%s\":\n  %s\nexpected\n  %s", how, r->output, have,
                  r->want);
    mem_free(have);
}

/* As bytes: in two pieces cut at `cut`, or in single bytes for SIZE_MAX. */
static void run_bytes(const struct run *r, size_t cut, struct output_report *report)
{
    struct output o;
    struct output_events said = {0};
    struct str text = str_of(r->output);
    char how[64];

    output_init(&o, NULL, r->begins, tools);
    if (cut == SIZE_MAX) {
        for (size_t i = 0; i < text.len; i++)
            output_feed_text(&o, (struct str){text.ptr + i, 1}, &said);
    } else {
        output_feed_text(&o, (struct str){text.ptr, cut}, &said);
        output_feed_text(&o, (struct str){text.ptr + cut, text.len - cut}, &said);
    }
    output_finish(&o, r->ending, &said);
    snprintf(how, sizeof how, "cut %zd", (ssize_t)cut);
    check_said(r, &said, how);
    *report = o.report;
    output_events_fini(&said);
    output_fini(&o);
}

static void run_ids(const struct run *r, const struct tokenizer *t, const struct tokens *ids)
{
    struct output o;
    struct output_events said = {0};

    output_init(&o, t, r->begins, tools);
    for (size_t i = 0; i < ids->len; i++)
        output_feed(&o, ids->ids[i], &said);
    output_finish(&o, r->ending, &said);
    check_said(r, &said, "ids");
    output_events_fini(&said);
    output_fini(&o);
}

/* Markers as ids, what is between them as the tokenizer cuts it and byte by byte. */
static void run_tokens(const struct run *r)
{
    struct tokenizer *t = small_tokenizer();
    struct tokens ids = {0}, bytes = {0};

    CHECK_INT(tokenizer_encode(t, str_of(r->output), TOKENIZER_WITH_MARKERS, &ids), 0);
    run_ids(r, t, &ids);
    for (size_t i = 0; i < ids.len; i++) {
        struct str token = tokenizer_token_bytes(t, ids.ids[i]);
        if (tokenizer_is_added(t, ids.ids[i]))
            tokens_push(&bytes, ids.ids[i]);
        else
            for (size_t k = 0; k < token.len; k++)
                tokens_push(&bytes, (unsigned char)token.ptr[k]);
    }
    run_ids(r, t, &bytes);
    tokens_fini(&ids);
    tokens_fini(&bytes);
    tokenizer_free(&t);
}

static struct output_report run_cut_everywhere(const struct run *r)
{
    struct output_report report;

    for (size_t cut = 0; cut <= strlen(r->output); cut++)
        run_bytes(r, cut, &report);
    run_bytes(r, SIZE_MAX, &report);
    return report;
}

static void check_runs(const struct run *runs, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        run_cut_everywhere(&runs[i]);
        run_tokens(&runs[i]);
    }
}
#define CHECK_RUNS(list) check_runs(list, sizeof(list) / sizeof(list)[0])

/* ---- reasoning and content ---------------------------------------------------------------- */

#define THINKS OUTPUT_IN_REASONING, OUTPUT_STOPPED
#define SPEAKS OUTPUT_IN_CONTENT, OUTPUT_STOPPED
#define SPEAKS_CUT OUTPUT_IN_CONTENT, OUTPUT_CUT

TEST(output_splits_reasoning_from_content)
{
    static const struct run runs[] = {
        {"let me think\n</think>\n\nAnswer\n", THINKS, "[think let me think][say Answer\n]"},
        {"a\n\nb\n\n</think>\n\n\nc", THINKS, "[think a\n\nb\n][say \nc]"},
        {"a</think>b", THINKS, "[think a][say b]"},
        {"</think>\nb\n\nc", THINKS, "[say b\n\nc]"},
        {"\n\na\n</think>", THINKS, "[think \n\na]"},
        {"", THINKS, ""},
        {"unfinished\n", THINKS, "[think unfinished\n]"},
        {"done\n</think>\n", THINKS, "[think done]"},
        {"cut \xe4\xbd", THINKS, "[think cut \xef\xbf\xbd]"},
        {"cut \xe4\xbd</think>ok", THINKS, "[think cut \xef\xbf\xbd][say ok]"},
        {"no thought", SPEAKS, "[say no thought]"},
        {"\n\nno thought", SPEAKS, "[say \n\nno thought]"},
        {"1 < 2 </b> <think", SPEAKS, "[say 1 < 2 </b> <think]"},
    };
    CHECK_RUNS(runs);
}

TEST(output_tolerates_what_the_start_should_not_have)
{
    static const struct run runs[] = {
        {"<think>\nhm\n</think>\n\nyes", THINKS, "[think hm][say yes]"},
        {"\n<think>\nhm\n</think>\n\nyes", THINKS, "[think hm][say yes]"},
        {"<think>hm</think>yes", SPEAKS, "[think hm][say yes]"},
        {"<think>\n\nhm", SPEAKS, "[think \nhm]"},
        {"</think>\n\nyes", SPEAKS, "[say yes]"},
        {"<thi", THINKS, "[think <thi]"},
        {"<thinker>", SPEAKS, "[say <thinker>]"},
        /* Later ones are text, and so is an end without a beginning. */
        {"a <think> b</think>c</think>d", THINKS, "[think a <think> b][say c</think>d]"},
        {"a</think>b", SPEAKS, "[say a</think>b]"},
        {"<think><think>a</think>", THINKS, "[think <think>a]"},
    };
    CHECK_RUNS(runs);
}

TEST(output_without_tools_keeps_calls_as_content)
{
    static const struct run runs[] = {
        {"a\n<minimax:tool_call>\n<invoke name=\"f\">\n</invoke>\n</minimax:tool_call>", SPEAKS,
         "[say a\n<minimax:tool_call>\n<invoke name=\"f\">\n</invoke>\n</minimax:tool_call>]"},
        {"a<minimax:tool_call>b</think>c", THINKS, "[think a<minimax:tool_call>b][say c]"},
    };
    CHECK_RUNS(runs);
}

/* ---- tool calls --------------------------------------------------------------------------- */

static const char tools_text[] =
    "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": "
    "\"object\", \"properties\": {\"s\": {\"type\": \"string\"}, \"i\": {\"type\": \"integer\"}, "
    "\"n\": {\"type\": \"number\"}, \"b\": {\"type\": \"boolean\"}, \"o\": {\"type\": "
    "\"object\"}, \"a\": {\"type\": \"array\"}, \"m\": {\"type\": [\"string\", \"null\"]}, "
    "\"z\": {\"type\": \"null\"}}}}}, {\"type\": \"function\", \"function\": {\"name\": \"g\"}}]";

#define OPEN "\n<minimax:tool_call>\n"
#define CLOSE "</minimax:tool_call>"
#define F "<invoke name=\"f\">\n"
#define G "<invoke name=\"g\">\n"
#define S(text) "<parameter name=\"s\">" text "</parameter>\n"
#define I(text) "<parameter name=\"i\">" text "</parameter>\n"
#define END "</invoke>\n"

static void begin_tools(void)
{
    tools = json_of(tools_text);
}

static void end_tools(void)
{
    json_decref(tools);
    tools = NULL;
}

TEST(output_reads_tool_calls)
{
    static const struct run runs[] = {
        {"r\n</think>\n\nLook" OPEN F S("x") I("2") END CLOSE, THINKS,
         "[think r][say Look][call f][args {\"s\": \"x\", \"i\": 2}][end]"},
        {"r\n</think>\n\n" OPEN F END CLOSE, THINKS, "[think r][call f][args {}][end]"},
        {"Look\n" OPEN F END CLOSE, SPEAKS, "[say Look\n][call f][args {}][end]"},
        {"<minimax:tool_call><invoke name=\"f\">" S("x") "</invoke>" CLOSE, SPEAKS,
         "[call f][args {\"s\": \"x\"}][end]"},
        /* several in a block, several blocks, and what stands between and behind */
        {OPEN F S("x") END G S("1") END CLOSE, SPEAKS,
         "[call f][args {\"s\": \"x\"}][end][call g][args {\"s\": 1}][end]"},
        {OPEN F END CLOSE OPEN G END CLOSE, SPEAKS, "[call f][args {}][end][call g][args {}][end]"},
        {OPEN F END CLOSE "\n\n and\n" OPEN G END CLOSE "\n", SPEAKS,
         "[call f][args {}][end][say and\n][call g][args {}][end]"},
        {OPEN "Now:\n" F "so " S("x") "\nand" END "done" CLOSE, SPEAKS,
         "[call f][args {\"s\": \"x\"}][end]"},
        {OPEN CLOSE "x", SPEAKS, "[say x]"},
        /* names */
        {OPEN "<invoke name=f><parameter name=s>x</parameter></invoke>" CLOSE, SPEAKS,
         "[call f][args {\"s\": \"x\"}][end]"},
        {OPEN "<invoke name='a>b'><parameter name=\"a\"b>\">1</parameter></invoke>" CLOSE, SPEAKS,
         "[call a>b][args {\"a\\\"b>\": 1}][end]"},
        /* a tool or parameter that nobody declared */
        {OPEN F "<parameter name=\"x\">[1, 2]</parameter>" END CLOSE, SPEAKS,
         "[call f][args {\"x\": [1, 2]}][end]"},
        {OPEN "<invoke name=\"h\">\n" S("x") END CLOSE, SPEAKS,
         "[call h][args {\"s\": \"x\"}][end]"},
        {OPEN F S("1") S("2") I("3") I("4") END CLOSE, SPEAKS,
         "[call f][args {\"s\": \"1\", \"i\": 3}][end]"},
    };
    begin_tools();
    CHECK_RUNS(runs);
    end_tools();
}

TEST(output_keeps_strings_verbatim)
{
    static const struct run runs[] = {
        {OPEN F S("\n two\nlines \n\n") END CLOSE, SPEAKS,
         "[call f][args {\"s\": \"\\n two\\nlines \\n\\n\"}][end]"},
        {OPEN F S("a &lt; b &amp; \"c\" \\n") END CLOSE, SPEAKS,
         "[call f][args {\"s\": \"a &lt; b &amp; \\\"c\\\" \\\\n\"}][end]"},
        {OPEN F S("if (a<b) </p> <invoke name=\"g\"> <parameter name=\"i\">7 </invoke>\n </param")
             END CLOSE,
         SPEAKS,
         "[call f][args {\"s\": \"if (a<b) </p> <invoke name=\\\"g\\\"> <parameter "
         "name=\\\"i\\\">7 </invoke>\\n </param\"}][end]"},
        {OPEN F S("") S("") END CLOSE, SPEAKS, "[call f][args {\"s\": \"\"}][end]"},
        {OPEN F S("\xe4\xbd\xa0\x01") END CLOSE, SPEAKS,
         "[call f][args {\"s\": \"\xe4\xbd\xa0\\u0001\"}][end]"},
        {OPEN F S("null") "<parameter name=\"m\">null</parameter>" END CLOSE, SPEAKS,
         "[call f][args {\"s\": \"null\", \"m\": null}][end]"},
    };
    begin_tools();
    CHECK_RUNS(runs);
    end_tools();
}

TEST(output_repairs_what_was_not_closed)
{
    static const struct run runs[] = {
        /* the reasoning */
        {"hm" OPEN F END CLOSE, THINKS, "[think hm][call f][args {}][end]"},
        {"hm" OPEN F END CLOSE "\n</think>\n\nok", THINKS,
         "[think hm][call f][args {}][end][say ok]"},
        {OPEN F END CLOSE "a\n</think>\n\nb</think>", THINKS,
         "[call f][args {}][end][say ab</think>]"},
        /* the call, the value */
        {OPEN F S("x") CLOSE "y", SPEAKS, "[call f][args {\"s\": \"x\"}][end][say y]"},
        {OPEN F S("x") G END CLOSE, SPEAKS,
         "[call f][args {\"s\": \"x\"}][end][call g][args {}][end]"},
        {OPEN F "<parameter name=\"s\">x\n</invoke>\n" CLOSE "y", SPEAKS,
         "[call f][args {\"s\": \"x\"}][end][say y]"},
        {OPEN F "<parameter name=\"i\">7</invoke>" CLOSE, SPEAKS, "[call f][args {\"i\": 7}][end]"},
        {OPEN F "<parameter name=\"s\">x\n" CLOSE, SPEAKS, "[call f][args {\"s\": \"x\"}][end]"},
        /* the output */
        {OPEN F S("x") END, SPEAKS, "[call f][args {\"s\": \"x\"}][end]"},
        {OPEN F S("x"), SPEAKS, "[call f][args {\"s\": \"x\"}][end]"},
        {OPEN F "<parameter name=\"s\">x\n</invoke>\n", SPEAKS,
         "[call f][args {\"s\": \"x\"}][end]"},
        {OPEN F "<parameter name=\"s\">x", SPEAKS, "[call f][args {\"s\": \"x\"}][end]"},
        {OPEN F "<parameter name=\"i\">7", SPEAKS, "[call f][args {\"i\": 7}][end]"},
        {OPEN F "<parameter name=\"i", SPEAKS, "[call f][args {}][end]"},
        {OPEN "<invoke name=\"f", SPEAKS, ""},
        {OPEN, SPEAKS, ""},
        {"x\n<minimax:to", SPEAKS, "[say x\n<minimax:to]"},
    };
    begin_tools();
    CHECK_RUNS(runs);
    end_tools();
}

/* Every beginning of an output: what was said so far, and no call that looks whole but is not. */
TEST(output_that_is_cut_says_where)
{
    static const struct {
        struct run run;
        enum output_place ended;
        bool in_tag;
        int n_calls, n_cut;
    } cases[] = {
        {{"a", OUTPUT_IN_REASONING, OUTPUT_CUT, "[think a]"}, OUTPUT_IN_REASONING, false, 0, 0},
        {{"a</thi", OUTPUT_IN_REASONING, OUTPUT_CUT, "[think a</thi]"},
         OUTPUT_IN_REASONING,
         true,
         0,
         0},
        {{"a\n", SPEAKS_CUT, "[say a\n]"}, OUTPUT_IN_CONTENT, false, 0, 0},
        {{"a\n<minimax:", SPEAKS_CUT, "[say a\n<minimax:]"}, OUTPUT_IN_CONTENT, true, 0, 0},
        {{OPEN, SPEAKS_CUT, ""}, OUTPUT_IN_BLOCK, false, 0, 0},
        {{OPEN "<invoke nam", SPEAKS_CUT, ""}, OUTPUT_IN_BLOCK, true, 0, 0},
        {{OPEN "<invoke name=\"f", SPEAKS_CUT, ""}, OUTPUT_IN_CALL_NAME, true, 0, 0},
        {{OPEN F, SPEAKS_CUT, "[call f]"}, OUTPUT_IN_CALL, false, 1, 1},
        {{OPEN F "<parameter name=\"s", SPEAKS_CUT, "[call f]"}, OUTPUT_IN_VALUE_NAME, true, 1, 1},
        {{OPEN F "<parameter name=\"s\">x", SPEAKS_CUT, "[call f][args {\"s\": \"x]"},
         OUTPUT_IN_VALUE,
         false,
         1,
         1},
        {{OPEN F "<parameter name=\"i\">12", SPEAKS_CUT, "[call f]"}, OUTPUT_IN_VALUE, false, 1, 1},
        {{OPEN F S("x") "</inv", SPEAKS_CUT, "[call f][args {\"s\": \"x\"]"},
         OUTPUT_IN_CALL,
         true,
         1,
         1},
        {{OPEN F S("x") END, SPEAKS_CUT, "[call f][args {\"s\": \"x\"}][end]"},
         OUTPUT_IN_BLOCK,
         false,
         1,
         0},
        {{OPEN F S("x") END CLOSE, SPEAKS_CUT, "[call f][args {\"s\": \"x\"}][end]"},
         OUTPUT_IN_CONTENT,
         false,
         1,
         0},
    };
    begin_tools();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct output_report report = run_cut_everywhere(&cases[i].run);
        test_note("%s", cases[i].run.output);
        CHECK_INT(report.ended, cases[i].ended);
        CHECK_INT(report.in_tag, cases[i].in_tag);
        CHECK_INT(report.n_calls, cases[i].n_calls);
        CHECK_INT(report.n_cut, cases[i].n_cut);
    }
    end_tools();
}

TEST(output_in_ids_takes_no_marker_in_letters)
{
    struct tokenizer *t = small_tokenizer();
    struct tokens ids = {0};
    const struct run run = {"", THINKS,
                            "[think a</think>b][call f][args {\"s\": "
                            "\"</think></minimax:tool_call>[e~[\"}][end]"};

    begin_tools();
    CHECK_INT(tokenizer_encode(t, STR("a</think>b"), TOKENIZER_PLAIN, &ids), 0);
    tokens_push(&ids, tokenizer_find(t, STR("<minimax:tool_call>")));
    CHECK_INT(tokenizer_encode(t, STR(F S("</think></minimax:tool_call>[e~[") END), TOKENIZER_PLAIN,
                               &ids),
              0);
    tokens_push(&ids, tokenizer_find(t, STR("[e~["))); /* special: not shown */
    tokens_push(&ids, tokenizer_find(t, STR("</minimax:tool_call>")));
    run_ids(&run, t, &ids);
    tokens_fini(&ids);
    tokenizer_free(&t);
    end_tools();
}

TEST(output_streams_strings_and_holds_the_rest)
{
    struct output o;
    struct output_events said = {0};

    begin_tools();
    output_init(&o, NULL, OUTPUT_IN_CONTENT, tools);
    output_feed_text(&o, STR(OPEN F "<parameter name=\"s\">one"), &said);
    char *text = transcript(&said);
    CHECK_STR(text, "[call f][args {\"s\": \"one]");
    mem_free(text);
    output_events_reset(&said);
    output_feed_text(&o, STR(" two\n</parameter><parameter name=\"i\">12"), &said);
    text = transcript(&said);
    CHECK_STR(text, "[args  two\\n\"]");
    mem_free(text);
    output_events_reset(&said);
    /* A string or null: once it is long, it is a string. */
    output_feed_text(&o, STR("</parameter><parameter name=\"m\">"), &said);
    for (int i = 0; i < OUTPUT_MAX_SCALAR_BYTES; i++)
        output_feed_text(&o, STR("y"), &said);
    CHECK_INT(output_events_text(&said, 0).len, strlen(", \"i\": 12"));
    output_feed_text(&o, STR("y"), &said);
    CHECK_INT(output_events_text(&said, 0).len,
              strlen(", \"i\": 12, \"m\": \"") + OUTPUT_MAX_SCALAR_BYTES + 1);
    output_events_fini(&said);
    output_fini(&o);
    end_tools();
}

/* ---- limits ------------------------------------------------------------------------------- */

/* `times` times `piece` after `before`: the error must come, and then nothing. */
static void check_limit(const char *before, const char *piece, int times, const char *error)
{
    struct output o;
    struct output_events said = {0};
    struct buf why = {0};

    output_init(&o, NULL, OUTPUT_IN_CONTENT, tools);
    output_feed_text(&o, str_of(before), &said);
    for (int i = 0; i < times; i++) {
        output_feed_text(&o, str_of(piece), &said);
        CHECK(o.text.len < 100 && o.value.len <= OUTPUT_MAX_VALUE_BYTES);
    }
    CHECK_INT(o.place, OUTPUT_BROKEN);
    size_t n = said.n;
    CHECK_INT(said.list[n - 1].kind, OUTPUT_ERROR);
    output_events_gather(&said, OUTPUT_ERROR, &why);
    CHECK_HAS(why.data, error);
    output_feed_text(&o, STR("x</parameter>\n</invoke>\n" CLOSE "more" OPEN F), &said);
    output_finish(&o, OUTPUT_STOPPED, &said);
    CHECK_INT(said.n, n);
    CHECK_INT(o.report.ended, OUTPUT_BROKEN);
    buf_fini(&why);
    output_events_fini(&said);
    output_fini(&o);
}

TEST(output_limits_are_an_error)
{
    char kilobyte[1025], many[64];
    struct buf keys = {0};

    begin_tools();
    memset(kilobyte, 'x', 1024);
    kilobyte[1024] = 0;
    check_limit(OPEN "<invoke name=\"", kilobyte, 1, "name in a tool call is too long");
    check_limit(OPEN F "<parameter name=", kilobyte, 1, "name in a tool call is too long");
    check_limit(OPEN, F END, OUTPUT_MAX_CALLS + 1, "too many tool calls");
    check_limit(OPEN F "<parameter name=\"a\">[", kilobyte, 1025, "too long");
    for (int i = 0; i <= OUTPUT_MAX_PARAMETERS; i++) {
        snprintf(many, sizeof many, "<parameter name=\"k%d\">1</parameter>", i);
        buf_puts(&keys, many);
    }
    check_limit(OPEN F, keys.data, 1, "too many parameters");
    buf_fini(&keys);
    end_tools();
}

TEST(output_refuses_a_nul_in_a_name)
{
    struct output o;
    struct output_events said = {0};

    begin_tools();
    output_init(&o, NULL, OUTPUT_IN_CONTENT, tools);
    output_feed_text(&o, STR(OPEN "<invoke name=\"a\0b\">"), &said);
    CHECK_INT(said.n, 1);
    CHECK_INT(said.list[0].kind, OUTPUT_ERROR);
    output_events_fini(&said);
    output_fini(&o);
    end_tools();
}

TEST(output_of_any_length_that_begins_no_tag_is_not_held)
{
    struct output o;
    struct output_events said = {0};

    begin_tools();
    output_init(&o, NULL, OUTPUT_IN_REASONING, tools);
    for (int i = 0; i < 100000; i++) {
        output_feed_text(&o, STR("<\n<think>\n\n<min"), &said);
        CHECK(o.text.len < 64);
        output_events_reset(&said);
    }
    output_events_fini(&said);
    output_fini(&o);
    end_tools();
}

/* ---- values ------------------------------------------------------------------------------- */

static void check_value(const char *text, unsigned types, const char *want)
{
    struct buf json = {0};

    test_note("'%s' as %#x", text, types);
    output_value_write(str_of(text), types, &json);
    CHECK_STR(json.data, want);
    json_t *v = json_loads(json.data, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
    CHECK(v != NULL);
    json_decref(v);
    buf_fini(&json);
}

TEST(output_value_follows_the_declared_types)
{
    enum {
        STRING = OUTPUT_TYPE_STRING,
        INTEGER = OUTPUT_TYPE_INTEGER,
        NUMBER = OUTPUT_TYPE_NUMBER,
        BOOLEAN = OUTPUT_TYPE_BOOLEAN,
        NOTHING = OUTPUT_TYPE_NULL,
        OBJECT = OUTPUT_TYPE_OBJECT,
        ARRAY = OUTPUT_TYPE_ARRAY,
    };
    check_value(" 12\n", INTEGER, "12");
    check_value("-12", INTEGER, "-12");
    check_value("2.0", INTEGER, "2");
    check_value("-0.0", INTEGER, "0");
    check_value("2.5", INTEGER, "2.5");
    check_value("007", INTEGER, "\"007\"");
    check_value("twelve", INTEGER, "\"twelve\"");
    check_value("123456789012345678901234567890", INTEGER, "123456789012345678901234567890");
    check_value("1e999", NUMBER, "\"1e999\"");
    check_value("2.50", NUMBER, "2.50");
    check_value("3", NUMBER, "3");
    check_value("NaN", NUMBER, "\"NaN\"");
    check_value("True", BOOLEAN, "true");
    check_value("off", BOOLEAN, "false");
    check_value("1", BOOLEAN, "true");
    check_value("1", BOOLEAN | INTEGER, "1");
    check_value("yes", BOOLEAN | STRING, "\"yes\"");
    check_value("FALSE", BOOLEAN | STRING, "false");
    check_value("None", INTEGER, "null");
    check_value("nil", NOTHING | STRING, "null");
    check_value("null", STRING, "\"null\"");
    check_value("null", STRING | INTEGER, "\"null\"");
    check_value(" {\"a\": [1,\n2]} ", OBJECT, "{\"a\": [1,\n2]}");
    check_value("[1]", OBJECT, "[1]");
    check_value("{\"a\"", OBJECT, "\"{\\\"a\\\"\"");
    check_value("[1]", STRING | ARRAY, "[1]");
    check_value("{}", STRING | ARRAY, "\"{}\"");
    check_value("", INTEGER, "\"\"");
    check_value(" 1 ", STRING, "\" 1 \"");
    check_value("1", STRING | NUMBER, "1");
    /* Nothing declared. */
    check_value("1", 0, "1");
    check_value(" [true] ", 0, "[true]");
    check_value("\"quoted\"", 0, "\"quoted\"");
    check_value("None", 0, "\"None\"");
    check_value(" plain", 0, "\" plain\"");
    check_value("", 0, "\"\"");
}

static unsigned types_in(const char *schema_text)
{
    json_t *schema = json_of(schema_text);
    unsigned types = output_types_of(schema, "p");

    json_decref(schema);
    return types;
}
#define PROPERTY(schema) types_in("{\"properties\": {\"p\": " schema "}}")

TEST(output_types_come_from_all_over_the_schema)
{
    const unsigned string = OUTPUT_TYPE_STRING, null = OUTPUT_TYPE_NULL;

    CHECK_INT(PROPERTY("{\"type\": \"string\"}"), string);
    CHECK_INT(PROPERTY("{\"type\": [\"string\", \"null\", 7]}"), string | null);
    CHECK_INT(PROPERTY("{\"type\": \"string\", \"nullable\": true}"), string | null);
    CHECK_INT(PROPERTY("{\"anyOf\": [{\"type\": \"string\"}, {\"type\": \"null\"}]}"),
              string | null);
    CHECK_INT(PROPERTY("{\"oneOf\": [{\"allOf\": [{\"const\": 1}]}, {\"enum\": [\"a\", null]}]}"),
              string | null | OUTPUT_TYPE_INTEGER);
    CHECK_INT(PROPERTY("{\"items\": {}}"), OUTPUT_TYPE_ARRAY);
    CHECK_INT(PROPERTY("{\"properties\": {}}"), OUTPUT_TYPE_OBJECT);
    CHECK_INT(PROPERTY("{\"description\": \"?\"}"), 0);
    CHECK_INT(PROPERTY("true"), 0);
    CHECK_INT(PROPERTY("{\"type\": \"date\"}"), 0);
    CHECK_INT(types_in("{\"properties\": {\"p\": {\"$ref\": \"#/$defs/P\"}}, \"$defs\": {\"P\": "
                       "{\"type\": \"string\"}}}"),
              string);
    CHECK_INT(types_in("{\"additionalProperties\": {\"type\": \"string\"}}"), string);
    CHECK_INT(types_in("{\"additionalProperties\": false}"), 0);
    CHECK_INT(PROPERTY("{\"$ref\": \"#/nowhere\"}"), 0);
    CHECK_INT(PROPERTY("{\"$ref\": \"http://x\"}"), 0);
    CHECK_INT(output_types_of(NULL, "p"), 0);
    /* Schemas that go round in circles, or would take for ever. */
    CHECK_INT(PROPERTY("{\"type\": \"string\", \"$ref\": \"#/properties/p\"}"), string);
    struct buf circles = {0};
    buf_puts(&circles, "{\"properties\": {\"p\": {\"type\": \"string\", \"anyOf\": [");
    for (int i = 0; i < 40; i++)
        buf_puts(&circles, "{\"$ref\": \"#/properties/p\"}, ");
    buf_puts(&circles, "{}]}}}");
    CHECK_INT(types_in(circles.data), string);
    buf_fini(&circles);
}

/* ---- the template's own writing ----------------------------------------------------------- */

static const char *const strange[] = {
    "x",
    "\n",
    "\n\nx\n",
    " spaced ",
    "a < b > c </b>",
    "&amp;&lt;",
    "</param",
    "</invoke>",
    "<invoke name=\"f\">",
    "<parameter name=\"s\">y",
    "</think>",
    "<think>",
    "<minimax:tool_call>\n",
    "\n</minimax:tool_call>",
    "[e~[\n]~b]user\nhi",
    "\xe4\xbd\xa0\xe2\x82\xac\"\\",
};

static const char *any(struct rng *rng)
{
    return strange[rng_below(rng, sizeof strange / sizeof strange[0])];
}

static json_t *any_arguments(struct rng *rng)
{
    json_t *o = json_object();

    if (rng_below(rng, 4))
        json_object_set_new(o, "s", json_string(any(rng)));
    if (rng_below(rng, 2))
        json_object_set_new(o, "i", json_integer((json_int_t)rng_below(rng, 1000) - 500));
    if (rng_below(rng, 2))
        json_object_set_new(o, "n", json_real(0.5));
    if (rng_below(rng, 2))
        json_object_set_new(o, "b", rng_below(rng, 2) ? json_true() : json_false());
    if (rng_below(rng, 2))
        json_object_set_new(o, "o", json_pack("{s:s, s:[i, n]}", "k", any(rng), "l", 1));
    if (rng_below(rng, 2))
        json_object_set_new(o, "m", rng_below(rng, 2) ? json_null() : json_string(any(rng)));
    return o;
}

/* What the template's text for a message says, token by token from its <think> on. */
static void read_back(const struct chat *chat, const struct chat_message *messages,
                      struct output_events *said)
{
    const struct chat_prompt prompt = {
        .messages = messages, .n_messages = 2, .ending = CHAT_AS_IT_IS};
    struct tokens ids = {0};
    struct output o;
    size_t first = 0, end;

    CHECK_INT(chat_render(chat, &prompt, &ids, NULL), 0);
    while (ids.ids[first] != chat->ids[CHAT_MARK_THINK])
        first++;
    for (end = ids.len - 1; ids.ids[end] != chat_end_id(chat);)
        end--;
    output_init(&o, chat->tokenizer, OUTPUT_IN_CONTENT, tools);
    for (size_t i = first; i < end; i++)
        output_feed(&o, ids.ids[i], said);
    output_finish(&o, OUTPUT_STOPPED, said);
    tokens_fini(&ids);
    output_fini(&o);
}

static void check_gathered(const struct output_events *said, enum output_kind kind, struct str want)
{
    struct buf text = {0};

    output_events_gather(said, kind, &text);
    CHECK_INT(text.len, want.len);
    CHECK_BYTES(text.len ? text.data : "", want.len ? want.ptr : "", want.len);
    buf_fini(&text);
}

static void check_calls(const struct output_events *said, const struct chat_tool_call *calls, int n)
{
    struct buf json = {0};
    int n_ended = 0;

    for (size_t i = 0; i < said->n; i++) {
        struct str text = output_events_text(said, i);
        if (said->list[i].kind == OUTPUT_CALL) {
            CHECK(str_equal(text, calls[said->list[i].call].name));
        } else if (said->list[i].kind == OUTPUT_ARGUMENTS) {
            buf_append_str(&json, text);
        } else if (said->list[i].kind == OUTPUT_CALL_END) {
            json_t *arguments = json_loadb(json.data, json.len, 0, NULL);
            CHECK(arguments != NULL);
            CHECK(json_equal(arguments, calls[n_ended].arguments));
            CHECK_INT(said->list[i].call, n_ended);
            json_decref(arguments);
            buf_reset(&json);
            n_ended++;
        }
    }
    CHECK_INT(n_ended, n);
    buf_fini(&json);
}

TEST(output_reads_back_what_the_template_writes)
{
    struct tokenizer *t = small_tokenizer();
    struct chat chat;
    struct rng rng = test_rng();

    CHECK_INT(chat_init(&chat, t, NULL), 0);
    begin_tools();
    for (int i = 0; i < 1000; i++) {
        json_t *arguments[2] = {any_arguments(&rng), any_arguments(&rng)};
        const struct chat_tool_call calls[] = {{.name = STR("f"), .arguments = arguments[0]},
                                               {.name = STR("f"), .arguments = arguments[1]}};
        int n_calls = (int)rng_below(&rng, 3);
        struct chat_message messages[] = {
            {.role = CHAT_USER, .content = STR("u")},
            {.role = CHAT_ASSISTANT,
             .content = rng_below(&rng, 2) ? str_of(any(&rng)) : STR(""),
             .reasoning = str_of(any(&rng)),
             .tool_calls = calls,
             .n_tool_calls = n_calls},
        };
        struct output_events said = {0};

        read_back(&chat, messages, &said);
        check_gathered(&said, OUTPUT_REASONING, messages[1].reasoning);
        check_gathered(&said, OUTPUT_CONTENT, messages[1].content);
        check_calls(&said, calls, n_calls);
        output_events_fini(&said);
        json_decref(arguments[0]);
        json_decref(arguments[1]);
    }
    end_tools();
    tokenizer_free(&t);
}

/* ---- anything ----------------------------------------------------------------------------- */

static const char *const pieces[] = {
    "<think>", "</think>", OPEN,           CLOSE,  F,      G,     END,
    S("v"),    I("5"),     "</par",        "\n",   "\n\n", "<",   "</invoke>",
    "text",    "\xe4\xbd", "\xe4\xbd\xa0", "\xff", " ",    "{1}", "<parameter name=\"n\">",
};

/* Random pieces of the format: however they are cut, the events are the same. */
TEST(output_is_the_same_however_it_is_cut)
{
    struct rng rng = test_rng();
    struct buf text = {0};

    begin_tools();
    for (int i = 0; i < 300; i++) {
        struct output o;
        struct output_events said = {0};
        enum output_place begins = rng_below(&rng, 2) ? OUTPUT_IN_REASONING : OUTPUT_IN_CONTENT;
        enum output_ending ending = rng_below(&rng, 2) ? OUTPUT_STOPPED : OUTPUT_CUT;

        buf_reset(&text);
        for (uint64_t n = rng_below(&rng, 16); n > 0; n--)
            buf_puts(&text, pieces[rng_below(&rng, sizeof pieces / sizeof pieces[0])]);
        buf_puts(&text, "");
        output_init(&o, NULL, begins, tools);
        output_feed_text(&o, buf_str(&text), &said);
        output_finish(&o, ending, &said);
        char *want = transcript(&said);
        const struct run run = {text.data, begins, ending, want};
        run_cut_everywhere(&run);
        mem_free(want);
        output_events_fini(&said);
        output_fini(&o);
    }
    buf_fini(&text);
    end_tools();
}

TEST(output_survives_any_ids)
{
    struct tokenizer *t = small_tokenizer();
    struct rng rng = test_rng();

    begin_tools();
    for (int i = 0; i < 2000; i++) {
        struct output o;
        struct output_events said = {0};

        output_init(&o, t, rng_below(&rng, 2) ? OUTPUT_IN_REASONING : OUTPUT_IN_CONTENT, tools);
        for (int k = (int)rng_below(&rng, 30); k > 0; k--)
            output_feed(&o, (int32_t)rng_below(&rng, 710) - 5, &said);
        output_finish(&o, rng_below(&rng, 2) ? OUTPUT_STOPPED : OUTPUT_CUT, &said);
        mem_free(transcript(&said));
        output_events_fini(&said);
        output_fini(&o);
    }
    end_tools();
    tokenizer_free(&t);
}
